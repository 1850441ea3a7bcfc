"""From a rows event to primary keys, and nothing else of the row: neither names nor other values can be believed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from pymysqlreplication.row_event import PartialUpdateRowsEvent, UpdateRowsEvent

from cdc_archiver.database.server import KeyColumn
from cdc_archiver.errors import Misconfigured
from cdc_archiver.events.pk_decoder import KEY_BYTES, Images

_BEFORE_BODY: Final = 20
"""Bytes of a packet before an event's body: one that says that all is well, and the event's header."""
_KINDS_MOST: Final = 100
"""Kinds of row images of one definition that are remembered; MINIMAL ones may have any columns."""


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
        self._columns: Any = None
        self._images: dict[tuple[int, bytes, bytes], Images] = {}

    def ids(self, event: Any) -> list[int]:
        """The keys, one for each row, in the event's order.

        Args:
            event: mysql-replication's WriteRowsEvent or UpdateRowsEvent.

        Raises:
            Unreadable: they cannot be had.
        """
        try:
            ordinal = self._ordinal(event)
            if (keys := self._step_over(event, ordinal)) is not None:
                return keys
            return self._decode(event, ordinal)
        except Unreadable:
            raise
        except Exception as error:
            # Whatever the decoder stumbled over, that row must not stop the ones behind it.
            raise Unreadable(f"{type(error).__name__} while a row was decoded: {error}") from error

    def doubt(self) -> str:
        """Why the keys read last may be others: once for each definition of the table; empty where there is no doubt."""
        doubt, self._doubt = self._doubt, ""
        return doubt

    def _step_over(self, event: Any, ordinal: int) -> list[int] | None:
        """The keys without the rest of the rows; None where that does not work."""
        # A partial update has pieces of JSON for columns; an event that is not complete is not to be read.
        if isinstance(event, PartialUpdateRowsEvent) or not event.complete:
            return None
        columns = event.columns
        if columns is not self._columns:  # another definition, or the same one described again
            self._columns = columns
            self._images.clear()
        before = event.columns_present_bitmap
        after = event.columns_present_bitmap2 if isinstance(event, UpdateRowsEvent) else b""
        images = self._images.get((ordinal, before, after))
        if images is None:
            if event.number_of_columns != len(columns):
                return None
            if len(self._images) >= _KINDS_MOST:
                self._images.clear()
            images = Images(columns, (before, after) if after else (before,), ordinal)
            self._images[ordinal, before, after] = images
        # Past the library's cursor, which stays where the rows begin: it may be asked for them yet.
        packet = event.packet
        body = packet.get_all_data()[_BEFORE_BODY + packet.read_bytes : _BEFORE_BODY + event.event_size]
        return images.keys(body) if body else None  # empty: somebody has asked the library for the rows already

    def _decode(self, event: Any, ordinal: int) -> list[int]:
        """The keys out of whole rows, as the library reads them."""
        column = event.columns[ordinal]
        name = column.name or f"UNKNOWN_COL{ordinal}"
        # A MINIMAL row image has the key in the row before an UPDATE and leaves it out of the row after.
        if isinstance(event, UpdateRowsEvent):
            values = [
                row["before_values"][name] if row["after_values"][name] is None else row["after_values"][name]
                for row in event.rows
            ]
        else:
            values = [row["values"][name] for row in event.rows]
        if event.packet.read_bytes != event.event_size:
            raise Unreadable("its rows do not end where the event does")
        for index, value in enumerate(values):
            if not isinstance(value, int):
                raise Unreadable(f"a row has {value!r} where its primary key should be")
            if value < 0:
                # Without FULL metadata an unsigned key loses its sign; a key that counts up is never negative.
                values[index] = value + (1 << 8 * KEY_BYTES[column.type])
        return values

    def _ordinal(self, event: Any) -> int:
        """The key's place among the columns, an integer's."""
        columns = event.columns
        name = event.primary_key
        if name and isinstance(name, str):
            ordinal = next(number for number, column in enumerate(columns) if column.name == name)
        else:
            ordinal = self._asked_ordinal(event)
        kind = columns[ordinal].type
        if kind not in KEY_BYTES:
            raise Unreadable(f"the primary key of its rows is no integer (type {kind})")
        return ordinal

    def _asked_ordinal(self, event: Any) -> int:
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
        if key.ordinal >= len(columns) or columns[key.ordinal].type not in KEY_BYTES:
            return _Verdict(why_not="the table was altered since, and where its primary key was is not known")
        if key.columns != len(columns):
            # One sweep settles it: events of this definition are older than the ALTER, which is older than this question.
            # Or nothing is wrong, and the table has hidden columns.
            self._doubt = f"a row has {len(columns)} columns and the table now {key.columns}: it was altered meanwhile"
        return _Verdict(ordinal=key.ordinal)
