// SPDX-License-Identifier: GPL-2.0-only
/*
 * Page granule: one folio for a granule of shared anonymous memory.
 *
 * Small folios of the page cache are copied to a folio of 64 KiB, which
 * replaces them there, as collapse_file() of khugepaged does for huge pages.
 */

#include <linux/kmsan.h>
#include <linux/memcontrol.h>
#include <linux/mm.h>
#include <linux/mm_inline.h>
#include <linux/pagemap.h>
#include <linux/rmap.h>
#include <linux/shmem_fs.h>
#include <linux/swap.h>
#include <linux/vmstat.h>

#include "internal.h"
#include "page_granule.h"

#include <trace/events/page_granule.h>

/*
 * Is the whole granule in the page cache, and on which node? Returns 0, 1 if
 * one folio holds it, or an error. Sets the memory cgroup that it is charged
 * to, with a reference.
 */
static int collapse_look_cache(struct address_space *mapping, pgoff_t index,
			       struct granule_target *target)
{
	unsigned int order;
	struct folio *folio;
	int i;

	for (i = 0; i < PAGE_GRANULE_NR; i++) {
		folio = filemap_get_entry(mapping, index + i);
		if (!folio)
			return -EINVAL;
		if (xa_is_value(folio))
			return -EAGAIN;
		order = folio_order(folio);
		if (!i) {
			target->nid = folio_nid(folio);
			target->memcg = get_mem_cgroup_from_folio(folio);
		}
		target->scattered |= folio_nid(folio) != target->nid;
		folio_put(folio);
		if (order >= PAGE_GRANULE_ORDER)
			return 1;
	}
	return 0;
}

/*
 * Lock the folios that hold a granule in the page cache, isolate them from the
 * LRU and put them on @list. This fails if anything but page tables references
 * one of them, because unmapping it would be in vain. The caller maps @mapped
 * of the pages, and maps them again afterwards. Pages that other page tables
 * map are unmapped only if @others is set. Returns 0, 1 if one folio holds the
 * granule, or an error.
 */
static int collapse_lock_cache(struct address_space *mapping, pgoff_t index,
			       unsigned int mapped, bool others,
			       struct list_head *list)
{
	const pgoff_t end = index + PAGE_GRANULE_NR;
	unsigned int mapcount = 0;
	struct folio *folio;
	int ret;

	while (index < end) {
		folio = filemap_get_entry(mapping, index);
		if (!folio)
			return -EINVAL;
		if (xa_is_value(folio))
			return -EAGAIN;

		ret = -EAGAIN;
		if (!folio_trylock(folio))
			goto put;
		if (folio->mapping != mapping || folio_test_writeback(folio))
			goto unlock;
		/* Do not unmap memory that others have locked. */
		if (folio_test_mlocked(folio) &&
		    (mapped < PAGE_GRANULE_NR || folio_maybe_mapped_shared(folio)))
			goto unlock;
		ret = 1;
		if (folio_order(folio) >= PAGE_GRANULE_ORDER)
			goto unlock;
		ret = -EINVAL;
		if (!folio_test_uptodate(folio) ||
		    folio_contain_hwpoisoned_page(folio))
			goto unlock;
		ret = -EAGAIN;
		if (folio_ref_count(folio) != folio_expected_ref_count(folio) + 1)
			goto unlock;
		if (!folio_isolate_lru(folio))
			goto unlock;

		list_add_tail(&folio->lru, list);
		index += folio_nr_pages(folio);
		mapcount += folio_mapcount(folio);
	}
	/* Others would take a fault for a granule that they did not ask for. */
	return mapcount <= mapped || others ? 0 : -EAGAIN;

unlock:
	folio_unlock(folio);
put:
	folio_put(folio);
	return ret;
}

static void collapse_unlock_cache(struct list_head *list)
{
	struct folio *folio, *next;

	list_for_each_entry_safe(folio, next, list, lru) {
		list_del(&folio->lru);
		folio_unlock(folio);
		folio_putback_lru(folio);
		folio_put(folio);
	}
}

/*
 * Unmap the folios. Anybody who uses them from now on finds them in the page
 * cache, and waits for their locks, so that their contents do not change. See
 * collapse_file().
 */
static int collapse_unmap_cache(struct list_head *list)
{
	struct folio *folio;
	int ret = 0;

	list_for_each_entry(folio, list, lru) {
		if (folio_mapped(folio))
			try_to_unmap(folio, TTU_IGNORE_MLOCK | TTU_BATCH_FLUSH);
	}
	list_for_each_entry(folio, list, lru) {
		/* References of the page cache, the isolation and our own. */
		if (folio_ref_count(folio) != folio_nr_pages(folio) + 2)
			ret = -EAGAIN;
	}
	/* Flush before copying, and if there is nothing to copy, too. */
	try_to_unmap_flush();
	return ret;
}

static int collapse_copy_cache(struct list_head *list, struct folio *new)
{
	struct folio *folio;
	int i, n = 0;

	list_for_each_entry(folio, list, lru) {
		for (i = 0; i < folio_nr_pages(folio); i++, n++) {
			if (copy_mc_highpage(folio_page(new, n),
					     folio_page(folio, i)))
				return -EINVAL;
			kmsan_copy_page_meta(folio_page(new, n),
					     folio_page(folio, i));
		}
	}
	return 0;
}

/* Replace the old folios in the page cache by @new, and free them. */
static void collapse_replace_cache(struct address_space *mapping, pgoff_t index,
				   struct list_head *list, struct folio *new)
{
	XA_STATE_ORDER(xas, &mapping->i_pages, index, PAGE_GRANULE_ORDER);
	struct folio *folio, *next;

	__folio_set_swapbacked(new);
	new->mapping = mapping;
	new->index = index;
	folio_mark_uptodate(new);
	folio_mark_dirty(new);
	/* One reference per page, including the one from the allocation. */
	folio_ref_add(new, PAGE_GRANULE_NR - 1);

	/* The locks keep the old folios in place, and thus the XArray node. */
	xas_lock_irq(&xas);
	lruvec_stat_mod_folio(new, NR_SHMEM, PAGE_GRANULE_NR);
	lruvec_stat_mod_folio(new, NR_FILE_PAGES, PAGE_GRANULE_NR);
	xas_store(&xas, new);
	WARN_ON_ONCE(xas_error(&xas));
	xas_unlock_irq(&xas);
	folio_add_lru(new);

	list_for_each_entry_safe(folio, next, list, lru) {
		const int nr = folio_nr_pages(folio);

		list_del(&folio->lru);
		lruvec_stat_mod_folio(folio, NR_SHMEM, -nr);
		lruvec_stat_mod_folio(folio, NR_FILE_PAGES, -nr);
		folio->mapping = NULL;
		folio_clear_active(folio);
		folio_clear_unevictable(folio);
		folio_unlock(folio);
		folio_put_refs(folio, nr + 2);
	}
}

/* Bring a granule into @folio. Returns as collapse_lock_cache(). */
static int collapse_to(struct address_space *mapping, pgoff_t index,
		       unsigned int mapped, bool others, struct folio *folio)
{
	LIST_HEAD(folios);
	int ret;

	__folio_set_locked(folio);
	ret = collapse_lock_cache(mapping, index, mapped, others, &folios);
	if (!ret)
		ret = collapse_unmap_cache(&folios);
	if (!ret)
		ret = collapse_copy_cache(&folios, folio);
	if (!ret)
		collapse_replace_cache(mapping, index, &folios, folio);
	else
		collapse_unlock_cache(&folios);
	folio_unlock(folio);
	if (ret)
		folio_put(folio);
	return ret;
}

/**
 * granule_collapse_shmem - Collapse a granule in the page cache.
 * @vma: A VMA of shared anonymous memory, not armed with userfaultfd.
 * @addr: Start of a granule of @vma.
 *
 * This does what collapse_file() of khugepaged does for huge pages, at the
 * order of a granule, and only if all its pages are in the page cache. Nobody
 * maps the granule afterwards: each process faults it in again as a whole.
 *
 * LRU batches reference pages that were added recently. The caller may want to
 * call lru_add_drain() first.
 *
 * Context: The mmap lock or the VMA lock is held, and no folio lock. May sleep.
 * Return: 0 if the granule is in one folio now, 1 if it was before; -EINVAL if
 * a page is missing or must not be moved; -EAGAIN if a page is in use or
 * swapped out; -ENOMEM if there is no folio for it; -EBUSY if the memory cgroup
 * is full.
 */
int granule_collapse_shmem(struct vm_area_struct *vma, unsigned long addr)
{
	struct address_space *mapping = vma->vm_file->f_mapping;
	const pgoff_t index = linear_page_index(vma, addr);
	struct granule_target target = {};
	struct folio *folio;
	int ret;

	if (!vma_granule_folios(vma))
		return -EINVAL;

	ret = collapse_look_cache(mapping, index, &target);
	if (!ret) {
		granule_target_set_policy(vma, addr, &target);
		/* The memory stays charged to the same memory cgroup. */
		folio = granule_target_alloc(&target, NULL, GFP_PAGE_GRANULE_CHARGE);
		ret = IS_ERR(folio) ? PTR_ERR(folio) :
		      collapse_to(mapping, index, 0, false, folio);
	}
	granule_target_put(&target);
	return ret;
}

/* How a page table populates a granule of shared memory. */
struct shared_state {
	unsigned int mapped;
	bool whole;
	bool soft_dirty;
	bool special;		/* swap entries and markers, which must stay */
};

static void collapse_look_shmem(struct vm_area_struct *vma, unsigned long addr,
				struct shared_state *state)
{
	pmd_t *pmd = granule_pmd(vma->vm_mm, addr);
	spinlock_t *ptl;
	pte_t *ptep;
	int i;

	if (!pmd)
		return;
	if (pmd_trans_huge(pmdp_get_lockless(pmd))) {
		state->whole = true;
		return;
	}
	ptep = pte_offset_map_lock(vma->vm_mm, pmd, addr, &ptl);
	if (!ptep)
		return;
	for (i = 0; i < PAGE_GRANULE_NR; i++) {
		const pte_t pte = ptep_get(ptep + i);

		if (pte_none(pte))
			continue;
		state->mapped++;
		if (!pte_present(pte))
			state->special = true;
		else if (pgtable_supports_soft_dirty() && pte_soft_dirty(pte))
			state->soft_dirty = true;
	}
	state->whole = page_granule_pte_state(vma, addr, ptep) ==
		       PAGE_GRANULE_WHOLE;
	pte_unmap_unlock(ptep, ptl);
}

/* Look at a granule of shared memory, see granule_collapse_prepare(). */
int granule_collapse_prepare_shmem(struct vm_area_struct *vma, unsigned long addr,
				   struct granule_target *target)
{
	struct shared_state state = {};
	int ret;

	collapse_look_shmem(vma, addr, &state);
	if (state.whole)
		return 1;
	if (state.special)
		return -EINVAL;
	ret = collapse_look_cache(vma->vm_file->f_mapping,
				  linear_page_index(vma, addr), target);
	/* One folio holds the granule, but it is not mapped as a whole yet. */
	return ret == 1 ? 0 : ret;
}

/*
 * Bring a granule of shared memory into one folio, and map it as a whole.
 * Returns as granule_collapse_finish().
 */
int granule_collapse_finish_shmem(struct vm_area_struct *vma, unsigned long addr,
				  bool others, struct folio *folio)
{
	unsigned int flags = FAULT_FLAG_REMOTE;
	struct shared_state state = {};
	int ret;

	collapse_look_shmem(vma, addr, &state);
	if (state.whole || state.special) {
		folio_put(folio);
		return state.whole ? 0 : -EAGAIN;
	}
	ret = collapse_to(vma->vm_file->f_mapping, linear_page_index(vma, addr),
			  state.mapped, others, folio);
	if (!ret) {
		count_vm_event(GRANULE_REPAIR);
		trace_page_granule_repair(vma->vm_mm, addr);
	}
	/* Map it here. Others fault it in, and so do we if this fails. */
	if (state.mapped && ret >= 0) {
		if (ret == 1)
			zap_vma_range(vma, addr, PAGE_GRANULE_SIZE);
		/* Tracking may report too much, but not too little. */
		if (state.soft_dirty && (vma->vm_flags & VM_WRITE))
			flags |= FAULT_FLAG_WRITE;
		handle_mm_fault(vma, addr, flags, NULL);
	}
	return min(ret, 0);
}
