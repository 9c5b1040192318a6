/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The files of page_granule_diff share this: see page_granule_diff.c.
 */
#ifndef __PAGE_GRANULE_DIFF_H__
#define __PAGE_GRANULE_DIFF_H__

#include "page_granule_fs.h"
#include "page_granule_util.h"

/*
 * The arena has the bound between two page tables in its middle. It is far from
 * anything else, so that nothing meets it that it could merge with.
 */
#define ARENA_PAGES	256UL
#define ARENA_ADDR	(0x1000000000UL + (2UL << 20) - ARENA_PAGES / 2 * BASE_SIZE)
#define HEAP_PAGES	64UL
#define HEAP_ADDR	0x1800000000UL
#define NR_PAGES	(ARENA_PAGES + HEAP_PAGES)
/* Where a file is mapped for the second time, for a step */
#define SECOND_ADDR	0x2000000000UL

#define FILE_PAGES	ARENA_PAGES
#define FILE_MAX_PAGES	(2 * FILE_PAGES)	/* it is cut when it is longer */

#define DEFAULT_OPS	5000UL
#define DEFAULT_SEEDS	4UL
#define DEFAULT_FILE_OPS 1000UL	/* for each file system and way to map it */

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
	/* For files only */
	OP_FILE_WRITE,
	OP_FILE_READ,
	OP_FILE_LENGTH,
	OP_FILE_SPACE,
	OP_FILE_SYNC,
	OP_FILE_ADVISE,
	OP_FILE_TWICE,
	NR_OP_KINDS,
	NR_MEMORY_KINDS = OP_FILE_WRITE,
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
	[OP_FILE_WRITE]		= { "pwrite(2) to the file", 60 },
	[OP_FILE_READ]		= { "pread(2) of the file", 30 },
	[OP_FILE_LENGTH]	= { "ftruncate", 24 },
	[OP_FILE_SPACE]		= { "fallocate", 30 },
	[OP_FILE_SYNC]		= { "fsync", 20 },
	[OP_FILE_ADVISE]	= { "posix_fadvise", 30 },
	[OP_FILE_TWICE]		= { "mmap twice", 30 },
};

/* How OP_WRITE and OP_READ go about it. */
enum access {
	ACCESS_BYTE,
	ACCESS_STRADDLE,	/* a word, over the bound of two pages */
	ACCESS_RANGE,
	ACCESS_TOUCH,		/* one byte of each page */
	NR_ACCESSES,
};

struct op {
	enum op_kind kind;
	unsigned long index;
	unsigned int page;	/* of the windows, see page_addr() */
	unsigned int nr;	/* pages */
	unsigned int to;	/* page that mremap moves to */
	unsigned int to_nr;
	unsigned int offset;	/* page of the file */
	unsigned int skew;	/* bytes into the page at which it starts */
	unsigned int trim;	/* bytes that are missing from the last page */
	int prot;
	int flags;
	uint64_t key;
};

/* The state of a page after a step. */
#define PG_MAPPED	0x001
#define PG_READ		0x002
#define PG_WRITE	0x004
#define PG_EXEC		0x008
#define PG_SHARED	0x010
#define PG_START	0x020	/* first page of its VMA */
#define PG_GUARD	0x040
#define PG_FILE		0x800	/* mapped from the file */
#define PG_SAME		0xffff087f	/* the bits that must be the same for twins */
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

struct shared {
	unsigned long progress[NR_TWINS];	/* steps that were begun */
	struct record records[NR_TWINS][BATCH];
};

/* A fault that the detector is tested with: twin TAGGED misreports a step. */
enum inject {
	INJECT_NOTHING,
	INJECT_RESULT,
	INJECT_BYTE,
};

#define NO_FILES	-1

/* A sequence of calls. */
struct run {
	uint64_t seed;
	int fs;				/* enum granule_fs, or NO_FILES */
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

/* page_granule_diff.c */
extern struct shared *shared;
extern unsigned long heap_addr;
extern unsigned long all_every;
uint64_t mix(uint64_t x);
unsigned int below(uint64_t *state, unsigned int limit);
unsigned long page_addr(unsigned int page);
unsigned int clamp_nr(unsigned int page, unsigned int nr);
void make_op(const struct run *run, unsigned long index, unsigned int kid, struct op *op);
char *op_addr(const struct op *op);
size_t op_len(const struct op *op);

/* page_granule_diff_twin.c */
void __noreturn run_twin(const struct run *run, enum twin which, int command, int reply);

#endif /* __PAGE_GRANULE_DIFF_H__ */
