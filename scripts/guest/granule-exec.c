// SPDX-License-Identifier: GPL-2.0
/*
 * granule-exec SIZE COMMAND ARGS: run COMMAND, and all that it starts, with
 * SIZE as the default granule of their mappings.
 */
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <unistd.h>

#define PR_SET_PAGE_GRANULE	0x53504752
#define PR_GRANULE_EXEC		1

int main(int argc, char **argv)
{
	if (argc < 3) {
		fprintf(stderr, "usage: granule-exec SIZE COMMAND ARGS\n");
		return 125;
	}
	if (prctl(PR_SET_PAGE_GRANULE, PR_GRANULE_EXEC,
		  strtoul(argv[1], NULL, 0), 0, 0)) {
		perror("granule-exec: PR_SET_PAGE_GRANULE");
		return 125;
	}
	execvp(argv[2], argv + 2);
	perror(argv[2]);
	return 127;
}
