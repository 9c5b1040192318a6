// SPDX-License-Identifier: GPL-2.0
/*
 * Page granule: which VMAs merge. Neighbours do when tag and contract bits
 * agree, and operations on tagged memory leave as many VMAs as on an untagged
 * twin.
 */
#define _GNU_SOURCE
#include "kselftest_harness.h"
#include <asm-generic/mman.h> /* Force the import of the tools version. */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "vm_util.h"
#include "page_granule_util.h"

FIXTURE(page_granule_merge)
{
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
	self->res = granule_reserve(8 * GRANULE_SIZE);
	ASSERT_NE(self->res, NULL);
}

FIXTURE_TEARDOWN(page_granule_merge)
{
	EXPECT_TRUE(granule_invariants_hold());
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
	EXPECT_TRUE(granule_vma_is(left, len));

	/* The same, the other way round, and populated. */
	ASSERT_EQ(munmap(left, 2 * GRANULE_SIZE), 0);
	*right = 1;
	ASSERT_EQ(map_pages(variant->left, left), left);
	EXPECT_TRUE(granule_vma_is(left, len));
}

/*
 * Assert that a mapping that fills the hole between two VMAs merges all three.
 */
TEST_F(page_granule_merge, hole)
{
	bool same = variant->left == variant->right;
	char *left = self->res;

	ASSERT_EQ(map_pages(variant->left, left), left);
	ASSERT_EQ(map_pages(variant->left, left + 4 * GRANULE_SIZE), left + 4 * GRANULE_SIZE);
	EXPECT_TRUE(granule_vma_is(left, 2 * GRANULE_SIZE));
	ASSERT_EQ(map_pages(variant->right, left + 2 * GRANULE_SIZE), left + 2 * GRANULE_SIZE);
	EXPECT_TRUE(granule_vma_is(left, (same ? 6 : 2) * GRANULE_SIZE));
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
	EXPECT_TRUE(granule_vma_is(left, GRANULE_SIZE));
	EXPECT_TRUE(granule_vma_is(left + GRANULE_SIZE, GRANULE_SIZE));
	ASSERT_EQ(mprotect(left + GRANULE_SIZE, GRANULE_SIZE, PROT_RW), 0);
	EXPECT_TRUE(granule_vma_is(left, len));
	ASSERT_TRUE(granule_read_smaps(getpid(), left, &after));
	EXPECT_STREQ(before.vmflags, after.vmflags);
	EXPECT_EQ(before.granule_mapped, after.granule_mapped);
	EXPECT_TRUE(granule_check(left, 4 * GRANULE_SIZE, 1));
}

/*
 * Merging: what ends as one VMA on untagged memory does so when it is tagged.
 * Each sequence works on eight units of a reservation. VMAs that have been
 * populated apart merge with one neighbour at most.
 */
#define MERGE_UNITS	8

struct merge {
	enum granule_kind kind;
	bool shared;
	char *base;
	size_t unit;
};

static char *merge_at(const struct merge *merge, unsigned int i)
{
	return merge->base + i * merge->unit;
}

static bool merge_map(const struct merge *merge, unsigned int i, unsigned int nr)
{
	char *addr = merge_at(merge, i);

	return granule_map(merge->kind, merge->shared, addr, nr * merge->unit, MAP_FIXED) == addr;
}

static bool merge_fill(const struct merge *merge, unsigned int i, unsigned int nr)
{
	if (!merge_map(merge, i, nr))
		return false;
	memset(merge_at(merge, i), i, nr * merge->unit);
	return true;
}

static bool merge_up(const struct merge *merge)
{
	return merge_fill(merge, 0, 1) && merge_fill(merge, 1, 2) && merge_fill(merge, 3, 1);
}

static bool merge_down(const struct merge *merge)
{
	return merge_fill(merge, 3, 1) && merge_fill(merge, 1, 2) && merge_fill(merge, 0, 1);
}

static bool merge_hole(const struct merge *merge)
{
	return merge_fill(merge, 0, 1) && merge_fill(merge, 2, 1) && merge_fill(merge, 1, 1);
}

static bool merge_hole_empty(const struct merge *merge)
{
	return merge_map(merge, 0, 1) && merge_map(merge, 2, 1) && merge_map(merge, 1, 1);
}

static bool merge_over(const struct merge *merge)
{
	return merge_fill(merge, 0, 4) && merge_fill(merge, 1, 2);
}

static bool merge_munmap(const struct merge *merge)
{
	return merge_fill(merge, 0, 4) && !munmap(merge_at(merge, 1), merge->unit) &&
	       merge_fill(merge, 1, 1);
}

static bool merge_mprotect(const struct merge *merge)
{
	return merge_fill(merge, 0, 4) &&
	       !mprotect(merge_at(merge, 1), merge->unit, PROT_READ) &&
	       !mprotect(merge_at(merge, 1), merge->unit, PROT_RW);
}

static bool merge_mprotect_each(const struct merge *merge)
{
	static const int order[] = { 0, 2, 1, 3 };
	unsigned int i;

	if (!merge_fill(merge, 0, 4))
		return false;
	for (i = 0; i < ARRAY_SIZE(order); i++) {
		if (mprotect(merge_at(merge, order[i]), merge->unit, PROT_READ))
			return false;
	}
	return true;
}

static bool merge_move(const struct merge *merge, unsigned int from, unsigned int to)
{
	return sys_mremap(merge_at(merge, from), merge->unit, merge->unit,
			  MREMAP_MAYMOVE | MREMAP_FIXED, merge_at(merge, to)) != MAP_FAILED;
}

static bool merge_mremap(const struct merge *merge)
{
	return merge_fill(merge, 0, 4) && merge_move(merge, 1, 6) && merge_move(merge, 6, 1);
}

/* The end of it, which is grown again in place. */
static bool merge_mremap_grow(const struct merge *merge)
{
	return merge_map(merge, 0, 4) &&
	       sys_mremap(merge_at(merge, 0), 4 * merge->unit, 3 * merge->unit, 0, NULL) ==
	       merge_at(merge, 0) && merge_map(merge, 4, 1) &&
	       sys_mremap(merge_at(merge, 0), 3 * merge->unit, 4 * merge->unit, 0, NULL) ==
	       merge_at(merge, 0);
}

static bool merge_mremap_apart(const struct merge *merge)
{
	return merge_fill(merge, 0, 2) && merge_move(merge, 1, 5) && merge_fill(merge, 1, 1) &&
	       merge_fill(merge, 6, 1);
}

static bool merge_advice(const struct merge *merge)
{
	return merge_fill(merge, 0, 4) &&
	       !madvise(merge_at(merge, 1), merge->unit, MADV_DONTDUMP) &&
	       !madvise(merge_at(merge, 2), merge->unit, MADV_DONTDUMP) &&
	       !madvise(merge_at(merge, 1), 2 * merge->unit, MADV_DODUMP);
}

static bool merge_mlock(const struct merge *merge)
{
	return merge_fill(merge, 0, 4) && !mlock(merge_at(merge, 1), merge->unit) &&
	       !mlock(merge_at(merge, 3), merge->unit) &&
	       !munlock(merge_at(merge, 0), 4 * merge->unit);
}

static bool merge_uffd(const struct merge *merge)
{
	int uffd = granule_uffd(0, O_NONBLOCK | UFFD_USER_MODE_ONLY);
	bool ret;

	/* Without userfaultfd there is nothing to be merged. */
	if (uffd < 0)
		return merge_fill(merge, 0, 4);
	ret = merge_fill(merge, 0, 4) &&
	      !uffd_register(uffd, merge_at(merge, 1), merge->unit, true, false, false) &&
	      !uffd_register(uffd, merge_at(merge, 3), merge->unit, true, false, false) &&
	      !uffd_unregister(uffd, merge_at(merge, 0), 4 * merge->unit);
	close(uffd);
	return ret;
}

static bool merge_anon_name(const struct merge *merge)
{
	const char *name = "granule";

	/* Fails on all memory alike without CONFIG_ANON_VMA_NAME. */
	if (!merge_fill(merge, 0, 4))
		return false;
	if (!prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, merge_at(merge, 1), merge->unit, name))
		return !prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, merge_at(merge, 1),
			      merge->unit, NULL);
	return true;
}

static const struct {
	const char *name;
	bool (*steps)(const struct merge *merge);
	bool parts;		/* more than one VMA on any private memory */
} merges[] = {
	{ "mapped upwards", merge_up, false },
	{ "mapped downwards", merge_down, false },
	{ "mapped into a hole", merge_hole, true },
	{ "mapped into a hole, all empty", merge_hole_empty, false },
	{ "mapped over the middle", merge_over, false },
	{ "unmapped and mapped again", merge_munmap, false },
	{ "mprotect there and back", merge_mprotect, false },
	{ "mprotect of each part", merge_mprotect_each, false },
	{ "mremap away and back", merge_mremap, false },
	{ "mremap smaller and larger", merge_mremap_grow, false },
	{ "mremap to a place of its own", merge_mremap_apart, true },
	{ "madvise there and back", merge_advice, false },
	{ "mlock and munlock", merge_mlock, false },
	{ "userfaultfd registration and its end", merge_uffd, false },
	{ "named and unnamed", merge_anon_name, false },
};

/* The bounds of all VMAs in the units, in pages from the base. */
static void merge_bounds(const struct merge *merge, char *buf, size_t size)
{
	unsigned long start, end, lo = (unsigned long)merge->base;
	unsigned long hi = lo + MERGE_UNITS * merge->unit;
	const char *line = granule_read_proc("/proc/self/maps");
	char perms[5];
	size_t len = 0;

	*buf = '\0';
	for (; line; line = strchr(line, '\n')) {
		line += *line == '\n';
		if (sscanf(line, "%lx-%lx %4s", &start, &end, perms) != 3 || start >= hi ||
		    end <= lo || perms[0] == '-')
			continue;
		len += snprintf(buf + len, size - len, "[%lu, %lu) ", (start - lo) / BASE_SIZE,
				(end - lo) / BASE_SIZE);
	}
}

FIXTURE(page_granule_merge_calls)
{
	char *res1;
	char *res2;
};

FIXTURE_VARIANT(page_granule_merge_calls)
{
	enum granule_kind kind;
	bool shared;
};

FIXTURE_VARIANT_ADD(page_granule_merge_calls, contract_private)
{
	.kind = GRANULE_CONTRACT,
	.shared = false,
};

FIXTURE_VARIANT_ADD(page_granule_merge_calls, contract_shared)
{
	.kind = GRANULE_CONTRACT,
	.shared = true,
};

FIXTURE_VARIANT_ADD(page_granule_merge_calls, default_private)
{
	.kind = GRANULE_DEFAULT,
	.shared = false,
};

FIXTURE_VARIANT_ADD(page_granule_merge_calls, default_shared)
{
	.kind = GRANULE_DEFAULT,
	.shared = true,
};

FIXTURE_SETUP(page_granule_merge_calls)
{
	ASSERT_EQ(granule_set_enabled(true), 0);
	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, BASE_SIZE), 0);
	granule_thp_never();
	self->res1 = granule_reserve(MERGE_UNITS * 3 * GRANULE_SIZE);
	self->res2 = granule_reserve(MERGE_UNITS * 3 * GRANULE_SIZE);
	ASSERT_NE(self->res1, NULL);
	ASSERT_NE(self->res2, NULL);
}

FIXTURE_TEARDOWN(page_granule_merge_calls)
{
	EXPECT_TRUE(granule_invariants_hold());
}

/* Assert that a sequence of calls leaves as many VMAs as on untagged memory. */
TEST_F(page_granule_merge_calls, as_untagged)
{
	static const size_t units[] = { GRANULE_SIZE, 3 * GRANULE_SIZE, BASE_SIZE, 17 * BASE_SIZE };
	size_t i, j, reserved = MERGE_UNITS * 3 * GRANULE_SIZE;
	char bounds1[256], bounds2[256];

	for (i = 0; i < ARRAY_SIZE(units); i++) {
		struct merge untagged = { GRANULE_UNTAGGED, variant->shared, self->res1, units[i] };
		struct merge other = { variant->kind, variant->shared, self->res2, units[i] };

		if (units[i] % GRANULE_SIZE && variant->kind == GRANULE_CONTRACT)
			continue;
		for (j = 0; j < ARRAY_SIZE(merges); j++) {
			ASSERT_EQ(granule_mmap(GRANULE_UNTAGGED, self->res1, reserved, PROT_NONE,
					       MAP_FIXED | MAP_NORESERVE), self->res1);
			ASSERT_EQ(granule_mmap(GRANULE_UNTAGGED, self->res2, reserved, PROT_NONE,
					       MAP_FIXED | MAP_NORESERVE), self->res2);
			if (merges[j].steps == merge_mremap_grow) {
				ASSERT_EQ(munmap(self->res1, reserved), 0);
				ASSERT_EQ(munmap(self->res2, reserved), 0);
			}
			ASSERT_TRUE(merges[j].steps(&untagged))
				TH_LOG("%s, untagged", merges[j].name);
			ASSERT_TRUE(merges[j].steps(&other))
				TH_LOG("%s", merges[j].name);
			merge_bounds(&untagged, bounds1, sizeof(bounds1));
			merge_bounds(&other, bounds2, sizeof(bounds2));
			EXPECT_STREQ(bounds1, bounds2)
				TH_LOG("%s, %zu pages", merges[j].name, units[i] / BASE_SIZE);
			/* Were there anything to see? */
			if (!variant->shared)
				EXPECT_EQ(!strchr(strchr(bounds1, ')'), '['), !merges[j].parts)
					TH_LOG("%s", merges[j].name);
		}
	}
}

/* The number of VMAs that some mappings, chosen by the kernel, lie in. */
static int map_next_to_each_other(enum granule_kind kind, bool shared, size_t len)
{
	char *addr[8], bounds[1024];
	unsigned int i, nr = 0;
	char *bound;

	for (i = 0; i < ARRAY_SIZE(addr); i++) {
		addr[i] = granule_map(kind, shared, NULL, len, 0);
		if (addr[i] == MAP_FAILED)
			return -errno;
		*addr[i] = 1;
	}
	for (i = 1; i < ARRAY_SIZE(addr); i++) {
		if (addr[i] + len != addr[i - 1] && addr[i] - len != addr[i - 1])
			return -ERANGE;
	}
	i = addr[0] < addr[1] ? 0 : ARRAY_SIZE(addr) - 1;
	merge_bounds(&(struct merge){ kind, shared, addr[i], len }, bounds, sizeof(bounds));
	for (bound = bounds; (bound = strchr(bound, '[')); bound++)
		nr++;
	return nr;
}

/* Assert that mappings made one after another lie side by side, and merge. */
TEST_F(page_granule_merge_calls, repeated_mmap)
{
	static const size_t lengths[] = {
		GRANULE_SIZE, 3 * GRANULE_SIZE, 25 * BASE_SIZE, 49 * BASE_SIZE,
	};
	size_t i;

	for (i = 0; i < ARRAY_SIZE(lengths); i++) {
		/*
		 * Shared memory is aligned whatever its length: it merges with
		 * nothing.
		 */
		if (lengths[i] % GRANULE_SIZE &&
		    (variant->kind == GRANULE_CONTRACT || variant->shared))
			continue;
		EXPECT_EQ(map_next_to_each_other(variant->kind, variant->shared, lengths[i]),
			  map_next_to_each_other(GRANULE_UNTAGGED, variant->shared, lengths[i]))
			TH_LOG("of %zu kB", lengths[i] / 1024);
		if (!variant->shared)
			EXPECT_EQ(map_next_to_each_other(variant->kind, false, lengths[i]), 1);
	}
}

int main(int argc, char **argv)
{
	granule_require();
	granule_save_settings();
	return test_harness_run(argc, argv);
}
