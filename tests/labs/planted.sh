#!/bin/bash
# Puts each bug of tests/labs/planted/*.patch into a copy of the tree and runs the
# rows that its `Rows:` line names until they find it. Prints the table of
# tests/labs/README.md: row, bug, seeds until found, words.
# A seed counts only if it passes without the patch.
#   planted.sh [NAME...]     only these
#   SEEDS=1000               give up after so many; or after those of its `Seeds:` line
#   ROWS=2C                  these rows, whatever the patch says
#   REAL=1                   the rows of its `Real:` line, on processes: each seed
#                            (10 at most) is a run
# Exit status 1 when a row did not find its bug.
set -u
cd "$(dirname "$0")/../.." || exit 2
. tests/lib/planted.sh
names=("$@")
lines=Rows targets=build/release/labs
if [ -n "${REAL:-}" ]; then
    lines=Real targets="build/release/labs_real build/release/labs_node" SEEDS=${SEEDS:-10}
fi
if [ ${#names[@]} -eq 0 ]; then
    for patch in $(grep -l "^$lines: " tests/labs/planted/*.patch); do
        names+=("$(basename "$patch" .patch)")
    done
fi

# run_row DIR ROW FIRST LAST: until a seed fails, by the programs in DIR.
run_row() {
    if [ -z "${REAL:-}" ]; then
        timeout 300 "$1"/labs --stop --first "$3" --seeds $(($4 - $3 + 1)) "$2"
        return
    fi
    local seed
    for seed in $(seq "$3" "$4"); do
        "$1"/labs_real --seed "$seed" "$2" || break
    done
    # Of a row that failed.
    sed -nE 's/^    its directory is (.*)$/\1/p' "$copy"/out | while read -r dir; do
        rm -r "$(dirname "$dir")"
    done
}

# hunt ROW: $seed is the first that fails with the patch, and passes without.
hunt() {
    local first=1
    passed_over=''
    while [ "$first" -le "$seeds" ]; do
        { run_row "$copy"/tree/build/release "$1" "$first" "$seeds" >"$copy"/out 2>&1; } 2>/dev/null
        seed=$(sed -nE 's/^    seed ([0-9]+): .*/\1/p' "$copy"/out | head -1)
        [ -n "$seed" ] || return
        if run_row "$copy"/without "$1" "$seed" "$seed" >"$copy"/out.without 2>&1; then
            return
        fi
        passed_over+=" (not for it: seed $seed)"
        first=$((seed + 1)) seed=''
    done
}

# row_finds ROW: prints how many seeds that took, and what failed.
row_finds() {
    local words
    hunt "$1"
    words=$(grep -a '^    seed ' "$copy"/out | head -1)
    if [ -z "$seed" ]; then
        missed=$((missed + 1))
        echo "| $1 | $name | NOT FOUND in $seeds$passed_over | $(tail -1 "$copy"/out) |"
        return
    fi
    found=$((found + 1))
    if grep -aq 'died of signal' "$copy"/out; then
        words=": $(grep -a 'invariant broken' "$copy"/out | head -1)"
    fi
    echo "| $1 | $name | $seed$passed_over | ${words#*: } |"
}

# shellcheck disable=SC2086 # one or two words
make -s $targets || exit 2
mkdir "$copy"/without
# shellcheck disable=SC2086
cp $targets "$copy"/without
for name in "${names[@]}"; do
    patch=$PWD/tests/labs/planted/$name.patch
    rows=${ROWS:-$(sed -n "s/^$lines: //p;/^diff/q" "$patch")}
    seeds=${SEEDS:-$(sed -n 's/^Seeds: //p;/^diff/q' "$patch")}
    seeds=${seeds:-1000}
    planted_tree "$patch" || continue
    # shellcheck disable=SC2086
    make -s -C "$copy"/tree $targets WERROR= 2>"$copy"/warnings || exit 2
    for row in $rows; do
        row_finds "$row"
    done
done
planted_end
