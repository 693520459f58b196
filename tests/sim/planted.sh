#!/bin/bash
# Puts each bug of tests/sim/planted/*.patch into a copy of the tree, builds the
# simulator and runs it until it finds the bug. Prints how many seeds that took.
#   planted.sh [NAME...]     only these
#   SEEDS=20000              give up after so many
# The first lines of a patch may say `Scenario: NAME`: only that one is run.
# Exit status 1 when a bug was not found.
set -u
cd "$(dirname "$0")/../.." || exit 2
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
names=("$@")
if [ ${#names[@]} -eq 0 ]; then
    for patch in tests/sim/planted/*.patch; do
        names+=("$(basename "$patch" .patch)")
    done
fi

# With the objects, so that a copy only builds what its patch touches.
make -s build/release/simulate || exit 2
found=0
missed=0
for name in "${names[@]}"; do
    patch=$PWD/tests/sim/planted/$name.patch
    scenario=$(sed -n 's/^Scenario: //p;/^---/q' "$patch")
    rm -rf "$copy"/tree
    mkdir "$copy"/tree
    cp -a Makefile base raft rsm shardctrler shardkv transport tests "$copy"/tree
    for more in fs mount cmd; do [ -d $more ] && cp -a $more "$copy"/tree; done
    mkdir -p "$copy"/tree/build
    cp -a build/release "$copy"/tree/build
    if ! patch -d "$copy"/tree -p1 -s --no-backup-if-mismatch < "$patch"; then
        echo "$name: the patch no longer applies"
        missed=$((missed + 1))
        continue
    fi
    make -s -C "$copy"/tree build/release/simulate || exit 2
    # A history that the checker could not decide tells nothing: on to the next.
    first=1 undecided=0
    while :; do
        "$copy"/tree/build/release/simulate --first $first \
            --seeds $((${SEEDS:-20000} - first + 1)) \
            ${scenario:+--scenario "$scenario"} > "$copy"/out 2>&1
        words=$(grep -aE '^seed .* FAILED|died of signal|invariant broken' "$copy"/out | head -1)
        [[ $words == *undecided* ]] || break
        undecided=$((undecided + 1))
        first=${words#seed }
        first=$((${first%% *} + 1))
    done
    [ $undecided = 0 ] || words=${words:+$words ($undecided undecided before)}
    if [ -n "$words" ]; then
        found=$((found + 1))
        echo "$name: found${scenario:+ (scenario $scenario)}: $words"
    else
        missed=$((missed + 1))
        echo "$name: NOT FOUND: $(tail -1 "$copy"/out)"
    fi
done
echo "$found found, $missed not found"
[ $missed -eq 0 ]
