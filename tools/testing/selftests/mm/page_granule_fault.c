// SPDX-License-Identifier: GPL-2.0
/*
 * Page granule: population of anonymous memory. One fault populates a whole
 * granule as a run, whoever faults and however many do at once.
 */
#define _GNU_SOURCE
#include "kselftest_harness.h"
#include <asm-generic/mman.h> /* Force the import of the tools version. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/fs.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "hugepage_settings.h"
#include "vm_util.h"
#include "page_granule_util.h"

#define AREA_GRANULES	256
#define AREA_LEN	(AREA_GRANULES * GRANULE_SIZE)

static bool is_zero(const char *addr, size_t len)
{
	size_t i;

	for (i = 0; i < len; i++) {
		if (addr[i])
			return false;
	}
	return true;
}

static unsigned long vma_rss_kb(const void *addr)
{
	return granule_rss_kb(addr, 1);
}

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

/* Assert that a byte written in each granule of 16 MiB gives 256 whole runs. */
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
	EXPECT_TRUE(is_zero(self->area, AREA_LEN));
}

/* Assert that one minor fault populates a granule, and the rest of it takes none. */
TEST_F(page_granule_fault, one_fault_a_granule)
{
	unsigned long i, j, more = 0;
	long before, total;

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
}

/* Assert that each touch costs 64 KiB of RSS, in smaps and in the counter. */
TEST_F(page_granule_fault, rss)
{
	unsigned long before, i;

	for (i = 0; i < 16; i++) {
		ASSERT_EQ(vma_rss_kb(self->area), i * 64);
		*byte_of(self->area, i * 3) = 1;
	}
	before = rss_anon();
	for (i = 128; i < AREA_GRANULES; i++)
		*byte_of(self->area, i) = 1;
	EXPECT_EQ((rss_anon() - before) / 64, 128);
	ASSERT_EQ(munmap(self->area, AREA_LEN), 0);
	EXPECT_LE(rss_anon(), before);
}

/* Assert that a populated granule given back can be had again, zeroed. */
TEST_F(page_granule_fault, dontneed_and_again)
{
	granule_fill(self->area, AREA_LEN / 4, 1);
	ASSERT_EQ(madvise(self->area, AREA_LEN / 4, MADV_DONTNEED), 0);
	EXPECT_EQ(vma_rss_kb(self->area), 0);
	EXPECT_EQ(granule_count(self->pagemap, self->area, AREA_LEN / 4, GRANULE_EMPTY),
		  AREA_GRANULES / 4);
	self->area[0] = 1;
	EXPECT_EQ(granule_state(self->pagemap, self->area), GRANULE_WHOLE);
	EXPECT_TRUE(is_zero(self->area + 1, AREA_LEN / 4 - 1));
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
	EXPECT_TRUE(is_zero(self->area, n * GRANULE_SIZE));
	EXPECT_EQ(vma_rss_kb(self->area), 0);
}

/* Assert that the first write after a read replaces the whole zero run. */
TEST_F(page_granule_fault, write_after_read)
{
	unsigned long i, n = 64;
	long before;

	for (i = 0; i < n; i++)
		FORCE_READ(*nth(self->area, i));
	before = minor_faults();
	for (i = 0; i < n; i++)
		*byte_of(self->area, i) = 1;
	EXPECT_LE(minor_faults() - before, n + FAULT_SLACK);
	EXPECT_EQ(granule_count(self->pagemap, self->area, n * GRANULE_SIZE, GRANULE_WHOLE), n);
	EXPECT_EQ(vma_rss_kb(self->area), n * 64);
	for (i = 0; i < n; i++) {
		EXPECT_FALSE(granule_is_zero_run(self->pagemap, nth(self->area, i)));
		EXPECT_EQ(*byte_of(self->area, i), 1);
		*byte_of(self->area, i) = 0;
	}
	EXPECT_TRUE(is_zero(self->area, n * GRANULE_SIZE));
}

/* Assert that a zero run of a read-only VMA, made writable, is replaced too. */
TEST_F(page_granule_fault, write_after_mprotect)
{
	unsigned long i;

	ASSERT_EQ(mprotect(self->area, AREA_LEN, PROT_READ), 0);
	for (i = 0; i < AREA_GRANULES; i += 2)
		FORCE_READ(*nth(self->area, i));
	EXPECT_EQ(vma_rss_kb(self->area), 0);
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
	EXPECT_EQ(vma_rss_kb(self->area), 128);
}

/* Assert that MADV_POPULATE_READ maps zero runs, and _WRITE replaces them. */
TEST_F(page_granule_fault, by_madv_populate)
{
	unsigned long i, n = 16;

	ASSERT_EQ(madvise(self->area, n * GRANULE_SIZE, MADV_POPULATE_READ), 0);
	for (i = 0; i < n; i++)
		EXPECT_TRUE(granule_is_zero_run(self->pagemap, nth(self->area, i)));
	EXPECT_EQ(vma_rss_kb(self->area), 0);
	ASSERT_EQ(madvise(self->area, 2 * n * GRANULE_SIZE, MADV_POPULATE_WRITE), 0);
	EXPECT_EQ(granule_count(self->pagemap, self->area, 2 * n * GRANULE_SIZE, GRANULE_WHOLE),
		  2 * n);
	EXPECT_EQ(vma_rss_kb(self->area), 2 * n * 64);
	EXPECT_TRUE(is_zero(self->area, 2 * n * GRANULE_SIZE));
}

/* Assert that MAP_POPULATE gives runs, and zero runs where not writable. */
TEST_F(page_granule_fault, by_map_populate)
{
	size_t len = AREA_LEN / 4;

	ASSERT_EQ(granule_mmap(variant->kind, self->area, len, PROT_RW,
			       MAP_FIXED | MAP_POPULATE), self->area);
	EXPECT_EQ(granule_count(self->pagemap, self->area, len, GRANULE_WHOLE),
		  AREA_GRANULES / 4);
	EXPECT_EQ(vma_rss_kb(self->area), len / 1024);

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
	EXPECT_EQ(vma_rss_kb(self->area), len / 1024);
	EXPECT_TRUE(is_zero(self->area, len));

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
	EXPECT_EQ(vma_rss_kb(self->area), 64);
}

/* Assert that GUP of a zero page keeps its zeroes when the run is replaced. */
TEST_F(page_granule_fault, by_vmsplice)
{
	struct iovec iov = { .iov_base = self->area + BASE_SIZE, .iov_len = BASE_SIZE };
	char buf[BASE_SIZE];
	int pipefd[2];

	ASSERT_EQ(pipe(pipefd), 0);
	if (vmsplice(pipefd[1], &iov, 1, 0) != BASE_SIZE)
		SKIP(return, "vmsplice fails (%s): run on a kernel that has it",
		     strerror(errno));
	memset(self->area, 0x55, GRANULE_SIZE);
	EXPECT_EQ(granule_state(self->pagemap, self->area), GRANULE_WHOLE);
	EXPECT_FALSE(granule_is_zero_run(self->pagemap, self->area));
	memset(buf, 1, sizeof(buf));
	ASSERT_EQ(read(pipefd[0], buf, sizeof(buf)), sizeof(buf));
	/* What was spliced is the page of that time: all zeroes. */
	EXPECT_TRUE(is_zero(buf, sizeof(buf)));
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
 * Assert that MADV_NOHUGEPAGE and PR_SET_THP_DISABLE hold: default-tagged memory is
 * populated in base pages, a contract from 16 single ones, and both as before when it
 * is taken back.
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
	EXPECT_EQ(vma_rss_kb(self->area), nr * 4);
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

/* Assert that a granule is the minimum, whatever order mTHP is set to. */
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
		EXPECT_TRUE(is_zero(self->area, AREA_LEN));
	}
}

/* Assert that granule_fault counts one for each granule populated. */
TEST_F(page_granule_fault, vmstat_fault)
{
	unsigned long fault = granule_vmstat("granule_fault");
	unsigned long fallback = granule_vmstat("granule_fallback");
	unsigned long i;

	ASSERT_NE(fault, ULONG_MAX);
	ASSERT_NE(fallback, ULONG_MAX);
	for (i = 0; i < AREA_GRANULES; i++)
		*byte_of(self->area, i) = 1;
	fault = granule_vmstat("granule_fault") - fault;
	EXPECT_GE(fault, AREA_GRANULES);
	EXPECT_LE(fault, AREA_GRANULES + FAULT_SLACK);
	EXPECT_EQ(granule_vmstat("granule_fallback"), fallback);
}

/* Default-tagged memory that 4 KiB calls have cut, or never let be whole. */
FIXTURE(page_granule_edge)
{
	int pagemap;
	char *res;
};

FIXTURE_SETUP(page_granule_edge)
{
	ASSERT_EQ(granule_set_enabled(true), 0);
	granule_thp_never();
	self->pagemap = granule_open_pagemap();
	ASSERT_GE(self->pagemap, 0);
	self->res = granule_reserve(16 * GRANULE_SIZE);
	ASSERT_NE(self->res, NULL);
	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, GRANULE_SIZE), 0);
}

FIXTURE_TEARDOWN(page_granule_edge)
{
	EXPECT_TRUE(granule_invariants_hold());
	close(self->pagemap);
}

static char *map_at(char *addr, size_t len)
{
	return mmap(addr, len, PROT_RW, ANON_FLAGS | MAP_FIXED, -1, 0);
}

/* Assert that edge blocks take single pages, and the granules inside are whole. */
TEST_F(page_granule_edge, unaligned_vma)
{
	char *start = self->res + 13 * BASE_SIZE;
	char *inner = self->res + GRANULE_SIZE;
	char *end = inner + 4 * GRANULE_SIZE + 3 * BASE_SIZE;
	int i;

	ASSERT_EQ(map_at(start, end - start), start);
	start[BASE_SIZE] = 1;
	EXPECT_EQ(granule_present_pages(self->pagemap, start, end - start), 1);
	end[-1] = 1;
	EXPECT_EQ(granule_present_pages(self->pagemap, start, end - start), 2);
	for (i = 0; i < 4; i++)
		*byte_of(inner, i) = 1;
	EXPECT_EQ(granule_count(self->pagemap, start, end - start, GRANULE_WHOLE), 4);
	EXPECT_EQ(vma_rss_kb(start), 4 * 64 + 2 * 4);
	EXPECT_FALSE(PAGEMAP_PRESENT(pagemap_get_entry(self->pagemap, start)));

	/* The same by reading: the blocks at the edges have no run to map. */
	ASSERT_EQ(madvise(start, end - start, MADV_DONTNEED), 0);
	FORCE_READ(start[0]);
	EXPECT_EQ(granule_present_pages(self->pagemap, start, end - start), 1);
	FORCE_READ(inner[0]);
	EXPECT_TRUE(granule_is_zero_run(self->pagemap, inner));
	EXPECT_TRUE(is_zero(start, end - start));
}

/* Assert that a VMA smaller than a granule behaves as it does today. */
TEST_F(page_granule_edge, small_vma)
{
	ASSERT_EQ(map_at(self->res, GRANULE_SIZE - BASE_SIZE), self->res);
	self->res[5 * BASE_SIZE] = 1;
	EXPECT_EQ(granule_present_pages(self->pagemap, self->res, GRANULE_SIZE - BASE_SIZE), 1);
	EXPECT_EQ(vma_rss_kb(self->res), 4);
}

/* Assert that unmapping a part of a run leaves the rest, contents and all. */
TEST_F(page_granule_edge, partial_munmap)
{
	char *hole = self->res + 4 * BASE_SIZE;

	ASSERT_EQ(map_at(self->res, 2 * GRANULE_SIZE), self->res);
	granule_fill(self->res, 2 * GRANULE_SIZE, 1);
	ASSERT_EQ(munmap(hole, 4 * BASE_SIZE), 0);
	EXPECT_EQ(granule_present_pages(self->pagemap, self->res, GRANULE_SIZE), 12);
	EXPECT_EQ(granule_state(self->pagemap, nth(self->res, 1)), GRANULE_WHOLE);

	/* Fill the hole again; what is there must not be touched by faults in it. */
	ASSERT_EQ(map_at(hole, 4 * BASE_SIZE), hole);
	EXPECT_TRUE(is_zero(hole, 4 * BASE_SIZE));
	memset(hole, 3, 4 * BASE_SIZE);
	EXPECT_EQ(granule_present_pages(self->pagemap, self->res, GRANULE_SIZE), 16);
	granule_fill(hole, 4 * BASE_SIZE, 2);
	EXPECT_TRUE(granule_check(hole, 4 * BASE_SIZE, 2));
	ASSERT_EQ(munmap(hole, 4 * BASE_SIZE), 0);
	ASSERT_EQ(map_at(hole, 4 * BASE_SIZE), hole);
	granule_fill(self->res, 2 * GRANULE_SIZE, 1);
	EXPECT_TRUE(granule_check(self->res, 2 * GRANULE_SIZE, 1));
}

/* Assert that a granule cut before it is touched takes single pages. */
TEST_F(page_granule_edge, munmap_before_touch)
{
	ASSERT_EQ(map_at(self->res, GRANULE_SIZE), self->res);
	ASSERT_EQ(munmap(self->res + 4 * BASE_SIZE, BASE_SIZE), 0);
	self->res[0] = 1;
	self->res[15 * BASE_SIZE] = 1;
	EXPECT_EQ(granule_present_pages(self->pagemap, self->res, GRANULE_SIZE), 2);
}

/* Assert that MADV_DONTNEED of one page zeroes that page only. */
TEST_F(page_granule_edge, partial_dontneed)
{
	char *page = self->res + 7 * BASE_SIZE;

	ASSERT_EQ(map_at(self->res, GRANULE_SIZE), self->res);
	memset(self->res, 1, GRANULE_SIZE);
	ASSERT_EQ(madvise(page, BASE_SIZE, MADV_DONTNEED), 0);
	EXPECT_EQ(granule_present_pages(self->pagemap, self->res, GRANULE_SIZE), 15);
	EXPECT_TRUE(is_zero(page, BASE_SIZE));
	page[3] = 2;
	EXPECT_EQ(granule_present_pages(self->pagemap, self->res, GRANULE_SIZE), 16);
	EXPECT_EQ(page[3], 2);
	EXPECT_TRUE(is_zero(page + 4, BASE_SIZE - 4));
	page[3] = 0;
	memset(page, 1, BASE_SIZE);
	ASSERT_EQ(memchr(self->res, 0, GRANULE_SIZE), NULL);
	EXPECT_EQ(vma_rss_kb(self->res), 64);
}

/* Assert that a page there already survives the granule becoming complete. */
TEST_F(page_granule_edge, grows_to_granule)
{
	char *second = self->res + 8 * BASE_SIZE;

	ASSERT_EQ(map_at(self->res, 8 * BASE_SIZE), self->res);
	self->res[0] = 1;
	EXPECT_EQ(granule_present_pages(self->pagemap, self->res, 8 * BASE_SIZE), 1);
	/* Merges, so that the granule now lies inside one VMA. */
	ASSERT_EQ(map_at(second, 8 * BASE_SIZE), second);
	second[BASE_SIZE] = 2;
	EXPECT_EQ(self->res[0], 1);
	EXPECT_EQ(second[BASE_SIZE], 2);
	self->res[0] = 0;
	second[BASE_SIZE] = 0;
	EXPECT_TRUE(is_zero(self->res, GRANULE_SIZE));
}

/* Assert that a fault in the granule leaves a guard page in it in place. */
TEST_F(page_granule_edge, guard_page)
{
	char *guard = self->res + 5 * BASE_SIZE;
	int zero = open("/dev/zero", O_RDONLY);

	ASSERT_GE(zero, 0);
	ASSERT_EQ(map_at(self->res, GRANULE_SIZE), self->res);
	ASSERT_EQ(madvise(guard, BASE_SIZE, MADV_GUARD_INSTALL), 0);
	FORCE_READ(self->res[0]);
	self->res[BASE_SIZE] = 1;
	/* The kernel, told to write there, gets what a program gets as SIGSEGV. */
	errno = 0;
	EXPECT_EQ(read(zero, guard, 1), -1);
	EXPECT_EQ(errno, EFAULT);
	ASSERT_EQ(madvise(guard, BASE_SIZE, MADV_GUARD_REMOVE), 0);
	EXPECT_EQ(read(zero, guard, 1), 1);
	EXPECT_EQ(self->res[BASE_SIZE], 1);
	close(zero);
}

/* Pages of [addr, addr + len) that map, once read, another zero page than @pfn. */
static unsigned long other_zero_pages(int pagemap, char *addr, size_t len, unsigned long pfn)
{
	unsigned long i, nr = 0;

	for (i = 0; i < len; i += BASE_SIZE) {
		FORCE_READ(addr[i]);
		nr += pagemap_get_pfn(pagemap, addr + i) != pfn;
	}
	return nr;
}

/*
 * Assert that zeroes that are no run are the one zero page that they always were, in
 * untagged memory and where tagged memory is populated page by page: there are programs
 * that tell by its PFN what need not be saved.
 */
TEST_F(page_granule_edge, one_zero_page)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_zeropage zero = {};
	char *untagged = nth(self->res, 8);
	unsigned long pfn;
	int uffd;

	ASSERT_EQ(granule_mmap(GRANULE_UNTAGGED, untagged, GRANULE_SIZE, PROT_RW, MAP_FIXED),
		  untagged);
	FORCE_READ(*untagged);
	pfn = pagemap_get_pfn(self->pagemap, untagged);
	EXPECT_EQ(other_zero_pages(self->pagemap, untagged, GRANULE_SIZE, pfn), 0);

	/* No granule, and one whose program wants no huge pages. */
	ASSERT_EQ(map_at(self->res, GRANULE_SIZE - BASE_SIZE), self->res);
	EXPECT_EQ(other_zero_pages(self->pagemap, self->res, GRANULE_SIZE - BASE_SIZE, pfn), 0);
	ASSERT_EQ(map_at(self->res, GRANULE_SIZE), self->res);
	ASSERT_EQ(madvise(self->res, GRANULE_SIZE, MADV_NOHUGEPAGE), 0);
	EXPECT_EQ(other_zero_pages(self->pagemap, self->res, GRANULE_SIZE, pfn), 0);

	uffd = syscall(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api))
		SKIP(return, "no userfaultfd: build the kernel with CONFIG_USERFAULTFD=y");
	ASSERT_EQ(map_at(self->res, GRANULE_SIZE), self->res);
	ASSERT_EQ(uffd_register(uffd, self->res, GRANULE_SIZE, true, false, false), 0);
	zero.range.start = (unsigned long)self->res;
	zero.range.len = GRANULE_SIZE;
	ASSERT_EQ(ioctl(uffd, UFFDIO_ZEROPAGE, &zero), 0);
	EXPECT_EQ(other_zero_pages(self->pagemap, self->res, GRANULE_SIZE, pfn), 0);
	close(uffd);
}

/* Assert that userfaultfd sees each 4 KiB page of it missing while armed. */
TEST_F(page_granule_edge, uffd_fidelity)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_copy copy = { 0 };
	char page[BASE_SIZE];
	int uffd;

	uffd = syscall(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api))
		SKIP(return, "no userfaultfd: build the kernel with CONFIG_USERFAULTFD=y");
	ASSERT_EQ(map_at(self->res, GRANULE_SIZE), self->res);
	ASSERT_EQ(uffd_register(uffd, self->res, GRANULE_SIZE, true, false, false), 0);
	memset(page, 7, sizeof(page));
	copy.dst = (unsigned long)self->res + 3 * BASE_SIZE;
	copy.src = (unsigned long)page;
	copy.len = BASE_SIZE;
	ASSERT_EQ(ioctl(uffd, UFFDIO_COPY, &copy), 0);
	EXPECT_EQ(granule_present_pages(self->pagemap, self->res, GRANULE_SIZE), 1);
	ASSERT_EQ(uffd_unregister(uffd, self->res, GRANULE_SIZE), 0);
	self->res[9 * BASE_SIZE] = 1;
	EXPECT_FALSE(memcmp(self->res + 3 * BASE_SIZE, page, BASE_SIZE));
	close(uffd);
}

/*
 * Races. Writers put their id into a byte of their own of any page, and find in
 * it their id or, where the page was given back meanwhile, a zero; anything else
 * is memory that belongs to someone else.
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

FIXTURE(page_granule_race)
{
	int pagemap;
	char *res;
	char *spare;
	struct race race;
};

FIXTURE_VARIANT(page_granule_race)
{
	enum granule_kind kind;
	disturbance disturb;
};

FIXTURE_VARIANT_ADD(page_granule_race, contract_dontneed)
{
	.kind = GRANULE_CONTRACT,
	.disturb = disturb_dontneed,
};

FIXTURE_VARIANT_ADD(page_granule_race, default_dontneed)
{
	.kind = GRANULE_DEFAULT,
	.disturb = disturb_dontneed,
};

FIXTURE_VARIANT_ADD(page_granule_race, contract_munmap)
{
	.kind = GRANULE_CONTRACT,
	.disturb = disturb_munmap,
};

FIXTURE_VARIANT_ADD(page_granule_race, default_munmap)
{
	.kind = GRANULE_DEFAULT,
	.disturb = disturb_munmap,
};

FIXTURE_VARIANT_ADD(page_granule_race, contract_map_fixed)
{
	.kind = GRANULE_CONTRACT,
	.disturb = disturb_map_fixed,
};

FIXTURE_VARIANT_ADD(page_granule_race, default_map_fixed)
{
	.kind = GRANULE_DEFAULT,
	.disturb = disturb_map_fixed,
};

FIXTURE_VARIANT_ADD(page_granule_race, contract_mremap)
{
	.kind = GRANULE_CONTRACT,
	.disturb = disturb_mremap,
};

FIXTURE_VARIANT_ADD(page_granule_race, default_mremap)
{
	.kind = GRANULE_DEFAULT,
	.disturb = disturb_mremap,
};

FIXTURE_VARIANT_ADD(page_granule_race, contract_mprotect)
{
	.kind = GRANULE_CONTRACT,
	.disturb = disturb_mprotect,
};

FIXTURE_VARIANT_ADD(page_granule_race, default_mprotect)
{
	.kind = GRANULE_DEFAULT,
	.disturb = disturb_mprotect,
};

FIXTURE_VARIANT_ADD(page_granule_race, contract_fork)
{
	.kind = GRANULE_CONTRACT,
	.disturb = disturb_fork,
};

FIXTURE_VARIANT_ADD(page_granule_race, default_fork)
{
	.kind = GRANULE_DEFAULT,
	.disturb = disturb_fork,
};

FIXTURE_VARIANT_ADD(page_granule_race, contract_collapse)
{
	.kind = GRANULE_CONTRACT,
	.disturb = disturb_collapse,
};

FIXTURE_VARIANT_ADD(page_granule_race, default_collapse)
{
	.kind = GRANULE_DEFAULT,
	.disturb = disturb_collapse,
};

/* 4 MiB, aligned to 2 MiB so that THP collapse is possible. */
FIXTURE_SETUP(page_granule_race)
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

FIXTURE_TEARDOWN(page_granule_race)
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
 * Assert that faults lose cleanly against a change of the mapping they are in,
 * and that at no time a granule is populated in part.
 */
TEST_F_TIMEOUT(page_granule_race, faults_against_change, 120)
{
	struct racer racers[RACE_THREADS];
	struct race *race = &self->race;
	unsigned long i, rounds = 0, partial = 0;
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
		rounds++;
		clock_gettime(CLOCK_MONOTONIC, &now);
	} while (ok && (now.tv_sec < end.tv_sec ||
			(now.tv_sec == end.tv_sec && now.tv_nsec < end.tv_nsec)));
	race_stop(race, racers, RACE_THREADS);
	ASSERT_TRUE(ok);
	EXPECT_EQ(race->errors, 0);
	partial += count_partial(self->pagemap, race->area, race->len);
	EXPECT_EQ(partial, 0);
	EXPECT_GT(race->writes, 0);
	EXPECT_GT(rounds, 0);

	/* All is in order afterwards: empty, then whole. */
	ASSERT_EQ(madvise(race->area, race->len, MADV_DONTNEED), 0);
	EXPECT_TRUE(is_zero(race->area, race->len));
	for (i = 0; i < race->len / GRANULE_SIZE; i++)
		*byte_of(race->area, i) = 1;
	EXPECT_EQ(granule_count(self->pagemap, race->area, race->len, GRANULE_WHOLE),
		  race->len / GRANULE_SIZE);
	/* What has been mapped anew need not have merged with what is around it. */
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
		/* Half of the threads read first, so that zeroes race with writes. */
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
	/* Losers must give back what they have counted; 256 kB for the threads. */
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

/* Assert that readers that never pause do not keep a write from its granule. */
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
	 * A reader that was about to say so when the granule was emptied may race
	 * with the write; one that spins must not send it back again and again.
	 */
	EXPECT_LE(worst, FAULT_SLACK);
}

/* Assert that the first write to a zero granule counts as one granule_cow. */
TEST_F(page_granule_fault, vmstat_cow)
{
	unsigned long cow = granule_vmstat("granule_cow");
	unsigned int i, n = 8;

	for (i = 0; i < n; i++)
		FORCE_READ(*byte_of(self->area, i));
	EXPECT_EQ(granule_vmstat("granule_cow"), cow);
	for (i = 0; i < n; i++) {
		*byte_of(self->area, i) = 1;
		nth(self->area, i)[0] = 1;
	}
	EXPECT_EQ(granule_vmstat("granule_cow") - cow, n);
}

/* Assert that granule_split counts whole granules that a bound cuts, no others. */
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

/* memcg: a cgroup of the test's own, in a cgroup2 mounted if need be. */
FIXTURE(page_granule_memcg)
{
	char mount[64];		/* made by us, empty otherwise */
	char root[PATH_MAX];
	char dir[PATH_MAX + 32];
	bool enabled_memory;	/* by us, in the root's subtree_control */
	char *area;
};

FIXTURE_VARIANT(page_granule_memcg)
{
	enum granule_kind kind;
};

FIXTURE_VARIANT_ADD(page_granule_memcg, contract)
{
	.kind = GRANULE_CONTRACT,
};

FIXTURE_VARIANT_ADD(page_granule_memcg, default_tagged)
{
	.kind = GRANULE_DEFAULT,
};

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

FIXTURE_SETUP(page_granule_memcg)
{
	char *res;

	ASSERT_EQ(granule_set_enabled(true), 0);
	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, BASE_SIZE), 0);
	granule_thp_never();
	if (!granule_find_cgroup2(self->root)) {
		strcpy(self->mount, "/tmp/page_granule.XXXXXX");
		if (!mkdtemp(self->mount))
			SKIP(return, "cannot create %s: make /tmp a writable directory",
			     self->mount);
		if (mount("none", self->mount, "cgroup2", 0, NULL)) {
			rmdir(self->mount);
			SKIP(return, "no cgroup2: build the kernel with CONFIG_CGROUPS=y");
		}
		strcpy(self->root, self->mount);
	}
	if (!cg_has_word(self->root, "cgroup.controllers", "memory")) {
		if (*self->mount) {
			umount(self->mount);
			rmdir(self->mount);
		}
		SKIP(return, "no memory controller: set CONFIG_MEMCG=y, unmount cgroup v1");
	}
	if (!cg_has_word(self->root, "cgroup.subtree_control", "memory")) {
		ASSERT_EQ(granule_cg_write(self->root, "cgroup.subtree_control", "+memory"), 0);
		self->enabled_memory = true;
	}
	snprintf(self->dir, sizeof(self->dir), "%s/page_granule.%d", self->root, getpid());
	ASSERT_EQ(mkdir(self->dir, 0755), 0);

	res = granule_reserve(AREA_LEN);
	ASSERT_NE(res, NULL);
	self->area = granule_mmap(variant->kind, res, AREA_LEN, PROT_RW, MAP_FIXED);
	ASSERT_EQ(self->area, res);
}

FIXTURE_TEARDOWN(page_granule_memcg)
{
	EXPECT_TRUE(granule_invariants_hold());
	rmdir(self->dir);
	if (self->enabled_memory)
		granule_cg_write(self->root, "cgroup.subtree_control", "-memory");
	if (*self->mount) {
		umount(self->mount);
		rmdir(self->mount);
	}
}

/* Child in the cgroup: touches nr granules when told, gives back when told. */
static pid_t memcg_child(const char *dir, char *area, unsigned long nr, int go, int done)
{
	unsigned long i;
	pid_t pid;
	char c;

	pid = fork();
	if (pid)
		return pid;
	if (granule_cg_write(dir, "cgroup.procs", "0"))
		_exit(10);
	if (write(done, "j", 1) != 1 || read(go, &c, 1) != 1)
		_exit(11);
	for (i = 0; i < nr; i++)
		*byte_of(area, i) = 1;
	if (write(done, "t", 1) != 1 || read(go, &c, 1) != 1)
		_exit(12);
	madvise(area, nr * GRANULE_SIZE, MADV_DONTNEED);
	if (write(done, "d", 1) != 1 || read(go, &c, 1) != 1)
		_exit(13);
	_exit(0);
}

/*
 * memory.stat is brought up to date every two seconds; wait for `anon` to come
 * within @slack of @expected.
 */
static long wait_anon(const char *dir, long expected, long slack)
{
	long anon = -1;
	int i;

	for (i = 0; i < 50; i++) {
		anon = granule_cg_read(dir, "memory.stat", "anon");
		if (labs(anon - expected) <= slack)
			break;
		usleep(200 * 1000);
	}
	return anon;
}

/* Assert that a touched granule is charged 64 KiB, once, and uncharged. */
TEST_F_TIMEOUT(page_granule_memcg, charge, 60)
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
	pid = memcg_child(self->dir, self->area, nr, go[0], done[1]);
	ASSERT_GE(pid, 0);
	ASSERT_EQ(read(done[0], &c, 1), 1);
	current = granule_cg_read(self->dir, "memory.current", NULL);

	ASSERT_EQ(write(go[1], "g", 1), 1);
	ASSERT_EQ(read(done[0], &c, 1), 1);
	charged = granule_cg_read(self->dir, "memory.current", NULL) - current;
	EXPECT_GE(charged, bytes - slack - batches);
	EXPECT_LE(charged, bytes + slack + batches);
	charged = wait_anon(self->dir, bytes, slack);
	EXPECT_GE(charged, bytes - slack);
	EXPECT_LE(charged, bytes + slack);

	ASSERT_EQ(write(go[1], "g", 1), 1);
	ASSERT_EQ(read(done[0], &c, 1), 1);
	EXPECT_LE(granule_cg_read(self->dir, "memory.current", NULL), current + slack + batches);
	EXPECT_LE(wait_anon(self->dir, 0, slack), slack);

	ASSERT_EQ(write(go[1], "g", 1), 1);
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	EXPECT_EQ(status, 0);
}

/* Assert that a limit holds: below it all is well, beyond it the OOM killer comes. */
TEST_F_TIMEOUT(page_granule_memcg, limit, 60)
{
	int go[2], done[2], status;
	pid_t pid;

	ASSERT_EQ(granule_cg_write(self->dir, "memory.max", "8388608"), 0);
	/* Not there without CONFIG_SWAP; nothing to keep from swapping then. */
	granule_cg_write(self->dir, "memory.swap.max", "0");

	/* 4 MiB of the 8. */
	ASSERT_EQ(pipe(go), 0);
	ASSERT_EQ(pipe(done), 0);
	ASSERT_EQ(write(go[1], "ggg", 3), 3);
	pid = memcg_child(self->dir, self->area, 64, go[0], done[1]);
	ASSERT_GE(pid, 0);
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	EXPECT_EQ(status, 0);
	EXPECT_EQ(granule_cg_read(self->dir, "memory.events", "oom_kill"), 0);

	/* 16 MiB. */
	ASSERT_EQ(write(go[1], "ggg", 3), 3);
	pid = memcg_child(self->dir, self->area, AREA_GRANULES, go[0], done[1]);
	ASSERT_GE(pid, 0);
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	EXPECT_TRUE(WIFSIGNALED(status));
	EXPECT_EQ(WTERMSIG(status), SIGKILL);
	EXPECT_EQ(granule_cg_read(self->dir, "memory.events", "oom_kill"), 1);
	/* A task that is being killed may go a little over. */
	EXPECT_LE(granule_cg_read(self->dir, "memory.peak", NULL), 9 << 20);
}

/* No order-4 page to be had: fault injection fails them for this task only. */
FIXTURE(page_granule_fallback)
{
	struct granule_fail fail;
	int pagemap;
	char *area;
};

FIXTURE_VARIANT(page_granule_fallback)
{
	enum granule_kind kind;
};

FIXTURE_VARIANT_ADD(page_granule_fallback, contract)
{
	.kind = GRANULE_CONTRACT,
};

FIXTURE_VARIANT_ADD(page_granule_fallback, default_tagged)
{
	.kind = GRANULE_DEFAULT,
};

FIXTURE_SETUP(page_granule_fallback)
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

FIXTURE_TEARDOWN(page_granule_fallback)
{
	EXPECT_TRUE(granule_invariants_hold());
	granule_fail_restore(&self->fail);
}

/* Assert that without order 4, one fault populates 16 single pages, counted. */
TEST_F(page_granule_fallback, single_pages)
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
	EXPECT_TRUE(is_zero(self->area, n * GRANULE_SIZE));

	/* Memory is back: so are the runs. */
	*byte_of(self->area, n) = 1;
	EXPECT_EQ(granule_state(self->pagemap, nth(self->area, n)), GRANULE_WHOLE);
	EXPECT_EQ(granule_vmstat("granule_fallback") - fallback, n);
}

/* Assert that the write after a read falls back in the same way. */
TEST_F(page_granule_fallback, write_after_read)
{
	unsigned long fallback = granule_vmstat("granule_fallback");

	FORCE_READ(self->area[0]);
	granule_fail_order4(true);
	self->area[3 * BASE_SIZE] = 1;
	granule_fail_order4(false);
	EXPECT_EQ(granule_vmstat("granule_fallback") - fallback, 1);
	EXPECT_EQ(granule_present_pages(self->pagemap, self->area, GRANULE_SIZE), 16);
	EXPECT_EQ(vma_rss_kb(self->area), 64);
	EXPECT_EQ(self->area[3 * BASE_SIZE], 1);
	self->area[3 * BASE_SIZE] = 0;
	EXPECT_TRUE(is_zero(self->area, GRANULE_SIZE));
}

/* Assert that memory populated from single pages is given back like any other. */
TEST_F(page_granule_fallback, given_back)
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
	EXPECT_TRUE(is_zero(self->area, GRANULE_SIZE));
	EXPECT_EQ(memchr(nth(self->area, 2), 0, 2 * GRANULE_SIZE), NULL);
	self->area[0] = 1;
	EXPECT_EQ(granule_state(self->pagemap, self->area), GRANULE_WHOLE);
}

/*
 * Assert that faults find a granule of single pages populated whole or not at all, by
 * contract, also where the kernel has no memory to note more than a few of the pages
 * that it unmaps. By default it may pause inside a granule, as it always might.
 */
TEST_F_TIMEOUT(page_granule_fallback, unmapped_without_memory, 120)
{
	const size_t len = 8 * GRANULE_SIZE;
	struct race race = { .area = self->area, .len = len };
	struct racer racers[2];
	unsigned long partial = 0, broken = 0;
	int round;

	for (round = 0; round < 100; round++) {
		/* One run, which takes less room: what is full is so inside a granule. */
		self->area[0] = 0;
		granule_fail_order4(true);
		memset(self->area, 0, len);
		broken += granule_count(self->pagemap, self->area, len, GRANULE_BROKEN);

		/* Of all sizes, unless they can be waited for. */
		granule_fail_nowait(true);
		race.stop = false;
		ASSERT_TRUE(race_start(&race, racers, ARRAY_SIZE(racers)));
		usleep(1000);
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
