# shellcheck shell=bash
# Sourced by the scripts here: names of places, of architectures, and die().

# What make was told for the verbs is not meant for the kernel's Makefiles, some
# of which need the built-in rules.
unset MAKEFLAGS MFLAGS

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# Every script reads where the tree and the caches are from here.
# shellcheck disable=SC2034
{
	linux=$top/build/linux
	cache=${XDG_CACHE_HOME:-$HOME/.cache}/page-granule
}

die()
{
	echo "${0##*/}: $*" >&2
	exit 1
}

# Fail unless there is a tree: git would take the repository around it.
need_tree()
{
	[ -e "$linux/.git" ] || die "no build/linux; run \"make tree\""
}

note()
{
	echo "== $*"
}

# Set what differs between the two architectures, for $1 or fail.
arch_setup()
{
	case $1 in
	x86_64)
		karch=x86 deb_arch=amd64
		gnu=x86_64-linux-gnu
		image=arch/x86/boot/bzImage ;;
	arm64)
		karch=arm64 deb_arch=arm64
		gnu=aarch64-linux-gnu
		image=arch/arm64/boot/Image ;;
	*)
		die "ARCH=$1 is not supported; use ARCH=x86_64 or ARCH=arm64" ;;
	esac
	arch=$1
	# A compiler that runs on the target is the plain one.
	cross=$gnu-
	if [ "$1" = "$(host_arch)" ]; then
		cross=
	fi
	export karch deb_arch gnu image arch cross
}

host_arch()
{
	case $(uname -m) in
	x86_64) echo x86_64 ;;
	aarch64) echo arm64 ;;
	*) die "host $(uname -m) is not supported; use an x86_64 or arm64 machine" ;;
	esac
}

# make of the kernel in $1 with objects in $2. Objects must not depend on who
# builds where and when, or ccache never hits; its depend mode spares a cold
# build the extra preprocessing.
kernel_make()
{
	local src=$1 obj=$2
	shift 2
	CCACHE_BASEDIR=$top/build CCACHE_NOHASHDIR=1 CCACHE_DEPEND=1 \
	KBUILD_BUILD_TIMESTAMP=1970-01-01 KBUILD_BUILD_VERSION=1 \
	KBUILD_BUILD_USER=page KBUILD_BUILD_HOST=granule \
	make -C "$src" "O=$obj" "ARCH=$karch" "CROSS_COMPILE=$cross" \
		"CC=ccache ${cross}gcc" "HOSTCC=ccache gcc" LOCALVERSION= \
		"-j$(nproc)" "$@"
}

# A work tree of commit $2 of build/linux, at $1.
worktree()
{
	if [ ! -e "$1/.git" ]; then
		rm -rf "$1"
		stable_git -C "$linux" worktree prune
		stable_git -C "$linux" worktree add -q -f --detach "$1" "$2"
	else
		stable_git -C "$1" checkout -q -f --detach "$2"
	fi
}

# Nothing of the series: "make bench", "make programs" and "make tlb" write it into
# Documentation, where else all is the series'.
# shellcheck disable=SC2034
measured_files=(Documentation/measured.md
	Documentation/{bench,programs,tlb}-{x86_64,arm64}.svg)

# Which commit of this repository the series is of, and whether it is just that: neither
# patches/ nor build/linux has been worked on since.
series_commit()
{
	local commit head='' hash=''
	commit=$(git -C "$top" log -1 --abbrev=12 --format=%h -- patches 2>/dev/null)
	[ ! -f "$linux/.git/page-granule-series" ] ||
		read -r head hash <"$linux/.git/page-granule-series"
	if [ -n "$(git -C "$top" status --porcelain -- patches)$(git -C "$linux" status \
		--porcelain -uno)" ] || [ "$hash" != "$(series_hash)" ] ||
		[ "$head" != "$(git -C "$linux" rev-parse HEAD)" ]; then
		commit+=", and what is not committed"
	fi
	echo "${commit:-no commit}"
}

# The version of the QEMU that boots kernels for $1.
qemu_version()
{
	local cpu=x86_64
	[ "$1" = x86_64 ] || cpu=aarch64
	"qemu-system-$cpu" --version | sed -n 's/^QEMU emulator version \([^ ]*\).*/\1/p'
}

# The kernel's log of $1 (a make log) where it went wrong.
show_errors()
{
	grep -nE 'error:|warning:|Error [0-9]|undefined reference|No rule|No space left' \
		"$1" | head -n 20 >&2 || tail -n 5 "$1" >&2
}

# git that gives the same bytes on every machine: no configuration of the user
# or the system, object names abbreviated to a fixed length.
stable_git()
{
	GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_NOSYSTEM=1 git -c core.abbrev=12 \
		-c core.hooksPath=/dev/null -c gc.auto=0 -c advice.detachedHead=false "$@"
}

# The commit of the kernel tree $1 that the series starts from.
series_base()
{
	git -C "$1" rev-parse -q --verify 'base^{commit}' ||
		git -C "$1" rev-list --max-parents=0 HEAD
}

# Remember in the kernel tree $1 that its HEAD is what patches/ hold, and ask.
series_record()
{
	echo "$(git -C "$1" rev-parse HEAD) $(series_hash)" >"$1/.git/page-granule-series"
}

series_hash()
{
	find "$top/patches" -name '[0-9]*.patch' ! -name '0000-*' -print0 | sort -z |
		xargs -0 cat | sha256sum | cut -d ' ' -f 1
}

# The version the series is for, "7.3", from patches/BASE.
base_version()
{
	local v
	v=$(cat "$top/patches/BASE") || die "no patches/BASE"
	echo "${v#v}"
}

# Fail unless the kernel Makefile on stdin is of the version the series is for;
# $1 says whose it is.
check_version()
{
	local got want
	want=$(base_version)
	got=$(awk '$1 == "VERSION" { v = $3 } $1 == "PATCHLEVEL" { p = $3 }
		$1 == "EXTRAVERSION" { e = $3 } END { print v "." p e }')
	[ "$got" = "$want" ] ||
		die "$1 is Linux ${got#.}; the series is for $want, as Debian's linux-source-$want has it"
}
