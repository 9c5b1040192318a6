// SPDX-License-Identifier: GPL-2.0
/*
 * The 32-bit program that page_granule_compat starts. It is built with nolibc,
 * so that a compiler for 32 bits is enough.
 */
#include "page_granule_compat.h"

int main(int argc, char **argv)
{
	if (argc != 4) {
		fprintf(stderr, "page_granule_compat_32: run page_granule_compat\n");
		return 4;
	}
	return compat_report_main(argv);
}
