// SPDX-License-Identifier: GPL-2.0
/*
 * Page granule: every system call keeps the contract. On a contract VMA a call
 * that would cut a granule fails with EINVAL and changes nothing. On a
 * default-tagged one it does what it does on untagged memory.
 *
 * Tables run each call on every layout of VMAs and on every range of it, next
 * to an untagged twin; page_granule_arena.c has the layouts.
 * page_granule_memory.c tests calls that do more than act on a range.
 */
#define _GNU_SOURCE
#include "kselftest_harness.h"
#include <asm-generic/mman.h> /* Force the import of the tools version. */
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "vm_util.h"
#include "page_granule_arena.h"
#include "page_granule_util.h"

static const struct layout layouts[] = {
	{ "one VMA", false, { { 't', 6, false } } },
	{ "untagged, tagged", true, { { 'u', 2, false }, { 't', 4, false } } },
	{ "tagged, untagged", true, { { 't', 4, false }, { 'u', 2, false } } },
	{ "default, tagged", true, { { 'd', 2, false }, { 't', 4, false } } },
	{ "tagged, default", true, { { 't', 4, false }, { 'd', 2, false } } },
	{ "tagged, tagged read-only", false, { { 't', 3, false }, { 't', 3, true } } },
	{ "tagged, untagged, tagged", false,
	  { { 't', 2, false }, { 'u', 2, false }, { 't', 2, false } } },
	{ "tagged, hole, tagged", false,
	  { { 't', 2, false }, { 'h', 2, false }, { 't', 2, false } } },
};

static const struct range ranges[] = {
	{ "one granule", 16, 32 },
	{ "the two in the middle", 32, 64 },
	{ "all", 0, 96 },
	{ "start misaligned", 17, 48 },
	{ "end misaligned", 16, 47 },
	{ "inside a granule", 21, 22 },
	{ "a granule's length, shifted", 20, 36 },
	{ "two pages of two granules", 31, 33 },
	{ "first page", 0, 1 },
	{ "last page", 95, 96 },
	{ "all but the first page", 1, 96 },
	{ "all but the last page", 0, 95 },
	{ "half a granule at either end", 24, 72 },
	{ "from the start into the third", 0, 40 },
};

/*
 * Reused by all rows of a test: the more VMAs there are, the longer is smaps.
 */
static struct arena twin, tagged;

/*
 * The calls. A call on a range: @arg is its advice, protection or whatever it
 * needs. Returns 0 or the negative errno.
 */
typedef int (*range_call)(struct arena *arena, char *addr, size_t len, int arg);

static int call_munmap(struct arena *arena, char *addr, size_t len, int arg)
{
	return munmap(addr, len) ? -errno : 0;
}

static int call_mprotect(struct arena *arena, char *addr, size_t len, int arg)
{
	return mprotect(addr, len, arg) ? -errno : 0;
}

/* Key -1 is what mprotect() uses, and needs no hardware. */
static int call_pkey_mprotect(struct arena *arena, char *addr, size_t len, int arg)
{
	return syscall(__NR_pkey_mprotect, addr, len, arg, -1) ? -errno : 0;
}

static int call_pkey_mprotect_key(struct arena *arena, char *addr, size_t len, int arg)
{
	static int key;

	if (!key)
		key = syscall(__NR_pkey_alloc, 0UL, 0UL);
	if (key < 0)
		return -ENOSPC;
	return syscall(__NR_pkey_mprotect, addr, len, arg, key) ? -errno : 0;
}

static int call_madvise(struct arena *arena, char *addr, size_t len, int arg)
{
	return madvise(addr, len, arg) ? -errno : 0;
}

static int advise_process(int pidfd, char *addr, size_t len, int advice)
{
	struct iovec iov = { .iov_base = addr, .iov_len = len };
	ssize_t ret = syscall(__NR_process_madvise, pidfd, &iov, 1UL, advice, 0U);

	if (ret < 0)
		return -errno;
	return ret == (ssize_t)len ? 0 : -EIO;
}

static int call_process_madvise(struct arena *arena, char *addr, size_t len, int arg)
{
	int pidfd = syscall(__NR_pidfd_open, getpid(), 0);
	int ret;

	if (pidfd < 0)
		return -errno;
	ret = advise_process(pidfd, addr, len, arg);
	close(pidfd);
	return ret;
}

static int call_mmap(struct arena *arena, char *addr, size_t len, int arg)
{
	return mmap(addr, len, PROT_READ, ANON_FLAGS | arg, -1, 0) == MAP_FAILED ? -errno : 0;
}

static int call_mremap_away(struct arena *arena, char *addr, size_t len, int arg)
{
	char *ptr = sys_mremap(addr, len, len, MREMAP_MAYMOVE | MREMAP_FIXED | arg,
			       arena->dest + (addr - arena->base));

	return ptr == MAP_FAILED ? -errno : 0;
}

/* The VMA loses the range. */
static int call_mremap_shrink(struct arena *arena, char *addr, size_t len, int arg)
{
	const struct segment *seg = arena->layout->seg;
	char *start = arena->base;

	while (addr >= start + seg->granules * GRANULE_SIZE)
		start += seg++->granules * GRANULE_SIZE;
	return sys_mremap(start, addr + len - start, addr - start, 0, NULL) == MAP_FAILED ?
	       -errno : 0;
}

/* Move untagged memory over the range. */
static int call_mremap_onto(struct arena *arena, char *addr, size_t len, int arg)
{
	static char *src;

	/* Never where an arena has its hole. */
	if (!src)
		src = granule_reserve(LAYOUT_LEN);
	if (!src || granule_mmap(GRANULE_UNTAGGED, src, len, PROT_READ, MAP_FIXED) != src)
		return -ENOMEM;
	return sys_mremap(src, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, addr) == MAP_FAILED ?
	       -errno : 0;
}

static int call_mbind(struct arena *arena, char *addr, size_t len, int arg)
{
	unsigned long node0 = 1;

	return syscall(__NR_mbind, addr, len, arg, &node0, 8UL, 0UL) ? -errno : 0;
}

static int call_home_node(struct arena *arena, char *addr, size_t len, int arg)
{
	return syscall(__NR_set_mempolicy_home_node, addr, len, 0UL, 0UL) ? -errno : 0;
}

static int call_mseal(struct arena *arena, char *addr, size_t len, int arg)
{
	return syscall(__NR_mseal, addr, len, 0UL) ? -errno : 0;
}

static int call_anon_name(struct arena *arena, char *addr, size_t len, int arg)
{
	return prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, addr, len, "granule") ? -errno : 0;
}

/* Put a System V segment of the same length over the range. */
static int call_shmat(struct arena *arena, char *addr, size_t len, int arg)
{
	int id = shmget(IPC_PRIVATE, len, IPC_CREAT | 0600);
	int ret = 0;

	if (id < 0)
		return -errno;
	if (shmat(id, addr, arg) == (void *)-1)
		ret = -errno;
	shmctl(id, IPC_RMID, NULL);
	return ret;
}

static int call_remap_file_pages(struct arena *arena, char *addr, size_t len, int arg)
{
	return granule_remap_pages(addr, len, arg);
}

static int call_uffd_register(struct arena *arena, char *addr, size_t len, int arg)
{
	if (!arena->uffd) {
		arena->uffd = granule_uffd(0, O_NONBLOCK | UFFD_USER_MODE_ONLY);
		if (arena->uffd < 0)
			return -EOPNOTSUPP;
	}
	return uffd_register(arena->uffd, addr, len, true, false, false);
}

static int call_uffd_unregister(struct arena *arena, char *addr, size_t len, int arg)
{
	return uffd_unregister(arena->uffd, addr, len);
}

static int call_mlock(struct arena *arena, char *addr, size_t len, int arg)
{
	return mlock(addr, len) ? -errno : 0;
}

static int call_mlock2(struct arena *arena, char *addr, size_t len, int arg)
{
	return syscall(__NR_mlock2, addr, len, arg) ? -errno : 0;
}

static int call_munlock(struct arena *arena, char *addr, size_t len, int arg)
{
	return munlock(addr, len) ? -errno : 0;
}

static int call_msync(struct arena *arena, char *addr, size_t len, int arg)
{
	return msync(addr, len, arg) ? -errno : 0;
}

/* One byte for each 4 KiB page, and not one more. */
static int call_mincore(struct arena *arena, char *addr, size_t len, int arg)
{
	unsigned char vec[LAYOUT_PAGES + 1];
	size_t pages = len / BASE_SIZE;

	memset(vec, 0xa5, sizeof(vec));
	if (mincore(addr, len, vec))
		return -errno;
	return vec[pages] != 0xa5 || memchr(vec, 0xa5, pages) ? -EOVERFLOW : 0;
}

FIXTURE(page_granule_calls)
{
};

/* How a call departs from the rule. */
#define CALL_HARMLESS	1	/* changes nothing, so is never refused */
#define CALL_REFUSED	2	/* EINVAL for a contract VMA even when aligned */
#define CALL_REPLACES	4	/* other memory is there afterwards */
#define CALL_EVICTS	8	/* what it evicts depends on the LRU lists */
#define CALL_SHARED	16	/* for shared memory only */
#define CALL_MERGES	32	/* is about KSM, which contract VMAs have none of */
#define CALL_UNMAPS	64	/* a large folio of a file is unmapped to be split */
#define CALL_FORMS	128	/* is content with granules where they are */
#define CALL_STRICT	256	/* EINVAL, though it fails on untagged memory, too */

FIXTURE_VARIANT(page_granule_calls)
{
	range_call call;
	int arg;
	/* To be called on each VMA before. */
	range_call prepare;
	int prepare_arg;
	/* What to build the kernel with if the call is not there. */
	const char *config;
	/* The result of the call on untagged memory, if all is well. */
	int result;
	unsigned int how;
};

#define MADVISE(advice, ...) { .call = call_madvise, .arg = advice, __VA_ARGS__ }
#define AFTER(advice) .prepare = call_madvise, .prepare_arg = advice

FIXTURE_VARIANT_ADD(page_granule_calls, munmap)
{
	.call = call_munmap,
};

FIXTURE_VARIANT_ADD(page_granule_calls, mprotect)
{
	.call = call_mprotect,
	.arg = PROT_READ,
};

FIXTURE_VARIANT_ADD(page_granule_calls, mprotect_none)
{
	.call = call_mprotect,
	.arg = PROT_NONE,
};

FIXTURE_VARIANT_ADD(page_granule_calls, mprotect_same)
{
	.call = call_mprotect,
	.arg = PROT_RW,
};

FIXTURE_VARIANT_ADD(page_granule_calls, pkey_mprotect)
{
	.call = call_pkey_mprotect,
	.arg = PROT_READ,
};

FIXTURE_VARIANT_ADD(page_granule_calls, pkey_mprotect_key)
{
	.call = call_pkey_mprotect_key,
	.arg = PROT_RW,
	.config = "ARCH_HAS_PKEYS",
};

FIXTURE_VARIANT_ADD(page_granule_calls, map_fixed)
{
	.call = call_mmap,
	.arg = MAP_FIXED,
	.how = CALL_REPLACES,
};

FIXTURE_VARIANT_ADD(page_granule_calls, map_fixed_4kb)
{
	.call = call_mmap,
	.arg = MAP_FIXED | MAP_GRANULE_4KB,
	.how = CALL_REPLACES,
};

FIXTURE_VARIANT_ADD(page_granule_calls, map_fixed_populate)
{
	.call = call_mmap,
	.arg = MAP_FIXED | MAP_POPULATE,
	.how = CALL_REPLACES,
};

FIXTURE_VARIANT_ADD(page_granule_calls, map_fixed_noreplace)
{
	.call = call_mmap,
	.arg = MAP_FIXED_NOREPLACE,
	.result = -EEXIST,
};

FIXTURE_VARIANT_ADD(page_granule_calls, mremap_away)
{
	.call = call_mremap_away,
};

FIXTURE_VARIANT_ADD(page_granule_calls, mremap_dontunmap)
{
	.call = call_mremap_away,
	.arg = MREMAP_DONTUNMAP,
};

FIXTURE_VARIANT_ADD(page_granule_calls, mremap_shrink)
{
	.call = call_mremap_shrink,
};

FIXTURE_VARIANT_ADD(page_granule_calls, mremap_onto)
{
	.call = call_mremap_onto,
	.how = CALL_REPLACES,
};

FIXTURE_VARIANT_ADD(page_granule_calls, mbind)
{
	.call = call_mbind,
	.arg = POLICY_PREFERRED,
	.config = "NUMA",
};

FIXTURE_VARIANT_ADD(page_granule_calls, home_node)
{
	.call = call_home_node,
	.prepare = call_mbind,
	.prepare_arg = POLICY_BIND,
	.config = "NUMA",
};

/* Where there is no policy, there is no node to set. */
FIXTURE_VARIANT_ADD(page_granule_calls, home_node_no_policy)
{
	.call = call_home_node,
	.config = "NUMA",
	.result = -ENOENT,
};

FIXTURE_VARIANT_ADD(page_granule_calls, mseal)
{
	.call = call_mseal,
	.config = "64BIT",
};

FIXTURE_VARIANT_ADD(page_granule_calls, anon_name)
{
	.call = call_anon_name,
	.config = "ANON_VMA_NAME",
};

FIXTURE_VARIANT_ADD(page_granule_calls, shmat_remap)
{
	.call = call_shmat,
	.arg = SHM_REMAP,
	.config = "SYSVIPC",
	.how = CALL_REPLACES,
};

FIXTURE_VARIANT_ADD(page_granule_calls, shmat_occupied)
{
	.call = call_shmat,
	.result = -EINVAL,
	.config = "SYSVIPC",
};

FIXTURE_VARIANT_ADD(page_granule_calls, remap_file_pages)
{
	.call = call_remap_file_pages,
	/*
	 * Not the offset that is there already, which would merge with the rest
	 * again.
	 */
	.arg = 2 * GRANULE_NR_PAGES,
	.how = CALL_SHARED,
};

FIXTURE_VARIANT_ADD(page_granule_calls, uffd_register)
{
	.call = call_uffd_register,
	.config = "USERFAULTFD",
};

FIXTURE_VARIANT_ADD(page_granule_calls, uffd_unregister)
{
	.call = call_uffd_unregister,
	.prepare = call_uffd_register,
	.config = "USERFAULTFD",
};

FIXTURE_VARIANT_ADD(page_granule_calls, mlock)
{
	.call = call_mlock,
};

FIXTURE_VARIANT_ADD(page_granule_calls, mlock2_onfault)
{
	.call = call_mlock2,
	.arg = MLOCK_ONFAULT,
};

FIXTURE_VARIANT_ADD(page_granule_calls, munlock)
{
	.call = call_munlock,
	.prepare = call_mlock,
};

FIXTURE_VARIANT_ADD(page_granule_calls, msync)
{
	.call = call_msync,
	.arg = MS_SYNC,
	.how = CALL_HARMLESS,
};

FIXTURE_VARIANT_ADD(page_granule_calls, msync_invalidate)
{
	.call = call_msync,
	.arg = MS_ASYNC | MS_INVALIDATE,
	.how = CALL_HARMLESS,
};

FIXTURE_VARIANT_ADD(page_granule_calls, mincore)
{
	.call = call_mincore,
	.how = CALL_HARMLESS,
};

FIXTURE_VARIANT_ADD(page_granule_calls, process_madv_cold)
{
	.call = call_process_madvise,
	.arg = MADV_COLD,
	.how = CALL_UNMAPS,
};

FIXTURE_VARIANT_ADD(page_granule_calls, process_madv_pageout)
{
	.call = call_process_madvise,
	.arg = MADV_PAGEOUT,
	.how = CALL_EVICTS,
};

FIXTURE_VARIANT_ADD(page_granule_calls, process_madv_willneed)
{
	.call = call_process_madvise,
	.arg = MADV_WILLNEED,
};

FIXTURE_VARIANT_ADD(page_granule_calls, process_madv_dontneed)
{
	.call = call_process_madvise,
	.arg = MADV_DONTNEED,
};

FIXTURE_VARIANT_ADD(page_granule_calls, process_madv_guard_install)
{
	.call = call_process_madvise,
	.arg = MADV_GUARD_INSTALL,
};

FIXTURE_VARIANT_ADD(page_granule_calls, madv_normal)
	MADVISE(MADV_NORMAL, AFTER(MADV_RANDOM));
FIXTURE_VARIANT_ADD(page_granule_calls, madv_random) MADVISE(MADV_RANDOM);
FIXTURE_VARIANT_ADD(page_granule_calls, madv_sequential) MADVISE(MADV_SEQUENTIAL);
FIXTURE_VARIANT_ADD(page_granule_calls, madv_willneed) MADVISE(MADV_WILLNEED);
FIXTURE_VARIANT_ADD(page_granule_calls, madv_dontneed) MADVISE(MADV_DONTNEED);
FIXTURE_VARIANT_ADD(page_granule_calls, madv_dontneed_locked)
	MADVISE(MADV_DONTNEED_LOCKED, .prepare = call_mlock);
FIXTURE_VARIANT_ADD(page_granule_calls, madv_dontneed_of_locked)
	MADVISE(MADV_DONTNEED, .prepare = call_mlock, .result = -EINVAL);
FIXTURE_VARIANT_ADD(page_granule_calls, madv_free) MADVISE(MADV_FREE);
FIXTURE_VARIANT_ADD(page_granule_calls, madv_remove)
	MADVISE(MADV_REMOVE, .how = CALL_SHARED | CALL_UNMAPS);
FIXTURE_VARIANT_ADD(page_granule_calls, madv_dontfork) MADVISE(MADV_DONTFORK);
FIXTURE_VARIANT_ADD(page_granule_calls, madv_dofork) MADVISE(MADV_DOFORK, AFTER(MADV_DONTFORK));
FIXTURE_VARIANT_ADD(page_granule_calls, madv_dontdump) MADVISE(MADV_DONTDUMP);
FIXTURE_VARIANT_ADD(page_granule_calls, madv_dodump) MADVISE(MADV_DODUMP, AFTER(MADV_DONTDUMP));
FIXTURE_VARIANT_ADD(page_granule_calls, madv_wipeonfork) MADVISE(MADV_WIPEONFORK);
FIXTURE_VARIANT_ADD(page_granule_calls, madv_keeponfork)
	MADVISE(MADV_KEEPONFORK, AFTER(MADV_WIPEONFORK));
FIXTURE_VARIANT_ADD(page_granule_calls, madv_hugepage) MADVISE(MADV_HUGEPAGE);
FIXTURE_VARIANT_ADD(page_granule_calls, madv_nohugepage)
	MADVISE(MADV_NOHUGEPAGE, AFTER(MADV_HUGEPAGE));
FIXTURE_VARIANT_ADD(page_granule_calls, madv_mergeable)
	MADVISE(MADV_MERGEABLE, .config = "KSM", .how = CALL_REFUSED);
FIXTURE_VARIANT_ADD(page_granule_calls, madv_unmergeable)
	MADVISE(MADV_UNMERGEABLE, AFTER(MADV_MERGEABLE), .config = "KSM", .how = CALL_MERGES);
/* The advice is about a part of a granule, which the kernel splits for it. */
FIXTURE_VARIANT_ADD(page_granule_calls, madv_cold) MADVISE(MADV_COLD, .how = CALL_UNMAPS);
FIXTURE_VARIANT_ADD(page_granule_calls, madv_pageout) MADVISE(MADV_PAGEOUT, .how = CALL_EVICTS);
FIXTURE_VARIANT_ADD(page_granule_calls, madv_populate_read) MADVISE(MADV_POPULATE_READ);
FIXTURE_VARIANT_ADD(page_granule_calls, madv_populate_write) MADVISE(MADV_POPULATE_WRITE);
/*
 * There is no room for a huge page in the arena; see
 * page_granule_calls_failure.
 */
FIXTURE_VARIANT_ADD(page_granule_calls, madv_collapse)
	MADVISE(MADV_COLLAPSE, .result = -EINVAL, .how = CALL_FORMS);
FIXTURE_VARIANT_ADD(page_granule_calls, madv_guard_install) MADVISE(MADV_GUARD_INSTALL);
FIXTURE_VARIANT_ADD(page_granule_calls, madv_guard_remove)
	MADVISE(MADV_GUARD_REMOVE, AFTER(MADV_GUARD_INSTALL));

#define CALL_VARIANT FIXTURE_VARIANT(page_granule_calls)

static int run_call(const CALL_VARIANT *op, struct arena *arena, unsigned int first,
		    unsigned int last)
{
	return op->call(arena, arena->base + first * BASE_SIZE,
			(last - first) * BASE_SIZE, op->arg);
}

static bool map_and_prepare(const CALL_VARIANT *op, struct arena *arena,
			    const struct layout *layout, enum granule_kind kind, bool shared)
{
	const struct segment *seg;
	char *addr;

	if (!arena_map(arena, layout, kind, shared))
		return false;
	addr = arena->base;
	for (seg = layout->seg; op->prepare && addr < arena->base + LAYOUT_LEN; seg++) {
		size_t len = seg->granules * GRANULE_SIZE;

		/* May fail, as advice does that is not for this memory. */
		if (seg->kind != 'h')
			op->prepare(arena, addr, len, op->prepare_arg);
		addr += len;
	}
	return true;
}

/* Is a page inside a granule of a contract VMA? */
static bool cuts(const struct layout *layout, unsigned int page)
{
	return page % GRANULE_NR_PAGES && segment_at(layout, page)->kind == 't';
}

static bool refused(const CALL_VARIANT *op, const struct layout *layout,
		    const struct range *range)
{
	unsigned int page;

	if (op->how & CALL_HARMLESS)
		return false;
	if (cuts(layout, range->first) || cuts(layout, range->last))
		return true;
	for (page = range->first; op->how & CALL_REFUSED && page < range->last; page++) {
		if (segment_at(layout, page)->kind == 't')
			return true;
	}
	return false;
}

/*
 * The result of MADV_COLLAPSE where there is no room for a huge page. It stops
 * at the first VMA that has no granule in the range, and goes on after a hole.
 */
static int formed(const struct layout *layout, const struct range *range,
		  enum granule_kind kind)
{
	unsigned int page = range->first, end = 0;
	const struct segment *seg;
	int ret = 0;

	for (seg = layout->seg; page < range->last; seg++) {
		unsigned int stop;

		end += seg->granules * GRANULE_NR_PAGES;
		stop = end < range->last ? end : range->last;
		if (page >= end)
			continue;
		if (seg->kind == 'h')
			ret = -ENOMEM;
		else if (segment_kind(seg, kind) == GRANULE_UNTAGGED ||
			 (page + GRANULE_NR_PAGES - 1) / GRANULE_NR_PAGES >=
			 stop / GRANULE_NR_PAGES)
			return -EINVAL;
		page = end;
	}
	return ret;
}

/* Both views and both contents agree, and the tags are where they were. */
static bool compare_arenas(const CALL_VARIANT *op, struct view *view1,
			   const struct view *view2)
{
	static char contents1[ARENA_LEN], contents2[ARENA_LEN];
	static unsigned char readable1[ARENA_PAGES], readable2[ARENA_PAGES];
	/* Reserved memory takes long to read, and holds nothing. */
	size_t pages = op->call == call_mremap_away ? ARENA_PAGES : LAYOUT_PAGES;
	const struct segment *seg;
	unsigned int page;

	for (page = 0; page < ARENA_PAGES; page++) {
		bool bound = page && view2->start[page] != view2->start[page - 1];
		size_t len = strlen(view2->flags[page]);

		/* If the call is refused, only the twin has the flag. */
		if (op->how & CALL_MERGES && view2->kind[page] == GRANULE_CONTRACT &&
		    !strcmp(view1->flags[page] + len, " mg"))
			view1->flags[page][len] = '\0';
		if (strcmp(view1->flags[page], view2->flags[page])) {
			ksft_print_msg("page %u untagged: %s\n", page, view1->flags[page]);
			ksft_print_msg("page %u tagged: %s\n", page, view2->flags[page]);
			return false;
		}
		if (view1->policy[page] != view2->policy[page]) {
			ksft_print_msg("page %u has another policy\n", page);
			return false;
		}
		if (!(op->how & CALL_EVICTS) &&
		    view1->resident[page] > view2->resident[page]) {
			ksft_print_msg("page %u is not resident\n", page);
			return false;
		}
		if (bound && page % GRANULE_NR_PAGES &&
		    (view2->kind[page] == GRANULE_CONTRACT ||
		     view2->kind[page - 1] == GRANULE_CONTRACT)) {
			ksft_print_msg("a contract VMA is cut at page %u\n", page);
			return false;
		}
		if (op->how & CALL_REPLACES || page >= LAYOUT_PAGES || !view2->start[page])
			continue;
		seg = segment_at(tagged.layout, page);
		if (seg->kind != 'h' && view2->kind[page] != segment_kind(seg, tagged.kind)) {
			ksft_print_msg("page %u has another tag\n", page);
			return false;
		}
	}
	if (!(op->how & (CALL_EVICTS | CALL_UNMAPS)) && view1->rss > view2->rss) {
		ksft_print_msg("RSS is %lu kB, and %lu kB untagged\n", view2->rss, view1->rss);
		return false;
	}

	arena_close(&twin);
	arena_close(&tagged);
	read_memory(getpid(), twin.base, pages, contents1, readable1);
	read_memory(getpid(), tagged.base, pages, contents2, readable2);
	if (memcmp(readable1, readable2, pages) ||
	    memcmp(contents1, contents2, pages * BASE_SIZE)) {
		ksft_print_msg("the contents differ\n");
		return false;
	}
	return true;
}

/* A contract granule is populated by all of its pages or by none. */
static bool all_or_none(int pagemap, const struct view *view)
{
	unsigned int page, filled;

	for (page = 0; page < LAYOUT_PAGES; page += GRANULE_NR_PAGES) {
		filled = granule_filled(pagemap, tagged.base + page * BASE_SIZE);
		if (view->kind[page] == GRANULE_CONTRACT && filled &&
		    filled != GRANULE_NR_PAGES) {
			ksft_print_msg("%u pages from page %u\n", filled, page);
			return false;
		}
	}
	return true;
}

/* Whole granules of the layout, as bits. */
static unsigned int whole_granules(int pagemap)
{
	unsigned int i, whole = 0;

	for (i = 0; i < LAYOUT_GRANULES; i++) {
		if (segment_kind(segment_at(tagged.layout, i * GRANULE_NR_PAGES),
				 tagged.kind) != GRANULE_UNTAGGED &&
		    granule_state(pagemap, tagged.base + i * GRANULE_SIZE) == GRANULE_WHOLE)
			whole |= 1U << i;
	}
	return whole;
}

/*
 * How many granules that were whole have been cut: one end of the range lies in
 * them, and there is a bound of a VMA now, or they no longer are a run.
 */
static unsigned int count_cut(const struct view *view, const struct range *range,
			      unsigned int was_whole, unsigned int is_whole)
{
	unsigned int i, page, nr = 0;

	for (i = 0; i < LAYOUT_GRANULES; i++) {
		unsigned int lo = i * GRANULE_NR_PAGES, hi = lo + GRANULE_NR_PAGES;
		bool bound = false;

		if (!(was_whole & (1U << i)) ||
		    !((lo < range->first && range->first < hi) ||
		      (lo < range->last && range->last < hi)))
			continue;
		for (page = lo + 1; page < hi; page++)
			bound |= view->start[page] != view->start[page - 1];
		nr += bound || !(is_whole & (1U << i));
	}
	return nr;
}

static bool touches_policy(const CALL_VARIANT *op)
{
	return op->call == call_mbind || op->call == call_home_node;
}

static void check_refused(struct __test_metadata *_metadata, const CALL_VARIANT *op,
			  const struct layout *layout, bool shared)
{
	static struct snapshot before, after;
	int ret, untagged;
	size_t i;
	bool same;

	ASSERT_TRUE(map_and_prepare(op, &tagged, layout, GRANULE_CONTRACT, shared));
	take_snapshot(&tagged, &before);
	for (i = 0; i < ARRAY_SIZE(ranges); i++) {
		if (!refused(op, layout, &ranges[i]))
			continue;
		ret = run_call(op, &tagged, ranges[i].first, ranges[i].last);
		if (op->how & CALL_STRICT) {
			EXPECT_EQ(ret, -EINVAL)
				TH_LOG("%s", row_name(layout, &ranges[i]));
		} else if (ret != -EINVAL) {
			/* There may be an older reason to fail. */
			ASSERT_TRUE(map_and_prepare(op, &twin, layout, GRANULE_UNTAGGED, shared));
			untagged = run_call(op, &twin, ranges[i].first, ranges[i].last);
			EXPECT_TRUE(untagged < 0 && ret == untagged)
				TH_LOG("%s: returned %d, untagged %d",
				       row_name(layout, &ranges[i]), ret, untagged);
		}
		take_snapshot(&tagged, &after);
		same = same_snapshot(&before, &after);
		free_snapshot(&after);
		EXPECT_TRUE(same)
			TH_LOG("%s: changed something", row_name(layout, &ranges[i]));
		if (same)
			continue;
		free_snapshot(&before);
		ASSERT_TRUE(map_and_prepare(op, &tagged, layout, GRANULE_CONTRACT, shared));
		take_snapshot(&tagged, &before);
	}
	free_snapshot(&before);
}

/* A call that is not refused does the same as on untagged memory. */
static void check_same(struct __test_metadata *_metadata, const CALL_VARIANT *op,
		       const struct layout *layout, const struct range *range,
		       enum granule_kind kind, bool shared, int pagemap)
{
	long splits, cut;
	static struct view view1, view2;
	unsigned int was_whole, is_whole;
	int ret, untagged;

	ASSERT_TRUE(map_and_prepare(op, &twin, layout, GRANULE_UNTAGGED, shared));
	ASSERT_TRUE(map_and_prepare(op, &tagged, layout, kind, shared));
	untagged = run_call(op, &twin, range->first, range->last);
	if (op->how & CALL_FORMS)
		untagged = formed(layout, range, kind);

	was_whole = whole_granules(pagemap);
	splits = granule_splits();
	/* A program that does not know of granules has them everywhere. */
	if (kind == GRANULE_DEFAULT)
		ASSERT_EQ(granule_set(PR_GRANULE_MMAP, GRANULE_SIZE), 0);
	ret = run_call(op, &tagged, range->first, range->last);
	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, BASE_SIZE), 0);
	splits = granule_splits() - splits;
	is_whole = whole_granules(pagemap);

	EXPECT_EQ(ret, untagged)
		TH_LOG("%s", row_name(layout, range));
	/* Contract VMAs elsewhere do not change the answer. */
	if (op->result == -ENOENT && layout == layouts)
		EXPECT_EQ(untagged, -ENOENT);
	take_views(&twin, &view1, &tagged, &view2);
	if (touches_policy(op)) {
		view_policy(twin.base, LAYOUT_PAGES, view1.policy);
		view_policy(tagged.base, LAYOUT_PAGES, view2.policy);
	}
	/* A policy that is set is seen. */
	if (op->call == call_mbind && !ret)
		EXPECT_EQ(view2.policy[range->first], op->arg);
	cut = count_cut(&view2, range, was_whole, is_whole);
	EXPECT_EQ(splits, cut)
		TH_LOG("%s: granule_split", row_name(layout, range));
	if (kind == GRANULE_CONTRACT) {
		EXPECT_TRUE(all_or_none(pagemap, &view2))
			TH_LOG("%s", row_name(layout, range));
	}
	EXPECT_TRUE(compare_arenas(op, &view1, &view2))
		TH_LOG("%s", row_name(layout, range));
}

/*
 * Every range on the first layout, and every fourth one on the others, so that
 * the whole takes a minute or two. Which ones depends on the call.
 */
static bool row_is_due(const CALL_VARIANT *op, size_t layout, size_t range)
{
	return !layout || !((layout + range + op->arg) % 4);
}

static void check_contract(struct __test_metadata *_metadata, const CALL_VARIANT *op, bool shared)
{
	int pagemap = granule_open_pagemap();
	size_t i, j;

	ASSERT_GE(pagemap, 0);
	for (i = 0; i < ARRAY_SIZE(layouts); i++) {
		check_refused(_metadata, op, &layouts[i], shared);
		for (j = 0; j < ARRAY_SIZE(ranges); j++) {
			if (!refused(op, &layouts[i], &ranges[j]) &&
			    row_is_due(op, i, j))
				check_same(_metadata, op, &layouts[i], &ranges[j],
					   GRANULE_CONTRACT, shared, pagemap);
		}
	}
	close(pagemap);
}

static void check_default(struct __test_metadata *_metadata, const CALL_VARIANT *op, bool shared)
{
	int pagemap = granule_open_pagemap();
	size_t i, j;

	ASSERT_GE(pagemap, 0);
	for (i = 0; i < ARRAY_SIZE(layouts); i++) {
		if (layouts[i].contract_only)
			continue;
		for (j = 0; j < ARRAY_SIZE(ranges); j++) {
			if (row_is_due(op, i, j))
				check_same(_metadata, op, &layouts[i], &ranges[j],
					   GRANULE_DEFAULT, shared, pagemap);
		}
	}
	close(pagemap);
}

/* Run the call on untagged memory first: is it there, and does it work? */
FIXTURE_SETUP(page_granule_calls)
{
	int ret;

	ASSERT_EQ(granule_set_enabled(true), 0);
	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, BASE_SIZE), 0);
	granule_thp_never();
	ASSERT_TRUE(arena_map(&twin, &layouts[0], GRANULE_UNTAGGED, variant->how & CALL_SHARED));
	if (variant->prepare) {
		ret = variant->prepare(&twin, twin.base, LAYOUT_LEN, variant->prepare_arg);
		if (ret && variant->config)
			SKIP(return, "no preparation (%s): build the kernel with CONFIG_%s=y",
			     strerror(-ret), variant->config);
		ASSERT_EQ(ret, 0);
	}
	ret = run_call(variant, &twin, 16, 32);
	if (ret && ret != variant->result && variant->config)
		SKIP(return, "call not available (%s): build the kernel with CONFIG_%s=y",
		     strerror(-ret), variant->config);
	ASSERT_EQ(ret, variant->result);
}

FIXTURE_TEARDOWN(page_granule_calls)
{
	EXPECT_TRUE(granule_invariants_hold());
}

/*
 * Assert that the call cuts no contract granule of private memory, and works on
 * whole ones.
 */
TEST_F_TIMEOUT(page_granule_calls, contract_private, 180)
{
	check_contract(_metadata, variant, false);
}

/*
 * Assert that the call cuts no contract granule of shared memory, and works on
 * whole ones.
 */
TEST_F_TIMEOUT(page_granule_calls, contract_shared, 180)
{
	check_contract(_metadata, variant, true);
}

/*
 * Assert that private default-tagged memory takes the call as untagged memory
 * does.
 */
TEST_F_TIMEOUT(page_granule_calls, default_private, 180)
{
	check_default(_metadata, variant, false);
}

/*
 * Assert that shared default-tagged memory takes the call as untagged memory
 * does.
 */
TEST_F_TIMEOUT(page_granule_calls, default_shared, 180)
{
	check_default(_metadata, variant, true);
}

FIXTURE(page_granule_calls_failure)
{
	int pagemap;
	char *res;
};

FIXTURE_VARIANT(page_granule_calls_failure)
{
	enum granule_kind kind;
	bool shared;
};

FIXTURE_VARIANT_ADD(page_granule_calls_failure, contract_private)
{
	.kind = GRANULE_CONTRACT,
	.shared = false,
};

FIXTURE_VARIANT_ADD(page_granule_calls_failure, contract_shared)
{
	.kind = GRANULE_CONTRACT,
	.shared = true,
};

FIXTURE_VARIANT_ADD(page_granule_calls_failure, default_private)
{
	.kind = GRANULE_DEFAULT,
	.shared = false,
};

FIXTURE_VARIANT_ADD(page_granule_calls_failure, default_shared)
{
	.kind = GRANULE_DEFAULT,
	.shared = true,
};

FIXTURE_SETUP(page_granule_calls_failure)
{
	ASSERT_EQ(granule_set_enabled(true), 0);
	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, BASE_SIZE), 0);
	granule_thp_never();
	self->pagemap = granule_open_pagemap();
	ASSERT_GE(self->pagemap, 0);
	self->res = granule_reserve(RES_LEN);
	ASSERT_NE(self->res, NULL);
}

FIXTURE_TEARDOWN(page_granule_calls_failure)
{
	EXPECT_TRUE(granule_invariants_hold());
	close(self->pagemap);
}

/*
 * These must never succeed here: they take pages from the machine for good.
 * Without access to the memory they get no further than EFAULT in any case.
 */
static const CALL_VARIANT hwpoison = {
	.call = call_madvise,
	.arg = MADV_HWPOISON,
	.prepare = call_mprotect,
	.prepare_arg = PROT_NONE,
	.how = CALL_STRICT,
};

static const CALL_VARIANT soft_offline = {
	.call = call_madvise,
	.arg = MADV_SOFT_OFFLINE,
	.prepare = call_mprotect,
	.prepare_arg = PROT_NONE,
	.how = CALL_STRICT,
};

/*
 * Assert that no part of a contract granule can be poisoned or taken offline.
 */
TEST_F_TIMEOUT(page_granule_calls_failure, memory_failure, 60)
{
	size_t i;

	ASSERT_TRUE(map_and_prepare(&hwpoison, &twin, &layouts[0], GRANULE_UNTAGGED,
				    variant->shared));
	if (run_call(&hwpoison, &twin, 0, LAYOUT_PAGES) != -EFAULT)
		SKIP(return, "no MADV_HWPOISON: build the kernel with CONFIG_MEMORY_FAILURE=y");
	ASSERT_TRUE(map_and_prepare(&hwpoison, &twin, &layouts[0], variant->kind, variant->shared));
	EXPECT_EQ(run_call(&hwpoison, &twin, 0, LAYOUT_PAGES), -EFAULT);
	EXPECT_EQ(run_call(&soft_offline, &twin, 0, LAYOUT_PAGES), -EFAULT);
	/* A part of a default-tagged one could. */
	if (variant->kind == GRANULE_DEFAULT) {
		EXPECT_EQ(run_call(&hwpoison, &twin, 5, 6), -EFAULT);
		EXPECT_EQ(run_call(&soft_offline, &twin, 5, 6), -EFAULT);
		return;
	}
	for (i = 0; i < ARRAY_SIZE(layouts); i++) {
		check_refused(_metadata, &hwpoison, &layouts[i], variant->shared);
		check_refused(_metadata, &soft_offline, &layouts[i], variant->shared);
	}
}

/* process_madvise() on another process: the target's address space decides. */
FIXTURE(page_granule_calls_remote)
{
	pid_t child;
	int pidfd;
};

FIXTURE_VARIANT(page_granule_calls_remote)
{
	int advice;
	int result;	/* of an aligned range, as of any untagged range */
};

FIXTURE_VARIANT_ADD(page_granule_calls_remote, cold)
{
	.advice = MADV_COLD,
};

FIXTURE_VARIANT_ADD(page_granule_calls_remote, pageout)
{
	.advice = MADV_PAGEOUT,
};

FIXTURE_VARIANT_ADD(page_granule_calls_remote, willneed)
{
	.advice = MADV_WILLNEED,
};

/* There is room for granules, but not for a huge page: see formed(). */
FIXTURE_VARIANT_ADD(page_granule_calls_remote, collapse)
{
	.advice = MADV_COLLAPSE,
	.result = -EINVAL,
};

/* Not for other processes. */
FIXTURE_VARIANT_ADD(page_granule_calls_remote, dontneed)
{
	.advice = MADV_DONTNEED,
	.result = -EINVAL,
};

FIXTURE_SETUP(page_granule_calls_remote)
{
	ASSERT_EQ(granule_set_enabled(true), 0);
	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, BASE_SIZE), 0);
	granule_thp_never();
	self->child = 0;
}

static void stop_child(pid_t pid)
{
	if (pid > 0)
		granule_kill_idle(pid);
}

FIXTURE_TEARDOWN(page_granule_calls_remote)
{
	EXPECT_TRUE(granule_invariants_hold());
	stop_child(self->child);
}

/*
 * A process with memory of one kind, and this one with another at the same
 * place.
 */
static pid_t start_child(const struct layout *layout, bool shared, enum granule_kind theirs,
			 enum granule_kind ours)
{
	int pipefd[2];
	pid_t pid;
	char ok = 0;

	/* One address for both. */
	if (!arena_reserve(&tagged) || pipe(pipefd))
		return -1;
	pid = fork();
	if (pid < 0)
		return pid;
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		ok = arena_map(&tagged, layout, theirs, shared);
		if (write(pipefd[1], &ok, 1) != 1)
			_exit(1);
		for (;;)
			pause();
	}
	close(pipefd[1]);
	if (read(pipefd[0], &ok, 1) != 1 || !ok || !arena_map(&tagged, layout, ours, shared)) {
		stop_child(pid);
		pid = -1;
	}
	close(pipefd[0]);
	return pid;
}

#define REMOTE_DATA FIXTURE_DATA(page_granule_calls_remote)
#define REMOTE_VARIANT FIXTURE_VARIANT(page_granule_calls_remote)

static void check_remote(struct __test_metadata *_metadata, REMOTE_DATA *self,
			 const REMOTE_VARIANT *variant, bool shared,
			 enum granule_kind theirs, enum granule_kind ours)
{
	static unsigned char readable[LAYOUT_PAGES];
	static char contents1[LAYOUT_LEN], contents2[LAYOUT_LEN];
	static const unsigned int nr[] = { 0, 1, 5 };
	size_t i, j;

	for (i = 0; i < ARRAY_SIZE(nr); i++) {
		const struct layout *layout = &layouts[nr[i]];

		self->child = start_child(layout, shared, theirs, ours);
		ASSERT_GT(self->child, 0);
		self->pidfd = syscall(__NR_pidfd_open, self->child, 0);
		ASSERT_GE(self->pidfd, 0);
		read_memory(self->child, tagged.base, LAYOUT_PAGES, contents1, readable);
		for (j = 0; j < ARRAY_SIZE(ranges); j++) {
			const struct range *range = &ranges[j];
			bool cut = theirs == GRANULE_CONTRACT &&
				   (cuts(layout, range->first) || cuts(layout, range->last));
			int ret, expected = variant->result;
			char *before, *after;

			if (variant->advice == MADV_COLLAPSE)
				expected = formed(layout, range, theirs);
			before = arena_text(self->child, &tagged);
			ret = advise_process(self->pidfd, tagged.base + range->first * BASE_SIZE,
					     (range->last - range->first) * BASE_SIZE,
					     variant->advice);
			after = arena_text(self->child, &tagged);
			EXPECT_EQ(ret, cut ? -EINVAL : expected)
				TH_LOG("%s", row_name(layout, range));
			if (cut || variant->result)
				EXPECT_TRUE(granule_same_text(before, after))
					TH_LOG("%s", row_name(layout, range));
			free(before);
			free(after);
		}
		read_memory(self->child, tagged.base, LAYOUT_PAGES, contents2, readable);
		EXPECT_EQ(memcmp(contents1, contents2, LAYOUT_LEN), 0);
		stop_child(self->child);
		self->child = 0;
		close(self->pidfd);
	}
}

/*
 * Assert that a caller without contract VMAs cannot cut those of another
 * process.
 */
TEST_F_TIMEOUT(page_granule_calls_remote, contract_private, 60)
{
	check_remote(_metadata, self, variant, false, GRANULE_CONTRACT, GRANULE_UNTAGGED);
}

/* Assert that this holds for shared memory, too. */
TEST_F_TIMEOUT(page_granule_calls_remote, contract_shared, 60)
{
	check_remote(_metadata, self, variant, true, GRANULE_CONTRACT, GRANULE_UNTAGGED);
}

/*
 * Assert that contract VMAs of the caller do not matter to untagged memory of
 * another process.
 */
TEST_F_TIMEOUT(page_granule_calls_remote, untagged_private, 60)
{
	check_remote(_metadata, self, variant, false, GRANULE_UNTAGGED, GRANULE_CONTRACT);
}

/*
 * Assert that contract VMAs of the caller do not matter to default-tagged
 * memory either.
 */
TEST_F_TIMEOUT(page_granule_calls_remote, default_private, 60)
{
	check_remote(_metadata, self, variant, false, GRANULE_DEFAULT, GRANULE_CONTRACT);
}

int main(int argc, char **argv)
{
	granule_require();
	granule_save_settings();
	return test_harness_run(argc, argv);
}
