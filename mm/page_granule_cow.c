// SPDX-License-Identifier: GPL-2.0-only
/*
 * Page granule: private copies of granules of files.
 *
 * The first write to a private mapping of a file copies the whole granule, as
 * long as none of it has been copied before.
 */

#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/oom.h>
#include <linux/pagemap.h>
#include <linux/rmap.h>
#include <linux/userfaultfd_k.h>

#include "internal.h"
#include "page_granule.h"

/* Results of __do_fault() without a page */
#define COW_FAULT_ENDS	(VM_FAULT_ERROR | VM_FAULT_NOPAGE | VM_FAULT_RETRY)

/* Whoever faults on a page of the granule locks its folio for a moment. */
#define COW_TRIES	PAGE_GRANULE_NR

/* What to copy. The folios are referenced and locked, but for that in @busy. */
struct cow_source {
	struct page *pages[PAGE_GRANULE_NR];
	struct folio *folios[PAGE_GRANULE_NR];
	unsigned int nr_folios;
	struct folio *busy;
};

/*
 * Is all of the granule below the end of the file? Nothing behind that is to be
 * accessible, as it would be in a copy.
 */
static bool cow_below_eof(struct vm_fault *vmf)
{
	struct inode *inode = vmf->vma->vm_file->f_mapping->host;

	return round_down(vmf->pgoff, PAGE_GRANULE_NR) + PAGE_GRANULE_NR <=
	       DIV_ROUND_UP(i_size_read(inode), PAGE_SIZE);
}

/* Is all of the granule cached? A hint only. */
static bool cow_looks_cached(struct vm_fault *vmf)
{
	struct address_space *mapping = vmf->vma->vm_file->f_mapping;
	pgoff_t next, index = round_down(vmf->pgoff, PAGE_GRANULE_NR);
	const pgoff_t end = index + PAGE_GRANULE_NR;
	struct folio *folio;

	for (; index < end; index = next) {
		folio = filemap_get_entry(mapping, index);
		if (!folio || xa_is_value(folio))
			return false;
		next = folio_test_uptodate(folio) ? folio_next_index(folio) : 0;
		folio_put(folio);
		if (next <= index)
			return false;
	}
	return true;
}

/*
 * Is nothing mapped but pages of the file, and what is accessed as it was? The
 * PTEs at @pte are locked. Sets @mapped to those that are. With @src, they have
 * to map the pages in it.
 */
static bool cow_may_unmap(struct vm_fault *vmf, pte_t *pte, const struct cow_source *src,
			  unsigned long *mapped)
{
	const unsigned int nr = granule_index(vmf->address);
	unsigned long addr = granule_start(vmf->address);
	unsigned int i;

	if (vmf->page ? !pte_same(ptep_get(pte + nr), vmf->orig_pte) :
	    !pte_none(ptep_get(pte + nr)))
		return false;
	*mapped = 0;
	for (i = 0; i < PAGE_GRANULE_NR; i++, addr += PAGE_SIZE) {
		const pte_t ptent = ptep_get(pte + i);
		struct page *page;

		if (pte_none(ptent))
			continue;
		page = pte_present(ptent) && !pte_uffd(ptent) ?
		       vm_normal_page(vmf->vma, addr, ptent) : NULL;
		if (!page || PageAnon(page) || (src && page != src->pages[i]))
			return false;
		__set_bit(i, mapped);
	}
	return true;
}

/* Has no page been copied before? A hint only. */
static bool cow_looks_possible(struct vm_fault *vmf)
{
	unsigned long mapped;
	bool possible;
	pte_t *pte;

	if (pmd_none(*vmf->pmd))
		return true;
	pte = pte_offset_map_lock(vmf->vma->vm_mm, vmf->pmd,
				  granule_start(vmf->address), &vmf->ptl);
	if (!pte)
		return false;
	possible = cow_may_unmap(vmf, pte, NULL, &mapped);
	pte_unmap_unlock(pte, vmf->ptl);
	return possible;
}

/*
 * Find all pages, and lock their folios. Never waits while it has locked any: if
 * one is locked by somebody else, that is in @src->busy, and referenced. Returns
 * false if so, or if any page cannot be copied.
 */
static bool cow_lock_source(struct vm_fault *vmf, struct cow_source *src)
{
	struct address_space *mapping = vmf->vma->vm_file->f_mapping;
	pgoff_t index = round_down(vmf->pgoff, PAGE_GRANULE_NR);
	struct folio *folio;
	unsigned int i = 0;

	while (i < PAGE_GRANULE_NR) {
		folio = filemap_get_entry(mapping, index);
		if (!folio || xa_is_value(folio))
			return false;
		if (!folio_trylock(folio)) {
			src->busy = folio;
			return false;
		}
		src->folios[src->nr_folios++] = folio;
		if (folio->mapping != mapping || !folio_contains(folio, index) ||
		    !folio_test_uptodate(folio))
			return false;
		for (; i < PAGE_GRANULE_NR && index < folio_next_index(folio); i++, index++) {
			src->pages[i] = folio_file_page(folio, index);
			if (PageHWPoison(src->pages[i]))
				return false;
		}
	}
	return cow_below_eof(vmf);
}

/* Unlock the first folio last: who waits for that then finds the others unlocked. */
static void cow_put_source(struct cow_source *src)
{
	while (src->nr_folios) {
		struct folio *folio = src->folios[--src->nr_folios];

		folio_unlock(folio);
		folio_put(folio);
	}
}

/*
 * A folio is locked by somebody else, perhaps by a thread that copies the same
 * granule. Wait as for a page that is swapped in: the first time without the mmap
 * lock. Never gets the lock from somebody else, who may soon want it again. Returns
 * VM_FAULT_RETRY if it has waited without the mmap lock, 0, or VM_FAULT_FALLBACK if
 * the process is killed.
 */
static vm_fault_t cow_wait_for_busy(struct vm_fault *vmf, struct cow_source *src)
{
	vm_fault_t ret = 0;

	cow_put_source(src);
	if (fault_flag_allow_retry_first(vmf->flags)) {
		ret = folio_lock_or_retry(src->busy, vmf);
		if (!ret)
			folio_unlock(src->busy);
	} else if (folio_wait_locked_killable(src->busy)) {
		ret = VM_FAULT_FALLBACK;
	}
	folio_put(src->busy);
	src->busy = NULL;
	return ret;
}

/* Remove the PTEs in @mapped, and what they account for. */
static void cow_remove_ptes(struct vm_area_struct *vma, unsigned long start, pte_t *pte,
			    const struct cow_source *src, unsigned long mapped)
{
	struct mm_struct *mm = vma->vm_mm;
	unsigned int i, nr;

	if (page_granule_ptes_run(pte)) {
		clear_ptes(mm, start, pte, PAGE_GRANULE_NR);
	} else {
		for_each_set_bit(i, &mapped, PAGE_GRANULE_NR)
			ptep_get_and_clear(mm, start + i * PAGE_SIZE, pte + i);
	}
	flush_tlb_ptes(vma, start, PAGE_GRANULE_NR);

	for (i = 0; i < PAGE_GRANULE_NR; i += nr) {
		struct folio *folio = page_folio(src->pages[i]);

		nr = 1;
		if (!test_bit(i, &mapped))
			continue;
		while (i + nr < PAGE_GRANULE_NR && test_bit(i + nr, &mapped) &&
		       page_folio(src->pages[i + nr]) == folio)
			nr++;
		add_mm_counter(mm, mm_counter_file(folio), -(long)nr);
		folio_remove_rmap_ptes(folio, src->pages[i], nr, vma);
		folio_put_refs(folio, nr);
	}
}

/*
 * Unmap the pages before they are copied. Otherwise a thread that reads one could
 * see what was written to the file meanwhile, and later the older copy. It finds
 * the folios locked until then. Returns 0, or VM_FAULT_FALLBACK if something else
 * is mapped.
 */
static vm_fault_t cow_unmap(struct vm_fault *vmf, const struct cow_source *src)
{
	const unsigned long start = granule_start(vmf->address);
	struct vm_area_struct *vma = vmf->vma;
	struct mm_struct *mm = vma->vm_mm;
	struct mmu_notifier_range range;
	unsigned long mapped;
	vm_fault_t ret = 0;
	pte_t *pte;

	if (pmd_none(*vmf->pmd))
		return 0;
	mmu_notifier_range_init(&range, MMU_NOTIFY_CLEAR, 0, mm, start,
				start + PAGE_GRANULE_SIZE);
	mmu_notifier_invalidate_range_start(&range);
	pte = pte_offset_map_lock(mm, vmf->pmd, start, &vmf->ptl);
	if (!pte)
		goto out;
	if (!cow_may_unmap(vmf, pte, src, &mapped))
		ret = VM_FAULT_FALLBACK;
	else if (mapped)
		cow_remove_ptes(vma, start, pte, src, mapped);
	pte_unmap_unlock(pte, vmf->ptl);
out:
	mmu_notifier_invalidate_range_end(&range);
	return ret;
}

/* Map the copy unless something is mapped now. Returns 0 or an error. */
static vm_fault_t cow_map(struct vm_fault *vmf, struct folio **folios)
{
	const unsigned long start = granule_start(vmf->address);
	struct mm_struct *mm = vmf->vma->vm_mm;
	vm_fault_t ret;
	pte_t *pte;

	ret = check_stable_address_space(mm);
	if (ret)
		return ret;
	if (pmd_none(*vmf->pmd)) {
		/* There is one, see __do_fault(), unless the table has just gone. */
		if (!vmf->prealloc_pte)
			return 0;
		pmd_install(mm, vmf->pmd, &vmf->prealloc_pte);
	}
	pte = pte_offset_map_lock(mm, vmf->pmd, start, &vmf->ptl);
	if (!pte)
		return 0;
	if (pte_range_none(pte, PAGE_GRANULE_NR)) {
		map_granule_copy(vmf, pte, __pte(0), folios);
		add_mm_counter(mm, MM_ANONPAGES, PAGE_GRANULE_NR);
	}
	pte_unmap_unlock(pte, vmf->ptl);
	return 0;
}

/* Read what is accessed, and what is read with it, unless it is mapped. */
static vm_fault_t cow_read(struct vm_fault *vmf)
{
	vm_fault_t ret;

	if (vmf->page)
		return 0;
	ret = __do_fault(vmf);
	if (ret & COW_FAULT_ENDS)
		return ret;
	unlock_page(vmf->page);
	put_page(vmf->page);
	vmf->page = NULL;
	return ret & VM_FAULT_MAJOR;
}

/**
 * cow_file_granule - Copy a granule of a file that is written to.
 * @vmf: A fault for a write to a private mapping, on an address in a granule.
 *	 vmf->page is the page that is mapped there, and referenced, or NULL if
 *	 none is. The PTE is neither mapped nor locked.
 *
 * The pages may be in one folio of the page cache, or in several, and some may
 * be mapped::
 *
 *            before                       after, one folio
 *   PTEs   | r |   | r | . . . |   |      | w | w | w | . . . | w |
 *   pages  [ 0   1 ] [ 2 ] . . . [ f ]    [ 0'  1'  2'  . . .   f']
 *
 * What may not be written to is copied page by page: a debugger writes to text,
 * and nobody else will. So is a granule that the file ends in, or of which a
 * page has been copied before.
 *
 * Context: The mmap lock or the VMA lock is held, until this returns
 * VM_FAULT_RETRY. May sleep.
 * Return: 0 or VM_FAULT_MAJOR if the granule was copied, or has changed
 * meanwhile; VM_FAULT_FALLBACK, perhaps with VM_FAULT_MAJOR, if it must not be
 * copied as a whole; VM_FAULT_RETRY if a folio was locked; an error of
 * __do_fault().
 */
vm_fault_t cow_file_granule(struct vm_fault *vmf)
{
	struct folio *folios[PAGE_GRANULE_NR] = {};
	struct vm_area_struct *vma = vmf->vma;
	struct cow_source src = {};
	vm_fault_t ret, major;
	unsigned int i, tries;

	if (!(vma->vm_flags & VM_WRITE) || (vmf->flags & FAULT_FLAG_UNSHARE) ||
	    userfaultfd_armed(vma) || !cow_below_eof(vmf))
		return VM_FAULT_FALLBACK;

	/* While there is nothing to release if the fault has to be retried */
	major = cow_read(vmf);
	if (major & COW_FAULT_ENDS)
		return major;
	if (!cow_looks_cached(vmf) || !cow_looks_possible(vmf))
		return VM_FAULT_FALLBACK | major;
	ret = alloc_granule_copy(vmf, false, folios);
	if (ret)
		return ret | major;
	for (tries = 0; !cow_lock_source(vmf, &src); tries++) {
		ret = src.busy && tries < COW_TRIES ? cow_wait_for_busy(vmf, &src) :
		      VM_FAULT_FALLBACK;
		if (ret)
			goto out;
	}
	ret = cow_unmap(vmf, &src);
	for (i = 0; !ret && i < PAGE_GRANULE_NR; i++)
		ret = copy_granule_page(vmf, i, src.pages[i], folios);
	if (!ret)
		ret = cow_map(vmf, folios);
out:
	cow_put_source(&src);
	if (src.busy)
		folio_put(src.busy);
	put_granule_folios(folios);
	return ret | major;
}
