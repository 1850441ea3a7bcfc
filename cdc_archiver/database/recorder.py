"""Writes outcomes to the table, all that wait in one short transaction."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Protocol

import sqlalchemy as sa
import structlog

from cdc_archiver.database.connections import Database, error_code
from cdc_archiver.database.files_table import FilesTable
from cdc_archiver.database.history import HISTORY_ERRORS, History, OutcomeEntry
from cdc_archiver.errors import ArchiverError, DatabaseUnavailable, Misconfigured, RowLocked, StatementRefused
from cdc_archiver.model import Archived, AttemptFailed, NotRecordable, Refused
from cdc_archiver.observe.logs import buffered_logs
from cdc_archiver.threads import StoppableThread

_TRANSACTION_LIMIT: Final = 500
"""Maximum number of outcomes in one transaction."""
_BACKPRESSURE_AT: Final = 5_000
"""Number of waiting outcomes, while the table cannot be written, from which copying is held up."""
_LONGEST_PAUSE: Final = 5.0
_HISTORY_PAUSE: Final = 60.0
"""Seconds without writes to the history after one failed."""
_LOOK_UP: Final = 5.0
"""Seconds between two checks, with nothing to write, whether the history is due to be pruned."""
_AHEAD_PAUSE: Final = 60.0
"""Seconds between two log lines about files whose timestamp is ahead of the clock."""

_log = structlog.get_logger(__name__)


class WriteBackListener(Protocol):
    """Is told of the recorder's writes; implemented by the dispatcher."""

    def expect_own_writes(self, ids: Sequence[int]) -> None: ...
    def cancel_own_writes(self, ids: Sequence[int]) -> None: ...
    def settled(self, source: str, outcome: Archived | AttemptFailed | Refused, *, counted: bool) -> None: ...
    def write_refused(self, source: str, outcome: Archived | AttemptFailed | Refused, detail: str) -> bool: ...
    def set_backpressure(self, on: bool) -> None: ...


class ArchivedListener(Protocol):
    """Is told of rows that are marked as archived; implemented by the keeper of timecodes."""

    def writing(self, connection: sa.Connection, archived: Sequence[Archived]) -> None:
        """In the transaction that marks them, before its commit."""

    def written(self, archived: Sequence[Archived]) -> None:
        """It was committed."""


class NoListener:
    """Nobody wants to know."""

    def writing(self, connection: sa.Connection, archived: Sequence[Archived]) -> None:
        pass

    def written(self, archived: Sequence[Archived]) -> None:
        pass


class Recorder(StoppableThread):
    """Writes outcomes back to the table and reports each to a listener. After ``stop`` it writes what waits, and gives up while the
    database is down: the next run adopts the files that were placed.

    Args:
        history: None without a side table.
        listener: is told of each write.
        patience: seconds for which it keeps trying after ``stop``.
        on_database: is told whether the database answers, and the error.
        on_archived: is told of rows that are marked as archived.
    """

    def __init__(
        self,
        database: Database,
        files: FilesTable,
        history: History | None,
        listener: WriteBackListener,
        patience: float,
        on_database: Callable[[bool, str], None] = lambda up, why: None,
        on_archived: ArchivedListener | None = None,
    ) -> None:
        super().__init__("recorder")
        self._database = database
        self._files = files
        self._history = history
        self._history_from = 0.0
        self._listener = listener
        self._patience = patience
        self._on_database = on_database
        self._on_archived: ArchivedListener = on_archived or NoListener()
        self._waiting: deque[OutcomeEntry] = deque()
        self._ahead: list[Archived] = []
        self._name_ahead_from = 0.0
        self._discarding = False
        self._backpressure = False
        self._changed = threading.Condition()

    def put(self, source: str, outcome: Archived | AttemptFailed | Refused, waited: float) -> None:
        """Queues an outcome. Never waits.

        Args:
            waited: seconds that the file waited for a worker.
        """
        with self._changed:
            if self._discarding:
                return
            self._waiting.append(OutcomeEntry(source, outcome, waited))
            if len(self._waiting) == 1:  # the thread woken by the first takes all that wait by then
                self._changed.notify()
        self._set_backpressure()

    def discard(self) -> None:
        """Stops without writing what waits."""
        with self._changed:
            self._discarding = True
            self._waiting.clear()
        self.stop()

    def interrupt(self) -> None:
        with self._changed:
            self._changed.notify()

    def work(self) -> None:
        while not self._is_over():
            if (entries := self._take()) and not self._record(entries):
                return
            if time.monotonic() >= self._name_ahead_from:
                self._name_ahead()
            self._prune_history()
        self._name_ahead()

    def _is_over(self) -> bool:
        with self._changed:
            return self.stopping.is_set() and not self._waiting

    def _take(self) -> list[OutcomeEntry]:
        """Takes the outcomes that wait, at most 500; none when it is time to stop or to prune the history."""
        with self._changed:
            prune_in = self._history.prune_in if self._history else None
            while not self._waiting and not self.stopping.is_set():
                if not self._changed.wait(_LOOK_UP if prune_in is None else prune_in):
                    break
            return [self._waiting.popleft() for _ in range(min(_TRANSACTION_LIMIT, len(self._waiting)))]

    def _prune_history(self) -> None:
        """Continues, between two writes, the pruning that a sweep began: sweeps come only once a minute."""
        if self._history is None or self._history.prune_in != 0.0 or self.stopping.is_set():
            return
        try:
            with self._database.connect() as connection:
                self._history.prune(connection)
        except (DatabaseUnavailable, Misconfigured, StatementRefused) as error:
            _log.debug("history_not_pruned", detail=str(error))
            with self._changed:  # ask a database that is down again only later
                if not self._waiting and not self.stopping.is_set():
                    self._changed.wait(_LONGEST_PAUSE)

    def _name_ahead(self) -> None:
        """Names the newest of the files archived with a timestamp ahead of the clock, and the number of all since the last time."""
        if not self._ahead:
            return
        newest = self._ahead[-1]
        _log.warning(
            "timestamp_ahead",
            files=len(self._ahead),
            id=newest.record.id,
            path=newest.path,
            detail="archived with a timestamp more than a day ahead of this machine's clock: was a clock wrong?",
        )
        self._ahead.clear()
        self._name_ahead_from = time.monotonic() + _AHEAD_PAUSE

    def _record(self, entries: Sequence[OutcomeEntry]) -> bool:
        """Writes outcomes, again until it succeeds; returns whether to go on."""
        pause = 0.1
        give_up_at = float("inf")
        while True:
            try:
                counted = self._write(entries)
            except (RowLocked, StatementRefused) as error:
                if len(entries) > 1:  # caused by one of them; the others must not wait for it
                    written = [self._record([entry]) for entry in entries]
                    return all(written)
                _log.error("write_back_failed", id=entries[0].outcome.record.id, detail=str(error))
                if isinstance(error, StatementRefused):
                    self._refused(entries[0], error.message)
                    return True
                counted = set()
            except (DatabaseUnavailable, Misconfigured) as error:
                self._on_database(False, str(error))
                if self._discarding:
                    return False
                if self.stopping.is_set():
                    give_up_at = min(give_up_at, time.monotonic() + self._patience)
                if time.monotonic() >= give_up_at:
                    _log.error("write_back_failed", files=len(entries) + len(self._waiting), detail=str(error))
                    return False
                # Not `stopping.wait`: once set it no longer waits, which would flood a database that is down with requests.
                with self._changed:
                    self._changed.wait(pause)
                pause = min(_LONGEST_PAUSE, pause * 2)
                continue
            self._on_database(True, "")
            log = _log.bind()
            now = datetime.now(UTC)
            self._ahead += [
                o
                for entry in entries
                if isinstance(o := entry.outcome, Archived) and o.record.is_ahead(now) and o.record.id in counted
            ]
            with buffered_logs():
                for entry in entries:
                    _log_entry(log, entry, counted, self._files.max_attempts)
                    outcome = entry.outcome
                    assert not isinstance(outcome, NotRecordable)  # :meth:`put` takes none
                    self._listener.settled(entry.source, outcome, counted=outcome.record.id in counted)
            self._set_backpressure()
            return True

    def _refused(self, entry: OutcomeEntry, message: str) -> None:
        """The database refuses an outcome: tells the listener, and the history once the file is set aside."""
        outcome = entry.outcome
        if isinstance(outcome, NotRecordable) or not self._listener.write_refused(entry.source, outcome, message):
            return
        path = outcome.path if isinstance(outcome, Archived) else ""
        note = OutcomeEntry(entry.source, NotRecordable(outcome.record, path, message), entry.waited)
        try:
            with self._database.transaction() as connection:
                self._write_history(connection, [note])
        except ArchiverError as error:
            _log.warning("history_not_written", detail=str(error))

    def _set_backpressure(self) -> None:
        if (len(self._waiting) >= _BACKPRESSURE_AT) == self._backpressure:
            return
        with self._changed:
            full = len(self._waiting) >= _BACKPRESSURE_AT
            if full != self._backpressure:
                self._backpressure = full
                self._listener.set_backpressure(full)

    def _write(self, entries: Sequence[OutcomeEntry]) -> set[int]:
        """Writes outcomes in one transaction.

        Returns:
            The ids of the rows that have the new values now.
        """
        places = {o.record: o.path for entry in entries if isinstance(o := entry.outcome, Archived)}
        failed = [o.record for entry in entries if isinstance(o := entry.outcome, AttemptFailed)]
        refused = [o.record for entry in entries if isinstance(o := entry.outcome, Refused)]
        ids = [entry.outcome.record.id for entry in entries]
        self._listener.expect_own_writes(ids)
        changed: set[int] = set()
        try:
            with self._database.transaction() as connection:
                written = [
                    self._files.mark_copied(connection, places),
                    self._files.count_failed_attempt(connection, failed),
                    self._files.refuse(connection, refused),
                ]
                done = set[int]().union(*(part.changed for part in written))
                archived = [o for e in entries if isinstance(o := e.outcome, Archived) and o.record.id in done]
                if archived:
                    self._on_archived.writing(connection, archived)
                self._write_history(connection, [entry for entry in entries if entry.outcome.record.id in done])
            changed = done
            if archived:
                self._on_archived.written(archived)
        finally:
            # After a commit with unknown result an event of our own write may still arrive; then a row is read once more than necessary.
            self._listener.cancel_own_writes([id_ for id_ in ids if id_ not in changed])
        return changed.union(*(part.already for part in written))

    def _write_history(self, connection: sa.Connection, entries: Sequence[OutcomeEntry]) -> None:
        if self._history is None or self._history.unavailable or time.monotonic() < self._history_from:
            return
        try:
            self._history.write(connection, entries)
        except sa.exc.DBAPIError as error:
            if error_code(error) not in HISTORY_ERRORS:
                raise
            self._history_from = time.monotonic() + _HISTORY_PAUSE
            _log.warning("history_not_written", detail=str(error.orig), again_seconds=_HISTORY_PAUSE)


def _log_entry(log: Any, entry: OutcomeEntry, counted: set[int], max_attempts: int) -> None:
    outcome = entry.outcome
    record = outcome.record
    about = {"id": record.id, "source": entry.source}
    if record.id not in counted:
        log.info("row_changed_concurrently", **about, path=record.path)
        return
    match outcome:
        case Archived(path=path, size=size, adopted=adopted):
            log.info("adopted" if adopted else "archived", **about, path=path, bytes=size)
        case AttemptFailed(reason=reason, detail=detail):
            last = record.attempts + 1 >= max_attempts
            log.warning(
                "quarantined" if last else "attempt_failed",
                **about,
                reason=reason.value,
                path=record.path,
                attempts=record.attempts + 1,
                detail=detail,
            )
        case Refused(reason=reason, detail=detail):
            log.warning("refused", **about, reason=reason.value, path=record.path, detail=detail)
