// SPDX-License-Identifier: GPL-2.0
/*
 * The loads that scripts/tlb models the translation of, in the guest, as root: memory
 * of one configuration is brought into one condition, and each load is run in it,
 * between markers (mark.h) for the plugin.
 *
 * usage: tlb-load MIB CONFIG CONDITION LOAD...
 *        tlb-load --age MIB
 *
 * The second one makes so much free memory as it is after days: single pages that are
 * free come in no order, while there are free blocks elsewhere. A kernel that has just
 * booted hands pages out in order, and a core that takes four of them as one profits.
 *
 * CONFIG is 4k, mthp, thp, granule, or native for a kernel with 64 KiB pages.
 * CONDITION is fresh, fork (then written by the parent), swap (out and in) or
 * fragmented (then ten seconds to be repaired in). Writes a JSON object for each
 * LOAD, with a checksum of its results, which must not depend on the rest.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

#include "mark.h"

#define ARRAY_SIZE(x)	(sizeof(x) / sizeof((x)[0]))
#define MIB		(1UL << 20)
#define BLOCK		65536UL
#define THP		"/sys/kernel/mm/transparent_hugepage/"
#define MAP_GRANULE_64KB (0x400000 | 16 << 26)
#define MAX_PAGEOUT	10
#define REPAIR_SECONDS	10
#define FREE_PART	5	/* of fragmented memory, one page in that many is free */

/* At the same address in each run, so that traces are equal. */
static char *area;
static size_t area_len;
static size_t page_size;
static volatile struct mark *mark;

static void fail(const char *what)
{
	fprintf(stderr, "tlb-load: %s\n", what);
	exit(1);
}

static bool put_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);
	bool ok = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);

	if (fd >= 0)
		close(fd);
	return ok;
}

/* One order of THP for all, or none. */
static void thp_only(unsigned int kb)
{
	char path[128];
	unsigned int k;

	put_file(THP "enabled", "never");
	for (k = 8; k <= 2048; k *= 2) {
		snprintf(path, sizeof(path), THP "hugepages-%ukB/enabled", k);
		if (!put_file(path, k == kb ? "always" : "never") && k == kb)
			fail("no THP of that size: set CONFIG_TRANSPARENT_HUGEPAGE=y");
	}
}

static unsigned long meminfo_kb(const char *name)
{
	unsigned long kb = 0, val;
	char key[64];
	FILE *fp = fopen("/proc/meminfo", "r");

	while (fp && fscanf(fp, "%63[^:]: %lu%*[^\n]\n", key, &val) == 2) {
		if (!strcmp(key, name))
			kb = val;
	}
	if (fp)
		fclose(fp);
	return kb;
}

/* Write to each page, by what the compiler does not know. */
static void touch(volatile char *from, size_t len)
{
	size_t i;

	for (i = 0; i < len; i += page_size)
		from[i] = 1;
}

/* Entries of /proc/self/pagemap, 512 at a time. */
static uint64_t pagemap(const char *addr)
{
	static uint64_t entries[512], first = UINT64_MAX;
	static int fd = -1;
	const uint64_t page = (uintptr_t)addr / page_size;

	if (!addr) {
		first = UINT64_MAX;
		return 0;
	}
	if (fd < 0)
		fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	if (page - first >= ARRAY_SIZE(entries)) {
		first = page / ARRAY_SIZE(entries) * ARRAY_SIZE(entries);
		if (pread(fd, entries, sizeof(entries), first * 8) != sizeof(entries))
			fail("no /proc/self/pagemap: run as root");
	}
	return entries[page - first];
}

#define PRESENT(entry)	((entry) >> 63)
#define PFN(entry)	((entry) & ((1UL << 55) - 1))

/* What fragments memory: single pages, of which one in some is given back. */
static void fragment(void)
{
	const size_t reserve = 24 * MIB;
	size_t len = meminfo_kb("MemFree") * 1024, i;
	uint64_t entry, hash;
	char *filler;

	if (len < reserve + area_len * FREE_PART)
		fail("not enough memory to fragment");
	len = (len - reserve) / page_size * page_size;
	filler = mmap(NULL, len, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (filler == MAP_FAILED)
		fail("no memory to fragment");
	touch(filler, len);
	pagemap(NULL);
	for (i = 0; i < len; i += page_size) {
		entry = pagemap(filler + i);
		if (!PRESENT(entry))
			continue;
		hash = PFN(entry) * 0x9e3779b97f4a7c15UL >> 40;
		if (hash % FREE_PART == 0 && madvise(filler + i, page_size, MADV_DONTNEED))
			fail("cannot give a page back");
	}
}

/*
 * Every other page stays with a process that does nothing else. What is free between
 * them is taken first when a single page is wanted.
 */
static void age(size_t len)
{
	const int prot = PROT_READ | PROT_WRITE, flags = MAP_PRIVATE | MAP_ANONYMOUS;
	int ready[2];
	char *ours, *others, byte;
	size_t i;

	thp_only(0);
	if (pipe(ready))
		fail("no pipe");
	if (fork()) {
		close(ready[1]);
		if (read(ready[0], &byte, 1) != 1)
			fail("not enough memory to age");
		return;
	}
	close(ready[0]);
	ours = mmap(NULL, len, prot, flags, -1, 0);
	others = mmap(NULL, len, prot, flags, -1, 0);
	if (ours == MAP_FAILED || others == MAP_FAILED)
		exit(1);
	for (i = 0; i < len; i += page_size) {
		touch(ours + i, page_size);
		touch(others + i, page_size);
	}
	munmap(others, len);
	if (write(ready[1], "", 1) != 1)
		exit(1);
	for (i = 0; i < 3; i++)
		close(i);
	close(ready[1]);
	for (;;)
		pause();
}

static void map_area(const char *config)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;

	if (!strcmp(config, "granule"))
		flags |= MAP_GRANULE_64KB;
	area = mmap((void *)MARK_AREA, area_len, PROT_READ | PROT_WRITE, flags, -1, 0);
	if (area != (char *)MARK_AREA)
		fail("no memory of that configuration: is the kernel one with it?");
}

static void do_fork(void)
{
	pid_t child = fork();

	if (child < 0)
		fail("no fork()");
	while (!child)
		pause();
	touch(area, area_len);
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
}

static bool swapped_out(void)
{
	size_t i;

	pagemap(NULL);
	for (i = 0; i < area_len; i += page_size) {
		if (PRESENT(pagemap(area + i)))
			return false;
	}
	return true;
}

static void do_swap(void)
{
	unsigned int i;

	for (i = 0; i < MAX_PAGEOUT && !swapped_out(); i++) {
		if (madvise(area, area_len, MADV_PAGEOUT))
			fail("MADV_PAGEOUT does not work: is there swap?");
	}
	if (!swapped_out())
		fail("not all is swapped out: is there room for it?");
	touch(area, area_len);
}

static void condition(const char *name)
{
	touch(area, area_len);
	if (!strcmp(name, "fork"))
		do_fork();
	else if (!strcmp(name, "swap"))
		do_swap();
	else if (!strcmp(name, "fragmented"))
		sleep(REPAIR_SECONDS);
	else if (strcmp(name, "fresh"))
		fail("CONDITION is fresh, fork, swap or fragmented");
}

/* How many of the blocks of 64 KiB are in one piece. */
static size_t whole_blocks(void)
{
	const size_t pages = BLOCK / page_size;
	size_t i, j, whole = 0;
	uint64_t first;

	if (pages <= 1)
		return area_len / BLOCK;
	pagemap(NULL);
	for (i = 0; i < area_len; i += BLOCK) {
		first = PFN(pagemap(area + i));
		if (first % pages)
			continue;
		for (j = 0; j < pages; j++) {
			if (PFN(pagemap(area + i + j * page_size)) != first + j)
				break;
		}
		whole += j == pages;
	}
	return whole;
}

/* Numbers at random, the same ones each time. */
static uint64_t seed;

static inline uint64_t next(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return seed;
}

static inline uint64_t below(uint64_t limit)
{
	return ((next() >> 32) * limit) >> 32;
}

/* Of a load: fill the area, then do nr steps of what is measured. */
struct load {
	const char *name;
	void (*fill)(void);
	uint64_t (*run)(unsigned long nr);
	unsigned long warm, count;
};

/* GUPS: update words at random. */
static void gups_fill(void)
{
	uint64_t *table = (uint64_t *)area;
	size_t i;

	for (i = 0; i < area_len / 8; i++)
		table[i] = i;
}

static uint64_t gups_run(unsigned long nr)
{
	uint64_t *table = (uint64_t *)area, sum = 0;
	const uint64_t words = area_len / 8;
	unsigned long i;

	for (i = 0; i < nr; i++) {
		uint64_t *word = table + below(words);

		*word ^= seed;
		sum += *word;
	}
	return sum;
}

/*
 * A b-tree of nodes of 256 bytes: 32 keys, and children by number, level by level,
 * without pointers. Filled in order, so that a key is its rank, doubled.
 */
#define NODE_KEYS	32UL

static uint64_t node_next;

static inline uint64_t *node(size_t nr)
{
	return (uint64_t *)area + nr * NODE_KEYS;
}

static inline size_t node_child(size_t nr, size_t slot)
{
	return nr * (NODE_KEYS + 1) + slot + 1;
}

static void node_fill(size_t nr, size_t nodes)
{
	size_t slot;

	if (nr >= nodes)
		return;
	for (slot = 0; slot < NODE_KEYS; slot++) {
		node_fill(node_child(nr, slot), nodes);
		node(nr)[slot] = 2 * node_next++;
	}
	node_fill(node_child(nr, NODE_KEYS), nodes);
}

static void btree_fill(void)
{
	node_next = 0;
	node_fill(0, area_len / (NODE_KEYS * 8));
}

static uint64_t btree_run(unsigned long nr)
{
	const size_t nodes = area_len / (NODE_KEYS * 8);
	uint64_t sum = 0, key;
	size_t at, low, high, middle;
	unsigned long i;

	for (i = 0; i < nr; i++) {
		/* Every other key is there. */
		key = below(2 * nodes * NODE_KEYS);
		for (at = 0; at < nodes; at = node_child(at, low)) {
			for (low = 0, high = NODE_KEYS; low < high; ) {
				middle = (low + high) / 2;
				if (node(at)[middle] < key)
					low = middle + 1;
				else
					high = middle;
			}
			if (low < NODE_KEYS && node(at)[low] == key) {
				sum += at * NODE_KEYS + low;
				break;
			}
		}
	}
	return sum;
}

/* A hash join: half of the area is the table, half of it the tuples to look up. */
struct tuple {
	uint64_t key, value;
};

static inline uint64_t slot_of(uint64_t key, uint64_t slots)
{
	return ((key * 0x9e3779b97f4a7c15UL >> 32) * slots) >> 32;
}

static void join_fill(void)
{
	const uint64_t slots = area_len / 2 / sizeof(struct tuple);
	struct tuple *table = (struct tuple *)area, *probe = table + slots;
	uint64_t i, slot;

	memset(area, 0, area_len / 2);
	for (i = 1; i <= slots / 2; i++) {
		for (slot = slot_of(i, slots); table[slot].key; slot = slot + 1 == slots ? 0 : slot + 1)
			;
		table[slot] = (struct tuple){ i, 3 * i };
	}
	/* Three of four find a partner. */
	for (i = 0; i < slots; i++)
		probe[i] = (struct tuple){ 1 + below(slots / 3 * 2), i };
}

static uint64_t join_run(unsigned long nr)
{
	const uint64_t slots = area_len / 2 / sizeof(struct tuple);
	const struct tuple *table = (struct tuple *)area, *probe = table + slots;
	static uint64_t from;
	uint64_t slot, sum = 0;
	unsigned long i;

	for (i = 0; i < nr; i++, from = from + 1 == slots ? 0 : from + 1) {
		for (slot = slot_of(probe[from].key, slots); table[slot].key;
		     slot = slot + 1 == slots ? 0 : slot + 1) {
			if (table[slot].key == probe[from].key) {
				sum += table[slot].value + probe[from].value;
				break;
			}
		}
	}
	return sum;
}

/*
 * A sparse matrix in CSR, times a vector, which has a quarter of the area: 16 values
 * a row, of columns at random. Small whole numbers, which add up exactly.
 */
#define ROW_VALUES	16UL

static size_t spmv_rows(void)
{
	return area_len / 4 * 3 / (8 + ROW_VALUES * 12);
}

static void spmv_fill(void)
{
	const size_t columns = area_len / 4 / 8, rows = spmv_rows();
	double *x = (double *)area, *y = x + columns, *value = y + rows;
	uint32_t *column = (uint32_t *)(value + rows * ROW_VALUES);
	size_t i;

	for (i = 0; i < columns; i++)
		x[i] = i & 7;
	for (i = 0; i < rows * ROW_VALUES; i++) {
		value[i] = i & 3;
		column[i] = below(columns);
	}
}

static uint64_t spmv_run(unsigned long nr)
{
	const size_t columns = area_len / 4 / 8, rows = spmv_rows();
	double *x = (double *)area, *y = x + columns, *value = y + rows, sum = 0;
	const uint32_t *column = (uint32_t *)(value + rows * ROW_VALUES);
	static size_t row;
	unsigned long i;
	size_t j;

	for (i = 0; i < nr; i++, row = row + 1 == rows ? 0 : row + 1) {
		y[row] = 0;
		for (j = row * ROW_VALUES; j < (row + 1) * ROW_VALUES; j++)
			y[row] += value[j] * x[column[j]];
		sum += y[row];
	}
	return sum;
}

/*
 * Breadth-first search of a graph in CSR: 16 edges at random from each vertex. What
 * is measured starts with a quarter of the vertices seen, where the front is wide.
 */
#define EDGES		16UL

static uint32_t *bfs_edges, *bfs_depth, *bfs_queue;
static size_t bfs_nr, bfs_head, bfs_tail;

static uint64_t bfs_run(unsigned long nr)
{
	uint64_t sum = 0;
	unsigned long i;
	uint32_t from, to;
	size_t j;

	for (i = 0; i < nr && bfs_head < bfs_tail; i++) {
		from = bfs_queue[bfs_head++];
		for (j = from * EDGES; j < (from + 1) * EDGES; j++) {
			to = bfs_edges[j];
			if (bfs_depth[to])
				continue;
			bfs_depth[to] = bfs_depth[from] + 1;
			bfs_queue[bfs_tail++] = to;
			sum += to;
		}
	}
	return sum;
}

static void bfs_fill(void)
{
	size_t i;

	bfs_nr = area_len / (4 * (EDGES + 2));
	bfs_edges = (uint32_t *)area;
	bfs_depth = bfs_edges + bfs_nr * EDGES;
	bfs_queue = bfs_depth + bfs_nr;
	for (i = 0; i < bfs_nr * EDGES; i++)
		bfs_edges[i] = below(bfs_nr);
	memset(bfs_depth, 0, bfs_nr * 4);
	bfs_head = 0;
	bfs_tail = 1;
	bfs_queue[0] = 1;
	bfs_depth[1] = 1;
	while (bfs_tail < bfs_nr / 4 && bfs_head < bfs_tail)
		bfs_run(1);
}

/* As many steps as touch some hundred thousand lines. */
static const struct load loads[] = {
	{ "gups", gups_fill, gups_run, 300000, 400000 },
	{ "btree", btree_fill, btree_run, 20000, 30000 },
	{ "join", join_fill, join_run, 200000, 250000 },
	{ "spmv", spmv_fill, spmv_run, 15000, 20000 },
	{ "bfs", bfs_fill, bfs_run, 15000, 20000 },
};

static const struct load *find_load(const char *name)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(loads); i++) {
		if (!strcmp(loads[i].name, name))
			return &loads[i];
	}
	return NULL;
}

static void run_load(const struct load *load, const char *config, const char *cond)
{
	uint64_t sum;

	seed = 88172645463325252UL;
	load->fill();
	snprintf((char *)mark->label, sizeof(mark->label), "%s.%lu.%s.%s", load->name,
		 area_len / MIB, config, cond);
	mark->order[0] = 1;
	sum = load->run(load->warm);
	mark->order[1] = 1;
	sum += load->run(load->count);
	mark->order[2] = 1;
	printf("{\"set\": \"load\", \"load\": \"%s\", \"mib\": %lu, ", load->name, area_len / MIB);
	printf("\"config\": \"%s\", \"condition\": \"%s\", ", config, cond);
	printf("\"checksum\": \"%016lx\", \"whole\": %lu, \"blocks\": %lu}\n", sum,
	       whole_blocks(), area_len / BLOCK);
}

static void select_config(const char *config)
{
	if (!strcmp(config, "native"))
		put_file(THP "enabled", "never");
	else if (!strcmp(config, "mthp"))
		thp_only(64);
	else if (!strcmp(config, "thp"))
		thp_only(2048);
	else if (!strcmp(config, "4k") || !strcmp(config, "granule"))
		thp_only(0);
	else
		fail("CONFIG is 4k, mthp, thp, granule or native");
	if (!strcmp(config, "native") != (page_size == BLOCK))
		fail("native is for a kernel with 64 KiB pages, and the rest for 4 KiB");
}

static int nr_args;
static char **args;

static void run_loads(void)
{
	int i;

	for (i = 4; i < nr_args; i++)
		run_load(find_load(args[i]), args[2], args[3]);
	exit(0);
}

/* On a stack that is at the same place however long the arguments are. */
static void run_on_stack(void)
{
	static ucontext_t context;
	char *stack;

	stack = mmap((void *)MARK_STACK, MARK_STACK_LEN, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	if (stack == MAP_FAILED || getcontext(&context))
		fail("no memory for a stack");
	context.uc_stack.ss_sp = stack;
	context.uc_stack.ss_size = MARK_STACK_LEN;
	makecontext(&context, run_loads, 0);
	setcontext(&context);
}

int main(int argc, char **argv)
{
	int i;

	page_size = getpagesize();
	if (argc == 3 && !strcmp(argv[1], "--age")) {
		age(strtoul(argv[2], NULL, 10) * MIB);
		return 0;
	}
	if (argc < 5)
		fail("usage: tlb-load MIB CONFIG CONDITION LOAD...");
	area_len = strtoul(argv[1], NULL, 10) * MIB;
	if (!area_len)
		fail("MIB is a number");
	for (i = 4; i < argc; i++) {
		if (!find_load(argv[i]))
			fail("LOAD is gups, btree, join, spmv or bfs");
	}
	mark = mmap((void *)MARK_ADDR, page_size, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	if (mark == MAP_FAILED)
		fail("no memory for a marker");
	mark->page_size = page_size;
	thp_only(0);
	if (!strcmp(argv[3], "fragmented"))
		fragment();
	select_config(argv[2]);
	map_area(argv[2]);
	condition(argv[3]);
	nr_args = argc;
	args = argv;
	run_on_stack();
	fail("no context");
}
