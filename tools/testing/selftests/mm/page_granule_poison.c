// SPDX-License-Identifier: GPL-2.0
/*
 * Page granule: memory failure. The process loses one page, and keeps the other
 * 15 of the granule.
 */
#define _GNU_SOURCE
#include "kselftest_harness.h"
#include <asm-generic/mman.h> /* Force the import of the tools version. */
#include <errno.h>
#include <linux/prctl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "vm_util.h"
#include "page_granule_mem.h"
#include "page_granule_util.h"

#define MAX_POISONED	32

static struct poisoned {
	unsigned int nr;
	unsigned long pfn[MAX_POISONED];
} *poisoned;

/* To be called before the page is. */
static void will_poison(unsigned long pfn)
{
	if (poisoned->nr == MAX_POISONED)
		ksft_exit_fail_msg("too many poisoned pages\n");
	poisoned->pfn[poisoned->nr++] = pfn;
}

/* No process may map them. Returns how many remain lost. */
static unsigned int unpoison_all(void)
{
	unsigned int failed = 0;

	while (poisoned->nr)
		failed += !!unpoison_memory(poisoned->pfn[--poisoned->nr]);
	return failed;
}

/* Before the harness starts, since its timeout may kill a test. */
static void unpoison_at_exit(void)
{
	unpoison_all();
}

static void create_poisoned(void)
{
	poisoned = mmap(NULL, sizeof(*poisoned), PROT_RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (poisoned == MAP_FAILED)
		ksft_exit_fail_msg("mmap failed\n");
	atexit(unpoison_at_exit);
}

/*
 * Memory failure, but not of zero runs: nothing unpoisons a reserved page, so
 * the test could not restore the machine.
 */
#define HWPOISON_DEBUGFS	"/sys/kernel/debug/hwpoison/"
#define HWPOISON_REMEDY		"no " HWPOISON_DEBUGFS ": set CONFIG_HWPOISON_INJECT=y"

static unsigned long corrupted_kb(void)
{
	return granule_meminfo_kb("HardwareCorrupted");
}

FIXTURE(page_granule_poison)
{
	struct mem mem;
	unsigned long lost;
	unsigned long corrupted;
};

FIXTURE_VARIANT(page_granule_poison)
{
	enum granule_kind kind;
	bool by_pfn;		/* reported as memory is, not by MADV_HWPOISON */
};

FIXTURE_VARIANT_ADD(page_granule_poison, contract)
{
	.kind = GRANULE_CONTRACT,
};

FIXTURE_VARIANT_ADD(page_granule_poison, default_tagged)
{
	.kind = GRANULE_DEFAULT,
};

FIXTURE_VARIANT_ADD(page_granule_poison, contract_pfn)
{
	.kind = GRANULE_CONTRACT,
	.by_pfn = true,
};

FIXTURE_VARIANT_ADD(page_granule_poison, default_tagged_pfn)
{
	.kind = GRANULE_DEFAULT,
	.by_pfn = true,
};

FIXTURE_SETUP(page_granule_poison)
{
	if (access(HWPOISON_DEBUGFS "corrupt-pfn", W_OK))
		SKIP(return, HWPOISON_REMEDY);
	ASSERT_TRUE(granule_catch_faults());
	ASSERT_TRUE(mem_create_nr(&self->mem, variant->kind, FEW_GRANULES));
	mem_fill(&self->mem, 1);
	/* MADV_HWPOISON takes the first page of a large folio in the range. */
	self->lost = variant->by_pfn ? TARGET_PAGE : self->mem.first;
	self->corrupted = corrupted_kb();
}

FIXTURE_TEARDOWN(page_granule_poison)
{
	EXPECT_TRUE(granule_invariants_hold());
	if (self->mem.area)
		munmap(self->mem.area, mem_len(&self->mem));
	unpoison_all();
}

/* These return 0 or a negative errno. */
static int poison_unit(struct mem *mem)
{
	int ret;

	granule_fault_tolerated = true;
	ret = madvise(mem_unit(mem), mem_unit_len(mem), MADV_HWPOISON) ? -errno : 0;
	granule_fault_tolerated = false;
	return ret;
}

static int poison(struct mem *mem, unsigned long page, bool by_pfn)
{
	unsigned long pfn = pagemap_get_pfn(mem->pagemap, page_at(mem->area, page));
	char text[32];

	will_poison(pfn);
	if (!by_pfn)
		return poison_unit(mem);
	snprintf(text, sizeof(text), "%lu", pfn);
	return granule_write(HWPOISON_DEBUGFS "corrupt-pfn", text);
}

/* One page is lost, for good, and nothing else. */
#define EXPECT_POISONED(mem, lost) do { \
	EXPECT_LOST(mem, lost, (lost) + 1); \
	EXPECT_EQ(mem_count(mem, PM_PRESENT), mem_pages(mem) - 1); \
	EXPECT_EQ(refused(mem, lost, (lost) + 1, ACCESS_READ, SIGBUS), 1); \
	EXPECT_EQ(refused(mem, lost, (lost) + 1, ACCESS_WRITE, SIGBUS), 1); \
} while (0)

/*
 * One page is lost, and the other 15 live on. Shared memory keeps the lost page
 * until it is removed.
 */
static void lose_page(struct __test_metadata *_metadata, struct mem *mem,
		      unsigned long lost, bool by_pfn, bool shared)
{
	unsigned long split = granule_vmstat("granule_split");
	unsigned long corrupted = corrupted_kb();
	char *spare;
	pid_t pid;

	/*
	 * Pages of zeroes are mapped to the zero page when their folio is
	 * split.
	 */
	memset(page_at(mem->area, TARGET_PAGE + 2), 0, 3 * BASE_SIZE);
	memset(page_at(mem->model, TARGET_PAGE + 2), 0, 3 * BASE_SIZE);
	ASSERT_EQ(poison(mem, lost, by_pfn), 0);
	EXPECT_EQ(granule_vmstat("granule_split") - split, 1);
	EXPECT_EQ(corrupted_kb() - corrupted, BASE_SIZE / 1024);
	EXPECT_POISONED(mem, lost);
	EXPECT_EQ(granule_fault_info.si_code, BUS_MCEERR_AR);
	EXPECT_EQ(1UL << granule_fault_info.si_addr_lsb, BASE_SIZE);
	EXPECT_EQ((char *)granule_fault_info.si_addr, byte_in(mem->area, lost));

	mem_write_but(mem, lost, lost + 1, 2);
	EXPECT_POISONED(mem, lost);
	pid = mem_fork(mem);
	if (!pid) {
		EXPECT_POISONED(mem, lost);
		mem_write_but(mem, lost, lost + 1, 3);
		EXPECT_POISONED(mem, lost);
		_exit(0);
	}
	EXPECT_TRUE(granule_child_ends(pid));
	mem_write_but(mem, lost, lost + 1, 4);
	EXPECT_POISONED(mem, lost);

	ASSERT_EQ(mprotect(mem->area, mem_len(mem), PROT_READ), 0);
	ASSERT_EQ(mprotect(mem->area, mem_len(mem), PROT_RW), 0);
	spare = granule_reserve(mem_len(mem));
	ASSERT_NE(spare, NULL);
	ASSERT_EQ(mremap(mem->area, mem_len(mem), mem_len(mem),
			 MREMAP_MAYMOVE | MREMAP_FIXED, spare), spare);
	mem->area = spare;
	mem_write_but(mem, lost, lost + 1, 5);
	EXPECT_POISONED(mem, lost);
	/*
	 * A lost page cannot be repaired, but given back and populated again.
	 */
	madvise(mem->area, mem_len(mem), MADV_COLLAPSE);
	EXPECT_POISONED(mem, lost);
	ASSERT_EQ(madvise(mem_target(mem), GRANULE_SIZE, shared ? MADV_REMOVE :
			  MADV_DONTNEED), 0);
	memset(nth(mem->model, TARGET), 0, GRANULE_SIZE);
	mem_write_pages(mem, 6);
	EXPECT_INTACT(mem);

	ASSERT_EQ(munmap(mem->area, mem_len(mem)), 0);
	EXPECT_EQ(unpoison_all(), 0);
	EXPECT_EQ(corrupted_kb(), corrupted);
}

/* Assert that the process loses one page of private memory, and no other. */
TEST_F(page_granule_poison, private_memory)
{
	lose_page(_metadata, &self->mem, self->lost, variant->by_pfn, false);
}

/* Assert that the process loses one page of shared memory, and no other. */
TEST_F(page_granule_poison, shared_memory)
{
	ASSERT_TRUE(mem_share(&self->mem));
	mem_fill(&self->mem, 1);
	EXPECT_INTACT(&self->mem);
	lose_page(_metadata, &self->mem, self->lost, variant->by_pfn, true);
}

/*
 * Assert that a child that shares the page loses it, too, and that the rest is
 * copied.
 */
TEST_F(page_granule_poison, forked)
{
	unsigned long lost = self->lost;
	struct mem *mem = &self->mem;
	int down[2], up[2];
	pid_t pid;
	char c;

	ASSERT_EQ(pipe(down), 0);
	ASSERT_EQ(pipe(up), 0);
	pid = mem_fork(mem);
	if (!pid) {
		if (read(down[0], &c, 1) != 1)
			_exit(1);
		EXPECT_POISONED(mem, lost);
		mem_write_but(mem, lost, lost + 1, 3);
		EXPECT_POISONED(mem, lost);
		if (write(up[1], "", 1) != 1 || read(down[0], &c, 1) != 1)
			_exit(1);
		/* The parent has written. */
		EXPECT_POISONED(mem, lost);
		_exit(0);
	}
	ASSERT_EQ(poison(mem, lost, variant->by_pfn), 0);
	EXPECT_POISONED(mem, lost);
	ASSERT_EQ(write(down[1], "", 1), 1);
	ASSERT_EQ(read(up[0], &c, 1), 1);
	EXPECT_POISONED(mem, lost);
	mem_write_but(mem, lost, lost + 1, 4);
	EXPECT_POISONED(mem, lost);
	ASSERT_EQ(write(down[1], "", 1), 1);
	EXPECT_TRUE(granule_child_ends(pid));
	EXPECT_POISONED(mem, lost);

	ASSERT_EQ(munmap(mem->area, mem_len(mem)), 0);
	EXPECT_EQ(unpoison_all(), 0);
	EXPECT_EQ(corrupted_kb(), self->corrupted);
}

/*
 * Assert that the same page is lost whether memory is swapped out before or
 * after.
 */
TEST_F(page_granule_poison, swapped)
{
	unsigned long lost = self->lost;
	struct mem *mem = &self->mem;
	__u64 entry;

	if (!granule_have_swap(NULL))
		SKIP(return, GRANULE_SWAP_REMEDY);
	if (variant->by_pfn) {
		ASSERT_EQ(poison(mem, lost, true), 0);
	} else {
		ASSERT_TRUE(mem_write_out(mem));
		ASSERT_EQ(poison_unit(mem), 0);
		/*
		 * The PFN is where slots are, above five bits for the device.
		 */
		entry = pagemap_get_entry(mem->pagemap, page_at(mem->area, lost));
		ASSERT_TRUE(entry & PM_SWAP);
		will_poison(PAGEMAP_PFN(entry) >> 5);
		EXPECT_EQ(granule_present_pages(mem->pagemap, mem_target(mem), GRANULE_SIZE),
			  GRANULE_NR_PAGES - 1);
	}
	EXPECT_POISONED(mem, lost);
	EXPECT_TRUE(mem_write_out(mem));
	mem_write_but(mem, lost, lost + 1, 3);
	EXPECT_POISONED(mem, lost);

	ASSERT_EQ(munmap(mem->area, mem_len(mem)), 0);
	EXPECT_EQ(unpoison_all(), 0);
	EXPECT_EQ(corrupted_kb(), self->corrupted);
}

FIXTURE(page_granule_poison_soft)
{
	struct mem mem;
};

FIXTURE_VARIANT(page_granule_poison_soft)
{
	enum granule_kind kind;
};

FIXTURE_VARIANT_ADD(page_granule_poison_soft, contract)
{
	.kind = GRANULE_CONTRACT,
};

FIXTURE_VARIANT_ADD(page_granule_poison_soft, default_tagged)
{
	.kind = GRANULE_DEFAULT,
};

FIXTURE_SETUP(page_granule_poison_soft)
{
	ASSERT_TRUE(granule_catch_faults());
	ASSERT_TRUE(mem_create_nr(&self->mem, variant->kind, FEW_GRANULES));
}

FIXTURE_TEARDOWN(page_granule_poison_soft)
{
	EXPECT_TRUE(granule_invariants_hold());
	if (self->mem.area)
		munmap(self->mem.area, mem_len(&self->mem));
	unpoison_all();
}

/*
 * Assert that the kernel replaces a page that goes bad, and can repair its
 * granule.
 */
TEST_F(page_granule_poison_soft, soft_offline)
{
	unsigned long pfns[FEW_PAGES], corrupted = corrupted_kb(), i, moved = 0;
	struct mem *mem = &self->mem;
	unsigned long split;

	if (access(HWPOISON_DEBUGFS "unpoison-pfn", W_OK))
		SKIP(return, HWPOISON_REMEDY);
	mem_fill(mem, 1);
	for (i = 0; i < FEW_PAGES; i++)
		pfns[i] = pagemap_get_pfn(mem->pagemap, page_at(mem->area, i));
	split = granule_vmstat("granule_split");
	will_poison(pfns[mem->first]);
	ASSERT_EQ(madvise(mem_unit(mem), mem_unit_len(mem), MADV_SOFT_OFFLINE), 0);
	EXPECT_EQ(granule_vmstat("granule_split") - split, 1);
	EXPECT_EQ(corrupted_kb() - corrupted, BASE_SIZE / 1024);

	EXPECT_EQ(mem_count(mem, PM_PRESENT), FEW_PAGES);
	EXPECT_LOST(mem, 0, 0);
	for (i = 0; i < FEW_PAGES; i++)
		moved += pagemap_get_pfn(mem->pagemap, page_at(mem->area, i)) != pfns[i];
	EXPECT_EQ(moved, 1);
	mem_write_pages(mem, 2);
	EXPECT_TRUE(mem_holds(mem));
	EXPECT_REPAIRED(mem);
	EXPECT_EQ(unpoison_all(), 0);
	EXPECT_EQ(corrupted_kb(), corrupted);
}

int main(int argc, char **argv)
{
	granule_require();
	granule_save_settings();
	create_poisoned();
	return test_harness_run(argc, argv);
}
