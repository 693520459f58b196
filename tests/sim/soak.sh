#!/bin/bash
# soak.sh OUT [FIRST]: fresh seeds on every core until you stop it. A check that
# fails ends the program, so it is started again after that seed. Everything is
# in build/soak.N.log, failures alone in build/soak-failures.txt. The hours are
# the simulator's, the minutes those of the clock, so those of the labs too:
# their rows, dense with operations, are run for about a tenth of the time.
set -u
out=$1 first=${2:-$(date +%s)000}
start=$(date +%s.%N)
rm -f build/soak.*.hours
rate() {
    cat build/soak.*.hours 2>/dev/null | awk -v start="$start" -v now="$(date +%s.%N)" '
        { hours += $1; seeds += $2 }
        END { minutes = (now - start) / 60
              printf "soak: %d seeds, %.1f cluster-hours in %.1f min: %.1f a minute\n",
                     seeds, hours, minutes, hours / minutes }'
    cat build/soak.*.log 2>/dev/null | grep -hE 'FAILED|^--- FAIL|died of|replay' \
        >build/soak-failures.txt && echo "soak: failures: see build/soak-failures.txt"
}
simulate() { # NUMBER AT SEEDS
    "$out/simulate" --first "$2" --seeds "$3" --keep-going |
        tee -a "build/soak.$1.log" | awk -v hours="build/soak.$1.hours" '
            /FAILED|died|replay/ { print; fflush() }
            /^seeds / { seeds = $2 + 0 }
            /^simulated / { print $2, seeds >>hours; close(hours) }'
}
worker() { # NUMBER: every worker has seeds of its own
    local n=$1 at=$((first + $1 * 1000000)) round
    while :; do
        for round in $(seq 12); do
            simulate "$n" $at 500
            at=$((at + 500))
            rate
        done
        "$out/labs" --first $at --seeds 4 |
            tee -a "build/soak.$n.log" | grep -E '^--- FAIL|died|replay|passed,'
    done
}
# Each worker is a process group, with the simulator that it waits for: a worker
# alone would die, and leave that one running.
trap 'for n in $(jobs -p); do kill -- -"$n"; done 2>/dev/null; rate; exit 0' INT TERM
set -m
for n in $(seq "$(nproc)"); do worker "$n" & done
wait
