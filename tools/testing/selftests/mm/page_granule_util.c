// SPDX-License-Identifier: GPL-2.0
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/mempolicy.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "kselftest.h"
#include "vm_util.h"
#include "hugepage_settings.h"
#include "page_granule_util.h"

static bool saved_enabled;

bool granule_supported(void)
{
	return prctl(PR_GET_PAGE_GRANULE, PR_GRANULE_MMAP, 0UL, 0UL, 0UL) >= 0;
}

/* Leave the program, saying what to do, where the tests cannot run at all. */
void granule_require(void)
{
	if (getpagesize() != BASE_SIZE)
		ksft_exit_skip("page size is %d: boot a kernel with 4 KiB pages\n",
			       getpagesize());
	if (geteuid())
		ksft_exit_skip("PFNs and settings need root: run as root\n");
	if (!granule_supported())
		ksft_exit_skip("no page granules: build the kernel with CONFIG_PAGE_GRANULE=y\n");
	if (!thp_available())
		ksft_exit_skip("no transparent_hugepage settings: mount sysfs\n");
}

int granule_set_enabled(bool enabled)
{
	return granule_write(GRANULE_SYSFS "enabled", enabled ? "1" : "0");
}

/*
 * Have broken granules repaired, or left alone for a test to look at. Returns
 * false where debugfs does not offer that.
 */
bool granule_repair(bool on)
{
	return !granule_write("/sys/kernel/debug/page_granule/repair", on ? "Y" : "N");
}

/*
 * Ask the kernel to check the granules of a process, at the end of a test. A
 * kernel that has no checker, or a process that may not ask, has nothing to
 * say. Any other error means that nothing, or not everything, has been checked.
 */
bool granule_invariants_hold_in(pid_t pid)
{
	char text[16];
	int ret;

	snprintf(text, sizeof(text), "%d", pid);
	ret = granule_write("/sys/kernel/debug/page_granule/check", text);
	if (!ret || ret == -ENOENT || ret == -EACCES || ret == -EPERM)
		return true;
	ksft_print_msg("the check of process %d: %s\n", pid, strerror(-ret));
	return false;
}

bool granule_invariants_hold(void)
{
	return granule_invariants_hold_in(getpid());
}

static void restore_enabled(void)
{
	granule_set_enabled(saved_enabled);
	granule_repair(true);
}

/*
 * Save the settings that tests change, and put them back when the program ends.
 * Call it once, before the harness starts: a test killed by its timeout then
 * leaves nothing behind either.
 */
void granule_save_settings(void)
{
	thp_save_settings();
	if (!granule_supported())
		return;
	saved_enabled = read_num(GRANULE_SYSFS "enabled");
	atexit(restore_enabled);
	granule_repair(false);
	if (granule_set_enabled(true))
		ksft_exit_fail_msg("cannot write " GRANULE_SYSFS "enabled: %s\n",
				   strerror(errno));
}

static void write_thp(unsigned int always_order)
{
	struct thp_settings settings;
	unsigned int i;

	thp_read_settings(&settings);
	settings.thp_enabled = THP_NEVER;
	for (i = 0; i < NR_ORDERS; i++)
		settings.hugepages[i].enabled = THP_NEVER;
	if (always_order)
		settings.hugepages[always_order].enabled = THP_ALWAYS;
	thp_write_settings(&settings);
}

/* Nothing but the granule may ask for a large folio from here on. */
void granule_thp_never(void)
{
	write_thp(0);
}

/* "always" for anonymous folios of one order, "never" for all others. */
void granule_thp_order(unsigned int order)
{
	write_thp(order);
}

int granule_set(unsigned long scope, unsigned long size)
{
	if (prctl(PR_SET_PAGE_GRANULE, scope, size, 0UL, 0UL))
		return -errno;
	return 0;
}

long granule_get(unsigned long scope)
{
	long ret = prctl(PR_GET_PAGE_GRANULE, scope, 0UL, 0UL, 0UL);

	return ret < 0 ? -errno : ret;
}

/*
 * Map anonymous memory of the given kind, private unless @flags has MAP_SHARED.
 * The process default is restored, so that only this mapping is affected.
 */
void *granule_mmap(enum granule_kind kind, void *addr, size_t len, int prot,
		   int flags)
{
	long old = granule_get(PR_GRANULE_MMAP);
	int saved_errno;
	void *ptr;

	flags |= flags & MAP_SHARED ? MAP_ANONYMOUS : ANON_FLAGS;
	if (kind == GRANULE_CONTRACT)
		flags |= MAP_GRANULE_64KB;
	else if (kind == GRANULE_UNTAGGED)
		flags |= MAP_GRANULE_4KB;
	else if (granule_set(PR_GRANULE_MMAP, GRANULE_SIZE))
		return MAP_FAILED;

	ptr = mmap(addr, len, prot, flags, -1, 0);
	saved_errno = errno;
	if (kind == GRANULE_DEFAULT)
		granule_set(PR_GRANULE_MMAP, old);
	errno = saved_errno;
	return ptr;
}

/*
 * Reserve @len bytes, 64 KiB-aligned, untagged and PROT_NONE, for tests to map
 * into with MAP_FIXED. It has a granule more on either side, so that mappings
 * inside never meet a neighbour to merge with.
 */
char *granule_reserve(size_t len)
{
	char *ptr;

	ptr = granule_mmap(GRANULE_UNTAGGED, NULL, len + 3 * GRANULE_SIZE,
			   PROT_NONE, MAP_NORESERVE);
	if (ptr == MAP_FAILED)
		return NULL;
	return (char *)granule_round_up(ptr) + GRANULE_SIZE;
}

/*
 * Memory of the given kind that is aligned, and that merges with no neighbour.
 */
char *granule_area(enum granule_kind kind, size_t len, int flags)
{
	char *ptr = granule_reserve(len);

	if (ptr && granule_mmap(kind, ptr, len, PROT_RW, MAP_FIXED | flags) != ptr)
		return NULL;
	return ptr;
}

/*
 * remap_file_pages() from @page of the file on. Returns 0 or a negative errno.
 */
int granule_remap_pages(char *addr, size_t len, unsigned long page)
{
	return syscall(__NR_remap_file_pages, addr, len, 0UL, page, 0UL) ? -errno : 0;
}

/* Private or shared memory of a kind; without MAP_FIXED in @flags, anywhere. */
char *granule_map(enum granule_kind kind, bool shared, void *addr, size_t len, int flags)
{
	return granule_mmap(kind, addr, len, PROT_RW, flags | (shared ? MAP_SHARED : 0));
}

/* The least length of a mapping of @kind that has room for @len. */
size_t granule_mapped_len(enum granule_kind kind, size_t len)
{
	return kind == GRANULE_CONTRACT ? granule_round_up(len) : len;
}

bool granule_is_filled(const char *addr, size_t len, char value)
{
	return !len || (*addr == value && !memcmp(addr, addr + 1, len - 1));
}

/* Write to each page what zram and zswap cannot make one word of. */
void granule_touch(char *area, size_t len)
{
	size_t i;

	for (i = 0; i < len; i += BASE_SIZE)
		*(unsigned long *)(area + i) = i * 2654435761UL + 1;
}

/* The raw call, since libc must not see the heap change. */
char *granule_brk(char *addr)
{
	return (char *)syscall(__NR_brk, addr);
}

int granule_open_pagemap(void)
{
	return open("/proc/self/pagemap", O_RDONLY);
}

/*
 * Do 16 pages lie on consecutive PFNs, from a multiple of 16? Gives the first.
 */
static bool pfns_consecutive(const uint64_t *ent, uint64_t *first)
{
	unsigned int i;

	*first = PAGEMAP_PFN(ent[0]);
	if (!*first || *first % GRANULE_NR_PAGES)
		return false;
	for (i = 0; i < GRANULE_NR_PAGES; i++) {
		if (!PAGEMAP_PRESENT(ent[i]) || PAGEMAP_PFN(ent[i]) != *first + i)
			return false;
	}
	return true;
}

/*
 * Are 16 naturally aligned PFNs in one folio? Single pages that happen to be
 * adjacent are not: they are reclaimed and migrated one by one. A folio of
 * order 4 or more has all of them for tail pages, the first one perhaps not.
 */
static bool pfns_in_one_folio(uint64_t first)
{
	static int fd = -1;
	uint64_t flags[GRANULE_NR_PAGES];
	unsigned int i;

	if (fd < 0)
		fd = open("/proc/kpageflags", O_RDONLY | O_CLOEXEC);
	if (fd < 0 || pread(fd, flags, sizeof(flags), first * sizeof(flags[0])) !=
		      sizeof(flags))
		ksft_exit_fail_msg("reading /proc/kpageflags failed\n");
	for (i = 1; i < GRANULE_NR_PAGES; i++) {
		if (!(flags[i] & KPF_COMPOUND_TAIL))
			return false;
	}
	return true;
}

static void read_pagemap(int pagemap_fd, const void *addr, uint64_t *ent)
{
	const size_t size = GRANULE_NR_PAGES * sizeof(*ent);

	if (pread(pagemap_fd, ent, size, (uintptr_t)addr / BASE_SIZE * sizeof(*ent)) !=
	    (ssize_t)size)
		ksft_exit_fail_msg("reading pagemap failed\n");
}

static unsigned int count_filled(const uint64_t *ent)
{
	unsigned int i, filled = 0;

	for (i = 0; i < GRANULE_NR_PAGES; i++)
		filled += !!(ent[i] & (PM_PRESENT | PM_SWAP));
	return filled;
}

/*
 * How many pages of a granule are populated? The 16 entries are read under one
 * page table lock, so this holds its own against concurrent faults.
 */
unsigned int granule_filled(int pagemap_fd, const void *addr)
{
	uint64_t ent[GRANULE_NR_PAGES];

	read_pagemap(pagemap_fd, addr, ent);
	return count_filled(ent);
}

/*
 * A granule is whole when its 16 pages are present and are a run: consecutive
 * PFNs from a multiple of 16, in one folio. It is empty when nothing is there,
 * and broken otherwise. For the shared zero pages, see granule_is_zero_run().
 */
enum granule_state granule_state(int pagemap_fd, const void *addr)
{
	uint64_t ent[GRANULE_NR_PAGES], first;

	read_pagemap(pagemap_fd, addr, ent);
	if (!count_filled(ent))
		return GRANULE_EMPTY;
	if (pfns_consecutive(ent, &first) && pfns_in_one_folio(first))
		return GRANULE_WHOLE;
	return GRANULE_BROKEN;
}

/* How many granules of [addr, addr + len) are in @state? */
unsigned long granule_count(int pagemap_fd, const void *addr, size_t len,
			    enum granule_state state)
{
	const char *p = (const char *)granule_round_up(addr);
	const char *end = (const char *)addr + len;
	unsigned long nr = 0;

	for (; p + GRANULE_SIZE <= end; p += GRANULE_SIZE)
		nr += granule_state(pagemap_fd, p) == state;
	return nr;
}

unsigned long granule_present_pages(int pagemap_fd, const void *addr, size_t len)
{
	const char *p = addr;
	unsigned long nr = 0;

	for (; p < (const char *)addr + len; p += BASE_SIZE)
		nr += PAGEMAP_PRESENT(pagemap_get_entry(pagemap_fd, (char *)p));
	return nr;
}

unsigned long granule_present(int pagemap_fd, const char *granule)
{
	return granule_present_pages(pagemap_fd, granule, GRANULE_SIZE);
}

/* The page has to be present. */
unsigned long granule_pfn(int pagemap_fd, char *area, unsigned long page)
{
	return pagemap_get_pfn(pagemap_fd, page_at(area, page));
}

/*
 * Does the granule at @addr map 16 shared zero pages, consecutive and aligned?
 */
bool granule_is_zero_run(int pagemap_fd, const void *addr)
{
	uint64_t ent[GRANULE_NR_PAGES], first;
	struct page_region regions[GRANULE_NR_PAGES];
	struct pm_scan_arg arg = {
		.size = sizeof(arg),
		.start = (uintptr_t)addr,
		.end = (uintptr_t)addr + GRANULE_SIZE,
		.vec = (uintptr_t)regions,
		.vec_len = GRANULE_NR_PAGES,
		.category_mask = PAGE_IS_PFNZERO | PAGE_IS_PRESENT,
		.return_mask = PAGE_IS_PFNZERO | PAGE_IS_PRESENT,
	};

	if (ioctl(pagemap_fd, PAGEMAP_SCAN, &arg) != 1)
		return false;
	if (regions[0].start != arg.start || regions[0].end != arg.end)
		return false;
	read_pagemap(pagemap_fd, addr, ent);
	return pfns_consecutive(ent, &first);
}

/* How many pages of [addr, addr + len) map zeroes that are shared? */
unsigned long granule_zero_pages(int pagemap_fd, const void *addr, size_t len)
{
	struct page_region regions[256];
	struct pm_scan_arg arg = {
		.size = sizeof(arg),
		.start = (uintptr_t)addr,
		.end = (uintptr_t)addr + len,
		.vec = (uintptr_t)regions,
		.vec_len = 256,
		.category_mask = PAGE_IS_PFNZERO | PAGE_IS_PRESENT,
		.return_mask = PAGE_IS_PFNZERO,
	};
	unsigned long nr = 0;
	long i, found;

	found = ioctl(pagemap_fd, PAGEMAP_SCAN, &arg);
	if (found < 0 || arg.walk_end != arg.end)
		ksft_exit_fail_msg("PAGEMAP_SCAN failed\n");
	for (i = 0; i < found; i++)
		nr += (regions[i].end - regions[i].start) / BASE_SIZE;
	return nr;
}

/* Give a page back and take it again: the granule is all there, and broken. */
bool granule_break(char *granule, unsigned long page)
{
	if (madvise(granule + page * BASE_SIZE, BASE_SIZE, MADV_DONTNEED))
		return false;
	granule[page * BASE_SIZE] = 1;
	return true;
}

/* Give back @nr pages of a granule, from @page on. */
bool granule_give_back(char *granule, unsigned long page, unsigned long nr)
{
	return !madvise(page_at(granule, page), nr * BASE_SIZE, MADV_DONTNEED);
}

double granule_now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

/* In how many seconds is the granule whole? Negative if not before @limit. */
double granule_until_whole(int pagemap_fd, const char *granule, double limit)
{
	double start = granule_now();

	while (granule_state(pagemap_fd, granule) != GRANULE_WHOLE) {
		if (granule_now() - start > limit)
			return -1;
		usleep(20 * 1000);
	}
	return granule_now() - start;
}

/* Parse the bounds in the "start-end perms ..." line that opens a VMA. */
static bool parse_bounds(const char *line, unsigned long *start,
			 unsigned long *end)
{
	char dash;

	return sscanf(line, "%lx%c%lx ", start, &dash, end) == 3 && dash == '-';
}

static bool parse_kb(const char *line, const char *format, unsigned long *val)
{
	return sscanf(line, format, val) == 1;
}

/* Read the smaps fields of the VMA of @pid that holds @addr. */
bool granule_read_smaps(pid_t pid, const void *addr, struct granule_smaps *smaps)
{
	unsigned int granule_lines = 0;
	unsigned long start, end;
	bool found = false;
	char line[512];
	FILE *fp;

	memset(smaps, 0, sizeof(*smaps));
	snprintf(line, sizeof(line), "/proc/%d/smaps", pid);
	fp = fopen(line, "r");
	if (!fp)
		return false;

	while (fgets(line, sizeof(line), fp)) {
		if (parse_bounds(line, &start, &end)) {
			if (found)
				break;
			found = start <= (unsigned long)addr &&
				(unsigned long)addr < end;
			smaps->start = start;
			smaps->end = end;
			continue;
		}
		if (!found)
			continue;
		parse_kb(line, "KernelPageSize: %lu kB", &smaps->kernel_page_size);
		parse_kb(line, "MMUPageSize: %lu kB", &smaps->mmu_page_size);
		parse_kb(line, "Rss: %lu kB", &smaps->rss);
		parse_kb(line, "Shared_Hugetlb: %lu kB", &smaps->shared_hugetlb);
		parse_kb(line, "Private_Hugetlb: %lu kB", &smaps->private_hugetlb);
		granule_lines += parse_kb(line, "Granule: %lu kB", &smaps->granule);
		granule_lines += parse_kb(line, "GranuleMapped: %lu kB",
					  &smaps->granule_mapped);
		if (!strncmp(line, "VmFlags:", 8))
			snprintf(smaps->vmflags, sizeof(smaps->vmflags), "%s",
				 line + 8);
	}
	fclose(fp);
	smaps->has_granule = granule_lines == 2;
	return found;
}

bool granule_has_flag(const struct granule_smaps *smaps, const char *flag)
{
	const char *p = smaps->vmflags;
	size_t len;

	for (;;) {
		p += strspn(p, "\n ");
		len = strcspn(p, "\n ");
		if (!len)
			return false;
		if (len == strlen(flag) && !memcmp(p, flag, len))
			return true;
		p += len;
	}
}

bool granule_vma_has_flag(const void *addr, const char *flag)
{
	struct granule_smaps smaps;

	return granule_read_smaps(getpid(), addr, &smaps) &&
	       granule_has_flag(&smaps, flag);
}

/* Is [start, start + len) one VMA, and no more than that? */
bool granule_vma_is(const char *start, size_t len)
{
	struct granule_smaps smaps;

	return granule_read_smaps(getpid(), start, &smaps) &&
	       smaps.start == (unsigned long)start &&
	       smaps.end == (unsigned long)start + len;
}

/* The kind of the VMA that holds @addr, as smaps shows it. */
enum granule_kind granule_kind_of(const void *addr)
{
	struct granule_smaps smaps;

	if (!granule_read_smaps(getpid(), addr, &smaps) || !granule_has_flag(&smaps, "gr"))
		return GRANULE_UNTAGGED;
	return granule_has_flag(&smaps, "gc") ? GRANULE_CONTRACT : GRANULE_DEFAULT;
}

/* The Granule line of the mapping that holds @addr. */
unsigned long granule_kb(const char *addr)
{
	struct granule_smaps smaps;

	if (!granule_read_smaps(getpid(), addr, &smaps) || !smaps.has_granule)
		return 0;
	return smaps.granule;
}

/* All of a file in /proc. Takes no memory from malloc(), which might count. */
char *granule_read_proc(const char *path)
{
	static char buf[1 << 18];
	ssize_t len = 0, n;
	int fd;

	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		ksft_exit_fail_msg("cannot open %s: %s\n", path, strerror(errno));
	while ((n = read(fd, buf + len, sizeof(buf) - 1 - len)) > 0)
		len += n;
	close(fd);
	buf[len] = '\0';
	return buf;
}

/* The number after a name, the first word of a line in such a file, or -1. */
long granule_proc_number(const char *path, const char *name)
{
	char *line = granule_read_proc(path);
	size_t len = strlen(name);

	for (; line; line = strchr(line, '\n')) {
		line += *line == '\n';
		if (!strncmp(line, name, len))
			return atol(line + len);
	}
	return -1;
}

/* The same of /proc/PID/status; @name ends with its colon. */
long granule_status_kb(pid_t pid, const char *name)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/status", pid);
	return granule_proc_number(path, name);
}

/*
 * Read memory as a debugger does, and say of each page whether that is
 * possible.
 */
void read_memory(pid_t pid, const char *base, size_t pages, char *buf,
		 unsigned char *readable)
{
	char path[32];
	size_t i = 0;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/mem", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		ksft_exit_fail_msg("cannot open %s\n", path);
	while (i < pages) {
		ssize_t n = pread(fd, buf + i * BASE_SIZE, (pages - i) * BASE_SIZE,
				  (off_t)(uintptr_t)base + i * BASE_SIZE);

		n = n < 0 ? 0 : n / BASE_SIZE;
		memset(readable + i, 1, n);
		i += n;
		if (i < pages) {
			memset(buf + i * BASE_SIZE, 0, BASE_SIZE);
			readable[i++] = 0;
		}
	}
	close(fd);
}

/*
 * All smaps lines of the VMAs that meet [start, start + len), as one string
 * that the caller frees: bounds, permissions, flags and population, to compare
 * before and after a call that must change nothing.
 */
char *granule_smaps_text(const void *start, size_t len)
{
	unsigned long lo = (unsigned long)start, hi = lo + len;
	unsigned long vm_start, vm_end;
	bool inside = false;
	char line[512];
	size_t size = 0;
	char *text = NULL;
	FILE *in, *out;

	in = fopen("/proc/self/smaps", "r");
	if (!in)
		return NULL;
	out = open_memstream(&text, &size);
	if (!out) {
		fclose(in);
		return NULL;
	}
	while (fgets(line, sizeof(line), in)) {
		if (parse_bounds(line, &vm_start, &vm_end))
			inside = vm_start < hi && lo < vm_end;
		if (inside)
			fputs(line, out);
	}
	fclose(out);
	fclose(in);
	return text;
}

/* Are two such texts the same? Prints the first line that is not. */
bool granule_same_text(const char *before, const char *after)
{
	const char *line = before;
	size_t i;

	if (!before || !after)
		return false;
	for (i = 0; before[i] == after[i]; i++) {
		if (!before[i])
			return true;
		if (before[i] == '\n')
			line = before + i + 1;
	}
	after += line - before;
	ksft_print_msg("was: %.*s\n", (int)strcspn(line, "\n"), line);
	ksft_print_msg("now: %.*s\n", (int)strcspn(after, "\n"), after);
	return false;
}

/* A /proc/vmstat counter, or ULONG_MAX if this kernel has none of that name. */
unsigned long granule_vmstat(const char *name)
{
	char key[100];

	snprintf(key, sizeof(key), "%s ", name);
	return granule_proc_number("/proc/vmstat", key);
}

/* The TLB flushes of all CPUs, or 0 if the kernel does not count them. */
unsigned long granule_flushes(void)
{
	static const char * const names[] = {
		GRANULE_FLUSH_COUNTER, "nr_tlb_flush_mm",
#ifdef __x86_64__
		/* Elsewhere only the wait for the flushes counted above is deferred. */
		"nr_tlb_flush_batch",
#endif
	};
	unsigned long val, sum = 0;
	size_t i;

	for (i = 0; i < ARRAY_SIZE(names); i++) {
		val = granule_vmstat(names[i]);
		if (val != ULONG_MAX)
			sum += val;
	}
	return sum;
}

/* Is the page that is mapped at @addr part of a large folio? */
bool granule_in_large_folio(int pagemap, char *addr)
{
	int fd = open("/proc/kpageflags", O_RDONLY);
	uint64_t flags = 0;

	if (fd < 0 || pageflags_get(pagemap_get_pfn(pagemap, addr), fd, &flags))
		ksft_exit_fail_msg("reading /proc/kpageflags failed\n");
	close(fd);
	return flags & (KPF_COMPOUND_HEAD | KPF_COMPOUND_TAIL);
}

/* Add up a field of smaps over the VMAs that meet [addr, addr + len). */
static unsigned long sum_smaps_kb(const char *addr, size_t len, size_t field)
{
	const char *end = addr + len;
	struct granule_smaps smaps;
	unsigned long kb = 0;

	for (; addr < end; addr = (char *)smaps.end) {
		if (!granule_read_smaps(getpid(), addr, &smaps))
			ksft_exit_fail_msg("no smaps entry for %p\n", addr);
		kb += *(unsigned long *)((char *)&smaps + field);
	}
	return kb;
}

unsigned long granule_rss_kb(const char *addr, size_t len)
{
	return sum_smaps_kb(addr, len, offsetof(struct granule_smaps, rss));
}

unsigned long granule_mapped_kb(const char *addr, size_t len)
{
	return sum_smaps_kb(addr, len, offsetof(struct granule_smaps, granule_mapped));
}

/* The CPU time of all kernel threads, in seconds. */
double granule_kthread_seconds(void)
{
	const unsigned long kthread = 0x00200000;	/* PF_KTHREAD */
	unsigned long flags, user, sys, ticks = 0;
	char path[300], text[512], *p;
	struct dirent *entry;
	DIR *dir;

	dir = opendir("/proc");
	while (dir && (entry = readdir(dir))) {
		if (*entry->d_name < '0' || *entry->d_name > '9')
			continue;
		snprintf(path, sizeof(path), "/proc/%s/stat", entry->d_name);
		/* It may have ended. */
		if (access(path, R_OK) || read_file(path, text, sizeof(text)) <= 0)
			continue;
		p = strrchr(text, ')');
		if (p && sscanf(p + 2, "%*c %*d %*d %*d %*d %*d %lu %*u %*u %*u %*u %lu %lu",
				&flags, &user, &sys) == 3 && (flags & kthread))
			ticks += user + sys;
	}
	if (dir)
		closedir(dir);
	return (double)ticks / sysconf(_SC_CLK_TCK);
}

long minor_faults(void)
{
	struct rusage usage;

	getrusage(RUSAGE_SELF, &usage);
	return usage.ru_minflt;
}

long granule_faults(void)
{
	struct rusage usage;

	getrusage(RUSAGE_SELF, &usage);
	return usage.ru_minflt + usage.ru_majflt;
}

/*
 * No order-4 page is available: fault injection fails them, only for tasks that
 * ask for it by granule_fail_order4(), and for their children.
 */
#define FAIL_DIR	"/sys/kernel/debug/fail_page_alloc/"

static const struct {
	const char *name;
	const char *value;
} fail_knobs[GRANULE_FAIL_KNOBS] = {
	{ "task-filter", "Y" },
	{ "ignore-gfp-wait", "N" },
	{ "ignore-gfp-highmem", "N" },
	{ "min-order", "4" },
	{ "verbose", "0" },
	{ "interval", "1" },
	{ "space", "0" },
	{ "times", "-1" },
	/* Last: nothing fails before all the rest is in place. */
	{ "probability", "100" },
};

/* Returns false, and has changed nothing, where there is no fault injection. */
bool granule_fail_prepare(struct granule_fail *fail)
{
	char path[PATH_MAX];
	size_t i;

	if (access(FAIL_DIR, F_OK))
		fail->mounted = !mount("none", "/sys/kernel/debug", "debugfs", 0, NULL);
	if (access(FAIL_DIR, F_OK) || access("/proc/self/make-it-fail", F_OK)) {
		if (fail->mounted)
			umount("/sys/kernel/debug");
		return false;
	}
	for (i = 0; i < GRANULE_FAIL_KNOBS; i++) {
		snprintf(path, sizeof(path), FAIL_DIR "%s", fail_knobs[i].name);
		if (read_file(path, fail->saved[i], sizeof(fail->saved[i])) <= 0)
			ksft_exit_fail_msg("cannot read %s\n", path);
	}
	for (i = 0; i < GRANULE_FAIL_KNOBS; i++) {
		snprintf(path, sizeof(path), FAIL_DIR "%s", fail_knobs[i].name);
		write_file(path, fail_knobs[i].value, strlen(fail_knobs[i].value) + 1);
	}
	fail->prepared = true;
	return true;
}

void granule_fail_order4(bool fail)
{
	write_num("/proc/self/make-it-fail", fail);
}

/* Let allocations of any order fail that cannot wait, instead of order 4. */
void granule_fail_nowait(bool nowait)
{
	/* At no time all of them: this task goes on to allocate as well. */
	if (nowait)
		granule_write(FAIL_DIR "ignore-gfp-wait", "Y");
	granule_fail_min_order(nowait ? 0 : GRANULE_ORDER);
	if (!nowait)
		granule_write(FAIL_DIR "ignore-gfp-wait", "N");
}

/* Let allocations of this order and above fail, instead of order 4. */
void granule_fail_min_order(unsigned int order)
{
	char text[16];

	snprintf(text, sizeof(text), "%u", order);
	granule_write(FAIL_DIR "min-order", text);
}

void granule_fail_restore(struct granule_fail *fail)
{
	char path[PATH_MAX];
	size_t i;

	if (!fail->prepared)
		return;
	granule_fail_order4(false);
	for (i = GRANULE_FAIL_KNOBS; i--;) {
		snprintf(path, sizeof(path), FAIL_DIR "%s", fail_knobs[i].name);
		write_file(path, fail->saved[i], strlen(fail->saved[i]) + 1);
	}
	if (fail->mounted)
		umount("/sys/kernel/debug");
}

/*
 * A descriptor with all of @features, or a negative errno. @flags may have
 * UFFD_USER_MODE_ONLY: faults of the kernel then fail rather than wait, so that
 * memory can be read without a thread that resolves them.
 */
int granule_uffd(uint64_t features, int flags)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	int fd = syscall(__NR_userfaultfd, O_CLOEXEC | flags);

	if (fd < 0)
		return -errno;
	if (ioctl(fd, UFFDIO_API, &api)) {
		close(fd);
		return -EINVAL;
	}
	return fd;
}

/*
 * With a fault that is left to a handler being a SIGBUS, so that a test can see
 * one without a thread that handles it.
 */
int granule_uffd_open(uint64_t features)
{
	return granule_uffd(features | UFFD_FEATURE_SIGBUS, UFFD_USER_MODE_ONLY);
}

int uffd_arm(int uffd, char *addr, size_t len, uint64_t mode)
{
	struct uffdio_register reg = { .range = { (uintptr_t)addr, len }, .mode = mode };

	return ioctl(uffd, UFFDIO_REGISTER, &reg) ? -errno : 0;
}

/*
 * Accesses that raise a signal: the page is lost, guarded, or left to
 * userfaultfd. MADV_HWPOISON raises one in its caller as well.
 */
static sigjmp_buf fault_env;
static bool fault_expected;
bool granule_fault_tolerated;
siginfo_t granule_fault_info;

static void on_fault(int sig, siginfo_t *info, void *context)
{
	if (fault_expected) {
		granule_fault_info = *info;
		siglongjmp(fault_env, 1);
	}
	if (sig != SIGBUS || !granule_fault_tolerated)
		signal(sig, SIG_DFL);
}

bool granule_catch_faults(void)
{
	struct sigaction sa = {
		.sa_sigaction = on_fault,
		.sa_flags = SA_SIGINFO | SA_ONSTACK,
	};

	return !sigaction(SIGBUS, &sa, NULL) && !sigaction(SIGSEGV, &sa, NULL);
}

/*
 * Read @addr, or write what @value points to there. Returns the signal, or 0.
 */
int granule_try_access(char *addr, const char *value)
{
	int sig = 0;

	if (!sigsetjmp(fault_env, 1)) {
		__atomic_store_n(&fault_expected, true, __ATOMIC_SEQ_CST);
		if (value)
			__atomic_store_n(addr, *value, __ATOMIC_SEQ_CST);
		else
			FORCE_READ(*addr);
	} else {
		sig = granule_fault_info.si_signo;
	}
	__atomic_store_n(&fault_expected, false, __ATOMIC_SEQ_CST);
	return sig;
}

/* A child that does nothing but share, until it is killed. */
pid_t granule_fork_idle(void)
{
	pid_t pid = fork();

	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;)
			pause();
	}
	return pid;
}

void granule_kill_idle(pid_t pid)
{
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}

/* Is there memory on nodes 0 and 1? */
bool granule_two_nodes(void)
{
	char nodes[64] = "";

	read_file("/sys/devices/system/node/has_memory", nodes, sizeof(nodes));
	return !strncmp(nodes, "0-", 2) || !strncmp(nodes, "0,1", 3);
}

/*
 * From now on memory comes from @node alone, or from where it is near if
 * negative.
 */
int granule_bind_to(int node)
{
	const unsigned long mask = 1UL << node;

	if (node < 0)
		return syscall(__NR_set_mempolicy, MPOL_DEFAULT, NULL, 0UL);
	return syscall(__NR_set_mempolicy, MPOL_BIND, &mask, 8 * sizeof(mask));
}

static long move_pages_by(char *area, unsigned long nr, const int *nodes, int *status,
			  int flags)
{
	void **pages = calloc(nr, sizeof(*pages));
	unsigned long i;
	long ret;

	if (!pages)
		return -ENOMEM;
	for (i = 0; i < nr; i++)
		pages[i] = area + i * BASE_SIZE;
	ret = syscall(__NR_move_pages, 0, nr, pages, nodes, status, flags);
	if (ret < 0)
		ret = -errno;
	free(pages);
	return ret;
}

/*
 * move_pages() of @nr pages in a row; without @nodes it only tells where they
 * are. A page that is not memory of the process has a negative errno for its
 * status.
 */
long granule_move_pages(char *area, unsigned long nr, const int *nodes, int *status)
{
	return move_pages_by(area, nr, nodes, status, MPOL_MF_MOVE);
}

/*
 * Move @nr pages to @node, those that others map as well, which root may do.
 * Returns 0 if all of them are there, or a negative errno.
 */
int granule_move_all_to(char *area, unsigned long nr, int node)
{
	int *nodes = calloc(2 * nr, sizeof(*nodes));
	unsigned long i;
	long ret;

	if (!nodes)
		return -ENOMEM;
	for (i = 0; i < nr; i++)
		nodes[i] = node;
	ret = move_pages_by(area, nr, nodes, nodes + nr, MPOL_MF_MOVE_ALL);
	free(nodes);
	if (ret < 0)
		return ret;
	return granule_pages_on(area, nr, node, NULL) == nr ? 0 : -EIO;
}

/*
 * How many of @nr pages are on @node? @memory gets the number of those that are
 * memory at all; it may be NULL.
 */
unsigned long granule_pages_on(char *area, unsigned long nr, int node, unsigned long *memory)
{
	unsigned long i, here = 0, there = 0;
	int *status = calloc(nr, sizeof(*status));
	long ret;

	ret = status ? granule_move_pages(area, nr, NULL, status) : -ENOMEM;
	if (ret)
		ksft_exit_fail_msg("cannot tell where pages are: %s\n", strerror(-ret));
	for (i = 0; i < nr; i++) {
		there += status[i] >= 0;
		here += status[i] == node;
	}
	free(status);
	if (memory)
		*memory = there;
	return here;
}

/*
 * How many of @nr granules are on @node, all pages of them, to which they are
 * moved if @move? All pages are named, or only a part of a granule would be
 * moved.
 */
unsigned long granule_on_node(char *area, unsigned long nr, int node, bool move)
{
	const unsigned long nr_pages = nr * GRANULE_NR_PAGES;
	int *nodes = calloc(2 * nr_pages, sizeof(*nodes)), *status = nodes + nr_pages;
	unsigned long i, here = 0;
	bool moved;

	for (i = 0; nodes && i < nr_pages; i++)
		nodes[i] = node;
	moved = nodes && (!move || !granule_move_pages(area, nr_pages, nodes, status));
	for (i = 0; moved && i < nr; i++)
		here += granule_pages_on(nth(area, i), GRANULE_NR_PAGES, node, NULL) ==
			GRANULE_NR_PAGES;
	free(nodes);
	return here;
}

/* Memory that the kernel does not use for itself can be taken offline. */
bool granule_block_movable(unsigned long block)
{
	char path[PATH_MAX], text[128];

	snprintf(path, sizeof(path), MEMORY_BLOCKS "/memory%lu/valid_zones", block);
	return read_file(path, text, sizeof(text)) > 0 &&
	       !strncmp(text, "Movable", strlen("Movable"));
}

/*
 * To take a block offline may wait for ever for pages in use. The alarm ends
 * that, so the caller has to handle SIGALRM. Returns 0 or a negative errno.
 */
int granule_set_block(unsigned long block, const char *state, unsigned int seconds)
{
	char path[PATH_MAX];
	int ret;

	snprintf(path, sizeof(path), MEMORY_BLOCKS "/memory%lu/state", block);
	alarm(seconds);
	ret = granule_write(path, state);
	alarm(0);
	return ret;
}

/* Returns 0 or a negative errno. */
int granule_write(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);
	int ret = 0;

	if (fd < 0)
		return -errno;
	if (write(fd, text, strlen(text)) < 0)
		ret = -errno;
	close(fd);
	return ret;
}

int granule_cg_write(const char *dir, const char *name, const char *text)
{
	char path[2 * PATH_MAX];

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	return granule_write(path, text);
}

/* A line of /proc/meminfo, or 0. */
unsigned long granule_meminfo_kb(const char *name)
{
	char key[64];
	long kb;

	snprintf(key, sizeof(key), "%s:", name);
	kb = granule_proc_number("/proc/meminfo", key);
	return kb < 0 ? 0 : kb;
}

/* Find where cgroup2 is mounted; @path has room for PATH_MAX. */
bool granule_find_cgroup2(char *path)
{
	char line[2 * PATH_MAX], type[64];
	bool found = false;
	FILE *fp;

	fp = fopen("/proc/self/mounts", "r");
	if (!fp)
		return false;
	while (!found && fgets(line, sizeof(line), fp))
		found = sscanf(line, "%*s %4095s %63s", path, type) == 2 &&
			!strcmp(type, "cgroup2");
	fclose(fp);
	return found;
}

/*
 * Returns false where a process could not be put there, or nothing be limited.
 */
bool granule_cg_create(struct granule_cg *cg)
{
	char path[2 * PATH_MAX];

	*cg->dir = 0;
	if (!granule_find_cgroup2(cg->root))
		return false;
	snprintf(cg->dir, sizeof(cg->dir), "%s/page_granule.XXXXXX", cg->root);
	if (!mkdtemp(cg->dir)) {
		*cg->dir = 0;
		return false;
	}
	snprintf(path, sizeof(path), "%s/memory.max", cg->dir);
	if (!access(path, W_OK))
		return true;
	granule_cg_remove(cg);
	return false;
}

/* The caller may be in it; others have to be gone. */
void granule_cg_remove(struct granule_cg *cg)
{
	int i;

	if (!*cg->dir)
		return;
	granule_cg_write(cg->root, "cgroup.procs", "0");
	/* A process that has been waited for may take a while to leave. */
	for (i = 0; i < 50 && rmdir(cg->dir); i++)
		usleep(20 * 1000);
	*cg->dir = 0;
}

/* The number after "key " in a file of lines, or the file's own if no @key. */
long granule_cg_read(const char *dir, const char *name, const char *key)
{
	const size_t len = key ? strlen(key) : 0;
	char path[2 * PATH_MAX], line[256];
	long val = -1;
	FILE *fp;

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	fp = fopen(path, "r");
	if (!fp)
		return -1;
	while (val < 0 && fgets(line, sizeof(line), fp)) {
		if (!key)
			val = atol(line);
		else if (!strncmp(line, key, len) && line[len] == ' ')
			val = atol(line + len + 1);
	}
	fclose(fp);
	return val;
}

/* A child whose memory is charged to @cg, if that is not NULL. */
pid_t granule_cg_fork(const struct granule_cg *cg)
{
	pid_t pid = fork();

	if (pid)
		return pid;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (cg && granule_cg_write(cg->dir, "cgroup.procs", "0"))
		_exit(2);
	return 0;
}

/*
 * The charge of a cgroup in kB, as soon as it falls no more: frees are batched.
 * With @shrink the shrinkers are called meanwhile, which skip folios in use.
 */
long granule_cg_settled(const char *dir, bool shrink)
{
	long least = LONG_MAX, now;
	unsigned int still = 0;

	while (still < 4) {
		if (shrink)
			granule_write(DROP_CACHES, "2");
		usleep(100 * 1000);
		now = granule_cg_read(dir, "memory.current", NULL) / 1024;
		still = now < least ? 0 : still + 1;
		least = now < least ? now : least;
	}
	return least;
}

/*
 * Settings that granule_save_settings() knows nothing of, put back when the
 * program ends. To be called before the harness starts.
 */
#define MAX_SETTINGS	16

static struct setting {
	const char *path;
	char saved[32];
} settings[MAX_SETTINGS];
static unsigned int nr_settings;

/* Put them back before the program ends: between two tests. */
void granule_restore_settings(void)
{
	unsigned int i;

	for (i = nr_settings; i--;)
		granule_write(settings[i].path, settings[i].saved);
}

/* Returns false where there is no such setting. */
bool granule_save_setting(const char *path)
{
	struct setting *setting = &settings[nr_settings];

	if (nr_settings == MAX_SETTINGS)
		ksft_exit_fail_msg("too many settings\n");
	if (read_file(path, setting->saved, sizeof(setting->saved)) <= 0)
		return false;
	setting->path = path;
	if (!nr_settings++)
		atexit(granule_restore_settings);
	return true;
}

bool granule_child_ends(pid_t pid)
{
	int status;

	return waitpid(pid, &status, 0) == pid && WIFEXITED(status) &&
	       !WEXITSTATUS(status);
}

/* What a CPU holds in batches, charged in advance or not, is that of one from now on. */
bool granule_stay_on_cpu(void)
{
	cpu_set_t cpus;

	CPU_ZERO(&cpus);
	CPU_SET(sched_getcpu(), &cpus);
	return !sched_setaffinity(0, sizeof(cpus), &cpus);
}

/* Write the header that mkswap(8) writes. */
bool granule_make_swap(const char *dev, unsigned int megabytes)
{
	char page[BASE_SIZE] = {};
	uint32_t *header = (uint32_t *)(page + 1024);
	bool done;
	int fd;

	header[0] = 1;						/* version */
	header[1] = megabytes * 1024 * 1024 / BASE_SIZE - 1;	/* last page */
	memcpy(page + BASE_SIZE - 10, "SWAPSPACE2", 10);
	fd = open(dev, O_WRONLY);
	if (fd < 0)
		return false;
	done = write(fd, page, sizeof(page)) == sizeof(page) && !fsync(fd);
	close(fd);
	return done;
}

/* The swap device, if there is only one, and the free space of all devices. */
void granule_read_swaps(struct granule_swaps *swaps)
{
	unsigned long size, used;
	char line[PATH_MAX + 128];
	FILE *fp;

	memset(swaps, 0, sizeof(*swaps));
	fp = fopen("/proc/swaps", "r");
	if (!fp)
		return;
	while (fgets(line, sizeof(line), fp)) {
		if (sscanf(line, "%4095s %*s %lu %lu %d", swaps->path, &size, &used,
			   &swaps->prio) != 4)
			continue;
		swaps->nr++;
		swaps->free_kb += size - used;
	}
	fclose(fp);
}

/* @swaps may be NULL. */
bool granule_have_swap(struct granule_swaps *swaps)
{
	struct granule_swaps found;

	swaps = swaps ?: &found;
	granule_read_swaps(swaps);
	return swaps->free_kb >= 64 << 10;
}

static unsigned long pattern(size_t pos, unsigned int seed)
{
	return (pos + 1) * 0x9e3779b97f4a7c15UL ^ seed;
}

/* Write a pattern that differs in every page, and depends on @seed. */
void granule_fill(char *addr, size_t len, unsigned int seed)
{
	size_t i;

	for (i = 0; i < len; i += sizeof(unsigned long))
		*(unsigned long *)(addr + i) = pattern(i, seed);
}

bool granule_check(const char *addr, size_t len, unsigned int seed)
{
	size_t i;

	for (i = 0; i < len; i += sizeof(unsigned long)) {
		if (*(const unsigned long *)(addr + i) != pattern(i, seed))
			return false;
	}
	return true;
}

/*
 * A field of /proc/PID/stat, counted from 1 as in proc_pid_stat(5), or 0. The
 * name, field 2, ends at the last parenthesis and may hold spaces.
 */
unsigned long granule_stat_field(pid_t pid, int field)
{
	char path[64], *p;
	int i;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	p = strrchr(granule_read_proc(path), ')');
	for (i = 2; p && i < field; i++)
		p = strchr(p + 1, ' ');
	return p ? strtoul(p + 1, NULL, 10) : 0;
}

/*
 * The number after @name, which ends with its colon, in smaps: of all VMAs that
 * meet [addr, addr + len), in kB. Returns -1 if none of them has it.
 */
long granule_smaps_kb(const void *addr, size_t len, const char *name)
{
	char *text = granule_smaps_text(addr, len), *line = text;
	long kb = -1;

	for (; line; line = strchr(line, '\n')) {
		line += *line == '\n';
		if (!strncmp(line, name, strlen(name)))
			kb = (kb < 0 ? 0 : kb) + atol(line + strlen(name));
	}
	free(text);
	return kb;
}
