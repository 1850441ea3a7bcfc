"""One file at a time, while nothing else goes on: how soon it is archived."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from statistics import median

from benchmarks.cases.base import Case, Figures, Way
from benchmarks.figures import OURS, Aim
from benchmarks.program import Program
from benchmarks.rivals import Bare
from cdc_archiver.database import history

_PAUSE = (0.02, 0.08)
"""Seconds between two files: at random, so that they keep no step with anybody's timer."""


class Idle(Case):
    """COMMIT of one row until it is seen to be copied, beside one rsync of that file and its fsync."""

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
    plot = "latency_ms"
    sizes = ()  # it is one file each time

    @property
    def size(self) -> str:
        return f"{self.scale.idle_files} files a round"

    @property
    def title(self) -> str:
        return f"one file of 20 kB while idle, {self.scale.idle_files} times"

    def prepare(self) -> None:
        self._files = self.ground.files("idle", self.scale.idle_files, 20_000)
        self._site = self.ground.site()
        self.stack.callback(self._site.close)
        self._bare = Bare(self._site)
        self.stack.enter_context(self._bare.warm())
        self._program = self.stack.enter_context(Program(self._site))
        # The first copy waits for the connection, of either.
        self._site.wait_copied(self._site.register(self._files[:1]))
        self._rsync()
        self._pause = random.Random(1)

    def ways(self) -> Mapping[str, Way]:
        return {OURS: self._ours, "rsync": self._rsync}

    def _ours(self) -> Figures:
        latencies, ids, archived = [], [], []
        used = self._program.cpu_seconds()
        for file in self._files:
            rows = self._site.register([file])
            (seen,) = self._site.wait_copied(rows).values()
            latencies.append((seen - rows.committed) * 1000)
            ids.append(rows.ids[0])
            archived.append((rows, file))
            time.sleep(self._pause.uniform(*_PAUSE))
        used = self._program.cpu_seconds() - used
        for rows, file in archived:
            self._site.require_archived(rows, [file])
        self._site.empty()
        return {"latency_ms": latencies, "cpu_ms": [used * 1000 / len(ids)], **self._steps(ids, latencies)}

    def _steps(self, ids: list[int], latencies: list[float]) -> Figures:
        """Where the time went, as the service itself wrote it down, in whole milliseconds; the rest is COMMIT to event, and
        the write-back."""
        steps = ("waited_ms", "transferred_ms", "verified_ms", "placed_ms")
        rows = self._site.sql(
            f"SELECT {', '.join(steps)} FROM {history.NAME} WHERE file_id BETWEEN %s AND %s ORDER BY id",
            (ids[0], ids[-1]),
        )
        rest = [latency - sum(row) for latency, row in zip(latencies, rows, strict=True)]
        told = {f"of_it_{step}": [median(float(row[number]) for row in rows)] for number, step in enumerate(steps)}
        return {**told, "of_it_rest_ms": [median(rest)]}

    def _rsync(self) -> Figures:
        latencies = []
        to = self._site.directory / "bare"
        for number, file in enumerate(self._files):
            # A directory for each, and all of them put aside at the end: nothing of that is in the next one's fsync.
            place = to / str(number)
            place.mkdir(parents=True)
            latencies.append(self._bare.one(file.path, place) * 1000)
        self.ground.put_aside(to)
        self.ground.settle()
        return {"latency_ms": latencies}
