"""The demo's figures: how much, how fast, how soon, and what the service itself counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.filesize import decimal

from cdc_archiver.demo.observing import Planned, Session
from cdc_archiver.demo.registry import LOOK_EVERY, Registered, Watcher
from cdc_archiver.demo.service import Reading
from cdc_archiver.demo.telling import Teller
from cdc_archiver.settings import Settings


def tell_figures(
    teller: Teller,
    session: Session,
    rows: Mapping[Planned, Registered],
    watcher: Watcher,
    reading: Reading,
    settings: Settings,
) -> None:
    """Says them.

    Args:
        rows: of all files.
        watcher: has seen them all copied.
        reading: the service's metrics at the end.
        settings: the service's.
    """
    largest = rows[session.largest]
    began, ended = watcher.committed(largest), watcher.seen(largest)
    loaded = [largest, *(rows[file] for burst in session.bursts for file in burst)]
    seconds = max(watcher.seen(row) for row in loaded) - began
    sizes = sorted(file.size for file in session.files)
    size = sum(row.file.planned.size for row in loaded)
    alone = [watcher.latency(rows[file]) for file in session.alone]
    teller.head("report")
    teller.figure("files", f"{len(sizes):,}, of {sizes[0]} bytes to {decimal(sizes[-1])}; {decimal(sum(sizes))} in all")
    teller.figure(
        "under load",
        f"{len(loaded):,} files, {decimal(size)} in {seconds:.1f} s: "
        f"{len(loaded) / seconds:.0f} files/s, {decimal(round(size / seconds))}/s",
    )
    teller.figure("latency, alone", percentiles(alone))
    teller.figure("latency, all", percentiles([*alone, *map(watcher.latency, loaded)]))
    teller.figure("", f"COMMIT to copied = 1, as seen by one who looks every {LOOK_EVERY * 1000:.0f} ms")
    if session.largest.size > settings.small_limit:
        beside = sum(watcher.seen(row) < ended for row in loaded)
        teller.figure("the largest", f"took {ended - began:.1f} s; {beside:,} smaller ones were archived meanwhile")
    sweeps = reading.total("sweep_duration_seconds_count")
    teller.figure("sweeps", f"{sweeps:.0f}; they found {_counts(reading, 'why', 'sweep_found_total')}")
    teller.figure("stream", f"told of {_counts(reading, 'outcome', 'stream_events_total')}")


def percentiles(latencies: Sequence[float]) -> str:
    """The middle one and the 99th of a hundred, each one that was measured (nearest rank).

    Args:
        latencies: seconds; at least one.
    """
    ordered = sorted(latencies)
    middle, late = (ordered[-(-len(ordered) * part // 100) - 1] for part in (50, 99))
    return f"p50 {_duration(middle)}, p99 {_duration(late)} ({len(ordered):,} files)"


def _duration(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _counts(reading: Reading, label: str, name: str) -> str:
    return ", ".join(f"{count:,} {value}" for value, count in reading.by(label, name).items())
