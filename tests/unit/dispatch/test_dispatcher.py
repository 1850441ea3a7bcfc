"""The dispatcher's shell: who waits is woken, and the scheduler's decisions are carried out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self

import pytest
import structlog
from records import record
from waiting import eventually

from cdc_archiver.dispatch import retry_delays, scheduler
from cdc_archiver.dispatch.dispatcher import Dispatcher
from cdc_archiver.dispatch.tracked_files import FileStatus, TrackedState
from cdc_archiver.model import (
    Archived,
    AttemptFailed,
    Batch,
    Deferred,
    FileRecord,
    Lane,
    Origin,
    Outcome,
    Reason,
)
from cdc_archiver.observe.metrics import Metrics
from cdc_archiver.settings import load


class CountingClock:
    """Time as it is. A thread that waits looks at it twice first, the second time with the lock held: from then on whoever gets
    the lock finds it waiting."""

    def __init__(self) -> None:
        self.looks = 0

    def __call__(self) -> float:
        self.looks += 1
        return time.monotonic()


class Stage:
    """A dispatcher of one source, `srv`, and what it asked for."""

    def __init__(self) -> None:
        self.clock = CountingClock()
        self.metrics = Metrics()
        self.sweeps_wanted = 0
        self.settings = load({"target": ("pysmurf-monitor",), "host": "srv"}, environment={})
        self.dispatcher = Dispatcher(self.settings, self.metrics, self._want_sweep, self.clock)

    def _want_sweep(self) -> None:
        assert self.lock_is_free()
        self.sweeps_wanted += 1

    def lock_is_free(self) -> bool:
        """Whether another thread gets the lock."""
        with ThreadPoolExecutor(1) as threads:
            lock: Any = self.dispatcher._changed
            free = threads.submit(lock.acquire, timeout=0.5).result(30.0)
            if free:
                threads.submit(lock.release).result(30.0)
        return bool(free)

    def queue(self, ids: Iterable[int]) -> None:
        self.dispatcher.offer(ids, Origin.STREAM, fresh=True)
        for id_ in self.dispatcher.take_ids(10_000, 0.0):
            self.dispatcher.enqueue("srv", record(id=id_))

    def taken(self) -> list[FileRecord]:
        batch = self.dispatcher.take("srv", Lane.SMALL, "small-0", 0.0)
        return list(batch.records) if batch else []

    def judge(self, outcome: Outcome) -> Outcome:
        return self.dispatcher.judge(Batch("srv", Lane.SMALL, "small-0", (outcome.record,)), outcome)

    def archive(self, taken: FileRecord) -> None:
        outcome = Archived(taken, "/data/x", 1)
        self.judge(outcome)
        self.dispatcher.settled("srv", outcome, counted=True)

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.total(name, **labels)


class Waiting:
    """A call that waits for a dispatcher in a thread of its own, until the end of the ``with`` block at the latest."""

    def __init__(self, stage: Stage, call: Callable[[], Any]) -> None:
        self._stage = stage
        self._looks = stage.clock.looks
        self._threads = ThreadPoolExecutor(1)
        self._future: Future[Any] = self._threads.submit(call)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stage.dispatcher.close()
        self._threads.shutdown()

    def until_it_waits(self) -> None:
        eventually(lambda: self._stage.clock.looks >= self._looks + 2, "the thread waits")

    def answer(self) -> Any:
        return self._future.result(30.0)


def test_records_that_come_together_wake_a_worker_that_takes_them_all() -> None:
    """Each batch is one rsync: to begin one for the first record only would cost the others its time."""
    stage = Stage()
    stage.dispatcher.offer([1, 2, 3], Origin.STREAM, fresh=True)
    ids = stage.dispatcher.take_ids(10, 0.0)
    with Waiting(stage, lambda: stage.dispatcher.take("srv", Lane.SMALL, "small-0", 600.0)) as worker:
        worker.until_it_waits()
        with stage.dispatcher.atomically():
            for id_ in ids:
                stage.dispatcher.enqueue("srv", record(id=id_))
        assert [each.id for each in worker.answer().records] == [1, 2, 3]


def test_an_event_wakes_the_router() -> None:
    stage = Stage()
    with Waiting(stage, lambda: stage.dispatcher.take_ids(10, 600.0)) as router:
        router.until_it_waits()
        stage.dispatcher.offer([1], Origin.STREAM, fresh=True)
        assert router.answer() == [1]


def test_a_wait_that_begins_is_seen_by_a_router_that_waits_already(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry_delays, "delay_after", lambda delays, tries: 0.05)
    stage = Stage()
    stage.queue([1, 2])
    taken, _ = stage.taken()
    with Waiting(stage, lambda: stage.dispatcher.take_ids(10, 600.0)) as router:
        router.until_it_waits()
        outcome = AttemptFailed(taken, Reason.CHANGED, "…")
        stage.judge(outcome)
        stage.dispatcher.settled("srv", outcome, counted=True)
        assert router.answer() == [1]


def test_a_worker_waits_out_the_pause_of_its_source() -> None:
    """Nothing wakes it then, and its wait is longer: it comes back by itself when the pause is over."""
    stage = Stage()
    stage.queue([1, 2])
    first, _ = stage.taken()
    stage.judge(Deferred(first, Reason.HOST_UNREACHABLE, "refused"))
    stage.queue([3])
    paused_at = time.monotonic()
    with Waiting(stage, lambda: stage.dispatcher.take("srv", Lane.SMALL, "small-1", 600.0)) as worker:
        assert [each.id for each in worker.answer().records] == [3]
    assert time.monotonic() - paused_at > 0.5


def test_who_forgets_a_source_hears_of_its_last_file() -> None:
    stage = Stage()
    stage.queue([1])
    (taken,) = stage.taken()
    stage.dispatcher.retire_source("srv")
    with Waiting(stage, lambda: stage.dispatcher.forget_source("srv", 40.0)) as forgetting:
        stage.archive(taken)
        assert forgetting.answer()


def test_a_source_is_forgotten_with_its_series_and_may_come_back() -> None:
    stage = Stage()
    stage.queue([1])
    (taken,) = stage.taken()
    stage.dispatcher.retire_source("srv")
    assert stage.taken() == []
    assert not stage.dispatcher.forget_source("srv", 0.0)
    assert has_series(stage)
    stage.archive(taken)
    assert stage.dispatcher.forget_source("srv", 0.0)
    assert not has_series(stage)
    assert stage.taken() == []
    (source,) = stage.settings.sources
    stage.dispatcher.add_source(source)
    stage.queue([2, 3])
    assert [each.id for each in stage.taken()] == [2, 3]


def has_series(stage: Stage) -> bool:
    """Whether the source's queue is shown."""
    return any(
        sample.name == "cdc_archiver_queue_depth" and sample.labels == {"source": "srv"}
        for metric in stage.metrics.registry.collect()
        for sample in metric.samples
    )


@pytest.mark.parametrize("who", ["worker", "router"])
def test_a_close_ends_all_waiting_at_once(who: str) -> None:
    stage = Stage()
    calls: dict[str, Callable[[], Any]] = {
        "worker": lambda: stage.dispatcher.take("srv", Lane.SMALL, "small-0", 600.0),
        "router": lambda: stage.dispatcher.take_ids(10, 600.0),
    }
    with Waiting(stage, calls[who]) as waiting:
        waiting.until_it_waits()
        stage.dispatcher.close()
        assert not waiting.answer()


def test_a_wait_ends_when_its_time_is_over() -> None:
    stage = Stage()
    assert stage.dispatcher.take_ids(10, 0.05) == []
    assert stage.dispatcher.take("srv", Lane.SMALL, "small-0", 0.05) is None


def test_decisions_become_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "QUEUE_LIMIT", 2)
    stage = Stage()
    stage.dispatcher.expect_own_writes([9])
    stage.dispatcher.offer([9], Origin.STREAM, fresh=True)
    stage.queue([1, 2, 3])
    stage.dispatcher.offer([1], Origin.STREAM, fresh=True)
    events = {result: stage.count("stream_events_total", outcome=result) for result in ("offered", "echo", "known")}
    assert events == {"offered": 3, "echo": 1, "known": 1}
    assert stage.count("stream_events_total", outcome="dropped") == 1
    assert stage.count("queue_depth", source="srv") == 2
    (taken,) = stage.taken()
    assert stage.count("in_flight", source="srv") == 1
    stage.archive(taken)
    assert stage.count("in_flight", source="srv") == 0
    assert stage.count("copies_total", source="srv", result="archived") == 1
    assert stage.count("event_to_archived_seconds_count", source="srv") == 1


def test_a_write_back_that_changed_nothing_is_not_counted() -> None:
    stage = Stage()
    stage.queue([1])
    (taken,) = stage.taken()
    outcome = Archived(taken, "/data/x", 1)
    stage.judge(outcome)
    stage.dispatcher.settled("srv", outcome, counted=False)
    assert stage.count("copies_total", result="archived") == 0


def failing(stage: Stage) -> int:
    return sum(each.files for each in stage.metrics.activity.snapshot().failing)


def test_a_file_that_is_pending_no_longer_is_not_shown_as_failing() -> None:
    stage = Stage()
    stage.queue([1, 2])
    for taken in stage.taken():
        outcome = AttemptFailed(taken, Reason.CHANGED, "…")
        stage.judge(outcome)
        stage.dispatcher.settled("srv", outcome, counted=True)
    assert failing(stage) == 2
    stage.dispatcher.dismiss(1)
    assert failing(stage) == 1
    stage.dispatcher.dismiss(2, failed=True)
    assert failing(stage) == 1


def test_a_sweep_is_wanted_with_the_lock_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told to another part, which may call the dispatcher."""
    monkeypatch.setattr(scheduler, "INBOX_LIMIT", 2)
    monkeypatch.setattr(scheduler, "QUEUE_LIMIT", 2)
    monkeypatch.setattr(scheduler, "REFILL_BELOW", 2)
    stage = Stage()
    stage.queue([1, 2, 3])
    assert stage.sweeps_wanted == 1, "the inbox is full"
    stage.dispatcher.request_refill("srv")
    stage.taken()
    stage.dispatcher.finish("srv")
    assert stage.sweeps_wanted == 2, "the queue has room again"
    stage.dispatcher.request_refill("srv")
    stage.queue([4])
    assert stage.sweeps_wanted == 3, "the queue has room still"


def test_what_is_logged_is_logged_with_the_lock_free() -> None:
    """A terminal that blocks must not block all threads."""
    stage = Stage()
    logged: list[tuple[str, str, bool]] = []

    def write(_logger: Any, level: str, event: Any) -> Any:
        logged.append((level, event["event"], stage.lock_is_free()))
        raise structlog.DropEvent

    stage.queue([1, 2])
    first, second = stage.taken()
    before = structlog.get_config()
    structlog.configure(processors=[write], wrapper_class=structlog.make_filtering_bound_logger(0))
    try:
        stage.judge(Deferred(first, Reason.HOST_UNREACHABLE, "refused"))
        assert stage.count("source_up", source="srv") == 0
        stage.archive(second)
        assert stage.count("source_up", source="srv") == 1
        stage.dispatcher.destination_failed(Reason.NO_SPACE, "full")
        seen = [stage.dispatcher.destination]
        stage.dispatcher.destination_ready()
        seen.append(stage.dispatcher.destination)
        assert seen == [(False, "no_space", "full"), (True, None, "")]
    finally:
        structlog.configure(**before)
    assert logged == [
        ("error", "source_down", True),
        ("info", "source_up", True),
        ("error", "destination_down", True),
        ("info", "destination_up", True),
    ]


def test_the_status_of_a_file_is_had_while_the_lock_is_taken() -> None:
    stage = Stage()
    stage.queue([1])
    with stage.dispatcher.atomically(), ThreadPoolExecutor(1) as threads:
        found = threads.submit(stage.dispatcher.file_status, 1).result(30.0)
        assert threads.submit(stage.dispatcher.file_status, 2).result(30.0) is None
    assert isinstance(found, FileStatus)
    assert (found.state, found.origin, found.retry_in) == (TrackedState.QUEUED, Origin.STREAM, None)
    assert 0.0 <= found.known_for < 60.0
