// SPDX-License-Identifier: GPL-2.0
/*
 * Page granule: writes to mapped files.
 *
 * The first write to a private granule copies all of it. A write to a shared
 * granule makes all of it writable, and so does the first one after it was
 * written back. Where only a page can be written to, a page is.
 */
#define _GNU_SOURCE
#include "kselftest_harness.h"
#include <asm-generic/mman.h> /* Force the import of the tools version. */
#include <errno.h>
#include <fcntl.h>
#include <linux/btrfs.h>
#include <linux/fs.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "vm_util.h"
#include "page_granule_fs.h"
#include "page_granule_util.h"

#define FILE_GRANULES	16UL
#define FILE_LEN	(FILE_GRANULES * GRANULE_SIZE)

#define KPF_ANON	BIT_ULL(12)

FIXTURE(page_granule_write)
{
	struct granule_file file;
	struct granule_fail fail;
	char *map;
	char *buf;			/* what the file holds */
	int pagemap;
	int filler;
};

FIXTURE_VARIANT(page_granule_write)
{
	enum granule_fs fs;
	enum granule_kind kind;
};

#define ADD_FS(name, _fs) \
FIXTURE_VARIANT_ADD(page_granule_write, name##_default) \
{ \
	.fs = _fs, .kind = GRANULE_DEFAULT, \
}; \
FIXTURE_VARIANT_ADD(page_granule_write, name##_contract) \
{ \
	.fs = _fs, .kind = GRANULE_CONTRACT, \
}

ADD_FS(ext4, FS_EXT4);
ADD_FS(ext4_1k, FS_EXT4_1K);
ADD_FS(xfs, FS_XFS);
ADD_FS(btrfs, FS_BTRFS);
ADD_FS(tmpfs, FS_TMPFS);
ADD_FS(memfd, FS_MEMFD);

FIXTURE_SETUP(page_granule_write)
{
	const char *missing = granule_fs_missing(variant->fs);

	self->file.fd = -1;
	self->file.shmid = -1;
	self->filler = -1;
	if (missing)
		SKIP(return, "%s", missing);
	self->pagemap = granule_open_pagemap();
	ASSERT_GE(self->pagemap, 0);
	ASSERT_TRUE(granule_catch_faults());
	ASSERT_TRUE(granule_file_open(&self->file, variant->fs, FILE_LEN));
	self->buf = malloc(FILE_LEN);
	ASSERT_NE(self->buf, NULL);
	granule_fill(self->buf, FILE_LEN, FILE_SEED);
}

FIXTURE_TEARDOWN(page_granule_write)
{
	EXPECT_TRUE(granule_invariants_hold());
	granule_fail_restore(&self->fail);
	granule_file_close(&self->file);
	if (self->filler >= 0)
		close(self->filler);
}

#define MAP_IT(_shared, _prot) \
	granule_file_map(&self->file, variant->kind, _shared, NULL, FILE_LEN, _prot, 0)

/* What is written to in granule @nr; never in its last page */
static char *byte_at(char *map, unsigned long nr)
{
	return page_at(map, nr * GRANULE_NR_PAGES + nr % (GRANULE_NR_PAGES - 1)) + 100;
}

/* How many granules are a run of private memory? */
static unsigned long copied(int pagemap, char *map)
{
	int kpageflags = open("/proc/kpageflags", O_RDONLY);
	unsigned long i, nr = 0;
	uint64_t flags;

	for (i = 0; i < FILE_GRANULES; i++) {
		char *granule = map + i * GRANULE_SIZE;

		if (granule_state(pagemap, granule) == GRANULE_WHOLE &&
		    !pageflags_get(pagemap_get_pfn(pagemap, granule), kpageflags, &flags))
			nr += !!(flags & KPF_ANON);
	}
	close(kpageflags);
	return nr;
}

/*
 * Write a byte to each granule of the mapping, without reading it, and to the
 * copy of the file. Returns the faults that the former takes.
 */
static long write_bytes(char *map, char *buf)
{
	long faults;
	unsigned long i;

	for (i = 0; i < FILE_GRANULES; i++)
		*byte_at(buf, i) ^= 0x55;
	faults = granule_faults();
	for (i = 0; i < FILE_GRANULES; i++)
		__atomic_store_n(byte_at(map, i), *byte_at(buf, i), __ATOMIC_RELAXED);
	return granule_faults() - faults;
}

/* The file is as it was, and the mapping as in @buf. */
static bool only_map_changed(struct granule_file *file, const char *map, const char *buf)
{
	char *was = malloc(FILE_LEN);
	bool right;

	if (!was)
		return false;
	granule_fill(was, FILE_LEN, FILE_SEED);
	right = granule_file_holds(file, was, FILE_LEN) && !memcmp(map, buf, FILE_LEN);
	free(was);
	return right;
}

/* The first write copies the granule in one fault, however it is cached. */
TEST_F(page_granule_write, private_copy)
{
	enum granule_cache cache;
	unsigned long copies;
	long faults;

	for (cache = CACHE_COLD; cache <= CACHE_LARGE; cache++) {
		granule_fill(self->buf, FILE_LEN, FILE_SEED);
		ASSERT_TRUE(granule_file_cache(&self->file, cache));
		self->map = MAP_IT(false, PROT_RW);
		ASSERT_NE(self->map, MAP_FAILED);
		copies = granule_vmstat("granule_cow");
		faults = write_bytes(self->map, self->buf);
		EXPECT_EQ(copied(self->pagemap, self->map), FILE_GRANULES)
			TH_LOG("cache %d", cache);
		EXPECT_EQ(granule_vmstat("granule_cow") - copies, FILE_GRANULES);
		/* A fault that waits for a disk is counted twice. */
		if (cache != CACHE_COLD)
			EXPECT_LE(faults, (long)FILE_GRANULES + FAULT_SLACK);
		EXPECT_TRUE(only_map_changed(&self->file, self->map, self->buf));
		ASSERT_EQ(munmap(self->map, FILE_LEN), 0);
	}
}

/* So does a write to what has been read, in large folios or in small ones. */
TEST_F(page_granule_write, private_copy_of_mapped)
{
	enum granule_cache cache;
	pid_t reader;
	char *other;

	for (cache = CACHE_SMALL; cache <= CACHE_LARGE; cache++) {
		granule_fill(self->buf, FILE_LEN, FILE_SEED);
		ASSERT_TRUE(granule_file_cache(&self->file, cache));
		/* What others map is not converted. */
		other = granule_file_map(&self->file, GRANULE_UNTAGGED, true, NULL,
					 FILE_LEN, PROT_READ, 0);
		ASSERT_NE(other, MAP_FAILED);
		force_read_pages(other, FILE_LEN / BASE_SIZE, BASE_SIZE);
		reader = granule_fork_idle();
		self->map = MAP_IT(false, PROT_RW);
		ASSERT_NE(self->map, MAP_FAILED);
		force_read_pages(self->map, FILE_LEN / BASE_SIZE, BASE_SIZE);
		EXPECT_LE(write_bytes(self->map, self->buf),
			  (long)FILE_GRANULES + FAULT_SLACK);
		EXPECT_EQ(copied(self->pagemap, self->map), FILE_GRANULES)
			TH_LOG("cache %d", cache);
		EXPECT_TRUE(only_map_changed(&self->file, self->map, self->buf));
		granule_kill_idle(reader);
		ASSERT_EQ(munmap(self->map, FILE_LEN), 0);
		ASSERT_EQ(munmap(other, FILE_LEN), 0);
	}
}

/* Write to each granule when the others do. */
struct copier {
	char *map;
	unsigned int nr;
	pthread_barrier_t *barrier;
};

static void *copy_together(void *arg)
{
	struct copier *copier = arg;
	unsigned long i;

	for (i = 0; i < FILE_GRANULES; i++) {
		pthread_barrier_wait(copier->barrier);
		page_at(copier->map + i * GRANULE_SIZE, copier->nr)[100] ^= 0x55;
	}
	return NULL;
}

/* Threads that write to a granule at the same time make one copy of it. */
TEST_F(page_granule_write, private_copy_by_threads)
{
	struct copier copiers[4];
	pthread_barrier_t barrier;
	pthread_t threads[4];
	int round;
	unsigned int i;

	ASSERT_EQ(pthread_barrier_init(&barrier, NULL, ARRAY_SIZE(threads)), 0);
	for (round = 0; round < 8; round++) {
		ASSERT_TRUE(granule_file_cache(&self->file, CACHE_SMALL));
		self->map = MAP_IT(false, PROT_RW);
		ASSERT_NE(self->map, MAP_FAILED);
		for (i = 0; i < ARRAY_SIZE(threads); i++) {
			copiers[i] = (struct copier) {
				.map = self->map, .nr = 4 * i, .barrier = &barrier,
			};
			ASSERT_EQ(pthread_create(&threads[i], NULL, copy_together, &copiers[i]), 0);
		}
		for (i = 0; i < ARRAY_SIZE(threads); i++)
			pthread_join(threads[i], NULL);
		EXPECT_EQ(copied(self->pagemap, self->map), FILE_GRANULES);
		ASSERT_EQ(munmap(self->map, FILE_LEN), 0);
	}
	pthread_barrier_destroy(&barrier);
}

/* A page that was copied alone stays alone: what is beside it may change. */
TEST_F(page_granule_write, private_copy_in_part)
{
	unsigned long i;

	ASSERT_TRUE(granule_file_cache(&self->file, CACHE_LARGE));
	self->map = MAP_IT(false, PROT_RW);
	ASSERT_NE(self->map, MAP_FAILED);
	write_bytes(self->map, self->buf);
	if (variant->kind == GRANULE_CONTRACT)
		return;
	for (i = 0; i < FILE_GRANULES; i++)
		ASSERT_TRUE(granule_give_back(self->map + i * GRANULE_SIZE, 15, 1));
	/* The page holds what the file does, and a write copies no other page. */
	for (i = 0; i < FILE_GRANULES; i++) {
		self->map[(i + 1) * GRANULE_SIZE - 1] ^= 1;
		self->buf[(i + 1) * GRANULE_SIZE - 1] ^= 1;
	}
	EXPECT_TRUE(only_map_changed(&self->file, self->map, self->buf));
}

/* Where the file ends, a page is copied by itself. */
static void private_copy_at_end(struct __test_metadata *_metadata,
				FIXTURE_DATA(page_granule_write) * self,
				const FIXTURE_VARIANT(page_granule_write) * variant,
				bool pinned)
{
	const size_t len = FILE_LEN - 3 * BASE_SIZE - 7;
	const size_t last = FILE_LEN - GRANULE_SIZE;
	struct iovec iov = { .iov_len = BASE_SIZE };
	char *granule, *shared;
	int fds[2];

	ASSERT_TRUE(granule_file_cache(&self->file, CACHE_LARGE));
	shared = granule_file_map(&self->file, GRANULE_UNTAGGED, true, NULL, FILE_LEN,
				  PROT_READ, 0);
	ASSERT_NE(shared, MAP_FAILED);
	ASSERT_EQ(pipe(fds), 0);
	iov.iov_base = shared + last;
	if (pinned)
		ASSERT_EQ(vmsplice(fds[1], &iov, 1, 0), (ssize_t)BASE_SIZE);
	ASSERT_EQ(ftruncate(self->file.fd, len), 0);
	self->map = MAP_IT(false, PROT_RW);
	ASSERT_NE(self->map, MAP_FAILED);
	granule = self->map + last;
	granule[2 * BASE_SIZE] ^= 1;
	EXPECT_LE(granule_filled(self->pagemap, granule), GRANULE_NR_PAGES - 3);
	EXPECT_EQ(granule_try_access(granule + GRANULE_SIZE - 1, NULL), SIGBUS);
	EXPECT_EQ(granule_try_access(granule + 13 * BASE_SIZE, "x"), SIGBUS);
	EXPECT_EQ(granule[2 * BASE_SIZE] ^ 1, self->buf[last + 2 * BASE_SIZE]);
	close(fds[0]);
	close(fds[1]);
}

TEST_F(page_granule_write, private_copy_at_end)
{
	private_copy_at_end(_metadata, self, variant, false);
}

/* So it is if what is behind the end stays in the page cache. */
TEST_F(page_granule_write, private_copy_at_pinned_end)
{
	private_copy_at_end(_metadata, self, variant, true);
}

/* Without a folio, single pages are copied, and made a run later. */
TEST_F(page_granule_write, private_copy_without_folio)
{
	unsigned long fallbacks, i;

	if (!granule_fail_prepare(&self->fail))
		SKIP(return, "no fault injection: set CONFIG_FAIL_PAGE_ALLOC=y");
	ASSERT_TRUE(granule_repair(false));
	ASSERT_TRUE(granule_file_cache(&self->file, CACHE_LARGE));
	self->map = MAP_IT(false, PROT_RW);
	ASSERT_NE(self->map, MAP_FAILED);
	fallbacks = granule_vmstat("granule_fallback");
	granule_fail_order4(true);
	write_bytes(self->map, self->buf);
	granule_fail_order4(false);
	EXPECT_EQ(copied(self->pagemap, self->map), 0);
	EXPECT_EQ(granule_vmstat("granule_fallback") - fallbacks, FILE_GRANULES);
	for (i = 0; i < FILE_GRANULES; i++)
		EXPECT_EQ(granule_filled(self->pagemap, self->map + i * GRANULE_SIZE),
			  GRANULE_NR_PAGES);
	EXPECT_TRUE(only_map_changed(&self->file, self->map, self->buf));

	EXPECT_EQ(madvise(self->map, FILE_LEN, MADV_COLLAPSE), 0);
	EXPECT_EQ(copied(self->pagemap, self->map), FILE_GRANULES);
	EXPECT_TRUE(only_map_changed(&self->file, self->map, self->buf));
}

/* The thread that repairs granules does so, too, without being asked. */
TEST_F(page_granule_write, private_copy_repaired)
{
	if (!granule_fail_prepare(&self->fail))
		SKIP(return, "no fault injection: set CONFIG_FAIL_PAGE_ALLOC=y");
	ASSERT_TRUE(granule_repair(true));
	ASSERT_TRUE(granule_file_cache(&self->file, CACHE_LARGE));
	self->map = MAP_IT(false, PROT_RW);
	ASSERT_NE(self->map, MAP_FAILED);
	granule_fail_order4(true);
	*byte_at(self->buf, 3) ^= 1;
	*byte_at(self->map, 3) = *byte_at(self->buf, 3);
	granule_fail_order4(false);
	EXPECT_LT(granule_until_whole(self->pagemap, self->map + 3 * GRANULE_SIZE, 10), 10);
	EXPECT_EQ(copied(self->pagemap, self->map), 1);
	EXPECT_TRUE(only_map_changed(&self->file, self->map, self->buf));
}

/* Copies are swapped, forked and moved as private memory is. */
TEST_F(page_granule_write, private_copy_lasts)
{
	pid_t pid;

	ASSERT_TRUE(granule_file_cache(&self->file, CACHE_LARGE));
	self->map = MAP_IT(false, PROT_RW);
	ASSERT_NE(self->map, MAP_FAILED);
	write_bytes(self->map, self->buf);
	madvise(self->map, FILE_LEN, MADV_PAGEOUT);
	EXPECT_EQ(memcmp(self->map, self->buf, FILE_LEN), 0);
	EXPECT_EQ(copied(self->pagemap, self->map), FILE_GRANULES);

	pid = fork();
	if (!pid) {
		int pagemap = granule_open_pagemap();

		write_bytes(self->map, self->buf);
		_exit(copied(pagemap, self->map) != FILE_GRANULES ||
		      !only_map_changed(&self->file, self->map, self->buf));
	}
	EXPECT_TRUE(granule_child_ends(pid));
	write_bytes(self->map, self->buf);
	EXPECT_EQ(copied(self->pagemap, self->map), FILE_GRANULES);
	EXPECT_TRUE(only_map_changed(&self->file, self->map, self->buf));
}

/* After a granule was written back, the first write makes all of it writable. */
TEST_F(page_granule_write, written_back)
{
	unsigned long i, page;
	long faults;

	if (fs_is_memory(variant->fs))
		return;
	ASSERT_TRUE(granule_file_cache(&self->file, CACHE_LARGE));
	self->map = MAP_IT(true, PROT_RW);
	ASSERT_NE(self->map, MAP_FAILED);
	write_bytes(self->map, self->buf);
	EXPECT_EQ(granule_count(self->pagemap, self->map, FILE_LEN, GRANULE_WHOLE),
		  FILE_GRANULES);
	ASSERT_EQ(msync(self->map, FILE_LEN, MS_SYNC), 0);

	faults = granule_faults();
	for (i = 0; i < FILE_GRANULES; i++) {
		for (page = 0; page < GRANULE_NR_PAGES; page++) {
			page_at(self->map + i * GRANULE_SIZE, page)[7] ^= i;
			page_at(self->buf + i * GRANULE_SIZE, page)[7] ^= i;
		}
	}
	EXPECT_LE(granule_faults() - faults, (long)FILE_GRANULES + FAULT_SLACK);
	EXPECT_EQ(granule_count(self->pagemap, self->map, FILE_LEN, GRANULE_WHOLE),
		  FILE_GRANULES);
	ASSERT_EQ(msync(self->map, FILE_LEN, MS_SYNC), 0);
	ASSERT_EQ(madvise(self->map, FILE_LEN, MADV_DONTNEED), 0);
	ASSERT_EQ(posix_fadvise(self->file.fd, 0, 0, POSIX_FADV_DONTNEED), 0);
	EXPECT_EQ(memcmp(self->map, self->buf, FILE_LEN), 0);
}

/*
 * What was written by the mapping is on the disk, and nothing else has changed. @buf
 * is what the file held before.
 */
static bool write_and_look(struct granule_file *file, char *map, char *buf)
{
	write_bytes(map, buf);
	if (fsync(file->fd) || madvise(map, FILE_LEN, MADV_DONTNEED) ||
	    posix_fadvise(file->fd, 0, 0, POSIX_FADV_DONTNEED))
		return false;
	return !memcmp(map, buf, FILE_LEN);
}

/*
 * A write to a granule allocates many blocks that are not beside each other at once:
 * the journal has to have room for all of them.
 */
TEST_F(page_granule_write, fragmented)
{
	const size_t block = variant->fs == FS_EXT4_1K ? 1024 : BASE_SIZE;
	size_t pos;

	if (fs_is_memory(variant->fs) || variant->fs == FS_BTRFS)
		return;
	ASSERT_TRUE(granule_file_cache(&self->file, CACHE_LARGE));
	for (pos = 0; pos < FILE_LEN; pos += 2 * block) {
		ASSERT_EQ(fallocate(self->file.fd,
				    FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, pos, block), 0);
		memset(self->buf + pos, 0, block);
	}
	ASSERT_EQ(fsync(self->file.fd), 0);
	ASSERT_EQ(posix_fadvise(self->file.fd, 0, 0, POSIX_FADV_DONTNEED), 0);
	self->map = MAP_IT(true, PROT_RW);
	ASSERT_NE(self->map, MAP_FAILED);
	EXPECT_TRUE(write_and_look(&self->file, self->map, self->buf));
	EXPECT_TRUE(granule_file_holds(&self->file, self->map, FILE_LEN));
}

/* btrfs compresses 128 KiB at once, and has the start of a file with its inode. */
TEST_F(page_granule_write, compressed)
{
	int flags = FS_COMPR_FL, i;

	if (variant->fs != FS_BTRFS)
		return;
	ASSERT_EQ(ioctl(self->file.fd, FS_IOC_SETFLAGS, &flags), 0);
	memset(self->buf, 0x42, FILE_LEN);
	for (i = 0; i < 2; i++) {
		ASSERT_EQ(ftruncate(self->file.fd, 0), 0);
		/* The second time, there is an inline extent only, and a hole. */
		if (i)
			memset(self->buf + 2000, 0, FILE_LEN - 2000);
		ASSERT_EQ(pwrite(self->file.fd, self->buf, i ? 2000 : FILE_LEN, 0),
			  (ssize_t)(i ? 2000 : FILE_LEN));
		ASSERT_EQ(fsync(self->file.fd), 0);
		ASSERT_EQ(ftruncate(self->file.fd, FILE_LEN), 0);
		ASSERT_EQ(posix_fadvise(self->file.fd, 0, 0, POSIX_FADV_DONTNEED), 0);
		self->map = MAP_IT(true, PROT_RW);
		ASSERT_NE(self->map, MAP_FAILED);
		EXPECT_EQ(memcmp(self->map, self->buf, FILE_LEN), 0);
		EXPECT_TRUE(write_and_look(&self->file, self->map, self->buf));
		munmap(self->map, FILE_LEN);
	}
}

/* A write to a file whose blocks another file shares does not change that. */
TEST_F(page_granule_write, cloned)
{
	struct granule_file clone;
	char *was;

	if (variant->fs != FS_XFS && variant->fs != FS_BTRFS)
		return;
	ASSERT_TRUE(granule_file_cache(&self->file, CACHE_LARGE));
	ASSERT_TRUE(granule_file_open(&clone, variant->fs, FILE_LEN));
	ASSERT_EQ(ioctl(clone.fd, FICLONE, self->file.fd), 0);
	was = malloc(FILE_LEN);
	ASSERT_NE(was, NULL);
	memcpy(was, self->buf, FILE_LEN);
	self->map = MAP_IT(true, PROT_RW);
	ASSERT_NE(self->map, MAP_FAILED);
	force_read_pages(self->map, FILE_LEN / BASE_SIZE, BASE_SIZE);
	EXPECT_TRUE(write_and_look(&self->file, self->map, self->buf));
	EXPECT_TRUE(granule_file_holds(&clone, was, FILE_LEN));
	free(was);
	granule_file_close(&clone);
}

/* Fill the file system of @dir by the file @fd, and free @nr pages again. */
static bool fill_up(int dir, int fd, unsigned long nr)
{
	size_t step;
	off_t pos = 0;

	for (step = 16 * MIB; step >= BASE_SIZE; step /= 2) {
		/* What was freed is there after a commit only. */
		if (syncfs(dir))
			return false;
		while (!fallocate(fd, 0, pos, step))
			pos += step;
	}
	return !nr || (!fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
				  nr * BASE_SIZE) && !syncfs(dir));
}

/*
 * Allow the file system of @dir, a btrfs without much in it, about @nr pages beside
 * what it needs for itself, or with 0 any number.
 */
static bool set_quota(int dir, unsigned long nr)
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

/* Leave space for @nr pages, but for btrfs, which needs some for itself. */
static bool leave_space(enum granule_fs fs, int dir, int filler, unsigned long nr)
{
	if (fs == FS_BTRFS)
		return set_quota(dir, nr);
	return fill_up(dir, filler, nr);
}

/*
 * Write to the pages of the first granule in a process of its own: the first or
 * the last of its share first. Count what works before the first that fails.
 */
static void write_share(char *map, unsigned int nr, unsigned int share, bool last_first,
			unsigned long *written)
{
	unsigned long i, page;

	__atomic_fetch_add(written + 2, 1, __ATOMIC_RELAXED);
	while (__atomic_load_n(written + 2, __ATOMIC_RELAXED) % nr)
		sched_yield();
	for (i = share; i < GRANULE_NR_PAGES; i += nr) {
		page = last_first ? GRANULE_NR_PAGES - 1 - i : i;
		if (granule_try_access(page_at(map, page), "x"))
			break;
		__atomic_fetch_add(written, 1, __ATOMIC_RELAXED);
	}
	_exit(0);
}

/*
 * Where the file system has no space for the blocks of a granule, a page can be
 * written to as long as there is space for it. An untagged mapping says what
 * is possible.
 */
static void no_space(struct __test_metadata *_metadata,
		     FIXTURE_DATA(page_granule_write) * self,
		     const FIXTURE_VARIANT(page_granule_write) * variant,
		     unsigned int processes, bool last_first)
{
	unsigned long page, there, *written;
	unsigned int i;
	int tagged, dir;
	char *map;

	/* btrfs counts what each writer reserves for itself for a moment. */
	if (fs_is_memory(variant->fs) || (variant->fs == FS_BTRFS && processes > 1))
		return;
	written = mmap(NULL, BASE_SIZE, PROT_RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(written, MAP_FAILED);
	dir = open(granule_fs_dir(variant->fs), O_RDONLY);
	self->filler = open(granule_fs_dir(variant->fs), O_TMPFILE | O_RDWR, 0600);
	ASSERT_GE(self->filler, 0);
	for (tagged = 0; tagged < 2; tagged++) {
		ASSERT_EQ(ftruncate(self->filler, 0), 0);
		ASSERT_EQ(ftruncate(self->file.fd, 0), 0);
		ASSERT_EQ(ftruncate(self->file.fd, FILE_LEN), 0);
		ASSERT_EQ(syncfs(dir), 0);
		ASSERT_TRUE(leave_space(variant->fs, dir, self->filler, 8));
		map = tagged ? MAP_IT(true, PROT_RW) :
		      granule_file_map(&self->file, GRANULE_UNTAGGED, true, NULL, FILE_LEN,
				       PROT_RW, 0);
		ASSERT_NE(map, MAP_FAILED);
		for (i = 0; i < processes; i++) {
			if (!fork())
				write_share(map, processes, i, last_first, written + tagged);
		}
		while (wait(NULL) > 0)
			;
		for (page = 0, there = 0; page < GRANULE_NR_PAGES; page++)
			there += *page_at(map, page) == 'x';
		EXPECT_EQ(there, written[tagged]);
		EXPECT_EQ(fsync(self->file.fd), 0);
		munmap(map, FILE_LEN);
		if (variant->fs == FS_BTRFS)
			EXPECT_TRUE(set_quota(dir, 0));
	}
	ksft_print_msg("%lu pages, %lu of a granule\n", written[0], written[1]);
	EXPECT_GT(written[0], 0);
	/* A page that fails has kept smaller blocks, which another may need. */
	EXPECT_GE(written[1] + (variant->fs == FS_EXT4_1K && processes > 1), written[0]);
	close(dir);
}

TEST_F(page_granule_write, no_space)
{
	no_space(_metadata, self, variant, 1, false);
}

TEST_F(page_granule_write, no_space_from_end)
{
	no_space(_metadata, self, variant, 1, true);
}

TEST_F(page_granule_write, no_space_for_four)
{
	no_space(_metadata, self, variant, 4, false);
}

/* Granules whose blocks are there need no space, and stay whole without any. */
TEST_F(page_granule_write, no_space_needed)
{
	int dir;

	if (variant->fs != FS_EXT4 && variant->fs != FS_EXT4_1K && variant->fs != FS_XFS)
		return;
	dir = open(granule_fs_dir(variant->fs), O_RDONLY);
	self->filler = open(granule_fs_dir(variant->fs), O_TMPFILE | O_RDWR, 0600);
	ASSERT_GE(self->filler, 0);
	ASSERT_TRUE(granule_file_cache(&self->file, CACHE_LARGE));
	ASSERT_TRUE(fill_up(dir, self->filler, 0));
	self->map = MAP_IT(true, PROT_RW);
	ASSERT_NE(self->map, MAP_FAILED);
	EXPECT_LE(write_bytes(self->map, self->buf), (long)FILE_GRANULES + FAULT_SLACK);
	EXPECT_EQ(granule_count(self->pagemap, self->map, FILE_LEN, GRANULE_WHOLE),
		  FILE_GRANULES);
	EXPECT_EQ(fsync(self->file.fd), 0);
	EXPECT_TRUE(granule_file_holds(&self->file, self->buf, FILE_LEN));
	close(dir);
}

/* What a thread reads of a private mapping never is older than before. */
struct reader {
	char *map;
	bool stop;
	unsigned long older;
	unsigned long reads;
};

static void *read_forwards(void *arg)
{
	struct reader *reader = arg;
	unsigned long seen = 0, val;

	while (!__atomic_load_n(&reader->stop, __ATOMIC_RELAXED)) {
		val = __atomic_load_n((unsigned long *)page_at(reader->map, 9),
				      __ATOMIC_RELAXED);
		reader->older += val < seen;
		seen = val;
		reader->reads++;
	}
	return NULL;
}

/* Copy a granule again and again, while a process writes numbers to one of its pages. */
TEST_F(page_granule_write, private_copy_not_older)
{
	const double end = granule_now() + 2;
	struct reader reader = {};
	unsigned long val = 0;
	pthread_t thread;
	char *shared;
	pid_t writer;

	ASSERT_TRUE(granule_file_cache(&self->file, CACHE_LARGE));
	reader.map = MAP_IT(false, PROT_RW);
	ASSERT_NE(reader.map, MAP_FAILED);
	shared = granule_file_map(&self->file, GRANULE_UNTAGGED, true, NULL, FILE_LEN, PROT_RW, 0);
	ASSERT_NE(shared, MAP_FAILED);
	ASSERT_EQ(pwrite(self->file.fd, &val, sizeof(val), 9 * BASE_SIZE), sizeof(val));
	writer = fork();
	if (!writer) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;) {
			val++;
			if (val % 2)
				pwrite(self->file.fd, &val, sizeof(val), 9 * BASE_SIZE);
			else
				__atomic_store_n((unsigned long *)page_at(shared, 9), val,
						 __ATOMIC_RELAXED);
		}
	}
	ASSERT_EQ(pthread_create(&thread, NULL, read_forwards, &reader), 0);
	while (granule_now() < end) {
		*page_at(reader.map, 2) = 1;
		ASSERT_EQ(madvise(reader.map, GRANULE_SIZE, MADV_DONTNEED), 0);
	}
	__atomic_store_n(&reader.stop, true, __ATOMIC_RELAXED);
	pthread_join(thread, NULL);
	kill(writer, SIGKILL);
	waitpid(writer, NULL, 0);
	EXPECT_GT(reader.reads, 0);
	EXPECT_EQ(reader.older, 0);
}

int main(int argc, char **argv)
{
	granule_save_settings();
	granule_require();
	granule_thp_never();
	granule_fs_make();
	return test_harness_run(argc, argv);
}
