// SPDX-License-Identifier: GPL-2.0
/*
 * Page granule: limits. RLIMIT_AS, RLIMIT_DATA, overcommit and the memory
 * cgroup count the memory that is there. Granules make no limit harder to keep.
 */
#define _GNU_SOURCE
#include "kselftest_harness.h"
#include <asm-generic/mman.h> /* Force the import of the tools version. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "vm_util.h"
#include "page_granule_util.h"

/* memcg: a cgroup of the test's own, in a cgroup2 mounted if need be. */
FIXTURE(page_granule_limit_memcg)
{
	char mount[64];		/* made by us, empty otherwise */
	struct granule_cg cg;
	bool enabled_memory;	/* by us, in the root's subtree_control */
	char *area;
};

FIXTURE_VARIANT(page_granule_limit_memcg)
{
	enum granule_kind kind;
};

FIXTURE_VARIANT_ADD(page_granule_limit_memcg, contract)
{
	.kind = GRANULE_CONTRACT,
};

FIXTURE_VARIANT_ADD(page_granule_limit_memcg, default_tagged)
{
	.kind = GRANULE_DEFAULT,
};

#define MEMCG_GRANULES	256
#define MEMCG_LEN	(MEMCG_GRANULES * GRANULE_SIZE)

#define OVERCOMMIT		"/proc/sys/vm/overcommit_memory"

static bool cg_has_word(const char *dir, const char *name, const char *word)
{
	char path[2 * PATH_MAX], buf[512], *save, *tok;

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	if (read_file(path, buf, sizeof(buf)) <= 0)
		return false;
	for (tok = strtok_r(buf, "\n ", &save); tok; tok = strtok_r(NULL, "\n ", &save)) {
		if (!strcmp(tok, word))
			return true;
	}
	return false;
}

FIXTURE_SETUP(page_granule_limit_memcg)
{
	char *res;

	ASSERT_EQ(granule_set_enabled(true), 0);
	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, BASE_SIZE), 0);
	granule_thp_never();
	if (!granule_find_cgroup2(self->cg.root)) {
		strcpy(self->mount, "/tmp/page_granule.XXXXXX");
		if (!mkdtemp(self->mount))
			SKIP(return, "cannot create %s: make /tmp a writable directory",
			     self->mount);
		if (mount("none", self->mount, "cgroup2", 0, NULL)) {
			rmdir(self->mount);
			SKIP(return, "no cgroup2: build the kernel with CONFIG_CGROUPS=y");
		}
		strcpy(self->cg.root, self->mount);
	}
	if (!cg_has_word(self->cg.root, "cgroup.controllers", "memory")) {
		if (*self->mount) {
			umount(self->mount);
			rmdir(self->mount);
		}
		SKIP(return, "no memory controller: set CONFIG_MEMCG=y, unmount cgroup v1");
	}
	if (!cg_has_word(self->cg.root, "cgroup.subtree_control", "memory")) {
		ASSERT_EQ(granule_cg_write(self->cg.root, "cgroup.subtree_control", "+memory"), 0);
		self->enabled_memory = true;
	}
	snprintf(self->cg.dir, sizeof(self->cg.dir), "%s/page_granule.%d", self->cg.root, getpid());
	ASSERT_EQ(mkdir(self->cg.dir, 0755), 0);

	res = granule_reserve(MEMCG_LEN);
	ASSERT_NE(res, NULL);
	self->area = granule_mmap(variant->kind, res, MEMCG_LEN, PROT_RW, MAP_FIXED);
	ASSERT_EQ(self->area, res);
}

FIXTURE_TEARDOWN(page_granule_limit_memcg)
{
	EXPECT_TRUE(granule_invariants_hold());
	rmdir(self->cg.dir);
	if (self->enabled_memory)
		granule_cg_write(self->cg.root, "cgroup.subtree_control", "-memory");
	if (*self->mount) {
		umount(self->mount);
		rmdir(self->mount);
	}
}

/* Child in the cgroup: touches nr granules when told, gives back when told. */
static pid_t memcg_child(const struct granule_cg *cg, char *area, unsigned long nr, int go,
			 int done)
{
	pid_t pid = granule_cg_fork(cg);
	unsigned long i;
	char c;

	if (pid)
		return pid;
	if (write(done, "j", 1) != 1 || read(go, &c, 1) != 1)
		_exit(11);
	for (i = 0; i < nr; i++)
		*byte_of(area, i) = 1;
	if (write(done, "t", 1) != 1 || read(go, &c, 1) != 1)
		_exit(12);
	madvise(area, nr * GRANULE_SIZE, MADV_DONTNEED);
	if (write(done, "d", 1) != 1 || read(go, &c, 1) != 1)
		_exit(13);
	_exit(granule_invariants_hold() ? 0 : 14);
}

/*
 * memory.stat is brought up to date every two seconds, or by a reader if much
 * has changed. Wait for a number in it to come within @slack of @expected.
 */
static long wait_stat(const char *dir, const char *key, long expected, long slack)
{
	long val = -1;
	int i;

	for (i = 0; i < 50; i++) {
		val = granule_cg_read(dir, "memory.stat", key);
		if (labs(val - expected) <= slack)
			break;
		usleep(200 * 1000);
	}
	return val;
}

/* Assert that a touched granule is charged 64 KiB, once, and uncharged. */
TEST_F_TIMEOUT(page_granule_limit_memcg, charge, 60)
{
	const unsigned long nr = 128;
	const long bytes = nr * GRANULE_SIZE;
	/* Page tables and the child's own pages; charges run ahead per CPU. */
	const long slack = 1 << 20;
	const long batches = sysconf(_SC_NPROCESSORS_ONLN) * 64 * BASE_SIZE;
	long current, charged;
	int go[2], done[2], status;
	pid_t pid;
	char c;

	ASSERT_EQ(pipe(go), 0);
	ASSERT_EQ(pipe(done), 0);
	pid = memcg_child(&self->cg, self->area, nr, go[0], done[1]);
	ASSERT_GE(pid, 0);
	ASSERT_EQ(read(done[0], &c, 1), 1);
	current = granule_cg_read(self->cg.dir, "memory.current", NULL);

	ASSERT_EQ(write(go[1], "g", 1), 1);
	ASSERT_EQ(read(done[0], &c, 1), 1);
	charged = granule_cg_read(self->cg.dir, "memory.current", NULL) - current;
	EXPECT_GE(charged, bytes - slack - batches);
	EXPECT_LE(charged, bytes + slack + batches);
	charged = wait_stat(self->cg.dir, "anon", bytes, slack);
	EXPECT_GE(charged, bytes - slack);
	EXPECT_LE(charged, bytes + slack);

	ASSERT_EQ(write(go[1], "g", 1), 1);
	ASSERT_EQ(read(done[0], &c, 1), 1);
	EXPECT_LE(granule_cg_read(self->cg.dir, "memory.current", NULL), current + slack + batches);
	EXPECT_LE(wait_stat(self->cg.dir, "anon", 0, slack), slack);

	ASSERT_EQ(write(go[1], "g", 1), 1);
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	EXPECT_EQ(status, 0);
}

/*
 * Assert that a limit holds: memory below it is usable, and the OOM killer
 * comes beyond it.
 */
TEST_F_TIMEOUT(page_granule_limit_memcg, limit, 60)
{
	int go[2], done[2], status;
	pid_t pid;

	ASSERT_EQ(granule_cg_write(self->cg.dir, "memory.max", "8388608"), 0);
	/* Not there without CONFIG_SWAP; nothing to keep from swapping then. */
	granule_cg_write(self->cg.dir, "memory.swap.max", "0");

	/* 4 MiB of the 8. */
	ASSERT_EQ(pipe(go), 0);
	ASSERT_EQ(pipe(done), 0);
	ASSERT_EQ(write(go[1], "ggg", 3), 3);
	pid = memcg_child(&self->cg, self->area, 64, go[0], done[1]);
	ASSERT_GE(pid, 0);
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	EXPECT_EQ(status, 0);
	EXPECT_EQ(granule_cg_read(self->cg.dir, "memory.events", "oom_kill"), 0);

	/* 16 MiB. */
	ASSERT_EQ(write(go[1], "ggg", 3), 3);
	pid = memcg_child(&self->cg, self->area, MEMCG_GRANULES, go[0], done[1]);
	ASSERT_GE(pid, 0);
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	EXPECT_TRUE(WIFSIGNALED(status));
	EXPECT_EQ(WTERMSIG(status), SIGKILL);
	EXPECT_EQ(granule_cg_read(self->cg.dir, "memory.events", "oom_kill"), 1);
	/* A task that is being killed may go a little over. */
	EXPECT_LE(granule_cg_read(self->cg.dir, "memory.peak", NULL), 9 << 20);
}

/* Two threads that fault on a granule at once, in a child in the cgroup. */
#define RACE_ROUNDS	2000
#define RACE_BALLAST	(2UL << 20)	/* is swapped out */

struct race {
	char *granule;
	pthread_barrier_t start, done;
	int pipe[2];
	unsigned int refused;
};

static void spin(unsigned int *seed)
{
	unsigned int nr;

	for (nr = rand_r(seed) % 8192; nr; nr--)
		asm volatile("" : : : "memory");
}

/* A fault of the program would be retried; read() returns EFAULT instead. */
static void *race_read(void *arg)
{
	struct race *race = arg;
	unsigned int i, seed = 1;

	for (i = 0; i < RACE_ROUNDS; i++) {
		pthread_barrier_wait(&race->start);
		spin(&seed);
		if (read(race->pipe[0], race->granule + 8 * BASE_SIZE, 1) != 1)
			race->refused++;
		pthread_barrier_wait(&race->done);
	}
	return NULL;
}

static int race_child(char *granule, int go, int done)
{
	char *ballast = mmap(NULL, RACE_BALLAST, PROT_RW, ANON_FLAGS, -1, 0);
	struct race race = { .granule = granule };
	unsigned int i, seed = 2;
	pthread_t thread;
	char c;

	if (ballast == MAP_FAILED || pthread_barrier_init(&race.start, NULL, 2) ||
	    pthread_barrier_init(&race.done, NULL, 2) || pipe(race.pipe))
		return 11;
	granule_fail_order4(true);
	if (pthread_create(&thread, NULL, race_read, &race))
		return 12;
	memset(ballast, 1, RACE_BALLAST);
	if (write(done, "r", 1) != 1 || read(go, &c, 1) != 1)
		return 13;
	for (i = 0; i < RACE_ROUNDS; i++) {
		if (write(race.pipe[1], "x", 1) != 1)
			return 14;
		pthread_barrier_wait(&race.start);
		spin(&seed);
		*granule = 1;
		pthread_barrier_wait(&race.done);
		/* What read() has refused. */
		if (granule[8 * BASE_SIZE] != 'x' && read(race.pipe[0], &c, 1) != 1)
			return 15;
		madvise(granule, GRANULE_SIZE, MADV_DONTNEED);
	}
	pthread_join(thread, NULL);
	return race.refused ? 16 : 0;
}

/*
 * Assert that a call which finds a granule half populated by another thread does
 * not fail for want of memory, although the cgroup is at its limit.
 */
TEST_F_TIMEOUT(page_granule_limit_memcg, race_for_granule, 60)
{
	struct granule_fail fail = {};
	int go[2], done[2], status;
	char text[32], c;
	pid_t pid;

	if (!granule_have_swap(NULL))
		SKIP(return, GRANULE_SWAP_REMEDY);
	if (!granule_fail_prepare(&fail))
		SKIP(return, GRANULE_FAIL_REMEDY);
	ASSERT_EQ(pipe(go), 0);
	ASSERT_EQ(pipe(done), 0);
	pid = granule_cg_fork(&self->cg);
	ASSERT_GE(pid, 0);
	if (!pid)
		_exit(race_child(self->area, go[0], done[1]));
	ASSERT_EQ(read(done[0], &c, 1), 1);
	/* Reclaim has to make room for each granule. */
	snprintf(text, sizeof(text), "%ld", granule_cg_read(self->cg.dir, "memory.current", NULL) -
		 RACE_BALLAST / 4);
	ASSERT_EQ(granule_cg_write(self->cg.dir, "memory.max", text), 0);
	ASSERT_EQ(write(go[1], "g", 1), 1);
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	granule_fail_restore(&fail);
	EXPECT_EQ(status, 0);
}

/* At the limit of a cgroup, with nothing to reclaim. */
FIXTURE(page_granule_limit_cgroup)
{
	struct granule_cg cg;
};

FIXTURE_SETUP(page_granule_limit_cgroup)
{
	ASSERT_EQ(granule_set_enabled(true), 0);
	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, BASE_SIZE), 0);
	granule_thp_never();
	if (!granule_cg_create(&self->cg))
		SKIP(return, GRANULE_CG_REMEDY);
	ASSERT_EQ(granule_cg_write(self->cg.dir, "memory.max", "8M"), 0);
	granule_cg_write(self->cg.dir, "memory.swap.max", "0");
}

FIXTURE_TEARDOWN(page_granule_limit_cgroup)
{
	granule_cg_remove(&self->cg);
}

#define ROOM_TOUCHES	(MIB / BASE_SIZE)

static int set_limit(const struct granule_cg *cg, const char *name, long limit)
{
	char text[32];

	snprintf(text, sizeof(text), "%ld", limit);
	return granule_cg_write(cg->dir, name, text);
}

static int set_max(const struct granule_cg *cg, long max)
{
	return set_limit(cg, "memory.max", max);
}

/*
 * Leave room for @room pages below the limit. A CPU charges 64 pages in
 * advance, and a fault that takes one of those needs no room. Wait until it has
 * just charged them. A limit below the usage takes them back, and with less
 * than 64 left none are charged in advance.
 */
static bool leave_room(const struct granule_cg *cg, char *area, unsigned long room)
{
	long current = 0, last = LONG_MAX;
	unsigned long i;

	for (i = 0; i < ROOM_TOUCHES; i++) {
		current = granule_cg_read(cg->dir, "memory.current", NULL);
		if (current - last >= 60 * (long)BASE_SIZE)
			break;
		last = current;
		area[i * BASE_SIZE] = 1;
	}
	if (i == ROOM_TOUCHES || set_max(cg, current - 32 * BASE_SIZE))
		return false;
	last = granule_cg_read(cg->dir, "memory.current", NULL);
	return last < current && !set_max(cg, last + room * BASE_SIZE);
}

/* Assert that a fault takes one page where there is no room for 16. */
TEST_F_TIMEOUT(page_granule_limit_cgroup, room_for_few, 60)
{
	static const unsigned long rooms[] = { 12, 8, 4 };
	size_t i;

	for (i = 0; i < ARRAY_SIZE(rooms); i++) {
		pid_t pid = granule_cg_fork(&self->cg);
		int status;

		if (!pid) {
			char *area = granule_area(GRANULE_DEFAULT, 2 * GRANULE_SIZE, 0);
			char *rest = granule_area(GRANULE_UNTAGGED, 8 * MIB, 0);
			int pagemap = granule_open_pagemap();
			char *granule = nth(area, 1);
			long current;

			if (!area || !rest || pagemap < 0 || !granule_stay_on_cpu())
				_exit(1);
			*area = 1;	/* the page table */
			if (!leave_room(&self->cg, rest, rooms[i]))
				_exit(3);
			*page_at(granule, 5) = 1;
			EXPECT_EQ(granule_present(pagemap, granule), 1);
			EXPECT_TRUE(pagemap_is_populated(pagemap, page_at(granule, 5)));
			/* Neither is there room to fill the rest. */
			*page_at(granule, 7) = 1;
			EXPECT_EQ(granule_present(pagemap, granule), 2);
			/*
			 * Reclaim begins in the background above this charge.
			 */
			current = granule_cg_read(self->cg.dir, "memory.current", NULL);
			if (set_limit(&self->cg, "memory.high", current + rooms[i] * BASE_SIZE) ||
			    set_max(&self->cg, 8 * MIB))
				_exit(4);
			*page_at(granule, 9) = 1;
			EXPECT_EQ(granule_present(pagemap, granule), 3);
			EXPECT_TRUE(granule_invariants_hold());
			_exit(0);
		}
		ASSERT_EQ(waitpid(pid, &status, 0), pid);
		EXPECT_TRUE(WIFEXITED(status)) TH_LOG("killed by signal %d", WTERMSIG(status));
		EXPECT_EQ(WEXITSTATUS(status), 0);
	}
	EXPECT_EQ(granule_cg_read(self->cg.dir, "memory.events", "oom_kill"), 0);
}

#define THRASH_LEN	(12 * MIB)
#define THRASH_TOUCHES	8000

/*
 * How much a child reads from swap that touches pages at random of more than it
 * may have.
 */
static long read_from_swap(struct granule_cg *cg, enum granule_kind kind, int flags)
{
	long before = granule_cg_read(cg->dir, "memory.stat", "pswpin");
	unsigned int i, seed = 1;
	pid_t pid = granule_cg_fork(cg);

	if (!pid) {
		char *area = granule_area(kind, THRASH_LEN, flags);

		if (!area)
			_exit(1);
		granule_touch(area, THRASH_LEN);
		for (i = 0; i < THRASH_TOUCHES; i++) {
			seed = seed * 1103515245 + 12345;
			area[(seed >> 8) % (THRASH_LEN / BASE_SIZE) * BASE_SIZE] ^= 1;
		}
		_exit(!granule_invariants_hold());
	}
	if (!granule_child_ends(pid))
		return -1;
	return granule_cg_read(cg->dir, "memory.stat", "pswpin") - before;
}

/* Assert that granules do not make a short process read or write more swap. */
TEST_F_TIMEOUT(page_granule_limit_cgroup, no_more_from_swap, 120)
{
	static const int flags[] = { 0, MAP_SHARED };
	long base, granule;
	size_t i;

	if (!granule_have_swap(NULL))
		SKIP(return, GRANULE_SWAP_REMEDY);
	ASSERT_EQ(granule_cg_write(self->cg.dir, "memory.swap.max", "max"), 0);
	for (i = 0; i < ARRAY_SIZE(flags); i++) {
		base = read_from_swap(&self->cg, GRANULE_UNTAGGED, flags[i]);
		granule = read_from_swap(&self->cg, GRANULE_DEFAULT, flags[i]);
		ksft_print_msg("from swap, %s: %ld pages, untagged: %ld\n",
			       i ? "shared" : "private", granule, base);
		EXPECT_GT(base, 0);
		EXPECT_LE(granule, base + base / 5);
	}
}

#define COPY_LEN	(6 * MIB)

/*
 * Pages swapped out when a child writes a page of each granule that it shares.
 */
static long swapped_for_copies(struct granule_cg *cg, enum granule_kind kind)
{
	long before = granule_cg_read(cg->dir, "memory.stat", "pswpout");
	pid_t pid = granule_cg_fork(cg);

	if (!pid) {
		char *area = granule_area(kind, COPY_LEN, 0);
		size_t i;

		if (!area)
			_exit(1);
		granule_touch(area, COPY_LEN);
		pid = fork();
		if (!pid) {
			for (i = 0; i < COPY_LEN / GRANULE_SIZE; i++)
				*page_at(nth(area, i), 3) = 2;
			_exit(!granule_invariants_hold());
		}
		_exit(pid < 0 || !granule_child_ends(pid));
	}
	if (!granule_child_ends(pid))
		return -1;
	return granule_cg_read(cg->dir, "memory.stat", "pswpout") - before;
}

/*
 * Assert that copying 15 neighbours of a page swaps nothing out.
 *
 * The limit lets most granules be copied as a whole, and one page of each other
 * granule. It is lower than what copies of all granules would take.
 */
TEST_F_TIMEOUT(page_granule_limit_cgroup, no_more_for_copies, 60)
{
	long base, granule;

	if (!granule_have_swap(NULL))
		SKIP(return, GRANULE_SWAP_REMEDY);
	ASSERT_TRUE(granule_stay_on_cpu());
	ASSERT_EQ(granule_cg_write(self->cg.dir, "memory.max", "11M"), 0);
	ASSERT_EQ(granule_cg_write(self->cg.dir, "memory.swap.max", "max"), 0);
	base = swapped_for_copies(&self->cg, GRANULE_UNTAGGED);
	granule = swapped_for_copies(&self->cg, GRANULE_DEFAULT);
	ksft_print_msg("swapped out for copies: %ld pages, untagged: %ld\n", granule, base);
	EXPECT_GE(base, 0);
	EXPECT_GE(granule, 0);
	EXPECT_LE(granule, base + 64);
}

#define TOUCH_LEN	(16 * MIB)

/* Memory, or if @memfd is not -1, a private mapping of it */
static char *touch_area(enum granule_kind kind, int memfd)
{
	char *area;

	if (memfd < 0)
		return granule_area(kind, TOUCH_LEN, 0);
	granule_set(PR_GRANULE_MMAP, kind == GRANULE_DEFAULT ? GRANULE_SIZE : BASE_SIZE);
	area = mmap(NULL, TOUCH_LEN, PROT_RW, MAP_PRIVATE, memfd, 0);
	return area == MAP_FAILED ? NULL : area;
}

/* Pages swapped out when a page of each granule is written to at the limit. */
static long swapped_for_touches(struct granule_cg *cg, enum granule_kind kind, int memfd)
{
	long before = granule_cg_read(cg->dir, "memory.stat", "pswpout");
	pid_t pid = granule_cg_fork(cg);

	if (!pid) {
		char *rest = granule_area(GRANULE_UNTAGGED, 8 * MIB, 0);
		char *area = touch_area(kind, memfd);
		size_t i;

		if (!rest || !area || granule_kind_of(area) != kind)
			_exit(1);
		granule_touch(rest, 8 * MIB);
		for (i = 0; i < TOUCH_LEN / GRANULE_SIZE; i++)
			*page_at(nth(area, i), 3) = 1;
		_exit(!granule_invariants_hold());
	}
	if (!granule_child_ends(pid))
		return -1;
	return granule_cg_read(cg->dir, "memory.stat", "pswpout") - before;
}

static void no_more_for_touches(struct __test_metadata *_metadata, struct granule_cg *cg,
				int memfd)
{
	long base, granule;

	if (!granule_have_swap(NULL))
		SKIP(return, GRANULE_SWAP_REMEDY);
	ASSERT_EQ(granule_cg_write(cg->dir, "memory.swap.max", "max"), 0);
	base = swapped_for_touches(cg, GRANULE_UNTAGGED, memfd);
	granule = swapped_for_touches(cg, GRANULE_DEFAULT, memfd);
	ksft_print_msg("swapped out for touches: %ld pages, untagged: %ld\n", granule, base);
	EXPECT_GT(base, 0);
	EXPECT_GE(granule, 0);
	EXPECT_LE(granule, base + 2 * TOUCH_LEN / GRANULE_SIZE);
}

/*
 * Assert that the room that reclaim makes for one page is not used up by 15
 * others.
 */
TEST_F_TIMEOUT(page_granule_limit_cgroup, no_more_for_touches, 60)
{
	no_more_for_touches(_metadata, &self->cg, -1);
}

/* It is not used up either if 16 pages of a file can be copied at once. */
TEST_F_TIMEOUT(page_granule_limit_cgroup, no_more_for_private_files, 60)
{
	int memfd = memfd_create("private", 0);
	char *map;

	ASSERT_EQ(ftruncate(memfd, TOUCH_LEN), 0);
	map = mmap(NULL, TOUCH_LEN, PROT_RW, MAP_SHARED, memfd, 0);
	ASSERT_NE(map, MAP_FAILED);
	memset(map, 1, TOUCH_LEN);
	munmap(map, TOUCH_LEN);
	no_more_for_touches(_metadata, &self->cg, memfd);
	close(memfd);
}

#define CACHE_LEN	(36 * MIB)
#define CACHE_MAX	"40M"

/*
 * Read so much of the device that is swapped to, which is cached, and never
 * written.
 */
static bool fill_cache(size_t len)
{
	static char buffer[64 * 1024];
	struct granule_swaps swaps;
	int fd;

	granule_read_swaps(&swaps);
	fd = open(swaps.path, O_RDONLY);
	if (fd < 0)
		return false;
	/* An earlier run has left it charged to another cgroup. */
	posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
	while (len && read(fd, buffer, sizeof(buffer)) == sizeof(buffer))
		len -= sizeof(buffer);
	close(fd);
	return !len;
}

/*
 * Assert that old page cache makes room for granules as for single pages, and
 * that nothing is swapped out for them.
 */
TEST_F_TIMEOUT(page_granule_limit_cgroup, cache_makes_room, 60)
{
	long swapped;
	pid_t pid;
	int status;

	granule_cg_write(self->cg.dir, "memory.swap.max", "max");

	ASSERT_EQ(granule_cg_write(self->cg.dir, "memory.max", CACHE_MAX), 0);
	pid = granule_cg_fork(&self->cg);
	if (!pid) {
		char *area = granule_area(GRANULE_DEFAULT, 16 * MIB, 0);
		int pagemap = granule_open_pagemap();
		size_t whole;

		if (!area || pagemap < 0)
			_exit(1);
		if (!fill_cache(CACHE_LEN))
			_exit(KSFT_SKIP);
		/* Reclaim goes by the statistics of the cgroup. */
		if (wait_stat(self->cg.dir, "file", CACHE_LEN, CACHE_LEN / 10) < CACHE_LEN * 9 / 10)
			_exit(2);
		granule_touch(area, 16 * MIB);
		whole = granule_count(pagemap, area, 16 * MIB, GRANULE_WHOLE);
		ksft_print_msg("beside page cache: %zu granules of %zu are whole\n", whole,
			       16 * MIB / GRANULE_SIZE);
		EXPECT_GE(whole, 16 * MIB / GRANULE_SIZE * 9 / 10);
		EXPECT_TRUE(granule_invariants_hold());
		_exit(0);
	}
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	if (WIFEXITED(status) && WEXITSTATUS(status) == KSFT_SKIP)
		SKIP(return, "no device that is swapped to: swap on");
	EXPECT_EQ(status, 0);
	EXPECT_EQ(granule_cg_read(self->cg.dir, "memory.events", "oom_kill"), 0);
	swapped = granule_cg_read(self->cg.dir, "memory.stat", "pswpout");
	ksft_print_msg("beside page cache: %ld pages swapped out\n", swapped);
	EXPECT_LE(swapped, 16);
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
	return granule_proc_number("/proc/meminfo", "Committed_AS:");
}

/*
 * The amount that a mapping adds to Committed_AS, in kB; LONG_MIN if it fails.
 */
static long commit_of(enum granule_kind kind, bool shared, size_t len)
{
	long before, delta;
	char *addr;

	before = committed();
	addr = granule_map(kind, shared, NULL, len, 0);
	if (addr == MAP_FAILED)
		return LONG_MIN;
	delta = committed() - before;
	munmap(addr, len);
	return committed() == before ? delta : LONG_MIN;
}

/* Assert that each overcommit mode accounts a mapping by its real length. */
TEST_F(page_granule_limit, commit)
{
	size_t len = (8UL << 20) - granule_mapped_len(variant->kind, BASE_SIZE);
	const long kb = len / 1024;
	unsigned long mode;
	int tries;

	for (mode = 0; mode <= 2; mode++) {
		write_num(OVERCOMMIT, mode);
		/*
		 * Something else on the machine may map memory, but not always.
		 */
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

/* Assert that it accounts for growth by mremap and mprotect, too. */
TEST_F(page_granule_limit, commit_grows)
{
	size_t len = 4 * GRANULE_SIZE;
	long before, grown = 0, made_writable = 0;
	char *addr, *new;
	int tries;

	/* A shared object is accounted when it is made, and does not grow. */
	for (tries = 0; tries < 10; tries++) {
		addr = granule_map(variant->kind, variant->shared, NULL, len, 0);
		ASSERT_NE(addr, MAP_FAILED);
		before = committed();
		new = sys_mremap(addr, len, 2 * len, MREMAP_MAYMOVE, NULL);
		ASSERT_NE(new, MAP_FAILED);
		grown = committed() - before;
		ASSERT_EQ(munmap(new, 2 * len), 0);

		/*
		 * Read-only private memory needs none until it is made
		 * writable.
		 */
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

/*
 * Assert that mode 2 refuses a mapping beyond the limit, and keeps nothing of
 * it.
 */
TEST_F(page_granule_limit, commit_limit)
{
	long limit, before, after = 0;
	size_t len;
	char *addr;
	int tries;

	write_num(OVERCOMMIT, 2);
	limit = granule_proc_number("/proc/meminfo", "CommitLimit:");
	for (tries = 0; tries < 10; tries++) {
		before = committed();
		if (before >= limit)
			SKIP(return, "%ld kB of %ld are committed: free some memory",
			     before, limit);
		len = granule_mapped_len(variant->kind, (limit - before + 1) * 1024UL);
		errno = 0;
		ASSERT_EQ(granule_map(variant->kind, variant->shared, NULL, len, 0), MAP_FAILED);
		ASSERT_EQ(errno, ENOMEM);
		after = committed();
		if (after == before)
			break;
	}
	EXPECT_EQ(after, before);
	/* A part of the rest is kept back for root. */
	len = granule_mapped_len(variant->kind, (limit - after) * 512UL);
	addr = granule_map(variant->kind, variant->shared, NULL, len, 0);
	EXPECT_NE(addr, MAP_FAILED);
}

#define LIMIT_VARIANT FIXTURE_VARIANT(page_granule_limit)

/*
 * A limit counts the real length of a mapping, to the page, if it counts such
 * memory at all. @size is the line of /proc/PID/status that has what it counts.
 */
static void check_rlimit(struct __test_metadata *_metadata, const LIMIT_VARIANT *variant,
			 int resource, const char *size, const struct rlimit *old, bool counted)
{
	struct rlimit rlim = *old;
	unsigned int pages, room;
	long before;
	size_t real;
	char *addr;

	for (pages = 1; pages <= 33; pages += 4) {
		real = granule_mapped_len(variant->kind, pages * BASE_SIZE);
		for (room = real - BASE_SIZE; room <= real; room += BASE_SIZE) {
			before = granule_status_kb(getpid(), size) * 1024;
			rlim.rlim_cur = before + room;
			ASSERT_EQ(setrlimit(resource, &rlim), 0);
			errno = 0;
			addr = granule_map(variant->kind, variant->shared, NULL, real, 0);
			ASSERT_EQ(setrlimit(resource, old), 0);
			if (room < real && counted) {
				EXPECT_EQ(addr, MAP_FAILED);
				EXPECT_EQ(errno, ENOMEM)
					TH_LOG("%u pages", pages);
				continue;
			}
			ASSERT_NE(addr, MAP_FAILED)
				TH_LOG("%u pages", pages);
			EXPECT_EQ(granule_status_kb(getpid(), size) * 1024 - before,
				  counted ? real : 0);
			ASSERT_EQ(munmap(addr, real), 0);
		}
	}
}

/* Assert that RLIMIT_AS counts the real length of a mapping, to the page. */
TEST_F(page_granule_limit, rlimit_as)
{
	check_rlimit(_metadata, variant, RLIMIT_AS, "VmSize:", &self->as, true);
}

/* Assert that RLIMIT_DATA does so for private memory only. */
TEST_F(page_granule_limit, rlimit_data)
{
	check_rlimit(_metadata, variant, RLIMIT_DATA, "VmData:", &self->data, !variant->shared);
}

int main(int argc, char **argv)
{
	granule_require();
	granule_save_settings();
	/* A setting of the machine, which must not stay as a test had it. */
	granule_save_setting(OVERCOMMIT);
	return test_harness_run(argc, argv);
}
