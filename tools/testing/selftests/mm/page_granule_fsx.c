// SPDX-License-Identifier: GPL-2.0
/*
 * Page granule: mapped files, while other calls change them.
 *
 * Large folios in mapped files have had bugs in other kernels: memory behind the
 * end of a file, folios that cannot be split, writes that got lost. Each test
 * provokes one of them, and compares what the mapping shows with what read()
 * says, or with a copy that is kept beside the file.
 */
#define _GNU_SOURCE
#include "kselftest_harness.h"
#include <asm-generic/mman.h> /* Force the import of the tools version. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "vm_util.h"
#include "page_granule_fs.h"
#include "page_granule_util.h"

#define FILE_GRANULES	16UL
#define FILE_LEN	(FILE_GRANULES * GRANULE_SIZE)
#define FILE_PAGES	(FILE_LEN / BASE_SIZE)
#define PM_FILE		BIT_ULL(61)	/* or shared memory */
#define PUNCH		(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE)

FIXTURE(page_granule_fsx)
{
	struct granule_file file;
	struct granule_cg cg;
	char *map;
	char *buf;			/* what the file holds */
	int pagemap;
	bool huge_tmpfs;
};

FIXTURE_VARIANT(page_granule_fsx)
{
	enum granule_fs fs;
	enum granule_kind kind;
	bool shared;
};

#define ADD_VARIANT(name, _fs, _kind, _shared) \
FIXTURE_VARIANT_ADD(page_granule_fsx, name) \
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

/* Memory that is shared with children, and charged to this process. */
static char *shared_memory(size_t len)
{
	char *mem = mmap(NULL, len, PROT_RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (mem == MAP_FAILED)
		return NULL;
	memset(mem, 0, len);
	return mem;
}

FIXTURE_SETUP(page_granule_fsx)
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
	self->buf = shared_memory(FILE_LEN);
	ASSERT_NE(self->buf, NULL);
	granule_fill(self->buf, FILE_LEN, FILE_SEED);
}

FIXTURE_TEARDOWN(page_granule_fsx)
{
	EXPECT_TRUE(granule_invariants_hold());
	granule_file_close(&self->file);
	granule_cg_remove(&self->cg);
	if (self->huge_tmpfs)
		mount(NULL, granule_fs_dir(FS_TMPFS), NULL, MS_REMOUNT, "huge=never");
}

#define MAP_IT(_len) \
	granule_file_map(&self->file, variant->kind, variant->shared, NULL, _len, \
			 PROT_RW, 0)

/* The same numbers for the same seed, which is not 0. */
static unsigned int next_random(unsigned int *seed, unsigned int below)
{
	*seed ^= *seed << 13;
	*seed ^= *seed >> 17;
	*seed ^= *seed << 5;
	return *seed % below;
}

static unsigned int new_seed(void)
{
	const char *seed = getenv("GRANULE_FSX_SEED");

	return (seed ? atoi(seed) : getpid() * 2654435761U + time(NULL)) | 1;
}

static bool is_zero(const char *map, size_t len)
{
	return !len || (!*map && !memcmp(map, map + 1, len - 1));
}

/* Write the file anew, @step bytes at a time: the longer, the larger its folios. */
static bool write_anew(struct granule_file *file, const char *buf, size_t step)
{
	size_t pos;

	if (ftruncate(file->fd, 0))
		return false;
	for (pos = 0; pos < FILE_LEN; pos += step) {
		if (pwrite(file->fd, buf + pos, step, pos) != (ssize_t)step)
			return false;
	}
	return true;
}

/* Unmap the file, write it to its disk, and drop it from the page cache. */
static bool forget(struct granule_file *file, char *map, size_t len)
{
	return !fsync(file->fd) && !madvise(map, len, MADV_DONTNEED) &&
	       !posix_fadvise(file->fd, 0, 0, POSIX_FADV_DONTNEED);
}

/* How many granules begin in the middle of a larger folio? */
static unsigned int in_larger_folios(int pagemap, char *map)
{
	int kpageflags = open("/proc/kpageflags", O_RDONLY);
	unsigned int i, nr = 0;
	uint64_t flags;

	for (i = 0; i < FILE_GRANULES; i++) {
		FORCE_READ(map[i * GRANULE_SIZE]);
		if (!pageflags_get(pagemap_get_pfn(pagemap, map + i * GRANULE_SIZE),
				   kpageflags, &flags))
			nr += !!(flags & KPF_COMPOUND_TAIL);
	}
	close(kpageflags);
	return nr;
}

/*
 * Access the pages of the granule that the file ends in, and of those beside it.
 * Returns the first page that is accessible behind the end of the file, or that
 * is not before it; or -1.
 */
static long wrong_page(char *map, size_t len, bool backward)
{
	const unsigned long first = (len - 1) / GRANULE_SIZE * GRANULE_NR_PAGES;
	const unsigned long nr = 3 * GRANULE_NR_PAGES;
	const char byte = 1;
	unsigned long i, page;
	bool behind;

	for (i = 0; i < nr; i++) {
		page = first - GRANULE_NR_PAGES + (backward ? nr - 1 - i : i);
		behind = page * BASE_SIZE >= len;
		if (granule_try_access(page_at(map, page),
				       behind && page % 2 ? &byte : NULL) !=
		    (behind ? SIGBUS : 0))
			return page;
	}
	return -1;
}

/* The end of the file is right by @map: nothing is there, and nothing is lost. */
static bool end_is(char *map, const char *buf, size_t len, bool backward)
{
	const long page = wrong_page(map, len, backward);
	const size_t rest = -len % BASE_SIZE;

	if (page >= 0) {
		ksft_print_msg("page %ld, the file ends in page %zu\n", page,
			       (len - 1) / BASE_SIZE);
		return false;
	}
	return !memcmp(map, buf, len) && is_zero(map + len, rest);
}

/*
 * The file has been cut to @len bytes while it was mapped at @map. Look at its
 * end by this mapping, by a new one that is accessed behind the end first, and
 * by one of which fault-around has mapped a part. Returns what is wrong, or NULL.
 */
static const char *wrong_end(struct granule_file *file, enum granule_kind kind,
			     bool shared, char *map, const char *buf, size_t len)
{
	char *new[2];
	bool right[2];
	int i;

	if (!end_is(map, buf, len, false))
		return "mapped before";
	for (i = 0; i < 2; i++) {
		new[i] = granule_file_map(file, kind, shared, NULL, FILE_LEN, PROT_RW, 0);
		if (new[i] == MAP_FAILED)
			return "cannot map";
		if (i)
			FORCE_READ(new[i][(len - 1) / GRANULE_SIZE * GRANULE_SIZE]);
		right[i] = end_is(new[i], buf, len, !i);
		munmap(new[i], FILE_LEN);
	}
	if (!right[0])
		return "accessed directly";
	return right[1] ? NULL : "faulted around";
}

#define EXPECT_END(_map, _len, _pages) \
do { \
	const char *_wrong = wrong_end(&self->file, variant->kind, variant->shared, \
				       _map, self->buf, _len); \
	EXPECT_EQ(_wrong, NULL) \
		TH_LOG("%s, with %lu pages in the last granule", _wrong, _pages); \
} while (0)

/*
 * A file that is cached in folios larger than a granule ends to the byte where
 * it is cut, and where it is extended to afterwards.
 */
TEST_F(page_granule_fsx, end_in_large_folio)
{
	unsigned long pages, step, larger = 0;
	size_t len, end;
	bool done;

	/* Memory has such folios only if it is told to. */
	self->huge_tmpfs = variant->fs == FS_TMPFS &&
		!mount(NULL, granule_fs_dir(FS_TMPFS), NULL, MS_REMOUNT, "huge=within_size");
	for (pages = 1; pages <= GRANULE_NR_PAGES; pages++) {
		len = (1 + pages % 13) * GRANULE_SIZE + pages * BASE_SIZE - 100;
		ASSERT_TRUE(write_anew(&self->file, self->buf, FILE_LEN));
		if (pages % 2)
			ASSERT_EQ(fsync(self->file.fd), 0);
		self->map = MAP_IT(FILE_LEN);
		ASSERT_NE(self->map, MAP_FAILED);
		larger += in_larger_folios(self->pagemap, self->map);

		ASSERT_EQ(ftruncate(self->file.fd, len), 0);
		EXPECT_END(self->map, len, pages);

		for (step = 1, end = len; step <= 5; step++) {
			end += step * BASE_SIZE;
			done = step % 2 ? !ftruncate(self->file.fd, end) :
			       pwrite(self->file.fd, "", 1, end - 1) == 1;
			ASSERT_TRUE(done);
			EXPECT_EQ(wrong_page(self->map, end, step % 2), -1)
				TH_LOG("%lu pages, extended to %zu", pages, end);
			EXPECT_TRUE(is_zero(self->map + len, end - len));
		}
		EXPECT_TRUE(granule_file_holds(&self->file, self->map, end));
		munmap(self->map, FILE_LEN);
	}
	if (!larger && variant->fs != FS_MEMFD)
		SKIP(return, "no folio above 64 KiB: free memory, and run again");
}

/*
 * A file ends where it is cut even if its last folio cannot be split, because a
 * pipe holds its pages. The pipe keeps what it was given.
 */
TEST_F(page_granule_fsx, cut_while_pinned)
{
	const size_t granule = 4 * GRANULE_SIZE;
	char page[BASE_SIZE];
	unsigned long pages;
	int fds[2], i;
	size_t len;

	for (pages = 1; pages <= GRANULE_NR_PAGES; pages++) {
		len = granule + pages * BASE_SIZE - 100;
		self->map = MAP_IT(FILE_LEN);
		ASSERT_NE(self->map, MAP_FAILED);
		ASSERT_TRUE(write_anew(&self->file, self->buf,
				       pages % 2 ? FILE_LEN : GRANULE_SIZE));
		if (pages & 2)
			ASSERT_EQ(fsync(self->file.fd), 0);
		ASSERT_EQ(pipe(fds), 0);
		for (i = 0; i < 2; i++) {
			struct iovec iov = {
				self->map + granule + i * (GRANULE_SIZE - BASE_SIZE), BASE_SIZE,
			};

			ASSERT_EQ(vmsplice(fds[1], &iov, 1, 0), (ssize_t)BASE_SIZE);
		}

		ASSERT_EQ(ftruncate(self->file.fd, len), 0);
		EXPECT_END(self->map, len, pages);
		/* What was behind the end is not there any more either. */
		ASSERT_EQ(ftruncate(self->file.fd, FILE_LEN), 0);
		EXPECT_TRUE(is_zero(self->map + len, FILE_LEN - len))
			TH_LOG("with %lu pages in the last granule", pages);
		madvise(self->map, FILE_LEN, MADV_COLLAPSE);
		EXPECT_TRUE(granule_file_holds(&self->file, self->map, FILE_LEN));

		/* A page below the end is as it was, up to the end. */
		ASSERT_EQ(read(fds[0], page, BASE_SIZE), (ssize_t)BASE_SIZE);
		EXPECT_EQ(memcmp(page, self->buf + granule, BASE_SIZE - 100), 0);
		close(fds[0]);
		close(fds[1]);
		munmap(self->map, FILE_LEN);
	}
}

/* A file ends where it is cut while its last folio is written to the disk. */
TEST_F(page_granule_fsx, cut_under_writeback)
{
	const size_t granule = 4 * GRANULE_SIZE;
	unsigned long pages;
	size_t len;

	if (fs_is_memory(variant->fs))
		return;
	for (pages = 1; pages <= GRANULE_NR_PAGES; pages++) {
		len = granule + pages * BASE_SIZE - 100;
		ASSERT_TRUE(write_anew(&self->file, self->buf,
				       pages % 2 ? FILE_LEN : GRANULE_SIZE));
		self->map = MAP_IT(FILE_LEN);
		ASSERT_NE(self->map, MAP_FAILED);
		force_read_pages(self->map, FILE_PAGES, BASE_SIZE);
		if (variant->shared)
			memcpy(self->map + granule, self->buf + granule, GRANULE_SIZE);
		ASSERT_EQ(sync_file_range(self->file.fd, 0, FILE_LEN,
					  SYNC_FILE_RANGE_WRITE), 0);
		ASSERT_EQ(ftruncate(self->file.fd, len), 0);
		EXPECT_END(self->map, len, pages);
		ASSERT_EQ(ftruncate(self->file.fd, FILE_LEN), 0);
		EXPECT_TRUE(is_zero(self->map + len, FILE_LEN - len))
			TH_LOG("with %lu pages in the last granule", pages);
		munmap(self->map, FILE_LEN);
	}
}

/* Holes are punched at random while others read the file. */
struct holes {
	bool stop;
	unsigned long wrong;		/* a word that was never there */
	unsigned long reads;
};

/*
 * A child reads words at random until it is told to stop. Each byte is that of
 * the file, or 0: a hole may be cleared byte by byte.
 */
static pid_t fork_reader(struct holes *holes, char *map, const char *buf,
			 unsigned int seed)
{
	pid_t pid = fork();

	if (pid)
		return pid;
	while (!__atomic_load_n(&holes->stop, __ATOMIC_RELAXED)) {
		const size_t word = next_random(&seed, FILE_LEN / sizeof(long));
		unsigned long got = FORCE_READ(((unsigned long *)map)[word]);
		unsigned long want = ((unsigned long *)buf)[word];
		unsigned int i;

		for (i = 0; i < 64; i += 8) {
			const unsigned char byte = got >> i;

			if (byte && byte != (unsigned char)(want >> i))
				__atomic_fetch_add(&holes->wrong, 1, __ATOMIC_RELAXED);
		}
		__atomic_fetch_add(&holes->reads, 1, __ATOMIC_RELAXED);
	}
	_exit(0);
}

/*
 * Readers see the contents of a page or, once it is punched out, zeroes, and
 * nothing else. A page that is punched out is zero from then on.
 */
TEST_F(page_granule_fsx, holes_under_readers)
{
	struct holes *holes = (void *)shared_memory(sizeof(*holes));
	unsigned int seed = new_seed(), first_seed = seed, i;
	pid_t readers[2];

	/* See check_range_has_page(), which passes over them. */
	if (variant->fs == FS_BTRFS)
		SKIP(return, "btrfs keeps what large folios are read with during a punch");
	ASSERT_NE(holes, NULL);
	self->map = MAP_IT(FILE_LEN);
	ASSERT_NE(self->map, MAP_FAILED);
	ASSERT_TRUE(write_anew(&self->file, self->buf, GRANULE_SIZE));
	if (next_random(&seed, 2))
		ASSERT_EQ(fsync(self->file.fd), 0);
	for (i = 0; i < 2; i++) {
		readers[i] = fork_reader(holes, self->map, self->buf, seed + 2 * i);
		ASSERT_GT(readers[i], 0);
	}
	for (i = 0; i < 128; i++) {
		const size_t pos = next_random(&seed, FILE_PAGES) * BASE_SIZE;
		char *granule = self->map + pos / GRANULE_SIZE * GRANULE_SIZE;

		ASSERT_EQ(fallocate(self->file.fd, PUNCH, pos, BASE_SIZE), 0);
		EXPECT_TRUE(is_zero(self->map + pos, BASE_SIZE))
			TH_LOG("page %zu, seed %u", pos / BASE_SIZE, first_seed);
		/* Readers that unmapped nothing would fault only once. */
		if (i % 4 == 1)
			madvise(granule, GRANULE_SIZE, MADV_DONTNEED);
		if (i % 4 == 3)
			madvise(granule, GRANULE_SIZE, MADV_COLLAPSE);
	}
	/* Contents of the readers' copy change only now. */
	usleep(20 * 1000);
	__atomic_store_n(&holes->stop, true, __ATOMIC_RELAXED);
	for (i = 0; i < 2; i++)
		EXPECT_TRUE(granule_child_ends(readers[i]));
	EXPECT_EQ(holes->wrong, 0) TH_LOG("seed %u", first_seed);
	EXPECT_GT(holes->reads, 0);

	for (seed = first_seed, next_random(&seed, 2), i = 0; i < 128; i++)
		memset(self->buf + next_random(&seed, FILE_PAGES) * BASE_SIZE, 0, BASE_SIZE);
	EXPECT_EQ(memcmp(self->map, self->buf, FILE_LEN), 0) TH_LOG("seed %u", first_seed);
	EXPECT_TRUE(granule_file_holds(&self->file, self->map, FILE_LEN));
}

/*
 * Random operations on a file, each compared with a copy of what it has to hold.
 * The file does not fit into the memory that its process may use.
 */
#define FSX_LEN		(4 * MIB)
#define FSX_OP_LEN	(2 * GRANULE_SIZE)
#define FSX_OPS		125
#define FSX_MEMORY	"3M"

struct fsx {
	struct granule_file *file;
	char *map;
	char *copy;
	char *private;			/* what private copies have to hold */
	bool wrote[FSX_LEN / BASE_SIZE];	/* which pages have to be copies */
	int pagemap;
	char *noise;
	char *buf;
	size_t size;
	bool shared;
	unsigned int seed;
	unsigned int first_seed;
	unsigned int op;
	unsigned int copies;
	const char *name;
	size_t pos, len;
};

static bool fsx_fail(struct fsx *fsx, const char *what, size_t at)
{
	const int error = errno;

	ksft_print_msg("seed %u, operation %u, %s of %zu bytes at %zu\n", fsx->first_seed,
		       fsx->op, fsx->name, fsx->len, fsx->pos);
	ksft_print_msg("size %zu: %s at %zu, errno %d\n", fsx->size, what, at, error);
	return false;
}

static bool fsx_compare(struct fsx *fsx, const char *got, const char *want, size_t pos,
			size_t len, const char *what)
{
	size_t i;

	if (!memcmp(got, want + pos, len))
		return true;
	for (i = 0; got[i] == want[pos + i]; i++)
		;
	return fsx_fail(fsx, what, pos + i);
}

/* Is the page at @pos of the mapping a private copy, be it swapped out or not? */
static bool fsx_is_private(struct fsx *fsx, size_t pos)
{
	const uint64_t entry = pagemap_get_entry(fsx->pagemap, fsx->map + pos);

	return (entry & (PM_PRESENT | PM_SWAP)) && !(entry & PM_FILE);
}

static bool fsx_compare_map(struct fsx *fsx, size_t pos, size_t len)
{
	const size_t end = pos + len;
	size_t step;

	if (fsx->shared)
		return fsx_compare(fsx, fsx->map + pos, fsx->copy, pos, len, "mapping");
	for (; pos < end; pos += step) {
		step = BASE_SIZE - pos % BASE_SIZE;
		if (step > end - pos)
			step = end - pos;
		if (fsx->wrote[pos / BASE_SIZE] && !fsx_is_private(fsx, pos))
			return fsx_fail(fsx, "private copy lost", pos);
		if (!fsx_compare(fsx, fsx->map + pos,
				 fsx_is_private(fsx, pos) ? fsx->private : fsx->copy, pos, step,
				 "private mapping"))
			return false;
	}
	return true;
}

/* The mapping, or read(), shows what the copy has, and nothing behind it. */
static bool fsx_check(struct fsx *fsx, size_t pos, size_t len, bool by_map)
{
	const size_t size = fsx->size, end = size + -size % BASE_SIZE;

	if (pos >= size)
		pos = size > len ? size - len : 0;
	if (len > size - pos)
		len = size - pos;
	if (end < FSX_LEN && granule_try_access(fsx->map + end, NULL) != SIGBUS)
		return fsx_fail(fsx, "no SIGBUS", end);
	/* A private copy keeps what a page had behind a new end of the file. */
	if (by_map && fsx->shared && !is_zero(fsx->map + size, end - size))
		return fsx_fail(fsx, "not zero", size);
	if (by_map)
		return fsx_compare_map(fsx, pos, len);
	if (pread(fsx->file->fd, fsx->buf, len, pos) != (ssize_t)len)
		return fsx_fail(fsx, "short read", pos);
	return fsx_compare(fsx, fsx->buf, fsx->copy, pos, len, "read()");
}

static void fsx_put(struct fsx *fsx, const char *data)
{
	memcpy(fsx->copy + fsx->pos, data, fsx->len);
	if (fsx->pos + fsx->len > fsx->size)
		fsx->size = fsx->pos + fsx->len;
}

/* What is unmapped from @pos on is no private copy any more. */
static void fsx_forget_copies(struct fsx *fsx, size_t pos, size_t end)
{
	for (pos += -pos % BASE_SIZE; pos < end; pos += BASE_SIZE)
		fsx->wrote[pos / BASE_SIZE] = false;
}

static bool fsx_resize(struct fsx *fsx)
{
	const size_t size = 1 + next_random(&fsx->seed, FSX_LEN);

	fsx->len = size;
	if (ftruncate(fsx->file->fd, size))
		return false;
	if (size < fsx->size)
		memset(fsx->copy + size, 0, fsx->size - size);
	fsx_forget_copies(fsx, size, FSX_LEN);
	fsx->size = size;
	return true;
}

static bool fsx_zero(struct fsx *fsx, bool punch)
{
	const int mode = punch ? PUNCH : FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE;
	int ret = fallocate(fsx->file->fd, mode, fsx->pos, fsx->len);

	/* Memory can only be punched. */
	if (ret && !punch && errno == EOPNOTSUPP)
		ret = fallocate(fsx->file->fd, PUNCH, fsx->pos, fsx->len);
	if (ret)
		return false;
	memset(fsx->copy + fsx->pos, 0, fsx->len);
	return true;
}

/* Insert a hole, or take a part of the file out, where the filesystem can. */
static bool fsx_shift(struct fsx *fsx, bool insert)
{
	char *at = fsx->copy + fsx->pos - fsx->pos % BASE_SIZE;
	size_t rest;

	fsx->pos -= fsx->pos % BASE_SIZE;
	fsx->len += -fsx->len % BASE_SIZE;
	if (insert ? fsx->pos >= fsx->size || fsx->size + fsx->len > FSX_LEN :
	    fsx->pos + fsx->len >= fsx->size)
		return true;
	if (fallocate(fsx->file->fd, insert ? FALLOC_FL_INSERT_RANGE : FALLOC_FL_COLLAPSE_RANGE,
		      fsx->pos, fsx->len))
		return errno == EOPNOTSUPP;
	fsx_forget_copies(fsx, fsx->pos, FSX_LEN);
	rest = fsx->size - fsx->pos;
	if (insert) {
		memmove(at + fsx->len, at, rest);
		memset(at, 0, fsx->len);
		fsx->size += fsx->len;
	} else {
		memmove(at, at + fsx->len, rest - fsx->len);
		fsx->size -= fsx->len;
		memset(fsx->copy + fsx->size, 0, fsx->len);
	}
	return true;
}

static bool fsx_advise(struct fsx *fsx, int advice)
{
	const size_t first = fsx->pos / GRANULE_SIZE * GRANULE_SIZE;
	const size_t end = granule_round_up(fsx->pos + fsx->len);
	int ret = madvise(fsx->map + first, end - first, advice);

	if (advice == MADV_DONTNEED)
		fsx_forget_copies(fsx, first, end);

	/* What is in use, dirty, or not there does not become whole. */
	return !ret || (advice == MADV_COLLAPSE &&
			(errno == EAGAIN || errno == EINVAL || errno == ENOMEM ||
			 errno == EBUSY));
}

/*
 * Write by a private mapping. Pages of the granules that were not copied before have what
 * the file has now.
 */
static bool fsx_write_private(struct fsx *fsx, const char *data)
{
	const size_t first = fsx->pos / GRANULE_SIZE * GRANULE_SIZE;
	const size_t end = granule_round_up(fsx->pos + fsx->len);
	bool was_private[FSX_OP_LEN / BASE_SIZE + 2 * GRANULE_NR_PAGES];
	size_t pos;

	for (pos = first; pos < end; pos += BASE_SIZE)
		was_private[(pos - first) / BASE_SIZE] = fsx_is_private(fsx, pos);
	memcpy(fsx->map + fsx->pos, data, fsx->len);
	for (pos = first; pos < end; pos += BASE_SIZE) {
		if (!was_private[(pos - first) / BASE_SIZE] && fsx_is_private(fsx, pos))
			memcpy(fsx->private + pos, fsx->copy + pos, BASE_SIZE);
	}
	memcpy(fsx->private + fsx->pos, data, fsx->len);
	for (pos = fsx->pos - fsx->pos % BASE_SIZE; pos < fsx->pos + fsx->len; pos += BASE_SIZE)
		fsx->wrote[pos / BASE_SIZE] = true;
	fsx->copies++;
	return true;
}

static bool fsx_write_map(struct fsx *fsx, const char *data)
{
	if (fsx->pos >= fsx->size)
		return true;
	if (fsx->len > fsx->size - fsx->pos)
		fsx->len = fsx->size - fsx->pos;
	if (!fsx->shared)
		return fsx_write_private(fsx, data);
	memcpy(fsx->map + fsx->pos, data, fsx->len);
	fsx_put(fsx, data);
	return true;
}

static const char *const fsx_names[] = {
	"pwrite", "write by the mapping", "pread", "read of the mapping", "truncate",
	"hole", "zeroing", "MADV_COLLAPSE", "MADV_DONTNEED", "MADV_PAGEOUT", "msync",
	"drop", "fsync", "collapse range", "insert range",
};

static bool fsx_operate(struct fsx *fsx, unsigned int kind)
{
	const char *data = fsx->noise + next_random(&fsx->seed, FSX_OP_LEN);

	switch (kind) {
	case 0:
		if (pwrite(fsx->file->fd, data, fsx->len, fsx->pos) != (ssize_t)fsx->len)
			return false;
		fsx_put(fsx, data);
		return true;
	case 1:
		return fsx_write_map(fsx, data);
	case 2:
	case 3:
		return fsx_check(fsx, fsx->pos, fsx->len, kind == 3);
	case 4:
		return fsx_resize(fsx);
	case 5:
	case 6:
		return fsx_zero(fsx, kind == 5);
	case 7:
		return fsx_advise(fsx, MADV_COLLAPSE);
	case 8:
		return fsx_advise(fsx, MADV_DONTNEED);
	case 9:
		return fsx_advise(fsx, MADV_PAGEOUT);
	case 10:
		return !msync(fsx->map, FSX_LEN, MS_SYNC);
	case 11:
		fsx_forget_copies(fsx, 0, FSX_LEN);
		return forget(fsx->file, fsx->map, FSX_LEN);
	case 12:
		return !fsync(fsx->file->fd);
	default:
		return fsx_shift(fsx, kind == 14);
	}
}

static bool fsx_run(struct fsx *fsx)
{
	const char *seconds = getenv("GRANULE_FSX_SECONDS");
	const double end = seconds ? granule_now() + atoi(seconds) : 0;

	/* Begin with a hole that does not fit into memory. */
	if (ftruncate(fsx->file->fd, FSX_LEN))
		return false;
	fsx->size = FSX_LEN;
	if (!fsx_check(fsx, 0, FSX_LEN, true))
		return false;
	for (fsx->op = 0; fsx->op < FSX_OPS || granule_now() < end; fsx->op++) {
		unsigned int kind = next_random(&fsx->seed, ARRAY_SIZE(fsx_names));

		/* Half of what is done reads or writes; half of it keeps to a page. */
		if (next_random(&fsx->seed, 2))
			kind %= 4;
		fsx->name = fsx_names[kind];
		fsx->len = 1 + next_random(&fsx->seed, FSX_OP_LEN);
		fsx->pos = next_random(&fsx->seed, FSX_LEN - fsx->len);
		if (next_random(&fsx->seed, 2)) {
			fsx->pos -= fsx->pos % BASE_SIZE;
			fsx->len += -fsx->len % BASE_SIZE;
		}
		if (!fsx_operate(fsx, kind))
			return fsx_fail(fsx, "failed", fsx->pos);
		if (!fsx_check(fsx, fsx->pos, fsx->len, fsx->op % 2))
			return false;
		if (fsx->op % 64 == 63 && !fsx_check(fsx, 0, FSX_LEN, fsx->op & 64))
			return false;
	}
	fsx->name = "the end";
	if (!fsx->shared && !fsx->copies)
		return fsx_fail(fsx, "nothing was copied", 0);
	fsx_forget_copies(fsx, 0, FSX_LEN);
	return forget(fsx->file, fsx->map, FSX_LEN) && fsx_check(fsx, 0, FSX_LEN, true) &&
	       fsx_check(fsx, 0, FSX_LEN, false);
}

/*
 * No order of operations makes a file differ from what was written to it. It takes
 * GRANULE_FSX_SECONDS, if that is in the environment.
 */
TEST_F_TIMEOUT(page_granule_fsx, random_operations, 1200)
{
	struct fsx fsx = { .file = &self->file, .shared = variant->shared };
	unsigned int i;
	pid_t pid;

	if ((fs_is_memory(variant->fs) || !variant->shared) && !granule_have_swap(NULL))
		SKIP(return, GRANULE_SWAP_REMEDY);
	if (granule_find_cgroup2(self->cg.root))
		granule_cg_write(self->cg.root, "cgroup.subtree_control", "+memory");
	if (!granule_cg_create(&self->cg))
		SKIP(return, GRANULE_CG_REMEDY);
	ASSERT_EQ(granule_cg_write(self->cg.dir, "memory.max", FSX_MEMORY), 0);

	/* None of this is charged to the child. */
	fsx.copy = shared_memory(FSX_LEN);
	fsx.noise = shared_memory(3 * FSX_OP_LEN);
	fsx.buf = shared_memory(FSX_LEN);
	fsx.private = shared_memory(FSX_LEN);
	ASSERT_TRUE(fsx.copy && fsx.noise && fsx.buf && fsx.private);
	granule_fill(fsx.noise, 3 * FSX_OP_LEN, SEED);
	ASSERT_EQ(ftruncate(self->file.fd, 0), 0);
	self->map = MAP_IT(FSX_LEN);
	ASSERT_NE(self->map, MAP_FAILED);
	fsx.map = self->map;
	fsx.seed = new_seed();
	fsx.first_seed = fsx.seed;
	/* The first numbers after a small seed are small as well. */
	for (i = 0; i < 16; i++)
		next_random(&fsx.seed, 2);

	pid = granule_cg_fork(&self->cg);
	if (!pid) {
		fsx.pagemap = granule_open_pagemap();
		_exit(!fsx_run(&fsx));
	}
	EXPECT_TRUE(granule_child_ends(pid)) TH_LOG("seed %u", fsx.first_seed);
	/* Reclaim has acted. */
	EXPECT_GT(granule_cg_read(self->cg.dir, "memory.events", "max"), 0);
	EXPECT_EQ(granule_cg_read(self->cg.dir, "memory.events", "oom_kill"), 0);
}

/* Direct I/O and a mapping agree as soon as a call has returned. */
TEST_F(page_granule_fsx, direct_io)
{
	unsigned int seed = new_seed(), first_seed = seed, i;
	char path[64], *bounce = shared_memory(GRANULE_SIZE);
	ssize_t len;
	size_t pos;
	int fd;

	ASSERT_NE(bounce, NULL);
	ASSERT_TRUE(write_anew(&self->file, self->buf, GRANULE_SIZE));
	snprintf(path, sizeof(path), "/proc/self/fd/%d", self->file.fd);
	fd = open(path, O_RDWR | O_DIRECT);
	if (fd < 0)
		SKIP(return, "no direct I/O: mount a file system that has it");
	self->map = MAP_IT(FILE_LEN);
	ASSERT_NE(self->map, MAP_FAILED);
	force_read_pages(self->map, FILE_PAGES, BASE_SIZE);

	for (i = 0; i < 64; i++) {
		len = (1 + next_random(&seed, GRANULE_NR_PAGES)) * BASE_SIZE;
		pos = next_random(&seed, FILE_PAGES - GRANULE_NR_PAGES) * BASE_SIZE;
		granule_fill(bounce, len, seed);
		if (i % 2) {
			ASSERT_EQ(pwrite(fd, bounce, len, pos), len);
			memcpy(self->buf + pos, bounce, len);
			ASSERT_EQ(memcmp(self->map + pos, bounce, len), 0)
				TH_LOG("written at %zu, %zd bytes, seed %u", pos, len,
				       first_seed);
			continue;
		}
		if (variant->shared) {
			memcpy(self->map + pos, bounce, len);
			memcpy(self->buf + pos, bounce, len);
		}
		ASSERT_EQ(pread(fd, bounce, len, pos), len);
		ASSERT_EQ(memcmp(self->buf + pos, bounce, len), 0)
			TH_LOG("read at %zu, %zd bytes, seed %u", pos, len, first_seed);
	}
	EXPECT_EQ(memcmp(self->map, self->buf, FILE_LEN), 0) TH_LOG("seed %u", first_seed);
	EXPECT_TRUE(granule_file_holds(&self->file, self->map, FILE_LEN));

	/* A granule of the mapping can be the buffer of a read of the file itself. */
	ASSERT_EQ(pread(fd, self->map + GRANULE_SIZE, GRANULE_SIZE, 8 * GRANULE_SIZE),
		  (ssize_t)GRANULE_SIZE);
	EXPECT_EQ(memcmp(self->map + GRANULE_SIZE, self->buf + 8 * GRANULE_SIZE,
			 GRANULE_SIZE), 0);
	if (variant->shared) {
		ASSERT_EQ(fsync(self->file.fd), 0);
		EXPECT_TRUE(granule_file_holds(&self->file, self->map, FILE_LEN));
	}
	close(fd);
}

/*
 * Pages of a granule are written to and written back in turn. Each round takes
 * one fault for a page that was made read-only, and no more.
 */
TEST_F(page_granule_fsx, write_after_msync)
{
	char *granule = self->buf + 3 * GRANULE_SIZE, *mapped;
	unsigned int round, page, dirty, writes = 0;
	long faults;

	if (!variant->shared)
		SKIP(return, "private copies are not written back");
	self->map = MAP_IT(FILE_LEN);
	ASSERT_NE(self->map, MAP_FAILED);
	ASSERT_TRUE(write_anew(&self->file, self->buf, GRANULE_SIZE));
	ASSERT_EQ(fsync(self->file.fd), 0);
	mapped = self->map + 3 * GRANULE_SIZE;
	memcpy(mapped, granule, GRANULE_SIZE);

	faults = granule_faults();
	for (round = 0; round < 96; round++) {
		/* One page is clean while the others are dirty, and the reverse. */
		dirty = round % 3 == 2 ? GRANULE_NR_PAGES - 1 : 1;
		for (page = 0; page < dirty; page++, writes++) {
			const size_t pos = (round + page) % GRANULE_NR_PAGES * BASE_SIZE + round;

			granule[pos] ^= 0x55;
			FORCE_READ(mapped[pos]);
			mapped[pos] ^= 0x55;
		}
		ASSERT_EQ(msync(mapped, GRANULE_SIZE, MS_SYNC), 0);
		ASSERT_EQ(memcmp(mapped, granule, GRANULE_SIZE), 0) TH_LOG("round %u", round);
	}
	faults = granule_faults() - faults;
	EXPECT_LE(faults, (long)writes + FAULT_SLACK);

	/* Nothing was clean that had been written to. */
	ASSERT_TRUE(forget(&self->file, self->map, FILE_LEN));
	EXPECT_EQ(memcmp(self->map, self->buf, FILE_LEN), 0);
	EXPECT_TRUE(granule_file_holds(&self->file, self->map, FILE_LEN));
}

/*
 * Another process misses the page cache a hundred times, so that readahead gives
 * up on the open file that both have. A granule is still read as one.
 */
TEST_F(page_granule_fsx, misses_of_others)
{
	const size_t far = 64 * MIB, apart = 4 * GRANULE_SIZE;
	unsigned int i;
	pid_t pid;

	if (fs_is_memory(variant->fs))
		return;
	/* Holes miss the page cache as well, and need no space. */
	ASSERT_EQ(ftruncate(self->file.fd, far), 0);
	ASSERT_TRUE(granule_file_cache(&self->file, CACHE_COLD));
	pid = fork();
	if (!pid) {
		char *map = granule_file_map(&self->file, GRANULE_UNTAGGED, true, NULL, far,
					     PROT_READ, 0);

		if (map == MAP_FAILED)
			_exit(1);
		for (i = 1; i <= 200; i++)
			FORCE_READ(map[far - i * apart]);
		_exit(0);
	}
	ASSERT_TRUE(granule_child_ends(pid));

	self->map = MAP_IT(FILE_LEN);
	ASSERT_NE(self->map, MAP_FAILED);
	for (i = 2; i < FILE_GRANULES; i += 4) {
		FORCE_READ(self->map[i * GRANULE_SIZE + 9 * BASE_SIZE]);
		EXPECT_EQ(granule_state(self->pagemap, self->map + i * GRANULE_SIZE),
			  GRANULE_WHOLE);
		/* Readahead has given up, or the misses were none. */
		EXPECT_EQ(granule_present(self->pagemap,
					  self->map + (i + 1) * GRANULE_SIZE), 0);
	}
	EXPECT_EQ(memcmp(self->map, self->buf, FILE_LEN), 0);
}

/* A thread that counts in pages of a file while their granules are collapsed. */
#define RACE_GRANULES	4UL
#define RACE_PAGES	(RACE_GRANULES * GRANULE_NR_PAGES)
#define RACE_SECONDS	1.0
/* The page of each granule that is punched out, so that it is in small folios */
#define RACE_HOLE	(GRANULE_NR_PAGES - 1)

struct race {
	int fd;
	char *map;
	bool by_map;
	bool stop;
	unsigned long counts[RACE_PAGES];
	unsigned long lost;
	unsigned long failed;
};

/* Where a page's count is; in another place for each writer. */
static size_t race_pos(struct race *race, unsigned int page)
{
	return page * BASE_SIZE + (race->by_map ? 512 : 2048) + 8 * page;
}

static unsigned long race_count(struct race *race, unsigned int page, bool by_map)
{
	const size_t pos = race_pos(race, page);
	unsigned long count = 0;

	if (by_map)
		return FORCE_READ(*(unsigned long *)(race->map + pos));
	if (pread(race->fd, &count, sizeof(count), pos) != sizeof(count))
		race->failed++;
	return count;
}

static void *race_write(void *arg)
{
	struct race *race = arg;
	unsigned int seed = new_seed() + race->by_map * 2, page, i;
	unsigned long *word;

	while (!__atomic_load_n(&race->stop, __ATOMIC_RELAXED)) {
		page = next_random(&seed, RACE_GRANULES) * GRANULE_NR_PAGES;
		for (i = next_random(&seed, 4); i < RACE_HOLE; i += 4) {
			page = page / GRANULE_NR_PAGES * GRANULE_NR_PAGES + i;
			race->lost += race_count(race, page, race->by_map) !=
				      race->counts[page];
			race->counts[page]++;
			word = (void *)(race->map + race_pos(race, page));
			if (race->by_map)
				__atomic_store_n(word, race->counts[page], __ATOMIC_RELAXED);
			else if (pwrite(race->fd, &race->counts[page], sizeof(long),
					race_pos(race, page)) != sizeof(long))
				race->failed++;
		}
		/* A granule that is always dirty is never collapsed. */
		usleep(next_random(&seed, 20000));
	}
	return NULL;
}

/* Collapse granules, by advice and by faults. Returns false if a call failed. */
static bool race_collapse(struct race *race, double seconds)
{
	const char data[BASE_SIZE] = { 1 };
	const double end = granule_now() + seconds;
	unsigned long i;

	for (i = 0; granule_now() < end; i++) {
		const size_t granule = i % RACE_GRANULES * GRANULE_SIZE;
		const size_t hole = granule + RACE_HOLE * BASE_SIZE;

		if (fallocate(race->fd, PUNCH, hole, BASE_SIZE) ||
		    pwrite(race->fd, data, BASE_SIZE, hole) != (ssize_t)BASE_SIZE ||
		    fsync(race->fd))
			return false;
		if (i / RACE_GRANULES % 2)
			madvise(race->map + granule, GRANULE_SIZE, MADV_DONTNEED);
		else
			madvise(race->map + granule, GRANULE_SIZE, MADV_COLLAPSE);
		FORCE_READ(race->map[hole]);
	}
	return true;
}

static unsigned long race_mismatches(struct race *race, bool by_map)
{
	unsigned long page, nr = 0;

	for (page = 0; page < RACE_PAGES; page++)
		nr += race_count(race, page, by_map) != race->counts[page];
	return nr;
}

/*
 * No count is lost to MADV_COLLAPSE or a fault that copies the folio of the page
 * meanwhile, neither one written by the mapping nor one by pwrite().
 */
TEST_F(page_granule_fsx, collapse_under_writer)
{
	unsigned long before = granule_vmstat("granule_repair");
	struct race race = { .fd = self->file.fd };
	pthread_t writer;
	int by_map;

	if (!variant->shared)
		return;
	self->map = MAP_IT(FILE_LEN);
	ASSERT_NE(self->map, MAP_FAILED);
	race.map = self->map;
	for (by_map = 0; by_map < 2; by_map++) {
		memset(self->buf, 0, FILE_LEN);
		ASSERT_TRUE(write_anew(&self->file, self->buf, GRANULE_SIZE));
		memset(race.counts, 0, sizeof(race.counts));
		race.by_map = by_map;
		race.stop = false;
		ASSERT_EQ(pthread_create(&writer, NULL, race_write, &race), 0);
		EXPECT_TRUE(race_collapse(&race, RACE_SECONDS));
		__atomic_store_n(&race.stop, true, __ATOMIC_RELAXED);
		ASSERT_EQ(pthread_join(writer, NULL), 0);

		EXPECT_EQ(race.failed, 0);
		EXPECT_EQ(race.lost, 0) TH_LOG("by %s", by_map ? "mapping" : "pwrite()");
		EXPECT_EQ(race_mismatches(&race, !by_map), 0);
		/* A page that was taken for clean would lose it now. */
		ASSERT_TRUE(forget(&self->file, self->map, FILE_LEN));
		EXPECT_EQ(race_mismatches(&race, by_map), 0);
	}
	/* There was something to lose it to. */
	EXPECT_GT(granule_vmstat("granule_repair"), before);
}

/* Locked memory, as soon as the CPUs have told: they tell in batches. */
static bool mlocked_is(unsigned long kb)
{
	int tries;

	for (tries = 0; tries < 30; tries++) {
		granule_read_proc("/proc/sys/vm/stat_refresh");
		if (granule_meminfo_kb("Mlocked") == kb)
			return true;
		usleep(100 * 1000);
	}
	return false;
}

/* No memory counts as locked after its folio was split, and it was unlocked. */
TEST_F(page_granule_fsx, locked_and_split)
{
	const bool contract = variant->kind == GRANULE_CONTRACT;
	const size_t granule = 5 * GRANULE_SIZE, cut = granule + 5 * BASE_SIZE;
	unsigned long before = granule_meminfo_kb("Mlocked");
	char *locked;
	size_t len;
	int split;

	/* Pages to unlock are in its batches, which another CPU does not empty. */
	ASSERT_TRUE(granule_stay_on_cpu());
	ASSERT_TRUE(mlocked_is(before));
	for (split = 0; split < 4; split++) {
		self->map = MAP_IT(FILE_LEN);
		ASSERT_NE(self->map, MAP_FAILED);
		ASSERT_TRUE(write_anew(&self->file, self->buf,
				       split < 2 ? FILE_LEN : GRANULE_SIZE));
		force_read_pages(self->map, FILE_PAGES, BASE_SIZE);
		locked = self->map + granule + (contract ? 0 : 3 * BASE_SIZE);
		len = contract ? GRANULE_SIZE : 6 * BASE_SIZE;
		ASSERT_EQ(mlock(locked, len), 0);
		granule_read_proc("/proc/sys/vm/stat_refresh");
		/* A part of a larger folio does not count as locked. */
		if (contract && split >= 2)
			EXPECT_GT(granule_meminfo_kb("Mlocked"), before);

		ASSERT_EQ(split % 2 ? ftruncate(self->file.fd, cut) :
			  fallocate(self->file.fd, PUNCH, cut, BASE_SIZE), 0);
		EXPECT_EQ(memcmp(self->map, self->buf, cut), 0);
		EXPECT_EQ(munlock(locked, len), 0);
		EXPECT_TRUE(mlocked_is(before))
			TH_LOG("%lu kB, %lu before, way %d", granule_meminfo_kb("Mlocked"),
			       before, split);
		munmap(self->map, FILE_LEN);
		EXPECT_TRUE(mlocked_is(before));
	}
}

/* A tagged mapping of a child and an untagged one of its parent show the same. */
TEST_F(page_granule_fsx, tagged_child)
{
	const size_t end = FILE_LEN - 5 * BASE_SIZE - 100;
	unsigned int seed = new_seed(), round;
	pid_t pid;

	if (!variant->shared)
		return;
	ASSERT_TRUE(write_anew(&self->file, self->buf, BASE_SIZE));
	self->map = granule_file_map(&self->file, GRANULE_UNTAGGED, true, NULL, FILE_LEN,
				     PROT_RW, 0);
	ASSERT_NE(self->map, MAP_FAILED);
	for (round = 0; round < 12; round++) {
		const size_t from_parent = next_random(&seed, FILE_LEN - GRANULE_SIZE);
		const size_t from_child = next_random(&seed, FILE_LEN - GRANULE_SIZE);

		if (round % 2)
			ASSERT_EQ(fsync(self->file.fd), 0);
		memset(self->map + from_parent, round, BASE_SIZE);
		memset(self->buf + from_parent, round, BASE_SIZE);
		pid = fork();
		if (!pid) {
			char *map = MAP_IT(FILE_LEN);

			if (map == MAP_FAILED || memcmp(map, self->buf, FILE_LEN))
				_exit(1);
			if (round % 4 > 1)
				madvise(map, FILE_LEN, MADV_COLLAPSE);
			memset(map + from_child, ~round, BASE_SIZE);
			_exit(!!memcmp(map, self->map, FILE_LEN));
		}
		ASSERT_TRUE(granule_child_ends(pid)) TH_LOG("round %u", round);
		memset(self->buf + from_child, ~round, BASE_SIZE);
		ASSERT_EQ(memcmp(self->map, self->buf, FILE_LEN), 0) TH_LOG("round %u", round);
	}

	/* The parent cuts the file, which ends for the child as well. */
	ASSERT_EQ(ftruncate(self->file.fd, end), 0);
	memset(self->buf + end, 0, FILE_LEN - end);
	pid = fork();
	if (!pid) {
		char *map = MAP_IT(FILE_LEN + GRANULE_SIZE);

		_exit(map == MAP_FAILED || !end_is(map, self->buf, end, true));
	}
	EXPECT_TRUE(granule_child_ends(pid));
	EXPECT_EQ(granule_try_access(self->map + FILE_LEN - 1, NULL), SIGBUS);
}

int main(int argc, char **argv)
{
	granule_save_settings();
	granule_require();
	granule_thp_never();
	granule_fs_make();
	return test_harness_run(argc, argv);
}
