#!/usr/bin/env bash
# Software: rsync 3.5.0 (Debian 12's 3.5.0+ds1-0+deb12u1); 3.2.7 (3.2.7-1+deb12u6) does the same.
#
# Behaviour: --files-from drops each name that begins with "#" or ";", without a word and with
#   status 0, also where --from0 ends the names. But a pull whose list lies on the receiving
#   side takes the same names as names. So one list copies different files in two directions.
# Fair guess: --from0 is for any name at all, so it has no comments; and directions are alike.
# What to do: write "./" before each name.
#
# Output seen:
#   local copy                      : plain.dat
#   push, list here                 : plain.dat
#   pull, list there                : plain.dat
#   pull, list here                 : #1_noise.dat ;2_noise.dat plain.dat
#   local copy, names begin with ./ : #1_noise.dat ;2_noise.dat plain.dat
#
# Exit status: 0 the behaviour is as said, 1 it has changed, 2 it could not be tried.
set -euo pipefail
export LC_ALL=C
unset RSYNC_RSH RSYNC_OLD_ARGS RSYNC_PROTECT_ARGS 2>/dev/null || true

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

# A remote shell that is none: it runs the far side's rsync on this machine.
cat >"$work/here" <<'END'
#!/bin/sh
shift
exec sh -c "$*"
END
chmod +x "$work/here"

cd "$work"
mkdir source
names=('plain.dat' '#1_noise.dat' ';2_noise.dat')
for name in "${names[@]}"; do echo data >"source/$name"; done
printf '%s\0' "${names[@]}" >list
printf './%s\0' "${names[@]}" >list-with-dots

try() {  # try LABEL EXPECTED RSYNC-ARGUMENT…
    local label=$1 expected=$2 got status=0
    shift 2
    rm -rf target
    mkdir target
    rsync --archive --from0 --rsh="$work/here" "$@" >said 2>&1 || status=$?
    got=$(cd target && find . -type f -printf '%f\n' | sort | paste -sd' ')
    printf '%-31s : %s\n' "$label" "$got"
    [ "$status" = 0 ] || changed "$label: status $status: $(cat said)"
    [ ! -s said ] || changed "$label: rsync now says: $(cat said)"
    [ "$got" = "$expected" ] || changed "$label: expected '$expected', got '$got'"
}
all='#1_noise.dat ;2_noise.dat plain.dat'
try 'local copy' plain.dat --files-from=list source/ target/
try 'push, list here' plain.dat --files-from=list source/ "far:$work/target/"
try 'pull, list there' plain.dat --files-from="far:$work/list" "far:$work/source/" target/
try 'pull, list here' "$all" --files-from=list "far:$work/source/" target/
try 'local copy, names begin with ./' "$all" --files-from=list-with-dots source/ target/
echo 'As described: status 0 and no message each time, and three of four ways leave files out.'
