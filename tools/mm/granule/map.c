// SPDX-License-Identifier: GPL-2.0
/*
 * granule map: the address space, one character for 64 KiB.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "granule.h"

/* What stands left of the characters of a row: the address of the first */
#define INDENT		16
#define MIN_ROW		16
#define MIN_NAME	8
/* From how many rows on what is alike is one line; what is empty, from one row on */
#define FOLD_ROWS	4

static const struct {
	char c;
	const char *color;
	const char *text;
} drawn[NR_STATES] = {
	[EMPTY] = { '.', "", "empty" },
	[WHOLE] = { '#', "\033[32m", "whole" },
	[BROKEN] = { 'x', "\033[31m", "broken" },
	[SWAPPED] = { 's', "\033[34m", "swapped" },
	[ZERO] = { '0', "\033[36m", "zeroes" },
	[BASE] = { 'u', "\033[33m", "base pages" },
	[UNKNOWN] = { '?', "\033[35m", "whole or broken" },
};

struct spot {
	unsigned long addr;
	enum state state;
};

/* The populated blocks of a stretch of mappings, in the order of their addresses */
struct picture {
	struct spot *spots;
	size_t nr;
	size_t room;
	bool pfns;
	bool color;
	bool unknown;
	unsigned int row;
	unsigned int column;
	const char *current;		/* color */
};

static void add_spot(struct process *proc, const struct vma *vma, const struct block *block,
		     void *arg)
{
	struct picture *pic = arg;
	enum why why;
	enum state state = block_state(proc, vma, block, pic->pfns, &why);

	/* Untagged mappings may share a block. */
	if (pic->nr && pic->spots[pic->nr - 1].addr == block->addr)
		return;
	if (pic->nr == pic->room) {
		pic->room = pic->room ? 2 * pic->room : 1024;
		pic->spots = must(realloc(pic->spots, pic->room * sizeof(*pic->spots)));
	}
	pic->spots[pic->nr++] = (struct spot){ .addr = block->addr, .state = state };
}

/* Where the kernel says that all are whole, or that none is, PFNs are not needed. */
static void settle_unknown(struct picture *pic, const struct vma *vma)
{
	const unsigned long whole = vma->granule_mapped * 1024 / GRANULE_SZ;
	unsigned long nr = 0;
	size_t i;

	for (i = 0; i < pic->nr; i++)
		nr += pic->spots[i].state == UNKNOWN;
	for (i = 0; i < pic->nr && (!whole || whole == nr); i++) {
		if (pic->spots[i].state == UNKNOWN)
			pic->spots[i].state = whole ? WHOLE : BROKEN;
	}
	pic->unknown |= nr && whole && whole != nr;
}

static void set_color(struct picture *pic, const char *color)
{
	if (!pic->color || !strcmp(pic->current, color))
		return;
	printf("\033[0m%s", color);
	pic->current = color;
}

static void end_row(struct picture *pic)
{
	if (!pic->column)
		return;
	set_color(pic, "");
	putchar('\n');
	pic->column = 0;
}

static void draw(struct picture *pic, unsigned long addr, enum state state)
{
	if (!pic->column)
		printf("  %012lx  ", addr);
	set_color(pic, drawn[state].color);
	putchar(drawn[state].c);
	if (++pic->column == pic->row)
		end_row(pic);
}

/* From @addr to @end all is in one state. What is long is one line. */
static void draw_alike(struct picture *pic, unsigned long addr, unsigned long end,
		       enum state state)
{
	const unsigned long fold = pic->row * (state == EMPTY ? 1UL : FOLD_ROWS);
	unsigned long nr;

	for (; addr < end; addr += GRANULE_SZ) {
		nr = (end - addr) / GRANULE_SZ;
		if (!pic->column && nr >= fold) {
			printf("  %012lx  ", addr);
			set_color(pic, drawn[state].color);
			printf("%lu %s", nr, drawn[state].text);
			set_color(pic, "");
			printf(", %s\n", human(nr * (GRANULE_SZ / 1024)));
			return;
		}
		draw(pic, addr, state);
	}
}

static void draw_stretch(struct picture *pic, unsigned long start, unsigned long end)
{
	unsigned long addr = start & ~(GRANULE_SZ - 1);
	const struct spot *spot = pic->spots, *last = spot + pic->nr, *first;

	end = (end + GRANULE_SZ - 1) & ~(GRANULE_SZ - 1);
	while (spot < last) {
		draw_alike(pic, addr, spot->addr, EMPTY);
		first = spot;
		addr = spot->addr;
		for (; spot < last && spot->addr == addr && spot->state == first->state; spot++)
			addr += GRANULE_SZ;
		draw_alike(pic, first->addr, addr, first->state);
	}
	draw_alike(pic, addr, end, EMPTY);
	end_row(pic);
}

/* How many mappings from @vma on are drawn as one? Untagged ones that are adjacent. */
static size_t stretch(const struct vma *vma, size_t max)
{
	size_t nr;

	for (nr = 1; nr < max && !vma->tagged && !vma[nr].tagged; nr++) {
		if (vma[nr].start / GRANULE_SZ > (vma[nr - 1].end + GRANULE_SZ - 1) / GRANULE_SZ)
			break;
	}
	return nr;
}

static void draw_heading(const struct vma *vma, size_t nr, int columns)
{
	char more[32] = "";
	int len;

	if (nr > 1)
		snprintf(more, sizeof(more), " and %zu more", nr - 1);
	len = printf("%s, %s", vma_kind(vma), human((vma[nr - 1].end - vma->start) / 1024));
	if (*vma->name) {
		len += printf(", ");
		len += strlen(more);
		print_name(vma->name, columns > len ? columns - len : MIN_NAME);
	}
	puts(more);
}

static void draw_legend(struct picture *pic)
{
	int i;

	putchar('\n');
	for (i = 0; i < NR_STATES; i++) {
		if (i == UNKNOWN && !pic->unknown)
			continue;
		if (i)
			fputs("  ", stdout);
		set_color(pic, drawn[i].color);
		putchar(drawn[i].c);
		set_color(pic, "");
		printf(" %s", drawn[i].text);
	}
	puts(pic->unknown ? "\nOnly root may see which are whole." : "");
}

static int terminal_columns(void)
{
	struct winsize size;
	const char *env = getenv("COLUMNS");

	if (!ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) && size.ws_col)
		return size.ws_col;
	return env && atoi(env) > 0 && atoi(env) < 10000 ? atoi(env) : 80;
}

static bool wants_color(void)
{
	const char *no_color = getenv("NO_COLOR"), *term = getenv("TERM");

	return isatty(STDOUT_FILENO) && !(no_color && *no_color) && term &&
	       strcmp(term, "dumb");
}

static int draw_process(pid_t pid, bool color)
{
	const int columns = terminal_columns();
	struct process proc;
	struct picture pic = {
		.pfns = may_see_pfns(),
		.color = color,
		.current = "",
		.row = columns < INDENT + MIN_ROW ? MIN_ROW : columns - INDENT,
	};
	size_t i, j, nr;
	int ret;

	/* Rows of whole MiB are easier to count in. */
	pic.row -= pic.row % MIN_ROW;
	if (!open_process(&proc, pid))
		return EXIT_FAILURE;
	printf("%d ", pid);
	print_name(proc.comm, -1);
	puts(": a character is 64 KiB");
	for (i = 0; i < proc.nr_vmas && !proc.ended; i += nr) {
		const struct vma *vma = &proc.vmas[i];

		nr = stretch(vma, proc.nr_vmas - i);
		pic.nr = 0;
		for (j = 0; j < nr && !proc.ended; j++)
			scan_vma(&proc, &vma[j], 0, add_spot, &pic);
		/* What was not read is not empty. */
		if (proc.ended)
			break;
		settle_unknown(&pic, vma);
		draw_heading(vma, nr, columns);
		draw_stretch(&pic, vma->start, vma[nr - 1].end);
	}
	draw_legend(&pic);
	ret = note_ended(&proc);
	free(pic.spots);
	close_process(&proc);
	return ret;
}

int map_main(int argc, char **argv)
{
	static const struct option longs[] = {
		{ "no-color", no_argument, NULL, 'n' },
		{ "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	bool color = wants_color();
	pid_t pid;

	while (next_option("map", argc, argv, ":h", longs) == 'n')
		color = false;
	pid = parse_pid("map", argc, argv, true);
	if (!kernel_has_granules()) {
		complain(NO_KERNEL);
		return EXIT_FAILURE;
	}
	return draw_process(pid, color);
}
