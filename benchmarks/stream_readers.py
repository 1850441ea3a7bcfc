"""A program that reads the stream and counts rows, with our stream or with the bare library; its orders come on standard input.

It is a separate process so that it reads nothing while rows are written, and so that its processor time can be measured.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from pymysqlreplication import binlogstream
from pymysqlreplication.row_event import RowsEvent

from benchmarks.measurements import OURS
from cdc_archiver.database import server_features
from cdc_archiver.database.connections import Database
from cdc_archiver.events.binlog_stream import BinlogStream, StreamTiming
from cdc_archiver.events.event_reader import _EVENTS
from cdc_archiver.observe.metrics import Metrics
from cdc_archiver.settings import load

HEARTBEAT: Final = 60.0
"""Seconds; longer than the service's: a reader that waits for its turn must not consider the link dead."""
_SILENCE: Final = 210.0
_LIBRARY: Final[Any] = binlogstream.BinLogStreamReader


class RowCounter:
    """Counts rows with their times, and talks to the parent process.

    It sends "ready", then "first" once a row has come and the one-time work of a reader is over. In the reading thread it then
    waits for its orders: {"before": rows of its table written so far, "rows": rows to come}. After the last of these rows it
    sends its result.
    """

    def __init__(self) -> None:
        self.settled: Callable[[], bool] = lambda: True
        self.done = threading.Event()
        self._total = 0
        self._before = self._rows = 0
        self._seen: list[tuple[float, int]] = []
        self._cpu = 0.0

    def add(self, rows: int) -> None:
        """Adds so many rows."""
        self._total += rows
        if self._rows == 0:
            if not self.settled():
                return
            send("first")
            goal = json.loads(sys.stdin.readline())
            self._before, self._rows = goal["before"], goal["rows"]
            self._cpu = time.process_time()
        self._seen.append((time.monotonic(), self._total - self._before))
        if self._total >= self._before + self._rows:
            send({"seen": self._seen, "cpu": time.process_time() - self._cpu})
            self.done.set()


def send(what: object) -> None:
    """Sends one line to the parent process."""
    print(json.dumps(what), flush=True)


class CountingListener:
    """Listens to our stream."""

    def __init__(self, count: RowCounter) -> None:
        self._count = count

    def on_ids(self, ids: Sequence[int]) -> None:
        """Rows of our table."""
        self._count.add(len(ids))

    def on_anchor(self) -> None:
        """The stream is open."""
        send("ready")

    def on_gap(self, why: str) -> None:
        """Rows were skipped."""
        raise RuntimeError(why)

    def on_lost(self, reason: str, detail: str) -> None:
        """The stream has ended."""
        raise RuntimeError(reason)

    def on_unavailable(self, why: str) -> None:
        """There is no stream."""
        raise RuntimeError(why)


def read_ours(settings: dict[str, Any], table: str, count: RowCounter, look: float) -> None:
    """Reads with the service's stream, up to the hand-over of ids.

    Args:
        look: seconds between two checks of the stream, which are made in the reading thread.
    """
    stream = BinlogStream(
        Database(load(settings, environment={})),
        table,
        CountingListener(count),
        Metrics(),
        timing=StreamTiming(heartbeat=HEARTBEAT, settle=0.1, look=look),
    )
    count.settled = lambda: stream.anchor_max_id is not None  # its first check is over
    stream.on_end = lambda part: count.done.set()
    stream.start()
    count.done.wait()
    if stream.failure is not None:
        raise stream.failure
    stream.stop()
    stream.join(5.0)


def read_bare(settings: dict[str, Any], table: str, count: RowCounter) -> None:
    """Reads with the library and the same filters, in a loop that only counts the rows."""
    database = Database(load(settings, environment={}))
    with database.connect() as connection:
        start = server_features.position(connection, server_features.identify(connection))
    reader = _LIBRARY(
        connection_settings={**database.connection_settings(), "read_timeout": _SILENCE},
        server_id=4_000_000_001,
        is_mariadb=False,
        resume_stream=True,
        log_file=start.file,
        log_pos=start.offset,
        blocking=True,
        slave_heartbeat=HEARTBEAT,
        only_events=list(_EVENTS),
        filter_non_implemented_events=False,
        only_schemas=[database.name],
        only_tables=[table],
        freeze_schema=True,
        ignore_decode_errors=True,
        enable_logging=False,
    )
    reader.fetchone()
    send("ready")
    for event in reader:
        if isinstance(event, RowsEvent):
            count.add(len(event.rows))
            if count.done.is_set():
                return


def main() -> None:
    """Reads its orders, then the stream."""
    orders = json.loads(sys.stdin.readline())
    settings, table = orders["settings"], orders["table"]
    if orders["way"] == OURS:
        read_ours(settings, table, RowCounter(), orders["look"])
    else:
        read_bare(settings, table, RowCounter())


if __name__ == "__main__":
    main()
