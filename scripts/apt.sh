# shellcheck shell=bash
# Sourced after lib.sh: Debian packages for a suite or an architecture that is
# not the machine's own, through an apt state of our own. The system's sources,
# lists and architectures are never touched; signatures are checked as ever.

# The Debian mirror this machine's own apt is set up with.
debian_mirror()
{
	local targets uri
	command -v apt-get >/dev/null ||
		die "this is not Debian (no apt-get); see \"make deps\" and KSRC=DIR"
	# shellcheck disable=SC2016 # apt's variables, not the shell's
	targets=$(apt-get indextargets --format '$(REPO_URI) $(SIGNED_BY) $(RELEASE) LABEL=$(LABEL)' \
		'Created-By: Packages' | grep -v -- -security || true)
	# The label is known once lists were fetched. Before that: what Debian's
	# keyring signs, or else the first archive there is.
	uri=$(awk '/LABEL=Debian$/ { print $1; exit }' <<<"$targets")
	[ -n "$uri" ] || uri=$(awk '/debian-archive/ { print $1; exit }' <<<"$targets")
	[ -n "$uri" ] || uri=$(awk '{ print $1; exit }' <<<"$targets")
	[ -n "$uri" ] || die "apt has no Debian mirror configured; add one to its sources"
	echo "$uri"
}

# apt_private DIR ARCH SUITE...: fetch the lists of those suites into DIR and
# leave APT_CONFIG set, so that apt-get and apt-cache speak of them. ARCH "src"
# is for source packages.
apt_private()
{
	local dir=$1 deb=$2 type=deb mirror suite keyring
	shift 2
	if [ "$deb" = src ]; then
		type="deb-src"
		deb=$(dpkg --print-architecture)
	fi
	keyring=/usr/share/keyrings/debian-archive-keyring.gpg
	[ -f "$keyring" ] || die "no $keyring; install debian-archive-keyring"
	mirror=$(debian_mirror)
	mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial"
	for suite; do
		echo "$type [arch=$deb signed-by=$keyring] $mirror $suite main"
	done >"$dir/sources.list"
	cat >"$dir/apt.conf" <<-CONF
	Dir::Etc::SourceList "$dir/sources.list";
	Dir::Etc::SourceParts "/dev/null";
	Dir::State::Lists "$dir/lists";
	Dir::State::status "/dev/null";
	Dir::Cache "$dir/cache";
	APT::Architecture "$deb";
	APT::Architectures { "$deb"; };
	APT::Sandbox::User "root";
	Acquire::Languages "none";
	Acquire::Retries "3";
	CONF
	export APT_CONFIG=$dir/apt.conf
	# One suite that is gone must not hide the others: what matters is
	# whether the package is found, which the caller checks.
	apt-get -q update >"$dir/update.log" 2>&1 || true
}

# The reason the last apt_private found nothing, in one line.
apt_private_error()
{
	grep -m 1 -E '^(E|W|Err)' "$1/update.log" || echo "the lists do not have it"
}
