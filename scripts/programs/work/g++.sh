# shellcheck shell=bash
# The compiler proper, of a file that has more templates than lines.
set -eu
g++ -std=c++17 -O0 -frandom-seed=1 -S -o /tmp/out.s /programs/work/g++.cpp
sha256sum </tmp/out.s
rm /tmp/out.s
