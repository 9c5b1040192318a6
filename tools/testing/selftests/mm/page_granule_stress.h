/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The files of page_granule_stress share this: see page_granule_stress.c.
 */
#ifndef __PAGE_GRANULE_STRESS_H__
#define __PAGE_GRANULE_STRESS_H__

#include <limits.h>
#include "page_granule_fs.h"
#include "page_granule_util.h"

#define PAGE_WORDS	(BASE_SIZE / sizeof(uint64_t))
#define STAMP_WORD	137	/* of a page; see struct page_model */

#define AREA_GRANULES	48UL
#define RESERVE_SLACK	31UL	/* granules, so that areas begin anywhere in 2 MiB */
#define SWAP_GRANULES	224UL	/* of the workers that are to thrash */
#define FILE_GRANULES	96UL	/* of a mapped file */
#define FILE_WORKERS	3
#define MAX_THREADS	4
#define MAX_KIDS	4	/* that a worker forks at a time */
#define MAX_DEPTH	2	/* of forks below a worker */
#define ROUND_OPS	400	/* of each thread */
#define ROUND_MS	(8 * 1000)
#define KID_OPS		12

/* Exit status of a worker that gave up because memory was short. */
#define EXIT_SHORT	75

#define DEBUGFS		"/sys/kernel/debug/"
#define FAIL_PAGE_ALLOC	DEBUGFS "fail_page_alloc/"
#define SWAP_DEV_MB	48

/*
 * The contents of a page: zeroes if the key is 0, otherwise words that all
 * depend on the key. One word is the stamp instead, unless that is 0.
 */
struct page_model {
	uint32_t key;
	uint32_t stamp;
};

struct area {
	enum granule_kind kind;
	bool shared;
	struct granule_file *file;	/* that is mapped shared, or NULL */
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

#define WHY_LEN	512

/* Shared by main() and the worker, which counts its operations. */
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
	unsigned long rounds;		/* that were compared to the end */
	unsigned long pages;		/* compared */
	unsigned long looks;		/* at granules */
	unsigned long shorts;		/* memory was short, and it went on */
	unsigned long done;		/* what the kind is about, see kind->what */
	unsigned long refused;		/* of that */
	unsigned long files;		/* it has chosen filesystems for */
	char why[WHY_LEN];		/* it failed: the line that says so, or "" */

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
	unsigned long whole[FS_SYSV];	/* granules at the end of rounds of each filesystem */
	struct worker workers[MAX_WORKERS];
};

/* An access that the compiler leaves where and as it is. */
#define load(p)		__atomic_load_n(p, __ATOMIC_RELAXED)
#define store(p, val)	__atomic_store_n(p, val, __ATOMIC_RELAXED)
#define count(p, nr)	((void)__atomic_fetch_add(p, nr, __ATOMIC_RELAXED))

/*
 * The operations on an area, in groups. Each kind of worker has its own groups.
 */
#define DO_ACCESS	0x01U
#define DO_ADVISE	0x02U
#define DO_NUMA		0x04U
#define DO_EMPTY	0x08U
#define DO_MAP		0x10U
#define DO_FORK		0x20U
#define DO_LOCK		0x40U
#define DO_FILE		0x80U

/* The areas that an operation can act on; 0 stands for all. */
#define ON_PRIVATE	0x01U
#define ON_SHARED	0x02U	/* anonymous */
#define ON_FILE		0x04U

struct op {
	const char *name;
	void (*run)(struct actor *actor);
	unsigned int group;
	unsigned int weight;
	bool alone;		/* nobody else may use the area meanwhile */
	bool own;		/* nor the granules */
	unsigned int on;
};

/* page_granule_stress.c */
extern struct shared *shared;
extern unsigned int nr_workers;
extern struct worker *self;
extern unsigned long known_oom_kills;
extern int nr_nodes;
extern bool have_fail;
extern char swap_dev[32], disk_dev[32];
extern char cgroup[PATH_MAX - 64];

void begin(const char *what);
unsigned long now(void);
uint64_t mix(uint64_t x);
unsigned long draw(struct actor *actor, unsigned long limit);
bool one_in(struct actor *actor, unsigned long nr);
uint32_t new_key(struct actor *actor);
void __noreturn __printf(1, 2) fail(const char *format, ...);
void __noreturn give_up(void);
bool is_short(int error);
bool worked(long ret, const char *what);
void must_work(long ret, const char *what);
size_t area_len(const struct area *area);
unsigned long area_pages(const struct area *area);
char *page_addr(const struct area *area, unsigned long page);
char *range_addr(const struct area *area, const struct range *range);
size_t range_len(const struct range *range);
bool owns(const struct actor *actor, unsigned long page);
uint64_t model_word(const struct page_model *model, unsigned int i);
void model_write(const struct page_model *model, char *addr);
unsigned int model_compare(const struct page_model *model, const char *addr);
void __noreturn page_wrong(const struct area *area, unsigned long page, const char *addr,
			   unsigned int word);
void check_copy(const struct area *area, unsigned long page, const char *addr);
void check_page(const struct area *area, unsigned long page);
void check_all(const struct actor *actor);
void look(const struct actor *actor, unsigned long granule);
void look_all(const struct actor *actor);
void area_map(const struct area *area, char *addr, size_t len);
void area_create(struct actor *actor, struct area *area, enum granule_kind kind,
		 bool is_shared, struct granule_file *file, unsigned long nr);
void area_destroy(struct area *area);
unsigned long own_page(struct actor *actor);
struct range any_range(struct actor *actor);
void model_zero(struct area *area, const struct range *range);
void run(unsigned long seconds);
int error(const char *msg);

/* page_granule_stress_ops.c */
void poke(const struct area *area, unsigned long page, char *addr);
void op_advise(struct actor *actor);
unsigned long oom_kills(const struct worker *worker);
bool was_oom(void);
bool reap(pid_t pid);
void become_child(struct actor *actor, pid_t parent);
const struct op *draw_op(struct actor *actor);
bool goes_on(const struct actor *actor);
void act(struct actor *actor);
void check_round(struct actor *actor);
void use_area(struct actor *actor, unsigned int threads, unsigned int groups);
void fork_round(struct actor *actor);
void map_round(struct actor *actor);
void swap_round(struct actor *actor);
void numa_round(struct actor *actor);
void repair_round(struct actor *actor);

/* page_granule_stress_file.c */
void op_write_file(struct actor *actor);
void op_read_file(struct actor *actor);
void op_sync(struct actor *actor);
void op_advise_file(struct actor *actor);
void op_zero_range(struct actor *actor);
void op_truncate(struct actor *actor);
void op_map_twice(struct actor *actor);
void file_round(struct actor *actor);
const char *fs_untested(void);

/* page_granule_disturb.c */
const char *no_cgroup(void);
const char *no_swap(void);
const char *one_node(void);
const char *no_fail(void);
void ptrace_round(struct actor *actor);
const char *no_uffd(void);
void uffd_round(struct actor *actor);
const char *no_pins(void);
void pin_round(struct actor *actor);
void compaction_round(struct actor *actor);
const char *no_blocks(void);
void hotplug_round(struct actor *actor);
void settings_round(struct actor *actor);
const char *no_swap_dev(void);
void swapoff_round(struct actor *actor);

#endif /* __PAGE_GRANULE_STRESS_H__ */
