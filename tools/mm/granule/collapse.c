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

/*
 * What is in use cannot be collapsed now, and what the process has unmapped since
 * need not be. Returns an error only if no other mapping can be collapsed either.
 */
static int collapse_vma(int pidfd, const struct vma *vma)
{
	const unsigned long start = (vma->start + GRANULE_SZ - 1) & ~(GRANULE_SZ - 1);
	struct iovec range = {
		.iov_base = (void *)start,
		.iov_len = nr_granules(vma) * GRANULE_SZ,
	};

	if (!in_granules(vma) || !vma->rss || !range.iov_len)
		return 0;
	if (syscall(SYS_process_madvise, pidfd, &range, 1UL, MADV_COLLAPSE, 0UL) >= 0)
		return 0;
	return errno == EPERM || errno == ENOSYS ? errno : 0;
}

static bool collapse_all(const struct process *proc)
{
	const int pidfd = syscall(SYS_pidfd_open, proc->pid, 0);
	int error = pidfd < 0 ? errno : 0;
	size_t i;

	for (i = 0; i < proc->nr_vmas && !error; i++)
		error = collapse_vma(pidfd, &proc->vmas[i]);
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
