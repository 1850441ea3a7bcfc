"""Which timecode a row belongs to, and what the rows of one add up to."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime

import pytest
from records import record

from cdc_archiver.database.files_table import Row
from cdc_archiver.database.timecode_rows import RowGroup
from cdc_archiver.timecodes.timecode_index import TimecodeIndex, count_rows
from cdc_archiver.transfer.layout import timecode_of

WHEN = datetime(2020, 5, 15, 4, 34, 24, tzinfo=UTC)
BELOW = "crate1slot2/1589517264_take_iv/outputs/a.npy"


@pytest.mark.parametrize(
    ("when", "archived", "expected"),
    [
        (WHEN, None, 15895),
        (None, None, None),
        (datetime(1995, 5, 9, tzinfo=UTC), None, None),
        (WHEN, f"/data/pysmurf/15896/{BELOW}", 15896),
        (None, f"/a/15896/{BELOW}", 15896),
        (datetime(1995, 5, 9, tzinfo=UTC), f"/data/pysmurf/80000/{BELOW}", None),
        (WHEN, f"/data/pysmurf/1589/{BELOW}", None),
        (WHEN, "/data/a.npy", None),
    ],
)
def test_the_timecode_of_a_row(when: datetime | None, archived: str | None, expected: int | None) -> None:
    assert timecode_of(record(timestamp=when), archived) == expected


def test_a_count_has_distinct_files_wherever_data_dir_was() -> None:
    def row(id_: int, path: str, *, copied: bool = True, attempts: int = 0, md5: bytes = b"1" * 16) -> Row:
        return Row(record(id=id_, path=path, failed_copy_attempts=attempts, md5sum=md5, timestamp=WHEN), copied)

    rows = [
        row(1, f"/old/15895/{BELOW}"),
        row(2, f"/new/archive/15895/{BELOW}"),
        row(3, f"/new/archive/15895/{BELOW}.1", md5=b"2" * 16),
        row(4, f"/new/archive/15896/{BELOW}"),
        row(5, "/src/b", copied=False, attempts=7),
        row(6, "/src/c", copied=False, attempts=1000),
        row(7, "/src/d", copied=False, attempts=2000),
    ]
    count, ids = count_rows(rows, 15895)
    assert (count.files, count.undecided, count.refused, count.ignored, ids) == (2, 1, 1, 1, [2, 3])
    lines = f"15895/{BELOW}\t{(b'1' * 16).hex()}\n15895/{BELOW}.1\t{(b'2' * 16).hex()}\n"
    assert count.digest == hashlib.sha256(lines.encode()).digest()
    assert count_rows(reversed(rows), 15895)[0].digest == count.digest


def test_streams_are_those_of_the_last_30_timecodes_that_have_files() -> None:
    index = TimecodeIndex()
    for timecode in range(15800, 15840):
        index.add([RowGroup("Monitor", str(timecode), 1, f"crate{timecode}", copied=True)])
    index.add([RowGroup("monitor", "15840", 1, "", copied=False), RowGroup("monitor", "", 3, "", copied=False)])
    assert index.timecodes("monitor") == set(range(15800, 15841))
    assert index.streams(["monitor"], 16500) == tuple(f"crate{each}" for each in range(15810, 15840))
    assert index.streams(["monitor"], 15801) == ("crate15800", "crate15801")
    assert index.streams(["monitor"], 15000) == tuple(f"crate{each}" for each in range(15800, 15830))
    assert index.streams(["other"], 15801) == ()
    assert index.blocks("MONITOR", 15800) == {1}
