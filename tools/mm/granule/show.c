// SPDX-License-Identifier: GPL-2.0
/*
 * granule show: the granules of one process, or who has any.
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "granule.h"

/* Sums over mappings, in kB */
struct sum {
	unsigned long size;
	unsigned long rss;
	unsigned long whole;
	struct tally tally;
};

static unsigned int percent(unsigned long part, unsigned long all)
{
	return all ? part * 100 / all : 0;
}

static void print_whys(const struct tally *tally, int indent)
{
	const char *comma = "";
	int i;

	printf("%*s", indent, "");
	for (i = 0; i < NR_WHYS; i++) {
		if (tally->whys[i]) {
			printf("%s%lu %s", comma, tally->whys[i], why_text[i]);
			comma = ", ";
		}
	}
	putchar('\n');
}

static void print_mapping(const struct vma *vma, const struct tally *tally)
{
	printf("%-12lx %9lu %-8s %9lu ", vma->start, (vma->end - vma->start) / 1024,
	       vma_kind(vma), vma->rss);
	if (in_granules(vma))
		printf("%9lu %3u%% %7lu ", vma->granule_mapped,
		       percent(vma->granule_mapped, vma->rss), tally->states[BROKEN]);
	else
		printf("%9s %4s %7s ", "-", "-", "-");
	print_name(*vma->name ? vma->name : "-", -1);
	putchar('\n');
	if (tally->states[BROKEN])
		print_whys(tally, 24);
}

static void json_tally(const struct tally *tally)
{
	int i;

	printf("\"whole\":%lu,\"broken\":%lu,\"empty\":%lu,\"swapped\":%lu,\"zero\":%lu,\"why\":{",
	       tally->states[WHOLE], tally->states[BROKEN], tally->states[EMPTY],
	       tally->states[SWAPPED], tally->states[ZERO]);
	for (i = 0; i < NR_WHYS; i++)
		printf("%s\"%s\":%lu", i ? "," : "", why_name[i], tally->whys[i]);
	putchar('}');
}

static void json_mapping(const struct vma *vma, const struct tally *tally, bool first)
{
	printf("%s\n  {\"start\":\"0x%lx\",\"end\":\"0x%lx\",\"kind\":\"%s\",\"name\":",
	       first ? "" : ",", vma->start, vma->end, vma_kind(vma));
	json_string(vma->name);
	printf(",\"size_kb\":%lu,\"rss_kb\":%lu,\"swap_kb\":%lu,",
	       (vma->end - vma->start) / 1024, vma->rss, vma->swap);
	printf("\"granule_kb\":%lu,\"granule_mapped_kb\":%lu,", vma->granule,
	       vma->granule_mapped);
	json_tally(tally);
	putchar('}');
}

static void print_process(const struct process *proc, bool json, bool pfns)
{
	if (json) {
		printf("{\"pid\":%d,\"command\":", proc->pid);
		json_string(proc->comm);
		printf(",\"granule_kb\":%lu,\"exec_granule_kb\":%lu,\"pfns\":%s,\"mappings\":[",
		       proc->mmap_kb, proc->exec_kb, pfns ? "true" : "false");
		return;
	}
	printf("%d ", proc->pid);
	print_name(proc->comm, -1);
	if (proc->mmap_kb)
		printf(": new mappings %lu kB, programs it starts %lu kB\n\n", proc->mmap_kb,
		       proc->exec_kb);
	else
		puts(": " NO_KERNEL "\n");
	printf("%-12s %9s %-8s %9s %9s %4s %7s %s\n", "ADDRESS", "SIZE", "KIND", "RESIDENT",
	       "WHOLE", "", "BROKEN", "NAME");
}

static void print_sum(const struct process *proc, const struct sum *sum, bool json, bool pfns)
{
	if (json) {
		printf("\n ],\"total\":{\"size_kb\":%lu,\"rss_kb\":%lu,\"granule_mapped_kb\":%lu,",
		       sum->size, sum->rss, sum->whole);
		json_tally(&sum->tally);
		printf("},\"ended\":%s}\n", proc->ended ? "true" : "false");
		return;
	}
	printf("%-12s %9lu %-8s %9lu %9lu %3u%% %7lu sizes in kB\n", "tagged", sum->size, "",
	       sum->rss, sum->whole, percent(sum->whole, sum->rss), sum->tally.states[BROKEN]);
	if (sum->tally.states[BROKEN])
		print_whys(&sum->tally, 24);
	if (!sum->size)
		printf("no mapping is tagged%s\n", proc->mmap_kb == 64 ? "" :
		       "; start the program by \"granule run\"");
	if (!pfns && sum->tally.whys[WHY_UNKNOWN])
		puts("Why pages that are all there are no run, only root may see.");
}

static int show_process(pid_t pid, bool all, bool json)
{
	struct process proc;
	const bool pfns = may_see_pfns();
	struct sum sum = { 0 };
	struct tally tally;
	bool first = true;
	size_t i;
	int ret;

	if (!open_process(&proc, pid))
		return EXIT_FAILURE;
	print_process(&proc, json, pfns);
	for (i = 0; i < proc.nr_vmas && !proc.ended; i++) {
		const struct vma *vma = &proc.vmas[i];

		if (!vma->tagged && !all)
			continue;
		tally = (struct tally){ .pfns = pfns };
		if (vma->tagged) {
			tally_vma(&proc, vma, &tally);
			/* What was not read is neither empty nor broken. */
			if (proc.ended)
				break;
			tally_add(&sum.tally, &tally);
		}
		if (vma->tagged) {
			sum.size += (vma->end - vma->start) / 1024;
			sum.rss += vma->rss;
			sum.whole += vma->granule_mapped;
		}
		if (json)
			json_mapping(vma, &tally, first);
		else
			print_mapping(vma, &tally);
		first = false;
	}
	print_sum(&proc, &sum, json, pfns);
	ret = note_ended(&proc);
	close_process(&proc);
	return ret;
}

/* A line of the list of processes. Sizes are in kB. */
struct user {
	pid_t pid;
	char comm[64];
	unsigned long mmap_kb;
	unsigned long exec_kb;
	unsigned long rss;
	unsigned long tagged_rss;
	unsigned long whole;
};

/* Is there a tagged mapping? Returns -EACCES where that cannot be asked. */
static int has_tagged(pid_t pid)
{
	struct procmap_query query = {
		.size = sizeof(query),
		.query_flags = QUERY_GRANULE | QUERY_NEXT_VMA,
	};
	char path[64];
	int fd, ret;

	snprintf(path, sizeof(path), "/proc/%d/maps", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return errno == EACCES || errno == EPERM ? -EACCES : 0;
	ret = !ioctl(fd, PROCMAP_QUERY, &query);
	close(fd);
	return ret;
}

static bool read_user(pid_t pid, struct user *user)
{
	struct process proc = { .pid = pid, .pagemap = -1 };
	size_t i;

	read_comm(&proc);
	read_status(&proc);
	if (read_smaps(&proc))
		return false;
	*user = (struct user){
		.pid = pid, .mmap_kb = proc.mmap_kb, .exec_kb = proc.exec_kb,
	};
	memcpy(user->comm, proc.comm, sizeof(user->comm));
	for (i = 0; i < proc.nr_vmas; i++) {
		user->rss += proc.vmas[i].rss;
		if (proc.vmas[i].tagged) {
			user->tagged_rss += proc.vmas[i].rss;
			user->whole += proc.vmas[i].granule_mapped;
		}
	}
	close_process(&proc);
	return true;
}

static int most_memory_first(const void *a, const void *b)
{
	const struct user *x = a, *y = b;

	if (x->tagged_rss != y->tagged_rss)
		return x->tagged_rss < y->tagged_rss ? 1 : -1;
	return x->pid - y->pid;
}

static void print_user(const struct user *user, bool json, bool first)
{
	if (json) {
		printf("%s\n  {\"pid\":%d,\"command\":", first ? "" : ",", user->pid);
		json_string(user->comm);
		printf(",\"granule_kb\":%lu,\"exec_granule_kb\":%lu,\"rss_kb\":%lu,",
		       user->mmap_kb, user->exec_kb, user->rss);
		printf("\"tagged_rss_kb\":%lu,\"granule_mapped_kb\":%lu}", user->tagged_rss,
		       user->whole);
		return;
	}
	printf("%7d %9lu %9lu %9lu %3u%% %4lu %4lu ", user->pid, user->rss, user->tagged_rss,
	       user->whole, percent(user->whole, user->tagged_rss), user->mmap_kb,
	       user->exec_kb);
	print_name(user->comm, -1);
	putchar('\n');
}

static int show_all(bool json)
{
	struct user *users = NULL;
	size_t nr = 0, room = 0, i, unreadable = 0;
	DIR *dir = opendir("/proc");
	struct dirent *entry;
	int tagged;

	if (!dir) {
		complain("/proc: %s; mount it", strerror(errno));
		return EXIT_FAILURE;
	}
	while ((entry = readdir(dir))) {
		if (!isdigit((unsigned char)entry->d_name[0]))
			continue;
		tagged = has_tagged(atoi(entry->d_name));
		if (tagged == -EACCES)
			unreadable++;
		if (tagged <= 0)
			continue;
		if (nr == room) {
			room = room ? 2 * room : 16;
			users = must(realloc(users, room * sizeof(*users)));
		}
		nr += read_user(atoi(entry->d_name), &users[nr]);
	}
	closedir(dir);
	if (nr)
		qsort(users, nr, sizeof(*users), most_memory_first);

	if (json)
		fputs("{\"processes\":[", stdout);
	else if (nr)
		printf("%7s %9s %9s %9s %4s %4s %4s %s\n", "PID", "RESIDENT", "TAGGED", "WHOLE",
		       "", "NEW", "EXEC", "COMMAND (sizes in kB)");
	for (i = 0; i < nr; i++)
		print_user(&users[i], json, !i);
	if (json)
		printf("\n ],\"unreadable\":%zu}\n", unreadable);
	else if (!nr)
		puts("no process that can be seen has granules; start one by \"granule run\"");
	if (unreadable)
		complain("%zu processes of others cannot be looked at; be root", unreadable);
	free(users);
	return EXIT_SUCCESS;
}

int show_main(int argc, char **argv)
{
	static const struct option longs[] = {
		{ "all", no_argument, NULL, 'a' },
		{ "json", no_argument, NULL, 'j' },
		{ "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	bool all = false, json = false;
	pid_t pid;
	int opt;

	while ((opt = next_option("show", argc, argv, ":h", longs)) != -1) {
		all |= opt == 'a';
		json |= opt == 'j';
	}
	pid = parse_pid("show", argc, argv, false);
	if (all && !pid)
		usage("show", "--all is for the mappings of one process; give its PID");
	/* The mappings themselves any kernel has. */
	if (!kernel_has_granules() && !all) {
		complain(NO_KERNEL);
		return EXIT_FAILURE;
	}
	return pid ? show_process(pid, all, json) : show_all(json);
}
