#!/bin/bash
# soak.sh OUT [FIRST]: fresh seeds on every core until you stop it. A check that
# fails ends the program, so it is started again after that seed. Everything is
# in build/soak.N.log, failures alone in build/soak-failures.txt.
set -u
out=$1 first=${2:-$(date +%s)000}
worker() { # NUMBER: every worker has seeds of its own
    local n=$1 at=$((first + $1 * 1000000)) log=build/soak.$1.log
    while :; do
        "$out/simulate" --first $at --seeds 200 --keep-going |
            tee -a "$log" | grep -E 'FAILED|died|hours|passed,'
        "$out/labs" --first $at --seeds 50 |
            tee -a "$log" | grep -E '^--- FAIL|died|replay|passed,'
        grep -hE 'FAILED|^--- FAIL|died of|replay' build/soak.*.log \
            >build/soak-failures.txt
        at=$((at + 200))
    done
}
trap 'kill $(jobs -p) 2>/dev/null; exit 0' INT TERM
for n in $(seq "$(nproc)"); do worker "$n" & done
wait
