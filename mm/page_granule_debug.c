// SPDX-License-Identifier: GPL-2.0
/*
 * Page granule: verify that what is promised about granules holds in a
 * process.
 *
 * Write a PID to /sys/kernel/debug/page_granule/check. The write fails with
 * EUCLEAN if anything is wrong; the kernel log then says what and where. See
 * Documentation/mm/page_granule.rst for what is promised.
 */

#include <linux/debugfs.h>
#include <linux/export.h>
#include <linux/init.h>
#include <linux/mm.h>
#include <linux/pgtable.h>
#include <linux/pid.h>
#include <linux/sched/mm.h>
#include <linux/sched/task.h>
#include <linux/shmem_fs.h>
#include <linux/userfaultfd_k.h>

#include <kunit/visibility.h>

#include "internal.h"
#include "page_granule.h"

/* Limit the reports: more of them are likely more of the same. */
#define VERIFY_REPORTS	8

/* Do the PTEs map consecutive pages of one folio, or the zero block? */
static bool verify_one_folio(struct vm_area_struct *vma, unsigned long addr,
			     pte_t *ptep)
{
	const unsigned long pfn = pte_pfn(ptep_get(ptep));
	struct folio *folio;
	int i;

	if (!IS_ALIGNED(pfn, PAGE_GRANULE_NR))
		return false;
	for (i = 1; i < PAGE_GRANULE_NR; i++) {
		if (pte_pfn(ptep_get(ptep + i)) != pfn + i)
			return false;
	}
	if (is_zero_pfn(pfn))
		return true;
	folio = vm_normal_folio(vma, addr, ptep_get(ptep));
	return folio && folio_order(folio) >= PAGE_GRANULE_ORDER;
}

/*
 * Are the PTEs equal except for the accessed and dirty bits? Unlike
 * page_granule_ptes_run(), this does not trust the contiguous bit.
 */
static bool verify_alike(pte_t *ptep)
{
	const fpb_t flags = FPB_RESPECT_WRITE | FPB_RESPECT_SOFT_DIRTY;
	pte_t expected = __pte_batch_clear_ignored(ptep_get(ptep), flags);
	int i;

	for (i = 1; i < PAGE_GRANULE_NR; i++) {
		expected = pte_advance_pfn(expected, 1);
		if (!pte_same(__pte_batch_clear_ignored(ptep_get(ptep + i), flags),
			      expected))
			return false;
	}
	return true;
}

/* Are the pages of a run all exclusive to the process, or all shared? */
static bool verify_exclusive(struct vm_area_struct *vma, unsigned long addr,
			     pte_t *ptep)
{
	struct page *page = vm_normal_page(vma, addr, ptep_get(ptep));
	int i;

	if (!page || !PageAnon(page))
		return true;
	for (i = 1; i < PAGE_GRANULE_NR; i++) {
		if (PageAnonExclusive(page + i) != PageAnonExclusive(page))
			return false;
	}
	return true;
}

/**
 * page_granule_verify_ptes - Are the PTEs of a granule as they should be?
 * @vma: The contract VMA.
 * @addr: Start of a granule of @vma.
 * @ptep: The PTE that maps @addr.
 *
 * A granule of a default-tagged VMA may be in any state that 4 KiB calls have
 * left it in, so there is nothing to check.
 *
 * Context: The page table lock of @ptep is held.
 * Return: what is wrong, or NULL.
 */
const char *page_granule_verify_ptes(struct vm_area_struct *vma,
				     unsigned long addr, pte_t *ptep)
{
	unsigned int populated = 0, present = 0;
	pte_t pte;
	int i;

	for (i = 0; i < PAGE_GRANULE_NR; i++) {
		pte = ptep_get(ptep + i);
		populated += !pte_none(pte);
		present += pte_present(pte);
	}

	/* The page cache can be truncated or reclaimed in single pages. */
	if (vma_is_anonymous(vma) && populated % PAGE_GRANULE_NR)
		return "populated in part";
	if (present < PAGE_GRANULE_NR || !verify_one_folio(vma, addr, ptep))
		return NULL;

	/* The first write to a page of a file is a matter of its own. */
	if (vma->vm_file && !shmem_mapping(vma->vm_file->f_mapping))
		return NULL;

	/* Userfaultfd may follow the use of single pages. */
	if (userfaultfd_protected(vma))
		return NULL;

	pte = ptep_get(ptep);
	if (!verify_alike(ptep))
		return "one folio, but the PTEs differ";
	if (!verify_exclusive(vma, addr, ptep))
		return "exclusive in part";
	/* Protnone PTEs are not marked, nor zero pages of UFFDIO_ZEROPAGE. */
	if (!pte_protnone(pte) && !is_zero_pfn(pte_pfn(pte)) &&
	    page_granule_unfolded(ptep, pte))
		return "a run, but not marked contiguous";
	return NULL;
}
EXPORT_SYMBOL_IF_KUNIT(page_granule_verify_ptes);

static const char *verify_granule(struct vm_area_struct *vma, unsigned long addr)
{
	const char *wrong = NULL;
	spinlock_t *ptl;
	pmd_t *pmd;
	pte_t *pte;
	int i;

	pmd = mm_find_pmd(vma->vm_mm, addr);
	if (!pmd)
		return NULL;
	/* A huge page is a run of granules. */
	pte = pte_offset_map_lock(vma->vm_mm, pmd, addr, &ptl);
	if (!pte)
		return NULL;
	wrong = page_granule_verify_ptes(vma, addr, pte);
	for (i = 0; wrong && i < PAGE_GRANULE_NR; i++)
		pr_info("page_granule: %#lx: %#llx\n", addr + i * PAGE_SIZE,
			(u64)pte_val(ptep_get(pte + i)));
	pte_unmap_unlock(pte, ptl);
	return wrong;
}

static const char *verify_vma(struct vm_area_struct *vma)
{
	if (!vma_granule_tagged(vma))
		return vma_granule_contract(vma) ?
		       "a contract VMA that is not tagged" : NULL;

	/* Whether it can still hold granules is up to its filesystem. */
	if (!vma_is_anonymous(vma) && !S_ISREG(file_inode(vma->vm_file)->i_mode))
		return "a tagged VMA of what is not a file";
	if (!vma_granule_contract(vma))
		return NULL;

	if (!mm_flags_test(MMF_GRANULE_CONTRACT, vma->vm_mm))
		return "a contract VMA that the address space does not know of";
	if (!IS_ALIGNED(vma->vm_start | vma->vm_end, PAGE_GRANULE_SIZE))
		return "a contract VMA with a bound inside a granule";
	return NULL;
}

static void report(u64 pid, unsigned long addr, const char *wrong,
		   unsigned int *reports)
{
	if (++*reports <= VERIFY_REPORTS)
		pr_err("page_granule: process %llu, %#lx: %s\n", pid, addr, wrong);
}

/* Lock the VMAs, so that a call in progress does not look like an error. */
static int verify_mm(struct mm_struct *mm, u64 pid)
{
	struct vm_area_struct *vma;
	unsigned int reports = 0;
	unsigned long addr;
	const char *wrong;

	VMA_ITERATOR(vmi, mm, 0);

	if (mmap_write_lock_killable(mm))
		return -EINTR;
	for_each_vma(vmi, vma) {
		vma_start_write(vma);
		wrong = verify_vma(vma);
		if (wrong)
			report(pid, vma->vm_start, wrong, &reports);
		if (wrong || !vma_granule_contract(vma))
			continue;
		for (addr = vma->vm_start; addr < vma->vm_end;
		     addr += PAGE_GRANULE_SIZE) {
			wrong = verify_granule(vma, addr);
			if (wrong)
				report(pid, addr, wrong, &reports);
			cond_resched();
		}
	}
	mmap_write_unlock(mm);
	return reports ? -EUCLEAN : 0;
}

static int verify_pid(void *data, u64 pid)
{
	struct task_struct *task;
	struct mm_struct *mm;
	int ret;

	if (pid > PID_MAX_LIMIT)
		return -ESRCH;
	task = find_get_task_by_vpid(pid);
	if (!task)
		return -ESRCH;
	mm = get_task_mm(task);
	put_task_struct(task);
	/* A kernel thread, or one that has exited. */
	if (!mm)
		return -ESRCH;
	ret = verify_mm(mm, pid);
	mmput(mm);
	return ret;
}
DEFINE_DEBUGFS_ATTRIBUTE(verify_fops, NULL, verify_pid, "%llu\n");

static int __init page_granule_debug_init(void)
{
	struct dentry *dir = debugfs_lookup("page_granule", NULL);

	debugfs_create_file("check", 0200, dir, NULL, &verify_fops);
	dput(dir);
	return 0;
}

/* Run after page_granule_repair_init(), which makes the directory. */
late_initcall_sync(page_granule_debug_init);
