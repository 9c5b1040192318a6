# shellcheck shell=bash
# The same on a disk, to which each transaction is written before it ends.
set -eu
export data=/tmp/data/pg fsync=on
. /programs/work/postgres.sh
