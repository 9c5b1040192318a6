// SPDX-License-Identifier: GPL-2.0
/*
 * Page granule: MAP_GRANULE_*, where mappings are placed, the rule that no call
 * may cut a granule of a contract VMA, and what merges with what.
 */
#define _GNU_SOURCE
#include "kselftest_harness.h"
#include <asm-generic/mman.h> /* Force the import of the tools version. */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "hugepage_settings.h"
#include "vm_util.h"
#include "page_granule_util.h"

#ifndef PR_SET_VMA
#define PR_SET_VMA		0x53564d41
#define PR_SET_VMA_ANON_NAME	0
#endif

/* As for page_granule_util.h: headers may be older than the kernel. */
#ifndef MAP_DROPPABLE
#define MAP_DROPPABLE		0x08
#endif

#ifndef __NR_mseal
#define __NR_mseal		462
#endif

/* 0 or the negative errno of an mmap() call. */
#define map_error(...)	(mmap(__VA_ARGS__) == MAP_FAILED ? -errno : 0)

FIXTURE(page_granule_flags)
{
	struct procmap_fd procmap;
	char *res;	/* a megabyte of PROT_NONE to map into */
	size_t res_len;
};

FIXTURE_SETUP(page_granule_flags)
{
	ASSERT_EQ(granule_set_enabled(true), 0);
	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, BASE_SIZE), 0);
	self->res_len = 16 * GRANULE_SIZE;
	self->res = granule_reserve(self->res_len);
	ASSERT_NE(self->res, NULL);
	ASSERT_EQ(open_self_procmap(&self->procmap), 0);
}

FIXTURE_TEARDOWN(page_granule_flags)
{
	EXPECT_TRUE(granule_invariants_hold());
	granule_set_enabled(true);
	close_procmap(&self->procmap);
}

static bool vma_is(struct procmap_fd *procmap, char *start, size_t len)
{
	return find_vma_procmap(procmap, start) &&
	       procmap->query.vma_start == (unsigned long)start &&
	       procmap->query.vma_end == (unsigned long)start + len;
}

static bool vma_has_flag(const void *addr, const char *flag)
{
	struct granule_smaps smaps;

	return granule_read_smaps(getpid(), addr, &smaps) &&
	       granule_has_flag(&smaps, flag);
}

/* Assert that MAP_GRANULE with any size but 4 and 64 KiB is EINVAL. */
TEST_F(page_granule_flags, unknown_size)
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
TEST_F(page_granule_flags, not_with_hugetlb)
{
	EXPECT_EQ(map_error(NULL, 2UL << 20, PROT_RW,
			    ANON_FLAGS | MAP_HUGETLB | MAP_GRANULE_64KB, -1, 0), -EINVAL);
	EXPECT_EQ(map_error(NULL, 2UL << 20, PROT_RW,
			    ANON_FLAGS | MAP_HUGETLB | MAP_GRANULE_4KB, -1, 0), -EINVAL);
	EXPECT_EQ(map_error(NULL, 2UL << 20, PROT_RW,
			    ANON_FLAGS | MAP_HUGETLB | MAP_GRANULE, -1, 0), -EINVAL);
}

/* Assert that a MAP_FIXED address off the granule is EINVAL and unmaps nothing. */
TEST_F(page_granule_flags, fixed_misaligned)
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
TEST_F(page_granule_flags, base_page_unaligned)
{
	char *addr = self->res + 3 * BASE_SIZE;

	ASSERT_EQ(mmap(addr, BASE_SIZE, PROT_RW,
		       ANON_FLAGS | MAP_FIXED | MAP_GRANULE_4KB, -1, 0), addr);
	EXPECT_TRUE(vma_is(&self->procmap, addr, BASE_SIZE));
	EXPECT_FALSE(vma_has_flag(addr, "gr"));
}

/*
 * Assert that MAP_GRANULE_64KB refuses a length that is no multiple of a granule, and
 * replaces nothing: not what it was asked to, nor what lies behind that.
 */
TEST_F(page_granule_flags, length_misaligned)
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
	}
	after = granule_smaps_text(self->res, self->res_len);
	EXPECT_TRUE(granule_same_text(before, after));
	EXPECT_TRUE(granule_check(self->res, 8 * GRANULE_SIZE, 1));
	free(before);
	free(after);
}

/* Assert that a length of whole granules is mapped as it is. */
TEST_F(page_granule_flags, length_aligned)
{
	unsigned long nr;

	for (nr = 1; nr <= 4; nr++) {
		ASSERT_EQ(mmap(self->res, nr * GRANULE_SIZE, PROT_RW,
			       ANON_FLAGS | MAP_FIXED | MAP_GRANULE_64KB, -1, 0),
			  self->res);
		EXPECT_TRUE(vma_is(&self->procmap, self->res, nr * GRANULE_SIZE));
		EXPECT_TRUE(vma_has_flag(self->res, "gc"));
		EXPECT_FALSE(vma_has_flag(nth(self->res, nr), "gr"));
		EXPECT_EQ(munmap(self->res, nr * GRANULE_SIZE), 0);
	}
}

/* Assert that lengths that there is no room for are refused as on any memory. */
TEST_F(page_granule_flags, length_limits)
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
TEST_F(page_granule_flags, default_not_rounded)
{
	char *addr = self->res + 3 * BASE_SIZE;
	size_t len = 2 * GRANULE_SIZE + BASE_SIZE;

	ASSERT_EQ(granule_mmap(GRANULE_DEFAULT, addr, len, PROT_RW, MAP_FIXED), addr);
	EXPECT_TRUE(vma_is(&self->procmap, addr, len));
	EXPECT_TRUE(vma_has_flag(addr, "gr"));
	EXPECT_FALSE(vma_has_flag(addr, "gc"));

	/* Smaller than a granule, and legal all the same. */
	addr = self->res + 8 * GRANULE_SIZE + BASE_SIZE;
	ASSERT_EQ(granule_mmap(GRANULE_DEFAULT, addr, BASE_SIZE, PROT_RW,
			       MAP_FIXED), addr);
	EXPECT_TRUE(vma_is(&self->procmap, addr, BASE_SIZE));
	*addr = 1;
}

/* Assert that MAP_GRANULE_4KB opts out of a process default of 64 KiB. */
TEST_F(page_granule_flags, opt_out)
{
	char *addr;

	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, GRANULE_SIZE), 0);
	addr = mmap(self->res, GRANULE_SIZE, PROT_RW,
		    ANON_FLAGS | MAP_FIXED | MAP_GRANULE_4KB, -1, 0);
	ASSERT_EQ(addr, self->res);
	EXPECT_FALSE(vma_has_flag(addr, "gr"));
	EXPECT_FALSE(vma_has_flag(addr, "gc"));
}

/* Assert that MAP_GRANULE_64KB is a contract under either process default. */
TEST_F(page_granule_flags, explicit_over_default)
{
	unsigned long size;

	for (size = BASE_SIZE; size <= GRANULE_SIZE; size *= GRANULE_NR_PAGES) {
		ASSERT_EQ(granule_set(PR_GRANULE_MMAP, size), 0);
		ASSERT_EQ(mmap(self->res, GRANULE_SIZE, PROT_RW,
			       ANON_FLAGS | MAP_FIXED | MAP_GRANULE_64KB, -1, 0),
			  self->res);
		EXPECT_TRUE(vma_has_flag(self->res, "gr"));
		EXPECT_TRUE(vma_has_flag(self->res, "gc"));
	}
}

/* Assert that without flag and default a mapping is as it always was. */
TEST_F(page_granule_flags, untagged_by_default)
{
	ASSERT_EQ(mmap(self->res, GRANULE_SIZE, PROT_RW, ANON_FLAGS | MAP_FIXED,
		       -1, 0), self->res);
	EXPECT_FALSE(vma_has_flag(self->res, "gr"));
	EXPECT_FALSE(vma_has_flag(self->res, "gc"));
}

/* Assert that the size bits mean nothing without MAP_GRANULE, as before. */
TEST_F(page_granule_flags, size_bits_alone)
{
	ASSERT_EQ(mmap(self->res + BASE_SIZE, BASE_SIZE, PROT_RW,
		       ANON_FLAGS | MAP_FIXED | (16U << MAP_HUGE_SHIFT), -1, 0),
		  self->res + BASE_SIZE);
	EXPECT_FALSE(vma_has_flag(self->res + BASE_SIZE, "gr"));
}

/* Assert that MAP_FIXED_NOREPLACE sees a mapping anywhere in the granule. */
TEST_F(page_granule_flags, noreplace)
{
	char *addr = self->res;

	EXPECT_EQ(map_error(addr, GRANULE_SIZE, PROT_RW,
			    ANON_FLAGS | MAP_FIXED_NOREPLACE | MAP_GRANULE_64KB, -1, 0),
		  -EEXIST);

	/* Free but for the last page of the granule. */
	ASSERT_EQ(munmap(addr, GRANULE_SIZE - BASE_SIZE), 0);
	EXPECT_EQ(map_error(addr, GRANULE_SIZE, PROT_RW,
			    ANON_FLAGS | MAP_FIXED_NOREPLACE | MAP_GRANULE_64KB, -1, 0),
		  -EEXIST);

	ASSERT_EQ(munmap(addr, GRANULE_SIZE), 0);
	EXPECT_EQ(mmap(addr, GRANULE_SIZE, PROT_RW,
		       ANON_FLAGS | MAP_FIXED_NOREPLACE | MAP_GRANULE_64KB, -1, 0), addr);
	EXPECT_TRUE(vma_is(&self->procmap, addr, GRANULE_SIZE));
}

/*
 * Assert that stacks of threads, which MAP_STACK says are not to have huge pages, are
 * not tagged by default, and that the explicit flag wins.
 */
TEST_F(page_granule_flags, stack)
{
	const int flags = ANON_FLAGS | MAP_FIXED | MAP_STACK;

	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, GRANULE_SIZE), 0);
	ASSERT_EQ(mmap(self->res, GRANULE_SIZE, PROT_RW, flags, -1, 0), self->res);
	EXPECT_FALSE(vma_has_flag(self->res, "gr"));
	EXPECT_TRUE(vma_has_flag(self->res, "nh"));

	ASSERT_EQ(mmap(self->res, GRANULE_SIZE, PROT_RW, flags | MAP_GRANULE_64KB, -1, 0),
		  self->res);
	EXPECT_TRUE(vma_has_flag(self->res, "gr"));
	EXPECT_TRUE(vma_has_flag(self->res, "gc"));
	/* Or it would be of single pages for ever. */
	EXPECT_FALSE(vma_has_flag(self->res, "nh"));
}

/* Assert that memory that reclaim may drop page by page is not tagged. */
TEST_F(page_granule_flags, droppable)
{
	const int flags = MAP_DROPPABLE | MAP_ANONYMOUS | MAP_FIXED;

	if (mmap(self->res, GRANULE_SIZE, PROT_RW, flags, -1, 0) != self->res)
		SKIP(return, "no MAP_DROPPABLE (%s): run on a 64-bit kernel",
		     strerror(errno));
	EXPECT_EQ(map_error(self->res, GRANULE_SIZE, PROT_RW, flags | MAP_GRANULE_64KB,
			    -1, 0), -EOPNOTSUPP);
	EXPECT_EQ(mmap(self->res, GRANULE_SIZE, PROT_RW, flags | MAP_GRANULE_4KB, -1, 0),
		  self->res);

	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, GRANULE_SIZE), 0);
	ASSERT_EQ(mmap(self->res, GRANULE_SIZE, PROT_RW, flags, -1, 0), self->res);
	EXPECT_TRUE(vma_has_flag(self->res, "dp"));
	EXPECT_FALSE(vma_has_flag(self->res, "gr"));
}

/*
 * Assert that enabled=0 refuses the flag, leaves default mappings untagged, and that
 * what is tagged already gets no folios: page by page, or 16 pages by contract.
 */
TEST_F(page_granule_flags, switched_off)
{
	int pagemap = granule_open_pagemap();
	char *old, *old_default, *new;

	ASSERT_GE(pagemap, 0);
	granule_thp_never();
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
	EXPECT_FALSE(vma_has_flag(new, "gr"));

	/* What exists keeps working, and stays tagged. */
	*old = 1;
	EXPECT_EQ(granule_state(pagemap, old), GRANULE_BROKEN);
	EXPECT_EQ(granule_present_pages(pagemap, old, GRANULE_SIZE), GRANULE_NR_PAGES);
	EXPECT_EQ(munmap(old, BASE_SIZE), -1);
	*old_default = 1;
	EXPECT_EQ(granule_present_pages(pagemap, old_default, GRANULE_SIZE), 1);
	EXPECT_TRUE(vma_has_flag(old_default, "gr"));

	ASSERT_EQ(granule_set_enabled(true), 0);
	new = mmap(self->res + 4 * GRANULE_SIZE, GRANULE_SIZE, PROT_RW,
		   ANON_FLAGS | MAP_FIXED, -1, 0);
	ASSERT_NE(new, MAP_FAILED);
	EXPECT_TRUE(vma_has_flag(new, "gr"));
	*new = 1;
	EXPECT_EQ(granule_state(pagemap, new), GRANULE_WHOLE);
}

/* Assert that the offset argument, unused for anonymous memory, stays unused. */
TEST_F(page_granule_flags, anonymous_offset)
{
	EXPECT_EQ(map_error(NULL, GRANULE_SIZE, PROT_RW, ANON_FLAGS | MAP_GRANULE_64KB,
			    -1, BASE_SIZE), 0);
}

/*
 * Assert that shared anonymous memory is tagged as private memory is, by default
 * only where its offset, which is 0, and its address agree.
 */
TEST_F(page_granule_flags, shared_anonymous)
{
	const int flags = MAP_SHARED | MAP_ANONYMOUS;
	char *addr;

	addr = mmap(NULL, GRANULE_SIZE, PROT_RW, flags | MAP_GRANULE_64KB, -1, 0);
	ASSERT_NE(addr, MAP_FAILED);
	EXPECT_TRUE(granule_aligned(addr));
	EXPECT_TRUE(vma_is(&self->procmap, addr, GRANULE_SIZE));
	EXPECT_TRUE(vma_has_flag(addr, "gr"));
	EXPECT_TRUE(vma_has_flag(addr, "gc"));
	EXPECT_EQ(map_error(self->res + BASE_SIZE, GRANULE_SIZE, PROT_RW,
			    flags | MAP_FIXED | MAP_GRANULE_64KB, -1, 0), -EINVAL);
	EXPECT_EQ(map_error(NULL, BASE_SIZE, PROT_RW, flags | MAP_GRANULE_64KB, -1, 0),
		  -EINVAL);

	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, GRANULE_SIZE), 0);
	addr = mmap(NULL, GRANULE_SIZE, PROT_RW, flags | MAP_GRANULE_4KB, -1, 0);
	ASSERT_NE(addr, MAP_FAILED);
	EXPECT_FALSE(vma_has_flag(addr, "gr"));
	addr = mmap(NULL, 3 * GRANULE_SIZE, PROT_RW, flags, -1, 0);
	ASSERT_NE(addr, MAP_FAILED);
	EXPECT_TRUE(granule_aligned(addr));
	EXPECT_TRUE(vma_has_flag(addr, "gr"));
	EXPECT_FALSE(vma_has_flag(addr, "gc"));
	/* Nobody aligns this, but it may be all the same. */
	addr = mmap(NULL, GRANULE_SIZE + BASE_SIZE, PROT_RW, flags, -1, 0);
	ASSERT_NE(addr, MAP_FAILED);
	EXPECT_EQ(vma_has_flag(addr, "gr"), granule_aligned(addr));
	addr = mmap(self->res + BASE_SIZE, GRANULE_SIZE, PROT_RW, flags | MAP_FIXED, -1, 0);
	ASSERT_EQ(addr, self->res + BASE_SIZE);
	EXPECT_FALSE(vma_has_flag(addr, "gr"));
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
 * Assert that mremap() beyond the end of shared memory gives SIGBUS from the
 * first page on that is not there, also where the granule begins before it.
 */
TEST_F(page_granule_flags, shared_beyond_end)
{
	const size_t len = GRANULE_SIZE + 3 * BASE_SIZE;
	char *addr;

	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, GRANULE_SIZE), 0);
	addr = mmap(self->res, len, PROT_RW, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	ASSERT_EQ(addr, self->res);
	/* It has to move, as there is no room, and stays aligned as it was. */
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

/* Assert that set_mempolicy_home_node() without a policy still says so. */
TEST_F(page_granule_flags, home_node_without_policy)
{
	if (access("/proc/self/numa_maps", F_OK))
		SKIP(return, "no memory policies: set CONFIG_NUMA=y");
	EXPECT_EQ(syscall(__NR_set_mempolicy_home_node, self->res, BASE_SIZE, 0UL, 0UL), -1);
	EXPECT_EQ(errno, ENOENT);
	/* A contract VMA elsewhere makes no difference. */
	EXPECT_EQ(map_error(NULL, GRANULE_SIZE, PROT_RW, ANON_FLAGS | MAP_GRANULE_64KB, -1, 0),
		  0);
	EXPECT_EQ(syscall(__NR_set_mempolicy_home_node, self->res, BASE_SIZE, 0UL, 0UL), -1);
	EXPECT_EQ(errno, ENOENT);
}

FIXTURE(page_granule_file)
{
	int fd;
	int flags;	/* MAP_* that work without MAP_GRANULE */
};

FIXTURE_VARIANT(page_granule_file)
{
	const char *path;	/* NULL for a memfd */
};

FIXTURE_VARIANT_ADD(page_granule_file, memfd)
{
	.path = NULL,
};

FIXTURE_VARIANT_ADD(page_granule_file, dev_zero)
{
	.path = "/dev/zero",
};

FIXTURE_VARIANT_ADD(page_granule_file, executable)
{
	.path = "/proc/self/exe",
};

FIXTURE_SETUP(page_granule_file)
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

FIXTURE_TEARDOWN(page_granule_file)
{
	EXPECT_TRUE(granule_invariants_hold());
	close(self->fd);
}

/* Assert that a file, not taught yet, refuses MAP_GRANULE_64KB. */
TEST_F(page_granule_file, explicit_refused)
{
	EXPECT_EQ(map_error(NULL, GRANULE_SIZE, PROT_READ,
			    MAP_PRIVATE | MAP_GRANULE_64KB, self->fd, 0), -EOPNOTSUPP);
	EXPECT_EQ(map_error(NULL, GRANULE_SIZE, PROT_READ,
			    MAP_SHARED_VALIDATE | MAP_GRANULE_64KB, self->fd, 0),
		  -EOPNOTSUPP);
}

/* Assert that wrong arguments are EINVAL before the file is looked at. */
TEST_F(page_granule_file, invalid)
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

/* Assert that plain MAP_SHARED ignores the flag, as it does every new one. */
TEST_F(page_granule_file, plain_shared_ignores)
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

/* Assert that MAP_GRANULE_4KB, and no flag under a default, map it untagged. */
TEST_F(page_granule_file, untagged)
{
	char *addr;

	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, GRANULE_SIZE), 0);
	addr = mmap(NULL, GRANULE_SIZE, PROT_READ, MAP_PRIVATE, self->fd, 0);
	ASSERT_NE(addr, MAP_FAILED);
	EXPECT_FALSE(vma_has_flag(addr, "gr"));
	addr = mmap(NULL, GRANULE_SIZE, PROT_READ, MAP_SHARED, self->fd, 0);
	ASSERT_NE(addr, MAP_FAILED);
	EXPECT_FALSE(vma_has_flag(addr, "gr"));
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
 * Default-tagged memory of a length that alignment would leave gaps behind is placed as
 * if it were not tagged: neighbours merge. A few may fill the holes of others.
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
	return KSFT_PASS;
}

FIXTURE(page_granule_placement)
{
};

FIXTURE_VARIANT(page_granule_placement)
{
	enum placement_direction direction;
	unsigned long personality;
	bool unlimited_stack;
};

FIXTURE_VARIANT_ADD(page_granule_placement, top_down)
{
	.direction = TOP_DOWN,
};

FIXTURE_VARIANT_ADD(page_granule_placement, top_down_no_aslr)
{
	.direction = TOP_DOWN,
	.personality = ADDR_NO_RANDOMIZE,
};

FIXTURE_VARIANT_ADD(page_granule_placement, compat_layout)
{
	.direction = BOTTOM_UP,
	.personality = ADDR_COMPAT_LAYOUT,
};

/* x86 goes by the personality alone. */
FIXTURE_VARIANT_ADD(page_granule_placement, unlimited_stack)
{
#ifdef __x86_64__
	.direction = TOP_DOWN,
#else
	.direction = BOTTOM_UP,
#endif
	.unlimited_stack = true,
};

FIXTURE_SETUP(page_granule_placement)
{
	ASSERT_EQ(granule_set_enabled(true), 0);
}

FIXTURE_TEARDOWN(page_granule_placement)
{
	EXPECT_TRUE(granule_invariants_hold());
}

/*
 * Assert that the kernel chooses 64 KiB-aligned addresses in every layout, where that
 * leaves no gaps.
 */
TEST_F(page_granule_placement, aligned)
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

/*
 * Assert that shared memory is placed for folios larger than a granule where shmem
 * is to use them: not worse than if it were not tagged.
 */
TEST_F(page_granule_flags, shared_thp_aligned)
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
		EXPECT_EQ(vma_has_flag(addr, "gr"), i < 8);
		EXPECT_EQ((unsigned long)addr % size, 0)
			TH_LOG("mapping %d at %p", i, addr);
	}

	shmem->enabled = SHMEM_NEVER;
	thp_write_settings(&settings);
}

/* Assert that a free, aligned hint is taken, for either kind of tag. */
TEST_F(page_granule_flags, hint_aligned)
{
	char *hint = self->res;

	ASSERT_EQ(munmap(self->res, self->res_len), 0);
	EXPECT_EQ(granule_mmap(GRANULE_CONTRACT, hint, GRANULE_SIZE, PROT_RW, 0), hint);
	hint += 4 * GRANULE_SIZE;
	EXPECT_EQ(granule_mmap(GRANULE_DEFAULT, hint, GRANULE_SIZE, PROT_RW, 0), hint);
	hint += 4 * GRANULE_SIZE;
	EXPECT_EQ(granule_mmap(GRANULE_DEFAULT, hint, BASE_SIZE, PROT_RW, 0), hint);
}

/* Assert that an unaligned hint still gives a contract VMA an aligned address. */
TEST_F(page_granule_flags, hint_unaligned)
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
		/* The space around the hint is free: no need to go elsewhere. */
		EXPECT_LE(labs(addr - hint), GRANULE_SIZE)
			TH_LOG("hint %p, got %p", hint, addr);
		ASSERT_EQ(munmap(addr, GRANULE_SIZE), 0);
	}
}

/* Assert that a hint that is taken already is passed over, still aligned. */
TEST_F(page_granule_flags, hint_occupied)
{
	char *addr;

	addr = granule_mmap(GRANULE_CONTRACT, self->res + BASE_SIZE, GRANULE_SIZE,
			    PROT_RW, 0);
	ASSERT_NE(addr, MAP_FAILED);
	EXPECT_TRUE(granule_aligned(addr));
	EXPECT_FALSE(addr >= self->res && addr < self->res + self->res_len);
}

/* Assert that a VMA moved away and back merges with what it was cut from. */
TEST_F(page_granule_flags, mremap_back)
{
	char *left = self->res, *away = self->res + 6 * GRANULE_SIZE;
	enum granule_kind kind;

	for (kind = GRANULE_UNTAGGED; kind <= GRANULE_CONTRACT; kind++) {
		ASSERT_EQ(granule_mmap(kind, left, 2 * GRANULE_SIZE, PROT_RW,
				       MAP_FIXED), left);
		granule_fill(left, 2 * GRANULE_SIZE, kind);
		ASSERT_EQ(sys_mremap(left + GRANULE_SIZE, GRANULE_SIZE, GRANULE_SIZE,
				     MREMAP_MAYMOVE | MREMAP_FIXED, away), away);
		EXPECT_TRUE(vma_is(&self->procmap, left, GRANULE_SIZE));
		ASSERT_EQ(sys_mremap(away, GRANULE_SIZE, GRANULE_SIZE,
				     MREMAP_MAYMOVE | MREMAP_FIXED, left + GRANULE_SIZE),
			  left + GRANULE_SIZE);
		EXPECT_TRUE(vma_is(&self->procmap, left, 2 * GRANULE_SIZE))
			TH_LOG("kind %d", kind);
		EXPECT_TRUE(granule_check(left, 2 * GRANULE_SIZE, kind));
	}
}

/*
 * The contract: a call that would cut a granule of a contract VMA fails with
 * EINVAL, nothing changed; a default-tagged VMA takes it as an untagged one
 * does. Every call is run on an arena like this, from a reservation of
 * PROT_NONE, R64 standing for 64 KiB of it:
 *
 *        before               base                 after          dest
 *	|  R64  |  untagged 64K  |  tagged 8 x 64K  |  untagged 64K  |  R64  | ...
 */
#define ARENA_GRANULES	8
#define ARENA_LEN	(ARENA_GRANULES * GRANULE_SIZE)
#define ARENA_DEST	(ARENA_LEN + 3 * GRANULE_SIZE)
#define ARENA_TOTAL	(ARENA_DEST + ARENA_LEN + 2 * GRANULE_SIZE)
#define ARENA_SEED	0x47

struct arena {
	char *before;
	char *base;
	char *dest;
};

static bool arena_map(struct arena *arena, enum granule_kind kind)
{
	char *res = granule_reserve(ARENA_TOTAL);
	char *end;

	if (!res)
		return false;
	arena->before = res;
	arena->base = res + GRANULE_SIZE;
	arena->dest = res + ARENA_DEST;
	end = arena->base + ARENA_LEN;
	if (granule_mmap(GRANULE_UNTAGGED, arena->before, GRANULE_SIZE, PROT_RW,
			 MAP_FIXED) != arena->before ||
	    granule_mmap(kind, arena->base, ARENA_LEN, PROT_RW,
			 MAP_FIXED) != arena->base ||
	    granule_mmap(GRANULE_UNTAGGED, end, GRANULE_SIZE, PROT_RW,
			 MAP_FIXED) != end)
		return false;
	granule_fill(arena->before, ARENA_LEN + 2 * GRANULE_SIZE, ARENA_SEED);
	return true;
}

/* A call on a range: @arg is its advice, protection or whatever it needs. */
typedef int (*range_call)(struct arena *arena, char *addr, size_t len, int arg);

static int call_munmap(struct arena *arena, char *addr, size_t len, int arg)
{
	return munmap(addr, len) ? -errno : 0;
}

static int call_mprotect(struct arena *arena, char *addr, size_t len, int arg)
{
	return mprotect(addr, len, arg) ? -errno : 0;
}

static int call_pkey_mprotect(struct arena *arena, char *addr, size_t len, int arg)
{
	/* Key -1 is what mprotect() uses, and needs no hardware. */
	return syscall(__NR_pkey_mprotect, addr, len, arg, -1) ? -errno : 0;
}

static int call_madvise(struct arena *arena, char *addr, size_t len, int arg)
{
	return madvise(addr, len, arg) ? -errno : 0;
}

static int call_process_madvise(struct arena *arena, char *addr, size_t len, int arg)
{
	struct iovec iov = { .iov_base = addr, .iov_len = len };
	int pidfd = syscall(__NR_pidfd_open, getpid(), 0);
	int ret = 0;

	if (pidfd < 0)
		return -errno;
	if (syscall(__NR_process_madvise, pidfd, &iov, 1, arg, 0) != (long)len)
		ret = -errno;
	close(pidfd);
	return ret;
}

static int call_map_fixed(struct arena *arena, char *addr, size_t len, int arg)
{
	return map_error(addr, len, PROT_READ, ANON_FLAGS | MAP_FIXED | arg, -1, 0);
}

static int call_mremap_away(struct arena *arena, char *addr, size_t len, int arg)
{
	void *ptr = sys_mremap(addr, len, len, MREMAP_MAYMOVE | MREMAP_FIXED | arg,
			       arena->dest + (addr - arena->before));

	return ptr == MAP_FAILED ? -errno : 0;
}

/* Move an untagged mapping over the range. */
static int call_mremap_onto(struct arena *arena, char *addr, size_t len, int arg)
{
	char *src = granule_mmap(GRANULE_UNTAGGED, NULL, len, PROT_READ, 0);
	int ret = 0;

	if (src == MAP_FAILED)
		return -errno;
	if (sys_mremap(src, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, addr) == MAP_FAILED) {
		ret = -errno;
		munmap(src, len);
	}
	return ret;
}

static int call_mbind(struct arena *arena, char *addr, size_t len, int arg)
{
	unsigned long node0 = 1;
	const int mpol_preferred = 1;

	return syscall(__NR_mbind, addr, len, mpol_preferred, &node0, 8UL, 0UL) ?
	       -errno : 0;
}

/* The range needs a policy before it can be given a home node. */
static int call_home_node(struct arena *arena, char *addr, size_t len, int arg)
{
	unsigned long node0 = 1;
	const int mpol_bind = 2;

	if (syscall(__NR_mbind, arena->before, ARENA_LEN + 2 * GRANULE_SIZE,
		    mpol_bind, &node0, 8UL, 0UL))
		return -errno;
	return syscall(__NR_set_mempolicy_home_node, addr, len, 0UL, 0UL) ?
	       -errno : 0;
}

static int call_mseal(struct arena *arena, char *addr, size_t len, int arg)
{
	return syscall(__NR_mseal, addr, len, 0UL) ? -errno : 0;
}

static int call_anon_name(struct arena *arena, char *addr, size_t len, int arg)
{
	return prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, addr, len, "granule") ?
	       -errno : 0;
}

/* Put a System V segment of the same length over the range. */
static int call_shmat(struct arena *arena, char *addr, size_t len, int arg)
{
	int id = shmget(IPC_PRIVATE, len, IPC_CREAT | 0600);
	int ret = 0;

	if (id < 0)
		return -errno;
	if (shmat(id, addr, SHM_REMAP | SHM_RDONLY) == (void *)-1)
		ret = -errno;
	shmctl(id, IPC_RMID, NULL);
	return ret;
}

static int call_mlock(struct arena *arena, char *addr, size_t len, int arg)
{
	return mlock(addr, len) ? -errno : 0;
}

static int call_mlock2(struct arena *arena, char *addr, size_t len, int arg)
{
	return syscall(__NR_mlock2, addr, len, arg) ? -errno : 0;
}

static int call_munlock(struct arena *arena, char *addr, size_t len, int arg)
{
	return munlock(addr, len) ? -errno : 0;
}

/* The registration lasts as long as the descriptor, so as long as the test. */
static int call_uffd_register(struct arena *arena, char *addr, size_t len, int arg)
{
	struct uffdio_api api = { .api = UFFD_API };
	int fd = syscall(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);

	if (fd < 0)
		return -errno;
	if (ioctl(fd, UFFDIO_API, &api))
		return -errno;
	return uffd_register(fd, addr, len, true, false, false);
}

FIXTURE(page_granule_range)
{
	struct arena arena;
};

FIXTURE_VARIANT(page_granule_range)
{
	range_call call;
	int arg;
	/* What to build the kernel with if the call is not there. */
	const char *config;
	/* EINVAL for a contract VMA even when aligned. */
	bool never_contract;
	/* Over several VMAs the call has an older reason to fail as well. */
	bool one_vma;
};

#define MADVISE(advice, ...) { .call = call_madvise, .arg = advice, __VA_ARGS__ }

FIXTURE_VARIANT_ADD(page_granule_range, munmap)
{
	.call = call_munmap,
};

FIXTURE_VARIANT_ADD(page_granule_range, mprotect)
{
	.call = call_mprotect,
	.arg = PROT_READ,
};

FIXTURE_VARIANT_ADD(page_granule_range, pkey_mprotect)
{
	.call = call_pkey_mprotect,
	.arg = PROT_READ,
};

FIXTURE_VARIANT_ADD(page_granule_range, map_fixed)
{
	.call = call_map_fixed,
};

FIXTURE_VARIANT_ADD(page_granule_range, map_fixed_4kb)
{
	.call = call_map_fixed,
	.arg = MAP_GRANULE_4KB,
};

FIXTURE_VARIANT_ADD(page_granule_range, mremap_away)
{
	.call = call_mremap_away,
	.one_vma = true,
};

FIXTURE_VARIANT_ADD(page_granule_range, mremap_dontunmap)
{
	.call = call_mremap_away,
	.arg = MREMAP_DONTUNMAP,
	.one_vma = true,
};

FIXTURE_VARIANT_ADD(page_granule_range, mremap_onto)
{
	.call = call_mremap_onto,
};

FIXTURE_VARIANT_ADD(page_granule_range, mbind)
{
	.call = call_mbind,
	.config = "NUMA",
};

FIXTURE_VARIANT_ADD(page_granule_range, home_node)
{
	.call = call_home_node,
	.config = "NUMA",
};

FIXTURE_VARIANT_ADD(page_granule_range, mseal)
{
	.call = call_mseal,
	.config = "64BIT",
};

FIXTURE_VARIANT_ADD(page_granule_range, anon_name)
{
	.call = call_anon_name,
	.config = "ANON_VMA_NAME",
};

FIXTURE_VARIANT_ADD(page_granule_range, shmat)
{
	.call = call_shmat,
	.config = "SYSVIPC",
};

FIXTURE_VARIANT_ADD(page_granule_range, uffd_register)
{
	.call = call_uffd_register,
	.config = "USERFAULTFD",
};

FIXTURE_VARIANT_ADD(page_granule_range, mlock)
{
	.call = call_mlock,
};

FIXTURE_VARIANT_ADD(page_granule_range, mlock2)
{
	.call = call_mlock2,
	.arg = MLOCK_ONFAULT,
};

FIXTURE_VARIANT_ADD(page_granule_range, munlock)
{
	.call = call_munlock,
};

FIXTURE_VARIANT_ADD(page_granule_range, process_madvise)
{
	.call = call_process_madvise,
	.arg = MADV_COLD,
};

FIXTURE_VARIANT_ADD(page_granule_range, process_madvise_willneed)
{
	.call = call_process_madvise,
	.arg = MADV_WILLNEED,
};

FIXTURE_VARIANT_ADD(page_granule_range, madv_normal) MADVISE(MADV_NORMAL);
FIXTURE_VARIANT_ADD(page_granule_range, madv_random) MADVISE(MADV_RANDOM);
FIXTURE_VARIANT_ADD(page_granule_range, madv_sequential) MADVISE(MADV_SEQUENTIAL);
FIXTURE_VARIANT_ADD(page_granule_range, madv_willneed) MADVISE(MADV_WILLNEED);
FIXTURE_VARIANT_ADD(page_granule_range, madv_dontneed) MADVISE(MADV_DONTNEED);
FIXTURE_VARIANT_ADD(page_granule_range, madv_dontneed_locked) MADVISE(MADV_DONTNEED_LOCKED);
FIXTURE_VARIANT_ADD(page_granule_range, madv_free) MADVISE(MADV_FREE);
FIXTURE_VARIANT_ADD(page_granule_range, madv_dontfork) MADVISE(MADV_DONTFORK);
FIXTURE_VARIANT_ADD(page_granule_range, madv_dofork) MADVISE(MADV_DOFORK);
FIXTURE_VARIANT_ADD(page_granule_range, madv_dontdump) MADVISE(MADV_DONTDUMP);
FIXTURE_VARIANT_ADD(page_granule_range, madv_dodump) MADVISE(MADV_DODUMP);
FIXTURE_VARIANT_ADD(page_granule_range, madv_wipeonfork) MADVISE(MADV_WIPEONFORK);
FIXTURE_VARIANT_ADD(page_granule_range, madv_keeponfork) MADVISE(MADV_KEEPONFORK);
FIXTURE_VARIANT_ADD(page_granule_range, madv_hugepage) MADVISE(MADV_HUGEPAGE);
FIXTURE_VARIANT_ADD(page_granule_range, madv_nohugepage) MADVISE(MADV_NOHUGEPAGE);
FIXTURE_VARIANT_ADD(page_granule_range, madv_mergeable)
	MADVISE(MADV_MERGEABLE, .config = "KSM", .never_contract = true);
FIXTURE_VARIANT_ADD(page_granule_range, madv_unmergeable)
	MADVISE(MADV_UNMERGEABLE, .config = "KSM");
FIXTURE_VARIANT_ADD(page_granule_range, madv_cold) MADVISE(MADV_COLD);
FIXTURE_VARIANT_ADD(page_granule_range, madv_pageout) MADVISE(MADV_PAGEOUT);
FIXTURE_VARIANT_ADD(page_granule_range, madv_populate_read) MADVISE(MADV_POPULATE_READ);
FIXTURE_VARIANT_ADD(page_granule_range, madv_populate_write) MADVISE(MADV_POPULATE_WRITE);
FIXTURE_VARIANT_ADD(page_granule_range, madv_guard_install) MADVISE(MADV_GUARD_INSTALL);
FIXTURE_VARIANT_ADD(page_granule_range, madv_guard_remove) MADVISE(MADV_GUARD_REMOVE);

/* Run the call on untagged memory first: is it there, and does it work? */
FIXTURE_SETUP(page_granule_range)
{
	struct arena scratch;
	int ret;

	ASSERT_EQ(granule_set_enabled(true), 0);
	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, BASE_SIZE), 0);
	ASSERT_TRUE(arena_map(&scratch, GRANULE_UNTAGGED));
	ret = variant->call(&scratch, scratch.base + GRANULE_SIZE, GRANULE_SIZE,
			    variant->arg);
	if (ret && variant->config)
		SKIP(return, "call not available (%s): build the kernel with CONFIG_%s=y",
		     strerror(-ret), variant->config);
	ASSERT_EQ(ret, 0);
}

FIXTURE_TEARDOWN(page_granule_range)
{
	EXPECT_TRUE(granule_invariants_hold());
}

/* Ranges that cut a granule, in bytes from arena.base. */
static const struct {
	const char *name;
	long offset;
	size_t len;
	bool one_vma;
} misaligned[] = {
	{ "one page inside a granule", 5 * BASE_SIZE, BASE_SIZE, true },
	{ "first page of the VMA", 0, BASE_SIZE, true },
	{ "last page of the VMA", ARENA_LEN - BASE_SIZE, BASE_SIZE, true },
	{ "aligned start, short end", GRANULE_SIZE, GRANULE_SIZE + BASE_SIZE, true },
	{ "all but the first page", BASE_SIZE, ARENA_LEN - BASE_SIZE, true },
	{ "all but the last page", 0, ARENA_LEN - BASE_SIZE, true },
	{ "a granule's length, shifted", BASE_SIZE, GRANULE_SIZE, true },
	{ "from the untagged VMA before", -(long)GRANULE_SIZE,
	  GRANULE_SIZE + BASE_SIZE, false },
	{ "into the untagged VMA after", ARENA_LEN - BASE_SIZE,
	  2 * BASE_SIZE, false },
};

/* Assert that cutting a contract granule is EINVAL and changes nothing. */
TEST_F(page_granule_range, contract_misaligned)
{
	char *before, *after;
	struct arena arena;
	size_t i;
	int ret;

	ASSERT_TRUE(arena_map(&arena, GRANULE_CONTRACT));
	before = granule_smaps_text(arena.before, ARENA_TOTAL);
	for (i = 0; i < ARRAY_SIZE(misaligned); i++) {
		ret = variant->call(&arena, arena.base + misaligned[i].offset,
				    misaligned[i].len, variant->arg);
		if (variant->one_vma && !misaligned[i].one_vma) {
			EXPECT_LT(ret, 0)
				TH_LOG("%s", misaligned[i].name);
		} else {
			EXPECT_EQ(ret, -EINVAL)
				TH_LOG("%s", misaligned[i].name);
		}
		after = granule_smaps_text(arena.before, ARENA_TOTAL);
		ASSERT_TRUE(granule_same_text(before, after))
			TH_LOG("%s", misaligned[i].name);
		free(after);
	}
	ASSERT_TRUE(granule_check(arena.before, ARENA_LEN + 2 * GRANULE_SIZE,
				  ARENA_SEED));
	free(before);
}

/* Assert that the same call on whole contract granules works as on any memory. */
TEST_F(page_granule_range, contract_aligned)
{
	int expected = variant->never_contract ? -EINVAL : 0;
	struct arena arena;

	ASSERT_TRUE(arena_map(&arena, GRANULE_CONTRACT));
	ASSERT_EQ(variant->call(&arena, arena.base + 2 * GRANULE_SIZE, GRANULE_SIZE,
				variant->arg), expected);
	ASSERT_EQ(variant->call(&arena, arena.base + 4 * GRANULE_SIZE,
				2 * GRANULE_SIZE, variant->arg), expected);
	/* The granules beside and between them are as they were. */
	ASSERT_TRUE(granule_check(arena.before, GRANULE_SIZE, ARENA_SEED));
}

/*
 * One character a page: its permissions, or '-' where nothing is mapped. VMA
 * bounds do not show, as where VMAs merge depends on the tag.
 */
static void arena_perms(struct arena *arena, char *perms)
{
	struct procmap_fd procmap;
	size_t i;

	if (open_self_procmap(&procmap))
		ksft_exit_fail_msg("cannot open /proc/self/maps\n");
	for (i = 0; i < ARENA_TOTAL / BASE_SIZE; i++) {
		perms[i] = '-';
		if (find_vma_procmap(&procmap, arena->before + i * BASE_SIZE))
			perms[i] = '0' + (procmap.query.vma_flags & 7);
	}
	perms[i] = '\0';
	close_procmap(&procmap);
}

/* Do both arenas read the same, page by page, unreadable pages included? */
static bool arena_contents_equal(struct arena *one, struct arena *two)
{
	char buf1[BASE_SIZE], buf2[BASE_SIZE];
	ssize_t ret1, ret2;
	bool equal = true;
	size_t i;
	int fd;

	fd = open("/proc/self/mem", O_RDONLY);
	if (fd < 0)
		return false;
	for (i = 0; i < ARENA_TOTAL && equal; i += BASE_SIZE) {
		ret1 = pread(fd, buf1, BASE_SIZE, (off_t)one->before + i);
		ret2 = pread(fd, buf2, BASE_SIZE, (off_t)two->before + i);
		equal = ret1 == ret2 &&
			(ret1 < 0 || !memcmp(buf1, buf2, BASE_SIZE));
		if (!equal)
			ksft_print_msg("contents differ at %#zx of the arena\n", i);
	}
	close(fd);
	return equal;
}

/* Assert that a default-tagged VMA takes every call an untagged one takes. */
TEST_F(page_granule_range, default_like_untagged)
{
	char perms1[ARENA_TOTAL / BASE_SIZE + 1], perms2[ARENA_TOTAL / BASE_SIZE + 1];
	struct arena untagged, tagged;
	size_t i;
	int ret;

	for (i = 0; i < ARRAY_SIZE(misaligned); i++) {
		ASSERT_TRUE(arena_map(&untagged, GRANULE_UNTAGGED));
		ASSERT_TRUE(arena_map(&tagged, GRANULE_DEFAULT));
		/* Where tag boundaries are VMA boundaries, this may matter. */
		if (variant->one_vma && !misaligned[i].one_vma)
			continue;
		ret = variant->call(&untagged, untagged.base + misaligned[i].offset,
				    misaligned[i].len, variant->arg);
		ASSERT_EQ(granule_set(PR_GRANULE_MMAP, GRANULE_SIZE), 0);
		EXPECT_EQ(variant->call(&tagged, tagged.base + misaligned[i].offset,
					misaligned[i].len, variant->arg), ret)
			TH_LOG("%s", misaligned[i].name);
		ASSERT_EQ(granule_set(PR_GRANULE_MMAP, BASE_SIZE), 0);
		arena_perms(&untagged, perms1);
		arena_perms(&tagged, perms2);
		EXPECT_STREQ(perms1, perms2)
			TH_LOG("%s", misaligned[i].name);
		EXPECT_TRUE(arena_contents_equal(&untagged, &tagged))
			TH_LOG("%s", misaligned[i].name);
	}
}

FIXTURE(page_granule_contract)
{
	struct procmap_fd procmap;
	struct arena arena;
};

FIXTURE_SETUP(page_granule_contract)
{
	ASSERT_EQ(granule_set_enabled(true), 0);
	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, BASE_SIZE), 0);
	granule_thp_never();
	ASSERT_EQ(open_self_procmap(&self->procmap), 0);
	ASSERT_TRUE(arena_map(&self->arena, GRANULE_CONTRACT));
}

FIXTURE_TEARDOWN(page_granule_contract)
{
	EXPECT_TRUE(granule_invariants_hold());
	close_procmap(&self->procmap);
}

/* Assert that mremap to a length that is no multiple of 64 KiB is EINVAL. */
TEST_F(page_granule_contract, mremap_new_length)
{
	char *base = self->arena.base;
	char *before, *after;
	size_t i;
	static const size_t lengths[] = {
		1, BASE_SIZE, GRANULE_SIZE / 2, ARENA_LEN - BASE_SIZE,
		ARENA_LEN + BASE_SIZE, 2 * ARENA_LEN + BASE_SIZE,
	};

	before = granule_smaps_text(self->arena.before, ARENA_TOTAL);
	for (i = 0; i < ARRAY_SIZE(lengths); i++) {
		errno = 0;
		EXPECT_EQ(sys_mremap(base, ARENA_LEN, lengths[i], 0, NULL), MAP_FAILED);
		EXPECT_EQ(errno, EINVAL)
			TH_LOG("in place to %#zx", lengths[i]);
		errno = 0;
		EXPECT_EQ(sys_mremap(base, ARENA_LEN, lengths[i], MREMAP_MAYMOVE, NULL),
			  MAP_FAILED);
		EXPECT_EQ(errno, EINVAL)
			TH_LOG("to %#zx", lengths[i]);
		errno = 0;
		EXPECT_EQ(sys_mremap(base, ARENA_LEN, lengths[i],
				     MREMAP_MAYMOVE | MREMAP_FIXED, self->arena.dest),
			  MAP_FAILED);
		EXPECT_EQ(errno, EINVAL)
			TH_LOG("fixed to %#zx", lengths[i]);
	}
	after = granule_smaps_text(self->arena.before, ARENA_TOTAL);
	EXPECT_TRUE(granule_same_text(before, after));
	EXPECT_TRUE(granule_check(base - GRANULE_SIZE, ARENA_LEN + 2 * GRANULE_SIZE,
				  ARENA_SEED));
	free(before);
	free(after);
}

/* Assert that mremap to a fixed address off the granule is EINVAL. */
TEST_F(page_granule_contract, mremap_new_address)
{
	char *before, *after;

	before = granule_smaps_text(self->arena.before, ARENA_TOTAL);
	errno = 0;
	EXPECT_EQ(sys_mremap(self->arena.base, GRANULE_SIZE, GRANULE_SIZE,
			     MREMAP_MAYMOVE | MREMAP_FIXED, self->arena.dest + BASE_SIZE),
		  MAP_FAILED);
	EXPECT_EQ(errno, EINVAL);
	errno = 0;
	EXPECT_EQ(sys_mremap(self->arena.base, GRANULE_SIZE, GRANULE_SIZE,
			     MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP,
			     self->arena.dest + BASE_SIZE), MAP_FAILED);
	EXPECT_EQ(errno, EINVAL);
	after = granule_smaps_text(self->arena.before, ARENA_TOTAL);
	EXPECT_TRUE(granule_same_text(before, after));
	free(before);
	free(after);
}

/* Assert that mremap by whole granules keeps alignment, contents and runs. */
TEST_F(page_granule_contract, mremap_aligned)
{
	char *base = self->arena.base;
	int pagemap = granule_open_pagemap();
	char *new;

	ASSERT_GE(pagemap, 0);
	ASSERT_EQ(granule_count(pagemap, base, ARENA_LEN, GRANULE_WHOLE), ARENA_GRANULES);

	/* Shrink, freeing room to grow again, but only half of what was there. */
	ASSERT_EQ(sys_mremap(base, ARENA_LEN, ARENA_LEN / 2, 0, NULL), base);
	ASSERT_TRUE(vma_is(&self->procmap, base, ARENA_LEN / 2));

	/* Grow where there is no room: the kernel must find an aligned place. */
	new = sys_mremap(base, ARENA_LEN / 2, 4 * ARENA_LEN, MREMAP_MAYMOVE, NULL);
	ASSERT_NE(new, MAP_FAILED);
	ASSERT_NE(new, base);
	EXPECT_TRUE(granule_aligned(new));
	EXPECT_TRUE(vma_has_flag(new, "gc"));
	EXPECT_EQ(granule_count(pagemap, new, ARENA_LEN / 2, GRANULE_WHOLE),
		  ARENA_GRANULES / 2);
	new[4 * ARENA_LEN - 1] = 1;
	EXPECT_EQ(granule_state(pagemap, new + 4 * ARENA_LEN - GRANULE_SIZE), GRANULE_WHOLE);

	/* And back over its old place. */
	ASSERT_EQ(sys_mremap(new, ARENA_LEN / 2, ARENA_LEN / 2,
			     MREMAP_MAYMOVE | MREMAP_FIXED, base), base);
	EXPECT_EQ(granule_count(pagemap, base, ARENA_LEN / 2, GRANULE_WHOLE),
		  ARENA_GRANULES / 2);
	EXPECT_TRUE(granule_check(base - GRANULE_SIZE, GRANULE_SIZE + ARENA_LEN / 2,
				  ARENA_SEED));
}

/* Assert that a move of several VMAs onto a contract VMA cuts none of it. */
TEST_F(page_granule_contract, mremap_many_onto_it)
{
	char *source = granule_reserve(2 * GRANULE_SIZE);
	char *base = self->arena.base, *before, *after;

	ASSERT_NE(source, NULL);
	ASSERT_EQ(granule_mmap(GRANULE_UNTAGGED, source, GRANULE_SIZE, PROT_RW, MAP_FIXED),
		  source);
	ASSERT_EQ(munmap(source + GRANULE_SIZE, GRANULE_SIZE), 0);
	ASSERT_EQ(granule_mmap(GRANULE_UNTAGGED, source + GRANULE_SIZE, BASE_SIZE, PROT_READ,
			       MAP_FIXED), source + GRANULE_SIZE);
	before = granule_smaps_text(base, ARENA_LEN);
	/* The ends are aligned, but the second VMA would replace 4 KiB only. */
	EXPECT_EQ(sys_mremap(source, 2 * GRANULE_SIZE, 2 * GRANULE_SIZE,
			     MREMAP_MAYMOVE | MREMAP_FIXED, base), MAP_FAILED);
	EXPECT_EQ(errno, EINVAL);
	after = granule_smaps_text(base, ARENA_LEN);
	EXPECT_TRUE(granule_same_text(before, after));
	free(before);
	free(after);
}

/*
 * Assert that mlock() and munlock() take whole granules, and that what is locked stays so
 * where munlock() is refused: a secret beside the range must not be swapped out.
 */
TEST_F(page_granule_contract, mlock_whole)
{
	char *base = self->arena.base;
	char *second = base + GRANULE_SIZE;

	ASSERT_EQ(mlock(second, 2 * GRANULE_SIZE), 0);
	EXPECT_TRUE(vma_is(&self->procmap, second, 2 * GRANULE_SIZE));
	EXPECT_TRUE(vma_has_flag(second, "lo"));
	EXPECT_FALSE(vma_has_flag(base, "lo"));
	EXPECT_FALSE(vma_has_flag(second + 2 * GRANULE_SIZE, "lo"));

	errno = 0;
	EXPECT_EQ(munlock(second + 3 * BASE_SIZE, 1), -1);
	EXPECT_EQ(errno, EINVAL);
	errno = 0;
	EXPECT_EQ(munlock(second, GRANULE_SIZE + BASE_SIZE), -1);
	EXPECT_EQ(errno, EINVAL);
	EXPECT_TRUE(vma_is(&self->procmap, second, 2 * GRANULE_SIZE));
	EXPECT_TRUE(vma_has_flag(second, "lo"));

	ASSERT_EQ(munlock(second, GRANULE_SIZE), 0);
	EXPECT_FALSE(vma_has_flag(second, "lo"));
	EXPECT_TRUE(vma_has_flag(second + GRANULE_SIZE, "lo"));
	ASSERT_EQ(munlock(second + GRANULE_SIZE, GRANULE_SIZE), 0);
	EXPECT_TRUE(vma_is(&self->procmap, base, ARENA_LEN));
	EXPECT_TRUE(granule_check(base - GRANULE_SIZE, GRANULE_SIZE + ARENA_LEN,
				  ARENA_SEED));
}

/* Assert that msync and mincore, which change nothing, stay as they are. */
TEST_F(page_granule_contract, msync_mincore_unchanged)
{
	unsigned char vec[2 * GRANULE_NR_PAGES] = { 0 };
	char *base = self->arena.base;
	int i;

	EXPECT_EQ(msync(base + BASE_SIZE, 3 * BASE_SIZE, MS_SYNC), 0);
	ASSERT_EQ(mincore(base + BASE_SIZE, 17 * BASE_SIZE, vec), 0);
	for (i = 0; i < 17; i++)
		EXPECT_EQ(vec[i] & 1, 1);
	EXPECT_EQ(vec[17], 0);
}

/* Assert that MADV_COLLAPSE is held to whole granules, and gives whole ones. */
TEST_F(page_granule_contract, madv_collapse)
{
	size_t len = 3 * HPAGE_SIZE;
	int pagemap = granule_open_pagemap();
	char *res, *plain, *area;

	ASSERT_GE(pagemap, 0);
	res = granule_reserve(2 * len + HPAGE_SIZE);
	ASSERT_NE(res, NULL);
	plain = (char *)(((unsigned long)res + HPAGE_SIZE - 1) & -(unsigned long)HPAGE_SIZE);
	ASSERT_EQ(granule_mmap(GRANULE_UNTAGGED, plain, len, PROT_RW, MAP_FIXED), plain);
	area = plain + len;
	ASSERT_EQ(granule_mmap(GRANULE_CONTRACT, area, len, PROT_RW, MAP_FIXED), area);
	granule_fill(plain, len, 1);
	granule_fill(area, len, 2);

	if (madvise(plain + BASE_SIZE, len - BASE_SIZE, MADV_COLLAPSE))
		SKIP(return, "MADV_COLLAPSE fails (%s): free some memory",
		     strerror(errno));
	errno = 0;
	EXPECT_EQ(madvise(area + BASE_SIZE, len - BASE_SIZE, MADV_COLLAPSE), -1);
	EXPECT_EQ(errno, EINVAL);
	errno = 0;
	EXPECT_EQ(madvise(area, len - BASE_SIZE, MADV_COLLAPSE), -1);
	EXPECT_EQ(errno, EINVAL);
	EXPECT_EQ(madvise(area, len, MADV_COLLAPSE), 0);
	EXPECT_EQ(granule_count(pagemap, area, len, GRANULE_WHOLE), len / GRANULE_SIZE);
	EXPECT_TRUE(granule_check(area, len, 2));
	EXPECT_TRUE(granule_check(plain, len, 1));
}

/* Assert that mbind sets no policy at all on a range that cuts a granule. */
TEST_F(page_granule_contract, mbind_sets_nothing)
{
	const int mpol_default = 0, mpol_preferred = 1, mpol_f_addr = 2;
	unsigned long node0 = 1;
	int policy = -1;

	if (syscall(__NR_mbind, self->arena.before, GRANULE_SIZE + BASE_SIZE,
		    mpol_preferred, &node0, 8UL, 0UL) < 0 && errno != EINVAL)
		SKIP(return, "no mbind: build the kernel with CONFIG_NUMA=y");
	ASSERT_EQ(syscall(__NR_get_mempolicy, &policy, NULL, 0UL, self->arena.before,
			  (unsigned long)mpol_f_addr), 0);
	EXPECT_EQ(policy, mpol_default);

	/* It would have been seen: whole granules, and the policy is there. */
	ASSERT_EQ(syscall(__NR_mbind, self->arena.before, 2 * GRANULE_SIZE,
			  mpol_preferred, &node0, 8UL, 0UL), 0);
	ASSERT_EQ(syscall(__NR_get_mempolicy, &policy, NULL, 0UL, self->arena.before,
			  (unsigned long)mpol_f_addr), 0);
	EXPECT_EQ(policy, mpol_preferred);
}

/* Assert that unregistering part of a granule from userfaultfd is EINVAL. */
TEST_F(page_granule_contract, uffd_unregister)
{
	struct uffdio_api api = { .api = UFFD_API };
	char *base = self->arena.base;
	int uffd;

	uffd = syscall(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api))
		SKIP(return, "no userfaultfd: build the kernel with CONFIG_USERFAULTFD=y");
	ASSERT_EQ(uffd_register(uffd, base, ARENA_LEN, true, false, false), 0);
	EXPECT_EQ(uffd_unregister(uffd, base, BASE_SIZE), -EINVAL);
	EXPECT_EQ(uffd_unregister(uffd, base + BASE_SIZE, GRANULE_SIZE), -EINVAL);
	EXPECT_TRUE(vma_is(&self->procmap, base, ARENA_LEN));
	EXPECT_EQ(uffd_unregister(uffd, base, GRANULE_SIZE), 0);
	EXPECT_TRUE(vma_is(&self->procmap, base, GRANULE_SIZE));
	close(uffd);
}

/* Assert that KSM for the whole process leaves contract VMAs out. */
TEST_F(page_granule_contract, not_mergeable_by_process)
{
	int old = prctl(PR_GET_MEMORY_MERGE, 0, 0, 0, 0);
	char *new;

	if (old < 0 || prctl(PR_SET_MEMORY_MERGE, 1, 0, 0, 0))
		SKIP(return, "no PR_SET_MEMORY_MERGE: build the kernel with CONFIG_KSM=y");
	new = granule_mmap(GRANULE_CONTRACT, self->arena.dest, GRANULE_SIZE, PROT_RW,
			   MAP_FIXED);
	EXPECT_EQ(new, self->arena.dest);
	EXPECT_FALSE(vma_has_flag(new, "mg"));
	EXPECT_FALSE(vma_has_flag(self->arena.base, "mg"));
	prctl(PR_SET_MEMORY_MERGE, 0, 0, 0, 0);
}

FIXTURE(page_granule_merge)
{
	struct procmap_fd procmap;
	char *res;
};

FIXTURE_VARIANT(page_granule_merge)
{
	enum granule_kind left;
	enum granule_kind right;
};

FIXTURE_VARIANT_ADD(page_granule_merge, untagged_untagged)
{
	.left = GRANULE_UNTAGGED,
	.right = GRANULE_UNTAGGED,
};

FIXTURE_VARIANT_ADD(page_granule_merge, untagged_default)
{
	.left = GRANULE_UNTAGGED,
	.right = GRANULE_DEFAULT,
};

FIXTURE_VARIANT_ADD(page_granule_merge, untagged_contract)
{
	.left = GRANULE_UNTAGGED,
	.right = GRANULE_CONTRACT,
};

FIXTURE_VARIANT_ADD(page_granule_merge, default_untagged)
{
	.left = GRANULE_DEFAULT,
	.right = GRANULE_UNTAGGED,
};

FIXTURE_VARIANT_ADD(page_granule_merge, default_default)
{
	.left = GRANULE_DEFAULT,
	.right = GRANULE_DEFAULT,
};

FIXTURE_VARIANT_ADD(page_granule_merge, default_contract)
{
	.left = GRANULE_DEFAULT,
	.right = GRANULE_CONTRACT,
};

FIXTURE_VARIANT_ADD(page_granule_merge, contract_untagged)
{
	.left = GRANULE_CONTRACT,
	.right = GRANULE_UNTAGGED,
};

FIXTURE_VARIANT_ADD(page_granule_merge, contract_default)
{
	.left = GRANULE_CONTRACT,
	.right = GRANULE_DEFAULT,
};

FIXTURE_VARIANT_ADD(page_granule_merge, contract_contract)
{
	.left = GRANULE_CONTRACT,
	.right = GRANULE_CONTRACT,
};

FIXTURE_SETUP(page_granule_merge)
{
	ASSERT_EQ(granule_set_enabled(true), 0);
	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, BASE_SIZE), 0);
	ASSERT_EQ(open_self_procmap(&self->procmap), 0);
	self->res = granule_reserve(8 * GRANULE_SIZE);
	ASSERT_NE(self->res, NULL);
}

FIXTURE_TEARDOWN(page_granule_merge)
{
	EXPECT_TRUE(granule_invariants_hold());
	close_procmap(&self->procmap);
}

static char *map_pages(enum granule_kind kind, char *addr)
{
	return granule_mmap(kind, addr, 2 * GRANULE_SIZE, PROT_RW, MAP_FIXED);
}

/* Assert that neighbours merge when, and only when, their bits agree. */
TEST_F(page_granule_merge, neighbours)
{
	size_t len = variant->left == variant->right ? 4 * GRANULE_SIZE : 2 * GRANULE_SIZE;
	char *left = self->res, *right = self->res + 2 * GRANULE_SIZE;

	ASSERT_EQ(map_pages(variant->left, left), left);
	ASSERT_EQ(map_pages(variant->right, right), right);
	EXPECT_TRUE(vma_is(&self->procmap, left, len));

	/* The same, the other way round, and populated. */
	ASSERT_EQ(munmap(left, 2 * GRANULE_SIZE), 0);
	*right = 1;
	ASSERT_EQ(map_pages(variant->left, left), left);
	EXPECT_TRUE(vma_is(&self->procmap, left, len));
}

/* Assert that a mapping that fills the hole between two merges all three. */
TEST_F(page_granule_merge, hole)
{
	bool same = variant->left == variant->right;
	char *left = self->res;

	ASSERT_EQ(map_pages(variant->left, left), left);
	ASSERT_EQ(map_pages(variant->left, left + 4 * GRANULE_SIZE), left + 4 * GRANULE_SIZE);
	EXPECT_TRUE(vma_is(&self->procmap, left, 2 * GRANULE_SIZE));
	ASSERT_EQ(map_pages(variant->right, left + 2 * GRANULE_SIZE), left + 2 * GRANULE_SIZE);
	EXPECT_TRUE(vma_is(&self->procmap, left, (same ? 6 : 2) * GRANULE_SIZE));
}

/* Assert that mprotect there and back leaves one VMA, its bits unchanged. */
TEST_F(page_granule_merge, mprotect_there_and_back)
{
	char *left = self->res, *right = self->res + 2 * GRANULE_SIZE;
	size_t len = variant->left == variant->right ? 4 * GRANULE_SIZE : 2 * GRANULE_SIZE;
	struct granule_smaps before, after;

	ASSERT_EQ(map_pages(variant->left, left), left);
	ASSERT_EQ(map_pages(variant->right, right), right);
	granule_fill(left, 4 * GRANULE_SIZE, 1);
	ASSERT_TRUE(granule_read_smaps(getpid(), left, &before));
	ASSERT_EQ(mprotect(left + GRANULE_SIZE, GRANULE_SIZE, PROT_READ), 0);
	EXPECT_TRUE(vma_is(&self->procmap, left, GRANULE_SIZE));
	EXPECT_TRUE(vma_is(&self->procmap, left + GRANULE_SIZE, GRANULE_SIZE));
	ASSERT_EQ(mprotect(left + GRANULE_SIZE, GRANULE_SIZE, PROT_RW), 0);
	EXPECT_TRUE(vma_is(&self->procmap, left, len));
	ASSERT_TRUE(granule_read_smaps(getpid(), left, &after));
	EXPECT_STREQ(before.vmflags, after.vmflags);
	EXPECT_EQ(before.granule_mapped, after.granule_mapped);
	EXPECT_TRUE(granule_check(left, 4 * GRANULE_SIZE, 1));
}

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], "--placement"))
		return placement_main(argv);
	granule_require();
	granule_save_settings();
	return test_harness_run(argc, argv);
}
