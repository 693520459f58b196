#!/bin/sh
# Prints docs/messages.md from the tables of fields in the code, so that the two
# cannot differ: `make lint` compares them. docs/messages.sh > docs/messages.md
set -eu
cd "$(dirname "$0")/.."
cat <<'END'
# Messages

Printed by `docs/messages.sh` from the tables of fields (`base/msg.h`); do not edit. Fields follow each other without
gaps, integers little-endian:

| kind | bytes |
|---|---|
| `u8` `u16` `u32` `u64` | 1, 2, 4, 8 |
| `bytes` | u32 size, then that many |
| `list of X, at most N` | u32 count, then that many X; a count over N is refused |
| another name | that message, in place |

Which method carries which message: docs/wire.md. A Raft message has a form of its own: `raft/message.c`.
END
for file in rsm/rsm.h rsm/rsm_int.h shardctrler/config.h shardctrler/client.h \
    shardctrler/fsm_int.h shardkv/request.h shardkv/cut.h shardkv/command_int.h \
    shardkv/fsm_int.h shardkv/archive.h; do
    awk -v file="$file" '
    # A table goes on while its lines end in a backslash or a field may follow.
    /^#define [A-Z0-9_]+_FIELDS\(F\)/ { table = ""; reading = 1 }
    reading { table = table " " $0; if ($0 !~ /\\$/) reading = 0 }
    /^MSG_STRUCT\(|^MSG_CODEC\(/ && table != "" {
        name = $0
        sub(/^[A-Z_]+\(/, "", name); sub(/,.*/, "", name)
        print_message(name); table = ""
    }
    function print_message(name,    field, note, at, list, n, w, kind) {
        if (!titled) { printf "\n## %s\n", file; titled = 1 }
        gsub(/\\/, " ", table); gsub(/[ \t]+/, " ", table)
        sub(/^ #define [A-Z0-9_]+\(F\) ?/, "", table)
        printf "\n**%s**\n\n", name
        while ((at = match(table, /F\([^)]*\)/)) > 0) {
            field = substr(table, at + 2, RLENGTH - 3)
            table = substr(table, at + RLENGTH)
            note = ""
            if (table ~ /^ *\/\*/) {
                note = table
                sub(/^ *\/\* */, "", note); sub(/ *\*\/.*/, "", note)
            }
            n = split(field, w, /, */)
            kind = tolower(w[1])
            if (kind == "sub") { kind = "`" w[2] "`"; w[2] = w[3] }
            if (kind == "list") { kind = "list of `" w[2] "`, at most " w[4]; w[2] = w[3] }
            printf "- `%s` %s%s\n", w[2], kind, note == "" ? "" : ": " note
        }
    }' "$file"
done
