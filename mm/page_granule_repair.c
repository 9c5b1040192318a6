// SPDX-License-Identifier: GPL-2.0
/*
 * Page granule: the worker that repairs broken granules.
 *
 * A granule breaks if memory is short when it is populated or copied, or if its
 * folio is split, for instance by reclaim. The code that leaves it like that
 * adds a hint. An address space is scanned only if it has more hints than are
 * remembered. A worker with a small budget takes turns between the address
 * spaces, and has broken granules collapsed to one folio
 * (page_granule_collapse.c).
 */

#include <linux/debugfs.h>
#include <linux/hashtable.h>
#include <linux/init.h>
#include <linux/jiffies.h>
#include <linux/list.h>
#include <linux/memcontrol.h>
#include <linux/mm.h>
#include <linux/sched/cputime.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/swap.h>
#include <linux/workqueue.h>

#include "internal.h"
#include "mm_slot.h"
#include "page_granule.h"

/* Tests that need broken granules switch this off in debugfs. */
static bool repair_enabled = true;

/*
 * Each address space has hints to its broken granules. The address spaces take
 * turns, so that none of them can keep the others waiting:
 *
 *   repair_queue -> [ mm: hints ] -> [ mm: hints ] -> [ mm: look at all of it ]
 *                    ^ its turn: a few granules, then to the end of the queue
 */

/* Hints to remember per address space; with more, scan all of it. */
#define REPAIR_HINTS	64
/* Limits of one turn: granules to repair, and blocks to look at. */
#define REPAIR_TURN	8
#define REPAIR_LOOKS	512
/* How often to retry a granule in use. Shortage of memory does not count. */
#define REPAIR_TRIES	8
/* Wait after failures in an address space, in jiffies. */
#define REPAIR_MIN_WAIT	(HZ / 4)
#define REPAIR_MAX_WAIT	(2 * HZ)
/* Rest between two passes of the worker, in jiffies. */
#define REPAIR_MIN_REST	(HZ / 10)
#define REPAIR_MAX_REST	(HZ / 2)
/* CPU time of a pass in nanoseconds, and the rest after it as a multiple. */
#define REPAIR_PASS	(4 * NSEC_PER_MSEC)
#define REPAIR_REST	24

/**
 * struct repair_slot - The repairs to do in an address space.
 * @slot: Finds the slot by its mm, without a reference. The mm frees the slot
 *	 when it exits, or the worker does at the end of the turn of the mm.
 * @due: When the next turn may come, in jiffies.
 * @wait: How long the last failure has made it wait, in jiffies.
 * @nr: The number of hints.
 * @hints: Addresses of granules; the low bits hold REPAIR_IN_PLACE and the
 *	 number of tries.
 * @scan: There were too many hints: look at the whole address space.
 * @scan_addr: Where the scan goes on.
 * @scan_failed: Some granules that this scan could not repair may be repaired
 *	 later.
 * @scan_tries: How many scans have ended without a success.
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

/* In a hint: leave pages on several nodes, where somebody may want them. */
#define REPAIR_IN_PLACE	BIT(PAGE_SHIFT)

#define REPAIR_HASH_BITS	8

/* Protects the queue, the hash table and the hints in the slots. */
static DEFINE_SPINLOCK(repair_lock);
static LIST_HEAD(repair_queue);
/* The address space whose turn it is: its slot stays. */
static struct mm_struct *repair_mm;
static DEFINE_HASHTABLE(repair_hash, REPAIR_HASH_BITS);

/*
 * Batches of the LRU may hold the only references that keep pages in use. Drain
 * them, but not more often than this, in jiffies.
 */
#define REPAIR_DRAIN	(HZ / 2)
static bool repair_drain;

/* When the worker may run again, in jiffies. */
static unsigned long repair_not_before = INITIAL_JIFFIES;

static void repair_pass(struct work_struct *work);
static DECLARE_DELAYED_WORK(repair_work, repair_pass);

static struct repair_slot *repair_new_slot(struct mm_struct *mm)
{
	/* Reclaim adds hints, too, and must not spend its reserves on them. */
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
		    granule_start(hint)) {
			/* A new hint keeps the number of tries. */
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
	/* Folios are split even while @mm exits, see __page_granule_exit(). */
	if (!slot && atomic_read(&mm->mm_users))
		slot = repair_new_slot(mm);
	if (slot)
		repair_add_hint(slot, hint);
	spin_unlock(&repair_lock);

	/* A hint does not shorten the rest that the worker owes. */
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
 * Faults on several CPUs can leave the pages on several nodes. Repair moves
 * them to the node that holds most of them. Without memory for the hint, only
 * MADV_COLLAPSE repairs the granule.
 *
 * Context: Any; a page table lock may be held.
 */
void page_granule_repair_later(struct mm_struct *mm, unsigned long addr)
{
	repair_later(mm, granule_start(addr));
}

/**
 * page_granule_repair_in_place - Have a granule repaired soon that is being split.
 * @mm: The address space.
 * @addr: An address in the granule.
 *
 * This is page_granule_repair_later(), but repair leaves pages on several nodes
 * alone: the split may serve move_pages() or mbind().
 *
 * Context: Any; a page table lock may be held.
 */
void page_granule_repair_in_place(struct mm_struct *mm, unsigned long addr)
{
	repair_later(mm, granule_start(addr) | REPAIR_IN_PLACE);
}

/* See page_granule_exit(). mm_users is 0, so @mm gets no new slot any more. */
void __page_granule_exit(struct mm_struct *mm)
{
	struct repair_slot *slot = NULL;
	struct mm_slot *mm_slot;
	bool turn;

	spin_lock(&repair_lock);
	turn = mm == repair_mm;
	mm_slot = turn ? NULL : mm_slot_lookup(repair_hash, mm);
	if (mm_slot) {
		slot = mm_slot_entry(mm_slot, struct repair_slot, slot);
		mm_slot_remove(mm_slot);
	}
	spin_unlock(&repair_lock);
	kfree(slot);

	/* mm_users is 0: the worker gets no new lock. Wait for one it may have. */
	if (turn) {
		mmap_write_lock(mm);
		mmap_write_unlock(mm);
	}
}

/*
 * Lock an address space for reading, unless somebody holds the lock, or it
 * exits. The worker does not keep it from exiting, since who waits for the end
 * of a process relies on the end of its mappings.
 */
static bool repair_trylock(struct mm_struct *mm)
{
	if (!mmap_read_trylock(mm))
		return false;
	if (atomic_read(&mm->mm_users))
		return true;
	mmap_read_unlock(mm);
	return false;
}

/*
 * granule_collapse_prepare() for the worker. It moves no locked memory, and
 * leaves pages on several nodes alone if @hint says so.
 */
static int repair_prepare_hint(struct mm_struct *mm, unsigned long hint,
			       struct granule_target *target,
			       struct vm_area_struct **vmap)
{
	const unsigned long addr = granule_start(hint);
	struct vm_area_struct *vma = vma_lookup(mm, addr);
	int ret;

	if (!vma || (vma->vm_flags & VM_LOCKED))
		return -EINVAL;
	*vmap = vma;
	ret = granule_collapse_prepare(vma, addr, target);
	return !ret && target->scattered && (hint & REPAIR_IN_PLACE) ? -EINVAL : ret;
}

/*
 * Repair the granule of @mm that @hint names. This allocates a folio without
 * the mmap lock, and uses it only if neither the granule nor its place has
 * changed. Returns 0 if the granule is whole; else an error of
 * granule_collapse_prepare() or granule_target_alloc(), or -EAGAIN.
 */
static int repair_one(struct mm_struct *mm, unsigned long hint)
{
	/* Nobody waits for a repair, so it must not reclaim. */
	const gfp_t charge = GFP_PAGE_GRANULE_CHARGE & ~__GFP_DIRECT_RECLAIM;
	struct granule_target target = {}, now = {};
	struct vm_area_struct *vma;
	struct folio *folio;
	int error;

	/* One address space must not hold up the others. */
	if (!repair_trylock(mm))
		return -EAGAIN;
	error = repair_prepare_hint(mm, hint, &target, &vma);
	if (!error && target.cached)
		error = granule_collapse_finish(vma, granule_start(hint), &target, NULL) ?: 1;
	mmap_read_unlock(mm);
	if (error)
		goto out;

	folio = granule_target_alloc(&target, mm, charge);
	if (IS_ERR(folio)) {
		error = PTR_ERR(folio);
		goto out;
	}

	error = -EAGAIN;
	if (!repair_trylock(mm)) {
		folio_put(folio);
		goto out;
	}
	error = repair_prepare_hint(mm, hint, &now, &vma);
	if (!error && (now.nid != target.nid || now.policy != target.policy ||
		       now.memcg != target.memcg || now.anon != target.anon))
		error = -EAGAIN;
	if (error)
		folio_put(folio);
	else
		error = granule_collapse_finish(vma, granule_start(hint), &now, folio);
	mmap_read_unlock(mm);
out:
	granule_target_put(&now);
	granule_target_put(&target);
	return min(error, 0);
}

/*
 * Look for a broken granule from *@addr on, and set *@addr behind it. @looks
 * limits how many page tables and granules to look at. Returns 1 with a hint in
 * *@found if there is one; 0 if @looks is used up; -ENOENT at the end of the
 * address space; -EAGAIN if somebody else holds the mmap lock.
 */
static int repair_find(struct mm_struct *mm, unsigned long *addr,
		       unsigned int *looks, unsigned long *found)
{
	struct vm_area_struct *vma;
	int ret = -ENOENT;

	VMA_ITERATOR(vmi, mm, *addr);

	if (!repair_trylock(mm))
		return -EAGAIN;
	for_each_vma(vmi, vma) {
		unsigned long at = ALIGN(max(vma->vm_start, *addr),
					 PAGE_GRANULE_SIZE);

		if (!vma_granule_tagged(vma) || (vma->vm_flags & VM_LOCKED))
			continue;
		for (; at < vma->vm_end; at = *addr) {
			struct granule_target target = {};
			int state;

			if (!*looks) {
				*addr = at;
				ret = 0;
				goto out;
			}
			(*looks)--;
			/* Nothing is populated without a page table. */
			if (!granule_pmd(mm, at)) {
				*addr = ALIGN(at + 1, PMD_SIZE);
				continue;
			}
			*addr = at + PAGE_GRANULE_SIZE;
			state = granule_collapse_prepare(vma, at, &target);
			granule_target_put(&target);
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

/* Get the next granule to repair, from a hint or else from the scan. */
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
	/* The scan is complete. Repeat it if that can be of any use. */
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

/* Handle the result of @hint. Returns false if the turn of @slot is over. */
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
		/* Others may have the memory that is short here. */
		goes_on = !short_of_memory;
	}
	spin_unlock(&repair_lock);
	return goes_on;
}

/*
 * Serve the turn of an address space, which is referenced. The turn ends with
 * the time of the pass, which began when the worker had run for @start
 * nanoseconds.
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
 * Find the next address space whose turn is due, and move it to the end of the
 * queue. Returns NULL if there is none. A reference keeps the mm_struct, but
 * not the address space.
 */
static struct repair_slot *repair_next_slot(void)
{
	struct repair_slot *slot, *next = NULL;

	spin_lock(&repair_lock);
	list_for_each_entry(slot, &repair_queue, slot.mm_node) {
		if (time_before(jiffies, slot->due))
			continue;
		next = slot;
		repair_mm = slot->slot.mm;
		mmgrab(repair_mm);
		list_move_tail(&slot->slot.mm_node, &repair_queue);
		break;
	}
	spin_unlock(&repair_lock);
	return next;
}

/* Forget an address space without anything left to repair, and release it. */
static void repair_end_turn(struct repair_slot *slot)
{
	struct mm_struct *mm = slot->slot.mm;

	spin_lock(&repair_lock);
	repair_mm = NULL;
	if ((slot->nr || slot->scan) && atomic_read(&mm->mm_users))
		slot = NULL;
	else
		mm_slot_remove(&slot->slot);
	spin_unlock(&repair_lock);
	kfree(slot);
	mmdrop(mm);
}

/*
 * A pass serves turns until none is due, or its time is over. The following
 * rest limits the worker to a twenty-fifth of a CPU.
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
	/* If time ran out, more turns may be due: do not rest for long. */
	if (used >= REPAIR_PASS)
		rest = REPAIR_MIN_REST;
	/* The time includes waits of a virtual CPU, so limit the rest. */
	owed = min(nsecs_to_jiffies(used * REPAIR_REST), REPAIR_MAX_WAIT);
	rest = max(rest, owed);
	/* Set this before looking at the queue, so that later hints see it. */
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
