"""What every case is: something to prepare, ways that take turns, and an aim."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, TypeAlias

from benchmarks.figures import Aim
from benchmarks.ground import Ground
from benchmarks.scale import Scale

Figures: TypeAlias = Mapping[str, Sequence[float]]
Way: TypeAlias = Callable[[], Figures]
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

    def __init__(self, ground: Ground, scale: Scale) -> None:
        self.ground = ground
        self.scale = scale
        self.stack = contextlib.ExitStack()

    @property
    @abstractmethod
    def title(self) -> str:
        """What is done, with this run's sizes."""

    @abstractmethod
    def prepare(self) -> None:
        """Makes what the ways need; what has to be closed again goes to ``stack``."""

    @abstractmethod
    def ways(self) -> Mapping[str, Way]:
        """Ours and its opponents: each has its turn in each round."""

    def close(self) -> None:
        """Closes it."""
        self.stack.close()
