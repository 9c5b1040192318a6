// SPDX-License-Identifier: GPL-2.0
/*
 * Run a program with one size of its memory, in a memory cgroup of its own, and print
 * what it took as a JSON object.
 *
 * Instructions are the CPU time of the cgroup: QEMU's -icount lets a nanosecond pass for
 * each. With --sample, the processes are looked at every so many milliseconds, and what
 * they had when they had most is printed. Looking changes how long things take, so count
 * in a run without.
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <linux/perf_event.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define RUN_SZ		65536UL
#define PM_PRESENT	(1ULL << 63)
#define PM_FILE		(1ULL << 61)
#define PM_PFN		((1ULL << 55) - 1)
#define THP		"/sys/kernel/mm/transparent_hugepage"
#define THP_64K		"hugepages-64kB"
#define CGROUP		"/sys/fs/cgroup/programs"
#define WP_FAULTS	"/sys/kernel/tracing/events/exceptions/page_fault_user/id"
/* By how much memory has to grow, in per cent, for the closer look at each page */
#define CLOSER_LOOK	2
#define MOST_PIDS	4096
#define MOST_NAMES	16

/* What is looked at once a sample, and summed over the processes */
struct sample {
	unsigned long pss, rss, procs;
	/* These when memory has grown. */
	unsigned long threads, vmas, page_tables;
	unsigned long anon, anon_whole, file, file_whole;	/* kB */
};

/* Counters of /proc/vmstat, of which the difference is printed */
static const char * const vmstat_names[] = {
	"pswpin", "pswpout", "pgreuse", "granule_fault", "granule_fallback", "granule_cow",
	"granule_split", "granule_swpin", "granule_swpin_fallback", "granule_repair",
	"pgpgout",	/* KiB */
};

#define NR_VMSTAT	(sizeof(vmstat_names) / sizeof(vmstat_names[0]))

struct options {
	const char *config, *out, *advise, *granule;
	const char *names[MOST_NAMES];
	unsigned int nr_names;
	unsigned long limit_kb, sample_ms, timeout_s;
	char **command;
};

static const char usage[] =
	"usage: measure --config 4k|mthp|granule|64k --out FILE --name KEY=VALUE...\n"
	"               [--limit KB] [--sample MS] [--advise FILE --granule PROGRAM]\n"
	"               [--timeout S] COMMAND [ARG]...";

static unsigned long page_sz;
static char text[1 << 20];

static __attribute__((format(printf, 1, 2), noreturn)) void die(const char *format, ...)
{
	va_list args;

	fputs("measure: ", stderr);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
	exit(125);
}

/* Read a small file to @text. */
static bool read_text(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	size_t len = 0;
	ssize_t got = -1;

	if (fd >= 0) {
		while (len < sizeof(text) - 1 &&
		       (got = read(fd, text + len, sizeof(text) - 1 - len)) > 0)
			len += got;
		close(fd);
	}
	text[len] = '\0';
	return len && got >= 0;
}

static bool write_text(const char *path, const char *what)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	bool done;

	if (fd < 0)
		return false;
	done = write(fd, what, strlen(what)) == (ssize_t)strlen(what);
	close(fd);
	return done;
}

static void must_write(const char *path, const char *what)
{
	if (!write_text(path, what))
		die("cannot write \"%s\" to %s: %s", what, path, strerror(errno));
}

/* The number after @key at the start of a line of @text; 0 if there is none. */
static unsigned long number_of(const char *key)
{
	const size_t len = strlen(key);
	const char *line = text;

	while (line && (strncmp(line, key, len) || isalnum((unsigned char)line[len]) ||
			line[len] == '_')) {
		line = strchr(line, '\n');
		line = line ? line + 1 : NULL;
	}
	if (!line)
		return 0;
	line += len;
	return strtoul(line + strspn(line, ": \t"), NULL, 10);
}

static unsigned long cgroup_number(const char *file, const char *key)
{
	char path[PATH_MAX];

	snprintf(path, sizeof(path), CGROUP "/%s", file);
	if (!read_text(path))
		return 0;
	return key ? number_of(key) : strtoul(text, NULL, 10);
}

static void read_vmstat(unsigned long *values)
{
	size_t i;

	if (!read_text("/proc/vmstat"))
		die("cannot read /proc/vmstat");
	for (i = 0; i < NR_VMSTAT; i++)
		values[i] = number_of(vmstat_names[i]);
}

static unsigned long long now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000ULL + ts.tv_nsec;
}

/* How long no task has run so far, in nanoseconds. The kernel tells it in 10 ms. */
static unsigned long long idle(void)
{
	double up, idle;

	if (!read_text("/proc/uptime") || sscanf(text, "%lf %lf", &up, &idle) != 2)
		die("cannot read /proc/uptime");
	return idle * 1e9;
}

/* Huge pages of 64 KiB for all memory with "mthp", none otherwise. */
static void set_huge_pages(const char *config)
{
	const bool mthp = !strcmp(config, "mthp");
	char path[PATH_MAX];
	struct dirent *entry;
	DIR *dir;

	must_write(THP "/enabled", "never");
	must_write(THP "/shmem_enabled", "never");
	dir = opendir(THP);
	while (dir && (entry = readdir(dir))) {
		const char *to = mthp && !strcmp(entry->d_name, THP_64K) ? "always" : "never";

		if (strncmp(entry->d_name, "hugepages-", strlen("hugepages-")))
			continue;
		/* A size has one or the other, or both. */
		snprintf(path, sizeof(path), THP "/%s/enabled", entry->d_name);
		if (!access(path, F_OK))
			must_write(path, to);
		snprintf(path, sizeof(path), THP "/%s/shmem_enabled", entry->d_name);
		if (!access(path, F_OK))
			must_write(path, to);
	}
	if (dir)
		closedir(dir);
	if (mthp && access(THP "/" THP_64K, F_OK))
		die("this kernel has no huge pages of 64 KiB");
}

/* Is the run that begins at @entry in one aligned piece? */
static bool is_whole(const uint64_t *entry, unsigned int nr)
{
	const uint64_t pfn = entry[0] & PM_PFN;
	unsigned int i;

	if (pfn % nr)
		return false;
	for (i = 0; i < nr; i++) {
		if (!(entry[i] & PM_PRESENT) || (entry[i] & PM_PFN) != pfn + i ||
		    (entry[i] & PM_FILE) != (entry[0] & PM_FILE))
			return false;
	}
	return true;
}

/* Add what a mapping has. Shared anonymous memory is anonymous, as granules see it. */
static void scan_pages(int pagemap, unsigned long start, unsigned long end, bool is_file,
		       struct sample *sample)
{
	static uint64_t entry[4096];
	const unsigned int nr = RUN_SZ / page_sz;
	unsigned long addr, next, i, n;
	ssize_t got;

	for (addr = start; addr < end; addr = next) {
		/* Chunks begin where runs do. */
		next = (addr / RUN_SZ + sizeof(entry) / sizeof(*entry) / nr) * RUN_SZ;
		if (next > end)
			next = end;
		n = (next - addr) / page_sz;
		got = pread(pagemap, entry, n * sizeof(*entry), addr / page_sz * sizeof(*entry));
		if (got <= 0)
			return;
		n = got / sizeof(*entry);
		for (i = 0; i < n; i++) {
			const bool file = is_file && (entry[i] & PM_FILE);
			const bool whole = (addr + i * page_sz) % RUN_SZ == 0 && i + nr <= n &&
					   is_whole(entry + i, nr);
			const unsigned int pages = whole ? nr : 1;
			const unsigned long kb = pages * page_sz / 1024;

			if (!(entry[i] & PM_PRESENT))
				continue;
			*(file ? &sample->file : &sample->anon) += kb;
			if (whole)
				*(file ? &sample->file_whole : &sample->anon_whole) += kb;
			i += pages - 1;
		}
	}
}

/* Look at each page of a process. */
static void scan_process(pid_t pid, struct sample *sample)
{
	unsigned long start = 0, end = 0, inode;
	char path[64], line[PATH_MAX + 200];
	bool is_file = false, special = false;
	FILE *smaps;
	int pagemap;

	snprintf(path, sizeof(path), "/proc/%d/pagemap", pid);
	pagemap = open(path, O_RDONLY | O_CLOEXEC);
	snprintf(path, sizeof(path), "/proc/%d/smaps", pid);
	smaps = fopen(path, "re");
	while (pagemap >= 0 && smaps && fgets(line, sizeof(line), smaps)) {
		if (sscanf(line, "%lx-%lx %*s %*x %*x:%*x %lu", &start, &end, &inode) == 3) {
			sample->vmas++;
			is_file = inode && !strstr(line, "/dev/zero") && !strstr(line, "/SYSV") &&
				  !strstr(line, "/memfd:");
			special = strstr(line, "[v");
		} else if (!strncmp(line, "Rss:", 4) && strtoul(line + 4, NULL, 10) && !special) {
			scan_pages(pagemap, start, end, is_file, sample);
		}
	}
	if (smaps)
		fclose(smaps);
	if (pagemap >= 0)
		close(pagemap);
	snprintf(path, sizeof(path), "/proc/%d/status", pid);
	if (read_text(path)) {
		sample->threads += number_of("Threads");
		sample->page_tables += number_of("VmPTE");
	}
}

/* Have "granule advise" say what it would of @pid now. */
static void ask_advise(const struct options *opts, pid_t pid)
{
	char number[16];
	pid_t child = fork();
	int fd;

	if (child < 0)
		die("cannot fork: %s", strerror(errno));
	if (!child) {
		snprintf(number, sizeof(number), "%d", pid);
		fd = open(opts->advise, O_WRONLY | O_CREAT | O_TRUNC, 0644);
		if (fd < 0 || dup2(fd, 1) < 0 || dup2(fd, 2) < 0)
			_exit(125);
		execl(opts->granule, "granule", "advise", "-t", "0", number, (char *)NULL);
		_exit(127);
	}
	waitpid(child, NULL, 0);
}

/* Nobody else runs meanwhile: there is one CPU, and this has a real-time priority. */
static void take_sample(const struct options *opts, struct sample *most)
{
	static pid_t pids[MOST_PIDS];
	struct sample sample = { 0 };
	unsigned long largest = 0, rss;
	unsigned int i, nr = 0;
	pid_t advised = 0;
	char path[64], *p;

	if (!read_text(CGROUP "/cgroup.procs"))
		return;
	for (p = text; *p && nr < MOST_PIDS; p += strspn(p, "\n"))
		pids[nr++] = strtol(p, &p, 10);
	for (i = 0; i < nr; i++) {
		snprintf(path, sizeof(path), "/proc/%d/smaps_rollup", pids[i]);
		/* It may have ended: a zombie has no memory. */
		if (!read_text(path))
			continue;
		rss = number_of("Rss");
		sample.rss += rss;
		sample.pss += number_of("Pss");
		sample.procs++;
		if (rss > largest) {
			largest = rss;
			advised = pids[i];
		}
	}
	if (sample.pss <= most->pss + most->pss * CLOSER_LOOK / 100)
		return;
	for (i = 0; i < nr; i++)
		scan_process(pids[i], &sample);
	*most = sample;
	if (opts->advise)
		ask_advise(opts, advised);
}

/*
 * Count the faults of users on memory that is write-protected, on all of the one CPU:
 * copies after fork() and what needs no copy, which the kernel counts as "pgreuse".
 * Only x86 has this event, with its own error code. -1 elsewhere.
 */
static int count_wp_faults(void)
{
	struct perf_event_attr attr = {
		.type = PERF_TYPE_TRACEPOINT,
		.size = sizeof(attr),
	};
	int fd;

	if (!read_text(WP_FAULTS))
		return -1;
	attr.config = strtoul(text, NULL, 10);
	fd = syscall(SYS_perf_event_open, &attr, -1, 0, -1, PERF_FLAG_FD_CLOEXEC);
	/* Present, and written to */
	if (fd >= 0 && ioctl(fd, PERF_EVENT_IOC_SET_FILTER, "(error_code & 1) && (error_code & 2)"))
		die("cannot filter page faults: %s", strerror(errno));
	return fd;
}

static void make_cgroup(const struct options *opts)
{
	char limit[32];

	if (mkdir(CGROUP, 0755))
		die("cannot make %s: %s", CGROUP, strerror(errno));
	if (opts->limit_kb) {
		snprintf(limit, sizeof(limit), "%luK", opts->limit_kb);
		must_write(CGROUP "/memory.max", limit);
	}
}

static pid_t start(const struct options *opts)
{
	pid_t child = fork();
	int fd;

	if (child < 0)
		die("cannot fork: %s", strerror(errno));
	if (child)
		return child;
	must_write(CGROUP "/cgroup.procs", "0");
	fd = open(opts->out, O_WRONLY | O_CREAT | O_TRUNC, 0644);
	if (fd < 0 || dup2(fd, 1) < 0 || dup2(fd, 2) < 0)
		die("cannot write to %s: %s", opts->out, strerror(errno));
	close(fd);
	execvp(opts->command[0], opts->command);
	die("%s: %s", opts->command[0], strerror(errno));
}

/* Wait for all that the program has started, and return how the program ended. */
static int wait_all(const struct options *opts, pid_t child, struct sample *most, bool *hung)
{
	const unsigned long step = opts->sample_ms ? opts->sample_ms : 1000;
	const struct timespec period = { step / 1000, step % 1000 * 1000000 };
	const unsigned long long begin = now();
	int status = -1, one;
	sigset_t set;
	pid_t pid;

	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	for (;;) {
		while ((pid = waitpid(-1, &one, WNOHANG)) > 0) {
			if (pid == child)
				status = one;
		}
		if (pid < 0)
			return status;
		if (now() - begin > opts->timeout_s * 1000000000ULL && !*hung) {
			*hung = true;
			must_write(CGROUP "/cgroup.kill", "1");
		}
		if (opts->sample_ms) {
			nanosleep(&period, NULL);
			take_sample(opts, most);
		} else {
			sigtimedwait(&set, NULL, &period);
		}
	}
}

static void print_names(const struct options *opts)
{
	unsigned int i;

	for (i = 0; i < opts->nr_names; i++) {
		const char *value = strchr(opts->names[i], '=');

		printf("%s\"%.*s\": \"%s\"", i ? ", " : "{", (int)(value - opts->names[i]),
		       opts->names[i], value + 1);
	}
}

static void measure(const struct options *opts)
{
	const struct sched_param first = { .sched_priority = 1 };
	unsigned long before[NR_VMSTAT], after[NR_VMSTAT];
	unsigned long long began, idled, used, took;
	struct sample most = { 0 };
	uint64_t wp_faults = 0;
	struct rusage usage;
	bool hung = false;
	int status, wp = -1;
	sigset_t set;
	pid_t child;
	size_t i;

	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	set_huge_pages(opts->config);
	/* Each begins with nothing in memory, and with memory that is in one piece. */
	sync();
	must_write("/proc/sys/vm/drop_caches", "3");
	must_write("/proc/sys/vm/compact_memory", "1");
	make_cgroup(opts);
	/* What the program leaves behind is waited for, too. */
	prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
	if (opts->sample_ms)
		wp = count_wp_faults();
	read_vmstat(before);
	idled = idle();
	began = now();
	child = start(opts);
	sigprocmask(SIG_BLOCK, &set, NULL);
	if (opts->sample_ms && sched_setscheduler(0, SCHED_FIFO, &first))
		die("no real-time priority: %s", strerror(errno));
	status = wait_all(opts, child, &most, &hung);
	took = now() - began;
	idled = idle() - idled;
	/* What it has left dirty counts as written, too. */
	sync();
	read_vmstat(after);
	getrusage(RUSAGE_CHILDREN, &usage);
	used = cgroup_number("cpu.stat", "usage_usec") * 1000ULL;

	print_names(opts);
	printf(", \"status\": %d", hung ? 124 : WIFSIGNALED(status) ? 128 + WTERMSIG(status) :
	       WEXITSTATUS(status));
	printf(", \"instructions\": %llu, \"others\": %lld", used,
	       (long long)(took - idled - used));
	printf(", \"faults\": %lu, \"major\": %lu", cgroup_number("memory.stat", "pgfault"),
	       cgroup_number("memory.stat", "pgmajfault"));
	printf(", \"rss_kb\": %ld, \"peak_kb\": %lu, \"swap_peak_kb\": %lu", usage.ru_maxrss,
	       cgroup_number("memory.peak", NULL) / 1024,
	       cgroup_number("memory.swap.peak", NULL) / 1024);
	printf(", \"oom_kills\": %lu", cgroup_number("memory.events", "oom_kill"));
	for (i = 0; i < NR_VMSTAT; i++)
		printf(", \"%s\": %lu", vmstat_names[i], after[i] - before[i]);
	if (opts->limit_kb)
		printf(", \"limit_kb\": %lu", opts->limit_kb);
	if (opts->sample_ms) {
		printf(", \"pss_kb\": %lu, \"processes\": %lu, \"threads\": %lu, \"vmas\": %lu",
		       most.pss, most.procs, most.threads, most.vmas);
		printf(", \"page_tables_kb\": %lu, \"anon_kb\": %lu, \"anon_whole_kb\": %lu",
		       most.page_tables, most.anon, most.anon_whole);
		printf(", \"file_kb\": %lu, \"file_whole_kb\": %lu", most.file, most.file_whole);
	}
	if (wp >= 0 && read(wp, &wp_faults, sizeof(wp_faults)) == sizeof(wp_faults))
		printf(", \"wp_faults\": %llu", (unsigned long long)wp_faults);
	puts("}");
	if (rmdir(CGROUP))
		die("cannot remove %s: %s", CGROUP, strerror(errno));
}

static unsigned long parse_number(const char *what, const char *from)
{
	char *end;
	unsigned long value = strtoul(from, &end, 10);

	if (!isdigit((unsigned char)*from) || *end)
		die("%s %s: not a number", what, from);
	return value;
}

int main(int argc, char **argv)
{
	static const struct option longs[] = {
		{ "config", required_argument, NULL, 'c' },
		{ "out", required_argument, NULL, 'o' },
		{ "name", required_argument, NULL, 'n' },
		{ "limit", required_argument, NULL, 'l' },
		{ "sample", required_argument, NULL, 's' },
		{ "timeout", required_argument, NULL, 't' },
		{ "advise", required_argument, NULL, 'a' },
		{ "granule", required_argument, NULL, 'g' },
		{ NULL, 0, NULL, 0 },
	};
	struct options opts = { .timeout_s = 60 };
	int opt;

	while ((opt = getopt_long(argc, argv, "+", longs, NULL)) != -1) {
		switch (opt) {
		case 'c':
			opts.config = optarg;
			break;
		case 'o':
			opts.out = optarg;
			break;
		case 'n':
			if (!strchr(optarg, '=') || opts.nr_names == MOST_NAMES)
				die("--name %s: use KEY=VALUE, at most %d", optarg, MOST_NAMES);
			opts.names[opts.nr_names++] = optarg;
			break;
		case 'l':
			opts.limit_kb = parse_number("--limit", optarg);
			break;
		case 's':
			opts.sample_ms = parse_number("--sample", optarg);
			break;
		case 't':
			opts.timeout_s = parse_number("--timeout", optarg);
			break;
		case 'a':
			opts.advise = optarg;
			break;
		case 'g':
			opts.granule = optarg;
			break;
		default:
			return 125;
		}
	}
	opts.command = argv + optind;
	if (optind == argc || !opts.config || !opts.out || !opts.nr_names)
		die("%s", usage);
	if (opts.advise && !opts.granule)
		die("--advise needs --granule: where is the command?");
	page_sz = sysconf(_SC_PAGESIZE);
	measure(&opts);
	return 0;
}
