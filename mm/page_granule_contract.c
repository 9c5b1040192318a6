// SPDX-License-Identifier: GPL-2.0
/*
 * Page granule: system calls on contract VMAs, whose granules are never cut.
 *
 * A call that would cut a granule fails before it changes the first VMA. A
 * call on one range uses page_granule_check_range(); this file has the checks
 * of the other calls.
 */

#include <linux/leafops.h>
#include <linux/mm.h>
#include <linux/mman.h>

#include "internal.h"
#include "page_granule.h"

/**
 * page_granule_not_freed - How many pages MADV_FREE leaves alone.
 * @vma: The contract VMA.
 * @addr: The address of the first page.
 * @ptep: The PTE that maps @addr.
 * @max_nr: How many pages there are from @addr to the end of the range.
 *
 * MADV_FREE would free a granule in part if it is not whole: reclaim drops
 * single pages one by one, and swap entries go at once.
 *
 * Context: The page table lock of @ptep is held.
 * Return: the number of pages from @addr to the end of such a granule, at most
 * @max_nr, or 0 if the granule is whole, or holds only entries that go at once.
 */
int page_granule_not_freed(struct vm_area_struct *vma, unsigned long addr,
			   pte_t *ptep, int max_nr)
{
	const int nr = granule_index(addr);
	int i;

	if (page_granule_is_whole(vma, addr, ptep))
		return 0;
	for (i = 0; i < PAGE_GRANULE_NR; i++) {
		const pte_t pte = ptep_get(ptep - nr + i);
		const softleaf_t entry = softleaf_from_pte(pte);

		if (pte_present(pte) ||
		    (!pte_none(pte) && !softleaf_is_swap(entry) &&
		     !softleaf_is_hwpoison(entry) &&
		     !softleaf_is_poison_marker(entry)))
			return min(max_nr, PAGE_GRANULE_NR - nr);
	}
	return 0;
}

/**
 * page_granule_check_mremap - May mappings be moved and resized?
 * @mm: The address space.
 * @addr: Old address, a multiple of the base page.
 * @old_len: Old length in bytes, a multiple of the base page.
 * @new_addr: New address, used with MREMAP_FIXED.
 * @new_len: New length in bytes, a multiple of the base page.
 * @flags: MREMAP_* flags.
 *
 * Contract VMAs are moved and resized in whole granules::
 *
 *   addr             addr + old_len           new_addr
 *     |---------|---------|           ->        |---------|---------|
 *     | granule | granule |                     | granule | granule |
 *
 * This checks both ends of both ranges, and of each VMA that is moved.
 *
 * Context: The mmap lock of @mm is held for writing.
 * Return: 0, or -EINVAL if a granule would be cut, or become misaligned.
 */
int page_granule_check_mremap(struct mm_struct *mm, unsigned long addr,
			      unsigned long old_len, unsigned long new_addr,
			      unsigned long new_len, unsigned long flags)
{
	const bool fixed = flags & MREMAP_FIXED;
	const unsigned long end = addr + min(old_len, new_len);
	const unsigned long delta = new_addr - addr;
	struct vm_area_struct *vma;
	struct vma_iterator vmi;

	mmap_assert_write_locked(mm);
	if (page_granule_check_range(mm, addr, addr + old_len))
		return -EINVAL;
	if (new_len < old_len && page_granule_cuts(mm, end))
		return -EINVAL;
	if (fixed && page_granule_check_range(mm, new_addr, new_addr + new_len))
		return -EINVAL;

	vma_iter_init(&vmi, mm, addr);
	/* An old length of 0 duplicates the shared memory at the address. */
	for_each_vma_range(vmi, vma, max(end, addr + 1)) {
		const unsigned long from = max(vma->vm_start, addr);
		const unsigned long to = min(vma->vm_end, end);

		/* Each VMA is moved by itself, over its part of the target. */
		if (fixed && old_len == new_len &&
		    page_granule_check_range(mm, from + delta, to + delta))
			return -EINVAL;
		if (!vma_granule_contract(vma))
			continue;
		if (fixed && !IS_ALIGNED(delta, PAGE_GRANULE_SIZE))
			return -EINVAL;
		/* Only the first VMA of a range can grow. */
		if (vma->vm_start <= addr && new_len > old_len &&
		    !IS_ALIGNED(new_len, PAGE_GRANULE_SIZE))
			return -EINVAL;
	}

	return 0;
}

/**
 * page_granule_any_contract - Is there a contract VMA in a range?
 * @mm: The address space.
 * @start: First byte of the range.
 * @end: First byte after the range.
 *
 * Context: The mmap lock of @mm is held.
 * Return: true if a contract VMA overlaps the range.
 */
bool page_granule_any_contract(struct mm_struct *mm, unsigned long start,
			       unsigned long end)
{
	struct vm_area_struct *vma;
	struct vma_iterator vmi;

	mmap_assert_locked(mm);
	vma_iter_init(&vmi, mm, start);
	for_each_vma_range(vmi, vma, end) {
		if (vma_granule_contract(vma))
			return true;
	}
	return false;
}
