"""The side tables of a private site, and rows in them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from files_table import TABLE
from private_site import TARGET, PrivateSite

from cdc_archiver.database import schema, side_tables

_DIGEST = bytes(range(32))


def make_side_tables(stage: PrivateSite) -> None:
    """Makes them, with the archiver's grants."""
    for table in side_tables.ALL:
        stage.sql(schema.table_statement(table))
        stage.sql(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table.name} TO '{stage.user}'@'%'")


def enter_timecode(
    stage: PrivateSite, timecode: int, state: str, *, reasons: Mapping[str, int] | None = None, **columns: Any
) -> None:
    """Enters a timecode as the service does."""
    values = {
        "file_table": TABLE,
        "instance_id": TARGET,
        "timecode": timecode,
        "state": state,
        "generation": int(state in ("complete", "reopened")),
        "files": 3,
        "bytes": 5_000_000_000,
        "ignored": 0,
        "refused": 0,
        "undecided": sum((reasons or {}).values()),
        "late": 0,
        "reasons": json.dumps(reasons) if reasons else None,
        "digest": _DIGEST if state == "complete" else None,
        "told_by": "marker" if state in ("complete", "reopened") else None,
        "changed_at": "2026-05-15 04:30:00",
        "completed_at": "2026-05-15 04:30:00" if state in ("complete", "reopened") else None,
        **columns,
    }
    names = ", ".join(f"`{name}`" for name in values)
    marks = ", ".join(["%s"] * len(values))
    stage.sql(f"INSERT INTO {side_tables.TIMECODES.name} ({names}) VALUES ({marks})", list(values.values()))


def marks_of(stage: PrivateSite) -> list[tuple[Any, ...]]:
    """Kind, instance_id, timecode, by whom and reason of each entry, oldest first."""
    return stage.sql(
        f"SELECT kind, instance_id, timecode, by_whom, reason FROM {side_tables.MARKS.name} ORDER BY number"
    )
