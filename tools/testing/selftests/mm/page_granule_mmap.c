// SPDX-License-Identifier: GPL-2.0
/*
 * Page granule: MAP_GRANULE_*, which mappings can have it, and where mappings
 * are placed.
 */
#define _GNU_SOURCE
#include "kselftest_harness.h"
#include <asm-generic/mman.h> /* Force the import of the tools version. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/personality.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "hugepage_settings.h"
#include "vm_util.h"
#include "page_granule_util.h"

/* 0 or the negative errno of an mmap() call. */
#define map_error(...)	(mmap(__VA_ARGS__) == MAP_FAILED ? -errno : 0)

FIXTURE(page_granule_mmap_flags)
{
	int pagemap;
	char *res;	/* a megabyte of PROT_NONE to map into */
	size_t res_len;
};

FIXTURE_SETUP(page_granule_mmap_flags)
{
	ASSERT_EQ(granule_set_enabled(true), 0);
	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, BASE_SIZE), 0);
	granule_thp_never();
	self->pagemap = granule_open_pagemap();
	ASSERT_GE(self->pagemap, 0);
	self->res_len = 16 * GRANULE_SIZE;
	self->res = granule_reserve(self->res_len);
	ASSERT_NE(self->res, NULL);
}

FIXTURE_TEARDOWN(page_granule_mmap_flags)
{
	EXPECT_TRUE(granule_invariants_hold());
	granule_set_enabled(true);
	close(self->pagemap);
}

/* Assert that MAP_GRANULE with any size but 4 and 64 KiB is EINVAL. */
TEST_F(page_granule_mmap_flags, unknown_size)
{
	unsigned int shift;

	for (shift = 0; shift < 64; shift++) {
		int flags = ANON_FLAGS | MAP_GRANULE | (shift << MAP_HUGE_SHIFT);
		int expected = shift == 12 || shift == 16 ? 0 : -EINVAL;

		EXPECT_EQ(map_error(NULL, GRANULE_SIZE, PROT_RW, flags, -1, 0), expected)
			TH_LOG("size 2^%u", shift);
	}
}

/* Assert that MAP_GRANULE and MAP_HUGETLB together are EINVAL. */
TEST_F(page_granule_mmap_flags, not_with_hugetlb)
{
	EXPECT_EQ(map_error(NULL, 2UL << 20, PROT_RW,
			    ANON_FLAGS | MAP_HUGETLB | MAP_GRANULE_64KB, -1, 0), -EINVAL);
	EXPECT_EQ(map_error(NULL, 2UL << 20, PROT_RW,
			    ANON_FLAGS | MAP_HUGETLB | MAP_GRANULE_4KB, -1, 0), -EINVAL);
	EXPECT_EQ(map_error(NULL, 2UL << 20, PROT_RW,
			    ANON_FLAGS | MAP_HUGETLB | MAP_GRANULE, -1, 0), -EINVAL);
}

/*
 * Assert that a MAP_FIXED address off the granule is EINVAL and unmaps nothing.
 */
TEST_F(page_granule_mmap_flags, fixed_misaligned)
{
	static const unsigned long offsets[] = {
		BASE_SIZE, GRANULE_SIZE / 2, GRANULE_SIZE - BASE_SIZE,
	};
	char *before, *after;
	size_t i;

	before = granule_smaps_text(self->res, self->res_len);
	for (i = 0; i < ARRAY_SIZE(offsets); i++) {
		char *addr = self->res + offsets[i];

		EXPECT_EQ(map_error(addr, GRANULE_SIZE, PROT_RW,
				    ANON_FLAGS | MAP_FIXED | MAP_GRANULE_64KB, -1, 0),
			  -EINVAL);
		EXPECT_EQ(map_error(addr, GRANULE_SIZE, PROT_RW,
				    ANON_FLAGS | MAP_FIXED_NOREPLACE | MAP_GRANULE_64KB,
				    -1, 0), -EINVAL);
	}
	after = granule_smaps_text(self->res, self->res_len);
	EXPECT_TRUE(granule_same_text(before, after));
	free(before);
	free(after);
}

/* Assert that MAP_GRANULE_4KB asks for no alignment and rounds no length. */
TEST_F(page_granule_mmap_flags, base_page_unaligned)
{
	char *addr = self->res + 3 * BASE_SIZE;

	ASSERT_EQ(mmap(addr, BASE_SIZE, PROT_RW,
		       ANON_FLAGS | MAP_FIXED | MAP_GRANULE_4KB, -1, 0), addr);
	EXPECT_TRUE(granule_vma_is(addr, BASE_SIZE));
	EXPECT_FALSE(granule_vma_has_flag(addr, "gr"));
}

/*
 * Assert that MAP_GRANULE_64KB refuses a length that is no multiple of 64 KiB.
 * It replaces neither the range it was given nor the memory behind it.
 */
TEST_F(page_granule_mmap_flags, length_misaligned)
{
	static const size_t lengths[] = {
		1, BASE_SIZE, GRANULE_SIZE - BASE_SIZE, GRANULE_SIZE - 1,
		GRANULE_SIZE + 1, 3 * GRANULE_SIZE + BASE_SIZE,
	};
	const int flags = ANON_FLAGS | MAP_GRANULE_64KB;
	char *free_addr = nth(self->res, 8), *before, *after;
	size_t i;

	ASSERT_EQ(granule_mmap(GRANULE_UNTAGGED, self->res, 8 * GRANULE_SIZE, PROT_RW,
			       MAP_FIXED), self->res);
	granule_fill(self->res, 8 * GRANULE_SIZE, 1);
	ASSERT_EQ(munmap(free_addr, 4 * GRANULE_SIZE), 0);
	before = granule_smaps_text(self->res, self->res_len);
	for (i = 0; i < ARRAY_SIZE(lengths); i++) {
		EXPECT_EQ(map_error(self->res, lengths[i], PROT_RW, flags | MAP_FIXED,
				    -1, 0), -EINVAL)
			TH_LOG("length %#zx", lengths[i]);
		EXPECT_EQ(map_error(free_addr, lengths[i], PROT_RW,
				    flags | MAP_FIXED_NOREPLACE, -1, 0), -EINVAL)
			TH_LOG("length %#zx", lengths[i]);
		EXPECT_EQ(map_error(NULL, lengths[i], PROT_RW, flags, -1, 0), -EINVAL)
			TH_LOG("length %#zx", lengths[i]);
		EXPECT_EQ(map_error(NULL, lengths[i], PROT_RW,
				    MAP_SHARED | MAP_ANONYMOUS | MAP_GRANULE_64KB, -1, 0), -EINVAL)
			TH_LOG("length %#zx", lengths[i]);
	}
	after = granule_smaps_text(self->res, self->res_len);
	EXPECT_TRUE(granule_same_text(before, after));
	EXPECT_TRUE(granule_check(self->res, 8 * GRANULE_SIZE, 1));
	free(before);
	free(after);
}

/* Assert that a length of whole granules is mapped as given. */
TEST_F(page_granule_mmap_flags, length_aligned)
{
	unsigned long nr;

	for (nr = 1; nr <= 4; nr++) {
		ASSERT_EQ(mmap(self->res, nr * GRANULE_SIZE, PROT_RW,
			       ANON_FLAGS | MAP_FIXED | MAP_GRANULE_64KB, -1, 0),
			  self->res);
		EXPECT_TRUE(granule_vma_is(self->res, nr * GRANULE_SIZE));
		EXPECT_TRUE(granule_vma_has_flag(self->res, "gc"));
		EXPECT_FALSE(granule_vma_has_flag(nth(self->res, nr), "gr"));
		EXPECT_EQ(munmap(self->res, nr * GRANULE_SIZE), 0);
	}
}

/*
 * Assert that a length of 0 and lengths beyond the address space are refused.
 */
TEST_F(page_granule_mmap_flags, length_limits)
{
	static const struct {
		size_t len;
		int error;
	} lengths[] = {
		{ 0, -EINVAL }, { -1UL, -EINVAL }, { -BASE_SIZE, -EINVAL },
		{ -GRANULE_SIZE / 2, -EINVAL }, { -GRANULE_SIZE, -ENOMEM },
		{ 1UL << 62, -ENOMEM },
	};
	size_t i;

	for (i = 0; i < ARRAY_SIZE(lengths); i++) {
		EXPECT_EQ(map_error(NULL, lengths[i].len, PROT_RW,
				    ANON_FLAGS | MAP_GRANULE_64KB, -1, 0),
			  lengths[i].error)
			TH_LOG("length %#zx", lengths[i].len);
	}
}

/* Assert that a default-tagged mapping keeps its length and its address. */
TEST_F(page_granule_mmap_flags, default_not_rounded)
{
	char *addr = self->res + 3 * BASE_SIZE;
	size_t len = 2 * GRANULE_SIZE + BASE_SIZE;

	ASSERT_EQ(granule_mmap(GRANULE_DEFAULT, addr, len, PROT_RW, MAP_FIXED), addr);
	EXPECT_TRUE(granule_vma_is(addr, len));
	EXPECT_TRUE(granule_vma_has_flag(addr, "gr"));
	EXPECT_FALSE(granule_vma_has_flag(addr, "gc"));

	/* Smaller than a granule, and legal all the same. */
	addr = self->res + 8 * GRANULE_SIZE + BASE_SIZE;
	ASSERT_EQ(granule_mmap(GRANULE_DEFAULT, addr, BASE_SIZE, PROT_RW,
			       MAP_FIXED), addr);
	EXPECT_TRUE(granule_vma_is(addr, BASE_SIZE));
	*addr = 1;
}

/* Assert that MAP_GRANULE_4KB opts out of a process default of 64 KiB. */
TEST_F(page_granule_mmap_flags, opt_out)
{
	char *addr;

	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, GRANULE_SIZE), 0);
	addr = mmap(self->res, GRANULE_SIZE, PROT_RW,
		    ANON_FLAGS | MAP_FIXED | MAP_GRANULE_4KB, -1, 0);
	ASSERT_EQ(addr, self->res);
	EXPECT_FALSE(granule_vma_has_flag(addr, "gr"));
	EXPECT_FALSE(granule_vma_has_flag(addr, "gc"));
}

/*
 * Assert that MAP_GRANULE_64KB makes a contract under either process default.
 */
TEST_F(page_granule_mmap_flags, explicit_over_default)
{
	unsigned long size;

	for (size = BASE_SIZE; size <= GRANULE_SIZE; size *= GRANULE_NR_PAGES) {
		ASSERT_EQ(granule_set(PR_GRANULE_MMAP, size), 0);
		ASSERT_EQ(mmap(self->res, GRANULE_SIZE, PROT_RW,
			       ANON_FLAGS | MAP_FIXED | MAP_GRANULE_64KB, -1, 0),
			  self->res);
		EXPECT_TRUE(granule_vma_has_flag(self->res, "gr"));
		EXPECT_TRUE(granule_vma_has_flag(self->res, "gc"));
	}
}

/* Assert that a mapping without flag and default is as it always was. */
TEST_F(page_granule_mmap_flags, untagged_by_default)
{
	ASSERT_EQ(mmap(self->res, GRANULE_SIZE, PROT_RW, ANON_FLAGS | MAP_FIXED,
		       -1, 0), self->res);
	EXPECT_FALSE(granule_vma_has_flag(self->res, "gr"));
	EXPECT_FALSE(granule_vma_has_flag(self->res, "gc"));
}

/* Assert that the size bits mean nothing without MAP_GRANULE, as before. */
TEST_F(page_granule_mmap_flags, size_bits_alone)
{
	ASSERT_EQ(mmap(self->res + BASE_SIZE, BASE_SIZE, PROT_RW,
		       ANON_FLAGS | MAP_FIXED | (16U << MAP_HUGE_SHIFT), -1, 0),
		  self->res + BASE_SIZE);
	EXPECT_FALSE(granule_vma_has_flag(self->res + BASE_SIZE, "gr"));
}

/*
 * Assert that MAP_STACK, which asks for no huge pages, is not tagged by
 * default, and that the explicit flag wins. Faults populate it accordingly.
 */
TEST_F(page_granule_mmap_flags, stack)
{
	const int flags = ANON_FLAGS | MAP_FIXED | MAP_STACK;

	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, GRANULE_SIZE), 0);
	ASSERT_EQ(mmap(self->res, GRANULE_SIZE, PROT_RW, flags, -1, 0), self->res);
	EXPECT_FALSE(granule_vma_has_flag(self->res, "gr"));
	EXPECT_TRUE(granule_vma_has_flag(self->res, "nh"));
	self->res[GRANULE_SIZE - 1] = 1;
	EXPECT_EQ(granule_present(self->pagemap, self->res), 1);

	ASSERT_EQ(mmap(self->res, GRANULE_SIZE, PROT_RW, flags | MAP_GRANULE_64KB, -1, 0),
		  self->res);
	EXPECT_TRUE(granule_vma_has_flag(self->res, "gr"));
	EXPECT_TRUE(granule_vma_has_flag(self->res, "gc"));
	/* Or it would be of single pages for ever. */
	EXPECT_FALSE(granule_vma_has_flag(self->res, "nh"));
	self->res[GRANULE_SIZE - 1] = 1;
	EXPECT_EQ(granule_state(self->pagemap, self->res), GRANULE_WHOLE);
}

/* Assert that memory that reclaim may drop page by page is never tagged. */
TEST_F(page_granule_mmap_flags, droppable)
{
	const int flags = MAP_DROPPABLE | MAP_ANONYMOUS | MAP_FIXED;

	ASSERT_EQ(mmap(self->res, GRANULE_SIZE, PROT_RW, flags, -1, 0), self->res);
	EXPECT_EQ(map_error(self->res, GRANULE_SIZE, PROT_RW, flags | MAP_GRANULE_64KB,
			    -1, 0), -EOPNOTSUPP);
	EXPECT_EQ(mmap(self->res, GRANULE_SIZE, PROT_RW, flags | MAP_GRANULE_4KB, -1, 0),
		  self->res);

	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, GRANULE_SIZE), 0);
	ASSERT_EQ(mmap(self->res, GRANULE_SIZE, PROT_RW, flags, -1, 0), self->res);
	EXPECT_TRUE(granule_vma_has_flag(self->res, "dp"));
	EXPECT_FALSE(granule_vma_has_flag(self->res, "gr"));
	*self->res = 1;
	EXPECT_EQ(granule_present(self->pagemap, self->res), 1);
}

/*
 * Assert that enabled=0 refuses the flag and leaves default mappings untagged.
 * Memory that is tagged already gets no folios: faults populate it page by
 * page, or by 16 single pages for a contract.
 */
TEST_F(page_granule_mmap_flags, switched_off)
{
	int pagemap = self->pagemap;
	char *old, *old_default, *new;
	pid_t pid;

	old = granule_mmap(GRANULE_CONTRACT, self->res, GRANULE_SIZE, PROT_RW, MAP_FIXED);
	ASSERT_EQ(old, self->res);
	old_default = granule_mmap(GRANULE_DEFAULT, nth(self->res, 6), GRANULE_SIZE,
				   PROT_RW, MAP_FIXED);
	ASSERT_EQ(old_default, nth(self->res, 6));
	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, GRANULE_SIZE), 0);

	ASSERT_EQ(granule_set_enabled(false), 0);
	EXPECT_EQ(map_error(NULL, GRANULE_SIZE, PROT_RW, ANON_FLAGS | MAP_GRANULE_64KB,
			    -1, 0), -EOPNOTSUPP);
	EXPECT_EQ(map_error(NULL, GRANULE_SIZE, PROT_RW,
			    ANON_FLAGS | MAP_GRANULE | (14U << MAP_HUGE_SHIFT), -1, 0),
		  -EINVAL);
	EXPECT_EQ(map_error(NULL, GRANULE_SIZE, PROT_RW, ANON_FLAGS | MAP_GRANULE_4KB,
			    -1, 0), 0);
	new = mmap(self->res + 2 * GRANULE_SIZE, GRANULE_SIZE, PROT_RW,
		   ANON_FLAGS | MAP_FIXED, -1, 0);
	ASSERT_NE(new, MAP_FAILED);
	EXPECT_FALSE(granule_vma_has_flag(new, "gr"));
	/* The default that this process still has, and a child inherits. */
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		new = mmap(NULL, 3 * MIB, PROT_RW, ANON_FLAGS, -1, 0);
		EXPECT_NE(new, MAP_FAILED);
		EXPECT_FALSE(granule_vma_has_flag(new, "gr"));
		_exit(0);
	}
	EXPECT_TRUE(granule_child_ends(pid));

	/* Existing mappings keep working, and stay tagged. */
	*old = 1;
	EXPECT_EQ(granule_state(pagemap, old), GRANULE_BROKEN);
	EXPECT_EQ(granule_present_pages(pagemap, old, GRANULE_SIZE), GRANULE_NR_PAGES);
	EXPECT_EQ(munmap(old, BASE_SIZE), -1);
	*old_default = 1;
	EXPECT_EQ(granule_present_pages(pagemap, old_default, GRANULE_SIZE), 1);
	EXPECT_TRUE(granule_vma_has_flag(old_default, "gr"));

	ASSERT_EQ(granule_set_enabled(true), 0);
	new = mmap(self->res + 4 * GRANULE_SIZE, GRANULE_SIZE, PROT_RW,
		   ANON_FLAGS | MAP_FIXED, -1, 0);
	ASSERT_NE(new, MAP_FAILED);
	EXPECT_TRUE(granule_vma_has_flag(new, "gr"));
	*new = 1;
	EXPECT_EQ(granule_state(pagemap, new), GRANULE_WHOLE);
}

/* Assert that anonymous memory still ignores the offset argument. */
TEST_F(page_granule_mmap_flags, anonymous_offset)
{
	EXPECT_EQ(map_error(NULL, GRANULE_SIZE, PROT_RW, ANON_FLAGS | MAP_GRANULE_64KB,
			    -1, BASE_SIZE), 0);
}

/*
 * Assert that shared anonymous memory is tagged as private memory is. The
 * kernel aligns it whatever its length, since its VMAs never merge; a database
 * rounds its buffer pool to 8 KiB. A fixed address has to agree with the offset,
 * which is 0, for the memory to be tagged by default.
 */
TEST_F(page_granule_mmap_flags, shared_anonymous)
{
	static const size_t lengths[] = { 68 << 10, 200 << 10, 192 << 10, MIB, MIB + BASE_SIZE };
	const int flags = MAP_SHARED | MAP_ANONYMOUS;
	char *addr;
	size_t i;

	addr = mmap(NULL, GRANULE_SIZE, PROT_RW, flags | MAP_GRANULE_64KB, -1, 0);
	ASSERT_NE(addr, MAP_FAILED);
	EXPECT_TRUE(granule_aligned(addr));
	EXPECT_TRUE(granule_vma_is(addr, GRANULE_SIZE));
	EXPECT_TRUE(granule_vma_has_flag(addr, "gr"));
	EXPECT_TRUE(granule_vma_has_flag(addr, "gc"));
	EXPECT_EQ(map_error(self->res + BASE_SIZE, GRANULE_SIZE, PROT_RW,
			    flags | MAP_FIXED | MAP_GRANULE_64KB, -1, 0), -EINVAL);
	EXPECT_EQ(map_error(NULL, BASE_SIZE, PROT_RW, flags | MAP_GRANULE_64KB, -1, 0),
		  -EINVAL);

	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, GRANULE_SIZE), 0);
	addr = mmap(NULL, GRANULE_SIZE, PROT_RW, flags | MAP_GRANULE_4KB, -1, 0);
	ASSERT_NE(addr, MAP_FAILED);
	EXPECT_FALSE(granule_vma_has_flag(addr, "gr"));
	/* So that the next mapping is not aligned by chance. */
	ASSERT_EQ(map_error(NULL, 3 * BASE_SIZE, PROT_EXEC, ANON_FLAGS, -1, 0), 0);
	for (i = 0; i < ARRAY_SIZE(lengths); i++) {
		addr = mmap(NULL, lengths[i], PROT_RW, flags, -1, 0);
		ASSERT_NE(addr, MAP_FAILED);
		EXPECT_TRUE(granule_aligned(addr))
			TH_LOG("length %#zx", lengths[i]);
		EXPECT_TRUE(granule_vma_has_flag(addr, "gr"));
		EXPECT_FALSE(granule_vma_has_flag(addr, "gc"));
		*addr = 1;
		EXPECT_EQ(granule_state(self->pagemap, addr), GRANULE_WHOLE)
			TH_LOG("length %#zx", lengths[i]);
	}
	addr = mmap(self->res + BASE_SIZE, GRANULE_SIZE, PROT_RW, flags | MAP_FIXED, -1, 0);
	ASSERT_EQ(addr, self->res + BASE_SIZE);
	EXPECT_FALSE(granule_vma_has_flag(addr, "gr"));
}

/* Does a write to @addr end a process by SIGBUS? */
static bool write_is_sigbus(char *addr)
{
	int status;
	pid_t pid;

	pid = fork();
	if (!pid) {
		*addr = 1;
		_exit(0);
	}
	return waitpid(pid, &status, 0) == pid && WIFSIGNALED(status) &&
	       WTERMSIG(status) == SIGBUS;
}

/*
 * Assert that shared memory extended by mremap() raises SIGBUS from its old end
 * on, also where that is inside a granule.
 */
TEST_F(page_granule_mmap_flags, shared_beyond_end)
{
	const size_t len = GRANULE_SIZE + 3 * BASE_SIZE;
	char *addr;

	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, GRANULE_SIZE), 0);
	addr = mmap(self->res, len, PROT_RW, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	ASSERT_EQ(addr, self->res);
	/* It has to move for lack of room, and keeps its alignment. */
	addr = mremap(addr, len, 4 * GRANULE_SIZE, MREMAP_MAYMOVE);
	ASSERT_NE(addr, MAP_FAILED);
	EXPECT_TRUE(granule_aligned(addr));
	/* Where the memory ends, and where nothing has touched the granule. */
	addr[GRANULE_SIZE] = 1;
	addr[len - 1] = 1;
	EXPECT_TRUE(write_is_sigbus(addr + len));
	EXPECT_TRUE(write_is_sigbus(addr + 2 * GRANULE_SIZE - BASE_SIZE));
	EXPECT_TRUE(write_is_sigbus(addr + 2 * GRANULE_SIZE));
}

/*
 * Assert that shared memory is aligned for folios larger than a granule where
 * shmem uses them, as untagged memory is.
 */
TEST_F(page_granule_mmap_flags, shared_thp_aligned)
{
	const unsigned int order = 6;
	const size_t size = BASE_SIZE << order;
	struct shmem_hugepages_settings *shmem;
	struct thp_settings settings;
	int flags, i;
	char *addr;

	if (!(thp_shmem_supported_orders() & (1UL << order)))
		SKIP(return, "no mTHP of 256 kB in shmem: set CONFIG_TRANSPARENT_HUGEPAGE");
	thp_read_settings(&settings);
	shmem = &settings.shmem_hugepages[order];
	shmem->enabled = SHMEM_ALWAYS;
	thp_write_settings(&settings);

	/* Four of each: contract, default-tagged, untagged. */
	for (i = 0; i < 12; i++) {
		flags = MAP_SHARED | MAP_ANONYMOUS | (i < 4 ? MAP_GRANULE_64KB : 0);
		if (i == 4)
			EXPECT_EQ(granule_set(PR_GRANULE_MMAP, GRANULE_SIZE), 0);
		if (i == 8)
			EXPECT_EQ(granule_set(PR_GRANULE_MMAP, BASE_SIZE), 0);
		addr = mmap(NULL, size + GRANULE_SIZE, PROT_RW, flags, -1, 0);
		EXPECT_NE(addr, MAP_FAILED);
		EXPECT_EQ(granule_vma_has_flag(addr, "gr"), i < 8);
		EXPECT_EQ((unsigned long)addr % size, 0)
			TH_LOG("mapping %d at %p", i, addr);
	}

	shmem->enabled = SHMEM_NEVER;
	thp_write_settings(&settings);
}

/* Assert that the kernel takes a free, aligned hint, for either kind of tag. */
TEST_F(page_granule_mmap_flags, hint_aligned)
{
	char *hint = self->res;

	ASSERT_EQ(munmap(self->res, self->res_len), 0);
	EXPECT_EQ(granule_mmap(GRANULE_CONTRACT, hint, GRANULE_SIZE, PROT_RW, 0), hint);
	hint += 4 * GRANULE_SIZE;
	EXPECT_EQ(granule_mmap(GRANULE_DEFAULT, hint, GRANULE_SIZE, PROT_RW, 0), hint);
	hint += 4 * GRANULE_SIZE;
	EXPECT_EQ(granule_mmap(GRANULE_DEFAULT, hint, BASE_SIZE, PROT_RW, 0), hint);
}

/*
 * Assert that an unaligned hint still gives a contract VMA an aligned address.
 */
TEST_F(page_granule_mmap_flags, hint_unaligned)
{
	char *addr, *hint;
	int i;

	ASSERT_EQ(munmap(self->res, self->res_len), 0);
	for (i = 1; i < GRANULE_NR_PAGES; i++) {
		hint = self->res + i * BASE_SIZE;
		addr = granule_mmap(GRANULE_CONTRACT, hint, GRANULE_SIZE, PROT_RW, 0);
		ASSERT_NE(addr, MAP_FAILED);
		EXPECT_TRUE(granule_aligned(addr))
			TH_LOG("hint %p, got %p", hint, addr);
		/*
		 * The space around the hint is free: no need to go elsewhere.
		 */
		EXPECT_LE(labs(addr - hint), GRANULE_SIZE)
			TH_LOG("hint %p, got %p", hint, addr);
		ASSERT_EQ(munmap(addr, GRANULE_SIZE), 0);
	}
}

/*
 * Assert that the kernel passes over an occupied hint, and aligns the address
 * that it takes instead.
 */
TEST_F(page_granule_mmap_flags, hint_occupied)
{
	char *addr;

	addr = granule_mmap(GRANULE_CONTRACT, self->res + BASE_SIZE, GRANULE_SIZE,
			    PROT_RW, 0);
	ASSERT_NE(addr, MAP_FAILED);
	EXPECT_TRUE(granule_aligned(addr));
	EXPECT_FALSE(addr >= self->res && addr < self->res + self->res_len);
}

FIXTURE(page_granule_mmap_file)
{
	int fd;
};

FIXTURE_VARIANT(page_granule_mmap_file)
{
	const char *path;	/* NULL for a memfd */
	bool granules;
};

FIXTURE_VARIANT_ADD(page_granule_mmap_file, memfd)
{
	.path = NULL,
	.granules = true,
};

FIXTURE_VARIANT_ADD(page_granule_mmap_file, dev_zero)
{
	.path = "/dev/zero",
};

FIXTURE_SETUP(page_granule_mmap_file)
{
	ASSERT_EQ(granule_set_enabled(true), 0);
	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, BASE_SIZE), 0);
	if (variant->path) {
		self->fd = open(variant->path, O_RDONLY);
		if (self->fd < 0)
			SKIP(return, "cannot open %s: mount /proc and devtmpfs",
			     variant->path);
	} else {
		self->fd = memfd_create("page_granule", 0);
		if (self->fd < 0)
			SKIP(return, "no memfd: build the kernel with CONFIG_MEMFD_CREATE=y");
		ASSERT_EQ(ftruncate(self->fd, 4 * GRANULE_SIZE), 0);
	}
}

FIXTURE_TEARDOWN(page_granule_mmap_file)
{
	EXPECT_TRUE(granule_invariants_hold());
	close(self->fd);
}

/*
 * Assert that MAP_GRANULE_64KB is refused where the page cache cannot hold
 * granules.
 */
TEST_F(page_granule_mmap_file, explicit)
{
	const int expected = variant->granules ? 0 : -EOPNOTSUPP;

	EXPECT_EQ(map_error(NULL, GRANULE_SIZE, PROT_READ,
			    MAP_PRIVATE | MAP_GRANULE_64KB, self->fd, 0), expected);
	EXPECT_EQ(map_error(NULL, GRANULE_SIZE, PROT_READ,
			    MAP_SHARED_VALIDATE | MAP_GRANULE_64KB, self->fd, 0),
		  expected);
}

/* Assert that wrong arguments are EINVAL before the file is looked at. */
TEST_F(page_granule_mmap_file, invalid)
{
	EXPECT_EQ(map_error(NULL, GRANULE_SIZE, PROT_READ,
			    MAP_PRIVATE | MAP_GRANULE_64KB, self->fd, BASE_SIZE), -EINVAL);
	EXPECT_EQ(map_error(NULL, BASE_SIZE, PROT_READ,
			    MAP_PRIVATE | MAP_GRANULE_64KB, self->fd, 0), -EINVAL);
	EXPECT_EQ(map_error(NULL, GRANULE_SIZE, PROT_READ,
			    MAP_PRIVATE | MAP_GRANULE | (14U << MAP_HUGE_SHIFT), self->fd, 0),
		  -EINVAL);
	EXPECT_EQ(map_error(NULL, GRANULE_SIZE, PROT_READ,
			    MAP_SHARED_VALIDATE | MAP_GRANULE, self->fd, 0), -EINVAL);
}

/*
 * Assert that plain MAP_SHARED ignores the flag, as it ignores every new flag.
 */
TEST_F(page_granule_mmap_file, plain_shared_ignores)
{
	struct granule_smaps smaps;
	char *addr;

	addr = mmap(NULL, BASE_SIZE, PROT_READ, MAP_SHARED | MAP_GRANULE_64KB,
		    self->fd, 0);
	ASSERT_NE(addr, MAP_FAILED);
	ASSERT_TRUE(granule_read_smaps(getpid(), addr, &smaps));
	EXPECT_EQ(smaps.end - smaps.start, BASE_SIZE);
	EXPECT_FALSE(granule_has_flag(&smaps, "gr"));
}

/*
 * Assert that a default tags the file if its page cache can hold granules, and
 * that MAP_GRANULE_4KB maps any file untagged.
 */
TEST_F(page_granule_mmap_file, by_default)
{
	char *addr;

	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, GRANULE_SIZE), 0);
	addr = mmap(NULL, GRANULE_SIZE, PROT_READ, MAP_PRIVATE, self->fd, 0);
	ASSERT_NE(addr, MAP_FAILED);
	EXPECT_EQ(granule_vma_has_flag(addr, "gr"), variant->granules);
	addr = mmap(NULL, GRANULE_SIZE, PROT_READ, MAP_SHARED, self->fd, 0);
	ASSERT_NE(addr, MAP_FAILED);
	EXPECT_EQ(granule_vma_has_flag(addr, "gr"), variant->granules);
	EXPECT_EQ(map_error(NULL, GRANULE_SIZE, PROT_READ,
			    MAP_PRIVATE | MAP_GRANULE_4KB, self->fd, 0), 0);
	EXPECT_EQ(map_error(NULL, GRANULE_SIZE, PROT_READ,
			    MAP_SHARED_VALIDATE | MAP_GRANULE_4KB, self->fd, 0), 0);
}

/*
 * Placement. The layout of an address space is chosen at exec, so each variant
 * execs this program as "--placement DIRECTION", which runs placement_main().
 */
enum placement_direction {
	TOP_DOWN,
	BOTTOM_UP,
};

/* Throw off whatever alignment the last mapping has left, then map. */
static char *place(enum granule_kind kind, size_t len, int flags)
{
	static unsigned int nr;

	/* 1 to 15 pages, PROT_EXEC so that it merges with nothing. */
	if (mmap(NULL, (nr++ % 15 + 1) * BASE_SIZE, PROT_EXEC,
		 ANON_FLAGS | MAP_GRANULE_4KB | flags, -1, 0) == MAP_FAILED)
		return MAP_FAILED;
	return granule_mmap(kind, NULL, len, PROT_RW, flags | MAP_NORESERVE);
}

static int check_placement(enum granule_kind kind, size_t len, int flags)
{
	unsigned int i;
	char *addr;

	for (i = 0; i < 16; i++) {
		addr = place(kind, len, flags);
		if (addr != MAP_FAILED && granule_aligned(addr))
			continue;
		fprintf(stderr, "# kind %d length %#zx flags %#x: got %p\n",
			kind, len, flags, addr);
		return KSFT_FAIL;
	}
	return KSFT_PASS;
}

/*
 * Default-tagged memory of a length that alignment would leave gaps behind is
 * placed as if it were not tagged: neighbours merge. A few may fill the holes
 * of others.
 */
static int check_merging(size_t len)
{
	unsigned int i, beside = 0;
	char *addr, *last = NULL;

	for (i = 0; i < 64; i++) {
		addr = granule_mmap(GRANULE_DEFAULT, NULL, len, PROT_RW, MAP_NORESERVE);
		if (addr == MAP_FAILED)
			return KSFT_FAIL;
		beside += last && (addr == last - len || addr == last + len);
		last = addr;
	}
	if (beside >= 56)
		return KSFT_PASS;
	fprintf(stderr, "# length %#zx: %u of 63 beside the last one\n", len, beside);
	return KSFT_FAIL;
}

static int placement_main(char **argv)
{
	static const size_t lengths[] = {
		GRANULE_SIZE, 3 * GRANULE_SIZE, 1UL << 20, (1UL << 20) + GRANULE_SIZE,
		2UL << 20, 5UL << 20, (16UL << 20) + 7 * GRANULE_SIZE,
	};
	enum placement_direction wanted = atoi(argv[2]), seen;
	char *first, *second;
	size_t i;

	/* Is this the layout the variant wants to test? */
	first = mmap(NULL, 64UL << 20, PROT_NONE, ANON_FLAGS, -1, 0);
	second = mmap(NULL, 64UL << 20, PROT_NONE, ANON_FLAGS, -1, 0);
	seen = second > first ? BOTTOM_UP : TOP_DOWN;
	if (first == MAP_FAILED || second == MAP_FAILED || seen != wanted) {
		fprintf(stderr, "# wrong direction: %p, then %p\n", first, second);
		return KSFT_FAIL;
	}

	for (i = 0; i < ARRAY_SIZE(lengths); i++) {
		if (check_placement(GRANULE_CONTRACT, lengths[i], 0) ||
		    check_placement(GRANULE_DEFAULT, lengths[i], 0))
			return KSFT_FAIL;
	}
	if (check_merging(25 * BASE_SIZE) || check_merging(3 * GRANULE_SIZE + BASE_SIZE))
		return KSFT_FAIL;
	/* A search of its own: below 2 GiB (x86 only), and bottom-up. */
#ifdef MAP_32BIT
	if (check_placement(GRANULE_CONTRACT, GRANULE_SIZE, MAP_32BIT) ||
	    check_placement(GRANULE_DEFAULT, GRANULE_SIZE, MAP_32BIT))
		return KSFT_FAIL;
#endif
	return granule_invariants_hold() ? KSFT_PASS : KSFT_FAIL;
}

FIXTURE(page_granule_mmap_placement)
{
};

FIXTURE_VARIANT(page_granule_mmap_placement)
{
	enum placement_direction direction;
	unsigned long personality;
	bool unlimited_stack;
};

FIXTURE_VARIANT_ADD(page_granule_mmap_placement, top_down)
{
	.direction = TOP_DOWN,
};

FIXTURE_VARIANT_ADD(page_granule_mmap_placement, top_down_no_aslr)
{
	.direction = TOP_DOWN,
	.personality = ADDR_NO_RANDOMIZE,
};

FIXTURE_VARIANT_ADD(page_granule_mmap_placement, compat_layout)
{
	.direction = BOTTOM_UP,
	.personality = ADDR_COMPAT_LAYOUT,
};

/* x86 goes by the personality alone. */
FIXTURE_VARIANT_ADD(page_granule_mmap_placement, unlimited_stack)
{
#ifdef __x86_64__
	.direction = TOP_DOWN,
#else
	.direction = BOTTOM_UP,
#endif
	.unlimited_stack = true,
};

FIXTURE_SETUP(page_granule_mmap_placement)
{
	ASSERT_EQ(granule_set_enabled(true), 0);
}

FIXTURE_TEARDOWN(page_granule_mmap_placement)
{
	EXPECT_TRUE(granule_invariants_hold());
}

/*
 * Assert that the kernel chooses 64 KiB-aligned addresses in every layout,
 * where that leaves no gaps.
 */
TEST_F(page_granule_mmap_placement, aligned)
{
	struct rlimit rlim = { RLIM_INFINITY, RLIM_INFINITY };
	char direction[16];
	int status;
	pid_t pid;

	snprintf(direction, sizeof(direction), "%d", variant->direction);
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		if (variant->unlimited_stack && setrlimit(RLIMIT_STACK, &rlim))
			_exit(10);
		if (personality(PER_LINUX | variant->personality) < 0)
			_exit(11);
		execl("/proc/self/exe", "page_granule_mmap", "--placement",
		      direction, NULL);
		_exit(12);
	}
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	ASSERT_TRUE(WIFEXITED(status));
	ASSERT_EQ(WEXITSTATUS(status), 0);
}

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], "--placement"))
		return placement_main(argv);
	granule_require();
	granule_save_settings();
	return test_harness_run(argc, argv);
}
