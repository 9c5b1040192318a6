// SPDX-License-Identifier: GPL-2.0
/*
 * granule stat: the counters of /proc/vmstat, as vmstat(8) shows others.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "granule.h"

#define LINES_A_HEADER	20

static const struct {
	const char *counter;
	const char *title;
	int width;
} columns[] = {
	{ "granule_fault", "fault", 8 },
	{ "granule_fallback", "fallback", 8 },
	{ "granule_cow", "cow", 8 },
	{ "granule_swpin", "in", 8 },
	{ "granule_swpin_fallback", "fallback", 8 },
	{ "granule_split", "split", 8 },
	{ "granule_repair", "repair", 8 },
};

#define NR_COLUMNS	ARRAY_SIZE(columns)

/* How many of the counters are there? */
static size_t read_counters(unsigned long long *vals)
{
	FILE *fp = fopen("/proc/vmstat", "re");
	char line[128], name[100];
	unsigned long long val;
	size_t i, found = 0;

	if (!fp)
		return 0;
	while (fgets(line, sizeof(line), fp)) {
		if (sscanf(line, "%99s %llu", name, &val) != 2)
			continue;
		for (i = 0; i < NR_COLUMNS; i++) {
			if (!strcmp(name, columns[i].counter)) {
				vals[i] = val;
				found++;
			}
		}
	}
	fclose(fp);
	return found;
}

static void print_header(void)
{
	size_t i;

	puts("--------populated--------- ------swap------ -broken and back-");
	for (i = 0; i < NR_COLUMNS; i++)
		printf("%s%*s", i ? " " : "", columns[i].width, columns[i].title);
	putchar('\n');
}

static void print_line(const unsigned long long *vals, const unsigned long long *before,
		       double seconds)
{
	size_t i;

	for (i = 0; i < NR_COLUMNS; i++)
		/* The sum over CPUs falls when one of them is taken offline. */
		printf("%s%*.0f", i ? " " : "", columns[i].width,
		       vals[i] > before[i] ? (vals[i] - before[i]) / seconds : 0.0);
	putchar('\n');
	fflush(stdout);
}

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

int stat_main(int argc, char **argv)
{
	static const struct option longs[] = {
		{ "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	unsigned long long vals[NR_COLUMNS] = { 0 }, before[NR_COLUMNS] = { 0 };
	long seconds = 0, count = LONG_MAX, line;
	double then, at;

	next_option("stat", argc, argv, ":h", longs);
	if (argc - optind > 2)
		usage("stat", "'%s' is too much", argv[optind + 2]);
	if (optind < argc)
		seconds = parse_number("stat", "SECONDS", argv[optind], 1, 86400);
	if (optind + 1 < argc)
		count = parse_number("stat", "COUNT", argv[optind + 1], 1, INT_MAX);

	if (!read_counters(vals)) {
		complain("%s", kernel_has_granules() ?
			       "no granule_ counters in /proc/vmstat; mount /proc" : NO_KERNEL);
		return EXIT_FAILURE;
	}
	/* Totals since boot, which rates begin with nothing but the header for. */
	if (!seconds) {
		print_header();
		print_line(vals, before, 1);
		return EXIT_SUCCESS;
	}
	then = now();
	for (line = 0; line < count; line++) {
		if (line % LINES_A_HEADER == 0)
			print_header();
		fflush(stdout);
		memcpy(before, vals, sizeof(vals));
		sleep(seconds);
		read_counters(vals);
		at = now();
		print_line(vals, before, at - then);
		then = at;
		if (ferror(stdout))
			break;
	}
	return EXIT_SUCCESS;
}
