// SPDX-License-Identifier: GPL-2.0
/*
 * A plugin for QEMU's TCG: record what one address space of the guest accesses
 * between markers (mark.h), and the page tables that it has then.
 *
 * usage: -plugin record.so,out=DIR,ram=MIB with the guest's memory in a memfd
 *
 * The page tables are read where they are, in the memory of the guest. The API of
 * this QEMU shows neither registers nor memory, so the root is looked for: it is the
 * page from which a walk of the marker's address, as the CPU would do it, leads to
 * the physical page that QEMU says the marker has. Each page that is recorded is
 * then walked from that root and compared with what QEMU says. An access that does
 * not agree is another process's, and all that came since the last kernel code
 * before it is dropped; so is what came between two runs of kernel code without an
 * access to a writable page that agrees, which could be anybody's.
 *
 * DIR gets LABEL.layout, text, and a file named by its hash with the accesses, which
 * is the same for all layouts under which a program does the same.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "qemu-plugin.h"
#include "mark.h"
#include "trace.h"

QEMU_PLUGIN_EXPORT int qemu_plugin_version = QEMU_PLUGIN_VERSION;

#define ARRAY_SIZE(x)	(sizeof(x) / sizeof((x)[0]))
#define MIB		(1ULL << 20)
#define BURST_MAX	(1U << 20)
#define NO_PHYS		UINT64_MAX

/* Bits of an entry that hardware sets as memory is used. */
#define X86_AD		0x60ULL
#define ARM_AF		(1ULL << 10)

static bool is_arm;
static char out_dir[PATH_MAX - 300];

/* The guest's memory. */
static int ram_fd = -1;
static const uint8_t *ram;
static uint64_t ram_size, ram_low;

/* Counted by inline operations. */
static uint64_t insns, kernel_blocks;

/* What is being recorded. */
static struct {
	bool on, counting;
	struct mark mark;
	uint64_t root;
	unsigned int page_shift;
	char *before;		/* the layout when it started, or NULL */
	uint64_t insns, accesses, count_insns, count_accesses;
	uint64_t insns_seen;	/* of "insns" */
	uint64_t pages, foreign, unproven;
	struct trace trace;
} rec;

/* What came since the last kernel code. */
static struct {
	uint64_t kernel_blocks;
	uint64_t word[BURST_MAX];
	unsigned int nr;
	uint64_t insns, accesses;
	bool ours, foreign;
	uint64_t line, fetch;	/* the last of each, to leave out repeats */
} burst;

static void fail(const char *what)
{
	fprintf(stderr, "tlb record: %s\n", what);
	exit(1);
}

/* Where in the guest's memory a physical address is, or NULL. */
static const void *phys_ptr(uint64_t phys)
{
	if (is_arm) {
		if (phys < 1ULL << 30)
			return NULL;
		phys -= 1ULL << 30;
	} else if (phys >= 1ULL << 32) {
		phys = phys - (1ULL << 32) + ram_low;
	} else if (phys >= ram_low) {
		return NULL;
	}
	return phys + 8 <= ram_size ? ram + phys : NULL;
}

static uint64_t ram_phys(uint64_t off)
{
	if (is_arm)
		return off + (1ULL << 30);
	return off < ram_low ? off : off - ram_low + (1ULL << 32);
}

/*
 * Where an access went, or NO_PHYS. On x86 QEMU says it as an offset into all of the
 * memory, which is mapped in two pieces.
 */
static uint64_t access_phys(qemu_plugin_meminfo_t info, uint64_t virt)
{
	struct qemu_plugin_hwaddr *hw = qemu_plugin_get_hwaddr(info, virt);
	uint64_t phys;

	if (!hw || qemu_plugin_hwaddr_is_io(hw))
		return NO_PHYS;
	phys = qemu_plugin_hwaddr_phys_addr(hw);
	return is_arm ? phys : ram_phys(phys);
}

/* The tables: 48 bits of virtual address, and 9 or 13 bits of it a level. */
static unsigned int level_bits(void)
{
	return rec.page_shift - 3;
}

static unsigned int level_shift(unsigned int level)
{
	return rec.page_shift + (level - 1) * level_bits();
}

static unsigned int top_level(void)
{
	return rec.page_shift == 16 ? 3 : 4;
}

static unsigned int level_entries(unsigned int level)
{
	const unsigned int bits = 48 - level_shift(level);

	return 1U << (bits < level_bits() ? bits : level_bits());
}

static bool present(uint64_t entry)
{
	return entry & 1;
}

static bool is_leaf(uint64_t entry, unsigned int level)
{
	if (level == 1)
		return true;
	return is_arm ? !(entry & 2) : level < 4 && (entry & 0x80);
}

static uint64_t entry_phys(uint64_t entry)
{
	return entry & 0x0000fffffffff000ULL & ~((1ULL << rec.page_shift) - 1);
}

static bool user_writable(uint64_t entry)
{
	if (!is_arm)
		return (entry & 6) == 6;
	/* Writable, or what hardware makes so at the first write. */
	return (entry & (1ULL << 6)) && (!(entry & (1ULL << 7)) || (entry & (1ULL << 51)));
}

static uint64_t entry_at(uint64_t table, uint64_t virt, unsigned int level)
{
	const uint64_t index = (virt >> level_shift(level)) & (level_entries(level) - 1);
	const uint64_t *entry = phys_ptr(table + index * 8);

	return entry ? *entry : 0;
}

/* Translate as the CPU would. Returns the page's physical address, and its entry. */
static uint64_t walk(uint64_t root, uint64_t virt, uint64_t *leaf)
{
	uint64_t entry = 0, table = root, mask;
	unsigned int level;

	for (level = top_level(); level; level--) {
		entry = entry_at(table, virt, level);
		if (!present(entry))
			return NO_PHYS;
		if (is_leaf(entry, level))
			break;
		table = entry_phys(entry);
	}
	*leaf = entry;
	mask = (1ULL << level_shift(level)) - 1;
	return (entry_phys(entry) & ~mask) | (virt & mask & ~((1ULL << rec.page_shift) - 1));
}

/* Look for the root in all memory that was ever written to. */
static uint64_t find_root(uint64_t virt, uint64_t phys)
{
	const uint64_t align = 8ULL * level_entries(top_level());
	uint64_t root = 0, found = 0, leaf, candidate;
	off_t start, end, off;

	phys &= ~((1ULL << rec.page_shift) - 1);
	/* The same as before? Nobody else has a page that is written to. */
	if (rec.root && walk(rec.root, virt, &leaf) == phys && user_writable(leaf))
		return rec.root;
	for (start = 0; (start = lseek(ram_fd, start, SEEK_DATA)) >= 0; start = end) {
		end = lseek(ram_fd, start, SEEK_HOLE);
		for (off = start; off < end; off += align) {
			candidate = ram_phys(off);
			if (walk(candidate, virt, &leaf) != phys || !user_writable(leaf))
				continue;
			root = candidate;
			found++;
		}
	}
	if (found != 1) {
		fprintf(stderr, "tlb record: %lu page-table roots for %s\n", found,
			rec.mark.label);
		exit(1);
	}
	return root;
}

/* Leaf entries that follow each other, in place and in attributes. */
struct leaves {
	uint64_t virt, entry, nr;
	unsigned int shift;
};

struct dump {
	FILE *fp;
	struct leaves run;
	uint64_t tables[5];
};

static void put_leaves(struct dump *dump)
{
	const struct leaves *run = &dump->run;

	if (run->nr)
		fprintf(dump->fp, "map %lx %lu %u %lx\n", run->virt, run->nr, run->shift,
			run->entry);
	dump->run.nr = 0;
}

static void dump_leaf(struct dump *dump, uint64_t virt, uint64_t entry, unsigned int shift)
{
	struct leaves *run = &dump->run;

	/* What was accessed since, and written, is no part of the layout. */
	entry &= is_arm ? ~ARM_AF : ~X86_AD;
	if (run->nr && run->shift == shift && run->virt + (run->nr << shift) == virt &&
	    run->entry + (run->nr << shift) == entry) {
		run->nr++;
		return;
	}
	put_leaves(dump);
	*run = (struct leaves){ virt, entry, 1, shift };
}

static void dump_table(struct dump *dump, uint64_t table, unsigned int level, uint64_t virt)
{
	unsigned int i, nr = level_entries(level);
	const uint64_t *entries = phys_ptr(table);
	uint64_t addr;

	if (!entries)
		fail("a page table is not in memory");
	/* Of the root, the lower half is the user's on x86. */
	if (!is_arm && level == 4)
		nr /= 2;
	dump->tables[level]++;
	for (i = 0; i < nr; i++) {
		if (!present(entries[i]))
			continue;
		addr = virt + ((uint64_t)i << level_shift(level));
		if (is_leaf(entries[i], level))
			dump_leaf(dump, addr, entries[i], level_shift(level));
		else
			dump_table(dump, entry_phys(entries[i]), level - 1, addr);
	}
}

/* All that the address space has mapped. The caller frees it. */
static char *layout(void)
{
	struct dump dump = {};
	unsigned int level;
	char *text;
	size_t len;

	dump.fp = open_memstream(&text, &len);
	if (!dump.fp)
		fail("no memory for a layout");
	dump_table(&dump, rec.root, top_level(), 0);
	put_leaves(&dump);
	for (level = top_level(); level; level--)
		fprintf(dump.fp, "tables %u %lu\n", level, dump.tables[level]);
	fclose(dump.fp);
	return text;
}

static void burst_reset(void)
{
	burst.kernel_blocks = kernel_blocks;
	burst.nr = 0;
	burst.insns = burst.accesses = 0;
	burst.ours = burst.foreign = false;
	burst.line = burst.fetch = UINT64_MAX;
	rec.insns_seen = insns;
}

/* Without repeats, which only say when an interrupt came. */
static void burst_words(void)
{
	uint64_t word;
	unsigned int i;

	for (i = 0; i < burst.nr; i++) {
		word = burst.word[i];
		if (word >> 2 != rec.trace.last[word & 3])
			trace_put(&rec.trace, word);
	}
	burst.nr = 0;
}

static void burst_end(void)
{
	if (burst.foreign) {
		rec.foreign += burst.nr;
	} else if (!burst.ours) {
		/* Such as a process that fetched, and faulted on what it accessed first. */
		rec.unproven += burst.nr;
	} else {
		burst_words();
		rec.insns += insns - rec.insns_seen;
		rec.accesses += burst.accesses;
	}
	burst_reset();
}

static void start(uint64_t phys)
{
	char path[PATH_MAX];

	rec.page_shift = rec.mark.page_size == 65536 ? 16 : 12;
	rec.mark.label[sizeof(rec.mark.label) - 1] = 0;
	if (!rec.mark.label[0] || strchr(rec.mark.label, '/'))
		fail("a marker without a label");
	if (rec.mark.virt)
		rec.root = find_root(rec.mark.virt, rec.mark.phys);
	else
		rec.root = find_root(MARK_ADDR, phys);
	snprintf(path, sizeof(path), "%s/trace.new", out_dir);
	if (!trace_create(&rec.trace, path))
		fail("cannot write a trace");
	free(rec.before);
	rec.before = layout();
	rec.insns = rec.accesses = rec.count_insns = rec.count_accesses = 0;
	rec.pages = rec.foreign = rec.unproven = 0;
	rec.counting = false;
	rec.on = true;
	burst_reset();
}

static void count(void)
{
	burst_end();
	rec.counting = true;
	rec.count_insns = rec.insns;
	rec.count_accesses = rec.accesses;
	trace_put(&rec.trace, TRACE_WORD(TRACE_COUNT, TRACE_ORDER));
}

static unsigned long lines_of(const char *text)
{
	unsigned long nr = 0;

	for (; (text = strchr(text, '\n')); text++)
		nr++;
	return nr;
}

static void stop(void)
{
	char from[PATH_MAX], to[PATH_MAX];
	uint64_t hash;
	char *after;
	FILE *fp;

	burst_end();
	rec.on = false;
	if (!rec.counting)
		fail("a stop without a count before it");
	after = layout();
	if (!trace_close(&rec.trace, &hash))
		fail("cannot write a trace");
	snprintf(from, sizeof(from), "%s/trace.new", out_dir);
	snprintf(to, sizeof(to), "%s/%016lx.trace", out_dir, hash);
	if (rename(from, to))
		fail("cannot name a trace");
	snprintf(to, sizeof(to), "%s/%s.layout", out_dir, rec.mark.label);
	fp = fopen(to, "w");
	if (!fp)
		fail("cannot write a layout");
	fprintf(fp, "label %s\narch %s\npage_shift %u\ntop_level %u\n", rec.mark.label,
		is_arm ? "arm64" : "x86_64", rec.page_shift, top_level());
	fprintf(fp, "trace %016lx\ninsns %lu\naccesses %lu\n", hash,
		rec.insns - rec.count_insns, rec.accesses - rec.count_accesses);
	/* What says whether it can be believed. */
	fprintf(fp, "compared %lu\nforeign %lu\nunproven %lu\nchanged %s\n", rec.pages,
		rec.foreign, rec.unproven, strcmp(rec.before, after) ? "yes" : "no");
	fprintf(fp, "lines %lu\n%s", lines_of(after), after);
	if (fclose(fp))
		fail("cannot write a layout");
	free(after);
}

static void order(uint64_t virt, uint64_t phys)
{
	const struct mark *mark = phys == NO_PHYS ? NULL : phys_ptr(phys);

	switch (virt - MARK_ADDR) {
	case MARK_START:
		if (!mark)
			fail("a marker that is not in memory");
		rec.mark = *mark;
		start(phys);
		break;
	case MARK_COUNT:
		if (rec.on && !rec.mark.limit)
			count();
		break;
	case MARK_STOP:
		if (rec.on)
			stop();
		break;
	}
}

/* Kernel code has run: who is it now? */
static void check_burst(void)
{
	uint64_t done;

	if (burst.kernel_blocks == kernel_blocks)
		return;
	burst_end();
	if (!rec.mark.limit)
		return;
	done = rec.insns;
	if (!rec.counting && done >= rec.mark.warm)
		count();
	if (rec.counting && done >= rec.mark.warm + rec.mark.limit)
		stop();
}

/*
 * Once something in a burst was another's, the rest is. What of a long burst has been
 * written by then was not: pages of a process do not change hands without the kernel.
 */
static void add_word(uint64_t word)
{
	if (burst.foreign) {
		rec.foreign++;
		return;
	}
	if (burst.nr == BURST_MAX) {
		if (!burst.ours)
			fail("too much of unknown origin");
		burst_words();
	}
	burst.word[burst.nr++] = word;
}

/* Compare one page of an access with the tables. */
static void prove(uint64_t virt, uint64_t phys)
{
	uint64_t leaf = 0, walked = walk(rec.root, virt, &leaf);

	rec.pages++;
	if (walked != (phys & ~((1ULL << rec.page_shift) - 1)))
		burst.foreign = true;
	else if (user_writable(leaf))
		burst.ours = true;
}

static void access_line(uint64_t line)
{
	if (line == burst.line)
		return;
	burst.line = line;
	add_word(TRACE_WORD(line, TRACE_DATA));
}

static void on_access(unsigned int cpu, qemu_plugin_meminfo_t info, uint64_t virt, void *data)
{
	const unsigned int size = 1U << qemu_plugin_mem_size_shift(info);
	uint64_t phys;

	/* Tags of pointers, which arm64 ignores. */
	if (is_arm)
		virt &= (1ULL << 56) - 1;
	if (virt >> 48)
		return;
	if (virt - MARK_ADDR < sizeof(((struct mark *)0)->order) && qemu_plugin_mem_is_store(info)) {
		order(virt, access_phys(info, virt));
		return;
	}
	if (!rec.on)
		return;
	check_burst();
	if (!rec.on)
		return;
	burst.accesses++;
	if (virt >> 6 != burst.line && virt >> rec.page_shift != burst.line >> (rec.page_shift - 6)) {
		phys = access_phys(info, virt);
		if (phys != NO_PHYS)
			prove(virt, phys);
	}
	access_line(virt >> 6);
	if ((virt + size - 1) >> 6 != virt >> 6)
		access_line((virt + size - 1) >> 6);
}

/* Once for each block of instructions; one may reach into a second page. */
static void on_block(unsigned int cpu, void *data)
{
	const uint64_t line = (uintptr_t)data;

	if (!rec.on)
		return;
	check_burst();
	if (!rec.on || line == burst.fetch)
		return;
	burst.fetch = line;
	add_word(TRACE_WORD(line, TRACE_FETCH));
}

static void on_translate(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
	const size_t nr = qemu_plugin_tb_n_insns(tb);
	const uint64_t first = qemu_plugin_tb_vaddr(tb);
	uint64_t page, last = UINT64_MAX, addr;
	struct qemu_plugin_insn *insn;
	static bool in_kernel;
	size_t i;

	/* What is low before is firmware and what unpacks the kernel. */
	if (!in_kernel && !(first >> 63))
		return;
	if (first >> 63) {
		in_kernel = true;
		qemu_plugin_register_vcpu_tb_exec_inline(tb, QEMU_PLUGIN_INLINE_ADD_U64,
							 &kernel_blocks, 1);
		return;
	}
	for (i = 0; i < nr; i++) {
		insn = qemu_plugin_tb_get_insn(tb, i);
		addr = qemu_plugin_insn_vaddr(insn);
		/* As lines, but one for each 4 KiB alone. */
		page = addr >> 12 << 6;
		if (page != last)
			qemu_plugin_register_vcpu_insn_exec_cb(insn, on_block,
							       QEMU_PLUGIN_CB_NO_REGS,
							       (void *)(uintptr_t)page);
		last = page;
		qemu_plugin_register_vcpu_insn_exec_inline(insn, QEMU_PLUGIN_INLINE_ADD_U64,
							   &insns, 1);
		qemu_plugin_register_vcpu_mem_cb(insn, on_access, QEMU_PLUGIN_CB_NO_REGS,
						 QEMU_PLUGIN_MEM_RW, NULL);
	}
}

/* QEMU's own memfd, found among its files. */
static void map_ram(void)
{
	char path[300], target[300];
	struct dirent *ent;
	ssize_t len;
	DIR *dir;

	dir = opendir("/proc/self/fd");
	while (dir && (ent = readdir(dir))) {
		snprintf(path, sizeof(path), "/proc/self/fd/%s", ent->d_name);
		len = readlink(path, target, sizeof(target) - 1);
		if (len < 0)
			continue;
		target[len] = 0;
		if (!strstr(target, "memfd:memory-backend-memfd"))
			continue;
		ram_fd = open(path, O_RDONLY);
		break;
	}
	if (dir)
		closedir(dir);
	if (ram_fd < 0)
		fail("the guest's memory is not in a memfd");
	ram = mmap(NULL, ram_size, PROT_READ, MAP_SHARED, ram_fd, 0);
	if (ram == MAP_FAILED)
		fail("cannot map the guest's memory");
}

static void on_cpu(qemu_plugin_id_t id, unsigned int cpu)
{
	if (ram_fd < 0)
		map_ram();
}

QEMU_PLUGIN_EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info,
					   int argc, char **argv)
{
	int i;

	is_arm = !strcmp(info->target_name, "aarch64");
	for (i = 0; i < argc; i++) {
		if (!strncmp(argv[i], "out=", 4))
			snprintf(out_dir, sizeof(out_dir), "%s", argv[i] + 4);
		else if (!strncmp(argv[i], "ram=", 4))
			ram_size = strtoull(argv[i] + 4, NULL, 10) * MIB;
	}
	if (!out_dir[0] || !ram_size || info->system.max_vcpus != 1) {
		fprintf(stderr, "tlb record: give out=DIR and ram=MIB, and one CPU\n");
		return -1;
	}
	/* What of its memory q35 puts below 4 GiB. */
	ram_low = ram_size >= 0xb0000000ULL ? 0x80000000ULL : 0xb0000000ULL;
	qemu_plugin_register_vcpu_init_cb(id, on_cpu);
	qemu_plugin_register_vcpu_tb_trans_cb(id, on_translate);
	return 0;
}
