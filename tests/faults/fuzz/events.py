"""Events of the binary log."""

from __future__ import annotations

import contextlib
import random
from types import SimpleNamespace
from typing import Any

from pymysqlreplication.row_event import UpdateRowsEvent

from cdc_archiver.database.server_features import KeyColumn
from cdc_archiver.errors import Misconfigured
from cdc_archiver.events.pk_decoder import PrimaryKeyDecoder, UndecodableEvent


def make_event(rng: random.Random) -> tuple[Any, KeyColumn | Exception]:
    columns = [
        SimpleNamespace(type=rng.choice((1, 2, 3, 8, 9, 15, 252, 254, None)), name=rng.choice((None, "", f"c{number}")))
        for number in range(rng.randrange(4))
    ]
    keys = [column.name or f"UNKNOWN_COL{number}" for number, column in enumerate(columns)]
    values: tuple[object, ...] = (1, -1, 2**63, -(2**63), 0, None, "1", b"\x01", 1.5, True)

    def row() -> dict[str, object]:
        return {key: rng.choice(values) for key in keys if rng.random() < 0.95}

    if rng.random() < 0.5:
        event: Any = SimpleNamespace(rows=[{"values": row()} for _ in range(rng.randrange(4))])
    else:
        event = UpdateRowsEvent.__new__(UpdateRowsEvent)
        event._RowsEvent__rows = [{"before_values": row(), "after_values": row()} for _ in range(rng.randrange(4))]
    event.columns, event.table_id = columns, rng.randrange(3)
    event.primary_key = rng.choice(("", None, (), ("a", "b"), "c0", "c1", "elsewhere"))
    answer: KeyColumn | Exception = KeyColumn("files", "pysmurf_files", "id", rng.randrange(5), rng.randrange(5))
    return event, rng.choice((answer, answer, Misconfigured("the table is gone")))


def check_event(given: tuple[Any, KeyColumn | Exception]) -> None:
    event, answer = given

    def ask() -> KeyColumn:
        if isinstance(answer, Exception):
            raise answer
        return answer

    keys = PrimaryKeyDecoder(ask)
    with contextlib.suppress(UndecodableEvent):
        ids = keys.ids(event)
        assert all(isinstance(id_, int) for id_ in ids)
        assert len(ids) == len(event.rows)
    keys.take_doubt()
