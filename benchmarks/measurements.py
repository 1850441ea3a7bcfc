"""Measurements and their evaluation: medians, spreads, ratios, verdicts. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

OURS: Final = "ours"
AGAINST: Final = "other build"
"""The contender that is another build of the service."""
_UNITS: Final = {
    "_ms": "ms", "_us": "µs", "_percent": "%", "_s": "s", "mb_rate": "MB/s", "rate": "/s", "_mb": "MB"
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Measurement:
    """One contender in one round.

    Attributes:
        contender: ``ours``, or a baseline's name.
        figures: all values, by name; a name ends in its unit: ``latency_ms``, ``rate``.
        turn: its place in the order of the round.
        others: processors that programs other than the run's kept busy meanwhile.
    """

    contender: str
    round: int
    figures: Mapping[str, Sequence[float]]
    turn: int = 0
    others: float = 0.0


@dataclass(frozen=True, slots=True)
class Aim:
    """A target that a case has to meet.

    Attributes:
        sentence: its description in the table.
        figure: the figure that it is about.
        to: the baseline by whose median it is divided; empty: an absolute value.
        of: the contender that it is about.
        part: percentile of ``of``; 50: the median.
        at_least, at_most: the limit; one of the two.
        unit: of an absolute value.
    """

    sentence: str
    figure: str
    to: str = ""
    of: str = OURS
    part: int = 50
    at_least: float | None = None
    at_most: float | None = None
    unit: str = "×"

    @property
    def limit(self) -> str:
        """The limit as text."""
        sign, limit = ("≥", self.at_least) if self.at_least is not None else ("≤", self.at_most)
        return f"{sign} {limit:g} {self.unit}"

    def met_by(self, value: float) -> bool:
        """Whether a value is within the limit."""
        return (self.at_least is None or value >= self.at_least) and (self.at_most is None or value <= self.at_most)


@dataclass(frozen=True, slots=True)
class Verdict:
    """An aim and its result.

    Attributes:
        value: over all rounds.
        rounds: of each round; their spread shows the reliability of ``value``.
        note: additional information.
    """

    aim: Aim
    value: float
    rounds: Sequence[float]
    note: str = ""

    @property
    def met(self) -> bool:
        """Whether the aim is met."""
        return self.aim.met_by(self.value)

    @property
    def interval(self) -> tuple[float, float]:
        """Limits between which the median lies with a confidence of 95 %, from the rounds; with fewer than six, their range."""
        return confidence_interval(self.rounds)

    @property
    def certain(self) -> bool:
        """Whether the whole interval is on one side of the limit, so that another run would say the same."""
        return len({self.aim.met_by(value) for value in self.interval}) == 1


@dataclass(frozen=True, slots=True)
class Summary:
    """Many values in four numbers: median, quartiles, 99th percentile."""

    middle: float
    low: float
    high: float
    late: float
    count: int

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return {"median": self.middle, "q1": self.low, "q3": self.high, "p99": self.late, "count": self.count}


def percentile(values: Sequence[float], part: int) -> float:
    """A percentile that is a measured value (nearest rank); a median between two values is their mean.

    Args:
        values: at least one.
        part: of a hundred.
    """
    if part == 50:
        return median(values)
    ordered = sorted(values)
    return ordered[-(-len(ordered) * part // 100) - 1]


def summary(values: Sequence[float]) -> Summary:
    """Summary of at least one value."""
    return Summary(
        percentile(values, 50), percentile(values, 25), percentile(values, 75), percentile(values, 99), len(values)
    )


def confidence_interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % confidence interval of the median, by order statistics: it assumes nothing of the distribution.

    Args:
        values: at least one; with fewer than six, the interval is their range, and its confidence is less.
    """
    ordered = sorted(values)
    count, skipped, outside = len(ordered), 0, 2 / 2 ** len(ordered)
    while outside <= 0.05:
        skipped += 1
        outside += 2 * math.comb(count, skipped) / 2**count
    first = max(1, skipped)
    return ordered[first - 1], ordered[count - first]


def pooled(measurements: Sequence[Measurement], contender: str, figure: str) -> list[float]:
    """All values of one figure of one contender, over all rounds."""
    return [value for one in measurements if one.contender == contender for value in one.figures.get(figure, ())]


def judge(aim: Aim, measurements: Sequence[Measurement]) -> Verdict | None:
    """An aim's verdict; None if nothing was measured for it.

    A ratio of medians is taken round by round, because the contenders of a round ran one after the other on the same machine;
    the median of the rounds counts. A round has too few values for a late percentile: that is taken over all rounds.
    An absolute value must keep its limit in every round: the worst one counts.
    """
    numbers = sorted({one.round for one in measurements})
    rounds = []
    for number in numbers:
        here = [one for one in measurements if one.round == number]
        if (value := _ratio(aim, here)) is not None:
            rounds.append(value)
    if not rounds:
        return None
    if aim.part != 50:
        value = _ratio(aim, measurements)
    elif aim.to:
        value = median(rounds)
    else:
        value = max(rounds) if aim.at_least is None else min(rounds)
    return None if value is None else Verdict(aim, value, rounds)


def _ratio(aim: Aim, measurements: Sequence[Measurement]) -> float | None:
    ours = pooled(measurements, aim.of, aim.figure)
    if not ours:
        return None
    value = percentile(ours, aim.part)
    if not aim.to:
        return value
    theirs = pooled(measurements, aim.to, aim.figure)
    middle = percentile(theirs, 50) if theirs else 0.0
    return value / middle if middle else None


def human(figure: str, value: float) -> str:
    """A value with its unit, which is the end of its name."""
    digits = 0 if abs(value) >= 1000 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f} {unit_of(figure)}".rstrip()


def unit_of(figure: str) -> str:
    """A figure's unit, which is the end of its name."""
    return next((unit for end, unit in _UNITS.items() if figure.endswith(end)), "")
