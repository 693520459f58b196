#!/bin/bash
# How long does a client wait when its group's leader goes? The longest wait of
# any request of 16 clients that write without a pause, while the leader is
#   none      left alone: what this machine does by itself
#   stop      stopped in order (SIGTERM): it hands leadership over first
#   kill      killed (kill -9): its connections break
#   pause     halted (SIGSTOP): silence, as of a machine whose power went
# Prints one JSON object a row: min, median, max of ROUNDS (10), in ms.
#   gap.sh [FAULT...]
set -eu
cd "$(dirname "$0")/../.."
F=$PWD/build/release/flotilla
W=$(mktemp -d /tmp/flotilla-gap.XXXXXX)
C=$W/cluster PORT=${PORT:-$((20000 + RANDOM % 10000))} rounds=${ROUNDS:-10}
faults=("$@")
[ ${#faults[@]} -gt 0 ] || faults=(none stop kill pause)
paused=
cleanup() {
    [ -z "$paused" ] || kill -CONT "$paused" 2>/dev/null || true
    "$F" down --cluster "$C" >/dev/null 2>&1 || true
    rm -rf "$W"
}
trap cleanup EXIT
trap 'exit 1' INT TERM

up() { "$F" up --cluster "$C" --no-mount --port "$PORT" --groups 1 >/dev/null; }
# The name of group 1's leader, once everybody is well.
leader() {
    local i
    for i in $(seq 100); do
        "$F" status --cluster "$C" --json >"$W/status" 2>/dev/null && break
        sleep 0.1
    done
    python3 -c 'import json, sys
leaders = [r for r in json.load(open(sys.argv[1]))["replicas"]
           if r["group"] == 1 and r["role"] == "leader"]
print("g1-%d" % max(leaders, key=lambda r: r["term"])["id"])' "$W/status"
}
fault() { # fault KIND PID
    case $1 in
    none) ;;
    stop) kill -TERM "$2" ;;
    kill) kill -KILL "$2" ;;
    pause) kill -STOP "$2" && paused=$2 ;;
    esac
}
one() { # one KIND: the longest wait in ms
    local pid load
    pid=$(cut -d' ' -f1 "$C/run/$(leader).pid")
    "$F" bench --cluster "$C" --ops put --clients 16 --seconds 4 --warm 1 kv \
        >"$W/row" 2>"$W/err" &
    load=$!
    sleep 2.5
    fault "$1" "$pid"
    wait $load
    [ -z "$paused" ] || { kill -CONT "$paused" && paused=; }
    up
    python3 -c 'import json, sys
row = json.load(open(sys.argv[1]))
assert row["errors"] == 0, row
print(row["max_ms"])' "$W/row"
}

up
for kind in "${faults[@]}"; do
    : >"$W/waits"
    for round in $(seq "$rounds"); do
        one "$kind" >>"$W/waits"
    done
    python3 -c 'import json, statistics, sys
waits = [float(line) for line in open(sys.argv[2])]
print(json.dumps({"fault": sys.argv[1], "min_ms": min(waits),
                  "median_ms": round(statistics.median(waits), 1),
                  "max_ms": max(waits), "rounds": len(waits)}))' "$kind" "$W/waits"
done
