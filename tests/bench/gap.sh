#!/bin/bash
# make bench-gap: how long does a client wait when its group's leader goes, here
# and with etcd, in one run? The longest wait of any request of 16 clients that
# write without a pause, while the leader is
#   none      left alone: what this machine does by itself
#   stop      stopped in order (SIGTERM): it hands leadership over first
#   kill      killed (kill -9): its connections break
#   pause     halted (SIGSTOP): silence, as of a machine whose power went
#   cut       cut off: what it sends and what is sent to it is dropped
# Prints one JSON object a row: min, median, max of ROUNDS (10), in ms. etcd's
# clients know all members and give an attempt 200 ms.
#   gap.sh [FAULT...]     ETCD=no: only ours
set -eu
cd "$(dirname "$0")/../.."
. tests/lib/cut.sh
F=$PWD/build/release/flotilla OUT=build/bench ETCD=${ETCD:-yes}
mkdir -p $OUT
W=$(mktemp -d -p $OUT gap.XXXXXX)
C=$W/cluster PORT=${PORT:-$((20000 + RANDOM % 10000))} rounds=${ROUNDS:-10}
systems=(flotilla etcd)
[ "$ETCD" = yes ] || systems=(flotilla)
faults=("$@")
[ ${#faults[@]} -gt 0 ] || faults=(none stop kill pause cut)
paused=
cleanup() {
    [ -z "$paused" ] || kill -CONT "$paused" 2>/dev/null || true
    cut_end
    "$F" down --cluster "$C" >/dev/null 2>&1 || true
    tests/bench/etcd.sh down "$W/etcd" 2>/dev/null || true
    rm -rf "$W"
}
trap cleanup EXIT
trap 'exit 1' INT TERM

# For each system: start what does not run; the leader's pid; the load.
flotilla_up() { "$F" up --cluster "$C" --no-mount --port "$PORT" --groups 1 >/dev/null; }
flotilla_leader() {
    local i name
    for i in $(seq 100); do
        "$F" status --cluster "$C" --json >"$W/status" 2>/dev/null && break
        sleep 0.1
    done
    name=$(python3 -c 'import json, sys
leaders = [r for r in json.load(open(sys.argv[1]))["replicas"]
           if r["group"] == 1 and r["role"] == "leader"]
print("g1-%d" % max(leaders, key=lambda r: r["term"])["id"])' "$W/status")
    cut -d' ' -f1 "$C/run/$name.pid"
}
flotilla_load() {
    "$F" bench --cluster "$C" --ops put --clients 16 --seconds "$1" --warm 1 kv
}
etcd_up() { tests/bench/etcd.sh "$([ -d "$W/etcd" ] && echo start || echo up)" "$W/etcd" $((PORT + 50)); }
etcd_leader() { tests/bench/etcd.sh leader "$W/etcd" $((PORT + 50)); }
etcd_load() {
    $OUT/etcd_load -dir "$W/etcd" -port $((PORT + 50)) -op put -clients 16 \
        -seconds "$1" -warm 1 -attempt 200ms
}

fault() { # fault KIND PID
    case $1 in
    none) ;;
    stop) kill -TERM "$2" ;;
    kill) kill -KILL "$2" ;;
    pause) kill -STOP "$2" && paused=$2 ;;
    cut) cut_off "$2" ;;
    esac
}
mend() { # mend KIND
    [ -z "$paused" ] || { kill -CONT "$paused" && paused=; }
    [ "$1" != cut ] || cut_mend
}
one() { # one SYSTEM KIND: the longest wait in ms
    local pid load
    pid=$("$1_leader")
    "$1_load" 5 >"$W/row" 2>"$W/err" &
    load=$!
    sleep 2.5
    fault "$2" "$pid"
    wait $load
    mend "$2"
    "$1_up"
    python3 -c 'import json, sys
row = json.load(open(sys.argv[1]))
assert row["errors"] == 0, row
print(row["max_ms"])' "$W/row"
}

flotilla_up
if [ "$ETCD" = yes ]; then
    GO111MODULE=off GOPATH=/usr/share/gocode GOCACHE=$PWD/build/gocache \
        go build -trimpath -o $OUT/etcd_load tests/bench/etcd_load.go
    etcd_up
fi
case " ${faults[*]} " in *" cut "*) cut_begin ;; esac
for kind in "${faults[@]}"; do
    for round in $(seq "$rounds"); do
        for system in "${systems[@]}"; do
            one "$system" "$kind" >>"$W/$kind.$system"
        done
    done
    for system in "${systems[@]}"; do
        python3 -c 'import json, statistics, sys
waits = [float(line) for line in open(sys.argv[3])]
print(json.dumps({"fault": sys.argv[1], "system": sys.argv[2], "min_ms": min(waits),
                  "median_ms": round(statistics.median(waits), 1),
                  "max_ms": max(waits), "rounds": len(waits)}))' \
            "$kind" "$system" "$W/$kind.$system"
    done
done
