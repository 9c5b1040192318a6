/* SPDX-License-Identifier: GPL-2.0 */
/*
 * File systems for the page granule tests, made for the occasion, and files on
 * them: see page_granule_fs.c.
 */
#ifndef __PAGE_GRANULE_FS_H__
#define __PAGE_GRANULE_FS_H__

#include "page_granule_util.h"

/* Where the files of a test are. */
enum granule_fs {
	FS_EXT4,
	FS_EXT4_1K,		/* in blocks of 1 KiB */
	FS_XFS,
	FS_BTRFS,
	FS_EXT4_NODELALLOC,	/* the same, which allocates at the first write */
	FS_TMPFS,
	FS_MEMFD,
	FS_SYSV,
	FS_NR,
};

/* How much of a file is in the page cache, and how, when it is mapped. */
enum granule_cache {
	CACHE_COLD,		/* nothing; for memory, it has holes */
	CACHE_SMALL,		/* folios of 4 KiB */
	CACHE_LARGE,		/* folios of 64 KiB */
};

/* A file of @len bytes. @shmid is that of a System V segment, else -1. */
struct granule_file {
	enum granule_fs fs;
	int fd;
	int shmid;
	size_t len;
};

/* Memory has no disk that it could be read from again. */
#define fs_is_memory(fs)	((fs) >= FS_TMPFS)

#define FILE_SEED		0x31

void granule_fs_make(void);
const char *granule_fs_missing(enum granule_fs fs);
const char *granule_fs_dir(enum granule_fs fs);
bool granule_fs_remount(enum granule_fs fs);
const char *granule_fs_name(enum granule_fs fs);
bool granule_file_open(struct granule_file *file, enum granule_fs fs, size_t len);
void granule_file_close(struct granule_file *file);
bool granule_file_cache(struct granule_file *file, enum granule_cache cache);
char *granule_file_map(struct granule_file *file, enum granule_kind kind,
		       bool shared, void *addr, size_t len, int prot, off_t offset);
bool granule_file_holds(struct granule_file *file, const char *map, size_t len);
long granule_disk_reads(void);
void granule_drop_caches(void);

#endif /* __PAGE_GRANULE_FS_H__ */
