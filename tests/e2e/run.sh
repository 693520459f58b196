#!/bin/bash
# The main job on real processes, TLS and a real mount, as a user would do it;
# then machines die under it. Needs a built program and root or fusermount3.
set -u
cd "$(dirname "$0")/../.."
. tests/lib/check.sh
F=$PWD/build/release/flotilla
check_begin flotilla-e2e
C=$W/cluster M=$W/mnt M2=$W/second PORT=$((20000 + RANDOM % 10000))

# A machine that stands still for a second or two has elections, and answers that
# come too late for one look: so what is to be so in the end is waited for.
SOON=30
well() { # well [CLUSTER]
    "$F" status --cluster "${1:-$C}" | tee "$W/status" | grep -q 'all is well' || { cat "$W/status"; return 1; }
}
up() { "$F" up --cluster "$C" --mount "$M" --port $PORT; }

check "up makes a cluster and mounts it" up
check "up again is harmless" up

echo_and_cat() {
    echo hello >"$M/a" && echo more >>"$M/a" &&
        [ "$(cat "$M/a")" = "hello
more" ] && ls -la "$M" | grep -q ' 11 .* a$'
}
check "echo > and >> and cat" echo_and_cat
names() {
    mkdir "$M/d" && mv "$M/a" "$M/d/b" && ln "$M/d/b" "$M/c" &&
        ln -s c "$M/s" && [ "$(cat "$M/s")" = "hello
more" ] && [ "$(stat -c %h "$M/c")" = 2 ] && rm "$M/c" &&
        truncate -s 3 "$M/d/b" && [ "$(cat "$M/d/b")" = hel ] &&
        [ "$(stat -c %h "$M/d/b")" = 1 ] && ! cat "$M/s"
}
check "mkdir mv ln ln -s rm truncate" names

# One Put and one Append in the log of the file's group, and nothing else. "TERMS
# COMMITS" of both groups; a new leader has an entry of its own, so then it does
# not count.
commits() {
    "$F" status --cluster "$C" --json | python3 -c 'import json, sys
leaders = [r for r in json.load(sys.stdin)["replicas"]
           if r["group"] != 0 and r["role"] == "leader"]
if len(leaders) != 2: sys.exit("not each group has one leader")
print(sum(r["term"] for r in leaders), sum(r["commit"] for r in leaders))'
}
entries_of() { # entries_of COMMAND...: in $entries; false: there was an election
    local quiet term before term_after after
    quiet=$(commits) && read -r term before < <(commits) && [ "$quiet" = "$term $before" ] && "$@" &&
        read -r term_after after < <(commits) && [ "$term" = "$term_after" ] &&
        entries=$((after - before))
}
put_one() { echo hello >"$M/one"; }
append_one() { echo more >>"$M/one"; }
one_entry_each() {
    local entries
    put_one && wait_for $SOON entries_of put_one && [ $entries = 1 ] &&
        wait_for $SOON entries_of append_one && [ $entries = 1 ] &&
        wait_for $SOON entries_of cat "$M/one" && [ $entries = 0 ]
}
check "echo > is one entry, echo >> one, cat none" one_entry_each

big_file() {
    head -c 64M /dev/urandom >"$W/big" && cp "$W/big" "$M/big" &&
        cmp "$W/big" "$M/big" && rm "$M/big"
}
check "cp of 64 MiB and cmp" big_file
tree() {
    tar cf "$W/tree.tar" --exclude=.git --exclude=build . &&
        mkdir "$W/tree" "$M/tree" && tar xf "$W/tree.tar" -C "$W/tree" &&
        tar xf "$W/tree.tar" -C "$M/tree" && diff -r "$W/tree" "$M/tree"
}
check "tar xf of a source tree and diff -r" tree
git_clone() {
    git init -q "$W/repo" && cp -r "$W/tree/." "$W/repo" &&
        git -C "$W/repo" add -A &&
        git -C "$W/repo" -c user.name=t -c user.email=t@t commit -qm one &&
        git clone -q "$W/repo" "$M/clone" && git -C "$M/clone" fsck &&
        [ -z "$(git -C "$M/clone" status --porcelain)" ]
}
check "git clone, git fsck" git_clone
second_mount() {
    mkdir "$M2" && "$F" mount "$C" "$M2" && diff -r "$W/tree" "$M2/tree" &&
        echo there >"$M2/x" && [ "$(cat "$M/x")" = there ]
}
check "a second mount sees all of it" second_mount

appends_from_two() {
    local one two
    (for i in $(seq 200); do echo "one $i" >>"$M/log" || exit 1; done) & one=$!
    (for i in $(seq 200); do echo "two $i" >>"$M2/log" || exit 1; done) & two=$!
    wait $one && wait $two && [ "$(sort -u "$M/log" | wc -l)" = 400 ] &&
        [ "$(grep '^one' "$M/log" | awk '{print $2}')" = "$(seq 200)" ]
}
check "appends from two mounts never overwrite" appends_from_two

status_json() {
    "$F" status --cluster "$C" --json | python3 -c 'import json, sys
s = json.load(sys.stdin)
assert len(s["replicas"]) == 9 and len(s["mounts"]) == 2 and not s["problems"], s
assert sum(g["shards"] for g in s["groups"]) == s["shards"], s'
}
status_works() { wait_for $SOON well && wait_for $SOON status_json; }
check "status, also as JSON" status_works
kv_works() {
    "$F" kv --cluster "$C" put k red && "$F" kv --cluster "$C" append k dish &&
        [ "$("$F" kv --cluster "$C" get k)" = reddish ] &&
        "$F" kv --cluster "$C" delete k && ! "$F" kv --cluster "$C" get k
}
check "kv put append get delete" kv_works
kv_txn() {
    "$F" kv put from 10 --cluster "$C" && "$F" kv --cluster "$C" put to 5 &&
        printf 'compare from = 10\ncompare new absent\nget to\nput from 7\nput to 8\nappend log x\\n\n' |
        "$F" kv --cluster "$C" txn >"$W/txn" &&
        [ "$(cat "$W/txn")" = "get to: 5
append log x\n: at 0" ] && [ "$("$F" kv --cluster "$C" get from)" = 7 ] &&
        ! printf 'compare from = 10\nput to 0\n' |
        "$F" kv --cluster "$C" txn 2>"$W/err" &&
        grep -q 'does not hold: compare from = 10' "$W/err" &&
        [ "$("$F" kv --cluster "$C" get to)" = 8 ]
}
check "kv txn: all or nothing, over several shards" kv_txn
kv_txn_hidden() {
    "$F" kv --cluster "$C" put hidden old && ! printf 'put hidden a\0b\n' | "$F" kv --cluster "$C" txn 2>"$W/err" &&
        grep -q 'does not understand' "$W/err" && [ "$("$F" kv --cluster "$C" get hidden)" = old ] &&
        ! "$F" kv --cluster "$C" txn </ 2>"$W/err" && grep -q 'standard input' "$W/err"
}
check "kv txn refuses a line with a zero byte, and an input that cannot be read" kv_txn_hidden
join_typo() {
    local before
    before=$("$F" shards --cluster "$C" query | head -1) &&
        ! "$F" shards --cluster "$C" join "3=127.0.0.1:1,127.0.0.1:2,127.0.0.1:3" 2>"$W/err" &&
        grep -q 'group 3 does not run there' "$W/err" &&
        ! "$F" shards --cluster "$C" join "3=127.0.0.1:$((PORT + 6)),127.0.0.1:$((PORT + 7)),127.0.0.1:$((PORT + 8))" &&
        [ "$("$F" shards --cluster "$C" query | head -1)" = "$before" ]
}
check "a group that does not run cannot join" join_typo
shards_move() {
    "$F" shards --cluster "$C" leave 2 && diff -r "$W/tree" "$M/tree" &&
        "$F" shards --cluster "$C" join \
            "2=127.0.0.1:$((PORT + 6)),127.0.0.1:$((PORT + 7)),127.0.0.1:$((PORT + 8))" &&
        diff -r "$W/tree" "$M/tree" &&
        ! "$F" shards --cluster "$C" leave 1 2 2>"$W/err" &&
        grep -q 'the last group cannot leave' "$W/err"
}
check "a group leaves and joins under the files" shards_move
shards_are() { # shards_are GROUP COUNT
    [ "$("$F" status --cluster "$C" --json | python3 -c '
import json, sys
print([g["shards"] for g in json.load(sys.stdin)["groups"]
       if g["group"] == int(sys.argv[1])][0])' "$1")" = "$2" ]
}
rate_is_50mib() { "$F" status --cluster "$C" --json | grep -q '"move_rate": 52428800'; }
weight_and_rate() {
    "$F" shards --cluster "$C" rate 50MiB &&
        "$F" shards --cluster "$C" query | grep -q '^rate: at most 50 MiB' &&
        wait_for $SOON rate_is_50mib &&
        "$F" shards --cluster "$C" --wait weight 2 3 &&
        wait_for $SOON shards_are 1 32 && wait_for $SOON shards_are 2 96 &&
        "$F" shards --cluster "$C" query | grep -q '^group 2: weight 3, 96' &&
        "$F" shards --cluster "$C" --wait weight 2 1 &&
        wait_for $SOON shards_are 1 64 && diff -r "$W/tree" "$M/tree" &&
        "$F" shards --cluster "$C" rate off &&
        ! "$F" shards --cluster "$C" query | grep -q '^rate' &&
        ! "$F" shards --cluster "$C" rate 50 && ! "$F" shards --cluster "$C" rate 5KiB &&
        ! "$F" shards --cluster "$C" weight 2 0 && ! "$F" shards --cluster "$C" weight 9 2
}
check "weights and a rate for moves" weight_and_rate

# An `up` that is killed at any moment leaves nothing that the next one cannot
# use, and no process that `down` does not know.
interrupted() {
    local I=$W/interrupted ms
    for ms in 30 50 70 90 120 160 220 300; do
        timeout -s KILL 0.$(printf %03d $ms) "$F" up --cluster "$I" --no-mount \
            --port $((PORT + 20))
        "$F" up --cluster "$I" --no-mount --port $((PORT + 20)) &&
            wait_for $SOON well "$I" && "$F" down --cluster "$I" &&
            ! pgrep -f "$I" || return 1
        rm -rf "$I"
    done
}
check "up, killed at eight moments: up again works, down finds all" interrupted
similar_names() {
    local name
    mkdir -p "$W/x/y" "$W/x-y" || return 1
    for name in x/y x-y; do "$F" mount "$C" "$W/$name" || return 1; done
    [ "$(ls "$C"/run | grep -c 'x.*y\.pid$')" = 2 ] || return 1
    for name in x/y x-y; do "$F" umount "$W/$name" || return 1; done
}
check "mounts at x/y and x-y have pid files of their own" similar_names

# Lines that were acknowledged, one by one, while replicas die.
acknowledged() {
    local i
    i=$(cat "$W/acknowledged")
    while [ -e "$W/go" ]; do
        i=$((i + 1))
        echo "line $i" >>"$M/lines" || exit 1
        echo $i >"$W/acknowledged"
    done
}
echo 0 >"$W/acknowledged"
lines_intact() {
    local n
    n=$(cat "$W/acknowledged")
    [ "$(awk '{print $2}' "$M/lines" | head -n "$n")" = "$(seq "$n")" ] &&
        [ "$(sort "$M/lines" | uniq -d | wc -l)" = 0 ] && return
    echo "$n lines were acknowledged; the file has $(wc -l <"$M/lines")"
    diff <(seq "$n") <(awk '{print $2}' "$M/lines") | head -5
    return 1
}
goes_on() { # goes_on BEFORE: 20 more lines
    [ "$(cat "$W/acknowledged")" -gt $(($1 + 20)) ]
}
kill_minority() {
    touch "$W/go"
    acknowledged &
    load=$!
    local round before
    for round in 1 2 3; do
        sleep 1
        kill -9 "$(pid_of ctl-$round)" "$(pid_of g1-$round)" \
            "$(pid_of g2-$round)" || return 1
        before=$(cat "$W/acknowledged")
        wait_for $SOON goes_on "$before" || return 1
        "$F" status --cluster "$C" && { echo "status saw nothing"; return 1; }
        up || return 1
    done
    rm "$W/go"
    wait $load || { echo "a write failed"; return 1; }
    load=
    echo "acknowledged: $(cat "$W/acknowledged")"
    lines_intact
}
check "kill -9 of one replica of each group, three times, mid-write" kill_minority
# A halted process keeps its connections, and answers nothing: a command begins
# with it as likely as not.
halted() {
    local names="ctl-1 g1-1 g2-1" name i began took rc=0
    "$F" kv --cluster "$C" put halted x || return 1
    for name in $names; do kill -STOP "$(pid_of $name)"; done
    sleep 2 # until others lead
    for i in 1 2 3 4 5; do
        began=$(date +%s%N)
        [ "$("$F" kv --cluster "$C" get halted)" = x ] || rc=1
        took=$((($(date +%s%N) - began) / 1000000))
        echo "$took ms"
        [ $took -lt 1500 ] || rc=1
    done
    for name in $names; do kill -CONT "$(pid_of $name)"; done
    return $rc
}
check "one replica of each group halted: kv get takes no seconds" halted
# Group 2 is dead: what is refused, what is said, what goes on.
dead_group() {
    local names="g2-1 g2-2 g2-3" name took rc
    for name in $names; do kill -9 "$(pid_of $name)"; done
    ! "$F" shards --cluster "$C" leave 2 2>"$W/err" && grep -q 'group 2: only 0 of 3' "$W/err" || return 1
    "$F" fsck --kv --cluster "$C" >"$W/fsck"; rc=$?
    cat "$W/fsck"
    [ $rc = 1 ] && grep -q '^group 1: OK' "$W/fsck" && grep -q '^INCOMPLETE: 1 of 2' "$W/fsck" || return 1
    "$F" shards --cluster "$C" --force --wait --timeout 2000 move 0 2 2>"$W/err"; rc=$?
    cat "$W/err"
    [ $rc = 1 ] && grep -q 'from group 1 to group 2: 0$' "$W/err" && up &&
        "$F" shards --cluster "$C" --wait --timeout 30000 move 0 1 && diff -r "$W/tree" "$M/tree"
}
check "a dead group: named, compared without, waited for no longer than said" dead_group
# Two of three controllers are down: files go on, and status says what is wrong.
says_without_controllers() {
    timeout 20 "$F" status --cluster "$C" >"$W/status"
    [ $? = 3 ] || { echo "exit status not 3 within 20 s:"; cat "$W/status"; return 1; }
    cat "$W/status"
    grep -q "PROBLEM controller 1 at .*flotilla up" "$W/status" &&
        grep -q "PROBLEM controller 3 at .*flotilla up" "$W/status" &&
        grep -q "PROBLEM the controllers: only 1 of 3" "$W/status" &&
        [ "$(grep -c '^  [0-9] .* leader ' "$W/status")" = 2 ] &&
        "$F" status --cluster "$C" --json | grep -q '"problems"'
}
no_controllers() {
    kill -9 "$(pid_of ctl-1)" "$(pid_of ctl-3)" || return 1
    echo on >"$M/without" && [ "$(cat "$M/without")" = on ] &&
        wait_for $SOON says_without_controllers && up && wait_for $SOON well
}
check "two of three controllers down: status says so, up heals it" no_controllers
kill_all() {
    local name
    touch "$W/go"
    acknowledged &
    load=$!
    sleep 1
    for name in ctl-1 ctl-2 ctl-3 g1-1 g1-2 g1-3 g2-1 g2-2 g2-3; do
        kill -9 "$(pid_of $name)"
    done
    up || return 1
    sleep 1
    rm "$W/go"
    wait $load || { echo "a write failed"; return 1; }
    load=
    lines_intact && diff -r "$W/tree" "$M/tree"
}
check "kill -9 of everything, then up" kill_all
# Who is killed while it waits for the disk ends some time later, and holds its
# lock and its port until then.
six_run() { [ "$("$F" status --cluster "$1" --json | grep -c '"pid": [1-9]')" = 6 ]; }
killed_busy() {
    local B=$W/busy n
    local up=("$F" up --cluster "$B" --no-mount --port $((PORT + 60)) --groups 1)
    "${up[@]}" || return 1
    for n in 1 2 3 4 5; do
        timeout 3 "$F" bench --cluster "$B" --ops put -n 64 -t 20 -s 65536 kv &
        sleep 1
        kill -9 $(cut -d' ' -f1 "$B"/run/*.pid)
        "${up[@]}" && wait_for $SOON six_run "$B" || return 1
        wait $!
    done
    "$F" down --cluster "$B"
}
check "kill -9 of everything under load, and up at once, five times" killed_busy
voters_are_134() {
    [ "$("$F" member --cluster "$C" --json list 1 |
            python3 -c 'import json, sys
print(sorted(m["id"] for m in json.load(sys.stdin)[0]["members"]
      if m["role"] == "voter" and m["active"]))')" = "[1, 3, 4]" ]
}
member_replace() {
    local out
    kill -9 "$(pid_of g1-2)" && rm -rf "$C/data/g1-2" || return 1
    out=$(up 2>&1) && { echo "a replica without its data started"; return 1; }
    grep -q 'flotilla member replace 1 2' <<<"$out" || { echo "$out"; return 1; }
    "$F" member --cluster "$C" replace 1 2 && lines_intact &&
        diff -r "$W/tree" "$M/tree" && wait_for $SOON voters_are_134 && wait_for $SOON well
}
check "a replica that lost its data is refused, and replaced" member_replace
# An address that cannot be had: what then stays begun is named, and its remedy works.
member_begun() {
    local out id=5
    "$F" member --cluster "$C" add 1 --address 192.0.2.1:7 && { echo "it was added"; return 1; }
    out=$(up 2>&1) && { echo "it started"; return 1; }
    grep -q "never added to its group: .flotilla member remove 1 $id. takes it away" <<<"$out" || { echo "$out"; return 1; }
    "$F" member --cluster "$C" remove 1 $id && up && well
}
check "a replica that was begun and cannot start is named by up, with what to do" member_begun
a_slip() { ! RUN=no-such-test tests/run.sh; }
check "make test of a name that nothing has fails" a_slip
member_moves() { # every replica of a group is another one, while it is used
    touch "$W/go"
    acknowledged &
    load=$!
    local id
    for id in 1 3 4; do
        "$F" member --cluster "$C" replace 1 $id || return 1
    done
    "$F" member --cluster "$C" transfer 1 6 &&
        "$F" member --cluster "$C" add 0 &&
        "$F" member --cluster "$C" remove 0 1 || return 1
    rm "$W/go"
    wait $load || { echo "a write failed"; return 1; }
    load=
    [ "$(grep -c 'was removed from its group' "$C/log/g1-4.log")" = 1 ] &&
        lines_intact && diff -r "$W/tree" "$M/tree" && up && wait_for $SOON well
}
check "a whole group is replaced, one by one, mid-write" member_moves
# Given again, a command that was killed goes on: nobody is added, or goes, twice.
member_killed() { # member_killed WORDS...: at later and later moments, until it is done
    local ms=20
    until timeout -s KILL "$(printf '0.%03d' $ms)" "$F" member --cluster "$C" "$@"; do
        ms=$((ms + ms / 3))
        [ $ms -lt 1000 ] || { "$F" member --cluster "$C" "$@"; return; }
    done
}
members_and_described() { # of group 1
    "$F" member --cluster "$C" --json list 1 | python3 -c 'import json, sys
there = sorted((m["id"], m["role"]) for m in json.load(sys.stdin)[0]["members"])
known = sorted((r["id"], "voter") for r in json.load(open(sys.argv[1]))["replicas"] if r["group"] == 1)
print(*(i for i, _ in there) if there == known else ("members", there, "described", known))' \
        "$C/cluster.json"
}
member_again() {
    local before after
    before=$(members_and_described) && set -- $before &&
        member_killed replace 1 "$1" && after=$(members_and_described) &&
        [ "$after" = "$2 $3 $(($3 + 1))" ] || { echo "$before, then $after"; return 1; }
    member_killed add 1 && [ "$(members_and_described)" = "$after $(($3 + 2))" ] &&
        member_killed remove 1 $(($3 + 2)) && "$F" member --cluster "$C" remove 1 $(($3 + 2)) &&
        [ "$(members_and_described)" = "$after" ] && ! grep unfinished "$C/cluster.json" &&
        lines_intact && "$F" status --cluster "$C" | grep -q 'all is well' ||
        { echo "$after, then $(members_and_described)"; return 1; }
}
check "a change of members that is killed again and again is made once" member_again
# One was begun, and then another one added: the group takes no id below that.
member_overtaken() {
    local after id
    after=$(members_and_described) && "$F" member --cluster "$C" add 1 &&
        id=$(members_and_described | awk '{print $NF}') && "$F" member --cluster "$C" remove 1 "$id" &&
        [ "$(members_and_described)" = "$after" ] && set -- $after &&
        python3 -c 'import json, sys
c = json.load(open(sys.argv[1]))
c["replicas"].append({"name": "g1-" + sys.argv[2], "group": 1, "id": int(sys.argv[2]),
                      "address": "127.0.0.1:" + sys.argv[3], "replaces": int(sys.argv[4]), "unfinished": True})
json.dump(c, open(sys.argv[1], "w"))' "$C/cluster.json" "$id" $((PORT + 60)) "$1" &&
        "$F" member --cluster "$C" replace 1 "$1" &&
        [ "$(members_and_described)" = "$2 $3 $((id + 1))" ] ||
        { echo "$after, then $(members_and_described)"; return 1; }
}
check "what was begun and overtaken goes" member_overtaken
# What cannot be is said before anything is made.
member_refuses() {
    local before
    before=$(sha256sum <"$C/cluster.json")
    says() { # says WORDS COMMAND...
        local words=$1 out
        shift
        out=$("$@" 2>&1) && { echo "done: $*"; return 1; }
        grep -q -- "$words" <<<"$out" || { echo "$out"; return 1; }
    }
    says 'is the address of ctl-2' "$F" member --cluster "$C" add 1 --address "127.0.0.1:$((PORT + 1))" &&
        says "wants HOST:PORT and got 'x:y'" "$F" member --cluster "$C" add 1 --address x:y &&
        says 'has no group 77' "$F" member --cluster "$C" remove 77 1 &&
        says 'another .* changes the cluster' flock "$C" "$F" member --cluster "$C" add 1 &&
        [ "$(sha256sum <"$C/cluster.json")" = "$before" ]
}
check "a change of members that cannot be is refused, and nothing made" member_refuses
controllers_replaced() { # while the servers and the mounts run on
    local id before after
    controllers() { "$F" member --cluster "$C" --json list 0 |
        python3 -c 'import json, sys; print(*sorted(m["id"] for m in json.load(sys.stdin)[0]["members"]))'; }
    running() { grep -o '^[0-9]*' "$C"/run/g?-*.pid | sort; }
    before=$(running)
    for id in $(controllers); do
        "$F" member --cluster "$C" replace 0 "$id" || return 1
    done
    [ "$(controllers)" = "5 6 7" ] && [ "$before" = "$(running)" ] &&
        "$F" shards --cluster "$C" --wait --timeout 30000 move 0 2 &&
        "$F" shards --cluster "$C" --wait --timeout 30000 move 0 1 &&
        "$F" member --cluster "$C" add 1 >"$W/out" 2>&1 || { cat "$W/out"; return 1; }
    ! grep 'do not know of it yet' "$W/out" || return 1
    id=$(sed -nE 's/^Replica ([0-9]+) is a voter.*/\1/p' "$W/out")
    "$F" member --cluster "$C" remove 1 "$id" && wait_for $SOON well && grep "^mount $M on" "$W/status" &&
        echo on >"$M/on" && [ "$(cat "$M/on")" = on ]
}
check "all controllers are replaced in turn, and nothing is restarted" controllers_replaced
# Until it is mounted again, programs get an error and write nothing below.
dead_mount() {
    kill -9 "$(cut -d' ' -f1 "$C"/run/mount*second.pid)" &&
        ! "$F" mount 127.0.0.1:1 "$M2" --certs "$C/certs" &&
        ! touch "$M2/below" && ! mountpoint -q "$M2" &&
        mount | grep -q " $M2 " &&
        "$F" mount "$C" "$M2" && diff -r "$W/tree" "$M2/tree"
}
check "a killed mount is mounted over again" dead_mount
down_up() {
    "$F" down --cluster "$C" && ! mountpoint -q "$M" && ! mountpoint -q "$M2" &&
        ! pgrep -f "$C" && up && lines_intact && diff -r "$W/tree" "$M/tree"
}
check "down keeps the data, up brings it back" down_up
wrong_usage() {
    "$F" nonsense; [ $? = 2 ] || return 1
    "$F" kv get; [ $? = 2 ] || return 1
    "$F" status --cluster "$W/none"; [ $? = 1 ] || return 1
    for c in up down server mount umount status kv shards member certs bench backup restore fsck; do
        "$F" $c --help | grep -q '^usage: flotilla' || return 1
    done
}
check "usage, exit statuses, --help" wrong_usage
port_in_use() {
    "$F" up --cluster "$W/other" --no-mount --port $PORT 2>"$W/err"
    [ $? = 1 ] && [ "$(grep -c '^flotilla: port .* in use' "$W/err")" = 1 ] &&
        [ "$(wc -l <"$W/err")" = 1 ] && [ ! -e "$W/other" ]
}
check "a port in use is one clear line, and nothing is made" port_in_use
occupied() {
    mkdir "$W/full" && touch "$W/full/file" &&
        ! "$F" mount "$C" "$W/full" 2>"$W/err" &&
        grep -q 'not empty' "$W/err" && [ "$(wc -l <"$W/err")" = 1 ] &&
        ! "$F" up --cluster "$W/other" --mount "$M" --port $PORT 2>"$W/err" &&
        grep -q 'mounted there already' "$W/err" && [ "$(wc -l <"$W/err")" = 1 ]
}
check "an occupied mount point is one clear line" occupied
garbage() {
    head -c 100000 /dev/urandom >"/dev/tcp/127.0.0.1/$((PORT + 6))"
    echo still >"$M/garbage" && [ "$(cat "$M/garbage")" = still ]
}
check "garbage on a port disturbs nobody" garbage

# More connections than a server takes, silent or half-way into a handshake.
crowd() {
    python3 - $((PORT + 6)) "$M/crowd" <<'END'
import resource, socket, sys, threading, time
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
HANDSHAKE, STEP = 5, 0.01  # a stranger is let go of after so many seconds
stood_still = 0.0
def watch():  # for how long this machine kept us from running
    global stood_still
    while True:
        began = time.monotonic()
        time.sleep(STEP)
        stood_still += max(0, time.monotonic() - began - 2 * STEP)
threading.Thread(target=watch, daemon=True).start()
def come():  # None: the first may have gone before the last came
    began, crowd = time.monotonic(), []
    for i in range(1100):
        s = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
        if i % 2:
            s.send(b"\x16\x03\x01\x02\x00\x01")
        crowd.append(s)
    return crowd if time.monotonic() - began < HANDSHAKE - 2 else None
end = time.monotonic() + 60
while (crowd := come()) is None:
    assert time.monotonic() < end, "1100 connections take too long"
began, still = time.monotonic(), stood_still
open(sys.argv[2], "w").write("still")
assert open(sys.argv[2]).read() == "still"
took = time.monotonic() - began
time.sleep(3 * STEP)  # so that the other thread has seen what was
took -= stood_still - still
assert took < HANDSHAKE, took
END
    [ $? = 0 ] && kill -0 "$(pid_of g2-1)" &&
        grep -q '1024 connections already' "$C/log/g2-1.log"
}
check "a crowd of strangers at a server disturbs nobody" crowd
controllers() { # their addresses of now: any of them may lead
    "$F" status --cluster "$C" --json | python3 -c 'import json, sys
print(",".join(r["address"] for r in json.load(sys.stdin)["replicas"] if r["group"] == 0))'
}
wrong_role() {
    mkdir "$W/certs" && cp "$C/certs/ca.crt" "$W/certs" &&
        cp "$C/certs/client.crt" "$W/certs/admin.crt" &&
        cp "$C/certs/client.key" "$W/certs/admin.key" || return 1
    ! timeout 60 "$F" shards --controllers "$(controllers)" \
        --certs "$W/certs" leave 2 &&
        grep -q 'does not allow method=0x21 .* name=client role=client' "$C"/log/ctl-*.log &&
        echo here >"$M/role" && [ "$(cat "$M/role")" = here ]
}
check "a client's certificate changes no configuration" wrong_role

# Backups while somebody writes, moves money between shards, and moves shards;
# into clusters of other shapes.
R=$W/restored MR=$W/mnt-restored ONE=$W/one-group
transfers() {
    while [ -e "$W/go" ]; do
        printf 'add acct%d 5\nadd acct%d 18446744073709551611\n' \
            $((RANDOM % 4)) $((4 + RANDOM % 4)) | "$F" kv --cluster "$C" txn >/dev/null || return 1
        echo . >>"$W/transferred"
    done
}
moves() {
    while [ -e "$W/go" ]; do
        "$F" shards --cluster "$C" move $((RANDOM % 64)) $((1 + RANDOM % 2)) >/dev/null
        sleep 0.2
    done
}
sum_is_zero() { # sum_is_zero CLUSTER: and not because there is nothing
    local i sum=0 some=0 n
    for i in 0 1 2 3 4 5 6 7; do
        n=$("$F" kv --cluster "$1" get acct$i | od -An -td8) || return 1
        sum=$((sum + n)) some=$((some | n))
    done
    echo "sum $sum"
    [ $sum = 0 ] && [ $some != 0 ]
}
transferred_20() { [ "$(wc -l <"$W/transferred")" -ge 20 ]; }
backup_under_load() {
    local lines i workers rc
    head -c 8M /dev/urandom >"$M/large" && truncate -s 1G "$M/sparse" && echo end >>"$M/sparse" || return 1
    lines=$(cat "$W/acknowledged")
    for i in 0 1 2 3 4 5 6 7; do printf 'add acct%d 0\n' $i; done | "$F" kv --cluster "$C" txn || return 1
    touch "$W/go" "$W/transferred"
    acknowledged & workers=$!
    transfers & workers="$workers $!"
    transfers & workers="$workers $!"
    moves & workers="$workers $!"
    wait_for 60 transferred_20 &&
        "$F" backup --cluster "$C" "$W/one.flb" && [ ! -e "$W/one.flb.tmp" ] && zstd -qt "$W/one.flb" &&
        "$F" backup --cluster "$C" - >"$W/two.flb"
    rc=$?
    rm "$W/go"; wait $workers || rc=1
    [ $rc = 0 ] && sum_is_zero "$C" && echo "$lines" >"$W/lines-before"
}
check "backup under transfers between shards, appends, and shards that move" backup_under_load
has_what_was_there() { # has_what_was_there MOUNT
    diff -r "$M/tree" "$1/tree" && cmp "$M/large" "$1/large" && [ "$(tail -c 4 "$1/sparse")" = end ] &&
        [ "$(stat -c %s "$1/sparse")" = 1073741828 ] &&
        [ "$(wc -l <"$1/lines")" -ge "$(cat "$W/lines-before")" ] &&
        [ "$(cat "$1/lines")" = "$(head -n "$(wc -l <"$1/lines")" "$M/lines")" ]
}
restore_three() {
    "$F" up --cluster "$R" --mount "$MR" --port $((PORT + 40)) --groups 3 || return 1
    ! "$F" restore --cluster "$R" "$W/one.flb" 2>"$W/err" && grep -q 'is mounted at' "$W/err" || return 1
    "$F" umount "$MR" && "$F" restore --cluster "$R" "$W/one.flb" && sum_is_zero "$R" &&
        "$F" mount "$R" "$MR" && has_what_was_there "$MR"
}
check "restore into three groups: sums, diff -r, cmp" restore_three
restore_one() {
    "$F" up --cluster "$ONE" --no-mount --port $((PORT + 80)) --groups 1 --replicas 1 &&
        cat "$W/two.flb" | "$F" restore --cluster "$ONE" - && sum_is_zero "$ONE" &&
        mkdir "$W/mnt-one" && "$F" mount "$ONE" "$W/mnt-one" && has_what_was_there "$W/mnt-one" &&
        "$F" umount "$W/mnt-one" && "$F" down --cluster "$ONE"
}
check "restore from a pipe into one group of one" restore_one
refused() { # refused FILE: by name and by pipe, with an offset, and nothing is written
    ! "$F" restore --force --cluster "$R" "$1" 2>"$W/err" &&
        grep -q 'offset [0-9]' "$W/err" && grep -q 'nothing was written' "$W/err" &&
        ! cat "$1" | "$F" restore --force --cluster "$R" - 2>"$W/err" &&
        grep -q 'offset [0-9]' "$W/err" && grep -q 'nothing was written' "$W/err" || { cat "$W/err"; return 1; }
}
bad_backups() {
    local size at
    size=$(stat -c %s "$W/one.flb")
    "$F" umount "$MR" || return 1
    ! "$F" restore --cluster "$R" "$W/one.flb" 2>"$W/err" && grep -q 'not empty' "$W/err" || return 1
    for at in 10 50 200 5000000 $((size / 2)) $((size - 20)); do
        cp "$W/one.flb" "$W/bad.flb" && python3 - "$W/bad.flb" $at <<'END' && refused "$W/bad.flb" || return 1
import sys
at = int(sys.argv[2])
f = open(sys.argv[1], "r+b"); f.seek(at); b = f.read(1)[0]; f.seek(at); f.write(bytes([b ^ 4]))
END
    done
    for at in 0 20 5000000 $((size / 2)) $((size - 1)); do
        head -c $at "$W/one.flb" >"$W/bad.flb" && refused "$W/bad.flb" || return 1
    done
    grep -q "cut short: ends at offset $((size - 1))" "$W/err" || return 1
    "$F" mount "$R" "$MR" && cmp "$M/large" "$MR/large" && sum_is_zero "$R"
}
check "a flipped byte, a cut end: refused with the offset, and nothing is written" bad_backups
broken_off() {
    local pid
    "$F" umount "$MR" || return 1
    "$F" restore --force --cluster "$R" "$W/one.flb" 2>"$W/err" & pid=$!
    until "$F" kv --cluster "$R" get acct0 2>&1 | grep -q 'no such'; do
        kill -0 $pid || break
    done
    kill -9 $pid 2>/dev/null
    wait $pid
    "$F" restore --cluster "$R" "$W/one.flb" 2>"$W/err"
    case $? in
    0) grep -q 'broken off' "$W/err" ;;
    *) grep -q 'not empty' "$W/err" ;; # it was quicker than we
    esac && "$F" mount "$R" "$MR" && cmp "$M/large" "$MR/large" && sum_is_zero "$R"
}
check "a restore that is killed is begun anew by the next" broken_off

# Two at once, of two backups: one has it, and what is there is its own.
two_at_once() {
    local t=$W/two-at-once one two rc half=no
    "$F" up --cluster "$t" --no-mount --port $((PORT + 120)) --groups 1 --replicas 1 &&
        "$F" kv --cluster "$t" put other "$(seq 1000)" && "$F" backup --cluster "$t" "$W/other.flb" || return 1
    "$F" umount "$MR" || return 1
    "$F" restore --force --cluster "$R" "$W/one.flb" 2>"$W/err1" & one=$!
    while kill -0 $one && [ $half = no ]; do
        "$F" backup --cluster "$R" "$W/half.flb" 2>&1 | grep -q 'nothing whole' && half=refused
    done
    "$F" restore --force --cluster "$R" "$W/other.flb" 2>"$W/err2"; two=$?
    wait $one; rc=$?
    "$F" down --cluster "$t"
    cat "$W/err1" "$W/err2"
    [ $rc = 0 ] && [ $two = 1 ] && grep -q 'another restore is running' "$W/err2" && [ $half = refused ] &&
        ! "$F" kv --cluster "$R" get other && "$F" mount "$R" "$MR" && cmp "$M/large" "$MR/large" && sum_is_zero "$R"
}
check "of two restores at once one is refused; a backup of half of one, too" two_at_once
to_a_device() {
    mkfifo "$W/fifo" || return 1
    cat "$W/fifo" >"$W/through.flb" &
    "$F" backup --cluster "$R" "$W/fifo" && wait $! && [ -p "$W/fifo" ] && zstd -qt "$W/through.flb" && [ -s "$W/through.flb" ]
}
check "a backup into a named pipe leaves it one" to_a_device

# Other bytes on one replica's disk: in LMDB, and in a large value's file.
tamper() { # tamper FILE-PATTERN FROM TO: in the first replica that has FROM
    python3 - "$@" <<'END'
import glob, sys
pattern, old, new = sys.argv[1], sys.argv[2].encode(), sys.argv[3].encode()
for path in sorted(glob.glob(pattern)):
    data = open(path, "rb").read()
    if old in data:
        open(path, "r+b").write(data.replace(old, new))
        print(path.split("/data/")[1].split("/")[0])
        break
else:
    sys.exit("no file has it")
END
}
stop_one() { # stop_one KEY: of $R; until it has ended
    local pid
    pid=$(cut -d' ' -f1 "$R/run/$1.pid") && kill "$pid" && wait_for $SOON gone "$pid"
}
differing() { # differing FILE-PATTERN BYTES OTHER
    local victim
    victim=$(grep -la "$2" "$R"/data/g*/state.*/$1 | head -1 | sed 's#.*/data/##; s#/.*##')
    [ -n "$victim" ] && stop_one "$victim" && tamper "$R/data/$victim/state.*/$1" "$2" "$3" &&
        "$F" up --cluster "$R" --no-mount --port $((PORT + 40)) || return 1
    "$F" fsck --kv --cluster "$R" >"$W/fsck"
    [ $? = 3 ] && grep -q "$victim at .* differs from most others in shard" "$W/fsck" &&
        [ "$(grep -c differs "$W/fsck")" = 1 ] || { cat "$W/fsck"; return 1; }
    stop_one "$victim" && tamper "$R/data/$victim/state.*/$1" "$3" "$2" &&
        "$F" up --cluster "$R" --no-mount --port $((PORT + 40)) && "$F" fsck --kv --cluster "$R"
}
# What is acknowledged is in the stores' own files only after the next checkpoint;
# before, a restart writes it there anew from the log.
stored() { # stored CLUSTER
    "$F" status --cluster "$1" --json | python3 -c 'import json, sys
sys.exit(any(r["durable"] < r["applied"] for r in json.load(sys.stdin)["replicas"] if r["group"]))'
}
# The marks are made up here: this script is itself among the files restored.
fsck_kv() {
    local mark=mark-$RANDOM$RANDOM$RANDOM
    echo $mark-key-1 >"$MR/small" && (head -c 100000 /dev/zero; echo $mark-blob-1) >"$MR/blob" &&
        wait_for 60 stored "$R" && "$F" fsck --kv --cluster "$R" >"$W/fsck" && [ "$(grep -c ': OK: 3 of 3' "$W/fsck")" = 3 ] &&
        differing keys.lmdb $mark-key-1 $mark-key-2 &&
        differing 'blobs/*/*' $mark-blob-1 $mark-blob-2
}
check "fsck --kv names the replica whose disk has other bytes" fsck_kv
"$F" down --cluster "$R" >/dev/null

check_end
