#!/usr/bin/env bash
# Software: MariaDB 10.11.19, asked through PyMySQL 1.2.4.
#
# Behaviour: GET_LOCK tells "Archiver" and "archiver" apart. Two connections hold both at once, and
#   IS_FREE_LOCK says of the one that it is free while the other is held. A collation of the
#   connection that ignores case changes nothing. A name may have 192 characters.
# Fair guess: lock names ignore case, as MariaDB's manual says of GET_LOCK and as MySQL does; and
#   64 characters are the limit, as in MySQL.
# What to do: LOWER() or a hash of the name on every side, no longer than 64 characters.
#
# Output seen:
#   first  connection, GET_LOCK('Archiver', 0)       : 1
#   second connection, IS_FREE_LOCK('archiver')      : 1
#   second connection, GET_LOCK('archiver', 0)       : 1
#   second connection, GET_LOCK('Archiver', 0)       : 0
#   second connection, GET_LOCK(REPEAT('x', 192), 0) : 1
#
# Exit status: 0 the behaviour is as said, 1 it has changed, 2 it could not be tried.
set -euo pipefail
export LC_ALL=C

work=$(mktemp -d)
server=
finish() {
    if [ -n "$server" ]; then kill "$server" 2>/dev/null && wait "$server" || true; fi
    rm -rf "$work"
}
trap finish EXIT
not_run() { echo "NOT RUN: $*" >&2; exit 2; }

python3 -m venv "$work/venv" || not_run "no python3 with venv"
"$work/venv/bin/pip" --quiet install PyMySQL==1.2.4 >"$work/pip.log" 2>&1 ||
    { cat "$work/pip.log" >&2; not_run "pip cannot install the packages"; }

# The server on PATH, or Debian's, unpacked for this run alone.
PATH="$PATH:/usr/sbin"
libraries=
base=
if ! command -v mariadbd >/dev/null || ! command -v mariadb-install-db >/dev/null; then
    mkdir -p "$work/debs/partial" "$work/root"
    apt-get -qq -y -o Debug::NoLocking=1 -o Dir::Cache::archives="$work/debs" \
        --no-install-recommends --download-only install mariadb-server-core mariadb-client-core \
        >"$work/apt.log" 2>&1 ||
        { cat "$work/apt.log" >&2; not_run "no mariadbd on PATH, and apt-get brings none"; }
    for deb in "$work"/debs/*.deb; do dpkg-deb -x "$deb" "$work/root"; done
    PATH="$work/root/usr/bin:$work/root/usr/sbin:$PATH"
    libraries=$(printf '%s:' "$work"/root/usr/lib/*-linux-gnu)
    base=--basedir=$work/root/usr
fi
user=--user=$(id -un)
LD_LIBRARY_PATH=${libraries%:} mariadb-install-db --no-defaults ${base:+"$base"} \
    --datadir="$work/data" "$user" --auth-root-authentication-method=normal --skip-test-db \
    >"$work/install.log" 2>&1 ||
    { tail -n 5 "$work/install.log" >&2; not_run "mariadb-install-db failed"; }
LD_LIBRARY_PATH=${libraries%:} mariadbd --no-defaults ${base:+"$base"} --datadir="$work/data" \
    "$user" --socket="$work/sock" --skip-networking --pid-file="$work/pid" --server-id=1 \
    >"$work/server.log" 2>&1 &
server=$!
for _ in $(seq 150); do
    [ ! -S "$work/sock" ] || break
    kill -0 "$server" 2>/dev/null || break
    sleep 0.2
done
[ -S "$work/sock" ] || { tail -n 5 "$work/server.log" >&2; not_run "mariadbd does not start"; }

timeout 60 "$work/venv/bin/python" -W ignore - "$work/sock" <<'END'
import sys
from importlib.metadata import version

import pymysql

SERVER = {"unix_socket": sys.argv[1], "user": "root", "collation": "utf8mb4_general_ci"}
connections = {name: pymysql.connect(**SERVER) for name in ("first", "second")}


def ask(name, question):
    with connections[name].cursor() as cursor:
        cursor.execute(f"SELECT {question}")
        return cursor.fetchone()[0]


print("MariaDB", ask("first", "VERSION()"), "PyMySQL", version("PyMySQL"))
if ask("second", "'Archiver' = 'archiver'") != 1:
    sys.exit("CHANGED: the collation does not ignore case")
for name, question, expected in (
    ("first", "GET_LOCK('Archiver', 0)", 1),
    ("second", "IS_FREE_LOCK('archiver')", 1),
    ("second", "GET_LOCK('archiver', 0)", 1),
    ("second", "GET_LOCK('Archiver', 0)", 0),
    ("second", "GET_LOCK(REPEAT('x', 192), 0)", 1),
):
    got = ask(name, question)
    print(f"{name:6} connection, {question:29} : {got}")
    if got != expected:
        sys.exit(f"CHANGED: {question}: expected {expected}")
print("As described: two holders of what the manual calls one lock.")
END
