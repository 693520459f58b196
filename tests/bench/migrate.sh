#!/bin/bash
# Moves a shard of 1 GiB between two groups while 16 clients write to it, and
# others to shards that stay: how long does any of the 16 wait at most, and how
# much slower are the others meanwhile? The waits are also measured before the
# move, as this machine's disk has its own pauses. The others are measured in
# turns, with the move going on and with it held by the operator's rate, 1 MiB a
# second: the machine's own speed drifts by a quarter in a minute. Rows in which
# the hypervisor took more than a twentieth of it are left out. Prints one JSON
# object; others_ratio is to no move at all, if what it costs them is in
# proportion to its speed.
#   KEYS=100000 FILES=600   of 4 KiB and of 1 MiB
#   PAUSE=16                each of the 16 begins a write that often, in ms
#   ROW=20                  seconds of each row of load while it moves
set -eu
cd "$(dirname "$0")/../.."
F=$PWD/build/release/flotilla
W=$(mktemp -d /tmp/flotilla-migrate.XXXXXX)
C=$W/cluster PORT=${PORT:-$((20000 + RANDOM % 10000))}
keys=${KEYS:-100000} files=${FILES:-600} pause=${PAUSE:-16} row_s=${ROW:-20}
shard=7 stays=8 elsewhere=100 # of group 1, 1 and 2
jobs=()
cleanup() {
    for job in "${jobs[@]}"; do kill "$job" 2>/dev/null || true; done
    "$F" down --cluster "$C" >/dev/null 2>&1 || true
    rm -rf "$W"
}
trap cleanup EXIT
trap 'exit 1' INT TERM

bench() { "$F" bench --cluster "$C" "$@" kv 2>>"$W/err"; }
fill() { bench --ops fill --shard $shard "$@"; }
on_shard() { # on_shard SECONDS
    bench --ops put --shard $shard --name small --keys "$keys" --sizes 4096 \
        --clients 16 --pause "$pause" --slow 100 --seconds "$1"
}
others() { # others SECONDS: a row for each of two shards, at once
    bench --ops put --shard $stays --sizes 100 --clients 2 --seconds "$1" &
    bench --ops put --shard $elsewhere --sizes 100 --clients 2 --seconds "$1"
    wait $!
}
rate() { # ... until the group's leader has seen it
    "$F" shards --cluster "$C" rate "$1" >/dev/null
    sleep 3
}
stolen() { awk '$1 == "cpu" { print $9 }' /proc/stat; } # in 10 ms of one CPU
started() { date +%s.%N; }

"$F" up --cluster "$C" --no-mount --port "$PORT" >/dev/null
fill --name small --keys "$keys" --sizes 4096
fill --name large --keys "$files" --sizes 1048576
sleep 6 # until all of it is on disk

on_shard 12 >"$W/before" & jobs+=($!)
others 11 >"$W/others-before"
wait "${jobs[-1]}"

: >"$W/during"
while [ ! -e "$W/over" ]; do on_shard "$row_s" >>"$W/during"; done & jobs+=($!)
load=$!
sleep 3
begin=$(started)
"$F" shards --cluster "$C" --wait move $shard 2 >"$W/move" & jobs+=($!)
move=$!
: >"$W/others-moving"
: >"$W/others-held"
: >"$W/left-out"
turn=moving
while kill -0 $move 2>/dev/null; do
    before=$(stolen)
    others 4 >"$W/row"
    lost=$(($(stolen) - before))
    # A row that the end of the move cut short would say little.
    if [ $lost -gt $((5 * 5 * $(nproc))) ]; then
        echo $turn >>"$W/left-out"
    elif kill -0 $move 2>/dev/null; then
        cat "$W/row" >>"$W/others-$turn"
    fi
    case $turn in
    moving) turn=held && rate 1MiB ;;
    held) turn=moving && rate off ;;
    esac
done
wait $move
wait_end=$(started)
touch "$W/over"
wait $load
grep -ah 'arrived shard=' "$C"/log/g2-*.log | tail -1 >"$W/arrived"
[ -z "${SLOW:-}" ] || grep 'a request took' "$W/err" | sort | uniq -c >&2 || true
[ -s "$W/others-held" ] && [ -s "$W/others-moving" ] || {
    echo "the move was too short to compare, or this machine too busy" >&2
    exit 1
}
python3 - "$W" "$begin" "$wait_end" "$keys" "$files" <<'END'
import json, sys
w, begin, end, keys, files = sys.argv[1:]
rows = lambda name: [json.loads(line) for line in open(f"{w}/{name}")]
before, during = rows("before"), rows("during")
worst = lambda rs, name: max(r[name] for r in rs)
rate = lambda name: sum(r["ops_per_s"] for r in rows(name)) / len(rows(name)) * 2
assert worst(before + during, "errors") == 0, (before, during)
arrived = dict(word.split("=") for word in open(f"{w}/arrived").read().split()
               if "=" in word)
before_s, held, new = (rate("others-" + x) for x in ("before", "held", "moving"))
ratio = new / held
size = (int(keys) * 4096 + int(files) * (1 << 20)) >> 20
# Batches of 1 MiB a second, changes too; half of the time it was held to one
# (but while changes are caught up with: there the rate eases off).
speed = 2 * int(arrived["batches"]) / (float(end) - float(begin)) - 1
cost = (1 - ratio) / (speed - ratio) # of 1 MiB/s, as a part of the others' rate
print(json.dumps({
    "MiB": size,
    "writes_per_s": round(sum(r["ops_per_s"] for r in during) / len(during)),
    "move_s": round(float(end) - float(begin), 1),
    "frozen_ms": int(arrived["frozen_ms"]),
    "batches": int(arrived["batches"]),
    "copy_s": int(arrived["copy_ms"]) / 1000,
    "changes_s": int(arrived["changes_ms"]) / 1000,
    "longest_wait_before_ms": round(worst(before, "max_ms")),
    "longest_wait_ms": round(worst(during, "max_ms")),
    "p99_before_ms": worst(before, "p99_ms"), "p99_ms": worst(during, "p99_ms"),
    "others_before_per_s": round(before_s), "others_held_per_s": round(held),
    "others_per_s": round(new), "others_rows": len(rows("others-moving")) // 2,
    "rows_left_out": len(open(f"{w}/left-out").readlines()),
    "others_to_held": round(ratio, 2),
    "others_ratio": round(1 - cost * speed, 2)}))
END
