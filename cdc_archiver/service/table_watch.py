"""Pending rows that nobody archives: of an instance_id that no service takes, and of another table than the one chosen."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from typing import Final

import sqlalchemy as sa

from cdc_archiver.database import schema
from cdc_archiver.database.files_table import FilesTable
from cdc_archiver.database.source_locks import lock_name
from cdc_archiver.observe.metrics import Metrics
from cdc_archiver.service.bootstrap import ResolvedTables
from cdc_archiver.settings import Settings

LOOK: Final = 60.0
"""Seconds between two counts."""
UNHELD: Final = 600.0
"""Seconds for which nobody has held the lock of an instance_id, until its rows count as unclaimed."""
_NAMES: Final = 20
"""Values of instance_id that are looked at: those with the most rows."""


class UnclaimedRows:
    """Which pending rows of others no service takes. Pure."""

    def __init__(self) -> None:
        self._unheld_since: dict[str, float] = {}

    def update(self, pending: Mapping[str, int], held: Collection[str], now: float) -> dict[str, int]:
        """Those whose lock nobody has held for a while.

        Args:
            pending: numbers of pending rows of others, by instance_id.
            held: of these, the ones whose lock somebody holds now.
            now: monotonic seconds.
        """
        since = self._unheld_since
        self._unheld_since = {name: since.get(name, now) for name in pending if name not in held}
        return {name: pending[name] for name, began in self._unheld_since.items() if now - began >= UNHELD}


class TableWatch:
    """Counts them with the sweeps, at most once a minute.

    Args:
        clock: monotonic seconds.
    """

    def __init__(
        self,
        settings: Settings,
        tables: ResolvedTables,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._tables = tables
        self._metrics = metrics
        self._clock = clock
        self._unclaimed = UnclaimedRows()
        self._looked = float("-inf")
        self._of_tables: tuple[str, ...] = ()
        self._of_instance_ids: tuple[str, ...] = ()

    @property
    def attention(self) -> tuple[str, ...]:
        """Sentences for a person, each with its fix; none where all rows are somebody's."""
        return self._of_tables + self._of_instance_ids

    def look(self, connection: sa.Connection) -> None:
        """Counts anew, if it is time."""
        now = self._clock()
        if now - self._looked < LOOK:
            return
        self._looked = now
        self._of_tables = tuple(self._look_at_tables(connection))
        self._of_instance_ids = tuple(self._look_at_instance_ids(connection, now))

    def _look_at_tables(self, connection: sa.Connection) -> list[str]:
        files, database = self._tables.files, self._tables.database.name
        self._metrics.other_tables.clear()
        if files.max_id(connection):
            return []
        found = []
        for name in schema.older_versions(connection, database, files.name):
            try:
                pending = FilesTable(name, 0, files.max_attempts).census(connection, self._settings.targets).pending
            except sa.exc.DBAPIError as error:
                if error.connection_invalidated:
                    raise
                continue  # no permission, or another kind of table
            if pending:
                self._metrics.other_tables.labels(name).set(pending)
                found.append(
                    f"the table {files.name} is empty, and {name} has {pending} pending rows of these targets; "
                    f"fix: --table {name}, or DROP TABLE {files.name} if it was made by mistake"
                )
        return found

    def _look_at_instance_ids(self, connection: sa.Connection, now: float) -> list[str]:
        database, files = self._tables.database.name, self._tables.files
        known = [*self._settings.targets, *self._settings.other_targets]
        counted = files.pending_of_others(connection, known)
        pending = dict(sorted(counted.items(), key=lambda item: -item[1])[:_NAMES])
        held = {
            name
            for name in pending
            if connection.exec_driver_sql("SELECT IS_USED_LOCK(%s)", (lock_name(database, files.name, name),)).scalar()
            is not None
        }
        unclaimed = self._unclaimed.update(pending, held, now)
        self._metrics.unclaimed.clear()
        for name, count in unclaimed.items():
            self._metrics.unclaimed.labels(name).set(count)
        return [
            f"{count} pending rows of the instance_id {name!r} are taken by no service; fix: correct it in the rows, run a "
            f"service with --target {name}, or, where something else archives them, --other-targets {name}"
            for name, count in sorted(unclaimed.items())
        ]
