/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What page_granule_compat, a 64-bit program, and page_granule_compat_32, a
 * 32-bit one, do alike when they are started for a report. Both lay it out alike.
 */
#ifndef __PAGE_GRANULE_COMPAT_H__
#define __PAGE_GRANULE_COMPAT_H__

#include <errno.h>
#include <fcntl.h>
#include <linux/types.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/types.h>
#include <unistd.h>

#include "page_granule_util.h"

/*
 * "VERB FILE NEXT", the arguments of a program that reports. It writes its report
 * to stdout, then waits for a byte on stdin, while the test looks at it from
 * outside. After a COMPAT_GO_ON it execs NEXT, with COMPAT_REPORT, for another.
 */
#define COMPAT_REPORT		"--report"	/* where things lie */
#define COMPAT_ASK		"--ask"		/* and what is refused */
#define COMPAT_GO_ON		'x'

#define COMPAT_NR_PIECES	100

/* Where things lie: the same in every process while nothing is randomized. */
enum compat_place {
	COMPAT_BRK,
	COMPAT_STACK,
	COMPAT_PAGE,		/* One page, so that what follows starts below it, */
	COMPAT_64K,		/* and 64 KiB is no address it would get anyway. */
	COMPAT_100K,
	COMPAT_2M,
	COMPAT_FILE_PAGE,
	COMPAT_FILE,
	COMPAT_FILE_EXEC,
	COMPAT_NR_PLACES,
};

/* Results are 0 or a size, or -errno; of the prctl, one a scope. */
struct compat_report {
	int32_t bits;			/* of a pointer, to see who reports */
	int32_t get[2];			/* as the program begins */
	int32_t set_64k[2];
	int32_t get_after_64k[2];
	int32_t set_4k[2];
	int32_t set_0[2];
	int32_t get_after_4k[2];
	int32_t map_64k_private;
	int32_t map_64k_shared;
	int32_t map_64k_file;
	int32_t map_4k;
	__aligned_u64 places[COMPAT_NR_PLACES];
	__aligned_u64 pieces[COMPAT_NR_PIECES];	/* 64 KiB each */
};

/* For programs without libc, too: no more of it than nolibc has. */
static inline int compat_map_errno(unsigned int flags, int fd)
{
	void *ptr = mmap(NULL, GRANULE_SIZE, PROT_READ, flags, fd, 0);

	if (ptr == MAP_FAILED)
		return -errno;
	munmap(ptr, GRANULE_SIZE);
	return 0;
}

static inline int compat_set(unsigned long scope, unsigned long size)
{
	return prctl(PR_SET_PAGE_GRANULE, scope, size, 0UL, 0UL) ? -errno : 0;
}

static inline int compat_get(unsigned long scope)
{
	int ret = prctl(PR_GET_PAGE_GRANULE, scope, 0UL, 0UL, 0UL);

	return ret < 0 ? -errno : ret;
}

static inline uint64_t compat_place(size_t len, int prot, int fd)
{
	unsigned int flags = fd < 0 ? ANON_FLAGS : MAP_PRIVATE;

	return (uintptr_t)mmap(NULL, len, prot, flags, fd, 0);
}

/* Report where things lie. @fd is a file of 64 KiB or more. */
static inline void compat_report_places(struct compat_report *report, int fd)
{
	__aligned_u64 *places = report->places;
	unsigned int i;

	places[COMPAT_BRK] = (uintptr_t)sbrk(0);
	places[COMPAT_STACK] = (uintptr_t)report;
	places[COMPAT_PAGE] = compat_place(BASE_SIZE, PROT_NONE, -1);
	places[COMPAT_64K] = compat_place(GRANULE_SIZE, PROT_READ, -1);
	places[COMPAT_100K] = compat_place(100 << 10, PROT_RW, -1);
	places[COMPAT_2M] = compat_place(2 << 20, PROT_READ, -1);
	places[COMPAT_FILE_PAGE] = compat_place(BASE_SIZE, PROT_NONE, -1);
	places[COMPAT_FILE] = compat_place(GRANULE_SIZE, PROT_READ, fd);
	places[COMPAT_FILE_EXEC] =
		compat_place(GRANULE_SIZE, PROT_READ | PROT_EXEC, fd);
	/* PROT_WRITE alone, so that they merge with each other alone. */
	for (i = 0; i < COMPAT_NR_PIECES; i++)
		report->pieces[i] = compat_place(GRANULE_SIZE, PROT_WRITE, -1);
}

/* Report what a program that asks for granules gets. */
static inline void compat_report_answers(struct compat_report *report, int fd)
{
	unsigned int scope;

	for (scope = PR_GRANULE_MMAP; scope <= PR_GRANULE_EXEC; scope++) {
		report->set_64k[scope] = compat_set(scope, GRANULE_SIZE);
		report->get_after_64k[scope] = compat_get(scope);
		report->set_4k[scope] = compat_set(scope, BASE_SIZE);
		report->set_0[scope] = compat_set(scope, 0);
		report->get_after_4k[scope] = compat_get(scope);
	}
	report->map_64k_private =
		compat_map_errno(ANON_FLAGS | MAP_GRANULE_64KB, -1);
	report->map_64k_shared =
		compat_map_errno(MAP_SHARED | MAP_ANONYMOUS | MAP_GRANULE_64KB, -1);
	report->map_64k_file = compat_map_errno(MAP_PRIVATE | MAP_GRANULE_64KB, fd);
	report->map_4k = compat_map_errno(ANON_FLAGS | MAP_GRANULE_4KB, -1);
}

/* What main() does in a program that was started for a report. */
static inline int compat_report_main(char **argv)
{
	char *const environment[] = { NULL };
	struct compat_report report;
	char go = 0;
	int fd;

	memset(&report, 0, sizeof(report));
	report.bits = 8 * sizeof(void *);
	report.get[PR_GRANULE_MMAP] = compat_get(PR_GRANULE_MMAP);
	report.get[PR_GRANULE_EXEC] = compat_get(PR_GRANULE_EXEC);
	fd = open(argv[2], O_RDONLY);
	if (fd < 0)
		return 20;
	compat_report_places(&report, fd);
	if (!strcmp(argv[1], COMPAT_ASK))
		compat_report_answers(&report, fd);
	close(fd);
	if (write(STDOUT_FILENO, &report, sizeof(report)) != sizeof(report))
		return 21;
	if (read(STDIN_FILENO, &go, 1) != 1 || go != COMPAT_GO_ON)
		return 0;
	argv[1] = (char *)COMPAT_REPORT;
	execve(argv[3], argv, environment);
	return 22;
}

#endif /* __PAGE_GRANULE_COMPAT_H__ */
