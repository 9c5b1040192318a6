# The verbs of this repository; "make help" lists them. Each is a script in
# scripts/, which also says what its options are.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-builtin-rules --no-print-directory
.ONESHELL:

ifneq ($(ARCH),)
ifeq ($(filter $(ARCH),x86_64 arm64),)
$(error ARCH=$(ARCH) is not supported; use ARCH=x86_64 or ARCH=arm64)
endif
endif
# No ARCH means both for tests, and the host's for the rest.
HOST := $(patsubst aarch64,arm64,$(shell uname -m))
ARCHES := $(or $(ARCH),x86_64 arm64)
ONE := $(or $(ARCH),$(HOST))

.PHONY: demo help check deps tree export apply sync lint kernel boot kunit \
	kselftest mm-compare stress soak crash vma-test bench programs text tlb parts bisect clean work

demo: work ## boot a patched kernel and show 64 KiB runs, measured
	@scripts/demo $(ONE)

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12
	@echo "ARCH=x86_64|arm64 selects; without it demo, kernel and boot take $(HOST), all others both"

check: ## sync, lint, vma-test, tlb models; per ARCH kernel, boot, kunit, kselftests, some programs and tlb
	@scripts/check $(ARCHES)

deps: ## install the Debian packages needed, or list what is missing
	@scripts/deps

tree: deps ## build/linux: the base, then one commit a patch (KSRC=DIR: base from there)
	@scripts/tree

# What is being worked on in build/linux may be built and tested as it is.
work: deps
	@scripts/tree --work-in-progress

export: ## write build/linux back to patches/ and the overlay
	@scripts/export

apply: ## apply the series to the kernel tree LINUX=DIR, all or nothing
	@scripts/apply "$(LINUX)"

sync: ## check that patches/ and the overlay agree
	@scripts/sync

lint: work ## checkpatch, sparse, W=1, kernel-doc, shellcheck, codespell
	@scripts/lint/run $(ARCHES)

kernel: work ## build build/obj-ARCH with all checks on
	@scripts/kernel $(ONE)

boot: kernel ## a root shell in the kernel built, which says what to try there
	@scripts/boot $(ONE)

kunit: work ## run the KUnit suites in the guest
	@for a in $(ARCHES); do scripts/kernel $$a; scripts/kunit $$a; done

kselftest: work ## run the kselftests of category page_granule in the guest
	@for a in $(ARCHES); do scripts/kernel $$a; scripts/kselftest $$a; done

mm-compare: work ## the base's mm selftests, unpatched against patched (an hour)
	@for a in $(ARCHES); do scripts/kernel $$a; scripts/mm-compare/run $$a; done

stress: work ## all at once for 10 minutes, with KASAN and lockdep (builds for 20)
	@for a in $(ARCHES); do scripts/stress $$a; done

soak: work ## 200,000 random calls, and 10 minutes of them, on each file system (an hour an ARCH)
	@for a in $(ARCHES); do scripts/kernel $$a; scripts/soak $$a; done

crash: work ## let a guest die that writes to mapped files, and look after the next boot (5 min an ARCH)
	@for a in $(ARCHES); do scripts/crash $$a; done

bench: work ## measure all stages, and costs for others: Documentation/measured.md
	@scripts/bench/run $(ARCHES)

programs: work ## Debian's programs in 4K, mTHP, granules: measured.md; an ARCH takes 15 to 50 min, 0.6 GB (QUICK=1: three)
	@scripts/programs/run $(if $(QUICK),--quick) $(ARCHES)

text: work ## how much of the text of five programs is in whole granules: measured.md (10 min an ARCH)
	@for a in $(ARCHES); do scripts/programs/text $$a; done

tlb: work ## model TLB misses from recorded accesses: measured.md; an ARCH takes 30 min (QUICK=1: minutes)
	@scripts/tlb/tlb $(if $(QUICK),--quick) $(ARCHES)
	$(if $(QUICK),,scripts/measured)

vma-test: work ## run tools/testing/vma on the host
	@scripts/vma-test

parts: work ## out/parts: each part as it is posted; build and test the end of each (two hours)
	@scripts/parts $(ARCHES)

bisect: tree ## build every commit, and the last with the feature off
	@scripts/bisect $(ARCHES)

clean: ## remove build/ except build/linux, and out/ with all results
	@[ ! -d build ] || find build -mindepth 1 -maxdepth 1 ! -name linux -exec rm -rf {} +
	@rm -rf out
