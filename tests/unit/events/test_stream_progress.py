"""What may be called missed, and what may not."""

from __future__ import annotations

import math
import random
import time
from typing import Any

import pytest

from cdc_archiver.database.server_features import Position
from cdc_archiver.events.binlog_stream import Backoff
from cdc_archiver.events.event_reader import StreamMark
from cdc_archiver.events.stream_progress import StreamProgress

HERE, THERE, BEYOND = Position("binlog.000009", 100), Position("binlog.000009", 200), Position("binlog.000010", 4)


def mark(position: Position, *, age: float = 0.0, read: float = 0.0, idle: bool = False) -> StreamMark:
    """The end of a transaction that was written some seconds before it was read, and read some seconds ago."""
    written_at = round(time.time() - age - read)
    return StreamMark(position.file, position.offset, written_at, time.monotonic() - read, idle)


def begun() -> StreamProgress:
    progress = StreamProgress()
    progress.begin(HERE)
    progress.settle(50)
    return progress


def test_missed_is_what_is_above_the_anchor_and_not_delivered_when_it_is_passed() -> None:
    progress = begun()
    progress.deliver([52, 60])
    progress.suspect([49, 50, 51, 52, 53, 60], THERE)
    assert progress.take_missed() == [], "they may still come"
    progress.deliver([53])
    progress.advance(mark(THERE))
    progress.deliver([51])  # too late: this is the echo of what was done to it since
    assert progress.take_missed() == [51]
    assert progress.take_missed() == [], "it is told once"


def test_suspects_before_the_position_are_decided_at_once() -> None:
    progress = begun()
    progress.advance(mark(BEYOND))
    progress.suspect([51], THERE)
    assert progress.take_missed() == [51]


def test_before_the_anchor_is_settled_and_after_a_gap_nothing_is_missed() -> None:
    progress = StreamProgress()
    progress.suspect([51], HERE)
    progress.begin(HERE)
    assert progress.anchor_max_id is None
    progress.suspect([51], HERE)
    progress.settle(50)
    progress.suspect([51], THERE)
    progress.unsettle()
    assert progress.anchor_max_id is None
    progress.suspect([51], THERE)
    progress.advance(mark(THERE))
    assert progress.take_missed() == []
    progress.settle(60)
    progress.suspect([60, 61], THERE)
    assert progress.take_missed() == [61], "and then it counts again"


def test_a_new_anchor_covers_what_the_old_one_did_not() -> None:
    """Or else everything that the first stream delivered, the second would have missed."""
    progress = begun()
    progress.deliver([51])
    progress.suspect([52], THERE)
    progress.end()
    assert progress.position is None
    progress.suspect([51, 52], HERE)
    progress.begin(THERE)
    progress.settle(50)
    progress.advance(mark(BEYOND))
    assert progress.take_missed() == []
    assert 51 not in progress.delivered


def test_position_and_lag_are_of_the_newest_mark_whenever_they_are_asked() -> None:
    progress = StreamProgress()
    assert math.isnan(progress.lag)
    progress.begin(HERE)
    assert (progress.position, progress.lag) == (HERE, 0)
    progress.advance(mark(THERE, age=100, read=1000))
    assert progress.position == THERE
    assert progress.lag == pytest.approx(100, abs=30), "its age when it was read, however long ago that was"
    progress.advance(mark(BEYOND, age=-100))
    assert progress.lag == 0, "the server's clock is ahead"
    progress.advance(mark(BEYOND, age=100, idle=True))
    assert (progress.position, progress.lag) == (BEYOND, 0)
    progress.end()
    assert math.isnan(progress.lag)


def test_suspects_added_while_the_stream_passes_their_position_are_decided_at_once() -> None:
    """The stream looks for suspects without the lock; a sweep may have some when it has just looked."""
    progress = begun()

    class SeenEmpty(list[Any]):
        def __bool__(self) -> bool:
            if not self.swept:
                self.swept = True
                progress.suspect([51], THERE)
                return False
            return len(self) > 0

        swept = False

    progress._suspects = SeenEmpty()
    progress.advance(mark(THERE))
    assert progress.take_missed() == [51]


def test_waits_grow_to_their_limit_with_jitter_and_begin_anew_after_success() -> None:
    backoff = Backoff(0.1, 10.0, random.Random(1))
    waits = [backoff.next() for _ in range(12)]
    full = [min(0.1 * 2**n, 10.0) for n in range(12)]
    assert all(limit / 2 <= seconds <= limit for seconds, limit in zip(waits, full, strict=True))
    assert len({round(seconds, 6) for seconds in waits[-5:]}) == 5, "no two alike"
    backoff.reset()
    assert backoff.next() <= 0.1
