/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The arena of page_granule_calls: see page_granule_arena.c.
 */
#ifndef __PAGE_GRANULE_ARENA_H__
#define __PAGE_GRANULE_ARENA_H__

#include "page_granule_util.h"

/* linux/mempolicy.h does not go together with what libnuma may bring in. */
#define POLICY_DEFAULT		0
#define POLICY_PREFERRED	1
#define POLICY_BIND		2
#define POLICY_F_ADDR		2

/*
 * The arena: memory laid out in one of the ways below, and a destination for
 * what is moved, both in a reservation of PROT_NONE:
 *
 *	base                  dest
 *	| 6 x 64K of VMAs | 64K | 6 x 64K of PROT_NONE |
 *
 * Every other VMA is MADV_DONTDUMP, so that VMAs that differ in nothing but the
 * tag remain two on the untagged twin too.
 */
#define LAYOUT_GRANULES	6
#define LAYOUT_PAGES	(LAYOUT_GRANULES * (unsigned int)GRANULE_NR_PAGES)
#define LAYOUT_LEN	(LAYOUT_GRANULES * GRANULE_SIZE)
#define ARENA_LEN	(2 * LAYOUT_LEN + GRANULE_SIZE)
#define ARENA_PAGES	(ARENA_LEN / BASE_SIZE)

/* Never populated, since a refused call might populate it. */
#define EMPTY_GRANULE	3

struct segment {
	char kind;	/* 'u'ntagged, 'd'efault, 't'he one under test, 'h'ole */
	unsigned int granules;
	bool readonly;
};

struct layout {
	const char *name;
	/* Says no more about default-tagged memory than another one does. */
	bool contract_only;
	struct segment seg[4];
};

/* In pages from the base. */
struct range {
	const char *name;
	unsigned int first;
	unsigned int last;
};

struct arena {
	char *base;
	char *dest;
	int uffd;		/* 0, or to be closed before the memory is read */
	const struct layout *layout;
	enum granule_kind kind;
	bool shared;
};

/* The state of the arena, page by page. */
struct view {
	char flags[ARENA_PAGES][80];	/* permissions and VmFlags, without the tag */
	unsigned long start[ARENA_PAGES];	/* of the VMA, 0 where there is none */
	enum granule_kind kind[ARENA_PAGES];
	unsigned char resident[ARENA_PAGES];
	unsigned char policy[ARENA_PAGES];
	unsigned long rss;
};

/* Everything that a refused call could have changed. */
struct snapshot {
	char *text;
	long splits;
	unsigned char resident[LAYOUT_PAGES];
	unsigned char policy[LAYOUT_PAGES];
	unsigned char readable[LAYOUT_PAGES];
	char contents[LAYOUT_LEN];
};

const char *row_name(const struct layout *layout, const struct range *range);
enum granule_kind segment_kind(const struct segment *seg, enum granule_kind kind);
const struct segment *segment_at(const struct layout *layout, unsigned int page);
void arena_close(struct arena *arena);
bool arena_reserve(struct arena *arena);
bool arena_map(struct arena *arena, const struct layout *layout,
	       enum granule_kind kind, bool shared);
void view_policy(const char *base, size_t pages, unsigned char *vec);
void take_views(const struct arena *arena1, struct view *view1,
		const struct arena *arena2, struct view *view2);
char *arena_text(pid_t pid, const struct arena *arena);
long granule_splits(void);
void take_snapshot(const struct arena *arena, struct snapshot *snap);
void free_snapshot(struct snapshot *snap);
bool same_snapshot(const struct snapshot *before, const struct snapshot *after);

#endif /* __PAGE_GRANULE_ARENA_H__ */
