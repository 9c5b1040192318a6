// SPDX-License-Identifier: GPL-2.0
/*
 * Page granule: fork and copy-on-write. A copy is made of a whole granule, so
 * that parent and child have runs afterwards.
 *
 * Each test keeps a model of its area: untagged memory to which it does the
 * same. At each step the granules have to be whole and hold what the model
 * holds.
 */
#define _GNU_SOURCE
#include "kselftest_harness.h"
#include <asm-generic/mman.h> /* Force the import of the tools version. */
#include <fcntl.h>
#include <limits.h>
#include <linux/fs.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include "hugepage_settings.h"
#include "vm_util.h"
#include "page_granule_fire.h"
#include "page_granule_util.h"

/*
 * Zero runs. Fork does not copy page tables of memory that was never written
 * to, so write to it, and give that back.
 */
static bool mem_zero(struct mem *mem)
{
	if (!mem_renew(mem))
		return false;
	mem->area[0] = 1;
	if (madvise(mem->area, mem_len(mem), MADV_DONTNEED))
		return false;
	mem_read(mem);
	return true;
}

/* Fork and copy-on-write. */
FIXTURE(page_granule_cow)
{
	struct mem mem;
	struct peer peer;
	unsigned long pfns[MEM_PAGES];
};

FIXTURE_VARIANT(page_granule_cow)
{
	enum granule_kind kind;
};

FIXTURE_VARIANT_ADD(page_granule_cow, contract)
{
	.kind = GRANULE_CONTRACT,
};

FIXTURE_VARIANT_ADD(page_granule_cow, default_tagged)
{
	.kind = GRANULE_DEFAULT,
};

FIXTURE_SETUP(page_granule_cow)
{
	ASSERT_TRUE(mem_create(&self->mem, variant->kind));
	mem_fill(&self->mem, 1);
}

FIXTURE_TEARDOWN(page_granule_cow)
{
	EXPECT_TRUE(granule_invariants_hold());
}

/* Assert that writes of a child copy whole granules, by one fault each. */
TEST_F(page_granule_cow, child_writes)
{
	unsigned long cow = granule_vmstat("granule_cow");
	unsigned long fallback = granule_vmstat("granule_fallback");
	unsigned long partial = to_be_split();
	struct mem *mem = &self->mem;

	ASSERT_NE(cow, ULONG_MAX);
	ASSERT_TRUE(peer_fork(&self->peer, mem));
	if (!self->peer.pid) {
		long faults;

		EXPECT_INTACT(mem);
		faults = mem_write(mem, 2);
		EXPECT_FAULTS(faults, mem->nr);
		EXPECT_INTACT(mem);
		EXPECT_LE(mem_write_pages(mem, 3), FAULT_SLACK);
		EXPECT_INTACT(mem);
		/* Until the parent has seen that both are whole at once. */
		peer_switch(&self->peer);
		EXPECT_INTACT(mem);
		_exit(0);
	}
	ASSERT_TRUE(peer_wait(&self->peer));
	EXPECT_EQ(granule_vmstat("granule_cow") - cow, mem->nr);
	EXPECT_EQ(granule_vmstat("granule_fallback"), fallback);
	EXPECT_EQ(to_be_split(), partial);
	EXPECT_INTACT(mem);
	EXPECT_TRUE(peer_end(&self->peer));
	EXPECT_INTACT(mem);
}

/* Assert that writes of the parent leave the old granules to the child. */
TEST_F(page_granule_cow, parent_writes)
{
	unsigned long cow = granule_vmstat("granule_cow");
	struct mem *mem = &self->mem;
	long faults;

	ASSERT_TRUE(peer_fork(&self->peer, mem));
	if (!self->peer.pid) {
		mem_pfns(mem, self->pfns);
		if (!peer_switch(&self->peer))
			_exit(1);
		EXPECT_INTACT(mem);
		/* It has them to itself now: no copy. */
		mem_write_pages(mem, 4);
		EXPECT_EQ(mem_moved(mem, self->pfns, 0, mem_pages(mem)), 0);
		EXPECT_INTACT(mem);
		_exit(0);
	}
	ASSERT_TRUE(peer_wait(&self->peer));
	faults = mem_write(mem, 2);
	EXPECT_FAULTS(faults, mem->nr);
	EXPECT_INTACT(mem);
	peer_go(&self->peer);
	EXPECT_TRUE(peer_end(&self->peer));
	EXPECT_LE(mem_write_pages(mem, 3), FAULT_SLACK);
	EXPECT_INTACT(mem);
	EXPECT_EQ(granule_vmstat("granule_cow") - cow, mem->nr);
}

/* Assert that the last owner reuses a granule in place, by one fault each. */
TEST_F(page_granule_cow, reuse_after_exit)
{
	unsigned long cow = granule_vmstat("granule_cow");
	struct mem *mem = &self->mem;
	long faults;

	mem_pfns(mem, self->pfns);
	ASSERT_TRUE(peer_fork_idle(&self->peer, mem));
	ASSERT_TRUE(peer_end(&self->peer));
	EXPECT_INTACT(mem);
	faults = mem_write(mem, 2);
	EXPECT_FAULTS(faults, mem->nr);
	EXPECT_EQ(mem_moved(mem, self->pfns, 0, mem_pages(mem)), 0);
	EXPECT_INTACT(mem);
	EXPECT_LE(mem_write_pages(mem, 3), FAULT_SLACK);
	EXPECT_EQ(mem_moved(mem, self->pfns, 0, mem_pages(mem)), 0);
	EXPECT_INTACT(mem);
	EXPECT_EQ(granule_vmstat("granule_cow"), cow);
}

/*
 * Each generation writes every third granule, then all when those after it
 * have.
 */
static void generation(struct __test_metadata *_metadata, struct mem *mem, int depth)
{
	struct peer peer;
	unsigned long i;

	for (i = depth; i < mem->nr; i += 3) {
		granule_fill(nth(mem->area, i), GRANULE_SIZE, 10 + depth);
		granule_fill(nth(mem->model, i), GRANULE_SIZE, 10 + depth);
	}
	EXPECT_INTACT(mem);
	if (depth == 3)
		return;
	ASSERT_TRUE(peer_fork(&peer, mem));
	if (!peer.pid) {
		generation(_metadata, mem, depth + 1);
		_exit(0);
	}
	EXPECT_TRUE(peer_end(&peer));
	EXPECT_INTACT(mem);
	mem_write(mem, 20 + depth);
	EXPECT_INTACT(mem);
}

/* Assert that four generations, all alive, have whole granules of their own. */
TEST_F(page_granule_cow, generations)
{
	generation(_metadata, &self->mem, 0);
}

/*
 * Assert that a parent and two children that share one folio get a copy each.
 */
TEST_F(page_granule_cow, siblings)
{
	struct mem *mem = &self->mem;
	struct peer peers[2];
	int i;

	for (i = 0; i < 2; i++) {
		ASSERT_TRUE(peer_fork(&peers[i], mem));
		if (peers[i].pid)
			continue;
		peer_wait(&peers[i]);
		mem_write(mem, 2 + i);
		EXPECT_INTACT(mem);
		_exit(0);
	}
	mem_write_pages(mem, 9);
	EXPECT_INTACT(mem);
	for (i = 0; i < 2; i++) {
		peer_go(&peers[i]);
		EXPECT_TRUE(peer_end(&peers[i]));
		EXPECT_INTACT(mem);
	}
}

/*
 * Assert that mprotect() to read-only and back makes no shared page writable,
 * in the parent or in the child.
 */
TEST_F(page_granule_cow, mprotect_there_and_back)
{
	struct mem *mem = &self->mem;
	int child;

	for (child = 0; child < 2; child++) {
		ASSERT_TRUE(mem_renew(mem));
		mem_fill(mem, child);
		ASSERT_TRUE(peer_fork(&self->peer, mem));
		if (!!self->peer.pid != child) {
			EXPECT_EQ(mprotect(mem->area, mem_len(mem), PROT_READ), 0);
			EXPECT_INTACT(mem);
			EXPECT_EQ(mprotect(mem->area, mem_len(mem), PROT_RW), 0);
			EXPECT_INTACT(mem);
			mem_write(mem, 5);
			EXPECT_INTACT(mem);
		}
		if (!self->peer.pid) {
			peer_switch(&self->peer);
			EXPECT_INTACT(mem);
			_exit(0);
		}
		ASSERT_TRUE(peer_wait(&self->peer));
		EXPECT_INTACT(mem);
		ASSERT_TRUE(peer_end(&self->peer));
		mem_write_pages(mem, 6);
		EXPECT_INTACT(mem);
	}
}

/*
 * Assert that a child that only reads keeps whole granules with the old
 * contents.
 */
TEST_F(page_granule_cow, read_only_child)
{
	struct mem *mem = &self->mem;

	ASSERT_TRUE(peer_fork(&self->peer, mem));
	if (!self->peer.pid) {
		EXPECT_EQ(mprotect(mem->area, mem_len(mem), PROT_READ), 0);
		EXPECT_INTACT(mem);
		if (!peer_switch(&self->peer))
			_exit(1);
		/* The parent has written. */
		EXPECT_INTACT(mem);
		EXPECT_EQ(mprotect(mem->area, mem_len(mem), PROT_RW), 0);
		mem_write(mem, 3);
		EXPECT_INTACT(mem);
		_exit(0);
	}
	ASSERT_TRUE(peer_wait(&self->peer));
	mem_write(mem, 2);
	EXPECT_INTACT(mem);
	peer_go(&self->peer);
	EXPECT_TRUE(peer_end(&self->peer));
	EXPECT_INTACT(mem);
}

/*
 * Assert that zero runs survive fork in both processes, and that a write
 * replaces each in one process only.
 */
TEST_F(page_granule_cow, zero_runs)
{
	struct mem *mem = &self->mem;
	unsigned long cow;
	long faults;

	ASSERT_TRUE(mem_zero(mem));
	ASSERT_EQ(mem_zero_runs(mem), mem->nr);
	cow = granule_vmstat("granule_cow");
	ASSERT_TRUE(peer_fork(&self->peer, mem));
	if (!self->peer.pid) {
		EXPECT_EQ(mem_zero_runs(mem), mem->nr);
		/* Zeroes are no memory that is mapped. */
		EXPECT_EQ(mem_mapped(mem), 0);
		faults = minor_faults();
		mem_read(mem);
		EXPECT_LE(minor_faults() - faults, FAULT_SLACK);
		faults = mem_write(mem, 2);
		EXPECT_FAULTS(faults, mem->nr);
		EXPECT_INTACT(mem);
		_exit(0);
	}
	EXPECT_TRUE(peer_end(&self->peer));
	EXPECT_EQ(mem_zero_runs(mem), mem->nr);
	EXPECT_EQ(mem_mapped(mem), 0);
	EXPECT_EQ(granule_rss_kb(mem->area, mem_len(mem)), 0);
	EXPECT_EQ(mem_diff(mem), NO_DIFF);
	faults = mem_write(mem, 3);
	EXPECT_FAULTS(faults, mem->nr);
	EXPECT_EQ(mem_zero_runs(mem), 0);
	EXPECT_INTACT(mem);
	EXPECT_EQ(granule_vmstat("granule_cow") - cow, 2 * mem->nr);
}

/* The place in granule i that a tracer writes to. */
static unsigned long *poked_word(char *area, unsigned long i)
{
	return (unsigned long *)(nth(area, i) + (i * 5 % GRANULE_NR_PAGES) * BASE_SIZE +
				 i * sizeof(long));
}

#define POKED	0x5a5aa5a5UL

enum poked { POKE_SHARED, POKE_ZERO, POKE_OWN, POKE_NR };

/*
 * To be poked: memory that may only be read, in each of the states it can be
 * in.
 */
static void tracee(struct __test_metadata *_metadata, struct mem *mem, enum poked state,
		   unsigned long *pfns)
{
	unsigned long i;

	if (state == POKE_OWN)
		mem_write(mem, 3);
	EXPECT_EQ(mprotect(mem->area, mem_len(mem), PROT_READ), 0);
	EXPECT_EQ(mem_mapped(mem), state == POKE_ZERO ? 0 : mem->nr);
	mem_pfns(mem, pfns);
	ptrace(PTRACE_TRACEME, 0, NULL, NULL);
	raise(SIGSTOP);

	for (i = 0; i < mem->nr; i++)
		*poked_word(mem->model, i) = POKED;
	EXPECT_EQ(mem_zero_runs(mem), 0);
	/*
	 * One copy for each granule replaces the pages that the child did not
	 * own.
	 */
	EXPECT_EQ(mem_moved(mem, pfns, 0, mem_pages(mem)),
		  state == POKE_OWN ? 0 : mem_pages(mem))
		TH_LOG("state %d", state);
	EXPECT_INTACT(mem);
	EXPECT_EQ(mprotect(mem->area, mem_len(mem), PROT_RW), 0);
	mem_write(mem, 4);
	EXPECT_INTACT(mem);
	_exit(0);
}

/*
 * Assert that a tracer that writes to read-only memory copies whole granules.
 */
TEST_F(page_granule_cow, ptrace_poke)
{
	struct mem *mem = &self->mem;
	enum poked state;
	unsigned long i;
	int status;
	pid_t pid;

	for (state = POKE_SHARED; state < POKE_NR; state++) {
		ASSERT_TRUE(mem_zero(mem));
		if (state != POKE_ZERO)
			mem_fill(mem, 2);
		ASSERT_TRUE(peer_fork(&self->peer, mem));
		pid = self->peer.pid;
		if (!pid)
			tracee(_metadata, mem, state, self->pfns);
		ASSERT_EQ(waitpid(pid, &status, 0), pid);
		ASSERT_TRUE(WIFSTOPPED(status));
		for (i = 0; i < mem->nr; i++)
			ASSERT_EQ(ptrace(PTRACE_POKEDATA, pid, poked_word(mem->area, i), POKED),
				  0);
		ASSERT_EQ(ptrace(PTRACE_CONT, pid, NULL, NULL), 0);
		EXPECT_TRUE(peer_end(&self->peer));
		EXPECT_EQ(mem_zero_runs(mem), state == POKE_ZERO ? mem->nr : 0);
		EXPECT_EQ(mem_mapped(mem), state == POKE_ZERO ? 0 : mem->nr);
		EXPECT_EQ(mem_diff(mem), NO_DIFF);
	}
}

/* Assert that threads that race to copy a granule after fork find it whole. */
TEST_F(page_granule_cow, threads)
{
	struct mem *mem = &self->mem;
	struct storm storm;
	unsigned int round;

	ASSERT_TRUE(storm_create(&storm, mem));
	for (round = 0; round < 12; round++) {
		ASSERT_TRUE(peer_fork(&self->peer, mem));
		if (!self->peer.pid) {
			/* Copies or reuses the memory, as the parent does. */
			if (round & 1)
				mem_write(mem, round);
			peer_switch(&self->peer);
			EXPECT_INTACT(mem);
			_exit(0);
		}
		storm_round(&storm);
		EXPECT_INTACT(mem);
		ASSERT_TRUE(peer_wait(&self->peer));
		EXPECT_TRUE(peer_end(&self->peer));
	}
	EXPECT_EQ(storm_end(&storm), 0);
}

/* Assert that children forked while other threads write find whole granules. */
TEST_F(page_granule_cow, fork_under_fire)
{
	fork_under_fire(_metadata, &self->mem);
}

/* Assert that a granule of a larger folio is copied, and reused, as a whole. */
TEST_F(page_granule_cow, larger_folios)
{
	unsigned long orders = thp_supported_orders();
	struct mem mem = self->mem;
	unsigned int order;
	char *res;

	/* So that there is room for a huge page. */
	mem.nr = 2 * HPAGE_SIZE / GRANULE_SIZE;
	mem.model = granule_mmap(GRANULE_UNTAGGED, NULL, mem_len(&mem), PROT_RW, 0);
	ASSERT_NE(mem.model, MAP_FAILED);
	res = granule_reserve(mem_len(&mem) + HPAGE_SIZE);
	ASSERT_NE(res, NULL);
	mem.area = (char *)(((unsigned long)res + HPAGE_SIZE - 1) & -(unsigned long)HPAGE_SIZE);
	for (order = 5; order < NR_ORDERS; order++) {
		if (!(orders & (1UL << order)) || (order & 1 && order != 9))
			continue;
		granule_thp_order(order);
		ASSERT_TRUE(mem_renew(&mem));
		mem_fill(&mem, order);
		ASSERT_TRUE(peer_fork(&self->peer, &mem));
		if (!self->peer.pid) {
			mem_write(&mem, 2);
			EXPECT_INTACT(&mem);
			peer_switch(&self->peer);
			EXPECT_INTACT(&mem);
			_exit(0);
		}
		ASSERT_TRUE(peer_wait(&self->peer));
		EXPECT_INTACT(&mem);
		mem_write(&mem, 3);
		EXPECT_INTACT(&mem);
		EXPECT_TRUE(peer_end(&self->peer));
		mem_write_pages(&mem, 4);
		EXPECT_INTACT(&mem);
	}
}

/* Default-tagged memory, as a contract granule cannot be cut. */
FIXTURE(page_granule_cow_cut)
{
	struct mem mem;
	struct peer peer;
};

FIXTURE_SETUP(page_granule_cow_cut)
{
	ASSERT_TRUE(mem_create(&self->mem, GRANULE_DEFAULT));
	mem_fill(&self->mem, 1);
}

FIXTURE_TEARDOWN(page_granule_cow_cut)
{
	EXPECT_TRUE(granule_invariants_hold());
}

/*
 * Assert that a child that keeps one page of each granule still shares that
 * page.
 */
TEST_F(page_granule_cow_cut, child_keeps_one_page)
{
	struct mem *mem = &self->mem;
	unsigned long i;

	ASSERT_TRUE(peer_fork(&self->peer, mem));
	if (!self->peer.pid) {
		for (i = 0; i < mem->nr; i++) {
			EXPECT_EQ(madvise(nth(mem->area, i) + BASE_SIZE,
					  GRANULE_SIZE - BASE_SIZE, MADV_DONTNEED), 0);
			memset(nth(mem->model, i) + BASE_SIZE, 0, GRANULE_SIZE - BASE_SIZE);
		}
		EXPECT_EQ(mem_present(mem), mem->nr);
		if (!peer_switch(&self->peer))
			_exit(1);
		EXPECT_EQ(mem_present(mem), mem->nr);
		mem_write_pages(mem, 3);
		EXPECT_PRESENT(mem);
		_exit(0);
	}
	ASSERT_TRUE(peer_wait(&self->peer));
	mem_write(mem, 2);
	EXPECT_INTACT(mem);
	peer_go(&self->peer);
	EXPECT_TRUE(peer_end(&self->peer));
	mem_write_pages(mem, 4);
	EXPECT_INTACT(mem);
}

/*
 * Assert that soft-dirty tracking, which write-protects, keeps granules whole.
 * It then reports writes by granule, not by page.
 */
TEST_F(page_granule_cow, soft_dirty)
{
	struct mem *mem = &self->mem, half = *mem;
	unsigned long i;
	int shared;

	if (!softdirty_supported())
		SKIP(return, GRANULE_SOFT_DIRTY_REMEDY);
	half.nr /= 2;
	for (shared = 0; shared < 2; shared++) {
		if (shared)
			ASSERT_TRUE(peer_fork_idle(&self->peer, mem));
		clear_softdirty();
		EXPECT_INTACT(mem);
		EXPECT_EQ(soft_dirty_pages(mem, 0), 0);
		mem_write(&half, 2 + shared);
		EXPECT_INTACT(mem);
		for (i = 0; i < mem->nr; i++)
			EXPECT_EQ(soft_dirty_pages(mem, i), i < half.nr ? GRANULE_NR_PAGES : 0);
		mem_write_pages(mem, 4 + shared);
		EXPECT_EQ(soft_dirty_pages(mem, half.nr), GRANULE_NR_PAGES);
		EXPECT_INTACT(mem);
		if (shared)
			EXPECT_TRUE(peer_end(&self->peer));
	}
}

/*
 * Assert that soft-dirty tracking sees the next write to shared memory after
 * its bits were cleared.
 */
TEST_F(page_granule_cow, soft_dirty_shared)
{
	struct mem *mem = &self->mem;
	long faults;

	if (!softdirty_supported())
		SKIP(return, GRANULE_SOFT_DIRTY_REMEDY);
	ASSERT_TRUE(mem_share(mem));
	mem_fill(mem, 1);
	clear_softdirty();
	faults = mem_write(mem, 2);
	EXPECT_FAULTS(faults, mem->nr);
	EXPECT_INTACT(mem);
	faults = mem_write_pages(mem, 3);
	EXPECT_LE(faults, FAULT_SLACK);
	EXPECT_INTACT(mem);
}

/* Do pread()s of pagemap give the same as reads of single entries do? */
static bool same_pagemap(const struct mem *mem)
{
	const unsigned long vpn = (unsigned long)mem->area / BASE_SIZE;
	const unsigned long some = 3 * GRANULE_NR_PAGES;
	uint64_t alone[MEM_PAGES], together[MEM_PAGES];
	unsigned long first, nr, i;

	for (i = 0; i < mem_pages(mem); i++)
		alone[i] = pagemap_get_entry(mem->pagemap, mem->area + i * BASE_SIZE);
	for (first = 0; first < some; first++) {
		/* All there is, or any number of pages. */
		for (nr = 0; first + nr < some; nr++) {
			size_t len = (nr ?: mem_pages(mem) - first) * sizeof(*alone);

			if (pread(mem->pagemap, together, len, (vpn + first) * sizeof(*alone)) !=
			    (ssize_t)len)
				return false;
			if (memcmp(together, alone + first, len))
				return false;
		}
	}
	return true;
}

/* Does PAGEMAP_SCAN find as many pages as it may, from any page on? */
static bool same_scan(const struct mem *mem, uint64_t category)
{
	const unsigned long some = 3 * GRANULE_NR_PAGES;
	unsigned long first, nr;

	for (first = 0; first < some; first++) {
		for (nr = 1; first + nr < some; nr++) {
			const uint64_t start = (uintptr_t)mem->area + first * BASE_SIZE;
			const uint64_t end = start + nr * BASE_SIZE;
			struct page_region regions[2];
			struct pm_scan_arg arg = {
				.size = sizeof(arg),
				.start = start,
				.end = (uintptr_t)mem->area + mem_len(mem),
				.vec = (uintptr_t)regions,
				.vec_len = 2,
				.max_pages = nr,
				.category_mask = category,
				.return_mask = category,
			};

			if (ioctl(mem->pagemap, PAGEMAP_SCAN, &arg) != 1)
				return false;
			if (regions[0].start != start || regions[0].end != end ||
			    regions[0].categories != category || arg.walk_end != end)
				return false;
		}
	}
	return true;
}

/*
 * Assert that pagemap reports of granules what it reports of single pages,
 * where the child has given back some pages and the parent owns these alone.
 */
TEST_F(page_granule_cow, pagemap)
{
	struct mem *mem = &self->mem;
	unsigned long i;

	EXPECT_TRUE(same_pagemap(mem));
	EXPECT_TRUE(same_scan(mem, PAGE_IS_PRESENT));
	ASSERT_TRUE(peer_fork(&self->peer, mem));
	if (!self->peer.pid) {
		for (i = 0; i < mem->nr && variant->kind != GRANULE_CONTRACT; i++) {
			char *page = nth(mem->area, i) + i % GRANULE_NR_PAGES * BASE_SIZE;

			EXPECT_EQ(madvise(page, BASE_SIZE, MADV_DONTNEED), 0);
		}
		EXPECT_TRUE(same_pagemap(mem));
		peer_switch(&self->peer);
		_exit(0);
	}
	ASSERT_TRUE(peer_wait(&self->peer));
	EXPECT_INTACT(mem);
	EXPECT_TRUE(same_pagemap(mem));
	EXPECT_TRUE(same_scan(mem, PAGE_IS_PRESENT));
	EXPECT_TRUE(peer_end(&self->peer));

	ASSERT_TRUE(mem_zero(mem));
	EXPECT_EQ(mem_zero_runs(mem), mem->nr);
	EXPECT_TRUE(same_pagemap(mem));
	EXPECT_TRUE(same_scan(mem, PAGE_IS_PFNZERO));
}

/* Are the numbers of smaps those of the same memory in single pages? */
static bool same_smaps(const struct mem *mem, const char *single)
{
	static const char *const names[] = {
		"Rss:", "Pss:", "Pss_Dirty:", "Shared_Clean:", "Shared_Dirty:",
		"Private_Clean:", "Private_Dirty:", "Referenced:", "Anonymous:",
	};
	bool same = true;
	size_t i;

	for (i = 0; i < ARRAY_SIZE(names); i++) {
		long kb = granule_smaps_kb(mem->area, mem_len(mem), names[i]);
		long expected = granule_smaps_kb(single, mem_len(mem), names[i]);

		if (kb < 0 || kb != expected) {
			ksft_print_msg("%s %ld kB, expected %ld\n", names[i], kb, expected);
			same = false;
		}
	}
	return same;
}

/*
 * Assert that smaps counts every page of a granule once, shared or not, and
 * that writing to clear_refs clears the references of all pages.
 */
TEST_F(page_granule_cow, smaps_and_clear_refs)
{
	struct mem *mem = &self->mem;
	char *single = granule_reserve(mem_len(mem));
	int shared, fd;

	ASSERT_NE(single, NULL);
	for (shared = 0; shared < 2; shared++) {
		ASSERT_TRUE(mem_renew(mem));
		mem_fill(mem, 1);
		ASSERT_EQ(granule_mmap(GRANULE_UNTAGGED, single, mem_len(mem), PROT_RW,
				       MAP_FIXED), single);
		granule_fill(single, mem_len(mem), 1);
		if (shared)
			ASSERT_TRUE(peer_fork_idle(&self->peer, mem));
		EXPECT_TRUE(same_smaps(mem, single));
		fd = open("/proc/self/clear_refs", O_WRONLY);
		ASSERT_GE(fd, 0);
		ASSERT_EQ(write(fd, "1", 1), 1);
		close(fd);
		/* No page of either is referenced now. */
		EXPECT_TRUE(same_smaps(mem, single));
		mem_write(mem, 2);
		EXPECT_INTACT(mem);
		if (shared)
			EXPECT_TRUE(peer_end(&self->peer));
	}
}

/*
 * Assert that fork and copy-on-write keep a default-tagged granule right that a
 * 4 KiB call has cut.
 */
TEST_F(page_granule_cow, broken_granule)
{
	struct mem *mem = &self->mem, rest = *mem;
	char *hole = mem->area + 5 * BASE_SIZE;

	/* A contract granule cannot be cut; nothing is to come of trying. */
	EXPECT_EQ(madvise(hole, 3 * BASE_SIZE, MADV_DONTNEED),
		  variant->kind == GRANULE_CONTRACT ? -1 : 0);
	rest.area += GRANULE_SIZE;
	rest.model += GRANULE_SIZE;
	rest.nr--;
	if (variant->kind != GRANULE_CONTRACT) {
		memset(mem->model + 5 * BASE_SIZE, 0, 3 * BASE_SIZE);
		EXPECT_EQ(granule_filled(mem->pagemap, mem->area), GRANULE_NR_PAGES - 3);
	}
	ASSERT_TRUE(peer_fork(&self->peer, mem));
	if (!self->peer.pid) {
		mem_write(mem, 2);
		EXPECT_EQ(mem_whole(&rest), rest.nr);
		EXPECT_EQ(mem_diff(mem), NO_DIFF);
		mem_write_pages(mem, 3);
		EXPECT_PRESENT(mem);
		peer_switch(&self->peer);
		EXPECT_EQ(mem_diff(mem), NO_DIFF);
		_exit(0);
	}
	ASSERT_TRUE(peer_wait(&self->peer));
	EXPECT_EQ(mem_whole(&rest), rest.nr);
	mem_write_pages(mem, 4);
	EXPECT_PRESENT(mem);
	EXPECT_EQ(mem_whole(&rest), rest.nr);
	EXPECT_TRUE(peer_end(&self->peer));
	EXPECT_EQ(mem_diff(mem), NO_DIFF);
}

int main(int argc, char **argv)
{
	granule_require();
	granule_save_settings();
	return test_harness_run(argc, argv);
}
