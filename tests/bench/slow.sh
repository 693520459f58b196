#!/bin/bash
# Does one slow replica make a group slow? Puts by CLIENTS (64) clients for
# SECONDS_EACH (4), in each of ROUNDS (5) rounds with
#   healthy   all three replicas well
#   stopped   one follower halted (SIGSTOP)
#   killed    one follower dead (SIGKILL), until `up` starts it again
#   slow      one follower whose every sync takes 50 ms: a shim that this script
#             builds and preloads, and switches on by a file
# Prints one JSON object a row: operations per second; and for the others the
# ratio to the healthy ones of the same round (median of all: at least 0.95
# is wanted), and by how much the leader's memory grew from the first round to
# the last.
set -eu
cd "$(dirname "$0")/../.."
F=$PWD/build/release/flotilla
W=$(mktemp -d /tmp/flotilla-slow.XXXXXX)
C=$W/cluster PORT=${PORT:-$((20000 + RANDOM % 10000))} stopped=
cleanup() {
    [ -z "$stopped" ] || kill -CONT "$stopped" 2>/dev/null || true
    "$F" down --cluster "$C" >/dev/null 2>&1 || true
    rm -rf "$W"
}
trap cleanup EXIT
trap 'exit 1' INT TERM

cat >"$W/shim.c" <<'END'
#include <dlfcn.h>
#include <stdio.h>
#include <unistd.h>
static void drag(void)
{
    char path[128];
    snprintf(path, sizeof path, SLOW_DIR "/slow.%d", (int)getpid());
    if (access(path, F_OK) == 0) {
        usleep(50000);
    }
}
#define SLOW(name)                                                             \
    int name(int fd)                                                           \
    {                                                                          \
        drag();                                                                \
        return ((int (*)(int))dlsym(RTLD_NEXT, #name))(fd);                    \
    }
SLOW(fdatasync) SLOW(fsync) SLOW(syncfs)
END
cc -D_GNU_SOURCE -DSLOW_DIR="\"$W\"" -shared -fPIC -O2 -o "$W/shim.so" "$W/shim.c" -ldl

pid_of() { cut -d' ' -f1 "$C/run/$1.pid"; }
roles() { # roles ROLE: names of group 1's replicas that have it, once all are well
    local i
    for i in $(seq 300); do
        "$F" status --cluster "$C" --json >"$W/status" 2>/dev/null && break
        sleep 0.1
    done
    python3 -c 'import json, sys
for r in json.load(open(sys.argv[1]))["replicas"]:
    if r["group"] == 1 and r["role"] == sys.argv[2]: print("g1-%d" % r["id"])' "$W/status" "$1"
}
memory() { awk '/^VmRSS/ {print $2}' "/proc/$(pid_of "$1")/status"; }
measure() { # measure ROUND MODE
    "$F" bench --cluster "$C" --ops put -n "${CLIENTS:-64}" -t "${SECONDS_EACH:-4}" --warm 1 kv >"$W/row"
    python3 -c 'import json, sys
row = json.loads(open(sys.argv[1]).readline())
assert row["errors"] == 0, row
print(sys.argv[2], sys.argv[3], row["ops_per_s"], sys.argv[4])' "$W/row" "$1" "$2" "$(memory "$leader")" >>"$W/rows"
}

up() { LD_PRELOAD=$W/shim.so "$F" up --cluster "$C" --no-mount --port "$PORT" --groups 1 >/dev/null; }
up
for round in $(seq "${ROUNDS:-5}"); do
    leader=$(roles leader)
    measure "$round" healthy
    victim=$(pid_of "$(roles follower | sed -n 1p)")
    stopped=$victim
    kill -STOP "$stopped"
    measure "$round" stopped
    kill -CONT "$stopped"
    stopped=
    leader=$(roles leader) # everybody is well again
    kill -KILL "$(pid_of "$(roles follower | sed -n 1p)")"
    measure "$round" killed
    up
    leader=$(roles leader)
    victim=$(pid_of "$(roles follower | sed -n 1p)")
    touch "$W/slow.$victim"
    measure "$round" slow
    rm "$W/slow.$victim"
done
python3 - "$W/rows" <<'END'
import json, statistics, sys
rows = [line.split() for line in open(sys.argv[1])]
healthy = {r[0]: float(r[2]) for r in rows if r[1] == "healthy"}
for mode in ("healthy", "stopped", "killed", "slow"):
    mine = [r for r in rows if r[1] == mode]
    ops = [float(r[2]) for r in mine]
    out = {"mode": mode, "min": min(ops), "median": statistics.median(ops), "max": max(ops)}
    if mode != "healthy":
        ratio = [float(r[2]) / healthy[r[0]] for r in mine]
        out.update(ratio_min=round(min(ratio), 3), ratio_median=round(statistics.median(ratio), 3),
                   ratio_max=round(max(ratio), 3))
    out["leader_mib"] = [int(r[3]) // 1024 for r in mine]
    print(json.dumps(out))
END
