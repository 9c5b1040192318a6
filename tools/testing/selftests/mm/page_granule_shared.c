// SPDX-License-Identifier: GPL-2.0
/*
 * Page granule: shared anonymous memory, and the calls that attach System V
 * segments. A granule of shared memory is a run of one folio in each process
 * that maps it, and comes back from swap.
 */
#define _GNU_SOURCE
#include "kselftest_harness.h"
#include <asm-generic/mman.h> /* Force the import of the tools version. */
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/shm.h>
#include <sys/wait.h>
#include <unistd.h>

#include "hugepage_settings.h"
#include "vm_util.h"
#include "page_granule_mem.h"
#include "page_granule_util.h"

/* Shared memory without a folio, from the start or after a split. */
FIXTURE(page_granule_shared)
{
	struct granule_fail fail;
	struct mem mem;
	struct peer peer;
	struct granule_cg cg;
};

FIXTURE_VARIANT(page_granule_shared)
{
	enum granule_kind kind;
};

FIXTURE_VARIANT_ADD(page_granule_shared, contract)
{
	.kind = GRANULE_CONTRACT,
};

FIXTURE_VARIANT_ADD(page_granule_shared, default_tagged)
{
	.kind = GRANULE_DEFAULT,
};

/* Fault injection needs debugfs, so that there is the switch of repair, too. */
static void prepare(struct __test_metadata *_metadata, struct mem *mem,
		    enum granule_kind kind, struct granule_cg *cg, struct granule_fail *fail)
{
	ASSERT_TRUE(granule_stay_on_cpu());
	ASSERT_TRUE(mem_create(mem, kind));
	ASSERT_TRUE(mem_share(mem));
	if (!granule_fail_prepare(fail))
		SKIP(return, GRANULE_FAIL_REMEDY);
	if (!join_cgroup(cg)) {
		granule_fail_restore(fail);
		SKIP(return, RECLAIM_REMEDY);
	}
	ASSERT_TRUE(granule_repair(false));
}

FIXTURE_SETUP(page_granule_shared)
{
	prepare(_metadata, &self->mem, variant->kind, &self->cg, &self->fail);
}

FIXTURE_TEARDOWN(page_granule_shared)
{
	granule_repair(false);
	EXPECT_TRUE(granule_invariants_hold());
	granule_fail_restore(&self->fail);
	granule_cg_remove(&self->cg);
}

/* Single pages, by a fault each granule. */
static long mem_fill_single(struct mem *mem, unsigned int seed)
{
	long faults = minor_faults();

	granule_fail_order4(true);
	granule_fill(mem->area, mem_len(mem), seed);
	granule_fail_order4(false);
	faults = minor_faults() - faults;
	granule_fill(mem->model, mem_len(mem), seed);
	return faults;
}

/*
 * Assert that a write populates all of a granule from single pages, that repair
 * soon makes it whole, and that other processes then still see the same memory.
 */
TEST_F_TIMEOUT(page_granule_shared, written, 60)
{
	unsigned long fallback = granule_vmstat("granule_fallback");
	unsigned long repaired = granule_vmstat("granule_repair");
	struct mem *mem = &self->mem;
	long faults;

	faults = mem_fill_single(mem, 1);
	EXPECT_FAULTS(faults, mem->nr);
	EXPECT_EQ(granule_vmstat("granule_fallback") - fallback, mem->nr);
	EXPECT_EQ(mem_whole(mem), 0);
	EXPECT_PRESENT(mem);

	ASSERT_TRUE(granule_repair(true));
	EXPECT_TRUE(mem_wait_whole(mem, REPAIR_SECONDS));
	granule_repair(false);
	EXPECT_INTACT(mem);
	EXPECT_EQ(granule_vmstat("granule_repair") - repaired, mem->nr);

	ASSERT_TRUE(peer_fork(&self->peer, mem));
	if (!self->peer.pid) {
		mem_read(mem);
		EXPECT_INTACT(mem);
		mem_write(mem, 2);
		mem_write_pages(mem, 3);
		_exit(0);
	}
	EXPECT_TRUE(peer_end(&self->peer));
	/* The model is not shared. */
	mem_write(mem, 2);
	mem_write_pages(mem, 3);
	EXPECT_INTACT(mem);
}

/*
 * Assert that a read populates all of a granule from single pages, and that a
 * write then takes no more faults.
 */
TEST_F(page_granule_shared, read)
{
	struct mem *mem = &self->mem;
	long faults = minor_faults();

	granule_fail_order4(true);
	mem_read(mem);
	faults = minor_faults() - faults;
	EXPECT_FAULTS(faults, mem->nr);
	EXPECT_EQ(mem_whole(mem), 0);
	EXPECT_PRESENT(mem);
	EXPECT_LE(mem_write_pages(mem, 1), FAULT_SLACK);
	granule_fail_order4(false);
	EXPECT_PRESENT(mem);
	EXPECT_EQ(madvise(nth(mem->area, 1), 2 * GRANULE_SIZE, MADV_COLLAPSE), 0);
	EXPECT_EQ(mem_whole(mem), 2);
	EXPECT_EQ(madvise(mem->area, mem_len(mem), MADV_COLLAPSE), 0);
	EXPECT_INTACT(mem);
}

/*
 * Assert that repair takes nothing from another process that maps the same
 * pages. MADV_COLLAPSE does on request, and maps them again as a whole.
 */
TEST_F_TIMEOUT(page_granule_shared, mapped_by_others, 60)
{
	struct mem *mem = &self->mem;
	char *control;
	int i;

	mem_fill_single(mem, 1);
	ASSERT_TRUE(peer_fork(&self->peer, mem));
	if (!self->peer.pid) {
		/* Or else it would be brought to one folio here. */
		granule_fail_order4(true);
		mem_read(mem);
		granule_fail_order4(false);
		EXPECT_EQ(mem_whole(mem), 0);
		EXPECT_PRESENT(mem);
		if (!peer_switch(&self->peer))
			_exit(1);
		EXPECT_EQ(mem_present(mem), mem_pages(mem));
		EXPECT_LE(mem_write_pages(mem, 2), FAULT_SLACK);
		if (!peer_switch(&self->peer))
			_exit(1);
		EXPECT_EQ(mem_present(mem), 0);
		mem_read(mem);
		EXPECT_INTACT(mem);
		mem_write_pages(mem, 3);
		EXPECT_INTACT(mem);
		_exit(0);
	}
	ASSERT_TRUE(peer_wait(&self->peer));
	/* The second time the child has had its turn for sure. */
	for (i = 0; i < 2; i++) {
		control = mem_single_granule(mem);
		ASSERT_NE(control, NULL);
		ASSERT_TRUE(granule_repair(true));
		EXPECT_GE(granule_until_whole(mem->pagemap, control, REPAIR_SECONDS), 0);
	}
	granule_repair(false);
	EXPECT_EQ(mem_whole(mem), 0);
	ASSERT_TRUE(peer_switch(&self->peer));
	EXPECT_EQ(mem_collapse(mem), 0);
	EXPECT_EQ(mem_whole(mem), mem->nr);
	peer_go(&self->peer);
	EXPECT_TRUE(peer_end(&self->peer));
	/* The model is not shared. */
	mem_write_pages(mem, 3);
	EXPECT_INTACT(mem);
}

/* Assert that single pages that were swapped out come back as a whole. */
TEST_F(page_granule_shared, scattered_slots)
{
	unsigned long swpin = granule_vmstat("granule_swpin");
	struct mem *mem = &self->mem;
	long faults;

	if (!granule_have_swap(NULL))
		SKIP(return, GRANULE_SWAP_REMEDY);
	mem_fill_single(mem, 1);
	ASSERT_TRUE(shared_page_out(&self->cg, mem));
	faults = granule_faults();
	mem_read(mem);
	faults = granule_faults() - faults;
	EXPECT_FAULTS(faults, mem->nr);
	EXPECT_INTACT(mem);
	EXPECT_EQ(granule_vmstat("granule_swpin") - swpin, mem->nr);
}

/*
 * Assert that without a folio one fault brings back all 16 pages and counts a
 * fallback.
 */
TEST_F_TIMEOUT(page_granule_shared, swapin_fallback, 60)
{
	unsigned long fallback = granule_vmstat("granule_swpin_fallback");
	struct mem *mem = &self->mem;
	long faults;

	if (!granule_have_swap(NULL))
		SKIP(return, GRANULE_SWAP_REMEDY);
	mem_fill(mem, 1);
	ASSERT_TRUE(shared_page_out(&self->cg, mem));
	granule_fail_order4(true);
	faults = granule_faults();
	mem_read(mem);
	faults = granule_faults() - faults;
	granule_fail_order4(false);
	EXPECT_FAULTS(faults, mem->nr);
	EXPECT_EQ(granule_vmstat("granule_swpin_fallback") - fallback, mem->nr);
	EXPECT_EQ(mem_whole(mem), 0);
	EXPECT_PRESENT(mem);
	ASSERT_TRUE(granule_repair(true));
	EXPECT_TRUE(mem_wait_whole(mem, REPAIR_SECONDS));
	granule_repair(false);
	EXPECT_INTACT(mem);
}

/* What only default-tagged memory allows: advice for a part of a granule. */
FIXTURE(page_granule_shared_cut)
{
	struct granule_fail fail;
	struct mem mem;
	struct granule_cg cg;
};

FIXTURE_SETUP(page_granule_shared_cut)
{
	prepare(_metadata, &self->mem, GRANULE_DEFAULT, &self->cg, &self->fail);
}

FIXTURE_TEARDOWN(page_granule_shared_cut)
{
	EXPECT_TRUE(granule_invariants_hold());
	granule_fail_restore(&self->fail);
	granule_cg_remove(&self->cg);
}

/*
 * Assert that swap-in is whole although a part of the granule is in the page
 * cache.
 */
TEST_F(page_granule_shared_cut, partly_cached)
{
	struct mem *mem = &self->mem;
	unsigned long i;
	int fail;
	long faults;

	if (!granule_have_swap(NULL))
		SKIP(return, GRANULE_SWAP_REMEDY);
	for (fail = 1; fail >= 0; fail--) {
		mem_fill_single(mem, 1);
		for (i = 0; i < mem_pages(mem); i += 2)
			ASSERT_EQ(madvise(mem->area + i * BASE_SIZE, BASE_SIZE, MADV_PAGEOUT),
				  0);
		/* Pages that were not paged out are unmapped, and in memory. */
		ASSERT_EQ(madvise(mem->area, mem_len(mem), MADV_DONTNEED), 0);
		granule_fail_order4(fail);
		faults = granule_faults();
		for (i = 0; i < mem->nr; i++)
			FORCE_READ(*(nth(mem->area, i) + BASE_SIZE));
		faults = granule_faults() - faults;
		granule_fail_order4(false);
		EXPECT_FAULTS(faults, mem->nr);
		EXPECT_PRESENT(mem);
		EXPECT_EQ(mem_whole(mem), fail ? 0 : mem->nr);
		if (fail)
			ASSERT_EQ(madvise(mem->area, mem_len(mem), MADV_REMOVE), 0);
	}
}

/* Shared memory in folios larger than a granule. */
FIXTURE(page_granule_shared_large)
{
	int pagemap;
};

FIXTURE_VARIANT(page_granule_shared_large)
{
	enum granule_kind kind;
};

FIXTURE_VARIANT_ADD(page_granule_shared_large, default_tagged)
{
	.kind = GRANULE_DEFAULT,
};

FIXTURE_VARIANT_ADD(page_granule_shared_large, contract)
{
	.kind = GRANULE_CONTRACT,
};

FIXTURE_SETUP(page_granule_shared_large)
{
	struct thp_settings settings;

	ASSERT_EQ(granule_set_enabled(true), 0);
	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, BASE_SIZE), 0);
	granule_thp_never();
	if (!(thp_shmem_supported_orders() & (1UL << 5)))
		SKIP(return, "no shmem folios of 128 KiB: set CONFIG_TRANSPARENT_HUGEPAGE=y");
	thp_read_settings(&settings);
	settings.shmem_hugepages[5].enabled = SHMEM_ALWAYS;
	thp_write_settings(&settings);
	self->pagemap = granule_open_pagemap();
	ASSERT_GE(self->pagemap, 0);
}

FIXTURE_TEARDOWN(page_granule_shared_large)
{
	EXPECT_TRUE(granule_invariants_hold());
	close(self->pagemap);
	thp_restore_settings();
	granule_thp_never();
}

/* Assert that a fault populates all of one granule of a folio that has two. */
TEST_F(page_granule_shared_large, half_of_a_folio)
{
	unsigned long first;
	char *area;

	area = granule_area(variant->kind, 8 * GRANULE_SIZE, MAP_SHARED);
	ASSERT_NE(area, NULL);
	/* The first two are the two halves of a folio. */
	area[0] = 1;
	area[GRANULE_SIZE] = 1;
	for (first = 0; first < 2; first++) {
		char *granule = nth(area, first);

		ASSERT_EQ(granule_present(self->pagemap, granule), GRANULE_NR_PAGES);
		ASSERT_EQ(madvise(granule, GRANULE_SIZE, MADV_DONTNEED), 0);
		ASSERT_EQ(granule_present(self->pagemap, granule), 0);
		*page_at(granule, 5) = 1;
		EXPECT_EQ(granule_present(self->pagemap, granule), GRANULE_NR_PAGES);
	}
}

/* Shared memory only. */
FIXTURE(page_granule_shared_calls)
{
	int pagemap;
	char *res;
	char *area;
};

FIXTURE_VARIANT(page_granule_shared_calls)
{
	enum granule_kind kind;
};

FIXTURE_VARIANT_ADD(page_granule_shared_calls, contract)
{
	.kind = GRANULE_CONTRACT,
};

FIXTURE_VARIANT_ADD(page_granule_shared_calls, default_tagged)
{
	.kind = GRANULE_DEFAULT,
};

#define SHARED_LEN	(4 * GRANULE_SIZE)

FIXTURE_SETUP(page_granule_shared_calls)
{
	ASSERT_EQ(granule_set_enabled(true), 0);
	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, BASE_SIZE), 0);
	granule_thp_never();
	self->pagemap = granule_open_pagemap();
	ASSERT_GE(self->pagemap, 0);
	self->res = granule_reserve(RES_LEN);
	ASSERT_NE(self->res, NULL);
	self->area = self->res + GRANULE_SIZE;
	ASSERT_EQ(granule_map(variant->kind, true, self->area, SHARED_LEN, MAP_FIXED), self->area);
	granule_fill(self->area, SHARED_LEN, SEED);
}

FIXTURE_TEARDOWN(page_granule_shared_calls)
{
	EXPECT_TRUE(granule_invariants_hold());
	close(self->pagemap);
}

/*
 * Assert that shared memory is tagged, and populated in runs that a child
 * shares.
 */
TEST_F(page_granule_shared_calls, fork_shares_runs)
{
	int status;
	pid_t pid;

	EXPECT_EQ(granule_kind_of(self->area), variant->kind);
	EXPECT_EQ(granule_count(self->pagemap, self->area, SHARED_LEN, GRANULE_WHOLE), 4);
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		int pagemap = granule_open_pagemap();

		if (!granule_check(self->area, SHARED_LEN, SEED))
			_exit(1);
		if (granule_count(pagemap, self->area, SHARED_LEN, GRANULE_WHOLE) != 4)
			_exit(2);
		granule_fill(self->area, SHARED_LEN, SEED + 1);
		if (granule_count(pagemap, self->area, SHARED_LEN, GRANULE_WHOLE) != 4)
			_exit(3);
		_exit(0);
	}
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	EXPECT_EQ(status, 0);
	EXPECT_TRUE(granule_check(self->area, SHARED_LEN, SEED + 1));
	EXPECT_EQ(granule_count(self->pagemap, self->area, SHARED_LEN, GRANULE_WHOLE), 4);
}

/*
 * Assert that shared memory off the granule is untagged by default, and refused
 * as a contract.
 */
TEST_F(page_granule_shared_calls, unaligned_address)
{
	char *addr = self->res + 8 * GRANULE_SIZE + BASE_SIZE;
	int page;

	errno = 0;
	if (variant->kind == GRANULE_CONTRACT) {
		EXPECT_EQ(granule_map(variant->kind, true, addr, 2 * GRANULE_SIZE, MAP_FIXED),
			  MAP_FAILED);
		EXPECT_EQ(errno, EINVAL);
		return;
	}
	ASSERT_EQ(granule_map(variant->kind, true, addr, 2 * GRANULE_SIZE, MAP_FIXED), addr);
	EXPECT_EQ(granule_kind_of(addr), GRANULE_UNTAGGED);
	EXPECT_TRUE(granule_vma_is(addr, 2 * GRANULE_SIZE));
	for (page = 0; page < 2 * GRANULE_NR_PAGES; page++) {
		EXPECT_EQ(granule_present_pages(self->pagemap, addr, 2 * GRANULE_SIZE), page);
		addr[page * BASE_SIZE] = 1;
	}
}

/* Assert that mremap from a length of 0 maps the memory twice, in granules. */
TEST_F(page_granule_shared_calls, mremap_duplicate)
{
	char *dest = self->res + 16 * GRANULE_SIZE, *area = self->area, *new, *before, *after;
	bool contract = variant->kind == GRANULE_CONTRACT;
	int moves = MREMAP_MAYMOVE | MREMAP_FIXED;

	if (contract) {
		before = granule_smaps_text(self->res, RES_LEN);
		errno = 0;
		EXPECT_EQ(sys_mremap(area, 0, BASE_SIZE, MREMAP_MAYMOVE, NULL), MAP_FAILED);
		EXPECT_EQ(errno, EINVAL);
		errno = 0;
		EXPECT_EQ(sys_mremap(area + BASE_SIZE, 0, GRANULE_SIZE, MREMAP_MAYMOVE, NULL),
			  MAP_FAILED);
		EXPECT_EQ(errno, EINVAL);
		errno = 0;
		EXPECT_EQ(sys_mremap(area, 0, GRANULE_SIZE, moves, dest + BASE_SIZE), MAP_FAILED);
		EXPECT_EQ(errno, EINVAL);
		errno = 0;
		EXPECT_EQ(sys_mremap(area, 0, BASE_SIZE, moves, dest), MAP_FAILED);
		EXPECT_EQ(errno, EINVAL);
		after = granule_smaps_text(self->res, RES_LEN);
		EXPECT_TRUE(granule_same_text(before, after));
		free(before);
		free(after);
	} else {
		ASSERT_EQ(sys_mremap(area + BASE_SIZE, 0, BASE_SIZE, moves, dest), dest);
		EXPECT_FALSE(memcmp(dest, area + BASE_SIZE, BASE_SIZE));
		EXPECT_TRUE(granule_vma_is(dest, BASE_SIZE));
	}

	ASSERT_EQ(sys_mremap(area, 0, SHARED_LEN, moves, dest), dest);
	EXPECT_EQ(granule_kind_of(dest), variant->kind);
	EXPECT_TRUE(granule_check(dest, SHARED_LEN, SEED));
	new = sys_mremap(area, 0, SHARED_LEN, MREMAP_MAYMOVE, NULL);
	ASSERT_NE(new, MAP_FAILED);
	EXPECT_TRUE(granule_aligned(new));
	granule_fill(new, SHARED_LEN, SEED + 1);
	EXPECT_TRUE(granule_check(area, SHARED_LEN, SEED + 1));
	EXPECT_TRUE(granule_check(dest, SHARED_LEN, SEED + 1));
	EXPECT_EQ(granule_count(self->pagemap, new, SHARED_LEN, GRANULE_WHOLE), 4);
}

/*
 * Assert that remap_file_pages keeps the tag, and takes offsets that the kind
 * of memory allows.
 */
TEST_F(page_granule_shared_calls, remap_file_pages)
{
	char *area = self->area, *before, *after;
	int page;

	ASSERT_EQ(granule_remap_pages(area, GRANULE_SIZE, 0), 0);
	for (page = 1; page < GRANULE_NR_PAGES; page += 7) {
		char *to = area + 2 * GRANULE_SIZE;

		if (variant->kind == GRANULE_CONTRACT) {
			before = granule_smaps_text(area, SHARED_LEN);
			EXPECT_EQ(granule_remap_pages(to, GRANULE_SIZE, page), -EINVAL);
			EXPECT_EQ(granule_remap_pages(to + page * BASE_SIZE, GRANULE_SIZE, 0),
				  -EINVAL);
			EXPECT_EQ(granule_remap_pages(to, page * BASE_SIZE, 0), -EINVAL);
			after = granule_smaps_text(area, SHARED_LEN);
			EXPECT_TRUE(granule_same_text(before, after));
			free(before);
			free(after);
			continue;
		}
		/* Any page to any place. */
		ASSERT_EQ(granule_remap_pages(to, GRANULE_SIZE, page), 0);
		EXPECT_FALSE(memcmp(to, area + page * BASE_SIZE,
				    GRANULE_SIZE - page * BASE_SIZE));
		to += page * BASE_SIZE;
		ASSERT_EQ(granule_remap_pages(to, BASE_SIZE, 3), 0);
		EXPECT_FALSE(memcmp(to, area + 3 * BASE_SIZE, BASE_SIZE));
		EXPECT_TRUE(granule_check(area, GRANULE_SIZE, SEED));
	}
	/* The last granule, turned into another view of the second. */
	ASSERT_EQ(granule_remap_pages(area + 3 * GRANULE_SIZE, GRANULE_SIZE, 16), 0);
	EXPECT_EQ(granule_kind_of(area + 3 * GRANULE_SIZE), variant->kind);
	EXPECT_FALSE(memcmp(area + GRANULE_SIZE, area + 3 * GRANULE_SIZE, GRANULE_SIZE));
	area[GRANULE_SIZE + 5] = 1;
	EXPECT_EQ(area[3 * GRANULE_SIZE + 5], 1);
	EXPECT_EQ(granule_state(self->pagemap, area + 3 * GRANULE_SIZE), GRANULE_WHOLE);
}

/* System V shared memory. */
FIXTURE(page_granule_shared_shm)
{
	char *res;
};

FIXTURE_SETUP(page_granule_shared_shm)
{
	int id = shmget(IPC_PRIVATE, BASE_SIZE, IPC_CREAT | 0600);

	if (id < 0)
		SKIP(return, "no shmget (%s): build the kernel with CONFIG_SYSVIPC=y",
		     strerror(errno));
	shmctl(id, IPC_RMID, NULL);
	ASSERT_EQ(granule_set_enabled(true), 0);
	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, BASE_SIZE), 0);
	self->res = granule_reserve(RES_LEN);
	ASSERT_NE(self->res, NULL);
}

FIXTURE_TEARDOWN(page_granule_shared_shm)
{
	EXPECT_TRUE(granule_invariants_hold());
}

static int shm_attached(int id)
{
	struct shmid_ds ds;

	return shmctl(id, IPC_STAT, &ds) ? -errno : (int)ds.shm_nattch;
}

static int shm_attach(int id, char *addr, int flags)
{
	char *ret = shmat(id, addr, flags);

	return ret == (void *)-1 ? -errno : (int)(ret - addr);
}

/* Everything a program does with a segment; returns the number of results. */
static int shm_session(char *res, size_t size, int *results)
{
	struct granule_smaps smaps;
	char *p, *q, *hole = res + 3 * BASE_SIZE;
	int id, n = 0;

	/* As before the last session. */
	if (granule_mmap(GRANULE_UNTAGGED, res, RES_LEN, PROT_NONE,
			 MAP_FIXED | MAP_NORESERVE) != res)
		return -errno;
	id = shmget(IPC_PRIVATE, size, IPC_CREAT | 0600);
	if (id < 0)
		return -errno;
	p = shmat(id, NULL, 0);
	q = shmat(id, NULL, SHM_RDONLY);
	if (p == (void *)-1 || q == (void *)-1)
		return -errno;
	results[n++] = granule_is_filled(p, size, 0);
	memset(p, 0x5a, size);
	results[n++] = granule_is_filled(q, size, 0x5a);
	results[n++] = shm_attached(id);
	results[n++] = granule_read_smaps(getpid(), p, &smaps);
	results[n++] = (unsigned long)p - smaps.start;
	results[n++] = smaps.end - smaps.start;
	results[n++] = shmdt(p + BASE_SIZE) ? -errno : 0;
	results[n++] = shmdt(p) ? -errno : 0;
	results[n++] = shmdt(p) ? -errno : 0;
	results[n++] = shm_attached(id);
	/* At an address: occupied, then free, then odd. */
	results[n++] = shm_attach(id, hole, 0);
	results[n++] = shm_attach(id, hole, SHM_REMAP);
	results[n++] = granule_is_filled(hole, size, 0x5a);
	results[n++] = munmap(hole, BASE_SIZE) ? -errno : 0;
	results[n++] = shm_attached(id);
	results[n++] = shmdt(hole) ? -errno : 0;
	results[n++] = shm_attached(id);
	results[n++] = munmap(res, 8 * GRANULE_SIZE) ? -errno : 0;
	results[n++] = shm_attach(id, hole, 0);
	results[n++] = shmdt(hole) ? -errno : 0;
	results[n++] = shm_attach(id, hole + 1, 0);
	results[n++] = shm_attach(id, hole + 1, SHM_RND);
	results[n++] = mprotect(hole, BASE_SIZE, PROT_READ) ? -errno : 0;
	results[n++] = shmdt(hole) ? -errno : 0;
	results[n++] = shm_attach(id, NULL, SHM_REMAP);
	results[n++] = granule_is_filled(q, size, 0x5a);
	results[n++] = shmctl(id, IPC_RMID, NULL) ? -errno : 0;
	results[n++] = granule_is_filled(q, size, 0x5a);
	results[n++] = shmdt(q) ? -errno : 0;
	return n;
}

/*
 * Assert that shmat and shmdt do the same for a program with a default of 64
 * KiB.
 */
TEST_F(page_granule_shared_shm, default_process)
{
	static const size_t sizes[] = {
		1, BASE_SIZE, 5 * BASE_SIZE + 1, GRANULE_SIZE, 3 * GRANULE_SIZE,
		3 * GRANULE_SIZE + BASE_SIZE,
	};
	int results1[40], results2[40], n, i;
	size_t j;

	for (j = 0; j < ARRAY_SIZE(sizes); j++) {
		n = shm_session(self->res, sizes[j], results1);
		ASSERT_GT(n, 0);
		ASSERT_EQ(granule_set(PR_GRANULE_MMAP, GRANULE_SIZE), 0);
		EXPECT_EQ(shm_session(self->res, sizes[j], results2), n);
		ASSERT_EQ(granule_set(PR_GRANULE_MMAP, BASE_SIZE), 0);
		for (i = 0; i < n; i++)
			EXPECT_EQ(results2[i], results1[i])
				TH_LOG("size %zu, result %d", sizes[j], i);
	}
}

/*
 * Assert that attaching and detaching a segment does not touch the contract VMA
 * beside it.
 */
TEST_F(page_granule_shared_shm, beside_contract)
{
	char *addr = self->res + 4 * GRANULE_SIZE, *before, *after;
	size_t size = GRANULE_SIZE + 3 * BASE_SIZE;
	int id = shmget(IPC_PRIVATE, size, IPC_CREAT | 0600);

	ASSERT_GE(id, 0);
	ASSERT_EQ(granule_mmap(GRANULE_CONTRACT, addr, 2 * GRANULE_SIZE, PROT_RW, MAP_FIXED),
		  addr);
	granule_fill(addr, 2 * GRANULE_SIZE, SEED);
	before = granule_smaps_text(addr, 2 * GRANULE_SIZE);
	/* It ends where the contract VMA begins, and begins where that ends. */
	EXPECT_EQ(shmat(id, addr - size, SHM_REMAP), addr - size);
	EXPECT_EQ(shmat(id, addr + 2 * GRANULE_SIZE, SHM_REMAP), addr + 2 * GRANULE_SIZE);
	memset(addr - size, 0x5a, size);
	EXPECT_TRUE(granule_is_filled(addr + 2 * GRANULE_SIZE, size, 0x5a));
	errno = 0;
	EXPECT_EQ(shmdt(addr), -1);
	EXPECT_EQ(errno, EINVAL);
	EXPECT_EQ(shmdt(addr - size), 0);
	EXPECT_EQ(shmdt(addr + 2 * GRANULE_SIZE), 0);
	/* One page of the last one would be enough. */
	errno = 0;
	EXPECT_EQ(shmat(id, addr - size + BASE_SIZE, SHM_REMAP), (void *)-1);
	EXPECT_EQ(errno, EINVAL);
	after = granule_smaps_text(addr, 2 * GRANULE_SIZE);
	EXPECT_TRUE(granule_same_text(before, after));
	EXPECT_TRUE(granule_check(addr, 2 * GRANULE_SIZE, SEED));
	EXPECT_EQ(shm_attached(id), 0);
	shmctl(id, IPC_RMID, NULL);
	free(before);
	free(after);
}

int main(int argc, char **argv)
{
	granule_require();
	granule_save_settings();
	return test_harness_run(argc, argv);
}
