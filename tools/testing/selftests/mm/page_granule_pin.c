// SPDX-License-Identifier: GPL-2.0
/*
 * Page granule: pages that GUP has pinned. A pin stays valid, the process and
 * the pin see the same memory, and nothing else of the area loses its runs.
 */
#define _GNU_SOURCE
#include "kselftest_harness.h"
#include <asm-generic/mman.h> /* Force the import of the tools version. */
#include <fcntl.h>
#include <sched.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "../../../../mm/gup_test.h"
#include "vm_util.h"
#include "page_granule_fire.h"
#include "page_granule_util.h"

FIXTURE(page_granule_pin)
{
	struct mem mem;
	struct peer peer;
	unsigned long pfns[MEM_PAGES];
	int gup;
};

FIXTURE_VARIANT(page_granule_pin)
{
	enum granule_kind kind;
	unsigned int flags;
};

FIXTURE_VARIANT_ADD(page_granule_pin, contract)
{
	.kind = GRANULE_CONTRACT,
};

FIXTURE_VARIANT_ADD(page_granule_pin, default_tagged)
{
	.kind = GRANULE_DEFAULT,
};

FIXTURE_VARIANT_ADD(page_granule_pin, contract_fast)
{
	.kind = GRANULE_CONTRACT,
	.flags = PIN_LONGTERM_TEST_FLAG_USE_FAST,
};

FIXTURE_VARIANT_ADD(page_granule_pin, default_tagged_fast)
{
	.kind = GRANULE_DEFAULT,
	.flags = PIN_LONGTERM_TEST_FLAG_USE_FAST,
};

FIXTURE_SETUP(page_granule_pin)
{
	self->gup = open(GUP_TEST, O_RDWR);
	if (self->gup < 0)
		SKIP(return, GRANULE_GUP_REMEDY);
	ASSERT_TRUE(mem_create(&self->mem, variant->kind));
}

FIXTURE_TEARDOWN(page_granule_pin)
{
	EXPECT_TRUE(granule_invariants_hold());
	close(self->gup);
}

/*
 * Assert that pinning shared memory for reading copies whole granules, for
 * good.
 */
TEST_F(page_granule_pin, unshare)
{
	struct mem *mem = &self->mem;
	unsigned long end = mem_pages(mem) - PIN_FIRST;
	unsigned long cow;

	mem_fill(mem, 1);
	ASSERT_TRUE(peer_fork(&self->peer, mem));
	if (!self->peer.pid) {
		mem_pfns(mem, self->pfns);
		if (!peer_switch(&self->peer))
			_exit(1);
		EXPECT_EQ(mem_moved(mem, self->pfns, 0, mem_pages(mem)), 0);
		EXPECT_INTACT(mem);
		_exit(0);
	}
	ASSERT_TRUE(peer_wait(&self->peer));
	mem_pfns(mem, self->pfns);
	cow = granule_vmstat("granule_cow");
	ASSERT_EQ(pin(self->gup, mem, PIN_FIRST, end, variant->flags), 0);
	EXPECT_EQ(granule_vmstat("granule_cow") - cow, mem->nr);
	EXPECT_EQ(mem_moved(mem, self->pfns, 0, mem_pages(mem)), mem_pages(mem));
	EXPECT_INTACT(mem);

	mem_pfns(mem, self->pfns);
	mem_write_pages(mem, 2);
	EXPECT_TRUE(pin_sees(self->gup, mem, PIN_FIRST, end));
	EXPECT_EQ(mem_moved(mem, self->pfns, 0, mem_pages(mem)), 0);
	EXPECT_EQ(granule_vmstat("granule_cow") - cow, mem->nr);
	EXPECT_INTACT(mem);
	peer_go(&self->peer);
	EXPECT_TRUE(peer_end(&self->peer));
	ASSERT_EQ(ioctl(self->gup, PIN_LONGTERM_TEST_STOP), 0);
	EXPECT_INTACT(mem);
}

/*
 * Assert that clearing soft-dirty bits skips all of a granule with a pinned
 * page.
 */
TEST_F(page_granule_pin, soft_dirty)
{
	const unsigned int flags = variant->flags | PIN_LONGTERM_TEST_FLAG_USE_WRITE;
	struct mem *mem = &self->mem;
	unsigned long i;

	if (!softdirty_supported())
		SKIP(return, GRANULE_SOFT_DIRTY_REMEDY);
	mem_fill(mem, 1);
	/* One page, which is not the first of its granule. */
	ASSERT_EQ(pin(self->gup, mem, PIN_FIRST, PIN_FIRST + 1, flags), 0);
	clear_softdirty();
	EXPECT_INTACT(mem);
	for (i = 0; i < mem->nr; i++)
		EXPECT_EQ(soft_dirty_pages(mem, i),
			  i == PIN_FIRST / GRANULE_NR_PAGES ? GRANULE_NR_PAGES : 0);
	mem_write_pages(mem, 2);
	EXPECT_TRUE(pin_sees(self->gup, mem, PIN_FIRST, PIN_FIRST + 1));
	EXPECT_INTACT(mem);
}

/* Assert that memory that is no longer shared is pinned in place. */
TEST_F(page_granule_pin, unshare_after_exit)
{
	struct mem *mem = &self->mem;
	unsigned long end = mem_pages(mem) - PIN_FIRST;
	unsigned long cow = granule_vmstat("granule_cow");

	mem_fill(mem, 1);
	mem_pfns(mem, self->pfns);
	ASSERT_TRUE(peer_fork_idle(&self->peer, mem));
	ASSERT_TRUE(peer_end(&self->peer));
	ASSERT_EQ(pin(self->gup, mem, PIN_FIRST, end, variant->flags), 0);
	EXPECT_INTACT(mem);
	mem_write_pages(mem, 2);
	EXPECT_TRUE(pin_sees(self->gup, mem, PIN_FIRST, end));
	EXPECT_EQ(mem_moved(mem, self->pfns, 0, mem_pages(mem)), 0);
	EXPECT_EQ(granule_vmstat("granule_cow"), cow);
	EXPECT_INTACT(mem);
}

/* Assert that pinning zeroes for reading replaces whole zero runs. */
TEST_F(page_granule_pin, unshare_zero_runs)
{
	struct mem *mem = &self->mem;
	unsigned long end = mem_pages(mem) - PIN_FIRST;
	unsigned long cow = granule_vmstat("granule_cow");

	mem_read(mem);
	ASSERT_EQ(mem_zero_runs(mem), mem->nr);
	ASSERT_EQ(pin(self->gup, mem, PIN_FIRST, end, variant->flags), 0);
	EXPECT_EQ(mem_zero_runs(mem), 0);
	EXPECT_INTACT(mem);
	mem_pfns(mem, self->pfns);
	mem_write_pages(mem, 2);
	EXPECT_TRUE(pin_sees(self->gup, mem, PIN_FIRST, end));
	EXPECT_EQ(mem_moved(mem, self->pfns, 0, mem_pages(mem)), 0);
	EXPECT_EQ(granule_vmstat("granule_cow") - cow, mem->nr);
	EXPECT_INTACT(mem);
}

/* Assert that pinning untouched memory for reading populates whole granules. */
TEST_F(page_granule_pin, empty)
{
	struct mem *mem = &self->mem;
	unsigned long end = mem_pages(mem) - PIN_FIRST;

	ASSERT_EQ(pin(self->gup, mem, PIN_FIRST, end, variant->flags), 0);
	EXPECT_INTACT(mem);
	mem_write_pages(mem, 2);
	EXPECT_TRUE(pin_sees(self->gup, mem, PIN_FIRST, end));
	EXPECT_INTACT(mem);
}

/*
 * Assert that fork leaves the pinned pages and those around them to the parent,
 * and gives the child whole granules of its own.
 */
TEST_F(page_granule_pin, pinned_at_fork)
{
	const unsigned long first = PIN_FIRST, end = 3 * GRANULE_NR_PAGES - PIN_FIRST;
	const unsigned long copied = 3 * GRANULE_NR_PAGES;
	unsigned int flags = variant->flags | PIN_LONGTERM_TEST_FLAG_USE_WRITE;
	struct mem *mem = &self->mem;

	mem_fill(mem, 1);
	mem_pfns(mem, self->pfns);
	ASSERT_EQ(pin(self->gup, mem, first, end, flags), 0);
	ASSERT_TRUE(peer_fork(&self->peer, mem));
	if (!self->peer.pid) {
		EXPECT_INTACT(mem);
		EXPECT_EQ(mem_moved(mem, self->pfns, 0, copied), copied);
		EXPECT_EQ(mem_moved(mem, self->pfns, copied, mem_pages(mem)), 0);
		if (!peer_switch(&self->peer))
			_exit(1);
		/* The parent has written. */
		EXPECT_INTACT(mem);
		mem_write_pages(mem, 3);
		EXPECT_INTACT(mem);
		_exit(0);
	}
	ASSERT_TRUE(peer_wait(&self->peer));
	EXPECT_INTACT(mem);
	mem_write_pages(mem, 2);
	EXPECT_TRUE(pin_sees(self->gup, mem, first, end));
	EXPECT_EQ(mem_moved(mem, self->pfns, 0, copied), 0);
	EXPECT_INTACT(mem);
	peer_go(&self->peer);
	EXPECT_TRUE(peer_end(&self->peer));
	EXPECT_TRUE(pin_sees(self->gup, mem, first, end));

	ASSERT_EQ(ioctl(self->gup, PIN_LONGTERM_TEST_STOP), 0);
	mem_write_pages(mem, 4);
	EXPECT_EQ(mem_moved(mem, self->pfns, 0, copied), 0);
	EXPECT_INTACT(mem);
}

/* Assert the same while other threads write to the memory. */
TEST_F(page_granule_pin, fork_under_fire)
{
	const unsigned long first = PIN_FIRST, end = 3 * GRANULE_NR_PAGES - PIN_FIRST;
	unsigned int flags = variant->flags | PIN_LONGTERM_TEST_FLAG_USE_WRITE;
	struct mem *mem = &self->mem;

	mem_fill(mem, 1);
	mem_pfns(mem, self->pfns);
	ASSERT_EQ(pin(self->gup, mem, first, end, flags), 0);
	fork_under_fire(_metadata, mem);
	EXPECT_EQ(mem_moved(mem, self->pfns, 0, 3 * GRANULE_NR_PAGES), 0);
	EXPECT_TRUE(pin_sees(self->gup, mem, first, end));
}

/*
 * Assert that pinned granules stay in place and whole when asked to move, and
 * that they move and swap out once unpinned.
 */
TEST_F(page_granule_pin, move_pinned)
{
	unsigned int flags = variant->flags | PIN_LONGTERM_TEST_FLAG_USE_WRITE;
	unsigned long partial = to_be_split(), swpout;
	struct mem *mem = &self->mem;
	struct granule_swaps swaps;
	int node;

	if (!granule_two_nodes())
		SKIP(return, GRANULE_NODES_REMEDY);
	mem_fill(mem, 1);
	ASSERT_EQ(pin(self->gup, mem, 0, mem_pages(mem), flags), 0);
	mem_pfns(mem, self->pfns);
	for (node = 0; node < 2; node++) {
		move_to_node(mem, node);
		EXPECT_EQ(mem_moved(mem, self->pfns, 0, mem_pages(mem)), 0);
		EXPECT_INTACT(mem);
	}
	mem_write_pages(mem, 2);
	EXPECT_TRUE(pin_sees(self->gup, mem, 0, mem_pages(mem)));
	EXPECT_EQ(to_be_split(), partial);

	/* Pinned no longer, it can be swapped out whole, and moved. */
	ASSERT_EQ(ioctl(self->gup, PIN_LONGTERM_TEST_STOP), 0);
	if (granule_have_swap(&swaps)) {
		swpout = swapped_whole();
		ASSERT_TRUE(mem_page_out(mem));
		EXPECT_EQ(swapped_whole() - swpout, mem->nr);
		mem_read(mem);
		EXPECT_INTACT(mem);
	}
	EXPECT_EQ(move_to_node(mem, 1), 0);
	EXPECT_EQ(move_to_node(mem, 0), 0);
	EXPECT_INTACT(mem);
}

int main(int argc, char **argv)
{
	granule_require();
	granule_save_settings();
	return test_harness_run(argc, argv);
}
