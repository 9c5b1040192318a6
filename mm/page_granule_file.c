// SPDX-License-Identifier: GPL-2.0-only
/*
 * Page granule: files.
 *
 * A fault reads all of a granule into the page cache, in one folio if possible,
 * and maps it. A granule that is cached in small folios is copied to one folio
 * first, unless somebody else uses it.
 */

#include <linux/blkdev.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/shmem_fs.h>
#include <linux/userfaultfd_k.h>
#include <linux/vmstat.h>

#include "internal.h"
#include "page_granule.h"

/*
 * Read the blocks from @start to @end, each into one folio unless a part of it
 * is cached. The first folio from @mark on is marked for asynchronous readahead.
 */
static void granule_read_blocks(struct file *file, pgoff_t start, pgoff_t end,
				pgoff_t mark, gfp_t ceiling)
{
	struct address_space *mapping = file->f_mapping;
	unsigned long nr = end - start;
	struct blk_plug plug;

	/* If a part is cached, do not let that make the other blocks small. */
	if (filemap_range_has_page(mapping, (loff_t)start << PAGE_SHIFT,
				   ((loff_t)end << PAGE_SHIFT) - 1))
		nr = PAGE_GRANULE_NR;

	blk_start_plug(&plug);
	for (; start < end; start += nr) {
		struct file_ra_state ra = {
			.start = start,
			.size = min(nr, end - start),
			.ra_pages = file->f_ra.ra_pages,
			.order = PAGE_GRANULE_ORDER,
		};
		DEFINE_READAHEAD(ractl, file, &ra, mapping, start);

		if (in_range(mark, start, ra.size))
			ra.async_size = start + ra.size - mark;
		ractl._granule_gfp = ceiling;
		page_cache_ra_order(&ractl, &ra);
	}
	blk_finish_plug(&plug);
}

/* Is it worth reading more than the granule? See do_sync_mmap_readahead(). */
static bool granule_reads_ahead(struct vm_fault *vmf, struct file_ra_state *ra)
{
	const vm_flags_t vm_flags = vmf->vma->vm_flags;
	unsigned short mmap_miss;

	if ((vm_flags & VM_RAND_READ) || ra->ra_pages < PAGE_GRANULE_NR)
		return false;
	if (vm_flags & (VM_SEQ_READ | VM_EXEC))
		return true;

	mmap_miss = READ_ONCE(ra->mmap_miss);
	if (mmap_miss < MMAP_LOTSAMISS * 10)
		WRITE_ONCE(ra->mmap_miss, ++mmap_miss);
	return mmap_miss <= MMAP_LOTSAMISS;
}

/**
 * granule_sync_readahead - do_sync_mmap_readahead() for a granule.
 * @vmf: A fault on an address for which vma_reads_granule() is true.
 *
 * This reads the granule, whatever readahead would do. If readahead reads more,
 * its window begins and ends with a granule, unless the end of an executable
 * mapping or of the file cuts it.
 *
 * Context: The mmap lock or the VMA lock is held. May release it.
 * Return: the file, referenced, if the lock was released; else NULL.
 */
struct file *granule_sync_readahead(struct vm_fault *vmf)
{
	struct vm_area_struct *vma = vmf->vma;
	const gfp_t ceiling = vma_thp_gfp_mask(vma);
	struct file *file = vma->vm_file, *fpin;
	pgoff_t start = round_down(vmf->pgoff, PAGE_GRANULE_NR);
	pgoff_t end = start + PAGE_GRANULE_NR, mark = ULONG_MAX;
	struct file_ra_state *ra = &file->f_ra;

	if (granule_reads_ahead(vmf, ra)) {
		const unsigned long nr = round_up(ra->ra_pages, PAGE_GRANULE_NR);

		if (vma->vm_flags & VM_EXEC) {
			end = min(start + nr, vma_end_pgoff(vma));
		} else if (nr == PAGE_GRANULE_NR) {
			mark = start;
		} else if (vma->vm_flags & VM_SEQ_READ) {
			mark = end;
			end = start + nr;
		} else {
			start -= min(start, round_up(nr / 2, PAGE_GRANULE_NR));
			end = start + nr;
			mark = end - round_up(nr / 4, PAGE_GRANULE_NR);
		}
	}
	ra->start = start;
	ra->size = end - start;
	ra->async_size = mark < end ? end - mark : 0;
	ra->order = PAGE_GRANULE_ORDER;

	fpin = maybe_unlock_mmap_for_io(vmf, NULL);
	granule_read_blocks(file, start, end, mark, ceiling);
	return fpin;
}

/* Are PTEs none? @addr is that of the first of @nr. This is only a hint. */
static bool ptes_look_empty(struct vm_fault *vmf, unsigned long addr, unsigned int nr)
{
	pte_t *pte;
	bool empty;

	if (pmd_none(*vmf->pmd))
		return true;
	pte = pte_offset_map(vmf->pmd, addr);
	if (!pte)
		return false;
	empty = pte_range_none(pte, nr);
	pte_unmap(pte);
	return empty;
}

static bool granule_looks_empty(struct vm_fault *vmf)
{
	return ptes_look_empty(vmf, granule_start(vmf->address), PAGE_GRANULE_NR);
}

/* How many pages fault-around maps if all that takes is to set PTEs */
#define GRANULE_AROUND_NR	(4 * PAGE_GRANULE_NR)

/* Is nothing mapped yet in the block of @nr pages around the address? */
static bool granules_look_empty(struct vm_fault *vmf, unsigned int nr)
{
	struct vm_area_struct *vma = vmf->vma;
	const unsigned long before = pte_index(vmf->address) % nr;
	const unsigned long start = (vmf->address & PAGE_MASK) - before * PAGE_SIZE;

	return before <= vmf->pgoff - vma_start_pgoff(vma) &&
	       vma->vm_end - start >= nr * PAGE_SIZE &&
	       ptes_look_empty(vmf, start, nr);
}

/**
 * granule_convert - Copy a granule that is cached in small folios to one folio.
 * @vmf: A fault on an address in a granule of a file.
 *
 * Nobody may use the pages of the granule: not even this process, whose other
 * threads would take a fault. If it cannot be converted now, it is mapped as it
 * is, and repair may convert it later.
 *
 * Context: The mmap lock or the VMA lock is held, and no folio lock. May sleep.
 * Return: true if one folio holds the granule now.
 */
bool granule_convert(struct vm_fault *vmf)
{
	return !(vmf->flags & FAULT_FLAG_RETRY_NOWAIT) && granule_looks_empty(vmf) &&
	       granule_collapse_cached(vmf->vma, granule_start(vmf->address)) >= 0;
}

/**
 * granule_fault_around - Map what is cached of a granule.
 * @vmf: A fault for a read on an address in a granule; its PTE is neither mapped
 *	 nor locked.
 *
 * Return: VM_FAULT_NOPAGE if the address is mapped now; 0 if the page is not
 * cached, or its mapping has granules that do_fault_granule() populates; or
 * VM_FAULT_OOM.
 */
vm_fault_t granule_fault_around(struct vm_fault *vmf)
{
	struct vm_area_struct *vma = vmf->vma;
	struct address_space *mapping = vma->vm_file->f_mapping;
	bool whole, empty, ready;
	struct folio *folio;
	unsigned int nr;
	vm_fault_t ret;

	if (shmem_mapping(mapping) || !vma->vm_ops->map_pages ||
	    userfaultfd_armed(vma))
		return 0;
	folio = filemap_get_entry(mapping, vmf->pgoff);
	if (!folio || xa_is_value(folio))
		return 0;
	whole = folio_order(folio) >= PAGE_GRANULE_ORDER;
	/* As next_uptodate_folio() has it */
	ready = folio_test_uptodate(folio) && !folio_test_locked(folio) &&
		!folio_test_readahead(folio);
	folio_put(folio);
	if (whole && !ready)
		return 0;

	/* Readahead of text leaves no marks, at which this would stop. */
	nr = GRANULE_AROUND_NR;
	while (nr > PAGE_GRANULE_NR && !granules_look_empty(vmf, nr))
		nr = vma->vm_flags & VM_EXEC ? nr / 2 : PAGE_GRANULE_NR;
	if (nr > PAGE_GRANULE_NR) {
		ret = do_fault_around(vmf, nr);
		if (ret || whole)
			goto mapped;
	}
	empty = granule_looks_empty(vmf);
	if (!whole)
		whole = granule_convert(vmf);
	ret = do_fault_around(vmf, PAGE_GRANULE_NR);
	if (empty && whole)
		goto mapped;
	if (!(ret & VM_FAULT_NOPAGE))
		return ret;

	if (empty) {
		count_vm_event(GRANULE_FAULT);
		count_vm_event(GRANULE_FALLBACK);
	}
	vmf->pte = pte_offset_map_lock(vma->vm_mm, vmf->pmd, vmf->address,
				       &vmf->ptl);
	if (vmf->pte) {
		fold_or_repair_granule(vmf);
		pte_unmap_unlock(vmf->pte, vmf->ptl);
	}
	return ret;

mapped:
	if (ret & VM_FAULT_NOPAGE)
		page_granule_note_fault(vma, vmf->address, GRANULE_FILL_FOLIO);
	return ret;
}
