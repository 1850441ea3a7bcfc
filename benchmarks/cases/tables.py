"""Large tables: ten million archived rows, a million pending ones."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from benchmarks.cases.base import Case, Contender, Figures
from benchmarks.measured_service import MeasuredService
from benchmarks.measurements import OURS, Aim
from benchmarks.proc_stats import cpu_seconds
from benchmarks.testbed import PATIENCE, TABLE, BenchmarkSite
from cdc_archiver.database import history, schema
from cdc_archiver.sandbox import SandboxError

_BASE: Final = 1000
_SWEEP_EVERY: Final = 0.3
"""Seconds."""
_SWEEPS_LEAST: Final = 2
_SWEEPS_PATIENCE: Final = 6.0
"""Seconds of each of two looks; others may not be paused for 15."""
_LOOK_EVERY: Final = 0.25
_ROWS_OF_A_COMMIT: Final = 100_000
_WRITTEN: Final = "path, action, timestamp, plot, pub_id, instance_id, copied, failed_copy_attempts, md5sum"


def grow(site: BenchmarkSite, rows: int, report_progress: Callable[[str], object] = lambda _: None) -> None:
    """Copies a site's rows again and again, each time to another action, until there are so many; past the binary log.

    What comes from a small table and goes to the end of a large one does not depend on how large that is; nor does an index
    that is built once, when all rows are there.

    Args:
        site: its table has at least one and at most `rows` rows.
        rows: the final number.
        report_progress: called now and then with the progress.
    """
    ((there, stamp),) = site.sql(f"SELECT COUNT(*), MAX(action_timestamp) FROM {TABLE}")
    if there == rows:
        return
    site.sql("SET SESSION sql_log_bin = 0")
    site.sql(f"DROP INDEX {schema.INDEX} ON {TABLE}")
    site.sql(f"CREATE TABLE template (PRIMARY KEY (id)) AS SELECT id, {_WRITTEN} FROM {TABLE}")
    block = there
    while there < rows:
        report_progress(f"{there:,} of {rows:,} rows")
        until = min(rows, there + _ROWS_OF_A_COMMIT)
        site.sql("BEGIN")
        while there < until:
            stamp += 1
            more = min(block, until - there)
            site.sql(
                f"INSERT INTO {TABLE} ({_WRITTEN}, action_timestamp) "
                f"SELECT {_WRITTEN}, %s FROM template ORDER BY id LIMIT {more}",
                (stamp,),
            )
            there += more
        site.sql("COMMIT")
    report_progress(f"the index of {rows:,} rows")
    site.sql(schema.index_statement(TABLE))
    site.sql(f"ANALYZE TABLE {TABLE}")  # a site's server has had the time to learn how large it is
    site.sql("DROP TABLE template")
    site.sql("SET SESSION sql_log_bin = 1")


class Sweep(Case):
    """The cost of a sweep that finds nothing, by the size of the table."""

    name = "sweep"
    aims = (
        Aim("a sweep of the large table, against the small one", "sweep_ms", "small", at_most=2.0),
        Aim("a sweep of the large table takes milliseconds", "sweep_ms", at_most=50.0, unit="ms"),
        Aim(
            "processor time with its counts, service and server, against the small one", "cpu_ms", "small", at_most=2.0
        ),
    )
    plot = "sweep_ms"
    sizes = ("table_rows",)

    @property
    def size(self) -> str:
        return f"{max(self.scale.table_rows):,} rows"

    @property
    def title(self) -> str:
        small, large = self.scale.table_rows
        return f"a sweep that finds nothing, in {large:,} rows and in {small:,}"

    def prepare(self) -> None:
        self._services = {}
        for contender, rows in zip(("small", OURS), self.scale.table_rows, strict=True):
            site = self.testbed.site()
            self.stack.callback(site.close)
            site.register(self.testbed.files("rows", _BASE, 100), columns={"copied": 1})
            grow(site, rows, self.report_progress)
            self._services[contender] = self.stack.enter_context(
                MeasuredService(site, sweep_interval=f"{_SWEEP_EVERY}s")
            )

    def contenders(self) -> Mapping[str, Contender]:
        return {OURS: partial(self._sweeps, OURS), "small": partial(self._sweeps, "small")}

    def _sweeps(self, contender: str) -> Figures:
        """The mean of the sweeps of some seconds, as the service itself counts them; the counts of rows that follow each are not
        in that figure, but in the processor time, which is that of a window and hence of all that goes on in it."""
        service = self._services[contender]
        with contextlib.ExitStack() as stack:
            for other in self._services.values():
                if other is not service:
                    stack.enter_context(other.paused())  # both share one server
            # A sweep in whose midst it was paused itself has taken as long as that: the next one that ends is no figure.
            self._watch(service, 1, 0.0)
            used = self._cpu_seconds(service)
            count, total = self._watch(service, _SWEEPS_LEAST, self.scale.sweep_seconds)
            used = self._cpu_seconds(service) - used
        return {"sweep_ms": [total / count * 1000], "cpu_ms": [used / count * 1000]}

    def _watch(self, service: MeasuredService, least: int, seconds: float) -> tuple[float, float]:
        """Number of sweeps in so many seconds, or longer until there are `least`; and their duration in seconds."""
        before, began = service.metrics(), time.monotonic()
        count = total = 0.0
        while count < least or time.monotonic() < began + seconds:
            if time.monotonic() > began + _SWEEPS_PATIENCE:
                raise SandboxError(f"{count:.0f} sweeps were over after {_SWEEPS_PATIENCE:.0f} s")
            time.sleep(_LOOK_EVERY)
            now = service.metrics()
            count, total = (
                now.total(f"sweep_duration_seconds_{what}") - before.total(f"sweep_duration_seconds_{what}")
                for what in ("count", "sum")
            )
        return count, total

    def _cpu_seconds(self, service: MeasuredService) -> float:
        return service.cpu_seconds() + cpu_seconds(self.testbed.server.pid)


class Pending(Case):
    """The service starts with a million pending rows: time to the first file, and memory."""

    name = "pending"
    aims = (
        Aim("memory above that of a service with nothing to do", "above_idle_mb", at_most=30.0, unit="MB"),
        Aim("ready to the first file archived", "first_s", at_most=2.0, unit="s"),
    )
    plot = "resident_mb"
    sizes = ("pending_rows", "pending_seconds")

    @property
    def size(self) -> str:
        return f"{self.scale.pending_rows:,} rows"

    @property
    def title(self) -> str:
        return f"{self.size} pending at the start"

    @property
    def rounds(self) -> int:
        return self.scale.rounds_without_baseline

    def prepare(self) -> None:
        empty = self.testbed.site()
        self.stack.callback(empty.close)
        with MeasuredService(empty) as service:
            self._idle_mb = service.most_resident_mb()
        self._full = self.testbed.site()
        self.stack.callback(self._full.close)
        self._full.register(self.testbed.files("pending", _BASE, 2000))
        grow(self._full, self.scale.pending_rows, self.report_progress)

    def contenders(self) -> Mapping[str, Contender]:
        return {OURS: self._pending}

    def _pending(self) -> Figures:
        site = self._full
        before = self._archived()
        service = MeasuredService(site, drain_timeout=1)
        service.start()
        try:
            ready = time.monotonic()
            while self._archived() == before:
                if time.monotonic() - ready > PATIENCE:
                    raise SandboxError(f"no file was archived; {service.log_excerpt()}")
                time.sleep(0.005)
            first = time.monotonic() - ready
            time.sleep(self.scale.pending_seconds)
            resident, copied = service.most_resident_mb(), service.copied()
        finally:
            service.stop(20.0)
        site.empty()
        return {
            "resident_mb": [resident],
            "idle_mb": [self._idle_mb],
            "above_idle_mb": [resident - self._idle_mb],
            "first_s": [first],
            "rate": [copied / (first + self.scale.pending_seconds)],
        }

    def _archived(self) -> int:
        ((last,),) = self._full.sql(f"SELECT COALESCE(MAX(id), 0) FROM {history.NAME}")
        return int(last)
