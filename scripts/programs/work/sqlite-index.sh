# shellcheck shell=bash
# Lookups by an index of a database in a file, with a cache that holds all of it.
set -eu
sqlite3 -bail /tmp/index.db <<'SQL'
PRAGMA cache_size = -65536;
WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 50000)
	SELECT count(*), sum(length(v)), sum(t.id)
	FROM c JOIN t ON t.k = ((c.x * 104729) % 100000 * 7919) % 1000003;
SQL
