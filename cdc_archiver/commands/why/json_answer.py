"""The answer of `why --json` and of the status page's search: no row, several rows, or all facts about one."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from cdc_archiver.commands.context import CommandContext
from cdc_archiver.commands.why.diagnosis import Diagnosis, diagnose
from cdc_archiver.commands.why.facts import (
    MAX_MATCHES,
    FileFacts,
    OlderRow,
    SourceObservation,
    find_rows,
    gather_facts,
    older_rows,
)
from cdc_archiver.database.files_table import Row
from cdc_archiver.database.search import is_id, state_of
from cdc_archiver.text import to_jsonable


def look_up(context: CommandContext, wanted: str, now: datetime) -> dict[str, Any]:
    """The answer to an anonymous question, over HTTP.

    A path that no row names is not looked for on the sources: anyone can open the page, and must not learn from it which
    files a readout server has.

    Args:
        wanted: an id, a path or a part of a path.
        now: aware.
    """
    rows = find_rows(context, wanted)
    if not rows:
        return no_match(context.files.name, wanted, older_rows(context, wanted), ())
    if len(rows) > 1:
        return several_matches(rows, context.settings.max_attempts)
    facts = gather_facts(context, rows[0])
    return one_match(facts, diagnose(facts, now))


def no_match(
    table: str, wanted: str, older: Sequence[OlderRow], observations: Sequence[SourceObservation]
) -> dict[str, Any]:
    """The answer if no row matches."""
    return {"answer": no_match_text(table, wanted, older), "matches": [], "at_sources": to_jsonable(observations)}


def no_match_text(table: str, wanted: str, older: Sequence[OlderRow]) -> str:
    """The sentence if no row matches."""
    if older:
        rows = ", ".join(f"{row.table}, id {row.id}" for row in older)
        return f"No row of {table} has the path {wanted!r}; a row of an older table, which is no longer served, has: {rows}."
    if is_id(wanted):
        return f"No row of {table} has the id {wanted}, or a path with {wanted} in it."
    return f"No row of {table} has {wanted!r} in its path: the monitor has not registered it."


def several_matches(rows: Sequence[Row], max_attempts: int) -> dict[str, Any]:
    """The answer if several rows match.

    Args:
        rows: newest first, at most one more than are shown.
    """
    matches = [
        {"id": row.record.id, "state": state_of(row, max_attempts).value, "path": row.record.path}
        for row in rows[:MAX_MATCHES]
    ]
    return {"answer": None, "matches": matches, "more": len(rows) > MAX_MATCHES}


def one_match(facts: FileFacts, diagnosis: Diagnosis) -> dict[str, Any]:
    """The answer if one row matches."""
    return {
        "answer": diagnosis.sentence,
        "next": diagnosis.following,
        "advice": [{"when": when, "command": command} for when, command in diagnosis.advice],
        "facts": to_jsonable(facts),
    }
