"""Which archive the files of an instance_id go to: the id of its marker, known to the database since the first run."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import sqlalchemy as sa

from cdc_archiver.database.connections import error_code
from cdc_archiver.database.history import HISTORY_ERRORS, History, to_stored_text
from cdc_archiver.database.side_tables import ARCHIVES
from cdc_archiver.database.source_locks import lock_name

_NEWEST: Final = 1000
"""Archived rows of an instance_id that are looked at."""


@dataclass(frozen=True, slots=True)
class ArchiveEntry:
    """The archive of an instance_id.

    Attributes:
        archive_id: the marker's.
        data_dir: its path.
        inode: of data_dir.
        staging: the directory in use for staging.
    """

    archive_id: str
    data_dir: str
    inode: int | None
    staging: str | None


@dataclass(frozen=True, slots=True)
class KnownArchive:
    """What the database knows of the archive in data_dir.

    Attributes:
        entries: by instance_id.
        has_files: whether it knows files there.
    """

    entries: Mapping[str, ArchiveEntry] = field(default_factory=dict)
    has_files: bool = False

    @property
    def ids(self) -> set[str]:
        """The ids of the archives that the targets' files have gone to."""
        return {entry.archive_id for entry in self.entries.values()}


def known_archive(
    connection: sa.Connection, file_table: str, targets: Sequence[str], data_dir: Path | None
) -> KnownArchive:
    """What side table, history and table of files know of the archive; what cannot be read is unknown."""
    entries: dict[str, ArchiveEntry] = {}
    with ignore_side_table_errors():
        entries = read_archives(connection, file_table, targets)
    below = f"{data_dir}/"
    has_files = has_archived_rows(connection, file_table, targets, below)
    if not has_files:
        with ignore_side_table_errors():
            has_files = History(file_table, 0.0).knows_archived(connection, below)
    return KnownArchive(entries, has_files)


@contextmanager
def ignore_side_table_errors() -> Iterator[None]:
    """A block that does nothing where a side table or its grant is missing."""
    try:
        yield
    except sa.exc.DBAPIError as error:
        if error.connection_invalidated or error_code(error) not in HISTORY_ERRORS:
            raise


def read_archives(connection: sa.Connection, file_table: str, targets: Sequence[str]) -> dict[str, ArchiveEntry]:
    """The archives of some targets, by instance_id.

    Raises:
        sqlalchemy.exc.DBAPIError: there is no such table, or no grant.
    """
    rows = connection.execute(
        sa.select(ARCHIVES).where(ARCHIVES.c.file_table == file_table, ARCHIVES.c.instance_id.in_(targets))
    )
    return {
        row.instance_id: ArchiveEntry(row.archive_id, row.data_dir, row.data_dir_inode, row.staging_place)
        for row in rows
    }


def enter_archive(connection: sa.Connection, file_table: str, targets: Sequence[str], entry: ArchiveEntry) -> None:
    """Enters the archive of some targets, in place of the former one."""
    connection.execute(
        sa.delete(ARCHIVES).where(ARCHIVES.c.file_table == file_table, ARCHIVES.c.instance_id.in_(targets))
    )
    for target in targets:
        connection.execute(
            sa.insert(ARCHIVES).values(
                file_table=file_table,
                instance_id=target,
                archive_id=entry.archive_id,
                data_dir=to_stored_text(entry.data_dir),
                data_dir_inode=entry.inode,
                staging_place=None if entry.staging is None else to_stored_text(entry.staging),
                changed_at=sa.text("UTC_TIMESTAMP(3)"),
            )
        )


def has_archived_rows(connection: sa.Connection, file_table: str, targets: Sequence[str], below: str) -> bool:
    """Whether one of the newest archived rows lies below a directory (a prefix of the path that ends in a slash)."""
    files = sa.table(file_table, *map(sa.column, ("id", "path", "copied", "instance_id")))
    for target in targets:
        newest = (
            sa.select(files.c.path)
            .where(files.c.copied == 1, files.c.instance_id == target)
            .order_by(files.c.id.desc())
            .limit(_NEWEST)
        )
        if any(os.fsdecode(path).startswith(below) for path in connection.execute(newest).scalars()):
            return True
    return False


def others_hold_locks(connection: sa.Connection, database: str, file_table: str, own: Sequence[str]) -> bool:
    """Whether another service archives files of this table: a lock is held of a target that is not ours."""
    files = sa.table(file_table, sa.column("copied"), sa.column("instance_id"))
    targets = connection.execute(sa.select(files.c.copied, files.c.instance_id).distinct())
    others = {target for _, target in targets if target is not None} - set(own)
    return any(
        connection.execute(sa.select(sa.func.is_used_lock(lock_name(database, file_table, target)))).scalar()
        for target in sorted(others)
    )
