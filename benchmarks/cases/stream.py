"""Only the stream: rows of our table, a steady writer, and traffic of other tables.

The readers of a round are started first, and wait. Then the rows are written, once; then each reader in turn reads the same
log.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import ClassVar, Final, Self

from benchmarks.cases.base import Case, Contender, Figures
from benchmarks.measurements import OURS, Aim
from benchmarks.testbed import TABLE, BenchmarkSite, SourceFile
from cdc_archiver.sandbox import SandboxError

_PATIENCE: Final = 120.0
_NUDGE_EVERY: Final = 0.05
_AT_ONCE: Final = 20_000
"""Rows of one transaction: more than the stream keeps before it hands ids over."""
_NEVER: Final = 3600.0
_COPIED: Final = (
    "path, action, timestamp, action_timestamp, plot, pub_id, instance_id, copied, failed_copy_attempts, md5sum"
)


@dataclass(frozen=True)
class _ReaderResult:
    """The result of a reader.

    Attributes:
        began: time of its order, on the monotonic clock.
        seen: times, each with the number of rows handed over by then.
        cpu: its processor time, in seconds.
    """

    began: float
    seen: list[tuple[float, int]]
    cpu: float


class _ReaderProcess:
    """A reader in its own process, inside a ``with`` block.

    Args:
        contender: ours or bare.
        look: seconds between two checks of our stream.
    """

    def __init__(self, site: BenchmarkSite, contender: str, look: float) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.stream_readers"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=dict(os.environ),
            text=True,
            start_new_session=True,  # Ctrl-C is not for it
        )
        settings = {name: value for name, value in site.options().items() if name.startswith("mysql_")}
        self._tell({"way": contender, "table": TABLE, "settings": settings, "look": look})
        self._began = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def receives(self, word: str, timeout: float = _PATIENCE) -> bool:
        """Whether it sends this word in time."""
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], timeout)[0]:
            return False
        if json.loads(self._process.stdout.readline() or "null") != word:
            raise SandboxError(f"a reader ended before it was {word!r}")
        return True

    def go(self, before: int, rows: int) -> None:
        """Orders it to read: first the earlier rows, then the measured ones."""
        self._began = time.monotonic()
        self._tell({"before": before, "rows": rows})

    def result(self) -> _ReaderResult:
        """Waits for its end."""
        said, _ = self._process.communicate(timeout=_PATIENCE)
        if self._process.returncode != 0:
            raise SandboxError(f"a reader ended with status {self._process.returncode}")
        found = json.loads(said.splitlines()[-1])
        return _ReaderResult(self._began, [(at, total) for at, total in found["seen"]], found["cpu"])

    def _tell(self, what: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()


class _Stream(Case):
    readers: ClassVar[Sequence[str]] = (OURS, "bare")
    look = _NEVER  # looks that came due while it waits would all be paid for in the second that is timed

    def prepare(self) -> None:
        self._site = self.testbed.site()
        self.stack.callback(self._site.close)
        # A reader that waits takes nothing from the server, which must not throw it out for that.
        self._site.sql("SET GLOBAL net_write_timeout = 600")
        # Of another target: no service copies them, and the stream does not know targets.
        self._row = SourceFile(self.testbed.directory / "nothing.npy", 0, b"\x00" * 16)
        self._site.register([self._row] * 1000, target="another-target", columns={"copied": 1})
        self._site.sql(f"CREATE TABLE template AS SELECT {_COPIED} FROM {TABLE}")
        self._round = self.stack.enter_context(contextlib.ExitStack())

    def contenders(self) -> Mapping[str, Contender]:
        return {contender: partial(self._measure, contender) for contender in self.readers}

    def begin_round(self) -> None:
        self._round.close()
        self._readers = {
            contender: self._round.enter_context(_ReaderProcess(self._site, contender, self.look))
            for contender in self.readers
        }
        for reader in self._readers.values():
            if not reader.receives("ready"):
                raise SandboxError("a reader is not ready")
        self._before = 0
        deadline = time.monotonic() + _PATIENCE
        for reader in self._readers.values():
            # What ours asks once, it asks between two events: rows give it the occasion.
            while not reader.receives("first", _NUDGE_EVERY):
                if time.monotonic() > deadline:
                    raise SandboxError("a reader sees no row")
                self._insert(1)
                self._before += 1
        with self._no_waiting_for_the_disk():
            self._write()

    @abstractmethod
    def _write(self) -> None:
        """What is read in the round."""

    @abstractmethod
    def _measure(self, contender: str) -> Figures:
        """One turn of a reader."""

    def _insert(self, count: int) -> None:
        """Rows of our table, in large transactions."""
        for start in range(0, count, _AT_ONCE):
            part = min(_AT_ONCE, count - start)
            self._site.sql(
                f"INSERT INTO {TABLE} ({_COPIED}) SELECT {_COPIED} FROM template "
                f"CROSS JOIN (SELECT 1 FROM template LIMIT {-(-part // 1000)}) AS times LIMIT {part}"
            )

    def _read(self, contender: str, rows: int, rows_of_table: int) -> Figures:
        """Figures of a reader that passes so many rows, some of them of its table."""
        reader = self._readers[contender]
        reader.go(self._before, rows_of_table)
        seen = reader.result()
        return {"rate": [rows / (seen.seen[-1][0] - seen.began)], "cpu_us": [seen.cpu * 1e6 / rows]}

    @contextlib.contextmanager
    def _no_waiting_for_the_disk(self) -> Iterator[None]:
        """Only reading is measured: the writer need not wait for its disk."""
        ((flush, sync),) = self._site.sql("SELECT @@GLOBAL.innodb_flush_log_at_trx_commit, @@GLOBAL.sync_binlog")
        self._site.sql("SET GLOBAL innodb_flush_log_at_trx_commit = 0, GLOBAL sync_binlog = 0")
        try:
            yield
        finally:
            self._site.sql("SET GLOBAL innodb_flush_log_at_trx_commit = %s, GLOBAL sync_binlog = %s", (flush, sync))


class StreamBurst(_Stream):
    """Existing rows are read as fast as possible."""

    name = "stream"
    aims = (Aim("ids handed over, against the bare reader", "rate", "bare", at_least=0.9),)
    plot = "rate"
    sizes = ("stream_rows",)

    @property
    def size(self) -> str:
        return f"{self.scale.stream_rows:,} rows"

    @property
    def title(self) -> str:
        return f"{self.size} inserted, {_AT_ONCE:,} to a transaction"

    def _write(self) -> None:
        self._insert(self.scale.stream_rows)

    def _measure(self, contender: str) -> Figures:
        return self._read(contender, self.scale.stream_rows, self.scale.stream_rows)


class Paced(_Stream):
    """A writer that commits 1,000 rows a second is never left behind."""

    name = "paced"
    aims = (
        Aim("COMMIT to hand-over beside a writer of 1,000 rows/s, the worst", "worst_lag_ms", at_most=100.0, unit="ms"),
        Aim("the same at the end, above twice that of the beginning", "grown_ms", at_most=5.0, unit="ms"),
        Aim("the writer's own rate: without it the above says nothing", "writer_rate", at_least=950.0, unit="/s"),
    )
    plot = "lag_ms"
    sizes = ("paced_seconds",)
    readers = (OURS,)
    look = 2.0  # fifteen times as often as the service, so that a turn has some

    @property
    def size(self) -> str:
        return f"{self.scale.paced_seconds:g} s"

    @property
    def title(self) -> str:
        return f"a writer that commits 1,000 rows/s, for {self.size}"

    @property
    def rounds(self) -> int:
        return self.scale.rounds_without_baseline

    def _write(self) -> None:
        """Nothing yet."""

    def _measure(self, contender: str) -> Figures:
        transactions, rows = round(self.scale.paced_seconds * 100), 10
        committed: list[float] = []
        reader = self._readers[contender]
        reader.go(self._before, transactions * rows)
        began = time.monotonic()
        for number in range(transactions):
            time.sleep(max(0.0, began + number / 100 - time.monotonic()))
            done = self._site.register([self._row] * rows, target="another-target", columns={"copied": 1})
            committed.append(done.committed)
        wrote = transactions * rows / (time.monotonic() - began)
        seen = iter(reader.result().seen)
        lags = []
        at, total = next(seen)
        for number, commit in enumerate(committed, 1):
            while total < number * rows:
                at, total = next(seen)
            lags.append((at - commit) * 1000)  # below zero: the event came before COMMIT returned
        tenth = max(1, len(lags) // 10)
        first, last = median(lags[:tenth]), median(lags[-tenth:])
        return {
            "lag_ms": lags,
            "writer_rate": [wrote],
            "worst_lag_ms": [max(lags)],
            "grown_ms": [last - 2 * max(first, 0.0)],
        }


class Unrelated(_Stream):
    """Rows of other tables are passed over."""

    name = "unrelated"
    aims = (Aim("rows of other tables passed over, against the bare reader", "rate", "bare", at_least=0.95),)
    plot = "rate"
    sizes = ("unrelated_rows",)

    @property
    def size(self) -> str:
        return f"{self.scale.unrelated_rows:,} rows"

    @property
    def title(self) -> str:
        return f"{self.size} in other tables, ten to a transaction"

    def prepare(self) -> None:
        super().prepare()
        self._site.sql(
            "CREATE TABLE feeds (id INT AUTO_INCREMENT PRIMARY KEY, at DATETIME, value DOUBLE, name VARCHAR(60))"
        )
        one = "('2026-01-01', 1.5, 'observatory.cryostat.feeds.temperatures.channel_01')"
        # Ten rows to a transaction, as a housekeeping feed writes them.
        self._site.sql(
            "CREATE PROCEDURE feed(transactions INT) WHILE transactions > 0 DO "
            f"INSERT INTO feeds (at, value, name) VALUES {', '.join([one] * 10)}; "
            "SET transactions = transactions - 1; END WHILE"
        )

    def _write(self) -> None:
        self._site.sql("CALL feed(%s)", (self.scale.unrelated_rows // 10,))
        self._insert(1)  # the last one: a reader that sees it has passed all others

    def _measure(self, contender: str) -> Figures:
        return self._read(contender, self.scale.unrelated_rows, 1)
