#!/usr/bin/env bash
# Software: mysql-replication 1.0.17, PyMySQL 1.2.4, MariaDB 10.11.19 with its default
#   binlog_row_metadata = NO_LOG.
#
# Behaviour: without metadata the reader does not leave values out, it gives other ones. ENUM and
#   SET come as None, and none_sources says that the row has NULL there. An INT UNSIGNED from 2^31
#   on comes as a negative number. No error is raised. The hint that the library logs asks for FULL
#   metadata to map columns properly; it does not say that values are wrong.
# Fair guess: the names alone are missing (UNKNOWN_COL0 …), and the values are right.
# What to do: SET GLOBAL binlog_row_metadata = FULL, or take the key alone and read the row by SQL.
#
# Output seen:
#   in the table       : size 4000000000, kind 'plot', sites {'lab'}
#   event, NO_LOG      : size -294967296, kind None, sites None
#   its none_sources   : kind null, sites null
#   event, FULL        : size 4000000000, kind 'plot', sites {'lab'}
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
"$work/venv/bin/pip" --quiet install mysql-replication==1.0.17 PyMySQL==1.2.4 \
    >"$work/pip.log" 2>&1 || { cat "$work/pip.log" >&2; not_run "pip cannot install the packages"; }

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
    --log-bin="$work/data/binlog" --binlog-format=ROW \
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
from pymysqlreplication import BinLogStreamReader
from pymysqlreplication.row_event import WriteRowsEvent

SERVER = {"unix_socket": sys.argv[1], "user": "root"}
connection = pymysql.connect(**SERVER, autocommit=True)
cursor = connection.cursor()


def sql(statement, *values):
    cursor.execute(statement, values or None)
    return cursor.fetchall()


def events(statement, *kinds):
    """The events of these kinds that one statement leaves in the binary log."""
    file, position = sql("SHOW MASTER STATUS")[0][:2]
    sql(statement)
    stream = BinLogStreamReader(
        connection_settings=dict(SERVER), server_id=77, resume_stream=True,
        log_file=file, log_pos=position, only_events=kinds, blocking=False,
    )
    found = list(stream)
    stream.close()
    return found


def check(good, what):
    if not good:
        sys.exit(f"CHANGED: {what}")


sql("CREATE DATABASE finding")
sql("USE finding")
print("mysql-replication", version("mysql-replication"), "MariaDB", sql("SELECT VERSION()")[0][0])
sql(
    "CREATE TABLE files (id INT PRIMARY KEY AUTO_INCREMENT, size INT UNSIGNED,"
    " kind ENUM('data', 'plot'), sites SET('lab', 'site'))"
)
INSERT = "INSERT INTO files (size, kind, sites) VALUES (4000000000, 'plot', 'lab')"


def row():
    """The values of one such INSERT, and what the reader says of those that are None."""
    (event,) = events(INSERT, WriteRowsEvent)
    (found,) = event.rows
    return list(found["values"].values())[1:], found["none_sources"]


def show(label, size, kind, sites):
    print(f"{label:18} : size {size}, kind {kind!r}, sites {sites!r}")


check(sql("SELECT @@binlog_row_metadata")[0][0] == "NO_LOG", "NO_LOG is not the default")
without, reasons = row()
size, kind, sites = sql("SELECT size, kind, sites FROM files")[0]
show("in the table", size, kind, set(sites.split(",")))
show("event, NO_LOG", *without)
kind_reason, sites_reason = (reasons.get(f"UNKNOWN_COL{ordinal}") for ordinal in (2, 3))
print(f"its none_sources   : kind {kind_reason}, sites {sites_reason}")
sql("SET GLOBAL binlog_row_metadata = FULL")
full, _ = row()
show("event, FULL", *full)
check(without == [4000000000 - 2**32, None, None], "NO_LOG no longer gives these values")
check((kind_reason, sites_reason) == ("null", "null"), "none_sources no longer says null")
check(full == [4000000000, "plot", {"lab"}], "FULL no longer gives what is in the table")
print("As described: without metadata the reader tells of NULLs that are not there.")
END
