"""Plots of a run, as SVG and PNG: the values of each case, and all aims with their limits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.measurements import pooled, unit_of
from benchmarks.report import contenders_of
from benchmarks.runner import Result

_LEAST: Final = 0.05
_MOST: Final = 100
"""Range, relative to the limit, in which an aim is drawn."""


def draw(directory: Path, results: Sequence[Result], subtitle: str) -> list[Path]:
    """Draws what was measured.

    Args:
        subtitle: of the overview: the machine.

    Returns:
        The files that were written.
    """
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update(
        {"svg.hashsalt": "cdc_archiver", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    )
    from matplotlib import pyplot

    paths = []
    for result in results:
        if pooled_by_contender(result):
            paths += _save(pyplot, directory, result.name, _draw_case(pyplot, result))
    if any(result.verdicts for result in results):
        paths += _save(pyplot, directory, "aims", _draw_aims(pyplot, results, subtitle))
    return paths


def pooled_by_contender(result: Result) -> list[tuple[str, list[float]]]:
    """The values of the plotted figure, of each contender that has it."""
    contenders = (
        (contender, pooled(result.measurements, contender, result.plot))
        for contender in contenders_of(result.measurements)
    )
    return [(contender, found) for contender, found in contenders if found]


def _draw_case(pyplot: Any, result: Result) -> Any:
    """Every value as a dot, by contender; the box holds the middle half."""
    shown = pooled_by_contender(result)
    figure, axes = pyplot.subplots(figsize=(7, 1.2 + 0.6 * len(shown)), layout="constrained")
    axes.boxplot(
        [found for _, found in shown],
        orientation="horizontal",
        widths=0.5,
        showfliers=False,
        medianprops={"color": "C3"},
    )
    for number, (_, found) in enumerate(shown, 1):
        # Spread, so that equal values stay visible.
        offsets = [number + 0.3 * ((place * 0.618) % 1.0 - 0.5) for place in range(len(found))]
        axes.plot(found, offsets, ".", alpha=0.4, markersize=4)
    axes.set_yticks(range(1, len(shown) + 1), [contender for contender, _ in shown])
    axes.invert_yaxis()
    smallest = min(min(found) for _, found in shown)
    if smallest > 0 and max(max(found) for _, found in shown) > 20 * smallest:
        axes.set_xscale("log")
    else:
        axes.set_xlim(left=min(0, smallest))
    axes.set_xlabel(f"{result.plot.replace('_', ' ')} [{unit_of(result.plot)}]")
    _title(figure, f"{result.name}: {result.title}")
    return figure


def _draw_aims(pyplot: Any, results: Sequence[Result], subtitle: str) -> Any:
    """Each aim relative to its limit: at 1 it is just met, to the right it is met with a margin."""
    bars = [
        (
            f"{result.name}: {verdict.aim.sentence}" + ("" if result.at_aimed_size else f"\nat {result.size}"),
            verdict,
            result,
        )
        for result in results
        for verdict in result.verdicts
    ]
    figure, axes = pyplot.subplots(figsize=(11, 1.4 + 0.38 * len(bars)), layout="constrained")
    for number, (_, verdict, result) in enumerate(bars):
        aim = verdict.aim
        parts = [
            _shown(value / aim.at_least if aim.at_least is not None else (aim.at_most or 0.0) / max(value, 1e-9))
            for value in (verdict.value, min(verdict.rounds), max(verdict.rounds))
        ]
        colour = "C2" if verdict.met else "C3"
        axes.plot(parts[1:], [number] * 2, "-", color=colour, linewidth=5, alpha=0.3)
        # Hollow: the case failed, and its values are no verdict.
        axes.plot(parts[:1], [number], "o", color=colour, fillstyle="none" if result.failure else "full")
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xscale("log")
    shown = [
        tick
        for tick in (_LEAST, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, _MOST)
        if axes.get_xlim()[0] <= tick <= axes.get_xlim()[1]
    ]
    axes.set_xticks(shown, [f"{tick:g}" for tick in shown])
    axes.minorticks_off()
    axes.set_yticks(range(len(bars)), [sentence for sentence, *_ in bars])
    axes.invert_yaxis()
    figure.supxlabel("how well the aim is met: 1 is its limit, more is better; the bar spans the rounds", fontsize=9)
    _title(figure, subtitle)
    return figure


def _shown(part: float) -> float:
    """Clips values far beyond the limit or below zero, which would leave no space for the others."""
    return min(max(part, _LEAST), _MOST)


def _title(figure: Any, text: str) -> None:
    """Over the whole width; the title of the axes would begin after the long labels."""
    figure.suptitle(text, x=0.01, ha="left", fontsize=9)


def _save(pyplot: Any, directory: Path, name: str, figure: Any) -> list[Path]:
    paths = [directory / f"{name}.{kind}" for kind in ("svg", "png")]
    for path in paths:
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)
    return paths
