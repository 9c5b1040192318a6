// SPDX-License-Identifier: GPL-2.0
/*
 * Page granule: what was populated whole stays whole for the life of a process.
 * Fork and copy-on-write, pins, swap, and what moves or protects memory.
 *
 * Each test keeps a model of its area: untagged memory that the same is done to.
 * At each stage all granules are to be whole and to hold what the model holds.
 */
#define _GNU_SOURCE
#include "kselftest_harness.h"
#include <asm-generic/mman.h> /* Force the import of the tools version. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/fs.h>
#include <linux/mempolicy.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../../../../mm/gup_test.h"
#include "hugepage_settings.h"
#include "vm_util.h"
#include "page_granule_util.h"

#define NR_GRANULES	16
#define MAX_PAGES	(NR_GRANULES * GRANULE_NR_PAGES)

#define NO_DIFF		(-1L)

/* An area of whole granules, and its model. */
struct mem {
	enum granule_kind kind;
	unsigned long nr;
	char *area;
	char *model;
	int pagemap;
};

static size_t mem_len(const struct mem *mem)
{
	return mem->nr * GRANULE_SIZE;
}

static unsigned long mem_pages(const struct mem *mem)
{
	return mem->nr * GRANULE_NR_PAGES;
}

static bool mem_create_nr(struct mem *mem, enum granule_kind kind, unsigned long nr)
{
	char *res;

	mem->kind = kind;
	mem->nr = nr;
	mem->pagemap = granule_open_pagemap();
	if (mem->pagemap < 0 || granule_set_enabled(true) ||
	    granule_set(PR_GRANULE_MMAP, BASE_SIZE))
		return false;
	granule_thp_never();
	mem->model = granule_mmap(GRANULE_UNTAGGED, NULL, mem_len(mem), PROT_RW, 0);
	res = granule_reserve(mem_len(mem));
	if (mem->model == MAP_FAILED || !res)
		return false;
	mem->area = granule_mmap(kind, res, mem_len(mem), PROT_RW, MAP_FIXED);
	return mem->area == res;
}

static bool mem_create(struct mem *mem, enum granule_kind kind)
{
	return mem_create_nr(mem, kind, NR_GRANULES);
}

/* The same again with nothing in it, for a test that has several rounds. */
static bool mem_renew(struct mem *mem)
{
	memset(mem->model, 0, mem_len(mem));
	return granule_mmap(mem->kind, mem->area, mem_len(mem), PROT_RW, MAP_FIXED) ==
	       mem->area;
}

static void mem_fill(struct mem *mem, unsigned int seed)
{
	granule_fill(mem->area, mem_len(mem), seed);
	granule_fill(mem->model, mem_len(mem), seed);
}

static void mem_read(struct mem *mem)
{
	unsigned long i;

	for (i = 0; i < mem->nr; i++)
		FORCE_READ(*byte_of(mem->area, i));
}

/*
 * Zero runs. The page tables of what has never been written to are not copied by
 * fork; so write, and give back what that was.
 */
static bool mem_zero(struct mem *mem)
{
	if (!mem_renew(mem))
		return false;
	mem->area[0] = 1;
	if (madvise(mem->area, mem_len(mem), MADV_DONTNEED))
		return false;
	mem_read(mem);
	return true;
}

/* Write one byte of each granule, then the model. Returns the faults it took. */
static long mem_write(struct mem *mem, char value)
{
	long faults = minor_faults();
	unsigned long i;

	for (i = 0; i < mem->nr; i++)
		*byte_of(mem->area, i) = value;
	faults = minor_faults() - faults;
	for (i = 0; i < mem->nr; i++)
		*byte_of(mem->model, i) = value;
	return faults;
}

/* The same for a byte of every page. */
static long mem_write_pages(struct mem *mem, char value)
{
	long faults = minor_faults();
	unsigned long i;

	for (i = 0; i < mem_pages(mem); i++)
		mem->area[i * BASE_SIZE + i] = value;
	faults = minor_faults() - faults;
	for (i = 0; i < mem_pages(mem); i++)
		mem->model[i * BASE_SIZE + i] = value;
	return faults;
}

/* Where the area first differs from its model. Reads all, so do it last. */
static long mem_diff(const struct mem *mem)
{
	size_t pos;

	if (!memcmp(mem->area, mem->model, mem_len(mem)))
		return NO_DIFF;
	for (pos = 0; mem->area[pos] == mem->model[pos]; pos++)
		;
	return pos;
}

static unsigned long mem_whole(const struct mem *mem)
{
	return granule_count(mem->pagemap, mem->area, mem_len(mem), GRANULE_WHOLE);
}

/* By smaps: these have to agree in permission and software bits, too. */
static unsigned long mem_mapped(const struct mem *mem)
{
	return granule_mapped_kb(mem->area, mem_len(mem)) / (GRANULE_SIZE / 1024);
}

static unsigned long mem_zero_runs(const struct mem *mem)
{
	unsigned long i, nr = 0;

	for (i = 0; i < mem->nr; i++)
		nr += granule_is_zero_run(mem->pagemap, nth(mem->area, i));
	return nr;
}

static unsigned long mem_present(const struct mem *mem)
{
	return granule_present_pages(mem->pagemap, mem->area, mem_len(mem));
}

static unsigned long mem_swapped(const struct mem *mem)
{
	unsigned long i, nr = 0;

	for (i = 0; i < mem_pages(mem); i++)
		nr += pagemap_is_swapped(mem->pagemap, mem->area + i * BASE_SIZE);
	return nr;
}

static void mem_pfns(const struct mem *mem, unsigned long *pfns)
{
	unsigned long i;

	for (i = 0; i < mem_pages(mem); i++)
		pfns[i] = pagemap_get_pfn(mem->pagemap, mem->area + i * BASE_SIZE);
}

/* How many of the pages [first, end) are elsewhere than they were? */
static unsigned long mem_moved(const struct mem *mem, const unsigned long *pfns,
			       unsigned long first, unsigned long end)
{
	unsigned long i, nr = 0;

	for (i = first; i < end; i++)
		nr += pagemap_get_pfn(mem->pagemap, mem->area + i * BASE_SIZE) != pfns[i];
	return nr;
}

/*
 * Folios of 64 KiB that wait to be split because part of them is not mapped. No
 * page of a granule that stays whole may bring its folio there: it would be split
 * by the next migration or by reclaim.
 */
#define STATS_64KB	"/sys/kernel/mm/transparent_hugepage/hugepages-64kB/stats/"

static unsigned long to_be_split(void)
{
	return read_num(STATS_64KB "nr_anon_partially_mapped");
}

/* Folios of 64 KiB that have been swapped out as such. */
static unsigned long swapped_whole(void)
{
	return read_num(STATS_64KB "swpout") + read_num(STATS_64KB "zswpout");
}

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

/*
 * Parent and child take turns. Both have the whole of the harness: what a child
 * expects counts for the test.
 */
struct peer {
	pid_t pid;
	int in;
	int out;
};

/* Returns in both, with a pid of 0 in the child. */
static bool peer_fork(struct peer *peer, struct mem *mem)
{
	int down[2], up[2];

	if (pipe(down) || pipe(up))
		return false;
	peer->pid = fork();
	if (peer->pid < 0)
		return false;
	peer->in = peer->pid ? up[0] : down[0];
	peer->out = peer->pid ? down[1] : up[1];
	close(peer->pid ? up[1] : down[1]);
	close(peer->pid ? down[0] : up[0]);
	if (!peer->pid) {
		close(mem->pagemap);
		mem->pagemap = granule_open_pagemap();
	}
	return true;
}

static void peer_go(struct peer *peer)
{
	if (write(peer->out, "", 1) != 1)
		_exit(1);
}

/* Wait for one's turn; false if the other one is gone. */
static bool peer_wait(struct peer *peer)
{
	char c;

	return read(peer->in, &c, 1) == 1;
}

static bool peer_switch(struct peer *peer)
{
	peer_go(peer);
	return peer_wait(peer);
}

/* In the parent: let the child do the last it has to do, if any, and exit. */
static bool peer_end(struct peer *peer)
{
	int status;

	close(peer->out);
	if (waitpid(peer->pid, &status, 0) != peer->pid)
		return false;
	close(peer->in);
	return WIFEXITED(status) && !WEXITSTATUS(status);
}

/* A child that does nothing but share, until peer_end(). */
static bool peer_fork_idle(struct peer *peer, struct mem *mem)
{
	if (!peer_fork(peer, mem))
		return false;
	if (!peer->pid) {
		peer_wait(peer);
		_exit(0);
	}
	return true;
}

/* Fork and copy-on-write. */
FIXTURE(page_granule_cow)
{
	struct mem mem;
	struct peer peer;
	unsigned long pfns[MAX_PAGES];
};

FIXTURE_VARIANT(page_granule_cow)
{
	enum granule_kind kind;
};

FIXTURE_VARIANT_ADD(page_granule_cow, contract)
{
	.kind = GRANULE_CONTRACT,
};

FIXTURE_VARIANT_ADD(page_granule_cow, default_tagged)
{
	.kind = GRANULE_DEFAULT,
};

FIXTURE_SETUP(page_granule_cow)
{
	ASSERT_TRUE(mem_create(&self->mem, variant->kind));
	mem_fill(&self->mem, 1);
}

FIXTURE_TEARDOWN(page_granule_cow)
{
	EXPECT_TRUE(granule_invariants_hold());
}

/* Assert that a child that writes gets whole granules, by one fault each. */
TEST_F(page_granule_cow, child_writes)
{
	unsigned long cow = granule_vmstat("granule_cow");
	unsigned long fallback = granule_vmstat("granule_fallback");
	unsigned long partial = to_be_split();
	struct mem *mem = &self->mem;

	ASSERT_NE(cow, ULONG_MAX);
	ASSERT_TRUE(peer_fork(&self->peer, mem));
	if (!self->peer.pid) {
		long faults;

		EXPECT_INTACT(mem);
		faults = mem_write(mem, 2);
		EXPECT_FAULTS(faults, mem->nr);
		EXPECT_INTACT(mem);
		EXPECT_LE(mem_write_pages(mem, 3), FAULT_SLACK);
		EXPECT_INTACT(mem);
		/* Until the parent has seen that both are whole at once. */
		peer_switch(&self->peer);
		EXPECT_INTACT(mem);
		_exit(0);
	}
	ASSERT_TRUE(peer_wait(&self->peer));
	EXPECT_EQ(granule_vmstat("granule_cow") - cow, mem->nr);
	EXPECT_EQ(granule_vmstat("granule_fallback"), fallback);
	EXPECT_EQ(to_be_split(), partial);
	EXPECT_INTACT(mem);
	EXPECT_TRUE(peer_end(&self->peer));
	EXPECT_INTACT(mem);
}

/* Assert that a parent that writes first leaves the child the old granules. */
TEST_F(page_granule_cow, parent_writes)
{
	unsigned long cow = granule_vmstat("granule_cow");
	struct mem *mem = &self->mem;
	long faults;

	ASSERT_TRUE(peer_fork(&self->peer, mem));
	if (!self->peer.pid) {
		mem_pfns(mem, self->pfns);
		if (!peer_switch(&self->peer))
			_exit(1);
		EXPECT_INTACT(mem);
		/* It has them to itself now: no copy. */
		mem_write_pages(mem, 4);
		EXPECT_EQ(mem_moved(mem, self->pfns, 0, mem_pages(mem)), 0);
		EXPECT_INTACT(mem);
		_exit(0);
	}
	ASSERT_TRUE(peer_wait(&self->peer));
	faults = mem_write(mem, 2);
	EXPECT_FAULTS(faults, mem->nr);
	EXPECT_INTACT(mem);
	peer_go(&self->peer);
	EXPECT_TRUE(peer_end(&self->peer));
	EXPECT_LE(mem_write_pages(mem, 3), FAULT_SLACK);
	EXPECT_INTACT(mem);
	EXPECT_EQ(granule_vmstat("granule_cow") - cow, mem->nr);
}

/* Assert that what is no longer shared is reused in place, by one fault each. */
TEST_F(page_granule_cow, reuse_after_exit)
{
	unsigned long cow = granule_vmstat("granule_cow");
	struct mem *mem = &self->mem;
	long faults;

	mem_pfns(mem, self->pfns);
	ASSERT_TRUE(peer_fork_idle(&self->peer, mem));
	ASSERT_TRUE(peer_end(&self->peer));
	EXPECT_INTACT(mem);
	faults = mem_write(mem, 2);
	EXPECT_FAULTS(faults, mem->nr);
	EXPECT_EQ(mem_moved(mem, self->pfns, 0, mem_pages(mem)), 0);
	EXPECT_INTACT(mem);
	EXPECT_LE(mem_write_pages(mem, 3), FAULT_SLACK);
	EXPECT_EQ(mem_moved(mem, self->pfns, 0, mem_pages(mem)), 0);
	EXPECT_INTACT(mem);
	EXPECT_EQ(granule_vmstat("granule_cow"), cow);
}

/* Each generation writes every third granule, then all when those after it have. */
static void generation(struct __test_metadata *_metadata, struct mem *mem, int depth)
{
	struct peer peer;
	unsigned long i;

	for (i = depth; i < mem->nr; i += 3) {
		granule_fill(nth(mem->area, i), GRANULE_SIZE, 10 + depth);
		granule_fill(nth(mem->model, i), GRANULE_SIZE, 10 + depth);
	}
	EXPECT_INTACT(mem);
	if (depth == 3)
		return;
	ASSERT_TRUE(peer_fork(&peer, mem));
	if (!peer.pid) {
		generation(_metadata, mem, depth + 1);
		_exit(0);
	}
	EXPECT_TRUE(peer_end(&peer));
	EXPECT_INTACT(mem);
	mem_write(mem, 20 + depth);
	EXPECT_INTACT(mem);
}

/* Assert that four generations, all alive, each have their own whole granules. */
TEST_F(page_granule_cow, generations)
{
	generation(_metadata, &self->mem, 0);
}

/* Assert that a parent and two children that share one folio get a copy each. */
TEST_F(page_granule_cow, siblings)
{
	struct mem *mem = &self->mem;
	struct peer peers[2];
	int i;

	for (i = 0; i < 2; i++) {
		ASSERT_TRUE(peer_fork(&peers[i], mem));
		if (peers[i].pid)
			continue;
		peer_wait(&peers[i]);
		mem_write(mem, 2 + i);
		EXPECT_INTACT(mem);
		_exit(0);
	}
	mem_write_pages(mem, 9);
	EXPECT_INTACT(mem);
	for (i = 0; i < 2; i++) {
		peer_go(&peers[i]);
		EXPECT_TRUE(peer_end(&peers[i]));
		EXPECT_INTACT(mem);
	}
}

/*
 * Assert that mprotect() to read-only and back makes nothing writable that is
 * shared, in the parent or in the child.
 */
TEST_F(page_granule_cow, mprotect_there_and_back)
{
	struct mem *mem = &self->mem;
	int child;

	for (child = 0; child < 2; child++) {
		ASSERT_TRUE(mem_renew(mem));
		mem_fill(mem, child);
		ASSERT_TRUE(peer_fork(&self->peer, mem));
		if (!!self->peer.pid != child) {
			EXPECT_EQ(mprotect(mem->area, mem_len(mem), PROT_READ), 0);
			EXPECT_INTACT(mem);
			EXPECT_EQ(mprotect(mem->area, mem_len(mem), PROT_RW), 0);
			EXPECT_INTACT(mem);
			mem_write(mem, 5);
			EXPECT_INTACT(mem);
		}
		if (!self->peer.pid) {
			peer_switch(&self->peer);
			EXPECT_INTACT(mem);
			_exit(0);
		}
		ASSERT_TRUE(peer_wait(&self->peer));
		EXPECT_INTACT(mem);
		ASSERT_TRUE(peer_end(&self->peer));
		mem_write_pages(mem, 6);
		EXPECT_INTACT(mem);
	}
}

/* Assert that a child that may only read keeps whole granules of old contents. */
TEST_F(page_granule_cow, read_only_child)
{
	struct mem *mem = &self->mem;

	ASSERT_TRUE(peer_fork(&self->peer, mem));
	if (!self->peer.pid) {
		EXPECT_EQ(mprotect(mem->area, mem_len(mem), PROT_READ), 0);
		EXPECT_INTACT(mem);
		if (!peer_switch(&self->peer))
			_exit(1);
		/* The parent has written. */
		EXPECT_INTACT(mem);
		EXPECT_EQ(mprotect(mem->area, mem_len(mem), PROT_RW), 0);
		mem_write(mem, 3);
		EXPECT_INTACT(mem);
		_exit(0);
	}
	ASSERT_TRUE(peer_wait(&self->peer));
	mem_write(mem, 2);
	EXPECT_INTACT(mem);
	peer_go(&self->peer);
	EXPECT_TRUE(peer_end(&self->peer));
	EXPECT_INTACT(mem);
}

/* Assert that zero runs are still zero runs in both, and replaced in each. */
TEST_F(page_granule_cow, zero_runs)
{
	struct mem *mem = &self->mem;
	unsigned long cow;
	long faults;

	ASSERT_TRUE(mem_zero(mem));
	ASSERT_EQ(mem_zero_runs(mem), mem->nr);
	cow = granule_vmstat("granule_cow");
	ASSERT_TRUE(peer_fork(&self->peer, mem));
	if (!self->peer.pid) {
		EXPECT_EQ(mem_zero_runs(mem), mem->nr);
		/* Zeroes are no memory that is mapped. */
		EXPECT_EQ(mem_mapped(mem), 0);
		faults = minor_faults();
		mem_read(mem);
		EXPECT_LE(minor_faults() - faults, FAULT_SLACK);
		faults = mem_write(mem, 2);
		EXPECT_FAULTS(faults, mem->nr);
		EXPECT_INTACT(mem);
		_exit(0);
	}
	EXPECT_TRUE(peer_end(&self->peer));
	EXPECT_EQ(mem_zero_runs(mem), mem->nr);
	EXPECT_EQ(mem_mapped(mem), 0);
	EXPECT_EQ(granule_rss_kb(mem->area, mem_len(mem)), 0);
	EXPECT_EQ(mem_diff(mem), NO_DIFF);
	faults = mem_write(mem, 3);
	EXPECT_FAULTS(faults, mem->nr);
	EXPECT_EQ(mem_zero_runs(mem), 0);
	EXPECT_INTACT(mem);
	EXPECT_EQ(granule_vmstat("granule_cow") - cow, 2 * mem->nr);
}

/* Where a tracer writes in granule i. */
static unsigned long *poked_word(char *area, unsigned long i)
{
	return (unsigned long *)(nth(area, i) + (i * 5 % GRANULE_NR_PAGES) * BASE_SIZE +
				 i * sizeof(long));
}

#define POKED	0x5a5aa5a5UL

enum poked { POKE_SHARED, POKE_ZERO, POKE_OWN, POKE_NR };

/* To be poked: memory that may only be read, in each of the states it can be in. */
static void tracee(struct __test_metadata *_metadata, struct mem *mem, enum poked state,
		   unsigned long *pfns)
{
	unsigned long i;

	if (state == POKE_OWN)
		mem_write(mem, 3);
	EXPECT_EQ(mprotect(mem->area, mem_len(mem), PROT_READ), 0);
	EXPECT_EQ(mem_mapped(mem), state == POKE_ZERO ? 0 : mem->nr);
	mem_pfns(mem, pfns);
	ptrace(PTRACE_TRACEME, 0, NULL, NULL);
	raise(SIGSTOP);

	for (i = 0; i < mem->nr; i++)
		*poked_word(mem->model, i) = POKED;
	EXPECT_EQ(mem_zero_runs(mem), 0);
	/* What was not the child's own is replaced, by one copy for each granule. */
	EXPECT_EQ(mem_moved(mem, pfns, 0, mem_pages(mem)),
		  state == POKE_OWN ? 0 : mem_pages(mem))
		TH_LOG("state %d", state);
	EXPECT_INTACT(mem);
	EXPECT_EQ(mprotect(mem->area, mem_len(mem), PROT_RW), 0);
	mem_write(mem, 4);
	EXPECT_INTACT(mem);
	_exit(0);
}

/* Assert that a tracer that writes to read-only memory gets whole granules. */
TEST_F(page_granule_cow, ptrace_poke)
{
	struct mem *mem = &self->mem;
	enum poked state;
	unsigned long i;
	int status;
	pid_t pid;

	for (state = POKE_SHARED; state < POKE_NR; state++) {
		ASSERT_TRUE(mem_zero(mem));
		if (state != POKE_ZERO)
			mem_fill(mem, 2);
		ASSERT_TRUE(peer_fork(&self->peer, mem));
		pid = self->peer.pid;
		if (!pid)
			tracee(_metadata, mem, state, self->pfns);
		ASSERT_EQ(waitpid(pid, &status, 0), pid);
		ASSERT_TRUE(WIFSTOPPED(status));
		for (i = 0; i < mem->nr; i++)
			ASSERT_EQ(ptrace(PTRACE_POKEDATA, pid, poked_word(mem->area, i), POKED),
				  0);
		ASSERT_EQ(ptrace(PTRACE_CONT, pid, NULL, NULL), 0);
		EXPECT_TRUE(peer_end(&self->peer));
		EXPECT_EQ(mem_zero_runs(mem), state == POKE_ZERO ? mem->nr : 0);
		EXPECT_EQ(mem_mapped(mem), state == POKE_ZERO ? 0 : mem->nr);
		EXPECT_EQ(mem_diff(mem), NO_DIFF);
	}
}

/* Threads that write to pages of their own of all granules, and one that reads. */
#define STORM_WRITERS	4

struct storm {
	struct mem *mem;
	pthread_barrier_t start;
	pthread_barrier_t done;
	bool stop;
	char value;	/* what they write, one more than what was there */
	unsigned long wrong;
	struct storm_thread {
		pthread_t thread;
		struct storm *storm;
		unsigned int id;
	} threads[STORM_WRITERS + 1];
};

/* The byte that writers write in a page; those around it stay as they are. */
static char *storm_byte(char *area, unsigned long page)
{
	return area + page * BASE_SIZE + page % BASE_SIZE;
}

static void *storm_writer(void *arg)
{
	struct storm_thread *self = arg;
	struct storm *storm = self->storm;
	unsigned long nr = mem_pages(storm->mem), i;

	for (;;) {
		pthread_barrier_wait(&storm->start);
		if (storm->stop)
			return NULL;
		/* All on the same granule most of the time, each in its own page. */
		for (i = self->id; i < nr; i += STORM_WRITERS)
			*storm_byte(storm->mem->area, i) = storm->value;
		pthread_barrier_wait(&storm->done);
	}
}

static void *storm_reader(void *arg)
{
	struct storm_thread *self = arg;
	struct storm *storm = self->storm;
	struct mem *mem = storm->mem;
	unsigned long nr = mem_pages(mem), i;
	char seen, old;

	for (;;) {
		pthread_barrier_wait(&storm->start);
		if (storm->stop)
			return NULL;
		old = storm->value - 1;
		for (i = 0; i < nr; i++) {
			seen = FORCE_READ(*storm_byte(mem->area, i));
			storm->wrong += seen != old && seen != storm->value;
			seen = FORCE_READ(storm_byte(mem->area, i)[1]);
			storm->wrong += seen != storm_byte(mem->model, i)[1];
		}
		pthread_barrier_wait(&storm->done);
	}
}

static void storm_model(struct storm *storm, char *area)
{
	unsigned long i;

	for (i = 0; i < mem_pages(storm->mem); i++)
		*storm_byte(area, i) = storm->value;
}

static bool storm_create(struct storm *storm, struct mem *mem)
{
	unsigned int i;

	memset(storm, 0, sizeof(*storm));
	storm->mem = mem;
	if (pthread_barrier_init(&storm->start, NULL, STORM_WRITERS + 2) ||
	    pthread_barrier_init(&storm->done, NULL, STORM_WRITERS + 2))
		return false;
	storm_model(storm, mem->area);
	storm_model(storm, mem->model);
	for (i = 0; i <= STORM_WRITERS; i++) {
		storm->threads[i].storm = storm;
		storm->threads[i].id = i;
		if (pthread_create(&storm->threads[i].thread, NULL,
				   i == STORM_WRITERS ? storm_reader : storm_writer,
				   &storm->threads[i]))
			return false;
	}
	return true;
}

/* All write to all granules, once. */
static void storm_round(struct storm *storm)
{
	storm->value++;
	pthread_barrier_wait(&storm->start);
	pthread_barrier_wait(&storm->done);
	storm_model(storm, storm->mem->model);
}

/* Returns how often the reader has seen what it should not. */
static unsigned long storm_end(struct storm *storm)
{
	unsigned int i;

	storm->stop = true;
	pthread_barrier_wait(&storm->start);
	for (i = 0; i <= STORM_WRITERS; i++)
		pthread_join(storm->threads[i].thread, NULL);
	return storm->wrong;
}

/* Assert that threads that race to copy a granule after fork find it whole. */
TEST_F(page_granule_cow, threads)
{
	struct mem *mem = &self->mem;
	struct storm storm;
	unsigned int round;

	ASSERT_TRUE(storm_create(&storm, mem));
	for (round = 0; round < 12; round++) {
		ASSERT_TRUE(peer_fork(&self->peer, mem));
		if (!self->peer.pid) {
			/* Copies, or reuses, what the parent does the same to. */
			if (round & 1)
				mem_write(mem, round);
			peer_switch(&self->peer);
			EXPECT_INTACT(mem);
			_exit(0);
		}
		storm_round(&storm);
		EXPECT_INTACT(mem);
		ASSERT_TRUE(peer_wait(&self->peer));
		EXPECT_TRUE(peer_end(&self->peer));
	}
	EXPECT_EQ(storm_end(&storm), 0);
}

/* Writers that do not pause for the fork. */
struct fire {
	struct mem *mem;
	bool stop;
};

static void *fire(void *arg)
{
	struct fire *fire = arg;
	unsigned long i;
	char value = 0;

	while (!__atomic_load_n(&fire->stop, __ATOMIC_RELAXED)) {
		value++;
		for (i = 0; i < mem_pages(fire->mem); i++)
			__atomic_store_n(storm_byte(fire->mem->area, i), value,
					 __ATOMIC_RELAXED);
	}
	return NULL;
}

/* What the others have written when it was forked is as good as anything. */
static void fire_model(struct mem *mem)
{
	unsigned long i;

	for (i = 0; i < mem_pages(mem); i++)
		*storm_byte(mem->model, i) = *storm_byte(mem->area, i);
}

static void fork_under_fire(struct __test_metadata *_metadata, struct mem *mem)
{
	struct fire shared = { .mem = mem };
	pthread_t threads[2];
	struct peer peer;
	int i;

	for (i = 0; i < 2; i++)
		ASSERT_EQ(pthread_create(&threads[i], NULL, fire, &shared), 0);
	for (i = 0; i < 6; i++) {
		ASSERT_TRUE(peer_fork(&peer, mem));
		if (!peer.pid) {
			EXPECT_EQ(mem_whole(mem), mem->nr);
			fire_model(mem);
			mem_write_pages(mem, i);
			EXPECT_INTACT(mem);
			_exit(0);
		}
		EXPECT_TRUE(peer_end(&peer));
	}
	__atomic_store_n(&shared.stop, true, __ATOMIC_RELAXED);
	for (i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
	fire_model(mem);
	EXPECT_INTACT(mem);
}

/* Assert that children forked while other threads write find whole granules. */
TEST_F(page_granule_cow, fork_under_fire)
{
	fork_under_fire(_metadata, &self->mem);
}

/* Assert that a granule of a larger folio is copied, and reused, as a whole. */
TEST_F(page_granule_cow, larger_folios)
{
	unsigned long orders = thp_supported_orders();
	struct mem mem = self->mem;
	unsigned int order;
	char *res;

	/* So that there is room for a huge page. */
	mem.nr = 2 * HPAGE_SIZE / GRANULE_SIZE;
	mem.model = granule_mmap(GRANULE_UNTAGGED, NULL, mem_len(&mem), PROT_RW, 0);
	ASSERT_NE(mem.model, MAP_FAILED);
	res = granule_reserve(mem_len(&mem) + HPAGE_SIZE);
	ASSERT_NE(res, NULL);
	mem.area = (char *)(((unsigned long)res + HPAGE_SIZE - 1) & -(unsigned long)HPAGE_SIZE);
	for (order = 5; order < NR_ORDERS; order++) {
		if (!(orders & (1UL << order)) || (order & 1 && order != 9))
			continue;
		granule_thp_order(order);
		ASSERT_TRUE(mem_renew(&mem));
		mem_fill(&mem, order);
		ASSERT_TRUE(peer_fork(&self->peer, &mem));
		if (!self->peer.pid) {
			mem_write(&mem, 2);
			EXPECT_INTACT(&mem);
			peer_switch(&self->peer);
			EXPECT_INTACT(&mem);
			_exit(0);
		}
		ASSERT_TRUE(peer_wait(&self->peer));
		EXPECT_INTACT(&mem);
		mem_write(&mem, 3);
		EXPECT_INTACT(&mem);
		EXPECT_TRUE(peer_end(&self->peer));
		mem_write_pages(&mem, 4);
		EXPECT_INTACT(&mem);
	}
}

/* Assert that what a child gets as zeroes, or not at all, leaves the parent's. */
TEST_F(page_granule_cow, wipe_on_fork)
{
	struct mem *mem = &self->mem;

	ASSERT_EQ(madvise(mem->area, mem_len(mem), MADV_WIPEONFORK), 0);
	ASSERT_TRUE(peer_fork(&self->peer, mem));
	if (!self->peer.pid) {
		EXPECT_EQ(mem_present(mem), 0);
		memset(mem->model, 0, mem_len(mem));
		mem_write(mem, 2);
		EXPECT_INTACT(mem);
		_exit(0);
	}
	EXPECT_TRUE(peer_end(&self->peer));
	mem_write_pages(mem, 3);
	EXPECT_INTACT(mem);
}

/* Assert that a child that keeps but one page of each granule shares it still. */
TEST_F(page_granule_cow, child_keeps_one_page)
{
	struct mem *mem = &self->mem;
	unsigned long i;

	if (variant->kind == GRANULE_CONTRACT)
		SKIP(return, "a contract granule cannot be cut: see default_tagged");
	ASSERT_TRUE(peer_fork(&self->peer, mem));
	if (!self->peer.pid) {
		for (i = 0; i < mem->nr; i++) {
			EXPECT_EQ(madvise(nth(mem->area, i) + BASE_SIZE,
					  GRANULE_SIZE - BASE_SIZE, MADV_DONTNEED), 0);
			memset(nth(mem->model, i) + BASE_SIZE, 0, GRANULE_SIZE - BASE_SIZE);
		}
		EXPECT_EQ(mem_present(mem), mem->nr);
		if (!peer_switch(&self->peer))
			_exit(1);
		EXPECT_EQ(mem_present(mem), mem->nr);
		mem_write_pages(mem, 3);
		EXPECT_PRESENT(mem);
		_exit(0);
	}
	ASSERT_TRUE(peer_wait(&self->peer));
	mem_write(mem, 2);
	EXPECT_INTACT(mem);
	peer_go(&self->peer);
	EXPECT_TRUE(peer_end(&self->peer));
	mem_write_pages(mem, 4);
	EXPECT_INTACT(mem);
}

static unsigned long soft_dirty_pages(struct mem *mem, unsigned long granule)
{
	unsigned long i, nr = 0;

	for (i = 0; i < GRANULE_NR_PAGES; i++)
		nr += pagemap_is_softdirty(mem->pagemap,
					   nth(mem->area, granule) + i * BASE_SIZE);
	return nr;
}

/*
 * Assert that soft-dirty tracking, which write-protects, keeps granules whole:
 * it then tells granules that are written to, not pages.
 */
TEST_F(page_granule_cow, soft_dirty)
{
	struct mem *mem = &self->mem, half = *mem;
	unsigned long i;
	int shared;

	if (!softdirty_supported())
		SKIP(return, "no soft-dirty: set CONFIG_MEM_SOFT_DIRTY on x86_64");
	half.nr /= 2;
	for (shared = 0; shared < 2; shared++) {
		if (shared)
			ASSERT_TRUE(peer_fork_idle(&self->peer, mem));
		clear_softdirty();
		EXPECT_INTACT(mem);
		EXPECT_EQ(soft_dirty_pages(mem, 0), 0);
		mem_write(&half, 2 + shared);
		EXPECT_INTACT(mem);
		for (i = 0; i < mem->nr; i++)
			EXPECT_EQ(soft_dirty_pages(mem, i), i < half.nr ? GRANULE_NR_PAGES : 0);
		mem_write_pages(mem, 4 + shared);
		EXPECT_EQ(soft_dirty_pages(mem, half.nr), GRANULE_NR_PAGES);
		EXPECT_INTACT(mem);
		if (shared)
			EXPECT_TRUE(peer_end(&self->peer));
	}
}

/* Assert that the write to shared memory whose soft-dirty bits were cleared is one. */
TEST_F(page_granule_cow, soft_dirty_shared)
{
	struct mem *mem = &self->mem;
	long faults;

	if (!softdirty_supported())
		SKIP(return, "no soft-dirty: set CONFIG_MEM_SOFT_DIRTY on x86_64");
	ASSERT_EQ(granule_mmap(mem->kind, mem->area, mem_len(mem), PROT_RW,
			       MAP_FIXED | MAP_SHARED), mem->area);
	mem_fill(mem, 1);
	clear_softdirty();
	faults = mem_write(mem, 2);
	EXPECT_FAULTS(faults, mem->nr);
	EXPECT_INTACT(mem);
	faults = mem_write_pages(mem, 3);
	EXPECT_LE(faults, FAULT_SLACK);
	EXPECT_INTACT(mem);
}

/* Do pread()s of pagemap give the same as reads of single entries do? */
static bool same_pagemap(const struct mem *mem)
{
	const unsigned long vpn = (unsigned long)mem->area / BASE_SIZE;
	const unsigned long some = 3 * GRANULE_NR_PAGES;
	uint64_t alone[MAX_PAGES], together[MAX_PAGES];
	unsigned long first, nr, i;

	for (i = 0; i < mem_pages(mem); i++)
		alone[i] = pagemap_get_entry(mem->pagemap, mem->area + i * BASE_SIZE);
	for (first = 0; first < some; first++) {
		/* All there is, or any number of pages. */
		for (nr = 0; first + nr < some; nr++) {
			size_t len = (nr ?: mem_pages(mem) - first) * sizeof(*alone);

			if (pread(mem->pagemap, together, len, (vpn + first) * sizeof(*alone)) !=
			    (ssize_t)len)
				return false;
			if (memcmp(together, alone + first, len))
				return false;
		}
	}
	return true;
}

/* Does PAGEMAP_SCAN find as many pages as it may, from any page on? */
static bool same_scan(const struct mem *mem, uint64_t category)
{
	const unsigned long some = 3 * GRANULE_NR_PAGES;
	unsigned long first, nr;

	for (first = 0; first < some; first++) {
		for (nr = 1; first + nr < some; nr++) {
			const uint64_t start = (uintptr_t)mem->area + first * BASE_SIZE;
			const uint64_t end = start + nr * BASE_SIZE;
			struct page_region regions[2];
			struct pm_scan_arg arg = {
				.size = sizeof(arg),
				.start = start,
				.end = (uintptr_t)mem->area + mem_len(mem),
				.vec = (uintptr_t)regions,
				.vec_len = 2,
				.max_pages = nr,
				.category_mask = category,
				.return_mask = category,
			};

			if (ioctl(mem->pagemap, PAGEMAP_SCAN, &arg) != 1)
				return false;
			if (regions[0].start != start || regions[0].end != end ||
			    regions[0].categories != category || arg.walk_end != end)
				return false;
		}
	}
	return true;
}

/*
 * Assert that pagemap tells of granules what it tells of single pages, some of
 * which the child has given back and the parent has alone.
 */
TEST_F(page_granule_cow, pagemap)
{
	struct mem *mem = &self->mem;
	unsigned long i;

	EXPECT_TRUE(same_pagemap(mem));
	EXPECT_TRUE(same_scan(mem, PAGE_IS_PRESENT));
	ASSERT_TRUE(peer_fork(&self->peer, mem));
	if (!self->peer.pid) {
		for (i = 0; i < mem->nr && variant->kind != GRANULE_CONTRACT; i++) {
			char *page = nth(mem->area, i) + i % GRANULE_NR_PAGES * BASE_SIZE;

			EXPECT_EQ(madvise(page, BASE_SIZE, MADV_DONTNEED), 0);
		}
		EXPECT_TRUE(same_pagemap(mem));
		peer_switch(&self->peer);
		_exit(0);
	}
	ASSERT_TRUE(peer_wait(&self->peer));
	EXPECT_INTACT(mem);
	EXPECT_TRUE(same_pagemap(mem));
	EXPECT_TRUE(same_scan(mem, PAGE_IS_PRESENT));
	EXPECT_TRUE(peer_end(&self->peer));

	ASSERT_TRUE(mem_zero(mem));
	EXPECT_EQ(mem_zero_runs(mem), mem->nr);
	EXPECT_TRUE(same_pagemap(mem));
	EXPECT_TRUE(same_scan(mem, PAGE_IS_PFNZERO));
}

static unsigned long smaps_kb(const char *text, const char *name)
{
	const char *line = text ? strstr(text, name) : NULL;

	return line ? strtoul(line + strlen(name), NULL, 10) : ULONG_MAX;
}

/* Are the numbers of smaps those of the same memory in single pages? */
static bool same_smaps(const struct mem *mem, const char *single)
{
	static const char *const names[] = {
		"\nRss:", "\nPss:", "\nPss_Dirty:", "\nShared_Clean:", "\nShared_Dirty:",
		"\nPrivate_Clean:", "\nPrivate_Dirty:", "\nReferenced:", "\nAnonymous:",
	};
	char *text = granule_smaps_text(mem->area, mem_len(mem));
	char *expected = granule_smaps_text(single, mem_len(mem));
	bool same = true;
	size_t i;

	for (i = 0; i < ARRAY_SIZE(names); i++) {
		unsigned long kb = smaps_kb(text, names[i]);

		if (kb == ULONG_MAX || kb != smaps_kb(expected, names[i])) {
			ksft_print_msg("%s %lu kB, expected %lu\n", names[i] + 1, kb,
				       smaps_kb(expected, names[i]));
			same = false;
		}
	}
	free(text);
	free(expected);
	return same;
}

/*
 * Assert that smaps counts every page of a granule once, whether shared or not,
 * and that writing to clear_refs clears the references of all.
 */
TEST_F(page_granule_cow, smaps_and_clear_refs)
{
	struct mem *mem = &self->mem;
	char *single = granule_reserve(mem_len(mem));
	int shared, fd;

	ASSERT_NE(single, NULL);
	for (shared = 0; shared < 2; shared++) {
		ASSERT_TRUE(mem_renew(mem));
		mem_fill(mem, 1);
		ASSERT_EQ(granule_mmap(GRANULE_UNTAGGED, single, mem_len(mem), PROT_RW,
				       MAP_FIXED), single);
		granule_fill(single, mem_len(mem), 1);
		if (shared)
			ASSERT_TRUE(peer_fork_idle(&self->peer, mem));
		EXPECT_TRUE(same_smaps(mem, single));
		fd = open("/proc/self/clear_refs", O_WRONLY);
		ASSERT_GE(fd, 0);
		ASSERT_EQ(write(fd, "1", 1), 1);
		close(fd);
		/* None of either is referenced now. */
		EXPECT_TRUE(same_smaps(mem, single));
		mem_write(mem, 2);
		EXPECT_INTACT(mem);
		if (shared)
			EXPECT_TRUE(peer_end(&self->peer));
	}
}

/* A default-tagged granule that a 4 KiB call has cut, shared by fork. */
TEST_F(page_granule_cow, broken_granule)
{
	struct mem *mem = &self->mem, rest = *mem;
	char *hole = mem->area + 5 * BASE_SIZE;

	/* A contract granule cannot be cut; nothing is to come of trying. */
	EXPECT_EQ(madvise(hole, 3 * BASE_SIZE, MADV_DONTNEED),
		  variant->kind == GRANULE_CONTRACT ? -1 : 0);
	rest.area += GRANULE_SIZE;
	rest.model += GRANULE_SIZE;
	rest.nr--;
	if (variant->kind != GRANULE_CONTRACT) {
		memset(mem->model + 5 * BASE_SIZE, 0, 3 * BASE_SIZE);
		EXPECT_EQ(granule_filled(mem->pagemap, mem->area), GRANULE_NR_PAGES - 3);
	}
	ASSERT_TRUE(peer_fork(&self->peer, mem));
	if (!self->peer.pid) {
		mem_write(mem, 2);
		EXPECT_EQ(mem_whole(&rest), rest.nr);
		EXPECT_EQ(mem_diff(mem), NO_DIFF);
		mem_write_pages(mem, 3);
		EXPECT_PRESENT(mem);
		peer_switch(&self->peer);
		EXPECT_EQ(mem_diff(mem), NO_DIFF);
		_exit(0);
	}
	ASSERT_TRUE(peer_wait(&self->peer));
	EXPECT_EQ(mem_whole(&rest), rest.nr);
	mem_write_pages(mem, 4);
	EXPECT_PRESENT(mem);
	EXPECT_EQ(mem_whole(&rest), rest.nr);
	EXPECT_TRUE(peer_end(&self->peer));
	EXPECT_EQ(mem_diff(mem), NO_DIFF);
}

/* The swap device, if there is one only, and what is free in all of them. */
struct swaps {
	char path[PATH_MAX];
	unsigned int nr;
	int prio;
	unsigned long free_kb;
};

static void read_swaps(struct swaps *swaps)
{
	unsigned long size, used;
	char line[PATH_MAX + 128];
	FILE *fp;

	memset(swaps, 0, sizeof(*swaps));
	fp = fopen("/proc/swaps", "r");
	if (!fp)
		return;
	while (fgets(line, sizeof(line), fp)) {
		if (sscanf(line, "%4095s %*s %lu %lu %d", swaps->path, &size, &used,
			   &swaps->prio) != 4)
			continue;
		swaps->nr++;
		swaps->free_kb += size - used;
	}
	fclose(fp);
}

#define SWAP_REMEDY	"no swap: swapon a device with 64 MiB free"

static bool have_swap(struct swaps *swaps)
{
	read_swaps(swaps);
	return swaps->free_kb >= 64 << 10;
}

/* Until all of it is out; a page under writeback, or in a batch, is not at once. */
static bool mem_page_out(struct mem *mem)
{
	int i;

	for (i = 0; i < 50; i++) {
		if (madvise(mem->area, mem_len(mem), MADV_PAGEOUT))
			return false;
		if (mem_swapped(mem) == mem_pages(mem))
			return true;
		usleep(10 * 1000);
	}
	return false;
}

/*
 * A single page has one reference more while it waits in a batch of some CPU's to
 * be moved on the LRU, as it does after writeback. It might be I/O, so that it is
 * not copied. Wait until there are none; to drop caches drains the batches.
 */
static void lru_settle(void)
{
	int i;

	for (i = 0; i < 500 && granule_vmstat("nr_writeback"); i++)
		usleep(10 * 1000);
	granule_write("/proc/sys/vm/drop_caches", "1");
}

/* The kernel drains those of its own CPU itself: stay there. */
static bool stay_on_cpu(void)
{
	cpu_set_t cpus;

	CPU_ZERO(&cpus);
	CPU_SET(sched_getcpu(), &cpus);
	return !sched_setaffinity(0, sizeof(cpus), &cpus);
}

/*
 * What has been split, by reclaim or for want of memory, is formed again on demand.
 * Pages may be in use for a moment. Returns 0 or a negative errno.
 */
static int mem_collapse(struct mem *mem)
{
	int i, ret = 0;

	for (i = 0; i < 50; i++) {
		ret = madvise(mem->area, mem_len(mem), MADV_COLLAPSE) ? -errno : 0;
		if (ret != -EAGAIN)
			break;
		lru_settle();
		usleep(10 * 1000);
	}
	return ret;
}

/* Wait for all granules to be whole, @seconds at most. */
static bool mem_wait_whole(struct mem *mem, unsigned int seconds)
{
	unsigned int ms;

	for (ms = 0; ms < seconds * 1000; ms += 50) {
		if (mem_whole(mem) == mem->nr)
			return true;
		usleep(50000);
	}
	return false;
}

#define REPAIR_REMEDY	"no control of the repair: mount debugfs"

/* To another node. Returns 0, a negative errno, or that there is none. */
#define NO_NODES	1
#define NODES_REMEDY	"one NUMA node: boot with two"

/*
 * All pages are named, or only a part of a granule would move. As root it may move
 * what others map as well.
 */
static int move_to_node(struct mem *mem, int node)
{
	int nodes[MAX_PAGES], status[MAX_PAGES];
	void *pages[MAX_PAGES];
	unsigned long i;

	for (i = 0; i < mem_pages(mem); i++) {
		pages[i] = mem->area + i * BASE_SIZE;
		nodes[i] = node;
	}
	if (syscall(__NR_move_pages, 0, mem_pages(mem), pages, nodes, status, MPOL_MF_MOVE_ALL))
		return -errno;

	/* Have they moved, all of them? */
	if (syscall(__NR_move_pages, 0, mem_pages(mem), pages, NULL, status, 0))
		return -errno;
	for (i = 0; i < mem_pages(mem); i++) {
		if (status[i] != node)
			return -EIO;
	}
	return 0;
}

/* Pins. The range begins and ends inside a granule. */
#define GUP_TEST	"/sys/kernel/debug/gup_test"
#define PIN_FIRST	5UL

static int pin(int fd, struct mem *mem, unsigned long first, unsigned long end,
	       unsigned int flags)
{
	struct pin_longterm_test args = {
		.addr = (uintptr_t)mem->area + first * BASE_SIZE,
		.size = (end - first) * BASE_SIZE,
		.flags = flags,
	};

	return ioctl(fd, PIN_LONGTERM_TEST_START, &args);
}

/* Does what is pinned hold what the process sees? */
static bool pin_sees(int fd, struct mem *mem, unsigned long first, unsigned long end)
{
	size_t len = (end - first) * BASE_SIZE;
	char *seen = malloc(len);
	__u64 addr = (uintptr_t)seen;
	bool same;

	if (!seen)
		return false;
	same = !ioctl(fd, PIN_LONGTERM_TEST_READ, &addr) &&
	       !memcmp(seen, mem->area + first * BASE_SIZE, len);
	free(seen);
	return same;
}

FIXTURE(page_granule_pin)
{
	struct mem mem;
	struct peer peer;
	unsigned long pfns[MAX_PAGES];
	int gup;
};

FIXTURE_VARIANT(page_granule_pin)
{
	enum granule_kind kind;
	unsigned int flags;
};

FIXTURE_VARIANT_ADD(page_granule_pin, contract)
{
	.kind = GRANULE_CONTRACT,
};

FIXTURE_VARIANT_ADD(page_granule_pin, default_tagged)
{
	.kind = GRANULE_DEFAULT,
};

FIXTURE_VARIANT_ADD(page_granule_pin, contract_fast)
{
	.kind = GRANULE_CONTRACT,
	.flags = PIN_LONGTERM_TEST_FLAG_USE_FAST,
};

FIXTURE_VARIANT_ADD(page_granule_pin, default_tagged_fast)
{
	.kind = GRANULE_DEFAULT,
	.flags = PIN_LONGTERM_TEST_FLAG_USE_FAST,
};

FIXTURE_SETUP(page_granule_pin)
{
	self->gup = open(GUP_TEST, O_RDWR);
	if (self->gup < 0)
		SKIP(return, "no " GUP_TEST ": set CONFIG_GUP_TEST=y, mount debugfs");
	ASSERT_TRUE(mem_create(&self->mem, variant->kind));
}

FIXTURE_TEARDOWN(page_granule_pin)
{
	EXPECT_TRUE(granule_invariants_hold());
	close(self->gup);
}

/* Assert that pinning what is shared to read it copies whole granules, for good. */
TEST_F(page_granule_pin, unshare)
{
	struct mem *mem = &self->mem;
	unsigned long end = mem_pages(mem) - PIN_FIRST;
	unsigned long cow;

	mem_fill(mem, 1);
	ASSERT_TRUE(peer_fork(&self->peer, mem));
	if (!self->peer.pid) {
		mem_pfns(mem, self->pfns);
		if (!peer_switch(&self->peer))
			_exit(1);
		EXPECT_EQ(mem_moved(mem, self->pfns, 0, mem_pages(mem)), 0);
		EXPECT_INTACT(mem);
		_exit(0);
	}
	ASSERT_TRUE(peer_wait(&self->peer));
	mem_pfns(mem, self->pfns);
	cow = granule_vmstat("granule_cow");
	ASSERT_EQ(pin(self->gup, mem, PIN_FIRST, end, variant->flags), 0);
	EXPECT_EQ(granule_vmstat("granule_cow") - cow, mem->nr);
	EXPECT_EQ(mem_moved(mem, self->pfns, 0, mem_pages(mem)), mem_pages(mem));
	EXPECT_INTACT(mem);

	mem_pfns(mem, self->pfns);
	mem_write_pages(mem, 2);
	EXPECT_TRUE(pin_sees(self->gup, mem, PIN_FIRST, end));
	EXPECT_EQ(mem_moved(mem, self->pfns, 0, mem_pages(mem)), 0);
	EXPECT_EQ(granule_vmstat("granule_cow") - cow, mem->nr);
	EXPECT_INTACT(mem);
	peer_go(&self->peer);
	EXPECT_TRUE(peer_end(&self->peer));
	ASSERT_EQ(ioctl(self->gup, PIN_LONGTERM_TEST_STOP), 0);
	EXPECT_INTACT(mem);
}

/* Assert that soft-dirty tracking leaves alone what is pinned, and all of it. */
TEST_F(page_granule_pin, soft_dirty)
{
	const unsigned int flags = variant->flags | PIN_LONGTERM_TEST_FLAG_USE_WRITE;
	struct mem *mem = &self->mem;
	unsigned long i;

	if (!softdirty_supported())
		SKIP(return, "no soft-dirty: set CONFIG_MEM_SOFT_DIRTY on x86_64");
	mem_fill(mem, 1);
	/* One page, which is not the first of its granule. */
	ASSERT_EQ(pin(self->gup, mem, PIN_FIRST, PIN_FIRST + 1, flags), 0);
	clear_softdirty();
	EXPECT_INTACT(mem);
	for (i = 0; i < mem->nr; i++)
		EXPECT_EQ(soft_dirty_pages(mem, i),
			  i == PIN_FIRST / GRANULE_NR_PAGES ? GRANULE_NR_PAGES : 0);
	mem_write_pages(mem, 2);
	EXPECT_TRUE(pin_sees(self->gup, mem, PIN_FIRST, PIN_FIRST + 1));
	EXPECT_INTACT(mem);
}

/* Assert that what is shared no longer is pinned where it is. */
TEST_F(page_granule_pin, unshare_after_exit)
{
	struct mem *mem = &self->mem;
	unsigned long end = mem_pages(mem) - PIN_FIRST;
	unsigned long cow = granule_vmstat("granule_cow");

	mem_fill(mem, 1);
	mem_pfns(mem, self->pfns);
	ASSERT_TRUE(peer_fork_idle(&self->peer, mem));
	ASSERT_TRUE(peer_end(&self->peer));
	ASSERT_EQ(pin(self->gup, mem, PIN_FIRST, end, variant->flags), 0);
	EXPECT_INTACT(mem);
	mem_write_pages(mem, 2);
	EXPECT_TRUE(pin_sees(self->gup, mem, PIN_FIRST, end));
	EXPECT_EQ(mem_moved(mem, self->pfns, 0, mem_pages(mem)), 0);
	EXPECT_EQ(granule_vmstat("granule_cow"), cow);
	EXPECT_INTACT(mem);
}

/* Assert that pinning zeroes to read them replaces whole zero runs. */
TEST_F(page_granule_pin, unshare_zero_runs)
{
	struct mem *mem = &self->mem;
	unsigned long end = mem_pages(mem) - PIN_FIRST;
	unsigned long cow = granule_vmstat("granule_cow");

	mem_read(mem);
	ASSERT_EQ(mem_zero_runs(mem), mem->nr);
	ASSERT_EQ(pin(self->gup, mem, PIN_FIRST, end, variant->flags), 0);
	EXPECT_EQ(mem_zero_runs(mem), 0);
	EXPECT_INTACT(mem);
	mem_pfns(mem, self->pfns);
	mem_write_pages(mem, 2);
	EXPECT_TRUE(pin_sees(self->gup, mem, PIN_FIRST, end));
	EXPECT_EQ(mem_moved(mem, self->pfns, 0, mem_pages(mem)), 0);
	EXPECT_EQ(granule_vmstat("granule_cow") - cow, mem->nr);
	EXPECT_INTACT(mem);
}

/* Assert that pinning nothing yet, to read it, populates whole granules. */
TEST_F(page_granule_pin, empty)
{
	struct mem *mem = &self->mem;
	unsigned long end = mem_pages(mem) - PIN_FIRST;

	ASSERT_EQ(pin(self->gup, mem, PIN_FIRST, end, variant->flags), 0);
	EXPECT_INTACT(mem);
	mem_write_pages(mem, 2);
	EXPECT_TRUE(pin_sees(self->gup, mem, PIN_FIRST, end));
	EXPECT_INTACT(mem);
}

/*
 * Assert that fork leaves the parent what it has pinned, the pages around it
 * too, and gives the child whole granules of its own.
 */
TEST_F(page_granule_pin, pinned_at_fork)
{
	const unsigned long first = PIN_FIRST, end = 3 * GRANULE_NR_PAGES - PIN_FIRST;
	const unsigned long copied = 3 * GRANULE_NR_PAGES;
	unsigned int flags = variant->flags | PIN_LONGTERM_TEST_FLAG_USE_WRITE;
	struct mem *mem = &self->mem;

	mem_fill(mem, 1);
	mem_pfns(mem, self->pfns);
	ASSERT_EQ(pin(self->gup, mem, first, end, flags), 0);
	ASSERT_TRUE(peer_fork(&self->peer, mem));
	if (!self->peer.pid) {
		EXPECT_INTACT(mem);
		EXPECT_EQ(mem_moved(mem, self->pfns, 0, copied), copied);
		EXPECT_EQ(mem_moved(mem, self->pfns, copied, mem_pages(mem)), 0);
		if (!peer_switch(&self->peer))
			_exit(1);
		/* The parent has written. */
		EXPECT_INTACT(mem);
		mem_write_pages(mem, 3);
		EXPECT_INTACT(mem);
		_exit(0);
	}
	ASSERT_TRUE(peer_wait(&self->peer));
	EXPECT_INTACT(mem);
	mem_write_pages(mem, 2);
	EXPECT_TRUE(pin_sees(self->gup, mem, first, end));
	EXPECT_EQ(mem_moved(mem, self->pfns, 0, copied), 0);
	EXPECT_INTACT(mem);
	peer_go(&self->peer);
	EXPECT_TRUE(peer_end(&self->peer));
	EXPECT_TRUE(pin_sees(self->gup, mem, first, end));

	ASSERT_EQ(ioctl(self->gup, PIN_LONGTERM_TEST_STOP), 0);
	mem_write_pages(mem, 4);
	EXPECT_EQ(mem_moved(mem, self->pfns, 0, copied), 0);
	EXPECT_INTACT(mem);
}

/* Assert the same while other threads write to it. */
TEST_F(page_granule_pin, fork_under_fire)
{
	const unsigned long first = PIN_FIRST, end = 3 * GRANULE_NR_PAGES - PIN_FIRST;
	unsigned int flags = variant->flags | PIN_LONGTERM_TEST_FLAG_USE_WRITE;
	struct mem *mem = &self->mem;

	mem_fill(mem, 1);
	mem_pfns(mem, self->pfns);
	ASSERT_EQ(pin(self->gup, mem, first, end, flags), 0);
	fork_under_fire(_metadata, mem);
	EXPECT_EQ(mem_moved(mem, self->pfns, 0, 3 * GRANULE_NR_PAGES), 0);
	EXPECT_TRUE(pin_sees(self->gup, mem, first, end));
}

/* Assert that what cannot be moved, being pinned, is none the worse for it. */
TEST_F(page_granule_pin, move_pinned)
{
	unsigned int flags = variant->flags | PIN_LONGTERM_TEST_FLAG_USE_WRITE;
	unsigned long partial = to_be_split(), swpout;
	struct mem *mem = &self->mem;
	struct swaps swaps;
	int node;

	if (!granule_two_nodes())
		SKIP(return, NODES_REMEDY);
	mem_fill(mem, 1);
	ASSERT_EQ(pin(self->gup, mem, 0, mem_pages(mem), flags), 0);
	mem_pfns(mem, self->pfns);
	for (node = 0; node < 2; node++) {
		move_to_node(mem, node);
		EXPECT_EQ(mem_moved(mem, self->pfns, 0, mem_pages(mem)), 0);
		EXPECT_INTACT(mem);
	}
	mem_write_pages(mem, 2);
	EXPECT_TRUE(pin_sees(self->gup, mem, 0, mem_pages(mem)));
	EXPECT_EQ(to_be_split(), partial);

	/* Pinned no longer, it can be swapped out whole, and moved. */
	ASSERT_EQ(ioctl(self->gup, PIN_LONGTERM_TEST_STOP), 0);
	if (have_swap(&swaps)) {
		swpout = swapped_whole();
		ASSERT_TRUE(mem_page_out(mem));
		EXPECT_EQ(swapped_whole() - swpout, mem->nr);
		mem_read(mem);
		EXPECT_INTACT(mem);
	}
	EXPECT_EQ(move_to_node(mem, 1), 0);
	EXPECT_EQ(move_to_node(mem, 0), 0);
	EXPECT_INTACT(mem);
}

/* Swap. */

static long all_faults(void)
{
	struct rusage usage;

	getrusage(RUSAGE_SELF, &usage);
	return usage.ru_minflt + usage.ru_majflt;
}

FIXTURE(page_granule_swap)
{
	struct mem mem;
	struct peer peer;
	char cgroup[PATH_MAX + 32];
	char root[PATH_MAX];
};

FIXTURE_VARIANT(page_granule_swap)
{
	enum granule_kind kind;
};

FIXTURE_VARIANT_ADD(page_granule_swap, contract)
{
	.kind = GRANULE_CONTRACT,
};

FIXTURE_VARIANT_ADD(page_granule_swap, default_tagged)
{
	.kind = GRANULE_DEFAULT,
};

FIXTURE_SETUP(page_granule_swap)
{
	struct swaps swaps;

	if (!have_swap(&swaps))
		SKIP(return, SWAP_REMEDY);
	ASSERT_TRUE(mem_create(&self->mem, variant->kind));
}

FIXTURE_TEARDOWN(page_granule_swap)
{
	EXPECT_TRUE(granule_invariants_hold());
	if (!*self->cgroup)
		return;
	granule_cg_write(self->root, "cgroup.procs", "0");
	rmdir(self->cgroup);
}

/* Assert that one fault reads a granule back in, and no other granule. */
TEST_F(page_granule_swap, read_back)
{
	unsigned long swpin = granule_vmstat("granule_swpin");
	unsigned long fallback = granule_vmstat("granule_swpin_fallback");
	unsigned long swpout = swapped_whole();
	struct mem *mem = &self->mem;
	unsigned long odd, i;
	long faults;

	ASSERT_NE(swpin, ULONG_MAX);
	mem_fill(mem, 1);
	ASSERT_TRUE(mem_page_out(mem));
	EXPECT_EQ(swapped_whole() - swpout, mem->nr);
	EXPECT_EQ(mem_present(mem), 0);
	for (odd = 0; odd < 2; odd++) {
		faults = all_faults();
		for (i = odd; i < mem->nr; i += 2)
			FORCE_READ(*byte_of(mem->area, i));
		faults = all_faults() - faults;
		EXPECT_FAULTS(faults, mem->nr / 2);
		EXPECT_EQ(mem_whole(mem), (odd + 1) * mem->nr / 2);
		EXPECT_EQ(mem_swapped(mem), (1 - odd) * mem_pages(mem) / 2);
	}
	faults = all_faults();
	EXPECT_INTACT(mem);
	EXPECT_LE(all_faults() - faults, FAULT_SLACK);
	EXPECT_EQ(granule_vmstat("granule_swpin") - swpin, mem->nr);
	EXPECT_EQ(granule_vmstat("granule_swpin_fallback"), fallback);
}

/* Assert that one write fault brings a granule in, all of it to be written to. */
TEST_F(page_granule_swap, write_back)
{
	struct mem *mem = &self->mem;
	long faults;

	mem_fill(mem, 1);
	ASSERT_TRUE(mem_page_out(mem));
	faults = all_faults();
	mem_write(mem, 2);
	faults = all_faults() - faults;
	EXPECT_FAULTS(faults, mem->nr);
	EXPECT_EQ(mem_whole(mem), mem->nr);
	faults = all_faults();
	mem_write_pages(mem, 3);
	EXPECT_LE(all_faults() - faults, FAULT_SLACK);
	EXPECT_INTACT(mem);
}

/* Assert that it goes out and comes in time and again, changed or unchanged. */
TEST_F(page_granule_swap, again_and_again)
{
	struct mem *mem = &self->mem;
	int round;

	mem_fill(mem, 1);
	for (round = 0; round < 6; round++) {
		ASSERT_TRUE(mem_page_out(mem));
		if (round & 1)
			mem_read(mem);
		else
			mem_write(mem, round);
		EXPECT_INTACT(mem);
		/* Written after it has been read, while still in the swap cache. */
		if (round == 3) {
			mem_write_pages(mem, round);
			EXPECT_INTACT(mem);
		}
	}
}

/* Assert that a fork of what is out is brought in whole by both. */
TEST_F(page_granule_swap, fork_while_out)
{
	struct mem *mem = &self->mem;
	int child_first;

	for (child_first = 0; child_first < 2; child_first++) {
		ASSERT_TRUE(mem_renew(mem));
		mem_fill(mem, 1);
		ASSERT_TRUE(mem_page_out(mem));
		ASSERT_TRUE(peer_fork(&self->peer, mem));
		if (!self->peer.pid) {
			if (!child_first)
				peer_wait(&self->peer);
			mem_read(mem);
			EXPECT_INTACT(mem);
			mem_write(mem, 2);
			EXPECT_INTACT(mem);
			peer_switch(&self->peer);
			EXPECT_INTACT(mem);
			_exit(0);
		}
		if (child_first)
			ASSERT_TRUE(peer_wait(&self->peer));
		mem_write(mem, 3);
		EXPECT_INTACT(mem);
		if (!child_first)
			ASSERT_TRUE(peer_switch(&self->peer));
		EXPECT_TRUE(peer_end(&self->peer));
		mem_write_pages(mem, 4);
		EXPECT_INTACT(mem);
	}
}

/* Assert that threads that race to bring a granule in find it whole. */
TEST_F(page_granule_swap, threads)
{
	struct mem *mem = &self->mem;
	struct storm storm;
	unsigned int round;

	mem_fill(mem, 1);
	ASSERT_TRUE(storm_create(&storm, mem));
	for (round = 0; round < 12; round++) {
		ASSERT_TRUE(mem_page_out(mem));
		/* Into the swap cache only, page by page. */
		if (round & 1)
			ASSERT_EQ(madvise(mem->area, mem_len(mem), MADV_WILLNEED), 0);
		storm_round(&storm);
		EXPECT_INTACT(mem);
	}
	EXPECT_EQ(storm_end(&storm), 0);
}

/* Assert that soft-dirty is neither lost nor gained on the way out and in. */
TEST_F(page_granule_swap, soft_dirty)
{
	struct mem *mem = &self->mem, half = *mem;
	unsigned long i;

	if (!softdirty_supported())
		SKIP(return, "no soft-dirty: set CONFIG_MEM_SOFT_DIRTY on x86_64");
	half.nr /= 2;
	mem_fill(mem, 1);
	clear_softdirty();
	mem_write(&half, 2);
	ASSERT_TRUE(mem_page_out(mem));
	mem_read(mem);
	EXPECT_INTACT(mem);
	for (i = 0; i < mem->nr; i++)
		EXPECT_EQ(soft_dirty_pages(mem, i), i < half.nr ? GRANULE_NR_PAGES : 0);
	mem_write_pages(mem, 3);
	EXPECT_INTACT(mem);
	for (i = 0; i < mem->nr; i++)
		EXPECT_EQ(soft_dirty_pages(mem, i), GRANULE_NR_PAGES);

	/* Cleared while it is out. */
	ASSERT_TRUE(mem_page_out(mem));
	clear_softdirty();
	mem_write(&half, 4);
	mem_read(mem);
	EXPECT_INTACT(mem);
	for (i = 0; i < mem->nr; i++)
		EXPECT_EQ(soft_dirty_pages(mem, i), i < half.nr ? GRANULE_NR_PAGES : 0);
}

#define CGROUP_REMEDY \
	"no memory.reclaim: mount cgroup2, with memory in cgroup.subtree_control"

/* A cgroup to reclaim from, which takes what is shared as well. */
static bool join_cgroup(char *root, char *dir, size_t size)
{
	char path[2 * PATH_MAX];

	if (!granule_find_cgroup2(root))
		return false;
	snprintf(dir, size, "%s/page_granule.%d", root, getpid());
	if (mkdir(dir, 0755)) {
		*dir = 0;
		return false;
	}
	snprintf(path, sizeof(path), "%s/memory.reclaim", dir);
	return !access(path, W_OK) && !granule_cg_write(dir, "cgroup.procs", "0");
}

/* Fails if it could not reclaim as much; what counts is what is out. */
#define RECLAIM_ALL	"4M swappiness=max"

static bool reclaim_all(const char *cgroup, struct mem *mem)
{
	int i;

	for (i = 0; i < 50; i++) {
		granule_cg_write(cgroup, "memory.reclaim", RECLAIM_ALL);
		if (mem_swapped(mem) == mem_pages(mem))
			return true;
		usleep(10 * 1000);
	}
	return false;
}

/*
 * Of shared memory the page table does not tell what is swapped out. A device
 * that takes its time leaves it in the swap cache, where advice finds it no more,
 * but reclaim does.
 */
static bool shared_page_out(const char *cgroup, struct mem *mem)
{
	unsigned char vec[MAX_PAGES];
	unsigned long n, resident;
	int i;

	for (i = 0; i < 50; i++) {
		if (madvise(mem->area, mem_len(mem), MADV_PAGEOUT) ||
		    mincore(mem->area, mem_len(mem), vec))
			return false;
		for (n = 0, resident = 0; n < mem_pages(mem); n++)
			resident += vec[n] & 1;
		if (!resident)
			return true;
		granule_cg_write(cgroup, "memory.reclaim", RECLAIM_ALL);
		usleep(10 * 1000);
	}
	return false;
}

/* Assert that shared memory comes back whole too, by one fault a granule. */
TEST_F(page_granule_swap, shared_memory)
{
	unsigned long swpin = granule_vmstat("granule_swpin");
	unsigned long swpout = swapped_whole();
	struct mem *mem = &self->mem;
	long faults;

	if (!join_cgroup(self->root, self->cgroup, sizeof(self->cgroup)))
		SKIP(return, CGROUP_REMEDY);
	ASSERT_EQ(granule_mmap(mem->kind, mem->area, mem_len(mem), PROT_RW,
			       MAP_FIXED | MAP_SHARED), mem->area);
	mem_fill(mem, 1);
	ASSERT_TRUE(shared_page_out(self->cgroup, mem));
	EXPECT_EQ(swapped_whole() - swpout, mem->nr);
	EXPECT_EQ(mem_present(mem), 0);
	faults = all_faults();
	mem_read(mem);
	faults = all_faults() - faults;
	EXPECT_FAULTS(faults, mem->nr);
	EXPECT_EQ(granule_vmstat("granule_swpin") - swpin, mem->nr);
	EXPECT_INTACT(mem);
	ASSERT_TRUE(shared_page_out(self->cgroup, mem));
	mem_write(mem, 2);
	EXPECT_INTACT(mem);
}

/* Assert that what two processes share goes out, and is whole again in both. */
TEST_F(page_granule_swap, shared)
{
	struct mem *mem = &self->mem;

	if (!join_cgroup(self->root, self->cgroup, sizeof(self->cgroup)))
		SKIP(return, CGROUP_REMEDY);
	mem_fill(mem, 1);
	ASSERT_TRUE(peer_fork(&self->peer, mem));
	if (!self->peer.pid) {
		if (!peer_switch(&self->peer))
			_exit(1);
		EXPECT_EQ(mem_swapped(mem), mem_pages(mem));
		mem_read(mem);
		EXPECT_INTACT(mem);
		if (!peer_switch(&self->peer))
			_exit(1);
		/* The parent has it, too, and has written. */
		EXPECT_INTACT(mem);
		mem_write(mem, 3);
		EXPECT_INTACT(mem);
		_exit(0);
	}
	ASSERT_TRUE(peer_wait(&self->peer));
	ASSERT_TRUE(reclaim_all(self->cgroup, mem));
	ASSERT_TRUE(peer_switch(&self->peer));
	mem_read(mem);
	EXPECT_INTACT(mem);
	mem_write(mem, 2);
	EXPECT_INTACT(mem);
	peer_go(&self->peer);
	EXPECT_TRUE(peer_end(&self->peer));
	EXPECT_INTACT(mem);
}

/*
 * Assert that more than fits, written to by several threads while reclaim takes
 * it away, is never gone in part and is whole again when there is room.
 */
TEST_F_TIMEOUT(page_granule_swap, thrash, 60)
{
	unsigned long i, round, partial = 0;
	struct storm storm;
	struct mem mem;

	ASSERT_TRUE(mem_create_nr(&mem, variant->kind, 64));
	/* The model counts for whoever touches it first, not for the cgroup. */
	memset(mem.model, 0, mem_len(&mem));
	if (!join_cgroup(self->root, self->cgroup, sizeof(self->cgroup)))
		SKIP(return, CGROUP_REMEDY);
	ASSERT_EQ(granule_cg_write(self->cgroup, "memory.max", "3M"), 0);
	/* What zswap holds counts as well. Beyond this it has to write back. */
	granule_cg_write(self->cgroup, "memory.zswap.max", "512K");
	mem_fill(&mem, 1);
	EXPECT_GT(mem_swapped(&mem), 0);
	ASSERT_TRUE(storm_create(&storm, &mem));
	for (round = 0; round < 4; round++) {
		storm_round(&storm);
		for (i = 0; i < mem.nr; i++)
			partial += granule_filled(mem.pagemap, nth(mem.area, i)) !=
				   GRANULE_NR_PAGES;
	}
	EXPECT_EQ(storm_end(&storm), 0);
	EXPECT_EQ(partial, 0);
	EXPECT_GT(mem_swapped(&mem), 0);

	/* What there were no slots for in a row, or no room to copy, has been split. */
	ASSERT_EQ(granule_cg_write(self->cgroup, "memory.max", "max"), 0);
	EXPECT_EQ(mem_diff(&mem), NO_DIFF);
	EXPECT_EQ(mem_collapse(&mem), 0);
	EXPECT_INTACT(&mem);
	mem_write_pages(&mem, 5);
	EXPECT_INTACT(&mem);
}

/* Assert that what is cut away while it is out is gone, and nothing else. */
TEST_F(page_granule_swap, cut_while_out)
{
	const size_t unit = variant->kind == GRANULE_CONTRACT ? GRANULE_SIZE : BASE_SIZE;
	const size_t pos = 2 * GRANULE_SIZE + (unit == BASE_SIZE ? 3 * BASE_SIZE : 0);
	struct mem *mem = &self->mem, rest = *mem;

	mem_fill(mem, 1);
	ASSERT_TRUE(mem_page_out(mem));
	ASSERT_EQ(madvise(mem->area + pos, unit, MADV_DONTNEED), 0);
	memset(mem->model + pos, 0, unit);
	EXPECT_EQ(mem_swapped(mem), mem_pages(mem) - unit / BASE_SIZE);
	mem_read(mem);
	rest.nr = 2;
	EXPECT_EQ(mem_whole(&rest), rest.nr);
	rest.area = nth(mem->area, 3);
	rest.nr = mem->nr - 3;
	EXPECT_EQ(mem_whole(&rest), rest.nr);
	EXPECT_EQ(mem_diff(mem), NO_DIFF);
	mem_write_pages(mem, 2);
	EXPECT_PRESENT(mem);
}

/* Assert that a broken granule comes back as it went. */
TEST_F(page_granule_swap, broken_granule)
{
	struct mem *mem = &self->mem, rest = *mem;
	const size_t pos = 4 * BASE_SIZE;

	if (variant->kind == GRANULE_CONTRACT)
		SKIP(return, "a contract granule cannot be cut: see default_tagged");
	mem_fill(mem, 1);
	ASSERT_EQ(madvise(mem->area + pos, BASE_SIZE, MADV_DONTNEED), 0);
	memset(mem->model + pos, 0, BASE_SIZE);
	rest.area = nth(mem->area, 1);
	rest.model = nth(mem->model, 1);
	rest.nr--;
	ASSERT_TRUE(mem_page_out(&rest));
	/* What was one folio is split for this, or stays; either is legal. */
	madvise(mem->area, GRANULE_SIZE, MADV_PAGEOUT);
	EXPECT_EQ(granule_filled(mem->pagemap, mem->area), GRANULE_NR_PAGES - 1);
	mem_read(&rest);
	EXPECT_EQ(mem_whole(&rest), rest.nr);
	EXPECT_EQ(mem_diff(mem), NO_DIFF);
	mem_write_pages(mem, 2);
	EXPECT_PRESENT(mem);
}

/*
 * Ways in, apart from a fault of the process itself. What they change, they
 * change in the model as well; whatever they leave out is read afterwards.
 */
static bool way_read(struct mem *mem)
{
	mem_read(mem);
	return true;
}

static bool way_write(struct mem *mem)
{
	mem_write(mem, 2);
	return true;
}

static bool way_mlock(struct mem *mem)
{
	return !mlock(mem->area, mem_len(mem)) && mem_present(mem) == mem_pages(mem) &&
	       !munlock(mem->area, mem_len(mem));
}

static bool way_populate_read(struct mem *mem)
{
	return !madvise(mem->area, mem_len(mem), MADV_POPULATE_READ) &&
	       mem_present(mem) == mem_pages(mem);
}

static bool way_populate_write(struct mem *mem)
{
	return !madvise(mem->area, mem_len(mem), MADV_POPULATE_WRITE) &&
	       mem_present(mem) == mem_pages(mem);
}

static bool way_willneed(struct mem *mem)
{
	if (madvise(mem->area, mem_len(mem), MADV_WILLNEED))
		return false;
	/* In the swap cache now, in folios of whatever order. */
	mem_read(mem);
	return true;
}

static bool way_gup(struct mem *mem)
{
	struct iovec remote = { .iov_base = mem->area + BASE_SIZE, .iov_len = 1 };
	struct iovec local = { .iov_len = 1 };
	char c;

	local.iov_base = &c;
	for (; (char *)remote.iov_base < mem->area + mem_len(mem);
	     remote.iov_base += GRANULE_SIZE) {
		if (process_vm_readv(getpid(), &local, 1, &remote, 1, 0) != 1)
			return false;
	}
	return true;
}

static bool way_mremap(struct mem *mem)
{
	char *spare = granule_reserve(mem_len(mem));

	if (!spare || sys_mremap(mem->area, mem_len(mem), mem_len(mem),
				 MREMAP_MAYMOVE | MREMAP_FIXED, spare) != spare)
		return false;
	mem->area = spare;
	mem_read(mem);
	return true;
}

static bool way_mprotect(struct mem *mem)
{
	if (mprotect(mem->area, mem_len(mem), PROT_READ))
		return false;
	mem_read(mem);
	if (mprotect(mem->area, mem_len(mem), PROT_RW))
		return false;
	mem_write(mem, 2);
	return true;
}

static bool way_fork(struct mem *mem)
{
	struct peer peer;

	if (!peer_fork(&peer, mem))
		return false;
	if (!peer.pid) {
		mem_read(mem);
		_exit(mem_whole(mem) == mem->nr && mem_diff(mem) == NO_DIFF ? 0 : 1);
	}
	if (!peer_end(&peer))
		return false;
	mem_read(mem);
	return true;
}

/* All at once, by someone else: nothing is left out for the process to read. */
static bool way_swapoff(struct mem *mem)
{
	struct swaps swaps;
	bool off, present;

	read_swaps(&swaps);
	off = !swapoff(swaps.path);
	present = mem_present(mem) == mem_pages(mem);
	if (!off)
		return false;
	return !swapon(swaps.path, swaps.prio < 0 ? 0 : SWAP_FLAG_PREFER | swaps.prio) &&
	       present;
}

FIXTURE(page_granule_swap_in)
{
	struct swaps swaps;
	struct mem mem;
};

FIXTURE_VARIANT(page_granule_swap_in)
{
	bool (*way)(struct mem *mem);
};

FIXTURE_VARIANT_ADD(page_granule_swap_in, read) { .way = way_read };
FIXTURE_VARIANT_ADD(page_granule_swap_in, write) { .way = way_write };
FIXTURE_VARIANT_ADD(page_granule_swap_in, mlock) { .way = way_mlock };
FIXTURE_VARIANT_ADD(page_granule_swap_in, populate_read) { .way = way_populate_read };
FIXTURE_VARIANT_ADD(page_granule_swap_in, populate_write) { .way = way_populate_write };
FIXTURE_VARIANT_ADD(page_granule_swap_in, willneed) { .way = way_willneed };
FIXTURE_VARIANT_ADD(page_granule_swap_in, gup) { .way = way_gup };
FIXTURE_VARIANT_ADD(page_granule_swap_in, mremap) { .way = way_mremap };
FIXTURE_VARIANT_ADD(page_granule_swap_in, mprotect) { .way = way_mprotect };
FIXTURE_VARIANT_ADD(page_granule_swap_in, fork) { .way = way_fork };
FIXTURE_VARIANT_ADD(page_granule_swap_in, swapoff) { .way = way_swapoff };

FIXTURE_SETUP(page_granule_swap_in)
{
	if (!have_swap(&self->swaps))
		SKIP(return, SWAP_REMEDY);
	if (variant->way == way_swapoff && self->swaps.nr > 1)
		SKIP(return, "several swap devices: leave one only for swapoff");
}

/* Whatever has happened, swap is to be on. */
FIXTURE_TEARDOWN(page_granule_swap_in)
{
	EXPECT_TRUE(granule_invariants_hold());
	struct swaps swaps;

	read_swaps(&swaps);
	if (!swaps.nr)
		swapon(self->swaps.path, 0);
}

static void swap_in(struct __test_metadata *_metadata, struct mem *mem,
		    enum granule_kind kind, bool (*way)(struct mem *mem))
{
	unsigned long partial = to_be_split();

	ASSERT_TRUE(mem_create(mem, kind));
	mem_fill(mem, 1);
	ASSERT_TRUE(mem_page_out(mem));
	EXPECT_TRUE(way(mem));
	EXPECT_EQ(to_be_split(), partial);
	EXPECT_INTACT(mem);
	mem_write_pages(mem, 3);
	EXPECT_INTACT(mem);
}

/* Assert that contract granules are whole again, whichever way they come in. */
TEST_F(page_granule_swap_in, contract)
{
	swap_in(_metadata, &self->mem, GRANULE_CONTRACT, variant->way);
}

/* Assert the same for default-tagged ones. */
TEST_F(page_granule_swap_in, default_tagged)
{
	swap_in(_metadata, &self->mem, GRANULE_DEFAULT, variant->way);
}

/*
 * No order-4 page to be had. Nothing is whole then, but all 16 pages are there
 * and hold what they should, and that is counted.
 */
FIXTURE(page_granule_life_fallback)
{
	struct granule_fail fail;
	struct mem mem;
	struct peer peer;
	unsigned long pfns[MAX_PAGES];
};

FIXTURE_VARIANT(page_granule_life_fallback)
{
	enum granule_kind kind;
};

FIXTURE_VARIANT_ADD(page_granule_life_fallback, contract)
{
	.kind = GRANULE_CONTRACT,
};

FIXTURE_VARIANT_ADD(page_granule_life_fallback, default_tagged)
{
	.kind = GRANULE_DEFAULT,
};

FIXTURE_SETUP(page_granule_life_fallback)
{
	ASSERT_TRUE(mem_create(&self->mem, variant->kind));
	mem_fill(&self->mem, 1);
	if (!granule_fail_prepare(&self->fail))
		SKIP(return, GRANULE_FAIL_REMEDY);
}

FIXTURE_TEARDOWN(page_granule_life_fallback)
{
	EXPECT_TRUE(granule_invariants_hold());
	granule_fail_restore(&self->fail);
}

/* Assert that copy-on-write falls back to single pages, by one fault each. */
TEST_F(page_granule_life_fallback, cow)
{
	unsigned long cow = granule_vmstat("granule_cow");
	unsigned long fallback = granule_vmstat("granule_fallback");
	struct mem *mem = &self->mem;

	ASSERT_TRUE(peer_fork(&self->peer, mem));
	if (!self->peer.pid) {
		long faults;

		granule_fail_order4(true);
		faults = mem_write(mem, 2);
		EXPECT_LE(mem_write_pages(mem, 3), FAULT_SLACK);
		granule_fail_order4(false);
		EXPECT_FAULTS(faults, mem->nr);
		EXPECT_EQ(mem_whole(mem), 0);
		EXPECT_PRESENT(mem);
		EXPECT_EQ(granule_rss_kb(mem->area, mem_len(mem)), mem_len(mem) / 1024);

		/* A fork of single pages, too. */
		if (!fork()) {
			mem_write(mem, 4);
			EXPECT_PRESENT(mem);
			_exit(0);
		}
		wait(NULL);
		EXPECT_PRESENT(mem);
		mem_write_pages(mem, 5);
		EXPECT_PRESENT(mem);
		_exit(0);
	}
	EXPECT_TRUE(peer_end(&self->peer));
	EXPECT_INTACT(mem);
	EXPECT_GE(granule_vmstat("granule_cow") - cow, mem->nr);
	EXPECT_GE(granule_vmstat("granule_fallback") - fallback, mem->nr);
}

/* Assert that the pin of a shared granule falls back likewise. */
TEST_F(page_granule_life_fallback, unshare)
{
	unsigned long fallback = granule_vmstat("granule_fallback");
	struct mem *mem = &self->mem;
	int gup = open(GUP_TEST, O_RDWR);

	if (gup < 0)
		SKIP(return, "no " GUP_TEST ": set CONFIG_GUP_TEST=y, mount debugfs");
	ASSERT_TRUE(peer_fork_idle(&self->peer, mem));
	granule_fail_order4(true);
	ASSERT_EQ(pin(gup, mem, 0, mem_pages(mem), 0), 0);
	granule_fail_order4(false);
	EXPECT_EQ(granule_vmstat("granule_fallback") - fallback, mem->nr);
	EXPECT_EQ(mem_whole(mem), 0);
	EXPECT_PRESENT(mem);
	mem_write_pages(mem, 2);
	EXPECT_TRUE(pin_sees(gup, mem, 0, mem_pages(mem)));
	EXPECT_PRESENT(mem);
	EXPECT_TRUE(peer_end(&self->peer));
	close(gup);
}

/* Assert that fork copies what is pinned to single pages. */
TEST_F(page_granule_life_fallback, pinned_at_fork)
{
	struct mem *mem = &self->mem;
	unsigned long fallback;
	int gup = open(GUP_TEST, O_RDWR);

	if (gup < 0)
		SKIP(return, "no " GUP_TEST ": set CONFIG_GUP_TEST=y, mount debugfs");
	mem_pfns(mem, self->pfns);
	fallback = granule_vmstat("granule_fallback");
	ASSERT_EQ(pin(gup, mem, 0, mem_pages(mem), PIN_LONGTERM_TEST_FLAG_USE_WRITE), 0);
	/* Stacks and page tables are of lower orders, thread or no. */
	granule_fail_order4(true);
	ASSERT_TRUE(peer_fork(&self->peer, mem));
	granule_fail_order4(false);
	if (!self->peer.pid) {
		EXPECT_EQ(mem_whole(mem), 0);
		EXPECT_PRESENT(mem);
		mem_write_pages(mem, 3);
		EXPECT_PRESENT(mem);
		_exit(0);
	}
	EXPECT_TRUE(peer_end(&self->peer));
	EXPECT_EQ(granule_vmstat("granule_fallback") - fallback, mem->nr);
	EXPECT_EQ(mem_moved(mem, self->pfns, 0, mem_pages(mem)), 0);
	mem_write_pages(mem, 2);
	EXPECT_TRUE(pin_sees(gup, mem, 0, mem_pages(mem)));
	EXPECT_INTACT(mem);
	close(gup);
}

/*
 * Assert that without a folio a fault brings in the page that it is for, that the rest
 * of the granule stays out until it is asked for, that it is counted as a fallback, and
 * that the granule is whole the next time that it comes in.
 */
TEST_F(page_granule_life_fallback, swap_in)
{
	unsigned long swpin = granule_vmstat("granule_swpin");
	unsigned long fallback = granule_vmstat("granule_swpin_fallback");
	struct mem *mem = &self->mem;
	unsigned long whole;
	struct swaps swaps;

	if (!have_swap(&swaps))
		SKIP(return, SWAP_REMEDY);
	ASSERT_TRUE(mem_page_out(mem));
	granule_fail_order4(true);
	mem_read(mem);
	granule_fail_order4(false);
	/*
	 * What has not left the swap cache yet, as with disks, needs no memory. How much
	 * that is nobody tells: SwapCached lags behind. With zram it is none.
	 */
	whole = mem_whole(mem);
	if (!strncmp(swaps.path, "/dev/zram", 9))
		EXPECT_EQ(whole, 0);
	EXPECT_EQ(mem_present(mem), whole * GRANULE_NR_PAGES + mem->nr - whole);
	EXPECT_EQ(mem_present(mem) + mem_swapped(mem), mem_pages(mem));
	EXPECT_EQ(granule_vmstat("granule_swpin") - swpin, whole);
	EXPECT_EQ(granule_vmstat("granule_swpin_fallback") - fallback, mem->nr - whole);
	/* The others come in by themselves now, and are what they were. */
	EXPECT_EQ(mem_diff(mem), NO_DIFF);
	EXPECT_PRESENT(mem);
	EXPECT_EQ(granule_vmstat("granule_swpin_fallback") - fallback, mem->nr - whole);

	/* Out and in again, with memory to be had: now there are runs. */
	ASSERT_TRUE(mem_page_out(mem));
	lru_settle();
	mem_write(mem, 2);
	EXPECT_INTACT(mem);
	EXPECT_EQ(granule_vmstat("granule_swpin") - swpin, whole + mem->nr);
	EXPECT_EQ(granule_vmstat("granule_swpin_fallback") - fallback, mem->nr - whole);
}

/* Assert that what came in page by page is repaired once all of it is there. */
TEST_F(page_granule_life_fallback, swap_in_repair)
{
	struct mem *mem = &self->mem;
	struct swaps swaps;

	if (!have_swap(&swaps))
		SKIP(return, SWAP_REMEDY);
	ASSERT_TRUE(mem_page_out(mem));
	granule_fail_order4(true);
	mem_read(mem);
	granule_fail_order4(false);
	if (!granule_repair(true))
		SKIP(return, REPAIR_REMEDY);
	/* What is out is not brought in for it. */
	if (!strncmp(swaps.path, "/dev/zram", 9)) {
		EXPECT_FALSE(mem_wait_whole(mem, 1));
		EXPECT_EQ(mem_present(mem), mem->nr);
	}
	mem_write_pages(mem, 2);
	EXPECT_TRUE(mem_wait_whole(mem, 20));
	EXPECT_INTACT(mem);
	granule_repair(false);
}

/*
 * Assert that a larger folio, some granules of which were cut, is moved or stays.
 * Migration splits it, as it does any that it has no memory for.
 */
TEST_F(page_granule_life_fallback, move_cut_folio)
{
	const unsigned int order = 6, step = 4;
	struct mem *mem = &self->mem;
	unsigned long i;

	if (variant->kind != GRANULE_DEFAULT)
		SKIP(return, "a contract granule cannot be cut: see default_tagged");
	if (!(thp_supported_orders() & (1UL << order)))
		SKIP(return, "no 256 KiB mTHP: set CONFIG_TRANSPARENT_HUGEPAGE");
	if (!granule_two_nodes())
		SKIP(return, NODES_REMEDY);
	ASSERT_TRUE(mem_renew(mem));
	granule_thp_order(order);
	mem_fill(mem, 1);
	granule_thp_never();
	for (i = 1; i < mem->nr; i += step) {
		ASSERT_EQ(madvise(nth(mem->area, i) + BASE_SIZE, BASE_SIZE, MADV_DONTNEED), 0);
		memset(nth(mem->model, i) + BASE_SIZE, 0, BASE_SIZE);
	}
	granule_fail_order4(true);
	move_to_node(mem, 1);
	move_to_node(mem, 0);
	granule_fail_order4(false);
	EXPECT_EQ(mem_diff(mem), NO_DIFF);
	mem_write_pages(mem, 2);
	EXPECT_PRESENT(mem);
}

/*
 * Assert that MADV_FREE never leaves a part of a contract granule. Half of them
 * are of single pages, every other page of which is swapped out.
 */
TEST_F(page_granule_life_fallback, madv_free)
{
	struct mem *mem = &self->mem;
	char cgroup[PATH_MAX + 32], root[PATH_MAX];
	unsigned long i, filled, partial = 0, gone = 0;
	struct swaps swaps;

	if (variant->kind != GRANULE_CONTRACT)
		SKIP(return, "4 KiB advice is legal there: see contract");
	if (!have_swap(&swaps))
		SKIP(return, SWAP_REMEDY);
	if (!join_cgroup(root, cgroup, sizeof(cgroup)))
		SKIP(return, CGROUP_REMEDY);
	ASSERT_TRUE(mem_renew(mem));
	for (i = 0; i < mem->nr; i++) {
		granule_fail_order4(i & 1);
		memset(nth(mem->area, i), 1, GRANULE_SIZE);
	}
	granule_fail_order4(false);
	EXPECT_EQ(mem_whole(mem), mem->nr / 2);
	/* What does not fit goes out, in single pages where it is in those. */
	granule_cg_write(cgroup, "memory.reclaim", "512K swappiness=max");
	ASSERT_EQ(madvise(mem->area, mem_len(mem), MADV_FREE), 0);
	EXPECT_TRUE(granule_invariants_hold());
	granule_cg_write(cgroup, "memory.reclaim", "4M swappiness=0");
	for (i = 0; i < mem->nr; i++) {
		filled = granule_filled(mem->pagemap, nth(mem->area, i));
		partial += filled && filled != GRANULE_NR_PAGES;
		gone += !filled;
	}
	EXPECT_EQ(partial, 0);
	EXPECT_GT(gone, 0);
	granule_cg_write(root, "cgroup.procs", "0");
	rmdir(cgroup);
}

/* Assert that it does not matter in which order, or where, pages are swapped out. */
TEST_F(page_granule_life_fallback, scattered_slots)
{
	struct mem *mem = &self->mem;
	unsigned long i, odd;
	struct swaps swaps;

	if (!have_swap(&swaps))
		SKIP(return, SWAP_REMEDY);
	if (variant->kind == GRANULE_CONTRACT)
		SKIP(return, "a contract granule cannot be cut: see default_tagged");
	ASSERT_TRUE(mem_renew(mem));
	granule_fail_order4(true);
	mem_fill(mem, 2);
	granule_fail_order4(false);
	ASSERT_EQ(mem_whole(mem), 0);
	for (odd = 0; odd < 2; odd++) {
		for (i = odd; i < mem_pages(mem); i += 2)
			ASSERT_EQ(madvise(mem->area + i * BASE_SIZE, BASE_SIZE, MADV_PAGEOUT),
				  0);
	}
	ASSERT_TRUE(mem_page_out(mem));
	lru_settle();
	mem_read(mem);
	EXPECT_INTACT(mem);
	mem_write_pages(mem, 3);
	EXPECT_INTACT(mem);
}

/*
 * Assert that granules of single pages are repaired soon after there is memory,
 * and no sooner: however they came to be of single pages.
 */
TEST_F(page_granule_life_fallback, repair)
{
	unsigned long repaired = granule_vmstat("granule_repair");
	struct mem *mem = &self->mem;

	ASSERT_TRUE(mem_renew(mem));
	granule_fail_order4(true);
	mem_fill(mem, 2);
	granule_fail_order4(false);
	ASSERT_EQ(mem_whole(mem), 0);
	if (!granule_repair(true))
		SKIP(return, REPAIR_REMEDY);
	EXPECT_TRUE(mem_wait_whole(mem, 20));
	EXPECT_INTACT(mem);
	EXPECT_EQ(granule_vmstat("granule_repair") - repaired, mem->nr);
	EXPECT_EQ(granule_rss_kb(mem->area, mem_len(mem)), mem_len(mem) / 1024);

	/* Copied by a write after fork(), which this process waits for. */
	granule_repair(false);
	ASSERT_TRUE(peer_fork(&self->peer, mem));
	if (!self->peer.pid) {
		granule_fail_order4(true);
		mem_write(mem, 3);
		granule_fail_order4(false);
		EXPECT_EQ(mem_whole(mem), 0);
		granule_repair(true);
		EXPECT_TRUE(mem_wait_whole(mem, 20));
		EXPECT_INTACT(mem);
		mem_write_pages(mem, 4);
		EXPECT_INTACT(mem);
		_exit(0);
	}
	EXPECT_TRUE(peer_end(&self->peer));
	EXPECT_INTACT(mem);
	granule_repair(false);
}

/* Assert that what was given back and taken again is repaired, once it is full. */
TEST_F(page_granule_life_fallback, repair_filled)
{
	struct mem *mem = &self->mem;
	unsigned long i;

	if (variant->kind == GRANULE_CONTRACT)
		SKIP(return, "a contract granule cannot be cut: see default_tagged");
	for (i = 0; i < mem->nr; i++) {
		char *page = byte_of(mem->area, i);

		page -= (unsigned long)page % BASE_SIZE;
		ASSERT_EQ(madvise(page, BASE_SIZE, MADV_DONTNEED), 0);
		memset(mem->model + (page - mem->area), 0, BASE_SIZE);
	}
	EXPECT_EQ(mem_whole(mem), 0);
	if (!granule_repair(true))
		SKIP(return, REPAIR_REMEDY);
	/* An empty page is left empty. */
	EXPECT_FALSE(mem_wait_whole(mem, 2));
	EXPECT_EQ(mem_present(mem), mem_pages(mem) - mem->nr);
	mem_write_pages(mem, 5);
	EXPECT_TRUE(mem_wait_whole(mem, 20));
	EXPECT_INTACT(mem);
	granule_repair(false);
}

/* Assert that pages which are pinned stay where they are until they are not. */
TEST_F(page_granule_life_fallback, repair_pinned)
{
	const unsigned int flags = PIN_LONGTERM_TEST_FLAG_USE_WRITE;
	const unsigned long pinned = GRANULE_NR_PAGES + 2;
	struct mem *mem = &self->mem;
	int gup = open(GUP_TEST, O_RDWR);

	if (gup < 0)
		SKIP(return, "no " GUP_TEST ": set CONFIG_GUP_TEST=y, mount debugfs");
	ASSERT_TRUE(mem_renew(mem));
	granule_fail_order4(true);
	mem_fill(mem, 2);
	granule_fail_order4(false);
	mem_pfns(mem, self->pfns);
	ASSERT_EQ(pin(gup, mem, pinned, pinned + 1, flags), 0);
	if (!granule_repair(true))
		SKIP(return, REPAIR_REMEDY);
	EXPECT_FALSE(mem_wait_whole(mem, 3));
	EXPECT_EQ(mem_whole(mem), mem->nr - 1);
	EXPECT_EQ(mem_moved(mem, self->pfns, GRANULE_NR_PAGES, 2 * GRANULE_NR_PAGES), 0);
	mem_write_pages(mem, 3);
	EXPECT_TRUE(pin_sees(gup, mem, pinned, pinned + 1));
	ASSERT_EQ(ioctl(gup, PIN_LONGTERM_TEST_STOP), 0);
	EXPECT_TRUE(mem_wait_whole(mem, 20));
	EXPECT_INTACT(mem);
	granule_repair(false);
	close(gup);
}

/* Assert that MADV_COLLAPSE repairs at once, only what it is asked to, and says so. */
TEST_F(page_granule_life_fallback, repair_on_demand)
{
	struct mem *mem = &self->mem;

	ASSERT_TRUE(mem_renew(mem));
	/* There is nothing yet that could be whole. */
	EXPECT_EQ(madvise(mem->area, mem_len(mem), MADV_COLLAPSE), 0);
	granule_fail_order4(true);
	mem_fill(mem, 2);
	EXPECT_EQ(mem_whole(mem), 0);
	errno = 0;
	EXPECT_EQ(madvise(mem->area, GRANULE_SIZE, MADV_COLLAPSE), -1);
	EXPECT_EQ(errno, ENOMEM);
	EXPECT_EQ(mem_whole(mem), 0);
	granule_fail_order4(false);
	EXPECT_EQ(madvise(nth(mem->area, 1), 2 * GRANULE_SIZE, MADV_COLLAPSE), 0);
	EXPECT_EQ(mem_whole(mem), 2);
	EXPECT_EQ(madvise(mem->area, mem_len(mem), MADV_COLLAPSE), 0);
	EXPECT_INTACT(mem);
	/* And that is enough. */
	EXPECT_EQ(madvise(mem->area, mem_len(mem), MADV_COLLAPSE), 0);
	EXPECT_INTACT(mem);
}

/* Assert that MADV_COLLAPSE says of what is pinned that it may be tried again. */
TEST_F(page_granule_life_fallback, repair_on_demand_pinned)
{
	const unsigned int flags = PIN_LONGTERM_TEST_FLAG_USE_WRITE;
	struct mem *mem = &self->mem;
	int gup = open(GUP_TEST, O_RDWR);

	if (gup < 0)
		SKIP(return, "no " GUP_TEST ": set CONFIG_GUP_TEST=y, mount debugfs");
	ASSERT_TRUE(mem_renew(mem));
	granule_fail_order4(true);
	mem_fill(mem, 2);
	granule_fail_order4(false);
	ASSERT_EQ(pin(gup, mem, PIN_FIRST, PIN_FIRST + 1, flags), 0);
	errno = 0;
	EXPECT_EQ(madvise(mem->area, mem_len(mem), MADV_COLLAPSE), -1);
	EXPECT_EQ(errno, EAGAIN);
	EXPECT_EQ(mem_whole(mem), mem->nr - 1);
	mem_write_pages(mem, 3);
	EXPECT_TRUE(pin_sees(gup, mem, PIN_FIRST, PIN_FIRST + 1));
	ASSERT_EQ(ioctl(gup, PIN_LONGTERM_TEST_STOP), 0);
	EXPECT_EQ(mem_collapse(mem), 0);
	EXPECT_INTACT(mem);
	close(gup);
}

/*
 * Assert that MADV_COLLAPSE fills no holes: neither what was given back nor the zeroes
 * that were read there since. What cannot be whole is none of its failures.
 */
TEST_F(page_granule_life_fallback, repair_on_demand_holes)
{
	struct mem *mem = &self->mem;
	unsigned long present, i;

	if (variant->kind == GRANULE_CONTRACT)
		SKIP(return, "a contract granule cannot be cut: see default_tagged");
	for (i = 0; i < mem->nr; i += 2) {
		char *hole = nth(mem->area, i) + i % GRANULE_NR_PAGES * BASE_SIZE;

		ASSERT_EQ(madvise(hole, BASE_SIZE, MADV_DONTNEED), 0);
		memset(mem->model + (hole - mem->area), 0, BASE_SIZE);
		if (i & 2)
			FORCE_READ(*hole);
	}
	present = mem_present(mem);
	EXPECT_EQ(present, mem_pages(mem) - mem->nr / 4);
	EXPECT_EQ(madvise(mem->area, mem_len(mem), MADV_COLLAPSE), 0);
	EXPECT_EQ(mem_present(mem), present);
	EXPECT_EQ(mem_whole(mem), mem->nr / 2);
	EXPECT_EQ(granule_rss_kb(mem->area, mem_len(mem)),
		  (mem_pages(mem) - mem->nr / 2) * BASE_SIZE / 1024);
	EXPECT_EQ(mem_diff(mem), NO_DIFF);
}

/*
 * Assert that repair leaves locked memory where it is, as vm.compact_unevictable_allowed
 * may ask for, and that who asks for it by MADV_COLLAPSE gets it.
 */
TEST_F(page_granule_life_fallback, repair_locked)
{
	struct mem *mem = &self->mem;

	ASSERT_TRUE(mem_renew(mem));
	granule_fail_order4(true);
	mem_fill(mem, 2);
	granule_fail_order4(false);
	ASSERT_EQ(mlock(mem->area, mem_len(mem)), 0);
	mem_pfns(mem, self->pfns);
	if (!granule_repair(true))
		SKIP(return, REPAIR_REMEDY);
	EXPECT_FALSE(mem_wait_whole(mem, 2));
	EXPECT_EQ(mem_moved(mem, self->pfns, 0, mem_pages(mem)), 0);
	granule_repair(false);
	EXPECT_EQ(mem_collapse(mem), 0);
	EXPECT_INTACT(mem);
	EXPECT_EQ(munlock(mem->area, mem_len(mem)), 0);
}

/* Shared memory where there is no folio, or none any more. */
FIXTURE(page_granule_shared)
{
	struct granule_fail fail;
	struct mem mem;
	struct peer peer;
	char cgroup[PATH_MAX + 32];
	char root[PATH_MAX];
	char dev[32];
	struct swaps swaps;
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

FIXTURE_SETUP(page_granule_shared)
{
	struct mem *mem = &self->mem;

	ASSERT_TRUE(stay_on_cpu());
	ASSERT_TRUE(mem_create(mem, variant->kind));
	if (!join_cgroup(self->root, self->cgroup, sizeof(self->cgroup)))
		SKIP(return, CGROUP_REMEDY);
	ASSERT_EQ(granule_mmap(mem->kind, mem->area, mem_len(mem), PROT_RW,
			       MAP_FIXED | MAP_SHARED), mem->area);
	if (!granule_fail_prepare(&self->fail))
		SKIP(return, GRANULE_FAIL_REMEDY);
}

FIXTURE_TEARDOWN(page_granule_shared)
{
	EXPECT_TRUE(granule_invariants_hold());
	granule_fail_restore(&self->fail);
	if (*self->dev) {
		swapoff(self->dev);
		granule_zram_remove(self->dev);
		EXPECT_EQ(swapon(self->swaps.path, 0), 0);
	}
	if (!*self->cgroup)
		return;
	granule_cg_write(self->root, "cgroup.procs", "0");
	rmdir(self->cgroup);
}

/* Single pages, by a fault each granule. */
static long mem_fill_single(struct mem *mem, unsigned int seed)
{
	long faults = minor_faults();

	granule_fail_order4(true);
	granule_fill(mem->area, mem_len(mem), seed);
	granule_fail_order4(false);
	faults = minor_faults() - faults;
	granule_fill(mem->model, mem_len(mem), seed);
	return faults;
}

/*
 * Assert that a write populates all of a granule from single pages, that repair
 * makes it whole soon, and that other processes see the same memory then.
 */
TEST_F(page_granule_shared, written)
{
	unsigned long fallback = granule_vmstat("granule_fallback");
	unsigned long repaired = granule_vmstat("granule_repair");
	struct mem *mem = &self->mem;
	long faults;

	faults = mem_fill_single(mem, 1);
	EXPECT_FAULTS(faults, mem->nr);
	EXPECT_EQ(granule_vmstat("granule_fallback") - fallback, mem->nr);
	EXPECT_EQ(mem_whole(mem), 0);
	EXPECT_PRESENT(mem);

	if (!granule_repair(true))
		SKIP(return, REPAIR_REMEDY);
	EXPECT_TRUE(mem_wait_whole(mem, 20));
	granule_repair(false);
	EXPECT_INTACT(mem);
	EXPECT_EQ(granule_vmstat("granule_repair") - repaired, mem->nr);

	ASSERT_TRUE(peer_fork(&self->peer, mem));
	if (!self->peer.pid) {
		mem_read(mem);
		EXPECT_INTACT(mem);
		mem_write(mem, 2);
		mem_write_pages(mem, 3);
		_exit(0);
	}
	EXPECT_TRUE(peer_end(&self->peer));
	/* The model is not shared. */
	mem_write(mem, 2);
	mem_write_pages(mem, 3);
	EXPECT_INTACT(mem);
}

/*
 * Assert that repair takes nothing from another process that maps the same pages, and
 * that MADV_COLLAPSE, which somebody asked for, does: it maps them again as a whole.
 */
TEST_F(page_granule_shared, mapped_by_others)
{
	struct mem *mem = &self->mem;

	mem_fill_single(mem, 1);
	ASSERT_TRUE(peer_fork(&self->peer, mem));
	if (!self->peer.pid) {
		/* Or else it would be brought to one folio here. */
		granule_fail_order4(true);
		mem_read(mem);
		granule_fail_order4(false);
		EXPECT_EQ(mem_whole(mem), 0);
		EXPECT_PRESENT(mem);
		if (!peer_switch(&self->peer))
			_exit(1);
		EXPECT_EQ(mem_present(mem), mem_pages(mem));
		EXPECT_LE(mem_write_pages(mem, 2), FAULT_SLACK);
		if (!peer_switch(&self->peer))
			_exit(1);
		EXPECT_EQ(mem_present(mem), 0);
		mem_read(mem);
		EXPECT_INTACT(mem);
		mem_write_pages(mem, 3);
		EXPECT_INTACT(mem);
		_exit(0);
	}
	ASSERT_TRUE(peer_wait(&self->peer));
	if (!granule_repair(true))
		SKIP(return, REPAIR_REMEDY);
	EXPECT_FALSE(mem_wait_whole(mem, 2));
	granule_repair(false);
	EXPECT_EQ(mem_whole(mem), 0);
	ASSERT_TRUE(peer_switch(&self->peer));
	EXPECT_EQ(mem_collapse(mem), 0);
	EXPECT_EQ(mem_whole(mem), mem->nr);
	peer_go(&self->peer);
	EXPECT_TRUE(peer_end(&self->peer));
	/* The model is not shared. */
	mem_write_pages(mem, 3);
	EXPECT_INTACT(mem);
}

/* Assert the same of a read, and that a write then faults no more. */
TEST_F(page_granule_shared, read)
{
	struct mem *mem = &self->mem;
	long faults = minor_faults();

	granule_fail_order4(true);
	mem_read(mem);
	faults = minor_faults() - faults;
	EXPECT_FAULTS(faults, mem->nr);
	EXPECT_EQ(mem_whole(mem), 0);
	EXPECT_PRESENT(mem);
	EXPECT_LE(mem_write_pages(mem, 1), FAULT_SLACK);
	granule_fail_order4(false);
	EXPECT_PRESENT(mem);
	EXPECT_EQ(madvise(nth(mem->area, 1), 2 * GRANULE_SIZE, MADV_COLLAPSE), 0);
	EXPECT_EQ(mem_whole(mem), 2);
	EXPECT_EQ(madvise(mem->area, mem_len(mem), MADV_COLLAPSE), 0);
	EXPECT_INTACT(mem);
}

/* Assert that single pages that were swapped out come back as a whole. */
TEST_F(page_granule_shared, scattered_slots)
{
	unsigned long swpin = granule_vmstat("granule_swpin");
	struct mem *mem = &self->mem;
	long faults;

	if (!have_swap(&self->swaps))
		SKIP(return, SWAP_REMEDY);
	mem_fill_single(mem, 1);
	ASSERT_TRUE(shared_page_out(self->cgroup, mem));
	faults = all_faults();
	mem_read(mem);
	faults = all_faults() - faults;
	EXPECT_FAULTS(faults, mem->nr);
	EXPECT_INTACT(mem);
	EXPECT_EQ(granule_vmstat("granule_swpin") - swpin, mem->nr);
}

/* Assert that without a folio all 16 pages come back, by one fault, counted. */
TEST_F(page_granule_shared, swapin_fallback)
{
	unsigned long fallback = granule_vmstat("granule_swpin_fallback");
	struct mem *mem = &self->mem;
	long faults;

	if (!have_swap(&self->swaps))
		SKIP(return, SWAP_REMEDY);
	mem_fill(mem, 1);
	ASSERT_TRUE(shared_page_out(self->cgroup, mem));
	granule_fail_order4(true);
	faults = all_faults();
	mem_read(mem);
	faults = all_faults() - faults;
	granule_fail_order4(false);
	EXPECT_FAULTS(faults, mem->nr);
	EXPECT_EQ(granule_vmstat("granule_swpin_fallback") - fallback, mem->nr);
	EXPECT_EQ(mem_whole(mem), 0);
	EXPECT_PRESENT(mem);
	if (!granule_repair(true))
		SKIP(return, REPAIR_REMEDY);
	EXPECT_TRUE(mem_wait_whole(mem, 20));
	granule_repair(false);
	EXPECT_INTACT(mem);
}

/* Assert that it does not matter that some of a granule is in the page cache. */
TEST_F(page_granule_shared, partly_cached)
{
	struct mem *mem = &self->mem;
	unsigned long i;
	int fail;
	long faults;

	if (!have_swap(&self->swaps))
		SKIP(return, SWAP_REMEDY);
	if (variant->kind == GRANULE_CONTRACT)
		SKIP(return, "4 KiB advice is not legal there: see default_tagged");
	for (fail = 1; fail >= 0; fail--) {
		mem_fill_single(mem, 1);
		for (i = 0; i < mem_pages(mem); i += 2)
			ASSERT_EQ(madvise(mem->area + i * BASE_SIZE, BASE_SIZE, MADV_PAGEOUT),
				  0);
		/* What was not paged out is unmapped, and in memory. */
		ASSERT_EQ(madvise(mem->area, mem_len(mem), MADV_DONTNEED), 0);
		granule_fail_order4(fail);
		faults = all_faults();
		for (i = 0; i < mem->nr; i++)
			FORCE_READ(*(nth(mem->area, i) + BASE_SIZE));
		faults = all_faults() - faults;
		granule_fail_order4(false);
		EXPECT_FAULTS(faults, mem->nr);
		EXPECT_PRESENT(mem);
		EXPECT_EQ(mem_whole(mem), fail ? 0 : mem->nr);
		if (fail)
			ASSERT_EQ(madvise(mem->area, mem_len(mem), MADV_REMOVE), 0);
	}
}

/*
 * Assert that advice to page out is followed also where there are no slots in a row, on a
 * device that is too small for any, and that what was split for it comes back whole.
 */
TEST_F(page_granule_shared, no_slots_in_a_row)
{
	struct mem *mem = &self->mem;
	unsigned long swpout;
	struct mem private;

	if (!have_swap(&self->swaps) || self->swaps.nr != 1)
		SKIP(return, "not one swap device: swapon one, with 64 MiB free");
	granule_zram_create(self->dev, sizeof(self->dev), 1);
	if (!*self->dev)
		SKIP(return, "no zram device: set CONFIG_ZRAM=y");
	ASSERT_TRUE(granule_make_swap(self->dev, 1));
	ASSERT_EQ(swapoff(self->swaps.path), 0);
	ASSERT_EQ(swapon(self->dev, 0), 0);
	/* All of it fits, private and shared. */
	mem->nr = 6;
	private = *mem;
	private.area = granule_mmap(mem->kind, NULL, mem_len(mem), PROT_RW, 0);
	ASSERT_NE(private.area, MAP_FAILED);
	mem_fill(mem, 1);
	mem_fill(&private, 1);
	swpout = swapped_whole();
	EXPECT_TRUE(mem_page_out(&private));
	EXPECT_TRUE(shared_page_out(self->cgroup, mem));
	EXPECT_EQ(swapped_whole(), swpout);

	lru_settle();
	mem_read(&private);
	EXPECT_INTACT(&private);
	mem_read(mem);
	EXPECT_INTACT(mem);
}

/* What moves, protects or ages memory. Returns 0, a negative errno, NO_NODES, or this. */
#define NO_COMPACTION	2

static int stage_mprotect(struct mem *mem)
{
	static const int prots[] = { PROT_NONE, PROT_READ, PROT_READ | PROT_EXEC, PROT_RW };
	size_t i;

	for (i = 0; i < ARRAY_SIZE(prots); i++) {
		if (mprotect(mem->area, mem_len(mem), prots[i]))
			return -errno;
		if (mem_mapped(mem) != mem->nr)
			return -EIO;
	}
	return 0;
}

static int stage_mremap(struct mem *mem)
{
	char *spare = granule_reserve(mem_len(mem));

	if (!spare || sys_mremap(mem->area, mem_len(mem), mem_len(mem),
				 MREMAP_MAYMOVE | MREMAP_FIXED, spare) != spare)
		return -errno;
	mem->area = spare;
	return 0;
}

/* To where the kernel likes, because there is no room to grow into. */
static int stage_mremap_grow(struct mem *mem)
{
	char *wall = mem->area + mem_len(mem), *area;

	if (granule_mmap(GRANULE_UNTAGGED, wall, BASE_SIZE, PROT_READ, MAP_FIXED) != wall)
		return -errno;
	area = sys_mremap(mem->area, mem_len(mem), mem_len(mem) + GRANULE_SIZE,
			  MREMAP_MAYMOVE, NULL);
	if (area == MAP_FAILED)
		return -errno;
	if (area == mem->area)
		return -EIO;
	mem->area = area;
	return 0;
}

static int stage_mlock(struct mem *mem)
{
	if (mlock(mem->area, mem_len(mem)))
		return -errno;
	if (mem_mapped(mem) != mem->nr)
		return -EIO;
	return munlock(mem->area, mem_len(mem)) ? -errno : 0;
}

static int stage_cold(struct mem *mem)
{
	return madvise(mem->area, mem_len(mem), MADV_COLD) ? -errno : 0;
}

static int stage_free(struct mem *mem)
{
	if (madvise(mem->area, mem_len(mem), MADV_FREE))
		return -errno;
	mem_fill(mem, 7);
	return 0;
}

static int stage_move_pages(struct mem *mem)
{
	int ret;

	if (!granule_two_nodes())
		return NO_NODES;
	ret = move_to_node(mem, 1);
	return ret ?: move_to_node(mem, 0);
}

static int stage_mbind(struct mem *mem)
{
	unsigned long mask, pfns[MAX_PAGES];
	unsigned int node;

	if (!granule_two_nodes())
		return NO_NODES;
	for (node = 2; node--;) {
		mem_pfns(mem, pfns);
		mask = 1UL << node;
		if (syscall(__NR_mbind, mem->area, mem_len(mem), MPOL_BIND, &mask,
			    sizeof(mask) * 8, MPOL_MF_MOVE | MPOL_MF_MOVE_ALL | MPOL_MF_STRICT))
			return -errno;
		/* From wherever it was to node 1; from there to node 0. */
		if (!node && mem_moved(mem, pfns, 0, mem_pages(mem)) != mem_pages(mem))
			return -EIO;
	}
	return 0;
}

/* More than once: what has been moved must be fit to be moved again. */
static int stage_compact(struct mem *mem)
{
	int i;

	if (access("/proc/sys/vm/compact_memory", W_OK))
		return NO_COMPACTION;
	for (i = 0; i < 3; i++)
		write_num("/proc/sys/vm/compact_memory", 1);
	return 0;
}

FIXTURE(page_granule_stage)
{
	struct mem mem;
	struct peer peer;
};

FIXTURE_VARIANT(page_granule_stage)
{
	int (*stage)(struct mem *mem);
	/* May find no memory for a folio, and splits it then, as any other. */
	bool splits;
};

FIXTURE_VARIANT_ADD(page_granule_stage, mprotect) { .stage = stage_mprotect };
FIXTURE_VARIANT_ADD(page_granule_stage, mremap) { .stage = stage_mremap };
FIXTURE_VARIANT_ADD(page_granule_stage, mremap_grow) { .stage = stage_mremap_grow };
FIXTURE_VARIANT_ADD(page_granule_stage, mlock) { .stage = stage_mlock };
FIXTURE_VARIANT_ADD(page_granule_stage, madv_cold) { .stage = stage_cold };
FIXTURE_VARIANT_ADD(page_granule_stage, madv_free) { .stage = stage_free };
FIXTURE_VARIANT_ADD(page_granule_stage, move_pages) { .stage = stage_move_pages };
FIXTURE_VARIANT_ADD(page_granule_stage, mbind) { .stage = stage_mbind };
FIXTURE_VARIANT_ADD(page_granule_stage, compact) { .stage = stage_compact, .splits = true };

FIXTURE_SETUP(page_granule_stage)
{
}

FIXTURE_TEARDOWN(page_granule_stage)
{
	EXPECT_TRUE(granule_invariants_hold());
}

/*
 * Write to it after a stage, when it is whole. If the stage may have split granules,
 * these hold what they did, and are formed again; but nothing that is shared is copied
 * for that, so all of it is written to first.
 */
static void after_stage(struct __test_metadata *_metadata, struct mem *mem, bool splits,
			char value)
{
	if (splits) {
		EXPECT_PRESENT(mem);
		mem_write_pages(mem, value);
		EXPECT_EQ(mem_collapse(mem), 0);
	} else {
		EXPECT_INTACT(mem);
		mem_write(mem, value);
	}
	EXPECT_INTACT(mem);
	mem_write_pages(mem, value + 1);
	EXPECT_INTACT(mem);
}

static void go_through(struct __test_metadata *_metadata, struct mem *mem,
		       enum granule_kind kind, struct peer *peer,
		       int (*stage)(struct mem *mem), bool splits)
{
	unsigned long partial;
	int ret;

	ASSERT_TRUE(mem_create(mem, kind));
	mem_fill(mem, 1);
	if (peer) {
		ASSERT_TRUE(peer_fork(peer, mem));
		if (!peer->pid) {
			peer_switch(peer);
			after_stage(_metadata, mem, splits, 5);
			_exit(0);
		}
		ASSERT_TRUE(peer_wait(peer));
	}
	EXPECT_INTACT(mem);
	partial = to_be_split();
	ret = stage(mem);
	if (ret == NO_NODES)
		SKIP(return, NODES_REMEDY);
	if (ret == NO_COMPACTION)
		SKIP(return, "no compaction: build the kernel with CONFIG_COMPACTION=y");
	EXPECT_EQ(ret, 0);
	EXPECT_EQ(to_be_split(), partial);
	after_stage(_metadata, mem, splits, 3);
	if (peer)
		EXPECT_TRUE(peer_end(peer));
}

/* Assert that contract granules are whole after it, and can be written to. */
TEST_F(page_granule_stage, contract)
{
	go_through(_metadata, &self->mem, GRANULE_CONTRACT, NULL, variant->stage,
		   variant->splits);
}

/* Assert the same for default-tagged ones. */
TEST_F(page_granule_stage, default_tagged)
{
	go_through(_metadata, &self->mem, GRANULE_DEFAULT, NULL, variant->stage,
		   variant->splits);
}

/* Assert the same for those that a child shares, in both. */
TEST_F(page_granule_stage, contract_shared)
{
	go_through(_metadata, &self->mem, GRANULE_CONTRACT, &self->peer, variant->stage,
		   variant->splits);
}

TEST_F(page_granule_stage, default_shared)
{
	go_through(_metadata, &self->mem, GRANULE_DEFAULT, &self->peer, variant->stage,
		   variant->splits);
}

int main(int argc, char **argv)
{
	granule_require();
	granule_save_settings();
	return test_harness_run(argc, argv);
}
