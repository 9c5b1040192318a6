// SPDX-License-Identifier: GPL-2.0
/*
 * Page granule: what granules cost others when memory is short. Reclaim,
 * pageout, the shrinkers, zswap, and what a fault may do to get a folio.
 *
 * A granule is put back, never defended. So each test has a twin to compare
 * with: untagged memory, or 64 KiB mTHP, to which it does the same.
 */
#define _GNU_SOURCE
#include "kselftest_harness.h"
#include <asm-generic/mman.h> /* Force the import of the tools version. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/loop.h>
#include <linux/mempolicy.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/swap.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "hugepage_settings.h"
#include "vm_util.h"
#include "page_granule_mem.h"
#include "page_granule_util.h"

#define ZSWAP		"/sys/module/zswap/parameters/"
#define THP		"/sys/kernel/mm/transparent_hugepage/"

#define SWAP_FILE_REMEDY \
	"no swap file: set CONFIG_BLK_DEV_LOOP=y and CONFIG_EXT4_FS=y, have mke2fs in PATH"

/*
 * The swap space that the program finds, and a file of its own. A file has no
 * 16 slots in a row, so that swap-out splits a folio.
 */
#define MAX_SWAPS	8
#define SWAP_FILE_MB	96U

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

/* Returns false where there can be no such file, and has changed nothing then. */
static bool swap_to_file(void)
{
	unsigned int i;

	if (!swap_file.usable || (swapon(swap_file.path, 0) && errno != EBUSY))
		return false;
	for (i = 0; i < nr_swaps; i++) {
		if (swapoff(swaps[i].path) && errno != EINVAL) {
			swap_to_found();
			return false;
		}
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
	for (i = 0; done && i < megabytes * MIB; i += sizeof(zeroes))
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
		granule_thp_order(GRANULE_ORDER);
	else
		granule_thp_never();
}

#define SCAN_LEN	(80 * MIB)
#define SCAN_MAX	"32M"

/* Pages that reclaim looks at while a child touches more than it may have. */
static long scanned_for(struct granule_cg *cg, enum granule_kind kind, size_t len)
{
	long scanned = granule_cg_read(cg->dir, "memory.stat", "pgscan");
	char *area;
	pid_t pid;

	thp_for(kind);
	pid = granule_cg_fork(cg);
	if (!pid) {
		area = granule_area(kind, len, 0);
		if (!area)
			_exit(1);
		granule_touch(area, len);
		_exit(granule_invariants_hold() ? 0 : 1);
	}
	if (!granule_child_ends(pid))
		return -1;
	return granule_cg_read(cg->dir, "memory.stat", "pgscan") - scanned;
}

/* Assert that reclaim scans no more pages than with 64 KiB mTHP. */
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

#define IDLE_MB		24UL
#define ACTIVE_MB	24UL
#define BOTH_MAX_MB	28UL
#define ACTIVE_ROUNDS	4

/*
 * In a cgroup for less than both: memory that is touched once and left idle,
 * and a neighbour's that is untagged and used all the time. How much of the
 * idle is swapped out in the end, in kB, and how often has the neighbour read
 * from swap?
 */
static bool idle_and_active(struct granule_cg *cg, enum granule_kind kind,
			    long *idle_out, long *faults)
{
	struct rusage usage;
	pid_t idle, active;
	int fds[2], i;
	char *area;
	bool hold;
	char c;

	thp_for(kind);
	if (pipe(fds))
		return false;
	idle = granule_cg_fork(cg);
	if (!idle) {
		area = granule_area(kind, IDLE_MB * MIB, 0);
		if (!area)
			_exit(1);
		granule_touch(area, IDLE_MB * MIB);
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
	active = granule_cg_fork(cg);
	if (!active) {
		area = granule_area(GRANULE_UNTAGGED, ACTIVE_MB * MIB, 0);
		if (!area)
			_exit(1);
		for (i = 0; i < ACTIVE_ROUNDS; i++)
			granule_touch(area, ACTIVE_MB * MIB);
		_exit(0);
	}
	if (wait4(active, &i, 0, &usage) != active || i)
		return false;
	*faults = usage.ru_majflt;
	*idle_out = granule_status_kb(idle, "VmSwap:");
	hold = granule_invariants_hold_in(idle);
	granule_kill_idle(idle);
	return hold && *idle_out >= 0;
}

/*
 * Assert that idle tagged memory is swapped out before a neighbour's active
 * memory.
 */
TEST_F_TIMEOUT(page_granule_reclaim, idle_first, 180)
{
	static const enum granule_kind kinds[] = { GRANULE_DEFAULT, GRANULE_CONTRACT };
	const long excess = (IDLE_MB + ACTIVE_MB - BOTH_MAX_MB) * MIB / 1024;
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

FIXTURE(page_granule_reclaim_pageout)
{
	int pagemap;
	char *area;
};

FIXTURE_VARIANT(page_granule_reclaim_pageout)
{
	enum granule_kind kind;
	int flags;
};

FIXTURE_VARIANT_ADD(page_granule_reclaim_pageout, mthp)
{
	.kind = GRANULE_UNTAGGED,
};

FIXTURE_VARIANT_ADD(page_granule_reclaim_pageout, default_tagged)
{
	.kind = GRANULE_DEFAULT,
};

FIXTURE_VARIANT_ADD(page_granule_reclaim_pageout, contract)
{
	.kind = GRANULE_CONTRACT,
};

FIXTURE_VARIANT_ADD(page_granule_reclaim_pageout, mthp_shared)
{
	.kind = GRANULE_UNTAGGED,
	.flags = MAP_SHARED,
};

FIXTURE_VARIANT_ADD(page_granule_reclaim_pageout, default_tagged_shared)
{
	.kind = GRANULE_DEFAULT,
	.flags = MAP_SHARED,
};

FIXTURE_VARIANT_ADD(page_granule_reclaim_pageout, contract_shared)
{
	.kind = GRANULE_CONTRACT,
	.flags = MAP_SHARED,
};

#define PAGEOUT_LEN	(4 * MIB)
#define PAGEOUT_GRANULES	(PAGEOUT_LEN / GRANULE_SIZE)

FIXTURE_SETUP(page_granule_reclaim_pageout)
{
	struct thp_settings settings;

	ASSERT_EQ(granule_set_enabled(true), 0);
	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, BASE_SIZE), 0);
	if (!swap_to_file())
		SKIP(return, SWAP_FILE_REMEDY);
	thp_for(variant->kind);
	if (variant->kind == GRANULE_UNTAGGED) {
		thp_read_settings(&settings);
		settings.shmem_hugepages[GRANULE_ORDER].enabled = SHMEM_ALWAYS;
		thp_write_settings(&settings);
	}
	self->pagemap = granule_open_pagemap();
	self->area = granule_area(variant->kind, PAGEOUT_LEN, variant->flags);
	ASSERT_NE(self->area, NULL);
}

FIXTURE_TEARDOWN(page_granule_reclaim_pageout)
{
	EXPECT_TRUE(granule_invariants_hold());
	munmap(self->area, PAGEOUT_LEN);
	thp_restore_settings();
	granule_thp_never();
	swap_to_found();
}

/* The page table does not show which shared pages are out, but smaps does. */
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

/*
 * Assert that MADV_PAGEOUT pages out although there are no 16 slots in a row,
 * that the granules it breaks are counted, and that those it has split come
 * back whole.
 */
TEST_F_TIMEOUT(page_granule_reclaim_pageout, no_slots_in_a_row, 60)
{
	unsigned long split = granule_vmstat("granule_split"), out = 0, i;
	const bool tagged = variant->kind != GRANULE_UNTAGGED;
	unsigned long whole_out = swapped_whole();

	granule_fill(self->area, PAGEOUT_LEN, 1);
	if (tagged)
		ASSERT_EQ(granule_count(self->pagemap, self->area, PAGEOUT_LEN, GRANULE_WHOLE),
			  PAGEOUT_GRANULES);
	for (i = 0; i < 20 && out < PAGEOUT_LEN / 1024; i++) {
		ASSERT_EQ(madvise(self->area, PAGEOUT_LEN, MADV_PAGEOUT), 0);
		usleep(20 * 1000);
		out = swapped_kb(self->area);
	}
	EXPECT_GE(out, PAGEOUT_LEN / 1024 * 95 / 100);
	if (tagged && !variant->flags)
		EXPECT_GT(granule_vmstat("granule_split"), split);
	EXPECT_EQ(swapped_whole(), whole_out);

	lru_settle();
	for (i = 0; i < PAGEOUT_GRANULES; i++)
		FORCE_READ(*byte_of(self->area, i));
	EXPECT_TRUE(granule_check(self->area, PAGEOUT_LEN, 1));
	if (tagged)
		EXPECT_EQ(granule_count(self->pagemap, self->area, PAGEOUT_LEN, GRANULE_WHOLE),
			  PAGEOUT_GRANULES);
}

/* The shrinkers. */
FIXTURE(page_granule_reclaim_shrink)
{
	struct granule_cg cg;
};

FIXTURE_SETUP(page_granule_reclaim_shrink)
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
	/* A huge page with more zeroes than this is underused. */
	settings.khugepaged.max_ptes_none = 400;
	thp_write_settings(&settings);
}

FIXTURE_TEARDOWN(page_granule_reclaim_shrink)
{
	thp_restore_settings();
	granule_thp_never();
	granule_cg_remove(&self->cg);
}

#define SHRINK_LEN	(32 * MIB)

enum shrink_way { SHRINK_UNDERUSED, SHRINK_GIVEN_BACK };

/*
 * Huge pages with one byte in use, or with one granule and every second page of
 * the others left. Returns the charge for them after the shrinkers have run, in
 * kB; @before gets the charge before.
 */
static long left_after_shrinking(struct granule_cg *cg, enum granule_kind kind,
				 enum shrink_way way, long *before)
{
	int ready[2], go[2];
	char *area, *p;
	pid_t pid;
	bool hold;
	long left;
	char c;

	if (pipe(ready) || pipe(go))
		return -1;
	pid = granule_cg_fork(cg);
	if (!pid) {
		/* In a process that has the default, as services do. */
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
					granule_give_back(p, 1, 1);
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
	left = granule_cg_settled(cg->dir, true);
	hold = granule_invariants_hold_in(pid);
	close(go[1]);
	close(go[0]);
	close(ready[0]);
	granule_kill_idle(pid);
	return hold ? left : -1;
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
	/*
	 * A granule each for code, stack and heap of the process, and some
	 * slack.
	 */
	EXPECT_LE(tagged, untagged + untagged / 10 + 1024);
}

/* Assert that the shrinker frees the zeroes of an underused huge page. */
TEST_F_TIMEOUT(page_granule_reclaim_shrink, underused, 60)
{
	shrink(_metadata, &self->cg, SHRINK_UNDERUSED);
}

/*
 * Assert that the shrinker frees the parts of a huge page that were given back.
 */
TEST_F_TIMEOUT(page_granule_reclaim_shrink, given_back, 60)
{
	shrink(_metadata, &self->cg, SHRINK_GIVEN_BACK);
}

/* zswap. */
#define ZSWAP_LEN	(8 * MIB)

FIXTURE(page_granule_reclaim_zswap)
{
	struct granule_cg cg;
};

FIXTURE_VARIANT(page_granule_reclaim_zswap)
{
	bool file;
};

/* Neither slots in a row, nor a device that is as fast as memory. */
FIXTURE_VARIANT_ADD(page_granule_reclaim_zswap, file)
{
	.file = true,
};

FIXTURE_VARIANT_ADD(page_granule_reclaim_zswap, device)
{
};

FIXTURE_SETUP(page_granule_reclaim_zswap)
{
	ASSERT_EQ(granule_set_enabled(true), 0);
	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, BASE_SIZE), 0);
	granule_thp_never();
	if (!granule_cg_create(&self->cg))
		SKIP(return, GRANULE_CG_REMEDY);
	if (variant->file && !swap_to_file()) {
		granule_cg_remove(&self->cg);
		SKIP(return, SWAP_FILE_REMEDY);
	}
	if (!granule_have_swap(NULL)) {
		swap_to_found();
		granule_cg_remove(&self->cg);
		SKIP(return, GRANULE_SWAP_REMEDY);
	}
	if (granule_write(ZSWAP "enabled", "Y") ||
	    granule_write(ZSWAP "max_pool_percent", "50")) {
		swap_to_found();
		granule_cg_remove(&self->cg);
		SKIP(return, "no zswap: build the kernel with CONFIG_ZSWAP=y");
	}
}

FIXTURE_TEARDOWN(page_granule_reclaim_zswap)
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

/* The charge after memory was swapped out and read again, in kB. */
static long charged_after_reading(struct granule_cg *cg, enum granule_kind kind)
{
	const long enough = ZSWAP_LEN / 1024 * 9 / 10;
	int status, i;
	pid_t pid;

	pid = granule_cg_fork(cg);
	if (!pid) {
		char *area = granule_area(kind, ZSWAP_LEN, 0);
		long out = 0;

		if (!area)
			_exit(1);
		fill_half(area);
		for (i = 0; i < 20 && out < enough; i++) {
			madvise(area, ZSWAP_LEN, MADV_PAGEOUT);
			usleep(10 * 1000);
			out = granule_status_kb(getpid(), "VmSwap:");
		}
		if (out < enough)
			_exit(3);
		force_read_pages(area, ZSWAP_LEN / BASE_SIZE, BASE_SIZE);
		if (!granule_invariants_hold())
			_exit(4);
		/* By exit status: in steps of 256 KiB, up to 47 MiB. */
		_exit(64 + granule_cg_settled(cg->dir, false) / 256);
	}
	if (waitpid(pid, &status, 0) != pid || !WIFEXITED(status) || WEXITSTATUS(status) < 64)
		return -1;
	return (WEXITSTATUS(status) - 64) * 256L;
}

/* Assert that a page that was read back is kept once, not twice. */
TEST_F_TIMEOUT(page_granule_reclaim_zswap, one_copy, 60)
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

/* No folio is available, of any order but 0. */
FIXTURE(page_granule_reclaim_scarce)
{
	struct granule_fail fail;
	int pagemap;
	char *area;
};

FIXTURE_VARIANT(page_granule_reclaim_scarce)
{
	enum granule_kind kind;
};

FIXTURE_VARIANT_ADD(page_granule_reclaim_scarce, default_tagged)
{
	.kind = GRANULE_DEFAULT,
};

FIXTURE_VARIANT_ADD(page_granule_reclaim_scarce, contract)
{
	.kind = GRANULE_CONTRACT,
};

#define SCARCE_GRANULES	8UL
#define SCARCE_LEN	(SCARCE_GRANULES * GRANULE_SIZE)

FIXTURE_SETUP(page_granule_reclaim_scarce)
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

FIXTURE_TEARDOWN(page_granule_reclaim_scarce)
{
	granule_fail_restore(&self->fail);
	granule_repair(false);
	EXPECT_TRUE(granule_invariants_hold());
}

/*
 * Assert that faults populate single pages, and that these become a run later.
 */
TEST_F_TIMEOUT(page_granule_reclaim_scarce, fault, 120)
{
	unsigned long i;

	granule_fail_order4(true);
	for (i = 0; i < SCARCE_GRANULES; i++)
		*byte_of(self->area, i) = 1;
	granule_fail_order4(false);
	EXPECT_EQ(granule_present_pages(self->pagemap, self->area, SCARCE_LEN),
		  SCARCE_GRANULES * GRANULE_NR_PAGES);
	EXPECT_EQ(granule_count(self->pagemap, self->area, SCARCE_LEN, GRANULE_WHOLE), 0);
	granule_repair(true);
	for (i = 0; i < SCARCE_GRANULES; i++)
		EXPECT_GE(granule_until_whole(self->pagemap, nth(self->area, i), 10), 0);
}

#define SCARCE_PAGES	(SCARCE_GRANULES * GRANULE_NR_PAGES)

static unsigned long area_on(char *area, int node)
{
	return granule_pages_on(area, SCARCE_PAGES, node, NULL);
}

/* Populate the area on node 0, in whole granules. */
static bool populate_on_node0(char *area, int pagemap)
{
	if (granule_bind_to(0))
		return false;
	granule_fill(area, SCARCE_LEN, 1);
	return !granule_bind_to(-1) &&
	       granule_count(pagemap, area, SCARCE_LEN, GRANULE_WHOLE) == SCARCE_GRANULES &&
	       area_on(area, 0) == SCARCE_PAGES;
}

/*
 * Assert that move_pages() moves all pages that it is given, one by one if need
 * be.
 */
TEST_F(page_granule_reclaim_scarce, move_pages)
{
	int nodes[SCARCE_PAGES], status[SCARCE_PAGES];
	unsigned long i;
	long ret;

	if (!granule_two_nodes())
		SKIP(return, GRANULE_NODES_REMEDY);
	ASSERT_TRUE(populate_on_node0(self->area, self->pagemap));
	for (i = 0; i < SCARCE_PAGES; i++)
		nodes[i] = 1;
	granule_fail_order4(true);
	ret = granule_move_pages(self->area, SCARCE_PAGES, nodes, status);
	granule_fail_order4(false);
	EXPECT_EQ(ret, 0);
	EXPECT_EQ(area_on(self->area, 1), SCARCE_PAGES);
	EXPECT_TRUE(granule_check(self->area, SCARCE_LEN, 1));
	EXPECT_EQ(granule_present_pages(self->pagemap, self->area, SCARCE_LEN),
		  SCARCE_PAGES);
}

/* Assert that mbind() moves all pages of the range, one by one if need be. */
TEST_F(page_granule_reclaim_scarce, mbind)
{
	unsigned long mask = 1UL << 1;
	long ret;

	if (!granule_two_nodes())
		SKIP(return, GRANULE_NODES_REMEDY);
	ASSERT_TRUE(populate_on_node0(self->area, self->pagemap));
	granule_fail_order4(true);
	ret = syscall(__NR_mbind, self->area, SCARCE_LEN, MPOL_BIND, &mask,
		      8 * sizeof(mask), MPOL_MF_MOVE | MPOL_MF_STRICT);
	granule_fail_order4(false);
	EXPECT_EQ(ret, 0);
	EXPECT_EQ(area_on(self->area, 1), SCARCE_PAGES);
	EXPECT_TRUE(granule_check(self->area, SCARCE_LEN, 1));
}

int main(int argc, char **argv)
{
	granule_require();
	granule_save_settings();
	granule_save_setting(ZSWAP "enabled");
	granule_save_setting(ZSWAP "max_pool_percent");
	create_swap_file();
	return test_harness_run(argc, argv);
}
