# shellcheck shell=bash
# Pack all objects of a repository, and read them again.
set -euo pipefail
export GIT_DIR=/tmp/repo.git GIT_CONFIG_NOSYSTEM=1 GIT_CONFIG_GLOBAL=/dev/null
git -c pack.threads=2 -c gc.reflogExpire=now gc -q
git rev-list --all --objects | sort | sha256sum
git fsck --full --no-progress
git count-objects -v | grep -E '^(count|in-pack|packs):'
git log --stat | sha256sum
