// SPDX-License-Identifier: GPL-2.0
/*
 * Page granule: what takes single pages out of a granule. KSM, guard markers,
 * device-exclusive entries, NUMA hints, page_idle, and writes by force.
 *
 * Each test acts on the least that the kind of memory allows: a granule of a
 * contract VMA, a page of a default-tagged one. All other pages then hold what
 * a model of the area holds, and all other granules are whole.
 */
#define _GNU_SOURCE
#include "kselftest_harness.h"
#include <asm-generic/mman.h> /* Force the import of the tools version. */
#include <fcntl.h>
#include <linux/prctl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <lib/test_hmm_uapi.h>
#include "hugepage_settings.h"
#include "vm_util.h"
#include "page_granule_mem.h"
#include "page_granule_util.h"

/*
 * Settings that tests change, and that are put back after each of them, the
 * last first.
 */
static const char * const settings[] = {
	NUMA_BALANCING, KSM_SYSFS "run", KSM_SYSFS "smart_scan", KSM_SYSFS "use_zero_pages",
	KSM_SYSFS "pages_to_scan", KSM_SYSFS "sleep_millisecs",
};

FIXTURE(page_granule_single)
{
	struct mem mem;
};

FIXTURE_VARIANT(page_granule_single)
{
	enum granule_kind kind;
};

FIXTURE_VARIANT_ADD(page_granule_single, contract)
{
	.kind = GRANULE_CONTRACT,
};

FIXTURE_VARIANT_ADD(page_granule_single, default_tagged)
{
	.kind = GRANULE_DEFAULT,
};

FIXTURE_SETUP(page_granule_single)
{
	ASSERT_TRUE(granule_catch_faults());
	ASSERT_TRUE(mem_create_nr(&self->mem, variant->kind, FEW_GRANULES));
}

FIXTURE_TEARDOWN(page_granule_single)
{
	EXPECT_TRUE(granule_invariants_hold());
	if (self->mem.area)
		munmap(self->mem.area, mem_len(&self->mem));
	granule_restore_settings();
}

/* KSM. */
static bool ksm_scan(unsigned int scans)
{
	long end = ksm_get_full_scans() + scans;
	unsigned int i;

	/* Do not skip what could not be merged before. */
	granule_write(KSM_SYSFS "smart_scan", "0");
	if (granule_write(KSM_SYSFS "sleep_millisecs", "0") ||
	    granule_write(KSM_SYSFS "pages_to_scan", "1000") ||
	    granule_write(KSM_SYSFS "run", "1"))
		return false;
	for (i = 0; i < 1200 && ksm_get_full_scans() < end; i++)
		usleep(50 * 1000);
	return ksm_get_full_scans() >= end;
}

/* The same in all granules, something else in each page of one. */
static void fill_alike(struct mem *mem)
{
	unsigned long i;

	for (i = 0; i < mem->nr; i++) {
		granule_fill(nth(mem->area, i), GRANULE_SIZE, 7);
		granule_fill(nth(mem->model, i), GRANULE_SIZE, 7);
	}
}

/*
 * Pages of later granules that are the same page as one of the first granule.
 */
static unsigned long mem_merged(struct mem *mem)
{
	unsigned long i, nr = 0;

	for (i = GRANULE_NR_PAGES; i < mem_pages(mem); i++)
		nr += pagemap_get_pfn(mem->pagemap, page_at(mem->area, i)) ==
		      pagemap_get_pfn(mem->pagemap,
				      page_at(mem->area, i % GRANULE_NR_PAGES));
	return nr;
}

/*
 * Assert that KSM merges pages of default-tagged VMAs, and that a write or the
 * end of KSM gives each its own again. KSM leaves contract VMAs alone, also
 * when it is to merge the whole process.
 */
TEST_F_TIMEOUT(page_granule_single, ksm, 180)
{
	const bool contract = variant->kind == GRANULE_CONTRACT;
	const unsigned long alike = FEW_PAGES - GRANULE_NR_PAGES;
	struct mem *mem = &self->mem;
	unsigned long i;
	char *new;

	if (ksm_get_full_scans() < 0)
		SKIP(return, "no KSM: build the kernel with CONFIG_KSM=y");
	if (!contract && !granule_repair(false))
		SKIP(return, REPAIR_REMEDY);
	fill_alike(mem);
	EXPECT_EQ(madvise(mem->area, mem_len(mem), MADV_MERGEABLE), contract ? -1 : 0);
	if (contract) {
		ASSERT_EQ(prctl(PR_SET_MEMORY_MERGE, 1, 0, 0, 0), 0);
		EXPECT_FALSE(granule_vma_has_flag(mem->area, "mg"));
		new = granule_area(GRANULE_CONTRACT, GRANULE_SIZE, 0);
		ASSERT_NE(new, NULL);
		EXPECT_FALSE(granule_vma_has_flag(new, "mg"));
	}
	ASSERT_TRUE(ksm_scan(4));
	EXPECT_EQ(mem_merged(mem), contract ? 0 : alike);
	EXPECT_TRUE(mem_holds(mem));
	if (contract) {
		EXPECT_INTACT(mem);
		EXPECT_EQ(prctl(PR_SET_MEMORY_MERGE, 0, 0, 0, 0), 0);
		EXPECT_INTACT(mem);
		return;
	}
	EXPECT_EQ(mem_whole(mem), 0);

	ASSERT_EQ(granule_write(KSM_SYSFS "run", "0"), 0);
	for (i = 0; i < GRANULE_NR_PAGES; i++) {
		*byte_in(mem_target(mem), i) = 3;
		*byte_in(nth(mem->model, TARGET), i) = 3;
	}
	EXPECT_EQ(mem_merged(mem), alike - GRANULE_NR_PAGES);
	EXPECT_TRUE(mem_holds(mem));
	ASSERT_EQ(madvise(mem->area, mem_len(mem), MADV_UNMERGEABLE), 0);
	EXPECT_EQ(mem_merged(mem), 0);
	EXPECT_EQ(mem_count(mem, PM_PRESENT), FEW_PAGES);
	EXPECT_TRUE(mem_holds(mem));

	/*
	 * The last page to come back tells that there is something to repair.
	 */
	EXPECT_TRUE(granule_repair(true));
	EXPECT_TRUE(mem_wait_whole(mem, 20));
	granule_repair(false);
	EXPECT_INTACT(mem);
	mem_write_pages(mem, 4);
	EXPECT_INTACT(mem);
}

/* Zero pages of KSM, which a contract granule has none of. */
FIXTURE(page_granule_single_zero)
{
	struct mem mem;
};

FIXTURE_SETUP(page_granule_single_zero)
{
	ASSERT_TRUE(mem_create_nr(&self->mem, GRANULE_DEFAULT, FEW_GRANULES));
}

FIXTURE_TEARDOWN(page_granule_single_zero)
{
	EXPECT_TRUE(granule_invariants_hold());
	granule_restore_settings();
}

/*
 * Assert that a write replaces KSM's zero pages, which are the one zero page,
 * one by one. KSM counts each of them, and runs can be formed afterwards.
 */
TEST_F_TIMEOUT(page_granule_single_zero, ksm, 180)
{
	struct mem *mem = &self->mem;
	unsigned long i;
	pid_t pid;

	if (ksm_get_full_scans() < 0)
		SKIP(return, "no KSM: build the kernel with CONFIG_KSM=y");
	/* Merged, and then written to, they are single pages. */
	fill_alike(mem);
	ASSERT_EQ(madvise(mem->area, mem_len(mem), MADV_MERGEABLE), 0);
	ASSERT_TRUE(ksm_scan(4));
	ASSERT_EQ(granule_write(KSM_SYSFS "run", "0"), 0);
	ASSERT_EQ(granule_write(KSM_SYSFS "use_zero_pages", "1"), 0);
	memset(mem->area, 0, mem_len(mem));
	memset(mem->model, 0, mem_len(mem));
	EXPECT_EQ(mem_whole(mem), 0);
	ASSERT_TRUE(ksm_scan(4));
	EXPECT_EQ(ksm_get_self_zero_pages(), FEW_PAGES);
	EXPECT_EQ(granule_rss_kb(mem->area, mem_len(mem)), 0);
	EXPECT_TRUE(mem_holds(mem));

	ASSERT_EQ(granule_write(KSM_SYSFS "run", "0"), 0);
	pid = mem_fork(mem);
	if (!pid) {
		mem_write_pages(mem, 2);
		EXPECT_TRUE(mem_holds(mem));
		EXPECT_EQ(ksm_get_self_zero_pages(), 0);
		EXPECT_REPAIRED(mem);
		_exit(0);
	}
	EXPECT_TRUE(granule_child_ends(pid));
	EXPECT_EQ(ksm_get_self_zero_pages(), FEW_PAGES);
	for (i = 0; i < mem->nr / 2; i++)
		*byte_of(mem->area, i) = *byte_of(mem->model, i) = 3;
	EXPECT_EQ(ksm_get_self_zero_pages(), FEW_PAGES - mem->nr / 2);
	ASSERT_EQ(madvise(mem->area, mem_len(mem), MADV_UNMERGEABLE), 0);
	EXPECT_EQ(ksm_get_self_zero_pages(), 0);
	EXPECT_TRUE(mem_holds(mem));
	EXPECT_REPAIRED(mem);
}

/* Assert that a guard marker guards its own pages, and no others. */
TEST_F(page_granule_single, guard)
{
	const unsigned long cut = variant->kind == GRANULE_CONTRACT ? 0 : 1;
	struct mem *mem = &self->mem;
	const unsigned long nr = mem->end - mem->first;
	unsigned long split;
	pid_t pid;

	mem_fill(mem, 1);
	split = granule_vmstat("granule_split");
	ASSERT_EQ(madvise(mem_unit(mem), mem_unit_len(mem), MADV_GUARD_INSTALL), 0);
	EXPECT_EQ(granule_vmstat("granule_split") - split, cut);
	EXPECT_EQ(mem_count(mem, PM_GUARD_REGION), nr);
	mem_write_but(mem, mem->first, mem->end, 2);
	EXPECT_EQ(refused(mem, mem->first, mem->end, ACCESS_READ, SIGSEGV), nr);
	EXPECT_EQ(all_refused(mem, ACCESS_WRITE, SIGSEGV), nr);
	EXPECT_LOST(mem, mem->first, mem->end);
	pid = mem_fork(mem);
	if (!pid) {
		mem_write_but(mem, mem->first, mem->end, 3);
		EXPECT_EQ(refused(mem, mem->first, mem->end, ACCESS_READ, SIGSEGV), nr);
		EXPECT_EQ(all_refused(mem, ACCESS_WRITE, SIGSEGV), nr);
		EXPECT_LOST(mem, mem->first, mem->end);
		_exit(0);
	}
	EXPECT_TRUE(granule_child_ends(pid));
	ASSERT_EQ(mprotect(mem->area, mem_len(mem), PROT_READ), 0);
	ASSERT_EQ(mprotect(mem->area, mem_len(mem), PROT_RW), 0);
	EXPECT_EQ(all_refused(mem, ACCESS_WRITE, SIGSEGV), nr);
	EXPECT_LOST(mem, mem->first, mem->end);

	ASSERT_EQ(madvise(mem_unit(mem), mem_unit_len(mem), MADV_GUARD_REMOVE), 0);
	mem_zero_unit(mem);
	EXPECT_LOST(mem, 0, 0);
	mem_write_pages(mem, 4);
	if (cut)
		EXPECT_REPAIRED(mem);
	EXPECT_INTACT(mem);

	/* Guarding whole granules and removing the guards leaves no trace. */
	ASSERT_EQ(madvise(mem_target(mem), 2 * GRANULE_SIZE, MADV_GUARD_INSTALL), 0);
	EXPECT_EQ(all_refused(mem, ACCESS_READ, SIGSEGV), 2 * GRANULE_NR_PAGES);
	ASSERT_EQ(madvise(mem_target(mem), 2 * GRANULE_SIZE, MADV_GUARD_REMOVE), 0);
	memset(nth(mem->model, TARGET), 0, 2 * GRANULE_SIZE);
	FORCE_READ(*mem_target(mem));
	EXPECT_TRUE(granule_is_zero_run(mem->pagemap, mem_target(mem)));
	*mem_target(mem) = *nth(mem->model, TARGET) = 5;
	*nth(mem_target(mem), 1) = *nth(mem->model, TARGET + 1) = 5;
	EXPECT_INTACT(mem);
	EXPECT_EQ(granule_vmstat("granule_split") - split, cut);
}

/* Assert that a page returns to its run after a device had it exclusively. */
TEST_F(page_granule_single, device_exclusive)
{
	struct hmm_dmirror_cmd cmd = { .npages = 1 };
	struct mem *mem = &self->mem;
	char seen[BASE_SIZE];
	pid_t pid;
	int fd;

	fd = open("/dev/hmm_dmirror0", O_RDWR);
	if (fd < 0)
		SKIP(return, "no /dev/hmm_dmirror0: set CONFIG_TEST_HMM=y, mount devtmpfs");
	mem_fill(mem, 1);
	cmd.addr = (uintptr_t)page_at(mem->area, TARGET_PAGE);
	cmd.ptr = (uintptr_t)seen;
	/* The device knows base pages only. */
	ASSERT_EQ(ioctl(fd, HMM_DMIRROR_EXCLUSIVE, &cmd), 0);
	EXPECT_EQ(memcmp(seen, page_at(mem->model, TARGET_PAGE), BASE_SIZE), 0);
	EXPECT_EQ(mem_count(mem, PM_PRESENT), FEW_PAGES - 1);
	EXPECT_EQ(granule_filled(mem->pagemap, mem_target(mem)), GRANULE_NR_PAGES);
	mem_write_but(mem, TARGET_PAGE, TARGET_PAGE + 1, 2);
	EXPECT_EQ(mem_count(mem, PM_PRESENT), FEW_PAGES - 1);
	EXPECT_LOST(mem, TARGET_PAGE, TARGET_PAGE + 1);
	mem_write_pages(mem, 3);
	EXPECT_INTACT(mem);

	ASSERT_EQ(ioctl(fd, HMM_DMIRROR_EXCLUSIVE, &cmd), 0);
	/* A device gives its pages back before they are shared. */
	pid = mem_fork(mem);
	if (!pid) {
		EXPECT_TRUE(mem_holds(mem));
		mem_write_pages(mem, 4);
		EXPECT_TRUE(mem_holds(mem));
		_exit(0);
	}
	EXPECT_TRUE(granule_child_ends(pid));
	mem_write_pages(mem, 5);
	EXPECT_TRUE(mem_holds(mem));
	EXPECT_REPAIRED(mem);
	close(fd);
}

#define IDLE_BITMAP	"/sys/kernel/mm/page_idle/bitmap"
#define IDLE_TRIES	100

static bool idle_set(int fd, unsigned long pfn)
{
	const uint64_t bits = 1ULL << (pfn % 64);

	return pwrite(fd, &bits, sizeof(bits), pfn / 64 * sizeof(bits)) == sizeof(bits);
}

/* Returns -1 if that cannot be told. */
static int idle_get(int fd, unsigned long pfn)
{
	uint64_t bits;

	if (pread(fd, &bits, sizeof(bits), pfn / 64 * sizeof(bits)) != sizeof(bits))
		return -1;
	return bits >> (pfn % 64) & 1;
}

/*
 * Its PFN, or -1 as well if it is not present just now, because it is being
 * moved.
 */
static unsigned long pfn_in_use(const struct mem *mem, char *page)
{
	force_read_pages(page, 1, BASE_SIZE);
	return pagemap_get_pfn(mem->pagemap, page);
}

/*
 * Is a granule idle until one of its pages is used, @page? What is in the TLB
 * is not seen to be used: fork() flushes. Returns false, too, if the granule is
 * moved.
 */
static bool idle_until_used(const struct mem *mem, int fd, char *granule, unsigned long page)
{
	const unsigned long pfn = pfn_in_use(mem, granule);

	if (pfn == -1UL || !idle_set(fd, pfn) || idle_get(fd, pfn) != 1)
		return false;
	granule_kill_idle(granule_fork_idle());
	force_read_pages(granule + page * BASE_SIZE, 1, BASE_SIZE);
	return idle_get(fd, pfn) == 0 && idle_set(fd, pfn) && idle_get(fd, pfn) == 1 &&
	       pagemap_get_pfn(mem->pagemap, granule) == pfn;
}

/*
 * Assert that page_idle tracks a granule by any of its pages. A granule may be
 * migrated, or off the LRU list for other reasons, but not for a second.
 */
TEST_F(page_granule_single, page_idle)
{
	struct mem *mem = &self->mem;
	unsigned long i, tries;
	int fd;

	fd = open(IDLE_BITMAP, O_RDWR);
	if (fd < 0)
		SKIP(return, "no " IDLE_BITMAP ": set CONFIG_IDLE_PAGE_TRACKING=y");
	/* Children that end move pages from its batches to the LRU lists. */
	ASSERT_TRUE(granule_stay_on_cpu());
	mem_fill(mem, 1);
	for (i = 0; i < mem->nr; i++) {
		for (tries = 0; tries < IDLE_TRIES; tries++) {
			if (idle_until_used(mem, fd, nth(mem->area, i),
					    (2 * i + 1) % GRANULE_NR_PAGES))
				break;
			usleep(10 * 1000);
		}
		EXPECT_LT(tries, IDLE_TRIES);
	}
	EXPECT_INTACT(mem);
	close(fd);
}

/*
 * Hugetlb pages of 64 KiB, with which granules are compared, have to do the
 * same. x86 has none of that size.
 */
#ifndef __x86_64__
#define HUGETLB_DIR	"/sys/kernel/mm/hugepages/hugepages-64kB"
#define MANY_FILES	20000
#define FORK_TRIES	5

/* Leave pages behind that were slabs, for page tables to be made of. */
static bool churn_slabs(void)
{
	const struct rlimit limit = { MANY_FILES + 64, MANY_FILES + 64 };
	int *fds = calloc(MANY_FILES, sizeof(*fds));
	unsigned int i, nr = 0;

	if (fds && !setrlimit(RLIMIT_NOFILE, &limit)) {
		while (nr < MANY_FILES && (fds[nr] = open("/dev/null", O_RDONLY)) >= 0)
			nr++;
		for (i = 0; i < nr; i++)
			close(fds[i]);
	}
	free(fds);
	/* They are freed after a grace period. */
	usleep(100 * 1000);
	return nr == MANY_FILES;
}

/* Assert that a child finds hugetlb pages of 64 KiB as its parent has them. */
TEST(page_granule_single_hugetlb_fork)
{
	const unsigned long nr = HPAGE_SIZE / GRANULE_SIZE;
	unsigned long saved, i, tries;
	char *area;
	pid_t pid;

	if (access(HUGETLB_DIR, F_OK))
		SKIP(return, "no hugetlb pages of 64 KiB: arm64 has them");
	saved = hugetlb_nr_pages(GRANULE_SIZE);
	hugetlb_set_nr_pages(GRANULE_SIZE, saved + 2 * nr);
	for (tries = 0; tries < FORK_TRIES; tries++) {
		area = mmap(NULL, HPAGE_SIZE, PROT_RW,
			    ANON_FLAGS | MAP_HUGETLB | MAP_HUGE_64KB, -1, 0);
		ASSERT_NE(area, MAP_FAILED);
		for (i = 0; i < nr; i++)
			granule_fill(area + i * GRANULE_SIZE, GRANULE_SIZE, i);
		ASSERT_TRUE(churn_slabs());
		pid = fork();
		if (!pid) {
			for (i = 0; i < nr; i++) {
				if (!granule_check(area + i * GRANULE_SIZE, GRANULE_SIZE, i))
					_exit(1);
			}
			_exit(0);
		}
		EXPECT_TRUE(granule_child_ends(pid));
		munmap(area, HPAGE_SIZE);
	}
	hugetlb_set_nr_pages(GRANULE_SIZE, saved);
}
#endif

/*
 * NUMA hints: more granules, so that they outnumber what else the process has.
 */
#define HINTED		64UL
#define HINT_SECONDS	60

/*
 * Assert that one fault, not 16, gives access back to a granule that NUMA
 * balancing has protected, and that the granule moves as a whole.
 */
TEST_F_TIMEOUT(page_granule_single, numa_hints, 3 * HINT_SECONDS)
{
	unsigned long updates, faults, moved, here = 0;
	unsigned int cpu, node;
	struct mem mem;
	time_t end;

	if (!granule_two_nodes())
		SKIP(return, GRANULE_NODES_REMEDY);
	if (access(NUMA_BALANCING, W_OK))
		SKIP(return, "no NUMA balancing: set CONFIG_NUMA_BALANCING=y");
	ASSERT_TRUE(granule_stay_on_cpu());
	ASSERT_EQ(syscall(__NR_getcpu, &cpu, &node, NULL), 0);
	ASSERT_TRUE(mem_create_nr(&mem, variant->kind, HINTED));
	mem_fill(&mem, 1);
	ASSERT_EQ(granule_on_node(mem.area, mem.nr, !node, true), mem.nr);
	EXPECT_INTACT(&mem);

	/* The model has single pages, which must not count. */
	ASSERT_EQ(mprotect(mem.model, mem_len(&mem), PROT_NONE), 0);
	updates = granule_vmstat("numa_pte_updates");
	faults = granule_vmstat("numa_hint_faults");
	moved = granule_vmstat("numa_pages_migrated");
	ASSERT_EQ(granule_write(NUMA_BALANCING, "1"), 0);
	for (end = time(NULL) + HINT_SECONDS; here < mem.nr && time(NULL) < end;) {
		here = granule_on_node(mem.area, mem.nr, node, false);
		force_read_pages(mem.area, mem_pages(&mem), BASE_SIZE);
	}
	updates = granule_vmstat("numa_pte_updates") - updates;
	faults = granule_vmstat("numa_hint_faults") - faults;
	moved = granule_vmstat("numa_pages_migrated") - moved;
	ASSERT_EQ(granule_write(NUMA_BALANCING, "0"), 0);
	ASSERT_EQ(mprotect(mem.model, mem_len(&mem), PROT_RW), 0);

	ksft_print_msg("%lu entries, %lu faults, %lu pages moved\n", updates, faults, moved);
	EXPECT_GE(updates, mem_pages(&mem));
	EXPECT_GE(faults, mem.nr);
	EXPECT_LE(faults, updates / GRANULE_NR_PAGES + mem.nr);
	EXPECT_EQ(here, mem.nr);
	EXPECT_INTACT(&mem);
	mem_write_pages(&mem, 2);
	EXPECT_INTACT(&mem);
}

/* TLB flushes of the process are pending, on and off. */
struct flusher {
	char *area;
	bool stop;
};

static void *flusher_main(void *arg)
{
	struct flusher *flusher = arg;

	while (!__atomic_load_n(&flusher->stop, __ATOMIC_RELAXED))
		madvise(flusher->area, BASE_SIZE, MADV_COLD);
	return NULL;
}

/*
 * Assert that a granule is marked as contiguous again after a NUMA hint whose
 * pages were given back one by one, also where new granules are not wanted.
 */
TEST_F_TIMEOUT(page_granule_single, numa_hints_while_flushing, 3 * HINT_SECONDS)
{
	struct flusher flusher = {};
	unsigned long faults;
	pthread_t thread;
	bool hold = true;
	struct mem mem;
	time_t end;

	if (variant->kind != GRANULE_CONTRACT)
		SKIP(return, "not applicable: only a contract has granules there");
	if (!granule_two_nodes())
		SKIP(return, GRANULE_NODES_REMEDY);
	if (access(NUMA_BALANCING, W_OK))
		SKIP(return, "no NUMA balancing: set CONFIG_NUMA_BALANCING=y");
	ASSERT_TRUE(mem_create_nr(&mem, variant->kind, 8 * HINTED));
	mem_fill(&mem, 1);
	ASSERT_EQ(madvise(mem.area, mem_len(&mem), MADV_NOHUGEPAGE), 0);
	flusher.area = mmap(NULL, BASE_SIZE, PROT_RW, ANON_FLAGS | MAP_POPULATE, -1, 0);
	ASSERT_NE(flusher.area, MAP_FAILED);
	ASSERT_EQ(pthread_create(&thread, NULL, flusher_main, &flusher), 0);
	/* The model has single pages, which must not count. */
	ASSERT_EQ(mprotect(mem.model, mem_len(&mem), PROT_NONE), 0);
	faults = granule_vmstat("numa_hint_faults");
	ASSERT_EQ(granule_write(NUMA_BALANCING, "1"), 0);
	for (end = time(NULL) + HINT_SECONDS / 2; hold && time(NULL) < end &&
	     granule_vmstat("numa_hint_faults") - faults < 3 * mem.nr;) {
		force_read_pages(mem.area, mem_pages(&mem), BASE_SIZE);
		/* The next hint may mark it again. */
		hold = granule_invariants_hold();
	}
	ASSERT_EQ(granule_write(NUMA_BALANCING, "0"), 0);
	__atomic_store_n(&flusher.stop, true, __ATOMIC_RELAXED);
	pthread_join(thread, NULL);
	munmap(flusher.area, BASE_SIZE);
	ASSERT_EQ(mprotect(mem.model, mem_len(&mem), PROT_RW), 0);
	EXPECT_TRUE(hold);
	if (hold)
		EXPECT_GE(granule_vmstat("numa_hint_faults") - faults, mem.nr);
	EXPECT_INTACT(&mem);
}

/*
 * Assert that a forced write copies whole granules once, and changes the given
 * bytes only.
 */
TEST_F(page_granule_single, force_write)
{
	const size_t pos = TARGET * GRANULE_SIZE + 5 * BASE_SIZE + 123;
	const size_t len = 2 * GRANULE_SIZE + 3 * BASE_SIZE + 45;
	char *untagged = granule_area(GRANULE_UNTAGGED, BASE_SIZE, 0);
	struct mem *mem = &self->mem;
	char path[64], *text;
	unsigned long cow;
	int status, fd;
	ssize_t ret;
	pid_t pid;

	text = malloc(len);
	ASSERT_NE(text, NULL);
	ASSERT_NE(untagged, NULL);
	memset(text, 0xa5, len);
	mem_fill(mem, 1);
	pid = mem_fork(mem);
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		EXPECT_EQ(mprotect(untagged, BASE_SIZE, PROT_READ), 0);
		EXPECT_EQ(mprotect(mem->area, mem_len(mem), PROT_READ), 0);
		ptrace(PTRACE_TRACEME, 0, NULL, NULL);
		raise(SIGSTOP);
		memcpy(mem->model + pos, text, len);
		EXPECT_INTACT(mem);
		EXPECT_EQ(mprotect(mem->area, mem_len(mem), PROT_RW), 0);
		mem_write_pages(mem, 2);
		EXPECT_INTACT(mem);
		_exit(0);
	}
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	ASSERT_TRUE(WIFSTOPPED(status));
	snprintf(path, sizeof(path), "/proc/%d/mem", pid);
	fd = open(path, O_RDWR);
	ASSERT_GE(fd, 0);
	if (pwrite(fd, text, 1, (uintptr_t)untagged) != 1) {
		granule_kill_idle(pid);
		SKIP(return, "no force: boot without proc_mem.force_override=never");
	}
	cow = granule_vmstat("granule_cow");
	ret = pwrite(fd, text, len, (uintptr_t)mem->area + pos);
	cow = granule_vmstat("granule_cow") - cow;
	close(fd);
	ASSERT_EQ(ret, (ssize_t)len);
	ASSERT_EQ(ptrace(PTRACE_CONT, pid, NULL, NULL), 0);
	EXPECT_TRUE(granule_child_ends(pid));
	EXPECT_EQ(cow, 3);
	EXPECT_INTACT(mem);
	mem_write_pages(mem, 3);
	EXPECT_INTACT(mem);
	free(text);
}

int main(int argc, char **argv)
{
	size_t i;

	granule_require();
	granule_save_settings();
	for (i = 0; i < ARRAY_SIZE(settings); i++)
		granule_save_setting(settings[i]);
	return test_harness_run(argc, argv);
}
