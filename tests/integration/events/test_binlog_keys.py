"""Keys out of the events that real servers write for a table with every type of column, compared with those that the library decodes."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any, Final

import pytest
from private_database import PrivateDatabase, new_private_database
from pymysqlreplication import binlogstream
from pymysqlreplication.row_event import PartialUpdateRowsEvent, RowsEvent, UpdateRowsEvent, WriteRowsEvent

from cdc_archiver.database import server_features
from cdc_archiver.database.server_features import Position
from cdc_archiver.events.pk_decoder import PrimaryKeyDecoder, UndecodableEvent
from cdc_archiver.sandbox import DatabaseServer

_LIBRARY: Final[Any] = binlogstream.BinLogStreamReader
_ROWS: Final = 40

# A type, and what may stand in it.
_EVERY: Final = {
    "TINYINT": ["-3", "100"],
    "SMALLINT UNSIGNED": ["65535"],
    "MEDIUMINT": ["-8388608"],
    "INT": ["7"],
    "BIGINT UNSIGNED": ["18446744073709551615"],
    "FLOAT": ["1.5"],
    "DOUBLE": ["-2.25"],
    "DECIMAL(10,2)": ["123.45", "-0.01"],
    "DECIMAL(65,30)": ["1.000000000000000000000000000001"],
    "DECIMAL(4,0)": ["1234"],
    "BIT(1)": ["b'1'"],
    "BIT(13)": ["b'1000000000001'"],
    "BIT(64)": ["b'1'"],
    "YEAR": ["2026"],
    "DATE": ["'2026-11-22'"],
    "TIME": ["'-12:34:56'", "'838:59:59'"],
    "TIME(3)": ["'12:34:56.789'"],
    "DATETIME": ["'2026-11-22 13:48:01'"],
    "DATETIME(6)": ["'2026-11-22 13:48:01.123456'"],
    "TIMESTAMP NULL": ["'2026-11-22 13:48:01'"],
    "TIMESTAMP(2) NULL": ["'2026-11-22 13:48:01.12'"],
    "CHAR(1)": ["''", "'a'"],
    "CHAR(255) CHARACTER SET utf8mb4": ["''", "REPEAT('ü', 255)"],
    "VARCHAR(32)": ["''", "'outputs'"],
    "VARCHAR(255) CHARACTER SET latin1": ["REPEAT('a', 255)"],
    "VARCHAR(256) CHARACTER SET latin1": ["''", "REPEAT('a', 256)"],
    "VARCHAR(2000)": ["'b'", "REPEAT('ü', 2000)"],
    "BINARY(16)": ["0x00112233445566778899AABBCCDDEE00", "0xFFFE0102030405060708090A0B0C0D0E"],
    "VARBINARY(300)": ["REPEAT('c', 300)"],
    "TINYBLOB": ["REPEAT('d', 255)"],
    "BLOB": ["''", "REPEAT('e', 300)"],
    "MEDIUMTEXT": ["REPEAT('f', 70000)"],
    "LONGBLOB": ["'g'"],
    "ENUM('a', 'b')": ["'b'"],
    "SET('a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i')": ["''", "'a,i'"],
    "POINT": ["ST_GeomFromText('POINT(1 2)')"],
    "JSON": ["'{\"a\": [1, 2.5, null]}'", "'[]'"],
}
_OF_ONE: Final[dict[str, dict[str, list[str]]]] = {
    "mysql": {},
    "mariadb": {"UUID": ["UUID()"], "INET6": ["'::1'", "'ff00::'"]},
}


def place(world: PrivateDatabase) -> Position:
    with world.connection() as connection:
        return server_features.position(connection, server_features.identify(connection))


def events_since(world: PrivateDatabase, start: Position) -> Iterator[Any]:
    """The rows events of the world's table, from a position to the log's end."""
    reader = _LIBRARY(
        connection_settings=world.database().connection_settings() | {"read_timeout": 30},
        server_id=random.randint(2**31, 2**32 - 1),
        is_mariadb=False,
        resume_stream=True,
        log_file=start.file,
        log_pos=start.offset,
        blocking=False,
        only_events=[WriteRowsEvent, UpdateRowsEvent, PartialUpdateRowsEvent],
        only_schemas=[world.name],
        only_tables=["every_type"],
        freeze_schema=True,
        ignore_decode_errors=True,
        enable_logging=False,
    )
    with contextlib.closing(reader):
        while (event := reader.fetchone()) is not None:
            assert isinstance(event, RowsEvent)
            yield event


def decoded(event: Any, ordinal: int, bits: int) -> list[int]:
    """The keys that the library decodes."""
    name = event.columns[ordinal].name or f"UNKNOWN_COL{ordinal}"
    keys = []
    for row in event.rows:
        after = row["values"] if "values" in row else row["after_values"]
        value = row["before_values"][name] if after[name] is None else after[name]
        keys.append(value % (1 << bits))
    return keys


class Table:
    """A table with a column of each type, and its key among them."""

    def __init__(self, world: PrivateDatabase, key: str, ordinal: int, rng: random.Random) -> None:
        every = {**_EVERY, **_OF_ONE[world.server.kind]}
        self._columns = {f"c{number}": values for number, values in enumerate(every.values())}
        self._rng = rng
        self._world = world
        described = [f"c{number} {kind}" for number, kind in enumerate(every)]
        described.insert(ordinal, f"id {key} NOT NULL PRIMARY KEY")
        world.sql(f"CREATE TABLE every_type ({', '.join(described)}) CHARACTER SET utf8mb4")

    def _value(self, name: str) -> str:
        return self._rng.choice(["NULL", *self._columns[name]])

    def fill(self, first: int) -> None:
        """Rows with all columns, some of them NULL; one without; one that names only some."""
        rows = [f"({number}, {', '.join(map(self._value, self._columns))})" for number in range(first, first + _ROWS)]
        some = self._rng.sample(list(self._columns), 5)
        self._world.sql(
            f"INSERT INTO every_type (id, {', '.join(self._columns)}) VALUES {', '.join(rows)}",
            f"INSERT INTO every_type (id) VALUES ({first + _ROWS})",
            f"INSERT INTO every_type (id, {', '.join(some)}) VALUES ({first + _ROWS + 1}, "
            f"{', '.join(self._columns[name][0] for name in some)})",
        )

    def change(self, image: str) -> None:
        """Columns of all rows, and keys."""
        changes = [f"{name} = {self._value(name)}" for name in self._rng.sample(list(self._columns), 10)]
        self._world.sql(
            f"SET SESSION binlog_row_image = {image}",
            f"UPDATE every_type SET {', '.join(changes)}",
            "UPDATE every_type SET id = id + 100",
            "UPDATE every_type SET c3 = 5 WHERE id = 101",
        )


@pytest.mark.parametrize("metadata", ["MINIMAL", "FULL"])
@pytest.mark.parametrize(
    ("key", "bits", "ordinal", "first"),
    [
        ("INT", 32, 0, 1),
        ("BIGINT UNSIGNED", 64, 17, 2**63),
        ("SMALLINT UNSIGNED", 16, len(_EVERY), 60_000),
        ("TINYINT UNSIGNED", 8, 1, 100),
        ("MEDIUMINT", 24, 30, 8_000_000),
    ],
)
def test_the_keys_of_every_table_are_found_without_the_rest_of_its_rows(
    world: PrivateDatabase, metadata: str, key: str, bits: int, ordinal: int, first: int
) -> None:
    rng = random.Random(f"{metadata} {key}")
    table = Table(world, key, ordinal, rng)
    start = place(world)
    with world.globally("binlog_row_metadata", metadata):
        table.fill(first)
        for image in ("FULL", "MINIMAL", "NOBLOB"):
            table.change(image)
            world.sql("UPDATE every_type SET id = id - 100")
        seen = 0
        with world.connection() as connection:
            place_of_key = server_features.key_column(connection, world.name, "every_type")
        assert place_of_key.ordinal == ordinal
        keys = PrimaryKeyDecoder(lambda: place_of_key)
        for event in events_since(world, start):
            cursor = event.packet.read_bytes
            found = keys.ids(event)
            assert event.packet.read_bytes == cursor, "the library decoded nothing"
            assert found == decoded(event, ordinal, bits)
            assert set(found) <= set(range(first, first + _ROWS + 200))
            seen += len(found)
    # Three INSERTs, and for each image four UPDATEs of which one is of a single row.
    rows = _ROWS + 2
    assert seen >= rows + 3 * 2 * rows


def test_partial_json_updates_are_left_to_the_library(mysql: DatabaseServer) -> None:
    """A partial update has other images; its key is found all the same."""
    with new_private_database(mysql) as world:
        world.sql(
            "CREATE TABLE every_type (about JSON, id INT PRIMARY KEY, name VARCHAR(20))",
            """INSERT INTO every_type VALUES ('{"a": 1, "long": "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"}', 7, 'x')""",
        )
        start = place(world)
        world.sql(
            "SET SESSION binlog_row_value_options = PARTIAL_JSON",
            "SET SESSION binlog_row_image = MINIMAL",
            "UPDATE every_type SET about = JSON_SET(about, '$.a', 2)",
        )
        with world.connection() as connection:
            place_of_key = server_features.key_column(connection, world.name, "every_type")
        [event] = events_since(world, start)
        assert isinstance(event, PartialUpdateRowsEvent)
        assert PrimaryKeyDecoder(lambda: place_of_key).ids(event) == [7]


@pytest.mark.parametrize(
    ("columns", "values", "way"),
    [
        ("a TIMESTAMP NULL", "'2026-11-22 13:48:01'", "stepped over"),
        ("a DATETIME, b TIME", "'2026-11-22 13:48:01', '13:48:01'", "decoded"),
        ("a TIMESTAMP(3) NULL", "'2026-11-22 13:48:01'", "unreadable"),
        ("a TIME(3), b DATETIME", "'13:48:01', '2026-11-22 13:48:01'", "unreadable"),
    ],
)
def test_old_time_columns_are_stepped_over_decoded_or_unreadable_and_never_misread(
    mariadb: DatabaseServer, columns: str, values: str, way: str
) -> None:
    """Their fractions are no part of what the event says of its columns."""
    with new_private_database(mariadb) as world, world.globally("mysql56_temporal_format", "OFF"):
        world.sql(f"CREATE TABLE every_type ({columns}, id INT PRIMARY KEY)")
        start = place(world)
        world.sql(f"INSERT INTO every_type VALUES ({values}, 7)")
        with world.connection() as connection:
            place_of_key = server_features.key_column(connection, world.name, "every_type")
        [event] = events_since(world, start)
        cursor = event.packet.read_bytes
        if way == "unreadable":
            with pytest.raises(UndecodableEvent):
                PrimaryKeyDecoder(lambda: place_of_key).ids(event)
        else:
            assert PrimaryKeyDecoder(lambda: place_of_key).ids(event) == [7]
            assert (event.packet.read_bytes == cursor) == (way == "stepped over")
