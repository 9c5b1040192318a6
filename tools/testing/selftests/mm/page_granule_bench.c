// SPDX-License-Identifier: GPL-2.0
/*
 * Page granule: what a stage of the life of anonymous memory costs and what it
 * leaves of the runs, for 4 KiB pages, for 64 KiB mTHP and for granules, in one
 * boot. Not a test: it passes no judgement on the numbers.
 *
 * Time is CLOCK_MONOTONIC_RAW. Under "qemu -icount shift=0,sleep=off" one
 * instruction takes one virtual nanosecond, so it counts instructions there,
 * and a repeat agrees to about 1 %. Elsewhere it is wall time.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "kselftest.h"
#include "hugepage_settings.h"
#include "vm_util.h"
#include "page_granule_util.h"

#define MIB		(1024 * 1024UL)
#define MAX_REPEAT	99
#define GRANULE_ORDER	4

struct result {
	unsigned long ns;
	unsigned long faults;
	unsigned long whole;
	unsigned long granules;
	unsigned long rss_kb;
};

struct bench {
	unsigned long mib;
	unsigned int repeat;
	const char *stage;
	bool json;
	int pagemap;
	char *smaps;		/* lines of the granule VMA, from its last stage */
};

/* Which pages the memory is made of. */
struct config {
	const char *name;
	unsigned int thp_order;	/* 0: THP never */
	enum granule_kind kind;
};

static const struct config configs[] = {
	{ "4K", 0, GRANULE_UNTAGGED },
	{ "mTHP 64K", GRANULE_ORDER, GRANULE_UNTAGGED },
	{ "granule", 0, GRANULE_CONTRACT },
};

/* The part of a stage that is measured starts and ends with these. */
static void measure(struct result *res, int sign)
{
	struct timespec now;
	struct rusage usage;

	if (sign < 0)
		getrusage(RUSAGE_SELF, &usage);
	clock_gettime(CLOCK_MONOTONIC_RAW, &now);
	if (sign > 0)
		getrusage(RUSAGE_SELF, &usage);
	res->ns += sign * (now.tv_sec * 1000000000UL + now.tv_nsec);
	res->faults += sign * usage.ru_minflt;
}

static void measure_start(struct result *res)
{
	memset(res, 0, sizeof(*res));
	measure(res, -1);
}

static void measure_stop(struct result *res)
{
	measure(res, 1);
}

static void touch(char *area, size_t len)
{
	size_t i;

	/* Atomic, so that the compiler leaves every one of them in. */
	for (i = 0; i < len; i += BASE_SIZE)
		__atomic_store_n(area + i, 1, __ATOMIC_RELAXED);
}

/*
 * A stage gets an area that is mapped and untouched. It brings it to the state
 * it starts from, and measures what it is about.
 */
static bool stage_first_touch(char *area, size_t len, struct result *res)
{
	measure_start(res);
	touch(area, len);
	measure_stop(res);
	return true;
}

struct stage {
	const char *name;
	const char *what;
	bool (*run)(char *area, size_t len, struct result *res);
};

static const struct stage stages[] = {
	{ "first-touch", "first touch: one byte written in each 4 KiB page",
	  stage_first_touch },
};

static int error(const char *what)
{
	fprintf(stderr, "page_granule_bench: %s\n", what);
	return KSFT_FAIL;
}

/* The smaps lines a reader wants to see, out of all of those of the VMA. */
static char *smaps_lines(char *area, size_t len)
{
	static const char * const fields[] = {
		"KernelPageSize:", "MMUPageSize:", "Rss:", "Granule:",
		"GranuleMapped:", "VmFlags:",
	};
	char *text = granule_smaps_text(area, len), *line, *save, *out = NULL;
	size_t i, size;
	FILE *fp;

	if (!text)
		return NULL;
	fp = open_memstream(&out, &size);
	if (!fp) {
		free(text);
		return NULL;
	}
	for (line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
		for (i = 0; i < ARRAY_SIZE(fields); i++) {
			if (!strncmp(line, fields[i], strlen(fields[i])))
				fprintf(fp, "%s\n", line);
		}
	}
	fclose(fp);
	free(text);
	return out;
}

/* One run of a stage, on fresh memory that starts at a multiple of 2 MiB. */
static bool run_once(struct bench *bench, const struct config *config,
		     const struct stage *stage, struct result *res)
{
	size_t len = bench->mib * MIB, reserved = len + HPAGE_SIZE;
	struct granule_smaps smaps;
	bool ok = false;
	char *base, *area;

	base = granule_reserve(reserved);
	if (!base)
		return false;
	area = (char *)(((unsigned long)base + HPAGE_SIZE - 1) & -(unsigned long)HPAGE_SIZE);
	if (granule_mmap(config->kind, area, len, PROT_RW, MAP_FIXED) == area &&
	    stage->run(area, len, res) && granule_read_smaps(getpid(), area, &smaps)) {
		res->granules = len / GRANULE_SIZE;
		res->whole = granule_count(bench->pagemap, area, len, GRANULE_WHOLE);
		res->rss_kb = smaps.rss;
		ok = true;
		if (config->kind == GRANULE_CONTRACT) {
			free(bench->smaps);
			bench->smaps = smaps_lines(area, len);
		}
	}
	munmap(base - GRANULE_SIZE, reserved + 2 * GRANULE_SIZE);
	return ok;
}

static int by_ns(const void *a, const void *b)
{
	const struct result *x = a, *y = b;

	return x->ns < y->ns ? -1 : x->ns > y->ns;
}

/* The median run. One more goes before, to bring in the code and its stack. */
static bool run_stage(struct bench *bench, const struct config *config,
		      const struct stage *stage, struct result *res)
{
	struct result results[MAX_REPEAT];
	unsigned int i;

	if (!run_once(bench, config, stage, &results[0]))
		return false;
	for (i = 0; i < bench->repeat; i++) {
		if (!run_once(bench, config, stage, &results[i]))
			return false;
	}
	qsort(results, bench->repeat, sizeof(results[0]), by_ns);
	*res = results[bench->repeat / 2];
	return true;
}

static void print_head(const struct bench *bench, const struct stage *stage)
{
	char whole[32];

	if (bench->json)
		return;
	snprintf(whole, sizeof(whole), "[of %lu]", bench->mib * MIB / GRANULE_SIZE);
	printf("%s\n", stage->what);
	printf("%-10s %12s %16s %12s %10s\n", "config", "faults", "instructions",
	       "whole runs", "RSS");
	printf("%-10s %12s %16s %12s %10s\n", "", "[per MiB]", "[per MiB]", whole, "[kB]");
}

static void print_row(const struct bench *bench, const struct config *config,
		      const struct stage *stage, const struct result *res)
{
	if (bench->json) {
		printf("{\"stage\": \"%s\", \"config\": \"%s\", \"mib\": %lu, ",
		       stage->name, config->name, bench->mib);
		printf("\"faults\": %lu, \"ns\": %lu, ", res->faults, res->ns);
		printf("\"whole\": %lu, \"granules\": %lu, \"rss_kb\": %lu}\n",
		       res->whole, res->granules, res->rss_kb);
		return;
	}
	printf("%-10s %12.1f %16lu %12lu %10lu\n", config->name,
	       (double)res->faults / bench->mib, res->ns / bench->mib, res->whole,
	       res->rss_kb);
}

static int run_bench(struct bench *bench)
{
	const struct config *config;
	const struct stage *stage;
	struct result res;

	if (!bench->json)
		printf("%lu MiB of anonymous memory, median of %u runs.\n"
		       "Instructions are ns of CLOCK_MONOTONIC_RAW: instructions indeed under\n"
		       "qemu -icount shift=0,sleep=off, and wall time elsewhere.\n",
		       bench->mib, bench->repeat);

	for (stage = stages; stage < stages + ARRAY_SIZE(stages); stage++) {
		if (bench->stage && strcmp(bench->stage, stage->name))
			continue;
		if (!bench->json)
			putchar('\n');
		print_head(bench, stage);
		for (config = configs; config < configs + ARRAY_SIZE(configs); config++) {
			if (config->kind != GRANULE_UNTAGGED && !granule_supported())
				continue;
			if (config->thp_order)
				granule_thp_order(config->thp_order);
			else
				granule_thp_never();
			if (!run_stage(bench, config, stage, &res)) {
				fprintf(stderr, "page_granule_bench: %s, %s: %s\n",
					stage->name, config->name, strerror(errno));
				return KSFT_FAIL;
			}
			print_row(bench, config, stage, &res);
		}
	}
	if (!granule_supported()) {
		fflush(stdout);
		error("no granule row: build the kernel with CONFIG_PAGE_GRANULE=y");
		return KSFT_SKIP;
	}
	if (!bench->json && bench->smaps)
		printf("\nsmaps of the granule VMA\n%s", bench->smaps);
	return KSFT_PASS;
}

static bool parse_number(const char *text, unsigned long max, unsigned long *val)
{
	char *end;

	errno = 0;
	*val = strtoul(text, &end, 10);
	return !errno && *text >= '0' && *text <= '9' && !*end && *val >= 1 && *val <= max;
}

static bool stage_exists(const char *name)
{
	const struct stage *stage;

	for (stage = stages; stage < stages + ARRAY_SIZE(stages); stage++) {
		if (!strcmp(stage->name, name))
			return true;
	}
	return false;
}

static void print_usage(FILE *fp)
{
	const struct stage *stage;

	fprintf(fp,
		"usage: page_granule_bench [--mib N] [--repeat N] [--stage NAME] [--json]\n"
		"\n"
		"Measure anonymous memory of 4 KiB pages, of 64 KiB mTHP and of 64 KiB granules.\n"
		"Run as root, for instructions under qemu -icount shift=0,sleep=off.\n"
		"\n"
		"  --mib N       memory to use in each run, in MiB (16)\n"
		"  --repeat N    runs to take the median of, 1 to %d (3)\n"
		"  --stage NAME  run this stage only\n"
		"  --json        one JSON object a line instead of tables\n"
		"  --help        this text\n"
		"\n"
		"stages:\n", MAX_REPEAT);
	for (stage = stages; stage < stages + ARRAY_SIZE(stages); stage++)
		fprintf(fp, "  %-12s  %s\n", stage->name, stage->what);
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "mib", required_argument, NULL, 'm' },
		{ "repeat", required_argument, NULL, 'r' },
		{ "stage", required_argument, NULL, 's' },
		{ "json", no_argument, NULL, 'j' },
		{ "help", no_argument, NULL, 'h' },
		{ }
	};
	struct bench bench = { .mib = 16, .repeat = 3 };
	unsigned long val;
	int opt;

	while ((opt = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (opt) {
		case 'm':
			if (!parse_number(optarg, 1UL << 20, &bench.mib))
				return error("--mib takes a number of MiB, 1 or more");
			break;
		case 'r':
			if (!parse_number(optarg, MAX_REPEAT, &val))
				return error("--repeat takes a number from 1 to 99");
			bench.repeat = val;
			break;
		case 's':
			if (!stage_exists(optarg))
				return error("unknown stage: see --help for those there are");
			bench.stage = optarg;
			break;
		case 'j':
			bench.json = true;
			break;
		case 'h':
			print_usage(stdout);
			return KSFT_PASS;
		default:
			print_usage(stderr);
			return KSFT_FAIL;
		}
	}
	if (optind < argc) {
		print_usage(stderr);
		return KSFT_FAIL;
	}

	if (geteuid())
		return error("PFNs and THP settings need root: run as root");
	if (getpagesize() != BASE_SIZE)
		return error("boot a kernel with 4 KiB pages");
	if (!thp_available() || !(thp_supported_orders() & (1UL << GRANULE_ORDER)))
		return error("no 64 KiB mTHP: set CONFIG_TRANSPARENT_HUGEPAGE=y, mount sysfs");
	if (bench.mib * 1024 > granule_meminfo_kb("MemAvailable") / 10 * 9)
		return error("not enough free memory: give a smaller --mib");
	bench.pagemap = granule_open_pagemap();
	if (bench.pagemap < 0)
		return error("no /proc/self/pagemap: set CONFIG_PROC_PAGE_MONITOR=y");

	/* Restores them when the program ends, by whatever way. */
	granule_save_settings();
	return run_bench(&bench);
}
