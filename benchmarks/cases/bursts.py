"""Many small files, registered at once while the service is idle: how many are archived in a second."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

from benchmarks.cases.base import Case, Figures, Way
from benchmarks.figures import OURS, Aim
from benchmarks.program import Program
from benchmarks.rivals import Bare, Polling, cpu_of_children


class _Many(Case):
    """A burst through the service, and the same files with one ``rsync -a`` and one sync."""

    plot = "rate"
    bytes_each: int

    @property
    @abstractmethod
    def count(self) -> int:
        """How many files."""

    @property
    def size(self) -> str:
        return f"{self.count:,} files"

    def prepare(self) -> None:
        self._files = self.ground.files(self.name, self.count, self.bytes_each)
        self._site = self.ground.site()
        self.stack.callback(self._site.close)
        self._bare = Bare(self._site)
        self._program = self.stack.enter_context(Program(self._site))
        self._site.wait_copied(self._site.register(self.ground.files("warm", 1, 1000)))
        self._site.empty()

    def ways(self) -> Mapping[str, Way]:
        return {OURS: self._ours, "rsync": self._rsync}

    def _ours(self) -> Figures:
        python, all_of_it = self._program.cpu_seconds(), self._program.cpu_seconds_with_children()
        rows = self._site.register(self._files)
        seconds = self._site.wait_none_pending(rows, self._program.copied) - rows.committed
        python = self._program.cpu_seconds() - python
        all_of_it = self._program.cpu_seconds_with_children() - all_of_it
        self._site.require_archived(rows, self._files)
        self._site.empty()
        each = 1e6 / len(self._files)
        return {
            "rate": [len(self._files) / seconds],
            "python_cpu_us": [python * each],
            "cpu_us": [all_of_it * each],
        }

    def _rsync(self) -> Figures:
        to = self._site.directory / "bare"
        to.mkdir()
        used = cpu_of_children()
        seconds = self._bare.tree(self._files[0].path.parent, to)
        used = cpu_of_children() - used
        self.ground.put_aside(to)
        self.ground.settle()
        return {"rate": [len(self._files) / seconds], "cpu_us": [used * 1e6 / len(self._files)]}


class Burst(_Many):
    """2,000 files of 20 kB, against the barest rsync and the way of the agent that polls."""

    name = "burst"
    aims = (
        Aim("rate against bare rsync -a and one sync", "rate", "rsync", at_least=0.9),
        Aim("rate against the polling way", "rate", "polling", at_least=200),
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
        self._polled = self.ground.site()
        self.stack.callback(self._polled.close)

    def ways(self) -> Mapping[str, Way]:
        return {**super().ways(), "polling": self._polling}

    def _polling(self) -> Figures:
        files = self._files[: self.scale.polled_files]
        rows = self._polled.register(files)
        seconds = Polling(self._polled).archive(rows)
        self._polled.require_archived(rows, files)
        self._polled.empty()
        return {"rate": [len(files) / seconds]}


class Dust(_Many):
    """Files so small that each one's own cost is all there is."""

    name = "dust"
    aims = (Aim("rate against bare rsync -a and one sync", "rate", "rsync", at_least=0.6),)
    sizes = ("dust_files",)
    bytes_each = 500

    @property
    def count(self) -> int:
        return self.scale.dust_files

    @property
    def title(self) -> str:
        return f"{self.count:,} files of 500 bytes at once"
