// SPDX-License-Identifier: GPL-2.0
/*
 * Page granule benchmark: how many runs fragmented memory makes.
 *
 * Single pages fill all free memory, and a part of them is given back, chosen
 * by PFN, such that no block of 64 KiB loses all it has. Folios of 64 KiB take
 * the blocks that are left. All of that is locked, so that reclaim cannot make
 * room where compaction does not.
 *
 * How much compaction does depends on what it has done before. So that numbers
 * can be repeated, boot for each of them, with nothing that can be moved or
 * swapped out but the memory to measure: no swap, and rootfstype=ramfs.
 */
#define _GNU_SOURCE
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "hugepage_settings.h"
#include "kselftest.h"
#include "vm_util.h"
#include "page_granule_bench.h"
#include "page_granule_util.h"

static const struct filler_kind movable = {
	"movable", "compaction can move", "1", THP_DEFRAG_NEVER,
};

static const struct filler_kind pinned = {
	"pinned", "nothing can move", "0", THP_DEFRAG_ALWAYS,
};

struct filler {
	const struct filler_kind *kind;
	char *single;		/* in single pages, with gaps */
	size_t single_len;
	unsigned char *kept;	/* of each block of 64 KiB: pages that are ours */
	__u64 nr_blocks;
	__u64 dropped;	/* all pages whose hash is less have been given back */
	char *blocks;		/* in folios of 64 KiB */
	size_t blocks_len;
	size_t blocks_used;
};

const struct fragment fragments[NR_FRAGMENTS] = {
	{ "movable-mthp", &movable, "mTHP 64K", CONFIG_MTHP, THP_DEFRAG_MADVISE },
	{ "movable-defrag", &movable, "mTHP 64K, defrag", CONFIG_MTHP, THP_DEFRAG_ALWAYS },
	{ "movable-granule", &movable, "granule", CONFIG_GRANULE, THP_DEFRAG_MADVISE },
	{ "pinned-4k", &pinned, "4K", CONFIG_4K, THP_DEFRAG_MADVISE },
	{ "pinned-mthp", &pinned, "mTHP 64K", CONFIG_MTHP, THP_DEFRAG_MADVISE },
	{ "pinned-defrag", &pinned, "mTHP 64K, defrag", CONFIG_MTHP, THP_DEFRAG_ALWAYS },
	{ "pinned-granule", &pinned, "granule", CONFIG_GRANULE, THP_DEFRAG_MADVISE },
};

struct fragment_result {
	struct result touch;
	unsigned long free_kb;
	unsigned long blocks;
	unsigned long whole_later;	/* the same memory, REPAIR_SECONDS later */
	unsigned long whole_drained;	/* as long after the filler has gone */
};

/*
 * These settings keep free memory from being filled and from staying
 * fragmented: reserves of lower zones, pages that CPUs keep and that do not
 * count as free, and proactive compaction. There is room for the old values.
 */
#define SYSCTL_DIR	"/proc/sys/vm/"
#define SYSCTL_COMPACT	"compact_unevictable_allowed"

static struct {
	const char *name;
	const char *value;
	char saved[128];
} sysctls[] = {
	{ "lowmem_reserve_ratio", "0 0 0 0", "" },
	{ "percpu_pagelist_high_fraction", "1000000", "" },
	{ "watermark_boost_factor", "0", "" },
	{ "compaction_proactiveness", "0", "" },
	{ SYSCTL_COMPACT, "1", "" },
};

static int write_sysctl(const char *name, const char *value)
{
	char path[128];

	snprintf(path, sizeof(path), SYSCTL_DIR "%s", name);
	return granule_write(path, value);
}

static void restore_sysctls(void)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(sysctls); i++)
		write_sysctl(sysctls[i].name, sysctls[i].saved);
}

static bool save_sysctls(void)
{
	char path[128];
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(sysctls); i++) {
		snprintf(path, sizeof(path), SYSCTL_DIR "%s", sysctls[i].name);
		if (!read_file(path, sysctls[i].saved, sizeof(sysctls[i].saved)))
			return false;
	}
	atexit(restore_sysctls);
	for (i = 0; i < ARRAY_SIZE(sysctls); i++) {
		if (write_sysctl(sysctls[i].name, sysctls[i].value))
			return false;
	}
	return true;
}

static void set_defrag(enum thp_defrag defrag)
{
	struct thp_settings settings;

	thp_read_settings(&settings);
	settings.thp_defrag = defrag;
	thp_write_settings(&settings);
}

static unsigned long free_pages(void)
{
	return granule_meminfo_kb("MemFree") * 1024 / BASE_SIZE;
}

static unsigned long fragmented_pages(void)
{
	return granule_meminfo_kb("MemTotal") * 1024 / BASE_SIZE / FREE_PART;
}

/* How many blocks of 64 KiB are free, in all zones? */
static unsigned long count_free_blocks(void)
{
	unsigned long nr, blocks = 0;
	unsigned int order;
	char line[512], *p;
	FILE *fp;

	fp = fopen("/proc/buddyinfo", "r");
	if (!fp)
		return ULONG_MAX;
	while (fgets(line, sizeof(line), fp)) {
		p = strstr(line, "zone");
		if (!p)
			continue;
		p += strlen("zone");
		p += strspn(p, " ");
		p += strcspn(p, " ");
		for (order = 0; *(p += strspn(p, "\n ")); order++) {
			nr = strtoul(p, &p, 10);
			if (order >= GRANULE_ORDER)
				blocks += nr << (order - GRANULE_ORDER);
		}
	}
	fclose(fp);
	return blocks;
}

/* With less than this free, in pages, reclaim would start. */
static unsigned long high_watermark(void)
{
	unsigned long nr, sum = 0;
	char line[128];
	FILE *fp;

	fp = fopen("/proc/zoneinfo", "r");
	if (!fp)
		return 0;
	while (fgets(line, sizeof(line), fp)) {
		if (sscanf(line, " high %lu", &nr) == 1)
			sum += nr;
	}
	fclose(fp);
	return sum;
}

static char *map_locked(size_t len)
{
	char *ptr = granule_mmap(GRANULE_UNTAGGED, NULL, len, PROT_RW, MAP_NORESERVE);

	if (ptr == MAP_FAILED || mlock2(ptr, len, MLOCK_ONFAULT))
		return NULL;
	return ptr;
}

typedef bool (*single_fn)(struct filler *filler, char *page, __u64 pfn);

/* Call @fn with each single page that is there, and its PFN. */
static bool walk_single(const struct bench *bench, struct filler *filler, single_fn fn)
{
	const size_t nr = filler->single_len / BASE_SIZE;
	const __u64 first = (uintptr_t)filler->single / BASE_SIZE;
	__u64 ent[512];
	size_t i, j, n;

	for (i = 0; i < nr; i += n) {
		n = nr - i < ARRAY_SIZE(ent) ? nr - i : ARRAY_SIZE(ent);
		if (pread(bench->pagemap, ent, n * sizeof(*ent), (first + i) * sizeof(*ent)) !=
		    (ssize_t)(n * sizeof(*ent)))
			return false;
		for (j = 0; j < n; j++) {
			if (PAGEMAP_PRESENT(ent[j]) &&
			    !fn(filler, filler->single + (i + j) * BASE_SIZE,
				PAGEMAP_PFN(ent[j])))
				return false;
		}
	}
	return true;
}

static bool find_last_block(struct filler *filler, char *page, __u64 pfn)
{
	const __u64 block = pfn / GRANULE_NR_PAGES;

	if (block >= filler->nr_blocks)
		filler->nr_blocks = block + 1;
	return true;
}

static bool count_kept(struct filler *filler, char *page, __u64 pfn)
{
	filler->kept[pfn / GRANULE_NR_PAGES]++;
	return true;
}

/*
 * Take them at random rather than evenly: a few blocks of 8 and 16 KiB are free
 * then, as in real life, for the kernel's own small needs.
 */
static __u64 hash(__u64 pfn)
{
	__u32 hash = pfn;

	hash = (hash ^ hash >> 16) * 0x85ebca6bU;
	hash = (hash ^ hash >> 13) * 0xc2b2ae35U;
	return hash ^ hash >> 16;
}

/* Give a page back if it is its turn, but not the last one of a block. */
static bool drop_page(struct filler *filler, char *page, __u64 pfn)
{
	unsigned char *kept = &filler->kept[pfn / GRANULE_NR_PAGES];

	if (hash(pfn) >= filler->dropped || *kept == 1)
		return true;
	if (madvise(page, BASE_SIZE, MADV_DONTNEED_LOCKED))
		return false;
	--*kept;
	return true;
}

static bool drop_pages(const struct bench *bench, struct filler *filler, unsigned long nr)
{
	filler->dropped += ((__u64)nr << 32) / (filler->single_len / BASE_SIZE);
	return walk_single(bench, filler, drop_page);
}

/* Not below the watermark, so that nothing else reclaims or compacts. */
static bool fill_with_pages(const struct bench *bench, struct filler *filler)
{
	const unsigned long reserve = high_watermark();
	unsigned long nr = free_pages(), step;

	filler->single = map_locked(nr * BASE_SIZE);
	if (!filler->single || madvise(filler->single, nr * BASE_SIZE, MADV_NOHUGEPAGE))
		return false;
	while (nr && (step = free_pages()) > reserve) {
		/* Half of it: the counters, and the CPUs' lists, lag behind. */
		step = (step - reserve + 1) / 2;
		if (step > nr)
			step = nr;
		touch(filler->single + filler->single_len, step * BASE_SIZE);
		filler->single_len += step * BASE_SIZE;
		nr -= step;
	}
	if (!walk_single(bench, filler, find_last_block))
		return false;
	filler->kept = calloc(filler->nr_blocks, sizeof(*filler->kept));
	return filler->kept && walk_single(bench, filler, count_kept);
}

/*
 * Take the free blocks and, if the filler cannot be moved, those that
 * compaction makes of the rest, until there are no more.
 */
static void fill_blocks(const struct bench *bench, struct filler *filler)
{
	const enum thp_defrag defrag = filler->kind->defrag;
	unsigned int in_vain = 0;
	char *block;

	granule_thp_order(GRANULE_ORDER);
	set_defrag(defrag);
	while (in_vain < MAX_IN_VAIN &&
	       filler->blocks_used + GRANULE_SIZE <= filler->blocks_len &&
	       (defrag != THP_DEFRAG_NEVER || count_free_blocks())) {
		block = filler->blocks + filler->blocks_used;
		filler->blocks_used += GRANULE_SIZE;
		touch(block, 1);
		if (granule_count(bench->pagemap, block, GRANULE_SIZE, GRANULE_WHOLE))
			in_vain = 0;
		else
			in_vain++;
	}
	granule_thp_never();
}

static bool fill(const struct bench *bench, const struct filler_kind *kind,
		 struct filler *filler)
{
	memset(filler, 0, sizeof(*filler));
	filler->kind = kind;
	granule_thp_never();
	if (write_sysctl(SYSCTL_COMPACT, kind->compact) || !fill_with_pages(bench, filler))
		return false;
	filler->blocks_len = fragmented_pages() * BASE_SIZE / GRANULE_SIZE * GRANULE_SIZE;
	filler->blocks = map_locked(filler->blocks_len);
	if (!filler->blocks || madvise(filler->blocks, filler->blocks_len, MADV_HUGEPAGE))
		return false;
	filler->blocks_used = (char *)granule_round_up(filler->blocks) - filler->blocks;
	return true;
}

static void drain(struct filler *filler)
{
	if (filler->single)
		munmap(filler->single, filler->single_len);
	if (filler->blocks)
		munmap(filler->blocks, filler->blocks_len);
	free(filler->kept);
	memset(filler, 0, sizeof(*filler));
}

/* Is memory fragmented as intended? Puts its state into @res. */
static bool is_fragmented(struct fragment_result *res)
{
	const unsigned long total = granule_meminfo_kb("MemTotal");
	long off;

	res->blocks = count_free_blocks();
	res->free_kb = granule_meminfo_kb("MemFree");
	off = (long)res->free_kb - (long)(total / FREE_PART);
	return !res->blocks && labs(off) <= (long)(total / FREE_SLACK);
}

/*
 * Give back the part that has to be free, take the blocks, and then set up the
 * measurement, so that nothing comes in between. Work of others meanwhile takes
 * another round.
 */
static bool fragment_memory(const struct bench *bench, const struct fragment *fragment,
			    struct filler *filler, struct fragment_result *res)
{
	unsigned long nr, want;
	unsigned int tries;

	for (tries = 0; tries < MAX_ROUNDS; tries++) {
		nr = free_pages();
		want = fragmented_pages() + count_free_blocks() * GRANULE_NR_PAGES;
		if (nr < want && !drop_pages(bench, filler, want - nr))
			return failed(&configs[fragment->config], "fragment");
		fill_blocks(bench, filler);
		select_config(bench, &configs[fragment->config]);
		set_defrag(fragment->defrag);
		if (is_fragmented(res))
			return true;
	}
	fprintf(stderr, "page_granule_bench: %lu MiB and %lu blocks of 64 KiB are free, instead\n"
		"of %lu MiB and none: run nothing else, with 1 GiB or more, on one node\n",
		res->free_kb / 1024, res->blocks, fragmented_pages() * BASE_SIZE / MIB);
	return false;
}

/*
 * Touch memory when all free memory is fragmented. Where nothing can be moved,
 * giving it back restores the state, and the median of several runs counts.
 */
static bool touch_fragmented(const struct bench *bench, const struct fragment *fragment,
			     struct filler *filler, struct mem *mem,
			     struct fragment_result *res)
{
	const unsigned int repeat = filler->kind == &pinned ? bench->repeat : 1;
	struct result runs[MAX_REPEAT];
	struct summary sum;
	unsigned int i;

	for (i = 0; i < repeat; i++) {
		if (i && !do_dontneed(mem))
			return failed(&configs[fragment->config], "MADV_DONTNEED");
		if (!fragment_memory(bench, fragment, filler, res) ||
		    !run_stage(bench, &stages[FIRST_TOUCH], mem, &runs[i]))
			return false;
	}
	summarize(runs, repeat, &sum);
	res->touch = sum.median;
	return true;
}

static unsigned long whole_after_repair(const struct bench *bench, const struct mem *mem)
{
	sleep(REPAIR_SECONDS);
	return granule_count(bench->pagemap, mem->area, mem->len, GRANULE_WHOLE);
}

static bool run_fragmented(const struct bench *bench, const struct fragment *fragment,
			   struct fragment_result *res)
{
	const struct config *config = &configs[fragment->config];
	struct filler filler;
	struct mem mem = { };
	bool ok;

	/* Once in vain: it puts the lists of the page allocator in order. */
	ok = fill(bench, fragment->filler, &filler);
	drain(&filler);
	ok = ok && fill(bench, fragment->filler, &filler) &&
	     mem_create(&mem, config, bench->mib * MIB);
	if (!ok) {
		failed(config, "fragment");
		goto out;
	}
	/* Repair and compaction get their turn, but not meanwhile. */
	run_alone(true);
	ok = touch_fragmented(bench, fragment, &filler, &mem, res);
	run_alone(false);
	if (!ok)
		goto out;
	res->whole_later = whole_after_repair(bench, &mem);
	drain(&filler);
	res->whole_drained = whole_after_repair(bench, &mem);
out:
	drain(&filler);
	mem_destroy(&mem);
	return ok;
}

static void print_share(unsigned long whole, unsigned long granules)
{
	printf(" %6lu %5.1f%%", whole, 100.0 * whole / granules);
}

static void print_fragmented(const struct bench *bench, const struct fragment *fragment,
			     const struct fragment_result *res)
{
	const unsigned long granules = bench->mib * MIB / GRANULE_SIZE;
	const unsigned long total = granule_meminfo_kb("MemTotal");
	char whole[32], later[32];

	if (bench->json) {
		fprintf(bench->json, "{\"set\": \"fragment\", \"filler\": \"%s\", ",
			fragment->filler->name);
		fprintf(bench->json, "\"config\": \"%s\", \"threads\": %u, \"mib\": %lu, ",
			fragment->config_name, bench->threads, bench->mib);
		fprintf(bench->json, "\"ns\": %lu, \"free_kb\": %lu, \"total_kb\": %lu, ",
			res->touch.ns, res->free_kb, total);
		fprintf(bench->json, "\"free_blocks\": %lu, \"whole\": %lu, ", res->blocks,
			res->touch.whole);
		fprintf(bench->json, "\"whole_later\": %lu, \"whole_drained\": %lu, ",
			res->whole_later, res->whole_drained);
		fprintf(bench->json, "\"granules\": %lu}\n", granules);
	}
	if (!bench->tables)
		return;
	snprintf(whole, sizeof(whole), "whole runs of %lu", granules);
	snprintf(later, sizeof(later), "after %u s", REPAIR_SECONDS);
	printf("\nFirst touch of fragmented memory, full of single pages that %s\n",
	       fragment->filler->what);
	printf("%-18s %8s %12s %14s %41s\n", "", "free", "free blocks", "instructions",
	       whole);
	printf("%-18s %8s %12s %14s %13s %13s %13s\n", "config", "[%]", "of 64 KiB",
	       "[per 64 KiB]", "at once", later, "drained");
	printf("%-18s %8.1f %12lu %14lu", fragment->config_name,
	       100.0 * res->free_kb / total, res->blocks, res->touch.ns / granules);
	print_share(res->touch.whole, granules);
	print_share(res->whole_later, granules);
	print_share(res->whole_drained, granules);
	printf("\nDrained: %u s after what fills memory was freed.\n", REPAIR_SECONDS);
}

bool bench_fragment(const struct bench *bench, const struct fragment *fragment)
{
	struct fragment_result res = { };
	bool ok;

	if (bench->missing[fragment->config]) {
		error(bench->missing[fragment->config]);
		return false;
	}
	if (bench->mib * MIB / BASE_SIZE > fragmented_pages() / 2) {
		error("not enough free memory once it is fragmented: give a smaller --mib");
		return false;
	}
	if (!save_sysctls()) {
		error("no sysctls to fragment memory by: set CONFIG_COMPACTION=y");
		return false;
	}
	if (granule_supported())
		granule_repair(true);
	run_alone(false);
	ok = run_fragmented(bench, fragment, &res);
	run_alone(true);
	if (granule_supported())
		granule_repair(false);
	if (ok)
		print_fragmented(bench, fragment, &res);
	return ok;
}
