"""A mixed night: small files come in bursts while large ones stream."""

from __future__ import annotations

import time
from collections.abc import Mapping

from benchmarks.cases.base import Case, Figures, Way
from benchmarks.figures import OURS, Aim
from benchmarks.program import Program
from benchmarks.scale import MB

_BURST = 5
_EVERY = 0.25
"""Seconds from one burst to the next."""
_BURSTS_MOST = 40


class Night(Case):
    """How long small files take beside large ones, and how long they take alone."""

    name = "night"
    aims = (
        Aim("small files' p50 beside large ones, against the same bursts alone", "latency_ms", "alone", at_most=3.0),
    )
    plot = "latency_ms"

    @property
    def title(self) -> str:
        count, size = self.scale.night
        return f"bursts of {_BURST} files of 20 kB while {count} of {size // MB:,} MB stream"

    def prepare(self) -> None:
        self._large = self.ground.files("night", *self.scale.night)
        self.stack.callback(self.ground.forget, self._large)
        self._small = self.ground.files("night-small", _BURST * _BURSTS_MOST, 20_000)
        self._site = self.ground.site()
        self.stack.callback(self._site.close)
        self._program = self.stack.enter_context(Program(self._site, small_limit=self.scale.small_limit))
        self._site.wait_copied(self._site.register(self._small[:1]))
        self._site.empty()
        self._bursts = 4

    def ways(self) -> Mapping[str, Way]:
        return {OURS: self._ours, "alone": self._alone}

    def _ours(self) -> Figures:
        began = time.monotonic()
        rows = self._site.register(self._large)
        latencies: list[float] = []
        while self._site.copied_among(rows.ids) != set(rows.ids) and len(latencies) < len(self._small):
            latencies += self._burst(len(latencies))
        self._site.wait_copied(rows)
        seconds = time.monotonic() - began
        self._bursts = max(1, len(latencies) // _BURST)
        self._site.empty()
        return {"latency_ms": latencies, "large_mb_rate": [sum(file.size for file in self._large) / MB / seconds]}

    def _alone(self) -> Figures:
        latencies: list[float] = []
        for _ in range(self._bursts):
            latencies += self._burst(len(latencies))
        self._site.empty()
        return {"latency_ms": latencies}

    def _burst(self, start: int) -> list[float]:
        began = time.monotonic()
        rows = self._site.register(self._small[start : start + _BURST])
        seen = self._site.wait_copied(rows)
        time.sleep(max(0.0, began + _EVERY - time.monotonic()))
        return [(at - rows.committed) * 1000 for at in seen.values()]
