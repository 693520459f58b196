#!/bin/bash
# soak.sh OUT [FIRST]: fresh seeds on every core until you stop it. A check that
# fails ends the program, so it is started again after that seed. Everything is
# in build/soak.N.log, failures alone in build/soak-failures.txt. The minutes are
# those of the clock, in which both ran: the simulator, and for about a tenth of
# the time the labs' rows, which are clusters, too, but calmer, so their hours
# are printed apart.
set -u
out=$1 first=${2:-$(date +%s)000}
start=$(date +%s.%N)
# A world is made and freed for each seed: its pages stay with the process.
export MALLOC_TRIM_THRESHOLD_=1000000000 MALLOC_MMAP_THRESHOLD_=1000000000
export MALLOC_TOP_PAD_=33554432
rm -f build/soak.*.hours build/soak.said
# At most each ten seconds, whichever worker comes by.
rate() {
    [ "${1:-}" = now ] || [ -z "$(find build/soak.said -newermt '-10 seconds' 2>/dev/null)" ] || return 0
    touch build/soak.said
    cat build/soak.*.log 2>/dev/null | grep -hE 'FAILED|^--- FAIL|died of|replay' >build/soak-failures.txt
    cat build/soak.*.hours 2>/dev/null | awk -v start="$start" -v now="$(date +%s.%N)" \
        -v failures="$(grep -c replay build/soak-failures.txt)" '
        $2 == "labs" { labs += $1; next }
        { hours += $1; seeds += $2 }
        END { minutes = (now - start) / 60
              printf "soak: %d seeds, %.1f cluster-hours in %.1f min: %.1f a minute", seeds, hours, minutes, hours / minutes
              if (labs > 0) printf "; labs %.1f hours: %.1f together", labs, (hours + labs) / minutes
              if (failures > 0) printf "; %d failures, of this and of earlier runs: build/soak-failures.txt", failures
              printf "\n" }'
}
simulate() { # NUMBER AT SEEDS
    "$out/simulate" --first "$2" --seeds "$3" --keep-going |
        tee -a "build/soak.$1.log" | awk -v hours="build/soak.$1.hours" '
            /FAILED|died|replay/ { print; fflush() }
            /^seeds / { seeds = $2 + 0 }
            /^simulated / { print $2, seeds >>hours; close(hours) }'
}
# NUMBER AT ROUND. Part 5A's rows that measure heaps take three times as long as
# all others together, and hardly depend on the seed: one round in eight.
labs() {
    mapfile -t parts < <("$out/labs" --parts | grep -v '^5A$')
    [ $(($3 % 8)) = 0 ] && parts+=(5A)
    "$out/labs" --first "$2" --seeds 24 "${parts[@]}" |
        tee -a "build/soak.$1.log" | awk -v hours="build/soak.$1.hours" '
            /^--- FAIL|died|replay|passed,/ { print; fflush() }
            /^simulated / { print $2, "labs" >>hours; close(hours) }'
}
worker() { # NUMBER: every worker has seeds of its own
    local n=$1 at=$((first + $1 * 1000000)) round rounds=0
    while :; do
        for round in $(seq 60); do
            simulate "$n" $at 100
            at=$((at + 100))
            rate
        done
        rounds=$((rounds + 1))
        labs "$n" $at $rounds
    done
}
# Each worker is a process group, with the simulator that it waits for: a worker
# alone would die, and leave that one running.
trap 'for n in $(jobs -p); do kill -- -"$n"; done 2>/dev/null; rate now; exit 0' INT TERM
set -m
for n in $(seq "$(nproc)"); do worker "$n" & done
wait
