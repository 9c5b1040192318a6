// SPDX-License-Identifier: GPL-2.0
/*
 * Page granule: all that can happen to granules, at the same time.
 *
 * Workers of several kinds run at once, each in a process of its own. Some have
 * memory in granules and do to it what their kind is about; others disturb them:
 * they compact, take memory offline, switch settings and swap off.
 *
 * A worker knows what each page of its memory is to hold: two numbers, from which
 * all bytes of the page follow. It compares all the time, and after each round
 * all of it. It also looks how many pages of a granule are populated: all or none,
 * unless it has cut the granule itself.
 *
 * Memory may be short: each worker has a cgroup of its own with a limit that is
 * too low at times. A call that fails for that, and a process that is killed for
 * it, are counted, and the worker is started again. Anything else ends it.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <linux/mempolicy.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/param.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../../../../mm/gup_test.h"
#include "hugepage_settings.h"
#include "kselftest.h"
#include "vm_util.h"
#include "page_granule_util.h"

/* As for page_granule_util.h: headers may be older than the kernel. */
#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP	4
#endif
#ifndef MADV_COLD
#define MADV_COLD		20
#define MADV_PAGEOUT		21
#endif
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ	22
#define MADV_POPULATE_WRITE	23
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE		25
#endif
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL	102
#define MADV_GUARD_REMOVE	103
#endif
#ifndef MLOCK_ONFAULT
#define MLOCK_ONFAULT		1
#endif

#define DEFAULT_SECONDS	20UL
#define MAX_SECONDS	(7 * 24 * 3600UL)

#define PAGE_WORDS	(BASE_SIZE / sizeof(uint64_t))
#define STAMP_WORD	137	/* of a page; see struct page_model */

#define AREA_GRANULES	48UL
#define RESERVE_SLACK	31UL	/* granules, so that areas begin anywhere in 2 MiB */
#define SWAP_GRANULES	224UL	/* of the workers that are to thrash */
#define MAX_THREADS	4
#define MAX_KIDS	4	/* that a worker forks at a time */
#define MAX_DEPTH	2	/* of forks below a worker */
#define ROUND_OPS	400	/* of each thread */
#define ROUND_MS	(8 * 1000)
#define KID_OPS		12

#define HUNG_MS		(240 * 1000)	/* in one operation */
#define FAIL_PERCENT	"25"	/* of order-4 allocations, where they are made to fail */

/* Exit status of a worker that gave up because memory was short. */
#define EXIT_SHORT	75

#define DEBUGFS		"/sys/kernel/debug/"
#define FAIL_PAGE_ALLOC	DEBUGFS "fail_page_alloc/"
#define GUP_TEST	DEBUGFS "gup_test"
#define MEMORY_BLOCKS	"/sys/devices/system/memory"
#define SWAP_DEV_MB	48

/*
 * What a page holds: zeroes if the key is 0, otherwise words that all depend on
 * the key. But for one word, the stamp, if it is not 0.
 */
struct page_model {
	uint32_t key;
	uint32_t stamp;
};

struct area {
	enum granule_kind kind;
	bool shared;
	/* No granule was ever cut: each is populated whole, or not at all. */
	bool strict;
	unsigned long nr;		/* granules */
	char *base;
	char *spare;			/* reserved, to move to */
	char *reserved;			/* that and what is around it */
	size_t reserved_len;
	struct page_model *model;	/* of each page */
};

/* A number of pages of an area. */
struct range {
	unsigned long first;
	unsigned long nr;
};

/*
 * One thread that acts on an area. If there are several, each writes to and
 * compares what is its own: every so many pages, or every so many granules.
 */
struct actor {
	struct area *area;
	uint64_t rng;
	unsigned int id;
	unsigned int nr;
	bool by_granule;
	unsigned int depth;	/* forks since the worker started */
	unsigned int groups;	/* what it may do, see ops[] */
	int pagemap;
	unsigned long limit;	/* operations */
	unsigned long deadline;	/* in ms */
};

struct kind;

/* Shared by main() and the worker, which counts what it does. */
struct worker {
	const struct kind *kind;
	unsigned int nr;		/* among its kind */
	pid_t pid;			/* 0: it has ended */
	uint64_t seed;
	unsigned long starts;
	unsigned long killed;		/* because memory was short */
	bool failed;
	char cgroup[PATH_MAX];		/* "": none */

	const char *op;			/* what one of its threads is about to do */
	unsigned long ops;
	unsigned long pages;		/* compared */
	unsigned long looks;		/* at granules */
	unsigned long shorts;		/* memory was short, and it went on */
	unsigned long done;		/* what the kind is about, see kind->what */
	unsigned long refused;		/* of that */

	/* main()'s, to see if it goes on. */
	unsigned long seen_ops;
	unsigned long seen_at;
};

struct kind {
	const char *name;
	const char *what;		/* that it counts, or NULL */
	void (*round)(struct actor *actor);
	const char *(*missing)(void);	/* what it needs and is not there, or NULL */
	unsigned int copies;
	unsigned int limit_mb;		/* of the cgroup, 0: none */
	bool no_swap;			/* for the cgroup: it runs out of memory */
	bool fails;			/* order-4 allocations of its odd copies */
	bool disturbs;			/* has no memory of its own to compare */
};

#define MAX_WORKERS	32

struct shared {
	bool stop;
	struct worker workers[MAX_WORKERS];
};

static struct shared *shared;
static unsigned int nr_workers;
static struct worker *self;		/* the worker that this process is of */
static unsigned long known_oom_kills;	/* in its cgroup, when the round began */
static int nr_nodes = 1;
static bool have_fail;			/* there is fault injection */
static char swap_dev[32], disk_dev[32];	/* zram of our own, or "" */

/* An access that the compiler leaves where and as it is. */
#define load(p)		__atomic_load_n(p, __ATOMIC_RELAXED)
#define store(p, val)	__atomic_store_n(p, val, __ATOMIC_RELAXED)
#define count(p, nr)	((void)__atomic_fetch_add(p, nr, __ATOMIC_RELAXED))

/* What this thread is about to do. */
static __thread const char *doing = "start";

static void begin(const char *what)
{
	doing = what;
	store(&self->op, what);
}

static unsigned long now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000UL + ts.tv_nsec / 1000000;
}

static uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15UL;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9UL;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebUL;
	return x ^ (x >> 31);
}

/* A number below @limit. */
static unsigned long draw(struct actor *actor, unsigned long limit)
{
	actor->rng = mix(actor->rng);
	return actor->rng % limit;
}

static bool one_in(struct actor *actor, unsigned long nr)
{
	return !draw(actor, nr);
}

static uint32_t new_key(struct actor *actor)
{
	return draw(actor, UINT32_MAX) + 1;
}

/* End the process because something is wrong. */
static void __noreturn __printf(1, 2) fail(const char *format, ...)
{
	char line[512];
	va_list args;
	int len;

	len = snprintf(line, sizeof(line), "# FAIL %s.%u pid %d seed %#lx start %lu, %s: ",
		       self->kind->name, self->nr, getpid(), (unsigned long)self->seed,
		       self->starts, doing);
	va_start(args, format);
	len += vsnprintf(line + len, sizeof(line) - len - 1, format, args);
	va_end(args);
	len = len < (int)sizeof(line) - 2 ? len : (int)sizeof(line) - 2;
	line[len++] = '\n';
	/* One write, so that lines of several processes do not mix. */
	if (write(STDOUT_FILENO, line, len) != len)
		_exit(KSFT_FAIL);
	_exit(KSFT_FAIL);
}

/* End the process because memory is short; the worker is started again. */
static void __noreturn give_up(void)
{
	_exit(EXIT_SHORT);
}

static bool is_short(int error)
{
	return error == ENOMEM || error == EAGAIN;
}

/*
 * What a call returned, and errno if that is not 0: true if it worked, false if
 * memory was short. Anything else is wrong.
 */
static bool worked(long ret, const char *what)
{
	if (!ret)
		return true;
	if (!is_short(errno))
		fail("%s: %s", what, strerror(errno));
	count(&self->shorts, 1);
	return false;
}

/* The same where the memory is not usable without. */
static void must_work(long ret, const char *what)
{
	if (!worked(ret, what))
		give_up();
}

static size_t area_len(const struct area *area)
{
	return area->nr * GRANULE_SIZE;
}

static unsigned long area_pages(const struct area *area)
{
	return area->nr * GRANULE_NR_PAGES;
}

static char *page_addr(const struct area *area, unsigned long page)
{
	return area->base + page * BASE_SIZE;
}

static char *range_addr(const struct area *area, const struct range *range)
{
	return page_addr(area, range->first);
}

static size_t range_len(const struct range *range)
{
	return range->nr * BASE_SIZE;
}

static bool owns(const struct actor *actor, unsigned long page)
{
	return (actor->by_granule ? page / GRANULE_NR_PAGES : page) % actor->nr == actor->id;
}

/* Word @i of a page that is like @model. */
static uint64_t model_word(const struct page_model *model, unsigned int i)
{
	if (i == STAMP_WORD && model->stamp)
		return mix((uint64_t)model->stamp << 32 | model->key);
	return model->key ? mix(model->key) + i * 0xd1342543de82ef95UL : 0;
}

static void model_write(const struct page_model *model, char *addr)
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
static unsigned int model_compare(const struct page_model *model, const char *addr)
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
	if (area->shared)
		return area->kind == GRANULE_CONTRACT ? "shared contract" : "shared default";
	return area->kind == GRANULE_CONTRACT ? "contract" : "default";
}

/* What does the page that is wrong hold instead? */
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

/* A page, which may be elsewhere for now or in a copy, is not as the model says. */
static void __noreturn page_wrong(const struct area *area, unsigned long page, const char *addr,
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

static void check_copy(const struct area *area, unsigned long page, const char *addr)
{
	unsigned int word = model_compare(area->model + page, addr);

	if (word != PAGE_WORDS)
		page_wrong(area, page, addr, word);
	count(&self->pages, 1);
}

static void check_page(const struct area *area, unsigned long page)
{
	check_copy(area, page, page_addr(area, page));
}

/* All that the actor may compare. */
static void check_all(const struct actor *actor)
{
	unsigned long page;

	for (page = 0; page < area_pages(actor->area); page++) {
		if (owns(actor, page))
			check_page(actor->area, page);
	}
}

/*
 * A granule of a contract is populated whole or not at all. The entries are read under
 * the lock that they are set under, so others may fault meanwhile. By default a page is
 * populated alone where memory is short, or huge pages are not wanted.
 */
static void look(const struct actor *actor, unsigned long granule)
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
 * All invariants, while no other thread of the process is at work. The kernel may
 * be able to tell more, and then says in its log what is wrong.
 */
static void look_all(const struct actor *actor)
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

static void *map_shared(enum granule_kind kind, char *addr, size_t len)
{
	int flags = MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED;
	void *ptr;

	if (kind == GRANULE_CONTRACT)
		return mmap(addr, len, PROT_RW, flags | MAP_GRANULE_64KB, -1, 0);
	if (granule_set(PR_GRANULE_MMAP, GRANULE_SIZE))
		return MAP_FAILED;
	ptr = mmap(addr, len, PROT_RW, flags, -1, 0);
	granule_set(PR_GRANULE_MMAP, BASE_SIZE);
	return ptr;
}

static void area_map(const struct area *area, char *addr, size_t len)
{
	void *ptr;

	for (;;) {
		if (area->shared)
			ptr = map_shared(area->kind, addr, len);
		else
			ptr = granule_mmap(area->kind, addr, len, PROT_RW, MAP_FIXED);
		if (ptr == addr)
			return;
		/* The settings worker has granules switched off for the moment. */
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

static void area_create(struct actor *actor, struct area *area, enum granule_kind kind,
			bool is_shared, unsigned long nr)
{
	const int flags = is_shared ? MAP_SHARED | MAP_ANONYMOUS : ANON_FLAGS;
	const size_t len = nr * GRANULE_SIZE;

	memset(area, 0, sizeof(*area));
	area->kind = kind;
	area->shared = is_shared;
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

static void area_destroy(struct area *area)
{
	must_work(munmap(area->reserved, area->reserved_len), "munmap");
	must_work(munmap(area->model, area_pages(area) * sizeof(*area->model)), "munmap");
}

/* A page that the actor may write to. */
static unsigned long own_page(struct actor *actor)
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
static struct range any_range(struct actor *actor)
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

static void model_zero(struct area *area, const struct range *range)
{
	memset(area->model + range->first, 0, range->nr * sizeof(*area->model));
}

/* Reads, writes and comparisons. */

static void op_read(struct actor *actor)
{
	check_page(actor->area, own_page(actor));
}

/* One word, which may copy the granule for the sake of it. */
static void poke(const struct area *area, unsigned long page, char *addr)
{
	struct page_model *model = area->model + page;
	struct page_model next = { model->key, model->stamp + 1 };

	store((uint64_t *)addr + STAMP_WORD, model_word(&next, STAMP_WORD));
	*model = next;
}

static void op_poke(struct actor *actor)
{
	unsigned long page = own_page(actor);

	poke(actor->area, page, page_addr(actor->area, page));
	if (one_in(actor, 4))
		check_page(actor->area, page);
}

static void op_fill(struct actor *actor)
{
	unsigned long page = own_page(actor);
	struct page_model *model = actor->area->model + page;

	model->key = new_key(actor);
	model->stamp = 0;
	model_write(model, page_addr(actor->area, page));
}

static void op_check(struct actor *actor)
{
	unsigned long page, end;

	page = draw(actor, actor->area->nr) * GRANULE_NR_PAGES;
	end = MIN(page + 4 * GRANULE_NR_PAGES, area_pages(actor->area));
	for (; page < end; page++) {
		if (owns(actor, page))
			check_page(actor->area, page);
	}
}

static void op_look(struct actor *actor)
{
	unsigned int i;

	for (i = 0; i < 4; i++)
		look(actor, own_page(actor) / GRANULE_NR_PAGES);
}

/* The kernel reads and writes: a pipe. */
static void op_pipe(struct actor *actor)
{
	const struct area *area = actor->area;
	const unsigned long page = own_page(actor);
	char *addr = page_addr(area, page);
	char copy[BASE_SIZE];
	int fds[2];

	if (!worked(pipe(fds), "pipe"))
		return;
	if (one_in(actor, 2)) {
		if (write(fds[1], addr, BASE_SIZE) == BASE_SIZE &&
		    read(fds[0], copy, BASE_SIZE) == BASE_SIZE)
			check_copy(area, page, copy);
		else
			worked(-1, "write to a pipe");
	} else {
		struct page_model next = { new_key(actor), 0 };

		model_write(&next, copy);
		if (write(fds[1], copy, BASE_SIZE) != BASE_SIZE) {
			worked(-1, "write to a pipe");
		} else if (read(fds[0], addr, BASE_SIZE) == BASE_SIZE) {
			area->model[page] = next;
		} else {
			/* It may have read a part. */
			must_work(-1, "read from a pipe");
		}
	}
	close(fds[0]);
	close(fds[1]);
}

/* What leaves the contents alone, and may be done to what others use. */

static const struct advice {
	const char *name;
	int advice;
	bool quiet;		/* to fail is its right: it is best effort */
	bool merge;		/* of KSM, which cuts granules */
} advices[] = {
	{ "MADV_PAGEOUT", MADV_PAGEOUT },
	{ "MADV_PAGEOUT", MADV_PAGEOUT },
	{ "MADV_PAGEOUT", MADV_PAGEOUT },
	{ "MADV_COLD", MADV_COLD },
	{ "MADV_COLLAPSE", MADV_COLLAPSE, .quiet = true },
	{ "MADV_COLLAPSE", MADV_COLLAPSE, .quiet = true },
	{ "MADV_POPULATE_READ", MADV_POPULATE_READ },
	{ "MADV_POPULATE_WRITE", MADV_POPULATE_WRITE },
	{ "MADV_WILLNEED", MADV_WILLNEED },
	{ "MADV_HUGEPAGE", MADV_HUGEPAGE },
	{ "MADV_NOHUGEPAGE", MADV_NOHUGEPAGE },
	{ "MADV_MERGEABLE", MADV_MERGEABLE, .merge = true },
	{ "MADV_UNMERGEABLE", MADV_UNMERGEABLE, .merge = true },
};

static void op_advise(struct actor *actor)
{
	const struct advice *advice = advices + draw(actor, ARRAY_SIZE(advices));
	struct range range = any_range(actor);
	int ret;

	if (advice->merge && actor->area->strict)
		return;
	begin(advice->name);
	ret = madvise(range_addr(actor->area, &range), range_len(&range), advice->advice);
	if (ret && advice->quiet && (errno == EBUSY || errno == EINVAL))
		return;
	/* Another thread has it locked. */
	if (ret && errno == EINVAL && actor->nr > 1)
		return;
	worked(ret, advice->name);
}

static void op_mlock(struct actor *actor)
{
	struct range range = any_range(actor);
	char *addr = range_addr(actor->area, &range);
	int i, ret;

	range.nr = MIN(range.nr, 2 * GRANULE_NR_PAGES);
	if (one_in(actor, 2))
		ret = mlock(addr, range_len(&range));
	else
		ret = mlock2(addr, range_len(&range), MLOCK_ONFAULT);
	if (worked(ret, "mlock")) {
		for (i = 0; i < 4; i++)
			op_poke(actor);
	}
	must_work(munlock(addr, range_len(&range)), "munlock");
}

static void op_clear_refs(struct actor *actor)
{
	int ret;

	/* Soft-dirty bits, where the architecture has them, or accessed bits. */
	ret = granule_write("/proc/self/clear_refs", one_in(actor, 2) ? "4" : "1");
	if (ret && ret != -EINTR) {
		errno = -ret;
		worked(-1, "clear_refs");
	}
}

static void op_cpu(struct actor *actor)
{
	long nr = sysconf(_SC_NPROCESSORS_ONLN);
	cpu_set_t set;

	CPU_ZERO(&set);
	if (one_in(actor, 3))
		memset(&set, 0xff, sizeof(set));
	else
		CPU_SET(draw(actor, nr), &set);
	worked(sched_setaffinity(0, sizeof(set), &set), "sched_setaffinity");
}

#define MOVED_PAGES	(2 * GRANULE_NR_PAGES)

static void op_move_pages(struct actor *actor)
{
	struct range range = any_range(actor);
	int nodes[MOVED_PAGES], status[MOVED_PAGES];
	unsigned long step, nr = 0, i;
	void *pages[MOVED_PAGES];
	long ret;

	/* All pages, or one for the whole granule, which must not be left behind. */
	step = one_in(actor, 2) ? 1 : GRANULE_NR_PAGES;
	for (i = 0; i < range.nr && nr < MOVED_PAGES; i += step, nr++) {
		pages[nr] = page_addr(actor->area, range.first + i);
		nodes[nr] = draw(actor, nr_nodes);
	}
	ret = syscall(__NR_move_pages, 0, nr, pages, nodes, status,
		      one_in(actor, 2) ? MPOL_MF_MOVE : MPOL_MF_MOVE_ALL);
	/* A number is that of the pages that stayed. */
	if (ret < 0 && errno != ENOENT && errno != EBUSY)
		worked(ret, "move_pages");
}

static void op_mbind(struct actor *actor)
{
	static const int modes[] = {
		MPOL_DEFAULT, MPOL_PREFERRED, MPOL_INTERLEAVE, MPOL_BIND, MPOL_LOCAL,
	};
	struct range range = any_range(actor);
	unsigned long nodes = (1UL << nr_nodes) - 1;
	int mode = modes[draw(actor, ARRAY_SIZE(modes))];

	if (mode == MPOL_DEFAULT || mode == MPOL_LOCAL)
		nodes = 0;
	else if (mode == MPOL_PREFERRED)
		nodes = 1UL << draw(actor, nr_nodes);
	worked(syscall(__NR_mbind, range_addr(actor->area, &range), range_len(&range), mode,
		       nodes ? &nodes : NULL, nodes ? 8 * sizeof(nodes) : 0UL,
		       one_in(actor, 2) ? MPOL_MF_MOVE : 0), "mbind");
}

/* What takes the contents away. */

static void op_dontneed(struct actor *actor)
{
	struct range range = any_range(actor);
	struct area *area = actor->area;

	must_work(madvise(range_addr(area, &range), range_len(&range), MADV_DONTNEED),
		  "MADV_DONTNEED");
	if (!area->shared)
		model_zero(area, &range);
}

/* Shared memory; what is around a hole is unmapped as well, and comes back. */
static void op_remove(struct actor *actor)
{
	struct range range = any_range(actor);

	must_work(madvise(range_addr(actor->area, &range), range_len(&range), MADV_REMOVE),
		  "MADV_REMOVE");
	model_zero(actor->area, &range);
}

/*
 * A page that may be freed any moment holds what it held, or zeroes from some
 * moment on. Having been written to, it stays as it is.
 */
static void check_freed(const struct area *area, unsigned long page)
{
	struct page_model *model = area->model + page;
	const char *addr = page_addr(area, page);
	bool freed = false;
	unsigned int word;

	for (word = 0; word < PAGE_WORDS; word++) {
		uint64_t found = load((const uint64_t *)addr + word);

		freed = freed || found != model_word(model, word);
		if (freed && found)
			page_wrong(area, page, addr, word);
	}
	poke(area, page, page_addr(area, page));
	if (load((const uint64_t *)addr) == model_word(model, 0)) {
		check_page(area, page);
		return;
	}
	/* Zeroes, but for the stamp, which is that of the key. */
	if (load((const uint64_t *)addr + STAMP_WORD) != model_word(model, STAMP_WORD))
		page_wrong(area, page, addr, STAMP_WORD);
	memset(model, 0, sizeof(*model));
	poke(area, page, page_addr(area, page));
	check_page(area, page);
}

static void op_free(struct actor *actor)
{
	struct range range = any_range(actor);
	struct area *area = actor->area;
	char *addr = range_addr(area, &range);
	unsigned long i;
	int ret;

	range.nr = MIN(range.nr, 4 * GRANULE_NR_PAGES);
	/* Where there was no folio, single pages go one by one, unless by contract. */
	if (area->kind == GRANULE_DEFAULT)
		store(&area->strict, false);
	ret = madvise(addr, range_len(&range), MADV_FREE);
	if (ret && errno == EINVAL && actor->nr > 1)
		return;
	must_work(ret, "MADV_FREE");
	if (one_in(actor, 2))
		worked(madvise(addr, range_len(&range), MADV_PAGEOUT), "MADV_PAGEOUT");
	else
		usleep(draw(actor, 20 * 1000));
	for (i = 0; i < range.nr; i++)
		check_freed(area, range.first + i);
}

/* What changes the mapping, while this thread is the only one to use it. */

static void op_mmap(struct actor *actor)
{
	struct range range = any_range(actor);
	struct area *area = actor->area;
	char *addr = range_addr(area, &range);

	if (one_in(actor, 2))
		must_work(munmap(addr, range_len(&range)), "munmap");
	area_map(area, addr, range_len(&range));
	/* While granules are switched off, it is not tagged by default. */
	if (area->kind == GRANULE_DEFAULT)
		area->strict = false;
	model_zero(area, &range);
}

static void op_mprotect(struct actor *actor)
{
	struct range range = any_range(actor);
	struct area *area = actor->area;
	char *addr = range_addr(area, &range);
	unsigned long i;
	int prot = one_in(actor, 4) ? PROT_NONE : PROT_READ;

	worked(mprotect(addr, range_len(&range), prot), "mprotect");
	if (one_in(actor, 3))
		worked(madvise(addr, range_len(&range), MADV_PAGEOUT), "MADV_PAGEOUT");
	if (prot == PROT_READ) {
		for (i = 0; i < range.nr; i += 1 + draw(actor, GRANULE_NR_PAGES))
			check_page(area, range.first + i);
	}
	must_work(mprotect(addr, range_len(&range), PROT_RW), "mprotect");
}

/* Guard regions come and go; what they replace is gone. */
static void op_guard(struct actor *actor)
{
	struct range range = any_range(actor);
	struct area *area = actor->area;
	char *addr = range_addr(area, &range);

	must_work(madvise(addr, range_len(&range), MADV_GUARD_INSTALL), "MADV_GUARD_INSTALL");
	if (one_in(actor, 2))
		worked(madvise(area->base, area_len(area), MADV_PAGEOUT), "MADV_PAGEOUT");
	must_work(madvise(addr, range_len(&range), MADV_GUARD_REMOVE), "MADV_GUARD_REMOVE");
	model_zero(area, &range);
}

static bool move(char *from, char *to, size_t len, int flags)
{
	if (mremap(from, len, len, MREMAP_MAYMOVE | MREMAP_FIXED | flags, to) == to)
		return true;
	/* Of shared memory the mappings move one by one, if they are several. */
	if (errno == EFAULT)
		return false;
	must_work(-1, "mremap");
	return false;
}

static void reserve(char *addr, size_t len)
{
	if (granule_mmap(GRANULE_UNTAGGED, addr, len, PROT_NONE, MAP_FIXED | MAP_NORESERVE) !=
	    addr)
		must_work(-1, "mmap");
}

/* Away, used there, and back. */
static void op_mremap(struct actor *actor)
{
	struct range range = any_range(actor);
	struct area *area = actor->area;
	bool leave = !area->shared && one_in(actor, 3);
	char *addr = range_addr(area, &range), *to;
	unsigned long page;

	to = area->spare + draw(actor, area->nr - range.nr / GRANULE_NR_PAGES) * GRANULE_SIZE;
	/* If it was cut, the new address need not be congruent. */
	if (area->strict || one_in(actor, 2))
		to += range.first % GRANULE_NR_PAGES * BASE_SIZE;
	if (!move(addr, to, range_len(&range), leave ? MREMAP_DONTUNMAP : 0))
		return;
	page = draw(actor, range.nr);
	check_copy(area, range.first + page, to + page * BASE_SIZE);
	page = draw(actor, range.nr);
	poke(area, range.first + page, to + page * BASE_SIZE);
	if (leave) {
		const struct page_model zeroes = {};

		/* What was left behind reads as zeroes. */
		if (model_compare(&zeroes, addr + page * BASE_SIZE) != PAGE_WORDS)
			fail("page at %p is not empty after MREMAP_DONTUNMAP",
			     addr + page * BASE_SIZE);
	}
	if (!move(to, addr, range_len(&range), 0))
		fail("mremap back from %p to %p: %s", to, addr, strerror(errno));
	reserve(to, range_len(&range));
}

/* Two ranges change places. */
static void op_exchange(struct actor *actor)
{
	struct area *area = actor->area;
	struct range one = any_range(actor), two = any_range(actor);
	char *addr1, *addr2;
	struct page_model model;
	unsigned long i;

	one.nr = MIN(one.nr, two.nr);
	two.nr = one.nr;
	if (one.first + one.nr > two.first && two.first + two.nr > one.first)
		return;
	addr1 = range_addr(area, &one);
	addr2 = range_addr(area, &two);
	if (!move(addr1, area->spare, range_len(&one), 0))
		return;
	if (!move(addr2, addr1, range_len(&one), 0)) {
		if (!move(area->spare, addr1, range_len(&one), 0))
			fail("mremap to %p: %s", addr1, strerror(errno));
		reserve(area->spare, range_len(&one));
		return;
	}
	if (!move(area->spare, addr2, range_len(&one), 0))
		fail("mremap to %p: %s", addr2, strerror(errno));
	reserve(area->spare, range_len(&one));
	for (i = 0; i < one.nr; i++) {
		model = area->model[one.first + i];
		area->model[one.first + i] = area->model[two.first + i];
		area->model[two.first + i] = model;
	}
}

/* Forks. */

/* Did a child that was killed die because memory was short? */
static unsigned long oom_kills(const struct worker *worker)
{
	char path[PATH_MAX + 16], text[512], *line;

	snprintf(path, sizeof(path), "%s/memory.events", worker->cgroup);
	if (!*worker->cgroup || read_file(path, text, sizeof(text)) <= 0)
		return 0;
	line = strstr(text, "oom_kill ");
	return line ? strtoul(line + strlen("oom_kill "), NULL, 10) : 0;
}

/* In this round. */
static bool was_oom(void)
{
	return oom_kills(self) != known_oom_kills;
}

static void reap(pid_t pid)
{
	int status;

	while (waitpid(pid, &status, 0) < 0) {
		if (errno != EINTR)
			fail("waitpid of child %d: %s", pid, strerror(errno));
	}
	if (WIFEXITED(status) && !WEXITSTATUS(status))
		return;
	if (WIFEXITED(status) && WEXITSTATUS(status) == EXIT_SHORT) {
		count(&self->shorts, 1);
		return;
	}
	if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL && was_oom()) {
		count(&self->shorts, 1);
		return;
	}
	/* It has said what is wrong, unless a signal ended it. */
	if (WIFSIGNALED(status))
		fail("child %d: %s", pid, strsignal(WTERMSIG(status)));
	_exit(KSFT_FAIL);
}

/* In a child just forked: dies with its parent, and looks at itself from now on. */
static void become_child(struct actor *actor, pid_t parent)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(EXIT_SHORT);
	actor->rng = mix(actor->rng ^ getpid());
	actor->pagemap = granule_open_pagemap();
	if (actor->pagemap < 0)
		give_up();
}

static void act(struct actor *actor);

static void __noreturn run_kid(struct actor *actor, pid_t parent)
{
	become_child(actor, parent);
	actor->depth++;
	look_all(actor);
	actor->limit = KID_OPS;
	act(actor);
	look_all(actor);
	check_all(actor);
	_exit(KSFT_PASS);
}

/*
 * Children write to what they share with their parent, and with each other, until
 * they have written to it. Of shared memory each has pages of its own meanwhile.
 */
static void op_fork(struct actor *actor)
{
	const bool divide = actor->area->shared;
	const pid_t parent = getpid();
	unsigned int nr = 1 + draw(actor, MAX_KIDS), i, kids;
	struct actor mine = *actor;
	pid_t pids[MAX_KIDS];

	if (divide) {
		mine.nr = nr + 1;
		mine.by_granule = one_in(actor, 2);
	}
	mine.limit = KID_OPS;
	for (kids = 0; kids < nr; kids++) {
		mine.id = divide ? kids + 1 : actor->id;
		mine.rng = mix(actor->rng + kids);
		pids[kids] = fork();
		if (!pids[kids])
			run_kid(&mine, parent);
		if (!worked(pids[kids] < 0 ? -1 : 0, "fork"))
			break;
	}
	if (kids == nr) {
		mine.id = divide ? 0 : actor->id;
		mine.depth = MAX_DEPTH;
		act(&mine);
		actor->rng = mine.rng;
	}
	for (i = 0; i < kids; i++)
		reap(pids[i]);
	count(&self->done, kids);
}

/* What is done to an area, by groups, of which each kind of worker has its own. */
#define DO_ACCESS	0x01U
#define DO_ADVISE	0x02U
#define DO_NUMA		0x04U
#define DO_EMPTY	0x08U
#define DO_MAP		0x10U
#define DO_FORK		0x20U
#define DO_LOCK		0x40U

static const struct op {
	const char *name;
	void (*run)(struct actor *actor);
	unsigned int group;
	unsigned int weight;
	bool alone;		/* nobody else may use the area meanwhile */
	bool own;		/* nor the granules */
	bool private;
	bool shared;
} ops[] = {
	{ "read", op_read, DO_ACCESS, 30 },
	{ "poke", op_poke, DO_ACCESS, 60 },
	{ "fill", op_fill, DO_ACCESS, 20 },
	{ "check", op_check, DO_ACCESS, 8 },
	{ "look", op_look, DO_ACCESS, 20 },
	{ "pipe", op_pipe, DO_ACCESS, 6 },
	{ "advise", op_advise, DO_ADVISE, 20 },
	{ "mlock", op_mlock, DO_LOCK, 4 },
	{ "clear_refs", op_clear_refs, DO_ADVISE, 2 },
	{ "sched_setaffinity", op_cpu, DO_ADVISE, 2 },
	{ "move_pages", op_move_pages, DO_NUMA, 30 },
	{ "mbind", op_mbind, DO_NUMA, 10 },
	{ "MADV_DONTNEED", op_dontneed, DO_EMPTY, 8, .own = true },
	{ "MADV_FREE", op_free, DO_EMPTY, 6, .own = true, .private = true },
	{ "MADV_REMOVE", op_remove, DO_EMPTY, 6, .own = true, .shared = true },
	{ "mmap", op_mmap, DO_MAP, 8, .alone = true, .private = true },
	{ "mprotect", op_mprotect, DO_MAP, 15, .alone = true },
	{ "guard", op_guard, DO_MAP, 5, .alone = true, .private = true },
	{ "mremap", op_mremap, DO_MAP, 12, .alone = true },
	{ "exchange", op_exchange, DO_MAP, 8, .alone = true },
	{ "fork", op_fork, DO_FORK, 12 },
};

static bool may_do(const struct actor *actor, const struct op *op)
{
	const struct area *area = actor->area;

	if (!(op->group & actor->groups))
		return false;
	/* Of what is shared, children get pages that must not have owners yet. */
	if (op->group == DO_FORK && (actor->depth >= MAX_DEPTH || (area->shared && actor->nr > 1)))
		return false;
	if ((op->private && area->shared) || (op->shared && !area->shared))
		return false;
	return actor->nr == 1 || (!op->alone && (!op->own || actor->by_granule));
}

static const struct op *draw_op(struct actor *actor)
{
	unsigned long i, pos, total = 0;

	for (i = 0; i < ARRAY_SIZE(ops); i++) {
		if (may_do(actor, ops + i))
			total += ops[i].weight;
	}
	pos = draw(actor, total);
	for (i = 0; ; i++) {
		if (!may_do(actor, ops + i))
			continue;
		if (pos < ops[i].weight)
			return ops + i;
		pos -= ops[i].weight;
	}
}

static bool goes_on(const struct actor *actor)
{
	return !load(&shared->stop) && now() < actor->deadline;
}

static void act(struct actor *actor)
{
	const struct op *op;
	unsigned long i;

	for (i = 0; i < actor->limit && goes_on(actor); i++) {
		op = draw_op(actor);
		begin(op->name);
		op->run(actor);
		count(&self->ops, 1);
	}
}

static void *thread_main(void *arg)
{
	act(arg);
	return NULL;
}

/* Several threads act on one area. The first of them may fork, too. */
static void act_in_threads(struct actor *actor, unsigned int nr)
{
	struct actor actors[MAX_THREADS];
	pthread_t threads[MAX_THREADS];
	bool by_granule = one_in(actor, 2);
	unsigned int i;

	for (i = 0; i < nr; i++) {
		actors[i] = *actor;
		actors[i].id = i;
		actors[i].nr = nr;
		actors[i].by_granule = by_granule;
		actors[i].rng = mix(actor->rng + i);
		if (i)
			actors[i].groups &= ~DO_FORK;
		errno = pthread_create(threads + i, NULL, thread_main, actors + i);
		if (errno)
			must_work(-1, "pthread_create");
	}
	for (i = 0; i < nr; i++)
		pthread_join(threads[i], NULL);
	actor->rng = actors[0].rng;
}

/* Of a round that is over, all is compared; nothing else is at work on it. */
static void check_round(struct actor *actor)
{
	begin("the end of a round");
	look_all(actor);
	check_all(actor);
	look_all(actor);
}

static void area_round(struct actor *actor, unsigned long nr, unsigned int threads,
		       unsigned int groups)
{
	enum granule_kind kind = one_in(actor, 3) ? GRANULE_DEFAULT : GRANULE_CONTRACT;
	struct area area;

	area_create(actor, &area, kind, one_in(actor, 4), nr);
	/* Memory that is tagged by default may be cut. */
	if (kind == GRANULE_DEFAULT)
		area.strict = !(groups & DO_MAP) && one_in(actor, 2);
	actor->groups = groups;
	if (threads > 1)
		act_in_threads(actor, threads);
	else
		act(actor);
	check_round(actor);
	area_destroy(&area);
}

static void fork_round(struct actor *actor)
{
	area_round(actor, AREA_GRANULES, 1 + draw(actor, 2),
		   DO_ACCESS | DO_ADVISE | DO_LOCK | DO_EMPTY | DO_FORK);
}

static void map_round(struct actor *actor)
{
	area_round(actor, AREA_GRANULES, 1,
		   DO_ACCESS | DO_ADVISE | DO_LOCK | DO_NUMA | DO_EMPTY | DO_MAP | DO_FORK);
}

static void swap_round(struct actor *actor)
{
	area_round(actor, SWAP_GRANULES, 3, DO_ACCESS | DO_ADVISE | DO_NUMA | DO_EMPTY);
}

static void numa_round(struct actor *actor)
{
	area_round(actor, AREA_GRANULES, 1 + draw(actor, 3),
		   DO_ACCESS | DO_ADVISE | DO_LOCK | DO_NUMA | DO_FORK);
}

static void repair_round(struct actor *actor)
{
	area_round(actor, AREA_GRANULES, 1 + draw(actor, 3), DO_ACCESS | DO_EMPTY | DO_FORK);
}

#define CGROUP_REMEDY \
	"no memory limit: mount cgroup2, with memory in cgroup.subtree_control"

static const char *no_cgroup(void)
{
	return *shared->workers[0].cgroup ? NULL : CGROUP_REMEDY;
}

static const char *no_swap(void)
{
	char text[512];

	/* Without any there is only a line of headings. */
	if (read_file("/proc/swaps", text, sizeof(text)) <= 0 || !strstr(text, "\n/"))
		return "no swap: swapon a device";
	return no_cgroup();
}

static const char *one_node(void)
{
	return nr_nodes < 2 ? "one NUMA node: boot with two" : NULL;
}

static const char *no_fail(void)
{
	return have_fail ? NULL : GRANULE_FAIL_REMEDY;
}

/* Another process writes to memory, part of which its owner may only read. */

#define PEER_RW(area)	(area_pages(area) / 2 / GRANULE_NR_PAGES * GRANULE_NR_PAGES)

struct peer {
	pid_t pid;
	int mem;		/* /proc/PID/mem */
	bool *done;		/* shared: nothing more will be written */
};

/* The owner: writes to pages of its own, in the half that it may write to. */
static void __noreturn run_owner(struct actor *actor, struct peer *peer, pid_t parent)
{
	struct area *area = actor->area;
	struct area half = *area;
	unsigned long page;

	become_child(actor, parent);
	actor->groups = DO_ACCESS | DO_ADVISE | DO_LOCK;
	actor->limit = 1;
	half.nr = PEER_RW(area) / GRANULE_NR_PAGES;
	while (!load(peer->done)) {
		if (!goes_on(actor)) {
			usleep(1000);
			continue;
		}
		actor->area = &half;
		act(actor);
		actor->area = area;
		page = own_page(actor);
		check_page(area, page);
		look(actor, page / GRANULE_NR_PAGES);
		if (one_in(actor, 32))
			worked(madvise(area->base, area_len(area), MADV_PAGEOUT),
			       "MADV_PAGEOUT");
	}
	actor->nr = 1;
	actor->id = 0;
	check_round(actor);
	_exit(KSFT_PASS);
}

static void peer_ended(struct peer *peer, int status)
{
	peer->pid = 0;
	if (WIFEXITED(status) && WEXITSTATUS(status) == EXIT_SHORT)
		give_up();
	if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL && was_oom())
		give_up();
	if (WIFSIGNALED(status))
		fail("the owner of the memory: %s", strsignal(WTERMSIG(status)));
	if (WEXITSTATUS(status) || !load(peer->done))
		_exit(KSFT_FAIL);
}

/*
 * Pass on the signals that the owner gets. Returns true if it stopped as it was
 * told to, and false if it has ended or, without @wait, if there is nothing more.
 */
static bool peer_wait(struct peer *peer, bool wait)
{
	int status;
	pid_t pid;

	for (;;) {
		pid = waitpid(peer->pid, &status, __WALL | (wait ? 0 : WNOHANG));
		if (pid < 0 && errno == EINTR)
			continue;
		if (pid <= 0)
			return false;
		if (!WIFSTOPPED(status)) {
			peer_ended(peer, status);
			return false;
		}
		if (status >> 16 == PTRACE_EVENT_STOP)
			return true;
		ptrace(PTRACE_CONT, peer->pid, NULL, WSTOPSIG(status));
	}
}

static bool peer_stop(struct peer *peer)
{
	return !ptrace(PTRACE_INTERRUPT, peer->pid, NULL, NULL) && peer_wait(peer, true);
}

static void peer_failed(struct peer *peer, const char *what, const void *addr, long ret)
{
	int error = errno;

	/* Memory was short for the owner: it is killed, or will be. */
	usleep(100 * 1000);
	peer_wait(peer, false);
	if (!peer->pid || was_oom() || is_short(error))
		give_up();
	fail("%s at %p: returned %ld, %s", what, addr, ret, strerror(error));
}

/* One word or a page by /proc/PID/mem, which writes to what is read-only as well. */
static void peer_write_mem(struct actor *actor, struct peer *peer, unsigned long page)
{
	struct page_model *model = actor->area->model + page, next = *model;
	char *addr = page_addr(actor->area, page), copy[BASE_SIZE];
	size_t len = sizeof(uint64_t), off = STAMP_WORD * len;
	ssize_t ret;

	if (one_in(actor, 2)) {
		next.stamp++;
	} else {
		next.key = new_key(actor);
		next.stamp = 0;
		len = BASE_SIZE;
		off = 0;
	}
	model_write(&next, copy);
	ret = pwrite(peer->mem, copy + off, len, (uintptr_t)addr + off);
	if (ret != (ssize_t)len)
		peer_failed(peer, "write to /proc/PID/mem", addr, ret);
	*model = next;
}

static void peer_poke(struct actor *actor, struct peer *peer, unsigned long page)
{
	struct page_model *model = actor->area->model + page;
	struct page_model next = { model->key, model->stamp + 1 };
	char *addr = page_addr(actor->area, page) + STAMP_WORD * sizeof(uint64_t);

	if (!peer_stop(peer))
		return;
	if (ptrace(PTRACE_POKEDATA, peer->pid, addr, model_word(&next, STAMP_WORD)))
		peer_failed(peer, "PTRACE_POKEDATA", addr, -1);
	*model = next;
	ptrace(PTRACE_CONT, peer->pid, NULL, NULL);
}

static void peer_writev(struct actor *actor, struct peer *peer, unsigned long page)
{
	struct page_model next = { new_key(actor), 0 };
	char *addr = page_addr(actor->area, page), copy[BASE_SIZE];
	struct iovec from = { copy, BASE_SIZE }, to = { addr, BASE_SIZE };
	ssize_t ret;

	model_write(&next, copy);
	ret = process_vm_writev(peer->pid, &from, 1, &to, 1, 0);
	if (ret != BASE_SIZE)
		peer_failed(peer, "process_vm_writev", addr, ret);
	actor->area->model[page] = next;
}

static void peer_read(struct actor *actor, struct peer *peer, unsigned long page)
{
	char *addr = page_addr(actor->area, page), copy[BASE_SIZE];
	struct iovec to = { copy, BASE_SIZE }, from = { addr, BASE_SIZE };
	ssize_t ret;

	if (one_in(actor, 2))
		ret = process_vm_readv(peer->pid, &to, 1, &from, 1, 0);
	else
		ret = pread(peer->mem, copy, BASE_SIZE, (uintptr_t)addr);
	if (ret != BASE_SIZE)
		peer_failed(peer, "read of another process", addr, ret);
	check_copy(actor->area, page, copy);
}

static void peer_act(struct actor *actor, struct peer *peer)
{
	unsigned long page = own_page(actor);

	switch (draw(actor, 5)) {
	case 0:
		begin("PTRACE_POKEDATA");
		peer_poke(actor, peer, page);
		break;
	case 1:
		begin("process_vm_writev");
		if (page < PEER_RW(actor->area))
			peer_writev(actor, peer, page);
		break;
	case 2:
		begin("write to /proc/PID/mem");
		peer_write_mem(actor, peer, page);
		break;
	default:
		begin("read of another process");
		peer_read(actor, peer, page);
	}
	peer_wait(peer, false);
	count(&self->ops, 1);
	count(&self->done, 1);
}

/* The model of all pages is to be seen by both; each writes to its own pages. */
static void share_model(struct area *area)
{
	const size_t len = area_pages(area) * sizeof(*area->model);

	must_work(munmap(area->model, len), "munmap");
	area->model = mmap(NULL, len, PROT_RW, MAP_SHARED | MAP_ANONYMOUS | MAP_GRANULE_4KB,
			   -1, 0);
	if (area->model == MAP_FAILED)
		must_work(-1, "mmap");
}

static void ptrace_round(struct actor *actor)
{
	enum granule_kind kind = one_in(actor, 3) ? GRANULE_DEFAULT : GRANULE_CONTRACT;
	const pid_t parent = getpid();
	struct peer peer = {};
	struct area area;
	char path[64];
	unsigned long i;

	area_create(actor, &area, kind, false, AREA_GRANULES);
	share_model(&area);
	peer.done = mmap(NULL, sizeof(*peer.done), PROT_RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (peer.done == MAP_FAILED)
		must_work(-1, "mmap");
	for (i = 0; i < area_pages(&area); i++) {
		actor->area->model[i].key = one_in(actor, 4) ? 0 : new_key(actor);
		if (area.model[i].key)
			model_write(area.model + i, page_addr(&area, i));
	}
	must_work(mprotect(page_addr(&area, PEER_RW(&area)),
			   (area_pages(&area) - PEER_RW(&area)) * BASE_SIZE, PROT_READ),
		  "mprotect");
	actor->nr = 2;
	actor->by_granule = one_in(actor, 2);
	actor->id = 1;
	peer.pid = fork();
	if (!peer.pid)
		run_owner(actor, &peer, parent);
	must_work(peer.pid < 0 ? -1 : 0, "fork");
	actor->id = 0;
	snprintf(path, sizeof(path), "/proc/%d/mem", peer.pid);
	peer.mem = open(path, O_RDWR | O_CLOEXEC);
	if (peer.mem < 0 || ptrace(PTRACE_SEIZE, peer.pid, NULL, NULL))
		peer_failed(&peer, "PTRACE_SEIZE", NULL, -1);

	for (i = 0; i < actor->limit && goes_on(actor); i++)
		peer_act(actor, &peer);
	/* The owner then compares all of it, and ends. */
	store(peer.done, true);
	while (peer.pid) {
		if (peer_wait(&peer, true))
			ptrace(PTRACE_CONT, peer.pid, NULL, NULL);
	}
	close(peer.mem);
	must_work(munmap(peer.done, sizeof(*peer.done)), "munmap");
	actor->nr = 1;
	area_destroy(&area);
}

/*
 * userfaultfd. What is missing is filled by a thread, from the model: a granule a
 * time in contract memory, a page a time in memory that is tagged by default. It
 * must not be asked for what nobody has given back: that would have been lost.
 */
struct filler {
	struct actor actor;
	struct area *area;
	int uffd;
	int end[2];		/* a pipe; closed when it is time to end */
	bool *gone;		/* of each page: given back, and not filled since */
	char *src;		/* a granule that UFFDIO_MOVE takes away */
	char *copy;
};

static int uffd_open(void)
{
	struct uffdio_api api = {
		.api = UFFD_API,
		.features = UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_MOVE,
	};
	int fd = syscall(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	if (fd >= 0 && ioctl(fd, UFFDIO_API, &api)) {
		close(fd);
		return -1;
	}
	return fd;
}

static const char *no_uffd(void)
{
	int fd = uffd_open();

	if (fd < 0)
		return "no userfaultfd: build the kernel with CONFIG_USERFAULTFD=y";
	close(fd);
	return NULL;
}

static void uffd_wake(struct filler *filler, char *addr, size_t len)
{
	struct uffdio_range range = { (uintptr_t)addr, len };

	if (ioctl(filler->uffd, UFFDIO_WAKE, &range))
		fail("UFFDIO_WAKE: %s", strerror(errno));
}

static bool fill_by_copy(struct filler *filler, char *addr, size_t len)
{
	struct uffdio_copy arg = {
		.dst = (uintptr_t)addr, .src = (uintptr_t)filler->copy, .len = len,
		.mode = UFFDIO_COPY_MODE_DONTWAKE,
	};

	return !ioctl(filler->uffd, UFFDIO_COPY, &arg);
}

static bool fill_by_zeropage(struct filler *filler, char *addr, size_t len)
{
	struct uffdio_zeropage arg = {
		.range = { (uintptr_t)addr, len },
		.mode = UFFDIO_ZEROPAGE_MODE_DONTWAKE,
	};

	return !ioctl(filler->uffd, UFFDIO_ZEROPAGE, &arg);
}

static bool fill_by_move(struct filler *filler, char *addr, size_t len)
{
	struct uffdio_move arg = {
		.dst = (uintptr_t)addr, .src = (uintptr_t)filler->src, .len = len,
		.mode = UFFDIO_MOVE_MODE_DONTWAKE,
	};

	memcpy(filler->src, filler->copy, len);
	if (one_in(&filler->actor, 4))
		worked(madvise(filler->src, GRANULE_SIZE, MADV_PAGEOUT), "MADV_PAGEOUT");
	return !ioctl(filler->uffd, UFFDIO_MOVE, &arg);
}

/* One attempt. What was done in part cannot be resumed inside a granule. */
static bool try_fill(struct filler *filler, unsigned long page, unsigned long nr)
{
	const struct page_model *model = filler->area->model + page;
	char *addr = page_addr(filler->area, page);
	const size_t len = nr * BASE_SIZE;
	bool zero = true, filled;
	const char *what;
	unsigned long i;

	for (i = 0; i < nr; i++) {
		zero = zero && !model[i].key && !model[i].stamp;
		model_write(model + i, filler->copy + i * BASE_SIZE);
	}
	if (zero && one_in(&filler->actor, 2)) {
		what = "UFFDIO_ZEROPAGE";
		filled = fill_by_zeropage(filler, addr, len);
	} else if (one_in(&filler->actor, 2)) {
		what = "UFFDIO_MOVE";
		filled = fill_by_move(filler, addr, len);
	} else {
		what = "UFFDIO_COPY";
		filled = fill_by_copy(filler, addr, len);
	}
	if (filled)
		return true;
	/* A page of the source is in use; or both calls have met memory pressure. */
	if (errno != EBUSY && !is_short(errno))
		fail("%s of %zu bytes to %p: %s", what, len, addr, strerror(errno));
	count(&self->refused, 1);
	must_work(madvise(addr, len, MADV_DONTNEED), "MADV_DONTNEED");
	return false;
}

static void fill_missing(struct filler *filler, unsigned long page, unsigned long nr)
{
	unsigned long i;

	for (i = 0; i < nr; i++) {
		if (!load(filler->gone + page + i))
			fail("page %lu at %p is missing: it was never given back", page + i,
			     page_addr(filler->area, page + i));
	}
	while (!try_fill(filler, page, nr))
		usleep(1000);
	for (i = 0; i < nr; i++)
		store(filler->gone + page + i, false);
	count(&self->done, 1);
}

static void uffd_protect(struct filler *filler, char *addr, size_t len, bool on)
{
	struct uffdio_writeprotect arg = {
		.range = { (uintptr_t)addr, len },
		.mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0,
	};

	while (ioctl(filler->uffd, UFFDIO_WRITEPROTECT, &arg)) {
		if (!is_short(errno))
			fail("UFFDIO_WRITEPROTECT at %p: %s", addr, strerror(errno));
		usleep(1000);
	}
}

static void *filler_main(void *arg)
{
	struct filler *filler = arg;
	struct area *area = filler->area;
	unsigned long unit, page;
	struct uffd_msg msg;

	for (;;) {
		struct pollfd fds[2] = {
			{ .fd = filler->uffd, .events = POLLIN },
			{ .fd = filler->end[0], .events = POLLIN },
		};

		if (poll(fds, 2, -1) < 0 && errno != EINTR)
			fail("poll: %s", strerror(errno));
		if (!(fds[0].revents & POLLIN)) {
			if (fds[1].revents)
				return NULL;
			continue;
		}
		if (read(filler->uffd, &msg, sizeof(msg)) != sizeof(msg))
			continue;
		if (msg.event != UFFD_EVENT_PAGEFAULT)
			fail("event %#x of userfaultfd", msg.event);
		unit = area->kind == GRANULE_CONTRACT ? GRANULE_NR_PAGES : 1;
		page = (msg.arg.pagefault.address - (uintptr_t)area->base) / BASE_SIZE;
		page -= page % unit;
		if (msg.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP)
			uffd_protect(filler, page_addr(area, page), unit * BASE_SIZE, false);
		else
			fill_missing(filler, page, unit);
		uffd_wake(filler, page_addr(area, page), unit * BASE_SIZE);
	}
}

/* Give back, by granules or pages; what is to be there next is in the model. */
static void uffd_give_back(struct actor *actor, struct filler *filler)
{
	struct range range = any_range(actor);
	struct area *area = actor->area;
	unsigned long i;
	bool zero = one_in(actor, 3);

	must_work(madvise(range_addr(area, &range), range_len(&range), MADV_DONTNEED),
		  "MADV_DONTNEED");
	for (i = range.first; i < range.first + range.nr; i++) {
		area->model[i].key = zero ? 0 : new_key(actor);
		area->model[i].stamp = 0;
		store(filler->gone + i, true);
	}
}

struct toucher {
	struct actor actor;
	struct filler *filler;
};

static void *toucher_main(void *arg)
{
	struct toucher *toucher = arg;
	struct actor *actor = &toucher->actor;
	struct range range;
	unsigned long i;

	for (i = 0; i < actor->limit && goes_on(actor); i++) {
		begin("an access that userfaultfd handles");
		if (one_in(actor, 16)) {
			uffd_give_back(actor, toucher->filler);
		} else if (one_in(actor, 16)) {
			range = any_range(actor);
			uffd_protect(toucher->filler, range_addr(actor->area, &range),
				     range_len(&range), true);
		} else {
			draw_op(actor)->run(actor);
		}
		count(&self->ops, 1);
	}
	return NULL;
}

/*
 * A granule to move from. Contract memory moves by granules only; it can be had
 * unless granules are switched off for the moment.
 */
static char *map_source(struct actor *actor, enum granule_kind kind)
{
	char *src = MAP_FAILED;

	if (kind == GRANULE_CONTRACT && one_in(actor, 2))
		src = granule_mmap(GRANULE_CONTRACT, NULL, GRANULE_SIZE, PROT_RW, 0);
	if (src == MAP_FAILED)
		src = granule_mmap(GRANULE_UNTAGGED, NULL, GRANULE_SIZE, PROT_RW, 0);
	return src;
}

static void uffd_round(struct actor *actor)
{
	enum granule_kind kind = one_in(actor, 3) ? GRANULE_DEFAULT : GRANULE_CONTRACT;
	unsigned int nr = 1 + draw(actor, MAX_THREADS), i;
	struct toucher touchers[MAX_THREADS];
	pthread_t threads[MAX_THREADS], thread;
	struct filler filler = {};
	struct area area;

	area_create(actor, &area, kind, false, AREA_GRANULES);
	area.strict = kind == GRANULE_CONTRACT;
	filler.area = &area;
	filler.actor = *actor;
	filler.uffd = uffd_open();
	filler.gone = malloc(area_pages(&area));
	filler.copy = malloc(GRANULE_SIZE);
	filler.src = map_source(actor, kind);
	if (filler.uffd < 0 || !filler.gone || !filler.copy || filler.src == MAP_FAILED ||
	    pipe(filler.end))
		must_work(-1, "userfaultfd");
	memset(filler.gone, true, area_pages(&area));
	if (uffd_register(filler.uffd, area.base, area_len(&area), true, true, false))
		must_work(-1, "UFFDIO_REGISTER");
	errno = pthread_create(&thread, NULL, filler_main, &filler);
	if (errno)
		must_work(-1, "pthread_create");

	for (i = 0; i < nr; i++) {
		touchers[i].filler = &filler;
		touchers[i].actor = *actor;
		touchers[i].actor.groups = DO_ACCESS | DO_ADVISE | DO_NUMA;
		touchers[i].actor.id = i;
		touchers[i].actor.nr = nr;
		touchers[i].actor.by_granule = true;
		touchers[i].actor.rng = mix(actor->rng + i);
		errno = pthread_create(threads + i, NULL, toucher_main, touchers + i);
		if (errno)
			must_work(-1, "pthread_create");
	}
	for (i = 0; i < nr; i++)
		pthread_join(threads[i], NULL);
	actor->rng = touchers[0].actor.rng;
	check_round(actor);
	close(filler.end[1]);
	pthread_join(thread, NULL);
	close(filler.end[0]);
	close(filler.uffd);
	must_work(munmap(filler.src, GRANULE_SIZE), "munmap");
	free(filler.copy);
	free(filler.gone);
	area_destroy(&area);
}

/*
 * Pins. What gup_test has pinned, and what is in a pipe by vmsplice(), must stay
 * what the process sees, over forks and all else. Another thread has a disk read
 * to and write from pages of its own meanwhile.
 */
#define MAX_PINNED	(3 * GRANULE_NR_PAGES)
#define DISK_BLOCKS	256UL	/* of a base page */

static const char *no_pins(void)
{
	return access(GUP_TEST, R_OK | W_OK) ?
	       "no " GUP_TEST ": set CONFIG_GUP_TEST=y, mount debugfs" : NULL;
}

static void pin_compare(struct actor *actor, int gup, const struct range *range)
{
	static char copies[MAX_PINNED * BASE_SIZE];
	__u64 to = (uintptr_t)copies;
	unsigned long i;

	begin("read of what is pinned");
	must_work(ioctl(gup, PIN_LONGTERM_TEST_READ, &to), "PIN_LONGTERM_TEST_READ");
	for (i = 0; i < range->nr; i++) {
		if (owns(actor, range->first + i))
			check_copy(actor->area, range->first + i, copies + i * BASE_SIZE);
	}
}

static void pin_long(struct actor *actor, int gup)
{
	struct pin_longterm_test args;
	struct range range;
	unsigned long page;
	unsigned int i;

	range.nr = 1 + draw(actor, MAX_PINNED);
	range.first = draw(actor, area_pages(actor->area) - range.nr);
	args.addr = (uintptr_t)range_addr(actor->area, &range);
	args.size = range_len(&range);
	args.flags = (one_in(actor, 2) ? PIN_LONGTERM_TEST_FLAG_USE_WRITE : 0) |
		     (one_in(actor, 2) ? PIN_LONGTERM_TEST_FLAG_USE_FAST : 0);
	begin("pin");
	if (!worked(ioctl(gup, PIN_LONGTERM_TEST_START, &args), "PIN_LONGTERM_TEST_START"))
		return;
	for (i = 0; i < 6; i++) {
		page = range.first + draw(actor, range.nr);
		if (owns(actor, page))
			poke(actor->area, page, page_addr(actor->area, page));
		act(actor);
		pin_compare(actor, gup, &range);
	}
	begin("unpin");
	must_work(ioctl(gup, PIN_LONGTERM_TEST_STOP), "PIN_LONGTERM_TEST_STOP");
	count(&self->done, 1);
}

/* A child that writes to what is a copy of the page from then on. */
static void fork_writer(struct actor *actor, unsigned long page)
{
	const pid_t parent = getpid();
	struct actor child = *actor;
	pid_t pid = fork();

	if (!pid) {
		become_child(&child, parent);
		poke(child.area, page, page_addr(child.area, page));
		check_page(child.area, page);
		_exit(KSFT_PASS);
	}
	if (worked(pid < 0 ? -1 : 0, "fork"))
		reap(pid);
}

/* Nobody writes to the page while it is in the pipe, but a child to its own. */
static void pin_splice(struct actor *actor)
{
	const unsigned long page = own_page(actor);
	char copy[BASE_SIZE], *addr = page_addr(actor->area, page);
	struct iovec iov = { addr, BASE_SIZE };
	int fds[2];

	begin("vmsplice");
	if (!worked(pipe(fds), "pipe"))
		return;
	if (vmsplice(fds[1], &iov, 1, 0) == BASE_SIZE) {
		fork_writer(actor, page);
		op_advise(actor);
		if (read(fds[0], copy, BASE_SIZE) == BASE_SIZE)
			check_copy(actor->area, page, copy);
		else
			worked(-1, "read from a pipe");
	} else {
		worked(-1, "vmsplice");
	}
	close(fds[0]);
	close(fds[1]);
}

struct disk {
	struct actor actor;
	int fd;
	struct page_model blocks[DISK_BLOCKS];
	bool known[DISK_BLOCKS];	/* written, without an error */
};

/* Writes may fail because memory is short for the compressed disk. */
static void disk_transfer(struct disk *disk)
{
	struct actor *actor = &disk->actor;
	struct area *area = actor->area;
	const unsigned long page = own_page(actor), block = draw(actor, DISK_BLOCKS);
	char *addr = page_addr(area, page);
	ssize_t ret;

	if (one_in(actor, 2) || !disk->known[block]) {
		begin("direct write");
		ret = pwrite(disk->fd, addr, BASE_SIZE, block * BASE_SIZE);
		disk->known[block] = ret == BASE_SIZE;
		disk->blocks[block] = area->model[page];
		if (ret != BASE_SIZE && errno != EIO)
			worked(-1, "direct write");
		return;
	}
	begin("direct read");
	ret = pread(disk->fd, addr, BASE_SIZE, block * BASE_SIZE);
	if (ret != BASE_SIZE)
		must_work(-1, "direct read");
	area->model[page] = disk->blocks[block];
	check_page(area, page);
}

static void *disk_main(void *arg)
{
	struct disk *disk = arg;
	unsigned long i;

	for (i = 0; i < disk->actor.limit && goes_on(&disk->actor); i++)
		disk_transfer(disk);
	return NULL;
}

static void pin_round(struct actor *actor)
{
	enum granule_kind kind = one_in(actor, 3) ? GRANULE_DEFAULT : GRANULE_CONTRACT;
	static struct disk disk;
	struct area area;
	pthread_t thread;
	unsigned int i;
	int gup;

	area_create(actor, &area, kind, false, AREA_GRANULES);
	gup = open(GUP_TEST, O_RDWR | O_CLOEXEC);
	if (gup < 0)
		must_work(-1, "open " GUP_TEST);
	actor->groups = DO_ACCESS | DO_ADVISE | DO_LOCK | DO_NUMA | DO_FORK;
	actor->limit = 8;
	disk.fd = *disk_dev ? open(disk_dev, O_RDWR | O_DIRECT | O_CLOEXEC) : -1;
	if (disk.fd >= 0) {
		actor->nr = 2;
		disk.actor = *actor;
		disk.actor.id = 1;
		disk.actor.rng = mix(actor->rng);
		disk.actor.limit = ROUND_OPS;
		errno = pthread_create(&thread, NULL, disk_main, &disk);
		if (errno)
			must_work(-1, "pthread_create");
	}
	for (i = 0; i < ROUND_OPS / 40 && goes_on(actor); i++) {
		pin_long(actor, gup);
		pin_splice(actor);
	}
	if (disk.fd >= 0) {
		pthread_join(thread, NULL);
		close(disk.fd);
		actor->nr = 1;
	}
	close(gup);
	check_round(actor);
	area_destroy(&area);
}

/* Workers that disturb the others. */

static void must_write(const char *path, const char *text)
{
	int ret = granule_write(path, text);

	if (ret && ret != -ENOENT && ret != -EINTR && !is_short(-ret))
		fail("write of \"%s\" to %s: %s", text, path, strerror(-ret));
	if (ret)
		count(&self->refused, 1);
	else
		count(&self->done, 1);
}

static void reclaim_some(struct actor *actor)
{
	const struct worker *worker = shared->workers + draw(actor, nr_workers);
	char text[64];

	if (!*worker->cgroup)
		return;
	snprintf(text, sizeof(text), "%luK", 64 * (1 + draw(actor, 64)));
	/* Fails with EAGAIN if there was less to be had. */
	if (granule_cg_write(worker->cgroup, "memory.reclaim", text))
		count(&self->refused, 1);
}

static void compaction_round(struct actor *actor)
{
	char text[8];

	switch (draw(actor, 6)) {
	case 0:
		begin("compact_memory");
		must_write("/proc/sys/vm/compact_memory", "1");
		break;
	case 1:
		begin("drop_caches");
		snprintf(text, sizeof(text), "%lu", 1 + draw(actor, 3));
		must_write("/proc/sys/vm/drop_caches", text);
		break;
	default:
		begin("memory.reclaim");
		reclaim_some(actor);
	}
	count(&self->ops, 1);
	usleep(draw(actor, 300) * 1000);
}

static bool read_block(unsigned long block, const char *name, char *text, size_t size)
{
	char path[PATH_MAX];

	snprintf(path, sizeof(path), MEMORY_BLOCKS "/memory%lu/%s", block, name);
	return read_file(path, text, size) > 0;
}

/* Memory that the kernel does not use for itself can be taken offline. */
static bool block_movable(unsigned long block)
{
	char text[128];

	return read_block(block, "valid_zones", text, sizeof(text)) &&
	       !strncmp(text, "Movable", strlen("Movable"));
}

/* How many such blocks are online, and the number of one of them. */
static unsigned long count_blocks(unsigned long want, unsigned long *found)
{
	unsigned long block, nr = 0;
	struct dirent *entry;
	DIR *dir;

	dir = opendir(MEMORY_BLOCKS);
	if (!dir)
		return 0;
	while ((entry = readdir(dir))) {
		if (sscanf(entry->d_name, "memory%lu", &block) != 1 || !block_movable(block))
			continue;
		if (nr++ == want)
			*found = block;
	}
	closedir(dir);
	return nr;
}

static const char *no_blocks(void)
{
	unsigned long block;

	return count_blocks(0, &block) ? NULL :
	       "no memory that can be taken offline: add some, and online it as movable";
}

/* Waits for ever for what is in use; the alarm of the caller ends that. */
static int set_block(unsigned long block, const char *state)
{
	char path[PATH_MAX];
	int ret;

	snprintf(path, sizeof(path), MEMORY_BLOCKS "/memory%lu/state", block);
	alarm(10);
	ret = granule_write(path, state);
	alarm(0);
	return ret;
}

static void hotplug_round(struct actor *actor)
{
	unsigned long block, nr;
	int ret;

	nr = count_blocks(0, &block);
	if (!nr)
		fail("there is no memory left in the movable zone");
	count_blocks(draw(actor, nr), &block);
	begin("offline");
	ret = set_block(block, "offline");
	count(&self->ops, 1);
	if (ret) {
		if (ret != -EBUSY && ret != -EINTR && !is_short(-ret))
			fail("offline of memory%lu: %s", block, strerror(-ret));
		count(&self->refused, 1);
	} else {
		usleep(draw(actor, 500) * 1000);
		begin("online");
		/* Adding needs memory, too. */
		while ((ret = set_block(block, "online_movable"))) {
			if (ret != -EINTR && !is_short(-ret))
				fail("online of memory%lu: %s", block, strerror(-ret));
			usleep(10 * 1000);
		}
		count(&self->done, 1);
	}
	usleep(draw(actor, 1000) * 1000);
}

static void settings_round(struct actor *actor)
{
	static const char * const shmem[] = { "never", "advise", "always", "within_size" };
	static const char * const lru[] = { "0", "1", "7" };

	switch (draw(actor, 6)) {
	case 0:
		begin("page_granule/enabled");
		must_write(GRANULE_SYSFS "enabled", "0");
		usleep(draw(actor, 20) * 1000);
		must_write(GRANULE_SYSFS "enabled", "1");
		break;
	case 1:
		begin("transparent_hugepage/enabled");
		if (one_in(actor, 2))
			granule_thp_never();
		else
			granule_thp_order(2 + draw(actor, 8));
		break;
	case 2:
		begin("transparent_hugepage/shmem_enabled");
		must_write("/sys/kernel/mm/transparent_hugepage/shmem_enabled",
			   shmem[draw(actor, ARRAY_SIZE(shmem))]);
		break;
	case 3:
		begin("zswap/parameters/enabled");
		must_write("/sys/module/zswap/parameters/enabled", one_in(actor, 2) ? "Y" : "N");
		break;
	case 4:
		begin("ksm/run");
		must_write("/sys/kernel/mm/ksm/run", one_in(actor, 2) ? "1" : "0");
		break;
	default:
		/* The other LRU: all pages change lists. */
		if (!one_in(actor, 8))
			break;
		begin("lru_gen/enabled");
		must_write("/sys/kernel/mm/lru_gen/enabled", lru[draw(actor, ARRAY_SIZE(lru))]);
	}
	count(&self->ops, 1);
	usleep(draw(actor, 200) * 1000);
}

static const char *no_swap_dev(void)
{
	return *swap_dev ? no_swap() :
	       "no swap device to take away: set CONFIG_ZRAM=y, and swapon another one";
}

/* There is other swap for what does not fit into the memory cgroups. */
static void swapoff_round(struct actor *actor)
{
	begin("swapon");
	if (swapon(swap_dev, SWAP_FLAG_PREFER | 100))
		must_work(-1, "swapon");
	usleep(draw(actor, 2000) * 1000);
	begin("swapoff");
	alarm(60);
	while (swapoff(swap_dev)) {
		if (errno != EINTR)
			worked(-1, "swapoff");
		count(&self->refused, 1);
		alarm(60);
	}
	alarm(0);
	count(&self->ops, 1);
	count(&self->done, 1);
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

/* What main() does. */

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
	{ "/sys/kernel/mm/ksm/run", NULL },
	{ "/sys/kernel/mm/lru_gen/enabled", NULL },
	{ "/sys/kernel/mm/ksm/sleep_millisecs", "50" },
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

static char cgroup[PATH_MAX - 64];	/* that has all others in it, or "" */

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
	/* What it had started is to end, too. */
	kill(-worker->pid, SIGKILL);
	worker->pid = 0;
	if (WIFEXITED(status) && WEXITSTATUS(status) == EXIT_SHORT) {
		worker->killed++;
	} else if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL && oom_kills(worker)) {
		worker->killed++;
	} else if (status) {
		ksft_print_msg("%s.%u seed %#lx ended with status %#x in: %s\n",
			       worker->kind->name, worker->nr, (unsigned long)worker->seed,
			       status, worker->op);
		worker->failed = true;
	}
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

/* A worker that does nothing for minutes is stuck in the kernel, or waits for ever. */
static void watch(struct worker *worker)
{
	static const char * const files[] = { "stat", "stack" };
	/* The comparing at the end of a round is one operation, and may thrash. */
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
	ksft_print_msg("FAIL %s.%u seed %#lx pid %d hangs in: %s\n", worker->kind->name,
		       worker->nr, (unsigned long)worker->seed, worker->pid, worker->op);
	/* Faults and CPU time tell one that never ends from one that waits. */
	for (i = 0; i < 2 * ARRAY_SIZE(files); i++) {
		snprintf(path, sizeof(path), "/proc/%d/%s", worker->pid,
			 files[i % ARRAY_SIZE(files)]);
		if (read_file(path, text, sizeof(text)) > 0)
			ksft_print_msg("%s: %s\n", path, text);
		if (i == ARRAY_SIZE(files) - 1)
			sleep(1);
	}
	/* Whoever is blocked, or runs, is in the kernel log then. */
	granule_write("/proc/sysrq-trigger", "w");
	granule_write("/proc/sysrq-trigger", "l");
	worker->failed = true;
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

static void run(unsigned long seconds)
{
	unsigned long start = now(), next = 30;
	unsigned int i;

	for (i = 0; i < nr_workers; i++) {
		if (!shared->workers[i].kind->missing || !shared->workers[i].kind->missing())
			start_worker(shared->workers + i);
	}
	while (now() - start < seconds * 1000) {
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

/* What was not done at all was not tested either. */
static bool has_worked(const struct worker *worker)
{
	if (!worker->ops)
		return false;
	if (worker->kind->disturbs)
		return worker->done || worker->refused < 10;
	return worker->pages;
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
		printf("\n");
		if (!worker->failed && !has_worked(worker)) {
			ksft_print_msg("%s.%u has tested nothing\n", kind->name, worker->nr);
			good = false;
		}
		good = good && !worker->failed;
	}
	if (kind->missing == no_fail && good && !counted("granule_repair")) {
		ksft_print_msg("no granule was repaired\n");
		good = false;
	}
	ksft_test_result(good, "%s\n", kind->name);
}

static bool parse_number(const char *text, unsigned long max, unsigned long *val)
{
	char *end;

	errno = 0;
	*val = strtoul(text, &end, 0);
	return !errno && *text >= '0' && *text <= '9' && !*end && *val <= max;
}

static int error(const char *msg)
{
	fprintf(stderr, "page_granule_stress: %s\n", msg);
	return KSFT_FAIL;
}

static void print_usage(void)
{
	printf("usage: page_granule_stress [--seconds N] [--seed S]\n"
	       "\n"
	       "Do all that can be done to page granules, at the same time, and compare what\n"
	       "is in them. Run as root. The console tells whether the kernel has complained.\n"
	       "\n"
	       "  --seconds N  for so long (%lu)\n"
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
	nr_nodes = count_nodes();
	have_fail = granule_fail_prepare(&fail_settings);
	if (have_fail)
		granule_write(FAIL_PAGE_ALLOC "probability", FAIL_PERCENT);
	save_knobs();
	granule_zram_create(swap_dev, sizeof(swap_dev), SWAP_DEV_MB);
	granule_zram_create(disk_dev, sizeof(disk_dev), 1);
	if (*swap_dev && !granule_make_swap(swap_dev, SWAP_DEV_MB))
		ksft_exit_fail_msg("cannot write to %s\n", swap_dev);
	create_workers(seed);
	create_cgroups();

	ksft_set_plan(ARRAY_SIZE(kinds) + 1);
	read_counters();
	run(seconds);
	print_counters();
	for (i = 0; i < ARRAY_SIZE(kinds); i++)
		report(kinds + i);
	for (i = 0; i < nr_workers; i++)
		looks += shared->workers[i].looks;
	ksft_test_result(looks, "%lu granules are populated whole or not at all\n", looks);

	remove_cgroups();
	swapoff(swap_dev);
	granule_zram_remove(swap_dev);
	granule_zram_remove(disk_dev);
	restore_knobs();
	granule_fail_restore(&fail_settings);
	ksft_finished();
}
