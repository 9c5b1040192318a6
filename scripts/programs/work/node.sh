# shellcheck shell=bash
# What its other threads do is not the same each time, so the main one collects and compiles.
exec node --hash-seed=1 --random-seed=1 --single-threaded-gc --no-concurrent-recompilation \
	/programs/work/node.js
