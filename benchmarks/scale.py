"""Sizes of a run: a smoke test, a short run, and the sizes for which the aims are defined."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MB: Final = 1_000_000
GB: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Scale:
    """Sizes of all cases.

    Attributes:
        rounds: turns of each contender of a case; an even number, so that each of two is first equally often.
        rounds_without_baseline: the same for cases without a baseline.
        space_bytes: free space that the disk must have: twice what the small files of all turns, the large files of one turn and the
            database need.
        idle_files: files that come one by one in each round.
        burst_files: files of 20 kB.
        polled_files: files for the polling agent in each round.
        dust_files: files of 500 bytes.
        large_bytes: size of the single large file.
        many_large: number of files that come one after the other, and the size of each.
        night: number of large files, and the size of each.
        stream_rows: rows that are inserted at once.
        paced_seconds: duration for which a writer commits 1,000 rows a second.
        unrelated_rows: rows in other tables.
        table_rows: rows of the small and of the large table.
        timecode_rows: number of timecodes, and of their rows.
        pending_rows: pending rows at the start of the service.
        pending_seconds: duration for which its memory is watched.
        rest_seconds: duration for which it is idle.
        sweep_seconds: duration for which sweeps are counted.
        sources, source_files: numbers of sources; files of each.
        growth_files: numbers of files of 20 kB at once.
        growth_bytes: sizes of one file.
        small_limit: the service's setting; the large files must be above it.
    """

    name: str
    rounds: int
    rounds_without_baseline: int
    space_bytes: int
    idle_files: int
    burst_files: int
    polled_files: int
    dust_files: int
    large_bytes: int
    many_large: tuple[int, int]
    night: tuple[int, int]
    stream_rows: int
    paced_seconds: float
    unrelated_rows: int
    table_rows: tuple[int, int]
    timecode_rows: tuple[int, int]
    pending_rows: int
    pending_seconds: float
    rest_seconds: float
    sweep_seconds: float
    sources: tuple[int, ...]
    source_files: int
    growth_files: tuple[int, ...]
    growth_bytes: tuple[int, ...]
    small_limit: str = "64M"


SMOKE: Final = Scale(
    name="smoke",
    rounds=1,
    rounds_without_baseline=1,
    space_bytes=GB,
    idle_files=3,
    burst_files=30,
    polled_files=2,
    dust_files=30,
    large_bytes=3 * MB,
    many_large=(2, 3 * MB),
    night=(1, 3 * MB),
    stream_rows=2000,
    paced_seconds=0.2,
    unrelated_rows=2000,
    table_rows=(1000, 2000),
    timecode_rows=(5, 100),
    pending_rows=1500,
    pending_seconds=0.5,
    rest_seconds=0.5,
    sweep_seconds=0.5,
    sources=(1, 2),
    source_files=20,
    growth_files=(1, 5),
    growth_bytes=(MB, 2 * MB),
    small_limit="1M",
)
SHORT: Final = Scale(
    name="short",
    rounds=6,
    rounds_without_baseline=5,
    space_bytes=5 * GB,
    idle_files=12,
    burst_files=2000,
    polled_files=4,
    dust_files=2000,
    large_bytes=100 * MB,
    many_large=(2, 70 * MB),
    night=(1, 150 * MB),
    stream_rows=30_000,
    paced_seconds=1.5,
    unrelated_rows=60_000,
    table_rows=(10_000, 100_000),
    timecode_rows=(200, 100_000),
    pending_rows=50_000,
    pending_seconds=1.0,
    rest_seconds=4.0,
    sweep_seconds=0.6,
    sources=(2, 4),
    source_files=200,
    growth_files=(1, 100),
    growth_bytes=(MB, 30 * MB),
)
FULL: Final = Scale(
    name="full",
    rounds=6,
    rounds_without_baseline=5,
    space_bytes=20 * GB,
    idle_files=100,
    burst_files=2000,
    polled_files=7,
    dust_files=20_000,
    large_bytes=GB,
    many_large=(10, 200 * MB),
    night=(2, GB),
    stream_rows=300_000,
    paced_seconds=10.0,
    unrelated_rows=600_000,
    table_rows=(10_000, 10_000_000),
    timecode_rows=(2000, 10_000_000),
    pending_rows=1_000_000,
    pending_seconds=15.0,
    rest_seconds=60.0,
    sweep_seconds=3.0,
    sources=(1, 2, 4, 8),
    source_files=1000,
    growth_files=(1, 10, 100, 1000, 10_000),
    growth_bytes=(MB, 10 * MB, 100 * MB, GB),
)
