#!/bin/bash
# Puts each bug of tests/unit/planted/*.patch into a copy of the tree and runs the
# unit test that its `Test:` line names, with fresh seeds, until it finds the
# bug. Prints what the test did until then.
#   planted.sh [NAME...]     only these
#   ROUNDS=20                give up after so many runs
# Exit status 1 when a bug was not found.
set -u
cd "$(dirname "$0")/../.." || exit 2
. tests/lib/planted.sh
names=("$@")
[ ${#names[@]} -gt 0 ] || mapfile -t names < <(planted_names tests/unit/planted)

for name in "${names[@]}"; do
    patch=$PWD/tests/unit/planted/$name.patch
    test=$(sed -n 's/^Test: //p;/^---/q' "$patch")
    make -s "build/release/unit/$test" || exit 2
    planted_tree "$patch" || continue
    make -s -C "$copy"/tree "build/release/unit/$test" WERROR= 2>"$copy"/warnings || exit 2
    words=
    for round in $(seq "${ROUNDS:-20}"); do
        SEED=$round timeout 300 "$copy/tree/build/release/unit/$test" >"$copy"/out 2>&1 && continue
        words=$(grep -aE '^[0-9]+ operations|error: Failure' "$copy"/out | tail -2 | tr '\n' ' ')
        break
    done
    if [ -n "$words" ]; then
        found=$((found + 1))
        echo "$name: found in run $round: $words"
    else
        missed=$((missed + 1))
        echo "$name: NOT FOUND in ${ROUNDS:-20} runs"
    fi
done
planted_end
