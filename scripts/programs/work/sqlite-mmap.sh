# shellcheck shell=bash
# Transactions on a database that is read by a mapping, and written by write(2): each is on the
# disk when it ends.
set -eu
{
	echo "PRAGMA mmap_size = 268435456; PRAGMA synchronous = full;"
	for ((i = 0; i < 200; i++)); do
		k=$((i * 104729 % 100000))
		echo "UPDATE t SET v = 'new ' || x'41' || $i WHERE id BETWEEN $k AND $((k + 3));"
		echo "SELECT sum(length(v)) FROM t WHERE id BETWEEN $((k / 2)) AND $((k / 2 + 400));"
	done
	echo "PRAGMA integrity_check; SELECT count(*), sum(length(v)), sum(k) FROM t;"
} >/tmp/mmap.sql
sqlite3 -bail /tmp/data/mmap.db </tmp/mmap.sql
rm /tmp/data/mmap.db /tmp/mmap.sql
