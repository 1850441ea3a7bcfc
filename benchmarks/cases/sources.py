"""Several readout servers at once: how the rate grows, and what is busy when it grows no more."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import partial

from benchmarks.cases.base import Case, Figures, Way
from benchmarks.figures import OURS, Aim
from benchmarks.ground import TARGET, Site, ssh_options
from benchmarks.processes import busy_processors, disk_busy
from benchmarks.program import Program
from cdc_archiver.sandbox import SshServer


class Sources(Case):
    """Files of 20 kB from 1, 2, 4 and 8 servers. The most sources are ours, the fewer its opponents."""

    name = "sources"
    plot = "rate"
    aims = (Aim("rate of all sources together, against the fewest", "rate", "fewest", at_least=1.0),)

    @property
    def title(self) -> str:
        return f"{', '.join(map(str, self.scale.sources))} sources at once, {self.scale.source_files:,} files of 20 kB each"

    def prepare(self) -> None:
        most = max(self.scale.sources)
        self._servers = [self.ground.sandbox.ssh]
        for number in range(1, most):
            server = SshServer(self.ground.folder / f"ssh-{number}")
            self._servers.append(self.stack.enter_context(server))
        self._files = self.ground.files("sources", self.scale.source_files, 20_000)
        self._programs = {}
        for count in self.scale.sources:
            targets = [f"{TARGET}-{number}" for number in range(count)]
            site = self.ground.site(targets=targets)
            self.stack.callback(site.close)
            program = Program(
                site, "--config", str(self._config(site)), target=None, **dict.fromkeys(ssh_options(site.ssh))
            )
            self._programs[count] = (site, self.stack.enter_context(program))

    def ways(self) -> Mapping[str, Way]:
        counts = sorted(self.scale.sources, reverse=True)
        names = [OURS, *(f"{count} sources" for count in counts[1:-1]), "fewest"]
        if len(counts) == 1:
            return {OURS: partial(self._measure, counts[0])}
        return {name: partial(self._measure, count) for name, count in zip(names, counts, strict=True)}

    def _config(self, site: Site) -> str:
        tables = []
        for target, server in zip(site.targets, self._servers, strict=False):
            values = {"name": target, "target": [target], **ssh_options(server)}
            words = [
                f"{name} = {json.dumps(value if isinstance(value, int | list) else str(value))}"
                for name, value in values.items()
            ]
            tables.append("\n".join(["[[sources]]", *words]))
        path = site.folder / "sources.toml"
        path.write_text("\n\n".join(tables) + "\n")
        return str(path)

    def _measure(self, count: int) -> Figures:
        site, program = self._programs[count]
        busy, waiting = busy_processors()
        disk, cpu = disk_busy(site.folder), program.cpu_seconds()
        rows = [site.register(self._files, target=target) for target in site.targets]
        seconds = site.wait_none_pending(program.copied) - rows[0].committed
        busy, waiting = (after - before for after, before in zip(busy_processors(), (busy, waiting), strict=True))
        disk, cpu = disk_busy(site.folder) - disk, program.cpu_seconds() - cpu
        for each in rows:
            site.require_archived(each, self._files)
        site.empty()
        cores = os.cpu_count() or 1
        return {
            "rate": [len(self._files) * count / seconds],
            "processors_percent": [busy / seconds / cores * 100],
            "waiting_percent": [waiting / seconds / cores * 100],
            "disk_percent": [disk / seconds * 100],
            "python_percent": [cpu / seconds * 100],
        }
