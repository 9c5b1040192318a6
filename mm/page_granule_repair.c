// SPDX-License-Identifier: GPL-2.0
/*
 * Page granule: make broken granules whole again.
 *
 * A granule is broken because memory was short when it was populated or copied,
 * or because a part of it was given back and taken again. Whoever leaves it like
 * that says so; nothing is scanned unless an address space has more to say than is
 * remembered of it. A worker with a small budget takes turns between the address
 * spaces. It looks at a granule, allocates and charges a folio without any lock, and
 * copies the 16 pages to it under the mmap lock, held for reading, and the page table
 * lock. Neighbours are not disturbed by that, as they are when khugepaged collapses.
 * Shared memory is copied in the page cache, and mapped again.
 *
 * What a program gave back is not taken again, and what is locked, pinned, or shared
 * after fork() is left alone. See Documentation/mm/page_granule.rst.
 */

#include <linux/debugfs.h>
#include <linux/gfp.h>
#include <linux/hugetlb.h>
#include <linux/init.h>
#include <linux/ksm.h>
#include <linux/leafops.h>
#include <linux/jiffies.h>
#include <linux/list.h>
#include <linux/memcontrol.h>
#include <linux/mempolicy.h>
#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/page_granule.h>
#include <linux/pagemap.h>
#include <linux/pgtable.h>
#include <linux/rmap.h>
#include <linux/sched/cputime.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/swap.h>
#include <linux/userfaultfd_k.h>
#include <linux/vmstat.h>
#include <linux/workqueue.h>

#include <asm/tlbflush.h>

#include "internal.h"
#include "mm_slot.h"
#include "swap.h"

#include <trace/events/page_granule.h>

/* Tests of what it is that has to be repaired switch this off, in debugfs. */
static bool repair_enabled = true;

/**
 * struct repair_target - What is needed to make a granule whole.
 * @nid: The node that most of its pages are on.
 * @scattered: Others are on other nodes.
 * @policy: The memory policy of the VMA, referenced, or NULL.
 * @ilx: The interleave index for @policy.
 * @ceiling: What vma_thp_gfp_mask() says of the VMA.
 * @memcg: Whose shared memory it is, referenced, or NULL.
 * @mapped: How many pages of shared memory the page table of the VMA maps.
 */
struct repair_target {
	int nid;
	bool scattered;
	struct mempolicy *policy;
	pgoff_t ilx;
	gfp_t ceiling;
	struct mem_cgroup *memcg;
	unsigned int mapped;
};

/*
 * May the page that @pte maps be replaced by a copy? What the PTE says about it
 * is stable under the page table lock. Returns 0 or an error.
 */
static int repair_check_pte(struct vm_area_struct *vma, unsigned long addr,
			    pte_t pte)
{
	struct folio *folio;
	struct page *page;

	/* What is being migrated will be back, and the rest may be swapped in. */
	if (!pte_none(pte) && !pte_present(pte)) {
		const softleaf_t entry = softleaf_from_pte(pte);

		return softleaf_is_migration(entry) || softleaf_is_swap(entry) ?
		       -EAGAIN : -EINVAL;
	}
	/* What was given back, or only read since, is not taken again unasked. */
	if (pte_none(pte) || pte_uffd(pte) || is_zero_pfn(pte_pfn(pte)))
		return -EINVAL;

	page = vm_normal_page(vma, addr, pte);
	if (!page)
		return -EINVAL;
	folio = page_folio(page);
	if (!folio_test_anon(folio) || folio_test_ksm(folio) ||
	    !folio_test_swapbacked(folio))
		return -EINVAL;
	/* What fork() has shared is copied by a write, not by a repair. */
	if (!PageAnonExclusive(page) &&
	    (folio_maybe_mapped_shared(folio) || folio_test_swapcache(folio)))
		return -EINVAL;
	return 0;
}

/* Is there a page table for an address, or a huge page? */
static pmd_t *repair_pmd(struct mm_struct *mm, unsigned long addr)
{
	pmd_t *pmd = mm_find_pmd(mm, addr);

	return pmd && !pmd_none(pmdp_get_lockless(pmd)) ? pmd : NULL;
}

/* Can a granule be repaired? @ptep is its first PTE, and locked. */
static int repair_check(struct vm_area_struct *vma, unsigned long addr,
			pte_t *ptep)
{
	bool present = false;
	int i, error = 0;

	for (i = 0; i < PAGE_GRANULE_NR; i++) {
		const pte_t pte = ptep_get(ptep + i);
		const int ret = repair_check_pte(vma, addr + i * PAGE_SIZE, pte);

		if (ret && ret != -EAGAIN)
			return ret;
		error = error ?: ret;
		present |= pte_present(pte);
	}
	/* What is all swapped out is not broken. */
	return present ? error : -EINVAL;
}

/*
 * Does anybody but page tables and the swap cache know a page that is exclusive,
 * and so may be pinned? The lock keeps the swap cache from changing meanwhile,
 * and the mapcount cannot if nobody else maps the folio. While the page is mapped,
 * GUP-fast may take another reference any time, so that the answer is only a hint.
 */
static bool repair_referenced(struct page *page)
{
	struct folio *folio = page_folio(page);
	bool referenced;

	if (!PageAnonExclusive(page))
		return false;
	if (!folio_trylock(folio))
		return true;
	referenced = folio_maybe_dma_pinned(folio) ||
		     folio_maybe_mapped_shared(folio) ||
		     folio_ref_count(folio) != folio_expected_ref_count(folio);
	folio_unlock(folio);
	return referenced;
}

/*
 * Look at a granule before anything is done for it. Those whose pages are in use are
 * not worth a folio, nor that others take faults because PTEs were gone for a moment.
 */
static int repair_look_anon(struct vm_area_struct *vma, unsigned long addr,
			    pte_t *ptep, struct repair_target *target)
{
	int error = repair_check(vma, addr, ptep);
	int i, j, count, most = 0;

	for (i = 0; !error && i < PAGE_GRANULE_NR; i++) {
		if (repair_referenced(pte_page(ptep_get(ptep + i))))
			error = -EAGAIN;
	}
	if (error)
		return error;

	for (i = 0; i < PAGE_GRANULE_NR; i++) {
		const int nid = page_to_nid(pte_page(ptep_get(ptep + i)));

		for (j = i, count = 0; j < PAGE_GRANULE_NR; j++)
			count += page_to_nid(pte_page(ptep_get(ptep + j))) == nid;
		if (count > most) {
			most = count;
			target->nid = nid;
		}
	}
	target->scattered = most < PAGE_GRANULE_NR;
	return 0;
}

/*
 * Copy the pages of a granule to @folio. The PTEs in @ptes have been taken out of
 * the page table, which is locked.
 */
static int repair_copy(struct vm_area_struct *vma, unsigned long addr,
		       const pte_t *ptes, struct folio *folio)
{
	struct page *page;
	int i;

	for (i = 0; i < PAGE_GRANULE_NR; i++, addr += PAGE_SIZE) {
		page = pte_page(ptes[i]);
		if (repair_referenced(page))
			return -EAGAIN;
		if (copy_mc_user_highpage(folio_page(folio, i), page, addr, vma))
			return -EINVAL;
		kmsan_copy_page_meta(folio_page(folio, i), page);
	}
	return 0;
}

/* Map @folio to a granule in place of what @ptes mapped, and account for that. */
static void repair_map(struct vm_area_struct *vma, unsigned long addr,
		       pte_t *ptep, const pte_t *ptes, struct folio *folio)
{
	bool young = false;
	pte_t entry;
	int i;

	for (i = 0; i < PAGE_GRANULE_NR; i++)
		young |= pte_young(ptes[i]);

	__folio_mark_uptodate(folio);
	entry = folio_mk_pte(folio, vma->vm_page_prot);
	entry = maybe_mkwrite(pte_mkdirty(entry), vma);
	/* Nobody has accessed it: reclaim is not to take it for more than it is. */
	entry = young ? pte_mkyoung(entry) : pte_mkold(entry);
	map_new_anon_folio(folio, ptep, vma, addr, entry);

	for (i = 0; i < PAGE_GRANULE_NR; i++)
		folio_remove_rmap_pte(page_folio(pte_page(ptes[i])),
				      pte_page(ptes[i]), vma);
	count_vm_event(GRANULE_REPAIR);
	trace_page_granule_repair(vma->vm_mm, addr);
}

/* Is the memory to be on another node than it is? */
static bool repair_by_policy(const struct repair_target *target)
{
#ifdef CONFIG_NUMA
	return target->policy && target->policy->mode == MPOL_BIND &&
	       !node_isset(target->nid, target->policy->nodes);
#else
	return false;
#endif
}

/*
 * Allocate a folio where the policy of the VMA wants it, or on the node that the
 * memory is on, and charge it: to @mm, or to the memory cgroup of the target. Returns
 * an error pointer: -ENOMEM if there is none, -EBUSY if the memory cgroup is full.
 */
static struct folio *repair_alloc(const struct repair_target *target,
				  struct mm_struct *mm, gfp_t charge)
{
	struct mem_cgroup *old_memcg = NULL;
	struct folio *folio;
	int error;

	/* Where pages are already, the owner may have them. */
	if (repair_by_policy(target))
		folio = folio_alloc_mpol(GFP_TRANSHUGE_LIGHT, PAGE_GRANULE_ORDER,
					 target->policy, target->ilx, target->nid);
	else
		folio = page_granule_alloc_node(target->ceiling, target->nid);
	if (!folio)
		return ERR_PTR(-ENOMEM);

	if (target->memcg) {
		mm = NULL;
		old_memcg = set_active_memcg(target->memcg);
	}
	error = mem_cgroup_charge(folio, mm, charge);
	if (target->memcg)
		set_active_memcg(old_memcg);
	if (error || folio_memcg_alloc_deferred(folio)) {
		folio_put(folio);
		return ERR_PTR(-EBUSY);
	}
	return folio;
}

/*
 * Is a granule in the page cache, and all of it, where, and whose? Returns 0, 1 if
 * it is in one folio, or an error. The memory cgroup is referenced if it is set.
 */
static int collapse_check(struct address_space *mapping, pgoff_t index,
			  struct repair_target *target)
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
 * Lock the folios that hold a granule in the page cache, isolate them from the LRU
 * and put them on @list. Nobody but page tables may know any of them, lest those
 * be emptied in vain. @mapped: how many pages are mapped by whoever asks, who will
 * map them again? Those that @others map are unmapped there only if it says so.
 * Returns 0, 1 if the granule is in one folio, or an error.
 */
static int collapse_lock(struct address_space *mapping, pgoff_t index,
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
		/* What others have locked is not to be unmapped there. */
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
	/* They would take a fault for a granule that they have not asked for. */
	return mapcount <= mapped || others ? 0 : -EAGAIN;

unlock:
	folio_unlock(folio);
put:
	folio_put(folio);
	return ret;
}

static void collapse_unlock(struct list_head *list)
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
 * Unmap the folios. Whoever comes to use them after that finds them in the page
 * cache, and waits for their locks: their contents do not change any more. See
 * collapse_file().
 */
static int collapse_unmap(struct list_head *list)
{
	struct folio *folio;
	int ret = 0;

	list_for_each_entry(folio, list, lru) {
		if (folio_mapped(folio))
			try_to_unmap(folio, TTU_IGNORE_MLOCK | TTU_BATCH_FLUSH);
	}
	list_for_each_entry(folio, list, lru) {
		/* Of the page cache, of the isolation, and our own. */
		if (folio_ref_count(folio) != folio_nr_pages(folio) + 2)
			ret = -EAGAIN;
	}
	/* Before anything is copied, and if there is nothing to be, too. */
	try_to_unmap_flush();
	return ret;
}

static int collapse_copy(struct list_head *list, struct folio *new)
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

/* Have the page cache hold @new, and free what was there. */
static void collapse_replace(struct address_space *mapping, pgoff_t index,
			     struct list_head *list, struct folio *new)
{
	XA_STATE_ORDER(xas, &mapping->i_pages, index, PAGE_GRANULE_ORDER);
	struct folio *folio, *next;

	__folio_set_swapbacked(new);
	new->mapping = mapping;
	new->index = index;
	folio_mark_uptodate(new);
	folio_mark_dirty(new);
	/* One for each page, including the one that it was allocated with. */
	folio_ref_add(new, PAGE_GRANULE_NR - 1);

	/* The locks keep the old folios, and with them the node, in place. */
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

/* Have the page cache hold a granule in @folio. Returns as collapse_lock(). */
static int collapse_to(struct address_space *mapping, pgoff_t index,
		       unsigned int mapped, bool others, struct folio *folio)
{
	LIST_HEAD(folios);
	int ret;

	__folio_set_locked(folio);
	ret = collapse_lock(mapping, index, mapped, others, &folios);
	if (!ret)
		ret = collapse_unmap(&folios);
	if (!ret)
		ret = collapse_copy(&folios, folio);
	if (!ret)
		collapse_replace(mapping, index, &folios, folio);
	else
		collapse_unlock(&folios);
	folio_unlock(folio);
	if (ret)
		folio_put(folio);
	return ret;
}

/* What kind of effort the VMA is worth, and where. Policies are referenced. */
static void repair_set_policy(struct vm_area_struct *vma, unsigned long addr,
			      struct repair_target *target)
{
	target->ceiling = vma_thp_gfp_mask(vma);
#ifdef CONFIG_NUMA
	target->policy = __get_vma_policy(vma, addr, &target->ilx);
	/* Those of shared memory are referenced already. */
	if (target->policy && !mpol_needs_cond_ref(target->policy))
		mpol_get(target->policy);
	target->ilx += vma_start_pgoff(vma) >> PAGE_GRANULE_ORDER;
	target->ilx += (addr - vma->vm_start) >> PAGE_GRANULE_SHIFT;
#endif
}

static void repair_put_target(struct repair_target *target)
{
	mpol_put(target->policy);
	mem_cgroup_put(target->memcg);
}

/**
 * page_granule_collapse - Have the page cache hold a granule in one folio.
 * @vma: A VMA of shared anonymous memory, not armed with userfaultfd.
 * @addr: Start of a granule of @vma.
 * @mapped: How many pages of it the page table of @vma maps; the caller maps them
 *	    again.
 * @others: May what others map be unmapped, too?
 *
 * What collapse_file() of khugepaged does for huge pages, at the order of a
 * granule, and where all its pages are in the page cache. It is not mapped
 * anywhere after that: each process faults it in again as a whole.
 *
 * Pages that were just added to the LRU are referenced by that; the caller may
 * want to do lru_add_drain().
 *
 * Context: The mmap lock or the VMA lock is held, and no folio lock. May sleep.
 * Return: 0 if the granule is in one folio now, 1 if it was before; -EINVAL if a
 * page is missing or not to be moved; -EAGAIN if one is in use or swapped out;
 * -ENOMEM if there is no folio for it; -EBUSY if the memory cgroup is full.
 */
int page_granule_collapse(struct vm_area_struct *vma, unsigned long addr,
			  unsigned int mapped, bool others)
{
	struct address_space *mapping = vma->vm_file->f_mapping;
	const pgoff_t index = linear_page_index(vma, addr);
	struct repair_target target = {};
	struct folio *folio;
	int ret;

	if (!vma_granule_folios(vma))
		return -EINVAL;

	ret = collapse_check(mapping, index, &target);
	if (!ret) {
		repair_set_policy(vma, addr, &target);
		/* It remains whose it was. */
		folio = repair_alloc(&target, NULL, GFP_PAGE_GRANULE_CHARGE);
		ret = IS_ERR(folio) ? PTR_ERR(folio) :
		      collapse_to(mapping, index, mapped, others, folio);
	}
	repair_put_target(&target);
	return ret;
}

/*
 * Look at a granule of private memory, see repair_prepare(). Nothing is changed.
 */
static int repair_prepare_anon(struct vm_area_struct *vma, unsigned long addr,
			       struct repair_target *target)
{
	struct mm_struct *mm = vma->vm_mm;
	spinlock_t *ptl;
	pte_t *ptep;
	pmd_t *pmd;
	int ret;

	if (!vma->anon_vma)
		return -EINVAL;
	pmd = repair_pmd(mm, addr);
	if (!pmd)
		return -EINVAL;
	if (pmd_trans_huge(pmdp_get_lockless(pmd)))
		return 1;

	ptep = pte_offset_map_lock(mm, pmd, addr, &ptl);
	if (!ptep)
		return -EAGAIN;
	ret = page_granule_pte_state(vma, addr, ptep) == PAGE_GRANULE_WHOLE ? 1 :
	      repair_look_anon(vma, addr, ptep, target);
	pte_unmap_unlock(ptep, ptl);
	return ret;
}

/*
 * Replace the pages of a granule of private memory by @folio. Returns as
 * repair_finish().
 */
static int repair_finish_anon(struct vm_area_struct *vma, unsigned long addr,
			      struct folio *folio)
{
	pte_t ptes[PAGE_GRANULE_NR], *ptep;
	struct mm_struct *mm = vma->vm_mm;
	struct mmu_notifier_range range;
	bool whole = false;
	spinlock_t *ptl;
	int i, error;
	pmd_t *pmd;

	error = -EAGAIN;
	pmd = repair_pmd(mm, addr);
	if (!pmd || !vma->anon_vma || pmd_trans_huge(pmdp_get_lockless(pmd)))
		goto put;

	mmu_notifier_range_init(&range, MMU_NOTIFY_CLEAR, 0, mm, addr,
				addr + PAGE_GRANULE_SIZE);
	mmu_notifier_invalidate_range_start(&range);
	ptep = pte_offset_map_lock(mm, pmd, addr, &ptl);
	if (!ptep)
		goto out;
	/* Somebody else was faster. */
	whole = page_granule_pte_state(vma, addr, ptep) == PAGE_GRANULE_WHOLE;
	error = whole ? -EAGAIN : repair_check(vma, addr, ptep);
	if (error)
		goto unlock;

	for (i = 0; i < PAGE_GRANULE_NR; i++)
		ptes[i] = ptep_get_and_clear(mm, addr + i * PAGE_SIZE, ptep + i);
	flush_tlb_ptes(vma, addr, PAGE_GRANULE_NR);
	/* GUP-fast finds nothing any more: what is referenced now is. */
	error = repair_copy(vma, addr, ptes, folio);
	if (error) {
		for (i = 0; i < PAGE_GRANULE_NR; i++)
			set_pte_at(mm, addr + i * PAGE_SIZE, ptep + i, ptes[i]);
		goto unlock;
	}
	repair_map(vma, addr, ptep, ptes, folio);
unlock:
	pte_unmap_unlock(ptep, ptl);
out:
	mmu_notifier_invalidate_range_end(&range);
	for (i = 0; !error && i < PAGE_GRANULE_NR; i++)
		free_folio_and_swap_cache(page_folio(pte_page(ptes[i])));
put:
	if (error)
		folio_put(folio);
	return whole ? 0 : error;
}

/* How a page table populates a granule of shared memory. */
struct shared_state {
	unsigned int mapped;
	bool whole;
	bool soft_dirty;
	bool special;		/* swap entries and markers, not to be touched */
};

static void repair_look(struct vm_area_struct *vma, unsigned long addr,
			struct shared_state *state)
{
	pmd_t *pmd = repair_pmd(vma->vm_mm, addr);
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

/* Look at a granule of shared memory, see repair_prepare(). */
static int repair_prepare_shared(struct vm_area_struct *vma, unsigned long addr,
				 struct repair_target *target)
{
	struct shared_state state = {};
	int ret;

	repair_look(vma, addr, &state);
	if (state.whole)
		return 1;
	if (state.special)
		return -EINVAL;
	ret = collapse_check(vma->vm_file->f_mapping,
			     linear_page_index(vma, addr), target);
	/* The folio is there, and remains to be mapped as a whole. */
	return ret == 1 ? 0 : ret;
}

/*
 * Have a granule of shared memory in one folio, and mapped as a whole. Returns as
 * repair_finish().
 */
static int repair_finish_shared(struct vm_area_struct *vma, unsigned long addr,
				bool others, struct folio *folio)
{
	unsigned int flags = FAULT_FLAG_REMOTE;
	struct shared_state state = {};
	int ret;

	repair_look(vma, addr, &state);
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
	/* The others that map it come by themselves, and so does who is unlucky. */
	if (state.mapped && ret >= 0) {
		if (ret == 1)
			zap_vma_range(vma, addr, PAGE_GRANULE_SIZE);
		/* Too much is better than too little for who tracks this. */
		if (state.soft_dirty && (vma->vm_flags & VM_WRITE))
			flags |= FAULT_FLAG_WRITE;
		handle_mm_fault(vma, addr, flags, NULL);
	}
	return min(ret, 0);
}

/*
 * Find out whether a granule is to be made whole, and with what. @target has to be
 * put whatever this returns.
 *
 * The mmap lock is held, for reading at least. Returns 0; 1 if it is whole already;
 * -EINVAL if it is not all populated, or by something that is not to be moved; -EAGAIN
 * if it cannot be just now, because it is in use.
 */
static int repair_prepare(struct vm_area_struct *vma, unsigned long addr,
			  struct repair_target *target)
{
	int ret = -EINVAL;

	if (!vma_has_granule(vma, addr) || !vma_granule_folios(vma) ||
	    userfaultfd_armed(vma))
		return -EINVAL;
	if (vma_is_anonymous(vma))
		ret = repair_prepare_anon(vma, addr, target);
	else if (vma_is_shmem(vma))
		ret = repair_prepare_shared(vma, addr, target);
	if (!ret)
		repair_set_policy(vma, addr, target);
	return ret;
}

/*
 * Make a granule whole that repair_prepare() has found to be broken. @folio, which is
 * charged, is consumed. With @others, shared memory is unmapped in other processes.
 *
 * The mmap lock is held, for reading at least. Returns 0 if it is whole, or shared
 * memory that the next fault maps as a whole; else as repair_prepare().
 */
static int repair_finish(struct vm_area_struct *vma, unsigned long addr,
			 bool others, struct folio *folio)
{
	if (vma_is_anonymous(vma))
		return repair_finish_anon(vma, addr, folio);
	return repair_finish_shared(vma, addr, others, folio);
}

/**
 * page_granule_collapse_range - Make the granules in a range whole.
 * @vma: The VMA.
 * @start: First byte of the range, in @vma.
 * @end: First byte after the range.
 *
 * For who asks for that, and has the time: MADV_COLLAPSE. What is not populated, or
 * not all of it, is left alone.
 *
 * Context: The mmap lock is held, for reading at least. May sleep.
 * Return: 0 if every granule is whole that is all populated by pages that can be moved;
 * else the last error: -EAGAIN if pages are in use, -ENOMEM if there was no folio,
 * -EBUSY if the memory cgroup is full, -EINTR if the process is being killed. 1 if no
 * granule is in the range.
 */
int page_granule_collapse_range(struct vm_area_struct *vma, unsigned long start,
				unsigned long end)
{
	unsigned long addr;
	int ret = 1;

	if (!vma_granule_folios(vma))
		return 1;

	lru_add_drain_all();
	for (addr = ALIGN(start, PAGE_GRANULE_SIZE);
	     end - addr >= PAGE_GRANULE_SIZE && addr < end;
	     addr += PAGE_GRANULE_SIZE) {
		struct repair_target target = {};
		struct folio *folio;
		int error;

		error = repair_prepare(vma, addr, &target);
		if (!error) {
			folio = repair_alloc(&target, vma->vm_mm,
					     GFP_PAGE_GRANULE_CHARGE);
			error = IS_ERR(folio) ? PTR_ERR(folio) :
				repair_finish(vma, addr, true, folio);
		}
		repair_put_target(&target);
		/* What cannot be whole need not be. */
		if (error >= 0 || (error == -EINVAL && vma_has_granule(vma, addr)))
			ret = min(ret, 0);
		else if (error != -EINVAL)
			ret = error;
		if (fatal_signal_pending(current))
			return -EINTR;
		cond_resched();
	}
	return ret;
}

/*
 * The background. Hints of broken granules are kept for each address space, which take
 * turns, so that none of them can keep the others waiting:
 *
 *   repair_queue -> [ mm: hints ] -> [ mm: hints ] -> [ mm: look at all of it ]
 *                    ^ its turn: a few granules, then to the end of the queue
 */

/* Hints that are remembered of an address space; more of them mean: look at it all. */
#define REPAIR_HINTS	64
/* Granules to repair, and blocks to look at for one, in one turn. */
#define REPAIR_TURN	8
#define REPAIR_LOOKS	512
/* How often a granule in use is tried again. Shortage of memory does not count. */
#define REPAIR_TRIES	8
/* In jiffies: between failures of an address space. */
#define REPAIR_MIN_WAIT	(HZ / 4)
#define REPAIR_MAX_WAIT	(2 * HZ)
/* In jiffies: between two passes of the worker. */
#define REPAIR_MIN_REST	(HZ / 10)
#define REPAIR_MAX_REST	(HZ / 2)
/* CPU time of one pass in nanoseconds, and the rest that follows as a multiple of it. */
#define REPAIR_PASS	(4 * NSEC_PER_MSEC)
#define REPAIR_REST	24

/**
 * struct repair_slot - What is to be repaired in an address space.
 * @slot: To find it by its mm. That is not referenced: it takes this along when it
 *	  exits, unless the worker, which holds a reference then, has done so.
 * @due: When its turn may come again, in jiffies.
 * @wait: How long to wait after the next failure, in jiffies.
 * @nr: How many hints there are.
 * @hints: Addresses of granules; the bits below are REPAIR_IN_PLACE and the number of
 *	   tries.
 * @scan: There were too many hints: look at all of the address space.
 * @scan_addr: Where to go on with that.
 * @scan_failed: What could not be repaired since @scan_addr was 0 may be later.
 * @scan_tries: How often all of it was looked at without a success.
 */
struct repair_slot {
	struct mm_slot slot;
	unsigned long due;
	unsigned long wait;
	unsigned int nr;
	bool scan;
	bool scan_failed;
	unsigned int scan_tries;
	unsigned long scan_addr;
	unsigned long hints[REPAIR_HINTS];
};

/* In a hint: what is on several nodes may be there because somebody wanted that. */
#define REPAIR_IN_PLACE	BIT(PAGE_SHIFT)

#define REPAIR_HASH_BITS	8

/* Protects the queue, the hash table and all that is in the slots. */
static DEFINE_SPINLOCK(repair_lock);
static LIST_HEAD(repair_queue);
static DEFINE_HASHTABLE(repair_hash, REPAIR_HASH_BITS);

/*
 * Pages in use may be so by nothing but the batches of the LRU: drain these, but not
 * more often than this, in jiffies.
 */
#define REPAIR_DRAIN	(HZ / 2)
static bool repair_drain;

/* When the worker may run again, in jiffies. */
static unsigned long repair_not_before = INITIAL_JIFFIES;

static void repair_pass(struct work_struct *work);
static DECLARE_DELAYED_WORK(repair_work, repair_pass);

static struct repair_slot *repair_new_slot(struct mm_struct *mm)
{
	/* Reclaim tells of granules, too, and is not to spend its reserves on it. */
	struct repair_slot *slot = kzalloc_obj(*slot, GFP_NOWAIT | __GFP_ACCOUNT |
					       __GFP_NOMEMALLOC);

	if (!slot)
		return NULL;
	slot->due = jiffies;
	mm_slot_insert(repair_hash, mm, (&slot->slot));
	list_add_tail(&slot->slot.mm_node, &repair_queue);
	return slot;
}

static void repair_add_hint(struct repair_slot *slot, unsigned long hint)
{
	unsigned int i;

	for (i = 0; i < slot->nr; i++) {
		if ((slot->hints[i] & PAGE_GRANULE_MASK) ==
		    (hint & PAGE_GRANULE_MASK)) {
			/* A new one of the same granule forgets no tries. */
			slot->hints[i] = max(slot->hints[i] & ~REPAIR_IN_PLACE,
					     hint & ~REPAIR_IN_PLACE) |
					 (hint & REPAIR_IN_PLACE);
			return;
		}
	}
	if (slot->nr < REPAIR_HINTS)
		slot->hints[slot->nr++] = hint;
	else
		slot->scan = true;
}

static void repair_later(struct mm_struct *mm, unsigned long hint)
{
	unsigned long delay = REPAIR_MIN_REST, not_before;
	struct repair_slot *slot;
	struct mm_slot *mm_slot;

	spin_lock(&repair_lock);
	mm_slot = mm_slot_lookup(repair_hash, mm);
	slot = mm_slot ? mm_slot_entry(mm_slot, struct repair_slot, slot) : NULL;
	/* Who splits a folio may come while it exits, see __page_granule_exit(). */
	if (!slot && atomic_read(&mm->mm_users))
		slot = repair_new_slot(mm);
	if (slot)
		repair_add_hint(slot, hint);
	spin_unlock(&repair_lock);

	/* The worker rests as long as it has to, whoever asks. */
	not_before = READ_ONCE(repair_not_before);
	if (time_before(jiffies + delay, not_before))
		delay = not_before - jiffies;
	queue_delayed_work(system_dfl_wq, &repair_work, delay);
}

/**
 * page_granule_repair_later - Have a granule repaired soon.
 * @mm: The address space.
 * @addr: An address in the granule.
 *
 * Pages on several nodes, as faults on several CPUs leave them, are brought to the one
 * that has most of them. What cannot be remembered is left to MADV_COLLAPSE.
 *
 * Context: Any; a page table lock may be held.
 */
void page_granule_repair_later(struct mm_struct *mm, unsigned long addr)
{
	repair_later(mm, addr & PAGE_GRANULE_MASK);
}

/**
 * page_granule_repair_split - Have a granule repaired soon that is split now.
 * @mm: The address space.
 * @addr: An address in the granule.
 *
 * As page_granule_repair_later(), but it may be split for move_pages() or mbind() to
 * have its pages on several nodes: they are left there.
 *
 * Context: Any; a page table lock may be held.
 */
void page_granule_repair_split(struct mm_struct *mm, unsigned long addr)
{
	repair_later(mm, (addr & PAGE_GRANULE_MASK) | REPAIR_IN_PLACE);
}

/* See page_granule_exit(). mm_users is 0, and no slot is made for @mm any more. */
void __page_granule_exit(struct mm_struct *mm)
{
	struct repair_slot *slot = NULL;
	struct mm_slot *mm_slot;

	spin_lock(&repair_lock);
	mm_slot = mm_slot_lookup(repair_hash, mm);
	if (mm_slot) {
		slot = mm_slot_entry(mm_slot, struct repair_slot, slot);
		mm_slot_remove(mm_slot);
	}
	spin_unlock(&repair_lock);
	kfree(slot);
}

/*
 * repair_prepare() for the worker, which moves nothing that is locked, nor what @hint
 * says may be on several nodes because somebody wanted that.
 */
static int repair_prepare_hint(struct mm_struct *mm, unsigned long hint,
			       struct repair_target *target,
			       struct vm_area_struct **vmap)
{
	const unsigned long addr = hint & PAGE_GRANULE_MASK;
	struct vm_area_struct *vma = vma_lookup(mm, addr);
	int ret;

	if (!vma || (vma->vm_flags & VM_LOCKED))
		return -EINVAL;
	*vmap = vma;
	ret = repair_prepare(vma, addr, target);
	return !ret && target->scattered && (hint & REPAIR_IN_PLACE) ? -EINVAL : ret;
}

/*
 * Repair the granule of @mm that @hint names. What is allocated, without the mmap lock,
 * is used if the granule is then what it was, in the place that it was to be in. Returns
 * 0 if it is whole, or an error as repair_prepare() and repair_alloc(), or -EAGAIN.
 */
static int repair_one(struct mm_struct *mm, unsigned long hint)
{
	/* Nobody is reclaimed from for what nobody waits for. */
	const gfp_t charge = GFP_PAGE_GRANULE_CHARGE & ~__GFP_DIRECT_RECLAIM;
	struct repair_target target = {}, now = {};
	struct vm_area_struct *vma;
	struct mem_cgroup *memcg;
	struct folio *folio;
	int error;
	bool room;

	/* Whoever holds up one address space must not hold up the others. */
	if (!mmap_read_trylock(mm))
		return -EAGAIN;
	error = repair_prepare_hint(mm, hint, &target, &vma);
	mmap_read_unlock(mm);
	if (error)
		goto out;

	error = -EBUSY;
	memcg = target.memcg ? NULL : get_mem_cgroup_from_mm(mm);
	/* A charge in vain would be an event of the memory cgroup. */
	room = page_granule_has_room(memcg ?: target.memcg, PAGE_GRANULE_NR);
	mem_cgroup_put(memcg);
	if (!room)
		goto out;

	folio = repair_alloc(&target, mm, charge);
	if (IS_ERR(folio)) {
		error = PTR_ERR(folio);
		goto out;
	}

	error = -EAGAIN;
	if (!mmap_read_trylock(mm)) {
		folio_put(folio);
		goto out;
	}
	error = repair_prepare_hint(mm, hint, &now, &vma);
	if (!error && (now.nid != target.nid || now.policy != target.policy ||
		       now.memcg != target.memcg))
		error = -EAGAIN;
	if (error)
		folio_put(folio);
	else
		error = repair_finish(vma, hint & PAGE_GRANULE_MASK, false, folio);
	mmap_read_unlock(mm);
out:
	repair_put_target(&now);
	repair_put_target(&target);
	return min(error, 0);
}

/*
 * Look for a broken granule from *@addr on, and leave *@addr behind it. @looks limits
 * the page tables and granules to look at. Returns 1 if there is one, and a hint of it
 * in *@found; 0 if @looks is used up; -ENOENT at the end of the address space; -EAGAIN
 * if the mmap lock is taken.
 */
static int repair_find(struct mm_struct *mm, unsigned long *addr,
		       unsigned int *looks, unsigned long *found)
{
	struct vm_area_struct *vma;
	int ret = -ENOENT;

	VMA_ITERATOR(vmi, mm, *addr);

	if (!mmap_read_trylock(mm))
		return -EAGAIN;
	for_each_vma(vmi, vma) {
		unsigned long at = ALIGN(max(vma->vm_start, *addr),
					 PAGE_GRANULE_SIZE);

		if (!vma_granule_tagged(vma) || (vma->vm_flags & VM_LOCKED))
			continue;
		for (; at < vma->vm_end; at = *addr) {
			struct repair_target target = {};
			int state;

			if (!*looks) {
				*addr = at;
				ret = 0;
				goto out;
			}
			(*looks)--;
			/* Nothing is there without a page table. */
			if (!repair_pmd(mm, at)) {
				*addr = ALIGN(at + 1, PMD_SIZE);
				continue;
			}
			*addr = at + PAGE_GRANULE_SIZE;
			state = repair_prepare(vma, at, &target);
			repair_put_target(&target);
			if ((!state && !target.scattered) || state == -EAGAIN) {
				*found = at | REPAIR_IN_PLACE;
				ret = 1;
				goto out;
			}
		}
	}
out:
	mmap_read_unlock(mm);
	return ret;
}

/* Take the first hint of @slot. Returns false if there is none. */
static bool repair_take_hint(struct repair_slot *slot, unsigned long *hint)
{
	spin_lock(&repair_lock);
	if (!slot->nr) {
		spin_unlock(&repair_lock);
		return false;
	}
	*hint = slot->hints[0];
	slot->nr--;
	memmove(slot->hints, slot->hints + 1, slot->nr * sizeof(*slot->hints));
	spin_unlock(&repair_lock);
	return true;
}

/* The next granule to repair is a hint, or found by a look. */
static bool repair_next(struct repair_slot *slot, unsigned int *looks,
			unsigned long *hint)
{
	int ret;

	if (repair_take_hint(slot, hint))
		return true;
	if (!READ_ONCE(slot->scan))
		return false;

	ret = repair_find(slot->slot.mm, &slot->scan_addr, looks, hint);
	if (ret >= 0)
		return ret;

	spin_lock(&repair_lock);
	/* All has been looked at. Do it again if that can be of any use. */
	if (ret == -ENOENT) {
		slot->scan_addr = 0;
		if (!slot->scan_failed || ++slot->scan_tries > REPAIR_TRIES)
			slot->scan = false;
		slot->scan_failed = false;
	}
	slot->due = jiffies + REPAIR_MIN_WAIT;
	spin_unlock(&repair_lock);
	return false;
}

/* What came of @hint. Returns false if @slot has had its turn. */
static bool repair_result(struct repair_slot *slot, unsigned long hint, int error)
{
	const bool short_of_memory = error == -ENOMEM || error == -EBUSY;
	const unsigned int tries = hint & ~PAGE_MASK;
	bool goes_on = true;

	spin_lock(&repair_lock);
	if (!error) {
		slot->wait = 0;
		slot->scan_tries = 0;
	} else if (short_of_memory || error == -EAGAIN) {
		if (error == -EAGAIN)
			repair_drain = true;
		else
			slot->scan_tries = 0;
		slot->scan_failed = true;
		if (short_of_memory)
			repair_add_hint(slot, hint);
		else if (tries < REPAIR_TRIES)
			repair_add_hint(slot, hint + 1);
		/* What is short here may be there for others. */
		goes_on = !short_of_memory;
	}
	spin_unlock(&repair_lock);
	return goes_on;
}

/*
 * The turn of an address space, which is referenced. It is over when the time of the
 * pass is, which began when the worker had run for @start nanoseconds.
 */
static void repair_turn(struct repair_slot *slot, u64 start)
{
	const unsigned int nr = READ_ONCE(slot->nr);
	unsigned int i, failed = 0, looks = REPAIR_LOOKS;
	unsigned long hint;
	int error;

	for (i = 0; i < REPAIR_TURN; i++) {
		/* A hint that was put back waits for the next turn. */
		if (failed && i >= nr)
			break;
		if (!repair_next(slot, &looks, &hint))
			break;
		error = repair_one(slot->slot.mm, hint);
		failed += error && error != -EINVAL;
		if (!repair_result(slot, hint, error))
			break;
		if (task_sched_runtime(current) - start >= REPAIR_PASS)
			break;
		cond_resched();
	}

	if (failed) {
		spin_lock(&repair_lock);
		slot->wait = clamp(slot->wait * 2, REPAIR_MIN_WAIT, REPAIR_MAX_WAIT);
		slot->due = jiffies + slot->wait;
		spin_unlock(&repair_lock);
	}
}

/*
 * The next address space whose turn it is, moved to the end of the queue, or NULL. A
 * reference to it is taken, with which it does not exit.
 */
static struct repair_slot *repair_next_slot(void)
{
	struct repair_slot *slot, *next = NULL;

	spin_lock(&repair_lock);
	list_for_each_entry(slot, &repair_queue, slot.mm_node) {
		if (time_before(jiffies, slot->due) ||
		    !mmget_not_zero(slot->slot.mm))
			continue;
		next = slot;
		list_move_tail(&slot->slot.mm_node, &repair_queue);
		break;
	}
	spin_unlock(&repair_lock);
	return next;
}

/* Forget an address space that nothing is left to repair in, and let go of it. */
static void repair_end_turn(struct repair_slot *slot)
{
	struct mm_struct *mm = slot->slot.mm;

	spin_lock(&repair_lock);
	if (slot->nr || slot->scan)
		slot = NULL;
	else
		mm_slot_remove(&slot->slot);
	spin_unlock(&repair_lock);
	kfree(slot);
	mmput_async(mm);
}

/*
 * A pass takes turns until nobody is left whose turn it is, or its time is over. It
 * rests for long enough that it uses no more than a twenty-fifth of a CPU.
 */
static void repair_pass(struct work_struct *work)
{
	const u64 start = task_sched_runtime(current);
	static unsigned long last_drain = INITIAL_JIFFIES;
	unsigned long rest = REPAIR_MAX_REST, owed;
	struct repair_slot *slot;
	u64 used = 0;

	if (READ_ONCE(repair_drain) &&
	    time_after(jiffies, last_drain + REPAIR_DRAIN)) {
		WRITE_ONCE(repair_drain, false);
		last_drain = jiffies;
		lru_add_drain_all();
	}
	while (used < REPAIR_PASS && READ_ONCE(repair_enabled)) {
		slot = repair_next_slot();
		if (!slot)
			break;
		repair_turn(slot, start);
		repair_end_turn(slot);
		cond_resched();
		used = task_sched_runtime(current) - start;
	}
	/* Those whose turn has not come need not wait for long. */
	if (used >= REPAIR_PASS)
		rest = REPAIR_MIN_REST;
	/* A virtual CPU that has to wait counts that as time, too: there is a limit. */
	owed = min(nsecs_to_jiffies(used * REPAIR_REST), REPAIR_MAX_WAIT);
	rest = max(rest, owed);
	/* Before the queue is looked at: a hint that comes later has seen it. */
	WRITE_ONCE(repair_not_before, jiffies + owed);
	if (!list_empty(&repair_queue))
		mod_delayed_work(system_dfl_wq, &repair_work, rest);
}

static int __init page_granule_repair_init(void)
{
	struct dentry *dir = debugfs_create_dir("page_granule", NULL);

	debugfs_create_bool("repair", 0644, dir, &repair_enabled);
	return 0;
}
late_initcall(page_granule_repair_init);
