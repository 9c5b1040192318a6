// SPDX-License-Identifier: GPL-2.0-only
/*
 * Page granule: swap-in.
 *
 * do_swap_page() calls swapin_granule(), which reads all 16 pages of a
 * granule.
 */

#include <linux/blk_plug.h>
#include <linux/kmsan.h>
#include <linux/leafops.h>
#include <linux/memcontrol.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/rmap.h>
#include <linux/swap.h>
#include <linux/swap_ops.h>
#include <linux/vmstat.h>
#include <linux/zswap.h>

#include "internal.h"
#include "page_granule.h"
#include "swap.h"

/*
 * Are all pages of a granule swapped out to the device of @entry? @pte is the
 * first PTE, and locked. The PTEs are copied to @ptes. Userfaultfd needs to see
 * a fault on each write-protected page.
 */
static bool granule_swapped(pte_t *pte, softleaf_t entry, pte_t *ptes)
{
	softleaf_t leaf;
	int i;

	for (i = 0; i < PAGE_GRANULE_NR; i++) {
		ptes[i] = ptep_get(pte + i);
		leaf = softleaf_from_pte(ptes[i]);
		if (!softleaf_is_swap(leaf) || pte_swp_uffd(ptes[i]) ||
		    swp_type(leaf) != swp_type(entry))
			return false;
	}
	return true;
}

/*
 * Are the slots of the granule consecutive and aligned, as those of one folio
 * are? This sets only the first of @ptes.
 */
static bool granule_swapped_in_order(pte_t *pte, softleaf_t entry, pte_t *ptes)
{
	softleaf_t leaf;

	ptes[0] = ptep_get(pte);
	leaf = softleaf_from_pte(ptes[0]);
	return softleaf_is_swap(leaf) && !pte_swp_uffd(ptes[0]) &&
	       swp_type(leaf) == swp_type(entry) &&
	       IS_ALIGNED(swp_offset(leaf), PAGE_GRANULE_NR) &&
	       swap_pte_batch(pte, PAGE_GRANULE_NR, ptes[0]) == PAGE_GRANULE_NR;
}

/* Is @folios[@nr] the same folio as one of the @nr before it? */
static bool granule_folio_seen(struct folio **folios, int nr)
{
	int i;

	for (i = 0; i < nr; i++) {
		if (folios[i] == folios[nr])
			return true;
	}
	return false;
}

static void unlock_granule_folios(struct folio **folios, int nr)
{
	while (nr--) {
		if (!granule_folio_seen(folios, nr))
			folio_unlock(folios[nr]);
	}
}

/*
 * Lock the folios that hold the pages of a granule in the swap cache. Two
 * processes can have them in different order, so this never waits for one while
 * another is locked. Returns false if a folio is locked again and again.
 */
static bool lock_granule_folios(struct folio **folios)
{
	int i, tries;

	for (tries = 0; tries < PAGE_GRANULE_NR; tries++) {
		for (i = 0; i < PAGE_GRANULE_NR; i++) {
			if (!granule_folio_seen(folios, i) &&
			    !folio_trylock(folios[i]))
				break;
		}
		if (i == PAGE_GRANULE_NR)
			return true;

		unlock_granule_folios(folios, i);
		folio_wait_locked(folios[i]);
	}
	return false;
}

static void put_swapin_folios(struct folio **folios, int nr)
{
	while (nr--)
		folio_put(folios[nr]);
}

/*
 * Find the pages of a granule in the swap cache, or read them, all at once, and
 * wait for that. Returns 0, VM_FAULT_FALLBACK if there is no memory for a page,
 * or VM_FAULT_RETRY as folio_lock_or_retry() does. No folio is referenced
 * unless this returns 0.
 */
static vm_fault_t read_granule_folios(struct vm_fault *vmf, pte_t *ptes,
				      struct folio **folios)
{
	const unsigned long start = granule_start(vmf->address);
	struct swap_io_ctx ctx = {};
	struct blk_plug plug;
	vm_fault_t ret;
	gfp_t gfp;
	int i, nr;

	/* The page that faulted is tried again by itself; the others can wait. */
	gfp = GFP_HIGHUSER_MOVABLE | __GFP_NORETRY | __GFP_NOWARN;
	blk_start_plug(&plug);
	for (nr = 0; nr < PAGE_GRANULE_NR; nr++) {
		folios[nr] = read_swap_cache_async(&ctx,
						   softleaf_from_pte(ptes[nr]),
						   gfp, vmf->vma,
						   start + nr * PAGE_SIZE);
		if (!folios[nr])
			break;
	}
	blk_finish_plug(&plug);
	swap_read_submit(&ctx);
	if (nr < PAGE_GRANULE_NR) {
		put_swapin_folios(folios, nr);
		return VM_FAULT_FALLBACK;
	}

	for (i = 0; i < PAGE_GRANULE_NR; i++) {
		if (!folio_test_locked(folios[i]))
			continue;
		ret = folio_lock_or_retry(folios[i], vmf);
		if (ret & VM_FAULT_RETRY) {
			put_swapin_folios(folios, nr);
			return ret;
		}
		folio_unlock(folios[i]);
	}
	return 0;
}

/*
 * May a copy replace the page in the slot of @pte? @folios[@nr] holds the page,
 * locked in the swap cache.
 */
static bool granule_copies_folio(struct folio **folios, int nr, pte_t pte,
				 bool write)
{
	const struct folio *folio = folios[nr];
	int i, refs;

	/*
	 * Copy shared pages for a write only. If the PTE is the only user of a
	 * slot, nobody else can come to share it.
	 */
	if (!pte_swp_exclusive(pte)) {
		/* The folio keeps the slot; this only satisfies lockdep. */
		guard(rcu)();
		return write || (!folio_mapped(folio) &&
				 __swap_count(softleaf_from_pte(pte)) == 1);
	}

	/* Only processes that swap the page in can have seen it. */
	if (!folio_test_anon(folio))
		return true;

	/*
	 * Before the page was unmapped, somebody may have taken a reference for
	 * I/O. See wp_can_reuse_anon_folio() for the LRU.
	 */
	refs = folio_expected_ref_count(folio) + !folio_test_lru(folio);
	for (i = 0; i < PAGE_GRANULE_NR; i++)
		refs += folios[i] == folio;
	return folio_ref_count(folio) <= refs;
}

/* Copy the pages of a granule, locked in the swap cache, to one folio. */
static bool copy_granule_folios(struct vm_fault *vmf, pte_t *ptes,
				struct folio **folios, struct folio *folio)
{
	const unsigned long start = granule_start(vmf->address);
	const bool write = vmf->flags & FAULT_FLAG_WRITE;
	int i;

	for (i = 0; i < PAGE_GRANULE_NR; i++) {
		const softleaf_t entry = softleaf_from_pte(ptes[i]);
		struct page *page;

		/* The lock keeps the slot in place, see do_swap_page(). */
		if (!folio_matches_swap_entry(folios[i], entry) ||
		    !folio_test_uptodate(folios[i]) ||
		    !granule_copies_folio(folios, i, ptes[i], write))
			return false;
		page = folio_file_page(folios[i], swp_offset(entry));
		if (PageHWPoison(page))
			return false;

		arch_swap_restore(folio_swap(entry, folios[i]), folios[i]);
		if (copy_mc_user_highpage(folio_page(folio, i), page,
					  start + i * PAGE_SIZE, vmf->vma))
			return false;
		kmsan_copy_page_meta(folio_page(folio, i), page);
	}

	__folio_mark_uptodate(folio);
	/* Its contents have no other copy from now on. */
	folio_mark_dirty(folio);
	return true;
}

/* Map @folio to a granule that is all swapped out. @pte is the first PTE. */
static void map_swapped_granule(struct vm_fault *vmf, pte_t *pte, pte_t *ptes,
				struct folio *folio)
{
	const unsigned long start = granule_start(vmf->address);
	struct vm_area_struct *vma = vmf->vma;
	struct mm_struct *mm = vma->vm_mm;
	pte_t entry;
	int i;

	add_mm_counter(mm, MM_ANONPAGES, PAGE_GRANULE_NR);
	add_mm_counter(mm, MM_SWAPENTS, -PAGE_GRANULE_NR);
	entry = folio_mk_pte(folio, vma->vm_page_prot);
	entry = pte_sw_mkyoung(entry);
	for (i = 0; i < PAGE_GRANULE_NR; i++) {
		if (pte_swp_soft_dirty(ptes[i]))
			entry = pte_mksoft_dirty(entry);
	}
	if ((vma->vm_flags & VM_WRITE) && !pte_needs_soft_dirty_wp(vma, entry)) {
		entry = pte_mkwrite(entry, vma);
		if (vmf->flags & FAULT_FLAG_WRITE)
			entry = pte_mkdirty(entry);
	}

	flush_icache_pages(vma, folio_page(folio, 0), PAGE_GRANULE_NR);
	map_new_anon_folio(folio, pte, vma, start, entry);
	arch_do_swap_page_nr(mm, vma, start, entry, entry, PAGE_GRANULE_NR);
	page_granule_count_swapin(PAGE_GRANULE_NR);
}

/* Release the slots of a granule that maps a copy, and try to free them. */
static void put_granule_swap(pte_t *ptes, struct folio **folios)
{
	int i;

	for (i = 0; i < PAGE_GRANULE_NR; i++) {
		const softleaf_t entry = softleaf_from_pte(ptes[i]);

		folio_put_swap(folios[i], folio_file_page(folios[i],
							  swp_offset(entry)));
	}
	for (i = 0; i < PAGE_GRANULE_NR; i++) {
		if (!granule_folio_seen(folios, i))
			folio_free_swap(folios[i]);
	}
}

/* Are the PTEs that granule_swapped() saw still there? @pte is locked. */
static bool granule_swap_same(pte_t *pte, const pte_t *ptes)
{
	int i;

	for (i = 0; i < PAGE_GRANULE_NR; i++) {
		if (!pte_same(ptep_get(pte + i), ptes[i]))
			return false;
	}
	return true;
}

/*
 * Would granule_copies_folio() refuse to copy a page for a read? This is only a
 * hint. The slots exist as long as the PTEs cannot change.
 */
static bool granule_slots_shared(struct vm_fault *vmf, const pte_t *ptes)
{
	const unsigned long start = granule_start(vmf->address);
	bool shared = false;
	pte_t *pte;
	int i;

	pte = pte_offset_map_lock(vmf->vma->vm_mm, vmf->pmd, start, &vmf->ptl);
	if (!pte)
		return false;
	if (granule_swap_same(pte, ptes)) {
		for (i = 0; i < PAGE_GRANULE_NR && !shared; i++)
			shared = !pte_swp_exclusive(ptes[i]) &&
				 __swap_count(softleaf_from_pte(ptes[i])) > 1;
	}
	pte_unmap_unlock(pte, vmf->ptl);
	return shared;
}

/*
 * Swap in a granule whose slots are not in order, or a part of which is in the
 * swap cache or in zswap, by a copy:
 *
 *   PTEs         | 5 | 9 | 2 | . . . | 7 |  swap entries, in any order
 *   swap cache   [ ] [ ] [ ]   . . . [ ]    16 small folios, read and locked
 *                  |   |   |           |    copied without page table lock
 *   new folio    [ 0 . . . . . . . . . f ]  mapped if the PTEs are the same
 *
 * The copy is exclusive to this process. Pages that fork() has shared are
 * therefore copied for a write only.
 *
 * Return 0 if the granule is whole or has changed meanwhile, VM_FAULT_FALLBACK
 * if the pages cannot be replaced by one folio, or VM_FAULT_RETRY with the lock
 * released.
 */
static vm_fault_t swapin_granule_copy(struct vm_fault *vmf, pte_t *ptes)
{
	const unsigned long start = granule_start(vmf->address);
	struct folio *folios[PAGE_GRANULE_NR], *folio = NULL;
	struct vm_area_struct *vma = vmf->vma;
	vm_fault_t ret;
	pte_t *pte;

	ret = read_granule_folios(vmf, ptes, folios);
	if (ret)
		return ret;

	ret = VM_FAULT_FALLBACK;
	if (!(vmf->flags & FAULT_FLAG_WRITE) && granule_slots_shared(vmf, ptes))
		goto put_folios;
	folio = alloc_granule_folio(vma, start);
	if (!folio)
		goto put_folios;
	if (!lock_granule_folios(folios))
		goto put_folios;

	/*
	 * Reclaim flushes the TLB some time after it has unmapped the pages.
	 * Until then, other threads can access them. No thread may read or
	 * write a page that has been copied.
	 */
	pte = pte_offset_map_lock(vma->vm_mm, vmf->pmd, start, &vmf->ptl);
	if (!pte) {
		ret = 0;
		goto unlock_folios;
	}
	flush_tlb_batched_pending(vma->vm_mm);
	pte_unmap_unlock(pte, vmf->ptl);

	if (!copy_granule_folios(vmf, ptes, folios, folio))
		goto unlock_folios;

	ret = 0;
	pte = pte_offset_map_lock(vma->vm_mm, vmf->pmd, start, &vmf->ptl);
	if (!pte)
		goto unlock_folios;
	if (granule_swap_same(pte, ptes)) {
		map_swapped_granule(vmf, pte, ptes, folio);
		folio = NULL;
		put_granule_swap(ptes, folios);
	}
	pte_unmap_unlock(pte, vmf->ptl);

unlock_folios:
	unlock_granule_folios(folios, PAGE_GRANULE_NR);
put_folios:
	put_swapin_folios(folios, PAGE_GRANULE_NR);
	if (folio)
		folio_put(folio);
	return ret;
}

/**
 * swapped_granule_fits - Can a granule map its part of a larger folio?
 * @vmf: A fault on an address in a granule.
 * @folio: The folio that the swap cache has for it, locked.
 * @page: The page of @folio for the address.
 *
 * do_swap_page() maps a folio that is new in the swap cache either as a whole
 * or not at all. A folio that others still map can be mapped in part.
 *
 * Context: vmf->pte is mapped and locked.
 * Return: true if all of the granule is swapped out to slots of @folio, in
 * order.
 */
bool swapped_granule_fits(struct vm_fault *vmf, struct folio *folio,
			  struct page *page)
{
	const unsigned long nr = granule_index(vmf->address);
	pte_t *pte = vmf->pte - nr;
	const pte_t first = ptep_get(pte);

	return folio_test_anon(folio) && folio_order(folio) > PAGE_GRANULE_ORDER &&
	       IS_ALIGNED(page_to_pfn(page) - nr, PAGE_GRANULE_NR) &&
	       pte_same(first, pte_move_swp_offset(vmf->orig_pte, -nr)) &&
	       swap_pte_batch(pte, PAGE_GRANULE_NR, first) == PAGE_GRANULE_NR;
}

/**
 * swapin_granule - Swap in a granule as a whole.
 * @vmf: A fault on an address in a granule; its PTE is neither mapped nor
 *	 locked.
 * @entry: The swap entry of the page that faulted, whose device stays.
 * @orders: Bitfield of the orders to read to, besides that of the granule.
 * @foliop: Is set to a folio that is to be mapped, or left alone.
 *
 * Three ways lead from swap entries to a run::
 *
 *   in order, a large folio in the swap cache   -> *@foliop
 *   in order, nothing in the swap cache         -> read to one folio: *@foliop
 *   in any order, or a part in the swap cache   -> swapin_granule_copy()
 *
 * If a limit leaves no room for 16 pages, only the page that faulted is read.
 *
 * Return: 0 if the granule is mapped or has changed meanwhile;
 * VM_FAULT_FALLBACK if the caller is to map *@foliop, which is referenced and in
 * the swap cache, or, if *@foliop is NULL, to swap in the page by itself;
 * VM_FAULT_RETRY as folio_lock_or_retry() does. VM_FAULT_MAJOR is added if
 * anything was read.
 */
vm_fault_t swapin_granule(struct vm_fault *vmf, softleaf_t entry,
			  unsigned long orders, struct folio **foliop)
{
	const unsigned long start = granule_start(vmf->address);
	struct vm_area_struct *vma = vmf->vma;
	pte_t ptes[PAGE_GRANULE_NR], *pte;
	vm_fault_t major = 0, ret;
	bool swapped, in_order;
	struct folio *folio;
	int i;

	if (!vma_granule_folios(vma))
		return VM_FAULT_FALLBACK;

	pte = pte_offset_map_lock(vma->vm_mm, vmf->pmd, start, &vmf->ptl);
	if (!pte)
		return 0;
	i = granule_index(vmf->address);
	if (!pte_same(ptep_get(pte + i), vmf->orig_pte)) {
		pte_unmap_unlock(pte, vmf->ptl);
		return 0;
	}
	in_order = granule_swapped_in_order(pte, entry, ptes);
	swapped = in_order || granule_swapped(pte, entry, ptes);
	pte_unmap_unlock(pte, vmf->ptl);
	if (!swapped)
		return VM_FAULT_FALLBACK;

	folio = swap_cache_get_folio(entry);
	if (folio && in_order && folio_order(folio) >= PAGE_GRANULE_ORDER) {
		*foliop = folio;
		return VM_FAULT_FALLBACK;
	}
	if (!page_granule_may_swap_in(vma)) {
		if (folio)
			folio_put(folio);
		count_vm_event(GRANULE_SWPIN_FALLBACK);
		return VM_FAULT_FALLBACK;
	}
	if (!folio) {
		major = VM_FAULT_MAJOR;
		if (in_order &&
		    zswap_can_load(softleaf_from_pte(ptes[0]), PAGE_GRANULE_NR))
			folio = swapin_sync(entry, GFP_HIGHUSER_MOVABLE,
					    page_granule_orders(vma, orders) |
					    BIT(PAGE_GRANULE_ORDER), vmf,
					    NULL, 0);
	}
	if (!IS_ERR_OR_NULL(folio)) {
		if (in_order && folio_order(folio) >= PAGE_GRANULE_ORDER) {
			*foliop = folio;
			return VM_FAULT_FALLBACK | major;
		}
		folio_put(folio);
	} else if (folio == ERR_PTR(-ENOMEM)) {
		/* There is none for a copy either. */
		count_vm_event(GRANULE_SWPIN_FALLBACK);
		return VM_FAULT_FALLBACK;
	}

	for (i = 1; in_order && i < PAGE_GRANULE_NR; i++)
		ptes[i] = pte_next_swp_offset(ptes[i - 1]);
	ret = swapin_granule_copy(vmf, ptes);
	if (ret != VM_FAULT_FALLBACK)
		return ret | major;

	/* Somebody else may have swapped it in, and freed the slots. */
	pte = pte_offset_map_lock(vma->vm_mm, vmf->pmd, start, &vmf->ptl);
	if (!pte)
		return major;
	swapped = granule_swap_same(pte, ptes);
	pte_unmap_unlock(pte, vmf->ptl);
	if (!swapped)
		return major;
	count_vm_event(GRANULE_SWPIN_FALLBACK);
	return VM_FAULT_FALLBACK | major;
}
