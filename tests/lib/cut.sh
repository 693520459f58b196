# Cuts one process of this machine off from the network, both ways, as if its
# cable were out: packets are dropped, nobody is told. Sourced; needs root and
# nftables. Processes are told apart by their control group (net_cls), so that
# it works on loopback, where all have one address.
#   cut_begin            once; cut_end undoes everything
#   cut_off PID          its sockets of now, and those it will open
#   cut_mend
CUT_CLASS=0x00460046
CUT_TABLE=flotilla_cut_$$
CUT_DIR=

cut_begin() {
    CUT_DIR=$(mktemp -d /tmp/flotilla-cut.XXXXXX)
    mount -t cgroup -o net_cls none "$CUT_DIR"
    mkdir "$CUT_DIR/cut.$$"
    echo $CUT_CLASS >"$CUT_DIR/cut.$$/net_cls.classid"
}

cut_off() {
    local ports
    echo "$1" >"$CUT_DIR/cut.$$/cgroup.procs"
    ports=$(ss -tanpH | awk -v owner="pid=$1," 'index($0, owner) {
        n = split($4, part, ":"); print part[n] }' | sort -un | paste -sd,)
    nft -f - <<END
table inet $CUT_TABLE {
    chain out {
        type filter hook output priority 0;
        meta cgroup $CUT_CLASS tcp dport 0-65535 drop
        tcp sport { $ports } drop
        tcp dport { $ports } drop
    }
}
END
}

cut_mend() {
    local pid
    nft delete table inet "$CUT_TABLE" 2>/dev/null || true
    for pid in $(cat "$CUT_DIR/cut.$$/cgroup.procs"); do
        echo "$pid" >"$CUT_DIR/cgroup.procs" 2>/dev/null || true
    done
}

cut_end() {
    [ -n "$CUT_DIR" ] || return 0
    cut_mend
    rmdir "$CUT_DIR/cut.$$"
    umount "$CUT_DIR"
    rmdir "$CUT_DIR"
    CUT_DIR=
}
