/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Page granule: VMAs that are populated in 64 KiB runs of base pages.
 *
 * The terms are defined in Documentation/mm/page_granule.rst. In short: a
 * granule is a naturally aligned 64 KiB block of addresses that lies wholly
 * inside one tagged VMA (VMA_GRANULE_BIT), and a contract VMA
 * (VMA_GRANULE_CONTRACT_BIT) is a tagged one that nothing may cut inside a
 * granule. PAGE_SIZE means the base page here as everywhere.
 */
#ifndef _LINUX_PAGE_GRANULE_H
#define _LINUX_PAGE_GRANULE_H

#include <linux/align.h>
#include <linux/bits.h>
#include <linux/mm.h>

struct mem_cgroup;

#define PAGE_GRANULE_SHIFT	16
#define PAGE_GRANULE_SIZE	BIT(PAGE_GRANULE_SHIFT)
#define PAGE_GRANULE_MASK	(~(PAGE_GRANULE_SIZE - 1))
/* Some architectures have base pages that are larger. They have no granules. */
#define PAGE_GRANULE_ORDER	(PAGE_GRANULE_SHIFT - PAGE_SHIFT > 0 ? \
				 PAGE_GRANULE_SHIFT - PAGE_SHIFT : 0)
#define PAGE_GRANULE_NR		((int)BIT(PAGE_GRANULE_ORDER))

/*
 * How the folio of a granule is charged where reclaim is worth it: the memory cgroup
 * reclaims for it once, and does not insist.
 */
#define GFP_PAGE_GRANULE_CHARGE	(GFP_KERNEL | __GFP_NORETRY | __GFP_NOWARN)

/**
 * vma_granule_tagged - Is this VMA populated in granules?
 * @vma: The user mapping, stabilised by the mmap lock or its VMA lock.
 *
 * Return: true if @vma is tagged; constant false without CONFIG_PAGE_GRANULE.
 */
static __always_inline bool vma_granule_tagged(const struct vm_area_struct *vma)
{
	return vma_test_single_mask(vma, VMA_GRANULE);
}

/**
 * vma_granule_contract - Is cutting a granule of this VMA forbidden?
 * @vma: The user mapping, stabilised by the mmap lock or its VMA lock.
 *
 * Return: true if @vma is a contract VMA, whose bounds are multiples of
 * PAGE_GRANULE_SIZE; constant false without CONFIG_PAGE_GRANULE.
 */
static inline bool vma_granule_contract(const struct vm_area_struct *vma)
{
	return vma_test_single_mask(vma, VMA_GRANULE_CONTRACT);
}

/**
 * page_granule_aligns - Does a new mapping want a 64 KiB-aligned address?
 * @vma_flags: The VMA flags of the new mapping.
 * @len: Its length in bytes.
 * @shared: Whether it is shared.
 *
 * A private default-tagged mapping that would leave a gap behind it does not:
 * neighbours of any length are one VMA, and have more granules than if each were
 * aligned. Shared memory never has a VMA in common with its neighbours.
 *
 * Return: true if page_granule_get_unmapped_area() is to choose the address.
 */
static inline bool page_granule_aligns(const vma_flags_t *vma_flags,
				       unsigned long len, bool shared)
{
	return vma_flags_test_single_mask(vma_flags, VMA_GRANULE) &&
	       (IS_ALIGNED(len, PAGE_GRANULE_SIZE) ||
		(shared && len > PAGE_GRANULE_SIZE));
}

/**
 * page_granule_within - Does the block around an address fit into a range?
 * @start: First byte of the range.
 * @end: First byte after the range.
 * @addr: An address in the range.
 *
 * Return: true if the 64 KiB block that holds @addr lies wholly in the range.
 */
static inline bool page_granule_within(unsigned long start, unsigned long end,
				       unsigned long addr)
{
	const unsigned long block = addr & PAGE_GRANULE_MASK;

	/* Subtract rather than add: the block may be the last there is. */
	return block >= start && block < end &&
	       end - block >= PAGE_GRANULE_SIZE;
}

bool __vma_has_granule(struct vm_area_struct *vma, unsigned long addr);
bool vma_granule_folios(struct vm_area_struct *vma);
bool page_granule_may_swap_in(struct vm_area_struct *vma);

/**
 * vma_granule_congruent - Can folios be aligned as the addresses are?
 * @vma: The user mapping, stabilised by the mmap lock or its VMA lock.
 *
 * Pages of private anonymous memory belong to the address; those of shared
 * memory belong to an offset, which mremap() may put at any address.
 *
 * Return: true if naturally aligned folios are so in the addresses of @vma.
 */
static inline bool vma_granule_congruent(const struct vm_area_struct *vma)
{
	return !vma->vm_file ||
	       IS_ALIGNED(vma->vm_start - (vma_start_pgoff(vma) << PAGE_SHIFT),
			  PAGE_GRANULE_SIZE);
}

/**
 * vma_granule_active - Does a VMA populate granules now?
 * @vma: The user mapping, stabilised by the mmap lock or its VMA lock.
 *
 * Return: true if @vma is tagged, and nothing makes it behave as if it were not.
 */
static inline bool vma_granule_active(struct vm_area_struct *vma)
{
	return vma_granule_tagged(vma) && vma_granule_congruent(vma) &&
	       (vma_granule_contract(vma) || vma_granule_folios(vma));
}

/**
 * vma_has_granule - Does a granule of this VMA hold an address?
 * @vma: The user mapping, stabilised by the mmap lock or its VMA lock.
 * @addr: An address in @vma.
 *
 * The blocks at the ends of a default-tagged VMA may be cut off by its bounds;
 * those are no granules and are populated in base pages. So is shared memory
 * that a legal call has moved to where its folios are not aligned, and what the
 * program or the administrator does not want to have large folios.
 *
 * Return: true if @addr lies in a granule of @vma.
 */
static __always_inline bool vma_has_granule(struct vm_area_struct *vma,
					    unsigned long addr)
{
	/* Out of line, lest what every page fault runs through grows by it. */
	return unlikely(vma_granule_tagged(vma)) && __vma_has_granule(vma, addr);
}

/**
 * vma_zero_pfn - The zero page to map at an address.
 * @vma: The user mapping, stabilised by the mmap lock or its VMA lock.
 * @addr: An address in @vma.
 *
 * Return: the PFN of the one zero page that all share, or in a granule that of
 * the page in the block of zero pages that makes a run.
 */
static inline unsigned long vma_zero_pfn(struct vm_area_struct *vma,
					 unsigned long addr)
{
	const unsigned long index = (addr & ~PAGE_GRANULE_MASK) >> PAGE_SHIFT;

	return zero_pfn(addr) + (vma_has_granule(vma, addr) ? index : 0);
}

/**
 * mm_has_granule_contract - May there be a contract VMA?
 * @mm: The address space.
 *
 * Return: false if @mm never had one; constant without CONFIG_PAGE_GRANULE.
 */
static inline bool mm_has_granule_contract(const struct mm_struct *mm)
{
#ifdef CONFIG_PAGE_GRANULE
	return unlikely(mm_flags_test(MMF_GRANULE_CONTRACT, mm));
#else
	return false;
#endif
}

/**
 * page_granule_dup_mm - Tell a child that it will get contract VMAs.
 * @mm: The address space of the child.
 * @oldmm: That of its parent.
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

void __page_granule_exit(struct mm_struct *mm);

/**
 * page_granule_exit - An address space is about to be torn down.
 * @mm: The address space, which nobody uses any more.
 */
static inline void page_granule_exit(struct mm_struct *mm)
{
#ifdef CONFIG_PAGE_GRANULE
	if (unlikely(mm_flags_test(MMF_GRANULE_TAGGED, mm)))
		__page_granule_exit(mm);
#endif
}

/**
 * page_granule_cuts - Would a VMA bound at an address cut a contract granule?
 * @mm: The address space.
 * @addr: The address of the bound.
 *
 * The bounds of contract VMAs are multiples of PAGE_GRANULE_SIZE, so only the
 * VMA that holds @addr matters.
 *
 * Context: The mmap lock of @mm is held.
 * Return: true if @addr lies inside a granule of a contract VMA.
 */
static inline bool page_granule_cuts(struct mm_struct *mm, unsigned long addr)
{
	struct vm_area_struct *vma;

	if (IS_ALIGNED(addr, PAGE_GRANULE_SIZE))
		return false;

	vma = vma_lookup(mm, addr);
	return vma && vma_granule_contract(vma);
}

/**
 * page_granule_check_range - May a range of the address space be changed?
 * @mm: The address space.
 * @start: First byte of the range, a multiple of the base page.
 * @end: First byte after the range, a multiple of the base page.
 *
 * Whatever changes mappings or pages calls this before it changes the first
 * of them, so that a refused call leaves everything as it was.
 *
 * Context: The mmap lock of @mm is held.
 * Return: 0, or -EINVAL if the range begins or ends inside a granule of a
 * contract VMA.
 */
static inline int page_granule_check_range(struct mm_struct *mm,
					   unsigned long start,
					   unsigned long end)
{
	if (!mm_has_granule_contract(mm))
		return 0;
	if (page_granule_cuts(mm, start) || page_granule_cuts(mm, end))
		return -EINVAL;
	return 0;
}

/**
 * vma_granule_accepts - May pages in a range of a VMA be changed?
 * @vma: The VMA, stabilised by the mmap lock or its VMA lock.
 * @start: First byte of the range, in @vma.
 * @len: Length in bytes.
 *
 * page_granule_check_range() for those that hold nothing but the VMA lock.
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
 * A granule is populated in part if the VMA did not hold the rest when it was, or if
 * memory was short.
 *
 * Return: false if @vma is not tagged, or if the holes may be those of a program that
 * has given memory back. Whoever does so tells by page_granule_give_back(), and holds
 * the page table lock when it clears PTEs.
 */
static inline bool vma_granule_fills(struct vm_area_struct *vma)
{
	return vma_granule_tagged(vma) && !vma_granule_contract(vma) &&
	       vma_is_anonymous(vma) &&
	       !vma_test_atomic_flag(vma, VMA_GRANULE_HOLES_BIT);
}

/**
 * page_granule_give_back - A program gives back memory of a VMA, or moves it away.
 * @vma: The VMA, stabilised by the mmap lock or its VMA lock.
 *
 * The holes that this makes are not filled by faults beside them. Call this before
 * the first PTE is cleared.
 *
 * Context: Who changes VMA flags under the mmap lock reads them before it locks the
 * VMA, and so may undo this if nothing but the VMA lock is held.
 */
static inline void page_granule_give_back(struct vm_area_struct *vma)
{
	if (vma_granule_fills(vma))
		vma_set_atomic_flag(vma, VMA_GRANULE_HOLES_BIT);
}

int page_granule_check_mremap(struct mm_struct *mm, unsigned long addr,
			      unsigned long old_len, unsigned long new_addr,
			      unsigned long new_len, unsigned long flags);
bool page_granule_any_contract(struct mm_struct *mm, unsigned long start,
			       unsigned long end);

/**
 * enum page_granule_state - How the page table populates a granule.
 * @PAGE_GRANULE_EMPTY: All PTEs are none.
 * @PAGE_GRANULE_WHOLE: The PTEs are a run: all present, equal in permission and
 *			software bits, and mapping consecutive PFNs from a
 *			multiple of PAGE_GRANULE_NR on, in one folio or in the
 *			block of zero pages.
 * @PAGE_GRANULE_BROKEN: Anything else.
 */
enum page_granule_state {
	PAGE_GRANULE_EMPTY,
	PAGE_GRANULE_WHOLE,
	PAGE_GRANULE_BROKEN,
};

/**
 * enum page_granule_fill - What a fault has populated a granule with.
 * @GRANULE_FILL_FOLIO: A run of pages of one folio.
 * @GRANULE_FILL_ZERO: The run of zero pages.
 * @GRANULE_FILL_SINGLE: Single pages, because there was no folio.
 */
enum page_granule_fill {
	GRANULE_FILL_FOLIO,
	GRANULE_FILL_ZERO,
	GRANULE_FILL_SINGLE,
};

enum page_granule_state page_granule_pte_state(struct vm_area_struct *vma,
					       unsigned long addr, pte_t *ptep);
int page_granule_not_freed(struct vm_area_struct *vma, unsigned long addr,
			   pte_t *ptep);

/**
 * page_granule_free_order - What to split a folio to for MADV_FREE of a part.
 * @vma: The VMA, stabilised by the mmap lock or its VMA lock.
 * @folio: The folio, locked.
 *
 * Whole granules of a contract VMA can be freed. What is in the swap cache cannot
 * be split to them.
 *
 * Return: an order, 0 without CONFIG_PAGE_GRANULE.
 */
static inline unsigned int page_granule_free_order(const struct vm_area_struct *vma,
						   const struct folio *folio)
{
	return vma_granule_contract(vma) && !folio_test_swapcache(folio) &&
	       folio_order(folio) > PAGE_GRANULE_ORDER ? PAGE_GRANULE_ORDER : 0;
}

int page_granule_nr_to_move(const void __user * __user *pages,
			    const int __user *nodes, unsigned long i,
			    unsigned long nr_pages, const void __user *p,
			    int node);
int page_granule_split_page(struct vm_area_struct *vma, unsigned long addr,
			    struct page *page);

/**
 * page_granule_divisible - Is the place of each page the program's to choose?
 * @vma: The VMA, stabilised by the mmap lock.
 * @folio: A folio that it maps.
 *
 * A folio that is as large as a granule is so because the VMA is tagged. Those that
 * are larger are there because huge pages are enabled, and are moved as such.
 *
 * Return: true if @folio is to be split before a part of it is moved; constant
 * false without CONFIG_PAGE_GRANULE.
 */
static inline bool page_granule_divisible(const struct vm_area_struct *vma,
					  const struct folio *folio)
{
	return vma_granule_tagged(vma) && !vma_granule_contract(vma) &&
	       folio_order(folio) == PAGE_GRANULE_ORDER;
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

#ifdef CONFIG_PAGE_GRANULE

/**
 * page_granule_orders - Folio orders to populate a granule with.
 * @vma: The tagged VMA, stabilised by the mmap lock or its VMA lock.
 * @orders: Bitfield of the orders that mTHP settings allow.
 *
 * Return: bitfield of those of @orders that are no smaller than a granule, and
 * that of the granule itself if @vma may have folios of that order.
 */
static inline unsigned long page_granule_orders(struct vm_area_struct *vma,
						unsigned long orders)
{
	orders &= ~(BIT(PAGE_GRANULE_ORDER) - 1);
	return vma_granule_folios(vma) ? orders | BIT(PAGE_GRANULE_ORDER) : orders;
}

struct folio *page_granule_alloc(struct vm_area_struct *vma, unsigned long addr,
				 gfp_t *charge);

void __page_granule_extend(struct vm_area_struct *vma, unsigned long addr,
			   unsigned long end);

/**
 * page_granule_extend - A VMA holds more of the block that was at its end.
 * @vma: The VMA that holds the range, or NULL.
 * @addr: Where its end was, in bytes.
 * @end: Where its end is.
 *
 * Of the folio for the block, map what lies in the range. A page that somebody else
 * maps, or may still write to, remains to be populated by a fault.
 *
 * Context: The mmap lock is held for writing, and so is that of @vma, so that nobody
 * else populates the block.
 */
static inline void page_granule_extend(struct vm_area_struct *vma,
				       unsigned long addr, unsigned long end)
{
	if (vma && vma_granule_tagged(vma))
		__page_granule_extend(vma, addr, end);
}

void page_granule_count_fault(struct vm_area_struct *vma, unsigned long addr,
			      enum page_granule_fill fill);
void page_granule_count_cow(struct vm_area_struct *vma, unsigned long addr,
			    enum page_granule_fill fill);
void page_granule_count_swapin(unsigned int nr_pages);
void page_granule_split_vma(struct vm_area_struct *vma, unsigned long addr);
unsigned int page_granule_cuts_whole(struct vm_area_struct *vma,
				     unsigned long start, unsigned long end);
void page_granule_count_cuts(struct mm_struct *mm, unsigned long start,
			     unsigned long end, unsigned int cuts);
void page_granule_count_split_folio(struct vm_area_struct *vma,
				    unsigned long addr, pte_t *ptep,
				    unsigned int nr);
bool page_granule_ptes_run(pte_t *ptep);
bool page_granule_is_zeroes(struct vm_area_struct *vma, unsigned long addr,
			    pte_t *ptep);

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
	const unsigned long start = addr & PAGE_GRANULE_MASK;

	return vma_has_granule(vma, addr) &&
	       page_granule_pte_state(vma, start,
				      ptep - ((addr - start) >> PAGE_SHIFT)) ==
	       PAGE_GRANULE_WHOLE;
}

/**
 * page_granule_folds - Does setting the PTEs of a run make one TLB entry of them?
 * @ptep: The first PTE of the granule.
 * @pte: Its value, which is present.
 *
 * Where an architecture marks contiguous entries, those that were not marked
 * must be gone from the TLB before those that are can get there.
 *
 * Context: The page table lock of @ptep is held.
 * Return: true if the run has to be invalidated before it is set again.
 */
static inline bool page_granule_folds(pte_t *ptep, pte_t pte)
{
#ifdef pte_batch_hint
	return pte_batch_hint(ptep, pte) == 1;
#else
	return false;
#endif
}

/**
 * page_granule_zero_batch - How many PTEs of zero pages to treat as one.
 * @vma: The VMA.
 * @addr: An address in @vma.
 * @ptep: The PTE that maps @addr.
 * @pte: Its value, which is present.
 * @max_nr: How many PTEs, from @ptep on, there are to be treated in @vma.
 *
 * What folio_pte_batch() is for folios: zero pages are in none.
 *
 * Context: The page table lock of @ptep is held.
 * Return: PAGE_GRANULE_NR if a granule of zero pages begins at @addr, else 1.
 */
static inline unsigned int page_granule_zero_batch(struct vm_area_struct *vma,
						   unsigned long addr,
						   pte_t *ptep, pte_t pte,
						   unsigned int max_nr)
{
	/* The block is in @vma, by @max_nr. */
	if (likely(!vma_granule_tagged(vma)) || max_nr < PAGE_GRANULE_NR ||
	    !IS_ALIGNED(addr, PAGE_GRANULE_SIZE) || !is_zero_pfn(pte_pfn(pte)))
		return 1;

	return page_granule_is_zeroes(vma, addr, ptep) ? PAGE_GRANULE_NR : 1;
}

/**
 * page_granule_batch - How many PTEs a page table walk can treat as one.
 * @vma: The VMA, stabilised by the mmap lock or its VMA lock.
 * @addr: An address in @vma, a multiple of the base page.
 * @ptep: The PTE that maps @addr.
 * @pte: Its value.
 * @max_nr: How many PTEs, from @ptep on, the walk has yet to see in @vma and in
 *	    this page table.
 *
 * One look at a granule for those who would look at its PTEs one by one. They
 * are present, equal in permission and software bits, and map one folio or the
 * block of zero pages. Their accessed and dirty bits may differ, and so may the
 * mapcounts of the pages: who reports these asks for each.
 *
 * Context: The page table lock of @ptep is held.
 * Return: PAGE_GRANULE_NR if a granule that is whole begins at @addr, else 1;
 * constant without CONFIG_PAGE_GRANULE.
 */
static inline unsigned int page_granule_batch(struct vm_area_struct *vma,
					      unsigned long addr, pte_t *ptep,
					      pte_t pte, unsigned int max_nr)
{
	/*
	 * The block is in @vma, by @max_nr. If it is no granule, because folios
	 * are not aligned as the addresses are, then it is not whole either.
	 */
	if (!vma_granule_tagged(vma) || max_nr < PAGE_GRANULE_NR ||
	    !IS_ALIGNED(addr, PAGE_GRANULE_SIZE) || !pte_present(pte))
		return 1;

	/* The architecture has marked the entry, which proves all of it. */
	if (pte_batch_hint(ptep, pte) == PAGE_GRANULE_NR)
		return PAGE_GRANULE_NR;

	/*
	 * Otherwise one entry proves nothing about the next: what was swapped
	 * out may be back in part, a legal call may have cut the granule, and
	 * single pages look the same. The entries have to be compared.
	 */
	return page_granule_pte_state(vma, addr, ptep) == PAGE_GRANULE_WHOLE ?
	       PAGE_GRANULE_NR : 1;
}

int page_granule_collapse_range(struct vm_area_struct *vma, unsigned long start,
				unsigned long end);
void page_granule_repair_later(struct mm_struct *mm, unsigned long addr);
void page_granule_repair_split(struct mm_struct *mm, unsigned long addr);
bool page_granule_has_room(struct mem_cgroup *memcg, unsigned int nr);
struct folio *page_granule_alloc_node(gfp_t ceiling, int nid);
bool page_granule_monitored(struct address_space *mapping, pgoff_t index);
int page_granule_collapse(struct vm_area_struct *vma, unsigned long addr,
			  unsigned int mapped, bool others);
const char *page_granule_check_ptes(struct vm_area_struct *vma,
				    unsigned long addr, pte_t *ptep);
bool page_granule_default(struct mm_struct *mm);
int page_granule_parse_size(unsigned long size);
int page_granule_parse_flags(unsigned long flags);
int page_granule_mmap_prepare(struct file *file, unsigned long addr,
			      unsigned long len, unsigned long *flags,
			      pgoff_t pgoff, vma_flags_t *vma_flags);
unsigned long
page_granule_get_unmapped_area(struct file *file, unsigned long addr,
			       unsigned long len, unsigned long offset,
			       unsigned long flags, vma_flags_t vma_flags);
void page_granule_exec(struct mm_struct *mm, bool secureexec);
int prctl_get_page_granule(unsigned long scope, unsigned long arg3,
			   unsigned long arg4, unsigned long arg5);
int prctl_set_page_granule(unsigned long scope, unsigned long size,
			   unsigned long arg4, unsigned long arg5);

#else /* CONFIG_PAGE_GRANULE */

static inline unsigned long page_granule_orders(struct vm_area_struct *vma,
						unsigned long orders)
{
	return orders;
}

static inline struct folio *page_granule_alloc(struct vm_area_struct *vma,
					       unsigned long addr, gfp_t *charge)
{
	return NULL;
}

static inline void page_granule_count_fault(struct vm_area_struct *vma,
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

static inline void page_granule_split_vma(struct vm_area_struct *vma,
					  unsigned long addr)
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

static inline unsigned int page_granule_batch(struct vm_area_struct *vma,
					      unsigned long addr, pte_t *ptep,
					      pte_t pte, unsigned int max_nr)
{
	return 1;
}

static inline unsigned int
page_granule_cuts_whole(struct vm_area_struct *vma, unsigned long start,
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
page_granule_count_split_folio(struct vm_area_struct *vma, unsigned long addr,
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

static inline bool page_granule_default(struct mm_struct *mm)
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
			       unsigned long len, unsigned long offset,
			       unsigned long flags, vma_flags_t vma_flags)
{
	return -ENOMEM;
}

static inline void page_granule_exec(struct mm_struct *mm, bool secureexec)
{
}

static inline int prctl_get_page_granule(unsigned long scope,
					 unsigned long arg3,
					 unsigned long arg4,
					 unsigned long arg5)
{
	return -EINVAL;
}

static inline int prctl_set_page_granule(unsigned long scope,
					 unsigned long size,
					 unsigned long arg4,
					 unsigned long arg5)
{
	return -EINVAL;
}

#endif /* CONFIG_PAGE_GRANULE */

#endif /* _LINUX_PAGE_GRANULE_H */
