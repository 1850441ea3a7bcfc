"""A mixed night: small files come in bursts while large ones stream."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping

from benchmarks.cases.base import Case, Contender, Figures
from benchmarks.measured_service import MeasuredService
from benchmarks.measurements import OURS, Aim
from benchmarks.scale import MB
from benchmarks.testbed import PATIENCE, Registered
from cdc_archiver.sandbox import SandboxError

_BURST = 5
_EVERY = 0.25
"""Seconds from one burst to the next, however late the previous one is: an instrument does not wait."""
_LOOK_EVERY = 0.002
_SINGLES = 10
_PAUSE = (0.02, 0.08)
"""Seconds between two single files, as in the case ``idle``."""


class Night(Case):
    """Latency of small files while large ones are copied, against that of a single file while the service is idle."""

    name = "night"
    aims = (
        Aim("small files' p50 beside large ones, against single ones while idle", "latency_ms", "idle", at_most=3.0),
    )
    plot = "latency_ms"
    sizes = ("night",)

    @property
    def size(self) -> str:
        count, each = self.scale.night
        return f"{count} × {each // MB:,} MB"

    @property
    def title(self) -> str:
        return f"bursts of {_BURST} files of 20 kB every {_EVERY:g} s while {self.size} stream"

    def prepare(self) -> None:
        self._large = self.testbed.files("night", *self.scale.night)
        self.stack.callback(self.testbed.forget, self._large)
        self._small = self.testbed.files("night-small", _SINGLES, 20_000)
        self._site = self.testbed.site()
        self.stack.callback(self._site.close)
        self._service = self.stack.enter_context(MeasuredService(self._site, small_limit=self.scale.small_limit))
        self._site.wait_copied(self._site.register(self._small[:1]))
        self._site.empty()
        self._pause = random.Random(1)

    def contenders(self) -> Mapping[str, Contender]:
        return {OURS: self._ours, "idle": self._idle}

    def _ours(self) -> Figures:
        large = self._site.register(self._large)
        bursts: list[Registered] = []
        committed: dict[int, float] = {}
        seen: dict[int, float] = {}
        waiting = set(large.ids)
        while waiting:
            now = time.monotonic()
            if not seen.keys() >= set(large.ids) and now >= large.committed + len(bursts) * _EVERY:
                rows = self._site.register(self._small[:_BURST])
                bursts.append(rows)
                committed.update(dict.fromkeys(rows.ids, rows.committed))
                waiting.update(rows.ids)
            found = self._site.copied_among(waiting)
            now = time.monotonic()
            seen.update(dict.fromkeys(found, now))
            waiting -= found
            if now > max(seen.values(), default=large.committed) + PATIENCE:
                raise SandboxError(f"nothing was archived for {PATIENCE:.0f} s")
            time.sleep(_LOOK_EVERY)
        for rows in bursts:
            self._site.require_archived(rows, self._small[:_BURST])
        self._site.require_archived(large, self._large)
        self._site.empty()
        seconds = max(seen[number] for number in large.ids) - large.committed
        return {
            "latency_ms": [(seen[number] - began) * 1000 for number, began in committed.items()],
            "large_mb_rate": [sum(file.size for file in self._large) / MB / seconds],
        }

    def _idle(self) -> Figures:
        latencies = []
        for file in self._small:
            rows = self._site.register([file])
            (seen,) = self._site.wait_copied(rows).values()
            latencies.append((seen - rows.committed) * 1000)
            time.sleep(self._pause.uniform(*_PAUSE))
        self._site.empty()
        return {"latency_ms": latencies}
