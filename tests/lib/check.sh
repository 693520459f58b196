# To be sourced. W: the test's directory, C: its cluster's.
passed=0 failed=0
check() { # check NAME COMMAND...: lines of its output that begin "note: " are shown
    local name=$1
    shift
    if "$@" >"$W/out" 2>&1; then
        passed=$((passed + 1))
        echo "ok   $name"
        grep '^note: ' "$W/out"
    else
        failed=$((failed + 1))
        echo "FAIL $name"
        tail -15 "$W/out" | sed 's/^/     /'
    fi
}
check_end() { # the last line, and the script's exit status
    echo "$passed passed, $failed failed"
    [ $failed -eq 0 ]
}
pid_of() { cut -d' ' -f1 "$C/run/$1.pid"; }
