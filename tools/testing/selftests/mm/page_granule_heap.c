// SPDX-License-Identifier: GPL-2.0
/*
 * Page granule: heaps that grow by less than a granule, as malloc() makes them
 * grow: by brk(), and by mprotect() of a part of what is reserved. Also
 * granules that were populated in part because the VMA did not hold the rest
 * yet.
 */
#define _GNU_SOURCE
#include "kselftest_harness.h"
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "vm_util.h"
#include "page_granule_util.h"

#define HEAP_LEN	(4 * MIB)

/* The step by which glibc grows the heap of brk() for small requests. */
#define STEP		(132 * 1024UL)

/* Goals of the design: faults for each MiB, and how much is whole at once. */
#define FAULTS_A_MIB	24
#define PERCENT_WHOLE	90

#define DROP_CACHES	"/proc/sys/vm/drop_caches"

#define MANY		64UL
#define CHARGE_SLACK	(512 * 1024L)

struct heap {
	char *base;		/* a multiple of a granule */
	size_t len;
	bool brk;
};

FIXTURE(page_granule_heap)
{
	struct heap heap;
	char *base;		/* of the heap */
	int pagemap;
};

FIXTURE_VARIANT(page_granule_heap)
{
	bool brk;
};

FIXTURE_VARIANT_ADD(page_granule_heap, brk)
{
	.brk = true,
};

FIXTURE_VARIANT_ADD(page_granule_heap, reserved)
{
	.brk = false,
};

static void *reserve(void)
{
	return mmap(NULL, 4 * HEAP_LEN, PROT_NONE, ANON_FLAGS | MAP_NORESERVE, -1, 0);
}

/* A heap that nothing has been taken from. */
static bool start_heap(struct heap *heap, bool brk)
{
	*heap = (struct heap){ .brk = brk };
	if (!brk) {
		heap->base = reserve();
		return heap->base != MAP_FAILED;
	}
	heap->base = (char *)granule_round_up(granule_brk(NULL));
	return granule_brk(heap->base) == heap->base;
}

FIXTURE_SETUP(page_granule_heap)
{
	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, GRANULE_SIZE), 0);
	granule_thp_never();
	self->pagemap = granule_open_pagemap();
	ASSERT_GE(self->pagemap, 0);
	ASSERT_TRUE(start_heap(&self->heap, variant->brk));
	self->base = self->heap.base;
	ASSERT_TRUE(granule_aligned(self->base));
}

FIXTURE_TEARDOWN(page_granule_heap)
{
	EXPECT_TRUE(granule_invariants_hold());
	close(self->pagemap);
}

/* Memory that is reserved, to be made accessible in parts */
FIXTURE(page_granule_heap_reserved)
{
	struct heap heap;
	char *base;
	int pagemap;
};

FIXTURE_SETUP(page_granule_heap_reserved)
{
	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, GRANULE_SIZE), 0);
	granule_thp_never();
	self->pagemap = granule_open_pagemap();
	ASSERT_GE(self->pagemap, 0);
	ASSERT_TRUE(start_heap(&self->heap, false));
	self->base = self->heap.base;
}

FIXTURE_TEARDOWN(page_granule_heap_reserved)
{
	EXPECT_TRUE(granule_invariants_hold());
	close(self->pagemap);
}

static bool grow(struct heap *heap, size_t len)
{
	char *end = heap->base + heap->len;

	if (heap->brk ? granule_brk(end + len) != end + len : mprotect(end, len, PROT_RW))
		return false;
	heap->len += len;
	return true;
}

/* Give memory back as free() does, with its contents. */
static bool shrink(struct heap *heap, size_t len)
{
	char *end = heap->base + heap->len - len;

	if (heap->brk ? granule_brk(end) != end :
			madvise(end, len, MADV_DONTNEED) || mprotect(end, len, PROT_NONE))
		return false;
	heap->len -= len;
	return true;
}

/*
 * Assert that a heap takes few faults, has whole granules at once, and copies
 * none, whatever the step it grows by.
 */
TEST_F(page_granule_heap, grows)
{
	static const size_t steps[] = { STEP, BASE_SIZE };
	unsigned long repaired = granule_vmstat("granule_repair"), whole;
	struct heap *heap = &self->heap;
	size_t i, pos;
	long faults;

	for (i = 0; i < ARRAY_SIZE(steps); i++) {
		if (i)
			ASSERT_TRUE(start_heap(heap, variant->brk));
		faults = minor_faults();
		while (heap->len < HEAP_LEN) {
			ASSERT_TRUE(grow(heap, steps[i]));
			for (pos = heap->len - steps[i]; pos < heap->len; pos += BASE_SIZE)
				heap->base[pos] = 1;
		}
		faults = minor_faults() - faults;
		whole = granule_count(self->pagemap, heap->base, heap->len, GRANULE_WHOLE);
		ksft_print_msg("by %zu kB: %.1f faults a MiB, %lu of %lu whole\n", steps[i] / 1024,
			       (double)faults * MIB / heap->len, whole, heap->len / GRANULE_SIZE);
		EXPECT_LE(faults, FAULTS_A_MIB * heap->len / MIB);
		EXPECT_GE(whole * 100, heap->len / GRANULE_SIZE * PERCENT_WHOLE);
		EXPECT_EQ(granule_vmstat("granule_repair"), repaired);
	}
}

/* Assert that no page is mapped that the program cannot access yet. */
TEST_F(page_granule_heap, no_further)
{
	ASSERT_TRUE(grow(&self->heap, 3 * BASE_SIZE));
	self->base[0] = 1;
	EXPECT_EQ(granule_present_pages(self->pagemap, self->base, GRANULE_SIZE), 3);
	ASSERT_TRUE(grow(&self->heap, 2 * BASE_SIZE));
	EXPECT_EQ(granule_present_pages(self->pagemap, self->base, GRANULE_SIZE), 5);
	ASSERT_TRUE(grow(&self->heap, 11 * BASE_SIZE));
	EXPECT_EQ(granule_state(self->pagemap, self->base), GRANULE_WHOLE);
	EXPECT_EQ(granule_rss_kb(self->base, GRANULE_SIZE), 64);
}

/*
 * Assert that memory that was given back and taken again reads as zero. For
 * brk(), see page_granule_program.brk_zero.
 */
TEST_F(page_granule_heap_reserved, given_back)
{
	size_t keep, len;

	for (keep = 1; keep < GRANULE_NR_PAGES; keep++) {
		len = GRANULE_SIZE + (GRANULE_NR_PAGES - 1) * BASE_SIZE;
		ASSERT_TRUE(grow(&self->heap, len));
		memset(self->base + self->heap.len - len, 0xff, len);
		ASSERT_TRUE(shrink(&self->heap, len - keep * BASE_SIZE));
		len -= keep * BASE_SIZE;
		ASSERT_TRUE(grow(&self->heap, len));
		EXPECT_TRUE(granule_is_filled(self->base + self->heap.len - len, len, 0))
			TH_LOG("%zu pages were kept", keep);
	}
}

/*
 * Assert that such memory reads as zero, too, while a pipe still holds its old
 * page.
 */
TEST_F(page_granule_heap, still_in_a_pipe)
{
	static char page[BASE_SIZE];
	struct iovec iov;
	int fds[2];

	ASSERT_EQ(pipe(fds), 0);
	ASSERT_TRUE(grow(&self->heap, 2 * BASE_SIZE));
	memset(self->base, 0x11, BASE_SIZE);
	memset(self->base + BASE_SIZE, 0x22, BASE_SIZE);
	iov = (struct iovec){ .iov_base = self->base + BASE_SIZE, .iov_len = BASE_SIZE };
	ASSERT_EQ(vmsplice(fds[1], &iov, 1, 0), (ssize_t)BASE_SIZE);

	ASSERT_TRUE(shrink(&self->heap, BASE_SIZE));
	ASSERT_TRUE(grow(&self->heap, 5 * BASE_SIZE));
	EXPECT_TRUE(granule_is_filled(self->base + BASE_SIZE, 5 * BASE_SIZE, 0));
	memset(self->base + BASE_SIZE, 0x33, 5 * BASE_SIZE);
	ASSERT_EQ(read(fds[0], page, sizeof(page)), (ssize_t)sizeof(page));
	EXPECT_EQ(page[0], 0x22);
	EXPECT_EQ(memcmp(page, page + 1, sizeof(page) - 1), 0);
	EXPECT_EQ(self->base[BASE_SIZE - 1], 0x11);
	close(fds[0]);
	close(fds[1]);
}

static bool tell(int fd)
{
	return write(fd, "", 1) == 1;
}

/* False if the other process is gone. */
static bool hear(int fd)
{
	char c;

	return read(fd, &c, 1) == 1;
}

/*
 * Assert that parent and child do not see each other's part of the last block.
 */
TEST_F(page_granule_heap, fork)
{
	int down[2], up[2], status;
	pid_t pid;

	ASSERT_EQ(pipe(down), 0);
	ASSERT_EQ(pipe(up), 0);
	ASSERT_TRUE(grow(&self->heap, 3 * BASE_SIZE));
	memset(self->base, 1, 3 * BASE_SIZE);
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		close(down[1]);
		/* Each grows, and writes to its own. */
		if (!grow(&self->heap, 4 * BASE_SIZE) || !tell(up[1]) || !hear(down[0]))
			_exit(1);
		if (!granule_is_filled(self->base + 3 * BASE_SIZE, 4 * BASE_SIZE, 0))
			_exit(2);
		memset(self->base, 2, 7 * BASE_SIZE);
		if (!tell(up[1]) || !hear(down[0]))
			_exit(1);
		_exit(granule_is_filled(self->base, 7 * BASE_SIZE, 2) ? 0 : 3);
	}
	close(up[1]);
	ASSERT_TRUE(hear(up[0]));
	ASSERT_TRUE(grow(&self->heap, 4 * BASE_SIZE));
	EXPECT_TRUE(granule_is_filled(self->base + 3 * BASE_SIZE, 4 * BASE_SIZE, 0));
	memset(self->base + 3 * BASE_SIZE, 3, 4 * BASE_SIZE);
	ASSERT_TRUE(tell(down[1]));
	ASSERT_TRUE(hear(up[0]));
	EXPECT_TRUE(granule_is_filled(self->base, 3 * BASE_SIZE, 1));
	EXPECT_TRUE(granule_is_filled(self->base + 3 * BASE_SIZE, 4 * BASE_SIZE, 3));
	memset(self->base + 3 * BASE_SIZE, 4, 4 * BASE_SIZE);
	ASSERT_TRUE(tell(down[1]));
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	EXPECT_EQ(status, 0);
	/*
	 * The child is gone, but pages that fork made read-only are not
	 * exclusive.
	 */
	ASSERT_TRUE(grow(&self->heap, 9 * BASE_SIZE));
	EXPECT_TRUE(granule_is_filled(self->base + 7 * BASE_SIZE, 9 * BASE_SIZE, 0));
	memset(self->base, 5, GRANULE_SIZE);
	EXPECT_TRUE(granule_is_filled(self->base, GRANULE_SIZE, 5));
	close(down[0]);
	close(down[1]);
	close(up[0]);
}

/*
 * Assert that a child keeps the contents that its parent gives back and takes
 * again.
 */
TEST_F(page_granule_heap, fork_keeps)
{
	int status, ready[2];
	pid_t pid;
	char c;

	ASSERT_EQ(pipe(ready), 0);
	ASSERT_TRUE(grow(&self->heap, 5 * BASE_SIZE));
	memset(self->base, 0x55, 5 * BASE_SIZE);
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		close(ready[1]);
		if (read(ready[0], &c, 1) < 0)
			_exit(1);
		_exit(self->base[3 * BASE_SIZE] == 0x55 && self->base[5 * BASE_SIZE - 1] == 0x55 ?
		      0 : 2);
	}
	ASSERT_TRUE(shrink(&self->heap, 2 * BASE_SIZE));
	ASSERT_TRUE(grow(&self->heap, 2 * BASE_SIZE));
	EXPECT_TRUE(granule_is_filled(self->base + 3 * BASE_SIZE, 2 * BASE_SIZE, 0));
	memset(self->base + 3 * BASE_SIZE, 0x66, 2 * BASE_SIZE);
	close(ready[0]);
	close(ready[1]);
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	EXPECT_EQ(status, 0);
}

/*
 * Assert that with granules switched off the kernel populates no page before
 * its first access.
 */
TEST_F(page_granule_heap, switched_off)
{
	ASSERT_TRUE(grow(&self->heap, 2 * BASE_SIZE));
	self->base[0] = 1;
	EXPECT_EQ(granule_present_pages(self->pagemap, self->base, GRANULE_SIZE), 2);
	ASSERT_EQ(granule_set_enabled(false), 0);
	EXPECT_TRUE(grow(&self->heap, 3 * BASE_SIZE));
	EXPECT_EQ(granule_present_pages(self->pagemap, self->base, GRANULE_SIZE), 2);
	ASSERT_EQ(granule_set_enabled(true), 0);
}

/* Assert that userfaultfd sees a fault on each page that it monitors. */
TEST_F(page_granule_heap_reserved, monitored)
{
	int uffd = granule_uffd_open(0);

	if (uffd < 0)
		SKIP(return, GRANULE_UFFD_REMEDY);
	ASSERT_TRUE(grow(&self->heap, 2 * BASE_SIZE));
	self->base[0] = 1;
	ASSERT_EQ(uffd_register(uffd, self->base, GRANULE_SIZE, true, false, false), 0);
	ASSERT_TRUE(grow(&self->heap, 2 * BASE_SIZE));
	EXPECT_EQ(granule_present_pages(self->pagemap, self->base, GRANULE_SIZE), 2);

	/* Neither is a block populated that it waits for faults on. */
	ASSERT_EQ(mprotect(nth(self->base, 2), 2 * BASE_SIZE, PROT_RW), 0);
	ASSERT_EQ(uffd_register(uffd, nth(self->base, 2), GRANULE_SIZE, false, true, false), 0);
	*nth(self->base, 2) = 1;
	EXPECT_EQ(granule_present_pages(self->pagemap, nth(self->base, 2), GRANULE_SIZE), 1);
	close(uffd);
}

/*
 * Shrinkers free what they can in several rounds: until there is no more
 * progress. Returns what the cgroup then has.
 */
static long shrink_all(const struct granule_cg *cg)
{
	long now, left = LONG_MAX;
	int i;

	for (i = 0; i < 4; i++) {
		granule_write(DROP_CACHES, "2");
		usleep(50 * 1000);
		now = granule_cg_read(cg->dir, "memory.current", NULL);
		if (now < left) {
			left = now;
			i = 0;
		}
	}
	return left;
}

/*
 * Assert that memory pressure frees the pages that are charged to a heap that
 * does not grow, and that written pages stay.
 */
TEST_F(page_granule_heap_reserved, put_back)
{
	struct granule_cg cg;
	long before, edges, after;
	unsigned long i;
	char *area;

	if (!granule_cg_create(&cg))
		SKIP(return, GRANULE_CG_REMEDY);
	ASSERT_EQ(granule_cg_write(cg.dir, "cgroup.procs", "0"), 0);
	area = self->base;
	for (i = 0; i < MANY; i++)
		ASSERT_EQ(mprotect(nth(area, 2 * i), BASE_SIZE, PROT_RW), 0);
	before = shrink_all(&cg);
	for (i = 0; i < MANY; i++)
		*nth(area, 2 * i) = i + 1;
	edges = granule_cg_read(cg.dir, "memory.current", NULL) - before;
	after = shrink_all(&cg) - before;
	ksft_print_msg("%lu heaps of a page each: %ld kB, then %ld kB\n", MANY, edges / 1024,
		       after / 1024);
	/* Both include the charges that a CPU makes in advance. */
	EXPECT_GE(edges, (long)(MANY * GRANULE_SIZE - CHARGE_SLACK));
	EXPECT_LE(after, (long)(MANY * BASE_SIZE * 2 + CHARGE_SLACK));
	for (i = 0; i < MANY; i++)
		EXPECT_EQ(*nth(area, 2 * i), (char)(i + 1));
	/* Freed pages are not mapped again, and new ones are zero. */
	ASSERT_EQ(mprotect(area, GRANULE_SIZE, PROT_RW), 0);
	EXPECT_TRUE(granule_is_filled(area + BASE_SIZE, GRANULE_SIZE - BASE_SIZE, 0));
	granule_cg_remove(&cg);
}

/*
 * Assert that the shrinker does not split a folio that was mapped in part and
 * is mapped as a whole again. One that is still mapped in part tells when the
 * shrinker has come by.
 */
TEST_F(page_granule_heap, stays_whole)
{
	struct heap other;
	unsigned int i;

	ASSERT_TRUE(start_heap(&other, false));
	ASSERT_TRUE(grow(&self->heap, BASE_SIZE));
	self->base[0] = 1;
	ASSERT_TRUE(grow(&self->heap, GRANULE_SIZE - BASE_SIZE));
	EXPECT_EQ(granule_state(self->pagemap, self->base), GRANULE_WHOLE);
	ASSERT_TRUE(grow(&other, BASE_SIZE));
	other.base[0] = 1;
	ASSERT_TRUE(granule_in_large_folio(self->pagemap, other.base));
	for (i = 0; i < 200 && granule_in_large_folio(self->pagemap, other.base); i++) {
		granule_write(DROP_CACHES, "2");
		usleep(50 * 1000);
	}
	EXPECT_FALSE(granule_in_large_folio(self->pagemap, other.base));
	EXPECT_EQ(granule_state(self->pagemap, self->base), GRANULE_WHOLE);
}

/*
 * Assert that a call that merges with a VMA populates no more than its own
 * range.
 */
TEST_F(page_granule_heap_reserved, merged)
{
	char *base = self->base;

	ASSERT_EQ(mprotect(base, 4 * BASE_SIZE, PROT_RW), 0);
	base[0] = 1;
	EXPECT_EQ(granule_present_pages(self->pagemap, base, GRANULE_SIZE), 4);
	ASSERT_EQ(mprotect(base + 6 * BASE_SIZE, 10 * BASE_SIZE, PROT_RW), 0);
	ASSERT_EQ(mprotect(base + 4 * BASE_SIZE, 2 * BASE_SIZE, PROT_RW), 0);
	EXPECT_EQ(granule_present_pages(self->pagemap, base, GRANULE_SIZE), 6);
}

/*
 * Assert that a fault makes a block whole whose folio could not be mapped when
 * the heap grew because of a reference to it, and that it copies nothing.
 */
TEST_F(page_granule_heap, extended_later)
{
	unsigned long repaired = granule_vmstat("granule_repair");
	static char page[BASE_SIZE];
	struct iovec iov;
	int fds[2];

	ASSERT_EQ(pipe(fds), 0);
	ASSERT_TRUE(grow(&self->heap, 2 * BASE_SIZE));
	memset(self->base, 0x11, 2 * BASE_SIZE);
	iov = (struct iovec){ .iov_base = self->base + BASE_SIZE, .iov_len = BASE_SIZE };
	ASSERT_EQ(vmsplice(fds[1], &iov, 1, 0), (ssize_t)BASE_SIZE);
	ASSERT_TRUE(grow(&self->heap, GRANULE_SIZE - 2 * BASE_SIZE));
	EXPECT_EQ(granule_present_pages(self->pagemap, self->base, GRANULE_SIZE), 2);
	ASSERT_EQ(read(fds[0], page, sizeof(page)), (ssize_t)sizeof(page));

	self->base[5 * BASE_SIZE] = 0x33;
	EXPECT_EQ(granule_state(self->pagemap, self->base), GRANULE_WHOLE);
	EXPECT_EQ(granule_vmstat("granule_repair"), repaired);
	EXPECT_EQ(self->base[2 * BASE_SIZE - 1], 0x11);
	EXPECT_EQ(self->base[5 * BASE_SIZE], 0x33);
	self->base[5 * BASE_SIZE] = 0;
	EXPECT_TRUE(granule_is_filled(self->base + 2 * BASE_SIZE, GRANULE_SIZE - 2 * BASE_SIZE, 0));
	close(fds[0]);
	close(fds[1]);
}

/*
 * A granule that is populated in part, because the VMA began in the middle of
 * it: the pages PART_FIRST to PART_END - 1.
 */
#define PART_LEN	(4 * GRANULE_SIZE)
#define PART_FIRST	8UL
#define PART_END	12UL

FIXTURE(page_granule_heap_part)
{
	char *area;
	int pagemap;
};

FIXTURE_SETUP(page_granule_heap_part)
{
	unsigned long i;

	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, GRANULE_SIZE), 0);
	granule_thp_never();
	self->pagemap = granule_open_pagemap();
	ASSERT_GE(self->pagemap, 0);
	self->area = reserve();
	ASSERT_NE(self->area, MAP_FAILED);
	ASSERT_EQ(mprotect(self->area + PART_FIRST * BASE_SIZE,
			   PART_LEN - PART_FIRST * BASE_SIZE, PROT_RW), 0);
	for (i = PART_FIRST; i < PART_END; i++)
		self->area[i * BASE_SIZE] = i;
	ASSERT_EQ(granule_present(self->pagemap, self->area), PART_END - PART_FIRST);
	ASSERT_EQ(mprotect(self->area, PART_FIRST * BASE_SIZE, PROT_RW), 0);
}

FIXTURE_TEARDOWN(page_granule_heap_part)
{
	EXPECT_TRUE(granule_invariants_hold());
	close(self->pagemap);
}

/* Are all pages as FIXTURE_SETUP has left them? */
static bool part_unchanged(const char *area)
{
	unsigned long i;

	for (i = 0; i < GRANULE_NR_PAGES; i++) {
		if (area[i * BASE_SIZE] != (i >= PART_FIRST && i < PART_END ? (char)i : 0) ||
		    !granule_is_filled(area + i * BASE_SIZE + 1, BASE_SIZE - 1, 0))
			return false;
	}
	return true;
}

/*
 * Assert that one fault fills a partly populated granule, and that it becomes
 * whole.
 */
TEST_F(page_granule_heap_part, filled)
{
	unsigned long fallback = granule_vmstat("granule_fallback");

	*self->area = 1;
	EXPECT_EQ(granule_present(self->pagemap, self->area), GRANULE_NR_PAGES);
	*self->area = 0;
	self->area[BASE_SIZE] = 1;
	self->area[BASE_SIZE] = 0;
	self->area[PART_END * BASE_SIZE] = 1;
	self->area[PART_END * BASE_SIZE] = 0;
	EXPECT_EQ(granule_vmstat("granule_fallback"), fallback);
	EXPECT_NE(granule_state(self->pagemap, self->area), GRANULE_WHOLE);
	granule_repair(true);
	EXPECT_GE(granule_until_whole(self->pagemap, self->area, 10), 0);
	granule_repair(false);
	EXPECT_TRUE(part_unchanged(self->area));
}

/*
 * Assert that one fault fills it although a read has mapped zero pages there.
 */
TEST_F(page_granule_heap_part, read_first)
{
	EXPECT_EQ(*self->area, 0);
	EXPECT_EQ(granule_present(self->pagemap, self->area), PART_END - PART_FIRST + 1);
	self->area[BASE_SIZE] = 1;
	self->area[BASE_SIZE] = 0;
	EXPECT_EQ(granule_present(self->pagemap, self->area), GRANULE_NR_PAGES);
	EXPECT_TRUE(part_unchanged(self->area));
}

/* Assert that a fault fills the part that mremap() made room for as well. */
TEST_F(page_granule_heap_part, mremap)
{
	char *area = granule_reserve(2 * GRANULE_SIZE), *map;

	ASSERT_NE(area, NULL);
	ASSERT_EQ(munmap(area, 2 * GRANULE_SIZE), 0);
	map = mmap(area, 3 * BASE_SIZE, PROT_RW, ANON_FLAGS | MAP_FIXED_NOREPLACE, -1, 0);
	ASSERT_EQ(map, area);
	area[BASE_SIZE] = 1;
	EXPECT_EQ(granule_present(self->pagemap, area), 1);
	ASSERT_EQ(mremap(area, 3 * BASE_SIZE, GRANULE_SIZE, 0), area);
	area[7 * BASE_SIZE] = 1;
	EXPECT_EQ(granule_present(self->pagemap, area), GRANULE_NR_PAGES);
}

/*
 * Assert that no hole is filled once the program has given back a part of the
 * VMA.
 */
TEST_F(page_granule_heap_part, given_back)
{
	static const int advices[] = { MADV_DONTNEED, MADV_FREE, MADV_GUARD_INSTALL };
	const unsigned long here = PART_END - PART_FIRST;
	char *other = nth(self->area, 2);
	size_t i;

	for (i = 0; i < ARRAY_SIZE(advices); i++) {
		pid_t pid = fork();
		int status;

		if (!pid) {
			int pagemap = granule_open_pagemap();

			*other = 1;
			EXPECT_FALSE(granule_vma_has_flag(self->area, "gh"));
			ASSERT_EQ(madvise(other + BASE_SIZE, BASE_SIZE, advices[i]), 0);
			EXPECT_TRUE(granule_vma_has_flag(self->area, "gh"));
			*self->area = 1;
			EXPECT_EQ(granule_present(pagemap, self->area), here + 1);
			/*
			 * Not by the VMA that remains, or that it becomes,
			 * either.
			 */
			ASSERT_EQ(mprotect(nth(self->area, 1), GRANULE_SIZE, PROT_READ), 0);
			self->area[BASE_SIZE] = 1;
			EXPECT_EQ(granule_present(pagemap, self->area), here + 2);
			ASSERT_EQ(mprotect(nth(self->area, 1), GRANULE_SIZE, PROT_RW), 0);
			self->area[2 * BASE_SIZE] = 1;
			EXPECT_EQ(granule_present(pagemap, self->area), here + 3);
			_exit(0);
		}
		ASSERT_EQ(waitpid(pid, &status, 0), pid);
		EXPECT_EQ(status, 0);
	}
	/* The children's were others. */
	*self->area = 1;
	EXPECT_EQ(granule_present(self->pagemap, self->area), GRANULE_NR_PAGES);
}

/* Assert that a VMA with holes passes that on to a VMA that it merges with. */
TEST_F(page_granule_heap_part, merged)
{
	char *next = self->area + PART_LEN;

	ASSERT_EQ(mprotect(nth(next, 1), PART_LEN, PROT_RW), 0);
	/* It has no page: two VMAs that had both would not be merged. */
	ASSERT_EQ(madvise(nth(next, 1), BASE_SIZE, MADV_DONTNEED), 0);
	EXPECT_FALSE(granule_vma_has_flag(self->area, "gh"));
	ASSERT_EQ(mprotect(next, GRANULE_SIZE, PROT_RW), 0);
	EXPECT_TRUE(granule_vma_has_flag(self->area, "gh"));
	*self->area = 1;
	EXPECT_EQ(granule_present(self->pagemap, self->area), PART_END - PART_FIRST + 1);
}

/*
 * Assert that no fault fills a hole once mremap() has moved pages away from the
 * VMA.
 */
TEST_F(page_granule_heap_part, moved_away)
{
	char *moved;

	*nth(self->area, 2) = 1;
	moved = mremap(nth(self->area, 2), GRANULE_SIZE, GRANULE_SIZE,
		       MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL);
	ASSERT_NE(moved, MAP_FAILED);
	EXPECT_TRUE(granule_vma_has_flag(nth(self->area, 2), "gh"));
	*self->area = 1;
	EXPECT_EQ(granule_present(self->pagemap, self->area), PART_END - PART_FIRST + 1);
}

/*
 * Assert that no fault fills the place that UFFDIO_MOVE has moved pages away
 * from.
 */
TEST_F(page_granule_heap_part, moved_by_monitor)
{
	struct uffdio_move move = { .len = BASE_SIZE };
	int uffd = granule_uffd_open(UFFD_FEATURE_MOVE);
	char *to;

	if (uffd < 0)
		SKIP(return, "no UFFDIO_MOVE: set CONFIG_USERFAULTFD=y");
	to = mmap(NULL, GRANULE_SIZE, PROT_RW, ANON_FLAGS, -1, 0);
	ASSERT_NE(to, MAP_FAILED);
	ASSERT_EQ(uffd_register(uffd, to, GRANULE_SIZE, true, false, false), 0);
	move.dst = (unsigned long)to;
	move.src = (unsigned long)self->area + PART_FIRST * BASE_SIZE;
	ASSERT_EQ(ioctl(uffd, UFFDIO_MOVE, &move), 0);
	EXPECT_EQ(*to, (char)PART_FIRST);
	*self->area = 1;
	EXPECT_EQ(granule_present(self->pagemap, self->area), PART_END - PART_FIRST);
	close(uffd);
}

/*
 * Assert that memory that was given back and made accessible again is not
 * populated.
 */
TEST_F(page_granule_heap_part, taken_again)
{
	char *area = nth(self->area, 1);
	const unsigned long kept = 6;

	memset(area, 1, GRANULE_SIZE);
	ASSERT_EQ(granule_state(self->pagemap, area), GRANULE_WHOLE);
	area += kept * BASE_SIZE;
	ASSERT_EQ(madvise(area, GRANULE_SIZE - kept * BASE_SIZE, MADV_DONTNEED), 0);
	ASSERT_EQ(mprotect(area, GRANULE_SIZE - kept * BASE_SIZE, PROT_NONE), 0);
	ASSERT_EQ(mprotect(area, GRANULE_SIZE - kept * BASE_SIZE, PROT_RW), 0);
	EXPECT_EQ(granule_present(self->pagemap, nth(self->area, 1)), kept);
	*area = 1;
	EXPECT_EQ(granule_present(self->pagemap, nth(self->area, 1)), kept + 1);
}

/*
 * Assert that userfaultfd sees a fault on each page of a partly populated
 * granule.
 */
TEST_F(page_granule_heap_part, monitored)
{
	int uffd = granule_uffd_open(0);

	if (uffd < 0)
		SKIP(return, GRANULE_UFFD_REMEDY);
	ASSERT_EQ(uffd_register(uffd, self->area, PART_LEN, false, true, false), 0);
	*self->area = 1;
	EXPECT_EQ(granule_present(self->pagemap, self->area), PART_END - PART_FIRST + 1);
	close(uffd);
}

/*
 * Assert that faults populate single pages where the program wants no huge
 * pages.
 */
TEST_F(page_granule_heap_part, nohugepage)
{
	ASSERT_EQ(madvise(self->area, PART_LEN, MADV_NOHUGEPAGE), 0);
	*self->area = 1;
	EXPECT_EQ(granule_present(self->pagemap, self->area), PART_END - PART_FIRST + 1);
}

#define PART_ROUNDS	300

static void *write_lower(void *arg)
{
	char *area = arg;
	unsigned long i;

	for (i = 0; i < PART_FIRST; i++)
		__atomic_fetch_add(&area[i * BASE_SIZE], 1, __ATOMIC_RELAXED);
	return NULL;
}

/* Assert that no write is lost when two threads fill a granule at once. */
TEST_F(page_granule_heap_part, at_once)
{
	unsigned long i, round, wrong = 0;

	for (round = 0; round < PART_ROUNDS; round++) {
		char *area = reserve();
		pthread_t thread;

		ASSERT_NE(area, MAP_FAILED);
		ASSERT_EQ(mprotect(area + PART_FIRST * BASE_SIZE,
				   GRANULE_SIZE - PART_FIRST * BASE_SIZE, PROT_RW), 0);
		area[PART_FIRST * BASE_SIZE] = 1;
		ASSERT_EQ(mprotect(area, PART_FIRST * BASE_SIZE, PROT_RW), 0);
		ASSERT_EQ(pthread_create(&thread, NULL, write_lower, area), 0);
		write_lower(area);
		ASSERT_EQ(pthread_join(thread, NULL), 0);
		for (i = 0; i < PART_FIRST; i++)
			wrong += area[i * BASE_SIZE] != 2;
		EXPECT_EQ(granule_present(self->pagemap, area),
			  GRANULE_NR_PAGES);
		ASSERT_EQ(munmap(area, 4 * HEAP_LEN), 0);
	}
	EXPECT_EQ(wrong, 0);
}

/* Assert that one fault populates one page in memory that does not grow. */
TEST(page_granule_heap_fixed)
{
	char *area, *map;
	int pagemap;

	granule_thp_never();
	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, GRANULE_SIZE), 0);
	pagemap = granule_open_pagemap();
	ASSERT_GE(pagemap, 0);
	/* Nothing follows it, or what follows is in use. */
	area = granule_reserve(2 * GRANULE_SIZE);
	ASSERT_NE(area, NULL);
	ASSERT_EQ(munmap(area, 2 * GRANULE_SIZE), 0);
	map = mmap(area, 3 * BASE_SIZE, PROT_RW, ANON_FLAGS | MAP_FIXED_NOREPLACE, -1, 0);
	ASSERT_EQ(map, area);
	map[0] = 1;
	EXPECT_EQ(granule_present_pages(pagemap, area, GRANULE_SIZE), 1);
	ASSERT_EQ(mmap(nth(area, 1), GRANULE_SIZE, PROT_READ, ANON_FLAGS | MAP_FIXED_NOREPLACE,
		       -1, 0), nth(area, 1));
	map = mmap(area + 3 * BASE_SIZE, 13 * BASE_SIZE, PROT_READ,
		   ANON_FLAGS | MAP_FIXED_NOREPLACE, -1, 0);
	ASSERT_EQ(map, area + 3 * BASE_SIZE);
	area[BASE_SIZE] = 1;
	EXPECT_EQ(granule_present_pages(pagemap, area, GRANULE_SIZE), 2);

	/* A guard follows, as behind a stack. */
	area = granule_reserve(2 * GRANULE_SIZE);
	ASSERT_NE(area, NULL);
	ASSERT_EQ(mmap(area, 3 * BASE_SIZE, PROT_RW, ANON_FLAGS | MAP_FIXED, -1, 0), area);
	map = mmap(area + 3 * BASE_SIZE, BASE_SIZE, PROT_NONE, ANON_FLAGS | MAP_FIXED, -1, 0);
	ASSERT_EQ(map, area + 3 * BASE_SIZE);
	map = mmap(area + 4 * BASE_SIZE, 12 * BASE_SIZE, PROT_RW, ANON_FLAGS | MAP_FIXED, -1, 0);
	ASSERT_EQ(map, area + 4 * BASE_SIZE);
	area[BASE_SIZE] = 1;
	EXPECT_EQ(granule_present_pages(pagemap, area, GRANULE_SIZE), 1);
	close(pagemap);
}

int main(int argc, char **argv)
{
	granule_require();
	granule_save_settings();
	return test_harness_run(argc, argv);
}
