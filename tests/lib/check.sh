# To be sourced by tests on real processes and mounts. W: the test's directory, C:
# its cluster's, F: the program. Every wait has an end, and says what it was for.
#   check_begin PREFIX      makes W, /tmp/PREFIX.*; removes it however we end
#   check NAME COMMAND...   at most CHECK_LIMIT seconds
#   wait_for SECONDS COMMAND...
#   check_end               the last line, and the script's exit status
passed=0 failed=0
CHECK_LIMIT=${CHECK_LIMIT:-600}
watch_pid=

# Stops what runs there, unmounts what is mounted there, and removes it. Does not
# look into a mount: who serves it may be gone.
work_remove() { # work_remove DIR
    local place
    for place in "$1"/* "$1"/one/cluster; do
        grep -q " $place fuse" /proc/mounts || [ ! -e "$place/cluster.json" ] ||
            timeout -k 5 60 "$F" down --cluster "$place" >/dev/null 2>&1
    done
    awk -v w="$1/" 'index($2, w) == 1 {print $2}' /proc/mounts | tac |
        while read -r place; do umount -l "$place"; done
    rm -rf --one-file-system "$1"
}
check_cleanup() {
    trap '' INT TERM HUP # once
    local pid
    [ -z "$watch_pid" ] || tree_kill "$watch_pid"
    for pid in $(jobs -pr); do kill "$pid" 2>/dev/null; done
    work_remove "$W"
}
# Those that were killed with kill -9 have left theirs.
check_begin() {
    local dir
    for dir in /tmp/"$1".*; do
        [ -s "$dir/runner" ] && ! kill -0 "$(cat "$dir/runner")" 2>/dev/null || continue
        echo "note: $dir is of a run that was killed; removed"
        work_remove "$dir"
    done
    W=$(mktemp -d /tmp/"$1".XXXXXX)
    echo $$ >"$W/runner"
    trap check_cleanup EXIT
    trap 'exit 1' INT TERM HUP
}

children_of() { cat /proc/"$1"/task/*/children 2>/dev/null; }
tree_of() { # tree_of PID: and all below it, from the top: so that none goes on
    local child
    echo "$1"
    for child in $(children_of "$1"); do tree_of "$child"; done
}
tree_kill() {
    local pids
    pids=$(tree_of "$1")
    # shellcheck disable=SC2086 # one word each
    kill -9 $pids 2>/dev/null
}
# A shell hears a signal when its command has ended, so that has to end first.
watch() { # watch PID NAME
    local child pid
    sleep "$CHECK_LIMIT"
    echo "FAIL $2: still running after $CHECK_LIMIT s; stopped:" >&2
    kill -TERM "$1"
    for child in $(children_of "$1"); do
        [ "$child" != $BASHPID ] || continue
        for pid in $(tree_of "$child"); do
            echo "     $(tr '\0' ' ' <"/proc/$pid/cmdline")" >&2
        done
        tree_kill "$child"
    done
}

check() { # check NAME COMMAND...: lines of its output that begin "note: " are shown
    local name=$1 ok=no
    shift
    watch $$ "$name" &
    watch_pid=$!
    "$@" >"$W/out" 2>&1 && ok=yes
    tree_kill $watch_pid
    wait $watch_pid 2>/dev/null
    watch_pid=
    if [ $ok = yes ]; then
        passed=$((passed + 1))
        echo "ok   $name"
        grep '^note: ' "$W/out"
    else
        failed=$((failed + 1))
        echo "FAIL $name"
        tail -15 "$W/out" | sed 's/^/     /'
    fi
}
check_end() {
    echo "$passed passed, $failed failed"
    [ $failed -eq 0 ]
}
pid_of() { cut -d' ' -f1 "$C/run/$1.pid"; }

wait_for() { # wait_for SECONDS COMMAND...
    local limit=$1 end=$((SECONDS + $1))
    shift
    while :; do
        "$@" >"$W/last" 2>&1 && return
        [ $SECONDS -lt $end ] || break
        sleep 0.2
    done
    echo "not within $limit s: $*"
    tail -15 "$W/last"
    return 1
}
gone() { ! kill -0 "$1" 2>/dev/null; }
