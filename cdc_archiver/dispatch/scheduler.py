"""Which file next, by which worker, and when again: the state of the dispatcher as a pure function of events and time.

Each method is an event. It returns what is decided, see :mod:`cdc_archiver.dispatch.decision_types`, and does nothing else: no
lock, no clock, no random number, no metric, no log. All times are seconds of one monotonic clock, the caller's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final

from cdc_archiver.database.files_table import Pending
from cdc_archiver.dispatch import retry_delays
from cdc_archiver.dispatch.decision_types import (
    NOTHING,
    WAKE,
    WANT_SWEEP,
    CountOutcome,
    CountStreamEvents,
    Decisions,
    ForgetFailure,
    LogEvent,
    NoBatch,
)
from cdc_archiver.dispatch.health import DESTINATION, Health, HealthTracker
from cdc_archiver.dispatch.inboxes import Inboxes
from cdc_archiver.dispatch.queues import SourceQueues, SourceState
from cdc_archiver.dispatch.set_aside import LIMIT, WRITE_TRIES, SetAside, SetAsideFiles
from cdc_archiver.dispatch.tracked_files import OfferResult, TrackedFiles, TrackedState
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

INBOX_LIMIT: Final = 20_000
"""Ids in an inbox; further ones are dropped, and a sweep is asked for."""
QUEUE_LIMIT: Final = 5_000
"""Records that wait in one lane of a source."""
BACKLOG_LIMIT: Final = 4_000
"""Of these, the ones that a sweep may put there: the rest is kept free for fresh files."""
REFILL_BELOW: Final = 2_000
"""A queue that had to leave rows behind is refilled when fewer records wait."""

_ALONE_AFTER: Final = 2
"""Inconclusive tries in a row after which a file is a batch of its own: then no other file can be the cause."""
_NOT_COUNTED_DELAY: Final = 5.0
_PROBE_POLL: Final = 0.1
"""Seconds between looks while another batch tries first whether a source works again."""


class Scheduler:
    """The state machine behind the dispatcher. Not safe to share between threads.

    Args:
        max_attempts: failed attempts after which a file is tried no more.
        delays: seconds after a file's first failed attempt, the second …
    """

    def __init__(self, max_attempts: int, delays: Sequence[float]) -> None:
        self._max_attempts = max_attempts
        self._delays = delays
        self.tracked = TrackedFiles()
        self.sources: dict[str, SourceQueues] = {}
        self.inboxes = Inboxes()
        self.health = HealthTracker()
        self.destination = self.health.destination
        self.set_aside = SetAsideFiles()
        self._dropped = IntervalSet()
        self._backpressure = False
        self._closed = False

    # Sources come and go.

    def add_source(self, name: str, batch_files: int) -> SourceQueues:
        """Files of this source are handed out from now on.

        Raises:
            ValueError: it was added already.
        """
        queues = SourceQueues(name, batch_files)
        if self.sources.setdefault(name, queues) is not queues:
            raise ValueError(f"the source {name} was added already")
        return queues

    def retire_source(self, name: str) -> Decisions:
        """Hands out nothing more of it and forgets its records that wait. Files under way may finish."""
        queues = self.sources[name]
        queues.retired = True
        for record in queues.clear():
            self.tracked.drop(record.id)
        self.set_aside.forget(
            [id_ for id_ in self.set_aside.ids if (file := self.set_aside.get(id_)) and file.source == name]
        )
        return WAKE

    def forget_source(self, name: str) -> None:
        """Forgets a retired source of which nothing is under way."""
        del self.sources[name]

    # Ids come in.

    def offer(self, ids: Iterable[int], origin: Origin, now: float, *, fresh: bool) -> tuple[set[int], Decisions]:
        """Ids were announced.

        Args:
            fresh: they go before the backlog.

        Returns:
            The ids that were not tracked, or waited for a retry; and what is decided.
        """
        taken: set[int] = set()
        counts = dict.fromkeys(OfferResult, 0)
        for id_ in ids:
            if origin is Origin.SWEEP and id_ in self.set_aside:
                continue
            if self.inboxes.count(fresh=fresh) >= INBOX_LIMIT and id_ not in self.tracked:
                counts[OfferResult.DROPPED] += 1
                self._dropped.add(id_)
                continue
            result = self.tracked.offer(id_, origin, now, fresh=fresh)
            counts[result] += 1
            if result is OfferResult.OFFERED:
                self.inboxes.add(id_, fresh=fresh)
                taken.add(id_)
        decisions = WAKE if taken else NOTHING
        if origin is Origin.STREAM:
            decisions += tuple(CountStreamEvents(result, count) for result, count in counts.items() if count)
        if counts[OfferResult.DROPPED]:
            decisions += WANT_SWEEP
        return taken, decisions

    def room(self, source: str) -> int:
        """How many records of a source a sweep may still offer."""
        queues = self.sources.get(source)
        if queues is None or queues.retired:
            return 0
        waiting = len(queues.lanes[Lane.SMALL]) + len(self.inboxes)
        return max(0, BACKLOG_LIMIT - waiting)

    def request_refill(self, source: str) -> None:
        """A sweep left rows of this source behind for lack of room."""
        if source in self.sources:
            self.sources[source].needs_refill = True

    def was_dropped(self, id_: int) -> bool:
        """Whether an id was dropped for lack of room since the last :meth:`forget_dropped`."""
        return id_ in self._dropped

    def is_awaited(self, id_: int) -> bool:
        """Whether an event announced a change of this row that was not visible yet when the row was read."""
        return self.tracked.is_awaited(id_)

    def forget_dropped(self) -> None:
        """A sweep has offered everything that was dropped."""
        self._dropped = IntervalSet()

    def notice(self, rows: Iterable[Pending]) -> Decisions:
        """A sweep read these rows. Of files that wait for their next try, those whose attempt counter somebody has changed
        are read at once."""
        changed = [row.id for row in rows if self.tracked.end_wait_if_changed(row.id, row.attempts)]
        for id_ in changed:
            self.inboxes.add(id_, fresh=True)
        return WAKE if changed else NOTHING

    # Ids become records.

    def take_ids(self, limit: int, now: float) -> tuple[list[int], Decisions]:
        """The router asks for ids whose rows it is to read.

        Returns:
            At most ``limit`` ids, fresh ones first; and what is decided.
        """
        decisions = NOTHING
        if not self._closed:
            for id_ in self.tracked.due(now):
                self.inboxes.add(id_, fresh=self.tracked[id_].fresh)
            if all(len(queues.lanes[Lane.SMALL]) >= QUEUE_LIMIT for queues in self.sources.values()):
                decisions = self._drop_inboxes()
        ids = self.inboxes.take(limit)
        for id_ in ids:
            self.tracked.reading(id_)
        return ids, decisions

    def put_back(self, ids: Sequence[int]) -> None:
        """The router could not read these rows and will ask for them again."""
        for id_ in reversed(ids):
            self.inboxes.put_back(id_, fresh=self.tracked[id_].fresh)

    def never_tried(self, ids: Iterable[int]) -> list[int]:
        """Of these, the files of which no try is known here."""
        return [id_ for id_ in ids if self.tracked[id_].last_try is None]

    def enqueue(self, source: str, record: FileRecord, now: float, failed_ago: float | None = None) -> Decisions:
        """A row was read and is pending: its record waits for a worker, or for the rest of the delay since its last try.

        Args:
            failed_ago: seconds since its last failed attempt, which counts where no try is known here; None: unknown.
        """
        queues = self.sources.get(source)
        if queues is None or queues.retired:
            self.tracked.drop(record.id)
            return NOTHING
        if self.set_aside.holds_for(record):
            return self._finish_id(record.id)
        last_try = self.tracked[record.id].last_try
        if (due := retry_delays.due(record, last_try, self._delays, now, failed_ago)) > now:
            self.tracked.wait(record, due)
            return NOTHING  # the router asks next, and knows of it then
        queue = queues.lanes[Lane.SMALL]
        decisions = NOTHING
        if len(queue) >= QUEUE_LIMIT:
            decisions = self._drop([record.id])
            queues.needs_refill = True
        else:
            self.tracked.queued(record.id)
            file = self.tracked[record.id]
            file.stale_reads = 0
            if not queue:  # a worker that was woken for the first record takes all that wait by then
                decisions = WAKE
            queue.push(record, fresh=file.fresh)
        return decisions + WANT_SWEEP if queues.take_refill_request(REFILL_BELOW) else decisions

    def dismiss(self, id_: int, *, failed: bool = False) -> Decisions:
        """A row was read and is not pending here: archived, given up, or another service's.

        Args:
            failed: it was given up after failed attempts, and a person should look at it.
        """
        self.set_aside.forget([id_])
        decisions: Decisions = NOTHING if failed else (ForgetFailure(id_),)
        return decisions + self._finish_id(id_)

    def not_visible(self, id_: int, now: float) -> None:
        """There is no such row, or not yet."""
        if not self.tracked.read_again(id_, now):
            self.tracked.drop(id_)

    def not_pending(self, id_: int, now: float, *, failed: bool = False) -> Decisions:
        """A row was read and says that it is archived or given up. If an event announced it, that may be how it was before:
        a change becomes visible some time after its event, like a new row. Then it is read again.

        Args:
            failed: as in :meth:`dismiss`.
        """
        if self.tracked[id_].origin is Origin.STREAM and self.tracked.read_again(id_, now):
            return NOTHING if failed else (ForgetFailure(id_),)
        return self.dismiss(id_, failed=failed)

    # Records become outcomes.

    def hands_out(self, source: str) -> bool:
        """Whether workers of a source may still expect batches."""
        queues = self.sources.get(source)
        return not self._closed and queues is not None and not queues.retired

    def take(self, source: str, lane: Lane, worker: str, now: float) -> tuple[Batch | NoBatch, Decisions]:
        """A worker asks for a batch: all records that wait, up to the limit.

        Returns:
            The batch, which :meth:`finish` gives back, or when to ask again; and what is decided.
        """
        queues = self.sources[source]
        if self._backpressure or not queues.lanes[lane]:
            return NoBatch(math.inf), NOTHING
        if not (queues.health.may_try(now) and self.destination.may_try(now)):
            return NoBatch(max(now + _PROBE_POLL, queues.health.until, self.destination.until)), NOTHING
        records, decisions = self._collect(queues, lane, now)
        if not records:
            return NoBatch(math.inf), decisions
        queues.health.begin(now)
        self.destination.begin(now)
        queues.unmounted_disk.begin_batch(worker)
        return Batch(source, lane, worker, tuple(records)), decisions

    def judge(self, batch: Batch, outcome: Outcome, now: float, jitter: float) -> tuple[Outcome, Decisions]:
        """A worker has an outcome.

        An ``Archived``, ``AttemptFailed`` or ``Refused`` is written to the database next, and comes back as :meth:`settled`;
        the others end here.

        Args:
            jitter: from 0 to 1, random.

        Returns:
            What the outcome becomes in the light of other files; and what is decided.
        """
        queues = self.sources[batch.source]
        suspected = queues.health.reason is Reason.SOURCE_NOT_MOUNTED
        outcome = queues.unmounted_disk.judge(batch.worker, outcome, suspected=suspected)
        file = self.tracked[outcome.record.id]
        tries = file.inconclusive_tries + 1
        decisions = self.health.note(batch.source, queues.health, outcome, tries, now, jitter)
        match outcome:
            case Deferred(record=record, reason=reason):
                queues.in_flight -= 1
                due = max(now, queues.health.until)
                if reason.scope is Scope.DESTINATION:
                    due = max(now, self.destination.until)
                elif reason.scope is Scope.NONE:
                    file.inconclusive_tries = tries
                    due = now + retry_delays.inconclusive_delay(reason, tries)
                self.tracked.wait(record, due)
                decisions += (CountOutcome(batch.source, outcome), *WAKE)
            case Oversize(record=record):
                queues.in_flight -= 1
                bulk = queues.lanes[Lane.BULK]
                if queues.retired or len(bulk) >= QUEUE_LIMIT:
                    decisions += self._drop([record.id])
                    queues.needs_refill = True
                else:
                    self.tracked.queued(record.id)
                    bulk.push(record, fresh=file.fresh)
                decisions += WAKE
        return outcome, decisions

    def seconds_waited(self, id_: int) -> float:
        """Seconds from an id's announcement until a worker took it."""
        file = self.tracked[id_]
        return file.taken_at - file.woken_at

    def finish(self, source: str) -> Decisions:
        """A worker has finished its batch."""
        queues = self.sources[source]
        queues.health.end()
        self.destination.end()
        return WAKE + WANT_SWEEP if queues.take_refill_request(REFILL_BELOW) else WAKE

    # Outcomes are in the database.

    def settled(
        self, source: str, outcome: Archived | AttemptFailed | Refused, now: float, jitter: float, *, counted: bool
    ) -> Decisions:
        """The write-back of an outcome was committed.

        Args:
            jitter: from 0 to 1, random.
            counted: this write-back changed the row; else the row had changed since it was read, and nothing was counted.
        """
        table, record = self.tracked, outcome.record
        queues = self.sources.get(source)
        if queues is None:
            table.drop(record.id)
            return NOTHING
        queues.in_flight -= 1
        file = table[record.id]
        file.inconclusive_tries = file.refused_writes = 0
        next_due = table.next_due()
        decisions: Decisions = NOTHING
        if counted:
            by_event = isinstance(outcome, Archived) and file.origin is Origin.STREAM
            decisions = (CountOutcome(source, outcome, now - file.woken_at if by_event else None),)
        if not counted:
            # The row has changed, or cannot be written: its current state decides, after a moment.
            table.retry(record.id, now + _NOT_COUNTED_DELAY)
            file.last_try = None
        elif isinstance(outcome, AttemptFailed) and record.attempts + 1 < self._max_attempts:
            delay = retry_delays.delay_after(self._delays, record.attempts + 1)
            counted_record = replace(record, failed_copy_attempts=record.attempts + 1)
            table.wait(counted_record, now + delay * (0.9 + 0.2 * jitter))
        elif again := self._finish_id(record.id):
            return decisions + again
        # An archived file gives no thread anything to do, and to wake them all for each file costs as much as the file.
        return decisions if queues.in_flight and table.next_due() == next_due else decisions + WAKE

    def write_refused(
        self, source: str, outcome: Archived | AttemptFailed | Refused, detail: str, now: float
    ) -> tuple[bool, Decisions]:
        """The database refused the write-back of an outcome: a constraint, or a trigger.

        Args:
            detail: its message.

        Returns:
            Whether the file is set aside now: no sweep offers it any more.
        """
        record, queues = outcome.record, self.sources.get(source)
        if queues is None:
            self.tracked.drop(record.id)
            return False, NOTHING
        queues.in_flight -= 1
        file = self.tracked[record.id]
        file.refused_writes += 1
        decisions: Decisions = (CountOutcome(source, Deferred(record, Reason.NOT_RECORDABLE, detail)), *WAKE)
        if file.refused_writes < WRITE_TRIES or len(self.set_aside) >= LIMIT:
            self.tracked.wait(record, now + retry_delays.delay_after(self._delays, file.refused_writes))
            return False, decisions
        self.set_aside.add(SetAside(source, record, detail))
        about = {"id": record.id, "source": source, "path": record.path, "detail": detail}
        return True, (*decisions, LogEvent("error", "not_recordable", about), *self._finish_id(record.id))

    def set_backpressure(self, on: bool) -> Decisions:
        """Stops handing out batches while the database cannot be written to, and starts again."""
        self._backpressure = on
        return WAKE

    # The service, the sources' and the destination's health.

    def close(self) -> Decisions:
        """Hands out nothing more."""
        self._closed = True
        return WAKE

    @property
    def closed(self) -> bool:
        """Whether nothing more is handed out."""
        return self._closed

    @property
    def idle(self) -> bool:
        """Whether no id is tracked except those that wait for a later try."""
        states = (TrackedState.OFFERED, TrackedState.QUEUED, TrackedState.IN_FLIGHT)
        return not any(map(self.tracked.count, states))

    def nothing_pending(self, source: str | None, now: float) -> Decisions:
        """Nothing is left to try it with: trouble whose pause is over is not known to last.

        Args:
            source: None for the destination: no source has anything pending.
        """
        queues = self.sources.get(source) if source else None
        health = queues.health if queues else self.destination if source is None else Health()
        return self.health.succeeded(health, source or DESTINATION, now) if now >= health.until else NOTHING

    def states(self, now: float) -> list[SourceState]:
        """The current state of the sources."""
        return [queues.snapshot(now, self.set_aside.count(name)) for name, queues in self.sources.items()]

    def _collect(self, queues: SourceQueues, lane: Lane, now: float) -> tuple[list[FileRecord], Decisions]:
        queue = queues.lanes[lane]
        # While the destination is down, the batch that tries it may be fetched in vain: then it is one file.
        limit = queues.batch_limit(lane) if self.destination.up else 1
        records: list[FileRecord] = []
        decisions = NOTHING
        while queue and len(records) < limit:
            record = queue.pop()
            alone = self.tracked[record.id].inconclusive_tries >= _ALONE_AFTER
            if alone and records:
                queue.fresh.appendleft(record)
                break
            if not self.tracked.taken(record.id, now):
                self.inboxes.add(record.id, fresh=True)
                decisions = WAKE
                continue
            records.append(record)
            if alone:
                break
        queues.in_flight += len(records)
        return records, decisions

    def _finish_id(self, id_: int) -> Decisions:
        if not self.tracked.finished(id_):
            return NOTHING
        self.inboxes.add(id_, fresh=True)
        return WAKE

    def _drop_inboxes(self) -> Decisions:
        """No source has room: to read the rows would be useless."""
        decisions = self._drop(self.inboxes.take(len(self.inboxes)))
        for queues in self.sources.values():
            queues.needs_refill = True
        return decisions

    def _drop(self, ids: Sequence[int]) -> Decisions:
        """Forgets ids for lack of room; a sweep will offer them again."""
        announced = sum(self.tracked[id_].origin is Origin.STREAM for id_ in ids)
        for id_ in ids:
            self.tracked.drop(id_)
            self._dropped.add(id_)
        return (CountStreamEvents(OfferResult.DROPPED, announced),) if announced else NOTHING
