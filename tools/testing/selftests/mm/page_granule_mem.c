// SPDX-License-Identifier: GPL-2.0
/*
 * Page granule: an area with a model, and what the tests of a granule's life do
 * to it: populate, compare, page out, fork, write by many threads, and pin.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../../../../mm/gup_test.h"
#include "hugepage_settings.h"
#include "kselftest.h"
#include "vm_util.h"
#include "page_granule_mem.h"

size_t mem_len(const struct mem *mem)
{
	return mem->nr * GRANULE_SIZE;
}

unsigned long mem_pages(const struct mem *mem)
{
	return mem->nr * GRANULE_NR_PAGES;
}

char *mem_target(const struct mem *mem)
{
	return nth(mem->area, TARGET);
}

char *mem_unit(const struct mem *mem)
{
	return page_at(mem->area, mem->first);
}

size_t mem_unit_len(const struct mem *mem)
{
	return (mem->end - mem->first) * BASE_SIZE;
}

bool mem_create_nr(struct mem *mem, enum granule_kind kind, unsigned long nr)
{
	char *res;

	mem->kind = kind;
	mem->nr = nr;
	mem->first = kind == GRANULE_CONTRACT ? TARGET * GRANULE_NR_PAGES : TARGET_PAGE;
	mem->end = mem->first + (kind == GRANULE_CONTRACT ? GRANULE_NR_PAGES : 1);
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

bool mem_create(struct mem *mem, enum granule_kind kind)
{
	return mem_create_nr(mem, kind, MEM_GRANULES);
}

/* The same again with nothing in it, for a test that has several rounds. */
bool mem_renew(struct mem *mem)
{
	memset(mem->model, 0, mem_len(mem));
	return granule_mmap(mem->kind, mem->area, mem_len(mem), PROT_RW, MAP_FIXED) ==
	       mem->area;
}

/* The same again with nothing in it, as shared memory. */
bool mem_share(struct mem *mem)
{
	return granule_mmap(mem->kind, mem->area, mem_len(mem), PROT_RW,
			    MAP_SHARED | MAP_FIXED) == mem->area;
}

void mem_fill(struct mem *mem, unsigned int seed)
{
	granule_fill(mem->area, mem_len(mem), seed);
	granule_fill(mem->model, mem_len(mem), seed);
}

void mem_read(struct mem *mem)
{
	unsigned long i;

	for (i = 0; i < mem->nr; i++)
		FORCE_READ(*byte_of(mem->area, i));
}

/*
 * Write one byte of each granule, then the model. Returns the faults it took.
 */
long mem_write(struct mem *mem, char value)
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
long mem_write_pages(struct mem *mem, char value)
{
	long faults = minor_faults();
	unsigned long i;

	for (i = 0; i < mem_pages(mem); i++)
		*byte_in(mem->area, i) = value;
	faults = minor_faults() - faults;
	for (i = 0; i < mem_pages(mem); i++)
		*byte_in(mem->model, i) = value;
	return faults;
}

/* Write to all pages but those from @first up to @end. */
void mem_write_but(struct mem *mem, unsigned long first, unsigned long end,
		   char value)
{
	unsigned long i;

	for (i = 0; i < mem_pages(mem); i++) {
		if (i >= first && i < end)
			continue;
		*byte_in(mem->area, i) = value;
		*byte_in(mem->model, i) = value;
	}
}

/* Where the area first differs from its model. Reads all, so do it last. */
long mem_diff(const struct mem *mem)
{
	size_t pos;

	if (!memcmp(mem->area, mem->model, mem_len(mem)))
		return NO_DIFF;
	for (pos = 0; mem->area[pos] == mem->model[pos]; pos++)
		;
	return pos;
}

/* Do all pages but those from @first up to @end hold what they should? */
bool mem_holds_but(const struct mem *mem, unsigned long first,
		   unsigned long end)
{
	unsigned long i;

	for (i = 0; i < mem_pages(mem); i++) {
		if (i >= first && i < end)
			continue;
		if (memcmp(page_at(mem->area, i), page_at(mem->model, i), BASE_SIZE)) {
			ksft_print_msg("page %lu of granule %lu differs\n",
				       i % GRANULE_NR_PAGES, i / GRANULE_NR_PAGES);
			return false;
		}
	}
	return true;
}

bool mem_holds(const struct mem *mem)
{
	return mem_holds_but(mem, 0, 0);
}

/* The pages that are acted on are zero from now on. */
void mem_zero_unit(struct mem *mem)
{
	memset(page_at(mem->model, mem->first), 0, mem_unit_len(mem));
}

unsigned long mem_whole(const struct mem *mem)
{
	return granule_count(mem->pagemap, mem->area, mem_len(mem), GRANULE_WHOLE);
}

/* By smaps: these have to agree in permission and software bits, too. */
unsigned long mem_mapped(const struct mem *mem)
{
	return granule_mapped_kb(mem->area, mem_len(mem)) / (GRANULE_SIZE / 1024);
}

/* Whole granules, without the target. */
unsigned long mem_others_whole(const struct mem *mem)
{
	return mem_whole(mem) -
	       (granule_state(mem->pagemap, mem_target(mem)) == GRANULE_WHOLE);
}

/* How many pages have all of @bits in their pagemap entry? */
unsigned long mem_count(const struct mem *mem, __u64 bits)
{
	unsigned long i, nr = 0;

	for (i = 0; i < mem_pages(mem); i++)
		nr += (pagemap_get_entry(mem->pagemap, page_at(mem->area, i)) & bits) == bits;
	return nr;
}

unsigned long mem_zero_runs(const struct mem *mem)
{
	unsigned long i, nr = 0;

	for (i = 0; i < mem->nr; i++)
		nr += granule_is_zero_run(mem->pagemap, nth(mem->area, i));
	return nr;
}

unsigned long mem_present(const struct mem *mem)
{
	return granule_present_pages(mem->pagemap, mem->area, mem_len(mem));
}

unsigned long mem_swapped(const struct mem *mem)
{
	unsigned long i, nr = 0;

	for (i = 0; i < mem_pages(mem); i++)
		nr += pagemap_is_swapped(mem->pagemap, mem->area + i * BASE_SIZE);
	return nr;
}

void mem_pfns(const struct mem *mem, unsigned long *pfns)
{
	unsigned long i;

	for (i = 0; i < mem_pages(mem); i++)
		pfns[i] = pagemap_get_pfn(mem->pagemap, mem->area + i * BASE_SIZE);
}

/* How many of the pages [first, end) are elsewhere than they were? */
unsigned long mem_moved(const struct mem *mem, const unsigned long *pfns,
			unsigned long first, unsigned long end)
{
	unsigned long i, nr = 0;

	for (i = first; i < end; i++)
		nr += pagemap_get_pfn(mem->pagemap, mem->area + i * BASE_SIZE) != pfns[i];
	return nr;
}

unsigned long soft_dirty_pages(struct mem *mem, unsigned long granule)
{
	unsigned long i, nr = 0;

	for (i = 0; i < GRANULE_NR_PAGES; i++)
		nr += pagemap_is_softdirty(mem->pagemap,
					   nth(mem->area, granule) + i * BASE_SIZE);
	return nr;
}

/*
 * Folios of 64 KiB that wait to be split because part of them is not mapped. No
 * page of a granule that stays whole may bring its folio there: it would be
 * split by the next migration or by reclaim.
 */
#define STATS_64KB	"/sys/kernel/mm/transparent_hugepage/hugepages-64kB/stats/"

unsigned long to_be_split(void)
{
	return read_num(STATS_64KB "nr_anon_partially_mapped");
}

/* Folios of 64 KiB that have been swapped out as such. */
unsigned long swapped_whole(void)
{
	return read_num(STATS_64KB "swpout") + read_num(STATS_64KB "zswpout");
}

/*
 * How many of the pages from @first up to @end raise @sig on access? A write
 * does not change the contents.
 */
unsigned long refused(const struct mem *mem, unsigned long first,
		      unsigned long end, enum access access, int sig)
{
	unsigned long i, nr = 0;

	for (i = first; i < end; i++)
		nr += granule_try_access(byte_in(mem->area, i), access == ACCESS_WRITE ?
				 byte_in(mem->model, i) : NULL) == sig;
	return nr;
}

/* The same for all pages. */
unsigned long all_refused(const struct mem *mem, enum access access, int sig)
{
	return refused(mem, 0, mem_pages(mem), access, sig);
}

/*
 * Page all of it out: a page in a batch, or under writeback, does not go at
 * once. With @written, wait for writeback, since a folio under writeback cannot
 * be split.
 */
static bool page_out(struct mem *mem, bool written)
{
	int i;

	for (i = 0; i < 100; i++) {
		if (madvise(mem->area, mem_len(mem), MADV_PAGEOUT))
			return false;
		if (mem_swapped(mem) == mem_pages(mem) &&
		    (!written || !granule_meminfo_kb("Writeback")))
			return true;
		usleep(20 * 1000);
	}
	return false;
}

bool mem_page_out(struct mem *mem)
{
	return page_out(mem, false);
}

bool mem_write_out(struct mem *mem)
{
	return page_out(mem, true);
}

/* Join a cgroup to reclaim from, shared memory included. */
bool join_cgroup(struct granule_cg *cg)
{
	char path[2 * PATH_MAX];

	if (!granule_cg_create(cg))
		return false;
	snprintf(path, sizeof(path), "%s/memory.reclaim", cg->dir);
	if (!access(path, W_OK) && !granule_cg_write(cg->dir, "cgroup.procs", "0"))
		return true;
	granule_cg_remove(cg);
	return false;
}

/*
 * The page table does not show which shared pages are swapped out. A slow
 * device leaves them in the swap cache, where only reclaim finds them.
 */
bool shared_page_out(const struct granule_cg *cg, struct mem *mem)
{
	unsigned char vec[MEM_PAGES];
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
		granule_cg_write(cg->dir, "memory.reclaim", RECLAIM_ALL);
		usleep(10 * 1000);
	}
	return false;
}

/*
 * A single page has one reference more while it waits in a batch of some CPU's
 * to be moved on the LRU, as it does after writeback. It might be I/O, so that
 * it is not copied. Wait until there are none; to drop caches drains the
 * batches.
 */
void lru_settle(void)
{
	int i;

	for (i = 0; i < 500 && granule_vmstat("nr_writeback"); i++)
		usleep(10 * 1000);
	granule_write(DROP_CACHES, "1");
}

/*
 * Form runs again on demand that reclaim, or a lack of memory, has split. Pages
 * may be in use for a moment. Returns 0 or a negative errno.
 */
int mem_collapse(struct mem *mem)
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

/*
 * A granule beside the area, of single pages that repair can make whole. Repair
 * serves older hints of the process first: as soon as this one is whole, repair
 * has tried the others. Needs fault injection.
 */
char *mem_single_granule(const struct mem *mem)
{
	char *granule = granule_area(mem->kind, GRANULE_SIZE, 0);

	if (!granule)
		return NULL;
	granule_fail_order4(true);
	memset(granule, 1, GRANULE_SIZE);
	granule_fail_order4(false);
	return granule;
}

/* Wait for all granules to be whole, @seconds at most. */
bool mem_wait_whole(struct mem *mem, unsigned int seconds)
{
	unsigned int ms;

	for (ms = 0; ms < seconds * 1000; ms += 50) {
		if (mem_whole(mem) == mem->nr)
			return true;
		usleep(50000);
	}
	return false;
}

/* Name all pages, since otherwise only a part of a granule would move. */
int move_to_node(struct mem *mem, int node)
{
	return granule_move_all_to(mem->area, mem_pages(mem), node);
}

int pin(int fd, struct mem *mem, unsigned long first, unsigned long end,
	unsigned int flags)
{
	struct pin_longterm_test args = {
		.addr = (uintptr_t)mem->area + first * BASE_SIZE,
		.size = (end - first) * BASE_SIZE,
		.flags = flags,
	};

	return ioctl(fd, PIN_LONGTERM_TEST_START, &args);
}

/* Do the pinned pages have the contents that the process sees? */
bool pin_sees(int fd, struct mem *mem, unsigned long first, unsigned long end)
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

/* A child with all of the harness: its expectations count for the test. */
pid_t mem_fork(struct mem *mem)
{
	pid_t pid = fork();

	if (!pid) {
		close(mem->pagemap);
		mem->pagemap = granule_open_pagemap();
	}
	return pid;
}

/* Returns in both, with a pid of 0 in the child. */
bool peer_fork(struct peer *peer, struct mem *mem)
{
	int down[2], up[2];

	if (pipe(down) || pipe(up))
		return false;
	peer->pid = mem_fork(mem);
	if (peer->pid < 0)
		return false;
	peer->in = peer->pid ? up[0] : down[0];
	peer->out = peer->pid ? down[1] : up[1];
	close(peer->pid ? up[1] : down[1]);
	close(peer->pid ? down[0] : up[0]);
	return true;
}

void peer_go(struct peer *peer)
{
	if (write(peer->out, "", 1) != 1)
		_exit(1);
}

/* Wait for a turn; false if the other process is gone. */
bool peer_wait(struct peer *peer)
{
	char c;

	return read(peer->in, &c, 1) == 1;
}

bool peer_switch(struct peer *peer)
{
	peer_go(peer);
	return peer_wait(peer);
}

/* In the parent: let the child do the last it has to do, if any, and exit. */
bool peer_end(struct peer *peer)
{
	int status;

	close(peer->out);
	if (waitpid(peer->pid, &status, 0) != peer->pid)
		return false;
	close(peer->in);
	return WIFEXITED(status) && !WEXITSTATUS(status);
}

/* A child that does nothing but share, until peer_end(). */
bool peer_fork_idle(struct peer *peer, struct mem *mem)
{
	if (!peer_fork(peer, mem))
		return false;
	if (!peer->pid) {
		peer_wait(peer);
		_exit(0);
	}
	return true;
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
		/*
		 * All on the same granule most of the time, each in its own
		 * page.
		 */
		for (i = self->id; i < nr; i += STORM_WRITERS)
			*byte_in(storm->mem->area, i) = storm->value;
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
			seen = FORCE_READ(*byte_in(mem->area, i));
			storm->wrong += seen != old && seen != storm->value;
			seen = FORCE_READ(byte_in(mem->area, i)[1]);
			storm->wrong += seen != byte_in(mem->model, i)[1];
		}
		pthread_barrier_wait(&storm->done);
	}
}

static void storm_model(struct storm *storm, char *area)
{
	unsigned long i;

	for (i = 0; i < mem_pages(storm->mem); i++)
		*byte_in(area, i) = storm->value;
}

bool storm_create(struct storm *storm, struct mem *mem)
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
void storm_round(struct storm *storm)
{
	storm->value++;
	pthread_barrier_wait(&storm->start);
	pthread_barrier_wait(&storm->done);
	storm_model(storm, storm->mem->model);
}

/* Returns how often the reader has seen wrong contents. */
unsigned long storm_end(struct storm *storm)
{
	unsigned int i;

	storm->stop = true;
	pthread_barrier_wait(&storm->start);
	for (i = 0; i <= STORM_WRITERS; i++)
		pthread_join(storm->threads[i].thread, NULL);
	return storm->wrong;
}
