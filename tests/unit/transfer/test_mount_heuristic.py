"""When many files are missing, is it theirs or their disk's fault?"""

import pytest
from records import record

from cdc_archiver.model import Archived, AttemptFailed, Deferred, Outcome, Reason
from cdc_archiver.transfer.mount_heuristic import UnmountedDiskDetector, judge_batch
from cdc_archiver.transfer.rsync_output import Verdict


def missing(*entries: bytes) -> dict[bytes, Verdict]:
    return {entry: Verdict(Reason.MISSING, "…") for entry in entries}


def test_a_whole_batch_missing_is_an_unmounted_disk() -> None:
    held = judge_batch(missing(b"a", b"b", b"c", b"d"), 4, fresh={b"a", b"b", b"c"})
    assert {verdict.reason for verdict in held.values()} == {Reason.SOURCE_NOT_MOUNTED}


@pytest.mark.parametrize(
    ("verdicts", "entries", "fresh"),
    [
        (missing(b"a", b"b"), 2, {b"a", b"b"}),
        (missing(b"a", b"b", b"c"), 4, {b"a", b"b", b"c"}),
        (missing(b"a", b"b", b"c"), 3, {b"a", b"b"}),
        ({**missing(b"a", b"b"), b"c": Verdict(Reason.UNREADABLE, "…")}, 3, {b"a", b"b", b"c"}),
        ({}, 3, {b"a"}),
    ],
    ids=["two", "others arrived", "known to be missing", "one is there", "none"],
)
def test_otherwise_it_is_the_files_own_fault(verdicts: dict[bytes, Verdict], entries: int, fresh: set[bytes]) -> None:
    assert judge_batch(verdicts, entries, fresh) == verdicts


def charged(id_: int, reason: Reason = Reason.MISSING, *, attempts: int = 0, disk_seen: bool = False) -> AttemptFailed:
    return AttemptFailed(record(id=id_, failed_copy_attempts=attempts), reason, "…", disk_seen=disk_seen)


def test_two_files_that_are_missing_one_after_the_other_are_charged_and_the_third_is_not() -> None:
    absences = UnmountedDiskDetector()
    judged = []
    for id_ in (1, 2, 3, 4):
        absences.begin_batch("small-0")
        judged.append(absences.judge("small-0", charged(id_)))
    assert [type(outcome) for outcome in judged] == [AttemptFailed, AttemptFailed, Deferred, Deferred]
    assert isinstance(judged[2], Deferred)
    assert judged[2].reason is Reason.SOURCE_NOT_MOUNTED


@pytest.mark.parametrize(
    "between",
    [
        Archived(record(id=9), "/data/…", 1, adopted=False),
        charged(9, Reason.CHANGED),
    ],
    ids=["one arrives", "one is there, and another"],
)
def test_one_that_is_there_shows_that_the_disk_is(between: Outcome) -> None:
    absences = UnmountedDiskDetector()
    for id_ in (1, 2):
        absences.judge("small-0", charged(id_))
    absences.judge("small-1", between)
    absences.begin_batch("small-0")
    assert isinstance(absences.judge("small-0", charged(3)), AttemptFailed)


def test_one_that_lay_in_the_archive_already_shows_nothing_of_the_sources_disk() -> None:
    absences = UnmountedDiskDetector()
    for id_ in (1, 2):
        absences.judge("small-0", charged(id_))
    absences.judge("small-0", Archived(record(id=9), "/data/…", 1, adopted=True))
    assert isinstance(absences.judge("small-0", charged(3)), Deferred)


def test_while_the_disk_is_taken_for_not_mounted_nobody_is_charged() -> None:
    """Or else those that were charged before it was would lose all their tries on it."""
    absences = UnmountedDiskDetector()
    outcome = absences.judge("small-0", charged(1, attempts=1), suspected=True)
    assert isinstance(outcome, Deferred)
    assert outcome.reason is Reason.SOURCE_NOT_MOUNTED
    assert isinstance(absences.judge("small-0", charged(1, attempts=1, disk_seen=True), suspected=True), AttemptFailed)


def test_what_is_known_to_be_missing_or_was_looked_for_on_its_disk_is_charged() -> None:
    absences = UnmountedDiskDetector()
    for id_ in (1, 2, 3):
        assert isinstance(absences.judge("small-0", charged(id_, attempts=1)), AttemptFailed)
        assert isinstance(absences.judge("small-0", charged(id_ + 10, disk_seen=True)), AttemptFailed)
