// SPDX-License-Identifier: GPL-2.0-only
/*
 * Page faults on granules: what mm/memory.c does for a page is done here for a
 * granule as a whole. See Documentation/mm/page_granule.rst.
 */

#include <linux/blk_plug.h>
#include <linux/compaction.h>
#include <linux/kmsan.h>
#include <linux/ksm.h>
#include <linux/memcontrol.h>
#include <linux/mm.h>
#include <linux/mm_inline.h>
#include <linux/mmu_notifier.h>
#include <linux/oom.h>
#include <linux/page_granule.h>
#include <linux/pagemap.h>
#include <linux/rmap.h>
#include <linux/shmem_fs.h>
#include <linux/swap.h>
#include <linux/swap_ops.h>
#include <linux/userfaultfd_k.h>
#include <linux/vmstat.h>
#include <linux/zswap.h>

#include <asm/tlbflush.h>

#include "internal.h"
#include "page_granule_fault.h"
#include "swap.h"

/* After compaction was in vain: how long a node is left alone, in jiffies. */
#define GRANULE_BACKOFF		HZ

/* Until when, in jiffies, nodes are left alone; 0 for those that are not. */
static unsigned long granule_backoff[MAX_NUMNODES];

/*
 * Memory of a node is free, but not in one piece. Compact it as far as @ceiling, what
 * vma_thp_gfp_mask() says, allows. Nothing is reclaimed: neither by the caller, which
 * __GFP_THISNODE and __GFP_NORETRY together see to, nor by kswapd. A node where that
 * was in vain is left alone for a while, by whoever asks next, too.
 */
static struct folio *compact_for_granule(gfp_t ceiling, int nid)
{
	const unsigned long until = READ_ONCE(granule_backoff[nid]);
	struct folio *folio = NULL;

	if (!(ceiling & __GFP_RECLAIM) || (until && time_before(jiffies, until)))
		return NULL;

	if (ceiling & __GFP_DIRECT_RECLAIM)
		folio = __folio_alloc_node(GFP_TRANSHUGE_LIGHT |
					   __GFP_DIRECT_RECLAIM |
					   __GFP_NORETRY | __GFP_THISNODE,
					   PAGE_GRANULE_ORDER, nid);
	if (folio) {
		WRITE_ONCE(granule_backoff[nid], 0);
		return folio;
	}
	wakeup_kcompactd(NODE_DATA(nid), PAGE_GRANULE_ORDER,
			 gfp_zone(GFP_HIGHUSER_MOVABLE));
	/* 0 means that there is nothing to wait for. */
	WRITE_ONCE(granule_backoff[nid], (jiffies + GRANULE_BACKOFF) | 1);
	return NULL;
}

/*
 * The node to compact for an address: that of the CPU, unless the policy prefers
 * another. Those that interleave choose a node for each allocation, and have none.
 */
static int granule_node(struct vm_area_struct *vma, unsigned long addr)
{
#ifdef CONFIG_NUMA
	int nid = numa_mem_id();
	struct mempolicy *pol;
	pgoff_t ilx;

	pol = get_vma_policy(vma, addr, PAGE_GRANULE_ORDER, &ilx);
	switch (pol->mode) {
	case MPOL_PREFERRED:
		nid = first_node(pol->nodes);
		break;
	case MPOL_PREFERRED_MANY:
	case MPOL_BIND:
		if (pol->home_node != NUMA_NO_NODE)
			nid = pol->home_node;
		if (!node_isset(nid, pol->nodes))
			nid = first_node(pol->nodes);
		break;
	case MPOL_INTERLEAVE:
	case MPOL_WEIGHTED_INTERLEAVE:
		nid = NUMA_NO_NODE;
		break;
	}
	mpol_cond_put(pol);
	return nid;
#else
	return numa_mem_id();
#endif
}

/**
 * page_granule_has_room - Can pages be charged without reclaim?
 * @memcg: The memory cgroup, or NULL.
 * @nr: How many pages.
 *
 * Return: true if no limit stands in the way, which can change any time.
 */
bool page_granule_has_room(struct mem_cgroup *memcg, unsigned int nr)
{
#ifdef CONFIG_MEMCG
	for (; memcg; memcg = parent_mem_cgroup(memcg)) {
		if (page_counter_read(&memcg->memory) + nr >
		    min(READ_ONCE(memcg->memory.max), READ_ONCE(memcg->memory.high)))
			return false;
	}
#endif
	return true;
}

/*
 * Is there room below each limit for a granule, and its copy, without reclaim? What
 * reclaim leaves when it makes room for a page is none. Just a hint.
 */
#define GRANULE_ROOM	(2 * PAGE_GRANULE_NR + SWAP_CLUSTER_MAX)

static bool granule_has_room(struct vm_area_struct *vma)
{
	struct mem_cgroup *memcg = get_mem_cgroup_from_mm(vma->vm_mm);
	const bool room = page_granule_has_room(memcg, GRANULE_ROOM);

	mem_cgroup_put(memcg);
	return room;
}

/*
 * Has the memory cgroup so much old page cache that its own limit is met from that? The
 * numbers are those by which reclaim itself prefers page cache.
 */
static bool granule_has_cache(struct vm_area_struct *vma)
{
	struct mem_cgroup *memcg = get_mem_cgroup_from_mm(vma->vm_mm);
	unsigned long old;
	bool cache = false;

	if (memcg) {
		old = memcg_page_state(memcg, NR_INACTIVE_FILE);
		cache = old >> DEF_PRIORITY &&
			old > memcg_page_state(memcg, NR_ACTIVE_FILE) &&
			page_granule_has_room(parent_mem_cgroup(memcg), GRANULE_ROOM);
	}
	mem_cgroup_put(memcg);
	return cache;
}

/*
 * Set @charge to how the pages of a granule are charged, and return whether that is
 * worth a try.
 *
 * At its limit, a memory cgroup reclaims for 16 pages where one was asked for as it
 * does for other huge pages: only if these are worth direct reclaim. The other 15 would
 * take the place of what is in use. But old page cache makes room for them, and a
 * contract is for all of them.
 */
static bool granule_may_charge(struct vm_area_struct *vma, gfp_t *charge)
{
	*charge = GFP_PAGE_GRANULE_CHARGE;
	if (vma_granule_contract(vma) || (vma_thp_gfp_mask(vma) & __GFP_DIRECT_RECLAIM))
		return true;
	if (granule_has_room(vma)) {
		*charge &= ~__GFP_DIRECT_RECLAIM;
		return true;
	}
	return granule_has_cache(vma);
}

/**
 * page_granule_may_swap_in - Is a granule to be swapped in for one of its pages?
 * @vma: The tagged VMA, stabilised by the mmap lock or its VMA lock.
 *
 * Where a limit stands in the way, the other pages would take the place of those in
 * use, which come back with others in turn. Who is worth direct reclaim for huge pages
 * may reclaim for this as well.
 *
 * Return: false if the page is to be swapped in alone, which is only a hint.
 */
bool page_granule_may_swap_in(struct vm_area_struct *vma)
{
	return (vma_thp_gfp_mask(vma) & __GFP_DIRECT_RECLAIM) ||
	       granule_has_room(vma);
}

/**
 * page_granule_alloc_node - Allocate a folio for a granule on a node.
 * @ceiling: What vma_thp_gfp_mask() says of the VMA; no more effort is made.
 * @nid: The node.
 *
 * Context: May sleep.
 * Return: a folio that is not charged, or NULL.
 */
struct folio *page_granule_alloc_node(gfp_t ceiling, int nid)
{
	struct folio *folio;

	folio = __folio_alloc_node(GFP_TRANSHUGE_LIGHT | __GFP_THISNODE,
				   PAGE_GRANULE_ORDER, nid);
	return folio ?: compact_for_granule(ceiling, nid);
}

/**
 * page_granule_alloc - Allocate a folio for a granule.
 * @vma: The tagged VMA, stabilised by the mmap lock or its VMA lock.
 * @addr: An address in the granule.
 * @charge: Set to the flags to charge it with, if there is one.
 *
 * What is free is taken from where the memory policy says. What is free but not in one
 * piece is worth as much effort as for a huge page, short of reclaim: nobody is
 * swapped out for contiguity alone. Neither is anybody for what was not asked for.
 *
 * Context: May sleep.
 * Return: a folio that is not charged, or NULL.
 */
struct folio *page_granule_alloc(struct vm_area_struct *vma, unsigned long addr,
				 gfp_t *charge)
{
	struct folio *folio;
	gfp_t ceiling;
	int nid;

	if (!vma_granule_folios(vma) || !granule_may_charge(vma, charge))
		return NULL;

	addr &= PAGE_GRANULE_MASK;
	folio = vma_alloc_folio(GFP_TRANSHUGE_LIGHT, PAGE_GRANULE_ORDER, vma, addr);
	if (folio)
		return folio;

	ceiling = vma_thp_gfp_mask(vma);
	if (!(ceiling & __GFP_RECLAIM))
		return NULL;
	nid = granule_node(vma, addr);
	return nid == NUMA_NO_NODE ? NULL : compact_for_granule(ceiling, nid);
}

/* Allocate and charge a folio for a granule. Returns NULL if there is none. */
static struct folio *alloc_granule_folio(struct vm_area_struct *vma,
					 unsigned long addr)
{
	struct folio *folio;
	gfp_t charge;

	folio = page_granule_alloc(vma, addr, &charge);
	if (!folio)
		return NULL;
	if (mem_cgroup_charge(folio, vma->vm_mm, charge)) {
		count_mthp_stat(PAGE_GRANULE_ORDER,
				MTHP_STAT_ANON_FAULT_FALLBACK_CHARGE);
		folio_put(folio);
		return NULL;
	}
	if (folio_memcg_alloc_deferred(folio)) {
		folio_put(folio);
		return NULL;
	}
	folio_throttle_swaprate(folio, charge);
	return folio;
}

/* See alloc_anon_folio(). */
static void zero_granule_folio(struct vm_fault *vmf, struct folio *folio)
{
	if (user_alloc_needs_zeroing())
		folio_zero_user(folio, vmf->address);
}

#define GRANULE_ALL_HOLES	(BIT(PAGE_GRANULE_NR) - 1)

/* A bit for each PTE of a granule that is none. @pte is the first. */
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
 * granule_empty - Is all of a granule to be populated?
 * @vmf: A fault on an address in a granule.
 * @pte: The PTE of that address.
 *
 * Context: Without the page table lock of @pte the answer is only a hint.
 * Return: true if all PTEs of the granule are none, and userfaultfd is not to see
 * faults on each of its pages.
 */
bool granule_empty(struct vm_fault *vmf, pte_t *pte)
{
	struct vm_area_struct *vma = vmf->vma;

	/* Userfaultfd sees faults on each page. */
	if (!vma_has_granule(vma, vmf->address) || userfaultfd_armed(vma))
		return false;

	pte -= (vmf->address & ~PAGE_GRANULE_MASK) >> PAGE_SHIFT;
	return pte_range_none(pte, PAGE_GRANULE_NR);
}

/**
 * granule_part - The part of a larger folio that populates a granule.
 * @vmf: A fault on an address in a granule; its PTE is neither mapped nor locked.
 * @folio: What it is served by; not all of it can be mapped.
 * @page: The page of @folio for the address; becomes the first to be mapped.
 * @addr: Becomes the address of that.
 *
 * Return: how many pages to map; 1 if @folio does not hold all of the granule, or the
 * granule is not empty, which is only a hint.
 */
int granule_part(struct vm_fault *vmf, struct folio *folio, struct page **page,
		 unsigned long *addr)
{
	const unsigned long nr = (vmf->address & ~PAGE_GRANULE_MASK) >> PAGE_SHIFT;
	bool empty;
	pte_t *pte;

	if (folio_order(folio) < PAGE_GRANULE_ORDER ||
	    !IS_ALIGNED(page_to_pfn(*page) - nr, PAGE_GRANULE_NR))
		return 1;

	pte = pte_offset_map(vmf->pmd, vmf->address);
	if (!pte)
		return 1;
	empty = granule_empty(vmf, pte);
	pte_unmap(pte);
	if (!empty)
		return 1;

	*page -= nr;
	*addr = vmf->address & PAGE_GRANULE_MASK;
	return PAGE_GRANULE_NR;
}

/*
 * A granule is whole, but has become so page by page. An architecture that marks
 * contiguous entries does so with the last of them in memory, which need not have
 * been the last to be set. @pte is the first, and locked.
 */
static void fold_granule(struct vm_area_struct *vma, unsigned long start, pte_t *pte)
{
	pte_t old = ptep_get(pte), merged;

	/* Those that KSM has merged are told by the dirty bit, one by one. */
	if (pte_protnone(old) || is_zero_pfn(pte_pfn(old)) ||
	    !page_granule_folds(pte, old))
		return;
	merged = modify_prot_start_ptes(vma, start, pte, PAGE_GRANULE_NR);
	/* Dirty ones make it soft-dirty, which they need not be. */
	if (!pte_soft_dirty(old))
		merged = pte_clear_soft_dirty(merged);
	flush_tlb_ptes(vma, start, PAGE_GRANULE_NR);
	modify_prot_commit_ptes(vma, start, pte, merged, merged, PAGE_GRANULE_NR);
}

/*
 * Single pages of the granule at @start have been mapped. If they were the last ones,
 * it can be repaired, or is whole. @pte is its first PTE, and locked.
 */
static void note_granule_filled(struct vm_area_struct *vma, unsigned long start,
				pte_t *pte)
{
	int i;

	if (!vma_has_granule(vma, start) || userfaultfd_armed(vma) ||
	    !vma_granule_folios(vma))
		return;

	for (i = 0; i < PAGE_GRANULE_NR; i++) {
		if (!pte_present(ptep_get(pte + i)))
			return;
	}
	if (page_granule_is_whole(vma, start, pte))
		fold_granule(vma, start, pte);
	else
		page_granule_repair_later(vma->vm_mm, start);
}

/**
 * granule_filled - A page of a granule has been mapped by itself.
 * @vmf: The fault that did so, on an address in a granule.
 *
 * If it was the last page of a granule that is broken, that can be repaired. If the
 * granule is whole, for one folio holds all pages, then the architecture is told.
 *
 * Context: vmf->pte is mapped and locked.
 */
void granule_filled(struct vm_fault *vmf)
{
	const unsigned long start = vmf->address & PAGE_GRANULE_MASK;

	note_granule_filled(vmf->vma, start,
			    vmf->pte - ((vmf->address - start) >> PAGE_SHIFT));
}

/* Free those folios for a granule that have not been mapped. */
static void put_granule_folios(struct folio **folios)
{
	int i;

	for (i = 0; i < PAGE_GRANULE_NR; i++) {
		if (folios[i])
			folio_put(folios[i]);
		folios[i] = NULL;
	}
}

/*
 * One page for a granule. A contract is worth the same effort as a page that was
 * asked for; otherwise nobody dies for pages that were not, and nothing is reclaimed
 * to @fill a granule.
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
 * Memory is too fragmented, or too short, for a folio that holds the granule.
 * Allocate single pages for @holes where @folios has none yet. Returns false if there
 * is not enough memory.
 */
static bool alloc_granule_pages(struct vm_fault *vmf, struct folio **folios,
				unsigned long holes, bool need_zero)
{
	const unsigned long start = vmf->address & PAGE_GRANULE_MASK;
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

/* Map single pages to PTEs of a granule that are none. @pte is its first, and locked. */
static void map_granule_pages(struct vm_fault *vmf, pte_t *pte,
			      struct folio **folios)
{
	const unsigned long start = vmf->address & PAGE_GRANULE_MASK;
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
 * populate_granule_single - Populate a granule, or what is missing, from single pages.
 * @vmf: A fault on a granule that granule_wants_pages(); its PTE is neither mapped nor
 *	 locked.
 * @folio: One page for the address that faulted, which is consumed.
 *
 * The process finds 0 or 16 pages of the granule present whatever happens, if the VMA
 * is a contract. If it is not, and there is no memory for the others, then it gets the
 * one that it asked for, as it would if the VMA was not tagged.
 *
 * Return: 0 if that has been done, or if the granule has changed meanwhile;
 * VM_FAULT_OOM, or what check_stable_address_space() returns.
 */
vm_fault_t populate_granule_single(struct vm_fault *vmf, struct folio *folio)
{
	const unsigned long start = vmf->address & PAGE_GRANULE_MASK;
	const int nr = (vmf->address - start) >> PAGE_SHIFT;
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

	if (!alloc_granule_pages(vmf, folios, holes, true)) {
		folios[nr] = NULL;
		put_granule_folios(folios);
		if (vma_granule_contract(vma)) {
			folio_put(folio);
			return VM_FAULT_OOM;
		}
		folios[nr] = folio;
		__folio_mark_uptodate(folio);
		single = true;
	}

	vmf->pte = pte_offset_map_lock(vma->vm_mm, vmf->pmd, start, &vmf->ptl);
	if (!vmf->pte)
		goto out;
	/* Who gives back says so before the holes can be seen. */
	if (granule_holes(vmf->pte) != holes ||
	    (holes != GRANULE_ALL_HOLES && !vma_granule_fills(vma))) {
		update_mmu_tlb_range(vma, start, vmf->pte, PAGE_GRANULE_NR);
		goto unlock;
	}
	ret = check_stable_address_space(vma->vm_mm);
	if (ret)
		goto unlock;
	map_granule_pages(vmf, vmf->pte, folios);
	/* A hint is of use once no page is missing. */
	if (single && holes == GRANULE_ALL_HOLES)
		count_vm_event(GRANULE_FALLBACK);
	else if (holes == GRANULE_ALL_HOLES)
		page_granule_count_fault(vma, start, GRANULE_FILL_SINGLE);
	else
		note_granule_filled(vma, start, vmf->pte);
unlock:
	pte_unmap_unlock(vmf->pte, vmf->ptl);
out:
	put_granule_folios(folios);
	return ret;
}

/*
 * The edge of a VMA that grows
 *
 * malloc() grows its heaps by less than a granule: brk()'s by 132 KiB, others by
 * mprotect() of a page and more of what they have reserved. The last block of such a
 * VMA is cut by its end, and so is no granule, but will be one.
 *
 *              vm_end                              vm_end
 *                |                                    |
 *   | 0 1 2 3 4 5 . . . . . . . . . . |  ->  | 0 1 2 3 4 5 6 7 8 9 a b . . . . |
 *     of a folio that holds 16 pages           the same folio, zeroed and mapped
 *
 * The first fault allocates a folio for all of it, and maps what lies in the VMA. The
 * rest of the folio is nobody's, as that of any folio which is mapped in part:
 * reclaim splits it, and frees the rest. When the VMA grows, what it then holds of the
 * folio is mapped as well, so that the block is whole when the VMA holds all of it.
 */

/*
 * Does the VMA grow at its end, over all of the block at @start? What is reserved
 * for that is not locked. Should it have been freed, this is wrong about what is
 * likely, no more.
 */
static bool granule_vma_grows(struct vm_area_struct *vma, unsigned long start)
{
	struct mm_struct *mm = vma->vm_mm;
	struct vm_area_struct *next;
	struct ma_state mas;
	bool reserved;

	/* brk() changes this under the mmap lock, which is not held. */
	if (vma->vm_end == PAGE_ALIGN(data_race(mm->brk)))
		return true;

	rcu_read_lock();
	mas_init(&mas, &mm->mm_mt, vma->vm_end);
	next = mas_walk(&mas);
	/* The VMA is not locked: it may change, and so may what is likely. */
	reserved = next && data_race(vma_granule_tagged(next) && vma_is_anonymous(next) &&
				     !(next->vm_flags & VM_ACCESS_FLAGS) &&
				     next->vm_end >= start + PAGE_GRANULE_SIZE);
	rcu_read_unlock();
	return reserved;
}

/*
 * May pages of the block at @start be there before they are accessed? Not if faults on
 * them are awaited, if they would have to be locked, or have tags: those of a page that
 * was mapped before would still be there.
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
 * The folio that holds a block, the pages @from to @to - 1 of which nobody maps, or
 * NULL. With what maps others of its pages here, and @refs, all references to it must
 * be known: who else has one may yet write to a page that was mapped before. @pte is
 * the first PTE of the block, and locked.
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
		page_granule_count_fault(vma, start, GRANULE_FILL_FOLIO);
	}
}

/*
 * Of the folio that holds the block at @start, zero and map the pages @from to @to - 1.
 * In a @fault, who gives them back has to be looked out for. Returns false if they are
 * not to be mapped, or not without having to wait.
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

	/* They may have been mapped, and given back. */
	for (i = from; i < to; i++)
		clear_user_highpage(folio_page(folio, i), start + i * PAGE_SIZE);
	flush_dcache_folio(folio);
	/* The PTEs are to be seen later than that. */
	smp_wmb();

	pte = pte_offset_map_lock(mm, pmd, start, &ptl);
	if (pte) {
		/* Reclaim may have unmapped it, and there are other references. */
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
	const unsigned long start = addr & PAGE_GRANULE_MASK;
	const unsigned int from = (addr - start) >> PAGE_SHIFT;
	const unsigned int to = min(end - start, PAGE_GRANULE_SIZE) >> PAGE_SHIFT;
	pmd_t *pmd;

	if (!from || addr < vma->vm_start || end > vma->vm_end ||
	    !granule_edge_allowed(vma, start))
		return;

	pmd = mm_find_pmd(vma->vm_mm, start);
	if (pmd)
		extend_edge(vma, pmd, start, from, to, false);
}

/*
 * The VMA has grown over all of the block, but the rest of its folio was not mapped
 * then: somebody had it locked, or a reference to it.
 */
static bool extend_granule(struct vm_fault *vmf)
{
	const unsigned long start = vmf->address & PAGE_GRANULE_MASK;
	const unsigned int nr = (vmf->address - start) >> PAGE_SHIFT;
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

	/* Those around this one, after a page that is there. */
	from = fls(~holes & (BIT(nr) - 1));
	return from && (holes & BIT(nr)) &&
	       extend_edge(vmf->vma, vmf->pmd, start, from,
			   find_next_zero_bit(&holes, PAGE_GRANULE_NR, nr), true);
}

/**
 * populate_granule_edge - Populate the last block of a VMA that grows, or has grown.
 * @vmf: A fault for a write on an address in a tagged VMA; its PTE is not mapped.
 *
 * Return: 0 if it was populated, or if the fault is to be tried again; what
 * check_stable_address_space() returns; VM_FAULT_FALLBACK if it is to be populated as
 * in a VMA that is not tagged.
 */
vm_fault_t populate_granule_edge(struct vm_fault *vmf)
{
	const unsigned long start = vmf->address & PAGE_GRANULE_MASK;
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
	/* All of it: reclaim may write the rest to swap. */
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
 * map_zero_granule - Map zero pages to a granule that nothing was written to.
 * @vmf: A fault for a read, on an address in a granule.
 *
 * Context: vmf->pte is mapped and locked.
 * Return: false if the granule is not empty, or if userfaultfd is to see faults
 * on each of its pages.
 */
bool map_zero_granule(struct vm_fault *vmf)
{
	const unsigned long start = vmf->address & PAGE_GRANULE_MASK;
	struct vm_area_struct *vma = vmf->vma;
	pte_t *pte, entry;

	if (!granule_empty(vmf, vmf->pte))
		return false;

	pte = vmf->pte - ((vmf->address - start) >> PAGE_SHIFT);
	/* The zero pages are no folio, but nothing looks at their struct pages. */
	entry = pte_mkspecial(pfn_pte(zero_pfn(start), vma->vm_page_prot));
	set_ptes(vma->vm_mm, start, pte, entry, PAGE_GRANULE_NR);

	/* No need to invalidate - they were non-present before */
	update_mmu_cache_range(vmf, vma, start, pte, PAGE_GRANULE_NR);
	page_granule_count_fault(vma, start, GRANULE_FILL_ZERO);
	return true;
}

/*
 * Is the granule a run to be copied, the first page of which is @page? None of
 * its pages may be exclusive: one that is pinned must stay where it is. @page is
 * NULL for the block of zero pages. @pte is the first PTE, and locked.
 */
static bool granule_is_copied(struct vm_fault *vmf, pte_t *pte,
			      struct page *page)
{
	const unsigned long start = vmf->address & PAGE_GRANULE_MASK;
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
 * Allocate what a granule is to be populated with instead of the run that
 * starts at @page, and copy that, to one folio if there is any. @page is NULL
 * for zeroes.
 */
static vm_fault_t alloc_granule_copy(struct vm_fault *vmf, struct page *page,
				     struct folio **folios)
{
	const unsigned long start = vmf->address & PAGE_GRANULE_MASK;
	struct folio *folio;
	struct page *dst;
	int i;

	folio = alloc_granule_folio(vmf->vma, start);
	if (!folio) {
		count_mthp_stat(PAGE_GRANULE_ORDER,
				MTHP_STAT_ANON_FAULT_FALLBACK);
		if (!alloc_granule_pages(vmf, folios, GRANULE_ALL_HOLES, !page)) {
			put_granule_folios(folios);
			if (vma_granule_contract(vmf->vma))
				return VM_FAULT_OOM;
			/* The one page that was asked for is copied. */
			count_vm_event(GRANULE_FALLBACK);
			return VM_FAULT_FALLBACK;
		}
	} else {
		if (!page)
			zero_granule_folio(vmf, folio);
		__folio_mark_uptodate(folio);
		folios[0] = folio;
	}

	for (i = 0; page && i < PAGE_GRANULE_NR; i++) {
		dst = folio_test_large(folios[0]) ? folio_page(folios[0], i) :
		      folio_page(folios[i], 0);
		if (copy_mc_user_highpage(dst, page + i, start + i * PAGE_SIZE,
					  vmf->vma)) {
			put_granule_folios(folios);
			/* Only the page that is lost is. */
			return page + i == vmf->page ? VM_FAULT_HWPOISON :
			       VM_FAULT_FALLBACK;
		}
		kmsan_copy_page_meta(dst, page + i);
	}
	return 0;
}

/*
 * Map what alloc_granule_copy() has allocated to a granule that is empty now.
 * @pte is its first, and locked; @old is what was there.
 */
static void map_granule_copy(struct vm_fault *vmf, pte_t *pte, pte_t old,
			     struct folio **folios)
{
	const int nr = folio_test_large(folios[0]) ? PAGE_GRANULE_NR : 1;
	const bool unshare = vmf->flags & FAULT_FLAG_UNSHARE;
	unsigned long addr = vmf->address & PAGE_GRANULE_MASK;
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
	page_granule_count_cow(vma, addr - PAGE_GRANULE_SIZE, nr == 1 ?
			       GRANULE_FILL_SINGLE : GRANULE_FILL_FOLIO);
}

/**
 * wp_copy_granule - wp_page_copy() for a granule that is a run.
 * @vmf: A fault for a write, or to unshare, on an address in a granule. vmf->page
 *	 is referenced, or NULL where the run is of zeroes: there is nothing to
 *	 copy then. The PTE is neither mapped nor locked.
 *
 * All of the run is replaced, under one lock and with one flush.
 *
 * Return: 0 if it has been, or if it has changed meanwhile; VM_FAULT_FALLBACK if
 * the granule is no run, or not to be copied as one; VM_FAULT_OOM or
 * VM_FAULT_HWPOISON.
 */
vm_fault_t wp_copy_granule(struct vm_fault *vmf)
{
	const unsigned long start = vmf->address & PAGE_GRANULE_MASK;
	const unsigned long end = start + PAGE_GRANULE_SIZE;
	const int nr = (vmf->address - start) >> PAGE_SHIFT;
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
		if (!folio_test_anon(old_folio) ||
		    folio_order(old_folio) < PAGE_GRANULE_ORDER)
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
	/* What was shared once may become so again: start from what is there. */
	if (changed)
		return 0;
	if (!copied)
		return VM_FAULT_FALLBACK;

	/*
	 * Allocate before the run is touched. If the granule were emptied first,
	 * threads that read it would fill it with zeroes again and again, and
	 * this one would never get to write.
	 */
	ret = alloc_granule_copy(vmf, page, folios);
	if (ret)
		return ret;

	mmu_notifier_range_init(&range, MMU_NOTIFY_CLEAR, 0, mm, start, end);
	mmu_notifier_invalidate_range_start(&range);
	pte = pte_offset_map_lock(mm, vmf->pmd, start, &vmf->ptl);
	/* Userfaultfd may have write-protected it: the fault is for that then. */
	copied = pte && pte_same(ptep_get(pte + nr), vmf->orig_pte) &&
		 granule_is_copied(vmf, pte, page);
	if (copied) {
		if (page) {
			add_mm_counter(mm, MM_ANONPAGES, -PAGE_GRANULE_NR);
		} else {
			for (i = 0; i < PAGE_GRANULE_NR; i++)
				ksm_might_unmap_zero_page(mm, ptep_get(pte + i));
		}
		/* Flush before other CPUs can see what is written to the copy. */
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
 * @folio: What the run is in: shared memory, or exclusive to this process.
 *
 * What is done to the page that faulted is done to all.
 *
 * Context: vmf->pte is mapped and locked.
 * Return: true, with the PTE unmapped and unlocked, if that has been done; false,
 * with nothing changed, if the granule is no run.
 */
bool wp_reuse_granule(struct vm_fault *vmf, struct folio *folio)
	__releases(vmf->ptl)
{
	const unsigned long start = vmf->address & PAGE_GRANULE_MASK;
	const int nr = (vmf->address - start) >> PAGE_SHIFT;
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

	for (i = 0; anon && i < PAGE_GRANULE_NR; i++) {
		/* Others can be shared if the granule was broken once. */
		if (exclusive && !PageAnonExclusive(page + i))
			return false;
		if (!exclusive)
			SetPageAnonExclusive(page + i);
	}

	if (!(vmf->flags & FAULT_FLAG_UNSHARE)) {
		/* See wp_page_reuse(). */
		folio_xchg_last_cpupid(folio, (1 << LAST_CPUPID_SHIFT) - 1);
		folds = page_granule_folds(pte, ptep_get(pte));
		old = modify_prot_start_ptes(vma, start, pte, PAGE_GRANULE_NR);
		if (folds)
			flush_tlb_ptes(vma, start, PAGE_GRANULE_NR);
		entry = pte_mkyoung(old);
		entry = maybe_mkwrite(pte_mkdirty(entry), vma);
		modify_prot_commit_ptes(vma, start, pte, old, entry,
					PAGE_GRANULE_NR);
		/* What else is cached may fault, but once. */
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
 * mark_granule_soft_dirty - Do for a granule what is to be done for a page.
 * @vmf: A fault on an address in a granule, whose PTE is present.
 *
 * A write has faulted, but another fault was faster and mapped the granule for a
 * read, writable. Marking but its own page soft-dirty would make a difference
 * between the PTEs of the run.
 *
 * Context: vmf->pte is mapped and locked.
 * Return: true, with the PTE unmapped and unlocked, if all of them were marked.
 */
bool mark_granule_soft_dirty(struct vm_fault *vmf)
{
	struct vm_area_struct *vma = vmf->vma;

	if (!vma_has_granule(vma, vmf->address) ||
	    !(vmf->flags & FAULT_FLAG_WRITE) ||
	    !pgtable_supports_soft_dirty() || pte_soft_dirty(vmf->orig_pte))
		return false;

	vmf->page = vm_normal_page(vma, vmf->address, vmf->orig_pte);
	return vmf->page && wp_reuse_granule(vmf, page_folio(vmf->page));
}

/**
 * count_fault_granule - Account for a fault on shared memory.
 * @vmf: The fault, on an address in a granule.
 * @nr_pages: How many pages it is about to populate.
 *
 * If not even single pages could be had for all of the granule, the first one
 * counts.
 *
 * Context: vmf->pte is mapped and locked.
 */
void count_fault_granule(struct vm_fault *vmf, int nr_pages)
{
	if (nr_pages >= PAGE_GRANULE_NR)
		page_granule_count_fault(vmf->vma, vmf->address,
					 GRANULE_FILL_FOLIO);
	else if (nr_pages == 1 && granule_empty(vmf, vmf->pte))
		page_granule_count_fault(vmf->vma, vmf->address,
					 GRANULE_FILL_SINGLE);
}

/**
 * granule_wants_pages - Are single pages to populate a granule?
 * @vmf: A fault on an address in a granule; its PTE is neither mapped nor locked.
 * @folio: What it is to be served by.
 *
 * Return: true if @folio is smaller because there was none for the granule, or because
 * the granule is populated in part and to be filled.
 */
bool granule_wants_pages(struct vm_fault *vmf, struct folio *folio)
{
	bool empty;
	pte_t *pte;

	if (!vma_has_granule(vmf->vma, vmf->address) ||
	    folio_order(folio) >= PAGE_GRANULE_ORDER ||
	    userfaultfd_armed(vmf->vma))
		return false;

	if (pmd_none(*vmf->pmd) || vma_granule_fills(vmf->vma))
		return true;
	pte = pte_offset_map(vmf->pmd, vmf->address);
	if (!pte)
		return false;
	empty = granule_empty(vmf, pte);
	pte_unmap(pte);
	return empty;
}

/*
 * Lock the PTEs from @addr on, of the child and its parent. Returns false, with
 * nothing locked, unless a granule begins there in the parent that is a run of
 * pages of its own.
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

/* copy_present_page() for a granule: to @folio, which nobody else knows. */
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
 * copy_pinned_granule - Copy at fork() what the parent has pinned.
 * @dst_vma: The VMA of the child.
 * @src_vma: That of the parent.
 * @dst_pmd: The entry of the page table of the child, which is there.
 * @src_pmd: That of the parent.
 * @addr: The address of a page that may be pinned, in a granule.
 *
 * If it is the first page of a granule that is whole, that is copied as such.
 *
 * Context: The mmap locks of both are held for writing. Sleeps.
 * Return: how many PTEs have been copied, 0 if the page is to be copied by itself,
 * or -EHWPOISON.
 */
int copy_pinned_granule(struct vm_area_struct *dst_vma,
			struct vm_area_struct *src_vma, pmd_t *dst_pmd,
			pmd_t *src_pmd, unsigned long addr)
{
	spinlock_t *dst_ptl, *src_ptl;
	pte_t *dst_pte, *src_pte;
	struct folio *folio;
	int ret = 0;

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

	/* What was there may have been unmapped meanwhile. */
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
	page_granule_repair_later(dst_vma->vm_mm, addr & PAGE_GRANULE_MASK);
	return 0;
}

#ifdef CONFIG_SWAP
/*
 * Are all pages of a granule swapped out, to the device of @entry? @pte is that
 * of the first, and locked; what is there is copied to @ptes. Userfaultfd sees
 * faults on pages that are write-protected.
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
 * Are the slots of such a granule those that a folio can be read from, or is in?
 * Of @ptes only the first is set.
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

/* Was @folios[@nr], of those for the pages of a granule, met already? */
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
 * Lock what holds the pages of a granule in the swap cache. Their order in two
 * processes need not be the same, so there is no waiting for one with another
 * locked. Returns false if one of them is locked again and again.
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
 * Find the pages of a granule in the swap cache, or have them read, all of them
 * at once, and wait for that. Returns 0, VM_FAULT_OOM if one cannot be had, or
 * VM_FAULT_RETRY as folio_lock_or_retry() does; no folio is referenced then.
 */
static vm_fault_t read_granule_folios(struct vm_fault *vmf, pte_t *ptes,
				      struct folio **folios)
{
	const unsigned long start = vmf->address & PAGE_GRANULE_MASK;
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
		return VM_FAULT_OOM;
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
 * May the page in the slot @pte be replaced by a copy? @folios[@nr], locked in
 * the swap cache, holds it.
 */
static bool granule_copies_folio(struct folio **folios, int nr, pte_t pte,
				 bool write)
{
	const struct folio *folio = folios[nr];
	int i, refs;

	/*
	 * What others share is copied for a write only. Nobody else can come to
	 * share a slot that only the PTE counts for.
	 */
	if (!pte_swp_exclusive(pte)) {
		/* The folio keeps the slot; this is for rcu_dereference_check(). */
		guard(rcu)();
		return write || (!folio_mapped(folio) &&
				 __swap_count(softleaf_from_pte(pte)) == 1);
	}

	/* Nobody has seen it yet but those who swap it in. */
	if (!folio_test_anon(folio))
		return true;

	/*
	 * Somebody may have taken a reference, for I/O, before the page was
	 * unmapped. See wp_can_reuse_anon_folio() for the LRU.
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
	const unsigned long start = vmf->address & PAGE_GRANULE_MASK;
	const bool write = vmf->flags & FAULT_FLAG_WRITE;
	int i;

	for (i = 0; i < PAGE_GRANULE_NR; i++) {
		const softleaf_t entry = softleaf_from_pte(ptes[i]);
		struct page *page;

		/* The lock is what keeps the slot, see do_swap_page(). */
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
	/* Its contents are nowhere else from now on. */
	folio_mark_dirty(folio);
	return true;
}

/* Map a folio to a granule, all of which is swapped out. @pte is the first. */
static void map_swapped_granule(struct vm_fault *vmf, pte_t *pte, pte_t *ptes,
				struct folio *folio)
{
	const unsigned long start = vmf->address & PAGE_GRANULE_MASK;
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

/* Release the slots of a granule that is mapped to a copy, and try to free them. */
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

/* Is what granule_swapped() has found still there? @pte is locked. */
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
 * Would a read be refused the copy, see granule_copies_folio()? Just a hint. The
 * slots are there as long as the PTEs cannot change.
 */
static bool granule_slots_shared(struct vm_fault *vmf, const pte_t *ptes)
{
	const unsigned long start = vmf->address & PAGE_GRANULE_MASK;
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
 * Swap in a granule by a copy: its slots need not be in order, and a part of it
 * may be in the swap cache, or in zswap. The copy is exclusive to this process, so
 * what fork() has shared is copied for a write only.
 *
 * Return 0 if the granule is whole or has changed meanwhile, VM_FAULT_OOM if it
 * cannot be had in one folio, or VM_FAULT_RETRY with the lock released.
 */
static vm_fault_t swapin_granule_copy(struct vm_fault *vmf, pte_t *ptes)
{
	const unsigned long start = vmf->address & PAGE_GRANULE_MASK;
	struct folio *folios[PAGE_GRANULE_NR], *folio = NULL;
	struct vm_area_struct *vma = vmf->vma;
	vm_fault_t ret;
	pte_t *pte;

	ret = read_granule_folios(vmf, ptes, folios);
	if (ret)
		return ret;

	ret = VM_FAULT_OOM;
	if (!(vmf->flags & FAULT_FLAG_WRITE) && granule_slots_shared(vmf, ptes))
		goto put_folios;
	folio = alloc_granule_folio(vma, start);
	if (!folio)
		goto put_folios;
	if (!lock_granule_folios(folios))
		goto put_folios;
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
 * swapped_granule_fits - Can a granule be mapped to its part of a larger folio?
 * @vmf: A fault on an address in a granule.
 * @folio: What the swap cache has for it, locked.
 * @page: The page of @folio for the address.
 *
 * What is new in the swap cache is mapped as a whole or not at all, see
 * do_swap_page(). A folio that others still map may well be mapped in part.
 *
 * Context: vmf->pte is mapped and locked.
 * Return: true if all of the granule is swapped out to slots of @folio, in order.
 */
bool swapped_granule_fits(struct vm_fault *vmf, struct folio *folio,
			  struct page *page)
{
	const unsigned long nr = (vmf->address & ~PAGE_GRANULE_MASK) >> PAGE_SHIFT;
	pte_t *pte = vmf->pte - nr;
	const pte_t first = ptep_get(pte);

	return folio_test_anon(folio) && folio_order(folio) > PAGE_GRANULE_ORDER &&
	       IS_ALIGNED(page_to_pfn(page) - nr, PAGE_GRANULE_NR) &&
	       pte_same(first, pte_move_swp_offset(vmf->orig_pte, -nr)) &&
	       swap_pte_batch(pte, PAGE_GRANULE_NR, first) == PAGE_GRANULE_NR;
}

/**
 * swapin_granule - Swap in a granule as a whole.
 * @vmf: A fault on an address in a granule; its PTE is neither mapped nor locked.
 * @entry: The swap entry of the page that faulted, whose device stays.
 * @orders: Bitfield of the orders to read to, besides that of the granule.
 * @foliop: Is set to a folio that is to be mapped, or left alone.
 *
 * If the slots are consecutive and aligned, the granule is in the swap cache as
 * one folio, or is read to one of @orders or its own; it remains to be mapped.
 * Otherwise, or if only a part of it is in zswap, it is copied to a folio, and
 * mapped. If a limit leaves no room for that, nothing is read but the page.
 *
 * Return: 0 if the granule is whole or has changed meanwhile; VM_FAULT_FALLBACK
 * if *@foliop, which is referenced and in the swap cache, is to be mapped, or if
 * it is NULL and the page is to be swapped in by itself; VM_FAULT_OOM for the
 * latter if there was no folio for the granule, all of which is in the swap cache
 * then; VM_FAULT_RETRY as folio_lock_or_retry() does. VM_FAULT_MAJOR if anything was
 * read.
 */
vm_fault_t swapin_granule(struct vm_fault *vmf, softleaf_t entry,
			  unsigned long orders, struct folio **foliop)
{
	const unsigned long start = vmf->address & PAGE_GRANULE_MASK;
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
	i = (vmf->address - start) >> PAGE_SHIFT;
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
	if (ret != VM_FAULT_OOM)
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
	return VM_FAULT_OOM | major;
}
#endif /* CONFIG_SWAP */

#ifdef CONFIG_SHMEM
/**
 * page_granule_monitored - Does userfaultfd wait for holes of a granule to be filled?
 * @mapping: The shared memory.
 * @index: A page of the granule.
 *
 * Whoever monitors missing pages in some mapping wants to fill each of them, whichever
 * process is the first to fault on it.
 *
 * Context: May sleep.
 * Return: true if so in any VMA.
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

/*
 * How many pages of the granule at @index are in the page cache, or swapped out, which
 * *@swapped tells? A larger folio counts as all of them.
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
 * Have all of a granule in the page cache. Pages that nobody has asked for are not
 * worth an OOM kill, unless they are by contract.
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

	/* Whoever faults for it, the owner of the memory is to be charged. */
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
 * Populate a granule of shared memory, some of which is in small folios. All of it
 * is brought into the page cache, and to one folio if it can be: a granule that was
 * there already, or swapped out page by page, gets one like this.
 *
 * Return 0 if the fault can go on with what is in the page cache now,
 * VM_FAULT_NOPAGE if there is no folio and single pages have been mapped, or an
 * error. @cached: was all of it there, or nothing? @swapped: was any of it swapped out?
 */
static vm_fault_t populate_shared_granule(struct vm_fault *vmf, bool cached,
					  bool swapped)
{
	const unsigned long start = vmf->address & PAGE_GRANULE_MASK;
	struct vm_area_struct *vma = vmf->vma;
	struct address_space *mapping = vma->vm_file->f_mapping;
	const pgoff_t index = linear_page_index(vma, start);
	vm_fault_t ret;

	/* mremap() may have made the mapping longer than the memory. */
	if (index + PAGE_GRANULE_NR >
	    DIV_ROUND_UP(i_size_read(mapping->host), PAGE_SIZE))
		return 0;
	/* Whoever monitors holes in it wants to fill them. */
	if (!cached && page_granule_monitored(mapping, index))
		return 0;
	/* What is charged for pages that nobody asked for remains charged. */
	if (!cached && !vma_granule_contract(vma) &&
	    !granule_has_room(vma))
		return 0;
	if (swapped && !page_granule_may_swap_in(vma))
		return 0;
	/* Without all of it there will be no granule. */
	if (!read_shared_granule(vma, index))
		return 0;

	/* If nothing was there, an allocation has just failed. */
	if (cached) {
		lru_add_drain();
		if (page_granule_collapse(vma, start, 0, false) >= 0) {
			if (swapped)
				page_granule_count_swapin(PAGE_GRANULE_NR);
			return 0;
		}
	}

	ret = do_fault_around(vmf, PAGE_GRANULE_NR);
	if (ret & VM_FAULT_NOPAGE) {
		if (swapped)
			count_vm_event(GRANULE_SWPIN_FALLBACK);
		page_granule_count_fault(vma, start, GRANULE_FILL_SINGLE);
		/* Others may have mapped some of the pages meanwhile. */
		vmf->pte = pte_offset_map_lock(vma->vm_mm, vmf->pmd,
					       vmf->address, &vmf->ptl);
		if (vmf->pte) {
			granule_filled(vmf);
			pte_unmap_unlock(vmf->pte, vmf->ptl);
		}
	}
	return ret;
}

/**
 * do_fault_granule - __do_fault(), and for shared memory all of the granule.
 * @vmf: A fault on an address in a granule; its PTE is neither mapped nor locked.
 *
 * Holes between pages of a granule were left, or made, by a program. They remain.
 *
 * Return: as __do_fault(), or VM_FAULT_NOPAGE if there is no folio and single
 * pages have been mapped.
 */
vm_fault_t do_fault_granule(struct vm_fault *vmf)
{
	struct vm_area_struct *vma = vmf->vma;
	const pgoff_t index = linear_page_index(vma, vmf->address & PAGE_GRANULE_MASK);
	bool swapped = false;
	struct folio *folio;
	unsigned int nr;
	vm_fault_t ret;

	nr = granule_nr_cached(vma->vm_file->f_mapping, index, &swapped);
	ret = __do_fault(vmf);
	if (ret & (VM_FAULT_ERROR | VM_FAULT_NOPAGE | VM_FAULT_RETRY))
		return ret;
	folio = page_folio(vmf->page);
	if ((nr && nr < PAGE_GRANULE_NR) || !granule_wants_pages(vmf, folio))
		return ret;

	/* The lock of one folio is not held while others are waited for. */
	folio_unlock(folio);
	folio_put(folio);
	vmf->page = NULL;
	ret &= VM_FAULT_MAJOR;
	ret |= populate_shared_granule(vmf, nr, swapped);
	if (ret & (VM_FAULT_ERROR | VM_FAULT_NOPAGE))
		return ret;
	return __do_fault(vmf) | ret;
}
#endif /* CONFIG_SHMEM */
