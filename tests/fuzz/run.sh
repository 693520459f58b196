#!/bin/bash
# tests/fuzz/run.sh SECONDS [TARGET...]: replays each target's corpus, then lets
# libFuzzer look for more for SECONDS ("quick": 1000 inputs). A crash, a leak, an
# input that takes over 10 s, or more memory than the limit fails the target.
set -u
cd "$(dirname "$0")/../.."
seconds=$1
shift
program=build/fuzz/fuzz
targets=${*:-$(FUZZ_TARGET= $program 2>/dev/null)}
mkdir -p build/fuzz/crashes
passed=0 failed=0
export ASAN_OPTIONS=detect_leaks=1:allocator_may_return_null=0
export UBSAN_OPTIONS=print_stacktrace=1
limits="-rss_limit_mb=1024 -malloc_limit_mb=64 -timeout=10 -max_len=16384"

try() { # try TARGET WHAT ARGUMENTS...
    local name=$1 what=$2 log=build/fuzz/$1.log start=$SECONDS
    shift 2
    if FUZZ_TARGET=$name $program $limits -verbosity=1 -print_final_stats=1 \
        -artifact_prefix=build/fuzz/crashes/"$name"- "$@" >"$log" 2>&1; then
        passed=$((passed + 1))
        printf 'ok   %-13s %-7s %s inputs, %d s\n' "$name" "$what" \
            "$(sed -n 's/^stat::number_of_executed_units: //p' "$log")" \
            $((SECONDS - start))
        return 0
    fi
    failed=$((failed + 1))
    printf 'FAIL %-13s %-7s after %d s; %s ends:\n' "$name" "$what" \
        $((SECONDS - start)) "$log"
    grep -vE '^(stat::|INFO|#)' "$log" | head -30 | sed 's/^/     /'
    grep -E 'Test unit written' "$log" | sed 's/^/     /'
    return 1
}

for target in $targets; do
    kept=tests/fuzz/corpus/$target found=build/fuzz/corpus/$target
    mkdir -p "$kept" "$found"
    if [ -n "$(ls "$kept")" ]; then
        try "$target" corpus "$kept"/* || continue
    fi
    if [ "$seconds" = quick ]; then
        try "$target" quick -runs=1000 "$found" "$kept"
    else
        try "$target" search -max_total_time="$seconds" "$found" "$kept"
    fi
done

echo "$passed passed, $failed failed"
[ $failed -eq 0 ]
