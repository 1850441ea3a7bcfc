"""`cdc-archiver init-db`: creates the table of a new site, the index for cheap sweeps, and the side tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Final

import sqlalchemy as sa
import typer

from cdc_archiver.database import history, schema, side_tables
from cdc_archiver.database.connections import Database, error_code
from cdc_archiver.errors import DatabaseUnavailable, ExitStatus, Misconfigured, NoSuchTable
from cdc_archiver.observe.logs import set_up_logs
from cdc_archiver.settings import Settings

HELP: Final = """
Create missing tables and the index.

These are the table of files, the index that keeps sweeps cheap, the history and the other side tables. Existing ones stay unchanged.

Where the database has a table or view named pysmurf_files…, or a history of one, init-db creates no table of files: the real one may
have another name now. --new-table creates one all the same.

Run it once, as a database user with CREATE and INDEX. Building the index of a large table takes a while; its writers go on
meanwhile. If a long transaction keeps the table in use, init-db gives up after ten seconds.

Exit status: 0 done; 2 wrong usage or configuration; 4 the database cannot be reached, or the table is in use.
"""

_EXAMPLE: Final = "'archiver'@'%'"
_LOCK_WAIT: Final = 10
"""Seconds to wait for a table in use."""
_LOCK_WAIT_TIMEOUT: Final = 1205
"""The server's error number."""


def init_db(
    settings: Settings,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the statements.")] = False,
    new_table: Annotated[
        bool, typer.Option("--new-table", help="Create an empty table of files alongside a similar one.")
    ] = False,
) -> ExitStatus:
    set_up_logs(settings.log_format, settings.log_level)
    for line in create_missing(settings, dry_run=dry_run, new_table=new_table):
        print(line)
    return ExitStatus.DONE


def create_missing(settings: Settings, *, dry_run: bool = False, new_table: bool = False) -> Iterator[str]:
    """Creates what is missing; what exists stays unchanged.

    Args:
        dry_run: only yield the statements.
        new_table: whether to create the table of files where a similar one or its history exists.

    Yields:
        A line for each object, existing or created, and the grants on the side tables; with ``dry_run``, the statement for each
        missing one.

    Raises:
        DatabaseUnavailable: the database does not answer, or the table is in use.
        Misconfigured: the user lacks a privilege, the database does not exist, or the table of files may have another name.
    """
    database = Database(settings, answer_timeout=None)  # building the index of a large table takes its time
    try:
        with database.connect() as connection:
            # While we wait for the table behind a long transaction, its writers wait behind us.
            connection.exec_driver_sql(f"SET SESSION lock_wait_timeout = {_LOCK_WAIT}")
            for name, statement in _objects(connection, database.name, settings.table, new_table=new_table):
                if not statement:
                    yield f"-- {name}: exists"
                elif dry_run:
                    yield f"{statement};"
                else:
                    _execute(connection, name, statement)
                    yield f"-- {name}: created"
            if not dry_run:
                yield f"-- grants on the side tables, where {_EXAMPLE} stands for the archiver's account:"
                for grant in side_tables.grants(database.name, _EXAMPLE):
                    yield f"-- {grant};"
    finally:
        database.close()


def _execute(connection: sa.Connection, name: str, statement: str) -> None:
    try:
        connection.exec_driver_sql(statement)
    except sa.exc.OperationalError as error:
        if error_code(error) != _LOCK_WAIT_TIMEOUT:
            raise
        raise DatabaseUnavailable(
            f"the {name} was not created: another session kept the table in use for {_LOCK_WAIT} s",
            "end the long transaction (SHOW PROCESSLIST), then: cdc-archiver init-db",
        ) from error


def _objects(connection: sa.Connection, database: str, wanted: str, *, new_table: bool) -> Iterator[tuple[str, str]]:
    """Each table and index with the statement that creates it; an empty statement if it exists."""
    try:
        table = schema.resolve_table(connection, database, wanted)
        yield f"table {table}", ""
        has_index = schema.has_index(connection, database, table)
    except NoSuchTable:
        table = wanted or schema.DEFAULT_TABLE
        if not new_table and (others := schema.traces(connection, database)):
            raise Misconfigured(
                f"init-db did not create the table {table}: the database {database} has {', '.join(others)}",
                "if the table of files has another name now, set --table to it, or rename it back; for a new, empty table: "
                "cdc-archiver init-db --new-table",
            ) from None
        yield f"table {table}", schema.table_statement(schema.files_table(table))
        has_index = False
    yield f"index {schema.INDEX}", "" if has_index else schema.index_statement(table)
    there = set(sa.inspect(connection).get_table_names())
    yield f"history {history.NAME}", "" if history.NAME in there else schema.table_statement(history.TABLE)
    for side in side_tables.ALL:
        yield f"side table {side.name}", "" if side.name in there else schema.table_statement(side)
