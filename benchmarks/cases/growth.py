"""How cost grows: with the number of files, and with their size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import ClassVar

from benchmarks.cases.base import Case, Figures, Way
from benchmarks.figures import Aim
from benchmarks.ground import SourceFile
from benchmarks.program import Program
from benchmarks.scale import MB


class _Growth(Case):
    """The service alone, with more and more to do. It has no opponent and no aim: it is for the arithmetic of docs/performance.md."""

    aims: ClassVar[Sequence[Aim]] = ()
    sizes: ClassVar[Sequence[str]] = ()
    size = ""

    @property
    def rounds(self) -> int:
        return self.scale.lone_rounds

    def prepare(self) -> None:
        self._site = self.ground.site()
        self.stack.callback(self._site.close)
        self._program = self.stack.enter_context(Program(self._site, small_limit=self.scale.small_limit))
        self._site.wait_copied(self._site.register(self.ground.files("warm", 1, 1000)))
        self._site.empty()

    def _measure(self, files: Sequence[SourceFile]) -> Figures:
        python, all_of_it = self._program.cpu_seconds(), self._program.cpu_seconds_with_children()
        rows = self._site.register(files)
        seconds = self._site.wait_none_pending(rows, self._program.copied) - rows.committed
        python = self._program.cpu_seconds() - python
        all_of_it = self._program.cpu_seconds_with_children() - all_of_it
        self._site.require_archived(rows, files)
        self._site.empty()
        return {"total_ms": [seconds * 1000], "python_cpu_ms": [python * 1000], "cpu_ms": [all_of_it * 1000]}


class MoreFiles(_Growth):
    """Files of 20 kB at once: what a batch costs, and what each further file."""

    name = "files"
    plot = "total_ms"

    @property
    def title(self) -> str:
        return f"{', '.join(f'{count:,}' for count in self.scale.growth_files)} files of 20 kB at once"

    def ways(self) -> Mapping[str, Way]:
        files = self.ground.files("growth", max(self.scale.growth_files), 20_000)
        return {
            f"{count:,} {'file' if count == 1 else 'files'}": partial(self._measure, files[:count])
            for count in self.scale.growth_files
        }


class LargerFiles(_Growth):
    """One file: what a megabyte costs."""

    name = "bytes"
    plot = "total_ms"

    @property
    def title(self) -> str:
        return f"one file of {', '.join(f'{size // MB:,}' for size in self.scale.growth_bytes)} MB"

    def ways(self) -> Mapping[str, Way]:
        sizes = self.scale.growth_bytes
        made = {size: self.ground.files("growth", 1, size) for size in sizes}
        for files in made.values():
            self.stack.callback(self.ground.forget, files)
        return {f"{size // MB:,} MB": partial(self._measure, made[size]) for size in sizes}
