// SPDX-License-Identifier: GPL-2.0
/*
 * granule run: execute a program that has a granule for its default.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "granule.h"

static unsigned long parse_size(const char *text)
{
	static const struct {
		const char *text;
		unsigned long size;
	} sizes[] = {
		{ "4k", PAGE_SZ }, { "4K", PAGE_SZ }, { "4096", PAGE_SZ },
		{ "64k", GRANULE_SZ }, { "64K", GRANULE_SZ }, { "65536", GRANULE_SZ },
	};
	size_t i;

	for (i = 0; i < ARRAY_SIZE(sizes); i++) {
		if (!strcmp(text, sizes[i].text))
			return sizes[i].size;
	}
	usage("run", "a granule is 64k or 4k, not '%s'", text);
}

/* Set the granule of what is executed. Returns why that will have none, or NULL. */
static const char *set_granule(unsigned long size)
{
	const bool large = size == GRANULE_SZ;

	if (prctl(PR_SET_PAGE_GRANULE, PR_GRANULE_EXEC, size, 0UL, 0UL)) {
		/* 4 KiB is all that a kernel without granules has. */
		if (errno == EINVAL)
			return large ? NO_KERNEL : NULL;
		return granule_unoffered();
	}
	/* execve() keeps it, and it makes tagged memory behave as untagged. */
	if (large && prctl(PR_GET_THP_DISABLE, 0UL, 0UL, 0UL, 0UL) > 0)
		return "PR_SET_THP_DISABLE is set for this process; start it from one without";
	return NULL;
}

int run_main(int argc, char **argv)
{
	static const struct option longs[] = {
		{ "size", required_argument, NULL, 's' },
		{ "require", no_argument, NULL, 'r' },
		{ "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	unsigned long size = GRANULE_SZ;
	bool require = false;
	const char *why;
	int opt, error;

	/* What follows COMMAND belongs to it. */
	while ((opt = next_option("run", argc, argv, "+:s:h", longs)) != -1) {
		if (opt == 's')
			size = parse_size(optarg);
		else
			require = true;
	}
	if (optind == argc)
		usage("run", "which command?");

	why = set_granule(size);
	if (why && require) {
		complain("not run, it would have 4 KiB: %s", why);
		return EXIT_TOOL;
	}
	if (why)
		complain("runs with 4 KiB: %s", why);

	execvp(argv[optind], argv + optind);
	error = errno;
	complain("%s: %s", argv[optind], strerror(error));
	return error == ENOENT ? EXIT_NOT_FOUND : EXIT_NOT_EXECUTABLE;
}
