#!/bin/bash
# Disks that lie, on real processes and a real mount: full, of one replica and
# of most; a flipped bit; a cut-off segment; kill -9 of everything. Each replica
# of group 1 has a small tmpfs of its own for its data. Needs root.
set -u
cd "$(dirname "$0")/../.."
. tests/lib/check.sh
[ "$(id -u)" = 0 ] || { echo "tests/e2e/disk.sh mounts disks: run it as root"; exit 2; }
F=$PWD/build/release/flotilla
check_begin flotilla-disk
C=$W/cluster M=$W/mnt PORT=$((20000 + RANDOM % 10000)) SIZE=${SIZE:-192m}
writer=

up() { "$F" up --cluster "$C" --mount "$M" --port $PORT --groups 1; }
replica() { # replica KEY: of each replica of group 1, "id value"
    "$F" status --cluster "$C" --json >"$W/status"
    python3 -c 'import json, sys
for r in json.load(open(sys.argv[1]))["replicas"]:
    if r["group"] == 1: print(r["id"], r.get(sys.argv[2], "-"))' "$W/status" "$1"
}
leader() { replica role | awk '$2 == "leader" {print $1}'; }
well() { "$F" status --cluster "$C"; }
same_applied() {
    well && [ "$(replica applied | awk '{print $2}' | sort -u | wc -l)" = 1 ]
}
stop_all() {
    local name
    for name in ctl-1 ctl-2 ctl-3 g1-1 g1-2 g1-3; do
        kill -"$1" "$(pid_of $name)" 2>/dev/null
    done
    for name in ctl-1 ctl-2 ctl-3 g1-1 g1-2 g1-3; do
        wait_for 60 gone "$(pid_of $name)" || return 1
    done
}
stop_one() {
    local pid
    pid=$(pid_of "$1")
    kill "${2:--TERM}" "$pid" && wait_for 60 gone "$pid"
}

# Lines that were acknowledged, one by one; ends by itself at the first error.
write_lines() {
    local i
    i=$(cat "$W/acknowledged")
    while [ -e "$W/go" ]; do
        i=$((i + 1))
        { echo "line $i" >>"$M/lines" && head -c 100000 /dev/zero >"$M/big$((i % 20))"; } 2>"$W/error" || exit 1
        echo $i >"$W/acknowledged"
    done
}
writer_start() {
    [ -z "$writer" ] || writer_stop # of a check that failed
    touch "$W/go"
    write_lines &
    writer=$!
}
writer_stop() {
    local rc
    rm "$W/go"
    wait $writer
    rc=$?
    writer=
    [ $rc = 0 ] || { echo "the mount gave an error:"; cat "$W/error"; }
    return $rc
}
writes_go_on() { # 20 more lines within a time
    local before
    before=$(cat "$W/acknowledged")
    wait_for "${1:-20}" eval "[ \$(cat $W/acknowledged) -gt $((before + 20)) ]"
}
lines_intact() {
    local n
    n=$(cat "$W/acknowledged")
    [ "$(awk '{print $2}' "$M/lines" | uniq | head -n "$n")" = "$(seq "$n")" ] && return
    echo "$n lines were acknowledged; the file has $(wc -l <"$M/lines")"
    diff <(seq "$n") <(awk '{print $2}' "$M/lines") | head -5
    return 1
}
free_kib() { df --output=avail "$C/data/g1-$1" | tail -1; }
fill() { dd if=/dev/zero bs=64k 2>/dev/null >>"$C/data/g1-$1/hog"; sync -f "$C/data/g1-$1"; [ "$(free_kib "$1")" -lt 64 ]; }
# So that a little is left.
nearly_fill() {
    local more=$(($(free_kib "$1") - 24000))
    [ $more -le 0 ] || dd if=/dev/zero bs=1k count=$more 2>/dev/null >>"$C/data/g1-$1/hog"
}
empty() { rm "$C/data/g1-$1/hog"; }
says_full() {
    "$F" status --cluster "$C" >"$W/status.txt"
    [ $? = 3 ] && grep "^PROBLEM .*its disk is full: [0-9]* bytes are free at $C/data/g1-$1, .*make room there" "$W/status.txt"
}
log_size() { wc -c <"$C/log/g1-$1.log"; }

on_small_disks() {
    up && "$F" down --cluster "$C" || return 1
    local id
    for id in 1 2 3; do
        mv "$C/data/g1-$id" "$W/old-$id" && mkdir "$C/data/g1-$id" &&
            mount -t tmpfs -o size="$SIZE" tmpfs "$C/data/g1-$id" &&
            cp -a "$W/old-$id/." "$C/data/g1-$id" || return 1
    done
    up && echo 0 >"$W/acknowledged"
}
check "three replicas on small disks" on_small_disks

full_one() { # full_one follower|leader
    local id pid
    wait_for 20 same_applied || return 1
    id=$(leader)
    [ "$1" = leader ] || id=$((id % 3 + 1))
    pid=$(pid_of "g1-$id")
    writer_start
    writes_go_on && fill "$id" && wait_for 20 says_full "$id" && grep PROBLEM "$W/last" &&
        writes_go_on && writes_go_on && kill -0 "$pid" || return 1
    [ "$1" != leader ] || [ "$(leader)" != "$id" ] || { echo "it leads still"; return 1; }
    empty "$id" && wait_for 30 well && writes_go_on && writer_stop &&
        wait_for 30 same_applied && lines_intact &&
        [ "$(pid_of "g1-$id")" = "$pid" ] && kill -0 "$pid"
}
check "a follower's disk is full, then not: no error, and it catches up" full_one follower
check "the leader's disk is full, then not: another one leads" full_one leader

# A replica that waits gives back what it can of its own log: that is taken, too.
keep_filled() { # keep_filled FILL ID ID: until the writer has ended
    local end=$((SECONDS + 60))
    while kill -0 $writer 2>/dev/null; do
        [ $SECONDS -lt $end ] || { echo "writers still find room after 60 s"; writer_stop; return 1; }
        "$1" "$2"
        "$1" "$3"
        sleep 0.1
    done
}
still_says_full() { $fill "$1"; says_full "$1"; }
full_most() { # full_most FILL
    local a b pids began fill=$1
    a=$(leader) b=$((a % 3 + 1)) pids="$(pid_of g1-1) $(pid_of g1-2) $(pid_of g1-3)"
    writer_start
    writes_go_on && $fill "$a" && $fill "$b" || return 1
    began=$SECONDS
    keep_filled $fill "$a" "$b" || return 1
    wait $writer && { echo "the writer saw nothing"; return 1; }
    writer=
    cat "$W/error"
    echo "note: writers waited $((SECONDS - began)) s before ENOSPC"
    grep -q 'No space left on device' "$W/error" && wait_for 20 still_says_full "$a" &&
        wait_for 20 still_says_full "$b" || return 1
    [ $fill = fill ] || timeout 20 cat "$M/lines" >/dev/null || { echo "no reads"; return 1; }
    rm "$W/go"
    empty "$a" && empty "$b" && wait_for 30 well &&
        echo after >"$M/after" && [ "$(cat "$M/after")" = after ] &&
        wait_for 30 same_applied && lines_intact &&
        [ "$(pid_of g1-1) $(pid_of g1-2) $(pid_of g1-3)" = "$pids" ] && kill -0 $pids
}
check "most disks are nearly full: writers wait, then ENOSPC; reads go on; it heals" full_most nearly_fill
check "most disks are full to the last byte: the same, but for reads" full_most fill

# Restarted on a full disk: it starts, and waits.
full_restart() {
    local id
    id=$(($(leader) % 3 + 1))
    fill $id && stop_one g1-$id -9 && up && wait_for 20 eval "replica up | grep -q '^$id'" &&
        echo x >"$M/restart" && wait_for 20 says_full $id && empty $id && wait_for 30 same_applied
}
check "kill -9 and start again on a full disk" full_restart

# entry_of ID BACK: the last segment, an offset in the entry that is BACK before
# its last one, and the index of that.
entry_of() {
    python3 - "$(find "$C/data/g1-$1/wal" -name '*.wal' | sort | tail -1)" "$2" <<'EOF'
import struct, sys
b = open(sys.argv[1], "rb").read()
at, found = 40, {}
while at + 32 <= len(b):
    crc, length, kind = struct.unpack_from("<IIB", b, at)
    if crc == 0: break
    if kind == 2: found[struct.unpack_from("<Q", b, at + 24)[0]] = at
    at += 32 + (length + 7) // 8 * 8
index = max(found) - int(sys.argv[2])
print(sys.argv[1], found[index] + 33, index)
EOF
}
flip() { # flip FILE OFFSET
    python3 -c 'import sys
f = open(sys.argv[1], "r+b"); f.seek(int(sys.argv[2])); b = f.read(1)
f.seek(int(sys.argv[2])); f.write(bytes([b[0] ^ 16]))' "$1" "$2"
}
refused() { # refused ID PATTERN: it does not start, and says this
    local from
    from=$(log_size "$1")
    up
    sleep 0.5
    kill -0 "$(pid_of "g1-$1")" 2>/dev/null && { echo "it runs"; return 1; }
    tail -c +"$((from + 1))" "$C/log/g1-$1.log" | grep -E "$2" && return
    tail -5 "$C/log/g1-$1.log"
    return 1
}
flipped() {
    local id file at index
    wait_for 30 same_applied || return 1
    id=$(($(leader) % 3 + 1))
    stop_one g1-$id && read -r file at index < <(entry_of $id 3) && flip "$file" "$at" || return 1
    refused $id "wal/$(basename "$file") at byte [0-9]+: .*member replace 1 $id.;.* repair 1" &&
        echo with >"$M/with" && [ "$(cat "$M/with")" = with ] || return 1
    flip "$file" "$at" && up && wait_for 30 same_applied && lines_intact
}
check "a flipped bit is refused with file, offset and remedy; the group goes on" flipped

# All three, each elsewhere: none starts, and none has forgotten anything.
all_flipped() {
    local id index files=() ats=()
    stop_all TERM
    for id in 1 2 3; do
        read -r files[id] ats[id] index < <(entry_of $id $((3 * id))) && flip "${files[id]}" "${ats[id]}" || return 1
    done
    up
    for id in 1 2 3; do
        kill -0 "$(pid_of g1-$id)" 2>/dev/null && { echo "g1-$id runs"; return 1; }
        grep -qE "wal/[0-9a-f]+.wal at byte [0-9]+: .*member replace 1 $id." <(tail -5 "$C/log/g1-$id.log") || return 1
        flip "${files[id]}" "${ats[id]}" || return 1
    done
    up && wait_for 30 same_applied && lines_intact
}
check "all three damaged, each elsewhere: all refuse, and nothing is lost" all_flipped

more_lines() { writer_start && writes_go_on && writer_stop && wait_for 30 same_applied; }

# The same, made whole again from each other: every acknowledged line is there.
repaired() {
    local id file at index
    more_lines && stop_one g1-1 || return 1
    "$F" member --cluster "$C" repair 1 >"$W/repair" 2>&1 && return 1
    grep -q 'g1-2 runs: stop the cluster first' "$W/repair" || { cat "$W/repair"; return 1; }
    stop_all TERM
    for id in 1 2 3; do
        read -r file at index < <(entry_of $id $((6 * id))) && flip "$file" "$at" || return 1
    done
    "$F" member --cluster "$C" repair 1 >"$W/repair" 2>&1 || { cat "$W/repair"; return 1; }
    sed 's/^/note: /' "$W/repair"
    [ "$(grep -c ': repaired; its log was damaged in 1 places' "$W/repair")" = 3 ] &&
        up && wait_for 30 same_applied && lines_intact && more_lines && lines_intact
}
check "all three damaged, each elsewhere: repaired from each other, nothing is lost" repaired

# One entry damaged on all three may be committed: so nothing is touched.
flip_entry() { # flip_entry INDEX, on all
    local id file at index
    for id in 1 2 3; do
        read -r file at index < <(entry_of $id 0) &&
            read -r file at index < <(entry_of $id $((index - $1))) && [ "$index" = "$1" ] &&
            flip "$file" "$at" || return 1
    done
}
lost() {
    local file at index
    more_lines || return 1
    stop_all TERM
    read -r file at index < <(entry_of 1 12)
    flip_entry "$index" && sha256sum "$C"/data/g1-*/wal/* >"$W/before" || return 1
    "$F" member --cluster "$C" repair 1 >"$W/repair" 2>&1 && return 1
    sed 's/^/note: /' "$W/repair"
    grep -q "entry $index may be committed, and is intact on no replica" "$W/repair" &&
        sha256sum "$C"/data/g1-*/wal/* | cmp - "$W/before" && flip_entry "$index" && up &&
        wait_for 30 same_applied && lines_intact
}
check "one entry damaged on all three: refused by its index, and nothing is changed" lost

# What is written last: less than half of it is there. If the rest looks like a
# log that is whole, it is the leader that knows what this replica had stored.
has_lost() {
    "$F" status --cluster "$C" | grep -q "replica $1 has lost entries that it had stored.*member replace 1 $1"
}
well_or_lost() { same_applied || has_lost "$1"; }
truncated() {
    local id file
    id=$(($(leader) % 3 + 1))
    stop_one g1-$id && file=$(find "$C/data/g1-$id/wal" -name '*.wal' | sort | tail -1) &&
        truncate -s 20000 "$file" || return 1
    if refused $id "wal/.* at byte [0-9]+: |which the log does not have" ||
        { wait_for 60 well_or_lost $id && has_lost $id; }; then
        "$F" member --cluster "$C" replace 1 $id || return 1
    fi
    wait_for 60 same_applied && lines_intact
}
check "a last segment cut off: refused, or named by the leader; and replaced" truncated

kill_everything() {
    local i
    for i in $(seq "${KILLS:-10}"); do
        writer_start
        sleep "0.$((RANDOM % 9 + 1))"
        stop_all KILL
        up >/dev/null || return 1
        writes_go_on 30 && writer_stop && lines_intact || { echo "in round $i"; return 1; }
    done
    echo "note: $(cat "$W/acknowledged") lines acknowledged"
}
check "kill -9 of everything, ${KILLS:-10} times: nothing acknowledged is lost" kill_everything

# What happens to whoever keeps everything on one disk. Every read must be
# answered, all the time that not a byte is free.
reads_answered() {
    local i
    for i in $(seq 12); do
        timeout 5 cmp "$W/known" "$M/known" && timeout 5 ls "$M" >/dev/null || return 1
        [ "$(df --output=avail "$W/one" | tail -1)" -lt 64 ] || return 1
        sleep 1
    done
}
one_full_disk() {
    local C=$W/one/cluster M=$W/mnt-one PORT=$((PORT + 40)) pids
    up && head -c 3000000 /dev/urandom >"$W/known" && cp "$W/known" "$M/known" || return 1
    pids=$(cut -d' ' -f1 "$C"/run/*-[123].pid)
    echo 0 >"$W/acknowledged"
    writer_start
    writes_go_on || return 1
    dd if=/dev/zero of="$W/one/hog" bs=64k 2>/dev/null
    reads_answered && says_full 1 || return 1
    wait $writer && { echo "the writer saw nothing"; return 1; }
    writer=
    rm "$W/go" "$W/one/hog"
    wait_for 30 well && echo after >"$M/after" && [ "$(cat "$M/after")" = after ] &&
        lines_intact && kill -0 $pids && "$F" down --cluster "$C"
}
mkdir "$W/one"
if truncate -s 400M "$W/image" && mkfs.ext4 -q -F "$W/image" && mount -o loop "$W/image" "$W/one"; then
    check "everything on one ext4 that is full to the last byte: reads go on; it heals" one_full_disk
else
    echo "note: no loop device here, so ext4 was not tried"
fi

check_end
