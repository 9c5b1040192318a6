// SPDX-License-Identifier: GPL-2.0
/*
 * Page granule: all that can happen to granules, at the same time.
 *
 * Workers of several kinds run at once, each in a process of its own. Some have
 * memory in granules and do to it what their kind is about. Others disturb
 * them: they compact, take memory offline, switch settings and swap off.
 *
 * A worker knows what each page of its memory has to hold: two numbers, from
 * which all bytes of the page follow. It compares all the time, and after each
 * round all of it. It also checks how many pages of a granule are populated:
 * all or none, unless it has cut the granule itself.
 *
 * Memory may be short: each worker has a cgroup of its own with a limit that is
 * too low at times. A call may fail for that, and a process may be killed for
 * it: both are counted, and the worker is started again. Anything else ends it.
 *
 * This file has main(), the workers, and the areas with their model.
 * page_granule_stress_ops.c has the operations on an area,
 * page_granule_stress_file.c those on a mapped file, and page_granule_disturb.c
 * what other processes, devices and settings do.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/param.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "kselftest.h"
#include "vm_util.h"
#include "page_granule_stress.h"
#include "page_granule_util.h"

#define DEFAULT_SECONDS	20UL
#define MAX_SECONDS	(7 * 24 * 3600UL)

#define PATIENCE	120UL		/* seconds, at most, until each has begun */
#define HUNG_MS		(240 * 1000)	/* in one operation */
#define FAIL_PERCENT	"25"	/* of order-4 allocations, where they are made to fail */

struct shared *shared;
unsigned int nr_workers;
struct worker *self;		/* the worker that this process is of */
unsigned long known_oom_kills;	/* in its cgroup, when the round began */
int nr_nodes = 1;
bool have_fail;			/* there is fault injection */
char swap_dev[32], disk_dev[32];	/* zram of our own, or "" */

/* The next operation of this thread. */
static __thread const char *doing = "start";

void begin(const char *what)
{
	doing = what;
	store(&self->op, what);
}

unsigned long now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000UL + ts.tv_nsec / 1000000;
}

uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15UL;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9UL;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebUL;
	return x ^ (x >> 31);
}

/* A number below @limit. */
unsigned long draw(struct actor *actor, unsigned long limit)
{
	actor->rng = mix(actor->rng);
	return actor->rng % limit;
}

bool one_in(struct actor *actor, unsigned long nr)
{
	return !draw(actor, nr);
}

uint32_t new_key(struct actor *actor)
{
	return draw(actor, UINT32_MAX) + 1;
}

/*
 * Something is wrong with @worker: say so now, and again next to its result.
 */
static void say_failed(struct worker *worker, const char *in, const char *format, va_list args)
{
	char line[WHY_LEN];
	int len;

	len = snprintf(line, sizeof(line), "# FAIL %s.%u pid %d seed %#lx start %lu, %s: ",
		       worker->kind->name, worker->nr, getpid(), (unsigned long)worker->seed,
		       worker->starts, in);
	len += vsnprintf(line + len, sizeof(line) - len - 1, format, args);
	len = len < (int)sizeof(line) - 2 ? len : (int)sizeof(line) - 2;
	line[len++] = '\n';
	line[len] = 0;
	if (!*worker->why)
		memcpy(worker->why, line, len + 1);
	/* One write, so that lines of several processes do not mix. */
	if (write(STDOUT_FILENO, line, len) != len)
		_exit(KSFT_FAIL);
}

/* End the process because something is wrong. */
void __noreturn __printf(1, 2) fail(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	say_failed(self, doing, format, args);
	va_end(args);
	_exit(KSFT_FAIL);
}

/* What main() finds out. */
static void __printf(2, 3) worker_failed(struct worker *worker, const char *format, ...)
{
	va_list args;

	fflush(stdout);
	va_start(args, format);
	say_failed(worker, worker->op, format, args);
	va_end(args);
	worker->failed = true;
}

/* End the process because memory is short; the worker is started again. */
void __noreturn give_up(void)
{
	_exit(EXIT_SHORT);
}

bool is_short(int error)
{
	return error == ENOMEM || error == EAGAIN;
}

/*
 * Judge the result of a call, and errno if that is not 0: true if it worked,
 * false if memory was short. Anything else is wrong.
 */
bool worked(long ret, const char *what)
{
	if (!ret)
		return true;
	if (!is_short(errno))
		fail("%s: %s", what, strerror(errno));
	count(&self->shorts, 1);
	return false;
}

/* The same where the memory is not usable without. */
void must_work(long ret, const char *what)
{
	if (!worked(ret, what))
		give_up();
}

size_t area_len(const struct area *area)
{
	return area->nr * GRANULE_SIZE;
}

unsigned long area_pages(const struct area *area)
{
	return area->nr * GRANULE_NR_PAGES;
}

char *page_addr(const struct area *area, unsigned long page)
{
	return area->base + page * BASE_SIZE;
}

char *range_addr(const struct area *area, const struct range *range)
{
	return page_addr(area, range->first);
}

size_t range_len(const struct range *range)
{
	return range->nr * BASE_SIZE;
}

bool owns(const struct actor *actor, unsigned long page)
{
	return (actor->by_granule ? page / GRANULE_NR_PAGES : page) % actor->nr == actor->id;
}

/* Word @i of a page that is like @model. */
uint64_t model_word(const struct page_model *model, unsigned int i)
{
	if (i == STAMP_WORD && model->stamp)
		return mix((uint64_t)model->stamp << 32 | model->key);
	return model->key ? mix(model->key) + i * 0xd1342543de82ef95UL : 0;
}

void model_write(const struct page_model *model, char *addr)
{
	const uint64_t base = model->key ? mix(model->key) : 0;
	const uint64_t step = model->key ? 0xd1342543de82ef95UL : 0;
	uint64_t *words = (uint64_t *)addr;
	unsigned int i;

	for (i = 0; i < PAGE_WORDS; i++)
		store(words + i, base + i * step);
	if (model->stamp)
		store(words + STAMP_WORD, model_word(model, STAMP_WORD));
}

/* The first word that is not as @model says, or PAGE_WORDS. */
unsigned int model_compare(const struct page_model *model, const char *addr)
{
	const uint64_t base = model->key ? mix(model->key) : 0;
	const uint64_t step = model->key ? 0xd1342543de82ef95UL : 0;
	const uint64_t *words = (const uint64_t *)addr;
	unsigned int i;

	for (i = 0; i < PAGE_WORDS; i++) {
		if (load(words + i) != base + i * step &&
		    (i != STAMP_WORD || load(words + i) != model_word(model, i)))
			return i;
	}
	if (model->stamp && load(words + STAMP_WORD) != model_word(model, STAMP_WORD))
		return STAMP_WORD;
	return PAGE_WORDS;
}

/* The page table entries of a granule, as text. */
static void print_pagemap(const char *addr)
{
	uint64_t ent[GRANULE_NR_PAGES] = {};
	char line[GRANULE_NR_PAGES * 18 + 64];
	unsigned int i;
	int fd, len;

	addr -= (uintptr_t)addr % GRANULE_SIZE;
	fd = open("/proc/self/pagemap", O_RDONLY);
	if (fd < 0 || pread(fd, ent, sizeof(ent), (uintptr_t)addr / BASE_SIZE * sizeof(*ent)) < 0)
		return;
	close(fd);
	len = snprintf(line, sizeof(line), "# pid %d pagemap of %p:", getpid(), addr);
	for (i = 0; i < GRANULE_NR_PAGES; i++)
		len += snprintf(line + len, sizeof(line) - len, " %lx", (unsigned long)ent[i]);
	line[len++] = '\n';
	if (write(STDOUT_FILENO, line, len) != len)
		_exit(KSFT_FAIL);
}

static const char *area_name(const struct area *area)
{
	static __thread char name[64];

	if (area->file) {
		snprintf(name, sizeof(name), "%s of %s",
			 area->kind == GRANULE_CONTRACT ? "contract" : "default",
			 granule_fs_name(area->file->fs));
		return name;
	}
	if (area->shared)
		return area->kind == GRANULE_CONTRACT ? "shared contract" : "shared default";
	return area->kind == GRANULE_CONTRACT ? "contract" : "default";
}

/* Find out what the wrong page holds instead. */
static const char *looks_like(const struct area *area, const char *addr, char *text, size_t size)
{
	const struct page_model zeroes = {};
	struct page_model model;
	unsigned long i;

	if (model_compare(&zeroes, addr) == PAGE_WORDS)
		return "zeroes";
	for (i = 0; i < area_pages(area); i++) {
		model.key = area->model[i].key;
		model.stamp = 0;
		if (model.key && load((const uint64_t *)addr) == model_word(&model, 0)) {
			snprintf(text, size, "what page %lu holds, or did", i);
			return text;
		}
	}
	return "neither zeroes nor another page";
}

/*
 * A page, which may be elsewhere for now or in a copy, is not as the model
 * says.
 */
void __noreturn page_wrong(const struct area *area, unsigned long page, const char *addr,
			   unsigned int word)
{
	const struct page_model *model = area->model + page;
	const uint64_t found = load((const uint64_t *)addr + word);
	unsigned int again = model_compare(model, addr);
	char text[64], where[128];

	print_pagemap(addr);
	snprintf(where, sizeof(where), "page %lu, of granule %lu of the area at %p, at %p",
		 page, page / GRANULE_NR_PAGES, area->base, addr);
	fail("%s: %s, offset %#lx: %#lx expected, %#lx found, %#lx again, wrong from %#lx; %s",
	     area_name(area), where, word * sizeof(found),
	     (unsigned long)model_word(model, word), (unsigned long)found,
	     (unsigned long)load((const uint64_t *)addr + word),
	     again * sizeof(found), looks_like(area, addr, text, sizeof(text)));
}

void check_copy(const struct area *area, unsigned long page, const char *addr)
{
	unsigned int word = model_compare(area->model + page, addr);

	if (word != PAGE_WORDS)
		page_wrong(area, page, addr, word);
	count(&self->pages, 1);
}

void check_page(const struct area *area, unsigned long page)
{
	check_copy(area, page, page_addr(area, page));
}

/* Everything that the actor may compare. */
void check_all(const struct actor *actor)
{
	unsigned long page;

	for (page = 0; page < area_pages(actor->area); page++) {
		if (owns(actor, page))
			check_page(actor->area, page);
	}
}

/*
 * A granule of a contract is populated whole or not at all. The entries are
 * read under the lock that they are set under, so others may fault meanwhile.
 * By default a page is populated alone where memory is short, or huge pages are
 * not wanted.
 */
void look(const struct actor *actor, unsigned long granule)
{
	const struct area *area = actor->area;
	const char *addr = nth(area->base, granule);
	unsigned int filled;

	/* Shared memory is populated page by page where there is no folio. */
	if (!area->strict || area->shared || area->kind != GRANULE_CONTRACT)
		return;
	filled = granule_filled(actor->pagemap, addr);
	/* Another thread may have cut it since. */
	if (filled && filled != GRANULE_NR_PAGES && load(&area->strict)) {
		print_pagemap(addr);
		fail("%s: granule %lu at %p has %u pages", area_name(area), granule, addr, filled);
	}
	count(&self->looks, 1);
}

/*
 * Check all invariants while no other thread of the process works. The kernel
 * may know more, and then logs the fault.
 */
void look_all(const struct actor *actor)
{
	const struct area *area = actor->area;
	unsigned long i;

	for (i = 0; i < area->nr; i++)
		look(actor, i);
	if (granule_invariants_hold())
		return;
	fail("%s: %lu granules at %p: the kernel says that invariants do not hold, see its log",
	     area_name(area), area->nr, area->base);
}

static void *map_shared(const struct area *area, char *addr, size_t len)
{
	int flags = MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED;
	void *ptr;

	if (area->file)
		return granule_file_map(area->file, area->kind, true, addr, len, PROT_RW,
					addr - area->base);
	if (area->kind == GRANULE_CONTRACT)
		return mmap(addr, len, PROT_RW, flags | MAP_GRANULE_64KB, -1, 0);
	if (granule_set(PR_GRANULE_MMAP, GRANULE_SIZE))
		return MAP_FAILED;
	ptr = mmap(addr, len, PROT_RW, flags, -1, 0);
	granule_set(PR_GRANULE_MMAP, BASE_SIZE);
	return ptr;
}

void area_map(const struct area *area, char *addr, size_t len)
{
	void *ptr;

	for (;;) {
		if (area->shared)
			ptr = map_shared(area, addr, len);
		else
			ptr = granule_mmap(area->kind, addr, len, PROT_RW, MAP_FIXED);
		if (ptr == addr)
			return;
		/*
		 * The settings worker has granules switched off for the moment.
		 */
		if (errno != EOPNOTSUPP)
			must_work(-1, "mmap");
		usleep(1000);
	}
}

/* Switched off in the wrong moment, a mapping is not tagged by default. */
static bool area_tagged(const struct area *area)
{
	struct granule_smaps smaps;

	return granule_read_smaps(getpid(), area->base, &smaps) &&
	       granule_has_flag(&smaps, "gr");
}

void area_create(struct actor *actor, struct area *area, enum granule_kind kind,
		 bool is_shared, struct granule_file *file, unsigned long nr)
{
	const int flags = is_shared ? MAP_SHARED | MAP_ANONYMOUS : ANON_FLAGS;
	const size_t len = nr * GRANULE_SIZE;

	memset(area, 0, sizeof(*area));
	area->kind = kind;
	area->shared = is_shared;
	area->file = file;
	area->strict = true;
	area->nr = nr;
	area->reserved_len = 2 * len + (4 + RESERVE_SLACK) * GRANULE_SIZE;
	area->reserved = granule_mmap(GRANULE_UNTAGGED, NULL, area->reserved_len, PROT_NONE,
				      MAP_NORESERVE);
	area->model = mmap(NULL, area_pages(area) * sizeof(*area->model), PROT_RW,
			   flags | MAP_GRANULE_4KB, -1, 0);
	if (area->reserved == MAP_FAILED || area->model == MAP_FAILED)
		must_work(-1, "mmap");
	/* Page tables and huge pages begin anywhere in it. */
	area->base = (char *)granule_round_up(area->reserved) +
		     (1 + draw(actor, RESERVE_SLACK)) * GRANULE_SIZE;
	area->spare = area->base + len + GRANULE_SIZE;
	do {
		area_map(area, area->base, len);
	} while (!area_tagged(area));
	actor->area = area;
}

void area_destroy(struct area *area)
{
	must_work(munmap(area->reserved, area->reserved_len), "munmap");
	must_work(munmap(area->model, area_pages(area) * sizeof(*area->model)), "munmap");
}

/* A page that the actor may write to. */
unsigned long own_page(struct actor *actor)
{
	unsigned long page;

	do {
		page = draw(actor, area_pages(actor->area));
	} while (!owns(actor, page));
	return page;
}

/*
 * Pages for a call: of a contract area whole granules, of another now and then
 * not. Where granules have owners, one of the actor's.
 */
struct range any_range(struct actor *actor)
{
	const struct area *area = actor->area;
	struct range range;

	if (actor->nr > 1 && actor->by_granule) {
		range.first = own_page(actor) / GRANULE_NR_PAGES * GRANULE_NR_PAGES;
		range.nr = GRANULE_NR_PAGES;
		return range;
	}
	if (area->strict || one_in(actor, 2)) {
		range.first = draw(actor, area->nr);
		range.nr = 1 + draw(actor, one_in(actor, 8) ? area->nr - range.first :
				    MIN(area->nr - range.first, 4));
		range.nr = MIN(range.nr, area->nr - 2);
		range.first *= GRANULE_NR_PAGES;
		range.nr *= GRANULE_NR_PAGES;
		return range;
	}
	range.first = draw(actor, area_pages(area));
	range.nr = 1 + draw(actor, MIN(area_pages(area) - range.first, 3 * GRANULE_NR_PAGES));
	return range;
}

void model_zero(struct area *area, const struct range *range)
{
	memset(area->model + range->first, 0, range->nr * sizeof(*area->model));
}

static const struct kind kinds[] = {
	{
		.name = "fork", .what = "children", .round = fork_round,
		.copies = 2, .limit_mb = 20, .fails = true,
	}, {
		.name = "map", .what = "children", .round = map_round,
		.copies = 2, .limit_mb = 20, .fails = true,
	}, {
		.name = "swap", .round = swap_round, .missing = no_swap,
		.copies = 2, .limit_mb = 10, .fails = true,
	}, {
		.name = "oom", .what = "children", .round = fork_round, .missing = no_cgroup,
		.copies = 1, .limit_mb = 8, .no_swap = true,
	}, {
		.name = "ptrace", .what = "calls", .round = ptrace_round,
		.copies = 1, .limit_mb = 12,
	}, {
		.name = "userfaultfd", .what = "faults", .round = uffd_round, .missing = no_uffd,
		.copies = 2, .limit_mb = 10, .fails = true,
	}, {
		.name = "numa", .what = "children", .round = numa_round, .missing = one_node,
		.copies = 1, .limit_mb = 20,
	}, {
		.name = "pin", .what = "pins", .round = pin_round, .missing = no_pins,
		.copies = 1, .limit_mb = 20,
	}, {
		.name = "repair", .what = "children", .round = repair_round, .missing = no_fail,
		.copies = 2, .limit_mb = 20, .fails = true,
	}, {
		.name = "file", .what = "children", .round = file_round,
		.copies = FILE_WORKERS, .limit_mb = 10, .fails = true,
	}, {
		.name = "compaction", .what = "writes", .round = compaction_round,
		.copies = 1, .disturbs = true,
	}, {
		.name = "hotplug", .what = "blocks", .round = hotplug_round, .missing = no_blocks,
		.copies = 1, .disturbs = true,
	}, {
		.name = "settings", .what = "writes", .round = settings_round,
		.copies = 1, .disturbs = true,
	}, {
		.name = "swapoff", .what = "swapoffs", .round = swapoff_round,
		.missing = no_swap_dev, .copies = 1, .disturbs = true,
	},
};

/* A worker. */

static void on_fault(int sig, siginfo_t *info, void *context)
{
	print_pagemap(info->si_addr);
	fail("%s, code %d, at %p", strsignal(sig), info->si_code, info->si_addr);
}

/* It is there to interrupt a call. */
static void on_alarm(int sig)
{
}

static void catch_signals(void)
{
	static const int faults[] = { SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP };
	struct sigaction fault = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO };
	struct sigaction alarmed = { .sa_handler = on_alarm };
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(faults); i++)
		sigaction(faults[i], &fault, NULL);
	sigaction(SIGALRM, &alarmed, NULL);
}

static void __noreturn run_worker(struct worker *worker, pid_t parent)
{
	const struct kind *kind = worker->kind;
	struct actor actor = {
		.rng = mix(worker->seed + worker->starts),
		.pagemap = granule_open_pagemap(),
		.nr = 1,
	};

	self = worker;
	setpgid(0, 0);
	signal(SIGTERM, SIG_DFL);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(KSFT_FAIL);
	catch_signals();
	granule_write("/proc/self/oom_score_adj", kind->disturbs ? "-1000" : "500");
	if (*worker->cgroup && granule_cg_write(worker->cgroup, "cgroup.procs", "0"))
		fail("cannot join %s", worker->cgroup);
	/* Children and threads inherit it. */
	if (have_fail && kind->fails && (worker->nr % 2 || kind->missing == no_fail))
		granule_fail_order4(true);
	while (!load(&shared->stop)) {
		known_oom_kills = oom_kills(self);
		actor.limit = ROUND_OPS;
		actor.deadline = now() + ROUND_MS;
		kind->round(&actor);
	}
	_exit(KSFT_PASS);
}

/* The part of main(). */

static void start_worker(struct worker *worker)
{
	const pid_t parent = getpid();
	pid_t pid;

	worker->starts++;
	worker->seen_at = now();
	pid = fork();
	if (!pid)
		run_worker(worker, parent);
	if (pid < 0)
		ksft_exit_fail_msg("cannot fork: %s\n", strerror(errno));
	worker->pid = pid;
}

/* Settings that the workers change, or that make more happen. */
static struct knob {
	const char *path;
	const char *value;		/* NULL: leave it as it is, for now */
	char saved[64];
} knobs[] = {
	{ "/proc/sys/kernel/numa_balancing", "1" },
	{ DEBUGFS "sched/numa_balancing/scan_delay_ms", "100" },
	{ DEBUGFS "sched/numa_balancing/scan_period_min_ms", "100" },
	{ DEBUGFS "sched/numa_balancing/scan_period_max_ms", "1000" },
	{ "/sys/module/zswap/parameters/enabled", NULL },
	{ KSM_SYSFS "run", NULL },
	{ "/sys/kernel/mm/lru_gen/enabled", NULL },
	{ KSM_SYSFS "sleep_millisecs", "50" },
};

static void save_knobs(void)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(knobs); i++) {
		if (read_file(knobs[i].path, knobs[i].saved, sizeof(knobs[i].saved)) <= 0)
			continue;
		if (knobs[i].value)
			granule_write(knobs[i].path, knobs[i].value);
	}
}

static void restore_knobs(void)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(knobs); i++) {
		if (*knobs[i].saved)
			granule_write(knobs[i].path, knobs[i].saved);
	}
}

static int count_nodes(void)
{
	char text[64] = "";
	int first, last;

	read_file("/sys/devices/system/node/has_memory", text, sizeof(text));
	return sscanf(text, "%d-%d", &first, &last) == 2 && !first ? last + 1 : 1;
}

char cgroup[PATH_MAX - 64];	/* that has all others in it, or "" */

static void create_cgroups(void)
{
	char root[PATH_MAX], text[32];
	struct worker *worker;
	unsigned int i;

	if (!granule_find_cgroup2(root))
		return;
	granule_cg_write(root, "cgroup.subtree_control", "+memory");
	snprintf(cgroup, sizeof(cgroup), "%.*s/page_granule_stress.%d", PATH_MAX / 2, root,
		 getpid());
	if (mkdir(cgroup, 0755) || granule_cg_write(cgroup, "cgroup.subtree_control", "+memory"))
		return;
	for (i = 0; i < nr_workers; i++) {
		worker = shared->workers + i;
		if (!worker->kind->limit_mb)
			continue;
		snprintf(worker->cgroup, sizeof(worker->cgroup), "%s/%s.%u", cgroup,
			 worker->kind->name, worker->nr);
		snprintf(text, sizeof(text), "%uM", worker->kind->limit_mb);
		if (mkdir(worker->cgroup, 0755) ||
		    granule_cg_write(worker->cgroup, "memory.max", text))
			*worker->cgroup = 0;
		else if (worker->kind->no_swap)
			granule_cg_write(worker->cgroup, "memory.swap.max", "0");
	}
}

static void remove_cgroups(void)
{
	unsigned int i;

	for (i = 0; i < nr_workers; i++) {
		if (*shared->workers[i].cgroup)
			rmdir(shared->workers[i].cgroup);
	}
	if (*cgroup)
		rmdir(cgroup);
}

static void create_workers(uint64_t seed)
{
	struct worker *worker;
	unsigned int i, nr;

	for (i = 0; i < ARRAY_SIZE(kinds); i++) {
		for (nr = 0; nr < kinds[i].copies; nr++) {
			worker = shared->workers + nr_workers;
			worker->kind = kinds + i;
			worker->nr = nr;
			worker->seed = mix(seed + nr_workers);
			nr_workers++;
		}
	}
}

/* It has ended: wrongly, or because memory was short, or it was to. */
static void worker_ended(struct worker *worker, int status)
{
	/* The processes that it has started have to end, too. */
	kill(-worker->pid, SIGKILL);
	worker->pid = 0;
	if (WIFEXITED(status) && WEXITSTATUS(status) == EXIT_SHORT)
		worker->killed++;
	else if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL && oom_kills(worker))
		worker->killed++;
	else if (status)
		worker_failed(worker, "ended with status %#x", status);
	if (!load(&shared->stop) && !worker->failed)
		start_worker(worker);
}

static void reap_workers(void)
{
	unsigned int i;
	int status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
		for (i = 0; i < nr_workers; i++) {
			if (shared->workers[i].pid == pid)
				worker_ended(shared->workers + i, status);
		}
	}
}

/*
 * A worker that does nothing for minutes is stuck in the kernel, or waits for
 * ever.
 */
static void watch(struct worker *worker)
{
	static const char * const files[] = { "stat", "stack" };
	/*
	 * The comparing at the end of a round is one operation, and may thrash.
	 */
	unsigned long nr = load(&worker->ops) + load(&worker->pages);
	char path[64], text[1024] = "";
	unsigned int i;

	if (!worker->pid)
		return;
	if (nr != worker->seen_ops) {
		worker->seen_ops = nr;
		worker->seen_at = now();
	}
	if (now() - worker->seen_at < HUNG_MS)
		return;
	worker_failed(worker, "pid %d hangs", worker->pid);
	/* Faults and CPU time tell one that never ends from one that waits. */
	for (i = 0; i < 2 * ARRAY_SIZE(files); i++) {
		snprintf(path, sizeof(path), "/proc/%d/%s", worker->pid,
			 files[i % ARRAY_SIZE(files)]);
		if (read_file(path, text, sizeof(text)) > 0)
			ksft_print_msg("%s: %s\n", path, text);
		if (i == ARRAY_SIZE(files) - 1)
			sleep(1);
	}
	/* The kernel log then has the blocked and the running tasks. */
	granule_write("/proc/sysrq-trigger", "w");
	granule_write("/proc/sysrq-trigger", "l");
	worker->seen_at = now();
	kill(-worker->pid, SIGKILL);
}

static unsigned int alive(void)
{
	unsigned int i, nr = 0;

	reap_workers();
	for (i = 0; i < nr_workers; i++) {
		watch(shared->workers + i);
		nr += !!shared->workers[i].pid;
	}
	return nr;
}

static void print_progress(unsigned long seconds)
{
	char line[512];
	unsigned int i;
	int len = 0;

	for (i = 0; i < nr_workers && len < (int)sizeof(line) - 64; i++)
		len += snprintf(line + len, sizeof(line) - len, " %s.%u %lu",
				shared->workers[i].kind->name, shared->workers[i].nr,
				load(&shared->workers[i].ops));
	ksft_print_msg("%lu s, operations:%s\n", seconds, line);
}

/* An operation that never ran was not tested, nor was a round without end. */
static bool has_worked(const struct worker *worker)
{
	if (!worker->ops)
		return false;
	if (worker->kind->disturbs)
		return worker->done || worker->refused < 10;
	return worker->rounds;
}

/* On a machine that is busy, some take longer to begin. */
static bool all_have_worked(void)
{
	unsigned int i;

	for (i = 0; i < nr_workers; i++) {
		if (shared->workers[i].pid && !has_worked(shared->workers + i))
			return false;
	}
	return !fs_untested();
}

static void print_missing_fs(void)
{
	enum granule_fs fs;

	for (fs = 0; fs < FS_SYSV; fs++) {
		if (granule_fs_missing(fs))
			ksft_print_msg("file: without %s: %s\n", granule_fs_name(fs),
				       granule_fs_missing(fs));
	}
}

void run(unsigned long seconds)
{
	const unsigned long start = now(), patience = (seconds + MIN(3 * seconds, PATIENCE)) * 1000;
	unsigned long next = 30;
	unsigned int i;

	for (i = 0; i < nr_workers; i++) {
		if (!shared->workers[i].kind->missing || !shared->workers[i].kind->missing())
			start_worker(shared->workers + i);
	}
	while (!load(&shared->stop) &&
	       (now() - start < seconds * 1000 ||
		(!all_have_worked() && now() - start < patience))) {
		usleep(100 * 1000);
		if (!alive())
			break;
		if (now() - start >= next * 1000) {
			print_progress(next);
			next += 30;
		}
	}
	store(&shared->stop, true);
	while (alive())
		usleep(100 * 1000);
}

static const char * const counters[] = {
	"granule_fault", "granule_fallback", "granule_cow", "granule_swpin",
	"granule_swpin_fallback", "granule_split", "granule_repair", "pswpin", "pswpout",
	"pgmigrate_success", "pgmigrate_fail", "compact_success", "numa_hint_faults",
	"numa_pages_migrated", "thp_split_page", "ksm_swpin_copy", "zswpout",
};

static unsigned long before[ARRAY_SIZE(counters)];

static void read_counters(void)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(counters); i++)
		before[i] = granule_vmstat(counters[i]);
}

static unsigned long counted(const char *name)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(counters); i++) {
		if (!strcmp(counters[i], name))
			return granule_vmstat(name) - before[i];
	}
	return 0;
}

static void print_counters(void)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(counters); i++) {
		if (before[i] != ULONG_MAX)
			ksft_print_msg("%s %lu\n", counters[i], counted(counters[i]));
	}
}

static void report(const struct kind *kind)
{
	const char *missing = kind->missing ? kind->missing() : NULL;
	bool good = true;
	unsigned int i;

	if (missing) {
		ksft_test_result_skip("%s: %s\n", kind->name, missing);
		return;
	}
	for (i = 0; i < nr_workers; i++) {
		const struct worker *worker = shared->workers + i;

		if (worker->kind != kind)
			continue;
		ksft_print_msg("%s.%u: %lu operations, %lu pages compared, %lu granules seen; ",
			       kind->name, worker->nr, worker->ops, worker->pages,
			       worker->looks);
		printf("memory short %lu times, and the end %lu times", worker->shorts,
		       worker->killed);
		if (kind->what)
			printf(", %lu %s, %lu refused", worker->done, kind->what,
			       worker->refused);
		printf("\n%s", worker->why);
		if (!worker->failed && !has_worked(worker)) {
			ksft_print_msg("%s.%u has tested nothing\n", kind->name, worker->nr);
			good = false;
		}
		/* A child may have failed, and its parent run out of memory. */
		good = good && !worker->failed && !*worker->why;
	}
	if (kind->missing == no_fail && good && !counted("granule_repair")) {
		ksft_print_msg("no granule was repaired\n");
		good = false;
	}
	if (kind->round == file_round && good && fs_untested()) {
		ksft_print_msg("no granule of a file on %s was whole\n", fs_untested());
		good = false;
	}
	ksft_test_result(good, "%s\n", kind->name);
}

#define ZRAM_CONTROL	"/sys/class/zram-control/"

/*
 * A compressed disk in memory of our own; @dev becomes "" if there can be none.
 */
static void zram_create(char *dev, size_t size, unsigned int megabytes)
{
	char text[32], path[64];
	unsigned long id;

	*dev = 0;
	if (read_file(ZRAM_CONTROL "hot_add", text, sizeof(text)) <= 0)
		return;
	id = strtoul(text, NULL, 10);
	snprintf(path, sizeof(path), "/sys/block/zram%lu/disksize", id);
	snprintf(text, sizeof(text), "%uM", megabytes);
	if (granule_write(path, text))
		return;
	snprintf(dev, size, "/dev/zram%lu", id);
}

/* Swapping to it must have been switched off. */
static void zram_remove(const char *dev)
{
	const char *id = dev + strlen("/dev/zram");
	char path[64];

	if (!*dev)
		return;
	snprintf(path, sizeof(path), "/sys/block/zram%s/reset", id);
	granule_write(path, "1");
	granule_write(ZRAM_CONTROL "hot_remove", id);
}

static bool parse_number(const char *text, unsigned long max, unsigned long *val)
{
	char *end;

	errno = 0;
	*val = strtoul(text, &end, 0);
	return !errno && *text >= '0' && *text <= '9' && !*end && *val <= max;
}

int error(const char *msg)
{
	fprintf(stderr, "page_granule_stress: %s\n", msg);
	return KSFT_FAIL;
}

static void on_stop(int sig)
{
	store(&shared->stop, true);
}

/* Who interrupts it gets the settings back, too. */
static void stop_on_signals(void)
{
	struct sigaction stop = { .sa_handler = on_stop, .sa_flags = SA_RESTART };

	sigaction(SIGINT, &stop, NULL);
	sigaction(SIGTERM, &stop, NULL);
}

static void print_usage(void)
{
	printf("usage: page_granule_stress [--seconds N] [--seed S]\n"
	       "\n"
	       "Do all that can be done to page granules, at the same time, and compare what\n"
	       "is in them. Run as root. The console tells whether the kernel has complained.\n"
	       "\n"
	       "  --seconds N  for so long (%lu), or longer until each worker has begun\n"
	       "  --seed S     of the random numbers; the timing differs each time (1)\n"
	       "  --help       this text\n", DEFAULT_SECONDS);
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "seconds", required_argument, NULL, 't' },
		{ "seed", required_argument, NULL, 's' },
		{ "help", no_argument, NULL, 'h' },
		{ }
	};
	unsigned long seconds = DEFAULT_SECONDS, seed = 1, looks = 0;
	struct granule_fail fail_settings = {};
	unsigned int i;
	int opt;

	opterr = 0;
	while ((opt = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (opt) {
		case 't':
			if (!parse_number(optarg, MAX_SECONDS, &seconds) || !seconds)
				return error("--seconds takes a number, 1 or more");
			break;
		case 's':
			if (!parse_number(optarg, UINT64_MAX, &seed))
				return error("--seed takes a number");
			break;
		case 'h':
			print_usage();
			return KSFT_PASS;
		default:
			return error("unknown option, or no value for it: see --help");
		}
	}
	if (optind < argc)
		return error("takes options only: see --help");

	ksft_print_header();
	granule_require();
	granule_save_settings();
	granule_thp_never();
	granule_repair(true);
	shared = mmap(NULL, sizeof(*shared), PROT_RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (shared == MAP_FAILED)
		ksft_exit_fail_msg("no memory\n");
	stop_on_signals();
	nr_nodes = count_nodes();
	have_fail = granule_fail_prepare(&fail_settings);
	if (have_fail)
		granule_write(FAIL_PAGE_ALLOC "probability", FAIL_PERCENT);
	save_knobs();
	zram_create(swap_dev, sizeof(swap_dev), SWAP_DEV_MB);
	zram_create(disk_dev, sizeof(disk_dev), 1);
	if (*swap_dev && !granule_make_swap(swap_dev, SWAP_DEV_MB))
		ksft_exit_fail_msg("cannot write to %s\n", swap_dev);
	granule_fs_make();
	create_workers(seed);
	create_cgroups();

	ksft_set_plan(ARRAY_SIZE(kinds) + 1);
	print_missing_fs();
	read_counters();
	run(seconds);
	print_counters();
	for (i = 0; i < ARRAY_SIZE(kinds); i++)
		report(kinds + i);
	for (i = 0; i < nr_workers; i++)
		looks += shared->workers[i].looks;
	ksft_test_result(looks, "%lu granules were looked at\n", looks);

	remove_cgroups();
	swapoff(swap_dev);
	zram_remove(swap_dev);
	zram_remove(disk_dev);
	restore_knobs();
	granule_fail_restore(&fail_settings);
	ksft_finished();
}
