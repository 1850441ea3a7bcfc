"""Reads the side table of timecodes, and the rows of a timecode, for an operator."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Final

import sqlalchemy as sa

from cdc_archiver.database.files_table import FilesTable, escape_like
from cdc_archiver.database.side_tables import REGISTRAR_LOSSES, TIMECODES
from cdc_archiver.database.timecodes_table import StoredTimecode, stored_timecode

TOLD: Final = frozenset({"marker", "status"})
"""Values of ``told_by`` by which readers were told."""


def find_timecodes(
    connection: sa.Connection, file_table: str, timecodes: Collection[int] | None = None, targets: Collection[str] = ()
) -> list[StoredTimecode]:
    """The stored timecodes, by number and instance_id.

    Args:
        file_table: name of the table of files.
        timecodes: only these; None for all.
        targets: only of these; empty for all.
    """
    table = TIMECODES.c
    found = sa.select(TIMECODES).where(
        table.file_table == file_table,
        *([] if timecodes is None else [table.timecode.in_(timecodes)]),
        *([table.instance_id.in_(targets)] if targets else []),
    )
    return [stored_timecode(row) for row in connection.execute(found.order_by(table.timecode, table.instance_id))]


def targets_with_timecodes(connection: sa.Connection, file_table: str) -> list[str]:
    """The instance_ids that have timecodes."""
    table = TIMECODES.c
    found = sa.select(table.instance_id).where(table.file_table == file_table).distinct().order_by(table.instance_id)
    return list(connection.execute(found).scalars())


def targets_with_losses(connection: sa.Connection, timecode: int) -> list[str]:
    """The instance_ids whose registrars lost something of a timecode."""
    table = REGISTRAR_LOSSES.c
    return list(connection.execute(sa.select(table.instance_id).where(table.timecode == timecode).distinct()).scalars())


def archived_timecodes(connection: sa.Connection, files: FilesTable, data_dir: Path) -> frozenset[tuple[str, str]]:
    """Which instance_ids have archived rows below which directories of data_dir, by the directory's name. Reads the whole table."""
    path, below = files.column("path"), f"{data_dir}/"
    name = sa.func.substring_index(sa.func.substring(path, len(below) + 1), "/", 1)
    found = sa.select(files.column("instance_id"), name).where(
        files.column("copied") != 0, path.like(escape_like(below) + "%", escape="!")
    )
    return frozenset((_text(id_), _text(directory)) for id_, directory in connection.execute(found.distinct()))


def _text(value: object) -> str:
    if isinstance(value, bytes):  # VARBINARY
        return value.decode("utf-8", "surrogateescape")
    return "" if value is None else str(value)
