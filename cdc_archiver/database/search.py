"""Selects rows for an operator, by state, target, time, path; reads them page by page, so that a million take no memory."""

from __future__ import annotations

import heapq
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

import sqlalchemy as sa

from cdc_archiver.database.connections import Database
from cdc_archiver.database.files_table import FilesTable, Row, escape_like
from cdc_archiver.model import IGNORED_FROM, REFUSED_FROM

_PAGE: Final = 1000


class RowState(StrEnum):
    """The state of a file, derived from its row."""

    PENDING = "pending"
    QUARANTINED = "quarantined"
    REFUSED = "refused"
    IGNORED = "ignored"
    ARCHIVED = "archived"


NOT_ARCHIVED: Final = frozenset(RowState) - {RowState.ARCHIVED}


def state_of(row: Row, max_attempts: int) -> RowState:
    """The state of a row's file.

    Args:
        max_attempts: failed attempts from which a file is quarantined.
    """
    attempts = row.record.attempts
    if row.copied:
        return RowState.ARCHIVED
    if attempts >= IGNORED_FROM:
        return RowState.IGNORED
    if attempts >= REFUSED_FROM:
        return RowState.REFUSED
    return RowState.QUARANTINED if attempts >= max_attempts else RowState.PENDING


@dataclass(frozen=True, slots=True)
class Criteria:
    """Conditions on rows; an empty field is no condition.

    Attributes:
        ids, paths: the row has one of these. A path may contain ``*``, which matches ``/`` as well, and ``?``.
        part: the path contains this text.
        has_failed_attempts: only rows with failed attempts.
        since, until: limits of the column timestamp, aware.
    """

    ids: tuple[int, ...] = ()
    paths: tuple[str, ...] = ()
    part: str = ""
    states: frozenset[RowState] = frozenset()
    has_failed_attempts: bool = False
    targets: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()
    pub_ids: tuple[str, ...] = ()
    since: datetime | None = None
    until: datetime | None = None

    @property
    def names_files(self) -> bool:
        """Whether single files are named."""
        return bool(self.ids or self.paths)

    def conditions(self, files: FilesTable) -> list[sa.ColumnElement[bool]]:
        """The criteria as SQL conditions."""
        found: list[sa.ColumnElement[bool]] = []
        timestamp = files.column("timestamp")
        named = [_equal("path", path) if not is_pattern(path) else _alike("path", _like(path)) for path in self.paths]
        if self.ids:
            named.append(files.column("id").in_(self.ids))
        if named:
            found.append(sa.or_(*named))
        if self.part:
            found.append(_alike("path", f"%{escape_like(self.part)}%"))
        for name, values in (("instance_id", self.targets), ("action", self.actions), ("pub_id", self.pub_ids)):
            if values:
                plain = [value for value in values if value.isascii()]
                found.append(
                    sa.or_(
                        files.column(name).in_(plain), *(_equal(name, value) for value in values if not value.isascii())
                    )
                )
        if self.since is not None:
            found.append(timestamp >= self.since.replace(tzinfo=None))
        if self.until is not None:
            found.append(timestamp < self.until.replace(tzinfo=None))
        if self.states:
            found.append(sa.or_(*(_condition(files, state) for state in sorted(self.states))))
        if self.has_failed_attempts:
            found.append(sa.func.coalesce(files.column("failed_copy_attempts"), 0) > 0)
        return found

    def matches(self, row: Row) -> bool:
        """Whether a row that the database found really has one of the paths: it may compare without case, a file system does not."""
        if not self.paths or row.record.id in self.ids:
            return True
        return any(_matches_path(row.record.path, path) for path in self.paths)


def walk(
    database: Database,
    files: FilesTable,
    criteria: Criteria,
    *,
    newest_first: bool = True,
    after: int | None = None,
    limit: int | None = None,
) -> Iterator[Row]:
    """Yields the rows, read page by page; no connection is held while the caller works.

    Args:
        after: only rows beyond this id, in the requested order.
        limit: maximum number of rows.
    """
    branches = (
        _pages(database, files, branch, newest_first=newest_first, after=after, first=min(_PAGE, limit or _PAGE))
        for branch in _branches(files, criteria)
    )
    rows = heapq.merge(*branches, key=lambda row: row.record.id, reverse=newest_first)
    # Two spellings of a target that the database considers equal find each row twice.
    once = (next(same) for _, same in itertools.groupby(rows, key=lambda row: row.record.id))
    yield from itertools.islice((row for row in once if criteria.matches(row)), limit)


def _branches(files: FilesTable, criteria: Criteria) -> list[list[sa.ColumnElement[bool]]]:
    """The conditions, split so that each part reads one range of the index of pending rows; `copied = 0 OR copied IS NULL` does not
    use the index, and neither do several targets."""
    conditions = criteria.conditions(files)
    if not criteria.states or RowState.ARCHIVED in criteria.states:
        return [conditions]
    copied, target = files.column("copied"), files.column("instance_id")
    plain = len(criteria.targets) > 1 and all(name.isascii() for name in criteria.targets)
    names = criteria.targets if plain else ()
    return [
        [*conditions, waits, *of_target]
        for waits in (copied == 0, copied.is_(None))
        for of_target in ([[target == name] for name in names] or [[]])
    ]


def _pages(
    database: Database,
    files: FilesTable,
    conditions: list[sa.ColumnElement[bool]],
    *,
    newest_first: bool,
    after: int | None,
    first: int,
) -> Iterator[Row]:
    """Yields rows page by page. The first page is as small as the caller's limit: to fill one, a server may read to the table's end."""
    id_ = files.column("id")
    size = first
    while True:
        beyond = [] if after is None else [id_ < after if newest_first else id_ > after]
        with database.connect() as connection:
            rows = files.rows(connection, *conditions, *beyond, newest_first=newest_first, limit=size)
        yield from rows
        if len(rows) < size:
            return
        size = _PAGE
        after = rows[-1].record.id


def waiting_targets(connection: sa.Connection, files: FilesTable) -> list[str]:
    """Every instance_id with a row that is not archived; each query reads one range of the index of pending rows."""
    copied, target = files.column("copied"), files.column("instance_id")
    names = {
        name
        for waits in (copied == 0, copied.is_(None))
        for name in connection.execute(sa.select(target).where(waits).distinct()).scalars()
        if name is not None
    }
    return sorted(name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else str(name) for name in names)


def is_id(text: str) -> bool:
    """Whether a text is a row's id rather than a part of a path."""
    return text.isascii() and text.isdigit() and len(text) < 20 and int(text) < 2**63


def _equal(name: str, value: str) -> sa.ColumnElement[bool]:
    column, comparable_value = _comparable(name, value)
    return column == comparable_value


def _alike(name: str, pattern: str) -> sa.ColumnElement[bool]:
    column, comparable_pattern = _comparable(name, pattern)
    return column.like(comparable_pattern, escape="!")


def _comparable(name: str, value: str) -> tuple[sa.ColumnElement[Any], str | bytes]:
    """A column and a value that can be compared: a Latin-1 table rejects a text that it cannot hold."""
    if value.isascii():
        return sa.column(name, sa.String()), value
    try:
        value.encode()
    except UnicodeEncodeError:  # invalid UTF-8, which only a binary column holds
        binary: sa.ColumnElement[Any] = sa.literal_column(f"CAST(`{name}` AS BINARY)", sa.String())
        return binary, value.encode("utf-8", "surrogateescape")
    return sa.literal_column(f"CONVERT(`{name}` USING utf8mb4)", sa.String()), value


def _condition(files: FilesTable, state: RowState) -> sa.ColumnElement[bool]:
    copied, attempts = files.column("copied"), sa.func.coalesce(files.column("failed_copy_attempts"), 0)
    waits = sa.or_(copied == 0, copied.is_(None))
    limit = files.max_attempts
    match state:
        case RowState.ARCHIVED:
            return copied != 0
        case RowState.PENDING:
            return sa.and_(waits, attempts < limit)
        case RowState.QUARANTINED:
            return sa.and_(waits, attempts >= limit, attempts < REFUSED_FROM)
        case RowState.REFUSED:
            return sa.and_(waits, attempts >= REFUSED_FROM, attempts < IGNORED_FROM)
        case RowState.IGNORED:
            return sa.and_(waits, attempts >= IGNORED_FROM)


def is_pattern(path: str) -> bool:
    """Whether a path typed by an operator may match several."""
    return "*" in path or "?" in path


def _like(pattern: str) -> str:
    return escape_like(pattern).replace("*", "%").replace("?", "_")


def _matches_path(path: str, wanted: str) -> bool:
    if not is_pattern(wanted):
        return path == wanted
    regular = re.escape(wanted).replace(r"\*", ".*").replace(r"\?", ".")
    return re.fullmatch(regular, path, re.DOTALL) is not None
