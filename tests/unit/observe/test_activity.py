"""What the status page shows of the last hour: by the minute, bounded, and forgetting what is fixed."""

from __future__ import annotations

from datetime import UTC, datetime
from unittest.mock import patch

import pytest

from cdc_archiver.model import Archived, AttemptFailed, Deferred, FileRecord, Reason, Refused
from cdc_archiver.observe import activity
from cdc_archiver.observe.activity import MINUTES, NEWEST, Activity, GivenUp

NOON = 1_800_000_000.0  # a full minute


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def kept(clock: Clock) -> Activity:
    return Activity(clock)


def record(id_: int) -> FileRecord:
    return FileRecord(id_, f"/data/{id_}.npy", b"m" * 16, None, None, None, False, None, "target", 0)


def archived(id_: int, size: int = 1000, *, adopted: bool = False) -> Archived:
    return Archived(record(id_), f"/archive/{id_}.npy", size, adopted)


def test_a_minute_counts_files_and_bytes_and_an_adopted_file_has_copied_none(kept: Activity, clock: Clock) -> None:
    kept.record_outcome("srv", archived(1), 0.1)
    kept.record_outcome("srv", archived(2, adopted=True), None)
    clock.now += 60
    kept.record_outcome("srv", archived(3, 500), 0.1)
    first, second = kept.snapshot().minutes
    assert (first.at, first.files, first.size) == (datetime.fromtimestamp(NOON, UTC), 2, 1000)
    assert (second.files, second.size) == (1, 500)


def test_a_minute_in_which_nothing_happened_is_there_and_one_before_the_start_is_not(
    kept: Activity, clock: Clock
) -> None:
    clock.now += 3 * 60
    assert [minute.files for minute in kept.snapshot().minutes] == [0, 0, 0, 0]


def test_no_more_than_an_hour_is_kept(kept: Activity, clock: Clock) -> None:
    for number in range(3 * MINUTES):
        kept.record_outcome("srv", archived(number), None)
        clock.now += 60
    minutes = kept.snapshot().minutes
    assert len(minutes) == MINUTES
    assert [minute.files for minute in minutes] == [1] * (MINUTES - 1) + [0]
    assert minutes[-1].at == datetime.fromtimestamp(clock.now, UTC)


def test_after_a_long_silence_the_old_minutes_are_gone(kept: Activity, clock: Clock) -> None:
    kept.record_outcome("srv", archived(1), None)
    clock.now += 2 * 3600
    assert sum(minute.files for minute in kept.snapshot().minutes) == 0


def test_a_clock_that_is_set_back_loses_nothing(kept: Activity, clock: Clock) -> None:
    clock.now += 600
    kept.record_outcome("srv", archived(1), None)
    clock.now -= 300
    kept.record_outcome("srv", archived(2), None)
    assert kept.snapshot().minutes[-1].files == 2


def test_a_clock_that_is_set_back_leaves_no_minute_in_the_future(kept: Activity, clock: Clock) -> None:
    clock.now += 600
    kept.record_outcome("srv", archived(1), 0.1)
    clock.now += 60
    kept.record_outcome("srv", archived(2), 0.1)
    clock.now -= 300
    minutes = kept.snapshot().minutes
    assert minutes[-1].at == datetime.fromtimestamp(clock.now, UTC)
    assert [minute.files for minute in minutes if minute.files] == [2]
    clock.now += 60
    kept.record_outcome("srv", archived(3), 0.1)
    assert [minute.files for minute in kept.snapshot().minutes[-2:]] == [2, 1]


def test_a_clock_that_was_ahead_at_the_start_shows_a_minute_all_the_same(kept: Activity, clock: Clock) -> None:
    clock.now -= 600
    assert len(kept.snapshot().minutes) == 1


@pytest.mark.parametrize("scale", [0.004, 0.1, 3.0, 900.0])
def test_quantiles_are_right_to_five_percent(kept: Activity, scale: float) -> None:
    for number in range(1, 101):
        kept.record_outcome("srv", archived(number), scale * number / 100)
    (minute,) = kept.snapshot().minutes
    assert minute.p50 == pytest.approx(scale * 0.5, rel=0.06)
    assert minute.p99 == pytest.approx(scale * 0.99, rel=0.06)


def test_files_without_an_event_have_no_latency(kept: Activity) -> None:
    kept.record_outcome("srv", archived(1), None)
    (minute,) = kept.snapshot().minutes
    assert (minute.p50, minute.p99) == (None, None)


def test_the_newest_files_come_first_up_to_a_limit(kept: Activity) -> None:
    for number in range(NEWEST + 10):
        kept.record_outcome("srv", archived(number), 0.1)
    newest = kept.snapshot().newest
    assert len(newest) == NEWEST
    assert newest[0].id == NEWEST + 9
    assert newest[0].path == f"/archive/{NEWEST + 9}.npy"


def test_what_fails_is_grouped_by_reason_with_the_newest_and_each_file_counts_once(
    kept: Activity, clock: Clock
) -> None:
    kept.record_outcome("srv", AttemptFailed(record(1), Reason.MISSING, "not there"), None)
    kept.record_outcome("srv", AttemptFailed(record(2), Reason.MISSING, "not there either"), None)
    kept.record_outcome("srv", Refused(record(3), Reason.NO_MD5, "no md5"), None)
    clock.now += 5
    kept.record_outcome("srv", AttemptFailed(record(1), Reason.MISSING, "still not there"), None)
    missing, no_md5 = kept.snapshot().failing
    assert (missing.reason, missing.fault, missing.files) == ("missing", "file", 2)
    assert (missing.newest.id, missing.newest.detail) == (1, "still not there")
    assert (no_md5.reason, no_md5.fault, no_md5.files) == ("no_md5", "row", 1)
    assert kept.snapshot().minutes[0].failed == 4


def test_a_file_that_fails_for_another_reason_counts_only_for_that_one(kept: Activity) -> None:
    kept.record_outcome("srv", Deferred(record(1), Reason.HOST_UNREACHABLE, "refused"), None)
    kept.record_outcome("srv", AttemptFailed(record(1), Reason.MISSING, "not there"), None)
    assert [(each.reason, each.files) for each in kept.snapshot().failing] == [("missing", 1)]


def test_a_file_that_is_archived_or_dismissed_fails_no_more(kept: Activity) -> None:
    for number in (1, 2):
        kept.record_outcome("srv", AttemptFailed(record(number), Reason.MISSING, "not there"), None)
    kept.record_outcome("srv", archived(1), 0.1)
    kept.dismiss(2)
    kept.dismiss(4711)
    assert kept.snapshot().failing == ()


def test_a_stop_is_not_a_failure(kept: Activity) -> None:
    kept.record_outcome("srv", Deferred(record(1), Reason.STOPPING, "stopping"), None)
    assert kept.snapshot().failing == ()


def test_failures_of_a_source_held_by_another_are_forgotten(kept: Activity) -> None:
    kept.record_outcome("mine", AttemptFailed(record(1), Reason.MISSING, "not there"), None)
    kept.record_outcome("theirs", AttemptFailed(record(2), Reason.MISSING, "not there"), None)
    kept.forget("theirs")
    assert [each.newest.id for each in kept.snapshot().failing] == [1]
    kept.forget()
    assert kept.snapshot().failing == ()


def test_the_numbers_of_retried_and_given_up_files_are_told_at_each_change(kept: Activity) -> None:
    told: list[tuple[str, str, int]] = []
    kept.on_retried = lambda *change: told.append(change)
    kept.max_attempts = 1
    kept.record_outcome("srv", Deferred(record(1), Reason.LINK_LOST, "cut"), None)
    kept.record_outcome("srv", Deferred(record(1), Reason.LINK_LOST, "cut"), None)
    kept.record_outcome("srv", AttemptFailed(record(1), Reason.MISSING, "not there"), None)
    kept.record_outcome("srv", Refused(record(2), Reason.NO_MD5, "no md5"), None)
    assert told[-1] == ("srv", "link_lost", 0)
    assert max(files for _, _, files in told) == 1
    assert kept.given_up("srv") == GivenUp(1, 1, 1)
    kept.table_counted("srv")
    assert kept.given_up("srv") == GivenUp(1, 0, 0)


def test_memory_is_bounded_however_much_fails(kept: Activity) -> None:
    with patch.object(activity, "FAILING_LIMIT", 10):
        for number in range(25):
            kept.record_outcome("srv", AttemptFailed(record(number), Reason.MISSING, "x" * 10_000), None)
    seen = kept.snapshot()
    assert seen.failing[0].files == 10
    assert seen.forgotten == 15
    assert len(seen.failing[0].newest.detail) < 1000
