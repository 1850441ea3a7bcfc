"""`init-db`: the table for a new site, the index for cheap sweeps, the history."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import sqlalchemy as sa

from cdc_archiver.database import history, schema
from cdc_archiver.database.connections import Database, error_code
from cdc_archiver.errors import DatabaseUnavailable, NoSuchTable
from cdc_archiver.settings import Settings

_LOCK_WAIT: Final = 10
"""Seconds that it waits for a table in use."""
_LOCK_WAIT_IS_OVER: Final = 1205


def init_db(settings: Settings, *, dry_run: bool = False) -> Iterator[str]:
    """Makes what is missing; what is there stays as it is.

    Args:
        dry_run: only say the statements.

    Yields:
        A line for each thing that is there or was made; with ``dry_run``, a statement for each that is missing.

    Raises:
        DatabaseUnavailable: it does not answer.
        Misconfigured: the user may not, or the database does not exist.
    """
    database = Database(settings, answer_timeout=None)  # an index of a large table takes its time
    try:
        with database.connect() as connection:
            # While we wait for the table behind a long transaction, its writers wait behind us.
            connection.exec_driver_sql(f"SET SESSION lock_wait_timeout = {_LOCK_WAIT}")
            for what, statement in _parts(connection, database.name, settings.table):
                if not statement:
                    yield f"-- {what}: there"
                elif dry_run:
                    yield f"{statement};"
                else:
                    _execute(connection, what, statement)
                    yield f"-- {what}: created"
    finally:
        database.close()


def _execute(connection: sa.Connection, what: str, statement: str) -> None:
    try:
        connection.exec_driver_sql(statement)
    except sa.exc.OperationalError as error:
        if error_code(error) != _LOCK_WAIT_IS_OVER:
            raise
        raise DatabaseUnavailable(
            f"the {what} was not made: another session has kept the table in use for {_LOCK_WAIT} s",
            "try again when no long transaction is open on it",
        ) from error


def _parts(connection: sa.Connection, database: str, wanted: str) -> Iterator[tuple[str, str]]:
    """Each part with the statement that makes it; an empty one where it is there."""
    try:
        table = schema.resolve_table(connection, database, wanted)
        yield f"table {table}", ""
        has_index = schema.has_index(connection, database, table)
    except NoSuchTable:
        table = wanted or schema.DEFAULT_TABLE
        yield f"table {table}", schema.table_statement(schema.files_table(table))
        has_index = False
    yield f"index {schema.INDEX}", "" if has_index else schema.index_statement(table)
    has_history = sa.inspect(connection).has_table(history.NAME)
    yield f"history {history.NAME}", "" if has_history else schema.table_statement(history.TABLE)
