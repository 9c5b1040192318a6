// SPDX-License-Identifier: GPL-2.0
/*
 * Page granule stress: workers whose memory somebody else acts on as well
 * (another process, userfaultfd, pins and devices), and workers that disturb
 * all others.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/swap.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../../../../mm/gup_test.h"
#include "kselftest.h"
#include "vm_util.h"
#include "page_granule_stress.h"
#include "page_granule_util.h"

const char *no_cgroup(void)
{
	return *shared->workers[0].cgroup ? NULL : GRANULE_CG_REMEDY;
}

const char *no_swap(void)
{
	struct granule_swaps swaps;

	granule_read_swaps(&swaps);
	return swaps.nr ? no_cgroup() : "no swap: swapon a device";
}

const char *one_node(void)
{
	return nr_nodes < 2 ? GRANULE_NODES_REMEDY : NULL;
}

const char *no_fail(void)
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

/* The owner writes to its own pages, in the writable half. */
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
 * told to, and false if it has ended or, without @wait, if there is nothing
 * more.
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

/*
 * One word or a page by /proc/PID/mem, which writes to read-only memory, too.
 */
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

/* Both processes see the model of all pages; each writes to its own pages. */
static void share_model(struct area *area)
{
	const size_t len = area_pages(area) * sizeof(*area->model);

	must_work(munmap(area->model, len), "munmap");
	area->model = mmap(NULL, len, PROT_RW, MAP_SHARED | MAP_ANONYMOUS | MAP_GRANULE_4KB,
			   -1, 0);
	if (area->model == MAP_FAILED)
		must_work(-1, "mmap");
}

void ptrace_round(struct actor *actor)
{
	enum granule_kind kind = one_in(actor, 3) ? GRANULE_DEFAULT : GRANULE_CONTRACT;
	const pid_t parent = getpid();
	struct peer peer = {};
	struct area area;
	char path[64];
	unsigned long i;

	area_create(actor, &area, kind, false, NULL, AREA_GRANULES);
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
 * userfaultfd. What is missing is filled by a thread, from the model: a granule
 * a time in contract memory, a page a time in memory that is tagged by default.
 * It must not be asked for what nobody has given back: that would have been
 * lost.
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

#define UFFD_FEATURES	(UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_MOVE)

const char *no_uffd(void)
{
	int fd = granule_uffd(UFFD_FEATURES, O_NONBLOCK);

	if (fd < 0)
		return GRANULE_UFFD_REMEDY;
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
	/*
	 * A page of the source is in use; or both calls have met memory
	 * pressure.
	 */
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

void uffd_round(struct actor *actor)
{
	enum granule_kind kind = one_in(actor, 3) ? GRANULE_DEFAULT : GRANULE_CONTRACT;
	unsigned int nr = 1 + draw(actor, MAX_THREADS), i;
	struct toucher touchers[MAX_THREADS];
	pthread_t threads[MAX_THREADS], thread;
	struct filler filler = {};
	struct area area;

	area_create(actor, &area, kind, false, NULL, AREA_GRANULES);
	area.strict = kind == GRANULE_CONTRACT;
	filler.area = &area;
	filler.actor = *actor;
	filler.uffd = granule_uffd(UFFD_FEATURES, O_NONBLOCK);
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
 * Pins. Pages pinned by gup_test, or put into a pipe by vmsplice(), must stay
 * the pages that the process sees, over forks and all else. Meanwhile another
 * thread lets a disk read into and write from its pages.
 */
#define MAX_PINNED	(3 * GRANULE_NR_PAGES)
#define DISK_BLOCKS	256UL	/* of a base page */

const char *no_pins(void)
{
	return access(GUP_TEST, R_OK | W_OK) ?
	       GRANULE_GUP_REMEDY : NULL;
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

/* A child that writes to the page, which is its own copy from then on. */
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

void pin_round(struct actor *actor)
{
	enum granule_kind kind = one_in(actor, 3) ? GRANULE_DEFAULT : GRANULE_CONTRACT;
	static struct disk disk;
	struct area area;
	pthread_t thread;
	unsigned int i;
	int gup;

	area_create(actor, &area, kind, false, NULL, AREA_GRANULES);
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
	/* Fails with EAGAIN if it found less. */
	if (granule_cg_write(worker->cgroup, "memory.reclaim", text))
		count(&self->refused, 1);
}

void compaction_round(struct actor *actor)
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

/* How many blocks can be taken offline, and the number of one of them. */
static unsigned long count_blocks(unsigned long want, unsigned long *found)
{
	unsigned long block, nr = 0;
	struct dirent *entry;
	DIR *dir;

	dir = opendir(MEMORY_BLOCKS);
	if (!dir)
		return 0;
	while ((entry = readdir(dir))) {
		if (sscanf(entry->d_name, "memory%lu", &block) != 1 ||
		    !granule_block_movable(block))
			continue;
		if (nr++ == want)
			*found = block;
	}
	closedir(dir);
	return nr;
}

const char *no_blocks(void)
{
	unsigned long block;

	return count_blocks(0, &block) ? NULL :
	       "no memory that can be taken offline: add some, and online it as movable";
}

#define BLOCK_SECONDS	10

void hotplug_round(struct actor *actor)
{
	unsigned long block, nr;
	int ret;

	nr = count_blocks(0, &block);
	if (!nr)
		fail("there is no memory left in the movable zone");
	count_blocks(draw(actor, nr), &block);
	begin("offline");
	ret = granule_set_block(block, "offline", BLOCK_SECONDS);
	count(&self->ops, 1);
	if (ret) {
		if (ret != -EBUSY && ret != -EINTR && !is_short(-ret))
			fail("offline of memory%lu: %s", block, strerror(-ret));
		count(&self->refused, 1);
	} else {
		usleep(draw(actor, 500) * 1000);
		begin("online");
		/* Adding needs memory, too. */
		while ((ret = granule_set_block(block, "online_movable", BLOCK_SECONDS))) {
			if (ret != -EINTR && !is_short(-ret))
				fail("online of memory%lu: %s", block, strerror(-ret));
			usleep(10 * 1000);
		}
		count(&self->done, 1);
	}
	usleep(draw(actor, 1000) * 1000);
}

void settings_round(struct actor *actor)
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
		must_write(KSM_SYSFS "run", one_in(actor, 2) ? "1" : "0");
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

const char *no_swap_dev(void)
{
	return *swap_dev ? no_swap() :
	       "no swap device to take away: set CONFIG_ZRAM=y, and swapon another one";
}

/* There is other swap for what does not fit into the memory cgroups. */
void swapoff_round(struct actor *actor)
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
