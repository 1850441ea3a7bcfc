"""The in-flight table against a model of it, in any order of what may happen to an id."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from unittest import mock

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cdc_archiver.dispatch import tracked_files as module
from cdc_archiver.dispatch.tracked_files import OfferResult, TrackedFiles, TrackedState
from cdc_archiver.model import Origin

PROFILE = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "120")),
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
"""Seconds for ``make test``; ``FUZZ_EXAMPLES=5000`` for a soak."""

IDS = st.integers(1, 2)


@dataclass
class Known:
    """What the model knows of a tracked id.

    Attributes:
        touched: its row was changed after it was read, or before that was known to be so.
        due: while it waits.
        withheld: it waits for a decision about its timecode.
    """

    state: TrackedState
    touched: bool = False
    due: float = 0.0
    withheld: bool = False


class TrackedFilesMachine(RuleBasedStateMachine):
    """Each rule does one thing to the table and to the model, and compares what they answer."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = mock.patch.object(module, "_WAITING_LIMIT", 1)  # so that it is met
        self.patch.start()
        self.table = TrackedFiles()
        self.now = 0.0
        self.known: dict[int, Known] = {}
        self.own_writes: dict[int, tuple[int, float]] = {}

    def teardown(self) -> None:
        self.patch.stop()

    @rule(seconds=st.sampled_from([0.5, 5.0, 61.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(id_=IDS, origin=st.sampled_from(Origin), fresh=st.booleans())
    def somebody_tells_of_it(self, id_: int, origin: Origin, fresh: bool) -> None:
        assert self.table.offer(id_, origin, self.now, fresh=fresh) is self._answer(id_, origin)

    @rule(id_=IDS)
    def its_row_is_read(self, id_: int) -> None:
        if self._is(id_, TrackedState.OFFERED):
            self.table.reading(id_)
            self.known[id_].touched = False

    @rule(id_=IDS)
    def it_is_queued(self, id_: int) -> None:
        if self._is(id_, TrackedState.OFFERED):
            self.table.queued(id_)
            self.known[id_].state = TrackedState.QUEUED

    @rule(id_=IDS)
    def a_worker_wants_it(self, id_: int) -> None:
        if self._is(id_, TrackedState.QUEUED):
            touched = self.known[id_].touched
            assert self.table.taken(id_, self.now) is not touched
            self.known[id_] = Known(TrackedState.OFFERED if touched else TrackedState.IN_FLIGHT)

    @rule(id_=IDS)
    def it_goes_to_the_other_lane(self, id_: int) -> None:
        if self._is(id_, TrackedState.IN_FLIGHT):
            self.table.queued(id_)
            self.known[id_].state = TrackedState.QUEUED

    @rule(id_=IDS, wait=st.sampled_from([0.0, 1.0, 30.0]))
    def it_is_tried_again_later(self, id_: int, wait: float) -> None:
        if self._is(id_, TrackedState.IN_FLIGHT) or self._is(id_, TrackedState.OFFERED):
            self.table.retry(id_, self.now + wait)
            if self._waiting() >= module._WAITING_LIMIT:
                del self.known[id_]
            else:
                touched = self.known[id_].touched
                self.known[id_] = Known(TrackedState.WAITING, due=0.0 if touched else self.now + wait)

    @rule(id_=IDS)
    def it_is_withheld(self, id_: int) -> None:
        if self._is(id_, TrackedState.OFFERED):
            self.table.withhold(id_, self.now + 30.0)
            if self._waiting() >= module._WAITING_LIMIT:
                del self.known[id_]
            else:
                due = 0.0 if self.known[id_].touched else self.now + 30.0
                self.known[id_] = Known(TrackedState.WAITING, due=due, withheld=True)

    @rule()
    def timecodes_are_decided_about(self) -> None:
        """What is withheld is offered, and what is in the queue is read again before a worker has it."""
        offered = self.table.recheck()
        assert sorted(offered) == sorted(id_ for id_, known in self.known.items() if known.withheld)
        for id_, known in self.known.items():
            known.touched |= known.state is TrackedState.QUEUED
            if id_ in offered:
                self.known[id_] = Known(TrackedState.OFFERED)

    @rule(id_=IDS)
    def it_is_finished(self, id_: int) -> None:
        if self._is(id_, TrackedState.IN_FLIGHT) or self._is(id_, TrackedState.OFFERED):
            again = self.known[id_].touched
            assert self.table.finished(id_) is again
            if again:
                self.known[id_] = Known(TrackedState.OFFERED)
            else:
                del self.known[id_]

    @rule(id_=IDS)
    def it_is_dropped(self, id_: int) -> None:
        self.table.drop(id_)
        self.known.pop(id_, None)

    @rule()
    def what_is_due_is_asked_for(self) -> None:
        due = [
            id_ for id_, known in self.known.items() if known.state is TrackedState.WAITING and known.due <= self.now
        ]
        found = self.table.due(self.now)
        assert sorted(found) == sorted(due), "each once, and none is forgotten"
        for id_ in due:
            self.known[id_] = Known(TrackedState.OFFERED)

    @rule(ids=st.lists(IDS, max_size=4))
    def they_are_about_to_be_written(self, ids: list[int]) -> None:
        self.table.expect_own_writes(ids, self.now)
        for id_ in ids:
            self.own_writes[id_] = (self.own_writes.pop(id_, (0, 0.0))[0] + 1, self.now + module._OWN_WRITE_SECONDS)

    @rule(ids=st.lists(IDS, max_size=4))
    def they_were_not_written(self, ids: list[int]) -> None:
        self.table.cancel_own_writes(ids)
        for id_ in ids:
            self._one_own_write_less(id_)

    @precondition(lambda self: self.own_writes)
    @rule()
    def the_stream_is_cut(self) -> None:
        self.table.forget_own_writes()
        self.own_writes.clear()

    @invariant()
    def both_know_the_same(self) -> None:
        for id_ in (1, 2):
            assert (id_ in self.table) == (id_ in self.known)
            if id_ in self.known:
                assert self.table[id_].state is self.known[id_].state
                assert self.table[id_].touched is self.known[id_].touched
        counts = Counter(known.state for known in self.known.values())
        assert {state: self.table.count(state) for state in TrackedState} == {
            state: counts[state] for state in TrackedState
        }
        assert self.table.expected_own_writes == len(self.own_writes)

    @invariant()
    def whoever_waits_is_waited_for(self) -> None:
        """Else the router would sleep past it."""
        waits = [known.due for known in self.known.values() if known.state is TrackedState.WAITING]
        next_due = self.table.next_due()
        assert not waits or (next_due is not None and next_due <= min(waits))

    def _answer(self, id_: int, origin: Origin) -> OfferResult:
        stream = origin is Origin.STREAM
        if stream and id_ in self.own_writes:
            until = self.own_writes[id_][1]
            self._one_own_write_less(id_)
            if until >= self.now:
                return OfferResult.OWN_WRITE
        if id_ not in self.known:
            self.known[id_] = Known(TrackedState.OFFERED)
            return OfferResult.OFFERED
        if stream and self.known[id_].state is TrackedState.WAITING:
            self.known[id_] = Known(TrackedState.OFFERED)
            return OfferResult.OFFERED
        self.known[id_].touched |= stream
        return OfferResult.DUPLICATE

    def _one_own_write_less(self, id_: int) -> None:
        count, until = self.own_writes.pop(id_, (0, 0.0))
        if count > 1:
            self.own_writes[id_] = (count - 1, until)

    def _is(self, id_: int, state: TrackedState) -> bool:
        return id_ in self.known and self.known[id_].state is state

    def _waiting(self) -> int:
        return sum(known.state is TrackedState.WAITING for known in self.known.values())


class TestTrackedFiles(TrackedFilesMachine.TestCase):  # type: ignore[valid-type, misc]
    settings = PROFILE
