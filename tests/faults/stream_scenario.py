"""A fault of the stream: a fast service, and assertions on all files and reports before, during and after the fault."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pymysql
from private_site import PrivateSite, SourceFile
from prometheus_client.parser import text_string_to_metric_families
from services import Service
from waiting import PATIENCE, eventually, eventually_or_not

from cdc_archiver.database.source_locks import LockTiming
from cdc_archiver.events.binlog_stream import BinlogStream, StreamTiming
from cdc_archiver.events.interval_set import IntervalSet
from cdc_archiver.sandbox import DatabaseServer

QUICK_TIMING = StreamTiming(
    heartbeat=1.0, first_retry=0.05, last_retry=0.5, first_ask=0.2, last_ask=0.5, settle=0.3, look=0.5
)
"""As the service's own, but faster: so that a test is soon over."""
TIMING_WITHOUT_CHECKS = StreamTiming(
    heartbeat=1.0, first_retry=0.05, last_retry=0.5, first_ask=0.2, last_ask=0.5, settle=0.3, look=600.0
)
"""As QUICK_TIMING, but it does not look around in between: for what the stream itself must notice."""
QUICK_LOCK_TIMING = LockTiming(session_limit=9, check_interval=1.0, answer_limit=3.0, try_interval=0.2)

LINK_OR_LOCK: tuple[dict[str, int], ...] = ({"link": 1}, {})
"""Reconnects after every connection broke: where the loss of the lock is noticed first, the stream is closed for it and not
counted."""

FORGET_THE_LOG = {"mysql": "RESET BINARY LOGS AND GTIDS", "mariadb": "RESET MASTER"}


@dataclass(frozen=True)
class ReportedState:
    """The state of the service as reported by its pages and metrics.

    Attributes:
        mode: the modes that the metric names; None for any.
    """

    ready: int
    state: str
    healthy: int
    health: str
    connected: float
    mode: str | None
    streaming: bool


@dataclass
class StreamScenario:
    """One fault, and the files registered before, during and after it.

    Attributes:
        files: by the id of the row.
    """

    stage: PrivateSite
    service: Service
    files: dict[int, SourceFile] = field(default_factory=dict)
    _written: int = 0

    def new_files(self, count: int = 1) -> list[SourceFile]:
        """Creates files without registering them."""
        first, self._written = self._written, self._written + count
        return [self.stage.file(f"f{number:04}.npy") for number in range(first, self._written)]

    def register(self, count: int = 1) -> list[int]:
        """Registers new files in one INSERT; returns their ids."""
        files = self.new_files(count)
        return self.remember(self.stage.register(*files), files)

    def remember(self, ids: list[int], files: list[SourceFile]) -> list[int]:
        """Adds files that were registered in another way."""
        self.files |= dict(zip(ids, files, strict=True))
        return ids

    def arrives_by_stream(self, count: int = 1) -> None:
        """Registers files, and asserts that the stream delivers them and that they are archived.

        It repeats this where a new stream was opened meanwhile, as after a lost lock: the sweep found those files.
        """
        while True:
            stream, reconnects = self._stream(), self.reconnects()
            ids = self.register(count)
            self.stage.wait_archived(*ids)

            def another_stream(before: object = stream, counted: object = reconnects) -> bool:
                return self._stream() is not before or self.reconnects() != counted

            eventually(lambda: self.delivered(ids) == set(ids) or another_stream(), f"the stream delivers {ids}")  # noqa: B023
            if self.delivered(ids) == set(ids):
                return

    def was_delivered(self, ids: list[int]) -> None:
        """Asserts that the stream delivers these rows."""
        eventually(lambda: self.delivered(ids) == set(ids), f"the stream delivers {ids}")

    def delivered(self, ids: list[int]) -> set[int]:
        """The rows among these that the stream has delivered since it was opened."""
        stream = self._stream()
        delivered = stream.delivered if stream else IntervalSet()
        return {id_ for id_ in ids if id_ in delivered}

    def _stream(self) -> BinlogStream | None:
        pipeline = self.service.archiver._pipeline
        return pipeline.stream if pipeline else None

    def streams(self) -> None:
        """Waits until all pages and metrics report that the service streams."""
        self._wait_reported(ReportedState(200, "streaming", 200, "streaming", 1, "stream", True))
        assert self.service.get("/readyz")[1].count("\n") == 1

    def polls(self, why: str) -> None:
        """Waits until all pages and metrics report that the service polls, and why."""
        reason_in_status = lambda: why in (self.service.status()["stream"]["why"] or "")
        self._wait_reported(ReportedState(200, "polling", 200, "polling", 0, "polling", False), why, reason_in_status)

    def has_no_database(self, why: str = "") -> None:
        """Waits until all pages and metrics report that the service has no database, and why."""
        self._wait_reported(ReportedState(503, "no database", 200, "no database", 0, None, False), why)

    def _wait_reported(self, expected: ReportedState, why: str = "", also: Callable[[], bool] = lambda: True) -> None:
        seen: list[object] = []

        def as_expected() -> bool:
            reported, body = self._reported()
            seen[:] = reported, body
            # Without a database there may be a mode or none, depending on whether the loss of the lock is known by then.
            if expected.mode is None:
                reported = replace(reported, mode=None)
            return reported == expected and why in body and also()

        assert eventually_or_not(as_expected, PATIENCE), f"expected {expected} and {why!r}, seen {seen}"

    def _reported(self) -> tuple[ReportedState, str]:
        ready, body = self.service.get("/readyz")
        healthy, health = self.service.get("/healthz")
        modes = [mode for mode in ("stream", "polling", "standby") if self.service.metric("mode", mode=mode)]
        stream = self.service.status()["stream"]
        return ReportedState(
            ready,
            body.partition(":")[0].strip(),
            healthy,
            health.strip(),
            self.service.metric("stream_connected"),
            ", ".join(modes),
            bool(stream and stream["connected"]),
        ), body

    def reconnects(self) -> dict[str, int]:
        """Number of reconnects of the stream, by reason."""
        return {
            sample.labels["reason"]: int(sample.value)
            for family in text_string_to_metric_families(self.service.get("/metrics")[1])
            for sample in family.samples
            if sample.name == "cdc_archiver_stream_reconnects_total" and sample.value
        }

    def ends_well(self, *, missed: int = 0) -> None:
        """Asserts that every file is archived once, unchanged, and that no attempt has failed.

        Args:
            missed: number of rows that the stream could not deliver.
        """
        rows = self.stage.wait_archived(*self.files)
        assert [row.attempts for row in rows] == [0] * len(self.files)
        for file in self.files.values():
            assert self.stage.place(file).read_bytes() == file.content
        assert self.stage.archived_files() == sorted(self.stage.place(file) for file in self.files.values())
        for id_ in self.files:
            assert [entry["result"] in ("archived", "adopted") for entry in self.stage.history(id_)] == [True]
        assert self.service.metric("copies_total", result="charged") == 0
        assert self.service.metric("copies_total", result="refused") == 0
        assert self.service.metric("sweep_found_total", why="stream_missed") == missed


def connections_of(stage: PrivateSite, command: str = "") -> list[int]:
    """The service's connections, as the server lists them.

    Args:
        command: only those that run this command: ``Binlog Dump``.
    """
    rows = stage.sql("SHOW PROCESSLIST")
    return [int(row[0]) for row in rows if row[1] == stage.user and (not command or row[4] == command)]


def kill_connections(stage: PrivateSite, command: str = "") -> int:
    """Kills these; returns their number."""
    ids = connections_of(stage, command)
    for id_ in ids:
        try:
            stage.sql(f"KILL {id_}")
        except pymysql.OperationalError as error:
            if error.args[0] != 1094:  # it has ended by itself meanwhile
                raise
    return len(ids)


def copy_site(stage: PrivateSite, server: DatabaseServer, password: str, history: str) -> None:
    """Copies a site's database to another server, as a replica would have it."""
    there = stage.database
    server.execute(f"DROP DATABASE IF EXISTS {there}")
    server.execute(f"CREATE DATABASE {there}")
    server.create_archiver_user(stage.user, password, there, history=history)
    for (table,) in stage.sql("SHOW TABLES"):
        ((_, definition),) = stage.sql(f"SHOW CREATE TABLE {table}")
        server.execute(definition, database=there)
        for row in stage.sql(f"SELECT * FROM {table}"):
            values: list[Any] = list(row)
            server.execute(f"INSERT INTO {table} VALUES ({', '.join(['%s'] * len(values))})", values, database=there)
