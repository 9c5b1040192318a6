// SPDX-License-Identifier: GPL-2.0
/*
 * Page granule: make broken granules whole again.
 *
 * A granule is broken because memory was short when it was populated or copied,
 * or because a part of it was given back and taken again. Whoever leaves it like
 * that says so, and a work item comes by soon; nothing is scanned. It copies the
 * 16 pages to one folio, under the page table lock, so that neither the mmap
 * lock is held for writing nor neighbours are disturbed, as they are when
 * khugepaged collapses. See Documentation/mm/page_granule.rst.
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
	update_mmu_cache_range(NULL, vma, addr, ptep, PAGE_GRANULE_NR);

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

/*
 * Allocate a folio where the policy of the VMA wants it, or on the node that the
 * memory is on. Returns an error pointer: -ENOMEM if memory is short, -EAGAIN if
 * only the memory cgroup is.
 */
static struct folio *repair_alloc(struct vm_area_struct *vma, unsigned long addr,
				  int nid)
{
	/* Not worth that kswapd swaps out for it, once a second. */
	const gfp_t gfp = GFP_PAGE_GRANULE & ~__GFP_KSWAPD_RECLAIM;
	struct folio *folio;

	if (vma_policy(vma))
		folio = vma_alloc_folio(gfp, PAGE_GRANULE_ORDER, vma, addr);
	else
		folio = __folio_alloc_node(gfp | __GFP_THISNODE,
					   PAGE_GRANULE_ORDER, nid);
	if (!folio)
		return ERR_PTR(vma_policy(vma) ? -EAGAIN : -ENOMEM);
	if (mem_cgroup_charge(folio, vma->vm_mm, gfp) ||
	    folio_memcg_alloc_deferred(folio)) {
		folio_put(folio);
		return ERR_PTR(-EAGAIN);
	}
	return folio;
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
 * Return: 0 if the granule is whole; -EINVAL if it is not all populated, or by
 * something that is not to be moved; -EAGAIN if it cannot be repaired just now,
 * because it is in use or the memory cgroup is full; -ENOMEM if there is no folio
 * for it.
 */
static int page_granule_repair(struct vm_area_struct *vma, unsigned long addr)
{
	pte_t ptes[PAGE_GRANULE_NR], *ptep;
	struct mm_struct *mm = vma->vm_mm;
	struct mmu_notifier_range range;
	enum page_granule_state state;
	struct folio *folio;
	spinlock_t *ptl;
	pmd_t *pmd;
	int i, error, nid;

	if (!vma_has_granule(vma, addr) || !vma_is_anonymous(vma) ||
	    !vma->anon_vma || userfaultfd_armed(vma))
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

	folio = repair_alloc(vma, addr, nid);
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
	flush_tlb_range(vma, addr, addr + PAGE_GRANULE_SIZE);
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
