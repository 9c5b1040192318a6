# shellcheck shell=bash
# The same on a disk, to which each transaction is written before it ends.
set -eu
export data=/tmp/data/pg fsync=on
# shellcheck source-path=SCRIPTDIR source=postgres.sh
. /programs/work/postgres.sh
