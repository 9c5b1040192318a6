// SPDX-License-Identifier: GPL-2.0
/*
 * Page granule stress: what a worker does to a file that it has mapped shared,
 * and so to the page cache that its granules are in.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/param.h>
#include <unistd.h>

#include "kselftest.h"
#include "vm_util.h"
#include "page_granule_stress.h"
#include "page_granule_util.h"

static off_t page_offset(unsigned long page)
{
	return page * BASE_SIZE;
}

/* By the file, a page or a word of it. */
void op_write_file(struct actor *actor)
{
	const struct area *area = actor->area;
	const unsigned long page = own_page(actor);
	struct page_model next = area->model[page];
	off_t offset = page_offset(page);
	size_t len = BASE_SIZE;
	char copy[BASE_SIZE];
	const char *from = copy;
	ssize_t ret;

	if (one_in(actor, 2)) {
		next.key = new_key(actor);
		next.stamp = 0;
	} else {
		next.stamp++;
		len = sizeof(uint64_t);
		offset += STAMP_WORD * len;
		from += STAMP_WORD * len;
	}
	model_write(&next, copy);
	ret = pwrite(area->file->fd, from, len, offset);
	if (ret == (ssize_t)len)
		area->model[page] = next;
	else if (ret >= 0)
		give_up();	/* a part of it is written */
	else
		worked(-1, "pwrite");
}

static void read_page(const struct area *area, unsigned long page)
{
	char copy[BASE_SIZE];
	ssize_t ret = pread(area->file->fd, copy, BASE_SIZE, page_offset(page));

	if (ret == BASE_SIZE)
		check_copy(area, page, copy);
	else if (ret >= 0)
		fail("pread of page %lu: %zd bytes", page, ret);
	else
		worked(-1, "pread");
}

void op_read_file(struct actor *actor)
{
	const unsigned long page = own_page(actor);

	read_page(actor->area, page);
}

void op_sync(struct actor *actor)
{
	struct range range = any_range(actor);
	const int fd = actor->area->file->fd;

	switch (draw(actor, 4)) {
	case 0:
		worked(fsync(fd), "fsync");
		break;
	case 1:
		worked(fdatasync(fd), "fdatasync");
		break;
	case 2:
		worked(msync(range_addr(actor->area, &range), range_len(&range), MS_SYNC),
		       "msync");
		break;
	case 3:
		worked(sync_file_range(fd, page_offset(range.first), range_len(&range),
				       SYNC_FILE_RANGE_WRITE), "sync_file_range");
		break;
	}
}

/* How the file is read, and what of it stays in the page cache. */
void op_advise_file(struct actor *actor)
{
	static const int advices[] = {
		POSIX_FADV_DONTNEED, POSIX_FADV_DONTNEED, POSIX_FADV_DONTNEED,
		POSIX_FADV_WILLNEED, POSIX_FADV_NORMAL, POSIX_FADV_RANDOM,
		POSIX_FADV_SEQUENTIAL,
	};
	static const int map_advices[] = { MADV_NORMAL, MADV_RANDOM, MADV_SEQUENTIAL };
	struct range range = any_range(actor);
	char *addr = range_addr(actor->area, &range);

	if (one_in(actor, 4)) {
		worked(madvise(addr, range_len(&range),
			       map_advices[draw(actor, ARRAY_SIZE(map_advices))]), "madvise");
		return;
	}
	/* What is mapped stays; so does what another thread has locked. */
	if (one_in(actor, 2) && madvise(addr, range_len(&range), MADV_DONTNEED) &&
	    errno != EINVAL)
		worked(-1, "MADV_DONTNEED");
	errno = posix_fadvise(actor->area->file->fd, page_offset(range.first),
			      range_len(&range), advices[draw(actor, ARRAY_SIZE(advices))]);
	worked(errno ? -1 : 0, "posix_fadvise");
}

void op_zero_range(struct actor *actor)
{
	struct range range = any_range(actor);
	struct area *area = actor->area;

	if (fallocate(area->file->fd, FALLOC_FL_ZERO_RANGE, page_offset(range.first),
		      range_len(&range))) {
		/* Memory has no such thing. */
		if (errno != EOPNOTSUPP)
			must_work(-1, "FALLOC_FL_ZERO_RANGE");
		return;
	}
	model_zero(area, &range);
}

/* Cut the file anywhere, and extend it again. */
void op_truncate(struct actor *actor)
{
	struct area *area = actor->area;
	const size_t len = draw(actor, area_len(area) - 1) + 1;
	struct range lost = { .first = len / BASE_SIZE };
	const unsigned long cut = lost.first;
	const char *addr = page_addr(area, cut);
	char copy[BASE_SIZE];
	size_t pos;

	must_work(ftruncate(area->file->fd, len), "ftruncate");
	if (cut)
		check_page(area, draw(actor, cut));
	/* Accessible up to the end of its page, and nothing is there. */
	for (pos = len % BASE_SIZE; len % BASE_SIZE && pos < BASE_SIZE; pos++) {
		if (load(addr + pos))
			fail("%#x behind the end of the file, which is at %#zx",
			     load(addr + pos), len);
	}
	/* What is before the end stays. */
	model_write(area->model + cut, copy);
	if (memcmp(addr, copy, len % BASE_SIZE))
		page_wrong(area, cut, addr, model_compare(area->model + cut, addr));
	must_work(ftruncate(area->file->fd, area_len(area)), "ftruncate");
	lost.nr = area_pages(area) - cut;
	model_zero(area, &lost);
	if (len % BASE_SIZE) {
		area->model[cut].key = new_key(actor);
		model_write(area->model + cut, page_addr(area, cut));
	}
}

/* Write to pages of a private mapping, one or all, which nobody sees. */
static void use_private(struct actor *actor, char *map, unsigned long first, unsigned long nr)
{
	const unsigned long written = one_in(actor, 2) ? nr : 1;
	const unsigned long start = draw(actor, nr - written + 1);
	const struct page_model mine = { .key = new_key(actor) };
	unsigned long page;

	for (page = start; page < start + written; page++)
		model_write(&mine, map + page * BASE_SIZE);
	if (one_in(actor, 2))
		madvise(map, nr * BASE_SIZE, MADV_COLLAPSE);
	if (one_in(actor, 2))
		madvise(map, nr * BASE_SIZE, MADV_PAGEOUT);
	for (page = 0; page < nr; page++) {
		const char *addr = map + page * BASE_SIZE;
		const bool copied = page >= start && page < start + written;

		if (copied && model_compare(&mine, addr) != PAGE_WORDS)
			fail("page %lu, copied to %p, has changed", first + page, addr);
		if (!owns(actor, first + page))
			continue;
		check_page(actor->area, first + page);
		if (!copied)
			check_copy(actor->area, first + page, addr);
	}
}

/* A second mapping of another granule, or none, shows the same. */
void op_map_twice(struct actor *actor)
{
	static const enum granule_kind kinds[] = {
		GRANULE_UNTAGGED, GRANULE_DEFAULT, GRANULE_CONTRACT,
	};
	const struct area *area = actor->area;
	const enum granule_kind kind = kinds[draw(actor, ARRAY_SIZE(kinds))];
	const unsigned long first = draw(actor, area->nr - 3) * GRANULE_NR_PAGES;
	const unsigned long nr = (1 + draw(actor, 3)) * GRANULE_NR_PAGES;
	const bool is_shared = one_in(actor, 2);
	unsigned long page;
	char *map, *addr;

	map = granule_file_map(area->file, kind, is_shared, NULL, nr * BASE_SIZE, PROT_RW,
			       page_offset(first));
	if (map == MAP_FAILED) {
		/* Granules are switched off for the moment. */
		if (errno != EOPNOTSUPP)
			worked(-1, "mmap");
		return;
	}
	for (page = first; page < first + nr; page += 1 + draw(actor, 4)) {
		if (!owns(actor, page))
			continue;
		addr = map + (page - first) * BASE_SIZE;
		check_copy(area, page, addr);
		if (is_shared && one_in(actor, 2))
			poke(area, page, addr);
		check_page(area, page);
	}
	if (!is_shared)
		use_private(actor, map, first, nr);
	must_work(munmap(map, nr * BASE_SIZE), "munmap");
}

/* What fsync() has written is on the disk, also if it is no longer cached. */
static void check_disk(const struct area *area)
{
	const int fd = area->file->fd;
	unsigned long page;

	begin("reading back");
	must_work(fsync(fd), "fsync");
	must_work(munmap(area->base, area_len(area)), "munmap");
	if (!fs_is_memory(area->file->fs))
		posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
	for (page = 0; page < area_pages(area); page++)
		read_page(area, page);
}

/* The next of those that there are; the workers begin with different ones. */
static enum granule_fs next_fs(void)
{
	enum granule_fs fs;

	do {
		fs = (self->nr * FS_SYSV / FILE_WORKERS + self->files++) % FS_SYSV;
	} while (granule_fs_missing(fs));
	return fs;
}

/* A filesystem of which no granule has been mapped whole yet, or NULL */
const char *fs_untested(void)
{
	enum granule_fs fs;

	for (fs = 0; fs < FS_SYSV; fs++) {
		if (!granule_fs_missing(fs) && !load(shared->whole + fs))
			return granule_fs_name(fs);
	}
	return NULL;
}

void file_round(struct actor *actor)
{
	enum granule_kind kind = one_in(actor, 3) ? GRANULE_DEFAULT : GRANULE_CONTRACT;
	const enum granule_fs fs = next_fs();
	struct granule_file file;
	struct area area;

	if (!granule_file_open(&file, fs, FILE_GRANULES * GRANULE_SIZE))
		must_work(-1, "open");
	area_create(actor, &area, kind, true, &file, FILE_GRANULES);
	use_area(actor, 1 + draw(actor, 3),
		 DO_ACCESS | DO_ADVISE | DO_LOCK | DO_NUMA | DO_EMPTY | DO_MAP | DO_FORK |
		 DO_FILE);
	count(shared->whole + fs,
	      granule_count(actor->pagemap, area.base, area_len(&area), GRANULE_WHOLE));
	check_disk(&area);
	area_destroy(&area);
	granule_file_close(&file);
}
