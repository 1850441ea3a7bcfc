"""Scheduler, router and sweeper over a table in memory, in any order of events: no id is ever lost, none is ever in two places,
whoever may go on is woken, and in the end each file is archived."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from records import record

from cdc_archiver.database.files_table import Census, Pending, Row
from cdc_archiver.dispatch import scheduler as module
from cdc_archiver.dispatch import withheld
from cdc_archiver.dispatch.decision_types import CountStreamEvents, Decisions, Signal
from cdc_archiver.dispatch.router import Router, Targets
from cdc_archiver.dispatch.scheduler import Scheduler
from cdc_archiver.dispatch.tracked_files import TrackedState
from cdc_archiver.errors import DatabaseUnavailable
from cdc_archiver.events.sweep import NoStream, Sweeper
from cdc_archiver.model import (
    REFUSED_FROM,
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
from cdc_archiver.settings import Settings, load

PROFILE = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "60")),
    stateful_step_count=80,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
"""Seconds for ``make test``; ``FUZZ_EXAMPLES=2000`` for a soak."""

LIMITS = {"INBOX_LIMIT": 6, "QUEUE_LIMIT": 3, "BACKLOG_LIMIT": 2, "REFILL_BELOW": 2}
"""In the same order as the real ones, and so small that each is met."""

SOURCES = ("a", "b")
ROUTER = ("", "router")
WORKERS = tuple((source, name) for source in SOURCES for name in ("small-0", "small-1", "bulk-0"))
MAX_ATTEMPTS = 3
BATCH_FILES = 3
DEFERRALS = (
    Reason.HOST_UNREACHABLE,
    Reason.SOURCE_NOT_MOUNTED,
    Reason.LOGIN_REFUSED,
    Reason.NO_SPACE,
    Reason.CORRUPTED,
    Reason.UNDECIDED,
    Reason.STOPPING,
)
KINDS = ("archived", "adopted", "missing", "changed", "refused", "oversize", *DEFERRALS)


class Table:
    """The table of files, the server that has it, and its binary log."""

    max_attempts = MAX_ATTEMPTS

    def __init__(self) -> None:
        self.rows: dict[int, Row] = {}
        self.invisible: set[int] = set()
        self.events: list[int] = []
        self.away = False
        self.newest = 0
        self.meanwhile: Callable[[], None] = lambda: None
        """What happens while rows are on their way to the router."""

    def write(self, row: Row) -> None:
        """A commit: the row, and its event."""
        self.rows[row.record.id] = row
        self.events.append(row.record.id)

    @contextlib.contextmanager
    def connect(self) -> Iterator[None]:
        if self.away:
            raise DatabaseUnavailable("it is away")
        yield

    def load(self, _connection: object, ids: Sequence[int], *, row_image: bool) -> dict[int, Row]:
        found = {id_: self.rows[id_] for id_ in ids if id_ in self.rows and id_ not in self.invisible}
        self.meanwhile()
        return found

    def max_id(self, _connection: object) -> int:
        return max(self.rows.keys() - self.invisible, default=0)

    def pending(self, _connection: object, targets: Sequence[str], after: int, until: int, limit: int) -> list[Pending]:
        ids = sorted(id_ for id_ in self.rows.keys() - self.invisible if after < id_ <= until and self.waits(id_))
        found = [self.rows[id_].record for id_ in ids if self.rows[id_].record.instance_id in targets]
        return [Pending(each.id, each.attempts) for each in found][:limit]

    def census(self, _connection: object, _targets: Sequence[str]) -> Census:
        return Census()

    def waits(self, id_: int) -> bool:
        """Whether a row is work, whosever."""
        row = self.rows.get(id_)
        return row is not None and not row.copied and row.record.attempts < MAX_ATTEMPTS


class OneRound:
    """In place of a part's ``stopping``: it lets one round of the loop through, and waits for nothing."""

    def __init__(self) -> None:
        self._asked = 0

    def is_set(self) -> bool:
        self._asked += 1
        return self._asked > 1

    def wait(self, _seconds: float) -> None:
        pass


class Driver:
    """A dispatcher without lock or threads: it carries decisions out by taking note of them.

    Attributes:
        asleep: who found nothing to do, and until when that is, unless a wake-up comes first.
    """

    def __init__(self, want_sweep: Callable[[], None]) -> None:
        self.scheduler = Scheduler(MAX_ATTEMPTS, (5.0, 30.0, 120.0, 600.0))
        for name in SOURCES:
            self.scheduler.add_source(name, BATCH_FILES)
        self.now = 0.0
        self.asleep: dict[tuple[str, str], float] = {}
        self.backpressure = False
        self._want_sweep = want_sweep
        self._jitter = itertools.cycle((0.0, 0.5, 1.0))

    def carry_out(self, decisions: Decisions) -> None:
        if Signal.WAKE in decisions:
            self.asleep.clear()
        if Signal.WANT_SWEEP in decisions:
            self._want_sweep()

    # For the stream and the sweeper.

    def offer(self, ids: Iterable[int], origin: Origin, *, fresh: bool) -> set[int]:
        ids = list(ids)
        taken, decisions = self.scheduler.offer(ids, origin, self.now, fresh=fresh)
        counted = sum(decision.count for decision in decisions if isinstance(decision, CountStreamEvents))
        assert counted == (len(ids) if origin is Origin.STREAM else 0)
        self.carry_out(decisions)
        return taken

    def notice(self, rows: Sequence[Pending]) -> None:
        self.carry_out(self.scheduler.notice(rows))

    def room(self, source: str) -> int:
        return self.scheduler.room(source)

    def request_refill(self, source: str) -> None:
        self.scheduler.request_refill(source)

    def was_dropped(self, id_: int) -> bool:
        return self.scheduler.was_dropped(id_)

    def is_awaited(self, id_: int) -> bool:
        return self.scheduler.is_awaited(id_)

    def forget_dropped(self) -> None:
        self.scheduler.forget_dropped()

    # For the router.

    def take_ids(self, limit: int, wait: float) -> list[int]:
        self.asleep.pop(ROUTER, None)
        ids, decisions = self.scheduler.take_ids(limit, self.now)
        self.carry_out(decisions)
        if not ids:
            next_due = self.scheduler.tracked.next_due()
            self.asleep[ROUTER] = float("inf") if next_due is None else next_due
        return ids

    def put_back(self, ids: Sequence[int]) -> None:
        self.scheduler.put_back(ids)

    def atomically(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def never_tried(self, ids: Sequence[int]) -> list[int]:
        return self.scheduler.never_tried(ids)

    def enqueue(self, source: str, record: FileRecord, failed_ago: float | None = None) -> None:
        self.carry_out(self.scheduler.enqueue(source, record, self.now, failed_ago))

    def withhold(self, source: str, id_: int) -> None:
        self.carry_out(withheld.withhold(self.scheduler, source, id_, self.now))

    def dismiss(self, id_: int, *, failed: bool = False) -> None:
        self.carry_out(self.scheduler.dismiss(id_, failed=failed))

    def not_visible(self, id_: int) -> None:
        self.scheduler.not_visible(id_, self.now)

    def not_pending(self, id_: int, *, failed: bool = False) -> None:
        self.carry_out(self.scheduler.not_pending(id_, self.now, failed=failed))

    # For the workers and the recorder.

    def take(self, who: tuple[str, str]) -> Batch | None:
        source, worker = who
        self.asleep.pop(who, None)
        found, decisions = self.scheduler.take(source, lane_of(worker), worker, self.now)
        self.carry_out(decisions)
        if isinstance(found, Batch):
            return found
        assert found.until > self.now, "it would ask again and again"
        self.asleep[who] = found.until
        return None

    def judge(self, batch: Batch, outcome: Outcome) -> Outcome:
        outcome, decisions = self.scheduler.judge(batch, outcome, self.now, next(self._jitter))
        self.carry_out(decisions)
        return outcome

    def settled(self, source: str, outcome: Archived | AttemptFailed | Refused, *, counted: bool) -> None:
        self.carry_out(self.scheduler.settled(source, outcome, self.now, next(self._jitter), counted=counted))

    def set_backpressure(self, on: bool) -> None:
        self.backpressure = on
        self.carry_out(self.scheduler.set_backpressure(on))

    def destination_failed(self, reason: Reason) -> None:
        self.carry_out(self.scheduler.health.destination_failed(reason, "…", self.now, next(self._jitter)))

    def may_take(self, who: tuple[str, str]) -> bool:
        """Whether a worker would get a batch now."""
        source, worker = who
        queues = self.scheduler.sources[source]
        may_try = queues.health.may_try(self.now) and self.scheduler.destination.may_try(self.now)
        return bool(queues.lanes[lane_of(worker)]) and may_try and not self.backpressure


def lane_of(worker: str) -> Lane:
    return Lane(worker.partition("-")[0])


@dataclass
class Work:
    """A worker's batch, and the records of it that are undecided."""

    batch: Batch
    left: list[FileRecord]


def site() -> Settings:
    """Two sources of one target each."""
    sources = [{"name": name, "host": name, "target": [name]} for name in SOURCES]
    return load({"sources": sources, "batch_files": BATCH_FILES, "max_attempts": MAX_ATTEMPTS}, environment={})


SETTINGS = site()


class SchedulerMachine(RuleBasedStateMachine):
    """One process: each rule is what one of its threads, or the world, does once."""

    def __init__(self) -> None:
        super().__init__()
        self.cleanup = contextlib.ExitStack()
        for name, value in LIMITS.items():
            self.cleanup.enter_context(mock.patch.object(module, name, value))
        self.cleanup.enter_context(mock.patch("cdc_archiver.dispatch.router._WAIT", 0.0))
        self.table = Table()
        self.driver = Driver(lambda: self.sweeper.request())
        self.scheduler = self.driver.scheduler
        table: Any = self.table
        self.router = Router(table, table, Targets(SETTINGS.sources), self.driver, lambda connection, ids: {})
        self.sweeper = Sweeper(SETTINGS, table, table, self.driver, NoStream(), Metrics())
        self.works: dict[tuple[str, str], Work] = {}
        self.outcomes: list[tuple[str, Archived | AttemptFailed | Refused]] = []
        self.written: list[tuple[str, Archived | AttemptFailed | Refused]] = []
        self.counted: set[int] = set()
        self.huge: set[int] = set()
        self.untold: set[int] = set()
        """What nobody has told of: the next sweep does."""

    # The world.

    @precondition(lambda self: sum(map(self._is_ours, self.table.rows)) < 25)
    @rule(
        target_=st.sampled_from([*SOURCES, *SOURCES, "another's"]),
        count=st.integers(1, 6),
        huge=st.booleans(),
        told=st.sampled_from([True, True, False]),
        visible=st.sampled_from([True, True, False]),
    )
    def files_are_registered(self, target_: str, count: int, huge: bool, told: bool, visible: bool) -> None:
        for _ in range(count):
            self.table.newest += 1
            id_ = self.table.newest
            self.table.write(Row(record(id=id_, path=f"/data/{id_}", instance_id=target_), copied=False))
            if huge:
                self.huge.add(id_)
            if not visible:
                self.table.invisible.add(id_)
            if not told:
                self.table.events.pop()
                self.untold.add(id_)

    @rule()
    def all_is_visible(self) -> None:
        self.table.invisible.clear()

    @precondition(lambda self: self.table.rows)
    @rule(data=st.data(), change=st.sampled_from(["path", "attempts", "put back", "put back", "given up", "deleted"]))
    def somebody_changes_a_row(self, data: st.DataObject, change: str) -> None:
        tracked = [id_ for id_ in self.scheduler.tracked if id_ in self.table.rows]
        # A tracked row is more likely than another.
        id_ = data.draw(st.sampled_from(3 * sorted(tracked) + sorted(self.table.rows)))
        row = self.table.rows[id_]
        match change:
            case "path":
                self.table.write(Row(replace(row.record, path=row.record.path + "x"), row.copied))
            case "attempts":
                self.table.write(Row(replace(row.record, failed_copy_attempts=None), row.copied))
            case "put back":
                self.table.write(Row(replace(row.record, failed_copy_attempts=0), copied=False))
            case "given up":
                self.table.write(Row(replace(row.record, failed_copy_attempts=2000), row.copied))
            case "deleted":
                del self.table.rows[id_]

    @rule(data=st.data(), put_back=st.booleans())
    def what_is_done_is_touched(self, data: st.DataObject, put_back: bool) -> None:
        done = sorted(id_ for id_ in self.table.rows if not self.table.waits(id_))
        if done and put_back:
            self._put_back(data.draw(st.sampled_from(done)))
        elif done:
            self.table.write(self.table.rows[data.draw(st.sampled_from(done))])
            self.the_stream_tells(1000)
            self.the_router_reads(meanwhile=True)

    @precondition(lambda self: sum(map(self._is_ours, self.table.rows)) < 15)
    @rule()
    def a_flood(self) -> None:
        """More than there is room for, from everywhere, and nobody takes it."""
        for source in SOURCES:
            self.files_are_registered(source, LIMITS["QUEUE_LIMIT"] + 2, huge=False, told=True, visible=True)
        for _ in range(3):
            self.the_stream_tells(LIMITS["INBOX_LIMIT"])
            self.the_router_reads(meanwhile=False)

    @rule(seconds=st.sampled_from([0.01, 1.0, 6.0, 61.0]))
    def time_passes(self, seconds: float) -> None:
        self.driver.now += seconds

    @rule(away=st.booleans())
    def the_database_goes_or_comes(self, away: bool) -> None:
        self.table.away = away

    # The stream and the sweep.

    @precondition(lambda self: self.table.events)
    @rule(count=st.integers(1, 12))
    def the_stream_tells(self, count: int) -> None:
        told, self.table.events = self.table.events[:count], self.table.events[count:]
        self.driver.offer(told, Origin.STREAM, fresh=True)

    @rule()
    def the_stream_is_cut_and_anchored_anew(self) -> None:
        self.untold.update(self.table.events)
        self.table.events.clear()
        self.scheduler.tracked.forget_own_writes()
        self.sweeper.anchored()

    @rule()
    def a_sweep(self) -> None:
        self.sweeper._wanted.clear()
        try:
            self.sweeper.sweep()
        except DatabaseUnavailable:
            self.sweeper.request()
            return
        self.sweeper._second_look_at = float("inf")  # by the real clock, which is not ours
        if self.sweeper.exhausted.is_set():
            self.sweeper.exhausted.clear()
            self.untold &= self.table.invisible

    # The router, the workers and the recorder.

    @rule(meanwhile=st.booleans())
    def the_router_reads(self, meanwhile: bool) -> None:
        """
        Arguments:
            meanwhile: rows are put back, and the stream tells of it, after they were read and before that is known.
        """
        stopping: Any = OneRound()
        self.router.stopping = stopping
        self.table.meanwhile = self._all_are_put_back if meanwhile else lambda: None
        self.router.work()
        # A row that stays invisible is left to the sweep.
        self.untold |= {id_ for id_ in self.table.invisible if id_ not in self.scheduler.tracked}

    @rule(whos=st.sets(st.sampled_from(WORKERS), min_size=1))
    def workers_take(self, whos: set[tuple[str, str]]) -> None:
        for who in sorted(whos - self.works.keys()):
            self._take(who)

    @rule(count=st.integers(1, 12))
    def a_quiet_moment(self, count: int) -> None:
        """What is told of is read and taken, one after the other, as on most days."""
        if self.table.events:
            self.the_stream_tells(count)
        self.the_router_reads(meanwhile=False)
        self.workers_take(set(WORKERS))
        if self.sweeper._wanted.is_set():
            self.a_sweep()

    @precondition(lambda self: self.works)
    @rule(data=st.data(), kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=6))
    def workers_have_outcomes(self, data: st.DataObject, kinds: list[str]) -> None:
        for kind in kinds:
            if self.works:
                who = data.draw(st.sampled_from(sorted(self.works)))
                chosen = data.draw(st.sampled_from(self.works[who].left))
                self._decide(who, chosen, kind)

    @precondition(lambda self: self.outcomes and not self.written)
    @rule(count=st.integers(1, 9), acknowledged=st.sampled_from([True, True, True, False]), meanwhile=st.booleans())
    def the_recorder_writes(self, count: int, acknowledged: bool, meanwhile: bool) -> None:
        """
        Arguments:
            meanwhile: rows are put back, and the stream tells of it, after they were written and before that is known.
        """
        self._write(count, acknowledged)
        if meanwhile:
            self._all_are_put_back()
        self._settle()

    @rule(on=st.booleans())
    def the_recorder_cannot_keep_up(self, on: bool) -> None:
        self.driver.set_backpressure(on)

    @rule(reason=st.sampled_from([Reason.DESTINATION_MISSING, Reason.NO_SPACE]))
    def the_destination_fails(self, reason: Reason) -> None:
        self.driver.destination_failed(reason)

    @rule(source=st.sampled_from([*SOURCES, None]))
    def trouble_is_over(self, source: str | None) -> None:
        self.driver.carry_out(self.scheduler.health.destination_ready(self.driver.now))
        self.driver.carry_out(self.scheduler.nothing_pending(source, self.driver.now))

    # What must hold at every moment.

    @invariant()
    def each_id_is_in_one_place_and_the_table_says_which(self) -> None:
        table, sources = self.scheduler.tracked, self.scheduler.sources
        read = Counter(id_ for id_ in self.scheduler.inboxes)
        queued = Counter(
            waiting.id
            for source in sources.values()
            for queue in source.lanes.values()
            for part in (queue.fresh, queue.backlog)
            for waiting in part
        )
        held = Counter(left.id for work in self.works.values() for left in work.left)
        held.update(outcome.record.id for _, outcome in self.outcomes + self.written)
        places = {TrackedState.OFFERED: read, TrackedState.QUEUED: queued, TrackedState.IN_FLIGHT: held}
        for state, place in places.items():
            assert max(place.values(), default=1) == 1, f"{place} has an id twice"
            expected = {id_ for id_, file in table._files.items() if file.state is state}
            assert place.keys() == expected, f"{state}: {sorted(place)} and not {sorted(expected)}"
        waits = {(file.due, id_) for id_, file in table._files.items() if file.state is TrackedState.WAITING}
        assert waits <= set(table._waiting), "who waits is never woken"

    @invariant()
    def the_files_in_flight_are_those_under_way(self) -> None:
        for name, source in self.scheduler.sources.items():
            held = sum(len(work.left) for who, work in self.works.items() if who[0] == name)
            held += sum(where == name for where, _ in self.outcomes + self.written)
            assert source.in_flight == held

    @invariant()
    def nobody_sleeps_who_may_go_on(self) -> None:
        for who, until in self.driver.asleep.items():
            if self.driver.now >= until:
                continue
            if who == ROUTER:
                next_due = self.scheduler.tracked.next_due()
                assert not len(self.scheduler.inboxes), "the router sleeps beside ids that it could read"
                assert next_due is None or next_due >= until, "the router sleeps past a retry"
            else:
                assert not self.driver.may_take(who), f"{who} sleeps beside a batch"

    @invariant()
    def no_row_that_waits_is_forgotten(self) -> None:
        sweep_wanted = self.sweeper._wanted.is_set() or self.sweeper._second_look_at < float("inf")
        for id_, row in self.table.rows.items():
            if row.record.instance_id not in SOURCES or not self.table.waits(id_):
                continue
            refill = self.scheduler.sources[row.record.instance_id].needs_refill
            known = id_ in self.scheduler.tracked or id_ in self.table.events or id_ in self.untold
            assert known or sweep_wanted or refill, f"nobody knows of {id_} any more"

    @invariant()
    def no_queue_is_over_its_limit(self) -> None:
        for source in self.scheduler.sources.values():
            assert all(len(queue) <= LIMITS["QUEUE_LIMIT"] for queue in source.lanes.values())

    def teardown(self) -> None:
        """All is well again: then everything is handled, soon."""
        try:
            self._all_is_well()
        finally:
            self.cleanup.close()

    def _all_is_well(self) -> None:
        self.table.away = False
        self.table.invisible.clear()
        self.driver.set_backpressure(False)
        for _ in range(60 + 3 * len(self.table.rows)):
            busy = self.works or self.outcomes or self.written or self.table.events or list(self.scheduler.tracked)
            if not busy and not any(self._is_ours(id_) for id_ in self.table.rows):
                return
            self.driver.now += 100.0
            self.driver.carry_out(self.scheduler.health.destination_ready(self.driver.now))
            if self.table.events:
                self.the_stream_tells(1000)
            self.a_sweep()
            self.the_router_reads(meanwhile=False)
            for who in WORKERS:
                if who not in self.works:
                    self._take(who)
                while who in self.works:
                    chosen = self.works[who].left[0]
                    small = self.works[who].batch.lane is Lane.SMALL
                    self._decide(who, chosen, "oversize" if small and chosen.id in self.huge else "archived")
            self._settle()
            self._write(len(self.outcomes), acknowledged=True)
            self._settle()
            self.each_id_is_in_one_place_and_the_table_says_which()
            self.no_row_that_waits_is_forgotten()
        left = [id_ for id_ in self.table.rows if self._is_ours(id_)]
        raise AssertionError(f"left: {left}, tracked: {list(self.scheduler.tracked)}")

    def _is_ours(self, id_: int) -> bool:
        return self.table.waits(id_) and self.table.rows[id_].record.instance_id in SOURCES

    def _take(self, who: tuple[str, str]) -> None:
        batch = self.driver.take(who)
        if batch is None:
            return
        under_way = {left.id for work in self.works.values() for left in work.left}
        assert batch.records, "a batch of nothing"
        assert not under_way & {taken.id for taken in batch.records}, "two workers have one file"
        assert all(taken.instance_id == who[0] for taken in batch.records)
        self.works[who] = Work(batch, list(batch.records))

    def _decide(self, who: tuple[str, str], chosen: FileRecord, kind: str) -> None:
        work = self.works[who]
        work.left.remove(chosen)
        outcome = self.driver.judge(work.batch, _outcome(chosen, kind, work.batch.lane))
        assert outcome.record == chosen
        if isinstance(outcome, Archived | AttemptFailed | Refused):
            assert self.scheduler.seconds_waited(chosen.id) >= 0.0
            self.outcomes.append((who[0], outcome))
        if not work.left:
            del self.works[who]
            self.driver.carry_out(self.scheduler.finish(who[0]))

    def _write(self, count: int, acknowledged: bool) -> None:
        """What the recorder does, compare-and-set of the rows among it."""
        entries, rest = self.outcomes[:count], self.outcomes[count:]
        ids = [outcome.record.id for _, outcome in entries]
        self.scheduler.tracked.expect_own_writes(ids, self.driver.now)
        if self.table.away:
            self.scheduler.tracked.cancel_own_writes(ids)
            return
        changed, already = set(), set()
        for _, outcome in entries:
            before = outcome.record
            row, after = self.table.rows.get(before.id), _row_after(outcome)
            if row == Row(before, copied=False):
                self.table.write(after)
                changed.add(before.id)
            elif row == after and isinstance(outcome, Archived):
                already.add(before.id)
        if not acknowledged:
            self.scheduler.tracked.cancel_own_writes(ids)
            return
        self.scheduler.tracked.cancel_own_writes([id_ for id_ in ids if id_ not in changed])
        self.outcomes, self.written, self.counted = rest, entries, changed | already

    def _settle(self) -> None:
        for source, outcome in self.written:
            self.driver.settled(source, outcome, counted=outcome.record.id in self.counted)
        self.written = []

    def _put_back(self, id_: int) -> None:
        self.table.write(Row(replace(self.table.rows[id_].record, failed_copy_attempts=0), copied=False))

    def _all_are_put_back(self) -> None:
        for id_ in self.table.rows:
            self._put_back(id_)
        self.the_stream_tells(1000)


def _outcome(chosen: FileRecord, kind: str, lane: Lane) -> Outcome:
    match kind:
        case "archived" | "adopted":
            return Archived(chosen, f"/archive/{chosen.id}", 1, adopted=kind == "adopted")
        case "missing":
            return AttemptFailed(chosen, Reason.MISSING, "…")
        case "changed":
            return AttemptFailed(chosen, Reason.CHANGED, "…")
        case "refused":
            return Refused(chosen, Reason.NOT_A_FILE, "…")
        case "oversize" if lane is Lane.SMALL:
            return Oversize(chosen)
        case "oversize":
            return Archived(chosen, f"/archive/{chosen.id}", 10**9)
        case _:
            return Deferred(chosen, Reason(kind), "…")


def _row_after(outcome: Archived | AttemptFailed | Refused) -> Row:
    match outcome:
        case Archived(record=before, path=path):
            return Row(replace(before, path=path), copied=True)
        case AttemptFailed(record=before):
            return Row(replace(before, failed_copy_attempts=before.attempts + 1), copied=False)
        case Refused(record=before):
            return Row(replace(before, failed_copy_attempts=REFUSED_FROM), copied=False)


@pytest.mark.timeout(600)  # a failure is made small, which takes its time
class TestScheduler(SchedulerMachine.TestCase):  # type: ignore[valid-type, misc]
    settings = PROFILE
