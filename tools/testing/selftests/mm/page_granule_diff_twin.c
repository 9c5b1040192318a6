// SPDX-License-Identifier: GPL-2.0
/*
 * Page granule comparison: a twin, the process that runs the sequence of calls
 * and records what it sees.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <setjmp.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kselftest.h"
#include "vm_util.h"
#include "page_granule_diff.h"
#include "page_granule_util.h"

/*
 * A twin must allocate no memory, which would be tagged for one twin only and
 * could come from brk. So there is no stdio here.
 */

struct kid {
	pid_t pid;
	int to;
	int from;
};

static struct {
	const struct run *run;
	struct record *record;		/* of this step */
	struct kid kids[MAX_KIDS];
	int maps;
	int pagemap;
	int mem;
	struct granule_file file;
	struct procmap_query mapped;	/* how a mapping of the file looks */
	int zero;
	int pipe[2];
	int reply;			/* to the parent */
	int command;			/* from it */
	bool in_core;			/* mincore() has filled vec for op */
} twin;

static unsigned char core_vec[NR_PAGES];
static char bounce[GRANULE_SIZE];
static struct record kid_record;

static sigjmp_buf fault_env;
static size_t progress;	/* the progress when a fault hit */

/* An address that can be compared, where it is in a window. */
static unsigned long relative(unsigned long addr)
{
	if (addr - heap_addr < HEAP_PAGES * BASE_SIZE)
		return addr - heap_addr + HEAP_ADDR;
	return addr;
}

static void note_fault(int sig, siginfo_t *info, void *context __always_unused)
{
	twin.record->sig = sig;
	twin.record->code = info->si_code;
	twin.record->addr = relative((unsigned long)info->si_addr);
	siglongjmp(fault_env, 1);
}

static void add_value(uint64_t value)
{
	twin.record->value = mix(twin.record->value + value);
}

static long note_result(long ret)
{
	twin.record->ret = ret;
	twin.record->err = ret == -1 ? errno : 0;
	return ret;
}

static void *note_address(void *ptr)
{
	note_result((long)ptr);
	if (ptr != MAP_FAILED)
		twin.record->ret = relative((unsigned long)ptr);
	return ptr;
}

/* The pattern depends on the place, so that a page in the wrong place shows. */
static uint64_t pattern(uint64_t key, size_t pos)
{
	return (key ^ pos) * 0x9e3779b97f4a7c15UL | 1;
}

static bool is_word(const char *p, size_t left)
{
	return !((unsigned long)p % sizeof(long)) && left >= sizeof(long);
}

static void fill_bytes(char *p, size_t len, uint64_t key)
{
	size_t i = 0;

	while (i < len) {
		store(&progress, i);
		if (is_word(p + i, len - i)) {
			store((uint64_t *)(p + i), pattern(key, i));
			i += sizeof(long);
		} else {
			store(p + i, pattern(key, i) >> 56);
			i++;
		}
	}
	store(&progress, len);
}

static uint64_t read_bytes(const char *p, size_t len)
{
	uint64_t sum = 0;
	size_t i = 0;

	while (i < len) {
		store(&progress, i);
		if (is_word(p + i, len - i)) {
			sum = sum * 31 + load((const uint64_t *)(p + i));
			i += sizeof(long);
		} else {
			sum = sum * 31 + load(p + i);
			i++;
		}
	}
	store(&progress, len);
	return sum;
}

/* Returns the number of bytes that were written before a fault. */
static size_t try_fill(char *p, size_t len, uint64_t key)
{
	store(&progress, 0);
	if (!sigsetjmp(fault_env, 0))
		fill_bytes(p, len, key);
	return load(&progress);
}

static size_t try_read(const char *p, size_t len)
{
	store(&progress, 0);
	if (!sigsetjmp(fault_env, 0))
		add_value(read_bytes(p, len));
	return load(&progress);
}

static void touch_pages(char *p, size_t nr, bool write, uint64_t key)
{
	size_t i;

	for (i = 0; i < nr; i++) {
		store(&progress, i);
		if (write)
			store(p + i * BASE_SIZE, key + i);
		else
			add_value(load(p + i * BASE_SIZE));
	}
	store(&progress, nr);
}

static size_t try_touch(char *p, size_t nr, bool write, uint64_t key)
{
	store(&progress, 0);
	if (!sigsetjmp(fault_env, 0))
		touch_pages(p, nr, write, key);
	return load(&progress);
}

/* A word that is not aligned takes one instruction, on CPUs that can. */
static bool try_word(char *p, bool write, uint64_t key)
{
	if (sigsetjmp(fault_env, 0))
		return false;
	barrier();
	if (write)
		memcpy(p, &key, sizeof(key));
	else
		memcpy(&key, p, sizeof(key));
	barrier();
	if (!write)
		add_value(key);
	return true;
}

static void do_access(const struct op *op)
{
	const bool write = op->kind == OP_WRITE;
	char *p = op_addr(op);
	size_t done;

	if (op->flags == ACCESS_TOUCH) {
		done = try_touch(p, op->nr, write, op->key);
	} else if (op->flags == ACCESS_STRADDLE && try_word(p, write, op->key)) {
		done = sizeof(long);
	} else if (write) {
		/*
		 * Also after a word that faulted: CPUs may, or may not, have
		 * written the part of it that is in the page that is writable.
		 */
		done = try_fill(p, op_len(op), op->key);
	} else {
		done = try_read(p, op_len(op));
	}
	note_result(done);
}

static void drain_pipe(void)
{
	ssize_t n;

	while ((n = read(twin.pipe[0], bounce, sizeof(bounce))) > 0)
		add_value(read_bytes(bounce, n) + n);
}

static void do_sys_access(const struct op *op)
{
	char *p = op_addr(op);
	size_t len = op_len(op);

	switch (op->kind) {
	case OP_SYS_WRITE:
		note_result(write(twin.pipe[1], p, len));
		drain_pipe();
		break;
	case OP_SYS_READ:
		fill_bytes(bounce, len, op->key);
		if (write(twin.pipe[1], bounce, len) != (ssize_t)len)
			_exit(EXIT_SETUP);
		note_result(read(twin.pipe[0], p, len));
		drain_pipe();
		break;
	case OP_SYS_ZERO:
		note_result(read(twin.zero, p, len));
		break;
	case OP_MEM_WRITE:
		fill_bytes(bounce, len, op->key);
		note_result(pwrite(twin.mem, bounce, len, (unsigned long)p));
		break;
	default:
		note_result(pread(twin.mem, bounce, len, (unsigned long)p));
		if (twin.record->ret > 0)
			add_value(read_bytes(bounce, twin.record->ret));
		break;
	}
}

/* Map memory, or a part of the file. */
static void *map(const struct op *op, char *addr, int prot)
{
	const bool file = !(op->flags & MAP_ANONYMOUS);

	return mmap(addr, op_len(op), prot, op->flags, file ? twin.file.fd : -1,
		    file ? op->offset * BASE_SIZE : 0);
}

static size_t file_len(void)
{
	struct stat st;

	if (fstat(twin.file.fd, &st))
		_exit(EXIT_SETUP);
	return st.st_size;
}

/*
 * Behind the end of a file, its last page has what was written there until it is
 * written back. So a file always ends with a page.
 */
static void do_file_access(const struct op *op)
{
	const off_t offset = op->offset * BASE_SIZE + op->skew;
	size_t len = op_len(op);

	if (op->kind == OP_FILE_READ) {
		note_result(pread(twin.file.fd, bounce, len, offset));
		if (twin.record->ret > 0)
			add_value(read_bytes(bounce, twin.record->ret));
		return;
	}
	if (offset + len > file_len())
		len = op->nr * BASE_SIZE - op->skew;
	fill_bytes(bounce, len, op->key);
	note_result(pwrite(twin.file.fd, bounce, len, offset));
}

static void do_file_space(const struct op *op)
{
	note_result(fallocate(twin.file.fd, op->flags, op->offset * BASE_SIZE, op_len(op)));
	if (file_len() > FILE_MAX_PAGES * BASE_SIZE)
		add_value(ftruncate(twin.file.fd, FILE_PAGES * BASE_SIZE));
}

/* An untagged mapping beside the others */
static void do_file_twice(const struct op *op)
{
	char *second = mmap((void *)SECOND_ADDR, op_len(op), op->prot,
			    MAP_SHARED_VALIDATE | MAP_FIXED | MAP_GRANULE_4KB, twin.file.fd,
			    op->offset * BASE_SIZE);

	note_address(second);
	if (second == MAP_FAILED)
		return;
	if (op->prot & PROT_WRITE)
		add_value(try_touch(second, op->nr, true, op->key));
	add_value(try_read(second, op_len(op)));
	munmap(second, op_len(op));
}

/*
 * A hint in a free range is where the mapping goes. What goes elsewhere is not
 * compared.
 */
static void do_mmap_hint(const struct op *op)
{
	char *addr = op_addr(op) - op->skew;
	void *ptr;

	ptr = note_address(map(op, addr, op->prot));
	if (ptr != MAP_FAILED && ptr != addr) {
		munmap(ptr, op_len(op));
		twin.record->ret = 0;
	}
}

/*
 * With no permissions at first: one twin may map it next to memory of libc, and
 * the other not. From a neighbour in use it would inherit, and keep, an
 * anon_vma, which limits later merges.
 */
static void do_mmap_move(const struct op *op)
{
	size_t len = op_len(op);
	void *ptr;

	ptr = map(op, NULL, PROT_NONE);
	if (ptr == MAP_FAILED) {
		note_address(ptr);
		return;
	}
	if (note_address(mremap(ptr, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, op_addr(op))) ==
	    MAP_FAILED)
		munmap(ptr, len);
	else
		add_value(mprotect(op_addr(op), len, op->prot));
}

/*
 * For the same reason, let it differ from anything that it could be moved to.
 */
static void do_mremap_freely(const struct op *op)
{
	size_t len = op_len(op), to_len = op->to_nr * BASE_SIZE;
	char *addr = op_addr(op);
	void *ptr;

	if (note_result(madvise(addr, len, MADV_DONTDUMP)))
		return;
	ptr = mremap(addr, len, to_len, MREMAP_MAYMOVE);
	if (ptr == MAP_FAILED || ptr == addr) {
		note_address(ptr);
		return;
	}
	if (note_address(mremap(ptr, to_len, to_len, MREMAP_MAYMOVE | MREMAP_FIXED,
				page_addr(op->to))) == MAP_FAILED)
		munmap(ptr, to_len);
	else
		add_value(madvise((char *)page_addr(op->to), to_len, MADV_DODUMP));
}

/*
 * A tagged mapping grows to the start of a granule. Both twins agree on whether
 * it grows, and the new part reads as zero. The space below the arena is free,
 * so it grows unless something is in the lowest page.
 */
static void do_growsdown(const struct op *op)
{
	char *arena = (char *)page_addr(0), *p = op_addr(op) - op->skew;
	size_t below = op->page < GRANULE_NR_PAGES ? op->page : GRANULE_NR_PAGES;
	char *top = p + op->nr * BASE_SIZE;
	void *ptr;

	munmap(arena, top - arena);
	ptr = note_address(mmap(p, top - p, PROT_RW, ANON_FLAGS | MAP_FIXED | MAP_GROWSDOWN,
				-1, 0));
	if (ptr == MAP_FAILED)
		return;
	if (op->flags)
		add_value(mmap(arena, BASE_SIZE, PROT_RW, ANON_FLAGS | MAP_FIXED, -1, 0) ==
			  MAP_FAILED);
	add_value(try_fill(p, 8, op->key));
	p -= (1 + op->key % below) * BASE_SIZE;
	add_value(try_read(p, BASE_SIZE));
	add_value(try_fill(p, 8, op->key));
	add_value(try_read(p, BASE_SIZE));
	munmap(arena, top - arena);
}

/*
 * Reclaim decides how a page reads after MADV_FREE. So write all of it, or
 * discard it for good where it is not writable.
 */
static void do_free(const struct op *op)
{
	char *p = (char *)page_addr(op->page);
	char *end = p + op->nr * BASE_SIZE;
	size_t done;

	note_result(madvise(op_addr(op), op_len(op), MADV_FREE));
	for (; p < end; p += BASE_SIZE) {
		done = try_fill(p, BASE_SIZE, op->key + (end - p));
		add_value(done);
		if (done < BASE_SIZE)
			add_value(madvise(p, BASE_SIZE, MADV_DONTNEED_LOCKED));
	}
}

static void do_brk(const struct op *op)
{
	unsigned long brk = syscall(__NR_brk, heap_addr + op_len(op));

	note_result(brk - heap_addr);
}

static void do_madvise(const struct op *op)
{
	int ret = madvise(op_addr(op), op_len(op), op->flags);

	/* There is more to collapse for one than for the other. */
	if (op->flags != MADV_COLLAPSE)
		note_result(ret);
}

static void do_fork(const struct op *op);
static void do_wipeonfork(const struct op *op);

static void run_op(const struct op *op)
{
	size_t len = op_len(op), to_len = op->to_nr * BASE_SIZE;
	void *to = (void *)page_addr(op->to);
	char *addr = op_addr(op);

	switch (op->kind) {
	case OP_MMAP:
		note_address(map(op, addr, op->prot));
		break;
	case OP_MMAP_HINT:
		do_mmap_hint(op);
		break;
	case OP_MMAP_MOVE:
		do_mmap_move(op);
		break;
	case OP_GROWSDOWN:
		do_growsdown(op);
		break;
	case OP_MUNMAP:
		note_result(munmap(addr, len));
		break;
	case OP_MPROTECT:
		note_result(mprotect(addr, len, op->prot));
		break;
	case OP_MREMAP_SIZE:
		note_address(mremap(addr, len, to_len, 0));
		break;
	case OP_MREMAP_FIXED:
		note_address(mremap(addr, len, to_len, MREMAP_MAYMOVE | MREMAP_FIXED, to));
		break;
	case OP_MREMAP_DONTUNMAP:
		note_address(mremap(addr, len, to_len,
				    MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, to));
		break;
	case OP_MREMAP_COPY:
		note_address(mremap(addr, 0, to_len, MREMAP_MAYMOVE | MREMAP_FIXED, to));
		break;
	case OP_MREMAP_FREELY:
		do_mremap_freely(op);
		break;
	case OP_MADVISE:
		do_madvise(op);
		break;
	case OP_FREE:
		do_free(op);
		break;
	case OP_MLOCK:
		note_result(mlock(addr, len));
		break;
	case OP_MLOCK_ONFAULT:
		note_result(mlock2(addr, len, MLOCK_ONFAULT));
		break;
	case OP_MUNLOCK:
		note_result(munlock(addr, len));
		break;
	case OP_MSYNC:
		note_result(msync(addr, len, op->flags));
		break;
	case OP_MINCORE:
		twin.in_core = !note_result(mincore(addr, len, core_vec + op->page));
		break;
	case OP_BRK:
		do_brk(op);
		break;
	case OP_FORK:
		do_fork(op);
		break;
	case OP_WIPEONFORK:
		do_wipeonfork(op);
		break;
	case OP_WRITE:
	case OP_READ:
		do_access(op);
		break;
	case OP_SYS_WRITE:
	case OP_SYS_READ:
	case OP_SYS_ZERO:
	case OP_MEM_WRITE:
	case OP_MEM_READ:
		do_sys_access(op);
		break;
	case OP_FILE_WRITE:
	case OP_FILE_READ:
		do_file_access(op);
		break;
	case OP_FILE_LENGTH:
		note_result(ftruncate(twin.file.fd, op->offset * BASE_SIZE));
		break;
	case OP_FILE_SPACE:
		do_file_space(op);
		break;
	case OP_FILE_SYNC:
		note_result(fsync(twin.file.fd));
		break;
	case OP_FILE_ADVISE:
		note_result(posix_fadvise(twin.file.fd, op->offset * BASE_SIZE, op_len(op),
					  op->flags));
		break;
	case OP_FILE_TWICE:
		do_file_twice(op);
		break;
	default:
		break;
	}
}

/* The pages to look at after a step. */
enum scope {
	LOOK_NEAR,	/* pages that the step was about, if they are present */
	LOOK_ALL,	/* pages that are present */
	LOOK_DEEP,	/* all pages: read in absent ones */
};

#define SUM_FAULT	1UL	/* stands for a page that cannot be read */

/*
 * Bytes that are zero add nothing. So a page that was never touched has the sum
 * of one that was read, of which a tagged mapping has more.
 */
static uint64_t add_words(const uint64_t *p, uint64_t key)
{
	uint64_t sum = 0;
	unsigned int i;

	for (i = 0; i < BASE_SIZE / sizeof(*p); i++, key += 2)
		sum += load(p + i) * key;
	return sum;
}

static uint64_t sum_page(unsigned int page, uint64_t key)
{
	if (sigsetjmp(fault_env, 0))
		return SUM_FAULT;
	return add_words((const uint64_t *)page_addr(page), key | 1);
}

static bool is_file(const struct procmap_query *query)
{
	return query->inode == twin.mapped.inode &&
	       query->dev_major == twin.mapped.dev_major &&
	       query->dev_minor == twin.mapped.dev_minor;
}

static void look_at_vmas(unsigned int first, unsigned int end)
{
	const unsigned long limit = page_addr(end - 1) + BASE_SIZE;
	unsigned long addr = page_addr(first);
	unsigned int page = first;
	struct procmap_query query;
	uint32_t attr, offset;

	while (addr < limit) {
		memset(&query, 0, sizeof(query));
		query.size = sizeof(query);
		query.query_flags = PROCMAP_QUERY_COVERING_OR_NEXT_VMA;
		query.query_addr = addr;
		if (ioctl(twin.maps, PROCMAP_QUERY, &query)) {
			if (errno != ENOENT)
				_exit(EXIT_SETUP);
			return;
		}
		if (query.vma_start >= limit)
			return;

		attr = PG_MAPPED;
		if (query.vma_flags & PROCMAP_QUERY_VMA_READABLE)
			attr |= PG_READ;
		if (query.vma_flags & PROCMAP_QUERY_VMA_WRITABLE)
			attr |= PG_WRITE;
		if (query.vma_flags & PROCMAP_QUERY_VMA_EXECUTABLE)
			attr |= PG_EXEC;
		if (query.vma_flags & PROCMAP_QUERY_VMA_SHARED)
			attr |= PG_SHARED;
		for (; page < end && page_addr(page) < query.vma_end; page++) {
			addr = page_addr(page);
			if (addr < query.vma_start)
				continue;
			offset = (addr - query.vma_start + query.vma_offset) / BASE_SIZE;
			twin.record->attr[page] = attr;
			if (query.inode)
				twin.record->attr[page] |= PG_OFFSET(offset);
			if (query.inode && is_file(&query))
				twin.record->attr[page] |= PG_FILE;
			if (addr == query.vma_start)
				twin.record->attr[page] |= PG_START;
		}
		addr = query.vma_end;
	}
}

static void look_at_page(unsigned int page, uint64_t entry, uint64_t key, enum scope scope)
{
	uint32_t *attr = &twin.record->attr[page];
	uint64_t *sum = &twin.record->sum[page];

	*sum = 0;
	if (entry & PM_GUARD_REGION) {
		*attr |= PG_GUARD;
		return;
	}
	if (!(*attr & PG_MAPPED))
		return;
	if (entry & (PM_PRESENT | PM_SWAP))
		*attr |= PG_POPULATED;
	if (!(*attr & PG_READ))
		return;
	if (entry & PM_PRESENT || scope == LOOK_DEEP)
		*sum = sum_page(page, key);
	else if (*attr & (PG_SHARED | PG_FILE | PG_POPULATED))
		return;
	*attr |= PG_SUM;
}

static void look_at_pages(const struct op *op, unsigned int first, unsigned int end,
			  enum scope scope)
{
	static uint64_t pagemap[NR_PAGES];
	const uint64_t key = mix(op->index);
	unsigned int i;

	memset(twin.record->attr + first, 0, (end - first) * sizeof(*twin.record->attr));
	look_at_vmas(first, end);
	if (pread(twin.pagemap, pagemap + first, (end - first) * sizeof(*pagemap),
		  page_addr(first) / BASE_SIZE * sizeof(*pagemap)) < 0)
		_exit(EXIT_SETUP);
	for (i = first; i < end; i++) {
		look_at_page(i, pagemap[i], key, scope);
		if (!twin.in_core || i < op->page || i >= op->page + op->nr)
			continue;
		if (core_vec[i] & 1)
			twin.record->attr[i] |= PG_IN_CORE;
		else if (!(pagemap[i] & PM_SWAP))
			twin.record->attr[i] |= PG_NOT_IN_CORE;
	}
}

static void look_near(const struct op *op, unsigned int page, unsigned int nr)
{
	const unsigned int start = page < ARENA_PAGES ? 0 : ARENA_PAGES;

	look_at_pages(op, page > start ? page - 1 : start, page + clamp_nr(page, nr + 1),
		      LOOK_NEAR);
}

/* Fill in the part of the record about pages. */
static void look(const struct op *op, enum scope scope)
{
	const unsigned int nr = op->nr > op->to_nr ? op->nr : op->to_nr;
	struct record *record = twin.record;
	const struct record saved = {
		.sig = record->sig, .code = record->code, .addr = record->addr,
	};

	memset(record->attr, 0, sizeof(record->attr));
	if (scope != LOOK_NEAR) {
		look_at_pages(op, 0, ARENA_PAGES, scope);
		look_at_pages(op, ARENA_PAGES, NR_PAGES, scope);
	} else if (op->kind == OP_GROWSDOWN) {
		look_near(op, 0, op->page + op->nr);
	} else if (op->kind == OP_BRK) {
		look_near(op, ARENA_PAGES, HEAP_PAGES);
	} else {
		look_near(op, op->page, nr);
		if (op->kind >= OP_MREMAP_FIXED && op->kind <= OP_MREMAP_FREELY)
			look_near(op, op->to, nr);
	}
	twin.in_core = false;
	record->sig = saved.sig;
	record->code = saved.code;
	record->addr = saved.addr;
}

static void open_files(void)
{
	twin.maps = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
	twin.pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	twin.mem = open("/proc/self/mem", O_RDWR | O_CLOEXEC);
	if (twin.maps < 0 || twin.pagemap < 0 || twin.mem < 0)
		_exit(EXIT_SETUP);
}

static void clear_record(struct record *record)
{
	memset(record, 0, offsetof(struct record, attr));
	twin.record = record;
}

/*
 * A child. It makes some calls at once, and then waits while the parent goes
 * on. When the parent says so, it makes some more, and looks at its memory.
 */

static void run_kid_ops(unsigned long index, unsigned int first, uint64_t *result)
{
	unsigned int i, nr = mix(index + first) % 4;
	struct op op;

	for (i = 0; i < nr; i++) {
		make_op(twin.run, index, first + i, &op);
		clear_record(&kid_record);
		run_op(&op);
		twin.in_core = false;
		*result = mix(*result + kid_record.ret);
		*result = mix(*result + kid_record.err);
		*result = mix(*result + kid_record.sig);
		*result = mix(*result + kid_record.code);
		*result = mix(*result + kid_record.addr);
		*result = mix(*result + kid_record.value);
	}
}

static void kid_main(const struct op *op, int from_parent, int to_parent)
{
	uint64_t result = 0;
	unsigned int i;
	char byte;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	close(twin.reply);
	close(twin.command);
	close(twin.maps);
	close(twin.pagemap);
	close(twin.mem);
	open_files();

	if (op->kind == OP_FORK)
		run_kid_ops(op->index, 1, &result);
	if (write(to_parent, &result, sizeof(result)) != sizeof(result) ||
	    read(from_parent, &byte, 1) != 1)
		_exit(EXIT_SETUP);

	if (op->kind == OP_FORK)
		run_kid_ops(op->index, 11, &result);
	clear_record(&kid_record);
	if (op->kind == OP_WIPEONFORK)
		add_value(try_touch(op_addr(op), op->nr, false, 0) +
			  try_touch(op_addr(op), op->nr, true, op->key));
	look(op, LOOK_DEEP);
	for (i = 0; i < NR_PAGES; i++)
		result = mix(result + (kid_record.attr[i] & PG_SAME) + kid_record.sum[i]);
	result = mix(result + kid_record.value);
	if (write(to_parent, &result, sizeof(result)) != sizeof(result))
		_exit(EXIT_SETUP);
	_exit(0);
}

static void hear_kid(const struct kid *kid)
{
	uint64_t result = 0;

	if (read(kid->from, &result, sizeof(result)) != sizeof(result))
		result = -1;
	twin.record->kid = mix(twin.record->kid + result);
}

static void start_kid(const struct op *op, struct kid *kid)
{
	int to[2], from[2];

	if (pipe(to) || pipe(from))
		_exit(EXIT_SETUP);
	kid->pid = fork();
	if (!kid->pid)
		kid_main(op, to[0], from[1]);
	close(to[0]);
	close(from[1]);
	kid->to = to[1];
	kid->from = from[0];
	if (kid->pid < 0) {
		note_result(-1);
		kid->pid = 0;
		close(kid->to);
		close(kid->from);
		return;
	}
	hear_kid(kid);
}

static void finish_kid(struct kid *kid)
{
	int status = 0;

	if (write(kid->to, "", 1) == 1)
		hear_kid(kid);
	close(kid->to);
	close(kid->from);
	waitpid(kid->pid, &status, 0);
	add_value(status);
	kid->pid = 0;
}

static void do_fork(const struct op *op)
{
	struct kid *kid = &twin.kids[op->flags];

	if (kid->pid)
		finish_kid(kid);
	else
		start_kid(op, kid);
}

/*
 * For one child only, and that makes no calls: to split a VMA that was wiped by
 * fork, after it was moved by mremap, trips an assertion on the page offset of
 * unused anonymous memory (in 7.3, granules or not).
 */
static void do_wipeonfork(const struct op *op)
{
	struct kid kid;

	note_result(madvise(op_addr(op), op_len(op), MADV_WIPEONFORK));
	start_kid(op, &kid);
	if (kid.pid)
		finish_kid(&kid);
	add_value(madvise((char *)page_addr(op->page), op->nr * BASE_SIZE, MADV_KEEPONFORK));
}

/*
 * A heap that is there already, or a new one, at the start of a granule or
 * inside one. The old part is untagged, so only one twin could merge it with
 * the window: leave a hole between them.
 */
static bool set_up_heap(uint64_t seed)
{
	unsigned long brk, skew = seed & 2 ? 5 * BASE_SIZE : 0;

	if (seed & 1) {
		brk = granule_round_up(syscall(__NR_brk, 0)) + GRANULE_SIZE + skew;
		heap_addr = brk;
		return syscall(__NR_brk, brk) == (long)brk &&
		       !munmap((char *)brk - BASE_SIZE, BASE_SIZE);
	}
	brk = HEAP_ADDR + skew;
	heap_addr = brk;
	/* One that is inside a page begins with the next one. */
	if (skew)
		brk -= 1000;
	return !prctl(PR_SET_MM, PR_SET_MM_BRK, brk, 0, 0) &&
	       !prctl(PR_SET_MM, PR_SET_MM_START_BRK, brk, 0, 0);
}

/* A file of its own, which has its contents on the disk, and is not cached. */
static bool set_up_file(enum granule_fs fs)
{
	char *map;
	size_t pos;

	if (!granule_file_open(&twin.file, fs, FILE_PAGES * BASE_SIZE))
		return false;
	/* btrfs has another device in stat(). */
	map = mmap(NULL, BASE_SIZE, PROT_READ, MAP_SHARED, twin.file.fd, 0);
	twin.mapped = (struct procmap_query){
		.size = sizeof(twin.mapped), .query_addr = (uintptr_t)map,
	};
	if (map == MAP_FAILED || ioctl(twin.maps, PROCMAP_QUERY, &twin.mapped) ||
	    munmap(map, BASE_SIZE))
		return false;
	for (pos = 0; pos < FILE_PAGES * BASE_SIZE; pos += sizeof(bounce)) {
		fill_bytes(bounce, sizeof(bounce), pos);
		if (pwrite(twin.file.fd, bounce, sizeof(bounce), pos) != sizeof(bounce))
			return false;
	}
	return !fsync(twin.file.fd) &&
	       !posix_fadvise(twin.file.fd, 0, 0, POSIX_FADV_DONTNEED);
}

static void set_up_failed(const char *what)
{
	ksft_print_msg("%s: %s\n", what, strerror(errno));
	_exit(EXIT_SETUP);
}

static void set_up_twin(const struct run *run, enum twin which)
{
	static const int signals[] = { SIGSEGV, SIGBUS };
	struct sigaction action = {
		.sa_sigaction = note_fault,
		.sa_flags = SA_SIGINFO | SA_NODEFER,
	};
	unsigned int i;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	twin.run = run;
	for (i = 0; i < ARRAY_SIZE(signals); i++)
		sigaction(signals[i], &action, NULL);
	open_files();
	twin.zero = open("/dev/zero", O_RDONLY | O_CLOEXEC);
	if (twin.zero < 0)
		set_up_failed("/dev/zero");
	if (pipe2(twin.pipe, O_NONBLOCK))
		set_up_failed("pipe2");
	if (run->fs != NO_FILES && !set_up_file(run->fs))
		set_up_failed("cannot make a file");
	if (!set_up_heap(run->seed))
		set_up_failed("cannot set a heap up");
	if (granule_set(PR_GRANULE_MMAP, which == TAGGED ? GRANULE_SIZE : BASE_SIZE))
		set_up_failed("PR_SET_PAGE_GRANULE");
}

/* Falsify a byte of the first page that there is. */
static void inject_byte(const struct op *op)
{
	const uint32_t wanted = PG_READ | PG_WRITE | PG_POPULATED;
	unsigned int i;
	char *p;

	look(op, LOOK_ALL);
	for (i = 0; i < NR_PAGES; i++) {
		if ((twin.record->attr[i] & (wanted | PG_GUARD)) == wanted) {
			p = (char *)page_addr(i);
			store(p, load(p) ^ 1);
			return;
		}
	}
}

void __noreturn run_twin(const struct run *run, enum twin which, int command, int reply)
{
	enum scope scope;
	unsigned long i;
	struct op op;
	char byte;
	int kid;

	twin.command = command;
	twin.reply = reply;
	set_up_twin(run, which);
	for (i = 0; i < run->nr; i++) {
		const bool last = i == run->nr - 1;

		store(&shared->progress[which], i);
		clear_record(&shared->records[which][i % BATCH]);
		make_op(run, run->list ? run->list[i] : i, 0, &op);
		run_op(&op);
		for (kid = 0; last && kid < MAX_KIDS; kid++) {
			if (twin.kids[kid].pid)
				finish_kid(&twin.kids[kid]);
		}

		if (which == TAGGED && op.index == run->inject_at) {
			if (run->inject == INJECT_RESULT)
				twin.record->ret ^= 1;
			else if (run->inject == INJECT_BYTE)
				inject_byte(&op);
		}

		if (last || op.kind == OP_CHECK)
			scope = LOOK_DEEP;
		else if (run->list || !(op.index % all_every))
			scope = LOOK_ALL;
		else
			scope = LOOK_NEAR;
		look(&op, scope);

		if (last || i % BATCH == BATCH - 1) {
			if (write(twin.reply, "", 1) != 1 || read(twin.command, &byte, 1) != 1)
				break;
		}
	}
	_exit(0);
}
