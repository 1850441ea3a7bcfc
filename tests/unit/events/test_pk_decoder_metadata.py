"""Keys out of events that real servers make only when a stream lags behind an ALTER, or never."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from pymysqlreplication.constants import FIELD_TYPE

from cdc_archiver.database.server_features import KeyColumn
from cdc_archiver.errors import DatabaseUnavailable, Misconfigured
from cdc_archiver.events.pk_decoder import PrimaryKeyDecoder, UndecodableEvent

INT, TEXT = FIELD_TYPE.LONG, FIELD_TYPE.VARCHAR


class Catalogue:
    """information_schema: what it says now, and how often it was asked."""

    def __init__(self, ordinal: int, columns: int) -> None:
        self.answer: KeyColumn | Exception = KeyColumn("files", "pysmurf_files", "id", ordinal, columns)
        self.asked = 0

    def __call__(self) -> KeyColumn:
        self.asked += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def event(table_id: int, types: list[int], *rows: list[Any], names: list[str] | None = None, key: str = "") -> Any:
    """An insert's event, with names where the metadata is FULL; whole rows are all that can be had of it."""
    columns = [SimpleNamespace(type=kind, name=names[n] if names else None) for n, kind in enumerate(types)]
    keys = names or [f"UNKNOWN_COL{n}" for n in range(len(types))]
    values = [{"values": dict(zip(keys, row, strict=True))} for row in rows]
    return SimpleNamespace(
        table_id=table_id,
        columns=columns,
        primary_key=key,
        rows=values,
        complete=False,
        packet=SimpleNamespace(read_bytes=30),
        event_size=30,
    )


def test_one_look_up_serves_all_events_of_one_definition() -> None:
    catalogue = Catalogue(ordinal=0, columns=2)
    keys = PrimaryKeyDecoder(catalogue)
    assert keys.ids(event(7, [INT, TEXT], [1, "a"], [2, "b"])) == [1, 2]
    assert keys.ids(event(7, [INT, TEXT], [3, "c"])) == [3]
    assert catalogue.asked == 1
    keys.ids(event(8, [INT, TEXT], [4, "d"]))
    assert catalogue.asked == 2, "a new table id is a new definition"
    assert keys.take_doubt() == ""


def test_full_metadata_needs_no_look_up() -> None:
    catalogue = Catalogue(ordinal=0, columns=2)
    found = PrimaryKeyDecoder(catalogue).ids(event(7, [TEXT, INT], ["a", 5], names=["path", "row_id"], key="row_id"))
    assert found == [5]
    assert catalogue.asked == 0


def test_an_event_older_than_an_alter_is_decoded_with_a_doubt_that_is_reported_once() -> None:
    """Two columns in the event, three in the table: whatever was in doubt, one sweep finds."""
    keys = PrimaryKeyDecoder(Catalogue(ordinal=0, columns=3))
    assert keys.ids(event(7, [INT, TEXT], [1, "a"])) == [1]
    assert "2 columns" in keys.take_doubt()
    assert keys.ids(event(7, [INT, TEXT], [2, "b"])) == [2]
    assert keys.take_doubt() == ""


def test_an_event_whose_key_was_in_another_column_is_unreadable_and_looked_up_once() -> None:
    catalogue = Catalogue(ordinal=1, columns=3)
    keys = PrimaryKeyDecoder(catalogue)
    for row in ([1, "a"], [2, "b"]):
        with pytest.raises(UndecodableEvent, match="altered"):
            keys.ids(event(7, [INT, TEXT], row))
    assert catalogue.asked == 1


def test_a_table_that_is_gone_makes_its_last_events_unreadable() -> None:
    catalogue = Catalogue(ordinal=0, columns=2)
    catalogue.answer = Misconfigured("the table is not there")
    keys = PrimaryKeyDecoder(catalogue)
    with pytest.raises(UndecodableEvent, match="not there"):
        keys.ids(event(7, [INT, TEXT], [1, "a"]))


def test_a_look_up_without_an_answer_is_repeated() -> None:
    catalogue = Catalogue(ordinal=0, columns=2)
    answer = catalogue.answer
    catalogue.answer = DatabaseUnavailable("away")
    keys = PrimaryKeyDecoder(catalogue)
    with pytest.raises(UndecodableEvent, match="away"):
        keys.ids(event(7, [INT, TEXT], [1, "a"]))
    catalogue.answer = answer
    assert keys.ids(event(7, [INT, TEXT], [2, "b"])) == [2]


@pytest.mark.parametrize("value", [None, "text", 1.5, b"\x01"])
def test_a_row_without_an_integer_for_its_key_is_unreadable(value: object) -> None:
    with pytest.raises(UndecodableEvent, match="primary key"):
        PrimaryKeyDecoder(Catalogue(ordinal=0, columns=1)).ids(event(7, [INT], [1], [value]))


@pytest.mark.parametrize(
    ("kind", "shown", "value"),
    [(FIELD_TYPE.LONG, -1, 2**32 - 1), (FIELD_TYPE.INT24, -2, 2**24 - 2), (FIELD_TYPE.LONGLONG, -1, 2**64 - 1)],
)
def test_an_unsigned_key_gets_its_value_back(kind: int, shown: int, value: int) -> None:
    assert PrimaryKeyDecoder(Catalogue(ordinal=0, columns=1)).ids(event(7, [kind], [shown])) == [value]


def test_rows_that_do_not_end_where_their_event_does_are_unreadable() -> None:
    """The library goes on behind the end, into the checksum."""
    longer = event(7, [INT, TEXT], [1, "a"])
    longer.packet.read_bytes += 3
    with pytest.raises(UndecodableEvent, match="end"):
        PrimaryKeyDecoder(Catalogue(ordinal=0, columns=2)).ids(longer)
