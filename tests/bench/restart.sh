#!/bin/bash
# make bench-restart: everything of a cluster is killed (kill -9) and started
# again. How long until it answers a linearizable get? One group of three
# replicas, and its three controllers, beside three etcd that hold the same; then
# ours with more. And how much memory does a replica take for itself? Prints one
# JSON object a row: seconds from the start of the first process to the first
# get's answer, min, median, max of ROUNDS (3); and for each replica the most
# that it had at any time (looked at 20 times a second) while SIZE was written,
# and after the restarts, in MiB: `anon` is its own memory; `file` what it maps
# and the page cache would have anyway, LMDB's file most of all; `shmem`.
#   SIZES=200MiB,10GiB     four fifths of what is over 1 GiB in values of 1 MiB,
#                          all else in values of 4 KiB; takes four times that of
#                          disk. PEER_MAX=1GiB: etcd takes part up to there
#   BENCH_LOCK=FILE        held with flock(1) while seconds are measured
set -eu
cd "$(dirname "$0")/../.."
F=$PWD/build/release/flotilla OUT=build/bench
mkdir -p $OUT
W=$(mktemp -d "$PWD/$OUT/restart.XXXXXX") # not /tmp: it may be memory
PORT=${PORT:-$((20000 + RANDOM % 10000))}
bytes() { numfmt --from=iec "${1%iB}"; }
cleanup() {
    trap - EXIT
    "$F" down --cluster "$W/cluster" >/dev/null 2>&1 || true
    tests/bench/etcd.sh down "$W/etcd" 2>/dev/null || true
    rm -rf "$W"
}
trap cleanup EXIT
trap 'exit 130' INT TERM
etcd_max=$(bytes "${PEER_MAX:-1GiB}")
GO111MODULE=off GOPATH=/usr/share/gocode GOCACHE=$PWD/build/gocache \
    go build -trimpath -o $OUT/etcd_load tests/bench/etcd_load.go

sizes=${SIZES:-200MiB,10GiB}
for text in ${sizes//,/ }; do
    size=$(bytes "$text")
    free=$(df --output=avail -B1 "$W" | tail -1)
    [ "$free" -gt $((size * 4)) ] || {
        echo "restart.sh: needs $((size * 4 >> 30)) GiB at $W, and $((free >> 30)) are free" >&2
        exit 1
    }
    peer=no
    [ "$size" -gt "$etcd_max" ] || peer=yes
    python3 tests/bench/restart.py "$F" "$W" "$PORT" "$size" $peer \
        "${ROUNDS:-3}" "${BENCH_LOCK:-}"
    cleanup
    mkdir -p "$W"
    trap cleanup EXIT
done
