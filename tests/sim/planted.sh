#!/bin/bash
# Puts each bug of tests/sim/planted/*.patch into a copy of the tree, builds the
# simulator and runs it until it finds the bug. Prints how many seeds that took.
# A seed counts only if it passes without the patch.
#   planted.sh [NAME...]     only these
#   SEEDS=20000              give up after so many
# The first lines of a patch may say `Scenario: NAME`: only that one is run.
# Exit status 1 when a bug was not found.
set -u
cd "$(dirname "$0")/../.." || exit 2
. tests/lib/planted.sh
names=("$@")
[ ${#names[@]} -gt 0 ] || mapfile -t names < <(planted_names tests/sim/planted)

make -s build/release/simulate || exit 2
cp build/release/simulate "$copy" # without any
seeds=${SEEDS:-20000}
# run PROGRAM FIRST COUNT: of the patch's scenario.
run() {
    "$1" --first "$2" --seeds "$3" ${scenario:+--scenario "$scenario"}
}
# The next seed that fails, from $1 on: $seed and $words; neither when none does.
next_failure() {
    run "$copy"/tree/build/release/simulate "$1" $((seeds - $1 + 1)) >"$copy"/out 2>&1
    words=$(grep -aE '^seed .* FAILED|died of signal|invariant broken' "$copy"/out | head -1)
    seed=$(sed -nE 's/^seed ([0-9]+) FAILED.*/\1/p;s/^simulate: seed ([0-9]+): .*/\1/p' \
        "$copy"/out | head -1)
}
# A history that the checker could not decide tells nothing, and a seed that
# fails without the patch, too, shows another bug: on to the next.
hunt() {
    local first=1
    passed_over=''
    while [ "$first" -le "$seeds" ]; do
        next_failure "$first"
        [ -n "$words" ] || return
        if [[ $words != *undecided* ]] && run "$copy"/simulate "$seed" 1 >"$copy"/without 2>&1; then
            return
        fi
        passed_over+=" (not for it: seed $seed)"
        words=
        first=$((seed + 1))
    done
}
for name in "${names[@]}"; do
    patch=$PWD/tests/sim/planted/$name.patch
    scenario=$(sed -n 's/^Scenario: //p;/^---/q' "$patch")
    planted_tree "$patch" || continue
    make -s -C "$copy"/tree build/release/simulate || exit 2
    hunt
    if [ -n "$words" ]; then
        found=$((found + 1))
        echo "$name: found${scenario:+ (scenario $scenario)}: seed $seed: ${words#*: }$passed_over"
    else
        missed=$((missed + 1))
        echo "$name: NOT FOUND in $seeds seeds$passed_over"
    fi
done
planted_end
