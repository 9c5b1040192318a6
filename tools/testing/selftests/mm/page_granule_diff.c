// SPDX-License-Identifier: GPL-2.0
/*
 * Page granule: a random sequence of calls and accesses, made by a process with
 * a default granule of 64 KiB and by its untagged twin, must give both the same
 * results and leave both with the same bytes.
 *
 * Call number I of the sequence depends on the seed and on I alone, not on what
 * the calls before it did. So a sequence can be repeated, and calls can be left
 * out of it, which is how a failing one is shrunk.
 *
 * All calls act on two windows: an arena at a fixed address, and the heap above
 * the brk that the process starts with. Where the kernel is free to choose an
 * address, it may choose another one for a tagged mapping. So what is mapped or
 * moved without MAP_FIXED is moved into the arena, or unmapped, in the same
 * step. A mapping with MAP_GROWSDOWN, which grows in other steps, lives for one
 * step only, too.
 *
 * After each step are compared:
 * - the result, the error, and the signal, code and address of a fault;
 * - of the pages that the call was about, and of their neighbours: the bounds,
 *   the permissions and the file offsets of the VMAs; which of them are guard
 *   regions; which are populated, and what mincore() says, where a tagged mapping
 *   may have more, but never less; and all bytes of what is present.
 *
 * After every so many steps, the same is compared of all pages. What is not
 * present is left alone, so that it stays in swap; step "check" reads it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <linux/fs.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "kselftest.h"
#include "vm_util.h"
#include "page_granule_util.h"

/* As for page_granule_util.h: headers may be older than the kernel. */
#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP	4
#endif
#ifndef MLOCK_ONFAULT
#define MLOCK_ONFAULT		1
#endif
#ifndef MADV_COLD
#define MADV_COLD		20
#define MADV_PAGEOUT		21
#endif
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ	22
#define MADV_POPULATE_WRITE	23
#endif
#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED	24
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE		25
#endif
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL	102
#define MADV_GUARD_REMOVE	103
#endif

/*
 * The arena has the bound between two page tables in its middle. It is far from
 * anything else, so that nothing meets it that it could merge with.
 */
#define ARENA_PAGES	256UL
#define ARENA_ADDR	(0x1000000000UL + (2UL << 20) - ARENA_PAGES / 2 * BASE_SIZE)
#define HEAP_PAGES	64UL
#define HEAP_ADDR	0x1800000000UL
#define NR_PAGES	(ARENA_PAGES + HEAP_PAGES)

#define DEFAULT_OPS	5000UL
#define DEFAULT_SEEDS	4UL

#define BATCH		128	/* steps a twin takes before they are compared */
#define DEFAULT_ALL	16UL	/* after so many steps, all pages are compared */
#define MAX_KIDS	2	/* children by fork that a twin has at a time */
#define TWIN_TIMEOUT	(300 * 1000)	/* in ms, for a batch */
#define SHRINK_SECONDS	60

/* Exit status of a twin that could not start. */
#define EXIT_SETUP	100

enum op_kind {
	OP_MMAP,
	OP_MMAP_HINT,
	OP_MMAP_MOVE,
	OP_GROWSDOWN,
	OP_MUNMAP,
	OP_MPROTECT,
	OP_MREMAP_SIZE,
	OP_MREMAP_FIXED,
	OP_MREMAP_DONTUNMAP,
	OP_MREMAP_COPY,
	OP_MREMAP_FREELY,
	OP_MADVISE,
	OP_FREE,
	OP_MLOCK,
	OP_MLOCK_ONFAULT,
	OP_MUNLOCK,
	OP_MSYNC,
	OP_MINCORE,
	OP_BRK,
	OP_FORK,
	OP_WIPEONFORK,
	OP_WRITE,
	OP_READ,
	OP_SYS_WRITE,
	OP_SYS_READ,
	OP_SYS_ZERO,
	OP_MEM_WRITE,
	OP_MEM_READ,
	OP_CHECK,
	NR_OP_KINDS,
};

static const struct {
	const char *name;
	unsigned int weight;
} kinds[NR_OP_KINDS] = {
	[OP_MMAP]		= { "mmap", 150 },
	[OP_MMAP_HINT]		= { "mmap with a hint", 12 },
	[OP_MMAP_MOVE]		= { "mmap anywhere, mremap into place", 15 },
	[OP_GROWSDOWN]		= { "mmap MAP_GROWSDOWN, grow, munmap", 2 },
	[OP_MUNMAP]		= { "munmap", 24 },
	[OP_MPROTECT]		= { "mprotect", 90 },
	[OP_MREMAP_SIZE]	= { "mremap", 40 },
	[OP_MREMAP_FIXED]	= { "mremap MREMAP_FIXED", 36 },
	[OP_MREMAP_DONTUNMAP]	= { "mremap MREMAP_DONTUNMAP", 12 },
	[OP_MREMAP_COPY]	= { "mremap of length 0", 8 },
	[OP_MREMAP_FREELY]	= { "mremap anywhere, mremap into place", 10 },
	[OP_MADVISE]		= { "madvise", 170 },
	[OP_FREE]		= { "madvise MADV_FREE, fill", 12 },
	[OP_MLOCK]		= { "mlock", 10 },
	[OP_MLOCK_ONFAULT]	= { "mlock2 MLOCK_ONFAULT", 6 },
	[OP_MUNLOCK]		= { "munlock", 26 },
	[OP_MSYNC]		= { "msync", 8 },
	[OP_MINCORE]		= { "mincore", 20 },
	[OP_BRK]		= { "brk", 40 },
	[OP_FORK]		= { "fork", 16 },
	[OP_WIPEONFORK]		= { "madvise MADV_WIPEONFORK, fork", 3 },
	[OP_WRITE]		= { "write", 140 },
	[OP_READ]		= { "read", 55 },
	[OP_SYS_WRITE]		= { "write(2)", 20 },
	[OP_SYS_READ]		= { "read(2)", 20 },
	[OP_SYS_ZERO]		= { "read(2) of /dev/zero", 10 },
	[OP_MEM_WRITE]		= { "pwrite(2) to /proc/self/mem", 14 },
	[OP_MEM_READ]		= { "pread(2) of /proc/self/mem", 10 },
	[OP_CHECK]		= { "check", 12 },
};

/* How OP_WRITE and OP_READ go about it. */
enum access {
	ACCESS_BYTE,
	ACCESS_STRADDLE,	/* a word, over the bound of two pages */
	ACCESS_RANGE,
	ACCESS_TOUCH,		/* one byte of each page */
	NR_ACCESSES,
};

static const char * const accesses[] = { "byte", "straddling word", "range", "touch" };

struct op {
	enum op_kind kind;
	unsigned long index;
	unsigned int page;	/* of the windows, see page_addr() */
	unsigned int nr;	/* pages */
	unsigned int to;	/* page that mremap moves to */
	unsigned int to_nr;
	unsigned int skew;	/* bytes into the page at which it starts */
	unsigned int trim;	/* bytes that are missing from the last page */
	int prot;
	int flags;
	uint64_t key;
};

/* What is known of a page after a step. */
#define PG_MAPPED	0x001
#define PG_READ		0x002
#define PG_WRITE	0x004
#define PG_EXEC		0x008
#define PG_SHARED	0x010
#define PG_START	0x020	/* first page of its VMA */
#define PG_GUARD	0x040
#define PG_SAME		0xffff007f	/* the bits that must be the same for twins */
#define PG_POPULATED	0x080	/* present or in swap */
#define PG_IN_CORE	0x100	/* says mincore() */
#define PG_NOT_IN_CORE	0x200	/* says mincore(), and it is not in swap either */
#define PG_SUM		0x400	/* the sum of the bytes is known */
#define PG_OFFSET(pages)	((uint32_t)(pages) << 16)	/* in the file */

struct record {
	long ret;
	int err;
	int sig;
	int code;
	unsigned long addr;
	uint64_t value;		/* what was read, or what else the step found */
	uint64_t kid;		/* what a child found */
	uint32_t attr[NR_PAGES];
	uint64_t sum[NR_PAGES];
};

enum twin { UNTAGGED, TAGGED, NR_TWINS };

static const char * const twin_names[] = { "untagged", "tagged" };

struct shared {
	unsigned long progress[NR_TWINS];	/* steps that were begun */
	struct record records[NR_TWINS][BATCH];
};

static struct shared *shared;

/* A fault that the detector is tested with: twin TAGGED misreports a step. */
enum inject {
	INJECT_NOTHING,
	INJECT_RESULT,
	INJECT_BYTE,
};

/* A sequence of calls. */
struct run {
	uint64_t seed;
	const unsigned int *list;	/* numbers of the calls, NULL: from 0 on */
	unsigned long nr;
	enum inject inject;
	unsigned long inject_at;
	int timeout;			/* in ms */
	unsigned long *counts;		/* by kind, made and failed, or NULL */
};

/* How it went wrong. */
struct failure {
	unsigned long pos;		/* step of the run */
	struct record records[NR_TWINS];
	char reason[300];
};

/* An access that the compiler leaves where and as it is: it may fault. */
#define load(p)		__atomic_load_n(p, __ATOMIC_RELAXED)
#define store(p, val)	__atomic_store_n(p, val, __ATOMIC_RELAXED)
#define barrier()	__atomic_signal_fence(__ATOMIC_SEQ_CST)

/* Bound of the heap window. Set in a twin before it starts. */
static unsigned long heap_addr;
static bool have_swap;
static bool verbose;
static unsigned long all_every = DEFAULT_ALL;

static uint64_t mix(uint64_t x)
{
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9UL;
	x = (x ^ x >> 27) * 0x94d049bb133111ebUL;
	return x ^ x >> 31;
}

/*
 * The sequence
 */

static unsigned long next_random(uint64_t *state)
{
	*state += 0x9e3779b97f4a7c15UL;
	return mix(*state);
}

static unsigned int below(uint64_t *state, unsigned int limit)
{
	return (next_random(state) >> 32) % limit;
}

static bool one_in(uint64_t *state, unsigned int n)
{
	return !below(state, n);
}

/* The windows are one range of page numbers. No range goes over a bound. */
static unsigned int window_end(unsigned int page)
{
	return page < ARENA_PAGES ? ARENA_PAGES : NR_PAGES;
}

static unsigned long page_addr(unsigned int page)
{
	if (page < ARENA_PAGES)
		return ARENA_ADDR + page * BASE_SIZE;
	return heap_addr + (page - ARENA_PAGES) * BASE_SIZE;
}

/* Where granules begin and end is where things go wrong. */
static unsigned int pick_page(uint64_t *state)
{
	unsigned int page;

	if (one_in(state, 2))
		return below(state, NR_PAGES);
	page = below(state, NR_PAGES / GRANULE_NR_PAGES) * GRANULE_NR_PAGES;
	if (one_in(state, 2))
		page += below(state, 7) - 3;
	return page < NR_PAGES ? page : 0;
}

static unsigned int pick_nr(uint64_t *state)
{
	switch (below(state, 8)) {
	case 0:
		return 1;
	case 1:
		return 1 + below(state, 4);
	case 2:
	case 3:
		return GRANULE_NR_PAGES * (1 + below(state, 2));
	case 4:
		return GRANULE_NR_PAGES * (1 + below(state, 4));
	case 5:
	case 6:
		return GRANULE_NR_PAGES * (1 + below(state, 3)) + below(state, 5) - 2;
	default:
		return 1 + below(state, 64);
	}
}

static unsigned int clamp_nr(unsigned int page, unsigned int nr)
{
	unsigned int left = window_end(page) - page;

	return nr < left ? nr : left;
}

static int pick_prot(uint64_t *state)
{
	switch (below(state, 20)) {
	case 0:
		return PROT_NONE;
	case 1:
	case 2:
	case 3:
		return PROT_READ;
	case 4:
		return PROT_RW | PROT_EXEC;
	case 5:
		switch (below(state, 4)) {
		case 0:
			return PROT_EXEC;
		case 1:
			return PROT_WRITE;
		default:
			return PROT_READ | PROT_EXEC;
		}
	default:
		return PROT_RW;
	}
}

static int pick_mmap_flags(uint64_t *state)
{
	int flags = MAP_ANONYMOUS;

	flags |= one_in(state, 4) ? MAP_SHARED : MAP_PRIVATE;
	if (one_in(state, 12))
		flags |= MAP_NORESERVE;
	if (one_in(state, 10))
		flags |= MAP_POPULATE;
	if (one_in(state, 40))
		flags |= MAP_LOCKED;
	return flags;
}

/* MADV_FREE is a step of its own, for what it leaves is not determined. */
static const struct {
	int advice;
	unsigned int weight;
	const char *name;
} advices[] = {
	{ MADV_DONTNEED,	24, "MADV_DONTNEED" },
	{ MADV_DONTNEED_LOCKED,	4, "MADV_DONTNEED_LOCKED" },
	{ MADV_REMOVE,		4, "MADV_REMOVE" },
	{ MADV_COLD,		6, "MADV_COLD" },
	{ MADV_PAGEOUT,		24, "MADV_PAGEOUT" },
	{ MADV_POPULATE_READ,	12, "MADV_POPULATE_READ" },
	{ MADV_POPULATE_WRITE,	12, "MADV_POPULATE_WRITE" },
	{ MADV_DONTFORK,	3, "MADV_DONTFORK" },
	{ MADV_DOFORK,		6, "MADV_DOFORK" },
	{ MADV_GUARD_INSTALL,	8, "MADV_GUARD_INSTALL" },
	{ MADV_GUARD_REMOVE,	12, "MADV_GUARD_REMOVE" },
	{ MADV_HUGEPAGE,	3, "MADV_HUGEPAGE" },
	{ MADV_NOHUGEPAGE,	3, "MADV_NOHUGEPAGE" },
	{ MADV_COLLAPSE,	6, "MADV_COLLAPSE" },
	{ MADV_MERGEABLE,	3, "MADV_MERGEABLE" },
	{ MADV_UNMERGEABLE,	6, "MADV_UNMERGEABLE" },
	{ MADV_RANDOM,		2, "MADV_RANDOM" },
	{ MADV_NORMAL,		4, "MADV_NORMAL" },
	{ MADV_DONTDUMP,	2, "MADV_DONTDUMP" },
	{ MADV_DODUMP,		4, "MADV_DODUMP" },
};

static int pick_advice(uint64_t *state)
{
	unsigned int i, sum = 0, pick;

	for (i = 0; i < ARRAY_SIZE(advices); i++)
		sum += advices[i].weight;
	pick = below(state, sum);
	for (i = 0; pick >= advices[i].weight; i++)
		pick -= advices[i].weight;
	return advices[i].advice;
}

static enum op_kind pick_kind(uint64_t *state)
{
	unsigned int i, sum = 0, pick;

	for (i = 0; i < NR_OP_KINDS; i++)
		sum += kinds[i].weight;
	pick = below(state, sum);
	for (i = 0; pick >= kinds[i].weight; i++)
		pick -= kinds[i].weight;
	return i;
}

/* Accesses are by byte, and mostly short. Ranges of system calls fit a pipe. */
static void make_access(struct op *op, uint64_t *state)
{
	op->skew = one_in(state, 3) ? 0 : below(state, BASE_SIZE);
	if (op->kind != OP_WRITE && op->kind != OP_READ)
		op->flags = one_in(state, 4) ? ACCESS_BYTE : ACCESS_RANGE;
	else
		op->flags = below(state, NR_ACCESSES);

	switch (op->flags) {
	case ACCESS_BYTE:
		op->nr = 1;
		op->trim = BASE_SIZE - 1 - op->skew;
		return;
	case ACCESS_STRADDLE:
		op->nr = clamp_nr(op->page, 2);
		if (op->nr < 2) {
			op->page--;
			op->nr = 2;
		}
		op->skew = BASE_SIZE - 1 - below(state, sizeof(long) - 1);
		op->trim = op->nr * BASE_SIZE - op->skew - sizeof(long);
		return;
	case ACCESS_RANGE:
		op->nr = one_in(state, 6) ? op->nr : 1 + below(state, 3);
		if (op->nr > GRANULE_NR_PAGES)
			op->nr = GRANULE_NR_PAGES;
		op->nr = clamp_nr(op->page, op->nr);
		/* At least one byte of a single page. */
		op->trim = below(state, op->nr > 1 ? BASE_SIZE : BASE_SIZE - op->skew);
		return;
	default:
		return;
	}
}

/*
 * Make call @index of the sequence. @kid is 0, or counts the calls that the
 * child makes that is forked by it.
 */
static void make_op(uint64_t seed, unsigned long index, unsigned int kid, struct op *op)
{
	uint64_t state = mix(mix(seed) ^ mix(index ^ (uint64_t)kid << 48));

	memset(op, 0, sizeof(*op));
	op->index = index;
	do {
		op->kind = pick_kind(&state);
	} while (kid && (op->kind == OP_FORK || op->kind == OP_WIPEONFORK ||
			 op->kind == OP_CHECK));
	op->page = pick_page(&state);
	op->nr = clamp_nr(op->page, pick_nr(&state));
	op->to = pick_page(&state);
	op->to_nr = clamp_nr(op->to, op->nr);
	op->key = next_random(&state);

	switch (op->kind) {
	case OP_MMAP:
		op->prot = pick_prot(&state);
		op->flags = pick_mmap_flags(&state);
		op->flags |= one_in(&state, 4) ? MAP_FIXED_NOREPLACE : MAP_FIXED;
		/* Now and then, let there be less holes. */
		if (one_in(&state, 6))
			op->nr = clamp_nr(op->page, op->nr + below(&state, 100));
		break;
	case OP_MMAP_HINT:
		op->prot = pick_prot(&state);
		op->flags = pick_mmap_flags(&state);
		break;
	case OP_MMAP_MOVE:
		op->prot = pick_prot(&state);
		op->flags = pick_mmap_flags(&state) & ~(MAP_POPULATE | MAP_LOCKED);
		break;
	case OP_GROWSDOWN:
		op->page = 1 + below(&state, 3 * GRANULE_NR_PAGES);
		op->nr = 1 + below(&state, GRANULE_NR_PAGES);
		op->flags = one_in(&state, 4);
		return;
	case OP_MPROTECT:
		op->prot = pick_prot(&state);
		break;
	case OP_MREMAP_SIZE:
		op->to_nr = one_in(&state, 3) ? pick_nr(&state) : op->nr + below(&state, 33) - 16;
		if ((int)op->to_nr < 1)
			op->to_nr = 1;
		op->to_nr = clamp_nr(op->page, op->to_nr);
		break;
	case OP_MREMAP_FIXED:
	case OP_MREMAP_FREELY:
		if (one_in(&state, 4))
			op->to_nr = clamp_nr(op->to, pick_nr(&state));
		break;
	case OP_MREMAP_DONTUNMAP:
		op->nr = op->to_nr;
		break;
	case OP_MADVISE:
		op->flags = pick_advice(&state);
		break;
	case OP_MUNLOCK:
		/* What is locked cannot be discarded, so do not lock for long. */
		if (one_in(&state, 3)) {
			op->page = op->page < ARENA_PAGES ? 0 : ARENA_PAGES;
			op->nr = window_end(op->page) - op->page;
		}
		break;
	case OP_MSYNC:
		op->flags = one_in(&state, 2) ? MS_SYNC : MS_ASYNC;
		if (one_in(&state, 2))
			op->flags |= MS_INVALIDATE;
		break;
	case OP_BRK:
		op->page = ARENA_PAGES;
		if (one_in(&state, 2))
			op->nr = below(&state, HEAP_PAGES + 1);
		else
			op->nr = HEAP_PAGES - below(&state, 3) * GRANULE_NR_PAGES;
		if (op->nr && one_in(&state, 2))
			op->trim = below(&state, BASE_SIZE);
		return;
	case OP_FORK:
		op->flags = below(&state, MAX_KIDS);
		break;
	case OP_WRITE:
	case OP_READ:
	case OP_SYS_WRITE:
	case OP_SYS_READ:
	case OP_SYS_ZERO:
	case OP_MEM_WRITE:
	case OP_MEM_READ:
		make_access(op, &state);
		return;
	default:
		break;
	}

	/* Lengths are rounded up to base pages, addresses are refused. */
	if (one_in(&state, 16))
		op->trim = below(&state, BASE_SIZE);
	if (one_in(&state, 100))
		op->skew = 1 + below(&state, BASE_SIZE - 1);
}

static char *op_addr(const struct op *op)
{
	return (char *)page_addr(op->page) + op->skew;
}

/* Of an access, the bytes up to the end; a call takes whole pages, and less. */
static size_t op_len(const struct op *op)
{
	size_t len = op->nr * BASE_SIZE - op->trim;

	return op->kind >= OP_WRITE && op->kind <= OP_MEM_READ ? len - op->skew : len;
}

static const char *advice_name(int advice)
{
	unsigned int i;

	for (i = 0; advices[i].advice != advice; i++)
		;
	return advices[i].name;
}

static const char *prot_name(int prot, char *buf)
{
	sprintf(buf, "%c%c%c", prot & PROT_READ ? 'r' : '-', prot & PROT_WRITE ? 'w' : '-',
		prot & PROT_EXEC ? 'x' : '-');
	return buf;
}

static void print_range(char *buf, unsigned int page, unsigned int skew, size_t len)
{
	bool heap = page >= ARENA_PAGES;

	sprintf(buf, "%s+%#lx, %#zx", heap ? "heap" : "arena",
		(page - (heap ? ARENA_PAGES : 0)) * BASE_SIZE + skew, len);
}

/* Print @op as one would write it down. */
static void describe_op(const struct op *op, char *buf, size_t size)
{
	char range[64], to[64], prot[4], more[100] = "";

	print_range(range, op->page, op->skew, op_len(op));
	print_range(to, op->to, 0, op->to_nr * BASE_SIZE);
	prot_name(op->prot, prot);

	switch (op->kind) {
	case OP_MMAP:
	case OP_MMAP_HINT:
	case OP_MMAP_MOVE:
		snprintf(more, sizeof(more), ", %s, %s%s%s%s%s%s", prot,
			 op->flags & MAP_SHARED ? "MAP_SHARED" : "MAP_PRIVATE",
			 op->flags & MAP_FIXED ? "|MAP_FIXED" : "",
			 op->flags & MAP_FIXED_NOREPLACE ? "|MAP_FIXED_NOREPLACE" : "",
			 op->flags & MAP_NORESERVE ? "|MAP_NORESERVE" : "",
			 op->flags & MAP_POPULATE ? "|MAP_POPULATE" : "",
			 op->flags & MAP_LOCKED ? "|MAP_LOCKED" : "");
		break;
	case OP_MPROTECT:
		snprintf(more, sizeof(more), ", %s", prot);
		break;
	case OP_MREMAP_SIZE:
		snprintf(more, sizeof(more), ", to %#lx", op->to_nr * BASE_SIZE);
		break;
	case OP_MREMAP_FIXED:
	case OP_MREMAP_DONTUNMAP:
	case OP_MREMAP_COPY:
	case OP_MREMAP_FREELY:
		snprintf(more, sizeof(more), ", to %s", to);
		break;
	case OP_MADVISE:
		snprintf(more, sizeof(more), ", %s", advice_name(op->flags));
		break;
	case OP_MSYNC:
		snprintf(more, sizeof(more), ", %s%s", op->flags & MS_SYNC ? "MS_SYNC" : "MS_ASYNC",
			 op->flags & MS_INVALIDATE ? "|MS_INVALIDATE" : "");
		break;
	case OP_FORK:
		snprintf(buf, size, "fork, or end of, child %d", op->flags);
		return;
	case OP_CHECK:
		snprintf(buf, size, "check of all bytes");
		return;
	case OP_WRITE:
	case OP_READ:
		snprintf(more, sizeof(more), ", %s", accesses[op->flags]);
		break;
	default:
		break;
	}
	snprintf(buf, size, "%s(%s%s)", kinds[op->kind].name, range, more);
}

/*
 * A twin
 *
 * It must allocate no memory, for that would be tagged for one and not for the
 * other, and it could be allocated by brk. So there is no stdio here.
 */

struct kid {
	pid_t pid;
	int to;
	int from;
};

static struct {
	const struct run *run;
	struct record *record;		/* of this step */
	struct kid kids[MAX_KIDS];
	int maps;
	int pagemap;
	int mem;
	int zero;
	int pipe[2];
	int reply;			/* to the parent */
	int command;			/* from it */
	bool in_core;			/* mincore() has filled vec for op */
} twin;

static unsigned char core_vec[NR_PAGES];
static char bounce[GRANULE_SIZE];
static struct record kid_record;

static sigjmp_buf fault_env;
static size_t progress;	/* what was done when a fault hit */

/* An address that can be compared, where it is in a window. */
static unsigned long relative(unsigned long addr)
{
	if (addr - heap_addr < HEAP_PAGES * BASE_SIZE)
		return addr - heap_addr + HEAP_ADDR;
	return addr;
}

static void note_fault(int sig, siginfo_t *info, void *context __always_unused)
{
	twin.record->sig = sig;
	twin.record->code = info->si_code;
	twin.record->addr = relative((unsigned long)info->si_addr);
	siglongjmp(fault_env, 1);
}

static void add_value(uint64_t value)
{
	twin.record->value = mix(twin.record->value + value);
}

static long note_result(long ret)
{
	twin.record->ret = ret;
	twin.record->err = ret == -1 ? errno : 0;
	return ret;
}

static void *note_address(void *ptr)
{
	note_result((long)ptr);
	if (ptr != MAP_FAILED)
		twin.record->ret = relative((unsigned long)ptr);
	return ptr;
}

/* The pattern depends on the place, so that a page in the wrong place shows. */
static uint64_t pattern(uint64_t key, size_t pos)
{
	return (key ^ pos) * 0x9e3779b97f4a7c15UL | 1;
}

static bool is_word(const char *p, size_t left)
{
	return !((unsigned long)p % sizeof(long)) && left >= sizeof(long);
}

static void fill_bytes(char *p, size_t len, uint64_t key)
{
	size_t i = 0;

	while (i < len) {
		store(&progress, i);
		if (is_word(p + i, len - i)) {
			store((uint64_t *)(p + i), pattern(key, i));
			i += sizeof(long);
		} else {
			store(p + i, pattern(key, i) >> 56);
			i++;
		}
	}
	store(&progress, len);
}

static uint64_t read_bytes(const char *p, size_t len)
{
	uint64_t sum = 0;
	size_t i = 0;

	while (i < len) {
		store(&progress, i);
		if (is_word(p + i, len - i)) {
			sum = sum * 31 + load((const uint64_t *)(p + i));
			i += sizeof(long);
		} else {
			sum = sum * 31 + load(p + i);
			i++;
		}
	}
	store(&progress, len);
	return sum;
}

/* Returns the number of bytes that were written before a fault. */
static size_t try_fill(char *p, size_t len, uint64_t key)
{
	store(&progress, 0);
	if (!sigsetjmp(fault_env, 0))
		fill_bytes(p, len, key);
	return load(&progress);
}

static size_t try_read(const char *p, size_t len)
{
	store(&progress, 0);
	if (!sigsetjmp(fault_env, 0))
		add_value(read_bytes(p, len));
	return load(&progress);
}

static void touch_pages(char *p, size_t nr, bool write, uint64_t key)
{
	size_t i;

	for (i = 0; i < nr; i++) {
		store(&progress, i);
		if (write)
			store(p + i * BASE_SIZE, key + i);
		else
			add_value(load(p + i * BASE_SIZE));
	}
	store(&progress, nr);
}

static size_t try_touch(char *p, size_t nr, bool write, uint64_t key)
{
	store(&progress, 0);
	if (!sigsetjmp(fault_env, 0))
		touch_pages(p, nr, write, key);
	return load(&progress);
}

/* A word that is not aligned takes one instruction, on CPUs that can. */
static bool try_word(char *p, bool write, uint64_t key)
{
	if (sigsetjmp(fault_env, 0))
		return false;
	barrier();
	if (write)
		memcpy(p, &key, sizeof(key));
	else
		memcpy(&key, p, sizeof(key));
	barrier();
	if (!write)
		add_value(key);
	return true;
}

static void do_access(const struct op *op)
{
	const bool write = op->kind == OP_WRITE;
	char *p = op_addr(op);
	size_t done;

	if (op->flags == ACCESS_TOUCH) {
		done = try_touch(p, op->nr, write, op->key);
	} else if (op->flags == ACCESS_STRADDLE && try_word(p, write, op->key)) {
		done = sizeof(long);
	} else if (write) {
		/*
		 * Also after a word that faulted: CPUs may, or may not, have
		 * written the part of it that is in the page that is writable.
		 */
		done = try_fill(p, op_len(op), op->key);
	} else {
		done = try_read(p, op_len(op));
	}
	note_result(done);
}

static void drain_pipe(void)
{
	ssize_t n;

	while ((n = read(twin.pipe[0], bounce, sizeof(bounce))) > 0)
		add_value(read_bytes(bounce, n) + n);
}

static void do_sys_access(const struct op *op)
{
	char *p = op_addr(op);
	size_t len = op_len(op);

	switch (op->kind) {
	case OP_SYS_WRITE:
		note_result(write(twin.pipe[1], p, len));
		drain_pipe();
		break;
	case OP_SYS_READ:
		fill_bytes(bounce, len, op->key);
		if (write(twin.pipe[1], bounce, len) != (ssize_t)len)
			_exit(EXIT_SETUP);
		note_result(read(twin.pipe[0], p, len));
		drain_pipe();
		break;
	case OP_SYS_ZERO:
		note_result(read(twin.zero, p, len));
		break;
	case OP_MEM_WRITE:
		fill_bytes(bounce, len, op->key);
		note_result(pwrite(twin.mem, bounce, len, (unsigned long)p));
		break;
	default:
		note_result(pread(twin.mem, bounce, len, (unsigned long)p));
		if (twin.record->ret > 0)
			add_value(read_bytes(bounce, twin.record->ret));
		break;
	}
}

/* A hint in a free range is where the mapping goes. What goes elsewhere is not compared. */
static void do_mmap_hint(const struct op *op)
{
	char *addr = op_addr(op) - op->skew;
	void *ptr;

	ptr = note_address(mmap(addr, op_len(op), op->prot, op->flags, -1, 0));
	if (ptr != MAP_FAILED && ptr != addr) {
		munmap(ptr, op_len(op));
		twin.record->ret = 0;
	}
}

/*
 * With no permissions at first: it may be mapped next to memory of the libc's
 * in one twin, and not in the other. From a neighbour in use it would inherit,
 * and keep, an anon_vma, which decides on what it can merge with later.
 */
static void do_mmap_move(const struct op *op)
{
	size_t len = op_len(op);
	void *ptr;

	ptr = mmap(NULL, len, PROT_NONE, op->flags, -1, 0);
	if (ptr == MAP_FAILED) {
		note_address(ptr);
		return;
	}
	if (note_address(mremap(ptr, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, op_addr(op))) ==
	    MAP_FAILED)
		munmap(ptr, len);
	else
		add_value(mprotect(op_addr(op), len, op->prot));
}

/* For the same reason, let it differ from anything that it could be moved to. */
static void do_mremap_freely(const struct op *op)
{
	size_t len = op_len(op), to_len = op->to_nr * BASE_SIZE;
	char *addr = op_addr(op);
	void *ptr;

	if (note_result(madvise(addr, len, MADV_DONTDUMP)))
		return;
	ptr = mremap(addr, len, to_len, MREMAP_MAYMOVE);
	if (ptr == MAP_FAILED || ptr == addr) {
		note_address(ptr);
		return;
	}
	if (note_address(mremap(ptr, to_len, to_len, MREMAP_MAYMOVE | MREMAP_FIXED,
				page_addr(op->to))) == MAP_FAILED)
		munmap(ptr, to_len);
	else
		add_value(madvise((char *)page_addr(op->to), to_len, MADV_DODUMP));
}

/*
 * A tagged mapping grows to the start of a granule. Whether it grows is the same
 * for both, and what is grown reads as zero. There is nothing below the arena
 * for a long way, so it grows unless something is in the lowest page.
 */
static void do_growsdown(const struct op *op)
{
	char *arena = (char *)page_addr(0), *p = op_addr(op) - op->skew;
	size_t below = op->page < GRANULE_NR_PAGES ? op->page : GRANULE_NR_PAGES;
	char *top = p + op->nr * BASE_SIZE;
	void *ptr;

	munmap(arena, top - arena);
	ptr = note_address(mmap(p, top - p, PROT_RW, ANON_FLAGS | MAP_FIXED | MAP_GROWSDOWN,
				-1, 0));
	if (ptr == MAP_FAILED)
		return;
	if (op->flags)
		add_value(mmap(arena, BASE_SIZE, PROT_RW, ANON_FLAGS | MAP_FIXED, -1, 0) ==
			  MAP_FAILED);
	add_value(try_fill(p, 8, op->key));
	p -= (1 + op->key % below) * BASE_SIZE;
	add_value(try_read(p, BASE_SIZE));
	add_value(try_fill(p, 8, op->key));
	add_value(try_read(p, BASE_SIZE));
	munmap(arena, top - arena);
}

/*
 * What a page reads as after MADV_FREE is up to reclaim. So write all of it, or
 * discard it for good where it cannot be written to.
 */
static void do_free(const struct op *op)
{
	char *p = (char *)page_addr(op->page);
	char *end = p + op->nr * BASE_SIZE;
	size_t done;

	note_result(madvise(op_addr(op), op_len(op), MADV_FREE));
	for (; p < end; p += BASE_SIZE) {
		done = try_fill(p, BASE_SIZE, op->key + (end - p));
		add_value(done);
		if (done < BASE_SIZE)
			add_value(madvise(p, BASE_SIZE, MADV_DONTNEED_LOCKED));
	}
}

static void do_brk(const struct op *op)
{
	unsigned long brk = syscall(__NR_brk, heap_addr + op_len(op));

	note_result(brk - heap_addr);
}

static void do_madvise(const struct op *op)
{
	int ret = madvise(op_addr(op), op_len(op), op->flags);

	/* There is more to collapse for one than for the other. */
	if (op->flags != MADV_COLLAPSE)
		note_result(ret);
}

static void do_fork(const struct op *op);
static void do_wipeonfork(const struct op *op);

static void run_op(const struct op *op)
{
	size_t len = op_len(op), to_len = op->to_nr * BASE_SIZE;
	void *to = (void *)page_addr(op->to);
	char *addr = op_addr(op);

	switch (op->kind) {
	case OP_MMAP:
		note_address(mmap(addr, len, op->prot, op->flags, -1, 0));
		break;
	case OP_MMAP_HINT:
		do_mmap_hint(op);
		break;
	case OP_MMAP_MOVE:
		do_mmap_move(op);
		break;
	case OP_GROWSDOWN:
		do_growsdown(op);
		break;
	case OP_MUNMAP:
		note_result(munmap(addr, len));
		break;
	case OP_MPROTECT:
		note_result(mprotect(addr, len, op->prot));
		break;
	case OP_MREMAP_SIZE:
		note_address(mremap(addr, len, to_len, 0));
		break;
	case OP_MREMAP_FIXED:
		note_address(mremap(addr, len, to_len, MREMAP_MAYMOVE | MREMAP_FIXED, to));
		break;
	case OP_MREMAP_DONTUNMAP:
		note_address(mremap(addr, len, to_len,
				    MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, to));
		break;
	case OP_MREMAP_COPY:
		note_address(mremap(addr, 0, to_len, MREMAP_MAYMOVE | MREMAP_FIXED, to));
		break;
	case OP_MREMAP_FREELY:
		do_mremap_freely(op);
		break;
	case OP_MADVISE:
		do_madvise(op);
		break;
	case OP_FREE:
		do_free(op);
		break;
	case OP_MLOCK:
		note_result(mlock(addr, len));
		break;
	case OP_MLOCK_ONFAULT:
		note_result(mlock2(addr, len, MLOCK_ONFAULT));
		break;
	case OP_MUNLOCK:
		note_result(munlock(addr, len));
		break;
	case OP_MSYNC:
		note_result(msync(addr, len, op->flags));
		break;
	case OP_MINCORE:
		twin.in_core = !note_result(mincore(addr, len, core_vec + op->page));
		break;
	case OP_BRK:
		do_brk(op);
		break;
	case OP_FORK:
		do_fork(op);
		break;
	case OP_WIPEONFORK:
		do_wipeonfork(op);
		break;
	case OP_WRITE:
	case OP_READ:
		do_access(op);
		break;
	case OP_SYS_WRITE:
	case OP_SYS_READ:
	case OP_SYS_ZERO:
	case OP_MEM_WRITE:
	case OP_MEM_READ:
		do_sys_access(op);
		break;
	default:
		break;
	}
}

/* What to look at after a step. */
enum scope {
	LOOK_NEAR,	/* pages that the step was about, if they are present */
	LOOK_ALL,	/* pages that are present */
	LOOK_DEEP,	/* all pages: read in what is not present */
};

#define SUM_FAULT	1UL	/* stands for a page that cannot be read */

/*
 * Bytes that are zero add nothing. So a page that was never touched has the sum
 * of one that was read, of which a tagged mapping has more.
 */
static uint64_t add_words(const uint64_t *p, uint64_t key)
{
	uint64_t sum = 0;
	unsigned int i;

	for (i = 0; i < BASE_SIZE / sizeof(*p); i++, key += 2)
		sum += load(p + i) * key;
	return sum;
}

static uint64_t sum_page(unsigned int page, uint64_t key)
{
	if (sigsetjmp(fault_env, 0))
		return SUM_FAULT;
	return add_words((const uint64_t *)page_addr(page), key | 1);
}

static void look_at_vmas(unsigned int first, unsigned int end)
{
	const unsigned long limit = page_addr(end - 1) + BASE_SIZE;
	unsigned long addr = page_addr(first);
	unsigned int page = first;
	struct procmap_query query;
	uint32_t attr, offset;

	while (addr < limit) {
		memset(&query, 0, sizeof(query));
		query.size = sizeof(query);
		query.query_flags = PROCMAP_QUERY_COVERING_OR_NEXT_VMA;
		query.query_addr = addr;
		if (ioctl(twin.maps, PROCMAP_QUERY, &query)) {
			if (errno != ENOENT)
				_exit(EXIT_SETUP);
			return;
		}
		if (query.vma_start >= limit)
			return;

		attr = PG_MAPPED;
		if (query.vma_flags & PROCMAP_QUERY_VMA_READABLE)
			attr |= PG_READ;
		if (query.vma_flags & PROCMAP_QUERY_VMA_WRITABLE)
			attr |= PG_WRITE;
		if (query.vma_flags & PROCMAP_QUERY_VMA_EXECUTABLE)
			attr |= PG_EXEC;
		if (query.vma_flags & PROCMAP_QUERY_VMA_SHARED)
			attr |= PG_SHARED;
		for (; page < end && page_addr(page) < query.vma_end; page++) {
			addr = page_addr(page);
			if (addr < query.vma_start)
				continue;
			offset = (addr - query.vma_start + query.vma_offset) / BASE_SIZE;
			twin.record->attr[page] = attr;
			if (query.inode)
				twin.record->attr[page] |= PG_OFFSET(offset);
			if (addr == query.vma_start)
				twin.record->attr[page] |= PG_START;
		}
		addr = query.vma_end;
	}
}

static void look_at_page(unsigned int page, uint64_t entry, uint64_t key, enum scope scope)
{
	uint32_t *attr = &twin.record->attr[page];
	uint64_t *sum = &twin.record->sum[page];

	*sum = 0;
	if (entry & PM_GUARD_REGION) {
		*attr |= PG_GUARD;
		return;
	}
	if (!(*attr & PG_MAPPED))
		return;
	if (entry & (PM_PRESENT | PM_SWAP))
		*attr |= PG_POPULATED;
	if (!(*attr & PG_READ))
		return;
	if (entry & PM_PRESENT || scope == LOOK_DEEP)
		*sum = sum_page(page, key);
	else if (*attr & (PG_SHARED | PG_POPULATED))
		return;
	*attr |= PG_SUM;
}

static void look_at_pages(const struct op *op, unsigned int first, unsigned int end,
			  enum scope scope)
{
	static uint64_t pagemap[NR_PAGES];
	const uint64_t key = mix(op->index);
	unsigned int i;

	memset(twin.record->attr + first, 0, (end - first) * sizeof(*twin.record->attr));
	look_at_vmas(first, end);
	if (pread(twin.pagemap, pagemap + first, (end - first) * sizeof(*pagemap),
		  page_addr(first) / BASE_SIZE * sizeof(*pagemap)) < 0)
		_exit(EXIT_SETUP);
	for (i = first; i < end; i++) {
		look_at_page(i, pagemap[i], key, scope);
		if (!twin.in_core || i < op->page || i >= op->page + op->nr)
			continue;
		if (core_vec[i] & 1)
			twin.record->attr[i] |= PG_IN_CORE;
		else if (!(pagemap[i] & PM_SWAP))
			twin.record->attr[i] |= PG_NOT_IN_CORE;
	}
}

static void look_near(const struct op *op, unsigned int page, unsigned int nr)
{
	const unsigned int start = page < ARENA_PAGES ? 0 : ARENA_PAGES;

	look_at_pages(op, page > start ? page - 1 : start, page + clamp_nr(page, nr + 1),
		      LOOK_NEAR);
}

/* Fill in what the record has on pages. */
static void look(const struct op *op, enum scope scope)
{
	const unsigned int nr = op->nr > op->to_nr ? op->nr : op->to_nr;
	struct record *record = twin.record;
	const struct record saved = {
		.sig = record->sig, .code = record->code, .addr = record->addr,
	};

	memset(record->attr, 0, sizeof(record->attr));
	if (scope != LOOK_NEAR) {
		look_at_pages(op, 0, ARENA_PAGES, scope);
		look_at_pages(op, ARENA_PAGES, NR_PAGES, scope);
	} else if (op->kind == OP_GROWSDOWN) {
		look_near(op, 0, op->page + op->nr);
	} else if (op->kind == OP_BRK) {
		look_near(op, ARENA_PAGES, HEAP_PAGES);
	} else {
		look_near(op, op->page, nr);
		if (op->kind >= OP_MREMAP_FIXED && op->kind <= OP_MREMAP_FREELY)
			look_near(op, op->to, nr);
	}
	twin.in_core = false;
	record->sig = saved.sig;
	record->code = saved.code;
	record->addr = saved.addr;
}

static void open_files(void)
{
	twin.maps = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
	twin.pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	twin.mem = open("/proc/self/mem", O_RDWR | O_CLOEXEC);
	if (twin.maps < 0 || twin.pagemap < 0 || twin.mem < 0)
		_exit(EXIT_SETUP);
}

static void clear_record(struct record *record)
{
	memset(record, 0, offsetof(struct record, attr));
	twin.record = record;
}

/*
 * A child. It makes some calls at once, and then waits while the parent goes on.
 * When the parent says so, it makes some more, and looks at what it has got.
 */

static void run_kid_ops(unsigned long index, unsigned int first, uint64_t *result)
{
	unsigned int i, nr = mix(index + first) % 4;
	struct op op;

	for (i = 0; i < nr; i++) {
		make_op(twin.run->seed, index, first + i, &op);
		clear_record(&kid_record);
		run_op(&op);
		twin.in_core = false;
		*result = mix(*result + kid_record.ret);
		*result = mix(*result + kid_record.err);
		*result = mix(*result + kid_record.sig);
		*result = mix(*result + kid_record.code);
		*result = mix(*result + kid_record.addr);
		*result = mix(*result + kid_record.value);
	}
}

static void kid_main(const struct op *op, int from_parent, int to_parent)
{
	uint64_t result = 0;
	unsigned int i;
	char byte;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	close(twin.reply);
	close(twin.command);
	close(twin.maps);
	close(twin.pagemap);
	close(twin.mem);
	open_files();

	if (op->kind == OP_FORK)
		run_kid_ops(op->index, 1, &result);
	if (write(to_parent, &result, sizeof(result)) != sizeof(result) ||
	    read(from_parent, &byte, 1) != 1)
		_exit(EXIT_SETUP);

	if (op->kind == OP_FORK)
		run_kid_ops(op->index, 11, &result);
	clear_record(&kid_record);
	if (op->kind == OP_WIPEONFORK)
		add_value(try_touch(op_addr(op), op->nr, false, 0) +
			  try_touch(op_addr(op), op->nr, true, op->key));
	look(op, LOOK_DEEP);
	for (i = 0; i < NR_PAGES; i++)
		result = mix(result + (kid_record.attr[i] & PG_SAME) + kid_record.sum[i]);
	result = mix(result + kid_record.value);
	if (write(to_parent, &result, sizeof(result)) != sizeof(result))
		_exit(EXIT_SETUP);
	_exit(0);
}

static void hear_kid(const struct kid *kid)
{
	uint64_t result = 0;

	if (read(kid->from, &result, sizeof(result)) != sizeof(result))
		result = -1;
	twin.record->kid = mix(twin.record->kid + result);
}

static void start_kid(const struct op *op, struct kid *kid)
{
	int to[2], from[2];

	if (pipe(to) || pipe(from))
		_exit(EXIT_SETUP);
	kid->pid = fork();
	if (!kid->pid)
		kid_main(op, to[0], from[1]);
	close(to[0]);
	close(from[1]);
	kid->to = to[1];
	kid->from = from[0];
	if (kid->pid < 0) {
		note_result(-1);
		kid->pid = 0;
		close(kid->to);
		close(kid->from);
		return;
	}
	hear_kid(kid);
}

static void finish_kid(struct kid *kid)
{
	int status = 0;

	if (write(kid->to, "", 1) == 1)
		hear_kid(kid);
	close(kid->to);
	close(kid->from);
	waitpid(kid->pid, &status, 0);
	add_value(status);
	kid->pid = 0;
}

static void do_fork(const struct op *op)
{
	struct kid *kid = &twin.kids[op->flags];

	if (kid->pid)
		finish_kid(kid);
	else
		start_kid(op, kid);
}

/*
 * For one child only, and that makes no calls: to split a VMA that was wiped by
 * fork, after it was moved by mremap, trips an assertion on the page offset of
 * unused anonymous memory (in 7.3, granules or not).
 */
static void do_wipeonfork(const struct op *op)
{
	struct kid kid;

	note_result(madvise(op_addr(op), op_len(op), MADV_WIPEONFORK));
	start_kid(op, &kid);
	if (kid.pid)
		finish_kid(&kid);
	add_value(madvise((char *)page_addr(op->page), op->nr * BASE_SIZE, MADV_KEEPONFORK));
}

/*
 * A heap that is there already, or a new one; at the start of a granule, or
 * inside one. What is there already is untagged, so it would merge with what is
 * in the window for one twin, and not for the other: leave a hole between them.
 */
static bool set_up_heap(uint64_t seed)
{
	unsigned long brk, skew = seed & 2 ? 5 * BASE_SIZE : 0;

	if (seed & 1) {
		brk = granule_round_up(syscall(__NR_brk, 0)) + GRANULE_SIZE + skew;
		heap_addr = brk;
		return syscall(__NR_brk, brk) == (long)brk &&
		       !munmap((char *)brk - BASE_SIZE, BASE_SIZE);
	}
	brk = HEAP_ADDR + skew;
	heap_addr = brk;
	/* One that is inside a page begins with the next one. */
	if (skew)
		brk -= 1000;
	return !prctl(PR_SET_MM, PR_SET_MM_BRK, brk, 0, 0) &&
	       !prctl(PR_SET_MM, PR_SET_MM_START_BRK, brk, 0, 0);
}

static void set_up_failed(const char *what)
{
	ksft_print_msg("%s: %s\n", what, strerror(errno));
	_exit(EXIT_SETUP);
}

static void set_up_twin(const struct run *run, enum twin which)
{
	static const int signals[] = { SIGSEGV, SIGBUS };
	struct sigaction action = {
		.sa_sigaction = note_fault,
		.sa_flags = SA_SIGINFO | SA_NODEFER,
	};
	unsigned int i;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	twin.run = run;
	for (i = 0; i < ARRAY_SIZE(signals); i++)
		sigaction(signals[i], &action, NULL);
	open_files();
	twin.zero = open("/dev/zero", O_RDONLY | O_CLOEXEC);
	if (twin.zero < 0)
		set_up_failed("/dev/zero");
	if (pipe2(twin.pipe, O_NONBLOCK))
		set_up_failed("pipe2");
	if (!set_up_heap(run->seed))
		set_up_failed("cannot set a heap up");
	if (granule_set(PR_GRANULE_MMAP, which == TAGGED ? GRANULE_SIZE : BASE_SIZE))
		set_up_failed("PR_SET_PAGE_GRANULE");
}

/* Falsify a byte of the first page that there is. */
static void inject_byte(const struct op *op)
{
	const uint32_t wanted = PG_READ | PG_WRITE | PG_POPULATED;
	unsigned int i;
	char *p;

	look(op, LOOK_ALL);
	for (i = 0; i < NR_PAGES; i++) {
		if ((twin.record->attr[i] & (wanted | PG_GUARD)) == wanted) {
			p = (char *)page_addr(i);
			store(p, load(p) ^ 1);
			return;
		}
	}
}

static void run_twin(const struct run *run, enum twin which)
{
	enum scope scope;
	unsigned long i;
	struct op op;
	char byte;
	int kid;

	set_up_twin(run, which);
	for (i = 0; i < run->nr; i++) {
		const bool last = i == run->nr - 1;

		store(&shared->progress[which], i);
		clear_record(&shared->records[which][i % BATCH]);
		make_op(run->seed, run->list ? run->list[i] : i, 0, &op);
		run_op(&op);
		for (kid = 0; last && kid < MAX_KIDS; kid++) {
			if (twin.kids[kid].pid)
				finish_kid(&twin.kids[kid]);
		}

		if (which == TAGGED && op.index == run->inject_at) {
			if (run->inject == INJECT_RESULT)
				twin.record->ret ^= 1;
			else if (run->inject == INJECT_BYTE)
				inject_byte(&op);
		}

		if (last || op.kind == OP_CHECK)
			scope = LOOK_DEEP;
		else if (run->list || !(op.index % all_every))
			scope = LOOK_ALL;
		else
			scope = LOOK_NEAR;
		look(&op, scope);

		if (last || i % BATCH == BATCH - 1) {
			if (write(twin.reply, "", 1) != 1 || read(twin.command, &byte, 1) != 1)
				break;
		}
	}
	_exit(0);
}

/*
 * The parent of the twins
 */

struct twin_process {
	pid_t pid;
	int reply;
	int command;
};

static bool start_twin(const struct run *run, enum twin which, struct twin_process *process)
{
	int reply[2], command[2];

	if (pipe(reply) || pipe(command))
		return false;
	process->pid = fork();
	if (process->pid < 0)
		return false;
	if (!process->pid) {
		twin.reply = reply[1];
		twin.command = command[0];
		close(reply[0]);
		close(command[1]);
		run_twin(run, which);
	}
	close(reply[1]);
	close(command[0]);
	process->reply = reply[0];
	process->command = command[1];
	return true;
}

static void stop_twin(struct twin_process *process)
{
	kill(process->pid, SIGKILL);
	waitpid(process->pid, NULL, 0);
	close(process->reply);
	close(process->command);
}

/* Wait until the twin has made its batch of calls. */
static bool await_twin(struct twin_process *process, enum twin which, int timeout,
		       struct failure *failure)
{
	struct pollfd pollfd = { .fd = process->reply, .events = POLLIN };
	int status = 0, ready;
	char byte;

	ready = poll(&pollfd, 1, timeout);
	if (ready == 1 && read(process->reply, &byte, 1) == 1)
		return true;

	failure->pos = load(&shared->progress[which]);
	if (ready != 1) {
		snprintf(failure->reason, sizeof(failure->reason), "the %s twin hangs",
			 twin_names[which]);
		return false;
	}
	waitpid(process->pid, &status, 0);
	if (WIFEXITED(status) && WEXITSTATUS(status) == EXIT_SETUP)
		ksft_exit_fail_msg("the %s twin failed to set up\n", twin_names[which]);
	snprintf(failure->reason, sizeof(failure->reason), "the %s twin died of signal %d",
		 twin_names[which], WTERMSIG(status));
	return false;
}

static void print_page(char *buf, unsigned int page)
{
	print_range(buf, page, 0, BASE_SIZE);
	*strchr(buf, ',') = 0;
}

static void print_attr(char *buf, uint32_t attr)
{
	if (!(attr & PG_MAPPED)) {
		sprintf(buf, "unmapped");
		return;
	}
	prot_name((attr & PG_READ ? PROT_READ : 0) | (attr & PG_WRITE ? PROT_WRITE : 0) |
		  (attr & PG_EXEC ? PROT_EXEC : 0), buf);
	sprintf(buf + 3, "%c, offset %#lx%s%s%s", attr & PG_SHARED ? 's' : 'p',
		(attr >> 16) * BASE_SIZE,
		attr & PG_START ? ", first of its VMA" : "", attr & PG_GUARD ? ", guard" : "",
		attr & PG_POPULATED ? ", populated" : "");
}

static bool same_page(uint32_t untagged, uint32_t tagged)
{
	if ((untagged ^ tagged) & PG_SAME)
		return false;
	if (untagged & PG_IN_CORE && tagged & PG_NOT_IN_CORE &&
	    (!have_swap || !(untagged & PG_SHARED)))
		return false;
	/* Of shared memory, page tables may be emptied at any time. */
	return untagged & PG_SHARED || !(untagged & PG_POPULATED) || tagged & PG_POPULATED;
}

/* Compare what the twins have got from one call. */
static bool same_record(const struct record *untagged, const struct record *tagged,
			char *reason, size_t size)
{
	char page[64], was[80], is[80];
	unsigned int i;

	if (untagged->ret != tagged->ret || untagged->err != tagged->err) {
		snprintf(reason, size, "another result");
		return false;
	}
	if (untagged->sig != tagged->sig || untagged->code != tagged->code ||
	    untagged->addr != tagged->addr) {
		snprintf(reason, size, "another fault");
		return false;
	}
	if (untagged->value != tagged->value) {
		snprintf(reason, size, "other bytes read, or other results within the step");
		return false;
	}
	if (untagged->kid != tagged->kid) {
		snprintf(reason, size, "a child has found something else");
		return false;
	}
	for (i = 0; i < NR_PAGES; i++) {
		if (same_page(untagged->attr[i], tagged->attr[i]))
			continue;
		print_page(page, i);
		print_attr(was, untagged->attr[i]);
		print_attr(is, tagged->attr[i]);
		snprintf(reason, size, "%s is %s; tagged: %s%s", page, was, is,
			 tagged->attr[i] & PG_NOT_IN_CORE ? ", not in core" : "");
		return false;
	}
	for (i = 0; i < NR_PAGES; i++) {
		if (!(untagged->attr[i] & tagged->attr[i] & PG_SUM) ||
		    untagged->sum[i] == tagged->sum[i])
			continue;
		print_page(page, i);
		snprintf(reason, size, "other bytes in %s%s%s", page,
			 untagged->sum[i] ? "" : ", which is zero",
			 tagged->sum[i] ? "" : ", tagged: zero");
		return false;
	}
	return true;
}

static void count_calls(const struct run *run, unsigned long pos, const struct record *record)
{
	struct op op;

	if (!run->counts)
		return;
	make_op(run->seed, run->list ? run->list[pos] : pos, 0, &op);
	run->counts[2 * op.kind]++;
	run->counts[2 * op.kind + 1] += record->err || record->sig;
}

static bool compare_batch(const struct run *run, unsigned long first, unsigned long nr,
			  struct failure *failure)
{
	const struct record *untagged, *tagged;
	unsigned long i;

	for (i = 0; i < nr; i++) {
		untagged = &shared->records[UNTAGGED][i];
		tagged = &shared->records[TAGGED][i];
		if (!same_record(untagged, tagged, failure->reason, sizeof(failure->reason))) {
			failure->pos = first + i;
			failure->records[UNTAGGED] = *untagged;
			failure->records[TAGGED] = *tagged;
			return false;
		}
		count_calls(run, first + i, tagged);
	}
	return true;
}

/* Have new twins make the calls of @run. Returns false if they differ. */
static bool run_twins(const struct run *run, struct failure *failure)
{
	struct twin_process processes[NR_TWINS];
	unsigned long first, nr;
	bool same = true;
	int which;

	memset(failure, 0, sizeof(*failure));
	memset(shared->progress, 0, sizeof(shared->progress));
	for (which = 0; which < NR_TWINS; which++) {
		if (!start_twin(run, which, &processes[which]))
			ksft_exit_fail_msg("cannot fork: %s\n", strerror(errno));
	}
	for (first = 0; same && first < run->nr; first += nr) {
		nr = run->nr - first < BATCH ? run->nr - first : BATCH;
		for (which = 0; same && which < NR_TWINS; which++)
			same = await_twin(&processes[which], which, run->timeout, failure);
		same = same && compare_batch(run, first, nr, failure);
		for (which = 0; same && which < NR_TWINS; which++) {
			if (write(processes[which].command, "", 1) != 1)
				break;
		}
	}
	for (which = 0; which < NR_TWINS; which++)
		stop_twin(&processes[which]);
	return same;
}

static double seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec + now.tv_nsec / 1e9;
}

/* Does the list still fail? If so, what comes after the call that fails goes. */
static bool still_fails(struct run *run, unsigned int *list, unsigned long *nr)
{
	struct failure failure;

	run->list = list;
	run->nr = *nr;
	if (run_twins(run, &failure))
		return false;
	*nr = failure.pos + 1;
	return true;
}

/*
 * Shrink the calls up to the one that has failed. @list has room for @nr of
 * them, and gets the calls that are left. Returns their number, or 0 if the
 * failure does not come back.
 */
static unsigned long shrink(const struct run *failed, unsigned int *list, unsigned long nr)
{
	unsigned int *trial = calloc(nr, sizeof(*trial));
	const double deadline = seconds() + SHRINK_SECONDS;
	struct run run = *failed;
	unsigned long chunk, first, len, left;
	bool shrunk;

	if (!trial)
		ksft_exit_fail_msg("no memory\n");
	run.timeout = SHRINK_SECONDS / 2 * 1000;
	run.counts = NULL;

	/* What is long ago does not often matter: how many of the last ones do? */
	for (len = 4;; len *= 4) {
		if (len > nr)
			len = nr;
		for (first = 0; first < len; first++)
			trial[first] = nr - len + first;
		left = len;
		if (still_fails(&run, trial, &left))
			break;
		if (len == nr || seconds() > deadline) {
			free(trial);
			return 0;
		}
	}
	memcpy(list, trial, left * sizeof(*list));

	/* Leave out one part after the other, in smaller and smaller parts. */
	for (chunk = (left + 1) / 2; chunk; chunk = shrunk && chunk == 1 ? 1 : chunk / 2) {
		shrunk = false;
		for (first = 0; first < left && left > 1 && seconds() < deadline;) {
			unsigned long end = first + chunk < left ? first + chunk : left;

			memcpy(trial, list, first * sizeof(*list));
			memcpy(trial + first, list + end, (left - end) * sizeof(*list));
			len = left - (end - first);
			if (len && still_fails(&run, trial, &len)) {
				left = len;
				memcpy(list, trial, left * sizeof(*list));
				shrunk = true;
			} else {
				first = end;
			}
		}
	}
	free(trial);
	return left;
}

static void print_record(enum twin which, const struct record *record)
{
	char fault[100] = "";

	if (record->sig)
		snprintf(fault, sizeof(fault), ", signal %d code %d address %#lx", record->sig,
			 record->code, record->addr);
	ksft_print_msg("  %-8s: ", twin_names[which]);
	printf(record->ret < 0 ? "%ld" : "%#lx", record->ret);
	printf("%s%s%s, value %016lx, child %016lx\n", record->err ? " " : "",
	       record->err ? strerror(record->err) : "", fault,
	       (unsigned long)record->value, (unsigned long)record->kid);
}

static void print_op(uint64_t seed, unsigned long index)
{
	char text[300];
	struct op op;

	make_op(seed, index, 0, &op);
	describe_op(&op, text, sizeof(text));
	ksft_print_msg("  %6lu: %s\n", index, text);
}

static void report(const struct run *run, const struct failure *failure)
{
	unsigned int *list = calloc(failure->pos + 1, sizeof(*list));
	struct failure last;
	struct run again;
	unsigned long i, nr;

	if (!list)
		ksft_exit_fail_msg("no memory\n");
	ksft_print_msg("seed %lu, call %lu: %s\n", (unsigned long)run->seed, failure->pos,
		       failure->reason);
	print_op(run->seed, failure->pos);
	for (i = 0; i < NR_TWINS; i++)
		print_record(i, &failure->records[i]);

	nr = shrink(run, list, failure->pos + 1);
	if (nr) {
		again = *run;
		again.list = list;
		again.nr = nr;
		again.counts = NULL;
		if (!run_twins(&again, &last)) {
			ksft_print_msg("shrunk to %lu calls: %s\n", nr, last.reason);
			for (i = 0; i < nr; i++)
				print_op(run->seed, list[i]);
			for (i = 0; i < NR_TWINS; i++)
				print_record(i, &last.records[i]);
		}
	} else {
		ksft_print_msg("not shrunk: it did not fail again in time\n");
	}
	ksft_print_msg("heap: %s, %s a granule\n", run->seed & 1 ? "continued" : "new",
		       run->seed & 2 ? "inside" : "at the start of");
	ksft_print_msg("repeat with: page_granule_diff --seed %lu --ops %lu --all %lu\n",
		       (unsigned long)run->seed, failure->pos + 1, all_every);
	free(list);
}

static void print_counts(const unsigned long *counts)
{
	unsigned int i;

	for (i = 0; i < NR_OP_KINDS; i++)
		ksft_print_msg("%-35s %7lu, failed %7lu\n", kinds[i].name, counts[2 * i],
			       counts[2 * i + 1]);
}

static void test_seed(uint64_t seed, unsigned long nr_ops, bool inject, unsigned long inject_at)
{
	static unsigned long counts[2 * NR_OP_KINDS];
	unsigned long faults = granule_vmstat("granule_fault");
	struct run run = {
		.seed = seed,
		.nr = nr_ops,
		.inject = inject ? INJECT_RESULT : INJECT_NOTHING,
		.inject_at = inject_at,
		.timeout = TWIN_TIMEOUT,
		.counts = counts,
	};
	const double start = seconds();
	struct failure failure;
	bool same;

	memset(counts, 0, sizeof(counts));
	same = run_twins(&run, &failure);
	if (verbose)
		print_counts(counts);
	if (!same) {
		report(&run, &failure);
	} else {
		ksft_print_msg("seed %lu: %.0f calls a second\n", (unsigned long)seed,
			       nr_ops / (seconds() - start));
		/* A twin that is not tagged is easily the same. */
		if (nr_ops >= 1000 && granule_vmstat("granule_fault") == faults) {
			ksft_print_msg("no granule was populated\n");
			same = false;
		}
	}
	ksft_test_result(same, "seed %lu, %lu calls\n", (unsigned long)seed, nr_ops);
}

/* Assert that a difference is found, and shrunk to no more than @most calls. */
static void test_detector(enum inject inject, unsigned long most, const char *name)
{
	const unsigned long at = 150;
	unsigned int list[400];
	struct failure failure;
	struct run run = {
		.seed = 1,
		.list = list,
		.nr = ARRAY_SIZE(list),
		.inject = inject,
		.inject_at = at,
		.timeout = TWIN_TIMEOUT,
	};
	unsigned long i, nr = 0;
	bool found = false;

	/* With a list, all pages are compared after each call. */
	for (i = 0; i < run.nr; i++)
		list[i] = i;
	if (!run_twins(&run, &failure)) {
		nr = shrink(&run, list, failure.pos + 1);
		for (i = 0; i < nr; i++)
			found |= list[i] == at;
		ksft_print_msg("call %lu: %s; shrunk to %lu calls\n", failure.pos,
			       failure.reason, nr);
	}
	ksft_test_result(found && failure.pos >= at && nr <= most, "%s is found\n", name);
}

/* Without swap there is a line of headings. */
static bool swap_on(void)
{
	unsigned int lines = 0;
	char line[256];
	FILE *fp;

	fp = fopen("/proc/swaps", "r");
	if (!fp)
		return false;
	while (fgets(line, sizeof(line), fp))
		lines++;
	fclose(fp);
	return lines > 1;
}

static bool arena_is_free(void)
{
	void *arena = (void *)(ARENA_ADDR - GRANULE_SIZE), *ptr;
	size_t len = HEAP_ADDR + HEAP_PAGES * BASE_SIZE - ARENA_ADDR + 2 * GRANULE_SIZE;

	ptr = mmap(arena, len, PROT_NONE, ANON_FLAGS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
	if (ptr != MAP_FAILED)
		munmap(ptr, len);
	return ptr == arena;
}

static bool parse_number(const char *text, unsigned long max, unsigned long *val)
{
	char *end;

	errno = 0;
	*val = strtoul(text, &end, 0);
	return !errno && *text >= '0' && *text <= '9' && !*end && *val <= max;
}

static int error(const char *msg)
{
	fprintf(stderr, "page_granule_diff: %s\n", msg);
	return KSFT_FAIL;
}

static void print_usage(void)
{
	printf("usage: page_granule_diff [--ops N] [--seed S] [--all N] [--inject N] [--verbose]\n"
	       "\n"
	       "Make random calls in a process with a default granule of 64 KiB and in one\n"
	       "without, and compare the results and the bytes after each. Run as root.\n"
	       "\n"
	       "  --ops N     calls to make for each seed (%lu)\n"
	       "  --seed S    use this seed only (1 to %lu)\n"
	       "  --all N     compare all pages after every Nth call, not only those that it\n"
	       "              was about (%lu)\n"
	       "  --inject N  falsify the result of call number N in one of the processes, to\n"
	       "              see that it is found\n"
	       "  --verbose   count the calls by kind\n"
	       "  --help      this text\n", DEFAULT_OPS, DEFAULT_SEEDS, DEFAULT_ALL);
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "ops", required_argument, NULL, 'o' },
		{ "seed", required_argument, NULL, 's' },
		{ "all", required_argument, NULL, 'a' },
		{ "inject", required_argument, NULL, 'i' },
		{ "verbose", no_argument, NULL, 'v' },
		{ "help", no_argument, NULL, 'h' },
		{ }
	};
	unsigned long nr_ops = DEFAULT_OPS, first = 1, nr_seeds = DEFAULT_SEEDS, inject_at = 0, i;
	bool inject = false;
	int opt;

	opterr = 0;
	while ((opt = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (opt) {
		case 'o':
			if (!parse_number(optarg, UINT32_MAX, &nr_ops) || !nr_ops)
				return error("--ops takes a number of calls, 1 or more");
			break;
		case 's':
			if (!parse_number(optarg, UINT64_MAX, &first))
				return error("--seed takes a number");
			nr_seeds = 1;
			break;
		case 'a':
			if (!parse_number(optarg, UINT32_MAX, &all_every) || !all_every)
				return error("--all takes a number of calls, 1 or more");
			break;
		case 'i':
			if (!parse_number(optarg, UINT32_MAX, &inject_at))
				return error("--inject takes the number of a call, from 0 on");
			inject = true;
			break;
		case 'v':
			verbose = true;
			break;
		case 'h':
			print_usage();
			return KSFT_PASS;
		default:
			return error("unknown option, or no value for it: see --help");
		}
	}
	if (optind < argc)
		return error("takes options only: see --help");
	if (inject && inject_at >= nr_ops)
		return error("--inject needs a call number below that of --ops");

	ksft_print_header();
	granule_require();
	granule_save_settings();
	granule_thp_never();
	have_swap = swap_on();
	if (!arena_is_free())
		ksft_exit_fail_msg("the addresses from %#lx on are in use\n", ARENA_ADDR);
	shared = mmap(NULL, sizeof(*shared), PROT_RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (shared == MAP_FAILED)
		ksft_exit_fail_msg("no memory\n");

	ksft_set_plan(2 + nr_seeds);
	test_detector(INJECT_RESULT, 1, "a wrong result");
	test_detector(INJECT_BYTE, 4, "a wrong byte");
	for (i = 0; i < nr_seeds; i++)
		test_seed(first + i, nr_ops, inject, inject_at);
	ksft_finished();
}
