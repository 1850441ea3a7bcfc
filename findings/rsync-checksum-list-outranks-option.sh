#!/usr/bin/env bash
# Software: rsync 3.5.0 (Debian 12's 3.5.0+ds1-0+deb12u1); 3.2.7 (3.2.7-1+deb12u6) does the same.
#
# Behaviour: where the environment of the far login has RSYNC_CHECKSUM_LIST without md5, a client's
#   --checksum-choice=md5 ends with status 12, "was refused by the server". The list is a filter.
#   One such line in the start-up file of a login stops every transfer that names its checksum.
# Fair guess: the option beats the variable; rsync(1) says so at --checksum-choice.
# What to do: leave the variable out of the far login's environment, or put md5 into its list.
#
# Output seen:
#   list "xxh3", no option               : status 0
#   list "xxh3", --checksum-choice=md5   : status 12
#     Your --checksum-choice value (md5) was refused by the server.
#   list "xxh3 md5", the same option     : status 0
#
# Exit status: 0 the behaviour is as said, 1 it has changed, 2 it could not be tried.
set -euo pipefail
export LC_ALL=C
unset RSYNC_RSH RSYNC_CHECKSUM_LIST 2>/dev/null || true

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
changed() { echo "CHANGED: $*" >&2; exit 1; }
not_run() { echo "NOT RUN: $*" >&2; exit 2; }

if ! command -v rsync >/dev/null; then
    mkdir -p "$work/debs/partial" "$work/root"
    apt-get -qq -y -o Debug::NoLocking=1 -o Dir::Cache::archives="$work/debs" \
        --no-install-recommends --download-only install rsync >"$work/apt.log" 2>&1 ||
        { cat "$work/apt.log" >&2; not_run "no rsync on PATH, and apt-get brings none"; }
    for deb in "$work"/debs/*.deb; do dpkg-deb -x "$deb" "$work/root"; done
    PATH="$work/root/usr/bin:$PATH"
    libraries=$(printf '%s:' "$work"/root/usr/lib/*-linux-gnu)
    export LD_LIBRARY_PATH="${libraries%:}"
fi
rsync --version | sed -n '1s/  protocol.*//p'
rsync --version | grep -qw xxh3 || not_run "this rsync was built without xxh3"

# A remote shell that is none: it runs the far side here, with $FAR_LIST in its environment alone.
cat >"$work/here" <<'END'
#!/bin/sh
shift
RSYNC_CHECKSUM_LIST=$FAR_LIST exec sh -c "$*"
END
chmod +x "$work/here"

cd "$work"
mkdir source
echo data >source/file

try() {  # try LABEL LIST EXPECTED-STATUS RSYNC-ARGUMENT…
    local label=$1 list=$2 expected=$3 status=0
    shift 3
    rm -rf target
    FAR_LIST=$list timeout 60 rsync --recursive --times --rsh="$work/here" "$@" \
        "far:$work/source/" target/ >said 2>&1 || status=$?
    printf '%-36s : status %s\n' "$label" "$status"
    if [ "$status" != "$expected" ]; then
        changed "$label: status $status instead of $expected: $(cat said)"
    fi
}
try 'list "xxh3", no option' xxh3 0
try 'list "xxh3", --checksum-choice=md5' xxh3 12 --checksum-choice=md5
grep '^Your --checksum-choice' said | sed 's/^/  /' || changed "another message: $(cat said)"
try 'list "xxh3 md5", the same option' 'xxh3 md5' 0 --checksum-choice=md5
echo 'As described: the variable on the far side outranks the option on this side.'
