"""Pictures of a run, as SVG and PNG: each case's values, and all aims beside their limits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.figures import pooled
from benchmarks.report import ways_of
from benchmarks.runner import Result


def available() -> bool:
    """Whether what draws is installed: nothing but pictures needs it."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def draw(folder: Path, results: Sequence[Result], subtitle: str) -> list[Path]:
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
        if result.measurements:
            paths += _save(pyplot, folder, result.name, _draw_case(pyplot, result))
    if any(result.verdicts for result in results):
        paths += _save(pyplot, folder, "aims", _draw_aims(pyplot, results, subtitle))
    return paths


def _draw_case(pyplot: Any, result: Result) -> Any:
    """Every value as a dot, by way; the box holds the middle half."""
    ways = ways_of(result.measurements)
    values = [pooled(result.measurements, way, result.plot) for way in ways]
    shown = [(way, found) for way, found in zip(ways, values, strict=True) if found]
    figure, axes = pyplot.subplots(figsize=(7, 1.2 + 0.6 * len(shown)), layout="constrained")
    axes.boxplot(
        [found for _, found in shown],
        orientation="horizontal",
        widths=0.5,
        showfliers=False,
        medianprops={"color": "C3"},
    )
    for number, (_, found) in enumerate(shown, 1):
        # Side by side, so that equal values show as many.
        offsets = [number + 0.3 * ((place * 0.618) % 1.0 - 0.5) for place in range(len(found))]
        axes.plot(found, offsets, ".", alpha=0.4, markersize=4)
    axes.set_yticks(range(1, len(shown) + 1), [way for way, _ in shown])
    axes.invert_yaxis()
    smallest = min(min(found) for _, found in shown)
    if smallest > 0 and max(max(found) for _, found in shown) > 20 * smallest:
        axes.set_xscale("log")
    else:
        axes.set_xlim(left=min(0, smallest))
    axes.set_xlabel(result.plot.replace("_", " "))
    axes.set_title(f"{result.name}: {result.title}", loc="left")
    return figure


def _draw_aims(pyplot: Any, results: Sequence[Result], subtitle: str) -> Any:
    """Each aim as a part of its limit: at 1 it is just met, to the right it is met with room to spare."""
    bars = [(f"{result.name}: {verdict.aim.sentence}", verdict) for result in results for verdict in result.verdicts]
    figure, axes = pyplot.subplots(figsize=(10, 1.4 + 0.34 * len(bars)), layout="constrained")
    for number, (_, verdict) in enumerate(bars):
        aim = verdict.aim
        parts = [
            value / aim.at_least if aim.at_least is not None else (aim.at_most or 0.0) / max(value, 1e-9)
            for value in (verdict.value, min(verdict.rounds), max(verdict.rounds))
        ]
        colour = "C2" if verdict.met else "C3"
        axes.plot(
            sorted(max(part, 0.05) for part in parts[1:]), [number] * 2, "-", color=colour, linewidth=5, alpha=0.3
        )
        axes.plot([max(parts[0], 0.05)], [number], "o", color=colour)
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xscale("log")
    shown = [
        tick
        for tick in (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
        if axes.get_xlim()[0] <= tick <= axes.get_xlim()[1]
    ]
    axes.set_xticks(shown, [f"{tick:g}" for tick in shown])
    axes.minorticks_off()
    axes.set_yticks(range(len(bars)), [sentence for sentence, _ in bars])
    axes.invert_yaxis()
    axes.set_xlabel("how well the aim is met: 1 is its limit, more is better; the bar spans the rounds")
    axes.set_title(subtitle, loc="left", fontsize=8)
    return figure


def _save(pyplot: Any, folder: Path, name: str, figure: Any) -> list[Path]:
    paths = [folder / f"{name}.{kind}" for kind in ("svg", "png")]
    for path in paths:
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)
    return paths
