// SPDX-License-Identifier: GPL-2.0
/*
 * Page granule: files, and shared memory with a name.
 *
 * Each test runs on several file systems and kinds of memory, mapped in each
 * way, from a page cache that is empty, or has the file in small or in large
 * folios. What a mapping shows is compared with what read() says.
 */
#define _GNU_SOURCE
#include "kselftest_harness.h"
#include <asm-generic/mman.h> /* Force the import of the tools version. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "vm_util.h"
#include "page_granule_fs.h"
#include "page_granule_util.h"

#define FILE_GRANULES	16UL
#define FILE_LEN	(FILE_GRANULES * GRANULE_SIZE)

FIXTURE(page_granule_file)
{
	struct granule_file file;
	char *map;
	int pagemap;
};

FIXTURE_VARIANT(page_granule_file)
{
	enum granule_fs fs;
	enum granule_kind kind;
	bool shared;
};

#define ADD_VARIANT(name, _fs, _kind, _shared) \
FIXTURE_VARIANT_ADD(page_granule_file, name) \
{ \
	.fs = _fs, .kind = _kind, .shared = _shared, \
}

#define ADD_FS(name, fs) \
	ADD_VARIANT(name##_default_private, fs, GRANULE_DEFAULT, false); \
	ADD_VARIANT(name##_default_shared, fs, GRANULE_DEFAULT, true); \
	ADD_VARIANT(name##_contract_private, fs, GRANULE_CONTRACT, false); \
	ADD_VARIANT(name##_contract_shared, fs, GRANULE_CONTRACT, true)

ADD_FS(ext4, FS_EXT4);
ADD_FS(ext4_1k, FS_EXT4_1K);
ADD_FS(xfs, FS_XFS);
ADD_FS(btrfs, FS_BTRFS);
ADD_FS(tmpfs, FS_TMPFS);
ADD_FS(memfd, FS_MEMFD);
/* shmat() takes no flag for a contract, and shares in any case. */
ADD_VARIANT(sysv_default_shared, FS_SYSV, GRANULE_DEFAULT, true);

FIXTURE_SETUP(page_granule_file)
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

FIXTURE_TEARDOWN(page_granule_file)
{
	EXPECT_TRUE(granule_invariants_hold());
	granule_file_close(&self->file);
}

#define MAP_IT(_len) \
	granule_file_map(&self->file, variant->kind, variant->shared, NULL, _len, \
			 PROT_RW, 0)

static unsigned long whole(int pagemap, const char *map)
{
	return granule_count(pagemap, map, FILE_LEN, GRANULE_WHOLE);
}

static void read_granules(const char *map, unsigned long first, unsigned long nr)
{
	while (nr--)
		FORCE_READ(map[first++ * GRANULE_SIZE + 5 * BASE_SIZE]);
}

/* A mapping of a file is tagged, and congruent to its offset. */
TEST_F(page_granule_file, tagged)
{
	const off_t offset = variant->fs == FS_SYSV ? 0 : 2 * GRANULE_SIZE;
	char *map = granule_file_map(&self->file, variant->kind, variant->shared, NULL,
				     FILE_LEN - offset, PROT_RW, offset);

	ASSERT_NE(map, MAP_FAILED);
	EXPECT_TRUE(granule_aligned(map));
	EXPECT_EQ(granule_kind_of(map), variant->kind);
	EXPECT_TRUE(granule_vma_has_flag(map, "gr"));
}

/* A file that is not cached is read and mapped granule by granule. */
TEST_F(page_granule_file, cold)
{
	long faults;

	if (variant->fs == FS_SYSV) {
		self->map = MAP_IT(FILE_LEN);
		ASSERT_NE(self->map, MAP_FAILED);
	} else {
		/* Memory is cold if it has never been touched. */
		if (!fs_is_memory(variant->fs))
			ASSERT_TRUE(granule_file_cache(&self->file, CACHE_COLD));
		self->map = MAP_IT(FILE_LEN);
		ASSERT_NE(self->map, MAP_FAILED);
	}
	faults = granule_faults();
	read_granules(self->map, 0, FILE_GRANULES);
	EXPECT_EQ(whole(self->pagemap, self->map), FILE_GRANULES);
	EXPECT_LE(granule_faults() - faults, (long)FILE_GRANULES + FAULT_SLACK);
	if (!fs_is_memory(variant->fs))
		EXPECT_TRUE(granule_file_holds(&self->file, self->map, FILE_LEN));
}

/* Readahead gives up on a file after a hundred misses, but a granule is read. */
TEST_F(page_granule_file, cold_random)
{
	unsigned long i;

	if (fs_is_memory(variant->fs))
		return;
	ASSERT_TRUE(granule_file_cache(&self->file, CACHE_COLD));
	self->map = MAP_IT(FILE_LEN);
	ASSERT_NE(self->map, MAP_FAILED);
	for (i = 0; i < 120; i++) {
		FORCE_READ(*self->map);
		ASSERT_EQ(madvise(self->map, FILE_LEN, MADV_DONTNEED), 0);
		ASSERT_EQ(posix_fadvise(self->file.fd, 0, 0, POSIX_FADV_DONTNEED), 0);
	}
	read_granules(self->map, 3, 1);
	read_granules(self->map, 11, 1);
	EXPECT_EQ(granule_state(self->pagemap, self->map + 3 * GRANULE_SIZE),
		  GRANULE_WHOLE);
	EXPECT_EQ(granule_state(self->pagemap, self->map + 11 * GRANULE_SIZE),
		  GRANULE_WHOLE);
	EXPECT_TRUE(granule_file_holds(&self->file, self->map, FILE_LEN));
}

/* MADV_RANDOM asks for single pages by default; a contract reads granules. */
TEST_F(page_granule_file, advised_random)
{
	const bool contract = variant->kind == GRANULE_CONTRACT;

	if (fs_is_memory(variant->fs))
		return;
	ASSERT_TRUE(granule_file_cache(&self->file, CACHE_COLD));
	self->map = MAP_IT(FILE_LEN);
	ASSERT_NE(self->map, MAP_FAILED);
	ASSERT_EQ(madvise(self->map, FILE_LEN, MADV_RANDOM), 0);
	read_granules(self->map, 4, 1);
	EXPECT_EQ(granule_present_pages(self->pagemap, self->map, FILE_LEN),
		  contract ? GRANULE_NR_PAGES : 1);
}

/* A program that reads a file from its start to its end. */
TEST_F(page_granule_file, advised_sequential)
{
	unsigned long i;

	if (fs_is_memory(variant->fs))
		return;
	ASSERT_TRUE(granule_file_cache(&self->file, CACHE_COLD));
	self->map = MAP_IT(FILE_LEN);
	ASSERT_NE(self->map, MAP_FAILED);
	ASSERT_EQ(madvise(self->map, FILE_LEN, MADV_SEQUENTIAL), 0);
	for (i = 0; i < FILE_LEN; i += BASE_SIZE)
		FORCE_READ(self->map[i]);
	EXPECT_EQ(whole(self->pagemap, self->map), FILE_GRANULES);
	EXPECT_TRUE(granule_file_holds(&self->file, self->map, FILE_LEN));
}

/* What is cached in small folios is copied, not read again. */
TEST_F(page_granule_file, warm_small)
{
	long faults, reads;

	ASSERT_TRUE(granule_file_cache(&self->file, CACHE_SMALL));
	self->map = MAP_IT(FILE_LEN);
	ASSERT_NE(self->map, MAP_FAILED);
	reads = granule_disk_reads();
	faults = granule_faults();
	read_granules(self->map, 0, FILE_GRANULES);
	EXPECT_EQ(whole(self->pagemap, self->map), FILE_GRANULES);
	EXPECT_LE(granule_faults() - faults, (long)FILE_GRANULES + FAULT_SLACK);
	if (!fs_is_memory(variant->fs))
		EXPECT_LE(granule_disk_reads() - reads, 16);
	EXPECT_TRUE(granule_file_holds(&self->file, self->map, FILE_LEN));
}

/* What is cached in large folios is mapped as it is. */
TEST_F(page_granule_file, warm_large)
{
	long faults;

	if (!granule_file_cache(&self->file, CACHE_LARGE))
		return;
	self->map = MAP_IT(FILE_LEN);
	ASSERT_NE(self->map, MAP_FAILED);
	faults = granule_faults();
	read_granules(self->map, 0, FILE_GRANULES);
	EXPECT_EQ(whole(self->pagemap, self->map), FILE_GRANULES);
	EXPECT_LE(granule_faults() - faults, (long)FILE_GRANULES + FAULT_SLACK);
	EXPECT_TRUE(granule_file_holds(&self->file, self->map, FILE_LEN));
}

/* The first write to a shared granule finds small folios, which are clean. */
TEST_F(page_granule_file, warm_small_write)
{
	unsigned long i;

	ASSERT_TRUE(granule_file_cache(&self->file, CACHE_SMALL));
	self->map = MAP_IT(FILE_LEN);
	ASSERT_NE(self->map, MAP_FAILED);
	for (i = 0; i < FILE_GRANULES; i++)
		self->map[i * GRANULE_SIZE + 3 * BASE_SIZE] ^= 1;
	if (variant->shared) {
		EXPECT_EQ(whole(self->pagemap, self->map), FILE_GRANULES);
		if (variant->fs != FS_SYSV)
			EXPECT_TRUE(granule_file_holds(&self->file, self->map, FILE_LEN));
		return;
	}
	/* A private copy leaves the file alone. */
	EXPECT_FALSE(granule_file_holds(&self->file, self->map, FILE_LEN));
	for (i = 0; i < FILE_GRANULES; i++)
		self->map[i * GRANULE_SIZE + 3 * BASE_SIZE] ^= 1;
	EXPECT_TRUE(granule_file_holds(&self->file, self->map, FILE_LEN));
}

/* Behind the end of the file an access fails, to the byte, at each of 16 ends. */
TEST_F(page_granule_file, end_of_file)
{
	unsigned long pages, i;
	int cold;

	if (variant->fs == FS_SYSV)
		return;
	for (cold = 0; cold < 2; cold++) {
		for (pages = 1; pages <= GRANULE_NR_PAGES; pages++) {
			const size_t len = GRANULE_SIZE + pages * BASE_SIZE - 100;

			granule_file_close(&self->file);
			ASSERT_TRUE(granule_file_open(&self->file, variant->fs, len));
			ASSERT_TRUE(granule_file_cache(&self->file, cold ? CACHE_COLD :
						       CACHE_LARGE));
			self->map = MAP_IT(2 * GRANULE_SIZE);
			ASSERT_NE(self->map, MAP_FAILED);
			read_granules(self->map, 0, 1);
			FORCE_READ(self->map[GRANULE_SIZE]);
			for (i = 0; i < GRANULE_NR_PAGES; i++)
				EXPECT_EQ(granule_try_access(self->map + GRANULE_SIZE +
							     i * BASE_SIZE, NULL),
					  i < pages ? 0 : SIGBUS);
			EXPECT_EQ(self->map[len], 0);
			EXPECT_EQ(self->map[len + 99], 0);
			EXPECT_TRUE(granule_file_holds(&self->file, self->map, len));
			munmap(self->map, 2 * GRANULE_SIZE);
		}
	}
}

/* A file that is cut inside a granule, and extended again, has lost its end. */
TEST_F(page_granule_file, truncated)
{
	const off_t cut = 5 * GRANULE_SIZE + 7 * BASE_SIZE + 8;
	unsigned long i;
	int tries;

	if (variant->fs == FS_SYSV)
		return;
	ASSERT_TRUE(granule_file_cache(&self->file, CACHE_LARGE));
	self->map = MAP_IT(FILE_LEN);
	ASSERT_NE(self->map, MAP_FAILED);
	read_granules(self->map, 0, FILE_GRANULES);
	ASSERT_EQ(whole(self->pagemap, self->map), FILE_GRANULES);

	ASSERT_EQ(ftruncate(self->file.fd, cut), 0);
	EXPECT_EQ(granule_try_access(self->map + cut, NULL), 0);
	EXPECT_EQ(granule_try_access(self->map + cut + BASE_SIZE, NULL), SIGBUS);
	EXPECT_EQ(granule_try_access(self->map + FILE_LEN - 1, NULL), SIGBUS);

	ASSERT_EQ(ftruncate(self->file.fd, FILE_LEN), 0);
	for (i = cut; i < FILE_LEN; i += BASE_SIZE / 2)
		ASSERT_EQ(self->map[i], 0);
	EXPECT_TRUE(granule_file_holds(&self->file, self->map, FILE_LEN));

	/* The granule can be whole again, once the file system lets go of it. */
	ASSERT_EQ(fsync(self->file.fd), 0);
	for (tries = 0; tries < 20; tries++) {
		madvise(self->map, FILE_LEN, MADV_COLLAPSE);
		if (granule_state(self->pagemap, self->map + 5 * GRANULE_SIZE) ==
		    GRANULE_WHOLE)
			break;
		usleep(100 * 1000);
	}
	EXPECT_LT(tries, 20);
	EXPECT_TRUE(granule_file_holds(&self->file, self->map, FILE_LEN));
}

/* What was written, and is not on the disk yet, stays in its small folios. */
TEST_F(page_granule_file, dirty_waits)
{
	const char byte = 0x77;

	if (fs_is_memory(variant->fs))
		return;
	ASSERT_TRUE(granule_file_cache(&self->file, CACHE_SMALL));
	ASSERT_EQ(pwrite(self->file.fd, &byte, 1, 3 * BASE_SIZE), 1);
	self->map = MAP_IT(FILE_LEN);
	ASSERT_NE(self->map, MAP_FAILED);
	read_granules(self->map, 0, 2);
	EXPECT_EQ(granule_state(self->pagemap, self->map), GRANULE_BROKEN);
	EXPECT_EQ(granule_state(self->pagemap, self->map + GRANULE_SIZE), GRANULE_WHOLE);
	EXPECT_TRUE(granule_file_holds(&self->file, self->map, FILE_LEN));

	/* Repair takes it when it is clean. */
	ASSERT_EQ(fsync(self->file.fd), 0);
	ASSERT_TRUE(granule_repair(true));
	EXPECT_GE(granule_until_whole(self->pagemap, self->map, 10), 0);
	granule_repair(false);
	EXPECT_EQ(granule_state(self->pagemap, self->map), GRANULE_WHOLE);
	EXPECT_TRUE(granule_file_holds(&self->file, self->map, FILE_LEN));
}

/*
 * A child maps the file untagged, in small folios, then tells so. Told to go on,
 * it reads all of the file, and returns the number of faults that it took.
 */
static pid_t fork_mapper(struct granule_file *file, bool shared, int *ready, int *go)
{
	int to[2], from[2];
	long faults;
	char *map, byte = 0;
	pid_t pid;

	if (pipe(to) || pipe(from))
		return -1;
	pid = fork();
	if (pid) {
		close(to[0]);
		close(from[1]);
		*go = to[1];
		*ready = from[0];
		return pid;
	}
	close(to[1]);
	close(from[0]);
	map = granule_file_map(file, GRANULE_UNTAGGED, shared, NULL, FILE_LEN,
			       PROT_READ, 0);
	if (map == MAP_FAILED)
		_exit(255);
	for (size_t i = 0; i < FILE_LEN; i += BASE_SIZE)
		FORCE_READ(map[i]);
	if (write(from[1], &byte, 1) != 1 || read(to[0], &byte, 1) != 1)
		_exit(255);
	faults = minor_faults();
	for (size_t i = 0; i < FILE_LEN; i += BASE_SIZE)
		FORCE_READ(map[i]);
	faults = minor_faults() - faults;
	_exit(granule_file_holds(file, map, FILE_LEN) ? (faults > 200 ? 200 : faults) : 255);
}

/* What others map stays as it is, unless MADV_COLLAPSE asks for it. */
TEST_F(page_granule_file, others_keep_theirs)
{
	const unsigned long segment = variant->fs == FS_SYSV ? GRANULE_NR_PAGES : 0;
	int round, ready, go, status;
	char byte;
	pid_t pid;

	ASSERT_TRUE(granule_file_cache(&self->file, CACHE_SMALL));
	for (round = 0; round < 2; round++) {
		pid = fork_mapper(&self->file, variant->shared, &ready, &go);
		ASSERT_GT(pid, 0);
		ASSERT_EQ(read(ready, &byte, 1), 1);

		self->map = MAP_IT(FILE_LEN);
		ASSERT_NE(self->map, MAP_FAILED);
		read_granules(self->map, 0, FILE_GRANULES);
		EXPECT_EQ(whole(self->pagemap, self->map), 0);
		if (round) {
			EXPECT_EQ(madvise(self->map, FILE_LEN, MADV_COLLAPSE), 0);
			EXPECT_EQ(whole(self->pagemap, self->map), FILE_GRANULES);
		} else {
			/* Nor does repair take them. */
			ASSERT_TRUE(granule_repair(true));
			sleep(1);
			granule_repair(false);
			EXPECT_EQ(whole(self->pagemap, self->map), 0);
		}
		EXPECT_TRUE(granule_file_holds(&self->file, self->map, FILE_LEN));

		ASSERT_EQ(write(go, &byte, 1), 1);
		ASSERT_EQ(waitpid(pid, &status, 0), pid);
		ASSERT_TRUE(WIFEXITED(status));
		/*
		 * It takes one fault for each granule that it finds unmapped. A
		 * segment has no fault-around, and its address is any: a granule
		 * in two page tables is mapped page by page.
		 */
		EXPECT_LE(WEXITSTATUS(status),
			  round * (int)(FILE_GRANULES + segment) + FAULT_SLACK);
		close(ready);
		close(go);
		munmap(self->map, FILE_LEN);
	}
}

/* Reads a page of each granule, which must not make them whole. */
static unsigned long whole_untagged(struct granule_file *file, int pagemap)
{
	char *map = granule_file_map(file, GRANULE_UNTAGGED, true, NULL, FILE_LEN,
				     PROT_RW, 0);
	unsigned long nr;

	if (map == MAP_FAILED)
		return ULONG_MAX;
	granule_touch(map, FILE_LEN);
	nr = granule_count(pagemap, map, FILE_LEN, GRANULE_WHOLE);
	munmap(map, FILE_LEN);
	return nr;
}

/*
 * write() and fallocate() fill memory that is mapped tagged in granules. Once
 * it is not mapped any more, they do as they always did.
 */
TEST_F(page_granule_file, written)
{
	if (!fs_is_memory(variant->fs) || variant->fs == FS_SYSV)
		return;
	self->map = MAP_IT(FILE_LEN);
	ASSERT_NE(self->map, MAP_FAILED);
	ASSERT_TRUE(granule_file_cache(&self->file, CACHE_LARGE));
	EXPECT_EQ(whole_untagged(&self->file, self->pagemap), FILE_GRANULES);
	EXPECT_TRUE(granule_file_holds(&self->file, self->map, FILE_LEN));

	ASSERT_EQ(fallocate(self->file.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
			    FILE_LEN), 0);
	ASSERT_EQ(fallocate(self->file.fd, 0, 0, FILE_LEN), 0);
	EXPECT_EQ(whole_untagged(&self->file, self->pagemap), FILE_GRANULES);
	/* A part of a granule is not worth all of it. */
	ASSERT_EQ(fallocate(self->file.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
			    FILE_LEN), 0);
	ASSERT_EQ(fallocate(self->file.fd, 0, BASE_SIZE, GRANULE_SIZE - BASE_SIZE), 0);
	ASSERT_EQ(fallocate(self->file.fd, 0, GRANULE_SIZE, GRANULE_SIZE - BASE_SIZE), 0);
	EXPECT_EQ(whole_untagged(&self->file, self->pagemap), 0);

	munmap(self->map, FILE_LEN);
	ASSERT_EQ(ftruncate(self->file.fd, 0), 0);
	ASSERT_EQ(ftruncate(self->file.fd, FILE_LEN), 0);
	ASSERT_TRUE(granule_file_cache(&self->file, CACHE_LARGE));
	EXPECT_EQ(whole_untagged(&self->file, self->pagemap), 0);
}

/* A default-tagged mapping at an address that is not congruent is as untagged. */
TEST_F(page_granule_file, not_congruent)
{
	char *res = granule_reserve(FILE_LEN);
	int ret;

	if (variant->fs == FS_SYSV)
		return;
	ASSERT_TRUE(granule_file_cache(&self->file, CACHE_LARGE));
	ASSERT_NE(res, NULL);
	self->map = granule_file_map(&self->file, variant->kind, variant->shared,
				     res + BASE_SIZE, FILE_LEN - BASE_SIZE * GRANULE_NR_PAGES,
				     PROT_RW, 0);
	ret = self->map == MAP_FAILED ? errno : 0;
	if (variant->kind == GRANULE_CONTRACT) {
		EXPECT_EQ(ret, EINVAL);
		return;
	}
	ASSERT_EQ(ret, 0);
	EXPECT_FALSE(granule_vma_has_flag(self->map, "gr"));
	EXPECT_TRUE(granule_file_holds(&self->file, self->map, FILE_LEN - GRANULE_SIZE));
}

int main(int argc, char **argv)
{
	granule_save_settings();
	granule_require();
	granule_thp_never();
	granule_fs_make();
	return test_harness_run(argc, argv);
}
