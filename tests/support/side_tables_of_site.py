"""The side tables of a private site, and rows in them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from files_table import TABLE
from private_site import TARGET, PrivateSite
from waiting import eventually

from cdc_archiver.database import schema, side_tables

QUICK: dict[str, Any] = {"sweep_interval": "0.3", "poll_interval": "0.3", "timecode_grace": "0", "reopen_after": "0"}
"""Settings that a test can wait for."""
OLD, NEW = 15895, 15800
"""A timecode from before the first start, and one whose first row comes later."""
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
    stage.sql(f"REPLACE INTO {side_tables.TIMECODES.name} ({names}) VALUES ({marks})", list(values.values()))


def marks_of(stage: PrivateSite) -> list[tuple[Any, ...]]:
    """Kind, instance_id, timecode, by whom and reason of each entry, oldest first."""
    return stage.sql(
        f"SELECT kind, instance_id, timecode, by_whom, reason FROM {side_tables.MARKS.name} ORDER BY number"
    )


def during(timecode: int, second: int = 0) -> str:
    """A time in a timecode, for the column ``timestamp``."""
    return str(datetime.fromtimestamp(timecode * 100_000 + second, UTC).replace(tzinfo=None))


def stored(site: PrivateSite, timecode: int) -> dict[str, Any]:
    """A row of the side table."""
    names = ["state", "generation", "files", "bytes", "late", "told_by", "marker_path", "marker_bytes", "reasons"]
    rows = site.sql(
        f"SELECT {', '.join(names)}, LOWER(HEX(digest)) FROM cdc_archiver_timecodes WHERE timecode = %s", [timecode]
    )
    return dict(zip([*names, "digest"], rows[0], strict=True)) if rows else dict.fromkeys([*names, "digest"])


def wait_state(site: PrivateSite, timecode: int, state: str, generation: int) -> dict[str, Any]:
    """Waits until a timecode has a state, and is told where it is complete."""

    def there() -> dict[str, Any] | None:
        found = stored(site, timecode)
        told = found["state"] != "complete" or found["told_by"] is not None
        return found if (found["state"], found["generation"]) == (state, generation) and told else None

    try:
        return eventually(there, f"{timecode} is {state}, generation {generation}")
    except AssertionError as error:
        error.add_note(str(stored(site, timecode)))
        raise
