"""What every case is: something to prepare, ways that take turns, and aims."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, TypeAlias

from benchmarks.measurements import Aim, Measurement, Verdict, judge
from benchmarks.scale import FULL, Scale
from benchmarks.testbed import Testbed

Figures: TypeAlias = Mapping[str, Sequence[float]]
Contender: TypeAlias = Callable[[], Figures]
"""Measures once: every single value, by what it is."""


class Case(ABC):
    """One case. Used once: prepared, measured round by round, closed.

    Args:
        ground: servers and files.
        scale: how much.
    """

    name: ClassVar[str]
    """For the command line."""
    aims: ClassVar[Sequence[Aim]]
    plot: ClassVar[str]
    """The figure that is drawn."""
    sizes: ClassVar[Sequence[str]]
    """Which fields of :class:`Scale` its aims depend on."""

    def __init__(self, testbed: Testbed, scale: Scale) -> None:
        self.testbed = testbed
        self.scale = scale
        self.stack = contextlib.ExitStack()
        self.report_progress: Callable[[str], object] = lambda _: None
        """For a preparation that takes minutes: how far it is, in a few words. Whoever runs the case sets it."""

    @property
    @abstractmethod
    def title(self) -> str:
        """What is done, with this run's sizes."""

    @property
    @abstractmethod
    def size(self) -> str:
        """This run's sizes, in a word or two."""

    @property
    def at_aimed_size(self) -> bool:
        """Whether these are the sizes that the aims speak of."""
        return all(getattr(self.scale, name) == getattr(FULL, name) for name in self.sizes)

    @property
    def rounds(self) -> int:
        """How often each way has its turn."""
        return self.scale.rounds

    @abstractmethod
    def prepare(self) -> None:
        """Makes what the ways need; what has to be closed again goes to ``stack``."""

    @abstractmethod
    def contenders(self) -> Mapping[str, Contender]:
        """Ours and its opponents: each has its turn in each round."""

    def begin_round(self) -> None:
        """Makes what the ways of one round share."""

    def verdicts(self, measurements: Sequence[Measurement]) -> list[Verdict]:
        """What came of the aims that anything was measured for."""
        return [verdict for aim in self.aims if (verdict := judge(aim, measurements)) is not None]

    def close(self) -> None:
        """Closes it."""
        self.stack.close()
