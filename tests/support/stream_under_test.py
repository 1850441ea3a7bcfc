"""A stream without a service around it, and a listener that records its calls."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence
from typing import Any

from files_table import TABLE
from private_database import PrivateDatabase
from stream_scenario import QUICK_TIMING
from waiting import eventually

from cdc_archiver.database import server_features
from cdc_archiver.database.server_features import Position
from cdc_archiver.events.binlog_stream import BinlogStream, StreamTiming
from cdc_archiver.observe.metrics import Metrics


class RecordingListener:
    """A listener that records its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.batches: list[list[int]] = []

    def on_ids(self, ids: Sequence[int]) -> None:
        self.batches.append(list(ids))

    def on_anchor(self) -> None:
        self.calls.append(("anchor", ""))

    def on_gap(self, why: str) -> None:
        self.calls.append(("gap", why))

    def on_lost(self, reason: str, detail: str) -> None:
        self.calls.append(("lost", reason))

    def on_unavailable(self, why: str) -> None:
        self.calls.append(("unavailable", why))

    @property
    def ids(self) -> list[int]:
        return [number for batch in self.batches for number in batch]

    def all(self, kind: str) -> list[str]:
        return [what for name, what in self.calls if name == kind]

    def await_anchors(self, count: int) -> None:
        eventually(lambda: len(self.all("anchor")) >= count, f"{count} anchors, heard {self.calls}", 30)

    def await_ids(self, ids: Sequence[int]) -> None:
        eventually(lambda: set(ids) <= set(self.ids), f"ids {ids} in {self.ids}, heard {self.calls}")

    def await_one(self, kind: str, words: str = "") -> str:
        return eventually(
            lambda: next((what for what in self.all(kind) if words in what), None) or "",
            f"{kind} with {words!r}, heard {self.calls}",
        )


class StreamUnderTest:
    """A stream, its listener and its metrics."""

    def __init__(self, world: PrivateDatabase, timing: StreamTiming = QUICK_TIMING, **options: Any) -> None:
        database = options.pop("database", None) or world.database()
        self.heard = RecordingListener()
        self.metrics = Metrics()
        self.stream = BinlogStream(
            database,
            TABLE,
            self.heard,
            self.metrics,
            timing=timing,
            rng=options.pop("rng", random.Random()),
            **options,
        )

    def metric(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"cdc_archiver_{name}", labels) or 0.0


@contextlib.contextmanager
def streaming(
    world: PrivateDatabase, timing: StreamTiming = QUICK_TIMING, *, anchored: bool = True, **options: Any
) -> Iterator[StreamUnderTest]:
    """An open stream, which must end without an error when it is stopped."""
    running = StreamUnderTest(world, timing, **options)
    running.stream.start()
    try:
        if anchored:
            running.heard.await_anchors(1)
        yield running
    finally:
        running.stream.stop()
        assert running.stream.join(5)
    assert running.stream.failure is None


def position(world: PrivateDatabase) -> Position:
    with world.connection() as connection:
        return server_features.position(connection, server_features.identify(connection))


def passed(running: StreamUnderTest, there: Position) -> bool:
    here = running.stream.position
    return here is not None and not here < there


def kill_dump_thread(world: PrivateDatabase) -> None:
    for row in world.sql("SHOW PROCESSLIST"):
        if row[1] == world.user and row[4] == "Binlog Dump":
            world.sql(f"KILL {row[0]}")
