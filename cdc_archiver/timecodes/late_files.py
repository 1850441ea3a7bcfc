"""Late files: archived after their timecode was complete."""

from __future__ import annotations

from collections.abc import Collection

import sqlalchemy as sa

from cdc_archiver.database.timecode_rows import TimecodeRows
from cdc_archiver.database.timecodes_table import StoredTimecode
from cdc_archiver.model import Archived


def is_late(
    connection: sa.Connection,
    rows: TimecodeRows,
    entry: StoredTimecode,
    archived: Archived,
    later: int,
    blocks: Collection[int],
    *,
    history_kept: bool,
) -> bool:
    """Whether a file that was archived in a timecode that had been complete was never archived at this path before.

    Args:
        entry: the timecode.
        archived: recorded since.
        later: how often the same row was archived once more since.
        blocks: of ids, in which the timecode has rows.
        history_kept: whether the history has what was archived; without it, an id above the told ones decides.
    """
    record, path = archived.record, archived.path
    if not history_kept:
        return entry.told_max_id is None or record.id > entry.told_max_id
    if rows.times_archived(connection, record.id, path, record.md5sum) - later > 1:
        return False
    # Another row may have brought the same content before.
    return not archived.adopted or not any(
        row.copied and row.record.id != record.id and (row.record.path, row.record.md5sum) == (path, record.md5sum)
        for row in rows.rows(connection, record.instance_id, blocks)
    )
