"""The scheduler: scripts of events, and what is decided at each."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from records import record

from cdc_archiver.database.files_table import Pending
from cdc_archiver.dispatch import scheduler as module
from cdc_archiver.dispatch import tracked_files, withheld
from cdc_archiver.dispatch.decision_types import (
    NOTHING,
    WAKE,
    CountOutcome,
    CountStreamEvents,
    Decisions,
    ForgetFailure,
    LogEvent,
    NoBatch,
    Signal,
)
from cdc_archiver.dispatch.scheduler import Scheduler
from cdc_archiver.dispatch.tracked_files import OfferResult
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

STREAM, SWEEP = Origin.STREAM, Origin.SWEEP
ASK_AGAIN_WHEN_WOKEN = NoBatch(math.inf)


class Script:
    """A scheduler with one source, `srv`, and the time. Random numbers are 0.5 throughout: no pause is longer or shorter for it."""

    def __init__(self, *, batch_files: int = 200, max_attempts: int = 5) -> None:
        self.scheduler = Scheduler(max_attempts, (5.0, 30.0, 120.0, 600.0))
        self.scheduler.add_source("srv", batch_files)
        self.now = 0.0

    def offer(self, ids: Iterable[int], origin: Origin = STREAM) -> tuple[set[int], Decisions]:
        return self.scheduler.offer(ids, origin, self.now, fresh=origin is STREAM)

    def take_ids(self) -> list[int]:
        ids, decisions = self.scheduler.take_ids(10_000, self.now)
        assert decisions == NOTHING
        return ids

    def enqueue(self, ids: Iterable[int], failed_ago: float | None = None, **changes: Any) -> list[Decisions]:
        return [self.scheduler.enqueue("srv", record(id=id_, **changes), self.now, failed_ago) for id_ in ids]

    def queue(
        self, ids: Iterable[int], origin: Origin = STREAM, failed_ago: float | None = None, **changes: Any
    ) -> list[Decisions]:
        """Announces ids, reads their rows and queues them."""
        self.offer(ids, origin)
        return self.enqueue(self.take_ids(), failed_ago, **changes)

    def take(self, lane: Lane = Lane.SMALL) -> tuple[Batch | NoBatch, Decisions]:
        return self.scheduler.take("srv", lane, f"{lane}-0", self.now)

    def taken(self, lane: Lane = Lane.SMALL) -> list[FileRecord]:
        """The records of the next batch, of which nothing but itself is decided; none where there is no batch."""
        batch, decisions = self.take(lane)
        assert decisions == NOTHING
        return list(batch.records) if isinstance(batch, Batch) else []

    def ids(self, lane: Lane = Lane.SMALL) -> list[int]:
        return [taken.id for taken in self.taken(lane)]

    def judge(self, outcome: Outcome, worker: str = "small-0") -> tuple[Outcome, Decisions]:
        return self.scheduler.judge(Batch("srv", Lane.SMALL, worker, (outcome.record,)), outcome, self.now, 0.5)

    def settle(self, outcome: Archived | AttemptFailed | Refused, *, counted: bool = True) -> Decisions:
        return self.scheduler.settled("srv", outcome, self.now, 0.5, counted=counted)

    @property
    def up(self) -> bool:
        return self.scheduler.states(self.now)[0].up


def down(reason: str, detail: str, seconds: float, event: str = "source_down", name: str = "srv") -> LogEvent:
    return LogEvent("error", event, {"source": name, "reason": reason, "detail": detail, "retry_seconds": seconds})


SOURCE_UP = (LogEvent("info", "source_up", {"source": "srv"}), Signal.WAKE)
DESTINATION_UP = (LogEvent("info", "destination_up", {}), Signal.WAKE)


def test_the_way_of_a_file_from_its_event_to_its_write_back() -> None:
    script = Script()
    # An event announces two ids: the router is woken, and reads their rows.
    assert script.offer([1, 2]) == ({1, 2}, (Signal.WAKE, CountStreamEvents(OfferResult.OFFERED, 2)))
    assert script.scheduler.take_ids(10, 0.0) == ([1, 2], NOTHING)
    # Their records are queued: the first wakes the workers, who take both.
    one, two = record(id=1), record(id=2)
    script.now = 1.0
    assert [script.scheduler.enqueue("srv", each, script.now) for each in (one, two)] == [WAKE, NOTHING]
    batch = Batch("srv", Lane.SMALL, "small-0", (one, two))
    assert script.take() == (batch, NOTHING)
    assert script.take() == (ASK_AGAIN_WHEN_WOKEN, NOTHING)
    # Both arrive: nothing is to be done before they are in the database.
    outcomes = [Archived(each, "/data/x", 1) for each in (one, two)]
    assert [script.judge(each) for each in outcomes] == [(each, NOTHING) for each in outcomes]
    assert script.scheduler.seconds_waited(1) == 1.0
    # Then they are counted, and only the last one wakes those who wait for the end of a source.
    script.now = 2.5
    assert script.settle(outcomes[0]) == (CountOutcome("srv", outcomes[0], 2.5),)
    assert script.settle(outcomes[1]) == (CountOutcome("srv", outcomes[1], 2.5), Signal.WAKE)
    assert script.scheduler.finish("srv") == WAKE
    assert script.scheduler.idle


def test_an_archived_file_that_a_sweep_found_has_no_latency() -> None:
    script = Script()
    script.queue([1], SWEEP)
    (taken,) = script.taken()
    archived = Archived(taken, "/data/x", 1)
    script.judge(archived)
    assert script.settle(archived) == (CountOutcome("srv", archived, None), Signal.WAKE)


def test_what_a_sweep_offers_is_no_event_of_the_stream() -> None:
    script = Script()
    assert script.offer([1, 2], SWEEP) == ({1, 2}, WAKE)
    assert script.offer([1, 2], SWEEP) == (set(), NOTHING)


def test_an_own_write_and_a_duplicate_wake_nobody() -> None:
    script = Script()
    script.offer([1])
    script.scheduler.tracked.expect_own_writes([2], 0.0)
    counts = (CountStreamEvents(OfferResult.DUPLICATE, 1), CountStreamEvents(OfferResult.OWN_WRITE, 1))
    assert script.offer([1, 2]) == (set(), counts)


def test_a_worker_takes_all_that_waits_fresh_files_before_the_backlog() -> None:
    script = Script(batch_files=5)
    script.queue([1, 2, 3, 4], SWEEP)
    script.queue([11, 12])
    assert script.ids() == [11, 12, 1, 2, 3]
    assert script.ids() == [4]
    assert script.ids() == []


def test_a_huge_file_goes_to_the_bulk_lane_and_delays_no_other() -> None:
    script = Script()
    script.queue([1, 2])
    big, _ = script.taken()
    assert script.judge(Oversize(big)) == (Oversize(big), WAKE)
    assert script.ids() == []
    assert script.ids(Lane.BULK) == [1]


def test_a_full_queue_drops_the_id_and_asks_for_a_sweep_when_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a queue for ten records
    monkeypatch.setattr(module, "QUEUE_LIMIT", 10)
    monkeypatch.setattr(module, "REFILL_BELOW", 5)
    script = Script()
    # When twelve come
    decisions = script.queue(range(1, 13))
    # Then ten wait, the others are dropped and known as such,
    assert decisions == [WAKE, *9 * [NOTHING], *2 * [(CountStreamEvents(OfferResult.DROPPED, 1),)]]
    assert script.scheduler.states(0.0)[0].queued == 10
    assert script.scheduler.was_dropped(12)
    assert not script.scheduler.was_dropped(10)
    # and a sweep is wanted once there is room.
    assert len(script.ids()) == 10
    assert script.scheduler.finish("srv") == (Signal.WAKE, Signal.WANT_SWEEP)
    assert script.scheduler.finish("srv") == WAKE, "it is asked for once"
    # What the sweep has offered is not dropped any more.
    script.scheduler.forget_dropped()
    assert not script.scheduler.was_dropped(12)


def test_ids_are_dropped_unread_while_all_queues_are_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUEUE_LIMIT", 2)
    monkeypatch.setattr(module, "REFILL_BELOW", 2)
    script = Script()
    script.queue([1, 2])
    script.offer([3, 4])
    script.offer([5], SWEEP)
    assert script.scheduler.take_ids(10, 0.0) == ([], (CountStreamEvents(OfferResult.DROPPED, 2),))
    assert all(map(script.scheduler.was_dropped, (3, 4, 5)))
    script.taken()
    assert Signal.WANT_SWEEP in script.scheduler.finish("srv")


def test_a_sweep_that_left_rows_behind_is_asked_for_when_there_is_room() -> None:
    script = Script()
    script.scheduler.request_refill("srv")
    assert script.queue([1]) == [(Signal.WAKE, Signal.WANT_SWEEP)]


def test_a_flood_beyond_the_inbox_is_dropped_in_constant_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INBOX_LIMIT", 100)
    script = Script()
    taken, decisions = script.offer(range(1000))
    assert len(taken) == 100
    assert decisions == (
        Signal.WAKE,
        CountStreamEvents(OfferResult.OFFERED, 100),
        CountStreamEvents(OfferResult.DROPPED, 900),
        Signal.WANT_SWEEP,
    )


def test_a_sweep_may_not_fill_the_room_that_is_kept_for_fresh_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BACKLOG_LIMIT", 8)
    script = Script()
    script.queue(range(6), SWEEP)
    assert script.scheduler.room("srv") == 2
    script.queue(range(6, 9), SWEEP)
    assert script.scheduler.room("srv") == 0


def test_trouble_of_the_host_pauses_the_source_and_counts_no_failed_attempt() -> None:
    script = Script()
    script.queue([1, 2])
    first, second = (Deferred(each, Reason.HOST_UNREACHABLE, "refused") for each in script.taken())
    # The first says that the source is down; the second one of the same outage does not say it again.
    pause = (down("host_unreachable", "refused", 1.0), CountOutcome("srv", first), Signal.WAKE)
    assert script.judge(first) == (first, pause)
    assert script.judge(second) == (second, (CountOutcome("srv", second), Signal.WAKE))
    script.scheduler.finish("srv")
    script.queue([3])
    assert script.take() == (NoBatch(1.0), NOTHING), "the source is paused"
    assert script.scheduler.sources["srv"].up() == 0
    # When the pause is over, what was deferred is read again and goes along.
    script.now = 1.0
    script.enqueue(script.take_ids())
    assert sorted(script.ids()) == [1, 2, 3]


def test_after_a_pause_one_batch_goes_first_and_its_success_opens_the_way() -> None:
    script = Script(batch_files=1)
    script.queue([1, 2, 3])
    (first,) = script.taken()
    script.judge(Deferred(first, Reason.LINK_LOST, "cut"))
    script.scheduler.finish("srv")
    script.now = 2.0
    (second,) = script.taken()
    assert script.take() == (NoBatch(2.1), NOTHING), "one goes first"
    archived = Archived(second, "/data/x", 1)
    assert script.judge(archived) == (archived, SOURCE_UP)
    assert script.ids() == [3]


def test_a_batch_that_loses_the_link_is_halved_until_a_file_arrives() -> None:
    # Given a batch with a file that ends each rsync,
    script = Script(batch_files=8)
    script.queue(range(8))
    sizes = []
    for _ in range(5):
        batch = script.taken()
        sizes.append(len(batch))
        for each in batch:
            script.judge(Deferred(each, Reason.LINK_LOST, "the link was lost"))
        script.scheduler.finish("srv")
        script.now += 1000.0
        script.enqueue(script.take_ids())
    # then each batch is half the one before, down to a single file;
    assert sizes == [8, 4, 2, 1, 1]
    # and when a file arrives, the next batch is whole again.
    (good,) = script.taken()
    script.judge(Archived(good, "/data/a", 1))
    assert len(script.taken()) == 7


def test_trouble_of_the_destination_stops_all_lanes() -> None:
    script = Script()
    script.queue([1, 2])
    first, second = script.taken()
    script.judge(Oversize(second))
    full = Deferred(first, Reason.NO_SPACE, "full")
    trouble = down("no_space", "full", 2.0, "destination_down", "destination")
    assert script.judge(full) == (full, (trouble, CountOutcome("srv", full), Signal.WAKE))
    script.scheduler.finish("srv")
    assert script.take(Lane.BULK) == (NoBatch(2.0), NOTHING)
    assert (script.scheduler.destination.up, script.scheduler.destination.reason) == (False, Reason.NO_SPACE)
    assert script.up, "the source is not at fault"


def test_the_batch_that_tries_the_destination_is_one_file_which_may_be_fetched_in_vain() -> None:
    script = Script()
    script.queue([1])
    (first,) = script.taken()
    script.judge(Deferred(first, Reason.DESTINATION_UNWRITABLE, "read-only"))
    script.scheduler.finish("srv")
    script.queue([2, 3, 4])
    script.now = 2.0
    (trial,) = script.taken()
    assert trial.id == 2
    script.judge(Archived(trial, "/a", 1, adopted=False))
    script.scheduler.finish("srv")
    assert script.ids() == [3, 4]


def test_after_trouble_of_the_destination_one_batch_goes_first_whatever_its_source() -> None:
    script = Script(batch_files=1)
    script.queue([1, 2, 3])
    (first,) = script.taken()
    script.judge(Deferred(first, Reason.NO_SPACE, "full"))
    script.scheduler.finish("srv")
    script.now = 2.0
    assert script.ids() == [2]
    assert script.take() == (NoBatch(2.1), NOTHING), "one goes first"
    script.scheduler.finish("srv")
    assert script.ids() == [3], "the first has shown nothing, so the next one tries"


def test_trouble_of_the_destination_is_over_when_it_takes_a_file_or_is_found_ready() -> None:
    script = Script()
    script.queue([1])
    (taken,) = script.taken()
    missing = down("destination_missing", "no marker", 2.0, "destination_down", "destination")
    assert script.scheduler.health.destination_failed(Reason.DESTINATION_MISSING, "no marker", 0.0, 0.5) == (missing,)
    assert script.scheduler.health.destination_failed(Reason.DESTINATION_MISSING, "no marker", 0.0, 0.5) == NOTHING
    assert script.scheduler.health.destination_ready(0.0) == DESTINATION_UP
    assert script.scheduler.health.destination_ready(0.0) == NOTHING
    # A file that is adopted shows that the destination works,
    script.scheduler.health.destination_failed(Reason.DESTINATION_UNWRITABLE, "read-only", 0.0, 0.5)
    assert script.scheduler.health.destination_ready(0.0) == NOTHING, "whether it is writable only a file shows"
    adopted = Archived(taken, "/data/x", 1, adopted=True)
    assert script.judge(adopted) == (adopted, DESTINATION_UP)


def test_an_adopted_file_shows_nothing_about_its_source() -> None:
    script = Script()
    script.queue([1, 2])
    first, second = script.taken()
    script.judge(Deferred(first, Reason.HOST_UNREACHABLE, "refused"))
    adopted = Archived(second, "/data/x", 1, adopted=True)
    assert script.judge(adopted) == (adopted, NOTHING)
    assert not script.up


def test_a_failed_file_is_tried_again_in_seconds_then_minutes_then_never() -> None:
    script = Script(max_attempts=3)
    script.queue([1])
    for attempts, delay in enumerate((5.0, 30.0)):
        (taken,) = script.taken()
        failed = AttemptFailed(taken, Reason.CHANGED, "…")
        assert script.judge(failed) == (failed, NOTHING)
        assert script.settle(failed) == (CountOutcome("srv", failed), Signal.WAKE)
        due = script.now + delay
        assert script.scheduler.tracked.next_due() == pytest.approx(due)
        script.now = due - 0.1
        assert script.take_ids() == []
        script.now = due + 0.1
        script.enqueue(script.take_ids(), failed_copy_attempts=attempts + 1)
    (taken,) = script.taken()
    failed = AttemptFailed(taken, Reason.CHANGED, "…")
    script.judge(failed)
    script.settle(failed)
    assert script.scheduler.idle
    script.now += 10_000
    assert script.take_ids() == []


@pytest.mark.parametrize(
    ("failed_ago", "wait"), [(None, 30.0), (0.0, 30.0), (10.0, 20.0), (30.0, 0.0), (1e9, 0.0), (-1e9, 30.0)]
)
def test_of_a_file_with_failed_attempts_the_rest_of_the_delay_is_waited_for(
    failed_ago: float | None, wait: float
) -> None:
    script = Script()
    assert script.queue([1], SWEEP, failed_ago, failed_copy_attempts=2) == [NOTHING if wait else WAKE]
    assert (script.ids(), script.scheduler.tracked.next_due()) == (([], wait) if wait else ([1], None))
    script.now = wait
    script.enqueue(script.take_ids(), None, failed_copy_attempts=2)
    assert script.ids() == ([1] if wait else []), "its delay is over, whatever the history says then"


@pytest.mark.parametrize(
    "change",
    [
        {"path": "/data/other.npy"},
        {"md5sum": b"1" * 16},
        {"failed_copy_attempts": 0},
        {"action": "other"},
        {"action_timestamp": 5},
        {"plot": True},
        {"pub_id": "other"},
        {"timestamp": None},
    ],
)
def test_only_a_change_of_what_decides_ends_the_wait_for_the_next_try(change: dict[str, Any]) -> None:
    script = Script()
    script.queue([1])
    (taken,) = script.taken()
    failed = AttemptFailed(taken, Reason.CHANGED, "…")
    script.judge(failed)
    script.offer([1])  # somebody stamps another column while it is tried,
    script.settle(failed)
    now: dict[str, Any] = {"failed_copy_attempts": 1}
    script.enqueue(script.take_ids(), **now)
    for _ in range(3):  # and each second from then on
        script.now += 1.0
        script.offer([1])
        script.enqueue(script.take_ids(), **now)
        assert (script.ids(), script.scheduler.tracked.next_due()) == ([], 5.0)
    script.offer([1])
    script.enqueue(script.take_ids(), **(now | change))
    assert script.ids() == [1]


def test_a_sweep_that_reads_another_counter_ends_the_wait_of_a_file() -> None:
    script = Script()
    script.queue([1])
    (taken,) = script.taken()
    failed = AttemptFailed(taken, Reason.CHANGED, "…")
    script.judge(failed)
    script.settle(failed)
    assert script.scheduler.notice([Pending(1, 1), Pending(2, 0)]) == NOTHING
    assert script.scheduler.notice([Pending(1, 0)]) == WAKE
    script.enqueue(script.take_ids(), failed_copy_attempts=0)
    assert script.ids() == [1]


@pytest.mark.parametrize(("jitter", "delay"), [(0.0, 4.5), (1.0, 5.5)])
def test_jitter_spreads_the_next_attempts(jitter: float, delay: float) -> None:
    script = Script()
    script.queue([1])
    (taken,) = script.taken()
    script.scheduler.settled("srv", AttemptFailed(taken, Reason.CHANGED, "…"), 0.0, jitter, counted=True)
    assert script.scheduler.tracked.next_due() == pytest.approx(delay)


def test_a_refused_row_is_counted_and_tried_no_more() -> None:
    script = Script()
    script.queue([1])
    (taken,) = script.taken()
    refused = Refused(taken, Reason.BAD_PATH, "…")
    assert script.judge(refused) == (refused, NOTHING)
    assert script.settle(refused) == (CountOutcome("srv", refused), Signal.WAKE)
    assert 1 not in script.scheduler.tracked


def test_one_missing_file_after_another_is_an_unmounted_disk() -> None:
    """An idle source has batches of one file, so no batch alone shows it."""
    script = Script()
    outcomes = []
    for id_ in (1, 2, 3):
        script.queue([id_])
        (taken,) = script.taken()
        outcomes.append(script.judge(AttemptFailed(taken, Reason.MISSING, "No such file"))[0])
    assert [type(outcome) for outcome in outcomes] == [AttemptFailed, AttemptFailed, Deferred]
    assert not script.up


def test_a_file_of_the_same_batch_that_arrives_shows_that_the_disk_is_mounted() -> None:
    script = Script()
    script.queue(range(10))
    *arrived, first, second, third = script.taken()
    for each in arrived:
        script.judge(Archived(each, "/data/x", 1))
    for each in (first, second, third):
        assert isinstance(script.judge(AttemptFailed(each, Reason.MISSING, "…"))[0], AttemptFailed)
    assert script.up


def test_a_file_that_arrived_in_an_earlier_batch_says_nothing_about_the_disk_now() -> None:
    script = Script()
    script.queue([1])
    (arrived,) = script.taken()
    script.judge(Archived(arrived, "/data/x", 1))
    outcomes = []
    for id_ in (2, 3, 4):
        script.queue([id_])
        (taken,) = script.taken()
        outcomes.append(script.judge(AttemptFailed(taken, Reason.MISSING, "No such file"))[0])
    assert [type(outcome) for outcome in outcomes] == [AttemptFailed, AttemptFailed, Deferred]


def test_files_that_were_missing_before_say_nothing_about_the_disk() -> None:
    script = Script()
    for id_ in (1, 2, 3, 4):
        script.queue([id_], failed_ago=5.0, failed_copy_attempts=1)
        (taken,) = script.taken()
        assert isinstance(script.judge(AttemptFailed(taken, Reason.MISSING, "…"))[0], AttemptFailed)


def test_a_source_is_no_longer_down_when_nothing_is_left_to_try_it_with() -> None:
    script = Script()
    script.queue([1])
    (taken,) = script.taken()
    script.judge(Deferred(taken, Reason.HOST_UNREACHABLE, "refused"))
    assert script.scheduler.nothing_pending("srv", 0.0) == NOTHING, "its pause is not over"
    assert not script.up
    assert script.scheduler.nothing_pending("other", 10.0) == NOTHING
    assert script.scheduler.nothing_pending(None, 10.0) == NOTHING
    assert script.scheduler.nothing_pending("srv", 10.0) == SOURCE_UP
    assert script.up


def test_the_destination_is_no_longer_down_when_nothing_is_left_to_try_it_with() -> None:
    script = Script()
    script.scheduler.health.destination_failed(Reason.NO_SPACE, "full", 0.0, 0.5)
    assert script.scheduler.nothing_pending(None, 1.0) == NOTHING, "its pause is not over"
    assert script.scheduler.nothing_pending(None, 10.0) == DESTINATION_UP


def test_what_rsync_reports_about_a_file_came_from_its_host() -> None:
    script = Script()
    script.queue([1, 2])
    first, second = script.taken()
    script.judge(Deferred(first, Reason.HOST_UNREACHABLE, "refused"))
    refused = Refused(second, Reason.NOT_A_FILE, "a directory")
    assert script.judge(refused) == (refused, SOURCE_UP)
    assert script.up


def test_a_change_while_the_row_is_read_is_not_forgotten() -> None:
    """Else a record from before the change is copied, and what the row says now is not."""
    script = Script()
    script.offer([1])
    assert script.take_ids() == [1]
    script.offer([1])
    script.enqueue([1])
    assert script.take() == (ASK_AGAIN_WHEN_WOKEN, WAKE), "it is read again first, for which the router is woken"
    assert script.take_ids() == [1]


def test_a_row_that_was_changed_while_it_was_written_is_read_again_at_once() -> None:
    script = Script()
    script.queue([1, 2])
    taken, _ = script.taken()
    archived = Archived(taken, "/data/x", 1)
    script.judge(archived)
    script.offer([1])
    assert script.settle(archived) == (CountOutcome("srv", archived, 0.0), Signal.WAKE)
    assert script.take_ids() == [1]


def test_an_outcome_that_did_not_change_the_row_is_not_counted_and_the_row_is_read_again() -> None:
    script = Script()
    script.queue([1])
    (taken,) = script.taken()
    outcome = Archived(taken, "/data/x", 1)
    script.judge(outcome)
    assert script.settle(outcome, counted=False) == WAKE
    script.now = 4.9
    assert script.take_ids() == []
    script.now = 5.0
    assert script.take_ids() == [1]


def test_a_counter_below_zero_is_accepted() -> None:
    script = Script()
    script.queue([1], failed_copy_attempts=-7)
    (taken,) = script.taken()
    outcome = AttemptFailed(taken, Reason.CHANGED, "…")
    script.judge(outcome)
    assert script.settle(outcome) == (CountOutcome("srv", outcome), Signal.WAKE)


def test_waiting_huge_files_take_no_room_from_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUEUE_LIMIT", 5)
    script = Script()
    script.queue(range(5))
    for each in script.taken():
        script.judge(Oversize(each))
    assert script.scheduler.room("srv") == module.BACKLOG_LIMIT
    script.queue([10])
    assert script.ids() == [10]
    script.queue([11])
    (one_too_many,) = script.taken()
    dropped = (CountStreamEvents(OfferResult.DROPPED, 1), Signal.WAKE)
    assert script.judge(Oversize(one_too_many)) == (Oversize(one_too_many), dropped)
    assert script.scheduler.was_dropped(11)


def test_a_file_with_two_inconclusive_tries_is_a_batch_of_its_own() -> None:
    script = Script()
    script.queue([1])
    for tries, delay in ((1, 1.0), (2, 5.0)):
        (taken,) = script.taken()
        deferred = Deferred(taken, Reason.UNDECIDED, "not a word")
        about = {"id": 1, "source": "srv", "reason": "undecided", "tries": tries, "detail": "not a word"}
        warning = LogEvent("warning", "deferred", about)
        assert script.judge(deferred) == (deferred, (warning, CountOutcome("srv", deferred), Signal.WAKE))
        assert script.scheduler.tracked.next_due() == script.now + delay
        script.now += delay
        script.enqueue(script.take_ids())
    script.queue([2, 3])
    assert sorted([script.ids(), script.ids()]) == [[1], [2, 3]]


def test_a_file_whose_place_cannot_be_used_is_tried_again_after_minutes() -> None:
    script = Script()
    script.queue([1])
    delays = []
    for _ in range(7):
        (taken,) = script.taken()
        script.judge(Deferred(taken, Reason.PLACE_UNUSABLE, "a file is in the way"))
        due = script.scheduler.tracked.next_due()
        assert due is not None
        delays.append(due - script.now)
        script.now = due
        script.enqueue(script.take_ids())
    assert delays == [1.0, 5.0, 30.0, 60.0, 120.0, 300.0, 300.0]


def test_a_failed_attempt_ends_the_count_of_inconclusive_tries() -> None:
    script = Script()
    script.queue([1])
    for _ in range(2):
        (taken,) = script.taken()
        script.judge(Deferred(taken, Reason.UNDECIDED, "not a word"))
        script.now += 10.0
        script.enqueue(script.take_ids())
    (taken,) = script.taken()
    failed = AttemptFailed(taken, Reason.CHANGED, "…")
    script.judge(failed)
    script.settle(failed)
    script.now += 10.0
    script.enqueue(script.take_ids(), failed_copy_attempts=1)
    script.queue([2])
    assert script.ids() == [1, 2]


def test_inconclusive_tries_are_logged_at_the_first_second_fourth_and_a_stop_never() -> None:
    script = Script()
    script.queue([1])
    logged = []
    for tries in range(1, 9):
        (taken,) = script.taken()
        _, decisions = script.judge(Deferred(taken, Reason.UNDECIDED, "…"))
        logged += [tries for decision in decisions if isinstance(decision, LogEvent)]
        script.now += 100.0
        script.enqueue(script.take_ids())
    assert logged == [1, 2, 4, 8]
    script.queue([2])
    script.ids()
    (stopped,) = script.taken()
    deferred = Deferred(stopped, Reason.STOPPING, "…")
    assert script.judge(deferred) == (deferred, (CountOutcome("srv", deferred), Signal.WAKE))


def refused(script: Script, id_: int, **changes: Any) -> bool:
    """Takes a file, archives it, and has its write-back refused; returns whether it is set aside then."""
    script.enqueue(script.take_ids(), **changes)
    (taken,) = script.taken()
    archived = Archived(taken, "/data/x", 1)
    script.judge(archived)
    set_aside, decisions = script.scheduler.write_refused("srv", archived, "duplicate path", script.now)
    assert CountOutcome("srv", Deferred(taken, Reason.NOT_RECORDABLE, "duplicate path")) in decisions
    return set_aside


def test_a_file_that_cannot_be_recorded_is_set_aside_after_some_tries_until_its_row_changes() -> None:
    script = Script()
    script.offer([1])
    times = []
    while not refused(script, 1):
        times.append(script.now)
        script.offer([1], SWEEP)
        script.offer([1])  # somebody stamps another column
        script.enqueue(script.take_ids())
        assert script.ids() == []
        script.now = script.scheduler.tracked.next_due() or 0.0
    assert times == [0.0, 5.0, 35.0, 155.0]
    # Then a sweep passes over it, and an event of a row that is as it was changes nothing;
    assert script.scheduler.states(0.0)[0].not_recordable == 1
    assert script.offer([1], SWEEP) == (set(), NOTHING)
    script.offer([1])
    script.enqueue(script.take_ids())
    assert (script.ids(), script.scheduler.idle) == ([], True)
    # a row that was changed is tried at once,
    script.offer([1])
    script.enqueue(script.take_ids(), path="/data/other.npy")
    assert script.ids() == [1]
    assert script.scheduler.states(0.0)[0].not_recordable == 0


def test_a_file_set_aside_is_tried_again_when_a_look_at_its_row_finds_it_changed_or_wanted() -> None:
    script = Script()
    script.offer([1])
    while not refused(script, 1):
        script.now += 1000.0
    script.scheduler.set_aside.review({1: record(id=1)})
    assert script.offer([1], SWEEP) == (set(), NOTHING)
    script.scheduler.set_aside.review({})
    assert script.offer([1], SWEEP) == ({1}, WAKE)
    assert not refused(script, 1)


def test_while_the_database_cannot_be_written_to_nothing_more_is_handed_out() -> None:
    script = Script()
    script.queue([1])
    assert script.scheduler.set_backpressure(True) == WAKE
    assert script.take() == (ASK_AGAIN_WHEN_WOKEN, NOTHING)
    assert script.scheduler.set_backpressure(False) == WAKE
    assert script.ids() == [1]


def reads(script: Script, id_: int, event: Any) -> Sequence[float]:
    """When the row of an id is read, if each read leads to this event, until it is tracked no longer."""
    times = []
    while id_ in script.scheduler.tracked:
        assert script.take_ids() == [id_]
        times.append(script.now)
        event(id_, script.now)
        script.now = script.scheduler.tracked.next_due() or script.now
    return times


def test_a_row_that_stays_invisible_is_looked_for_for_a_minute_and_ends_quietly() -> None:
    script = Script()
    script.offer([1])
    times = reads(script, 1, script.scheduler.not_visible)
    waits = [after - before for before, after in itertools.pairwise(times)]
    assert waits[:4] == pytest.approx([0.005, 0.01, 0.02, 0.04])
    assert all(after == pytest.approx(min(2 * before, 5.0)) for before, after in itertools.pairwise(waits))
    assert 55.0 < times[-1] < 65.0
    assert (script.scheduler.idle, script.ids()) == (True, [])


def test_a_row_that_becomes_visible_after_seconds_is_archived_with_the_time_since_its_event() -> None:
    script = Script()
    script.offer([1])
    while script.now < 3.0:
        script.take_ids()
        script.scheduler.not_visible(1, script.now)
        script.now = script.scheduler.tracked.next_due() or 0.0
    assert script.scheduler.idle, "while it waits, nothing is in hand"
    assert script.now < 6.0
    script.enqueue(script.take_ids())
    (taken,) = script.taken()
    archived = Archived(taken, "/data/x", 1)
    script.judge(archived)
    assert script.settle(archived) == (CountOutcome("srv", archived, script.now), Signal.WAKE)


def test_an_awaited_row_that_a_sweep_finds_is_read_at_once() -> None:
    script = Script()
    script.offer([1])
    assert not script.scheduler.is_awaited(1), "it was not read yet"
    script.take_ids()
    script.scheduler.not_visible(1, script.now)
    assert script.scheduler.is_awaited(1)
    assert script.offer([1], SWEEP) == ({1}, WAKE)
    assert not script.scheduler.is_awaited(1)
    # A file that waits for its next attempt is none of these: a sweep does not end its wait.
    script.enqueue(script.take_ids())
    (taken,) = script.taken()
    script.judge(Deferred(taken, Reason.UNDECIDED, "…"))
    assert not script.scheduler.is_awaited(1)
    assert script.offer([1], SWEEP) == (set(), NOTHING)


def test_no_more_rows_are_looked_for_after_a_second_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracked_files, "_LATE_LIMIT", 2)
    script = Script()
    script.offer([1, 2, 3])
    seen: dict[int, float] = {}
    while script.scheduler.tracked.next_due() is not None or not seen:
        for id_ in script.take_ids():
            seen[id_] = script.now
            script.scheduler.not_visible(id_, script.now)
        script.now = script.scheduler.tracked.next_due() or 0.0
    assert sorted(seen) == [1, 2, 3]
    assert 1.0 < min(seen.values()) < 2.0
    assert sorted(seen.values())[1] > 55.0


def test_a_row_that_was_visible_may_be_invisible_as_often_again() -> None:
    script = Script()
    script.offer([1], SWEEP)
    for step in (0.005, 0.01, 0.02, 0.04):
        assert script.take_ids() == [1]
        script.scheduler.not_visible(1, script.now)
        script.now += step
    script.enqueue(script.take_ids())
    (taken,) = script.taken()
    failed = AttemptFailed(taken, Reason.CHANGED, "…")
    script.judge(failed)
    script.settle(failed)
    script.now += 10.0
    times = reads(script, 1, script.scheduler.not_visible)
    assert times[-1] - times[0] > 55.0


def test_a_row_that_seems_to_be_done_when_its_event_came_is_read_again() -> None:
    """What is read a moment after an event may be how the row was before."""
    script = Script()
    script.offer([1])
    times = reads(script, 1, script.scheduler.not_pending)
    assert times[-1] - times[0] > 55.0
    # What a sweep found, and was done by then, is done.
    script.offer([2], SWEEP)
    assert script.take_ids() == [2]
    assert script.scheduler.not_pending(2, script.now) == (ForgetFailure(2),)
    assert script.scheduler.idle
    # Unless its row was changed while it was tracked.
    script.offer([3], SWEEP)
    script.offer([3])
    assert script.take_ids() == [3]
    assert script.scheduler.not_pending(3, script.now) == (ForgetFailure(3),)
    assert 3 in script.scheduler.tracked
    script.now += 0.01
    assert script.take_ids() == [3]
    assert script.scheduler.not_pending(3, script.now, failed=True) == NOTHING


def test_a_row_that_was_given_up_after_failed_attempts_stays_among_those_that_fail() -> None:
    script = Script()
    script.offer([1, 2], SWEEP)
    script.take_ids()
    assert script.scheduler.dismiss(1) == (ForgetFailure(1),)
    assert script.scheduler.dismiss(2, failed=True) == NOTHING


def test_rows_that_the_router_could_not_read_are_read_next_in_the_same_order() -> None:
    script = Script()
    script.offer([1, 2, 3])
    ids = script.take_ids()
    script.offer([4])
    script.scheduler.put_back(ids)
    assert script.take_ids() == [1, 2, 3, 4]


def test_rows_of_timecodes_that_were_handed_over_wait_until_a_decision_and_hold_up_nobody() -> None:
    script = Script()
    # Given a row that is withheld, one that is in the queue, and rows that a sweep left behind,
    script.queue([1])
    script.scheduler.request_refill("srv")
    script.offer([2], SWEEP)
    script.take_ids()
    assert withheld.withhold(script.scheduler, "srv", 2, script.now) == (Signal.WANT_SWEEP,)
    # then the other rows are asked for, no sweep offers the withheld one again, and the queue goes on,
    assert script.offer([2], SWEEP)[0] == set()
    assert script.scheduler.idle is False
    script.now = 600.0
    assert script.take_ids() == []
    # until somebody decides about timecodes: then both are read again, the queued one when a worker wants it.
    assert withheld.recheck(script.scheduler) == WAKE
    assert script.take_ids() == [2]
    assert withheld.withhold(script.scheduler, "srv", 2, script.now) == NOTHING
    assert script.take() == (ASK_AGAIN_WHEN_WOKEN, WAKE)
    assert script.take_ids() == [1]
    withheld.withhold(script.scheduler, "srv", 1, script.now)
    assert script.scheduler.idle
    # What nobody decides about is read again after an hour.
    script.now += 3600.0
    assert sorted(script.take_ids()) == [1, 2]
    script.enqueue([1, 2])
    assert script.ids() == [1, 2]


def test_a_retired_source_is_forgotten_when_nothing_of_it_is_under_way() -> None:
    script = Script()
    scheduler = script.scheduler
    # Given one file with a worker and one that waits,
    script.queue([1])
    (taken,) = script.taken()
    script.queue([2])
    # when its source is retired, then nothing more of it is handed out or taken in,
    assert scheduler.hands_out("srv")
    assert scheduler.retire_source("srv") == WAKE
    assert not scheduler.hands_out("srv")
    script.offer([3])
    assert script.enqueue(script.take_ids()) == [NOTHING]
    assert scheduler.room("srv") == 0
    assert list(scheduler.tracked) == [1]
    # and the last file of it wakes whoever waits to forget it.
    archived = Archived(taken, "/data/x", 1)
    script.judge(archived)
    assert scheduler.sources["srv"].in_flight == 1
    assert Signal.WAKE in script.settle(archived)
    scheduler.finish("srv")
    assert scheduler.sources["srv"].in_flight == 0
    scheduler.forget_source("srv")
    assert scheduler.states(0.0) == []
    # When it is added again, everything of it is taken in again.
    scheduler.add_source("srv", 200)
    script.queue([2, 3])
    assert script.ids() == [2, 3]


def test_a_huge_file_of_a_retired_source_is_dropped() -> None:
    script = Script()
    script.queue([1], SWEEP)
    (big,) = script.taken()
    script.scheduler.retire_source("srv")
    assert script.judge(Oversize(big)) == (Oversize(big), WAKE)
    assert script.scheduler.was_dropped(1)


def test_a_write_back_that_comes_after_its_source_was_forgotten_is_not_counted() -> None:
    script = Script()
    script.queue([1])
    (taken,) = script.taken()
    script.scheduler.forget_source("srv")
    assert script.settle(Archived(taken, "/data/x", 1)) == NOTHING
    assert script.scheduler.idle


def test_a_source_is_added_once() -> None:
    script = Script()
    with pytest.raises(ValueError, match="srv was added already"):
        script.scheduler.add_source("srv", 1)


def test_a_closed_scheduler_hands_out_nothing() -> None:
    script = Script()
    script.queue([1])
    assert script.scheduler.close() == WAKE
    assert script.scheduler.closed
    assert not script.scheduler.hands_out("srv")
