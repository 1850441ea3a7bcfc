"""Files with a history, recorded without a service."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from archive_places import marker_of
from files_table import TABLE
from private_site import PrivateSite, SourceFile

from cdc_archiver.database import history
from cdc_archiver.database.connections import Database
from cdc_archiver.database.files_table import FilesTable
from cdc_archiver.database.history import History, OutcomeEntry
from cdc_archiver.model import Archived, AttemptFailed, FileRecord, Reason, Refused
from cdc_archiver.transfer.archive_marker import write_marker


def failed(
    stage: PrivateSite, id_: int, reason: Reason, detail: str = "said rsync", md5_seen: bytes | None = None
) -> None:
    """Records a failed attempt in the history. The row is not changed."""
    _record(stage, id_, reason, detail, md5_seen)


def archived(stage: PrivateSite, file: SourceFile, content: bytes | None = None) -> int:
    """An archived file: its row, its history, and the file in the archive.

    Arguments:
        content: of the file in the archive; default: that of the source file.
    """
    (id_,) = stage.register(file)
    place = stage.place(file)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(file.content if content is None else content)
    marker = marker_of(stage.data_dir)
    if not marker.exists():
        marker.parent.mkdir(exist_ok=True)
        write_marker(stage.data_dir, marker.parent, "0123456789abcdef", is_sibling=True)
    _record(stage, id_, None, str(place), None)
    stage.sql(f"UPDATE {TABLE} SET path = %s, copied = 1 WHERE id = %s", (str(place), id_))
    return id_


def _record(stage: PrivateSite, id_: int, reason: Reason | None, text: str, md5_seen: bytes | None) -> None:
    database = Database(stage.settings())
    try:
        with database.connect() as connection:
            assert history.open_history(connection) == ""
            record: FileRecord = FilesTable(TABLE, 260, 5).load(connection, [id_])[id_].record
            record = replace(record, failed_copy_attempts=0)
            outcome: Archived | AttemptFailed | Refused
            if reason is None:
                outcome = Archived(record, text, Path(text).stat().st_size)
            elif reason.scope == "row":
                outcome = Refused(record, reason, text)
            else:
                outcome = AttemptFailed(record, reason, text, md5_seen)
            History(TABLE, 0).write(connection, [OutcomeEntry(stage.ssh.host, outcome, 0.0)])
    finally:
        database.close()
