# shellcheck shell=bash
# A database in the heap: filled, indexed, joined, half deleted, and compacted.
set -eu
sqlite3 -bail :memory: <<'SQL'
PRAGMA journal_mode = off;
CREATE TABLE t(id INTEGER PRIMARY KEY, k INTEGER, v TEXT);
WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 40000)
	INSERT INTO t SELECT x, (x * 7919) % 1000003,
		'val' || x || hex((x * 2654435761) % 4294967296) FROM c;
CREATE INDEX i ON t(k);
WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 20000)
	SELECT count(*), sum(length(v)), sum(t.id) FROM c JOIN t ON t.k = (c.x * 104729) % 1000003;
DELETE FROM t WHERE id % 3 = 0;
VACUUM;
SELECT count(*), sum(k), sum(length(v)), max(v) FROM t;
PRAGMA integrity_check;
SQL
