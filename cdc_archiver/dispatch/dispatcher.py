"""The scheduler behind one lock: threads wait here for ids and batches, and its decisions are carried out here."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import structlog

from cdc_archiver.database.files_table import Pending
from cdc_archiver.dispatch import withheld
from cdc_archiver.dispatch.decision_types import (
    CountOutcome,
    CountStreamEvents,
    Decision,
    Decisions,
    ForgetFailure,
    LogEvent,
    Signal,
)
from cdc_archiver.dispatch.queues import SourceState
from cdc_archiver.dispatch.scheduler import Scheduler
from cdc_archiver.dispatch.tracked_files import FileStatus, TrackedState
from cdc_archiver.model import Archived, AttemptFailed, Batch, FileRecord, Lane, Origin, Outcome, Reason, Refused
from cdc_archiver.observe.metrics import Metrics
from cdc_archiver.settings import Settings, SourceSettings

_log = structlog.get_logger(__name__)


class Dispatcher:
    """Safe to share between threads. What each event means, the method of the same name in :class:`Scheduler` says.

    Args:
        settings: sources, batch size, maximum of attempts.
        metrics: receives the counts.
        want_sweep: called, without waiting, when an id was dropped or a queue is to be refilled.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        want_sweep: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._metrics = metrics
        self._want_sweep = want_sweep
        self._clock = clock
        self._jitter = random.Random().random
        self._changed = threading.Condition()
        self._scheduler = Scheduler(settings.max_attempts, settings.retry_delays)
        metrics.activity.max_attempts = settings.max_attempts
        for source in settings.sources:
            self.add_source(source)

    # Sources come and go.

    def add_source(self, source: SourceSettings) -> None:
        """Files of this source are handed out from now on. A sweep brings those that are pending.

        Raises:
            ValueError: it was added already.
        """
        name = source.name
        with self._changed:
            queues = self._scheduler.add_source(name, source.batch_files)
        self._metrics.add_source(name)
        self._metrics.queue_depth.labels(name).set_function(queues.__len__)
        self._metrics.in_flight.labels(name).set_function(partial(getattr, queues, "in_flight"))
        self._metrics.source_up.labels(name).set_function(queues.up)
        self._metrics.not_recordable.labels(name).set_function(partial(self._scheduler.set_aside.count, name))

    def retire_source(self, source: str) -> None:
        """Hands out nothing more of it and forgets its records that wait. Files under way may finish."""
        with self._changed:
            self._carry_out(self._scheduler.retire_source(source))

    def forget_source(self, source: str, wait: float) -> bool:
        """Forgets a retired source as soon as nothing of it is under way.

        Args:
            wait: seconds to wait for that, at most.

        Returns:
            Whether it is forgotten.
        """
        with self._changed:
            queues = self._scheduler.sources[source]
            if over := self._changed.wait_for(lambda: not queues.in_flight, wait):
                self._scheduler.forget_source(source)
                self._metrics.forget_source(source)
        return over

    # Ids come in: the stream and the sweep.

    def offer(self, ids: Iterable[int], origin: Origin, *, fresh: bool) -> set[int]:
        """Takes ids that were announced. Never waits for room.

        Args:
            fresh: they go before the backlog.

        Returns:
            The ids that were not tracked, or waited for a retry.
        """
        now = self._clock()
        with self._changed:
            taken, decisions = self._scheduler.offer(ids, origin, now, fresh=fresh)
            later = self._carry_out(decisions)
        self._carry_out_later(later)
        return taken

    def notice(self, rows: Sequence[Pending]) -> None:
        """A sweep read these rows: a changed attempt counter ends the wait for the next try."""
        with self._changed:
            self._carry_out(self._scheduler.notice(rows))

    def room(self, source: str) -> int:
        """How many records of a source a sweep may still offer."""
        with self._changed:
            return self._scheduler.room(source)

    def request_refill(self, source: str) -> None:
        """A sweep left rows of this source behind for lack of room."""
        with self._changed:
            self._scheduler.request_refill(source)

    def was_dropped(self, id_: int) -> bool:
        """Whether an id was dropped for lack of room since the last :meth:`forget_dropped`."""
        with self._changed:
            return self._scheduler.was_dropped(id_)

    def is_awaited(self, id_: int) -> bool:
        """Whether an event announced a change of this row that was not visible yet when the row was read."""
        with self._changed:
            return self._scheduler.is_awaited(id_)

    def forget_dropped(self) -> None:
        """A sweep has offered everything that was dropped."""
        with self._changed:
            self._scheduler.forget_dropped()

    def forget_own_writes(self) -> None:
        """The stream was cut: it will not report what was written before."""
        with self._changed:
            self._scheduler.tracked.forget_own_writes()

    # Ids become records: the router.

    def take_ids(self, limit: int, wait: float) -> list[int]:
        """Ids whose rows are to be read, fresh ones first.

        Args:
            wait: seconds to wait for the first.
        """
        deadline = self._clock() + wait
        with self._changed:
            while True:
                now = self._clock()
                ids, decisions = self._scheduler.take_ids(limit, now)
                self._carry_out(decisions)
                if ids or now >= deadline or self._scheduler.closed:
                    return ids
                next_due = self._scheduler.tracked.next_due()
                self._changed.wait(min(deadline, next_due if next_due is not None else deadline) - now)

    def put_back(self, ids: Sequence[int]) -> None:
        """The router could not read these rows and will ask for them again."""
        with self._changed:
            self._scheduler.put_back(ids)

    def atomically(self) -> contextlib.AbstractContextManager[bool]:
        """A block whose events the workers see together: they take one batch of all its records, not one of the first."""
        return self._changed

    def never_tried(self, ids: Sequence[int]) -> list[int]:
        """Of these, the files of which no try is known here."""
        with self._changed:
            return self._scheduler.never_tried(ids)

    def enqueue(self, source: str, record: FileRecord, failed_ago: float | None = None) -> None:
        """A row was read and is pending: its record waits for a worker, or for the rest of the delay since its last try.

        Args:
            failed_ago: seconds since its last failed attempt, which counts where no try is known here; None: unknown.
        """
        with self._changed:
            later = self._carry_out(self._scheduler.enqueue(source, record, self._clock(), failed_ago))
        self._carry_out_later(later)

    def withhold(self, source: str, id_: int) -> None:
        """A row was read and is pending, and its timecode was handed over: it waits until a person decides."""
        with self._changed:
            later = self._carry_out(withheld.withhold(self._scheduler, source, id_, self._clock()))
        self._carry_out_later(later)

    def recheck(self) -> None:
        """Other timecodes are handed over than before: rows that wait are read again before they are copied."""
        with self._changed:
            self._carry_out(withheld.recheck(self._scheduler))

    def dismiss(self, id_: int, *, failed: bool = False) -> None:
        """A row was read and is not pending here: archived, given up, or another service's.

        Args:
            failed: it was given up after failed attempts, and a person should look at it.
        """
        with self._changed:
            self._carry_out(self._scheduler.dismiss(id_, failed=failed))

    def not_visible(self, id_: int) -> None:
        """There is no such row, or not yet."""
        with self._changed:
            self._scheduler.not_visible(id_, self._clock())

    def not_pending(self, id_: int, *, failed: bool = False) -> None:
        """A row was read and says that it is archived or given up; an event's row is read again before that is believed."""
        with self._changed:
            self._carry_out(self._scheduler.not_pending(id_, self._clock(), failed=failed))

    # Records become outcomes: the workers.

    def take(self, source: str, lane: Lane, worker: str, wait: float) -> Batch | None:
        """A batch for a worker: all records that wait, up to the limit. Each batch is given back with :meth:`finish`.

        Args:
            wait: seconds to wait for one.

        Returns:
            None if nothing may be tried now.
        """
        deadline = self._clock() + wait
        with self._changed:
            while self._scheduler.hands_out(source):
                now = self._clock()
                found, decisions = self._scheduler.take(source, lane, worker, now)
                self._carry_out(decisions)
                if isinstance(found, Batch):
                    return found
                if now >= deadline:
                    break
                self._changed.wait(min(deadline, found.until) - now)
        return None

    def judge(self, batch: Batch, outcome: Outcome) -> Outcome:
        """Takes note of an outcome, and returns what it becomes in the light of other files.

        An ``Archived``, ``AttemptFailed`` or ``Refused`` is written to the database next, and comes back by :meth:`settled`;
        the others end here.
        """
        with self._changed:
            outcome, decisions = self._scheduler.judge(batch, outcome, self._clock(), self._jitter())
            later = self._carry_out(decisions)
        self._carry_out_later(later)
        return outcome

    def seconds_waited(self, id_: int) -> float:
        """Seconds from an id's announcement until a worker took it."""
        with self._changed:
            return self._scheduler.seconds_waited(id_)

    def finish(self, source: str) -> None:
        """A worker has finished its batch."""
        with self._changed:
            later = self._carry_out(self._scheduler.finish(source))
        self._carry_out_later(later)

    # Outcomes are in the database: the recorder.

    def expect_own_writes(self, ids: Sequence[int]) -> None:
        """These rows are about to be written; the stream will report that, which is no news."""
        with self._changed:
            self._scheduler.tracked.expect_own_writes(ids, self._clock())

    def cancel_own_writes(self, ids: Sequence[int]) -> None:
        """These rows were not written after all."""
        with self._changed:
            self._scheduler.tracked.cancel_own_writes(ids)

    def settled(self, source: str, outcome: Archived | AttemptFailed | Refused, *, counted: bool) -> None:
        """The write-back of an outcome was committed.

        Args:
            counted: this write-back changed the row; else the row had changed since it was read, and nothing was counted.
        """
        with self._changed:
            decisions = self._scheduler.settled(source, outcome, self._clock(), self._jitter(), counted=counted)
            self._carry_out(decisions)

    def write_refused(self, source: str, outcome: Archived | AttemptFailed | Refused, detail: str) -> bool:
        """The database refused the write-back of an outcome; returns whether the file is set aside now."""
        with self._changed:
            is_set_aside, decisions = self._scheduler.write_refused(source, outcome, detail, self._clock())
            later = self._carry_out(decisions)
        self._carry_out_later(later)
        return is_set_aside

    @property
    def not_recordable(self) -> tuple[int, ...]:
        """The ids that are set aside, since the database refused their write-backs."""
        with self._changed:
            return self._scheduler.set_aside.ids

    def review_not_recordable(self, pending: Mapping[int, FileRecord]) -> None:
        """Forgets each file set aside that is archived, gone or changed: the next sweep offers it, if it is pending.

        Args:
            pending: the records of those that are pending, without those that an operator wants to be tried again.
        """
        with self._changed:
            self._scheduler.set_aside.review(pending)

    def set_backpressure(self, on: bool) -> None:
        """Stops handing out batches while the database cannot be written to, and starts again."""
        with self._changed:
            self._carry_out(self._scheduler.set_backpressure(on))

    # The service.

    def close(self) -> None:
        """Hands out nothing more; waiting threads return at once."""
        with self._changed:
            self._carry_out(self._scheduler.close())

    @property
    def idle(self) -> bool:
        """Whether no id is tracked except those that wait for a later try."""
        with self._changed:
            return self._scheduler.idle

    def destination_failed(self, reason: Reason, detail: str) -> None:
        """Trouble with the destination was found outside a batch."""
        with self._changed:
            later = self._carry_out(
                self._scheduler.health.destination_failed(reason, detail, self._clock(), self._jitter())
            )
        self._carry_out_later(later)

    def destination_ready(self) -> None:
        """Outside a batch, the destination was found mounted and with free space: trouble of that kind is over."""
        with self._changed:
            later = self._carry_out(self._scheduler.health.destination_ready(self._clock()))
        self._carry_out_later(later)

    def nothing_pending(self, source: str | None) -> None:
        """Nothing is left to try it with: trouble whose pause is over is not known to last.

        Args:
            source: None for the destination: no source has anything pending.
        """
        with self._changed:
            later = self._carry_out(self._scheduler.nothing_pending(source, self._clock()))
        self._carry_out_later(later)

    def is_up(self, source: str) -> bool:
        """Whether a source delivers files."""
        with self._changed:
            queues = self._scheduler.sources.get(source)
            return queues is None or bool(queues.up())

    def states(self) -> list[SourceState]:
        """The current state of the sources."""
        with self._changed:
            return self._scheduler.states(self._clock())

    @property
    def destination(self) -> tuple[bool, str | None, str]:
        """Whether data_dir takes files; if not, the reason and a sentence."""
        with self._changed:
            health = self._scheduler.destination
            return health.up, health.reason.value if health.reason else None, health.detail

    def file_status(self, id_: int) -> FileStatus | None:
        """The status of an id, for an operator; None if it is neither tracked nor set aside. Takes no lock."""
        if self._scheduler.set_aside.get(id_) is not None:
            return FileStatus(TrackedState.NOT_RECORDABLE, Origin.SWEEP, 0.0, None)
        return self._scheduler.tracked.file_status(id_, self._clock())

    def _carry_out(self, decisions: Decisions) -> Sequence[Decision]:
        """Wakes and counts, with the lock held.

        Returns:
            The decisions for :meth:`_carry_out_later`.
        """
        if not decisions:
            return decisions
        later: list[Decision] = []
        for decision in decisions:
            if decision is Signal.WAKE:
                self._changed.notify_all()
            elif isinstance(decision, CountOutcome):
                self._metrics.count(decision.source, decision.outcome, decision.latency)
            elif isinstance(decision, CountStreamEvents):
                self._metrics.stream_events.labels(decision.result.value).inc(decision.count)
            elif isinstance(decision, ForgetFailure):
                self._metrics.activity.dismiss(decision.id)
            else:
                later.append(decision)
        return later

    def _carry_out_later(self, decisions: Sequence[Decision]) -> None:
        """Logs and asks for a sweep, with the lock free: a terminal that blocks must not block all threads."""
        for decision in decisions:
            if isinstance(decision, LogEvent):
                getattr(_log, decision.level)(decision.event, **decision.fields)
            elif decision is Signal.WANT_SWEEP:
                self._want_sweep()
