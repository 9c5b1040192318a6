// SPDX-License-Identifier: GPL-2.0
/*
 * granule advise: would a process gain from granules?
 *
 * What 64 KiB takes follows from which pages a process has used so far: each block
 * that has one of them would have 16. What it saves follows from the same, and from
 * what is referenced while the process is watched.
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "granule.h"

/* Pages in use, of the 16 of a block, from which on granules are advised */
#define YES_PAGES	12.0
#define MAYBE_PAGES	8.0
/* By how much all of a process may grow for that, in per cent */
#define YES_GROWTH	25.0
#define MAYBE_GROWTH	60.0
/* With less memory than this, in kB, there is little to gain */
#define LITTLE_KB	4096
/* Mappings that are smaller than a 50th of the process are put together. */
#define SMALL_PART	50
/* From which size on a mapping begins with what it was made for */
#define LARGE_SZ	BIT(20)
/* A command line that is longer is not to be typed. */
#define LONGEST_LINE	400

enum kind {
	KIND_ANON,		/* what a default of 64 KiB tags */
	KIND_TAGGED,
	KIND_HUGE,
	KIND_NOHUGE,
	KIND_FILE,
	KIND_OTHER,
};

enum verdict {
	VERDICT_NO,
	VERDICT_MAYBE,
	VERDICT_YES,
};

/* What is drawn together: one mapping, or several that have one name */
struct group {
	char name[80];
	enum kind kind;
	unsigned long nr_vmas;
	unsigned long kb;		/* resident and swapped */
	unsigned long referenced;	/* kB */
	unsigned long pages;		/* in use, in blocks that can be granules */
	unsigned long blocks;		/* that have any */
	unsigned long edge_pages;	/* in use, elsewhere */
	unsigned long unseen;		/* kB that /proc/PID/pagemap does not show */
	unsigned long written;
	unsigned long new_pages;	/* since the first look */
};

struct report {
	struct group *groups;
	size_t nr;
	unsigned long kb;		/* of the whole process */
};

static bool is_anon(const struct vma *vma)
{
	if (vma->special)
		return false;
	/* Shared memory is a file that has no name but this, or one that it was given. */
	if (vma->inode)
		return !strcmp(vma->name, "/dev/zero (deleted)") ||
		       !strncmp(vma->name, "[anon_shmem:", 12);
	return !*vma->name || !strncmp(vma->name, "[anon:", 6) ||
	       !strcmp(vma->name, "[heap]") || !strcmp(vma->name, "[stack]");
}

static enum kind vma_advice_kind(const struct vma *vma)
{
	if (vma->tagged && in_granules(vma))
		return KIND_TAGGED;
	if (!is_anon(vma))
		return vma->inode && !vma->special && nr_granules(vma) ? KIND_FILE : KIND_OTHER;
	if (vma->huge && 2 * vma->huge >= vma->rss)
		return KIND_HUGE;
	return vma->nohuge ? KIND_NOHUGE : KIND_ANON;
}

static void group_name(const struct vma *vma, enum kind kind, bool small, char *name, size_t size)
{
	if (kind == KIND_TAGGED)
		snprintf(name, size, "memory in granules already");
	else if (kind == KIND_FILE)
		snprintf(name, size, "files");
	else if (kind == KIND_OTHER)
		snprintf(name, size, "small files and the like");
	else if (kind == KIND_HUGE)
		snprintf(name, size, "memory in huge pages already");
	else if (kind == KIND_NOHUGE)
		snprintf(name, size, "stacks of threads and the like");
	else if (!strcmp(vma->name, "[heap]"))
		snprintf(name, size, "heap");
	else if (!strcmp(vma->name, "[stack]"))
		snprintf(name, size, "stack");
	else if (small)
		snprintf(name, size, "small anonymous memory");
	else if (!strncmp(vma->name, "[anon", 5))
		snprintf(name, size, "%s", vma->name);
	else
		snprintf(name, size, "%s at %lx",
			 vma->perms[3] == 's' ? "shared anonymous" : "anonymous", vma->start);
}

static struct group *find_group(struct report *report, const char *name, enum kind kind)
{
	struct group *group;
	size_t i;

	for (i = 0; i < report->nr; i++) {
		if (!strcmp(report->groups[i].name, name))
			return &report->groups[i];
	}
	report->groups = must(realloc(report->groups, (report->nr + 1) * sizeof(*group)));
	group = &report->groups[report->nr++];
	*group = (struct group){ .kind = kind };
	snprintf(group->name, sizeof(group->name), "%s", name);
	return group;
}

static void count_block(struct process *proc, const struct vma *vma, const struct block *block,
			void *arg)
{
	struct group *group = arg;
	const unsigned int used = block->present + block->swapped;

	(void)proc;
	(void)vma;
	group->written += block->written;
	/* Zeroes that are only read cost nothing, in granules neither. */
	if (!used)
		return;
	if (block->cut) {
		group->edge_pages += used;
	} else {
		group->pages += used;
		group->blocks++;
	}
}

/*
 * Where would blocks begin? A file would be congruent to its offset. The heap, and a
 * mapping of a multiple of 64 KiB, would be aligned. A large one that is no multiple is
 * such a one in most cases, which others that were there before have merged with from
 * above.
 */
static unsigned long block_shift(const struct vma *vma, enum kind kind)
{
	const unsigned long len = vma->end - vma->start;

	if (kind == KIND_FILE)
		return (vma->start - vma->offset) % GRANULE_SZ;
	if (kind != KIND_ANON)
		return 0;
	if (!strcmp(vma->name, "[stack]"))
		return 0;
	if (!strcmp(vma->name, "[heap]") || len % GRANULE_SZ == 0 || len >= LARGE_SZ)
		return vma->start % GRANULE_SZ;
	return 0;
}

static void look(struct process *proc, struct report *report)
{
	char name[80];
	size_t i;

	for (i = 0; i < proc->nr_vmas; i++)
		report->kb += proc->vmas[i].rss + proc->vmas[i].swap;
	for (i = 0; i < proc->nr_vmas && !proc->ended; i++) {
		const struct vma *vma = &proc->vmas[i];
		const unsigned long kb = vma->rss + vma->swap;
		const enum kind kind = vma_advice_kind(vma);
		struct group *group;

		if (!kb)
			continue;
		group_name(vma, kind, kb < report->kb / SMALL_PART, name, sizeof(name));
		group = find_group(report, name, kind);
		group->nr_vmas++;
		group->kb += kb;
		group->referenced += vma->referenced;
		if (vma->perms[3] == 's')
			group->unseen += vma->swap;
		if (kind != KIND_OTHER)
			scan_vma(proc, vma, block_shift(vma, kind), count_block, group);
	}
}

/* Pages that are in use now, and were not at the first look */
static void compare(struct report *report, const struct report *before)
{
	struct group *group;
	size_t i, j;

	for (i = 0; i < report->nr; i++) {
		group = &report->groups[i];
		for (j = 0; j < before->nr; j++) {
			if (!strcmp(group->name, before->groups[j].name) &&
			    group->kb > before->groups[j].kb)
				group->new_pages = (group->kb - before->groups[j].kb) / 4;
		}
	}
}

static bool reset_bits(pid_t pid, const char *what)
{
	char path[64];
	bool done = false;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/clear_refs", pid);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd >= 0)
		done = write(fd, what, 1) == 1;
	if (!done && !process_ended(pid))
		explain(pid, "clear_refs", errno);
	if (fd >= 0)
		close(fd);
	return done || process_ended(pid);
}

/* Does this kernel keep soft-dirty bits? What has just been mapped has one. */
static bool tells_written(void)
{
	char *page = mmap(NULL, PAGE_SZ, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			  -1, 0);
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	uint64_t entry = 0;

	if (page != MAP_FAILED && fd >= 0) {
		*page = 1;
		if (pread(fd, &entry, sizeof(entry), (uintptr_t)page / PAGE_SZ * sizeof(entry)) !=
		    sizeof(entry))
			entry = 0;
	}
	if (page != MAP_FAILED)
		munmap(page, PAGE_SZ);
	if (fd >= 0)
		close(fd);
	return entry & PM_SOFT_DIRTY;
}

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

/* Wait until @seconds are over, the process ends, or the user has seen enough. */
static double watch(pid_t pid, long seconds)
{
	const struct timespec tick = { .tv_nsec = 100 * 1000 * 1000 };
	const bool tty = isatty(STDERR_FILENO);
	const double start = now();
	bool interrupted = false;
	sigset_t stop, old;
	long shown = -1;

	sigemptyset(&stop);
	sigaddset(&stop, SIGINT);
	sigprocmask(SIG_BLOCK, &stop, &old);
	fflush(stdout);
	if (!tty && seconds)
		fprintf(stderr, "watching %d for %ld s\n", pid, seconds);
	while (now() - start < seconds && !interrupted && !process_ended(pid)) {
		if (tty && (long)(now() - start) != shown) {
			shown = now() - start;
			fprintf(stderr, "\rwatching %d: %ld of %ld s, ^C ends it ", pid, shown,
				seconds);
		}
		interrupted = sigtimedwait(&stop, NULL, &tick) == SIGINT;
	}
	if (tty && shown >= 0)
		fputs("\r\033[K", stderr);
	sigprocmask(SIG_SETMASK, &old, NULL);
	return now() - start;
}

static double pages_a_block(const struct group *group)
{
	return group->blocks ? (double)group->pages / group->blocks : 0;
}

/* What a group takes in granules of 64 KiB, in kB. It is what it is if that is fixed. */
static unsigned long kb_in_granules(const struct group *group)
{
	if (group->kind != KIND_ANON)
		return group->kb;
	return group->blocks * (GRANULE_SZ / 1024) + group->edge_pages * (PAGE_SZ / 1024) +
	       group->unseen;
}

static double growth(unsigned long kb, unsigned long then)
{
	return kb ? 100.0 * ((double)then - kb) / kb : 0;
}

static enum verdict group_verdict(const struct group *group)
{
	const double used = pages_a_block(group);

	if (group->kind != KIND_ANON)
		return VERDICT_NO;
	return used >= YES_PAGES ? VERDICT_YES : used >= MAYBE_PAGES ? VERDICT_MAYBE : VERDICT_NO;
}

static void print_group(const struct group *group, double seconds, bool written)
{
	static const char * const words[] = { "no", "maybe", "yes" };
	const unsigned long then = kb_in_granules(group);
	const double used = pages_a_block(group);
	unsigned long entries;

	print_name(group->name, -1);
	if (group->kind == KIND_TAGGED || group->kind == KIND_HUGE) {
		printf(": already, %s\n", human(group->kb));
		return;
	}
	if (group->kind == KIND_OTHER) {
		printf(": no, %s stay at 4 kB\n", human(group->kb));
		return;
	}
	if (group->kind == KIND_FILE) {
		printf(": in granules too, %s, at best %lu TLB entries instead of %lu\n",
		       human(group->kb), group->blocks + group->edge_pages,
		       group->pages + group->edge_pages);
		return;
	}
	if (!group->blocks)
		printf(": no, %s that no 64 kB block holds\n", human(group->kb));
	else if (group->kind == KIND_NOHUGE)
		printf(": no, %.1f of 16 pages in use, and they ask for no huge pages\n", used);
	else
		printf(": %s, %.1f of 16 pages in use, %+.0f %%\n", words[group_verdict(group)],
		       used, growth(group->kb, then));
	if (group->kind == KIND_NOHUGE || !group->blocks)
		return;
	printf("    %s, in granules %s; %lu faults instead of %lu\n", human(group->kb),
	       human(then), group->blocks + group->edge_pages, group->pages + group->edge_pages);
	/* What is in use is taken to be spread as evenly as what is referenced. */
	entries = group->referenced * 1024 / PAGE_SZ;
	if (seconds)
		printf("    in %.0f s: %s referenced, at best %lu TLB entries instead of %lu",
		       seconds, human(group->referenced),
		       (unsigned long)(entries / used + 0.999), entries);
	if (seconds && written)
		printf(", %s written", human(group->written * PAGE_SZ / 1024));
	if (seconds && group->new_pages)
		printf(", %s new", human(group->new_pages * PAGE_SZ / 1024));
	if (seconds)
		putchar('\n');
}

/* Quote a word for the shell. */
static void quote(FILE *out, const char *word)
{
	static const char plain[] = "%+,-./:=@_^";
	const char *p;

	for (p = word; isalnum((unsigned char)*p) || (*p && strchr(plain, *p)); p++)
		;
	if (*word && !*p) {
		fputs(word, out);
		return;
	}
	putc('\'', out);
	for (p = word; *p; p++) {
		if (*p == '\'')
			fputs("'\\''", out);
		else
			putc(*p, out);
	}
	putc('\'', out);
}

/* Is this the name of a program? Some processes write what they do over theirs. */
static bool is_program(const char *name)
{
	const char *dir, *path = getenv("PATH") ?: "/bin:/usr/bin";
	char file[PATH_MAX];
	int len;

	if (strchr(name, '/'))
		return !access(name, X_OK);
	for (dir = path; *dir; dir += len + !!dir[len]) {
		len = strcspn(dir, ":");
		snprintf(file, sizeof(file), "%.*s/%s", len, dir, name);
		if (!access(file, X_OK))
			return true;
	}
	return false;
}

/* The command line of a process as one types it, to be freed. NULL if one does not. */
static char *command_line(pid_t pid)
{
	FILE *in = open_proc(pid, "cmdline"), *out;
	char words[LONGEST_LINE], *line = NULL;
	size_t len, i, size;

	if (!in)
		return NULL;
	len = fread(words, 1, sizeof(words), in);
	fclose(in);
	if (!len || len == sizeof(words) || words[len - 1])
		return NULL;
	for (i = 0; i < len; i++) {
		if (words[i] && unprintable(words + i))
			return NULL;
	}
	if (!is_program(words))
		return NULL;
	out = must(open_memstream(&line, &size));
	for (i = 0; i < len; i += strlen(words + i) + 1) {
		if (i)
			putc(' ', out);
		quote(out, words + i);
	}
	fclose(out);
	return line;
}

/* Whatever its memory is like, would the program have no granules? */
static const char *why_none(const struct process *proc)
{
	unsigned char ident[5] = { 0 };
	struct stat st;
	char path[64];
	int fd;

	if (proc->thp_disabled)
		return "PR_SET_THP_DISABLE is set for it";
	snprintf(path, sizeof(path), "/proc/%d/exe", proc->pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return NULL;
	if (read(fd, ident, sizeof(ident)) != sizeof(ident) || fstat(fd, &st))
		st.st_mode = 0;
	close(fd);
	if (ident[4] == 1)
		return "a 32-bit program has no granules";
	if (st.st_mode & S_ISUID)
		return "a set-user-ID program starts with 4 KiB";
	return NULL;
}

/* How much more the cgroup of a process may take, in kB, if it has a limit that is known */
static unsigned long cgroup_room(pid_t pid)
{
	char path[PATH_MAX], line[PATH_MAX / 2], text[32];
	unsigned long max, now, room = ULONG_MAX;
	FILE *fp = open_proc(pid, "cgroup");
	char *dir = NULL, *slash;

	while (fp && !dir && fgets(line, sizeof(line), fp)) {
		line[strcspn(line, "\n")] = '\0';
		if (!strncmp(line, "0::/", 4))
			dir = line + 3;
	}
	if (fp)
		fclose(fp);
	for (; dir && *dir; *slash = '\0') {
		slash = strrchr(dir, '/');
		snprintf(path, sizeof(path), "/sys/fs/cgroup%s/memory.max", dir);
		if (!slash || !read_text(path, text, sizeof(text)) || !strcmp(text, "max"))
			goto next;
		max = strtoul(text, NULL, 10);
		snprintf(path, sizeof(path), "/sys/fs/cgroup%s/memory.current", dir);
		if (!read_text(path, text, sizeof(text)))
			goto next;
		now = strtoul(text, NULL, 10);
		if (room > (max > now ? max - now : 0) / 1024)
			room = (max > now ? max - now : 0) / 1024;
next:
		if (!slash)
			break;
	}
	return room;
}

/* What to type, and what may be in the way of it */
static void print_command(pid_t pid, const char *line, unsigned long more)
{
	const unsigned long room = cgroup_room(pid);

	if (more > room)
		printf("but: its memory cgroup has room for %s\n", human(room));
	printf("type: granule run -- %s\n", line ?: "COMMAND");
}

static void print_verdict(const struct process *proc, const struct report *report,
			  const char *line)
{
	unsigned long then = 0, anon = 0, good = 0, fair = 0, heap = 0, huge = 0, tagged = 0;
	const char *why = why_none(proc);
	unsigned long more;
	double grown;
	size_t i;

	for (i = 0; i < report->nr; i++) {
		const struct group *group = &report->groups[i];
		const enum verdict verdict = group_verdict(group);

		then += kb_in_granules(group);
		if (group->kind == KIND_ANON)
			anon += group->kb;
		if (group->kind == KIND_TAGGED)
			tagged += group->kb;
		if (group->kind == KIND_HUGE)
			huge += group->kb;
		if (verdict != VERDICT_NO)
			fair += group->kb;
		if (verdict == VERDICT_YES)
			good += group->kb;
		if (verdict == VERDICT_YES && !strcmp(group->name, "heap"))
			heap += group->kb;
	}
	grown = growth(report->kb, then);
	more = then > report->kb ? then - report->kb : 0;
	printf("\nmemory: %lu kB now, %lu kB in granules of 64 KiB, %+.0f %%\n", report->kb, then,
	       grown);
	if (tagged >= LITTLE_KB && tagged >= anon) {
		puts("verdict: already, most of it is in granules");
		printf("type: granule show %d\n", proc->pid);
	} else if (why) {
		printf("verdict: no, %s\n", why);
		puts("type: nothing, it would have 4 kB");
	} else if (huge >= LITTLE_KB && huge >= anon) {
		puts("verdict: no, most of it is in huge pages, which are larger");
		puts("type: nothing, what it has is right for it");
	} else if (anon < LITTLE_KB) {
		printf("verdict: no, there is little to gain with %s\n", human(anon));
		puts("type: nothing, 4 kB is right for it");
	} else if (grown <= YES_GROWTH && good >= anon / 2) {
		printf("verdict: yes, %s for %s of dense memory\n", human(more),
		       human(good));
		print_command(proc->pid, line, more);
	} else if (good - heap >= LITTLE_KB) {
		printf("verdict: in part, %s is dense and the rest is not\n", human(good));
		puts("type: MAP_GRANULE_64KB, in the mmap() of what says yes above");
	} else if (good >= LITTLE_KB) {
		printf("verdict: in part, the heap of %s is dense and the rest is not\n",
		       human(heap));
		puts("type: prctl(PR_SET_PAGE_GRANULE, PR_GRANULE_MMAP, 65536, 0, 0) in main()");
	} else if (grown <= MAYBE_GROWTH && fair >= anon / 2) {
		printf("verdict: maybe, if faults and TLB misses matter more than %s\n",
		       human(more));
		print_command(proc->pid, line, more);
	} else {
		printf("verdict: no, it would take %s more\n", human(more));
		puts("type: nothing, 4 kB is right for it");
	}
}

/*
 * Tells one life of a process from the next: when it was started, and what of the
 * memory of its program execve() places anew. It is for comparison only.
 */
static void read_identity(pid_t pid, char *text, size_t size)
{
	FILE *fp = open_proc(pid, "stat");
	char line[1024], *word;
	size_t len = 0;
	int i = 3;

	*text = '\0';
	if (fp && fgets(line, sizeof(line), fp)) {
		word = strrchr(line, ')');
		for (word = strtok(word ? word + 1 : line, " "); word; word = strtok(NULL, " ")) {
			/* starttime, startcode and startstack, as proc(5) counts them */
			if ((i == 22 || i == 26 || i == 28) && len < size)
				len += snprintf(text + len, size - len, "%s ", word);
			i++;
		}
	}
	if (fp)
		fclose(fp);
}

static int advise(pid_t pid, long seconds)
{
	struct report before = { 0 }, after = { 0 }, *report = &before;
	struct process proc, again;
	const bool written = tells_written();
	char first[100], second[100], enabled[16];
	double watched = 0;
	bool ended = false;
	char *line;
	size_t i;
	int ret = EXIT_SUCCESS;

	read_identity(pid, first, sizeof(first));
	if (!open_process(&proc, pid))
		return EXIT_FAILURE;
	look(&proc, &before);
	line = command_line(pid);
	printf("%d ", pid);
	print_name(proc.comm, -1);
	putchar('\n');
	if (seconds) {
		printf("This resets which pages of %d are referenced and soft-dirty.\n", pid);
		if (!reset_bits(pid, "4") || !reset_bits(pid, "1")) {
			ret = EXIT_FAILURE;
			goto out;
		}
		watched = watch(pid, seconds);
	}
	read_identity(pid, second, sizeof(second));
	if (seconds && !process_ended(pid) && !strcmp(first, second) &&
	    open_process(&again, pid)) {
		look(&again, &after);
		/* Half a look is worse than the first one. */
		ended = again.ended;
		if (!ended) {
			report = &after;
			compare(&after, &before);
		}
		close_process(&again);
	} else if (seconds) {
		ended = true;
	}
	if (report == &before)
		watched = 0;
	putchar('\n');
	for (i = 0; i < report->nr; i++)
		print_group(&report->groups[i], watched, written);
	print_verdict(&proc, report, line);
	if (!kernel_has_granules())
		printf("But %s.\n", NO_KERNEL);
	else if (read_text(SYSFS "enabled", enabled, sizeof(enabled)) && !strcmp(enabled, "0"))
		printf("But %s.\n", granule_unoffered());
	proc.ended |= ended;
	ret = note_ended(&proc);
out:
	free(line);
	free(before.groups);
	free(after.groups);
	close_process(&proc);
	return ret;
}

int advise_main(int argc, char **argv)
{
	static const struct option longs[] = {
		{ "time", required_argument, NULL, 't' },
		{ "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	long seconds = 10;
	pid_t pid;

	while (next_option("advise", argc, argv, ":t:h", longs) != -1)
		seconds = parse_number("advise", "SECONDS", optarg, 0, 86400);
	pid = parse_pid("advise", argc, argv, true);
	if (sysconf(_SC_PAGESIZE) != PAGE_SZ) {
		complain("the base page is %ld kB here, and 4 kB where there are granules",
			 sysconf(_SC_PAGESIZE) / 1024);
		return EXIT_FAILURE;
	}
	return advise(pid, seconds);
}
