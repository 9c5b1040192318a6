// SPDX-License-Identifier: GPL-2.0
/*
 * The arena of page_granule_calls: memory in every layout of VMAs, and
 * snapshots of all that a call could change.
 */
#define _GNU_SOURCE
#include <asm-generic/mman.h> /* Force the import of the tools version. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "vm_util.h"
#include "page_granule_arena.h"
#include "page_granule_util.h"

/* To say which row of a table has failed. */
const char *row_name(const struct layout *layout, const struct range *range)
{
	static char name[128];

	snprintf(name, sizeof(name), "%s, %s [%u, %u)", layout->name, range->name,
		 range->first, range->last);
	return name;
}

enum granule_kind segment_kind(const struct segment *seg, enum granule_kind kind)
{
	switch (seg->kind) {
	case 't':
		return kind;
	case 'd':
		return kind == GRANULE_UNTAGGED ? kind : GRANULE_DEFAULT;
	default:
		return GRANULE_UNTAGGED;
	}
}

const struct segment *segment_at(const struct layout *layout, unsigned int page)
{
	const struct segment *seg = layout->seg;

	for (; page >= seg->granules * GRANULE_NR_PAGES; seg++)
		page -= seg->granules * GRANULE_NR_PAGES;
	return seg;
}

void arena_close(struct arena *arena)
{
	if (arena->uffd)
		close(arena->uffd);
	arena->uffd = 0;
}

bool arena_reserve(struct arena *arena)
{
	arena_close(arena);
	/* Sealed memory stays where it is: take a new reservation. */
	if (!arena->base || mmap(arena->base, ARENA_LEN, PROT_NONE,
				 ANON_FLAGS | MAP_FIXED | MAP_NORESERVE | MAP_GRANULE_4KB,
				 -1, 0) != arena->base)
		arena->base = granule_reserve(ARENA_LEN);
	arena->dest = arena->base + LAYOUT_LEN + GRANULE_SIZE;
	return arena->base;
}

/*
 * A word at either end of each page is all that a call on pages could mix up.
 */
static void fill_granule(char *addr, unsigned int nr)
{
	unsigned long page;

	for (page = 0; page < GRANULE_NR_PAGES; page++, addr += BASE_SIZE) {
		*(unsigned long *)addr = nr << 8 | page;
		*(unsigned long *)(addr + BASE_SIZE - sizeof(long)) = ~page;
	}
}

bool arena_map(struct arena *arena, const struct layout *layout,
	       enum granule_kind kind, bool shared)
{
	unsigned int i, granule = 0;
	char *addr;

	if (!arena_reserve(arena))
		return false;
	arena->layout = layout;
	arena->kind = kind;
	arena->shared = shared;

	addr = arena->base;
	for (i = 0; i < ARRAY_SIZE(layout->seg) && layout->seg[i].granules; i++) {
		const struct segment *seg = &layout->seg[i];
		size_t len = seg->granules * GRANULE_SIZE;
		char *end = addr + len;

		if (seg->kind == 'h') {
			if (munmap(addr, len))
				return false;
			granule += seg->granules;
			addr = end;
			continue;
		}
		if (granule_map(segment_kind(seg, kind), shared, addr, len, MAP_FIXED) != addr)
			return false;
		if (i % 2 && madvise(addr, len, MADV_DONTDUMP))
			return false;
		for (; addr < end; addr += GRANULE_SIZE, granule++) {
			if (granule == EMPTY_GRANULE)
				continue;
			/* Many faults take long where a machine is emulated. */
			if (madvise(addr, GRANULE_SIZE, MADV_POPULATE_WRITE))
				return false;
			fill_granule(addr, granule);
		}
		if (seg->readonly && mprotect(end - len, len, PROT_READ))
			return false;
	}
	return true;
}

static void view_vma(struct view *view, const struct arena *arena, unsigned long start,
		     unsigned long end, const char *perms, char *vmflags)
{
	enum granule_kind kind = GRANULE_UNTAGGED;
	unsigned long page, lo = (unsigned long)arena->base;
	char flags[80], *word, *rest = vmflags;

	snprintf(flags, sizeof(flags), "%s", perms);
	while ((word = strsep(&rest, "\n "))) {
		size_t len = strlen(flags);

		if (!strcmp(word, "gr"))
			kind = kind == GRANULE_UNTAGGED ? GRANULE_DEFAULT : kind;
		else if (!strcmp(word, "gc"))
			kind = GRANULE_CONTRACT;
		/* Only tagged memory shows that something was given back. */
		else if (*word && strcmp(word, "gh"))
			snprintf(flags + len, sizeof(flags) - len, " %s", word);
	}
	for (page = 0; page < ARENA_PAGES; page++) {
		if (lo + page * BASE_SIZE < start || lo + page * BASE_SIZE >= end)
			continue;
		memcpy(view->flags[page], flags, sizeof(flags));
		view->start[page] = start;
		view->kind[page] = kind;
	}
}

static void view_resident(const char *base, size_t pages, unsigned char *vec)
{
	size_t i;

	if (mincore((void *)base, pages * BASE_SIZE, vec)) {
		for (i = 0; i < pages; i++) {
			if (mincore((char *)base + i * BASE_SIZE, BASE_SIZE, vec + i))
				vec[i] = 0;
		}
	}
	for (i = 0; i < pages; i++)
		vec[i] &= 1;
}

void view_policy(const char *base, size_t pages, unsigned char *vec)
{
	size_t i;

	for (i = 0; i < pages; i++) {
		int policy;

		if (syscall(__NR_get_mempolicy, &policy, NULL, 0UL, base + i * BASE_SIZE,
			    (unsigned long)POLICY_F_ADDR))
			policy = 0xff;
		vec[i] = policy;
	}
}

/*
 * Does a line of smaps open a VMA of the arena, or does it belong to the one
 * that did? What is shown of a VMA begins with a capital letter.
 */
static bool in_arena(const struct arena *arena, const char *line, unsigned long *start,
		     unsigned long *end)
{
	unsigned long lo = (unsigned long)arena->base;
	char *rest;

	if (*line < 'A' || *line > 'Z') {
		*start = strtoul(line, &rest, 16);
		*end = strtoul(rest + 1, NULL, 16);
	}
	return *start < lo + ARENA_LEN && lo < *end;
}

/* Look at two arenas at once, since smaps takes long to read. */
void take_views(const struct arena *arena1, struct view *view1,
		const struct arena *arena2, struct view *view2)
{
	unsigned long start1 = 0, end1 = 0, start2 = 0, end2 = 0;
	char *line, *next, *text = granule_read_proc("/proc/self/smaps");
	char perms[5] = "";

	memset(view1, 0, sizeof(*view1));
	memset(view2, 0, sizeof(*view2));
	for (line = text; *line; line = next) {
		bool in1 = in_arena(arena1, line, &start1, &end1);
		bool in2 = in_arena(arena2, line, &start2, &end2);

		next = strchrnul(line, '\n');
		if (*next)
			*next++ = '\0';
		if (!in1 && !in2)
			continue;
		if (*line < 'A' || *line > 'Z')
			memcpy(perms, strchr(line, ' ') + 1, 4);
		else if (!strncmp(line, "Rss:", 4))
			*(in1 ? &view1->rss : &view2->rss) += atol(line + 4);
		else if (!strncmp(line, "VmFlags:", 8) && in1)
			view_vma(view1, arena1, start1, end1, perms, line + 8);
		else if (!strncmp(line, "VmFlags:", 8))
			view_vma(view2, arena2, start2, end2, perms, line + 8);
	}
	view_resident(arena1->base, ARENA_PAGES, view1->resident);
	view_resident(arena2->base, ARENA_PAGES, view2->resident);
}

/* The lines of smaps that are about the arena, to be freed. */
char *arena_text(pid_t pid, const struct arena *arena)
{
	unsigned long start = 0, end = 0;
	char *line, *next, *text, *to;
	char path[32];

	snprintf(path, sizeof(path), "/proc/%d/smaps", pid);
	text = granule_read_proc(path);
	to = text;

	for (line = text; *line; line = next) {
		next = strchrnul(line, '\n');
		next += *next == '\n';
		if (in_arena(arena, line, &start, &end)) {
			memmove(to, line, next - line);
			to += next - line;
		}
	}
	return strndup(text, to - text);
}

long granule_splits(void)
{
	return granule_vmstat("granule_split");
}

void take_snapshot(const struct arena *arena, struct snapshot *snap)
{
	unsigned int i;

	snap->splits = granule_splits();
	snap->text = arena_text(getpid(), arena);
	view_resident(arena->base, LAYOUT_PAGES, snap->resident);
	view_policy(arena->base, LAYOUT_PAGES, snap->policy);
	/*
	 * Reading would populate empty pages; the vector shows which these are.
	 */
	for (i = 0; i < LAYOUT_GRANULES; i++) {
		unsigned int page = i * GRANULE_NR_PAGES;

		if (i != EMPTY_GRANULE)
			read_memory(getpid(), arena->base + i * GRANULE_SIZE, GRANULE_NR_PAGES,
				    snap->contents + i * GRANULE_SIZE, snap->readable + page);
	}
}

void free_snapshot(struct snapshot *snap)
{
	free(snap->text);
	memset(snap, 0, sizeof(*snap));
}

bool same_snapshot(const struct snapshot *before, const struct snapshot *after)
{
	bool same = granule_same_text(before->text, after->text);

	if (before->splits != after->splits) {
		ksft_print_msg("granule_split went from %ld to %ld\n",
			       before->splits, after->splits);
		same = false;
	}
	if (memcmp(before->resident, after->resident, sizeof(before->resident))) {
		ksft_print_msg("mincore() differs\n");
		same = false;
	}
	if (memcmp(before->policy, after->policy, sizeof(before->policy))) {
		ksft_print_msg("the memory policy differs\n");
		same = false;
	}
	if (memcmp(before->readable, after->readable, sizeof(before->readable)) ||
	    memcmp(before->contents, after->contents, sizeof(before->contents))) {
		ksft_print_msg("the contents differ\n");
		same = false;
	}
	return same;
}
