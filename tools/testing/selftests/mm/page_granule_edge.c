// SPDX-License-Identifier: GPL-2.0
/*
 * Page granule: default-tagged VMAs whose bounds cut a granule, or that 4 KiB
 * calls have cut. They keep the 4 KiB ABI at their edges, and have runs inside.
 */
#define _GNU_SOURCE
#include "kselftest_harness.h"
#include <asm-generic/mman.h> /* Force the import of the tools version. */
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "vm_util.h"
#include "page_granule_util.h"

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

/*
 * Assert that edge blocks take single pages, and the granules inside are whole.
 */
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
	EXPECT_EQ(granule_rss_kb(start, 1), 4 * 64 + 2 * 4);
	EXPECT_FALSE(PAGEMAP_PRESENT(pagemap_get_entry(self->pagemap, start)));

	/* The same by reading: the blocks at the edges have no run to map. */
	ASSERT_EQ(madvise(start, end - start, MADV_DONTNEED), 0);
	FORCE_READ(start[0]);
	EXPECT_EQ(granule_present_pages(self->pagemap, start, end - start), 1);
	FORCE_READ(inner[0]);
	EXPECT_TRUE(granule_is_zero_run(self->pagemap, inner));
	EXPECT_TRUE(granule_is_filled(start, end - start, 0));
}

/* Assert that a VMA smaller than a granule behaves as it does today. */
TEST_F(page_granule_edge, small_vma)
{
	ASSERT_EQ(map_at(self->res, GRANULE_SIZE - BASE_SIZE), self->res);
	self->res[5 * BASE_SIZE] = 1;
	EXPECT_EQ(granule_present_pages(self->pagemap, self->res, GRANULE_SIZE - BASE_SIZE), 1);
	EXPECT_EQ(granule_rss_kb(self->res, 1), 4);
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

	/*
	 * Fill the hole again. Faults in it must not touch the pages around it.
	 */
	ASSERT_EQ(map_at(hole, 4 * BASE_SIZE), hole);
	EXPECT_TRUE(granule_is_filled(hole, 4 * BASE_SIZE, 0));
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
	EXPECT_TRUE(granule_is_filled(page, BASE_SIZE, 0));
	page[3] = 2;
	EXPECT_EQ(granule_present_pages(self->pagemap, self->res, GRANULE_SIZE), 16);
	EXPECT_EQ(page[3], 2);
	EXPECT_TRUE(granule_is_filled(page + 4, BASE_SIZE - 4, 0));
	page[3] = 0;
	memset(page, 1, BASE_SIZE);
	ASSERT_EQ(memchr(self->res, 0, GRANULE_SIZE), NULL);
	EXPECT_EQ(granule_rss_kb(self->res, 1), 64);
}

/*
 * Assert that a page that is there survives when its granule becomes complete.
 */
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
	EXPECT_TRUE(granule_is_filled(self->res, GRANULE_SIZE, 0));
}

/* Assert that a fault in a granule leaves its guard page in place. */
TEST_F(page_granule_edge, guard_page)
{
	char *guard = self->res + 5 * BASE_SIZE;
	int zero = open("/dev/zero", O_RDONLY);

	ASSERT_GE(zero, 0);
	ASSERT_EQ(map_at(self->res, GRANULE_SIZE), self->res);
	ASSERT_EQ(madvise(guard, BASE_SIZE, MADV_GUARD_INSTALL), 0);
	FORCE_READ(self->res[0]);
	self->res[BASE_SIZE] = 1;
	/* The kernel gets an error where a program gets SIGSEGV. */
	errno = 0;
	EXPECT_EQ(read(zero, guard, 1), -1);
	EXPECT_EQ(errno, EFAULT);
	ASSERT_EQ(madvise(guard, BASE_SIZE, MADV_GUARD_REMOVE), 0);
	EXPECT_EQ(read(zero, guard, 1), 1);
	EXPECT_EQ(self->res[BASE_SIZE], 1);
	close(zero);
}

/*
 * Pages of [addr, addr + len) that map, once read, another zero page than @pfn.
 */
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
 * Assert that zeroes that form no run are the one zero page of today, in
 * untagged memory and where tagged memory is populated page by page. Programs
 * such as CRIU tell by its PFN that a page needs no saving.
 */
TEST_F(page_granule_edge, one_zero_page)
{
	struct uffdio_zeropage zero = {};
	char *untagged = nth(self->res, 8);
	unsigned long pfn, i;
	int uffd;

	uffd = granule_uffd(0, O_NONBLOCK | UFFD_USER_MODE_ONLY);
	if (uffd < 0)
		SKIP(return, GRANULE_UFFD_REMEDY);
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

	/* One granule page by page, the next all at once. */
	ASSERT_EQ(map_at(self->res, 2 * GRANULE_SIZE), self->res);
	ASSERT_EQ(uffd_register(uffd, self->res, 2 * GRANULE_SIZE, true, false, false), 0);
	zero.range.len = BASE_SIZE;
	for (i = 0; i < GRANULE_NR_PAGES; i++) {
		zero.range.start = (unsigned long)page_at(self->res, i);
		ASSERT_EQ(ioctl(uffd, UFFDIO_ZEROPAGE, &zero), 0);
	}
	zero.range.start = (unsigned long)nth(self->res, 1);
	zero.range.len = GRANULE_SIZE;
	ASSERT_EQ(ioctl(uffd, UFFDIO_ZEROPAGE, &zero), 0);
	EXPECT_EQ(other_zero_pages(self->pagemap, self->res, 2 * GRANULE_SIZE, pfn), 0);
	close(uffd);
}

int main(int argc, char **argv)
{
	granule_require();
	granule_save_settings();
	return test_harness_run(argc, argv);
}
