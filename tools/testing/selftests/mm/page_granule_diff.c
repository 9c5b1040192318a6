// SPDX-License-Identifier: GPL-2.0
/*
 * Page granule: a random sequence of calls and accesses, made by a process with
 * a default granule of 64 KiB and by its untagged twin, must give both the same
 * results and leave both with the same bytes.
 *
 * Call number I of the sequence depends on the seed and on I alone, not on what
 * the calls before it did. So a sequence can be repeated, and calls can be left
 * out of it, which is how a failing one is shrunk.
 *
 * All calls act on two windows: an arena at a fixed address, and the heap above
 * the brk that the process starts with. Where the kernel is free to choose an
 * address, it may choose another one for a tagged mapping. So what is mapped or
 * moved without MAP_FIXED is moved into the arena, or unmapped, in the same
 * step. A mapping with MAP_GROWSDOWN, which grows in other steps, lives for one
 * step only, too.
 *
 * After each step are compared:
 * - the result, the error, and the signal, code and address of a fault;
 * - of the pages that the call was about, and of their neighbours: the bounds,
 *   the permissions and the file offsets of the VMAs; which of them are guard
 *   regions; which are populated, and what mincore() says, where a tagged mapping
 *   may have more, but never less; and all bytes of what is present.
 *
 * After every so many steps, the same is compared of all pages. What is not
 * present is left alone, so that it stays in swap; step "check" reads it.
 *
 * page_granule_diff_twin.c has the twins that run the sequence.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "kselftest.h"
#include "vm_util.h"
#include "page_granule_diff.h"
#include "page_granule_util.h"

static const char * const accesses[] = { "byte", "straddling word", "range", "touch" };

static const char * const twin_names[] = { "untagged", "tagged" };

struct shared *shared;

/* Bound of the heap window. Set in a twin before it starts. */
unsigned long heap_addr;
static bool have_swap;
static bool verbose;
unsigned long all_every = DEFAULT_ALL;

uint64_t mix(uint64_t x)
{
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9UL;
	x = (x ^ x >> 27) * 0x94d049bb133111ebUL;
	return x ^ x >> 31;
}

/*
 * The sequence
 */

static unsigned long next_random(uint64_t *state)
{
	*state += 0x9e3779b97f4a7c15UL;
	return mix(*state);
}

unsigned int below(uint64_t *state, unsigned int limit)
{
	return (next_random(state) >> 32) % limit;
}

static bool one_in(uint64_t *state, unsigned int n)
{
	return !below(state, n);
}

/* The windows are one range of page numbers. No range goes over a bound. */
static unsigned int window_end(unsigned int page)
{
	return page < ARENA_PAGES ? ARENA_PAGES : NR_PAGES;
}

unsigned long page_addr(unsigned int page)
{
	if (page < ARENA_PAGES)
		return ARENA_ADDR + page * BASE_SIZE;
	return heap_addr + (page - ARENA_PAGES) * BASE_SIZE;
}

/* Errors show where granules begin and end. */
static unsigned int pick_page(uint64_t *state)
{
	unsigned int page;

	if (one_in(state, 2))
		return below(state, NR_PAGES);
	page = below(state, NR_PAGES / GRANULE_NR_PAGES) * GRANULE_NR_PAGES;
	if (one_in(state, 2))
		page += below(state, 7) - 3;
	return page < NR_PAGES ? page : 0;
}

static unsigned int pick_nr(uint64_t *state)
{
	switch (below(state, 8)) {
	case 0:
		return 1;
	case 1:
		return 1 + below(state, 4);
	case 2:
	case 3:
		return GRANULE_NR_PAGES * (1 + below(state, 2));
	case 4:
		return GRANULE_NR_PAGES * (1 + below(state, 4));
	case 5:
	case 6:
		return GRANULE_NR_PAGES * (1 + below(state, 3)) + below(state, 5) - 2;
	default:
		return 1 + below(state, 64);
	}
}

unsigned int clamp_nr(unsigned int page, unsigned int nr)
{
	unsigned int left = window_end(page) - page;

	return nr < left ? nr : left;
}

static int pick_prot(uint64_t *state)
{
	switch (below(state, 20)) {
	case 0:
		return PROT_NONE;
	case 1:
	case 2:
	case 3:
		return PROT_READ;
	case 4:
		return PROT_RW | PROT_EXEC;
	case 5:
		switch (below(state, 4)) {
		case 0:
			return PROT_EXEC;
		case 1:
			return PROT_WRITE;
		default:
			return PROT_READ | PROT_EXEC;
		}
	default:
		return PROT_RW;
	}
}

static int pick_mmap_flags(uint64_t *state)
{
	int flags = MAP_ANONYMOUS;

	flags |= one_in(state, 4) ? MAP_SHARED : MAP_PRIVATE;
	if (one_in(state, 12))
		flags |= MAP_NORESERVE;
	if (one_in(state, 10))
		flags |= MAP_POPULATE;
	if (one_in(state, 40))
		flags |= MAP_LOCKED;
	return flags;
}

/* MADV_FREE is a step of its own, since its result is not determined. */
static const struct {
	int advice;
	unsigned int weight;
	const char *name;
} advices[] = {
	{ MADV_DONTNEED,	24, "MADV_DONTNEED" },
	{ MADV_DONTNEED_LOCKED,	4, "MADV_DONTNEED_LOCKED" },
	{ MADV_REMOVE,		4, "MADV_REMOVE" },
	{ MADV_COLD,		6, "MADV_COLD" },
	{ MADV_PAGEOUT,		24, "MADV_PAGEOUT" },
	{ MADV_POPULATE_READ,	12, "MADV_POPULATE_READ" },
	{ MADV_POPULATE_WRITE,	12, "MADV_POPULATE_WRITE" },
	{ MADV_DONTFORK,	3, "MADV_DONTFORK" },
	{ MADV_DOFORK,		6, "MADV_DOFORK" },
	{ MADV_GUARD_INSTALL,	8, "MADV_GUARD_INSTALL" },
	{ MADV_GUARD_REMOVE,	12, "MADV_GUARD_REMOVE" },
	{ MADV_HUGEPAGE,	3, "MADV_HUGEPAGE" },
	{ MADV_NOHUGEPAGE,	3, "MADV_NOHUGEPAGE" },
	{ MADV_COLLAPSE,	6, "MADV_COLLAPSE" },
	{ MADV_MERGEABLE,	3, "MADV_MERGEABLE" },
	{ MADV_UNMERGEABLE,	6, "MADV_UNMERGEABLE" },
	{ MADV_RANDOM,		2, "MADV_RANDOM" },
	{ MADV_NORMAL,		4, "MADV_NORMAL" },
	{ MADV_DONTDUMP,	2, "MADV_DONTDUMP" },
	{ MADV_DODUMP,		4, "MADV_DODUMP" },
};

static int pick_advice(uint64_t *state)
{
	unsigned int i, sum = 0, pick;

	for (i = 0; i < ARRAY_SIZE(advices); i++)
		sum += advices[i].weight;
	pick = below(state, sum);
	for (i = 0; pick >= advices[i].weight; i++)
		pick -= advices[i].weight;
	return advices[i].advice;
}

static enum op_kind pick_kind(uint64_t *state, unsigned int nr_kinds)
{
	unsigned int i, sum = 0, pick;

	for (i = 0; i < nr_kinds; i++)
		sum += kinds[i].weight;
	pick = below(state, sum);
	for (i = 0; pick >= kinds[i].weight; i++)
		pick -= kinds[i].weight;
	return i;
}

/* Accesses are by byte, and mostly short. Ranges of system calls fit a pipe. */
static void make_access(struct op *op, uint64_t *state)
{
	op->skew = one_in(state, 3) ? 0 : below(state, BASE_SIZE);
	if (op->kind != OP_WRITE && op->kind != OP_READ)
		op->flags = one_in(state, 4) ? ACCESS_BYTE : ACCESS_RANGE;
	else
		op->flags = below(state, NR_ACCESSES);

	switch (op->flags) {
	case ACCESS_BYTE:
		op->nr = 1;
		op->trim = BASE_SIZE - 1 - op->skew;
		return;
	case ACCESS_STRADDLE:
		op->nr = clamp_nr(op->page, 2);
		if (op->nr < 2) {
			op->page--;
			op->nr = 2;
		}
		op->skew = BASE_SIZE - 1 - below(state, sizeof(long) - 1);
		op->trim = op->nr * BASE_SIZE - op->skew - sizeof(long);
		return;
	case ACCESS_RANGE:
		op->nr = one_in(state, 6) ? op->nr : 1 + below(state, 3);
		if (op->nr > GRANULE_NR_PAGES)
			op->nr = GRANULE_NR_PAGES;
		op->nr = clamp_nr(op->page, op->nr);
		/* At least one byte of a single page. */
		op->trim = below(state, op->nr > 1 ? BASE_SIZE : BASE_SIZE - op->skew);
		return;
	default:
		return;
	}
}

/*
 * A file is mapped shared, and changes, or is mapped privately. It is unspecified
 * which pages of a private mapping show a change, and they are more with granules.
 */
static bool shares_file(const struct run *run)
{
	return run->seed % 2;
}

/*
 * Whether a mapping of a file is tagged depends on where it was mapped, so what is
 * moved elsewhere does not merge with all neighbours that it would merge with.
 */
static void keep_congruent(struct op *op)
{
	if (window_end(op->page) != window_end(op->to))
		op->to = op->page;
	op->to += (int)(op->page % GRANULE_NR_PAGES) - (int)(op->to % GRANULE_NR_PAGES);
	if (op->to >= window_end(op->page))
		op->to -= GRANULE_NR_PAGES;
}

/* Most mappings of the file are congruent to it, as programs' are. */
static void make_file_map(const struct run *run, struct op *op, uint64_t *state)
{
	if (run->fs == NO_FILES || one_in(state, 4))
		return;
	op->flags &= ~(MAP_ANONYMOUS | MAP_SHARED | MAP_PRIVATE);
	op->flags |= shares_file(run) ? MAP_SHARED : MAP_PRIVATE;
	op->offset = one_in(state, 5) ? below(state, FILE_PAGES) :
		     (op->page + below(state, 3) * GRANULE_NR_PAGES) % FILE_PAGES;
}

static void make_file_op(const struct run *run, struct op *op, uint64_t *state)
{
	static const int modes[] = {
		FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
		FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
		FALLOC_FL_ZERO_RANGE, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
		FALLOC_FL_COLLAPSE_RANGE, FALLOC_FL_INSERT_RANGE, 0, FALLOC_FL_KEEP_SIZE,
	};
	static const int advices[] = {
		POSIX_FADV_DONTNEED, POSIX_FADV_DONTNEED, POSIX_FADV_DONTNEED,
		POSIX_FADV_WILLNEED, POSIX_FADV_RANDOM, POSIX_FADV_NORMAL,
	};

	/* In this case, too, errors show where granules begin and end. */
	op->offset = op->page % FILE_PAGES;
	op->page = 0;
	op->to_nr = 1;
	if (op->nr > GRANULE_NR_PAGES && op->kind <= OP_FILE_READ)
		op->nr = GRANULE_NR_PAGES;
	switch (op->kind) {
	case OP_FILE_WRITE:
		if (!shares_file(run))
			op->kind = OP_FILE_READ;
		break;
	case OP_FILE_LENGTH:
		if (one_in(state, 2))
			op->offset = FILE_PAGES;
		break;
	case OP_FILE_SPACE:
		op->flags = modes[below(state, ARRAY_SIZE(modes))];
		if (!shares_file(run))
			op->flags = FALLOC_FL_KEEP_SIZE;
		break;
	case OP_FILE_ADVISE:
		op->flags = advices[below(state, ARRAY_SIZE(advices))];
		break;
	case OP_FILE_TWICE:
		op->prot = shares_file(run) && one_in(state, 2) ? PROT_RW : PROT_READ;
		break;
	default:
		break;
	}
	if (op->kind <= OP_FILE_READ && one_in(state, 2)) {
		op->skew = below(state, BASE_SIZE);
		op->trim = below(state, op->nr > 1 ? BASE_SIZE : BASE_SIZE - op->skew);
	}
}

/*
 * Make call @index of the sequence. @kid is 0, or counts the calls that the
 * child makes that is forked by it.
 */
void make_op(const struct run *run, unsigned long index, unsigned int kid, struct op *op)
{
	const unsigned int nr_kinds = run->fs == NO_FILES ? NR_MEMORY_KINDS : NR_OP_KINDS;
	uint64_t state = mix(mix(run->seed) ^ mix(index ^ (uint64_t)kid << 48));

	memset(op, 0, sizeof(*op));
	op->index = index;
	do {
		op->kind = pick_kind(&state, nr_kinds);
	} while (kid && (op->kind == OP_FORK || op->kind == OP_WIPEONFORK ||
			 op->kind == OP_CHECK));
	op->page = pick_page(&state);
	op->nr = clamp_nr(op->page, pick_nr(&state));
	op->to = pick_page(&state);
	if (run->fs != NO_FILES)
		keep_congruent(op);
	op->to_nr = clamp_nr(op->to, op->nr);
	op->key = next_random(&state);

	switch (op->kind) {
	case OP_MMAP:
		op->prot = pick_prot(&state);
		op->flags = pick_mmap_flags(&state);
		op->flags |= one_in(&state, 4) ? MAP_FIXED_NOREPLACE : MAP_FIXED;
		/* Now and then, let there be less holes. */
		if (one_in(&state, 6))
			op->nr = clamp_nr(op->page, op->nr + below(&state, 100));
		make_file_map(run, op, &state);
		break;
	case OP_MMAP_HINT:
		op->prot = pick_prot(&state);
		op->flags = pick_mmap_flags(&state);
		make_file_map(run, op, &state);
		break;
	case OP_MMAP_MOVE:
		op->prot = pick_prot(&state);
		op->flags = pick_mmap_flags(&state) & ~(MAP_POPULATE | MAP_LOCKED);
		break;
	case OP_GROWSDOWN:
		op->page = 1 + below(&state, 3 * GRANULE_NR_PAGES);
		op->nr = 1 + below(&state, GRANULE_NR_PAGES);
		op->flags = one_in(&state, 4);
		return;
	case OP_MPROTECT:
		op->prot = pick_prot(&state);
		break;
	case OP_MREMAP_SIZE:
		op->to_nr = one_in(&state, 3) ? pick_nr(&state) : op->nr + below(&state, 33) - 16;
		if ((int)op->to_nr < 1)
			op->to_nr = 1;
		op->to_nr = clamp_nr(op->page, op->to_nr);
		break;
	case OP_MREMAP_FIXED:
	case OP_MREMAP_FREELY:
		if (one_in(&state, 4))
			op->to_nr = clamp_nr(op->to, pick_nr(&state));
		break;
	case OP_MREMAP_DONTUNMAP:
		op->nr = op->to_nr;
		break;
	case OP_MADVISE:
		op->flags = pick_advice(&state);
		break;
	case OP_MUNLOCK:
		/* Locked pages cannot be discarded, so do not lock for long. */
		if (one_in(&state, 3)) {
			op->page = op->page < ARENA_PAGES ? 0 : ARENA_PAGES;
			op->nr = window_end(op->page) - op->page;
		}
		break;
	case OP_MSYNC:
		op->flags = one_in(&state, 2) ? MS_SYNC : MS_ASYNC;
		if (one_in(&state, 2))
			op->flags |= MS_INVALIDATE;
		break;
	case OP_BRK:
		op->page = ARENA_PAGES;
		if (one_in(&state, 2))
			op->nr = below(&state, HEAP_PAGES + 1);
		else
			op->nr = HEAP_PAGES - below(&state, 3) * GRANULE_NR_PAGES;
		if (op->nr && one_in(&state, 2))
			op->trim = below(&state, BASE_SIZE);
		return;
	case OP_FORK:
		op->flags = below(&state, MAX_KIDS);
		break;
	case OP_WRITE:
	case OP_READ:
	case OP_SYS_WRITE:
	case OP_SYS_READ:
	case OP_SYS_ZERO:
	case OP_MEM_WRITE:
	case OP_MEM_READ:
		make_access(op, &state);
		return;
	case OP_FILE_WRITE:
	case OP_FILE_READ:
	case OP_FILE_LENGTH:
	case OP_FILE_SPACE:
	case OP_FILE_SYNC:
	case OP_FILE_ADVISE:
	case OP_FILE_TWICE:
		make_file_op(run, op, &state);
		return;
	default:
		break;
	}

	/* Lengths are rounded up to base pages, addresses are refused. */
	if (one_in(&state, 16))
		op->trim = below(&state, BASE_SIZE);
	if (one_in(&state, 100))
		op->skew = 1 + below(&state, BASE_SIZE - 1);
}

char *op_addr(const struct op *op)
{
	return (char *)page_addr(op->page) + op->skew;
}

/* The bytes of an access, up to its end. A call takes whole pages, or less. */
size_t op_len(const struct op *op)
{
	size_t len = op->nr * BASE_SIZE - op->trim;

	return (op->kind >= OP_WRITE && op->kind <= OP_MEM_READ) ||
	       op->kind == OP_FILE_WRITE || op->kind == OP_FILE_READ ? len - op->skew : len;
}

static const char *advice_name(int advice)
{
	unsigned int i;

	for (i = 0; advices[i].advice != advice; i++)
		;
	return advices[i].name;
}

static const char *prot_name(int prot, char *buf)
{
	sprintf(buf, "%c%c%c", prot & PROT_READ ? 'r' : '-', prot & PROT_WRITE ? 'w' : '-',
		prot & PROT_EXEC ? 'x' : '-');
	return buf;
}

static void print_range(char *buf, unsigned int page, unsigned int skew, size_t len)
{
	bool heap = page >= ARENA_PAGES;

	sprintf(buf, "%s+%#lx, %#zx", heap ? "heap" : "arena",
		(page - (heap ? ARENA_PAGES : 0)) * BASE_SIZE + skew, len);
}

/* Print @op as one would write it down. */
static void describe_op(const struct op *op, char *buf, size_t size)
{
	char range[64], to[64], prot[4], more[140] = "";
	int len;

	print_range(range, op->page, op->skew, op_len(op));
	print_range(to, op->to, 0, op->to_nr * BASE_SIZE);
	prot_name(op->prot, prot);

	switch (op->kind) {
	case OP_MMAP:
	case OP_MMAP_HINT:
	case OP_MMAP_MOVE:
		len = snprintf(more, sizeof(more), ", %s, %s%s%s%s%s%s", prot,
			       op->flags & MAP_SHARED ? "MAP_SHARED" : "MAP_PRIVATE",
			       op->flags & MAP_FIXED ? "|MAP_FIXED" : "",
			       op->flags & MAP_FIXED_NOREPLACE ? "|MAP_FIXED_NOREPLACE" : "",
			       op->flags & MAP_NORESERVE ? "|MAP_NORESERVE" : "",
			       op->flags & MAP_POPULATE ? "|MAP_POPULATE" : "",
			       op->flags & MAP_LOCKED ? "|MAP_LOCKED" : "");
		if (!(op->flags & MAP_ANONYMOUS))
			snprintf(more + len, sizeof(more) - len, ", file+%#lx",
				 op->offset * BASE_SIZE);
		break;
	case OP_MPROTECT:
		snprintf(more, sizeof(more), ", %s", prot);
		break;
	case OP_MREMAP_SIZE:
		snprintf(more, sizeof(more), ", to %#lx", op->to_nr * BASE_SIZE);
		break;
	case OP_MREMAP_FIXED:
	case OP_MREMAP_DONTUNMAP:
	case OP_MREMAP_COPY:
	case OP_MREMAP_FREELY:
		snprintf(more, sizeof(more), ", to %s", to);
		break;
	case OP_MADVISE:
		snprintf(more, sizeof(more), ", %s", advice_name(op->flags));
		break;
	case OP_MSYNC:
		snprintf(more, sizeof(more), ", %s%s", op->flags & MS_SYNC ? "MS_SYNC" : "MS_ASYNC",
			 op->flags & MS_INVALIDATE ? "|MS_INVALIDATE" : "");
		break;
	case OP_FORK:
		snprintf(buf, size, "fork, or end of, child %d", op->flags);
		return;
	case OP_CHECK:
		snprintf(buf, size, "check of all bytes");
		return;
	case OP_WRITE:
	case OP_READ:
		snprintf(more, sizeof(more), ", %s", accesses[op->flags]);
		break;
	case OP_FILE_WRITE:
	case OP_FILE_READ:
	case OP_FILE_LENGTH:
	case OP_FILE_SPACE:
	case OP_FILE_SYNC:
	case OP_FILE_ADVISE:
	case OP_FILE_TWICE:
		snprintf(buf, size, "%s(file+%#lx, %#zx, %#x, %s)", kinds[op->kind].name,
			 op->offset * BASE_SIZE + op->skew, op_len(op), op->flags, prot);
		return;
	default:
		break;
	}
	snprintf(buf, size, "%s(%s%s)", kinds[op->kind].name, range, more);
}

/*
 * The parent of the twins
 */

struct twin_process {
	pid_t pid;
	int reply;
	int command;
};

static bool start_twin(const struct run *run, enum twin which, struct twin_process *process)
{
	int reply[2], command[2];

	if (pipe(reply) || pipe(command))
		return false;
	process->pid = fork();
	if (process->pid < 0)
		return false;
	if (!process->pid) {
		close(reply[0]);
		close(command[1]);
		run_twin(run, which, command[0], reply[1]);
	}
	close(reply[1]);
	close(command[0]);
	process->reply = reply[0];
	process->command = command[1];
	return true;
}

static void stop_twin(struct twin_process *process)
{
	kill(process->pid, SIGKILL);
	waitpid(process->pid, NULL, 0);
	close(process->reply);
	close(process->command);
}

/* Wait until the twin has made its batch of calls. */
static bool await_twin(struct twin_process *process, enum twin which, int timeout,
		       struct failure *failure)
{
	struct pollfd pollfd = { .fd = process->reply, .events = POLLIN };
	int status = 0, ready;
	char byte;

	ready = poll(&pollfd, 1, timeout);
	if (ready == 1 && read(process->reply, &byte, 1) == 1)
		return true;

	failure->pos = load(&shared->progress[which]);
	if (ready != 1) {
		snprintf(failure->reason, sizeof(failure->reason), "the %s twin hangs",
			 twin_names[which]);
		return false;
	}
	waitpid(process->pid, &status, 0);
	if (WIFEXITED(status) && WEXITSTATUS(status) == EXIT_SETUP)
		ksft_exit_fail_msg("the %s twin failed to set up\n", twin_names[which]);
	snprintf(failure->reason, sizeof(failure->reason), "the %s twin died of signal %d",
		 twin_names[which], WTERMSIG(status));
	return false;
}

static void print_page(char *buf, unsigned int page)
{
	print_range(buf, page, 0, BASE_SIZE);
	*strchr(buf, ',') = 0;
}

static void print_attr(char *buf, uint32_t attr)
{
	if (!(attr & PG_MAPPED)) {
		sprintf(buf, "unmapped");
		return;
	}
	prot_name((attr & PG_READ ? PROT_READ : 0) | (attr & PG_WRITE ? PROT_WRITE : 0) |
		  (attr & PG_EXEC ? PROT_EXEC : 0), buf);
	sprintf(buf + 3, "%c, offset %#lx%s%s%s", attr & PG_SHARED ? 's' : 'p',
		(attr >> 16) * BASE_SIZE,
		attr & PG_START ? ", first of its VMA" : "", attr & PG_GUARD ? ", guard" : "",
		attr & PG_POPULATED ? ", populated" : "");
}

static bool same_page(uint32_t untagged, uint32_t tagged)
{
	if ((untagged ^ tagged) & PG_SAME)
		return false;
	/* Readahead and fault-around may bring in more for either. */
	if (untagged & PG_FILE)
		return true;
	if (untagged & PG_IN_CORE && tagged & PG_NOT_IN_CORE &&
	    (!have_swap || !(untagged & PG_SHARED)))
		return false;
	/* The kernel may empty page tables of shared memory at any time. */
	return untagged & PG_SHARED || !(untagged & PG_POPULATED) || tagged & PG_POPULATED;
}

/* Compare the results that the twins got from one call. */
static bool same_record(const struct record *untagged, const struct record *tagged,
			char *reason, size_t size)
{
	char page[64], was[80], is[80];
	unsigned int i;

	if (untagged->ret != tagged->ret || untagged->err != tagged->err) {
		snprintf(reason, size, "another result");
		return false;
	}
	if (untagged->sig != tagged->sig || untagged->code != tagged->code ||
	    untagged->addr != tagged->addr) {
		snprintf(reason, size, "another fault");
		return false;
	}
	if (untagged->value != tagged->value) {
		snprintf(reason, size, "other bytes read, or other results within the step");
		return false;
	}
	if (untagged->kid != tagged->kid) {
		snprintf(reason, size, "a child has found something else");
		return false;
	}
	for (i = 0; i < NR_PAGES; i++) {
		if (same_page(untagged->attr[i], tagged->attr[i]))
			continue;
		print_page(page, i);
		print_attr(was, untagged->attr[i]);
		print_attr(is, tagged->attr[i]);
		snprintf(reason, size, "%s is %s; tagged: %s%s", page, was, is,
			 tagged->attr[i] & PG_NOT_IN_CORE ? ", not in core" : "");
		return false;
	}
	for (i = 0; i < NR_PAGES; i++) {
		if (!(untagged->attr[i] & tagged->attr[i] & PG_SUM) ||
		    untagged->sum[i] == tagged->sum[i])
			continue;
		print_page(page, i);
		snprintf(reason, size, "other bytes in %s%s%s", page,
			 untagged->sum[i] ? "" : ", which is zero",
			 tagged->sum[i] ? "" : ", tagged: zero");
		return false;
	}
	return true;
}

static void count_calls(const struct run *run, unsigned long pos, const struct record *record)
{
	struct op op;

	if (!run->counts)
		return;
	make_op(run, run->list ? run->list[pos] : pos, 0, &op);
	run->counts[2 * op.kind]++;
	run->counts[2 * op.kind + 1] += record->err || record->sig;
}

static bool compare_batch(const struct run *run, unsigned long first, unsigned long nr,
			  struct failure *failure)
{
	const struct record *untagged, *tagged;
	unsigned long i;

	for (i = 0; i < nr; i++) {
		untagged = &shared->records[UNTAGGED][i];
		tagged = &shared->records[TAGGED][i];
		if (!same_record(untagged, tagged, failure->reason, sizeof(failure->reason))) {
			failure->pos = first + i;
			failure->records[UNTAGGED] = *untagged;
			failure->records[TAGGED] = *tagged;
			return false;
		}
		count_calls(run, first + i, tagged);
	}
	return true;
}

/* Have new twins make the calls of @run. Returns false if they differ. */
static bool run_twins(const struct run *run, struct failure *failure)
{
	struct twin_process processes[NR_TWINS];
	unsigned long first, nr;
	bool same = true;
	int which;

	memset(failure, 0, sizeof(*failure));
	memset(shared->progress, 0, sizeof(shared->progress));
	for (which = 0; which < NR_TWINS; which++) {
		if (!start_twin(run, which, &processes[which]))
			ksft_exit_fail_msg("cannot fork: %s\n", strerror(errno));
	}
	for (first = 0; same && first < run->nr; first += nr) {
		nr = run->nr - first < BATCH ? run->nr - first : BATCH;
		for (which = 0; same && which < NR_TWINS; which++)
			same = await_twin(&processes[which], which, run->timeout, failure);
		same = same && compare_batch(run, first, nr, failure);
		for (which = 0; same && which < NR_TWINS; which++) {
			if (write(processes[which].command, "", 1) != 1)
				break;
		}
	}
	for (which = 0; which < NR_TWINS; which++)
		stop_twin(&processes[which]);
	return same;
}

static double seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec + now.tv_nsec / 1e9;
}

/*
 * Does the list still fail? If so, what comes after the call that fails goes.
 */
static bool still_fails(struct run *run, unsigned int *list, unsigned long *nr)
{
	struct failure failure;

	run->list = list;
	run->nr = *nr;
	if (run_twins(run, &failure))
		return false;
	*nr = failure.pos + 1;
	return true;
}

/*
 * Shrink the calls up to the one that has failed. @list has room for @nr of
 * them, and gets the calls that are left. Returns their number, or 0 if the
 * failure does not come back.
 */
static unsigned long shrink(const struct run *failed, unsigned int *list, unsigned long nr)
{
	unsigned int *trial = calloc(nr, sizeof(*trial));
	const double deadline = seconds() + SHRINK_SECONDS;
	struct run run = *failed;
	unsigned long chunk, first, len, left;
	bool shrunk;

	if (!trial)
		ksft_exit_fail_msg("no memory\n");
	run.timeout = SHRINK_SECONDS / 2 * 1000;
	run.counts = NULL;

	/* Old steps seldom matter: how many of the last ones do? */
	for (len = 4;; len *= 4) {
		if (len > nr)
			len = nr;
		for (first = 0; first < len; first++)
			trial[first] = nr - len + first;
		left = len;
		if (still_fails(&run, trial, &left))
			break;
		if (len == nr || seconds() > deadline) {
			free(trial);
			return 0;
		}
	}
	memcpy(list, trial, left * sizeof(*list));

	/* Leave out one part after the other, in smaller and smaller parts. */
	for (chunk = (left + 1) / 2; chunk; chunk = shrunk && chunk == 1 ? 1 : chunk / 2) {
		shrunk = false;
		for (first = 0; first < left && left > 1 && seconds() < deadline;) {
			unsigned long end = first + chunk < left ? first + chunk : left;

			memcpy(trial, list, first * sizeof(*list));
			memcpy(trial + first, list + end, (left - end) * sizeof(*list));
			len = left - (end - first);
			if (len && still_fails(&run, trial, &len)) {
				left = len;
				memcpy(list, trial, left * sizeof(*list));
				shrunk = true;
			} else {
				first = end;
			}
		}
	}
	free(trial);
	return left;
}

static void print_record(enum twin which, const struct record *record)
{
	char fault[100] = "";

	if (record->sig)
		snprintf(fault, sizeof(fault), ", signal %d code %d address %#lx", record->sig,
			 record->code, record->addr);
	ksft_print_msg("  %-8s: ", twin_names[which]);
	printf(record->ret < 0 ? "%ld" : "%#lx", record->ret);
	printf("%s%s%s, value %016lx, child %016lx\n", record->err ? " " : "",
	       record->err ? strerror(record->err) : "", fault,
	       (unsigned long)record->value, (unsigned long)record->kid);
}

static void print_op(const struct run *run, unsigned long index)
{
	char text[300];
	struct op op;

	make_op(run, index, 0, &op);
	describe_op(&op, text, sizeof(text));
	ksft_print_msg("  %6lu: %s\n", index, text);
}

static void report(const struct run *run, const struct failure *failure)
{
	unsigned int *list = calloc(failure->pos + 1, sizeof(*list));
	struct failure last;
	struct run again;
	unsigned long i, nr;

	if (!list)
		ksft_exit_fail_msg("no memory\n");
	ksft_print_msg("seed %lu, call %lu: %s\n", (unsigned long)run->seed, failure->pos,
		       failure->reason);
	print_op(run, failure->pos);
	for (i = 0; i < NR_TWINS; i++)
		print_record(i, &failure->records[i]);

	nr = shrink(run, list, failure->pos + 1);
	if (nr) {
		again = *run;
		again.list = list;
		again.nr = nr;
		again.counts = NULL;
		if (!run_twins(&again, &last)) {
			ksft_print_msg("shrunk to %lu calls: %s\n", nr, last.reason);
			for (i = 0; i < nr; i++)
				print_op(run, list[i]);
			for (i = 0; i < NR_TWINS; i++)
				print_record(i, &last.records[i]);
		}
	} else {
		ksft_print_msg("not shrunk: it did not fail again in time\n");
	}
	ksft_print_msg("heap: %s, %s a granule\n", run->seed & 1 ? "continued" : "new",
		       run->seed & 2 ? "inside" : "at the start of");
	ksft_print_msg("repeat with: page_granule_diff --seed %lu --ops %lu --all %lu%s%s%s\n",
		       (unsigned long)run->seed, failure->pos + 1, all_every,
		       run->fs == NO_FILES ? "" : " --fs \"",
		       run->fs == NO_FILES ? "" : granule_fs_name(run->fs),
		       run->fs == NO_FILES ? "" : "\"");
	free(list);
}

static void print_counts(const unsigned long *counts)
{
	unsigned int i;

	for (i = 0; i < NR_OP_KINDS; i++)
		ksft_print_msg("%-35s %7lu, failed %7lu\n", kinds[i].name, counts[2 * i],
			       counts[2 * i + 1]);
}

static void test_seed(int fs, uint64_t seed, unsigned long nr_ops, bool inject,
		      unsigned long inject_at)
{
	static unsigned long counts[2 * NR_OP_KINDS];
	unsigned long faults = granule_vmstat("granule_fault");
	struct run run = {
		.seed = seed,
		.fs = fs,
		.nr = nr_ops,
		.inject = inject ? INJECT_RESULT : INJECT_NOTHING,
		.inject_at = inject_at,
		.timeout = TWIN_TIMEOUT,
		.counts = counts,
	};
	const double start = seconds();
	struct failure failure;
	bool same;

	memset(counts, 0, sizeof(counts));
	same = run_twins(&run, &failure);
	if (verbose)
		print_counts(counts);
	if (!same) {
		report(&run, &failure);
	} else {
		ksft_print_msg("seed %lu: %.0f calls a second\n", (unsigned long)seed,
			       nr_ops / (seconds() - start));
		/* A twin that is not tagged is easily the same. */
		if (nr_ops >= 1000 && granule_vmstat("granule_fault") == faults) {
			ksft_print_msg("no granule was populated\n");
			same = false;
		}
	}
	if (fs == NO_FILES)
		ksft_test_result(same, "seed %lu, %lu calls\n", (unsigned long)seed, nr_ops);
	else
		ksft_test_result(same, "%s mapped %s, seed %lu, %lu calls\n",
				 granule_fs_name(fs), shares_file(&run) ? "shared" : "privately",
				 (unsigned long)seed, nr_ops);
}

/* One seed shares the file, and the next one does not. */
static void test_file(enum granule_fs fs, unsigned long first, unsigned long nr_seeds,
		      unsigned long nr_ops)
{
	const char *missing = granule_fs_missing(fs);
	unsigned long i;

	for (i = 0; i < nr_seeds; i++) {
		if (missing)
			ksft_test_result_skip("%s: %s\n", granule_fs_name(fs), missing);
		else
			test_seed(fs, first + i, nr_ops, false, 0);
	}
}

/* Returns NO_FILES if there is no such file system. */
static int find_fs(const char *name)
{
	int fs;

	for (fs = 0; fs < FS_SYSV; fs++) {
		if (!strcmp(granule_fs_name(fs), name))
			return fs;
	}
	return NO_FILES;
}

/* Assert that a difference is found, and shrunk to no more than @most calls. */
static void test_detector(enum inject inject, unsigned long most, const char *name)
{
	const unsigned long at = 150;
	unsigned int list[400];
	struct failure failure;
	struct run run = {
		.seed = 1,
		.fs = NO_FILES,
		.list = list,
		.nr = ARRAY_SIZE(list),
		.inject = inject,
		.inject_at = at,
		.timeout = TWIN_TIMEOUT,
	};
	unsigned long i, nr = 0;
	bool found = false;

	/* With a list, all pages are compared after each call. */
	for (i = 0; i < run.nr; i++)
		list[i] = i;
	if (!run_twins(&run, &failure)) {
		nr = shrink(&run, list, failure.pos + 1);
		for (i = 0; i < nr; i++)
			found |= list[i] == at;
		ksft_print_msg("call %lu: %s; shrunk to %lu calls\n", failure.pos,
			       failure.reason, nr);
	}
	ksft_test_result(found && failure.pos >= at && nr <= most, "%s is found\n", name);
}

static bool arena_is_free(void)
{
	void *arena = (void *)(ARENA_ADDR - GRANULE_SIZE), *ptr;
	size_t len = HEAP_ADDR + HEAP_PAGES * BASE_SIZE - ARENA_ADDR + 2 * GRANULE_SIZE;

	ptr = mmap(arena, len, PROT_NONE, ANON_FLAGS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
	if (ptr != MAP_FAILED)
		munmap(ptr, len);
	return ptr == arena;
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
	fprintf(stderr, "page_granule_diff: %s\n", msg);
	return KSFT_FAIL;
}

static void print_usage(void)
{
	printf("usage: page_granule_diff [--ops N] [--seed S] [--all N] [--inject N] [--fs NAME]\n"
	       "                         [--verbose]\n"
	       "\n"
	       "Make random calls in a process with a default granule of 64 KiB and in one\n"
	       "without, and compare the results and the bytes after each. Run as root.\n"
	       "\n"
	       "  --ops N     calls to make for each seed (%lu)\n"
	       "  --seed S    use this seed only (1 to %lu)\n"
	       "  --all N     compare all pages after every Nth call, not only those that it\n"
	       "              was about (%lu)\n"
	       "  --inject N  falsify the result of call number N in one of the processes, to\n"
	       "              see that it is found\n"
	       "  --fs NAME   with a file of ext4, \"ext4 in blocks of 1 KiB\", xfs, btrfs, tmpfs or\n"
	       "              memfd, which odd seeds map shared; and not without files\n"
	       "  --verbose   count the calls by kind\n"
	       "  --help      this text\n", DEFAULT_OPS, DEFAULT_SEEDS, DEFAULT_ALL);
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "ops", required_argument, NULL, 'o' },
		{ "seed", required_argument, NULL, 's' },
		{ "all", required_argument, NULL, 'a' },
		{ "inject", required_argument, NULL, 'i' },
		{ "fs", required_argument, NULL, 'f' },
		{ "verbose", no_argument, NULL, 'v' },
		{ "help", no_argument, NULL, 'h' },
		{ }
	};
	unsigned long nr_ops = DEFAULT_OPS, first = 1, nr_seeds = DEFAULT_SEEDS, inject_at = 0, i;
	struct granule_swaps swaps;
	bool inject = false;
	int opt, fs = NO_FILES;

	opterr = 0;
	while ((opt = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (opt) {
		case 'o':
			if (!parse_number(optarg, UINT32_MAX, &nr_ops) || !nr_ops)
				return error("--ops takes a number of calls, 1 or more");
			break;
		case 's':
			if (!parse_number(optarg, UINT64_MAX, &first))
				return error("--seed takes a number");
			nr_seeds = 1;
			break;
		case 'a':
			if (!parse_number(optarg, UINT32_MAX, &all_every) || !all_every)
				return error("--all takes a number of calls, 1 or more");
			break;
		case 'i':
			if (!parse_number(optarg, UINT32_MAX, &inject_at))
				return error("--inject takes the number of a call, from 0 on");
			inject = true;
			break;
		case 'f':
			fs = find_fs(optarg);
			if (fs == NO_FILES)
				return error("--fs takes the name of a file system: see --help");
			break;
		case 'v':
			verbose = true;
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
	if (inject && inject_at >= nr_ops)
		return error("--inject needs a call number below that of --ops");

	ksft_print_header();
	granule_require();
	granule_save_settings();
	granule_thp_never();
	granule_read_swaps(&swaps);
	have_swap = swaps.nr;
	if (!arena_is_free())
		ksft_exit_fail_msg("the addresses from %#lx on are in use\n", ARENA_ADDR);
	shared = mmap(NULL, sizeof(*shared), PROT_RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (shared == MAP_FAILED)
		ksft_exit_fail_msg("no memory\n");

	granule_fs_make();
	if (fs != NO_FILES) {
		ksft_set_plan(nr_seeds);
		test_file(fs, first, nr_seeds, nr_ops);
		ksft_finished();
	}
	ksft_set_plan(2 + nr_seeds + 2 * FS_SYSV);
	test_detector(INJECT_RESULT, 1, "a wrong result");
	test_detector(INJECT_BYTE, 4, "a wrong byte");
	for (i = 0; i < nr_seeds; i++)
		test_seed(NO_FILES, first + i, nr_ops, inject, inject_at);
	for (fs = 0; fs < FS_SYSV; fs++)
		test_file(fs, first, 2, nr_ops < DEFAULT_FILE_OPS ? nr_ops : DEFAULT_FILE_OPS);
	ksft_finished();
}
