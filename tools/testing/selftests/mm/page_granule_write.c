// SPDX-License-Identifier: GPL-2.0
/*
 * Page granule: writes to mapped files.
 *
 * The first write to a private granule copies all of it. A write to a shared
 * granule makes all of it writable, and so does the first one after it was
 * written back.
 */
#define _GNU_SOURCE
#include "kselftest_harness.h"
#include <asm-generic/mman.h> /* Force the import of the tools version. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/fs.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "vm_util.h"
#include "page_granule_fs.h"
#include "page_granule_util.h"

#define FILE_GRANULES	16UL
#define FILE_LEN	(FILE_GRANULES * GRANULE_SIZE)

#define KPF_ANON	BIT_ULL(12)

#define NO_DISK	"memory is not written back"

FIXTURE(page_granule_write)
{
	struct granule_file file;
	struct granule_fail fail;
	char *map;
	char *buf;			/* what the file holds */
	int pagemap;
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
ADD_FS(ext4_nodelalloc, FS_EXT4_NODELALLOC);
ADD_FS(tmpfs, FS_TMPFS);
ADD_FS(memfd, FS_MEMFD);

FIXTURE_SETUP(page_granule_write)
{
	const char *missing = granule_fs_missing(variant->fs);

	self->file.fd = -1;
	self->file.shmid = -1;
	if (missing)
		SKIP(return, "%s", missing);
	self->pagemap = granule_open_pagemap();
	ASSERT_GE(self->pagemap, 0);
	ASSERT_TRUE(granule_catch_faults());
	ASSERT_TRUE(granule_repair(false));
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
	unsigned long copies;
	unsigned int i;
	int round;

	for (i = 0; i < FILE_GRANULES * ARRAY_SIZE(threads); i++)
		page_at(self->buf, 4 * i)[100] ^= 0x55;
	ASSERT_EQ(pthread_barrier_init(&barrier, NULL, ARRAY_SIZE(threads)), 0);
	for (round = 0; round < 8; round++) {
		ASSERT_TRUE(granule_file_cache(&self->file, CACHE_SMALL));
		self->map = MAP_IT(false, PROT_RW);
		ASSERT_NE(self->map, MAP_FAILED);
		copies = granule_vmstat("granule_cow");
		for (i = 0; i < ARRAY_SIZE(threads); i++) {
			copiers[i] = (struct copier) {
				.map = self->map, .nr = 4 * i, .barrier = &barrier,
			};
			ASSERT_EQ(pthread_create(&threads[i], NULL, copy_together, &copiers[i]), 0);
		}
		for (i = 0; i < ARRAY_SIZE(threads); i++)
			pthread_join(threads[i], NULL);
		EXPECT_EQ(copied(self->pagemap, self->map), FILE_GRANULES);
		EXPECT_EQ(granule_vmstat("granule_cow") - copies, FILE_GRANULES);
		EXPECT_TRUE(only_map_changed(&self->file, self->map, self->buf));
		ASSERT_EQ(munmap(self->map, FILE_LEN), 0);
	}
	pthread_barrier_destroy(&barrier);
}

/* A page that was copied alone stays alone: what is beside it may change. */
TEST_F(page_granule_write, private_copy_in_part)
{
	unsigned long i;

	if (variant->kind == GRANULE_CONTRACT)
		SKIP(return, "a contract gives no single page back");
	ASSERT_TRUE(granule_file_cache(&self->file, CACHE_LARGE));
	self->map = MAP_IT(false, PROT_RW);
	ASSERT_NE(self->map, MAP_FAILED);
	write_bytes(self->map, self->buf);
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
	EXPECT_GE(granule_until_whole(self->pagemap, self->map + 3 * GRANULE_SIZE, 10), 0);
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
	ASSERT_GE(pid, 0);
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

/*
 * After a granule was written back, the first write makes all of it writable. Both take
 * one flush at most, and a few are somebody else's.
 */
TEST_F(page_granule_write, written_back)
{
	unsigned long i, page, flushed;
	long faults;

	if (fs_is_memory(variant->fs))
		SKIP(return, NO_DISK);
	ASSERT_TRUE(granule_file_cache(&self->file, CACHE_LARGE));
	self->map = MAP_IT(true, PROT_RW);
	ASSERT_NE(self->map, MAP_FAILED);
	write_bytes(self->map, self->buf);
	EXPECT_EQ(granule_count(self->pagemap, self->map, FILE_LEN, GRANULE_WHOLE),
		  FILE_GRANULES);
	flushed = granule_flushes();
	ASSERT_EQ(msync(self->map, FILE_LEN, MS_SYNC), 0);
	EXPECT_LE(granule_flushes() - flushed, 2 * FILE_GRANULES);

	flushed = granule_flushes();
	faults = granule_faults();
	for (i = 0; i < FILE_GRANULES; i++) {
		for (page = 0; page < GRANULE_NR_PAGES; page++) {
			page_at(self->map + i * GRANULE_SIZE, page)[7] ^= i;
			page_at(self->buf + i * GRANULE_SIZE, page)[7] ^= i;
		}
	}
	EXPECT_LE(granule_faults() - faults, (long)FILE_GRANULES + FAULT_SLACK);
	EXPECT_LE(granule_flushes() - flushed, 2 * FILE_GRANULES);
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
	const size_t block = variant->fs == FS_EXT4_1K || variant->fs == FS_EXT4_NODELALLOC ?
			     1024 : BASE_SIZE;
	size_t pos;

	if (fs_is_memory(variant->fs) || variant->fs == FS_BTRFS)
		SKIP(return, "there are no blocks that stay where they are");
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
		SKIP(return, "only btrfs compresses");
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
		SKIP(return, "files do not share blocks");
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

	/* The other way round, the mapping changes with the file. */
	force_read_pages(self->map, FILE_LEN / BASE_SIZE, BASE_SIZE);
	ASSERT_EQ(ioctl(self->file.fd, FICLONE, clone.fd), 0);
	EXPECT_EQ(memcmp(self->map, was, FILE_LEN), 0);
	memcpy(self->buf, was, FILE_LEN);
	EXPECT_TRUE(write_and_look(&self->file, self->map, self->buf));
	EXPECT_TRUE(granule_file_holds(&clone, was, FILE_LEN));
	free(was);
	granule_file_close(&clone);
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
	ASSERT_GE(writer, 0);
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

/* Other ways to read a file show what was written by the mapping. */
TEST_F(page_granule_write, sent_and_copied)
{
	struct granule_file copy;
	off_t from = 0, to = 0;
	int memfd;

	ASSERT_TRUE(granule_file_cache(&self->file, CACHE_LARGE));
	ASSERT_TRUE(granule_file_open(&copy, variant->fs, 0));
	memfd = memfd_create("sent", 0);
	ASSERT_GE(memfd, 0);
	self->map = MAP_IT(true, PROT_RW);
	ASSERT_NE(self->map, MAP_FAILED);
	write_bytes(self->map, self->buf);
	while (from < (off_t)FILE_LEN)
		ASSERT_GT(sendfile(memfd, self->file.fd, &from, FILE_LEN - from), 0);
	for (from = 0; from < (off_t)FILE_LEN;)
		ASSERT_GT(copy_file_range(self->file.fd, &from, copy.fd, &to, FILE_LEN - from, 0),
			  0);
	EXPECT_TRUE(granule_file_holds(&copy, self->buf, FILE_LEN));
	granule_file_close(&copy);
	copy.fd = memfd;
	EXPECT_TRUE(granule_file_holds(&copy, self->buf, FILE_LEN));

	/* What arrives in the file is in the mapping, too. */
	granule_fill(self->buf, FILE_LEN, SEED);
	ASSERT_EQ(pwrite(memfd, self->buf, FILE_LEN, 0), (ssize_t)FILE_LEN);
	from = 0;
	while (from < (off_t)FILE_LEN)
		ASSERT_GT(sendfile(self->file.fd, memfd, &from, FILE_LEN - from), 0);
	EXPECT_EQ(memcmp(self->map, self->buf, FILE_LEN), 0);
	close(memfd);

	ASSERT_TRUE(granule_file_open(&copy, variant->fs, FILE_LEN));
	granule_fill(self->buf, FILE_LEN, SEED + 1);
	ASSERT_EQ(pwrite(copy.fd, self->buf, FILE_LEN, 0), (ssize_t)FILE_LEN);
	for (from = to = 0; from < (off_t)FILE_LEN;)
		ASSERT_GT(copy_file_range(copy.fd, &from, self->file.fd, &to, FILE_LEN - from, 0),
			  0);
	EXPECT_EQ(memcmp(self->map, self->buf, FILE_LEN), 0);
	write_bytes(self->map, self->buf);
	EXPECT_TRUE(granule_file_holds(&self->file, self->buf, FILE_LEN));
	granule_file_close(&copy);
}

/* Should this process die, nobody else would thaw the file system. */
static pid_t thaw_later(int dir)
{
	pid_t pid = fork();

	if (pid)
		return pid;
	sleep(5);
	ioctl(dir, FITHAW, 0);
	_exit(0);
}

/* A write to a frozen file system waits until it is thawed, and is not lost. */
TEST_F(page_granule_write, frozen)
{
	bool *writes = mmap(NULL, BASE_SIZE, PROT_RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pid_t pid, guard;
	int dir;

	if (fs_is_memory(variant->fs))
		SKIP(return, NO_DISK);
	ASSERT_NE(writes, MAP_FAILED);
	ASSERT_TRUE(granule_file_cache(&self->file, CACHE_LARGE));
	self->map = MAP_IT(true, PROT_RW);
	ASSERT_NE(self->map, MAP_FAILED);
	write_bytes(self->map, self->buf);
	dir = open(granule_fs_dir(variant->fs), O_RDONLY);
	guard = thaw_later(dir);
	ASSERT_GT(guard, 0);
	ASSERT_EQ(ioctl(dir, FIFREEZE, 0), 0);
	pid = fork();
	if (!pid) {
		__atomic_store_n(writes, true, __ATOMIC_RELAXED);
		write_bytes(self->map, self->buf);
		_exit(0);
	}
	while (pid > 0 && !__atomic_load_n(writes, __ATOMIC_RELAXED))
		usleep(1000);
	usleep(20 * 1000);
	EXPECT_EQ(waitpid(pid, NULL, WNOHANG), 0);
	EXPECT_EQ(memcmp(self->map, self->buf, FILE_LEN), 0);
	EXPECT_EQ(ioctl(dir, FITHAW, 0), 0);
	kill(guard, SIGKILL);
	waitpid(guard, NULL, 0);
	ASSERT_GT(pid, 0);
	EXPECT_TRUE(granule_child_ends(pid));
	EXPECT_EQ(granule_count(self->pagemap, self->map, FILE_LEN, GRANULE_WHOLE),
		  FILE_GRANULES);
	/* The child has changed the bytes in its own memory only. */
	write_bytes(self->buf, self->buf);
	ASSERT_EQ(fsync(self->file.fd), 0);
	ASSERT_EQ(madvise(self->map, FILE_LEN, MADV_DONTNEED), 0);
	ASSERT_EQ(posix_fadvise(self->file.fd, 0, 0, POSIX_FADV_DONTNEED), 0);
	EXPECT_TRUE(granule_file_holds(&self->file, self->buf, FILE_LEN));
	EXPECT_EQ(memcmp(self->map, self->buf, FILE_LEN), 0);
	munmap(writes, BASE_SIZE);
	close(dir);
}

/* Make a file grow when told, after a while */
struct grower {
	int fd;
	double delay;			/* in seconds */
	pthread_barrier_t *barrier;
};

static void *grow(void *arg)
{
	struct grower *grower = arg;
	double start;

	pthread_barrier_wait(grower->barrier);
	start = granule_now();
	while (granule_now() - start < grower->delay)
		;
	return (void *)(long)ftruncate(grower->fd, FILE_LEN);
}

/*
 * A file ends in the midst of a folio, since a pipe holds its pages. It grows while a
 * page of the folio is written to. What is written behind the old end is not lost.
 */
TEST_F(page_granule_write, grown_meanwhile)
{
	const size_t old = GRANULE_SIZE / 2, pos = GRANULE_SIZE - BASE_SIZE;
	pthread_barrier_t barrier;
	struct grower grower = { .fd = self->file.fd, .barrier = &barrier };
	struct iovec iov = { .iov_len = BASE_SIZE };
	unsigned int round, lost = 0;
	pthread_t thread;
	char *pinned;
	int fds[2];

	if (fs_is_memory(variant->fs))
		SKIP(return, NO_DISK);
	pinned = granule_file_map(&self->file, GRANULE_UNTAGGED, true, NULL, FILE_LEN,
				  PROT_READ, 0);
	ASSERT_NE(pinned, MAP_FAILED);
	iov.iov_base = pinned;
	ASSERT_EQ(pthread_barrier_init(&barrier, NULL, 2), 0);
	for (round = 0; round < 100; round++) {
		ASSERT_EQ(ftruncate(self->file.fd, 0), 0);
		ASSERT_EQ(pwrite(self->file.fd, self->buf, GRANULE_SIZE, 0),
			  (ssize_t)GRANULE_SIZE);
		ASSERT_EQ(pipe(fds), 0);
		ASSERT_EQ(vmsplice(fds[1], &iov, 1, 0), (ssize_t)BASE_SIZE);
		ASSERT_EQ(ftruncate(self->file.fd, old), 0);
		self->map = MAP_IT(true, PROT_RW);
		ASSERT_NE(self->map, MAP_FAILED);
		grower.delay = round / 50e3;
		ASSERT_EQ(pthread_create(&thread, NULL, grow, &grower), 0);
		pthread_barrier_wait(&barrier);
		self->map[0] = 'x';
		pthread_join(thread, NULL);
		self->map[pos] = 'x';
		close(fds[0]);
		close(fds[1]);
		ASSERT_EQ(fsync(self->file.fd), 0);
		ASSERT_EQ(madvise(self->map, GRANULE_SIZE, MADV_DONTNEED), 0);
		ASSERT_EQ(madvise(pinned, GRANULE_SIZE, MADV_DONTNEED), 0);
		ASSERT_EQ(posix_fadvise(self->file.fd, 0, 0, POSIX_FADV_DONTNEED), 0);
		/* What has no block is lost as soon as the page cache drops it. */
		lost += self->map[pos] != 'x' ||
			lseek(self->file.fd, pos, SEEK_DATA) != (off_t)pos;
		munmap(self->map, FILE_LEN);
	}
	EXPECT_EQ(lost, 0) TH_LOG("%u of %u", lost, round);
	pthread_barrier_destroy(&barrier);
	munmap(pinned, FILE_LEN);
}

/* Blocks that MADV_REMOVE leaves of a file that is mapped as @kind, in units of 512 */
static blkcnt_t blocks_of_holes(struct granule_file *file, enum granule_kind kind, int pagemap)
{
	unsigned long page;
	struct stat stat;
	char *map;

	if (!granule_file_cache(file, CACHE_LARGE))
		return -1;
	map = granule_file_map(file, kind, true, NULL, FILE_LEN, PROT_RW, 0);
	if (map == MAP_FAILED)
		return -1;
	*map ^= 1;
	if (kind != GRANULE_UNTAGGED && granule_state(pagemap, map) != GRANULE_WHOLE)
		return -1;
	for (page = 1; page < FILE_LEN / BASE_SIZE; page += 2) {
		*page_at(map, page - 1) ^= 1;
		if (madvise(page_at(map, page), BASE_SIZE, MADV_REMOVE))
			return -1;
	}
	munmap(map, FILE_LEN);
	return fsync(file->fd) || fstat(file->fd, &stat) ? -1 : stat.st_blocks;
}

/* Single pages that are punched out of granules give back what they hold. */
TEST_F(page_granule_write, holes)
{
	blkcnt_t untagged, tagged;

	if (variant->kind == GRANULE_CONTRACT)
		SKIP(return, "a contract is punched in whole granules");
	untagged = blocks_of_holes(&self->file, GRANULE_UNTAGGED, self->pagemap);
	EXPECT_GT(untagged, 0);
	ASSERT_EQ(ftruncate(self->file.fd, 0), 0);
	ASSERT_EQ(ftruncate(self->file.fd, FILE_LEN), 0);
	tagged = blocks_of_holes(&self->file, variant->kind, self->pagemap);
	EXPECT_EQ(tagged, untagged);
	EXPECT_LT(tagged, (blkcnt_t)(FILE_LEN / 512));
}

/* A page of a file that the machine loses is lost alone, and not for the file. */
TEST_F(page_granule_write, poison)
{
	const unsigned long bad = 3 * GRANULE_NR_PAGES + 5;
	unsigned long page, pfn, wrong = 0;

	if (fs_is_memory(variant->fs))
		SKIP(return, "memory has nothing to read a lost page from");
	ASSERT_TRUE(granule_file_cache(&self->file, CACHE_LARGE));
	self->map = MAP_IT(true, PROT_RW);
	ASSERT_NE(self->map, MAP_FAILED);
	write_bytes(self->map, self->buf);
	ASSERT_EQ(fsync(self->file.fd), 0);
	pfn = pagemap_get_pfn(self->pagemap, page_at(self->map, bad));
	if (madvise(page_at(self->map, bad), BASE_SIZE, MADV_HWPOISON)) {
		ASSERT_EQ(errno, EINVAL);
		SKIP(return, "no memory failure: set CONFIG_MEMORY_FAILURE=y");
	}
	for (page = 0; page < FILE_LEN / BASE_SIZE; page++) {
		if (granule_try_access(page_at(self->map, page), NULL))
			wrong += page != bad;
		else
			wrong += memcmp(page_at(self->map, page), page_at(self->buf, page),
					BASE_SIZE) != 0;
	}
	EXPECT_EQ(wrong, 0);
	munmap(self->map, FILE_LEN);
	EXPECT_TRUE(granule_file_holds(&self->file, self->buf, FILE_LEN));
	EXPECT_EQ(unpoison_memory(pfn), 0);
}

int main(int argc, char **argv)
{
	granule_save_settings();
	granule_require();
	granule_thp_never();
	granule_fs_make();
	return test_harness_run(argc, argv);
}
