// SPDX-License-Identifier: GPL-2.0
/*
 * Page granule: population of anonymous memory. One fault populates a whole
 * granule as a run, whatever the kind of access and however many threads fault
 * at once.
 */
#define _GNU_SOURCE
#include "kselftest_harness.h"
#include <asm-generic/mman.h> /* Force the import of the tools version. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "hugepage_settings.h"
#include "vm_util.h"
#include "page_granule_util.h"

#define AREA_GRANULES	256
#define AREA_LEN	(AREA_GRANULES * GRANULE_SIZE)

FIXTURE(page_granule_fault)
{
	int pagemap;
	char *area;
};

FIXTURE_VARIANT(page_granule_fault)
{
	enum granule_kind kind;
};

FIXTURE_VARIANT_ADD(page_granule_fault, contract)
{
	.kind = GRANULE_CONTRACT,
};

FIXTURE_VARIANT_ADD(page_granule_fault, default_tagged)
{
	.kind = GRANULE_DEFAULT,
};

FIXTURE_SETUP(page_granule_fault)
{
	ASSERT_EQ(granule_set_enabled(true), 0);
	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, BASE_SIZE), 0);
	granule_thp_never();
	self->pagemap = granule_open_pagemap();
	ASSERT_GE(self->pagemap, 0);
	self->area = granule_reserve(AREA_LEN);
	ASSERT_NE(self->area, NULL);
	ASSERT_EQ(granule_mmap(variant->kind, self->area, AREA_LEN, PROT_RW, MAP_FIXED),
		  self->area);
}

FIXTURE_TEARDOWN(page_granule_fault)
{
	EXPECT_TRUE(granule_invariants_hold());
	close(self->pagemap);
}

/*
 * Assert that writing one byte to each granule of 16 MiB gives 256 whole runs.
 */
TEST_F(page_granule_fault, touch_gives_runs)
{
	struct granule_smaps smaps;
	unsigned long i;

	for (i = 0; i < AREA_GRANULES; i++)
		*byte_of(self->area, i) = i | 1;
	EXPECT_EQ(granule_count(self->pagemap, self->area, AREA_LEN, GRANULE_WHOLE),
		  AREA_GRANULES);
	ASSERT_TRUE(granule_read_smaps(getpid(), self->area, &smaps));
	EXPECT_EQ(smaps.rss, AREA_LEN / 1024);
	EXPECT_EQ(smaps.granule_mapped, AREA_LEN / 1024);
	for (i = 0; i < AREA_GRANULES; i++) {
		ASSERT_EQ(*byte_of(self->area, i), (char)(i | 1));
		*byte_of(self->area, i) = 0;
	}
	EXPECT_TRUE(granule_is_filled(self->area, AREA_LEN, 0));
}

/*
 * Assert that one minor fault populates a granule, and that the rest of it
 * needs no more. granule_fault counts each of them, and nothing falls back.
 */
TEST_F(page_granule_fault, one_fault_a_granule)
{
	unsigned long fault = granule_vmstat("granule_fault");
	unsigned long fallback = granule_vmstat("granule_fallback");
	unsigned long i, j, more = 0;
	long before, total;

	ASSERT_NE(fault, ULONG_MAX);
	ASSERT_NE(fallback, ULONG_MAX);
	total = minor_faults();
	for (i = 0; i < AREA_GRANULES; i++) {
		before = minor_faults();
		for (j = 0; j < GRANULE_NR_PAGES; j++)
			nth(self->area, i)[(j + i) % GRANULE_NR_PAGES * BASE_SIZE] = 1;
		more += minor_faults() - before != 1;
	}
	total = minor_faults() - total;
	EXPECT_LE(more, FAULT_SLACK);
	EXPECT_GE(total, AREA_GRANULES);
	EXPECT_LE(total, AREA_GRANULES + FAULT_SLACK);
	fault = granule_vmstat("granule_fault") - fault;
	EXPECT_GE(fault, AREA_GRANULES);
	EXPECT_LE(fault, AREA_GRANULES + FAULT_SLACK);
	EXPECT_EQ(granule_vmstat("granule_fallback"), fallback);
}

/* Assert that each touch costs 64 KiB of RSS in the counter of the process. */
TEST_F(page_granule_fault, rss)
{
	unsigned long before, i;

	/* The test itself may need a page meanwhile. */
	*self->area = 1;
	before = rss_anon();
	for (i = 128; i < AREA_GRANULES; i++)
		*byte_of(self->area, i) = 1;
	EXPECT_EQ((rss_anon() - before) / 64, 128);
	ASSERT_EQ(munmap(self->area, AREA_LEN), 0);
	EXPECT_LE(rss_anon(), before);
}

/* Assert that a granule that was given back is populated again, zeroed. */
TEST_F(page_granule_fault, dontneed_and_again)
{
	granule_fill(self->area, AREA_LEN / 4, 1);
	ASSERT_EQ(madvise(self->area, AREA_LEN / 4, MADV_DONTNEED), 0);
	EXPECT_EQ(granule_rss_kb(self->area, 1), 0);
	EXPECT_EQ(granule_count(self->pagemap, self->area, AREA_LEN / 4, GRANULE_EMPTY),
		  AREA_GRANULES / 4);
	self->area[0] = 1;
	EXPECT_EQ(granule_state(self->pagemap, self->area), GRANULE_WHOLE);
	EXPECT_TRUE(granule_is_filled(self->area + 1, AREA_LEN / 4 - 1, 0));
}

/* Assert that reads map a run of zero pages, by one fault, and cost no RSS. */
TEST_F(page_granule_fault, read_maps_zero_run)
{
	unsigned long i, n = 64;
	long before;

	before = minor_faults();
	for (i = 0; i < n; i++)
		FORCE_READ(*byte_of(self->area, i));
	EXPECT_LE(minor_faults() - before, n + FAULT_SLACK);
	EXPECT_GE(minor_faults() - before, n);
	for (i = 0; i < n; i++)
		EXPECT_TRUE(granule_is_zero_run(self->pagemap, nth(self->area, i)));
	EXPECT_TRUE(granule_is_filled(self->area, n * GRANULE_SIZE, 0));
	EXPECT_EQ(granule_rss_kb(self->area, 1), 0);
}

/*
 * Assert that the first write after a read replaces the whole zero run, and
 * counts as one granule_cow.
 */
TEST_F(page_granule_fault, write_after_read)
{
	unsigned long cow = granule_vmstat("granule_cow");
	unsigned long i, n = 64;
	long before;

	for (i = 0; i < n; i++)
		FORCE_READ(*nth(self->area, i));
	EXPECT_EQ(granule_vmstat("granule_cow"), cow);
	before = minor_faults();
	for (i = 0; i < n; i++) {
		*byte_of(self->area, i) = 1;
		/* The rest of it has been replaced, too. */
		*page_at(nth(self->area, i), 15) = 0;
	}
	EXPECT_LE(minor_faults() - before, n + FAULT_SLACK);
	EXPECT_EQ(granule_vmstat("granule_cow") - cow, n);
	EXPECT_EQ(granule_count(self->pagemap, self->area, n * GRANULE_SIZE, GRANULE_WHOLE), n);
	EXPECT_EQ(granule_rss_kb(self->area, 1), n * 64);
	for (i = 0; i < n; i++) {
		EXPECT_FALSE(granule_is_zero_run(self->pagemap, nth(self->area, i)));
		EXPECT_EQ(*byte_of(self->area, i), 1);
		*byte_of(self->area, i) = 0;
	}
	EXPECT_TRUE(granule_is_filled(self->area, n * GRANULE_SIZE, 0));
}

/*
 * Assert that a write replaces a zero run of a VMA that was read-only before.
 */
TEST_F(page_granule_fault, write_after_mprotect)
{
	unsigned long i;

	ASSERT_EQ(mprotect(self->area, AREA_LEN, PROT_READ), 0);
	for (i = 0; i < AREA_GRANULES; i += 2)
		FORCE_READ(*nth(self->area, i));
	EXPECT_EQ(granule_rss_kb(self->area, 1), 0);
	ASSERT_EQ(mprotect(self->area, AREA_LEN, PROT_RW), 0);
	for (i = 0; i < AREA_GRANULES; i++)
		*byte_of(self->area, i) = 1;
	EXPECT_EQ(granule_count(self->pagemap, self->area, AREA_LEN, GRANULE_WHOLE),
		  AREA_GRANULES);
}

/* Assert that read(2) into untouched memory gives a run. */
TEST_F(page_granule_fault, by_read)
{
	char text[] = "granule";
	int pipefd[2];

	ASSERT_EQ(pipe(pipefd), 0);
	ASSERT_EQ(write(pipefd[1], text, sizeof(text)), sizeof(text));
	/* The text ends in the second granule. */
	ASSERT_EQ(read(pipefd[0], nth(self->area, 1) - 3, sizeof(text)), sizeof(text));
	EXPECT_STREQ(nth(self->area, 1) - 3, text);
	EXPECT_EQ(granule_count(self->pagemap, self->area, 2 * GRANULE_SIZE, GRANULE_WHOLE), 2);
	EXPECT_EQ(granule_rss_kb(self->area, 1), 128);
}

/* Assert that MADV_POPULATE_READ maps zero runs, and _WRITE replaces them. */
TEST_F(page_granule_fault, by_madv_populate)
{
	unsigned long i, n = 16;

	ASSERT_EQ(madvise(self->area, n * GRANULE_SIZE, MADV_POPULATE_READ), 0);
	for (i = 0; i < n; i++)
		EXPECT_TRUE(granule_is_zero_run(self->pagemap, nth(self->area, i)));
	EXPECT_EQ(granule_rss_kb(self->area, 1), 0);
	ASSERT_EQ(madvise(self->area, 2 * n * GRANULE_SIZE, MADV_POPULATE_WRITE), 0);
	EXPECT_EQ(granule_count(self->pagemap, self->area, 2 * n * GRANULE_SIZE, GRANULE_WHOLE),
		  2 * n);
	EXPECT_EQ(granule_rss_kb(self->area, 1), 2 * n * 64);
	EXPECT_TRUE(granule_is_filled(self->area, 2 * n * GRANULE_SIZE, 0));
}

/* Assert that MAP_POPULATE gives runs, and zero runs where not writable. */
TEST_F(page_granule_fault, by_map_populate)
{
	size_t len = AREA_LEN / 4;

	ASSERT_EQ(granule_mmap(variant->kind, self->area, len, PROT_RW,
			       MAP_FIXED | MAP_POPULATE), self->area);
	EXPECT_EQ(granule_count(self->pagemap, self->area, len, GRANULE_WHOLE),
		  AREA_GRANULES / 4);
	EXPECT_EQ(granule_rss_kb(self->area, 1), len / 1024);

	ASSERT_EQ(granule_mmap(variant->kind, self->area, len, PROT_READ,
			       MAP_FIXED | MAP_POPULATE), self->area);
	EXPECT_TRUE(granule_is_zero_run(self->pagemap, self->area));
	EXPECT_TRUE(granule_is_zero_run(self->pagemap, self->area + len - GRANULE_SIZE));
}

/* Assert that mlock populates runs, and that a locked VMA faults in runs. */
TEST_F(page_granule_fault, by_mlock)
{
	size_t len = AREA_LEN / 4;

	ASSERT_EQ(mlock(self->area, len), 0);
	EXPECT_EQ(granule_count(self->pagemap, self->area, len, GRANULE_WHOLE),
		  AREA_GRANULES / 4);
	EXPECT_EQ(granule_rss_kb(self->area, 1), len / 1024);
	EXPECT_TRUE(granule_is_filled(self->area, len, 0));

	ASSERT_EQ(mlock2(self->area + len, len, MLOCK_ONFAULT), 0);
	EXPECT_EQ(granule_state(self->pagemap, self->area + len), GRANULE_EMPTY);
	self->area[len] = 1;
	EXPECT_EQ(granule_state(self->pagemap, self->area + len), GRANULE_WHOLE);
	ASSERT_EQ(munlockall(), 0);
	EXPECT_EQ(granule_state(self->pagemap, self->area), GRANULE_WHOLE);
}

/* Assert that another process writing through GUP gives a run. */
TEST_F(page_granule_fault, by_remote_gup)
{
	char text[] = "granule";
	struct iovec local = { .iov_base = text, .iov_len = sizeof(text) };
	struct iovec remote = { .iov_base = nth(self->area, 3) + 5 * BASE_SIZE,
				.iov_len = sizeof(text) };
	pid_t parent = getpid(), pid;
	int status;

	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid)
		_exit(process_vm_writev(parent, &local, 1, &remote, 1, 0) == sizeof(text) ?
		      0 : errno);
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	ASSERT_EQ(status, 0);
	EXPECT_STREQ((char *)remote.iov_base, text);
	EXPECT_EQ(granule_state(self->pagemap, nth(self->area, 3)), GRANULE_WHOLE);
	EXPECT_EQ(granule_rss_kb(self->area, 1), 64);
}

/*
 * Assert that a zero page that GUP holds keeps its zeroes when a write replaces
 * the run.
 */
TEST_F(page_granule_fault, by_vmsplice)
{
	struct iovec iov = { .iov_base = self->area + BASE_SIZE, .iov_len = BASE_SIZE };
	char buf[BASE_SIZE];
	int pipefd[2];

	ASSERT_EQ(pipe(pipefd), 0);
	ASSERT_EQ(vmsplice(pipefd[1], &iov, 1, 0), (ssize_t)BASE_SIZE);
	memset(self->area, 0x55, GRANULE_SIZE);
	EXPECT_EQ(granule_state(self->pagemap, self->area), GRANULE_WHOLE);
	EXPECT_FALSE(granule_is_zero_run(self->pagemap, self->area));
	memset(buf, 1, sizeof(buf));
	ASSERT_EQ(read(pipefd[0], buf, sizeof(buf)), sizeof(buf));
	/* The pipe has the page of that time: all zeroes. */
	EXPECT_TRUE(granule_is_filled(buf, sizeof(buf), 0));
}

/* Assert that a forked child has the tag on the VMA, and populates runs. */
TEST_F(page_granule_fault, fork_inherits_tag)
{
	bool contract = variant->kind == GRANULE_CONTRACT;
	struct granule_smaps smaps;
	int status, pagemap;
	unsigned long i;
	pid_t pid;

	granule_fill(self->area, GRANULE_SIZE, 1);
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		pagemap = granule_open_pagemap();
		if (!granule_read_smaps(getpid(), self->area, &smaps) ||
		    !granule_has_flag(&smaps, "gr") || smaps.granule != 64 ||
		    granule_has_flag(&smaps, "gc") != contract)
			_exit(1);
		for (i = 1; i < 32; i++)
			*byte_of(self->area, i) = 1;
		if (granule_count(pagemap, nth(self->area, 1), 31 * GRANULE_SIZE,
				  GRANULE_WHOLE) != 31)
			_exit(2);
		if (!granule_check(self->area, GRANULE_SIZE, 1))
			_exit(3);
		if (contract && (!munmap(self->area, BASE_SIZE) || errno != EINVAL))
			_exit(4);
		_exit(0);
	}
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	ASSERT_TRUE(WIFEXITED(status));
	ASSERT_EQ(WEXITSTATUS(status), 0);
	EXPECT_EQ(granule_state(self->pagemap, self->area), GRANULE_WHOLE);
	EXPECT_EQ(granule_state(self->pagemap, nth(self->area, 1)), GRANULE_EMPTY);
}

/*
 * Assert that MADV_NOHUGEPAGE and PR_SET_THP_DISABLE make faults populate base
 * pages of default-tagged memory and 16 single pages of a contract, and that
 * taking them back brings runs back.
 */
TEST_F(page_granule_fault, thp_switched_off)
{
	const bool contract = variant->kind == GRANULE_CONTRACT;
	const unsigned long nr = contract ? GRANULE_NR_PAGES : 1;
	char *half = self->area + AREA_LEN / 2;

	ASSERT_EQ(madvise(self->area, AREA_LEN / 2, MADV_NOHUGEPAGE), 0);
	*byte_of(self->area, 3) = 1;
	EXPECT_EQ(granule_state(self->pagemap, nth(self->area, 3)), GRANULE_BROKEN);
	EXPECT_EQ(granule_present_pages(self->pagemap, nth(self->area, 3), GRANULE_SIZE), nr);
	FORCE_READ(*byte_of(self->area, 4));
	EXPECT_EQ(granule_present_pages(self->pagemap, nth(self->area, 4), GRANULE_SIZE), nr);
	EXPECT_EQ(granule_rss_kb(self->area, 1), nr * 4);
	ASSERT_EQ(madvise(self->area, AREA_LEN / 2, MADV_HUGEPAGE), 0);
	*byte_of(self->area, 5) = 1;
	EXPECT_EQ(granule_state(self->pagemap, nth(self->area, 5)), GRANULE_WHOLE);

	ASSERT_EQ(prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0), 0);
	*byte_of(half, 3) = 1;
	EXPECT_EQ(granule_state(self->pagemap, nth(half, 3)), GRANULE_BROKEN);
	EXPECT_EQ(granule_present_pages(self->pagemap, nth(half, 3), GRANULE_SIZE), nr);
	ASSERT_EQ(prctl(PR_SET_THP_DISABLE, 0, 0, 0, 0), 0);
	*byte_of(half, 4) = 1;
	EXPECT_EQ(granule_state(self->pagemap, nth(half, 4)), GRANULE_WHOLE);
}

/* Assert that a granule is the minimum, whatever order is set for mTHP. */
TEST_F_TIMEOUT(page_granule_fault, thp_any_order, 120)
{
	unsigned long orders = thp_supported_orders(), i;
	struct granule_smaps smaps;
	unsigned int order;

	for (order = 0; order < NR_ORDERS; order++) {
		if (!(orders & (1UL << order)))
			continue;
		granule_thp_order(order);
		/* Fresh memory; a quarter of it read before it is written. */
		ASSERT_EQ(granule_mmap(variant->kind, self->area, AREA_LEN, PROT_RW,
				       MAP_FIXED), self->area);
		for (i = 0; i < AREA_GRANULES / 4; i++)
			FORCE_READ(*nth(self->area, i));
		for (i = 0; i < AREA_GRANULES; i++)
			*byte_of(self->area, i) = i | 1;
		EXPECT_EQ(granule_count(self->pagemap, self->area, AREA_LEN, GRANULE_WHOLE),
			  AREA_GRANULES)
			TH_LOG("order %u", order);
		ASSERT_TRUE(granule_read_smaps(getpid(), self->area, &smaps));
		EXPECT_EQ(smaps.granule_mapped, AREA_LEN / 1024)
			TH_LOG("order %u", order);
		for (i = 0; i < AREA_GRANULES; i++) {
			ASSERT_EQ(*byte_of(self->area, i), (char)(i | 1));
			*byte_of(self->area, i) = 0;
		}
		EXPECT_TRUE(granule_is_filled(self->area, AREA_LEN, 0));
	}
}

/*
 * Races. Writers put their id into a byte of their own of any page, and find in
 * it their id or, where the page was given back meanwhile, a zero; anything
 * else is memory that belongs to someone else.
 */
#define RACE_THREADS	8

struct race {
	char *area;
	size_t len;
	bool stop;
	unsigned long errors;
	unsigned long writes;
};

struct racer {
	pthread_t thread;
	struct race *race;
	unsigned int id;
};

static __thread sigjmp_buf segv_env;

static void segv_handler(int sig)
{
	siglongjmp(segv_env, 1);
}

static void catch_segv(void)
{
	struct sigaction sa = { .sa_handler = segv_handler, .sa_flags = SA_NODEFER };

	sigaction(SIGSEGV, &sa, NULL);
	sigaction(SIGBUS, &sa, NULL);
}

static void *race_writer(void *arg)
{
	struct racer *racer = arg;
	struct race *race = racer->race;
	unsigned int seed = racer->id;
	char *byte, seen;

	while (!__atomic_load_n(&race->stop, __ATOMIC_RELAXED)) {
		byte = race->area + rand_r(&seed) % (race->len / BASE_SIZE) * BASE_SIZE +
		       racer->id;
		if (sigsetjmp(segv_env, 0))
			continue;
		if (rand_r(&seed) % 4 == 0) {
			/* A read fault first. */
			seen = __atomic_load_n(byte, __ATOMIC_RELAXED);
			if (seen && seen != racer->id)
				__atomic_fetch_add(&race->errors, 1, __ATOMIC_RELAXED);
		}
		__atomic_store_n(byte, racer->id, __ATOMIC_RELAXED);
		seen = __atomic_load_n(byte, __ATOMIC_RELAXED);
		if (seen && seen != racer->id)
			__atomic_fetch_add(&race->errors, 1, __ATOMIC_RELAXED);
		__atomic_fetch_add(&race->writes, 1, __ATOMIC_RELAXED);
	}
	return NULL;
}

static bool race_start(struct race *race, struct racer *racers, unsigned int nr)
{
	unsigned int i;

	catch_segv();
	for (i = 0; i < nr; i++) {
		racers[i].race = race;
		racers[i].id = i + 1;
		if (pthread_create(&racers[i].thread, NULL, race_writer, &racers[i]))
			return false;
	}
	return true;
}

static void race_stop(struct race *race, struct racer *racers, unsigned int nr)
{
	unsigned int i;

	__atomic_store_n(&race->stop, true, __ATOMIC_RELAXED);
	for (i = 0; i < nr; i++)
		pthread_join(racers[i].thread, NULL);
}

/* One disturbance of [addr, addr + len); leaves it mapped and writable. */
typedef bool (*disturbance)(enum granule_kind kind, char *addr, size_t len, char *spare);

static bool disturb_dontneed(enum granule_kind kind, char *addr, size_t len, char *spare)
{
	return !madvise(addr, len, MADV_DONTNEED);
}

static bool disturb_munmap(enum granule_kind kind, char *addr, size_t len, char *spare)
{
	if (munmap(addr, len))
		return false;
	return granule_mmap(kind, addr, len, PROT_RW, MAP_FIXED) == addr;
}

static bool disturb_map_fixed(enum granule_kind kind, char *addr, size_t len, char *spare)
{
	return granule_mmap(kind, addr, len, PROT_RW, MAP_FIXED) == addr;
}

static bool disturb_mremap(enum granule_kind kind, char *addr, size_t len, char *spare)
{
	return sys_mremap(addr, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, spare) == spare &&
	       sys_mremap(spare, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, addr) == addr;
}

static bool disturb_mprotect(enum granule_kind kind, char *addr, size_t len, char *spare)
{
	return !mprotect(addr, len, PROT_NONE) && !mprotect(addr, len, PROT_READ) &&
	       !mprotect(addr, len, PROT_RW);
}

static bool disturb_fork(enum granule_kind kind, char *addr, size_t len, char *spare)
{
	pid_t pid = fork();

	if (!pid)
		_exit(0);
	return pid > 0 && waitpid(pid, NULL, 0) == pid && !madvise(addr, len, MADV_DONTNEED);
}

static bool disturb_collapse(enum granule_kind kind, char *addr, size_t len, char *spare)
{
	char *pmd = (char *)((unsigned long)addr & -(unsigned long)HPAGE_SIZE);

	/* May fail for many reasons, a page table that changes among them. */
	madvise(pmd, HPAGE_SIZE, MADV_COLLAPSE);
	return !madvise(addr, len, MADV_DONTNEED);
}

FIXTURE(page_granule_fault_race)
{
	int pagemap;
	char *res;
	char *spare;
	struct race race;
};

FIXTURE_VARIANT(page_granule_fault_race)
{
	enum granule_kind kind;
	disturbance disturb;
};

FIXTURE_VARIANT_ADD(page_granule_fault_race, contract_dontneed)
{
	.kind = GRANULE_CONTRACT,
	.disturb = disturb_dontneed,
};

FIXTURE_VARIANT_ADD(page_granule_fault_race, default_dontneed)
{
	.kind = GRANULE_DEFAULT,
	.disturb = disturb_dontneed,
};

FIXTURE_VARIANT_ADD(page_granule_fault_race, contract_munmap)
{
	.kind = GRANULE_CONTRACT,
	.disturb = disturb_munmap,
};

FIXTURE_VARIANT_ADD(page_granule_fault_race, default_munmap)
{
	.kind = GRANULE_DEFAULT,
	.disturb = disturb_munmap,
};

FIXTURE_VARIANT_ADD(page_granule_fault_race, contract_map_fixed)
{
	.kind = GRANULE_CONTRACT,
	.disturb = disturb_map_fixed,
};

FIXTURE_VARIANT_ADD(page_granule_fault_race, default_map_fixed)
{
	.kind = GRANULE_DEFAULT,
	.disturb = disturb_map_fixed,
};

FIXTURE_VARIANT_ADD(page_granule_fault_race, contract_mremap)
{
	.kind = GRANULE_CONTRACT,
	.disturb = disturb_mremap,
};

FIXTURE_VARIANT_ADD(page_granule_fault_race, default_mremap)
{
	.kind = GRANULE_DEFAULT,
	.disturb = disturb_mremap,
};

FIXTURE_VARIANT_ADD(page_granule_fault_race, contract_mprotect)
{
	.kind = GRANULE_CONTRACT,
	.disturb = disturb_mprotect,
};

FIXTURE_VARIANT_ADD(page_granule_fault_race, default_mprotect)
{
	.kind = GRANULE_DEFAULT,
	.disturb = disturb_mprotect,
};

FIXTURE_VARIANT_ADD(page_granule_fault_race, contract_fork)
{
	.kind = GRANULE_CONTRACT,
	.disturb = disturb_fork,
};

FIXTURE_VARIANT_ADD(page_granule_fault_race, default_fork)
{
	.kind = GRANULE_DEFAULT,
	.disturb = disturb_fork,
};

FIXTURE_VARIANT_ADD(page_granule_fault_race, contract_collapse)
{
	.kind = GRANULE_CONTRACT,
	.disturb = disturb_collapse,
};

FIXTURE_VARIANT_ADD(page_granule_fault_race, default_collapse)
{
	.kind = GRANULE_DEFAULT,
	.disturb = disturb_collapse,
};

/* 4 MiB, aligned to 2 MiB so that THP collapse is possible. */
FIXTURE_SETUP(page_granule_fault_race)
{
	size_t len = 2 * HPAGE_SIZE;

	ASSERT_EQ(granule_set_enabled(true), 0);
	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, BASE_SIZE), 0);
	granule_thp_never();
	self->pagemap = granule_open_pagemap();
	ASSERT_GE(self->pagemap, 0);
	self->res = granule_reserve(3 * len);
	ASSERT_NE(self->res, NULL);
	self->race.area = (char *)(((unsigned long)self->res + HPAGE_SIZE - 1) &
				   -(unsigned long)HPAGE_SIZE);
	self->race.len = len;
	self->spare = self->race.area + len;
	ASSERT_EQ(granule_mmap(variant->kind, self->race.area, len, PROT_RW, MAP_FIXED),
		  self->race.area);
}

FIXTURE_TEARDOWN(page_granule_fault_race)
{
	EXPECT_TRUE(granule_invariants_hold());
	close(self->pagemap);
}

/* How many granules have some of their pages populated, but not all? */
static unsigned long count_partial(int pagemap, char *area, size_t len)
{
	unsigned long n, partial = 0;
	unsigned int filled;

	for (n = 0; n < len / GRANULE_SIZE; n++) {
		filled = granule_filled(pagemap, nth(area, n));
		partial += filled && filled != GRANULE_NR_PAGES;
	}
	return partial;
}

/*
 * Assert that faults lose cleanly against a concurrent change of their mapping,
 * and that no granule is ever populated in part.
 */
TEST_F_TIMEOUT(page_granule_fault_race, faults_against_change, 120)
{
	struct racer racers[RACE_THREADS];
	struct race *race = &self->race;
	unsigned long i, partial = 0;
	struct timespec end, now;
	unsigned int seed = 1;
	bool ok = true;

	ASSERT_TRUE(race_start(race, racers, RACE_THREADS));
	clock_gettime(CLOCK_MONOTONIC, &end);
	end.tv_sec++;
	do {
		unsigned long n = rand_r(&seed) % (race->len / GRANULE_SIZE - 4);
		unsigned long nr = rand_r(&seed) % 4 + 1;

		ok = variant->disturb(variant->kind, nth(race->area, n), nr * GRANULE_SIZE,
				      self->spare);
		partial += count_partial(self->pagemap, nth(race->area, n), 4 * GRANULE_SIZE);
		clock_gettime(CLOCK_MONOTONIC, &now);
	} while (ok && (now.tv_sec < end.tv_sec ||
			(now.tv_sec == end.tv_sec && now.tv_nsec < end.tv_nsec)));
	race_stop(race, racers, RACE_THREADS);
	ASSERT_TRUE(ok);
	EXPECT_EQ(race->errors, 0);
	partial += count_partial(self->pagemap, race->area, race->len);
	EXPECT_EQ(partial, 0);
	EXPECT_GT(race->writes, 0);

	/* All is in order afterwards: empty, then whole. */
	ASSERT_EQ(madvise(race->area, race->len, MADV_DONTNEED), 0);
	EXPECT_TRUE(granule_is_filled(race->area, race->len, 0));
	for (i = 0; i < race->len / GRANULE_SIZE; i++)
		*byte_of(race->area, i) = 1;
	EXPECT_EQ(granule_count(self->pagemap, race->area, race->len, GRANULE_WHOLE),
		  race->len / GRANULE_SIZE);
	/* A new mapping need not have merged with its neighbours. */
	EXPECT_EQ(granule_rss_kb(race->area, race->len), race->len / 1024);
}

struct gate {
	pthread_barrier_t start;
	pthread_barrier_t done;
	char *granule;
	unsigned int rounds;
};

struct gate_thread {
	pthread_t thread;
	struct gate *gate;
	unsigned int id;
};

/* Two pages a thread, so that 8 threads write every page of the granule. */
static void *gate_writer(void *arg)
{
	struct gate_thread *self = arg;
	struct gate *gate = self->gate;
	char *page = gate->granule + self->id * 2 * BASE_SIZE;
	unsigned int round;

	for (round = 0; round < gate->rounds; round++) {
		pthread_barrier_wait(&gate->start);
		/*
		 * Half of the threads read first, so that zeroes race with
		 * writes.
		 */
		if ((round + self->id) & 1)
			FORCE_READ(*page);
		page[0] = round + self->id;
		page[BASE_SIZE] = round - self->id;
		pthread_barrier_wait(&gate->done);
	}
	return NULL;
}

/* Assert that 8 threads that fault on one granule at once find one run. */
TEST_F_TIMEOUT(page_granule_fault, threads_on_one_granule, 120)
{
	struct gate_thread threads[8];
	struct gate gate = { .granule = self->area, .rounds = 500 };
	unsigned int round, i, not_whole = 0, wrong = 0;
	unsigned long rss;

	ASSERT_EQ(pthread_barrier_init(&gate.start, NULL, 9), 0);
	ASSERT_EQ(pthread_barrier_init(&gate.done, NULL, 9), 0);
	for (i = 0; i < 8; i++) {
		threads[i].gate = &gate;
		threads[i].id = i;
		ASSERT_EQ(pthread_create(&threads[i].thread, NULL, gate_writer, &threads[i]), 0);
	}
	rss = rss_anon();
	for (round = 0; round < gate.rounds; round++) {
		pthread_barrier_wait(&gate.start);
		pthread_barrier_wait(&gate.done);
		not_whole += granule_state(self->pagemap, self->area) != GRANULE_WHOLE;
		for (i = 0; i < 8; i++) {
			char *page = self->area + i * 2 * BASE_SIZE;

			wrong += page[0] != (char)(round + i);
			wrong += page[BASE_SIZE] != (char)(round - i);
			wrong += page[1] || page[BASE_SIZE + 1];
		}
		wrong += madvise(self->area, GRANULE_SIZE, MADV_DONTNEED);
	}
	for (i = 0; i < 8; i++)
		pthread_join(threads[i].thread, NULL);
	EXPECT_EQ(not_whole, 0);
	EXPECT_EQ(wrong, 0);
	/*
	 * Threads that lose must uncount their pages; 256 kB for the threads.
	 */
	EXPECT_LT(rss_anon(), rss + 256);
}

struct spin {
	char *page;
	bool ready;
	bool *stop;
};

static void *spin_reader(void *arg)
{
	struct spin *self = arg;

	while (!__atomic_load_n(self->stop, __ATOMIC_RELAXED)) {
		FORCE_READ(*self->page);
		__atomic_store_n(&self->ready, true, __ATOMIC_RELAXED);
	}
	return NULL;
}

/* Until it has read once more. */
static void wait_for_reader(struct spin *reader)
{
	__atomic_store_n(&reader->ready, false, __ATOMIC_RELAXED);
	while (!__atomic_load_n(&reader->ready, __ATOMIC_RELAXED))
		sched_yield();
}

/*
 * Assert that readers that never pause do not keep a write from populating the
 * granule.
 */
TEST_F(page_granule_fault, write_against_spinning_readers)
{
	bool stop = false;
	struct spin readers[2];
	pthread_t threads[2];
	unsigned int i, round;
	long worst = 0;

	for (i = 0; i < 2; i++) {
		readers[i].page = self->area + (i + 1) * BASE_SIZE;
		readers[i].stop = &stop;
		ASSERT_EQ(pthread_create(&threads[i], NULL, spin_reader, &readers[i]), 0);
		wait_for_reader(&readers[i]);
	}
	for (round = 0; round < 100; round++) {
		struct rusage before, after;

		ASSERT_EQ(madvise(self->area, GRANULE_SIZE, MADV_DONTNEED), 0);
		for (i = 0; i < 2; i++)
			wait_for_reader(&readers[i]);
		getrusage(RUSAGE_THREAD, &before);
		self->area[0] = 1;
		getrusage(RUSAGE_THREAD, &after);
		if (after.ru_minflt - before.ru_minflt > worst)
			worst = after.ru_minflt - before.ru_minflt;
		EXPECT_EQ(granule_state(self->pagemap, self->area), GRANULE_WHOLE);
	}
	__atomic_store_n(&stop, true, __ATOMIC_RELAXED);
	for (i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
	/*
	 * A reader that was about to say so when the granule was emptied may
	 * race with the write; one that spins must not send it back again and
	 * again.
	 */
	EXPECT_LE(worst, FAULT_SLACK);
}

/*
 * Assert that granule_split counts the whole granules that a bound cuts, and no
 * others.
 */
TEST_F(page_granule_fault, vmstat_split)
{
	unsigned long split = granule_vmstat("granule_split");
	char *area = self->area;

	area[0] = 1;
	area[GRANULE_SIZE] = 1;
	if (variant->kind == GRANULE_CONTRACT) {
		EXPECT_EQ(mprotect(area + GRANULE_SIZE, BASE_SIZE, PROT_READ), -1);
		EXPECT_EQ(granule_vmstat("granule_split"), split);
		return;
	}
	/* At a boundary, and in a granule that is empty. */
	ASSERT_EQ(mprotect(area, GRANULE_SIZE, PROT_READ), 0);
	ASSERT_EQ(mprotect(area, GRANULE_SIZE, PROT_RW), 0);
	ASSERT_EQ(mprotect(area + 2 * GRANULE_SIZE, BASE_SIZE, PROT_READ), 0);
	ASSERT_EQ(mprotect(area + 2 * GRANULE_SIZE, BASE_SIZE, PROT_RW), 0);
	EXPECT_EQ(granule_vmstat("granule_split"), split);
	/* Split a VMA; then move the bound that it has now, both ways. */
	ASSERT_EQ(mprotect(area + GRANULE_SIZE, BASE_SIZE, PROT_READ), 0);
	EXPECT_EQ(granule_vmstat("granule_split") - split, 1);
	ASSERT_EQ(mprotect(area, GRANULE_SIZE, PROT_READ), 0);
	EXPECT_EQ(granule_vmstat("granule_split") - split, 1);
	area = self->area + 8 * GRANULE_SIZE;
	area[0] = 1;
	area[GRANULE_SIZE] = 1;
	ASSERT_EQ(mprotect(area, GRANULE_SIZE, PROT_READ), 0);
	split = granule_vmstat("granule_split");
	ASSERT_EQ(mprotect(area + GRANULE_SIZE, BASE_SIZE, PROT_READ), 0);
	EXPECT_EQ(granule_vmstat("granule_split") - split, 1);
	ASSERT_EQ(mprotect(area + 12 * BASE_SIZE, 4 * BASE_SIZE, PROT_RW), 0);
	EXPECT_EQ(granule_vmstat("granule_split") - split, 2);
}

/*
 * No order-4 page is available: fault injection fails them for this task only.
 */
FIXTURE(page_granule_fault_fallback)
{
	struct granule_fail fail;
	int pagemap;
	char *area;
};

FIXTURE_VARIANT(page_granule_fault_fallback)
{
	enum granule_kind kind;
};

FIXTURE_VARIANT_ADD(page_granule_fault_fallback, contract)
{
	.kind = GRANULE_CONTRACT,
};

FIXTURE_VARIANT_ADD(page_granule_fault_fallback, default_tagged)
{
	.kind = GRANULE_DEFAULT,
};

FIXTURE_SETUP(page_granule_fault_fallback)
{
	char *res;

	ASSERT_EQ(granule_set_enabled(true), 0);
	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, BASE_SIZE), 0);
	granule_thp_never();
	self->pagemap = granule_open_pagemap();
	ASSERT_GE(self->pagemap, 0);
	res = granule_reserve(AREA_LEN);
	ASSERT_NE(res, NULL);
	self->area = granule_mmap(variant->kind, res, AREA_LEN, PROT_RW, MAP_FIXED);
	ASSERT_EQ(self->area, res);
	if (!granule_fail_prepare(&self->fail))
		SKIP(return, GRANULE_FAIL_REMEDY);
}

FIXTURE_TEARDOWN(page_granule_fault_fallback)
{
	EXPECT_TRUE(granule_invariants_hold());
	granule_fail_restore(&self->fail);
}

/*
 * Assert that without an order-4 folio one fault populates 16 single pages and
 * counts a fallback.
 */
TEST_F(page_granule_fault_fallback, single_pages)
{
	unsigned long fallback = granule_vmstat("granule_fallback");
	struct granule_smaps smaps;
	unsigned long i, n = 16;
	long faults;

	granule_fail_order4(true);
	faults = minor_faults();
	for (i = 0; i < n; i++)
		*byte_of(self->area, i) = i | 1;
	faults = minor_faults() - faults;
	granule_fail_order4(false);

	EXPECT_GE(faults, n);
	EXPECT_LE(faults, n + FAULT_SLACK);
	EXPECT_EQ(granule_vmstat("granule_fallback") - fallback, n);
	EXPECT_EQ(granule_present_pages(self->pagemap, self->area, n * GRANULE_SIZE),
		  n * GRANULE_NR_PAGES);
	EXPECT_EQ(granule_count(self->pagemap, self->area, n * GRANULE_SIZE, GRANULE_BROKEN),
		  n);
	ASSERT_TRUE(granule_read_smaps(getpid(), self->area, &smaps));
	EXPECT_EQ(smaps.rss, n * 64);
	/* A run is in one folio: single pages are none, even if adjacent. */
	EXPECT_EQ(smaps.granule_mapped, 0);
	for (i = 0; i < n; i++) {
		EXPECT_EQ(*byte_of(self->area, i), (char)(i | 1));
		*byte_of(self->area, i) = 0;
	}
	EXPECT_TRUE(granule_is_filled(self->area, n * GRANULE_SIZE, 0));

	/* Memory is back: so are the runs. */
	*byte_of(self->area, n) = 1;
	EXPECT_EQ(granule_state(self->pagemap, nth(self->area, n)), GRANULE_WHOLE);
	EXPECT_EQ(granule_vmstat("granule_fallback") - fallback, n);
}

/* Assert that a write after a read falls back in the same way. */
TEST_F(page_granule_fault_fallback, write_after_read)
{
	unsigned long fallback = granule_vmstat("granule_fallback");

	FORCE_READ(self->area[0]);
	granule_fail_order4(true);
	self->area[3 * BASE_SIZE] = 1;
	granule_fail_order4(false);
	EXPECT_EQ(granule_vmstat("granule_fallback") - fallback, 1);
	EXPECT_EQ(granule_present_pages(self->pagemap, self->area, GRANULE_SIZE), 16);
	EXPECT_EQ(granule_rss_kb(self->area, 1), 64);
	EXPECT_EQ(self->area[3 * BASE_SIZE], 1);
	self->area[3 * BASE_SIZE] = 0;
	EXPECT_TRUE(granule_is_filled(self->area, GRANULE_SIZE, 0));
}

/* Assert that memory of single pages is given back as any other. */
TEST_F(page_granule_fault_fallback, given_back)
{
	unsigned long before;

	granule_fail_order4(true);
	memset(self->area, 1, 4 * GRANULE_SIZE);
	granule_fail_order4(false);
	before = rss_anon();
	ASSERT_EQ(munmap(nth(self->area, 1), GRANULE_SIZE), 0);
	EXPECT_EQ(before - rss_anon(), 64);
	ASSERT_EQ(madvise(self->area, GRANULE_SIZE, MADV_DONTNEED), 0);
	EXPECT_EQ(before - rss_anon(), 128);
	EXPECT_TRUE(granule_is_filled(self->area, GRANULE_SIZE, 0));
	EXPECT_EQ(memchr(nth(self->area, 2), 0, 2 * GRANULE_SIZE), NULL);
	self->area[0] = 1;
	EXPECT_EQ(granule_state(self->pagemap, self->area), GRANULE_WHOLE);
}

/*
 * Assert that faults find a contract granule of single pages populated whole or
 * not at all, also while the kernel lacks the memory to note more than a few of
 * the pages that it unmaps. Default-tagged memory may be in between, as
 * untagged memory may.
 */
TEST_F_TIMEOUT(page_granule_fault_fallback, unmapped_without_memory, 120)
{
	const size_t len = 8 * GRANULE_SIZE;
	struct race race = { .area = self->area, .len = len };
	struct racer racers[2];
	unsigned long partial = 0, broken = 0, writes;
	int round;

	for (round = 0; round < 100; round++) {
		/*
		 * One run, which takes less room: the limit is reached inside a
		 * granule.
		 */
		self->area[0] = 0;
		granule_fail_order4(true);
		memset(self->area, 0, len);
		broken += granule_count(self->pagemap, self->area, len, GRANULE_BROKEN);

		/* Allocations of all sizes fail, unless they can wait. */
		granule_fail_nowait(true);
		race.stop = false;
		writes = race.writes;
		ASSERT_TRUE(race_start(&race, racers, ARRAY_SIZE(racers)));
		while (__atomic_load_n(&race.writes, __ATOMIC_RELAXED) == writes)
			sched_yield();
		EXPECT_EQ(madvise(self->area, len, MADV_DONTNEED), 0);
		race_stop(&race, racers, ARRAY_SIZE(racers));
		granule_fail_nowait(false);
		granule_fail_order4(false);

		partial += count_partial(self->pagemap, self->area, len);
		ASSERT_EQ(madvise(self->area, len, MADV_DONTNEED), 0);
	}
	EXPECT_EQ(race.errors, 0);
	EXPECT_GT(race.writes, 0);
	EXPECT_EQ(broken, 7 * round);
	if (variant->kind == GRANULE_CONTRACT)
		EXPECT_EQ(partial, 0);
}

int main(int argc, char **argv)
{
	granule_require();
	granule_save_settings();
	return test_harness_run(argc, argv);
}
