"""When many files are missing: were they deleted, or is their disk not mounted?"""

import pytest
from records import record

from cdc_archiver.model import Archived, AttemptFailed, Deferred, Outcome, Reason
from cdc_archiver.transfer.rsync_output import CopyFailure
from cdc_archiver.transfer.source_mount_heuristic import UnmountedDiskDetector, judge_batch


def missing(*entries: bytes) -> dict[bytes, CopyFailure]:
    return {entry: CopyFailure(Reason.MISSING, "…") for entry in entries}


def test_a_whole_batch_missing_is_an_unmounted_disk() -> None:
    held = judge_batch(missing(b"a", b"b", b"c", b"d"), 4, fresh={b"a", b"b", b"c"})
    assert {verdict.reason for verdict in held.values()} == {Reason.SOURCE_NOT_MOUNTED}


@pytest.mark.parametrize(
    ("verdicts", "entries", "fresh"),
    [
        (missing(b"a", b"b"), 2, {b"a", b"b"}),
        (missing(b"a", b"b", b"c"), 4, {b"a", b"b", b"c"}),
        (missing(b"a", b"b", b"c"), 3, {b"a", b"b"}),
        ({**missing(b"a", b"b"), b"c": CopyFailure(Reason.UNREADABLE, "…")}, 3, {b"a", b"b", b"c"}),
        ({}, 3, {b"a"}),
    ],
    ids=["two", "others arrived", "known to be missing", "one is there", "none"],
)
def test_otherwise_the_files_are_missing(verdicts: dict[bytes, CopyFailure], entries: int, fresh: set[bytes]) -> None:
    assert judge_batch(verdicts, entries, fresh) == verdicts


def failed(
    id_: int, reason: Reason = Reason.MISSING, *, attempts: int = 0, mount_confirmed: bool = False
) -> AttemptFailed:
    return AttemptFailed(record(id=id_, failed_copy_attempts=attempts), reason, "…", mount_confirmed=mount_confirmed)


def test_two_files_missing_one_after_the_other_fail_and_the_third_is_deferred() -> None:
    detector = UnmountedDiskDetector()
    judged = []
    for id_ in (1, 2, 3, 4):
        detector.begin_batch("small-0")
        judged.append(detector.judge("small-0", failed(id_)))
    assert [type(outcome) for outcome in judged] == [AttemptFailed, AttemptFailed, Deferred, Deferred]
    assert isinstance(judged[2], Deferred)
    assert judged[2].reason is Reason.SOURCE_NOT_MOUNTED


@pytest.mark.parametrize(
    "between",
    [
        Archived(record(id=9), "/data/…", 1, adopted=False),
        failed(9, Reason.CHANGED),
    ],
    ids=["one arrives", "one is there, and another"],
)
def test_a_file_that_is_there_shows_that_the_disk_is_mounted(between: Outcome) -> None:
    detector = UnmountedDiskDetector()
    for id_ in (1, 2):
        detector.judge("small-0", failed(id_))
    detector.judge("small-1", between)
    detector.begin_batch("small-0")
    assert isinstance(detector.judge("small-0", failed(3)), AttemptFailed)


def test_an_adopted_file_shows_nothing_about_the_sources_disk() -> None:
    detector = UnmountedDiskDetector()
    for id_ in (1, 2):
        detector.judge("small-0", failed(id_))
    detector.judge("small-0", Archived(record(id=9), "/data/…", 1, adopted=True))
    assert isinstance(detector.judge("small-0", failed(3)), Deferred)


def test_while_the_disk_seems_not_to_be_mounted_no_failed_attempt_counts() -> None:
    """Else files that failed before would use up all their attempts meanwhile."""
    detector = UnmountedDiskDetector()
    outcome = detector.judge("small-0", failed(1, attempts=1), suspected=True)
    assert isinstance(outcome, Deferred)
    assert outcome.reason is Reason.SOURCE_NOT_MOUNTED
    assert isinstance(
        detector.judge("small-0", failed(1, attempts=1, mount_confirmed=True), suspected=True), AttemptFailed
    )


def test_a_file_that_was_missing_before_or_whose_disk_was_seen_fails() -> None:
    detector = UnmountedDiskDetector()
    for id_ in (1, 2, 3):
        assert isinstance(detector.judge("small-0", failed(id_, attempts=1)), AttemptFailed)
        assert isinstance(detector.judge("small-0", failed(id_ + 10, mount_confirmed=True)), AttemptFailed)
