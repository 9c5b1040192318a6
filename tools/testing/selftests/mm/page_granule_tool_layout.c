// SPDX-License-Identifier: GPL-2.0
/*
 * Page granule: the processes that page_granule_tool runs the granule command
 * on, and what the command prints for them.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "vm_util.h"
#include "page_granule_tool.h"
#include "page_granule_util.h"

char tool_path[PATH_MAX], self_path[PATH_MAX];

struct result res;
struct granule_file half_cached;

void read_back(int fd, char *buf, size_t size)
{
	ssize_t len = pread(fd, buf, size - 1, 0);

	buf[len > 0 ? len : 0] = '\0';
	close(fd);
}

/* Wait until something has been written to a file, for a minute at most. */
bool wait_output(int fd)
{
	struct stat st = { 0 };
	unsigned int i;

	for (i = 0; i < 6000 && !fstat(fd, &st) && !st.st_size; i++)
		usleep(10 * 1000);
	return st.st_size;
}

/* The command line of the tool, from its arguments up to NULL */
char *argv[MAX_ARGS];

void set_argv(const char *arg, va_list args)
{
	int nr = 1;

	argv[0] = "granule";
	for (; arg && nr < MAX_ARGS - 1; arg = va_arg(args, const char *))
		argv[nr++] = (char *)arg;
	argv[nr] = NULL;
}

pid_t start_argv(void (*hook)(void), int out, int err)
{
	pid_t pid = fork();

	if (pid)
		return pid;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	dup2(out, STDOUT_FILENO);
	dup2(err, STDERR_FILENO);
	unsetenv("NO_COLOR");
	setenv("COLUMNS", "80", 0);
	if (hook)
		hook();
	execv(tool_path, argv);
	_exit(99);
}

int wait_status(pid_t pid)
{
	int status;

	if (waitpid(pid, &status, 0) != pid)
		return -SIGKILL;
	return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

/* Start the tool, with these arguments up to NULL. */
pid_t tool_start(int out, int err, const char *arg, ...)
{
	va_list args;

	va_start(args, arg);
	set_argv(arg, args);
	va_end(args);
	return start_argv(NULL, out, err);
}

/* Run it. What it did is in res. */
int tool_hooked(void (*hook)(void), const char *arg, ...)
{
	int out = memfd_create("out", MFD_CLOEXEC), err = memfd_create("err", MFD_CLOEXEC);
	va_list args;

	va_start(args, arg);
	set_argv(arg, args);
	va_end(args);
	res.status = wait_status(start_argv(hook, out, err));
	read_back(out, res.out, sizeof(res.out));
	read_back(err, res.err, sizeof(res.err));
	return res.status;
}

unsigned int count_lines(const char *text)
{
	unsigned int nr = 0;

	for (; *text; text++)
		nr += *text == '\n';
	return nr;
}

/*
 * Put "PID" for the number that the text begins with, if it is the one of @pid.
 */
void hide_pid(char *text, pid_t pid)
{
	char number[16];
	size_t len;

	len = snprintf(number, sizeof(number), "%d ", pid);
	if (strncmp(text, number, len))
		return;
	memmove(text + 4, text + len, strlen(text + len) + 1);
	memcpy(text, "PID ", 4);
}

void become_user(void)
{
	if (setgroups(0, NULL) || setresgid(UID_USER, UID_USER, UID_USER) ||
	    setresuid(UID_USER, UID_USER, UID_USER))
		_exit(98);
}

void disable_thp(void)
{
	prctl(PR_SET_THP_DISABLE, 1UL, 0UL, 0UL, 0UL);
}

/*
 * Processes with a known layout. They map and touch what @make does, tell that
 * by a byte, and wait to be killed.
 */
pid_t start_layout(bool (*make)(void), bool as_user)
{
	int ready[2];
	char ok = 0;
	pid_t pid;

	if (pipe(ready))
		return -1;
	pid = fork();
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (as_user) {
			become_user();
			prctl(PR_SET_DUMPABLE, 1);
			prctl(PR_SET_PDEATHSIG, SIGKILL);
		}
		prctl(PR_SET_NAME, "layout");
		ok = make();
		if (write(ready[1], &ok, 1) != 1)
			_exit(1);
		for (;;)
			pause();
	}
	close(ready[1]);
	if (read(ready[0], &ok, 1) != 1 || !ok) {
		granule_kill_idle(pid);
		pid = -1;
	}
	close(ready[0]);
	return pid;
}

bool map_at(enum granule_kind kind, char *addr, size_t len, int flags)
{
	return granule_mmap(kind, addr, len, PROT_RW, MAP_FIXED_NOREPLACE | flags) == addr;
}

bool name_it(char *addr, size_t len, const char *name)
{
	return !prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, addr, len, name);
}

bool has_names(void)
{
	static char page[2 * BASE_SIZE];
	char *addr = (char *)(((uintptr_t)page + BASE_SIZE) & ~(BASE_SIZE - 1));

	/* EBADF: there are names, but not for memory of a file. */
	return name_it(addr, BASE_SIZE, NULL) || errno != EINVAL;
}

/* Every state but swapped, in every kind of mapping */
bool make_states(void)
{
	if (!map_at(GRANULE_CONTRACT, ARENA, 6 * GRANULE_SIZE, 0) ||
	    !name_it(ARENA, 6 * GRANULE_SIZE, "arena"))
		return false;
	*nth(ARENA, 0) = 1;
	*byte_of(ARENA, 1) = 1;
	FORCE_READ(*nth(ARENA, 3));
	*byte_of(ARENA, 4) = 1;

	if (!map_at(GRANULE_DEFAULT, EDGED - BASE_SIZE, 4 * GRANULE_SIZE + 2 * BASE_SIZE, 0))
		return false;
	EDGED[-1] = 1;
	*nth(EDGED, 0) = 1;
	*nth(EDGED, 1) = 1;
	if (madvise(nth(EDGED, 1) + 3 * BASE_SIZE, BASE_SIZE, MADV_DONTNEED))
		return false;
	*nth(EDGED, 2) = 1;
	if (!granule_break(nth(EDGED, 2), 5))
		return false;
	*nth(EDGED, 4) = 1;

	if (!map_at(GRANULE_UNTAGGED, UNTAGGED, 4 * GRANULE_SIZE, 0))
		return false;
	*nth(UNTAGGED, 0) = 1;
	*(nth(UNTAGGED, 2) - 1) = 1;
	*byte_of(UNTAGGED, 3) = 1;

	if (!map_at(GRANULE_CONTRACT, LARGE, LARGE_GRANULES * GRANULE_SIZE, MAP_NORESERVE))
		return false;
	*byte_of(LARGE, LARGE_GRANULES - 1) = 1;
	return true;
}

/* Touch the first @nr pages of each granule. */
void touch(char *addr, unsigned long granules, unsigned long nr)
{
	unsigned long i, page;

	for (i = 0; i < granules; i++) {
		for (page = 0; page < nr; page++)
			nth(addr, i)[page * BASE_SIZE] = 1;
	}
}

bool make_advised(void)
{
	const size_t len = ADVISED_GRANULES * GRANULE_SIZE;

	if (!map_at(GRANULE_UNTAGGED, DENSE, len, 0) || !name_it(DENSE, len, "dense") ||
	    !map_at(GRANULE_UNTAGGED, SPARSE, len, 0) || !name_it(SPARSE, len, "sparse") ||
	    !map_at(GRANULE_UNTAGGED, THREAD, len, MAP_STACK))
		return false;
	touch(DENSE, ADVISED_GRANULES, 14);
	touch(SPARSE, ADVISED_GRANULES, 2);
	touch(THREAD, ADVISED_GRANULES, 2);
	return true;
}

/* A page in three or so, some of them read only, some given back */
bool make_random(void)
{
	unsigned int i;

	if (!map_at(GRANULE_DEFAULT, ARENA, RANDOM_GRANULES * GRANULE_SIZE, 0))
		return false;
	srand(12);
	for (i = 0; i < 40; i++) {
		char *page = ARENA + rand() % (RANDOM_GRANULES * GRANULE_NR_PAGES) * BASE_SIZE;

		if (i % 4 == 3)
			FORCE_READ(*page);
		else
			*page = 1;
		if (i % 5 == 4 && madvise(page, BASE_SIZE, MADV_DONTNEED))
			return false;
		if (i % 10 == 9)
			*page = 1;
	}
	return true;
}

bool make_swapped(void)
{
	if (!map_at(GRANULE_DEFAULT, ARENA, 4 * GRANULE_SIZE, 0))
		return false;
	granule_fill(ARENA, 3 * GRANULE_SIZE, 1);
	if (madvise(nth(ARENA, 1), GRANULE_SIZE, MADV_PAGEOUT) ||
	    madvise(nth(ARENA, 2), 5 * BASE_SIZE, MADV_PAGEOUT))
		return false;
	return true;
}

bool make_guarded(void)
{
	if (!map_at(GRANULE_DEFAULT, ARENA, 3 * GRANULE_SIZE, 0))
		return false;
	granule_fill(ARENA, 2 * GRANULE_SIZE, 1);
	return !madvise(nth(ARENA, 1), BASE_SIZE, MADV_GUARD_INSTALL) &&
	       !madvise(nth(ARENA, 2), BASE_SIZE, MADV_GUARD_INSTALL);
}

/* Write-protect one page. Its file has to stay open. */
static bool protect_page(char *area, char *page)
{
	struct uffdio_writeprotect wp = {
		.range = { .start = (uintptr_t)page, .len = BASE_SIZE },
		.mode = UFFDIO_WRITEPROTECT_MODE_WP,
	};
	int uffd = granule_uffd_open(UFFD_FEATURE_PAGEFAULT_FLAG_WP);

	return uffd >= 0 && !uffd_register(uffd, area, GRANULE_SIZE, false, true, false) &&
	       !ioctl(uffd, UFFDIO_WRITEPROTECT, &wp);
}

/*
 * A page that was given back and is only read, and a folio that was split in
 * place
 */
bool make_split(void)
{
	char command[64];

	if (!map_at(GRANULE_DEFAULT, ARENA, 4 * GRANULE_SIZE, 0))
		return false;
	granule_fill(ARENA, 3 * GRANULE_SIZE, 1);
	FORCE_READ(*nth(ARENA, 3));
	if (madvise(nth(ARENA, 0) + 3 * BASE_SIZE, BASE_SIZE, MADV_DONTNEED) ||
	    madvise(nth(ARENA, 3) + 3 * BASE_SIZE, BASE_SIZE, MADV_DONTNEED))
		return false;
	FORCE_READ(nth(ARENA, 0)[3 * BASE_SIZE]);
	snprintf(command, sizeof(command), "%d,0x%lx,0x%lx,0", getpid(),
		 (unsigned long)nth(ARENA, 1), (unsigned long)nth(ARENA, 2));
	return !granule_write("/sys/kernel/debug/split_huge_pages", command);
}

/* Granules of a file of which half is cached; the first two are in use. */
bool make_half_cached(void)
{
	unsigned long i;
	char byte;

	posix_fadvise(half_cached.fd, 0, 0, POSIX_FADV_RANDOM);
	for (i = 0; i < HALF_CACHED_LEN / BASE_SIZE; i += 2) {
		if (pread(half_cached.fd, &byte, 1, i * BASE_SIZE) != 1)
			return false;
	}
	if (granule_file_map(&half_cached, GRANULE_DEFAULT, false, ARENA, HALF_CACHED_LEN,
			     PROT_READ, 0) != ARENA)
		return false;
	FORCE_READ(*nth(ARENA, 0));
	FORCE_READ(*nth(ARENA, 1));
	return true;
}

bool make_protected(void)
{
	if (!map_at(GRANULE_DEFAULT, ARENA, 2 * GRANULE_SIZE, 0))
		return false;
	granule_fill(ARENA, 2 * GRANULE_SIZE, 1);
	return protect_page(nth(ARENA, 1), nth(ARENA, 1) + 5 * BASE_SIZE);
}

bool make_mergeable(void)
{
	if (!map_at(GRANULE_DEFAULT, ARENA, 2 * GRANULE_SIZE, 0))
		return false;
	memset(ARENA, 0x4b, 2 * GRANULE_SIZE);
	return !madvise(ARENA, 2 * GRANULE_SIZE, MADV_MERGEABLE);
}

/* The golden text of all of "show" */
const char golden_show[] =
"PID layout: new mappings 4 kB, programs it starts 4 kB\n"
"\n"
"ADDRESS           SIZE KIND      RESIDENT     WHOLE       BROKEN NAME\n"
"100000000000       384 contract       192       192 100%       0 [anon:arena]\n"
"1000000ff000       264 default        196        64  32%       2 -\n"
"                        1 with holes, 1 scattered\n"
"100000400000     65536 contract        64        64 100%       0 -\n"
"tagged           66184                452       320  70%       2 sizes in kB\n"
"                        1 with holes, 1 scattered\n";

/* The golden text of "map", from the arena to the end of the large mapping */
const char golden_map[] =
"contract, 384 kB, [anon:arena]\n"
"  100000000000  ##.0#.\n"
"default, 264 kB\n"
"  1000000f0000  u#xx.u\n"
"untagged, 256 kB\n"
"  100000200000  uu.u\n"
"contract, 64 MB\n"
"  100000400000  1023 empty, 64 MB\n"
"  1000043f0000  #\n";

/* The same for a user who may not see PFNs */
const char golden_map_user[] =
"contract, 384 kB, [anon:arena]\n"
"  100000000000  ##.0#.\n"
"default, 264 kB\n"
"  1000000f0000  u?x?.u\n"
"untagged, 256 kB\n"
"  100000200000  uu.u\n"
"contract, 64 MB\n"
"  100000400000  1023 empty, 64 MB\n"
"  1000043f0000  #\n";

/* The broken granules of "show" for them */
const char golden_show_user[] =
"       264 default        196        64  32%       2 -\n"
"                        1 with holes, 1 for reasons that only root may see\n";

const char golden_legend[] =
"\n. empty  # whole  x broken  s swapped  0 zeroes  u base pages\n";

const char golden_legend_user[] =
"\n. empty  # whole  x broken  s swapped  0 zeroes  u base pages  ? whole or broken\n"
"Only root may see which are whole.\n";

const char golden_advise[] =
"[anon:dense]: yes, 14.0 of 16 pages in use, +14 %\n"
"    14 MB, in granules 16 MB; 256 faults instead of 3584\n"
"[anon:sparse]: no, 2.0 of 16 pages in use, +700 %\n"
"    2048 kB, in granules 16 MB; 256 faults instead of 512\n"
"stacks of threads and the like: no, 2.0 of 16 pages in use, and they ask for no huge pages\n";

const char golden_help[] =
"usage: granule VERB [OPTION]... [ARGUMENT]...\n"
"\n"
"  run [-s 64k|4k] [--require] [--] COMMAND [ARG]...\n"
"      run COMMAND with memory in granules of 64 KiB (or of 4 KiB)\n"
"  show [--all] [--json] [PID]\n"
"      show the granules of a process, or all processes that have any\n"
"  map [--no-color] PID\n"
"      draw the address space of a process, one character a granule\n"
"  collapse PID\n"
"      bring what a process has populated into whole granules\n"
"  advise [-t SECONDS] PID\n"
"      watch a process, and tell what it would gain from granules\n"
"  stat [SECONDS [COUNT]]\n"
"      show the counters of all granules since boot, or as rates\n"
"  supported\n"
"      show the granules on offer, and what limits them\n"
"\n"
"  -h, --help   show this text\n"
"\n"
"It exits with 0, with 1 if it fails or if 64 KiB is not supported, and with\n"
"2 if it is used wrongly. \"run\" exits as COMMAND does, or with 125 if it fails\n"
"itself, 126 if COMMAND cannot be executed and 127 if it is not found.\n";

const char golden_stat[] =
"--------populated--------- ------swap------ -broken and back-\n"
"   fault fallback      cow       in fallback    split   repair\n";

/* The two sizes in the line of "advise" about memory, in kB */
bool parse_memory(const char *line, unsigned long *now, unsigned long *then)
{
	return line && sscanf(line, "\nmemory: %lu kB now, %lu kB in granules", now, then) == 2;
}

/*
 * Cut @text to what begins with the line @first, and has as many lines as
 * @like.
 */
const char *cut(char *text, const char *first, const char *like)
{
	unsigned int nr = count_lines(like);
	char *start = strstr(text, first), *p;

	if (!start)
		return text;
	for (p = start; *p && nr; p++)
		nr -= *p == '\n';
	*p = '\0';
	return start;
}

/* The part of @text from @start on, or "". */
const char *from(const char *text, const char *start)
{
	return strstr(text, start) ?: "";
}
