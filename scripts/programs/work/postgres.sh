# shellcheck shell=bash
# A server with shared memory and a process a client: pgbench, an index, and a join.
set -eu
: "${data:=/tmp/pg}" "${fsync:=off}"
bin=$(echo /usr/lib/postgresql/*/bin)
user="setpriv --reuid=postgres --regid=postgres --clear-groups"
cd /tmp

client()
{
	local program=$1
	shift
	$user "$bin/$program" -h /tmp "$@" postgres
}

# What pgbench says has times in it.
bench()
{
	client pgbench "$@" >/tmp/pgbench.log 2>&1 || {
		cat /tmp/pgbench.log
		exit 1
	}
}

$user "$bin/postgres" -D "$data" -c listen_addresses= -c unix_socket_directories=/tmp \
	-c "fsync=$fsync" -c shared_buffers=64MB -c autovacuum=off -c jit=off 2>/tmp/pg.log &
server=$!
trap 'kill -QUIT $server 2>/dev/null || :' EXIT
# Clients that try until it works would be more or fewer each time.
sleep 1
until grep -q ready "$data/postmaster.pid"; do
	kill -0 $server
	sleep 1
done
bench -i -q -s 1
bench -n -c 4 -t 25 --random-seed=42
bench -n -c 4 -t 50 -S --random-seed=42
client psql -At -v ON_ERROR_STOP=1 <<'SQL'
select sum(abalance), count(*) from pgbench_accounts;
select sum(tbalance) from pgbench_tellers;
select count(*), sum(delta) from pgbench_history;
create index on pgbench_accounts(abalance);
set work_mem = 64000;
select count(*) from (select a.aid, b.aid from pgbench_accounts a
	join pgbench_accounts b on a.aid = b.aid order by 1 desc) x;
SQL
# Once the last client has gone: it would log an error if it had to disconnect one.
kill -TERM $server
wait $server
if grep -E 'ERROR|FATAL|PANIC' /tmp/pg.log | grep -v 'starting up'; then
	exit 1
fi
rm -rf "$data"
