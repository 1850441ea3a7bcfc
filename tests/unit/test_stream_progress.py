"""What may be called missed, and what may not."""

from __future__ import annotations

import random

from cdc_archiver.database.server import Position
from cdc_archiver.events.binlog import Wait
from cdc_archiver.events.progress import Progress

HERE, THERE, BEYOND = Position("binlog.000009", 100), Position("binlog.000009", 200), Position("binlog.000010", 4)


def begun() -> Progress:
    progress = Progress()
    progress.begin(HERE)
    progress.settle(50)
    return progress


def test_a_stream_has_passed_where_it_is_and_what_lies_behind() -> None:
    progress = begun()
    progress.advance(THERE)
    assert progress.passed(HERE)
    assert progress.passed(THERE)
    assert not progress.passed(BEYOND)


def test_missed_is_what_is_above_the_anchor_passed_and_not_delivered() -> None:
    progress = begun()
    progress.deliver([52, 60])
    assert progress.missed([51], THERE) == [], "it may still come"
    progress.advance(THERE)
    assert progress.missed([49, 50, 51, 52, 53, 60], THERE) == [51, 53]


def test_before_the_anchor_is_settled_nothing_is_missed() -> None:
    progress = Progress()
    assert progress.missed([51], HERE) == []
    progress.begin(THERE)
    assert progress.anchor_max_id is None
    assert progress.missed([51], HERE) == []


def test_a_new_anchor_forgets_what_the_old_one_knew() -> None:
    """Or else everything that the first stream delivered, the second would have missed."""
    progress = begun()
    progress.deliver([51])
    progress.end()
    assert progress.position is None
    assert not progress.passed(HERE)
    assert progress.missed([51, 52], HERE) == []
    progress.begin(THERE)
    assert progress.missed([51, 52], THERE) == []
    assert 51 not in progress.delivered


def test_waits_grow_to_their_limit_with_jitter_and_begin_anew_after_success() -> None:
    wait = Wait(0.1, 10.0, random.Random(1))
    waits = [wait.next() for _ in range(12)]
    full = [min(0.1 * 2**n, 10.0) for n in range(12)]
    assert all(limit / 2 <= seconds <= limit for seconds, limit in zip(waits, full, strict=True))
    assert len({round(seconds, 6) for seconds in waits[-5:]}) == 5, "no two alike"
    wait.reset()
    assert wait.next() <= 0.1
