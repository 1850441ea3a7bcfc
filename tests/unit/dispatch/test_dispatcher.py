"""The dispatcher: who takes what, in which order, and what trouble does to it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self

import pytest
from records import record
from waiting import eventually

from cdc_archiver.dispatch import scheduler as module
from cdc_archiver.dispatch.dispatcher import Dispatcher
from cdc_archiver.dispatch.router import Targets
from cdc_archiver.model import (
    Archived,
    AttemptFailed,
    Batch,
    Deferred,
    FileRecord,
    Lane,
    Origin,
    Outcome,
    Oversize,
    Reason,
    Refused,
)
from cdc_archiver.observe.metrics import Metrics
from cdc_archiver.settings import load


class Clock:
    """Time that passes when it is told to, and at each look a little, so that no wait lasts."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.0001
        return self.now


class RealClock(Clock):
    """Time as it is. Whoever waits looks at it first, with the lock held: who has looked, waits as soon as the lock is free."""

    def __init__(self) -> None:
        super().__init__()
        self.looks = 0

    def __call__(self) -> float:
        self.looks += 1
        return time.monotonic()


class Stage:
    """A dispatcher of one source, `srv`, and what it asked for."""

    def __init__(self, clock: Clock | None = None, **settings: Any) -> None:
        self.clock = clock or Clock()
        self.metrics = Metrics()
        self.sweeps_wanted = 0
        loaded = load({"target": ("pysmurf-monitor",), "host": "srv", **settings}, environment={})
        self.dispatcher = Dispatcher(loaded, self.metrics, self._want_sweep, self.clock)

    def _want_sweep(self) -> None:
        self.sweeps_wanted += 1

    def queue(self, ids: Iterable[int], *, fresh: bool = True, **changes: Any) -> None:
        """Brings ids through the door and the router."""
        origin = Origin.STREAM if fresh else Origin.SWEEP
        self.dispatcher.offer(ids, origin, fresh=fresh)
        for id_ in self.dispatcher.take_ids(10_000, 0.0):
            self.dispatcher.enqueue("srv", record(id=id_, **changes))

    def take(self, lane: Lane = Lane.SMALL) -> Batch | None:
        return self.dispatcher.take("srv", lane, f"{lane}-0", 0.0)

    def judge(self, outcome: Outcome, worker: str = "small-0") -> Outcome:
        return self.dispatcher.judge(Batch("srv", Lane.SMALL, worker, (outcome.record,)), outcome)

    def taken(self, lane: Lane = Lane.SMALL) -> list[FileRecord]:
        batch = self.take(lane)
        return list(batch.records) if batch else []

    def ids(self, lane: Lane = Lane.SMALL) -> list[int]:
        return [taken.id for taken in self.taken(lane)]

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.total(name, **labels)


def test_a_worker_takes_all_that_waits_fresh_files_before_the_backlog() -> None:
    stage = Stage(batch_files=5)
    stage.queue([1, 2, 3, 4], fresh=False)
    stage.queue([11, 12])
    assert stage.ids() == [11, 12, 1, 2, 3]
    assert stage.ids() == [4]
    assert stage.ids() == []


def test_a_huge_file_goes_to_the_bulk_lane_and_holds_up_no_other() -> None:
    stage = Stage()
    stage.queue([1, 2])
    big, _ = stage.taken()
    stage.judge(Oversize(big))
    assert stage.ids() == []
    assert stage.ids(Lane.BULK) == [1]


def test_a_full_queue_drops_the_id_and_asks_for_a_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a queue for ten records
    monkeypatch.setattr(module, "QUEUE_LIMIT", 10)
    monkeypatch.setattr(module, "REFILL_BELOW", 5)
    stage = Stage()
    # When twelve come
    stage.queue(range(1, 13))
    # Then ten wait, the others are dropped and known as such, and a sweep is wanted once there is room.
    assert stage.count("queue_depth", source="srv") == 10
    assert stage.count("stream_events_total", outcome="dropped") == 2
    assert stage.dispatcher.was_dropped(12)
    assert not stage.dispatcher.was_dropped(10)
    assert stage.sweeps_wanted == 0
    stage.ids()
    stage.dispatcher.finish("srv")
    assert stage.sweeps_wanted == 1


def test_a_flood_beyond_the_inbox_is_dropped_in_constant_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INBOX_LIMIT", 100)
    stage = Stage()
    assert len(stage.dispatcher.offer(range(1000), Origin.STREAM, fresh=True)) == 100
    assert stage.count("stream_events_total", outcome="dropped") == 900
    assert stage.sweeps_wanted == 1


def test_a_sweep_may_not_fill_the_room_that_is_kept_for_fresh_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BACKLOG_LIMIT", 8)
    stage = Stage()
    stage.queue(range(6), fresh=False)
    assert stage.dispatcher.room("srv") == 2
    stage.queue(range(6, 9), fresh=False)
    assert stage.dispatcher.room("srv") == 0


def test_trouble_of_the_host_pauses_the_source_and_charges_nobody() -> None:
    stage = Stage()
    stage.queue([1, 2])
    first, second = stage.taken()
    for each in (first, second):
        outcome = stage.judge(Deferred(each, Reason.HOST_UNREACHABLE, "refused"))
        assert isinstance(outcome, Deferred)
    stage.dispatcher.finish("srv")
    stage.queue([3])
    assert stage.ids() == [], "the source is left alone"
    assert stage.count("source_up", source="srv") == 0
    # When the pause is over, what was deferred is read anew and goes along.
    stage.clock.now += 2.0
    for id_ in stage.dispatcher.take_ids(100, 0.0):
        stage.dispatcher.enqueue("srv", record(id=id_))
    assert sorted(stage.ids()) == [1, 2, 3]


def test_after_a_pause_one_batch_goes_first_and_its_success_opens_the_way() -> None:
    stage = Stage(batch_files=1)
    stage.queue([1, 2, 3])
    (first,) = stage.taken()
    stage.judge(Deferred(first, Reason.LINK_LOST, "cut"))
    stage.dispatcher.finish("srv")
    stage.clock.now += 2.0
    (second,) = stage.taken()
    assert stage.ids() == [], "one goes first"
    stage.judge(Archived(second, "/data/x", 1))
    assert stage.ids() == [3]


def test_trouble_of_the_destination_stops_all_lanes() -> None:
    stage = Stage()
    stage.queue([1, 2])
    first, second = stage.taken()
    stage.judge(Oversize(second))
    stage.judge(Deferred(first, Reason.NO_SPACE, "full"))
    stage.dispatcher.finish("srv")
    assert stage.ids(Lane.BULK) == []
    assert stage.dispatcher.destination[:2] == (False, "no_space")


def test_a_charged_file_is_tried_again_in_seconds_then_minutes_then_never() -> None:
    stage = Stage(max_attempts=3)
    waits = []
    stage.queue([1])
    for attempts in range(3):
        (taken,) = stage.taken()
        outcome = stage.judge(AttemptFailed(taken, Reason.CHANGED, "…"))
        assert isinstance(outcome, AttemptFailed)
        stage.dispatcher.settled("srv", outcome, counted=True)
        start = stage.clock.now
        while attempts < 2 and not (ids := stage.dispatcher.take_ids(10, 0.0)):
            stage.clock.now += 1.0
        if attempts < 2:
            waits.append(stage.clock.now - start)
            stage.dispatcher.enqueue("srv", record(id=ids[0], failed_copy_attempts=attempts + 1))
    assert 4 <= waits[0] <= 7
    assert 26 <= waits[1] <= 34
    assert stage.dispatcher.idle
    stage.clock.now += 10_000
    assert stage.dispatcher.take_ids(10, 0.0) == []


def test_one_missing_file_after_another_is_an_unmounted_disk() -> None:
    """Idle, each batch has one file, so no batch alone shows it."""
    stage = Stage()
    outcomes = []
    for id_ in (1, 2, 3):
        stage.queue([id_])
        (taken,) = stage.taken()
        outcomes.append(stage.judge(AttemptFailed(taken, Reason.MISSING, "No such file")))
    assert [type(outcome) for outcome in outcomes] == [AttemptFailed, AttemptFailed, Deferred]
    assert not stage.dispatcher.states()[0].up


def test_a_file_of_the_same_batch_that_arrives_shows_that_the_disk_is_there() -> None:
    stage = Stage()
    stage.queue(range(10))
    *arrived, first, second, third = stage.taken()
    for each in arrived:
        stage.judge(Archived(each, "/data/x", 1))
    for each in (first, second, third):
        assert isinstance(stage.judge(AttemptFailed(each, Reason.MISSING, "…")), AttemptFailed)
    assert stage.dispatcher.states()[0].up


def test_files_that_were_missing_before_say_nothing_of_the_disk() -> None:
    stage = Stage()
    for id_ in (1, 2, 3, 4):
        stage.queue([id_], failed_copy_attempts=1)
        (taken,) = stage.taken()
        assert isinstance(stage.judge(AttemptFailed(taken, Reason.MISSING, "…")), AttemptFailed)


def test_a_source_is_no_longer_down_when_nothing_is_left_to_try_it_with() -> None:
    stage = Stage()
    stage.queue([1])
    (taken,) = stage.taken()
    stage.judge(Deferred(taken, Reason.HOST_UNREACHABLE, "refused"))
    stage.dispatcher.nothing_pending("srv")
    assert not stage.dispatcher.states()[0].up, "its pause is not over"
    stage.clock.now += 10.0
    stage.dispatcher.nothing_pending("srv")
    assert stage.dispatcher.states()[0].up


def test_what_rsync_says_of_a_file_its_host_says() -> None:
    stage = Stage()
    stage.queue([1, 2])
    first, second = stage.taken()
    stage.judge(Deferred(first, Reason.HOST_UNREACHABLE, "refused"))
    stage.judge(Refused(second, Reason.NOT_A_FILE, "a directory"))
    assert stage.dispatcher.states()[0].up


def test_a_touch_while_the_row_is_read_is_not_forgotten() -> None:
    """Else a record from before the touch is copied, and what the row says now is not."""
    stage = Stage()
    stage.dispatcher.offer([1], Origin.STREAM, fresh=True)
    assert stage.dispatcher.take_ids(10, 0.0) == [1]
    stage.dispatcher.offer([1], Origin.STREAM, fresh=True)
    stage.dispatcher.enqueue("srv", record(id=1))
    assert stage.ids() == [], "it is read again first"
    assert stage.dispatcher.take_ids(10, 0.0) == [1]


def test_an_outcome_that_the_row_does_not_say_is_looked_at_again() -> None:
    stage = Stage()
    stage.queue([1])
    (taken,) = stage.taken()
    outcome = Archived(taken, "/data/x", 1)
    stage.judge(outcome)
    stage.dispatcher.settled("srv", outcome, counted=False)
    stage.clock.now += 10.0
    assert stage.dispatcher.take_ids(10, 0.0) == [1]
    assert stage.count("copies_total", result="archived") == 0


def test_credit_below_zero_is_given_and_breaks_nothing() -> None:
    stage = Stage()
    stage.queue([1], failed_copy_attempts=-7)
    (taken,) = stage.taken()
    outcome = AttemptFailed(taken, Reason.CHANGED, "…")
    stage.judge(outcome)
    stage.dispatcher.settled("srv", outcome, counted=True)


def test_waiting_huge_files_take_no_room_from_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUEUE_LIMIT", 5)
    stage = Stage()
    stage.queue(range(5))
    for each in stage.taken():
        stage.judge(Oversize(each))
    assert stage.dispatcher.room("srv") == module.BACKLOG_LIMIT
    stage.queue([10])
    assert stage.ids() == [10]
    stage.queue([11])
    (one_too_many,) = stage.taken()
    stage.judge(Oversize(one_too_many))
    assert stage.dispatcher.was_dropped(11)


def test_what_came_to_nothing_twice_goes_alone() -> None:
    stage = Stage()
    stage.queue([1])
    for _ in range(2):
        (taken,) = stage.taken()
        stage.judge(Deferred(taken, Reason.UNDECIDED, "not a word"))
        stage.clock.now += 100.0
        (id_,) = stage.dispatcher.take_ids(10, 0.0)
        stage.dispatcher.enqueue("srv", record(id=id_))
    stage.queue([2, 3])
    assert sorted([stage.ids(), stage.ids()]) == [[1], [2, 3]]


def test_while_the_table_cannot_be_written_to_nothing_more_is_handed_out() -> None:
    stage = Stage()
    stage.queue([1])
    stage.dispatcher.set_backpressure(True)
    assert stage.ids() == []
    stage.dispatcher.set_backpressure(False)
    assert stage.ids() == [1]


@pytest.mark.parametrize("spelling", ["pysmurf-monitor", "Pysmurf-Monitor", "pysmurf-monitor  "])
def test_targets_are_compared_as_the_database_does(spelling: str) -> None:
    targets = Targets(load({"target": ("pysmurf-monitor",), "host": "srv"}, environment={}).sources)
    assert targets.source_of(spelling) == "srv"
    assert targets.source_of("other") is None


def test_a_row_that_stays_invisible_is_left_to_the_sweep() -> None:
    stage = Stage()
    stage.dispatcher.offer([1], Origin.STREAM, fresh=True)
    looks = []
    for _ in range(100):
        for id_ in stage.dispatcher.take_ids(10, 0.0):
            looks.append(stage.clock.now)
            stage.dispatcher.not_visible(id_)
        stage.clock.now += 0.1
    assert 2 < len(looks) < 10
    assert looks[-1] - looks[0] < 2.0


def test_a_source_that_is_ours_no_longer_is_forgotten_when_nothing_of_it_is_under_way() -> None:
    stage = Stage()
    # Given one file with a worker and one that waits,
    stage.queue([1])
    (taken,) = stage.taken()
    stage.queue([2])
    # when its source is retired, then nothing more of it is handed out or taken in,
    stage.dispatcher.retire_source("srv")
    assert stage.take() is None
    stage.dispatcher.offer([3], Origin.STREAM, fresh=True)
    for id_ in stage.dispatcher.take_ids(10, 0.0):
        stage.dispatcher.enqueue("srv", record(id=id_))
    assert stage.dispatcher.room("srv") == 0
    # and it is not forgotten before the worker's file is in the table.
    assert not stage.dispatcher.forget_source("srv", 0.0)
    archived = Archived(taken, "/data/x", 1)
    stage.judge(archived)
    stage.dispatcher.settled("srv", archived, counted=True)
    stage.dispatcher.finish("srv")
    assert stage.dispatcher.forget_source("srv", 0.0)
    assert stage.dispatcher.states() == []
    # When it is ours again, everything of it is taken in anew.
    (source,) = load({"target": ("pysmurf-monitor",), "host": "srv"}, environment={}).sources
    stage.dispatcher.add_source(source)
    stage.queue([2, 3])
    assert stage.ids() == [2, 3]


def test_a_row_that_seems_to_be_done_when_its_event_came_is_looked_at_again() -> None:
    """What is read a moment after an event may be how the row was before."""
    stage = Stage()
    stage.dispatcher.offer([1], Origin.STREAM, fresh=True)
    looks = 0
    for _ in range(100):
        for id_ in stage.dispatcher.take_ids(10, 0.0):
            looks += 1
            stage.dispatcher.not_pending(id_)
        stage.clock.now += 0.01
    assert looks == 5
    assert stage.dispatcher.idle
    # What a sweep found, and was done by then, is done.
    stage.dispatcher.offer([2], Origin.SWEEP, fresh=False)
    (id_,) = stage.dispatcher.take_ids(10, 0.0)
    stage.dispatcher.not_pending(id_)
    assert stage.dispatcher.idle
    # Unless somebody touched it while it was in hand.
    stage.dispatcher.offer([3], Origin.SWEEP, fresh=False)
    stage.dispatcher.offer([3], Origin.STREAM, fresh=True)
    (id_,) = stage.dispatcher.take_ids(10, 0.0)
    stage.dispatcher.not_pending(id_)
    stage.clock.now += 0.01
    assert stage.dispatcher.take_ids(10, 0.0) == [3]


class Waiting:
    """A call that waits for a dispatcher in a thread of its own, inside the ``with`` block at the longest."""

    def __init__(self, stage: Stage, call: Callable[[], Any]) -> None:
        self._stage = stage
        self._threads = ThreadPoolExecutor(1)
        self._future: Future[Any] = self._threads.submit(call)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stage.dispatcher.close()
        self._threads.shutdown()

    def answer(self) -> Any:
        return self._future.result(30.0)


def test_records_that_come_together_wake_a_worker_that_takes_them_all() -> None:
    """Each batch is one rsync: to begin one for the first record alone would cost the others its time."""
    clock = RealClock()
    stage = Stage(clock)
    stage.dispatcher.offer([1, 2, 3], Origin.STREAM, fresh=True)
    ids = stage.dispatcher.take_ids(10, 0.0)
    looks = clock.looks
    with Waiting(stage, lambda: stage.dispatcher.take("srv", Lane.SMALL, "small-0", 600.0)) as worker:
        eventually(lambda: clock.looks >= looks + 2, "the worker waits")
        with stage.dispatcher.atomically():
            for id_ in ids:
                stage.dispatcher.enqueue("srv", record(id=id_))
        assert [each.id for each in worker.answer().records] == [1, 2, 3]


def test_a_wait_that_begins_is_seen_by_a_router_that_waits_already(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_DELAYS", (0.05,))
    clock = RealClock()
    stage = Stage(clock)
    stage.queue([1, 2])
    taken, _ = stage.taken()
    looks = clock.looks
    with Waiting(stage, lambda: stage.dispatcher.take_ids(10, 600.0)) as router:
        eventually(lambda: clock.looks >= looks + 2, "the router waits")
        outcome = AttemptFailed(taken, Reason.CHANGED, "…")
        stage.judge(outcome)
        stage.dispatcher.settled("srv", outcome, counted=True)
        assert router.answer() == [1]


def test_who_forgets_a_source_hears_of_its_last_file() -> None:
    stage = Stage()
    stage.queue([1])
    (taken,) = stage.taken()
    stage.dispatcher.retire_source("srv")
    with Waiting(stage, lambda: stage.dispatcher.forget_source("srv", 40.0)) as forgetting:
        outcome = Archived(taken, "/data/x", 1)
        stage.judge(outcome)
        stage.dispatcher.settled("srv", outcome, counted=True)
        assert forgetting.answer()
