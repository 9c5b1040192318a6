/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the page granule tests share: the user-space ABI for older headers, and
 * a view of the result from outside: smaps, pagemap, vmstat and sysfs.
 */
#ifndef __PAGE_GRANULE_UTIL_H__
#define __PAGE_GRANULE_UTIL_H__

#include <limits.h>
#include <linux/mman.h>
#include <linux/prctl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
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

/* PROCMAP_QUERY_VMA_GRANULE and _CONTRACT, which no #ifdef tells from older ones. */
#define PROCMAP_GRANULE			0x40
#define PROCMAP_GRANULE_CONTRACT	0x80

#define BASE_SIZE		4096UL
#define GRANULE_SIZE		65536UL
#define GRANULE_NR_PAGES	(GRANULE_SIZE / BASE_SIZE)

/*
 * Faults of the test itself: a stack page, a page of libc. None of them is seen
 * in practice, but a test must not fail over one.
 */
#define FAULT_SLACK		8

#define GRANULE_SYSFS		"/sys/kernel/mm/page_granule/"

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

/* What granule_fail_prepare() found, for granule_fail_restore() to put back. */
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

#define GRANULE_CG_REMEDY \
	"no memory cgroup: mount cgroup2, with memory in cgroup.subtree_control"

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

int granule_open_pagemap(void);
enum granule_state granule_state(int pagemap_fd, const void *addr);
unsigned int granule_filled(int pagemap_fd, const void *addr);
unsigned long granule_count(int pagemap_fd, const void *addr, size_t len,
			    enum granule_state state);
unsigned long granule_present_pages(int pagemap_fd, const void *addr,
				    size_t len);
bool granule_is_zero_run(int pagemap_fd, const void *addr);
unsigned long granule_zero_pages(int pagemap_fd, const void *addr, size_t len);
bool granule_break(char *granule, unsigned long page);
double granule_until_whole(int pagemap_fd, const char *granule, double limit);
double granule_now(void);

bool granule_read_smaps(pid_t pid, const void *addr, struct granule_smaps *smaps);
bool granule_has_flag(const struct granule_smaps *smaps, const char *flag);
char *granule_smaps_text(const void *start, size_t len);
bool granule_same_text(const char *before, const char *after);
unsigned long granule_vmstat(const char *name);
unsigned long granule_rss_kb(const char *addr, size_t len);
unsigned long granule_mapped_kb(const char *addr, size_t len);
long minor_faults(void);

bool granule_repair(bool on);
bool granule_invariants_hold(void);
bool granule_fail_prepare(struct granule_fail *fail);
void granule_fail_order4(bool fail);
void granule_fail_nowait(bool nowait);
void granule_fail_min_order(unsigned int order);
void granule_fail_restore(struct granule_fail *fail);

int granule_uffd_open(uint64_t features);

pid_t granule_fork_idle(void);
void granule_kill_idle(pid_t pid);

bool granule_two_nodes(void);
unsigned long granule_on_node(char *area, unsigned long nr, int node, bool move);
long granule_move_pages(char *area, unsigned long nr, const int *nodes, int *status);

int granule_write(const char *path, const char *text);
unsigned long granule_meminfo_kb(const char *name);
int granule_cg_write(const char *dir, const char *name, const char *text);
bool granule_find_cgroup2(char *path);
bool granule_cg_create(struct granule_cg *cg);
void granule_cg_remove(struct granule_cg *cg);
long granule_cg_read(const char *dir, const char *name, const char *key);

bool granule_save_setting(const char *path);
bool granule_child_ends(pid_t pid);

void granule_zram_create(char *dev, size_t size, unsigned int megabytes);
void granule_zram_remove(const char *dev);
bool granule_make_swap(const char *dev, unsigned int megabytes);

void granule_fill(char *addr, size_t len, unsigned int seed);
bool granule_check(const char *addr, size_t len, unsigned int seed);

#endif /* __PAGE_GRANULE_UTIL_H__ */
