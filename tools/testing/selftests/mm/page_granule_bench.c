// SPDX-License-Identifier: GPL-2.0
/*
 * Page granule: what a stage of the life of anonymous memory costs and how many
 * runs it leaves, and what it takes to map a file, for 4 KiB pages, for 64 KiB
 * mTHP or what large folios of files have instead, for 64 KiB hugetlb pages and for
 * granules, in one boot. A kernel with 64 KiB pages has only those.
 *
 * Time is CLOCK_MONOTONIC_RAW. Under "qemu -icount shift=0,sleep=off" one
 * instruction takes one virtual nanosecond, so it counts instructions there,
 * and a repeat agrees to about 1 %. Elsewhere it is wall time.
 *
 * page_granule_fragment.c has the part that fragments memory first.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "hugepage_settings.h"
#include "kselftest.h"
#include "vm_util.h"
#include "page_granule_bench.h"
#include "page_granule_util.h"

const struct config configs[NR_CONFIGS] = {
	[CONFIG_4K] = { "4K", BASE_SIZE, 0, GRANULE_UNTAGGED, false },
	[CONFIG_MTHP] = { "mTHP 64K", BASE_SIZE, GRANULE_ORDER, GRANULE_UNTAGGED, false },
	[CONFIG_HUGETLB] = { "hugetlb", BASE_SIZE, 0, GRANULE_UNTAGGED, true },
	[CONFIG_GRANULE] = { "granule", BASE_SIZE, 0, GRANULE_CONTRACT, false },
	[CONFIG_64K] = { "64K pages", GRANULE_SIZE, 0, GRANULE_UNTAGGED, false },
};

/*
 * The counters of TLB flushes and of contiguous PTEs in vmstat, where the
 * kernel has them. They are read outside of the timed part.
 */
static const char * const event_prefixes[] = { "nr_tlb_", "nr_contpte_" };
static char event_names[MAX_EVENTS][64];
static unsigned int nr_events;

static bool is_event(const char *name)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(event_prefixes); i++) {
		if (!strncmp(name, event_prefixes[i], strlen(event_prefixes[i])))
			return true;
	}
	return false;
}

static void find_events(void)
{
	char name[sizeof(event_names[0])];
	FILE *fp;

	fp = fopen("/proc/vmstat", "r");
	if (!fp)
		return;
	while (nr_events < MAX_EVENTS && fscanf(fp, "%63s %*u", name) == 1) {
		if (is_event(name))
			strcpy(event_names[nr_events++], name);
	}
	fclose(fp);
}

static void count_events(struct result *res, int sign)
{
	unsigned int i;

	for (i = 0; i < nr_events; i++)
		res->events[i] += sign * granule_vmstat(event_names[i]);
}

/*
 * Let others finish deferred work, among it the freeing of stacks for fork() to
 * use. Then begin with a tick of the timer. Ticks cost a few per cent of a
 * short stage, which so has none of them, or as many each time.
 */
static void settle(void)
{
	struct timespec now, start;

	usleep(SETTLE_USECONDS);
	clock_gettime(CLOCK_MONOTONIC_COARSE, &start);
	do {
		clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
	} while (now.tv_nsec == start.tv_nsec);
}

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
	res->faults += sign * (usage.ru_minflt + usage.ru_majflt);
}

static void measure_start(struct result *res)
{
	settle();
	measure(res, -1);
}

static void measure_stop(struct result *res)
{
	measure(res, 1);
}

void touch(char *area, size_t len)
{
	size_t i;

	/* Atomic, so that the compiler leaves every one of them in. */
	for (i = 0; i < len; i += BASE_SIZE)
		__atomic_store_n(area + i, 1, __ATOMIC_RELAXED);
}

/* The stages act on an area that is in the state that they start from. */
static bool do_touch(struct mem *mem)
{
	touch(mem->area, mem->len);
	return true;
}

static bool do_sparse_touch(struct mem *mem)
{
	size_t i;

	for (i = 0; i < mem->len; i += GRANULE_SIZE)
		touch(mem->area + i, 1);
	return true;
}

static bool do_read(struct mem *mem)
{
	force_read_pages(mem->area, mem->len / BASE_SIZE, BASE_SIZE);
	return true;
}

/* The child is not run before its parent waits for it: see run_alone(). */
static bool do_fork(struct mem *mem)
{
	mem->child = fork();
	while (!mem->child)
		pause();
	return mem->child > 0;
}

static bool do_pageout(struct mem *mem)
{
	return !madvise(mem->area, mem->len, MADV_PAGEOUT);
}

static bool do_mprotect(struct mem *mem)
{
	return !mprotect(mem->area, mem->len, PROT_READ) &&
	       !mprotect(mem->area, mem->len, PROT_RW);
}

static bool do_mremap(struct mem *mem)
{
	char *from = mem->area;

	mem->area = mem->elsewhere;
	mem->elsewhere = from;
	return mremap(from, mem->len, mem->len, MREMAP_MAYMOVE | MREMAP_FIXED,
		      mem->area) == mem->area;
}

bool do_dontneed(struct mem *mem)
{
	return !madvise(mem->area, mem->len, MADV_DONTNEED);
}

static bool do_munmap(struct mem *mem)
{
	char *area = mem->area;

	mem->area = NULL;
	return !munmap(area, mem->len);
}

static bool do_msync(struct mem *mem)
{
	return !msync(mem->area, mem->len, MS_SYNC);
}

const struct stage stages[NR_STAGES] = {
	[FIRST_TOUCH] = {
		"first-touch", "first touch: one byte written in each 4 KiB page",
		UNTOUCHED, do_touch, LEAVES_MEMORY,
	},
	[FORK] = {
		"fork", "fork() of a process that has written to the memory",
		FIRST_TOUCH, do_fork, LEAVES_MEMORY,
	},
	[COW] = {
		"cow", "after fork(), one byte written in each 4 KiB page",
		FORK, do_touch, LEAVES_MEMORY,
	},
	[PAGEOUT] = {
		"pageout", "MADV_PAGEOUT until all of it is swapped out",
		FIRST_TOUCH, do_pageout, LEAVES_NOTHING,
	},
	[SWAP_IN] = {
		"swap-in", "swapped out, then one byte written in each 4 KiB page",
		PAGEOUT, do_touch, LEAVES_MEMORY,
	},
	[MPROTECT] = {
		"mprotect", "mprotect() to read-only and back",
		FIRST_TOUCH, do_mprotect, LEAVES_MEMORY,
	},
	[MREMAP] = {
		"mremap", "mremap() to another multiple of 64 KiB, not of 2 MiB",
		FIRST_TOUCH, do_mremap, LEAVES_MEMORY,
	},
	[DONTNEED] = {
		"dontneed", "MADV_DONTNEED",
		FIRST_TOUCH, do_dontneed, LEAVES_NOTHING,
	},
	[ZERO_READ] = {
		"zero-read", "one byte read in each 4 KiB page of untouched memory",
		UNTOUCHED, do_read, LEAVES_ZEROES,
	},
	[WRITE_AFTER_READ] = {
		"write-after-read", "the same, then one byte written in each",
		ZERO_READ, do_touch, LEAVES_MEMORY,
	},
	[MUNMAP] = {
		"munmap", "munmap()",
		FIRST_TOUCH, do_munmap, LEAVES_NOTHING,
	},
	[SPARSE_TOUCH] = {
		"sparse-touch", "sparse touch: one byte written in each 64 KiB",
		UNTOUCHED, do_sparse_touch, LEAVES_MEMORY,
	},
	[FILE_COLD] = {
		"file-cold", "one byte read in each 4 KiB page of a file, not in the page cache",
		UNTOUCHED, do_read, LEAVES_MEMORY, PROT_READ,
	},
	[FILE_WARM] = {
		"file-warm", "the same, in the page cache as that has left it",
		FILE_COLD, do_read, LEAVES_MEMORY, PROT_READ, .unmaps = true,
	},
	[FILE_MUNMAP] = {
		"file-munmap", "munmap() of it",
		FILE_COLD, do_munmap, LEAVES_NOTHING, PROT_READ,
	},
	[TEXT_COLD] = {
		"text-cold", "file-cold, of a file that is mapped as text",
		UNTOUCHED, do_read, LEAVES_MEMORY, PROT_READ | PROT_EXEC,
	},
	[TEXT_WARM] = {
		"text-warm", "file-warm, of a file that is mapped as text",
		TEXT_COLD, do_read, LEAVES_MEMORY, PROT_READ | PROT_EXEC, .unmaps = true,
	},
	[FILE_COPY] = {
		"file-copy", "one byte written in each 4 KiB page of a private mapping of a file",
		FILE_COLD, do_touch, LEAVES_MEMORY, PROT_RW, .unmaps = true,
	},
	[FILE_COPY_MAPPED] = {
		"file-copy-mapped", "the same, after each page was read",
		FILE_COLD, do_touch, LEAVES_MEMORY, PROT_RW,
	},
	[FILE_WRITE] = {
		"file-write", "one byte written in each 4 KiB page of a cached file, mapped shared",
		UNTOUCHED, do_touch, LEAVES_MEMORY, PROT_RW, .file_shared = true,
	},
	[FILE_SYNC] = {
		"file-msync", "msync() of it",
		FILE_WRITE, do_msync, LEAVES_MEMORY, PROT_RW, .file_shared = true,
	},
	[FILE_REWRITE] = {
		"file-rewrite", "then one byte written in each 4 KiB page again",
		FILE_SYNC, do_touch, LEAVES_MEMORY, PROT_RW, .file_shared = true,
	},
};

int error(const char *what)
{
	fprintf(stderr, "page_granule_bench: %s\n", what);
	return KSFT_FAIL;
}

/*
 * Put the smaps lines that a reader wants to see to @out, out of all of the
 * VMA.
 */
static void smaps_lines(char *area, size_t len, char *out, size_t size)
{
	static const char * const fields[] = {
		"KernelPageSize:", "MMUPageSize:", "Rss:", "Granule:",
		"GranuleMapped:", "VmFlags:",
	};
	char *text = granule_smaps_text(area, len), *line, *save;
	size_t i, used = 0;

	*out = '\0';
	if (!text)
		return;
	for (line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
		for (i = 0; i < ARRAY_SIZE(fields); i++) {
			if (!strncmp(line, fields[i], strlen(fields[i])) && used < size)
				used += snprintf(out + used, size - used, "%s\n", line);
		}
	}
	free(text);
}

static char *map_area(const struct config *config, char *area, size_t len)
{
	if (config->hugetlb)
		return mmap(area, len, PROT_RW,
			    ANON_FLAGS | MAP_FIXED | MAP_HUGETLB | MAP_HUGE_64KB, -1, 0);
	return granule_mmap(config->kind, area, len, PROT_RW, MAP_FIXED);
}

/*
 * Map fresh memory. It starts at a multiple of 2 MiB, and its destination does
 * not, so that mremap() moves entries, not page tables.
 */
bool mem_create(struct mem *mem, const struct config *config, size_t len)
{
	char *area;

	memset(mem, 0, sizeof(*mem));
	mem->len = len;
	mem->reserved = 2 * len + HPAGE_SIZE + GRANULE_SIZE;
	mem->base = granule_reserve(mem->reserved);
	if (!mem->base)
		return false;
	area = (char *)(((unsigned long)mem->base + HPAGE_SIZE - 1) &
			-(unsigned long)HPAGE_SIZE);
	mem->elsewhere = area + len + GRANULE_SIZE;
	mem->area = map_area(config, area, len);
	return mem->area == area;
}

/* Fill a file so that no page is like another, in folios of @size bytes. */
static bool fill_file(int fd, size_t len, size_t size)
{
	__u32 buf[GRANULE_SIZE / sizeof(__u32)], nr = 0;
	size_t i, done;

	for (done = 0; done < len; done += size) {
		for (i = 0; i < size / sizeof(*buf); i++)
			buf[i] = nr++;
		if (pwrite(fd, buf, size, done) != (ssize_t)size)
			return false;
	}
	/* Dirty pages stay in the page cache. */
	return !fsync(fd);
}

/*
 * Map a file that is not in the page cache instead. Huge pages are the way to ask
 * for large folios there; an architecture may have its own size for text. What is
 * to be written to is cached, in folios of the size of the configuration.
 */
static bool mem_map_file(const struct bench *bench, const struct config *config,
			 const struct stage *stage, struct mem *mem)
{
	const bool large = config->thp_order || config->kind != GRANULE_UNTAGGED;
	const bool write = stage->file_prot & PROT_WRITE;
	int flags = MAP_FIXED | (stage->file_shared ? MAP_SHARED_VALIDATE : MAP_PRIVATE);

	if (config->kind == GRANULE_CONTRACT)
		flags |= MAP_GRANULE_64KB;
	if (posix_fadvise(bench->file, 0, 0, POSIX_FADV_DONTNEED) ||
	    (write && !fill_file(bench->file, mem->len, large ? GRANULE_SIZE : BASE_SIZE)))
		return false;
	return mmap(mem->area, mem->len, stage->file_prot, flags, bench->file, 0) == mem->area &&
	       (!config->thp_order || write || !madvise(mem->area, mem->len, MADV_HUGEPAGE));
}

static void mem_reap(struct mem *mem)
{
	if (mem->child <= 0)
		return;
	kill(mem->child, SIGKILL);
	waitpid(mem->child, NULL, 0);
	mem->child = 0;
}

void mem_destroy(struct mem *mem)
{
	mem_reap(mem);
	if (mem->base)
		munmap(mem->base - GRANULE_SIZE, mem->reserved + 2 * GRANULE_SIZE);
}

static bool mem_swapped_out(const struct bench *bench, const struct mem *mem)
{
	return !granule_present_pages(bench->pagemap, mem->area, mem->len);
}

static unsigned long count_zero_runs(const struct bench *bench, const struct mem *mem)
{
	unsigned long i, nr = 0;

	for (i = 0; i < mem->len; i += GRANULE_SIZE)
		nr += granule_is_zero_run(bench->pagemap, mem->area + i);
	return nr;
}

static unsigned long count_whole(const struct bench *bench, const struct mem *mem,
				 enum leaves leaves)
{
	if (leaves == LEAVES_NOTHING)
		return 0;
	/* Each step of a base page finds the page of 64 KiB that it is in. */
	if (getpagesize() == GRANULE_SIZE)
		return granule_present_pages(bench->pagemap, mem->area, mem->len) /
		       GRANULE_NR_PAGES;
	if (leaves == LEAVES_ZEROES)
		return count_zero_runs(bench, mem);
	return granule_count(bench->pagemap, mem->area, mem->len, GRANULE_WHOLE);
}

/*
 * Look at the memory after a stage. smaps does not count hugetlb pages as RSS.
 */
static void look(const struct bench *bench, const struct stage *stage,
		 const struct mem *mem, struct result *res)
{
	struct granule_smaps smaps;

	res->granules = mem->len / GRANULE_SIZE;
	res->whole = count_whole(bench, mem, stage->leaves);
	if (mem->area && granule_read_smaps(getpid(), mem->area, &smaps))
		res->rss_kb = smaps.rss + smaps.private_hugetlb + smaps.shared_hugetlb;
}

/* A stage, measured, on memory in the state that it starts from. */
bool run_stage(const struct bench *bench, const struct stage *stage,
	       struct mem *mem, struct result *res)
{
	unsigned int tries = 0;
	bool ok;

	memset(res, 0, sizeof(*res));
	count_events(res, -1);
	do {
		measure_start(res);
		ok = stage->run(mem);
		measure_stop(res);
	} while (ok && stage == &stages[PAGEOUT] && !mem_swapped_out(bench, mem) &&
		 ++tries < MAX_PAGEOUT);
	if (!ok || tries == MAX_PAGEOUT)
		return false;
	count_events(res, 1);
	look(bench, stage, mem, res);
	/* The child is kept only for a write to memory that it shares. */
	if (stage != &stages[FORK])
		mem_reap(mem);
	return true;
}

static bool prepare(const struct bench *bench, const struct stage *stage,
		    struct mem *mem)
{
	const struct stage *from = stages + stage->from;
	struct result unused;

	return stage->from == UNTOUCHED ||
	       (prepare(bench, from, mem) && run_stage(bench, from, mem, &unused));
}

/* One stage, on fresh memory of @len bytes. */
static bool run_fresh(const struct bench *bench, const struct config *config,
		      const struct stage *stage, size_t len, struct result *res)
{
	struct mem mem;
	bool ok;

	ok = mem_create(&mem, config, len) &&
	     (!stage->file_prot || mem_map_file(bench, config, stage, &mem)) &&
	     prepare(bench, stage, &mem) && (!stage->unmaps || do_dontneed(&mem)) &&
	     run_stage(bench, stage, &mem, res);
	if (ok && mem.area && config->kind == GRANULE_CONTRACT)
		smaps_lines(mem.area, mem.len, bench->report->smaps,
			    sizeof(bench->report->smaps));
	mem_destroy(&mem);
	return ok;
}

static bool needs_swap(const struct stage *stage)
{
	return stage == &stages[PAGEOUT] || stage == &stages[SWAP_IN];
}

static bool can_run(const struct bench *bench, const struct config *config,
		    const struct stage *stage)
{
	if (bench->missing[config - configs])
		return false;
	if (stage->file_prot)
		return bench->file >= 0 && !config->hugetlb;
	return !needs_swap(stage) || (bench->swap && !config->hugetlb);
}

/* All stages of a life in their order, on the same memory, of @len bytes. */
static bool run_life(const struct bench *bench, const struct config *config,
		     size_t len, struct result *res)
{
	unsigned int i;
	struct mem mem;
	bool ok;

	ok = mem_create(&mem, config, len);
	for (i = 0; ok && i < NR_LIFE; i++) {
		if (can_run(bench, config, &stages[i]))
			ok = run_stage(bench, &stages[i], &mem, &res[i]);
	}
	mem_destroy(&mem);
	return ok;
}

static int by_ns(const void *a, const void *b)
{
	const struct result *x = a, *y = b;

	return x->ns < y->ns ? -1 : x->ns > y->ns;
}

void summarize(struct result *runs, unsigned int nr, struct summary *sum)
{
	qsort(runs, nr, sizeof(*runs), by_ns);
	sum->median = runs[nr / 2];
	sum->ns_min = runs[0].ns;
	sum->ns_max = runs[nr - 1].ns;
	sum->valid = true;
}

/* After fork(), parent and child have pages of their own. */
static unsigned long hugetlb_pool(const struct bench *bench)
{
	return 2 * bench->mib * MIB / GRANULE_SIZE;
}

void select_config(const struct bench *bench, const struct config *config)
{
	if (config->thp_order)
		granule_thp_order(config->thp_order);
	else
		granule_thp_never();
	if (!bench->missing[CONFIG_HUGETLB])
		hugetlb_set_nr_pages(GRANULE_SIZE,
				     config->hugetlb ? hugetlb_pool(bench) : 0);
}

bool failed(const struct config *config, const char *what)
{
	fprintf(stderr, "page_granule_bench: %s, %s: %s\n", what, config->name,
		strerror(errno));
	return false;
}

/*
 * Nothing else runs while this program can, not even its children, since their
 * work must not be measured. Without that the numbers only vary more.
 */
void run_alone(bool alone)
{
	const struct sched_param param = { .sched_priority = alone };

	sched_setscheduler(0, alone ? SCHED_FIFO | SCHED_RESET_ON_FORK : SCHED_OTHER,
			   &param);
}

/*
 * The other threads use the mm on CPUs of their own, so that these have to be
 * flushed. Without a CPU they sleep. They never fault.
 */
static void *use_mm(void *has_cpu)
{
	for (;;) {
		if (!has_cpu)
			pause();
	}
	return NULL;
}

/*
 * Share the mm among several threads. This one keeps its CPU to itself, and the
 * others have the rest. On one CPU, as qemu -icount has it, the mm has more
 * than one user and nothing else changes.
 */
static bool start_threads(unsigned int nr)
{
	cpu_set_t own, others;
	pthread_attr_t attr;
	pthread_t thread;
	bool ok = true;
	long has_cpu;

	if (nr == 1)
		return true;
	CPU_ZERO(&own);
	CPU_SET(sched_getcpu(), &own);
	if (sched_getaffinity(0, sizeof(others), &others) ||
	    sched_setaffinity(0, sizeof(own), &own))
		return false;
	CPU_XOR(&others, &others, &own);
	has_cpu = CPU_COUNT(&others);
	pthread_attr_init(&attr);
	if (has_cpu)
		pthread_attr_setaffinity_np(&attr, sizeof(others), &others);
	while (ok && --nr)
		ok = !pthread_create(&thread, &attr, use_mm, (void *)has_cpu);
	pthread_attr_destroy(&attr);
	return ok;
}

/*
 * Run a stage, or without one all of a life, in a process of its own: the cost
 * of a fault depends on the shape of the tree of VMAs, which depends on earlier
 * mappings. A small run first brings in the code and its stack.
 */
static bool run_in_child(struct bench *bench, const struct config *config,
			 const struct stage *stage)
{
	const size_t sizes[] = { MIB, bench->mib * MIB };
	struct result *results = bench->report->results;
	unsigned int i;
	int status;
	pid_t pid;
	bool ok;

	fflush(NULL);
	pid = fork();
	if (pid)
		return pid > 0 && waitpid(pid, &status, 0) == pid && !status;

	run_alone(true);
	bench->pagemap = granule_open_pagemap();
	ok = bench->pagemap >= 0 && start_threads(bench->threads);
	for (i = 0; ok && i < ARRAY_SIZE(sizes); i++) {
		if (stage)
			ok = run_fresh(bench, config, stage, sizes[i], results);
		else
			ok = run_life(bench, config, sizes[i], results);
	}
	if (!ok)
		failed(config, stage ? stage->name : "life");
	/* The settings are the parent's to restore. */
	_exit(!ok);
}

static bool measure_fresh(struct bench *bench, const struct config *config,
			  const struct stage *stage, struct summary *sum)
{
	struct result runs[MAX_REPEAT];
	unsigned int i;

	for (i = 0; i < bench->repeat; i++) {
		if (!run_in_child(bench, config, stage))
			return false;
		runs[i] = bench->report->results[0];
	}
	summarize(runs, bench->repeat, sum);
	return true;
}

static bool measure_life(struct bench *bench, const struct config *config,
			 struct summary *sums)
{
	static struct result runs[NR_LIFE][MAX_REPEAT];
	unsigned int i, j;

	for (i = 0; i < bench->repeat; i++) {
		if (!run_in_child(bench, config, NULL))
			return false;
		for (j = 0; j < NR_LIFE; j++)
			runs[j][i] = bench->report->results[j];
	}
	for (j = 0; j < NR_LIFE; j++) {
		if (can_run(bench, config, &stages[j]))
			summarize(runs[j], bench->repeat, &sums[j]);
	}
	return true;
}

static double per_granule(const struct bench *bench, unsigned long val)
{
	return (double)val / (bench->mib * MIB / GRANULE_SIZE);
}

static void print_json_events(const struct bench *bench, const struct result *res)
{
	unsigned int i;

	fprintf(bench->json, ", \"events_per_granule\": {");
	for (i = 0; i < nr_events; i++)
		fprintf(bench->json, "%s\"%s\": %.4f", i ? ", " : "", event_names[i],
			per_granule(bench, res->events[i]));
	fprintf(bench->json, "}");
}

static void print_json(const struct bench *bench, const char *set,
		       const struct config *config, const struct stage *stage,
		       const struct summary *sum)
{
	const struct result *res = &sum->median;
	FILE *fp = bench->json;

	if (!fp || !sum->valid)
		return;
	fprintf(fp, "{\"set\": \"%s\", \"stage\": \"%s\", \"config\": \"%s\", ", set,
		stage->name, config->name);
	fprintf(fp, "\"threads\": %u, \"mib\": %lu, \"faults\": %lu, \"ns\": %lu, ",
		bench->threads, bench->mib, res->faults, res->ns);
	fprintf(fp, "\"ns_min\": %lu, \"ns_max\": %lu, ", sum->ns_min, sum->ns_max);
	if (stage->leaves == LEAVES_NOTHING)
		fprintf(fp, "\"whole\": null, ");
	else
		fprintf(fp, "\"whole\": %lu, ", res->whole);
	fprintf(fp, "\"granules\": %lu, \"rss_kb\": %lu", res->granules, res->rss_kb);
	if (nr_events)
		print_json_events(bench, res);
	fprintf(fp, "}\n");
}

static void print_value(bool valid, int digits, double val)
{
	if (valid)
		printf(" %9.*f", digits, val);
	else
		printf(" %9s", "-");
}

static void print_config_names(const struct bench *bench)
{
	unsigned int i;

	for (i = 0; i < NR_CONFIGS; i++) {
		if (!bench->missing[i])
			printf(" %9s", configs[i].name);
	}
}

/* One stage: a row for each configuration. */
static void print_stage(const struct bench *bench, const struct stage *stage,
			const struct summary *sums)
{
	const struct result *res;
	char whole[32];
	unsigned int i;

	snprintf(whole, sizeof(whole), "[of %lu]", bench->mib * MIB / GRANULE_SIZE);
	printf("\n%s\n", stage->what);
	printf("%-10s %12s %16s %12s %10s\n", "config", "faults", "instructions",
	       stage->leaves == LEAVES_ZEROES ? "zero runs" : "whole runs", "RSS");
	printf("%-10s %12s %16s %12s %10s\n", "", "[per MiB]", "[per MiB]", whole, "[kB]");
	for (i = 0; i < NR_CONFIGS; i++) {
		if (!sums[i].valid)
			continue;
		res = &sums[i].median;
		if (stage->leaves == LEAVES_NOTHING)
			snprintf(whole, sizeof(whole), "-");
		else
			snprintf(whole, sizeof(whole), "%lu", res->whole);
		printf("%-10s %12.1f %16lu %12s %10lu\n", configs[i].name,
		       (double)res->faults / bench->mib, res->ns / bench->mib, whole,
		       res->rss_kb);
	}
}

static void print_table_row(const struct bench *bench, const char *name,
			    const struct summary *sums, enum leaves leaves)
{
	unsigned int i;

	printf("%-16s", name);
	for (i = 0; i < NR_CONFIGS; i++) {
		if (!bench->missing[i])
			print_value(sums[i].valid, 0, per_granule(bench, sums[i].median.ns));
	}
	print_value(sums[CONFIG_GRANULE].valid && sums[CONFIG_MTHP].valid, 2,
		    (double)sums[CONFIG_GRANULE].median.ns / sums[CONFIG_MTHP].median.ns);
	for (i = 0; i < NR_CONFIGS; i++) {
		if (!bench->missing[i])
			print_value(sums[i].valid, 2,
				    per_granule(bench, sums[i].median.faults));
	}
	for (i = 0; i < NR_CONFIGS; i++) {
		if (!bench->missing[i])
			print_value(sums[i].valid && leaves != LEAVES_NOTHING, 0,
				    sums[i].median.whole);
	}
	printf("%s\n", leaves == LEAVES_ZEROES ? " of zeroes" : "");
}

/* The worst of all repeats, so that the reader knows what a digit is worth. */
static void print_spread(struct summary (*sums)[NR_CONFIGS])
{
	double spread, max = 0;
	unsigned int i, j, stage = 0, config = 0;

	for (i = 0; i < NR_STAGES; i++) {
		for (j = 0; j < NR_CONFIGS; j++) {
			const struct summary *sum = &sums[i][j];

			if (!sum->valid)
				continue;
			spread = 100.0 * (sum->ns_max - sum->ns_min) / sum->median.ns;
			if (spread > max) {
				max = spread;
				stage = i;
				config = j;
			}
		}
	}
	printf("Runs differ by %.1f %% at most (%s, %s).\n", max, stages[stage].name,
	       configs[config].name);
}

static void print_table_head(const struct bench *bench)
{
	unsigned int i;
	int width = 0;

	for (i = 0; i < NR_CONFIGS; i++) {
		if (!bench->missing[i])
			width += 10;
	}
	printf("Instructions and faults per 64 KiB, and whole runs of %lu\n",
	       bench->mib * MIB / GRANULE_SIZE);
	printf("%-16s%*s %9s%*s%*s\n", "", width, "instructions", "granule", width, "faults",
	       width, "whole");
	printf("%-16s", "stage");
	print_config_names(bench);
	printf(" %9s", "/ mTHP");
	print_config_names(bench);
	print_config_names(bench);
	printf("\n");
}

static bool any_valid(const struct summary *sums)
{
	unsigned int i;

	for (i = 0; i < NR_CONFIGS; i++) {
		if (sums[i].valid)
			return true;
	}
	return false;
}

/* All stages: a row for each of them, and their sum. */
static void print_table(const struct bench *bench, struct summary (*sums)[NR_CONFIGS],
			bool total)
{
	struct summary all[NR_CONFIGS] = { };
	unsigned int i, j;

	print_table_head(bench);
	for (j = 0; j < NR_CONFIGS; j++)
		all[j].valid = true;
	for (i = 0; i < NR_STAGES; i++) {
		if (!any_valid(sums[i])) {
			if (needs_swap(&stages[i]))
				printf("%-16s skipped: needs swap\n", stages[i].name);
			continue;
		}
		print_table_row(bench, stages[i].name, sums[i], stages[i].leaves);
		for (j = 0; j < NR_CONFIGS; j++) {
			all[j].valid &= sums[i][j].valid;
			all[j].median.ns += sums[i][j].median.ns;
			all[j].median.faults += sums[i][j].median.faults;
		}
	}
	if (total)
		print_table_row(bench, "sum", all, LEAVES_NOTHING);
	print_spread(sums);
}

/* One event: a row for each stage in which it happens. */
static void print_event(const struct bench *bench, struct summary (*sums)[NR_CONFIGS],
			unsigned int event)
{
	bool head = false;
	unsigned int i, j;

	for (i = 0; i < NR_STAGES; i++) {
		for (j = 0; j < NR_CONFIGS; j++) {
			if (sums[i][j].median.events[event])
				break;
		}
		if (j == NR_CONFIGS)
			continue;
		if (!head) {
			printf("\n%s per 64 KiB\n%-16s", event_names[event], "stage");
			print_config_names(bench);
			printf("\n");
			head = true;
		}
		printf("%-16s", stages[i].name);
		for (j = 0; j < NR_CONFIGS; j++) {
			if (!bench->missing[j])
				print_value(sums[i][j].valid, 3,
					    per_granule(bench, sums[i][j].median.events[event]));
		}
		printf("\n");
	}
}

static void print_events(const struct bench *bench, struct summary (*sums)[NR_CONFIGS])
{
	unsigned int i;

	for (i = 0; i < nr_events; i++)
		print_event(bench, sums, i);
}

/* Each of the stages, or one of them, from fresh memory. */
static bool bench_stages(struct bench *bench, const struct stage *only)
{
	struct summary sums[NR_STAGES][NR_CONFIGS] = { };
	unsigned int i, j;

	for (i = 0; i < NR_STAGES; i++) {
		if (only && only != &stages[i])
			continue;
		for (j = 0; j < NR_CONFIGS; j++) {
			if (!can_run(bench, &configs[j], &stages[i]))
				continue;
			select_config(bench, &configs[j]);
			if (!measure_fresh(bench, &configs[j], &stages[i], &sums[i][j]))
				return false;
			print_json(bench, "fresh", &configs[j], &stages[i], &sums[i][j]);
		}
	}
	if (!bench->tables)
		return true;
	if (only) {
		print_stage(bench, only, sums[only - stages]);
	} else {
		printf("\nEach stage on fresh memory\n");
		print_table(bench, sums, false);
		print_stage(bench, &stages[SPARSE_TOUCH], sums[SPARSE_TOUCH]);
	}
	print_events(bench, sums);
	return true;
}

static bool bench_life(struct bench *bench)
{
	struct summary sums[NR_STAGES][NR_CONFIGS] = { };
	struct summary life[NR_LIFE];
	unsigned int i, j;

	for (j = 0; j < NR_CONFIGS; j++) {
		if (bench->missing[j])
			continue;
		select_config(bench, &configs[j]);
		memset(life, 0, sizeof(life));
		if (!measure_life(bench, &configs[j], life))
			return false;
		for (i = 0; i < NR_LIFE; i++) {
			sums[i][j] = life[i];
			print_json(bench, "life", &configs[j], &stages[i], &sums[i][j]);
		}
	}
	if (bench->tables) {
		printf("\nOne life: all stages on the same memory\n");
		print_table(bench, sums, true);
		print_events(bench, sums);
	}
	return true;
}

/* Why this kernel has no memory of a configuration, or NULL where it has. */
static const char *find_missing(const struct bench *bench, enum config_id id)
{
	if (configs[id].page_size != getpagesize())
		return configs[id].page_size == BASE_SIZE ?
		       "boot a kernel with 4 KiB pages" :
		       "boot an arm64 kernel with 64 KiB pages";
	switch (id) {
	case CONFIG_MTHP:
		if (thp_supported_orders() & (1UL << GRANULE_ORDER))
			return NULL;
		return "no mTHP of 64 KiB: set CONFIG_TRANSPARENT_HUGEPAGE=y";
	case CONFIG_HUGETLB:
		if (access(HUGETLB_SYSFS, F_OK))
			return "no such pages of 64 KiB: arm64 has them, with CONFIG_HUGETLBFS=y";
		hugetlb_set_nr_pages(GRANULE_SIZE, hugetlb_pool(bench));
		if (hugetlb_free_pages(GRANULE_SIZE) >= hugetlb_pool(bench))
			return NULL;
		return "nr_hugepages cannot be raised: free memory, or give a smaller --mib";
	case CONFIG_GRANULE:
		return granule_supported() ? NULL : "build the kernel with CONFIG_PAGE_GRANULE=y";
	default:
		return NULL;
	}
}

static unsigned long saved_hugetlb;

static void restore_hugetlb(void)
{
	hugetlb_set_nr_pages(GRANULE_SIZE, saved_hugetlb);
}

static void find_configs(struct bench *bench)
{
	unsigned int i;

	if (!access(HUGETLB_SYSFS, F_OK)) {
		saved_hugetlb = hugetlb_nr_pages(GRANULE_SIZE);
		atexit(restore_hugetlb);
	}
	for (i = 0; i < NR_CONFIGS; i++)
		bench->missing[i] = find_missing(bench, i);
}

static void print_missing(const struct bench *bench)
{
	unsigned int i;

	for (i = 0; i < NR_CONFIGS; i++) {
		if (!bench->missing[i])
			continue;
		if (bench->json)
			fprintf(bench->json,
				"{\"set\": \"missing\", \"config\": \"%s\", \"why\": \"%s\"}\n",
				configs[i].name, bench->missing[i]);
		if (bench->tables)
			printf("No %s: %s.\n", configs[i].name, bench->missing[i]);
	}
}

/*
 * Measure a flush on x86: mprotect() of a few granules, once with a ceiling so
 * low that it flushes all of the TLB, and once with one so high that it flushes
 * entry by entry. Counting instructions does not show the cost of filling the
 * TLB again.
 */
#define CEILING		"/sys/kernel/debug/x86/tlb_single_page_flush_ceiling"
#define CEILING_MAX	8

static unsigned long bench_ceiling(const struct bench *bench, char *area,
				   unsigned int nr, const char *ceiling)
{
	unsigned long ns, best = ULONG_MAX;
	struct result res;
	unsigned int i;

	if (granule_write(CEILING, ceiling))
		return 0;
	for (i = 0; i < bench->repeat; i++) {
		touch(area, nr * GRANULE_SIZE);
		memset(&res, 0, sizeof(res));
		measure_start(&res);
		if (mprotect(area, nr * GRANULE_SIZE, PROT_READ))
			return 0;
		measure_stop(&res);
		if (mprotect(area, nr * GRANULE_SIZE, PROT_RW))
			return 0;
		ns = res.ns;
		best = ns < best ? ns : best;
	}
	return best;
}

static bool bench_ceilings(const struct bench *bench)
{
	unsigned long all, one;
	char saved[32] = {};
	unsigned int nr;
	char *area;

	area = granule_mmap(GRANULE_CONTRACT, NULL, CEILING_MAX * GRANULE_SIZE, PROT_RW, 0);
	if (area == MAP_FAILED || read_file(CEILING, saved, sizeof(saved)) <= 0)
		return false;
	if (bench->tables)
		printf("\nmprotect() of granules, instructions, best of %u\n"
		       "granules   entries   all of the TLB   entry by entry\n",
		       bench->repeat);
	for (nr = 1; nr <= CEILING_MAX; nr++) {
		all = bench_ceiling(bench, area, nr, "0");
		one = bench_ceiling(bench, area, nr, "1024");
		if (!all || !one)
			break;
		if (bench->tables)
			printf("%8u %9lu %16lu %16lu\n", nr, nr * GRANULE_NR_PAGES, all, one);
		if (!bench->json)
			continue;
		fprintf(bench->json, "{\"set\": \"ceiling\", \"granules\": %u, ", nr);
		fprintf(bench->json, "\"ns_all\": %lu, \"ns_one\": %lu}\n", all, one);
	}
	granule_write(CEILING, saved);
	return nr > CEILING_MAX;
}

static int run_bench(struct bench *bench, const struct job *job)
{
	if (bench->tables)
		printf("%lu MiB of anonymous memory, %u thread(s), median of %u runs.\n"
		       "Instructions are ns of CLOCK_MONOTONIC_RAW: instructions indeed under\n"
		       "qemu -icount shift=0,sleep=off, and wall time elsewhere.\n",
		       bench->mib, bench->threads, bench->repeat);
	print_missing(bench);

	run_alone(true);
	if (job->stage && !bench_stages(bench, job->stage))
		return KSFT_FAIL;
	if (job->all && !bench_stages(bench, NULL))
		return KSFT_FAIL;
	if (job->life && !bench_life(bench))
		return KSFT_FAIL;
	if (!start_threads(bench->threads))
		return error("no threads to share the mm: give a smaller --threads");
	if (job->fragment && !bench_fragment(bench, job->fragment))
		return KSFT_FAIL;
	if (job->ceiling && !bench_ceilings(bench))
		return error("no flush ceiling measured");
	if (bench->tables && *bench->report->smaps && job->stage)
		printf("\nsmaps of the granule VMA\n%s", bench->report->smaps);
	return KSFT_PASS;
}

/* Make a file without a name. */
static int create_file(const char *dir, size_t len)
{
	int fd = open(dir, O_TMPFILE | O_RDWR, 0600);

	if (fd >= 0 && !fill_file(fd, len, GRANULE_SIZE)) {
		close(fd);
		return -1;
	}
	return fd;
}

static bool parse_number(const char *text, unsigned long max, unsigned long *val)
{
	char *end;

	errno = 0;
	*val = strtoul(text, &end, 10);
	return !errno && *text >= '0' && *text <= '9' && !*end && *val >= 1 && *val <= max;
}

static const struct stage *find_stage(const char *name)
{
	unsigned int i;

	for (i = 0; i < NR_STAGES; i++) {
		if (!strcmp(stages[i].name, name))
			return &stages[i];
	}
	return NULL;
}

static const struct fragment *find_fragment(const char *name)
{
	unsigned int i;

	for (i = 0; i < NR_FRAGMENTS; i++) {
		if (!strcmp(fragments[i].name, name))
			return &fragments[i];
	}
	return NULL;
}

static void print_usage(FILE *fp)
{
	unsigned int i;

	fprintf(fp,
		"usage: page_granule_bench [--mib N] [--repeat N] [--threads N] [--stage NAME]\n"
		"                          [--all] [--life] [--fragment NAME] [--ceiling]\n"
		"                          [--file DIR] [--json[=FILE]]\n"
		"\n"
		"Measure memory of 4 KiB pages, of 64 KiB mTHP, of 64 KiB hugetlb pages\n"
		"and of 64 KiB granules, as far as the kernel has them, or of 64 KiB pages. Run as\n"
		"root, for instructions under qemu -icount shift=0,sleep=off.\n"
		"\n"
		"  --mib N       memory to use in each run, in MiB (16)\n"
		"  --repeat N    runs to take the median of, 1 to %d (3)\n"
		"  --threads N   threads that share the mm, 1 to %d (1): all but one of them run\n"
		"                on other CPUs, or sleep where there is no other\n"
		"  --stage NAME  run this stage (first-touch)\n"
		"  --all         run each stage, on fresh memory\n"
		"  --life        run all stages in order, on the same memory\n"
		"  --fragment NAME\n"
		"                fragment free memory, and see how many runs it makes: boot\n"
		"                anew for each NAME, without swap, with rootfstype=ramfs\n"
		"  --file DIR    map a file there for the stages \"file-\" and \"text-\": on a file\n"
		"                system with large folios, ext4 for one\n"
		"  --ceiling     x86: what it costs to flush all of the TLB, or entry by entry\n"
		"  --json        one JSON object a line instead of tables, or, where there is a\n"
		"                FILE, in it and beside them\n"
		"  --help        this text\n"
		"\n"
		"stages:\n", MAX_REPEAT, MAX_THREADS);
	for (i = 0; i < NR_STAGES; i++)
		fprintf(fp, "  %-16s  %s\n", stages[i].name, stages[i].what);
	fprintf(fp, "\nfragmented memory, full of single pages that\n");
	for (i = 0; i < NR_FRAGMENTS; i++)
		fprintf(fp, "  %-16s  %s, for %s\n", fragments[i].name,
			fragments[i].filler->what, fragments[i].config_name);
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "mib", required_argument, NULL, 'm' },
		{ "repeat", required_argument, NULL, 'r' },
		{ "threads", required_argument, NULL, 't' },
		{ "stage", required_argument, NULL, 's' },
		{ "all", no_argument, NULL, 'a' },
		{ "life", no_argument, NULL, 'l' },
		{ "fragment", required_argument, NULL, 'f' },
		{ "ceiling", no_argument, NULL, 'c' },
		{ "file", required_argument, NULL, 'x' },
		{ "json", optional_argument, NULL, 'j' },
		{ "help", no_argument, NULL, 'h' },
		{ }
	};
	struct bench bench = {
		.mib = 16, .repeat = 3, .threads = 1, .tables = true, .file = -1,
	};
	const char *dir = NULL;
	struct job job = { };
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
		case 't':
			if (!parse_number(optarg, MAX_THREADS, &val))
				return error("--threads takes a number from 1 to 64");
			bench.threads = val;
			break;
		case 's':
			job.stage = find_stage(optarg);
			if (!job.stage)
				return error("unknown stage: see --help for those there are");
			break;
		case 'a':
			job.all = true;
			break;
		case 'l':
			job.life = true;
			break;
		case 'f':
			job.fragment = find_fragment(optarg);
			if (!job.fragment)
				return error("unknown memory to fragment: see --help");
			break;
		case 'x':
			dir = optarg;
			break;
		case 'c':
			job.ceiling = true;
			break;
		case 'j':
			bench.tables = optarg;
			bench.json = optarg ? fopen(optarg, "w") : stdout;
			if (!bench.json)
				return error("cannot write the file of --json");
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
	if (!job.stage && !job.all && !job.life && !job.fragment && !job.ceiling)
		job.stage = &stages[FIRST_TOUCH];

	if (geteuid())
		return error("PFNs and THP settings need root: run as root");
	if (getpagesize() != BASE_SIZE && getpagesize() != GRANULE_SIZE)
		return error("boot a kernel with pages of 4 KiB, or of 64 KiB");
	if (getpagesize() != BASE_SIZE && job.fragment)
		return error("--fragment cuts blocks of 64 KiB: boot a kernel with 4 KiB pages");
	if (job.ceiling && access(CEILING, W_OK))
		return error("--ceiling needs " CEILING ": mount debugfs, on x86");
	if (job.ceiling && !granule_supported())
		return error("--ceiling is about granules: set CONFIG_PAGE_GRANULE=y");
	if (!thp_available())
		return error("no THP settings: set CONFIG_TRANSPARENT_HUGEPAGE=y, mount sysfs");
	if (bench.mib * 1024 > granule_meminfo_kb("MemAvailable") / 10 * 9)
		return error("not enough free memory: give a smaller --mib");
	/* All of it, and what there is of it in the swap cache at any time. */
	bench.swap = granule_meminfo_kb("SwapFree") > 2 * bench.mib * 1024;
	if (job.stage && needs_swap(job.stage) && !bench.swap)
		return error("not enough swap for this stage: run swapon first");
	if (job.stage && job.stage->file_prot && !dir)
		return error("that stage maps a file: give a directory for it with --file");
	if (dir) {
		bench.file = create_file(dir, bench.mib * MIB);
		if (bench.file < 0)
			return error("no file in the directory of --file: mount one with room");
	}
	bench.report = mmap(NULL, sizeof(*bench.report), PROT_RW,
			    MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (bench.report == MAP_FAILED)
		return error("no shared memory: free memory");
	bench.pagemap = granule_open_pagemap();
	if (bench.pagemap < 0)
		return error("no /proc/self/pagemap: set CONFIG_PROC_PAGE_MONITOR=y");

	/* Restores them when the program ends, by whatever way. */
	granule_save_settings();
	find_configs(&bench);
	find_events();
	return run_bench(&bench, &job);
}
