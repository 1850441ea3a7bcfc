"""Files registered at once while the service is idle: how many are archived in a second, and how the cost grows."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from typing import ClassVar

from benchmarks.baselines import BareRsync, BatchAgent, PollingAgent, cpu_of_children
from benchmarks.cases.base import Case, Contender, Figures
from benchmarks.measured_service import MeasuredService
from benchmarks.measurements import AGAINST, OURS, Aim
from benchmarks.proc_stats import busy_processors
from benchmarks.scale import MB
from benchmarks.testbed import SourceFile


class _Many(Case):
    """A burst through the service, and the same files with one ``rsync -a`` and one sync."""

    plot = "rate"
    bytes_each: int

    @property
    @abstractmethod
    def count(self) -> int:
        """Number of files."""

    @property
    def size(self) -> str:
        return f"{self.count:,} files"

    def prepare(self) -> None:
        self._files = self.testbed.files(self.name, self.count, self.bytes_each)
        self._site = self.testbed.site()
        self.stack.callback(self._site.close)
        self._bare = BareRsync(self._site)
        self._service = self.stack.enter_context(MeasuredService(self._site, build=self.build))
        self._site.wait_copied(self._site.register(self.testbed.files("warm", 1, 1000)))
        self._site.empty()

    def contenders(self) -> Mapping[str, Contender]:
        return {OURS: self._ours, "rsync": self._rsync}

    def _ours(self) -> Figures:
        python, with_children = self._service.cpu_seconds(), self._service.cpu_seconds_with_children()
        rows = self._site.register(self._files)
        machine, _ = busy_processors()
        seconds = self._site.wait_none_pending(rows, self._service.copied) - rows.committed
        machine = busy_processors()[0] - machine
        python = self._service.cpu_seconds() - python
        with_children = self._service.cpu_seconds_with_children() - with_children
        self._site.require_archived(rows, self._files)
        self._site.empty()
        each = 1e6 / len(self._files)
        return {
            "rate": [len(self._files) / seconds],
            "python_cpu_us": [python * each],
            "cpu_us": [with_children * each],
            "machine_cpu_us": [machine * each],
        }

    def _rsync(self) -> Figures:
        to = self._site.directory / "bare"
        to.mkdir()
        used, (machine, _) = cpu_of_children(), busy_processors()
        seconds = self._bare.tree(self._files[0].path.parent, to)
        used, machine = cpu_of_children() - used, busy_processors()[0] - machine
        self.testbed.put_aside(to)
        self.testbed.settle()
        each = 1e6 / len(self._files)
        return {"rate": [len(self._files) / seconds], "cpu_us": [used * each], "machine_cpu_us": [machine * each]}


class Burst(_Many):
    """2,000 files of 20 kB, against plain rsync and the polling agent."""

    name = "burst"
    aims = (
        Aim("rate against bare rsync -a and one sync", "rate", "rsync", at_least=0.9),
        Aim("rate against the polling way", "rate", "polling", at_least=200),
        Aim("rate against suprsync's way", "rate", "suprsync", at_least=1.5),
    )
    against = (
        Aim("rate against the other build", "rate", AGAINST, at_least=1.5),
        Aim("the machine's processor time, against the other build's", "machine_cpu_us", AGAINST, at_most=0.65),
    )
    sizes = ("burst_files",)
    bytes_each = 20_000

    @property
    def count(self) -> int:
        return self.scale.burst_files

    @property
    def title(self) -> str:
        return f"{self.count:,} files of 20 kB at once (the polling way: {self.scale.polled_files})"

    def prepare(self) -> None:
        super().prepare()
        self._polled = self.testbed.site()
        self.stack.callback(self._polled.close)

    def contenders(self) -> Mapping[str, Contender]:
        return {**super().contenders(), "suprsync": self._suprsync, "polling": self._polling}

    def _suprsync(self) -> Figures:
        to = self._site.directory / "batches"
        to.mkdir()
        machine, _ = busy_processors()
        seconds = BatchAgent(self._site).archive(self._files, to)
        machine = busy_processors()[0] - machine
        for made in (to.with_suffix(".db"), to.with_suffix(".list")):
            made.unlink()
        self.testbed.put_aside(to)
        self.testbed.settle()
        return {"rate": [len(self._files) / seconds], "machine_cpu_us": [machine * 1e6 / len(self._files)]}

    def _polling(self) -> Figures:
        files = self._files[: self.scale.polled_files]
        rows = self._polled.register(files)
        seconds = PollingAgent(self._polled).archive(rows)
        self._polled.require_archived(rows, files)
        self._polled.empty()
        return {"rate": [len(files) / seconds]}


class Dust(_Many):
    """Files so small that only the cost of each file counts."""

    name = "dust"
    aims = (Aim("rate against bare rsync -a and one sync", "rate", "rsync", at_least=0.6),)
    against = (
        Aim("rate against the other build", "rate", AGAINST, at_least=2),
        Aim("the machine's processor time, against the other build's", "machine_cpu_us", AGAINST, at_most=0.5),
    )
    sizes = ("dust_files",)
    bytes_each = 500

    @property
    def count(self) -> int:
        return self.scale.dust_files

    @property
    def title(self) -> str:
        return f"{self.count:,} files of 500 bytes at once"


class _Growth(Case):
    """The service with more and more work, without baseline and aim: for the calculations in docs/performance.md."""

    aims: ClassVar[Sequence[Aim]] = ()
    sizes: ClassVar[Sequence[str]] = ()
    size = ""

    @property
    def rounds(self) -> int:
        return self.scale.rounds_without_baseline

    def prepare(self) -> None:
        self._site = self.testbed.site()
        self.stack.callback(self._site.close)
        self._service = self.stack.enter_context(MeasuredService(self._site, small_limit=self.scale.small_limit))
        self._site.wait_copied(self._site.register(self.testbed.files("warm", 1, 1000)))
        self._site.empty()

    def _measure(self, files: Sequence[SourceFile]) -> Figures:
        python, with_children = self._service.cpu_seconds(), self._service.cpu_seconds_with_children()
        rows = self._site.register(files)
        seconds = self._site.wait_none_pending(rows, self._service.copied) - rows.committed
        python = self._service.cpu_seconds() - python
        with_children = self._service.cpu_seconds_with_children() - with_children
        self._site.require_archived(rows, files)
        self._site.empty()
        return {"total_ms": [seconds * 1000], "python_cpu_ms": [python * 1000], "cpu_ms": [with_children * 1000]}


class MoreFiles(_Growth):
    """Files of 20 kB at once: the cost of a batch and of each further file."""

    name = "files"
    plot = "total_ms"

    @property
    def title(self) -> str:
        return f"{', '.join(f'{count:,}' for count in self.scale.growth_files)} files of 20 kB at once"

    def contenders(self) -> Mapping[str, Contender]:
        files = self.testbed.files("growth", max(self.scale.growth_files), 20_000)
        return {
            f"{count:,} {'file' if count == 1 else 'files'}": partial(self._measure, files[:count])
            for count in self.scale.growth_files
        }


class LargerFiles(_Growth):
    """One file: the cost of a megabyte."""

    name = "bytes"
    plot = "total_ms"

    @property
    def title(self) -> str:
        return f"one file of {', '.join(f'{size // MB:,}' for size in self.scale.growth_bytes)} MB"

    def contenders(self) -> Mapping[str, Contender]:
        sizes = self.scale.growth_bytes
        made = {size: self.testbed.files("growth", 1, size) for size in sizes}
        for files in made.values():
            self.stack.callback(self.testbed.forget, files)
        return {f"{size // MB:,} MB": partial(self._measure, made[size]) for size in sizes}
