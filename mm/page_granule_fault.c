// SPDX-License-Identifier: GPL-2.0-only
/*
 * Page granule: page faults.
 *
 * mm/memory.c calls these functions where an address is in a granule. They
 * populate, copy and reuse all 16 pages of a granule at once where it handles
 * a single page.
 */

#include <linux/kmsan.h>
#include <linux/ksm.h>
#include <linux/memcontrol.h>
#include <linux/mm.h>
#include <linux/mm_inline.h>
#include <linux/mmu_notifier.h>
#include <linux/oom.h>
#include <linux/pagemap.h>
#include <linux/rmap.h>
#include <linux/shmem_fs.h>
#include <linux/swap.h>
#include <linux/userfaultfd_k.h>
#include <linux/vmstat.h>

#include <asm/tlbflush.h>

#include "internal.h"
#include "page_granule.h"
#include "swap.h"

/* See alloc_anon_folio(). */
static void zero_granule_folio(struct vm_fault *vmf, struct folio *folio)
{
	if (user_alloc_needs_zeroing())
		folio_zero_user(folio, vmf->address);
}

#define GRANULE_ALL_HOLES	(BIT(PAGE_GRANULE_NR) - 1)

/* Return a mask of the PTEs of a granule that are none. @pte is the first. */
static unsigned long granule_holes(pte_t *pte)
{
	unsigned long holes = 0;
	int i;

	for (i = 0; i < PAGE_GRANULE_NR; i++) {
		if (pte_none(ptep_get(pte + i)))
			holes |= BIT(i);
	}
	return holes;
}

/**
 * granule_wants_all - Does a fault populate the whole granule?
 * @vmf: A fault on an address in a granule.
 * @pte: The PTE of that address.
 *
 * Context: Without the page table lock of @pte the answer is only a hint.
 * Return: true if all PTEs of the granule are none, and userfaultfd does not
 * need to see a fault on each page.
 */
bool granule_wants_all(struct vm_fault *vmf, pte_t *pte)
{
	struct vm_area_struct *vma = vmf->vma;

	/* Userfaultfd needs to see a fault on each page. */
	if (userfaultfd_armed(vma))
		return false;

	pte -= granule_index(vmf->address);
	return pte_range_none(pte, PAGE_GRANULE_NR);
}

/*
 * Does the file end in the granule? An access behind its last page has to fail
 * with SIGBUS. Shared memory is mapped as a whole, see finish_fault().
 */
bool granule_behind_eof(struct vm_fault *vmf)
{
	struct file *file = vmf->vma->vm_file;

	return file && !(shmem_mapping(file->f_mapping) && !mapping_granule(file->f_mapping)) &&
	       round_down(vmf->pgoff, PAGE_GRANULE_NR) + PAGE_GRANULE_NR > vmf_file_end(vmf);
}

/**
 * granule_part - Find the part of a larger folio that populates a granule.
 * @vmf: A fault on an address in a granule; its PTE is neither mapped nor
 *	 locked.
 * @folio: The folio for the fault, which cannot be mapped as a whole.
 * @page: The page of @folio for the address; set to the first page to map.
 * @addr: Set to the address of that page.
 *
 * Return: the number of pages to map. It is 1 if @folio does not hold the whole
 * granule, or if the granule is not empty; the latter is only a hint.
 */
int granule_part(struct vm_fault *vmf, struct folio *folio, struct page **page,
		 unsigned long *addr)
{
	const unsigned long nr = granule_index(vmf->address);
	bool empty;
	pte_t *pte;

	if (folio_order(folio) < PAGE_GRANULE_ORDER ||
	    !IS_ALIGNED(page_to_pfn(*page) - nr, PAGE_GRANULE_NR) ||
	    granule_behind_eof(vmf))
		return 1;

	pte = pte_offset_map(vmf->pmd, vmf->address);
	if (!pte)
		return 1;
	empty = granule_wants_all(vmf, pte);
	pte_unmap(pte);
	if (!empty)
		return 1;

	*page -= nr;
	*addr = granule_start(vmf->address);
	return PAGE_GRANULE_NR;
}

/*
 * Fold a granule that has become whole page by page. An architecture that marks
 * contiguous entries does so when the last PTE in memory is set, which need not
 * have been the last one to be set. @pte is the first PTE, and locked.
 */
static void fold_granule(struct vm_area_struct *vma, unsigned long start, pte_t *pte)
{
	pte_t old = ptep_get(pte), merged;

	/* Dirty bits would make zero pages look as if KSM had merged them. */
	if (pte_protnone(old) || is_zero_pfn(pte_pfn(old)) ||
	    !page_granule_unfolded(pte, old))
		return;
	merged = modify_prot_start_ptes(vma, start, pte, PAGE_GRANULE_NR);
	/* A dirty PTE has made the batch soft-dirty: undo that. */
	if (!pte_soft_dirty(old))
		merged = pte_clear_soft_dirty(merged);
	flush_tlb_ptes(vma, start, PAGE_GRANULE_NR);
	modify_prot_commit_ptes(vma, start, pte, merged, merged, PAGE_GRANULE_NR);
}

/*
 * Single pages of the granule at @start have been mapped. If no page is missing
 * now, the granule is whole, or can be repaired. @pte is its first PTE, and
 * locked.
 */
static void fold_or_repair(struct vm_area_struct *vma, unsigned long start,
			   pte_t *pte)
{
	unsigned int i, copies = 0;
	bool shared = false;

	for (i = 0; i < PAGE_GRANULE_NR; i++) {
		const pte_t ptent = ptep_get(pte + i);

		if (!pte_present(ptent))
			return;
		if (!vma->vm_file)
			continue;
		if (vma_is_cow_mapping(vma) && PageAnon(pte_page(ptent)))
			copies++;
		else
			shared |= folio_maybe_mapped_shared(page_folio(pte_page(ptent)));
	}
	/* Private copies beside pages of a file stay. */
	if (copies && copies < PAGE_GRANULE_NR)
		return;
	if (page_granule_is_whole(vma, start, pte))
		fold_granule(vma, start, pte);
	/* Repair makes new folios, and leaves alone what others map. */
	else if (!shared && !userfaultfd_armed(vma) && vma_granule_folios(vma))
		page_granule_repair_later(vma->vm_mm, start);
}

/**
 * fold_or_repair_granule - Note that a page of a granule was mapped by itself.
 * @vmf: The fault that mapped it, on an address in a granule.
 *
 * If no page is missing now, the granule is either whole, because one folio
 * holds all pages, and gets folded; or it is broken, and can be repaired.
 *
 * Context: vmf->pte is mapped and locked.
 */
void fold_or_repair_granule(struct vm_fault *vmf)
{
	const unsigned long start = granule_start(vmf->address);

	fold_or_repair(vmf->vma, start,
		       vmf->pte - granule_index(vmf->address));
}

/* Free the folios for a granule that have not been mapped. */
void put_granule_folios(struct folio **folios)
{
	int i;

	for (i = 0; i < PAGE_GRANULE_NR; i++) {
		if (folios[i])
			folio_put(folios[i]);
		folios[i] = NULL;
	}
}

/*
 * Allocate one page of a granule. In a contract VMA, it is worth the same
 * effort as a page that was asked for. Elsewhere, the other pages are not worth
 * an OOM kill, and to @fill a granule is not worth reclaim.
 */
static struct folio *alloc_granule_page(struct vm_area_struct *vma, unsigned long addr,
					bool need_zero, bool fill, gfp_t charge)
{
	gfp_t gfp = need_zero ? __GFP_ZERO : 0;
	struct folio *folio;

	if (vma_granule_contract(vma))
		return folio_prealloc(vma->vm_mm, vma, addr, need_zero);

	gfp |= fill ? GFP_TRANSHUGE_LIGHT & ~__GFP_COMP :
	       GFP_HIGHUSER_MOVABLE | __GFP_NORETRY | __GFP_NOWARN;
	folio = vma_alloc_folio(gfp, 0, vma, addr);
	if (folio && mem_cgroup_charge(folio, vma->vm_mm, charge)) {
		folio_put(folio);
		return NULL;
	}
	return folio;
}

/*
 * Memory is too fragmented or too short for a folio that holds the granule.
 * Allocate single pages for those of @holes that have none in @folios. Returns
 * false if there is not enough memory.
 */
static bool alloc_granule_pages(struct vm_fault *vmf, struct folio **folios,
				unsigned long holes, bool need_zero)
{
	const unsigned long start = granule_start(vmf->address);
	const bool fill = holes != GRANULE_ALL_HOLES;
	gfp_t charge = GFP_NOWAIT;
	unsigned int i;

	if (fill ? !granule_has_room(vmf->vma) : !granule_may_charge(vmf->vma, &charge))
		return false;
	for_each_set_bit(i, &holes, PAGE_GRANULE_NR) {
		if (!folios[i])
			folios[i] = alloc_granule_page(vmf->vma,
						       start + i * PAGE_SIZE,
						       need_zero, fill, charge);
		if (!folios[i])
			return false;
		__folio_mark_uptodate(folios[i]);
	}
	return true;
}

/* Map single pages to the holes of a granule. @pte is its first, and locked. */
static void map_granule_pages(struct vm_fault *vmf, pte_t *pte,
			      struct folio **folios)
{
	const unsigned long start = granule_start(vmf->address);
	int i, nr = 0;

	for (i = 0; i < PAGE_GRANULE_NR; i++) {
		if (!folios[i])
			continue;
		map_anon_folio_pte_nopf(folios[i], pte + i, vmf->vma,
					start + i * PAGE_SIZE, false);
		folios[i] = NULL;
		nr++;
	}
	add_mm_counter(vmf->vma->vm_mm, MM_ANONPAGES, nr);
}

/**
 * populate_granule_from_pages - Fill a granule, or its holes, from single pages.
 * @vmf: A fault that granule_wants_pages() has approved; its PTE is neither
 *	 mapped nor locked.
 * @folio: A page for the faulting address, which is consumed.
 *
 * alloc_anon_folio() found no folio of 64 KiB, and allocated one page. This
 * allocates the others, before it locks the page table::
 *
 *   PTEs    | - | - | - | - | . . . | - |        all none: 16 pages are mapped
 *   PTEs    | 0 | - | - | 3 | . . . | f |        some none: these are filled in
 *             fault on one of them
 *
 * In a contract VMA, the process finds either 0 or 16 pages present. In a
 * default-tagged VMA, if there is no memory for the other pages, the process
 * gets the page that it asked for, as in an untagged VMA.
 *
 * Return: 0 if pages were mapped, or if the granule has changed meanwhile;
 * VM_FAULT_OOM, or the error of check_stable_address_space().
 */
vm_fault_t populate_granule_from_pages(struct vm_fault *vmf, struct folio *folio)
{
	const unsigned long start = granule_start(vmf->address);
	const int nr = granule_index(vmf->address);
	struct folio *folios[PAGE_GRANULE_NR] = {};
	struct vm_area_struct *vma = vmf->vma;
	unsigned long holes = 0;
	bool single = false;
	vm_fault_t ret = 0;

	folios[nr] = folio;
	vmf->pte = pte_offset_map(vmf->pmd, start);
	if (vmf->pte) {
		holes = granule_holes(vmf->pte);
		pte_unmap(vmf->pte);
	}
	if (!(holes & BIT(nr)))
		goto out;

	/*
	 * Holes that are not filled belong to another thread, which is about to
	 * map pages there: the lock waits for it.
	 */
	if ((holes == GRANULE_ALL_HOLES || vma_granule_fills(vma)) &&
	    !alloc_granule_pages(vmf, folios, holes, true)) {
		folios[nr] = NULL;
		put_granule_folios(folios);
		folios[nr] = folio;
		__folio_mark_uptodate(folio);
		single = true;
	}

	vmf->pte = pte_offset_map_lock(vma->vm_mm, vmf->pmd, start, &vmf->ptl);
	if (!vmf->pte)
		goto out;
	/* vma_granule_set_holes() is called before anybody can see holes. */
	if (granule_holes(vmf->pte) != holes ||
	    (holes != GRANULE_ALL_HOLES && !vma_granule_fills(vma))) {
		update_mmu_tlb_range(vma, start, vmf->pte, PAGE_GRANULE_NR);
		goto unlock;
	}
	/* Memory may have been short because another thread has filled it. */
	if (single && vma_granule_contract(vma)) {
		ret = VM_FAULT_OOM;
		goto unlock;
	}
	ret = check_stable_address_space(vma->vm_mm);
	if (ret)
		goto unlock;
	map_granule_pages(vmf, vmf->pte, folios);
	/* A hint is useful only once no page is missing. */
	if (single && holes == GRANULE_ALL_HOLES)
		count_vm_event(GRANULE_FALLBACK);
	else if (holes == GRANULE_ALL_HOLES)
		page_granule_note_fault(vma, start, GRANULE_FILL_SINGLE);
	else
		fold_or_repair(vma, start, vmf->pte);
unlock:
	pte_unmap_unlock(vmf->pte, vmf->ptl);
out:
	put_granule_folios(folios);
	return ret;
}

/*
 * The edge of a VMA that grows
 *
 * malloc() grows its heaps by steps that do not end at a granule: brk()'s by
 * 132 KiB, others by mprotect() of reserved pages. The end of such a VMA cuts
 * its last block, which therefore is not a granule yet, but will be one.
 *
 *            vm_end                             vm_end
 *              |                                   |
 * | 0 1 2 3 4 5 . . . . . . . . . . |  -> | 0 1 2 3 4 5 6 7 8 9 a b . . . . |
 *   of a folio that holds 16 pages          the same folio, zeroed and mapped
 *
 * The first fault allocates a folio for the whole block, and maps those pages
 * that lie in the VMA. Nobody uses the rest of the folio. Reclaim can split the
 * folio to free the rest, as for any folio that is partially mapped. When the
 * VMA grows, the next pages of the folio are mapped, until the block is whole.
 */

/*
 * Is the VMA likely to grow over the whole block at @start? The reserved VMA
 * behind it is not locked. If it is freed meanwhile, only the guess is wrong.
 */
static bool granule_vma_grows(struct vm_area_struct *vma, unsigned long start)
{
	struct mm_struct *mm = vma->vm_mm;
	struct vm_area_struct *next;
	struct ma_state mas;
	bool reserved;

	/* brk() changes mm->brk under the mmap lock, which is not held here. */
	if (vma->vm_end == PAGE_ALIGN(data_race(mm->brk)))
		return true;

	rcu_read_lock();
	mas_init(&mas, &mm->mm_mt, vma->vm_end);
	next = mas_walk(&mas);
	/* The VMA is not locked: if it changes, only the guess is wrong. */
	reserved = next && data_race(vma_granule_tagged(next) && vma_is_anonymous(next) &&
				     !(next->vm_flags & VM_ACCESS_FLAGS) &&
				     next->vm_end >= start + PAGE_GRANULE_SIZE);
	rcu_read_unlock();
	return reserved;
}

/*
 * May pages of the block at @start be mapped before they are accessed? Not if
 * userfaultfd needs to see faults on them, if they would have to be locked, or
 * if they have MTE tags: a page that was mapped before would keep its old tags.
 */
static bool granule_edge_allowed(struct vm_area_struct *vma, unsigned long start)
{
	return vma_is_anonymous(vma) && start >= vma->vm_start &&
	       !vma_granule_contract(vma) && !userfaultfd_armed(vma) &&
	       (vma->vm_flags & VM_WRITE) && !(vma->vm_flags & (VM_LOCKED | VM_MTE)) &&
	       vma_granule_folios(vma);
}

static pte_t granule_edge_pte(struct vm_area_struct *vma, struct page *page)
{
	pte_t entry = pte_sw_mkyoung(mk_pte(page, vma->vm_page_prot));

	return pte_mkwrite(pte_mkdirty(entry), vma);
}

/*
 * Return the folio that holds a block, if nobody maps its pages @from to @to -
 * 1, or NULL. The PTEs of the block and @refs have to account for all
 * references to the folio: anybody else with a reference may still write to a
 * page that was mapped before. @pte is the first PTE of the block, and locked.
 */
static struct folio *granule_edge_folio(struct vm_area_struct *vma, unsigned long start,
					pte_t *pte, unsigned int from, unsigned int to,
					int refs)
{
	const pte_t last = ptep_get(pte + from - 1);
	struct folio *folio;
	struct page *page;
	int i, mapped = 0;

	if (!pte_present(last) || !pte_range_none(pte + from, to - from))
		return NULL;
	page = vm_normal_page(vma, start + (from - 1) * PAGE_SIZE, last);
	if (!page)
		return NULL;
	folio = page_folio(page);
	if (!folio_test_anon(folio) || folio_order(folio) != PAGE_GRANULE_ORDER ||
	    folio_page_idx(folio, page) != from - 1 || !folio_test_swapbacked(folio) ||
	    folio_test_swapcache(folio) || folio_contain_hwpoisoned_page(folio))
		return NULL;

	for (i = 0; i < PAGE_GRANULE_NR; i++) {
		const pte_t ptent = ptep_get(pte + i);

		mapped += pte_present(ptent) && pte_pfn(ptent) == folio_pfn(folio) + i;
	}
	if (folio_mapcount(folio) != mapped || folio_ref_count(folio) != mapped + refs)
		return NULL;
	return folio;
}

/* Map the pages @from to @to - 1 of the folio. @pte is locked. */
static void map_edge(struct vm_area_struct *vma, unsigned long start, pte_t *pte,
		     struct folio *folio, unsigned int from, unsigned int to)
{
	const unsigned long addr = start + from * PAGE_SIZE;
	struct page *page = folio_page(folio, from);

	folio_ref_add(folio, to - from);
	folio_add_anon_rmap_ptes(folio, page, to - from, vma, addr, RMAP_EXCLUSIVE);
	set_ptes(vma->vm_mm, addr, pte + from, granule_edge_pte(vma, page), to - from);
	update_mmu_cache_range(NULL, vma, addr, pte + from, to - from);
	add_mm_counter(vma->vm_mm, MM_ANONPAGES, to - from);

	if (folio_mapcount(folio) < PAGE_GRANULE_NR)
		return;
	deferred_split_cancel(folio);
	if (page_granule_is_whole(vma, start, pte)) {
		fold_granule(vma, start, pte);
		page_granule_note_fault(vma, start, GRANULE_FILL_FOLIO);
	}
}

/*
 * Zero and map the pages @from to @to - 1 of the folio that holds the block at
 * @start. In a @fault, check that no program has given them back meanwhile.
 * Returns false if the pages must not be mapped, or not without waiting.
 */
static bool extend_edge(struct vm_area_struct *vma, pmd_t *pmd, unsigned long start,
			unsigned int from, unsigned int to, bool fault)
{
	struct mm_struct *mm = vma->vm_mm;
	struct folio *folio;
	bool mapped = false;
	spinlock_t *ptl;
	unsigned int i;
	pte_t *pte;

	pte = pte_offset_map_lock(mm, pmd, start, &ptl);
	if (!pte)
		return false;
	folio = granule_edge_folio(vma, start, pte, from, to, 0);
	if (folio && folio_trylock(folio))
		folio_get(folio);
	else
		folio = NULL;
	pte_unmap_unlock(pte, ptl);
	if (!folio)
		return false;

	/* The pages may have been mapped before, and given back. */
	for (i = from; i < to; i++)
		clear_user_highpage(folio_page(folio, i), start + i * PAGE_SIZE);
	flush_dcache_folio(folio);
	/* Zero the pages before their PTEs become visible. */
	smp_wmb();

	pte = pte_offset_map_lock(mm, pmd, start, &ptl);
	if (pte) {
		/* Reclaim may have unmapped it, or others referenced it. */
		mapped = granule_edge_folio(vma, start, pte, from, to, 1) == folio &&
			 (!fault || vma_granule_fills(vma)) &&
			 !check_stable_address_space(mm);
		if (mapped)
			map_edge(vma, start, pte, folio, from, to);
		pte_unmap_unlock(pte, ptl);
	}
	folio_unlock(folio);
	folio_put(folio);
	return mapped;
}

/* page_granule_extend() for a tagged VMA. */
void __page_granule_extend(struct vm_area_struct *vma, unsigned long addr,
			   unsigned long end)
{
	const unsigned long start = granule_start(addr);
	const unsigned int from = granule_index(addr);
	const unsigned int to = min(end - start, PAGE_GRANULE_SIZE) >> PAGE_SHIFT;
	pmd_t *pmd;

	mmap_assert_write_locked(vma->vm_mm);
	if (!from || addr < vma->vm_start || end > vma->vm_end ||
	    !granule_edge_allowed(vma, start))
		return;

	pmd = mm_find_pmd(vma->vm_mm, start);
	if (pmd)
		extend_edge(vma, pmd, start, from, to, false);
}

/*
 * Map the rest of the folio for a block that the VMA has grown over. It was not
 * mapped at that time, because somebody had the folio locked or referenced.
 */
static bool extend_granule(struct vm_fault *vmf)
{
	const unsigned long start = granule_start(vmf->address);
	const unsigned int nr = granule_index(vmf->address);
	unsigned long holes;
	unsigned int from;
	pte_t *pte;

	if (!granule_edge_allowed(vmf->vma, start) || !vma_granule_fills(vmf->vma))
		return false;
	pte = pte_offset_map(vmf->pmd, start);
	if (!pte)
		return false;
	holes = granule_holes(pte);
	pte_unmap(pte);

	/* Map the holes around this page, after a page that is mapped. */
	from = fls(~holes & (BIT(nr) - 1));
	return from && (holes & BIT(nr)) &&
	       extend_edge(vmf->vma, vmf->pmd, start, from,
			   find_next_zero_bit(&holes, PAGE_GRANULE_NR, nr), true);
}

/**
 * populate_granule_edge - Populate the last block of a growing VMA.
 * @vmf: A fault for a write on an address in a tagged VMA; its PTE is not
 *	 mapped.
 *
 * Return: 0 if it was populated, or if the fault is to be tried again; the
 * error of check_stable_address_space(); VM_FAULT_FALLBACK if
 * do_anonymous_page() is to go on.
 */
vm_fault_t populate_granule_edge(struct vm_fault *vmf)
{
	const unsigned long start = granule_start(vmf->address);
	struct vm_area_struct *vma = vmf->vma;
	const unsigned long nr = (vma->vm_end - start) >> PAGE_SHIFT;
	struct folio *folio;
	vm_fault_t ret = 0;
	bool empty;

	if (vma_has_granule(vma, start))
		return extend_granule(vmf) ? 0 : VM_FAULT_FALLBACK;
	if (nr >= PAGE_GRANULE_NR || !granule_edge_allowed(vma, start) ||
	    !granule_vma_grows(vma, start))
		return VM_FAULT_FALLBACK;
	vmf->pte = pte_offset_map(vmf->pmd, start);
	if (!vmf->pte)
		return 0;
	empty = pte_range_none(vmf->pte, PAGE_GRANULE_NR);
	pte_unmap(vmf->pte);
	if (!empty)
		return VM_FAULT_FALLBACK;

	folio = alloc_granule_folio(vma, start);
	if (!folio)
		return VM_FAULT_FALLBACK;
	/* Zero the whole folio: reclaim may write the rest to swap. */
	zero_granule_folio(vmf, folio);
	__folio_mark_uptodate(folio);

	vmf->pte = pte_offset_map_lock(vma->vm_mm, vmf->pmd, start, &vmf->ptl);
	if (!vmf->pte)
		goto release;
	if (!pte_range_none(vmf->pte, PAGE_GRANULE_NR)) {
		update_mmu_tlb_range(vma, start, vmf->pte, nr);
		goto unlock;
	}
	ret = check_stable_address_space(vma->vm_mm);
	if (ret)
		goto unlock;

	folio_ref_add(folio, nr - 1);
	folio_add_new_anon_rmap_part(folio, nr, vma, start);
	folio_add_lru_vma(folio, vma);
	set_ptes(vma->vm_mm, start, vmf->pte,
		 granule_edge_pte(vma, &folio->page), nr);
	update_mmu_cache_range(vmf, vma, start, vmf->pte, nr);
	add_mm_counter(vma->vm_mm, MM_ANONPAGES, nr);
	count_mthp_stat(PAGE_GRANULE_ORDER, MTHP_STAT_ANON_FAULT_ALLOC);
	deferred_split_folio(folio, true);
	pte_unmap_unlock(vmf->pte, vmf->ptl);
	return 0;

unlock:
	pte_unmap_unlock(vmf->pte, vmf->ptl);
release:
	folio_put(folio);
	return ret;
}

/**
 * map_zero_granule - Map the run of zero pages to an empty granule.
 * @vmf: A fault for a read, on an address in a granule.
 *
 * Context: vmf->pte is mapped and locked.
 * Return: false if the granule is not empty, or if userfaultfd needs to see a
 * fault on each page.
 */
bool map_zero_granule(struct vm_fault *vmf)
{
	const unsigned long start = granule_start(vmf->address);
	struct vm_area_struct *vma = vmf->vma;
	pte_t *pte, entry;

	if (!granule_wants_all(vmf, vmf->pte))
		return false;

	pte = vmf->pte - granule_index(vmf->address);
	/* Zero pages are in no folio, but nothing looks for one. */
	entry = pte_mkspecial(pfn_pte(zero_pfn(start), vma->vm_page_prot));
	set_ptes(vma->vm_mm, start, pte, entry, PAGE_GRANULE_NR);

	/* No need to invalidate - they were non-present before */
	update_mmu_cache_range(vmf, vma, start, pte, PAGE_GRANULE_NR);
	page_granule_note_fault(vma, start, GRANULE_FILL_ZERO);
	return true;
}

/*
 * Can the granule be copied as a run with @page as its first page? None of its
 * pages may be exclusive: a pinned page must stay where it is. @page is NULL
 * for the block of zero pages. @pte is the first PTE, and locked.
 */
static bool granule_is_copied(struct vm_fault *vmf, pte_t *pte,
			      struct page *page)
{
	const unsigned long start = granule_start(vmf->address);
	int i;

	if (pte_pfn(ptep_get(pte)) != (page ? page_to_pfn(page) :
				       zero_pfn(start)) ||
	    !page_granule_ptes_run(pte))
		return false;

	for (i = 0; page && i < PAGE_GRANULE_NR; i++) {
		if (PageAnonExclusive(page + i))
			return false;
	}
	return true;
}

/*
 * Allocate memory to replace a granule: one folio if there is any, else single
 * pages. With @need_zero, it is a copy of zeroes already.
 */
vm_fault_t alloc_granule_copy(struct vm_fault *vmf, bool need_zero,
			      struct folio **folios)
{
	struct folio *folio;

	folio = alloc_granule_folio(vmf->vma, granule_start(vmf->address));
	if (!folio) {
		count_mthp_stat(PAGE_GRANULE_ORDER,
				MTHP_STAT_ANON_FAULT_FALLBACK);
		if (!alloc_granule_pages(vmf, folios, GRANULE_ALL_HOLES, need_zero)) {
			put_granule_folios(folios);
			if (vma_granule_contract(vmf->vma))
				return VM_FAULT_OOM;
			/* The caller copies only the page that faulted. */
			count_vm_event(GRANULE_FALLBACK);
			return VM_FAULT_FALLBACK;
		}
	} else {
		if (need_zero)
			zero_granule_folio(vmf, folio);
		__folio_mark_uptodate(folio);
		folios[0] = folio;
	}
	return 0;
}

/*
 * Copy a page of the granule, number @i, to the folios of alloc_granule_copy().
 * If that fails, they are put.
 */
vm_fault_t copy_granule_page(struct vm_fault *vmf, int i, struct page *page,
			     struct folio **folios)
{
	struct page *dst = folio_test_large(folios[0]) ? folio_page(folios[0], i) :
			   folio_page(folios[i], 0);

	if (copy_mc_user_highpage(dst, page, granule_start(vmf->address) + i * PAGE_SIZE,
				  vmf->vma)) {
		put_granule_folios(folios);
		/* Fail only if the faulting page is lost. */
		return i == granule_index(vmf->address) ? VM_FAULT_HWPOISON :
		       VM_FAULT_FALLBACK;
	}
	kmsan_copy_page_meta(dst, page);
	return 0;
}

/*
 * Map the folios of alloc_granule_copy() to a granule that is empty now. @pte
 * is its first PTE, and locked. @old is the value of the PTEs before.
 */
void map_granule_copy(struct vm_fault *vmf, pte_t *pte, pte_t old,
		      struct folio **folios)
{
	const int nr = folio_test_large(folios[0]) ? PAGE_GRANULE_NR : 1;
	const bool unshare = vmf->flags & FAULT_FLAG_UNSHARE;
	unsigned long addr = granule_start(vmf->address);
	struct vm_area_struct *vma = vmf->vma;
	pte_t entry;
	int i;

	for (i = 0; i < PAGE_GRANULE_NR; i += nr) {
		entry = folio_mk_pte(folios[i], vma->vm_page_prot);
		entry = pte_sw_mkyoung(entry);
		if (unshare) {
			if (pte_soft_dirty(old))
				entry = pte_mksoft_dirty(entry);
			if (pte_uffd(old))
				entry = pte_mkuffd(entry);
		} else {
			entry = maybe_mkwrite(pte_mkdirty(entry), vma);
		}

		map_new_anon_folio(folios[i], pte + i, vma, addr, entry);
		folios[i] = NULL;
		addr += nr * PAGE_SIZE;
	}
	if (nr > 1)
		count_mthp_stat(PAGE_GRANULE_ORDER,
				MTHP_STAT_ANON_FAULT_ALLOC);
	page_granule_note_cow(vma, addr - PAGE_GRANULE_SIZE, nr == 1 ?
			      GRANULE_FILL_SINGLE : GRANULE_FILL_FOLIO);
}

/**
 * wp_copy_granule - wp_page_copy() for a granule that is a run.
 * @vmf: A fault for a write, or to unshare, on an address in a granule.
 *	 vmf->page is referenced, or NULL for a run of zeroes, which needs no
 *	 copy. The PTE is neither mapped nor locked.
 *
 * This replaces the whole run under one lock and with one flush::
 *
 *            before                after, one folio     or single pages
 *   PTEs   | r | r | . . . | r | | w | w | . . . | w |  | w | w | . . . | w |
 *   pages  [ 0   1   . . .   f ] [ 0'  1'  . . .   f']  [0'] [1'] . . .  [f']
 *            shared, or zeroes     copied before the PTEs are cleared
 *
 * Return: 0 if the run was replaced, or has changed meanwhile;
 * VM_FAULT_FALLBACK if the granule is not a run, or must not be copied as one;
 * VM_FAULT_OOM or VM_FAULT_HWPOISON. For a page of a file, see
 * cow_file_granule().
 */
vm_fault_t wp_copy_granule(struct vm_fault *vmf)
{
	const unsigned long start = granule_start(vmf->address);
	const unsigned long end = start + PAGE_GRANULE_SIZE;
	const int nr = granule_index(vmf->address);
	struct folio *folios[PAGE_GRANULE_NR] = {};
	struct vm_area_struct *vma = vmf->vma;
	struct mm_struct *mm = vma->vm_mm;
	struct mmu_notifier_range range;
	struct folio *old_folio = NULL;
	struct page *page = NULL;
	bool changed, copied, soft_dirty;
	vm_fault_t ret;
	pte_t *pte, old;
	int i;

	if (vmf->page) {
		old_folio = page_folio(vmf->page);
		if (!folio_test_anon(old_folio))
			return cow_file_granule(vmf);
		if (folio_order(old_folio) < PAGE_GRANULE_ORDER)
			return VM_FAULT_FALLBACK;
		page = vmf->page - nr;
	} else if (userfaultfd_armed(vma)) {
		return VM_FAULT_FALLBACK;
	}

	pte = pte_offset_map_lock(mm, vmf->pmd, start, &vmf->ptl);
	if (!pte)
		return 0;
	changed = !pte_same(ptep_get(pte + nr), vmf->orig_pte);
	copied = granule_is_copied(vmf, pte, page);
	pte_unmap_unlock(pte, vmf->ptl);
	/* Start over: the granule may have become such a run again. */
	if (changed)
		return 0;
	if (!copied)
		return VM_FAULT_FALLBACK;

	/*
	 * Allocate before touching the run. If the granule was emptied first,
	 * other threads that read it would fill it with zeroes again and again,
	 * and this thread would never get to write.
	 */
	ret = alloc_granule_copy(vmf, !page, folios);
	for (i = 0; page && !ret && i < PAGE_GRANULE_NR; i++)
		ret = copy_granule_page(vmf, i, page + i, folios);
	if (ret)
		return ret;

	mmu_notifier_range_init(&range, MMU_NOTIFY_CLEAR, 0, mm, start, end);
	mmu_notifier_invalidate_range_start(&range);
	pte = pte_offset_map_lock(mm, vmf->pmd, start, &vmf->ptl);
	/* Userfaultfd may have write-protected it: fault again for that. */
	copied = pte && pte_same(ptep_get(pte + nr), vmf->orig_pte) &&
		 granule_is_copied(vmf, pte, page);
	if (copied) {
		if (page) {
			add_mm_counter(mm, MM_ANONPAGES, -PAGE_GRANULE_NR);
		} else {
			for (i = 0; i < PAGE_GRANULE_NR; i++)
				ksm_might_unmap_zero_page(mm, ptep_get(pte + i));
		}
		/* Flush before other CPUs can see a write to the copy. */
		soft_dirty = pte_soft_dirty(ptep_get(pte));
		old = get_and_clear_ptes(mm, start, pte, PAGE_GRANULE_NR);
		if (!soft_dirty)
			old = pte_clear_soft_dirty(old);
		flush_tlb_ptes(vma, start, PAGE_GRANULE_NR);
		map_granule_copy(vmf, pte, old, folios);
		add_mm_counter(mm, MM_ANONPAGES, PAGE_GRANULE_NR);
		/* Only now, see wp_page_copy(). */
		if (page)
			folio_remove_rmap_ptes(old_folio, page, PAGE_GRANULE_NR,
					       vma);
	}
	if (pte)
		pte_unmap_unlock(pte, vmf->ptl);
	mmu_notifier_invalidate_range_end(&range);

	if (copied && page) {
		free_swap_cache(old_folio);
		folio_put_refs(old_folio, PAGE_GRANULE_NR);
	}
	/* If somebody was faster, the next fault sees it. */
	put_granule_folios(folios);
	return 0;
}

/**
 * wp_reuse_granule - wp_page_reuse() for a granule that is a run.
 * @vmf: A fault for a write, or to unshare, on an address in a granule.
 * @folio: The folio of the run: shared, or exclusive to this process. If it is of a
 *	   filesystem, it is locked, and page_mkwrite() has been called for it.
 *
 * The run stays in place. All its PTEs get the bits that the faulting PTE would
 * get::
 *
 *   PTEs   | r | r | r | . . . | r |    ->    | w | w | w | . . . | w |
 *   folio  [ 0   1   2   . . .   f ]          [ 0   1   2   . . .   f ]
 *            exclusive                          the same folio
 *
 * Context: vmf->pte is mapped and locked.
 * Return: true, with the PTE unmapped and unlocked, if the run was reused;
 * false, with nothing changed, if the granule is not a run, some pages are
 * shared, or the file ends in it.
 */
bool wp_reuse_granule(struct vm_fault *vmf, struct folio *folio)
	__releases(vmf->ptl)
{
	const unsigned long start = granule_start(vmf->address);
	const int nr = granule_index(vmf->address);
	const bool anon = folio_test_anon(folio);
	const bool exclusive = anon && PageAnonExclusive(vmf->page);
	struct vm_area_struct *vma = vmf->vma;
	struct page *page = vmf->page - nr;
	pte_t *pte = vmf->pte - nr;
	pte_t old, entry;
	bool folds;
	int i;

	if (!page_granule_is_whole(vma, vmf->address, vmf->pte))
		return false;
	/* The file may have been cut, and page_mkwrite() is for what is below. */
	if (!anon && granule_behind_eof(vmf))
		return false;

	for (i = 0; anon && i < PAGE_GRANULE_NR; i++) {
		/* Other pages may be shared if the granule was broken once. */
		if (exclusive && !PageAnonExclusive(page + i))
			return false;
		if (!exclusive)
			SetPageAnonExclusive(page + i);
	}

	if (!(vmf->flags & FAULT_FLAG_UNSHARE)) {
		/* See wp_page_reuse(). */
		folio_xchg_last_cpupid(folio, (1 << LAST_CPUPID_SHIFT) - 1);
		folds = page_granule_unfolded(pte, ptep_get(pte));
		old = modify_prot_start_ptes(vma, start, pte, PAGE_GRANULE_NR);
		if (folds)
			flush_tlb_ptes(vma, start, PAGE_GRANULE_NR);
		entry = pte_mkyoung(old);
		entry = maybe_mkwrite(pte_mkdirty(entry), vma);
		modify_prot_commit_ptes(vma, start, pte, old, entry,
					PAGE_GRANULE_NR);
		/* Stale TLB entries of the run cost one spurious fault each. */
		if (!folds)
			flush_tlb_fix_spurious_fault(vma, vmf->address,
						     vmf->pte);
		update_mmu_cache_range(vmf, vma, start, pte, PAGE_GRANULE_NR);
		count_vm_event(PGREUSE);
	}
	pte_unmap_unlock(vmf->pte, vmf->ptl);
	return true;
}

/**
 * mark_granule_soft_dirty - Mark all PTEs of a granule soft-dirty.
 * @vmf: A fault on an address in a granule, whose PTE is present.
 *
 * A read fault was faster than this write fault, and mapped the granule
 * writable. Marking only the faulting page soft-dirty would make the PTEs of
 * the run differ.
 *
 * Context: vmf->pte is mapped and locked.
 * Return: true, with the PTE unmapped and unlocked, if all PTEs were marked.
 */
bool mark_granule_soft_dirty(struct vm_fault *vmf)
{
	struct vm_area_struct *vma = vmf->vma;

	if (!(vmf->flags & FAULT_FLAG_WRITE) ||
	    !pgtable_supports_soft_dirty() || pte_soft_dirty(vmf->orig_pte))
		return false;

	vmf->page = vm_normal_page(vma, vmf->address, vmf->orig_pte);
	return vmf->page && wp_reuse_granule(vmf, page_folio(vmf->page));
}

/**
 * note_fault_granule - Account for a fault on shared memory.
 * @vmf: The fault, on an address in a granule.
 * @nr_pages: How many pages it is about to populate.
 *
 * If a fault cannot get single pages for the whole granule, its first page
 * counts.
 *
 * Context: vmf->pte is mapped and locked.
 */
void note_fault_granule(struct vm_fault *vmf, int nr_pages)
{
	if (nr_pages >= PAGE_GRANULE_NR)
		page_granule_note_fault(vmf->vma, vmf->address,
					GRANULE_FILL_FOLIO);
	else if (nr_pages == 1 && granule_wants_all(vmf, vmf->pte) &&
		 !granule_behind_eof(vmf))
		page_granule_note_fault(vmf->vma, vmf->address,
					GRANULE_FILL_SINGLE);
}

/**
 * granule_wants_pages - Do single pages populate a granule?
 * @vmf: A fault on an address in a granule; its PTE is neither mapped nor
 *	 locked.
 * @folio: The folio for the fault.
 *
 * Return: true if @folio is smaller because there was none for the granule, or
 * because the granule is populated in part and its holes are to be filled.
 */
bool granule_wants_pages(struct vm_fault *vmf, struct folio *folio)
{
	bool empty;
	pte_t *pte;

	if (folio_order(folio) >= PAGE_GRANULE_ORDER ||
	    userfaultfd_armed(vmf->vma))
		return false;

	if (pmd_none(*vmf->pmd) || vma_granule_fills(vmf->vma))
		return true;
	pte = pte_offset_map(vmf->pmd, vmf->address);
	if (!pte)
		return false;
	empty = granule_wants_all(vmf, pte);
	pte_unmap(pte);
	return empty;
}

/*
 * Lock the PTEs of the child and its parent from @addr on. Returns false, with
 * nothing locked, unless a granule begins at @addr in the parent that is whole,
 * and not of zero pages.
 */
static bool lock_granule_to_copy(struct vm_area_struct *dst_vma,
				 struct vm_area_struct *src_vma,
				 pmd_t *dst_pmd, pmd_t *src_pmd,
				 unsigned long addr, pte_t **dst_pte,
				 pte_t **src_pte, spinlock_t **dst_ptl,
				 spinlock_t **src_ptl)
{
	pmd_t dummy_pmdval;

	*dst_pte = pte_offset_map_lock(dst_vma->vm_mm, dst_pmd, addr, dst_ptl);
	if (!*dst_pte)
		return false;
	*src_pte = pte_offset_map_rw_nolock(src_vma->vm_mm, src_pmd, addr,
					    &dummy_pmdval, src_ptl);
	if (!*src_pte)
		goto unlock_dst;
	spin_lock_nested(*src_ptl, SINGLE_DEPTH_NESTING);
	if (page_granule_is_whole(src_vma, addr, *src_pte) &&
	    !is_zero_pfn(pte_pfn(ptep_get(*src_pte))))
		return true;

	pte_unmap_unlock(*src_pte, *src_ptl);
unlock_dst:
	pte_unmap_unlock(*dst_pte, *dst_ptl);
	return false;
}

/* copy_present_page() for a granule. Nobody else knows @folio yet. */
static int copy_present_granule(struct vm_area_struct *dst_vma,
				struct vm_area_struct *src_vma,
				pte_t *dst_pte, pte_t *src_pte,
				unsigned long addr, struct folio *folio)
{
	struct page *page = vm_normal_page(src_vma, addr, ptep_get(src_pte));
	pte_t pte;
	int i;

	for (i = 0; i < PAGE_GRANULE_NR; i++) {
		if (copy_mc_user_highpage(folio_page(folio, i), page + i,
					  addr + i * PAGE_SIZE, src_vma))
			return -EHWPOISON;
	}

	__folio_mark_uptodate(folio);
	add_mm_counter(dst_vma->vm_mm, MM_ANONPAGES, PAGE_GRANULE_NR);

	pte = folio_mk_pte(folio, dst_vma->vm_page_prot);
	pte = maybe_mkwrite(pte_mkdirty(pte), dst_vma);
	if (userfaultfd_protected(dst_vma) && pte_uffd(ptep_get(src_pte))) {
		pte = pte_mkuffd(pte);
		/* See copy_present_page(). */
		if (userfaultfd_rwp(dst_vma))
			pte = pte_modify(pte, PAGE_NONE);
	}
	map_new_anon_folio(folio, dst_pte, dst_vma, addr, pte);
	return PAGE_GRANULE_NR;
}

/**
 * copy_pinned_granule - Copy a granule that the parent has pinned at fork().
 * @dst_vma: The VMA of the child.
 * @src_vma: The VMA of the parent.
 * @dst_pmd: The PMD of the child, which has a page table.
 * @src_pmd: The PMD of the parent.
 * @addr: The address of a page that may be pinned, in a granule.
 *
 * This copies the whole granule if @addr is the first page of a whole granule.
 *
 * Context: The mmap locks of both are held for writing. Sleeps.
 * Return: the number of PTEs copied, 0 if the caller has to copy the page by
 * itself, or -EHWPOISON.
 */
int copy_pinned_granule(struct vm_area_struct *dst_vma,
			struct vm_area_struct *src_vma, pmd_t *dst_pmd,
			pmd_t *src_pmd, unsigned long addr)
{
	spinlock_t *dst_ptl, *src_ptl;
	pte_t *dst_pte, *src_pte;
	struct folio *folio;
	int ret = 0;

	mmap_assert_write_locked(dst_vma->vm_mm);
	mmap_assert_write_locked(src_vma->vm_mm);
	if (!IS_ALIGNED(addr, PAGE_GRANULE_SIZE) ||
	    !lock_granule_to_copy(dst_vma, src_vma, dst_pmd, src_pmd, addr,
				  &dst_pte, &src_pte, &dst_ptl, &src_ptl))
		goto single;
	pte_unmap_unlock(src_pte, src_ptl);
	pte_unmap_unlock(dst_pte, dst_ptl);

	folio = alloc_granule_folio(src_vma, addr);
	if (!folio) {
		count_vm_event(GRANULE_FALLBACK);
		goto single;
	}

	/* The granule may have been unmapped meanwhile. */
	if (lock_granule_to_copy(dst_vma, src_vma, dst_pmd, src_pmd, addr,
				 &dst_pte, &src_pte, &dst_ptl, &src_ptl)) {
		ret = copy_present_granule(dst_vma, src_vma, dst_pte, src_pte,
					   addr, folio);
		pte_unmap_unlock(src_pte, src_ptl);
		pte_unmap_unlock(dst_pte, dst_ptl);
	}
	if (ret <= 0)
		folio_put(folio);
	return ret;

single:
	page_granule_repair_later(dst_vma->vm_mm, granule_start(addr));
	return 0;
}
