// SPDX-License-Identifier: GPL-2.0
/*
 * Page granule: files whose page cache others use, too.
 *
 * A granule of a file is in one folio for all that use the file. Whoever maps it
 * in granules must not take, move, dirty or lose what is not his.
 */
#define _GNU_SOURCE
#include "kselftest_harness.h"
#include <asm-generic/mman.h> /* Force the import of the tools version. */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include "vm_util.h"
#include "page_granule_fs.h"
#include "page_granule_util.h"

#define FILE_GRANULES	16UL
#define FILE_LEN	(FILE_GRANULES * GRANULE_SIZE)

FIXTURE(page_granule_cache)
{
	struct granule_file file;
	char *map;
	int pagemap;
};

FIXTURE_VARIANT(page_granule_cache)
{
	enum granule_fs fs;
};

#define ADD_VARIANT(name, _fs) \
FIXTURE_VARIANT_ADD(page_granule_cache, name) { .fs = _fs }

ADD_VARIANT(ext4, FS_EXT4);
ADD_VARIANT(ext4_1k, FS_EXT4_1K);
ADD_VARIANT(xfs, FS_XFS);
ADD_VARIANT(btrfs, FS_BTRFS);
ADD_VARIANT(tmpfs, FS_TMPFS);
ADD_VARIANT(memfd, FS_MEMFD);

FIXTURE_SETUP(page_granule_cache)
{
	const char *missing = granule_fs_missing(variant->fs);

	self->file.fd = -1;
	self->file.shmid = -1;
	if (missing)
		SKIP(return, "%s", missing);
	self->pagemap = granule_open_pagemap();
	ASSERT_GE(self->pagemap, 0);
	ASSERT_TRUE(granule_catch_faults());
	ASSERT_TRUE(granule_file_open(&self->file, variant->fs, FILE_LEN));
}

FIXTURE_TEARDOWN(page_granule_cache)
{
	EXPECT_TRUE(granule_invariants_hold());
	granule_set_enabled(true);
	granule_file_close(&self->file);
}

#define MAP_IT(_kind, _shared, _len) \
	granule_file_map(&self->file, _kind, _shared, NULL, _len, PROT_RW, 0)

static unsigned long whole(int pagemap, const char *map)
{
	return granule_count(pagemap, map, FILE_LEN, GRANULE_WHOLE);
}

static void read_granules(const char *map, unsigned long page)
{
	unsigned long i;

	for (i = 0; i < FILE_GRANULES; i++)
		FORCE_READ(map[i * GRANULE_SIZE + page * BASE_SIZE]);
}

/* Assert that a cold granule is whole whichever page is read first. */
TEST_F_TIMEOUT(page_granule_cache, cold_offsets, 120)
{
	unsigned long page;

	if (fs_is_memory(variant->fs))
		return;
	for (page = 0; page < GRANULE_NR_PAGES; page++) {
		ASSERT_TRUE(granule_file_cache(&self->file, CACHE_COLD));
		self->map = MAP_IT(GRANULE_DEFAULT, false, FILE_LEN);
		ASSERT_NE(self->map, MAP_FAILED);
		read_granules(self->map, page);
		EXPECT_EQ(whole(self->pagemap, self->map), FILE_GRANULES)
			TH_LOG("page %lu", page);
		munmap(self->map, FILE_LEN);
	}
}

/*
 * Assert that a file that journals its data since it was mapped has no granule
 * any more: its journal has no room for large folios.
 */
TEST_F(page_granule_cache, journals_data)
{
	int flags;

	if (variant->fs != FS_EXT4 && variant->fs != FS_EXT4_1K)
		return;
	self->map = MAP_IT(GRANULE_CONTRACT, true, FILE_LEN);
	ASSERT_NE(self->map, MAP_FAILED);
	ASSERT_EQ(ioctl(self->file.fd, FS_IOC_GETFLAGS, &flags), 0);
	flags |= FS_JOURNAL_DATA_FL;
	if (ioctl(self->file.fd, FS_IOC_SETFLAGS, &flags))
		SKIP(return, "no data=journal: use a mkfs.ext4 that makes a journal");
	ASSERT_TRUE(granule_file_cache(&self->file, CACHE_SMALL));
	read_granules(self->map, 3);
	EXPECT_EQ(whole(self->pagemap, self->map), 0);
	madvise(self->map, FILE_LEN, MADV_COLLAPSE);
	EXPECT_EQ(whole(self->pagemap, self->map), 0);
	memset(self->map, 7, FILE_LEN);
	EXPECT_EQ(fsync(self->file.fd), 0);
	EXPECT_TRUE(granule_file_holds(&self->file, self->map, FILE_LEN));
}

/* Reads every page of the file whose number is not a multiple of 16, or those that are. */
static bool read_in_cgroup(struct granule_cg *cg, int fd, bool first)
{
	pid_t pid = granule_cg_fork(cg);
	unsigned long i;
	char byte;

	if (!pid) {
		for (i = 0; i < FILE_LEN / BASE_SIZE; i++) {
			if (first == !(i % GRANULE_NR_PAGES) &&
			    pread(fd, &byte, 1, i * BASE_SIZE) != 1)
				_exit(1);
		}
		_exit(0);
	}
	return granule_child_ends(pid);
}

/* How many pages of the file are charged to @cg? Returns -1 if nobody can tell. */
static long charged_to(const struct granule_cg *cg, struct granule_file *file, int pagemap)
{
	char *map = granule_file_map(file, GRANULE_UNTAGGED, true, NULL, FILE_LEN, PROT_READ, 0);
	int owners = open("/proc/kpagecgroup", O_RDONLY);
	unsigned long pfn, i;
	uint64_t owner;
	struct stat st;
	long nr = 0;

	if (map == MAP_FAILED || owners < 0 || stat(cg->dir, &st))
		return -1;
	for (i = 0; i < FILE_LEN; i += BASE_SIZE) {
		FORCE_READ(map[i]);
		pfn = pagemap_get_pfn(pagemap, map + i);
		if (pread(owners, &owner, sizeof(owner), pfn * sizeof(owner)) != sizeof(owner))
			return -1;
		nr += owner == st.st_ino;
	}
	close(owners);
	munmap(map, FILE_LEN);
	return nr;
}

/*
 * Assert that a fault does not take over what others are charged for, unless
 * MADV_COLLAPSE asks for it.
 */
TEST_F(page_granule_cache, charged_to_two)
{
	struct granule_cg one, two;

	if (fs_is_memory(variant->fs))
		return;
	if (!granule_cg_create(&one))
		SKIP(return, GRANULE_CG_REMEDY);
	ASSERT_TRUE(granule_cg_create(&two));
	/* Pages in the batches of another CPU could not be converted at all. */
	ASSERT_TRUE(granule_stay_on_cpu());
	ASSERT_TRUE(granule_file_cache(&self->file, CACHE_COLD));
	posix_fadvise(self->file.fd, 0, 0, POSIX_FADV_RANDOM);
	ASSERT_TRUE(read_in_cgroup(&one, self->file.fd, true));
	ASSERT_TRUE(read_in_cgroup(&two, self->file.fd, false));
	posix_fadvise(self->file.fd, 0, 0, POSIX_FADV_NORMAL);
	ASSERT_EQ(charged_to(&one, &self->file, self->pagemap), FILE_GRANULES);

	self->map = MAP_IT(GRANULE_DEFAULT, false, FILE_LEN);
	ASSERT_NE(self->map, MAP_FAILED);
	read_granules(self->map, 3);
	EXPECT_EQ(whole(self->pagemap, self->map), 0);
	EXPECT_EQ(charged_to(&one, &self->file, self->pagemap), FILE_GRANULES);
	EXPECT_EQ(madvise(self->map, FILE_LEN, MADV_COLLAPSE), 0);
	EXPECT_EQ(whole(self->pagemap, self->map), FILE_GRANULES);
	EXPECT_EQ(charged_to(&one, &self->file, self->pagemap), 0);
	EXPECT_TRUE(granule_file_holds(&self->file, self->map, FILE_LEN));
	granule_cg_remove(&two);
	granule_cg_remove(&one);
}

/* Open the file of @fd again, for reading only. */
static int reopen(int fd)
{
	char path[32];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	return open(path, O_RDONLY);
}

/*
 * Assert that one who may only read does not make the writes of another larger:
 * a large folio is written as a whole.
 */
TEST_F(page_granule_cache, reader_of_written)
{
	struct granule_file reader = self->file;
	char *written;

	if (fs_is_memory(variant->fs))
		return;
	ASSERT_TRUE(granule_file_cache(&self->file, CACHE_SMALL));
	written = MAP_IT(GRANULE_UNTAGGED, true, FILE_LEN);
	ASSERT_NE(written, MAP_FAILED);
	reader.fd = reopen(self->file.fd);
	ASSERT_GE(reader.fd, 0);
	self->map = granule_file_map(&reader, GRANULE_DEFAULT, false, NULL, FILE_LEN,
				     PROT_READ, 0);
	ASSERT_NE(self->map, MAP_FAILED);
	read_granules(self->map, 3);
	madvise(self->map, FILE_LEN, MADV_COLLAPSE);
	EXPECT_EQ(whole(self->pagemap, self->map), 0);
	EXPECT_TRUE(granule_file_holds(&self->file, self->map, FILE_LEN));

	/* Nobody may write any more. */
	munmap(written, FILE_LEN);
	EXPECT_EQ(madvise(self->map, FILE_LEN, MADV_COLLAPSE), 0);
	EXPECT_EQ(whole(self->pagemap, self->map), FILE_GRANULES);
	close(reader.fd);
}

/*
 * Assert that MADV_COLLAPSE does not write to a file: neither its time of
 * modification changes, nor is a page of it copied.
 */
TEST_F(page_granule_cache, collapse_is_no_write)
{
	struct stat before, after;
	unsigned long i;
	char *to;

	if (fs_is_memory(variant->fs))
		return;
	/* Dirty and small, so that the fault cannot convert them. */
	for (i = 0; i < FILE_LEN; i += BASE_SIZE)
		ASSERT_EQ(pwrite(self->file.fd, "x", 1, i), 1);
	self->map = MAP_IT(GRANULE_DEFAULT, true, FILE_LEN);
	ASSERT_NE(self->map, MAP_FAILED);
	granule_touch(self->map, FILE_LEN);
	ASSERT_EQ(msync(self->map, FILE_LEN, MS_SYNC), 0);
	ASSERT_EQ(fstat(self->file.fd, &before), 0);
	sleep(1);
	madvise(self->map, FILE_LEN, MADV_COLLAPSE);
	ASSERT_EQ(fstat(self->file.fd, &after), 0);
	EXPECT_EQ(after.st_mtim.tv_sec, before.st_mtim.tv_sec);
	EXPECT_EQ(after.st_mtim.tv_nsec, before.st_mtim.tv_nsec);
	munmap(self->map, FILE_LEN);

	/* mremap() makes entries soft-dirty. */
	ASSERT_TRUE(granule_file_cache(&self->file, CACHE_SMALL));
	to = granule_reserve(FILE_LEN);
	ASSERT_NE(to, NULL);
	self->map = MAP_IT(GRANULE_DEFAULT, false, FILE_LEN);
	ASSERT_NE(self->map, MAP_FAILED);
	read_granules(self->map, 0);
	ASSERT_EQ(mremap(self->map, FILE_LEN, FILE_LEN, MREMAP_MAYMOVE | MREMAP_FIXED, to),
		  to);
	madvise(to, FILE_LEN, MADV_COLLAPSE);
	for (i = 0; i < FILE_LEN; i += GRANULE_SIZE)
		EXPECT_TRUE(pagemap_get_entry(self->pagemap, to + i) & PM_FILE)
			TH_LOG("granule %lu", i / GRANULE_SIZE);
	EXPECT_EQ(granule_smaps_kb(to, FILE_LEN, "Anonymous"), 0);
}

struct writer {
	char *granule;
	bool stop;
	bool lost;
};

/* A private copy of a page is written, dropped and written again. */
static void *write_copies(void *arg)
{
	struct writer *writer = arg;
	unsigned long *word = (void *)page_at(writer->granule, 5);
	unsigned long i, j;

	for (i = 1; !__atomic_load_n(&writer->stop, __ATOMIC_RELAXED) && !writer->lost; i++) {
		madvise(word, BASE_SIZE, MADV_DONTNEED);
		__atomic_store_n(word, i, __ATOMIC_RELAXED);
		/* It may be lost at any time. */
		for (j = 0; j < 1000; j++) {
			if (FORCE_READ(*word) != i)
				__atomic_store_n(&writer->lost, true, __ATOMIC_RELAXED);
		}
	}
	return NULL;
}

/* Assert that MADV_COLLAPSE loses no private copy that is made meanwhile. */
TEST_F_TIMEOUT(page_granule_cache, copies_stay, 60)
{
	const double end = granule_now() + 3;
	struct writer writer = { };
	pthread_t thread;

	if (!granule_file_cache(&self->file, CACHE_LARGE))
		return;
	self->map = MAP_IT(GRANULE_DEFAULT, false, FILE_LEN);
	ASSERT_NE(self->map, MAP_FAILED);
	writer.granule = self->map;
	ASSERT_EQ(pthread_create(&thread, NULL, write_copies, &writer), 0);
	while (granule_now() < end && !__atomic_load_n(&writer.lost, __ATOMIC_RELAXED)) {
		madvise(page_at(self->map, 3), BASE_SIZE, MADV_DONTNEED);
		FORCE_READ(*self->map);
		madvise(self->map, GRANULE_SIZE, MADV_COLLAPSE);
	}
	__atomic_store_n(&writer.stop, true, __ATOMIC_RELAXED);
	pthread_join(thread, NULL);
	EXPECT_FALSE(writer.lost);
}

/* How many granules does write() allocate in one piece? */
static unsigned long written_granules(struct granule_file *file, int pagemap)
{
	unsigned long nr = ULONG_MAX;
	char *map;

	if (ftruncate(file->fd, 0) || ftruncate(file->fd, FILE_LEN) ||
	    !granule_file_cache(file, CACHE_LARGE))
		return nr;
	map = granule_file_map(file, GRANULE_UNTAGGED, true, NULL, FILE_LEN, PROT_READ, 0);
	if (map == MAP_FAILED)
		return nr;
	read_granules(map, 0);
	nr = whole(pagemap, map);
	munmap(map, FILE_LEN);
	return nr;
}

/*
 * Assert that write() allocates granules only while a tagged mapping may have
 * them: not when they are disabled, and not for what others map afterwards.
 */
TEST_F(page_granule_cache, written_while_tagged)
{
	char *untagged;

	if (!fs_is_memory(variant->fs))
		return;
	self->map = MAP_IT(GRANULE_DEFAULT, true, FILE_LEN);
	ASSERT_NE(self->map, MAP_FAILED);
	EXPECT_EQ(written_granules(&self->file, self->pagemap), FILE_GRANULES);
	ASSERT_EQ(granule_set_enabled(false), 0);
	EXPECT_EQ(written_granules(&self->file, self->pagemap), 0);
	ASSERT_EQ(granule_set_enabled(true), 0);

	untagged = MAP_IT(GRANULE_UNTAGGED, true, FILE_LEN);
	ASSERT_NE(untagged, MAP_FAILED);
	munmap(self->map, FILE_LEN);
	EXPECT_EQ(written_granules(&self->file, self->pagemap), 0);
	munmap(untagged, FILE_LEN);
}

/*
 * Assert that memory behind the end of the file, which fallocate() may allocate,
 * is not accessible.
 */
TEST_F(page_granule_cache, allocated_behind_end)
{
	if (!fs_is_memory(variant->fs))
		return;
	self->map = MAP_IT(GRANULE_DEFAULT, true, FILE_LEN);
	ASSERT_NE(self->map, MAP_FAILED);
	ASSERT_EQ(ftruncate(self->file.fd, BASE_SIZE), 0);
	ASSERT_EQ(fallocate(self->file.fd, FALLOC_FL_KEEP_SIZE, 0, GRANULE_SIZE), 0);
	EXPECT_EQ(granule_try_access(self->map, NULL), 0);
	EXPECT_EQ(granule_try_access(page_at(self->map, 1), NULL), SIGBUS);
	EXPECT_EQ(granule_try_access(page_at(self->map, 15), NULL), SIGBUS);
}

/* Assert that remap_file_pages() tags nothing that was not tagged. */
TEST_F(page_granule_cache, remapped_untagged)
{
	self->map = MAP_IT(GRANULE_UNTAGGED, true, FILE_LEN);
	ASSERT_NE(self->map, MAP_FAILED);
	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, GRANULE_SIZE), 0);
	ASSERT_EQ(granule_remap_pages(self->map, GRANULE_SIZE, GRANULE_NR_PAGES), 0);
	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, BASE_SIZE), 0);
	EXPECT_FALSE(granule_vma_has_flag(self->map, "gr"));
}

/* Assert that a device without readahead is asked for one page by default. */
TEST_F(page_granule_cache, no_readahead)
{
	struct granule_file file = self->file;
	char path[64];
	struct stat st;

	/* btrfs has several devices. */
	if (fs_is_memory(variant->fs) || variant->fs == FS_BTRFS)
		return;
	ASSERT_EQ(fstat(self->file.fd, &st), 0);
	snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/queue/read_ahead_kb",
		 major(st.st_dev), minor(st.st_dev));
	ASSERT_TRUE(granule_file_cache(&self->file, CACHE_COLD));
	ASSERT_EQ(granule_write(path, "0"), 0);
	file.fd = reopen(self->file.fd);
	self->map = granule_file_map(&file, GRANULE_DEFAULT, false, NULL, FILE_LEN, PROT_READ,
				     0);
	FORCE_READ(self->map[5 * BASE_SIZE]);
	EXPECT_EQ(granule_present_pages(self->pagemap, self->map, FILE_LEN), 1);
	granule_write(path, "128");
	close(file.fd);
}

/* Assert that a file of another file system is tagged through overlayfs. */
TEST_F(page_granule_cache, overlay)
{
	char lower[96], empty[96], over[96], options[256];
	struct granule_file file = { .fs = variant->fs, .len = FILE_LEN, .shmid = -1 };

	if (variant->fs == FS_MEMFD)
		return;
	snprintf(lower, sizeof(lower), "%s/lower", granule_fs_dir(variant->fs));
	snprintf(empty, sizeof(empty), "%s/empty", granule_fs_dir(variant->fs));
	snprintf(over, sizeof(over), "%s/over", granule_fs_dir(variant->fs));
	mkdir(lower, 0700);
	mkdir(empty, 0700);
	mkdir(over, 0700);
	/* What is only read needs two of them. */
	snprintf(options, sizeof(options), "lowerdir=%s:%s", lower, empty);
	if (mount("none", over, "overlay", MS_RDONLY, options))
		SKIP(return, "no overlayfs: set CONFIG_OVERLAY_FS=y");
	strcat(lower, "/file");
	strcat(over, "/file");
	file.fd = open(lower, O_CREAT | O_RDWR | O_TRUNC, 0600);
	EXPECT_GE(file.fd, 0);
	EXPECT_TRUE(granule_file_cache(&file, CACHE_LARGE));
	close(file.fd);
	file.fd = open(over, O_RDONLY);
	EXPECT_GE(file.fd, 0);
	self->map = granule_file_map(&file, GRANULE_CONTRACT, false, NULL, FILE_LEN, PROT_READ,
				     0);
	EXPECT_NE(self->map, MAP_FAILED);
	if (self->map != MAP_FAILED) {
		EXPECT_TRUE(granule_vma_has_flag(self->map, "gc"));
		read_granules(self->map, 3);
		EXPECT_EQ(whole(self->pagemap, self->map), FILE_GRANULES);
		munmap(self->map, FILE_LEN);
	}
	close(file.fd);
	*strrchr(over, '/') = '\0';
	umount2(over, MNT_DETACH);
}

/*
 * Assert that writes to a private mapping neither count as granules for which there
 * was no folio, nor keep repair busy.
 */
TEST_F(page_granule_cache, private_writes)
{
	unsigned long fallbacks, i;

	ASSERT_TRUE(granule_file_cache(&self->file, CACHE_LARGE));
	self->map = MAP_IT(GRANULE_DEFAULT, false, FILE_LEN);
	ASSERT_NE(self->map, MAP_FAILED);
	fallbacks = granule_vmstat("granule_fallback");
	for (i = 0; i < FILE_GRANULES; i++)
		*page_at(self->map + i * GRANULE_SIZE, 3) = 1;
	EXPECT_EQ(granule_vmstat("granule_fallback"), fallbacks);
}

int main(int argc, char **argv)
{
	granule_save_settings();
	granule_require();
	granule_thp_never();
	granule_fs_make();
	return test_harness_run(argc, argv);
}
