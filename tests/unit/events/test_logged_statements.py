"""Which statements in the log are a gap: changes of the table, whoever wrote them, and nothing else."""

from __future__ import annotations

import struct
import time

import pytest

from cdc_archiver.events.event_reader import LoggedStatements

QUERY, LOAD = 2, 18
WRITER = 77
STATEMENTS = LoggedStatements("files", "pysmurf_files")


def packet(statement: str, *, database: str = "files", kind: int = QUERY) -> bytes:
    """An event as the server sends it, with status variables that nobody knows, and a checksum."""
    name, variables = database.encode(), b"\xfe\xff\xfe"
    own = struct.pack("<IIBHH", WRITER, 0, len(name), 0, len(variables)) + bytes(13 if kind == LOAD else 0)
    header = struct.pack("<BIBIIIH", 0, 1_700_000_000, kind, 1, 0, 0, 0)
    return header + own + variables + name + b"\0" + statement.encode() + b"\xde\xad\xbe\xef"


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO pysmurf_files (path) VALUES ('/data/a')",
        "insert ignore into `pysmurf_files`(path) values ('/data/a')",
        "REPLACE pysmurf_files SET path = '/data/a'",
        "UPDATE pysmurf_files SET copied = 0",
        "/* monitor */ -- a remark\n# another\n  INSERT INTO Pysmurf_Files VALUES (1)",
        "WITH last AS (SELECT 1) UPDATE pysmurf_files, last SET copied = 0",
        "SET STATEMENT max_statement_time = 5 FOR INSERT INTO pysmurf_files VALUES (1)",
        "INSERT INTO files.pysmurf_files VALUES " + "('/data/a')," * 100_000,
    ],
)
def test_a_change_of_the_table_is_one(statement: str) -> None:
    assert STATEMENTS.writer(packet(statement)) == WRITER


@pytest.mark.parametrize("name", ["files.pysmurf_files", "`files`.`pysmurf_files`", "FILES . pysmurf_files"])
def test_a_change_from_another_database_names_ours(name: str) -> None:
    assert STATEMENTS.writer(packet(f"INSERT INTO {name} VALUES (1)", database="monitor")) == WRITER
    assert STATEMENTS.writer(packet(f"LOAD DATA INFILE 'x' INTO TABLE {name}", database="", kind=LOAD)) == WRITER


@pytest.mark.parametrize(
    "statement",
    [
        "BEGIN",
        "COMMIT",
        "XA ROLLBACK X'61',X'',1",
        "CREATE TABLE pysmurf_files (id INT)",
        "ALTER TABLE pysmurf_files ADD COLUMN site INT",
        "DROP TABLE pysmurf_files",
        "DELETE FROM pysmurf_files",
        "INSERT INTO pysmurf_files_v1 VALUES (1)",
        "INSERT INTO old_pysmurf_files VALUES (1)",
        "-- " * 2000,
    ],
)
def test_another_statement_is_none(statement: str) -> None:
    assert STATEMENTS.writer(packet(statement)) is None


def test_a_table_of_the_same_name_in_another_database_is_another_one() -> None:
    insert = "INSERT INTO pysmurf_files VALUES ('/data/files/a')"
    assert STATEMENTS.writer(packet(insert, database="monitor")) is None


def test_events_of_other_types_and_short_packets_are_none() -> None:
    insert = packet("INSERT INTO pysmurf_files VALUES (1)")
    assert STATEMENTS.writer(insert[:5] + b"\x1e" + insert[6:]) is None
    for length in range(40):
        assert STATEMENTS.writer(insert[:length]) is None


def test_a_long_statement_on_another_table_costs_little() -> None:
    long = packet("INSERT INTO other VALUES " + "('pysmurf')," * 1_000_000)
    began = time.process_time()
    assert STATEMENTS.writer(long) is None
    assert time.process_time() - began < 0.1
