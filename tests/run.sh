#!/bin/bash
# Everything that `make test` runs, with one line each and a sum at the end.
# RUN=text runs only what has that text in its name. Nothing runs for ever: each
# has its limit, far above what it takes, and is stopped and failed then.
set -u
cd "$(dirname "$0")/.."
out=build/test-output
mkdir -p $out
passed=0 failed=0
want() { [[ -z "${RUN:-}" || "$1" == *"$RUN"* ]]; }
BUILD_LIMIT=1800 UNIT_LIMIT=600 REAL_LIMIT=400 FUZZ_LIMIT=1800 E2E_LIMIT=1800
# What takes seeds may be given many.
SIM_LIMIT=$((3600 + 10 * ${SIM_SEEDS:-300})) LABS_LIMIT=$((3600 + 10 * ${LAB_SEEDS:-300}))

# Whoever stops us stops what we run; each cleans up after itself.
stop() {
    local running
    running=$(jobs -pr)
    # shellcheck disable=SC2086 # one word each
    [ -z "$running" ] || kill $running 2>/dev/null
    wait
    exit 1
}
trap stop INT TERM HUP

# run NAME LIMIT COMMAND...: leaves its output, exit status and seconds in $out.
# It may take LIMIT seconds, and then one minute to clean up.
run() {
    local log=$out/${1//\//-}.log limit=$2 start=$SECONDS rc
    shift 2
    trap stop INT TERM HUP # a subshell forgets it
    timeout -k 60 "$limit" "$@" >"$log" 2>&1 </dev/null &
    wait $!
    rc=$?
    if [ $rc -eq 124 ] || [ $rc -eq 137 ]; then
        echo "stopped: it had not ended after $limit s: $*" >>"$log"
    fi
    echo "$rc $((SECONDS - start))" >"$log.rc"
}

# Counts what the output says; a command that fails without saying how many
# failed counts as one.
report() {
    local name=$1 log=$out/${1//\//-}.log p f rc seconds
    read -r rc seconds <"$log.rc"
    p=$(sed -nE 's/^\[  PASSED  \] ([0-9]+) test.*/\1/p; s/^([0-9]+) passed, [0-9]+ failed$/\1/p' "$log" | awk '{n += $1} END {print n + 0}')
    f=$(sed -nE 's/^\[  FAILED  \] ([0-9]+) test.*/\1/p; s/^[0-9]+ passed, ([0-9]+) failed$/\1/p' "$log" | awk '{n += $1} END {print n + 0}')
    if [ "$rc" -ne 0 ] && [ "$f" -eq 0 ]; then f=1; fi
    if [ "$rc" -eq 0 ] && [ "$p" -eq 0 ] && [ "$f" -eq 0 ]; then p=1; fi
    passed=$((passed + p)) failed=$((failed + f))
    if [ "$rc" -eq 0 ] && [ "$f" -eq 0 ]; then
        printf 'ok    %-28s %4d passed  %3d s\n' "$name" "$p" "$seconds"
    else
        printf 'FAIL  %-28s %4d passed, %d failed, exit %d; %s ends:\n' \
            "$name" "$p" "$f" "$rc" "$log"
        tail -25 "$log" | sed 's/^/    /'
    fi
}

# suite NAME LIMIT COMMAND...: alone. begin NAME LIMIT COMMAND...: beside another one; what
# was begun is reported by finish.
suite() { run "$@"; report "$1"; }
begun=()
begin() {
    while [ "$(jobs -pr | wc -l)" -ge 2 ]; do wait -n; done
    run "$@" &
    begun+=("$1")
}
finish() {
    wait
    local name
    for name in "${begun[@]}"; do report "$name"; done
    begun=()
}

want lint && suite lint $BUILD_LIMIT make -s lint

for mode in release asan tsan; do
    tests=()
    for source in tests/unit/test_*.c; do
        t=$(basename "$source" .c)
        if want "$mode/$t"; then tests+=("$t"); fi
    done
    [ ${#tests[@]} -gt 0 ] || continue
    targets=("${tests[@]/#/build/$mode/unit/}")
    suite "build/$mode" $BUILD_LIMIT make -s -j2 MODE=$mode "${targets[@]}"
    for t in "${tests[@]}"; do
        [ -x "build/$mode/unit/$t" ] && begin "$mode/$t" $UNIT_LIMIT build/$mode/unit/"$t"
    done
    finish
done

if want sim; then
    suite build/simulate $BUILD_LIMIT make -s -j2 build/release/simulate
    suite build/asan/simulate $BUILD_LIMIT make -s -j2 MODE=asan build/asan/simulate
    begin sim $SIM_LIMIT build/release/simulate --seeds "${SIM_SEEDS:-300}"
    begin sim/asan $SIM_LIMIT build/asan/simulate --seeds 15
    finish
fi

# The labs' rows answer to their own names too: RUN=2B, RUN=R12,
# RUN=TestBackup2B.
which=${RUN:-}
[[ $which =~ ^([2345][ABCD]|[RKCSL][0-9]+|Test.*)$ ]] || which=
if want labs || [ -n "$which" ]; then
    suite build/labs $BUILD_LIMIT make -s -j2 build/release/labs
    suite build/asan/labs $BUILD_LIMIT make -s -j2 MODE=asan build/asan/labs
    [ -z "$which" ] && parts=$(build/release/labs --parts)
    for part in ${which:-$parts}; do
        begin "labs/$part" $LABS_LIMIT build/release/labs --seeds "${LAB_SEEDS:-300}" "$part"
    done
    # shellcheck disable=SC2086 # one word, or none
    begin labs/asan $LABS_LIMIT build/asan/labs --seeds 10 $which
    finish
fi

# A few of the rows on processes, so that they do not rot: make test-real has all.
if want real; then
    suite build/real $BUILD_LIMIT make -s -j2 build/release/labs_real build/release/labs_node
    suite real $REAL_LIMIT build/release/labs_real --seed 1 R1 R4 R14 S1
fi

if want fuzz; then
    suite build/fuzz $BUILD_LIMIT make -s -j2 MODE=fuzz build/fuzz/fuzz
    suite fuzz $FUZZ_LIMIT tests/fuzz/run.sh quick
fi

if want e2e; then
    suite build/program $BUILD_LIMIT make -s -j2 all
    suite e2e $E2E_LIMIT tests/e2e/run.sh
fi

echo "$passed passed, $failed failed"
# A name with a slip in it must not pass for a test that holds.
if [ $((passed + failed)) -eq 0 ]; then
    echo "make test: nothing has '${RUN:-}' in its name: tests/README.md says what there is" >&2
    exit 1
fi
[ $failed -eq 0 ]
