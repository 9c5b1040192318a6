// SPDX-License-Identifier: GPL-2.0-only
/*
 * Page granule: shared memory.
 *
 * A fault brings all of a granule into the page cache, and maps it.
 */

#include <linux/memcontrol.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/shmem_fs.h>
#include <linux/swap.h>
#include <linux/userfaultfd_k.h>
#include <linux/vmstat.h>

#include "internal.h"
#include "page_granule.h"

/**
 * page_granule_monitored - Does userfaultfd monitor missing pages of a granule?
 * @mapping: The shared memory.
 * @index: A page of the granule.
 *
 * A monitor of missing pages fills each of them itself, whatever mapping the
 * first fault comes from.
 *
 * Context: May sleep.
 * Return: true if any VMA of the granule is monitored.
 */
bool page_granule_monitored(struct address_space *mapping, pgoff_t index)
{
	struct vm_area_struct *vma;
	bool monitored = false;

	if (likely(!mapping_uffd_missing(mapping)))
		return false;

	index &= ~(pgoff_t)(PAGE_GRANULE_NR - 1);
	i_mmap_lock_read(mapping);
	mapping_rmap_tree_foreach(vma, mapping, index,
				  index + PAGE_GRANULE_NR - 1) {
		monitored = userfaultfd_missing(vma);
		if (monitored)
			break;
	}
	i_mmap_unlock_read(mapping);
	return monitored;
}

/* How many VMAs of a granule page_granule_mapped() looks at */
#define GRANULE_MAPPED_LOOKS	64

/**
 * page_granule_mapped - Does a tagged VMA map a granule of a file?
 * @mapping: The shared memory.
 * @index: A page of the granule.
 *
 * Context: May sleep.
 * Return: true if any of the first VMAs of the granule may have folios for it,
 * and userfaultfd does not monitor missing pages of any.
 */
bool page_granule_mapped(struct address_space *mapping, pgoff_t index)
{
	struct vm_area_struct *vma;
	unsigned int looks = 0;
	bool mapped = false;

	if (likely(!mapping_granule(mapping)) || page_granule_monitored(mapping, index))
		return false;

	index &= ~(pgoff_t)(PAGE_GRANULE_NR - 1);
	i_mmap_lock_read(mapping);
	mapping_rmap_tree_foreach(vma, mapping, index,
				  index + PAGE_GRANULE_NR - 1) {
		mapped = vma_granule_active(vma) && vma_granule_folios(vma);
		/* Others may have mapped it many times since. */
		if (mapped || ++looks == GRANULE_MAPPED_LOOKS)
			break;
	}
	i_mmap_unlock_read(mapping);
	return mapped;
}

/*
 * Count the pages of the granule at @index that are in the page cache or
 * swapped out, and set *@swapped if any is swapped out. A larger folio counts
 * as the whole granule.
 */
static unsigned int granule_nr_cached(struct address_space *mapping, pgoff_t index,
				      bool *swapped)
{
	XA_STATE(xas, &mapping->i_pages, index);
	unsigned int nr = 0;
	void *entry;

	rcu_read_lock();
	xas_for_each(&xas, entry, index + PAGE_GRANULE_NR - 1) {
		if (xas_retry(&xas, entry))
			continue;
		*swapped |= xa_is_value(entry);
		nr += 1U << min(xas_get_order(&xas), PAGE_GRANULE_ORDER);
	}
	rcu_read_unlock();
	return min(nr, PAGE_GRANULE_NR);
}

/*
 * Bring a whole granule into the page cache. Pages that nobody asked for are
 * not worth an OOM kill, except under a contract.
 */
static bool read_shared_granule(struct vm_area_struct *vma, pgoff_t index)
{
	struct address_space *mapping = vma->vm_file->f_mapping;
	gfp_t gfp = mapping_gfp_mask(mapping);
	struct mem_cgroup *memcg, *old_memcg;
	struct folio *folio = NULL;
	int i;

	if (!vma_granule_contract(vma))
		gfp |= __GFP_NORETRY | __GFP_NOWARN;

	/* Charge the address space of the VMA, even if others fault for it. */
	memcg = get_mem_cgroup_from_mm(vma->vm_mm);
	old_memcg = set_active_memcg(memcg);
	for (i = 0; i < PAGE_GRANULE_NR; i++) {
		folio = shmem_read_folio_gfp(mapping, index + i, gfp);
		if (IS_ERR(folio))
			break;
		folio_put(folio);
	}
	set_active_memcg(old_memcg);
	mem_cgroup_put(memcg);
	return !IS_ERR(folio);
}

/*
 * Populate a granule of shared memory that is at least partly in small folios.
 * This brings all of it into the page cache, and into one folio if possible. It
 * also serves granules that were in the page cache already, or were swapped out
 * page by page.
 *
 * @cached says that all of the granule was in the page cache or swapped out,
 * rather than none of it. @swapped says that some of it was swapped out.
 *
 * Return 0 if the fault can go on with the current page cache, VM_FAULT_NOPAGE
 * if there is no folio and single pages have been mapped, or an error.
 */
static vm_fault_t populate_shared_granule(struct vm_fault *vmf, bool cached,
					  bool swapped)
{
	const unsigned long start = granule_start(vmf->address);
	struct vm_area_struct *vma = vmf->vma;
	struct address_space *mapping = vma->vm_file->f_mapping;
	const pgoff_t index = linear_page_index(vma, start);
	vm_fault_t ret;

	/* mremap() can make the mapping longer than the memory. */
	if (index + PAGE_GRANULE_NR >
	    DIV_ROUND_UP(i_size_read(mapping->host), PAGE_SIZE))
		return 0;
	/* A monitor of missing pages fills them itself. */
	if (!cached && page_granule_monitored(mapping, index))
		return 0;
	/* Pages that nobody asked for would stay charged. */
	if (!cached && !vma_granule_contract(vma) &&
	    !granule_has_room(vma))
		return 0;
	if (swapped && !page_granule_may_swap_in(vma))
		return 0;
	/* A granule needs all its pages. */
	if (!read_shared_granule(vma, index))
		return 0;

	/* If nothing was there, no folio could be allocated just now. */
	if (cached) {
		if (granule_collapse_cached(vma, start) >= 0) {
			if (swapped)
				page_granule_count_swapin(PAGE_GRANULE_NR);
			return 0;
		}
	}

	/* System V segments are mapped page by page. */
	if (!vma->vm_ops->map_pages)
		return 0;
	ret = do_fault_around(vmf, PAGE_GRANULE_NR);
	if (ret & VM_FAULT_NOPAGE) {
		if (swapped)
			count_vm_event(GRANULE_SWPIN_FALLBACK);
		page_granule_note_fault(vma, start, GRANULE_FILL_SINGLE);
		/* Others may have mapped some of the pages meanwhile. */
		vmf->pte = pte_offset_map_lock(vma->vm_mm, vmf->pmd,
					       vmf->address, &vmf->ptl);
		if (vmf->pte) {
			fold_or_repair_granule(vmf);
			pte_unmap_unlock(vmf->pte, vmf->ptl);
		}
	}
	return ret;
}

/**
 * do_fault_granule - __do_fault() for a whole granule of shared memory.
 * @vmf: A fault on an address in a granule; its PTE is neither mapped nor
 *	 locked.
 *
 * A program has left or made the holes between pages of a granule. They stay.
 *
 * Return: as __do_fault(), or VM_FAULT_NOPAGE if there is no folio and single
 * pages have been mapped.
 */
vm_fault_t do_fault_granule(struct vm_fault *vmf)
{
	struct vm_area_struct *vma = vmf->vma;
	const pgoff_t index = linear_page_index(vma, granule_start(vmf->address));
	bool swapped = false;
	struct folio *folio;
	unsigned int nr;
	vm_fault_t ret;

	if (!shmem_mapping(vma->vm_file->f_mapping)) {
		/* For a read, granule_fault_around() has done this. */
		if (vmf->flags & FAULT_FLAG_WRITE)
			granule_convert(vmf);
		return __do_fault(vmf);
	}

	nr = granule_nr_cached(vma->vm_file->f_mapping, index, &swapped);
	ret = __do_fault(vmf);
	if (ret & (VM_FAULT_ERROR | VM_FAULT_NOPAGE | VM_FAULT_RETRY))
		return ret;
	folio = page_folio(vmf->page);
	if ((nr && nr < PAGE_GRANULE_NR) || !granule_wants_pages(vmf, folio))
		return ret;

	/* Do not hold the lock of one folio while waiting for others. */
	folio_unlock(folio);
	folio_put(folio);
	vmf->page = NULL;
	ret &= VM_FAULT_MAJOR;
	ret |= populate_shared_granule(vmf, nr, swapped);
	if (ret & (VM_FAULT_ERROR | VM_FAULT_NOPAGE))
		return ret;
	return __do_fault(vmf) | ret;
}
