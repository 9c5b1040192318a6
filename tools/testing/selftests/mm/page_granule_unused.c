// SPDX-License-Identifier: GPL-2.0
/*
 * What anonymous memory costs a program that has never heard of page granules:
 * 16 MiB of it, with 4 KiB pages and with 64 KiB mTHP. To be run on a kernel
 * with the feature and on one without, and compared. It shares no code and no
 * order of events with page_granule_bench, so that no mistake of one is in
 * both. Not a test.
 *
 * Each figure is the least of several processes, all at the same addresses, in
 * ns of CLOCK_MONOTONIC_RAW: instructions under "qemu -icount
 * shift=0,sleep=off". Prints JSON, an object for each stage.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "kselftest.h"

#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT	21
#endif

#define LEN		(16UL << 20)
#define PAGE		4096UL
#define SMALL_STEP	(64UL << 10)
#define HUGE_STEP	(2UL << 20)	/* of a page table */
#define MAX_RUNS	99
#define MAX_PAGEOUT	20

#define THP		"/sys/kernel/mm/transparent_hugepage/"
#define THP_ALL		THP "enabled"
#define THP_64K		THP "hugepages-64kB/enabled"

enum {
	FIRST_TOUCH,
	READ_UNTOUCHED,
	MPROTECT_RO,
	MPROTECT_RW,
	MREMAP,
	MREMAP_64K,
	SWAP_OUT,
	SWAP_IN,
	FORK,
	WRITE_AFTER_FORK,
	MUNMAP,
	FILE_WRITE,
	FILE_FAULT,
	FILE_MUNMAP,
	FILE_TOUCH,
	NR_STAGES,
};

static const char * const names[NR_STAGES] = {
	[FIRST_TOUCH] = "first-touch",
	[READ_UNTOUCHED] = "read-untouched",
	[MPROTECT_RO] = "mprotect-ro",
	[MPROTECT_RW] = "mprotect-rw",
	[MREMAP] = "mremap",
	[MREMAP_64K] = "mremap-64k",
	[SWAP_OUT] = "swap-out",
	[SWAP_IN] = "swap-in",
	[FORK] = "fork",
	[WRITE_AFTER_FORK] = "write-after-fork",
	[MUNMAP] = "munmap",
	[FILE_WRITE] = "file-write",
	[FILE_FAULT] = "file-fault",
	[FILE_MUNMAP] = "file-munmap",
	[FILE_TOUCH] = "file-touch",
};

static const struct {
	const char *name;
	const char *mthp;	/* of 64 KiB; no other size is ever used */
} configs[] = {
	{ "4K", "never" },
	{ "mTHP 64K", "always" },
};

/* Written by the process that measures, read by its parent. */
static unsigned long *times;
static char saved_all[16], saved_64k[16];

static void __noreturn die(const char *what)
{
	fprintf(stderr, "page_granule_unused: %s\n", what);
	exit(1);
}

static void put(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);

	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		die("cannot change THP settings: run as root, on a kernel with mTHP");
	close(fd);
}

/* The choice that is in brackets, as in "always inherit madvise [never]". */
static void get_choice(const char *path, char *choice)
{
	char text[128] = "";
	int fd = open(path, O_RDONLY);

	if (fd < 0 || read(fd, text, sizeof(text) - 1) <= 0)
		die("cannot read THP settings: use a kernel with mTHP, mount sysfs");
	close(fd);
	if (sscanf(text, "%*[^[][%15[a-z]", choice) != 1 &&
	    sscanf(text, "[%15[a-z]", choice) != 1)
		die("cannot understand THP settings");
}

static void restore(void)
{
	put(THP_ALL, saved_all);
	put(THP_64K, saved_64k);
}

static void restore_and_die(int sig)
{
	restore();
	_exit(128 + sig);
}

static unsigned long now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC_RAW, &ts);
	return ts.tv_sec * 1000000000UL + ts.tv_nsec;
}

/* Deferred work, above all RCU, is done before the clock starts. */
static unsigned long start(void)
{
	usleep(30 * 1000);
	return now();
}

static char *map(size_t len, int prot)
{
	char *p = mmap(NULL, len, prot, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		die("no memory left");
	return p;
}

static void write_all(char *p)
{
	size_t i;

	for (i = 0; i < LEN; i += PAGE)
		__atomic_store_n(p + i, 1, __ATOMIC_RELAXED);
}

static void read_all(const char *p)
{
	size_t i;

	for (i = 0; i < LEN; i += PAGE)
		__atomic_load_n(p + i, __ATOMIC_RELAXED);
}

static bool any_present(const char *p)
{
	static unsigned long entries[LEN / PAGE];
	int fd = open("/proc/self/pagemap", O_RDONLY);
	size_t i;

	if (fd < 0 || pread(fd, entries, sizeof(entries), (unsigned long)p / PAGE * 8) !=
		      sizeof(entries))
		die("cannot read pagemap: set CONFIG_PROC_PAGE_MONITOR=y");
	close(fd);
	for (i = 0; i < LEN / PAGE; i++) {
		if (entries[i] >> 63)
			return true;
	}
	return false;
}

static char *move(char *from, char *to)
{
	if (mremap(from, LEN, LEN, MREMAP_MAYMOVE | MREMAP_FIXED, to) != to)
		die("mremap() failed");
	return to;
}

static void protect(char *p, int prot)
{
	if (mprotect(p, LEN, prot))
		die("mprotect() failed");
}

static char *map_file(int fd)
{
	char *p = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	if (p == MAP_FAILED)
		die("cannot map a file");
	return p;
}

/* Files in memory: written and mapped, and populated by faults. */
static void measure_files(void)
{
	static char buf[SMALL_STEP];
	unsigned long begin;
	int fd = memfd_create("unused", 0);
	char *area;
	size_t i;

	begin = start();
	for (i = 0; i < LEN; i += sizeof(buf)) {
		if (write(fd, buf, sizeof(buf)) != sizeof(buf))
			die("cannot write to a memfd: set CONFIG_MEMFD_CREATE=y");
	}
	times[FILE_WRITE] = now() - begin;

	area = map_file(fd);
	begin = start();
	read_all(area);
	times[FILE_FAULT] = now() - begin;

	begin = start();
	munmap(area, LEN);
	times[FILE_MUNMAP] = now() - begin;

	if (ftruncate(fd, 0) || ftruncate(fd, LEN))
		die("cannot truncate a memfd");
	area = map_file(fd);
	begin = start();
	write_all(area);
	times[FILE_TOUCH] = now() - begin;
	munmap(area, LEN);
	close(fd);
}

/* Run by a process that has done nothing else. */
static void measure(void)
{
	char *area, *other, *reserve, *small;
	unsigned int tries;
	unsigned long begin;
	pid_t pid;

	area = map(LEN, PROT_READ | PROT_WRITE);
	begin = start();
	write_all(area);
	times[FIRST_TOUCH] = now() - begin;

	other = map(LEN, PROT_READ | PROT_WRITE);
	begin = start();
	read_all(other);
	times[READ_UNTOUCHED] = now() - begin;
	munmap(other, LEN);

	begin = start();
	protect(area, PROT_READ);
	times[MPROTECT_RO] = now() - begin;

	begin = start();
	protect(area, PROT_READ | PROT_WRITE);
	times[MPROTECT_RW] = now() - begin;

	/* Page tables move as they are, and then entry by entry. */
	reserve = map(LEN, PROT_NONE);
	begin = start();
	area = move(area, reserve);
	times[MREMAP] = now() - begin;

	/* At a multiple of 64 KiB, or no mTHP is swapped in. */
	small = map(LEN + 3 * SMALL_STEP, PROT_NONE);
	small += SMALL_STEP - (unsigned long)small % SMALL_STEP;
	if (!((unsigned long)small % HUGE_STEP))
		small += SMALL_STEP;
	begin = start();
	area = move(area, small);
	times[MREMAP_64K] = now() - begin;

	for (tries = 0; tries < MAX_PAGEOUT; tries++) {
		begin = start();
		if (madvise(area, LEN, MADV_PAGEOUT))
			die("MADV_PAGEOUT failed");
		times[SWAP_OUT] += now() - begin;
		if (!any_present(area))
			break;
	}
	if (tries == MAX_PAGEOUT)
		die("memory is not swapped out: run swapon first");

	begin = start();
	write_all(area);
	times[SWAP_IN] = now() - begin;

	begin = start();
	pid = fork();
	while (!pid)
		pause();
	times[FORK] = now() - begin;
	if (pid < 0)
		die("fork() failed");

	begin = start();
	write_all(area);
	times[WRITE_AFTER_FORK] = now() - begin;
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);

	other = map(LEN, PROT_READ | PROT_WRITE);
	write_all(other);
	begin = start();
	munmap(other, LEN);
	times[MUNMAP] = now() - begin;

	measure_files();
}

static void print_stage(const char *stage, const char *config, unsigned long ns)
{
	printf("{\"set\": \"unused\", \"stage\": \"%s\", \"config\": \"%s\", ", stage, config);
	printf("\"mib\": %lu, \"ns_min\": %lu}\n", LEN >> 20, ns);
}

static void run_config(unsigned int config, unsigned int runs)
{
	unsigned long least[NR_STAGES];
	unsigned int i, stage;
	int status;
	pid_t pid;

	put(THP_64K, configs[config].mthp);
	memset(least, 0xff, sizeof(least));
	/* The first one does not count: it brings in missing pages. */
	for (i = 0; i <= runs; i++) {
		memset(times, 0, NR_STAGES * sizeof(*times));
		fflush(NULL);
		pid = fork();
		if (!pid) {
			measure();
			_exit(0);
		}
		if (pid < 0 || waitpid(pid, &status, 0) != pid || status)
			die("a run failed");
		for (stage = 0; i && stage < NR_STAGES; stage++) {
			if (times[stage] < least[stage])
				least[stage] = times[stage];
		}
	}
	for (stage = 0; stage < NR_STAGES; stage++)
		print_stage(names[stage], configs[config].name, least[stage]);
}

int main(int argc, char **argv)
{
	unsigned long runs = 3;
	unsigned int config;
	int mode;

	if (argc > 1)
		runs = strtoul(argv[1], NULL, 10);
	if (argc > 2 || runs < 1 || runs > MAX_RUNS)
		die("usage: page_granule_unused [RUNS], 1 to 99; 3 unless given");
	if (getpagesize() != PAGE)
		die("boot a kernel with pages of 4 KiB");
	mode = personality(0xffffffff);
	if (mode >= 0 && !(mode & ADDR_NO_RANDOMIZE)) {
		if (personality(mode | ADDR_NO_RANDOMIZE) >= 0)
			execv("/proc/self/exe", argv);
		die("addresses stay random: allow personality(), mount proc");
	}
	times = mmap(NULL, NR_STAGES * sizeof(*times), PROT_READ | PROT_WRITE,
		     MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (times == MAP_FAILED)
		die("no shared memory: free memory");
	get_choice(THP_ALL, saved_all);
	get_choice(THP_64K, saved_64k);
	atexit(restore);
	signal(SIGINT, restore_and_die);
	signal(SIGTERM, restore_and_die);
	put(THP_ALL, "never");
	for (config = 0; config < ARRAY_SIZE(configs); config++)
		run_config(config, runs);
	return 0;
}
