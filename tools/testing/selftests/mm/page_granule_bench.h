/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The files of page_granule_bench share this.
 */
#ifndef __PAGE_GRANULE_BENCH_H__
#define __PAGE_GRANULE_BENCH_H__

#include "hugepage_settings.h"
#include "page_granule_util.h"

#define MAX_REPEAT	99
#define MAX_PAGEOUT	10
#define MAX_THREADS	64
#define HUGETLB_SYSFS	"/sys/kernel/mm/hugepages/hugepages-64kB"
#define MAX_EVENTS	16
#define FREE_PART	5	/* when fragmented, one in that many pages is free */
#define FREE_SLACK	400	/* give or take one in that many of all */
#define MAX_ROUNDS	4
#define MAX_IN_VAIN	256	/* compaction is deferred for up to 64 */
#define REPAIR_SECONDS	10U
#define SETTLE_USECONDS	(50 * 1000)

/*
 * The stages: those of a life, in its order, and some that are no part of it.
 */
enum stage_id {
	FIRST_TOUCH,
	FORK,
	COW,
	PAGEOUT,
	SWAP_IN,
	MPROTECT,
	MREMAP,
	DONTNEED,
	ZERO_READ,
	WRITE_AFTER_READ,
	MUNMAP,
	NR_LIFE,
	SPARSE_TOUCH = NR_LIFE,
	FILE_COLD,
	FILE_WARM,
	FILE_MUNMAP,
	TEXT_COLD,
	TEXT_WARM,
	FILE_COPY,
	FILE_COPY_MAPPED,
	FILE_WRITE,
	FILE_SYNC,
	FILE_REWRITE,
	NR_STAGES,
	UNTOUCHED = NR_STAGES,
};

/* How a stage leaves memory that can be whole. */
enum leaves {
	LEAVES_NOTHING,
	LEAVES_MEMORY,
	LEAVES_ZEROES,
};

struct result {
	unsigned long ns;
	unsigned long faults;
	unsigned long whole;
	unsigned long granules;
	unsigned long rss_kb;
	unsigned long events[MAX_EVENTS];
};

/* Which pages the memory is made of. */
struct config {
	const char *name;
	long page_size;		/* of the kernels that can be asked for it */
	unsigned int thp_order;	/* 0: THP never */
	enum granule_kind kind;
	bool hugetlb;
};

enum config_id {
	CONFIG_4K,
	CONFIG_MTHP,
	CONFIG_HUGETLB,
	CONFIG_GRANULE,
	CONFIG_64K,
	NR_CONFIGS,
};

/* Shared memory, in which the measuring process reports to its parent. */
struct report {
	struct result results[NR_STAGES];
	char smaps[1024];	/* lines of the granule VMA, from the last stage */
};

struct bench {
	unsigned long mib;
	unsigned int repeat;
	unsigned int threads;
	FILE *json;		/* NULL: not wanted */
	bool tables;
	bool swap;
	int file;		/* what is mapped for the stages of files, or -1 */
	int pagemap;
	struct report *report;
	const char *missing[NR_CONFIGS]; /* why not to measure one, or NULL */
};

/* The parts to run. */
struct job {
	const struct stage *stage;
	const struct fragment *fragment;
	bool all;
	bool life;
	bool ceiling;
};

/* Memory that goes through stages, in address space of its own. */
struct mem {
	char *base;		/* all of the address space */
	size_t reserved;
	char *area;		/* NULL once it is unmapped */
	size_t len;
	char *elsewhere;	/* as much room, for mremap() to move to */
	pid_t child;		/* what fork() has made, or 0 */
};

struct stage {
	const char *name;
	const char *what;
	enum stage_id from;	/* the stage that leaves what this one starts from */
	bool (*run)(struct mem *mem);
	enum leaves leaves;
	int file_prot;		/* to map a file with, or 0 */
	bool file_shared;	/* how it is mapped */
	bool unmaps;		/* the memory first, which stays in the page cache */
};

/* The median run of each stage, and how far from it the others are. */
struct summary {
	struct result median;
	unsigned long ns_min;
	unsigned long ns_max;
	bool valid;
};

struct filler_kind {
	const char *name;
	const char *what;
	const char *compact;	/* vm.compact_unevictable_allowed */
	enum thp_defrag defrag;	/* for blocks to fill what is left */
};

/* By default, mTHP does nothing to get a block; it can be told to. */
struct fragment {
	const char *name;
	const struct filler_kind *filler;
	const char *config_name;
	enum config_id config;
	enum thp_defrag defrag;
};

/* page_granule_bench.c */
extern const struct config configs[NR_CONFIGS];
extern const struct stage stages[NR_STAGES];

void touch(char *area, size_t len);
bool do_dontneed(struct mem *mem);
int error(const char *what);
bool mem_create(struct mem *mem, const struct config *config, size_t len);
void mem_destroy(struct mem *mem);
bool run_stage(const struct bench *bench, const struct stage *stage,
	       struct mem *mem, struct result *res);
void summarize(struct result *runs, unsigned int nr, struct summary *sum);
void select_config(const struct bench *bench, const struct config *config);
bool failed(const struct config *config, const char *what);
void run_alone(bool alone);

/* page_granule_fragment.c */
#define NR_FRAGMENTS	7
extern const struct fragment fragments[NR_FRAGMENTS];

bool bench_fragment(const struct bench *bench, const struct fragment *fragment);

#endif /* __PAGE_GRANULE_BENCH_H__ */
