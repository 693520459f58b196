#!/bin/bash
# make bench-log: the replicated log alone (three processes, TLS, their disks; a
# state machine that forgets) beside what this machine can do at best, measured
# in the same round:
#   commit_us   one fdatasync and two TLS ping-pongs: the least that a commit
#               for one client takes
#   write_MBps  a third of what the disk writes and syncs: the most that three
#               replicas on it can store
# Prints min/median/max over ROUNDS (3). One JSON object a row and round is kept
# in build/bench/log.json.
#   SECONDS_EACH=2 SIZES=100,4096,65536,1048576 OUTSTANDING=1,16,64,256
#   PORT=17300   the first port         DIR=...   where the data is meanwhile
set -euo pipefail
cd "$(dirname "$0")/../.."
ROUNDS=${ROUNDS:-3} SECONDS_EACH=${SECONDS_EACH:-2} PORT=${PORT:-17300}
SIZES=${SIZES:-100,4096,65536,1048576} OUTSTANDING=${OUTSTANDING:-1,16,64,256}
OUT=build/bench ROWS=build/bench/log.json
mkdir -p $OUT
# Not /tmp: that may be memory, where a sync costs nothing.
DIR=${DIR:-$(mktemp -d -p $OUT log.XXXXXX)}
trap 'rm -rf "$DIR"' EXIT
trap 'exit 130' INT TERM
: >$ROWS
for round in $(seq "$ROUNDS"); do
    if [ -t 2 ]; then printf '\rround %d of %d ' "$round" "$ROUNDS" >&2; fi
    mkdir -p "$DIR/limits"
    build/release/limits "$DIR/limits" 2 >>$ROWS
    build/release/raft_bench "$DIR/log" "$PORT" "$SECONDS_EACH" "$SIZES" "$OUTSTANDING" >>$ROWS
    rm -rf "$DIR/log"
done
if [ -t 2 ]; then printf '\r%20s\r' '' >&2; fi
tests/bench/log_table.py <$ROWS
