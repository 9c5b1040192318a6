// SPDX-License-Identifier: GPL-2.0
/*
 * Page granule: how often the kernel flushes TLBs, as CONFIG_DEBUG_TLBFLUSH
 * counts it. An operation on a whole granule takes one flush or none. On arm64
 * it neither makes present entries contiguous nor takes that back, which would
 * take another. Each test does the same to 64 KiB mTHP, and prints that for
 * comparison only.
 */
#define _GNU_SOURCE
#include "kselftest_harness.h"
#include <asm-generic/mman.h> /* Force the import of the tools version. */
#include <limits.h>
#include <linux/fs.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "hugepage_settings.h"
#include "vm_util.h"
#include "page_granule_util.h"

#define NR		64UL
#define LEN		(NR * GRANULE_SIZE)

/*
 * Flushes by others meanwhile: much less than a flush, or a fold, for each
 * granule.
 */
#define SLACK		(NR / 4)

#define COUNTERS_REMEDY	"no counters: set CONFIG_DEBUG_TLBFLUSH=y"

#define HINT_SECONDS	60

/* A flush for each page of mTHP may take long if the other CPU is a busy host's. */
#define BUSY_SECONDS	180

/* What arm64 makes contiguous, and takes back */
static unsigned long folds(void)
{
	const unsigned long fold = granule_vmstat("nr_contpte_fold");

	return fold == ULONG_MAX ? 0 : fold + granule_vmstat("nr_contpte_unfold");
}

FIXTURE(page_granule_flush)
{
	char *area;
	char *spare;		/* as long, for mremap() */
	int pagemap;
	pthread_t spinner;
	bool stop;
	unsigned long flushes;
	unsigned long folds;
};

FIXTURE_VARIANT(page_granule_flush)
{
	enum granule_kind kind;
	bool mthp;
};

FIXTURE_VARIANT_ADD(page_granule_flush, contract)
{
	.kind = GRANULE_CONTRACT,
};

FIXTURE_VARIANT_ADD(page_granule_flush, default_tagged)
{
	.kind = GRANULE_DEFAULT,
};

FIXTURE_VARIANT_ADD(page_granule_flush, mthp)
{
	.kind = GRANULE_UNTAGGED,
	.mthp = true,
};

static void touch(char *area)
{
	unsigned long i;

	/*
	 * Each page, for mTHP is changed page by page; no read, which finds
	 * zeroes.
	 */
	for (i = 0; i < LEN; i += BASE_SIZE)
		__atomic_store_n(area + i, 1, __ATOMIC_RELAXED);
}

/* Has the memory in the TLB of another CPU, so that no flush is left out. */
static void *spin(void *arg)
{
	bool *stop = arg;

	while (!__atomic_load_n(stop, __ATOMIC_RELAXED))
		sched_yield();
	return NULL;
}

static bool use_two_cpus(pthread_t *spinner, bool *stop)
{
	cpu_set_t cpus, one;
	int cpu;

	if (sched_getaffinity(0, sizeof(cpus), &cpus))
		return false;
	cpu = sched_getcpu();
	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	CPU_CLR(cpu, &cpus);
	if (pthread_create(spinner, NULL, spin, stop))
		return false;
	return !pthread_setaffinity_np(*spinner, sizeof(cpus), &cpus) &&
	       !sched_setaffinity(0, sizeof(one), &one);
}

FIXTURE_SETUP(page_granule_flush)
{
	cpu_set_t cpus;
	char *res;

	if (granule_vmstat(GRANULE_FLUSH_COUNTER) == ULONG_MAX)
		SKIP(return, COUNTERS_REMEDY);
	ASSERT_EQ(sched_getaffinity(0, sizeof(cpus), &cpus), 0);
	if (CPU_COUNT(&cpus) < 2)
		SKIP(return, "one CPU: boot with two");
	ASSERT_EQ(granule_set_enabled(true), 0);
	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, BASE_SIZE), 0);
	granule_thp_never();
	if (variant->mthp)
		granule_thp_order(GRANULE_ORDER);
	self->pagemap = granule_open_pagemap();
	ASSERT_GE(self->pagemap, 0);
	res = granule_reserve(2 * LEN + GRANULE_SIZE);
	ASSERT_NE(res, NULL);
	self->area = granule_mmap(variant->kind, res, LEN, PROT_RW, MAP_FIXED);
	ASSERT_EQ(self->area, res);
	self->spare = res + LEN + GRANULE_SIZE;
	ASSERT_TRUE(use_two_cpus(&self->spinner, &self->stop));
	touch(self->area);
}

FIXTURE_TEARDOWN(page_granule_flush)
{
	EXPECT_TRUE(granule_invariants_hold());
	__atomic_store_n(&self->stop, true, __ATOMIC_RELAXED);
	pthread_join(self->spinner, NULL);
}

#define COUNT_START()							\
	do {								\
		self->folds = folds();					\
		self->flushes = granule_flushes();			\
	} while (0)

/* Count a stage. Granules may flush up to @max times. */
#define EXPECT_FLUSHES(stage, max)					\
	do {								\
		self->flushes = granule_flushes() - self->flushes;	\
		self->folds = folds() - self->folds;			\
		ksft_print_msg("%s: %lu blocks, %lu flushes, %lu folds or unfolds\n", \
			       stage, NR, self->flushes, self->folds);	\
		if (variant->mthp)					\
			break;						\
		EXPECT_LE(self->flushes, (max) + SLACK);		\
		EXPECT_LE(self->folds, SLACK);				\
	} while (0)

/*
 * The same for a stage that cannot do without flushes: the TLB of another CPU
 * has the memory, so the counters have to show at least @min of them.
 */
#define EXPECT_FLUSHES_FROM(stage, min, max)				\
	do {								\
		EXPECT_FLUSHES(stage, max);				\
		EXPECT_GE(self->flushes, min);				\
	} while (0)

#define EXPECT_WHOLE(area)						\
	do {								\
		if (!variant->mthp)					\
			EXPECT_EQ(granule_count(self->pagemap, area, LEN, \
						GRANULE_WHOLE), NR);	\
	} while (0)

/*
 * Assert that MADV_DONTNEED takes one flush a granule, and that munmap() takes
 * one for all.
 */
TEST_F(page_granule_flush, zap)
{
	unsigned long i;

	COUNT_START();
	for (i = 0; i < NR; i++)
		ASSERT_EQ(madvise(nth(self->area, i), GRANULE_SIZE, MADV_DONTNEED), 0);
	EXPECT_FLUSHES_FROM("MADV_DONTNEED", NR, NR);

	touch(self->area);
	EXPECT_WHOLE(self->area);
	COUNT_START();
	ASSERT_EQ(munmap(self->area, LEN), 0);
	EXPECT_FLUSHES_FROM("munmap", 1, 1);
}

/* Assert that mprotect() takes one flush a granule, to read-only and back. */
TEST_F(page_granule_flush, mprotect)
{
	unsigned long i;

	COUNT_START();
	for (i = 0; i < NR; i++)
		ASSERT_EQ(mprotect(nth(self->area, i), GRANULE_SIZE, PROT_READ), 0);
	EXPECT_FLUSHES_FROM("mprotect, read only", NR, NR);
	EXPECT_WHOLE(self->area);

	COUNT_START();
	for (i = 0; i < NR; i++)
		ASSERT_EQ(mprotect(nth(self->area, i), GRANULE_SIZE, PROT_RW), 0);
	touch(self->area);
	EXPECT_FLUSHES("mprotect, writable", NR);
	EXPECT_WHOLE(self->area);
}

/*
 * Assert that fork takes few flushes, and that copy-on-write takes one a
 * granule.
 */
TEST_F_TIMEOUT(page_granule_flush, fork_and_cow, BUSY_SECONDS)
{
	pid_t pid;

	COUNT_START();
	pid = granule_fork_idle();
	ASSERT_GT(pid, 0);
	/*
	 * The other pages of the process, which both write to, are among them.
	 */
	EXPECT_FLUSHES("fork", NR / 2);
	EXPECT_WHOLE(self->area);

	COUNT_START();
	touch(self->area);
	EXPECT_FLUSHES("copy-on-write", NR);
	EXPECT_WHOLE(self->area);
	granule_kill_idle(pid);
}

/*
 * Assert that the last owner writes to a granule with one flush, and without a
 * copy.
 */
TEST_F(page_granule_flush, reuse)
{
	pid_t pid = granule_fork_idle();

	ASSERT_GT(pid, 0);
	granule_kill_idle(pid);
	COUNT_START();
	touch(self->area);
	EXPECT_FLUSHES("reuse", NR);
	EXPECT_WHOLE(self->area);
}

/*
 * Assert that reading zeroes takes no flush, and that writing takes one a
 * granule.
 */
TEST_F_TIMEOUT(page_granule_flush, write_after_read, BUSY_SECONDS)
{
	ASSERT_EQ(madvise(self->area, LEN, MADV_DONTNEED), 0);
	COUNT_START();
	force_read_pages(self->area, LEN / BASE_SIZE, BASE_SIZE);
	EXPECT_FLUSHES("zero read", 0);

	COUNT_START();
	touch(self->area);
	EXPECT_FLUSHES("write after read", NR);
	EXPECT_WHOLE(self->area);
}

/* Assert that paging out takes one flush a granule, and so does swapping in. */
TEST_F(page_granule_flush, reclaim)
{
	int i;

	if (!granule_have_swap(NULL))
		SKIP(return, GRANULE_SWAP_REMEDY);
	COUNT_START();
	/*
	 * A page that is in a batch of others, or written back, stays for now.
	 */
	for (i = 0; i < 50 && granule_rss_kb(self->area, LEN); i++) {
		ASSERT_EQ(madvise(self->area, LEN, MADV_PAGEOUT), 0);
		usleep(10 * 1000);
	}
	ASSERT_EQ(granule_rss_kb(self->area, LEN), 0);
	EXPECT_FLUSHES("page-out", NR);

	COUNT_START();
	touch(self->area);
	EXPECT_FLUSHES("swap-in", NR);
	EXPECT_WHOLE(self->area);
}

/* Assert that mremap() takes one flush a granule. */
TEST_F(page_granule_flush, mremap)
{
	char *from, *to;
	unsigned long i;

	COUNT_START();
	for (i = 0; i < NR; i++) {
		from = nth(self->area, i);
		to = nth(self->spare, i);
		ASSERT_EQ(mremap(from, GRANULE_SIZE, GRANULE_SIZE,
				 MREMAP_MAYMOVE | MREMAP_FIXED, to), to);
	}
	touch(self->spare);
	EXPECT_FLUSHES_FROM("mremap", NR, NR);
	EXPECT_WHOLE(self->spare);
}

/* Assert that write protection by PAGEMAP_SCAN takes one flush a granule. */
TEST_F(page_granule_flush, pagemap_scan)
{
	struct pm_scan_arg arg = { .size = sizeof(arg), .flags = PM_SCAN_WP_MATCHING };
	unsigned long i;
	int uffd;

	uffd = granule_uffd_open(UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED);
	if (uffd < 0)
		SKIP(return, GRANULE_UFFD_REMEDY);
	ASSERT_EQ(uffd_register(uffd, self->area, LEN, false, true, false), 0);
	COUNT_START();
	for (i = 0; i < NR; i++) {
		arg.start = (uintptr_t)nth(self->area, i);
		arg.end = arg.start + GRANULE_SIZE;
		ASSERT_EQ(ioctl(self->pagemap, PAGEMAP_SCAN, &arg), 0);
	}
	EXPECT_FLUSHES("PAGEMAP_SCAN, write-protect", NR);
	EXPECT_WHOLE(self->area);
	close(uffd);
}

/* Assert that migration takes one flush a granule. */
TEST_F(page_granule_flush, migration)
{
	unsigned int node;

	if (!granule_two_nodes())
		SKIP(return, GRANULE_NODES_REMEDY);
	ASSERT_EQ(syscall(__NR_getcpu, NULL, &node, NULL), 0);
	COUNT_START();
	ASSERT_EQ(granule_on_node(self->area, NR, !node, true), NR);
	EXPECT_FLUSHES("migration", NR);
	EXPECT_WHOLE(self->area);
}

/*
 * Assert that each NUMA hint takes one flush and one fault. The granules stay
 * on their node.
 */
TEST_F_TIMEOUT(page_granule_flush, numa_hints, 3 * HINT_SECONDS)
{
	unsigned long updates = 0, faults = 0, before, before_faults;
	unsigned int node;
	time_t end;

	if (!granule_two_nodes())
		SKIP(return, GRANULE_NODES_REMEDY);
	if (access(NUMA_BALANCING, W_OK))
		SKIP(return, "no NUMA balancing: set CONFIG_NUMA_BALANCING=y");
	ASSERT_EQ(syscall(__NR_getcpu, NULL, &node, NULL), 0);
	ASSERT_EQ(granule_on_node(self->area, NR, node, true), NR);

	before = granule_vmstat("numa_pte_updates");
	before_faults = granule_vmstat("numa_hint_faults");
	COUNT_START();
	ASSERT_EQ(granule_write(NUMA_BALANCING, "1"), 0);
	for (end = time(NULL) + HINT_SECONDS; time(NULL) < end && faults < NR;) {
		touch(self->area);
		updates = granule_vmstat("numa_pte_updates") - before;
		faults = granule_vmstat("numa_hint_faults") - before_faults;
	}
	ASSERT_EQ(granule_write(NUMA_BALANCING, "0"), 0);
	ksft_print_msg("%lu entries, %lu faults\n", updates, faults);
	EXPECT_GE(faults, NR);
	EXPECT_FLUSHES("NUMA hints", updates / GRANULE_NR_PAGES);
	/* Giving back the last access takes no fold either. */
	touch(self->area);
	EXPECT_WHOLE(self->area);
}

int main(int argc, char **argv)
{
	granule_require();
	granule_save_settings();
	granule_save_setting(NUMA_BALANCING);
	granule_write(NUMA_BALANCING, "0");
	return test_harness_run(argc, argv);
}
