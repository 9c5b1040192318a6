// SPDX-License-Identifier: GPL-2.0
/*
 * Page granule: the kernel respects what programs say and rely on. Advice
 * against huge pages, the number and place of mappings, memory that was given
 * back, policies and calls for a part of a granule, monitors, what KSM counts,
 * and tags of memory.
 */
#define _GNU_SOURCE
#include "kselftest_harness.h"
#include <asm-generic/mman.h> /* Force the import of the tools version. */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/mempolicy.h>
#include <linux/prctl.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "hugepage_settings.h"
#include "vm_util.h"
#include "page_granule_util.h"

#define NR_GRANULES	4UL
#define NR_PAGES	(NR_GRANULES * GRANULE_NR_PAGES)
#define AREA_LEN	(NR_GRANULES * GRANULE_SIZE)

static void start_afresh(struct __test_metadata *_metadata, int *pagemap)
{
	ASSERT_EQ(granule_set_enabled(true), 0);
	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, BASE_SIZE), 0);
	granule_thp_never();
	*pagemap = granule_open_pagemap();
	ASSERT_GE(*pagemap, 0);
}

/*
 * How many of @nr pages have the one page of zeroes that untagged memory has?
 */
static unsigned long one_zero_page(int pagemap, char *area, unsigned long nr)
{
	char *untagged = granule_area(GRANULE_UNTAGGED, BASE_SIZE, 0);
	unsigned long i, zero, same = 0;

	if (!untagged)
		return ULONG_MAX;
	FORCE_READ(*untagged);
	zero = granule_pfn(pagemap, untagged, 0);
	for (i = 0; i < nr; i++)
		same += granule_pfn(pagemap, area, i) == zero;
	munmap(untagged, BASE_SIZE);
	return same;
}

/* Advice and switches that make default-tagged memory behave as untagged. */
static int out_by_advice(char *area, bool out)
{
	return madvise(area, AREA_LEN, out ? MADV_NOHUGEPAGE : MADV_HUGEPAGE);
}

static int out_by_prctl(char *area, bool out)
{
	return prctl(PR_SET_THP_DISABLE, out, 0, 0, 0);
}

static int out_but_advised(char *area, bool out)
{
	return prctl(PR_SET_THP_DISABLE, out, out ? PR_THP_DISABLE_EXCEPT_ADVISED : 0, 0, 0);
}

static int out_by_switch(char *area, bool out)
{
	return granule_set_enabled(!out);
}

FIXTURE(page_granule_respect_out)
{
	char *tagged;
	char *contract;
	int pagemap;
};

FIXTURE_VARIANT(page_granule_respect_out)
{
	int (*opt)(char *area, bool out);
	bool contract_advised;
};

FIXTURE_VARIANT_ADD(page_granule_respect_out, advice)
{
	.opt = out_by_advice,
};

FIXTURE_VARIANT_ADD(page_granule_respect_out, thp_disable)
{
	.opt = out_by_prctl,
};

FIXTURE_VARIANT_ADD(page_granule_respect_out, except_advised)
{
	.opt = out_but_advised,
	.contract_advised = true,
};

FIXTURE_VARIANT_ADD(page_granule_respect_out, enabled)
{
	.opt = out_by_switch,
};

FIXTURE_SETUP(page_granule_respect_out)
{
	start_afresh(_metadata, &self->pagemap);
	self->tagged = granule_area(GRANULE_DEFAULT, AREA_LEN, 0);
	self->contract = granule_area(GRANULE_CONTRACT, AREA_LEN, 0);
	ASSERT_NE(self->tagged, NULL);
	ASSERT_NE(self->contract, NULL);
}

FIXTURE_TEARDOWN(page_granule_respect_out)
{
	granule_repair(false);
	EXPECT_EQ(granule_set_enabled(true), 0);
	EXPECT_TRUE(granule_invariants_hold());
}

static unsigned long tagged_kb(const char *area)
{
	return granule_vma_has_flag(area, "gr") ? granule_kb(area) : 0;
}

/*
 * Assert that faults populate single pages until the program takes that back.
 */
TEST_F(page_granule_respect_out, faults)
{
	ASSERT_EQ(tagged_kb(self->tagged), 64);
	ASSERT_EQ(variant->opt(self->tagged, true), 0);
	EXPECT_EQ(tagged_kb(self->tagged), 4);
	*page_at(self->tagged, 5) = 1;
	EXPECT_EQ(granule_present(self->pagemap, self->tagged), 1);
	EXPECT_TRUE(pagemap_is_populated(self->pagemap, page_at(self->tagged, 5)));

	ASSERT_EQ(variant->opt(self->tagged, false), 0);
	EXPECT_EQ(tagged_kb(self->tagged), 64);
	*nth(self->tagged, 1) = 1;
	EXPECT_EQ(granule_state(self->pagemap, nth(self->tagged, 1)), GRANULE_WHOLE);
}

/*
 * Assert that a read maps the one zero page, and that a write then populates
 * one page.
 */
TEST_F(page_granule_respect_out, reads)
{
	ASSERT_EQ(variant->opt(self->tagged, true), 0);
	FORCE_READ(*page_at(self->tagged, 5));
	FORCE_READ(*page_at(self->tagged, 6));
	EXPECT_EQ(granule_present(self->pagemap, self->tagged), 2);
	EXPECT_EQ(one_zero_page(self->pagemap, page_at(self->tagged, 5), 2), 2);
	*page_at(self->tagged, 5) = 1;
	EXPECT_EQ(granule_present(self->pagemap, self->tagged), 2);
	EXPECT_EQ(granule_zero_pages(self->pagemap, self->tagged, GRANULE_SIZE), 1);
	/* Zeroes are no memory. */
	EXPECT_EQ(granule_rss_kb(self->tagged, AREA_LEN), 4);
}

/* Assert that a write after fork copies one page. */
TEST_F(page_granule_respect_out, copies)
{
	unsigned long i, copied = 0;
	pid_t pid;

	memset(self->tagged, 1, AREA_LEN);
	ASSERT_EQ(granule_state(self->pagemap, self->tagged), GRANULE_WHOLE);
	ASSERT_EQ(variant->opt(self->tagged, true), 0);
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		int pagemap = granule_open_pagemap();

		*page_at(self->tagged, 5) = 2;
		for (i = 0; i < GRANULE_NR_PAGES; i++)
			copied += granule_pfn(pagemap, self->tagged, i) !=
				  granule_pfn(self->pagemap, self->tagged, i);
		EXPECT_EQ(copied, 1);
		_exit(0);
	}
	EXPECT_TRUE(granule_child_ends(pid));
}

/* Assert that swap-in brings in one page. */
TEST_F(page_granule_respect_out, swaps_in)
{
	unsigned long i, present = NR_PAGES;

	if (granule_meminfo_kb("SwapFree") < 64 << 10)
		SKIP(return, GRANULE_SWAP_REMEDY);
	granule_fill(self->tagged, AREA_LEN, 1);
	for (i = 0; i < 50 && present; i++) {
		ASSERT_EQ(madvise(self->tagged, AREA_LEN, MADV_PAGEOUT), 0);
		usleep(20 * 1000);
		present = granule_present_pages(self->pagemap, self->tagged, AREA_LEN);
	}
	ASSERT_EQ(present, 0);
	ASSERT_EQ(variant->opt(self->tagged, true), 0);
	FORCE_READ(*page_at(self->tagged, 5));
	EXPECT_EQ(granule_present(self->pagemap, self->tagged), 1);
	EXPECT_TRUE(granule_check(self->tagged, AREA_LEN, 1));
}

/*
 * Assert that repair leaves the memory alone, and repairs it once the program
 * has taken that back.
 */
TEST_F(page_granule_respect_out, repair)
{
	memset(self->tagged, 1, AREA_LEN);
	ASSERT_EQ(variant->opt(self->tagged, true), 0);
	ASSERT_TRUE(granule_break(self->tagged, 3));
	granule_repair(true);
	usleep(1000 * 1000);
	EXPECT_EQ(granule_state(self->pagemap, self->tagged), GRANULE_BROKEN);
	EXPECT_EQ(granule_present(self->pagemap, self->tagged), GRANULE_NR_PAGES);

	ASSERT_EQ(variant->opt(self->tagged, false), 0);
	ASSERT_TRUE(granule_break(self->tagged, 4));
	EXPECT_GE(granule_until_whole(self->pagemap, self->tagged, 10), 0);
}

/*
 * Assert that UFFDIO_COPY fills each page by itself, beside present and missing
 * ones.
 */
TEST_F(page_granule_respect_out, uffd_copy)
{
	struct uffdio_copy copy = { .len = BASE_SIZE };
	char *source = granule_area(GRANULE_UNTAGGED, BASE_SIZE, 0);
	unsigned long i, filled = 0;
	int uffd;

	ASSERT_NE(source, NULL);
	*source = 3;
	ASSERT_EQ(variant->opt(self->tagged, true), 0);
	*self->tagged = 2;
	uffd = granule_uffd_open(0);
	if (uffd < 0)
		SKIP(return, GRANULE_UFFD_REMEDY);
	ASSERT_EQ(uffd_register(uffd, self->tagged, AREA_LEN, true, false, false), 0);
	for (i = 1; i < GRANULE_NR_PAGES; i++) {
		copy.dst = (uintptr_t)page_at(self->tagged, i);
		copy.src = (uintptr_t)source;
		filled += !ioctl(uffd, UFFDIO_COPY, &copy) &&
			  granule_present(self->pagemap, self->tagged) == i + 1;
	}
	EXPECT_EQ(filled, GRANULE_NR_PAGES - 1);
	EXPECT_EQ(*self->tagged, 2);
	EXPECT_EQ(*page_at(self->tagged, 15), 3);
	close(uffd);
}

/* Assert that a fault still populates all of a contract granule. */
TEST_F(page_granule_respect_out, contract)
{
	ASSERT_EQ(variant->opt(self->contract, true), 0);
	*page_at(self->contract, 5) = 1;
	EXPECT_EQ(granule_present(self->pagemap, self->contract), GRANULE_NR_PAGES);
	EXPECT_EQ(granule_state(self->pagemap, self->contract),
		  variant->contract_advised ? GRANULE_WHOLE : GRANULE_BROKEN);
	FORCE_READ(*page_at(self->contract, 21));
	EXPECT_EQ(granule_present(self->pagemap, nth(self->contract, 1)), GRANULE_NR_PAGES);
	/* Zeroes are no memory. */
	EXPECT_EQ(granule_rss_kb(self->contract, AREA_LEN), 64);
	ASSERT_EQ(madvise(self->contract, GRANULE_SIZE, MADV_DONTNEED), 0);
	EXPECT_EQ(granule_filled(self->pagemap, self->contract), 0);

	ASSERT_EQ(variant->opt(self->contract, false), 0);
	*nth(self->contract, 2) = 1;
	EXPECT_EQ(granule_state(self->pagemap, nth(self->contract, 2)), GRANULE_WHOLE);
}

FIXTURE(page_granule_respect_asks)
{
	int pagemap;
};

FIXTURE_SETUP(page_granule_respect_asks)
{
	start_afresh(_metadata, &self->pagemap);
}

FIXTURE_TEARDOWN(page_granule_respect_asks)
{
	EXPECT_TRUE(granule_invariants_hold());
	granule_restore_settings();
}

static char *map_len(size_t len, int flags)
{
	return mmap(NULL, len, PROT_RW, ANON_FLAGS | flags, -1, 0);
}

/* Assert that MADV_HUGEPAGE counts under PR_THP_DISABLE_EXCEPT_ADVISED. */
TEST_F(page_granule_respect_asks, advised)
{
	char *area = granule_area(GRANULE_DEFAULT, AREA_LEN, 0);

	ASSERT_NE(area, NULL);
	ASSERT_EQ(out_but_advised(area, true), 0);
	ASSERT_EQ(madvise(area, AREA_LEN, MADV_HUGEPAGE), 0);
	*area = 1;
	EXPECT_EQ(granule_state(self->pagemap, area), GRANULE_WHOLE);
}

#define MAX_MAP_COUNT	"/proc/sys/vm/max_map_count"

/* Make @nr mappings in a process with the default. */
static bool can_map(unsigned long nr, size_t len)
{
	pid_t pid = fork();
	unsigned long i;

	if (!pid) {
		if (granule_set(PR_GRANULE_MMAP, GRANULE_SIZE))
			_exit(1);
		for (i = 0; i < nr; i++) {
			if (map_len(len, 0) == MAP_FAILED)
				_exit(1);
		}
		_exit(0);
	}
	return pid > 0 && granule_child_ends(pid);
}

/* Assert that a process can have more mappings than it may have VMAs. */
TEST_F_TIMEOUT(page_granule_respect_asks, many_mappings, 120)
{
	ASSERT_EQ(granule_write(MAX_MAP_COUNT, "65530"), 0);
	EXPECT_TRUE(can_map(70000, 196 << 10));
}

/* Assert that the place of a mapping depends on its length alone. */
TEST_F(page_granule_respect_asks, alignment)
{
	static const size_t lens[] = { 64 << 10, 128 << 10, 192 << 10, MIB, 68 << 10,
				       100 << 10, 196 << 10, 4 << 10, MIB + 4096 };
	char *untagged, *tagged, *contract;
	size_t i;

	/*
	 * An extra length, so that the next mapping is not aligned by chance.
	 */
	ASSERT_NE(map_len(3 * BASE_SIZE, 0), MAP_FAILED);
	for (i = 0; i < ARRAY_SIZE(lens); i++) {
		untagged = map_len(lens[i], 0);
		ASSERT_EQ(munmap(untagged, lens[i]), 0);
		ASSERT_EQ(granule_set(PR_GRANULE_MMAP, GRANULE_SIZE), 0);
		tagged = map_len(lens[i], 0);
		ASSERT_EQ(granule_set(PR_GRANULE_MMAP, BASE_SIZE), 0);
		ASSERT_NE(tagged, MAP_FAILED);
		if (lens[i] % GRANULE_SIZE) {
			EXPECT_EQ(tagged, untagged) TH_LOG("length %zu", lens[i]);
			munmap(tagged, lens[i]);
			continue;
		}
		EXPECT_TRUE(granule_aligned(tagged)) TH_LOG("length %zu", lens[i]);
		contract = map_len(lens[i], MAP_GRANULE_64KB);
		ASSERT_NE(contract, MAP_FAILED);
		EXPECT_TRUE(granule_aligned(contract));
		EXPECT_TRUE(granule_vma_has_flag(contract, "gc"));
		munmap(contract, lens[i]);
		munmap(tagged, lens[i]);
	}
}

/* Assert that numa_maps shows the right number of pages, and their size. */
TEST_F(page_granule_respect_asks, numa_maps)
{
	static const enum granule_kind kinds[] = { GRANULE_UNTAGGED, GRANULE_DEFAULT,
						   GRANULE_CONTRACT };
	char line[1024], *pos;
	size_t i;

	if (access("/proc/self/numa_maps", R_OK))
		SKIP(return, "no numa_maps: build the kernel with CONFIG_NUMA=y");
	for (i = 0; i < ARRAY_SIZE(kinds); i++) {
		unsigned long start, size = 0, anon = 0;
		char *area = granule_area(kinds[i], AREA_LEN, 0);
		FILE *fp = fopen("/proc/self/numa_maps", "r");

		ASSERT_NE(area, NULL);
		ASSERT_NE(fp, NULL);
		memset(area, 1, AREA_LEN);
		while (fgets(line, sizeof(line), fp)) {
			if (sscanf(line, "%lx ", &start) != 1 || start != (unsigned long)area)
				continue;
			pos = strstr(line, "kernelpagesize_kB=");
			if (pos)
				sscanf(pos, "kernelpagesize_kB=%lu", &size);
			pos = strstr(line, "anon=");
			if (pos)
				sscanf(pos, "anon=%lu", &anon);
		}
		fclose(fp);
		EXPECT_EQ(size, BASE_SIZE / 1024);
		EXPECT_EQ(anon, NR_PAGES);
	}
}

/* Memory that is given back, as balloons do. */
FIXTURE(page_granule_respect_balloon)
{
	char *area;
	int pagemap;
};

FIXTURE_VARIANT(page_granule_respect_balloon)
{
	enum granule_kind kind;
	int flags;
};

FIXTURE_VARIANT_ADD(page_granule_respect_balloon, untagged_shared)
{
	.kind = GRANULE_UNTAGGED,
	.flags = MAP_SHARED,
};

FIXTURE_VARIANT_ADD(page_granule_respect_balloon, default_tagged_shared)
{
	.kind = GRANULE_DEFAULT,
	.flags = MAP_SHARED,
};

FIXTURE_VARIANT_ADD(page_granule_respect_balloon, default_tagged)
{
	.kind = GRANULE_DEFAULT,
};

FIXTURE_SETUP(page_granule_respect_balloon)
{
	start_afresh(_metadata, &self->pagemap);
	self->area = granule_area(variant->kind, AREA_LEN, variant->flags);
	ASSERT_NE(self->area, NULL);
	memset(self->area, 1, AREA_LEN);
}

FIXTURE_TEARDOWN(page_granule_respect_balloon)
{
	EXPECT_TRUE(granule_invariants_hold());
}

/* Keep the first page of each granule. */
static bool give_back_all_but_one(char *area, size_t len, bool shared)
{
	char *p;

	for (p = area; p < area + len; p += GRANULE_SIZE) {
		if (madvise(page_at(p, 1), GRANULE_SIZE - BASE_SIZE,
			    shared ? MADV_REMOVE : MADV_DONTNEED))
			return false;
	}
	return true;
}

static unsigned long in_memory(char *area)
{
	unsigned char vec[NR_PAGES];
	unsigned long i, nr = 0;

	if (mincore(area, AREA_LEN, vec))
		return ULONG_MAX;
	for (i = 0; i < NR_PAGES; i++)
		nr += vec[i] & 1;
	return nr;
}

static void read_kept(char *area, size_t len)
{
	char *p;

	for (p = area; p < area + len; p += GRANULE_SIZE)
		FORCE_READ(*p);
}

/* Assert that reading a kept page brings back no page that was given back. */
TEST_F(page_granule_respect_balloon, read)
{
	pid_t pid;

	ASSERT_TRUE(give_back_all_but_one(self->area, AREA_LEN, variant->flags));
	EXPECT_EQ(in_memory(self->area), NR_GRANULES);
	read_kept(self->area, AREA_LEN);
	EXPECT_EQ(in_memory(self->area), NR_GRANULES);
	EXPECT_EQ(granule_present_pages(self->pagemap, self->area, AREA_LEN), NR_GRANULES);
	/* One that has none of it mapped yet. */
	pid = fork();
	if (!pid) {
		read_kept(self->area, AREA_LEN);
		_exit(0);
	}
	EXPECT_TRUE(granule_child_ends(pid));
	EXPECT_EQ(in_memory(self->area), NR_GRANULES);
}

/* Assert that writing to a kept page brings back none either. */
TEST_F(page_granule_respect_balloon, write)
{
	unsigned long i;

	ASSERT_TRUE(give_back_all_but_one(self->area, AREA_LEN, variant->flags));
	for (i = 0; i < NR_GRANULES; i++)
		*nth(self->area, i) = 2;
	EXPECT_EQ(in_memory(self->area), NR_GRANULES);
}

#define BALLOON_LEN	(12 * MIB)

/*
 * Assert that reading kept pages does not exceed the limit when the freed
 * memory is used elsewhere.
 */
TEST_F_TIMEOUT(page_granule_respect_balloon, at_the_limit, 60)
{
	struct granule_cg cg;
	int status;
	pid_t pid;

	if (!granule_cg_create(&cg))
		SKIP(return, GRANULE_CG_REMEDY);
	ASSERT_EQ(granule_cg_write(cg.dir, "memory.max", "18M"), 0);
	granule_cg_write(cg.dir, "memory.swap.max", "0");
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		char *area, *other;

		if (granule_cg_write(cg.dir, "cgroup.procs", "0"))
			_exit(2);
		area = granule_area(variant->kind, BALLOON_LEN, variant->flags);
		other = granule_area(GRANULE_UNTAGGED, BALLOON_LEN, 0);
		if (!area || !other)
			_exit(3);
		memset(area, 1, BALLOON_LEN);
		if (!give_back_all_but_one(area, BALLOON_LEN, variant->flags))
			_exit(4);
		memset(other, 1, BALLOON_LEN);
		read_kept(area, BALLOON_LEN);
		_exit(0);
	}
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	EXPECT_EQ(granule_cg_read(cg.dir, "memory.events", "oom_kill"), 0);
	EXPECT_TRUE(WIFEXITED(status));
	EXPECT_EQ(WEXITSTATUS(status), 0);
	granule_cg_remove(&cg);
}

/* Calls that place a part of a granule. */
FIXTURE(page_granule_respect_part)
{
	char *area;
	int pagemap;
};

FIXTURE_VARIANT(page_granule_respect_part)
{
	enum granule_kind kind;
	bool nohugepage;
};

FIXTURE_VARIANT_ADD(page_granule_respect_part, untagged)
{
	.kind = GRANULE_UNTAGGED,
};

FIXTURE_VARIANT_ADD(page_granule_respect_part, default_tagged)
{
	.kind = GRANULE_DEFAULT,
};

FIXTURE_VARIANT_ADD(page_granule_respect_part, nohugepage)
{
	.kind = GRANULE_DEFAULT,
	.nohugepage = true,
};

FIXTURE_SETUP(page_granule_respect_part)
{
	unsigned long mask = 1;

	if (!granule_two_nodes())
		SKIP(return, GRANULE_NODES_REMEDY);
	start_afresh(_metadata, &self->pagemap);
	self->area = granule_area(variant->kind, AREA_LEN, 0);
	ASSERT_NE(self->area, NULL);
	if (variant->nohugepage)
		ASSERT_EQ(madvise(self->area, AREA_LEN, MADV_NOHUGEPAGE), 0);
	ASSERT_EQ(syscall(__NR_set_mempolicy, MPOL_BIND, &mask, 8 * sizeof(mask)), 0);
	granule_fill(self->area, AREA_LEN, 1);
	ASSERT_EQ(syscall(__NR_set_mempolicy, MPOL_DEFAULT, NULL, 0UL), 0);
}

FIXTURE_TEARDOWN(page_granule_respect_part)
{
	EXPECT_TRUE(granule_check(self->area, AREA_LEN, 1));
	EXPECT_TRUE(granule_invariants_hold());
}

/*
 * Assert that move_pages() moves each chunk of 8 KiB to its node, and reports
 * that.
 */
TEST_F(page_granule_respect_part, move_pages)
{
	int nodes[NR_PAGES], told[NR_PAGES], found[NR_PAGES];
	unsigned long i, wrong = 0, lies = 0;

	for (i = 0; i < NR_PAGES; i++)
		nodes[i] = i / 2 & 1;
	ASSERT_EQ(granule_move_pages(self->area, NR_PAGES, nodes, told), 0);
	ASSERT_EQ(granule_move_pages(self->area, NR_PAGES, NULL, found), 0);
	for (i = 0; i < NR_PAGES; i++) {
		wrong += found[i] != nodes[i];
		lies += told[i] != found[i];
	}
	EXPECT_EQ(wrong, 0);
	EXPECT_EQ(lies, 0);
}

/* Assert that mbind() moves one page to its node, and no other page. */
TEST_F(page_granule_respect_part, mbind)
{
	unsigned long mask = 1UL << 1, i, with = 0;
	int found[NR_PAGES];

	ASSERT_EQ(syscall(__NR_mbind, page_at(self->area, 20), BASE_SIZE, MPOL_BIND, &mask,
			  8 * sizeof(mask), MPOL_MF_MOVE | MPOL_MF_STRICT), 0);
	ASSERT_EQ(granule_move_pages(self->area, NR_PAGES, NULL, found), 0);
	EXPECT_EQ(found[20], 1);
	for (i = 0; i < NR_PAGES; i++)
		with += i != 20 && found[i] != 0;
	EXPECT_EQ(with, 0);
}

FIXTURE(page_granule_respect_monitor)
{
	char *area;
	int pagemap;
};

FIXTURE_VARIANT(page_granule_respect_monitor)
{
	enum granule_kind kind;
	bool nohugepage;
	bool thp_disable;
};

FIXTURE_VARIANT_ADD(page_granule_respect_monitor, untagged)
{
	.kind = GRANULE_UNTAGGED,
};

FIXTURE_VARIANT_ADD(page_granule_respect_monitor, default_tagged)
{
	.kind = GRANULE_DEFAULT,
};

FIXTURE_VARIANT_ADD(page_granule_respect_monitor, nohugepage)
{
	.kind = GRANULE_DEFAULT,
	.nohugepage = true,
};

FIXTURE_VARIANT_ADD(page_granule_respect_monitor, thp_disable)
{
	.kind = GRANULE_DEFAULT,
	.thp_disable = true,
};

FIXTURE_SETUP(page_granule_respect_monitor)
{
	start_afresh(_metadata, &self->pagemap);
	if (variant->thp_disable)
		ASSERT_EQ(prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0), 0);
	self->area = granule_area(variant->kind, AREA_LEN, MAP_SHARED);
	ASSERT_NE(self->area, NULL);
	if (variant->nohugepage)
		ASSERT_EQ(madvise(self->area, AREA_LEN, MADV_NOHUGEPAGE), 0);
}

FIXTURE_TEARDOWN(page_granule_respect_monitor)
{
	EXPECT_TRUE(granule_invariants_hold());
}

/* Assert that the monitor sees as missing each page that was not written to. */
TEST_F(page_granule_respect_monitor, missing)
{
	unsigned long i, missing = 0, wrong = 0;
	int go[2], uffd;
	pid_t pid;
	char c;

	ASSERT_EQ(pipe(go), 0);
	/* It has no part in the monitoring, which comes later. */
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		close(go[1]);
		if (read(go[0], &c, 1) != 1)
			_exit(1);
		for (i = 0; i < NR_GRANULES; i++)
			memset(page_at(nth(self->area, i), 5), 0x11, BASE_SIZE);
		_exit(0);
	}
	uffd = granule_uffd_open(0);
	if (uffd < 0) {
		granule_kill_idle(pid);
		SKIP(return, GRANULE_UFFD_REMEDY);
	}
	ASSERT_EQ(uffd_register(uffd, self->area, AREA_LEN, true, false, false), 0);
	ASSERT_EQ(write(go[1], "", 1), 1);
	ASSERT_TRUE(granule_child_ends(pid));
	ASSERT_TRUE(granule_catch_faults());
	for (i = 0; i < NR_PAGES; i++) {
		const bool written = i % GRANULE_NR_PAGES == 5;

		if (granule_try_access(page_at(self->area, i), NULL) == SIGBUS) {
			missing++;
			wrong += written;
		} else {
			wrong += !written || *page_at(self->area, i) != 0x11;
		}
	}
	EXPECT_EQ(missing, NR_PAGES - NR_GRANULES);
	EXPECT_EQ(wrong, 0);
	close(uffd);
}

/*
 * KSM counts the zero pages it made by a bit in each entry, and in that one
 * only. Ways in which an entry is written anew:
 */
static bool no_soft_dirty(void)
{
	return !softdirty_supported();
}

static bool over_soft_dirty(char *area, int pagemap)
{
	clear_softdirty();
	return true;
}

#define SCAN_FEATURES	(UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED)

static bool no_scan(void)
{
	int uffd = granule_uffd_open(SCAN_FEATURES);

	if (uffd >= 0)
		close(uffd);
	return uffd < 0;
}

static bool over_scan(char *area, int pagemap)
{
	struct page_region regions[GRANULE_NR_PAGES];
	struct pm_scan_arg arg = {
		.size = sizeof(arg),
		.flags = PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC,
		.start = (uintptr_t)area,
		.end = (uintptr_t)area + GRANULE_SIZE,
		.vec = (uintptr_t)regions,
		.vec_len = GRANULE_NR_PAGES,
		.category_anyof_mask = PAGE_IS_WRITTEN,
		.return_mask = PAGE_IS_WRITTEN,
	};
	int uffd = granule_uffd_open(SCAN_FEATURES);

	if (uffd < 0 || uffd_register(uffd, area, GRANULE_SIZE, false, true, false))
		return false;
	/* As a checkpoint does it: the bits that report writes first, if any. */
	if (!no_soft_dirty())
		clear_softdirty();
	return ioctl(pagemap, PAGEMAP_SCAN, &arg) >= 0;
}

static bool over_mprotect(char *area, int pagemap)
{
	return !mprotect(area, GRANULE_SIZE, PROT_READ) &&
	       !mprotect(area, GRANULE_SIZE, PROT_RW);
}

static bool over_mremap(char *area, int pagemap)
{
	char *other = granule_reserve(GRANULE_SIZE);

	return other &&
	       mremap(area, GRANULE_SIZE, GRANULE_SIZE, MREMAP_MAYMOVE | MREMAP_FIXED,
		      other) == other &&
	       mremap(other, GRANULE_SIZE, GRANULE_SIZE, MREMAP_MAYMOVE | MREMAP_FIXED,
		      area) == area;
}

static bool over_fork(char *area, int pagemap)
{
	pid_t pid = fork();

	if (!pid) {
		FORCE_READ(*area);
		_exit(0);
	}
	return granule_child_ends(pid);
}

FIXTURE(page_granule_respect_ksm)
{
	char *area;
	int pagemap;
};

FIXTURE_VARIANT(page_granule_respect_ksm)
{
	bool (*way)(char *area, int pagemap);
	bool (*missing)(void);
	const char *remedy;
	bool unmerges;
};

FIXTURE_VARIANT_ADD(page_granule_respect_ksm, soft_dirty)
{
	.way = over_soft_dirty,
	.missing = no_soft_dirty,
	.remedy = "no soft-dirty bits: run it on x86_64, with CONFIG_MEM_SOFT_DIRTY=y",
};

FIXTURE_VARIANT_ADD(page_granule_respect_ksm, scan)
{
	.way = over_scan,
	.missing = no_scan,
	.remedy = "no PAGEMAP_SCAN by userfaultfd: set CONFIG_PTE_MARKER_UFFD_WP=y",
};

FIXTURE_VARIANT_ADD(page_granule_respect_ksm, mprotect) { .way = over_mprotect };
FIXTURE_VARIANT_ADD(page_granule_respect_ksm, mremap) { .way = over_mremap, .unmerges = true };
FIXTURE_VARIANT_ADD(page_granule_respect_ksm, fork) { .way = over_fork };

FIXTURE_SETUP(page_granule_respect_ksm)
{
	start_afresh(_metadata, &self->pagemap);
	if (ksm_get_full_scans() < 0)
		SKIP(return, "no KSM: build the kernel with CONFIG_KSM=y");
	if (variant->missing && variant->missing())
		SKIP(return, "%s", variant->remedy);
	self->area = granule_area(GRANULE_DEFAULT, GRANULE_SIZE, 0);
	ASSERT_NE(self->area, NULL);
}

FIXTURE_TEARDOWN(page_granule_respect_ksm)
{
	EXPECT_TRUE(granule_invariants_hold());
	granule_write(KSM_SYSFS "run", "0");
}

static long ksm_zero_pages(void)
{
	char text[32];

	if (read_file(KSM_SYSFS "ksm_zero_pages", text, sizeof(text)) <= 0)
		return LONG_MIN;
	return atol(text);
}

/* A broken granule, all of it KSM's zero pages in the end. */
static bool ksm_makes_zero_pages(char *area)
{
	unsigned long i;

	memset(area, 1, GRANULE_SIZE);
	for (i = 0; i < GRANULE_NR_PAGES; i++)
		granule_break(area, i);
	memset(area, 0, GRANULE_SIZE);
	if (madvise(area, GRANULE_SIZE, MADV_MERGEABLE))
		return false;
	granule_write(KSM_SYSFS "smart_scan", "0");
	if (granule_write(KSM_SYSFS "use_zero_pages", "1") ||
	    granule_write(KSM_SYSFS "sleep_millisecs", "0") ||
	    granule_write(KSM_SYSFS "pages_to_scan", "1000") ||
	    granule_write(KSM_SYSFS "run", "1"))
		return false;
	for (i = 0; i < 1200 && ksm_get_self_zero_pages() < (long)GRANULE_NR_PAGES; i++)
		usleep(20 * 1000);
	return !granule_write(KSM_SYSFS "run", "0") &&
	       ksm_get_self_zero_pages() == GRANULE_NR_PAGES;
}

/*
 * Assert that KSM's count of zero pages drops by one for each zero page of this
 * process that is gone.
 */
TEST_F_TIMEOUT(page_granule_respect_ksm, counted_once, 60)
{
	const long left = !variant->unmerges;
	long before = ksm_zero_pages();
	unsigned long i;

	ASSERT_TRUE(ksm_makes_zero_pages(self->area));
	EXPECT_EQ(ksm_zero_pages(), before + (long)GRANULE_NR_PAGES);
	/* One remains; the others are read again, and no longer KSM's. */
	ASSERT_EQ(madvise(page_at(self->area, 1), GRANULE_SIZE - BASE_SIZE, MADV_DONTNEED), 0);
	for (i = 1; i < GRANULE_NR_PAGES; i++)
		FORCE_READ(*page_at(self->area, i));
	EXPECT_EQ(ksm_zero_pages(), before + 1);
	ASSERT_TRUE(variant->way(self->area, self->pagemap));
	EXPECT_EQ(ksm_zero_pages(), before + left);
	EXPECT_EQ(ksm_get_self_zero_pages(), left);
	ASSERT_EQ(munmap(self->area, GRANULE_SIZE), 0);
	EXPECT_EQ(ksm_zero_pages(), before);
	EXPECT_EQ(ksm_get_self_zero_pages(), 0);
}

#ifdef __aarch64__
/* Tags of memory. */
#ifndef PROT_MTE
#define PROT_MTE	0x20
#endif
#ifndef HWCAP2_MTE
#define HWCAP2_MTE	0x40000
#endif
#ifndef PR_SET_TAGGED_ADDR_CTRL
#define PR_SET_TAGGED_ADDR_CTRL	55
#define PR_TAGGED_ADDR_ENABLE	1UL
#define PR_MTE_TCF_SYNC		2UL
#define PR_MTE_TAG_SHIFT	3
#endif

#define TAG		7UL
#define TAG_SHIFT	56

static char *with_tag(char *page, unsigned long tag)
{
	return (char *)((uintptr_t)page | tag << TAG_SHIFT);
}

static void set_tag(char *page, unsigned long tag)
{
	asm volatile(".arch armv8.5-a+memtag\n stg %0, [%0]" ::
		     "r"(with_tag(page, tag)) : "memory");
}

static unsigned long get_tag(char *page)
{
	uintptr_t addr = (uintptr_t)page;

	asm volatile(".arch armv8.5-a+memtag\n ldg %0, [%0]" : "+r"(addr) :: "memory");
	return addr >> TAG_SHIFT & 15;
}

FIXTURE(page_granule_respect_mte)
{
	char *area;
	char *page;
	int pagemap;
};

FIXTURE_VARIANT(page_granule_respect_mte)
{
	enum granule_kind kind;
	int advice;
};

FIXTURE_VARIANT_ADD(page_granule_respect_mte, default_cold)
{
	.kind = GRANULE_DEFAULT,
	.advice = MADV_COLD,
};

FIXTURE_VARIANT_ADD(page_granule_respect_mte, default_pageout)
{
	.kind = GRANULE_DEFAULT,
	.advice = MADV_PAGEOUT,
};

FIXTURE_VARIANT_ADD(page_granule_respect_mte, mthp_cold)
{
	.kind = GRANULE_UNTAGGED,
	.advice = MADV_COLD,
};

FIXTURE_VARIANT_ADD(page_granule_respect_mte, mthp_pageout)
{
	.kind = GRANULE_UNTAGGED,
	.advice = MADV_PAGEOUT,
};

FIXTURE_SETUP(page_granule_respect_mte)
{
	if (!(getauxval(AT_HWCAP2) & HWCAP2_MTE))
		SKIP(return, "no memory tags: boot with -machine virt,mte=on");
	start_afresh(_metadata, &self->pagemap);
	if (variant->kind == GRANULE_UNTAGGED)
		granule_thp_order(4);
	ASSERT_EQ(prctl(PR_SET_TAGGED_ADDR_CTRL, PR_TAGGED_ADDR_ENABLE | PR_MTE_TCF_SYNC |
			0xfffeUL << PR_MTE_TAG_SHIFT, 0, 0, 0), 0);
	self->area = granule_area(variant->kind, GRANULE_SIZE, 0);
	ASSERT_NE(self->area, NULL);
	self->page = page_at(self->area, 3);
}

FIXTURE_TEARDOWN(page_granule_respect_mte)
{
	EXPECT_TRUE(granule_invariants_hold());
	granule_thp_never();
}

/* Assert that the tags of one page survive that its folio is split. */
TEST_F(page_granule_respect_mte, kept)
{
	memset(self->area, 1, GRANULE_SIZE);
	ASSERT_EQ(granule_state(self->pagemap, self->area), GRANULE_WHOLE);
	ASSERT_EQ(mprotect(self->page, BASE_SIZE, PROT_RW | PROT_MTE), 0);
	set_tag(self->page, TAG);
	*with_tag(self->page, TAG) = 42;
	ASSERT_EQ(madvise(self->page, BASE_SIZE, variant->advice), 0);
	EXPECT_EQ(get_tag(self->page), TAG);
	EXPECT_EQ(*with_tag(self->page, get_tag(self->page)), 42);
}
#endif /* __aarch64__ */

static const char * const saved[] = {
	KSM_SYSFS "sleep_millisecs", KSM_SYSFS "pages_to_scan", KSM_SYSFS "use_zero_pages",
	KSM_SYSFS "smart_scan", KSM_SYSFS "run",
};

int main(int argc, char **argv)
{
	size_t i;

	granule_require();
	granule_save_settings();
	for (i = 0; i < ARRAY_SIZE(saved); i++)
		granule_save_setting(saved[i]);
	granule_save_setting(MAX_MAP_COUNT);
	return test_harness_run(argc, argv);
}
