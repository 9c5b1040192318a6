/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The files of page_granule_tool share this.
 */
#ifndef __PAGE_GRANULE_TOOL_H__
#define __PAGE_GRANULE_TOOL_H__

#include <limits.h>
#include <stdarg.h>
#include "page_granule_fs.h"
#include "page_granule_util.h"

#define UID_USER		1000
#define MAX_ARGS		16
#define MAX_OUT			(256 * 1024)

/*
 * The address of layouts: nothing else is there, so golden texts may have it.
 */
#define BASE			0x100000000000UL
#define ARENA			((char *)BASE)
#define EDGED			((char *)BASE + 16 * GRANULE_SIZE)
#define UNTAGGED		((char *)BASE + 32 * GRANULE_SIZE)
#define LARGE			((char *)BASE + 64 * GRANULE_SIZE)
#define LARGE_GRANULES		1024

#define DENSE			((char *)BASE)
#define SPARSE			((char *)BASE + (64UL << 20))
#define THREAD			((char *)BASE + (128UL << 20))
#define ADVISED_GRANULES	256

#define NO_KERNEL \
	"this kernel has no page granules; boot one that is built with CONFIG_PAGE_GRANULE=y"
#define DISABLED \
	"granules are disabled; root can: echo 1 >/sys/kernel/mm/page_granule/enabled"

#define EXPECT_NEAR(val, want, by)	EXPECT_LE(labs((long)(val) - (long)(want)), by)

/* The result of a run of the tool */
struct result {
	int status;		/* exit status, or -signal */
	char out[MAX_OUT];
	char err[4096];
};

#define tool(...)	tool_hooked(NULL, __VA_ARGS__, NULL)

#define RANDOM_GRANULES	64
#define HALF_CACHED_LEN	(4 * GRANULE_SIZE)

/* page_granule_tool_layout.c */
extern char tool_path[PATH_MAX], self_path[PATH_MAX];
extern struct result res;
extern struct granule_file half_cached;
extern char *argv[MAX_ARGS];

extern const char golden_show[];
extern const char golden_map[];
extern const char golden_map_user[];
extern const char golden_show_user[];
extern const char golden_legend[];
extern const char golden_legend_user[];
extern const char golden_advise[];
extern const char golden_help[];
extern const char golden_stat[];

void read_back(int fd, char *buf, size_t size);
bool wait_output(int fd);
void set_argv(const char *arg, va_list args);
pid_t start_argv(void (*hook)(void), int out, int err);
int wait_status(pid_t pid);
pid_t tool_start(int out, int err, const char *arg, ...);
int tool_hooked(void (*hook)(void), const char *arg, ...);
unsigned int count_lines(const char *text);
void hide_pid(char *text, pid_t pid);
void become_user(void);
void disable_thp(void);
pid_t start_layout(bool (*make)(void), bool as_user);
bool map_at(enum granule_kind kind, char *addr, size_t len, int flags);
bool name_it(char *addr, size_t len, const char *name);
bool has_names(void);
bool make_states(void);
void touch(char *addr, unsigned long granules, unsigned long nr);
bool make_advised(void);
bool make_random(void);
bool make_swapped(void);
bool make_guarded(void);
bool make_split(void);
bool make_half_cached(void);
bool make_protected(void);
bool make_mergeable(void);
bool parse_memory(const char *line, unsigned long *now, unsigned long *then);
const char *cut(char *text, const char *first, const char *like);
const char *from(const char *text, const char *start);

#endif /* __PAGE_GRANULE_TOOL_H__ */
