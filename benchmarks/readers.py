"""A program that reads the stream and counts rows: our stream, or the bare library; told what to do on its standard input.

It is a program of its own so that it can be stopped (SIGSTOP) while rows are written, and so that its processor time is its own.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

from pymysqlreplication import binlogstream
from pymysqlreplication.row_event import RowsEvent

from cdc_archiver.database import server as servers
from cdc_archiver.database.engine import Database
from cdc_archiver.events.binlog import BinlogStream, Pace
from cdc_archiver.events.reader import _EVENTS
from cdc_archiver.observe.metrics import Metrics
from cdc_archiver.settings import load

HEARTBEAT: Final = 60.0
"""Seconds; longer than the service's: while it is stopped, a reader hears nothing, and must not take the link for dead."""
_SILENCE: Final = 210.0
_LIBRARY: Final[Any] = binlogstream.BinLogStreamReader


@dataclass
class Count:
    """Rows seen, and when."""

    wanted: int
    total: int = 0
    seen: list[tuple[float, int]] = field(default_factory=list)
    cpu_at_first: float = 0.0

    def restart(self) -> None:
        """Processor time counts from now on."""
        self.cpu_at_first = time.process_time()

    def add(self, rows: int) -> None:
        """So many rows more; ends the program with the last one."""
        self.total += rows
        self.seen.append((time.monotonic(), self.total))
        if self.total >= self.wanted:
            self.end()
        if len(self.seen) == 1:
            say("first")

    def end(self) -> NoReturn:
        """Says what was seen."""
        say({"seen": self.seen, "cpu": time.process_time() - self.cpu_at_first})
        sys.stdout.flush()
        raise SystemExit


def say(what: object) -> None:
    """One line for whoever started us."""
    print(json.dumps(what), flush=True)


class Counting:
    """Our stream's listener."""

    def __init__(self, count: Count) -> None:
        self._count = count
        self.done = threading.Event()

    def on_ids(self, ids: Sequence[int]) -> None:
        """Rows of our table."""
        try:
            self._count.add(len(ids))
        except SystemExit:
            self.done.set()

    def on_anchor(self) -> None:
        """It reads from now on."""
        self._count.restart()
        say("ready")

    def on_gap(self, why: str) -> None:
        """Something was not read."""
        raise RuntimeError(why)

    def on_lost(self, reason: str) -> None:
        """The stream has ended."""
        raise RuntimeError(reason)

    def on_unavailable(self, why: str) -> None:
        """There is no stream."""
        raise RuntimeError(why)


def read_ours(settings: dict[str, Any], table: str, count: Count) -> None:
    """The service's stream, up to where it hands ids over."""
    listener = Counting(count)
    stream = BinlogStream(
        Database(load(settings, environment={})),
        table,
        listener,
        Metrics(),
        # Looks, one in half a minute, that came due while it was stopped would all be paid for in the second that is timed.
        pace=Pace(heartbeat=HEARTBEAT, settle=0.1, look=3600.0),
    )
    stream.on_end = lambda part: listener.done.set()
    stream.start()
    listener.done.wait()
    if stream.failure is not None:
        raise stream.failure
    stream.stop()
    stream.join(5.0)


def read_bare(settings: dict[str, Any], table: str, count: Count) -> None:
    """The library with the same filters, in a loop that touches the rows and does nothing else."""
    database = Database(load(settings, environment={}))
    with database.connect() as connection:
        start = servers.position(connection, servers.identify(connection))
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
    count.restart()
    say("ready")
    for event in reader:
        if isinstance(event, RowsEvent):
            count.add(len(event.rows))


def main() -> None:
    """Reads its orders, then the stream."""
    orders = json.loads(sys.stdin.readline())
    count = Count(orders["rows"])
    # Who was stopped and goes on begins to count then: what a start costs is no part of what a row costs.
    signal.signal(signal.SIGCONT, lambda number, frame: count.restart())
    {"ours": read_ours, "bare": read_bare}[orders["way"]](orders["settings"], orders["table"], count)


if __name__ == "__main__":
    main()
