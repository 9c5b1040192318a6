// SPDX-License-Identifier: GPL-2.0
/*
 * Page granule: system calls that do more than act on a range of one mapping.
 * mremap, mlock, fork with advice, and calls that concern several VMAs.
 *
 * page_granule_calls.c has a table of the calls that act on a range.
 */
#define _GNU_SOURCE
#include "kselftest_harness.h"
#include <asm-generic/mman.h> /* Force the import of the tools version. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "vm_util.h"
#include "page_granule_util.h"

/*
 * The contract: an mremap() that would cut a granule of a contract VMA fails
 * with EINVAL, and nothing is changed. It is tried on a plot like this, from a
 * reservation of PROT_NONE, R64 standing for 64 KiB of it:
 *
 *        before               base                 after          dest
 *	|  R64  |  untagged 64K  |  tagged 8 x 64K  |  untagged 64K  |  R64  | ...
 */
#define PLOT_GRANULES	8
#define PLOT_LEN	(PLOT_GRANULES * GRANULE_SIZE)
#define PLOT_DEST	(PLOT_LEN + 3 * GRANULE_SIZE)
#define PLOT_TOTAL	(PLOT_DEST + PLOT_LEN + 2 * GRANULE_SIZE)
#define PLOT_SEED	0x47

struct plot {
	char *before;
	char *base;
	char *dest;
};

static bool plot_map(struct plot *plot, enum granule_kind kind)
{
	char *res = granule_reserve(PLOT_TOTAL);
	char *end;

	if (!res)
		return false;
	plot->before = res;
	plot->base = res + GRANULE_SIZE;
	plot->dest = res + PLOT_DEST;
	end = plot->base + PLOT_LEN;
	if (granule_mmap(GRANULE_UNTAGGED, plot->before, GRANULE_SIZE, PROT_RW,
			 MAP_FIXED) != plot->before ||
	    granule_mmap(kind, plot->base, PLOT_LEN, PROT_RW,
			 MAP_FIXED) != plot->base ||
	    granule_mmap(GRANULE_UNTAGGED, end, GRANULE_SIZE, PROT_RW,
			 MAP_FIXED) != end)
		return false;
	granule_fill(plot->before, PLOT_LEN + 2 * GRANULE_SIZE, PLOT_SEED);
	return true;
}

FIXTURE(page_granule_memory_contract)
{
	struct plot plot;
};

FIXTURE_SETUP(page_granule_memory_contract)
{
	ASSERT_EQ(granule_set_enabled(true), 0);
	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, BASE_SIZE), 0);
	granule_thp_never();
	ASSERT_TRUE(plot_map(&self->plot, GRANULE_CONTRACT));
}

FIXTURE_TEARDOWN(page_granule_memory_contract)
{
	EXPECT_TRUE(granule_invariants_hold());
}

/* Assert that mremap to a length that is no multiple of 64 KiB is EINVAL. */
TEST_F(page_granule_memory_contract, mremap_new_length)
{
	char *base = self->plot.base;
	char *before, *after;
	size_t i;
	static const size_t lengths[] = {
		1, BASE_SIZE, GRANULE_SIZE / 2, PLOT_LEN - BASE_SIZE,
		PLOT_LEN + BASE_SIZE, 2 * PLOT_LEN + BASE_SIZE,
	};

	before = granule_smaps_text(self->plot.before, PLOT_TOTAL);
	for (i = 0; i < ARRAY_SIZE(lengths); i++) {
		errno = 0;
		EXPECT_EQ(sys_mremap(base, PLOT_LEN, lengths[i], 0, NULL), MAP_FAILED);
		EXPECT_EQ(errno, EINVAL)
			TH_LOG("in place to %#zx", lengths[i]);
		errno = 0;
		EXPECT_EQ(sys_mremap(base, PLOT_LEN, lengths[i], MREMAP_MAYMOVE, NULL),
			  MAP_FAILED);
		EXPECT_EQ(errno, EINVAL)
			TH_LOG("to %#zx", lengths[i]);
		errno = 0;
		EXPECT_EQ(sys_mremap(base, PLOT_LEN, lengths[i],
				     MREMAP_MAYMOVE | MREMAP_FIXED, self->plot.dest),
			  MAP_FAILED);
		EXPECT_EQ(errno, EINVAL)
			TH_LOG("fixed to %#zx", lengths[i]);
	}
	after = granule_smaps_text(self->plot.before, PLOT_TOTAL);
	EXPECT_TRUE(granule_same_text(before, after));
	EXPECT_TRUE(granule_check(base - GRANULE_SIZE, PLOT_LEN + 2 * GRANULE_SIZE,
				  PLOT_SEED));
	free(before);
	free(after);
}

/* Assert that mremap to a fixed address off the granule is EINVAL. */
TEST_F(page_granule_memory_contract, mremap_new_address)
{
	char *before, *after;

	before = granule_smaps_text(self->plot.before, PLOT_TOTAL);
	errno = 0;
	EXPECT_EQ(sys_mremap(self->plot.base, GRANULE_SIZE, GRANULE_SIZE,
			     MREMAP_MAYMOVE | MREMAP_FIXED, self->plot.dest + BASE_SIZE),
		  MAP_FAILED);
	EXPECT_EQ(errno, EINVAL);
	errno = 0;
	EXPECT_EQ(sys_mremap(self->plot.base, GRANULE_SIZE, GRANULE_SIZE,
			     MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP,
			     self->plot.dest + BASE_SIZE), MAP_FAILED);
	EXPECT_EQ(errno, EINVAL);
	after = granule_smaps_text(self->plot.before, PLOT_TOTAL);
	EXPECT_TRUE(granule_same_text(before, after));
	free(before);
	free(after);
}

/* Assert that mremap by whole granules keeps alignment, contents and runs. */
TEST_F(page_granule_memory_contract, mremap_aligned)
{
	char *base = self->plot.base;
	int pagemap = granule_open_pagemap();
	char *new;

	ASSERT_GE(pagemap, 0);
	ASSERT_EQ(granule_count(pagemap, base, PLOT_LEN, GRANULE_WHOLE), PLOT_GRANULES);

	/* Shrink to free room to grow again, but only half of it. */
	ASSERT_EQ(sys_mremap(base, PLOT_LEN, PLOT_LEN / 2, 0, NULL), base);
	ASSERT_TRUE(granule_vma_is(base, PLOT_LEN / 2));

	/*
	 * Grow where there is no room: the kernel must find an aligned place.
	 */
	new = sys_mremap(base, PLOT_LEN / 2, 4 * PLOT_LEN, MREMAP_MAYMOVE, NULL);
	ASSERT_NE(new, MAP_FAILED);
	ASSERT_NE(new, base);
	EXPECT_TRUE(granule_aligned(new));
	EXPECT_TRUE(granule_vma_has_flag(new, "gc"));
	EXPECT_EQ(granule_count(pagemap, new, PLOT_LEN / 2, GRANULE_WHOLE),
		  PLOT_GRANULES / 2);
	new[4 * PLOT_LEN - 1] = 1;
	EXPECT_EQ(granule_state(pagemap, new + 4 * PLOT_LEN - GRANULE_SIZE), GRANULE_WHOLE);

	/* And back over its old place. */
	ASSERT_EQ(sys_mremap(new, PLOT_LEN / 2, PLOT_LEN / 2,
			     MREMAP_MAYMOVE | MREMAP_FIXED, base), base);
	EXPECT_EQ(granule_count(pagemap, base, PLOT_LEN / 2, GRANULE_WHOLE),
		  PLOT_GRANULES / 2);
	EXPECT_TRUE(granule_check(base - GRANULE_SIZE, GRANULE_SIZE + PLOT_LEN / 2,
				  PLOT_SEED));
}

/* Assert that moving several VMAs onto a contract VMA cuts no granule of it. */
TEST_F(page_granule_memory_contract, mremap_many_onto_it)
{
	char *source = granule_reserve(2 * GRANULE_SIZE);
	char *base = self->plot.base, *before, *after;

	ASSERT_NE(source, NULL);
	ASSERT_EQ(granule_mmap(GRANULE_UNTAGGED, source, GRANULE_SIZE, PROT_RW, MAP_FIXED),
		  source);
	ASSERT_EQ(munmap(source + GRANULE_SIZE, GRANULE_SIZE), 0);
	ASSERT_EQ(granule_mmap(GRANULE_UNTAGGED, source + GRANULE_SIZE, BASE_SIZE, PROT_READ,
			       MAP_FIXED), source + GRANULE_SIZE);
	before = granule_smaps_text(base, PLOT_LEN);
	/* The ends are aligned, but the second VMA would replace 4 KiB only. */
	EXPECT_EQ(sys_mremap(source, 2 * GRANULE_SIZE, 2 * GRANULE_SIZE,
			     MREMAP_MAYMOVE | MREMAP_FIXED, base), MAP_FAILED);
	EXPECT_EQ(errno, EINVAL);
	after = granule_smaps_text(base, PLOT_LEN);
	EXPECT_TRUE(granule_same_text(before, after));
	free(before);
	free(after);
}

#define UID_NOBODY		65534

FIXTURE(page_granule_memory)
{
	int pagemap;
	char *res;
};

FIXTURE_VARIANT(page_granule_memory)
{
	enum granule_kind kind;
	bool shared;
};

FIXTURE_VARIANT_ADD(page_granule_memory, contract_private)
{
	.kind = GRANULE_CONTRACT,
	.shared = false,
};

FIXTURE_VARIANT_ADD(page_granule_memory, contract_shared)
{
	.kind = GRANULE_CONTRACT,
	.shared = true,
};

FIXTURE_VARIANT_ADD(page_granule_memory, default_private)
{
	.kind = GRANULE_DEFAULT,
	.shared = false,
};

FIXTURE_VARIANT_ADD(page_granule_memory, default_shared)
{
	.kind = GRANULE_DEFAULT,
	.shared = true,
};

FIXTURE_SETUP(page_granule_memory)
{
	ASSERT_EQ(granule_set_enabled(true), 0);
	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, BASE_SIZE), 0);
	granule_thp_never();
	self->pagemap = granule_open_pagemap();
	ASSERT_GE(self->pagemap, 0);
	self->res = granule_reserve(RES_LEN);
	ASSERT_NE(self->res, NULL);
}

FIXTURE_TEARDOWN(page_granule_memory)
{
	EXPECT_TRUE(granule_invariants_hold());
	close(self->pagemap);
}

/*
 * Put some pages where the next mapping would go, so that it is not aligned
 * there.
 */
static bool shift_next_mapping(unsigned int nr)
{
	return mmap(NULL, (nr % 15 + 1) * BASE_SIZE, PROT_EXEC, ANON_FLAGS | MAP_GRANULE_4KB,
		    -1, 0) != MAP_FAILED;
}

/*
 * Assert that mremap moves memory to a congruent address, and its runs with it.
 */
TEST_F(page_granule_memory, mremap_congruent)
{
	static const int flags[] = { MREMAP_MAYMOVE, MREMAP_MAYMOVE | MREMAP_DONTUNMAP };
	size_t len = 4 * GRANULE_SIZE, new_len;
	unsigned int i, offset;
	unsigned long whole;

	for (i = 0; i < ARRAY_SIZE(flags); i++) {
		/*
		 * Neither a contract VMA nor tagged shared memory begins
		 * elsewhere.
		 */
		for (offset = 0; offset < GRANULE_NR_PAGES; offset += 5) {
			char *addr = self->res + GRANULE_SIZE + offset * BASE_SIZE;
			char *new;

			if (offset && (variant->kind == GRANULE_CONTRACT || variant->shared))
				break;
			ASSERT_TRUE(shift_next_mapping(i + offset));
			ASSERT_EQ(granule_map(variant->kind, variant->shared, addr, len,
					      MAP_FIXED), addr);
			granule_fill(addr, len, SEED);
			whole = granule_count(self->pagemap, addr, len, GRANULE_WHOLE);
			EXPECT_EQ(whole, offset ? 3 : 4);
			/* The reservation does not let it grow in place. */
			new_len = flags[i] & MREMAP_DONTUNMAP ? len : 4 * len;
			new = sys_mremap(addr, len, new_len, flags[i], NULL);
			ASSERT_NE(new, MAP_FAILED);
			EXPECT_NE(new, addr);
			EXPECT_EQ((new - addr) % (long)GRANULE_SIZE, 0)
				TH_LOG("%p to %p", addr, new);
			EXPECT_TRUE(granule_check(new, len, SEED));
			EXPECT_EQ(granule_count(self->pagemap, new, len, GRANULE_WHOLE), whole);
			EXPECT_EQ(granule_kind_of(new), variant->kind);
			ASSERT_EQ(munmap(new, new_len), 0);
		}
	}
}

/*
 * Assert that mremap grows memory in place, by granules or by pages as its kind
 * allows.
 */
TEST_F(page_granule_memory, mremap_grow_in_place)
{
	size_t step = variant->kind == GRANULE_CONTRACT ? GRANULE_SIZE : BASE_SIZE;
	size_t start = 2 * GRANULE_SIZE, room = 6 * GRANULE_SIZE, len;
	char *addr = self->res + GRANULE_SIZE, *before, *after;

	ASSERT_EQ(granule_map(variant->kind, variant->shared, addr, start, MAP_FIXED), addr);
	granule_fill(addr, start, SEED);
	ASSERT_EQ(munmap(addr + start, room - start), 0);
	if (variant->kind == GRANULE_CONTRACT) {
		before = granule_smaps_text(addr, room);
		errno = 0;
		EXPECT_EQ(sys_mremap(addr, start, start + BASE_SIZE, 0, NULL), MAP_FAILED);
		EXPECT_EQ(errno, EINVAL);
		after = granule_smaps_text(addr, room);
		EXPECT_TRUE(granule_same_text(before, after));
		free(before);
		free(after);
	}

	for (len = start; len + step <= room; len += step) {
		ASSERT_EQ(sys_mremap(addr, len, len + step, 0, NULL), addr);
		EXPECT_TRUE(granule_vma_is(addr, len + step));
		/* A shared memory object does not grow with its mapping. */
		if (variant->shared)
			continue;
		EXPECT_TRUE(granule_is_filled(addr + len, step, 0));
		addr[len] = len >> 12;
	}
	EXPECT_EQ(granule_kind_of(addr), variant->kind);
	EXPECT_TRUE(granule_check(addr, start, SEED));
	for (len = start; !variant->shared && len < room; len += step)
		EXPECT_EQ(addr[len], (char)(len >> 12));
	EXPECT_EQ(granule_count(self->pagemap, addr, start, GRANULE_WHOLE), 2);
}

/* Assert that MREMAP_DONTUNMAP leaves an empty VMA of the same kind behind. */
TEST_F(page_granule_memory, mremap_dontunmap)
{
	char *addr = self->res + GRANULE_SIZE, *new;
	size_t len = 3 * GRANULE_SIZE;

	ASSERT_EQ(granule_map(variant->kind, variant->shared, addr, len, MAP_FIXED), addr);
	granule_fill(addr, len, SEED);
	new = sys_mremap(addr, len, len, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL);
	ASSERT_NE(new, MAP_FAILED);
	EXPECT_TRUE(granule_vma_is(addr, len));
	EXPECT_EQ(granule_kind_of(addr), variant->kind);
	EXPECT_EQ(granule_kind_of(new), variant->kind);
	EXPECT_EQ(granule_count(self->pagemap, addr, len, GRANULE_EMPTY), 3);
	EXPECT_TRUE(granule_check(new, len, SEED));
	/* Shared memory is in the object, and so at both addresses. */
	EXPECT_EQ(granule_check(addr, len, SEED), variant->shared);
	EXPECT_EQ(granule_is_filled(addr, len, 0), !variant->shared);
	addr[5 * BASE_SIZE] = 1;
	EXPECT_EQ(granule_state(self->pagemap, addr), GRANULE_WHOLE);
	if (!variant->shared)
		EXPECT_TRUE(granule_check(new, len, SEED));
}

/*
 * Assert that mremap moves several VMAs at once to a place where their granules
 * fit.
 */
TEST_F(page_granule_memory, mremap_several)
{
	char *addr = self->res + GRANULE_SIZE, *dest = self->res + 16 * GRANULE_SIZE;
	size_t len = 6 * GRANULE_SIZE;
	int moves = MREMAP_MAYMOVE | MREMAP_FIXED;
	char *before, *after;

	ASSERT_EQ(granule_map(variant->kind, variant->shared, addr, 4 * GRANULE_SIZE,
			      MAP_FIXED), addr);
	ASSERT_EQ(granule_mmap(GRANULE_UNTAGGED, addr + 4 * GRANULE_SIZE, 2 * GRANULE_SIZE,
			       PROT_RW, MAP_FIXED), addr + 4 * GRANULE_SIZE);
	granule_fill(addr, len, SEED);
	ASSERT_EQ(mprotect(addr + 2 * GRANULE_SIZE, 2 * GRANULE_SIZE, PROT_READ), 0);
	ASSERT_EQ(munmap(addr + 5 * GRANULE_SIZE, GRANULE_SIZE), 0);

	if (variant->kind == GRANULE_CONTRACT) {
		before = granule_smaps_text(self->res, RES_LEN);
		errno = 0;
		/*
		 * The granules would not be aligned there; of the last VMA they
		 * are.
		 */
		EXPECT_EQ(sys_mremap(addr, len, len, moves, dest + BASE_SIZE), MAP_FAILED);
		EXPECT_EQ(errno, EINVAL);
		errno = 0;
		EXPECT_EQ(sys_mremap(addr + BASE_SIZE, len - BASE_SIZE, len - BASE_SIZE, moves,
				     dest + BASE_SIZE), MAP_FAILED);
		EXPECT_EQ(errno, EINVAL);
		after = granule_smaps_text(self->res, RES_LEN);
		EXPECT_TRUE(granule_same_text(before, after));
		free(before);
		free(after);
	} else {
		dest += BASE_SIZE;
	}

	ASSERT_EQ(sys_mremap(addr, len, len, moves, dest), dest);
	EXPECT_TRUE(granule_check(dest, 5 * GRANULE_SIZE, SEED));
	EXPECT_TRUE(granule_vma_is(dest, 2 * GRANULE_SIZE));
	EXPECT_TRUE(granule_vma_is(dest + 2 * GRANULE_SIZE, 2 * GRANULE_SIZE));
	EXPECT_FALSE(granule_vma_has_flag(dest + 2 * GRANULE_SIZE, "wr"));
	EXPECT_EQ(granule_kind_of(dest), variant->kind);
	EXPECT_EQ(granule_kind_of(dest + 2 * GRANULE_SIZE), variant->kind);
	EXPECT_EQ(granule_kind_of(dest + 4 * GRANULE_SIZE), GRANULE_UNTAGGED);
	if (variant->kind == GRANULE_CONTRACT)
		EXPECT_EQ(granule_count(self->pagemap, dest, 4 * GRANULE_SIZE, GRANULE_WHOLE), 4);
}

/*
 * Assert that VmLck counts what mlock has locked: whole granules of a contract,
 * or pages. A refused call neither locks nor unlocks anything.
 */
TEST_F(page_granule_memory, mlock_counted)
{
	const size_t unit = granule_mapped_len(variant->kind, BASE_SIZE);
	char *addr = self->res, *second = addr + GRANULE_SIZE, *page = second;
	long kb = unit / 1024, locked;

	if (variant->kind != GRANULE_CONTRACT)
		page += 5 * BASE_SIZE;
	ASSERT_EQ(granule_map(variant->kind, variant->shared, addr, 4 * GRANULE_SIZE,
			      MAP_FIXED), addr);
	locked = granule_status_kb(getpid(), "VmLck:");
	if (variant->kind == GRANULE_CONTRACT) {
		errno = 0;
		EXPECT_EQ(mlock(page_at(addr, 3), BASE_SIZE), -1);
		EXPECT_EQ(errno, EINVAL);
		errno = 0;
		EXPECT_EQ(mlock2(page_at(addr, 16), BASE_SIZE, MLOCK_ONFAULT), -1);
		EXPECT_EQ(errno, EINVAL);
		EXPECT_EQ(granule_status_kb(getpid(), "VmLck:"), locked);
	}
	/* Bytes are rounded to base pages, as they always were. */
	ASSERT_EQ(mlock(page + 100, unit - 101), 0);
	EXPECT_EQ(granule_status_kb(getpid(), "VmLck:") - locked, kb);
	/* Once more, and in the granule before, without populating that. */
	ASSERT_EQ(mlock(page, unit), 0);
	ASSERT_EQ(mlock2(addr + 100, unit - 101, MLOCK_ONFAULT), 0);
	EXPECT_EQ(granule_status_kb(getpid(), "VmLck:") - locked, 2 * kb);
	/* A secret beside the range must not be swapped out. */
	if (variant->kind == GRANULE_CONTRACT) {
		errno = 0;
		EXPECT_EQ(munlock(page_at(second, 5), BASE_SIZE), -1);
		EXPECT_EQ(errno, EINVAL);
		errno = 0;
		EXPECT_EQ(munlock(second, GRANULE_SIZE + BASE_SIZE), -1);
		EXPECT_EQ(errno, EINVAL);
		EXPECT_EQ(granule_status_kb(getpid(), "VmLck:") - locked, 2 * kb);
	}
	/* A VMA of one page has no granule to populate. */
	EXPECT_EQ(granule_filled(self->pagemap, addr), 0);
	EXPECT_EQ(granule_filled(self->pagemap, second), kb / 4);
	EXPECT_EQ(granule_filled(self->pagemap, second + GRANULE_SIZE), 0);
	ASSERT_EQ(munlock(page + 100, unit - 101), 0);
	EXPECT_EQ(granule_status_kb(getpid(), "VmLck:") - locked, kb);
	ASSERT_EQ(munlock(addr, unit), 0);
	EXPECT_EQ(granule_status_kb(getpid(), "VmLck:"), locked);
	EXPECT_TRUE(granule_vma_is(addr, 4 * GRANULE_SIZE));

	/* A part of what was locked by one call. */
	ASSERT_EQ(mlock(page, 2 * unit), 0);
	EXPECT_EQ(granule_status_kb(getpid(), "VmLck:") - locked, 2 * kb);
	ASSERT_EQ(munlock(page, unit), 0);
	EXPECT_EQ(granule_status_kb(getpid(), "VmLck:") - locked, kb);
	EXPECT_FALSE(granule_vma_has_flag(page, "lo"));
	EXPECT_TRUE(granule_vma_has_flag(page + unit, "lo"));
	ASSERT_EQ(munlock(page + unit, unit), 0);
	EXPECT_EQ(granule_status_kb(getpid(), "VmLck:"), locked);
}

/* mlock() under a limit, without the privilege to exceed it. */
static int mlock_under_limit(char *addr, size_t len, rlim_t limit)
{
	struct rlimit rlim = { limit, limit };
	int status;
	pid_t pid;

	pid = fork();
	if (pid < 0)
		return -errno;
	if (!pid) {
		if (setrlimit(RLIMIT_MEMLOCK, &rlim) ||
		    setresuid(UID_NOBODY, UID_NOBODY, UID_NOBODY))
			_exit(EIO);
		_exit(mlock(addr, len) ? errno : 0);
	}
	if (waitpid(pid, &status, 0) != pid || !WIFEXITED(status))
		return -EIO;
	return -WEXITSTATUS(status);
}

/* Assert that RLIMIT_MEMLOCK limits the memory that is really locked. */
TEST_F(page_granule_memory, mlock_limited)
{
	size_t len = granule_mapped_len(variant->kind, BASE_SIZE);
	char *addr = self->res;

	ASSERT_EQ(granule_map(variant->kind, variant->shared, addr, 4 * GRANULE_SIZE,
			      MAP_FIXED), addr);
	addr += GRANULE_SIZE;
	if (variant->kind == GRANULE_CONTRACT)
		EXPECT_EQ(mlock_under_limit(addr, 1, len), -EINVAL);
	/* A call that takes pages takes any page. */
	addr += (GRANULE_SIZE - len) / 4 / BASE_SIZE * BASE_SIZE;
	/* A limit of 0 would be EPERM. */
	EXPECT_EQ(mlock_under_limit(addr, len, len - 1), -ENOMEM);
	EXPECT_EQ(mlock_under_limit(addr, len, len), 0);
}

/*
 * Assert that mlockall locks and populates all memory, and that munlockall
 * unlocks it.
 */
TEST_F(page_granule_memory, mlockall_current)
{
	char *addr = self->res;
	size_t len = 3 * GRANULE_SIZE;

	ASSERT_EQ(granule_map(variant->kind, variant->shared, addr, len, MAP_FIXED), addr);
	ASSERT_EQ(mlockall(MCL_CURRENT), 0);
	EXPECT_TRUE(granule_vma_has_flag(addr, "lo"));
	EXPECT_EQ(granule_count(self->pagemap, addr, len, GRANULE_WHOLE), 3);
	ASSERT_EQ(munlockall(), 0);
	EXPECT_FALSE(granule_vma_has_flag(addr, "lo"));
	EXPECT_TRUE(granule_vma_is(addr, len));
	EXPECT_EQ(granule_count(self->pagemap, addr, len, GRANULE_WHOLE), 3);
}

/* Assert that MCL_FUTURE and MAP_LOCKED lock and populate new mappings. */
TEST_F(page_granule_memory, mlockall_future)
{
	size_t len = granule_mapped_len(variant->kind, GRANULE_SIZE + BASE_SIZE);
	char *addr = self->res;
	int i, locked;

	for (i = 0; i < 2; i++, addr += 4 * GRANULE_SIZE) {
		if (!i)
			ASSERT_EQ(mlockall(MCL_FUTURE), 0);
		locked = granule_status_kb(getpid(), "VmLck:");
		ASSERT_EQ(granule_map(variant->kind, variant->shared, addr, len,
				      MAP_FIXED | (i ? MAP_LOCKED : 0)), addr);
		EXPECT_EQ(granule_status_kb(getpid(), "VmLck:") - locked, len / 1024);
		EXPECT_TRUE(granule_vma_has_flag(addr, "lo"));
		EXPECT_EQ(granule_present_pages(self->pagemap, addr, len), len / BASE_SIZE);
		EXPECT_EQ(granule_state(self->pagemap, addr), GRANULE_WHOLE);
		if (!i)
			ASSERT_EQ(munlockall(), 0);
	}
}

/* Assert that MCL_ONFAULT locks on the first touch, a whole granule at once. */
TEST_F(page_granule_memory, mlockall_onfault)
{
	char *addr = self->res, *later = addr + 4 * GRANULE_SIZE;
	size_t len = 2 * GRANULE_SIZE;

	ASSERT_EQ(granule_map(variant->kind, variant->shared, addr, len, MAP_FIXED), addr);
	ASSERT_EQ(mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT), 0);
	ASSERT_EQ(granule_map(variant->kind, variant->shared, later, len, MAP_FIXED), later);
	EXPECT_TRUE(granule_vma_has_flag(addr, "lo"));
	EXPECT_TRUE(granule_vma_has_flag(later, "lo"));
	EXPECT_EQ(granule_present_pages(self->pagemap, addr, len), 0);
	EXPECT_EQ(granule_present_pages(self->pagemap, later, len), 0);
	addr[5 * BASE_SIZE] = 1;
	later[GRANULE_SIZE + 7 * BASE_SIZE] = 1;
	EXPECT_EQ(granule_state(self->pagemap, addr), GRANULE_WHOLE);
	EXPECT_EQ(granule_state(self->pagemap, addr + GRANULE_SIZE), GRANULE_EMPTY);
	EXPECT_EQ(granule_state(self->pagemap, later), GRANULE_EMPTY);
	EXPECT_EQ(granule_state(self->pagemap, later + GRANULE_SIZE), GRANULE_WHOLE);
	ASSERT_EQ(munlockall(), 0);
}

/* Assert that mincore reports all of a touched granule as resident. */
TEST_F(page_granule_memory, mincore_granule)
{
	unsigned char vec[3 * GRANULE_NR_PAGES + 1];
	char *addr = self->res;
	unsigned int i;

	ASSERT_EQ(granule_map(variant->kind, variant->shared, addr, 3 * GRANULE_SIZE,
			      MAP_FIXED), addr);
	addr[GRANULE_SIZE + 9 * BASE_SIZE] = 1;
	memset(vec, 0xa5, sizeof(vec));
	/* Any page is a place to start. */
	ASSERT_EQ(mincore(addr + BASE_SIZE, 3 * GRANULE_SIZE - BASE_SIZE, vec + 1), 0);
	for (i = 1; i < 3 * GRANULE_NR_PAGES; i++)
		EXPECT_EQ(vec[i] & 1, i / GRANULE_NR_PAGES == 1);
	EXPECT_EQ(vec[0], 0xa5);
	EXPECT_EQ(vec[i], 0xa5);
	errno = 0;
	EXPECT_EQ(mincore(addr + 1, BASE_SIZE, vec), -1);
	EXPECT_EQ(errno, EINVAL);
}

/* In a child: has it the memory that it should have? */
static int check_forked(int pagemap, char *addr, int advice)
{
	unsigned char vec[GRANULE_NR_PAGES];
	char *middle = addr + GRANULE_SIZE;

	if (!granule_check(addr, GRANULE_SIZE, 0) ||
	    !granule_check(middle + GRANULE_SIZE, GRANULE_SIZE, 2))
		return 1;
	if (advice == MADV_DONTFORK)
		return mincore(middle, GRANULE_SIZE, vec) && errno == ENOMEM ? 0 : 2;
	if (advice == MADV_WIPEONFORK && granule_filled(pagemap, middle))
		return 6;
	if (advice == MADV_WIPEONFORK && !granule_is_filled(middle, GRANULE_SIZE, 0))
		return 3;
	if (advice != MADV_WIPEONFORK && !granule_check(middle, GRANULE_SIZE, 1))
		return 4;
	middle[BASE_SIZE] = 1;
	if (advice == MADV_WIPEONFORK && granule_state(pagemap, middle) != GRANULE_WHOLE)
		return 5;
	return 0;
}

/*
 * Assert that a child finds advice on one granule followed, and the rest
 * unchanged. The parent has its whole granules afterwards.
 */
TEST_F(page_granule_memory, advice_on_fork)
{
	static const int advice[] = {
		MADV_DONTFORK, MADV_DOFORK, MADV_WIPEONFORK, MADV_KEEPONFORK,
	};
	char *addr = self->res;
	int status, i, n;
	pid_t pid;

	/* Shared memory is not wiped. */
	n = variant->shared ? 2 : ARRAY_SIZE(advice);
	ASSERT_EQ(granule_map(variant->kind, variant->shared, addr, 3 * GRANULE_SIZE,
			      MAP_FIXED), addr);
	for (i = 0; i < n; i++) {
		granule_fill(addr, GRANULE_SIZE, 0);
		granule_fill(addr + GRANULE_SIZE, GRANULE_SIZE, 1);
		granule_fill(addr + 2 * GRANULE_SIZE, GRANULE_SIZE, 2);
		ASSERT_EQ(madvise(addr + GRANULE_SIZE, GRANULE_SIZE, advice[i]), 0);
		pid = fork();
		ASSERT_GE(pid, 0);
		if (!pid) {
			int pagemap = granule_open_pagemap();

			_exit(check_forked(pagemap, addr, advice[i]));
		}
		ASSERT_EQ(waitpid(pid, &status, 0), pid);
		EXPECT_EQ(status, 0)
			TH_LOG("advice %d", advice[i]);
		granule_touch(addr, 3 * GRANULE_SIZE);
		EXPECT_EQ(granule_count(self->pagemap, addr, 3 * GRANULE_SIZE, GRANULE_WHOLE), 3)
			TH_LOG("advice %d", advice[i]);
	}
	EXPECT_TRUE(granule_vma_is(addr, 3 * GRANULE_SIZE));
}

/*
 * Assert that 4 KiB may be mapped right beside the memory, and that
 * MAP_FIXED_NOREPLACE maps nothing over it.
 */
TEST_F(page_granule_memory, noreplace_beside)
{
	char *addr = self->res + 2 * GRANULE_SIZE, *end = addr + 2 * GRANULE_SIZE;
	int flags = ANON_FLAGS | MAP_FIXED_NOREPLACE | MAP_GRANULE_4KB;
	char *before, *after, *page;

	ASSERT_EQ(munmap(self->res, 8 * GRANULE_SIZE), 0);
	ASSERT_EQ(granule_map(variant->kind, variant->shared, addr, end - addr,
			      MAP_FIXED_NOREPLACE), addr);
	granule_fill(addr, end - addr, SEED);
	before = granule_smaps_text(addr, end - addr);
	EXPECT_EQ(mmap(addr - BASE_SIZE, BASE_SIZE, PROT_RW, flags, -1, 0), addr - BASE_SIZE);
	EXPECT_EQ(mmap(end, BASE_SIZE, PROT_RW, flags, -1, 0), end);
	for (page = addr; page < end; page += BASE_SIZE) {
		errno = 0;
		EXPECT_EQ(mmap(page, BASE_SIZE, PROT_RW, flags, -1, 0), MAP_FAILED);
		EXPECT_EQ(errno, EEXIST);
	}
	/* A granule would meet the page that is there now. */
	errno = 0;
	EXPECT_EQ(granule_map(GRANULE_CONTRACT, variant->shared, addr - GRANULE_SIZE,
			      GRANULE_SIZE, MAP_FIXED_NOREPLACE), MAP_FAILED);
	EXPECT_EQ(errno, EEXIST);
	after = granule_smaps_text(addr, end - addr);
	EXPECT_TRUE(granule_same_text(before, after));
	EXPECT_TRUE(granule_check(addr, end - addr, SEED));
	free(before);
	free(after);
}

/*
 * Assert that MAP_FIXED replaces the range that it names, and no more, and cuts
 * no contract granule.
 */
TEST_F(page_granule_memory, fixed_over)
{
	size_t len = granule_mapped_len(variant->kind, BASE_SIZE);
	char *addr = self->res, *middle = addr + GRANULE_SIZE;
	enum granule_kind under;

	for (under = GRANULE_UNTAGGED; under <= GRANULE_CONTRACT; under++) {
		size_t step = under == GRANULE_CONTRACT ? GRANULE_SIZE : BASE_SIZE;

		ASSERT_EQ(granule_map(under, variant->shared, addr, 3 * GRANULE_SIZE,
				      MAP_FIXED), addr);
		granule_fill(addr, 3 * GRANULE_SIZE, SEED);
		/* One page of a contract VMA is not for others to take. */
		if (len < step) {
			errno = 0;
			EXPECT_EQ(granule_map(variant->kind, variant->shared, middle, len,
					      MAP_FIXED), MAP_FAILED);
			EXPECT_EQ(errno, EINVAL);
			EXPECT_TRUE(granule_vma_is(addr, 3 * GRANULE_SIZE));
			EXPECT_TRUE(granule_check(addr, 3 * GRANULE_SIZE, SEED));
			continue;
		}
		ASSERT_EQ(granule_map(variant->kind, variant->shared, middle, len,
				      MAP_FIXED), middle);
		EXPECT_TRUE(granule_is_filled(middle, len, 0));
		EXPECT_EQ(granule_kind_of(middle), variant->kind)
			TH_LOG("over kind %d", under);
		EXPECT_EQ(granule_kind_of(addr), under);
		EXPECT_EQ(granule_kind_of(middle + len), under);
		memset(middle, 0x55, len);
		granule_fill(addr, GRANULE_SIZE, SEED);
		EXPECT_TRUE(granule_is_filled(middle, len, 0x55));
		EXPECT_TRUE(granule_check(addr, GRANULE_SIZE, SEED));
	}
}

/*
 * Assert that calls round lengths up to the base page first, as they always
 * did.
 */
TEST_F(page_granule_memory, odd_lengths)
{
	char *addr = self->res, *before, *after;
	int i;

	ASSERT_EQ(granule_map(variant->kind, variant->shared, addr, 8 * GRANULE_SIZE,
			      MAP_FIXED), addr);
	granule_fill(addr, 8 * GRANULE_SIZE, SEED);
	before = granule_smaps_text(addr, 8 * GRANULE_SIZE);
	/*
	 * A length just above 15 pages is 16 pages, but an odd address is
	 * refused.
	 */
	for (i = 1; i < BASE_SIZE; i += 1365) {
		errno = 0;
		EXPECT_EQ(munmap(addr + i, GRANULE_SIZE), -1);
		EXPECT_EQ(errno, EINVAL);
		errno = 0;
		EXPECT_EQ(mprotect(addr + i, GRANULE_SIZE, PROT_READ), -1);
		EXPECT_EQ(errno, EINVAL);
		errno = 0;
		EXPECT_EQ(madvise(addr + i, GRANULE_SIZE, MADV_DONTNEED), -1);
		EXPECT_EQ(errno, EINVAL);
	}
	after = granule_smaps_text(addr, 8 * GRANULE_SIZE);
	EXPECT_TRUE(granule_same_text(before, after));
	free(before);
	free(after);
	EXPECT_EQ(madvise(addr, GRANULE_SIZE - 1, MADV_DONTDUMP), 0);
	EXPECT_TRUE(granule_vma_is(addr, GRANULE_SIZE));
	EXPECT_EQ(mprotect(addr + GRANULE_SIZE, GRANULE_SIZE - BASE_SIZE + 1, PROT_READ), 0);
	EXPECT_TRUE(granule_vma_is(addr + GRANULE_SIZE, GRANULE_SIZE));
	EXPECT_EQ(munmap(addr + 2 * GRANULE_SIZE, GRANULE_SIZE - 2048), 0);
	EXPECT_TRUE(granule_vma_is(addr + 3 * GRANULE_SIZE, 5 * GRANULE_SIZE));
}

/* Assert that process_madvise stops at the first range that cuts a granule. */
TEST_F(page_granule_memory, process_madvise_vector)
{
	bool contract = variant->kind == GRANULE_CONTRACT;
	char *addr = self->res;
	struct iovec iov[] = {
		{ addr, GRANULE_SIZE },
		{ addr + GRANULE_SIZE, BASE_SIZE },
		{ addr + 2 * GRANULE_SIZE, GRANULE_SIZE },
	};
	int pidfd = syscall(__NR_pidfd_open, getpid(), 0);

	ASSERT_GE(pidfd, 0);
	ASSERT_EQ(granule_map(variant->kind, variant->shared, addr, 3 * GRANULE_SIZE,
			      MAP_FIXED), addr);
	granule_fill(addr, 3 * GRANULE_SIZE, SEED);
	EXPECT_EQ(syscall(__NR_process_madvise, pidfd, iov, 3UL, MADV_DONTNEED, 0U),
		  contract ? GRANULE_SIZE : 2 * GRANULE_SIZE + BASE_SIZE);
	EXPECT_EQ(granule_filled(self->pagemap, addr), 0);
	EXPECT_EQ(granule_filled(self->pagemap, addr + GRANULE_SIZE), contract ? 16 : 15);
	EXPECT_EQ(granule_filled(self->pagemap, addr + 2 * GRANULE_SIZE), contract ? 16 : 0);
	close(pidfd);
}

/*
 * Assert that a sealed granule stays, and that its neighbours can be unmapped.
 */
TEST_F(page_granule_memory, mseal_one_granule)
{
	char *addr = self->res, *sealed = addr + GRANULE_SIZE, *before, *after;

	ASSERT_EQ(granule_map(variant->kind, variant->shared, addr, 3 * GRANULE_SIZE,
			      MAP_FIXED), addr);
	granule_fill(addr, 3 * GRANULE_SIZE, SEED);
	ASSERT_EQ(syscall(__NR_mseal, sealed, GRANULE_SIZE, 0UL), 0);
	EXPECT_TRUE(granule_vma_is(sealed, GRANULE_SIZE));
	before = granule_smaps_text(sealed, GRANULE_SIZE);
	errno = 0;
	EXPECT_EQ(munmap(sealed, GRANULE_SIZE), -1);
	EXPECT_EQ(errno, EPERM);
	errno = 0;
	EXPECT_EQ(mprotect(sealed, GRANULE_SIZE, PROT_READ), -1);
	EXPECT_EQ(errno, EPERM);
	errno = 0;
	EXPECT_EQ(sys_mremap(sealed, GRANULE_SIZE, GRANULE_SIZE, MREMAP_MAYMOVE | MREMAP_FIXED,
			     addr + 8 * GRANULE_SIZE), MAP_FAILED);
	EXPECT_EQ(errno, EPERM);
	errno = 0;
	EXPECT_EQ(munmap(sealed + BASE_SIZE, BASE_SIZE), -1);
	EXPECT_EQ(errno, variant->kind == GRANULE_CONTRACT ? EINVAL : EPERM);
	errno = 0;
	EXPECT_EQ(munmap(addr, 3 * GRANULE_SIZE), -1);
	EXPECT_EQ(errno, EPERM);
	after = granule_smaps_text(sealed, GRANULE_SIZE);
	EXPECT_TRUE(granule_same_text(before, after));
	EXPECT_TRUE(granule_check(addr, 3 * GRANULE_SIZE, SEED));
	EXPECT_EQ(munmap(addr, GRANULE_SIZE), 0);
	EXPECT_EQ(munmap(sealed + GRANULE_SIZE, GRANULE_SIZE), 0);
	free(before);
	free(after);
}

/* Does it have a huge page? */
static bool is_collapsed(const char *addr)
{
	return granule_smaps_kb(addr, 1, "AnonHugePages:") > 0 ||
	       granule_smaps_kb(addr, 1, "ShmemPmdMapped:") > 0;
}

/*
 * Assert that MADV_COLLAPSE takes the ranges that the kind of memory allows,
 * with the result of untagged memory.
 */
TEST_F_TIMEOUT(page_granule_memory, collapse, 60)
{
	size_t len = 2 * HPAGE_SIZE;
	char *res, *plain, *area;
	int ret;

	res = granule_reserve(2 * len + HPAGE_SIZE);
	ASSERT_NE(res, NULL);
	plain = (char *)(((unsigned long)res + HPAGE_SIZE - 1) & -(unsigned long)HPAGE_SIZE);
	area = plain + len;
	ASSERT_EQ(granule_map(GRANULE_UNTAGGED, variant->shared, plain, len, MAP_FIXED), plain);
	ASSERT_EQ(granule_map(variant->kind, variant->shared, area, len, MAP_FIXED), area);
	granule_fill(plain, len, 1);
	granule_fill(area, len, 2);

	if (madvise(plain + BASE_SIZE, len - BASE_SIZE, MADV_COLLAPSE))
		SKIP(return, "MADV_COLLAPSE fails (%s): free some memory",
		     strerror(errno));
	ret = madvise(area + BASE_SIZE, len - BASE_SIZE, MADV_COLLAPSE) ? -errno : 0;
	EXPECT_EQ(ret, variant->kind == GRANULE_CONTRACT ? -EINVAL : 0);
	EXPECT_EQ(is_collapsed(area), variant->kind != GRANULE_CONTRACT);
	ret = madvise(area, len - BASE_SIZE, MADV_COLLAPSE) ? -errno : 0;
	EXPECT_EQ(ret, variant->kind == GRANULE_CONTRACT ? -EINVAL : 0);
	EXPECT_EQ(madvise(area, len, MADV_COLLAPSE), 0);
	EXPECT_TRUE(is_collapsed(area));
	EXPECT_EQ(granule_count(self->pagemap, area, len, GRANULE_WHOLE), len / GRANULE_SIZE);
	EXPECT_TRUE(granule_check(area, len, 2));
	EXPECT_TRUE(granule_check(plain, len, 1));
}

int main(int argc, char **argv)
{
	granule_require();
	granule_save_settings();
	return test_harness_run(argc, argv);
}
