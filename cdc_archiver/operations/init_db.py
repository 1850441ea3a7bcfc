"""`init-db`: the table for a new site, the index for cheap sweeps, the history."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy.dialects import mysql
from sqlalchemy.schema import CreateTable

from cdc_archiver.database import history, schema
from cdc_archiver.database.engine import Database
from cdc_archiver.errors import Misconfigured
from cdc_archiver.settings import Settings


def init_db(settings: Settings, *, dry_run: bool = False) -> Iterator[str]:
    """Makes what is missing; what is there stays as it is.

    Args:
        dry_run: only say the statements.

    Yields:
        A line for each thing that is there or was made, or with ``dry_run`` each statement.

    Raises:
        DatabaseUnavailable: it does not answer.
        Misconfigured: the user may not, or the database does not exist.
    """
    database = Database(settings)
    with database.connect() as connection:
        try:
            table = schema.resolve_table(connection, database.name, settings.table)
            yield f"-- table {table}: there"
        except Misconfigured:
            table = settings.table or schema.DEFAULT_TABLE
            if dry_run:
                yield f"{str(CreateTable(schema.files_table(table)).compile(dialect=mysql.dialect())).strip()};"
            else:
                schema.create_files_table(connection, table)
                yield f"-- table {table}: created"
        if dry_run:
            yield f"{schema.index_statement(table)};"
            yield f"{str(CreateTable(history.TABLE).compile(dialect=mysql.dialect())).strip()};"
            return
        if schema.has_index(connection, database.name, table):
            yield "-- index for sweeps: there"
        else:
            connection.exec_driver_sql(schema.index_statement(table))
            yield f"-- index {schema.INDEX}: created"
        trouble = history.open_history(connection)
        yield f"-- history {history.NAME}: {trouble or 'ready'}"
