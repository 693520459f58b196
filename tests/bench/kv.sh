#!/bin/bash
# make bench: our key/value store beside etcd, on this machine, in one run. Both
# clusters are up all the time; each row is measured on one and then on the
# other, in turns, ROUNDS times; the table shows min/median/max, and medians of
# latency and CPU. One JSON object a row and round is kept in build/bench.
#   ROUNDS=3 SECONDS_EACH=3 CLIENTS=1,16,64,256 SIZES=100 OPS=put,get make bench
#   GROUPS_COUNT=2   our replica groups          PORT=17100   our first port
#   ETCD=no          only ours                   DIR=...      where both keep their data
set -euo pipefail
cd "$(dirname "$0")/../.."

ROUNDS=${ROUNDS:-3} SECONDS_EACH=${SECONDS_EACH:-3} PORT=${PORT:-17100}
CLIENTS=${CLIENTS:-1,16,64,256} SIZES=${SIZES:-100} OPS=${OPS:-put,get}
GROUPS_COUNT=${GROUPS_COUNT:-2} ETCD=${ETCD:-yes}
PROGRAM=build/release/flotilla OUT=build/bench
mkdir -p $OUT
# Not /tmp: that may be memory, where a sync costs nothing.
DIR=${DIR:-$(mktemp -d -p $OUT data.XXXXXX)}
ROWS=$OUT/rows.json

clean() {
    trap - EXIT
    $PROGRAM down --cluster "$DIR/flotilla" >/dev/null 2>&1 || true
    tests/bench/etcd.sh down "$DIR/etcd" || true
    rm -rf "$DIR"
}
trap clean EXIT
trap 'exit 130' INT TERM

ours() { # OP SIZE CLIENTS
    $PROGRAM bench --cluster "$DIR/flotilla" --ops "$1" --sizes "$2" \
        --clients "$3" --seconds "$SECONDS_EACH" kv | keep flotilla
}

etcds() { # OP SIZE CLIENTS
    [ "$ETCD" = yes ] || return 0
    $OUT/etcd_load -dir "$DIR/etcd" -port $((PORT + 50)) -op "$1" -size "$2" \
        -clients "$3" -seconds "$SECONDS_EACH" | keep etcd
}

keep() { sed "s/^{/{\"system\": \"$1\", /" >>$ROWS; }

measure() { # ROUND: who goes first alternates
    local op size clients
    for op in ${OPS//,/ }; do
        for size in ${SIZES//,/ }; do
            for clients in ${CLIENTS//,/ }; do
                if [ $(($1 % 2)) = 1 ]; then
                    ours "$op" "$size" "$clients"
                    etcds "$op" "$size" "$clients"
                else
                    etcds "$op" "$size" "$clients"
                    ours "$op" "$size" "$clients"
                fi
            done
        done
    done
}

: >$ROWS
$PROGRAM up --cluster "$DIR/flotilla" --no-mount --port "$PORT" \
    --groups "$GROUPS_COUNT" >/dev/null
if [ "$ETCD" = yes ]; then
    GO111MODULE=off GOPATH=/usr/share/gocode GOCACHE=$PWD/build/gocache \
        go build -trimpath -o $OUT/etcd_load tests/bench/etcd_load.go
    tests/bench/etcd.sh up "$DIR/etcd" $((PORT + 50))
fi
for round in $(seq "$ROUNDS"); do
    if [ -t 2 ]; then printf '\rround %d of %d ' "$round" "$ROUNDS" >&2; fi
    measure "$round"
done
if [ -t 2 ]; then printf '\r%20s\r' '' >&2; fi
tests/bench/table.py <$ROWS
