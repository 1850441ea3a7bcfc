"""The demo's session: as many files as asked for, of all the kinds that an archive of years has in it; its percentiles."""

from collections import Counter
from pathlib import Path

import pytest

from cdc_archiver.demo.report import percentiles
from cdc_archiver.demo.session import SMALLEST, PlannedFile, plan, write

MB = 1024**2


def source_path(file: PlannedFile) -> str:
    return str(file.directory / file.name)


@pytest.mark.parametrize("files", [20, 21, 60, 199, 1200, 5000])
@pytest.mark.parametrize("largest", [SMALLEST, 2 * MB, 200 * MB])
def test_the_session_has_what_was_asked_for(files: int, largest: int) -> None:
    session = plan(files, largest)

    assert len(session.files) == files
    assert len({source_path(file) for file in session.files}) == files
    assert session.early
    assert len(session.single) >= 5
    assert session.largest.size == largest == max(file.size for file in session.files)
    assert min(file.size for file in session.files) == SMALLEST
    assert len({file.pub_id for file in session.files}) >= (2 if files < 60 else 5)
    assert {file.format for file in session.files} == {"npy", "png", "txt"}
    assert any(file.action_timestamp is None for file in session.files)
    assert any(" " in file.name for file in session.files)
    assert max(Counter(file.name for file in session.files).values()) == 2


def test_by_default_it_comes_in_bursts_of_hundreds_with_files_for_the_bulk_lane_among_them() -> None:
    session = plan(1200, 200 * MB)

    assert len(session.bursts) > 1
    assert all(200 <= len(burst) <= 400 for burst in session.bursts)
    assert sum(file.size > 64 * MB for file in session.files) == 2
    assert sum(10 * MB <= file.size <= 60 * MB for file in session.files) == 4
    assert {str(file.timestamp)[:5] for file in session.files} == {"15895", "15896"}


def test_it_is_the_same_each_time() -> None:
    assert plan(300, MB) == plan(300, MB)


def test_what_is_written_has_its_size_and_equals_nothing_else(tmp_path: Path) -> None:
    session = plan(20, 3 * MB)

    written = [write(file, tmp_path) for file in session.files]

    assert [file.path.stat().st_size for file in written] == [file.size for file in session.files]
    assert len({file.md5 for file in written}) == len(written)
    for file in written:
        begins = {"npy": b"\x93NUMPY", "png": b"\x89PNG", "txt": b"# "}[file.planned.format]
        assert file.path.read_bytes().startswith(begins)


def test_nothing_is_written_over(tmp_path: Path) -> None:
    file = plan(20, MB).largest
    write(file, tmp_path)

    with pytest.raises(FileExistsError):
        write(file, tmp_path)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (1, "p50 1 ms, p99 1 ms (1 files)"),
        (2, "p50 1 ms, p99 2 ms (2 files)"),
        (100, "p50 50 ms, p99 99 ms (100 files)"),
        (2000, "p50 1.00 s, p99 1.98 s (2,000 files)"),
    ],
)
def test_a_percentile_is_one_that_was_measured(count: int, text: str) -> None:
    assert percentiles([number / 1000 for number in range(count, 0, -1)]) == text
