"""An idle service: how soon one file is archived, and what the service costs while it has nothing to do."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Mapping
from statistics import median
from typing import Final

from benchmarks.baselines import BareRsync
from benchmarks.cases.base import Case, Contender, Figures
from benchmarks.measured_service import MeasuredService
from benchmarks.measurements import AGAINST, OURS, Aim
from cdc_archiver.database import history

_PAUSE = (0.02, 0.08)
"""Seconds between two files: random, so that they do not synchronise with a timer."""

_IMPORTS: Final = """
import cdc_archiver.cli, cdc_archiver.service.supervisor, uvicorn.protocols.http.h11_impl, uvicorn.lifespan.on
from pathlib import Path
pages = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:"))
print(int(pages.split()[1]) * 1024 / 1e6)
"""


class Idle(Case):
    """From COMMIT of one row until it is seen copied, against one rsync of that file and its fsync."""

    name = "idle"
    aims = (
        Aim(
            "p50: COMMIT to copied = 1, against the median of a warm rsync and fsync",
            "latency_ms",
            "rsync",
            at_most=1.5,
        ),
        Aim("p99 of it, against that median", "latency_ms", "rsync", part=99, at_most=3.0),
    )
    against = (Aim("p50 against the other build's", "latency_ms", AGAINST, at_most=1),)
    plot = "latency_ms"
    sizes = ()  # always one file

    @property
    def size(self) -> str:
        return f"{self.scale.idle_files} files a round"

    @property
    def title(self) -> str:
        return f"one file of 20 kB while idle, {self.scale.idle_files} times"

    def prepare(self) -> None:
        self._files = self.testbed.files("idle", self.scale.idle_files, 20_000)
        self._site = self.testbed.site()
        self.stack.callback(self._site.close)
        self._bare = BareRsync(self._site)
        self.stack.enter_context(self._bare.warm())
        self._service = self.stack.enter_context(MeasuredService(self._site, build=self.build))
        # The first copy of each waits for its connection.
        self._site.wait_copied(self._site.register(self._files[:1]))
        self._rsync()
        self._pause = random.Random(1)

    def contenders(self) -> Mapping[str, Contender]:
        return {OURS: self._ours, "rsync": self._rsync}

    def _ours(self) -> Figures:
        latencies, ids, archived = [], [], []
        used = self._service.cpu_seconds()
        for file in self._files:
            rows = self._site.register([file])
            (seen,) = self._site.wait_copied(rows).values()
            latencies.append((seen - rows.committed) * 1000)
            ids.append(rows.ids[0])
            archived.append((rows, file))
            time.sleep(self._pause.uniform(*_PAUSE))
        used = self._service.cpu_seconds() - used
        for rows, file in archived:
            self._site.require_archived(rows, [file])
        self._site.empty()
        return {"latency_ms": latencies, "cpu_ms": [used * 1000 / len(ids)], **self._steps(ids, latencies)}

    def _steps(self, ids: list[int], latencies: list[float]) -> Figures:
        """The steps of that time, as the service recorded them, in whole milliseconds; the rest is COMMIT to event and
        the write-back."""
        steps = ("waited_ms", "transferred_ms", "verified_ms", "placed_ms")
        rows = self._site.sql(
            f"SELECT {', '.join(steps)} FROM {history.NAME} WHERE file_id BETWEEN %s AND %s ORDER BY id",
            (ids[0], ids[-1]),
        )
        rest = [latency - sum(row) for latency, row in zip(latencies, rows, strict=True)]
        medians = {f"of_it_{step}": [median(float(row[number]) for row in rows)] for number, step in enumerate(steps)}
        return {**medians, "of_it_rest_ms": [median(rest)]}

    def _rsync(self) -> Figures:
        latencies = []
        to = self._site.directory / "bare"
        for number, file in enumerate(self._files):
            # A directory for each, all put aside at the end, so that the next fsync does not include that work.
            place = to / str(number)
            place.mkdir(parents=True)
            latencies.append(self._bare.one(file.path, place) * 1000)
        self.testbed.put_aside(to)
        self.testbed.settle()
        return {"latency_ms": latencies}


class Rest(Case):
    """Processor time and memory of an idle service, against those of a Python that has only imported it."""

    name = "rest"
    aims = (
        Aim("processor time while idle, of one core", "cpu_percent", at_most=0.5, unit="%"),
        Aim("memory above that of its imports", "above_imports_mb", at_most=25.0, unit="MB"),
    )
    plot = "cpu_percent"
    sizes = ("rest_seconds",)

    @property
    def size(self) -> str:
        return f"{self.scale.rest_seconds:g} s"

    @property
    def title(self) -> str:
        return f"idle for {self.size}"

    @property
    def rounds(self) -> int:
        return self.scale.rounds_without_baseline

    def prepare(self) -> None:
        site = self.testbed.site()
        self.stack.callback(site.close)
        self._service = self.stack.enter_context(MeasuredService(site))
        site.wait_copied(site.register(self.testbed.files("warm", 1, 1000)))
        time.sleep(1.0)  # the work of the start ends

    def contenders(self) -> Mapping[str, Contender]:
        return {OURS: self._ours}

    def _ours(self) -> Figures:
        self._service.require_streaming()
        used, began = self._service.cpu_seconds_with_children(), time.monotonic()
        time.sleep(self.scale.rest_seconds)
        used, seconds = self._service.cpu_seconds_with_children() - used, time.monotonic() - began
        self._service.require_streaming()
        resident, imports = self._service.resident_mb(), self._imports_mb()
        return {
            "cpu_percent": [used / seconds * 100],
            "resident_mb": [resident],
            "imports_mb": [imports],
            "above_imports_mb": [resident - imports],
        }

    def _imports_mb(self) -> float:
        done = subprocess.run([sys.executable, "-c", _IMPORTS], check=True, capture_output=True, text=True)
        return float(done.stdout)
