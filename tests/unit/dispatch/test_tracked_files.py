"""The in-flight table: each id is tracked once, comes back when it is due, and a report of our own write is no news."""

from __future__ import annotations

from cdc_archiver.dispatch.tracked_files import OfferResult, TrackedFiles, TrackedState
from cdc_archiver.model import Origin

STREAM, SWEEP = Origin.STREAM, Origin.SWEEP


def in_flight(table: TrackedFiles, id_: int) -> None:
    """Brings an id from its announcement to a worker."""
    table.offer(id_, STREAM, 0.0, fresh=True)
    table.queued(id_)
    assert table.taken(id_, 1.0)


def test_stream_and_sweep_may_both_offer_an_id_and_it_is_taken_once() -> None:
    table = TrackedFiles()
    assert table.offer(7, STREAM, 0.0, fresh=True) is OfferResult.OFFERED
    assert table.offer(7, SWEEP, 0.0, fresh=False) is OfferResult.DUPLICATE
    table.queued(7)
    assert table.offer(7, SWEEP, 0.0, fresh=False) is OfferResult.DUPLICATE
    assert table.count(TrackedState.QUEUED) == 1


def test_a_finished_id_is_forgotten_and_may_be_offered_anew() -> None:
    table = TrackedFiles()
    in_flight(table, 7)
    assert not table.finished(7)
    assert 7 not in table
    assert table.offer(7, SWEEP, 0.0, fresh=False) is OfferResult.OFFERED


def test_a_row_that_was_changed_while_it_was_copied_is_read_again() -> None:
    table = TrackedFiles()
    in_flight(table, 7)
    table.offer(7, STREAM, 2.0, fresh=True)
    assert table.finished(7)
    assert table[7].state is TrackedState.OFFERED


def test_a_row_that_was_changed_while_it_was_queued_is_read_again_before_it_is_copied() -> None:
    table = TrackedFiles()
    table.offer(7, STREAM, 0.0, fresh=True)
    table.queued(7)
    table.offer(7, STREAM, 0.5, fresh=True)
    assert not table.taken(7, 1.0)
    table.queued(7)
    assert table.taken(7, 2.0)


def test_a_retry_waits_for_its_time_and_not_for_a_sweep() -> None:
    table = TrackedFiles()
    in_flight(table, 7)
    table.retry(7, due=10.0)
    assert table.offer(7, SWEEP, 5.0, fresh=False) is OfferResult.DUPLICATE
    assert table.next_due() == 10.0
    assert table.due(9.9) == []
    assert table.due(10.0) == [7]
    assert table.due(11.0) == []


def test_an_operators_update_ends_a_wait_atomically() -> None:
    table = TrackedFiles()
    in_flight(table, 7)
    table.retry(7, due=100.0)
    assert table.offer(7, STREAM, 5.0, fresh=True) is OfferResult.OFFERED
    table.queued(7)
    table.taken(7, 6.0)
    table.retry(7, due=200.0)
    assert table.due(100.0) == [], "the first wait is over and done with"
    assert table.due(200.0) == [7]


def test_an_update_during_the_try_ends_the_wait_after_it() -> None:
    table = TrackedFiles()
    in_flight(table, 7)
    table.offer(7, STREAM, 2.0, fresh=True)
    table.retry(7, due=100.0)
    assert table.due(2.0) == [7]


def test_the_report_of_an_own_write_is_dropped_once() -> None:
    table = TrackedFiles()
    table.expect_own_writes([7], 0.0)
    assert table.offer(7, STREAM, 0.1, fresh=True) is OfferResult.OWN_WRITE
    assert table.offer(7, STREAM, 0.2, fresh=True) is OfferResult.OFFERED


def test_a_report_of_an_own_write_that_comes_too_late_or_was_cancelled_is_news() -> None:
    table = TrackedFiles()
    table.expect_own_writes([1, 2, 3], 0.0)
    table.cancel_own_writes([2])
    assert table.offer(1, STREAM, 61.0, fresh=True) is OfferResult.OFFERED
    assert table.offer(2, STREAM, 1.0, fresh=True) is OfferResult.OFFERED
    table.forget_own_writes()
    assert table.offer(3, STREAM, 1.0, fresh=True) is OfferResult.OFFERED


def test_reports_of_own_writes_that_never_come_are_forgotten() -> None:
    table = TrackedFiles()
    for number in range(200_000):
        table.expect_own_writes([number], float(number))
    assert table.expected_own_writes < 100_000
