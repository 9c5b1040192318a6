// SPDX-License-Identifier: GPL-2.0
/*
 * Page granule: every system call keeps the contract. On a contract VMA a call
 * that would cut a granule fails with EINVAL and has changed nothing; on a
 * default-tagged one it does what it does on memory that is not tagged.
 *
 * Most calls are run by tables: each on every layout of VMAs and every range of
 * it, next to an untagged twin. What has more to it than a range follows.
 */
#define _GNU_SOURCE
#include "kselftest_harness.h"
#include <asm-generic/mman.h> /* Force the import of the tools version. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/userfaultfd.h>
#include <malloc.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "vm_util.h"
#include "page_granule_util.h"

#ifndef PR_SET_VMA
#define PR_SET_VMA		0x53564d41
#define PR_SET_VMA_ANON_NAME	0
#endif

/* As for page_granule_util.h: headers may be older than the kernel. */
#ifndef __NR_mseal
#define __NR_mseal		462
#endif

#ifndef MLOCK_ONFAULT
#define MLOCK_ONFAULT		1
#endif

/* linux/mempolicy.h does not go together with what libnuma may bring in. */
#define POLICY_DEFAULT		0
#define POLICY_PREFERRED	1
#define POLICY_BIND		2
#define POLICY_F_ADDR		2

#define UID_NOBODY		65534

#define OVERCOMMIT		"/proc/sys/vm/overcommit_memory"

static char *map_memory(enum granule_kind kind, bool shared, void *addr, size_t len, int flags)
{
	long old = granule_get(PR_GRANULE_MMAP);
	int saved_errno;
	char *ptr;

	if (!shared)
		return granule_mmap(kind, addr, len, PROT_RW, flags);

	flags |= MAP_SHARED | MAP_ANONYMOUS;
	if (kind == GRANULE_CONTRACT)
		flags |= MAP_GRANULE_64KB;
	else if (kind == GRANULE_UNTAGGED)
		flags |= MAP_GRANULE_4KB;
	else if (granule_set(PR_GRANULE_MMAP, GRANULE_SIZE))
		return MAP_FAILED;

	ptr = mmap(addr, len, PROT_RW, flags, -1, 0);
	saved_errno = errno;
	if (kind == GRANULE_DEFAULT)
		granule_set(PR_GRANULE_MMAP, old);
	errno = saved_errno;
	return ptr;
}

/* The kind of the VMA that holds @addr, as smaps shows it. */
static enum granule_kind kind_of(const void *addr)
{
	struct granule_smaps smaps;

	if (!granule_read_smaps(getpid(), addr, &smaps) || !granule_has_flag(&smaps, "gr"))
		return GRANULE_UNTAGGED;
	return granule_has_flag(&smaps, "gc") ? GRANULE_CONTRACT : GRANULE_DEFAULT;
}

static bool vma_is(const char *start, size_t len)
{
	struct granule_smaps smaps;

	return granule_read_smaps(getpid(), start, &smaps) &&
	       smaps.start == (unsigned long)start &&
	       smaps.end == (unsigned long)start + len;
}

static bool vma_has_flag(const void *addr, const char *flag)
{
	struct granule_smaps smaps;

	return granule_read_smaps(getpid(), addr, &smaps) &&
	       granule_has_flag(&smaps, flag);
}

/* All of a file in /proc. Takes no memory from malloc(), which might count. */
static char *read_proc(const char *path)
{
	static char buf[1 << 18];
	ssize_t len = 0, n;
	int fd;

	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		ksft_exit_fail_msg("cannot open %s: %s\n", path, strerror(errno));
	while ((n = read(fd, buf + len, sizeof(buf) - 1 - len)) > 0)
		len += n;
	close(fd);
	buf[len] = '\0';
	return buf;
}

/* The number behind a name, the first of a line, in such a file. */
static long proc_number(const char *path, const char *name)
{
	char *line = read_proc(path);
	size_t len = strlen(name);

	for (; line; line = strchr(line, '\n')) {
		line += *line == '\n';
		if (!strncmp(line, name, len))
			return atol(line + len);
	}
	return -1;
}

static long granule_splits(void)
{
	return proc_number("/proc/vmstat", "granule_split ");
}

static long status_kb(const char *name)
{
	return proc_number("/proc/self/status", name);
}

static bool is_filled(const char *addr, size_t len, char value)
{
	return !len || (*addr == value && !memcmp(addr, addr + 1, len - 1));
}

/*
 * The arena: memory laid out in one of the ways below, and a destination for
 * what is moved, both in a reservation of PROT_NONE:
 *
 *	base                  dest
 *	| 6 x 64K of VMAs | 64K | 6 x 64K of PROT_NONE |
 *
 * Every other VMA is MADV_DONTDUMP, so that VMAs that differ in nothing but the
 * tag remain two on the untagged twin too.
 */
#define LAYOUT_GRANULES	6
#define LAYOUT_PAGES	(LAYOUT_GRANULES * (unsigned int)GRANULE_NR_PAGES)
#define LAYOUT_LEN	(LAYOUT_GRANULES * GRANULE_SIZE)
#define ARENA_LEN	(2 * LAYOUT_LEN + GRANULE_SIZE)
#define ARENA_PAGES	(ARENA_LEN / BASE_SIZE)

/* Never populated, for what a refused call might populate. */
#define EMPTY_GRANULE	3

struct segment {
	char kind;	/* 'u'ntagged, 'd'efault, 't'he one under test, 'h'ole */
	unsigned int granules;
	bool readonly;
};

struct layout {
	const char *name;
	/* Says no more about default-tagged memory than another one does. */
	bool contract_only;
	struct segment seg[4];
};

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

/* In pages from the base. */
struct range {
	const char *name;
	unsigned int first;
	unsigned int last;
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

/* To say which row of a table has failed. */
static const char *row_name(const struct layout *layout, const struct range *range)
{
	static char name[128];

	snprintf(name, sizeof(name), "%s, %s [%u, %u)", layout->name, range->name,
		 range->first, range->last);
	return name;
}

struct arena {
	char *base;
	char *dest;
	int uffd;		/* 0, or to be closed before the memory is read */
	const struct layout *layout;
	enum granule_kind kind;
	bool shared;
};

/* Reused by all rows of a test: the more VMAs there are, the longer is smaps. */
static struct arena twin, tagged;

static enum granule_kind segment_kind(const struct segment *seg, enum granule_kind kind)
{
	switch (seg->kind) {
	case 't':
		return kind;
	case 'd':
		return kind == GRANULE_UNTAGGED ? kind : GRANULE_DEFAULT;
	default:
		return GRANULE_UNTAGGED;
	}
}

static const struct segment *segment_at(const struct layout *layout, unsigned int page)
{
	const struct segment *seg = layout->seg;

	for (; page >= seg->granules * GRANULE_NR_PAGES; seg++)
		page -= seg->granules * GRANULE_NR_PAGES;
	return seg;
}

static void arena_close(struct arena *arena)
{
	if (arena->uffd)
		close(arena->uffd);
	arena->uffd = 0;
}

static bool arena_reserve(struct arena *arena)
{
	arena_close(arena);
	/* Sealed memory stays where it is: take a new reservation. */
	if (!arena->base || mmap(arena->base, ARENA_LEN, PROT_NONE,
				 ANON_FLAGS | MAP_FIXED | MAP_NORESERVE | MAP_GRANULE_4KB,
				 -1, 0) != arena->base)
		arena->base = granule_reserve(ARENA_LEN);
	arena->dest = arena->base + LAYOUT_LEN + GRANULE_SIZE;
	return arena->base;
}

/* A word at either end of each page is all that a call on pages could mix up. */
static void fill_granule(char *addr, unsigned int nr)
{
	unsigned long page;

	for (page = 0; page < GRANULE_NR_PAGES; page++, addr += BASE_SIZE) {
		*(unsigned long *)addr = nr << 8 | page;
		*(unsigned long *)(addr + BASE_SIZE - sizeof(long)) = ~page;
	}
}

static bool arena_map(struct arena *arena, const struct layout *layout,
		      enum granule_kind kind, bool shared)
{
	unsigned int i, granule = 0;
	char *addr;

	if (!arena_reserve(arena))
		return false;
	arena->layout = layout;
	arena->kind = kind;
	arena->shared = shared;

	addr = arena->base;
	for (i = 0; i < ARRAY_SIZE(layout->seg) && layout->seg[i].granules; i++) {
		const struct segment *seg = &layout->seg[i];
		size_t len = seg->granules * GRANULE_SIZE;
		char *end = addr + len;

		if (seg->kind == 'h') {
			if (munmap(addr, len))
				return false;
			granule += seg->granules;
			addr = end;
			continue;
		}
		if (map_memory(segment_kind(seg, kind), shared, addr, len, MAP_FIXED) != addr)
			return false;
		if (i % 2 && madvise(addr, len, MADV_DONTDUMP))
			return false;
		for (; addr < end; addr += GRANULE_SIZE, granule++) {
			if (granule == EMPTY_GRANULE)
				continue;
			/* Many faults take long where a machine is emulated. */
			if (madvise(addr, GRANULE_SIZE, MADV_POPULATE_WRITE))
				return false;
			fill_granule(addr, granule);
		}
		if (seg->readonly && mprotect(end - len, len, PROT_READ))
			return false;
	}
	return true;
}

/* What is seen of the arena, page by page. */
struct view {
	char flags[ARENA_PAGES][80];	/* permissions and VmFlags, without the tag */
	unsigned long start[ARENA_PAGES];	/* of the VMA, 0 where there is none */
	enum granule_kind kind[ARENA_PAGES];
	unsigned char resident[ARENA_PAGES];
	unsigned char policy[ARENA_PAGES];
	unsigned long rss;
};

static void view_vma(struct view *view, const struct arena *arena, unsigned long start,
		     unsigned long end, const char *perms, char *vmflags)
{
	enum granule_kind kind = GRANULE_UNTAGGED;
	unsigned long page, lo = (unsigned long)arena->base;
	char flags[80], *word, *rest = vmflags;

	snprintf(flags, sizeof(flags), "%s", perms);
	while ((word = strsep(&rest, "\n "))) {
		size_t len = strlen(flags);

		if (!strcmp(word, "gr"))
			kind = kind == GRANULE_UNTAGGED ? GRANULE_DEFAULT : kind;
		else if (!strcmp(word, "gc"))
			kind = GRANULE_CONTRACT;
		/* That something was given back is told of tagged memory only. */
		else if (*word && strcmp(word, "gh"))
			snprintf(flags + len, sizeof(flags) - len, " %s", word);
	}
	for (page = 0; page < ARENA_PAGES; page++) {
		if (lo + page * BASE_SIZE < start || lo + page * BASE_SIZE >= end)
			continue;
		memcpy(view->flags[page], flags, sizeof(flags));
		view->start[page] = start;
		view->kind[page] = kind;
	}
}

static void view_resident(const char *base, size_t pages, unsigned char *vec)
{
	size_t i;

	if (mincore((void *)base, pages * BASE_SIZE, vec)) {
		for (i = 0; i < pages; i++) {
			if (mincore((char *)base + i * BASE_SIZE, BASE_SIZE, vec + i))
				vec[i] = 0;
		}
	}
	for (i = 0; i < pages; i++)
		vec[i] &= 1;
}

static void view_policy(const char *base, size_t pages, unsigned char *vec)
{
	size_t i;

	for (i = 0; i < pages; i++) {
		int policy;

		if (syscall(__NR_get_mempolicy, &policy, NULL, 0UL, base + i * BASE_SIZE,
			    (unsigned long)POLICY_F_ADDR))
			policy = 0xff;
		vec[i] = policy;
	}
}

/*
 * Does a line of smaps open a VMA of the arena, or does it belong to the one
 * that did? What is shown of a VMA begins with a capital letter.
 */
static bool in_arena(const struct arena *arena, const char *line, unsigned long *start,
		     unsigned long *end)
{
	unsigned long lo = (unsigned long)arena->base;
	char *rest;

	if (*line < 'A' || *line > 'Z') {
		*start = strtoul(line, &rest, 16);
		*end = strtoul(rest + 1, NULL, 16);
	}
	return *start < lo + ARENA_LEN && lo < *end;
}

/* Of two arenas at once, as smaps takes long to read. */
static void take_views(const struct arena *arena1, struct view *view1,
		       const struct arena *arena2, struct view *view2)
{
	unsigned long start1 = 0, end1 = 0, start2 = 0, end2 = 0;
	char *line, *next, *text = read_proc("/proc/self/smaps");
	char perms[5] = "";

	memset(view1, 0, sizeof(*view1));
	memset(view2, 0, sizeof(*view2));
	for (line = text; *line; line = next) {
		bool in1 = in_arena(arena1, line, &start1, &end1);
		bool in2 = in_arena(arena2, line, &start2, &end2);

		next = strchrnul(line, '\n');
		if (*next)
			*next++ = '\0';
		if (!in1 && !in2)
			continue;
		if (*line < 'A' || *line > 'Z')
			memcpy(perms, strchr(line, ' ') + 1, 4);
		else if (!strncmp(line, "Rss:", 4))
			*(in1 ? &view1->rss : &view2->rss) += atol(line + 4);
		else if (!strncmp(line, "VmFlags:", 8) && in1)
			view_vma(view1, arena1, start1, end1, perms, line + 8);
		else if (!strncmp(line, "VmFlags:", 8))
			view_vma(view2, arena2, start2, end2, perms, line + 8);
	}
	view_resident(arena1->base, ARENA_PAGES, view1->resident);
	view_resident(arena2->base, ARENA_PAGES, view2->resident);
}

/* The lines of smaps that are about the arena, to be freed. */
static char *arena_text(pid_t pid, const struct arena *arena)
{
	unsigned long start = 0, end = 0;
	char *line, *next, *text, *to;
	char path[32];

	snprintf(path, sizeof(path), "/proc/%d/smaps", pid);
	text = read_proc(path);
	to = text;

	for (line = text; *line; line = next) {
		next = strchrnul(line, '\n');
		next += *next == '\n';
		if (in_arena(arena, line, &start, &end)) {
			memmove(to, line, next - line);
			to += next - line;
		}
	}
	return strndup(text, to - text);
}

/* Read memory as a debugger does; says of each page whether it can be read. */
static void read_memory(pid_t pid, const char *base, size_t pages, char *buf,
			unsigned char *readable)
{
	char path[32];
	size_t i = 0;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/mem", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		ksft_exit_fail_msg("cannot open %s\n", path);
	while (i < pages) {
		ssize_t n = pread(fd, buf + i * BASE_SIZE, (pages - i) * BASE_SIZE,
				  (off_t)(uintptr_t)base + i * BASE_SIZE);

		n = n < 0 ? 0 : n / BASE_SIZE;
		memset(readable + i, 1, n);
		i += n;
		if (i < pages) {
			memset(buf + i * BASE_SIZE, 0, BASE_SIZE);
			readable[i++] = 0;
		}
	}
	close(fd);
}

/* All that a refused call could have changed. */
struct snapshot {
	char *text;
	long splits;
	unsigned char resident[LAYOUT_PAGES];
	unsigned char policy[LAYOUT_PAGES];
	unsigned char readable[LAYOUT_PAGES];
	char contents[LAYOUT_LEN];
};

static void take_snapshot(const struct arena *arena, struct snapshot *snap)
{
	unsigned int i;

	snap->splits = granule_splits();
	snap->text = arena_text(getpid(), arena);
	view_resident(arena->base, LAYOUT_PAGES, snap->resident);
	view_policy(arena->base, LAYOUT_PAGES, snap->policy);
	/* Reading would populate what is empty; that it is so is in the vector. */
	for (i = 0; i < LAYOUT_GRANULES; i++) {
		unsigned int page = i * GRANULE_NR_PAGES;

		if (i != EMPTY_GRANULE)
			read_memory(getpid(), arena->base + i * GRANULE_SIZE, GRANULE_NR_PAGES,
				    snap->contents + i * GRANULE_SIZE, snap->readable + page);
	}
}

static void free_snapshot(struct snapshot *snap)
{
	free(snap->text);
	memset(snap, 0, sizeof(*snap));
}

static bool same_snapshot(const struct snapshot *before, const struct snapshot *after)
{
	bool same = granule_same_text(before->text, after->text);

	if (before->splits != after->splits) {
		ksft_print_msg("granule_split went from %ld to %ld\n",
			       before->splits, after->splits);
		same = false;
	}
	if (memcmp(before->resident, after->resident, sizeof(before->resident))) {
		ksft_print_msg("mincore() differs\n");
		same = false;
	}
	if (memcmp(before->policy, after->policy, sizeof(before->policy))) {
		ksft_print_msg("the memory policy differs\n");
		same = false;
	}
	if (memcmp(before->readable, after->readable, sizeof(before->readable)) ||
	    memcmp(before->contents, after->contents, sizeof(before->contents))) {
		ksft_print_msg("the contents differ\n");
		same = false;
	}
	return same;
}

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

/* The range is what the VMA loses. */
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
	return syscall(__NR_remap_file_pages, addr, len, 0UL, (unsigned long)arg, 0UL) ?
	       -errno : 0;
}

/*
 * Faults of the kernel fail rather than wait, so that memory can be read
 * without a thread that resolves them.
 */
static int uffd_open(unsigned long features)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	int fd = syscall(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);

	if (fd < 0)
		return -errno;
	if (ioctl(fd, UFFDIO_API, &api)) {
		close(fd);
		return -EINVAL;
	}
	return fd;
}

static int call_uffd_register(struct arena *arena, char *addr, size_t len, int arg)
{
	if (!arena->uffd) {
		arena->uffd = uffd_open(0);
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

FIXTURE(page_granule_call)
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

FIXTURE_VARIANT(page_granule_call)
{
	range_call call;
	int arg;
	/* To be called on each VMA before. */
	range_call prepare;
	int prepare_arg;
	/* What to build the kernel with if the call is not there. */
	const char *config;
	/* What the call returns if all is well, on memory that is not tagged. */
	int result;
	unsigned int how;
};

#define MADVISE(advice, ...) { .call = call_madvise, .arg = advice, __VA_ARGS__ }
#define AFTER(advice) .prepare = call_madvise, .prepare_arg = advice

FIXTURE_VARIANT_ADD(page_granule_call, munmap)
{
	.call = call_munmap,
};

FIXTURE_VARIANT_ADD(page_granule_call, mprotect)
{
	.call = call_mprotect,
	.arg = PROT_READ,
};

FIXTURE_VARIANT_ADD(page_granule_call, mprotect_none)
{
	.call = call_mprotect,
	.arg = PROT_NONE,
};

FIXTURE_VARIANT_ADD(page_granule_call, mprotect_same)
{
	.call = call_mprotect,
	.arg = PROT_RW,
};

FIXTURE_VARIANT_ADD(page_granule_call, pkey_mprotect)
{
	.call = call_pkey_mprotect,
	.arg = PROT_READ,
};

FIXTURE_VARIANT_ADD(page_granule_call, pkey_mprotect_key)
{
	.call = call_pkey_mprotect_key,
	.arg = PROT_RW,
	.config = "ARCH_HAS_PKEYS",
};

FIXTURE_VARIANT_ADD(page_granule_call, map_fixed)
{
	.call = call_mmap,
	.arg = MAP_FIXED,
	.how = CALL_REPLACES,
};

FIXTURE_VARIANT_ADD(page_granule_call, map_fixed_4kb)
{
	.call = call_mmap,
	.arg = MAP_FIXED | MAP_GRANULE_4KB,
	.how = CALL_REPLACES,
};

FIXTURE_VARIANT_ADD(page_granule_call, map_fixed_populate)
{
	.call = call_mmap,
	.arg = MAP_FIXED | MAP_POPULATE,
	.how = CALL_REPLACES,
};

FIXTURE_VARIANT_ADD(page_granule_call, map_fixed_noreplace)
{
	.call = call_mmap,
	.arg = MAP_FIXED_NOREPLACE,
	.result = -EEXIST,
};

FIXTURE_VARIANT_ADD(page_granule_call, mremap_away)
{
	.call = call_mremap_away,
};

FIXTURE_VARIANT_ADD(page_granule_call, mremap_dontunmap)
{
	.call = call_mremap_away,
	.arg = MREMAP_DONTUNMAP,
};

FIXTURE_VARIANT_ADD(page_granule_call, mremap_shrink)
{
	.call = call_mremap_shrink,
};

FIXTURE_VARIANT_ADD(page_granule_call, mremap_onto)
{
	.call = call_mremap_onto,
	.how = CALL_REPLACES,
};

FIXTURE_VARIANT_ADD(page_granule_call, mbind)
{
	.call = call_mbind,
	.arg = POLICY_PREFERRED,
	.config = "NUMA",
};

FIXTURE_VARIANT_ADD(page_granule_call, home_node)
{
	.call = call_home_node,
	.prepare = call_mbind,
	.prepare_arg = POLICY_BIND,
	.config = "NUMA",
};

/* Where there is no policy, there is no node to set. */
FIXTURE_VARIANT_ADD(page_granule_call, home_node_no_policy)
{
	.call = call_home_node,
	.config = "NUMA",
	.result = -ENOENT,
};

FIXTURE_VARIANT_ADD(page_granule_call, mseal)
{
	.call = call_mseal,
	.config = "64BIT",
};

FIXTURE_VARIANT_ADD(page_granule_call, anon_name)
{
	.call = call_anon_name,
	.config = "ANON_VMA_NAME",
};

FIXTURE_VARIANT_ADD(page_granule_call, shmat_remap)
{
	.call = call_shmat,
	.arg = SHM_REMAP,
	.config = "SYSVIPC",
	.how = CALL_REPLACES,
};

FIXTURE_VARIANT_ADD(page_granule_call, shmat_occupied)
{
	.call = call_shmat,
	.result = -EINVAL,
	.config = "SYSVIPC",
};

FIXTURE_VARIANT_ADD(page_granule_call, remap_file_pages)
{
	.call = call_remap_file_pages,
	/* Not what is there already, which would merge with the rest again. */
	.arg = 2 * GRANULE_NR_PAGES,
	.how = CALL_SHARED,
};

FIXTURE_VARIANT_ADD(page_granule_call, uffd_register)
{
	.call = call_uffd_register,
	.config = "USERFAULTFD",
};

FIXTURE_VARIANT_ADD(page_granule_call, uffd_unregister)
{
	.call = call_uffd_unregister,
	.prepare = call_uffd_register,
	.config = "USERFAULTFD",
};

FIXTURE_VARIANT_ADD(page_granule_call, mlock)
{
	.call = call_mlock,
};

FIXTURE_VARIANT_ADD(page_granule_call, mlock2_onfault)
{
	.call = call_mlock2,
	.arg = MLOCK_ONFAULT,
};

FIXTURE_VARIANT_ADD(page_granule_call, munlock)
{
	.call = call_munlock,
	.prepare = call_mlock,
};

FIXTURE_VARIANT_ADD(page_granule_call, msync)
{
	.call = call_msync,
	.arg = MS_SYNC,
	.how = CALL_HARMLESS,
};

FIXTURE_VARIANT_ADD(page_granule_call, msync_invalidate)
{
	.call = call_msync,
	.arg = MS_ASYNC | MS_INVALIDATE,
	.how = CALL_HARMLESS,
};

FIXTURE_VARIANT_ADD(page_granule_call, mincore)
{
	.call = call_mincore,
	.how = CALL_HARMLESS,
};

FIXTURE_VARIANT_ADD(page_granule_call, process_madv_cold)
{
	.call = call_process_madvise,
	.arg = MADV_COLD,
	.how = CALL_UNMAPS,
};

FIXTURE_VARIANT_ADD(page_granule_call, process_madv_pageout)
{
	.call = call_process_madvise,
	.arg = MADV_PAGEOUT,
	.how = CALL_EVICTS,
};

FIXTURE_VARIANT_ADD(page_granule_call, process_madv_willneed)
{
	.call = call_process_madvise,
	.arg = MADV_WILLNEED,
};

FIXTURE_VARIANT_ADD(page_granule_call, process_madv_dontneed)
{
	.call = call_process_madvise,
	.arg = MADV_DONTNEED,
};

FIXTURE_VARIANT_ADD(page_granule_call, process_madv_guard_install)
{
	.call = call_process_madvise,
	.arg = MADV_GUARD_INSTALL,
};

FIXTURE_VARIANT_ADD(page_granule_call, madv_normal)
	MADVISE(MADV_NORMAL, AFTER(MADV_RANDOM));
FIXTURE_VARIANT_ADD(page_granule_call, madv_random) MADVISE(MADV_RANDOM);
FIXTURE_VARIANT_ADD(page_granule_call, madv_sequential) MADVISE(MADV_SEQUENTIAL);
FIXTURE_VARIANT_ADD(page_granule_call, madv_willneed) MADVISE(MADV_WILLNEED);
FIXTURE_VARIANT_ADD(page_granule_call, madv_dontneed) MADVISE(MADV_DONTNEED);
FIXTURE_VARIANT_ADD(page_granule_call, madv_dontneed_locked)
	MADVISE(MADV_DONTNEED_LOCKED, .prepare = call_mlock);
FIXTURE_VARIANT_ADD(page_granule_call, madv_dontneed_of_locked)
	MADVISE(MADV_DONTNEED, .prepare = call_mlock, .result = -EINVAL);
FIXTURE_VARIANT_ADD(page_granule_call, madv_free) MADVISE(MADV_FREE);
FIXTURE_VARIANT_ADD(page_granule_call, madv_remove)
	MADVISE(MADV_REMOVE, .how = CALL_SHARED | CALL_UNMAPS);
FIXTURE_VARIANT_ADD(page_granule_call, madv_dontfork) MADVISE(MADV_DONTFORK);
FIXTURE_VARIANT_ADD(page_granule_call, madv_dofork) MADVISE(MADV_DOFORK, AFTER(MADV_DONTFORK));
FIXTURE_VARIANT_ADD(page_granule_call, madv_dontdump) MADVISE(MADV_DONTDUMP);
FIXTURE_VARIANT_ADD(page_granule_call, madv_dodump) MADVISE(MADV_DODUMP, AFTER(MADV_DONTDUMP));
FIXTURE_VARIANT_ADD(page_granule_call, madv_wipeonfork) MADVISE(MADV_WIPEONFORK);
FIXTURE_VARIANT_ADD(page_granule_call, madv_keeponfork)
	MADVISE(MADV_KEEPONFORK, AFTER(MADV_WIPEONFORK));
FIXTURE_VARIANT_ADD(page_granule_call, madv_hugepage) MADVISE(MADV_HUGEPAGE);
FIXTURE_VARIANT_ADD(page_granule_call, madv_nohugepage)
	MADVISE(MADV_NOHUGEPAGE, AFTER(MADV_HUGEPAGE));
FIXTURE_VARIANT_ADD(page_granule_call, madv_mergeable)
	MADVISE(MADV_MERGEABLE, .config = "KSM", .how = CALL_REFUSED);
FIXTURE_VARIANT_ADD(page_granule_call, madv_unmergeable)
	MADVISE(MADV_UNMERGEABLE, AFTER(MADV_MERGEABLE), .config = "KSM", .how = CALL_MERGES);
/* What it is about is a part of a granule, which is split for it. */
FIXTURE_VARIANT_ADD(page_granule_call, madv_cold) MADVISE(MADV_COLD, .how = CALL_UNMAPS);
FIXTURE_VARIANT_ADD(page_granule_call, madv_pageout) MADVISE(MADV_PAGEOUT, .how = CALL_EVICTS);
FIXTURE_VARIANT_ADD(page_granule_call, madv_populate_read) MADVISE(MADV_POPULATE_READ);
FIXTURE_VARIANT_ADD(page_granule_call, madv_populate_write) MADVISE(MADV_POPULATE_WRITE);
/* There is no room for a huge page in the arena; see page_granule_memory. */
FIXTURE_VARIANT_ADD(page_granule_call, madv_collapse)
	MADVISE(MADV_COLLAPSE, .result = -EINVAL, .how = CALL_FORMS);
FIXTURE_VARIANT_ADD(page_granule_call, madv_guard_install) MADVISE(MADV_GUARD_INSTALL);
FIXTURE_VARIANT_ADD(page_granule_call, madv_guard_remove)
	MADVISE(MADV_GUARD_REMOVE, AFTER(MADV_GUARD_INSTALL));

#define CALL_VARIANT FIXTURE_VARIANT(page_granule_call)

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

/* Is a page inside a granule of a VMA that the contract is for? */
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
 * What MADV_COLLAPSE returns where there is no room for a huge page. It stops at the
 * first VMA that has no granule in the range, and goes on after a hole.
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

		/* Where the call is refused, the flag of the twin is in excess. */
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
		if (ret != -EINVAL) {
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

/* What is not refused does the same as on untagged memory. */
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
	take_views(&twin, &view1, &tagged, &view2);
	if (touches_policy(op)) {
		view_policy(twin.base, LAYOUT_PAGES, view1.policy);
		view_policy(tagged.base, LAYOUT_PAGES, view2.policy);
	}
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
FIXTURE_SETUP(page_granule_call)
{
	int ret;

	ASSERT_EQ(granule_set_enabled(true), 0);
	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, BASE_SIZE), 0);
	granule_thp_never();
	ASSERT_TRUE(map_and_prepare(variant, &twin, &layouts[0], GRANULE_UNTAGGED,
				    variant->how & CALL_SHARED));
	ret = run_call(variant, &twin, 16, 32);
	if (ret && ret != variant->result && variant->config)
		SKIP(return, "call not available (%s): build the kernel with CONFIG_%s=y",
		     strerror(-ret), variant->config);
	ASSERT_EQ(ret, variant->result);
}

FIXTURE_TEARDOWN(page_granule_call)
{
	EXPECT_TRUE(granule_invariants_hold());
}

/* Assert that it cuts no contract granule of private memory, and works otherwise. */
TEST_F_TIMEOUT(page_granule_call, contract_private, 180)
{
	check_contract(_metadata, variant, false);
}

/* Assert that it cuts no contract granule of shared memory, and works otherwise. */
TEST_F_TIMEOUT(page_granule_call, contract_shared, 180)
{
	check_contract(_metadata, variant, true);
}

/* Assert that private default-tagged memory takes it as untagged memory does. */
TEST_F_TIMEOUT(page_granule_call, default_private, 180)
{
	check_default(_metadata, variant, false);
}

/* Assert that shared default-tagged memory takes it as untagged memory does. */
TEST_F_TIMEOUT(page_granule_call, default_shared, 180)
{
	check_default(_metadata, variant, true);
}

/* What is not a call on a range: memory of one kind in a reservation. */
#define RES_GRANULES	64
#define RES_LEN		(RES_GRANULES * GRANULE_SIZE)
#define SEED		0x47

FIXTURE(page_granule_memory)
{
	int pagemap;
	char *res;
};

FIXTURE_VARIANT(page_granule_memory)
{
	enum granule_kind kind;
	bool shared;
};

FIXTURE_VARIANT_ADD(page_granule_memory, contract_private)
{
	.kind = GRANULE_CONTRACT,
	.shared = false,
};

FIXTURE_VARIANT_ADD(page_granule_memory, contract_shared)
{
	.kind = GRANULE_CONTRACT,
	.shared = true,
};

FIXTURE_VARIANT_ADD(page_granule_memory, default_private)
{
	.kind = GRANULE_DEFAULT,
	.shared = false,
};

FIXTURE_VARIANT_ADD(page_granule_memory, default_shared)
{
	.kind = GRANULE_DEFAULT,
	.shared = true,
};

FIXTURE_SETUP(page_granule_memory)
{
	ASSERT_EQ(granule_set_enabled(true), 0);
	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, BASE_SIZE), 0);
	granule_thp_never();
	self->pagemap = granule_open_pagemap();
	ASSERT_GE(self->pagemap, 0);
	self->res = granule_reserve(RES_LEN);
	ASSERT_NE(self->res, NULL);
}

FIXTURE_TEARDOWN(page_granule_memory)
{
	EXPECT_TRUE(granule_invariants_hold());
	close(self->pagemap);
}

/* What can be mapped of @kind that is as long as @len, or longer. */
static size_t mapped_len(enum granule_kind kind, size_t len)
{
	return kind == GRANULE_CONTRACT ? granule_round_up(len) : len;
}

/* Put some pages where the next mapping would go, so that it is not aligned there. */
static bool shift_next_mapping(unsigned int nr)
{
	return mmap(NULL, (nr % 15 + 1) * BASE_SIZE, PROT_EXEC, ANON_FLAGS | MAP_GRANULE_4KB,
		    -1, 0) != MAP_FAILED;
}

/* Assert that mremap moves it to a congruent address, and its runs with it. */
TEST_F(page_granule_memory, mremap_congruent)
{
	static const int flags[] = { MREMAP_MAYMOVE, MREMAP_MAYMOVE | MREMAP_DONTUNMAP };
	size_t len = 4 * GRANULE_SIZE, new_len;
	unsigned int i, offset;
	unsigned long whole;

	for (i = 0; i < ARRAY_SIZE(flags); i++) {
		/* Neither a contract VMA nor tagged shared memory begins elsewhere. */
		for (offset = 0; offset < GRANULE_NR_PAGES; offset += 5) {
			char *addr = self->res + GRANULE_SIZE + offset * BASE_SIZE;
			char *new;

			if (offset && (variant->kind == GRANULE_CONTRACT || variant->shared))
				break;
			ASSERT_TRUE(shift_next_mapping(i + offset));
			ASSERT_EQ(map_memory(variant->kind, variant->shared, addr, len,
					     MAP_FIXED), addr);
			granule_fill(addr, len, SEED);
			whole = granule_count(self->pagemap, addr, len, GRANULE_WHOLE);
			EXPECT_EQ(whole, offset ? 3 : 4);
			/* The reservation does not let it grow in place. */
			new_len = flags[i] & MREMAP_DONTUNMAP ? len : 4 * len;
			new = sys_mremap(addr, len, new_len, flags[i], NULL);
			ASSERT_NE(new, MAP_FAILED);
			EXPECT_NE(new, addr);
			EXPECT_EQ((new - addr) % (long)GRANULE_SIZE, 0)
				TH_LOG("%p to %p", addr, new);
			EXPECT_TRUE(granule_check(new, len, SEED));
			EXPECT_EQ(granule_count(self->pagemap, new, len, GRANULE_WHOLE), whole);
			EXPECT_EQ(kind_of(new), variant->kind);
			ASSERT_EQ(munmap(new, new_len), 0);
		}
	}
}

/* Assert that mremap grows it in place, by granules or by pages as it may. */
TEST_F(page_granule_memory, mremap_grow_in_place)
{
	size_t step = variant->kind == GRANULE_CONTRACT ? GRANULE_SIZE : BASE_SIZE;
	size_t start = 2 * GRANULE_SIZE, room = 6 * GRANULE_SIZE, len;
	char *addr = self->res + GRANULE_SIZE, *before, *after;

	ASSERT_EQ(map_memory(variant->kind, variant->shared, addr, start, MAP_FIXED), addr);
	granule_fill(addr, start, SEED);
	ASSERT_EQ(munmap(addr + start, room - start), 0);
	if (variant->kind == GRANULE_CONTRACT) {
		before = granule_smaps_text(addr, room);
		errno = 0;
		EXPECT_EQ(sys_mremap(addr, start, start + BASE_SIZE, 0, NULL), MAP_FAILED);
		EXPECT_EQ(errno, EINVAL);
		after = granule_smaps_text(addr, room);
		EXPECT_TRUE(granule_same_text(before, after));
		free(before);
		free(after);
	}

	for (len = start; len + step <= room; len += step) {
		ASSERT_EQ(sys_mremap(addr, len, len + step, 0, NULL), addr);
		EXPECT_TRUE(vma_is(addr, len + step));
		/* A shared memory object does not grow with its mapping. */
		if (variant->shared)
			continue;
		EXPECT_TRUE(is_filled(addr + len, step, 0));
		addr[len] = len >> 12;
	}
	EXPECT_EQ(kind_of(addr), variant->kind);
	EXPECT_TRUE(granule_check(addr, start, SEED));
	for (len = start; !variant->shared && len < room; len += step)
		EXPECT_EQ(addr[len], (char)(len >> 12));
	EXPECT_EQ(granule_count(self->pagemap, addr, start, GRANULE_WHOLE), 2);
}

/* Assert that MREMAP_DONTUNMAP leaves an empty VMA of the same kind. */
TEST_F(page_granule_memory, mremap_dontunmap)
{
	char *addr = self->res + GRANULE_SIZE, *new;
	size_t len = 3 * GRANULE_SIZE;

	ASSERT_EQ(map_memory(variant->kind, variant->shared, addr, len, MAP_FIXED), addr);
	granule_fill(addr, len, SEED);
	new = sys_mremap(addr, len, len, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL);
	ASSERT_NE(new, MAP_FAILED);
	EXPECT_TRUE(vma_is(addr, len));
	EXPECT_EQ(kind_of(addr), variant->kind);
	EXPECT_EQ(kind_of(new), variant->kind);
	EXPECT_EQ(granule_count(self->pagemap, addr, len, GRANULE_EMPTY), 3);
	EXPECT_TRUE(granule_check(new, len, SEED));
	/* Shared memory is in the object, and so at both addresses. */
	EXPECT_EQ(granule_check(addr, len, SEED), variant->shared);
	EXPECT_EQ(is_filled(addr, len, 0), !variant->shared);
	addr[5 * BASE_SIZE] = 1;
	EXPECT_EQ(granule_state(self->pagemap, addr), GRANULE_WHOLE);
	if (!variant->shared)
		EXPECT_TRUE(granule_check(new, len, SEED));
}

/* Assert that several VMAs are moved at once, to where their granules fit. */
TEST_F(page_granule_memory, mremap_several)
{
	char *addr = self->res + GRANULE_SIZE, *dest = self->res + 16 * GRANULE_SIZE;
	size_t len = 6 * GRANULE_SIZE;
	int moves = MREMAP_MAYMOVE | MREMAP_FIXED;
	char *before, *after;

	ASSERT_EQ(map_memory(variant->kind, variant->shared, addr, 4 * GRANULE_SIZE,
			     MAP_FIXED), addr);
	ASSERT_EQ(granule_mmap(GRANULE_UNTAGGED, addr + 4 * GRANULE_SIZE, 2 * GRANULE_SIZE,
			       PROT_RW, MAP_FIXED), addr + 4 * GRANULE_SIZE);
	granule_fill(addr, len, SEED);
	ASSERT_EQ(mprotect(addr + 2 * GRANULE_SIZE, 2 * GRANULE_SIZE, PROT_READ), 0);
	ASSERT_EQ(munmap(addr + 5 * GRANULE_SIZE, GRANULE_SIZE), 0);

	if (variant->kind == GRANULE_CONTRACT) {
		before = granule_smaps_text(self->res, RES_LEN);
		errno = 0;
		/* The granules would not be aligned there; of the last VMA they are. */
		EXPECT_EQ(sys_mremap(addr, len, len, moves, dest + BASE_SIZE), MAP_FAILED);
		EXPECT_EQ(errno, EINVAL);
		errno = 0;
		EXPECT_EQ(sys_mremap(addr + BASE_SIZE, len - BASE_SIZE, len - BASE_SIZE, moves,
				     dest + BASE_SIZE), MAP_FAILED);
		EXPECT_EQ(errno, EINVAL);
		after = granule_smaps_text(self->res, RES_LEN);
		EXPECT_TRUE(granule_same_text(before, after));
		free(before);
		free(after);
	} else {
		dest += BASE_SIZE;
	}

	ASSERT_EQ(sys_mremap(addr, len, len, moves, dest), dest);
	EXPECT_TRUE(granule_check(dest, 5 * GRANULE_SIZE, SEED));
	EXPECT_TRUE(vma_is(dest, 2 * GRANULE_SIZE));
	EXPECT_TRUE(vma_is(dest + 2 * GRANULE_SIZE, 2 * GRANULE_SIZE));
	EXPECT_FALSE(vma_has_flag(dest + 2 * GRANULE_SIZE, "wr"));
	EXPECT_EQ(kind_of(dest), variant->kind);
	EXPECT_EQ(kind_of(dest + 2 * GRANULE_SIZE), variant->kind);
	EXPECT_EQ(kind_of(dest + 4 * GRANULE_SIZE), GRANULE_UNTAGGED);
	if (variant->kind == GRANULE_CONTRACT)
		EXPECT_EQ(granule_count(self->pagemap, dest, 4 * GRANULE_SIZE, GRANULE_WHOLE), 4);
}

/* Assert that what mlock locks is counted: whole contract granules, or pages. */
TEST_F(page_granule_memory, mlock_counted)
{
	const size_t unit = mapped_len(variant->kind, BASE_SIZE);
	char *addr = self->res, *second = addr + GRANULE_SIZE, *page = second;
	long kb = unit / 1024, locked;

	if (variant->kind != GRANULE_CONTRACT)
		page += 5 * BASE_SIZE;
	ASSERT_EQ(map_memory(variant->kind, variant->shared, addr, 4 * GRANULE_SIZE,
			     MAP_FIXED), addr);
	locked = status_kb("VmLck:");
	/* Bytes are rounded to base pages, as they always were. */
	ASSERT_EQ(mlock(page + 100, unit - 101), 0);
	EXPECT_EQ(status_kb("VmLck:") - locked, kb);
	/* Once more, and in the granule before, without populating that. */
	ASSERT_EQ(mlock(page, unit), 0);
	ASSERT_EQ(syscall(__NR_mlock2, addr + 100, unit - 101, MLOCK_ONFAULT), 0);
	EXPECT_EQ(status_kb("VmLck:") - locked, 2 * kb);
	/* A VMA of one page has no granule to populate. */
	EXPECT_EQ(granule_filled(self->pagemap, addr), 0);
	EXPECT_EQ(granule_filled(self->pagemap, second), kb / 4);
	EXPECT_EQ(granule_filled(self->pagemap, second + GRANULE_SIZE), 0);
	ASSERT_EQ(munlock(page + 100, unit - 101), 0);
	EXPECT_EQ(status_kb("VmLck:") - locked, kb);
	ASSERT_EQ(munlock(addr, unit), 0);
	EXPECT_EQ(status_kb("VmLck:"), locked);
	EXPECT_TRUE(vma_is(addr, 4 * GRANULE_SIZE));
}

/* mlock() under a limit, without the privilege to exceed it. */
static int mlock_under_limit(char *addr, size_t len, rlim_t limit)
{
	struct rlimit rlim = { limit, limit };
	int status;
	pid_t pid;

	pid = fork();
	if (pid < 0)
		return -errno;
	if (!pid) {
		if (setrlimit(RLIMIT_MEMLOCK, &rlim) ||
		    setresuid(UID_NOBODY, UID_NOBODY, UID_NOBODY))
			_exit(EIO);
		_exit(mlock(addr, len) ? errno : 0);
	}
	if (waitpid(pid, &status, 0) != pid || !WIFEXITED(status))
		return -EIO;
	return -WEXITSTATUS(status);
}

/* Assert that RLIMIT_MEMLOCK holds for what is locked in fact. */
TEST_F(page_granule_memory, mlock_limited)
{
	size_t len = mapped_len(variant->kind, BASE_SIZE);
	char *addr = self->res;

	ASSERT_EQ(map_memory(variant->kind, variant->shared, addr, 4 * GRANULE_SIZE,
			     MAP_FIXED), addr);
	addr += GRANULE_SIZE;
	if (variant->kind == GRANULE_CONTRACT)
		EXPECT_EQ(mlock_under_limit(addr, 1, len), -EINVAL);
	/* Where a page will do, any page will. */
	addr += (GRANULE_SIZE - len) / 4 / BASE_SIZE * BASE_SIZE;
	/* A limit of 0 would be EPERM. */
	EXPECT_EQ(mlock_under_limit(addr, len, len - 1), -ENOMEM);
	EXPECT_EQ(mlock_under_limit(addr, len, len), 0);
}

/* Assert that mlockall locks and populates it, and munlockall lets go. */
TEST_F(page_granule_memory, mlockall_current)
{
	char *addr = self->res;
	size_t len = 3 * GRANULE_SIZE;

	ASSERT_EQ(map_memory(variant->kind, variant->shared, addr, len, MAP_FIXED), addr);
	ASSERT_EQ(mlockall(MCL_CURRENT), 0);
	EXPECT_TRUE(vma_has_flag(addr, "lo"));
	EXPECT_EQ(granule_count(self->pagemap, addr, len, GRANULE_WHOLE), 3);
	ASSERT_EQ(munlockall(), 0);
	EXPECT_FALSE(vma_has_flag(addr, "lo"));
	EXPECT_TRUE(vma_is(addr, len));
	EXPECT_EQ(granule_count(self->pagemap, addr, len, GRANULE_WHOLE), 3);
}

/* Assert that MCL_FUTURE and MAP_LOCKED lock and populate what is mapped. */
TEST_F(page_granule_memory, mlockall_future)
{
	size_t len = mapped_len(variant->kind, GRANULE_SIZE + BASE_SIZE);
	char *addr = self->res;
	int i, locked;

	for (i = 0; i < 2; i++, addr += 4 * GRANULE_SIZE) {
		if (!i)
			ASSERT_EQ(mlockall(MCL_FUTURE), 0);
		locked = status_kb("VmLck:");
		ASSERT_EQ(map_memory(variant->kind, variant->shared, addr, len,
				     MAP_FIXED | (i ? MAP_LOCKED : 0)), addr);
		EXPECT_EQ(status_kb("VmLck:") - locked, len / 1024);
		EXPECT_TRUE(vma_has_flag(addr, "lo"));
		EXPECT_EQ(granule_present_pages(self->pagemap, addr, len), len / BASE_SIZE);
		EXPECT_EQ(granule_state(self->pagemap, addr), GRANULE_WHOLE);
		if (!i)
			ASSERT_EQ(munlockall(), 0);
	}
}

/* Assert that MCL_ONFAULT locks at the first touch, a granule at once. */
TEST_F(page_granule_memory, mlockall_onfault)
{
	char *addr = self->res, *later = addr + 4 * GRANULE_SIZE;
	size_t len = 2 * GRANULE_SIZE;

	ASSERT_EQ(map_memory(variant->kind, variant->shared, addr, len, MAP_FIXED), addr);
	ASSERT_EQ(mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT), 0);
	ASSERT_EQ(map_memory(variant->kind, variant->shared, later, len, MAP_FIXED), later);
	EXPECT_TRUE(vma_has_flag(addr, "lo"));
	EXPECT_TRUE(vma_has_flag(later, "lo"));
	EXPECT_EQ(granule_present_pages(self->pagemap, addr, len), 0);
	EXPECT_EQ(granule_present_pages(self->pagemap, later, len), 0);
	addr[5 * BASE_SIZE] = 1;
	later[GRANULE_SIZE + 7 * BASE_SIZE] = 1;
	EXPECT_EQ(granule_state(self->pagemap, addr), GRANULE_WHOLE);
	EXPECT_EQ(granule_state(self->pagemap, addr + GRANULE_SIZE), GRANULE_EMPTY);
	EXPECT_EQ(granule_state(self->pagemap, later), GRANULE_EMPTY);
	EXPECT_EQ(granule_state(self->pagemap, later + GRANULE_SIZE), GRANULE_WHOLE);
	ASSERT_EQ(munlockall(), 0);
}

/* Assert that mincore tells of a touched granule that all of it is resident. */
TEST_F(page_granule_memory, mincore_granule)
{
	unsigned char vec[3 * GRANULE_NR_PAGES + 1];
	char *addr = self->res;
	unsigned int i;

	ASSERT_EQ(map_memory(variant->kind, variant->shared, addr, 3 * GRANULE_SIZE,
			     MAP_FIXED), addr);
	addr[GRANULE_SIZE + 9 * BASE_SIZE] = 1;
	memset(vec, 0xa5, sizeof(vec));
	/* Any page is a place to start. */
	ASSERT_EQ(mincore(addr + BASE_SIZE, 3 * GRANULE_SIZE - BASE_SIZE, vec + 1), 0);
	for (i = 1; i < 3 * GRANULE_NR_PAGES; i++)
		EXPECT_EQ(vec[i] & 1, i / GRANULE_NR_PAGES == 1);
	EXPECT_EQ(vec[0], 0xa5);
	EXPECT_EQ(vec[i], 0xa5);
	errno = 0;
	EXPECT_EQ(mincore(addr + 1, BASE_SIZE, vec), -1);
	EXPECT_EQ(errno, EINVAL);
}

/* In a child: has it the memory that it should have? */
static int check_forked(int pagemap, char *addr, bool shared, int advice)
{
	unsigned char vec[GRANULE_NR_PAGES];
	char *middle = addr + GRANULE_SIZE;

	if (!granule_check(addr, GRANULE_SIZE, 0) ||
	    !granule_check(middle + GRANULE_SIZE, GRANULE_SIZE, 2))
		return 1;
	if (advice == MADV_DONTFORK)
		return mincore(middle, GRANULE_SIZE, vec) && errno == ENOMEM ? 0 : 2;
	if (advice == MADV_WIPEONFORK && !is_filled(middle, GRANULE_SIZE, 0))
		return 3;
	if (advice != MADV_WIPEONFORK && !granule_check(middle, GRANULE_SIZE, 1))
		return 4;
	middle[BASE_SIZE] = 1;
	if (advice == MADV_WIPEONFORK && granule_state(pagemap, middle) != GRANULE_WHOLE)
		return 5;
	return 0;
}

/* Assert that advice on one granule is what a child finds followed. */
TEST_F(page_granule_memory, advice_on_fork)
{
	static const int advice[] = {
		MADV_DONTFORK, MADV_DOFORK, MADV_WIPEONFORK, MADV_KEEPONFORK,
	};
	char *addr = self->res;
	int status, i, n;
	pid_t pid;

	/* Shared memory is not wiped. */
	n = variant->shared ? 2 : ARRAY_SIZE(advice);
	ASSERT_EQ(map_memory(variant->kind, variant->shared, addr, 3 * GRANULE_SIZE,
			     MAP_FIXED), addr);
	for (i = 0; i < n; i++) {
		granule_fill(addr, GRANULE_SIZE, 0);
		granule_fill(addr + GRANULE_SIZE, GRANULE_SIZE, 1);
		granule_fill(addr + 2 * GRANULE_SIZE, GRANULE_SIZE, 2);
		ASSERT_EQ(madvise(addr + GRANULE_SIZE, GRANULE_SIZE, advice[i]), 0);
		pid = fork();
		ASSERT_GE(pid, 0);
		if (!pid) {
			int pagemap = granule_open_pagemap();

			_exit(check_forked(pagemap, addr, variant->shared, advice[i]));
		}
		ASSERT_EQ(waitpid(pid, &status, 0), pid);
		EXPECT_EQ(status, 0)
			TH_LOG("advice %d", advice[i]);
	}
	EXPECT_TRUE(vma_is(addr, 3 * GRANULE_SIZE));
}

/* Assert that 4 KiB may be mapped beside it, and nothing over it without asking. */
TEST_F(page_granule_memory, noreplace_beside)
{
	char *addr = self->res + 2 * GRANULE_SIZE, *end = addr + 2 * GRANULE_SIZE;
	int flags = ANON_FLAGS | MAP_FIXED_NOREPLACE | MAP_GRANULE_4KB;
	char *before, *after, *page;

	ASSERT_EQ(munmap(self->res, 8 * GRANULE_SIZE), 0);
	ASSERT_EQ(map_memory(variant->kind, variant->shared, addr, end - addr,
			     MAP_FIXED_NOREPLACE), addr);
	granule_fill(addr, end - addr, SEED);
	before = granule_smaps_text(addr, end - addr);
	EXPECT_EQ(mmap(addr - BASE_SIZE, BASE_SIZE, PROT_RW, flags, -1, 0), addr - BASE_SIZE);
	EXPECT_EQ(mmap(end, BASE_SIZE, PROT_RW, flags, -1, 0), end);
	for (page = addr; page < end; page += BASE_SIZE) {
		errno = 0;
		EXPECT_EQ(mmap(page, BASE_SIZE, PROT_RW, flags, -1, 0), MAP_FAILED);
		EXPECT_EQ(errno, EEXIST);
	}
	/* A granule would meet the page that is there now. */
	errno = 0;
	EXPECT_EQ(map_memory(GRANULE_CONTRACT, variant->shared, addr - GRANULE_SIZE,
			     GRANULE_SIZE, MAP_FIXED_NOREPLACE), MAP_FAILED);
	EXPECT_EQ(errno, EEXIST);
	after = granule_smaps_text(addr, end - addr);
	EXPECT_TRUE(granule_same_text(before, after));
	EXPECT_TRUE(granule_check(addr, end - addr, SEED));
	free(before);
	free(after);
}

/* Assert that it replaces what it is mapped over, and takes no more of it. */
TEST_F(page_granule_memory, fixed_over)
{
	size_t len = mapped_len(variant->kind, BASE_SIZE);
	char *addr = self->res, *middle = addr + GRANULE_SIZE;
	enum granule_kind under;

	for (under = GRANULE_UNTAGGED; under <= GRANULE_CONTRACT; under++) {
		size_t step = under == GRANULE_CONTRACT ? GRANULE_SIZE : BASE_SIZE;

		ASSERT_EQ(map_memory(under, variant->shared, addr, 3 * GRANULE_SIZE,
				     MAP_FIXED), addr);
		granule_fill(addr, 3 * GRANULE_SIZE, SEED);
		/* One page of a contract VMA is not for others to take. */
		if (len < step) {
			errno = 0;
			EXPECT_EQ(map_memory(variant->kind, variant->shared, middle, len,
					     MAP_FIXED), MAP_FAILED);
			EXPECT_EQ(errno, EINVAL);
			EXPECT_TRUE(vma_is(addr, 3 * GRANULE_SIZE));
			EXPECT_TRUE(granule_check(addr, 3 * GRANULE_SIZE, SEED));
			continue;
		}
		ASSERT_EQ(map_memory(variant->kind, variant->shared, middle, len,
				     MAP_FIXED), middle);
		EXPECT_TRUE(is_filled(middle, len, 0));
		EXPECT_EQ(kind_of(middle), variant->kind)
			TH_LOG("over kind %d", under);
		EXPECT_EQ(kind_of(addr), under);
		EXPECT_EQ(kind_of(middle + len), under);
		memset(middle, 0x55, len);
		granule_fill(addr, GRANULE_SIZE, SEED);
		EXPECT_TRUE(is_filled(middle, len, 0x55));
		EXPECT_TRUE(granule_check(addr, GRANULE_SIZE, SEED));
	}
}

/* Assert that lengths are rounded up to the base page first, as they always were. */
TEST_F(page_granule_memory, odd_lengths)
{
	char *addr = self->res, *before, *after;
	int i;

	ASSERT_EQ(map_memory(variant->kind, variant->shared, addr, 8 * GRANULE_SIZE,
			     MAP_FIXED), addr);
	granule_fill(addr, 8 * GRANULE_SIZE, SEED);
	before = granule_smaps_text(addr, 8 * GRANULE_SIZE);
	/* Just more than 15 pages is 16 pages, but an odd address is none. */
	for (i = 1; i < BASE_SIZE; i += 1365) {
		errno = 0;
		EXPECT_EQ(munmap(addr + i, GRANULE_SIZE), -1);
		EXPECT_EQ(errno, EINVAL);
		errno = 0;
		EXPECT_EQ(mprotect(addr + i, GRANULE_SIZE, PROT_READ), -1);
		EXPECT_EQ(errno, EINVAL);
		errno = 0;
		EXPECT_EQ(madvise(addr + i, GRANULE_SIZE, MADV_DONTNEED), -1);
		EXPECT_EQ(errno, EINVAL);
	}
	after = granule_smaps_text(addr, 8 * GRANULE_SIZE);
	EXPECT_TRUE(granule_same_text(before, after));
	free(before);
	free(after);
	EXPECT_EQ(madvise(addr, GRANULE_SIZE - 1, MADV_DONTDUMP), 0);
	EXPECT_TRUE(vma_is(addr, GRANULE_SIZE));
	EXPECT_EQ(mprotect(addr + GRANULE_SIZE, GRANULE_SIZE - BASE_SIZE + 1, PROT_READ), 0);
	EXPECT_TRUE(vma_is(addr + GRANULE_SIZE, GRANULE_SIZE));
	EXPECT_EQ(munmap(addr + 2 * GRANULE_SIZE, GRANULE_SIZE - 2048), 0);
	EXPECT_TRUE(vma_is(addr + 3 * GRANULE_SIZE, 5 * GRANULE_SIZE));
}

/* Assert that process_madvise stops at the first range that cuts a granule. */
TEST_F(page_granule_memory, process_madvise_vector)
{
	bool contract = variant->kind == GRANULE_CONTRACT;
	char *addr = self->res;
	struct iovec iov[] = {
		{ addr, GRANULE_SIZE },
		{ addr + GRANULE_SIZE, BASE_SIZE },
		{ addr + 2 * GRANULE_SIZE, GRANULE_SIZE },
	};
	int pidfd = syscall(__NR_pidfd_open, getpid(), 0);

	ASSERT_GE(pidfd, 0);
	ASSERT_EQ(map_memory(variant->kind, variant->shared, addr, 3 * GRANULE_SIZE,
			     MAP_FIXED), addr);
	granule_fill(addr, 3 * GRANULE_SIZE, SEED);
	EXPECT_EQ(syscall(__NR_process_madvise, pidfd, iov, 3UL, MADV_DONTNEED, 0U),
		  contract ? GRANULE_SIZE : 2 * GRANULE_SIZE + BASE_SIZE);
	EXPECT_EQ(granule_filled(self->pagemap, addr), 0);
	EXPECT_EQ(granule_filled(self->pagemap, addr + GRANULE_SIZE), contract ? 16 : 15);
	EXPECT_EQ(granule_filled(self->pagemap, addr + 2 * GRANULE_SIZE), contract ? 16 : 0);
	close(pidfd);
}

/* Assert that a sealed granule stays, and its neighbours may go. */
TEST_F(page_granule_memory, mseal_one_granule)
{
	char *addr = self->res, *sealed = addr + GRANULE_SIZE, *before, *after;

	ASSERT_EQ(map_memory(variant->kind, variant->shared, addr, 3 * GRANULE_SIZE,
			     MAP_FIXED), addr);
	granule_fill(addr, 3 * GRANULE_SIZE, SEED);
	if (syscall(__NR_mseal, sealed, GRANULE_SIZE, 0UL))
		SKIP(return, "no mseal (%s): use a 64-bit kernel", strerror(errno));
	EXPECT_TRUE(vma_is(sealed, GRANULE_SIZE));
	before = granule_smaps_text(sealed, GRANULE_SIZE);
	errno = 0;
	EXPECT_EQ(munmap(sealed, GRANULE_SIZE), -1);
	EXPECT_EQ(errno, EPERM);
	errno = 0;
	EXPECT_EQ(mprotect(sealed, GRANULE_SIZE, PROT_READ), -1);
	EXPECT_EQ(errno, EPERM);
	errno = 0;
	EXPECT_EQ(sys_mremap(sealed, GRANULE_SIZE, GRANULE_SIZE, MREMAP_MAYMOVE | MREMAP_FIXED,
			     addr + 8 * GRANULE_SIZE), MAP_FAILED);
	EXPECT_EQ(errno, EPERM);
	errno = 0;
	EXPECT_EQ(munmap(sealed + BASE_SIZE, BASE_SIZE), -1);
	EXPECT_EQ(errno, variant->kind == GRANULE_CONTRACT ? EINVAL : EPERM);
	errno = 0;
	EXPECT_EQ(munmap(addr, 3 * GRANULE_SIZE), -1);
	EXPECT_EQ(errno, EPERM);
	after = granule_smaps_text(sealed, GRANULE_SIZE);
	EXPECT_TRUE(granule_same_text(before, after));
	EXPECT_TRUE(granule_check(addr, 3 * GRANULE_SIZE, SEED));
	EXPECT_EQ(munmap(addr, GRANULE_SIZE), 0);
	EXPECT_EQ(munmap(sealed + GRANULE_SIZE, GRANULE_SIZE), 0);
	free(before);
	free(after);
}

static bool is_collapsed(const char *addr)
{
	const char *line = read_proc("/proc/self/smaps");
	unsigned long start, end, lo = (unsigned long)addr;
	bool inside = false;

	for (; line; line = strchr(line, '\n')) {
		line += *line == '\n';
		if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
			inside = start <= lo && lo < end;
		else if (inside && (!strncmp(line, "AnonHugePages:", 14) ||
				    !strncmp(line, "ShmemPmdMapped:", 15)) &&
			 atol(strchr(line, ':') + 1))
			return true;
	}
	return false;
}

/* Assert that MADV_COLLAPSE takes the ranges that it may, and does as untagged. */
TEST_F_TIMEOUT(page_granule_memory, collapse, 60)
{
	size_t len = 2 * HPAGE_SIZE;
	char *res, *plain, *area;
	int ret;

	res = granule_reserve(2 * len + HPAGE_SIZE);
	ASSERT_NE(res, NULL);
	plain = (char *)(((unsigned long)res + HPAGE_SIZE - 1) & -(unsigned long)HPAGE_SIZE);
	area = plain + len;
	ASSERT_EQ(map_memory(GRANULE_UNTAGGED, variant->shared, plain, len, MAP_FIXED), plain);
	ASSERT_EQ(map_memory(variant->kind, variant->shared, area, len, MAP_FIXED), area);
	granule_fill(plain, len, 1);
	granule_fill(area, len, 2);

	if (madvise(plain + BASE_SIZE, len - BASE_SIZE, MADV_COLLAPSE))
		SKIP(return, "MADV_COLLAPSE fails (%s): free some memory",
		     strerror(errno));
	ret = madvise(area + BASE_SIZE, len - BASE_SIZE, MADV_COLLAPSE) ? -errno : 0;
	EXPECT_EQ(ret, variant->kind == GRANULE_CONTRACT ? -EINVAL : 0);
	EXPECT_EQ(is_collapsed(area), variant->kind != GRANULE_CONTRACT);
	EXPECT_EQ(madvise(area, len, MADV_COLLAPSE), 0);
	EXPECT_TRUE(is_collapsed(area));
	EXPECT_EQ(granule_count(self->pagemap, area, len, GRANULE_WHOLE), len / GRANULE_SIZE);
	EXPECT_TRUE(granule_check(area, len, 2));
	EXPECT_TRUE(granule_check(plain, len, 1));
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
};

static const CALL_VARIANT soft_offline = {
	.call = call_madvise,
	.arg = MADV_SOFT_OFFLINE,
	.prepare = call_mprotect,
	.prepare_arg = PROT_NONE,
};

/* Assert that no part of a contract granule can be poisoned or taken offline. */
TEST_F_TIMEOUT(page_granule_memory, memory_failure, 60)
{
	size_t i;

	ASSERT_TRUE(map_and_prepare(&hwpoison, &twin, &layouts[0], variant->kind, variant->shared));
	if (run_call(&hwpoison, &twin, 0, LAYOUT_PAGES) != -EFAULT)
		SKIP(return, "no MADV_HWPOISON: build the kernel with CONFIG_MEMORY_FAILURE=y");
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

/* Resolve the one fault there is, @len bytes around it; 0 or a negative errno. */
static int resolve_fault(int uffd, const char *src, size_t len, char **addr)
{
	struct pollfd poll_fd = { .fd = uffd, .events = POLLIN };
	struct uffdio_copy copy = { .src = (unsigned long)src, .len = len };
	struct uffd_msg msg;

	if (poll(&poll_fd, 1, 10000) != 1)
		return -ETIMEDOUT;
	if (read(uffd, &msg, sizeof(msg)) != sizeof(msg) || msg.event != UFFD_EVENT_PAGEFAULT)
		return -EIO;
	*addr = (char *)(uintptr_t)msg.arg.pagefault.address;
	copy.dst = msg.arg.pagefault.address & ~(len - 1);
	return ioctl(uffd, UFFDIO_COPY, &copy) ? -errno : 0;
}

static void *read_byte(void *addr)
{
	return (void *)(unsigned long)*(unsigned char *)addr;
}

/* Assert that a fault is resolved with as much as the kind of memory asks for. */
TEST_F(page_granule_memory, uffd_resolve)
{
	size_t len = variant->kind == GRANULE_CONTRACT ? GRANULE_SIZE : BASE_SIZE;
	char *addr = self->res, *src = addr + 8 * GRANULE_SIZE, *fault;
	char *where = addr + GRANULE_SIZE + 5 * BASE_SIZE + 7;
	pthread_t thread;
	int uffd, ret;
	void *byte;

	uffd = uffd_open(0);
	if (uffd < 0)
		SKIP(return, "no userfaultfd: build the kernel with CONFIG_USERFAULTFD=y");
	ASSERT_EQ(map_memory(variant->kind, variant->shared, addr, 3 * GRANULE_SIZE,
			     MAP_FIXED), addr);
	ASSERT_EQ(granule_mmap(GRANULE_UNTAGGED, src, GRANULE_SIZE, PROT_RW, MAP_FIXED), src);
	memset(src, 0xaa, GRANULE_SIZE);
	ASSERT_EQ(uffd_register(uffd, addr, 3 * GRANULE_SIZE, true, false, false), 0);
	ASSERT_EQ(pthread_create(&thread, NULL, read_byte, where), 0);
	ret = resolve_fault(uffd, src, len, &fault);
	ASSERT_EQ(ret, 0);
	ASSERT_EQ(pthread_join(thread, &byte), 0);
	EXPECT_EQ((unsigned long)byte, 0xaa);
	/* The address is that of the page, as it is on any memory. */
	EXPECT_EQ(fault, where - 7);
	EXPECT_EQ(granule_filled(self->pagemap, addr + GRANULE_SIZE), len / BASE_SIZE);
	EXPECT_EQ(granule_filled(self->pagemap, addr), 0);
	close(uffd);
}

/* Shared memory only. */
FIXTURE(page_granule_shared)
{
	int pagemap;
	char *res;
	char *area;
};

FIXTURE_VARIANT(page_granule_shared)
{
	enum granule_kind kind;
};

FIXTURE_VARIANT_ADD(page_granule_shared, contract)
{
	.kind = GRANULE_CONTRACT,
};

FIXTURE_VARIANT_ADD(page_granule_shared, default_tagged)
{
	.kind = GRANULE_DEFAULT,
};

#define SHARED_LEN	(4 * GRANULE_SIZE)

FIXTURE_SETUP(page_granule_shared)
{
	ASSERT_EQ(granule_set_enabled(true), 0);
	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, BASE_SIZE), 0);
	granule_thp_never();
	self->pagemap = granule_open_pagemap();
	ASSERT_GE(self->pagemap, 0);
	self->res = granule_reserve(RES_LEN);
	ASSERT_NE(self->res, NULL);
	self->area = self->res + GRANULE_SIZE;
	ASSERT_EQ(map_memory(variant->kind, true, self->area, SHARED_LEN, MAP_FIXED), self->area);
	granule_fill(self->area, SHARED_LEN, SEED);
}

FIXTURE_TEARDOWN(page_granule_shared)
{
	EXPECT_TRUE(granule_invariants_hold());
	close(self->pagemap);
}

/* Assert that it is tagged, and populated in runs that a child shares. */
TEST_F(page_granule_shared, fork_shares_runs)
{
	int status;
	pid_t pid;

	EXPECT_EQ(kind_of(self->area), variant->kind);
	EXPECT_EQ(granule_count(self->pagemap, self->area, SHARED_LEN, GRANULE_WHOLE), 4);
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		int pagemap = granule_open_pagemap();

		if (!granule_check(self->area, SHARED_LEN, SEED))
			_exit(1);
		if (granule_count(pagemap, self->area, SHARED_LEN, GRANULE_WHOLE) != 4)
			_exit(2);
		granule_fill(self->area, SHARED_LEN, SEED + 1);
		if (granule_count(pagemap, self->area, SHARED_LEN, GRANULE_WHOLE) != 4)
			_exit(3);
		_exit(0);
	}
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	EXPECT_EQ(status, 0);
	EXPECT_TRUE(granule_check(self->area, SHARED_LEN, SEED + 1));
	EXPECT_EQ(granule_count(self->pagemap, self->area, SHARED_LEN, GRANULE_WHOLE), 4);
}

/* Assert that default-tagged memory is so where its address is a multiple of 64 KiB. */
TEST_F(page_granule_shared, unaligned_address)
{
	char *addr = self->res + 8 * GRANULE_SIZE + BASE_SIZE;
	int page;

	errno = 0;
	if (variant->kind == GRANULE_CONTRACT) {
		EXPECT_EQ(map_memory(variant->kind, true, addr, 2 * GRANULE_SIZE, MAP_FIXED),
			  MAP_FAILED);
		EXPECT_EQ(errno, EINVAL);
		return;
	}
	ASSERT_EQ(map_memory(variant->kind, true, addr, 2 * GRANULE_SIZE, MAP_FIXED), addr);
	EXPECT_EQ(kind_of(addr), GRANULE_UNTAGGED);
	EXPECT_TRUE(vma_is(addr, 2 * GRANULE_SIZE));
	for (page = 0; page < 2 * GRANULE_NR_PAGES; page++) {
		EXPECT_EQ(granule_present_pages(self->pagemap, addr, 2 * GRANULE_SIZE), page);
		addr[page * BASE_SIZE] = 1;
	}
}

/* Assert that an mremap from a length of 0 maps the memory twice, in granules. */
TEST_F(page_granule_shared, mremap_duplicate)
{
	char *dest = self->res + 16 * GRANULE_SIZE, *area = self->area, *new, *before, *after;
	bool contract = variant->kind == GRANULE_CONTRACT;
	int moves = MREMAP_MAYMOVE | MREMAP_FIXED;

	if (contract) {
		before = granule_smaps_text(self->res, RES_LEN);
		errno = 0;
		EXPECT_EQ(sys_mremap(area, 0, BASE_SIZE, MREMAP_MAYMOVE, NULL), MAP_FAILED);
		EXPECT_EQ(errno, EINVAL);
		errno = 0;
		EXPECT_EQ(sys_mremap(area + BASE_SIZE, 0, GRANULE_SIZE, MREMAP_MAYMOVE, NULL),
			  MAP_FAILED);
		EXPECT_EQ(errno, EINVAL);
		errno = 0;
		EXPECT_EQ(sys_mremap(area, 0, GRANULE_SIZE, moves, dest + BASE_SIZE), MAP_FAILED);
		EXPECT_EQ(errno, EINVAL);
		errno = 0;
		EXPECT_EQ(sys_mremap(area, 0, BASE_SIZE, moves, dest), MAP_FAILED);
		EXPECT_EQ(errno, EINVAL);
		after = granule_smaps_text(self->res, RES_LEN);
		EXPECT_TRUE(granule_same_text(before, after));
		free(before);
		free(after);
	} else {
		ASSERT_EQ(sys_mremap(area + BASE_SIZE, 0, BASE_SIZE, moves, dest), dest);
		EXPECT_FALSE(memcmp(dest, area + BASE_SIZE, BASE_SIZE));
		EXPECT_TRUE(vma_is(dest, BASE_SIZE));
	}

	ASSERT_EQ(sys_mremap(area, 0, SHARED_LEN, moves, dest), dest);
	EXPECT_EQ(kind_of(dest), variant->kind);
	EXPECT_TRUE(granule_check(dest, SHARED_LEN, SEED));
	new = sys_mremap(area, 0, SHARED_LEN, MREMAP_MAYMOVE, NULL);
	ASSERT_NE(new, MAP_FAILED);
	EXPECT_TRUE(granule_aligned(new));
	granule_fill(new, SHARED_LEN, SEED + 1);
	EXPECT_TRUE(granule_check(area, SHARED_LEN, SEED + 1));
	EXPECT_TRUE(granule_check(dest, SHARED_LEN, SEED + 1));
	EXPECT_EQ(granule_count(self->pagemap, new, SHARED_LEN, GRANULE_WHOLE), 4);
}

/* Assert that remap_file_pages keeps the tag, and takes offsets that fit it. */
TEST_F(page_granule_shared, remap_file_pages)
{
	char *area = self->area, *before, *after;
	int page;

	if (call_remap_file_pages(NULL, area, GRANULE_SIZE, 0))
		SKIP(return, "no remap_file_pages (%s): build the kernel with CONFIG_MMU=y",
		     strerror(errno));
	for (page = 1; page < GRANULE_NR_PAGES; page += 7) {
		char *to = area + 2 * GRANULE_SIZE;

		if (variant->kind == GRANULE_CONTRACT) {
			before = granule_smaps_text(area, SHARED_LEN);
			EXPECT_EQ(call_remap_file_pages(NULL, to, GRANULE_SIZE, page), -EINVAL);
			EXPECT_EQ(call_remap_file_pages(NULL, to + page * BASE_SIZE, GRANULE_SIZE,
							0), -EINVAL);
			EXPECT_EQ(call_remap_file_pages(NULL, to, page * BASE_SIZE, 0), -EINVAL);
			after = granule_smaps_text(area, SHARED_LEN);
			EXPECT_TRUE(granule_same_text(before, after));
			free(before);
			free(after);
			continue;
		}
		/* Any page to any place. */
		ASSERT_EQ(call_remap_file_pages(NULL, to, GRANULE_SIZE, page), 0);
		EXPECT_FALSE(memcmp(to, area + page * BASE_SIZE,
				    GRANULE_SIZE - page * BASE_SIZE));
		to += page * BASE_SIZE;
		ASSERT_EQ(call_remap_file_pages(NULL, to, BASE_SIZE, 3), 0);
		EXPECT_FALSE(memcmp(to, area + 3 * BASE_SIZE, BASE_SIZE));
		EXPECT_TRUE(granule_check(area, GRANULE_SIZE, SEED));
	}
	/* The last granule, turned into another view of the second. */
	ASSERT_EQ(call_remap_file_pages(NULL, area + 3 * GRANULE_SIZE, GRANULE_SIZE, 16), 0);
	EXPECT_EQ(kind_of(area + 3 * GRANULE_SIZE), variant->kind);
	EXPECT_FALSE(memcmp(area + GRANULE_SIZE, area + 3 * GRANULE_SIZE, GRANULE_SIZE));
	area[GRANULE_SIZE + 5] = 1;
	EXPECT_EQ(area[3 * GRANULE_SIZE + 5], 1);
	EXPECT_EQ(granule_state(self->pagemap, area + 3 * GRANULE_SIZE), GRANULE_WHOLE);
}

/* The sizes that limits and accounting see. */
FIXTURE(page_granule_limit)
{
	char mode[16];
	struct rlimit as;
	struct rlimit data;
};

FIXTURE_VARIANT(page_granule_limit)
{
	enum granule_kind kind;
	bool shared;
};

FIXTURE_VARIANT_ADD(page_granule_limit, contract_private)
{
	.kind = GRANULE_CONTRACT,
	.shared = false,
};

FIXTURE_VARIANT_ADD(page_granule_limit, contract_shared)
{
	.kind = GRANULE_CONTRACT,
	.shared = true,
};

FIXTURE_VARIANT_ADD(page_granule_limit, default_private)
{
	.kind = GRANULE_DEFAULT,
	.shared = false,
};

FIXTURE_VARIANT_ADD(page_granule_limit, default_shared)
{
	.kind = GRANULE_DEFAULT,
	.shared = true,
};

FIXTURE_SETUP(page_granule_limit)
{
	ASSERT_EQ(granule_set_enabled(true), 0);
	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, BASE_SIZE), 0);
	ASSERT_GT(read_file(OVERCOMMIT, self->mode, sizeof(self->mode)), 0);
	ASSERT_EQ(getrlimit(RLIMIT_AS, &self->as), 0);
	ASSERT_EQ(getrlimit(RLIMIT_DATA, &self->data), 0);
}

FIXTURE_TEARDOWN(page_granule_limit)
{
	EXPECT_TRUE(granule_invariants_hold());
	setrlimit(RLIMIT_AS, &self->as);
	setrlimit(RLIMIT_DATA, &self->data);
	write_file(OVERCOMMIT, self->mode, strlen(self->mode) + 1);
}

static long committed(void)
{
	return proc_number("/proc/meminfo", "Committed_AS:");
}

/* What a mapping adds to Committed_AS, in kB; LONG_MIN if it cannot be mapped. */
static long commit_of(enum granule_kind kind, bool shared, size_t len)
{
	long before, delta;
	char *addr;

	before = committed();
	addr = map_memory(kind, shared, NULL, len, 0);
	if (addr == MAP_FAILED)
		return LONG_MIN;
	delta = committed() - before;
	munmap(addr, len);
	return committed() == before ? delta : LONG_MIN;
}

/* Assert that a mapping is accounted as what it is, in all modes of overcommit. */
TEST_F(page_granule_limit, commit)
{
	size_t len = (8UL << 20) - mapped_len(variant->kind, BASE_SIZE);
	const long kb = len / 1024;
	unsigned long mode;
	int tries;

	for (mode = 0; mode <= 2; mode++) {
		write_num(OVERCOMMIT, mode);
		/* Something else on the machine may map memory, but not always. */
		for (tries = 0; tries < 10; tries++) {
			if (commit_of(variant->kind, variant->shared, len) == kb &&
			    commit_of(GRANULE_UNTAGGED, variant->shared, len) == kb)
				break;
		}
		EXPECT_LT(tries, 10)
			TH_LOG("mode %lu: %ld kB, untagged %ld kB", mode,
			       commit_of(variant->kind, variant->shared, len),
			       commit_of(GRANULE_UNTAGGED, variant->shared, len));
	}
}

/* Assert that what mremap and mprotect add is accounted as well. */
TEST_F(page_granule_limit, commit_grows)
{
	size_t len = 4 * GRANULE_SIZE;
	long before, grown = 0, made_writable = 0;
	char *addr, *new;
	int tries;

	/* A shared object is accounted when it is made, and does not grow. */
	for (tries = 0; tries < 10; tries++) {
		addr = map_memory(variant->kind, variant->shared, NULL, len, 0);
		ASSERT_NE(addr, MAP_FAILED);
		before = committed();
		new = sys_mremap(addr, len, 2 * len, MREMAP_MAYMOVE, NULL);
		ASSERT_NE(new, MAP_FAILED);
		grown = committed() - before;
		ASSERT_EQ(munmap(new, 2 * len), 0);

		/* Read-only private memory needs none until it is made writable. */
		new = granule_mmap(variant->kind, NULL, len, PROT_READ, 0);
		ASSERT_NE(new, MAP_FAILED);
		before = committed();
		ASSERT_EQ(mprotect(new + GRANULE_SIZE, GRANULE_SIZE, PROT_RW), 0);
		made_writable = committed() - before;
		ASSERT_EQ(munmap(new, len), 0);
		if (grown == (variant->shared ? 0 : len / 1024) && made_writable == 64)
			break;
	}
	EXPECT_LT(tries, 10)
		TH_LOG("grown by %ld kB, made writable %ld kB", grown, made_writable);
}

/* Assert that mode 2 refuses what is beyond the limit, and nothing is kept of it. */
TEST_F(page_granule_limit, commit_limit)
{
	long limit, before, after = 0;
	size_t len;
	char *addr;
	int tries;

	write_num(OVERCOMMIT, 2);
	limit = proc_number("/proc/meminfo", "CommitLimit:");
	for (tries = 0; tries < 10; tries++) {
		before = committed();
		if (before >= limit)
			SKIP(return, "%ld kB of %ld are committed: free some memory",
			     before, limit);
		len = mapped_len(variant->kind, (limit - before + 1) * 1024UL);
		errno = 0;
		ASSERT_EQ(map_memory(variant->kind, variant->shared, NULL, len, 0), MAP_FAILED);
		ASSERT_EQ(errno, ENOMEM);
		after = committed();
		if (after == before)
			break;
	}
	EXPECT_EQ(after, before);
	/* A part of the rest is kept back for root. */
	len = mapped_len(variant->kind, (limit - after) * 512UL);
	addr = map_memory(variant->kind, variant->shared, NULL, len, 0);
	EXPECT_NE(addr, MAP_FAILED);
}

/* Assert that RLIMIT_AS holds for what is mapped in fact, to the page. */
TEST_F(page_granule_limit, rlimit_as)
{
	struct rlimit rlim = self->as;
	unsigned int pages, room;
	size_t real;
	char *addr;
	long size;

	for (pages = 1; pages <= 33; pages += 4) {
		real = mapped_len(variant->kind, pages * BASE_SIZE);
		for (room = real - BASE_SIZE; room <= real; room += BASE_SIZE) {
			size = status_kb("VmSize:") * 1024;
			rlim.rlim_cur = size + room;
			ASSERT_EQ(setrlimit(RLIMIT_AS, &rlim), 0);
			errno = 0;
			addr = map_memory(variant->kind, variant->shared, NULL, real, 0);
			ASSERT_EQ(setrlimit(RLIMIT_AS, &self->as), 0);
			if (room < real) {
				EXPECT_EQ(addr, MAP_FAILED);
				EXPECT_EQ(errno, ENOMEM)
					TH_LOG("%u pages", pages);
				continue;
			}
			ASSERT_NE(addr, MAP_FAILED)
				TH_LOG("%u pages", pages);
			EXPECT_EQ(status_kb("VmSize:") * 1024 - size, real);
			ASSERT_EQ(munmap(addr, real), 0);
		}
	}
}

/* Assert that RLIMIT_DATA holds likewise, for private memory only. */
TEST_F(page_granule_limit, rlimit_data)
{
	struct rlimit rlim = self->data;
	unsigned int pages, room;
	size_t real;
	char *addr;
	long size;

	for (pages = 1; pages <= 33; pages += 4) {
		real = mapped_len(variant->kind, pages * BASE_SIZE);
		for (room = real - BASE_SIZE; room <= real; room += BASE_SIZE) {
			size = status_kb("VmData:") * 1024;
			rlim.rlim_cur = size + room;
			ASSERT_EQ(setrlimit(RLIMIT_DATA, &rlim), 0);
			errno = 0;
			addr = map_memory(variant->kind, variant->shared, NULL, real, 0);
			ASSERT_EQ(setrlimit(RLIMIT_DATA, &self->data), 0);
			if (room < real && !variant->shared) {
				EXPECT_EQ(addr, MAP_FAILED);
				EXPECT_EQ(errno, ENOMEM)
					TH_LOG("%u pages", pages);
				continue;
			}
			ASSERT_NE(addr, MAP_FAILED)
				TH_LOG("%u pages", pages);
			EXPECT_EQ(status_kb("VmData:") * 1024 - size, variant->shared ? 0 : real);
			ASSERT_EQ(munmap(addr, real), 0);
		}
	}
}

/*
 * Merging: what ends as one VMA on untagged memory does so when it is tagged.
 * Each sequence works on eight units of a reservation. VMAs that have been
 * populated apart merge with one neighbour at most.
 */
#define MERGE_UNITS	8

struct merge {
	enum granule_kind kind;
	bool shared;
	char *base;
	size_t unit;
};

static char *merge_at(const struct merge *merge, unsigned int i)
{
	return merge->base + i * merge->unit;
}

static bool merge_map(const struct merge *merge, unsigned int i, unsigned int nr)
{
	char *addr = merge_at(merge, i);

	return map_memory(merge->kind, merge->shared, addr, nr * merge->unit, MAP_FIXED) == addr;
}

static bool merge_fill(const struct merge *merge, unsigned int i, unsigned int nr)
{
	if (!merge_map(merge, i, nr))
		return false;
	memset(merge_at(merge, i), i, nr * merge->unit);
	return true;
}

static bool merge_up(const struct merge *merge)
{
	return merge_fill(merge, 0, 1) && merge_fill(merge, 1, 2) && merge_fill(merge, 3, 1);
}

static bool merge_down(const struct merge *merge)
{
	return merge_fill(merge, 3, 1) && merge_fill(merge, 1, 2) && merge_fill(merge, 0, 1);
}

static bool merge_hole(const struct merge *merge)
{
	return merge_fill(merge, 0, 1) && merge_fill(merge, 2, 1) && merge_fill(merge, 1, 1);
}

static bool merge_hole_empty(const struct merge *merge)
{
	return merge_map(merge, 0, 1) && merge_map(merge, 2, 1) && merge_map(merge, 1, 1);
}

static bool merge_over(const struct merge *merge)
{
	return merge_fill(merge, 0, 4) && merge_fill(merge, 1, 2);
}

static bool merge_munmap(const struct merge *merge)
{
	return merge_fill(merge, 0, 4) && !munmap(merge_at(merge, 1), merge->unit) &&
	       merge_fill(merge, 1, 1);
}

static bool merge_mprotect(const struct merge *merge)
{
	return merge_fill(merge, 0, 4) &&
	       !mprotect(merge_at(merge, 1), merge->unit, PROT_READ) &&
	       !mprotect(merge_at(merge, 1), merge->unit, PROT_RW);
}

static bool merge_mprotect_each(const struct merge *merge)
{
	static const int order[] = { 0, 2, 1, 3 };
	unsigned int i;

	if (!merge_fill(merge, 0, 4))
		return false;
	for (i = 0; i < ARRAY_SIZE(order); i++) {
		if (mprotect(merge_at(merge, order[i]), merge->unit, PROT_READ))
			return false;
	}
	return true;
}

static bool merge_move(const struct merge *merge, unsigned int from, unsigned int to)
{
	return sys_mremap(merge_at(merge, from), merge->unit, merge->unit,
			  MREMAP_MAYMOVE | MREMAP_FIXED, merge_at(merge, to)) != MAP_FAILED;
}

static bool merge_mremap(const struct merge *merge)
{
	return merge_fill(merge, 0, 4) && merge_move(merge, 1, 6) && merge_move(merge, 6, 1);
}

/* The end of it, which is grown again in place. */
static bool merge_mremap_grow(const struct merge *merge)
{
	return merge_map(merge, 0, 4) &&
	       sys_mremap(merge_at(merge, 0), 4 * merge->unit, 3 * merge->unit, 0, NULL) ==
	       merge_at(merge, 0) && merge_map(merge, 4, 1) &&
	       sys_mremap(merge_at(merge, 0), 3 * merge->unit, 4 * merge->unit, 0, NULL) ==
	       merge_at(merge, 0);
}

static bool merge_mremap_apart(const struct merge *merge)
{
	return merge_fill(merge, 0, 2) && merge_move(merge, 1, 5) && merge_fill(merge, 1, 1) &&
	       merge_fill(merge, 6, 1);
}

static bool merge_advice(const struct merge *merge)
{
	return merge_fill(merge, 0, 4) &&
	       !madvise(merge_at(merge, 1), merge->unit, MADV_DONTDUMP) &&
	       !madvise(merge_at(merge, 2), merge->unit, MADV_DONTDUMP) &&
	       !madvise(merge_at(merge, 1), 2 * merge->unit, MADV_DODUMP);
}

static bool merge_mlock(const struct merge *merge)
{
	return merge_fill(merge, 0, 4) && !mlock(merge_at(merge, 1), merge->unit) &&
	       !mlock(merge_at(merge, 3), merge->unit) &&
	       !munlock(merge_at(merge, 0), 4 * merge->unit);
}

static bool merge_uffd(const struct merge *merge)
{
	int uffd = uffd_open(0);
	bool ret;

	/* Without userfaultfd there is nothing to be merged. */
	if (uffd < 0)
		return merge_fill(merge, 0, 4);
	ret = merge_fill(merge, 0, 4) &&
	      !uffd_register(uffd, merge_at(merge, 1), merge->unit, true, false, false) &&
	      !uffd_register(uffd, merge_at(merge, 3), merge->unit, true, false, false) &&
	      !uffd_unregister(uffd, merge_at(merge, 0), 4 * merge->unit);
	close(uffd);
	return ret;
}

static bool merge_anon_name(const struct merge *merge)
{
	const char *name = "granule";

	/* Fails on all memory alike without CONFIG_ANON_VMA_NAME. */
	if (!merge_fill(merge, 0, 4))
		return false;
	if (!prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, merge_at(merge, 1), merge->unit, name))
		return !prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, merge_at(merge, 1),
			      merge->unit, NULL);
	return true;
}

static const struct {
	const char *name;
	bool (*steps)(const struct merge *merge);
	bool parts;		/* more than one VMA on any private memory */
} merges[] = {
	{ "mapped upwards", merge_up, false },
	{ "mapped downwards", merge_down, false },
	{ "mapped into a hole", merge_hole, true },
	{ "mapped into a hole, all empty", merge_hole_empty, false },
	{ "mapped over the middle", merge_over, false },
	{ "unmapped and mapped again", merge_munmap, false },
	{ "mprotect there and back", merge_mprotect, false },
	{ "mprotect of each part", merge_mprotect_each, false },
	{ "mremap away and back", merge_mremap, false },
	{ "mremap smaller and larger", merge_mremap_grow, false },
	{ "mremap to a place of its own", merge_mremap_apart, true },
	{ "madvise there and back", merge_advice, false },
	{ "mlock and munlock", merge_mlock, false },
	{ "userfaultfd registration and its end", merge_uffd, false },
	{ "named and unnamed", merge_anon_name, false },
};

/* The bounds of all VMAs in the units, in pages from the base. */
static void merge_bounds(const struct merge *merge, char *buf, size_t size)
{
	unsigned long start, end, lo = (unsigned long)merge->base;
	unsigned long hi = lo + MERGE_UNITS * merge->unit;
	const char *line = read_proc("/proc/self/maps");
	char perms[5];
	size_t len = 0;

	*buf = '\0';
	for (; line; line = strchr(line, '\n')) {
		line += *line == '\n';
		if (sscanf(line, "%lx-%lx %4s", &start, &end, perms) != 3 || start >= hi ||
		    end <= lo || perms[0] == '-')
			continue;
		len += snprintf(buf + len, size - len, "[%lu, %lu) ", (start - lo) / BASE_SIZE,
				(end - lo) / BASE_SIZE);
	}
}

FIXTURE(page_granule_merging)
{
	char *res1;
	char *res2;
};

FIXTURE_VARIANT(page_granule_merging)
{
	enum granule_kind kind;
	bool shared;
};

FIXTURE_VARIANT_ADD(page_granule_merging, contract_private)
{
	.kind = GRANULE_CONTRACT,
	.shared = false,
};

FIXTURE_VARIANT_ADD(page_granule_merging, contract_shared)
{
	.kind = GRANULE_CONTRACT,
	.shared = true,
};

FIXTURE_VARIANT_ADD(page_granule_merging, default_private)
{
	.kind = GRANULE_DEFAULT,
	.shared = false,
};

FIXTURE_VARIANT_ADD(page_granule_merging, default_shared)
{
	.kind = GRANULE_DEFAULT,
	.shared = true,
};

FIXTURE_SETUP(page_granule_merging)
{
	ASSERT_EQ(granule_set_enabled(true), 0);
	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, BASE_SIZE), 0);
	granule_thp_never();
	self->res1 = granule_reserve(MERGE_UNITS * 3 * GRANULE_SIZE);
	self->res2 = granule_reserve(MERGE_UNITS * 3 * GRANULE_SIZE);
	ASSERT_NE(self->res1, NULL);
	ASSERT_NE(self->res2, NULL);
}

FIXTURE_TEARDOWN(page_granule_merging)
{
	EXPECT_TRUE(granule_invariants_hold());
}

/* Assert that there are as many VMAs at the end as there would be untagged. */
TEST_F(page_granule_merging, as_untagged)
{
	static const size_t units[] = { GRANULE_SIZE, 3 * GRANULE_SIZE, BASE_SIZE, 17 * BASE_SIZE };
	size_t i, j, reserved = MERGE_UNITS * 3 * GRANULE_SIZE;
	char bounds1[256], bounds2[256];

	for (i = 0; i < ARRAY_SIZE(units); i++) {
		struct merge untagged = { GRANULE_UNTAGGED, variant->shared, self->res1, units[i] };
		struct merge other = { variant->kind, variant->shared, self->res2, units[i] };

		if (units[i] % GRANULE_SIZE && variant->kind == GRANULE_CONTRACT)
			continue;
		for (j = 0; j < ARRAY_SIZE(merges); j++) {
			ASSERT_EQ(granule_mmap(GRANULE_UNTAGGED, self->res1, reserved, PROT_NONE,
					       MAP_FIXED | MAP_NORESERVE), self->res1);
			ASSERT_EQ(granule_mmap(GRANULE_UNTAGGED, self->res2, reserved, PROT_NONE,
					       MAP_FIXED | MAP_NORESERVE), self->res2);
			if (merges[j].steps == merge_mremap_grow) {
				ASSERT_EQ(munmap(self->res1, reserved), 0);
				ASSERT_EQ(munmap(self->res2, reserved), 0);
			}
			ASSERT_TRUE(merges[j].steps(&untagged))
				TH_LOG("%s, untagged", merges[j].name);
			ASSERT_TRUE(merges[j].steps(&other))
				TH_LOG("%s", merges[j].name);
			merge_bounds(&untagged, bounds1, sizeof(bounds1));
			merge_bounds(&other, bounds2, sizeof(bounds2));
			EXPECT_STREQ(bounds1, bounds2)
				TH_LOG("%s, %zu pages", merges[j].name, units[i] / BASE_SIZE);
			/* Were there anything to see? */
			if (!variant->shared)
				EXPECT_EQ(!strchr(strchr(bounds1, ')'), '['), !merges[j].parts)
					TH_LOG("%s", merges[j].name);
		}
	}
}

/* The number of VMAs that some mappings, chosen by the kernel, lie in. */
static int map_next_to_each_other(enum granule_kind kind, bool shared, size_t len)
{
	char *addr[8], bounds[1024];
	unsigned int i, nr = 0;
	char *bound;

	for (i = 0; i < ARRAY_SIZE(addr); i++) {
		addr[i] = map_memory(kind, shared, NULL, len, 0);
		if (addr[i] == MAP_FAILED)
			return -errno;
		*addr[i] = 1;
	}
	for (i = 1; i < ARRAY_SIZE(addr); i++) {
		if (addr[i] + len != addr[i - 1] && addr[i] - len != addr[i - 1])
			return -ERANGE;
	}
	i = addr[0] < addr[1] ? 0 : ARRAY_SIZE(addr) - 1;
	merge_bounds(&(struct merge){ kind, shared, addr[i], len }, bounds, sizeof(bounds));
	for (bound = bounds; (bound = strchr(bound, '[')); bound++)
		nr++;
	return nr;
}

/* Assert that mappings made one after the other lie side by side, and merge. */
TEST_F(page_granule_merging, repeated_mmap)
{
	static const size_t lengths[] = {
		GRANULE_SIZE, 3 * GRANULE_SIZE, 25 * BASE_SIZE, 49 * BASE_SIZE,
	};
	size_t i;

	for (i = 0; i < ARRAY_SIZE(lengths); i++) {
		/* Shared memory is aligned whatever its length: it merges with nothing. */
		if (lengths[i] % GRANULE_SIZE &&
		    (variant->kind == GRANULE_CONTRACT || variant->shared))
			continue;
		EXPECT_EQ(map_next_to_each_other(variant->kind, variant->shared, lengths[i]),
			  map_next_to_each_other(GRANULE_UNTAGGED, variant->shared, lengths[i]))
			TH_LOG("of %zu kB", lengths[i] / 1024);
		if (!variant->shared)
			EXPECT_EQ(map_next_to_each_other(variant->kind, false, lengths[i]), 1);
	}
}

/* process_madvise() on another process: whose address space it is decides. */
FIXTURE(page_granule_remote)
{
	pid_t child;
	int pidfd;
};

FIXTURE_VARIANT(page_granule_remote)
{
	int advice;
	int result;	/* of an aligned range, as of any untagged range */
};

FIXTURE_VARIANT_ADD(page_granule_remote, cold)
{
	.advice = MADV_COLD,
};

FIXTURE_VARIANT_ADD(page_granule_remote, pageout)
{
	.advice = MADV_PAGEOUT,
};

FIXTURE_VARIANT_ADD(page_granule_remote, willneed)
{
	.advice = MADV_WILLNEED,
};

/* There is no room for a huge page, but for granules: see formed(). */
FIXTURE_VARIANT_ADD(page_granule_remote, collapse)
{
	.advice = MADV_COLLAPSE,
	.result = -EINVAL,
};

/* Not for other processes. */
FIXTURE_VARIANT_ADD(page_granule_remote, dontneed)
{
	.advice = MADV_DONTNEED,
	.result = -EINVAL,
};

FIXTURE_SETUP(page_granule_remote)
{
	ASSERT_EQ(granule_set_enabled(true), 0);
	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, BASE_SIZE), 0);
	granule_thp_never();
	self->child = 0;
}

static void stop_child(pid_t pid)
{
	int status;

	if (pid <= 0)
		return;
	kill(pid, SIGKILL);
	waitpid(pid, &status, 0);
}

FIXTURE_TEARDOWN(page_granule_remote)
{
	EXPECT_TRUE(granule_invariants_hold());
	stop_child(self->child);
}

/* A process with memory of one kind, and this one with another at the same place. */
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

#define REMOTE_DATA FIXTURE_DATA(page_granule_remote)
#define REMOTE_VARIANT FIXTURE_VARIANT(page_granule_remote)

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

/* Assert that contract VMAs of another process are kept by one that has none. */
TEST_F_TIMEOUT(page_granule_remote, contract_private, 60)
{
	check_remote(_metadata, self, variant, false, GRANULE_CONTRACT, GRANULE_UNTAGGED);
}

/* Assert the same of shared memory. */
TEST_F_TIMEOUT(page_granule_remote, contract_shared, 60)
{
	check_remote(_metadata, self, variant, true, GRANULE_CONTRACT, GRANULE_UNTAGGED);
}

/* Assert that contract VMAs of the caller do not matter to untagged memory. */
TEST_F_TIMEOUT(page_granule_remote, untagged_private, 60)
{
	check_remote(_metadata, self, variant, false, GRANULE_UNTAGGED, GRANULE_CONTRACT);
}

/* Assert that they do not matter to default-tagged memory either. */
TEST_F_TIMEOUT(page_granule_remote, default_private, 60)
{
	check_remote(_metadata, self, variant, false, GRANULE_DEFAULT, GRANULE_CONTRACT);
}

/*
 * The ioctls of userfaultfd, on six granules that are registered and a source
 * next to them, again with an untagged twin.
 */
struct uffd_area {
	char *dst;
	char *src;
	int uffd;
};

typedef int (*uffd_call)(int uffd, char *dst, char *src, size_t len);

static int uffd_copy(int uffd, char *dst, char *src, size_t len)
{
	struct uffdio_copy arg = {
		.dst = (unsigned long)dst, .src = (unsigned long)src, .len = len,
	};

	return ioctl(uffd, UFFDIO_COPY, &arg) ? -errno : 0;
}

static int uffd_copy_wp(int uffd, char *dst, char *src, size_t len)
{
	struct uffdio_copy arg = {
		.dst = (unsigned long)dst, .src = (unsigned long)src, .len = len,
		.mode = UFFDIO_COPY_MODE_WP,
	};

	return ioctl(uffd, UFFDIO_COPY, &arg) ? -errno : 0;
}

static int uffd_zeropage(int uffd, char *dst, char *src, size_t len)
{
	struct uffdio_zeropage arg = { .range = { (unsigned long)dst, len } };

	return ioctl(uffd, UFFDIO_ZEROPAGE, &arg) ? -errno : 0;
}

static int uffd_writeprotect(int uffd, char *dst, char *src, size_t len)
{
	struct uffdio_writeprotect arg = {
		.range = { (unsigned long)dst, len },
		.mode = UFFDIO_WRITEPROTECT_MODE_WP,
	};

	return ioctl(uffd, UFFDIO_WRITEPROTECT, &arg) ? -errno : 0;
}

static int uffd_unprotect(int uffd, char *dst, char *src, size_t len)
{
	struct uffdio_writeprotect arg = { .range = { (unsigned long)dst, len } };

	return ioctl(uffd, UFFDIO_WRITEPROTECT, &arg) ? -errno : 0;
}

static int uffd_continue(int uffd, char *dst, char *src, size_t len)
{
	struct uffdio_continue arg = { .range = { (unsigned long)dst, len } };

	return ioctl(uffd, UFFDIO_CONTINUE, &arg) ? -errno : 0;
}

static int uffd_poison(int uffd, char *dst, char *src, size_t len)
{
	struct uffdio_poison arg = { .range = { (unsigned long)dst, len } };

	return ioctl(uffd, UFFDIO_POISON, &arg) ? -errno : 0;
}

static int uffd_move(int uffd, char *dst, char *src, size_t len)
{
	struct uffdio_move arg = {
		.dst = (unsigned long)dst, .src = (unsigned long)src, .len = len,
	};

	return ioctl(uffd, UFFDIO_MOVE, &arg) ? -errno : 0;
}

static int uffd_rwprotect(int uffd, char *dst, char *src, size_t len)
{
	struct uffdio_rwprotect arg = {
		.range = { (unsigned long)dst, len },
		.mode = UFFDIO_RWPROTECT_MODE_RWP,
	};

	return ioctl(uffd, UFFDIO_RWPROTECT, &arg) ? -errno : 0;
}

FIXTURE(page_granule_uffd)
{
	int pagemap;
};

FIXTURE_VARIANT(page_granule_uffd)
{
	uffd_call call;
	/* To be called on all of it before. */
	uffd_call prepare;
	unsigned long features;
	unsigned long mode;
	bool filled;
	/* The source is memory to be changed too, of the same kind. */
	bool moves;
	/* -EINVAL on such memory, for reasons older than granules. */
	bool not_private;
	bool not_shared;
};

FIXTURE_VARIANT_ADD(page_granule_uffd, copy)
{
	.call = uffd_copy,
	.features = UFFD_FEATURE_MISSING_SHMEM,
	.mode = UFFDIO_REGISTER_MODE_MISSING,
};

FIXTURE_VARIANT_ADD(page_granule_uffd, copy_wp)
{
	.call = uffd_copy_wp,
	.features = UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_WP_HUGETLBFS_SHMEM,
	.mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP,
};

FIXTURE_VARIANT_ADD(page_granule_uffd, zeropage)
{
	.call = uffd_zeropage,
	.features = UFFD_FEATURE_MISSING_SHMEM,
	.mode = UFFDIO_REGISTER_MODE_MISSING,
};

FIXTURE_VARIANT_ADD(page_granule_uffd, writeprotect)
{
	.call = uffd_writeprotect,
	.features = UFFD_FEATURE_WP_HUGETLBFS_SHMEM,
	.mode = UFFDIO_REGISTER_MODE_WP,
	.filled = true,
};

FIXTURE_VARIANT_ADD(page_granule_uffd, writeprotect_empty)
{
	.call = uffd_writeprotect,
	.features = UFFD_FEATURE_WP_HUGETLBFS_SHMEM | UFFD_FEATURE_WP_UNPOPULATED,
	.mode = UFFDIO_REGISTER_MODE_WP,
};

FIXTURE_VARIANT_ADD(page_granule_uffd, unprotect)
{
	.call = uffd_unprotect,
	.prepare = uffd_writeprotect,
	.features = UFFD_FEATURE_WP_HUGETLBFS_SHMEM,
	.mode = UFFDIO_REGISTER_MODE_WP,
	.filled = true,
};

FIXTURE_VARIANT_ADD(page_granule_uffd, continue)
{
	.call = uffd_continue,
	.features = UFFD_FEATURE_MINOR_SHMEM,
	.mode = UFFDIO_REGISTER_MODE_MINOR,
	.filled = true,
	.not_private = true,
};

FIXTURE_VARIANT_ADD(page_granule_uffd, poison)
{
	.call = uffd_poison,
	.features = UFFD_FEATURE_POISON | UFFD_FEATURE_MISSING_SHMEM,
	.mode = UFFDIO_REGISTER_MODE_MISSING,
};

FIXTURE_VARIANT_ADD(page_granule_uffd, move)
{
	.call = uffd_move,
	.features = UFFD_FEATURE_MOVE,
	.mode = UFFDIO_REGISTER_MODE_MISSING,
	.moves = true,
	.not_shared = true,
};

FIXTURE_VARIANT_ADD(page_granule_uffd, rwprotect)
{
	.call = uffd_rwprotect,
	.features = UFFD_FEATURE_RWP,
	.mode = UFFDIO_REGISTER_MODE_RWP,
	.filled = true,
};

#define UFFD_VARIANT FIXTURE_VARIANT(page_granule_uffd)

FIXTURE_SETUP(page_granule_uffd)
{
	int uffd;

	ASSERT_EQ(granule_set_enabled(true), 0);
	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, BASE_SIZE), 0);
	granule_thp_never();
	self->pagemap = granule_open_pagemap();
	ASSERT_GE(self->pagemap, 0);
	uffd = uffd_open(variant->features);
	if (uffd < 0)
		SKIP(return, "no userfaultfd for it: build the kernel with CONFIG_USERFAULTFD=y");
	close(uffd);
}

FIXTURE_TEARDOWN(page_granule_uffd)
{
	EXPECT_TRUE(granule_invariants_hold());
	close(self->pagemap);
}

/* Pages of the destination, and where the source begins, in bytes from its own. */
static const struct uffd_row {
	const char *name;
	unsigned int first;
	unsigned int last;
	unsigned int src;
} uffd_rows[] = {
	{ "one granule", 32, 48, 0 },
	{ "two granules", 32, 64, 16 * BASE_SIZE },
	{ "all", 0, 96, 0 },
	{ "source misaligned by a page", 32, 48, BASE_SIZE },
	{ "source misaligned by 100 bytes", 32, 48, 100 },
	{ "start misaligned", 33, 48, 0 },
	{ "end misaligned", 32, 47, 0 },
	{ "both misaligned", 35, 46, 0 },
	{ "one page", 37, 38, 0 },
	{ "first page", 0, 1, 0 },
	{ "last page", 95, 96, 0 },
	{ "a granule's length, shifted", 36, 52, 0 },
	{ "a page more", 32, 49, 0 },
	{ "two pages of two granules", 47, 49, 0 },
};

static void uffd_close(struct uffd_area *area)
{
	if (area->uffd > 0)
		close(area->uffd);
	area->uffd = 0;
}

/* Map and register both, as the ioctl wants them. Returns 0 or a negative errno. */
static int uffd_map(const UFFD_VARIANT *op, struct uffd_area *area, enum granule_kind kind,
		    bool shared)
{
	struct uffdio_register reg = { .mode = op->mode };
	char *src;

	uffd_close(area);
	if (!area->dst)
		area->dst = granule_reserve(2 * LAYOUT_LEN + GRANULE_SIZE);
	src = area->dst + LAYOUT_LEN + GRANULE_SIZE;
	area->src = src;
	area->uffd = uffd_open(op->features);
	if (!area->dst || area->uffd < 0)
		return -ENOMEM;
	if (map_memory(kind, shared, area->dst, LAYOUT_LEN, MAP_FIXED) != area->dst ||
	    map_memory(op->moves ? kind : GRANULE_UNTAGGED, op->moves && shared, src, LAYOUT_LEN,
		       MAP_FIXED) != src)
		return -errno;
	granule_fill(src, LAYOUT_LEN, SEED);
	if (op->filled)
		granule_fill(area->dst, LAYOUT_LEN, SEED + 1);
	/* Shared memory stays in the page cache, to be mapped again. */
	if (op->call == uffd_continue && madvise(area->dst, LAYOUT_LEN, MADV_DONTNEED))
		return -errno;
	reg.range.start = (unsigned long)area->dst;
	reg.range.len = LAYOUT_LEN;
	if (ioctl(area->uffd, UFFDIO_REGISTER, &reg))
		return -errno;
	return op->prepare ? op->prepare(area->uffd, area->dst, src, LAYOUT_LEN) : 0;
}

/* What is at each page of both: the bits that the ioctls set, and the contents. */
struct uffd_view {
	unsigned long bits[2 * LAYOUT_PAGES];
	unsigned char readable[2 * LAYOUT_PAGES];
	char contents[2 * LAYOUT_LEN];
};

static char *uffd_page(const struct uffd_area *area, unsigned int i)
{
	return i < LAYOUT_PAGES ? area->dst + i * BASE_SIZE :
				  area->src + (i - LAYOUT_PAGES) * BASE_SIZE;
}

static void uffd_look(int pagemap, const struct uffd_area *area, struct uffd_view *view)
{
	const uint64_t mask = PM_PRESENT | PM_SWAP | PM_UFFD_WP;
	unsigned int i, run;

	memset(view, 0, sizeof(*view));
	for (i = 0; i < 2 * LAYOUT_PAGES; i++)
		view->bits[i] = pagemap_get_entry(pagemap, uffd_page(area, i)) & mask;
	/* What is not there would come to be so by being read. */
	for (i = 0; i < 2 * LAYOUT_PAGES; i += run ?: 1) {
		for (run = 0; (i + run) % LAYOUT_PAGES || !run; run++) {
			if (!(view->bits[i + run] & (PM_PRESENT | PM_SWAP)))
				break;
		}
		read_memory(getpid(), uffd_page(area, i), run, view->contents + i * BASE_SIZE,
			    view->readable + i);
	}
}

static bool uffd_same(const struct uffd_view *view1, const struct uffd_view *view2)
{
	unsigned int i;

	for (i = 0; i < 2 * LAYOUT_PAGES; i++) {
		size_t offset = i * BASE_SIZE;

		if (view1->bits[i] == view2->bits[i] &&
		    view1->readable[i] == view2->readable[i] &&
		    !memcmp(view1->contents + offset, view2->contents + offset, BASE_SIZE))
			continue;
		ksft_print_msg("page %u differs: %#lx and %#lx\n", i, view1->bits[i],
			       view2->bits[i]);
		return false;
	}
	return true;
}

static void check_uffd(struct __test_metadata *_metadata, const UFFD_VARIANT *op, int pagemap,
		       enum granule_kind kind, bool shared)
{
	static struct uffd_area area1, area2;
	static struct uffd_view view1, view2;
	char *before, *after;
	int ret, untagged;
	size_t i;

	for (i = 0; i < ARRAY_SIZE(uffd_rows); i++) {
		const struct uffd_row *row = &uffd_rows[i];
		unsigned long start = row->first * BASE_SIZE;
		size_t len = row->last * BASE_SIZE - start;
		bool cut;

		cut = kind == GRANULE_CONTRACT && !granule_aligned(start | len);
		/* Where the contents come from does not matter, if they stay there. */
		if (kind == GRANULE_CONTRACT && op->moves)
			cut |= !granule_aligned(row->src);
		untagged = uffd_map(op, &area1, GRANULE_UNTAGGED, shared);
		ret = uffd_map(op, &area2, kind, shared);
		ASSERT_EQ(ret, untagged);
		/* Some memory cannot be registered for it, whatever its kind. */
		if (op->not_private && !shared) {
			ASSERT_EQ(ret, -EINVAL);
			return;
		}
		ASSERT_EQ(ret, 0);

		if (cut) {
			uffd_look(pagemap, &area2, &view1);
			before = granule_smaps_text(area2.dst, ARENA_LEN);
		} else {
			untagged = op->call(area1.uffd, area1.dst + start, area1.src + row->src,
					    len);
			uffd_look(pagemap, &area1, &view1);
		}
		ret = op->call(area2.uffd, area2.dst + start, area2.src + row->src, len);
		if (cut) {
			EXPECT_EQ(ret, -EINVAL)
				TH_LOG("%s [%u, %u)", row->name, row->first, row->last);
			after = granule_smaps_text(area2.dst, ARENA_LEN);
			EXPECT_TRUE(granule_same_text(before, after))
				TH_LOG("%s [%u, %u)", row->name, row->first, row->last);
			free(before);
			free(after);
		} else {
			EXPECT_EQ(ret, untagged)
				TH_LOG("%s [%u, %u)", row->name, row->first, row->last);
			/* Did the twin work? A move by 100 bytes never did. */
			if (!(op->not_shared && shared) && !(op->moves && row->src % BASE_SIZE))
				EXPECT_EQ(untagged, 0)
					TH_LOG("%s [%u, %u)", row->name, row->first, row->last);
		}
		uffd_look(pagemap, &area2, &view2);
		EXPECT_TRUE(uffd_same(&view1, &view2))
			TH_LOG("%s [%u, %u)", row->name, row->first, row->last);
	}
	uffd_close(&area1);
	uffd_close(&area2);
}

/* Assert that it works on whole granules of private contract VMAs only. */
TEST_F_TIMEOUT(page_granule_uffd, contract_private, 60)
{
	check_uffd(_metadata, variant, self->pagemap, GRANULE_CONTRACT, false);
}

/* Assert that it works on whole granules of shared contract VMAs only. */
TEST_F_TIMEOUT(page_granule_uffd, contract_shared, 60)
{
	check_uffd(_metadata, variant, self->pagemap, GRANULE_CONTRACT, true);
}

/* Assert that it works page by page on private default-tagged memory. */
TEST_F_TIMEOUT(page_granule_uffd, default_private, 60)
{
	check_uffd(_metadata, variant, self->pagemap, GRANULE_DEFAULT, false);
}

/* Assert that it works page by page on shared default-tagged memory. */
TEST_F_TIMEOUT(page_granule_uffd, default_shared, 60)
{
	check_uffd(_metadata, variant, self->pagemap, GRANULE_DEFAULT, true);
}

/* System V shared memory. */
FIXTURE(page_granule_shm)
{
	char *res;
};

FIXTURE_SETUP(page_granule_shm)
{
	int id = shmget(IPC_PRIVATE, BASE_SIZE, IPC_CREAT | 0600);

	if (id < 0)
		SKIP(return, "no shmget (%s): build the kernel with CONFIG_SYSVIPC=y",
		     strerror(errno));
	shmctl(id, IPC_RMID, NULL);
	ASSERT_EQ(granule_set_enabled(true), 0);
	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, BASE_SIZE), 0);
	self->res = granule_reserve(RES_LEN);
	ASSERT_NE(self->res, NULL);
}

FIXTURE_TEARDOWN(page_granule_shm)
{
	EXPECT_TRUE(granule_invariants_hold());
}

static int shm_attached(int id)
{
	struct shmid_ds ds;

	return shmctl(id, IPC_STAT, &ds) ? -errno : (int)ds.shm_nattch;
}

static int shm_attach(int id, char *addr, int flags)
{
	char *ret = shmat(id, addr, flags);

	return ret == (void *)-1 ? -errno : (int)(ret - addr);
}

/* Everything a program does with a segment; returns the number of results. */
static int shm_session(char *res, size_t size, int *results)
{
	struct granule_smaps smaps;
	char *p, *q, *hole = res + 3 * BASE_SIZE;
	int id, n = 0;

	/* As before the last session. */
	if (granule_mmap(GRANULE_UNTAGGED, res, RES_LEN, PROT_NONE,
			 MAP_FIXED | MAP_NORESERVE) != res)
		return -errno;
	id = shmget(IPC_PRIVATE, size, IPC_CREAT | 0600);
	if (id < 0)
		return -errno;
	p = shmat(id, NULL, 0);
	q = shmat(id, NULL, SHM_RDONLY);
	if (p == (void *)-1 || q == (void *)-1)
		return -errno;
	results[n++] = is_filled(p, size, 0);
	memset(p, 0x5a, size);
	results[n++] = is_filled(q, size, 0x5a);
	results[n++] = shm_attached(id);
	results[n++] = granule_read_smaps(getpid(), p, &smaps);
	results[n++] = (unsigned long)p - smaps.start;
	results[n++] = smaps.end - smaps.start;
	results[n++] = granule_has_flag(&smaps, "gr");
	results[n++] = shmdt(p + BASE_SIZE) ? -errno : 0;
	results[n++] = shmdt(p) ? -errno : 0;
	results[n++] = shmdt(p) ? -errno : 0;
	results[n++] = shm_attached(id);
	/* At an address: occupied, then free, then odd. */
	results[n++] = shm_attach(id, hole, 0);
	results[n++] = shm_attach(id, hole, SHM_REMAP);
	results[n++] = is_filled(hole, size, 0x5a);
	results[n++] = munmap(hole, BASE_SIZE) ? -errno : 0;
	results[n++] = shm_attached(id);
	results[n++] = shmdt(hole) ? -errno : 0;
	results[n++] = shm_attached(id);
	results[n++] = munmap(res, 8 * GRANULE_SIZE) ? -errno : 0;
	results[n++] = shm_attach(id, hole, 0);
	results[n++] = shmdt(hole) ? -errno : 0;
	results[n++] = shm_attach(id, hole + 1, 0);
	results[n++] = shm_attach(id, hole + 1, SHM_RND);
	results[n++] = mprotect(hole, BASE_SIZE, PROT_READ) ? -errno : 0;
	results[n++] = shmdt(hole) ? -errno : 0;
	results[n++] = shm_attach(id, NULL, SHM_REMAP);
	results[n++] = is_filled(q, size, 0x5a);
	results[n++] = shmctl(id, IPC_RMID, NULL) ? -errno : 0;
	results[n++] = is_filled(q, size, 0x5a);
	results[n++] = shmdt(q) ? -errno : 0;
	return n;
}

/* Assert that a program with a default of 64 KiB gets the same from shmat and shmdt. */
TEST_F(page_granule_shm, default_process)
{
	static const size_t sizes[] = {
		1, BASE_SIZE, 5 * BASE_SIZE + 1, GRANULE_SIZE, 3 * GRANULE_SIZE,
		3 * GRANULE_SIZE + BASE_SIZE,
	};
	int results1[40], results2[40], n, i;
	size_t j;

	for (j = 0; j < ARRAY_SIZE(sizes); j++) {
		n = shm_session(self->res, sizes[j], results1);
		ASSERT_GT(n, 0);
		ASSERT_EQ(granule_set(PR_GRANULE_MMAP, GRANULE_SIZE), 0);
		EXPECT_EQ(shm_session(self->res, sizes[j], results2), n);
		ASSERT_EQ(granule_set(PR_GRANULE_MMAP, BASE_SIZE), 0);
		for (i = 0; i < n; i++)
			EXPECT_EQ(results2[i], results1[i])
				TH_LOG("size %zu, result %d", sizes[j], i);
	}
}

/* Assert that a segment beside a contract VMA comes and goes without touching it. */
TEST_F(page_granule_shm, beside_contract)
{
	char *addr = self->res + 4 * GRANULE_SIZE, *before, *after;
	size_t size = GRANULE_SIZE + 3 * BASE_SIZE;
	int id = shmget(IPC_PRIVATE, size, IPC_CREAT | 0600);

	ASSERT_GE(id, 0);
	ASSERT_EQ(granule_mmap(GRANULE_CONTRACT, addr, 2 * GRANULE_SIZE, PROT_RW, MAP_FIXED),
		  addr);
	granule_fill(addr, 2 * GRANULE_SIZE, SEED);
	before = granule_smaps_text(addr, 2 * GRANULE_SIZE);
	/* It ends where the contract VMA begins, and begins where that ends. */
	EXPECT_EQ(shmat(id, addr - size, SHM_REMAP), addr - size);
	EXPECT_EQ(shmat(id, addr + 2 * GRANULE_SIZE, SHM_REMAP), addr + 2 * GRANULE_SIZE);
	memset(addr - size, 0x5a, size);
	EXPECT_TRUE(is_filled(addr + 2 * GRANULE_SIZE, size, 0x5a));
	errno = 0;
	EXPECT_EQ(shmdt(addr), -1);
	EXPECT_EQ(errno, EINVAL);
	EXPECT_EQ(shmdt(addr - size), 0);
	EXPECT_EQ(shmdt(addr + 2 * GRANULE_SIZE), 0);
	/* One page of the last one would be enough. */
	errno = 0;
	EXPECT_EQ(shmat(id, addr - size + BASE_SIZE, SHM_REMAP), (void *)-1);
	EXPECT_EQ(errno, EINVAL);
	after = granule_smaps_text(addr, 2 * GRANULE_SIZE);
	EXPECT_TRUE(granule_same_text(before, after));
	EXPECT_TRUE(granule_check(addr, 2 * GRANULE_SIZE, SEED));
	EXPECT_EQ(shm_attached(id), 0);
	shmctl(id, IPC_RMID, NULL);
	free(before);
	free(after);
}

/*
 * brk and the stack belong to a program from its start, so that these tests
 * exec this file as "--program NAME FD": once as it is, and once with
 * PR_GRANULE_EXEC at 64 KiB. A program says on stderr what is wrong, and fails.
 */
static bool tagging;		/* Is 64 KiB the default of this program? */
static sigjmp_buf segv_env;

static void __printf(2, 3) need(bool ok, const char *format, ...)
{
	int saved_errno = errno;
	va_list args;

	if (ok)
		return;
	fputs("# ", stderr);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fprintf(stderr, " (%s, default of %ld kB)\n", strerror(saved_errno),
		granule_get(PR_GRANULE_MMAP) / 1024);
	exit(KSFT_FAIL);
}

static void segv_handler(int sig)
{
	siglongjmp(segv_env, 1);
}

/* On a stack of its own, as there may be no room on the other. */
static void catch_segv(void)
{
	struct sigaction action = { .sa_handler = segv_handler, .sa_flags = SA_ONSTACK };
	static char stack[65536];
	stack_t ss = { .ss_sp = stack, .ss_size = sizeof(stack) };

	need(!sigaltstack(&ss, NULL), "sigaltstack");
	need(!sigaction(SIGSEGV, &action, NULL), "sigaction");
}

/* Write a byte; false if that is SIGSEGV. */
static bool touch(char *addr)
{
	if (sigsetjmp(segv_env, 1))
		return false;
	__atomic_store_n(addr, 1, __ATOMIC_RELAXED);
	return true;
}

/* A field of /proc/self/stat, counted from 1 as in proc_pid_stat(5). */
static unsigned long stat_field(int nr)
{
	char *p = strrchr(read_proc("/proc/self/stat"), ')') + 2;

	for (nr -= 3; nr > 0; nr--)
		p = strchr(p, ' ') + 1;
	return strtoul(p, NULL, 10);
}

#define STAT_START_BRK	47

static char *sys_brk(char *addr)
{
	return (char *)syscall(__NR_brk, addr);
}

/* The libc takes its memory from the heap too: see that it needs none for now. */
static char *quiet_heap(void)
{
	mallopt(M_TOP_PAD, 1 << 20);
	mallopt(M_TRIM_THRESHOLD, -1);
	free(malloc(1000));
	return sys_brk(NULL);
}

static char *align_up(char *addr)
{
	return (char *)granule_round_up(addr);
}

/* Grow the heap to @addr, and no less. */
static void grow_to(char *addr)
{
	char *ret = sys_brk(addr);

	need(ret == addr, "brk(%p) returned %p", addr, ret);
}

/* Write the start of the heap to @fd, and see that it is as it should be. */
static int program_brk_start(int fd)
{
	char *start = (char *)stat_field(STAT_START_BRK);
	struct granule_smaps smaps;

	grow_to(align_up(quiet_heap()) + GRANULE_SIZE);
	need(!tagging || granule_aligned(start), "the heap starts at %p", start);
	need(granule_read_smaps(getpid(), start, &smaps), "no VMA at %p", start);
	need(granule_has_flag(&smaps, "gr") == tagging, "the heap has flags %s", smaps.vmflags);
	need(!granule_has_flag(&smaps, "gc"), "the heap has flags %s", smaps.vmflags);
	need(write(fd, &start, sizeof(start)) == sizeof(start), "write");
	return KSFT_PASS;
}

/* Give back all from @offset on, take it again, and look. */
static void shrink_and_grow(char *base, size_t len, size_t offset)
{
	size_t kept = (offset + BASE_SIZE - 1) & ~(BASE_SIZE - 1);

	grow_to(base + len);
	memset(base, 0xff, len);
	grow_to(base + offset);
	grow_to(base + len);
	/* The rest of the last page stays as it is, as it always did. */
	need(is_filled(base, kept, 0xff), "shrunk to %zu: lost memory", offset);
	need(is_filled(base + kept, len - kept, 0), "shrunk to %zu: not zero", offset);
}

static int program_brk_zero(int fd)
{
	char *base = align_up(quiet_heap());
	size_t offset;

	for (offset = 0; offset <= 3 * GRANULE_SIZE; offset += BASE_SIZE)
		shrink_and_grow(base, 3 * GRANULE_SIZE, offset);
	/* Bytes all over a granule, and those around the ends of a page. */
	for (offset = GRANULE_SIZE; offset < 2 * GRANULE_SIZE; offset += 1237)
		shrink_and_grow(base, 3 * GRANULE_SIZE, offset);
	for (offset = 1; offset < GRANULE_NR_PAGES; offset++) {
		shrink_and_grow(base, 2 * GRANULE_SIZE, offset * BASE_SIZE - 1);
		shrink_and_grow(base, 2 * GRANULE_SIZE, offset * BASE_SIZE + 1);
	}
	/* Not a multiple of anything. */
	base += 5 * BASE_SIZE + 77;
	grow_to(base);
	base = (char *)(((unsigned long)base + BASE_SIZE - 1) & -BASE_SIZE);
	for (offset = 0; offset <= 2 * GRANULE_SIZE; offset += 3 * BASE_SIZE + 501)
		shrink_and_grow(base, 2 * GRANULE_SIZE + 4000, offset);
	return KSFT_PASS;
}

static int program_brk_runs(int fd)
{
	char *base = align_up(quiet_heap()), *last = base + 4 * GRANULE_SIZE;
	int pagemap = granule_open_pagemap(), i;

	grow_to(last);
	for (i = 0; i < 4; i++)
		base[i * GRANULE_SIZE + i * 3 * BASE_SIZE] = 1;
	need(granule_count(pagemap, base, 4 * GRANULE_SIZE, GRANULE_WHOLE) == (tagging ? 4 : 0),
	     "not populated as runs");
	/* Not a granule yet: what the heap holds of it is populated. */
	grow_to(last + BASE_SIZE + 1);
	last[BASE_SIZE] = 7;
	need(granule_filled(pagemap, last) == (tagging ? 2 : 1), "%u pages at the end",
	     granule_filled(pagemap, last));
	/* What is there stays when it becomes one. */
	grow_to(last + GRANULE_SIZE);
	last[3 * BASE_SIZE] = 8;
	need(last[BASE_SIZE] == 7 && !*last && !last[2 * BASE_SIZE], "lost memory");
	/* The heap may end inside a granule again, and the other part stays. */
	memset(base, 0x55, GRANULE_SIZE);
	grow_to(base + 5 * BASE_SIZE);
	need(granule_filled(pagemap, base) == 5, "%u pages after shrinking",
	     granule_filled(pagemap, base));
	need(is_filled(base, 5 * BASE_SIZE, 0x55), "lost memory");
	catch_segv();
	need(!touch(base + 5 * BASE_SIZE), "memory beyond the break");
	return KSFT_PASS;
}

static int program_brk_rlimit_data(int fd)
{
	char *base = align_up(quiet_heap());
	struct rlimit rlim;
	int pages;

	need(!getrlimit(RLIMIT_DATA, &rlim), "getrlimit");
	for (pages = 1; pages < 40; pages += 6) {
		grow_to(base);
		rlim.rlim_cur = status_kb("VmData:") * 1024 + pages * BASE_SIZE;
		need(!setrlimit(RLIMIT_DATA, &rlim), "setrlimit");
		need(sys_brk(base + (pages + 1) * BASE_SIZE) == base, "a page above the limit");
		need(sys_brk(base + pages * BASE_SIZE + 1) == base, "a byte above the limit");
		grow_to(base + pages * BASE_SIZE);
		memset(base, 1, pages * BASE_SIZE);
		rlim.rlim_cur = rlim.rlim_max;
		need(!setrlimit(RLIMIT_DATA, &rlim), "setrlimit");
	}
	return KSFT_PASS;
}

/* The heap may grow up to a page from the next mapping, wherever that is. */
static int program_brk_next_mapping(int fd)
{
	char *base = align_up(quiet_heap());
	int page;

	for (page = 0; page < GRANULE_NR_PAGES; page += 3) {
		char *next = base + 4 * GRANULE_SIZE + page * BASE_SIZE;

		grow_to(base);
		need(mmap(next, BASE_SIZE, PROT_NONE,
			  ANON_FLAGS | MAP_FIXED_NOREPLACE | MAP_GRANULE_4KB, -1, 0) == next,
		     "mmap at %p", next);
		need(sys_brk(next) == base, "no gap to the next mapping");
		need(sys_brk(next - BASE_SIZE + 1) == base, "no gap to the next mapping");
		grow_to(next - BASE_SIZE);
		memset(base, 1, next - BASE_SIZE - base);
		need(!munmap(next, BASE_SIZE), "munmap");
	}
	return KSFT_PASS;
}

static int program_brk_locked(int fd)
{
	char *base = align_up(quiet_heap());
	int pagemap = granule_open_pagemap();
	size_t len = 2 * GRANULE_SIZE + BASE_SIZE;
	struct granule_smaps smaps;
	long locked;

	grow_to(base);
	need(!mlockall(MCL_FUTURE), "mlockall");
	locked = status_kb("VmLck:");
	grow_to(base + len);
	need(status_kb("VmLck:") - locked == (long)len / 1024, "%ld kB locked",
	     status_kb("VmLck:") - locked);
	need(granule_read_smaps(getpid(), base, &smaps) && granule_has_flag(&smaps, "lo"),
	     "the heap has flags %s", smaps.vmflags);
	need(granule_present_pages(pagemap, base, len) == len / BASE_SIZE, "not populated");
	need(granule_count(pagemap, base, len, GRANULE_WHOLE) == (tagging ? 2 : 0),
	     "not populated as runs");
	grow_to(base);
	need(status_kb("VmLck:") == locked, "still locked");
	return KSFT_PASS;
}

/* As after exec, but anywhere: a heap that nothing has been taken from. */
static char *new_heap(size_t misalign)
{
	char *start = granule_reserve(RES_LEN);

	need(start && !munmap(start, RES_LEN), "no address space");
	start += GRANULE_SIZE + misalign;
	/* Fails if the old end is below, in which case that has to go first. */
	prctl(PR_SET_MM, PR_SET_MM_START_BRK, start, 0UL, 0UL);
	need(!prctl(PR_SET_MM, PR_SET_MM_BRK, start, 0UL, 0UL) &&
	     !prctl(PR_SET_MM, PR_SET_MM_START_BRK, start, 0UL, 0UL), "PR_SET_MM");
	return start;
}

/* The default is switched on before the first brk(), or between two of them. */
static int program_brk_late_default(int fd)
{
	int pagemap = granule_open_pagemap(), round;
	char *start = new_heap(5 * BASE_SIZE), *old_end;
	struct granule_smaps smaps;

	for (round = 0; round < 2; round++) {
		old_end = start;
		if (round) {
			start = new_heap(3 * BASE_SIZE);
			old_end = start + GRANULE_SIZE;
			grow_to(old_end);
			memset(start, 0xff, GRANULE_SIZE);
		}
		need(!granule_set(PR_GRANULE_MMAP, GRANULE_SIZE), "prctl");
		need(sys_brk(NULL) == old_end, "the heap has moved");
		grow_to(old_end + 6 * GRANULE_SIZE);
		need(granule_read_smaps(getpid(), old_end, &smaps) &&
		     granule_has_flag(&smaps, "gr"), "new memory has flags %s", smaps.vmflags);
		need(smaps.start == (unsigned long)old_end, "new memory starts at %lx, not %p",
		     smaps.start, old_end);
		need(is_filled(old_end, 6 * GRANULE_SIZE, 0), "not zero");
		memset(old_end, 0x55, 6 * GRANULE_SIZE);
		need(granule_count(pagemap, old_end, 6 * GRANULE_SIZE, GRANULE_WHOLE) == 5,
		     "not populated as runs");
		need(!round || is_filled(start, GRANULE_SIZE, 0xff), "lost memory");
		/* Back over the bound between the two, and up again. */
		shrink_and_grow(start, 4 * GRANULE_SIZE, BASE_SIZE + 1);
		shrink_and_grow(start, 4 * GRANULE_SIZE, 2 * GRANULE_SIZE + 1);
		need(!granule_set(PR_GRANULE_MMAP, BASE_SIZE), "prctl");
	}
	return KSFT_PASS;
}

/* The bounds of the stack of the program. */
static char *stack_bound(bool end)
{
	unsigned long lo, hi;
	char *line, *maps = read_proc("/proc/self/maps");

	line = strstr(maps, "[stack]");
	need(line, "no [stack]");
	while (line > maps && line[-1] != '\n')
		line--;
	need(sscanf(line, "%lx-%lx", &lo, &hi) == 2, "what is %.30s", line);
	return (char *)(end ? hi : lo);
}

static char *stack_start(void)
{
	return stack_bound(false);
}

static char *stack_end(void)
{
	return stack_bound(true);
}

static unsigned long stack_guard_gap(void)
{
	/* The kernel has no other way to tell. */
	if (strstr(read_proc("/proc/cmdline"), "stack_guard_gap="))
		exit(KSFT_SKIP);
	return 256 * BASE_SIZE;
}

static void set_stack_limit(unsigned long limit)
{
	struct rlimit rlim;

	need(!getrlimit(RLIMIT_STACK, &rlim), "getrlimit");
	rlim.rlim_cur = limit;
	need(!setrlimit(RLIMIT_STACK, &rlim), "setrlimit");
}

static int program_stack_steps(int fd)
{
	unsigned long step = tagging ? GRANULE_SIZE : BASE_SIZE;
	int pagemap = granule_open_pagemap(), i;
	struct granule_smaps smaps;

	catch_segv();
	set_stack_limit(8UL << 20);
	need(granule_read_smaps(getpid(), stack_start(), &smaps) &&
	     granule_has_flag(&smaps, "gr") == tagging, "the stack has flags %s", smaps.vmflags);
	for (i = 0; i < 20; i++) {
		/* Each time in another page, from the next one to 16 below. */
		char *addr = stack_start() - 1 - i * 7 % GRANULE_NR_PAGES * BASE_SIZE;
		char *expected = (char *)((unsigned long)addr & -step);

		need(touch(addr), "no growth to %p", addr);
		need(stack_start() == expected, "grown to %p by %p", stack_start(), addr);
		need(!tagging || granule_state(pagemap, expected) == GRANULE_WHOLE,
		     "no run at %p", expected);
	}
	return KSFT_PASS;
}

/* What is below the limit by less than a granule can be had page by page. */
static int program_stack_rlimit(int fd)
{
	static const unsigned long steps[] = {
		3 * BASE_SIZE, GRANULE_SIZE, GRANULE_SIZE + BASE_SIZE, 5 * BASE_SIZE + 100,
		2 * GRANULE_SIZE - 100, 11 * BASE_SIZE, 4 * GRANULE_SIZE,
	};
	char *end = stack_end(), *lowest;
	unsigned long limit;
	size_t i;

	catch_segv();
	limit = end - stack_start() + GRANULE_SIZE;
	for (i = 0; i < ARRAY_SIZE(steps); i++) {
		limit += steps[i];
		set_stack_limit(limit);
		lowest = end - (limit & -BASE_SIZE);
		need(!touch(lowest - 1), "limit %lu exceeded", limit);
		need(touch(lowest + 2 * BASE_SIZE), "limit %lu not reached", limit);
		need(stack_start() >= lowest, "limit %lu exceeded: %p", limit, stack_start());
		need(touch(lowest), "limit %lu not reached", limit);
		need(stack_start() == lowest, "limit %lu: grown to %p", limit, stack_start());
		need(!touch(lowest - 1), "limit %lu exceeded", limit);
	}
	return KSFT_PASS;
}

/* Memory below the stack: as far as the gap to it, and as far as it if nothing. */
static int program_stack_guard_gap(int fd)
{
	unsigned long gap = stack_guard_gap();
	char *below, *lowest;
	int page, prot;

	catch_segv();
	set_stack_limit(32UL << 20);
	for (page = 0; page < GRANULE_NR_PAGES; page += 5) {
		for (prot = PROT_NONE; prot <= PROT_READ; prot += PROT_READ) {
			below = (char *)((unsigned long)stack_start() & -GRANULE_SIZE) -
				(prot ? gap : 0) - 3 * GRANULE_SIZE + page * BASE_SIZE;
			lowest = below + BASE_SIZE + (prot ? gap : 0);
			need(mmap(below, BASE_SIZE, prot,
				  ANON_FLAGS | MAP_FIXED | MAP_GRANULE_4KB, -1, 0) == below,
			     "mmap at %p", below);
			need(!touch(lowest - 1), "grown into the gap");
			need(touch(lowest + 2 * BASE_SIZE), "gap of page %d not reached", page);
			need(stack_start() >= lowest, "grown into the gap");
			need(touch(lowest), "gap of page %d not reached", page);
			need(stack_start() == lowest, "grown to %p, not %p", stack_start(),
			     lowest);
			need(!touch(lowest - 1), "grown into the gap");
			need(!munmap(below, BASE_SIZE), "munmap");
		}
	}
	return KSFT_PASS;
}

static const struct {
	const char *name;
	int (*main)(int fd);
} programs[] = {
	{ "brk_start", program_brk_start },
	{ "brk_zero", program_brk_zero },
	{ "brk_runs", program_brk_runs },
	{ "brk_rlimit_data", program_brk_rlimit_data },
	{ "brk_next_mapping", program_brk_next_mapping },
	{ "brk_locked", program_brk_locked },
	{ "brk_late_default", program_brk_late_default },
	{ "stack_steps", program_stack_steps },
	{ "stack_rlimit", program_stack_rlimit },
	{ "stack_guard_gap", program_stack_guard_gap },
};

static int program_main(char **argv)
{
	size_t i;

	tagging = granule_get(PR_GRANULE_MMAP) == GRANULE_SIZE;
	for (i = 0; i < ARRAY_SIZE(programs); i++) {
		if (!strcmp(argv[2], programs[i].name))
			return programs[i].main(atoi(argv[3]));
	}
	return KSFT_FAIL;
}

FIXTURE(page_granule_program)
{
};

FIXTURE_VARIANT(page_granule_program)
{
	unsigned long size;
};

/* What the tests expect is what a kernel without granules does, too. */
FIXTURE_VARIANT_ADD(page_granule_program, base_page)
{
	.size = BASE_SIZE,
};

FIXTURE_VARIANT_ADD(page_granule_program, default_tagged)
{
	.size = GRANULE_SIZE,
};

FIXTURE_SETUP(page_granule_program)
{
	ASSERT_EQ(granule_set_enabled(true), 0);
	granule_thp_never();
}

FIXTURE_TEARDOWN(page_granule_program)
{
	EXPECT_TRUE(granule_invariants_hold());
}

/* The exit status, or -1. The program may write an address to be returned. */
static int run_program(const char *name, unsigned long size, unsigned long persona, char **addr)
{
	int pipefd[2], status;
	char fd[16];
	pid_t pid;

	if (pipe(pipefd))
		return -1;
	snprintf(fd, sizeof(fd), "%d", pipefd[1]);
	pid = fork();
	if (pid < 0)
		return -1;
	if (!pid) {
		if (granule_set(PR_GRANULE_EXEC, size) || personality(PER_LINUX | persona) < 0)
			_exit(10);
		execl("/proc/self/exe", "page_granule_calls", "--program", name, fd, NULL);
		_exit(11);
	}
	close(pipefd[1]);
	if (waitpid(pid, &status, 0) != pid || !WIFEXITED(status))
		status = -1;
	else
		status = WEXITSTATUS(status);
	if (addr && read(pipefd[0], addr, sizeof(*addr)) != sizeof(*addr))
		status = -1;
	close(pipefd[0]);
	return status;
}

/* Assert that the heap is tagged by default, and starts at a multiple of 64 KiB. */
TEST_F(page_granule_program, brk_start)
{
	char *start;

	EXPECT_EQ(run_program("brk_start", variant->size, 0, &start), 0);
	EXPECT_EQ(run_program("brk_start", variant->size, ADDR_COMPAT_LAYOUT, &start), 0);
}

/* Assert that the start of the heap is random where it is to be, and only there. */
TEST_F(page_granule_program, brk_randomized)
{
	char *start, *first = NULL;
	int i, same = 0;

	if (read_num("/proc/sys/kernel/randomize_va_space") != 2)
		SKIP(return, "the heap is not randomized: write 2 to kernel.randomize_va_space");
	for (i = 0; i < 8; i++) {
		ASSERT_EQ(run_program("brk_start", variant->size, 0, &start), 0);
		same += start == first;
		first = i ? first : start;
	}
	EXPECT_LE(same, 1);
	for (i = 0; i < 3; i++) {
		ASSERT_EQ(run_program("brk_start", variant->size, ADDR_NO_RANDOMIZE, &start), 0);
		first = i ? first : start;
		EXPECT_EQ(start, first);
	}
}

/* Assert that memory given back to brk and taken again reads as zero. */
TEST_F_TIMEOUT(page_granule_program, brk_zero, 120)
{
	EXPECT_EQ(run_program("brk_zero", variant->size, 0, NULL), 0);
}

/* Assert that the heap is populated in runs, and may end inside a granule. */
TEST_F(page_granule_program, brk_runs)
{
	EXPECT_EQ(run_program("brk_runs", variant->size, 0, NULL), 0);
}

/* Assert that RLIMIT_DATA stops the heap at the page that it always stopped at. */
TEST_F(page_granule_program, brk_rlimit_data)
{
	EXPECT_EQ(run_program("brk_rlimit_data", variant->size, 0, NULL), 0);
}

/* Assert that the heap grows as near to the next mapping as it always did. */
TEST_F(page_granule_program, brk_next_mapping)
{
	EXPECT_EQ(run_program("brk_next_mapping", variant->size, 0, NULL), 0);
}

/* Assert that MCL_FUTURE locks and populates what brk adds. */
TEST_F(page_granule_program, brk_locked)
{
	EXPECT_EQ(run_program("brk_locked", variant->size, 0, NULL), 0);
}

/* Assert that the heap is tagged from when a program asks for it on. */
TEST(brk_late_default)
{
	ASSERT_EQ(granule_set_enabled(true), 0);
	granule_thp_never();
	EXPECT_EQ(run_program("brk_late_default", BASE_SIZE, 0, NULL), 0);
}

/* Assert that the stack grows to multiples of 64 KiB. */
TEST_F(page_granule_program, stack_steps)
{
	EXPECT_EQ(run_program("stack_steps", variant->size, 0, NULL), 0);
}

/* Assert that RLIMIT_STACK is kept to the page. */
TEST_F(page_granule_program, stack_rlimit)
{
	EXPECT_EQ(run_program("stack_rlimit", variant->size, 0, NULL), 0);
}

/* Assert that the gap below the stack is kept to the page. */
TEST_F(page_granule_program, stack_guard_gap)
{
	int status = run_program("stack_guard_gap", variant->size, 0, NULL);

	if (status == KSFT_SKIP)
		SKIP(return, "boot without stack_guard_gap=");
	EXPECT_EQ(status, 0);
}

/* MAP_GROWSDOWN, above a part of the reservation that is unmapped. */
#define GROW_ROOM	(40 * GRANULE_SIZE)

FIXTURE(page_granule_growsdown)
{
	int pagemap;
	char *res;
	struct rlimit rlim;
};

FIXTURE_VARIANT(page_granule_growsdown)
{
	enum granule_kind kind;
};

FIXTURE_VARIANT_ADD(page_granule_growsdown, untagged)
{
	.kind = GRANULE_UNTAGGED,
};

FIXTURE_VARIANT_ADD(page_granule_growsdown, default_tagged)
{
	.kind = GRANULE_DEFAULT,
};

FIXTURE_VARIANT_ADD(page_granule_growsdown, contract)
{
	.kind = GRANULE_CONTRACT,
};

FIXTURE_SETUP(page_granule_growsdown)
{
	ASSERT_EQ(granule_set_enabled(true), 0);
	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, BASE_SIZE), 0);
	granule_thp_never();
	ASSERT_EQ(getrlimit(RLIMIT_STACK, &self->rlim), 0);
	self->pagemap = granule_open_pagemap();
	ASSERT_GE(self->pagemap, 0);
	self->res = granule_reserve(RES_LEN);
	ASSERT_NE(self->res, NULL);
	ASSERT_EQ(munmap(self->res, GROW_ROOM), 0);
	catch_segv();
}

FIXTURE_TEARDOWN(page_granule_growsdown)
{
	EXPECT_TRUE(granule_invariants_hold());
	setrlimit(RLIMIT_STACK, &self->rlim);
	close(self->pagemap);
}

static unsigned long vma_start(const char *addr)
{
	struct granule_smaps smaps;

	return granule_read_smaps(getpid(), addr, &smaps) ? smaps.start : 0;
}

static unsigned long growth_step(enum granule_kind kind)
{
	return kind == GRANULE_UNTAGGED ? BASE_SIZE : GRANULE_SIZE;
}

/* Lowest address that a limit leaves: contract VMAs have no part of a granule. */
static unsigned long lowest_of(enum granule_kind kind, const char *limit)
{
	return kind == GRANULE_CONTRACT ? granule_round_up(limit) : (unsigned long)limit;
}

/* Assert that it grows to multiples of 64 KiB, in runs, and keeps its kind. */
TEST_F(page_granule_growsdown, steps)
{
	unsigned long step = growth_step(variant->kind), expected;
	char *start = self->res + GROW_ROOM, *addr;
	int i;

	/* A default-tagged one may start anywhere. */
	if (variant->kind != GRANULE_CONTRACT)
		start -= 11 * BASE_SIZE;
	ASSERT_EQ(granule_mmap(variant->kind, start, 2 * GRANULE_SIZE, PROT_RW,
			       MAP_FIXED | MAP_GROWSDOWN), start);
	granule_fill(start, 2 * GRANULE_SIZE, SEED);
	addr = start;
	for (i = 0; i < 12; i++) {
		addr = (char *)vma_start(addr) - 1 - i * 7 % GRANULE_NR_PAGES * BASE_SIZE;
		expected = (unsigned long)addr & -step;
		ASSERT_TRUE(touch(addr));
		EXPECT_EQ(vma_start(addr), expected);
		/* It may have started with a part of a granule, which is populated. */
		if (expected >> 16 == (unsigned long)start >> 16)
			continue;
		EXPECT_EQ(granule_state(self->pagemap, (void *)(expected & -GRANULE_SIZE)) ==
			  GRANULE_WHOLE, variant->kind != GRANULE_UNTAGGED);
	}
	EXPECT_EQ(kind_of(addr), variant->kind);
	EXPECT_TRUE(vma_has_flag(addr, "gd"));
	EXPECT_TRUE(granule_check(start, 2 * GRANULE_SIZE, SEED));
	/* The contract is for what has grown as well. */
	errno = 0;
	EXPECT_EQ(munmap((void *)expected, BASE_SIZE), variant->kind == GRANULE_CONTRACT ? -1 : 0);
	EXPECT_EQ(errno, variant->kind == GRANULE_CONTRACT ? EINVAL : 0);
}

/* Assert that RLIMIT_STACK is kept to the page, or to the granule. */
TEST_F(page_granule_growsdown, rlimit)
{
	static const unsigned long steps[] = {
		3 * BASE_SIZE, GRANULE_SIZE, GRANULE_SIZE + BASE_SIZE, 5 * BASE_SIZE + 100,
		2 * GRANULE_SIZE - 100, 11 * BASE_SIZE, 4 * GRANULE_SIZE,
	};
	char *start = self->res + GROW_ROOM, *end = start + GRANULE_SIZE, *lowest;
	struct rlimit rlim = self->rlim;
	size_t i;

	ASSERT_EQ(granule_mmap(variant->kind, start, GRANULE_SIZE, PROT_RW,
			       MAP_FIXED | MAP_GROWSDOWN), start);
	rlim.rlim_cur = 2 * GRANULE_SIZE;
	for (i = 0; i < ARRAY_SIZE(steps); i++) {
		rlim.rlim_cur += steps[i];
		ASSERT_EQ(setrlimit(RLIMIT_STACK, &rlim), 0);
		lowest = (char *)lowest_of(variant->kind, end - (rlim.rlim_cur & -BASE_SIZE));
		EXPECT_FALSE(touch(lowest - 1));
		EXPECT_TRUE(touch(lowest + 2 * BASE_SIZE));
		EXPECT_GE(vma_start(start), (unsigned long)lowest);
		EXPECT_TRUE(touch(lowest));
		EXPECT_EQ(vma_start(start), (unsigned long)lowest)
			TH_LOG("limit %llu", (unsigned long long)rlim.rlim_cur);
		EXPECT_FALSE(touch(lowest - 1));
	}
	ASSERT_EQ(setrlimit(RLIMIT_STACK, &self->rlim), 0);
}

/* Assert that the gap to the memory below is kept, and that memory left alone. */
TEST_F(page_granule_growsdown, guard_gap)
{
	char *start = self->res + GROW_ROOM, *below, *lowest;
	unsigned long gap;
	int page, prot;

	if (strstr(read_proc("/proc/cmdline"), "stack_guard_gap="))
		SKIP(return, "boot without stack_guard_gap=");
	gap = stack_guard_gap();
	for (page = 0; page < GRANULE_NR_PAGES; page += 3) {
		for (prot = PROT_NONE; prot <= PROT_READ; prot += PROT_READ) {
			ASSERT_EQ(granule_mmap(variant->kind, start, GRANULE_SIZE, PROT_RW,
					       MAP_FIXED | MAP_GROWSDOWN), start);
			below = self->res + 4 * GRANULE_SIZE + page * BASE_SIZE;
			ASSERT_EQ(granule_mmap(GRANULE_UNTAGGED, below, BASE_SIZE, prot,
					       MAP_FIXED), below);
			lowest = (char *)lowest_of(variant->kind,
						   below + BASE_SIZE + (prot ? gap : 0));
			EXPECT_FALSE(touch(lowest - 1))
				TH_LOG("page %d, protection %d", page, prot);
			EXPECT_TRUE(touch(lowest + 2 * BASE_SIZE));
			EXPECT_GE(vma_start(start), (unsigned long)lowest);
			EXPECT_TRUE(touch(lowest));
			EXPECT_EQ(vma_start(start), (unsigned long)lowest)
				TH_LOG("page %d, protection %d", page, prot);
			EXPECT_FALSE(touch(lowest - 1));
			EXPECT_TRUE(vma_is(below, BASE_SIZE));
			ASSERT_EQ(munmap(self->res, GROW_ROOM + GRANULE_SIZE), 0);
		}
	}
}

/* Overcommit is a setting of the machine, and must not stay as a test had it. */
static char saved_overcommit[16];

static void restore_overcommit(void)
{
	write_file(OVERCOMMIT, saved_overcommit, strlen(saved_overcommit) + 1);
}

int main(int argc, char **argv)
{
	if (argc == 4 && !strcmp(argv[1], "--program"))
		return program_main(argv);
	granule_require();
	granule_save_settings();
	if (read_file(OVERCOMMIT, saved_overcommit, sizeof(saved_overcommit)) > 0)
		atexit(restore_overcommit);
	return test_harness_run(argc, argv);
}
