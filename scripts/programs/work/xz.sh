# shellcheck shell=bash
# Two threads compress, and two decompress.
set -euo pipefail
head -c 1M /inputs/text | xz -T2 -2 --block-size=256KiB >/tmp/text.xz
sha256sum </tmp/text.xz
xz -dc -T2 /tmp/text.xz | sha256sum
rm /tmp/text.xz
