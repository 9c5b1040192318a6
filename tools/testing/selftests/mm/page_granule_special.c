// SPDX-License-Identifier: GPL-2.0
/*
 * Page granule: special mappings, and what acts on files from outside.
 *
 * Mappings of devices, rings and the like are never tagged. Debuggers, probes,
 * seals, locks and other processes act on tagged files as on any file.
 */
#define _GNU_SOURCE
#include "kselftest_harness.h"
#include <asm-generic/mman.h> /* Force the import of the tools version. */
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/if_packet.h>
#include <linux/io_uring.h>
#include <linux/perf_event.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "vm_util.h"
#include "page_granule_fs.h"
#include "page_granule_util.h"

#define NR_GRANULES	4UL
#define LEN		(NR_GRANULES * GRANULE_SIZE)
#define NR_HUGEPAGES	"/proc/sys/vm/nr_hugepages"
#define CHECK_VDSO	"--check-vdso"	/* an argument of this program */

/* Mappings that are never tagged. */

FIXTURE(page_granule_special)
{
	struct granule_file file;
};

/* What is mapped. @open gives a descriptor, or -1. */
struct special {
	int (*open)(void);
	size_t len;
	bool (*works)(char *map, size_t len);
	bool single;			/* a fault populates one page */
	const char *remedy;
};

FIXTURE_VARIANT(page_granule_special)
{
	const struct special *what;
	bool shared;
};

static bool memory_works(char *map, size_t len)
{
	granule_fill(map, len, SEED);
	return granule_check(map, len, SEED);
}

static int open_zero(void)
{
	return open("/dev/zero", O_RDWR);
}

/* ramfs has no large folios. The descriptor keeps it when it is unmounted. */
static int open_ramfs(void)
{
	char dir[] = "/tmp/granule-ramfs-XXXXXX";
	int fd = -1;

	if (mkdtemp(dir) && !mount("none", dir, "ramfs", 0, NULL)) {
		fd = open(dir, O_TMPFILE | O_RDWR, 0600);
		umount2(dir, MNT_DETACH);
	}
	rmdir(dir);
	return fd;
}

static int open_secret(void)
{
	return syscall(__NR_memfd_secret, 0);
}

static int open_hugetlb(void)
{
	granule_write(NR_HUGEPAGES, "2");
	if (granule_proc_number("/proc/meminfo", "HugePages_Free:") < 1)
		return -1;
	return memfd_create("granule", MFD_HUGETLB);
}

static int open_perf(void)
{
	struct perf_event_attr attr = {
		.type = PERF_TYPE_SOFTWARE, .config = PERF_COUNT_SW_PAGE_FAULTS,
		.size = sizeof(attr), .sample_period = 1, .sample_type = PERF_SAMPLE_IP,
	};

	return syscall(__NR_perf_event_open, &attr, 0, -1, -1, 0UL);
}

/* Each page fault of the process adds a sample. */
static bool perf_works(char *map, size_t len)
{
	char *area = granule_area(GRANULE_UNTAGGED, GRANULE_SIZE, 0);

	return area && memory_works(area, GRANULE_SIZE) &&
	       __atomic_load_n(&((struct perf_event_mmap_page *)map)->data_head, __ATOMIC_ACQUIRE);
}

static int open_packet(void)
{
	struct tpacket_req req = {
		.tp_block_size = GRANULE_SIZE, .tp_block_nr = 1,
		.tp_frame_size = 2048, .tp_frame_nr = GRANULE_SIZE / 2048,
	};
	int fd = socket(AF_PACKET, SOCK_RAW, 0);

	return setsockopt(fd, SOL_PACKET, PACKET_RX_RING, &req, sizeof(req)) ? -1 : fd;
}

static const struct special zero = {
	open_zero, LEN, memory_works, true, "no /dev/zero: mount devtmpfs",
}, ramfs = {
	open_ramfs, LEN, memory_works, true, "no ramfs: make /tmp a writable directory",
}, secret = {
	open_secret, LEN, memory_works, true, "no memfd_secret: boot with secretmem.enable=1",
}, hugetlb = {
	open_hugetlb, PMD_SIZE, memory_works, false, "no hugetlb page: set CONFIG_HUGETLBFS=y",
}, perf = {
	/* A page of control data, and a power of two of samples. */
	open_perf, 17 * BASE_SIZE, perf_works, false, "no perf: set CONFIG_PERF_EVENTS=y",
}, packet = {
	open_packet, GRANULE_SIZE, memory_works, false, "no AF_PACKET: set CONFIG_PACKET=y",
};

#define ADD_SPECIAL(name, _what, _shared) \
FIXTURE_VARIANT_ADD(page_granule_special, name) { _what, _shared }

ADD_SPECIAL(dev_zero_private, &zero, false);
ADD_SPECIAL(dev_zero_shared, &zero, true);
ADD_SPECIAL(ramfs_private, &ramfs, false);
ADD_SPECIAL(ramfs_shared, &ramfs, true);
/* It has to be shared, and so have rings. */
ADD_SPECIAL(secret, &secret, true);
ADD_SPECIAL(hugetlb_private, &hugetlb, false);
ADD_SPECIAL(hugetlb_shared, &hugetlb, true);
ADD_SPECIAL(perf_ring, &perf, true);
ADD_SPECIAL(packet_ring, &packet, true);

FIXTURE_SETUP(page_granule_special)
{
	self->file.shmid = -1;
	self->file.fd = variant->what->open();
	if (self->file.fd < 0)
		SKIP(return, "%s", variant->what->remedy);
	/* A device has no size. */
	ftruncate(self->file.fd, variant->what->len);
}

FIXTURE_TEARDOWN(page_granule_special)
{
	EXPECT_TRUE(granule_invariants_hold());
	granule_file_close(&self->file);
	granule_restore_settings();
}

/*
 * Assert that the default of the process leaves the mapping as it is untagged,
 * that a contract is refused, and that MAP_SHARED ignores the request for one.
 */
TEST_F(page_granule_special, never_tagged)
{
	const struct special *what = variant->what;
	const size_t len = what->len;
	char *map;

	map = granule_file_map(&self->file, GRANULE_DEFAULT, variant->shared, NULL, len,
			       PROT_RW, 0);
	ASSERT_NE(map, MAP_FAILED);
	EXPECT_EQ(granule_kind_of(map), GRANULE_UNTAGGED);
	EXPECT_EQ(granule_kb(map), BASE_SIZE / 1024);
	if (what->single) {
		map[3 * BASE_SIZE] = 1;
		EXPECT_EQ(granule_present_pages(granule_open_pagemap(), map, len), 1);
	}
	EXPECT_TRUE(what->works(map, len));
	ASSERT_EQ(munmap(map, len), 0);

	map = granule_file_map(&self->file, GRANULE_CONTRACT, variant->shared, NULL,
			       granule_round_up(len), PROT_RW, 0);
	EXPECT_EQ(map, MAP_FAILED);
	EXPECT_EQ(errno, EOPNOTSUPP);
	if (!variant->shared)
		return;
	map = mmap(NULL, len, PROT_RW, MAP_SHARED | MAP_GRANULE_64KB, self->file.fd, 0);
	ASSERT_NE(map, MAP_FAILED);
	EXPECT_EQ(granule_kind_of(map), GRANULE_UNTAGGED);
	EXPECT_TRUE(what->works(map, len));
}

static int map_error(struct granule_file *file, enum granule_kind kind, bool shared)
{
	return granule_file_map(file, kind, shared, NULL, GRANULE_SIZE, PROT_READ, 0) ==
	       MAP_FAILED ? errno : 0;
}

/* Assert that mmap() of files of the kernel fails as it does untagged. */
TEST(kernel_files)
{
	static const char * const paths[] = {
		"/proc/meminfo", "/proc/self/status", "/proc/self/mem", GRANULE_SYSFS "enabled",
	};
	struct granule_file file = { .shmid = -1 };
	int was, now;
	size_t i;

	for (i = 0; i < 2 * ARRAY_SIZE(paths); i++) {
		file.fd = open(paths[i / 2], O_RDONLY);
		ASSERT_GE(file.fd, 0);
		was = map_error(&file, GRANULE_UNTAGGED, i % 2);
		EXPECT_NE(was, 0);
		EXPECT_EQ(map_error(&file, GRANULE_DEFAULT, i % 2), was);
		now = map_error(&file, GRANULE_CONTRACT, i % 2);
		EXPECT_TRUE(now == was || now == EOPNOTSUPP);
		close(file.fd);
	}
}

/* Returns the exit status: what is wrong with the mappings of this program. */
static int check_vdso(void)
{
	char *line = strdup(granule_read_proc("/proc/self/maps"));
	unsigned int found = 0, tagged = 0;
	struct timespec ts;

	for (line = strtok(line, "\n"); line; line = strtok(NULL, "\n")) {
		if (strstr(line, "[vdso]") || strstr(line, "[vvar")) {
			found++;
			tagged += granule_vma_has_flag((void *)strtoul(line, NULL, 16), "gr");
		}
	}
	if (tagged || found < 2 || clock_gettime(CLOCK_MONOTONIC, &ts))
		return 1;
	/* ext4 has granules, so that the program is tagged if the default is at work. */
	return granule_kind_of(check_vdso) == GRANULE_DEFAULT ? 0 : 2;
}

/* Assert that a program that starts tagged has an untagged vdso and vvar. */
TEST(vdso)
{
	char command[256];

	if (granule_fs_missing(FS_EXT4))
		SKIP(return, "%s", granule_fs_missing(FS_EXT4));
	snprintf(command, sizeof(command), "cp /proc/%d/exe %s/program && %s/program "
		 CHECK_VDSO, getpid(), granule_fs_dir(FS_EXT4), granule_fs_dir(FS_EXT4));
	ASSERT_EQ(granule_set(PR_GRANULE_EXEC, GRANULE_SIZE), 0);
	EXPECT_EQ(system(command), 0);
}

/* io_uring by its system calls. */
struct uring {
	struct io_uring_params p;
	struct io_uring_sqe *sqes;
	char *ring;
	int fd;
};

#define URING_REMEDY	"no io_uring: set CONFIG_IO_URING=y, write 0 to kernel.io_uring_disabled"
#define AIO_REMEDY	"no io_setup: set CONFIG_AIO=y, raise fs.aio-max-nr"

/* Four entries, and the heads of both rings, fit in a page. */
static bool uring_open(struct uring *ring)
{
	memset(ring, 0, sizeof(*ring));
	ring->fd = syscall(__NR_io_uring_setup, 4, &ring->p);
	if (ring->fd < 0 || !(ring->p.features & IORING_FEAT_SINGLE_MMAP))
		return false;
	ring->ring = mmap(NULL, BASE_SIZE, PROT_RW, MAP_SHARED, ring->fd, IORING_OFF_SQ_RING);
	ring->sqes = mmap(NULL, BASE_SIZE, PROT_RW, MAP_SHARED, ring->fd, IORING_OFF_SQES);
	return ring->ring != MAP_FAILED && (void *)ring->sqes != MAP_FAILED;
}

/* Do what an entry says; returns the result. */
static int uring_run(struct uring *ring, const struct io_uring_sqe *sqe)
{
	unsigned int *tail = (void *)(ring->ring + ring->p.sq_off.tail);
	unsigned int *array = (void *)(ring->ring + ring->p.sq_off.array);
	unsigned int *head = (void *)(ring->ring + ring->p.cq_off.head);
	struct io_uring_cqe *cqes = (void *)(ring->ring + ring->p.cq_off.cqes);
	unsigned int slot = *tail % ring->p.sq_entries;
	int res;

	ring->sqes[slot] = *sqe;
	array[slot] = slot;
	__atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
	if (syscall(__NR_io_uring_enter, ring->fd, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) != 1)
		return -errno;
	res = cqes[*head % ring->p.cq_entries].res;
	__atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
	return res;
}

/* Assert that the rings of io_uring are never tagged, and work. */
TEST(io_uring_rings)
{
	const off_t offsets[] = { IORING_OFF_SQ_RING, IORING_OFF_CQ_RING, IORING_OFF_SQES };
	struct io_uring_sqe nop = { .opcode = IORING_OP_NOP };
	struct uring ring;
	size_t i;

	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, GRANULE_SIZE), 0);
	if (!uring_open(&ring))
		SKIP(return, URING_REMEDY);
	EXPECT_EQ(granule_kind_of(ring.ring), GRANULE_UNTAGGED);
	EXPECT_EQ(granule_kind_of(ring.sqes), GRANULE_UNTAGGED);
	EXPECT_EQ(uring_run(&ring, &nop), 0);
	for (i = 0; i < ARRAY_SIZE(offsets); i++) {
		EXPECT_EQ(mmap(NULL, GRANULE_SIZE, PROT_RW, MAP_SHARED_VALIDATE |
			       MAP_GRANULE_64KB, ring.fd, offsets[i]), MAP_FAILED);
		EXPECT_EQ(errno, EOPNOTSUPP);
	}
}

/* Assert that the ring of AIO is not tagged. Nobody can ask for that. */
TEST(aio_ring)
{
	aio_context_t context = 0;

	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, GRANULE_SIZE), 0);
	/* More than a granule of events. */
	if (syscall(__NR_io_setup, 4096, &context))
		SKIP(return, AIO_REMEDY);
	EXPECT_TRUE(granule_vma_has_flag((void *)context, "rd"));
	EXPECT_EQ(granule_kind_of((void *)context), GRANULE_UNTAGGED);
	EXPECT_EQ(syscall(__NR_io_destroy, context), 0);
}

/* What acts on tagged files. */

FIXTURE(page_granule_special_file)
{
	struct granule_file file;
	char *map;
	int pagemap;
};

FIXTURE_VARIANT(page_granule_special_file)
{
	enum granule_fs fs;
	enum granule_kind kind;
	bool shared;
};

#define ADD_FILE(name, _fs, _kind, _shared) \
FIXTURE_VARIANT_ADD(page_granule_special_file, name) { _fs, _kind, _shared }

ADD_FILE(memfd_default_shared, FS_MEMFD, GRANULE_DEFAULT, true);
ADD_FILE(memfd_contract_shared, FS_MEMFD, GRANULE_CONTRACT, true);
ADD_FILE(ext4_default_private, FS_EXT4, GRANULE_DEFAULT, false);
ADD_FILE(ext4_contract_private, FS_EXT4, GRANULE_CONTRACT, false);

/* Map the file in whole granules; NULL if it is not. */
static char *map_whole(struct granule_file *file, enum granule_kind kind, bool shared,
		       int prot, int pagemap)
{
	char *map = granule_file_map(file, kind, shared, NULL, LEN, prot, 0);
	unsigned long i;

	/* Single pages in the LRU batch of another CPU are in use: empty it. */
	if (fs_is_memory(file->fs))
		granule_drop_caches();
	if (map == MAP_FAILED || granule_kind_of(map) != kind)
		return NULL;
	for (i = 0; i < NR_GRANULES; i++)
		FORCE_READ(map[i * GRANULE_SIZE + 5 * BASE_SIZE]);
	return granule_count(pagemap, map, LEN, GRANULE_WHOLE) == NR_GRANULES ? map : NULL;
}

#define MAP_IT(prot) \
	granule_file_map(&self->file, variant->kind, variant->shared, NULL, LEN, prot, 0)
#define MAP_WHOLE(shared, prot) \
	map_whole(&self->file, variant->kind, shared, prot, self->pagemap)
#define NR_WHOLE(pagemap, map)	granule_count(pagemap, map, LEN, GRANULE_WHOLE)

FIXTURE_SETUP(page_granule_special_file)
{
	const char *missing = granule_fs_missing(variant->fs);

	self->file.fd = -1;
	self->file.shmid = -1;
	if (missing)
		SKIP(return, "%s", missing);
	self->pagemap = granule_open_pagemap();
	ASSERT_TRUE(granule_catch_faults() && self->pagemap >= 0);
	ASSERT_TRUE(granule_file_open(&self->file, variant->fs, LEN) &&
		    granule_file_cache(&self->file, CACHE_LARGE));
	self->map = MAP_WHOLE(variant->shared, PROT_RW);
	ASSERT_NE(self->map, NULL);
}

#define TRACING		"/sys/kernel/tracing/"
#define RECORD_NAMES	TRACING "options/record-cmd"
#define PROBE_ENABLE	TRACING "events/granule/special/enable"

static void remove_probe(void)
{
	granule_write(PROBE_ENABLE, "0");
	granule_write(TRACING "uprobe_events", "-:granule/special\n");
}

FIXTURE_TEARDOWN(page_granule_special_file)
{
	EXPECT_TRUE(granule_invariants_hold());
	remove_probe();
	granule_file_close(&self->file);
	granule_restore_settings();
}

static bool read_child(pid_t pid, char *map, char *buf)
{
	struct iovec local = { buf, LEN }, remote = { map, LEN };

	return process_vm_readv(pid, &local, 1, &remote, 1, 0) == LEN;
}

/* An idle child, all of whose @map has been read into @buf. */
static pid_t fork_reader(char *map, char *buf, int *pagemap)
{
	pid_t pid = granule_fork_idle();
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/pagemap", pid);
	*pagemap = open(path, O_RDONLY);
	return read_child(pid, map, buf) ? pid : -1;
}

/* How many pages of a granule are in all of @categories? */
static long scan(int pagemap, char *granule, __u64 categories)
{
	struct page_region found[16];
	struct pm_scan_arg arg = {
		.size = sizeof(arg), .start = (uintptr_t)granule,
		.end = (uintptr_t)granule + GRANULE_SIZE,
		.vec = (uintptr_t)found, .vec_len = ARRAY_SIZE(found),
		.category_mask = categories, .return_mask = categories,
	};
	long i, nr = 0, regions = ioctl(pagemap, PAGEMAP_SCAN, &arg);

	for (i = 0; i < regions; i++)
		nr += (found[i].end - found[i].start) / BASE_SIZE;
	return regions < 0 ? -1 : nr;
}

#define FILE_PAGES(pagemap, granule)	scan(pagemap, granule, PAGE_IS_FILE | PAGE_IS_PRESENT)

/* Does @map show what read() does, except in a part of it? */
static bool holds_but(struct granule_file *file, const char *map, size_t pos, size_t len)
{
	static char buf[LEN];

	return pread(file->fd, buf, LEN, 0) == LEN && !memcmp(map, buf, pos) &&
	       !memcmp(map + pos + len, buf + pos + len, LEN - pos - len);
}

/* A file to read from, past the page cache where it has a disk. */
static bool open_source(struct granule_file *source, char *buf)
{
	enum granule_fs fs = granule_fs_missing(FS_EXT4) ? FS_MEMFD : FS_EXT4;

	granule_fill(buf, LEN, SEED);
	return granule_file_open(source, fs, LEN) && pwrite(source->fd, buf, LEN, 0) == LEN &&
	       !fsync(source->fd) && (fs == FS_MEMFD || !fcntl(source->fd, F_SETFL, O_DIRECT));
}

/*
 * The part that is read into, from inside a granule to inside another. A shared
 * mapping changes with its file, and a private one is a copy.
 */
#define PART_POS	(3 * BASE_SIZE)
#define PART_LEN	(GRANULE_SIZE + 2 * BASE_SIZE)

static bool part_is(struct granule_file *file, const char *map, bool shared, const char *buf)
{
	return !memcmp(map + PART_POS, buf, PART_LEN) &&
	       holds_but(file, map, PART_POS, PART_LEN) &&
	       granule_file_holds(file, map, LEN) == shared;
}

/* Assert that io_uring reads into a registered buffer, which is a tagged file. */
TEST_F(page_granule_special_file, io_uring_buffer)
{
	static char buf[LEN];
	struct granule_file source;
	struct iovec iov = { self->map, LEN };
	struct io_uring_sqe sqe = {
		.opcode = IORING_OP_READ_FIXED, .off = BASE_SIZE, .len = PART_LEN,
		.addr = (uintptr_t)self->map + PART_POS,
	};
	struct uring ring;

	if (!uring_open(&ring))
		SKIP(return, URING_REMEDY);
	ASSERT_TRUE(open_source(&source, buf));
	ASSERT_EQ(syscall(__NR_io_uring_register, ring.fd, IORING_REGISTER_BUFFERS, &iov, 1), 0);
	sqe.fd = source.fd;
	ASSERT_EQ(uring_run(&ring, &sqe), PART_LEN);
	EXPECT_TRUE(part_is(&self->file, self->map, variant->shared, buf + BASE_SIZE));
	EXPECT_EQ(granule_present_pages(self->pagemap, self->map, LEN), LEN / BASE_SIZE);
}

/* Assert that AIO reads into a tagged file. */
TEST_F(page_granule_special_file, aio_read)
{
	static char buf[LEN];
	struct iocb iocb = {
		.aio_lio_opcode = IOCB_CMD_PREAD, .aio_offset = BASE_SIZE, .aio_nbytes = PART_LEN,
		.aio_buf = (uintptr_t)self->map + PART_POS,
	}, *iocbs = &iocb;
	aio_context_t context = 0;
	struct granule_file source;
	struct io_event event;

	if (syscall(__NR_io_setup, 1, &context))
		SKIP(return, AIO_REMEDY);
	ASSERT_TRUE(open_source(&source, buf));
	iocb.aio_fildes = source.fd;
	ASSERT_EQ(syscall(__NR_io_submit, context, 1, &iocbs), 1);
	ASSERT_EQ(syscall(__NR_io_getevents, context, 1, 1, &event, NULL), 1);
	EXPECT_EQ(event.res, PART_LEN);
	EXPECT_TRUE(part_is(&self->file, self->map, variant->shared, buf + BASE_SIZE));
}

/* Where a debugger writes to a file, and a function that returns 42. */
#define SPOT_POS	(GRANULE_SIZE + 5 * BASE_SIZE + 0x100)

#ifdef __aarch64__
static const unsigned int code[] = { 0x52800540, 0xd65f03c0 };
#else
static const unsigned char code[] = { 0xb8, 42, 0, 0, 0, 0xc3 };
#endif

static bool add_probe(int fd)
{
	char text[128];

	snprintf(text, sizeof(text), "p:granule/special /proc/self/fd/%d:0x%lx\n", fd, SPOT_POS);
	/* Names are recorded by probes of the scheduler, whose text would be patched. */
	return !granule_write(RECORD_NAMES, "0") &&
	       !granule_write(TRACING "uprobe_events", text) && !granule_write(PROBE_ENABLE, "1");
}

/*
 * Assert that a uprobe takes one page out of its granule of tagged text, and
 * nothing else, and that the text is as it was once the probe is removed.
 */
TEST_F(page_granule_special_file, uprobe)
{
	char *shared;
	int (*func)(void);

	if (access(TRACING "uprobe_events", W_OK))
		SKIP(return, "no uprobes: set CONFIG_UPROBE_EVENTS=y, mount tracefs");
	ASSERT_EQ(pwrite(self->file.fd, code, sizeof(code), SPOT_POS), sizeof(code));
	ASSERT_EQ(fsync(self->file.fd), 0);
	self->map = MAP_WHOLE(false, PROT_READ | PROT_EXEC);
	ASSERT_NE(self->map, NULL);
	/* A shared mapping is never probed. */
	shared = MAP_WHOLE(true, PROT_READ);
	ASSERT_NE(shared, NULL);
	func = (void *)(self->map + SPOT_POS);
	ASSERT_EQ(func(), 42);

	ASSERT_TRUE(add_probe(self->file.fd));
	EXPECT_EQ(func(), 42);
	EXPECT_NE(memcmp(self->map + SPOT_POS, code, sizeof(code)), 0);
	EXPECT_TRUE(holds_but(&self->file, self->map, SPOT_POS, sizeof(code)));
	EXPECT_EQ(granule_state(self->pagemap, nth(self->map, 1)), GRANULE_BROKEN);
	EXPECT_EQ(NR_WHOLE(self->pagemap, self->map), NR_GRANULES - 1);
	EXPECT_EQ(FILE_PAGES(self->pagemap, nth(self->map, 1)), GRANULE_NR_PAGES - 1);
	EXPECT_EQ(NR_WHOLE(self->pagemap, shared), NR_GRANULES);
	EXPECT_TRUE(granule_file_holds(&self->file, shared, LEN));

	/* A copy that is in an LRU batch would not be given up for the original. */
	granule_drop_caches();
	remove_probe();
	EXPECT_EQ(func(), 42);
	EXPECT_TRUE(granule_file_holds(&self->file, self->map, LEN));
	EXPECT_EQ(NR_WHOLE(self->pagemap, self->map), NR_GRANULES);
}

/*
 * Assert that a debugger gets one private copy of a page that is mapped for
 * reading. The file, and the granules of others who map it, are as before.
 */
TEST_F(page_granule_special_file, poke)
{
	static char buf[LEN];
	int pagemap;
	pid_t pid;

	self->map = MAP_WHOLE(false, PROT_READ);
	ASSERT_NE(self->map, NULL);
	pid = fork_reader(self->map, buf, &pagemap);
	ASSERT_GT(pid, 0);
	ASSERT_EQ(NR_WHOLE(pagemap, self->map), NR_GRANULES);
	ASSERT_EQ(ptrace(PTRACE_ATTACH, pid, NULL, NULL) ?: waitpid(pid, NULL, 0), pid);
	ASSERT_EQ(ptrace(PTRACE_POKETEXT, pid, self->map + SPOT_POS, 42L), 0);

	EXPECT_EQ(granule_state(pagemap, nth(self->map, 1)), GRANULE_BROKEN);
	EXPECT_EQ(NR_WHOLE(pagemap, self->map), NR_GRANULES - 1);
	EXPECT_EQ(FILE_PAGES(pagemap, nth(self->map, 1)), GRANULE_NR_PAGES - 1);
	EXPECT_EQ(NR_WHOLE(self->pagemap, self->map), NR_GRANULES);
	EXPECT_TRUE(granule_check(self->map, LEN, FILE_SEED));
	EXPECT_TRUE(granule_file_holds(&self->file, self->map, LEN));
	ASSERT_TRUE(read_child(pid, self->map, buf));
	EXPECT_EQ(*(long *)(buf + SPOT_POS), 42);
	EXPECT_TRUE(holds_but(&self->file, buf, SPOT_POS, sizeof(long)));
	EXPECT_TRUE(granule_invariants_hold_in(pid));
	granule_kill_idle(pid);
}

/* Have KSM scan memory, of which there is some in any case. */
static bool ksm_scan(void)
{
	char *area = granule_area(GRANULE_UNTAGGED, GRANULE_SIZE, 0);

	if (!area || madvise(area, GRANULE_SIZE, MADV_MERGEABLE))
		return false;
	granule_touch(area, GRANULE_SIZE);
	return ksm_start() >= 0;
}

/*
 * Assert that MADV_MERGEABLE is accepted by default, and merges private copies
 * of pages only. A contract refuses it.
 */
TEST_F(page_granule_special_file, mergeable)
{
	const bool contract = variant->kind == GRANULE_CONTRACT;
	const bool merges = !contract && !variant->shared;
	static char model[LEN];
	unsigned long i, first;

	if (ksm_get_full_scans() < 0)
		SKIP(return, "no KSM: set CONFIG_KSM=y");
	for (i = 0; i < NR_GRANULES; i++)
		memset(page_at(nth(self->map, i), 3), 0x66, BASE_SIZE);
	memcpy(model, self->map, LEN);
	EXPECT_EQ(madvise(self->map, LEN, MADV_MERGEABLE) ? errno : 0, contract ? EINVAL : 0);
	EXPECT_EQ(granule_vma_has_flag(self->map, "mg"), merges);
	ASSERT_TRUE(ksm_scan());
	first = granule_pfn(self->pagemap, self->map, 3);
	for (i = 1; i < NR_GRANULES; i++)
		EXPECT_EQ(granule_pfn(self->pagemap, nth(self->map, i), 3) == first, merges);
	EXPECT_EQ(memcmp(self->map, model, LEN), 0);
	memset(nth(self->map, 1), 1, GRANULE_SIZE);
	memset(nth(model, 1), 1, GRANULE_SIZE);
	EXPECT_EQ(memcmp(self->map, model, LEN), 0);
}

static int uffd_continue(int uffd, char *addr, size_t len)
{
	struct uffdio_continue arg = { .range = { (uintptr_t)addr, len } };

	return ioctl(uffd, UFFDIO_CONTINUE, &arg) ? -errno : 0;
}

/*
 * Assert that each page of an armed granule has a minor fault of its own, which
 * is resolved for that page by default, and for all of them by contract.
 */
TEST_F(page_granule_special_file, uffd_minor)
{
	const bool contract = variant->kind == GRANULE_CONTRACT;
	unsigned long i;
	char *map;
	int uffd;

	if (variant->fs != FS_MEMFD)
		return;
	uffd = granule_uffd_open(UFFD_FEATURE_MINOR_SHMEM);
	if (uffd < 0)
		SKIP(return, GRANULE_UFFD_REMEDY);
	/* That of the fixture is not armed. */
	map = MAP_IT(PROT_RW);
	ASSERT_NE(map, MAP_FAILED);
	ASSERT_EQ(uffd_arm(uffd, map, LEN, UFFDIO_REGISTER_MODE_MINOR), 0);
	for (i = 0; i < GRANULE_NR_PAGES; i++) {
		EXPECT_EQ(granule_try_access(page_at(map, i), NULL), SIGBUS);
		EXPECT_EQ(granule_present(self->pagemap, map), contract ? 0 : i);
		EXPECT_EQ(uffd_continue(uffd, page_at(map, i), BASE_SIZE), contract ? -EINVAL : 0);
		EXPECT_EQ(granule_try_access(page_at(map, i), NULL), contract ? SIGBUS : 0);
	}
	if (contract)
		EXPECT_EQ(uffd_continue(uffd, map, GRANULE_SIZE), 0);
	EXPECT_EQ(granule_present_pages(self->pagemap, map, LEN), GRANULE_NR_PAGES);

	close(uffd);	/* This disarms it. */
	for (i = 1; i < NR_GRANULES; i++) {
		FORCE_READ(map[i * GRANULE_SIZE]);
		EXPECT_EQ(granule_state(self->pagemap, nth(map, i)), GRANULE_WHOLE);
	}
	EXPECT_TRUE(granule_check(map, LEN, FILE_SEED));
}

/*
 * Assert that a seal against truncation keeps granules, that one against writes
 * is refused while granules are writable, and that one against future writes
 * leaves these writable.
 */
TEST_F(page_granule_special_file, seals)
{
	char *map;

	if (variant->fs != FS_MEMFD)
		return;
	granule_file_close(&self->file);
	self->file.fd = memfd_create("granule", MFD_ALLOW_SEALING);
	ASSERT_TRUE(!ftruncate(self->file.fd, LEN) && granule_file_cache(&self->file, CACHE_LARGE));
	self->map = MAP_WHOLE(true, PROT_RW);
	ASSERT_NE(self->map, NULL);

	EXPECT_EQ(fcntl(self->file.fd, F_ADD_SEALS, F_SEAL_SHRINK), 0);
	EXPECT_EQ(ftruncate(self->file.fd, GRANULE_SIZE + 5 * BASE_SIZE), -1);
	EXPECT_EQ(fcntl(self->file.fd, F_ADD_SEALS, F_SEAL_WRITE), -1);
	EXPECT_EQ(errno, EBUSY);
	EXPECT_EQ(NR_WHOLE(self->pagemap, self->map), NR_GRANULES);
	EXPECT_TRUE(granule_check(self->map, LEN, FILE_SEED));

	EXPECT_EQ(fcntl(self->file.fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE), 0);
	EXPECT_EQ(MAP_IT(PROT_RW), MAP_FAILED);
	map = MAP_WHOLE(true, PROT_READ);
	ASSERT_NE(map, NULL);
	EXPECT_EQ(granule_try_access(map, "x"), SIGSEGV);
	memset(self->map + PART_POS, 0x3c, PART_LEN);
	EXPECT_TRUE(granule_file_holds(&self->file, map, LEN));
	EXPECT_EQ(NR_WHOLE(self->pagemap, self->map), NR_GRANULES);

	ASSERT_EQ(munmap(self->map, LEN), 0);
	EXPECT_EQ(fcntl(self->file.fd, F_ADD_SEALS, F_SEAL_WRITE), 0);
	EXPECT_EQ(pwrite(self->file.fd, "x", 1, 0), -1);
	EXPECT_TRUE(granule_is_filled(map + PART_POS, PART_LEN, 0x3c));
	EXPECT_EQ(NR_WHOLE(self->pagemap, map), NR_GRANULES);
}

/* Wait until @kb of memory are locked: CPUs count for themselves at first. */
static unsigned long mlocked_kb(unsigned long kb)
{
	unsigned long now = ~kb;
	int i;

	for (i = 0; i < 20 && now != kb; i++) {
		usleep(i * 10 * 1000);
		granule_drop_caches();
		granule_write("/proc/sys/vm/stat_refresh", "1");
		now = granule_meminfo_kb("Mlocked");
	}
	return now;
}

#define LOCKED()	granule_smaps_kb(self->map, LEN, "Locked:")

/*
 * Assert that locked memory is counted, and not any more once it is unlocked, all
 * of it or a part, also if truncation has split a granule of it.
 */
TEST_F(page_granule_special_file, mlock)
{
	const bool contract = variant->kind == GRANULE_CONTRACT;
	const unsigned long before = mlocked_kb(0), all = LEN / 1024, len = 5 * BASE_SIZE;
	char *part;

	/* mlock() copies private memory that may be written to. */
	ASSERT_EQ(mprotect(self->map, LEN, PROT_READ), 0);
	ASSERT_EQ(mlock(self->map, LEN), 0);
	EXPECT_EQ(LOCKED(), all);
	EXPECT_EQ(mlocked_kb(before + all), before + all);
	EXPECT_EQ(NR_WHOLE(self->pagemap, self->map), NR_GRANULES);
	ASSERT_EQ(munlock(self->map, LEN), 0);
	EXPECT_EQ(mlocked_kb(before), before);

	/* A part of a granule, and then a part of what is locked. */
	part = self->map + GRANULE_SIZE + 3 * BASE_SIZE;
	EXPECT_EQ(mlock(part, len) ? errno : 0, contract ? EINVAL : 0);
	EXPECT_EQ(LOCKED(), contract ? 0 : len / 1024);
	ASSERT_EQ(mlock(self->map, LEN), 0);
	EXPECT_EQ(munlock(part, len) ? errno : 0, contract ? EINVAL : 0);
	EXPECT_EQ(LOCKED(), contract ? all : all - len / 1024);

	ASSERT_EQ(mlock(self->map, LEN), 0);
	ASSERT_EQ(ftruncate(self->file.fd, GRANULE_SIZE + 7 * BASE_SIZE + 8), 0);
	EXPECT_EQ(granule_try_access(nth(self->map, 2), NULL), SIGBUS);
	ASSERT_EQ(ftruncate(self->file.fd, LEN), 0);
	EXPECT_TRUE(granule_file_holds(&self->file, self->map, LEN));
	ASSERT_EQ(munlock(self->map, LEN), 0);
	EXPECT_EQ(LOCKED(), 0);
	EXPECT_EQ(mlocked_kb(before), before);
}

static unsigned long resident(char *map, size_t len)
{
	unsigned char vec[LEN / BASE_SIZE];
	unsigned long i, nr = 0;

	if (mincore(map, len, vec))
		return -1UL;
	for (i = 0; i < len / BASE_SIZE; i++)
		nr += vec[i] & 1;
	return nr;
}

/* The pages of the file that are cached, in another way than by mincore(). */
static unsigned long cached(int fd)
{
	__u64 range[2] = { 0, LEN }, stat[5];

	return syscall(__NR_cachestat, fd, range, stat, 0) ? -1UL : stat[0];
}

/* Assert that mincore() says what the page cache has. */
TEST_F(page_granule_special_file, mincore)
{
	ASSERT_EQ(cached(self->file.fd), LEN / BASE_SIZE);
	/* Memory is cold if it is not there. */
	ASSERT_EQ(ftruncate(self->file.fd, 0) ?: ftruncate(self->file.fd, LEN), 0);
	ASSERT_TRUE(fs_is_memory(variant->fs) || granule_file_cache(&self->file, CACHE_COLD));
	EXPECT_EQ(resident(self->map, LEN), 0);
	EXPECT_EQ(cached(self->file.fd), 0);
	FORCE_READ(self->map[GRANULE_SIZE + 9 * BASE_SIZE]);
	EXPECT_EQ(resident(nth(self->map, 1), GRANULE_SIZE), GRANULE_NR_PAGES);
	EXPECT_EQ(resident(self->map, LEN), cached(self->file.fd));
	EXPECT_EQ(granule_present(self->pagemap, nth(self->map, 1)), GRANULE_NR_PAGES);
}

/* Assert that PAGEMAP_SCAN finds all pages of a granule in the file. */
TEST_F(page_granule_special_file, pagemap_scan)
{
	char *granule = nth(self->map, 1);

	ASSERT_EQ(madvise(self->map, LEN, MADV_DONTNEED), 0);
	EXPECT_EQ(FILE_PAGES(self->pagemap, granule), 0);
	FORCE_READ(granule[9 * BASE_SIZE]);
	EXPECT_EQ(FILE_PAGES(self->pagemap, granule), GRANULE_NR_PAGES);

	/* A private copy of a granule is not in the file. */
	granule[4 * BASE_SIZE] ^= 1;
	EXPECT_EQ(FILE_PAGES(self->pagemap, granule), variant->shared ? GRANULE_NR_PAGES : 0);
	EXPECT_EQ(scan(self->pagemap, granule, PAGE_IS_PRESENT), GRANULE_NR_PAGES);
}

/*
 * Assert that another process reads and writes tagged files: a write reaches the
 * file if they are shared, and otherwise a copy that only its target has.
 */
TEST_F(page_granule_special_file, process_vm)
{
	static char buf[LEN], text[LEN];
	struct iovec local = { text + PART_POS, PART_LEN };
	struct iovec remote = { self->map + PART_POS, PART_LEN };
	int pagemap;
	pid_t pid;

	pid = fork_reader(self->map, buf, &pagemap);
	ASSERT_GT(pid, 0);
	EXPECT_TRUE(granule_check(buf, LEN, FILE_SEED));
	EXPECT_EQ(NR_WHOLE(pagemap, self->map), NR_GRANULES);

	memcpy(text, buf, LEN);
	memset(text + PART_POS, 0x5c, PART_LEN);
	EXPECT_EQ(process_vm_writev(pid, &local, 1, &remote, 1, 0), PART_LEN);
	ASSERT_TRUE(read_child(pid, self->map, buf));
	EXPECT_EQ(memcmp(buf, text, LEN), 0);
	EXPECT_EQ(memcmp(self->map, text, LEN) == 0, variant->shared);
	EXPECT_EQ(granule_check(self->map, LEN, FILE_SEED), !variant->shared);
	EXPECT_TRUE(granule_file_holds(&self->file, self->map, LEN));
	/* The part is in the first two granules, which are copied as a whole. */
	EXPECT_EQ(NR_WHOLE(pagemap, self->map), NR_GRANULES);
	EXPECT_TRUE(granule_invariants_hold_in(pid));
	granule_kill_idle(pid);
}

/* A file on JFFS2 in memory, whose mappings cannot be shared and written to; or -1 */
static int unwritable_open(void)
{
	char dir[] = "/tmp/granule-jffs2-XXXXXX";
	char name[64];
	int fd = -1;

	if (read_file("/sys/class/mtd/mtd0/name", name, sizeof(name)) <= 0 ||
	    strcmp(name, "mtdram test device\n") || !mkdtemp(dir))
		return -1;
	if (!mount("mtd0", dir, "jffs2", 0, NULL)) {
		char path[64];

		snprintf(path, sizeof(path), "%s/file", dir);
		fd = open(path, O_CREAT | O_RDWR, 0600);
		unlink(path);
		umount2(dir, MNT_DETACH);
	}
	rmdir(dir);
	return fd;
}

/* Assert that a file that cannot be written by a mapping says so to mmap(), tagged or not. */
TEST(page_granule_special_unwritable)
{
	struct granule_file file = { .fs = FS_EXT4, .shmid = -1, .len = LEN };
	enum granule_kind kind;
	char *map, *buf;

	ASSERT_TRUE(granule_catch_faults());
	file.fd = unwritable_open();
	if (file.fd < 0)
		SKIP(return, "no JFFS2 in memory: set CONFIG_JFFS2_FS=y, CONFIG_MTD_MTDRAM=y");
	ASSERT_TRUE(granule_file_cache(&file, CACHE_SMALL));
	buf = malloc(LEN);
	ASSERT_NE(buf, NULL);
	granule_fill(buf, LEN, FILE_SEED);
	for (kind = GRANULE_UNTAGGED; kind <= GRANULE_CONTRACT; kind++) {
		map = granule_file_map(&file, kind, true, NULL, LEN, PROT_RW, 0);
		EXPECT_EQ(map, MAP_FAILED);
		/* It has no large folios either, which a contract takes. */
		EXPECT_EQ(errno, kind == GRANULE_CONTRACT ? EOPNOTSUPP : EINVAL);
		if (kind == GRANULE_CONTRACT)
			break;
		map = granule_file_map(&file, kind, false, NULL, LEN, PROT_RW, 0);
		ASSERT_NE(map, MAP_FAILED);
		*byte_of(map, 1) ^= 1;
		EXPECT_TRUE(granule_file_holds(&file, buf, LEN));
		*byte_of(map, 1) ^= 1;
		EXPECT_EQ(memcmp(map, buf, LEN), 0);
		munmap(map, LEN);
	}
	free(buf);
	close(file.fd);
}

int main(int argc, char **argv)
{
	if (argc == 2 && !strcmp(argv[1], CHECK_VDSO))
		return check_vdso();
	granule_save_settings();
	granule_require();
	granule_thp_never();
	granule_save_setting(NR_HUGEPAGES);
	granule_save_setting(KSM_SYSFS "run");
	granule_save_setting(RECORD_NAMES);
	granule_fs_make();
	return test_harness_run(argc, argv);
}
