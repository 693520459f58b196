#!/bin/sh
# Fail when an #include goes against tests/lint/layers.txt.
set -eu
folders=$(awk '!/^#/ && !/^</ && NF { print $1 }' tests/lint/layers.txt)
# shellcheck disable=SC2086
grep -rn --include='*.[ch]' '^#include' $folders |
awk -F: '
    BEGIN {
        while ((getline line < "tests/lint/layers.txt") > 0) {
            n = split(line, w, " ")
            if (n == 0 || w[1] == "#") continue
            if (w[1] ~ /^</) {
                for (i = 2; i <= n; i++) home[w[1], i] = w[i]
                homes[w[1]] = n; continue
            }
            known[w[1]] = 1
            allowed[w[1], w[1]] = 1
            for (i = 2; i <= n; i++) allowed[w[1], w[i]] = 1
        }
    }
    {
        from = $1; sub("/.*", "", from)
        what = $3; sub(/^#include[ \t]*/, "", what)
        bad = ""
        if (what ~ /^"/) {
            to = what; gsub(/"|\/.*/, "", to)
            if (!(to in known)) bad = "write it as \"folder/file.h\""
            else if (!((from, to) in allowed)) bad = from " may not include " to
            else if (from != to && from != "tests" && what ~ /_int\.h"/)
                bad = "private header of " to
        } else if (from != "tests") {
            for (lib in homes) {
                at_home = index(what, lib) != 1
                for (i = 2; i <= homes[lib]; i++)
                    if (index($1, home[lib, i]) == 1) at_home = 1
                if (!at_home) bad = lib " belongs to " home[lib, 2]
            }
        }
        if (bad != "") { print $1 ":" $2 ": " what ": " bad; failed = 1 }
    }
    END { exit failed }'
