// SPDX-License-Identifier: GPL-2.0
/*
 * Page granule: the heap and the stack of a program. Each test starts this
 * program anew, with its arguments saying what to try, since a process has one
 * heap and one stack. Mappings with MAP_GROWSDOWN follow.
 */
#define _GNU_SOURCE
#include "kselftest_harness.h"
#include <asm-generic/mman.h> /* Force the import of the tools version. */
#include <errno.h>
#include <malloc.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "vm_util.h"
#include "page_granule_util.h"

/*
 * brk and the stack belong to a program from its start, so that these tests
 * exec this file as "--program NAME FD": once as it is, and once with
 * PR_GRANULE_EXEC at 64 KiB. A program says on stderr what is wrong, and fails.
 */
static bool tagging;		/* Is 64 KiB the default of this program? */

static void __printf(2, 3) need(bool ok, const char *format, ...)
{
	int saved_errno = errno;
	va_list args;

	if (ok)
		return;
	fputs("# ", stderr);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fprintf(stderr, " (%s, default of %ld kB)\n", strerror(saved_errno),
		granule_get(PR_GRANULE_MMAP) / 1024);
	exit(KSFT_FAIL);
}

/* On a stack of its own, as there may be no room on the other. */
static void catch_segv(void)
{
	static char stack[65536];
	stack_t ss = { .ss_sp = stack, .ss_size = sizeof(stack) };
	struct sigaction action;

	need(granule_catch_faults(), "sigaction");
	need(!sigaltstack(&ss, NULL), "sigaltstack");
	need(!sigaction(SIGSEGV, NULL, &action), "sigaction");
	action.sa_flags |= SA_ONSTACK;
	need(!sigaction(SIGSEGV, &action, NULL), "sigaction");
}

/* Write a byte; false if that is SIGSEGV. */
static bool touch(char *addr)
{
	int sig = granule_try_access(addr, "\1");

	need(!sig || sig == SIGSEGV, "signal %d at %p", sig, addr);
	return !sig;
}

/*
 * The libc takes its memory from the heap too: see that it needs none for now.
 */
static char *quiet_heap(void)
{
	mallopt(M_TOP_PAD, 1 << 20);
	mallopt(M_TRIM_THRESHOLD, -1);
	free(malloc(1000));
	return granule_brk(NULL);
}

static char *align_up(char *addr)
{
	return (char *)granule_round_up(addr);
}

/* Grow the heap to @addr, and no less. */
static void grow_to(char *addr)
{
	char *ret = granule_brk(addr);

	need(ret == addr, "brk(%p) returned %p", addr, ret);
}

/* Write the start of the heap to @fd, and see that it is as it should be. */
static int program_brk_start(int fd)
{
	char *start = (char *)granule_stat_field(getpid(), GRANULE_STAT_START_BRK);
	struct granule_smaps smaps;

	grow_to(align_up(quiet_heap()) + GRANULE_SIZE);
	need(!tagging || granule_aligned(start), "the heap starts at %p", start);
	need(granule_read_smaps(getpid(), start, &smaps), "no VMA at %p", start);
	need(granule_has_flag(&smaps, "gr") == tagging, "the heap has flags %s", smaps.vmflags);
	need(!granule_has_flag(&smaps, "gc"), "the heap has flags %s", smaps.vmflags);
	need(write(fd, &start, sizeof(start)) == sizeof(start), "write");
	return KSFT_PASS;
}

/* Give back all from @offset on, take it again, and look. */
static void shrink_and_grow(char *base, size_t len, size_t offset)
{
	size_t kept = (offset + BASE_SIZE - 1) & ~(BASE_SIZE - 1);

	grow_to(base + len);
	memset(base, 0xff, len);
	grow_to(base + offset);
	grow_to(base + len);
	/* The rest of the last page stays as it is, as it always did. */
	need(granule_is_filled(base, kept, 0xff), "shrunk to %zu: lost memory", offset);
	need(granule_is_filled(base + kept, len - kept, 0), "shrunk to %zu: not zero", offset);
}

static int program_brk_zero(int fd)
{
	char *base = align_up(quiet_heap());
	size_t offset;

	for (offset = 0; offset <= 3 * GRANULE_SIZE; offset += BASE_SIZE)
		shrink_and_grow(base, 3 * GRANULE_SIZE, offset);
	/* Bytes all over a granule, and those around the ends of a page. */
	for (offset = GRANULE_SIZE; offset < 2 * GRANULE_SIZE; offset += 1237)
		shrink_and_grow(base, 3 * GRANULE_SIZE, offset);
	for (offset = 1; offset < GRANULE_NR_PAGES; offset++) {
		shrink_and_grow(base, 2 * GRANULE_SIZE, offset * BASE_SIZE - 1);
		shrink_and_grow(base, 2 * GRANULE_SIZE, offset * BASE_SIZE + 1);
	}
	/* Not a multiple of anything. */
	base += 5 * BASE_SIZE + 77;
	grow_to(base);
	base = (char *)(((unsigned long)base + BASE_SIZE - 1) & -BASE_SIZE);
	for (offset = 0; offset <= 2 * GRANULE_SIZE; offset += 3 * BASE_SIZE + 501)
		shrink_and_grow(base, 2 * GRANULE_SIZE + 4000, offset);
	return KSFT_PASS;
}

static int program_brk_runs(int fd)
{
	char *base = align_up(quiet_heap()), *last = base + 4 * GRANULE_SIZE;
	int pagemap = granule_open_pagemap(), i;

	grow_to(last);
	for (i = 0; i < 4; i++)
		base[i * GRANULE_SIZE + i * 3 * BASE_SIZE] = 1;
	need(granule_count(pagemap, base, 4 * GRANULE_SIZE, GRANULE_WHOLE) == (tagging ? 4 : 0),
	     "not populated as runs");
	/* Not a granule yet: the part of it inside the heap is populated. */
	grow_to(last + BASE_SIZE + 1);
	last[BASE_SIZE] = 7;
	need(granule_filled(pagemap, last) == (tagging ? 2 : 1), "%u pages at the end",
	     granule_filled(pagemap, last));
	/* The pages that are there stay when it becomes a granule. */
	grow_to(last + GRANULE_SIZE);
	last[3 * BASE_SIZE] = 8;
	need(last[BASE_SIZE] == 7 && !*last && !last[2 * BASE_SIZE], "lost memory");
	/* The heap may end inside a granule again, and the other part stays. */
	memset(base, 0x55, GRANULE_SIZE);
	grow_to(base + 5 * BASE_SIZE);
	need(granule_filled(pagemap, base) == 5, "%u pages after shrinking",
	     granule_filled(pagemap, base));
	need(granule_is_filled(base, 5 * BASE_SIZE, 0x55), "lost memory");
	catch_segv();
	need(!touch(base + 5 * BASE_SIZE), "memory beyond the break");
	return KSFT_PASS;
}

static int program_brk_rlimit_data(int fd)
{
	char *base = align_up(quiet_heap());
	struct rlimit rlim;
	int pages;

	need(!getrlimit(RLIMIT_DATA, &rlim), "getrlimit");
	for (pages = 1; pages < 40; pages += 6) {
		grow_to(base);
		rlim.rlim_cur = granule_status_kb(getpid(), "VmData:") * 1024 + pages * BASE_SIZE;
		need(!setrlimit(RLIMIT_DATA, &rlim), "setrlimit");
		need(granule_brk(base + (pages + 1) * BASE_SIZE) == base, "a page above the limit");
		need(granule_brk(base + pages * BASE_SIZE + 1) == base, "a byte above the limit");
		grow_to(base + pages * BASE_SIZE);
		memset(base, 1, pages * BASE_SIZE);
		rlim.rlim_cur = rlim.rlim_max;
		need(!setrlimit(RLIMIT_DATA, &rlim), "setrlimit");
	}
	return KSFT_PASS;
}

/* The heap may grow up to a page from the next mapping, wherever that is. */
static int program_brk_next_mapping(int fd)
{
	char *base = align_up(quiet_heap());
	int page;

	for (page = 0; page < GRANULE_NR_PAGES; page += 3) {
		char *next = base + 4 * GRANULE_SIZE + page * BASE_SIZE;

		grow_to(base);
		need(mmap(next, BASE_SIZE, PROT_NONE,
			  ANON_FLAGS | MAP_FIXED_NOREPLACE | MAP_GRANULE_4KB, -1, 0) == next,
		     "mmap at %p", next);
		need(granule_brk(next) == base, "no gap to the next mapping");
		need(granule_brk(next - BASE_SIZE + 1) == base, "no gap to the next mapping");
		grow_to(next - BASE_SIZE);
		memset(base, 1, next - BASE_SIZE - base);
		need(!munmap(next, BASE_SIZE), "munmap");
	}
	return KSFT_PASS;
}

static int program_brk_locked(int fd)
{
	char *base = align_up(quiet_heap());
	int pagemap = granule_open_pagemap();
	size_t len = 2 * GRANULE_SIZE + BASE_SIZE;
	struct granule_smaps smaps;
	long locked;

	grow_to(base);
	need(!mlockall(MCL_FUTURE), "mlockall");
	locked = granule_status_kb(getpid(), "VmLck:");
	grow_to(base + len);
	need(granule_status_kb(getpid(), "VmLck:") - locked == (long)len / 1024, "%ld kB locked",
	     granule_status_kb(getpid(), "VmLck:") - locked);
	need(granule_read_smaps(getpid(), base, &smaps) && granule_has_flag(&smaps, "lo"),
	     "the heap has flags %s", smaps.vmflags);
	need(granule_present_pages(pagemap, base, len) == len / BASE_SIZE, "not populated");
	need(granule_count(pagemap, base, len, GRANULE_WHOLE) == (tagging ? 2 : 0),
	     "not populated as runs");
	grow_to(base);
	need(granule_status_kb(getpid(), "VmLck:") == locked, "still locked");
	return KSFT_PASS;
}

/* As after exec, but anywhere: a heap that nothing has been taken from. */
static char *new_heap(size_t misalign)
{
	char *start = granule_reserve(RES_LEN);

	need(start && !munmap(start, RES_LEN), "no address space");
	start += GRANULE_SIZE + misalign;
	/* Fails if the old end is below, in which case that has to go first. */
	prctl(PR_SET_MM, PR_SET_MM_START_BRK, start, 0UL, 0UL);
	need(!prctl(PR_SET_MM, PR_SET_MM_BRK, start, 0UL, 0UL) &&
	     !prctl(PR_SET_MM, PR_SET_MM_START_BRK, start, 0UL, 0UL), "PR_SET_MM");
	return start;
}

/* The default is switched on before the first brk(), or between two of them. */
static int program_brk_late_default(int fd)
{
	int pagemap = granule_open_pagemap(), round;
	char *start = new_heap(5 * BASE_SIZE), *old_end;
	struct granule_smaps smaps;

	for (round = 0; round < 2; round++) {
		old_end = start;
		if (round) {
			start = new_heap(3 * BASE_SIZE);
			old_end = start + GRANULE_SIZE;
			grow_to(old_end);
			memset(start, 0xff, GRANULE_SIZE);
		}
		need(!granule_set(PR_GRANULE_MMAP, GRANULE_SIZE), "prctl");
		need(granule_brk(NULL) == old_end, "the heap has moved");
		grow_to(old_end + 6 * GRANULE_SIZE);
		need(granule_read_smaps(getpid(), old_end, &smaps) &&
		     granule_has_flag(&smaps, "gr"), "new memory has flags %s", smaps.vmflags);
		need(smaps.start == (unsigned long)old_end, "new memory starts at %lx, not %p",
		     smaps.start, old_end);
		need(granule_is_filled(old_end, 6 * GRANULE_SIZE, 0), "not zero");
		memset(old_end, 0x55, 6 * GRANULE_SIZE);
		need(granule_count(pagemap, old_end, 6 * GRANULE_SIZE, GRANULE_WHOLE) == 5,
		     "not populated as runs");
		need(!round || granule_is_filled(start, GRANULE_SIZE, 0xff), "lost memory");
		/* Back over the bound between the two, and up again. */
		shrink_and_grow(start, 4 * GRANULE_SIZE, BASE_SIZE + 1);
		shrink_and_grow(start, 4 * GRANULE_SIZE, 2 * GRANULE_SIZE + 1);
		need(!granule_set(PR_GRANULE_MMAP, BASE_SIZE), "prctl");
	}
	return KSFT_PASS;
}

/* The bounds of the stack of the program. */
static char *stack_bound(bool end)
{
	unsigned long lo, hi;
	char *line, *maps = granule_read_proc("/proc/self/maps");

	line = strstr(maps, "[stack]");
	need(line, "no [stack]");
	while (line > maps && line[-1] != '\n')
		line--;
	need(sscanf(line, "%lx-%lx", &lo, &hi) == 2, "what is %.30s", line);
	return (char *)(end ? hi : lo);
}

static char *stack_start(void)
{
	return stack_bound(false);
}

static char *stack_end(void)
{
	return stack_bound(true);
}

static unsigned long stack_guard_gap(void)
{
	/* The kernel has no other way to tell. */
	if (strstr(granule_read_proc("/proc/cmdline"), "stack_guard_gap="))
		exit(KSFT_SKIP);
	return 256 * BASE_SIZE;
}

static void set_stack_limit(unsigned long limit)
{
	struct rlimit rlim;

	need(!getrlimit(RLIMIT_STACK, &rlim), "getrlimit");
	rlim.rlim_cur = limit;
	need(!setrlimit(RLIMIT_STACK, &rlim), "setrlimit");
}

static int program_stack_steps(int fd)
{
	unsigned long step = tagging ? GRANULE_SIZE : BASE_SIZE;
	int pagemap = granule_open_pagemap(), i;
	struct granule_smaps smaps;

	catch_segv();
	set_stack_limit(8UL << 20);
	need(granule_read_smaps(getpid(), stack_start(), &smaps) &&
	     granule_has_flag(&smaps, "gr") == tagging, "the stack has flags %s", smaps.vmflags);
	for (i = 0; i < 20; i++) {
		/* Each time in another page, from the next one to 16 below. */
		char *addr = stack_start() - 1 - i * 7 % GRANULE_NR_PAGES * BASE_SIZE;
		char *expected = (char *)((unsigned long)addr & -step);

		need(touch(addr), "no growth to %p", addr);
		need(stack_start() == expected, "grown to %p by %p", stack_start(), addr);
		need(!tagging || granule_state(pagemap, expected) == GRANULE_WHOLE,
		     "no run at %p", expected);
	}
	return KSFT_PASS;
}

/* By how much RLIMIT_STACK is raised, time and again. */
static const unsigned long limit_steps[] = {
	3 * BASE_SIZE, GRANULE_SIZE, GRANULE_SIZE + BASE_SIZE, 5 * BASE_SIZE + 100,
	2 * GRANULE_SIZE - 100, 11 * BASE_SIZE, 4 * GRANULE_SIZE,
};

/*
 * The last room below the limit, less than a granule, is usable page by page.
 */
static int program_stack_rlimit(int fd)
{
	char *end = stack_end(), *lowest;
	unsigned long limit;
	size_t i;

	catch_segv();
	limit = end - stack_start() + GRANULE_SIZE;
	for (i = 0; i < ARRAY_SIZE(limit_steps); i++) {
		limit += limit_steps[i];
		set_stack_limit(limit);
		lowest = end - (limit & -BASE_SIZE);
		need(!touch(lowest - 1), "limit %lu exceeded", limit);
		need(touch(lowest + 2 * BASE_SIZE), "limit %lu not reached", limit);
		need(stack_start() >= lowest, "limit %lu exceeded: %p", limit, stack_start());
		need(touch(lowest), "limit %lu not reached", limit);
		need(stack_start() == lowest, "limit %lu: grown to %p", limit, stack_start());
		need(!touch(lowest - 1), "limit %lu exceeded", limit);
	}
	return KSFT_PASS;
}

/*
 * Memory below the stack: as far as the gap to it, and as far as it if nothing.
 */
static int program_stack_guard_gap(int fd)
{
	unsigned long gap = stack_guard_gap();
	char *below, *lowest;
	int page, prot;

	catch_segv();
	set_stack_limit(32UL << 20);
	for (page = 0; page < GRANULE_NR_PAGES; page += 5) {
		for (prot = PROT_NONE; prot <= PROT_READ; prot += PROT_READ) {
			below = (char *)((unsigned long)stack_start() & -GRANULE_SIZE) -
				(prot ? gap : 0) - 3 * GRANULE_SIZE + page * BASE_SIZE;
			lowest = below + BASE_SIZE + (prot ? gap : 0);
			need(mmap(below, BASE_SIZE, prot,
				  ANON_FLAGS | MAP_FIXED | MAP_GRANULE_4KB, -1, 0) == below,
			     "mmap at %p", below);
			need(!touch(lowest - 1), "grown into the gap");
			need(touch(lowest + 2 * BASE_SIZE), "gap of page %d not reached", page);
			need(stack_start() >= lowest, "grown into the gap");
			need(touch(lowest), "gap of page %d not reached", page);
			need(stack_start() == lowest, "grown to %p, not %p", stack_start(),
			     lowest);
			need(!touch(lowest - 1), "grown into the gap");
			need(!munmap(below, BASE_SIZE), "munmap");
		}
	}
	return KSFT_PASS;
}

static const struct {
	const char *name;
	int (*main)(int fd);
} programs[] = {
	{ "brk_start", program_brk_start },
	{ "brk_zero", program_brk_zero },
	{ "brk_runs", program_brk_runs },
	{ "brk_rlimit_data", program_brk_rlimit_data },
	{ "brk_next_mapping", program_brk_next_mapping },
	{ "brk_locked", program_brk_locked },
	{ "brk_late_default", program_brk_late_default },
	{ "stack_steps", program_stack_steps },
	{ "stack_rlimit", program_stack_rlimit },
	{ "stack_guard_gap", program_stack_guard_gap },
};

static int program_main(char **argv)
{
	int ret = KSFT_FAIL;
	size_t i;

	tagging = granule_get(PR_GRANULE_MMAP) == GRANULE_SIZE;
	for (i = 0; i < ARRAY_SIZE(programs); i++) {
		if (!strcmp(argv[2], programs[i].name))
			ret = programs[i].main(atoi(argv[3]));
	}
	need(granule_invariants_hold(), "granules that are not as they should be");
	return ret;
}

FIXTURE(page_granule_program)
{
};

FIXTURE_VARIANT(page_granule_program)
{
	unsigned long size;
};

/* A kernel without granules passes these tests, too. */
FIXTURE_VARIANT_ADD(page_granule_program, base_page)
{
	.size = BASE_SIZE,
};

FIXTURE_VARIANT_ADD(page_granule_program, default_tagged)
{
	.size = GRANULE_SIZE,
};

FIXTURE_SETUP(page_granule_program)
{
	ASSERT_EQ(granule_set_enabled(true), 0);
	granule_thp_never();
}

FIXTURE_TEARDOWN(page_granule_program)
{
	EXPECT_TRUE(granule_invariants_hold());
}

/* The exit status, or -1. The program may write an address to be returned. */
static int run_program(const char *name, unsigned long size, unsigned long persona, char **addr)
{
	int pipefd[2], status;
	char fd[16];
	pid_t pid;

	if (pipe(pipefd))
		return -1;
	snprintf(fd, sizeof(fd), "%d", pipefd[1]);
	pid = fork();
	if (pid < 0)
		return -1;
	if (!pid) {
		if (granule_set(PR_GRANULE_EXEC, size) || personality(PER_LINUX | persona) < 0)
			_exit(10);
		execl("/proc/self/exe", "page_granule_program", "--program", name, fd, NULL);
		_exit(11);
	}
	close(pipefd[1]);
	if (waitpid(pid, &status, 0) != pid || !WIFEXITED(status))
		status = -1;
	else
		status = WEXITSTATUS(status);
	if (addr && read(pipefd[0], addr, sizeof(*addr)) != sizeof(*addr))
		status = -1;
	close(pipefd[0]);
	return status;
}

/*
 * Assert that the heap is tagged by default, and starts at a multiple of 64
 * KiB.
 */
TEST_F(page_granule_program, brk_start)
{
	char *start;

	EXPECT_EQ(run_program("brk_start", variant->size, 0, &start), 0);
	EXPECT_EQ(run_program("brk_start", variant->size, ADDR_COMPAT_LAYOUT, &start), 0);
}

/*
 * Assert that the start of the heap is random if randomize_va_space is 2, and
 * only then.
 */
TEST_F(page_granule_program, brk_randomized)
{
	char *start, *first = NULL;
	int i, same = 0;

	if (read_num("/proc/sys/kernel/randomize_va_space") != 2)
		SKIP(return, "the heap is not randomized: write 2 to kernel.randomize_va_space");
	for (i = 0; i < 8; i++) {
		ASSERT_EQ(run_program("brk_start", variant->size, 0, &start), 0);
		same += start == first;
		first = i ? first : start;
	}
	EXPECT_LE(same, 1);
	for (i = 0; i < 3; i++) {
		ASSERT_EQ(run_program("brk_start", variant->size, ADDR_NO_RANDOMIZE, &start), 0);
		first = i ? first : start;
		EXPECT_EQ(start, first);
	}
}

/* Assert that heap memory that was given back and taken again reads as zero. */
TEST_F_TIMEOUT(page_granule_program, brk_zero, 120)
{
	EXPECT_EQ(run_program("brk_zero", variant->size, 0, NULL), 0);
}

/* Assert that the heap is populated in runs, and may end inside a granule. */
TEST_F(page_granule_program, brk_runs)
{
	EXPECT_EQ(run_program("brk_runs", variant->size, 0, NULL), 0);
}

/*
 * Assert that RLIMIT_DATA stops the heap at the same page as without granules.
 */
TEST_F(page_granule_program, brk_rlimit_data)
{
	EXPECT_EQ(run_program("brk_rlimit_data", variant->size, 0, NULL), 0);
}

/*
 * Assert that the heap grows as near to the next mapping as without granules.
 */
TEST_F(page_granule_program, brk_next_mapping)
{
	EXPECT_EQ(run_program("brk_next_mapping", variant->size, 0, NULL), 0);
}

/* Assert that MCL_FUTURE locks and populates the memory that brk adds. */
TEST_F(page_granule_program, brk_locked)
{
	EXPECT_EQ(run_program("brk_locked", variant->size, 0, NULL), 0);
}

/*
 * Assert that the heap is tagged from the moment on that the program sets a
 * default.
 */
TEST(page_granule_program_brk_late_default)
{
	ASSERT_EQ(granule_set_enabled(true), 0);
	granule_thp_never();
	EXPECT_EQ(run_program("brk_late_default", BASE_SIZE, 0, NULL), 0);
}

/* Assert that the stack grows to multiples of 64 KiB. */
TEST_F(page_granule_program, stack_steps)
{
	EXPECT_EQ(run_program("stack_steps", variant->size, 0, NULL), 0);
}

/* Assert that the stack keeps RLIMIT_STACK to the page. */
TEST_F(page_granule_program, stack_rlimit)
{
	EXPECT_EQ(run_program("stack_rlimit", variant->size, 0, NULL), 0);
}

/* Assert that the stack keeps the gap below it to the page. */
TEST_F(page_granule_program, stack_guard_gap)
{
	int status = run_program("stack_guard_gap", variant->size, 0, NULL);

	if (status == KSFT_SKIP)
		SKIP(return, "boot without stack_guard_gap=");
	EXPECT_EQ(status, 0);
}

/* MAP_GROWSDOWN, above a part of the reservation that is unmapped. */
#define GROW_ROOM	(40 * GRANULE_SIZE)

FIXTURE(page_granule_program_growsdown)
{
	int pagemap;
	char *res;
	struct rlimit rlim;
};

FIXTURE_VARIANT(page_granule_program_growsdown)
{
	enum granule_kind kind;
};

FIXTURE_VARIANT_ADD(page_granule_program_growsdown, untagged)
{
	.kind = GRANULE_UNTAGGED,
};

FIXTURE_VARIANT_ADD(page_granule_program_growsdown, default_tagged)
{
	.kind = GRANULE_DEFAULT,
};

FIXTURE_VARIANT_ADD(page_granule_program_growsdown, contract)
{
	.kind = GRANULE_CONTRACT,
};

FIXTURE_SETUP(page_granule_program_growsdown)
{
	ASSERT_EQ(granule_set_enabled(true), 0);
	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, BASE_SIZE), 0);
	granule_thp_never();
	ASSERT_EQ(getrlimit(RLIMIT_STACK, &self->rlim), 0);
	self->pagemap = granule_open_pagemap();
	ASSERT_GE(self->pagemap, 0);
	self->res = granule_reserve(RES_LEN);
	ASSERT_NE(self->res, NULL);
	ASSERT_EQ(munmap(self->res, GROW_ROOM), 0);
	catch_segv();
}

FIXTURE_TEARDOWN(page_granule_program_growsdown)
{
	EXPECT_TRUE(granule_invariants_hold());
	setrlimit(RLIMIT_STACK, &self->rlim);
	close(self->pagemap);
}

static unsigned long vma_start(const char *addr)
{
	struct granule_smaps smaps;

	return granule_read_smaps(getpid(), addr, &smaps) ? smaps.start : 0;
}

static unsigned long growth_step(enum granule_kind kind)
{
	return kind == GRANULE_UNTAGGED ? BASE_SIZE : GRANULE_SIZE;
}

/*
 * Lowest address that a limit leaves: contract VMAs have no part of a granule.
 */
static unsigned long lowest_of(enum granule_kind kind, const char *limit)
{
	return kind == GRANULE_CONTRACT ? granule_round_up(limit) : (unsigned long)limit;
}

/*
 * Assert that the mapping grows to multiples of 64 KiB, in runs, and keeps its
 * kind.
 */
TEST_F(page_granule_program_growsdown, steps)
{
	unsigned long step = growth_step(variant->kind), expected;
	char *start = self->res + GROW_ROOM, *addr;
	int i;

	/* A default-tagged one may start anywhere. */
	if (variant->kind != GRANULE_CONTRACT)
		start -= 11 * BASE_SIZE;
	ASSERT_EQ(granule_mmap(variant->kind, start, 2 * GRANULE_SIZE, PROT_RW,
			       MAP_FIXED | MAP_GROWSDOWN), start);
	granule_fill(start, 2 * GRANULE_SIZE, SEED);
	addr = start;
	for (i = 0; i < 12; i++) {
		addr = (char *)vma_start(addr) - 1 - i * 7 % GRANULE_NR_PAGES * BASE_SIZE;
		expected = (unsigned long)addr & -step;
		ASSERT_TRUE(touch(addr));
		EXPECT_EQ(vma_start(addr), expected);
		/*
		 * It may have started with a part of a granule, which is
		 * populated.
		 */
		if (expected >> 16 == (unsigned long)start >> 16)
			continue;
		EXPECT_EQ(granule_state(self->pagemap, (void *)(expected & -GRANULE_SIZE)) ==
			  GRANULE_WHOLE, variant->kind != GRANULE_UNTAGGED);
	}
	EXPECT_EQ(granule_kind_of(addr), variant->kind);
	EXPECT_TRUE(granule_vma_has_flag(addr, "gd"));
	EXPECT_TRUE(granule_check(start, 2 * GRANULE_SIZE, SEED));
	/* The contract holds for the new part, too. */
	errno = 0;
	EXPECT_EQ(munmap((void *)expected, BASE_SIZE), variant->kind == GRANULE_CONTRACT ? -1 : 0);
	EXPECT_EQ(errno, variant->kind == GRANULE_CONTRACT ? EINVAL : 0);
}

/* Assert that the mapping keeps RLIMIT_STACK to the page, or to the granule. */
TEST_F(page_granule_program_growsdown, rlimit)
{
	char *start = self->res + GROW_ROOM, *end = start + GRANULE_SIZE, *lowest;
	struct rlimit rlim = self->rlim;
	size_t i;

	ASSERT_EQ(granule_mmap(variant->kind, start, GRANULE_SIZE, PROT_RW,
			       MAP_FIXED | MAP_GROWSDOWN), start);
	rlim.rlim_cur = 2 * GRANULE_SIZE;
	for (i = 0; i < ARRAY_SIZE(limit_steps); i++) {
		rlim.rlim_cur += limit_steps[i];
		ASSERT_EQ(setrlimit(RLIMIT_STACK, &rlim), 0);
		lowest = (char *)lowest_of(variant->kind, end - (rlim.rlim_cur & -BASE_SIZE));
		EXPECT_FALSE(touch(lowest - 1));
		EXPECT_TRUE(touch(lowest + 2 * BASE_SIZE));
		EXPECT_GE(vma_start(start), (unsigned long)lowest);
		EXPECT_TRUE(touch(lowest));
		EXPECT_EQ(vma_start(start), (unsigned long)lowest)
			TH_LOG("limit %llu", (unsigned long long)rlim.rlim_cur);
		EXPECT_FALSE(touch(lowest - 1));
	}
	ASSERT_EQ(setrlimit(RLIMIT_STACK, &self->rlim), 0);
}

/*
 * Assert that the mapping keeps the gap to the memory below, and does not touch
 * that memory.
 */
TEST_F(page_granule_program_growsdown, guard_gap)
{
	char *start = self->res + GROW_ROOM, *below, *lowest;
	unsigned long gap;
	int page, prot;

	if (strstr(granule_read_proc("/proc/cmdline"), "stack_guard_gap="))
		SKIP(return, "boot without stack_guard_gap=");
	gap = stack_guard_gap();
	for (page = 0; page < GRANULE_NR_PAGES; page += 3) {
		for (prot = PROT_NONE; prot <= PROT_READ; prot += PROT_READ) {
			ASSERT_EQ(granule_mmap(variant->kind, start, GRANULE_SIZE, PROT_RW,
					       MAP_FIXED | MAP_GROWSDOWN), start);
			below = self->res + 4 * GRANULE_SIZE + page * BASE_SIZE;
			ASSERT_EQ(granule_mmap(GRANULE_UNTAGGED, below, BASE_SIZE, prot,
					       MAP_FIXED), below);
			lowest = (char *)lowest_of(variant->kind,
						   below + BASE_SIZE + (prot ? gap : 0));
			EXPECT_FALSE(touch(lowest - 1))
				TH_LOG("page %d, protection %d", page, prot);
			EXPECT_TRUE(touch(lowest + 2 * BASE_SIZE));
			EXPECT_GE(vma_start(start), (unsigned long)lowest);
			EXPECT_TRUE(touch(lowest));
			EXPECT_EQ(vma_start(start), (unsigned long)lowest)
				TH_LOG("page %d, protection %d", page, prot);
			EXPECT_FALSE(touch(lowest - 1));
			EXPECT_TRUE(granule_vma_is(below, BASE_SIZE));
			ASSERT_EQ(munmap(self->res, GROW_ROOM + GRANULE_SIZE), 0);
		}
	}
}

int main(int argc, char **argv)
{
	if (argc == 4 && !strcmp(argv[1], "--program"))
		return program_main(argv);
	granule_require();
	granule_save_settings();
	return test_harness_run(argc, argv);
}
