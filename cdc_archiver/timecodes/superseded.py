"""Files that were rewritten after their announcement: an older row that can never be archived is ignored once the newer one is.

The instrument rewrites a file, and the registrar makes a second row of it. The first row's md5 is gone for good: it is quarantined as
`changed`, and would block its timecode.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from typing import Final

import sqlalchemy as sa
import structlog

from cdc_archiver.database.connections import Database, error_code
from cdc_archiver.database.files_table import FilesTable
from cdc_archiver.database.history import HISTORY_ERRORS
from cdc_archiver.database.operator_history import IGNORED, OperatorHistory
from cdc_archiver.database.side_tables import REGISTERED
from cdc_archiver.model import IGNORED_FROM, REFUSED_FROM, FileRecord, Reason

_MOST: Final = 200
"""Quarantined files that are looked at at once."""
AGAIN: Final = 600.0
"""Seconds after which a file is looked at again whose newer row was not archived."""

_log = structlog.get_logger(__name__)


class SupersededFiles:
    """Finds and ignores them.

    Args:
        files: table of files.
    """

    def __init__(self, database: Database, files: FilesTable) -> None:
        self._database = database
        self._files = files
        self._history = OperatorHistory(files.name)
        self._looked: dict[int, float] = {}
        """When a file was looked at last, by the id of its row."""

    def ignore(self, targets: Sequence[str]) -> int:
        """Ignores the superseded files of these targets; returns their number. Side tables that are missing make none.

        Raises:
            ArchiverError: the database does not answer.
        """
        now = time.monotonic()
        quarantined = [each for each in self._quarantined(targets) if self._looked.get(each.id, -AGAIN) + AGAIN <= now]
        if not quarantined:
            return 0
        self._looked = {id_: at for id_, at in self._looked.items() if at + AGAIN > now}
        self._looked |= {record.id: now for record in quarantined}
        try:
            found = self._newer_rows(quarantined)
        except sa.exc.DBAPIError as error:
            if error_code(error) not in HISTORY_ERRORS:
                raise
            return 0
        for record, newer in found.items():
            detail = f"superseded: the file was rewritten, and row {newer}, of its later content, is archived"
            with self._database.transaction() as connection:
                if self._files.set_attempts(connection, {record: IGNORED_FROM}).changed:
                    self._history.record_operator_action(connection, [record], IGNORED, detail)
                    _log.info("file_superseded", id=record.id, path=record.path, newer=newer)
        return len(found)

    def _quarantined(self, targets: Sequence[str]) -> list[FileRecord]:
        column = self._files.column
        attempts = sa.func.coalesce(column("failed_copy_attempts"), 0)
        with self._database.connect() as connection:
            rows = self._files.rows(
                connection,
                column("copied") == 0,
                column("instance_id").in_(targets),
                attempts >= self._files.max_attempts,
                attempts < REFUSED_FROM,
                newest_first=True,
                limit=_MOST,
            )
        return [row.record for row in rows]

    def _newer_rows(self, records: Collection[FileRecord]) -> Mapping[FileRecord, int]:
        """The archived row of a later content of each file that has one and failed as changed."""
        receipts = REGISTERED.c
        found: dict[FileRecord, int] = {}
        with self._database.connect() as connection:
            failures = self._history.last_failures(connection, [record.id for record in records])
            changed = {
                record.id: record
                for record in records
                if record.id in failures and failures[record.id].reason == Reason.CHANGED
            }
            if not changed:
                return found
            older = connection.execute(
                sa.select(receipts.registrar_id, receipts.number, receipts.file_id, receipts.source_path).where(
                    receipts.file_id.in_(changed)
                )
            ).all()
            for receipt in older:
                record = changed[receipt.file_id]
                later = connection.execute(
                    sa.select(receipts.file_id).where(
                        receipts.registrar_id == receipt.registrar_id,
                        receipts.number > receipt.number,
                        receipts.source_path == receipt.source_path,
                    )
                ).scalars()
                rows = self._files.load(connection, list(later))
                archived = [
                    id_ for id_, row in rows.items() if row.copied and row.record.instance_id == record.instance_id
                ]
                if receipt.source_path == record.path and archived:
                    found[record] = max(archived)
        return found
