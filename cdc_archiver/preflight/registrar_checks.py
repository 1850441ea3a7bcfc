"""Checks what the registrar needs: its address, its spool, the files, and the permissions of its account. Changes nothing."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import sqlalchemy as sa

from cdc_archiver.database import schema, side_tables
from cdc_archiver.database.connections import Database, error_code
from cdc_archiver.database.server_features import identify
from cdc_archiver.errors import ArchiverError
from cdc_archiver.preflight.findings import Finding, Report, failure, finding_from_error, ok, run_check, warning
from cdc_archiver.registrar.lifecycle import source_of, spool_path
from cdc_archiver.registrar.listener import RECEIVE_BUFFER, enlarge_buffer, listening_socket
from cdc_archiver.registrar.spool_reading import is_in_use
from cdc_archiver.registrar.whole_file import kind_of
from cdc_archiver.settings import Settings
from cdc_archiver.text import escape_unprintable

_VOLATILE: Final = {"tmpfs": "a reboot", "ramfs": "a reboot", "overlay": "the container"}
_DENIED: Final = {1142, 1143}
_SIDE_TABLES: Final = (side_tables.REGISTERED, side_tables.REGISTRARS, side_tables.REGISTRAR_LOSSES)


def check_registrar(settings: Settings) -> Report:
    """Runs all checks. Never raises."""
    database = Database(settings)
    try:
        return Report(
            (
                *run_check("settings", lambda: _check_files(settings)),
                *run_check("messages", lambda: _check_address(settings)),
                *run_check("spool", lambda: _check_spool(settings)),
                *run_check("database", lambda: _check_database(database, settings)),
            )
        )
    finally:
        database.close()


def _check_files(settings: Settings) -> Iterator[Finding]:
    source = source_of(settings)
    root = source.source_root
    try:
        with os.scandir(root) as entries:
            empty = next(entries, None) is None
    except OSError as error:
        yield failure(
            "files",
            f"the source root {escape_unprintable(root)} cannot be read: {error.strerror}",
            "--source-root DIRECTORY  # the one that contains all files, readable for this user",
        )
        return
    if empty:
        yield warning(
            "files", f"the source root {root} is empty", f"mount {shlex.quote(root)}  # if a disk belongs there"
        )
    else:
        yield ok("files", f"rows of {source.target[0]}, files below {root}")


def _check_address(settings: Settings) -> Iterator[Finding]:
    where = f"{settings.udp_host}:{settings.udp_port} (UDP)"
    try:
        made = listening_socket(settings.udp_host, settings.udp_port)
    except ArchiverError as error:
        if is_in_use(spool_path(settings)):
            yield ok("messages", f"a registrar with this spool runs, so {where} is taken")
        else:
            yield finding_from_error("messages", error)
        return
    with made:
        size = enlarge_buffer(made)
    if size < RECEIVE_BUFFER:
        yield warning(
            "messages",
            f"the receive buffer is {size // 2} bytes, {max(1, size // 2304)} messages of 1 kB: what a busy moment has no "
            "room for is lost",
            f"sysctl -w net.core.rmem_max={RECEIVE_BUFFER}  # and in /etc/sysctl.d/",
        )
    else:
        yield ok("messages", f"{where} is free; the receive buffer is {size // 2} bytes")


def _check_spool(settings: Settings) -> Iterator[Finding]:
    path = spool_path(settings)
    directory = next(place for place in path.absolute().parents if place.is_dir())
    kind = kind_of(os.stat(directory).st_dev)
    if kind in _VOLATILE:
        yield failure(
            "spool",
            f"{path} is on a {kind}: messages that wait there do not survive {_VOLATILE[kind]}",
            "--spool FILE  # on a disk; in a container, on a volume of its own",
        )
    elif not os.access(directory, os.W_OK | os.X_OK) and not _is_writable(path):
        yield failure(
            "spool", f"this user may not write to {directory}", f"chown {os.geteuid()} {shlex.quote(str(directory))}"
        )
    elif (free := shutil.disk_usage(directory).free) < settings.spool_max and not path.exists():
        yield warning(
            "spool",
            f"{directory} has {free // 1024**2} MiB free, less than spool_max ({settings.spool_max // 1024**2} MiB)",
            f"--spool-max {max(1, free // 2 // 1024**2)}M  # or another disk: --spool FILE",
        )
    else:
        yield ok("spool", f"{path}, on {kind}")


def _is_writable(path: Path) -> bool:
    return path.exists() and os.access(path, os.W_OK)


def _check_database(database: Database, settings: Settings) -> Iterator[Finding]:
    with database.connect() as connection:
        server = identify(connection)
        yield ok("database", f"{server} at {database.address}, database {database.name}, as {server.account}")
        name = schema.resolve_table(connection, database.name, settings.table)
        schema.require_columns(connection, database.name, name)
        wanted: list[tuple[str, tuple[str, ...]]] = [(name, ("SELECT", "INSERT"))]
        wanted += [(table.name, ("SELECT", "INSERT", "UPDATE", "DELETE")) for table in _SIDE_TABLES]
        for table, privileges in wanted:
            yield _grants(connection, f"`{database.name}`.`{table}`", table, privileges, server.account)
        yield from _zone(connection)


def _grants(
    connection: sa.Connection, full_name: str, table: str, privileges: tuple[str, ...], account: str
) -> Finding:
    (column, *_) = (
        (found["name"] for found in sa.inspect(connection).get_columns(table)) if _exists(connection, table) else ("",)
    )
    if not column:
        return failure(
            "tables", f"there is no table {table}, or {account} may not see it", _fix(full_name, privileges, account)
        )
    # EXPLAIN needs the privileges of the statement and executes nothing.
    trials = {
        "SELECT": f"SELECT 1 FROM {full_name} LIMIT 0",
        "INSERT": f"EXPLAIN INSERT INTO {full_name} (`{column}`) SELECT 1 FROM DUAL WHERE 1 = 0",
        "UPDATE": f"EXPLAIN UPDATE {full_name} SET `{column}` = `{column}` WHERE 1 = 0",
        "DELETE": f"EXPLAIN DELETE FROM {full_name} WHERE 1 = 0",
    }
    missing = [privilege for privilege in privileges if _number(connection, trials[privilege]) in _DENIED]
    if missing:
        return failure(
            "grants", f"{account} lacks {', '.join(missing)} on the table {table}", _fix(full_name, privileges, account)
        )
    return ok("grants", f"{', '.join(privileges)} on the table {table}")


def _fix(full_name: str, privileges: tuple[str, ...], account: str) -> str:
    return f"GRANT {', '.join(privileges)} ON {full_name} TO {account}  -- a missing side table: cdc-archiver init-db"


def _exists(connection: sa.Connection, table: str) -> bool:
    return table in sa.inspect(connection).get_table_names()


def _number(connection: sa.Connection, statement: str) -> int:
    """The server's error number for a statement that changes nothing; 0 where the server accepts it."""
    try:
        connection.exec_driver_sql(statement).close()
    except sa.exc.DBAPIError as error:
        if error.connection_invalidated:
            raise
        return error_code(error)
    return 0


def _zone(connection: sa.Connection) -> Iterator[Finding]:
    winter, summer = connection.exec_driver_sql(
        "SELECT UNIX_TIMESTAMP('2026-01-15 12:00:00'), UNIX_TIMESTAMP('2026-07-15 12:00:00')"
    ).one()
    if summer - winter != 181 * 86400:
        yield warning(
            "clock",
            "the time zone of the database changes its clocks: times of the hour that is skipped cannot be written",
            "--db-time-zone +00:00  # for the registrar and for the archiver, from the same moment on",
        )
