// SPDX-License-Identifier: GPL-2.0
/*
 * Page granule: swap. What was swapped out comes back as runs, whichever way it
 * is faulted in.
 *
 * Each test keeps a model of its area: untagged memory to which it does the
 * same.
 */
#define _GNU_SOURCE
#include "kselftest_harness.h"
#include <asm-generic/mman.h> /* Force the import of the tools version. */
#include <limits.h>
#include <sched.h>
#include <string.h>
#include <sys/swap.h>
#include <sys/uio.h>
#include <unistd.h>

#include "vm_util.h"
#include "page_granule_mem.h"
#include "page_granule_util.h"

FIXTURE(page_granule_swap)
{
	struct mem mem;
	struct peer peer;
	struct granule_cg cg;
};

FIXTURE_VARIANT(page_granule_swap)
{
	enum granule_kind kind;
};

FIXTURE_VARIANT_ADD(page_granule_swap, contract)
{
	.kind = GRANULE_CONTRACT,
};

FIXTURE_VARIANT_ADD(page_granule_swap, default_tagged)
{
	.kind = GRANULE_DEFAULT,
};

FIXTURE_SETUP(page_granule_swap)
{
	if (!granule_have_swap(NULL))
		SKIP(return, GRANULE_SWAP_REMEDY);
	ASSERT_TRUE(mem_create(&self->mem, variant->kind));
}

FIXTURE_TEARDOWN(page_granule_swap)
{
	EXPECT_TRUE(granule_invariants_hold());
	granule_cg_remove(&self->cg);
}

/* Assert that one read fault brings in one granule, and no other. */
TEST_F(page_granule_swap, read_back)
{
	unsigned long swpin = granule_vmstat("granule_swpin");
	unsigned long fallback = granule_vmstat("granule_swpin_fallback");
	unsigned long swpout = swapped_whole();
	struct mem *mem = &self->mem;
	long faults, all_faults = 0;
	unsigned long odd, i;

	ASSERT_NE(swpin, ULONG_MAX);
	mem_fill(mem, 1);
	ASSERT_TRUE(mem_page_out(mem));
	EXPECT_EQ(swapped_whole() - swpout, mem->nr);
	EXPECT_EQ(mem_present(mem), 0);
	for (odd = 0; odd < 2; odd++) {
		faults = granule_faults();
		for (i = odd; i < mem->nr; i += 2)
			FORCE_READ(*byte_of(mem->area, i));
		all_faults += granule_faults() - faults;
		EXPECT_EQ(mem_whole(mem), (odd + 1) * mem->nr / 2);
		EXPECT_EQ(mem_swapped(mem), (1 - odd) * mem_pages(mem) / 2);
	}
	EXPECT_FAULTS(all_faults, mem->nr);
	faults = granule_faults();
	EXPECT_INTACT(mem);
	EXPECT_LE(granule_faults() - faults, FAULT_SLACK);
	EXPECT_EQ(granule_vmstat("granule_swpin") - swpin, mem->nr);
	EXPECT_EQ(granule_vmstat("granule_swpin_fallback"), fallback);
}

/* Assert that one write fault brings in one granule, all of it writable. */
TEST_F(page_granule_swap, write_back)
{
	struct mem *mem = &self->mem;
	long faults;

	mem_fill(mem, 1);
	ASSERT_TRUE(mem_page_out(mem));
	faults = granule_faults();
	mem_write(mem, 2);
	faults = granule_faults() - faults;
	EXPECT_FAULTS(faults, mem->nr);
	EXPECT_EQ(mem_whole(mem), mem->nr);
	faults = granule_faults();
	mem_write_pages(mem, 3);
	EXPECT_LE(granule_faults() - faults, FAULT_SLACK);
	EXPECT_INTACT(mem);
}

/* Assert that memory goes out and comes in many times, changed or unchanged. */
TEST_F(page_granule_swap, again_and_again)
{
	struct mem *mem = &self->mem;
	int round;

	mem_fill(mem, 1);
	for (round = 0; round < 6; round++) {
		ASSERT_TRUE(mem_page_out(mem));
		if (round & 1)
			mem_read(mem);
		else
			mem_write(mem, round);
		EXPECT_INTACT(mem);
		/*
		 * Written after it has been read, while still in the swap
		 * cache.
		 */
		if (round == 3) {
			mem_write_pages(mem, round);
			EXPECT_INTACT(mem);
		}
	}
}

/*
 * Assert that both processes bring in whole granules that were out when they
 * forked.
 */
TEST_F(page_granule_swap, fork_while_out)
{
	struct mem *mem = &self->mem;
	int child_first;

	for (child_first = 0; child_first < 2; child_first++) {
		ASSERT_TRUE(mem_renew(mem));
		mem_fill(mem, 1);
		ASSERT_TRUE(mem_page_out(mem));
		ASSERT_TRUE(peer_fork(&self->peer, mem));
		if (!self->peer.pid) {
			if (!child_first)
				peer_wait(&self->peer);
			mem_read(mem);
			EXPECT_INTACT(mem);
			mem_write(mem, 2);
			EXPECT_INTACT(mem);
			peer_switch(&self->peer);
			EXPECT_INTACT(mem);
			_exit(0);
		}
		if (child_first)
			ASSERT_TRUE(peer_wait(&self->peer));
		mem_write(mem, 3);
		EXPECT_INTACT(mem);
		if (!child_first)
			ASSERT_TRUE(peer_switch(&self->peer));
		EXPECT_TRUE(peer_end(&self->peer));
		mem_write_pages(mem, 4);
		EXPECT_INTACT(mem);
	}
}

/* Assert that threads that race to bring a granule in find it whole. */
TEST_F(page_granule_swap, threads)
{
	struct mem *mem = &self->mem;
	struct storm storm;
	unsigned int round;

	mem_fill(mem, 1);
	ASSERT_TRUE(storm_create(&storm, mem));
	for (round = 0; round < 12; round++) {
		ASSERT_TRUE(mem_page_out(mem));
		/* Into the swap cache only, page by page. */
		if (round & 1)
			ASSERT_EQ(madvise(mem->area, mem_len(mem), MADV_WILLNEED), 0);
		storm_round(&storm);
		EXPECT_INTACT(mem);
	}
	EXPECT_EQ(storm_end(&storm), 0);
}

/* Assert that soft-dirty is neither lost nor gained on the way out and in. */
TEST_F(page_granule_swap, soft_dirty)
{
	struct mem *mem = &self->mem, half = *mem;
	unsigned long i;

	if (!softdirty_supported())
		SKIP(return, GRANULE_SOFT_DIRTY_REMEDY);
	half.nr /= 2;
	mem_fill(mem, 1);
	clear_softdirty();
	mem_write(&half, 2);
	ASSERT_TRUE(mem_page_out(mem));
	mem_read(mem);
	EXPECT_INTACT(mem);
	for (i = 0; i < mem->nr; i++)
		EXPECT_EQ(soft_dirty_pages(mem, i), i < half.nr ? GRANULE_NR_PAGES : 0);
	mem_write_pages(mem, 3);
	EXPECT_INTACT(mem);
	for (i = 0; i < mem->nr; i++)
		EXPECT_EQ(soft_dirty_pages(mem, i), GRANULE_NR_PAGES);

	/* Cleared while it is out. */
	ASSERT_TRUE(mem_page_out(mem));
	clear_softdirty();
	mem_write(&half, 4);
	mem_read(mem);
	EXPECT_INTACT(mem);
	for (i = 0; i < mem->nr; i++)
		EXPECT_EQ(soft_dirty_pages(mem, i), i < half.nr ? GRANULE_NR_PAGES : 0);
}

static bool reclaim_all(const struct granule_cg *cg, struct mem *mem)
{
	int i;

	for (i = 0; i < 50; i++) {
		granule_cg_write(cg->dir, "memory.reclaim", RECLAIM_ALL);
		if (mem_swapped(mem) == mem_pages(mem))
			return true;
		usleep(10 * 1000);
	}
	return false;
}

/* Assert that shared memory comes back whole, too, by one fault a granule. */
TEST_F(page_granule_swap, shared_memory)
{
	unsigned long swpin = granule_vmstat("granule_swpin");
	unsigned long swpout = swapped_whole();
	struct mem *mem = &self->mem;
	long faults;

	if (!join_cgroup(&self->cg))
		SKIP(return, RECLAIM_REMEDY);
	ASSERT_TRUE(mem_share(mem));
	mem_fill(mem, 1);
	ASSERT_TRUE(shared_page_out(&self->cg, mem));
	EXPECT_EQ(swapped_whole() - swpout, mem->nr);
	EXPECT_EQ(mem_present(mem), 0);
	faults = granule_faults();
	mem_read(mem);
	faults = granule_faults() - faults;
	EXPECT_FAULTS(faults, mem->nr);
	EXPECT_EQ(granule_vmstat("granule_swpin") - swpin, mem->nr);
	EXPECT_INTACT(mem);
	ASSERT_TRUE(shared_page_out(&self->cg, mem));
	mem_write(mem, 2);
	EXPECT_INTACT(mem);
}

/*
 * Assert that memory that two processes share goes out, and is whole again in
 * both.
 */
TEST_F(page_granule_swap, shared)
{
	struct mem *mem = &self->mem;

	if (!join_cgroup(&self->cg))
		SKIP(return, RECLAIM_REMEDY);
	mem_fill(mem, 1);
	ASSERT_TRUE(peer_fork(&self->peer, mem));
	if (!self->peer.pid) {
		if (!peer_switch(&self->peer))
			_exit(1);
		EXPECT_EQ(mem_swapped(mem), mem_pages(mem));
		mem_read(mem);
		EXPECT_INTACT(mem);
		if (!peer_switch(&self->peer))
			_exit(1);
		/* The parent has it, too, and has written. */
		EXPECT_INTACT(mem);
		mem_write(mem, 3);
		EXPECT_INTACT(mem);
		_exit(0);
	}
	ASSERT_TRUE(peer_wait(&self->peer));
	ASSERT_TRUE(reclaim_all(&self->cg, mem));
	ASSERT_TRUE(peer_switch(&self->peer));
	mem_read(mem);
	EXPECT_INTACT(mem);
	mem_write(mem, 2);
	EXPECT_INTACT(mem);
	peer_go(&self->peer);
	EXPECT_TRUE(peer_end(&self->peer));
	EXPECT_INTACT(mem);
}

/*
 * Assert that memory that exceeds the limit is never gone in part while several
 * threads write to it and reclaim takes it away, and that it is whole again
 * when there is room.
 */
TEST_F_TIMEOUT(page_granule_swap, thrash, 180)
{
	unsigned long i, round, partial = 0;
	struct storm storm;
	struct mem mem;

	ASSERT_TRUE(mem_create_nr(&mem, variant->kind, 64));
	/*
	 * The model is charged to the process that touches it first, not to the
	 * cgroup.
	 */
	memset(mem.model, 0, mem_len(&mem));
	if (!join_cgroup(&self->cg))
		SKIP(return, RECLAIM_REMEDY);
	ASSERT_EQ(granule_cg_write(self->cg.dir, "memory.max", "3M"), 0);
	/*
	 * Memory of zswap counts as well. Beyond this zswap has to write back.
	 */
	granule_cg_write(self->cg.dir, "memory.zswap.max", "512K");
	mem_fill(&mem, 1);
	EXPECT_GT(mem_swapped(&mem), 0);
	ASSERT_TRUE(storm_create(&storm, &mem));
	for (round = 0; round < 4; round++) {
		storm_round(&storm);
		for (i = 0; i < mem.nr; i++)
			partial += granule_filled(mem.pagemap, nth(mem.area, i)) !=
				   GRANULE_NR_PAGES;
	}
	EXPECT_EQ(storm_end(&storm), 0);
	EXPECT_EQ(partial, 0);
	EXPECT_GT(mem_swapped(&mem), 0);

	/*
	 * Folios without slots in a row, or without room to copy, have been
	 * split.
	 */
	ASSERT_EQ(granule_cg_write(self->cg.dir, "memory.max", "max"), 0);
	EXPECT_EQ(mem_diff(&mem), NO_DIFF);
	/*
	 * A page that was read while its device still wrote it is in the swap cache,
	 * and not exclusive. It is not moved before a write has made it so.
	 */
	mem_write_pages(&mem, 4);
	EXPECT_EQ(mem_collapse(&mem), 0);
	EXPECT_INTACT(&mem);
	mem_write_pages(&mem, 5);
	EXPECT_INTACT(&mem);
}

/*
 * Assert that cutting memory that is out removes that part, and nothing else.
 */
TEST_F(page_granule_swap, cut_while_out)
{
	const size_t unit = variant->kind == GRANULE_CONTRACT ? GRANULE_SIZE : BASE_SIZE;
	const size_t pos = 2 * GRANULE_SIZE + (unit == BASE_SIZE ? 3 * BASE_SIZE : 0);
	struct mem *mem = &self->mem, rest = *mem;

	mem_fill(mem, 1);
	ASSERT_TRUE(mem_page_out(mem));
	ASSERT_EQ(madvise(mem->area + pos, unit, MADV_DONTNEED), 0);
	memset(mem->model + pos, 0, unit);
	EXPECT_EQ(mem_swapped(mem), mem_pages(mem) - unit / BASE_SIZE);
	mem_read(mem);
	rest.nr = 2;
	EXPECT_EQ(mem_whole(&rest), rest.nr);
	rest.area = nth(mem->area, 3);
	rest.nr = mem->nr - 3;
	EXPECT_EQ(mem_whole(&rest), rest.nr);
	EXPECT_EQ(mem_diff(mem), NO_DIFF);
	mem_write_pages(mem, 2);
	EXPECT_PRESENT(mem);
}

/* What only default-tagged memory allows: a granule that is cut. */
FIXTURE(page_granule_swap_cut)
{
	struct mem mem;
};

FIXTURE_SETUP(page_granule_swap_cut)
{
	if (!granule_have_swap(NULL))
		SKIP(return, GRANULE_SWAP_REMEDY);
	ASSERT_TRUE(mem_create(&self->mem, GRANULE_DEFAULT));
}

FIXTURE_TEARDOWN(page_granule_swap_cut)
{
	EXPECT_TRUE(granule_invariants_hold());
}

/* Assert that a broken granule comes back with the pages that it had. */
TEST_F(page_granule_swap_cut, broken_granule)
{
	struct mem *mem = &self->mem, rest = *mem;
	const size_t pos = 4 * BASE_SIZE;

	mem_fill(mem, 1);
	ASSERT_EQ(madvise(mem->area + pos, BASE_SIZE, MADV_DONTNEED), 0);
	memset(mem->model + pos, 0, BASE_SIZE);
	rest.area = nth(mem->area, 1);
	rest.model = nth(mem->model, 1);
	rest.nr--;
	ASSERT_TRUE(mem_page_out(&rest));
	/* The kernel may split the folio for this, or not. */
	madvise(mem->area, GRANULE_SIZE, MADV_PAGEOUT);
	EXPECT_EQ(granule_filled(mem->pagemap, mem->area), GRANULE_NR_PAGES - 1);
	mem_read(&rest);
	EXPECT_EQ(mem_whole(&rest), rest.nr);
	EXPECT_EQ(mem_diff(mem), NO_DIFF);
	mem_write_pages(mem, 2);
	EXPECT_PRESENT(mem);
}

/*
 * Ways in, apart from a fault of the process itself. What they change, they
 * change in the model as well; whatever they leave out is read afterwards.
 */
static bool way_read(struct mem *mem)
{
	mem_read(mem);
	return true;
}

static bool way_write(struct mem *mem)
{
	mem_write(mem, 2);
	return true;
}

static bool way_mlock(struct mem *mem)
{
	return !mlock(mem->area, mem_len(mem)) && mem_present(mem) == mem_pages(mem) &&
	       !munlock(mem->area, mem_len(mem));
}

static bool way_populate_read(struct mem *mem)
{
	return !madvise(mem->area, mem_len(mem), MADV_POPULATE_READ) &&
	       mem_present(mem) == mem_pages(mem);
}

static bool way_populate_write(struct mem *mem)
{
	return !madvise(mem->area, mem_len(mem), MADV_POPULATE_WRITE) &&
	       mem_present(mem) == mem_pages(mem);
}

static bool way_willneed(struct mem *mem)
{
	if (madvise(mem->area, mem_len(mem), MADV_WILLNEED))
		return false;
	/* In the swap cache now, in folios of whatever order. */
	mem_read(mem);
	return true;
}

static bool way_gup(struct mem *mem)
{
	struct iovec remote = { .iov_base = mem->area + BASE_SIZE, .iov_len = 1 };
	struct iovec local = { .iov_len = 1 };
	char c;

	local.iov_base = &c;
	for (; (char *)remote.iov_base < mem->area + mem_len(mem);
	     remote.iov_base += GRANULE_SIZE) {
		if (process_vm_readv(getpid(), &local, 1, &remote, 1, 0) != 1)
			return false;
	}
	return true;
}

static bool way_mremap(struct mem *mem)
{
	char *spare = granule_reserve(mem_len(mem));

	if (!spare || sys_mremap(mem->area, mem_len(mem), mem_len(mem),
				 MREMAP_MAYMOVE | MREMAP_FIXED, spare) != spare)
		return false;
	mem->area = spare;
	mem_read(mem);
	return true;
}

static bool way_mprotect(struct mem *mem)
{
	if (mprotect(mem->area, mem_len(mem), PROT_READ))
		return false;
	mem_read(mem);
	if (mprotect(mem->area, mem_len(mem), PROT_RW))
		return false;
	mem_write(mem, 2);
	return true;
}

static bool way_fork(struct mem *mem)
{
	struct peer peer;

	if (!peer_fork(&peer, mem))
		return false;
	if (!peer.pid) {
		mem_read(mem);
		_exit(mem_whole(mem) == mem->nr && mem_diff(mem) == NO_DIFF ? 0 : 1);
	}
	if (!peer_end(&peer))
		return false;
	mem_read(mem);
	return true;
}

/* All at once, by someone else: nothing is left out for the process to read. */
static bool way_swapoff(struct mem *mem)
{
	struct granule_swaps swaps;
	bool off, present;

	granule_read_swaps(&swaps);
	off = !swapoff(swaps.path);
	present = mem_present(mem) == mem_pages(mem);
	if (!off)
		return false;
	return !swapon(swaps.path, swaps.prio < 0 ? 0 : SWAP_FLAG_PREFER | swaps.prio) &&
	       present;
}

FIXTURE(page_granule_swap_in)
{
	struct granule_swaps swaps;
	struct mem mem;
};

FIXTURE_VARIANT(page_granule_swap_in)
{
	bool (*way)(struct mem *mem);
};

FIXTURE_VARIANT_ADD(page_granule_swap_in, read) { .way = way_read };
FIXTURE_VARIANT_ADD(page_granule_swap_in, write) { .way = way_write };
FIXTURE_VARIANT_ADD(page_granule_swap_in, mlock) { .way = way_mlock };
FIXTURE_VARIANT_ADD(page_granule_swap_in, populate_read) { .way = way_populate_read };
FIXTURE_VARIANT_ADD(page_granule_swap_in, populate_write) { .way = way_populate_write };
FIXTURE_VARIANT_ADD(page_granule_swap_in, willneed) { .way = way_willneed };
FIXTURE_VARIANT_ADD(page_granule_swap_in, gup) { .way = way_gup };
FIXTURE_VARIANT_ADD(page_granule_swap_in, mremap) { .way = way_mremap };
FIXTURE_VARIANT_ADD(page_granule_swap_in, mprotect) { .way = way_mprotect };
FIXTURE_VARIANT_ADD(page_granule_swap_in, fork) { .way = way_fork };
FIXTURE_VARIANT_ADD(page_granule_swap_in, swapoff) { .way = way_swapoff };

FIXTURE_SETUP(page_granule_swap_in)
{
	if (!granule_have_swap(&self->swaps))
		SKIP(return, GRANULE_SWAP_REMEDY);
	if (variant->way == way_swapoff && self->swaps.nr > 1)
		SKIP(return, "several swap devices: leave one only for swapoff");
}

/* Swap has to be on, whatever has happened. */
FIXTURE_TEARDOWN(page_granule_swap_in)
{
	struct granule_swaps swaps;

	EXPECT_TRUE(granule_invariants_hold());
	granule_read_swaps(&swaps);
	if (!swaps.nr)
		swapon(self->swaps.path, 0);
}

static void swap_in(struct __test_metadata *_metadata, struct mem *mem,
		    enum granule_kind kind, bool (*way)(struct mem *mem))
{
	unsigned long partial = to_be_split();

	ASSERT_TRUE(mem_create(mem, kind));
	mem_fill(mem, 1);
	ASSERT_TRUE(mem_page_out(mem));
	EXPECT_TRUE(way(mem));
	EXPECT_EQ(to_be_split(), partial);
	EXPECT_INTACT(mem);
	mem_write_pages(mem, 3);
	EXPECT_INTACT(mem);
}

/* Assert that contract granules are whole again, whichever way they come in. */
TEST_F(page_granule_swap_in, contract)
{
	swap_in(_metadata, &self->mem, GRANULE_CONTRACT, variant->way);
}

/*
 * Assert that default-tagged granules are whole again, whichever way they come
 * in.
 */
TEST_F(page_granule_swap_in, default_tagged)
{
	swap_in(_metadata, &self->mem, GRANULE_DEFAULT, variant->way);
}

int main(int argc, char **argv)
{
	granule_require();
	granule_save_settings();
	return test_harness_run(argc, argv);
}
