"""Several readout servers at once: how the rate grows, and which resource limits it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from statistics import median
from typing import Final

from benchmarks.cases.base import Case, Contender, Figures
from benchmarks.measured_service import MeasuredService
from benchmarks.measurements import Aim, Measurement, Verdict
from benchmarks.proc_stats import busy_processors, disk_busy
from benchmarks.testbed import TARGET, BenchmarkSite
from cdc_archiver.sandbox import SshServer

_GROWS: Final = 1.1
"""Required growth of the rate from one number of sources to the next …"""
_BUSY: Final = 85.0
"""… or required utilisation of the processors or the disk before, in percent."""


def name_of(count: int) -> str:
    """The name of the contender with so many sources."""
    return "1 source" if count == 1 else f"{count} sources"


def growth(aim: Aim, counts: Sequence[int], measurements: Sequence[Measurement]) -> Verdict | None:
    """Whether the rate grows from each number of sources to the next until a limit of the machine is reached, and which limit.

    A step scores the greater of its growth and the utilisation before it, relative to the required ones; the verdict is the
    median round of the worst step.
    """
    steps = []
    for fewer, more in pairwise(sorted(counts)):
        rounds = []
        for number in sorted({one.round for one in measurements}):
            here = {one.contender: one.figures for one in measurements if one.round == number}
            if (before := here.get(name_of(fewer))) and (after := here.get(name_of(more))):
                busy = {
                    name: before[f"{name}_percent"][0] for name in ("disk", "processors") if f"{name}_percent" in before
                }
                rounds.append((after["rate"][0] / before["rate"][0], busy))
        if not rounds:
            return None
        medians = {name: median(busy.get(name, 0.0) for _, busy in rounds) for name in rounds[0][1]}
        limit = max(medians, key=lambda name: medians[name])
        worth = [max(ratio / _GROWS, max(busy.values()) / _BUSY) for ratio, busy in rounds]
        lines = f"{fewer} → {more}: × {median(ratio for ratio, _ in rounds):.2f}, {limit} {medians[limit]:.0f} % busy at {fewer}"
        steps.append((median(worth), worth, lines))
    if not steps:
        return None
    value, worth, _ = min(steps)
    return Verdict(aim, value, worth, "; ".join(lines for *_, lines in steps))


class Sources(Case):
    """Files of 20 kB from several servers. All contenders are ours.

    Each number of sources has its own service; services without a turn are idle.
    """

    name = "sources"
    plot = "rate"
    aims = (
        Aim(f"the rate grows × {_GROWS}, or the machine is {_BUSY:.0f} % busy; as parts of either", "", at_least=1.0),
    )
    sizes = ("sources", "source_files")

    @property
    def size(self) -> str:
        return f"{', '.join(map(str, self.scale.sources))} sources"

    @property
    def title(self) -> str:
        return f"{self.size} at once, {self.scale.source_files:,} files of 20 kB each"

    def prepare(self) -> None:
        most = max(self.scale.sources)
        self._servers = [self.testbed.sandbox.ssh]
        for number in range(1, most):
            server = SshServer(self.testbed.directory / f"ssh-{number}")
            self._servers.append(self.stack.enter_context(server))
        self._files = self.testbed.files("sources", self.scale.source_files, 20_000)
        self._services = {}
        for count in self.scale.sources:
            targets = [f"{TARGET}-{number}" for number in range(count)]
            site = self.testbed.site(targets=targets)
            self.stack.callback(site.close)
            service = MeasuredService(
                site, "--config", str(self._config(site)), target=None, **dict.fromkeys(site.ssh.settings)
            )
            self._services[count] = (site, self.stack.enter_context(service))
            # The first copy from each server waits for its connection.
            warm = self.testbed.files("warm", 1, 1000)
            for target in targets:
                site.wait_copied(site.register(warm, target=target))
            site.empty()

    def contenders(self) -> Mapping[str, Contender]:
        return {name_of(count): partial(self._measure, count) for count in sorted(self.scale.sources, reverse=True)}

    def verdicts(self, measurements: Sequence[Measurement]) -> list[Verdict]:
        verdict = growth(self.aims[0], self.scale.sources, measurements)
        return [verdict] if verdict else []

    def _config(self, site: BenchmarkSite) -> str:
        tables = []
        for target, server in zip(site.targets, self._servers, strict=False):
            values = {"name": target, "target": [target], **server.settings}
            lines = [
                f"{name} = {json.dumps(value if isinstance(value, int | list) else str(value))}"
                for name, value in values.items()
            ]
            tables.append("\n".join(["[[sources]]", *lines]))
        path = site.directory / "sources.toml"
        path.write_text("\n\n".join(tables) + "\n")
        return str(path)

    def _measure(self, count: int) -> Figures:
        site, service = self._services[count]
        rows = []
        busy, waiting = busy_processors()
        disk, cpu = disk_busy(site.directory), service.cpu_seconds()
        began = time.monotonic()
        for target in site.targets:
            rows.append(site.register(self._files, target=target))
        done = site.wait_none_pending(rows[-1], service.copied)
        seconds = done - began
        busy, waiting = (after - before for after, before in zip(busy_processors(), (busy, waiting), strict=True))
        disk_after, cpu = disk_busy(site.directory), service.cpu_seconds() - cpu
        for each in rows:
            site.require_archived(each, self._files)
        site.empty()
        cores = os.cpu_count() or 1
        figures = {
            "rate": [len(self._files) * count / (done - rows[0].committed)],
            "processors_percent": [busy / seconds / cores * 100],
            "waiting_percent": [waiting / seconds / cores * 100],
            "python_percent": [cpu / seconds * 100],
        }
        if disk is not None and disk_after is not None:
            figures["disk_percent"] = [(disk_after - disk) / seconds * 100]
        return figures
