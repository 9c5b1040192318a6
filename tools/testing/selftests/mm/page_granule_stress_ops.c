// SPDX-License-Identifier: GPL-2.0
/*
 * Page granule stress: the operations that a worker draws from, and the rounds
 * of the workers that do nothing else.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <linux/mempolicy.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/param.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kselftest.h"
#include "vm_util.h"
#include "page_granule_stress.h"
#include "page_granule_util.h"

/* Reads, writes and comparisons. */

static void op_read(struct actor *actor)
{
	check_page(actor->area, own_page(actor));
}

/* One word, which may copy the granule for the sake of it. */
void poke(const struct area *area, unsigned long page, char *addr)
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

/*
 * Operations that leave the contents alone, and that may act on memory in use.
 */

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

void op_advise(struct actor *actor)
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

	/*
	 * Soft-dirty bits, where the architecture has them, or accessed bits.
	 */
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

	/*
	 * All pages, or one for the whole granule, which must not be left
	 * behind.
	 */
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

/* Operations that take the contents away. */

static void op_dontneed(struct actor *actor)
{
	struct range range = any_range(actor);
	struct area *area = actor->area;

	must_work(madvise(range_addr(area, &range), range_len(&range), MADV_DONTNEED),
		  "MADV_DONTNEED");
	if (!area->shared)
		model_zero(area, &range);
}

/* Shared memory: pages around a hole are unmapped as well, and come back. */
static void op_remove(struct actor *actor)
{
	struct range range = any_range(actor);

	must_work(madvise(range_addr(actor->area, &range), range_len(&range), MADV_REMOVE),
		  "MADV_REMOVE");
	model_zero(actor->area, &range);
}

/*
 * A page that may be freed at any moment keeps its contents, or has zeroes from
 * some moment on. A write makes it stay.
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
	/*
	 * Without a folio, single pages go one by one, except those of a
	 * contract.
	 */
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

/* Operations that change the mapping while only this thread uses it. */

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
	if (!area->file)
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

/* Guard regions come and go; the pages that they replace are gone. */
static void op_guard(struct actor *actor)
{
	struct range range = any_range(actor);
	struct area *area = actor->area;
	char *addr = range_addr(area, &range);

	must_work(madvise(addr, range_len(&range), MADV_GUARD_INSTALL), "MADV_GUARD_INSTALL");
	if (one_in(actor, 2))
		worked(madvise(area->base, area_len(area), MADV_PAGEOUT), "MADV_PAGEOUT");
	must_work(madvise(addr, range_len(&range), MADV_GUARD_REMOVE), "MADV_GUARD_REMOVE");
	if (!area->file)
		model_zero(area, &range);
}

static bool move(char *from, char *to, size_t len, int flags)
{
	if (mremap(from, len, len, MREMAP_MAYMOVE | MREMAP_FIXED | flags, to) == to)
		return true;
	/* Several mappings of shared memory move one by one. */
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

		/* The pages left behind read as zeroes. */
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
unsigned long oom_kills(const struct worker *worker)
{
	char path[PATH_MAX + 16], text[512], *line;

	snprintf(path, sizeof(path), "%s/memory.events", worker->cgroup);
	if (!*worker->cgroup || read_file(path, text, sizeof(text)) <= 0)
		return 0;
	line = strstr(text, "oom_kill ");
	return line ? strtoul(line + strlen("oom_kill "), NULL, 10) : 0;
}

/* In this round. */
bool was_oom(void)
{
	return oom_kills(self) != known_oom_kills;
}

/* Returns false if the child has ended early because memory was short. */
bool reap(pid_t pid)
{
	int status;

	while (waitpid(pid, &status, 0) < 0) {
		if (errno != EINTR)
			fail("waitpid of child %d: %s", pid, strerror(errno));
	}
	if (WIFEXITED(status) && !WEXITSTATUS(status))
		return true;
	if ((WIFEXITED(status) && WEXITSTATUS(status) == EXIT_SHORT) ||
	    (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL && was_oom())) {
		count(&self->shorts, 1);
		return false;
	}
	/* It has said what is wrong, unless a signal ended it. */
	if (WIFSIGNALED(status))
		fail("child %d: %s", pid, strsignal(WTERMSIG(status)));
	_exit(KSFT_FAIL);
}

/*
 * In a child just forked: dies with its parent, and looks at itself from now
 * on.
 */
void become_child(struct actor *actor, pid_t parent)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(EXIT_SHORT);
	actor->rng = mix(actor->rng ^ getpid());
	actor->pagemap = granule_open_pagemap();
	if (actor->pagemap < 0)
		give_up();
}

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
 * Children write to memory that they share with their parent and each other
 * until that write. Each has its own pages of shared memory meanwhile.
 */
static void op_fork(struct actor *actor)
{
	const bool divide = actor->area->shared;
	const pid_t parent = getpid();
	unsigned int nr = 1 + draw(actor, MAX_KIDS), i, kids;
	struct actor mine = *actor;
	pid_t pids[MAX_KIDS];
	bool all = true;

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
		all = reap(pids[i]) && all;
	/* The model may not say what a child has written to shared memory last. */
	if (divide && !all)
		give_up();
	count(&self->done, kids);
}

static const struct op ops[] = {
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
	{ "MADV_FREE", op_free, DO_EMPTY, 6, .own = true, .on = ON_PRIVATE },
	{ "MADV_REMOVE", op_remove, DO_EMPTY, 6, .own = true, .on = ON_SHARED | ON_FILE },
	{ "mmap", op_mmap, DO_MAP, 8, .alone = true, .on = ON_PRIVATE | ON_FILE },
	{ "mprotect", op_mprotect, DO_MAP, 15, .alone = true },
	{ "guard", op_guard, DO_MAP, 5, .alone = true, .on = ON_PRIVATE | ON_FILE },
	{ "mremap", op_mremap, DO_MAP, 12, .alone = true },
	{ "exchange", op_exchange, DO_MAP, 8, .alone = true, .on = ON_PRIVATE | ON_SHARED },
	{ "fork", op_fork, DO_FORK, 12 },
	{ "pwrite", op_write_file, DO_FILE, 20 },
	{ "pread", op_read_file, DO_FILE, 10 },
	{ "sync", op_sync, DO_FILE, 6 },
	{ "fadvise", op_advise_file, DO_FILE, 12 },
	{ "fallocate", op_zero_range, DO_FILE, 4, .own = true },
	{ "ftruncate", op_truncate, DO_FILE, 8, .alone = true },
	{ "map twice", op_map_twice, DO_FILE, 12 },
};

static bool may_do(const struct actor *actor, const struct op *op)
{
	const struct area *area = actor->area;
	const unsigned int on = area->file ? ON_FILE : area->shared ? ON_SHARED : ON_PRIVATE;

	if (!(op->group & actor->groups))
		return false;
	/* Children get pages of shared memory that have no owner yet. */
	if (op->group == DO_FORK && (actor->depth >= MAX_DEPTH || (area->shared && actor->nr > 1)))
		return false;
	if (op->on && !(op->on & on))
		return false;
	if (actor->nr == 1)
		return true;
	/* btrfs keeps what is read in a large folio meanwhile: check_range_has_page(). */
	if (op->own && area->file && area->file->fs == FS_BTRFS &&
	    op->run != op_dontneed)
		return false;
	return !op->alone && (!op->own || actor->by_granule);
}

const struct op *draw_op(struct actor *actor)
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

bool goes_on(const struct actor *actor)
{
	return !load(&shared->stop) && now() < actor->deadline;
}

void act(struct actor *actor)
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

/* Compare everything after a round, when nothing else works on it. */
void check_round(struct actor *actor)
{
	begin("the end of a round");
	look_all(actor);
	check_all(actor);
	look_all(actor);
	count(&self->rounds, 1);
}

/* Do to the area of @actor what is in @groups, and compare all of it. */
void use_area(struct actor *actor, unsigned int threads, unsigned int groups)
{
	struct area *area = actor->area;

	/* Memory that is tagged by default may be cut. */
	if (area->kind == GRANULE_DEFAULT)
		area->strict = !(groups & DO_MAP) && one_in(actor, 2);
	actor->groups = groups;
	if (threads > 1)
		act_in_threads(actor, threads);
	else
		act(actor);
	check_round(actor);
}

static void area_round(struct actor *actor, unsigned long nr, unsigned int threads,
		       unsigned int groups)
{
	enum granule_kind kind = one_in(actor, 3) ? GRANULE_DEFAULT : GRANULE_CONTRACT;
	struct area area;

	area_create(actor, &area, kind, one_in(actor, 4), NULL, nr);
	use_area(actor, threads, groups);
	area_destroy(&area);
}

void fork_round(struct actor *actor)
{
	area_round(actor, AREA_GRANULES, 1 + draw(actor, 2),
		   DO_ACCESS | DO_ADVISE | DO_LOCK | DO_EMPTY | DO_FORK);
}

void map_round(struct actor *actor)
{
	area_round(actor, AREA_GRANULES, 1,
		   DO_ACCESS | DO_ADVISE | DO_LOCK | DO_NUMA | DO_EMPTY | DO_MAP | DO_FORK);
}

void swap_round(struct actor *actor)
{
	area_round(actor, SWAP_GRANULES, 3, DO_ACCESS | DO_ADVISE | DO_NUMA | DO_EMPTY);
}

void numa_round(struct actor *actor)
{
	area_round(actor, AREA_GRANULES, 1 + draw(actor, 3),
		   DO_ACCESS | DO_ADVISE | DO_LOCK | DO_NUMA | DO_FORK);
}

void repair_round(struct actor *actor)
{
	area_round(actor, AREA_GRANULES, 1 + draw(actor, 3), DO_ACCESS | DO_EMPTY | DO_FORK);
}
