"""The stream alone: rows of our table, a steady writer, and traffic that is nobody's business."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks.cases.base import Case, Figures, Way
from benchmarks.figures import OURS, Aim, percentile
from benchmarks.ground import TABLE, SourceFile
from cdc_archiver.sandbox import SandboxError

_PATIENCE = 120.0
_SETTLED_AFTER = 0.4
"""Seconds after which a reader has done what it does once, at its start and after the first row of its table."""


@dataclass(frozen=True)
class _Seen:
    """What a reader said at its end.

    Attributes:
        seen: when (monotonic clock) how many rows had been handed over.
        cpu: seconds of its processor time.
    """

    seen: list[tuple[float, int]]
    cpu: float


class _Reading:
    """A reader in a process of its own, following the stream."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def stop(self) -> None:
        """It reads nothing until :meth:`go`."""
        self._process.send_signal(signal.SIGSTOP)

    def go(self) -> float:
        """It goes on; when, on the monotonic clock."""
        began = time.monotonic()
        self._process.send_signal(signal.SIGCONT)
        return began

    def result(self) -> _Seen:
        """Waits for its end."""
        said, _ = self._process.communicate(timeout=_PATIENCE)
        if self._process.returncode != 0:
            raise SandboxError(f"a reader ended with status {self._process.returncode}")
        found = json.loads(said.splitlines()[-1])
        return _Seen([(at, total) for at, total in found["seen"]], found["cpu"])


class _Stream(Case):
    def prepare(self) -> None:
        self._site = self.ground.site()
        self.stack.callback(self._site.close)
        self._other = self.ground.server.connect(database=self._site.database, autocommit=False)
        self.stack.callback(self._other.close)
        # A reader that is stopped takes nothing from the server, which must not throw it out for that.
        self._site.sql("SET GLOBAL net_write_timeout = 600")
        # Of another target: nobody would copy them, and the stream cannot know.
        self._row = SourceFile(self.ground.folder / "nothing.npy", 0, b"\x00" * 16)

    def ways(self) -> Mapping[str, Way]:
        return {OURS: partial(self._measure, OURS), "bare": partial(self._measure, "bare")}

    @abstractmethod
    def _measure(self, way: str) -> Figures:
        """One turn of a reader."""

    @contextlib.contextmanager
    def _reader(self, way: str, rows: int) -> Iterator[_Reading]:
        """A reader that ends when it has seen so many rows, and one before them."""
        options = {name: value for name, value in self._site.options().items() if name.startswith("mysql_")}
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.readers"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=dict(os.environ),
            text=True,
        )
        try:
            assert process.stdin is not None
            orders = {"way": way, "rows": rows + 1, "table": TABLE, "settings": options}
            process.stdin.write(json.dumps(orders) + "\n")
            process.stdin.flush()
            self._hear(process, "ready")
            # What ours asks once, it asks between two events: the first row gives it the occasion.
            time.sleep(_SETTLED_AFTER)
            self._insert(1)
            self._hear(process, "first")
            time.sleep(_SETTLED_AFTER)
            yield _Reading(process)
        finally:
            process.kill()
            process.communicate()

    @staticmethod
    def _hear(process: subprocess.Popen[str], word: str) -> None:
        assert process.stdout is not None
        if json.loads(process.stdout.readline() or "null") != word:
            raise SandboxError(f"a reader ended before it was {word!r}")

    def _insert(self, count: int) -> None:
        """Rows of our table, one transaction for each thousand."""
        for start in range(0, count, 1000):
            self._site.register([self._row] * min(1000, count - start), target="somebody", columns={"copied": 1})


class StreamBurst(_Stream):
    """Rows that are there already are read as fast as can be."""

    name = "stream"
    aims = (Aim("ids handed over, against the bare reader", "rate", "bare", at_least=0.9),)
    plot = "rate"

    @property
    def title(self) -> str:
        return f"{self.scale.stream_rows:,} rows inserted at once"

    def _measure(self, way: str) -> Figures:
        rows = self.scale.stream_rows
        with self._reader(way, rows) as reader:
            reader.stop()
            self._insert(rows)
            began = reader.go()
            seen = reader.result()
        return {"rate": [rows / (seen.seen[-1][0] - began)], "cpu_us": [seen.cpu * 1e6 / rows]}


class Paced(_Stream):
    """A writer that commits 1,000 rows a second is never left behind."""

    name = "paced"
    aims = (
        Aim("COMMIT to hand-over beside a writer of 1,000 rows/s, p99", "lag_ms", part=99, at_most=100.0, unit="ms"),
    )
    plot = "lag_ms"

    @property
    def title(self) -> str:
        return f"a writer that commits 1,000 rows/s, for {self.scale.paced_seconds} s"

    def _measure(self, way: str) -> Figures:
        transactions, rows = self.scale.paced_seconds * 100, 10
        committed: list[float] = []
        with self._reader(way, transactions * rows) as reader:
            began = time.monotonic()
            for number in range(transactions):
                time.sleep(max(0.0, began + number / 100 - time.monotonic()))
                done = self._site.register([self._row] * rows, target="somebody", columns={"copied": 1})
                committed.append(done.committed)
            wrote = transactions * rows / (time.monotonic() - began)
            seen = iter(reader.result().seen)
        lags = []
        at, total = next(seen)
        for number, commit in enumerate(committed, 1):
            while total < number * rows + 1:
                at, total = next(seen)
            lags.append((at - commit) * 1000)  # below zero: it was told before COMMIT returned
        return {"lag_ms": lags, "writer_rate": [wrote], "worst_lag_ms": [percentile(lags, 100)]}


class Unrelated(_Stream):
    """Rows of other tables are passed over."""

    name = "unrelated"
    aims = (Aim("rows of other tables passed over, against the bare reader", "rate", "bare", at_least=0.95),)
    plot = "rate"

    @property
    def title(self) -> str:
        return f"{self.scale.unrelated_rows:,} rows in other tables"

    def prepare(self) -> None:
        super().prepare()
        self._site.sql(
            "CREATE TABLE feeds (id INT AUTO_INCREMENT PRIMARY KEY, at DATETIME, value DOUBLE, name VARCHAR(60))"
        )

    def _measure(self, way: str) -> Figures:
        rows = self.scale.unrelated_rows
        with self._reader(way, 1) as reader:
            reader.stop()
            self._write_others(rows)
            self._insert(1)  # the last: whoever sees it has passed all the others
            began = reader.go()
            seen = reader.result()
        return {"rate": [rows / (seen.seen[-1][0] - began)], "cpu_us": [seen.cpu * 1e6 / rows]}

    def _write_others(self, count: int) -> None:
        """Ten rows to a transaction, as a housekeeping feed writes them."""
        one = "('2026-01-01', 1.5, 'observatory.cryostat.feeds.temperatures.channel_01')"
        statement = f"INSERT INTO feeds (at, value, name) VALUES {', '.join([one] * 10)}"
        connection: Any = self._other
        # What is measured is the reading: the writer does not wait for its disk.
        ((flush, sync),) = self._site.sql("SELECT @@GLOBAL.innodb_flush_log_at_trx_commit, @@GLOBAL.sync_binlog")
        self._site.sql("SET GLOBAL innodb_flush_log_at_trx_commit = 0, GLOBAL sync_binlog = 0")
        try:
            with connection.cursor() as cursor:
                for _ in range(count // 10):
                    cursor.execute(statement)
                    connection.commit()
        finally:
            self._site.sql("SET GLOBAL innodb_flush_log_at_trx_commit = %s, GLOBAL sync_binlog = %s", (flush, sync))
