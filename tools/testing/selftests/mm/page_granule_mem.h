/* SPDX-License-Identifier: GPL-2.0 */
/*
 * An area of granules with a model: see page_granule_mem.c.
 */
#ifndef __PAGE_GRANULE_MEM_H__
#define __PAGE_GRANULE_MEM_H__

#include <pthread.h>
#include "page_granule_util.h"

#define MEM_GRANULES	16
#define MEM_PAGES	(MEM_GRANULES * GRANULE_NR_PAGES)

#define FEW_GRANULES	8UL
#define FEW_PAGES	(FEW_GRANULES * GRANULE_NR_PAGES)

#define NO_DIFF		(-1L)

/* The target: the granule, and the page of it, that tests act on. */
#define TARGET		3UL
#define TARGET_PAGE	(TARGET * GRANULE_NR_PAGES + 5)

/* An area of whole granules, its model, and the pages that tests act on. */
struct mem {
	enum granule_kind kind;
	unsigned long nr;		/* granules */
	char *area;
	char *model;
	int pagemap;
	unsigned long first;
	unsigned long end;
};

/* All of it is whole, and as it should be. */
#define EXPECT_INTACT(mem) do { \
	EXPECT_EQ(mem_whole(mem), (mem)->nr); \
	EXPECT_EQ(mem_mapped(mem), (mem)->nr); \
	EXPECT_EQ(mem_diff(mem), NO_DIFF); \
} while (0)

/* All of it is there, in whatever pages, and as it should be. */
#define EXPECT_PRESENT(mem) do { \
	EXPECT_EQ(mem_present(mem), mem_pages(mem)); \
	EXPECT_EQ(mem_diff(mem), NO_DIFF); \
} while (0)

/* One fault for each granule; more only if the test itself needs a page. */
#define EXPECT_FAULTS(faults, nr) do { \
	EXPECT_GE(faults, (long)(nr)); \
	EXPECT_LE(faults, (long)(nr) + FAULT_SLACK); \
} while (0)

/* Nothing is missing but pages of the target, and nothing is wrong. */
#define EXPECT_LOST(mem, first, end) do { \
	EXPECT_TRUE(mem_holds_but(mem, first, end)); \
	EXPECT_EQ(mem_others_whole(mem), (mem)->nr - 1); \
} while (0)

/* A broken granule can always be repaired if all its pages are present. */
#define EXPECT_REPAIRED(mem) do { \
	EXPECT_EQ(madvise((mem)->area, mem_len(mem), MADV_COLLAPSE), 0); \
	EXPECT_INTACT(mem); \
} while (0)

enum access { ACCESS_READ, ACCESS_WRITE, ACCESS_NR };

#define REPAIR_REMEDY	"no control of the repair: mount debugfs"
#define REPAIR_SECONDS	20

/* Pins. The range begins and ends inside a granule. */
#define PIN_FIRST	5UL

#define RECLAIM_REMEDY \
	"no memory.reclaim: mount cgroup2, with memory in cgroup.subtree_control"

/* Fails if it could not reclaim as much, which does not matter. */
#define RECLAIM_ALL	"4M swappiness=max"

/*
 * Parent and child take turns. Both have all of the harness: the child's
 * expectations count for the test.
 */
struct peer {
	pid_t pid;
	int in;
	int out;
};

/*
 * Threads that write to pages of their own of all granules, and one that reads.
 */
#define STORM_WRITERS	4

struct storm {
	struct mem *mem;
	pthread_barrier_t start;
	pthread_barrier_t done;
	bool stop;
	char value;	/* the value that they write, one more than the old one */
	unsigned long wrong;
	struct storm_thread {
		pthread_t thread;
		struct storm *storm;
		unsigned int id;
	} threads[STORM_WRITERS + 1];
};

size_t mem_len(const struct mem *mem);
unsigned long mem_pages(const struct mem *mem);
char *mem_target(const struct mem *mem);
char *mem_unit(const struct mem *mem);
size_t mem_unit_len(const struct mem *mem);
bool mem_create_nr(struct mem *mem, enum granule_kind kind, unsigned long nr);
bool mem_create(struct mem *mem, enum granule_kind kind);
bool mem_renew(struct mem *mem);
bool mem_share(struct mem *mem);
void mem_fill(struct mem *mem, unsigned int seed);
void mem_read(struct mem *mem);
long mem_write(struct mem *mem, char value);
long mem_write_pages(struct mem *mem, char value);
void mem_write_but(struct mem *mem, unsigned long first, unsigned long end,
		   char value);
long mem_diff(const struct mem *mem);
bool mem_holds_but(const struct mem *mem, unsigned long first,
		   unsigned long end);
bool mem_holds(const struct mem *mem);
void mem_zero_unit(struct mem *mem);
unsigned long mem_whole(const struct mem *mem);
unsigned long mem_mapped(const struct mem *mem);
unsigned long mem_others_whole(const struct mem *mem);
unsigned long mem_count(const struct mem *mem, __u64 bits);
unsigned long mem_zero_runs(const struct mem *mem);
unsigned long mem_present(const struct mem *mem);
unsigned long mem_swapped(const struct mem *mem);
void mem_pfns(const struct mem *mem, unsigned long *pfns);
unsigned long mem_moved(const struct mem *mem, const unsigned long *pfns,
			unsigned long first, unsigned long end);
unsigned long soft_dirty_pages(struct mem *mem, unsigned long granule);
unsigned long to_be_split(void);
unsigned long swapped_whole(void);
unsigned long refused(const struct mem *mem, unsigned long first,
		      unsigned long end, enum access access, int sig);
unsigned long all_refused(const struct mem *mem, enum access access, int sig);
bool mem_page_out(struct mem *mem);
bool mem_write_out(struct mem *mem);
bool join_cgroup(struct granule_cg *cg);
bool shared_page_out(const struct granule_cg *cg, struct mem *mem);
void lru_settle(void);
int mem_collapse(struct mem *mem);
char *mem_single_granule(const struct mem *mem);
bool mem_wait_whole(struct mem *mem, unsigned int seconds);
int move_to_node(struct mem *mem, int node);
int pin(int fd, struct mem *mem, unsigned long first, unsigned long end,
	unsigned int flags);
bool pin_sees(int fd, struct mem *mem, unsigned long first, unsigned long end);
pid_t mem_fork(struct mem *mem);
bool peer_fork(struct peer *peer, struct mem *mem);
void peer_go(struct peer *peer);
bool peer_wait(struct peer *peer);
bool peer_switch(struct peer *peer);
bool peer_end(struct peer *peer);
bool peer_fork_idle(struct peer *peer, struct mem *mem);
bool storm_create(struct storm *storm, struct mem *mem);
void storm_round(struct storm *storm);
unsigned long storm_end(struct storm *storm);

#endif /* __PAGE_GRANULE_MEM_H__ */
