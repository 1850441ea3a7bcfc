"""Keys found by stepping over the other columns, compared with those of the library, which decodes all."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pymysql.protocol import MysqlPacket
from pymysqlreplication.constants import BINLOG, FIELD_TYPE
from pymysqlreplication.packet import BinLogPacketWrapper
from pymysqlreplication.row_event import TableMapEvent, UpdateRowsEvent, WriteRowsEvent

from cdc_archiver.database.server_features import KeyColumn
from cdc_archiver.events.pk_decoder import PrimaryKeyDecoder, RowsLayout

_CONTROL = SimpleNamespace(charset="utf8", _get_dbms=lambda: "mysql")
_INTEGERS = {FIELD_TYPE.TINY: 1, FIELD_TYPE.SHORT: 2, FIELD_TYPE.INT24: 3, FIELD_TYPE.LONG: 4, FIELD_TYPE.LONGLONG: 8}
_TABLE_ID = (77).to_bytes(6, "little")


@dataclass(frozen=True)
class Column:
    """A column, as a table map describes it, and what may stand in it."""

    kind: int
    metadata: bytes
    values: st.SearchStrategy[bytes]


def fixed(kind: int, size: int, metadata: bytes = b"") -> Column:
    return Column(kind, metadata, st.binary(min_size=size, max_size=size))


def with_length(kind: int, length: int, metadata: bytes, most: int) -> Column:
    values = st.one_of(st.binary(max_size=min(most, 40)), st.sampled_from([b"x" * most, b"x" * (most // 2)]))
    return Column(kind, metadata, values.map(lambda value: len(value).to_bytes(length, "little") + value))


def digits_of(size: int) -> st.SearchStrategy[bytes]:
    length = (0, 1, 1, 2, 2, 3, 3, 4, 4, 4)[size]
    return st.integers(0, 10**size - 1).map(lambda value: value.to_bytes(length, "big"))


def decimal(precision: int, decimals: int) -> Column:
    """Nine digits are four bytes; the first bit is the sign's."""
    groups = []
    for digits, whole_first in ((precision - decimals, False), (decimals, True)):
        rest = [digits % 9] if digits % 9 else []
        groups += [9] * (digits // 9) + rest if whole_first else rest + [9] * (digits // 9)
    parts = [digits_of(size) for size in groups]
    values = st.tuples(*parts).map(b"".join).map(lambda value: bytes([value[0] | 0x80]) + value[1:])
    return Column(FIELD_TYPE.NEWDECIMAL, bytes([precision, decimals]), values)


def fraction(kind: int, size: int, digits: int) -> Column:
    zero = bytes((digits + 1) // 2)
    return Column(kind, bytes([digits]), st.binary(min_size=size, max_size=size).map(lambda value: value + zero))


def char(most: int) -> Column:
    metadata = bytes([0xFE ^ ((most & 0x300) >> 4), most & 0xFF])
    return with_length(FIELD_TYPE.STRING, 1 if most < 256 else 2, metadata, most)


EVERY = [
    *(fixed(kind, size) for kind, size in _INTEGERS.items()),
    fixed(FIELD_TYPE.FLOAT, 4, b"\x04"),
    fixed(FIELD_TYPE.DOUBLE, 8, b"\x08"),
    fixed(FIELD_TYPE.YEAR, 1),
    fixed(FIELD_TYPE.TIMESTAMP, 4),
    Column(FIELD_TYPE.DATE, b"", st.sampled_from([b"\x00\x00\x00", (2026 << 9 | 11 << 5 | 22).to_bytes(3, "little")])),
    *(fraction(FIELD_TYPE.TIME2, 3, digits) for digits in range(7)),
    *(fraction(FIELD_TYPE.TIMESTAMP2, 4, digits) for digits in range(7)),
    *(fraction(FIELD_TYPE.DATETIME2, 5, digits) for digits in range(7)),
    *(with_length(FIELD_TYPE.VARCHAR, 1, struct.pack("<H", most), most) for most in (1, 32, 255)),
    *(with_length(FIELD_TYPE.VARCHAR, 2, struct.pack("<H", most), most) for most in (256, 260, 65000)),
    *(char(most) for most in (1, 16, 255, 256, 1020)),
    *(with_length(FIELD_TYPE.BLOB, length, bytes([length]), 255) for length in (1, 2, 3, 4)),
    with_length(FIELD_TYPE.GEOMETRY, 4, b"\x04", 300),
    Column(FIELD_TYPE.JSON, b"\x04", st.sampled_from([b"\x02\x00\x00\x00\x04\x01", bytes(4)])),
    *(fixed(FIELD_TYPE.STRING, size, bytes([FIELD_TYPE.ENUM, size])) for size in (1, 2)),
    *(fixed(FIELD_TYPE.STRING, size, bytes([FIELD_TYPE.SET, size])) for size in (1, 2, 3, 4, 8)),
    *(fixed(FIELD_TYPE.BIT, (bits + 7) // 8, bytes([bits % 8, bits // 8])) for bits in (1, 7, 8, 9, 16, 63, 64)),
    *(decimal(digits, 0) for digits in range(1, 20)),
    *(decimal(digits, digits) for digits in range(1, 20)),
    decimal(65, 30),
]


def bits(flags: list[bool]) -> bytes:
    number = sum(1 << index for index, flag in enumerate(flags) if flag)
    return number.to_bytes((len(flags) + 7) // 8, "little")


@dataclass(frozen=True)
class Scene:
    """A table and one event of its rows."""

    columns: list[Column]
    ordinal: int
    present: list[list[bool]]
    rows: bytes
    checksum: bool
    old: bool

    def event(self) -> Any:
        """As the library makes it of the server's packets."""
        kinds = bytes(column.kind for column in self.columns)
        metadata = b"".join(column.metadata for column in self.columns)
        count = bytes([len(kinds)])
        names = b"\x05files\x00\x0dpysmurf_files\x00"
        described = (
            _TABLE_ID
            + bytes(2)
            + names
            + count
            + kinds
            + b"\xfc"
            + struct.pack("<H", len(metadata))
            + metadata
            + bits([True] * len(kinds))
        )
        tables: dict[int, Any] = {}
        mapped = self._read(BINLOG.TABLE_MAP_EVENT, described, tables)
        tables[mapped.table_id] = mapped.get_table()
        body = _TABLE_ID + bytes(2) + (b"" if self.old else b"\x02\x00") + count
        body += b"".join(bits(present) for present in self.present) + self.rows
        update = len(self.present) == 2
        new_kind = BINLOG.UPDATE_ROWS_EVENT_V2 if update else BINLOG.WRITE_ROWS_EVENT_V2
        old_kind = BINLOG.UPDATE_ROWS_EVENT_V1 if update else BINLOG.WRITE_ROWS_EVENT_V1
        return self._read(old_kind if self.old else new_kind, body, tables)

    def keys(self, event: Any) -> list[int]:
        """As the service finds them."""
        return PrimaryKeyDecoder(
            lambda: KeyColumn("files", "pysmurf_files", "id", self.ordinal, len(self.columns))
        ).ids(event)

    def _read(self, kind: int, body: bytes, tables: dict[int, Any]) -> Any:
        body += b"\xaa\xbb\xcc\xdd" if self.checksum else b""
        data = b"\x00" + struct.pack("<IBIIIH", 1, kind, 1, 19 + len(body), 4711, 0) + body
        allowed = (TableMapEvent, WriteRowsEvent, UpdateRowsEvent)
        unused = (None, None, None, None)
        wrapper: Any = BinLogPacketWrapper
        return wrapper(
            MysqlPacket(data, "utf8"), tables, _CONTROL, (0, 0, 0), self.checksum, allowed, *unused, True, True, False,
            False, False,
        ).event  # fmt: skip


@st.composite
def scenes(draw: st.DrawFn) -> Scene:
    columns = draw(st.lists(st.sampled_from(EVERY), max_size=20))
    ordinal = draw(st.integers(0, len(columns)))
    columns.insert(ordinal, fixed(*draw(st.sampled_from(sorted(_INTEGERS.items())))))
    every = [True] * len(columns)
    some = st.lists(st.booleans(), min_size=len(columns), max_size=len(columns))
    before = draw(st.one_of(st.just(every), some))
    before[ordinal] = True
    present = [before] + ([draw(st.one_of(st.just(every), some))] if draw(st.booleans()) else [])
    rows = b""
    for image in present * draw(st.integers(0, 4)):
        there = [number for number in range(len(columns)) if image[number]]
        nulls = [number != ordinal and draw(st.booleans()) for number in there]
        rows += bits(nulls) if there else b""
        rows += b"".join(draw(columns[number].values) for number, null in zip(there, nulls, strict=True) if not null)
    return Scene(columns, ordinal, present, rows, draw(st.booleans()), draw(st.booleans()))


def as_decoded(scene: Scene, event: Any) -> list[int]:
    """The keys that the library decodes."""
    name = f"UNKNOWN_COL{scene.ordinal}"
    size = _INTEGERS[scene.columns[scene.ordinal].kind]
    keys = []
    for row in event.rows:
        value = row["values"][name] if "values" in row else row["after_values"][name]
        keys.append((row["before_values"][name] if value is None else value) % (1 << 8 * size))
    return keys


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(scenes())
def test_the_keys_are_those_that_the_library_decodes(scene: Scene) -> None:
    event = scene.event()
    cursor = event.packet.read_bytes
    keys = scene.keys(event)
    assert event.packet.read_bytes == cursor, "the library decoded nothing"
    assert keys == as_decoded(scene, event)
    assert event.packet.read_bytes == event.event_size


@settings(deadline=None, max_examples=5, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.data())
def test_every_type_is_stepped_over_as_far_as_the_library_reads(data: st.DataObject) -> None:
    columns = [fixed(FIELD_TYPE.LONG, 4), *EVERY]
    row = bits([False] * len(columns)) + b"".join(data.draw(column.values) for column in columns)
    scene = Scene(columns, 0, [[True] * len(columns)], row * 2, checksum=True, old=False)
    event = scene.event()
    cursor = event.packet.read_bytes
    keys = scene.keys(event)
    assert event.packet.read_bytes == cursor, "the library decoded nothing"
    assert keys == as_decoded(scene, event)


def table(*columns: Column) -> RowsLayout:
    """Of an insert into a table whose first column is its key, an INT."""
    described = [SimpleNamespace(type=column.kind, max_length=32) for column in (ID, *columns)]
    return RowsLayout(described, [bits([True] * len(described))], 0)


ID = fixed(FIELD_TYPE.LONG, 4)
NAME = with_length(FIELD_TYPE.VARCHAR, 1, b"\x20\x00", 32)
ROW = b"\x00" + b"\x05\x00\x00\x00" + b"\x03abc"


def test_rows_that_do_not_end_where_the_event_does_are_not_trusted() -> None:
    assert table(NAME).keys(ROW * 2) == [5, 5]
    assert table(NAME).keys(b"") == []
    for data in (ROW[:-1], ROW[:5], ROW[:1], ROW + b"\x00", ROW + ROW[:3]):
        assert table(NAME).keys(data) is None, data


def test_a_row_without_a_key_is_not_trusted() -> None:
    assert table(NAME).keys(b"\x01\x03abc") is None, "it is NULL"
    columns = [SimpleNamespace(type=FIELD_TYPE.LONG)] * 2
    for present in ([b"\x02"], [b"\x00"], [b"\x02", b"\x00"]):
        assert RowsLayout(columns, present, 0).keys(b"\x00\x05\x00\x00\x00") is None


@pytest.mark.parametrize("kind", [0, 11, 12, 14, 140, 141, 242, FIELD_TYPE.VAR_STRING, 200])
def test_an_unknown_type_makes_the_table_unreadable_wherever_its_column_is(kind: int) -> None:
    """DECIMAL, TIME and DATETIME of old, NEWDATE, MariaDB's two compressed ones, MySQL's VECTOR."""
    columns = [SimpleNamespace(type=FIELD_TYPE.LONG), SimpleNamespace(type=kind)]
    assert RowsLayout(columns, [b"\x01"], 0).keys(b"\x00\x05\x00\x00\x00") is None


def test_columns_that_are_null_in_any_combination_are_remembered_within_limits() -> None:
    columns = [SimpleNamespace(type=FIELD_TYPE.LONG)] + [SimpleNamespace(type=FIELD_TYPE.TINY)] * 15
    images = RowsLayout(columns, [b"\xff\xff"], 0)
    for nulls in range(0, 65536, 2):
        data = nulls.to_bytes(2, "little") + nulls.to_bytes(4, "little") + bytes(15 - nulls.bit_count())
        assert images.keys(data) == [nulls]
    assert sum(len(image._plans) for image in images._images) <= 1000
