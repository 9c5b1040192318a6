// SPDX-License-Identifier: GPL-2.0
/*
 * Page granule: 32-bit programs, which are never tagged. This 64-bit program
 * starts one, page_granule_compat_32, and looks at it from outside; what both
 * report of themselves is in page_granule_compat.h.
 */
#define _GNU_SOURCE
#include "kselftest_harness.h"
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/personality.h>
#include <sys/wait.h>
#include <unistd.h>

#include "vm_util.h"
#include "page_granule_util.h"
#include "page_granule_compat.h"

#define PROGRAM_32	"page_granule_compat_32"

/* Beside this program, and this program: found once, by main(). */
static char path_32[4096 + sizeof(PROGRAM_32)];
static char path_64[4096];

/* A program that has reported, and waits to go on or to end. */
struct reporter {
	pid_t pid;
	int in;		/* its stdin */
	int out;	/* its stdout */
	struct compat_report report;
};

static bool read_report(struct reporter *rep)
{
	char *p = (char *)&rep->report;
	size_t got = 0;
	ssize_t n;

	while (got < sizeof(rep->report)) {
		n = read(rep->out, p + got, sizeof(rep->report) - got);
		if (n <= 0)
			return false;
		got += n;
	}
	return true;
}

static void reporter_exec(const char *path, const char *verb,
			  unsigned long exec_size, bool randomize)
{
	char *const argv[] = { PROGRAM_32, (char *)verb, path_64, path_64, NULL };
	char *const environment[] = { NULL };
	int persona = PER_LINUX | (randomize ? 0 : ADDR_NO_RANDOMIZE);

	if (personality(persona) < 0 || granule_set(PR_GRANULE_EXEC, exec_size))
		_exit(10);
	execve(path, argv, environment);
	_exit(errno == ENOEXEC ? 11 : 12);
}

/*
 * Start @path for a report. Returns 0, -ENOEXEC where the kernel does not run
 * such programs, or -EIO.
 */
static int reporter_start(struct reporter *rep, const char *path, const char *verb,
			  unsigned long exec_size, bool randomize)
{
	int in[2], out[2], status;

	if (pipe2(in, O_CLOEXEC) || pipe2(out, O_CLOEXEC))
		return -EIO;
	rep->pid = fork();
	if (rep->pid < 0)
		return -EIO;
	if (!rep->pid) {
		if (dup2(in[0], STDIN_FILENO) < 0 || dup2(out[1], STDOUT_FILENO) < 0)
			_exit(13);
		reporter_exec(path, verb, exec_size, randomize);
	}
	close(in[0]);
	close(out[1]);
	rep->in = in[1];
	rep->out = out[0];
	if (read_report(rep))
		return 0;
	close(rep->in);
	close(rep->out);
	if (waitpid(rep->pid, &status, 0) != rep->pid)
		return -EIO;
	if (WIFEXITED(status) && WEXITSTATUS(status) == 11)
		return -ENOEXEC;
	ksft_print_msg("%s %s: wait status %#x\n", path, verb, status);
	return -EIO;
}

/* Have it exec this program, for one more report. */
static bool reporter_go_on(struct reporter *rep)
{
	const char go = COMPAT_GO_ON;

	return write(rep->in, &go, 1) == 1 && read_report(rep);
}

/* Returns false, too, if granules of the program are not as they should be. */
static bool reporter_end(struct reporter *rep)
{
	const bool hold = granule_invariants_hold_in(rep->pid);
	int status;

	close(rep->in);
	close(rep->out);
	return waitpid(rep->pid, &status, 0) == rep->pid && !status && hold;
}

/*
 * How many VMAs of a process are tagged, populate granules or have whole ones?
 */
static int tagged_vmas(pid_t pid)
{
	char path[64], line[512];
	unsigned long kb;
	int nr = 0;
	FILE *file;

	snprintf(path, sizeof(path), "/proc/%d/smaps", pid);
	file = fopen(path, "r");
	if (!file)
		return -1;
	while (fgets(line, sizeof(line), file)) {
		if (!strncmp(line, "VmFlags:", 8))
			nr += strstr(line, " gr") || strstr(line, " gc");
		else if (sscanf(line, "Granule: %lu kB", &kb) == 1)
			nr += kb != 4;
		else if (sscanf(line, "GranuleMapped: %lu kB", &kb) == 1)
			nr += kb != 0;
	}
	fclose(file);
	return nr;
}

/* How many VMAs hold the pieces that a program mapped one after the other? */
static int vmas_of_pieces(struct reporter *rep)
{
	unsigned long start, end;
	char path[64], line[512];
	unsigned int i, found = 0;
	int nr = 0;
	FILE *file;

	snprintf(path, sizeof(path), "/proc/%d/maps", rep->pid);
	file = fopen(path, "r");
	if (!file)
		return -1;
	while (fgets(line, sizeof(line), file)) {
		unsigned int before = found;

		if (sscanf(line, "%lx-%lx", &start, &end) != 2)
			continue;
		for (i = 0; i < COMPAT_NR_PIECES; i++)
			found += rep->report.pieces[i] >= start &&
				 rep->report.pieces[i] < end;
		nr += found > before;
	}
	fclose(file);
	return found == COMPAT_NR_PIECES ? nr : -1;
}

static const char * const place_names[COMPAT_NR_PLACES] = {
	[COMPAT_BRK] = "brk",
	[COMPAT_STACK] = "stack",
	[COMPAT_PAGE] = "4 KiB",
	[COMPAT_64K] = "64 KiB",
	[COMPAT_100K] = "100 KiB",
	[COMPAT_2M] = "2 MiB",
	[COMPAT_FILE_PAGE] = "4 KiB before the files",
	[COMPAT_FILE] = "64 KiB of a file",
	[COMPAT_FILE_EXEC] = "64 KiB of a file to execute",
};

FIXTURE(page_granule_compat)
{
	struct reporter rep;
};

FIXTURE_SETUP(page_granule_compat)
{
	int ret;

	ASSERT_EQ(granule_set_enabled(true), 0);
	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, BASE_SIZE), 0);
	if (access(path_32, X_OK))
		SKIP(return, "no " PROGRAM_32 ": build with a compiler for 32 bits");
	ret = reporter_start(&self->rep, path_32, COMPAT_REPORT, BASE_SIZE, true);
	if (ret == -ENOEXEC)
		SKIP(return, "no 32-bit programs: set CONFIG_IA32_EMULATION or CONFIG_COMPAT");
	ASSERT_EQ(ret, 0);
	ASSERT_EQ(self->rep.report.bits, 32);
	ASSERT_TRUE(reporter_end(&self->rep));
}

/* reporter_end() has checked the granules of the programs. */
FIXTURE_TEARDOWN(page_granule_compat)
{
}

/* Assert that a 32-bit program is not tagged, whatever it inherits. */
TEST_F(page_granule_compat, never_tagged)
{
	struct reporter *rep = &self->rep;

	ASSERT_EQ(reporter_start(rep, path_32, COMPAT_REPORT, GRANULE_SIZE, true), 0);
	EXPECT_EQ(rep->report.get[PR_GRANULE_MMAP], BASE_SIZE);
	EXPECT_EQ(rep->report.get[PR_GRANULE_EXEC], GRANULE_SIZE);
	EXPECT_EQ(tagged_vmas(rep->pid), 0);
	EXPECT_EQ(granule_status_kb(rep->pid, "PageGranule:"), 4);
	EXPECT_EQ(granule_status_kb(rep->pid, "PageGranuleExec:"), 64);
	ASSERT_TRUE(reporter_end(rep));
}

/* Assert that a 64-bit program is tagged, so that the test above can fail. */
TEST_F(page_granule_compat, control)
{
	struct reporter *rep = &self->rep;

	ASSERT_EQ(reporter_start(rep, path_64, COMPAT_REPORT, GRANULE_SIZE, true), 0);
	EXPECT_EQ(rep->report.bits, 64);
	EXPECT_EQ(rep->report.get[PR_GRANULE_MMAP], GRANULE_SIZE);
	EXPECT_GT(tagged_vmas(rep->pid), 0);
	EXPECT_EQ(granule_status_kb(rep->pid, "PageGranule:"), 64);
	EXPECT_EQ(granule_status_kb(rep->pid, "PageGranuleExec:"), 64);
	EXPECT_TRUE(granule_aligned(rep->report.places[COMPAT_64K]));
	ASSERT_TRUE(reporter_end(rep));
}

/*
 * Assert that a 64-bit program started by a 32-bit one gets the setting that
 * the 32-bit one inherited.
 */
TEST_F(page_granule_compat, kept_for_next_exec)
{
	struct reporter *rep = &self->rep;

	ASSERT_EQ(reporter_start(rep, path_32, COMPAT_REPORT, GRANULE_SIZE, true), 0);
	ASSERT_EQ(rep->report.bits, 32);
	ASSERT_TRUE(reporter_go_on(rep));
	ASSERT_EQ(rep->report.bits, 64);
	EXPECT_EQ(rep->report.get[PR_GRANULE_MMAP], GRANULE_SIZE);
	EXPECT_EQ(rep->report.get[PR_GRANULE_EXEC], GRANULE_SIZE);
	EXPECT_GT(tagged_vmas(rep->pid), 0);
	ASSERT_TRUE(reporter_end(rep));
}

/*
 * Assert that 65536 is EOPNOTSUPP in both scopes, and that 4096 and 0 are fine.
 */
TEST_F(page_granule_compat, prctl_refused)
{
	static const unsigned long inherited[] = { BASE_SIZE, GRANULE_SIZE };
	struct reporter *rep = &self->rep;
	struct compat_report *report = &rep->report;
	unsigned int i, scope;

	for (i = 0; i < ARRAY_SIZE(inherited); i++) {
		ASSERT_EQ(reporter_start(rep, path_32, COMPAT_ASK, inherited[i], true), 0);
		for (scope = PR_GRANULE_MMAP; scope <= PR_GRANULE_EXEC; scope++) {
			EXPECT_EQ(report->set_64k[scope], -EOPNOTSUPP)
				TH_LOG("scope %u inherited %lu", scope, inherited[i]);
			/* A refusal changes nothing. */
			EXPECT_EQ(report->get_after_64k[scope], report->get[scope]);
			EXPECT_EQ(report->set_4k[scope], 0);
			EXPECT_EQ(report->set_0[scope], 0);
			EXPECT_EQ(report->get_after_4k[scope], BASE_SIZE);
		}
		EXPECT_EQ(granule_status_kb(rep->pid, "PageGranuleExec:"), 4);
		ASSERT_TRUE(reporter_end(rep));
	}
}

/*
 * Assert that MAP_GRANULE_64KB is EOPNOTSUPP, and that MAP_GRANULE_4KB is fine.
 */
TEST_F(page_granule_compat, mmap_refused)
{
	struct reporter *rep = &self->rep;
	struct compat_report *report = &rep->report;

	ASSERT_EQ(reporter_start(rep, path_32, COMPAT_ASK, BASE_SIZE, true), 0);
	EXPECT_EQ(report->map_64k_private, -EOPNOTSUPP);
	EXPECT_EQ(report->map_64k_shared, -EOPNOTSUPP);
	EXPECT_EQ(report->map_64k_file, -EOPNOTSUPP);
	EXPECT_EQ(report->map_4k, 0);
	EXPECT_EQ(tagged_vmas(rep->pid), 0);
	ASSERT_TRUE(reporter_end(rep));
}

/*
 * Assert that an inherited setting moves no mapping in a 32-bit address space.
 */
TEST_F(page_granule_compat, nothing_moves)
{
	struct compat_report without;
	struct reporter *rep = &self->rep;
	unsigned int i;

	ASSERT_EQ(reporter_start(rep, path_32, COMPAT_REPORT, BASE_SIZE, false), 0);
	ASSERT_TRUE(reporter_end(rep));
	without = rep->report;
	/* Not even by chance is it aligned already. */
	ASSERT_FALSE(granule_aligned(without.places[COMPAT_64K]));

	ASSERT_EQ(reporter_start(rep, path_32, COMPAT_REPORT, GRANULE_SIZE, false), 0);
	ASSERT_TRUE(reporter_end(rep));
	for (i = 0; i < COMPAT_NR_PLACES; i++) {
		EXPECT_EQ(rep->report.places[i], without.places[i])
			TH_LOG("%s", place_names[i]);
	}
	for (i = 0; i < COMPAT_NR_PIECES; i++)
		EXPECT_EQ(rep->report.pieces[i], without.pieces[i]);
}

/*
 * Assert that mappings of 64 KiB next to each other merge, as without granules.
 */
TEST_F(page_granule_compat, neighbours_merge)
{
	struct reporter *rep = &self->rep;
	int nr;

	ASSERT_EQ(reporter_start(rep, path_32, COMPAT_REPORT, GRANULE_SIZE, true), 0);
	nr = vmas_of_pieces(rep);
	EXPECT_GE(nr, 1);
	EXPECT_LE(nr, 3);
	ASSERT_TRUE(reporter_end(rep));
}

int main(int argc, char **argv)
{
	ssize_t len;
	char *slash;

	if (argc == 4 && !strncmp(argv[1], "--", 2))
		return compat_report_main(argv);
	len = readlink("/proc/self/exe", path_64, sizeof(path_64) - 1);
	if (len < 0)
		ksft_exit_fail_msg("cannot read /proc/self/exe: %s\n", strerror(errno));
	strcpy(path_32, path_64);
	slash = strrchr(path_32, '/');
	strcpy(slash + 1, PROGRAM_32);
	granule_require();
	granule_save_settings();
	return test_harness_run(argc, argv);
}
