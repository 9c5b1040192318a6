// SPDX-License-Identifier: GPL-2.0
/*
 * File systems for the page granule tests. Each program makes them once, on the
 * block devices that GRANULE_TEST_DISKS names, which are overwritten, or on loop
 * devices of files in /tmp.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <linux/loop.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/shm.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../kselftest.h"
#include "vm_util.h"
#include "page_granule_fs.h"

struct fs {
	const char *type;
	const char *mkfs;		/* a command that the device is added to */
	const char *options;		/* for mount() */
	size_t size;
	char dir[64];
	char missing[96];
	char dev[32];
	bool loop;
};

#define FS_DIR "/tmp/granule-fs-XXXXXX"

static char fs_root[sizeof(FS_DIR)];
static pid_t fs_owner;

/* Without the mount option, there are no limits. */
#define QUOTA "-O quota -E quotatype=usrquota"

static struct fs fs_table[FS_NR] = {
	[FS_EXT4] = { .type = "ext4", .size = 96 * MIB,
		.mkfs = "mkfs.ext4 -q -F -b 4096" },
	[FS_EXT4_1K] = { .type = "ext4", .size = 96 * MIB,
		.mkfs = "mkfs.ext4 -q -F -b 1024 " QUOTA, .options = "usrquota" },
	[FS_XFS] = { .type = "xfs", .size = 320 * MIB, .mkfs = "mkfs.xfs -q -f",
		.options = "usrquota" },
	[FS_BTRFS] = { .type = "btrfs", .size = 160 * MIB, .mkfs = "mkfs.btrfs -q -f" },
	[FS_EXT4_NODELALLOC] = { .type = "ext4", .size = 96 * MIB,
		.mkfs = "mkfs.ext4 -q -F -b 1024 " QUOTA, .options = "nodelalloc,usrquota" },
	[FS_TMPFS] = { .type = "tmpfs" },
};

/* Attach a file, and name the device in @dev. */
static bool loop_attach(const char *backing, char *dev)
{
	struct loop_config config = { };
	int ctl, nr, loop = -1;
	bool attached;

	ctl = open("/dev/loop-control", O_RDWR);
	nr = ctl < 0 ? -1 : ioctl(ctl, LOOP_CTL_GET_FREE);
	close(ctl);
	config.fd = open(backing, O_RDWR);
	if (nr < 0 || config.fd < 0)
		goto out;
	sprintf(dev, "/dev/loop%d", nr);
	loop = open(dev, O_RDWR);
out:
	attached = loop >= 0 && !ioctl(loop, LOOP_CONFIGURE, &config);
	if (!attached)
		*dev = '\0';
	/* Without CONFIG_BLK_DEV_WRITE_MOUNTED, no writer may have it open. */
	close(loop);
	close(config.fd);
	return attached;
}

static void loop_detach(const char *dev)
{
	int loop = open(dev, O_RDONLY);

	ioctl(loop, LOOP_CLR_FD);
	close(loop);
}

/* Readahead as on most disks: loop devices read further ahead, and so does btrfs. */
static void set_read_ahead(const char *pattern)
{
	glob_t found;
	size_t i;

	if (glob(pattern, 0, NULL, &found))
		return;
	for (i = 0; i < found.gl_pathc; i++)
		granule_write(found.gl_pathv[i], "128");
	globfree(&found);
}

/* Make a loop device for a file in /tmp. Returns false if that failed. */
static bool make_loop(struct fs *fs)
{
	char backing[96];
	int fd;

	snprintf(backing, sizeof(backing), "%s.img", fs->dir);
	fd = open(backing, O_CREAT | O_RDWR, 0600);
	if (fd < 0 || ftruncate(fd, fs->size))
		sprintf(fs->missing, "cannot write to /tmp");
	close(fd);
	if (*fs->missing)
		return false;
	fs->loop = loop_attach(backing, fs->dev);
	if (!fs->loop)
		sprintf(fs->missing, "no loop device: set CONFIG_BLK_DEV_LOOP=y");
	return fs->loop;
}

static void make_one(struct fs *fs, const char *disk)
{
	char command[128], path[96];

	snprintf(fs->dir, sizeof(fs->dir), "%s/%td", fs_root, fs - fs_table);
	mkdir(fs->dir, 0700);
	if (!fs->mkfs) {
		if (mount("none", fs->dir, fs->type, 0, NULL))
			sprintf(fs->missing, "no %s: %s", fs->type, strerror(errno));
		return;
	}

	if (disk)
		snprintf(fs->dev, sizeof(fs->dev), "%s", disk);
	else if (!make_loop(fs))
		return;
	snprintf(command, sizeof(command), "%s %s >/dev/null 2>&1", fs->mkfs, fs->dev);
	if (system(command)) {
		snprintf(fs->missing, sizeof(fs->missing), "\"%s\" fails: install it",
			 fs->mkfs);
		return;
	}
	snprintf(path, sizeof(path), "/sys/block/%s/queue/read_ahead_kb",
		 fs->dev + strlen("/dev/"));
	set_read_ahead(path);
	if (mount(fs->dev, fs->dir, fs->type, 0, fs->options))
		snprintf(fs->missing, sizeof(fs->missing),
			 "cannot mount %s: set its option, CONFIG_QFMT_V2, CONFIG_XFS_QUOTA",
			 fs->type);
	set_read_ahead("/sys/class/bdi/btrfs-*/read_ahead_kb");
}

/* Mount a file system again, which recovers it. Nobody may use it. */
bool granule_fs_remount(enum granule_fs fs)
{
	struct fs *this = fs_table + fs;

	return !umount2(this->dir, 0) &&
	       !mount(this->dev, this->dir, this->type, 0, this->options);
}

static void unmake(void)
{
	char command[64];
	int i;

	/* A test is a child, which must not take them away from the others. */
	if (getpid() != fs_owner)
		return;
	for (i = 0; i < FS_NR; i++) {
		if (fs_table[i].type)
			umount2(fs_table[i].dir, MNT_DETACH);
		if (fs_table[i].loop)
			loop_detach(fs_table[i].dev);
	}
	snprintf(command, sizeof(command), "rm -rf %s", fs_root);
	system(command);
}

/* Make the file systems; call it once, before the harness starts. */
void granule_fs_make(void)
{
	char *disks = getenv("GRANULE_TEST_DISKS"), *disk;
	int i;

	if (geteuid())
		ksft_exit_skip("only root may mount file systems\n");
	strcpy(fs_root, FS_DIR);
	if (!mkdtemp(fs_root))
		ksft_exit_fail_msg("no directory in /tmp: %s\n", strerror(errno));
	fs_owner = getpid();
	atexit(unmake);
	for (i = 0; i < FS_NR; i++) {
		if (!fs_table[i].type)
			continue;
		/* One after the other, and loop devices for what is left. */
		disk = disks && fs_table[i].mkfs ? strtok(disks, " ") : NULL;
		if (disk)
			disks = strtok(NULL, "");
		make_one(&fs_table[i], disk);
	}
}

/* Why there is no such file system, and what to do about it; or NULL. */
const char *granule_fs_missing(enum granule_fs fs)
{
	return *fs_table[fs].missing ? fs_table[fs].missing : NULL;
}

const char *granule_fs_dir(enum granule_fs fs)
{
	return fs_table[fs].dir;
}

const char *granule_fs_name(enum granule_fs fs)
{
	static const char * const names[FS_NR] = {
		"ext4", "ext4 in blocks of 1 KiB", "xfs", "btrfs",
		"ext4 in blocks of 1 KiB, without delayed allocation", "tmpfs", "memfd", "SysV",
	};

	return names[fs];
}

/* Open a new file, which has no name, of @len bytes without contents. */
bool granule_file_open(struct granule_file *file, enum granule_fs fs, size_t len)
{
	*file = (struct granule_file){ .fs = fs, .len = len, .shmid = -1 };

	if (fs == FS_SYSV) {
		file->shmid = shmget(IPC_PRIVATE, len, IPC_CREAT | 0600);
		file->fd = -1;
		return file->shmid >= 0;
	}
	file->fd = fs == FS_MEMFD ? memfd_create("granule", 0) :
		   open(granule_fs_dir(fs), O_TMPFILE | O_RDWR, 0600);
	return file->fd >= 0 && !ftruncate(file->fd, len);
}

void granule_file_close(struct granule_file *file)
{
	if (file->shmid >= 0)
		shmctl(file->shmid, IPC_RMID, NULL);
	if (file->fd >= 0)
		close(file->fd);
}

static bool write_in_steps(struct granule_file *file, char *buf, size_t step)
{
	size_t pos, nr;

	for (pos = 0; pos < file->len; pos += nr) {
		nr = file->len - pos < step ? file->len - pos : step;
		if (pwrite(file->fd, buf + pos, nr, pos) != (ssize_t)nr)
			return false;
	}
	return true;
}

/* Write to a segment without granules, page by page. */
static bool write_segment(struct granule_file *file, const char *buf)
{
	char *map = granule_file_map(file, GRANULE_UNTAGGED, true, NULL, file->len,
				     PROT_RW, 0);

	if (map == MAP_FAILED)
		return false;
	memcpy(map, buf, file->len);
	return !shmdt(map);
}

void granule_drop_caches(void)
{
	sync();
	granule_write(DROP_CACHES, "1");
}

/*
 * A page that another CPU has added to the cache is referenced by its LRU batch for
 * long, and is not copied. To move no pages drains the batches of all CPUs.
 */
static void drain_batches(void)
{
	int node = 0;

	syscall(__NR_move_pages, 0, 0UL, NULL, &node, NULL, 0);
}

static bool is_cached(struct granule_file *file)
{
	unsigned char *vec = calloc(1, file->len / BASE_SIZE + 1);
	void *map = mmap(NULL, file->len, PROT_READ, MAP_SHARED, file->fd, 0);
	bool cached = true;

	if (vec && map != MAP_FAILED && !mincore(map, file->len, vec))
		cached = memchr(vec, 1, file->len / BASE_SIZE + 1);
	munmap(map, file->len);
	free(vec);
	return cached;
}

/* Drop the file from the page cache, also what is still in use for a moment. */
static bool drop_file(struct granule_file *file)
{
	int i;

	granule_drop_caches();
	for (i = 0; i < 100; i++) {
		if (!posix_fadvise(file->fd, 0, 0, POSIX_FADV_DONTNEED) && !is_cached(file))
			return true;
		usleep(20 * 1000);
	}
	return false;
}

/*
 * Fill the file, and have it in the page cache as @cache says. Returns false if
 * that failed, or if the memory cannot be like that.
 */
bool granule_file_cache(struct granule_file *file, enum granule_cache cache)
{
	const size_t step = cache == CACHE_SMALL ? BASE_SIZE : GRANULE_SIZE;
	char *buf = malloc(file->len);
	bool done;

	if (!buf)
		return false;
	granule_fill(buf, file->len, FILE_SEED);
	if (file->fs == FS_SYSV)
		done = cache == CACHE_SMALL && write_segment(file, buf);
	else
		done = write_in_steps(file, buf, step) && !fsync(file->fd);
	free(buf);
	if (!done)
		return false;
	drain_batches();
	return cache != CACHE_COLD || fs_is_memory(file->fs) || drop_file(file);
}

/* A default is one of the process, which several threads may set. */
static pthread_mutex_t default_lock = PTHREAD_MUTEX_INITIALIZER;

/* mmap() or shmat() of the file */
char *granule_file_map(struct granule_file *file, enum granule_kind kind,
		       bool shared, void *addr, size_t len, int prot, off_t offset)
{
	int flags = shared ? MAP_SHARED_VALIDATE : MAP_PRIVATE;
	char *map;
	long old;

	if (addr)
		flags |= MAP_FIXED;
	if (kind == GRANULE_CONTRACT)
		flags |= MAP_GRANULE_64KB;
	pthread_mutex_lock(&default_lock);
	old = granule_get(PR_GRANULE_MMAP);
	granule_set(PR_GRANULE_MMAP, kind == GRANULE_DEFAULT ? GRANULE_SIZE : BASE_SIZE);
	if (file->shmid >= 0)
		map = shmat(file->shmid, addr, addr ? SHM_REMAP : 0);
	else
		map = mmap(addr, len, prot, flags, file->fd, offset);
	granule_set(PR_GRANULE_MMAP, old);
	pthread_mutex_unlock(&default_lock);
	return map;
}

/* Does @map show what read() does? A segment has no read(). */
bool granule_file_holds(struct granule_file *file, const char *map, size_t len)
{
	char *buf = malloc(len);
	bool same;

	if (!buf)
		return false;
	if (file->fd < 0)
		granule_fill(buf, len, FILE_SEED);
	else if (pread(file->fd, buf, len, 0) != (ssize_t)len)
		memset(buf, 0xee, len);
	same = !memcmp(map, buf, len);
	free(buf);
	return same;
}

/* KiB that the machine has read from disks. */
long granule_disk_reads(void)
{
	return granule_vmstat("pgpgin");
}
