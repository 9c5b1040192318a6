// SPDX-License-Identifier: GPL-2.0
/*
 * Page granule: events.
 *
 * The functions named count_ count an event in vmstat, and most of them trace
 * it. Those named note_ also ask for repair.
 */

#include <linux/export.h>
#include <linux/mm.h>
#include <linux/pgtable.h>
#include <linux/vmstat.h>

#include <kunit/visibility.h>

#include "internal.h"
#include "page_granule.h"

#define CREATE_TRACE_POINTS
#include <trace/events/page_granule.h>

/* Count a granule of single pages, and have it repaired later. */
static void page_granule_note_fallback(struct vm_area_struct *vma,
				       unsigned long addr)
{
	count_vm_event(GRANULE_FALLBACK);
	if (vma_granule_folios(vma))
		page_granule_repair_later(vma->vm_mm, addr);
}

/**
 * page_granule_note_fault - Account for a granule that a fault has populated.
 * @vma: The tagged VMA.
 * @addr: An address in the granule.
 * @fill: How it was populated.
 */
void page_granule_note_fault(struct vm_area_struct *vma, unsigned long addr,
			     enum page_granule_fill fill)
{
	count_vm_event(GRANULE_FAULT);
	if (fill == GRANULE_FILL_SINGLE)
		page_granule_note_fallback(vma, addr);

	trace_page_granule_fault(vma->vm_mm, granule_start(addr), fill);
}

/**
 * page_granule_note_cow - Account for a granule that has been copied.
 * @vma: The tagged VMA.
 * @addr: An address in the granule.
 * @fill: How the copy was populated.
 */
void page_granule_note_cow(struct vm_area_struct *vma, unsigned long addr,
			   enum page_granule_fill fill)
{
	count_vm_event(GRANULE_COW);
	if (fill == GRANULE_FILL_SINGLE)
		page_granule_note_fallback(vma, addr);

	trace_page_granule_cow(vma->vm_mm, granule_start(addr), fill);
}

/**
 * page_granule_count_swapin - Account for granules that were swapped in whole.
 * @nr_pages: Number of pages of one folio that were swapped in.
 */
void page_granule_count_swapin(unsigned int nr_pages)
{
	count_vm_events(GRANULE_SWPIN, nr_pages / PAGE_GRANULE_NR);
}

/* Does @addr cut a whole granule of @vma? */
static bool page_granule_cut_whole(struct vm_area_struct *vma,
				   unsigned long addr)
{
	const unsigned long start = granule_start(addr);
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
	trace_page_granule_split(mm, granule_start(addr));
}

/**
 * page_granule_count_vma_split - Count a granule that a VMA bound will cut.
 * @vma: The VMA.
 * @addr: The address of the new bound, inside @vma.
 *
 * Huge pages that straddle @addr have been split already.
 *
 * Context: The mmap lock and the VMA lock are held for writing.
 */
void page_granule_count_vma_split(struct vm_area_struct *vma, unsigned long addr)
{
	if (page_granule_cut_whole(vma, addr))
		page_granule_count_split(vma->vm_mm, addr);
}

#define PAGE_GRANULE_CUT_START	BIT(0)
#define PAGE_GRANULE_CUT_END	BIT(1)

/**
 * page_granule_cut_ends - Find the whole granules that a range cuts.
 * @vma: The VMA.
 * @start: First byte of the range, in @vma.
 * @end: First byte after the range.
 *
 * Call this before the pages in the range go away, because that breaks the
 * granules. A granule that holds both ends is reported once.
 *
 * Context: The mmap lock, the VMA lock or an rmap lock of @vma is held.
 * Return: the ends that cut a granule, for page_granule_count_cuts().
 */
unsigned int page_granule_cut_ends(struct vm_area_struct *vma,
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
EXPORT_SYMBOL_IF_KUNIT(page_granule_cut_ends);

/**
 * page_granule_count_cuts - Account for granules broken at the ends of a range.
 * @mm: The address space.
 * @start: First byte of the range.
 * @end: First byte after the range.
 * @cuts: Which ends, see page_granule_cut_ends().
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
 * page_granule_note_folio_split - Account for the granules that a split breaks.
 * @vma: The tagged VMA.
 * @addr: An address in @vma.
 * @ptep: The PTE that maps @addr.
 * @nr: How many PTEs, from @ptep on, map pages of the folio.
 *
 * This counts the granules that begin among these PTEs, and queues them for
 * repair. Repair gives up on a granule that has lost pages, or has them on
 * several nodes. The split can still fail, if somebody takes a reference to the
 * folio.
 *
 * Context: The page table lock of @ptep is held.
 */
void page_granule_note_folio_split(struct vm_area_struct *vma,
				   unsigned long addr, pte_t *ptep,
				   unsigned int nr)
{
	unsigned int i = (ALIGN(addr, PAGE_GRANULE_SIZE) - addr) >> PAGE_SHIFT;

	for (; i < nr; i += PAGE_GRANULE_NR) {
		const unsigned long start = addr + i * PAGE_SIZE;

		if (!page_granule_is_whole(vma, start, ptep + i))
			continue;
		page_granule_count_split(vma->vm_mm, start);
		page_granule_repair_in_place(vma->vm_mm, start);
	}
}
