/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Page granule: VMAs that are populated in 64 KiB runs of base pages.
 *
 * The terms are defined in Documentation/mm/page_granule.rst. In short: a
 * granule is a naturally aligned 64 KiB block of addresses that lies wholly
 * inside one tagged VMA (VMA_GRANULE_BIT), and a contract VMA
 * (VMA_GRANULE_CONTRACT_BIT) is a tagged one that nothing may cut inside a
 * granule. PAGE_SIZE means the base page here as everywhere.
 */
#ifndef _LINUX_PAGE_GRANULE_H
#define _LINUX_PAGE_GRANULE_H

#include <linux/align.h>
#include <linux/bits.h>
#include <linux/mm.h>

#define PAGE_GRANULE_SHIFT	16
#define PAGE_GRANULE_SIZE	BIT(PAGE_GRANULE_SHIFT)
#define PAGE_GRANULE_MASK	(~(PAGE_GRANULE_SIZE - 1))
/* Base pages may be larger than a granule: avoid a negative order. */
#define PAGE_GRANULE_ORDER	(PAGE_GRANULE_SHIFT - PAGE_SHIFT > 0 ? \
				 PAGE_GRANULE_SHIFT - PAGE_SHIFT : 0)
#define PAGE_GRANULE_NR		((int)BIT(PAGE_GRANULE_ORDER))

/**
 * granule_start - First byte of the 64 KiB block around an address.
 * @addr: The address.
 *
 * Return: the address of that byte.
 */
static inline unsigned long granule_start(unsigned long addr)
{
	return addr & PAGE_GRANULE_MASK;
}

/**
 * granule_index - Index of a page in its 64 KiB block.
 * @addr: An address in the page.
 *
 * Return: the index, less than PAGE_GRANULE_NR.
 */
static inline int granule_index(unsigned long addr)
{
	return (addr & ~PAGE_GRANULE_MASK) >> PAGE_SHIFT;
}

/**
 * vma_granule_tagged - Is this VMA to be populated in granules?
 * @vma: The user mapping, stabilised by the mmap lock or its VMA lock.
 *
 * Return: true if @vma is tagged; constant false without CONFIG_PAGE_GRANULE.
 */
static __always_inline bool vma_granule_tagged(const struct vm_area_struct *vma)
{
	return vma_test_single_mask(vma, VMA_GRANULE);
}

/**
 * vma_granule_contract - Is cutting a granule of this VMA forbidden?
 * @vma: The user mapping, stabilised by the mmap lock or its VMA lock.
 *
 * Return: true if @vma is a contract VMA, whose bounds are multiples of
 * PAGE_GRANULE_SIZE; constant false without CONFIG_PAGE_GRANULE.
 */
static inline bool vma_granule_contract(const struct vm_area_struct *vma)
{
	return vma_test_single_mask(vma, VMA_GRANULE_CONTRACT);
}

/**
 * page_granule_within - Does the block around an address fit into a range?
 * @start: First byte of the range.
 * @end: First byte after the range.
 * @addr: An address in the range.
 *
 * Return: true if the 64 KiB block that holds @addr lies wholly in the range.
 */
static inline bool page_granule_within(unsigned long start, unsigned long end,
				       unsigned long addr)
{
	const unsigned long block = granule_start(addr);

	/* Subtract rather than add: the block may be the last there is. */
	return block >= start && block < end &&
	       end - block >= PAGE_GRANULE_SIZE;
}

bool __vma_has_granule(struct vm_area_struct *vma, unsigned long addr);
bool vma_granule_folios(struct vm_area_struct *vma);

/**
 * vma_granule_congruent - Are addresses of a VMA aligned as its folios are?
 * @vma: The user mapping, stabilised by the mmap lock or its VMA lock.
 *
 * Private anonymous memory is allocated by address. Shared memory is allocated
 * by file offset, and mremap() can map an offset at any address.
 *
 * Return: true if naturally aligned folios are aligned in the addresses of
 * @vma, too.
 */
static inline bool vma_granule_congruent(const struct vm_area_struct *vma)
{
	return !vma->vm_file ||
	       IS_ALIGNED(vma->vm_start - (vma_start_pgoff(vma) << PAGE_SHIFT),
			  PAGE_GRANULE_SIZE);
}

/**
 * vma_granule_active - Does a VMA populate granules now?
 * @vma: The user mapping, stabilised by the mmap lock or its VMA lock.
 *
 * Return: true if @vma is tagged, and nothing makes it behave as if it were
 * not.
 */
static inline bool vma_granule_active(struct vm_area_struct *vma)
{
	return vma_granule_tagged(vma) && vma_granule_congruent(vma) &&
	       (vma_granule_contract(vma) || vma_granule_folios(vma));
}

/**
 * vma_has_granule - Does a granule of this VMA hold an address?
 * @vma: The user mapping, stabilised by the mmap lock or its VMA lock.
 * @addr: An address in @vma.
 *
 * The bounds of a default-tagged VMA may cut off the blocks at its ends. These
 * blocks are not granules, and are populated as in an untagged VMA. The same
 * goes for shared memory that mremap() has moved to an address that is not
 * congruent, and for a default-tagged VMA without large folios, see
 * vma_granule_folios().
 *
 * Return: true if @addr lies in a granule of @vma.
 */
static __always_inline bool vma_has_granule(struct vm_area_struct *vma,
					    unsigned long addr)
{
	/* Out of line, because every page fault runs through this. */
	return unlikely(vma_granule_tagged(vma)) && __vma_has_granule(vma, addr);
}

/**
 * mm_has_granule_contract - May an address space have a contract VMA?
 * @mm: The address space.
 *
 * Return: false if @mm never had one; constant without CONFIG_PAGE_GRANULE.
 */
static inline bool mm_has_granule_contract(const struct mm_struct *mm)
{
#ifdef CONFIG_PAGE_GRANULE
	return unlikely(mm_flags_test(MMF_GRANULE_CONTRACT, mm));
#else
	return false;
#endif
}

void __page_granule_exit(struct mm_struct *mm);

/**
 * page_granule_exit - An address space is about to be torn down.
 * @mm: The address space, which nobody uses any more.
 */
static inline void page_granule_exit(struct mm_struct *mm)
{
#ifdef CONFIG_PAGE_GRANULE
	if (unlikely(mm_flags_test(MMF_GRANULE_TAGGED, mm)))
		__page_granule_exit(mm);
#endif
}

/**
 * page_granule_cuts - Would a VMA bound at an address cut a contract granule?
 * @mm: The address space.
 * @addr: The address of the bound.
 *
 * The bounds of contract VMAs are multiples of PAGE_GRANULE_SIZE, so only the
 * VMA that holds @addr matters.
 *
 * Context: The mmap lock of @mm is held.
 * Return: true if @addr lies inside a granule of a contract VMA.
 */
static inline bool page_granule_cuts(struct mm_struct *mm, unsigned long addr)
{
	struct vm_area_struct *vma;

	if (IS_ALIGNED(addr, PAGE_GRANULE_SIZE))
		return false;

	vma = vma_lookup(mm, addr);
	return vma && vma_granule_contract(vma);
}

/**
 * page_granule_check_range - May a range of the address space be changed?
 * @mm: The address space.
 * @start: First byte of the range, a multiple of the base page.
 * @end: First byte after the range, a multiple of the base page.
 *
 * Callers check the whole range before they change the first mapping or page,
 * so that a refused call changes nothing.
 *
 * Context: The mmap lock of @mm is held.
 * Return: 0, or -EINVAL if the range begins or ends inside a granule of a
 * contract VMA.
 */
static inline int page_granule_check_range(struct mm_struct *mm,
					   unsigned long start,
					   unsigned long end)
{
	if (!mm_has_granule_contract(mm))
		return 0;
	mmap_assert_locked(mm);
	if (page_granule_cuts(mm, start) || page_granule_cuts(mm, end))
		return -EINVAL;
	return 0;
}

/**
 * enum page_granule_state - How the page table populates a granule.
 * @PAGE_GRANULE_EMPTY: All PTEs are none.
 * @PAGE_GRANULE_WHOLE: The PTEs are a run: all present, equal in permission and
 *			software bits, and mapping consecutive PFNs from a
 *			multiple of PAGE_GRANULE_NR on, in one folio or in the
 *			block of zero pages.
 * @PAGE_GRANULE_BROKEN: Anything else.
 */
enum page_granule_state {
	PAGE_GRANULE_EMPTY,
	PAGE_GRANULE_WHOLE,
	PAGE_GRANULE_BROKEN,
};

/**
 * enum page_granule_fill - How a fault has populated a granule.
 * @GRANULE_FILL_FOLIO: A run of pages of one folio.
 * @GRANULE_FILL_ZERO: The run of zero pages.
 * @GRANULE_FILL_SINGLE: Single pages, because there was no folio; only the one
 *			 that was accessed, if memory is short.
 */
enum page_granule_fill {
	GRANULE_FILL_FOLIO,
	GRANULE_FILL_ZERO,
	GRANULE_FILL_SINGLE,
};

enum page_granule_state page_granule_pte_state(struct vm_area_struct *vma,
					       unsigned long addr, pte_t *ptep);

/**
 * page_granule_unfolded - Is a run not yet marked as contiguous?
 * @ptep: The first PTE of the granule.
 * @pte: Its value, which is present.
 *
 * An architecture that marks contiguous entries must drop unmarked entries from
 * the TLB before marked ones can get there.
 *
 * Context: The page table lock of @ptep is held.
 * Return: true if the run has to be invalidated before it is set again.
 */
static inline bool page_granule_unfolded(pte_t *ptep, pte_t pte)
{
#ifdef pte_batch_hint
	return pte_batch_hint(ptep, pte) == 1;
#else
	return false;
#endif
}

#ifdef CONFIG_PAGE_GRANULE

void page_granule_count_vma_split(struct vm_area_struct *vma, unsigned long addr);

/**
 * page_granule_batch - How many PTEs a page table walk can treat as one.
 * @vma: The VMA, stabilised by the mmap lock or its VMA lock.
 * @addr: An address in @vma, a multiple of the base page.
 * @ptep: The PTE that maps @addr.
 * @pte: Its value.
 * @max_nr: How many PTEs, from @ptep on, the walk has yet to see in @vma and in
 *	    this page table.
 *
 * A page table walk can look at a whole granule once rather than at each PTE.
 * The PTEs are present, equal in permission and software bits, and map one
 * folio or the block of zero pages. Their accessed and dirty bits may differ,
 * and so may the mapcounts of the pages: a walk that reports these looks at
 * each page.
 *
 * Context: The page table lock of @ptep is held.
 * Return: PAGE_GRANULE_NR if a whole granule begins at @addr, else 1; constant
 * without CONFIG_PAGE_GRANULE.
 */
static inline unsigned int page_granule_batch(struct vm_area_struct *vma,
					      unsigned long addr, pte_t *ptep,
					      pte_t pte, unsigned int max_nr)
{
	/*
	 * @max_nr ensures that the block is in @vma. If the block is not a
	 * granule because its folios are not aligned as the addresses are, it
	 * is not whole either.
	 */
	if (!vma_granule_tagged(vma) || max_nr < PAGE_GRANULE_NR ||
	    !IS_ALIGNED(addr, PAGE_GRANULE_SIZE) || !pte_present(pte))
		return 1;

	/* The architecture has marked the entry, which proves the whole run. */
	if (pte_batch_hint(ptep, pte) == PAGE_GRANULE_NR)
		return PAGE_GRANULE_NR;

	/*
	 * An unmarked entry proves nothing about the next one: swap-in may have
	 * restored only a part, a legal call may have cut the granule, and
	 * single pages look the same. Compare the entries.
	 */
	return page_granule_pte_state(vma, addr, ptep) == PAGE_GRANULE_WHOLE ?
	       PAGE_GRANULE_NR : 1;
}

bool page_granule_default(struct mm_struct *mm);
bool page_granule_aligns_program(struct file *file, unsigned long size);
void page_granule_exec(struct mm_struct *mm, bool secureexec);
int prctl_get_page_granule(unsigned long scope, unsigned long arg3,
			   unsigned long arg4, unsigned long arg5);
int prctl_set_page_granule(unsigned long scope, unsigned long size,
			   unsigned long arg4, unsigned long arg5);

#else /* CONFIG_PAGE_GRANULE */

static inline void page_granule_count_vma_split(struct vm_area_struct *vma,
						unsigned long addr)
{
}

static inline unsigned int page_granule_batch(struct vm_area_struct *vma,
					      unsigned long addr, pte_t *ptep,
					      pte_t pte, unsigned int max_nr)
{
	return 1;
}

static inline bool page_granule_default(struct mm_struct *mm)
{
	return false;
}

static inline bool page_granule_aligns_program(struct file *file, unsigned long size)
{
	return false;
}

static inline void page_granule_exec(struct mm_struct *mm, bool secureexec)
{
}

static inline int prctl_get_page_granule(unsigned long scope,
					 unsigned long arg3,
					 unsigned long arg4,
					 unsigned long arg5)
{
	return -EINVAL;
}

static inline int prctl_set_page_granule(unsigned long scope,
					 unsigned long size,
					 unsigned long arg4,
					 unsigned long arg5)
{
	return -EINVAL;
}

#endif /* CONFIG_PAGE_GRANULE */

#endif /* _LINUX_PAGE_GRANULE_H */
