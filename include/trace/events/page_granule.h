/* SPDX-License-Identifier: GPL-2.0 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM page_granule

#if !defined(_TRACE_PAGE_GRANULE_H) || defined(TRACE_HEADER_MULTI_READ)
#define _TRACE_PAGE_GRANULE_H

#include <linux/mm_types.h>
#include <linux/page_granule.h>
#include <linux/tracepoint.h>

/*
 * What populated a granule.
 */
#define PAGE_GRANULE_FILL						\
	EM(GRANULE_FILL_FOLIO,	"folio")				\
	EM(GRANULE_FILL_ZERO,	"zero")					\
	EMe(GRANULE_FILL_SINGLE, "single")

#undef EM
#undef EMe
#define EM(a, b)	TRACE_DEFINE_ENUM(a);
#define EMe(a, b)	TRACE_DEFINE_ENUM(a);

PAGE_GRANULE_FILL

#undef EM
#undef EMe
#define EM(a, b)	{a, b},
#define EMe(a, b)	{a, b}

DECLARE_EVENT_CLASS(page_granule_fill,

	TP_PROTO(struct mm_struct *mm, unsigned long addr,
		 enum page_granule_fill fill),

	TP_ARGS(mm, addr, fill),

	TP_STRUCT__entry(
		__field(struct mm_struct *, mm)
		__field(unsigned long, addr)
		__field(int, fill)
	),

	TP_fast_assign(
		__entry->mm = mm;
		__entry->addr = addr;
		__entry->fill = fill;
	),

	TP_printk("mm=%p addr=0x%lx fill=%s", __entry->mm, __entry->addr,
		  __print_symbolic(__entry->fill, PAGE_GRANULE_FILL))
);

/**
 * page_granule_fault - called when a fault has populated a granule
 * @mm: address space
 * @addr: start of the granule
 * @fill: what it was populated with
 */
DEFINE_EVENT(page_granule_fill, page_granule_fault,

	TP_PROTO(struct mm_struct *mm, unsigned long addr,
		 enum page_granule_fill fill),

	TP_ARGS(mm, addr, fill)
);

/**
 * page_granule_cow - called when a granule has been copied
 * @mm: address space
 * @addr: start of the granule
 * @fill: what it was copied to
 */
DEFINE_EVENT(page_granule_fill, page_granule_cow,

	TP_PROTO(struct mm_struct *mm, unsigned long addr,
		 enum page_granule_fill fill),

	TP_ARGS(mm, addr, fill)
);

DECLARE_EVENT_CLASS(page_granule_addr,

	TP_PROTO(struct mm_struct *mm, unsigned long addr),

	TP_ARGS(mm, addr),

	TP_STRUCT__entry(
		__field(struct mm_struct *, mm)
		__field(unsigned long, addr)
	),

	TP_fast_assign(
		__entry->mm = mm;
		__entry->addr = addr;
	),

	TP_printk("mm=%p addr=0x%lx", __entry->mm, __entry->addr)
);

/**
 * page_granule_split - called when a whole granule breaks or is about to
 * @mm: address space
 * @addr: start of the granule
 */
DEFINE_EVENT(page_granule_addr, page_granule_split,

	TP_PROTO(struct mm_struct *mm, unsigned long addr),

	TP_ARGS(mm, addr)
);

/**
 * page_granule_repair - called when a broken granule has been repaired
 * @mm: address space
 * @addr: start of the granule
 */
DEFINE_EVENT(page_granule_addr, page_granule_repair,

	TP_PROTO(struct mm_struct *mm, unsigned long addr),

	TP_ARGS(mm, addr)
);

#endif /* _TRACE_PAGE_GRANULE_H */

/* This part must be outside protection */
#include <trace/define_trace.h>
