// SPDX-License-Identifier: GPL-2.0
/*
 * Page granule: the granule command of tools/mm/granule, which lies beside this
 * program. Each test runs a verb on processes whose layout it knows, and
 * compares the output with the text that it expects and with what it reads
 * itself.
 *
 * page_granule_tool_layout.c has these layouts and the texts.
 */
#define _GNU_SOURCE
#include "kselftest_harness.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/ptrace.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "vm_util.h"
#include "page_granule_tool.h"
#include "page_granule_util.h"

#ifndef PTRACE_SET_SYSCALL_INFO
#define PTRACE_SET_SYSCALL_INFO	0x4212
#endif

FIXTURE(page_granule_tool)
{
	pid_t pid;
	char number[16];
};

FIXTURE_SETUP(page_granule_tool)
{
	ASSERT_EQ(granule_set_enabled(true), 0);
	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, BASE_SIZE), 0);
	ASSERT_EQ(granule_set(PR_GRANULE_EXEC, BASE_SIZE), 0);
	granule_thp_never();
	if (!has_names())
		SKIP(return, "no names of mappings: set CONFIG_ANON_VMA_NAME=y");
	self->pid = -1;
}

FIXTURE_TEARDOWN(page_granule_tool)
{
	if (self->pid > 0)
		granule_kill_idle(self->pid);
	granule_set_enabled(true);
}

/* A process of that layout, whose PID is in @self as well. */
#define START(make, as_user)							\
do {										\
	self->pid = start_layout(make, as_user);				\
	ASSERT_GT(self->pid, 0);						\
	snprintf(self->number, sizeof(self->number), "%d", self->pid);		\
} while (0)

/*
 * Assert that the tool prints this help, which fits a screen, in each way to
 * ask for it.
 */
TEST_F(page_granule_tool, help)
{
	static const char * const verbs[] = {
		"run", "show", "map", "collapse", "advise", "stat", "supported",
	};
	const char *line;
	size_t i, len;

	ASSERT_EQ(tool("--help"), 0);
	EXPECT_TRUE(granule_same_text(golden_help, res.out));
	EXPECT_STREQ(res.err, "");
	EXPECT_LE(count_lines(res.out), 24);
	for (line = res.out; *line; line += len + 1) {
		len = strcspn(line, "\n");
		EXPECT_LE(len, 80);
	}
	ASSERT_EQ(tool("-h"), 0);
	EXPECT_STREQ(res.out, golden_help);
	for (i = 0; i < ARRAY_SIZE(verbs); i++) {
		ASSERT_EQ(tool(verbs[i], "--help"), 0);
		EXPECT_STREQ(res.out, golden_help);
	}
}

static void disk_full(void)
{
	dup2(open("/dev/full", O_WRONLY), STDOUT_FILENO);
}

/* Assert that the tool fails if it cannot write its output. */
TEST_F(page_granule_tool, full_disk)
{
	EXPECT_EQ(tool_hooked(disk_full, "supported", NULL), 1);
	EXPECT_STREQ(res.err, "granule: cannot write the output: No space left on device\n");
	EXPECT_EQ(tool_hooked(disk_full, "--help", NULL), 1);
	EXPECT_EQ(tool_hooked(disk_full, "map", "--help", NULL), 1);
}

/*
 * Assert that the tool reports wrong usage in one line, and then prints the
 * usage.
 */
TEST_F(page_granule_tool, wrong_usage)
{
	static const struct {
		const char *args[4];
		int status;
		const char *err;
	} cases[] = {
		{ { NULL }, 2, "granule: what to do?" },
		{ { "list" }, 2, "granule: there is no verb 'list'" },
		{ { "" }, 2, "granule: there is no verb ''" },
		{ { "run" }, 125, "granule run: which command?" },
		{ { "run", "-s", "8k", "true" }, 125,
		  "granule run: a granule is 64k or 4k, not '8k'" },
		{ { "run", "-x", "true" }, 125, "granule run: there is no option '-x'" },
		{ { "run", "-s" }, 125, "granule run: option '-s' needs a value" },
		{ { "show", "abc" }, 2,
		  "granule show: a PID is a number from 1 to 2147483647, not 'abc'" },
		{ { "show", "0" }, 2,
		  "granule show: a PID is a number from 1 to 2147483647, not '0'" },
		{ { "show", "1x" }, 2,
		  "granule show: a PID is a number from 1 to 2147483647, not '1x'" },
		{ { "show", "9999999999" }, 2,
		  "granule show: a PID is a number from 1 to 2147483647, not '9999999999'" },
		{ { "show", "--all" }, 2,
		  "granule show: --all is for the mappings of one process; give its PID" },
		{ { "show", "1", "2" }, 2, "granule show: one PID is enough: '2' is too much" },
		{ { "show", "--xml", "1" }, 2, "granule show: there is no option '--xml'" },
		{ { "show", "1", "--all=1" }, 2, "granule show: option '--all' takes no value" },
		{ { "map" }, 2, "granule map: which process? Give its PID" },
		{ { "map", "-1" }, 2, "granule map: there is no option '-1'" },
		{ { "map", " 1" }, 2,
		  "granule map: a PID is a number from 1 to 2147483647, not ' 1'" },
		{ { "advise", "-t", "-5", "1" }, 2,
		  "granule advise: SECONDS is a number from 0 to 86400, not '-5'" },
		{ { "advise", "1", "-t" }, 2, "granule advise: option '-t' needs a value" },
		{ { "advise", "-t", "1" }, 2, "granule advise: which process? Give its PID" },
		{ { "collapse" }, 2, "granule collapse: which process? Give its PID" },
		{ { "collapse", "-t", "1" }, 2, "granule collapse: there is no option '-t'" },
		{ { "stat", "0" }, 2,
		  "granule stat: SECONDS is a number from 1 to 86400, not '0'" },
		{ { "stat", "1", "0" }, 2,
		  "granule stat: COUNT is a number from 1 to 2147483647, not '0'" },
		{ { "stat", "1", "1", "1" }, 2, "granule stat: '1' is too much" },
		{ { "supported", "64k" }, 2,
		  "granule supported: it takes no argument, and not '64k'" },
	};
	size_t i, len;

	for (i = 0; i < ARRAY_SIZE(cases); i++) {
		tool(cases[i].args[0], cases[i].args[1], cases[i].args[2], cases[i].args[3]);
		len = strlen(cases[i].err);
		EXPECT_EQ(res.status, cases[i].status) TH_LOG("%s", cases[i].err);
		EXPECT_STREQ(res.out, "");
		EXPECT_EQ(strncmp(res.err, cases[i].err, len), 0) TH_LOG("%s", res.err);
		EXPECT_EQ(strncmp(res.err + len, "\nusage: granule ", 16), 0)
			TH_LOG("%s", res.err);
		EXPECT_EQ(count_lines(res.err), 2);
	}
}

/* Assert that "show" prints this text, and no untagged mapping. */
TEST_F(page_granule_tool, show)
{
	START(make_states, false);
	ASSERT_EQ(tool("show", self->number), 0);
	hide_pid(res.out, self->pid);
	EXPECT_TRUE(granule_same_text(golden_show, res.out));
	EXPECT_STREQ(res.err, "");

	ASSERT_EQ(tool("show", self->number, "--all"), 0);
	EXPECT_NE(strstr(res.out, "100000200000       256 untagged        12         - "), NULL);
	EXPECT_NE(strstr(res.out, "[stack]\n"), NULL);
}

/*
 * Assert that "map" draws this picture, without colors if no terminal shows
 * them.
 */
TEST_F(page_granule_tool, map)
{
	START(make_states, false);
	ASSERT_EQ(tool("map", self->number), 0);
	EXPECT_STREQ(res.err, "");
	EXPECT_EQ(strchr(res.out, '\033'), NULL);
	EXPECT_STREQ(from(res.out, "\n. empty"), golden_legend);
	EXPECT_TRUE(granule_same_text(golden_map,
				      cut(res.out, "contract, 384 kB", golden_map)));
}

static void narrow(void)
{
	setenv("COLUMNS", "35", 1);
}

static bool make_wide(void)
{
	if (!map_at(GRANULE_CONTRACT, ARENA, 17 * GRANULE_SIZE, 0) ||
	    !name_it(ARENA, 17 * GRANULE_SIZE, "arena"))
		return false;
	*nth(ARENA, 0) = 1;
	*nth(ARENA, 16) = 1;
	return true;
}

/* Assert that rows are as wide as the terminal allows, in whole MiB. */
TEST_F(page_granule_tool, map_width)
{
	static const char golden[] =
"contract, 1088 kB, [anon:arena]\n"
"  100000000000  #...............\n"
"  100000100000  #\n";

	START(make_states, false);
	ASSERT_EQ(tool_hooked(narrow, "map", self->number, NULL), 0);
	EXPECT_NE(strstr(res.out, "  100000400000  1023 empty, 64 MB\n"), NULL);
	granule_kill_idle(self->pid);

	START(make_wide, false);
	ASSERT_EQ(tool_hooked(narrow, "map", self->number, NULL), 0);
	EXPECT_TRUE(granule_same_text(golden, cut(res.out, "contract, 1088 kB", golden)));
}

static bool make_long(void)
{
	if (!map_at(GRANULE_CONTRACT, ARENA, 70 * GRANULE_SIZE, 0) ||
	    !map_at(GRANULE_CONTRACT, nth(ARENA, 128), 40 * GRANULE_SIZE, 0))
		return false;
	granule_fill(ARENA, 66 * GRANULE_SIZE, 1);
	granule_fill(nth(ARENA, 128), 33 * GRANULE_SIZE, 1);
	return true;
}

/*
 * Assert that "map" folds long equal stretches into a line, not only empty
 * ones.
 */
TEST_F(page_granule_tool, map_folds)
{
	static const char golden[] =
"contract, 4480 kB\n"
"  100000000000  66 whole, 4224 kB\n"
"  100000420000  ....\n"
"contract, 2560 kB\n"
"  100000800000  ################\n"
"  100000900000  ################\n"
"  100000a00000  #.......\n";

	START(make_long, false);
	ASSERT_EQ(tool_hooked(narrow, "map", self->number, NULL), 0);
	EXPECT_TRUE(granule_same_text(golden, cut(res.out, "contract, 4480 kB", golden)));
}

static int pty_slave;

static void on_terminal(void)
{
	setenv("TERM", "xterm", 1);
	dup2(pty_slave, STDOUT_FILENO);
}

static void no_color(void)
{
	on_terminal();
	setenv("NO_COLOR", "1", 1);
}

/*
 * Assert that "map" uses color on a terminal only, and not if the user wants
 * none.
 */
TEST_F(page_granule_tool, map_color)
{
	static const struct {
		void (*hook)(void);
		const char *option;
		bool color;
	} cases[] = {
		{ on_terminal, NULL, true },
		{ on_terminal, "--no-color", false },
		{ no_color, NULL, false },
	};
	const struct winsize size = { .ws_row = 24, .ws_col = 200 };
	static char text[MAX_OUT];
	size_t i, len;
	ssize_t n;
	int pty;

	START(make_states, false);
	for (i = 0; i < ARRAY_SIZE(cases); i++) {
		pty = posix_openpt(O_RDWR | O_NOCTTY | O_NONBLOCK);
		if (pty < 0 || grantpt(pty) || unlockpt(pty))
			SKIP(return, "no pseudo terminals: mount devpts on /dev/pts");
		ioctl(pty, TIOCSWINSZ, &size);
		pty_slave = open(ptsname(pty), O_RDWR | O_NOCTTY);
		ASSERT_GE(pty_slave, 0);
		ASSERT_EQ(tool_hooked(cases[i].hook, "map", self->number, cases[i].option, NULL),
			  0);
		for (len = 0; (n = read(pty, text + len, sizeof(text) - 1 - len)) > 0;)
			len += n;
		text[len] = '\0';
		EXPECT_NE(strstr(text, "a character is 64 KiB"), NULL);
		EXPECT_EQ(!!strstr(text, "\033[32m#"), cases[i].color);
		EXPECT_EQ(!!strchr(text, '\033'), cases[i].color);
		close(pty_slave);
		close(pty);
	}
}

/* The number after "key": in the JSON object that begins at @object */
static long json_number(const char *object, const char *key)
{
	char quoted[64];
	const char *p;

	snprintf(quoted, sizeof(quoted), "\"%s\":", key);
	p = strstr(object, quoted);
	return p ? atol(p + strlen(quoted)) : -1;
}

#define BLANK	"\n "

/* Is this one JSON value, with nothing but a newline behind it? */
static const char *json_value(const char *p)
{
	p += strspn(p, BLANK);
	if (*p == '"') {
		for (p++; *p && *p != '"'; p++) {
			if ((unsigned char)*p < ' ')
				return NULL;
			p += *p == '\\';
		}
		return *p ? p + 1 : NULL;
	}
	if (*p == '{' || *p == '[') {
		const char close = *p == '{' ? '}' : ']';

		p += 1 + strspn(p + 1, BLANK);
		while (*p != close) {
			p = json_value(p);
			if (p && close == '}')
				p = *p == ':' ? json_value(p + 1) : NULL;
			if (!p)
				return NULL;
			p += strspn(p, BLANK);
			if (*p != ',' && *p != close)
				return NULL;
			p += *p == ',';
		}
		return p + 1;
	}
	if (!strncmp(p, "true", 4))
		return p + 4;
	if (!strncmp(p, "false", 5))
		return p + 5;
	return strspn(p, "0123456789") ? p + strspn(p, "0123456789") : NULL;
}

static bool is_json(const char *text)
{
	const char *end = json_value(text);

	return end && !strcmp(end, "\n");
}

static int open_pagemap(pid_t pid)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/pagemap", pid);
	return open(path, O_RDONLY);
}

/* Does the JSON say of this mapping what its pagemap does? */
static void compare_json(struct __test_metadata *_metadata, pid_t pid, const char *json,
			 char *addr, size_t len)
{
	unsigned long whole, empty, zero = 0, i, rss;
	int pagemap = open_pagemap(pid);
	char start[64];
	const char *object;

	ASSERT_GE(pagemap, 0);
	snprintf(start, sizeof(start), "{\"start\":\"0x%lx\"", (unsigned long)addr);
	object = strstr(json, start);
	ASSERT_NE(object, NULL);
	whole = granule_count(pagemap, addr, len, GRANULE_WHOLE);
	empty = granule_count(pagemap, addr, len, GRANULE_EMPTY);
	for (i = 0; i < len / GRANULE_SIZE; i++)
		zero += granule_is_zero_run(pagemap, nth(addr, i));
	rss = granule_present_pages(pagemap, addr, len) - granule_zero_pages(pagemap, addr, len);
	EXPECT_EQ(json_number(object, "whole"), whole);
	EXPECT_EQ(json_number(object, "empty"), empty);
	EXPECT_EQ(json_number(object, "zero"), zero);
	EXPECT_EQ(json_number(object, "broken"), len / GRANULE_SIZE - whole - empty - zero);
	EXPECT_EQ(json_number(object, "rss_kb"), rss * 4);
	EXPECT_EQ(json_number(object, "granule_mapped_kb"), whole * 64);
	EXPECT_EQ(json_number(object, "size_kb"), len / 1024);
	close(pagemap);
}

/*
 * Assert that the JSON is valid, and agrees with the pagemap that the test
 * reads.
 */
TEST_F(page_granule_tool, json)
{
	const char *object;

	START(make_states, false);
	ASSERT_EQ(tool("show", "--json", self->number), 0);
	EXPECT_TRUE(is_json(res.out));
	EXPECT_EQ(json_number(res.out, "pid"), self->pid);
	EXPECT_NE(strstr(res.out, "\"name\":\"[anon:arena]\""), NULL);
	compare_json(_metadata, self->pid, res.out, ARENA, 6 * GRANULE_SIZE);
	compare_json(_metadata, self->pid, res.out, LARGE, LARGE_GRANULES * GRANULE_SIZE);
	object = strstr(res.out, "\"0x1000000ff000\"");
	ASSERT_NE(object, NULL);
	EXPECT_EQ(json_number(object, "broken"), 2);
	EXPECT_EQ(json_number(object, "holes"), 1);
	EXPECT_EQ(json_number(object, "scattered"), 1);
	object = strstr(res.out, "\"total\"");
	ASSERT_NE(object, NULL);
	EXPECT_EQ(json_number(object, "granule_mapped_kb"), 320);
	EXPECT_EQ(json_number(object, "rss_kb"), 452);
}

/* Assert the same for a random layout. */
TEST_F(page_granule_tool, json_random)
{
	START(make_random, false);
	ASSERT_EQ(tool("show", "--json", self->number), 0);
	EXPECT_TRUE(is_json(res.out));
	compare_json(_metadata, self->pid, res.out, ARENA, RANDOM_GRANULES * GRANULE_SIZE);
}

/* Sequences that a terminal would not print but obey */
static bool has_command(const char *text)
{
	return strchr(text, '\033') || strstr(text, "\xc2\x9b");
}

static bool make_hostile(void)
{
	prctl(PR_SET_NAME, "a\"\\\033[2J\xff\xc3\xa4\xc2\x9b");
	return make_states();
}

/*
 * Assert that the name of a mapping cannot send commands to the terminal or end
 * the JSON.
 */
TEST_F(page_granule_tool, hostile_name)
{
	START(make_hostile, false);
	ASSERT_EQ(tool("show", "--json", self->number), 0);
	EXPECT_TRUE(is_json(res.out));
	EXPECT_NE(strstr(res.out, "\"a\\\"\\\\\\u001b[2J\\ufffd\xc3\xa4\\u009b\""), NULL);
	ASSERT_EQ(tool("show", self->number), 0);
	EXPECT_FALSE(has_command(res.out));
	ASSERT_EQ(tool("map", self->number), 0);
	EXPECT_FALSE(has_command(res.out));
	ASSERT_EQ(tool("advise", "-t", "0", self->number), 0);
	EXPECT_FALSE(has_command(res.out));
	ASSERT_EQ(tool("show"), 0);
	EXPECT_FALSE(has_command(res.out));
}

/*
 * Assert that swapped pages are shown as such, and as the reason of a broken
 * granule.
 */
TEST_F(page_granule_tool, swapped)
{
	const char *line;
	int pagemap;

	if (!granule_meminfo_kb("SwapTotal"))
		SKIP(return, GRANULE_SWAP_REMEDY);
	START(make_swapped, false);
	pagemap = open_pagemap(self->pid);
	ASSERT_GE(pagemap, 0);
	if (granule_present_pages(pagemap, nth(ARENA, 1), GRANULE_SIZE))
		SKIP(return, "nothing is swapped out: free memory of the swap device");
	close(pagemap);
	ASSERT_EQ(tool("map", self->number), 0);
	line = strstr(res.out, "  100000000000  ");
	ASSERT_NE(line, NULL);
	EXPECT_EQ(strncmp(line, "  100000000000  #sx.\n", 21), 0) TH_LOG("%.21s", line);
	ASSERT_EQ(tool("show", self->number), 0);
	EXPECT_NE(strstr(res.out, "1 partly swapped out\n"), NULL);
}

/* Assert that a guard page is shown as a reason, and not as a page in swap. */
TEST_F(page_granule_tool, guarded)
{
	START(make_guarded, false);
	ASSERT_EQ(tool("map", self->number), 0);
	EXPECT_NE(strstr(res.out, "  100000000000  #xx\n"), NULL) TH_LOG("%s", res.out);
	ASSERT_EQ(tool("show", self->number), 0);
	EXPECT_NE(strstr(res.out, " 2 with guard pages\n"), NULL);
}

/*
 * Assert that neither 16 adjacent pages nor zeroes that were read count as a
 * folio.
 */
TEST_F(page_granule_tool, split)
{
	if (access("/sys/kernel/debug/split_huge_pages", W_OK))
		SKIP(return, "nothing splits folios on demand: mount debugfs");
	START(make_split, false);
	ASSERT_EQ(tool("map", self->number), 0);
	EXPECT_NE(strstr(res.out, "  100000000000  xx#x\n"), NULL) TH_LOG("%s", res.out);
	ASSERT_EQ(tool("show", self->number), 0);
	EXPECT_NE(strstr(res.out, " 1 with holes, 1 partly zeroes, 1 of single pages\n"), NULL)
		TH_LOG("%s", res.out);
}

/*
 * Assert that a page whose entry differs from the others is shown as a reason.
 */
TEST_F(page_granule_tool, unlike)
{
	int uffd = granule_uffd_open(UFFD_FEATURE_PAGEFAULT_FLAG_WP);

	if (uffd < 0)
		SKIP(return, "no write protection by userfaultfd: set CONFIG_USERFAULTFD=y");
	close(uffd);
	START(make_protected, false);
	ASSERT_EQ(tool("map", self->number), 0);
	EXPECT_NE(strstr(res.out, "  100000000000  #"), NULL) TH_LOG("%s", res.out);
	EXPECT_NE(strstr(res.out, "  100000010000  x\n"), NULL) TH_LOG("%s", res.out);
	ASSERT_EQ(tool("show", self->number), 0);
	EXPECT_NE(strstr(res.out, " 1 of unlike pages\n"), NULL) TH_LOG("%s", res.out);
}

/* Assert that pages that KSM has merged are not called scattered. */
TEST_F_TIMEOUT(page_granule_tool, merged, 120)
{
	if (ksm_get_full_scans() < 0)
		SKIP(return, "no KSM: build the kernel with CONFIG_KSM=y");
	START(make_mergeable, false);
	ASSERT_EQ(ksm_start(), 0);
	/* ksm_stop() would unmerge them again. */
	ASSERT_EQ(granule_write(KSM_SYSFS "run", "0"), 0);
	ASSERT_EQ(tool("show", self->number), 0);
	EXPECT_NE(strstr(res.out, " 2 merged by KSM\n"), NULL) TH_LOG("%s", res.out);
}

/*
 * Assert that "collapse" makes whole what is populated in single pages, leaves
 * the rest, and says how much there is.
 */
TEST_F(page_granule_tool, collapse)
{
	/* All but the page given back and the last granule, and all but the first and last */
	static const char text[] =
		" layout: of 188 kB in tagged mappings, 128 kB in whole granules, ";
	const char *line;

	START(make_split, false);
	ASSERT_EQ(tool("collapse", self->number), 0);
	EXPECT_STREQ(res.err, "");
	line = strstr(res.out, text);
	ASSERT_NE(line, NULL) TH_LOG("%s", res.out);
	line += strlen(text);
	EXPECT_LE(strtoul(line, NULL, 10), 128);
	EXPECT_NE(strstr(line, " kB before\n"), NULL) TH_LOG("%s", line);
	/* The first has a hole that the program made, of the last none was written. */
	ASSERT_EQ(tool("map", self->number), 0);
	EXPECT_NE(strstr(res.out, "  100000000000  x##x"), NULL) TH_LOG("%s", res.out);
}

/*
 * Assert that "collapse" reads the rest of granules of a file that are in use,
 * and nothing of others.
 */
TEST_F(page_granule_tool, collapse_reads_rest)
{
	const char *missing = granule_fs_missing(FS_EXT4);
	long reads;

	if (missing)
		SKIP(return, "%s", missing);
	ASSERT_TRUE(granule_file_open(&half_cached, FS_EXT4, HALF_CACHED_LEN));
	ASSERT_TRUE(granule_file_cache(&half_cached, CACHE_COLD));
	START(make_half_cached, false);
	ASSERT_EQ(tool("map", self->number), 0);
	EXPECT_NE(strstr(res.out, "  100000000000  xx.."), NULL) TH_LOG("%s", res.out);
	reads = granule_disk_reads();
	ASSERT_EQ(tool("collapse", self->number), 0);
	EXPECT_STREQ(res.err, "");
	/* pgpgin is in KiB. */
	EXPECT_LE(granule_disk_reads() - reads, 2 * (long)GRANULE_SIZE / 1024);
	ASSERT_EQ(tool("map", self->number), 0);
	EXPECT_NE(strstr(res.out, "  100000000000  ##.."), NULL) TH_LOG("%s", res.out);
	granule_file_close(&half_cached);
}

/* Assert that "collapse" says who may use it on which process. */
TEST_F(page_granule_tool, collapse_in_vain)
{
	START(make_states, true);
	EXPECT_EQ(tool_hooked(become_user, "collapse", self->number, NULL), 1);
	snprintf(res.out, sizeof(res.out),
		 "granule: %s: only root may collapse the memory of a process\n", self->number);
	EXPECT_STREQ(res.err, res.out);
}

/*
 * Assert that "show --all" lists the processes with granules, most memory
 * first.
 */
TEST_F(page_granule_tool, show_all)
{
	static const char sizes[] = "      452       320  70%    4    4 layout\n";
	const char *first, *second;
	char line[64];
	pid_t small;

	START(make_states, false);
	small = self->pid;
	snprintf(line, sizeof(line), "\n%7d ", small);
	self->pid = start_layout(make_random, false);
	ASSERT_GT(self->pid, 0);
	ASSERT_EQ(tool("show"), 0);
	second = strstr(res.out, line);
	snprintf(line, sizeof(line), "\n%7d ", self->pid);
	first = strstr(res.out, line);
	ASSERT_NE(first, NULL);
	ASSERT_NE(second, NULL);
	EXPECT_LT(first, second);
	/* The column before counts the pages of its program and of libc. */
	EXPECT_EQ(strncmp(second + 19, sizes, strlen(sizes)), 0) TH_LOG("%.60s", second);
	snprintf(line, sizeof(line), "\n%7d ", getpid());
	EXPECT_EQ(strstr(res.out, line), NULL);

	ASSERT_EQ(tool("show", "--json"), 0);
	EXPECT_TRUE(is_json(res.out));
	EXPECT_EQ(json_number(res.out, "unreadable"), 0);
	granule_kill_idle(small);
}

/*
 * Assert that "advise" prints this for these mappings, and the command to type.
 */
TEST_F(page_granule_tool, advise)
{
	unsigned long now, then;
	const char *memory;

	START(make_advised, false);
	ASSERT_EQ(tool("advise", self->number, "-t", "0"), 0);
	EXPECT_STREQ(res.err, "");
	memory = strstr(res.out, "\nmemory: ");
	ASSERT_TRUE(parse_memory(memory, &now, &then));
	/*
	 * 2 pages more of 14, and 14 more of 2; the rest is what this program
	 * has
	 */
	EXPECT_NEAR(then - now, ADVISED_GRANULES * (8 + 56), 512);
	EXPECT_NE(strstr(memory, "\nverdict: in part, 14 MB is dense and the rest is not\n"
				 "type: MAP_GRANULE_64KB, in the mmap() of what says yes above\n"),
		  NULL);
	EXPECT_TRUE(granule_same_text(golden_advise,
				      cut(res.out, "[anon:dense]", golden_advise)));
}

/*
 * Two mappings that are neither aligned nor a multiple of 64 KiB: of the first,
 * three pages lie outside of its whole blocks, of the second all.
 */
static bool make_edges(void)
{
	const size_t len = 4 * GRANULE_SIZE + 7 * BASE_SIZE;

	if (!map_at(GRANULE_UNTAGGED, ARENA + 13 * BASE_SIZE, len, 0) ||
	    !name_it(ARENA + 13 * BASE_SIZE, len, "edges") ||
	    !map_at(GRANULE_UNTAGGED, EDGED + BASE_SIZE, 14 * BASE_SIZE, 0) ||
	    !name_it(EDGED + BASE_SIZE, 14 * BASE_SIZE, "small"))
		return false;
	memset(ARENA + 13 * BASE_SIZE, 1, 3 * BASE_SIZE);
	touch(nth(ARENA, 1), 4, 15);
	memset(EDGED + BASE_SIZE, 1, 14 * BASE_SIZE);
	return true;
}

/* Assert that "advise" predicts no growth for pages outside whole granules. */
TEST_F(page_granule_tool, advise_edges)
{
	static const char edges[] =
"[anon:edges]: yes, 15.0 of 16 pages in use, +6 %\n"
"    252 kB, in granules 268 kB; 7 faults instead of 63\n";

	START(make_edges, false);
	ASSERT_EQ(tool("advise", "-t", "0", self->number), 0);
	EXPECT_NE(strstr(res.out, edges), NULL) TH_LOG("%s", res.out);
	EXPECT_NE(strstr(res.out, "[anon:small]: no, 56 kB that no 64 kB block holds\n"), NULL)
		TH_LOG("%s", res.out);
}

static void touch_half(int signum)
{
	touch(DENSE, ADVISED_GRANULES / 2, 14);
}

/* Half of its dense memory is touched every 20 ms. */
static bool make_touched(void)
{
	const struct timeval tick = { .tv_usec = 20 * 1000 };
	const struct itimerval timer = { .it_interval = tick, .it_value = tick };

	return make_advised() && signal(SIGALRM, touch_half) != SIG_ERR &&
	       !setitimer(ITIMER_REAL, &timer, NULL);
}

/*
 * Assert that watching shows which pages are referenced and, where that is
 * known, written.
 */
TEST_F(page_granule_tool, advise_watches)
{
	unsigned long referenced, written, entries, from_entries;
	const char *line;
	double seconds;
	int found;

	START(make_touched, false);
	ASSERT_EQ(tool("advise", "-t", "2", self->number), 0);
	EXPECT_NE(strstr(res.out, "This resets which pages of"), NULL);
	snprintf(res.out + MAX_OUT - 64, 64, "watching %d for 2 s\n", self->pid);
	EXPECT_STREQ(res.err, res.out + MAX_OUT - 64);

	line = strstr(res.out, "[anon:dense]: yes");
	ASSERT_NE(line, NULL);
	line = strstr(line, "\n    in ");
	ASSERT_NE(line, NULL);
	found = sscanf(line, " in %lf s: %lu kB referenced, at best %lu TLB entries instead of %lu",
		       &seconds, &referenced, &entries, &from_entries);
	ASSERT_EQ(found, 4);
	/* Half of 3584 pages is touched all the time. */
	EXPECT_NEAR(referenced, 7168, 128);
	EXPECT_NEAR(from_entries, 1792, 32);
	EXPECT_NEAR(entries, 128, 4);
	/* It may take longer: this machine may have other work. */
	EXPECT_GE(seconds, 2);
	if (softdirty_supported()) {
		line = strstr(line, "entries instead of");
		found = sscanf(strchr(line, ',') ?: "", ", %lu kB written", &written);
		ASSERT_EQ(found, 1);
		EXPECT_NEAR(written, 7168, 128);
	}
}

/*
 * "--density HOW": fill memory, tell so on standard output, and wait. HOW is
 * how many pages of each granule are touched; or for -N, that one in N pages
 * is, at random; or "heap", for what malloc() makes of small pieces.
 */
#define DENSITY_GRANULES	384

static void fill_heap(void)
{
	unsigned int i;

	for (i = 0; i < 8192; i++) {
		char *piece = malloc(2000);

		if (piece)
			memset(piece, 1, 2000);
	}
}

static int density_main(const char *how)
{
	const size_t len = DENSITY_GRANULES * GRANULE_SIZE;
	const long nr = atol(how);
	char *area = mmap(NULL, len, PROT_RW, ANON_FLAGS, -1, 0);
	size_t i;

	if (area == MAP_FAILED)
		return KSFT_FAIL;
	srand(1);
	if (!nr)
		fill_heap();
	else if (nr > 0)
		touch(area, DENSITY_GRANULES, nr);
	for (i = 0; nr < 0 && i < len / BASE_SIZE; i++) {
		if (rand() % -nr == 0)
			area[i * BASE_SIZE] = 1;
	}
	if (write(STDOUT_FILENO, "r", 1) != 1)
		return KSFT_FAIL;
	for (;;)
		pause();
}

/*
 * Start a process of that density by "granule run", and wait for it to be
 * there.
 */
static pid_t start_density(const char *size, const char *density)
{
	int ready[2];
	pid_t pid;
	char c;

	if (pipe(ready))
		return -1;
	pid = tool_start(ready[1], STDERR_FILENO, "run", "-s", size, "--", self_path,
			 "--density", density, NULL);
	close(ready[1]);
	if (read(ready[0], &c, 1) != 1)
		pid = -1;
	close(ready[0]);
	return pid;
}

static unsigned long process_rss(pid_t pid)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/smaps_rollup", pid);
	return granule_proc_number(path, "Rss:");
}

/* Assert that the predicted memory use is within 10 % of the real one. */
TEST_F(page_granule_tool, advise_is_right)
{
	static const struct {
		const char *density;
		const char *verdict;
	} cases[] = {
		{ "16", "\nverdict: yes," },
		{ "14", "\nverdict: yes," },
		{ "8", "\nverdict: no," },
		{ "2", "\nverdict: no," },
		{ "-3", "\nverdict: no," },
		/* Two granules in three have nothing. */
		{ "-40", "\nverdict: no," },
		{ "heap", "\nverdict: yes," },
	};
	unsigned long now, then, real;
	const char *memory;
	size_t i;

	for (i = 0; i < ARRAY_SIZE(cases); i++) {
		self->pid = start_density("4k", cases[i].density);
		ASSERT_GT(self->pid, 0);
		snprintf(self->number, sizeof(self->number), "%d", self->pid);
		ASSERT_EQ(tool("advise", "-t", "1", self->number), 0);
		memory = strstr(res.out, "\nmemory: ");
		ASSERT_TRUE(parse_memory(memory, &now, &then));
		EXPECT_NE(strstr(memory, cases[i].verdict), NULL) TH_LOG("%s", memory);
		EXPECT_NEAR(now, process_rss(self->pid), 64);
		granule_kill_idle(self->pid);

		self->pid = start_density("64k", cases[i].density);
		ASSERT_GT(self->pid, 0);
		real = process_rss(self->pid);
		granule_kill_idle(self->pid);
		self->pid = -1;
		ksft_print_msg("density %s: %lu kB, foretold %lu kB, real %lu kB\n",
			       cases[i].density, now, then, real);
		EXPECT_NEAR(then, real, real / 10);
	}
}

static bool advised_line(const char *name, const char *want)
{
	int ready = memfd_create("ready", 0);
	pid_t pid = fork();
	char number[16];

	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		dup2(ready, STDOUT_FILENO);
		execl(self_path, name, "--density", "16", NULL);
		_exit(1);
	}
	wait_output(ready);
	close(ready);
	snprintf(number, sizeof(number), "%d", pid);
	tool("advise", "-t", "0", number);
	granule_kill_idle(pid);
	return strstr(res.out, want);
}

/*
 * Assert that the command to type is one line, with the words of the process
 * quoted for the shell.
 */
TEST_F(page_granule_tool, advise_line)
{
	char name[] = "/tmp/a tool's.XXXXXX", want[128];

	close(mkstemp(name));
	unlink(name);
	ASSERT_EQ(symlink(self_path, name), 0);
	snprintf(want, sizeof(want), "\ntype: granule run -- '/tmp/a tool'\\''s.%s' --density 16\n",
		 strrchr(name, '.') + 1);
	EXPECT_TRUE(advised_line(name, want)) TH_LOG("%s", res.out);
	unlink(name);
	/* The name that a process gives itself is no program. */
	EXPECT_TRUE(advised_line("nginx: worker process",
				 "\ntype: granule run -- COMMAND\n")) TH_LOG("%s", res.out);
}

static bool make_huge(void)
{
	const size_t len = 8UL << 20;

	if (!map_at(GRANULE_UNTAGGED, DENSE, len, 0))
		return false;
	granule_fill(DENSE, len, 1);
	return !madvise(DENSE, len, MADV_COLLAPSE);
}

/* Assert that "advise" recommends nothing for memory that is in huge pages. */
TEST_F(page_granule_tool, advise_huge)
{
	START(make_huge, false);
	ASSERT_EQ(tool("advise", "-t", "0", self->number), 0);
	EXPECT_NE(strstr(res.out, "memory in huge pages already: already, 8192 kB\n"), NULL)
		TH_LOG("%s", res.out);
	EXPECT_NE(strstr(res.out, "\nverdict: no, most of it is in huge pages"), NULL)
		TH_LOG("%s", res.out);
}

static bool make_disabled(void)
{
	disable_thp();
	return make_advised();
}

/*
 * Assert that "advise" recommends nothing that the process or the kernel would
 * refuse.
 */
TEST_F(page_granule_tool, advise_in_vain)
{
	START(make_disabled, false);
	ASSERT_EQ(tool("advise", "-t", "0", self->number), 0);
	EXPECT_NE(strstr(res.out, "\nverdict: no, PR_SET_THP_DISABLE is set for it\n"), NULL)
		TH_LOG("%s", res.out);
	ASSERT_EQ(granule_set_enabled(false), 0);
	ASSERT_EQ(tool("advise", "-t", "0", self->number), 0);
	EXPECT_NE(strstr(res.out, "\nBut " DISABLED ".\n"), NULL) TH_LOG("%s", res.out);
}

static bool make_shared(void)
{
	const size_t len = 8UL << 20;
	char *area = mmap(DENSE, len, PROT_RW, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE,
			  -1, 0);

	if (area != DENSE)
		return false;
	name_it(area, len, "board");
	granule_fill(area, len, 1);
	return true;
}

/*
 * Assert that "advise" treats shared memory as memory, not as a file, named or
 * not.
 */
TEST_F(page_granule_tool, advise_shared)
{
	START(make_shared, false);
	ASSERT_EQ(tool("advise", "-t", "0", self->number), 0);
	EXPECT_NE(strstr(res.out, "[anon_shmem:board]: yes, 16.0 of 16 pages in use, +0 %\n"), NULL)
		TH_LOG("%s", res.out);
}

/* Assert that "advise" names a limit that the program would reach. */
TEST_F(page_granule_tool, advise_limit)
{
	struct granule_cg cg;
	char limit[32];

	if (!granule_cg_create(&cg))
		SKIP(return, GRANULE_CG_REMEDY);
	self->pid = start_density("4k", "14");
	ASSERT_GT(self->pid, 0);
	snprintf(self->number, sizeof(self->number), "%d", self->pid);
	ASSERT_EQ(granule_cg_write(cg.dir, "cgroup.procs", self->number), 0);
	snprintf(limit, sizeof(limit), "%ld",
		 granule_cg_read(cg.dir, "memory.current", NULL) + (1L << 20));
	ASSERT_EQ(granule_cg_write(cg.dir, "memory.max", limit), 0);
	ASSERT_EQ(tool("advise", "-t", "0", self->number), 0);
	EXPECT_NE(strstr(res.out, "\nbut: its memory cgroup has room for 1024 kB\n"), NULL)
		TH_LOG("%s", res.out);
	ASSERT_EQ(granule_cg_write(cg.dir, "memory.max", "max"), 0);
	ASSERT_EQ(tool("advise", "-t", "0", self->number), 0);
	EXPECT_EQ(strstr(res.out, "\nbut: "), NULL) TH_LOG("%s", res.out);
	granule_kill_idle(self->pid);
	self->pid = -1;
	granule_cg_remove(&cg);
}

/*
 * Assert that "advise" predicts no growth for memory that is in granules
 * already.
 */
TEST_F(page_granule_tool, advise_tagged)
{
	self->pid = start_density("64k", "2");
	ASSERT_GT(self->pid, 0);
	snprintf(self->number, sizeof(self->number), "%d", self->pid);
	ASSERT_EQ(tool("advise", "-t", "0", self->number), 0);
	EXPECT_NE(strstr(res.out, " kB in granules of 64 KiB, +0 %\nverdict: already"), NULL)
		TH_LOG("%s", res.out);
}

/*
 * Assert that "stat" prints the counters of /proc/vmstat, as totals and as
 * rates.
 */
TEST_F(page_granule_tool, stat)
{
	static const char * const names[] = {
		"granule_fault", "granule_fallback", "granule_cow", "granule_swpin",
		"granule_swpin_fallback", "granule_split", "granule_repair",
	};
	unsigned long before[ARRAY_SIZE(names)], val, split;
	int out = memfd_create("out", 0);
	char *line, *area;
	int found;
	pid_t pid;
	size_t i;

	for (i = 0; i < ARRAY_SIZE(names); i++)
		before[i] = granule_vmstat(names[i]);
	ASSERT_EQ(tool("stat"), 0);
	ASSERT_EQ(strncmp(res.out, golden_stat, strlen(golden_stat)), 0) TH_LOG("%s", res.out);
	EXPECT_EQ(count_lines(res.out), 3);
	line = res.out + strlen(golden_stat);
	for (i = 0; i < ARRAY_SIZE(names); i++) {
		val = strtoul(line, &line, 10);
		EXPECT_GE(val, before[i]) TH_LOG("%s", names[i]);
		EXPECT_LE(val, granule_vmstat(names[i])) TH_LOG("%s", names[i]);
	}

	area = granule_area(GRANULE_DEFAULT, 64 * GRANULE_SIZE, 0);
	ASSERT_NE(area, NULL);
	pid = tool_start(out, STDERR_FILENO, "stat", "2", "1", NULL);
	ASSERT_TRUE(wait_output(out));
	touch(area, 64, 1);
	for (i = 0; i < 32; i++)
		madvise(nth(area, i), BASE_SIZE, MADV_DONTNEED);
	ASSERT_EQ(wait_status(pid), 0);
	read_back(out, res.out, sizeof(res.out));
	ASSERT_EQ(count_lines(res.out), 3);
	line = res.out + strlen(golden_stat);
	found = sscanf(line, "%lu %*u %*u %*u %*u %lu", &val, &split);
	ASSERT_EQ(found, 2);
	/*
	 * By the second, over two seconds or more: 64 faults and 32 splits, and
	 * what others do meanwhile.
	 */
	EXPECT_GT(split, 0);
	EXPECT_LE(val, 32 + 6);
	EXPECT_NEAR(val, 2 * split, 6);
}

/*
 * Assert that the exit status of "supported" says whether 64 KiB is on offer,
 * and its text why not.
 */
TEST_F(page_granule_tool, supported)
{
	EXPECT_EQ(tool("supported"), 0);
	EXPECT_EQ(strncmp(res.out, "sizes       4 kB, 64 kB\nkernel      has page granules\n", 54),
		  0) TH_LOG("%s", res.out);
	EXPECT_NE(strstr(res.out, "\nenabled     1\n"), NULL);
	EXPECT_NE(strstr(res.out, "\ncoalescing  "), NULL);
	EXPECT_NE(strstr(res.out, "\nTHP         enabled never, which granules need not\n"), NULL);
	EXPECT_STREQ(res.err, "");
	EXPECT_EQ(tool_hooked(disable_thp, "supported", NULL), 0);
	EXPECT_NE(strstr(res.out, "\nthis shell  has THP disabled"), NULL);

	ASSERT_EQ(granule_set_enabled(false), 0);
	EXPECT_EQ(tool("supported"), 1);
	EXPECT_EQ(strncmp(res.out, "sizes       4 kB\n", 17), 0) TH_LOG("%s", res.out);
	EXPECT_STREQ(res.err, "granule: no 64 KiB: " DISABLED "\n");
}

/* "--report": print both scopes, for the programs that "run" starts. */
static int report_main(void)
{
	printf("%ld %ld\n", granule_get(PR_GRANULE_MMAP), granule_get(PR_GRANULE_EXEC));
	return 0;
}

/*
 * Assert that "run" gives a command the granule, its own options, and its exit
 * status.
 */
TEST_F(page_granule_tool, run)
{
	EXPECT_EQ(tool("run", self_path, "--report", "-s", "4k", "--require"), 0);
	EXPECT_STREQ(res.out, "65536 65536\n");
	EXPECT_STREQ(res.err, "");
	EXPECT_EQ(tool("run", "-s", "64K", "--require", "--", self_path, "--report"), 0);
	EXPECT_STREQ(res.out, "65536 65536\n");
	EXPECT_EQ(tool("run", "--size=4k", self_path, "--report"), 0);
	EXPECT_STREQ(res.out, "4096 4096\n");
	EXPECT_EQ(tool("run", "-s4096", "--require", self_path, "--report"), 0);
	EXPECT_STREQ(res.out, "4096 4096\n");
	EXPECT_EQ(tool("run", self_path, "--exit", "7"), 7);

	EXPECT_EQ(tool("run", "--", "/nonexistent/command"), 127);
	EXPECT_STREQ(res.err, "granule: /nonexistent/command: No such file or directory\n");
	EXPECT_EQ(tool("run", "page_granule_no_such_command"), 127);
	EXPECT_EQ(tool("run", "/dev/null"), 126);
	EXPECT_STREQ(res.err, "granule: /dev/null: Permission denied\n");
	EXPECT_EQ(tool("run", "/proc"), 126);
}

#define RUNS		"granule: runs with 4 KiB: "
#define NOT_RUN		"granule: not run, it would have 4 KiB: "
#define THP_DISABLED	"PR_SET_THP_DISABLE is set for this process; start it from one without\n"

/*
 * Assert that "run" never gives 4 KiB silently, and fails if the user requires
 * 64 KiB.
 */
TEST_F(page_granule_tool, run_without)
{
	EXPECT_EQ(tool_hooked(disable_thp, "run", self_path, "--exit", "3", NULL), 3);
	EXPECT_STREQ(res.err, RUNS THP_DISABLED);
	EXPECT_EQ(tool_hooked(disable_thp, "run", "--require", self_path, "--exit", "3", NULL),
		  125);
	EXPECT_STREQ(res.err, NOT_RUN THP_DISABLED);
	EXPECT_EQ(tool_hooked(disable_thp, "run", "--require", "-s", "4k", self_path, "--exit", "3",
			      NULL), 3);
	EXPECT_STREQ(res.err, "");

	ASSERT_EQ(granule_set_enabled(false), 0);
	EXPECT_EQ(tool("run", self_path, "--report"), 0);
	EXPECT_STREQ(res.out, "4096 4096\n");
	EXPECT_STREQ(res.err, RUNS DISABLED "\n");
	EXPECT_EQ(tool("run", "--require", self_path, "--report"), 125);
	EXPECT_STREQ(res.out, "");
	EXPECT_STREQ(res.err, NOT_RUN DISABLED "\n");
}

/* The headers of libc and of the kernel do not go together. */
static long trace(long request, pid_t pid, unsigned long addr, const void *data)
{
	return syscall(__NR_ptrace, request, pid, addr, data);
}

static void be_traced(void)
{
	trace(PTRACE_TRACEME, 0, 0, NULL);
	raise(SIGSTOP);
}

/*
 * Run the tool as on a kernel that does not know the prctl: make another number
 * of its own, which none knows. Returns -1 where that cannot be done.
 */
static int tool_on_old_kernel(const char *arg, ...)
{
	int out = memfd_create("out", MFD_CLOEXEC), err = memfd_create("err", MFD_CLOEXEC);
	const unsigned long options = PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL;
	struct ptrace_syscall_info info;
	int status, sig;
	va_list args;
	pid_t pid;

	va_start(args, arg);
	set_argv(arg, args);
	va_end(args);
	pid = start_argv(be_traced, out, err);
	waitpid(pid, &status, 0);
	trace(PTRACE_SETOPTIONS, pid, 0, (void *)options);
	for (sig = 0;; sig = WSTOPSIG(status) & 0x7f) {
		/* A stop by ptrace is not a signal of the tracee. */
		if (sig == SIGTRAP || sig == SIGSTOP)
			sig = 0;
		trace(PTRACE_SYSCALL, pid, 0, (void *)(long)sig);
		if (waitpid(pid, &status, 0) != pid || !WIFSTOPPED(status))
			break;
		if (WSTOPSIG(status) != (SIGTRAP | 0x80) ||
		    trace(PTRACE_GET_SYSCALL_INFO, pid, sizeof(info), &info) < 0 ||
		    info.op != PTRACE_SYSCALL_INFO_ENTRY || info.entry.nr != __NR_prctl ||
		    (info.entry.args[0] != PR_SET_PAGE_GRANULE &&
		     info.entry.args[0] != PR_GET_PAGE_GRANULE))
			continue;
		info.entry.args[0] = 0x7fffffff;
		if (trace(PTRACE_SET_SYSCALL_INFO, pid, sizeof(info), &info)) {
			granule_kill_idle(pid);
			return -1;
		}
	}
	res.status = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
	read_back(out, res.out, sizeof(res.out));
	read_back(err, res.err, sizeof(res.err));
	return 0;
}

/* Assert that each verb reports a kernel without granules. */
TEST_F(page_granule_tool, old_kernel)
{
	START(make_advised, false);
	if (tool_on_old_kernel("run", self_path, "--exit", "5", NULL))
		SKIP(return, "no PTRACE_SET_SYSCALL_INFO: run on Linux 6.16 or later");
	EXPECT_EQ(res.status, 5);
	EXPECT_STREQ(res.err, RUNS NO_KERNEL "\n");
	tool_on_old_kernel("run", "--require", self_path, "--exit", "5", NULL);
	EXPECT_EQ(res.status, 125);
	EXPECT_STREQ(res.err, NOT_RUN NO_KERNEL "\n");
	tool_on_old_kernel("run", "-s", "4k", "--require", self_path, "--exit", "5", NULL);
	EXPECT_EQ(res.status, 5);
	EXPECT_STREQ(res.err, "");
	tool_on_old_kernel("show", self->number, NULL);
	EXPECT_EQ(res.status, 1);
	EXPECT_STREQ(res.err, "granule: " NO_KERNEL "\n");
	tool_on_old_kernel("map", self->number, NULL);
	EXPECT_EQ(res.status, 1);
	EXPECT_STREQ(res.err, "granule: " NO_KERNEL "\n");
	tool_on_old_kernel("supported", NULL);
	EXPECT_EQ(res.status, 1);
	EXPECT_STREQ(res.err, "granule: no 64 KiB: " NO_KERNEL "\n");
	/* It is how one finds out whether such a kernel is worth it. */
	tool_on_old_kernel("advise", "-t", "0", self->number, NULL);
	EXPECT_EQ(res.status, 0);
	EXPECT_NE(strstr(res.out, "[anon:dense]: yes, 14.0 of 16"), NULL);
	EXPECT_NE(strstr(res.out, "\nBut " NO_KERNEL ".\n"), NULL);
}

/*
 * Assert that a user without permission gets one line that names the file and a
 * remedy.
 */
TEST_F(page_granule_tool, no_rights)
{
	static const char * const verbs[] = { "show", "map", "advise" };
	char want[128];
	size_t i;

	START(make_states, false);
	snprintf(want, sizeof(want),
		 "granule: /proc/%d/smaps: Permission denied; be root, or the user who runs it\n",
		 self->pid);
	for (i = 0; i < ARRAY_SIZE(verbs); i++) {
		EXPECT_EQ(tool_hooked(become_user, verbs[i], self->number, NULL), 1);
		EXPECT_STREQ(res.out, "");
		EXPECT_STREQ(res.err, want);
	}
	EXPECT_EQ(tool_hooked(become_user, "show", NULL), 0);
	EXPECT_STREQ(res.out,
		     "no process that can be seen has granules; start one by \"granule run\"\n");
	EXPECT_NE(strstr(res.err, "processes of others cannot be looked at; be root\n"), NULL);
	EXPECT_EQ(tool_hooked(become_user, "stat", NULL), 0);
	EXPECT_EQ(tool_hooked(become_user, "supported", NULL), 0);
	EXPECT_EQ(tool_hooked(become_user, "run", self_path, "--report", NULL), 0);
	EXPECT_STREQ(res.out, "65536 65536\n");
}

/*
 * Assert that users see all about their own processes for which no PFNs are
 * needed.
 */
TEST_F(page_granule_tool, own_process)
{
	START(make_states, true);
	ASSERT_EQ(tool_hooked(become_user, "map", self->number, NULL), 0);
	EXPECT_STREQ(res.err, "");
	EXPECT_STREQ(from(res.out, "\n. empty"), golden_legend_user);
	EXPECT_TRUE(granule_same_text(golden_map_user,
				      cut(res.out, "contract, 384 kB", golden_map_user)));

	ASSERT_EQ(tool_hooked(become_user, "show", self->number, NULL), 0);
	EXPECT_NE(strstr(res.out, golden_show_user), NULL) TH_LOG("%s", res.out);
	ASSERT_EQ(tool_hooked(become_user, "show", "--json", self->number, NULL), 0);
	EXPECT_TRUE(is_json(res.out));
	EXPECT_NE(strstr(res.out, "\"pfns\":false"), NULL);
	ASSERT_EQ(tool_hooked(become_user, "advise", "-t", "1", self->number, NULL), 0);
}

/* Assert that the tool reports in one line that a process does not exist. */
TEST_F(page_granule_tool, no_process)
{
	static const char * const verbs[] = { "show", "map", "advise" };
	char number[16], want[128];
	pid_t pid = fork();
	size_t i;

	if (!pid)
		_exit(0);
	snprintf(number, sizeof(number), "%d", pid);
	snprintf(want, sizeof(want),
		 "granule: no process %d; \"ps -e\" lists those that there are\n", pid);
	/* First a zombie, then nothing at all */
	ASSERT_EQ(waitid(P_PID, pid, NULL, WEXITED | WNOWAIT), 0);
	for (i = 0; i < 2 * ARRAY_SIZE(verbs); i++) {
		if (i == ARRAY_SIZE(verbs))
			ASSERT_EQ(wait_status(pid), 0);
		EXPECT_EQ(tool(verbs[i % ARRAY_SIZE(verbs)], number), 1);
		EXPECT_STREQ(res.out, "");
		EXPECT_STREQ(res.err, want);
	}
	EXPECT_EQ(tool("show", "2"), 1);
	EXPECT_STREQ(res.err,
		     "granule: process 2 is a kernel thread, which has no memory of its own\n");
}

/*
 * Assert that "advise" reports its first look at a process that ends meanwhile.
 */
TEST_F(page_granule_tool, ends_while_watched)
{
	int out = memfd_create("out", 0), err = memfd_create("err", 0);
	char want[128];
	pid_t pid;

	START(make_advised, false);
	pid = tool_start(out, err, "advise", "-t", "30", self->number, NULL);
	ASSERT_TRUE(wait_output(err));
	granule_kill_idle(self->pid);
	EXPECT_EQ(wait_status(pid), 1);
	read_back(out, res.out, sizeof(res.out));
	read_back(err, res.err, sizeof(res.err));
	snprintf(want, sizeof(want), "watching %d for 30 s\n"
		 "granule: process %d ended meanwhile; this is what was read before\n",
		 self->pid, self->pid);
	EXPECT_STREQ(res.err, want);
	EXPECT_TRUE(granule_same_text(golden_advise,
				      cut(res.out, "[anon:dense]", golden_advise)));
	self->pid = -1;
}

/*
 * Assert that a process may end at any time: the tool reports that, or has read
 * everything.
 */
TEST_F(page_granule_tool, ends_anytime)
{
	static const char * const verbs[] = { "show", "map" };
	unsigned int i, ended = 0;
	pid_t pid;

	for (i = 0; i < 40; i++) {
		int out = memfd_create("out", 0), err = memfd_create("err", 0);

		START(make_states, false);
		pid = tool_start(out, err, verbs[i % 2], self->number, NULL);
		usleep(i * 3000);
		granule_kill_idle(self->pid);
		res.status = wait_status(pid);
		read_back(out, res.out, sizeof(res.out));
		read_back(err, res.err, sizeof(res.err));
		ASSERT_GE(res.status, 0) TH_LOG("signal %d", -res.status);
		EXPECT_EQ(count_lines(res.err), res.status) TH_LOG("%s", res.err);
		if (res.status)
			EXPECT_TRUE(strstr(res.err, "ended meanwhile") ||
				    strstr(res.err, "no process")) TH_LOG("%s", res.err);
		ended += res.status;
	}
	ksft_print_msg("%u of %u ended before they were read\n", ended, i);
	self->pid = -1;
}

int main(int argc, char **argv)
{
	char *slash;

	if (argc > 1 && !strcmp(argv[1], "--report"))
		return report_main();
	if (argc == 3 && !strcmp(argv[1], "--exit"))
		return atoi(argv[2]);
	if (argc == 3 && !strcmp(argv[1], "--density"))
		return density_main(argv[2]);
	granule_require();
	if (readlink("/proc/self/exe", self_path, sizeof(self_path) - 16) < 0)
		ksft_exit_skip("no /proc/self/exe: mount /proc\n");
	strcpy(tool_path, self_path);
	slash = strrchr(tool_path, '/');
	strcpy(slash + 1, "granule");
	if (access(tool_path, X_OK))
		ksft_exit_skip("no granule command here: make -C tools/mm/granule, and copy it\n");
	granule_save_settings();
	granule_save_setting(KSM_SYSFS "run");
	granule_fs_make();
	return test_harness_run(argc, argv);
}
