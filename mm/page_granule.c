// SPDX-License-Identifier: GPL-2.0
/*
 * Page granule: VMAs that are populated in 64 KiB runs of base pages.
 *
 * Predicates of VMAs and of page tables. mm/page_granule.h lists what the
 * other files do. See Documentation/mm/page_granule.rst.
 */

#include <linux/export.h>
#include <linux/mm.h>
#include <linux/pgtable.h>

#include <kunit/visibility.h>

#include "internal.h"
#include "page_granule.h"

/* Ignore the accessed and dirty bits, which hardware sets for each PTE. */
#define FPB_GRANULE	(FPB_RESPECT_WRITE | FPB_RESPECT_SOFT_DIRTY)

/**
 * vma_granule_folios - May folios populate the granules of a VMA?
 * @vma: The tagged VMA, stabilised by the mmap lock or its VMA lock.
 *
 * The program's advice about huge pages applies to granules, and so does the
 * administrator's switch. A contract counts as advice to use huge pages.
 *
 * Return: false if single pages populate @vma: a contract VMA still in whole
 * granules, any other VMA as if it was not tagged.
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
 * This only looks at the entries. The caller has to find out whether the PFNs
 * belong to one folio, see page_granule_pte_state().
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

/* Tests use a page of made-up PTEs, which has no page table lock. */
static void granule_assert_locked(struct vm_area_struct *vma, pte_t *ptep)
{
	lockdep_assert(!PageTable(virt_to_page(ptep)) ||
		       lockdep_is_held(ptep_lockptr(vma->vm_mm, ptep)));
}

/**
 * page_granule_is_zeroes - Are the PTEs of a granule a run of zero pages?
 * @vma: The tagged VMA.
 * @addr: Start of a granule of @vma.
 * @ptep: The PTE that maps @addr.
 *
 * KSM marks the zero pages that it has merged as dirty. A granule with any of
 * these is broken, because treating it as one would count all its zero pages as
 * KSM's.
 *
 * Context: The page table lock of @ptep is held.
 * Return: true if all PTEs map the block of zero pages, and none is dirty.
 */
bool page_granule_is_zeroes(struct vm_area_struct *vma, unsigned long addr,
			    pte_t *ptep)
{
	unsigned int batch;
	int i;

	granule_assert_locked(vma, ptep);
	VM_WARN_ON_ONCE(!IS_ALIGNED(addr, PAGE_GRANULE_SIZE));

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

	granule_assert_locked(vma, ptep);
	VM_WARN_ON_ONCE(!IS_ALIGNED(addr, PAGE_GRANULE_SIZE));

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
