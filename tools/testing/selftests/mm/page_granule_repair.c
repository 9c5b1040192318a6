// SPDX-License-Identifier: GPL-2.0
/*
 * Page granule: what happens where there is no memory for a folio, and repair.
 * Faults, copies and migration then fall back to single pages. As soon as there
 * is memory, the kernel forms runs that it could not form before, and runs that
 * were broken. Repair leaves pinned, locked, placed and given-back pages alone,
 * and its budget is bounded.
 */
#define _GNU_SOURCE
#include "kselftest_harness.h"
#include <asm-generic/mman.h> /* Force the import of the tools version. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/mempolicy.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../../../../mm/gup_test.h"
#include "hugepage_settings.h"
#include "vm_util.h"
#include "page_granule_mem.h"
#include "page_granule_util.h"

/*
 * No order-4 page is available. Then nothing is whole, but all 16 pages are
 * there with the right contents, and fallbacks are counted.
 */
FIXTURE(page_granule_repair_fallback)
{
	struct granule_fail fail;
	struct mem mem;
	struct peer peer;
	unsigned long pfns[MEM_PAGES];
};

FIXTURE_VARIANT(page_granule_repair_fallback)
{
	enum granule_kind kind;
};

FIXTURE_VARIANT_ADD(page_granule_repair_fallback, contract)
{
	.kind = GRANULE_CONTRACT,
};

FIXTURE_VARIANT_ADD(page_granule_repair_fallback, default_tagged)
{
	.kind = GRANULE_DEFAULT,
};

/* Fault injection needs debugfs, so that there is the switch of repair, too. */
static void prepare(struct __test_metadata *_metadata, struct mem *mem,
		    enum granule_kind kind, struct granule_fail *fail)
{
	ASSERT_TRUE(mem_create(mem, kind));
	mem_fill(mem, 1);
	if (!granule_fail_prepare(fail))
		SKIP(return, GRANULE_FAIL_REMEDY);
	ASSERT_TRUE(granule_repair(false));
}

FIXTURE_SETUP(page_granule_repair_fallback)
{
	prepare(_metadata, &self->mem, variant->kind, &self->fail);
}

FIXTURE_TEARDOWN(page_granule_repair_fallback)
{
	granule_repair(false);
	EXPECT_TRUE(granule_invariants_hold());
	granule_fail_restore(&self->fail);
}

/* Assert that copy-on-write falls back to single pages, by one fault each. */
TEST_F(page_granule_repair_fallback, cow)
{
	unsigned long cow = granule_vmstat("granule_cow");
	unsigned long fallback = granule_vmstat("granule_fallback");
	struct mem *mem = &self->mem;

	ASSERT_TRUE(peer_fork(&self->peer, mem));
	if (!self->peer.pid) {
		long faults;
		pid_t pid;

		granule_fail_order4(true);
		faults = mem_write(mem, 2);
		EXPECT_LE(mem_write_pages(mem, 3), FAULT_SLACK);
		granule_fail_order4(false);
		EXPECT_FAULTS(faults, mem->nr);
		EXPECT_EQ(mem_whole(mem), 0);
		EXPECT_PRESENT(mem);
		EXPECT_EQ(granule_rss_kb(mem->area, mem_len(mem)), mem_len(mem) / 1024);

		/* A fork of single pages, too. */
		pid = mem_fork(mem);
		ASSERT_GE(pid, 0);
		if (!pid) {
			mem_write(mem, 4);
			EXPECT_PRESENT(mem);
			_exit(0);
		}
		EXPECT_TRUE(granule_child_ends(pid));
		EXPECT_PRESENT(mem);
		mem_write_pages(mem, 5);
		EXPECT_PRESENT(mem);
		_exit(0);
	}
	EXPECT_TRUE(peer_end(&self->peer));
	EXPECT_INTACT(mem);
	EXPECT_GE(granule_vmstat("granule_cow") - cow, mem->nr);
	EXPECT_GE(granule_vmstat("granule_fallback") - fallback, mem->nr);
}

/* Assert that pinning a shared granule falls back likewise. */
TEST_F(page_granule_repair_fallback, unshare)
{
	unsigned long fallback = granule_vmstat("granule_fallback");
	struct mem *mem = &self->mem;
	int gup = open(GUP_TEST, O_RDWR);

	if (gup < 0)
		SKIP(return, GRANULE_GUP_REMEDY);
	ASSERT_TRUE(peer_fork_idle(&self->peer, mem));
	granule_fail_order4(true);
	ASSERT_EQ(pin(gup, mem, 0, mem_pages(mem), 0), 0);
	granule_fail_order4(false);
	EXPECT_EQ(granule_vmstat("granule_fallback") - fallback, mem->nr);
	EXPECT_EQ(mem_whole(mem), 0);
	EXPECT_PRESENT(mem);
	mem_write_pages(mem, 2);
	EXPECT_TRUE(pin_sees(gup, mem, 0, mem_pages(mem)));
	EXPECT_PRESENT(mem);
	EXPECT_TRUE(peer_end(&self->peer));
	close(gup);
}

/* Assert that fork copies pinned granules to single pages. */
TEST_F(page_granule_repair_fallback, pinned_at_fork)
{
	struct mem *mem = &self->mem;
	unsigned long fallback;
	int gup = open(GUP_TEST, O_RDWR);

	if (gup < 0)
		SKIP(return, GRANULE_GUP_REMEDY);
	mem_pfns(mem, self->pfns);
	fallback = granule_vmstat("granule_fallback");
	ASSERT_EQ(pin(gup, mem, 0, mem_pages(mem), PIN_LONGTERM_TEST_FLAG_USE_WRITE), 0);
	/* Stacks and page tables are of lower orders, thread or no. */
	granule_fail_order4(true);
	ASSERT_TRUE(peer_fork(&self->peer, mem));
	granule_fail_order4(false);
	if (!self->peer.pid) {
		EXPECT_EQ(mem_whole(mem), 0);
		EXPECT_PRESENT(mem);
		mem_write_pages(mem, 3);
		EXPECT_PRESENT(mem);
		_exit(0);
	}
	EXPECT_TRUE(peer_end(&self->peer));
	EXPECT_EQ(granule_vmstat("granule_fallback") - fallback, mem->nr);
	EXPECT_EQ(mem_moved(mem, self->pfns, 0, mem_pages(mem)), 0);
	mem_write_pages(mem, 2);
	EXPECT_TRUE(pin_sees(gup, mem, 0, mem_pages(mem)));
	EXPECT_INTACT(mem);
	close(gup);
}

/*
 * Assert that a fault without a folio brings in the one page that it is for and
 * counts a fallback. The rest stays out until its own faults, and the granule
 * is whole the next time that it comes in.
 */
TEST_F(page_granule_repair_fallback, swap_in)
{
	unsigned long swpin = granule_vmstat("granule_swpin");
	unsigned long fallback = granule_vmstat("granule_swpin_fallback");
	struct mem *mem = &self->mem;
	unsigned long whole;
	struct granule_swaps swaps;

	if (!granule_have_swap(&swaps))
		SKIP(return, GRANULE_SWAP_REMEDY);
	ASSERT_TRUE(mem_page_out(mem));
	granule_fail_order4(true);
	mem_read(mem);
	granule_fail_order4(false);
	/*
	 * Pages that are still in the swap cache, as with disks, need no
	 * memory. Nothing tells their number, since SwapCached lags behind.
	 * With zram there are none.
	 */
	whole = mem_whole(mem);
	if (!strncmp(swaps.path, "/dev/zram", 9))
		EXPECT_EQ(whole, 0);
	EXPECT_EQ(mem_present(mem), whole * GRANULE_NR_PAGES + mem->nr - whole);
	EXPECT_EQ(mem_present(mem) + mem_swapped(mem), mem_pages(mem));
	EXPECT_EQ(granule_vmstat("granule_swpin") - swpin, whole);
	EXPECT_EQ(granule_vmstat("granule_swpin_fallback") - fallback, mem->nr - whole);
	/* The others come in by their own faults now, with the old contents. */
	EXPECT_EQ(mem_diff(mem), NO_DIFF);
	EXPECT_PRESENT(mem);
	EXPECT_EQ(granule_vmstat("granule_swpin_fallback") - fallback, mem->nr - whole);

	/* Out and in again, with free memory: now there are runs. */
	ASSERT_TRUE(mem_page_out(mem));
	lru_settle();
	mem_write(mem, 2);
	EXPECT_INTACT(mem);
	EXPECT_EQ(granule_vmstat("granule_swpin") - swpin, whole + mem->nr);
	EXPECT_EQ(granule_vmstat("granule_swpin_fallback") - fallback, mem->nr - whole);
}

/* Assert that repair makes a granule whole once all its pages have come in. */
TEST_F_TIMEOUT(page_granule_repair_fallback, swap_in_repair, 60)
{
	struct mem *mem = &self->mem;
	struct granule_swaps swaps;
	char *control;

	if (!granule_have_swap(&swaps))
		SKIP(return, GRANULE_SWAP_REMEDY);
	ASSERT_TRUE(mem_page_out(mem));
	granule_fail_order4(true);
	mem_read(mem);
	granule_fail_order4(false);
	control = mem_single_granule(mem);
	ASSERT_NE(control, NULL);
	ASSERT_TRUE(granule_repair(true));
	EXPECT_GE(granule_until_whole(mem->pagemap, control, REPAIR_SECONDS), 0);
	/* Repair brings nothing in from swap. */
	if (!strncmp(swaps.path, "/dev/zram", 9)) {
		EXPECT_EQ(mem_whole(mem), 0);
		EXPECT_EQ(mem_present(mem), mem->nr);
	}
	mem_write_pages(mem, 2);
	EXPECT_TRUE(mem_wait_whole(mem, REPAIR_SECONDS));
	EXPECT_INTACT(mem);
}

/*
 * Assert that repair makes granules of single pages whole soon after there is
 * memory, and no sooner, however they came to be of single pages.
 */
TEST_F_TIMEOUT(page_granule_repair_fallback, repair, 60)
{
	unsigned long repaired = granule_vmstat("granule_repair");
	struct mem *mem = &self->mem;

	ASSERT_TRUE(mem_renew(mem));
	granule_fail_order4(true);
	mem_fill(mem, 2);
	granule_fail_order4(false);
	ASSERT_EQ(mem_whole(mem), 0);
	ASSERT_TRUE(granule_repair(true));
	EXPECT_TRUE(mem_wait_whole(mem, REPAIR_SECONDS));
	EXPECT_INTACT(mem);
	EXPECT_EQ(granule_vmstat("granule_repair") - repaired, mem->nr);
	EXPECT_EQ(granule_rss_kb(mem->area, mem_len(mem)), mem_len(mem) / 1024);

	/* Copied by a write after fork(), which this process waits for. */
	granule_repair(false);
	ASSERT_TRUE(peer_fork(&self->peer, mem));
	if (!self->peer.pid) {
		granule_fail_order4(true);
		mem_write(mem, 3);
		granule_fail_order4(false);
		EXPECT_EQ(mem_whole(mem), 0);
		granule_repair(true);
		EXPECT_TRUE(mem_wait_whole(mem, REPAIR_SECONDS));
		EXPECT_INTACT(mem);
		mem_write_pages(mem, 4);
		EXPECT_INTACT(mem);
		_exit(0);
	}
	EXPECT_TRUE(peer_end(&self->peer));
	EXPECT_INTACT(mem);
}

/*
 * Assert that repair leaves pinned pages in place until they are unpinned: one
 * that a device may write to, and one in a pipe.
 */
TEST_F_TIMEOUT(page_granule_repair_fallback, repair_pinned, 60)
{
	const unsigned int flags = PIN_LONGTERM_TEST_FLAG_USE_WRITE;
	const unsigned long pinned = GRANULE_NR_PAGES + 2;
	const unsigned long piped = 3 * GRANULE_NR_PAGES + 15;
	struct mem *mem = &self->mem;
	struct iovec iov = { page_at(mem->area, piped), BASE_SIZE };
	int gup = open(GUP_TEST, O_RDWR);
	char seen[BASE_SIZE];
	unsigned long i;
	int fds[2];

	if (gup < 0)
		SKIP(return, GRANULE_GUP_REMEDY);
	ASSERT_TRUE(mem_renew(mem));
	granule_fail_order4(true);
	mem_fill(mem, 2);
	granule_fail_order4(false);
	mem_pfns(mem, self->pfns);
	ASSERT_EQ(pin(gup, mem, pinned, pinned + 1, flags), 0);
	ASSERT_EQ(pipe(fds), 0);
	ASSERT_EQ(vmsplice(fds[1], &iov, 1, 0), (ssize_t)BASE_SIZE);
	ASSERT_TRUE(granule_repair(true));
	/* As soon as the last is whole, repair has tried those before. */
	for (i = 0; i < mem->nr; i++) {
		if (i != pinned / GRANULE_NR_PAGES && i != piped / GRANULE_NR_PAGES)
			EXPECT_GE(granule_until_whole(mem->pagemap, nth(mem->area, i),
						      REPAIR_SECONDS), 0);
	}
	EXPECT_EQ(mem_whole(mem), mem->nr - 2);
	EXPECT_EQ(mem_moved(mem, self->pfns, GRANULE_NR_PAGES, 2 * GRANULE_NR_PAGES), 0);
	EXPECT_EQ(mem_moved(mem, self->pfns, 3 * GRANULE_NR_PAGES, 4 * GRANULE_NR_PAGES), 0);
	mem_write_pages(mem, 3);
	EXPECT_TRUE(pin_sees(gup, mem, pinned, pinned + 1));
	ASSERT_EQ(ioctl(gup, PIN_LONGTERM_TEST_STOP), 0);
	ASSERT_EQ(read(fds[0], seen, sizeof(seen)), (ssize_t)sizeof(seen));
	EXPECT_EQ(memcmp(seen, page_at(mem->model, piped), sizeof(seen)), 0);
	close(fds[0]);
	close(fds[1]);
	EXPECT_TRUE(mem_wait_whole(mem, REPAIR_SECONDS));
	EXPECT_INTACT(mem);
	close(gup);
}

/*
 * Assert that MADV_COLLAPSE repairs at once, only in its range, and reports
 * that.
 */
TEST_F(page_granule_repair_fallback, repair_on_demand)
{
	struct mem *mem = &self->mem;

	ASSERT_TRUE(mem_renew(mem));
	/* There is nothing yet that could be whole. */
	EXPECT_EQ(madvise(mem->area, mem_len(mem), MADV_COLLAPSE), 0);
	granule_fail_order4(true);
	mem_fill(mem, 2);
	EXPECT_EQ(mem_whole(mem), 0);
	errno = 0;
	EXPECT_EQ(madvise(mem->area, GRANULE_SIZE, MADV_COLLAPSE), -1);
	EXPECT_EQ(errno, ENOMEM);
	EXPECT_EQ(mem_whole(mem), 0);
	granule_fail_order4(false);
	EXPECT_EQ(madvise(nth(mem->area, 1), 2 * GRANULE_SIZE, MADV_COLLAPSE), 0);
	EXPECT_EQ(mem_whole(mem), 2);
	EXPECT_EQ(madvise(mem->area, mem_len(mem), MADV_COLLAPSE), 0);
	EXPECT_INTACT(mem);
	/* And that is enough. */
	EXPECT_EQ(madvise(mem->area, mem_len(mem), MADV_COLLAPSE), 0);
	EXPECT_INTACT(mem);
}

/* Assert that MADV_COLLAPSE returns EAGAIN for pinned pages. */
TEST_F(page_granule_repair_fallback, repair_on_demand_pinned)
{
	const unsigned int flags = PIN_LONGTERM_TEST_FLAG_USE_WRITE;
	struct mem *mem = &self->mem;
	int gup = open(GUP_TEST, O_RDWR);

	if (gup < 0)
		SKIP(return, GRANULE_GUP_REMEDY);
	ASSERT_TRUE(mem_renew(mem));
	granule_fail_order4(true);
	mem_fill(mem, 2);
	granule_fail_order4(false);
	ASSERT_EQ(pin(gup, mem, PIN_FIRST, PIN_FIRST + 1, flags), 0);
	errno = 0;
	EXPECT_EQ(madvise(mem->area, mem_len(mem), MADV_COLLAPSE), -1);
	EXPECT_EQ(errno, EAGAIN);
	EXPECT_EQ(mem_whole(mem), mem->nr - 1);
	mem_write_pages(mem, 3);
	EXPECT_TRUE(pin_sees(gup, mem, PIN_FIRST, PIN_FIRST + 1));
	ASSERT_EQ(ioctl(gup, PIN_LONGTERM_TEST_STOP), 0);
	EXPECT_EQ(mem_collapse(mem), 0);
	EXPECT_INTACT(mem);
	close(gup);
}

/*
 * Assert that repair leaves locked memory in place, and that MADV_COLLAPSE
 * moves it on request. The last granule is not locked.
 */
TEST_F_TIMEOUT(page_granule_repair_fallback, repair_locked, 60)
{
	struct mem *mem = &self->mem;
	const unsigned long locked = mem->nr - 1;
	const size_t len = locked * GRANULE_SIZE;

	ASSERT_TRUE(mem_renew(mem));
	granule_fail_order4(true);
	mem_fill(mem, 2);
	granule_fail_order4(false);
	ASSERT_EQ(mlock(mem->area, len), 0);
	mem_pfns(mem, self->pfns);
	ASSERT_TRUE(granule_repair(true));
	EXPECT_GE(granule_until_whole(mem->pagemap, nth(mem->area, locked), REPAIR_SECONDS), 0);
	EXPECT_EQ(mem_moved(mem, self->pfns, 0, locked * GRANULE_NR_PAGES), 0);
	ASSERT_TRUE(granule_repair(false));
	EXPECT_EQ(mem_whole(mem), 1);
	EXPECT_EQ(mem_collapse(mem), 0);
	EXPECT_INTACT(mem);
	EXPECT_EQ(munlock(mem->area, len), 0);
}

/* What only default-tagged memory allows: a granule that is cut. */
FIXTURE(page_granule_repair_cut)
{
	struct granule_fail fail;
	struct mem mem;
};

FIXTURE_SETUP(page_granule_repair_cut)
{
	prepare(_metadata, &self->mem, GRANULE_DEFAULT, &self->fail);
}

FIXTURE_TEARDOWN(page_granule_repair_cut)
{
	granule_repair(false);
	EXPECT_TRUE(granule_invariants_hold());
	granule_fail_restore(&self->fail);
}

/*
 * Assert that a larger folio with some granules cut moves or stays. Migration
 * splits it as it splits any folio that it finds no memory for.
 */
TEST_F(page_granule_repair_cut, move_cut_folio)
{
	const unsigned int order = 6, step = 4;
	struct mem *mem = &self->mem;
	unsigned long i;

	if (!(thp_supported_orders() & (1UL << order)))
		SKIP(return, "no 256 KiB mTHP: set CONFIG_TRANSPARENT_HUGEPAGE");
	if (!granule_two_nodes())
		SKIP(return, GRANULE_NODES_REMEDY);
	ASSERT_TRUE(mem_renew(mem));
	granule_thp_order(order);
	mem_fill(mem, 1);
	granule_thp_never();
	for (i = 1; i < mem->nr; i += step) {
		ASSERT_EQ(madvise(nth(mem->area, i) + BASE_SIZE, BASE_SIZE, MADV_DONTNEED), 0);
		memset(nth(mem->model, i) + BASE_SIZE, 0, BASE_SIZE);
	}
	granule_fail_order4(true);
	move_to_node(mem, 1);
	move_to_node(mem, 0);
	granule_fail_order4(false);
	EXPECT_EQ(mem_diff(mem), NO_DIFF);
	mem_write_pages(mem, 2);
	EXPECT_PRESENT(mem);
}

/*
 * Assert that granules come back whole whatever the order and place of their
 * swap slots.
 */
TEST_F(page_granule_repair_cut, scattered_slots)
{
	struct mem *mem = &self->mem;
	unsigned long i, odd;

	if (!granule_have_swap(NULL))
		SKIP(return, GRANULE_SWAP_REMEDY);
	ASSERT_TRUE(mem_renew(mem));
	granule_fail_order4(true);
	mem_fill(mem, 2);
	granule_fail_order4(false);
	ASSERT_EQ(mem_whole(mem), 0);
	for (odd = 0; odd < 2; odd++) {
		for (i = odd; i < mem_pages(mem); i += 2)
			ASSERT_EQ(madvise(mem->area + i * BASE_SIZE, BASE_SIZE, MADV_PAGEOUT),
				  0);
	}
	ASSERT_TRUE(mem_page_out(mem));
	lru_settle();
	mem_read(mem);
	EXPECT_INTACT(mem);
	mem_write_pages(mem, 3);
	EXPECT_INTACT(mem);
}

/*
 * Assert that repair makes a granule whole again once the program has filled
 * the hole that it made.
 */
TEST_F_TIMEOUT(page_granule_repair_cut, repair_filled, 60)
{
	struct mem *mem = &self->mem;
	const unsigned long cut = mem->nr - 1;
	char *control = nth(mem->area, cut);
	unsigned long i;

	for (i = 0; i < cut; i++) {
		char *page = byte_of(mem->area, i);

		page -= (unsigned long)page % BASE_SIZE;
		ASSERT_EQ(madvise(page, BASE_SIZE, MADV_DONTNEED), 0);
		memset(mem->model + (page - mem->area), 0, BASE_SIZE);
	}
	ASSERT_TRUE(granule_break(control, 3));
	memcpy(nth(mem->model, cut), control, GRANULE_SIZE);
	EXPECT_EQ(mem_whole(mem), 0);
	ASSERT_TRUE(granule_repair(true));
	/* An empty page is left empty. */
	EXPECT_GE(granule_until_whole(mem->pagemap, control, REPAIR_SECONDS), 0);
	EXPECT_EQ(mem_whole(mem), 1);
	EXPECT_EQ(mem_present(mem), mem_pages(mem) - cut);
	mem_write_pages(mem, 5);
	EXPECT_TRUE(mem_wait_whole(mem, REPAIR_SECONDS));
	EXPECT_INTACT(mem);
}

/* What only a contract promises: there is never a part of a granule. */
FIXTURE(page_granule_repair_contract)
{
	struct granule_fail fail;
	struct mem mem;
	struct granule_cg cg;
};

FIXTURE_SETUP(page_granule_repair_contract)
{
	prepare(_metadata, &self->mem, GRANULE_CONTRACT, &self->fail);
}

FIXTURE_TEARDOWN(page_granule_repair_contract)
{
	EXPECT_TRUE(granule_invariants_hold());
	granule_cg_remove(&self->cg);
	granule_fail_restore(&self->fail);
}

/*
 * Assert that MADV_FREE never leaves a part of a contract granule. Half of the
 * granules are single pages, every other one of which is swapped out.
 */
TEST_F(page_granule_repair_contract, madv_free)
{
	struct mem *mem = &self->mem;
	unsigned long i, filled, partial = 0, gone = 0;

	if (!granule_have_swap(NULL))
		SKIP(return, GRANULE_SWAP_REMEDY);
	if (!join_cgroup(&self->cg))
		SKIP(return, RECLAIM_REMEDY);
	ASSERT_TRUE(mem_renew(mem));
	for (i = 0; i < mem->nr; i++) {
		granule_fail_order4(i & 1);
		memset(nth(mem->area, i), 1, GRANULE_SIZE);
	}
	granule_fail_order4(false);
	EXPECT_EQ(mem_whole(mem), mem->nr / 2);
	/* Memory beyond the limit goes out, single pages as such. */
	granule_cg_write(self->cg.dir, "memory.reclaim", "512K swappiness=max");
	ASSERT_EQ(madvise(mem->area, mem_len(mem), MADV_FREE), 0);
	EXPECT_TRUE(granule_invariants_hold());
	granule_cg_write(self->cg.dir, "memory.reclaim", "4M swappiness=0");
	for (i = 0; i < mem->nr; i++) {
		filled = granule_filled(mem->pagemap, nth(mem->area, i));
		partial += filled && filled != GRANULE_NR_PAGES;
		gone += !filled;
	}
	EXPECT_EQ(partial, 0);
	EXPECT_GT(gone, 0);
}

/*
 * Repair. Granules of a default-tagged area are broken in various ways; that
 * one which nothing holds back is whole again tells that repair has been there.
 */
#define CONTROL		7UL

/* How long after a repaired granule the others are looked at. */
#define REPAIR_MS	1000
#define REPAIR_LIMIT	15.0

FIXTURE(page_granule_repair)
{
	char *area;
	int pagemap;
};

FIXTURE_SETUP(page_granule_repair)
{
	ASSERT_EQ(granule_set_enabled(true), 0);
	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, BASE_SIZE), 0);
	granule_thp_never();
	self->pagemap = granule_open_pagemap();
	ASSERT_GE(self->pagemap, 0);
	self->area = granule_area(GRANULE_DEFAULT, FEW_GRANULES * GRANULE_SIZE, 0);
	ASSERT_NE(self->area, NULL);
	memset(self->area, 1, FEW_GRANULES * GRANULE_SIZE);
	granule_repair(true);
}

FIXTURE_TEARDOWN(page_granule_repair)
{
	granule_repair(false);
	EXPECT_TRUE(granule_invariants_hold());
}

/* Break the last granule, and wait until repair has passed by all of them. */
static bool repair_passes(int pagemap, char *area)
{
	char *control = nth(area, CONTROL);

	if (!granule_break(control, 3) ||
	    granule_until_whole(pagemap, control, REPAIR_LIMIT) < 0)
		return false;
	usleep(REPAIR_MS * 1000);
	return true;
}

/*
 * Assert that repair fills neither holes that a program made nor zeroes that it
 * read.
 */
TEST_F_TIMEOUT(page_granule_repair, holes_stay, 60)
{
	char *hole = self->area, *beside = nth(self->area, 1);
	char *zero = nth(self->area, 2), *kept = nth(self->area, 3);
	char *only = nth(self->area, 4);
	unsigned long rss;

	ASSERT_TRUE(granule_give_back(hole, 5, 1));
	ASSERT_TRUE(granule_break(hole, 3));
	/* A fault on the page beside it. */
	ASSERT_TRUE(granule_give_back(beside, 5, 2));
	*page_at(beside, 6) = 1;
	ASSERT_TRUE(granule_give_back(zero, 5, 1));
	FORCE_READ(*page_at(zero, 5));
	ASSERT_TRUE(granule_break(zero, 3));
	ASSERT_TRUE(granule_give_back(kept, 1, 15));
	FORCE_READ(*kept);
	ASSERT_TRUE(granule_give_back(only, 0, GRANULE_NR_PAGES - 1));
	*page_at(only, 15) = 2;
	rss = granule_rss_kb(self->area, FEW_GRANULES * GRANULE_SIZE);

	ASSERT_TRUE(repair_passes(self->pagemap, self->area));
	usleep(2000 * 1000);
	EXPECT_EQ(granule_rss_kb(self->area, FEW_GRANULES * GRANULE_SIZE), rss);
	EXPECT_EQ(granule_present(self->pagemap, hole), 15);
	EXPECT_FALSE(pagemap_is_populated(self->pagemap, page_at(hole, 5)));
	EXPECT_EQ(granule_present(self->pagemap, beside), 15);
	EXPECT_FALSE(pagemap_is_populated(self->pagemap, page_at(beside, 5)));
	EXPECT_EQ(granule_zero_pages(self->pagemap, page_at(zero, 5), BASE_SIZE), 1);
	EXPECT_EQ(granule_present(self->pagemap, kept), 1);
	EXPECT_EQ(granule_present(self->pagemap, only), 1);

	/*
	 * Asking for runs is not asking for more memory either. Granules that
	 * cannot be whole are no error, and the others stay as they are.
	 */
	EXPECT_EQ(madvise(self->area, FEW_GRANULES * GRANULE_SIZE, MADV_COLLAPSE), 0);
	EXPECT_EQ(granule_rss_kb(self->area, FEW_GRANULES * GRANULE_SIZE), rss);
	EXPECT_EQ(granule_present(self->pagemap, hole), 15);
	EXPECT_EQ(granule_zero_pages(self->pagemap, page_at(zero, 5), BASE_SIZE), 1);
	EXPECT_EQ(granule_count(self->pagemap, self->area, FEW_GRANULES * GRANULE_SIZE,
				GRANULE_WHOLE), 3);
	EXPECT_EQ(granule_count(self->pagemap, nth(self->area, 5), 2 * GRANULE_SIZE,
				GRANULE_WHOLE), 2);
	EXPECT_TRUE(granule_is_filled(nth(self->area, 5), 2 * GRANULE_SIZE, 1));
	EXPECT_TRUE(granule_is_filled(page_at(hole, 6), 10 * BASE_SIZE, 1));
	EXPECT_TRUE(granule_is_filled(page_at(zero, 6), 10 * BASE_SIZE, 1));
	EXPECT_TRUE(granule_is_filled(page_at(zero, 5), BASE_SIZE, 0));
}

static bool all_on(char *granule, int node)
{
	return granule_pages_on(granule, GRANULE_NR_PAGES, node, NULL) == GRANULE_NR_PAGES;
}

/* Assert that repair allocates on the node that memory is bound to. */
TEST_F_TIMEOUT(page_granule_repair, bound_stays, 60)
{
	const size_t len = FEW_GRANULES * GRANULE_SIZE;
	unsigned long memory, node;
	char *area;

	if (!granule_two_nodes())
		SKIP(return, GRANULE_NODES_REMEDY);
	for (node = 0; node < 2; node++) {
		ASSERT_EQ(granule_bind_to(node), 0);
		area = granule_area(GRANULE_DEFAULT, len, 0);
		ASSERT_NE(area, NULL);
		memset(area, 1, len);
		/*
		 * A page of zeroes, which are on a node of their own, and a
		 * hint.
		 */
		ASSERT_TRUE(granule_give_back(area, 0, 1));
		FORCE_READ(*area);
		ASSERT_TRUE(granule_break(area, 1));
		ASSERT_TRUE(granule_break(nth(area, 1), 1));
		ASSERT_TRUE(repair_passes(self->pagemap, area));

		EXPECT_EQ(granule_pages_on(area, GRANULE_NR_PAGES, node, &memory), memory);
		EXPECT_EQ(memory, GRANULE_NR_PAGES - 1);
		EXPECT_TRUE(all_on(nth(area, 1), node));
		EXPECT_EQ(granule_state(self->pagemap, nth(area, 1)), GRANULE_WHOLE);
		EXPECT_TRUE(all_on(nth(area, CONTROL), node));
	}
	ASSERT_EQ(granule_bind_to(-1), 0);
}

/*
 * Assert that repair joins a page that a fault put on another node with the
 * others.
 */
TEST_F_TIMEOUT(page_granule_repair, other_node_joins, 60)
{
	char *area;
	int node;

	if (!granule_two_nodes())
		SKIP(return, GRANULE_NODES_REMEDY);
	for (node = 0; node < 2; node++) {
		ASSERT_EQ(granule_bind_to(node), 0);
		area = granule_area(GRANULE_DEFAULT, GRANULE_SIZE, 0);
		ASSERT_NE(area, NULL);
		memset(area, 1, GRANULE_SIZE);
		ASSERT_EQ(granule_bind_to(!node), 0);
		ASSERT_TRUE(granule_break(area, 3));
		ASSERT_EQ(granule_bind_to(-1), 0);
		EXPECT_TRUE(granule_until_whole(self->pagemap, area, REPAIR_LIMIT) >= 0);
		EXPECT_TRUE(all_on(area, node));
	}
}

/* Assert that repair leaves a page on the node that the program sent it to. */
TEST_F_TIMEOUT(page_granule_repair, moved_stays, 60)
{
	int to = 1, status = -1;
	char *area;

	if (!granule_two_nodes())
		SKIP(return, GRANULE_NODES_REMEDY);
	ASSERT_EQ(granule_bind_to(0), 0);
	area = granule_area(GRANULE_DEFAULT, GRANULE_SIZE, 0);
	ASSERT_NE(area, NULL);
	memset(area, 1, GRANULE_SIZE);
	ASSERT_EQ(granule_bind_to(-1), 0);
	ASSERT_EQ(granule_move_pages(page_at(area, 5), 1, &to, &status), 0);
	EXPECT_EQ(status, to);
	ASSERT_TRUE(repair_passes(self->pagemap, self->area));
	EXPECT_EQ(granule_pages_on(area, GRANULE_NR_PAGES, 0, NULL), GRANULE_NR_PAGES - 1);
	ASSERT_EQ(granule_move_pages(page_at(area, 5), 1, NULL, &status), 0);
	EXPECT_EQ(status, to);
}

#define ATTACKED		64UL
#define ATTACK_BURST		8192UL
#define ATTACK_PAUSE_US		(80 * 1000)
#define ATTACK_SECONDS		15.0
#define ATTACKER_UID		1000
#define SPLICES_A_PIPE		14UL
/*
 * Assert that repair interleaves granules as the policy of their VMA does. Each
 * granule has single pages on both nodes before.
 */
TEST_F_TIMEOUT(page_granule_repair, interleaved, 60)
{
	const unsigned long mask = 3;
	unsigned long i, page;
	char *area;

	if (!granule_two_nodes())
		SKIP(return, GRANULE_NODES_REMEDY);
	ASSERT_TRUE(granule_repair(false));
	area = granule_area(GRANULE_DEFAULT, FEW_GRANULES * GRANULE_SIZE, 0);
	ASSERT_NE(area, NULL);
	ASSERT_EQ(syscall(__NR_mbind, area, FEW_GRANULES * GRANULE_SIZE, MPOL_INTERLEAVE, &mask,
			  8 * sizeof(mask), 0), 0);
	memset(area, 1, FEW_GRANULES * GRANULE_SIZE);
	for (i = 0; i < FEW_GRANULES; i++) {
		ASSERT_TRUE(granule_give_back(nth(area, i), 0, GRANULE_NR_PAGES - 1));
		for (page = 0; page < GRANULE_NR_PAGES - 1; page++)
			*page_at(nth(area, i), page) = 1;
		ASSERT_EQ(granule_state(self->pagemap, nth(area, i)), GRANULE_BROKEN);
	}
	ASSERT_TRUE(granule_repair(true));
	for (i = 0; i < FEW_GRANULES; i++)
		EXPECT_GE(granule_until_whole(self->pagemap, nth(area, i), REPAIR_LIMIT), 0);
	EXPECT_EQ(granule_on_node(area, FEW_GRANULES, 0, false), FEW_GRANULES / 2);
	EXPECT_EQ(granule_on_node(area, FEW_GRANULES, 1, false), FEW_GRANULES / 2);
}

/*
 * Assert that MADV_COLLAPSE fails for a granule that is in use, though all else
 * in its range can become a huge page.
 */
TEST_F_TIMEOUT(page_granule_repair, collapse_beside_huge, 60)
{
	const size_t len = GRANULE_SIZE + PMD_SIZE;
	char *res, *area;
	struct iovec iov;
	int fds[2];

	ASSERT_TRUE(granule_repair(false));
	res = mmap(NULL, 4 * PMD_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(res, MAP_FAILED);
	area = (char *)(((uintptr_t)res + 2 * PMD_SIZE) & ~(PMD_SIZE - 1)) - GRANULE_SIZE;
	ASSERT_EQ(granule_map(GRANULE_DEFAULT, false, area, len, MAP_FIXED), area);
	memset(area, 1, len);
	ASSERT_TRUE(granule_break(area, 3));
	iov = (struct iovec){ page_at(area, 5), BASE_SIZE };
	ASSERT_EQ(pipe(fds), 0);
	ASSERT_EQ(vmsplice(fds[1], &iov, 1, 0), (ssize_t)BASE_SIZE);

	errno = 0;
	EXPECT_EQ(madvise(area, len, MADV_COLLAPSE), -1);
	EXPECT_EQ(errno, EAGAIN);
	close(fds[0]);
	close(fds[1]);
	EXPECT_EQ(madvise(area, len, MADV_COLLAPSE), 0);
	EXPECT_EQ(granule_state(self->pagemap, area), GRANULE_WHOLE);
	munmap(res, 4 * PMD_SIZE);
}

#define PIPE_PAGES_SOFT		"/proc/sys/fs/pipe-user-pages-soft"

/*
 * One page of each granule is pinned, so that all work done for it is in vain.
 * First a burst of broken granules, then two of them now and then.
 */
static void attack(int ready)
{
	char *area = granule_area(GRANULE_DEFAULT, ATTACKED * PMD_SIZE, 0);
	unsigned long i;
	int fds[2];

	if (!area || setgid(ATTACKER_UID) || setuid(ATTACKER_UID))
		_exit(1);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (i = 0; i < ATTACKED; i++) {
		char *granule = area + i * PMD_SIZE;
		struct iovec iov = { page_at(granule, 15), BASE_SIZE };

		memset(granule, 1, GRANULE_SIZE);
		granule_break(granule, 0);
		if ((i % SPLICES_A_PIPE == 0 && pipe(fds)) ||
		    vmsplice(fds[1], &iov, 1, 0) != (ssize_t)BASE_SIZE)
			_exit(1);
	}
	for (i = 0; i < ATTACK_BURST; i++)
		granule_break(area + i % ATTACKED * PMD_SIZE, 1 + i / ATTACKED % 8);
	if (write(ready, "", 1) != 1)
		_exit(1);
	for (i = 0;; i += 3) {
		usleep(ATTACK_PAUSE_US);
		granule_break(area + i % ATTACKED * PMD_SIZE, 1);
		granule_break(area + (i + 7) % ATTACKED * PMD_SIZE, 1);
	}
}

#define VICTIMS		3UL
#define VICTIM_LIMIT	30.0

/*
 * Assert that breaking granules in a loop takes no more of the kernel's time
 * than the budget of repair, and does not keep others from being repaired.
 */
TEST_F_TIMEOUT(page_granule_repair, attack, 180)
{
	unsigned long i;
	double cpu, start, seconds;
	int ready[2], status;
	char *victims, c;
	pid_t pid;

	ASSERT_EQ(pipe(ready), 0);
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid)
		attack(ready[1]);
	close(ready[1]);
	if (read(ready[0], &c, 1) != 1) {
		waitpid(pid, NULL, 0);
		SKIP(return, "pages cannot be pinned: raise " PIPE_PAGES_SOFT);
	}
	/*
	 * Repair leaves memory alone that the attacker shares with this
	 * process.
	 */
	victims = granule_area(GRANULE_DEFAULT, VICTIMS * GRANULE_SIZE, 0);
	ASSERT_NE(victims, NULL);
	memset(victims, 1, VICTIMS * GRANULE_SIZE);
	start = granule_now();
	cpu = granule_kthread_seconds();
	for (i = 0; i < VICTIMS; i++) {
		usleep(2000 * 1000);
		ASSERT_TRUE(granule_break(nth(victims, i), 3));
		seconds = granule_until_whole(self->pagemap, nth(victims, i), VICTIM_LIMIT);
		ksft_print_msg("victim %lu: repaired after %.2f s\n", i, seconds);
		EXPECT_GE(seconds, 0);
	}
	seconds = ATTACK_SECONDS - (granule_now() - start);
	if (seconds > 0)
		usleep(seconds * 1e6);
	cpu = granule_kthread_seconds() - cpu;
	seconds = granule_now() - start;
	EXPECT_EQ(waitpid(pid, &status, WNOHANG), 0);
	granule_kill_idle(pid);
	ksft_print_msg("kernel threads: %.2f s in %.1f s\n", cpu, seconds);
	/*
	 * 5 per cent, and half as much again for all that kernel threads do
	 * else.
	 */
	EXPECT_LE(cpu, 0.075 * seconds);
}

int main(int argc, char **argv)
{
	granule_require();
	granule_save_settings();
	return test_harness_run(argc, argv);
}
