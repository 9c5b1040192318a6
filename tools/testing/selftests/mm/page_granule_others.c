// SPDX-License-Identifier: GPL-2.0
/*
 * Page granule: what granules cost others, and what is put back. Repair, reclaim,
 * the shrinkers, zswap, migration, and what a fault may do to get a folio.
 *
 * A granule is put back, never defended. So what is measured here is measured
 * beside a twin: untagged memory, or 64 KiB mTHP, that the same is done to.
 */
#define _GNU_SOURCE
#include "kselftest_harness.h"
#include <asm-generic/mman.h> /* Force the import of the tools version. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/loop.h>
#include <linux/mempolicy.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "hugepage_settings.h"
#include "vm_util.h"
#include "page_granule_util.h"

#define MB			(1024 * 1024UL)
#define PMD_SIZE		(2 * MB)
#define FOLIO_ORDER		4

#define NUMA_REMEDY		"not two nodes with memory: boot with numa=fake=2"
#define COMPACT_UNEVICTABLE	"/proc/sys/vm/compact_unevictable_allowed"
#define DROP_CACHES		"/proc/sys/vm/drop_caches"
#define ZSWAP			"/sys/module/zswap/parameters/"
#define THP			"/sys/kernel/mm/transparent_hugepage/"

static char *page_at(char *area, unsigned long page)
{
	return area + page * BASE_SIZE;
}

/* The page of @addr, which is not to be in memory where no page is. */
static unsigned long pfn_of(int pagemap, char *area, unsigned long page)
{
	return pagemap_get_pfn(pagemap, page_at(area, page));
}

static unsigned long present_in(int pagemap, const char *granule)
{
	return granule_present_pages(pagemap, granule, GRANULE_SIZE);
}

/* A child that has what it does counted to @cg, or NULL. */
static pid_t fork_into(const struct granule_cg *cg)
{
	pid_t pid = fork();

	if (pid)
		return pid;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (cg && granule_cg_write(cg->dir, "cgroup.procs", "0"))
		_exit(2);
	return 0;
}

/*
 * The swap space that the tests find, and a file of their own. In a file no 16
 * slots can be had in a row, so that a folio is split where it is swapped out.
 */
#define MAX_SWAPS	8
#define SWAP_FILE_MB	96U
#define SWAP_FILE_REMEDY \
	"no swap file: set CONFIG_BLK_DEV_LOOP=y and CONFIG_EXT4_FS=y, have mke2fs in PATH"
#define SWAP_REMEDY	"no swap: swapon a device with 64 MiB free"

static struct swap {
	char path[128];
	int prio;
} swaps[MAX_SWAPS];
static unsigned int nr_swaps;

/* A file in a file system, on a loop device, on a file in memory. */
static struct swap_file {
	char ramfs[32];
	char image[64];
	char loop[32];
	char dir[32];
	char path[64];
	bool usable;
} swap_file;

static void save_swaps(void)
{
	char line[PATH_MAX];
	FILE *fp;

	fp = fopen("/proc/swaps", "r");
	while (fp && nr_swaps < MAX_SWAPS && fgets(line, sizeof(line), fp))
		nr_swaps += sscanf(line, "%127s %*s %*u %*u %d", swaps[nr_swaps].path,
				   &swaps[nr_swaps].prio) == 2;
	if (fp)
		fclose(fp);
}

static void swap_to_found(void)
{
	unsigned int i;
	int flags;

	for (i = 0; i < nr_swaps; i++) {
		flags = swaps[i].prio < 0 ? 0 : SWAP_FLAG_PREFER | swaps[i].prio;
		swapon(swaps[i].path, flags);
	}
	if (swap_file.usable)
		swapoff(swap_file.path);
}

static bool swap_to_file(void)
{
	unsigned int i;

	if (!swap_file.usable || (swapon(swap_file.path, 0) && errno != EBUSY))
		return false;
	for (i = 0; i < nr_swaps; i++) {
		if (swapoff(swaps[i].path) && errno != EINVAL)
			return false;
	}
	return true;
}

/* Attach a loop device to the image, or, without one, detach it. */
static bool set_loop(const char *image)
{
	int fd, loop, nr;
	bool done;

	if (!image) {
		loop = open(swap_file.loop, O_RDWR);
		done = loop >= 0 && !ioctl(loop, LOOP_CLR_FD, 0);
		close(loop);
		return done;
	}
	fd = open("/dev/loop-control", O_RDWR);
	nr = fd < 0 ? -1 : ioctl(fd, LOOP_CTL_GET_FREE);
	close(fd);
	if (nr < 0)
		return false;
	snprintf(swap_file.loop, sizeof(swap_file.loop), "/dev/loop%d", nr);
	fd = open(image, O_RDWR);
	loop = open(swap_file.loop, O_RDWR);
	done = fd >= 0 && loop >= 0 && !ioctl(loop, LOOP_SET_FD, fd);
	if (!done)
		*swap_file.loop = 0;
	close(fd);
	close(loop);
	return done;
}

static bool mount_at(char *dir, size_t size, const char *dev, const char *type)
{
	snprintf(dir, size, "/tmp/page_granule.XXXXXX");
	if (mkdtemp(dir)) {
		if (!mount(dev, dir, type, 0, NULL))
			return true;
		rmdir(dir);
	}
	*dir = 0;
	return false;
}

static void unmount_from(char *dir)
{
	if (!*dir)
		return;
	umount(dir);
	rmdir(dir);
}

static void remove_swap_file(void)
{
	swap_to_found();
	unmount_from(swap_file.dir);
	if (*swap_file.loop)
		set_loop(NULL);
	unmount_from(swap_file.ramfs);
}

/* All of it is there, so that nothing is allocated to swap out. */
static bool fill_file(const char *path, unsigned int megabytes)
{
	static char zeroes[64 * 1024];
	bool done = true;
	unsigned long i;
	int fd;

	fd = open(path, O_WRONLY | O_CREAT | O_EXCL, 0600);
	if (fd < 0)
		return false;
	for (i = 0; done && i < megabytes * MB; i += sizeof(zeroes))
		done = write(fd, zeroes, sizeof(zeroes)) == sizeof(zeroes);
	done = done && !fsync(fd);
	posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
	close(fd);
	return done;
}

static void create_swap_file(void)
{
	char command[128];

	save_swaps();
	atexit(remove_swap_file);
	if (!mount_at(swap_file.ramfs, sizeof(swap_file.ramfs), "none", "ramfs"))
		return;
	snprintf(swap_file.image, sizeof(swap_file.image), "%s/image", swap_file.ramfs);
	if (!fill_file(swap_file.image, SWAP_FILE_MB + 16) || !set_loop(swap_file.image))
		return;
	snprintf(command, sizeof(command), "mke2fs -F -b 4096 %s >/dev/null 2>&1",
		 swap_file.loop);
	if (system(command) ||
	    !mount_at(swap_file.dir, sizeof(swap_file.dir), swap_file.loop, "ext4"))
		return;
	snprintf(swap_file.path, sizeof(swap_file.path), "%s/swap", swap_file.dir);
	swap_file.usable = fill_file(swap_file.path, SWAP_FILE_MB) &&
			   granule_make_swap(swap_file.path, SWAP_FILE_MB);
}

/*
 * Repair. Granules of a default-tagged area are broken in various ways; that one
 * which nothing holds back is whole again tells that repair has been there.
 */
#define NR_GRANULES	8UL
#define CONTROL		7UL

/* What is not repaired is looked at this long after what is. */
#define REPAIR_MS	1000
#define REPAIR_LIMIT	15.0

FIXTURE(page_granule_repair)
{
	char *area;
	int pagemap;
};

FIXTURE_SETUP(page_granule_repair)
{
	ASSERT_EQ(granule_set_enabled(true), 0);
	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, BASE_SIZE), 0);
	granule_thp_never();
	self->pagemap = granule_open_pagemap();
	ASSERT_GE(self->pagemap, 0);
	self->area = granule_area(GRANULE_DEFAULT, NR_GRANULES * GRANULE_SIZE, 0);
	ASSERT_NE(self->area, NULL);
	memset(self->area, 1, NR_GRANULES * GRANULE_SIZE);
	granule_repair(true);
}

FIXTURE_TEARDOWN(page_granule_repair)
{
	granule_repair(false);
	EXPECT_TRUE(granule_invariants_hold());
}

static bool give_back(char *granule, unsigned long page, unsigned long nr)
{
	return !madvise(page_at(granule, page), nr * BASE_SIZE, MADV_DONTNEED);
}

/* Break the last granule, and wait until repair has passed by all of them. */
static bool repair_passes(int pagemap, char *area)
{
	char *control = nth(area, CONTROL);

	if (!granule_break(control, 3) ||
	    granule_until_whole(pagemap, control, REPAIR_LIMIT) < 0)
		return false;
	usleep(REPAIR_MS * 1000);
	return true;
}

/* Assert that the holes a program made stay, and zeroes it read stay zeroes. */
TEST_F_TIMEOUT(page_granule_repair, holes_stay, 60)
{
	char *hole = self->area, *beside = nth(self->area, 1);
	char *zero = nth(self->area, 2), *kept = nth(self->area, 3);
	char *only = nth(self->area, 4);
	unsigned long rss;

	ASSERT_TRUE(give_back(hole, 5, 1));
	ASSERT_TRUE(granule_break(hole, 3));
	/* A fault on the page beside it. */
	ASSERT_TRUE(give_back(beside, 5, 2));
	*page_at(beside, 6) = 1;
	ASSERT_TRUE(give_back(zero, 5, 1));
	FORCE_READ(*page_at(zero, 5));
	ASSERT_TRUE(granule_break(zero, 3));
	ASSERT_TRUE(give_back(kept, 1, 15));
	FORCE_READ(*kept);
	ASSERT_TRUE(give_back(only, 0, GRANULE_NR_PAGES - 1));
	*page_at(only, 15) = 2;
	rss = granule_rss_kb(self->area, NR_GRANULES * GRANULE_SIZE);

	ASSERT_TRUE(repair_passes(self->pagemap, self->area));
	usleep(2000 * 1000);
	EXPECT_EQ(granule_rss_kb(self->area, NR_GRANULES * GRANULE_SIZE), rss);
	EXPECT_EQ(present_in(self->pagemap, hole), 15);
	EXPECT_FALSE(pagemap_is_populated(self->pagemap, page_at(hole, 5)));
	EXPECT_EQ(present_in(self->pagemap, beside), 15);
	EXPECT_FALSE(pagemap_is_populated(self->pagemap, page_at(beside, 5)));
	EXPECT_EQ(granule_zero_pages(self->pagemap, page_at(zero, 5), BASE_SIZE), 1);
	EXPECT_EQ(present_in(self->pagemap, kept), 1);
	EXPECT_EQ(present_in(self->pagemap, only), 1);

	/* Nor does one who asks for runs ask for more memory. */
	madvise(self->area, NR_GRANULES * GRANULE_SIZE, MADV_COLLAPSE);
	EXPECT_EQ(granule_rss_kb(self->area, NR_GRANULES * GRANULE_SIZE), rss);
}

/* Assert that what is pinned stays where it is. */
TEST_F_TIMEOUT(page_granule_repair, pinned_stays, 60)
{
	struct iovec iov = { page_at(self->area, 15), BASE_SIZE };
	unsigned long pfns[GRANULE_NR_PAGES], i;
	char byte = 0;
	int fds[2];

	ASSERT_TRUE(granule_break(self->area, 3));
	ASSERT_EQ(pipe(fds), 0);
	ASSERT_EQ(vmsplice(fds[1], &iov, 1, 0), (ssize_t)BASE_SIZE);
	/* It may have been repaired before it was pinned: break it again. */
	ASSERT_TRUE(granule_break(self->area, 4));
	for (i = 0; i < GRANULE_NR_PAGES; i++)
		pfns[i] = pfn_of(self->pagemap, self->area, i);
	ASSERT_TRUE(repair_passes(self->pagemap, self->area));
	EXPECT_EQ(pfn_of(self->pagemap, self->area, 15), pfns[15]);
	*page_at(self->area, 15) = 7;
	ASSERT_EQ(read(fds[0], &byte, 1), 1);
	EXPECT_EQ(byte, 7);
}

/* Assert that locked memory is not moved where compaction may not move it. */
TEST_F_TIMEOUT(page_granule_repair, locked_stays, 60)
{
	unsigned long pfns[GRANULE_NR_PAGES], i, moved = 0;
	char *page = page_at(self->area, 3);

	if (granule_write(COMPACT_UNEVICTABLE, "0"))
		SKIP(return, "no " COMPACT_UNEVICTABLE ": set CONFIG_COMPACTION=y");
	ASSERT_EQ(mlock(self->area, GRANULE_SIZE), 0);
	ASSERT_EQ(madvise(page, BASE_SIZE, MADV_DONTNEED_LOCKED), 0);
	*page = 1;
	for (i = 0; i < GRANULE_NR_PAGES; i++)
		pfns[i] = pfn_of(self->pagemap, self->area, i);
	ASSERT_TRUE(repair_passes(self->pagemap, self->area));
	for (i = 0; i < GRANULE_NR_PAGES; i++)
		moved += pfn_of(self->pagemap, self->area, i) != pfns[i];
	EXPECT_EQ(moved, 0);
	EXPECT_EQ(granule_write(COMPACT_UNEVICTABLE, "1"), 0);
}

/* How many pages are memory, and how many of these are on @node? */
static unsigned long pages_on(char *granule, int node, unsigned long *memory)
{
	unsigned long i, here = 0;
	int status[GRANULE_NR_PAGES];

	*memory = 0;
	if (granule_move_pages(granule, GRANULE_NR_PAGES, NULL, status))
		return ULONG_MAX;
	for (i = 0; i < GRANULE_NR_PAGES; i++) {
		*memory += status[i] >= 0;
		here += status[i] == node;
	}
	return here;
}

/* From now on memory comes from @node alone, or from where it is near if negative. */
static int bind_to(int node)
{
	const unsigned long mask = 1UL << node;

	if (node < 0)
		return syscall(__NR_set_mempolicy, MPOL_DEFAULT, NULL, 0UL);
	return syscall(__NR_set_mempolicy, MPOL_BIND, &mask, 8 * sizeof(mask));
}

/* Assert that what is bound to a node is repaired on that node. */
TEST_F_TIMEOUT(page_granule_repair, bound_stays, 60)
{
	const size_t len = NR_GRANULES * GRANULE_SIZE;
	unsigned long memory, node;
	char *area;

	if (!granule_two_nodes())
		SKIP(return, NUMA_REMEDY);
	for (node = 0; node < 2; node++) {
		ASSERT_EQ(bind_to(node), 0);
		area = granule_area(GRANULE_DEFAULT, len, 0);
		ASSERT_NE(area, NULL);
		memset(area, 1, len);
		/* A page of zeroes, which are on a node of their own, and a hint. */
		ASSERT_TRUE(give_back(area, 0, 1));
		FORCE_READ(*area);
		ASSERT_TRUE(granule_break(area, 1));
		ASSERT_TRUE(granule_break(nth(area, 1), 1));
		ASSERT_TRUE(repair_passes(self->pagemap, area));

		EXPECT_EQ(pages_on(area, node, &memory), memory);
		EXPECT_EQ(memory, GRANULE_NR_PAGES - 1);
		EXPECT_EQ(pages_on(nth(area, 1), node, &memory), GRANULE_NR_PAGES);
		EXPECT_EQ(granule_state(self->pagemap, nth(area, 1)), GRANULE_WHOLE);
		EXPECT_EQ(pages_on(nth(area, CONTROL), node, &memory), GRANULE_NR_PAGES);
	}
	ASSERT_EQ(bind_to(-1), 0);
}

/* Assert that a page which a fault has put on another node joins the others. */
TEST_F_TIMEOUT(page_granule_repair, other_node_joins, 60)
{
	unsigned long memory;
	char *area;
	int node;

	if (!granule_two_nodes())
		SKIP(return, NUMA_REMEDY);
	for (node = 0; node < 2; node++) {
		ASSERT_EQ(bind_to(node), 0);
		area = granule_area(GRANULE_DEFAULT, GRANULE_SIZE, 0);
		ASSERT_NE(area, NULL);
		memset(area, 1, GRANULE_SIZE);
		ASSERT_EQ(bind_to(!node), 0);
		ASSERT_TRUE(granule_break(area, 3));
		ASSERT_EQ(bind_to(-1), 0);
		EXPECT_TRUE(granule_until_whole(self->pagemap, area, REPAIR_LIMIT) >= 0);
		EXPECT_EQ(pages_on(area, node, &memory), GRANULE_NR_PAGES);
	}
}

/* Assert that a page which was sent to another node stays there. */
TEST_F_TIMEOUT(page_granule_repair, moved_stays, 60)
{
	int to = 1, status = -1;
	unsigned long memory;
	char *area;

	if (!granule_two_nodes())
		SKIP(return, NUMA_REMEDY);
	ASSERT_EQ(bind_to(0), 0);
	area = granule_area(GRANULE_DEFAULT, GRANULE_SIZE, 0);
	ASSERT_NE(area, NULL);
	memset(area, 1, GRANULE_SIZE);
	ASSERT_EQ(bind_to(-1), 0);
	ASSERT_EQ(granule_move_pages(page_at(area, 5), 1, &to, &status), 0);
	EXPECT_EQ(status, to);
	ASSERT_TRUE(repair_passes(self->pagemap, self->area));
	EXPECT_EQ(pages_on(area, 0, &memory), GRANULE_NR_PAGES - 1);
	ASSERT_EQ(granule_move_pages(page_at(area, 5), 1, NULL, &status), 0);
	EXPECT_EQ(status, to);
}

/* Assert that a granule that wants no huge pages any more is left as it is. */
TEST_F_TIMEOUT(page_granule_repair, unwanted_stays, 60)
{
	char *other = granule_area(GRANULE_DEFAULT, GRANULE_SIZE, 0);

	ASSERT_NE(other, NULL);
	memset(other, 1, GRANULE_SIZE);
	ASSERT_EQ(madvise(other, GRANULE_SIZE, MADV_NOHUGEPAGE), 0);
	ASSERT_TRUE(granule_break(other, 3));
	ASSERT_TRUE(repair_passes(self->pagemap, self->area));
	EXPECT_EQ(granule_state(self->pagemap, other), GRANULE_BROKEN);
	EXPECT_EQ(present_in(self->pagemap, other), GRANULE_NR_PAGES);
}

/* CPU time of all kernel threads in seconds, or negative. */
static double kernel_threads_cpu(void)
{
	const long hz = sysconf(_SC_CLK_TCK);
	unsigned long flags, utime, stime;
	char path[300], line[512], *rest;
	unsigned long ticks = 0;
	struct dirent *entry;
	DIR *dir;

	dir = opendir("/proc");
	if (!dir)
		return -1;
	while ((entry = readdir(dir))) {
		if (*entry->d_name < '0' || *entry->d_name > '9')
			continue;
		snprintf(path, sizeof(path), "/proc/%s/stat", entry->d_name);
		if (read_file(path, line, sizeof(line)) <= 0)
			continue;
		rest = strrchr(line, ')');
		if (!rest || sscanf(rest + 2, "%*c %*d %*d %*d %*d %*d %lu %*u %*u %*u %*u %lu %lu",
				    &flags, &utime, &stime) != 3)
			continue;
		if (flags & 0x00200000)		/* PF_KTHREAD */
			ticks += utime + stime;
	}
	closedir(dir);
	return (double)ticks / hz;
}

#define ATTACKED		64UL
#define ATTACK_BURST		8192UL
#define ATTACK_PAUSE_US		(80 * 1000)
#define ATTACK_SECONDS		15.0
#define ATTACKER_UID		1000
#define SPLICES_A_PIPE		14UL
#define PIPE_PAGES_SOFT		"/proc/sys/fs/pipe-user-pages-soft"

/*
 * One page of each granule is pinned, so that all work done for it is in vain.
 * First a burst of broken granules, then two of them now and then.
 */
static void attack(int ready)
{
	char *area = granule_area(GRANULE_DEFAULT, ATTACKED * PMD_SIZE, 0);
	unsigned long i;
	int fds[2];

	if (!area || setgid(ATTACKER_UID) || setuid(ATTACKER_UID))
		_exit(1);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (i = 0; i < ATTACKED; i++) {
		char *granule = area + i * PMD_SIZE;
		struct iovec iov = { page_at(granule, 15), BASE_SIZE };

		memset(granule, 1, GRANULE_SIZE);
		granule_break(granule, 0);
		if ((i % SPLICES_A_PIPE == 0 && pipe(fds)) ||
		    vmsplice(fds[1], &iov, 1, 0) != (ssize_t)BASE_SIZE)
			_exit(1);
	}
	for (i = 0; i < ATTACK_BURST; i++)
		granule_break(area + i % ATTACKED * PMD_SIZE, 1 + i / ATTACKED % 8);
	if (write(ready, "", 1) != 1)
		_exit(1);
	for (i = 0;; i += 3) {
		usleep(ATTACK_PAUSE_US);
		granule_break(area + i % ATTACKED * PMD_SIZE, 1);
		granule_break(area + (i + 7) % ATTACKED * PMD_SIZE, 1);
	}
}

#define VICTIMS		3UL
#define VICTIM_LIMIT	2.0

/*
 * Assert that breaking granules in a loop buys nobody more of the kernel's time
 * than repair may take, nor keeps others from being repaired.
 */
TEST_F_TIMEOUT(page_granule_repair, attack, 120)
{
	unsigned long i, repaired = 0;
	double cpu, start, seconds;
	int ready[2], status;
	char *victims, c;
	pid_t pid;

	ASSERT_EQ(pipe(ready), 0);
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid)
		attack(ready[1]);
	close(ready[1]);
	if (read(ready[0], &c, 1) != 1) {
		waitpid(pid, NULL, 0);
		SKIP(return, "pages cannot be pinned: raise " PIPE_PAGES_SOFT);
	}
	/* What the attacker has from this process is shared, and so left alone. */
	victims = granule_area(GRANULE_DEFAULT, VICTIMS * GRANULE_SIZE, 0);
	ASSERT_NE(victims, NULL);
	memset(victims, 1, VICTIMS * GRANULE_SIZE);
	start = granule_now();
	cpu = kernel_threads_cpu();
	for (i = 0; i < VICTIMS; i++) {
		usleep(2000 * 1000);
		ASSERT_TRUE(granule_break(nth(victims, i), 3));
		seconds = granule_until_whole(self->pagemap, nth(victims, i),
					      2 * VICTIM_LIMIT);
		ksft_print_msg("victim %lu: repaired after %.2f s\n", i, seconds);
		repaired += seconds >= 0 && seconds <= VICTIM_LIMIT;
	}
	seconds = ATTACK_SECONDS - (granule_now() - start);
	if (seconds > 0)
		usleep(seconds * 1e6);
	cpu = kernel_threads_cpu() - cpu;
	seconds = granule_now() - start;
	EXPECT_EQ(waitpid(pid, &status, WNOHANG), 0);
	granule_kill_idle(pid);
	ksft_print_msg("kernel threads: %.2f s in %.1f s\n", cpu, seconds);
	/* 5 per cent, and half as much again for all that kernel threads do else. */
	EXPECT_LE(cpu, 0.075 * seconds);
	/* The machine may have had something else to do for one of them. */
	EXPECT_GE(repaired, VICTIMS - 1);
}

/* Reclaim, with a swap file. */
FIXTURE(page_granule_reclaim)
{
	struct granule_cg cg;
};

FIXTURE_SETUP(page_granule_reclaim)
{
	ASSERT_EQ(granule_set_enabled(true), 0);
	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, BASE_SIZE), 0);
	granule_thp_never();
	if (!granule_cg_create(&self->cg))
		SKIP(return, GRANULE_CG_REMEDY);
	if (!swap_to_file()) {
		swap_to_found();
		granule_cg_remove(&self->cg);
		SKIP(return, SWAP_FILE_REMEDY);
	}
}

FIXTURE_TEARDOWN(page_granule_reclaim)
{
	granule_thp_never();
	swap_to_found();
	granule_cg_remove(&self->cg);
}

/* The kind of memory, or 64 KiB mTHP where that is what to compare with. */
static void thp_for(enum granule_kind kind)
{
	if (kind == GRANULE_UNTAGGED)
		granule_thp_order(FOLIO_ORDER);
	else
		granule_thp_never();
}

static void touch_all(char *area, size_t len)
{
	size_t i;

	for (i = 0; i < len; i += BASE_SIZE)
		*(unsigned long *)(area + i) = i * 2654435761UL + 1;
}

#define SCAN_LEN	(80 * MB)
#define SCAN_MAX	"32M"

/* Pages that reclaim looks at while a child touches more than it may have. */
static long scanned_for(struct granule_cg *cg, enum granule_kind kind, size_t len)
{
	long scanned = granule_cg_read(cg->dir, "memory.stat", "pgscan");
	char *area;
	pid_t pid;

	thp_for(kind);
	pid = fork_into(cg);
	if (!pid) {
		area = granule_area(kind, len, 0);
		if (!area)
			_exit(1);
		touch_all(area, len);
		_exit(0);
	}
	if (!granule_child_ends(pid))
		return -1;
	return granule_cg_read(cg->dir, "memory.stat", "pgscan") - scanned;
}

/* Assert that reclaim looks at no more pages than with 64 KiB mTHP. */
TEST_F_TIMEOUT(page_granule_reclaim, scanned, 180)
{
	static const enum granule_kind kinds[] = { GRANULE_DEFAULT, GRANULE_CONTRACT };
	long mthp, scanned;
	size_t i;

	ASSERT_EQ(granule_cg_write(self->cg.dir, "memory.max", SCAN_MAX), 0);
	mthp = scanned_for(&self->cg, GRANULE_UNTAGGED, SCAN_LEN);
	ASSERT_GT(mthp, 0);
	for (i = 0; i < ARRAY_SIZE(kinds); i++) {
		scanned = scanned_for(&self->cg, kinds[i], SCAN_LEN);
		ksft_print_msg("scanned %ld pages, mTHP: %ld\n", scanned, mthp);
		ASSERT_GT(scanned, 0);
		EXPECT_LE(scanned, mthp + mthp / 10 + 4096);
	}
}

static long status_kb(pid_t pid, const char *format)
{
	char path[64], line[256];
	long kb = -1;
	FILE *fp;

	snprintf(path, sizeof(path), "/proc/%d/status", pid);
	fp = fopen(path, "r");
	while (fp && fgets(line, sizeof(line), fp) && sscanf(line, format, &kb) != 1)
		;
	if (fp)
		fclose(fp);
	return kb;
}

#define IDLE_MB		24UL
#define ACTIVE_MB	24UL
#define BOTH_MAX_MB	28UL
#define ACTIVE_ROUNDS	4

/*
 * In a cgroup for less than both: memory that is touched once and left idle, and
 * a neighbour's that is untagged and used all the time. How much of the idle is
 * swapped out in the end, in kB, and how often has the neighbour read from swap?
 */
static bool idle_and_active(struct granule_cg *cg, enum granule_kind kind,
			    long *idle_out, long *faults)
{
	struct rusage usage;
	pid_t idle, active;
	int fds[2], i;
	char *area;
	char c;

	thp_for(kind);
	if (pipe(fds))
		return false;
	idle = fork_into(cg);
	if (!idle) {
		area = granule_area(kind, IDLE_MB * MB, 0);
		if (!area)
			_exit(1);
		touch_all(area, IDLE_MB * MB);
		if (write(fds[1], "", 1) != 1)
			_exit(1);
		for (;;)
			pause();
	}
	close(fds[1]);
	if (read(fds[0], &c, 1) != 1)
		return false;
	close(fds[0]);
	granule_thp_never();
	active = fork_into(cg);
	if (!active) {
		area = granule_area(GRANULE_UNTAGGED, ACTIVE_MB * MB, 0);
		if (!area)
			_exit(1);
		for (i = 0; i < ACTIVE_ROUNDS; i++)
			touch_all(area, ACTIVE_MB * MB);
		_exit(0);
	}
	if (wait4(active, &i, 0, &usage) != active || i)
		return false;
	*faults = usage.ru_majflt;
	*idle_out = status_kb(idle, "VmSwap: %ld kB");
	granule_kill_idle(idle);
	return *idle_out >= 0;
}

/* Assert that idle tagged memory goes before a neighbour's that is in use. */
TEST_F_TIMEOUT(page_granule_reclaim, idle_first, 180)
{
	static const enum granule_kind kinds[] = { GRANULE_DEFAULT, GRANULE_CONTRACT };
	const long excess = (IDLE_MB + ACTIVE_MB - BOTH_MAX_MB) * MB / 1024;
	long idle, faults, mthp_idle, mthp_faults, least;
	char max[32];
	size_t i;

	snprintf(max, sizeof(max), "%luM", BOTH_MAX_MB);
	ASSERT_EQ(granule_cg_write(self->cg.dir, "memory.max", max), 0);
	ASSERT_TRUE(idle_and_active(&self->cg, GRANULE_UNTAGGED, &mthp_idle, &mthp_faults));
	/* Reclaim may take more than it has to: no measure, of either kind. */
	least = mthp_idle < excess ? mthp_idle : excess;
	for (i = 0; i < ARRAY_SIZE(kinds); i++) {
		ASSERT_TRUE(idle_and_active(&self->cg, kinds[i], &idle, &faults));
		ksft_print_msg("idle: %ld kB out; active: %ld faults; mTHP: %ld kB, %ld\n",
			       idle, faults, mthp_idle, mthp_faults);
		EXPECT_GE(idle, least - least / 10 - 1024);
		EXPECT_LE(faults, mthp_faults + mthp_faults / 10 + 512);
	}
}

FIXTURE(page_granule_pageout)
{
	int pagemap;
	char *area;
};

FIXTURE_VARIANT(page_granule_pageout)
{
	enum granule_kind kind;
	int flags;
};

FIXTURE_VARIANT_ADD(page_granule_pageout, mthp)
{
	.kind = GRANULE_UNTAGGED,
};

FIXTURE_VARIANT_ADD(page_granule_pageout, default_tagged)
{
	.kind = GRANULE_DEFAULT,
};

FIXTURE_VARIANT_ADD(page_granule_pageout, contract)
{
	.kind = GRANULE_CONTRACT,
};

FIXTURE_VARIANT_ADD(page_granule_pageout, mthp_shared)
{
	.kind = GRANULE_UNTAGGED,
	.flags = MAP_SHARED,
};

FIXTURE_VARIANT_ADD(page_granule_pageout, default_tagged_shared)
{
	.kind = GRANULE_DEFAULT,
	.flags = MAP_SHARED,
};

FIXTURE_VARIANT_ADD(page_granule_pageout, contract_shared)
{
	.kind = GRANULE_CONTRACT,
	.flags = MAP_SHARED,
};

#define PAGEOUT_LEN	(4 * MB)

FIXTURE_SETUP(page_granule_pageout)
{
	struct thp_settings settings;

	ASSERT_EQ(granule_set_enabled(true), 0);
	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, BASE_SIZE), 0);
	if (!swap_to_file()) {
		swap_to_found();
		SKIP(return, SWAP_FILE_REMEDY);
	}
	thp_for(variant->kind);
	if (variant->kind == GRANULE_UNTAGGED) {
		thp_read_settings(&settings);
		settings.shmem_hugepages[FOLIO_ORDER].enabled = SHMEM_ALWAYS;
		thp_write_settings(&settings);
	}
	self->pagemap = granule_open_pagemap();
	self->area = granule_area(variant->kind, PAGEOUT_LEN, variant->flags);
	ASSERT_NE(self->area, NULL);
}

FIXTURE_TEARDOWN(page_granule_pageout)
{
	EXPECT_TRUE(granule_invariants_hold());
	munmap(self->area, PAGEOUT_LEN);
	thp_restore_settings();
	granule_thp_never();
	swap_to_found();
}

/* Of shared memory as well, the page table does not tell what is out; smaps does. */
static unsigned long swapped_kb(char *area)
{
	char *text = granule_smaps_text(area, PAGEOUT_LEN), *line;
	unsigned long kb = 0;

	line = text ? strstr(text, "\nSwap:") : NULL;
	if (line)
		sscanf(line, "\nSwap: %lu kB", &kb);
	free(text);
	return kb;
}

/* Assert that MADV_PAGEOUT does what it says, and that what it breaks is counted. */
TEST_F_TIMEOUT(page_granule_pageout, no_slots_in_a_row, 60)
{
	unsigned long split = granule_vmstat("granule_split"), out = 0, i;

	granule_fill(self->area, PAGEOUT_LEN, 1);
	if (variant->kind != GRANULE_UNTAGGED)
		ASSERT_EQ(granule_count(self->pagemap, self->area, PAGEOUT_LEN, GRANULE_WHOLE),
			  PAGEOUT_LEN / GRANULE_SIZE);
	for (i = 0; i < 20 && out < PAGEOUT_LEN / 1024; i++) {
		ASSERT_EQ(madvise(self->area, PAGEOUT_LEN, MADV_PAGEOUT), 0);
		usleep(20 * 1000);
		out = swapped_kb(self->area);
	}
	EXPECT_GE(out, PAGEOUT_LEN / 1024 * 95 / 100);
	if (variant->kind != GRANULE_UNTAGGED && !variant->flags)
		EXPECT_GT(granule_vmstat("granule_split"), split);
	EXPECT_TRUE(granule_check(self->area, PAGEOUT_LEN, 1));
}

/* The shrinkers. */
FIXTURE(page_granule_shrink)
{
	struct granule_cg cg;
};

FIXTURE_SETUP(page_granule_shrink)
{
	struct thp_settings settings;

	ASSERT_EQ(granule_set_enabled(true), 0);
	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, BASE_SIZE), 0);
	if (!granule_cg_create(&self->cg))
		SKIP(return, GRANULE_CG_REMEDY);
	granule_thp_never();
	thp_read_settings(&settings);
	settings.thp_enabled = THP_ALWAYS;
	settings.hugepages[9].enabled = THP_INHERIT;
	/* What has more zeroes than this is underused. */
	settings.khugepaged.max_ptes_none = 400;
	thp_write_settings(&settings);
}

FIXTURE_TEARDOWN(page_granule_shrink)
{
	thp_restore_settings();
	granule_thp_never();
	granule_cg_remove(&self->cg);
}

#define SHRINK_LEN	(32 * MB)

enum shrink_way { SHRINK_UNDERUSED, SHRINK_GIVEN_BACK };

/*
 * Huge pages of which one byte is used, or of which one granule is left, and every
 * second page of the others. What is charged for that when the shrinkers have run,
 * in kB? @before is what was.
 */
static long left_after_shrinking(struct granule_cg *cg, enum granule_kind kind,
				 enum shrink_way way, long *before)
{
	int ready[2], go[2], i;
	long left, now;
	char *area, *p;
	pid_t pid;
	char c;

	if (pipe(ready) || pipe(go))
		return -1;
	pid = fork_into(cg);
	if (!pid) {
		/* Of a process that has the default, as services do. */
		close(go[1]);
		if (kind == GRANULE_DEFAULT && granule_set(PR_GRANULE_MMAP, GRANULE_SIZE))
			_exit(1);
		area = mmap(NULL, SHRINK_LEN + PMD_SIZE, PROT_RW, ANON_FLAGS, -1, 0);
		if (area == MAP_FAILED)
			_exit(1);
		area = (char *)(((unsigned long)area + PMD_SIZE - 1) & ~(PMD_SIZE - 1));
		if (way == SHRINK_UNDERUSED) {
			for (p = area; p < area + SHRINK_LEN; p += PMD_SIZE)
				*p = 1;
		} else {
			memset(area, 1, SHRINK_LEN);
		}
		if (write(ready[1], "", 1) != 1 || read(go[0], &c, 1) != 1)
			_exit(1);
		if (way == SHRINK_GIVEN_BACK) {
			for (p = area; p < area + SHRINK_LEN; p += 2 * BASE_SIZE) {
				if ((p - area) % PMD_SIZE >= GRANULE_SIZE)
					give_back(p, 1, 1);
			}
		}
		if (write(ready[1], "", 1) != 1 || read(go[0], &c, 1) != 1)
			_exit(1);
		_exit(0);
	}
	close(ready[1]);
	*before = -1;
	if (read(ready[0], &c, 1) == 1)
		*before = granule_cg_read(cg->dir, "memory.current", NULL) / 1024;
	if (write(go[1], "", 1) != 1 || read(ready[0], &c, 1) != 1)
		return -1;
	/* Until nothing comes of it: what is in use at that moment is left out. */
	left = LONG_MAX;
	for (i = 0; i < 4; i++) {
		granule_write(DROP_CACHES, "2");
		usleep(100 * 1000);
		now = granule_cg_read(cg->dir, "memory.current", NULL) / 1024;
		if (now < left)
			i = 0;
		left = now;
	}
	close(go[1]);
	close(go[0]);
	close(ready[0]);
	granule_kill_idle(pid);
	return left;
}

static void shrink(struct __test_metadata *_metadata, struct granule_cg *cg,
		   enum shrink_way way)
{
	const long all = SHRINK_LEN / 1024;
	long untagged, tagged, before;

	untagged = left_after_shrinking(cg, GRANULE_UNTAGGED, way, &before);
	ASSERT_GE(untagged, 0);
	if (before < all)
		SKIP(return, "no 2 MiB huge pages: free memory, and compact it");
	if (untagged > all * 3 / 4)
		SKIP(return, "no shrinker: write 1 to " THP "shrink_underused");
	tagged = left_after_shrinking(cg, GRANULE_DEFAULT, way, &before);
	ksft_print_msg("of %ld kB are left %ld kB, untagged: %ld kB\n", before, tagged,
		       untagged);
	ASSERT_GE(tagged, 0);
	/* A granule each for code, stack and heap of the process, and some slack. */
	EXPECT_LE(tagged, untagged + untagged / 10 + 1024);
}

/* Assert that what is underused of a huge page comes back. */
TEST_F_TIMEOUT(page_granule_shrink, underused, 60)
{
	shrink(_metadata, &self->cg, SHRINK_UNDERUSED);
}

/* Assert that what is given back of a huge page comes back. */
TEST_F_TIMEOUT(page_granule_shrink, given_back, 60)
{
	shrink(_metadata, &self->cg, SHRINK_GIVEN_BACK);
}

/* zswap. */
#define ZSWAP_LEN	(8 * MB)

FIXTURE(page_granule_zswap)
{
	struct granule_cg cg;
};

FIXTURE_VARIANT(page_granule_zswap)
{
	bool file;
};

/* Neither slots in a row, nor a device that is as fast as memory. */
FIXTURE_VARIANT_ADD(page_granule_zswap, file)
{
	.file = true,
};

FIXTURE_VARIANT_ADD(page_granule_zswap, device)
{
};

FIXTURE_SETUP(page_granule_zswap)
{
	ASSERT_EQ(granule_set_enabled(true), 0);
	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, BASE_SIZE), 0);
	granule_thp_never();
	if (!granule_cg_create(&self->cg))
		SKIP(return, GRANULE_CG_REMEDY);
	if (variant->file && !swap_to_file()) {
		swap_to_found();
		granule_cg_remove(&self->cg);
		SKIP(return, SWAP_FILE_REMEDY);
	}
	if (granule_meminfo_kb("SwapFree") < 64 << 10) {
		granule_cg_remove(&self->cg);
		SKIP(return, SWAP_REMEDY);
	}
	if (granule_write(ZSWAP "enabled", "Y") ||
	    granule_write(ZSWAP "max_pool_percent", "50")) {
		swap_to_found();
		granule_cg_remove(&self->cg);
		SKIP(return, "no zswap: build the kernel with CONFIG_ZSWAP=y");
	}
}

FIXTURE_TEARDOWN(page_granule_zswap)
{
	granule_write(ZSWAP "enabled", "N");
	swap_to_found();
	granule_cg_remove(&self->cg);
}

/* Half of each page compresses. */
static void fill_half(char *area)
{
	unsigned int i, seed = 1, *word = (unsigned int *)area;

	for (i = 0; i < ZSWAP_LEN / sizeof(*word); i++) {
		seed = seed * 1103515245 + 12345;
		word[i] = i & 1 ? seed : 0x41414141;
	}
}

/* What is charged when memory has been out and was read again, in kB. */
static long charged_after_reading(struct granule_cg *cg, enum granule_kind kind)
{
	int status, i;
	pid_t pid;

	pid = fork_into(cg);
	if (!pid) {
		char *area = granule_area(kind, ZSWAP_LEN, 0);
		long out = 0;

		if (!area)
			_exit(1);
		fill_half(area);
		for (i = 0; i < 20 && out < (long)(ZSWAP_LEN / 1024) * 9 / 10; i++) {
			madvise(area, ZSWAP_LEN, MADV_PAGEOUT);
			out = status_kb(getpid(), "VmSwap: %ld kB");
		}
		if (i == 20)
			_exit(3);
		force_read_pages(area, ZSWAP_LEN / BASE_SIZE, BASE_SIZE);
		/* Frees of swap slots are batched. */
		usleep(500 * 1000);
		/* By exit status: in steps of 256 KiB, up to 47 MiB. */
		_exit(64 + granule_cg_read(cg->dir, "memory.current", NULL) / (256 * 1024));
	}
	if (waitpid(pid, &status, 0) != pid || !WIFEXITED(status) || WEXITSTATUS(status) < 64)
		return -1;
	return (WEXITSTATUS(status) - 64) * 256L;
}

/* Assert that what was read back is kept once, not twice. */
TEST_F_TIMEOUT(page_granule_zswap, one_copy, 60)
{
	long untagged, tagged, contract;

	untagged = charged_after_reading(&self->cg, GRANULE_UNTAGGED);
	tagged = charged_after_reading(&self->cg, GRANULE_DEFAULT);
	contract = charged_after_reading(&self->cg, GRANULE_CONTRACT);
	ksft_print_msg("charged: untagged %ld kB, default %ld kB, contract %ld kB\n",
		       untagged, tagged, contract);
	ASSERT_GT(untagged, 0);
	ASSERT_GT(tagged, 0);
	ASSERT_GT(contract, 0);
	EXPECT_LE(tagged, untagged + 2048);
	EXPECT_LE(contract, untagged + 2048);
}

/* No folio to be had, of any order but 0. */
FIXTURE(page_granule_scarce)
{
	struct granule_fail fail;
	int pagemap;
	char *area;
};

FIXTURE_VARIANT(page_granule_scarce)
{
	enum granule_kind kind;
};

FIXTURE_VARIANT_ADD(page_granule_scarce, default_tagged)
{
	.kind = GRANULE_DEFAULT,
};

FIXTURE_VARIANT_ADD(page_granule_scarce, contract)
{
	.kind = GRANULE_CONTRACT,
};

#define SCARCE_LEN	(NR_GRANULES * GRANULE_SIZE)

FIXTURE_SETUP(page_granule_scarce)
{
	ASSERT_EQ(granule_set_enabled(true), 0);
	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, BASE_SIZE), 0);
	granule_thp_never();
	self->pagemap = granule_open_pagemap();
	self->area = granule_area(variant->kind, SCARCE_LEN, 0);
	ASSERT_NE(self->area, NULL);
	if (!granule_fail_prepare(&self->fail))
		SKIP(return, GRANULE_FAIL_REMEDY);
	granule_fail_min_order(1);
}

FIXTURE_TEARDOWN(page_granule_scarce)
{
	granule_fail_restore(&self->fail);
	granule_repair(false);
	EXPECT_TRUE(granule_invariants_hold());
}

/* Assert that a fault populates single pages, and that they become a run later. */
TEST_F(page_granule_scarce, fault)
{
	unsigned long i;

	granule_fail_order4(true);
	for (i = 0; i < NR_GRANULES; i++)
		*byte_of(self->area, i) = 1;
	granule_fail_order4(false);
	EXPECT_EQ(granule_present_pages(self->pagemap, self->area, SCARCE_LEN),
		  NR_GRANULES * GRANULE_NR_PAGES);
	EXPECT_EQ(granule_count(self->pagemap, self->area, SCARCE_LEN, GRANULE_WHOLE), 0);
	granule_repair(true);
	for (i = 0; i < NR_GRANULES; i++)
		EXPECT_GE(granule_until_whole(self->pagemap, nth(self->area, i), 10), 0);
}

static unsigned long area_on(char *area, int node)
{
	int status[NR_GRANULES * GRANULE_NR_PAGES];
	unsigned long i, here = 0;

	if (granule_move_pages(area, ARRAY_SIZE(status), NULL, status))
		return ULONG_MAX;
	for (i = 0; i < ARRAY_SIZE(status); i++)
		here += status[i] == node;
	return here;
}

/* Populate the area on node 0, in whole granules. */
static bool populate_on_node0(char *area, int pagemap)
{
	if (bind_to(0))
		return false;
	granule_fill(area, SCARCE_LEN, 1);
	return !bind_to(-1) &&
	       granule_count(pagemap, area, SCARCE_LEN, GRANULE_WHOLE) == NR_GRANULES &&
	       area_on(area, 0) == SCARCE_LEN / BASE_SIZE;
}

/* Assert that all that is asked to move does, in smaller pieces if need be. */
TEST_F(page_granule_scarce, move_pages)
{
	int nodes[NR_GRANULES * GRANULE_NR_PAGES], status[ARRAY_SIZE(nodes)];
	unsigned long i;
	long ret;

	if (!granule_two_nodes())
		SKIP(return, NUMA_REMEDY);
	ASSERT_TRUE(populate_on_node0(self->area, self->pagemap));
	for (i = 0; i < ARRAY_SIZE(nodes); i++)
		nodes[i] = 1;
	granule_fail_order4(true);
	ret = granule_move_pages(self->area, ARRAY_SIZE(nodes), nodes, status);
	granule_fail_order4(false);
	EXPECT_EQ(ret, 0);
	EXPECT_EQ(area_on(self->area, 1), ARRAY_SIZE(nodes));
	EXPECT_TRUE(granule_check(self->area, SCARCE_LEN, 1));
	EXPECT_EQ(granule_present_pages(self->pagemap, self->area, SCARCE_LEN),
		  ARRAY_SIZE(nodes));
}

TEST_F(page_granule_scarce, mbind)
{
	unsigned long mask = 1UL << 1;
	long ret;

	if (!granule_two_nodes())
		SKIP(return, NUMA_REMEDY);
	ASSERT_TRUE(populate_on_node0(self->area, self->pagemap));
	granule_fail_order4(true);
	ret = syscall(__NR_mbind, self->area, SCARCE_LEN, MPOL_BIND, &mask,
		      8 * sizeof(mask), MPOL_MF_MOVE | MPOL_MF_STRICT);
	granule_fail_order4(false);
	EXPECT_EQ(ret, 0);
	EXPECT_EQ(area_on(self->area, 1), SCARCE_LEN / BASE_SIZE);
	EXPECT_TRUE(granule_check(self->area, SCARCE_LEN, 1));
}

/* At the limit of a cgroup, with nothing to reclaim. */
FIXTURE(page_granule_limit)
{
	struct granule_cg cg;
};

FIXTURE_SETUP(page_granule_limit)
{
	ASSERT_EQ(granule_set_enabled(true), 0);
	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, BASE_SIZE), 0);
	granule_thp_never();
	if (!granule_cg_create(&self->cg))
		SKIP(return, GRANULE_CG_REMEDY);
	ASSERT_EQ(granule_cg_write(self->cg.dir, "memory.max", "8M"), 0);
	granule_cg_write(self->cg.dir, "memory.swap.max", "0");
}

FIXTURE_TEARDOWN(page_granule_limit)
{
	granule_cg_remove(&self->cg);
}

#define ROOM_TOUCHES	(MB / BASE_SIZE)

static int set_limit(const struct granule_cg *cg, const char *name, long limit)
{
	char text[32];

	snprintf(text, sizeof(text), "%ld", limit);
	return granule_cg_write(cg->dir, name, text);
}

static int set_max(const struct granule_cg *cg, long max)
{
	return set_limit(cg, "memory.max", max);
}

/*
 * Leave room for @room pages below the limit. A CPU charges 64 pages in
 * advance, and a fault that takes one of those needs no room. Wait until it has
 * just charged them. A limit below the usage takes them back, and with less than
 * 64 left none are charged in advance.
 */
static bool leave_room(const struct granule_cg *cg, char *area, unsigned long room)
{
	long current = 0, last = LONG_MAX;
	unsigned long i;

	for (i = 0; i < ROOM_TOUCHES; i++) {
		current = granule_cg_read(cg->dir, "memory.current", NULL);
		if (current - last >= 60 * (long)BASE_SIZE)
			break;
		last = current;
		area[i * BASE_SIZE] = 1;
	}
	if (i == ROOM_TOUCHES || set_max(cg, current - 32 * BASE_SIZE))
		return false;
	last = granule_cg_read(cg->dir, "memory.current", NULL);
	return last < current && !set_max(cg, last + room * BASE_SIZE);
}

/* Assert that a fault takes one page where there is no room for 16. */
TEST_F_TIMEOUT(page_granule_limit, room_for_few, 60)
{
	static const unsigned long rooms[] = { 12, 8, 4 };
	size_t i;

	for (i = 0; i < ARRAY_SIZE(rooms); i++) {
		pid_t pid = fork_into(&self->cg);
		int status;

		if (!pid) {
			char *area = granule_area(GRANULE_DEFAULT, 2 * GRANULE_SIZE, 0);
			char *rest = granule_area(GRANULE_UNTAGGED, 8 * MB, 0);
			int pagemap = granule_open_pagemap();
			char *granule = nth(area, 1);
			cpu_set_t set;
			long current;

			/* Pages charged in advance are those of one CPU. */
			CPU_ZERO(&set);
			CPU_SET(sched_getcpu(), &set);
			if (!area || !rest || pagemap < 0 ||
			    sched_setaffinity(0, sizeof(set), &set))
				_exit(1);
			*area = 1;	/* the page table */
			if (!leave_room(&self->cg, rest, rooms[i]))
				_exit(3);
			*page_at(granule, 5) = 1;
			EXPECT_EQ(present_in(pagemap, granule), 1);
			EXPECT_TRUE(pagemap_is_populated(pagemap, page_at(granule, 5)));
			/* Neither is there room to fill the rest. */
			*page_at(granule, 7) = 1;
			EXPECT_EQ(present_in(pagemap, granule), 2);
			/* What is charged above this is reclaimed for later. */
			current = granule_cg_read(self->cg.dir, "memory.current", NULL);
			if (set_limit(&self->cg, "memory.high", current + rooms[i] * BASE_SIZE) ||
			    set_max(&self->cg, 8 * MB))
				_exit(4);
			*page_at(granule, 9) = 1;
			EXPECT_EQ(present_in(pagemap, granule), 3);
			_exit(0);
		}
		ASSERT_EQ(waitpid(pid, &status, 0), pid);
		EXPECT_TRUE(WIFEXITED(status)) TH_LOG("killed by signal %d", WTERMSIG(status));
		EXPECT_EQ(WEXITSTATUS(status), 0);
	}
	EXPECT_EQ(granule_cg_read(self->cg.dir, "memory.events", "oom_kill"), 0);
}

#define THRASH_LEN	(12 * MB)
#define THRASH_TOUCHES	8000

/* How much a child reads from swap that touches pages at random of more than it may have. */
static long read_from_swap(struct granule_cg *cg, enum granule_kind kind, int flags)
{
	long before = granule_cg_read(cg->dir, "memory.stat", "pswpin");
	unsigned int i, seed = 1;
	pid_t pid = fork_into(cg);

	if (!pid) {
		char *area = granule_area(kind, THRASH_LEN, flags);

		if (!area)
			_exit(1);
		touch_all(area, THRASH_LEN);
		for (i = 0; i < THRASH_TOUCHES; i++) {
			seed = seed * 1103515245 + 12345;
			area[(seed >> 8) % (THRASH_LEN / BASE_SIZE) * BASE_SIZE] ^= 1;
		}
		_exit(0);
	}
	if (!granule_child_ends(pid))
		return -1;
	return granule_cg_read(cg->dir, "memory.stat", "pswpin") - before;
}

/* Assert that a granule is no reason to read, and write, more where memory is short. */
TEST_F_TIMEOUT(page_granule_limit, no_more_from_swap, 120)
{
	static const int flags[] = { 0, MAP_SHARED };
	long base, granule;
	size_t i;

	if (granule_cg_write(self->cg.dir, "memory.swap.max", "max"))
		SKIP(return, "no swap: set CONFIG_SWAP=y, and swap on");
	for (i = 0; i < ARRAY_SIZE(flags); i++) {
		base = read_from_swap(&self->cg, GRANULE_UNTAGGED, flags[i]);
		if (!base)
			SKIP(return, "nothing is swapped out: swap on");
		granule = read_from_swap(&self->cg, GRANULE_DEFAULT, flags[i]);
		ksft_print_msg("from swap, %s: %ld pages, untagged: %ld\n",
			       i ? "shared" : "private", granule, base);
		EXPECT_GT(base, 0);
		EXPECT_LE(granule, base + base / 5);
	}
}

#define COPY_LEN	(6 * MB)

/* What is swapped out when a child writes a page of each granule that it shares. */
static long swapped_for_copies(struct granule_cg *cg, enum granule_kind kind)
{
	long before = granule_cg_read(cg->dir, "memory.stat", "pswpout");
	pid_t pid = fork_into(cg);

	if (!pid) {
		char *area = granule_area(kind, COPY_LEN, 0);
		size_t i;

		if (!area)
			_exit(1);
		touch_all(area, COPY_LEN);
		pid = fork();
		if (!pid) {
			for (i = 0; i < COPY_LEN / GRANULE_SIZE; i++)
				*page_at(nth(area, i), 3) = 2;
			_exit(0);
		}
		_exit(pid < 0 || !granule_child_ends(pid));
	}
	if (!granule_child_ends(pid))
		return -1;
	return granule_cg_read(cg->dir, "memory.stat", "pswpout") - before;
}

/* Assert that nobody is swapped out for the 15 pages that are copied beside one. */
TEST_F_TIMEOUT(page_granule_limit, no_more_for_copies, 60)
{
	long base, granule;

	if (granule_cg_write(self->cg.dir, "memory.swap.max", "max"))
		SKIP(return, "no swap: set CONFIG_SWAP=y, and swap on");
	base = swapped_for_copies(&self->cg, GRANULE_UNTAGGED);
	granule = swapped_for_copies(&self->cg, GRANULE_DEFAULT);
	ksft_print_msg("swapped out for copies: %ld pages, untagged: %ld\n", granule, base);
	EXPECT_GE(base, 0);
	EXPECT_GE(granule, 0);
	EXPECT_LE(granule, base + 64);
}

#define TOUCH_LEN	(16 * MB)

/* What is swapped out when a page of each granule is touched at the limit. */
static long swapped_for_touches(struct granule_cg *cg, enum granule_kind kind)
{
	long before = granule_cg_read(cg->dir, "memory.stat", "pswpout");
	pid_t pid = fork_into(cg);

	if (!pid) {
		char *rest = granule_area(GRANULE_UNTAGGED, 8 * MB, 0);
		char *area = granule_area(kind, TOUCH_LEN, 0);
		size_t i;

		if (!rest || !area)
			_exit(1);
		touch_all(rest, 8 * MB);
		for (i = 0; i < TOUCH_LEN / GRANULE_SIZE; i++)
			*page_at(nth(area, i), 3) = 1;
		_exit(0);
	}
	if (!granule_child_ends(pid))
		return -1;
	return granule_cg_read(cg->dir, "memory.stat", "pswpout") - before;
}

/* Assert that what reclaim leaves when it makes room for one page is not used for 15. */
TEST_F_TIMEOUT(page_granule_limit, no_more_for_touches, 60)
{
	long base, granule;

	if (granule_cg_write(self->cg.dir, "memory.swap.max", "max"))
		SKIP(return, "no swap: set CONFIG_SWAP=y, and swap on");
	base = swapped_for_touches(&self->cg, GRANULE_UNTAGGED);
	if (!base)
		SKIP(return, "nothing is swapped out: swap on");
	granule = swapped_for_touches(&self->cg, GRANULE_DEFAULT);
	ksft_print_msg("swapped out for touches: %ld pages, untagged: %ld\n", granule, base);
	EXPECT_GT(base, 0);
	EXPECT_GE(granule, 0);
	EXPECT_LE(granule, base + 2 * TOUCH_LEN / GRANULE_SIZE);
}

#define CACHE_LEN	(36 * MB)
#define CACHE_MAX	"40M"

/* Read so much of the device that is swapped to, which is cached, and never written. */
static bool fill_cache(size_t len)
{
	static char buffer[64 * 1024];
	char line[256], path[128];
	FILE *swaps = fopen("/proc/swaps", "r");
	bool found = false;
	int fd;

	while (swaps && !found && fgets(line, sizeof(line), swaps))
		found = sscanf(line, "%127s partition", path) == 1 && *path == '/';
	if (swaps)
		fclose(swaps);
	fd = found ? open(path, O_RDONLY) : -1;
	if (fd < 0)
		return false;
	while (len && read(fd, buffer, sizeof(buffer)) == sizeof(buffer))
		len -= sizeof(buffer);
	close(fd);
	return !len;
}

/*
 * Assert that old page cache makes room for granules, as it does for single pages, and
 * that nobody is swapped out for them.
 */
TEST_F_TIMEOUT(page_granule_limit, cache_makes_room, 60)
{
	long swapped;
	pid_t pid;
	int status;

	granule_cg_write(self->cg.dir, "memory.swap.max", "max");

	ASSERT_EQ(granule_cg_write(self->cg.dir, "memory.max", CACHE_MAX), 0);
	pid = fork_into(&self->cg);
	if (!pid) {
		char *area = granule_area(GRANULE_DEFAULT, 16 * MB, 0);
		int pagemap = granule_open_pagemap();
		size_t whole;

		if (!area || pagemap < 0)
			_exit(1);
		if (!fill_cache(CACHE_LEN))
			_exit(KSFT_SKIP);
		/* Statistics of memory cgroups are brought up to date every two seconds. */
		sleep(3);
		touch_all(area, 16 * MB);
		whole = granule_count(pagemap, area, 16 * MB, GRANULE_WHOLE);
		ksft_print_msg("beside page cache: %zu granules of %zu are whole\n", whole,
			       16 * MB / GRANULE_SIZE);
		_exit(whole < 16 * MB / GRANULE_SIZE * 9 / 10);
	}
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	if (WIFEXITED(status) && WEXITSTATUS(status) == KSFT_SKIP)
		SKIP(return, "no device that is swapped to: swap on");
	EXPECT_EQ(status, 0);
	EXPECT_EQ(granule_cg_read(self->cg.dir, "memory.events", "oom_kill"), 0);
	swapped = granule_cg_read(self->cg.dir, "memory.stat", "pswpout");
	ksft_print_msg("beside page cache: %ld pages swapped out\n", swapped);
	EXPECT_LE(swapped, 16);
}

/* Shared memory in folios larger than a granule. */
FIXTURE(page_granule_large_shared)
{
	int pagemap;
};

FIXTURE_VARIANT(page_granule_large_shared)
{
	enum granule_kind kind;
};

FIXTURE_VARIANT_ADD(page_granule_large_shared, default_tagged)
{
	.kind = GRANULE_DEFAULT,
};

FIXTURE_VARIANT_ADD(page_granule_large_shared, contract)
{
	.kind = GRANULE_CONTRACT,
};

FIXTURE_SETUP(page_granule_large_shared)
{
	struct thp_settings settings;

	ASSERT_EQ(granule_set_enabled(true), 0);
	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, BASE_SIZE), 0);
	granule_thp_never();
	if (!(thp_shmem_supported_orders() & (1UL << 5)))
		SKIP(return, "no shmem folios of 128 KiB: set CONFIG_TRANSPARENT_HUGEPAGE=y");
	thp_read_settings(&settings);
	settings.shmem_hugepages[5].enabled = SHMEM_ALWAYS;
	thp_write_settings(&settings);
	self->pagemap = granule_open_pagemap();
}

FIXTURE_TEARDOWN(page_granule_large_shared)
{
	EXPECT_TRUE(granule_invariants_hold());
	thp_restore_settings();
	granule_thp_never();
}

/* Assert that one granule of a folio that has two is populated as a whole. */
TEST_F(page_granule_large_shared, half_of_a_folio)
{
	unsigned long first;
	char *area;

	area = granule_area(variant->kind, 8 * GRANULE_SIZE, MAP_SHARED);
	ASSERT_NE(area, NULL);
	/* The first two are the two halves of a folio. */
	area[0] = 1;
	area[GRANULE_SIZE] = 1;
	for (first = 0; first < 2; first++) {
		char *granule = nth(area, first);

		ASSERT_EQ(present_in(self->pagemap, granule), GRANULE_NR_PAGES);
		ASSERT_EQ(madvise(granule, GRANULE_SIZE, MADV_DONTNEED), 0);
		ASSERT_EQ(present_in(self->pagemap, granule), 0);
		*page_at(granule, 5) = 1;
		EXPECT_EQ(present_in(self->pagemap, granule), GRANULE_NR_PAGES);
	}
}

int main(int argc, char **argv)
{
	granule_require();
	granule_save_settings();
	granule_save_setting(COMPACT_UNEVICTABLE);
	granule_save_setting(ZSWAP "enabled");
	granule_save_setting(ZSWAP "max_pool_percent");
	create_swap_file();
	return test_harness_run(argc, argv);
}
