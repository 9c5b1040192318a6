# shellcheck shell=bash
# Many short children of a small parent.
set -eu
i=0
while [ $i -lt 150 ]; do
	/usr/bin/true
	i=$((i + 1))
done
sum=0
for i in {1..50}; do
	x=$(printf %s "$i")
	sum=$((sum + x))
done
echo $sum
for i in {1..15}; do
	echo "$i" | cat | wc -c
done | sort -n | uniq -c
