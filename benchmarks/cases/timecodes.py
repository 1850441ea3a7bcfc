"""Timecodes: the cost of deciding about them after each sweep, in a large archive."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final

from benchmarks.cases.base import Case, Contender, Figures
from benchmarks.measured_service import MeasuredService
from benchmarks.measurements import OURS, Aim
from benchmarks.testbed import TABLE, BenchmarkSite
from cdc_archiver.database import schema, side_tables
from cdc_archiver.sandbox import SandboxError

_FIRST: Final = 15_000
_SWEEP_EVERY: Final = 0.3
"""Seconds."""
_LOOK_EVERY: Final = 0.25
_PATIENCE: Final = 300.0
"""Seconds for the pass over the table at the start."""
_COLUMNS: Final = (
    "path, action, timestamp, action_timestamp, plot, pub_id, instance_id, copied, failed_copy_attempts, md5sum"
)


def fill(site: BenchmarkSite, timecodes: int, rows: int) -> None:
    """Fills a site's table with archived rows of so many timecodes; past the binary log."""
    each = rows // timecodes
    site.sql("SET SESSION sql_log_bin = 0")
    site.sql(f"DROP INDEX {schema.INDEX} ON {TABLE}")
    site.sql("CREATE TABLE numbers (n INT PRIMARY KEY)")
    site.sql("INSERT INTO numbers VALUES (0)")
    while (there := site.sql("SELECT COUNT(*) FROM numbers")[0][0]) < each:
        site.sql(f"INSERT INTO numbers SELECT n + {there} FROM numbers WHERE n + {there} < {each}")
    for timecode in range(_FIRST, _FIRST + timecodes):
        directory = f"{site.data_dir}/{timecode}/crate1slot2/{timecode}00000_bench/outputs"
        site.sql(
            f"INSERT INTO {TABLE} ({_COLUMNS}) SELECT CONCAT(%s, '/', n, '.npy'), 'bench', "
            f"'1970-01-01' + INTERVAL {timecode}00000 SECOND, {timecode}00000, 0, 'crate1slot2', %s, 1, 0, "
            "UNHEX(REPEAT('ab', 16)) FROM numbers ORDER BY n",
            (directory, site.targets[0]),
        )
        site.sql("COMMIT")
    site.sql("DROP TABLE numbers")
    site.sql(schema.index_statement(TABLE))
    site.sql(f"ANALYZE TABLE {TABLE}")
    site.sql("SET SESSION sql_log_bin = 1")


class Timecodes(Case):
    """The look after a sweep that finds nothing, by the service's own histogram."""

    name = "timecodes"
    aims = (Aim("a look at all timecodes takes milliseconds", "look_ms", at_most=50.0, unit="ms"),)
    plot = "look_ms"
    sizes = ("timecode_rows",)

    @property
    def size(self) -> str:
        timecodes, rows = self.scale.timecode_rows
        return f"{timecodes:,} timecodes, {rows:,} rows"

    @property
    def title(self) -> str:
        return f"the decision about {self.size} after a sweep that finds nothing"

    @property
    def rounds(self) -> int:
        return self.scale.rounds_without_baseline

    def prepare(self) -> None:
        timecodes, rows = self.scale.timecode_rows
        site = self.testbed.site()
        self.stack.callback(site.close)
        for table in side_tables.ALL:
            site.sql(schema.table_statement(table))
            site.sql(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table.name} TO '{site.user}'@'%'")
        fill(site, timecodes, rows)
        for timecode in range(_FIRST, _FIRST + timecodes):
            (site.data_dir / str(timecode)).mkdir()
        self._service = self.stack.enter_context(MeasuredService(site, sweep_interval=f"{_SWEEP_EVERY}s"))
        deadline = time.monotonic() + _PATIENCE
        while (known := self._service.metrics().total("timecodes", state="complete")) < timecodes:
            if time.monotonic() > deadline:
                raise SandboxError(f"{known:.0f} of {timecodes} timecodes are known; {self._service.log_excerpt()}")
            time.sleep(_LOOK_EVERY)

    def contenders(self) -> Mapping[str, Contender]:
        return {OURS: self._looks}

    def _looks(self) -> Figures:
        """The mean of the looks of some seconds."""
        before, began = self._service.metrics(), time.monotonic()
        count = total = 0.0
        while count < 2 or time.monotonic() < began + self.scale.sweep_seconds:
            time.sleep(_LOOK_EVERY)
            now = self._service.metrics()
            count, total = (
                now.total(f"timecode_look_duration_seconds_{what}")
                - before.total(f"timecode_look_duration_seconds_{what}")
                for what in ("count", "sum")
            )
        return {"look_ms": [total / count * 1000]}
