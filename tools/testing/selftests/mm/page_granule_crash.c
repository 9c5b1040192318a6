// SPDX-License-Identifier: GPL-2.0
/*
 * Page granule: what has reached the disk when a machine dies.
 *
 * Processes write to a file by a shared mapping and sync what they have written,
 * until the filesystem is shut down as if power failed. Behind recovery, each page
 * has to hold what was synced last, or something newer.
 *
 * With "write", the machine can be made to die instead: what is synced is printed, and
 * "check" compares that with the file on the next boot.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kselftest.h"
#include "vm_util.h"
#include "page_granule_fs.h"
#include "page_granule_util.h"

#define FS_SHUTDOWN		_IOR('X', 125, uint32_t)
#define SHUTDOWN_NOLOGFLUSH	2	/* nothing is written any more */

#define FILE_GRANULES	64UL
#define FILE_LEN	(FILE_GRANULES * GRANULE_SIZE)
#define FILE_PAGES	(FILE_LEN / BASE_SIZE)
#define PAGE_WORDS	(BASE_SIZE / sizeof(uint64_t))
#define WRITERS		4
#define WRITE_SECONDS	3
/* Synced pages that a run has to have to count */
#define SYNCED_MIN	64

/* The version of each page that has been synced. 0 is a hole. */
static uint32_t *synced;
static pid_t writers[WRITERS];
static char *map;
static const char *print_dir;	/* with each line, or NULL for none */

static uint64_t word_of(unsigned long page, unsigned int word, uint32_t version)
{
	return (uint64_t)version << 32 | page << 16 | word;
}

static void write_page(unsigned long page, uint32_t version)
{
	uint64_t *words = (uint64_t *)(map + page * BASE_SIZE);
	unsigned int i;

	for (i = 0; i < PAGE_WORDS; i++)
		__atomic_store_n(words + i, word_of(page, i, version), __ATOMIC_RELAXED);
}

/*
 * A page is written to while it is written to the disk, so its words may be of
 * different versions.
 */
static bool page_holds(const uint64_t *words, unsigned long page)
{
	unsigned int i;

	for (i = 0; i < PAGE_WORDS; i++) {
		const uint32_t version = words[i] >> 32;

		if (version < synced[page] ||
		    (words[i] && words[i] != word_of(page, i, version))) {
			ksft_print_msg("page %lu, word %u: %#lx, and version %u was synced\n",
				       page, i, (unsigned long)words[i], synced[page]);
			return false;
		}
	}
	return true;
}

/* Note what has been synced of a granule, in one line, which is written at once. */
static void note_synced(unsigned long granule, const uint32_t *versions)
{
	const unsigned long first = granule * GRANULE_NR_PAGES;
	char line[GRANULE_NR_PAGES * 11 + 128];
	unsigned int i;
	int len;

	memcpy(synced + first, versions + first, GRANULE_NR_PAGES * sizeof(*synced));
	if (!print_dir)
		return;
	len = snprintf(line, sizeof(line) / 2, "synced %s %lu", print_dir, granule);
	for (i = 0; i < GRANULE_NR_PAGES; i++)
		len += sprintf(line + len, " %u", versions[first + i]);
	len += sprintf(line + len, " end\n");
	if (write(STDOUT_FILENO, line, len) != len)
		_exit(1);
}

/* Each writer has granules of its own. */
static void __noreturn write_on(int fd, unsigned int id)
{
	static uint32_t versions[FILE_PAGES];
	unsigned long granule, page;
	unsigned int seed = id + 1;
	uint32_t version;
	int ret;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	/* Of the mapping, once the filesystem is shut down */
	signal(SIGBUS, SIG_DFL);
	for (version = 1;; version++) {
		granule = rand_r(&seed) % (FILE_GRANULES / WRITERS) * WRITERS + id;
		page = granule * GRANULE_NR_PAGES + rand_r(&seed) % GRANULE_NR_PAGES;
		do {
			write_page(page, version);
			versions[page] = version;
			page++;
		} while (page % GRANULE_NR_PAGES && rand_r(&seed) % 4);
		switch (rand_r(&seed) % 4) {
		case 0:
			ret = msync(map + granule * GRANULE_SIZE, GRANULE_SIZE, MS_SYNC);
			break;
		case 1:
			ret = rand_r(&seed) % 2 ? fsync(fd) : fdatasync(fd);
			break;
		case 2:
			madvise(map + granule * GRANULE_SIZE, GRANULE_SIZE, MADV_PAGEOUT);
			continue;
		default:
			continue;
		}
		if (ret)
			_exit(0);
		note_synced(granule, versions);
	}
}

/* Half of the file is a hole, and half of it has been written before. */
static int create(const char *dir)
{
	char path[128], zeroes[GRANULE_SIZE] = {};
	unsigned long i;
	int fd;

	snprintf(path, sizeof(path), "%s/crash", dir);
	fd = open(path, O_CREAT | O_TRUNC | O_RDWR, 0600);
	if (fd < 0 || ftruncate(fd, FILE_LEN))
		return -1;
	for (i = 0; i < FILE_GRANULES; i += 2) {
		if (pwrite(fd, zeroes, sizeof(zeroes), i * GRANULE_SIZE) != sizeof(zeroes))
			return -1;
	}
	sync();
	return fd;
}

/* Returns false if there is no such mapping, or not all writers. */
static bool start_writers(int fd, enum granule_kind kind)
{
	struct granule_file file = { .fd = fd, .shmid = -1, .len = FILE_LEN };
	unsigned int i;

	map = granule_file_map(&file, kind, true, NULL, FILE_LEN, PROT_RW, 0);
	if (map == MAP_FAILED)
		return false;
	for (i = 0; i < WRITERS; i++) {
		writers[i] = fork();
		if (writers[i] < 0)
			return false;
		if (!writers[i])
			write_on(fd, i);
	}
	return true;
}

/* Wait until a writer maps a granule as a whole: it also lets go of them. */
static bool writer_has_whole(pid_t pid)
{
	bool whole = false;
	char path[32];
	int pagemap, i;

	sprintf(path, "/proc/%d/pagemap", pid);
	pagemap = open(path, O_RDONLY);
	for (i = 0; i < 100 && !whole && pagemap >= 0; i++) {
		whole = granule_count(pagemap, map, FILE_LEN, GRANULE_WHOLE);
		if (!whole)
			usleep(20 * 1000);
	}
	close(pagemap);
	return whole;
}

/* Are all writers still there, and does each map granules as a whole? */
static bool writers_write(void)
{
	unsigned int i;

	for (i = 0; i < WRITERS; i++) {
		if (!writer_has_whole(writers[i]) || waitpid(writers[i], NULL, WNOHANG))
			return false;
	}
	return true;
}

static void stop_writers(void)
{
	unsigned int i;

	for (i = 0; i < WRITERS; i++) {
		kill(writers[i], SIGKILL);
		waitpid(writers[i], NULL, 0);
	}
}

/* Compare the file with what was synced. Returns how many pages were, or -1. */
static long check(const char *dir)
{
	uint64_t words[PAGE_WORDS];
	unsigned long page;
	char path[128];
	long nr = 0;
	int fd;

	snprintf(path, sizeof(path), "%s/crash", dir);
	fd = open(path, O_RDONLY);
	if (fd < 0) {
		ksft_print_msg("%s: %s\n", path, strerror(errno));
		return -1;
	}
	for (page = 0; page < FILE_PAGES; page++) {
		if (pread(fd, words, BASE_SIZE, page * BASE_SIZE) != (ssize_t)BASE_SIZE ||
		    !page_holds(words, page)) {
			close(fd);
			return -1;
		}
		nr += !!synced[page];
	}
	close(fd);
	return nr;
}

static void test_shutdown(enum granule_fs fs, enum granule_kind kind)
{
	const uint32_t how = SHUTDOWN_NOLOGFLUSH;
	const char *name = kind == GRANULE_CONTRACT ? "contract" : "default";
	int fd, root, error;
	bool wrote;
	long nr;

	if (granule_fs_missing(fs)) {
		ksft_test_result_skip("%s, %s: %s\n", granule_fs_name(fs), name,
				      granule_fs_missing(fs));
		return;
	}
	memset(synced, 0, FILE_PAGES * sizeof(*synced));
	fd = create(granule_fs_dir(fs));
	root = open(granule_fs_dir(fs), O_RDONLY);
	if (fd < 0 || root < 0 || !start_writers(fd, kind))
		ksft_exit_fail_msg("%s: cannot write to a file\n", granule_fs_name(fs));
	sleep(WRITE_SECONDS);
	wrote = writers_write();
	error = ioctl(root, FS_SHUTDOWN, &how) ? errno : 0;
	stop_writers();
	munmap(map, FILE_LEN);
	close(root);
	close(fd);
	if (error) {
		ksft_test_result_skip("%s, %s: cannot be shut down: %s\n",
				      granule_fs_name(fs), name, strerror(error));
		return;
	}
	if (!granule_fs_remount(fs))
		ksft_exit_fail_msg("%s: cannot mount it again\n", granule_fs_name(fs));
	nr = check(granule_fs_dir(fs));
	ksft_print_msg("%ld of %lu pages were synced\n", nr, FILE_PAGES);
	if (!wrote)
		ksft_print_msg("a writer has ended, or has no whole granule\n");
	ksft_test_result(wrote && nr >= SYNCED_MIN, "%s, %s\n", granule_fs_name(fs), name);
}

/* Write until the machine dies, or until a writer does. */
static int write_until_death(const char *dir, enum granule_kind kind)
{
	int fd = create(dir);

	print_dir = dir;
	if (fd < 0 || !start_writers(fd, kind)) {
		perror(dir);
		return KSFT_FAIL;
	}
	sleep(1);
	while (writers_write())
		sleep(1);
	printf("%s: a writer has ended, or has no whole granule\n", dir);
	return KSFT_FAIL;
}

/* Read what "write" has printed for @dir. Returns false if that is nothing. */
static bool read_synced(const char *dir, const char *log)
{
	const size_t len = strlen(dir);
	uint32_t versions[GRANULE_NR_PAGES];
	FILE *file = fopen(log, "r");
	unsigned long granule;
	char line[512], *pos;
	bool any = false;
	unsigned int i;

	while (file && fgets(line, sizeof(line), file)) {
		if (strncmp(line, "synced ", 7) || strncmp(line + 7, dir, len) ||
		    line[7 + len] != ' ')
			continue;
		granule = strtoul(line + 7 + len, &pos, 10);
		for (i = 0; i < GRANULE_NR_PAGES; i++)
			versions[i] = strtoul(pos, &pos, 10);
		if (granule >= FILE_GRANULES || strncmp(pos, " end", 4))
			continue;
		memcpy(synced + granule * GRANULE_NR_PAGES, versions, sizeof(versions));
		any = true;
	}
	if (file)
		fclose(file);
	return any;
}

static int check_after_death(const char *dir, const char *log)
{
	long nr;

	if (!read_synced(dir, log)) {
		fprintf(stderr, "%s: nothing was synced; write for longer\n", log);
		return KSFT_FAIL;
	}
	nr = check(dir);
	printf("# %s: %ld of %lu pages were synced, at least %u are needed\n", dir, nr,
	       FILE_PAGES, SYNCED_MIN);
	return nr >= SYNCED_MIN ? KSFT_PASS : KSFT_FAIL;
}

int main(int argc, char **argv)
{
	static const enum granule_fs filesystems[] = { FS_EXT4, FS_EXT4_1K, FS_XFS, FS_BTRFS };
	unsigned int i;

	synced = mmap(NULL, FILE_PAGES * sizeof(*synced), PROT_RW, MAP_SHARED | MAP_ANONYMOUS,
		      -1, 0);
	if (synced == MAP_FAILED)
		ksft_exit_fail_msg("no memory\n");
	if (argc == 3 && !strcmp(argv[1], "write"))
		return write_until_death(argv[2], GRANULE_DEFAULT);
	if (argc == 4 && !strcmp(argv[1], "write") && !strcmp(argv[3], "contract"))
		return write_until_death(argv[2], GRANULE_CONTRACT);
	if (argc == 4 && !strcmp(argv[1], "check"))
		return check_after_death(argv[2], argv[3]);
	if (argc > 1) {
		fprintf(stderr,
			"usage: page_granule_crash [write DIR [contract] | check DIR LOG]\n");
		return KSFT_FAIL;
	}

	ksft_print_header();
	granule_require();
	granule_save_settings();
	granule_thp_never();
	granule_fs_make();
	ksft_set_plan(2 * ARRAY_SIZE(filesystems));
	for (i = 0; i < ARRAY_SIZE(filesystems); i++) {
		test_shutdown(filesystems[i], GRANULE_DEFAULT);
		test_shutdown(filesystems[i], GRANULE_CONTRACT);
	}
	ksft_finished();
}
