// SPDX-License-Identifier: GPL-2.0
/*
 * granule: run programs with page granules of 64 KiB, see what became of them, and
 * find out which programs gain from them.
 *
 * See Documentation/tools/granule.rst for how to use it, and
 * Documentation/admin-guide/mm/page_granule.rst for what a granule is. Apart from
 * "run" and "collapse" it only reads /proc and /sys, so most of it works on any kernel.
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "granule.h"

static const char *message_verb;
static int write_error;

void begin_message(const char *verb)
{
	const int saved = errno;

	message_verb = verb;
	/* In order, also where both go to one file. */
	if (fflush(stdout))
		write_error = errno;
	fprintf(stderr, "granule%s%s: ", verb ? " " : "", verb ?: "");
	/* The rest of the message may ask for it. */
	errno = saved;
}

void *must(void *ptr)
{
	if (!ptr) {
		complain("out of memory");
		exit(EXIT_FAILURE);
	}
	return ptr;
}

static void print_help(FILE *out)
{
	fputs("usage: granule VERB [OPTION]... [ARGUMENT]...\n"
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
	      "itself, 126 if COMMAND cannot be executed and 127 if it is not found.\n",
	      out);
}

static const struct {
	const char *verb;
	const char *args;
} usages[] = {
	{ "run", "[-s 64k|4k] [--require] [--] COMMAND [ARG]..." },
	{ "show", "[--all] [--json] [PID]" },
	{ "map", "[--no-color] PID" },
	{ "collapse", "PID" },
	{ "advise", "[-t SECONDS] PID" },
	{ "stat", "[SECONDS [COUNT]]" },
	{ "supported", "" },
};

/* After the line that says what is wrong, one that says what is right. Returns the exit status. */
int end_usage(void)
{
	const char *verb = message_verb;
	size_t i;

	fputs("\nusage: granule ", stderr);
	for (i = 0; verb && i < ARRAY_SIZE(usages); i++) {
		if (!strcmp(verb, usages[i].verb))
			fprintf(stderr, "%s %s\n", verb, usages[i].args);
	}
	if (!verb)
		fputs("run|show|map|collapse|advise|stat|supported ..., see granule --help\n",
		      stderr);
	return verb && !strcmp(verb, "run") ? EXIT_TOOL : EXIT_USAGE;
}

/* Returns the exit status: a full disk must not look like success. */
static int end_output(int status)
{
	if (fflush(stdout))
		write_error = errno;
	if (!ferror(stdout))
		return status;
	complain("cannot write the output: %s", strerror(write_error ?: EIO));
	return EXIT_FAILURE;
}

/* getopt_long() with messages of our own: it says what, usage() says what else. */
int next_option(const char *verb, int argc, char **argv, const char *shorts,
		const struct option *longs)
{
	const int at = optind;
	const char *word;
	int opt;

	opterr = 0;
	opt = getopt_long(argc, argv, shorts, longs, NULL);
	if (opt == 'h') {
		print_help(stdout);
		exit(end_output(EXIT_SUCCESS));
	}
	if (opt == ':')
		usage(verb, "option '%s' needs a value", argv[optind - 1]);
	if (opt == '?') {
		word = argv[optind > at ? optind - 1 : at];
		if (!strncmp(word, "--", 2) && optopt)
			usage(verb, "option '%.*s' takes no value",
			      (int)strcspn(word, "="), word);
		if (!strncmp(word, "--", 2))
			usage(verb, "there is no option '%s'", word);
		usage(verb, "there is no option '-%c'", isprint(optopt) ? optopt : '?');
	}
	return opt;
}

long parse_number(const char *verb, const char *what, const char *text, long min,
		  long max)
{
	char *end;
	long val;

	errno = 0;
	val = strtol(text, &end, 10);
	if (!isdigit((unsigned char)*text) || *end || errno || val < min || val > max)
		usage(verb, "%s is a number from %ld to %ld, not '%s'", what, min, max, text);
	return val;
}

pid_t parse_pid(const char *verb, int argc, char **argv, bool needed)
{
	if (argc - optind > 1)
		usage(verb, "one PID is enough: '%s' is too much", argv[optind + 1]);
	if (argc - optind == 1)
		return parse_number(verb, "a PID", argv[optind], 1, INT_MAX);
	if (needed)
		usage(verb, "which process? Give its PID");
	return 0;
}

/* How many bytes at @text would a terminal take for a command? */
int unprintable(const char *text)
{
	const unsigned char *s = (const unsigned char *)text;

	/* The second set of control characters is two bytes each in UTF-8. */
	if (s[0] == 0xc2 && s[1] >= 0x80 && s[1] < 0xa0)
		return 2;
	return *s < ' ' || *s == 0x7f;
}

/* Names are what programs make them. At most @max bytes, unless that is -1. */
void print_name(const char *name, int max)
{
	int skip;

	for (; *name && max; name += skip ?: 1, max--) {
		skip = unprintable(name);
		putchar(skip ? '?' : *name);
	}
}

/* How many bytes of UTF-8 are one character? 0 if they are none. */
static int utf8_len(const unsigned char *s)
{
	int i, len;

	if (*s < 0x80)
		return 1;
	if (*s < 0xc2 || *s > 0xf4)
		return 0;
	len = *s < 0xe0 ? 2 : *s < 0xf0 ? 3 : 4;
	for (i = 1; i < len; i++) {
		if ((s[i] & 0xc0) != 0x80)
			return 0;
	}
	/* Overlong forms, surrogates, and what is beyond the last code point */
	if ((*s == 0xe0 && s[1] < 0xa0) || (*s == 0xed && s[1] > 0x9f) ||
	    (*s == 0xf0 && s[1] < 0x90) || (*s == 0xf4 && s[1] > 0x8f))
		return 0;
	return len;
}

void json_string(const char *text)
{
	const unsigned char *s = (const unsigned char *)text;
	int len;

	putchar('"');
	for (; *s; s += len ?: 1) {
		len = utf8_len(s);
		if (!len)
			fputs("\\ufffd", stdout);
		else if (*s == '"' || *s == '\\')
			printf("\\%c", *s);
		else if (unprintable((const char *)s))
			printf("\\u%04x", len == 2 ? s[1] : s[0]);
		else
			fwrite(s, 1, len, stdout);
	}
	putchar('"');
}

/* A size for people, from one in kB */
const char *human(unsigned long kb)
{
	static const char units[] = "kMGT";
	static char text[4][24];
	static unsigned int turn;
	char *buf = text[turn++ % 4];
	double val = kb;
	size_t unit = 0;

	for (; val >= 10000 && units[unit + 1]; unit++)
		val /= 1024;
	snprintf(buf, sizeof(text[0]), val < 10 && unit ? "%.1f %cB" : "%.0f %cB", val,
		 units[unit]);
	return buf;
}

bool read_text(const char *path, char *buf, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t len;

	buf[0] = '\0';
	if (fd < 0)
		return false;
	len = read(fd, buf, size - 1);
	close(fd);
	if (len < 0)
		return false;
	buf[len] = '\0';
	buf[strcspn(buf, "\n")] = '\0';
	return true;
}

bool kernel_has_granules(void)
{
	return prctl(PR_GET_PAGE_GRANULE, PR_GRANULE_MMAP, 0UL, 0UL, 0UL) >= 0;
}

int main(int argc, char **argv)
{
	static const struct {
		const char *verb;
		int (*main)(int argc, char **argv);
	} verbs[] = {
		{ "run", run_main },
		{ "show", show_main },
		{ "map", map_main },
		{ "collapse", collapse_main },
		{ "advise", advise_main },
		{ "stat", stat_main },
		{ "supported", supported_main },
	};
	size_t i;

	if (argc < 2)
		usage(NULL, "what to do?");
	if (!strcmp(argv[1], "-h") || !strcmp(argv[1], "--help") || !strcmp(argv[1], "help")) {
		print_help(stdout);
		return end_output(EXIT_SUCCESS);
	}
	for (i = 0; i < ARRAY_SIZE(verbs); i++) {
		if (strcmp(argv[1], verbs[i].verb))
			continue;
		return end_output(verbs[i].main(argc - 1, argv + 1));
	}
	usage(NULL, "there is no verb '%s'", argv[1]);
}
