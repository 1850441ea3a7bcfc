"""The archived path: exactly the polling agent's, and never outside the archive."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from records import record

from cdc_archiver.errors import LayoutRefused
from cdc_archiver.model import FileRecord, Reason, Scope
from cdc_archiver.transfer.layout import archived_path, require_fit, source_entry


def polling_agents_path(row: FileRecord) -> str:
    """The agent's rule, written from its description and not from the code under test."""
    assert row.timestamp is not None
    stamp = row.timestamp.timestamp()
    name = row.path.rsplit("/", 1)[-1]
    if row.action_timestamp is None:
        try:
            action_time = int(os.path.splitext(name)[0].split("_")[0])
        except ValueError:
            action_time = int(stamp)
    else:
        action_time = row.action_timestamp
    kind = "plots" if row.plot else "outputs"
    return "/".join([str(stamp)[:5], str(row.pub_id), f"{action_time}_{row.action}", kind, name])


Path_ = TypeVar("Path_")


def unless_refused(make: Callable[[], Path_]) -> Path_ | None:
    """The result, or None for a row that is refused for a reason of scope row (or outside the root)."""
    refusal = None
    try:
        return make()
    except LayoutRefused as error:
        refusal = error
    assert refusal.reason.scope is Scope.ROW or refusal.reason is Reason.OUTSIDE_ROOT
    return None


names = st.text(
    st.characters(exclude_characters="/\0", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=60
).filter(lambda text: text not in (".", ".."))
file_names = st.one_of(
    names,
    st.builds("{}_{}.npy".format, st.integers(0, 2**31), st.sampled_from(["iv", "tune", ""])),
    st.builds("{}.dat".format, st.integers(-5, 10**12)),
)
EARLIEST = datetime.fromtimestamp(10_000, UTC)
records = st.builds(
    record,
    path=st.builds("/{}/{}".format, names, file_names),
    timestamp=st.datetimes(
        datetime(1970, 1, 1, 2, 46, 40), datetime(2286, 11, 20, 17, 46, 39, 999_999), timezones=st.just(UTC)
    ),
    action=st.one_of(st.none(), st.just(""), names),
    action_timestamp=st.one_of(st.none(), st.integers(-(2**31), 2**31 - 1)),
    plot=st.booleans(),
    pub_id=names,
)
any_text = st.one_of(st.none(), st.text(max_size=300))
hostile = st.builds(
    record,
    path=st.one_of(st.text(max_size=300), st.sampled_from(["", "/", "..", "/a/..", "a/", "/a/\0b", "x" * 256])),
    timestamp=st.one_of(st.none(), st.datetimes(timezones=st.just(UTC))),
    action=any_text,
    action_timestamp=st.one_of(st.none(), st.integers()),
    pub_id=st.one_of(any_text, st.sampled_from(["..", ".", "../..", "a/b", "/etc", "a\nb", "suprsync"])),
)


@given(records)
def test_the_path_is_the_polling_agents_for_every_combination_of_missing_values(row: FileRecord) -> None:
    assert archived_path(row, EARLIEST) == polling_agents_path(row)


@given(hostile)
def test_no_row_leads_out_of_its_place_or_crashes(row: FileRecord) -> None:
    path = unless_refused(lambda: archived_path(row))
    if path is None:
        return
    parts = path.split("/")
    assert len(parts) == 5
    assert not {"", ".", ".."} & set(parts)
    assert all(len(os.fsencode(part)) <= 255 and "\0" not in part for part in parts)
    assert parts[3] in ("plots", "outputs")
    # Readers of the archive take the first for a time, and the second for a stream.
    assert re.fullmatch("[1-9][0-9]{4}", parts[0])
    assert row.timestamp is not None
    assert int(parts[0]) == row.timestamp.timestamp() // 100_000
    assert parts[1] != "suprsync"


@given(
    st.one_of(st.text(max_size=200), st.sampled_from(["/..", "../../etc/passwd", "/data/../../x"])),
    st.sampled_from(["/", "/data"]),
)
def test_no_path_requests_a_file_outside_the_source_root(path: str, root: str) -> None:
    entry = unless_refused(lambda: source_entry(record(path=path), root))
    if entry is None:
        return
    assert not entry.startswith("/")
    assert ".." not in PurePosixPath(entry).parts


def test_a_path_of_the_existing_archive() -> None:
    assert str(archived_path(record())) == "15895/crate1slot2/1589517260_take_iv/outputs/1589517300_iv.npy"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"action_timestamp": None}, "15895/crate1slot2/1589517300_take_iv/outputs/1589517300_iv.npy"),
        ({"action_timestamp": None, "path": "/d/notes.txt"}, "15895/crate1slot2/1589517264_take_iv/outputs/notes.txt"),
        ({"action_timestamp": 0}, "15895/crate1slot2/0_take_iv/outputs/1589517300_iv.npy"),
        ({"action": None}, "15895/crate1slot2/1589517260_None/outputs/1589517300_iv.npy"),
        ({"action": ""}, "15895/crate1slot2/1589517260_/outputs/1589517300_iv.npy"),
        ({"plot": True}, "15895/crate1slot2/1589517260_take_iv/plots/1589517300_iv.npy"),
        ({"path": "/d/with\nnewline"}, "15895/crate1slot2/1589517260_take_iv/outputs/with\nnewline"),
    ],
)
def test_missing_values_fall_back_as_in_the_polling_agent(changes: dict[str, Any], expected: str) -> None:
    assert str(archived_path(record(**changes))) == expected


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"pub_id": None}, Reason.NO_PUB_ID),
        ({"timestamp": None}, Reason.NO_TIMESTAMP),
        ({"timestamp": datetime.fromtimestamp(0, UTC)}, Reason.BAD_TIMESTAMP),
        ({"timestamp": datetime(1, 1, 1, tzinfo=UTC)}, Reason.BAD_TIMESTAMP),
        ({"timestamp": datetime(2001, 9, 9, 1, 46, 39, tzinfo=UTC)}, Reason.BAD_TIMESTAMP),
        ({"timestamp": datetime(2286, 11, 20, 17, 46, 40, tzinfo=UTC)}, Reason.BAD_TIMESTAMP),
        ({"pub_id": "suprsync"}, Reason.BAD_PUB_ID),
        ({"pub_id": ""}, Reason.BAD_PUB_ID),
        ({"pub_id": ".."}, Reason.BAD_PUB_ID),
        ({"pub_id": "../.."}, Reason.BAD_PUB_ID),
        ({"pub_id": "a\x07b"}, Reason.BAD_PUB_ID),
        ({"pub_id": "é" * 128}, Reason.BAD_PUB_ID),
        ({"action": "a/b"}, Reason.BAD_ACTION),
        ({"action": "a\nb"}, Reason.BAD_ACTION),
        ({"action": "x" * 250}, Reason.BAD_ACTION),
        ({"path": "/data/"}, Reason.BAD_NAME),
        ({"path": "/data/.."}, Reason.BAD_NAME),
        ({"path": "/data/a\0b"}, Reason.BAD_NAME),
        ({"path": "/data/" + "x" * 256}, Reason.BAD_NAME),
    ],
)
def test_an_impossible_row_is_refused_with_its_reason(changes: dict[str, Any], reason: Reason) -> None:
    with pytest.raises(LayoutRefused) as refusal:
        archived_path(record(**changes))
    assert refusal.value.reason is reason


@pytest.mark.parametrize(
    ("when", "digits"),
    [
        (datetime(2001, 9, 9, 1, 46, 40, tzinfo=UTC), "10000"),
        (datetime(2038, 1, 19, 3, 14, 7, tzinfo=UTC), "21474"),  # the end of TIMESTAMP in MySQL
        (datetime(2106, 2, 7, 6, 28, 15, tzinfo=UTC), "42949"),  # and in MariaDB from 11.5 on
        (datetime(2286, 11, 20, 17, 46, 39, tzinfo=UTC), "99999"),
    ],
)
def test_five_digits_name_a_time_from_2001_to_2286(when: datetime, digits: str) -> None:
    assert archived_path(record(timestamp=when)).startswith(f"{digits}/")


def test_older_files_are_placed_as_the_polling_agent_did_where_a_setting_says_so() -> None:
    old = record(timestamp=datetime(2000, 1, 1, tzinfo=UTC))
    assert archived_path(old, EARLIEST).startswith("94668/")
    with pytest.raises(LayoutRefused):
        archived_path(record(timestamp=datetime(1970, 1, 1, 2, 46, 39, tzinfo=UTC)), EARLIEST)


@pytest.mark.parametrize(
    ("path", "root", "entry"),
    [
        ("/data/a/b.npy", "/", "data/a/b.npy"),
        ("/data/a/b.npy", "/data", "a/b.npy"),
        ("/data/a/b.npy", "/data/", "a/b.npy"),
        ("a/b.npy", "/data", "a/b.npy"),
        ("//data/./a//b.npy", "/data", "a/b.npy"),
        ("-dash", "/", "-dash"),
    ],
)
def test_the_entry_that_rsync_requests(path: str, root: str, entry: str) -> None:
    assert source_entry(record(path=path), root) == entry


_parts = st.sampled_from(["", ".", "..", "...", ".a", "a.", "data", "x"])


@given(st.lists(_parts, max_size=6).map("/".join), st.sampled_from(["/", "/data", "/data/", "//data/./x", "data"]))
def test_a_normalised_path_gives_the_same_entry_as_any_other(path: str, root: str) -> None:
    entry = unless_refused(lambda: source_entry(record(path=path), root))
    base = os.path.normpath("/" + root.strip("/"))
    whole = os.path.normpath(os.path.join(base, path)).replace("//", "/")
    if path and whole.startswith(os.path.join(base, "")) and whole != base:
        assert entry == os.path.relpath(whole, base)
    else:
        assert entry is None


def test_a_path_that_does_not_fit_in_the_column_with_a_suffix_is_refused() -> None:
    require_fit("x" * 255, 260)
    with pytest.raises(LayoutRefused, match="the column holds 260"):
        require_fit("x" * 256, 260)
