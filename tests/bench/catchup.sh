#!/bin/bash
# A replica that is SIZE behind comes back while clients write: how long until
# it has all, and what does that cost the others? One group of three; one
# follower is killed, SIZE is written, and it is started again. Prints one JSON
# object: seconds, MB/s, the growth of each process's anonymous memory above
# what it had before, in MiB, and what the clients did meanwhile.
#   SIZE=10GiB              of values of 1 MiB; takes five times that of disk
#   CLIENTS=16 VALUE=4096   who write all the time
#   STOP=1                  halts the leader once, half-way in the stream
set -eu
cd "$(dirname "$0")/../.."
F=$PWD/build/release/flotilla
size=$(numfmt --from=iec "$(echo "${SIZE:-10GiB}" | sed 's/iB$//')")
W=$(mktemp -d "${TMPDIR:-/tmp}/flotilla-catchup.XXXXXX")
C=$W/cluster PORT=${PORT:-$((20000 + RANDOM % 10000))} jobs=()
cleanup() {
    for job in "${jobs[@]}"; do kill "$job" 2>/dev/null || true; done
    "$F" down --cluster "$C" >/dev/null 2>&1 || true
    [ -z "${KEEP:-}" ] || cp "$C"/log/g1-*.log "$KEEP"
    rm -rf "$W"
}
trap cleanup EXIT
trap 'exit 1' INT TERM
free=$(df --output=avail -B1 "$W" | tail -1)
[ "$free" -gt $((size * 5)) ] || {
    echo "catchup.sh: needs $((size * 5 >> 30)) GiB at $W, and $((free >> 30)) are free" >&2
    exit 1
}

name_of() { # name_of ROLE: a replica of group 1 that has it
    "$F" status --cluster "$C" --json >"$W/status" 2>/dev/null || true
    python3 -c 'import json, sys
print(["g1-%d" % r["id"] for r in json.load(open(sys.argv[1]))["replicas"]
       if r["group"] == 1 and r.get("role") == sys.argv[2]][0])' "$W/status" "$1"
}
load() { # load SECONDS FILE
    "$F" bench --cluster "$C" --ops put --name load --keys 20000 --clients "${CLIENTS:-16}" \
        --sizes "${VALUE:-4096}" --seconds "$1" --warm 0 kv >"$2" 2>>"$W/err"
}

"$F" up --cluster "$C" --no-mount --groups 1 --port "$PORT" >/dev/null
sleep 2
behind=$(name_of follower)
kill -9 "$(cut -d' ' -f1 "$C/run/$behind.pid")"
"$F" bench --cluster "$C" --ops fill --name large --keys $((size >> 20)) --sizes 1048576 kv 2>>"$W/err"
sleep 5
load 10 "$W/before"
(while :; do load 5 "$W/row" && cat "$W/row" >>"$W/during"; done) & jobs+=($!)
sleep 3
: >"$W/during"
python3 tests/bench/catchup.py "$F" "$C" "$behind" "$size" "${STOP:-0}" >"$W/result"
kill "${jobs[0]}" && wait "${jobs[0]}" 2>/dev/null || true
python3 - "$W" <<'END_OF_PYTHON'
import json, sys
w = sys.argv[1]
rows = lambda name: [json.loads(line) for line in open(f"{w}/{name}") if line.strip()]
before, during = rows("before"), rows("during")
mean = lambda rs: round(sum(r["ops_per_s"] for r in rs) / max(len(rs), 1))
result = json.load(open(f"{w}/result"))
result |= {
    "clients_before_per_s": mean(before), "clients_per_s": mean(during),
    "clients_ratio": round(mean(during) / max(mean(before), 1), 2),
    "p99_before_ms": before[0]["p99_ms"],
    "p99_ms": max((r["p99_ms"] for r in during), default=0),
    "errors": sum(r["errors"] for r in before + during)}
print(json.dumps(result))
END_OF_PYTHON
