// SPDX-License-Identifier: GPL-2.0
/*
 * granule supported: the granules on offer, and what limits them.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "granule.h"

/* Why does the kernel refuse a request for 64 KiB? errno is what it says. */
const char *granule_unoffered(void)
{
	const int error = errno;
	char text[16];

	if (read_text(SYSFS "enabled", text, sizeof(text)) && !strcmp(text, "0"))
		return "granules are disabled; root can: echo 1 >" SYSFS "enabled";
	if (sizeof(long) < 8)
		return "this is a 32-bit program, which has no granules; use a 64-bit one";
	if (error != EOPNOTSUPP)
		return "this program may not ask for it; see what keeps it from prctl()";
	return "this CPU has no huge pages, which granules need";
}

/* Does the CPU make one TLB entry of a run? Only the documented cases are known. */
static const char *coalescing(void)
{
#if defined(__aarch64__)
	return "known: the contiguous bit is set, for which CPUs may use one TLB entry";
#elif defined(__x86_64__)
	char line[256], vendor[32] = "";
	unsigned int family = 0;
	FILE *fp = fopen("/proc/cpuinfo", "re");

	while (fp && fgets(line, sizeof(line), fp)) {
		if (sscanf(line, "vendor_id : %31s", vendor) == 1)
			continue;
		if (sscanf(line, "cpu family : %u", &family) == 1)
			break;
	}
	if (fp)
		fclose(fp);
	if ((!strcmp(vendor, "AuthenticAMD") && family >= 0x17) ||
	    !strcmp(vendor, "HygonGenuine"))
		return "known: Zen makes TLB entries of 16 or 32 KiB of a run";
	return "not known: expect fewer faults and flushes, not fewer TLB misses";
#else
	return "not known: there are no granules on this architecture";
#endif
}

/* The value in brackets, of a file that lists all that there are */
static const char *chosen(const char *path, char *buf, size_t size)
{
	char *start;

	if (!read_text(path, buf, size))
		return "not there";
	start = strchr(buf, '[');
	if (!start)
		return buf;
	start++;
	start[strcspn(start, "]")] = '\0';
	return start;
}

int supported_main(int argc, char **argv)
{
	static const struct option longs[] = {
		{ "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	const bool kernel = kernel_has_granules();
	char enabled[16], sizes[32], thp[128], defrag[128];
	const char *why = NULL;
	long old;

	next_option("supported", argc, argv, ":h", longs);
	if (optind != argc)
		usage("supported", "it takes no argument, and not '%s'", argv[optind]);

	if (!kernel) {
		why = NO_KERNEL;
	} else {
		/* The answer is in a request: for this process only, which ends now. */
		old = prctl(PR_GET_PAGE_GRANULE, PR_GRANULE_EXEC, 0UL, 0UL, 0UL);
		if (prctl(PR_SET_PAGE_GRANULE, PR_GRANULE_EXEC, GRANULE_SZ, 0UL, 0UL))
			why = granule_unoffered();
		else
			prctl(PR_SET_PAGE_GRANULE, PR_GRANULE_EXEC, old, 0UL, 0UL);
	}

	printf("sizes       %s\n", why ? "4 kB" : "4 kB, 64 kB");
	printf("kernel      %s\n", kernel ? "has page granules" : "has no page granules");
	if (kernel) {
		printf("sizes_kb    %s\n", read_text(SYSFS "sizes_kb", sizes, sizeof(sizes)) ?
					   sizes : "cannot be read; mount sysfs on /sys");
		printf("enabled     %s\n", read_text(SYSFS "enabled", enabled, sizeof(enabled)) ?
					   enabled : "cannot be read; mount sysfs on /sys");
	}
	printf("coalescing  %s\n", coalescing());
	printf("THP         enabled %s, which granules need not\n",
	       chosen(THP "enabled", thp, sizeof(thp)));
	printf("defrag      %s, which says how hard a block of 64 kB is looked for\n",
	       chosen(THP "defrag", defrag, sizeof(defrag)));
	if (prctl(PR_GET_THP_DISABLE, 0UL, 0UL, 0UL, 0UL) > 0)
		puts("this shell  has THP disabled: programs that it starts use 4 KiB by default");
	if (why)
		complain("no 64 KiB: %s", why);
	return why ? EXIT_FAILURE : EXIT_SUCCESS;
}
