#!/bin/bash
# tests/fuzz/seeds.sh [TARGET...]: makes the corpus anew: each target's seeds,
# what was found in build/fuzz/corpus, and the regressions, merged to the few
# that reach all the code that all of them reach.
set -eu
cd "$(dirname "$0")/../.."
program=build/fuzz/fuzz
for target in ${*:-$(FUZZ_TARGET= $program 2>/dev/null)}; do
    kept=tests/fuzz/corpus/$target
    work=$(mktemp -d /tmp/fuzz-seeds.XXXXXX)
    mkdir -p "$kept" "build/fuzz/corpus/$target" "$work/all" "$work/small"
    FUZZ_TARGET=$target FUZZ_SEEDS=$work/all $program >/dev/null 2>&1
    FUZZ_TARGET=$target $program -merge=1 -max_len=16384 "$work/small" \
        "$work/all" "$kept" build/fuzz/corpus/"$target" >/dev/null 2>&1
    find "$kept" -type f ! -name 'bug-*' -delete
    # The smallest thirty: a seed reaches far with few bytes.
    for file in $(ls -Sr "$work/small" | head -"${CORPUS_MAX:-30}"); do
        cp "$work/small/$file" "$kept/${file:0:12}"
    done
    cp "$work"/all/seed-* "$kept"
    rm -rf "$work"
    echo "$target: $(find "$kept" -type f | wc -l) files"
done
