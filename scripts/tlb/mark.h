/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The marker: what a program in the guest tells the plugin in QEMU. The program
 * maps a page at MARK_ADDR, fills it in, and stores to its first words. Each store
 * is an order.
 */
#ifndef TLB_MARK_H
#define TLB_MARK_H

#include <stdint.h>

#define MARK_ADDR	0x135700000000ULL

/* Where the loads have their memory, and their stack. */
#define MARK_AREA	0x200000000000ULL
#define MARK_STACK	0x135710000000ULL
#define MARK_STACK_LEN	(2 * 65536UL)

/* Which word is stored to says what is ordered. */
#define MARK_START	0	/* record from here, to warm caches up */
#define MARK_COUNT	8	/* misses count from here */
#define MARK_STOP	16

struct mark {
	uint64_t order[3];	/* what is stored does not matter */
	uint64_t page_size;	/* of the guest's kernel */
	/*
	 * Whose accesses: those of the address space that has the page "phys" at
	 * "virt". Both 0: of the one that the marker is in.
	 */
	uint64_t virt;
	uint64_t phys;
	/* Count after so many instructions of it, and stop; 0: by orders alone. */
	uint64_t warm;
	uint64_t limit;
	char label[128];	/* names the files, and is copied into them */
};

#endif /* TLB_MARK_H */
