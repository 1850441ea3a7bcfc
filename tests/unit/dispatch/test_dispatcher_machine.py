"""Dispatcher, router and sweeper as they are, over a table in memory, in any order of what may happen: no id is ever lost, none is
ever in two hands, and in the end each is handled."""

from __future__ import annotations

import contextlib
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import hypothesis.strategies as st
import pytest
import structlog
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from records import record

from cdc_archiver.database.files_table import Census, Pending, Row
from cdc_archiver.dispatch import scheduler as module
from cdc_archiver.dispatch.dispatcher import Dispatcher
from cdc_archiver.dispatch.in_flight import InFlightState
from cdc_archiver.dispatch.router import Router, Targets
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
WORKERS = tuple((source, name) for source in SOURCES for name in ("small-0", "small-1", "bulk-0"))
MAX_ATTEMPTS = 3
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

    def load(self, _connection: object, ids: Sequence[int], *, image: bool) -> dict[int, Row]:
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


class Clock:
    """Time that passes when it is told to, and at each look a little, so that no wait lasts."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.0001
        return self.now


@dataclass
class Work:
    """A batch in a worker's hands, and what is undecided of it."""

    batch: Batch
    left: list[FileRecord]


def site() -> Settings:
    """Two sources of one target each."""
    sources = [{"name": name, "host": name, "target": [name]} for name in SOURCES]
    return load({"sources": sources, "batch_files": 3, "max_attempts": MAX_ATTEMPTS}, environment={})


SETTINGS = site()


class DispatcherMachine(RuleBasedStateMachine):
    """The house of one process: each rule is what one of its threads, or the world, does once."""

    def __init__(self) -> None:
        super().__init__()
        self.cleanup = contextlib.ExitStack()
        for name, value in LIMITS.items():
            self.cleanup.enter_context(mock.patch.object(module, name, value))
        self.cleanup.enter_context(mock.patch("cdc_archiver.dispatch.router._WAIT", 0.0))
        quiet = structlog.make_filtering_bound_logger(logging.CRITICAL)
        self.cleanup.callback(structlog.configure, **structlog.get_config())
        structlog.configure(wrapper_class=quiet)
        self.clock = Clock()
        self.table = Table()
        self.dispatcher = Dispatcher(SETTINGS, Metrics(), lambda: self.sweeper.request(), self.clock)
        table: Any = self.table
        self.router = Router(table, table, Targets(SETTINGS.sources), self.dispatcher)
        self.sweeper = Sweeper(SETTINGS, table, table, self.dispatcher, NoStream(), Metrics())
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
        in_hand = [id_ for id_ in self.dispatcher._scheduler.in_flight._files if id_ in self.table.rows]
        # Where a row is in hand, it is rather that one.
        id_ = data.draw(st.sampled_from(3 * sorted(in_hand) + sorted(self.table.rows)))
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
        self.clock.now += seconds

    @rule(away=st.booleans())
    def the_database_goes_or_comes(self, away: bool) -> None:
        self.table.away = away

    # The stream and the sweep.

    @precondition(lambda self: self.table.events)
    @rule(count=st.integers(1, 12))
    def the_stream_tells(self, count: int) -> None:
        told, self.table.events = self.table.events[:count], self.table.events[count:]
        self.dispatcher.offer(told, Origin.STREAM, fresh=True)

    @rule()
    def the_stream_is_cut_and_anchored_anew(self) -> None:
        self.untold.update(self.table.events)
        self.table.events.clear()
        self.dispatcher.forget_own_writes()
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
        self.untold |= {id_ for id_ in self.table.invisible if id_ not in self.dispatcher._scheduler.in_flight}

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

    @rule(held_up=st.booleans())
    def the_recorder_cannot_keep_up(self, held_up: bool) -> None:
        self.dispatcher.set_backpressure(held_up)

    @rule(reason=st.sampled_from([Reason.DESTINATION_MISSING, Reason.NO_SPACE]))
    def the_destination_fails(self, reason: Reason) -> None:
        self.dispatcher.destination_failed(reason, "…")

    @rule(source=st.sampled_from([*SOURCES, None]))
    def nothing_is_known_against_it_any_more(self, source: str | None) -> None:
        self.dispatcher.destination_ready()
        self.dispatcher.nothing_pending(source)

    # What must hold at every moment.

    @invariant()
    def each_id_is_in_one_place_and_its_entry_says_which(self) -> None:
        ledger, sources = self.dispatcher._scheduler.in_flight, self.dispatcher._scheduler.sources
        read = Counter(id_ for inbox in self.dispatcher._scheduler.inboxes.values() for id_ in inbox)
        queued = Counter(
            waiting.id
            for source in sources.values()
            for queue in source.lanes.values()
            for part in (queue.fresh, queue.backlog)
            for waiting in part
        )
        held = Counter(left.id for work in self.works.values() for left in work.left)
        held.update(outcome.record.id for _, outcome in self.outcomes + self.written)
        places = {InFlightState.OFFERED: read, InFlightState.QUEUED: queued, InFlightState.IN_FLIGHT: held}
        for state, place in places.items():
            assert max(place.values(), default=1) == 1, f"{place} has an id twice"
            expected = {id_ for id_, entry in ledger._files.items() if entry.state is state}
            assert place.keys() == expected, f"{state}: {sorted(place)} and not {sorted(expected)}"
        waits = {(entry.due, id_) for id_, entry in ledger._files.items() if entry.state is InFlightState.WAITING}
        assert waits <= set(ledger._waiting), "who waits is never woken"

    @invariant()
    def the_files_in_flight_are_those_in_hands(self) -> None:
        for name, source in self.dispatcher._scheduler.sources.items():
            held = sum(len(work.left) for who, work in self.works.items() if who[0] == name)
            held += sum(where == name for where, _ in self.outcomes + self.written)
            assert source.in_flight == held

    @invariant()
    def no_row_that_waits_is_forgotten(self) -> None:
        sweep_wanted = self.sweeper._wanted.is_set() or self.sweeper._second_look_at < float("inf")
        for id_, row in self.table.rows.items():
            if row.record.instance_id not in SOURCES or not self.table.waits(id_):
                continue
            starved = self.dispatcher._scheduler.sources[row.record.instance_id].needs_refill
            known = id_ in self.dispatcher._scheduler.in_flight or id_ in self.table.events or id_ in self.untold
            assert known or sweep_wanted or starved, f"nobody knows of {id_} any more"

    @invariant()
    def no_queue_is_over_its_measure(self) -> None:
        for source in self.dispatcher._scheduler.sources.values():
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
        self.dispatcher.set_backpressure(False)
        for _ in range(60 + 3 * len(self.table.rows)):
            in_hand = (
                self.works
                or self.outcomes
                or self.written
                or self.table.events
                or self.dispatcher._scheduler.in_flight._files
            )
            if not in_hand and not any(self._is_ours(id_) for id_ in self.table.rows):
                return
            self.clock.now += 100.0
            self.dispatcher.destination_ready()
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
            self.each_id_is_in_one_place_and_its_entry_says_which()
            self.no_row_that_waits_is_forgotten()
        left = [id_ for id_ in self.table.rows if self._is_ours(id_)]
        raise AssertionError(f"left: {left}, in hand: {self.dispatcher._scheduler.in_flight._files}")

    def _is_ours(self, id_: int) -> bool:
        return self.table.waits(id_) and self.table.rows[id_].record.instance_id in SOURCES

    def _take(self, who: tuple[str, str]) -> None:
        source, worker = who
        batch = self.dispatcher.take(source, Lane(worker.partition("-")[0]), worker, 0.0)
        if batch is None:
            return
        in_hands = {left.id for work in self.works.values() for left in work.left}
        assert batch.records, "a batch of nothing"
        assert not in_hands & {taken.id for taken in batch.records}, "two workers have one file"
        assert all(taken.instance_id == source for taken in batch.records)
        self.works[who] = Work(batch, list(batch.records))

    def _decide(self, who: tuple[str, str], chosen: FileRecord, kind: str) -> None:
        work = self.works[who]
        work.left.remove(chosen)
        outcome = self.dispatcher.judge(work.batch, _outcome(chosen, kind, work.batch.lane))
        assert outcome.record == chosen
        if isinstance(outcome, Archived | AttemptFailed | Refused):
            assert self.dispatcher.seconds_waited(chosen.id) >= 0.0
            self.outcomes.append((who[0], outcome))
        if not work.left:
            del self.works[who]
            self.dispatcher.finish(who[0])

    def _write(self, count: int, acknowledged: bool) -> None:
        """What the recorder does, compare-and-set of the rows among it."""
        entries, rest = self.outcomes[:count], self.outcomes[count:]
        ids = [outcome.record.id for _, outcome in entries]
        self.dispatcher.expect_own_writes(ids)
        if self.table.away:
            self.dispatcher.cancel_own_writes(ids)
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
            self.dispatcher.cancel_own_writes(ids)
            return
        self.dispatcher.cancel_own_writes([id_ for id_ in ids if id_ not in changed])
        self.outcomes, self.written, self.counted = rest, entries, changed | already

    def _settle(self) -> None:
        for source, outcome in self.written:
            self.dispatcher.settled(source, outcome, counted=outcome.record.id in self.counted)
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
class TestDispatcher(DispatcherMachine.TestCase):  # type: ignore[valid-type, misc]
    settings = PROFILE
