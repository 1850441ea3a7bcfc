"""The base of all cases: preparation, contenders that take turns, aims."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, TypeAlias

from benchmarks.measurements import Aim, Measurement, Verdict, judge
from benchmarks.other_build import OtherBuild
from benchmarks.scale import FULL, Scale
from benchmarks.testbed import Testbed

Figures: TypeAlias = Mapping[str, Sequence[float]]
Contender: TypeAlias = Callable[[], Figures]
"""Measures once; all values, by the name of the figure."""


class Case(ABC):
    """One case. Used once: prepared, measured round by round, closed.

    Args:
        testbed: servers and files.
        scale: sizes.
        build: the build that is measured; None: this one.
    """

    name: ClassVar[str]
    """For the command line."""
    aims: ClassVar[Sequence[Aim]]
    plot: ClassVar[str]
    """The figure that is drawn."""
    sizes: ClassVar[Sequence[str]]
    """The fields of :class:`Scale` on which its aims depend."""
    against: ClassVar[Sequence[Aim]] = ()
    """Aims that compare this build with another one; none: the case takes no part in that."""

    def __init__(self, testbed: Testbed, scale: Scale, build: OtherBuild | None = None) -> None:
        self.testbed = testbed
        self.scale = scale
        self.build = build
        self.stack = contextlib.ExitStack()
        self.report_progress: Callable[[str], object] = lambda _: None
        """Called with the progress of a long preparation; set by the runner."""

    @property
    @abstractmethod
    def title(self) -> str:
        """A description, with the sizes of this run."""

    @property
    @abstractmethod
    def size(self) -> str:
        """The sizes of this run, as a short text."""

    @property
    def at_aimed_size(self) -> bool:
        """Whether these are the sizes for which the aims are defined."""
        return all(getattr(self.scale, name) == getattr(FULL, name) for name in self.sizes)

    @property
    def rounds(self) -> int:
        """Turns of each contender."""
        return self.scale.rounds

    @abstractmethod
    def prepare(self) -> None:
        """Prepares the contenders; what has to be closed goes to ``stack``."""

    @abstractmethod
    def contenders(self) -> Mapping[str, Contender]:
        """The service and its baselines, by name; each has a turn in each round."""

    def begin_round(self) -> None:
        """Prepares what the contenders of one round share."""

    def verdicts(self, measurements: Sequence[Measurement]) -> list[Verdict]:
        """The verdicts on the aims for which something was measured."""
        return [verdict for aim in self.aims if (verdict := judge(aim, measurements)) is not None]

    def close(self) -> None:
        """Closes what was prepared."""
        self.stack.close()
