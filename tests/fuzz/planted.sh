#!/bin/bash
# Puts each bug of tests/fuzz/planted/*.patch into a copy of the tree and lets
# its target (the line `Target: NAME`) look for it, from the kept corpus on, for
# at most FUZZ_SECONDS (120). Prints how long that took. Exit status 1 when a
# bug was not found.
#   planted.sh [NAME...]     only these
set -u
cd "$(dirname "$0")/../.." || exit 2
copy=$(mktemp -d /tmp/fuzz-planted.XXXXXX)
trap 'rm -rf "$copy"' EXIT
names=${*:-$(basename -s .patch -a tests/fuzz/planted/*.patch)}
make -s -j2 MODE=fuzz build/fuzz/fuzz || exit 2
found=0 missed=0
for name in $names; do
    patch=$PWD/tests/fuzz/planted/$name.patch
    target=$(sed -n 's/^Target: //p;/^---/q' "$patch")
    rm -rf "$copy/tree"
    mkdir -p "$copy/tree/build/fuzz"
    git ls-files -z --cached --others --exclude-standard |
        xargs -0 cp -a --parents -t "$copy/tree"
    for dir in base raft transport rsm shardctrler shardkv fs mount cmd tests; do
        cp -a build/fuzz/$dir "$copy/tree/build/fuzz"
    done
    if ! patch -d "$copy/tree" -p1 -s --no-backup-if-mismatch <"$patch"; then
        echo "$name: the patch no longer applies"
        missed=$((missed + 1))
        continue
    fi
    make -s -j2 -C "$copy/tree" MODE=fuzz build/fuzz/fuzz || exit 2
    start=$(date +%s%N)
    "$copy/tree/tests/fuzz/run.sh" "${FUZZ_SECONDS:-120}" "$target" \
        >"$copy/out" 2>&1
    rc=$?
    ms=$((($(date +%s%N) - start) / 1000000))
    if [ $rc -ne 0 ]; then
        found=$((found + 1))
        echo "$name: found by $target in $((ms / 1000)).$((ms % 1000 / 100)) s:" \
            "$(grep -aoE 'invariant broken.*|AddressSanitizer: [a-z-]+|out-of-memory.*|runtime error.*' "$copy/out" | head -1 | cut -c1-120)"
    else
        missed=$((missed + 1))
        echo "$name: NOT FOUND by $target in $((ms / 1000)) s"
    fi
done
echo "$found passed, $missed failed"
[ $missed -eq 0 ]
