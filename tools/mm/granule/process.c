// SPDX-License-Identifier: GPL-2.0
/*
 * What /proc tells of a process: its mappings, and what is populated in them.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "granule.h"

static int kpageflags = -1;

const char * const why_text[NR_WHYS] = {
	[WHY_HOLES] = "with holes",
	[WHY_SWAP] = "partly swapped out",
	[WHY_ZERO] = "partly zeroes",
	[WHY_GUARD] = "with guard pages",
	[WHY_KSM] = "merged by KSM",
	[WHY_SCATTERED] = "scattered",
	[WHY_SINGLE] = "of single pages",
	[WHY_UNLIKE] = "of unlike pages",
	[WHY_UNKNOWN] = "for reasons that only root may see",
};

const char * const why_name[NR_WHYS] = {
	[WHY_HOLES] = "holes",
	[WHY_SWAP] = "swap",
	[WHY_ZERO] = "zeroes",
	[WHY_GUARD] = "guard",
	[WHY_KSM] = "ksm",
	[WHY_SCATTERED] = "scattered",
	[WHY_SINGLE] = "single",
	[WHY_UNLIKE] = "unlike",
	[WHY_UNKNOWN] = "unknown",
};

/* Why a file of a process cannot be used, and what helps */
void explain(pid_t pid, const char *name, int error)
{
	char path[32];

	snprintf(path, sizeof(path), "/proc/%d", pid);
	if (access("/proc/self", F_OK))
		complain("nothing in /proc; mount it");
	else if (error == ESRCH || (error == ENOENT && access(path, F_OK)))
		complain("no process %d; \"ps -e\" lists those that there are", pid);
	else if (error == ENOENT)
		complain("no /proc/%d/%s; boot a kernel built with CONFIG_PROC_PAGE_MONITOR=y",
			 pid, name);
	else if (error == EACCES || error == EPERM)
		complain("/proc/%d/%s: %s; %s", pid, name, strerror(error),
			 geteuid() ? "be root, or the user who runs it" :
				     "this root lacks CAP_SYS_PTRACE, or is in a container");
	else
		complain("/proc/%d/%s: %s", pid, name, strerror(error));
}

FILE *open_proc(pid_t pid, const char *name)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/%s", pid, name);
	return fopen(path, "re");
}

/* Is the process gone? A zombie has no memory left to look at. */
bool process_ended(pid_t pid)
{
	FILE *fp = open_proc(pid, "status");
	char line[256], state = 'X';

	if (!fp)
		return true;
	while (fgets(line, sizeof(line), fp)) {
		if (sscanf(line, "State: %c", &state) == 1)
			break;
	}
	fclose(fp);
	return state == 'Z' || state == 'X';
}

/* A process that is about to end has no memory either. */
static bool is_kernel_thread(pid_t pid)
{
	const unsigned int kthread = 0x00200000;	/* PF_KTHREAD */
	FILE *fp = open_proc(pid, "stat");
	unsigned int flags = 0;
	char line[512], *rest;

	if (!fp)
		return false;
	/* The name, in parentheses, may hold anything. */
	if (fgets(line, sizeof(line), fp)) {
		rest = strrchr(line, ')');
		if (!rest || sscanf(rest, ") %*c %*d %*d %*d %*d %*d %u", &flags) != 1)
			flags = 0;
	}
	fclose(fp);
	return flags & kthread;
}

static bool parse_kb(const char *line, const char *format, unsigned long *kb)
{
	return sscanf(line, format, kb) == 1;
}

void read_status(struct process *proc)
{
	FILE *fp = open_proc(proc->pid, "status");
	unsigned long enabled = 1;
	char line[256];

	if (!fp)
		return;
	while (fgets(line, sizeof(line), fp)) {
		parse_kb(line, "PageGranule: %lu kB", &proc->mmap_kb);
		parse_kb(line, "PageGranuleExec: %lu kB", &proc->exec_kb);
		parse_kb(line, "THP_enabled: %lu", &enabled);
	}
	proc->thp_disabled = !enabled;
	fclose(fp);
}

static bool has_flag(const char *flags, const char *flag)
{
	const char *found = strstr(flags, flag);

	/* Each flag has two letters and a blank before it. */
	return found && found[-1] == ' ';
}

static void parse_field(struct vma *vma, const char *line)
{
	parse_kb(line, "Rss: %lu kB", &vma->rss);
	parse_kb(line, "Swap: %lu kB", &vma->swap);
	parse_kb(line, "Referenced: %lu kB", &vma->referenced);
	parse_kb(line, "AnonHugePages: %lu kB", &vma->huge);
	parse_kb(line, "Granule: %lu kB", &vma->granule);
	parse_kb(line, "GranuleMapped: %lu kB", &vma->granule_mapped);
	if (!strncmp(line, "VmFlags:", 8)) {
		vma->tagged = has_flag(line, "gr");
		vma->contract = has_flag(line, "gc");
		vma->nohuge = has_flag(line, "nh");
		/* Devices, droppable memory, hugetlb, shadow stacks */
		vma->special = has_flag(line, "pf") || has_flag(line, "io") ||
			       has_flag(line, "dp") || has_flag(line, "ht") ||
			       has_flag(line, "ss");
	}
}

/* Read the mappings. Returns 0, or the error with which nothing could be read. */
int read_smaps(struct process *proc)
{
	FILE *fp = open_proc(proc->pid, "smaps");
	unsigned long start, end, offset, inode;
	size_t size = 0, room = 0;
	char *line = NULL;
	struct vma *vma;
	char perms[5];
	int name, error = 0;

	if (!fp)
		return errno;
	proc->nr_vmas = 0;
	for (;;) {
		errno = 0;
		if (getline(&line, &size, fp) < 0) {
			error = errno;
			break;
		}
		name = 0;
		if (sscanf(line, "%lx-%lx %4s %lx %*x:%*x %lu %n", &start, &end, perms,
			   &offset, &inode, &name) < 5) {
			if (proc->nr_vmas)
				parse_field(&proc->vmas[proc->nr_vmas - 1], line);
			continue;
		}
		if (proc->nr_vmas == room) {
			room = room ? 2 * room : 64;
			proc->vmas = must(realloc(proc->vmas, room * sizeof(*vma)));
		}
		line[strcspn(line, "\n")] = '\0';
		vma = &proc->vmas[proc->nr_vmas++];
		*vma = (struct vma){
			.start = start, .end = end, .offset = offset, .inode = inode,
		};
		memcpy(vma->perms, perms, sizeof(vma->perms));
		vma->name = must(strdup(name ? line + name : ""));
	}
	free(line);
	fclose(fp);
	/* That page is the kernel's, and the last one. */
	if (proc->nr_vmas && !strcmp(proc->vmas[proc->nr_vmas - 1].name, "[vsyscall]"))
		free(proc->vmas[--proc->nr_vmas].name);
	if (error && proc->nr_vmas)
		proc->ended = true;
	return proc->nr_vmas ? 0 : error ?: ESRCH;
}

void read_comm(struct process *proc)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/comm", proc->pid);
	read_text(path, proc->comm, sizeof(proc->comm));
}

/* May this user see PFNs, and what they are? Ask for a page of our own. */
bool may_see_pfns(void)
{
	uint64_t entry = 0;
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);

	if (kpageflags < 0)
		kpageflags = open("/proc/kpageflags", O_RDONLY | O_CLOEXEC);
	if (fd < 0 || pread(fd, &entry, sizeof(entry),
			    (uintptr_t)&entry / PAGE_SZ * sizeof(entry)) != sizeof(entry))
		entry = 0;
	if (fd >= 0)
		close(fd);
	return kpageflags >= 0 && (entry & PM_PFN);
}

void close_process(struct process *proc)
{
	size_t i;

	for (i = 0; i < proc->nr_vmas; i++)
		free(proc->vmas[i].name);
	free(proc->vmas);
	if (proc->pagemap >= 0)
		close(proc->pagemap);
}

/* Read the mappings of a process and open its pagemap, or say why not. */
bool open_process(struct process *proc, pid_t pid)
{
	char path[64];
	int error;

	*proc = (struct process){ .pid = pid, .pagemap = -1, .cached = 1 };
	read_comm(proc);
	read_status(proc);
	error = read_smaps(proc);
	if (error == ESRCH && is_kernel_thread(pid)) {
		complain("process %d is a kernel thread, which has no memory of its own", pid);
		return false;
	}
	if (error) {
		explain(pid, "smaps", error);
		return false;
	}
	snprintf(path, sizeof(path), "/proc/%d/pagemap", pid);
	proc->pagemap = open(path, O_RDONLY | O_CLOEXEC);
	if (proc->pagemap < 0) {
		if (!process_ended(pid)) {
			explain(pid, "pagemap", errno);
			close_process(proc);
			return false;
		}
		proc->ended = true;
	}
	return true;
}

/* Returns the exit status of a verb that has looked at @proc. */
int note_ended(const struct process *proc)
{
	if (!proc->ended)
		return EXIT_SUCCESS;
	complain("process %d ended meanwhile; this is what was read before", proc->pid);
	return EXIT_FAILURE;
}

/*
 * /proc/PID/pagemap: what is populated
 */

/* The pagemap entries from @addr on, which is to be a multiple of the block. */
static const uint64_t *pagemap_entries(struct process *proc, unsigned long addr)
{
	const unsigned long base = addr & ~(NR_CACHED * PAGE_SZ - 1);
	ssize_t len;

	if (proc->cached != base) {
		len = pread(proc->pagemap, proc->cache, sizeof(proc->cache),
			    base / PAGE_SZ * sizeof(uint64_t));
		if (len <= 0) {
			proc->ended = process_ended(proc->pid);
			len = 0;
		}
		memset((char *)proc->cache + len, 0, sizeof(proc->cache) - len);
		proc->cached = base;
	}
	return proc->cache + (addr - base) / PAGE_SZ;
}

struct scan {
	struct process *proc;
	const struct vma *vma;
	unsigned long shift;
	struct block block;
	bool filled;
	block_fn fn;
	void *arg;
};

static void scan_flush(struct scan *scan)
{
	if (scan->filled)
		scan->fn(scan->proc, scan->vma, &scan->block, scan->arg);
	scan->filled = false;
}

static void scan_page(struct scan *scan, unsigned long addr, uint64_t is)
{
	const struct vma *vma = scan->vma;
	const unsigned long start = ((addr - scan->shift) & ~(GRANULE_SZ - 1)) + scan->shift;
	struct block *block = &scan->block;

	if (!scan->filled || block->addr != start) {
		scan_flush(scan);
		*block = (struct block){
			.addr = start,
			.cut = start < vma->start || vma->end - start < GRANULE_SZ,
		};
		scan->filled = true;
	}
	if (is & PAGE_IS_PFNZERO)
		block->zero++;
	else if (is & PAGE_IS_PRESENT)
		block->present++;
	else if (*pagemap_entries(scan->proc, addr) & PM_GUARD)
		block->guard++;
	else
		block->swapped++;
	if (is & PAGE_IS_SOFT_DIRTY)
		block->written++;
}

/* For kernels older than PAGEMAP_SCAN, which tell zero pages from others to root only. */
static void scan_by_reading(struct scan *scan, unsigned long addr)
{
	const struct vma *vma = scan->vma;
	const uint64_t *entry;
	unsigned long left = (vma->rss + vma->swap) * 1024 / PAGE_SZ;

	/* Some reserve terabytes: stop where all that is known of is found. */
	for (; addr < vma->end && left && !scan->proc->ended; addr += PAGE_SZ) {
		entry = pagemap_entries(scan->proc, addr);
		if (!(*entry & (PM_PRESENT | PM_SWAP)))
			continue;
		scan_page(scan, addr,
			  (*entry & PM_PRESENT ? PAGE_IS_PRESENT : PAGE_IS_SWAPPED) |
			  (*entry & PM_SOFT_DIRTY ? PAGE_IS_SOFT_DIRTY : 0));
		left--;
	}
}

/*
 * Call @fn for each 64 KiB block of a mapping that has anything populated. Blocks
 * begin at multiples of 64 KiB plus @shift.
 */
void scan_vma(struct process *proc, const struct vma *vma, unsigned long shift,
	      block_fn fn, void *arg)
{
	struct scan scan = { .proc = proc, .vma = vma, .shift = shift, .fn = fn, .arg = arg };
	struct page_region regions[256];
	struct pm_scan_arg req = {
		.size = sizeof(req),
		.start = vma->start,
		.end = vma->end,
		.walk_end = vma->start,
		.vec = (uintptr_t)regions,
		.vec_len = ARRAY_SIZE(regions),
		.category_anyof_mask = PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
		.return_mask = PAGE_IS_PRESENT | PAGE_IS_SWAPPED | PAGE_IS_PFNZERO |
			       PAGE_IS_SOFT_DIRTY,
	};
	unsigned long addr;
	int i, found;

	while (!proc->no_scan && !proc->ended && req.walk_end < vma->end) {
		req.start = req.walk_end;
		found = ioctl(proc->pagemap, PAGEMAP_SCAN, &req);
		/* Whatever keeps it from this, a read may still do. */
		if (found < 0 && process_ended(proc->pid))
			proc->ended = true;
		else if (found < 0)
			proc->no_scan = true;
		for (i = 0; i < found; i++) {
			for (addr = regions[i].start; addr < regions[i].end; addr += PAGE_SZ)
				scan_page(&scan, addr, regions[i].categories);
		}
	}
	if (proc->no_scan && !proc->ended)
		scan_by_reading(&scan, req.start);
	scan_flush(&scan);
}

/* All 16 pages are there. Are they a run, and if not why? */
static enum state look_at_run(struct process *proc, const struct block *block, enum why *why)
{
	const uint64_t like = PM_PRESENT | PM_SOFT_DIRTY | PM_UFFD_WP;
	const uint64_t *entry = pagemap_entries(proc, block->addr);
	const uint64_t first = entry[0] & PM_PFN;
	uint64_t flags[NR];
	unsigned int i;

	*why = WHY_SCATTERED;
	if (first % NR)
		return BROKEN;
	for (i = 1; i < NR; i++) {
		if ((entry[i] & PM_PFN) != first + i)
			return BROKEN;
	}
	*why = WHY_UNLIKE;
	for (i = 1; i < NR; i++) {
		if ((entry[i] ^ entry[0]) & like)
			return BROKEN;
	}
	if (pread(kpageflags, flags, sizeof(flags), first * sizeof(flags[0])) != sizeof(flags))
		return UNKNOWN;
	/*
	 * Single pages may happen to lie side by side. A folio of 16 pages or more has
	 * all of them for tail pages, the first one perhaps not.
	 */
	*why = WHY_SINGLE;
	for (i = 1; i < NR; i++) {
		if (!(flags[i] & KPF_COMPOUND_TAIL))
			return BROKEN;
	}
	return WHOLE;
}

static bool merged_by_ksm(struct process *proc, const struct block *block)
{
	const uint64_t *entry = pagemap_entries(proc, block->addr);
	uint64_t flags;
	unsigned int i;

	for (i = 0; i < NR; i++) {
		if ((entry[i] & PM_PRESENT) &&
		    pread(kpageflags, &flags, sizeof(flags),
			  (entry[i] & PM_PFN) * sizeof(flags)) == sizeof(flags) &&
		    (flags & KPF_KSM))
			return true;
	}
	return false;
}

/* Does the kernel populate this mapping in granules now? */
bool in_granules(const struct vma *vma)
{
	return vma->tagged && vma->granule * 1024 == GRANULE_SZ;
}

enum state block_state(struct process *proc, const struct vma *vma,
		       const struct block *block, bool pfns, enum why *why)
{
	enum state state;

	if (!in_granules(vma) || block->cut)
		return BASE;
	if (block->guard) {
		*why = WHY_GUARD;
		return BROKEN;
	}
	if (block->zero == NR)
		return ZERO;
	if (!block->present && !block->zero)
		return SWAPPED;

	if (block->present == NR) {
		*why = WHY_UNKNOWN;
		if (!pfns)
			return UNKNOWN;
		state = look_at_run(proc, block, why);
		if (state == BROKEN && *why == WHY_SCATTERED && merged_by_ksm(proc, block))
			*why = WHY_KSM;
		return state;
	}
	if (block->swapped)
		*why = WHY_SWAP;
	else if (block->present + block->zero < NR)
		*why = WHY_HOLES;
	else
		*why = WHY_ZERO;
	return BROKEN;
}

static void tally_block(struct process *proc, const struct vma *vma, const struct block *block,
			void *arg)
{
	struct tally *tally = arg;
	enum why why = WHY_UNKNOWN;
	enum state state = block_state(proc, vma, block, tally->pfns, &why);

	tally->states[state]++;
	if (state == BROKEN)
		tally->whys[why]++;
}

/* How many granules are there, empty ones too? */
unsigned long nr_granules(const struct vma *vma)
{
	const unsigned long first = (vma->start + GRANULE_SZ - 1) / GRANULE_SZ;
	const unsigned long end = vma->end / GRANULE_SZ;

	return end > first ? end - first : 0;
}

void tally_vma(struct process *proc, const struct vma *vma, struct tally *tally)
{
	unsigned long whole, filled;

	scan_vma(proc, vma, 0, tally_block, tally);
	if (!in_granules(vma))
		return;
	/* Without PFNs the kernel still tells how many are whole. */
	whole = vma->granule_mapped * 1024 / GRANULE_SZ;
	if (whole > tally->states[UNKNOWN])
		whole = tally->states[UNKNOWN];
	tally->states[WHOLE] += whole;
	tally->states[BROKEN] += tally->states[UNKNOWN] - whole;
	tally->whys[WHY_UNKNOWN] += tally->states[UNKNOWN] - whole;
	tally->states[UNKNOWN] = 0;
	filled = tally->states[WHOLE] + tally->states[BROKEN] + tally->states[SWAPPED] +
		 tally->states[ZERO];
	if (nr_granules(vma) > filled)
		tally->states[EMPTY] = nr_granules(vma) - filled;
}

void tally_add(struct tally *sum, const struct tally *tally)
{
	int i;

	for (i = 0; i < NR_STATES; i++)
		sum->states[i] += tally->states[i];
	for (i = 0; i < NR_WHYS; i++)
		sum->whys[i] += tally->whys[i];
}

const char *vma_kind(const struct vma *vma)
{
	if (!vma->tagged)
		return "untagged";
	if (!in_granules(vma))
		return "off";
	return vma->contract ? "contract" : "default";
}
