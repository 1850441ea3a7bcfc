#!/usr/bin/env bash
# Software: mysql-replication 1.0.17, PyMySQL 1.2.4, MariaDB 10.11.19.
#
# Behaviour: a BINARY(16) whose last byte is 0 comes out of the binary log one byte shorter, of two
#   such bytes two shorter: the server trims them there, and the reader does not put them back.
#   SELECT gives all 16. So about one md5, UUID or digest in 256 differs between event and table,
#   with binlog_row_metadata = FULL too.
# Fair guess: a column of fixed length has that length everywhere.
# What to do: value.ljust(16, bytes(1)) for each BINARY column that comes from an event.
#
# Output seen:
#   md5 that ends in ff  : table 16 bytes, event 16 bytes
#   md5 that ends in 00  : table 16 bytes, event 15 bytes
#   md5 that ends in 0000: table 16 bytes, event 14 bytes
#   256 md5s, one for each last byte: 1 of them is shorter in the event
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
sql("SET GLOBAL binlog_row_metadata = FULL")
sql("CREATE TABLE files (id INT PRIMARY KEY AUTO_INCREMENT, md5sum BINARY(16) NOT NULL)")


def insert(*digests):
    """What the table and the events hold of each digest."""
    sql("TRUNCATE files")
    values = ", ".join(f"(x'{digest.hex()}')" for digest in digests)
    found = events(f"INSERT INTO files (md5sum) VALUES {values}", WriteRowsEvent)
    logged = [row["values"]["md5sum"] for event in found for row in event.rows]
    return [row[0] for row in sql("SELECT md5sum FROM files ORDER BY id")], logged


for end in ("ff", "00", "0000"):
    zeros = end.count("00")
    digest = b"\x5a" * (16 - len(end) // 2) + bytes.fromhex(end)
    (stored,), (logged,) = insert(digest)
    print(f"md5 that ends in {end:4}: table {len(stored)} bytes, event {len(logged)} bytes")
    check(stored == digest, "the table changes the value")
    check(logged == digest[: 16 - zeros], f"the event holds {logged.hex()}")
stored, logged = insert(*(b"\x5a" * 15 + bytes([last]) for last in range(256)))
shorter = sum(left != right for left, right in zip(stored, logged, strict=True))
print(f"256 md5s, one for each last byte: {shorter} of them is shorter in the event")
check(shorter == 1, "another number differs")
print("As described: zeros at the end of a BINARY are not in the event.")
END
