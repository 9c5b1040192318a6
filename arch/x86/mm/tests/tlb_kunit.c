// SPDX-License-Identifier: GPL-2.0-only
/*
 * KUnit tests for ranged TLB flushes: they have to cover the range, whatever
 * its alignment and length, and however many entries one INVLPGB takes.
 */

#include <kunit/test.h>

#include <linux/mm.h>
#include <linux/sizes.h>

#include <asm/tlbflush.h>

#include "../mm_internal.h"

#define TEST_BASE	((unsigned long)SZ_4G * 3)

/* Starts at each page of two blocks of 64 KiB. */
#define TEST_STARTS	(2 * SZ_64K / PAGE_SIZE)

#define BLOCK_PAGES	(SZ_64K / PAGE_SIZE)

/* Twice the default ceiling. */
#define TEST_ENTRIES	66

static struct flush_tlb_info make_info(unsigned long start, unsigned long nr,
				       unsigned int shift)
{
	struct flush_tlb_info info;

	preempt_disable();
	init_flush_tlb_info(&info, NULL, start, start + (nr << shift), shift,
			    false, TLB_GENERATION_INVALID);
	preempt_enable();
	return info;
}

/* Up to the ceiling, entries are flushed one by one; above it, all are. */
static void ceiling_one(struct kunit *test, unsigned long start, unsigned long nr,
			unsigned int shift)
{
	const struct flush_tlb_info info = make_info(start, nr, shift);

	if (nr > tlb_single_page_flush_ceiling) {
		KUNIT_EXPECT_EQ(test, info.start, 0);
		KUNIT_EXPECT_EQ(test, info.end, TLB_FLUSH_ALL);
	} else {
		KUNIT_EXPECT_EQ(test, info.start, start);
		KUNIT_EXPECT_EQ(test, info.end, start + (nr << shift));
	}
	KUNIT_EXPECT_EQ(test, info.stride_shift, shift);
}

static void tlb_ceiling(struct kunit *test)
{
	unsigned long nr;
	int i;

	for (nr = 1; nr <= TEST_ENTRIES; nr++) {
		for (i = 0; i < TEST_STARTS; i++)
			ceiling_one(test, TEST_BASE + i * PAGE_SIZE, nr,
				    PAGE_SHIFT);
		ceiling_one(test, TEST_BASE, nr, PMD_SHIFT);
	}
}

/* Flush as broadcast_tlb_flush() does. Returns the number of instructions. */
static unsigned int broadcast(struct kunit *test, unsigned long start,
			      unsigned long nr, unsigned int shift,
			      unsigned long max)
{
	const struct flush_tlb_info info = {
		.start = start,
		.end = start + (nr << shift),
		.stride_shift = shift,
	};
	unsigned long addr = start, count;
	unsigned int insns = 0;

	do {
		count = flush_tlb_info_nr(&info, addr, max);
		if (!count || count > max) {
			KUNIT_FAIL(test, "%lu entries by one of %lu", count, max);
			return 0;
		}
		addr += count << shift;
		insns++;
	} while (addr < info.end);
	KUNIT_EXPECT_EQ_MSG(test, addr, info.end, "%lu of %u bits at %#lx by %lu",
			    nr, shift, start, max);
	return insns;
}

static void tlb_invlpgb(struct kunit *test)
{
	static const unsigned int shifts[] = { PAGE_SHIFT, PMD_SHIFT };
	unsigned long max, nr;
	unsigned int shift;
	int i, j;

	for (max = 1; max <= 2 * BLOCK_PAGES + 1; max++) {
		for (nr = 1; nr <= TEST_ENTRIES; nr++) {
			for (i = 0; i < TEST_STARTS * ARRAY_SIZE(shifts); i++) {
				shift = shifts[i % ARRAY_SIZE(shifts)];
				j = i / ARRAY_SIZE(shifts);
				KUNIT_EXPECT_EQ(test,
						broadcast(test, TEST_BASE +
							  ((unsigned long)j << shift),
							  nr, shift, max),
						DIV_ROUND_UP(nr, max));
			}
		}
		/* INVLPGB has no longer stride. */
		KUNIT_EXPECT_EQ(test, broadcast(test, TEST_BASE, 3, PUD_SHIFT, max),
				3);
	}
}

/* A block of 64 KiB takes one record, and one INVLPGB that takes 16 entries. */
static void tlb_block(struct kunit *test)
{
	const struct flush_tlb_info info = make_info(TEST_BASE, BLOCK_PAGES,
						     PAGE_SHIFT);

	KUNIT_EXPECT_EQ(test, info.end - info.start, SZ_64K);
	KUNIT_EXPECT_EQ(test, broadcast(test, TEST_BASE, BLOCK_PAGES, PAGE_SHIFT,
					BLOCK_PAGES), 1);
	KUNIT_EXPECT_EQ(test, broadcast(test, TEST_BASE, BLOCK_PAGES, PAGE_SHIFT,
					BLOCK_PAGES / 2), 2);
}

static struct kunit_case tlb_cases[] = {
	KUNIT_CASE(tlb_ceiling),
	KUNIT_CASE(tlb_invlpgb),
	KUNIT_CASE(tlb_block),
	{}
};

static struct kunit_suite tlb_suite = {
	.name = "x86_tlb",
	.test_cases = tlb_cases,
};

kunit_test_suite(tlb_suite);

MODULE_DESCRIPTION("KUnit tests for what a range of addresses is flushed by");
MODULE_LICENSE("GPL");
