// SPDX-License-Identifier: GPL-2.0
/*
 * Page granule: what takes single pages of a granule away, and what is refused.
 * Memory failure, KSM, userfaultfd, guard markers, device-exclusive entries, NUMA
 * hints, and writes by force.
 *
 * Each test acts on the least that the kind of memory allows: a granule of a
 * contract VMA, a page of a default-tagged one. Whatever becomes of that, all
 * other pages hold what a model of the area holds, and all other granules are
 * whole.
 */
#define _GNU_SOURCE
#include "kselftest_harness.h"
#include <asm-generic/mman.h> /* Force the import of the tools version. */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/prctl.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <lib/test_hmm_uapi.h>
#include "hugepage_settings.h"
#include "vm_util.h"
#include "page_granule_util.h"

#define NR_GRANULES	8UL
#define NR_PAGES	(NR_GRANULES * GRANULE_NR_PAGES)

/* The granule that is acted on, and the page of it. */
#define TARGET		3UL
#define TARGET_PAGE	(TARGET * GRANULE_NR_PAGES + 5)

/* An area of whole granules, its model, and the pages that are acted on. */
struct mem {
	enum granule_kind kind;
	unsigned long nr;		/* granules */
	char *area;
	char *model;
	int pagemap;
	unsigned long first;
	unsigned long end;
};

static char *page_at(char *area, unsigned long page)
{
	return area + page * BASE_SIZE;
}

static size_t mem_len(const struct mem *mem)
{
	return mem->nr * GRANULE_SIZE;
}

static unsigned long mem_pages(const struct mem *mem)
{
	return mem->nr * GRANULE_NR_PAGES;
}

static char *mem_target(const struct mem *mem)
{
	return nth(mem->area, TARGET);
}

static char *mem_unit(const struct mem *mem)
{
	return page_at(mem->area, mem->first);
}

static size_t mem_unit_len(const struct mem *mem)
{
	return (mem->end - mem->first) * BASE_SIZE;
}

static bool mem_create(struct mem *mem, enum granule_kind kind, unsigned long nr)
{
	char *res;

	mem->kind = kind;
	mem->nr = nr;
	mem->first = kind == GRANULE_CONTRACT ? TARGET * GRANULE_NR_PAGES : TARGET_PAGE;
	mem->end = mem->first + (kind == GRANULE_CONTRACT ? GRANULE_NR_PAGES : 1);
	mem->pagemap = granule_open_pagemap();
	if (mem->pagemap < 0 || granule_set_enabled(true) ||
	    granule_set(PR_GRANULE_MMAP, BASE_SIZE))
		return false;
	granule_thp_never();
	mem->model = granule_mmap(GRANULE_UNTAGGED, NULL, mem_len(mem), PROT_RW, 0);
	res = granule_reserve(mem_len(mem));
	if (mem->model == MAP_FAILED || !res)
		return false;
	mem->area = granule_mmap(kind, res, mem_len(mem), PROT_RW, MAP_FIXED);
	return mem->area == res;
}

/* The same again with nothing in it, as shared memory. */
static bool mem_share(struct mem *mem)
{
	int flags = MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED;
	char *area;

	if (mem->kind == GRANULE_CONTRACT)
		flags |= MAP_GRANULE_64KB;
	else if (granule_set(PR_GRANULE_MMAP, GRANULE_SIZE))
		return false;
	area = mmap(mem->area, mem_len(mem), PROT_RW, flags, -1, 0);
	return area == mem->area && !granule_set(PR_GRANULE_MMAP, BASE_SIZE);
}

static void mem_fill(struct mem *mem, unsigned int seed)
{
	granule_fill(mem->area, mem_len(mem), seed);
	granule_fill(mem->model, mem_len(mem), seed);
}

/* Where a test writes in a page: somewhere else in each. */
static char *byte_in(char *area, unsigned long page)
{
	return page_at(area, page) + page % BASE_SIZE;
}

/* Write to all pages but those from @first up to @end. */
static void mem_write_but(struct mem *mem, unsigned long first, unsigned long end,
			  char value)
{
	unsigned long i;

	for (i = 0; i < mem_pages(mem); i++) {
		if (i >= first && i < end)
			continue;
		*byte_in(mem->area, i) = value;
		*byte_in(mem->model, i) = value;
	}
}

static void mem_write(struct mem *mem, char value)
{
	mem_write_but(mem, 0, 0, value);
}

/* Do all pages but those from @first up to @end hold what they should? */
static bool mem_holds_but(const struct mem *mem, unsigned long first,
			  unsigned long end)
{
	unsigned long i;

	for (i = 0; i < mem_pages(mem); i++) {
		if (i >= first && i < end)
			continue;
		if (memcmp(page_at(mem->area, i), page_at(mem->model, i), BASE_SIZE)) {
			ksft_print_msg("page %lu of granule %lu differs\n",
				       i % GRANULE_NR_PAGES, i / GRANULE_NR_PAGES);
			return false;
		}
	}
	return true;
}

static bool mem_holds(const struct mem *mem)
{
	return mem_holds_but(mem, 0, 0);
}

/* The pages that are acted on are zero from now on. */
static void mem_zero_unit(struct mem *mem)
{
	memset(page_at(mem->model, mem->first), 0, mem_unit_len(mem));
}

static unsigned long mem_whole(const struct mem *mem)
{
	return granule_count(mem->pagemap, mem->area, mem_len(mem), GRANULE_WHOLE);
}

/* By smaps: these have to agree in permission and software bits, too. */
static unsigned long mem_mapped(const struct mem *mem)
{
	return granule_mapped_kb(mem->area, mem_len(mem)) / (GRANULE_SIZE / 1024);
}

/* Whole granules but for the one that is acted on. */
static unsigned long mem_others_whole(const struct mem *mem)
{
	return mem_whole(mem) -
	       (granule_state(mem->pagemap, mem_target(mem)) == GRANULE_WHOLE);
}

/* How many pages have all of @bits in their pagemap entry? */
static unsigned long mem_count(const struct mem *mem, __u64 bits)
{
	unsigned long i, nr = 0;

	for (i = 0; i < mem_pages(mem); i++)
		nr += (pagemap_get_entry(mem->pagemap, page_at(mem->area, i)) & bits) == bits;
	return nr;
}

/* All of it is whole, and as it should be. */
#define EXPECT_INTACT(mem) do { \
	EXPECT_EQ(mem_whole(mem), (mem)->nr); \
	EXPECT_EQ(mem_mapped(mem), (mem)->nr); \
	EXPECT_TRUE(mem_holds(mem)); \
} while (0)

/* Nothing is missing but pages of the target, and nothing is wrong. */
#define EXPECT_LOST(mem, first, end) do { \
	EXPECT_TRUE(mem_holds_but(mem, first, end)); \
	EXPECT_EQ(mem_others_whole(mem), (mem)->nr - 1); \
} while (0)

/* What a broken granule, all of it there, is always good for. */
#define EXPECT_REPAIRED(mem) do { \
	EXPECT_EQ(madvise((mem)->area, mem_len(mem), MADV_COLLAPSE), 0); \
	EXPECT_INTACT(mem); \
} while (0)

/*
 * Accesses that bring a signal, which tells of a page that is lost, guarded, or
 * left to userfaultfd. MADV_HWPOISON brings one to its caller as well.
 */
static sigjmp_buf fault_env;
static bool fault_expected;
static bool fault_tolerated;
static siginfo_t fault_info;

static void on_fault(int sig, siginfo_t *info, void *context)
{
	if (fault_expected) {
		fault_info = *info;
		siglongjmp(fault_env, 1);
	}
	if (sig != SIGBUS || !fault_tolerated)
		signal(sig, SIG_DFL);
}

static bool catch_faults(void)
{
	struct sigaction sa = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO };

	return !sigaction(SIGBUS, &sa, NULL) && !sigaction(SIGSEGV, &sa, NULL);
}

/* Read @addr, or write what @value points to there. Returns the signal, or 0. */
static int try_access(char *addr, const char *value)
{
	int sig = 0;

	if (!sigsetjmp(fault_env, 1)) {
		__atomic_store_n(&fault_expected, true, __ATOMIC_SEQ_CST);
		if (value)
			__atomic_store_n(addr, *value, __ATOMIC_SEQ_CST);
		else
			FORCE_READ(*addr);
	} else {
		sig = fault_info.si_signo;
	}
	__atomic_store_n(&fault_expected, false, __ATOMIC_SEQ_CST);
	return sig;
}

enum access { ACCESS_READ, ACCESS_WRITE, ACCESS_NR };

/*
 * How many of the pages from @first up to @end cannot be accessed, for @sig?
 * What is written is what was there.
 */
static unsigned long refused(const struct mem *mem, unsigned long first,
			     unsigned long end, enum access access, int sig)
{
	unsigned long i, nr = 0;

	for (i = first; i < end; i++)
		nr += try_access(byte_in(mem->area, i), access == ACCESS_WRITE ?
				 byte_in(mem->model, i) : NULL) == sig;
	return nr;
}

/* The same for all pages. */
static unsigned long all_refused(const struct mem *mem, enum access access, int sig)
{
	return refused(mem, 0, mem_pages(mem), access, sig);
}

/* A child, with the whole of the harness; what it expects counts for the test. */
static pid_t fork_child(struct mem *mem)
{
	pid_t pid = fork();

	if (!pid) {
		close(mem->pagemap);
		mem->pagemap = granule_open_pagemap();
	}
	return pid;
}

static bool child_ends(pid_t pid)
{
	int status;

	return waitpid(pid, &status, 0) == pid && WIFEXITED(status) &&
	       !WEXITSTATUS(status);
}

#define SWAP_REMEDY	"no swap: swapon a device with 64 MiB free"

static bool have_swap(void)
{
	return granule_meminfo_kb("SwapFree") >= 64 << 10;
}

/*
 * Until all of it is out and has been written: a page in a batch is not at once,
 * and a folio under writeback cannot be split for the sake of a page that is lost.
 */
static bool mem_page_out(struct mem *mem)
{
	int i;

	for (i = 0; i < 100; i++) {
		if (madvise(mem->area, mem_len(mem), MADV_PAGEOUT))
			return false;
		if (mem_count(mem, PM_SWAP) == mem_pages(mem) &&
		    !granule_meminfo_kb("Writeback"))
			return true;
		usleep(20 * 1000);
	}
	return false;
}

/*
 * Settings that granule_save_settings() knows nothing of, and pages that are lost
 * to the machine until somebody says that they are not. All is put right when the
 * program ends: a test may be killed by its timeout.
 */
#define KSM_SYSFS	"/sys/kernel/mm/ksm/"
#define NUMA_BALANCING	"/proc/sys/kernel/numa_balancing"

static struct setting {
	const char *path;
	char saved[32];
} settings[] = {
	{ .path = KSM_SYSFS "sleep_millisecs" },
	{ .path = KSM_SYSFS "pages_to_scan" },
	{ .path = KSM_SYSFS "use_zero_pages" },
	{ .path = KSM_SYSFS "smart_scan" },
	{ .path = KSM_SYSFS "run" },
	{ .path = NUMA_BALANCING },
};

#define MAX_POISONED	32

static struct poisoned {
	unsigned int nr;
	unsigned long pfn[MAX_POISONED];
} *poisoned;

/* To be called before the page is. */
static void will_poison(unsigned long pfn)
{
	if (poisoned->nr == MAX_POISONED)
		ksft_exit_fail_msg("too many poisoned pages\n");
	poisoned->pfn[poisoned->nr++] = pfn;
}

/* Nobody may map them any more. Returns how many remain lost. */
static unsigned int unpoison_all(void)
{
	unsigned int failed = 0;

	while (poisoned->nr)
		failed += !!unpoison_memory(poisoned->pfn[--poisoned->nr]);
	return failed;
}

static void restore_all(void)
{
	size_t i;

	unpoison_all();
	for (i = 0; i < ARRAY_SIZE(settings); i++) {
		if (*settings[i].saved)
			granule_write(settings[i].path, settings[i].saved);
	}
}

static void save_all(void)
{
	size_t i;

	poisoned = mmap(NULL, sizeof(*poisoned), PROT_RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (poisoned == MAP_FAILED)
		ksft_exit_fail_msg("mmap failed\n");
	for (i = 0; i < ARRAY_SIZE(settings); i++)
		read_file(settings[i].path, settings[i].saved, sizeof(settings[i].saved));
	atexit(restore_all);
}

/*
 * Memory failure. Not of zero runs: nothing unpoisons a reserved page, so the
 * machine would not be left as it was.
 */
#define HWPOISON_DEBUGFS	"/sys/kernel/debug/hwpoison/"
#define HWPOISON_REMEDY		"no " HWPOISON_DEBUGFS ": set CONFIG_HWPOISON_INJECT=y"

static unsigned long corrupted_kb(void)
{
	return granule_meminfo_kb("HardwareCorrupted");
}

FIXTURE(page_granule_poison)
{
	struct mem mem;
	unsigned long lost;
	unsigned long corrupted;
};

FIXTURE_VARIANT(page_granule_poison)
{
	enum granule_kind kind;
	bool by_pfn;		/* reported as memory is, not by MADV_HWPOISON */
};

FIXTURE_VARIANT_ADD(page_granule_poison, contract)
{
	.kind = GRANULE_CONTRACT,
};

FIXTURE_VARIANT_ADD(page_granule_poison, default_tagged)
{
	.kind = GRANULE_DEFAULT,
};

FIXTURE_VARIANT_ADD(page_granule_poison, contract_pfn)
{
	.kind = GRANULE_CONTRACT,
	.by_pfn = true,
};

FIXTURE_VARIANT_ADD(page_granule_poison, default_tagged_pfn)
{
	.kind = GRANULE_DEFAULT,
	.by_pfn = true,
};

FIXTURE_SETUP(page_granule_poison)
{
	if (access(HWPOISON_DEBUGFS "corrupt-pfn", W_OK))
		SKIP(return, HWPOISON_REMEDY);
	ASSERT_TRUE(catch_faults());
	ASSERT_TRUE(mem_create(&self->mem, variant->kind, NR_GRANULES));
	mem_fill(&self->mem, 1);
	/* Of a large folio, MADV_HWPOISON takes the first page in the range. */
	self->lost = variant->by_pfn ? TARGET_PAGE : self->mem.first;
	self->corrupted = corrupted_kb();
}

FIXTURE_TEARDOWN(page_granule_poison)
{
	EXPECT_TRUE(granule_invariants_hold());
	if (self->mem.area)
		munmap(self->mem.area, mem_len(&self->mem));
	unpoison_all();
}

/* These return 0 or a negative errno. */
static int poison_unit(struct mem *mem)
{
	int ret;

	fault_tolerated = true;
	ret = madvise(mem_unit(mem), mem_unit_len(mem), MADV_HWPOISON) ? -errno : 0;
	fault_tolerated = false;
	return ret;
}

static int poison(struct mem *mem, unsigned long page, bool by_pfn)
{
	unsigned long pfn = pagemap_get_pfn(mem->pagemap, page_at(mem->area, page));
	char text[32];

	will_poison(pfn);
	if (!by_pfn)
		return poison_unit(mem);
	snprintf(text, sizeof(text), "%lu", pfn);
	return granule_write(HWPOISON_DEBUGFS "corrupt-pfn", text);
}

/* One page is lost, for good, and nothing else. */
#define EXPECT_POISONED(mem, lost) do { \
	EXPECT_LOST(mem, lost, (lost) + 1); \
	EXPECT_EQ(mem_count(mem, PM_PRESENT), mem_pages(mem) - 1); \
	EXPECT_EQ(refused(mem, lost, (lost) + 1, ACCESS_READ, SIGBUS), 1); \
	EXPECT_EQ(refused(mem, lost, (lost) + 1, ACCESS_WRITE, SIGBUS), 1); \
} while (0)

/*
 * One page is lost, the other 15 live on as pages do. Shared memory keeps what is
 * lost until it is removed.
 */
static void lose_page(struct __test_metadata *_metadata, struct mem *mem,
		      unsigned long lost, bool by_pfn, bool shared)
{
	unsigned long split = granule_vmstat("granule_split");
	unsigned long corrupted = corrupted_kb();
	char *spare;
	pid_t pid;

	/* Pages of zeroes are mapped to the zero page when their folio is split. */
	memset(page_at(mem->area, TARGET_PAGE + 2), 0, 3 * BASE_SIZE);
	memset(page_at(mem->model, TARGET_PAGE + 2), 0, 3 * BASE_SIZE);
	ASSERT_EQ(poison(mem, lost, by_pfn), 0);
	EXPECT_EQ(granule_vmstat("granule_split") - split, 1);
	EXPECT_EQ(corrupted_kb() - corrupted, BASE_SIZE / 1024);
	EXPECT_POISONED(mem, lost);
	EXPECT_EQ(fault_info.si_code, BUS_MCEERR_AR);
	EXPECT_EQ(1UL << fault_info.si_addr_lsb, BASE_SIZE);
	EXPECT_EQ((char *)fault_info.si_addr, byte_in(mem->area, lost));

	mem_write_but(mem, lost, lost + 1, 2);
	EXPECT_POISONED(mem, lost);
	pid = fork_child(mem);
	if (!pid) {
		EXPECT_POISONED(mem, lost);
		mem_write_but(mem, lost, lost + 1, 3);
		EXPECT_POISONED(mem, lost);
		_exit(0);
	}
	EXPECT_TRUE(child_ends(pid));
	mem_write_but(mem, lost, lost + 1, 4);
	EXPECT_POISONED(mem, lost);

	ASSERT_EQ(mprotect(mem->area, mem_len(mem), PROT_READ), 0);
	ASSERT_EQ(mprotect(mem->area, mem_len(mem), PROT_RW), 0);
	spare = granule_reserve(mem_len(mem));
	ASSERT_NE(spare, NULL);
	ASSERT_EQ(mremap(mem->area, mem_len(mem), mem_len(mem),
			 MREMAP_MAYMOVE | MREMAP_FIXED, spare), spare);
	mem->area = spare;
	mem_write_but(mem, lost, lost + 1, 5);
	EXPECT_POISONED(mem, lost);
	/* What is lost cannot be repaired; given back, it can be had again. */
	madvise(mem->area, mem_len(mem), MADV_COLLAPSE);
	EXPECT_POISONED(mem, lost);
	ASSERT_EQ(madvise(mem_target(mem), GRANULE_SIZE, shared ? MADV_REMOVE :
			  MADV_DONTNEED), 0);
	memset(nth(mem->model, TARGET), 0, GRANULE_SIZE);
	mem_write(mem, 6);
	EXPECT_INTACT(mem);

	ASSERT_EQ(munmap(mem->area, mem_len(mem)), 0);
	EXPECT_EQ(unpoison_all(), 0);
	EXPECT_EQ(corrupted_kb(), corrupted);
}

/* Assert that one page is lost, and no other. */
TEST_F(page_granule_poison, private_memory)
{
	lose_page(_metadata, &self->mem, self->lost, variant->by_pfn, false);
}

TEST_F(page_granule_poison, shared_memory)
{
	ASSERT_TRUE(mem_share(&self->mem));
	mem_fill(&self->mem, 1);
	EXPECT_INTACT(&self->mem);
	lose_page(_metadata, &self->mem, self->lost, variant->by_pfn, true);
}

/* Assert that who shares the page loses it too, and that the rest is copied. */
TEST_F(page_granule_poison, forked)
{
	unsigned long lost = self->lost;
	struct mem *mem = &self->mem;
	int down[2], up[2];
	pid_t pid;
	char c;

	ASSERT_EQ(pipe(down), 0);
	ASSERT_EQ(pipe(up), 0);
	pid = fork_child(mem);
	if (!pid) {
		if (read(down[0], &c, 1) != 1)
			_exit(1);
		EXPECT_POISONED(mem, lost);
		mem_write_but(mem, lost, lost + 1, 3);
		EXPECT_POISONED(mem, lost);
		if (write(up[1], "", 1) != 1 || read(down[0], &c, 1) != 1)
			_exit(1);
		/* The parent has written. */
		EXPECT_POISONED(mem, lost);
		_exit(0);
	}
	ASSERT_EQ(poison(mem, lost, variant->by_pfn), 0);
	EXPECT_POISONED(mem, lost);
	ASSERT_EQ(write(down[1], "", 1), 1);
	ASSERT_EQ(read(up[0], &c, 1), 1);
	EXPECT_POISONED(mem, lost);
	mem_write_but(mem, lost, lost + 1, 4);
	EXPECT_POISONED(mem, lost);
	ASSERT_EQ(write(down[1], "", 1), 1);
	EXPECT_TRUE(child_ends(pid));
	EXPECT_POISONED(mem, lost);

	ASSERT_EQ(munmap(mem->area, mem_len(mem)), 0);
	EXPECT_EQ(unpoison_all(), 0);
	EXPECT_EQ(corrupted_kb(), self->corrupted);
}

/* Assert that it makes no difference whether it is swapped out before or after. */
TEST_F(page_granule_poison, swapped)
{
	unsigned long lost = self->lost;
	struct mem *mem = &self->mem;
	__u64 entry;

	if (!have_swap())
		SKIP(return, SWAP_REMEDY);
	if (variant->by_pfn) {
		ASSERT_EQ(poison(mem, lost, true), 0);
	} else {
		ASSERT_TRUE(mem_page_out(mem));
		ASSERT_EQ(poison_unit(mem), 0);
		/* The PFN is where slots are, above five bits for the device. */
		entry = pagemap_get_entry(mem->pagemap, page_at(mem->area, lost));
		ASSERT_TRUE(entry & PM_SWAP);
		will_poison(PAGEMAP_PFN(entry) >> 5);
		EXPECT_EQ(granule_present_pages(mem->pagemap, mem_target(mem), GRANULE_SIZE),
			  GRANULE_NR_PAGES - 1);
	}
	EXPECT_POISONED(mem, lost);
	EXPECT_TRUE(mem_page_out(mem));
	mem_write_but(mem, lost, lost + 1, 3);
	EXPECT_POISONED(mem, lost);

	ASSERT_EQ(munmap(mem->area, mem_len(mem)), 0);
	EXPECT_EQ(unpoison_all(), 0);
	EXPECT_EQ(corrupted_kb(), self->corrupted);
}

FIXTURE(page_granule_single)
{
	struct mem mem;
	int uffd;
};

FIXTURE_VARIANT(page_granule_single)
{
	enum granule_kind kind;
};

FIXTURE_VARIANT_ADD(page_granule_single, contract)
{
	.kind = GRANULE_CONTRACT,
};

FIXTURE_VARIANT_ADD(page_granule_single, default_tagged)
{
	.kind = GRANULE_DEFAULT,
};

FIXTURE_SETUP(page_granule_single)
{
	self->uffd = -1;
	ASSERT_TRUE(catch_faults());
	ASSERT_TRUE(mem_create(&self->mem, variant->kind, NR_GRANULES));
}

FIXTURE_TEARDOWN(page_granule_single)
{
	EXPECT_TRUE(granule_invariants_hold());
	if (self->uffd >= 0)
		close(self->uffd);
	if (self->mem.area)
		munmap(self->mem.area, mem_len(&self->mem));
	restore_all();
}

/* Assert that a page that goes bad is replaced, and its granule can be repaired. */
TEST_F(page_granule_single, soft_offline)
{
	unsigned long pfns[NR_PAGES], corrupted = corrupted_kb(), i, moved = 0;
	struct mem *mem = &self->mem;
	unsigned long split;

	if (access(HWPOISON_DEBUGFS "unpoison-pfn", W_OK))
		SKIP(return, HWPOISON_REMEDY);
	mem_fill(mem, 1);
	for (i = 0; i < NR_PAGES; i++)
		pfns[i] = pagemap_get_pfn(mem->pagemap, page_at(mem->area, i));
	split = granule_vmstat("granule_split");
	will_poison(pfns[mem->first]);
	ASSERT_EQ(madvise(mem_unit(mem), mem_unit_len(mem), MADV_SOFT_OFFLINE), 0);
	EXPECT_EQ(granule_vmstat("granule_split") - split, 1);
	EXPECT_EQ(corrupted_kb() - corrupted, BASE_SIZE / 1024);

	EXPECT_EQ(mem_count(mem, PM_PRESENT), NR_PAGES);
	EXPECT_LOST(mem, 0, 0);
	for (i = 0; i < NR_PAGES; i++)
		moved += pagemap_get_pfn(mem->pagemap, page_at(mem->area, i)) != pfns[i];
	EXPECT_EQ(moved, 1);
	mem_write(mem, 2);
	EXPECT_TRUE(mem_holds(mem));
	EXPECT_REPAIRED(mem);
	EXPECT_EQ(unpoison_all(), 0);
	EXPECT_EQ(corrupted_kb(), corrupted);
}

/* KSM. */
static bool ksm_scan(unsigned int scans)
{
	long end = ksm_get_full_scans() + scans;
	unsigned int i;

	/* Do not skip what could not be merged before. */
	granule_write(KSM_SYSFS "smart_scan", "0");
	if (granule_write(KSM_SYSFS "sleep_millisecs", "0") ||
	    granule_write(KSM_SYSFS "pages_to_scan", "1000") ||
	    granule_write(KSM_SYSFS "run", "1"))
		return false;
	for (i = 0; i < 1200 && ksm_get_full_scans() < end; i++)
		usleep(50 * 1000);
	return ksm_get_full_scans() >= end;
}

/* The same in all granules, something else in each page of one. */
static void fill_alike(struct mem *mem)
{
	unsigned long i;

	for (i = 0; i < mem->nr; i++) {
		granule_fill(nth(mem->area, i), GRANULE_SIZE, 7);
		granule_fill(nth(mem->model, i), GRANULE_SIZE, 7);
	}
}

/* Pages of later granules that are the same page as one of the first granule. */
static unsigned long mem_merged(struct mem *mem)
{
	unsigned long i, nr = 0;

	for (i = GRANULE_NR_PAGES; i < mem_pages(mem); i++)
		nr += pagemap_get_pfn(mem->pagemap, page_at(mem->area, i)) ==
		      pagemap_get_pfn(mem->pagemap,
				      page_at(mem->area, i % GRANULE_NR_PAGES));
	return nr;
}

/*
 * Assert that KSM merges pages of default-tagged VMAs, that a write or the end of
 * it gives each its own again, and that contract VMAs are left alone, also when
 * the whole process is to be merged.
 */
TEST_F_TIMEOUT(page_granule_single, ksm, 180)
{
	const bool contract = variant->kind == GRANULE_CONTRACT;
	const unsigned long alike = NR_PAGES - GRANULE_NR_PAGES;
	struct mem *mem = &self->mem;
	unsigned long i;
	bool repaired;

	if (ksm_get_full_scans() < 0)
		SKIP(return, "no KSM: build the kernel with CONFIG_KSM=y");
	fill_alike(mem);
	EXPECT_EQ(madvise(mem->area, mem_len(mem), MADV_MERGEABLE), contract ? -1 : 0);
	if (contract)
		ASSERT_EQ(prctl(PR_SET_MEMORY_MERGE, 1, 0, 0, 0), 0);
	ASSERT_TRUE(ksm_scan(4));
	EXPECT_EQ(mem_merged(mem), contract ? 0 : alike);
	EXPECT_TRUE(mem_holds(mem));
	if (contract) {
		EXPECT_INTACT(mem);
		EXPECT_EQ(prctl(PR_SET_MEMORY_MERGE, 0, 0, 0, 0), 0);
		EXPECT_INTACT(mem);
		return;
	}
	EXPECT_EQ(mem_whole(mem), 0);

	ASSERT_EQ(granule_write(KSM_SYSFS "run", "0"), 0);
	for (i = 0; i < GRANULE_NR_PAGES; i++) {
		*byte_in(mem_target(mem), i) = 3;
		*byte_in(nth(mem->model, TARGET), i) = 3;
	}
	EXPECT_EQ(mem_merged(mem), alike - GRANULE_NR_PAGES);
	EXPECT_TRUE(mem_holds(mem));
	ASSERT_EQ(madvise(mem->area, mem_len(mem), MADV_UNMERGEABLE), 0);
	EXPECT_EQ(mem_merged(mem), 0);
	EXPECT_EQ(mem_count(mem, PM_PRESENT), NR_PAGES);
	EXPECT_TRUE(mem_holds(mem));

	/* The last page to come back tells that there is something to repair. */
	if (!granule_repair(true))
		SKIP(return, "no control of the repair: mount debugfs");
	for (i = 0, repaired = false; i < 400 && !repaired; i++) {
		repaired = mem_whole(mem) == mem->nr;
		usleep(50 * 1000);
	}
	granule_repair(false);
	EXPECT_INTACT(mem);
	mem_write(mem, 4);
	EXPECT_INTACT(mem);
}

/*
 * Assert that zero pages of KSM, which are the one zero page that all share, are
 * replaced one by one, that none is counted on, and that runs can be formed then.
 */
TEST_F_TIMEOUT(page_granule_single, ksm_zero_pages, 180)
{
	struct mem *mem = &self->mem;
	unsigned long i;
	pid_t pid;

	if (ksm_get_full_scans() < 0)
		SKIP(return, "no KSM: build the kernel with CONFIG_KSM=y");
	if (variant->kind == GRANULE_CONTRACT)
		SKIP(return, "a contract granule cannot be merged: see default_tagged");
	/* Merged, and then written to, they are single pages. */
	fill_alike(mem);
	ASSERT_EQ(madvise(mem->area, mem_len(mem), MADV_MERGEABLE), 0);
	ASSERT_TRUE(ksm_scan(4));
	ASSERT_EQ(granule_write(KSM_SYSFS "run", "0"), 0);
	ASSERT_EQ(granule_write(KSM_SYSFS "use_zero_pages", "1"), 0);
	memset(mem->area, 0, mem_len(mem));
	memset(mem->model, 0, mem_len(mem));
	EXPECT_EQ(mem_whole(mem), 0);
	ASSERT_TRUE(ksm_scan(4));
	EXPECT_EQ(ksm_get_self_zero_pages(), NR_PAGES);
	EXPECT_EQ(granule_rss_kb(mem->area, mem_len(mem)), 0);
	EXPECT_TRUE(mem_holds(mem));

	ASSERT_EQ(granule_write(KSM_SYSFS "run", "0"), 0);
	pid = fork_child(mem);
	if (!pid) {
		mem_write(mem, 2);
		EXPECT_TRUE(mem_holds(mem));
		EXPECT_EQ(ksm_get_self_zero_pages(), 0);
		EXPECT_REPAIRED(mem);
		_exit(0);
	}
	EXPECT_TRUE(child_ends(pid));
	EXPECT_EQ(ksm_get_self_zero_pages(), NR_PAGES);
	for (i = 0; i < mem->nr / 2; i++)
		*byte_of(mem->area, i) = *byte_of(mem->model, i) = 3;
	EXPECT_EQ(ksm_get_self_zero_pages(), NR_PAGES - mem->nr / 2);
	ASSERT_EQ(madvise(mem->area, mem_len(mem), MADV_UNMERGEABLE), 0);
	EXPECT_EQ(ksm_get_self_zero_pages(), 0);
	EXPECT_TRUE(mem_holds(mem));
	EXPECT_REPAIRED(mem);
}

/*
 * userfaultfd. What would be left to a handler brings SIGBUS, so that it can be
 * seen which pages are, without a thread that handles them.
 */
#define UFFD_REMEDY	"no userfaultfd for it: build the kernel with CONFIG_USERFAULTFD=y"

static int uffd_arm(int uffd, char *addr, size_t len, __u64 mode)
{
	struct uffdio_register reg = { .range = { (uintptr_t)addr, len }, .mode = mode };

	return ioctl(uffd, UFFDIO_REGISTER, &reg) ? -errno : 0;
}

/* What gives a range to the process. Takes it from the model where it is copied. */
typedef int (*uffd_give)(int uffd, char *dst, char *src, size_t len);

static int give_copy(int uffd, char *dst, char *src, size_t len)
{
	struct uffdio_copy arg = {
		.dst = (uintptr_t)dst, .src = (uintptr_t)src, .len = len,
	};

	return ioctl(uffd, UFFDIO_COPY, &arg) ? -errno : 0;
}

static int give_zeropage(int uffd, char *dst, char *src, size_t len)
{
	struct uffdio_zeropage arg = { .range = { (uintptr_t)dst, len } };

	memset(src, 0, len);
	return ioctl(uffd, UFFDIO_ZEROPAGE, &arg) ? -errno : 0;
}

/* Nothing is there, for good. */
static int give_poison(int uffd, char *dst, size_t len)
{
	struct uffdio_poison arg = { .range = { (uintptr_t)dst, len } };

	return ioctl(uffd, UFFDIO_POISON, &arg) ? -errno : 0;
}

static int give_continue(int uffd, char *dst, char *src, size_t len)
{
	struct uffdio_continue arg = { .range = { (uintptr_t)dst, len } };

	return ioctl(uffd, UFFDIO_CONTINUE, &arg) ? -errno : 0;
}

/*
 * Give a granule as little at a time as its kind allows. Each page is missing
 * until it is given, whatever else of the granule has been.
 */
static void give_granule(struct __test_metadata *_metadata, struct mem *mem, int uffd,
			 unsigned long granule, uffd_give give)
{
	const unsigned long step = mem->end - mem->first;
	unsigned long end = (granule + 1) * GRANULE_NR_PAGES, i;

	for (i = end - GRANULE_NR_PAGES; i < end; i += step) {
		EXPECT_EQ(refused(mem, i, end, ACCESS_READ, SIGBUS), end - i);
		EXPECT_EQ(refused(mem, i, end, ACCESS_WRITE, SIGBUS), end - i);
		ASSERT_EQ(give(uffd, page_at(mem->area, i), page_at(mem->model, i),
			       step * BASE_SIZE), 0);
		EXPECT_EQ(refused(mem, i, i + step, ACCESS_READ, SIGBUS), 0);
	}
	EXPECT_EQ(refused(mem, end - GRANULE_NR_PAGES, end, ACCESS_WRITE, SIGBUS), 0);
}

/* Assert that faults are left to userfaultfd page by page, and are whole after. */
TEST_F(page_granule_single, uffd_missing)
{
	struct mem *mem = &self->mem;
	const size_t bad = 2 * GRANULE_SIZE;	/* from what is given */

	self->uffd = granule_uffd_open(UFFD_FEATURE_POISON);
	if (self->uffd < 0)
		SKIP(return, UFFD_REMEDY);
	granule_fill(mem->model, mem_len(mem), 1);
	ASSERT_EQ(uffd_arm(self->uffd, mem->area, mem_len(mem), UFFDIO_REGISTER_MODE_MISSING),
		  0);
	EXPECT_EQ(all_refused(mem, ACCESS_READ, SIGBUS), NR_PAGES);
	give_granule(_metadata, mem, self->uffd, TARGET, give_copy);
	give_granule(_metadata, mem, self->uffd, TARGET + 1, give_zeropage);
	EXPECT_EQ(mem_count(mem, PM_PRESENT), 2 * GRANULE_NR_PAGES);
	EXPECT_EQ(all_refused(mem, ACCESS_WRITE, SIGBUS), NR_PAGES - 2 * GRANULE_NR_PAGES);

	ASSERT_EQ(give_poison(self->uffd, mem_unit(mem) + bad, mem_unit_len(mem)), 0);

	ASSERT_EQ(uffd_unregister(self->uffd, mem->area, mem_len(mem)), 0);
	memset(mem->model, 0, TARGET * GRANULE_SIZE);
	memset(nth(mem->model, TARGET + 2), 0, (mem->nr - TARGET - 2) * GRANULE_SIZE);
	EXPECT_EQ(all_refused(mem, ACCESS_READ, SIGBUS), mem->end - mem->first);
	ASSERT_EQ(madvise(mem_target(mem) + bad, GRANULE_SIZE, MADV_DONTNEED), 0);
	mem_write(mem, 2);
	EXPECT_GE(mem_whole(mem), NR_GRANULES - 2);
	EXPECT_TRUE(mem_holds(mem));
	EXPECT_REPAIRED(mem);
}

/* Assert the same for what is in the page cache already, which stays a run. */
TEST_F(page_granule_single, uffd_minor)
{
	struct mem *mem = &self->mem;

	self->uffd = granule_uffd_open(UFFD_FEATURE_MINOR_SHMEM);
	if (self->uffd < 0)
		SKIP(return, UFFD_REMEDY);
	ASSERT_TRUE(mem_share(mem));
	mem_fill(mem, 1);
	EXPECT_INTACT(mem);
	ASSERT_EQ(madvise(mem->area, mem_len(mem), MADV_DONTNEED), 0);

	ASSERT_EQ(uffd_arm(self->uffd, mem->area, mem_len(mem), UFFDIO_REGISTER_MODE_MINOR), 0);
	give_granule(_metadata, mem, self->uffd, TARGET, give_continue);
	EXPECT_EQ(mem_count(mem, PM_PRESENT), GRANULE_NR_PAGES);
	EXPECT_EQ(mem_whole(mem), 1);
	EXPECT_EQ(mem_mapped(mem), 1);
	EXPECT_EQ(all_refused(mem, ACCESS_READ, SIGBUS), NR_PAGES - GRANULE_NR_PAGES);
	ASSERT_EQ(uffd_unregister(self->uffd, mem->area, mem_len(mem)), 0);
	EXPECT_TRUE(mem_holds(mem));
	EXPECT_INTACT(mem);
}

/* Protect from writes, or from reads as well. */
static int uffd_protect(int uffd, char *addr, size_t len, bool rwp, bool protect)
{
	struct uffdio_writeprotect wp_arg = {
		.range = { (uintptr_t)addr, len },
		.mode = protect ? UFFDIO_WRITEPROTECT_MODE_WP : 0,
	};
	struct uffdio_rwprotect rwp_arg = {
		.range = { (uintptr_t)addr, len },
		.mode = protect ? UFFDIO_RWPROTECT_MODE_RWP : 0,
	};

	if (rwp)
		return ioctl(uffd, UFFDIO_RWPROTECT, &rwp_arg) ? -errno : 0;
	return ioctl(uffd, UFFDIO_WRITEPROTECT, &wp_arg) ? -errno : 0;
}

/* Just what is to be protected is, whatever else is written to. */
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

/* Of a run, which may be one of zeroes: protection that is that of no other page. */
static void protect_unit(struct __test_metadata *_metadata, struct mem *mem, int uffd,
			 bool rwp, bool zero)
{
	const __u64 mode = rwp ? UFFDIO_REGISTER_MODE_RWP : UFFDIO_REGISTER_MODE_WP;
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
	EXPECT_EQ(mem_mapped(mem), NR_GRANULES - zero);
	ASSERT_EQ(uffd_protect(uffd, unit, len, rwp, true), 0);
	EXPECT_PROTECTED(mem, rwp, 2);
	EXPECT_EQ(mem_others_whole(mem), NR_GRANULES - 1);
	ASSERT_EQ(uffd_protect(uffd, unit, len, rwp, false), 0);
	EXPECT_EQ(all_refused(mem, ACCESS_WRITE, SIGBUS), 0);
	EXPECT_TRUE(mem_holds(mem));
	if (!zero)
		EXPECT_INTACT(mem);

	/* Copied by a write, while it is protected in part; a child is not. */
	ASSERT_EQ(uffd_protect(uffd, unit, len, rwp, true), 0);
	pid = fork_child(mem);
	if (!pid) {
		EXPECT_EQ(mem_count(mem, PM_UFFD_WP), 0);
		EXPECT_TRUE(mem_holds(mem));
		EXPECT_EQ(all_refused(mem, ACCESS_WRITE, SIGBUS), 0);
		mem_write(mem, 3);
		EXPECT_TRUE(mem_holds(mem));
		EXPECT_EQ(mem_others_whole(mem), NR_GRANULES - 1);
		_exit(0);
	}
	EXPECT_TRUE(child_ends(pid));
	pid = granule_fork_idle();
	EXPECT_PROTECTED(mem, rwp, 4);
	EXPECT_EQ(mem_others_whole(mem), NR_GRANULES - 1);
	granule_kill_idle(pid);
	EXPECT_PROTECTED(mem, rwp, 5);
	if (have_swap()) {
		mem_page_out(mem);
		EXPECT_PROTECTED(mem, rwp, 6);
	}
	/* The end of it gives back what is protected still. */
	ASSERT_EQ(uffd_unregister(uffd, mem->area, mem_len(mem)), 0);
	EXPECT_EQ(mem_count(mem, PM_UFFD_WP), 0);
	EXPECT_EQ(all_refused(mem, ACCESS_WRITE, SIGBUS), 0);
	mem_write(mem, 7);
	EXPECT_REPAIRED(mem);
}

/* Assert that write protection of a page, or a granule, is that of no other. */
TEST_F(page_granule_single, uffd_wp)
{
	self->uffd = granule_uffd_open(UFFD_FEATURE_PAGEFAULT_FLAG_WP);
	if (self->uffd < 0)
		SKIP(return, UFFD_REMEDY);
	protect_unit(_metadata, &self->mem, self->uffd, false, false);
	protect_unit(_metadata, &self->mem, self->uffd, false, true);
}

/* Assert the same for protection from reads and writes. */
TEST_F(page_granule_single, uffd_rwp)
{
	self->uffd = granule_uffd_open(UFFD_FEATURE_RWP);
	if (self->uffd < 0)
		SKIP(return, UFFD_REMEDY " and CONFIG_USERFAULTFD_RWP=y");
	protect_unit(_metadata, &self->mem, self->uffd, true, false);
	protect_unit(_metadata, &self->mem, self->uffd, true, true);
}

/*
 * Assert that a write which nobody waits for is seen as one to that page, whether
 * the page is copied or not.
 */
TEST_F(page_granule_single, uffd_wp_async)
{
	struct mem *mem = &self->mem;
	int shared;
	pid_t pid = 0;

	self->uffd = granule_uffd_open(UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED);
	if (self->uffd < 0)
		SKIP(return, UFFD_REMEDY);
	mem_fill(mem, 1);
	ASSERT_EQ(uffd_arm(self->uffd, mem->area, mem_len(mem), UFFDIO_REGISTER_MODE_WP), 0);
	for (shared = 0; shared < 2; shared++) {
		ASSERT_EQ(uffd_protect(self->uffd, mem->area, mem_len(mem), false, true), 0);
		EXPECT_EQ(mem_count(mem, PM_UFFD_WP), NR_PAGES);
		EXPECT_INTACT(mem);
		if (shared)
			pid = granule_fork_idle();
		*byte_in(mem->area, TARGET_PAGE) = 2 + shared;
		*byte_in(mem->model, TARGET_PAGE) = 2 + shared;
		EXPECT_EQ(mem_count(mem, PM_UFFD_WP), NR_PAGES - 1);
		EXPECT_EQ(pagemap_get_entry(mem->pagemap, page_at(mem->area, TARGET_PAGE)) &
			  PM_UFFD_WP, 0);
		EXPECT_EQ(mem_others_whole(mem), NR_GRANULES - 1);
		mem_write(mem, 4 + shared);
		EXPECT_EQ(mem_count(mem, PM_UFFD_WP), 0);
		EXPECT_TRUE(mem_holds(mem));
		if (!shared)
			EXPECT_INTACT(mem);
	}
	granule_kill_idle(pid);
	ASSERT_EQ(uffd_unregister(self->uffd, mem->area, mem_len(mem)), 0);
	EXPECT_REPAIRED(mem);
}

/* PAGEMAP_SCAN goes three ways through a page table. */
enum scan_way {
	SCAN_ALL,
	SCAN_WRITTEN,
	SCAN_PRESENT,
	NR_SCAN_WAYS,
};

/* Write-protect what was written to, @nr pages from @first on. */
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
		arg.end = (uintptr_t)page_at(area, NR_PAGES);
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

/* Does that do to granules what it does to single pages, and to no others? */
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
	for (i = 0; i < NR_PAGES; i++) {
		const bool protected = i >= first && i < first + nr;

		if (!(pagemap_get_entry(mem->pagemap, page_at(mem->area, i)) & PM_UFFD_WP) ==
		    protected)
			return false;
	}
	return true;
}

/* Assert that a scan for what was written to protects just what it has found. */
TEST_F(page_granule_single, scan_protects)
{
	static const unsigned long firsts[] = { 0, 1, GRANULE_NR_PAGES - 1, GRANULE_NR_PAGES };
	static const unsigned long nrs[] = {
		1, GRANULE_NR_PAGES - 1, GRANULE_NR_PAGES, GRANULE_NR_PAGES + 1, NR_PAGES / 2,
	};
	struct mem *mem = &self->mem;
	unsigned int way, i, j;

	self->uffd = granule_uffd_open(UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED);
	if (self->uffd < 0)
		SKIP(return, UFFD_REMEDY);
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
				mem_write(mem, 2 + j);
				EXPECT_EQ(mem_count(mem, PM_UFFD_WP), 0);
			}
		}
	}
	ASSERT_EQ(uffd_unregister(self->uffd, mem->area, mem_len(mem)), 0);
	ASSERT_EQ(uffd_unregister(self->uffd, mem->model, mem_len(mem)), 0);
	EXPECT_TRUE(mem_holds(mem));
	EXPECT_INTACT(mem);
}

static int uffd_move(int uffd, char *dst, char *src, size_t len)
{
	struct uffdio_move arg = {
		.dst = (uintptr_t)dst, .src = (uintptr_t)src, .len = len,
	};

	if (ioctl(uffd, UFFDIO_MOVE, &arg))
		return -errno;
	return arg.move == (long long)len ? 0 : -EIO;
}

/*
 * Assert that what is moved, to tagged memory or untagged, arrives as it was, and
 * leaves behind nothing of the granules that it was and all of what is beside it.
 */
TEST_F(page_granule_single, uffd_move)
{
	const enum granule_kind kinds[] = { variant->kind, GRANULE_UNTAGGED };
	const size_t len = 2 * GRANULE_SIZE;
	struct mem *mem = &self->mem;
	char *src = mem_target(mem), *dst;
	size_t i;

	self->uffd = granule_uffd_open(UFFD_FEATURE_MOVE);
	if (self->uffd < 0)
		SKIP(return, UFFD_REMEDY);
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
		ksft_print_msg("%lu of 2 granules moved to %s memory are whole\n",
			       granule_count(mem->pagemap, dst, len, GRANULE_WHOLE),
			       kinds[i] == GRANULE_UNTAGGED ? "untagged" : "tagged");

		/* As little as may be moved, out of the middle of what is there. */
		memset(nth(mem->model, TARGET), 0, len);
		mem_write(mem, 2);
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

		/* The source is not armed; the destination is not any more. */
		mem_write(mem, 3);
		EXPECT_REPAIRED(mem);
		ASSERT_EQ(uffd_unregister(self->uffd, dst, mem_len(mem)), 0);
		madvise(dst, len, MADV_COLLAPSE);
		if (kinds[i] != GRANULE_UNTAGGED)
			EXPECT_EQ(granule_count(mem->pagemap, dst, len, GRANULE_WHOLE), 2);
		memset(nth(dst, 5), 7, GRANULE_SIZE);
		dst[0] = 1;
	}
}

/* Assert that a guard keeps out of its pages and off all others. */
TEST_F(page_granule_single, guard)
{
	const unsigned long cut = variant->kind == GRANULE_CONTRACT ? 0 : 1;
	struct mem *mem = &self->mem;
	const unsigned long nr = mem->end - mem->first;
	unsigned long split;
	pid_t pid;

	mem_fill(mem, 1);
	split = granule_vmstat("granule_split");
	ASSERT_EQ(madvise(mem_unit(mem), mem_unit_len(mem), MADV_GUARD_INSTALL), 0);
	EXPECT_EQ(granule_vmstat("granule_split") - split, cut);
	EXPECT_EQ(mem_count(mem, PM_GUARD_REGION), nr);
	mem_write_but(mem, mem->first, mem->end, 2);
	EXPECT_EQ(refused(mem, mem->first, mem->end, ACCESS_READ, SIGSEGV), nr);
	EXPECT_EQ(all_refused(mem, ACCESS_WRITE, SIGSEGV), nr);
	EXPECT_LOST(mem, mem->first, mem->end);
	pid = fork_child(mem);
	if (!pid) {
		mem_write_but(mem, mem->first, mem->end, 3);
		EXPECT_EQ(refused(mem, mem->first, mem->end, ACCESS_READ, SIGSEGV), nr);
		EXPECT_EQ(all_refused(mem, ACCESS_WRITE, SIGSEGV), nr);
		EXPECT_LOST(mem, mem->first, mem->end);
		_exit(0);
	}
	EXPECT_TRUE(child_ends(pid));
	ASSERT_EQ(mprotect(mem->area, mem_len(mem), PROT_READ), 0);
	ASSERT_EQ(mprotect(mem->area, mem_len(mem), PROT_RW), 0);
	EXPECT_EQ(all_refused(mem, ACCESS_WRITE, SIGSEGV), nr);
	EXPECT_LOST(mem, mem->first, mem->end);

	ASSERT_EQ(madvise(mem_unit(mem), mem_unit_len(mem), MADV_GUARD_REMOVE), 0);
	mem_zero_unit(mem);
	EXPECT_LOST(mem, 0, 0);
	mem_write(mem, 4);
	if (cut)
		EXPECT_REPAIRED(mem);
	EXPECT_INTACT(mem);

	/* Whole granules are guarded, and not guarded any more, without a trace. */
	ASSERT_EQ(madvise(mem_target(mem), 2 * GRANULE_SIZE, MADV_GUARD_INSTALL), 0);
	EXPECT_EQ(all_refused(mem, ACCESS_READ, SIGSEGV), 2 * GRANULE_NR_PAGES);
	ASSERT_EQ(madvise(mem_target(mem), 2 * GRANULE_SIZE, MADV_GUARD_REMOVE), 0);
	memset(nth(mem->model, TARGET), 0, 2 * GRANULE_SIZE);
	FORCE_READ(*mem_target(mem));
	EXPECT_TRUE(granule_is_zero_run(mem->pagemap, mem_target(mem)));
	*mem_target(mem) = *nth(mem->model, TARGET) = 5;
	*nth(mem_target(mem), 1) = *nth(mem->model, TARGET + 1) = 5;
	EXPECT_INTACT(mem);
	EXPECT_EQ(granule_vmstat("granule_split") - split, cut);
}

/* Assert that a page that a device has to itself is given back to its run. */
TEST_F(page_granule_single, device_exclusive)
{
	struct hmm_dmirror_cmd cmd = { .npages = 1 };
	struct mem *mem = &self->mem;
	char seen[BASE_SIZE];
	pid_t pid;
	int fd;

	fd = open("/dev/hmm_dmirror0", O_RDWR);
	if (fd < 0)
		SKIP(return, "no /dev/hmm_dmirror0: set CONFIG_TEST_HMM=y, mount devtmpfs");
	mem_fill(mem, 1);
	cmd.addr = (uintptr_t)page_at(mem->area, TARGET_PAGE);
	cmd.ptr = (uintptr_t)seen;
	/* The device knows base pages only. */
	ASSERT_EQ(ioctl(fd, HMM_DMIRROR_EXCLUSIVE, &cmd), 0);
	EXPECT_EQ(memcmp(seen, page_at(mem->model, TARGET_PAGE), BASE_SIZE), 0);
	EXPECT_EQ(mem_count(mem, PM_PRESENT), NR_PAGES - 1);
	EXPECT_EQ(granule_filled(mem->pagemap, mem_target(mem)), GRANULE_NR_PAGES);
	mem_write_but(mem, TARGET_PAGE, TARGET_PAGE + 1, 2);
	EXPECT_EQ(mem_count(mem, PM_PRESENT), NR_PAGES - 1);
	EXPECT_LOST(mem, TARGET_PAGE, TARGET_PAGE + 1);
	mem_write(mem, 3);
	EXPECT_INTACT(mem);

	ASSERT_EQ(ioctl(fd, HMM_DMIRROR_EXCLUSIVE, &cmd), 0);
	/* What a device holds is given back before it is shared. */
	pid = fork_child(mem);
	if (!pid) {
		EXPECT_TRUE(mem_holds(mem));
		mem_write(mem, 4);
		EXPECT_TRUE(mem_holds(mem));
		_exit(0);
	}
	EXPECT_TRUE(child_ends(pid));
	mem_write(mem, 5);
	EXPECT_TRUE(mem_holds(mem));
	EXPECT_REPAIRED(mem);
	close(fd);
}

#define IDLE_BITMAP	"/sys/kernel/mm/page_idle/bitmap"
#define MAX_TRIES	5

static bool idle_set(int fd, unsigned long pfn)
{
	const uint64_t bits = 1ULL << (pfn % 64);

	return pwrite(fd, &bits, sizeof(bits), pfn / 64 * sizeof(bits)) == sizeof(bits);
}

/* Returns -1 if that cannot be told. */
static int idle_get(int fd, unsigned long pfn)
{
	uint64_t bits;

	if (pread(fd, &bits, sizeof(bits), pfn / 64 * sizeof(bits)) != sizeof(bits))
		return -1;
	return bits >> (pfn % 64) & 1;
}

/* Its PFN, or -1 as well if it is not present just now, because it is being moved. */
static unsigned long pfn_in_use(const struct mem *mem, char *page)
{
	force_read_pages(page, 1, BASE_SIZE);
	return pagemap_get_pfn(mem->pagemap, page);
}

/*
 * Is a granule idle until one of its pages is used, @page? What is in the TLB is not
 * seen to be used: fork() flushes. Returns false, too, if the granule is moved.
 */
static bool idle_until_used(const struct mem *mem, int fd, char *granule, unsigned long page)
{
	const unsigned long pfn = pfn_in_use(mem, granule);

	if (pfn == -1UL || !idle_set(fd, pfn) || idle_get(fd, pfn) != 1)
		return false;
	granule_kill_idle(granule_fork_idle());
	force_read_pages(granule + page * BASE_SIZE, 1, BASE_SIZE);
	return idle_get(fd, pfn) == 0 && idle_set(fd, pfn) && idle_get(fd, pfn) == 1 &&
	       pagemap_get_pfn(mem->pagemap, granule) == pfn;
}

/* Assert that, whichever page it is. A granule may be moved, but not each time. */
TEST_F(page_granule_single, page_idle)
{
	struct mem *mem = &self->mem;
	unsigned long i, tries;
	int fd;

	fd = open(IDLE_BITMAP, O_RDWR);
	if (fd < 0)
		SKIP(return, "no " IDLE_BITMAP ": set CONFIG_IDLE_PAGE_TRACKING=y");
	mem_fill(mem, 1);
	for (i = 0; i < mem->nr; i++) {
		for (tries = 0; tries < MAX_TRIES; tries++) {
			if (idle_until_used(mem, fd, nth(mem->area, i),
					    (2 * i + 1) % GRANULE_NR_PAGES))
				break;
		}
		EXPECT_LT(tries, MAX_TRIES);
	}
	EXPECT_INTACT(mem);
	close(fd);
}

/* What granules are compared with has to do the same: hugetlb pages of 64 KiB. */
#define HUGETLB_DIR	"/sys/kernel/mm/hugepages/hugepages-64kB"
#define MANY_FILES	20000

/* Leave pages behind that were slabs, for page tables to be made of. */
static bool churn_slabs(void)
{
	const struct rlimit limit = { MANY_FILES + 64, MANY_FILES + 64 };
	int *fds = calloc(MANY_FILES, sizeof(*fds));
	unsigned int i, nr = 0;

	if (fds && !setrlimit(RLIMIT_NOFILE, &limit)) {
		while (nr < MANY_FILES && (fds[nr] = open("/dev/null", O_RDONLY)) >= 0)
			nr++;
		for (i = 0; i < nr; i++)
			close(fds[i]);
	}
	free(fds);
	/* They are freed after a grace period. */
	usleep(100 * 1000);
	return nr == MANY_FILES;
}

/* Assert that a child of fork() has them as its parent does. */
TEST(hugetlb_fork)
{
	const unsigned long nr = HPAGE_SIZE / GRANULE_SIZE;
	unsigned long saved, i, tries;
	char *area;
	pid_t pid;

	if (access(HUGETLB_DIR, F_OK))
		SKIP(return, "no hugetlb pages of 64 KiB: arm64 has them");
	saved = hugetlb_nr_pages(GRANULE_SIZE);
	hugetlb_set_nr_pages(GRANULE_SIZE, saved + 2 * nr);
	for (tries = 0; tries < MAX_TRIES; tries++) {
		area = mmap(NULL, HPAGE_SIZE, PROT_RW,
			    ANON_FLAGS | MAP_HUGETLB | MAP_HUGE_64KB, -1, 0);
		ASSERT_NE(area, MAP_FAILED);
		for (i = 0; i < nr; i++)
			granule_fill(area + i * GRANULE_SIZE, GRANULE_SIZE, i);
		ASSERT_TRUE(churn_slabs());
		pid = fork();
		if (!pid) {
			for (i = 0; i < nr; i++) {
				if (!granule_check(area + i * GRANULE_SIZE, GRANULE_SIZE, i))
					_exit(1);
			}
			_exit(0);
		}
		EXPECT_TRUE(child_ends(pid));
		munmap(area, HPAGE_SIZE);
	}
	hugetlb_set_nr_pages(GRANULE_SIZE, saved);
}

/* NUMA hints: more granules, so that they outnumber what else the process has. */
#define HINTED		64UL
#define HINT_SECONDS	60

/*
 * Assert that granules that NUMA balancing takes the access to are given it back,
 * and moved, as a whole: by one fault, not by 16.
 */
TEST_F_TIMEOUT(page_granule_single, numa_hints, 3 * HINT_SECONDS)
{
	unsigned long updates, faults, moved, here = 0;
	unsigned int cpu, node;
	struct mem mem;
	cpu_set_t cpus;
	time_t end;

	if (!granule_two_nodes())
		SKIP(return, "one NUMA node: boot with two");
	if (access(NUMA_BALANCING, W_OK))
		SKIP(return, "no NUMA balancing: set CONFIG_NUMA_BALANCING=y");
	ASSERT_EQ(syscall(__NR_getcpu, &cpu, &node, NULL), 0);
	CPU_ZERO(&cpus);
	CPU_SET(cpu, &cpus);
	ASSERT_EQ(sched_setaffinity(0, sizeof(cpus), &cpus), 0);
	ASSERT_TRUE(mem_create(&mem, variant->kind, HINTED));
	mem_fill(&mem, 1);
	ASSERT_EQ(granule_on_node(mem.area, mem.nr, !node, true), mem.nr);
	EXPECT_INTACT(&mem);

	/* The model has single pages, of which nothing is to be counted. */
	ASSERT_EQ(mprotect(mem.model, mem_len(&mem), PROT_NONE), 0);
	updates = granule_vmstat("numa_pte_updates");
	faults = granule_vmstat("numa_hint_faults");
	moved = granule_vmstat("numa_pages_migrated");
	ASSERT_EQ(granule_write(NUMA_BALANCING, "1"), 0);
	for (end = time(NULL) + HINT_SECONDS; here < mem.nr && time(NULL) < end;) {
		here = granule_on_node(mem.area, mem.nr, node, false);
		force_read_pages(mem.area, mem_pages(&mem), BASE_SIZE);
	}
	updates = granule_vmstat("numa_pte_updates") - updates;
	faults = granule_vmstat("numa_hint_faults") - faults;
	moved = granule_vmstat("numa_pages_migrated") - moved;
	ASSERT_EQ(granule_write(NUMA_BALANCING, "0"), 0);
	ASSERT_EQ(mprotect(mem.model, mem_len(&mem), PROT_RW), 0);

	ksft_print_msg("%lu entries, %lu faults, %lu pages moved\n", updates, faults, moved);
	EXPECT_GE(updates, mem_pages(&mem));
	EXPECT_GE(faults, mem.nr);
	EXPECT_LE(faults, updates / GRANULE_NR_PAGES + mem.nr);
	EXPECT_EQ(here, mem.nr);
	EXPECT_INTACT(&mem);
	mem_write(&mem, 2);
	EXPECT_INTACT(&mem);
}

/* Assert that a write by force copies whole granules once, and just what it says. */
TEST_F(page_granule_single, force_write)
{
	const size_t pos = TARGET * GRANULE_SIZE + 5 * BASE_SIZE + 123;
	const size_t len = 2 * GRANULE_SIZE + 3 * BASE_SIZE + 45;
	struct mem *mem = &self->mem;
	char path[64], *text;
	unsigned long cow;
	int status, fd;
	ssize_t ret;
	pid_t pid;

	text = malloc(len);
	ASSERT_NE(text, NULL);
	memset(text, 0xa5, len);
	mem_fill(mem, 1);
	pid = fork_child(mem);
	if (!pid) {
		EXPECT_EQ(mprotect(mem->area, mem_len(mem), PROT_READ), 0);
		ptrace(PTRACE_TRACEME, 0, NULL, NULL);
		raise(SIGSTOP);
		memcpy(mem->model + pos, text, len);
		EXPECT_INTACT(mem);
		EXPECT_EQ(mprotect(mem->area, mem_len(mem), PROT_RW), 0);
		mem_write(mem, 2);
		EXPECT_INTACT(mem);
		_exit(0);
	}
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	ASSERT_TRUE(WIFSTOPPED(status));
	snprintf(path, sizeof(path), "/proc/%d/mem", pid);
	fd = open(path, O_RDWR);
	ASSERT_GE(fd, 0);
	cow = granule_vmstat("granule_cow");
	ret = pwrite(fd, text, len, (uintptr_t)mem->area + pos);
	cow = granule_vmstat("granule_cow") - cow;
	close(fd);
	ASSERT_EQ(ptrace(PTRACE_CONT, pid, NULL, NULL), 0);
	if (ret != (ssize_t)len) {
		granule_kill_idle(pid);
		SKIP(return, "no force: boot without proc_mem.force_override=never");
	}
	EXPECT_TRUE(child_ends(pid));
	EXPECT_EQ(cow, 3);
	EXPECT_INTACT(mem);
	mem_write(mem, 3);
	EXPECT_INTACT(mem);
	free(text);
}

int main(int argc, char **argv)
{
	granule_require();
	granule_save_settings();
	save_all();
	return test_harness_run(argc, argv);
}
