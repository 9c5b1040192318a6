// SPDX-License-Identifier: GPL-2.0
/*
 * granule collapse: bring what a process has populated into whole granules.
 *
 * This is for what was cached in single pages before the process started, such as
 * the C library, which every process maps: the kernel converts that only on request.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "granule.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE	25
#endif

/* How often a mapping is tried in which something is in use, and how long between */
#define NR_TRIES	10
#define TRY_US		20000

/* How much of a process is where whole granules can be, in kB */
struct reach {
	unsigned long rss;
	unsigned long whole;
};

static struct reach sum_tagged(const struct process *proc)
{
	struct reach sum = { 0 };
	size_t i;

	for (i = 0; i < proc->nr_vmas; i++) {
		if (!in_granules(&proc->vmas[i]))
			continue;
		sum.rss += proc->vmas[i].rss;
		sum.whole += proc->vmas[i].granule_mapped;
	}
	return sum;
}

static long advise(int pidfd, unsigned long start, unsigned long len, int advice)
{
	struct iovec range = { .iov_base = (void *)start, .iov_len = len };

	return syscall(SYS_process_madvise, pidfd, &range, 1UL, advice, 0UL);
}

/*
 * Read the rest of a granule of a file that the process uses in part. Pages that are
 * not cached would keep it from being whole.
 */
static void read_rest(struct process *proc, const struct vma *vma, const struct block *block,
		      void *arg)
{
	const int pidfd = *(const int *)arg;

	if (proc->ended || !vma->inode || block->cut || block->guard)
		return;
	if (block->present && block->present < NR)
		advise(pidfd, block->addr, GRANULE_SZ, MADV_WILLNEED);
}

/*
 * What is in use, or still read, cannot be collapsed now, and what the process has
 * unmapped since need not be. Returns an error only if no other mapping can be
 * collapsed either.
 */
static int collapse_vma(struct process *proc, int pidfd, const struct vma *vma)
{
	const unsigned long start = (vma->start + GRANULE_SZ - 1) & ~(GRANULE_SZ - 1);
	const unsigned long len = nr_granules(vma) * GRANULE_SZ;
	int i;

	if (!in_granules(vma) || !vma->rss || !len)
		return 0;
	scan_vma(proc, vma, 0, read_rest, &pidfd);
	for (i = 0; i < NR_TRIES; i++) {
		if (advise(pidfd, start, len, MADV_COLLAPSE) >= 0)
			return 0;
		if (errno != EAGAIN)
			return errno == EPERM ? errno : 0;
		usleep(TRY_US);
	}
	return 0;
}

static bool collapse_all(struct process *proc)
{
	const int pidfd = syscall(SYS_pidfd_open, proc->pid, 0);
	int error = pidfd < 0 ? errno : 0;
	size_t i;

	for (i = 0; i < proc->nr_vmas && !error; i++)
		error = collapse_vma(proc, pidfd, &proc->vmas[i]);
	if (pidfd >= 0)
		close(pidfd);
	if (error == EPERM)
		complain("%d: only root may collapse the memory of a process", proc->pid);
	else if (error && error != ESRCH)
		complain("%d: cannot collapse its memory: %s", proc->pid, strerror(error));
	return !error || error == ESRCH;
}

static int collapse(pid_t pid)
{
	struct process proc;
	struct reach was, is;
	bool done;
	int ret;

	if (!open_process(&proc, pid))
		return EXIT_FAILURE;
	was = sum_tagged(&proc);
	done = collapse_all(&proc);
	close_process(&proc);
	if (!done || !open_process(&proc, pid))
		return EXIT_FAILURE;

	is = sum_tagged(&proc);
	printf("%d ", pid);
	print_name(proc.comm, -1);
	printf(": of %s in tagged mappings, %s in whole granules, %s before\n",
	       human(is.rss), human(is.whole), human(was.whole));
	ret = note_ended(&proc);
	close_process(&proc);
	return ret;
}

int collapse_main(int argc, char **argv)
{
	static const struct option longs[] = {
		{ "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	pid_t pid;

	while (next_option("collapse", argc, argv, ":h", longs) != -1)
		;
	pid = parse_pid("collapse", argc, argv, true);
	if (!kernel_has_granules()) {
		complain(NO_KERNEL);
		return EXIT_FAILURE;
	}
	return collapse(pid);
}
