#!/usr/bin/env bash
# Software: MariaDB 10.11.19, read by mysql-replication 1.0.17 and PyMySQL 1.2.4.
#
# Behaviour: what a REPLACE of an existing row leaves in the binary log depends on the table. Where
#   the two rows meet in the table's last unique key it is one update, and the primary key may
#   change in it. Where they meet in an earlier one, or the table has a trigger for DELETE, it is
#   a delete and an insert. Where two old rows are in the way it is a delete and an update.
#   So a UNIQUE index that is added later changes the events of a statement that did not change.
# Fair guess: REPLACE is DELETE and INSERT, as the manual describes it.
# What to do: listen to inserts, updates and deletes, and take the key from before and after.
#
# Output seen:
#   no such row                          : insert 4
#   one unique key, the primary one      : update 4 -> 4
#   and UNIQUE (name), rows meet in id   : delete 4, insert 4
#   and UNIQUE (name), rows meet in name : update 3 -> 5
#   two rows in the way                  : delete 1, update 2 -> 1
#   one unique key, trigger for DELETE   : delete 4, insert 4
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
from pymysqlreplication.row_event import (
    DeleteRowsEvent,
    UpdateRowsEvent,
    WriteRowsEvent,
)

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
sql("CREATE TABLE files (id INT PRIMARY KEY AUTO_INCREMENT, name VARCHAR(20), n INT)")
sql("INSERT INTO files VALUES (1, 'a', 0), (2, 'b', 0), (3, 'c', 0)")


def shape(statement):
    """A statement's row events in words, each with the primary key."""
    words = []
    for event in events(statement, DeleteRowsEvent, UpdateRowsEvent, WriteRowsEvent):
        for row in event.rows:
            if isinstance(event, UpdateRowsEvent):
                words.append(f"update {row['before_values']['id']} -> {row['after_values']['id']}")
            else:
                kind = "insert" if isinstance(event, WriteRowsEvent) else "delete"
                words.append(f"{kind} {row['values']['id']}")
    return ", ".join(words)


def expect(label, statement, expected):
    got = shape(statement)
    print(f"{label:36} : {got}")
    check(got == expected, f"{label}: expected {expected!r}")


expect("no such row", "REPLACE INTO files VALUES (4, 'd', 0)", "insert 4")
again = "REPLACE INTO files VALUES (4, 'd', 1)"
expect("one unique key, the primary one", again, "update 4 -> 4")
sql("ALTER TABLE files ADD UNIQUE (name)")
expect("and UNIQUE (name), rows meet in id", again, "delete 4, insert 4")
by_name = "REPLACE INTO files (name, n) VALUES ('c', 1)"
expect("and UNIQUE (name), rows meet in name", by_name, "update 3 -> 5")
both = "REPLACE INTO files VALUES (1, 'b', 1)"
expect("two rows in the way", both, "delete 1, update 2 -> 1")
sql("ALTER TABLE files DROP INDEX name")
sql("CREATE TRIGGER gone BEFORE DELETE ON files FOR EACH ROW SET @gone = OLD.id")
expect("one unique key, trigger for DELETE", again, "delete 4, insert 4")
print("As described: one statement, three shapes, and keys that change within an update.")
END
