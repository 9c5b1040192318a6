// SPDX-License-Identifier: GPL-2.0-only
/*
 * Page granule: folios for granules.
 *
 * Allocation compacts memory as hard as vma_thp_gfp_mask() allows for huge
 * pages, but does not reclaim: nobody is swapped out for contiguity. Nor does
 * a memory cgroup at its limit reclaim for the 15 pages that were not asked
 * for, unless they are worth direct reclaim.
 */

#include <linux/compaction.h>
#include <linux/cpuset.h>
#include <linux/memcontrol.h>
#include <linux/mempolicy.h>
#include <linux/mm.h>
#include <linux/swap.h>

#include "internal.h"
#include "page_granule.h"

/* How long to leave a node alone after a failed compaction, in jiffies. */
#define GRANULE_BACKOFF		HZ

/*
 * When the back-off of each node ends, in jiffies; 0 if there is none. Callers
 * that only wake kcompactd have one of their own, and do not hold off those
 * that compact.
 */
static unsigned long granule_backoff[2][MAX_NUMNODES];

/*
 * Compact a node that has enough free memory, but not in one piece, as far as
 * @ceiling allows, the vma_thp_gfp_mask() of the VMA. This reclaims nothing:
 * __GFP_THISNODE and __GFP_NORETRY keep the caller from it, and kswapd is not
 * woken. After a failure, all callers leave the node alone for a while.
 */
static struct folio *compact_for_granule(gfp_t ceiling, int nid)
{
	unsigned long *backoff = &granule_backoff[!!(ceiling & __GFP_DIRECT_RECLAIM)][nid];
	const unsigned long until = READ_ONCE(*backoff);
	struct folio *folio = NULL;

	if (!(ceiling & __GFP_RECLAIM) || (until && time_before(jiffies, until)))
		return NULL;

	if (ceiling & __GFP_DIRECT_RECLAIM)
		folio = __folio_alloc_node(GFP_TRANSHUGE_LIGHT |
					   __GFP_DIRECT_RECLAIM |
					   __GFP_NORETRY | __GFP_THISNODE,
					   PAGE_GRANULE_ORDER, nid);
	if (folio) {
		WRITE_ONCE(*backoff, 0);
		return folio;
	}
	wakeup_kcompactd(NODE_DATA(nid), PAGE_GRANULE_ORDER,
			 gfp_zone(GFP_HIGHUSER_MOVABLE));
	/* Avoid 0, which means no back-off. */
	WRITE_ONCE(*backoff, (jiffies + GRANULE_BACKOFF) | 1);
	return NULL;
}

/*
 * The node of the CPU, or the nearest one that the cpuset allows. Allocating
 * from a forbidden node always fails, which says nothing about its memory.
 */
static int granule_local_node(void)
{
	const int nid = numa_mem_id();
	struct zoneref *z;

	if (node_isset(nid, cpuset_current_mems_allowed))
		return nid;
	z = first_zones_zonelist(node_zonelist(nid, GFP_HIGHUSER_MOVABLE),
				 gfp_zone(GFP_HIGHUSER_MOVABLE),
				 &cpuset_current_mems_allowed);
	return zonelist_zone(z) ? zonelist_node_idx(z) : NUMA_NO_NODE;
}

/*
 * Return the node to compact for an address: the node of the CPU, unless the
 * policy prefers another. Interleaving policies choose a node for each
 * allocation, so there is none to compact.
 */
static int granule_node(struct vm_area_struct *vma, unsigned long addr)
{
#ifdef CONFIG_NUMA
	int nid = granule_local_node();
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
	return granule_local_node();
#endif
}

/**
 * granule_memcg_has_room - Can pages be charged without reclaim?
 * @memcg: The memory cgroup, or NULL.
 * @nr: How many pages.
 *
 * Return: true if no limit stands in the way, which can change any time.
 */
bool granule_memcg_has_room(struct mem_cgroup *memcg, unsigned int nr)
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
 * Is there room for a granule and its copy below each limit, without reclaim?
 * The few pages that reclaim frees beyond its goal do not count as room. This
 * is only a hint.
 */
#define GRANULE_ROOM	(2 * PAGE_GRANULE_NR + SWAP_CLUSTER_MAX)

bool granule_has_room(struct vm_area_struct *vma)
{
	struct mem_cgroup *memcg = get_mem_cgroup_from_mm(vma->vm_mm);
	const bool room = granule_memcg_has_room(memcg, GRANULE_ROOM);

	mem_cgroup_put(memcg);
	return room;
}

/*
 * Can the memory cgroup stay below its own limit by dropping old page cache?
 * These are the numbers by which reclaim itself prefers page cache.
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
			granule_memcg_has_room(parent_mem_cgroup(memcg), GRANULE_ROOM);
	}
	mem_cgroup_put(memcg);
	return cache;
}

/*
 * Set @charge to the flags to charge the pages of a granule with, and return
 * whether charging them is worth a try.
 *
 * A memory cgroup at its limit reclaims for 16 pages instead of one as it does
 * for other huge pages: only if they are worth direct reclaim. Otherwise, the
 * other 15 pages would displace memory in use. Old page cache can make room for
 * them, though, and a contract asks for all of them.
 */
bool granule_may_charge(struct vm_area_struct *vma, gfp_t *charge)
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
 * page_granule_may_swap_in - Should a fault on a page swap in its granule?
 * @vma: The tagged VMA, stabilised by the mmap lock or its VMA lock.
 *
 * At a limit, the other pages would displace memory in use, which would come
 * back in granules in turn. A VMA that is worth direct reclaim for huge pages
 * may reclaim for this as well.
 *
 * Return: false if the page is to be swapped in alone. This is only a hint.
 */
bool page_granule_may_swap_in(struct vm_area_struct *vma)
{
	return (vma_thp_gfp_mask(vma) & __GFP_DIRECT_RECLAIM) ||
	       granule_has_room(vma);
}

/**
 * page_granule_alloc_node - Allocate a folio for a granule on a node.
 * @ceiling: vma_thp_gfp_mask() of the VMA, which limits the effort.
 * @nid: The node.
 *
 * Context: May sleep.
 * Return: a folio that is not charged, or NULL.
 */
struct folio *page_granule_alloc_node(gfp_t ceiling, int nid)
{
	struct folio *folio;

	/* A node that a cpuset excludes is not short of memory. */
	if (!node_isset(nid, cpuset_current_mems_allowed))
		return NULL;
	folio = __folio_alloc_node(GFP_TRANSHUGE_LIGHT | __GFP_THISNODE,
				   PAGE_GRANULE_ORDER, nid);
	return folio ?: compact_for_granule(ceiling, nid);
}

/**
 * page_granule_alloc_uncharged - Allocate a folio for a granule.
 * @vma: The tagged VMA, stabilised by the mmap lock or its VMA lock.
 * @addr: An address in the granule.
 * @charge: Set to the flags to charge the folio with.
 *
 * Free memory comes from the nodes of the memory policy. If it is fragmented, a
 * granule is worth the same effort as a huge page, except for reclaim: nobody
 * is swapped out for contiguity alone.
 *
 * Context: May sleep.
 * Return: a folio that is not charged, or NULL.
 */
struct folio *page_granule_alloc_uncharged(struct vm_area_struct *vma, unsigned long addr,
					   gfp_t *charge)
{
	struct folio *folio;
	gfp_t ceiling;
	int nid;

	if (!vma_granule_folios(vma) || !granule_may_charge(vma, charge))
		return NULL;

	addr = granule_start(addr);
	folio = vma_alloc_folio(GFP_TRANSHUGE_LIGHT, PAGE_GRANULE_ORDER, vma, addr);
	if (folio)
		return folio;

	ceiling = vma_thp_gfp_mask(vma);
	if (!(ceiling & __GFP_RECLAIM))
		return NULL;
	nid = granule_node(vma, addr);
	return nid == NUMA_NO_NODE ? NULL : compact_for_granule(ceiling, nid);
}

/**
 * page_granule_alloc_cache - Allocate a folio for a granule of a file.
 * @gfp: What readahead_gfp_mask() allows for the file.
 * @ractl: Readahead for a fault in a tagged VMA.
 *
 * The effort is that for anonymous memory, except that a task whose policy or
 * cpuset chooses nodes gets what is free there. If it fails, readahead goes on
 * with smaller folios.
 *
 * Context: May sleep.
 * Return: a folio that is not charged, or NULL.
 */
struct folio *page_granule_alloc_cache(gfp_t gfp, const struct readahead_control *ractl)
{
	const gfp_t movable = GFP_HIGHUSER_MOVABLE & GFP_ZONEMASK;
	const int nid = granule_local_node();
	struct folio *folio;

	folio = filemap_alloc_folio(gfp & ~__GFP_RECLAIM, PAGE_GRANULE_ORDER, NULL);
	/* Compaction makes room where movable memory is. */
	if (folio || (gfp & GFP_ZONEMASK) != movable || nid == NUMA_NO_NODE)
		return folio;
#ifdef CONFIG_NUMA
	if (current->mempolicy || cpuset_do_page_mem_spread())
		return NULL;
#endif
	return compact_for_granule(ractl->_granule_gfp, nid);
}

/* Allocate and charge a folio for a granule. Returns NULL if there is none. */
struct folio *alloc_granule_folio(struct vm_area_struct *vma,
				  unsigned long addr)
{
	struct folio *folio;
	gfp_t charge;

	folio = page_granule_alloc_uncharged(vma, addr, &charge);
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
