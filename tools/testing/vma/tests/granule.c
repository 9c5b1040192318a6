// SPDX-License-Identifier: GPL-2.0-or-later

/*
 * Merge and split rules of tagged and contract VMAs, see
 * Documentation/mm/page_granule.rst.
 */

/* What page_granule_split_vma() was last called for, and how often. */
static struct vm_area_struct *granule_split_vma;
static unsigned long granule_split_addr;
static int granule_split_count;

/* Custom: the kernel's looks at page tables, here we note that it was asked. */
void page_granule_split_vma(struct vm_area_struct *vma, unsigned long addr)
{
	granule_split_vma = vma;
	granule_split_addr = addr;
	granule_split_count++;
}

static void reset_granule_split(void)
{
	granule_split_vma = NULL;
	granule_split_addr = 0;
	granule_split_count = 0;
}

/* All values that the two bits can have, meaningful or not. */
enum {
	GRANULE_UNTAGGED,
	GRANULE_DEFAULT,
	GRANULE_CONTRACT_ONLY,
	GRANULE_CONTRACT,
	NUM_GRANULE_KINDS,
};

static vma_flags_t granule_flags(int kind)
{
	vma_flags_t flags = mk_vma_flags(VMA_READ_BIT, VMA_WRITE_BIT,
					 VMA_MAYREAD_BIT, VMA_MAYWRITE_BIT);

	if (kind & GRANULE_DEFAULT)
		vma_flags_set(&flags, VMA_GRANULE_BIT);
	if (kind & GRANULE_CONTRACT_ONLY)
		vma_flags_set(&flags, VMA_GRANULE_CONTRACT_BIT);
	return flags;
}

static struct vm_area_struct *
link_granule_vma(struct mm_struct *mm, unsigned long start, unsigned long end,
		 int kind)
{
	const vma_flags_t flags = granule_flags(kind);

	if (kind == GRANULE_CONTRACT)
		mm_flags_set(MMF_GRANULE_CONTRACT, mm);

	/* munmap() checks its accounting. */
	vm_stat_account(mm, vma_flags_to_legacy(flags),
			(end - start) >> PAGE_SHIFT);
	return alloc_and_link_vma(mm, start, end, start >> PAGE_SHIFT, flags);
}

/* Is this VMA as link_granule_vma() made it, and nothing begun to change it? */
static bool granule_vma_untouched(struct vm_area_struct *vma,
				  unsigned long start, unsigned long end,
				  int kind)
{
	ASSERT_EQ(vma_lookup(vma->vm_mm, start), vma);
	ASSERT_EQ(vma_lookup(vma->vm_mm, end - 1), vma);
	ASSERT_EQ(vma->vm_start, start);
	ASSERT_EQ(vma->vm_end, end);
	ASSERT_EQ(vma_start_pgoff(vma), start >> PAGE_SHIFT);
	ASSERT_EQ(vma_start_anon_pgoff(vma), start >> PAGE_SHIFT);
	ASSERT_FLAGS_SAME_MASK(&vma->flags, granule_flags(kind));
	ASSERT_FALSE(vma_write_started(vma));
	vma_assert_attached(vma);
	return true;
}

/*
 * Put a new VMA between two others, with each combination of the bits in the
 * three of them, and assert that it merges with those that have the same ones.
 *
 *   0        64K       128K      192K
 *   |  prev   | * new * |  next   |
 */
static bool __test_granule_merge_new(int prev_kind, int kind, int next_kind)
{
	const bool left = prev_kind == kind;
	const bool right = next_kind == kind;
	struct mm_struct mm = {};
	struct vma_iterator vmi;
	struct vma_merge_struct vmg = {
		.mm = &mm,
		.vmi = &vmi,
	};
	struct vm_area_struct *vma;
	bool merged;

	vma_iter_init(&vmi, &mm, 0);
	ASSERT_NE(link_granule_vma(&mm, 0, 0x10000, prev_kind), NULL);
	ASSERT_NE(link_granule_vma(&mm, 0x20000, 0x30000, next_kind), NULL);

	vma = try_merge_new_vma(&mm, &vmg, 0x10000, 0x20000, 0x10,
				granule_flags(kind), &merged);
	ASSERT_NE(vma, NULL);
	ASSERT_EQ(merged, left || right);
	ASSERT_EQ(vma->vm_start, left ? 0 : 0x10000);
	ASSERT_EQ(vma->vm_end, right ? 0x30000 : 0x20000);
	ASSERT_FLAGS_SAME_MASK(&vma->flags, granule_flags(kind));
	ASSERT_EQ(mm.map_count, 3 - left - right);

	cleanup_mm(&mm, &vmi);
	return true;
}

static bool test_granule_merge_new(void)
{
	int i;

	for (i = 0; i < NUM_GRANULE_KINDS * NUM_GRANULE_KINDS *
			NUM_GRANULE_KINDS; i++) {
		const int prev = i % NUM_GRANULE_KINDS;
		const int kind = i / NUM_GRANULE_KINDS % NUM_GRANULE_KINDS;
		const int next = i / NUM_GRANULE_KINDS / NUM_GRANULE_KINDS;

		ASSERT_TRUE(__test_granule_merge_new(prev, kind, next));
	}
	return true;
}

/*
 * The same for a VMA that becomes writable like its neighbours: mprotect() does
 * not change the granule bits, so they still decide.
 */
static bool __test_granule_merge_existing(int prev_kind, int kind, int next_kind)
{
	const bool left = prev_kind == kind;
	const bool right = next_kind == kind;
	vma_flags_t flags = granule_flags(kind);
	struct mm_struct mm = {};
	struct vma_iterator vmi;
	struct vm_area_struct *prev, *vma;

	vma_iter_init(&vmi, &mm, 0x10000);
	prev = link_granule_vma(&mm, 0, 0x10000, prev_kind);
	ASSERT_NE(prev, NULL);
	vma = link_granule_vma(&mm, 0x10000, 0x20000, kind);
	ASSERT_NE(vma, NULL);
	vma_clear_flags(vma, VMA_WRITE_BIT);
	ASSERT_NE(link_granule_vma(&mm, 0x20000, 0x30000, next_kind), NULL);

	vma = vma_modify_flags(&vmi, prev, vma, 0x10000, 0x20000, &flags);
	ASSERT_FALSE(IS_ERR(vma));
	ASSERT_EQ(vma->vm_start, left ? 0 : 0x10000);
	ASSERT_EQ(vma->vm_end, right ? 0x30000 : 0x20000);
	ASSERT_EQ(mm.map_count, 3 - left - right);

	cleanup_mm(&mm, &vmi);
	return true;
}

static bool test_granule_merge_existing(void)
{
	int i;

	for (i = 0; i < NUM_GRANULE_KINDS * NUM_GRANULE_KINDS *
			NUM_GRANULE_KINDS; i++) {
		const int prev = i % NUM_GRANULE_KINDS;
		const int kind = i / NUM_GRANULE_KINDS % NUM_GRANULE_KINDS;
		const int next = i / NUM_GRANULE_KINDS / NUM_GRANULE_KINDS;

		ASSERT_TRUE(__test_granule_merge_existing(prev, kind, next));
	}
	return true;
}

/* Assert that a contract VMA cannot be split inside a granule. */
static bool test_granule_split_contract_refused(void)
{
	struct mm_struct mm = {};
	struct vma_iterator vmi;
	struct vm_area_struct *vma;
	unsigned long addr;
	int below;

	vma_iter_init(&vmi, &mm, 0);
	vma = link_granule_vma(&mm, 0x10000, 0x40000, GRANULE_CONTRACT);
	ASSERT_NE(vma, NULL);
	reset_granule_split();

	for (addr = 0x11000; addr < 0x40000; addr += PAGE_SIZE) {
		if (IS_ALIGNED(addr, PAGE_GRANULE_SIZE))
			continue;

		for (below = 0; below < 2; below++) {
			vma_iter_set(&vmi, addr);
			ASSERT_EQ(vma_iter_load(&vmi), vma);
			ASSERT_EQ(split_vma(&vmi, vma, addr, below), -EINVAL);
			ASSERT_TRUE(granule_vma_untouched(vma, 0x10000, 0x40000,
							  GRANULE_CONTRACT));
			ASSERT_EQ(mm.map_count, 1);
		}
	}
	ASSERT_EQ(granule_split_count, 0);

	cleanup_mm(&mm, &vmi);
	return true;
}

/*
 * Split a VMA, assert that both parts keep the bits, and that whoever counts
 * broken granules has been asked while the VMA had its old bounds.
 */
static bool __test_granule_split(int kind, unsigned long addr, int below)
{
	const bool tagged = kind & GRANULE_DEFAULT;
	struct mm_struct mm = {};
	struct vma_iterator vmi;
	struct vm_area_struct *vma, *low, *high;

	vma_iter_init(&vmi, &mm, addr);
	vma = link_granule_vma(&mm, 0x10000, 0x40000, kind);
	ASSERT_NE(vma, NULL);
	ASSERT_EQ(vma_iter_load(&vmi), vma);
	reset_granule_split();

	ASSERT_EQ(split_vma(&vmi, vma, addr, below), 0);
	ASSERT_EQ(mm.map_count, 2);

	low = vma_lookup(&mm, 0x10000);
	high = vma_lookup(&mm, addr);
	ASSERT_EQ(below ? high : low, vma);
	ASSERT_EQ(low->vm_start, 0x10000);
	ASSERT_EQ(low->vm_end, addr);
	ASSERT_EQ(high->vm_start, addr);
	ASSERT_EQ(high->vm_end, 0x40000);
	ASSERT_EQ(vma_start_pgoff(high), addr >> PAGE_SHIFT);
	ASSERT_FLAGS_SAME_MASK(&low->flags, granule_flags(kind));
	ASSERT_FLAGS_SAME_MASK(&high->flags, granule_flags(kind));

	ASSERT_EQ(granule_split_count, tagged ? 1 : 0);
	if (tagged) {
		ASSERT_EQ(granule_split_vma, vma);
		ASSERT_EQ(granule_split_addr, addr);
	}

	cleanup_mm(&mm, &vmi);
	return true;
}

/* Assert that a contract VMA can be split between granules. */
static bool test_granule_split_contract(void)
{
	int below;

	for (below = 0; below < 2; below++) {
		ASSERT_TRUE(__test_granule_split(GRANULE_CONTRACT, 0x20000,
						 below));
		ASSERT_TRUE(__test_granule_split(GRANULE_CONTRACT, 0x30000,
						 below));
	}
	return true;
}

/* Assert that any other VMA can be split at any base page. */
static bool test_granule_split_default(void)
{
	unsigned long addr;
	int below;

	for (addr = 0x11000; addr < 0x40000; addr += PAGE_SIZE) {
		for (below = 0; below < 2; below++) {
			ASSERT_TRUE(__test_granule_split(GRANULE_DEFAULT, addr,
							 below));
			ASSERT_TRUE(__test_granule_split(GRANULE_UNTAGGED, addr,
							 below));
		}
	}
	return true;
}

/*
 * Assert that a change of a part of a contract VMA that begins or ends inside a
 * granule is refused before either end is split.
 */
static bool test_granule_modify_contract_refused(void)
{
	static const unsigned long ranges[][2] = {
		{ 0x10000, 0x11000 },	/* the end cuts the first granule */
		{ 0x10000, 0x3f000 },	/* ...or the last one */
		{ 0x11000, 0x40000 },	/* the start does */
		{ 0x20000, 0x21000 },	/* a start that can be split, but... */
		{ 0x11000, 0x20000 },
		{ 0x21000, 0x2f000 },	/* both ends, one granule */
		{ 0x11000, 0x3f000 },	/* both ends, two granules */
	};
	struct mm_struct mm = {};
	struct vma_iterator vmi;
	struct vm_area_struct *vma, *ret;
	int i;

	vma_iter_init(&vmi, &mm, 0);
	vma = link_granule_vma(&mm, 0x10000, 0x40000, GRANULE_CONTRACT);
	ASSERT_NE(vma, NULL);
	reset_granule_split();

	for (i = 0; i < ARRAY_SIZE(ranges); i++) {
		const unsigned long start = ranges[i][0], end = ranges[i][1];
		vma_flags_t flags = granule_flags(GRANULE_CONTRACT);

		vma_flags_clear(&flags, VMA_WRITE_BIT);
		vma_iter_set(&vmi, start);
		ASSERT_EQ(vma_iter_load(&vmi), vma);
		ret = vma_modify_flags(&vmi, start > 0x10000 ? vma : NULL, vma,
				       start, end, &flags);
		ASSERT_EQ(ret, ERR_PTR(-EINVAL));
		ASSERT_TRUE(granule_vma_untouched(vma, 0x10000, 0x40000,
						  GRANULE_CONTRACT));
		ASSERT_EQ(mm.map_count, 1);
	}
	ASSERT_EQ(granule_split_count, 0);

	cleanup_mm(&mm, &vmi);
	return true;
}

/*
 * A merge moves the bound between two VMAs without a split. Assert that it does
 * not move it into a granule either, in whichever direction:
 *
 *   0        64K       128K      192K
 *   |  prev   |*   vma  *|  next  |
 */
static bool test_granule_modify_contract_merge_refused(void)
{
	static const unsigned long ranges[][2] = {
		{ 0x10000, 0x11000 },	/* would merge with prev */
		{ 0x1f000, 0x20000 },	/* would merge with next */
	};
	struct mm_struct mm = {};
	struct vma_iterator vmi;
	struct vm_area_struct *prev, *vma, *next, *ret;
	int i;

	vma_iter_init(&vmi, &mm, 0);
	prev = link_granule_vma(&mm, 0, 0x10000, GRANULE_CONTRACT);
	ASSERT_NE(prev, NULL);
	vma = link_granule_vma(&mm, 0x10000, 0x20000, GRANULE_CONTRACT);
	ASSERT_NE(vma, NULL);
	next = link_granule_vma(&mm, 0x20000, 0x30000, GRANULE_CONTRACT);
	ASSERT_NE(next, NULL);

	for (i = 0; i < ARRAY_SIZE(ranges); i++) {
		vma_flags_t flags = granule_flags(GRANULE_CONTRACT);

		vma_clear_flags(vma, VMA_WRITE_BIT);
		vma_iter_set(&vmi, ranges[i][0]);
		ASSERT_EQ(vma_iter_load(&vmi), vma);
		ret = vma_modify_flags(&vmi, i ? vma : prev, vma, ranges[i][0],
				       ranges[i][1], &flags);
		ASSERT_EQ(ret, ERR_PTR(-EINVAL));
		vma_set_flags(vma, VMA_WRITE_BIT);

		ASSERT_TRUE(granule_vma_untouched(prev, 0, 0x10000,
						  GRANULE_CONTRACT));
		ASSERT_TRUE(granule_vma_untouched(vma, 0x10000, 0x20000,
						  GRANULE_CONTRACT));
		ASSERT_TRUE(granule_vma_untouched(next, 0x20000, 0x30000,
						  GRANULE_CONTRACT));
	}

	cleanup_mm(&mm, &vmi);
	return true;
}

/* The same for a default-tagged VMA is legal, and counted like a split. */
static bool test_granule_modify_default_merge(void)
{
	vma_flags_t flags = granule_flags(GRANULE_DEFAULT);
	struct mm_struct mm = {};
	struct vma_iterator vmi;
	struct vm_area_struct *prev, *vma, *ret;

	vma_iter_init(&vmi, &mm, 0x10000);
	prev = link_granule_vma(&mm, 0, 0x10000, GRANULE_DEFAULT);
	ASSERT_NE(prev, NULL);
	vma = link_granule_vma(&mm, 0x10000, 0x20000, GRANULE_DEFAULT);
	ASSERT_NE(vma, NULL);
	vma_clear_flags(vma, VMA_WRITE_BIT);
	reset_granule_split();

	ret = vma_modify_flags(&vmi, prev, vma, 0x10000, 0x11000, &flags);
	ASSERT_EQ(ret, prev);
	ASSERT_EQ(prev->vm_end, 0x11000);
	ASSERT_EQ(vma->vm_start, 0x11000);

	ASSERT_EQ(granule_split_count, 1);
	ASSERT_EQ(granule_split_vma, vma);
	ASSERT_EQ(granule_split_addr, 0x11000);

	cleanup_mm(&mm, &vmi);
	return true;
}

/*
 * Three VMAs, of which the outer two are contract VMAs or not:
 *
 *   64K       128K      192K      256K
 *   |   low    |   mid   |   high  |
 *
 * Unmap [start, end) and assert that it is refused with nothing changed.
 */
static bool __test_granule_munmap_refused(int low_kind, int high_kind,
					  unsigned long start, unsigned long end)
{
	struct mm_struct mm = {};
	struct vma_iterator vmi;
	struct vm_area_struct *low, *mid, *high;

	vma_iter_init(&vmi, &mm, start);
	low = link_granule_vma(&mm, 0x10000, 0x20000, low_kind);
	ASSERT_NE(low, NULL);
	mid = link_granule_vma(&mm, 0x20000, 0x30000, GRANULE_UNTAGGED);
	ASSERT_NE(mid, NULL);
	high = link_granule_vma(&mm, 0x30000, 0x40000, high_kind);
	ASSERT_NE(high, NULL);
	current->mm = &mm;
	reset_granule_split();

	ASSERT_EQ(do_vmi_munmap(&vmi, &mm, start, end - start, NULL, false),
		  -EINVAL);
	ASSERT_EQ(mm.map_count, 3);
	ASSERT_TRUE(granule_vma_untouched(low, 0x10000, 0x20000, low_kind));
	ASSERT_TRUE(granule_vma_untouched(mid, 0x20000, 0x30000,
					  GRANULE_UNTAGGED));
	ASSERT_TRUE(granule_vma_untouched(high, 0x30000, 0x40000, high_kind));
	ASSERT_EQ(granule_split_count, 0);

	cleanup_mm(&mm, &vmi);
	return true;
}

static bool test_granule_munmap_refused(void)
{
	static const struct {
		int low_kind, high_kind;
		unsigned long start, end;
	} cases[] = {
		/* Inside one granule, and at either end of it. */
		{ GRANULE_CONTRACT, GRANULE_UNTAGGED, 0x11000, 0x1f000 },
		{ GRANULE_CONTRACT, GRANULE_UNTAGGED, 0x10000, 0x11000 },
		{ GRANULE_CONTRACT, GRANULE_UNTAGGED, 0x1f000, 0x20000 },
		/* The near end cuts, the far end would be fine. */
		{ GRANULE_CONTRACT, GRANULE_UNTAGGED, 0x1f000, 0x31000 },
		/* Only the far end cuts: what is before it could be split. */
		{ GRANULE_DEFAULT, GRANULE_CONTRACT, 0x11000, 0x31000 },
		{ GRANULE_UNTAGGED, GRANULE_CONTRACT, 0x11000, 0x3f000 },
		{ GRANULE_CONTRACT, GRANULE_CONTRACT, 0x10000, 0x31000 },
		/* The range begins before the first VMA. */
		{ GRANULE_CONTRACT, GRANULE_UNTAGGED, 0xf000, 0x11000 },
	};
	int i;

	for (i = 0; i < ARRAY_SIZE(cases); i++)
		ASSERT_TRUE(__test_granule_munmap_refused(cases[i].low_kind,
							  cases[i].high_kind,
							  cases[i].start,
							  cases[i].end));
	return true;
}

/* Assert that what does not cut a contract granule can be unmapped. */
static bool test_granule_munmap(void)
{
	static const unsigned long ranges[][2] = {
		{ 0x20000, 0x30000 },	/* one granule out of three */
		{ 0x10000, 0x20000 },	/* the first one */
		{ 0x30000, 0x40000 },	/* the last one */
		{ 0x08000, 0x20000 },	/* a start before the VMA */
		{ 0x30000, 0x48000 },	/* an end after it */
		{ 0x08000, 0x48000 },	/* all of it */
		{ 0x08000, 0x10000 },	/* none of it */
		{ 0x40000, 0x48000 },
	};
	int i;

	for (i = 0; i < ARRAY_SIZE(ranges); i++) {
		const unsigned long start = ranges[i][0], end = ranges[i][1];
		struct mm_struct mm = {};
		struct vma_iterator vmi;
		unsigned long addr;

		vma_iter_init(&vmi, &mm, start);
		current->mm = &mm;
		ASSERT_NE(link_granule_vma(&mm, 0, 0x10000, GRANULE_DEFAULT),
			  NULL);
		ASSERT_NE(link_granule_vma(&mm, 0x10000, 0x40000,
					   GRANULE_CONTRACT), NULL);
		ASSERT_NE(link_granule_vma(&mm, 0x40000, 0x50000,
					   GRANULE_UNTAGGED), NULL);

		ASSERT_EQ(do_vmi_munmap(&vmi, &mm, start, end - start, NULL,
					false), 0);
		for (addr = 0; addr < 0x50000; addr += PAGE_SIZE) {
			const bool gone = addr >= start && addr < end;

			ASSERT_EQ(!vma_lookup(&mm, addr), gone);
		}

		cleanup_mm(&mm, &vmi);
	}
	return true;
}

/* Assert that MAP_FIXED over a part of a contract granule changes nothing. */
static bool test_granule_mmap_over_contract(void)
{
	struct mm_struct mm = {};
	struct vma_iterator vmi;
	struct vm_area_struct *low, *high;
	unsigned long ret;

	vma_iter_init(&vmi, &mm, 0);
	current->mm = &mm;
	low = link_granule_vma(&mm, 0x10000, 0x20000, GRANULE_DEFAULT);
	ASSERT_NE(low, NULL);
	high = link_granule_vma(&mm, 0x30000, 0x40000, GRANULE_CONTRACT);
	ASSERT_NE(high, NULL);
	reset_granule_split();

	/* The far end cuts a granule, the near one only a default-tagged VMA. */
	ret = __mmap_region(NULL, 0x18000, 0x20000,
			    granule_flags(GRANULE_UNTAGGED), 0x18, NULL);
	ASSERT_EQ(ret, -EINVAL);
	ASSERT_EQ(mm.map_count, 2);
	ASSERT_TRUE(granule_vma_untouched(low, 0x10000, 0x20000,
					  GRANULE_DEFAULT));
	ASSERT_TRUE(granule_vma_untouched(high, 0x30000, 0x40000,
					  GRANULE_CONTRACT));
	ASSERT_EQ(granule_split_count, 0);

	/* Over all of the granule it does. */
	ret = __mmap_region(NULL, 0x18000, 0x28000,
			    granule_flags(GRANULE_UNTAGGED), 0x18, NULL);
	ASSERT_EQ(ret, 0x18000);
	ASSERT_EQ(mm.map_count, 2);
	ASSERT_EQ(vma_lookup(&mm, 0x10000)->vm_end, 0x18000);
	ASSERT_FALSE(vma_granule_tagged(vma_lookup(&mm, 0x30000)));

	cleanup_mm(&mm, &vmi);
	return true;
}

/* Assert that new mappings merge, or not, as mmap() makes them. */
static bool test_granule_mmap_region(void)
{
	const vma_flags_t contract = granule_flags(GRANULE_CONTRACT);
	const vma_flags_t tagged = granule_flags(GRANULE_DEFAULT);
	struct mm_struct mm = {};
	struct vma_iterator vmi;

	vma_iter_init(&vmi, &mm, 0);
	current->mm = &mm;

	ASSERT_EQ(__mmap_region(NULL, 0x100000, 0x10000, contract, 0x100, NULL),
		  0x100000);
	ASSERT_EQ(__mmap_region(NULL, 0x110000, 0x10000, contract, 0x110, NULL),
		  0x110000);
	ASSERT_EQ(mm.map_count, 1);

	ASSERT_EQ(__mmap_region(NULL, 0x120000, 0x8000, tagged, 0x120, NULL),
		  0x120000);
	ASSERT_EQ(mm.map_count, 2);
	ASSERT_EQ(__mmap_region(NULL, 0x128000, 0x8000, tagged, 0x128, NULL),
		  0x128000);
	ASSERT_EQ(mm.map_count, 2);

	ASSERT_EQ(vma_lookup(&mm, 0x100000)->vm_end, 0x120000);
	ASSERT_EQ(vma_lookup(&mm, 0x120000)->vm_end, 0x130000);

	cleanup_mm(&mm, &vmi);
	return true;
}

/*
 * A contract VMA is modified in units of 64 KiB, but mapped by base pages. In
 * any other the two sizes are the same.
 */
static bool test_granule_pagesize(void)
{
	struct vm_area_struct vma = {};

	vma.flags = granule_flags(GRANULE_CONTRACT);
	ASSERT_EQ(vma_kernel_pagesize(&vma), PAGE_GRANULE_SIZE);
	ASSERT_EQ(vma_mmu_pagesize(&vma), PAGE_SIZE);

	vma.flags = granule_flags(GRANULE_DEFAULT);
	ASSERT_EQ(vma_kernel_pagesize(&vma), PAGE_SIZE);
	ASSERT_EQ(vma_mmu_pagesize(&vma), PAGE_SIZE);
	return true;
}

static void run_granule_tests(int *num_tests, int *num_fail)
{
	TEST(granule_merge_new);
	TEST(granule_merge_existing);
	TEST(granule_split_contract_refused);
	TEST(granule_split_contract);
	TEST(granule_split_default);
	TEST(granule_modify_contract_refused);
	TEST(granule_modify_contract_merge_refused);
	TEST(granule_modify_default_merge);
	TEST(granule_munmap_refused);
	TEST(granule_munmap);
	TEST(granule_mmap_over_contract);
	TEST(granule_mmap_region);
	TEST(granule_pagesize);
}
