// SPDX-License-Identifier: GPL-2.0
/*
 * Page granule: which memory has granules.
 *
 * A process asks by prctl() for its new mappings, or by mmap() for one of
 * them. A launcher asks for the programs that it starts. Tagged mappings are
 * placed on a 64 KiB boundary.
 */

#include <linux/export.h>
#include <linux/fs.h>
#include <linux/hugetlb.h>
#include <linux/mm.h>
#include <linux/mman.h>
#include <linux/pagemap.h>
#include <linux/prctl.h>
#include <linux/shmem_fs.h>
#include <linux/sizes.h>

#include <kunit/visibility.h>

#include "internal.h"
#include "page_granule.h"

/*
 * The switch of the administrator. 0 refuses new requests, and makes
 * vma_granule_folios() false for memory that is tagged already.
 */
bool page_granule_enabled __read_mostly = true;

/*
 * Does an address space have room for alignment? Addresses are scarce in a
 * 32-bit one, and it cannot make up elsewhere for the randomisation that
 * alignment costs. mm->task_size tells this from setup_new_exec() on.
 */
static bool page_granule_mm_is_64bit(const struct mm_struct *mm)
{
	return !IS_ENABLED(CONFIG_COMPAT) || mm->task_size > SZ_4G;
}

/* May new requests of an address space be served? */
static bool page_granule_offered(const struct mm_struct *mm)
{
	/* A CPU without huge pages has no use for the large folios of a run. */
	return READ_ONCE(page_granule_enabled) && !thp_disabled_by_hw() &&
	       page_granule_mm_is_64bit(mm);
}

/**
 * page_granule_exec - Give a new address space the granule it starts with.
 * @mm: The new address space, which has no mapping but a stack.
 * @secureexec: The program gains privileges.
 *
 * mm_init() has copied the settings of the caller of execve(). The program
 * starts with the setting of PR_GRANULE_EXEC if the address space may request
 * granules. Later programs inherit that setting in any case: a 32-bit program
 * may start a 64-bit one. A program that gains privileges drops it, so that the
 * caller cannot choose its layout.
 */
void page_granule_exec(struct mm_struct *mm, bool secureexec)
{
	if (secureexec)
		mm_flags_clear(MMF_GRANULE_EXEC, mm);

	/* The tagged VMAs belong to the old address space. */
	mm_flags_clear(MMF_GRANULE_TAGGED, mm);
	mm_flags_clear(MMF_GRANULE_CONTRACT, mm);

	if (mm_flags_test(MMF_GRANULE_EXEC, mm) && page_granule_offered(mm)) {
		mm_flags_set(MMF_GRANULE_TAGGED, mm);
		mm_flags_set(MMF_GRANULE_MMAP, mm);
	} else {
		mm_flags_clear(MMF_GRANULE_MMAP, mm);
	}
}

/**
 * page_granule_parse_size - Is this a size that prctl() knows?
 * @size: Bytes; 0 stands for the base page.
 *
 * Return: the size as a page order, or -EINVAL.
 */
int page_granule_parse_size(unsigned long size)
{
	switch (size) {
	case 0:
	case PAGE_SIZE:
		return 0;
	case PAGE_GRANULE_SIZE:
		return PAGE_GRANULE_ORDER;
	default:
		return -EINVAL;
	}
}
EXPORT_SYMBOL_IF_KUNIT(page_granule_parse_size);

/**
 * page_granule_parse_flags - The granule that mmap() flags ask for.
 * @flags: MAP_* flags, including MAP_GRANULE.
 *
 * Return: the size as a page order, or -EINVAL.
 */
int page_granule_parse_flags(unsigned long flags)
{
	switch ((flags >> MAP_HUGE_SHIFT) & MAP_HUGE_MASK) {
	case PAGE_SHIFT:
		return 0;
	case PAGE_GRANULE_SHIFT:
		return PAGE_GRANULE_ORDER;
	default:
		return -EINVAL;
	}
}
EXPORT_SYMBOL_IF_KUNIT(page_granule_parse_flags);

/*
 * Can the page cache of a file hold granules? That of a device cannot, nor can
 * huge pages or persistent memory be mapped in runs. Overlayfs maps the file of
 * another file system. Drivers have their own wishes for shared memory that they
 * export.
 */
static bool page_granule_in_cache(const struct file *file)
{
	const gfp_t movable = GFP_HIGHUSER_MOVABLE & (GFP_ZONEMASK | __GFP_RECLAIMABLE);
	const struct inode *inode = d_real_inode(file->f_path.dentry);
	struct address_space *mapping = inode->i_mapping;

	return S_ISREG(inode->i_mode) && !IS_DAX(inode) && !is_file_hugepages(file) &&
	       mapping_max_folio_order(mapping) >= PAGE_GRANULE_ORDER &&
	       (!shmem_mapping(mapping) ||
		(mapping_gfp_mask(mapping) & (GFP_ZONEMASK | __GFP_RECLAIMABLE)) == movable);
}

/* Can memory be populated in granules? */
static bool page_granule_can_tag(struct file *file, unsigned long flags,
				 vma_flags_t *vma_flags)
{
	if (vma_flags_test_single_mask(vma_flags, VMA_SHADOW_STACK))
		return false;
	if (file)
		return page_granule_in_cache(file);

	switch (flags & MAP_TYPE) {
	case MAP_SHARED:
		/* ramfs, which replaces shmem, has no large folios. */
		return IS_ENABLED(CONFIG_SHMEM);
	case MAP_DROPPABLE:
		/* Reclaim may drop any page of it, so no granule would last. */
		return false;
	default:
		return true;
	}
}

/**
 * page_granule_default - Does this address space tag new mappings?
 * @mm: The address space.
 *
 * Return: true if new mappings are tagged unless they say otherwise; constant
 * false without CONFIG_PAGE_GRANULE.
 */
bool page_granule_default(struct mm_struct *mm)
{
	return mm_flags_test(MMF_GRANULE_MMAP, mm) && page_granule_offered(mm);
}

/**
 * page_granule_aligns_program - Is a program loaded at a multiple of a granule?
 * @file: The program.
 * @size: From its first to its last byte in memory.
 *
 * Return: true if @file is to be tagged and can hold granules; constant false
 * without CONFIG_PAGE_GRANULE.
 */
bool page_granule_aligns_program(struct file *file, unsigned long size)
{
	return size >= PAGE_GRANULE_SIZE && page_granule_default(current->mm) &&
	       page_granule_in_cache(file);
}

/**
 * page_granule_mmap_prepare - Find out whether a new mapping is tagged.
 * @file: The file to be mapped or NULL.
 * @addr: The address asked for.
 * @len: The length asked for in bytes.
 * @flags: MAP_* flags; this clears MAP_GRANULE once it is understood, and the
 *	 flags that a contract VMA overrides.
 * @pgoff: The offset into @file in base pages.
 * @vma_flags: Receives the granule bits.
 *
 * MAP_GRANULE overrides the default of the process: it makes a contract VMA or
 * opts out, and fails if it can do neither. The length is not rounded up,
 * because the mapping must not replace the memory behind it. The default tags
 * everything that can be tagged and never fails. It leaves out the stacks of
 * threads, because MAP_STACK means no large folios.
 *
 * Context: The mmap lock of current->mm is held for writing.
 * Return: 0, -EINVAL if arguments are invalid or would cut a granule,
 * -EOPNOTSUPP if granules cannot populate the memory, or are not offered.
 */
int page_granule_mmap_prepare(struct file *file, unsigned long addr,
			      unsigned long len, unsigned long *flags,
			      pgoff_t pgoff, vma_flags_t *vma_flags)
{
	const bool fixed = *flags & (MAP_FIXED | MAP_FIXED_NOREPLACE);
	struct mm_struct *mm = current->mm;
	int order;

	mmap_assert_write_locked(mm);
	/* MAP_SHARED ignores the flags that a file does not know. */
	if (file && (*flags & MAP_TYPE) == MAP_SHARED && !(*flags & MAP_HUGETLB))
		*flags &= ~MAP_GRANULE;

	if (!(*flags & MAP_GRANULE)) {
		if (page_granule_default(mm) && !(*flags & MAP_STACK) &&
		    page_granule_can_tag(file, *flags, vma_flags))
			vma_flags_set_mask(vma_flags, VMA_GRANULE);
		return 0;
	}

	if (*flags & MAP_HUGETLB)
		return -EINVAL;

	order = page_granule_parse_flags(*flags);
	if (order < 0)
		return order;

	*flags &= ~(MAP_GRANULE | MAP_HUGE_MASK << MAP_HUGE_SHIFT);
	if (!order)
		return 0;

	if (!IS_ALIGNED(len, PAGE_GRANULE_SIZE))
		return -EINVAL;
	if (fixed && !IS_ALIGNED(addr, PAGE_GRANULE_SIZE))
		return -EINVAL;
	if (file && !IS_ALIGNED(pgoff, PAGE_GRANULE_NR))
		return -EINVAL;
	if (!page_granule_offered(mm) || !page_granule_can_tag(file, *flags, vma_flags))
		return -EOPNOTSUPP;

	/* Else calc_vm_flag_bits() would add VM_NOHUGEPAGE. */
	*flags &= ~MAP_STACK;
	vma_flags_set_mask(vma_flags, VMA_GRANULE);
	vma_flags_set_mask(vma_flags, VMA_GRANULE_CONTRACT);
	/* If mmap() fails, this only makes later calls look at the VMAs. */
	mm_flags_set(MMF_GRANULE_CONTRACT, mm);
	mm_flags_set(MMF_GRANULE_TAGGED, mm);
	return 0;
}

/**
 * page_granule_get_unmapped_area - Place a tagged mapping.
 * @file: The file to be mapped or NULL.
 * @addr: A hint, or the address if @flags has MAP_FIXED.
 * @len: Length in bytes.
 * @pgoff: The offset into @file in base pages.
 * @offset: The address is to be congruent to this, modulo PAGE_GRANULE_SIZE.
 * @flags: MAP_* flags.
 * @vma_flags: The VMA flags of the new mapping.
 *
 * A hint is kept if the memory there is free; for a contract VMA, it is rounded
 * down first. Any other address is congruent to @offset, except that a
 * default-tagged mapping makes do without if no hole is large enough, or if the
 * process has many VMAs.
 *
 * The first hole that is large enough is taken if it suits, so that a hole that
 * fits exactly can be used again. Otherwise, as vm_unmapped_area() does for
 * hugetlb, this searches for a hole that is large enough wherever it begins.
 *
 * Context: The mmap lock of current->mm is held for writing.
 * Return: an address or a negative error, -ENOMEM if no hole is found.
 */
unsigned long
page_granule_get_unmapped_area(struct file *file, unsigned long addr,
			       unsigned long len, pgoff_t pgoff,
			       unsigned long offset, unsigned long flags,
			       vma_flags_t vma_flags)
{
	const bool contract = vma_flags_test_single_mask(&vma_flags,
							 VMA_GRANULE_CONTRACT);
	const unsigned long pad = PAGE_GRANULE_SIZE - PAGE_SIZE;
	unsigned long ret, padded;

	mmap_assert_write_locked(current->mm);
	if (flags & MAP_FIXED)
		return mm_get_unmapped_area_vmaflags(file, addr, len, 0, flags,
						     vma_flags);

	if (contract) {
		addr = granule_start(addr);
		if (addr < mmap_min_addr)
			addr = 0;
	}
	/* An address that suits a larger folio suits a granule as well. */
	if (file && file->f_op->get_unmapped_area)
		ret = file->f_op->get_unmapped_area(file, addr, len, pgoff, flags);
	else if (!file && (flags & MAP_SHARED))
		ret = shmem_get_unmapped_area(NULL, addr, len, 0, flags);
	else if (!file && !addr && IS_ALIGNED(len, PMD_SIZE))
		ret = thp_get_unmapped_area_vmaflags(file, 0, len, 0, flags,
						     vma_flags);
	else
		ret = mm_get_unmapped_area_vmaflags(file, addr, len, 0, flags,
						    vma_flags);
	if (IS_ERR_VALUE(ret) || (addr && ret == addr) ||
	    IS_ALIGNED(ret - offset, PAGE_GRANULE_SIZE))
		return ret;
	/* Gaps keep VMAs from merging, and the number of VMAs is limited. */
	if (!contract && current->mm->map_count > get_sysctl_max_map_count() / 2)
		return ret;

	/* The hint is taken, but it may also select the size of VA space. */
	padded = len + pad < len ? -ENOMEM :
		 mm_get_unmapped_area_vmaflags(file, addr, len + pad, 0, flags,
					       vma_flags);
	if (IS_ERR_VALUE(padded))
		return contract ? padded : ret;

	/* The padded range holds exactly one congruent start for @len. */
	return padded + ((offset - padded) & ~PAGE_GRANULE_MASK);
}

/* Return the mm flag for a prctl() scope, or -EINVAL. */
static int page_granule_scope_flag(unsigned long scope)
{
	switch (scope) {
	case PR_GRANULE_MMAP:
		return MMF_GRANULE_MMAP;
	case PR_GRANULE_EXEC:
		return MMF_GRANULE_EXEC;
	default:
		return -EINVAL;
	}
}

/**
 * prctl_get_page_granule - prctl(PR_GET_PAGE_GRANULE)
 * @scope: PR_GRANULE_*
 * @arg3: Must be 0.
 * @arg4: Must be 0.
 * @arg5: Must be 0.
 *
 * Return: the granule in bytes, or -EINVAL.
 */
int prctl_get_page_granule(unsigned long scope, unsigned long arg3,
			   unsigned long arg4, unsigned long arg5)
{
	int flag;

	if (arg3 || arg4 || arg5)
		return -EINVAL;

	flag = page_granule_scope_flag(scope);
	if (flag < 0)
		return flag;

	return mm_flags_test(flag, current->mm) ? PAGE_GRANULE_SIZE : PAGE_SIZE;
}

/**
 * prctl_set_page_granule - prctl(PR_SET_PAGE_GRANULE)
 * @scope: PR_GRANULE_*
 * @size: The granule in bytes; 0 stands for the base page.
 * @arg4: Must be 0.
 * @arg5: Must be 0.
 *
 * The setting is a single bit of the address space, so no lock is needed.
 *
 * Return: 0, -EINVAL for an invalid argument, or -EOPNOTSUPP for a
 * size that is not offered to this address space.
 */
int prctl_set_page_granule(unsigned long scope, unsigned long size,
			   unsigned long arg4, unsigned long arg5)
{
	int order = page_granule_parse_size(size);
	int flag;

	if (order < 0 || arg4 || arg5)
		return -EINVAL;

	flag = page_granule_scope_flag(scope);
	if (flag < 0)
		return flag;

	if (!order) {
		mm_flags_clear(flag, current->mm);
		return 0;
	}

	if (!page_granule_offered(current->mm))
		return -EOPNOTSUPP;

	if (flag == MMF_GRANULE_MMAP)
		mm_flags_set(MMF_GRANULE_TAGGED, current->mm);
	mm_flags_set(flag, current->mm);
	return 0;
}
