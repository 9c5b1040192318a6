/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Page granule: what the files of mm/ share.
 *
 *   page_granule.c                 predicates: is it a granule, and how is it
 *                                  populated?
 *   page_granule_policy.c          which memory may be tagged: prctl(), mmap();
 *                                  what a program inherits by exec; where
 *                                  mappings are placed. fs/exec.c tags the
 *                                  stack, mmap.c tags brk() memory and .bss
 *   page_granule_sysfs.c           /sys/kernel/mm/page_granule
 *   page_granule_contract.c        mremap() and MADV_FREE of contract granules;
 *                                  other calls ask page_granule_check_range()
 *   page_granule_alloc.c           folios for granules: where from, how much
 *                                  effort, whom to charge
 *   page_granule_fault.c           populate, copy-on-write, reuse, fork
 *   page_granule_cow.c             private copies of granules of files
 *   page_granule_swap.c            swap-in of private memory; for shared
 *                                  memory, see shmem.c
 *   page_granule_shmem.c           faults on shared anonymous memory for which
 *                                  shmem.c has found only small folios
 *   page_granule_file.c            faults on files: readahead, conversion of
 *                                  small folios, and what is mapped at once
 *   page_granule_write.c           writes to files where a granule does not fit
 *   page_granule_migrate.c         move_pages() and mbind() of a part of a
 *                                  granule
 *   page_granule_events.c          counters and tracepoints; asks for repair
 *   page_granule_repair.c          hints to broken granules, and the worker
 *                                  that takes them: how much it may do, and
 *                                  how often it tries
 *   page_granule_collapse.c        which broken granules may be repaired, and
 *                                  how: one folio for their pages, for the
 *                                  worker and MADV_COLLAPSE
 *   page_granule_collapse_cache.c  the same in the page cache, and for faults
 *   page_granule_debug.c           invariants, verified on demand
 *
 * Other files of mm/ include this header for the functions that they call
 * where a VMA is tagged. include/linux/page_granule.h has the terms, and what
 * the rest of the kernel may use. vma.c is also built in user space, and includes
 * that header only.
 */
#ifndef __MM_PAGE_GRANULE_H
#define __MM_PAGE_GRANULE_H

#include <linux/mm.h>
#include <linux/mman.h>
#include <linux/page_granule.h>
#include <linux/pagemap.h>
#include <linux/shmem_fs.h>
#include <linux/userfaultfd_k.h>

#include <asm/tlb.h>

#include "internal.h"

/**
 * struct granule_target - How to make a granule whole.
 * @nid: The node of most of its pages; in the page cache, the node of the first.
 * @scattered: Some pages are on other nodes.
 * @policy: The memory policy of the VMA, referenced, or NULL.
 * @ilx: The interleave index for @policy.
 * @ceiling: vma_thp_gfp_mask() of the VMA, which limits the effort.
 * @memcg: The memory cgroup of the page cache, referenced, or NULL.
 * @others: Unmap pages that other processes map, too. The caller sets this.
 * @cached: One folio of the page cache holds it. It only has to be mapped.
 * @anon: Its pages are private memory, also if they are copies of those of a file.
 */
struct granule_target {
	int nid;
	bool scattered;
	struct mempolicy *policy;
	pgoff_t ilx;
	gfp_t ceiling;
	struct mem_cgroup *memcg;
	bool others;
	bool cached;
	bool anon;
};

/*
 * Flags to charge the folio of a granule with, if it is worth reclaim: the
 * memory cgroup reclaims once, and does not retry.
 */
#define GFP_PAGE_GRANULE_CHARGE	(GFP_KERNEL | __GFP_NORETRY | __GFP_NOWARN)

/* page_granule.c */
bool page_granule_ptes_run(pte_t *ptep);
bool page_granule_is_zeroes(struct vm_area_struct *vma, unsigned long addr,
			    pte_t *ptep);

/* page_granule_policy.c */
extern bool page_granule_enabled;
int page_granule_parse_size(unsigned long size);
int page_granule_parse_flags(unsigned long flags);

/* page_granule_contract.c */
int page_granule_not_freed(struct vm_area_struct *vma, unsigned long addr,
			   pte_t *ptep, int max_nr);
int page_granule_check_mremap(struct mm_struct *mm, unsigned long addr,
			      unsigned long old_len, unsigned long new_addr,
			      unsigned long new_len, unsigned long flags);
bool page_granule_any_contract(struct mm_struct *mm, unsigned long start,
			       unsigned long end);

/* page_granule_alloc.c */
bool granule_memcg_has_room(struct mem_cgroup *memcg, unsigned int nr);
bool granule_has_room(struct vm_area_struct *vma);
bool granule_may_charge(struct vm_area_struct *vma, gfp_t *charge);
bool page_granule_may_swap_in(struct vm_area_struct *vma);
struct folio *page_granule_alloc_node(gfp_t ceiling, int nid);
struct folio *alloc_granule_folio(struct vm_area_struct *vma,
				  unsigned long addr);
struct folio *page_granule_alloc_cache(gfp_t gfp,
				       const struct readahead_control *ractl);

/* page_granule_fault.c */
bool granule_wants_all(struct vm_fault *vmf, pte_t *pte);
bool granule_behind_eof(struct vm_fault *vmf);
int granule_part(struct vm_fault *vmf, struct folio *folio, struct page **page,
		 unsigned long *addr);
vm_fault_t populate_granule_from_pages(struct vm_fault *vmf, struct folio *folio);
void __page_granule_extend(struct vm_area_struct *vma, unsigned long addr,
			   unsigned long end);
vm_fault_t populate_granule_edge(struct vm_fault *vmf);
bool map_zero_granule(struct vm_fault *vmf);
vm_fault_t alloc_granule_copy(struct vm_fault *vmf, bool need_zero,
			      struct folio **folios);
vm_fault_t copy_granule_page(struct vm_fault *vmf, int i, struct page *page,
			     struct folio **folios);
void map_granule_copy(struct vm_fault *vmf, pte_t *pte, pte_t old,
		      struct folio **folios);
void put_granule_folios(struct folio **folios);
vm_fault_t wp_copy_granule(struct vm_fault *vmf);
bool wp_reuse_granule(struct vm_fault *vmf, struct folio *folio);
bool mark_granule_soft_dirty(struct vm_fault *vmf);
void note_fault_granule(struct vm_fault *vmf, int nr_pages);
bool granule_wants_pages(struct vm_fault *vmf, struct folio *folio);
int copy_pinned_granule(struct vm_area_struct *dst_vma,
			struct vm_area_struct *src_vma, pmd_t *dst_pmd,
			pmd_t *src_pmd, unsigned long addr);

/* page_granule_cow.c */
vm_fault_t cow_file_granule(struct vm_fault *vmf);

/* page_granule_file.c */
bool granule_convert(struct vm_fault *vmf);
vm_fault_t granule_fault_around(struct vm_fault *vmf);
struct file *granule_sync_readahead(struct vm_fault *vmf);

/* page_granule_write.c */
bool granule_lacks_space(struct file *file, u64 need);
vm_fault_t granule_page_mkwrite(struct vm_fault *vmf);

/* page_granule_migrate.c */
int page_granule_nr_to_move(const void __user * __user *pages,
			    const int __user *nodes, unsigned long i,
			    unsigned long nr_pages, const void __user *p,
			    int node);
int page_granule_split_page(struct vm_area_struct *vma, unsigned long addr,
			    struct page *page, bool wait);

/* page_granule_events.c */
void page_granule_note_cow(struct vm_area_struct *vma, unsigned long addr,
			   enum page_granule_fill fill);

/* page_granule_repair.c */
void page_granule_repair_in_place(struct mm_struct *mm, unsigned long addr);

/* page_granule_collapse.c */
pmd_t *granule_pmd(struct mm_struct *mm, unsigned long addr);
gfp_t granule_target_charge(const struct granule_target *target, struct vm_area_struct *vma);
struct folio *granule_target_alloc(const struct granule_target *target,
				   struct mm_struct *mm, gfp_t charge);
void granule_target_set_policy(struct vm_area_struct *vma, unsigned long addr,
			       struct granule_target *target);
void granule_target_put(struct granule_target *target);
int granule_collapse_prepare(struct vm_area_struct *vma, unsigned long addr,
			     struct granule_target *target);
int granule_collapse_finish(struct vm_area_struct *vma, unsigned long addr,
			    const struct granule_target *target, struct folio *folio);

/* page_granule_collapse_cache.c */
int granule_collapse_cached(struct vm_area_struct *vma, unsigned long addr);
int granule_collapse_prepare_cache(struct vm_area_struct *vma, unsigned long addr,
				   struct granule_target *target);
int granule_collapse_finish_cache(struct vm_area_struct *vma, unsigned long addr,
				  bool others, struct folio *folio);

/* page_granule_debug.c */
const char *page_granule_verify_ptes(struct vm_area_struct *vma,
				     unsigned long addr, pte_t *ptep);

/**
 * page_granule_aligns - Does a new mapping want an address that suits granules?
 * @vma_flags: The VMA flags of the new mapping.
 * @file: The file to be mapped or NULL.
 * @len: Its length in bytes.
 * @flags: MAP_* flags.
 * @pgoff: The offset into @file in base pages.
 *
 * A private default-tagged mapping wants it only if the length is a multiple of
 * 64 KiB: any other would leave a gap behind it. Without gaps, neighbours merge
 * into one VMA, which has more granules than if each was aligned. Shared memory
 * never merges with its neighbours. Nor do the first mapping of a file, within
 * which a dynamic linker places the segments of a library, and program text.
 *
 * Return: true if page_granule_get_unmapped_area() is to choose the address.
 */
static inline bool page_granule_aligns(const vma_flags_t *vma_flags,
				       const struct file *file, unsigned long len,
				       unsigned long flags, pgoff_t pgoff)
{
	const bool alone = file ? !pgoff || vma_flags_test(vma_flags, VMA_EXEC_BIT) :
				  flags & MAP_SHARED;

	return vma_flags_test_single_mask(vma_flags, VMA_GRANULE) &&
	       (IS_ALIGNED(len, PAGE_GRANULE_SIZE) ||
		(alone && len >= PAGE_GRANULE_SIZE));
}

/**
 * page_granule_congruent - Do naturally aligned folios suit a new mapping?
 * @file: The file to be mapped or NULL.
 * @addr: The address of the mapping.
 * @flags: MAP_* flags.
 * @pgoff: The offset into @file in base pages.
 *
 * Private anonymous memory is allocated by address, and all other memory by
 * offset. Shared anonymous memory starts at offset 0.
 *
 * Return: true if a default-tagged mapping may be tagged at @addr.
 */
static inline bool page_granule_congruent(const struct file *file, unsigned long addr,
					  unsigned long flags, pgoff_t pgoff)
{
	if (!file && (flags & MAP_TYPE) != MAP_SHARED)
		return true;
	return IS_ALIGNED(addr - (file ? pgoff << PAGE_SHIFT : 0), PAGE_GRANULE_SIZE);
}

/**
 * vma_zero_pfn - The zero page to map at an address.
 * @vma: The user mapping, stabilised by the mmap lock or its VMA lock.
 * @addr: An address in @vma.
 *
 * Return: the PFN of the zero page that everybody shares or, in a granule, of
 * the page of the zero block that makes a run.
 */
static inline unsigned long vma_zero_pfn(struct vm_area_struct *vma,
					 unsigned long addr)
{
	const unsigned long index = granule_index(addr);

	return zero_pfn(addr) + (vma_has_granule(vma, addr) ? index : 0);
}

/**
 * page_granule_dup_mm - Tell a child which VMAs it may get.
 * @mm: The address space of the child.
 * @oldmm: The address space of its parent.
 *
 * Context: The mmap lock of @oldmm is held.
 */
static inline void page_granule_dup_mm(struct mm_struct *mm,
				       const struct mm_struct *oldmm)
{
#ifdef CONFIG_PAGE_GRANULE
	if (mm_has_granule_contract(oldmm))
		mm_flags_set(MMF_GRANULE_CONTRACT, mm);
	if (unlikely(mm_flags_test(MMF_GRANULE_TAGGED, oldmm)))
		mm_flags_set(MMF_GRANULE_TAGGED, mm);
#endif
}

/**
 * vma_granule_accepts - May pages in a range of a VMA be changed?
 * @vma: The VMA, stabilised by the mmap lock or its VMA lock.
 * @start: First byte of the range, in @vma.
 * @len: Length in bytes.
 *
 * This is page_granule_check_range() for callers that hold only the VMA lock.
 *
 * Return: false if the range begins or ends inside a granule of a contract VMA.
 */
static inline bool vma_granule_accepts(const struct vm_area_struct *vma,
				       unsigned long start, unsigned long len)
{
	return !vma_granule_contract(vma) ||
	       IS_ALIGNED(start | len, PAGE_GRANULE_SIZE);
}

/**
 * vma_granule_fills - Does a fault fill granules that are populated in part?
 * @vma: The user mapping, stabilised by the mmap lock or its VMA lock.
 *
 * A granule is populated in part if the VMA did not hold all of it when a fault
 * populated it, or if memory was short.
 *
 * Return: false unless @vma is a default-tagged VMA of private anonymous
 * memory, or if a program may have made the holes. Code that gives memory back
 * calls vma_granule_set_holes() first, and clears PTEs under the page table
 * lock.
 */
static inline bool vma_granule_fills(struct vm_area_struct *vma)
{
	return vma_granule_tagged(vma) && !vma_granule_contract(vma) &&
	       vma_is_anonymous(vma) &&
	       !vma_test_atomic_flag(vma, VMA_GRANULE_HOLES_BIT);
}

/**
 * vma_granule_set_holes - Note that a program gives back or moves memory.
 * @vma: The VMA, stabilised by the mmap lock or its VMA lock.
 *
 * Faults beside the resulting holes do not fill them. Call this before the
 * first PTE is cleared, or with the VMA locked for writing.
 *
 * Context: With only the VMA lock held, the note may be lost: a caller that
 * changes the VMA flags under the mmap lock reads them before it locks the VMA.
 */
static inline void vma_granule_set_holes(struct vm_area_struct *vma)
{
	if (vma_granule_fills(vma))
		vma_set_atomic_flag(vma, VMA_GRANULE_HOLES_BIT);
}

/**
 * page_granule_free_order - Order to split a folio to for a partial MADV_FREE.
 * @vma: The VMA, stabilised by the mmap lock or its VMA lock.
 * @folio: The folio, locked.
 *
 * MADV_FREE can free whole granules of a contract VMA. A folio in the swap
 * cache can only be split to single pages.
 *
 * Return: an order, 0 without CONFIG_PAGE_GRANULE.
 */
static inline unsigned int page_granule_free_order(const struct vm_area_struct *vma,
						   const struct folio *folio)
{
	return vma_granule_contract(vma) && !folio_test_swapcache(folio) &&
	       folio_order(folio) > PAGE_GRANULE_ORDER ? PAGE_GRANULE_ORDER : 0;
}

/**
 * granule_holds_folio - Does a folio exist because the VMA is tagged?
 * @vma: The VMA, stabilised by the mmap lock.
 * @folio: A folio that it maps.
 *
 * Larger folios exist because huge pages are enabled, and those of files for
 * everybody who uses the file.
 *
 * Return: true if @folio is as large as a granule, and holds anonymous or shared
 * memory; constant false without CONFIG_PAGE_GRANULE.
 */
static inline bool granule_holds_folio(const struct vm_area_struct *vma,
				       const struct folio *folio)
{
	return vma_granule_tagged(vma) && folio_order(folio) == PAGE_GRANULE_ORDER &&
	       (folio_test_anon(folio) || folio_test_swapbacked(folio));
}

/**
 * page_granule_divisible - May the pages of a folio be placed one by one?
 * @vma: The VMA, stabilised by the mmap lock.
 * @folio: A folio that it maps.
 *
 * Return: true if @folio is to be split before a part of it is moved; constant
 * false without CONFIG_PAGE_GRANULE.
 */
static inline bool page_granule_divisible(const struct vm_area_struct *vma,
					  const struct folio *folio)
{
	return granule_holds_folio(vma, folio) && !vma_granule_contract(vma);
}

/**
 * page_granule_cut_by - Would moving the pages of a range move others along?
 * @vma: The VMA, stabilised by the mmap lock.
 * @folio: A folio that it maps.
 * @addr: The address of a page of @folio.
 * @page: That page.
 * @start: First byte of the range.
 * @end: First byte after the range.
 *
 * Return: true if @folio is to be split first; constant false without
 * CONFIG_PAGE_GRANULE.
 */
static inline bool page_granule_cut_by(const struct vm_area_struct *vma,
				       const struct folio *folio,
				       unsigned long addr, const struct page *page,
				       unsigned long start, unsigned long end)
{
	const unsigned long first = addr - folio_page_idx(folio, page) * PAGE_SIZE;

	return page_granule_divisible(vma, folio) &&
	       (first < start || first + PAGE_GRANULE_SIZE > end);
}

/**
 * vma_faults_granule - Does a fault populate all of a granule?
 * @vma: The user mapping, stabilised by the mmap lock or its VMA lock.
 * @addr: An address in @vma.
 *
 * Userfaultfd needs to see a fault on each page, so no fault populates more.
 *
 * Return: true if @addr lies in a granule and a fault populates all of it.
 */
static inline bool vma_faults_granule(struct vm_area_struct *vma,
				      unsigned long addr)
{
	return vma_has_granule(vma, addr) && !userfaultfd_armed(vma);
}

/**
 * vma_reads_granule - Does a fault read all of a granule from its file?
 * @vma: The user mapping, stabilised by the mmap lock or its VMA lock.
 * @addr: An address in @vma.
 *
 * There is none for a program that asked for no readahead by MADV_RANDOM, or
 * from a device that has no readahead, except under a contract.
 *
 * Return: true if @addr lies in a granule, and large folios can hold it.
 */
static inline bool vma_reads_granule(struct vm_area_struct *vma, unsigned long addr)
{
	return vma_has_granule(vma, addr) && vma_granule_folios(vma) &&
	       (vma_granule_contract(vma) || (!(vma->vm_flags & VM_RAND_READ) &&
					      vma->vm_file->f_ra.ra_pages));
}

/**
 * vma_skips_small_folios - Does fault-around leave out what is no granule?
 * @vma: The user mapping, stabilised by the mmap lock or its VMA lock.
 * @addr: The address of the fault, in @vma.
 * @nr_pages: How many pages fault-around maps.
 *
 * The fault on a granule that is cached in small folios converts it, which
 * needs it to be mapped by nobody.
 *
 * Return: true if only folios of a granule or more are to be mapped.
 */
static inline bool vma_skips_small_folios(struct vm_area_struct *vma,
					  unsigned long addr, pgoff_t nr_pages)
{
	return nr_pages > PAGE_GRANULE_NR && vma_has_granule(vma, addr);
}

/**
 * mapping_maps_beyond_eof - May a folio be mapped as a whole that holds the end?
 * @mapping: The file.
 * @folio: A folio of it.
 *
 * tmpfs maps huge pages so, if it was mounted for them. Folios that exist for
 * granules are in files that never had large ones.
 *
 * Return: true for shared memory, except for a folio of a granule.
 */
static inline bool mapping_maps_beyond_eof(const struct address_space *mapping,
					   const struct folio *folio)
{
	return shmem_mapping(mapping) &&
	       !(mapping_granule(mapping) && folio_order(folio) == PAGE_GRANULE_ORDER);
}

/**
 * granule_readahead_floor - Let asynchronous readahead read granules at least.
 * @vmf: The fault that found a folio that is marked for readahead.
 * @folio: That folio, of which the fault may have found any page.
 * @ractl: The readahead.
 */
static inline void granule_readahead_floor(struct vm_fault *vmf,
					   const struct folio *folio,
					   struct readahead_control *ractl)
{
#ifdef CONFIG_PAGE_GRANULE
	if (likely(!vma_reads_granule(vmf->vma, vmf->address)))
		return;
	ractl->_granule_gfp = vma_thp_gfp_mask(vmf->vma);
	ractl->_index = folio->index;
	/* page_cache_async_ra() makes each window's folios four times larger. */
	ractl->ra->order = max_t(unsigned short, ractl->ra->order,
				 PAGE_GRANULE_ORDER - 2);
#endif
}

/**
 * readahead_granule - Is readahead about to allocate the folio of a granule?
 * @ractl: The readahead.
 * @order: The order of the folio.
 *
 * Return: true if page_granule_alloc_cache() is to allocate it.
 */
static inline bool readahead_granule(const struct readahead_control *ractl,
				     unsigned int order)
{
#ifdef CONFIG_PAGE_GRANULE
	/* A filesystem whose blocks are as large has nothing smaller. */
	return unlikely(ractl->_granule_gfp) && order == PAGE_GRANULE_ORDER &&
	       mapping_min_folio_order(ractl->mapping) < PAGE_GRANULE_ORDER;
#else
	return false;
#endif
}

/*
 * Nobody may see a partly emptied granule in private anonymous memory of a
 * contract VMA. The bounds of zapped ranges are multiples of a granule there.
 */
static inline bool zap_whole_granules(struct vm_area_struct *vma)
{
	return unlikely(vma_granule_contract(vma)) && vma_is_anonymous(vma);
}

/*
 * Does zapping have to pause at @addr? It does so only between granules, where
 * the CPU is wanted or there is no room to gather the pages of one. *@stop
 * becomes the end of the granule.
 */
static inline bool zap_granule_pauses(struct mmu_gather *tlb, struct vm_area_struct *vma,
				      pte_t *pte, unsigned long addr,
				      unsigned long *stop, bool *force_flush)
{
	*stop = min(*stop, granule_start(addr) + PAGE_GRANULE_SIZE);
	if (!IS_ALIGNED(addr, PAGE_GRANULE_SIZE))
		return false;
	if (need_resched())
		return true;
	if (tlb_has_room(tlb, PAGE_GRANULE_NR) ||
	    page_granule_pte_state(vma, addr, pte) == PAGE_GRANULE_WHOLE ||
	    tlb_next_batch(tlb))
		return false;
	*force_flush = true;
	return true;
}

#ifdef CONFIG_PAGE_GRANULE

/* page_granule_policy.c */
int page_granule_mmap_prepare(struct file *file, unsigned long addr,
			      unsigned long len, unsigned long *flags,
			      pgoff_t pgoff, vma_flags_t *vma_flags);
unsigned long
page_granule_get_unmapped_area(struct file *file, unsigned long addr,
			       unsigned long len, pgoff_t pgoff,
			       unsigned long offset, unsigned long flags,
			       vma_flags_t vma_flags);

/* page_granule_alloc.c */
struct folio *page_granule_alloc_uncharged(struct vm_area_struct *vma, unsigned long addr,
					   gfp_t *charge);

/* page_granule_fault.c */
void fold_or_repair_granule(struct vm_fault *vmf);

/* page_granule_shmem.c */
bool page_granule_monitored(struct address_space *mapping, pgoff_t index);
bool page_granule_mapped(struct address_space *mapping, pgoff_t index);

/* page_granule_events.c */
void page_granule_note_fault(struct vm_area_struct *vma, unsigned long addr,
			     enum page_granule_fill fill);
void page_granule_count_swapin(unsigned int nr_pages);
unsigned int page_granule_cut_ends(struct vm_area_struct *vma,
				   unsigned long start, unsigned long end);
void page_granule_count_cuts(struct mm_struct *mm, unsigned long start,
			     unsigned long end, unsigned int cuts);
void page_granule_note_folio_split(struct vm_area_struct *vma,
				   unsigned long addr, pte_t *ptep,
				   unsigned int nr);

/* page_granule_repair.c */
void page_granule_repair_later(struct mm_struct *mm, unsigned long addr);

/* page_granule_collapse.c */
int page_granule_collapse_range(struct vm_area_struct *vma, unsigned long start,
				unsigned long end);

/**
 * page_granule_orders - Folio orders to populate a granule with.
 * @vma: The tagged VMA, stabilised by the mmap lock or its VMA lock.
 * @orders: Bitfield of the orders that mTHP settings allow.
 *
 * Return: the bits of @orders that are not smaller than a granule, and the bit
 * of the granule itself if @vma may have such folios.
 */
static inline unsigned long page_granule_orders(struct vm_area_struct *vma,
						unsigned long orders)
{
	orders &= ~(BIT(PAGE_GRANULE_ORDER) - 1);
	return vma_granule_folios(vma) ? orders | BIT(PAGE_GRANULE_ORDER) : orders;
}

/**
 * page_granule_extend - Populate the last block of a VMA that has grown.
 * @vma: The VMA that holds the range, or NULL.
 * @addr: The old end in bytes.
 * @end: The new end.
 *
 * This maps those pages of the block's folio that lie in the range. A page that
 * somebody else maps, or may still write to, is left to the next fault.
 *
 * Context: The mmap lock and the lock of @vma are held for writing, so that
 * nobody else populates the block.
 */
static inline void page_granule_extend(struct vm_area_struct *vma,
				       unsigned long addr, unsigned long end)
{
	if (vma && vma_granule_tagged(vma))
		__page_granule_extend(vma, addr, end);
}

/**
 * page_granule_is_whole - Is an address in a granule that is whole?
 * @vma: The VMA.
 * @addr: The address, in @vma.
 * @ptep: The PTE that maps @addr.
 *
 * Context: The page table lock of @ptep is held.
 * Return: true if @addr lies in a granule that is populated as a run.
 */
static inline bool page_granule_is_whole(struct vm_area_struct *vma,
					 unsigned long addr, pte_t *ptep)
{
	const unsigned long start = granule_start(addr);

	return vma_has_granule(vma, addr) &&
	       page_granule_pte_state(vma, start,
				      ptep - granule_index(addr)) ==
	       PAGE_GRANULE_WHOLE;
}

/**
 * page_granule_zero_batch - How many PTEs of zero pages to treat as one.
 * @vma: The VMA.
 * @addr: An address in @vma.
 * @ptep: The PTE that maps @addr.
 * @pte: Its value, which is present.
 * @max_nr: How many PTEs, from @ptep on, the caller treats in @vma.
 *
 * This is folio_pte_batch() for zero pages, which are not in a folio.
 *
 * Context: The page table lock of @ptep is held.
 * Return: PAGE_GRANULE_NR if a granule of zero pages begins at @addr, else 1.
 */
static inline unsigned int page_granule_zero_batch(struct vm_area_struct *vma,
						   unsigned long addr,
						   pte_t *ptep, pte_t pte,
						   unsigned int max_nr)
{
	/* @max_nr ensures that the block is in @vma. */
	if (likely(!vma_granule_tagged(vma)) || max_nr < PAGE_GRANULE_NR ||
	    !IS_ALIGNED(addr, PAGE_GRANULE_SIZE) || !is_zero_pfn(pte_pfn(pte)))
		return 1;

	return page_granule_is_zeroes(vma, addr, ptep) ? PAGE_GRANULE_NR : 1;
}

#else /* CONFIG_PAGE_GRANULE */

static inline unsigned long page_granule_orders(struct vm_area_struct *vma,
						unsigned long orders)
{
	return orders;
}

static inline struct folio *page_granule_alloc_uncharged(struct vm_area_struct *vma,
							 unsigned long addr, gfp_t *charge)
{
	return NULL;
}

static inline void page_granule_note_fault(struct vm_area_struct *vma,
					   unsigned long addr,
					   enum page_granule_fill fill)
{
}

static inline void page_granule_extend(struct vm_area_struct *vma,
				       unsigned long addr, unsigned long end)
{
}

static inline void page_granule_count_swapin(unsigned int nr_pages)
{
}

static inline bool page_granule_is_whole(struct vm_area_struct *vma,
					 unsigned long addr, pte_t *ptep)
{
	return false;
}

static inline unsigned int page_granule_zero_batch(struct vm_area_struct *vma,
						   unsigned long addr,
						   pte_t *ptep, pte_t pte,
						   unsigned int max_nr)
{
	return 1;
}

static inline unsigned int
page_granule_cut_ends(struct vm_area_struct *vma, unsigned long start,
		      unsigned long end)
{
	return 0;
}

static inline void page_granule_count_cuts(struct mm_struct *mm,
					   unsigned long start,
					   unsigned long end, unsigned int cuts)
{
}

static inline void
page_granule_note_folio_split(struct vm_area_struct *vma, unsigned long addr,
			      pte_t *ptep, unsigned int nr)
{
}

static inline int page_granule_collapse_range(struct vm_area_struct *vma,
					      unsigned long start,
					      unsigned long end)
{
	return 1;
}

static inline void page_granule_repair_later(struct mm_struct *mm,
					     unsigned long addr)
{
}

static inline bool page_granule_monitored(struct address_space *mapping,
					  pgoff_t index)
{
	return false;
}

static inline bool page_granule_mapped(struct address_space *mapping,
				       pgoff_t index)
{
	return false;
}

static inline int
page_granule_mmap_prepare(struct file *file, unsigned long addr,
			  unsigned long len, unsigned long *flags,
			  pgoff_t pgoff, vma_flags_t *vma_flags)
{
	return 0;
}

static inline unsigned long
page_granule_get_unmapped_area(struct file *file, unsigned long addr,
			       unsigned long len, pgoff_t pgoff,
			       unsigned long offset, unsigned long flags,
			       vma_flags_t vma_flags)
{
	return -ENOMEM;
}

static inline void fold_or_repair_granule(struct vm_fault *vmf)
{
}

#endif /* CONFIG_PAGE_GRANULE */

#if defined(CONFIG_PAGE_GRANULE) && defined(CONFIG_SWAP)

/* page_granule_swap.c */
bool swapped_granule_fits(struct vm_fault *vmf, struct folio *folio,
			  struct page *page);
vm_fault_t swapin_granule(struct vm_fault *vmf, softleaf_t entry,
			  unsigned long orders, struct folio **foliop);

#else

static inline bool swapped_granule_fits(struct vm_fault *vmf, struct folio *folio,
					struct page *page)
{
	return false;
}

static inline vm_fault_t swapin_granule(struct vm_fault *vmf, softleaf_t entry,
					unsigned long orders,
					struct folio **foliop)
{
	return VM_FAULT_FALLBACK;
}

#endif

#if defined(CONFIG_PAGE_GRANULE) && defined(CONFIG_SHMEM)

/* page_granule_shmem.c */
vm_fault_t do_fault_granule(struct vm_fault *vmf);

#else

static inline vm_fault_t do_fault_granule(struct vm_fault *vmf)
{
	return __do_fault(vmf);
}

#endif

#endif /* __MM_PAGE_GRANULE_H */
