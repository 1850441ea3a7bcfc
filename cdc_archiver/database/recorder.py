"""Outcomes to the table: all that wait, in one short transaction."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import sqlalchemy as sa
import structlog

from cdc_archiver.database.connections import Database, error_code
from cdc_archiver.database.files_table import FilesTable
from cdc_archiver.database.history import HISTORY_ERRORS, Entry, History
from cdc_archiver.errors import DatabaseUnavailable, Misconfigured, RowLocked, StatementRefused
from cdc_archiver.model import Archived, AttemptFailed, Refused
from cdc_archiver.observe.logs import gathered
from cdc_archiver.threads import Part

_MOST: Final = 500
"""Outcomes of one transaction."""
_HOLD_UP_AT: Final = 5_000
"""Outcomes that wait while the table cannot be written to; then nothing more is copied."""
_LONGEST_PAUSE: Final = 5.0
_HISTORY_AGAIN: Final = 60.0
_LOOK_UP: Final = 5.0
"""Seconds after which one that has nothing to write looks whether the history is to be pruned."""

_log = structlog.get_logger(__name__)


class Settles(Protocol):
    """What the recorder tells of its writes; the dispatcher does."""

    def expect_own_writes(self, ids: Sequence[int]) -> None: ...
    def cancel_own_writes(self, ids: Sequence[int]) -> None: ...
    def settled(self, source: str, outcome: Archived | AttemptFailed | Refused, *, counted: bool) -> None: ...
    def set_backpressure(self, on: bool) -> None: ...


class Recorder(Part):
    """Writes outcomes back, and says so. After ``stop`` it writes what waits, and gives up when the database stays away:
    the next run adopts what was placed.

    Args:
        history: None where there is no side table.
        settles: told of each write.
        patience: seconds that it goes on trying after ``stop``.
        on_database: told whether the database answers.
    """

    def __init__(
        self,
        database: Database,
        files: FilesTable,
        history: History | None,
        settles: Settles,
        patience: float,
        on_database: Callable[[bool, str], None] = lambda up, why: None,
    ) -> None:
        super().__init__("recorder")
        self._database = database
        self._files = files
        self._history = history
        self._history_from = 0.0
        self._settles = settles
        self._patience = patience
        self._on_database = on_database
        self._waiting: deque[Entry] = deque()
        self._discarding = False
        self._held_up = False
        self._changed = threading.Condition()

    def put(self, source: str, outcome: Archived | AttemptFailed | Refused, waited: float) -> None:
        """Takes an outcome. Never waits.

        Args:
            waited: seconds that the file waited for a worker.
        """
        with self._changed:
            if self._discarding:
                return
            self._waiting.append(Entry(source, outcome, waited))
            if len(self._waiting) == 1:  # whoever was told of the first takes all that wait by then
                self._changed.notify()
        self._hold_up_if_full()

    def discard(self) -> None:
        """Writes nothing more, not even what waits."""
        with self._changed:
            self._discarding = True
            self._waiting.clear()
        self.stop()

    def interrupt(self) -> None:
        with self._changed:
            self._changed.notify()

    def work(self) -> None:
        while not self._over():
            if (entries := self._take()) and not self._record(entries):
                return
            self._prune_on()

    def _over(self) -> bool:
        with self._changed:
            return self.stopping.is_set() and not self._waiting

    def _take(self) -> list[Entry]:
        """All that wait; nothing where it is time to stop, or to prune the history."""
        with self._changed:
            prune_in = self._history.prune_in if self._history else None
            while not self._waiting and not self.stopping.is_set():
                if not self._changed.wait(_LOOK_UP if prune_in is None else prune_in):
                    break
            return [self._waiting.popleft() for _ in range(min(_MOST, len(self._waiting)))]

    def _prune_on(self) -> None:
        """What a sweep began to delete of the history, on and on between two writes: a sweep comes once a minute."""
        if self._history is None or self._history.prune_in != 0.0 or self.stopping.is_set():
            return
        try:
            with self._database.connect() as connection:
                self._history.prune(connection)
        except (DatabaseUnavailable, Misconfigured, StatementRefused) as error:
            _log.debug("history_not_pruned", detail=str(error))
            with self._changed:  # a database that is away is asked again in a while
                if not self._waiting and not self.stopping.is_set():
                    self._changed.wait(_LONGEST_PAUSE)

    def _record(self, entries: Sequence[Entry]) -> bool:
        """Writes outcomes until they are written; returns whether to go on."""
        pause = 0.1
        give_up_at = float("inf")
        while True:
            try:
                counted = self._write(entries)
            except (RowLocked, StatementRefused) as error:
                if len(entries) > 1:  # one of them; the others must not wait for it
                    written = [self._record([entry]) for entry in entries]
                    return all(written)
                _log.error("not_recorded", id=entries[0].outcome.record.id, detail=str(error))
                counted = set()
            except (DatabaseUnavailable, Misconfigured) as error:
                self._on_database(False, str(error))
                if self._discarding:
                    return False
                if self.stopping.is_set():
                    give_up_at = min(give_up_at, time.monotonic() + self._patience)
                if time.monotonic() >= give_up_at:
                    _log.error("not_recorded", files=len(entries) + len(self._waiting), detail=str(error))
                    return False
                # Not `stopping.wait`: once that is set it would wait no more, and hammer a database that is away.
                with self._changed:
                    self._changed.wait(pause)
                pause = min(_LONGEST_PAUSE, pause * 2)
                continue
            self._on_database(True, "")
            log = _log.bind()
            with gathered():
                for entry in entries:
                    _log_entry(log, entry, counted, self._files.max_attempts)
                    self._settles.settled(entry.source, entry.outcome, counted=entry.outcome.record.id in counted)
            self._hold_up_if_full()
            return True

    def _hold_up_if_full(self) -> None:
        if (len(self._waiting) >= _HOLD_UP_AT) == self._held_up:
            return
        with self._changed:
            full = len(self._waiting) >= _HOLD_UP_AT
            if full != self._held_up:
                self._held_up = full
                self._settles.set_backpressure(full)

    def _write(self, entries: Sequence[Entry]) -> set[int]:
        """Writes outcomes in one transaction.

        Returns:
            The ids of the rows that say so now.
        """
        places = {o.record: o.path for entry in entries if isinstance(o := entry.outcome, Archived)}
        charged = [o.record for entry in entries if isinstance(o := entry.outcome, AttemptFailed)]
        refused = [o.record for entry in entries if isinstance(o := entry.outcome, Refused)]
        ids = [entry.outcome.record.id for entry in entries]
        self._settles.expect_own_writes(ids)
        changed: set[int] = set()
        try:
            with self._database.transaction() as connection:
                written = [
                    self._files.mark_copied(connection, places),
                    self._files.charge(connection, charged),
                    self._files.refuse(connection, refused),
                ]
                done = set[int]().union(*(part.changed for part in written))
                self._write_history(connection, [entry for entry in entries if entry.outcome.record.id in done])
            changed = done
        finally:
            # Where the commit's fate is unknown an echo may come all the same; then a row is read once too often.
            self._settles.cancel_own_writes([id_ for id_ in ids if id_ not in changed])
        return changed.union(*(part.already for part in written))

    def _write_history(self, connection: sa.Connection, entries: Sequence[Entry]) -> None:
        if self._history is None or time.monotonic() < self._history_from:
            return
        try:
            self._history.write(connection, entries)
        except sa.exc.DBAPIError as error:
            if error_code(error) not in HISTORY_ERRORS:
                raise
            self._history_from = time.monotonic() + _HISTORY_AGAIN
            _log.warning("history_not_written", detail=str(error.orig), again_seconds=_HISTORY_AGAIN)


def _log_entry(log: Any, entry: Entry, counted: set[int], max_attempts: int) -> None:
    outcome = entry.outcome
    record = outcome.record
    about = {"id": record.id, "source": entry.source}
    if record.id not in counted:
        log.info("row_moved_on", **about, path=record.path)
        return
    match outcome:
        case Archived(path=path, size=size, adopted=adopted):
            log.info("adopted" if adopted else "archived", **about, path=path, bytes=size)
        case AttemptFailed(reason=reason, detail=detail):
            last = record.attempts + 1 >= max_attempts
            log.warning(
                "quarantined" if last else "charged",
                **about,
                reason=reason.value,
                path=record.path,
                attempts=record.attempts + 1,
                detail=detail,
            )
        case Refused(reason=reason, detail=detail):
            log.warning("refused", **about, reason=reason.value, path=record.path, detail=detail)
