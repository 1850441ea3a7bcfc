"""Reads the side table of timecodes for an operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import sqlalchemy as sa

from cdc_archiver.database.side_tables import TIMECODES

_TOLD: Final = ("marker", "status")
"""Values of ``told_by`` by which readers were told."""


def told_timecodes(connection: sa.Connection, file_table: str, timecodes: Sequence[int]) -> list[tuple[str, int]]:
    """Those of some timecodes that readers were told of, each with its instance_id.

    Args:
        file_table: name of the table of files.
    """
    told = sa.select(TIMECODES.c.instance_id, TIMECODES.c.timecode).where(
        TIMECODES.c.file_table == file_table,
        TIMECODES.c.timecode.in_(timecodes),
        TIMECODES.c.told_by.in_(_TOLD),
    )
    return [(row.instance_id, row.timecode) for row in connection.execute(told.order_by(*told.selected_columns))]
