"""The ledger: each id is in hand once, comes back when it is due, and an echo of our own write is no news."""

from __future__ import annotations

from cdc_archiver.dispatch.in_flight import InFlightState, InFlightTable, OfferResult
from cdc_archiver.model import Origin

STREAM, SWEEP = Origin.STREAM, Origin.SWEEP


def in_flight(ledger: InFlightTable, id_: int) -> None:
    """Brings an id from the door to a worker."""
    ledger.offer(id_, STREAM, 0.0, fresh=True)
    ledger.queued(id_)
    assert ledger.taken(id_, 1.0)


def test_stream_and_sweep_may_both_offer_an_id_and_it_is_taken_once() -> None:
    ledger = InFlightTable()
    assert ledger.offer(7, STREAM, 0.0, fresh=True) is OfferResult.OFFERED
    assert ledger.offer(7, SWEEP, 0.0, fresh=False) is OfferResult.DUPLICATE
    ledger.queued(7)
    assert ledger.offer(7, SWEEP, 0.0, fresh=False) is OfferResult.DUPLICATE
    assert ledger.count(InFlightState.QUEUED) == 1


def test_a_finished_id_is_forgotten_and_may_be_offered_anew() -> None:
    ledger = InFlightTable()
    in_flight(ledger, 7)
    assert not ledger.finished(7)
    assert 7 not in ledger
    assert ledger.offer(7, SWEEP, 0.0, fresh=False) is OfferResult.OFFERED


def test_a_row_that_was_touched_while_it_was_copied_is_looked_at_again() -> None:
    ledger = InFlightTable()
    in_flight(ledger, 7)
    ledger.offer(7, STREAM, 2.0, fresh=True)
    assert ledger.finished(7)
    assert ledger[7].state is InFlightState.OFFERED


def test_a_row_that_was_touched_while_it_was_queued_is_read_again_before_it_is_copied() -> None:
    ledger = InFlightTable()
    ledger.offer(7, STREAM, 0.0, fresh=True)
    ledger.queued(7)
    ledger.offer(7, STREAM, 0.5, fresh=True)
    assert not ledger.taken(7, 1.0)
    ledger.queued(7)
    assert ledger.taken(7, 2.0)


def test_a_retry_waits_for_its_time_and_not_for_a_sweep() -> None:
    ledger = InFlightTable()
    in_flight(ledger, 7)
    ledger.retry(7, due=10.0)
    assert ledger.offer(7, SWEEP, 5.0, fresh=False) is OfferResult.DUPLICATE
    assert ledger.next_due() == 10.0
    assert ledger.due(9.9) == []
    assert ledger.due(10.0) == [7]
    assert ledger.due(11.0) == []


def test_an_operators_update_ends_a_wait_atomically() -> None:
    ledger = InFlightTable()
    in_flight(ledger, 7)
    ledger.retry(7, due=100.0)
    assert ledger.offer(7, STREAM, 5.0, fresh=True) is OfferResult.OFFERED
    ledger.queued(7)
    ledger.taken(7, 6.0)
    ledger.retry(7, due=200.0)
    assert ledger.due(100.0) == [], "the first wait is over and done with"
    assert ledger.due(200.0) == [7]


def test_an_update_during_the_try_ends_the_wait_after_it() -> None:
    ledger = InFlightTable()
    in_flight(ledger, 7)
    ledger.offer(7, STREAM, 2.0, fresh=True)
    ledger.retry(7, due=100.0)
    assert ledger.due(2.0) == [7]


def test_the_echo_of_our_own_write_is_dropped_once() -> None:
    ledger = InFlightTable()
    ledger.expect_own_writes([7], 0.0)
    assert ledger.offer(7, STREAM, 0.1, fresh=True) is OfferResult.OWN_WRITE
    assert ledger.offer(7, STREAM, 0.2, fresh=True) is OfferResult.OFFERED


def test_an_echo_that_comes_too_late_or_was_cancelled_is_news() -> None:
    ledger = InFlightTable()
    ledger.expect_own_writes([1, 2, 3], 0.0)
    ledger.cancel_own_writes([2])
    assert ledger.offer(1, STREAM, 61.0, fresh=True) is OfferResult.OFFERED
    assert ledger.offer(2, STREAM, 1.0, fresh=True) is OfferResult.OFFERED
    ledger.forget_own_writes()
    assert ledger.offer(3, STREAM, 1.0, fresh=True) is OfferResult.OFFERED


def test_echoes_that_never_come_are_forgotten() -> None:
    ledger = InFlightTable()
    for number in range(200_000):
        ledger.expect_own_writes([number], float(number))
    assert ledger.expected_own_writes < 100_000
