#!/bin/bash
# How long do checkpoints keep a replica from applying, under a full load of
# puts? Starts a cluster for each size, loads it, and asks every replica of a
# group (`flotilla status --json`). Prints one JSON object a size: the worst
# replica's figures, in ms, and what the clients saw. `applier_job` bounds what
# the applier could have waited for otherwise, as in the kernel: it is the
# longest job, of up to 1024 entries or 512 KiB, that it had during a checkpoint.
#   SIZES=100,65536 CLIENTS=256 LOAD=30   bytes; clients; seconds of each
set -eu
cd "$(dirname "$0")/../.."
F=$PWD/build/release/flotilla
sizes=${SIZES:-100,65536} clients=${CLIENTS:-256} load_s=${LOAD:-30}
PORT=${PORT:-$((20000 + RANDOM % 10000))}
mkdir -p build/bench
W=$(mktemp -d "$PWD/build/bench/stall.XXXXXX") # not /tmp: it may be memory
cleanup() {
    trap - EXIT
    "$F" down --cluster "$W/cluster" >/dev/null 2>&1 || true
    rm -rf "$W"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

for size in ${sizes//,/ }; do
    "$F" up --cluster "$W/cluster" --no-mount --port "$PORT" >/dev/null
    "$F" bench --cluster "$W/cluster" --ops put --sizes "$size" \
        --clients "$clients" --seconds "$load_s" kv >"$W/load"
    "$F" status --cluster "$W/cluster" --json >"$W/status" || true
    "$F" down --cluster "$W/cluster" >/dev/null
    rm -rf "$W/cluster"
    python3 - "$W" "$size" <<'END'
import json, sys
w, size = sys.argv[1:]
load = json.load(open(f"{w}/load"))
all = [r["checkpoints"] for r in json.load(open(f"{w}/status"))["replicas"]
       if r["group"] != 0 and r["up"]]
worst = lambda name: {p: round(max(c[name][p] for c in all), 2)
                      for p in ("p50", "p99", "max")}
print(json.dumps({"size": int(size), "clients": load["clients"],
                  "puts_per_s": load["ops_per_s"], "p99_ms": load["p99_ms"],
                  "max_ms": load["max_ms"], "replicas": len(all),
                  "checkpoints": [c["count"] for c in all],
                  "stall": worst("stall_ms"), "applier_job": worst("applier_job_ms"),
                  "write": worst("write_ms")}), flush=True)
END
done
