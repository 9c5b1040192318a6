# shellcheck shell=bash
# A program in Go: its heap, and the pipe that fills it.
set -euo pipefail
seq 1 100000 | sed 's/$/-abc-xyz/' | fzf --filter '91 xyz' | sha256sum
