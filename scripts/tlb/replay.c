// SPDX-License-Identifier: GPL-2.0
/*
 * Replay a trace of accesses, under the page tables that go with it, on models of
 * the TLBs of several cores, and count what misses.
 *
 * usage: tlb-replay [--as-64k] [--short] CORES LAYOUT TRACE
 *
 * CORES is scripts/tlb/cores, the others are what record.c writes; a TRACE whose first
 * line is "text" has lines like "d ADDRESS", "i ADDRESS", "count" and "flush" instead.
 * Writes a JSON object for each core of the layout's architecture and each variant:
 * lru; random, in what is replaced in the TLBs; half and more, with half and one and
 * a half of the entries of the TLBs. The last three are without caches, and --short
 * leaves them out. --as-64k makes of the layout what a kernel with 64 KiB pages would
 * have.
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "mark.h"
#include "trace.h"

#define ARRAY_SIZE(x)	(sizeof(x) / sizeof((x)[0]))
#define MAX_CORES	16
#define MAX_LEVELS	5
#define MAX_RUN		4	/* 16 PTEs */
#define MAX_UNMAPPED	1000	/* one of so many accesses */
#define NO_PAGE		UINT32_MAX
#define PTE_CONT	(1ULL << 52)
#define PHYS_MASK	0x0000fffffffff000ULL

static void fail(const char *what, const char *name)
{
	fprintf(stderr, "tlb-replay: %s: %s\n", name, what);
	exit(1);
}

static void *alloc(size_t nr, size_t size)
{
	void *ptr = calloc(nr ? nr : 1, size);

	if (!ptr)
		fail("no memory", "it");
	return ptr;
}

/* One leaf entry of the page tables. */
struct page {
	uint64_t virt, entry;
	uint8_t shift;
	uint8_t run;	/* of what power of 2 of PTEs in order it is one */
};

static struct {
	char label[128], arch[16], trace[32];
	unsigned int page_shift, top_level;
	uint64_t insns, accesses, table_bytes, cont;
	struct page *pages;
	size_t nr;
} layout;

struct word {
	uint64_t line;
	uint32_t page;
	uint32_t kind;
};

static struct word *words;
static size_t nr_words, nr_unmapped;

static unsigned int level_shift(unsigned int level)
{
	return layout.page_shift + (level - 1) * (layout.page_shift - 3);
}

static void add_page(uint64_t virt, uint64_t entry, unsigned int shift)
{
	static size_t room;

	if (layout.nr == room) {
		room = room ? 2 * room : 4096;
		layout.pages = realloc(layout.pages, room * sizeof(*layout.pages));
		if (!layout.pages)
			fail("no memory", "it");
	}
	layout.pages[layout.nr++] = (struct page){ virt, entry, shift, 0 };
}

/* Are the 2^order PTEs from the n-th on in order, and all alike? */
static bool is_run(size_t n, unsigned int order)
{
	const struct page *first = layout.pages + n;
	const uint64_t size = 1ULL << (first->shift + order);
	size_t i;

	if (n + (1UL << order) > layout.nr || first->virt % size ||
	    (first->entry & PHYS_MASK) % size)
		return false;
	for (i = 1; i < 1UL << order; i++) {
		if (first[i].shift != first->shift ||
		    first[i].virt != first->virt + (i << first->shift) ||
		    first[i].entry != first->entry + (i << first->shift))
			return false;
	}
	return true;
}

static void find_runs(void)
{
	unsigned int order;
	size_t n, i;

	for (order = 1; order <= MAX_RUN; order++) {
		for (n = 0; n < layout.nr; n++) {
			if (layout.pages[n].shift != layout.page_shift || !is_run(n, order))
				continue;
			for (i = 0; i < 1UL << order; i++)
				layout.pages[n + i].run = order;
		}
	}
}

static bool has_cont(const struct page *page)
{
	return !strcmp(layout.arch, "arm64") && (page->entry & PTE_CONT);
}

/* That the kernel says of 16 PTEs that they are a run must be true. */
static void check_cont(const char *name)
{
	size_t n;

	for (n = 0; n < layout.nr; n++) {
		if (layout.pages[n].shift != 12 || !has_cont(layout.pages + n))
			continue;
		layout.cont++;
		if (layout.pages[n].run < 4)
			fail("a contiguous bit without a run", name);
	}
}

static void read_layout(const char *name)
{
	uint64_t virt, nr, entry, i;
	unsigned int shift, level;
	FILE *fp = fopen(name, "r");
	char line[256];

	if (!fp)
		fail("cannot be read", name);
	while (fgets(line, sizeof(line), fp)) {
		if (sscanf(line, "map %lx %lu %u %lx", &virt, &nr, &shift, &entry) == 4) {
			for (i = 0; i < nr; i++)
				add_page(virt + (i << shift), entry + (i << shift), shift);
		} else if (sscanf(line, "tables %u %lu", &level, &nr) == 2) {
			layout.table_bytes += nr << layout.page_shift;
		} else if (!sscanf(line, "label %127s", layout.label) &&
			   !sscanf(line, "arch %15s", layout.arch) &&
			   !sscanf(line, "trace %31s", layout.trace) &&
			   !sscanf(line, "page_shift %u", &layout.page_shift) &&
			   !sscanf(line, "top_level %u", &layout.top_level) &&
			   !sscanf(line, "accesses %lu", &layout.accesses)) {
			sscanf(line, "insns %lu", &layout.insns);
		}
	}
	fclose(fp);
	if (!layout.nr || !layout.label[0] || !layout.arch[0] || layout.page_shift < 12 ||
	    layout.top_level < 2 || layout.top_level >= MAX_LEVELS)
		fail("no layout", name);
}

/* Each block of which something is mapped becomes one page, as a 64K kernel has it. */
static void make_64k(void)
{
	uint64_t block, last = UINT64_MAX, table, last_table = UINT64_MAX;
	size_t n, nr = 0;

	layout.page_shift = 16;
	layout.top_level = 3;
	layout.table_bytes = 2 << 16;
	for (n = 0; n < layout.nr; n++) {
		block = layout.pages[n].virt >> 16;
		if (block == last)
			continue;
		last = block;
		layout.pages[nr++] = (struct page){ block << 16, block << 16 | 1, 16, 0 };
		table = block >> 13;
		if (table != last_table)
			layout.table_bytes += 1 << 16;
		last_table = table;
	}
	layout.nr = nr;
}

static uint32_t find_page(uint64_t virt)
{
	static size_t last;
	size_t low = 0, high = layout.nr, middle;
	const struct page *page = layout.pages + last;

	if (virt - page->virt < 1ULL << page->shift)
		return last;
	while (low < high) {
		middle = (low + high) / 2;
		if (layout.pages[middle].virt <= virt)
			low = middle + 1;
		else
			high = middle;
	}
	if (!low)
		return NO_PAGE;
	page = layout.pages + low - 1;
	if (virt - page->virt >= 1ULL << page->shift)
		return NO_PAGE;
	last = low - 1;
	return last;
}

static void add_word(uint64_t line, unsigned int kind, const char *name)
{
	static size_t room;
	uint32_t page = 0;

	if (kind != TRACE_ORDER) {
		page = find_page(line << 6);
		if (page == NO_PAGE) {
			nr_unmapped++;
			return;
		}
	}
	if (nr_words == room) {
		room = room ? 2 * room : 1 << 16;
		words = realloc(words, room * sizeof(*words));
		if (!words)
			fail("no memory", "it");
	}
	words[nr_words++] = (struct word){ line, page, kind };
}

static void read_text(FILE *fp, const char *name)
{
	char line[128];
	uint64_t addr;

	while (fgets(line, sizeof(line), fp)) {
		if (!strcmp(line, "count\n"))
			add_word(TRACE_COUNT, TRACE_ORDER, name);
		else if (!strcmp(line, "flush\n"))
			add_word(TRACE_FLUSH, TRACE_ORDER, name);
		else if (sscanf(line, "d %lx", &addr) == 1)
			add_word(addr >> 6, TRACE_DATA, name);
		else if (sscanf(line, "i %lx", &addr) == 1)
			add_word(addr >> 6, TRACE_FETCH, name);
		else
			fail("has a line that is none of a trace", name);
	}
}

static void read_trace(const char *name)
{
	struct trace trace = { .fp = fopen(name, "r") };
	char magic[sizeof(TRACE_MAGIC)] = "";
	uint64_t word;

	if (!trace.fp)
		fail("cannot be read", name);
	if (fgets(magic, 6, trace.fp) && !strcmp(magic, "text\n")) {
		read_text(trace.fp, name);
	} else {
		rewind(trace.fp);
		if (!fgets(magic, sizeof(magic), trace.fp) || strcmp(magic, TRACE_MAGIC))
			fail("no trace", name);
		while (trace_get(&trace, &word))
			add_word(word >> 2, word & 3, name);
	}
	fclose(trace.fp);
	if (!nr_words && !nr_unmapped)
		fail("an empty trace", name);
	/* A program may have given a page back since. */
	if (nr_unmapped * MAX_UNMAPPED > nr_words)
		fail("has addresses that the layout has not", name);
}

/*
 * Sets of ways that hold keys, 0 being none: TLBs, page-walk caches and caches are
 * like this. The last one used is first.
 */
struct array {
	uint64_t *keys;
	uint64_t random;	/* 0: the least recently used is replaced */
	unsigned int sets, ways;
};

static void array_init(struct array *array, unsigned int entries, unsigned int ways, bool random)
{
	memset(array, 0, sizeof(*array));
	if (!entries)
		return;
	array->sets = entries / ways;
	array->ways = ways;
	array->random = random ? 88172645463325252ULL : 0;
	array->keys = alloc((size_t)array->sets * ways, sizeof(*array->keys));
}

static void array_flush(struct array *array)
{
	memset(array->keys, 0, (size_t)array->sets * array->ways * sizeof(*array->keys));
}

/* Is it there? It is afterwards. */
static bool array_use(struct array *array, uint64_t index, uint64_t key)
{
	uint64_t *keys = array->keys + index % array->sets * array->ways;
	unsigned int way;
	bool hit;

	if (keys[0] == key)
		return true;
	for (way = 1; way < array->ways && keys[way] != key; way++)
		;
	hit = way < array->ways;
	if (hit && array->random)
		return true;
	if (!hit && array->random) {
		for (way = 0; way < array->ways && keys[way]; way++)
			;
		if (way == array->ways) {
			array->random ^= array->random << 13;
			array->random ^= array->random >> 7;
			array->random ^= array->random << 17;
			way = (array->random >> 16) % array->ways;
		}
		keys[way] = key;
		return false;
	}
	if (!hit)
		way = array->ways - 1;
	memmove(keys + 1, keys, way * sizeof(*keys));
	keys[0] = key;
	return hit;
}

struct core {
	char name[32], arch[16];
	unsigned int d, d_ways, d2m, d2m_ways, i, i_ways, l2, l2_ways, l2i, l2i_ways;
	unsigned int co1, co2, pw1, pw2;
	unsigned int l1c, l1c_ways, l2c, l2c_ways, llc, llc_ways, walk_from;
};

enum where { IN_L1, IN_L2, IN_LLC, IN_MEMORY, NR_WHERE };

struct model {
	const struct core *core;
	bool has_caches;
	struct array d, d2m, i, l2, l2i, pw[MAX_LEVELS + 1];
	struct array l1c, l2c, llc;
	uint64_t lines, l1d, l1i, l2d, l2i_misses, ptes;
	uint64_t pte_in[NR_WHERE], data_in[NR_WHERE];
};

/* Where the caches have a line, of which those of page tables have numbers of their own. */
static enum where cache_use(struct model *m, uint64_t line, unsigned int from)
{
	if (from == 1 && array_use(&m->l1c, line, line + 1))
		return IN_L1;
	if (array_use(&m->l2c, line, line + 1))
		return IN_L2;
	return array_use(&m->llc, line, line + 1) ? IN_LLC : IN_MEMORY;
}

/* Eight entries of a level are a line; what they map tells one line from another. */
static void load_pte(struct model *m, uint64_t virt, unsigned int level)
{
	const uint64_t line = (virt >> level_shift(level)) / 8 | (uint64_t)level << 56;

	m->ptes++;
	if (m->has_caches)
		m->pte_in[cache_use(m, line, m->core->walk_from)]++;
}

static void walk(struct model *m, uint64_t virt, unsigned int shift)
{
	const unsigned int leaf = (shift - layout.page_shift) / (layout.page_shift - 3) + 1;
	unsigned int level, from;
	uint64_t tag;

	/* From the lowest table that is known. */
	for (from = leaf + 1; from <= layout.top_level; from++) {
		tag = virt >> level_shift(from);
		if (array_use(&m->pw[from], tag, tag + 1))
			break;
	}
	for (level = from - 1; level >= leaf; level--)
		load_pte(m, virt, level);
}

/* How much an entry of a TLB maps that takes 2^order PTEs in order, or one. */
static unsigned int entry_shift(const struct page *page, unsigned int order)
{
	if (page->shift != layout.page_shift || layout.page_shift != 12)
		return page->shift;
	if (has_cont(page))
		return 16;
	return page->shift + (page->run >= order ? order : 0);
}

static bool tlb_use(struct array *tlb, uint64_t virt, unsigned int shift)
{
	return array_use(tlb, virt >> shift, (virt >> shift) << 6 | shift);
}

static void translate(struct model *m, const struct word *word)
{
	const struct page *page = layout.pages + word->page;
	const uint64_t virt = word->line << 6;
	const unsigned int shift1 = entry_shift(page, m->core->co1);
	const unsigned int shift2 = entry_shift(page, m->core->co2);
	const bool fetch = word->kind == TRACE_FETCH;
	struct array *first = fetch ? &m->i : &m->d;

	if (!fetch && m->d2m.ways && shift1 >= 21)
		first = &m->d2m;
	if (tlb_use(first, virt, shift1))
		return;
	if (fetch)
		m->l1i++;
	else
		m->l1d++;
	if (tlb_use(fetch && m->l2i.ways ? &m->l2i : &m->l2, virt, shift2))
		return;
	if (fetch)
		m->l2i_misses++;
	else
		m->l2d++;
	walk(m, virt, page->shift);
}

static void flush(struct model *m)
{
	unsigned int level;

	array_flush(&m->d);
	array_flush(&m->d2m);
	array_flush(&m->i);
	array_flush(&m->l2);
	array_flush(&m->l2i);
	for (level = 2; level <= layout.top_level; level++)
		array_flush(&m->pw[level]);
}

static void count_from_here(struct model *m)
{
	m->lines = m->l1d = m->l1i = m->l2d = m->l2i_misses = m->ptes = 0;
	memset(m->pte_in, 0, sizeof(m->pte_in));
	memset(m->data_in, 0, sizeof(m->data_in));
}

static void run(struct model *m)
{
	const struct word *word;

	for (word = words; word < words + nr_words; word++) {
		if (word->kind == TRACE_ORDER) {
			if (word->line == TRACE_FLUSH)
				flush(m);
			else
				count_from_here(m);
			continue;
		}
		translate(m, word);
		if (word->kind == TRACE_FETCH)
			continue;
		m->lines++;
		if (m->has_caches)
			m->data_in[cache_use(m, word->line, 1)]++;
	}
}

static const struct variant {
	const char *name;
	unsigned int half_sizes;
	bool random;
} variants[] = {
	{ "lru", 2, false },
	{ "random", 2, true },
	{ "half", 1, false },
	{ "more", 3, false },
};

/* Of a set-associative TLB the sets are more or fewer, of another one the ways. */
static void tlb_init(struct array *tlb, unsigned int entries, unsigned int ways,
		     const struct variant *variant)
{
	const unsigned int scaled = entries * variant->half_sizes / 2;

	array_init(tlb, scaled, ways == entries ? scaled : ways, variant->random);
}

static void model_init(struct model *m, const struct core *core, const struct variant *variant)
{
	unsigned int level;

	memset(m, 0, sizeof(*m));
	m->core = core;
	/* What others ask of the variants is misses of TLBs. */
	m->has_caches = variant == variants;
	tlb_init(&m->d, core->d, core->d_ways, variant);
	tlb_init(&m->d2m, core->d2m, core->d2m_ways, variant);
	tlb_init(&m->i, core->i, core->i_ways, variant);
	tlb_init(&m->l2, core->l2, core->l2_ways, variant);
	tlb_init(&m->l2i, core->l2i, core->l2i_ways, variant);
	for (level = 2; level <= layout.top_level; level++)
		array_init(&m->pw[level], level == 2 ? core->pw1 : core->pw2,
			   level == 2 ? core->pw1 : core->pw2, false);
	if (!m->has_caches)
		return;
	array_init(&m->l1c, core->l1c * 16, core->l1c_ways, false);
	array_init(&m->l2c, core->l2c * 16, core->l2c_ways, false);
	array_init(&m->llc, core->llc * 16, core->llc_ways, false);
}

static void model_free(struct model *m)
{
	unsigned int level;

	free(m->d.keys);
	free(m->d2m.keys);
	free(m->i.keys);
	free(m->l2.keys);
	free(m->l2i.keys);
	for (level = 2; level <= layout.top_level; level++)
		free(m->pw[level].keys);
	free(m->l1c.keys);
	free(m->l2c.keys);
	free(m->llc.keys);
}

/* Of the area that mark.h names, how many blocks of 64 KiB are in one piece? */
static size_t whole_blocks(uint64_t len)
{
	const struct page *page;
	size_t whole = 0;

	for (page = layout.pages; page < layout.pages + layout.nr; page++) {
		if (page->virt - MARK_AREA >= len)
			continue;
		if (page->shift >= 16)
			whole += 1UL << (page->shift - 16);
		else if (page->run == 4 && !(page->virt & 0xffff))
			whole++;
	}
	return whole;
}

/* A label is LOAD.MIB.CONFIG.CONDITION. */
static void print_model(const struct model *m, const struct variant *variant, bool as_64k)
{
	char load[128], config[128] = "-", condition[128] = "-";
	unsigned long mib = 0;
	uint64_t mapped = 0;
	size_t n;

	for (n = 0; n < layout.nr; n++)
		mapped += 1ULL << layout.pages[n].shift;
	sscanf(layout.label, "%127[^.].%lu.%127[^.].%127[^.]", load, &mib, config, condition);
	printf("{\"set\": \"model\", \"core\": \"%s\", \"variant\": \"%s\", ", m->core->name,
	       variant->name);
	printf("\"load\": \"%s\", \"mib\": %lu, \"config\": \"%s\", \"condition\": \"%s\", ",
	       load, mib, as_64k ? "64k-derived" : config, condition);
	printf("\"trace\": \"%s\", \"insns\": %lu, \"accesses\": %lu, \"lines\": %lu, ", layout.trace,
	       layout.insns, layout.accesses, m->lines);
	printf("\"l1d\": %lu, \"l1i\": %lu, \"l2d\": %lu, \"l2i\": %lu, ", m->l1d, m->l1i,
	       m->l2d, m->l2i_misses);
	printf("\"ptes\": %lu, ", m->ptes);
	if (m->has_caches) {
		printf("\"pte_l1\": %lu, \"pte_l2\": %lu, \"pte_llc\": %lu, \"pte_mem\": %lu, ",
		       m->pte_in[IN_L1], m->pte_in[IN_L2], m->pte_in[IN_LLC],
		       m->pte_in[IN_MEMORY]);
		printf("\"data_l2\": %lu, \"data_llc\": %lu, \"data_mem\": %lu, ",
		       m->data_in[IN_L2], m->data_in[IN_LLC], m->data_in[IN_MEMORY]);
	}
	printf("\"unmapped\": %zu, ", nr_unmapped);
	printf("\"table_bytes\": %lu, \"mapped_bytes\": %lu, \"cont\": %lu, \"whole\": %lu}\n",
	       layout.table_bytes, mapped, layout.cont, whole_blocks(mib << 20));
}

static struct core cores[MAX_CORES];
static unsigned int nr_cores;

static bool bad_array(unsigned int entries, unsigned int ways)
{
	return entries && (!ways || entries < ways);
}

static void read_cores(const char *name)
{
	FILE *fp = fopen(name, "r");
	char line[512];
	struct core *c;
	int n;

	if (!fp)
		fail("cannot be read", name);
	while (fgets(line, sizeof(line), fp)) {
		if (line[0] == '#' || line[0] == '\n')
			continue;
		if (nr_cores == MAX_CORES)
			fail("too many cores", name);
		c = &cores[nr_cores++];
		n = sscanf(line, "%31s %15s %u %u %u %u %u %u %u %u %u %u %u %u %u %u %u %u %u %u %u %u %u",
			   c->name, c->arch, &c->d, &c->d_ways, &c->d2m, &c->d2m_ways, &c->i,
			   &c->i_ways, &c->l2, &c->l2_ways, &c->l2i, &c->l2i_ways, &c->co1,
			   &c->co2, &c->pw1, &c->pw2, &c->l1c, &c->l1c_ways, &c->l2c,
			   &c->l2c_ways, &c->llc, &c->llc_ways, &c->walk_from);
		if (n != 23 || !c->d || !c->i || !c->l2 || !c->pw1 || !c->pw2 || !c->l1c ||
		    !c->l2c || !c->llc || bad_array(c->d, c->d_ways) ||
		    bad_array(c->d2m, c->d2m_ways) || bad_array(c->i, c->i_ways) ||
		    bad_array(c->l2, c->l2_ways) || bad_array(c->l2i, c->l2i_ways) ||
		    c->walk_from < 1 || c->walk_from > 2)
			fail("has a line that is no core", name);
	}
	fclose(fp);
}

int main(int argc, char **argv)
{
	bool as_64k = false, brief = false;
	struct model model;
	unsigned int i, j;

	for (; argc > 1 && argv[1][0] == '-'; argc--, argv++) {
		if (!strcmp(argv[1], "--as-64k"))
			as_64k = true;
		else if (!strcmp(argv[1], "--short"))
			brief = true;
		else
			break;
	}
	if (argc != 4) {
		fprintf(stderr, "usage: tlb-replay [--as-64k] [--short] CORES LAYOUT TRACE\n");
		return 1;
	}
	read_cores(argv[1]);
	read_layout(argv[2]);
	if (as_64k)
		make_64k();
	find_runs();
	check_cont(argv[2]);
	read_trace(argv[3]);
	for (i = 0; i < nr_cores; i++) {
		if (strcmp(cores[i].arch, layout.arch))
			continue;
		for (j = 0; j < (brief ? 1 : ARRAY_SIZE(variants)); j++) {
			model_init(&model, &cores[i], &variants[j]);
			run(&model);
			print_model(&model, &variants[j], as_64k);
			model_free(&model);
		}
	}
	return 0;
}
