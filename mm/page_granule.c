// SPDX-License-Identifier: GPL-2.0
/*
 * Page granule: VMAs that are populated in 64 KiB runs of base pages.
 *
 * What everything else asks about granules is here: predicates over VMAs,
 * ranges and page tables. Faults are resolved in page_granule_fault.c, VMAs are
 * merged and split in vma.c. See Documentation/mm/page_granule.rst.
 */

#include <linux/compat.h>
#include <linux/export.h>
#include <linux/fs.h>
#include <linux/init.h>
#include <linux/kobject.h>
#include <linux/leafops.h>
#include <linux/mm.h>
#include <linux/mman.h>
#include <linux/page_granule.h>
#include <linux/pagemap.h>
#include <linux/pgalloc.h>
#include <linux/pgtable.h>
#include <linux/prctl.h>
#include <linux/security.h>
#include <linux/shmem_fs.h>
#include <linux/sysfs.h>
#include <linux/userfaultfd_k.h>
#include <linux/vmstat.h>

#include <kunit/visibility.h>

#include "internal.h"

#define CREATE_TRACE_POINTS
#include <trace/events/page_granule.h>

/* The administrator's switch: 0 refuses new requests, what exists remains. */
static bool page_granule_enabled __read_mostly = true;

/*
 * Is there room to align in an address space? In one of 32 bits addresses are
 * scarce, and what alignment takes from their randomisation is not to be had
 * elsewhere. This is known from setup_new_exec() on.
 */
static bool page_granule_mm_has_room(const struct mm_struct *mm)
{
	return !IS_ENABLED(CONFIG_COMPAT) || mm->task_size > SZ_4G;
}

/* May new requests of an address space be served? */
static bool page_granule_offered(const struct mm_struct *mm)
{
	/* A CPU without huge pages has no use for the large folios of a run. */
	return READ_ONCE(page_granule_enabled) && !thp_disabled_by_hw() &&
	       page_granule_mm_has_room(mm);
}

/* The accessed and dirty bits are the hardware's to change one by one. */
#define FPB_GRANULE	(FPB_RESPECT_WRITE | FPB_RESPECT_SOFT_DIRTY)

/**
 * vma_granule_folios - May granules of a VMA be populated with folios?
 * @vma: The tagged VMA, stabilised by the mmap lock or its VMA lock.
 *
 * What the program says about huge pages holds for granules, and what the
 * administrator says about granules. A contract counts as advice to use huge pages.
 *
 * Return: false if granules are to be of single pages: where @vma is a contract VMA
 * of whole granules still, and otherwise as in a VMA that is not tagged.
 */
bool vma_granule_folios(struct vm_area_struct *vma)
{
	return READ_ONCE(page_granule_enabled) &&
	       !vma_thp_disabled(vma, vma->vm_flags, vma_granule_contract(vma));
}
EXPORT_SYMBOL_IF_KUNIT(vma_granule_folios);

/* vma_has_granule() for a tagged VMA. */
bool __vma_has_granule(struct vm_area_struct *vma, unsigned long addr)
{
	return page_granule_within(vma->vm_start, vma->vm_end, addr) &&
	       vma_granule_congruent(vma) &&
	       (vma_granule_contract(vma) || vma_granule_folios(vma));
}
EXPORT_SYMBOL_IF_KUNIT(__vma_has_granule);

/**
 * page_granule_ptes_run - Are the PTEs of a granule a run?
 * @ptep: The first PTE of the granule.
 *
 * This looks at the entries only. Whether the PFNs belong to one folio is for
 * the caller to find out, see page_granule_pte_state().
 *
 * Context: The page table lock of @ptep is held.
 * Return: true if all PTEs are present, equal but for the accessed and dirty
 * bits, and map consecutive PFNs from a multiple of PAGE_GRANULE_NR on.
 */
bool page_granule_ptes_run(pte_t *ptep)
{
	unsigned int batch;
	pte_t expected;
	int i;

	for (i = 0; i < PAGE_GRANULE_NR; i += batch, ptep += batch) {
		const pte_t pte = ptep_get(ptep);
		pte_t compared;

		if (!pte_present(pte))
			return false;
		if (!i && !IS_ALIGNED(pte_pfn(pte), PAGE_GRANULE_NR))
			return false;

		compared = __pte_batch_clear_ignored(pte, FPB_GRANULE);
		if (i && !pte_same(compared, expected))
			return false;

		batch = pte_batch_hint(ptep, pte);
		expected = pte_advance_pfn(compared, batch);
	}

	return true;
}
EXPORT_SYMBOL_IF_KUNIT(page_granule_ptes_run);

/**
 * page_granule_is_zeroes - Are the PTEs of a granule a run of zero pages?
 * @vma: The tagged VMA.
 * @addr: Start of a granule of @vma.
 * @ptep: The PTE that maps @addr.
 *
 * KSM tells the zero pages that it has merged by the dirty bit. A granule that
 * has any of those is not to be treated as one, lest all be counted: it is
 * broken.
 *
 * Context: The page table lock of @ptep is held.
 * Return: true if all PTEs map the block of zero pages, and none is dirty.
 */
bool page_granule_is_zeroes(struct vm_area_struct *vma, unsigned long addr,
			    pte_t *ptep)
{
	unsigned int batch;
	int i;

	if (pte_pfn(ptep_get(ptep)) != zero_pfn(addr) ||
	    !page_granule_ptes_run(ptep))
		return false;

	for (i = 0; i < PAGE_GRANULE_NR; i += batch) {
		const pte_t pte = ptep_get(ptep + i);

		if (pte_dirty(pte))
			return false;
		batch = pte_batch_hint(ptep + i, pte);
	}

	return true;
}
EXPORT_SYMBOL_IF_KUNIT(page_granule_is_zeroes);

/**
 * page_granule_pte_state - How the page table populates a granule.
 * @vma: The tagged VMA.
 * @addr: Start of a granule of @vma.
 * @ptep: The PTE that maps @addr.
 *
 * Context: The page table lock of @ptep is held.
 * Return: the state of the granule.
 */
enum page_granule_state page_granule_pte_state(struct vm_area_struct *vma,
					       unsigned long addr, pte_t *ptep)
{
	const pte_t pte = ptep_get(ptep);
	struct folio *folio;

	if (pte_none(pte))
		return pte_range_none(ptep, PAGE_GRANULE_NR) ?
		       PAGE_GRANULE_EMPTY : PAGE_GRANULE_BROKEN;

	if (is_zero_pfn(pte_pfn(pte)))
		return page_granule_is_zeroes(vma, addr, ptep) ?
		       PAGE_GRANULE_WHOLE : PAGE_GRANULE_BROKEN;

	if (!page_granule_ptes_run(ptep))
		return PAGE_GRANULE_BROKEN;

	/* Folios are naturally aligned: a large enough one holds the run. */
	folio = vm_normal_folio(vma, addr, pte);
	if (!folio || folio_order(folio) < PAGE_GRANULE_ORDER)
		return PAGE_GRANULE_BROKEN;

	return PAGE_GRANULE_WHOLE;
}
EXPORT_SYMBOL_IF_KUNIT(page_granule_pte_state);

/* A granule is of single pages now, because there was no folio for it. */
static void page_granule_count_fallback(struct vm_area_struct *vma,
					unsigned long addr)
{
	count_vm_event(GRANULE_FALLBACK);
	if (vma_granule_folios(vma))
		page_granule_repair_later(vma->vm_mm, addr);
}

/**
 * page_granule_not_freed - How many pages MADV_FREE leaves alone.
 * @vma: The contract VMA.
 * @addr: The address of the first page.
 * @ptep: The PTE that maps @addr.
 *
 * Reclaim drops single pages one by one, and swap entries go at once. A granule
 * that is not whole would be freed in part.
 *
 * Context: The page table lock of @ptep is held.
 * Return: the number of pages from @addr to the end of such a granule, or 0.
 */
int page_granule_not_freed(struct vm_area_struct *vma, unsigned long addr,
			   pte_t *ptep)
{
	const int nr = (addr & ~PAGE_GRANULE_MASK) >> PAGE_SHIFT;
	int i;

	if (page_granule_is_whole(vma, addr, ptep))
		return 0;
	for (i = 0; i < PAGE_GRANULE_NR; i++) {
		const pte_t pte = ptep_get(ptep - nr + i);
		const softleaf_t entry = softleaf_from_pte(pte);

		if (pte_present(pte) ||
		    (!pte_none(pte) && !softleaf_is_swap(entry) &&
		     !softleaf_is_hwpoison(entry) &&
		     !softleaf_is_poison_marker(entry)))
			return PAGE_GRANULE_NR - nr;
	}
	return 0;
}

/**
 * page_granule_count_fault - Account for a granule that a fault has populated.
 * @vma: The tagged VMA.
 * @addr: An address in the granule.
 * @fill: What it was populated with.
 */
void page_granule_count_fault(struct vm_area_struct *vma, unsigned long addr,
			      enum page_granule_fill fill)
{
	count_vm_event(GRANULE_FAULT);
	if (fill == GRANULE_FILL_SINGLE)
		page_granule_count_fallback(vma, addr);

	trace_page_granule_fault(vma->vm_mm, addr & PAGE_GRANULE_MASK, fill);
}

/**
 * page_granule_count_cow - Account for a granule that has been copied.
 * @vma: The tagged VMA.
 * @addr: An address in the granule.
 * @fill: What it was copied to.
 */
void page_granule_count_cow(struct vm_area_struct *vma, unsigned long addr,
			    enum page_granule_fill fill)
{
	count_vm_event(GRANULE_COW);
	if (fill == GRANULE_FILL_SINGLE)
		page_granule_count_fallback(vma, addr);

	trace_page_granule_cow(vma->vm_mm, addr & PAGE_GRANULE_MASK, fill);
}

/**
 * page_granule_count_swapin - Account for granules that were swapped in whole.
 * @nr_pages: How many pages of one folio that is.
 */
void page_granule_count_swapin(unsigned int nr_pages)
{
	count_vm_events(GRANULE_SWPIN, nr_pages / PAGE_GRANULE_NR);
}

/* Is @addr inside a granule of @vma that is whole? */
static bool page_granule_cut_whole(struct vm_area_struct *vma,
				   unsigned long addr)
{
	const unsigned long start = addr & PAGE_GRANULE_MASK;
	bool whole = false;
	spinlock_t *ptl;
	pte_t *pte;
	pmd_t *pmd;

	if (addr == start || !vma_has_granule(vma, addr))
		return false;

	pmd = mm_find_pmd(vma->vm_mm, start);
	if (!pmd)
		return false;
	/* A huge page is a run of granules. */
	if (pmd_trans_huge(pmdp_get_lockless(pmd)))
		return true;

	pte = pte_offset_map_lock(vma->vm_mm, pmd, start, &ptl);
	if (pte) {
		whole = page_granule_pte_state(vma, start, pte) ==
			PAGE_GRANULE_WHOLE;
		pte_unmap_unlock(pte, ptl);
	}

	return whole;
}

static void page_granule_count_split(struct mm_struct *mm, unsigned long addr)
{
	count_vm_event(GRANULE_SPLIT);
	trace_page_granule_split(mm, addr & PAGE_GRANULE_MASK);
}

/**
 * page_granule_split_vma - Account for a granule that a VMA bound will cut.
 * @vma: The VMA.
 * @addr: The address of the new bound, inside @vma.
 *
 * Huge pages that straddle @addr have been split already.
 *
 * Context: The mmap lock and the VMA lock are held for writing.
 */
void page_granule_split_vma(struct vm_area_struct *vma, unsigned long addr)
{
	if (page_granule_cut_whole(vma, addr))
		page_granule_count_split(vma->vm_mm, addr);
}

#define PAGE_GRANULE_CUT_START	BIT(0)
#define PAGE_GRANULE_CUT_END	BIT(1)

/**
 * page_granule_cuts_whole - Whole granules that are not wholly in a range.
 * @vma: The VMA.
 * @start: First byte of the range, in @vma.
 * @end: First byte after the range.
 *
 * Ask before pages in the range are taken away, which breaks them. A granule that
 * holds both ends is reported once.
 *
 * Context: The mmap lock, the VMA lock or an rmap lock of @vma is held.
 * Return: what to pass to page_granule_count_cuts().
 */
unsigned int page_granule_cuts_whole(struct vm_area_struct *vma,
				     unsigned long start, unsigned long end)
{
	unsigned int cuts = 0;

	if (!vma_granule_tagged(vma))
		return 0;

	if (page_granule_cut_whole(vma, start)) {
		cuts |= PAGE_GRANULE_CUT_START;
		if (!((start ^ end) & PAGE_GRANULE_MASK))
			return cuts;
	}
	if (page_granule_cut_whole(vma, end))
		cuts |= PAGE_GRANULE_CUT_END;
	return cuts;
}
EXPORT_SYMBOL_IF_KUNIT(page_granule_cuts_whole);

/**
 * page_granule_count_cuts - Account for granules broken at the ends of a range.
 * @mm: The address space.
 * @start: First byte of the range.
 * @end: First byte after the range.
 * @cuts: Which ends, see page_granule_cuts_whole().
 */
void page_granule_count_cuts(struct mm_struct *mm, unsigned long start,
			     unsigned long end, unsigned int cuts)
{
	if (cuts & PAGE_GRANULE_CUT_START)
		page_granule_count_split(mm, start);
	if (cuts & PAGE_GRANULE_CUT_END)
		page_granule_count_split(mm, end);
}

/**
 * page_granule_count_split_folio - Account for granules whose folio is to be split.
 * @vma: The tagged VMA.
 * @addr: An address in @vma.
 * @ptep: The PTE that maps @addr.
 * @nr: How many PTEs, from @ptep on, map pages of the folio.
 *
 * Granules that begin among these PTEs count, and are put back when there is memory,
 * unless what they are split for takes pages of them away. The split can yet fail, if
 * somebody takes a reference to the folio meanwhile.
 *
 * Context: The page table lock of @ptep is held.
 */
void page_granule_count_split_folio(struct vm_area_struct *vma,
				    unsigned long addr, pte_t *ptep,
				    unsigned int nr)
{
	unsigned int i = (ALIGN(addr, PAGE_GRANULE_SIZE) - addr) >> PAGE_SHIFT;

	for (; i < nr; i += PAGE_GRANULE_NR) {
		const unsigned long start = addr + i * PAGE_SIZE;

		if (!page_granule_is_whole(vma, start, ptep + i))
			continue;
		page_granule_count_split(vma->vm_mm, start);
		page_granule_repair_split(vma->vm_mm, start);
	}
}

/**
 * page_granule_nr_to_move - How many pages move_pages() is to move together.
 * @pages: Array of addresses in user memory, as the caller has them.
 * @nodes: Array of nodes in user memory.
 * @i: Index of the first page.
 * @nr_pages: Length of the arrays.
 * @p: The address of the first page, which has been read before.
 * @node: The node to move it to.
 *
 * Return: PAGE_GRANULE_NR if all pages of a granule, in their order, are to be moved
 * to @node, else 1.
 */
int page_granule_nr_to_move(const void __user * __user *pages,
			    const int __user *nodes, unsigned long i,
			    unsigned long nr_pages, const void __user *p,
			    int node)
{
	const compat_uptr_t __user *compat_pages = (void __user *)pages;
	const unsigned long addr = (unsigned long)p & PAGE_MASK;
	int other_node, k;

	if (!IS_ALIGNED(addr, PAGE_GRANULE_SIZE) || nr_pages - i < PAGE_GRANULE_NR)
		return 1;

	for (k = 1; k < PAGE_GRANULE_NR; k++) {
		const void __user *next;
		compat_uptr_t compat;

		if (!in_compat_syscall()) {
			if (get_user(next, pages + i + k))
				return 1;
		} else {
			if (get_user(compat, compat_pages + i + k))
				return 1;
			next = compat_ptr(compat);
		}
		if (((unsigned long)next & PAGE_MASK) != addr + k * PAGE_SIZE ||
		    get_user(other_node, nodes + i + k) || other_node != node)
			return 1;
	}
	return PAGE_GRANULE_NR;
}

/* Map what is in the page cache, as it was before the folio there was split. */
static void page_granule_map_pages(struct vm_area_struct *vma, unsigned long addr)
{
	struct vm_fault vmf = {
		.vma = vma,
		.address = addr & PAGE_MASK,
		.real_address = addr,
		.pgoff = linear_page_index(vma, addr),
		.pmd = mm_find_pmd(vma->vm_mm, addr),
	};

	if (!vmf.pmd || !vma->vm_ops || !vma->vm_ops->map_pages ||
	    userfaultfd_armed(vma))
		return;
	do_fault_around(&vmf, PAGE_GRANULE_NR);
	if (vmf.prealloc_pte)
		pte_free(vma->vm_mm, vmf.prealloc_pte);
}

/**
 * page_granule_split_page - Split a folio of which a page is to be moved.
 * @vma: The VMA that maps the page.
 * @addr: The address that it is mapped at.
 * @page: The page, a reference to which is held.
 *
 * All of the folio remains mapped there, so that only its page is moved: the next
 * fault would find a granule that is empty, and populate all of it.
 *
 * Context: The mmap lock is held. Sleeps.
 * Return: 0 if the page is a folio of its own, which holds the reference; otherwise
 * an error, as if somebody else knows the folio.
 */
int page_granule_split_page(struct vm_area_struct *vma, unsigned long addr,
			    struct page *page)
{
	struct folio *folio = page_folio(page);
	int err = 0;

	folio_lock(folio);
	folio_wait_writeback(folio);
	if (folio_test_large(folio))
		err = split_huge_page(page);
	folio = page_folio(page);
	folio_unlock(folio);

	if (!err && !folio_test_anon(folio))
		page_granule_map_pages(vma, addr);
	return err;
}

/**
 * page_granule_exec - Give a new address space the granule it starts with.
 * @mm: The new address space, which nothing has been mapped into but a stack.
 * @secureexec: The program gains privileges.
 *
 * mm_init() has copied the settings of the caller of execve(). Programs start
 * with what PR_GRANULE_EXEC says, if they could ask for it themselves. What it
 * says is kept for later programs in any case: one of 32 bits may start one of
 * 64. A program that gains privileges starts clean, lest the caller choose how
 * it is laid out.
 */
void page_granule_exec(struct mm_struct *mm, bool secureexec)
{
	if (secureexec)
		mm_flags_clear(MMF_GRANULE_EXEC, mm);

	/* The tagged VMAs stayed behind. */
	mm_flags_clear(MMF_GRANULE_TAGGED, mm);
	mm_flags_clear(MMF_GRANULE_CONTRACT, mm);

	if (mm_flags_test(MMF_GRANULE_EXEC, mm) && page_granule_offered(mm)) {
		mm_flags_set(MMF_GRANULE_TAGGED, mm);
		mm_flags_set(MMF_GRANULE_MMAP, mm);
	} else {
		mm_flags_clear(MMF_GRANULE_MMAP, mm);
	}
}

/**
 * page_granule_parse_size - Is this a size that prctl() knows?
 * @size: Bytes; 0 stands for the base page.
 *
 * Return: the size as a page order, or -EINVAL.
 */
int page_granule_parse_size(unsigned long size)
{
	switch (size) {
	case 0:
	case PAGE_SIZE:
		return 0;
	case PAGE_GRANULE_SIZE:
		return PAGE_GRANULE_ORDER;
	default:
		return -EINVAL;
	}
}
EXPORT_SYMBOL_IF_KUNIT(page_granule_parse_size);

/**
 * page_granule_parse_flags - The granule that mmap() flags ask for.
 * @flags: MAP_* flags, of which MAP_GRANULE is one.
 *
 * Return: the size as a page order, or -EINVAL.
 */
int page_granule_parse_flags(unsigned long flags)
{
	switch ((flags >> MAP_HUGE_SHIFT) & MAP_HUGE_MASK) {
	case PAGE_SHIFT:
		return 0;
	case PAGE_GRANULE_SHIFT:
		return PAGE_GRANULE_ORDER;
	default:
		return -EINVAL;
	}
}
EXPORT_SYMBOL_IF_KUNIT(page_granule_parse_flags);

/* Only anonymous memory is populated in granules so far. */
static bool page_granule_can_tag(struct file *file, unsigned long flags)
{
	if (file)
		return false;

	switch (flags & MAP_TYPE) {
	case MAP_SHARED:
		/* What is in the place of shmem has no large folios. */
		return IS_ENABLED(CONFIG_SHMEM);
	case MAP_DROPPABLE:
		/* Reclaim may drop any page of it: no granule lasts. */
		return false;
	default:
		return true;
	}
}

/**
 * page_granule_default - Does this address space tag what it maps now?
 * @mm: The address space.
 *
 * Return: true if new mappings are tagged that do not say otherwise; constant
 * false without CONFIG_PAGE_GRANULE.
 */
bool page_granule_default(struct mm_struct *mm)
{
	return mm_flags_test(MMF_GRANULE_MMAP, mm) && page_granule_offered(mm);
}

/**
 * page_granule_mmap_prepare - Find out whether a new mapping is tagged.
 * @file: The file to be mapped or NULL.
 * @addr: The address asked for.
 * @len: The length asked for in bytes.
 * @flags: MAP_* flags; MAP_GRANULE is taken out where it is understood, and
 *	   what a contract VMA overrides.
 * @pgoff: The offset into @file in base pages.
 * @vma_flags: Receives the granule bits.
 *
 * MAP_GRANULE is explicit and stronger than the default of the process: it
 * either makes a contract VMA or opts out, and fails if it can do neither. A
 * length is not rounded up, since what lies behind it is not ours to replace.
 * The default tags what can be tagged and never fails. Stacks of threads are
 * not among that: MAP_STACK says that they are not to have large folios.
 *
 * Context: The mmap lock of current->mm is held for writing.
 * Return: 0, -EINVAL for arguments that mean nothing or would cut a granule,
 * -EOPNOTSUPP if the memory cannot be populated in granules, or
 * page_granule_offered() says no.
 */
int page_granule_mmap_prepare(struct file *file, unsigned long addr,
			      unsigned long len, unsigned long *flags,
			      pgoff_t pgoff, vma_flags_t *vma_flags)
{
	const bool fixed = *flags & (MAP_FIXED | MAP_FIXED_NOREPLACE);
	const bool can_tag = page_granule_can_tag(file, *flags) &&
			     !vma_flags_test_single_mask(vma_flags,
							 VMA_SHADOW_STACK);
	struct mm_struct *mm = current->mm;
	int order;

	if (!(*flags & MAP_GRANULE)) {
		if (can_tag && !(*flags & MAP_STACK) && page_granule_default(mm))
			vma_flags_set_mask(vma_flags, VMA_GRANULE);
		return 0;
	}

	if (*flags & MAP_HUGETLB)
		return -EINVAL;

	/* MAP_SHARED ignores the flags that a file does not know. */
	if (file && (*flags & MAP_TYPE) == MAP_SHARED)
		return 0;

	order = page_granule_parse_flags(*flags);
	if (order < 0)
		return order;

	*flags &= ~MAP_GRANULE;
	if (!order)
		return 0;

	if (!IS_ALIGNED(len, PAGE_GRANULE_SIZE))
		return -EINVAL;
	if (fixed && !IS_ALIGNED(addr, PAGE_GRANULE_SIZE))
		return -EINVAL;
	if (file && !IS_ALIGNED(pgoff, PAGE_GRANULE_NR))
		return -EINVAL;
	if (!can_tag || !page_granule_offered(mm))
		return -EOPNOTSUPP;

	/* Else calc_vm_flag_bits() would add VM_NOHUGEPAGE. */
	*flags &= ~MAP_STACK;
	vma_flags_set_mask(vma_flags, VMA_GRANULE);
	vma_flags_set_mask(vma_flags, VMA_GRANULE_CONTRACT);
	/* If mmap() fails, later calls look at VMAs they need not look at. */
	mm_flags_set(MMF_GRANULE_CONTRACT, mm);
	mm_flags_set(MMF_GRANULE_TAGGED, mm);
	return 0;
}

/**
 * page_granule_get_unmapped_area - Place a tagged mapping.
 * @file: The file to be mapped or NULL.
 * @addr: A hint, or the address if @flags has MAP_FIXED.
 * @len: Length in bytes.
 * @offset: What the address is to be congruent to, modulo PAGE_GRANULE_SIZE.
 * @flags: MAP_* flags.
 * @vma_flags: The VMA flags of the new mapping.
 *
 * A hint is kept if the memory there is free, rounded down if the mapping is a
 * contract VMA. The address that is chosen otherwise is congruent to @offset.
 *
 * The first hole that is large enough is taken if it suits, lest one that fits
 * exactly is never used again. Else, as vm_unmapped_area() does for hugetlb, this
 * searches for one that is large enough wherever it begins.
 *
 * Context: The mmap lock of current->mm is held for writing.
 * Return: an address or a negative error, -ENOMEM if no hole is found.
 */
unsigned long
page_granule_get_unmapped_area(struct file *file, unsigned long addr,
			       unsigned long len, unsigned long offset,
			       unsigned long flags, vma_flags_t vma_flags)
{
	const bool contract = vma_flags_test_single_mask(&vma_flags,
							 VMA_GRANULE_CONTRACT);
	const unsigned long pad = PAGE_GRANULE_SIZE - PAGE_SIZE;
	unsigned long ret, padded;

	if (flags & MAP_FIXED)
		return mm_get_unmapped_area_vmaflags(file, addr, len, 0, flags,
						     vma_flags);

	if (contract) {
		addr &= PAGE_GRANULE_MASK;
		if (addr < mmap_min_addr)
			addr = 0;
	}
	/* What suits a larger folio suits a granule, if there is room. */
	if (!file && (flags & MAP_SHARED))
		ret = shmem_get_unmapped_area(NULL, addr, len, 0, flags);
	else if (!addr && IS_ALIGNED(len, PMD_SIZE))
		ret = thp_get_unmapped_area_vmaflags(file, 0, len, 0, flags,
						     vma_flags);
	else
		ret = mm_get_unmapped_area_vmaflags(file, addr, len, 0, flags,
						    vma_flags);
	if (IS_ERR_VALUE(ret) || (addr && ret == addr) ||
	    IS_ALIGNED(ret - offset, PAGE_GRANULE_SIZE))
		return ret;
	/* Gaps keep VMAs from merging, of which there may not be any number. */
	if (!contract && current->mm->map_count > get_sysctl_max_map_count() / 2)
		return ret;

	/* The hint is taken, but it may also tell the size of the VA space. */
	padded = len + pad < len ? -ENOMEM :
		 mm_get_unmapped_area_vmaflags(file, addr, len + pad, 0, flags,
					       vma_flags);
	if (IS_ERR_VALUE(padded))
		return contract ? padded : ret;

	/* One page of those that the padding leaves to choose from fits. */
	return padded + ((offset - padded) & ~PAGE_GRANULE_MASK);
}

/* The mm flag behind a scope of prctl(), or -EINVAL. */
static int page_granule_scope_flag(unsigned long scope)
{
	switch (scope) {
	case PR_GRANULE_MMAP:
		return MMF_GRANULE_MMAP;
	case PR_GRANULE_EXEC:
		return MMF_GRANULE_EXEC;
	default:
		return -EINVAL;
	}
}

/**
 * prctl_get_page_granule - prctl(PR_GET_PAGE_GRANULE)
 * @scope: PR_GRANULE_*
 * @arg3: Must be 0.
 * @arg4: Must be 0.
 * @arg5: Must be 0.
 *
 * Return: the granule in bytes, or -EINVAL.
 */
int prctl_get_page_granule(unsigned long scope, unsigned long arg3,
			   unsigned long arg4, unsigned long arg5)
{
	int flag;

	if (arg3 || arg4 || arg5)
		return -EINVAL;

	flag = page_granule_scope_flag(scope);
	if (flag < 0)
		return flag;

	return mm_flags_test(flag, current->mm) ? PAGE_GRANULE_SIZE : PAGE_SIZE;
}

/**
 * prctl_set_page_granule - prctl(PR_SET_PAGE_GRANULE)
 * @scope: PR_GRANULE_*
 * @size: The granule in bytes; 0 stands for the base page.
 * @arg4: Must be 0.
 * @arg5: Must be 0.
 *
 * The setting is one bit of the address space that is read once by each
 * mmap(), so no lock is needed.
 *
 * Return: 0, -EINVAL for an argument that means nothing, or -EOPNOTSUPP for a
 * size that is not offered to this address space.
 */
int prctl_set_page_granule(unsigned long scope, unsigned long size,
			   unsigned long arg4, unsigned long arg5)
{
	int order = page_granule_parse_size(size);
	int flag;

	if (order < 0 || arg4 || arg5)
		return -EINVAL;

	flag = page_granule_scope_flag(scope);
	if (flag < 0)
		return flag;

	if (!order) {
		mm_flags_clear(flag, current->mm);
		return 0;
	}

	if (!page_granule_offered(current->mm))
		return -EOPNOTSUPP;

	if (flag == MMF_GRANULE_MMAP)
		mm_flags_set(MMF_GRANULE_TAGGED, current->mm);
	mm_flags_set(flag, current->mm);
	return 0;
}

#ifdef CONFIG_SYSFS
static ssize_t enabled_show(struct kobject *kobj, struct kobj_attribute *attr,
			    char *buf)
{
	return sysfs_emit(buf, "%d\n", READ_ONCE(page_granule_enabled));
}

static ssize_t enabled_store(struct kobject *kobj, struct kobj_attribute *attr,
			     const char *buf, size_t count)
{
	unsigned int value;
	int error;

	error = kstrtouint(buf, 10, &value);
	if (error)
		return error;
	if (value > 1)
		return -EINVAL;

	WRITE_ONCE(page_granule_enabled, value);
	return count;
}

static struct kobj_attribute enabled_attr = __ATTR_RW(enabled);

static ssize_t sizes_kb_show(struct kobject *kobj, struct kobj_attribute *attr,
			     char *buf)
{
	return sysfs_emit(buf, "%lu %lu\n", PAGE_SIZE / SZ_1K,
			  PAGE_GRANULE_SIZE / SZ_1K);
}

static struct kobj_attribute sizes_kb_attr = __ATTR_RO(sizes_kb);

static struct attribute *page_granule_attrs[] = {
	&enabled_attr.attr,
	&sizes_kb_attr.attr,
	NULL,
};

static const struct attribute_group page_granule_attr_group = {
	.name = "page_granule",
	.attrs = page_granule_attrs,
};

static int __init page_granule_init_sysfs(void)
{
	return sysfs_create_group(mm_kobj, &page_granule_attr_group);
}
subsys_initcall(page_granule_init_sysfs);
#endif /* CONFIG_SYSFS */
