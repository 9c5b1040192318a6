// SPDX-License-Identifier: GPL-2.0
/*
 * Page granule: moving a part of a granule.
 *
 * move_pages() and mbind() may name single pages of a granule. Its folio is
 * split first, so that the other pages stay where they are.
 */

#include <linux/compat.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/pgalloc.h>
#include <linux/uaccess.h>
#include <linux/userfaultfd_k.h>

#include "internal.h"
#include "page_granule.h"

/**
 * page_granule_nr_to_move - How many pages move_pages() moves together.
 * @pages: Array of addresses in user memory, as the caller has them.
 * @nodes: Array of nodes in user memory.
 * @i: Index of the first page.
 * @nr_pages: Length of the arrays.
 * @p: The address of the first page, already read from @pages.
 * @node: The node to move it to.
 *
 * Return: PAGE_GRANULE_NR if all pages of a granule move to @node in order,
 * else 1.
 */
int page_granule_nr_to_move(const void __user * __user *pages,
			    const int __user *nodes, unsigned long i,
			    unsigned long nr_pages, const void __user *p,
			    int node)
{
	const compat_uptr_t __user *compat_pages = (void __user *)pages;
	const unsigned long addr = (unsigned long)p & PAGE_MASK;
	int other_node, k;

	if (!IS_ALIGNED(addr, PAGE_GRANULE_SIZE) || nr_pages - i < PAGE_GRANULE_NR)
		return 1;

	for (k = 1; k < PAGE_GRANULE_NR; k++) {
		const void __user *next;
		compat_uptr_t compat;

		if (!in_compat_syscall()) {
			if (get_user(next, pages + i + k))
				return 1;
		} else {
			if (get_user(compat, compat_pages + i + k))
				return 1;
			next = compat_ptr(compat);
		}
		if (((unsigned long)next & PAGE_MASK) != addr + k * PAGE_SIZE ||
		    get_user(other_node, nodes + i + k) || other_node != node)
			return 1;
	}
	return PAGE_GRANULE_NR;
}

/* Map the split pages in the page cache again, as before the split. */
static void page_granule_map_pages(struct vm_area_struct *vma, unsigned long addr)
{
	struct vm_fault vmf = {
		.vma = vma,
		.address = addr & PAGE_MASK,
		.real_address = addr,
		.pgoff = linear_page_index(vma, addr),
		.pmd = mm_find_pmd(vma->vm_mm, addr),
	};

	if (!vmf.pmd || !vma->vm_ops || !vma->vm_ops->map_pages ||
	    userfaultfd_armed(vma))
		return;
	do_fault_around(&vmf, PAGE_GRANULE_NR);
	if (vmf.prealloc_pte)
		pte_free(vma->vm_mm, vmf.prealloc_pte);
}

/**
 * page_granule_split_page - Split a folio to move one of its pages.
 * @vma: The VMA that maps the page.
 * @addr: The address at which it maps the page.
 * @page: The page, with a reference held.
 * @wait: Wait for the folio if it is locked or under writeback.
 *
 * The other pages stay mapped here. Otherwise the next fault would find an
 * empty granule, and populate it as a whole.
 *
 * Context: The mmap lock is held. Sleeps.
 * Return: 0 if the page is a folio of its own, which holds the reference;
 * otherwise an error, for instance if somebody else references the folio.
 */
int page_granule_split_page(struct vm_area_struct *vma, unsigned long addr,
			    struct page *page, bool wait)
{
	struct folio *folio = page_folio(page);
	int err = 0;

	mmap_assert_locked(vma->vm_mm);
	if (wait) {
		folio_lock(folio);
		folio_wait_writeback(folio);
	} else if (!folio_trylock(folio)) {
		return -EAGAIN;
	}
	if (folio_test_large(folio))
		err = split_huge_page(page);
	folio = page_folio(page);
	folio_unlock(folio);

	if (!err && !folio_test_anon(folio))
		page_granule_map_pages(vma, addr);
	return err;
}
