"""The queues behind one lock: what waits, who takes it, and when again."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Final

from cdc_archiver.dispatch.health import Health
from cdc_archiver.dispatch.in_flight import InFlightTable, OfferResult, State
from cdc_archiver.dispatch.queues import SourceQueues, SourceState
from cdc_archiver.dispatch.watch import DESTINATION, Watch
from cdc_archiver.events.interval_set import IntervalSet
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
    Scope,
)
from cdc_archiver.observe.metrics import Metrics
from cdc_archiver.settings import Settings, SourceSettings

INBOX_MOST: Final = 20_000
"""Ids that wait for their row to be read; further ones are dropped, and a sweep is asked for."""
QUEUE_MOST: Final = 5_000
"""Records that wait in one lane of a source."""
BACKLOG_MOST: Final = 4_000
"""Of these, the ones that a sweep may put there: the rest is kept free for what comes fresh."""
REFILL_BELOW: Final = 2_000

_CHARGED_DELAYS: Final = (5.0, 30.0, 120.0, 600.0)
"""Seconds after a file's n-th charged attempt; the last one for all further."""
_NOT_COUNTED_DELAY: Final = 5.0
_BLANK_DELAYS: Final = (1.0, 5.0, 30.0, 60.0)


class Dispatcher:
    """Safe to share between threads.

    Args:
        settings: sources, batch size, maximum of attempts.
        metrics: counts what is decided.
        want_sweep: called, without waiting, when something was dropped or a queue wants to be refilled.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        want_sweep: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_attempts = settings.max_attempts
        self._metrics = metrics
        self._want_sweep = want_sweep
        self._clock = clock
        self._random = random.Random()
        self._changed = threading.Condition()
        self._ledger = self.ledger = InFlightTable()
        self._sources: dict[str, SourceQueues] = {}
        self._watch = Watch(clock)
        self._destination = self._watch.destination
        self._inboxes = {True: deque[int](), False: deque[int]()}
        self._dropped = IntervalSet()
        self._closed = False
        self._held_up = False
        for source in settings.sources:
            self.add_source(source)

    # The sources: they come and go.

    def add_source(self, source: SourceSettings) -> None:
        """Its files are for us from now on. A sweep brings those that are pending."""
        name, state = source.name, SourceQueues(source.name, source.batch_files)
        with self._changed:
            if self._sources.setdefault(name, state) is not state:
                raise ValueError(f"{name} is there already")
        self._metrics.add_source(name)
        self._metrics.queue_depth.labels(name).set_function(state.__len__)
        self._metrics.in_flight.labels(name).set_function(partial(getattr, state, "in_flight"))
        self._metrics.source_up.labels(name).set_function(state.up)

    def retire_source(self, source: str) -> None:
        """Hands out nothing more of it; what waits is the table's again. What is under way may come to its end."""
        with self._changed:
            state = self._sources[source]
            state.retired = True
            for record in state.clear():
                self._ledger.drop(record.id)
            self._changed.notify_all()

    def forget_source(self, source: str, wait: float) -> bool:
        """A retired source is nothing to us any more, when nothing of it is under way within so many seconds: whether it is so."""
        with self._changed:
            state = self._sources[source]
            if over := self._changed.wait_for(lambda: not state.in_flight, wait):
                del self._sources[source]
                self._metrics.forget_source(source)
        return over

    # The door: ids come in.

    def offer(self, ids: Iterable[int], origin: Origin, *, fresh: bool) -> set[int]:
        """Takes ids in hand. Never waits.

        Args:
            fresh: they go before the backlog.

        Returns:
            Those that were not in hand before.
        """
        now = self._clock()
        taken: set[int] = set()
        counts = dict.fromkeys(("offered", "echo", "known", "dropped"), 0)
        with self._changed:
            inbox = self._inboxes[fresh]
            for id_ in ids:
                if len(inbox) >= INBOX_MOST and id_ not in self._ledger:
                    counts["dropped"] += 1
                    self._dropped.add(id_)
                    continue
                answer = self._ledger.offer(id_, origin, now, fresh=fresh)
                counts[answer] += 1
                if answer is OfferResult.OFFERED:
                    inbox.append(id_)
                    taken.add(id_)
            if taken:
                self._changed.notify_all()
        if origin is Origin.STREAM:
            for outcome, count in counts.items():
                self._metrics.stream_events.labels(outcome).inc(count)
        if counts["dropped"]:
            self._want_sweep()
        return taken

    def room(self, source: str) -> int:
        """How many records a sweep may still bring for a source."""
        with self._changed:
            state = self._sources.get(source)
            if state is None or state.retired:
                return 0
            waiting = len(state.lanes[Lane.SMALL]) + sum(len(inbox) for inbox in self._inboxes.values())
            return max(0, BACKLOG_MOST - waiting)

    def starve(self, source: str) -> None:
        """A sweep left rows of this source behind for want of room."""
        with self._changed:
            if source in self._sources:
                self._sources[source].starved = True

    def was_dropped(self, id_: int) -> bool:
        """Whether an id was dropped for want of room and has not been in hand since."""
        with self._changed:
            return id_ in self._dropped

    def forget_dropped(self) -> None:
        """A sweep has offered everything that was dropped."""
        with self._changed:
            self._dropped = IntervalSet()

    def forget_echoes(self) -> None:
        """The stream was cut: what it would have told of our own writes will not come."""
        with self._changed:
            self._ledger.forget_echoes()

    # The router: ids become records.

    def take_ids(self, limit: int, wait: float) -> list[int]:
        """Ids whose rows are to be read, fresh ones first.

        Args:
            wait: seconds to wait for the first.
        """
        deadline = self._clock() + wait
        with self._changed:
            while not self._closed:
                now = self._clock()
                for id_ in self._ledger.due(now):
                    self._inboxes[self._ledger[id_].fresh].append(id_)
                if all(len(state.lanes[Lane.SMALL]) >= QUEUE_MOST for state in self._sources.values()):
                    self._drop_inboxes()
                if self._inboxes[True] or self._inboxes[False] or now >= deadline:
                    break
                next_due = self._ledger.next_due()
                self._changed.wait(min(deadline, next_due if next_due is not None else deadline) - now)
            ids: list[int] = []
            for inbox in (self._inboxes[True], self._inboxes[False]):
                while inbox and len(ids) < limit:
                    ids.append(inbox.popleft())
                    self._ledger.reading(ids[-1])
            return ids

    def put_back(self, ids: Sequence[int]) -> None:
        """The router could not read them: it will ask for them again."""
        with self._changed:
            for id_ in reversed(ids):
                self._inboxes[self._ledger[id_].fresh].appendleft(id_)

    def at_once(self) -> contextlib.AbstractContextManager[bool]:
        """What is told inside the block, the workers see all together: one batch of it, and not one of its first file."""
        return self._changed

    def enqueue(self, source: str, record: FileRecord) -> None:
        """A record waits for a worker of its source."""
        with self._changed:
            state = self._sources.get(source)
            if state is None or state.retired:
                self._ledger.drop(record.id)
                return
            if len(state.lanes[Lane.SMALL]) >= QUEUE_MOST:
                self._drop(record.id)
                state.starved = True
            else:
                self._ledger.queued(record.id)
                self._ledger[record.id].looks = 0
                if not state.lanes[Lane.SMALL]:  # whoever was told of the first takes all that wait by then
                    self._changed.notify_all()
                state.lanes[Lane.SMALL].push(record, fresh=self._ledger[record.id].fresh)
            wanted = state.wants_refill(REFILL_BELOW)
        if wanted:
            self._want_sweep()

    def dismiss(self, id_: int, *, failed: bool = False) -> None:
        """The row is no work: done, given up, or another's; or it has failed for good, and a person should look."""
        if not failed:
            self._metrics.activity.dismiss(id_)
        with self._changed:
            if self._ledger.finished(id_):
                self._reoffer(id_)

    def not_visible(self, id_: int) -> None:
        """There is no such row, or not yet."""
        with self._changed:
            if not self._ledger.look_again(id_, self._clock()):
                self._ledger.drop(id_)

    def seems_no_work(self, id_: int, *, failed: bool = False) -> None:
        """The row says that it is done or given up. Of one that an event told of, this may be how it was before: a change
        becomes visible some milliseconds after its event, like a new row."""
        with self._changed:
            if self._ledger[id_].origin is Origin.STREAM and self._ledger.look_again(id_, self._clock()):
                return
        self.dismiss(id_, failed=failed)

    # The workers: records become outcomes.

    def take(self, source: str, lane: Lane, worker: str, wait: float) -> Batch | None:
        """A batch for a worker: all that waits, up to the cap.

        Args:
            wait: seconds to wait for one.

        Returns:
            None if there is nothing that may be tried now. Each batch taken is given back with :meth:`finish`.
        """
        deadline = self._clock() + wait
        with self._changed:
            state = self._sources[source]
            while not self._closed and not state.retired:
                now = self._clock()
                if state.lanes[lane] and not self._held_up:
                    if state.health.may_try(now) and self._destination.may_try(now):
                        if records := self._collect(state, lane, now):
                            state.health.begin(now)
                            self._destination.begin(now)
                            state.absences.begin(worker)
                            return Batch(source, lane, worker, tuple(records))
                        continue
                    until = max(now + 0.1, *(each.until for each in (state.health, self._destination)))
                else:
                    until = deadline
                if now >= deadline:
                    break
                self._changed.wait(min(deadline, until) - now)
        return None

    def judge(self, batch: Batch, outcome: Outcome) -> Outcome:
        """Takes note of an outcome, and returns what it really is in the light of its neighbours.

        An ``Archived``, ``AttemptFailed`` or ``Refused`` goes to the table next, and comes back by :meth:`settled`; the others are
        dealt with here.
        """
        source = batch.source
        with self._telling():
            state = self._sources[source]
            held = state.health.reason is Reason.SOURCE_NOT_MOUNTED
            outcome = state.absences.judge(batch.worker, outcome, held=held)
            if self._watch.note(source, state.health, outcome, self._ledger[outcome.record.id].blank_tries + 1):
                self._changed.notify_all()
            match outcome:
                case Deferred(record=record):
                    self._metrics.count(source, outcome)
                    state.in_flight -= 1
                    self._ledger.retry(record.id, self._next_try(state, outcome))
                    self._changed.notify_all()
                case Oversize(record=record):
                    state.in_flight -= 1
                    if state.retired or len(state.lanes[Lane.BULK]) >= QUEUE_MOST:
                        self._drop(record.id)
                        state.starved = True
                    else:
                        self._ledger.requeued(record.id)
                        state.lanes[Lane.BULK].push(record, fresh=self._ledger[record.id].fresh)
                    self._changed.notify_all()
        return outcome

    def waited(self, id_: int) -> float:
        """Seconds from an id's wake-up until a worker took it."""
        with self._changed:
            entry = self._ledger[id_]
            return entry.taken_at - entry.woken_at

    def finish(self, source: str) -> None:
        """A worker has brought its batch to its end."""
        with self._changed:
            state = self._sources[source]
            state.health.end()
            self._destination.end()
            wanted = state.wants_refill(REFILL_BELOW)
            self._changed.notify_all()
        if wanted:
            self._want_sweep()

    # The recorder: outcomes are in the table.

    def expect_echoes(self, ids: Iterable[int]) -> None:
        """These rows are about to be written by us."""
        with self._changed:
            self._ledger.expect_echoes(ids, self._clock())

    def cancel_echoes(self, ids: Iterable[int]) -> None:
        """They were not written after all."""
        with self._changed:
            self._ledger.cancel_echoes(ids)

    def settled(self, source: str, outcome: Archived | AttemptFailed | Refused, *, counted: bool) -> None:
        """An outcome is in the table.

        Args:
            counted: the row says so by our doing; else it had moved on since it was read, and that was nobody's attempt.
        """
        now = self._clock()
        with self._changed:
            record = outcome.record
            if (state := self._sources.get(source)) is None:
                self._ledger.drop(record.id)
                return
            state.in_flight -= 1
            entry = self._ledger[record.id]
            if counted:
                by_event = isinstance(outcome, Archived) and entry.origin is Origin.STREAM
                self._metrics.count(source, outcome, now - entry.woken_at if by_event else None)
            entry.blank_tries = 0
            next_due = self._ledger.next_due()
            if not counted:
                # The row has moved on, or cannot be written: what it says now decides, after a moment.
                self._ledger.retry(record.id, now + _NOT_COUNTED_DELAY)
            elif isinstance(outcome, AttemptFailed) and record.attempts + 1 < self._max_attempts:
                delay = _CHARGED_DELAYS[min(record.attempts, len(_CHARGED_DELAYS) - 1)]
                self._ledger.retry(record.id, now + delay * self._random.uniform(0.9, 1.1))
            elif self._ledger.finished(record.id):
                self._reoffer(record.id)
            # What is done gives nobody anything to do, and to wake every thread for each file costs as much as the file.
            if not state.in_flight or self._ledger.next_due() != next_due:
                self._changed.notify_all()

    def hold_up(self, held_up: bool) -> None:
        """Stops handing out batches while the table cannot be written to, and starts again."""
        with self._changed:
            self._held_up = held_up
            self._changed.notify_all()

    # The service.

    def close(self) -> None:
        """Hands out nothing more; whoever waits comes back at once."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def idle(self) -> bool:
        """Whether nothing is in hand but what waits for a later try."""
        with self._changed:
            return not any(map(self._ledger.count, (State.OFFERED, State.QUEUED, State.IN_FLIGHT)))

    def destination_failed(self, reason: Reason, detail: str) -> None:
        """The destination was found in trouble outside a batch."""
        with self._telling():
            self._watch.failed(self._destination, DESTINATION, reason, detail)

    def destination_ready(self) -> None:
        """The destination was found mounted and with room, outside a batch: trouble of that kind is over."""
        with self._telling():
            if self._destination.reason in (Reason.DESTINATION_MISSING, Reason.NO_SPACE):
                self._succeeded(self._destination, DESTINATION)

    def nothing_pending(self, source: str | None) -> None:
        """There is nothing left to try it with: trouble whose pause is over is not known to last.

        Args:
            source: None for the destination: no source has anything pending.
        """
        with self._telling():
            state = self._sources.get(source) if source else None
            health = state.health if state else self._destination if source is None else Health()
            if self._clock() >= health.until:
                self._succeeded(health, source or DESTINATION)

    def states(self) -> list[SourceState]:
        """The sources as they are now."""
        now = self._clock()
        with self._changed:
            return [state.seen_at(now) for state in self._sources.values()]

    @property
    def destination(self) -> tuple[bool, str | None, str]:
        """Whether data_dir takes files; if not, the reason and a sentence."""
        with self._changed:
            health = self._destination
            return health.up, health.reason.value if health.reason else None, health.detail

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        """The lock, and what there is to say once it is free: a terminal that blocks must not block everybody."""
        with self._changed:
            yield
            news = self._watch.take_news()
        for say in news:
            say()

    # Inside: all of it with the lock held.

    def _collect(self, state: SourceQueues, lane: Lane, now: float) -> list[FileRecord]:
        queue = state.lanes[lane]
        records: list[FileRecord] = []
        while queue and len(records) < state.most(lane):
            record = queue.pop()
            # What came to nothing twice, without a word, goes alone: then there is no neighbour to blame.
            alone = self._ledger[record.id].blank_tries >= 2
            if alone and records:
                queue.fresh.appendleft(record)
                break
            if not self._ledger.taken(record.id, now):
                self._reoffer(record.id)
                continue
            records.append(record)
            if alone:
                break
        state.in_flight += len(records)
        return records

    def _succeeded(self, health: Health, name: str) -> None:
        if self._watch.succeeded(health, name):
            self._changed.notify_all()

    def _next_try(self, state: SourceQueues, outcome: Deferred) -> float:
        now = self._clock()
        match outcome.reason.scope:
            case Scope.DESTINATION:
                return max(now, self._destination.until)
            case Scope.NONE:
                entry = self._ledger[outcome.record.id]
                entry.blank_tries += 1
                return now + _BLANK_DELAYS[min(entry.blank_tries, len(_BLANK_DELAYS)) - 1]
            case _:
                return max(now, state.health.until)

    def _drop_inboxes(self) -> None:
        """No source has room: to read the rows would be in vain."""
        for inbox in self._inboxes.values():
            for id_ in inbox:
                self._drop(id_)
            inbox.clear()
        for state in self._sources.values():
            state.starved = True

    def _drop(self, id_: int) -> None:
        if self._ledger[id_].origin is Origin.STREAM:
            self._metrics.stream_events.labels("dropped").inc()
        self._ledger.drop(id_)
        self._dropped.add(id_)

    def _reoffer(self, id_: int) -> None:
        self._inboxes[True].append(id_)
        self._changed.notify_all()
