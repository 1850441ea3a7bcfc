"""What the write-back of files means for timecodes: those that are complete are re-opened, and late files are noted."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa
import structlog

from cdc_archiver.database.timecode_rows import BLOCK
from cdc_archiver.database.timecodes_table import TimecodesTable
from cdc_archiver.model import Archived
from cdc_archiver.text import fold_instance_id
from cdc_archiver.transfer.layout import timecode_of

Key = tuple[str, int]
"""A folded instance_id, and a timecode."""

_PAUSE: Final = 60.0
"""Seconds without another try in a write-back after one failed: the keeper repeats it."""
_NOTED: Final = 10_000
"""Maximum number of archived files that wait to be looked at."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class NotedFile:
    """A file that was archived in a timecode that had been complete before.

    Attributes:
        outcome: with the row as it was.
    """

    key: Key
    outcome: Archived


class Reopening:
    """Is told of each write-back by the recorder, in its thread; asked by the keeper. Costs a file of an open timecode no statement.

    Args:
        table: the side table.
        on_noted: called, without waiting, when a file was noted.
    """

    def __init__(self, table: TimecodesTable, on_noted: Callable[[], None] = lambda: None) -> None:
        self._table = table
        self._on_noted = on_noted
        self._lock = threading.Lock()
        self._complete: set[Key] = set()
        self._told: set[Key] = set()
        self._known: frozenset[str] = frozenset()
        self._archived: Counter[Key] = Counter()
        self._noted: deque[NotedFile] = deque(maxlen=_NOTED)
        self._places: set[tuple[Key, int, str]] = set()
        self._try_from = 0.0
        self.is_on = False
        """Whether the side table can be used; until that is known, the keeper alone re-opens."""

    # In the recorder's thread.

    def writing(self, connection: sa.Connection, archived: Sequence[Archived]) -> None:
        """These rows are marked as archived in the transaction of this connection."""
        keyed = self._keyed(archived)
        with self._lock:
            self._archived.update(key for key, _ in keyed)
            self._places.update(
                (key, outcome.record.id // BLOCK, outcome.record.pub_id or "") for key, outcome in keyed
            )
            complete = {
                (outcome.record.instance_id, key[1])
                for key, outcome in keyed
                if key in self._complete or key[0] not in self._known
            }
        may_try = complete and self.is_on and time.monotonic() >= self._try_from
        if may_try and (failure := self._table.reopen(connection, complete)):
            self._try_from = time.monotonic() + _PAUSE
            _log.warning("timecode_not_reopened", detail=failure, again="after the next sweep")

    def written(self, archived: Sequence[Archived]) -> None:
        """The transaction was committed."""
        keyed = self._keyed(archived)
        with self._lock:
            noted = [
                NotedFile(key, outcome) for key, outcome in keyed if key in self._told or key[0] not in self._known
            ]
            self._noted.extend(noted)
        if noted:
            self._on_noted()

    def _keyed(self, archived: Sequence[Archived]) -> list[tuple[Key, Archived]]:
        return [
            ((fold_instance_id(outcome.record.instance_id), timecode), outcome)
            for outcome in archived
            if (timecode := timecode_of(outcome.record, outcome.path)) is not None
        ]

    # In the keeper's thread.

    def publish(self, known: Collection[str], complete: Collection[Key], told: Collection[Key]) -> None:
        """Replaces what is known.

        Args:
            known: instance_ids, folded, whose timecodes were read.
            complete: those of them that are complete.
            told: those that were complete before.
        """
        with self._lock:
            self._known, self._complete, self._told = frozenset(known), set(complete), set(told)

    def begin_completing(self, key: Key) -> int:
        """A timecode is about to become complete: from now on a file that is archived in it counts.

        Returns:
            A number that differs once another one was archived in it.
        """
        with self._lock:
            self._complete.add(key)
            self._told.add(key)
            return self._archived[key]

    def number(self, key: Key) -> int:
        """The number of :meth:`begin_completing` as it is now."""
        with self._lock:
            return self._archived[key]

    def take_noted(self, names: Collection[str]) -> list[NotedFile]:
        """The files of some instance_ids, folded, that were noted and not judged yet."""
        with self._lock:
            taken = [file for file in self._noted if file.key[0] in names]
            self._noted = deque((file for file in self._noted if file.key[0] not in names), maxlen=_NOTED)
        return taken

    def put_back(self, noted: Sequence[NotedFile]) -> None:
        """These could not be looked at yet."""
        with self._lock:
            self._noted.extendleft(reversed(noted))

    def take_places(self) -> set[tuple[Key, int, str]]:
        """Key, block of ids and pub_id of what was archived since the last time."""
        with self._lock:
            places, self._places = self._places, set()
        return places
