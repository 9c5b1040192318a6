// SPDX-License-Identifier: GPL-2.0
/*
 * Page granule: the prctl, what fork and exec keep of it, and what /proc and
 * sysfs show. page_granule_mmap.c tests the mmap flags.
 */
#define _GNU_SOURCE
#include "kselftest_harness.h"
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <linux/fs.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "vm_util.h"
#include "page_granule_util.h"

/* The 64 KiB ABI, which no kernel offers yet. */
#define SCOPE_ABI	2

#define UID_SETUID	1
#define UID_CALLER	65534

/* A program started by execve reports this; see report_main(). */
struct exec_report {
	long mmap;
	long exec;
	int tagged;
	uid_t uid;
	uid_t euid;
};

/*
 * "--report FD DEPTH": the program the exec tests start. It execs itself DEPTH
 * more times, then writes an exec_report to FD.
 */
static int report_main(char **argv)
{
	int fd = atoi(argv[2]), depth = atoi(argv[3]);
	struct granule_smaps smaps;
	struct exec_report report;
	char number[16];
	void *ptr;

	if (depth) {
		snprintf(number, sizeof(number), "%d", depth - 1);
		execl("/proc/self/exe", argv[0], "--report", argv[2], number, NULL);
		return KSFT_FAIL;
	}

	report.mmap = granule_get(PR_GRANULE_MMAP);
	report.exec = granule_get(PR_GRANULE_EXEC);
	report.uid = getuid();
	report.euid = geteuid();
	/* PROT_NONE, so that it does not merge with memory of the libc's. */
	ptr = mmap(NULL, GRANULE_SIZE, PROT_NONE, ANON_FLAGS, -1, 0);
	if (ptr == MAP_FAILED || !granule_read_smaps(getpid(), ptr, &smaps))
		return KSFT_FAIL;
	report.tagged = granule_has_flag(&smaps, "gr");
	if (write(fd, &report, sizeof(report)) != sizeof(report))
		return KSFT_FAIL;
	return granule_invariants_hold() ? KSFT_PASS : KSFT_FAIL;
}

/*
 * Fork, become @uid if that is not root, set the scopes asked for (0: leave it
 * alone), and exec @path for a report.
 */
static int report_after_exec(const char *path, uid_t uid, unsigned long mmap_size,
			     unsigned long exec_size, int depth,
			     struct exec_report *report)
{
	int pipefd[2], status, ret = 0;
	char fd[16], number[16];
	pid_t pid;

	if (pipe(pipefd))
		return -errno;
	snprintf(fd, sizeof(fd), "%d", pipefd[1]);
	snprintf(number, sizeof(number), "%d", depth);

	pid = fork();
	if (pid < 0)
		return -errno;
	if (!pid) {
		if (uid && (setgroups(0, NULL) || setresgid(uid, uid, uid) ||
			    setresuid(uid, uid, uid)))
			_exit(10);
		if (mmap_size && granule_set(PR_GRANULE_MMAP, mmap_size))
			_exit(11);
		if (exec_size && granule_set(PR_GRANULE_EXEC, exec_size))
			_exit(12);
		execl(path, "page_granule_abi", "--report", fd, number, NULL);
		_exit(13);
	}
	close(pipefd[1]);
	if (read(pipefd[0], report, sizeof(*report)) != sizeof(*report))
		ret = -EIO;
	close(pipefd[0]);
	if (waitpid(pid, &status, 0) != pid)
		return -errno;
	if (!WIFEXITED(status))
		return -EINTR;
	if (WEXITSTATUS(status)) {
		ksft_print_msg("exec helper: exit status %d\n", WEXITSTATUS(status));
		return -EIO;
	}
	return ret;
}

FIXTURE(page_granule_abi_prctl)
{
};

FIXTURE_SETUP(page_granule_abi_prctl)
{
	/*
	 * Whatever the shell or the runner was given, start from the default.
	 */
	ASSERT_EQ(granule_set_enabled(true), 0);
	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, BASE_SIZE), 0);
	ASSERT_EQ(granule_set(PR_GRANULE_EXEC, BASE_SIZE), 0);
}

FIXTURE_TEARDOWN(page_granule_abi_prctl)
{
	EXPECT_TRUE(granule_invariants_hold());
	/* May fail where a test has dropped its privileges; main() restores. */
	granule_set_enabled(true);
}

/* Assert that GET returns in bytes what SET was given, scope by scope. */
TEST_F(page_granule_abi_prctl, get_returns_what_was_set)
{
	ASSERT_EQ(granule_get(PR_GRANULE_MMAP), BASE_SIZE);
	ASSERT_EQ(granule_get(PR_GRANULE_EXEC), BASE_SIZE);

	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, GRANULE_SIZE), 0);
	ASSERT_EQ(granule_get(PR_GRANULE_MMAP), GRANULE_SIZE);
	ASSERT_EQ(granule_get(PR_GRANULE_EXEC), BASE_SIZE);

	ASSERT_EQ(granule_set(PR_GRANULE_EXEC, GRANULE_SIZE), 0);
	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, BASE_SIZE), 0);
	ASSERT_EQ(granule_get(PR_GRANULE_MMAP), BASE_SIZE);
	ASSERT_EQ(granule_get(PR_GRANULE_EXEC), GRANULE_SIZE);
}

/* Assert that a size of 0 means 4096 on SET. */
TEST_F(page_granule_abi_prctl, zero_means_base_page)
{
	unsigned long scope;

	for (scope = PR_GRANULE_MMAP; scope <= PR_GRANULE_EXEC; scope++) {
		ASSERT_EQ(granule_set(scope, GRANULE_SIZE), 0);
		ASSERT_EQ(granule_set(scope, 0), 0);
		ASSERT_EQ(granule_get(scope), BASE_SIZE);
	}
}

/* Assert that SET refuses every size but 0, 4096 and 65536 with EINVAL. */
TEST_F(page_granule_abi_prctl, set_unknown_size)
{
	static const unsigned long sizes[] = {
		1, 4095, 4097, 8192, 16384, 32768, 65535, 65537, 131072,
		2UL << 20, 1UL << 30, -1UL, -GRANULE_SIZE,
		/* Must not be cut to 32 bits on the way. */
		(1UL << 32) | BASE_SIZE, (1UL << 32) | GRANULE_SIZE, 1UL << 32,
	};
	unsigned long scope;
	size_t i;

	for (scope = PR_GRANULE_MMAP; scope <= PR_GRANULE_EXEC; scope++) {
		for (i = 0; i < ARRAY_SIZE(sizes); i++) {
			EXPECT_EQ(granule_set(scope, sizes[i]), -EINVAL)
				TH_LOG("scope %lu size %#lx", scope, sizes[i]);
		}
		EXPECT_EQ(granule_get(scope), BASE_SIZE);
	}
}

/* Assert that an unknown scope is EINVAL for SET and GET. */
TEST_F(page_granule_abi_prctl, unknown_scope)
{
	static const unsigned long scopes[] = {
		2, 3, 100, -1UL, 1UL << 31, 1UL << 32, (1UL << 32) | 1,
	};
	size_t i;

	for (i = 0; i < ARRAY_SIZE(scopes); i++) {
		EXPECT_EQ(granule_set(scopes[i], BASE_SIZE), -EINVAL)
			TH_LOG("scope %#lx", scopes[i]);
		EXPECT_EQ(granule_set(scopes[i], GRANULE_SIZE), -EINVAL)
			TH_LOG("scope %#lx", scopes[i]);
		EXPECT_EQ(granule_get(scopes[i]), -EINVAL)
			TH_LOG("scope %#lx", scopes[i]);
	}
}

/* Assert that a non-zero unused argument is EINVAL and sets nothing. */
TEST_F(page_granule_abi_prctl, unused_arguments)
{
	static const unsigned long values[] = { 1, BASE_SIZE, -1UL, 1UL << 32 };
	unsigned long scope, val;
	size_t i;

	for (scope = PR_GRANULE_MMAP; scope <= PR_GRANULE_EXEC; scope++) {
		for (i = 0; i < ARRAY_SIZE(values); i++) {
			val = values[i];
			errno = 0;
			EXPECT_EQ(prctl(PR_SET_PAGE_GRANULE, scope, BASE_SIZE, val, 0UL), -1);
			EXPECT_EQ(errno, EINVAL);
			errno = 0;
			EXPECT_EQ(prctl(PR_SET_PAGE_GRANULE, scope, GRANULE_SIZE, 0UL, val), -1);
			EXPECT_EQ(errno, EINVAL);
			errno = 0;
			EXPECT_EQ(prctl(PR_GET_PAGE_GRANULE, scope, val, 0UL, 0UL), -1);
			EXPECT_EQ(errno, EINVAL);
			errno = 0;
			EXPECT_EQ(prctl(PR_GET_PAGE_GRANULE, scope, 0UL, val, 0UL), -1);
			EXPECT_EQ(errno, EINVAL);
			errno = 0;
			EXPECT_EQ(prctl(PR_GET_PAGE_GRANULE, scope, 0UL, 0UL, val), -1);
			EXPECT_EQ(errno, EINVAL);
		}
		EXPECT_EQ(granule_get(scope), BASE_SIZE);
	}
}

/*
 * Assert that the scope reserved for the 64 KiB ABI is EINVAL whatever the
 * size. A program that could set it would believe that the kernel has that ABI.
 */
TEST_F(page_granule_abi_prctl, abi_not_offered)
{
	EXPECT_EQ(granule_set(SCOPE_ABI, GRANULE_SIZE), -EINVAL);
	EXPECT_EQ(granule_set(SCOPE_ABI, BASE_SIZE), -EINVAL);
	EXPECT_EQ(granule_set(SCOPE_ABI, 0), -EINVAL);
	EXPECT_EQ(granule_get(SCOPE_ABI), -EINVAL);
}

/* Assert that enabled=0 makes 65536 EOPNOTSUPP and leaves the rest alone. */
TEST_F(page_granule_abi_prctl, switched_off)
{
	unsigned long scope;

	ASSERT_EQ(granule_set_enabled(false), 0);
	for (scope = PR_GRANULE_MMAP; scope <= PR_GRANULE_EXEC; scope++) {
		EXPECT_EQ(granule_set(scope, GRANULE_SIZE), -EOPNOTSUPP);
		EXPECT_EQ(granule_get(scope), BASE_SIZE);
		EXPECT_EQ(granule_set(scope, BASE_SIZE), 0);
		EXPECT_EQ(granule_set(scope, 0), 0);
		/* A wrong call stays wrong, and is reported as such. */
		EXPECT_EQ(granule_set(scope, 8192), -EINVAL);
	}
	EXPECT_EQ(granule_set(SCOPE_ABI, GRANULE_SIZE), -EINVAL);

	ASSERT_EQ(granule_set_enabled(true), 0);
	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, GRANULE_SIZE), 0);
}

/* Assert that fork keeps both scopes, and a child's change stays its own. */
TEST_F(page_granule_abi_prctl, fork_keeps)
{
	int status;
	pid_t pid;

	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, GRANULE_SIZE), 0);
	ASSERT_EQ(granule_set(PR_GRANULE_EXEC, GRANULE_SIZE), 0);
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		if (granule_get(PR_GRANULE_MMAP) != GRANULE_SIZE ||
		    granule_get(PR_GRANULE_EXEC) != GRANULE_SIZE)
			_exit(1);
		if (granule_set(PR_GRANULE_MMAP, BASE_SIZE) ||
		    granule_set(PR_GRANULE_EXEC, BASE_SIZE))
			_exit(2);
		_exit(0);
	}
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	ASSERT_EQ(status, 0);
	ASSERT_EQ(granule_get(PR_GRANULE_MMAP), GRANULE_SIZE);
	ASSERT_EQ(granule_get(PR_GRANULE_EXEC), GRANULE_SIZE);
}

/* Assert that a vfork child, which shares the mm, changes its parent's. */
TEST_F(page_granule_abi_prctl, vfork_shares)
{
	int status;
	pid_t pid;

	pid = vfork();
	ASSERT_GE(pid, 0);
	if (!pid)
		_exit(prctl(PR_SET_PAGE_GRANULE, PR_GRANULE_MMAP, GRANULE_SIZE, 0UL, 0UL) ?
		      1 : 0);
	ASSERT_EQ(waitpid(pid, &status, 0), pid);
	ASSERT_EQ(status, 0);
	ASSERT_EQ(granule_get(PR_GRANULE_MMAP), GRANULE_SIZE);
}

static void *set_both_scopes(void *ret)
{
	*(int *)ret = granule_set(PR_GRANULE_MMAP, GRANULE_SIZE) ?:
		      granule_set(PR_GRANULE_EXEC, GRANULE_SIZE);
	return NULL;
}

/* Assert that threads share one setting. */
TEST_F(page_granule_abi_prctl, threads_share)
{
	pthread_t thread;
	int ret = -1;

	ASSERT_EQ(pthread_create(&thread, NULL, set_both_scopes, &ret), 0);
	ASSERT_EQ(pthread_join(thread, NULL), 0);
	ASSERT_EQ(ret, 0);
	ASSERT_EQ(granule_get(PR_GRANULE_MMAP), GRANULE_SIZE);
	ASSERT_EQ(granule_get(PR_GRANULE_EXEC), GRANULE_SIZE);
}

/* Assert that execve resets MMAP to 4096 where EXEC does not ask for more. */
TEST_F(page_granule_abi_prctl, exec_resets_mmap)
{
	struct exec_report report;

	ASSERT_EQ(report_after_exec("/proc/self/exe", 0, GRANULE_SIZE, 0, 0, &report), 0);
	EXPECT_EQ(report.mmap, BASE_SIZE);
	EXPECT_EQ(report.exec, BASE_SIZE);
	EXPECT_EQ(report.tagged, 0);
}

/*
 * Assert that EXEC becomes MMAP in the new program, and lasts over two execs.
 */
TEST_F(page_granule_abi_prctl, exec_scope_starts_programs)
{
	struct exec_report report;

	ASSERT_EQ(report_after_exec("/proc/self/exe", 0, 0, GRANULE_SIZE, 0, &report), 0);
	EXPECT_EQ(report.mmap, GRANULE_SIZE);
	EXPECT_EQ(report.exec, GRANULE_SIZE);
	EXPECT_EQ(report.tagged, 1);

	ASSERT_EQ(report_after_exec("/proc/self/exe", 0, 0, GRANULE_SIZE, 1, &report), 0);
	EXPECT_EQ(report.mmap, GRANULE_SIZE);
	EXPECT_EQ(report.exec, GRANULE_SIZE);
	EXPECT_EQ(report.tagged, 1);
}

/* Assert that EXEC=4096 starts a program with 4096 whatever MMAP was. */
TEST_F(page_granule_abi_prctl, exec_scope_base_page)
{
	struct exec_report report;

	ASSERT_EQ(granule_set(PR_GRANULE_EXEC, GRANULE_SIZE), 0);
	ASSERT_EQ(report_after_exec("/proc/self/exe", 0, GRANULE_SIZE, BASE_SIZE, 0, &report), 0);
	EXPECT_EQ(report.mmap, BASE_SIZE);
	EXPECT_EQ(report.exec, BASE_SIZE);
	EXPECT_EQ(report.tagged, 0);
}

/* Assert that setting EXEC leaves the caller's own mappings alone. */
TEST_F(page_granule_abi_prctl, exec_scope_not_for_caller)
{
	struct granule_smaps smaps;
	void *ptr;

	ASSERT_EQ(granule_set(PR_GRANULE_EXEC, GRANULE_SIZE), 0);
	ASSERT_EQ(granule_get(PR_GRANULE_MMAP), BASE_SIZE);
	ptr = mmap(NULL, GRANULE_SIZE, PROT_NONE, ANON_FLAGS, -1, 0);
	ASSERT_NE(ptr, MAP_FAILED);
	ASSERT_TRUE(granule_read_smaps(getpid(), ptr, &smaps));
	ASSERT_FALSE(granule_has_flag(&smaps, "gr"));
}

FIXTURE(page_granule_abi_setid)
{
	char dir[64];
	char path[128];
};

FIXTURE_VARIANT(page_granule_abi_setid)
{
	mode_t mode;
	bool secure;
};

/* Same program, same caller, no setuid bit: the control. */
FIXTURE_VARIANT_ADD(page_granule_abi_setid, plain)
{
	.mode = 0755,
	.secure = false,
};

FIXTURE_VARIANT_ADD(page_granule_abi_setid, setuid)
{
	.mode = 04755,
	.secure = true,
};

FIXTURE_VARIANT_ADD(page_granule_abi_setid, setgid)
{
	.mode = 02755,
	.secure = true,
};

static int copy_self(const char *path)
{
	char buf[16384];
	int in, out;
	ssize_t n;

	in = open("/proc/self/exe", O_RDONLY);
	out = open(path, O_WRONLY | O_CREAT | O_EXCL, 0600);
	if (in < 0 || out < 0)
		return -errno;
	while ((n = read(in, buf, sizeof(buf))) > 0) {
		if (write(out, buf, n) != n)
			return -EIO;
	}
	close(in);
	close(out);
	return n;
}

/*
 * A copy of this program on a file system mounted without nosuid. The mount is
 * made in a mount namespace of the test's own, and goes away with it.
 */
FIXTURE_SETUP(page_granule_abi_setid)
{
	ASSERT_EQ(granule_set_enabled(true), 0);
	strcpy(self->dir, "/tmp/page_granule.XXXXXX");
	if (!mkdtemp(self->dir))
		SKIP(return, "cannot create %s: make /tmp a writable directory",
		     self->dir);
	snprintf(self->path, sizeof(self->path), "%s/abi", self->dir);
	ASSERT_EQ(unshare(CLONE_NEWNS), 0);
	ASSERT_EQ(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL), 0);
	if (mount("none", self->dir, "tmpfs", 0, "mode=755")) {
		rmdir(self->dir);
		SKIP(return, "cannot mount tmpfs: build the kernel with CONFIG_TMPFS=y");
	}
	ASSERT_EQ(copy_self(self->path), 0);
	ASSERT_EQ(chown(self->path, UID_SETUID, UID_SETUID), 0);
	ASSERT_EQ(chmod(self->path, variant->mode), 0);
}

FIXTURE_TEARDOWN(page_granule_abi_setid)
{
	EXPECT_TRUE(granule_invariants_hold());
	umount2(self->dir, MNT_DETACH);
	rmdir(self->dir);
}

/* Assert that a privilege-gaining exec, and no other, drops EXEC. */
TEST_F(page_granule_abi_setid, exec_scope_dropped)
{
	long expected = variant->secure ? BASE_SIZE : GRANULE_SIZE;
	struct exec_report report;

	ASSERT_EQ(report_after_exec(self->path, UID_CALLER, GRANULE_SIZE,
				    GRANULE_SIZE, 0, &report), 0);
	/* Did the bit have its effect, or was the test fooled by the mount? */
	ASSERT_EQ(report.uid, UID_CALLER);
	ASSERT_EQ(report.euid, variant->mode & 04000 ? UID_SETUID : UID_CALLER);
	EXPECT_EQ(report.mmap, expected);
	EXPECT_EQ(report.exec, expected);
	EXPECT_EQ(report.tagged, !variant->secure);
}

/* Assert that the prctl needs no privilege. */
TEST_F(page_granule_abi_prctl, unprivileged)
{
	ASSERT_EQ(setgroups(0, NULL), 0);
	ASSERT_EQ(setresgid(UID_CALLER, UID_CALLER, UID_CALLER), 0);
	ASSERT_EQ(setresuid(UID_CALLER, UID_CALLER, UID_CALLER), 0);
	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, GRANULE_SIZE), 0);
	ASSERT_EQ(granule_set(PR_GRANULE_EXEC, GRANULE_SIZE), 0);
	ASSERT_EQ(granule_get(PR_GRANULE_MMAP), GRANULE_SIZE);
	ASSERT_EQ(granule_get(PR_GRANULE_EXEC), GRANULE_SIZE);
}

/*
 * Does /proc/PID/status have both lines, each with one value, and these? Tools
 * read it by the name before the colon.
 */
static bool status_shows(pid_t pid, const char *mmap_line, const char *exec_line)
{
	unsigned int seen = 0, right = 0;
	char path[64], line[256];
	FILE *fp;

	snprintf(path, sizeof(path), "/proc/%d/status", pid);
	fp = fopen(path, "r");
	if (!fp)
		return false;
	while (fgets(line, sizeof(line), fp)) {
		if (strncmp(line, "PageGranule", 11))
			continue;
		line[strcspn(line, "\n")] = '\0';
		seen++;
		right += !strcmp(line, mmap_line) || !strcmp(line, exec_line);
		if (right < seen)
			ksft_print_msg("%d: '%s'\n", pid, line);
	}
	fclose(fp);
	return seen == 2 && right == 2;
}

#define MMAP_4		"PageGranule:\t       4 kB"
#define MMAP_64		"PageGranule:\t      64 kB"
#define EXEC_4		"PageGranuleExec:\t       4 kB"
#define EXEC_64		"PageGranuleExec:\t      64 kB"

/* Assert that /proc/PID/status shows both scopes of PID, not of the reader. */
TEST_F(page_granule_abi_prctl, proc_status)
{
	pid_t pid;

	EXPECT_TRUE(status_shows(getpid(), MMAP_4, EXEC_4));
	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, GRANULE_SIZE), 0);
	EXPECT_TRUE(status_shows(getpid(), MMAP_64, EXEC_4));
	ASSERT_EQ(granule_set(PR_GRANULE_EXEC, GRANULE_SIZE), 0);
	EXPECT_TRUE(status_shows(getpid(), MMAP_64, EXEC_64));

	pid = granule_fork_idle();
	ASSERT_GE(pid, 0);
	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, BASE_SIZE), 0);
	EXPECT_TRUE(status_shows(pid, MMAP_64, EXEC_64));
	EXPECT_TRUE(status_shows(getpid(), MMAP_4, EXEC_64));
	granule_kill_idle(pid);
}

static int write_enabled(const char *text)
{
	return granule_write(GRANULE_SYSFS "enabled", text);
}

/* Assert that `enabled` takes 0 and 1, and anything else is EINVAL. */
TEST_F(page_granule_abi_prctl, sysfs_enabled)
{
	static const char * const bad[] = {
		"2", "-1", "65536", "64", " ", "\n", "abc", "[always]", "0x2",
	};
	char buf[32];
	size_t i;

	for (i = 0; i < ARRAY_SIZE(bad); i++) {
		EXPECT_EQ(write_enabled(bad[i]), -EINVAL)
			TH_LOG("wrote '%s'", bad[i]);
		ASSERT_GT(read_file(GRANULE_SYSFS "enabled", buf, sizeof(buf)), 0);
		EXPECT_STREQ(buf, "1\n");
	}
	ASSERT_EQ(write_enabled("0\n"), 0);
	ASSERT_GT(read_file(GRANULE_SYSFS "enabled", buf, sizeof(buf)), 0);
	EXPECT_STREQ(buf, "0\n");
	EXPECT_EQ(write_enabled("2"), -EINVAL);
	ASSERT_GT(read_file(GRANULE_SYSFS "enabled", buf, sizeof(buf)), 0);
	EXPECT_STREQ(buf, "0\n");
	ASSERT_EQ(write_enabled("1"), 0);
}

/* Assert that `sizes_kb` lists both sizes and is read-only. */
TEST_F(page_granule_abi_prctl, sysfs_sizes)
{
	char buf[32];

	ASSERT_GT(read_file(GRANULE_SYSFS "sizes_kb", buf, sizeof(buf)), 0);
	EXPECT_STREQ(buf, "4 64\n");
	ASSERT_EQ(open(GRANULE_SYSFS "sizes_kb", O_WRONLY), -1);
}

/* Assert that every documented counter is in /proc/vmstat. */
TEST_F(page_granule_abi_prctl, vmstat_names)
{
	static const char * const names[] = {
		"granule_fault", "granule_fallback", "granule_cow",
		"granule_swpin", "granule_swpin_fallback", "granule_split",
		"granule_repair",
	};
	size_t i;

	for (i = 0; i < ARRAY_SIZE(names); i++) {
		EXPECT_NE(granule_vmstat(names[i]), ULONG_MAX)
			TH_LOG("no %s in /proc/vmstat", names[i]);
	}
}

FIXTURE(page_granule_abi_smaps)
{
	char *area;
	size_t len;
};

FIXTURE_VARIANT(page_granule_abi_smaps)
{
	enum granule_kind kind;
	unsigned long granule;
	bool gr;
	bool gc;
};

FIXTURE_VARIANT_ADD(page_granule_abi_smaps, untagged)
{
	.kind = GRANULE_UNTAGGED,
	.granule = 4,
};

FIXTURE_VARIANT_ADD(page_granule_abi_smaps, default_tagged)
{
	.kind = GRANULE_DEFAULT,
	.granule = 64,
	.gr = true,
};

FIXTURE_VARIANT_ADD(page_granule_abi_smaps, contract)
{
	.kind = GRANULE_CONTRACT,
	.granule = 64,
	.gr = true,
	.gc = true,
};

FIXTURE_SETUP(page_granule_abi_smaps)
{
	char *res;

	ASSERT_EQ(granule_set_enabled(true), 0);
	ASSERT_EQ(granule_set(PR_GRANULE_MMAP, BASE_SIZE), 0);
	granule_thp_never();
	self->len = 8 * GRANULE_SIZE;
	res = granule_reserve(self->len);
	ASSERT_NE(res, NULL);
	self->area = granule_mmap(variant->kind, res, self->len, PROT_RW, MAP_FIXED);
	ASSERT_EQ(self->area, res);
}

FIXTURE_TEARDOWN(page_granule_abi_smaps)
{
	EXPECT_TRUE(granule_invariants_hold());
	granule_set_enabled(true);
}

/* Assert that smaps tells the three kinds of VMA apart. */
TEST_F(page_granule_abi_smaps, fields)
{
	struct granule_smaps smaps;

	ASSERT_TRUE(granule_read_smaps(getpid(), self->area, &smaps));
	ASSERT_EQ(smaps.start, (unsigned long)self->area);
	ASSERT_EQ(smaps.end, (unsigned long)self->area + self->len);
	ASSERT_TRUE(smaps.has_granule);
	/* In the 4K ABI, whatever it is populated in: others multiply by it. */
	EXPECT_EQ(smaps.kernel_page_size, 4);
	EXPECT_EQ(smaps.mmu_page_size, 4);
	EXPECT_EQ(smaps.granule, variant->granule);
	EXPECT_EQ(smaps.granule_mapped, 0);
	EXPECT_EQ(granule_has_flag(&smaps, "gr"), variant->gr);
	EXPECT_EQ(granule_has_flag(&smaps, "gc"), variant->gc);
	/* No bit of ours may show up under an unknown name. */
	EXPECT_FALSE(granule_has_flag(&smaps, "??"));
}

/*
 * Assert that PROCMAP_QUERY reports the page size that smaps calls
 * KernelPageSize.
 */
TEST_F(page_granule_abi_smaps, procmap_page_size)
{
	struct procmap_fd procmap;

	ASSERT_EQ(open_self_procmap(&procmap), 0);
	ASSERT_TRUE(find_vma_procmap(&procmap, self->area));
	EXPECT_EQ(procmap.query.vma_page_size, BASE_SIZE);
	ASSERT_EQ(close_procmap(&procmap), 0);
}

/* The first mapping from @addr on that has all of @flags, or 0. */
static uint64_t query_next(struct procmap_fd *procmap, void *addr, uint64_t flags)
{
	memset(&procmap->query, 0, sizeof(procmap->query));
	procmap->query.size = sizeof(procmap->query);
	procmap->query.query_flags = flags | PROCMAP_QUERY_COVERING_OR_NEXT_VMA;
	procmap->query.query_addr = (uintptr_t)addr;
	if (ioctl(procmap->fd, PROCMAP_QUERY, &procmap->query))
		return 0;
	return procmap->query.vma_start;
}

/* Assert that PROCMAP_QUERY reports both bits, and finds mappings by them. */
TEST_F(page_granule_abi_smaps, procmap_bits)
{
	const uint64_t bits = PROCMAP_GRANULE | PROCMAP_GRANULE_CONTRACT;
	const uint64_t here = (uintptr_t)self->area;
	struct procmap_fd procmap;

	ASSERT_EQ(open_self_procmap(&procmap), 0);
	ASSERT_EQ(query_next(&procmap, self->area, 0), here);
	EXPECT_EQ(procmap.query.vma_flags & bits,
		  (variant->gr ? PROCMAP_GRANULE : 0) |
		  (variant->gc ? PROCMAP_GRANULE_CONTRACT : 0));
	EXPECT_EQ(query_next(&procmap, self->area, PROCMAP_GRANULE) == here,
		  variant->gr);
	EXPECT_EQ(query_next(&procmap, self->area, PROCMAP_GRANULE_CONTRACT) == here,
		  variant->gc);
	EXPECT_EQ(query_next(&procmap, self->area, bits) == here, variant->gc);
	ASSERT_EQ(close_procmap(&procmap), 0);
}

/*
 * Assert that Granule shows the size of population now: 4 kB for default-tagged
 * memory that opted out of huge pages, and 64 kB for a contract still.
 */
TEST_F(page_granule_abi_smaps, opted_out)
{
	const unsigned long out = variant->gc ? 64 : 4;

	ASSERT_EQ(madvise(self->area, self->len, MADV_NOHUGEPAGE), 0);
	EXPECT_EQ(granule_kb(self->area), out);
	/* The flag stays: advice that is taken back has its effect. */
	EXPECT_EQ(granule_vma_has_flag(self->area, "gr"), variant->gr);
	ASSERT_EQ(madvise(self->area, self->len, MADV_HUGEPAGE), 0);
	EXPECT_EQ(granule_kb(self->area), variant->granule);

	ASSERT_EQ(prctl(PR_SET_THP_DISABLE, 1UL, 0UL, 0UL, 0UL), 0);
	EXPECT_EQ(granule_kb(self->area), out);
	ASSERT_EQ(prctl(PR_SET_THP_DISABLE, 0UL, 0UL, 0UL, 0UL), 0);
	EXPECT_EQ(granule_kb(self->area), variant->granule);

	ASSERT_EQ(granule_set_enabled(false), 0);
	EXPECT_EQ(granule_kb(self->area), out);
	ASSERT_EQ(granule_set_enabled(true), 0);
	EXPECT_EQ(granule_kb(self->area), variant->granule);
}

/*
 * Assert that PR_THP_DISABLE_EXCEPT_ADVISED exempts a contract, which counts as
 * advice, and not default-tagged memory.
 */
TEST_F(page_granule_abi_smaps, except_advised)
{
	ASSERT_EQ(prctl(PR_SET_THP_DISABLE, 1UL, PR_THP_DISABLE_EXCEPT_ADVISED, 0UL, 0UL), 0);
	EXPECT_EQ(granule_kb(self->area), variant->gc ? 64 : 4);
	ASSERT_EQ(madvise(self->area, self->len, MADV_HUGEPAGE), 0);
	EXPECT_EQ(granule_kb(self->area), variant->granule);
	ASSERT_EQ(prctl(PR_SET_THP_DISABLE, 0UL, 0UL, 0UL, 0UL), 0);
}

/*
 * Assert that GranuleMapped counts the granules touched, and only tagged ones.
 */
TEST_F(page_granule_abi_smaps, granule_mapped)
{
	struct granule_smaps smaps;
	unsigned long i;

	for (i = 1; i <= self->len / GRANULE_SIZE; i++) {
		/* Somewhere in the granule, each time in another page. */
		self->area[i * GRANULE_SIZE - i * BASE_SIZE] = 1;
		ASSERT_TRUE(granule_read_smaps(getpid(), self->area, &smaps));
		if (variant->gr) {
			ASSERT_EQ(smaps.rss, i * 64);
			ASSERT_EQ(smaps.granule_mapped, i * 64);
		} else {
			ASSERT_EQ(smaps.rss, i * 4);
			ASSERT_EQ(smaps.granule_mapped, 0);
		}
	}
}

/*
 * One number of /proc/self/smaps or smaps_rollup, summed over the file, in kB.
 */
static long sum_field(const char *path, const char *format)
{
	unsigned long val, sum = 0;
	char *line;

	for (line = granule_read_proc(path); line && *line; line = strchr(line, '\n')) {
		if (*line == '\n')
			line++;
		if (sscanf(line, format, &val) == 1)
			sum += val;
	}
	return sum;
}

/* Assert that smaps_rollup has the sum of all GranuleMapped lines of smaps. */
TEST_F(page_granule_abi_smaps, rollup)
{
	const char *format = "GranuleMapped: %lu kB";
	long before, after;

	before = sum_field("/proc/self/smaps_rollup", format);
	memset(self->area, 1, self->len / 2);
	after = sum_field("/proc/self/smaps_rollup", format);
	ASSERT_EQ(after - before, variant->gr ? self->len / 2048 : 0);
	ASSERT_EQ(after, sum_field("/proc/self/smaps", format));
	ASSERT_EQ(sum_field("/proc/self/smaps_rollup", "Granule: %lu kB"), 0);
}

int main(int argc, char **argv)
{
	if (argc == 4 && !strcmp(argv[1], "--report"))
		return report_main(argv);
	granule_require();
	granule_save_settings();
	return test_harness_run(argc, argv);
}
