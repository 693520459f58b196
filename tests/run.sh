#!/bin/bash
# Everything that `make test` runs, with one line each and a sum at the end.
# RUN=text runs only what has that text in its name.
set -u
cd "$(dirname "$0")/.."
out=build/test-output
mkdir -p $out
passed=0 failed=0
want() { [[ -z "${RUN:-}" || "$1" == *"$RUN"* ]]; }

# suite NAME COMMAND...: counts what the output says; a command that fails
# without saying how many failed counts as one.
suite() {
    local name=$1 log=$out/${1//\//-}.log start=$SECONDS p f rc
    shift
    "$@" >"$log" 2>&1 </dev/null
    rc=$?
    p=$(sed -nE 's/^\[  PASSED  \] ([0-9]+) test.*/\1/p; s/^([0-9]+) passed, [0-9]+ failed$/\1/p' "$log" | awk '{n += $1} END {print n + 0}')
    f=$(sed -nE 's/^\[  FAILED  \] ([0-9]+) test.*/\1/p; s/^[0-9]+ passed, ([0-9]+) failed$/\1/p' "$log" | awk '{n += $1} END {print n + 0}')
    if [ $rc -ne 0 ] && [ "$f" -eq 0 ]; then f=1; fi
    if [ $rc -eq 0 ] && [ "$p" -eq 0 ] && [ "$f" -eq 0 ]; then p=1; fi
    passed=$((passed + p)) failed=$((failed + f))
    if [ $rc -eq 0 ] && [ "$f" -eq 0 ]; then
        printf 'ok    %-28s %4d passed  %3d s\n' "$name" "$p" $((SECONDS - start))
    else
        printf 'FAIL  %-28s %4d passed, %d failed, exit %d; %s ends:\n' \
            "$name" "$p" "$f" $rc "$log"
        tail -25 "$log" | sed 's/^/    /'
    fi
}

want lint && suite lint make -s lint

for mode in release asan tsan; do
    tests=()
    for source in tests/unit/test_*.c; do
        t=$(basename "$source" .c)
        if want "$mode/$t"; then tests+=("$t"); fi
    done
    [ ${#tests[@]} -gt 0 ] || continue
    targets=("${tests[@]/#/build/$mode/unit/}")
    suite "build/$mode" make -s -j2 MODE=$mode "${targets[@]}"
    for t in "${tests[@]}"; do
        [ -x "build/$mode/unit/$t" ] && suite "$mode/$t" timeout 120 build/$mode/unit/"$t"
    done
done

if want sim; then
    suite build/simulate make -s -j2 build/release/simulate
    suite sim build/release/simulate --seeds "${SIM_SEEDS:-300}"
    make -s -j2 MODE=asan build/asan/simulate >$out/build-asan-simulate.log 2>&1
    suite sim/asan build/asan/simulate --seeds 15
fi

# The labs' rows answer to their own names too: RUN=2B, RUN=R12,
# RUN=TestBackup2B.
which=${RUN:-}
[[ $which =~ ^([2345][ABCD]|[RKCSL][0-9]+|Test.*)$ ]] || which=
if want labs || [ -n "$which" ]; then
    suite build/labs make -s -j2 build/release/labs
    [ -z "$which" ] && parts=$(build/release/labs --parts)
    for part in ${which:-$parts}; do
        suite "labs/$part" build/release/labs --seeds "${LAB_SEEDS:-300}" "$part"
    done
    suite build/asan/labs make -s -j2 MODE=asan build/asan/labs
    # shellcheck disable=SC2086 # one word, or none
    suite labs/asan build/asan/labs --seeds 10 $which
fi

if want fuzz; then
    suite build/fuzz make -s -j2 MODE=fuzz build/fuzz/fuzz
    suite fuzz tests/fuzz/run.sh quick
fi

if want e2e; then
    suite build/program make -s -j2 all
    suite e2e timeout 600 tests/e2e/run.sh
fi

echo "$passed passed, $failed failed"
[ $failed -eq 0 ]
