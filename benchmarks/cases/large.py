"""Large files: whether the disk and the wire are kept busy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import ClassVar

from benchmarks.baselines import MD5, BareRsync
from benchmarks.cases.base import Case, Contender, Figures
from benchmarks.measured_service import MeasuredService
from benchmarks.measurements import AGAINST, OURS, Aim
from benchmarks.proc_stats import busy_processors
from benchmarks.scale import MB


class _Large(Case):
    plot = "mb_rate"
    options: ClassVar[Mapping[str, str]] = {}
    baseline = "equal work"

    sizes: ClassVar = ("large_bytes",)

    @property
    def shape(self) -> tuple[int, int]:
        """Number of files, and the size of each."""
        return 1, self.scale.large_bytes

    @property
    def size(self) -> str:
        count, each = self.shape
        return f"{count} × {each // MB:,} MB"

    def prepare(self) -> None:
        self._files = self.testbed.files(self.name, *self.shape)
        self.stack.callback(self.testbed.forget, self._files)
        self._site = self.testbed.site()
        self.stack.callback(self._site.close)
        self._bare = BareRsync(self._site)
        self.stack.enter_context(self._bare.warm())  # as the service's connection is
        self._service = self.stack.enter_context(
            MeasuredService(self._site, build=self.build, small_limit=self.scale.small_limit, **self.options)
        )
        self._site.wait_copied(self._site.register(self.testbed.files("warm", 1, 1000)))
        self._site.empty()

    def contenders(self) -> Mapping[str, Contender]:
        work = self._bare.equal_work if self.baseline == "equal work" else self._bare.tree
        return {OURS: self._ours, self.baseline: partial(self._baseline, work)}

    def _figures(self, seconds: float, machine: float) -> Figures:
        return {
            "mb_rate": [sum(file.size for file in self._files) / MB / seconds],
            "machine_cpu_ms": [machine * 1000],
        }

    def _ours(self) -> Figures:
        rows = self._site.register(self._files)
        machine, _ = busy_processors()
        seconds = self._site.wait_none_pending(rows, self._service.copied) - rows.committed
        machine = busy_processors()[0] - machine
        self._site.require_archived(rows, self._files)
        self._site.empty()
        return self._figures(seconds, machine)

    def _baseline(self, work: Callable[[Path, Path], float]) -> Figures:
        to = self._site.directory / "bare"
        to.mkdir()
        machine, _ = busy_processors()
        seconds = work(self._files[0].path.parent, to)
        machine = busy_processors()[0] - machine
        self.testbed.put_aside(to)
        self.testbed.settle()
        return self._figures(seconds, machine)


class LargeFile(_Large):
    """One of 1 GB, against rsync with md5, md5sum and sync."""

    name = "large"
    aims = (Aim("rate against equal work: rsync with md5, md5sum, sync", "mb_rate", "equal work", at_least=0.95),)
    against = (
        Aim("rate against the other build", "mb_rate", AGAINST, at_least=1.6),
        Aim("the machine's processor time, against the other build's", "machine_cpu_ms", AGAINST, at_most=1),
    )

    @property
    def title(self) -> str:
        return f"one file of {self.scale.large_bytes // MB:,} MB"


class LargeFileTransferOnly(_Large):
    """The same with ``--verify transfer``, against rsync and sync; and, to tell what md5 costs, against that with md5."""

    name = "transfer"
    aims = (
        Aim("rate against bare rsync -a and sync", "mb_rate", "rsync", at_least=0.9),
        Aim("rate against the same with md5, which a row can be compared with", "mb_rate", "rsync, md5", at_least=0.95),
    )
    options: ClassVar = {"verify": "transfer"}
    baseline = "rsync"

    @property
    def title(self) -> str:
        return f"one file of {self.scale.large_bytes // MB:,} MB, --verify transfer"

    def contenders(self) -> Mapping[str, Contender]:
        with_md5 = lambda directory, to: self._bare.tree(directory, to, MD5)
        return {**super().contenders(), "rsync, md5": partial(self._baseline, with_md5)}


class ManyLargeFiles(_Large):
    """Several: hashing one may overlap the transfer of the next."""

    name = "many"
    against = (Aim("rate against the other build", "mb_rate", AGAINST, at_least=1),)
    aims = (Aim("rate against equal work: hashing overlaps the next transfer", "mb_rate", "equal work", at_least=1.0),)
    sizes: ClassVar = ("many_large",)

    @property
    def shape(self) -> tuple[int, int]:
        return self.scale.many_large

    @property
    def title(self) -> str:
        count, size = self.shape
        return f"{count} files of {size // MB} MB at once"
