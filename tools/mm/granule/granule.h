/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the verbs of the granule command share: the user-space ABI for older headers, in
 * granule.c how to talk to the user, and in process.c what /proc tells of a process.
 */
#ifndef __GRANULE_H__
#define __GRANULE_H__

#include <linux/fs.h>
#include <linux/types.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/types.h>

/* What kernel code has in headers that are not for programs. */
#define ARRAY_SIZE(arr)		(sizeof(arr) / sizeof((arr)[0]))
#define BIT(nr)			(1UL << (nr))
#define BIT_ULL(nr)		(1ULL << (nr))

/* What the headers of an older kernel lack. The numbers are fixed ABI. */
#ifndef PR_SET_PAGE_GRANULE
#define PR_SET_PAGE_GRANULE	0x53504752
#define PR_GET_PAGE_GRANULE	0x47504752
# define PR_GRANULE_MMAP	0
# define PR_GRANULE_EXEC	1
#endif

#ifndef PR_GET_THP_DISABLE
#define PR_GET_THP_DISABLE	42
#endif

#ifndef PAGEMAP_SCAN
#define PAGEMAP_SCAN		_IOWR('f', 16, struct pm_scan_arg)
#define PAGE_IS_PRESENT		BIT(3)
#define PAGE_IS_SWAPPED		BIT(4)
#define PAGE_IS_PFNZERO		BIT(5)
#define PAGE_IS_SOFT_DIRTY	BIT(7)

struct page_region {
	__u64 start;
	__u64 end;
	__u64 categories;
};

struct pm_scan_arg {
	__u64 size;
	__u64 flags;
	__u64 start;
	__u64 end;
	__u64 walk_end;
	__u64 vec;
	__u64 vec_len;
	__u64 max_pages;
	__u64 category_inverted;
	__u64 category_mask;
	__u64 category_anyof_mask;
	__u64 return_mask;
};
#endif

#ifndef PROCMAP_QUERY
#define PROCMAP_QUERY		_IOWR('f', 17, struct procmap_query)

struct procmap_query {
	__u64 size;
	__u64 query_flags;
	__u64 query_addr;
	__u64 vma_start;
	__u64 vma_end;
	__u64 vma_flags;
	__u64 vma_page_size;
	__u64 vma_offset;
	__u64 inode;
	__u32 dev_major;
	__u32 dev_minor;
	__u32 vma_name_size;
	__u32 build_id_size;
	__u64 vma_name_addr;
	__u64 build_id_addr;
};
#endif

/* Enumerators, which no #ifdef tells from those of an older header. */
#define QUERY_NEXT_VMA		0x10	/* PROCMAP_QUERY_COVERING_OR_NEXT_VMA */
#define QUERY_GRANULE		0x40	/* PROCMAP_QUERY_VMA_GRANULE */

/* Bits of /proc/PID/pagemap and /proc/kpageflags */
#define PM_PFN			(BIT_ULL(55) - 1)
#define PM_SOFT_DIRTY		BIT_ULL(55)
#define PM_UFFD_WP		BIT_ULL(57)
#define PM_GUARD		BIT_ULL(58)
#define PM_SWAP			BIT_ULL(62)
#define PM_PRESENT		BIT_ULL(63)
#define KPF_COMPOUND_TAIL	BIT_ULL(16)
#define KPF_KSM			BIT_ULL(21)

#define PAGE_SZ			4096UL
#define GRANULE_SZ		65536UL
#define NR			(GRANULE_SZ / PAGE_SZ)
#define NR_CACHED		512

#define SYSFS			"/sys/kernel/mm/page_granule/"
#define THP			"/sys/kernel/mm/transparent_hugepage/"
#define NO_KERNEL \
	"this kernel has no page granules; boot one that is built with CONFIG_PAGE_GRANULE=y"

#define EXIT_USAGE		2
/* As env(1) has them */
#define EXIT_TOOL		125
#define EXIT_NOT_EXECUTABLE	126
#define EXIT_NOT_FOUND		127

/* What one 64 KiB block of addresses is. The order is that of state_chars[]. */
enum state {
	EMPTY,
	WHOLE,
	BROKEN,
	SWAPPED,
	ZERO,
	BASE,		/* not in granules: untagged, or cut off by a bound */
	UNKNOWN,	/* all pages are there, but who may not see PFNs cannot tell */
	NR_STATES,
};

/* Why a granule is broken */
enum why {
	WHY_HOLES,
	WHY_SWAP,
	WHY_ZERO,
	WHY_GUARD,
	WHY_KSM,
	WHY_SCATTERED,
	WHY_SINGLE,
	WHY_UNLIKE,
	WHY_UNKNOWN,
	NR_WHYS,
};

extern const char * const why_text[NR_WHYS];
extern const char * const why_name[NR_WHYS];

/* A mapping, as /proc/PID/smaps has it. Sizes are in kB. */
struct vma {
	unsigned long start;
	unsigned long end;
	unsigned long offset;		/* in bytes, into a file */
	unsigned long inode;
	unsigned long rss;
	unsigned long swap;
	unsigned long referenced;
	unsigned long huge;
	unsigned long granule;
	unsigned long granule_mapped;
	char perms[5];
	bool tagged;
	bool contract;
	bool nohuge;
	bool special;
	char *name;
};

struct process {
	pid_t pid;
	char comm[64];
	unsigned long mmap_kb;		/* 0 where the kernel has no granules */
	unsigned long exec_kb;
	bool thp_disabled;
	struct vma *vmas;
	size_t nr_vmas;
	int pagemap;
	bool no_scan;			/* PAGEMAP_SCAN is newer than this kernel */
	bool ended;
	unsigned long cached;		/* address of cache[0], or 1 */
	uint64_t cache[NR_CACHED];
};

/* A 64 KiB block that has anything populated. */
struct block {
	unsigned long addr;
	bool cut;			/* a bound of the mapping cuts it */
	unsigned int present;		/* zero pages are not in it */
	unsigned int swapped;
	unsigned int zero;
	unsigned int guard;
	unsigned int written;
};

typedef void (*block_fn)(struct process *proc, const struct vma *vma,
			 const struct block *block, void *arg);

/* How many blocks of a mapping are in each state */
struct tally {
	bool pfns;
	unsigned long states[NR_STATES];
	unsigned long whys[NR_WHYS];
};

struct option;

/* Macros, so that the compiler checks the formats. Each message is one line. */
#define complain(...)								\
do {										\
	begin_message(NULL);							\
	fprintf(stderr, __VA_ARGS__);						\
	fputc('\n', stderr);							\
} while (0)

#define usage(verb, ...)							\
do {										\
	begin_message(verb);							\
	fprintf(stderr, __VA_ARGS__);						\
	exit(end_usage());							\
} while (0)

void begin_message(const char *verb);
int end_usage(void);
void *must(void *ptr);
int next_option(const char *verb, int argc, char **argv, const char *shorts,
		const struct option *longs);
long parse_number(const char *verb, const char *what, const char *text, long min, long max);
pid_t parse_pid(const char *verb, int argc, char **argv, bool needed);
int unprintable(const char *text);
void print_name(const char *name, int max);
void json_string(const char *text);
const char *human(unsigned long kb);
bool read_text(const char *path, char *buf, size_t size);
bool kernel_has_granules(void);

void explain(pid_t pid, const char *name, int error);
FILE *open_proc(pid_t pid, const char *name);
bool process_ended(pid_t pid);
void read_comm(struct process *proc);
void read_status(struct process *proc);
int read_smaps(struct process *proc);
bool may_see_pfns(void);
bool open_process(struct process *proc, pid_t pid);
void close_process(struct process *proc);
int note_ended(const struct process *proc);
void scan_vma(struct process *proc, const struct vma *vma, unsigned long shift, block_fn fn,
	      void *arg);
bool in_granules(const struct vma *vma);
const char *vma_kind(const struct vma *vma);
enum state block_state(struct process *proc, const struct vma *vma, const struct block *block,
		       bool pfns, enum why *why);
unsigned long nr_granules(const struct vma *vma);
void tally_vma(struct process *proc, const struct vma *vma, struct tally *tally);
void tally_add(struct tally *sum, const struct tally *tally);

const char *granule_unoffered(void);

int run_main(int argc, char **argv);
int show_main(int argc, char **argv);
int map_main(int argc, char **argv);
int collapse_main(int argc, char **argv);
int advise_main(int argc, char **argv);
int stat_main(int argc, char **argv);
int supported_main(int argc, char **argv);

#endif /* __GRANULE_H__ */
