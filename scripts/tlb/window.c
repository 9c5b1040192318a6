// SPDX-License-Identifier: GPL-2.0
/*
 * Have the plugin record a program that knows nothing of it, in the guest, as root.
 *
 * usage: tlb-window LABEL WARM COUNT PID
 *
 * From now on, WARM instructions of that process to warm caches up, then COUNT that
 * count. The process is told by a page that is its alone: that of its stack which has
 * been written to and that nobody shares. Ends once the marker is set; the plugin stops
 * by itself. LABEL is LOAD.MIB.CONFIG.CONDITION.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "mark.h"

#define PRESENT(entry)	((entry) >> 63)
#define EXCLUSIVE(entry) ((entry) >> 56 & 1)
#define PFN(entry)	((entry) & ((1UL << 55) - 1))

static void fail(const char *what)
{
	fprintf(stderr, "tlb-window: %s\n", what);
	exit(1);
}

/* The topmost page of the process's stack that is present and its alone. */
static void find_page(const char *pid, struct mark *mark)
{
	unsigned long start, end, page = 0;
	char path[64], line[512];
	uint64_t entry;
	FILE *fp;
	int fd;

	snprintf(path, sizeof(path), "/proc/%s/maps", pid);
	fp = fopen(path, "r");
	if (!fp)
		fail("no such process");
	start = end = 0;
	while (fgets(line, sizeof(line), fp)) {
		if (strstr(line, "[stack]"))
			sscanf(line, "%lx-%lx", &start, &end);
	}
	fclose(fp);
	snprintf(path, sizeof(path), "/proc/%s/pagemap", pid);
	fd = open(path, O_RDONLY);
	for (page = end - mark->page_size; fd >= 0 && page >= start; page -= mark->page_size) {
		if (pread(fd, &entry, 8, page / mark->page_size * 8) != 8)
			break;
		if (!PRESENT(entry) || !EXCLUSIVE(entry))
			continue;
		mark->virt = page;
		mark->phys = PFN(entry) * mark->page_size;
		close(fd);
		return;
	}
	fail("the process has no page of its own on its stack");
}

int main(int argc, char **argv)
{
	volatile struct mark *mark;
	struct mark filled = {};

	if (argc != 5)
		fail("usage: tlb-window LABEL WARM COUNT PID");
	filled.page_size = getpagesize();
	filled.warm = strtoull(argv[2], NULL, 10);
	filled.limit = strtoull(argv[3], NULL, 10);
	if (!filled.limit || strlen(argv[1]) >= sizeof(filled.label))
		fail("COUNT is a number of instructions, and LABEL is short");
	strcpy(filled.label, argv[1]);
	find_page(argv[4], &filled);
	mark = mmap((void *)MARK_ADDR, filled.page_size, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	if (mark == MAP_FAILED)
		fail("no memory for a marker");
	memcpy((char *)mark + sizeof(filled.order), (char *)&filled + sizeof(filled.order),
	       sizeof(filled) - sizeof(filled.order));
	/* The compiler may put what is not volatile after this otherwise. */
	atomic_signal_fence(memory_order_seq_cst);
	mark->order[0] = 1;
	return 0;
}
