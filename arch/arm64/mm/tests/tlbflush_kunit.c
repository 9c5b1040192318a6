// SPDX-License-Identifier: GPL-2.0-only
/*
 * KUnit tests for the splitting of a range into TLBI operations.
 *
 * The tests replace the operations by functions that decode their argument as a
 * CPU would, and track which addresses are covered. Ranges are split in
 * ascending order. Each operation therefore has to begin where the last one has
 * ended, and the last one has to end with the range: this flushes all pages of
 * the range, and no others.
 */

#include <kunit/test.h>

#include <linux/bitfield.h>
#include <linux/minmax.h>
#include <linux/mm.h>
#include <linux/sizes.h>

#include <asm/tlbflush.h>

#define TEST_BASE	((u64)SZ_4G * 3)
#define TEST_ASID	0x5a5a
#define TEST_LEVEL	3

/* Starts at each page of one block of the LPA2 alignment, and of the next. */
#define TEST_STARTS	(2 * SZ_64K / PAGE_SIZE)

/* The limit in __flush_tlb_range_limit_excess(). */
#define MAX_RANGE_OPS	20

/* The state of a CPU that executes the operations. */
static struct tlbi_state {
	u64 next;		/* where the next operation has to begin */
	u64 stride;		/* bytes that one operation covers */
	bool lpa2;
	bool wrong;
	unsigned int nr_one;
	unsigned int nr_range;
} state;

static void see_one(u64 arg)
{
	const u64 addr = (arg & GENMASK_ULL(43, 0)) << 12;

	state.wrong |= addr != state.next ||
		       FIELD_GET(TLBIR_ASID_MASK, arg) != TEST_ASID;
	state.next = addr + state.stride;
	state.nr_one++;
}

static void see_range(u64 arg)
{
	const u64 addr = FIELD_GET(TLBIR_BADDR_MASK, arg) <<
			 (state.lpa2 ? 16 : PAGE_SHIFT);
	const u64 pages = __TLBI_RANGE_PAGES(FIELD_GET(TLBIR_NUM_MASK, arg),
					     FIELD_GET(TLBIR_SCALE_MASK, arg));

	state.wrong |= addr != state.next ||
		       FIELD_GET(TLBIR_ASID_MASK, arg) != TEST_ASID ||
		       FIELD_GET(TLBIR_TG_MASK, arg) != get_trans_granule() ||
		       FIELD_GET(TLBIR_TTL_MASK, arg) != TEST_LEVEL;
	state.next = addr + pages * PAGE_SIZE;
	state.nr_range++;
}

static bool has_range(void)
{
	return true;
}

static bool has_no_range(void)
{
	return false;
}

/* Flush a range, and return the number of operations. */
static noinline unsigned int flush(struct kunit *test, u64 start, size_t pages,
				   u64 stride, bool range, bool lpa2)
{
	unsigned int nr;

	state = (struct tlbi_state) {
		.next = start,
		.stride = stride,
		.lpa2 = lpa2,
	};
	if (range)
		nr = __flush_tlb_range_op(see_one, see_range, has_range, start,
					  pages, stride, TEST_ASID, TEST_LEVEL,
					  lpa2);
	else
		nr = __flush_tlb_range_op(see_one, see_range, has_no_range,
					  start, pages, stride, TEST_ASID,
					  TEST_LEVEL, lpa2);

	if (state.wrong || state.next != start + pages * PAGE_SIZE ||
	    nr != state.nr_one + state.nr_range)
		KUNIT_FAIL(test, "%zu pages at %#llx, range %d lpa2 %d: %d, to %#llx by %u+%u=%u",
			   pages, start, range, lpa2, state.wrong, state.next,
			   state.nr_one, state.nr_range, nr);
	return nr;
}

/* Flush from each start, and check the number of operations. */
static void flush_from_all(struct kunit *test, size_t pages, bool lpa2)
{
	int i;

	for (i = 0; i < TEST_STARTS; i++)
		KUNIT_EXPECT_LE(test, flush(test, TEST_BASE + i * PAGE_SIZE,
					    pages, PAGE_SIZE, true, lpa2),
				MAX_RANGE_OPS);
}

/* A CPU without range operations flushes page by page. */
static void tlbflush_no_range(struct kunit *test)
{
	size_t pages;
	int i;

	for (pages = 1; pages <= MAX_DVM_OPS; pages++) {
		for (i = 0; i < TEST_STARTS; i++)
			KUNIT_EXPECT_EQ(test, flush(test,
						    TEST_BASE + i * PAGE_SIZE,
						    pages, PAGE_SIZE, false,
						    false),
					pages);
	}
}

/* A CPU with range operations, with or without LPA2: all short lengths ... */
static void tlbflush_range(struct kunit *test)
{
	const bool lpa2 = *(const bool *)test->param_value;
	size_t pages;

	for (pages = 1; pages <= 2 * __TLBI_RANGE_PAGES(0, 2); pages++)
		flush_from_all(test, pages, lpa2);
}

/* ... and long ones, around those that need another scale. */
static void tlbflush_range_long(struct kunit *test)
{
	const bool lpa2 = *(const bool *)test->param_value;
	int scale, num, i;

	for (scale = 2; scale <= 3; scale++) {
		for (num = 0; num <= 31; num++) {
			const size_t pages = __TLBI_RANGE_PAGES(num, scale);

			for (i = -33; i <= 33; i++)
				flush_from_all(test,
					       min(pages + i,
						   MAX_TLBI_RANGE_PAGES),
					       lpa2);
		}
	}
}

/* Larger pages, at a higher level. */
static void tlbflush_stride(struct kunit *test)
{
	const bool lpa2 = *(const bool *)test->param_value;
	int nr;

	for (nr = 1; nr <= 64; nr++) {
		const size_t pages = nr * (PMD_SIZE / PAGE_SIZE);

		flush(test, ALIGN(TEST_BASE, PMD_SIZE), pages, PMD_SIZE, true,
		      lpa2);
		KUNIT_EXPECT_EQ(test, flush(test, ALIGN(TEST_BASE, PMD_SIZE),
					    pages, PMD_SIZE, false, lpa2), nr);
	}
}

/*
 * An aligned block of 64 KiB is a contiguous block of 4 KiB pages. It takes one
 * operation on a CPU with range operations.
 */
static void tlbflush_contiguous(struct kunit *test)
{
	const bool lpa2 = *(const bool *)test->param_value;
	const size_t pages = SZ_64K / PAGE_SIZE;

	KUNIT_EXPECT_EQ(test, flush(test, TEST_BASE, pages, PAGE_SIZE, true,
				    lpa2), 1);
	KUNIT_EXPECT_EQ(test, flush(test, TEST_BASE, pages, PAGE_SIZE, false,
				    lpa2), pages);
}

static const bool lpa2_params[] = { false, true };

static void lpa2_desc(const bool *lpa2, char *desc)
{
	strscpy(desc, *lpa2 ? "lpa2" : "no_lpa2", KUNIT_PARAM_DESC_SIZE);
}

KUNIT_ARRAY_PARAM(lpa2, lpa2_params, lpa2_desc);

static struct kunit_case tlbflush_cases[] = {
	KUNIT_CASE(tlbflush_no_range),
	KUNIT_CASE_PARAM(tlbflush_range, lpa2_gen_params),
	KUNIT_CASE_PARAM(tlbflush_range_long, lpa2_gen_params),
	KUNIT_CASE_PARAM(tlbflush_stride, lpa2_gen_params),
	KUNIT_CASE_PARAM(tlbflush_contiguous, lpa2_gen_params),
	{}
};

static struct kunit_suite tlbflush_suite = {
	.name = "arm64_tlbflush",
	.test_cases = tlbflush_cases,
};

kunit_test_suite(tlbflush_suite);

MODULE_DESCRIPTION("KUnit tests for the splitting of a range into TLBI operations");
MODULE_LICENSE("GPL");
