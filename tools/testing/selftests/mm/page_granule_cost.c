// SPDX-License-Identifier: GPL-2.0
/*
 * Page granule: what it costs others. Reclaim, a neighbour in the same cgroup,
 * the shrinkers, zswap, memory hotplug, mbind() and the CPU time that kernel
 * threads take are looked at with 4 KiB pages, with 64 KiB mTHP and with
 * granules, in one boot. A granule is to cost others what 64K mTHP costs them.
 * Not a test: each row says what bound it has, and scripts that print the table
 * compare.
 *
 * Prints JSON, an object for each row and configuration. Counts need no special
 * machine; CPU time needs one on which time passes, not qemu -icount.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <linux/magic.h>
#include <linux/mempolicy.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "kselftest.h"
#include "hugepage_settings.h"
#include "vm_util.h"
#include "page_granule_util.h"

#define MAX_REPEAT	9
#define MAX_BLOCKS	64

#define RECLAIM_LIMIT	(64 * MIB)
#define RECLAIM_LEN	(160 * MIB)

/* Idle and active memory together exceed the limit. */
#define SHARED_LIMIT	(128 * MIB)
#define IDLE_LEN	(96 * MIB)
#define ACTIVE_LEN	(112 * MIB)
#define ACTIVE_ROUNDS	12
#define ACTIVE_SECONDS	60	/* or less rounds, where all of it is swapped in again */

#define GIVE_BACK_LEN	(64 * MIB)
#define UNDERUSED_LEN	(64 * MIB)
#define ZSWAP_LEN	(32 * MIB)
#define OFFLINE_LEN	(96 * MIB)
#define OFFLINE_SECONDS	30
#define MBIND_LEN	(64 * MIB)
#define WRITE_LEN	(32 * MIB)
#define WRITE_PAGES	256

/*
 * The attack on repair: granules that one process breaks, in as many page
 * tables.
 */
#define BROKEN		64UL
#define BURST		16384UL
#define BROKEN_STEP	(2 * MIB)
#define PIPE_PAGES	14	/* of those that a pipe holds by default, 16 */
#define ATTACK_UID	1000
#define ATTACK_SECONDS	20
#define VICTIM_SECOND	2

enum column_id {
	COLUMN_4K,
	COLUMN_MTHP,
	COLUMN_GRANULE,
	NR_COLUMNS,
};

static const struct column {
	const char *name;
	unsigned int thp_order;		/* 0: THP never */
	bool tagged;
} columns[NR_COLUMNS] = {
	[COLUMN_4K] = { "4K", 0, false },
	[COLUMN_MTHP] = { "mTHP 64K", GRANULE_ORDER, false },
	[COLUMN_GRANULE] = { "granule", 0, true },
};

enum row_id {
	ROW_SCANNED,
	ROW_ACTIVATED,
	ROW_IDLE_OUT,
	ROW_ACTIVE_OUT,
	ROW_GIVEN_BACK,
	ROW_HUGE_GIVEN_BACK,
	ROW_UNDERUSED,
	ROW_ZSWAP,
	ROW_OFFLINE,
	ROW_OFFLINE_TIME,
	ROW_MBIND,
	ROW_ALONE_TIME,
	ROW_PINNED_CPU,
	ROW_PINNED_TIME,
	ROW_LOOP_CPU,
	ROW_LOOP_TIME,
	ROW_VMAS_SMALL,
	ROW_VMAS_LARGE,
	ROW_REFUSED,
	ROW_WRITTEN,
	NR_ROWS,
};

/*
 * A granule may cost @op @times column @of, or 1, and @plus: the difference
 * between two runs where numbers are small.
 */
struct row {
	const char *name;
	const char *op;
	const char *of;
	double times;
	double plus;
};

#define OF_MTHP		"mTHP 64K"
#define OF_4K		"4K"
#define OF_NONE		"-"

static const struct row rows[NR_ROWS] = {
	[ROW_SCANNED] = {
		"pages scanned, 160 MB in a cgroup of 64", "<=", OF_MTHP, 1.1, 2048,
	},
	[ROW_ACTIVATED] = {
		"pages activated, 160 MB in a cgroup of 64", "<=", OF_MTHP, 1.1, 2048,
	},
	/* 80 have to go. Now and then all 96 do, of mTHP as of granules. */
	[ROW_IDLE_OUT] = {
		"MB swapped out of 96 idle", ">=", OF_4K, 0.91, 0,
	},
	[ROW_ACTIVE_OUT] = {
		"MB swapped out of the neighbour's 112 active", "<=", OF_MTHP, 1.1, 2,
	},
	[ROW_GIVEN_BACK] = {
		"MB charged after 60 of 64 were given back", "<=", OF_MTHP, 1.1, 0.5,
	},
	[ROW_HUGE_GIVEN_BACK] = {
		"MB charged after that, of huge pages", "<=", OF_MTHP, 1.1, 0.5,
	},
	[ROW_UNDERUSED] = {
		"MB charged of 32 huge pages with one byte each", "<=", OF_MTHP, 1.1, 0.5,
	},
	[ROW_ZSWAP] = {
		"MB charged for 32, out to zswap and read back", "<=", OF_MTHP, 1.1, 0.5,
	},
	[ROW_OFFLINE] = {
		"blocks taken offline, order 4 scarce", ">=", OF_MTHP, 1, 0,
	},
	[ROW_OFFLINE_TIME] = {
		"seconds until they were offline, or not", "<=", OF_MTHP, 1.1, 1,
	},
	[ROW_MBIND] = {
		"MB of 64 moved by mbind(), order 4 scarce", ">=", OF_MTHP, 1, 0,
	},
	[ROW_ALONE_TIME] = {
		"ms until a broken granule is repaired", "<=", OF_NONE, 0, 2000,
	},
	[ROW_PINNED_CPU] = {
		"% of a CPU in kernel threads, 64 pinned granules broken",
		"<=", OF_NONE, 0, 5,
	},
	[ROW_PINNED_TIME] = {
		"ms until another process is repaired meanwhile (18000: not)",
		"<=", OF_NONE, 0, 2000,
	},
	[ROW_LOOP_CPU] = {
		"% of a CPU in kernel threads, 64 granules broken in a loop",
		"<=", OF_NONE, 0, 5,
	},
	[ROW_LOOP_TIME] = {
		"ms until another process is repaired, in that loop (18000: not)",
		"<=", OF_NONE, 0, 2000,
	},
	[ROW_VMAS_SMALL] = {
		"VMAs of 5,000 mappings of 100 KiB", "<=", OF_4K, 1, 3,
	},
	[ROW_VMAS_LARGE] = {
		"VMAs of 70,000 mappings of 196 KiB", "<=", OF_4K, 1, 3,
	},
	[ROW_REFUSED] = {
		"mappings refused of all these", "<=", OF_NONE, 0, 0,
	},
	/* What is compared with is a file in folios of 64 KiB. */
	[ROW_WRITTEN] = {
		"MB written to the disk, a byte in each of 256 random pages of a file",
		"<=", OF_MTHP, 1, 0.5,
	},
};

/* Shared memory, in which the measuring process reports to its parent. */
static struct values {
	bool known[NR_ROWS];
	double value[NR_ROWS];
	bool ready;		/* what a part's own processes wait for */
	bool stop;
} *values;

struct part {
	const char *name;
	const char *what;
	/*
	 * In a process of its own and, unless the limit is 0, in a cgroup with
	 * it.
	 */
	bool (*run)(const struct column *column);
	const char *(*missing)(void);
	unsigned long limit;		/* of the cgroup, ULONG_MAX: none */
	unsigned int repeat;
	bool by_swap;			/* say in the row's name what is swapped to */
};

static char cgroup_root[PATH_MAX];
static char cgroup[PATH_MAX + 64];

static int error(const char *what)
{
	fprintf(stderr, "page_granule_cost: %s\n", what);
	return KSFT_FAIL;
}

static bool failed(const char *what)
{
	fprintf(stderr, "page_granule_cost: %s: %s\n", what, strerror(errno));
	return false;
}

static void tell(enum row_id row, double value)
{
	values->value[row] = value;
	values->known[row] = true;
}

static char *map(size_t len)
{
	char *area = mmap(NULL, len + HPAGE_SIZE, PROT_RW, ANON_FLAGS, -1, 0);

	if (area == MAP_FAILED)
		return NULL;
	return (char *)(((unsigned long)area + HPAGE_SIZE - 1) & -(unsigned long)HPAGE_SIZE);
}

/* Nothing that zram or zswap could make one word of. */
static void fill(char *area, size_t len)
{
	granule_fill(area, len, getpid());
}

static void touch(char *area, size_t len, size_t step)
{
	size_t i;

	for (i = 0; i < len; i += step)
		__atomic_fetch_add(area + i, 1, __ATOMIC_RELAXED);
}

static void wait_for(const bool *flag)
{
	while (!__atomic_load_n(flag, __ATOMIC_ACQUIRE))
		usleep(10 * 1000);
}

static void set_flag(bool *flag)
{
	__atomic_store_n(flag, true, __ATOMIC_RELEASE);
}

/* Pages scanned by reclaim of any origin. */
static unsigned long count_scanned(void)
{
	static const char * const counters[] = {
		"pgscan_kswapd", "pgscan_direct", "pgscan_khugepaged", "pgscan_proactive",
	};
	unsigned long val, sum = 0;
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(counters); i++) {
		val = granule_vmstat(counters[i]);
		sum += val == ULONG_MAX ? 0 : val;
	}
	return sum;
}

/* Write more than the cgroup may have, once. */
static bool run_reclaim(const struct column *column)
{
	const unsigned long scanned = count_scanned();
	const unsigned long activated = granule_vmstat("pgactivate");
	char *area = map(RECLAIM_LEN);

	if (!area)
		return failed("mmap");
	fill(area, RECLAIM_LEN);
	tell(ROW_SCANNED, count_scanned() - scanned);
	tell(ROW_ACTIVATED, granule_vmstat("pgactivate") - activated);
	return true;
}

static const char *no_swap(void)
{
	return granule_meminfo_kb("SwapFree") * 1024 > 2 * RECLAIM_LEN ? NULL :
	       "not enough swap: run swapon first";
}

static double swapped_mb(pid_t pid)
{
	return granule_status_kb(pid, "VmSwap:") / 1024.0;
}

static void __noreturn be_idle(void)
{
	char *area = map(IDLE_LEN);

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (!area)
		_exit(1);
	fill(area, IDLE_LEN);
	set_flag(&values->ready);
	for (;;)
		pause();
}

/*
 * An idle process with the memory that is looked at, and a neighbour with base
 * pages whatever the settings are, which uses all of its own again and again.
 */
static bool run_neighbour(const struct column *column)
{
	unsigned int i;
	double start;
	pid_t idle;
	char *area;

	values->ready = false;
	idle = fork();
	if (!idle)
		be_idle();
	if (idle < 0)
		return failed("fork");
	wait_for(&values->ready);
	if (column->tagged && granule_set(PR_GRANULE_MMAP, BASE_SIZE))
		return failed("prctl");
	area = map(ACTIVE_LEN);
	if (!area || prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0))
		return failed("the neighbour's memory");
	fill(area, ACTIVE_LEN);
	start = granule_now();
	for (i = 0; i < ACTIVE_ROUNDS && granule_now() - start < ACTIVE_SECONDS; i++)
		touch(area, ACTIVE_LEN, BASE_SIZE);
	tell(ROW_IDLE_OUT, swapped_mb(idle));
	tell(ROW_ACTIVE_OUT, swapped_mb(getpid()));
	granule_kill_idle(idle);
	return true;
}

/* Huge pages in each column, and beside them the memory of that column. */
static void allow_huge_pages(void)
{
	struct thp_settings settings;

	thp_read_settings(&settings);
	settings.thp_enabled = THP_ALWAYS;
	settings.hugepages[__builtin_ctzl(HPAGE_SIZE / BASE_SIZE)].enabled = THP_INHERIT;
	settings.khugepaged.max_ptes_none = 400;
	thp_write_settings(&settings);
}

/* Keep one page of 16. */
static bool give_back(enum row_id row)
{
	char *area = map(GIVE_BACK_LEN);
	size_t i;

	if (!area)
		return failed("mmap");
	fill(area, GIVE_BACK_LEN);
	for (i = 0; i < GIVE_BACK_LEN; i += GRANULE_SIZE) {
		if (madvise(area + i + BASE_SIZE, GRANULE_SIZE - BASE_SIZE, MADV_DONTNEED))
			return failed("MADV_DONTNEED");
	}
	tell(row, granule_cg_settled(cgroup, true) / 1024.0);
	return true;
}

static bool run_give_back(const struct column *column)
{
	return give_back(ROW_GIVEN_BACK);
}

static bool run_give_back_huge(const struct column *column)
{
	allow_huge_pages();
	return give_back(ROW_HUGE_GIVEN_BACK);
}

static bool run_underused(const struct column *column)
{
	char *area;

	allow_huge_pages();
	area = map(UNDERUSED_LEN);
	if (!area)
		return failed("mmap");
	touch(area, UNDERUSED_LEN, HPAGE_SIZE);
	tell(ROW_UNDERUSED, granule_cg_settled(cgroup, true) / 1024.0);
	return true;
}

static bool run_zswap(const struct column *column)
{
	char *area = map(ZSWAP_LEN);
	size_t i;

	if (!area)
		return failed("mmap");
	/* Half of each page compresses. */
	fill(area, ZSWAP_LEN);
	for (i = 0; i < ZSWAP_LEN; i += BASE_SIZE)
		memset(area + i, 'A', BASE_SIZE / 2);
	if (madvise(area, ZSWAP_LEN, MADV_PAGEOUT))
		return failed("MADV_PAGEOUT");
	force_read_pages(area, ZSWAP_LEN / BASE_SIZE, BASE_SIZE);
	tell(ROW_ZSWAP, granule_cg_settled(cgroup, false) / 1024.0);
	return true;
}

static const char *no_zswap(void)
{
	char text[16] = "";

	read_file("/sys/module/zswap/parameters/enabled", text, sizeof(text));
	if (*text != 'Y')
		return "no zswap: boot with zswap.enabled=1";
	return no_swap();
}

/* Order 4 is scarce for the process that asks for it, in this way. */
static struct granule_fail fail;

static void restore_fail(void)
{
	granule_fail_restore(&fail);
}

static const char *no_fail(void)
{
	if (fail.prepared)
		return NULL;
	if (!granule_fail_prepare(&fail))
		return GRANULE_FAIL_REMEDY;
	atexit(restore_fail);
	return NULL;
}

/* The blocks of memory that are online and can be taken offline. */
static unsigned int find_blocks(unsigned long *blocks)
{
	struct dirent *entry;
	unsigned int nr = 0;
	unsigned long block;
	DIR *dir;

	dir = opendir(MEMORY_BLOCKS);
	if (!dir)
		return 0;
	while (nr < MAX_BLOCKS && (entry = readdir(dir))) {
		if (sscanf(entry->d_name, "memory%lu", &block) == 1 && granule_block_movable(block))
			blocks[nr++] = block;
	}
	closedir(dir);
	return nr;
}

static const char *no_blocks(void)
{
	unsigned long blocks[MAX_BLOCKS];

	if (!find_blocks(blocks))
		return "no memory that can be taken offline: add some, and online it as movable";
	return no_fail();
}

static unsigned long block_pages(void)
{
	char text[32];

	if (read_file(MEMORY_BLOCKS "/block_size_bytes", text, sizeof(text)) <= 0)
		return 0;
	return strtoul(text, NULL, 16) / BASE_SIZE;
}

/* How much of an area lies in the blocks? */
static size_t len_in_blocks(const char *area, size_t len, const unsigned long *blocks,
			    unsigned int nr)
{
	const unsigned long pages = block_pages();
	int fd = granule_open_pagemap();
	unsigned long pfn;
	unsigned int i;
	size_t pos, in = 0;

	for (pos = 0; fd >= 0 && pages && pos < len; pos += BASE_SIZE) {
		pfn = PAGEMAP_PFN(pagemap_get_entry(fd, (char *)area + pos));
		for (i = 0; i < nr; i++)
			in += pfn / pages == blocks[i] ? BASE_SIZE : 0;
	}
	close(fd);
	return in;
}

static void on_alarm(int sig)
{
}

static int last_node(void)
{
	return granule_two_nodes();
}

static bool bind_to(char *area, size_t len, int mode, int node, unsigned int flags)
{
	unsigned long mask = 1UL << node;

	return !syscall(__NR_mbind, area, len, mode, &mask, 8 * sizeof(mask), flags);
}

static bool run_offline(const struct column *column)
{
	const struct sigaction action = { .sa_handler = on_alarm };
	unsigned long blocks[MAX_BLOCKS];
	unsigned int i, nr, offline = 0;
	bool gone[MAX_BLOCKS] = { };
	double start, seconds;
	char *area;

	sigaction(SIGALRM, &action, NULL);
	nr = find_blocks(blocks);
	area = map(OFFLINE_LEN);
	if (!area || !bind_to(area, OFFLINE_LEN, MPOL_PREFERRED, last_node(), 0))
		return failed("memory to be moved");
	fill(area, OFFLINE_LEN);
	if (len_in_blocks(area, OFFLINE_LEN, blocks, nr) < OFFLINE_LEN / 2) {
		error("memory is not in the blocks that are to go offline: free the movable zone");
		return false;
	}
	granule_fail_order4(true);
	start = granule_now();
	for (i = 0; i < nr; i++) {
		gone[i] = !granule_set_block(blocks[i], "offline", OFFLINE_SECONDS);
		offline += gone[i];
	}
	seconds = granule_now() - start;
	granule_fail_order4(false);
	munmap(area, OFFLINE_LEN);
	for (i = 0; i < nr; i++) {
		if (gone[i] && granule_set_block(blocks[i], "online_movable", OFFLINE_SECONDS))
			return failed("a block does not come online again");
	}
	tell(ROW_OFFLINE, offline);
	tell(ROW_OFFLINE_TIME, seconds);
	return true;
}

static const char *no_nodes(void)
{
	return granule_two_nodes() ? no_fail() : "one node: boot with two";
}

static bool run_mbind(const struct column *column)
{
	char *area = map(MBIND_LEN);
	unsigned long moved;

	if (!area || !bind_to(area, MBIND_LEN, MPOL_BIND, 0, 0))
		return failed("memory to be moved");
	fill(area, MBIND_LEN);
	granule_fail_order4(true);
	/*
	 * EIO reports that some pages did not move. Their number is counted
	 * below.
	 */
	if (!bind_to(area, MBIND_LEN, MPOL_BIND, 1, MPOL_MF_MOVE | MPOL_MF_STRICT) && errno != EIO)
		return failed("mbind");
	granule_fail_order4(false);
	moved = granule_pages_on(area, MBIND_LEN / BASE_SIZE, 1, NULL);
	tell(ROW_MBIND, (double)moved * BASE_SIZE / MIB);
	return true;
}

static void break_granule(char *granule, unsigned int page)
{
	if (!granule_break(granule, page))
		_exit(1);
}

/* Keep the last page of each granule in a pipe, so that it cannot be moved. */
static bool pin_granules(char *area)
{
	int pipefd[2];
	unsigned int i;

	for (i = 0; i < BROKEN; i++) {
		struct iovec iov = {
			area + i * BROKEN_STEP + GRANULE_SIZE - BASE_SIZE, BASE_SIZE
		};

		if (!(i % PIPE_PAGES) && pipe(pipefd))
			return false;
		if (vmsplice(pipefd[1], &iov, 1, 0) != BASE_SIZE)
			return false;
	}
	return true;
}

/*
 * Break granules for as long as the parent wants. Pinned ones cannot be
 * repaired, so two in turn are enough, after many at once. Others are repaired
 * at once.
 */
static void __noreturn attack(bool pinned)
{
	char *area = map(BROKEN * BROKEN_STEP);
	unsigned long i;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (!area || setgid(ATTACK_UID) || setuid(ATTACK_UID))
		_exit(1);
	for (i = 0; i < BROKEN; i++) {
		memset(area + i * BROKEN_STEP, 1, GRANULE_SIZE);
		break_granule(area + i * BROKEN_STEP, 0);
	}
	if (pinned && !pin_granules(area))
		_exit(1);
	sleep(1);
	for (i = 0; pinned && i < BURST; i++)
		break_granule(area + i % BROKEN * BROKEN_STEP, 1 + i / BROKEN % 8);
	set_flag(&values->ready);
	for (i = 0; !__atomic_load_n(&values->stop, __ATOMIC_ACQUIRE); i++) {
		break_granule(area + i % BROKEN * BROKEN_STEP, 1 + i / BROKEN % 8);
		/* As often as a poll of repair would find something. */
		if (pinned && i % 2)
			usleep(80 * 1000);
	}
	_exit(0);
}

/* In seconds, or @limit if it is not repaired. */
static double time_to_repair(char *granule, double limit)
{
	int fd = granule_open_pagemap();
	double seconds;

	break_granule(granule, 3);
	seconds = granule_until_whole(fd, granule, limit);
	close(fd);
	return seconds < 0 ? limit : seconds;
}

static bool run_attack(const struct column *column, char *granule, bool pinned,
		       enum row_id cpu_row, enum row_id time_row)
{
	double cpu, start, seconds, waited = 0;
	int status;
	pid_t pid;

	values->ready = false;
	values->stop = false;
	pid = fork();
	if (!pid)
		attack(pinned);
	if (pid < 0)
		return failed("fork");
	while (!__atomic_load_n(&values->ready, __ATOMIC_ACQUIRE)) {
		if (waitpid(pid, &status, WNOHANG) == pid) {
			error("no granules to break: raise the limits of uid 1000");
			return false;
		}
		usleep(10 * 1000);
	}
	start = granule_now();
	cpu = granule_kthread_seconds();
	sleep(VICTIM_SECOND);
	if (column->tagged)
		waited = time_to_repair(granule, ATTACK_SECONDS - VICTIM_SECOND);
	while (granule_now() - start < ATTACK_SECONDS)
		usleep(10 * 1000);
	cpu = granule_kthread_seconds() - cpu;
	seconds = granule_now() - start;
	set_flag(&values->stop);
	waitpid(pid, &status, 0);
	tell(cpu_row, 100 * cpu / seconds);
	if (column->tagged)
		tell(time_row, 1000 * waited);
	return !status;
}

/*
 * Two attacks on repair by an unprivileged process, and how this one fares
 * meanwhile.
 */
static bool run_repair(const struct column *column)
{
	char *granule = map(GRANULE_SIZE);

	/*
	 * Repair would leave memory alone that the attacker shares with this
	 * process.
	 */
	if (!granule || madvise(granule, GRANULE_SIZE, MADV_DONTFORK))
		return failed("memory for a victim");
	memset(granule, 1, GRANULE_SIZE);
	if (column->tagged)
		tell(ROW_ALONE_TIME, 1000 * time_to_repair(granule, ATTACK_SECONDS));
	return run_attack(column, granule, true, ROW_PINNED_CPU, ROW_PINNED_TIME) &&
	       run_attack(column, granule, false, ROW_LOOP_CPU, ROW_LOOP_TIME);
}

static unsigned long count_vmas(void)
{
	unsigned long nr = 0;
	char buf[4096];
	ssize_t len, i;
	int fd;

	fd = open("/proc/self/maps", O_RDONLY);
	while (fd >= 0 && (len = read(fd, buf, sizeof(buf))) > 0) {
		for (i = 0; i < len; i++)
			nr += buf[i] == '\n';
	}
	close(fd);
	return nr;
}

/* Map so many times so much. Returns how many VMAs there are more. */
static unsigned long map_many(unsigned int nr, size_t len, unsigned int *refused)
{
	const unsigned long before = count_vmas();
	unsigned int i;

	for (i = 0; i < nr; i++)
		*refused += mmap(NULL, len, PROT_RW, ANON_FLAGS, -1, 0) == MAP_FAILED;
	return count_vmas() - before;
}

static bool run_mappings(const struct column *column)
{
	unsigned int refused = 0;

	tell(ROW_VMAS_SMALL, map_many(5000, 100 * 1024, &refused));
	tell(ROW_VMAS_LARGE, map_many(70000, 196 * 1024, &refused));
	tell(ROW_REFUSED, refused);
	return true;
}

static bool write_in_steps(int fd, size_t step)
{
	char buf[GRANULE_SIZE];
	size_t pos;

	fill(buf, sizeof(buf));
	for (pos = 0; pos < WRITE_LEN; pos += step) {
		if (pwrite(fd, buf, step, pos) != (ssize_t)step)
			return false;
	}
	return !fsync(fd);
}

/*
 * Write to random pages of a file in the present directory, by a mapping. It is
 * cached in pages or in folios of 64 KiB, or read in granules.
 */
static bool run_write(const struct column *column)
{
	int fd = open(".", O_TMPFILE | O_RDWR, 0600);
	unsigned long written;
	unsigned int i;
	char *area;

	if (fd < 0 || !write_in_steps(fd, column->thp_order ? GRANULE_SIZE : BASE_SIZE) ||
	    (column->tagged && posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED)))
		return failed("cannot write to the present directory");
	area = mmap(NULL, WRITE_LEN, PROT_RW, MAP_SHARED, fd, 0);
	if (area == MAP_FAILED)
		return failed("mmap");
	srand(1);
	written = granule_vmstat("pgpgout");
	for (i = 0; i < WRITE_PAGES; i++)
		area[rand() % (WRITE_LEN / BASE_SIZE) * BASE_SIZE]++;
	if (fsync(fd))
		return failed("fsync");
	tell(ROW_WRITTEN, (granule_vmstat("pgpgout") - written) / 1024.0);
	return true;
}

static const char *no_disk(void)
{
	struct statfs stat;

	return !statfs(".", &stat) && stat.f_type != TMPFS_MAGIC && stat.f_type != RAMFS_MAGIC ?
	       NULL : "no disk: change to a directory of ext4, xfs or btrfs";
}

static const char *nothing_missing(void)
{
	return NULL;
}

static const struct part parts[] = {
	{
		"reclaim", "160 MB written under a limit of 64: pages scanned, activated",
		run_reclaim, no_swap, RECLAIM_LIMIT, 3, true,
	}, {
		"neighbour", "idle and active memory in one cgroup: what is swapped out",
		run_neighbour, no_swap, SHARED_LIMIT, 3, true,
	}, {
		"give-back", "15 of 16 pages given back, then the shrinkers",
		run_give_back, nothing_missing, ULONG_MAX, 1, false,
	}, {
		"give-huge", "the same, of huge pages",
		run_give_back_huge, nothing_missing, ULONG_MAX, 1, false,
	}, {
		"underused", "huge pages that are almost empty, then the shrinkers",
		run_underused, nothing_missing, ULONG_MAX, 1, false,
	}, {
		"zswap", "swapped out to zswap and read back",
		run_zswap, no_zswap, ULONG_MAX, 1, false,
	}, {
		"offline", "memory taken offline, order 4 scarce",
		run_offline, no_blocks, 0, 1, false,
	}, {
		"mbind", "memory moved to another node, order 4 scarce",
		run_mbind, no_nodes, 0, 1, false,
	}, {
		"repair", "granules broken by an unprivileged process",
		run_repair, nothing_missing, 0, 1, false,
	}, {
		"mappings", "many small mappings: VMAs, and what is refused",
		run_mappings, nothing_missing, 0, 1, false,
	}, {
		"write", "random pages of a file in the present directory written to",
		run_write, no_disk, 0, 3, false,
	},
};

static bool enter_cgroup(unsigned long limit)
{
	char text[32];

	if (mkdir(cgroup, 0755))
		return failed("mkdir in cgroup2");
	snprintf(text, sizeof(text), "%lu", limit);
	if (granule_cg_write(cgroup, "memory.max", limit == ULONG_MAX ? "max" : text))
		return failed("memory.max: enable the memory controller");
	snprintf(text, sizeof(text), "%d", getpid());
	return !granule_cg_write(cgroup, "cgroup.procs", text) || failed("cgroup.procs");
}

static void leave_cgroup(void)
{
	unsigned int tries;

	/* Killed processes may still be about to leave. */
	for (tries = 0; tries < 100 && rmdir(cgroup) && errno == EBUSY; tries++)
		usleep(20 * 1000);
}

static bool run_once(const struct part *part, const struct column *column)
{
	struct thp_settings settings;
	int status;
	pid_t pid;
	bool ok;

	thp_read_settings(&settings);
	if (column->thp_order)
		granule_thp_order(column->thp_order);
	else
		granule_thp_never();
	memset(values, 0, sizeof(*values));
	snprintf(cgroup, sizeof(cgroup), "%s/page_granule_cost", cgroup_root);
	fflush(NULL);
	pid = fork();
	if (!pid) {
		ok = (!part->limit || enter_cgroup(part->limit)) &&
		     (!column->tagged || !granule_set(PR_GRANULE_MMAP, GRANULE_SIZE)) &&
		     part->run(column);
		/* The settings are the parent's to restore. */
		_exit(!ok);
	}
	ok = pid > 0 && waitpid(pid, &status, 0) == pid && !status;
	if (part->limit)
		leave_cgroup();
	thp_write_settings(&settings);
	return ok;
}

static int by_value(const void *a, const void *b)
{
	const double *x = a, *y = b;

	return *x < *y ? -1 : *x > *y;
}

static void print_row(const struct part *part, const struct row *row,
		      const struct column *column, double *runs, unsigned int nr,
		      const char *swap)
{
	qsort(runs, nr, sizeof(*runs), by_value);
	printf("{\"set\": \"cost\", \"row\": \"%s%s%s\", ", row->name,
	       part->by_swap ? ": " : "", part->by_swap ? swap : "");
	printf("\"config\": \"%s\", \"value\": %.2f, ", column->name, runs[nr / 2]);
	printf("\"min\": %.2f, \"max\": %.2f, ", runs[0], runs[nr - 1]);
	printf("\"op\": \"%s\", \"times\": %.2f, \"of\": \"%s\", \"plus\": %.2f}\n",
	       row->op, row->times, row->of, row->plus);
	fflush(stdout);
}

static bool run_part(const struct part *part, const char *swap)
{
	static double runs[NR_ROWS][MAX_REPEAT];
	const char *missing = part->missing();
	unsigned int i, row, column;

	if (missing) {
		fprintf(stderr, "page_granule_cost: %s: %s\n", part->name, missing);
		return false;
	}
	for (column = 0; column < NR_COLUMNS; column++) {
		for (i = 0; i < part->repeat; i++) {
			if (!run_once(part, &columns[column])) {
				fprintf(stderr, "page_granule_cost: %s failed for %s\n",
					part->name, columns[column].name);
				return false;
			}
			for (row = 0; row < NR_ROWS; row++)
				runs[row][i] = values->value[row];
		}
		for (row = 0; row < NR_ROWS; row++) {
			if (values->known[row])
				print_row(part, &rows[row], &columns[column], runs[row],
					  part->repeat, swap);
		}
	}
	return true;
}

static const struct part *find_part(const char *name)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(parts); i++) {
		if (!strcmp(parts[i].name, name))
			return &parts[i];
	}
	return NULL;
}

static void print_usage(FILE *fp)
{
	unsigned int i;

	fprintf(fp,
		"usage: page_granule_cost [--swap NAME] PART...\n"
		"\n"
		"Measure what 4 KiB pages, 64 KiB mTHP and page granules cost others, and print\n"
		"JSON. Run as root, on a machine that does nothing else.\n"
		"\n"
		"  --swap NAME  what is swapped to, for the names of rows: zram, disk, file\n"
		"  --help       this text\n"
		"\n"
		"parts:\n");
	for (i = 0; i < ARRAY_SIZE(parts); i++)
		fprintf(fp, "  %-10s  %s\n", parts[i].name, parts[i].what);
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "swap", required_argument, NULL, 's' },
		{ "help", no_argument, NULL, 'h' },
		{ }
	};
	const char *swap = "swap";
	int opt, i, ret = KSFT_PASS;

	while ((opt = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (opt) {
		case 's':
			swap = optarg;
			break;
		case 'h':
			print_usage(stdout);
			return KSFT_PASS;
		default:
			print_usage(stderr);
			return KSFT_FAIL;
		}
	}
	if (optind == argc) {
		print_usage(stderr);
		return KSFT_FAIL;
	}
	for (i = optind; i < argc; i++) {
		if (!find_part(argv[i]))
			return error("unknown part: see --help for those there are");
	}
	if (geteuid())
		return error("cgroups and settings need root: run as root");
	if (!granule_supported())
		return error("no page granules: build the kernel with CONFIG_PAGE_GRANULE=y");
	if (!thp_available() || !(thp_supported_orders() & (1UL << GRANULE_ORDER)))
		return error("no mTHP of 64 KiB: set CONFIG_TRANSPARENT_HUGEPAGE=y, mount sysfs");
	if (!granule_find_cgroup2(cgroup_root))
		return error("no cgroup2: mount it");
	values = mmap(NULL, sizeof(*values), PROT_RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (values == MAP_FAILED)
		return error("no shared memory: free memory");

	/* Restores them when the program ends, by whatever way. */
	granule_save_settings();
	/* Tests have it off; here its cost is looked at. */
	granule_repair(true);
	for (i = optind; i < argc; i++) {
		if (!run_part(find_part(argv[i]), swap))
			ret = KSFT_FAIL;
	}
	return ret;
}
