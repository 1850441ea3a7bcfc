"""From a rows event to primary keys, and nothing else of the row: neither names nor other values can be believed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from pymysqlreplication.constants import FIELD_TYPE
from pymysqlreplication.row_event import UpdateRowsEvent

from cdc_archiver.database.server import KeyColumn
from cdc_archiver.errors import Misconfigured

_BITS: Final = MappingProxyType(
    {FIELD_TYPE.TINY: 8, FIELD_TYPE.SHORT: 16, FIELD_TYPE.INT24: 24, FIELD_TYPE.LONG: 32, FIELD_TYPE.LONGLONG: 64}
)


class Unreadable(Exception):
    """A rows event whose keys cannot be had; its text says why."""


@dataclass(frozen=True, slots=True)
class _Verdict:
    """What is known of one definition of the table: where the key is, or why it cannot be found."""

    ordinal: int = 0
    why_not: str = ""


class KeyReader:
    """Takes the primary keys out of rows events of one table.

    With ``binlog_row_metadata = FULL`` the event itself names its key. Otherwise the key's place is asked of
    information_schema, once for each table id: the server gives a new one to each definition of the table, so an ALTER in
    mid-stream is noticed by it. What information_schema says is of now, and the event may be older.

    Args:
        ask: looks the key up.
    """

    def __init__(self, ask: Callable[[], KeyColumn]) -> None:
        self._ask = ask
        self._table_id: int | None = None
        self._verdict = _Verdict()
        self._doubt = ""

    def ids(self, event: Any) -> list[int]:
        """The keys, one for each row, in the event's order.

        Args:
            event: mysql-replication's WriteRowsEvent or UpdateRowsEvent.

        Raises:
            Unreadable: they cannot be had.
        """
        try:
            name, bits = self._key(event)
            # A MINIMAL row image has the key in the row before an UPDATE and leaves it out of the row after.
            if isinstance(event, UpdateRowsEvent):
                values = [
                    row["before_values"][name] if row["after_values"][name] is None else row["after_values"][name]
                    for row in event.rows
                ]
            else:
                values = [row["values"][name] for row in event.rows]
        except Unreadable:
            raise
        except Exception as error:
            # Whatever the decoder stumbled over, that row must not stop the ones behind it.
            raise Unreadable(f"{type(error).__name__} while a row was decoded: {error}") from error
        for index, value in enumerate(values):
            if not isinstance(value, int):
                raise Unreadable(f"a row has {value!r} where its primary key should be")
            if value < 0:
                # Without FULL metadata an unsigned key loses its sign; a key that counts up is never negative.
                values[index] = value + (1 << bits)
        return values

    def doubt(self) -> str:
        """Why the keys read last may be others: once for each definition of the table; empty where there is no doubt."""
        doubt, self._doubt = self._doubt, ""
        return doubt

    def _key(self, event: Any) -> tuple[str, int]:
        columns = event.columns
        name = event.primary_key
        if name and isinstance(name, str):
            column = next(column for column in columns if column.name == name)
        else:
            ordinal = self._ordinal(event)
            column = columns[ordinal]
            name = column.name or f"UNKNOWN_COL{ordinal}"
        bits = _BITS.get(column.type)
        if bits is None:
            raise Unreadable(f"the primary key of its rows is no integer (type {column.type})")
        return name, bits

    def _ordinal(self, event: Any) -> int:
        if event.table_id != self._table_id:
            self._verdict = self._judge(event)
            self._table_id = event.table_id
        if self._verdict.why_not:
            raise Unreadable(self._verdict.why_not)
        return self._verdict.ordinal

    def _judge(self, event: Any) -> _Verdict:
        try:
            key = self._ask()
        except Misconfigured as error:
            return _Verdict(why_not=str(error))
        columns = event.columns
        if key.ordinal >= len(columns) or columns[key.ordinal].type not in _BITS:
            return _Verdict(why_not="the table was altered since, and where its primary key was is not known")
        if key.columns != len(columns):
            # One sweep settles it: events of this definition are older than the ALTER, which is older than this question.
            # Or nothing is wrong, and the table has hidden columns.
            self._doubt = f"a row has {len(columns)} columns and the table now {key.columns}: it was altered meanwhile"
        return _Verdict(ordinal=key.ordinal)
