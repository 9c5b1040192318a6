// SPDX-License-Identifier: GPL-2.0
/*
 * Page granule: userfaultfd. It works on whole granules of a contract VMA, and
 * on single pages of a default-tagged one, as on untagged memory.
 *
 * The first tests go through the life of memory that a monitor fills, protects
 * or moves. A table then runs each ioctl on every kind of range. The last test
 * lets memory become a contract while its removal waits for the monitor.
 */
#define _GNU_SOURCE
#include "kselftest_harness.h"
#include <asm-generic/mman.h> /* Force the import of the tools version. */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/prctl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "vm_util.h"
#include "page_granule_mem.h"
#include "page_granule_util.h"

/* The ioctls, of which some have no source. Return 0 or a negative errno. */
typedef int (*uffd_call)(int uffd, char *dst, char *src, size_t len);

static int uffd_copy(int uffd, char *dst, char *src, size_t len)
{
	struct uffdio_copy arg = {
		.dst = (unsigned long)dst, .src = (unsigned long)src, .len = len,
	};

	return ioctl(uffd, UFFDIO_COPY, &arg) ? -errno : 0;
}

static int uffd_copy_wp(int uffd, char *dst, char *src, size_t len)
{
	struct uffdio_copy arg = {
		.dst = (unsigned long)dst, .src = (unsigned long)src, .len = len,
		.mode = UFFDIO_COPY_MODE_WP,
	};

	return ioctl(uffd, UFFDIO_COPY, &arg) ? -errno : 0;
}

static int uffd_zeropage(int uffd, char *dst, char *src, size_t len)
{
	struct uffdio_zeropage arg = { .range = { (unsigned long)dst, len } };

	return ioctl(uffd, UFFDIO_ZEROPAGE, &arg) ? -errno : 0;
}

static int uffd_writeprotect(int uffd, char *dst, char *src, size_t len)
{
	struct uffdio_writeprotect arg = {
		.range = { (unsigned long)dst, len },
		.mode = UFFDIO_WRITEPROTECT_MODE_WP,
	};

	return ioctl(uffd, UFFDIO_WRITEPROTECT, &arg) ? -errno : 0;
}

static int uffd_unprotect(int uffd, char *dst, char *src, size_t len)
{
	struct uffdio_writeprotect arg = { .range = { (unsigned long)dst, len } };

	return ioctl(uffd, UFFDIO_WRITEPROTECT, &arg) ? -errno : 0;
}

static int uffd_continue(int uffd, char *dst, char *src, size_t len)
{
	struct uffdio_continue arg = { .range = { (unsigned long)dst, len } };

	return ioctl(uffd, UFFDIO_CONTINUE, &arg) ? -errno : 0;
}

static int uffd_poison(int uffd, char *dst, char *src, size_t len)
{
	struct uffdio_poison arg = { .range = { (unsigned long)dst, len } };

	return ioctl(uffd, UFFDIO_POISON, &arg) ? -errno : 0;
}

static int uffd_move(int uffd, char *dst, char *src, size_t len)
{
	struct uffdio_move arg = {
		.dst = (unsigned long)dst, .src = (unsigned long)src, .len = len,
	};

	if (ioctl(uffd, UFFDIO_MOVE, &arg))
		return -errno;
	return arg.move == (long long)len ? 0 : -EIO;
}

static int uffd_rwprotect(int uffd, char *dst, char *src, size_t len)
{
	struct uffdio_rwprotect arg = {
		.range = { (unsigned long)dst, len },
		.mode = UFFDIO_RWPROTECT_MODE_RWP,
	};

	return ioctl(uffd, UFFDIO_RWPROTECT, &arg) ? -errno : 0;
}

static int uffd_rwunprotect(int uffd, char *dst, char *src, size_t len)
{
	struct uffdio_rwprotect arg = { .range = { (unsigned long)dst, len } };

	return ioctl(uffd, UFFDIO_RWPROTECT, &arg) ? -errno : 0;
}

FIXTURE(page_granule_uffd_single)
{
	struct mem mem;
	int uffd;
};

FIXTURE_VARIANT(page_granule_uffd_single)
{
	enum granule_kind kind;
};

FIXTURE_VARIANT_ADD(page_granule_uffd_single, contract)
{
	.kind = GRANULE_CONTRACT,
};

FIXTURE_VARIANT_ADD(page_granule_uffd_single, default_tagged)
{
	.kind = GRANULE_DEFAULT,
};

FIXTURE_SETUP(page_granule_uffd_single)
{
	self->uffd = -1;
	ASSERT_TRUE(granule_catch_faults());
	ASSERT_TRUE(mem_create_nr(&self->mem, variant->kind, FEW_GRANULES));
}

FIXTURE_TEARDOWN(page_granule_uffd_single)
{
	EXPECT_TRUE(granule_invariants_hold());
	if (self->uffd >= 0)
		close(self->uffd);
	if (self->mem.area)
		munmap(self->mem.area, mem_len(&self->mem));
}

/*
 * Give a granule as little at a time as its kind allows. Copies come from the
 * model. Each page is missing until it is given, whatever else of the granule
 * has been.
 */
static void give_granule(struct __test_metadata *_metadata, struct mem *mem, int uffd,
			 unsigned long granule, uffd_call give)
{
	const unsigned long step = mem->end - mem->first;
	unsigned long end = (granule + 1) * GRANULE_NR_PAGES, i;

	if (give == uffd_zeropage)
		memset(nth(mem->model, granule), 0, GRANULE_SIZE);
	for (i = end - GRANULE_NR_PAGES; i < end; i += step) {
		EXPECT_EQ(refused(mem, i, end, ACCESS_READ, SIGBUS), end - i);
		EXPECT_EQ(refused(mem, i, end, ACCESS_WRITE, SIGBUS), end - i);
		ASSERT_EQ(give(uffd, page_at(mem->area, i), page_at(mem->model, i),
			       step * BASE_SIZE), 0);
		EXPECT_EQ(refused(mem, i, i + step, ACCESS_READ, SIGBUS), 0);
	}
	EXPECT_EQ(refused(mem, end - GRANULE_NR_PAGES, end, ACCESS_WRITE, SIGBUS), 0);
}

/*
 * Assert that a monitor copies, zeroes and poisons memory by its unit, and that
 * all other granules are whole afterwards.
 */
TEST_F(page_granule_uffd_single, uffd_missing)
{
	struct mem *mem = &self->mem;
	const size_t bad = 2 * GRANULE_SIZE;	/* from what is given */

	self->uffd = granule_uffd_open(UFFD_FEATURE_POISON);
	if (self->uffd < 0)
		SKIP(return, GRANULE_UFFD_REMEDY);
	granule_fill(mem->model, mem_len(mem), 1);
	ASSERT_EQ(uffd_arm(self->uffd, mem->area, mem_len(mem), UFFDIO_REGISTER_MODE_MISSING),
		  0);
	EXPECT_EQ(all_refused(mem, ACCESS_READ, SIGBUS), FEW_PAGES);
	give_granule(_metadata, mem, self->uffd, TARGET, uffd_copy);
	give_granule(_metadata, mem, self->uffd, TARGET + 1, uffd_zeropage);
	EXPECT_EQ(mem_count(mem, PM_PRESENT), 2 * GRANULE_NR_PAGES);
	EXPECT_EQ(all_refused(mem, ACCESS_WRITE, SIGBUS), FEW_PAGES - 2 * GRANULE_NR_PAGES);

	/* Nothing is there, for good. */
	ASSERT_EQ(uffd_poison(self->uffd, mem_unit(mem) + bad, NULL, mem_unit_len(mem)), 0);

	ASSERT_EQ(uffd_unregister(self->uffd, mem->area, mem_len(mem)), 0);
	memset(mem->model, 0, TARGET * GRANULE_SIZE);
	memset(nth(mem->model, TARGET + 2), 0, (mem->nr - TARGET - 2) * GRANULE_SIZE);
	EXPECT_EQ(all_refused(mem, ACCESS_READ, SIGBUS), mem->end - mem->first);
	ASSERT_EQ(madvise(mem_target(mem) + bad, GRANULE_SIZE, MADV_DONTNEED), 0);
	mem_write_pages(mem, 2);
	EXPECT_GE(mem_whole(mem), FEW_GRANULES - 2);
	EXPECT_TRUE(mem_holds(mem));
	EXPECT_REPAIRED(mem);
}

/*
 * Assert that a monitor resolves minor faults by its unit, and that the page
 * cache is mapped as a run.
 */
TEST_F(page_granule_uffd_single, uffd_minor)
{
	struct mem *mem = &self->mem;

	self->uffd = granule_uffd_open(UFFD_FEATURE_MINOR_SHMEM);
	if (self->uffd < 0)
		SKIP(return, GRANULE_UFFD_REMEDY);
	ASSERT_TRUE(mem_share(mem));
	mem_fill(mem, 1);
	EXPECT_INTACT(mem);
	ASSERT_EQ(madvise(mem->area, mem_len(mem), MADV_DONTNEED), 0);

	ASSERT_EQ(uffd_arm(self->uffd, mem->area, mem_len(mem), UFFDIO_REGISTER_MODE_MINOR), 0);
	give_granule(_metadata, mem, self->uffd, TARGET, uffd_continue);
	EXPECT_EQ(mem_count(mem, PM_PRESENT), GRANULE_NR_PAGES);
	EXPECT_EQ(mem_whole(mem), 1);
	EXPECT_EQ(mem_mapped(mem), 1);
	EXPECT_EQ(all_refused(mem, ACCESS_READ, SIGBUS), FEW_PAGES - GRANULE_NR_PAGES);
	ASSERT_EQ(uffd_unregister(self->uffd, mem->area, mem_len(mem)), 0);
	EXPECT_TRUE(mem_holds(mem));
	EXPECT_INTACT(mem);
}

/*
 * Resolve the one fault there is, @len bytes around it; 0 or a negative errno.
 */
static int resolve_fault(int uffd, char *src, size_t len, char **addr)
{
	struct pollfd poll_fd = { .fd = uffd, .events = POLLIN };
	struct uffd_msg msg;

	if (poll(&poll_fd, 1, 10000) != 1)
		return -ETIMEDOUT;
	if (read(uffd, &msg, sizeof(msg)) != sizeof(msg) || msg.event != UFFD_EVENT_PAGEFAULT)
		return -EIO;
	*addr = (char *)(uintptr_t)msg.arg.pagefault.address;
	return uffd_copy(uffd, (char *)((uintptr_t)*addr & ~(len - 1)), src, len);
}

static void *read_byte(void *addr)
{
	return (void *)(unsigned long)*(unsigned char *)addr;
}

/*
 * Assert that a monitor resolves a fault with the unit that the kind of memory
 * requires, private or shared.
 */
TEST_F(page_granule_uffd_single, uffd_resolve)
{
	struct mem *mem = &self->mem;
	const size_t len = mem_unit_len(mem);
	char *src = granule_area(GRANULE_UNTAGGED, GRANULE_SIZE, 0);
	char *where = page_at(mem->area, TARGET_PAGE) + 7, *fault;
	pthread_t thread;
	int shared, ret;
	void *byte;

	ASSERT_NE(src, NULL);
	memset(src, 0xaa, GRANULE_SIZE);
	self->uffd = granule_uffd(0, O_NONBLOCK | UFFD_USER_MODE_ONLY);
	if (self->uffd < 0)
		SKIP(return, GRANULE_UFFD_REMEDY);
	for (shared = 0; shared < 2; shared++) {
		if (shared)
			ASSERT_TRUE(mem_share(mem));
		ASSERT_EQ(uffd_arm(self->uffd, mem->area, mem_len(mem),
				   UFFDIO_REGISTER_MODE_MISSING), 0);
		ASSERT_EQ(pthread_create(&thread, NULL, read_byte, where), 0);
		ret = resolve_fault(self->uffd, src, len, &fault);
		ASSERT_EQ(ret, 0);
		ASSERT_EQ(pthread_join(thread, &byte), 0);
		EXPECT_EQ((unsigned long)byte, 0xaa);
		/* The address is that of the page, as it is on any memory. */
		EXPECT_EQ(fault, where - 7);
		EXPECT_EQ(granule_filled(mem->pagemap, mem_target(mem)), len / BASE_SIZE);
		EXPECT_EQ(mem_count(mem, PM_PRESENT), len / BASE_SIZE);
	}
}

/* Just the given pages are protected, whatever else is written to. */
#define EXPECT_PROTECTED(mem, rwp, value) do { \
	const unsigned long _nr = (mem)->end - (mem)->first; \
	\
	mem_write_but(mem, (mem)->first, (mem)->end, value); \
	EXPECT_EQ(all_refused(mem, ACCESS_READ, SIGBUS), (rwp) ? _nr : 0); \
	EXPECT_EQ(all_refused(mem, ACCESS_WRITE, SIGBUS), _nr); \
	EXPECT_EQ(refused(mem, (mem)->first, (mem)->end, ACCESS_WRITE, SIGBUS), _nr); \
	EXPECT_EQ(mem_count(mem, PM_UFFD_WP), _nr); \
	EXPECT_TRUE(mem_holds_but(mem, (mem)->first, (rwp) ? (mem)->end : (mem)->first)); \
} while (0)

/* Protect a page of a run, or of a run of zeroes, and no other page. */
static void protect_unit(struct __test_metadata *_metadata, struct mem *mem, int uffd,
			 bool rwp, bool zero)
{
	const __u64 mode = rwp ? UFFDIO_REGISTER_MODE_RWP : UFFDIO_REGISTER_MODE_WP;
	const uffd_call protect = rwp ? uffd_rwprotect : uffd_writeprotect;
	const uffd_call unprotect = rwp ? uffd_rwunprotect : uffd_unprotect;
	char *unit = mem_unit(mem);
	const size_t len = mem_unit_len(mem);
	pid_t pid;

	mem_fill(mem, 1);
	if (zero) {
		ASSERT_EQ(madvise(mem_target(mem), GRANULE_SIZE, MADV_DONTNEED), 0);
		memset(nth(mem->model, TARGET), 0, GRANULE_SIZE);
		FORCE_READ(*unit);
		ASSERT_TRUE(granule_is_zero_run(mem->pagemap, mem_target(mem)));
	}
	ASSERT_EQ(uffd_arm(uffd, mem->area, mem_len(mem), mode), 0);
	/* Zeroes are no memory that is mapped. */
	EXPECT_EQ(mem_mapped(mem), FEW_GRANULES - zero);
	ASSERT_EQ(protect(uffd, unit, NULL, len), 0);
	EXPECT_PROTECTED(mem, rwp, 2);
	EXPECT_EQ(mem_others_whole(mem), FEW_GRANULES - 1);
	ASSERT_EQ(unprotect(uffd, unit, NULL, len), 0);
	EXPECT_EQ(all_refused(mem, ACCESS_WRITE, SIGBUS), 0);
	EXPECT_TRUE(mem_holds(mem));
	if (!zero)
		EXPECT_INTACT(mem);

	/* Copied by a write, while it is protected in part; a child is not. */
	ASSERT_EQ(protect(uffd, unit, NULL, len), 0);
	pid = mem_fork(mem);
	if (!pid) {
		EXPECT_EQ(mem_count(mem, PM_UFFD_WP), 0);
		EXPECT_TRUE(mem_holds(mem));
		EXPECT_EQ(all_refused(mem, ACCESS_WRITE, SIGBUS), 0);
		mem_write_pages(mem, 3);
		EXPECT_TRUE(mem_holds(mem));
		EXPECT_EQ(mem_others_whole(mem), FEW_GRANULES - 1);
		_exit(0);
	}
	EXPECT_TRUE(granule_child_ends(pid));
	pid = granule_fork_idle();
	EXPECT_PROTECTED(mem, rwp, 4);
	EXPECT_EQ(mem_others_whole(mem), FEW_GRANULES - 1);
	granule_kill_idle(pid);
	EXPECT_PROTECTED(mem, rwp, 5);
	if (granule_have_swap(NULL)) {
		EXPECT_TRUE(mem_write_out(mem));
		EXPECT_PROTECTED(mem, rwp, 6);
	}
	/* To unregister the memory ends the remaining protection. */
	ASSERT_EQ(uffd_unregister(uffd, mem->area, mem_len(mem)), 0);
	EXPECT_EQ(mem_count(mem, PM_UFFD_WP), 0);
	EXPECT_EQ(all_refused(mem, ACCESS_WRITE, SIGBUS), 0);
	mem_write_pages(mem, 7);
	EXPECT_REPAIRED(mem);
}

/*
 * Assert that write protection of a page, or of a granule, protects no other.
 */
TEST_F(page_granule_uffd_single, uffd_wp)
{
	self->uffd = granule_uffd_open(UFFD_FEATURE_PAGEFAULT_FLAG_WP);
	if (self->uffd < 0)
		SKIP(return, GRANULE_UFFD_REMEDY);
	protect_unit(_metadata, &self->mem, self->uffd, false, false);
	protect_unit(_metadata, &self->mem, self->uffd, false, true);
}

/*
 * Assert that protection from reads and writes protects no other page either.
 */
TEST_F(page_granule_uffd_single, uffd_rwp)
{
	self->uffd = granule_uffd_open(UFFD_FEATURE_RWP);
	if (self->uffd < 0)
		SKIP(return, GRANULE_UFFD_REMEDY " and CONFIG_USERFAULTFD_RWP=y");
	protect_unit(_metadata, &self->mem, self->uffd, true, false);
	protect_unit(_metadata, &self->mem, self->uffd, true, true);
}

/*
 * Assert that asynchronous write protection reports a write to one page as that
 * page only, whether the write copies it or not.
 */
TEST_F(page_granule_uffd_single, uffd_wp_async)
{
	struct mem *mem = &self->mem;
	int shared;
	pid_t pid = 0;

	self->uffd = granule_uffd_open(UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED);
	if (self->uffd < 0)
		SKIP(return, GRANULE_UFFD_REMEDY);
	mem_fill(mem, 1);
	ASSERT_EQ(uffd_arm(self->uffd, mem->area, mem_len(mem), UFFDIO_REGISTER_MODE_WP), 0);
	for (shared = 0; shared < 2; shared++) {
		ASSERT_EQ(uffd_writeprotect(self->uffd, mem->area, NULL, mem_len(mem)), 0);
		EXPECT_EQ(mem_count(mem, PM_UFFD_WP), FEW_PAGES);
		EXPECT_INTACT(mem);
		if (shared)
			pid = granule_fork_idle();
		*byte_in(mem->area, TARGET_PAGE) = 2 + shared;
		*byte_in(mem->model, TARGET_PAGE) = 2 + shared;
		EXPECT_EQ(mem_count(mem, PM_UFFD_WP), FEW_PAGES - 1);
		EXPECT_EQ(pagemap_get_entry(mem->pagemap, page_at(mem->area, TARGET_PAGE)) &
			  PM_UFFD_WP, 0);
		EXPECT_EQ(mem_others_whole(mem), FEW_GRANULES - 1);
		mem_write_pages(mem, 4 + shared);
		EXPECT_EQ(mem_count(mem, PM_UFFD_WP), 0);
		EXPECT_TRUE(mem_holds(mem));
		if (!shared)
			EXPECT_INTACT(mem);
		EXPECT_TRUE(granule_invariants_hold());
	}
	granule_kill_idle(pid);
	ASSERT_EQ(uffd_unregister(self->uffd, mem->area, mem_len(mem)), 0);
	EXPECT_REPAIRED(mem);
}

/*
 * Assert that asynchronous protection from reads and writes leaves whole
 * granules, in whatever order their pages are accessed.
 */
TEST_F(page_granule_uffd_single, uffd_rwp_async)
{
	struct mem *mem = &self->mem;
	unsigned long i;

	self->uffd = granule_uffd_open(UFFD_FEATURE_RWP | UFFD_FEATURE_RWP_ASYNC);
	if (self->uffd < 0)
		SKIP(return, GRANULE_UFFD_REMEDY " and CONFIG_USERFAULTFD_RWP=y");
	mem_fill(mem, 1);
	ASSERT_EQ(uffd_arm(self->uffd, mem->area, mem_len(mem), UFFDIO_REGISTER_MODE_RWP), 0);
	ASSERT_EQ(uffd_rwprotect(self->uffd, mem->area, NULL, mem_len(mem)), 0);
	EXPECT_EQ(mem_count(mem, PM_UFFD_WP), FEW_PAGES);
	for (i = FEW_PAGES; i-- > 0;) {
		FORCE_READ(*byte_in(mem->area, i));
		EXPECT_EQ(mem_count(mem, PM_UFFD_WP), i);
	}
	EXPECT_TRUE(mem_holds(mem));
	EXPECT_INTACT(mem);
	EXPECT_TRUE(granule_invariants_hold());
	ASSERT_EQ(uffd_unregister(self->uffd, mem->area, mem_len(mem)), 0);
	EXPECT_TRUE(granule_invariants_hold());
}

/* PAGEMAP_SCAN goes three ways through a page table. */
enum scan_way {
	SCAN_ALL,
	SCAN_WRITTEN,
	SCAN_PRESENT,
	NR_SCAN_WAYS,
};

/* Write-protect the pages written to, of @nr pages from @first on. */
static int scan_protect(int pagemap, char *area, enum scan_way way,
			unsigned long first, unsigned long nr,
			struct page_region *region, __u64 *walk_end)
{
	const __u64 start = (uintptr_t)page_at(area, first);
	struct pm_scan_arg arg = {
		.size = sizeof(arg),
		.flags = PM_SCAN_WP_MATCHING,
		.start = start,
		.end = start + nr * BASE_SIZE,
		.category_mask = PAGE_IS_WRITTEN,
		.return_mask = PAGE_IS_WRITTEN,
	};
	int ret;

	if (way == SCAN_PRESENT)
		arg.return_mask |= PAGE_IS_PRESENT;
	if (way != SCAN_ALL) {
		arg.end = (uintptr_t)page_at(area, FEW_PAGES);
		arg.max_pages = nr;
		arg.vec = (uintptr_t)region;
		arg.vec_len = 1;
	}
	ret = ioctl(pagemap, PAGEMAP_SCAN, &arg);
	*walk_end = arg.walk_end - (uintptr_t)area;
	region->start -= (uintptr_t)area;
	region->end -= (uintptr_t)area;
	return ret;
}

/*
 * Does that have the same effect on granules as on single pages, and no other?
 */
static bool scan_protects_same(const struct mem *mem, enum scan_way way,
			       unsigned long first, unsigned long nr)
{
	struct page_region region = { .start = (uintptr_t)mem->area };
	struct page_region expected = { .start = (uintptr_t)mem->model };
	__u64 walk_end, expected_end;
	unsigned long i;

	region.end = region.start;
	expected.end = expected.start;
	if (scan_protect(mem->pagemap, mem->model, way, first, nr, &expected, &expected_end) !=
	    scan_protect(mem->pagemap, mem->area, way, first, nr, &region, &walk_end))
		return false;
	if (walk_end != expected_end || memcmp(&region, &expected, sizeof(region)))
		return false;
	for (i = 0; i < FEW_PAGES; i++) {
		const bool protected = i >= first && i < first + nr;

		if (!(pagemap_get_entry(mem->pagemap, page_at(mem->area, i)) & PM_UFFD_WP) ==
		    protected)
			return false;
	}
	return true;
}

/*
 * Assert that PAGEMAP_SCAN protects the written pages that it reports, and no
 * others.
 */
TEST_F(page_granule_uffd_single, scan_protects)
{
	static const unsigned long firsts[] = { 0, 1, GRANULE_NR_PAGES - 1, GRANULE_NR_PAGES };
	static const unsigned long nrs[] = {
		1, GRANULE_NR_PAGES - 1, GRANULE_NR_PAGES, GRANULE_NR_PAGES + 1, FEW_PAGES / 2,
	};
	struct mem *mem = &self->mem;
	unsigned int way, i, j;

	self->uffd = granule_uffd_open(UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED);
	if (self->uffd < 0)
		SKIP(return, GRANULE_UFFD_REMEDY);
	mem_fill(mem, 1);
	ASSERT_EQ(uffd_arm(self->uffd, mem->area, mem_len(mem), UFFDIO_REGISTER_MODE_WP), 0);
	ASSERT_EQ(uffd_arm(self->uffd, mem->model, mem_len(mem), UFFDIO_REGISTER_MODE_WP), 0);
	for (way = 0; way < NR_SCAN_WAYS; way++) {
		for (i = 0; i < ARRAY_SIZE(firsts); i++) {
			for (j = 0; j < ARRAY_SIZE(nrs); j++) {
				EXPECT_TRUE(scan_protects_same(mem, way, firsts[i], nrs[j])) {
					TH_LOG("way %u, %lu pages from page %lu", way, nrs[j],
					       firsts[i]);
				}
				mem_write_pages(mem, 2 + j);
				EXPECT_EQ(mem_count(mem, PM_UFFD_WP), 0);
			}
		}
	}
	ASSERT_EQ(uffd_unregister(self->uffd, mem->area, mem_len(mem)), 0);
	ASSERT_EQ(uffd_unregister(self->uffd, mem->model, mem_len(mem)), 0);
	EXPECT_TRUE(mem_holds(mem));
	EXPECT_INTACT(mem);
}

/*
 * Assert that UFFDIO_MOVE moves contents to tagged and untagged memory, and
 * leaves the neighbours of the moved pages in place.
 */
TEST_F(page_granule_uffd_single, uffd_move)
{
	const enum granule_kind kinds[] = { variant->kind, GRANULE_UNTAGGED };
	const size_t len = 2 * GRANULE_SIZE;
	struct mem *mem = &self->mem;
	char *src = mem_target(mem), *dst;
	size_t i;

	self->uffd = granule_uffd_open(UFFD_FEATURE_MOVE);
	if (self->uffd < 0)
		SKIP(return, GRANULE_UFFD_REMEDY);
	dst = granule_reserve(mem_len(mem));
	ASSERT_NE(dst, NULL);
	for (i = 0; i < ARRAY_SIZE(kinds); i++) {
		mem_fill(mem, i);
		ASSERT_EQ(granule_mmap(kinds[i], dst, mem_len(mem), PROT_RW, MAP_FIXED), dst);
		ASSERT_EQ(uffd_arm(self->uffd, dst, mem_len(mem), UFFDIO_REGISTER_MODE_MISSING),
			  0);
		ASSERT_EQ(uffd_move(self->uffd, dst, src, len), 0);
		EXPECT_EQ(granule_present_pages(mem->pagemap, src, len), 0);
		EXPECT_EQ(granule_present_pages(mem->pagemap, dst, mem_len(mem)),
			  len / BASE_SIZE);
		EXPECT_EQ(memcmp(dst, nth(mem->model, TARGET), len), 0);

		/* The least that may be moved, out of the middle. */
		memset(nth(mem->model, TARGET), 0, len);
		mem_write_pages(mem, 2);
		EXPECT_INTACT(mem);
		ASSERT_EQ(uffd_move(self->uffd, nth(dst, TARGET), mem_unit(mem),
				    mem_unit_len(mem)), 0);
		EXPECT_EQ(memcmp(nth(dst, TARGET), page_at(mem->model, mem->first),
				 mem_unit_len(mem)), 0);
		mem_zero_unit(mem);
		EXPECT_LOST(mem, 0, 0);

		/* Zeroes, too, and from where they are shared by all. */
		ASSERT_EQ(madvise(mem->area, GRANULE_SIZE, MADV_DONTNEED), 0);
		memset(mem->model, 0, GRANULE_SIZE);
		FORCE_READ(*mem->area);
		ASSERT_EQ(uffd_move(self->uffd, nth(dst, 5), mem->area, GRANULE_SIZE), 0);
		EXPECT_EQ(memcmp(nth(dst, 5), mem->model, GRANULE_SIZE), 0);
		EXPECT_EQ(granule_filled(mem->pagemap, mem->area), 0);

		/*
		 * Neither the source nor, from now on, the destination is
		 * armed.
		 */
		mem_write_pages(mem, 3);
		EXPECT_REPAIRED(mem);
		ASSERT_EQ(uffd_unregister(self->uffd, dst, mem_len(mem)), 0);
		madvise(dst, len, MADV_COLLAPSE);
		if (kinds[i] != GRANULE_UNTAGGED)
			EXPECT_EQ(granule_count(mem->pagemap, dst, len, GRANULE_WHOLE), 2);
		memset(nth(dst, 5), 7, GRANULE_SIZE);
		dst[0] = 1;
	}
}

#define UFFD_GRANULES	6
#define UFFD_PAGES	(UFFD_GRANULES * (unsigned int)GRANULE_NR_PAGES)
#define UFFD_LEN	(UFFD_GRANULES * GRANULE_SIZE)

/*
 * The ioctls of userfaultfd, on six granules that are registered and a source
 * next to them, again with an untagged twin.
 */
struct uffd_area {
	char *dst;
	char *src;
	int uffd;
};

FIXTURE(page_granule_uffd)
{
	int pagemap;
};

FIXTURE_VARIANT(page_granule_uffd)
{
	uffd_call call;
	/* To be called on all of it before. */
	uffd_call prepare;
	unsigned long features;
	unsigned long mode;
	bool filled;
	/* The source is memory to be changed too, of the same kind. */
	bool moves;
	/* -EINVAL on such memory, for reasons older than granules. */
	bool not_private;
	bool not_shared;
};

FIXTURE_VARIANT_ADD(page_granule_uffd, copy)
{
	.call = uffd_copy,
	.features = UFFD_FEATURE_MISSING_SHMEM,
	.mode = UFFDIO_REGISTER_MODE_MISSING,
};

FIXTURE_VARIANT_ADD(page_granule_uffd, copy_wp)
{
	.call = uffd_copy_wp,
	.features = UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_WP_HUGETLBFS_SHMEM,
	.mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP,
};

FIXTURE_VARIANT_ADD(page_granule_uffd, zeropage)
{
	.call = uffd_zeropage,
	.features = UFFD_FEATURE_MISSING_SHMEM,
	.mode = UFFDIO_REGISTER_MODE_MISSING,
};

FIXTURE_VARIANT_ADD(page_granule_uffd, writeprotect)
{
	.call = uffd_writeprotect,
	.features = UFFD_FEATURE_WP_HUGETLBFS_SHMEM,
	.mode = UFFDIO_REGISTER_MODE_WP,
	.filled = true,
};

FIXTURE_VARIANT_ADD(page_granule_uffd, writeprotect_empty)
{
	.call = uffd_writeprotect,
	.features = UFFD_FEATURE_WP_HUGETLBFS_SHMEM | UFFD_FEATURE_WP_UNPOPULATED,
	.mode = UFFDIO_REGISTER_MODE_WP,
};

FIXTURE_VARIANT_ADD(page_granule_uffd, unprotect)
{
	.call = uffd_unprotect,
	.prepare = uffd_writeprotect,
	.features = UFFD_FEATURE_WP_HUGETLBFS_SHMEM,
	.mode = UFFDIO_REGISTER_MODE_WP,
	.filled = true,
};

FIXTURE_VARIANT_ADD(page_granule_uffd, continue)
{
	.call = uffd_continue,
	.features = UFFD_FEATURE_MINOR_SHMEM,
	.mode = UFFDIO_REGISTER_MODE_MINOR,
	.filled = true,
	.not_private = true,
};

FIXTURE_VARIANT_ADD(page_granule_uffd, poison)
{
	.call = uffd_poison,
	.features = UFFD_FEATURE_POISON | UFFD_FEATURE_MISSING_SHMEM,
	.mode = UFFDIO_REGISTER_MODE_MISSING,
};

FIXTURE_VARIANT_ADD(page_granule_uffd, move)
{
	.call = uffd_move,
	.features = UFFD_FEATURE_MOVE,
	.mode = UFFDIO_REGISTER_MODE_MISSING,
	.moves = true,
	.not_shared = true,
};

FIXTURE_VARIANT_ADD(page_granule_uffd, rwprotect)
{
	.call = uffd_rwprotect,
	.features = UFFD_FEATURE_RWP,
	.mode = UFFDIO_REGISTER_MODE_RWP,
	.filled = true,
};

#define UFFD_VARIANT FIXTURE_VARIANT(page_granule_uffd)

FIXTURE_SETUP(page_granule_uffd)
{
	int uffd;

	ASSERT_EQ(granule_set_enabled(true), 0);
	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, BASE_SIZE), 0);
	granule_thp_never();
	self->pagemap = granule_open_pagemap();
	ASSERT_GE(self->pagemap, 0);
	uffd = granule_uffd(variant->features, O_NONBLOCK | UFFD_USER_MODE_ONLY);
	if (uffd < 0)
		SKIP(return, GRANULE_UFFD_REMEDY);
	close(uffd);
}

FIXTURE_TEARDOWN(page_granule_uffd)
{
	EXPECT_TRUE(granule_invariants_hold());
	close(self->pagemap);
}

/*
 * Pages of the destination, and where the source begins, in bytes from its own.
 */
static const struct uffd_row {
	const char *name;
	unsigned int first;
	unsigned int last;
	unsigned int src;
} uffd_rows[] = {
	{ "one granule", 32, 48, 0 },
	{ "two granules", 32, 64, 16 * BASE_SIZE },
	{ "all", 0, 96, 0 },
	{ "source misaligned by a page", 32, 48, BASE_SIZE },
	{ "source misaligned by 100 bytes", 32, 48, 100 },
	{ "start misaligned", 33, 48, 0 },
	{ "end misaligned", 32, 47, 0 },
	{ "both misaligned", 35, 46, 0 },
	{ "one page", 37, 38, 0 },
	{ "first page", 0, 1, 0 },
	{ "last page", 95, 96, 0 },
	{ "a granule's length, shifted", 36, 52, 0 },
	{ "a page more", 32, 49, 0 },
	{ "two pages of two granules", 47, 49, 0 },
};

static void uffd_close(struct uffd_area *area)
{
	if (area->uffd > 0)
		close(area->uffd);
	area->uffd = 0;
}

/*
 * Map and register both, as the ioctl wants them. Returns 0 or a negative
 * errno.
 */
static int uffd_map(const UFFD_VARIANT *op, struct uffd_area *area, enum granule_kind kind,
		    bool shared)
{
	char *src;
	int ret;

	uffd_close(area);
	if (!area->dst)
		area->dst = granule_reserve(2 * UFFD_LEN + GRANULE_SIZE);
	src = area->dst + UFFD_LEN + GRANULE_SIZE;
	area->src = src;
	area->uffd = granule_uffd(op->features, O_NONBLOCK | UFFD_USER_MODE_ONLY);
	if (!area->dst || area->uffd < 0)
		return -ENOMEM;
	if (granule_map(kind, shared, area->dst, UFFD_LEN, MAP_FIXED) != area->dst ||
	    granule_map(op->moves ? kind : GRANULE_UNTAGGED, op->moves && shared, src, UFFD_LEN,
			MAP_FIXED) != src)
		return -errno;
	granule_fill(src, UFFD_LEN, SEED);
	if (op->filled)
		granule_fill(area->dst, UFFD_LEN, SEED + 1);
	/* Shared memory stays in the page cache, to be mapped again. */
	if (op->call == uffd_continue && madvise(area->dst, UFFD_LEN, MADV_DONTNEED))
		return -errno;
	ret = uffd_arm(area->uffd, area->dst, UFFD_LEN, op->mode);
	if (ret)
		return ret;
	return op->prepare ? op->prepare(area->uffd, area->dst, src, UFFD_LEN) : 0;
}

/*
 * The state of each page of both: the bits that the ioctls set, and the
 * contents.
 */
struct uffd_view {
	unsigned long bits[2 * UFFD_PAGES];
	unsigned char readable[2 * UFFD_PAGES];
	char contents[2 * UFFD_LEN];
};

static char *uffd_page(const struct uffd_area *area, unsigned int i)
{
	return i < UFFD_PAGES ? area->dst + i * BASE_SIZE :
				  area->src + (i - UFFD_PAGES) * BASE_SIZE;
}

static void uffd_look(int pagemap, const struct uffd_area *area, struct uffd_view *view)
{
	const uint64_t mask = PM_PRESENT | PM_SWAP | PM_UFFD_WP;
	unsigned int i, run;

	memset(view, 0, sizeof(*view));
	for (i = 0; i < 2 * UFFD_PAGES; i++)
		view->bits[i] = pagemap_get_entry(pagemap, uffd_page(area, i)) & mask;
	/* Reading would populate a missing page. */
	for (i = 0; i < 2 * UFFD_PAGES; i += run ?: 1) {
		for (run = 0; (i + run) % UFFD_PAGES || !run; run++) {
			if (!(view->bits[i + run] & (PM_PRESENT | PM_SWAP)))
				break;
		}
		read_memory(getpid(), uffd_page(area, i), run, view->contents + i * BASE_SIZE,
			    view->readable + i);
	}
}

static bool uffd_same(const struct uffd_view *view1, const struct uffd_view *view2)
{
	unsigned int i;

	for (i = 0; i < 2 * UFFD_PAGES; i++) {
		size_t offset = i * BASE_SIZE;

		if (view1->bits[i] == view2->bits[i] &&
		    view1->readable[i] == view2->readable[i] &&
		    !memcmp(view1->contents + offset, view2->contents + offset, BASE_SIZE))
			continue;
		ksft_print_msg("page %u differs: %#lx and %#lx\n", i, view1->bits[i],
			       view2->bits[i]);
		return false;
	}
	return true;
}

static void check_uffd(struct __test_metadata *_metadata, const UFFD_VARIANT *op, int pagemap,
		       enum granule_kind kind, bool shared)
{
	static struct uffd_area area1, area2;
	static struct uffd_view view1, view2;
	char *before, *after;
	int ret, untagged;
	size_t i;

	for (i = 0; i < ARRAY_SIZE(uffd_rows); i++) {
		const struct uffd_row *row = &uffd_rows[i];
		unsigned long start = row->first * BASE_SIZE;
		size_t len = row->last * BASE_SIZE - start;
		bool cut;

		cut = kind == GRANULE_CONTRACT && !granule_aligned(start | len);
		/*
		 * The source of the contents does not matter if they stay
		 * there.
		 */
		if (kind == GRANULE_CONTRACT && op->moves)
			cut |= !granule_aligned(row->src);
		untagged = uffd_map(op, &area1, GRANULE_UNTAGGED, shared);
		ret = uffd_map(op, &area2, kind, shared);
		ASSERT_EQ(ret, untagged);
		/*
		 * Some memory cannot be registered for it, whatever its kind.
		 */
		if (op->not_private && !shared) {
			ASSERT_EQ(ret, -EINVAL);
			return;
		}
		ASSERT_EQ(ret, 0);

		if (cut) {
			uffd_look(pagemap, &area2, &view1);
			before = granule_smaps_text(area2.dst, 2 * UFFD_LEN + GRANULE_SIZE);
		} else {
			untagged = op->call(area1.uffd, area1.dst + start, area1.src + row->src,
					    len);
			uffd_look(pagemap, &area1, &view1);
		}
		ret = op->call(area2.uffd, area2.dst + start, area2.src + row->src, len);
		if (cut) {
			EXPECT_EQ(ret, -EINVAL)
				TH_LOG("%s [%u, %u)", row->name, row->first, row->last);
			after = granule_smaps_text(area2.dst, 2 * UFFD_LEN + GRANULE_SIZE);
			EXPECT_TRUE(granule_same_text(before, after))
				TH_LOG("%s [%u, %u)", row->name, row->first, row->last);
			free(before);
			free(after);
		} else {
			EXPECT_EQ(ret, untagged)
				TH_LOG("%s [%u, %u)", row->name, row->first, row->last);
			/* Did the twin work? A move by 100 bytes never did. */
			if (!(op->not_shared && shared) && !(op->moves && row->src % BASE_SIZE))
				EXPECT_EQ(untagged, 0)
					TH_LOG("%s [%u, %u)", row->name, row->first, row->last);
		}
		uffd_look(pagemap, &area2, &view2);
		EXPECT_TRUE(uffd_same(&view1, &view2))
			TH_LOG("%s [%u, %u)", row->name, row->first, row->last);
	}
	uffd_close(&area1);
	uffd_close(&area2);
}

/*
 * Assert that the ioctl works on whole granules of private contract VMAs only.
 */
TEST_F_TIMEOUT(page_granule_uffd, contract_private, 60)
{
	check_uffd(_metadata, variant, self->pagemap, GRANULE_CONTRACT, false);
}

/*
 * Assert that the ioctl works on whole granules of shared contract VMAs only.
 */
TEST_F_TIMEOUT(page_granule_uffd, contract_shared, 60)
{
	check_uffd(_metadata, variant, self->pagemap, GRANULE_CONTRACT, true);
}

/* Assert that the ioctl works page by page on private default-tagged memory. */
TEST_F_TIMEOUT(page_granule_uffd, default_private, 60)
{
	check_uffd(_metadata, variant, self->pagemap, GRANULE_DEFAULT, false);
}

/* Assert that the ioctl works page by page on shared default-tagged memory. */
TEST_F_TIMEOUT(page_granule_uffd, default_shared, 60)
{
	check_uffd(_metadata, variant, self->pagemap, GRANULE_DEFAULT, true);
}

/* madvise() in a thread of its own */
struct uffd_advice {
	char *addr;
	size_t len;
	int advice;
	int ret;
};

static void *uffd_advise(void *arg)
{
	struct uffd_advice *call = arg;

	call->ret = madvise(call->addr, call->len, call->advice) ? -errno : 0;
	return NULL;
}

#define EVENT_LEN	(4 * GRANULE_SIZE)

FIXTURE(page_granule_uffd_event)
{
	char *area;
	int pagemap;
	int uffd;
};

FIXTURE_VARIANT(page_granule_uffd_event)
{
	int advice;
	/* The granule that becomes a contract, and is then cut */
	unsigned int cut;
	bool swapped;
};

FIXTURE_VARIANT_ADD(page_granule_uffd_event, dontneed)
{
	.advice = MADV_DONTNEED,
};

FIXTURE_VARIANT_ADD(page_granule_uffd_event, dontneed_next_vma)
{
	.advice = MADV_DONTNEED,
	.cut = 1,
};

FIXTURE_VARIANT_ADD(page_granule_uffd_event, free)
{
	.advice = MADV_FREE,
};

FIXTURE_VARIANT_ADD(page_granule_uffd_event, free_next_vma)
{
	.advice = MADV_FREE,
	.cut = 1,
};

FIXTURE_VARIANT_ADD(page_granule_uffd_event, free_swapped)
{
	.advice = MADV_FREE,
	.swapped = true,
};

FIXTURE_SETUP(page_granule_uffd_event)
{
	ASSERT_EQ(granule_set_enabled(true), 0);
	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, BASE_SIZE), 0);
	granule_thp_never();
	self->uffd = granule_uffd(UFFD_FEATURE_EVENT_REMOVE, O_NONBLOCK | UFFD_USER_MODE_ONLY);
	if (self->uffd < 0)
		SKIP(return, GRANULE_UFFD_REMEDY);
	if (variant->swapped && !granule_have_swap(NULL))
		SKIP(return, GRANULE_SWAP_REMEDY);
	self->pagemap = granule_open_pagemap();
	ASSERT_GE(self->pagemap, 0);
	self->area = granule_area(GRANULE_UNTAGGED, EVENT_LEN, 0);
	ASSERT_NE(self->area, NULL);
	memset(self->area, 1, EVENT_LEN);
}

FIXTURE_TEARDOWN(page_granule_uffd_event)
{
	EXPECT_TRUE(granule_invariants_hold());
	close(self->uffd);
	close(self->pagemap);
	munmap(self->area, EVENT_LEN);
}

/*
 * Assert that madvise() refuses to cut a contract that replaces its range while
 * it waits for the monitor. It must not touch what lies behind its range.
 */
TEST_F(page_granule_uffd_event, remove_then_contract)
{
	char *cut = nth(self->area, variant->cut), *behind = nth(self->area, variant->cut + 1);
	struct uffd_advice call = {
		self->area, cut - self->area + GRANULE_SIZE - BASE_SIZE, variant->advice,
	};
	struct pollfd poll_event = { self->uffd, POLLIN };
	struct uffd_msg msg;
	pthread_t thread;
	unsigned int i;

	/* Only the first granule has a monitor, and thereby is a VMA of its own. */
	ASSERT_EQ(uffd_arm(self->uffd, self->area, GRANULE_SIZE, UFFDIO_REGISTER_MODE_MISSING), 0);
	ASSERT_EQ(pthread_create(&thread, NULL, uffd_advise, &call), 0);
	ASSERT_EQ(poll(&poll_event, 1, 10 * 1000), 1);

	/* A contract of single pages, which MADV_FREE examines one by one */
	ASSERT_EQ(granule_map(GRANULE_CONTRACT, false, cut, GRANULE_SIZE, MAP_FIXED), cut);
	ASSERT_EQ(madvise(cut, GRANULE_SIZE, MADV_NOHUGEPAGE), 0);
	memset(cut, 2, GRANULE_SIZE);
	for (i = 0; variant->swapped && i < 100 && granule_present(self->pagemap, cut); i++) {
		ASSERT_EQ(madvise(cut, GRANULE_SIZE, MADV_PAGEOUT), 0);
		usleep(10 * 1000);
	}
	if (variant->swapped)
		ASSERT_EQ(granule_present(self->pagemap, cut), 0);

	ASSERT_EQ(read(self->uffd, &msg, sizeof(msg)), (ssize_t)sizeof(msg));
	EXPECT_EQ(msg.event, UFFD_EVENT_REMOVE);
	ASSERT_EQ(pthread_join(thread, NULL), 0);
	EXPECT_EQ(call.ret, -EINVAL);
	EXPECT_TRUE(granule_is_filled(cut, GRANULE_SIZE, 2));
	EXPECT_EQ(granule_smaps_kb(behind, self->area + EVENT_LEN - behind, "LazyFree:"), 0);
	EXPECT_TRUE(granule_is_filled(behind, self->area + EVENT_LEN - behind, 1));
}

int main(int argc, char **argv)
{
	granule_require();
	granule_save_settings();
	return test_harness_run(argc, argv);
}
