"""Routes ids to the queues of their sources: one SELECT reads their rows; rows that are not pending are dropped, invisible ones
read again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Final, Protocol

import sqlalchemy as sa

from cdc_archiver.database.connections import Database
from cdc_archiver.database.files_table import FilesTable, Row
from cdc_archiver.database.marks import Marks
from cdc_archiver.errors import DatabaseUnavailable, Misconfigured
from cdc_archiver.model import IGNORED_FROM, FileRecord
from cdc_archiver.settings import SourceSettings
from cdc_archiver.threads import StoppableThread
from cdc_archiver.transfer.layout import timecode_of

_IDS: Final = 1000
_WAIT: Final = 1.0
_LONGEST_PAUSE: Final = 5.0


class Targets:
    """The source that a row's ``instance_id`` belongs to."""

    def __init__(self, sources: Iterable[SourceSettings] = ()) -> None:
        self.set(sources)

    def set(self, sources: Iterable[SourceSettings]) -> None:
        """Replaces the sources."""
        sources = tuple(sources)
        self._exact = {target: source.name for source in sources for target in source.target}
        self._folded = {target.casefold().rstrip(): name for target, name in self._exact.items()}

    def source_of(self, instance_id: str) -> str | None:
        """The source of this target; None if it belongs to another service.

        Compares as the database does, and therefore as the polling agent did: case and trailing spaces are ignored.
        """
        return self._exact.get(instance_id) or self._folded.get(instance_id.casefold().rstrip())


class RecordSink(Protocol):
    """Where ids come from, and where what their rows say goes: the dispatcher."""

    def take_ids(self, limit: int, wait: float) -> list[int]: ...
    def put_back(self, ids: Sequence[int]) -> None: ...
    def atomically(self) -> AbstractContextManager[object]: ...
    def never_tried(self, ids: Sequence[int]) -> list[int]: ...
    def enqueue(self, source: str, record: FileRecord, failed_ago: float | None = None) -> None: ...
    def withhold(self, source: str, id_: int) -> None: ...
    def dismiss(self, id_: int, *, failed: bool = False) -> None: ...
    def not_visible(self, id_: int) -> None: ...
    def not_pending(self, id_: int, *, failed: bool = False) -> None: ...


class Router(StoppableThread):
    """Reads the rows of offered ids and queues those that are pending. Rows of timecodes that were handed over wait.

    Args:
        last_failures: seconds since the last failed attempt of each of these files, as far as that is known.
        marks: None where no timecode is handed over.
        on_database: called with whether the database answers, each time that this changes or may have changed.
    """

    def __init__(
        self,
        database: Database,
        files: FilesTable,
        targets: Targets,
        dispatcher: RecordSink,
        last_failures: Callable[[sa.Connection, Sequence[int]], Mapping[int, float]],
        on_database: Callable[[bool, str], None] = lambda up, why: None,
        marks: Marks | None = None,
    ) -> None:
        super().__init__("router")
        self._marks = marks
        self._database = database
        self._files = files
        self._targets = targets
        self._dispatcher = dispatcher
        self._last_failures = last_failures
        self._on_database = on_database

    def work(self) -> None:
        pause = 0.1
        while not self.stopping.is_set():
            ids = self._dispatcher.take_ids(_IDS, _WAIT)
            if not ids:
                continue
            try:
                with self._database.connect() as connection:
                    if self._marks is not None:
                        self._marks.require_read(connection)
                    rows = self._files.load(connection, ids, row_image=True)
                    failed = [id_ for id_, row in rows.items() if row.record.attempts and self._is_pending(row)]
                    unknown = self._dispatcher.never_tried(failed) if failed else []
                    failed_ago = self._last_failures(connection, unknown) if unknown else {}
            except (DatabaseUnavailable, Misconfigured) as error:
                self._dispatcher.put_back(ids)
                self._on_database(False, str(error))
                self.stopping.wait(pause)
                pause = min(_LONGEST_PAUSE, pause * 2)
                continue
            self._on_database(True, "")
            pause = 0.1
            with self._dispatcher.atomically():
                for id_ in ids:
                    self._route(id_, rows.get(id_), failed_ago.get(id_))

    def _is_pending(self, row: Row) -> bool:
        return not row.copied and row.record.attempts < self._files.max_attempts

    def _route(self, id_: int, row: Row | None, failed_ago: float | None) -> None:
        if row is None:
            self._dispatcher.not_visible(id_)
            return
        source = self._targets.source_of(row.record.instance_id)
        if source is None:
            self._dispatcher.dismiss(id_)
        elif not self._is_pending(row):
            given_up = not row.copied and row.record.attempts < IGNORED_FROM
            self._dispatcher.not_pending(id_, failed=given_up)
        elif self._is_handed_over(row.record):
            self._dispatcher.withhold(source, id_)
        else:
            self._dispatcher.enqueue(source, row.record, failed_ago)

    def _is_handed_over(self, record: FileRecord) -> bool:
        """Whether its timecode was handed over: what is archived there now would be in no reader's list."""
        marks = self._marks.current if self._marks else None
        if marks is None or not marks.handed_over_timecodes:  # almost always
            return False
        timecode = timecode_of(record, None)
        return (
            timecode in marks.handed_over_timecodes
            and timecode is not None
            and marks.handed_over(record.instance_id, timecode, record.id) is not None
        )
