/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What mm/memory.c calls where an address is in a granule.
 */
#ifndef __MM_PAGE_GRANULE_FAULT_H
#define __MM_PAGE_GRANULE_FAULT_H

#include <linux/mm.h>
#include <linux/page_granule.h>

#include <asm/tlb.h>

#include "internal.h"

/*
 * Of private anonymous memory of contract VMAs, nobody is to find a granule that is
 * emptied in part. The bounds of what is zapped are multiples of a granule there.
 */
static inline bool zap_whole_granules(struct vm_area_struct *vma)
{
	return unlikely(vma_granule_contract(vma)) && vma_is_anonymous(vma);
}

/* May the granule that begins at @addr be zapped without a pause? */
static inline bool zap_granule_fits(struct mmu_gather *tlb,
				    struct vm_area_struct *vma, pte_t *pte,
				    unsigned long addr)
{
	return tlb_has_room(tlb, PAGE_GRANULE_NR) ||
	       page_granule_pte_state(vma, addr, pte) == PAGE_GRANULE_WHOLE ||
	       tlb_next_batch(tlb);
}

bool granule_empty(struct vm_fault *vmf, pte_t *pte);
int granule_part(struct vm_fault *vmf, struct folio *folio, struct page **page,
		 unsigned long *addr);
bool granule_wants_pages(struct vm_fault *vmf, struct folio *folio);
vm_fault_t populate_granule_single(struct vm_fault *vmf, struct folio *folio);
vm_fault_t populate_granule_edge(struct vm_fault *vmf);
bool map_zero_granule(struct vm_fault *vmf);
vm_fault_t wp_copy_granule(struct vm_fault *vmf);
bool wp_reuse_granule(struct vm_fault *vmf, struct folio *folio);
bool mark_granule_soft_dirty(struct vm_fault *vmf);
void count_fault_granule(struct vm_fault *vmf, int nr_pages);
int copy_pinned_granule(struct vm_area_struct *dst_vma,
			struct vm_area_struct *src_vma, pmd_t *dst_pmd,
			pmd_t *src_pmd, unsigned long addr);

#ifdef CONFIG_PAGE_GRANULE
void granule_filled(struct vm_fault *vmf);
#else
static inline void granule_filled(struct vm_fault *vmf)
{
}
#endif

#if defined(CONFIG_PAGE_GRANULE) && defined(CONFIG_SWAP)
vm_fault_t swapin_granule(struct vm_fault *vmf, softleaf_t entry,
			  unsigned long orders, struct folio **foliop);
bool swapped_granule_fits(struct vm_fault *vmf, struct folio *folio,
			  struct page *page);
#else
static inline bool swapped_granule_fits(struct vm_fault *vmf, struct folio *folio,
					struct page *page)
{
	return false;
}

static inline vm_fault_t swapin_granule(struct vm_fault *vmf, softleaf_t entry,
					unsigned long orders,
					struct folio **foliop)
{
	return VM_FAULT_FALLBACK;
}
#endif

#if defined(CONFIG_PAGE_GRANULE) && defined(CONFIG_SHMEM)
vm_fault_t do_fault_granule(struct vm_fault *vmf);
#else
static inline vm_fault_t do_fault_granule(struct vm_fault *vmf)
{
	return __do_fault(vmf);
}
#endif

#endif /* __MM_PAGE_GRANULE_FAULT_H */
