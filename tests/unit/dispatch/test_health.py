"""When a source, or the destination, is paused, and how it comes back."""

from __future__ import annotations

import pytest

from cdc_archiver.dispatch.health import Health
from cdc_archiver.model import Reason


def test_trouble_pauses_and_one_batch_goes_first_when_the_pause_is_over() -> None:
    health = Health()
    assert health.may_try(0.0)
    assert health.failed(Reason.HOST_UNREACHABLE, "refused", now=0.0, jitter=0.5)
    assert not health.may_try(0.5)
    assert health.may_try(health.until)
    health.begin(health.until)
    assert not health.may_try(health.until), "one goes first"
    assert health.succeeded(health.until)
    assert health.up
    assert health.may_try(0.0)


def test_a_batch_that_proved_nothing_lets_the_next_one_try() -> None:
    health = Health()
    health.failed(Reason.HOST_UNREACHABLE, "", 0.0, 0.5)
    health.begin(health.until)
    health.end()
    assert health.may_try(health.until)
    assert not health.up


def test_pauses_grow_to_a_limit_and_one_outage_counts_once() -> None:
    health = Health()
    pauses = []
    now = 0.0
    for _ in range(12):
        health.failed(Reason.LINK_LOST, "", now, 0.5)
        assert not health.failed(Reason.LINK_LOST, "", now, 0.5), "another batch met the same"
        pauses.append(health.until - now)
        now = health.until
    assert pauses == sorted(pauses)
    assert pauses[:3] == [1.0, 2.0, 4.0]
    assert pauses[-1] == 60.0


def test_jitter_spreads_the_return() -> None:
    early, late = Health(), Health()
    early.failed(Reason.LINK_LOST, "", 0.0, 0.0)
    late.failed(Reason.LINK_LOST, "", 0.0, 1.0)
    assert (early.until, late.until) == (0.75, 1.25)


@pytest.mark.parametrize(
    ("first", "then", "news"),
    [
        (Reason.HOST_UNREACHABLE, Reason.HOST_UNREACHABLE, False),
        (Reason.HOST_UNREACHABLE, Reason.HOST_KEY, True),
    ],
)
def test_repeated_trouble_is_no_news_and_other_trouble_is(first: Reason, then: Reason, news: bool) -> None:
    health = Health()
    assert health.failed(first, "", 0.0, 0.5)
    assert health.failed(then, "", 100.0, 0.5) is news


def test_corruption_pauses_for_long_and_no_success_ends_it() -> None:
    health = Health()
    health.failed(Reason.CORRUPTED, "", 0.0, 0.5)
    assert health.until == 300.0
    assert not health.succeeded(10.0)
    assert not health.may_try(10.0)
    assert health.succeeded(300.0)


def test_two_that_see_one_outage_differently_are_one_failure() -> None:
    health = Health()
    for number in range(12):
        health.failed((Reason.LINK_LOST, Reason.HOST_UNREACHABLE)[number % 2], "", number / 1000, 0.5)
    assert health.failures == 1
    assert health.until < 1.1


def test_a_first_batch_that_takes_long_delays_the_others_for_a_moment_only() -> None:
    health = Health()
    health.failed(Reason.NO_SPACE, "", 0.0, 0.5)
    health.begin(10.0)
    assert not health.may_try(20.0)
    assert health.may_try(26.0)
