// SPDX-License-Identifier: GPL-2.0
/*
 * Calls that would cut a granule of a contract VMA.
 *
 * They are refused as a whole, before the first VMA is changed. What takes one
 * range asks page_granule_check_range(); what takes more than that is here.
 */

#include <linux/mm.h>
#include <linux/mman.h>
#include <linux/page_granule.h>

/**
 * page_granule_check_mremap - May mappings be moved and resized?
 * @mm: The address space.
 * @addr: Old address, a multiple of the base page.
 * @old_len: Old length in bytes, a multiple of the base page.
 * @new_addr: New address, which MREMAP_FIXED takes.
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
 * Return: 0, or -EINVAL if a granule would be cut, or end unaligned.
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

	vma_iter_init(&vmi, mm, start);
	for_each_vma_range(vmi, vma, end) {
		if (vma_granule_contract(vma))
			return true;
	}
	return false;
}
