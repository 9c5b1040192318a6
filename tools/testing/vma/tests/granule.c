// SPDX-License-Identifier: GPL-2.0-or-later

/*
 * Merge and split rules of tagged and contract VMAs, see
 * Documentation/mm/page_granule.rst.
 *
 * Most tests run an operation over every combination of kinds, bounds and
 * neighbours. The expected result is computed on a list of ranges, see struct
 * layout, by rules that are spelled out here instead of calling the kernel.
 */

/* All values that the two bits can have, meaningful or not. */
enum {
	GRANULE_UNTAGGED,
	GRANULE_DEFAULT,
	GRANULE_CONTRACT_ONLY,
	GRANULE_CONTRACT,
	NUM_GRANULE_KINDS,
};

/* The kinds that a VMA can have outside of this file. */
static const int granule_kinds[] = {
	GRANULE_UNTAGGED, GRANULE_DEFAULT, GRANULE_CONTRACT,
};

#define NUM_KINDS	((int)ARRAY_SIZE(granule_kinds))

static bool kind_tagged(int kind)
{
	return kind & GRANULE_DEFAULT;
}

static bool kind_contract(int kind)
{
	return kind & GRANULE_CONTRACT_ONLY;
}

/* The bounds of a VMA are multiples of this. */
static unsigned long kind_unit(int kind)
{
	return kind_contract(kind) ? SZ_64K : PAGE_SIZE;
}

/* Flags as in brk() and mmap(), because some tests merge with those VMAs. */
static vma_flags_t granule_flags(int kind)
{
	vma_flags_t flags = VMA_DATA_DEFAULT_FLAGS;

	vma_flags_set(&flags, VMA_ACCOUNT_BIT);
	if (kind_tagged(kind))
		vma_flags_set(&flags, VMA_GRANULE_BIT);
	if (kind_contract(kind))
		vma_flags_set(&flags, VMA_GRANULE_CONTRACT_BIT);
	return flags;
}

/*
 * The granules that page_granule_count_vma_split() has counted as cut, as a
 * mask of 64 KiB blocks: all addresses here are below 4 MiB.
 */
static unsigned long granules_cut;
/* Was it called for anything but a new bound inside a tagged VMA? */
static bool granules_cut_wrongly;

/*
 * Custom: the kernel looks at page tables, which do not exist here. Both
 * versions may be called for a bound that does not cut a granule.
 */
void page_granule_count_vma_split(struct vm_area_struct *vma, unsigned long addr)
{
	const unsigned long block = ALIGN_DOWN(addr, SZ_64K);

	/* The VMA still has its old bounds. */
	if (!vma_test(vma, VMA_GRANULE_BIT) ||
	    addr <= vma->vm_start || addr >= vma->vm_end)
		granules_cut_wrongly = true;

	if (addr > block && vma->vm_start <= block &&
	    vma->vm_end >= block + SZ_64K)
		granules_cut |= BIT(block / SZ_64K);
}

/* Custom: only the VMA itself can opt out of huge pages. */
bool vma_granule_folios(struct vm_area_struct *vma)
{
	return !vma_test(vma, VMA_NOHUGEPAGE_BIT);
}

/* The model: the VMAs of an address space, in address order. */
struct layout {
	struct layout_vma {
		unsigned long start, end;
		int kind;
		bool readonly;
		/* The VMA that layout_link() has made. */
		struct vm_area_struct *vma;
	} vmas[8];
	int nr;
};

/* The index of the first VMA that ends after an address. */
static int layout_index(const struct layout *layout, unsigned long addr)
{
	int i;

	for (i = 0; i < layout->nr; i++) {
		if (layout->vmas[i].end > addr)
			break;
	}
	return i;
}

static void layout_add(struct layout *layout, unsigned long start,
		       unsigned long end, int kind, bool readonly)
{
	const int i = layout_index(layout, start);
	struct layout_vma *vma = &layout->vmas[i];

	memmove(vma + 1, vma, (layout->nr++ - i) * sizeof(*vma));
	*vma = (struct layout_vma){ start, end, kind, readonly };
}

static void layout_remove(struct layout *layout, int i)
{
	struct layout_vma *vma = &layout->vmas[i];

	memmove(vma, vma + 1, (--layout->nr - i) * sizeof(*vma));
}

/* The VMA that has bytes on both sides of an address, or NULL. */
static struct layout_vma *layout_around(struct layout *layout,
					unsigned long addr)
{
	const int i = layout_index(layout, addr);

	if (i == layout->nr || layout->vmas[i].start >= addr)
		return NULL;
	return &layout->vmas[i];
}

/* The rule of contract VMAs: no bound inside a granule. */
static bool layout_refuses(struct layout *layout, unsigned long addr)
{
	struct layout_vma *vma = layout_around(layout, addr);

	return vma && addr % kind_unit(vma->kind);
}

static void layout_split(struct layout *layout, unsigned long addr)
{
	struct layout_vma *vma = layout_around(layout, addr);
	unsigned long end;

	if (!vma)
		return;

	end = vma->end;
	vma->end = addr;
	layout_add(layout, addr, end, vma->kind, vma->readonly);
}

static void layout_unmap(struct layout *layout, unsigned long start,
			 unsigned long end)
{
	int i;

	layout_split(layout, start);
	layout_split(layout, end);

	i = layout_index(layout, start);
	while (i < layout->nr && layout->vmas[i].start < end)
		layout_remove(layout, i);
}

/* Merge the VMAs on both sides of an address if they do not differ. */
static void layout_merge(struct layout *layout, unsigned long addr)
{
	const int i = layout_index(layout, addr);
	struct layout_vma *high = &layout->vmas[i], *low = high - 1;

	if (!i || i == layout->nr || low->end != high->start ||
	    low->kind != high->kind || low->readonly != high->readonly)
		return;

	low->end = high->end;
	layout_remove(layout, i);
}

/*
 * The mask of the granules that a change cuts: blocks that lie inside a tagged
 * VMA before it and have a bound inside them after it.
 */
static unsigned long layout_cuts(const struct layout *before,
				 const struct layout *after)
{
	unsigned long granules = 0, bounds = 0;
	int i;

	for (i = 0; i < before->nr; i++) {
		const struct layout_vma *vma = &before->vmas[i];
		unsigned long block = ALIGN(vma->start, SZ_64K);

		if (!kind_tagged(vma->kind))
			continue;
		for (; block + SZ_64K <= vma->end; block += SZ_64K)
			granules |= BIT(block / SZ_64K);
	}

	for (i = 0; i < after->nr; i++) {
		const struct layout_vma *vma = &after->vmas[i];

		if (vma->start % SZ_64K)
			bounds |= BIT(vma->start / SZ_64K);
		if (vma->end % SZ_64K)
			bounds |= BIT(vma->end / SZ_64K);
	}

	return granules & bounds;
}

static unsigned long layout_pages(const struct layout *layout)
{
	unsigned long bytes = 0;
	int i;

	for (i = 0; i < layout->nr; i++)
		bytes += layout->vmas[i].end - layout->vmas[i].start;
	return bytes / PAGE_SIZE;
}

static vma_flags_t layout_vma_flags(const struct layout_vma *vma)
{
	vma_flags_t flags = granule_flags(vma->kind);

	if (vma->readonly)
		vma_flags_clear(&flags, VMA_WRITE_BIT);
	return flags;
}

/* Format a layout for messages. */
static const char *layout_str(const struct layout *layout)
{
	static char buf[256];
	int i, len = 0;

	buf[0] = '\0';
	for (i = 0; i < layout->nr; i++) {
		const struct layout_vma *vma = &layout->vmas[i];

		len += snprintf(buf + len, sizeof(buf) - len,
				"%s%lx-%lx kind %d%s", i ? ", " : "",
				vma->start, vma->end, vma->kind,
				vma->readonly ? " ro" : "");
	}
	return buf;
}

/*
 * Make the VMAs of a layout in an empty address space, for one operation that
 * starts with an iterator at @addr.
 */
static bool layout_link(struct layout *layout, struct mm_struct *mm,
			struct vma_iterator *vmi, unsigned long addr)
{
	int i;

	/* As in the kernel: otherwise brk() would leave the tree locked. */
	mt_init_flags(&mm->mm_mt, MT_FLAGS_LOCK_EXTERN);
	vma_iter_init(vmi, mm, addr);

	for (i = 0; i < layout->nr; i++) {
		struct layout_vma *vma = &layout->vmas[i];
		const vma_flags_t flags = layout_vma_flags(vma);

		/* The kernel relies on this count wherever it unmaps. */
		vm_stat_account(mm, vma_flags_to_legacy(flags),
				(vma->end - vma->start) >> PAGE_SHIFT);
		if (kind_contract(vma->kind))
			mm_flags_set(MMF_GRANULE_CONTRACT, mm);

		vma->vma = alloc_and_link_vma(mm, vma->start, vma->end,
					      vma->start >> PAGE_SHIFT, flags);
		ASSERT_NE(vma->vma, NULL);
	}

	current->mm = mm;
	granules_cut = 0;
	granules_cut_wrongly = false;
	return true;
}

/* Assert that an address space has the VMAs of a layout, and no others. */
static bool layout_is(const struct layout *layout, struct mm_struct *mm)
{
	VMA_ITERATOR(vmi, mm, 0);
	struct vm_area_struct *vma;
	int i = 0;

	for_each_vma(vmi, vma) {
		const struct layout_vma *want = &layout->vmas[i++];

		ASSERT_TRUE(i <= layout->nr);
		ASSERT_EQ(vma->vm_start, want->start);
		ASSERT_EQ(vma->vm_end, want->end);
		ASSERT_EQ(vma_start_pgoff(vma), want->start >> PAGE_SHIFT);
		ASSERT_EQ(vma_start_anon_pgoff(vma), want->start >> PAGE_SHIFT);
		ASSERT_FLAGS_SAME_MASK(&vma->flags, layout_vma_flags(want));
		vma_assert_attached(vma);
	}
	ASSERT_EQ(i, layout->nr);
	ASSERT_EQ(mm->map_count, layout->nr);
	ASSERT_FALSE(granules_cut_wrongly);
	return true;
}

/* Assert that layout_link()'s VMAs have not changed, nor begun to. */
static bool layout_untouched(const struct layout *layout, struct mm_struct *mm)
{
	int i;

	ASSERT_TRUE(layout_is(layout, mm));
	ASSERT_EQ(mm->total_vm, layout_pages(layout));
	ASSERT_EQ(granules_cut, 0);
	for (i = 0; i < layout->nr; i++) {
		struct vm_area_struct *vma = layout->vmas[i].vma;

		ASSERT_EQ(vma_lookup(mm, layout->vmas[i].start), vma);
		ASSERT_FALSE(vma_write_started(vma));
	}
	return true;
}

/* The possible neighbours of the VMA under test, on either side. */
struct neighbour {
	enum {
		NO_NEIGHBOUR,
		TOUCHING,
		TOUCHING_READONLY,	/* its twin would not merge either */
		APART,			/* by as little as bounds permit */
	} place;
	int kind;
};

static const struct neighbour neighbours[] = {
	{ NO_NEIGHBOUR,		GRANULE_UNTAGGED },
	{ TOUCHING,		GRANULE_UNTAGGED },
	{ TOUCHING,		GRANULE_DEFAULT },
	{ TOUCHING,		GRANULE_CONTRACT_ONLY },
	{ TOUCHING,		GRANULE_CONTRACT },
	{ TOUCHING_READONLY,	GRANULE_UNTAGGED },
	{ TOUCHING_READONLY,	GRANULE_DEFAULT },
	{ TOUCHING_READONLY,	GRANULE_CONTRACT_ONLY },
	{ TOUCHING_READONLY,	GRANULE_CONTRACT },
	{ APART,		GRANULE_UNTAGGED },
	{ APART,		GRANULE_DEFAULT },
	{ APART,		GRANULE_CONTRACT_ONLY },
	{ APART,		GRANULE_CONTRACT },
};

/* A VMA, or a range that will become one, and its neighbours. */
struct scene {
	const struct neighbour *prev, *next;
	unsigned long start, end;
	int kind;
};

static const unsigned long scene_bounds[][2] = {
	{ 0x80000, 0xa0000 },	/* two blocks */
	{ 0x80000, 0x90000 },	/* one block */
	{ 0x81000, 0xa0000 },	/* a block, and almost one before it */
	{ 0x80000, 0x9f000 },	/* ...after it */
	{ 0x88000, 0xa8000 },	/* ...and a half to either side */
	{ 0x88000, 0x98000 },	/* the size of a block, but not a block */
	{ 0x8f000, 0x91000 },
	{ 0x80000, 0x88000 },	/* parts of one block */
	{ 0x88000, 0x90000 },
	{ 0x81000, 0x8f000 },
};

#define NUM_NEIGHBOURS	((int)ARRAY_SIZE(neighbours))
#define NUM_BOUNDS	((int)ARRAY_SIZE(scene_bounds))
#define NUM_SCENES	(NUM_NEIGHBOURS * NUM_NEIGHBOURS * NUM_BOUNDS * \
			 NUM_GRANULE_KINDS)

static struct scene nth_scene(int i)
{
	struct scene scene;

	scene.prev = &neighbours[i % NUM_NEIGHBOURS];
	i /= NUM_NEIGHBOURS;
	scene.next = &neighbours[i % NUM_NEIGHBOURS];
	i /= NUM_NEIGHBOURS;
	scene.start = scene_bounds[i % NUM_BOUNDS][0];
	scene.end = scene_bounds[i % NUM_BOUNDS][1];
	scene.kind = i / NUM_BOUNDS;
	return scene;
}

/* Contract VMAs cannot have all bounds, nor neighbours at all bounds. */
static bool scene_possible(const struct scene *scene)
{
	const unsigned long unit = kind_unit(scene->kind);

	if (scene->start % unit || scene->end % unit)
		return false;
	if (scene->prev->place != APART &&
	    scene->start % kind_unit(scene->prev->kind))
		return false;
	return scene->next->place == APART ||
	       !(scene->end % kind_unit(scene->next->kind));
}

/* Begin a layout with the neighbours in a scene, without the VMA itself. */
static struct layout scene_layout(const struct scene *scene)
{
	const struct neighbour *prev = scene->prev, *next = scene->next;
	struct layout layout = {};

	if (prev->place != NO_NEIGHBOUR) {
		unsigned long end = scene->start;

		if (prev->place == APART)
			end = ALIGN_DOWN(end - 1, kind_unit(prev->kind));
		layout_add(&layout, end - 2 * SZ_64K, end, prev->kind,
			   prev->place == TOUCHING_READONLY);
	}

	if (next->place != NO_NEIGHBOUR) {
		unsigned long start = scene->end;

		if (next->place == APART)
			start = ALIGN(start + 1, kind_unit(next->kind));
		layout_add(&layout, start, start + 2 * SZ_64K, next->kind,
			   next->place == TOUCHING_READONLY);
	}

	return layout;
}

static const char *scene_str(const struct scene *scene)
{
	struct layout layout = scene_layout(scene);

	layout_add(&layout, scene->start, scene->end, scene->kind, false);
	return layout_str(&layout);
}

/* All ways to add a new range to an address space. */
enum merge_new {
	MERGE_NEW,		/* mmap() */
	MERGE_COPIED,		/* mremap(), moved */
	MERGE_EXTENDED,		/* mremap(), grown in place */
	MERGE_BRK,		/* brk(), which does not look at what follows */
	NUM_MERGE_NEW,
};

/* The source of a copied range. */
#define COPIED_FROM	0x200000

/*
 * Put a new range between two VMAs and assert that it merges with those that
 * have the same bits, as it would if none of the three had any.
 */
static bool __test_granule_merge_new(enum merge_new how,
				     const struct scene *scene)
{
	const unsigned long start = scene->start, end = scene->end;
	const unsigned long pgoff = start >> PAGE_SHIFT;
	const vma_flags_t flags = granule_flags(scene->kind);
	struct layout before = scene_layout(scene), after;
	struct mm_struct mm = {};
	struct vma_iterator vmi;
	struct vma_merge_struct vmg = {
		.mm = &mm,
		.vmi = &vmi,
		.start = start,
		.end = end,
		.vma_flags = flags,
		.pgoff = pgoff,
		.anon_pgoff = pgoff,
	};
	struct vm_area_struct *vma, *copied;
	bool locks;

	if (how == MERGE_COPIED)
		layout_add(&before, COPIED_FROM, COPIED_FROM + (end - start),
			   scene->kind, false);

	after = before;
	layout_add(&after, start, end, scene->kind, false);
	if (how != MERGE_BRK)
		layout_merge(&after, end);
	layout_merge(&after, start);

	ASSERT_TRUE(layout_link(&before, &mm, &vmi, start));
	switch (how) {
	case MERGE_NEW:
		vmg.next = vma_iter_next_rewind(&vmi, &vmg.prev);
		vma = vma_merge_new_range(&vmg);
		ASSERT_EQ(!vma, after.nr > before.nr);
		if (!vma)
			vma = alloc_and_link_vma(&mm, start, end, pgoff, flags);
		break;
	case MERGE_COPIED:
		copied = vma_lookup(&mm, COPIED_FROM);
		vma = copy_vma(&copied, start, end - start, pgoff, pgoff,
			       &locks, false);
		break;
	case MERGE_EXTENDED:
		vma = vma_merge_extend(&vmi, vma_prev(&vmi), end - start);
		break;
	default:
		ASSERT_EQ(vma_find(&vmi, end), NULL);
		ASSERT_EQ(do_brk_flags(&vmi, vma_prev(&vmi), start, end - start,
				       flags), 0);
		vma = vma_lookup(&mm, start);
		break;
	}

	ASSERT_NE(vma, NULL);
	ASSERT_EQ(vma, vma_lookup(&mm, start));
	ASSERT_TRUE(layout_is(&after, &mm));
	ASSERT_EQ(granules_cut, 0);

	cleanup_mm(&mm, &vmi);
	return true;
}

static bool test_granule_merge_new(void)
{
	int i, how;

	for (i = 0; i < NUM_SCENES; i++) {
		const struct scene scene = nth_scene(i);
		const bool extends = scene.prev->place == TOUCHING &&
				     scene.prev->kind == scene.kind;

		if (!scene_possible(&scene))
			continue;

		for (how = 0; how < NUM_MERGE_NEW; how++) {
			bool ok;

			if (how == MERGE_EXTENDED && !extends)
				continue;
			ok = __test_granule_merge_new(how, &scene);
			__ASSERT_TRUE(ok, " (way %d: %s)", how,
				      scene_str(&scene));
		}
	}
	return true;
}

/* Return the next bound to try, in tests for which all pages are too many. */
static unsigned long next_probe(unsigned long addr)
{
	static const unsigned long offsets[] = {
		0x1000, 0x8000, 0xf000, 0x10000,
	};
	const unsigned long block = ALIGN_DOWN(addr, SZ_64K);
	int i = 0;

	while (block + offsets[i] <= addr)
		i++;
	return block + offsets[i];
}

/*
 * Make a part of a VMA writable like its neighbours. mprotect() does not change
 * the granule bits, so they still decide on merging. A merge moves the bound to
 * a neighbour without a split; assert that it does not move it into a contract
 * granule either, and that the granule of another tagged VMA counts as cut.
 */
static bool __test_granule_modify(const struct scene *scene,
				  unsigned long start, unsigned long end)
{
	struct layout before = scene_layout(scene), after;
	vma_flags_t flags = granule_flags(scene->kind);
	struct mm_struct mm = {};
	struct vma_iterator vmi;
	struct vm_area_struct *prev, *vma, *ret;
	struct layout_vma *want;
	int middle;

	middle = layout_index(&before, scene->start);
	layout_add(&before, scene->start, scene->end, scene->kind, true);

	ASSERT_TRUE(layout_link(&before, &mm, &vmi, start));
	vma = vma_iter_load(&vmi);
	ASSERT_EQ(vma, before.vmas[middle].vma);
	if (start > scene->start)
		prev = vma;
	else
		prev = middle ? before.vmas[middle - 1].vma : NULL;

	ret = vma_modify_flags(&vmi, prev, vma, start, end, &flags);

	if (layout_refuses(&before, start) || layout_refuses(&before, end)) {
		ASSERT_EQ(ret, ERR_PTR(-EINVAL));
		ASSERT_TRUE(layout_untouched(&before, &mm));
	} else {
		after = before;
		layout_split(&after, start);
		layout_split(&after, end);
		after.vmas[layout_index(&after, start)].readonly = false;
		layout_merge(&after, end);
		layout_merge(&after, start);

		ASSERT_FALSE(IS_ERR(ret));
		want = &after.vmas[layout_index(&after, start)];
		ASSERT_EQ(ret->vm_start, want->start);
		ASSERT_EQ(ret->vm_end, want->end);
		/* The caller sets the new flags. */
		vma_set_flags(ret, VMA_WRITE_BIT);
		ASSERT_TRUE(layout_is(&after, &mm));
		ASSERT_EQ(granules_cut, layout_cuts(&before, &after));
	}

	cleanup_mm(&mm, &vmi);
	return true;
}

static bool test_granule_modify(void)
{
	int i;

	for (i = 0; i < NUM_SCENES; i++) {
		const struct scene scene = nth_scene(i);
		unsigned long start = scene.start, end;

		if (!scene_possible(&scene))
			continue;

		for (; start < scene.end; start = next_probe(start)) {
			end = start;
			do {
				bool ok;

				end = min(next_probe(end), scene.end);
				ok = __test_granule_modify(&scene, start, end);
				__ASSERT_TRUE(ok, " (%lx-%lx of %s)", start,
					      end, scene_str(&scene));
			} while (end < scene.end);
		}
	}
	return true;
}

/*
 * Split a VMA. Assert that a contract VMA stays as it was if that would cut a
 * granule; that otherwise both parts keep the bits, and that a granule which is
 * cut is counted, whether the new VMA is the part below @addr or the other.
 */
static bool __test_granule_split(struct layout *before, unsigned long addr,
				 int below)
{
	struct layout after = *before;
	struct mm_struct mm = {};
	struct vma_iterator vmi;
	struct vm_area_struct *vma;
	int ret;

	ASSERT_TRUE(layout_link(before, &mm, &vmi, addr));
	vma = vma_iter_load(&vmi);
	ASSERT_EQ(vma, before->vmas[0].vma);

	ret = split_vma(&vmi, vma, addr, below);

	if (layout_refuses(before, addr)) {
		ASSERT_EQ(ret, -EINVAL);
		ASSERT_TRUE(layout_untouched(before, &mm));
	} else {
		layout_split(&after, addr);
		ASSERT_EQ(ret, 0);
		ASSERT_TRUE(layout_is(&after, &mm));
		ASSERT_EQ(vma_lookup(&mm, below ? addr : addr - 1), vma);
		ASSERT_EQ(granules_cut, layout_cuts(before, &after));
	}

	cleanup_mm(&mm, &vmi);
	return true;
}

/* Split a VMA at every base page. */
static bool granule_split_all(int kind, unsigned long start, unsigned long end)
{
	struct layout layout = {};
	unsigned long addr;
	int below;

	layout_add(&layout, start, end, kind, false);
	for (addr = start + PAGE_SIZE; addr < end; addr += PAGE_SIZE) {
		for (below = 0; below < 2; below++) {
			const bool ok = __test_granule_split(&layout, addr,
							     below);

			__ASSERT_TRUE(ok, " (at %lx, %d: %s)", addr, below,
				      layout_str(&layout));
		}
	}
	return true;
}

/* One to three granules, with all possible parts of blocks around them. */
static bool test_granule_split(void)
{
	unsigned long start, end;
	int kind;

	for (kind = 0; kind < NUM_GRANULE_KINDS; kind++) {
		const unsigned long unit = kind_unit(kind);

		for (start = 0x10000; start <= 0x20000; start += unit) {
			for (end = 0x30000; end <= 0x40000; end += unit) {
				const bool ok = granule_split_all(kind, start,
								  end);

				ASSERT_TRUE(ok);
			}
		}
	}
	return true;
}

/* Three VMAs, adjacent and apart; rounded inward for contract VMAs. */
static const unsigned long unmap_layouts[][3][2] = {
	{
		{ 0x20000, 0x30000 },
		{ 0x30000, 0x50000 },
		{ 0x50000, 0x60000 },
	}, {
		{ 0x1d000, 0x34000 },
		{ 0x34000, 0x5b000 },
		{ 0x5d000, 0x73000 },
	},
};

#define NUM_LAYOUTS	((int)ARRAY_SIZE(unmap_layouts) * NUM_KINDS * \
			 NUM_KINDS * NUM_KINDS)

static struct layout nth_layout(int i)
{
	const unsigned long (*bounds)[2];
	struct layout layout = {};
	int j;

	bounds = unmap_layouts[i % ARRAY_SIZE(unmap_layouts)];
	i /= ARRAY_SIZE(unmap_layouts);

	for (j = 0; j < 3; j++) {
		const int kind = granule_kinds[i % NUM_KINDS];
		const unsigned long unit = kind_unit(kind);

		i /= NUM_KINDS;
		layout_add(&layout, ALIGN(bounds[j][0], unit),
			   ALIGN_DOWN(bounds[j][1], unit), kind, false);
	}
	return layout;
}

/* In place of a kind, if no new mapping replaces the unmapped range. */
#define UNMAP_ONLY	(-1)

/*
 * Unmap a range of three VMAs, with a new mapping in its place or without.
 * Assert that it is refused, with nothing changed, if and only if either end
 * cuts a granule of a contract VMA, wherever the other end is.
 */
static bool __test_granule_unmap(struct layout *before, unsigned long start,
				 unsigned long end, int kind)
{
	const bool refused = layout_refuses(before, start) ||
			     layout_refuses(before, end);
	struct layout after = *before;
	struct mm_struct mm = {};
	struct vma_iterator vmi;
	unsigned long cuts, ret;

	layout_unmap(&after, start, end);
	cuts = layout_cuts(before, &after);
	if (kind != UNMAP_ONLY) {
		layout_add(&after, start, end, kind, false);
		layout_merge(&after, end);
		layout_merge(&after, start);
	}

	ASSERT_TRUE(layout_link(before, &mm, &vmi, start));
	if (kind == UNMAP_ONLY) {
		ret = do_vmi_munmap(&vmi, &mm, start, end - start, NULL, false);
		ASSERT_EQ(ret, refused ? -EINVAL : 0);
	} else {
		ret = __mmap_region(NULL, start, end - start,
				    granule_flags(kind), start >> PAGE_SHIFT,
				    NULL);
		ASSERT_EQ(ret, refused ? -EINVAL : start);
	}

	if (refused) {
		ASSERT_TRUE(layout_untouched(before, &mm));
	} else {
		ASSERT_TRUE(layout_is(&after, &mm));
		ASSERT_EQ(mm.total_vm, layout_pages(&after));
		ASSERT_EQ(granules_cut, cuts);
	}

	cleanup_mm(&mm, &vmi);
	return true;
}

/* Every range of base pages, from some before to some after the VMAs. */
static bool test_granule_munmap(void)
{
	unsigned long start, end;
	int i;

	for (i = 0; i < NUM_LAYOUTS; i++) {
		struct layout layout = nth_layout(i);
		const unsigned long last = layout.vmas[2].end + 0x3000;

		start = layout.vmas[0].start - 0x3000;
		for (; start < last; start += PAGE_SIZE) {
			end = start + PAGE_SIZE;
			for (; end <= last; end += PAGE_SIZE) {
				const bool ok = __test_granule_unmap(&layout,
							start, end, UNMAP_ONLY);

				__ASSERT_TRUE(ok, " (%lx-%lx: %s)", start, end,
					      layout_str(&layout));
			}
		}
	}
	return true;
}

/* MAP_FIXED unmaps memory in its way, and may merge with neighbours. */
static bool granule_mmap_over(struct layout *layout, int kind)
{
	const unsigned long unit = kind_unit(kind), last = 0x80000;
	unsigned long start, end;

	for (start = 0x10000; start < last; start = next_probe(start)) {
		end = next_probe(start);
		for (; end <= last; end = next_probe(end)) {
			bool ok;

			if (start % unit || end % unit)
				continue;
			ok = __test_granule_unmap(layout, start, end, kind);
			__ASSERT_TRUE(ok, " (%lx-%lx kind %d: %s)", start, end,
				      kind, layout_str(layout));
		}
	}
	return true;
}

static bool test_granule_mmap_over(void)
{
	int i;

	for (i = 0; i < NUM_LAYOUTS * NUM_KINDS; i++) {
		struct layout layout = nth_layout(i / NUM_KINDS);

		ASSERT_TRUE(granule_mmap_over(&layout,
					      granule_kinds[i % NUM_KINDS]));
	}
	return true;
}

/*
 * The callers of vma_expand() and vma_shrink() choose the bounds, so contract
 * VMAs only get valid ones here. Assert that the VMA gets its bounds, that
 * nothing else changes, and that growth cuts no granule, even over another VMA.
 */
static bool __test_granule_expand(int kind, unsigned long start,
				  unsigned long end, bool over_next)
{
	const unsigned long unit = kind_unit(kind);
	const unsigned long next_end = over_next ? end : end + unit;
	const unsigned long next_start = next_end - unit;
	struct layout before = {}, after = {};
	struct mm_struct mm = {};
	struct vma_iterator vmi;
	struct vma_merge_struct vmg = {
		.mm = &mm,
		.vmi = &vmi,
		.start = start,
		.end = end,
		.vma_flags = granule_flags(kind),
		.pgoff = start >> PAGE_SHIFT,
		.anon_pgoff = start >> PAGE_SHIFT,
	};

	layout_add(&before, 0x80000, 0xa0000, kind, false);
	layout_add(&before, next_start, next_end, kind, false);
	layout_add(&after, start, end, kind, false);
	if (!over_next)
		layout_add(&after, next_start, next_end, kind, false);

	ASSERT_TRUE(layout_link(&before, &mm, &vmi, start));
	vmg.target = before.vmas[0].vma;
	vmg.next = before.vmas[1].vma;
	ASSERT_EQ(vma_expand(&vmg), 0);
	ASSERT_EQ(vma_lookup(&mm, start), before.vmas[0].vma);
	ASSERT_TRUE(layout_is(&after, &mm));
	ASSERT_EQ(granules_cut, 0);

	cleanup_mm(&mm, &vmi);
	return true;
}

static bool granule_expand_all(int kind, bool over_next)
{
	const unsigned long unit = kind_unit(kind);
	unsigned long start, end;

	for (start = 0x60000; start <= 0x80000; start += unit) {
		end = over_next ? 0xa0000 + unit : 0xa0000;
		for (; end <= 0xc0000; end += unit) {
			const bool ok = __test_granule_expand(kind, start, end,
							      over_next);

			__ASSERT_TRUE(ok, " (kind %d to %lx-%lx, %d)", kind,
				      start, end, over_next);
		}
	}
	return true;
}

static bool test_granule_expand(void)
{
	int kind;

	for (kind = 0; kind < NUM_GRANULE_KINDS; kind++) {
		ASSERT_TRUE(granule_expand_all(kind, false));
		ASSERT_TRUE(granule_expand_all(kind, true));
	}
	return true;
}

static bool __test_granule_shrink(struct layout *before, unsigned long end)
{
	struct layout after = *before;
	struct mm_struct mm = {};
	struct vma_iterator vmi;
	struct vm_area_struct *vma;

	after.vmas[0].end = end;

	ASSERT_TRUE(layout_link(before, &mm, &vmi, before->vmas[0].start));
	vma = vma_iter_load(&vmi);
	ASSERT_EQ(vma, before->vmas[0].vma);
	ASSERT_EQ(vma_shrink(&vmi, vma, end), 0);
	ASSERT_TRUE(layout_is(&after, &mm));
	/* The caller has emptied the rest: there is nothing to count. */

	cleanup_mm(&mm, &vmi);
	return true;
}

static bool test_granule_shrink(void)
{
	int i;

	for (i = 0; i < NUM_BOUNDS * NUM_GRANULE_KINDS; i++) {
		const unsigned long *bounds = scene_bounds[i % NUM_BOUNDS];
		const int kind = i / NUM_BOUNDS;
		const unsigned long unit = kind_unit(kind);
		struct layout layout = {};
		unsigned long end;

		if (bounds[0] % unit || bounds[1] % unit)
			continue;
		layout_add(&layout, bounds[0], bounds[1], kind, false);
		for (end = bounds[0] + unit; end < bounds[1]; end += unit) {
			const bool ok = __test_granule_shrink(&layout, end);

			__ASSERT_TRUE(ok, " (to %lx: %s)", end,
				      layout_str(&layout));
		}
	}
	return true;
}

enum below_stack {
	BELOW_IS_NOTHING,
	BELOW_IS_MAPPED,	/* a guard gap has to be kept */
	BELOW_IS_RESERVED,	/* inaccessible, so no gap is needed */
};

/*
 * Touch a page below a stack. Assert that a tagged stack grows to the start of
 * the granule. If there is no room for that, or the program does not want huge
 * pages there, a default-tagged stack grows to the page like an untagged one. A
 * contract VMA always grows by a granule or not at all.
 */
static bool __test_granule_stack(int kind, bool nohuge, unsigned long start,
				 enum below_stack below, unsigned long limit,
				 unsigned long addr)
{
	const unsigned long end = 0x330000, block = ALIGN_DOWN(addr, SZ_64K);
	vma_flags_t flags = granule_flags(kind);
	struct anon_vma_chain avc = {};
	struct mm_struct mm = {};
	struct vma_iterator vmi;
	struct vm_area_struct *vma;
	unsigned long want = addr;

	if (kind_tagged(kind) && (kind_contract(kind) || !nohuge) &&
	    block >= limit)
		want = block;
	else if (kind_contract(kind) || addr < limit)
		want = start;

	vma_iter_init(&vmi, &mm, 0);
	if (below != BELOW_IS_NOTHING) {
		const unsigned long prev_end = below == BELOW_IS_MAPPED ?
					       limit - stack_guard_gap : limit;
		vma_flags_t prev_flags = granule_flags(GRANULE_UNTAGGED);

		if (below == BELOW_IS_RESERVED)
			vma_flags_clear(&prev_flags, VMA_READ_BIT,
					VMA_WRITE_BIT, VMA_EXEC_BIT);
		ASSERT_NE(alloc_and_link_vma(&mm, prev_end - SZ_64K, prev_end,
					     (prev_end - SZ_64K) >> PAGE_SHIFT,
					     prev_flags), NULL);
	}

	vma_flags_set(&flags, VMA_GROWSDOWN_BIT);
	if (nohuge)
		vma_flags_set(&flags, VMA_NOHUGEPAGE_BIT);
	vma = alloc_and_link_vma(&mm, start, end, start >> PAGE_SHIFT, flags);
	ASSERT_NE(vma, NULL);
	vma_set_dummy_anon_vma(vma, &avc);
	granules_cut = 0;

	/* Any byte of the page will do. */
	ASSERT_EQ(expand_downwards(vma, addr + 0x123),
		  want == start ? -ENOMEM : 0);
	ASSERT_EQ(vma->vm_start, want);
	ASSERT_EQ(vma->vm_end, end);
	ASSERT_EQ(vma_start_pgoff(vma), want >> PAGE_SHIFT);
	ASSERT_EQ(vma_lookup(&mm, want), vma);
	ASSERT_NE(vma_lookup(&mm, want - 1), vma);
	ASSERT_EQ(mm.total_vm, (start - want) >> PAGE_SHIFT);
	ASSERT_FLAGS_SAME_MASK(&vma->flags, flags);
	ASSERT_EQ(granules_cut, 0);

	cleanup_mm(&mm, &vmi);
	return true;
}

/* Touch every page between a stack and the mapping below it. */
static bool granule_stack_all(int kind, unsigned long start,
			      enum below_stack below, unsigned long limit)
{
	/* A touch of the guard gap has no other effect than a signal. */
	unsigned long addr = below == BELOW_IS_MAPPED ? 0x2f0000 : limit;

	for (; addr < start; addr += PAGE_SIZE) {
		bool ok = __test_granule_stack(kind, false, start, below, limit,
					       addr);

		ok = ok && __test_granule_stack(kind, true, start, below, limit,
						addr);
		__ASSERT_TRUE(ok, " (kind %d from %lx to %lx, %d until %lx)",
			      kind, start, addr, below, limit);
	}
	return true;
}

static bool granule_stack_from(int kind, unsigned long start)
{
	unsigned long limit = 0x2f0000;

	ASSERT_TRUE(granule_stack_all(kind, start, BELOW_IS_NOTHING, limit));
	for (limit = 0x300000; limit < 0x310000; limit += PAGE_SIZE) {
		ASSERT_TRUE(granule_stack_all(kind, start, BELOW_IS_MAPPED,
					      limit));
		ASSERT_TRUE(granule_stack_all(kind, start, BELOW_IS_RESERVED,
					      limit));
	}
	return true;
}

static bool test_granule_stack(void)
{
	unsigned long start;
	int i;

	for (i = 0; i < NUM_KINDS; i++) {
		const int kind = granule_kinds[i];
		const unsigned long unit = kind_unit(kind);

		for (start = 0x310000; start <= 0x320000; start += unit)
			ASSERT_TRUE(granule_stack_from(kind, start));
	}
	return true;
}

/* Assert that mappings merge, or not, as mmap() makes them. */
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

static void run_granule_tests(int *num_tests, int *num_fail)
{
	TEST(granule_merge_new);
	TEST(granule_modify);
	TEST(granule_split);
	TEST(granule_munmap);
	TEST(granule_mmap_over);
	TEST(granule_expand);
	TEST(granule_shrink);
	TEST(granule_stack);
	TEST(granule_mmap_region);
}
