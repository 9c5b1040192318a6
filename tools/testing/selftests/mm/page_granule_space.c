// SPDX-License-Identifier: GPL-2.0
/*
 * Page granule: writes to mapped files where a granule does not fit.
 *
 * A filesystem needs blocks for all of a granule, and may have space for a page
 * only. Then a page is written to, as in a mapping that is not tagged.
 */
#define _GNU_SOURCE
#include "kselftest_harness.h"
#include <asm-generic/mman.h> /* Force the import of the tools version. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/btrfs.h>
#include <linux/quota.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "vm_util.h"
#include "page_granule_fs.h"
#include "page_granule_util.h"

#define FILE_GRANULES	16UL
#define FILE_LEN	(FILE_GRANULES * GRANULE_SIZE)

/* Who has no capabilities, and to whom quotas apply. */
#define USER		1000

FIXTURE(page_granule_space)
{
	struct granule_file file;
	struct granule_fail fail;
	unsigned long *written;		/* shared with children */
	char *map;
	int pagemap;
	int filler;
	int dir;
};

FIXTURE_VARIANT(page_granule_space)
{
	enum granule_fs fs;
	enum granule_kind kind;
};

#define ADD_FS(name, _fs) \
FIXTURE_VARIANT_ADD(page_granule_space, name##_default) \
{ \
	.fs = _fs, .kind = GRANULE_DEFAULT, \
}; \
FIXTURE_VARIANT_ADD(page_granule_space, name##_contract) \
{ \
	.fs = _fs, .kind = GRANULE_CONTRACT, \
}

ADD_FS(ext4, FS_EXT4);
ADD_FS(ext4_1k, FS_EXT4_1K);
ADD_FS(ext4_nodelalloc, FS_EXT4_NODELALLOC);
ADD_FS(xfs, FS_XFS);
ADD_FS(btrfs, FS_BTRFS);

FIXTURE_SETUP(page_granule_space)
{
	const char *missing = granule_fs_missing(variant->fs);

	self->file.fd = -1;
	self->file.shmid = -1;
	self->filler = -1;
	self->dir = -1;
	if (missing)
		SKIP(return, "%s", missing);
	self->pagemap = granule_open_pagemap();
	ASSERT_GE(self->pagemap, 0);
	ASSERT_TRUE(granule_catch_faults());
	ASSERT_TRUE(granule_repair(false));
	ASSERT_TRUE(granule_file_open(&self->file, variant->fs, FILE_LEN));
	self->dir = open(granule_fs_dir(variant->fs), O_RDONLY);
	self->filler = open(granule_fs_dir(variant->fs), O_TMPFILE | O_RDWR, 0600);
	ASSERT_GE(self->filler, 0);
	self->written = mmap(NULL, BASE_SIZE, PROT_RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(self->written, MAP_FAILED);
}

FIXTURE_TEARDOWN(page_granule_space)
{
	EXPECT_TRUE(granule_invariants_hold());
	granule_fail_restore(&self->fail);
	granule_file_close(&self->file);
	if (self->filler >= 0)
		close(self->filler);
	if (self->dir >= 0)
		close(self->dir);
}

#define MAP_IT(_kind) \
	granule_file_map(&self->file, _kind, true, NULL, FILE_LEN, PROT_RW, 0)

/* What is nearly reached, and what else there is. */
struct limits {
	bool user;			/* the disk is full for a user, not for root */
	bool quota;			/* that of a user */
	bool preallocated;		/* the file has blocks behind its end */
	bool last_first;		/* the last page is written to first */
	unsigned int processes;		/* write at the same time */
};

/* Fill the file system of @dir by the file @fd, and free @nr pages again. */
static bool fill_up(int dir, int fd, unsigned long nr, bool user)
{
	size_t step;
	off_t pos = 0;
	bool filled = true;

	/* What root has in reserve remains. */
	if (user && seteuid(USER))
		return false;
	for (step = 16 * MIB; step >= BASE_SIZE && filled; step /= 2) {
		/* What was freed is there after a commit only. */
		filled = !syncfs(dir);
		while (!fallocate(fd, 0, pos, step))
			pos += step;
	}
	if (filled && nr)
		filled = !fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
				    nr * BASE_SIZE) && !syncfs(dir);
	return !seteuid(0) && filled;
}

/*
 * Allow the file system of @dir, a btrfs without much in it, about @nr pages beside
 * what it needs for itself, or with 0 any number.
 */
static bool set_qgroup(int dir, unsigned long nr)
{
	struct btrfs_ioctl_quota_ctl_args ctl = {
		.cmd = nr ? BTRFS_QUOTA_CTL_ENABLE : BTRFS_QUOTA_CTL_DISABLE,
	};
	struct btrfs_ioctl_qgroup_limit_args limit = {
		.lim.flags = BTRFS_QGROUP_LIMIT_MAX_RFER,
	};

	if (ioctl(dir, BTRFS_IOC_QUOTA_CTL, &ctl))
		return false;
	if (!nr)
		return true;
	if (ioctl(dir, BTRFS_IOC_QUOTA_RESCAN_WAIT) || syncfs(dir))
		return false;
	limit.lim.max_rfer = (12 + nr) * BASE_SIZE;
	return !ioctl(dir, BTRFS_IOC_QGROUP_LIMIT, &limit);
}

/*
 * Allow USER, who has nothing, @nr pages on the file system of @dir, or any number. XFS
 * frees later what the file of an earlier test held.
 */
static bool set_quota(int dir, unsigned long nr)
{
	struct if_dqblk quota = {};
	unsigned int i;

	for (i = 0; nr && i < 250; i++) {
		if (syscall(__NR_quotactl_fd, dir, QCMD(Q_GETQUOTA, USRQUOTA), USER, &quota) ||
		    !quota.dqb_curspace)
			break;
		usleep(20 * 1000);
	}
	quota = (struct if_dqblk) {
		.dqb_bhardlimit = nr * BASE_SIZE / 1024,
		.dqb_valid = QIF_BLIMITS,
	};
	return !syscall(__NR_quotactl_fd, dir, QCMD(Q_SETQUOTA, USRQUOTA), USER, &quota);
}

/* Leave space for @nr pages, but for btrfs, which needs some for itself. */
static bool leave_space(enum granule_fs fs, const struct limits *limits, int dir, int filler,
			unsigned long nr)
{
	if (fs == FS_BTRFS)
		return set_qgroup(dir, nr);
	if (limits->quota)
		return set_quota(dir, nr);
	return fill_up(dir, filler, nr, limits->user);
}

static bool lift_limits(enum granule_fs fs, bool quota, int dir)
{
	if (fs == FS_BTRFS)
		return set_qgroup(dir, 0);
	return !quota || set_quota(dir, 0);
}

/* Make the file a hole again, and give back what was taken. */
static bool start_anew(struct granule_file *file, int dir, int filler, bool preallocated)
{
	return !ftruncate(filler, 0) && !ftruncate(file->fd, 0) &&
	       !ftruncate(file->fd, FILE_LEN) &&
	       (!preallocated || !fallocate(file->fd, FALLOC_FL_KEEP_SIZE, FILE_LEN,
					      2 * FILE_LEN)) &&
	       !syncfs(dir);
}

/*
 * Write to the pages of the first granule in a process of its own. Count what works
 * before the first that fails.
 */
static void __noreturn write_share(char *map, const struct limits *limits, unsigned int share,
				   unsigned long *written, unsigned long *started)
{
	unsigned long i, page;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if ((limits->user || limits->quota) && setuid(USER))
		_exit(1);
	__atomic_fetch_add(started, 1, __ATOMIC_RELAXED);
	while (__atomic_load_n(started, __ATOMIC_RELAXED) % limits->processes)
		sched_yield();
	for (i = share; i < GRANULE_NR_PAGES; i += limits->processes) {
		page = limits->last_first ? GRANULE_NR_PAGES - 1 - i : i;
		if (granule_try_access(page_at(map, page), "x"))
			break;
		__atomic_fetch_add(written, 1, __ATOMIC_RELAXED);
	}
	_exit(0);
}

/* As many pages can be written to as in an untagged mapping, and none is lost. */
static void no_space(struct __test_metadata *_metadata,
		     FIXTURE_DATA(page_granule_space) * self,
		     const FIXTURE_VARIANT(page_granule_space) * variant,
		     const struct limits limits)
{
	unsigned long page, there;
	pid_t pids[4];
	unsigned int i;
	int tagged;
	char byte;

	for (tagged = 0; tagged < 2; tagged++) {
		ASSERT_TRUE(start_anew(&self->file, self->dir, self->filler,
				       limits.preallocated));
		ASSERT_EQ(fchown(self->file.fd, limits.quota ? USER : 0, -1), 0);
		ASSERT_TRUE(leave_space(variant->fs, &limits, self->dir, self->filler, 8));
		self->map = MAP_IT(tagged ? variant->kind : GRANULE_UNTAGGED);
		ASSERT_NE(self->map, MAP_FAILED);
		for (i = 0; i < limits.processes; i++) {
			pids[i] = fork();
			ASSERT_GE(pids[i], 0);
			if (!pids[i])
				write_share(self->map, &limits, i, self->written + tagged,
					    self->written + 2);
		}
		for (i = 0; i < limits.processes; i++)
			EXPECT_TRUE(granule_child_ends(pids[i]));
		EXPECT_EQ(fsync(self->file.fd), 0);
		munmap(self->map, FILE_LEN);
		/* What no disk has is gone now. */
		EXPECT_EQ(posix_fadvise(self->file.fd, 0, 0, POSIX_FADV_DONTNEED), 0);
		for (page = 0, there = 0; page < GRANULE_NR_PAGES; page++)
			there += pread(self->file.fd, &byte, 1, page * BASE_SIZE) == 1 &&
				 byte == 'x';
		EXPECT_EQ(there, self->written[tagged]);
		EXPECT_TRUE(lift_limits(variant->fs, limits.quota, self->dir));
	}
	ksft_print_msg("%lu pages, %lu of a granule\n", self->written[0], self->written[1]);
	EXPECT_GT(self->written[0], 0);
	EXPECT_LT(self->written[0], GRANULE_NR_PAGES);
	/* A page that fails has kept blocks of 1 KiB, which another may need. */
	EXPECT_GE(self->written[1] + (limits.processes > 1 && variant->fs != FS_EXT4 &&
				      variant->fs != FS_XFS), self->written[0]);
}

#define NO_SPACE(...) \
	no_space(_metadata, self, variant, \
		 (struct limits) { .processes = 1, ##__VA_ARGS__ })

TEST_F(page_granule_space, full)
{
	NO_SPACE();
}

TEST_F(page_granule_space, full_from_end)
{
	NO_SPACE(.last_first = true);
}

TEST_F(page_granule_space, full_for_four)
{
	if (variant->fs == FS_BTRFS)
		SKIP(return, "btrfs counts what each writer reserves for a moment");
	NO_SPACE(.processes = 4);
}

TEST_F(page_granule_space, full_for_user)
{
	if (variant->fs == FS_BTRFS)
		SKIP(return, "nothing is reserved for root");
	NO_SPACE(.user = true, .last_first = true);
}

/* Blocks behind the end of a file are not for its holes. */
TEST_F(page_granule_space, full_and_preallocated)
{
	if (variant->fs == FS_BTRFS)
		SKIP(return, "the quota is for what was preallocated, too");
	NO_SPACE(.preallocated = true, .last_first = true);
}

TEST_F(page_granule_space, quota)
{
	if (variant->fs == FS_EXT4 || variant->fs == FS_BTRFS)
		SKIP(return, "mounted without quotas of users");
	NO_SPACE(.quota = true);
}

TEST_F(page_granule_space, quota_from_end)
{
	if (variant->fs == FS_EXT4 || variant->fs == FS_BTRFS)
		SKIP(return, "mounted without quotas of users");
	NO_SPACE(.quota = true, .last_first = true);
}

/* Granules whose blocks are there need no space, and stay whole without any. */
TEST_F(page_granule_space, not_needed)
{
	char *buf = malloc(FILE_LEN);
	unsigned long i;
	long faults;

	if (variant->fs == FS_BTRFS)
		SKIP(return, "btrfs writes nothing in its place");
	ASSERT_NE(buf, NULL);
	granule_fill(buf, FILE_LEN, FILE_SEED);
	ASSERT_TRUE(granule_file_cache(&self->file, CACHE_LARGE));
	ASSERT_TRUE(fill_up(self->dir, self->filler, 0, false));
	self->map = MAP_IT(variant->kind);
	ASSERT_NE(self->map, MAP_FAILED);
	faults = granule_faults();
	for (i = 0; i < FILE_GRANULES; i++) {
		*byte_of(buf, i) ^= 0x55;
		__atomic_store_n(byte_of(self->map, i), *byte_of(buf, i), __ATOMIC_RELAXED);
	}
	EXPECT_LE(granule_faults() - faults, (long)FILE_GRANULES + FAULT_SLACK);
	EXPECT_EQ(granule_count(self->pagemap, self->map, FILE_LEN, GRANULE_WHOLE),
		  FILE_GRANULES);
	EXPECT_EQ(fsync(self->file.fd), 0);
	EXPECT_TRUE(granule_file_holds(&self->file, buf, FILE_LEN));
	free(buf);
}

/* What another mapping has locked in memory is not unmapped where a granule fits. */
TEST_F(page_granule_space, locked)
{
	char *locked;

	ASSERT_TRUE(start_anew(&self->file, self->dir, self->filler, false));
	/* What root has in reserve is not seen as space. */
	ASSERT_TRUE(leave_space(variant->fs, &(struct limits) { .user = true }, self->dir,
				self->filler, 24));
	self->map = MAP_IT(variant->kind);
	ASSERT_NE(self->map, MAP_FAILED);
	FORCE_READ(*self->map);
	locked = MAP_IT(GRANULE_UNTAGGED);
	ASSERT_NE(locked, MAP_FAILED);
	ASSERT_EQ(mprotect(locked, FILE_LEN, PROT_READ), 0);
	ASSERT_EQ(mlock(locked, GRANULE_SIZE), 0);
	EXPECT_EQ(granule_try_access(self->map, "x"), 0);
	EXPECT_EQ(granule_filled(self->pagemap, locked), GRANULE_NR_PAGES);
	EXPECT_EQ(granule_state(self->pagemap, self->map), GRANULE_WHOLE);
	EXPECT_EQ(fsync(self->file.fd), 0);
	munmap(locked, FILE_LEN);
	munmap(self->map, FILE_LEN);
	EXPECT_TRUE(lift_limits(variant->fs, false, self->dir));
}

/* Is a page that is read part of a large folio? */
static bool in_large_folio(int pagemap, char *page)
{
	FORCE_READ(*page);
	return granule_in_large_folio(pagemap, page);
}

/* Make a granule of memory from single pages, and wait until it is repaired. */
static bool repair_works(struct granule_fail *fail, int pagemap)
{
	char *granule = granule_area(GRANULE_DEFAULT, GRANULE_SIZE, 0);

	if (!granule || !granule_fail_prepare(fail))
		return false;
	granule_fail_order4(true);
	granule_touch(granule, GRANULE_SIZE);
	granule_fail_order4(false);
	return granule_until_whole(pagemap, granule, 10) >= 0;
}

/* What was split for want of space stays split, or the next write would split it again. */
TEST_F(page_granule_space, not_repaired)
{
	unsigned long repairs, page;

	if (variant->fs == FS_BTRFS)
		SKIP(return, "only qgroups limit it, which it reports to nobody");
	ASSERT_TRUE(start_anew(&self->file, self->dir, self->filler, false));
	ASSERT_TRUE(fill_up(self->dir, self->filler, 8, false));
	self->map = MAP_IT(variant->kind);
	ASSERT_NE(self->map, MAP_FAILED);
	ASSERT_EQ(granule_try_access(self->map, "x"), 0);
	ASSERT_EQ(fsync(self->file.fd), 0);
	EXPECT_FALSE(in_large_folio(self->pagemap, page_at(self->map, 5)));
	EXPECT_TRUE(in_large_folio(self->pagemap, page_at(self->map, 20)));

	/* Neither by repair, which serves a granule of memory meanwhile, */
	ASSERT_TRUE(granule_repair(true));
	repairs = granule_vmstat("granule_repair");
	for (page = 0; page < GRANULE_NR_PAGES; page++)
		FORCE_READ(*page_at(self->map, page));
	EXPECT_TRUE(repair_works(&self->fail, self->pagemap));
	EXPECT_EQ(granule_vmstat("granule_repair"), repairs + 1);
	/* nor by a fault. */
	munmap(self->map, FILE_LEN);
	self->map = MAP_IT(variant->kind);
	ASSERT_NE(self->map, MAP_FAILED);
	EXPECT_FALSE(in_large_folio(self->pagemap, page_at(self->map, 5)));
	/* Who asks for it gets it, and so does who has space. */
	EXPECT_EQ(madvise(self->map, GRANULE_SIZE, MADV_COLLAPSE), 0);
	EXPECT_TRUE(in_large_folio(self->pagemap, page_at(self->map, 5)));
	EXPECT_EQ(granule_try_access(self->map + 2 * BASE_SIZE, "x"), 0);
	EXPECT_FALSE(in_large_folio(self->pagemap, page_at(self->map, 5)));
	ASSERT_EQ(ftruncate(self->filler, 0), 0);
	/* That frees the space, and writes what else could not be copied. */
	ASSERT_EQ(syncfs(self->dir), 0);
	for (page = 0; page < 100; page++) {
		munmap(self->map, FILE_LEN);
		self->map = MAP_IT(variant->kind);
		ASSERT_NE(self->map, MAP_FAILED);
		if (in_large_folio(self->pagemap, page_at(self->map, 5)))
			break;
		/* Somebody uses a page at the moment, or the space is not there yet. */
		usleep(20 * 1000);
	}
	EXPECT_LT(page, 100);
}

int main(int argc, char **argv)
{
	granule_save_settings();
	granule_require();
	granule_thp_never();
	granule_fs_make();
	return test_harness_run(argc, argv);
}
