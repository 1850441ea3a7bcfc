"""Before anything starts: the table of files, the history and the archive are found."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from dataclasses import dataclass

import structlog

from cdc_archiver.database import schema
from cdc_archiver.database.archives import KnownArchive, known_archive
from cdc_archiver.database.connections import Database
from cdc_archiver.database.files_table import FilesTable
from cdc_archiver.database.history import History
from cdc_archiver.database.side_tables import ARCHIVES, open_side_table
from cdc_archiver.errors import Misconfigured
from cdc_archiver.settings import Settings
from cdc_archiver.transfer.staging import Archive

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class ResolvedTables:
    """The tables in the database, as found at the start.

    Attributes:
        known: what the database knows of the archive in data_dir.
    """

    database: Database
    files: FilesTable
    history: History
    known: KnownArchive


def resolve_tables(settings: Settings) -> ResolvedTables:
    """Finds the table and makes the history ready.

    Raises:
        DatabaseUnavailable: it does not answer, or takes no writes.
        Misconfigured: there is no such table, or not as it has to be.
    """
    database = Database(settings)
    try:
        return _resolve(settings, database)
    except BaseException:
        database.close()
        raise


def _resolve(settings: Settings, database: Database) -> ResolvedTables:
    with database.connect() as connection:
        name = schema.resolve_table(connection, database.name, settings.table)
        schema.require_columns(connection, database.name, name)
        files = FilesTable(name, schema.path_width(connection, database.name, name), settings.max_attempts)
        files.pending(connection, settings.sources[0].target, 0, 0, 1)  # may we read it?
        files.require_writable(connection)
        for older in schema.older_versions(connection, database.name, name):
            waiting = FilesTable(older, 0, settings.max_attempts)
            if count := waiting.census(connection, settings.targets).pending:
                _log.warning("older_table_has_pending_files", table=older, files=count, archiving_from=name)
        history = History(name, settings.history_retention)
        history.open(connection)
        open_side_table(connection, ARCHIVES)  # what cannot be used, `check` names
        known = known_archive(connection, name, settings.targets, settings.data_dir)
    return ResolvedTables(database, files, history, known)


class Bootstrap:
    """:func:`resolve_tables` in a thread of its own, so that a silent database holds up nothing.

    :meth:`abandon` leaves the thread behind.
    """

    def __init__(self, settings: Settings) -> None:
        self._answer: Future[ResolvedTables] = Future()
        threading.Thread(target=self._run, args=(settings,), name="bootstrap", daemon=True).start()

    @property
    def ready(self) -> bool:
        """Whether there is an answer."""
        return self._answer.done()

    def result(self) -> ResolvedTables:
        """The answer; waits for it.

        Raises:
            DatabaseUnavailable: it does not answer.
            Misconfigured: a person must fix something.
        """
        return self._answer.result()

    def abandon(self) -> None:
        """Closes the database again when an answer comes."""
        self._answer.add_done_callback(lambda answer: None if answer.exception() else answer.result().database.close())

    def _run(self, settings: Settings) -> None:
        try:
            self._answer.set_result(resolve_tables(settings))
        except BaseException as error:
            self._answer.set_exception(error)


def archive_of(settings: Settings) -> Archive:
    """The archive that the settings describe.

    Raises:
        Misconfigured: they name no directory, or no source.
    """
    if settings.data_dir is None:
        raise Misconfigured("data_dir is not set", "--data-dir /data/… or CDC_ARCHIVER_DATA_DIR")
    if not settings.sources:
        raise Misconfigured("no target is set", "--target, or [[sources]] in the file of --config")
    archive = Archive(
        settings.data_dir, settings.min_free, staging_dir=settings.staging_dir, state_dir=settings.state_dir
    )
    archive.require_directory()
    return archive
