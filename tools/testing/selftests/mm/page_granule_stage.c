// SPDX-License-Identifier: GPL-2.0
/*
 * Page granule: what moves, protects or ages memory, stage by stage. Runs come
 * back after each of them, alone and shared with a child.
 */
#define _GNU_SOURCE
#include "kselftest_harness.h"
#include <asm-generic/mman.h> /* Force the import of the tools version. */
#include <errno.h>
#include <linux/mempolicy.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "vm_util.h"
#include "page_granule_mem.h"
#include "page_granule_util.h"

#define COMPACT_MEMORY	"/proc/sys/vm/compact_memory"

/*
 * The stages move, protect or age memory. They return 0, or a negative errno.
 */
static int stage_mprotect(struct mem *mem)
{
	static const int prots[] = { PROT_NONE, PROT_READ, PROT_READ | PROT_EXEC, PROT_RW };
	size_t i;

	for (i = 0; i < ARRAY_SIZE(prots); i++) {
		if (mprotect(mem->area, mem_len(mem), prots[i]))
			return -errno;
		if (mem_mapped(mem) != mem->nr)
			return -EIO;
	}
	return 0;
}

static int stage_mremap(struct mem *mem)
{
	char *spare = granule_reserve(mem_len(mem));

	if (!spare || sys_mremap(mem->area, mem_len(mem), mem_len(mem),
				 MREMAP_MAYMOVE | MREMAP_FIXED, spare) != spare)
		return -errno;
	mem->area = spare;
	return 0;
}

/* To where the kernel likes, because there is no room to grow into. */
static int stage_mremap_grow(struct mem *mem)
{
	char *wall = mem->area + mem_len(mem), *area;

	if (granule_mmap(GRANULE_UNTAGGED, wall, BASE_SIZE, PROT_READ, MAP_FIXED) != wall)
		return -errno;
	area = sys_mremap(mem->area, mem_len(mem), mem_len(mem) + GRANULE_SIZE,
			  MREMAP_MAYMOVE, NULL);
	if (area == MAP_FAILED)
		return -errno;
	if (area == mem->area)
		return -EIO;
	mem->area = area;
	return 0;
}

static int stage_mlock(struct mem *mem)
{
	if (mlock(mem->area, mem_len(mem)))
		return -errno;
	if (mem_mapped(mem) != mem->nr)
		return -EIO;
	return munlock(mem->area, mem_len(mem)) ? -errno : 0;
}

static int stage_cold(struct mem *mem)
{
	return madvise(mem->area, mem_len(mem), MADV_COLD) ? -errno : 0;
}

static int stage_free(struct mem *mem)
{
	if (madvise(mem->area, mem_len(mem), MADV_FREE))
		return -errno;
	mem_fill(mem, 7);
	return 0;
}

static int stage_move_pages(struct mem *mem)
{
	return move_to_node(mem, 1) ?: move_to_node(mem, 0);
}

static int stage_mbind(struct mem *mem)
{
	unsigned long mask, pfns[MEM_PAGES];
	unsigned int node;

	for (node = 2; node--;) {
		mem_pfns(mem, pfns);
		mask = 1UL << node;
		if (syscall(__NR_mbind, mem->area, mem_len(mem), MPOL_BIND, &mask,
			    sizeof(mask) * 8, MPOL_MF_MOVE | MPOL_MF_MOVE_ALL | MPOL_MF_STRICT))
			return -errno;
		/* From wherever it was to node 1; from there to node 0. */
		if (!node && mem_moved(mem, pfns, 0, mem_pages(mem)) != mem_pages(mem))
			return -EIO;
	}
	return 0;
}

/* More than once: a moved page must be movable again. */
static int stage_compact(struct mem *mem)
{
	int i;

	for (i = 0; i < 3; i++)
		write_num(COMPACT_MEMORY, 1);
	return 0;
}

FIXTURE(page_granule_stage)
{
	struct mem mem;
	struct peer peer;
};

FIXTURE_VARIANT(page_granule_stage)
{
	int (*stage)(struct mem *mem);
	/* Needs a second node, or this file. */
	bool nodes;
	const char *file;
	/* May find no memory for a folio, and splits it then, as any other. */
	bool splits;
};

FIXTURE_VARIANT_ADD(page_granule_stage, mprotect) { .stage = stage_mprotect };
FIXTURE_VARIANT_ADD(page_granule_stage, mremap) { .stage = stage_mremap };
FIXTURE_VARIANT_ADD(page_granule_stage, mremap_grow) { .stage = stage_mremap_grow };
FIXTURE_VARIANT_ADD(page_granule_stage, mlock) { .stage = stage_mlock };
FIXTURE_VARIANT_ADD(page_granule_stage, madv_cold) { .stage = stage_cold };
FIXTURE_VARIANT_ADD(page_granule_stage, madv_free) { .stage = stage_free };
FIXTURE_VARIANT_ADD(page_granule_stage, move_pages) { .stage = stage_move_pages, .nodes = true };
FIXTURE_VARIANT_ADD(page_granule_stage, mbind) { .stage = stage_mbind, .nodes = true };
FIXTURE_VARIANT_ADD(page_granule_stage, compact)
{
	.stage = stage_compact,
	.file = COMPACT_MEMORY,
	.splits = true,
};

FIXTURE_SETUP(page_granule_stage)
{
	if (variant->nodes && !granule_two_nodes())
		SKIP(return, GRANULE_NODES_REMEDY);
	if (variant->file && access(variant->file, W_OK))
		SKIP(return, "no %s: build the kernel with CONFIG_COMPACTION=y", variant->file);
}

FIXTURE_TEARDOWN(page_granule_stage)
{
	EXPECT_TRUE(granule_invariants_hold());
}

/*
 * Write to the memory after a stage, when it is whole. Granules that the stage
 * may have split keep their contents and are formed again. Repair copies no
 * shared page, so write to all pages first.
 */
static void after_stage(struct __test_metadata *_metadata, struct mem *mem, bool splits,
			char value)
{
	if (splits) {
		EXPECT_PRESENT(mem);
		mem_write_pages(mem, value);
		EXPECT_EQ(mem_collapse(mem), 0);
	} else {
		EXPECT_INTACT(mem);
		mem_write(mem, value);
	}
	EXPECT_INTACT(mem);
	mem_write_pages(mem, value + 1);
	EXPECT_INTACT(mem);
}

static void go_through(struct __test_metadata *_metadata, struct mem *mem,
		       enum granule_kind kind, struct peer *peer,
		       int (*stage)(struct mem *mem), bool splits)
{
	unsigned long partial;

	ASSERT_TRUE(mem_create(mem, kind));
	mem_fill(mem, 1);
	if (peer) {
		ASSERT_TRUE(peer_fork(peer, mem));
		if (!peer->pid) {
			peer_switch(peer);
			after_stage(_metadata, mem, splits, 5);
			_exit(0);
		}
		ASSERT_TRUE(peer_wait(peer));
	}
	EXPECT_INTACT(mem);
	partial = to_be_split();
	EXPECT_EQ(stage(mem), 0);
	EXPECT_EQ(to_be_split(), partial);
	after_stage(_metadata, mem, splits, 3);
	if (peer)
		EXPECT_TRUE(peer_end(peer));
}

/* Assert that contract granules are whole after the stage, and writable. */
TEST_F(page_granule_stage, contract)
{
	go_through(_metadata, &self->mem, GRANULE_CONTRACT, NULL, variant->stage,
		   variant->splits);
}

/*
 * Assert that default-tagged granules are whole after the stage, and writable.
 */
TEST_F(page_granule_stage, default_tagged)
{
	go_through(_metadata, &self->mem, GRANULE_DEFAULT, NULL, variant->stage,
		   variant->splits);
}

/*
 * Assert that contract granules that a child shares are whole in both
 * processes.
 */
TEST_F(page_granule_stage, contract_shared)
{
	go_through(_metadata, &self->mem, GRANULE_CONTRACT, &self->peer, variant->stage,
		   variant->splits);
}

/*
 * Assert that default-tagged granules that a child shares are whole in both
 * processes.
 */
TEST_F(page_granule_stage, default_shared)
{
	go_through(_metadata, &self->mem, GRANULE_DEFAULT, &self->peer, variant->stage,
		   variant->splits);
}

int main(int argc, char **argv)
{
	granule_require();
	granule_save_settings();
	return test_harness_run(argc, argv);
}
