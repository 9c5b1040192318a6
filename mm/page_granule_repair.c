// SPDX-License-Identifier: GPL-2.0
/*
 * Page granule: make broken granules whole again.
 *
 * A granule is broken because memory was short when it was populated or copied,
 * or because a part of it was given back and taken again. Whoever leaves it like
 * that says so, and a work item comes by soon; nothing is scanned. It copies the
 * 16 pages to one folio, under the page table lock, so that neither the mmap
 * lock is held for writing nor neighbours are disturbed, as they are when
 * khugepaged collapses. Shared memory is copied in the page cache, and mapped
 * again. See Documentation/mm/page_granule.rst.
 */

#include <linux/debugfs.h>
#include <linux/gfp.h>
#include <linux/hugetlb.h>
#include <linux/init.h>
#include <linux/ksm.h>
#include <linux/leafops.h>
#include <linux/list.h>
#include <linux/memcontrol.h>
#include <linux/mempolicy.h>
#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/page_granule.h>
#include <linux/pagemap.h>
#include <linux/pgtable.h>
#include <linux/rmap.h>
#include <linux/sched/signal.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/swap.h>
#include <linux/userfaultfd_k.h>
#include <linux/vmstat.h>
#include <linux/workqueue.h>

#include <asm/tlbflush.h>

#include "internal.h"
#include "swap.h"

#include <trace/events/page_granule.h>

/* What is remembered at most, and for how long, in jiffies. */
#define REPAIR_MAX	16384
#define REPAIR_TIME	(60 * HZ)

/* A granule that somebody has left broken. */
struct broken_granule {
	struct list_head list;
	struct mm_struct *mm;	/* grabbed, not got: it may exit */
	unsigned long addr;
	unsigned long deadline;	/* in jiffies */
};

/* Protects the list and its length, which may be read without it. */
static DEFINE_SPINLOCK(repair_lock);
static LIST_HEAD(repair_list);
static unsigned int repair_len;

/* Tests of what it is that has to be repaired switch this off, in debugfs. */
static bool repair_enabled = true;

static void page_granule_repair_work(struct work_struct *work);
static DECLARE_DELAYED_WORK(repair_work, page_granule_repair_work);

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
	/* What was given back is not taken again unasked. */
	if (pte_none(pte) || pte_uffd(pte))
		return -EINVAL;
	/* KSM's zero pages are to be merged, not copied. */
	if (is_zero_pfn(pte_pfn(pte)))
		return pte_dirty(pte) ? -EINVAL : 0;

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
 * and the mapcount cannot if nobody else maps the folio.
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
 * Copy the pages of a granule to @folio. The PTEs in @ptes have been taken out of
 * the page table, which is locked.
 */
static int repair_copy(struct vm_area_struct *vma, unsigned long addr,
		       const pte_t *ptes, struct folio *folio)
{
	struct page *page;
	int i;

	for (i = 0; i < PAGE_GRANULE_NR; i++, addr += PAGE_SIZE) {
		page = vm_normal_page(vma, addr, ptes[i]);
		if (!page) {
			clear_user_highpage(folio_page(folio, i), addr);
			continue;
		}
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
	struct mm_struct *mm = vma->vm_mm;
	struct page *page;
	int i, zeroes = 0;
	pte_t entry;

	__folio_mark_uptodate(folio);
	entry = folio_mk_pte(folio, vma->vm_page_prot);
	entry = maybe_mkwrite(pte_mkdirty(pte_sw_mkyoung(entry)), vma);
	map_new_anon_folio(folio, ptep, vma, addr, entry);

	for (i = 0; i < PAGE_GRANULE_NR; i++) {
		page = vm_normal_page(vma, addr + i * PAGE_SIZE, ptes[i]);
		if (page)
			folio_remove_rmap_pte(page_folio(page), page, vma);
		else
			zeroes++;
	}
	add_mm_counter(mm, MM_ANONPAGES, zeroes);
	count_vm_event(GRANULE_REPAIR);
	trace_page_granule_repair(mm, addr);
}

/* Does the VMA, or the shared memory in it, say where its pages are to be? */
static bool repair_has_policy(struct vm_area_struct *vma, unsigned long addr)
{
#ifdef CONFIG_NUMA
	struct mempolicy *policy;
	pgoff_t ilx;

	policy = __get_vma_policy(vma, addr, &ilx);
	mpol_cond_put(policy);
	return policy;
#else
	return false;
#endif
}

/*
 * Allocate a folio where the policy of the VMA wants it, or on the node that the
 * memory is on. It is charged to @mm, or to the active memory cgroup without one.
 * Returns an error pointer: -ENOMEM if memory is short, -EAGAIN if only the memory
 * cgroup is.
 */
static struct folio *repair_alloc(struct vm_area_struct *vma, unsigned long addr,
				  int nid, struct mm_struct *mm)
{
	/* Not worth that kswapd swaps out for it, once a second. */
	const gfp_t gfp = GFP_PAGE_GRANULE & ~__GFP_KSWAPD_RECLAIM;
	const bool policy = repair_has_policy(vma, addr);
	struct folio *folio;

	if (policy)
		folio = vma_alloc_folio(gfp, PAGE_GRANULE_ORDER, vma, addr);
	else
		folio = __folio_alloc_node(gfp | __GFP_THISNODE,
					   PAGE_GRANULE_ORDER, nid);
	if (!folio)
		return ERR_PTR(policy ? -EAGAIN : -ENOMEM);
	if (mem_cgroup_charge(folio, mm, gfp) ||
	    folio_memcg_alloc_deferred(folio)) {
		folio_put(folio);
		return ERR_PTR(-EAGAIN);
	}
	return folio;
}

/*
 * Is a granule in the page cache, and all of it, where, and whose? Returns 0, 1 if
 * it is in one folio, or an error. If *@memcg is not NULL then it is referenced.
 */
static int collapse_check(struct address_space *mapping, pgoff_t index, int *nid,
			  struct mem_cgroup **memcg)
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
			*nid = folio_nid(folio);
			*memcg = get_mem_cgroup_from_folio(folio);
		}
		folio_put(folio);
		if (order >= PAGE_GRANULE_ORDER)
			return 1;
	}
	return 0;
}

/*
 * Lock the folios that hold a granule in the page cache, isolate them from the LRU
 * and put them on @list. Nobody but page tables may know any of them, lest those
 * be emptied in vain. @mapped: are they mapped by whoever asks, who will map them
 * again? Returns 0, 1 if the granule is in one folio, or an error.
 */
static int collapse_lock(struct address_space *mapping, pgoff_t index,
			 bool mapped, struct list_head *list)
{
	const pgoff_t end = index + PAGE_GRANULE_NR;
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
		    (!mapped || folio_maybe_mapped_shared(folio)))
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
	}
	return 0;

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

/**
 * page_granule_collapse - Have the page cache hold a granule in one folio.
 * @vma: A VMA of shared anonymous memory, not armed with userfaultfd.
 * @addr: Start of a granule of @vma.
 * @mapped: Does the page table of @vma populate it, and will the caller do so again?
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
 * page is missing or not to be moved; -EAGAIN if one is in use or swapped out, or
 * the memory cgroup is full; -ENOMEM if there is no folio for it.
 */
int page_granule_collapse(struct vm_area_struct *vma, unsigned long addr,
			  bool mapped)
{
	struct address_space *mapping = vma->vm_file->f_mapping;
	const pgoff_t index = linear_page_index(vma, addr);
	struct mem_cgroup *memcg = NULL, *old_memcg;
	struct folio *folio;
	LIST_HEAD(folios);
	int ret, nid;

	ret = collapse_check(mapping, index, &nid, &memcg);
	if (ret) {
		mem_cgroup_put(memcg);
		return ret;
	}
	/* It remains whose it was. */
	old_memcg = set_active_memcg(memcg);
	folio = repair_alloc(vma, addr, nid, NULL);
	set_active_memcg(old_memcg);
	mem_cgroup_put(memcg);
	if (IS_ERR(folio))
		return PTR_ERR(folio);

	__folio_set_locked(folio);
	ret = collapse_lock(mapping, index, mapped, &folios);
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

/* Make a granule of private anonymous memory whole, see page_granule_repair(). */
static int repair_anon(struct vm_area_struct *vma, unsigned long addr)
{
	pte_t ptes[PAGE_GRANULE_NR], *ptep;
	struct mm_struct *mm = vma->vm_mm;
	struct mmu_notifier_range range;
	enum page_granule_state state;
	struct folio *folio;
	spinlock_t *ptl;
	pmd_t *pmd;
	int i, error, nid;

	if (!vma->anon_vma)
		return -EINVAL;
	pmd = mm_find_pmd(mm, addr);
	if (!pmd)
		return -EINVAL;
	if (pmd_trans_huge(pmdp_get_lockless(pmd)))
		return 0;

	ptep = pte_offset_map_lock(mm, pmd, addr, &ptl);
	if (!ptep)
		return -EAGAIN;
	state = page_granule_pte_state(vma, addr, ptep);
	error = repair_check(vma, addr, ptep);
	nid = error ? NUMA_NO_NODE : page_to_nid(pte_page(ptep_get(ptep)));
	pte_unmap_unlock(ptep, ptl);
	if (state == PAGE_GRANULE_WHOLE)
		return 0;
	if (error)
		return error;

	folio = repair_alloc(vma, addr, nid, mm);
	if (IS_ERR(folio))
		return PTR_ERR(folio);

	mmu_notifier_range_init(&range, MMU_NOTIFY_CLEAR, 0, mm, addr,
				addr + PAGE_GRANULE_SIZE);
	mmu_notifier_invalidate_range_start(&range);
	error = -EAGAIN;
	ptep = pte_offset_map_lock(mm, pmd, addr, &ptl);
	if (!ptep)
		goto out;
	error = 0;
	if (page_granule_pte_state(vma, addr, ptep) == PAGE_GRANULE_WHOLE)
		goto unlock;
	error = repair_check(vma, addr, ptep);
	if (error)
		goto unlock;

	for (i = 0; i < PAGE_GRANULE_NR; i++)
		ptes[i] = ptep_get_and_clear(mm, addr + i * PAGE_SIZE, ptep + i);
	flush_tlb_ptes(vma, addr, PAGE_GRANULE_NR);
	error = repair_copy(vma, addr, ptes, folio);
	if (error) {
		for (i = 0; i < PAGE_GRANULE_NR; i++)
			set_pte_at(mm, addr + i * PAGE_SIZE, ptep + i, ptes[i]);
		goto unlock;
	}
	repair_map(vma, addr, ptep, ptes, folio);
	folio = NULL;
unlock:
	pte_unmap_unlock(ptep, ptl);
out:
	mmu_notifier_invalidate_range_end(&range);
	if (folio) {
		folio_put(folio);
		return error;
	}
	for (i = 0; i < PAGE_GRANULE_NR; i++) {
		struct page *page = vm_normal_page(vma, addr + i * PAGE_SIZE,
						   ptes[i]);

		if (page)
			free_folio_and_swap_cache(page_folio(page));
	}
	return 0;
}

/* How a page table populates a granule of shared memory. */
struct shared_state {
	bool mapped;
	bool whole;
	bool soft_dirty;
	bool special;		/* swap entries and markers, not to be touched */
};

static void repair_look(struct vm_area_struct *vma, unsigned long addr,
			struct shared_state *state)
{
	pmd_t *pmd = mm_find_pmd(vma->vm_mm, addr);
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
		state->mapped = true;
		if (!pte_present(pte))
			state->special = true;
		else if (pgtable_supports_soft_dirty() && pte_soft_dirty(pte))
			state->soft_dirty = true;
	}
	state->whole = page_granule_pte_state(vma, addr, ptep) ==
		       PAGE_GRANULE_WHOLE;
	pte_unmap_unlock(ptep, ptl);
}

/* Make a granule of shared anonymous memory whole, see page_granule_repair(). */
static int repair_shared(struct vm_area_struct *vma, unsigned long addr)
{
	unsigned int flags = FAULT_FLAG_REMOTE;
	struct shared_state state = {};
	int ret;

	repair_look(vma, addr, &state);
	if (state.whole)
		return 0;
	if (state.special)
		return -EINVAL;
	ret = page_granule_collapse(vma, addr, state.mapped);
	if (!ret) {
		count_vm_event(GRANULE_REPAIR);
		trace_page_granule_repair(vma->vm_mm, addr);
	}
	/* The others that map it come by themselves. */
	if (state.mapped) {
		if (ret == 1)
			zap_vma_range(vma, addr, PAGE_GRANULE_SIZE);
		/* Too much is better than too little for who tracks this. */
		if (state.soft_dirty && (vma->vm_flags & VM_WRITE))
			flags |= FAULT_FLAG_WRITE;
		handle_mm_fault(vma, addr, flags, NULL);
	}
	return min(ret, 0);
}

/**
 * page_granule_repair - Make a granule whole.
 * @vma: The VMA.
 * @addr: Start of a 64 KiB block in @vma.
 *
 * Pages that were just added to the LRU are referenced by that; the caller may
 * want to do lru_add_drain_all().
 *
 * Context: The mmap lock is held, for reading at least. May sleep.
 * Return: 0 if the granule is whole, or shared memory that the next fault maps as
 * a whole; -EINVAL if it is not all populated, or by something that is not to be
 * moved; -EAGAIN if it cannot be repaired just now, because it is in use or the
 * memory cgroup is full; -ENOMEM if there is no folio for it.
 */
static int page_granule_repair(struct vm_area_struct *vma, unsigned long addr)
{
	if (!vma_has_granule(vma, addr) || userfaultfd_armed(vma))
		return -EINVAL;
	if (vma_is_anonymous(vma))
		return repair_anon(vma, addr);
	if (vma_is_shmem(vma))
		return repair_shared(vma, addr);
	return -EINVAL;
}

/**
 * page_granule_repair_range - Make the granules in a range whole.
 * @vma: The VMA.
 * @start: First byte of the range, in @vma.
 * @end: First byte after the range.
 *
 * What is not populated, or not all of it, is left alone, and so is the rest where
 * there is no folio for one or where the process is being killed.
 *
 * Context: The mmap lock is held, for reading at least. May sleep.
 */
void page_granule_repair_range(struct vm_area_struct *vma, unsigned long start,
			       unsigned long end)
{
	unsigned long addr;
	int error;

	lru_add_drain_all();
	start = ALIGN(start, PAGE_GRANULE_SIZE);
	for (addr = start; addr + PAGE_GRANULE_SIZE <= end;
	     addr += PAGE_GRANULE_SIZE) {
		error = page_granule_repair(vma, addr);
		if (error == -ENOMEM || fatal_signal_pending(current))
			break;
		cond_resched();
	}
}

/**
 * page_granule_repair_later - Have a granule repaired soon.
 * @mm: The address space.
 * @addr: An address in the granule.
 *
 * What cannot be remembered is left to MADV_COLLAPSE.
 *
 * Context: Any; a page table lock may be held.
 */
void page_granule_repair_later(struct mm_struct *mm, unsigned long addr)
{
	struct broken_granule *broken, *last;

	addr &= PAGE_GRANULE_MASK;
	if (READ_ONCE(repair_len) >= REPAIR_MAX)
		return;
	broken = kmalloc_obj(*broken, GFP_NOWAIT);
	if (!broken)
		return;

	broken->mm = mm;
	broken->addr = addr;
	broken->deadline = jiffies + REPAIR_TIME;
	spin_lock(&repair_lock);
	/* Page after page of one granule is copied as often as not. */
	last = list_last_entry_or_null(&repair_list, typeof(*last), list);
	if (last && last->mm == mm && last->addr == addr) {
		spin_unlock(&repair_lock);
		kfree(broken);
		return;
	}
	mmgrab(mm);
	list_add_tail(&broken->list, &repair_list);
	repair_len++;
	spin_unlock(&repair_lock);
	queue_delayed_work(system_dfl_wq, &repair_work, HZ / 10);
}

/* Returns -EAGAIN or -ENOMEM if it is worth another try. */
static int repair_one(struct broken_granule *broken)
{
	struct mm_struct *mm = broken->mm;
	struct vm_area_struct *vma;
	int error = -EINVAL;

	if (!mmget_not_zero(mm))
		return -EINVAL;
	/* Whoever holds up one address space must not hold up the others. */
	if (mmap_read_trylock(mm)) {
		vma = vma_lookup(mm, broken->addr);
		if (vma)
			error = page_granule_repair(vma, broken->addr);
		mmap_read_unlock(mm);
	} else {
		error = -EAGAIN;
	}
	mmput_async(mm);
	return error;
}

static void page_granule_repair_work(struct work_struct *work)
{
	struct broken_granule *broken, *next;
	unsigned int dropped = 0;
	LIST_HEAD(todo);
	LIST_HEAD(again);
	int error = 0;

	spin_lock(&repair_lock);
	if (READ_ONCE(repair_enabled))
		list_splice_init(&repair_list, &todo);
	spin_unlock(&repair_lock);

	if (!list_empty(&todo))
		lru_add_drain_all();
	list_for_each_entry_safe(broken, next, &todo, list) {
		cond_resched();
		/* Memory that is short for one is short for the others. */
		if (error != -ENOMEM)
			error = repair_one(broken);
		if ((error == -ENOMEM || error == -EAGAIN) &&
		    time_before(jiffies, broken->deadline) &&
		    atomic_read(&broken->mm->mm_users)) {
			list_move_tail(&broken->list, &again);
			continue;
		}
		mmdrop(broken->mm);
		list_del(&broken->list);
		kfree(broken);
		dropped++;
	}

	spin_lock(&repair_lock);
	list_splice_tail(&again, &repair_list);
	repair_len -= dropped;
	if (!list_empty(&repair_list))
		queue_delayed_work(system_dfl_wq, &repair_work, HZ);
	spin_unlock(&repair_lock);
}

static int __init page_granule_repair_init(void)
{
	struct dentry *dir = debugfs_create_dir("page_granule", NULL);

	debugfs_create_bool("repair", 0644, dir, &repair_enabled);
	return 0;
}
late_initcall(page_granule_repair_init);
