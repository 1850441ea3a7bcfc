"""Files whose outcome the database refuses to record, set aside after several tries. Pure: no clock, no I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from cdc_archiver.model import FileRecord

WRITE_TRIES: Final = 5
"""Refused write-backs in a row after which a file is set aside."""
LIMIT: Final = 10_000
"""Files that are set aside at most: others are tried again for ever, after the longest delay."""


@dataclass(frozen=True, slots=True)
class SetAside:
    """A file that is set aside.

    Attributes:
        record: the row for which that holds.
        detail: the database's message.
    """

    source: str
    record: FileRecord
    detail: str


class SetAsideFiles:
    """The files that are set aside, until their rows change, an operator asks for a try, or the service ends."""

    def __init__(self) -> None:
        self._files: dict[int, SetAside] = {}

    def __contains__(self, id_: int) -> bool:
        return id_ in self._files

    def __len__(self) -> int:
        return len(self._files)

    def get(self, id_: int) -> SetAside | None:
        """A file that is set aside; None for another."""
        return self._files.get(id_)

    @property
    def ids(self) -> tuple[int, ...]:
        """All ids."""
        return tuple(self._files)

    def count(self, source: str) -> int:
        """How many files of a source are set aside."""
        return Counter(file.source for file in tuple(self._files.values()))[source]

    def add(self, file: SetAside) -> None:
        """Sets a file aside."""
        self._files[file.record.id] = file

    def holds_for(self, record: FileRecord) -> bool:
        """Whether the file is set aside and its row is as it was then. Forgets a file whose row has changed."""
        file = self._files.get(record.id)
        if file is not None and file.record != record:
            del self._files[record.id]
            return False
        return file is not None

    def forget(self, ids: Collection[int]) -> None:
        """These files are set aside no longer."""
        for id_ in ids:
            self._files.pop(id_, None)

    def forget_source(self, source: str) -> None:
        """A source is served no longer."""
        self.forget([id_ for id_, file in self._files.items() if file.source == source])

    def review(self, pending: Mapping[int, FileRecord]) -> None:
        """Forgets each file that is archived or gone, or whose row has changed.

        Args:
            pending: the records of those that are pending.
        """
        self.forget([id_ for id_, file in self._files.items() if pending.get(id_) != file.record])
