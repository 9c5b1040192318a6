# shellcheck shell=bash
# Fill a server, have it write a dump while clients write, and start it from the dump.
set -eu
socket=/tmp/redis.sock
dir=/tmp/redis

start()
{
	redis-server --port 0 --unixsocket $socket --dir $dir --save '' --logfile log \
		--enable-debug-command yes --daemonize no &
	server=$!
	until cli ping 2>/dev/null | grep -q PONG; do
		kill -0 $server
		sleep 0.02
	done
}

cli()
{
	redis-cli -s $socket "$@"
}

stop()
{
	cli shutdown nosave
	wait $server
}

trap 'kill $server 2>/dev/null || :' EXIT
rm -rf $dir
mkdir $dir
start
head -n 210000 /inputs/redis-load | cli --pipe | tail -n 1
cli bgsave
cli --pipe </inputs/redis-change | tail -n 1
while cli info persistence | grep -q rdb_bgsave_in_progress:1; do
	sleep 0.02
done
cli info persistence | grep rdb_last_bgsave_status:ok
cli debug digest
redis-benchmark -s $socket -t set,get,lpush -n 1000 -c 10 -d 100 -P 4 -q >/dev/null
cli dbsize
stop
start
cli dbsize
stop
