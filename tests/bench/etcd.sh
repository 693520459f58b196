#!/bin/bash
# The peer: three etcd on this machine, as Debian packages it, with mutual TLS
# for clients and peers and etcd's own defaults of durability (an fdatasync of
# its log before every answer).
#   etcd.sh up DIR PORT     members at PORT, PORT+1, PORT+2; peers at the next three
#   etcd.sh down DIR        stops them; DIR/n1.pid .. n3.pid name them
#   etcd.sh start DIR PORT  starts those that do not run, and waits for health
#   etcd.sh leader DIR PORT  prints the leader's pid
set -euo pipefail

make_certs() { # in the current directory; one for the servers, one for clients
    local who
    openssl ecparam -name prime256v1 -genkey -noout -out ca.key
    openssl req -x509 -new -key ca.key -sha256 -days 30 -subj /CN=bench-ca -out ca.crt
    printf '%s\n' subjectAltName=IP:127.0.0.1 keyUsage=digitalSignature \
        extendedKeyUsage=serverAuth,clientAuth > extensions
    for who in server client; do
        openssl ecparam -name prime256v1 -genkey -noout -out $who.key
        openssl req -new -key $who.key -subj /CN=$who -out $who.csr
        openssl x509 -req -in $who.csr -CA ca.crt -CAkey ca.key -CAcreateserial \
            -days 30 -sha256 -extfile extensions -out $who.crt 2>/dev/null
    done
}

start_member() { # DIR PORT NUMBER
    local client=https://127.0.0.1:$(($2 + $3 - 1)) peer=https://127.0.0.1:$(($2 + $3 + 2))
    local tls=$1/tls cluster= i
    for i in 1 2 3; do cluster+=,n$i=https://127.0.0.1:$(($2 + i + 2)); done
    # The default quota of 2 GiB is too little for many rounds.
    setsid etcd --name "n$3" --data-dir "$1/n$3" --quota-backend-bytes 8589934592 \
        --listen-client-urls "$client" --advertise-client-urls "$client" \
        --listen-peer-urls "$peer" --initial-advertise-peer-urls "$peer" \
        --initial-cluster "${cluster#,}" --initial-cluster-token bench \
        --client-cert-auth --trusted-ca-file "$tls/ca.crt" \
        --cert-file "$tls/server.crt" --key-file "$tls/server.key" \
        --peer-client-cert-auth --peer-trusted-ca-file "$tls/ca.crt" \
        --peer-cert-file "$tls/server.crt" --peer-key-file "$tls/server.key" \
        --logger zap --log-level warn </dev/null >"$1/n$3.log" 2>&1 &
    echo $! > "$1/n$3.pid"
}

# Not one that is dead, and that its parent has not asked after yet.
is_etcd() {
    [ "$(cat "/proc/$1/comm" 2>/dev/null)" = etcd ] && ! grep -q '^State:.Z' "/proc/$1/status"
}

up() { # DIR PORT
    local i
    mkdir -p "$1/tls"
    (cd "$1/tls" && make_certs)
    for i in 1 2 3; do start_member "$1" "$2" $i; done
    await_health "$1" "$2"
}

ctl() { # DIR PORT ARG...
    local dir=$1 all=https://127.0.0.1:$2,https://127.0.0.1:$(($2 + 1)),https://127.0.0.1:$(($2 + 2))
    shift 2
    ETCDCTL_API=3 etcdctl --endpoints "$all" --cacert "$dir/tls/ca.crt" \
        --cert "$dir/tls/client.crt" --key "$dir/tls/client.key" "$@"
}

await_health() { # DIR PORT
    local i
    for i in $(seq 150); do
        if ctl "$1" "$2" endpoint health >/dev/null 2>&1; then
            return
        fi
        sleep 0.1
    done
    echo "etcd.sh: etcd is not healthy after 15 s; see $1/n?.log" >&2
    exit 1
}

start() { # DIR PORT
    local i
    for i in 1 2 3; do
        is_etcd "$(cat "$1/n$i.pid")" || start_member "$1" "$2" $i
    done
    await_health "$1" "$2"
}

leader() { # DIR PORT
    local number
    number=$(ctl "$1" "$2" endpoint status --write-out=json | python3 -c 'import json, sys
for row in json.load(sys.stdin):
    status = row["Status"]
    if status["leader"] == status["header"]["member_id"]:
        print(int(row["Endpoint"].rsplit(":", 1)[1]) - int(sys.argv[1]) + 1)
        break' "$2")
    cat "$1/n$number.pid"
}

down() { # DIR
    local file pid
    for file in "$1"/n?.pid; do
        [ -s "$file" ] || continue
        pid=$(cat "$file")
        if is_etcd "$pid"; then kill "$pid"; fi
        for _ in $(seq 100); do
            is_etcd "$pid" || break
            sleep 0.1
        done
        if is_etcd "$pid"; then kill -9 "$pid"; fi
        rm -f "$file"
    done
}

case ${1:-} in
up) up "$2" "$3" ;;
down) down "$2" ;;
start) start "$2" "$3" ;;
leader) leader "$2" "$3" ;;
*) sed -n '2,8s/^# //p' "$0" >&2; exit 2 ;;
esac
