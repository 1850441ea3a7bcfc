"""The demo's instrument and its monitor: writes files, and registers each in the table, until SIGTERM."""

from __future__ import annotations

import argparse
import hashlib
import os
import signal
import threading
from datetime import UTC, datetime
from pathlib import Path

import pymysql

TABLE = os.environ.get("FILES_TABLE") or "pysmurf_files"
SLOTS = 4
ACTIONS = (("take_iv", 20_000), ("take_noise", 60_000), ("tracking_setup", 300_000))


def write(directory: Path, now: datetime, action: str, slot: int, size: int) -> list[dict[str, object]]:
    """Writes the files of one action of one slot, data and a plot. Returns their rows."""
    seconds = int(now.timestamp())
    rows: list[dict[str, object]] = []
    for name, plot in ((f"{seconds}_{action}.npy", 0), (f"{seconds}_{action}.png", 1)):
        path = (
            directory
            / str(seconds)[:5]
            / f"crate1slot{slot}"
            / f"{seconds}_{action}"
            / ("plots" if plot else "outputs")
            / name
        )
        content = os.urandom(size)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        rows.append(
            {
                "path": str(path),
                "action": action,
                "timestamp": now.strftime("%Y-%m-%d %H:%M:%S"),
                "action_timestamp": seconds,
                "format": path.suffix[1:],
                "plot": plot,
                "site": "demo",
                "pub_id": f"crate1slot{slot}",
                "script_id": "demo",
                "instance_id": "pysmurf-monitor",
                "copied": 0,
                "failed_copy_attempts": 0,
                "md5sum": hashlib.md5(content).digest(),
                "pysmurf_version": "demo",
                "socs_version": "demo",
            }
        )
    return rows


def register(rows: list[dict[str, object]]) -> None:
    """Inserts rows as the monitor does: on a new connection, in one transaction."""
    connection = pymysql.connect(
        host=os.environ["MYSQL_HOST"],
        port=int(os.environ.get("MYSQL_PORT", "3306")),
        database=os.environ["MYSQL_DATABASE"],
        user=os.environ["MYSQL_USER"],
        password=Path(os.environ["MYSQL_PASSWORD_FILE"]).read_text().strip(),
    )
    with connection, connection.cursor() as cursor:
        for row in rows:
            marks = ", ".join(["%s"] * len(row))
            columns = ", ".join(f"`{name}`" for name in row)
            cursor.execute(f"INSERT INTO {TABLE} ({columns}) VALUES ({marks})", list(row.values()))
        connection.commit()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, required=True, help="where the files are written")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two actions")
    parser.add_argument("--actions", type=int, default=0, help="number of actions after which it ends; 0: never")
    given = parser.parse_args()
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    done = 0
    while not stopping.is_set():
        action, size = ACTIONS[done % len(ACTIONS)]
        now = datetime.now(UTC)
        rows = [row for slot in range(SLOTS) for row in write(given.directory, now, action, slot, size)]
        try:
            register(rows)
        except pymysql.MySQLError as error:
            print(f"not registered: {error}", flush=True)
        else:
            print(f"{action}: {len(rows)} files", flush=True)
        done += 1
        if done == given.actions:
            break
        stopping.wait(given.every)


if __name__ == "__main__":
    main()
