// SPDX-License-Identifier: GPL-2.0-only
/*
 * Page granule: one folio for a granule in the page cache.
 *
 * Small folios of files and of shared memory are copied to a folio of 64 KiB,
 * which replaces them there, as collapse_file() of khugepaged does for huge
 * pages. Nothing is dropped or read again. Only MADV_COLLAPSE unmaps pages that
 * other processes map.
 */

#include <linux/dax.h>
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
 * Does a filesystem need the folio as it is? What was written has to reach the
 * disk first; shared memory has no disk.
 */
static bool collapse_unwritten(struct address_space *mapping, struct folio *folio)
{
	return folio_test_writeback(folio) ||
	       (folio_test_dirty(folio) && !shmem_mapping(mapping));
}

/*
 * May a granule that ends at @end be in one folio? A filesystem may have changed
 * its mind about large folios since it was mapped. Truncation handles a folio
 * that holds the new end before it drops those behind.
 */
static bool collapse_allowed(struct address_space *mapping, pgoff_t end)
{
	if (shmem_mapping(mapping))
		return true;
	return mapping_max_folio_order(mapping) >= PAGE_GRANULE_ORDER &&
	       end <= DIV_ROUND_UP(i_size_read(mapping->host), PAGE_SIZE);
}

/*
 * May a file be converted for this caller? A large folio makes small writes
 * larger, which is not for those to decide who may only read.
 */
static bool collapse_may_convert(struct vm_area_struct *vma, unsigned long addr)
{
	struct address_space *mapping = vma->vm_file->f_mapping;

	return collapse_allowed(mapping, linear_page_index(vma, addr) + PAGE_GRANULE_NR) &&
	       (shmem_mapping(mapping) || !mapping_writably_mapped(mapping) ||
		vma->vm_file->f_mode & FMODE_WRITE);
}

/*
 * Would a write split the folio again, for want of space? Then a file is converted
 * only if somebody asks for it.
 */
static bool collapse_in_vain(struct vm_area_struct *vma)
{
	struct address_space *mapping = vma->vm_file->f_mapping;

	return !shmem_mapping(mapping) && mapping_writably_mapped(mapping) &&
	       granule_lacks_space(vma->vm_file, num_online_cpus() * PAGE_GRANULE_SIZE);
}

/*
 * Is the whole granule in the page cache, and on which node? The caller maps
 * @mapped of its pages. Returns 0, 1 if one folio holds it, or an error. Sets
 * the memory cgroup that it is charged to, with a reference. If that is more
 * than one, only who asks for it may take the charge over.
 */
static int collapse_look_cache(struct address_space *mapping, pgoff_t index,
			       unsigned int mapped, struct granule_target *target)
{
	unsigned int order, mapcount = 0;
	bool busy, mixed = false;
	struct mem_cgroup *memcg;
	struct folio *folio;
	pgoff_t next;

	for (next = index; next < index + PAGE_GRANULE_NR;) {
		folio = filemap_get_entry(mapping, next);
		/* Evicted pages of a file leave a value behind. */
		if (!folio || (xa_is_value(folio) && !shmem_mapping(mapping)))
			return -EINVAL;
		if (xa_is_value(folio))
			return -EAGAIN;
		order = folio_order(folio);
		memcg = get_mem_cgroup_from_folio(folio);
		if (next == index) {
			target->nid = folio_nid(folio);
			target->memcg = memcg;
		} else {
			mixed |= memcg != target->memcg;
			mem_cgroup_put(memcg);
		}
		target->scattered |= folio_nid(folio) != target->nid;
		busy = collapse_unwritten(mapping, folio) || folio_test_locked(folio) ||
		       !folio_test_uptodate(folio);
		mapcount += folio_mapcount(folio);
		next = folio_next_index(folio);
		folio_put(folio);
		if (order >= PAGE_GRANULE_ORDER)
			return 1;
		if (busy)
			return -EAGAIN;
	}
	if (target->others && mixed) {
		mem_cgroup_put(target->memcg);
		target->memcg = NULL;
	}
	/* Do not try again: others may map it for as long as they live. */
	return target->others || (mapcount <= mapped && !mixed) ? 0 : -EINVAL;
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
		if (folio->mapping != mapping)
			goto unlock;
		ret = 1;
		if (folio_order(folio) >= PAGE_GRANULE_ORDER)
			goto unlock;
		ret = -EAGAIN;
		if (collapse_unwritten(mapping, folio))
			goto unlock;
		if (!others && folio_maybe_mapped_shared(folio))
			goto unlock;
		/* Do not unmap memory that others have locked. */
		if (folio_test_mlocked(folio) &&
		    (mapped < PAGE_GRANULE_NR || folio_maybe_mapped_shared(folio)))
			goto unlock;
		ret = -EINVAL;
		if (!folio_test_uptodate(folio) ||
		    folio_contain_hwpoisoned_page(folio))
			goto unlock;
		ret = -EAGAIN;
		/* Do not wait for the filesystem. */
		if (!filemap_release_folio(folio, GFP_NOFS))
			goto unlock;
		if (folio_ref_count(folio) != folio_expected_ref_count(folio) + 1)
			goto unlock;
		if (!folio_isolate_lru(folio))
			goto unlock;

		list_add_tail(&folio->lru, list);
		index += folio_nr_pages(folio);
		mapcount += folio_mapcount(folio);
	}
	/* The locks keep the size, and what the filesystem allows, as they are. */
	if (!collapse_allowed(mapping, end))
		return -EINVAL;
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
static int collapse_unmap_cache(struct address_space *mapping, struct list_head *list)
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
		/* A PTE may have been dirty. */
		if (collapse_unwritten(mapping, folio))
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

/*
 * Freeze the references of the old folios, so that nobody waits for the lock of
 * a folio that is about to leave the page cache: invalidation would take its
 * range for done.
 */
static bool collapse_freeze_cache(struct list_head *list)
{
	struct folio *folio;

	list_for_each_entry(folio, list, lru) {
		if (!folio_ref_freeze(folio, folio_nr_pages(folio) + 2))
			goto unfreeze;
	}
	return true;

unfreeze:
	list_for_each_entry_continue_reverse(folio, list, lru)
		folio_ref_unfreeze(folio, folio_nr_pages(folio) + 2);
	return false;
}

/*
 * Replace the old folios in the page cache by @new, and free them. Returns
 * -EAGAIN if somebody has found one of them meanwhile.
 */
static int collapse_replace_cache(struct address_space *mapping, pgoff_t index,
				  struct list_head *list, struct folio *new)
{
	XA_STATE_ORDER(xas, &mapping->i_pages, index, PAGE_GRANULE_ORDER);
	const bool shmem = shmem_mapping(mapping);
	struct folio *folio, *next;

	/* The locks keep the old folios in place, and thus the XArray node. */
	mapping_set_update(&xas, mapping);
	xas_lock_irq(&xas);
	if (!collapse_freeze_cache(list)) {
		xas_unlock_irq(&xas);
		return -EAGAIN;
	}
	if (shmem)
		__folio_set_swapbacked(new);
	new->mapping = mapping;
	new->index = index;
	folio_mark_uptodate(new);
	if (shmem)
		folio_mark_dirty(new);
	/* Reclaim must not take it for less used than it is. */
	list_for_each_entry(folio, list, lru) {
		if (folio_test_active(folio))
			folio_set_active(new);
		if (folio_test_workingset(folio))
			folio_set_workingset(new);
		if (folio_test_referenced(folio))
			folio_set_referenced(new);
		/* Nor is readahead to end here. */
		if (folio_test_readahead(folio))
			folio_set_readahead(new);
	}
	/* One reference per page, including the one from the allocation. */
	folio_ref_add(new, PAGE_GRANULE_NR - 1);

	if (shmem)
		lruvec_stat_mod_folio(new, NR_SHMEM, PAGE_GRANULE_NR);
	lruvec_stat_mod_folio(new, NR_FILE_PAGES, PAGE_GRANULE_NR);
	xas_store(&xas, new);
	WARN_ON_ONCE(xas_error(&xas));
	xas_unlock_irq(&xas);
	folio_add_lru(new);

	list_for_each_entry_safe(folio, next, list, lru) {
		const int nr = folio_nr_pages(folio);

		list_del(&folio->lru);
		if (shmem)
			lruvec_stat_mod_folio(folio, NR_SHMEM, -nr);
		lruvec_stat_mod_folio(folio, NR_FILE_PAGES, -nr);
		folio->mapping = NULL;
		folio_clear_active(folio);
		folio_clear_unevictable(folio);
		folio_ref_unfreeze(folio, nr + 2);
		folio_unlock(folio);
		folio_put_refs(folio, nr + 2);
	}
	return 0;
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
		ret = collapse_unmap_cache(mapping, &folios);
	if (!ret)
		ret = collapse_copy_cache(&folios, folio);
	if (!ret)
		ret = collapse_replace_cache(mapping, index, &folios, folio);
	if (ret)
		collapse_unlock_cache(&folios);
	folio_unlock(folio);
	if (ret)
		folio_put(folio);
	return ret;
}

/**
 * granule_collapse_cached - Collapse a granule in the page cache.
 * @vma: A VMA of a file or of shared memory, not armed with userfaultfd.
 * @addr: Start of a granule of @vma.
 *
 * This does what collapse_file() of khugepaged does for huge pages, at the
 * order of a granule, and only if all its pages are in the page cache, and
 * nobody maps them.
 *
 * Context: The mmap lock or the VMA lock is held, and no folio lock. May sleep.
 * Return: 0 if the granule is in one folio now, 1 if it was before; -EINVAL if
 * a page is missing or must not be moved; -EAGAIN if a page is in use or
 * swapped out; -ENOMEM if there is no folio for it; -EBUSY if the memory cgroup
 * is full.
 */
int granule_collapse_cached(struct vm_area_struct *vma, unsigned long addr)
{
	struct address_space *mapping = vma->vm_file->f_mapping;
	const pgoff_t index = linear_page_index(vma, addr);
	struct granule_target target = {};
	struct folio *folio;
	int ret;

	if (!vma_granule_folios(vma) || !collapse_may_convert(vma, addr))
		return -EINVAL;

	ret = collapse_look_cache(mapping, index, 0, &target);
	if (!ret && collapse_in_vain(vma))
		ret = -EINVAL;
	if (!ret) {
		/* LRU batches reference pages that were added recently. */
		lru_add_drain();
		granule_target_set_policy(vma, addr, &target);
		/* The memory stays charged to the same memory cgroup. */
		folio = granule_target_alloc(&target, NULL,
					     granule_target_charge(&target, vma));
		ret = IS_ERR(folio) ? PTR_ERR(folio) :
		      collapse_to(mapping, index, 0, false, folio);
	}
	granule_target_put(&target);
	return ret;
}

/* How a page table populates a granule of the page cache. */
struct shared_state {
	unsigned int mapped;
	bool whole;
	bool soft_dirty;
	/* Swap entries, markers and private copies, which must stay. */
	bool special;
};

static void collapse_look_ptes(struct vm_area_struct *vma, unsigned long addr,
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
		struct page *page = NULL;

		if (pte_none(pte))
			continue;
		state->mapped++;
		if (pte_present(pte))
			page = vm_normal_page(vma, addr + i * PAGE_SIZE, pte);
		if (!page || PageAnon(page))
			state->special = true;
		else if (pgtable_supports_soft_dirty() && pte_soft_dirty(pte))
			state->soft_dirty = true;
	}
	state->whole = page_granule_pte_state(vma, addr, ptep) ==
		       PAGE_GRANULE_WHOLE;
	pte_unmap_unlock(ptep, ptl);
}

/* Look at a granule of the page cache, see granule_collapse_prepare(). */
int granule_collapse_prepare_cache(struct vm_area_struct *vma, unsigned long addr,
				   struct granule_target *target)
{
	struct address_space *mapping = vma->vm_file->f_mapping;
	struct shared_state state = {};
	int ret;

	collapse_look_ptes(vma, addr, &state);
	if (state.whole)
		return 1;
	if (state.special || !collapse_may_convert(vma, addr))
		return -EINVAL;
	/* Repair is for what is in use, and can be moved. */
	if (!target->others && (!state.mapped || mapping_unevictable(mapping)))
		return -EINVAL;
	ret = collapse_look_cache(mapping, linear_page_index(vma, addr),
				  state.mapped, target);
	if (!ret && !target->others && collapse_in_vain(vma))
		return -EINVAL;
	if (ret != 1 || !state.mapped)
		return ret;
	target->cached = true;
	return 0;
}

/* Unmap what a page table maps of a granule, but not private copies. */
static void collapse_zap(struct vm_area_struct *vma, unsigned long addr)
{
	struct zap_details details = { .skip_cows = true };
	struct mmu_gather tlb;

	tlb_gather_mmu(&tlb, vma->vm_mm);
	zap_vma_range_batched(&tlb, vma, addr, PAGE_GRANULE_SIZE, &details);
	tlb_finish_mmu(&tlb);
}

/*
 * Map a granule again. Soft-dirty tracking of shared memory may report too much,
 * but not too little; a file loses the bit when it is reclaimed, too, and must
 * not be written.
 */
static void collapse_map(struct vm_area_struct *vma, unsigned long addr, bool soft_dirty)
{
	/* Not for the first time: readahead would be charged to the caller. */
	unsigned int flags = FAULT_FLAG_REMOTE | FAULT_FLAG_TRIED;

	if (soft_dirty && shmem_mapping(vma->vm_file->f_mapping) &&
	    (vma->vm_flags & (VM_SHARED | VM_WRITE)) == (VM_SHARED | VM_WRITE))
		flags |= FAULT_FLAG_WRITE;
	handle_mm_fault(vma, addr, flags, NULL);
}

/*
 * Bring a granule of the page cache into one folio, and map it as a whole. It is
 * in one already if @folio is NULL. Returns as granule_collapse_finish().
 */
int granule_collapse_finish_cache(struct vm_area_struct *vma, unsigned long addr,
				  bool others, struct folio *folio)
{
	const pgoff_t index = linear_page_index(vma, addr);
	struct shared_state state = {};
	int ret, i;

	collapse_look_ptes(vma, addr, &state);
	if (state.whole || state.special) {
		if (folio)
			folio_put(folio);
		return state.whole ? 0 : -EAGAIN;
	}
	ret = 1;
	if (folio)
		ret = collapse_to(vma->vm_file->f_mapping, index, state.mapped,
				  others, folio);
	if (!ret) {
		count_vm_event(GRANULE_REPAIR);
		trace_page_granule_repair(vma->vm_mm, addr);
	}
	/* Map it here. Others fault it in, and so do we if this fails. */
	if (state.mapped && ret >= 0) {
		if (ret == 1)
			collapse_zap(vma, addr);
		collapse_map(vma, addr, state.soft_dirty);
	} else if (state.mapped && (vma->vm_flags & VM_LOCKED)) {
		/* Locked memory does not stay unmapped. */
		for (i = 0; i < PAGE_GRANULE_NR; i++)
			collapse_map(vma, addr + i * PAGE_SIZE, false);
	}
	return min(ret, 0);
}
