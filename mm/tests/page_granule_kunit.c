// SPDX-License-Identifier: GPL-2.0-only
/*
 * KUnit tests for the page granule: the predicates over every alignment, the
 * parsing of sizes and flags, and the recognition of runs, first in arrays of
 * made-up PTEs and then in the page tables of a real address space.
 *
 * See Documentation/mm/page_granule.rst for the terms.
 */

#include <kunit/test.h>

#include <linux/hugetlb.h>
#include <linux/leafops.h>
#include <linux/mm.h>
#include <linux/mman.h>
#include <linux/pgtable.h>
#include <linux/rmap.h>
#include <linux/slab.h>
#include <linux/swapops.h>
#include <linux/uaccess.h>

#include "../page_granule.h"

MODULE_IMPORT_NS("EXPORTED_FOR_KUNIT_TESTING");

/* The bits of a VMA that is default-tagged, and of a contract VMA. */
#define VMA_DEFAULT_TAGGED	mk_vma_flags(VMA_GRANULE_BIT)
#define VMA_CONTRACT	mk_vma_flags(VMA_GRANULE_BIT, VMA_GRANULE_CONTRACT_BIT)
#define VMA_SAYS_YES	mk_vma_flags(VMA_HUGEPAGE_BIT)
#define VMA_SAYS_NO	mk_vma_flags(VMA_NOHUGEPAGE_BIT)

/* Three granules, in which bounds and addresses are tried at every page. */
#define SPAN_PAGES	(3 * PAGE_GRANULE_NR)
#define SPAN_SIZE	(3 * PAGE_GRANULE_SIZE)

/* A range of whole pages in the span, and a page in the range. */
struct span {
	int start;
	int end;
	int page;
};

/* Go on to the next span. Returns false after the last one. */
static bool next_span(struct span *span)
{
	if (++span->page < span->end)
		return true;
	if (++span->end <= SPAN_PAGES) {
		span->page = span->start;
		return true;
	}
	span->page = ++span->start;
	span->end = span->start + 1;
	return span->start < SPAN_PAGES;
}

/* Does the block of 16 pages that holds the page fit into the range? */
static bool block_fits(const struct span *span)
{
	const int first = span->page / PAGE_GRANULE_NR * PAGE_GRANULE_NR;

	return first >= span->start && first + PAGE_GRANULE_NR <= span->end;
}

static void expect_within(struct kunit *test, bool expected,
			  unsigned long start, unsigned long end,
			  unsigned long addr)
{
	KUNIT_ASSERT_EQ_MSG(test, expected,
			    page_granule_within(start, end, addr),
			    "%lx in [%lx, %lx)", addr, start, end);
}

static void within(struct kunit *test)
{
	static const unsigned long bases[] = {
		0,
		SZ_4G,
		/* The end of the address space. */
		-SPAN_SIZE,
	};
	int i;

	for (i = 0; i < ARRAY_SIZE(bases); i++) {
		struct span span = {};

		while (next_span(&span)) {
			const unsigned long start = bases[i] +
						    span.start * PAGE_SIZE;
			const unsigned long end = bases[i] +
						  span.end * PAGE_SIZE;
			const unsigned long addr = bases[i] +
						   span.page * PAGE_SIZE;
			const bool fits = block_fits(&span);

			/* The end cannot be expressed. */
			if (!end)
				continue;

			expect_within(test, fits, start, end, addr);
			expect_within(test, fits, start, end, addr + 1);
			expect_within(test, fits, start, end,
				      addr + PAGE_SIZE - 1);
		}
	}
}

static struct vm_area_struct *made_up_vma(struct kunit *test, vma_flags_t flags,
					  unsigned long start,
					  unsigned long end)
{
	struct vm_area_struct *vma;

	vma = kunit_kzalloc(test, sizeof(*vma), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, vma);
	/* vma_thp_disabled() looks at the address space, too. */
	vma->vm_mm = kunit_kzalloc(test, sizeof(*vma->vm_mm), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, vma->vm_mm);
	vma->vm_start = start;
	vma->vm_end = end;
	vma->flags = flags;

	return vma;
}

/* The predicates tell the two bits apart. A granule needs the first one. */
static void vma_bits(struct kunit *test)
{
	struct vm_area_struct *vma;

	vma = made_up_vma(test, EMPTY_VMA_FLAGS, SZ_4G, SZ_4G + SPAN_SIZE);
	KUNIT_EXPECT_FALSE(test, vma_granule_tagged(vma));
	KUNIT_EXPECT_FALSE(test, vma_granule_contract(vma));
	KUNIT_EXPECT_FALSE(test, vma_has_granule(vma, SZ_4G));
	KUNIT_EXPECT_EQ(test, vma_kernel_pagesize(vma), PAGE_SIZE);

	vma->flags = VMA_DEFAULT_TAGGED;
	KUNIT_EXPECT_TRUE(test, vma_granule_tagged(vma));
	KUNIT_EXPECT_FALSE(test, vma_granule_contract(vma));
	KUNIT_EXPECT_TRUE(test, vma_has_granule(vma, SZ_4G));
	KUNIT_EXPECT_EQ(test, vma_kernel_pagesize(vma), PAGE_SIZE);

	vma->flags = VMA_CONTRACT;
	KUNIT_EXPECT_TRUE(test, vma_granule_tagged(vma));
	KUNIT_EXPECT_TRUE(test, vma_granule_contract(vma));
	KUNIT_EXPECT_TRUE(test, vma_has_granule(vma, SZ_4G));
	KUNIT_EXPECT_EQ(test, vma_kernel_pagesize(vma), PAGE_SIZE);
}

/*
 * The program's advice about huge pages applies to granules: a contract VMA
 * keeps its granules without folios, and other VMAs lose them. A contract
 * counts as advice to use huge pages.
 */
static void opt_outs(struct kunit *test)
{
	const struct {
		vma_flags_t flags;
		int mm_flag;
		bool folios_default;
		bool folios_contract;
	} cases[] = {
		{ EMPTY_VMA_FLAGS, -1, true, true },
		{ VMA_SAYS_NO, -1, false, false },
		{ EMPTY_VMA_FLAGS, MMF_DISABLE_THP_COMPLETELY, false, false },
		{ EMPTY_VMA_FLAGS, MMF_DISABLE_THP_EXCEPT_ADVISED, false, true },
		{ VMA_SAYS_YES, MMF_DISABLE_THP_EXCEPT_ADVISED, true, true },
	};
	unsigned long orders;
	struct vm_area_struct *vma;
	int i;

	for (i = 0; i < ARRAY_SIZE(cases); i++) {
		vma = made_up_vma(test, VMA_DEFAULT_TAGGED, SZ_4G, SZ_4G + SPAN_SIZE);
		if (cases[i].mm_flag >= 0)
			mm_flags_set(cases[i].mm_flag, vma->vm_mm);
		vma_flags_set_mask(&vma->flags, cases[i].flags);
		KUNIT_EXPECT_EQ_MSG(test, vma_granule_folios(vma),
				    cases[i].folios_default, "case %d", i);
		KUNIT_EXPECT_EQ_MSG(test, vma_has_granule(vma, SZ_4G),
				    cases[i].folios_default, "case %d", i);

		vma_flags_set_mask(&vma->flags, VMA_GRANULE_CONTRACT);
		KUNIT_EXPECT_EQ_MSG(test, vma_granule_folios(vma),
				    cases[i].folios_contract, "case %d", i);
		KUNIT_EXPECT_TRUE_MSG(test, vma_has_granule(vma, SZ_4G), "case %d", i);
		orders = 0;
		if (cases[i].folios_contract)
			orders = BIT(PAGE_GRANULE_ORDER);
		KUNIT_EXPECT_EQ_MSG(test, page_granule_orders(vma, 0), orders,
				    "case %d", i);
	}
}

/*
 * Folios of shared memory are aligned by file offset: a block is a granule only
 * if its offset and address are congruent.
 */
static void congruent(struct kunit *test)
{
	struct file *file = kunit_kzalloc(test, sizeof(*file), GFP_KERNEL);
	struct vm_area_struct *vma;
	int page, offset;

	KUNIT_ASSERT_NOT_NULL(test, file);
	vma = made_up_vma(test, VMA_DEFAULT_TAGGED, SZ_4G, SZ_4G + SPAN_SIZE);
	for (page = 0; page < PAGE_GRANULE_NR; page++) {
		vma->vm_start = SZ_4G + page * PAGE_SIZE;
		for (offset = 0; offset <= SPAN_PAGES; offset++) {
			const bool same = page == offset % PAGE_GRANULE_NR;

			vma->vm_pgoff = offset;
			vma->vm_file = file;
			KUNIT_EXPECT_EQ_MSG(test, same,
					    vma_has_granule(vma, vma->vm_end - 1),
					    "page %d, offset %d", page, offset);
			/* Pages of private memory belong to the address. */
			vma->vm_file = NULL;
			KUNIT_EXPECT_TRUE(test,
					  vma_has_granule(vma, vma->vm_end - 1));
		}
	}
}

/* Only a contract VMA refuses a range, and only if it would cut a granule. */
static void accepts(struct kunit *test)
{
	struct vm_area_struct *vma;
	int page, pages;

	vma = made_up_vma(test, VMA_CONTRACT, SZ_4G, SZ_4G + SPAN_SIZE);
	for (page = 0; page < SPAN_PAGES; page++) {
		for (pages = 1; pages <= SPAN_PAGES - page; pages++) {
			const unsigned long start = SZ_4G + page * PAGE_SIZE;
			const unsigned long len = pages * PAGE_SIZE;
			const bool whole = !(page % PAGE_GRANULE_NR) &&
					   !(pages % PAGE_GRANULE_NR);

			vma->flags = VMA_CONTRACT;
			KUNIT_EXPECT_EQ_MSG(test, whole,
					    vma_granule_accepts(vma, start, len),
					    "%d pages from %d", pages, page);
			vma->flags = VMA_DEFAULT_TAGGED;
			KUNIT_EXPECT_TRUE(test,
					  vma_granule_accepts(vma, start, len));
		}
	}
}

/* Larger orders stay, smaller ones go, and the granule's order is added. */
static void orders(struct kunit *test)
{
	struct vm_area_struct *vma;
	unsigned long allowed;

	vma = made_up_vma(test, VMA_DEFAULT_TAGGED, SZ_4G, SZ_4G + SPAN_SIZE);

	for (allowed = 0; allowed < BIT(PMD_ORDER + 1); allowed++) {
		const unsigned long orders = page_granule_orders(vma, allowed);
		int order;

		for (order = 0; order <= PMD_ORDER; order++) {
			bool expected = order == PAGE_GRANULE_ORDER ||
					(order > PAGE_GRANULE_ORDER &&
					 (allowed & BIT(order)));

			KUNIT_ASSERT_EQ_MSG(test, expected,
					    !!(orders & BIT(order)),
					    "order %d of %lx", order, allowed);
		}
	}
}

/*
 * Where there is a granule, a fault populates it and nothing smaller, and never
 * more than the VMA has.
 */
static void fault_range(struct kunit *test)
{
	unsigned long all, granule;
	struct vm_area_struct *vma;
	struct span span = {};

	vma = made_up_vma(test, VMA_DEFAULT_TAGGED, 0, 0);
	all = page_granule_orders(vma, BIT(PMD_ORDER) - 1);
	granule = page_granule_orders(vma, 0);

	while (next_span(&span)) {
		const unsigned long addr = SZ_4G + span.page * PAGE_SIZE;
		const bool fits = block_fits(&span);
		unsigned long orders;

		vma->vm_start = SZ_4G + span.start * PAGE_SIZE;
		vma->vm_end = SZ_4G + span.end * PAGE_SIZE;

		KUNIT_ASSERT_EQ_MSG(test, fits, vma_has_granule(vma, addr),
				    "%lx in [%lx, %lx)", addr, vma->vm_start,
				    vma->vm_end);

		orders = thp_vma_suitable_orders(vma, addr, granule);
		KUNIT_ASSERT_EQ_MSG(test, fits ? BIT(PAGE_GRANULE_ORDER) : 0,
				    orders, "%lx in [%lx, %lx)", addr,
				    vma->vm_start, vma->vm_end);

		orders = thp_vma_suitable_orders(vma, addr, all);
		KUNIT_ASSERT_EQ_MSG(test, fits,
				    !!(orders & BIT(PAGE_GRANULE_ORDER)),
				    "%lx in [%lx, %lx)", addr, vma->vm_start,
				    vma->vm_end);
	}
}

static void aligns(struct kunit *test)
{
	static const struct {
		unsigned long len;
		bool aligned;
	} cases[] = {
		{ 1, false },
		{ PAGE_SIZE, false },
		{ PAGE_GRANULE_SIZE - PAGE_SIZE, false },
		{ PAGE_GRANULE_SIZE - 1, false },
		{ PAGE_GRANULE_SIZE, true },
		{ PAGE_GRANULE_SIZE + 1, false },
		{ PAGE_GRANULE_SIZE + PAGE_SIZE, false },
		{ 2 * PAGE_GRANULE_SIZE - PAGE_SIZE, false },
		{ 2 * PAGE_GRANULE_SIZE, true },
		{ PMD_SIZE, true },
		{ PMD_SIZE + PAGE_SIZE, false },
		{ ULONG_MAX & PAGE_MASK, false },
		{ ULONG_MAX & PAGE_GRANULE_MASK, true },
	};
	const vma_flags_t untagged = EMPTY_VMA_FLAGS;
	const vma_flags_t tagged = VMA_DEFAULT_TAGGED;
	const vma_flags_t contract = VMA_CONTRACT;
	const struct file file = {};
	vma_flags_t text = tagged;
	int i;

	vma_flags_set(&text, VMA_EXEC_BIT);
	for (i = 0; i < ARRAY_SIZE(cases); i++) {
		const unsigned long len = cases[i].len;
		const bool large = len >= PAGE_GRANULE_SIZE;

		KUNIT_EXPECT_FALSE_MSG(test,
				       page_granule_aligns(&untagged, NULL, len, MAP_PRIVATE, 0),
				       "length %lx", len);
		KUNIT_EXPECT_EQ_MSG(test, cases[i].aligned,
				    page_granule_aligns(&tagged, NULL, len, MAP_PRIVATE, 0),
				    "length %lx", len);
		KUNIT_EXPECT_EQ_MSG(test, cases[i].aligned,
				    page_granule_aligns(&contract, NULL, len, MAP_PRIVATE, 0),
				    "length %lx", len);
		KUNIT_EXPECT_FALSE_MSG(test,
				       page_granule_aligns(&untagged, NULL, len, MAP_SHARED, 0),
				       "length %lx", len);
		KUNIT_EXPECT_EQ_MSG(test, large,
				    page_granule_aligns(&tagged, NULL, len, MAP_SHARED, 0),
				    "length %lx", len);
		/* The first mapping of a file, data behind it, and text. */
		KUNIT_EXPECT_EQ_MSG(test, large,
				    page_granule_aligns(&tagged, &file, len, MAP_PRIVATE, 0),
				    "length %lx", len);
		KUNIT_EXPECT_EQ_MSG(test, cases[i].aligned,
				    page_granule_aligns(&tagged, &file, len, MAP_PRIVATE, 1),
				    "length %lx", len);
		KUNIT_EXPECT_EQ_MSG(test, large,
				    page_granule_aligns(&text, &file, len, MAP_PRIVATE, 1),
				    "length %lx", len);
	}
}

static void parse_size(struct kunit *test)
{
	int shift;

	KUNIT_EXPECT_EQ(test, page_granule_parse_size(0), 0);
	KUNIT_EXPECT_EQ(test, page_granule_parse_size(PAGE_SIZE), 0);
	KUNIT_EXPECT_EQ(test, page_granule_parse_size(PAGE_GRANULE_SIZE),
			PAGE_GRANULE_ORDER);

	for (shift = 0; shift < BITS_PER_LONG; shift++) {
		const unsigned long size = BIT(shift);

		if (size != PAGE_SIZE && size != PAGE_GRANULE_SIZE)
			KUNIT_EXPECT_EQ_MSG(test, page_granule_parse_size(size),
					    -EINVAL, "size %lx", size);
		/* Nor is a size rounded, in either direction. */
		if (shift) {
			KUNIT_EXPECT_EQ_MSG(test,
					    page_granule_parse_size(size + 1),
					    -EINVAL, "size %lx", size + 1);
			KUNIT_EXPECT_EQ_MSG(test,
					    page_granule_parse_size(size - 1),
					    -EINVAL, "size %lx", size - 1);
		}
	}

	/* A combination of sizes is not a size. */
	KUNIT_EXPECT_EQ(test,
			page_granule_parse_size(PAGE_SIZE | PAGE_GRANULE_SIZE),
			-EINVAL);
	KUNIT_EXPECT_EQ(test, page_granule_parse_size(ULONG_MAX), -EINVAL);
	KUNIT_EXPECT_EQ(test,
			page_granule_parse_size(BIT(32) + PAGE_GRANULE_SIZE),
			-EINVAL);
}

static void parse_flags(struct kunit *test)
{
	const unsigned long others[] = {
		0,
		MAP_PRIVATE | MAP_ANONYMOUS,
		/* All flags other than the size. */
		~((unsigned long)MAP_HUGE_MASK << MAP_HUGE_SHIFT),
	};
	unsigned long size;
	int i;

	for (i = 0; i < ARRAY_SIZE(others); i++) {
		const unsigned long other = others[i];

		KUNIT_EXPECT_EQ(test, 0,
				page_granule_parse_flags(other |
							 MAP_GRANULE_4KB));
		KUNIT_EXPECT_EQ(test, PAGE_GRANULE_ORDER,
				page_granule_parse_flags(other |
							 MAP_GRANULE_64KB));

		for (size = 0; size <= MAP_HUGE_MASK; size++) {
			const unsigned long flags = other | MAP_GRANULE |
						    size << MAP_HUGE_SHIFT;

			if (size == PAGE_SHIFT || size == PAGE_GRANULE_SHIFT)
				continue;
			KUNIT_EXPECT_EQ_MSG(test, -EINVAL,
					    page_granule_parse_flags(flags),
					    "flags %lx", flags);
		}
	}
}

/*
 * In a tagged VMA, consecutive zero pages back the consecutive addresses of
 * each granule. Any other VMA has one zero page.
 */
static void zero_block(struct kunit *test)
{
	const unsigned long first = zero_pfn(0);
	struct vm_area_struct *tagged, *untagged;
	int i;

	tagged = made_up_vma(test, VMA_DEFAULT_TAGGED, SZ_4G, SZ_4G + SPAN_SIZE);
	untagged = made_up_vma(test, EMPTY_VMA_FLAGS, SZ_4G, SZ_4G + SPAN_SIZE);

	KUNIT_EXPECT_TRUE(test, IS_ALIGNED(first, PAGE_GRANULE_NR));
	KUNIT_EXPECT_FALSE(test, is_zero_pfn(first - 1));
	KUNIT_EXPECT_FALSE(test, is_zero_pfn(first + PAGE_GRANULE_NR));

	for (i = 0; i < SPAN_PAGES; i++) {
		const unsigned long addr = SZ_4G + i * PAGE_SIZE;
		const unsigned long pfn = vma_zero_pfn(tagged, addr);

		KUNIT_EXPECT_EQ(test, pfn, first + i % PAGE_GRANULE_NR);
		KUNIT_EXPECT_TRUE(test, is_zero_pfn(pfn));
		KUNIT_EXPECT_NULL(test, memchr_inv(page_address(pfn_to_page(pfn)),
						   0, PAGE_SIZE));
		KUNIT_EXPECT_EQ(test, zero_pfn(addr), first);
		KUNIT_EXPECT_EQ(test, page_to_pfn(ZERO_PAGE(addr)), first);
		KUNIT_EXPECT_EQ(test, vma_zero_pfn(untagged, addr), first);
	}
}

/*
 * Made-up PTEs.
 *
 * They are in a page of their own, aligned like a page table, because arm64
 * finds the entries of a contiguous block by the address of the pointer.
 */

/* Nothing is read or written through it, so any aligned PFN does. */
#define MADE_UP_PFN	0x12340UL

static pte_t *made_up_table(struct kunit *test)
{
	pte_t *table = kunit_kzalloc(test, PAGE_SIZE, GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(test, table);
	KUNIT_ASSERT_TRUE(test, IS_ALIGNED((unsigned long)table, PAGE_SIZE));
	return table;
}

/*
 * A writable page of user memory that nobody has touched. It is soft-dirty
 * because pte_mkdirty() makes it so where that exists.
 */
static pte_t made_up_pte(unsigned long pfn)
{
	pte_t pte = pte_mkwrite_novma(pfn_pte(pfn, PAGE_SHARED));

	return pte_mksoft_dirty(pte_mkclean(pte_mkold(pte)));
}

static void fill_run(pte_t *ptep, unsigned long pfn)
{
	int i;

	for (i = 0; i < PAGE_GRANULE_NR; i++)
		ptep[i] = made_up_pte(pfn + i);
}

/* PTE bits that one entry of a run may or may not have. */
typedef pte_t (*change_pte_fn)(pte_t pte);

static pte_t protnone(pte_t pte)
{
	return pte_modify(pte, PAGE_NONE);
}

static pte_t young_and_dirty(pte_t pte)
{
	return pte_mkyoung(pte_mkdirty(pte));
}

/*
 * Change each PTE of a run in turn, and expect that the PTEs are still a run or
 * not. Change all of them, and expect a run.
 */
static void expect_change(struct kunit *test, pte_t *ptep, change_pte_fn change,
			  bool run)
{
	int i;

	for (i = 0; i < PAGE_GRANULE_NR; i++) {
		const pte_t pte = ptep[i];

		ptep[i] = change(pte);
		KUNIT_EXPECT_EQ_MSG(test, run, page_granule_ptes_run(ptep),
				    "entry %d", i);
		ptep[i] = pte;
	}

	for (i = 0; i < PAGE_GRANULE_NR; i++) {
		KUNIT_EXPECT_EQ_MSG(test, !i || run, page_granule_ptes_run(ptep),
				    "first %d entries", i);
		ptep[i] = change(ptep[i]);
	}
	KUNIT_EXPECT_TRUE(test, page_granule_ptes_run(ptep));
}

/* A run begins at a multiple of 16, both in the table and in memory. */
static void run_alignment(struct kunit *test)
{
	pte_t *table = made_up_table(test);
	int index, i;

	for (index = 0; index < PTRS_PER_PTE; index += PAGE_GRANULE_NR) {
		pte_t *ptep = table + index;

		for (i = 0; i < 4 * PAGE_GRANULE_NR; i++) {
			fill_run(ptep, MADE_UP_PFN + i);
			KUNIT_EXPECT_EQ_MSG(test, i % PAGE_GRANULE_NR == 0,
					    page_granule_ptes_run(ptep),
					    "PFN %lx", MADE_UP_PFN + i);
		}
	}

	/* The first block of memory is not special. */
	fill_run(table, 0);
	KUNIT_EXPECT_TRUE(test, page_granule_ptes_run(table));
}

/* The neighbours in the table do not matter. */
static void run_neighbours(struct kunit *test)
{
	pte_t *table = made_up_table(test);
	pte_t *ptep = table + PAGE_GRANULE_NR;

	fill_run(ptep, MADE_UP_PFN);
	KUNIT_EXPECT_TRUE(test, page_granule_ptes_run(ptep));
	KUNIT_EXPECT_FALSE(test, page_granule_ptes_run(ptep - 1));
	KUNIT_EXPECT_FALSE(test, page_granule_ptes_run(ptep + 1));

	fill_run(ptep + PAGE_GRANULE_NR, MADE_UP_PFN + PAGE_GRANULE_NR);
	KUNIT_EXPECT_TRUE(test, page_granule_ptes_run(ptep));
	fill_run(ptep + PAGE_GRANULE_NR, MADE_UP_PFN);
	KUNIT_EXPECT_TRUE(test, page_granule_ptes_run(ptep));
}

static void run_hole(struct kunit *test)
{
	pte_t *ptep = made_up_table(test);
	int i;

	KUNIT_EXPECT_FALSE(test, page_granule_ptes_run(ptep));

	for (i = 0; i < PAGE_GRANULE_NR; i++) {
		fill_run(ptep, MADE_UP_PFN);
		ptep[i] = __pte(0);
		KUNIT_EXPECT_FALSE_MSG(test, page_granule_ptes_run(ptep),
				       "entry %d", i);
	}
}

static void run_wrong_pfn(struct kunit *test)
{
	/* The page before, the page after, the same place in another block. */
	static const int offsets[] = {
		-1, 1, -PAGE_GRANULE_NR, PAGE_GRANULE_NR, 4 * PAGE_GRANULE_NR,
	};
	pte_t *ptep = made_up_table(test);
	int i, j;

	for (i = 0; i < PAGE_GRANULE_NR; i++) {
		for (j = 0; j < ARRAY_SIZE(offsets); j++) {
			fill_run(ptep, MADE_UP_PFN);
			ptep[i] = made_up_pte(MADE_UP_PFN + i + offsets[j]);
			KUNIT_EXPECT_FALSE_MSG(test,
					       page_granule_ptes_run(ptep),
					       "entry %d off by %d", i,
					       offsets[j]);
		}
	}

	/* The same page 16 times, and 16 pages backwards. */
	for (i = 0; i < PAGE_GRANULE_NR; i++)
		ptep[i] = made_up_pte(MADE_UP_PFN);
	KUNIT_EXPECT_FALSE(test, page_granule_ptes_run(ptep));
	for (i = 0; i < PAGE_GRANULE_NR; i++)
		ptep[i] = made_up_pte(MADE_UP_PFN - i);
	KUNIT_EXPECT_FALSE(test, page_granule_ptes_run(ptep));
}

static void run_write(struct kunit *test)
{
	pte_t *ptep = made_up_table(test);

	fill_run(ptep, MADE_UP_PFN);
	expect_change(test, ptep, pte_wrprotect, false);
}

static void run_soft_dirty(struct kunit *test)
{
	pte_t *ptep = made_up_table(test);

	if (!pgtable_supports_soft_dirty())
		kunit_skip(test, "needs CONFIG_MEM_SOFT_DIRTY");

	fill_run(ptep, MADE_UP_PFN);
	expect_change(test, ptep, pte_clear_soft_dirty, false);
}

static void run_uffd(struct kunit *test)
{
	pte_t *ptep = made_up_table(test);
	int i;

	if (!pte_uffd(pte_mkuffd(made_up_pte(MADE_UP_PFN))))
		kunit_skip(test, "needs CONFIG_HAVE_ARCH_USERFAULTFD_WP");

	/* Write-protect first, so that only the one bit changes. */
	fill_run(ptep, MADE_UP_PFN);
	for (i = 0; i < PAGE_GRANULE_NR; i++)
		ptep[i] = pte_wrprotect(ptep[i]);
	expect_change(test, ptep, pte_mkuffd, false);
}

/* The hardware sets these for one entry at a time. */
static void run_accessed_dirty(struct kunit *test)
{
	pte_t *ptep = made_up_table(test);

	fill_run(ptep, MADE_UP_PFN);
	expect_change(test, ptep, pte_mkyoung, true);
	fill_run(ptep, MADE_UP_PFN);
	expect_change(test, ptep, pte_mkdirty, true);
	fill_run(ptep, MADE_UP_PFN);
	expect_change(test, ptep, young_and_dirty, true);
}

/* NUMA balancing makes PTEs protnone, but they stay present. */
static void run_protnone(struct kunit *test)
{
	pte_t *ptep = made_up_table(test);

	fill_run(ptep, MADE_UP_PFN);
	expect_change(test, ptep, protnone, false);
}

static void run_special(struct kunit *test)
{
	pte_t *ptep = made_up_table(test);

	fill_run(ptep, MADE_UP_PFN);
	expect_change(test, ptep, pte_mkspecial, false);
}

static void run_swap(struct kunit *test)
{
	pte_t *ptep = made_up_table(test);
	int i;

	for (i = 0; i < PAGE_GRANULE_NR; i++) {
		fill_run(ptep, MADE_UP_PFN);
		ptep[i] = swp_entry_to_pte(swp_entry(0, MADE_UP_PFN + i));
		KUNIT_EXPECT_FALSE_MSG(test, page_granule_ptes_run(ptep),
				       "entry %d", i);
	}

	/* Consecutive slots are not present either. */
	for (i = 0; i < PAGE_GRANULE_NR; i++)
		ptep[i] = swp_entry_to_pte(swp_entry(0, MADE_UP_PFN + i));
	KUNIT_EXPECT_FALSE(test, page_granule_ptes_run(ptep));

	for (i = 0; i < PAGE_GRANULE_NR; i++)
		ptep[i] = make_pte_marker(PTE_MARKER_GUARD);
	KUNIT_EXPECT_FALSE(test, page_granule_ptes_run(ptep));
}

#ifdef CONFIG_ARM64_CONTPTE
/*
 * Contiguous entries are read as a block, whose accessed and dirty bits belong
 * to all of it.
 */
static void run_contpte(struct kunit *test)
{
	static const change_pte_fn changes[] = {
		pte_mkyoung, pte_mkdirty, young_and_dirty,
	};
	pte_t *ptep = made_up_table(test) + PAGE_GRANULE_NR;
	int i, j;

	for (i = 0; i < ARRAY_SIZE(changes); i++) {
		fill_run(ptep, MADE_UP_PFN);
		for (j = 0; j < PAGE_GRANULE_NR; j++)
			ptep[j] = pte_mkcont(ptep[j]);
		expect_change(test, ptep, changes[i], true);
	}

	/* Write-protect the whole block. */
	for (i = 0; i < PAGE_GRANULE_NR; i++)
		ptep[i] = pte_wrprotect(ptep[i]);
	KUNIT_EXPECT_TRUE(test, page_granule_ptes_run(ptep));

	/* A contiguous block at the wrong place in memory is no run. */
	for (i = 0; i < PAGE_GRANULE_NR; i++)
		ptep[i] = pte_mkcont(made_up_pte(MADE_UP_PFN + 1 + i));
	KUNIT_EXPECT_FALSE(test, page_granule_ptes_run(ptep));
}
#endif /* CONFIG_ARM64_CONTPTE */

/* Return the state of a granule at SZ_4G that has made-up PTEs. */
static enum page_granule_state made_up_state(struct kunit *test, pte_t *ptep)
{
	struct vm_area_struct *vma;

	vma = made_up_vma(test, VMA_CONTRACT, SZ_4G, SZ_4G + SPAN_SIZE);
	return page_granule_pte_state(vma, SZ_4G, ptep);
}

static void state_empty(struct kunit *test)
{
	pte_t *ptep = made_up_table(test);

	KUNIT_EXPECT_EQ(test, made_up_state(test, ptep), PAGE_GRANULE_EMPTY);

	/* The PTEs behind the granule do not matter. */
	fill_run(ptep + PAGE_GRANULE_NR, MADE_UP_PFN);
	KUNIT_EXPECT_EQ(test, made_up_state(test, ptep), PAGE_GRANULE_EMPTY);
}

/* One page, swap entry or marker is enough for a granule not to be empty. */
static void state_partly(struct kunit *test)
{
	pte_t *ptep = made_up_table(test);
	const pte_t ptes[] = {
		made_up_pte(MADE_UP_PFN),
		pte_mkspecial(pfn_pte(zero_pfn(0), PAGE_READONLY)),
		swp_entry_to_pte(swp_entry(0, 1)),
		make_pte_marker(PTE_MARKER_GUARD),
	};
	int i, j;

	for (i = 0; i < PAGE_GRANULE_NR; i++) {
		for (j = 0; j < ARRAY_SIZE(ptes); j++) {
			ptep[i] = ptes[j];
			KUNIT_EXPECT_EQ_MSG(test, made_up_state(test, ptep),
					    PAGE_GRANULE_BROKEN,
					    "kind %d at entry %d", j, i);
			ptep[i] = __pte(0);
		}
	}
}

static void state_swap(struct kunit *test)
{
	pte_t *ptep = made_up_table(test);
	int i;

	for (i = 0; i < PAGE_GRANULE_NR; i++)
		ptep[i] = swp_entry_to_pte(swp_entry(0, 16 + i));
	KUNIT_EXPECT_EQ(test, made_up_state(test, ptep), PAGE_GRANULE_BROKEN);
}

/* The zero pages are not in a folio, but in order they are a run. */
static void state_zero(struct kunit *test)
{
	pte_t *ptep = made_up_table(test);
	int i;

	for (i = 0; i < PAGE_GRANULE_NR; i++)
		ptep[i] = pte_mkspecial(pfn_pte(zero_pfn(0) + i % PAGE_GRANULE_NR,
						PAGE_READONLY));
	KUNIT_EXPECT_EQ(test, made_up_state(test, ptep), PAGE_GRANULE_WHOLE);

	/* Other VMAs map the same zero page 16 times. */
	for (i = 0; i < PAGE_GRANULE_NR; i++)
		ptep[i] = pte_mkspecial(pfn_pte(zero_pfn(0), PAGE_READONLY));
	KUNIT_EXPECT_EQ(test, made_up_state(test, ptep), PAGE_GRANULE_BROKEN);
}

static unsigned int zero_batch(struct vm_area_struct *vma, unsigned long addr,
			       pte_t *ptep, unsigned int max_nr)
{
	return page_granule_zero_batch(vma, addr, ptep, ptep_get(ptep), max_nr);
}

/* Zero pages form a batch only if they populate a whole granule. */
static void zero_batches(struct kunit *test)
{
	pte_t *ptep = made_up_table(test);
	struct vm_area_struct *vma;
	unsigned long addr = SZ_4G;
	int i;

	vma = made_up_vma(test, VMA_DEFAULT_TAGGED, addr, addr + SPAN_SIZE);
	for (i = 0; i < 2 * PAGE_GRANULE_NR; i++)
		ptep[i] = pte_mkspecial(pfn_pte(zero_pfn(0) + i % PAGE_GRANULE_NR,
						PAGE_READONLY));
	KUNIT_EXPECT_EQ(test, zero_batch(vma, addr, ptep, PAGE_GRANULE_NR),
			PAGE_GRANULE_NR);
	/* A batch is not more than one granule, nor a part of one. */
	KUNIT_EXPECT_EQ(test, zero_batch(vma, addr, ptep, 2 * PAGE_GRANULE_NR),
			PAGE_GRANULE_NR);
	KUNIT_EXPECT_EQ(test, zero_batch(vma, addr, ptep, PAGE_GRANULE_NR - 1), 1);
	for (i = 1; i < PAGE_GRANULE_NR; i++)
		KUNIT_EXPECT_EQ(test, zero_batch(vma, addr + i * PAGE_SIZE,
						 ptep + i, PAGE_GRANULE_NR), 1);

	/* Zero pages that KSM has merged are dirty, and count one by one. */
	for (i = 0; i < PAGE_GRANULE_NR; i++) {
		const pte_t pte = ptep[i];

		ptep[i] = pte_mkdirty(pte);
		KUNIT_EXPECT_EQ_MSG(test, zero_batch(vma, addr, ptep,
						     PAGE_GRANULE_NR), 1,
				    "entry %d", i);
		ptep[i] = pte;
	}

	/* Nor is there a batch without a tag. */
	vma->flags = EMPTY_VMA_FLAGS;
	KUNIT_EXPECT_EQ(test, zero_batch(vma, addr, ptep, PAGE_GRANULE_NR), 1);
}

static void put_folio(void *folio)
{
	folio_put(folio);
}

static struct folio *get_folio(struct kunit *test, unsigned int order)
{
	struct folio *folio = folio_alloc(GFP_KERNEL, order);

	KUNIT_ASSERT_NOT_NULL(test, folio);
	KUNIT_ASSERT_EQ(test, 0,
			kunit_add_action_or_reset(test, put_folio, folio));
	return folio;
}

static void state_folio(struct kunit *test)
{
	pte_t *ptep = made_up_table(test);
	unsigned long pfn;
	int i;

	pfn = folio_pfn(get_folio(test, PAGE_GRANULE_ORDER));
	fill_run(ptep, pfn);
	KUNIT_EXPECT_EQ(test, made_up_state(test, ptep), PAGE_GRANULE_WHOLE);

	/* Any change that breaks the run breaks the granule. */
	for (i = 0; i < PAGE_GRANULE_NR; i++) {
		const pte_t pte = ptep[i];

		ptep[i] = pte_wrprotect(pte);
		KUNIT_EXPECT_EQ_MSG(test, made_up_state(test, ptep),
				    PAGE_GRANULE_BROKEN, "entry %d", i);
		ptep[i] = pte;
	}

	/* Each quarter of a larger folio is as good. */
	pfn = folio_pfn(get_folio(test, PAGE_GRANULE_ORDER + 2));
	for (i = 0; i < 4; i++) {
		fill_run(ptep, pfn + i * PAGE_GRANULE_NR);
		KUNIT_EXPECT_EQ_MSG(test, made_up_state(test, ptep),
				    PAGE_GRANULE_WHOLE, "quarter %d", i);
	}

	/* A run that begins elsewhere in the folio is not whole. */
	fill_run(ptep, pfn + 1);
	KUNIT_EXPECT_EQ(test, made_up_state(test, ptep), PAGE_GRANULE_BROKEN);
}

static unsigned int batch(struct vm_area_struct *vma, unsigned long addr,
			  pte_t *ptep, unsigned int max_nr)
{
	return page_granule_batch(vma, addr, ptep, ptep_get(ptep), max_nr);
}

/* A walk treats 16 PTEs as one only where a whole granule begins. */
static void batches(struct kunit *test)
{
	pte_t *ptep = made_up_table(test);
	struct vm_area_struct *vma;
	unsigned long addr = SZ_4G;
	unsigned long pfn;
	int i;

	vma = made_up_vma(test, VMA_DEFAULT_TAGGED, addr, addr + SPAN_SIZE);
	KUNIT_EXPECT_EQ(test, batch(vma, addr, ptep, SPAN_PAGES), 1);

	pfn = folio_pfn(get_folio(test, PAGE_GRANULE_ORDER + 1));
	fill_run(ptep, pfn);
	fill_run(ptep + PAGE_GRANULE_NR, pfn + PAGE_GRANULE_NR);
	/* A batch is one granule, even if the folio is larger. */
	KUNIT_EXPECT_EQ(test, batch(vma, addr, ptep, SPAN_PAGES),
			PAGE_GRANULE_NR);
	KUNIT_EXPECT_EQ(test, batch(vma, addr, ptep, PAGE_GRANULE_NR),
			PAGE_GRANULE_NR);
	KUNIT_EXPECT_EQ(test, batch(vma, addr, ptep, PAGE_GRANULE_NR - 1), 1);
	for (i = 1; i < PAGE_GRANULE_NR; i++)
		KUNIT_EXPECT_EQ_MSG(test, 1,
				    batch(vma, addr + i * PAGE_SIZE, ptep + i,
					  PAGE_GRANULE_NR), "entry %d", i);

	/* It does not matter which entry differs. */
	for (i = 0; i < PAGE_GRANULE_NR; i++) {
		const pte_t pte = ptep[i];

		ptep[i] = young_and_dirty(pte);
		KUNIT_EXPECT_EQ_MSG(test, PAGE_GRANULE_NR,
				    batch(vma, addr, ptep, PAGE_GRANULE_NR),
				    "entry %d", i);
		ptep[i] = pte_wrprotect(pte);
		KUNIT_EXPECT_EQ_MSG(test, 1,
				    batch(vma, addr, ptep, PAGE_GRANULE_NR),
				    "entry %d", i);
		ptep[i] = __pte(0);
		KUNIT_EXPECT_EQ_MSG(test, 1,
				    batch(vma, addr, ptep, PAGE_GRANULE_NR),
				    "entry %d", i);
		ptep[i] = pte;
	}

#ifdef CONFIG_ARM64_CONTPTE
	for (i = 0; i < PAGE_GRANULE_NR; i++)
		ptep[i] = pte_mkcont(ptep[i]);
	KUNIT_EXPECT_EQ(test, batch(vma, addr, ptep, PAGE_GRANULE_NR),
			PAGE_GRANULE_NR);
	KUNIT_EXPECT_EQ(test, batch(vma, addr, ptep, PAGE_GRANULE_NR - 1), 1);
#endif

	vma->flags = EMPTY_VMA_FLAGS;
	KUNIT_EXPECT_EQ(test, batch(vma, addr, ptep, PAGE_GRANULE_NR), 1);

	/*
	 * Zero pages form a batch, too, unless KSM has merged one. Make them
	 * soft-dirty first, because pte_mkdirty() does so.
	 */
	vma->flags = VMA_DEFAULT_TAGGED;
	for (i = 0; i < PAGE_GRANULE_NR; i++) {
		const pte_t pte = pfn_pte(zero_pfn(0) + i % PAGE_GRANULE_NR, PAGE_READONLY);

		ptep[i] = pte_mksoft_dirty(pte_mkspecial(pte));
	}
	KUNIT_EXPECT_EQ(test, batch(vma, addr, ptep, PAGE_GRANULE_NR),
			PAGE_GRANULE_NR);
	for (i = 0; i < PAGE_GRANULE_NR; i++) {
		const pte_t pte = ptep[i];

		ptep[i] = pte_mkdirty(pte);
		KUNIT_EXPECT_EQ_MSG(test, 1,
				    batch(vma, addr, ptep, PAGE_GRANULE_NR),
				    "entry %d", i);
		ptep[i] = pte;
	}
}

static void free_block(void *page)
{
	__free_pages(page, PAGE_GRANULE_ORDER);
}

/* Reclaim can take consecutive pages one by one if they are not a folio. */
static void state_pages(struct kunit *test)
{
	pte_t *ptep = made_up_table(test);
	struct page *page;

	page = alloc_pages(GFP_KERNEL, PAGE_GRANULE_ORDER);
	KUNIT_ASSERT_NOT_NULL(test, page);
	KUNIT_ASSERT_EQ(test, 0,
			kunit_add_action_or_reset(test, free_block, page));

	fill_run(ptep, page_to_pfn(page));
	KUNIT_EXPECT_TRUE(test, page_granule_ptes_run(ptep));
	KUNIT_EXPECT_EQ(test, made_up_state(test, ptep), PAGE_GRANULE_BROKEN);
}

#ifdef CONFIG_DEBUG_PAGE_GRANULE
/* A PTE of a run as the architecture installs it. */
static pte_t installed_pte(pte_t pte)
{
#ifdef CONFIG_ARM64_CONTPTE
	return pte_mkcont(pte);
#else
	return pte;
#endif
}

/* The checker finds an error at any of the entries, and nothing else. */
static void check(struct kunit *test)
{
	struct vm_area_struct *vma;
	pte_t *ptep = made_up_table(test);
	unsigned long pfn;
	int i;

	vma = made_up_vma(test, VMA_CONTRACT, SZ_4G, SZ_4G + SPAN_SIZE);
	KUNIT_EXPECT_NULL(test, page_granule_verify_ptes(vma, SZ_4G, ptep));

	pfn = folio_pfn(get_folio(test, PAGE_GRANULE_ORDER));
	for (i = 0; i < PAGE_GRANULE_NR; i++)
		ptep[i] = installed_pte(made_up_pte(pfn + i));
	KUNIT_EXPECT_NULL(test, page_granule_verify_ptes(vma, SZ_4G, ptep));

	for (i = 0; i < PAGE_GRANULE_NR; i++) {
		const pte_t pte = ptep[i];

		ptep[i] = __pte(0);
		KUNIT_EXPECT_STREQ_MSG(test, "populated in part",
				       page_granule_verify_ptes(vma, SZ_4G, ptep),
				       "entry %d", i);
		ptep[i] = pte_wrprotect(pte);
		KUNIT_EXPECT_STREQ_MSG(test, "one folio, but the PTEs differ",
				       page_granule_verify_ptes(vma, SZ_4G, ptep),
				       "entry %d", i);
		/* A swapped out page counts as populated. */
		ptep[i] = swp_entry_to_pte(swp_entry(0, 1));
		KUNIT_EXPECT_NULL_MSG(test,
				      page_granule_verify_ptes(vma, SZ_4G, ptep),
				      "entry %d", i);
		ptep[i] = pte;
	}

#ifdef CONFIG_ARM64_CONTPTE
	fill_run(ptep, pfn);
	KUNIT_EXPECT_STREQ(test, "a run, but not marked contiguous",
			   page_granule_verify_ptes(vma, SZ_4G, ptep));
#endif
}
#endif /* CONFIG_DEBUG_PAGE_GRANULE */

/*
 * A real address space, in which this thread is the only one.
 */

/* The state of one granule in the page table. */
struct granule_seen {
	enum page_granule_state state;
	unsigned long pfn;	/* of the first entry */
	unsigned int present;	/* entries that are, ... */
	unsigned int zero;	/* ... that map a zero page, ... */
	unsigned int writable;	/* ... that can be written to, ... */
	unsigned int cont;	/* ... and that have the contiguous bit */
};

/* This only uses what modules may use. The mmap lock keeps the page table. */
static pte_t *lock_pte(struct mm_struct *mm, unsigned long addr,
		       spinlock_t **ptlp)
{
	pgd_t *pgd = pgd_offset(mm, addr);
	p4d_t *p4d;
	pud_t *pud;
	pmd_t *pmd;

	if (pgd_none(*pgd))
		return NULL;
	p4d = p4d_offset(pgd, addr);
	if (p4d_none(*p4d))
		return NULL;
	pud = pud_offset(p4d, addr);
	if (pud_none(*pud) || pud_leaf(*pud))
		return NULL;
	pmd = pmd_offset(pud, addr);
	if (pmd_none(*pmd) || pmd_leaf(*pmd))
		return NULL;

	*ptlp = pte_lockptr(mm, pmd);
	spin_lock(*ptlp);
	return pte_offset_kernel(pmd, addr);
}

/* Read the bit itself from memory, and infer nothing. */
static bool pte_is_contiguous(pte_t *ptep)
{
#ifdef CONFIG_ARM64_CONTPTE
	return pte_cont(__ptep_get(ptep));
#else
	return false;
#endif
}

/* Look at the block at @addr. Make no assertions here, with locks held. */
static struct granule_seen look(unsigned long addr)
{
	struct granule_seen seen = { .state = PAGE_GRANULE_EMPTY };
	struct mm_struct *mm = current->mm;
	struct vm_area_struct *vma;
	spinlock_t *ptl; /* of the page table */
	pte_t *ptep;
	int i;

	mmap_read_lock(mm);
	vma = find_vma(mm, addr);
	ptep = lock_pte(mm, addr, &ptl);
	if (vma && ptep) {
		seen.state = page_granule_pte_state(vma, addr, ptep);
		seen.pfn = pte_pfn(ptep_get(ptep));
		for (i = 0; i < PAGE_GRANULE_NR; i++) {
			const pte_t pte = ptep_get(ptep + i);

			if (!pte_present(pte))
				continue;
			seen.present++;
			seen.zero += is_zero_pfn(pte_pfn(pte));
			seen.writable += !!pte_write(pte);
			seen.cont += pte_is_contiguous(ptep + i);
		}
	}
	if (ptep)
		spin_unlock(ptl);
	mmap_read_unlock(mm);

	return seen;
}

static void expect_empty(struct kunit *test, unsigned long addr)
{
	const struct granule_seen seen = look(addr);

	KUNIT_EXPECT_EQ(test, seen.state, PAGE_GRANULE_EMPTY);
	KUNIT_EXPECT_EQ(test, seen.present, 0);
}

static void expect_whole(struct kunit *test, unsigned long addr, bool zero)
{
	const struct granule_seen seen = look(addr);

	KUNIT_EXPECT_EQ(test, seen.state, PAGE_GRANULE_WHOLE);
	KUNIT_EXPECT_TRUE(test, IS_ALIGNED(seen.pfn, PAGE_GRANULE_NR));
	KUNIT_EXPECT_EQ(test, seen.present, PAGE_GRANULE_NR);
	KUNIT_EXPECT_EQ(test, seen.zero, zero ? PAGE_GRANULE_NR : 0);
	KUNIT_EXPECT_EQ(test, seen.writable, zero ? 0 : PAGE_GRANULE_NR);
	if (IS_ENABLED(CONFIG_ARM64_CONTPTE))
		KUNIT_EXPECT_EQ(test, seen.cont, PAGE_GRANULE_NR);
}

/* Expect a block with only some pages, touched one by one. */
static void expect_broken(struct kunit *test, unsigned long addr,
			  unsigned int present)
{
	const struct granule_seen seen = look(addr);

	KUNIT_EXPECT_EQ(test, seen.state, PAGE_GRANULE_BROKEN);
	KUNIT_EXPECT_EQ(test, seen.present, present);
	KUNIT_EXPECT_EQ(test, seen.cont, 0);
}

/* Map anonymous memory, less than a huge page. */
static unsigned long map(struct kunit *test, unsigned long addr,
			 unsigned long len, unsigned long flags)
{
	unsigned long ret;

	KUNIT_ASSERT_EQ(test, kunit_attach_mm(), 0);

	ret = kunit_vm_mmap(test, NULL, addr, len, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | flags, 0);
	if (ret == -EOPNOTSUPP)
		kunit_skip(test, "write 1 to /sys/kernel/mm/page_granule/enabled");
	KUNIT_ASSERT_FALSE_MSG(test, !ret || IS_ERR_VALUE(ret),
			       "mmap: %ld", (long)ret);
	return ret;
}

/* Map a contract VMA of three granules. */
static unsigned long map_contract(struct kunit *test)
{
	unsigned long addr = map(test, 0, SPAN_SIZE, MAP_GRANULE_64KB);

	KUNIT_ASSERT_TRUE(test, IS_ALIGNED(addr, PAGE_GRANULE_SIZE));
	return addr;
}

/* Map a default-tagged VMA of @pages pages, @skip pages into a free span. */
static unsigned long map_default(struct kunit *test, int skip, int pages)
{
	unsigned long addr = map_contract(test);

	KUNIT_ASSERT_EQ(test, vm_munmap(addr, SPAN_SIZE), 0);

	mm_flags_set(MMF_GRANULE_MMAP, current->mm);
	KUNIT_ASSERT_EQ(test, addr + skip * PAGE_SIZE,
			map(test, addr + skip * PAGE_SIZE, pages * PAGE_SIZE,
			    MAP_FIXED_NOREPLACE));
	mm_flags_clear(MMF_GRANULE_MMAP, current->mm);
	return addr;
}

static void write_byte(struct kunit *test, unsigned long addr, u8 value)
{
	KUNIT_ASSERT_EQ(test, put_user(value, (u8 __user *)addr), 0);
}

static u8 read_byte(struct kunit *test, unsigned long addr)
{
	u8 value = 0xff;

	KUNIT_ASSERT_EQ(test, get_user(value, (u8 __user *)addr), 0);
	return value;
}

/* Expect that the granule at @addr reads as zero, except for one byte. */
static void expect_contents(struct kunit *test, unsigned long addr,
			    unsigned long offset, u8 value)
{
	u8 *buf = kunit_kzalloc(test, PAGE_GRANULE_SIZE, GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(test, buf);
	KUNIT_ASSERT_EQ(test, 0, copy_from_user(buf, (void __user *)addr,
						PAGE_GRANULE_SIZE));
	KUNIT_EXPECT_EQ(test, buf[offset], value);
	buf[offset] = 0;
	KUNIT_EXPECT_NULL(test, memchr_inv(buf, 0, PAGE_GRANULE_SIZE));
	kunit_kfree(test, buf);
}

static long anon_pages(void)
{
	return get_mm_counter_sum(current->mm, MM_ANONPAGES);
}

/* One byte written to any page of a granule makes it whole. */
static void mm_write(struct kunit *test)
{
	int page;

	for (page = 0; page < PAGE_GRANULE_NR; page++) {
		const unsigned long addr = map_contract(test);
		const unsigned long granule = addr + PAGE_GRANULE_SIZE;
		const unsigned long offset = page * PAGE_SIZE + 123;

		expect_empty(test, granule);
		write_byte(test, granule + offset, 0xa5);

		expect_whole(test, granule, false);
		expect_empty(test, addr);
		expect_empty(test, addr + 2 * PAGE_GRANULE_SIZE);
		KUNIT_EXPECT_EQ(test, anon_pages(), PAGE_GRANULE_NR);
		expect_contents(test, granule, offset, 0xa5);

		/* The next mapping must not have neighbours. */
		KUNIT_ASSERT_EQ(test, vm_munmap(addr, SPAN_SIZE), 0);
		KUNIT_EXPECT_EQ(test, anon_pages(), 0);
	}
}

/* One byte read from any page of a granule maps the zero block, for free. */
static void mm_read(struct kunit *test)
{
	int page;

	for (page = 0; page < PAGE_GRANULE_NR; page++) {
		const unsigned long addr = map_contract(test);
		const unsigned long granule = addr + PAGE_GRANULE_SIZE;

		KUNIT_EXPECT_EQ(test, 0,
				read_byte(test, granule + page * PAGE_SIZE));

		expect_whole(test, granule, true);
		KUNIT_EXPECT_EQ(test, look(granule).pfn, zero_pfn(0));
		expect_empty(test, addr);
		expect_empty(test, addr + 2 * PAGE_GRANULE_SIZE);
		KUNIT_EXPECT_EQ(test, anon_pages(), 0);
		expect_contents(test, granule, 0, 0);

		KUNIT_ASSERT_EQ(test, vm_munmap(addr, SPAN_SIZE), 0);
	}
}

/* The first write to any page replaces the whole zero block. */
static void mm_write_after_read(struct kunit *test)
{
	int page;

	for (page = 0; page < PAGE_GRANULE_NR; page++) {
		const unsigned long addr = map_contract(test);
		const unsigned long granule = addr + PAGE_GRANULE_SIZE;
		const unsigned long offset = page * PAGE_SIZE + 321;

		/* The neighbours must stay as they are. */
		KUNIT_EXPECT_EQ(test, read_byte(test, addr), 0);
		KUNIT_EXPECT_EQ(test, read_byte(test, granule), 0);
		expect_whole(test, granule, true);
		write_byte(test, granule + offset, 0x5a);

		expect_whole(test, granule, false);
		expect_whole(test, addr, true);
		expect_empty(test, addr + 2 * PAGE_GRANULE_SIZE);
		KUNIT_EXPECT_EQ(test, anon_pages(), PAGE_GRANULE_NR);
		expect_contents(test, granule, offset, 0x5a);
		expect_contents(test, addr, 0, 0);

		KUNIT_ASSERT_EQ(test, vm_munmap(addr, SPAN_SIZE), 0);
	}
}

/*
 * The bounds of a default-tagged VMA may cut off its first and last block:
 *
 *   0         64K       128K      192K
 *   |   *******|*********|******   |
 *
 * Base pages populate these two; a granule populates the block between them.
 */
static void mm_default_bounds(struct kunit *test)
{
	int cut;

	for (cut = 1; cut < PAGE_GRANULE_NR; cut++) {
		const unsigned long addr =
			map_default(test, cut, SPAN_PAGES - 2 * cut);
		const unsigned long granule = addr + PAGE_GRANULE_SIZE;
		const unsigned long end = granule + PAGE_GRANULE_SIZE;

		write_byte(test, granule - PAGE_SIZE, 1);
		write_byte(test, end, 1);
		expect_broken(test, addr, 1);
		expect_broken(test, end, 1);
		expect_empty(test, granule);

		write_byte(test, granule, 1);
		expect_whole(test, granule, false);
		expect_broken(test, addr, 1);
		expect_broken(test, end, 1);
		KUNIT_EXPECT_EQ(test, anon_pages(), PAGE_GRANULE_NR + 2);

		KUNIT_ASSERT_EQ(test, vm_munmap(addr, SPAN_SIZE), 0);
	}
}

/* Reads map one zero page each to the blocks that are cut off. */
static void mm_default_bounds_read(struct kunit *test)
{
	const unsigned long addr = map_default(test, 1, SPAN_PAGES - 2);
	const unsigned long granule = addr + PAGE_GRANULE_SIZE;
	const unsigned long end = granule + PAGE_GRANULE_SIZE;

	KUNIT_EXPECT_EQ(test, read_byte(test, granule - 1), 0);
	KUNIT_EXPECT_EQ(test, read_byte(test, end), 0);
	KUNIT_EXPECT_EQ(test, read_byte(test, end - 1), 0);
	expect_broken(test, addr, 1);
	expect_broken(test, end, 1);
	expect_whole(test, granule, true);
	KUNIT_EXPECT_EQ(test, anon_pages(), 0);
}

/* mmap() anonymous memory at an address that has room for it. */
static long try_map(unsigned long addr, unsigned long len, unsigned long type,
		    unsigned long flags)
{
	const unsigned long ret = vm_mmap(NULL, addr, len,
					  PROT_READ | PROT_WRITE,
					  MAP_ANONYMOUS | type | flags, 0);

	if (!IS_ERR_VALUE(ret))
		vm_munmap(ret, len);
	return IS_ERR_VALUE(ret) ? (long)ret : 0;
}

/* A length that is not a multiple of 64 KiB is refused, like an address. */
static void mm_contract_length(struct kunit *test)
{
	const unsigned long addr = map_contract(test);
	const unsigned long fixed = MAP_GRANULE_64KB | MAP_FIXED;
	unsigned long len;

	for (len = 1; len <= SPAN_SIZE; len += PAGE_SIZE / 2) {
		const unsigned long sizes[] = { len, len - 1, len + 1 };
		int i;

		for (i = 0; i < ARRAY_SIZE(sizes); i++) {
			const unsigned long size = sizes[i];

			if (IS_ALIGNED(size, PAGE_GRANULE_SIZE))
				continue;
			KUNIT_ASSERT_EQ_MSG(test, -EINVAL,
					    try_map(0, size, MAP_PRIVATE,
						    MAP_GRANULE_64KB),
					    "length %lx", size);
			KUNIT_ASSERT_EQ_MSG(test, -EINVAL,
					    try_map(addr, size, MAP_PRIVATE,
						    fixed),
					    "length %lx", size);
		}
	}
	KUNIT_EXPECT_EQ(test, -EINVAL,
			try_map(0, ULONG_MAX, MAP_PRIVATE, MAP_GRANULE_64KB));
	KUNIT_EXPECT_EQ(test, -ENOMEM,
			try_map(0, ULONG_MAX & PAGE_GRANULE_MASK, MAP_PRIVATE,
				MAP_GRANULE_64KB));
	KUNIT_EXPECT_EQ(test, 0,
			try_map(0, PAGE_GRANULE_SIZE, MAP_PRIVATE,
				MAP_GRANULE_64KB));
}

/* Return the VMA flags of the mapping at an address. */
static vma_flags_t flags_at(struct kunit *test, unsigned long addr)
{
	struct mm_struct *mm = current->mm;
	struct vm_area_struct *vma;
	vma_flags_t flags = EMPTY_VMA_FLAGS;

	mmap_read_lock(mm);
	vma = vma_lookup(mm, addr);
	if (vma)
		flags = vma->flags;
	mmap_read_unlock(mm);
	KUNIT_ASSERT_NOT_NULL(test, vma);
	return flags;
}

/* The stack of a thread is tagged on request, and can then have folios. */
static void mm_stack(struct kunit *test)
{
	vma_flags_t flags;

	flags = flags_at(test, map(test, 0, SPAN_SIZE,
				   MAP_STACK | MAP_GRANULE_64KB));
	KUNIT_EXPECT_TRUE(test, vma_flags_test(&flags, VMA_GRANULE_CONTRACT_BIT));
	KUNIT_EXPECT_FALSE(test, vma_flags_test(&flags, VMA_NOHUGEPAGE_BIT));

	mm_flags_set(MMF_GRANULE_MMAP, current->mm);
	flags = flags_at(test, map(test, 0, SPAN_SIZE, 0));
	KUNIT_EXPECT_TRUE(test, vma_flags_test(&flags, VMA_GRANULE_BIT));

	flags = flags_at(test, map(test, 0, SPAN_SIZE, MAP_STACK));
	KUNIT_EXPECT_FALSE(test, vma_flags_test(&flags, VMA_GRANULE_BIT));
	KUNIT_EXPECT_TRUE(test, vma_flags_test(&flags, VMA_NOHUGEPAGE_BIT));
}

/* Memory that may be dropped is not tagged. */
static void mm_droppable(struct kunit *test)
{
	const vma_flags_t droppable = VMA_DROPPABLE;
	unsigned long addr;
	vma_flags_t flags;

	if (vma_flags_empty(&droppable))
		kunit_skip(test, "needs a 64-bit kernel");

	/* Skips if granules are switched off. */
	map_contract(test);
	KUNIT_EXPECT_EQ(test, -EOPNOTSUPP,
			try_map(0, SPAN_SIZE, MAP_DROPPABLE, MAP_GRANULE_64KB));

	mm_flags_set(MMF_GRANULE_MMAP, current->mm);
	addr = kunit_vm_mmap(test, NULL, 0, SPAN_SIZE, PROT_READ | PROT_WRITE,
			     MAP_DROPPABLE | MAP_ANONYMOUS, 0);
	KUNIT_ASSERT_FALSE(test, IS_ERR_VALUE(addr));
	flags = flags_at(test, addr);
	KUNIT_EXPECT_TRUE(test, vma_flags_test(&flags, VMA_DROPPABLE_BIT));
	KUNIT_EXPECT_FALSE(test, vma_flags_test(&flags, VMA_GRANULE_BIT));
}

/* A 32-bit address space is not offered granules, whatever it inherits. */
static void mm_32bit(struct kunit *test)
{
	struct mm_struct *mm;
	unsigned long task_size;
	vma_flags_t flags;

	if (!IS_ENABLED(CONFIG_COMPAT))
		kunit_skip(test, "set CONFIG_COMPAT=y");

	map_contract(test);
	mm = current->mm;
	mm_flags_set(MMF_GRANULE_MMAP, mm);
	task_size = mm->task_size;
	mm->task_size = SZ_4G;

	KUNIT_EXPECT_EQ(test, -EOPNOTSUPP,
			try_map(0, SPAN_SIZE, MAP_PRIVATE, MAP_GRANULE_64KB));
	/* Invalid arguments stay invalid. */
	KUNIT_EXPECT_EQ(test, -EINVAL,
			try_map(0, PAGE_SIZE, MAP_PRIVATE, MAP_GRANULE_64KB));
	KUNIT_EXPECT_EQ(test, 0,
			try_map(0, PAGE_SIZE, MAP_PRIVATE, MAP_GRANULE_4KB));
	flags = flags_at(test, map(test, 0, SPAN_SIZE, 0));
	KUNIT_EXPECT_FALSE(test, vma_flags_test(&flags, VMA_GRANULE_BIT));

	mm->task_size = task_size;
	flags = flags_at(test, map(test, 0, SPAN_SIZE, 0));
	KUNIT_EXPECT_TRUE(test, vma_flags_test(&flags, VMA_GRANULE_BIT));
}

/*
 * Default-tagged mappings with a length that is not a multiple of 64 KiB are
 * placed like untagged ones: side by side, so that they are one VMA.
 */
static void mm_neighbours_merge(struct kunit *test)
{
	const unsigned long len = PAGE_GRANULE_SIZE + 9 * PAGE_SIZE;
	unsigned long addr, next, first;
	struct vm_area_struct *vma;
	struct mm_struct *mm;
	int i;

	map_contract(test);
	mm = current->mm;
	mm_flags_set(MMF_GRANULE_MMAP, mm);
	first = map(test, 0, len, 0);
	for (addr = first, i = 1; i < 10; addr = next, i++) {
		next = map(test, 0, len, 0);
		KUNIT_ASSERT_EQ(test, len, max(addr, next) - min(addr, next));
	}

	mmap_read_lock(mm);
	vma = vma_lookup(mm, first);
	KUNIT_EXPECT_PTR_EQ(test, vma, vma_lookup(mm, addr));
	mmap_read_unlock(mm);

	/* A multiple of 64 KiB is aligned. */
	addr = map(test, 0, PAGE_GRANULE_SIZE, 0);
	KUNIT_EXPECT_TRUE(test, IS_ALIGNED(addr, PAGE_GRANULE_SIZE));
}

/* A hole that fits exactly is used again. No hole before it fits. */
static void mm_exact_hole(struct kunit *test)
{
	const unsigned long addr = map_contract(test);
	const unsigned long hole = addr + PAGE_GRANULE_SIZE;

	KUNIT_ASSERT_EQ(test, vm_munmap(hole, PAGE_GRANULE_SIZE), 0);
	KUNIT_EXPECT_EQ(test, hole,
			map(test, 0, PAGE_GRANULE_SIZE, MAP_GRANULE_64KB));
}

/* A process that has not asked for granules, or has opted out, gets a page. */
static void mm_untagged(struct kunit *test)
{
	unsigned long addr, granule;

	addr = map(test, 0, SPAN_SIZE, 0);
	granule = ALIGN(addr, PAGE_GRANULE_SIZE);
	write_byte(test, granule, 1);
	expect_broken(test, granule, 1);
	KUNIT_EXPECT_EQ(test, read_byte(test, granule + PAGE_SIZE), 0);
	expect_broken(test, granule, 2);

	mm_flags_set(MMF_GRANULE_MMAP, current->mm);
	addr = map(test, 0, SPAN_SIZE, MAP_GRANULE_4KB);
	granule = ALIGN(addr, PAGE_GRANULE_SIZE);
	write_byte(test, granule, 1);
	expect_broken(test, granule, 1);
}

/* A call that would cut a contract granule fails, and the run stays. */
static void mm_contract_munmap(struct kunit *test)
{
	const unsigned long addr = map_contract(test);
	const unsigned long granule = addr + PAGE_GRANULE_SIZE;
	int page;

	write_byte(test, granule, 1);

	for (page = 1; page < PAGE_GRANULE_NR; page++) {
		const unsigned long len = page * PAGE_SIZE;

		KUNIT_EXPECT_EQ(test, vm_munmap(granule, len), -EINVAL);
		KUNIT_EXPECT_EQ(test, vm_munmap(granule + len,
						PAGE_GRANULE_SIZE - len),
				-EINVAL);
		/* A start at a multiple of 64 KiB does not help. */
		KUNIT_EXPECT_EQ(test, vm_munmap(addr, PAGE_GRANULE_SIZE + len),
				-EINVAL);
		expect_whole(test, granule, false);
	}

	KUNIT_EXPECT_EQ(test, vm_munmap(granule, PAGE_GRANULE_SIZE), 0);
	KUNIT_EXPECT_EQ(test, anon_pages(), 0);
}

/*
 * The same call is legal on a default-tagged VMA. The rest of the granule is
 * not a run, and must not be marked as one.
 */
static void mm_default_munmap(struct kunit *test)
{
	int page;

	for (page = 0; page < PAGE_GRANULE_NR; page++) {
		const unsigned long addr = map_default(test, 0, SPAN_PAGES);
		const unsigned long granule = addr + PAGE_GRANULE_SIZE;

		write_byte(test, granule, 1);
		expect_whole(test, granule, false);

		KUNIT_EXPECT_EQ(test, 0, vm_munmap(granule + page * PAGE_SIZE,
						   PAGE_SIZE));
		expect_broken(test, granule, PAGE_GRANULE_NR - 1);
		KUNIT_EXPECT_EQ(test, anon_pages(), PAGE_GRANULE_NR - 1);

		KUNIT_ASSERT_EQ(test, vm_munmap(addr, SPAN_SIZE), 0);
	}
}

/*
 * A range is refused if either of its ends lies inside a granule of a contract
 * VMA, wherever the other one is:
 *
 *   0         64K       128K      192K      256K      320K
 *   | untagged | contract: three granules   | default  |
 */
static void mm_check_range(struct kunit *test)
{
	const int pages = SPAN_PAGES + 2 * PAGE_GRANULE_NR;
	struct mm_struct *mm;
	unsigned long addr;
	int start, end;

	addr = map(test, 0, pages * PAGE_SIZE, MAP_GRANULE_64KB);
	mm = current->mm;
	KUNIT_ASSERT_TRUE(test, mm_has_granule_contract(mm));
	KUNIT_ASSERT_EQ(test, vm_munmap(addr, PAGE_GRANULE_SIZE), 0);
	KUNIT_ASSERT_EQ(test, 0, vm_munmap(addr + (pages - PAGE_GRANULE_NR) *
					   PAGE_SIZE, PAGE_GRANULE_SIZE));
	map(test, addr, PAGE_GRANULE_SIZE, MAP_FIXED);
	mm_flags_set(MMF_GRANULE_MMAP, mm);
	map(test, addr + (pages - PAGE_GRANULE_NR) * PAGE_SIZE,
	    PAGE_GRANULE_SIZE, MAP_FIXED);

	for (start = 0; start < pages; start++) {
		for (end = start + 1; end <= pages; end++) {
			const bool cuts =
				(start % PAGE_GRANULE_NR &&
				 start / PAGE_GRANULE_NR >= 1 &&
				 start / PAGE_GRANULE_NR <= 3) ||
				(end % PAGE_GRANULE_NR &&
				 end / PAGE_GRANULE_NR >= 1 &&
				 end / PAGE_GRANULE_NR <= 3);
			int ret;

			mmap_read_lock(mm);
			ret = page_granule_check_range(mm,
						       addr + start * PAGE_SIZE,
						       addr + end * PAGE_SIZE);
			mmap_read_unlock(mm);
			KUNIT_ASSERT_EQ_MSG(test, ret, cuts ? -EINVAL : 0,
					    "pages %d to %d", start, end);
		}
	}
}

/*
 * Find the whole granules that are cut by each range over two whole granules
 * and an empty one.
 */
static void mm_cuts_whole(struct kunit *test)
{
	const unsigned long addr = map_default(test, 0, SPAN_PAGES);
	struct mm_struct *mm = current->mm;
	int start, end;

	write_byte(test, addr, 1);
	write_byte(test, addr + PAGE_GRANULE_SIZE, 1);

	for (start = 0; start < SPAN_PAGES; start++) {
		for (end = start + 1; end < SPAN_PAGES; end++) {
			const int first = start / PAGE_GRANULE_NR;
			const int last = end / PAGE_GRANULE_NR;
			const bool cuts_first = start % PAGE_GRANULE_NR &&
						first < 2;
			const bool cuts_last = end % PAGE_GRANULE_NR &&
					       last < 2;
			unsigned int expected, cuts;

			expected = cuts_first + cuts_last;
			if (expected == 2 && first == last)
				expected = 1;

			mmap_read_lock(mm);
			cuts = page_granule_cut_ends(find_vma(mm, addr),
						     addr + start * PAGE_SIZE,
						     addr + end * PAGE_SIZE);
			mmap_read_unlock(mm);
			KUNIT_ASSERT_EQ_MSG(test, hweight32(cuts), expected,
					    "pages %d to %d", start, end);
		}
	}
}

/* Map shared anonymous memory as a contract VMA of three granules. */
static unsigned long map_shared(struct kunit *test)
{
	unsigned long addr = map(test, 0, SPAN_SIZE, MAP_GRANULE_64KB);

	/* It only provided the address, and the preparations of map(). */
	KUNIT_ASSERT_EQ(test, vm_munmap(addr, SPAN_SIZE), 0);
	KUNIT_ASSERT_EQ(test, addr,
			kunit_vm_mmap(test, NULL, addr, SPAN_SIZE,
				      PROT_READ | PROT_WRITE,
				      MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED |
				      MAP_GRANULE_64KB, 0));
	return addr;
}

/* A write populates a granule of shared memory, too. */
static void mm_shared(struct kunit *test)
{
	int page;

	if (!IS_ENABLED(CONFIG_SHMEM))
		kunit_skip(test, "set CONFIG_SHMEM=y");

	for (page = 0; page < PAGE_GRANULE_NR; page++) {
		const unsigned long addr = map_shared(test);
		const unsigned long granule = addr + PAGE_GRANULE_SIZE;
		const unsigned long offset = page * PAGE_SIZE + 213;

		write_byte(test, granule + offset, 0xa5);
		expect_whole(test, granule, false);
		expect_empty(test, addr);
		expect_empty(test, addr + 2 * PAGE_GRANULE_SIZE);
		expect_contents(test, granule, offset, 0xa5);

		KUNIT_ASSERT_EQ(test, vm_munmap(addr, SPAN_SIZE), 0);
	}
}

/* A read populates all of it as well, for later writes. */
static void mm_shared_read(struct kunit *test)
{
	unsigned long addr, granule;

	if (!IS_ENABLED(CONFIG_SHMEM))
		kunit_skip(test, "set CONFIG_SHMEM=y");

	addr = map_shared(test);
	granule = addr + PAGE_GRANULE_SIZE;
	KUNIT_EXPECT_EQ(test, read_byte(test, granule + PAGE_SIZE), 0);
	expect_whole(test, granule, false);
	write_byte(test, granule + 5, 0x5a);
	expect_whole(test, granule, false);
	expect_contents(test, granule, 5, 0x5a);
}

/*
 * A write fault may find that a read fault was faster and has mapped the
 * granule writable. It must not make the pages of the run differ.
 */
static void mm_write_after_race(struct kunit *test)
{
	struct mm_struct *mm;
	unsigned long granule;
	vm_fault_t ret;

	if (!IS_ENABLED(CONFIG_SHMEM))
		kunit_skip(test, "set CONFIG_SHMEM=y");

	granule = map_shared(test) + PAGE_GRANULE_SIZE;
	KUNIT_EXPECT_EQ(test, read_byte(test, granule), 0);
	expect_whole(test, granule, false);

	mm = current->mm;
	mmap_read_lock(mm);
	ret = handle_mm_fault(vma_lookup(mm, granule), granule + 3 * PAGE_SIZE,
			      FAULT_FLAG_WRITE, NULL);
	mmap_read_unlock(mm);
	KUNIT_EXPECT_FALSE(test, ret & VM_FAULT_ERROR);
	expect_whole(test, granule, false);
}

#if IS_BUILTIN(CONFIG_PAGE_GRANULE_KUNIT_TEST) && defined(CONFIG_MIGRATION)
/* Do as try_to_migrate(), but make accessed and dirty bits differ. */
static struct folio *make_migration_entries(unsigned long addr)
{
	struct mm_struct *mm = current->mm;
	struct folio *folio = NULL;
	struct vm_area_struct *vma;
	struct page *page;
	spinlock_t *ptl; /* of the page table */
	pte_t *ptep;
	int i;

	mmap_read_lock(mm);
	vma = find_vma(mm, addr);
	ptep = lock_pte(mm, addr, &ptl);
	if (!ptep)
		goto unlock;
	page = pte_page(ptep_get(ptep));
	folio = page_folio(page);
	folio_get(folio);
	get_and_clear_ptes(mm, addr, ptep, PAGE_GRANULE_NR);
	flush_tlb_range(vma, addr, addr + PAGE_GRANULE_SIZE);
	for (i = 0; i < PAGE_GRANULE_NR; i++) {
		softleaf_t entry = make_writable_migration_entry(page_to_pfn(page + i));

		if (i < PAGE_GRANULE_NR / 4)
			entry = make_migration_entry_young(entry);
		if (i < PAGE_GRANULE_NR / 2)
			entry = make_migration_entry_dirty(entry);
		set_pte_at(mm, addr + i * PAGE_SIZE, ptep + i,
			   softleaf_to_pte(entry));
	}
	folio_remove_rmap_ptes(folio, page, PAGE_GRANULE_NR, vma);
	folio_put_refs(folio, PAGE_GRANULE_NR);
	spin_unlock(ptl);
unlock:
	mmap_read_unlock(mm);
	return folio;
}

/* Unmap one page of shared memory, as reclaim of that page alone would. */
static bool unmap_page(unsigned long addr)
{
	struct mm_struct *mm = current->mm;
	struct vm_area_struct *vma;
	struct page *page;
	spinlock_t *ptl; /* of the page table */
	pte_t *ptep;

	mmap_read_lock(mm);
	vma = find_vma(mm, addr);
	ptep = lock_pte(mm, addr, &ptl);
	if (ptep) {
		page = pte_page(get_and_clear_ptes(mm, addr, ptep, 1));
		flush_tlb_page(vma, addr);
		dec_mm_counter(mm, MM_SHMEMPAGES);
		folio_remove_rmap_ptes(page_folio(page), page, 1, vma);
		folio_put(page_folio(page));
		spin_unlock(ptl);
	}
	mmap_read_unlock(mm);
	return ptep;
}

/* Assert that a granule is marked again when its missing page is mapped. */
static void mm_filled(struct kunit *test)
{
	unsigned long granule;

	if (!IS_ENABLED(CONFIG_SHMEM))
		kunit_skip(test, "set CONFIG_SHMEM=y");

	granule = map_shared(test);
	write_byte(test, granule, 7);
	expect_whole(test, granule, false);
	KUNIT_ASSERT_TRUE(test, unmap_page(granule + 3 * PAGE_SIZE));
	/* The page is in the same folio, but mapped alone, and not the last. */
	write_byte(test, granule + 3 * PAGE_SIZE, 8);
	expect_whole(test, granule, false);
	KUNIT_EXPECT_EQ(test, read_byte(test, granule), 7);
}

/* Assert that a granule accessed in part is a run after migration. */
static void mm_migrate(struct kunit *test)
{
	unsigned long granule = map_contract(test);
	struct folio *folio;

	write_byte(test, granule + PAGE_SIZE, 7);
	expect_whole(test, granule, false);
	/* The migration of these pages fails, which puts them back. */
	folio = make_migration_entries(granule);
	KUNIT_ASSERT_NOT_NULL(test, folio);
	folio_lock(folio);
	remove_migration_ptes(folio, folio, 0);
	folio_unlock(folio);
	folio_put(folio);
	expect_whole(test, granule, false);
	KUNIT_EXPECT_EQ(test, read_byte(test, granule + PAGE_SIZE), 7);
}
#endif

static struct kunit_case page_granule_cases[] = {
	KUNIT_CASE(within),
	KUNIT_CASE(vma_bits),
	KUNIT_CASE(opt_outs),
	KUNIT_CASE(congruent),
	KUNIT_CASE(accepts),
	KUNIT_CASE(orders),
	KUNIT_CASE(fault_range),
	KUNIT_CASE(aligns),
	KUNIT_CASE(parse_size),
	KUNIT_CASE(parse_flags),
	KUNIT_CASE(zero_block),
	KUNIT_CASE(run_alignment),
	KUNIT_CASE(run_neighbours),
	KUNIT_CASE(run_hole),
	KUNIT_CASE(run_wrong_pfn),
	KUNIT_CASE(run_write),
	KUNIT_CASE(run_soft_dirty),
	KUNIT_CASE(run_uffd),
	KUNIT_CASE(run_accessed_dirty),
	KUNIT_CASE(run_protnone),
	KUNIT_CASE(run_special),
	KUNIT_CASE(run_swap),
#ifdef CONFIG_ARM64_CONTPTE
	KUNIT_CASE(run_contpte),
#endif
	KUNIT_CASE(state_empty),
	KUNIT_CASE(state_partly),
	KUNIT_CASE(state_swap),
	KUNIT_CASE(state_zero),
	KUNIT_CASE(zero_batches),
	KUNIT_CASE(state_folio),
	KUNIT_CASE(batches),
	KUNIT_CASE(state_pages),
#ifdef CONFIG_DEBUG_PAGE_GRANULE
	KUNIT_CASE(check),
#endif
	KUNIT_CASE(mm_write),
	KUNIT_CASE(mm_read),
	KUNIT_CASE(mm_write_after_read),
	KUNIT_CASE(mm_default_bounds),
	KUNIT_CASE(mm_default_bounds_read),
	KUNIT_CASE(mm_untagged),
	KUNIT_CASE(mm_contract_length),
	KUNIT_CASE(mm_stack),
	KUNIT_CASE(mm_droppable),
	KUNIT_CASE(mm_32bit),
	KUNIT_CASE(mm_neighbours_merge),
	KUNIT_CASE(mm_exact_hole),
	KUNIT_CASE(mm_contract_munmap),
	KUNIT_CASE(mm_default_munmap),
	KUNIT_CASE(mm_check_range),
	KUNIT_CASE(mm_cuts_whole),
	KUNIT_CASE(mm_shared),
	KUNIT_CASE(mm_shared_read),
	KUNIT_CASE(mm_write_after_race),
#if IS_BUILTIN(CONFIG_PAGE_GRANULE_KUNIT_TEST) && defined(CONFIG_MIGRATION)
	KUNIT_CASE(mm_migrate),
	KUNIT_CASE(mm_filled),
#endif
	{}
};

static struct kunit_suite page_granule_suite = {
	.name = "page_granule",
	.test_cases = page_granule_cases,
};

kunit_test_suite(page_granule_suite);

MODULE_DESCRIPTION("KUnit tests for the page granule");
MODULE_LICENSE("GPL");
