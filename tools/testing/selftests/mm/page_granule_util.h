/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Shared by the page granule tests: the user-space ABI for older headers, views
 * of the result from outside (smaps, pagemap, vmstat, sysfs), and the helpers
 * for memory of a kind, swap, userfaultfd, cgroups and settings.
 */
#ifndef __PAGE_GRANULE_UTIL_H__
#define __PAGE_GRANULE_UTIL_H__

#include <limits.h>
#include <linux/mman.h>
#include <linux/prctl.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/types.h>

/*
 * The numbers are fixed ABI. They are repeated here so that the tests build
 * against installed headers older than the kernel they are run on.
 */
#ifndef PR_SET_PAGE_GRANULE
#define PR_SET_PAGE_GRANULE	0x53504752
#define PR_GET_PAGE_GRANULE	0x47504752
# define PR_GRANULE_MMAP	0
# define PR_GRANULE_EXEC	1
#endif

#ifndef MAP_HUGE_SHIFT
#define MAP_HUGE_SHIFT		26
#endif

#ifndef MAP_GRANULE
#define MAP_GRANULE		0x400000
#define MAP_GRANULE_4KB		(MAP_GRANULE | (12U << MAP_HUGE_SHIFT))
#define MAP_GRANULE_64KB	(MAP_GRANULE | (16U << MAP_HUGE_SHIFT))
#endif

/*
 * PROCMAP_QUERY_VMA_GRANULE and _CONTRACT, which no #ifdef tells from older
 * ones.
 */
#define PROCMAP_GRANULE			0x40
#define PROCMAP_GRANULE_CONTRACT	0x80

/* Older than the granule, and yet newer than some installed headers. */
#ifndef PR_SET_VMA
#define PR_SET_VMA		0x53564d41
#define PR_SET_VMA_ANON_NAME	0
#endif

#ifndef PR_THP_DISABLE_EXCEPT_ADVISED
#define PR_THP_DISABLE_EXCEPT_ADVISED	2
#endif

#ifndef MAP_DROPPABLE
#define MAP_DROPPABLE		0x08
#endif

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP	4
#endif

#ifndef MLOCK_ONFAULT
#define MLOCK_ONFAULT		1
#endif

#ifndef MADV_COLD
#define MADV_COLD		20
#endif

#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT		21
#endif

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ	22
#define MADV_POPULATE_WRITE	23
#endif

#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED	24
#endif

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE		25
#endif

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL	102
#define MADV_GUARD_REMOVE	103
#endif

#ifndef __NR_mseal
#define __NR_mseal		462
#endif

#define BASE_SIZE		4096UL
#define GRANULE_SIZE		65536UL
#define GRANULE_NR_PAGES	(GRANULE_SIZE / BASE_SIZE)
#define GRANULE_ORDER		4

#define MIB			(1024 * 1024UL)
#define PMD_SIZE		(2 * MIB)

/*
 * Faults of the test itself: a stack page, a page of libc. None of them is seen
 * in practice, but a test must not fail over one.
 */
#define FAULT_SLACK		8

#define GRANULE_SYSFS		"/sys/kernel/mm/page_granule/"
#define KSM_SYSFS		"/sys/kernel/mm/ksm/"
#define NUMA_BALANCING		"/proc/sys/kernel/numa_balancing"
#define GUP_TEST		"/sys/kernel/debug/gup_test"
#define MEMORY_BLOCKS		"/sys/devices/system/memory"
#define DROP_CACHES		"/proc/sys/vm/drop_caches"
#define GRANULE_FLUSH_COUNTER	"nr_tlb_flush_range"	/* one of those in vmstat */

/* Why a test is skipped, and what to do about it. */
#define GRANULE_SWAP_REMEDY	"no swap: swapon a device with 64 MiB free"
#define GRANULE_NODES_REMEDY	"not two nodes with memory: boot with numa=fake=2"
#define GRANULE_UFFD_REMEDY	"no userfaultfd: build the kernel with CONFIG_USERFAULTFD=y"
#define GRANULE_GUP_REMEDY	"no " GUP_TEST ": set CONFIG_GUP_TEST=y, mount debugfs"
#define GRANULE_SOFT_DIRTY_REMEDY \
	"no soft-dirty: set CONFIG_MEM_SOFT_DIRTY on x86_64"

/*
 * A reservation with room for the mappings of most tests, and a seed to fill
 * them.
 */
#define RES_LEN			(64 * GRANULE_SIZE)
#define SEED			0x47

#define ANON_FLAGS		(MAP_PRIVATE | MAP_ANONYMOUS)
#define PROT_RW			(PROT_READ | PROT_WRITE)

#define granule_aligned(x)	(!((unsigned long)(x) & (GRANULE_SIZE - 1)))
#define granule_round_up(x) \
	(((unsigned long)(x) + GRANULE_SIZE - 1) & ~(GRANULE_SIZE - 1))

/* How a mapping comes to be tagged. */
enum granule_kind {
	GRANULE_UNTAGGED,	/* MAP_GRANULE_4KB, or no request at all */
	GRANULE_DEFAULT,	/* prctl(PR_SET_PAGE_GRANULE, PR_GRANULE_MMAP) */
	GRANULE_CONTRACT,	/* MAP_GRANULE_64KB */
};

/* How a granule is populated; see granule_state(). */
enum granule_state {
	GRANULE_EMPTY,
	GRANULE_WHOLE,
	GRANULE_BROKEN,
};

/* The fields of one VMA in /proc/PID/smaps, sizes in kB. */
struct granule_smaps {
	unsigned long start;
	unsigned long end;
	unsigned long kernel_page_size;
	unsigned long mmu_page_size;
	unsigned long rss;
	unsigned long shared_hugetlb;	/* neither is part of rss */
	unsigned long private_hugetlb;
	unsigned long granule;
	unsigned long granule_mapped;
	bool has_granule;		/* both Granule lines are there */
	char vmflags[512];
};

/*
 * The settings that granule_fail_prepare() found, for granule_fail_restore().
 */
#define GRANULE_FAIL_KNOBS	9
#define GRANULE_FAIL_REMEDY \
	"no fault injection: set CONFIG_FAIL_PAGE_ALLOC and its debugfs"

struct granule_fail {
	bool prepared;
	bool mounted;
	char saved[GRANULE_FAIL_KNOBS][32];
};

/* A cgroup of the test's own. */
struct granule_cg {
	char root[PATH_MAX];
	char dir[PATH_MAX + 32];
};

/* See granule_read_swaps(). */
struct granule_swaps {
	char path[PATH_MAX];
	unsigned int nr;
	int prio;
	unsigned long free_kb;
};

#define GRANULE_CG_REMEDY \
	"no memory cgroup: mount cgroup2, with memory in cgroup.subtree_control"

static inline char *page_at(char *area, unsigned long page)
{
	return area + page * BASE_SIZE;
}

/* A byte to write to in a page: at another place in each. */
static inline char *byte_in(char *area, unsigned long page)
{
	return page_at(area, page) + page % BASE_SIZE;
}

/* The n-th granule of an area, and a byte in it: another page each time. */
static inline char *nth(char *area, unsigned long n)
{
	return area + n * GRANULE_SIZE;
}

static inline char *byte_of(char *area, unsigned long n)
{
	return nth(area, n) + (n * 7 % GRANULE_NR_PAGES) * BASE_SIZE +
	       n % BASE_SIZE;
}

bool granule_supported(void);
void granule_require(void);
void granule_save_settings(void);
void granule_thp_never(void);
void granule_thp_order(unsigned int order);

int granule_set(unsigned long scope, unsigned long size);
long granule_get(unsigned long scope);
int granule_set_enabled(bool enabled);

void *granule_mmap(enum granule_kind kind, void *addr, size_t len, int prot,
		   int flags);
char *granule_reserve(size_t len);
char *granule_area(enum granule_kind kind, size_t len, int flags);
char *granule_map(enum granule_kind kind, bool shared, void *addr, size_t len,
		  int flags);
size_t granule_mapped_len(enum granule_kind kind, size_t len);
bool granule_is_filled(const char *addr, size_t len, char value);
void granule_touch(char *area, size_t len);
char *granule_brk(char *addr);
int granule_remap_pages(char *addr, size_t len, unsigned long page);

int granule_open_pagemap(void);
enum granule_state granule_state(int pagemap_fd, const void *addr);
unsigned int granule_filled(int pagemap_fd, const void *addr);
unsigned long granule_count(int pagemap_fd, const void *addr, size_t len,
			    enum granule_state state);
unsigned long granule_present_pages(int pagemap_fd, const void *addr,
				    size_t len);
unsigned long granule_present(int pagemap_fd, const char *granule);
unsigned long granule_pfn(int pagemap_fd, char *area, unsigned long page);
bool granule_is_zero_run(int pagemap_fd, const void *addr);
unsigned long granule_zero_pages(int pagemap_fd, const void *addr, size_t len);
bool granule_break(char *granule, unsigned long page);
bool granule_give_back(char *granule, unsigned long page, unsigned long nr);
double granule_until_whole(int pagemap_fd, const char *granule, double limit);
double granule_now(void);

bool granule_read_smaps(pid_t pid, const void *addr, struct granule_smaps *smaps);
bool granule_has_flag(const struct granule_smaps *smaps, const char *flag);
bool granule_vma_has_flag(const void *addr, const char *flag);
bool granule_vma_is(const char *start, size_t len);
enum granule_kind granule_kind_of(const void *addr);
unsigned long granule_kb(const char *addr);
char *granule_read_proc(const char *path);
long granule_proc_number(const char *path, const char *name);
long granule_status_kb(pid_t pid, const char *name);
void read_memory(pid_t pid, const char *base, size_t pages, char *buf,
		 unsigned char *readable);
char *granule_smaps_text(const void *start, size_t len);
bool granule_same_text(const char *before, const char *after);
unsigned long granule_vmstat(const char *name);
unsigned long granule_flushes(void);
bool granule_in_large_folio(int pagemap, char *addr);
unsigned long granule_rss_kb(const char *addr, size_t len);
unsigned long granule_mapped_kb(const char *addr, size_t len);
double granule_kthread_seconds(void);
long minor_faults(void);
long granule_faults(void);

bool granule_repair(bool on);
bool granule_invariants_hold(void);
bool granule_invariants_hold_in(pid_t pid);
bool granule_fail_prepare(struct granule_fail *fail);
void granule_fail_order4(bool fail);
void granule_fail_nowait(bool nowait);
void granule_fail_min_order(unsigned int order);
void granule_fail_restore(struct granule_fail *fail);

int granule_uffd(uint64_t features, int flags);
int granule_uffd_open(uint64_t features);
int uffd_arm(int uffd, char *addr, size_t len, uint64_t mode);

extern bool granule_fault_tolerated;
extern siginfo_t granule_fault_info;
bool granule_catch_faults(void);
int granule_try_access(char *addr, const char *value);

pid_t granule_fork_idle(void);
void granule_kill_idle(pid_t pid);

bool granule_two_nodes(void);
int granule_bind_to(int node);
unsigned long granule_on_node(char *area, unsigned long nr, int node, bool move);
long granule_move_pages(char *area, unsigned long nr, const int *nodes, int *status);
int granule_move_all_to(char *area, unsigned long nr, int node);
unsigned long granule_pages_on(char *area, unsigned long nr, int node, unsigned long *memory);
bool granule_block_movable(unsigned long block);
int granule_set_block(unsigned long block, const char *state, unsigned int seconds);

int granule_write(const char *path, const char *text);
unsigned long granule_meminfo_kb(const char *name);
int granule_cg_write(const char *dir, const char *name, const char *text);
bool granule_find_cgroup2(char *path);
bool granule_cg_create(struct granule_cg *cg);
void granule_cg_remove(struct granule_cg *cg);
long granule_cg_read(const char *dir, const char *name, const char *key);
pid_t granule_cg_fork(const struct granule_cg *cg);
long granule_cg_settled(const char *dir, bool shrink);

bool granule_save_setting(const char *path);
void granule_restore_settings(void);
bool granule_child_ends(pid_t pid);
bool granule_stay_on_cpu(void);

bool granule_make_swap(const char *dev, unsigned int megabytes);
void granule_read_swaps(struct granule_swaps *swaps);
bool granule_have_swap(struct granule_swaps *swaps);

void granule_fill(char *addr, size_t len, unsigned int seed);
bool granule_check(const char *addr, size_t len, unsigned int seed);

/* Fields of /proc/PID/stat. */
#define GRANULE_STAT_STARTSTACK	28
#define GRANULE_STAT_START_BRK	47

unsigned long granule_stat_field(pid_t pid, int field);
long granule_smaps_kb(const void *addr, size_t len, const char *name);

#endif /* __PAGE_GRANULE_UTIL_H__ */
