#!/bin/sh
# Installs those of the named Debian packages that are missing. Says what to do
# when that takes root and we are not.
set -eu
missing=
for package; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null |
        grep -q '^install ok installed$' || missing="$missing $package"
done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" != 0 ]; then
    echo "missing packages:$missing" >&2
    echo "install them as root first: sudo make deps test-deps" >&2
    exit 1
fi
echo "installing:$missing"
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
# shellcheck disable=SC2086
if ! { apt-get update -q && apt-get install -qy --no-install-recommends \
    $missing; } >"$log" 2>&1; then
    tail -5 "$log" >&2
    echo "apt-get failed; all of its output: $log" >&2
    exit 1
fi
rm -f "$log"
