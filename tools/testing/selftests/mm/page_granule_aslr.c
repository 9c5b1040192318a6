// SPDX-License-Identifier: GPL-2.0
/*
 * Page granule: what alignment costs in address space layout randomization.
 *
 * A program is started many times, with and without PR_GRANULE_EXEC, and the
 * bits in which its addresses differ are counted: the logarithm of the range
 * that they spread over, in steps of the lowest bit that ever changes.
 *
 * This program, which says where its mappings are, is one of those started. Of
 * a position-independent one no instruction is ever executed: it is an ELF
 * header and some zeroes, looked at by ptrace when execve() has loaded it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/auxvec.h>
#include <linux/elf.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kselftest.h"
#include "vm_util.h"
#include "page_granule_util.h"

#define NR_EXECS	200
#define RANDOMIZE	"/proc/sys/kernel/randomize_va_space"

enum place {
	MMAP_100K,
	MMAP_64K,
	MMAP_2M,
	MMAP_FILE,
	STACK,
	BRK,
	PIE,
	PIE_INTERP,
	PIE_BRK,
	NR_PLACES,
};

/* @loss: how many bits tagging may cost. */
static const struct {
	const char *name;
	unsigned int loss;
} places[NR_PLACES] = {
	[MMAP_100K]	= { "mmap, 100 KiB anonymous", 0 },
	[MMAP_64K]	= { "mmap, 64 KiB anonymous", 4 },
	[MMAP_2M]	= { "mmap, 2 MiB anonymous", 4 },
	[MMAP_FILE]	= { "mmap, 100 KiB of a file", 4 },
	[STACK]		= { "stack", 0 },
	[BRK]		= { "brk", 0 },
	[PIE]		= { "PIE", 4 },
	[PIE_INTERP]	= { "interpreter of the PIE", 4 },
	[PIE_BRK]	= { "brk, behind the PIE", 0 },
};

static unsigned long samples[2][NR_PLACES][NR_EXECS];

/* "--report": the program that is started, which writes where its memory is. */
static int report_main(void)
{
	unsigned long found[NR_PLACES] = {};
	int fd;

	fd = open("/proc/self/exe", O_RDONLY);
	if (fd < 0)
		return KSFT_FAIL;
	found[MMAP_100K] = (unsigned long)mmap(NULL, 100 << 10, PROT_NONE, ANON_FLAGS, -1, 0);
	found[MMAP_64K] = (unsigned long)mmap(NULL, GRANULE_SIZE, PROT_NONE, ANON_FLAGS, -1, 0);
	found[MMAP_2M] = (unsigned long)mmap(NULL, 2 << 20, PROT_NONE, ANON_FLAGS, -1, 0);
	found[MMAP_FILE] = (unsigned long)mmap(NULL, 100 << 10, PROT_READ, MAP_PRIVATE, fd, 0);
	found[STACK] = granule_stat_field(getpid(), GRANULE_STAT_STARTSTACK);
	found[BRK] = granule_stat_field(getpid(), GRANULE_STAT_START_BRK);
	if (write(STDOUT_FILENO, found, sizeof(found)) != sizeof(found))
		return KSFT_FAIL;
	return KSFT_PASS;
}

static bool sample_self(bool tagged, unsigned int nr)
{
	char *const argv[] = { "page_granule_aslr", "--report", NULL };
	char *const environment[] = { NULL };
	unsigned long found[NR_PLACES];
	int out[2], status, i;
	bool ok;
	pid_t pid;

	if (pipe2(out, O_CLOEXEC))
		return false;
	pid = vfork();
	if (!pid) {
		if (dup2(out[1], STDOUT_FILENO) < 0)
			_exit(11);
		execve("/proc/self/exe", argv, environment);
		_exit(12);
	}
	close(out[1]);
	ok = pid > 0 && read(out[0], found, sizeof(found)) == sizeof(found);
	close(out[0]);
	if (pid > 0 && (waitpid(pid, &status, 0) != pid || status))
		return false;
	for (i = MMAP_100K; ok && i <= BRK; i++)
		samples[tagged][i][nr] = found[i];
	return ok;
}

/*
 * A position-independent program, with @interp to load it unless that is NULL,
 * in a file that is open for reading: 128 KiB of text, a page of data, and a
 * bss.
 */
static int make_program(const char *interp)
{
	const unsigned long text = 2 * GRANULE_SIZE;
	struct {
		struct elf64_hdr ehdr;
		struct elf64_phdr phdr[3];
		char interp[64];
	} file = {
		.ehdr = {
			.e_ident = { ELFMAG0, ELFMAG1, ELFMAG2, ELFMAG3, ELFCLASS64,
				     ELFDATA2LSB, EV_CURRENT },
			.e_type = ET_DYN,
#ifdef __aarch64__
			.e_machine = EM_AARCH64,
#else
			.e_machine = EM_X86_64,
#endif
			.e_version = EV_CURRENT,
			.e_entry = BASE_SIZE,
			.e_phoff = sizeof(struct elf64_hdr),
			.e_ehsize = sizeof(struct elf64_hdr),
			.e_phentsize = sizeof(struct elf64_phdr),
			.e_phnum = interp ? 3 : 2,
		},
		.phdr = {
			{
				.p_type = PT_LOAD,
				.p_flags = PF_R | PF_X,
				.p_filesz = text,
				.p_memsz = text,
				.p_align = BASE_SIZE,
			}, {
				.p_type = PT_LOAD,
				.p_flags = PF_R | PF_W,
				.p_offset = text,
				.p_vaddr = text,
				.p_filesz = BASE_SIZE,
				.p_memsz = 3 * BASE_SIZE,
				.p_align = BASE_SIZE,
			}, {
				.p_type = PT_INTERP,
				.p_flags = PF_R,
				.p_offset = offsetof(typeof(file), interp),
				.p_filesz = interp ? strlen(interp) + 1 : 0,
			},
		},
	};
	int rw, fd = -1;
	char path[64];

	if (interp)
		strcpy(file.interp, interp);
	rw = memfd_create("page_granule_aslr", 0);
	if (rw < 0)
		return -1;
	/* A file that is open for writing cannot be executed. */
	snprintf(path, sizeof(path), "/proc/self/fd/%d", rw);
	if (write(rw, &file, sizeof(file)) == sizeof(file) &&
	    !ftruncate(rw, text + BASE_SIZE))
		fd = open(path, O_RDONLY);
	close(rw);
	return fd;
}

/* One value of the auxiliary vector, or 0. */
static unsigned long read_auxv(const char *pid, unsigned long type)
{
	unsigned long val = 0, aux[2];
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/%s/auxv", pid);
	fd = open(path, O_RDONLY);
	if (fd < 0)
		return 0;
	while (!val && read(fd, aux, sizeof(aux)) == sizeof(aux)) {
		if (aux[0] == type)
			val = aux[1];
	}
	close(fd);
	return val;
}

static bool sample_program(int fd, bool tagged, unsigned int nr)
{
	char *const argv[] = { "program", NULL };
	char *const environment[] = { NULL };
	char path[64], number[16];
	bool ok = false;
	int status;
	pid_t pid;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	pid = vfork();
	if (!pid) {
		if (ptrace(PTRACE_TRACEME, 0, NULL, NULL))
			_exit(11);
		execve(path, argv, environment);
		_exit(12);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		return false;
	if (!WIFSTOPPED(status)) {
		ksft_print_msg("PIE: wait status %#x\n", status);
		return false;
	}
	if (WSTOPSIG(status) == SIGTRAP) {
		snprintf(number, sizeof(number), "%d", pid);
		samples[tagged][PIE][nr] = read_auxv(number, AT_PHDR);
		samples[tagged][PIE_INTERP][nr] = read_auxv(number, AT_BASE);
		samples[tagged][PIE_BRK][nr] = granule_stat_field(pid, GRANULE_STAT_START_BRK);
		ok = samples[tagged][PIE][nr] && samples[tagged][PIE_INTERP][nr] &&
		     samples[tagged][PIE_BRK][nr];
	}
	kill(pid, SIGKILL);
	waitpid(pid, &status, 0);
	return ok;
}

/*
 * How random are addresses? @behind has the addresses of a random mapping that
 * they follow and that must not count twice.
 */
static double entropy(const unsigned long *sample, const unsigned long *behind,
		      unsigned long *step)
{
	unsigned long min = -1UL, max = 0, varying = 0, addr;
	unsigned int i;

	for (i = 0; i < NR_EXECS; i++) {
		varying |= sample[i] ^ sample[0];
		addr = sample[i] - (behind ? behind[i] : 0);
		if (addr < min)
			min = addr;
		if (addr > max)
			max = addr;
	}
	*step = varying & -varying;
	return varying ? log2((double)(max - min) / *step + 1) : 0;
}

static int saved_randomize;

static void restore_randomize(void)
{
	write_num(RANDOMIZE, saved_randomize);
}

static void require_randomization(void)
{
	/* The caller may have set ADDR_NO_RANDOMIZE. */
	personality(PER_LINUX);
	saved_randomize = read_num(RANDOMIZE);
	if (saved_randomize == 2)
		return;
	atexit(restore_randomize);
	write_num(RANDOMIZE, 2);
}

static void take_samples(void)
{
	int interp, pie, tagged;
	char path[64];
	unsigned int i;

	/* It is opened by a path, in the process that execs. */
	interp = make_program(NULL);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", interp);
	pie = make_program(path);
	if (interp < 0 || pie < 0)
		ksft_exit_fail_msg("cannot make a program: %s\n", strerror(errno));
	for (i = 0; i < NR_EXECS; i++) {
		for (tagged = 0; tagged < 2; tagged++) {
			if (granule_set(PR_GRANULE_EXEC, tagged ? GRANULE_SIZE : BASE_SIZE))
				ksft_exit_fail_msg("PR_GRANULE_EXEC: %s\n", strerror(errno));
			if (!sample_self(tagged, i) || !sample_program(pie, tagged, i))
				ksft_exit_fail_msg("exec %u failed\n", i);
		}
	}
	close(pie);
	close(interp);
}

int main(int argc, char **argv)
{
	unsigned long step[2], *behind;
	unsigned int i, tagged;
	double bits[2];

	if (argc == 2 && !strcmp(argv[1], "--report"))
		return report_main();

	ksft_print_header();
	granule_require();
	granule_save_settings();
	require_randomization();
	ksft_set_plan(NR_PLACES);
	take_samples();

	ksft_print_msg("bits of randomization and the step between addresses, %u execs\n",
		       NR_EXECS);
	ksft_print_msg("%-26s %8s %10s %8s %10s\n", "", "untagged", "step", "tagged", "step");
	for (i = 0; i < NR_PLACES; i++) {
		for (tagged = 0; tagged < 2; tagged++) {
			behind = i == PIE_BRK ? samples[tagged][PIE] : NULL;
			bits[tagged] = entropy(samples[tagged][i], behind, &step[tagged]);
		}
		ksft_print_msg("%-26s %8.1f %10lu %8.1f %10lu\n", places[i].name,
			       bits[0], step[0], bits[1], step[1]);
		/* With 200 samples the error is far less than half a bit. */
		ksft_test_result(bits[0] > 4 && bits[1] > bits[0] - places[i].loss - 0.5,
				 "%s: at most %u bits less\n", places[i].name, places[i].loss);
	}
	ksft_finished();
}
