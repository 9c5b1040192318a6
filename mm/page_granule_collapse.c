// SPDX-License-Identifier: GPL-2.0
/*
 * Page granule: one folio for the pages of a broken granule.
 *
 * The folio is allocated and charged without any lock. The 16 pages are
 * copied to it under the mmap lock, held for reading, and the page table
 * lock. Neighbours are not disturbed, as they are when khugepaged collapses.
 * Files and shared memory are copied in the page cache, see
 * page_granule_collapse_cache.c. Memory that a program gave back is not taken
 * again, and pages that are pinned, or shared after fork(), are left alone.
 */

#include <linux/kmsan.h>
#include <linux/leafops.h>
#include <linux/memcontrol.h>
#include <linux/mempolicy.h>
#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/pagemap.h>
#include <linux/rmap.h>
#include <linux/sched/signal.h>
#include <linux/shmem_fs.h>
#include <linux/swap.h>
#include <linux/userfaultfd_k.h>
#include <linux/vmstat.h>

#include <asm/tlbflush.h>

#include "internal.h"
#include "page_granule.h"
#include "swap.h"

#include <trace/events/page_granule.h>

/*
 * May a copy replace the page that @pte maps? The page table lock keeps the
 * state in the PTE stable. Returns 0 or an error.
 */
static int collapse_inspect_pte(struct vm_area_struct *vma, unsigned long addr,
				pte_t pte)
{
	struct folio *folio;
	struct page *page;

	/* Migration will end, and a swapped page may be swapped in. */
	if (!pte_none(pte) && !pte_present(pte)) {
		const softleaf_t entry = softleaf_from_pte(pte);

		return softleaf_is_migration(entry) || softleaf_is_swap(entry) ?
		       -EAGAIN : -EINVAL;
	}
	/* Leave holes and zero pages alone: the memory may be given back. */
	if (pte_none(pte) || pte_uffd(pte) || is_zero_pfn(pte_pfn(pte)))
		return -EINVAL;

	page = vm_normal_page(vma, addr, pte);
	if (!page)
		return -EINVAL;
	folio = page_folio(page);
	if (!folio_test_anon(folio) || folio_test_ksm(folio) ||
	    !folio_test_swapbacked(folio))
		return -EINVAL;
	/* Only a write copies a page that fork() has shared. */
	if (!PageAnonExclusive(page) &&
	    (folio_maybe_mapped_shared(folio) || folio_test_swapcache(folio)))
		return -EINVAL;
	return 0;
}

/* Return the PMD of an address if it maps a page table or a huge page. */
pmd_t *granule_pmd(struct mm_struct *mm, unsigned long addr)
{
	pmd_t *pmd = mm_find_pmd(mm, addr);

	return pmd && !pmd_none(pmdp_get_lockless(pmd)) ? pmd : NULL;
}

/* Can a granule be repaired? @ptep is its first PTE, and locked. */
static int collapse_inspect(struct vm_area_struct *vma, unsigned long addr,
			    pte_t *ptep)
{
	bool present = false;
	int i, error = 0;

	for (i = 0; i < PAGE_GRANULE_NR; i++) {
		const pte_t pte = ptep_get(ptep + i);
		const int ret = collapse_inspect_pte(vma, addr + i * PAGE_SIZE, pte);

		if (ret && ret != -EAGAIN)
			return ret;
		error = error ?: ret;
		present |= pte_present(pte);
	}
	/* A granule that is all swapped out is not broken. */
	return present ? error : -EINVAL;
}

/*
 * Does anybody but page tables and the swap cache reference an exclusive page,
 * which may be pinned? The folio lock keeps the swap cache from changing, and
 * the mapcount cannot change if nobody else maps the folio. While the page is
 * mapped, GUP-fast may take a reference at any time, so the answer is only a
 * hint.
 */
static bool collapse_referenced(struct page *page)
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
 * Look at a granule before doing anything for it. A granule with pages in use
 * is not worth a folio, nor the faults that others take while its PTEs are
 * gone.
 */
static int collapse_look_anon(struct vm_area_struct *vma, unsigned long addr,
			      pte_t *ptep, struct granule_target *target)
{
	int error = collapse_inspect(vma, addr, ptep);
	int i, j, count, most = 0;

	for (i = 0; !error && i < PAGE_GRANULE_NR; i++) {
		if (collapse_referenced(pte_page(ptep_get(ptep + i))))
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
 * Copy the pages of a granule to @folio. The PTEs in @ptes have been taken out
 * of the page table, which is locked.
 */
static int collapse_copy_anon(struct vm_area_struct *vma, unsigned long addr,
			      const pte_t *ptes, struct folio *folio)
{
	struct page *page;
	int i;

	for (i = 0; i < PAGE_GRANULE_NR; i++, addr += PAGE_SIZE) {
		page = pte_page(ptes[i]);
		if (collapse_referenced(page))
			return -EAGAIN;
		if (copy_mc_user_highpage(folio_page(folio, i), page, addr, vma))
			return -EINVAL;
		kmsan_copy_page_meta(folio_page(folio, i), page);
	}
	return 0;
}

/* Map @folio in place of the pages that @ptes mapped, and account for it. */
static void collapse_map_anon(struct vm_area_struct *vma, unsigned long addr,
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
	/* Keep the age of the pages: reclaim must not take them for active. */
	entry = young ? pte_mkyoung(entry) : pte_mkold(entry);
	map_new_anon_folio(folio, ptep, vma, addr, entry);

	for (i = 0; i < PAGE_GRANULE_NR; i++)
		folio_remove_rmap_pte(page_folio(pte_page(ptes[i])),
				      pte_page(ptes[i]), vma);
	count_vm_event(GRANULE_REPAIR);
	trace_page_granule_repair(vma->vm_mm, addr);
}

/*
 * Does the memory policy bind the memory to other nodes, or interleave it? The
 * single pages of an interleaved granule are on all nodes, so the node of most
 * of them would be the same one for all granules.
 */
static bool collapse_by_policy(const struct granule_target *target)
{
#ifdef CONFIG_NUMA
	if (!target->policy)
		return false;
	switch (target->policy->mode) {
	case MPOL_BIND:
		return !node_isset(target->nid, target->policy->nodes);
	case MPOL_INTERLEAVE:
	case MPOL_WEIGHTED_INTERLEAVE:
		return true;
	}
#endif
	return false;
}

static bool granule_target_has_room(const struct granule_target *target,
				    struct mm_struct *mm)
{
	struct mem_cgroup *memcg = target->memcg ? NULL : get_mem_cgroup_from_mm(mm);
	const bool room = granule_memcg_has_room(memcg ?: target->memcg, PAGE_GRANULE_NR);

	mem_cgroup_put(memcg);
	return room;
}

/*
 * Allocate a folio on the node of the memory, or where the policy of the VMA
 * wants it. Charge it to the memory cgroup of the target or, if there is none,
 * of @mm. Returns an error pointer: -ENOMEM if there is no folio, -EBUSY if the
 * memory cgroup is full.
 */
struct folio *granule_target_alloc(const struct granule_target *target,
				   struct mm_struct *mm, gfp_t charge)
{
	struct mem_cgroup *old_memcg = NULL;
	struct folio *folio;
	int error;

	/* A failed charge would count as an event of the memory cgroup. */
	if (!(charge & __GFP_DIRECT_RECLAIM) && !granule_target_has_room(target, mm))
		return ERR_PTR(-EBUSY);

	/* Stay on the node of the pages, unless the policy says otherwise. */
	if (collapse_by_policy(target))
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
 * Flags to charge a folio with for a fault or MADV_COLLAPSE: what others are
 * charged for must not make their memory cgroup reclaim, and a file that is
 * cached already can stay as it is.
 */
gfp_t granule_target_charge(const struct granule_target *target, struct vm_area_struct *vma)
{
	struct mem_cgroup *memcg = get_mem_cgroup_from_mm(vma->vm_mm);
	gfp_t charge = GFP_PAGE_GRANULE_CHARGE;

	if ((target->memcg && target->memcg != memcg) ||
	    !(target->others || target->anon ||
	      shmem_mapping(vma->vm_file->f_mapping)))
		charge &= ~__GFP_DIRECT_RECLAIM;
	mem_cgroup_put(memcg);
	return charge;
}

/* Set the effort for the VMA, and its policy, which is referenced. */
void granule_target_set_policy(struct vm_area_struct *vma, unsigned long addr,
			       struct granule_target *target)
{
	target->ceiling = vma_thp_gfp_mask(vma);
#ifdef CONFIG_NUMA
	target->policy = __get_vma_policy(vma, addr, &target->ilx);
	/* Policies of shared memory are referenced already. */
	if (target->policy && !mpol_needs_cond_ref(target->policy))
		mpol_get(target->policy);
	target->ilx += vma_start_pgoff(vma) >> PAGE_GRANULE_ORDER;
	target->ilx += (addr - vma->vm_start) >> PAGE_GRANULE_SHIFT;
#endif
}

void granule_target_put(struct granule_target *target)
{
	mpol_put(target->policy);
	mem_cgroup_put(target->memcg);
}

/*
 * Look at a granule of private memory, see granule_collapse_prepare(). This
 * changes nothing.
 */
static int collapse_prepare_anon(struct vm_area_struct *vma, unsigned long addr,
				 struct granule_target *target)
{
	struct mm_struct *mm = vma->vm_mm;
	spinlock_t *ptl;
	pte_t *ptep;
	pmd_t *pmd;
	int ret;

	if (!vma->anon_vma)
		return -EINVAL;
	pmd = granule_pmd(mm, addr);
	if (!pmd)
		return -EINVAL;
	if (pmd_trans_huge(pmdp_get_lockless(pmd)))
		return 1;

	ptep = pte_offset_map_lock(mm, pmd, addr, &ptl);
	if (!ptep)
		return -EAGAIN;
	ret = page_granule_pte_state(vma, addr, ptep) == PAGE_GRANULE_WHOLE ? 1 :
	      collapse_look_anon(vma, addr, ptep, target);
	pte_unmap_unlock(ptep, ptl);
	return ret;
}

/*
 * Replace the pages of a granule of private memory by @folio. Returns as
 * granule_collapse_finish().
 */
static int collapse_finish_anon(struct vm_area_struct *vma, unsigned long addr,
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
	pmd = granule_pmd(mm, addr);
	if (!pmd || !vma->anon_vma || pmd_trans_huge(pmdp_get_lockless(pmd)))
		goto put;

	mmu_notifier_range_init(&range, MMU_NOTIFY_CLEAR, 0, mm, addr,
				addr + PAGE_GRANULE_SIZE);
	mmu_notifier_invalidate_range_start(&range);
	ptep = pte_offset_map_lock(mm, pmd, addr, &ptl);
	if (!ptep)
		goto out;
	/* Somebody else may have been faster. */
	whole = page_granule_pte_state(vma, addr, ptep) == PAGE_GRANULE_WHOLE;
	error = whole ? -EAGAIN : collapse_inspect(vma, addr, ptep);
	if (error)
		goto unlock;

	for (i = 0; i < PAGE_GRANULE_NR; i++)
		ptes[i] = ptep_get_and_clear(mm, addr + i * PAGE_SIZE, ptep + i);
	flush_tlb_ptes(vma, addr, PAGE_GRANULE_NR);
	/* GUP-fast cannot take references any more: this check is final. */
	error = collapse_copy_anon(vma, addr, ptes, folio);
	if (error) {
		for (i = 0; i < PAGE_GRANULE_NR; i++)
			set_pte_at(mm, addr + i * PAGE_SIZE, ptep + i, ptes[i]);
		goto unlock;
	}
	collapse_map_anon(vma, addr, ptep, ptes, folio);
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

/*
 * Find out whether a granule can be made whole, and with what. The caller puts
 * @target, whatever this returns.
 *
 * The mmap lock is held, at least for reading. Returns 0; 1 if the granule is
 * whole already; -EINVAL if not all of it is populated, or something in it must
 * not be moved; -EAGAIN if it is in use at the moment.
 */
int granule_collapse_prepare(struct vm_area_struct *vma, unsigned long addr,
			     struct granule_target *target)
{
	int ret;

	mmap_assert_locked(vma->vm_mm);
	if (!vma_faults_granule(vma, addr) || !vma_granule_folios(vma))
		return -EINVAL;
	/* In a private mapping of a file, all pages may have been copied. */
	ret = collapse_prepare_anon(vma, addr, target);
	target->anon = ret != -EINVAL || vma_is_anonymous(vma);
	if (!target->anon)
		ret = granule_collapse_prepare_cache(vma, addr, target);
	if (!ret)
		granule_target_set_policy(vma, addr, target);
	return ret;
}

/*
 * Make a granule whole that granule_collapse_prepare() has found to be broken.
 * This consumes @folio, which is charged, and NULL if the target says that the
 * granule is cached. If the target has others, it unmaps pages of the page cache
 * in other processes.
 *
 * The mmap lock is held, at least for reading. Returns 0 if the granule is
 * whole, or if it is in the page cache, and the next fault maps it as a whole; else an
 * error as granule_collapse_prepare() does.
 */
int granule_collapse_finish(struct vm_area_struct *vma, unsigned long addr,
			    const struct granule_target *target, struct folio *folio)
{
	if (target->anon)
		return collapse_finish_anon(vma, addr, folio);
	return granule_collapse_finish_cache(vma, addr, target->others, folio);
}

/**
 * page_granule_collapse_range - Make the granules in a range whole.
 * @vma: The VMA.
 * @start: First byte of the range, in @vma.
 * @end: First byte after the range.
 *
 * This is for callers that ask for whole granules and have the time:
 * MADV_COLLAPSE. Granules that are not fully populated are left alone.
 *
 * Context: The mmap lock is held, for reading at least. May sleep.
 * Return: 0 if all granules that movable pages populate fully are whole; else
 * the last error: -EAGAIN if pages are in use, -ENOMEM if there is no folio,
 * -EBUSY if the memory cgroup is full, -EINTR if the process is being killed. 1
 * if no granule is in the range, or if @vma may not have folios.
 */
int page_granule_collapse_range(struct vm_area_struct *vma, unsigned long start,
				unsigned long end)
{
	unsigned long addr;
	int ret = 1;

	mmap_assert_locked(vma->vm_mm);
	if (!vma_granule_folios(vma))
		return 1;

	lru_add_drain_all();
	for (addr = ALIGN(start, PAGE_GRANULE_SIZE);
	     end - addr >= PAGE_GRANULE_SIZE && addr < end;
	     addr += PAGE_GRANULE_SIZE) {
		struct granule_target target = { .others = true };
		struct folio *folio;
		int error;

		if (fatal_signal_pending(current))
			return -EINTR;
		cond_resched();
		/* Large mappings are often empty. */
		if (vma_is_anonymous(vma) && !granule_pmd(vma->vm_mm, addr)) {
			if (vma_has_granule(vma, addr))
				ret = min(ret, 0);
			addr = pmd_addr_end(addr, end) - PAGE_GRANULE_SIZE;
			continue;
		}
		error = granule_collapse_prepare(vma, addr, &target);
		if (!error) {
			folio = target.cached ? NULL :
				granule_target_alloc(&target, vma->vm_mm,
						     granule_target_charge(&target, vma));
			error = IS_ERR(folio) ? PTR_ERR(folio) :
				granule_collapse_finish(vma, addr, &target, folio);
		}
		granule_target_put(&target);
		/* A granule that cannot be whole is not an error. */
		if (error >= 0 || (error == -EINVAL && vma_has_granule(vma, addr)))
			ret = min(ret, 0);
		else if (error != -EINVAL)
			ret = error;
	}
	return ret;
}
