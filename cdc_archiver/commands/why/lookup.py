"""What `why --json` and the status page's search answer: no row, several, or all that is known of one."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from cdc_archiver.commands.context import CommandContext
from cdc_archiver.commands.why.diagnosis import Diagnosis, diagnose
from cdc_archiver.commands.why.facts import MOST_MATCHES, AtSource, Facts, OlderRow, find, look, older_rows
from cdc_archiver.database.files_table import Row
from cdc_archiver.database.search import is_id, state_of
from cdc_archiver.text import to_jsonable


def inquire(desk: CommandContext, wanted: str, now: datetime) -> dict[str, Any]:
    """The answer to a question that nobody has been asked to prove a right to.

    A path that no row names is not looked for on the sources: whoever may open a page is not thereby to learn which files a
    readout server has.

    Args:
        now: aware.
    """
    rows = find(desk, wanted)
    if not rows:
        return nobody(desk.files.name, wanted, older_rows(desk, wanted), ())
    if len(rows) > 1:
        return which(rows, desk.settings.max_attempts)
    facts = look(desk, rows[0])
    return told(facts, diagnose(facts, now))


def nobody(table: str, wanted: str, older: Sequence[OlderRow], seen: Sequence[AtSource]) -> dict[str, Any]:
    """No row names it."""
    return {"answer": nobody_words(table, wanted, older), "matches": [], "at_sources": to_jsonable(seen)}


def nobody_words(table: str, wanted: str, older: Sequence[OlderRow]) -> str:
    """Why it is not here, when no row names it."""
    if older:
        rows = ", ".join(f"{row.table} has it as {row.id}" for row in older)
        return f"No row of {table} names {wanted!r}, but an older table does, which nobody works on: {rows}."
    if is_id(wanted):
        return f"No row of {table} has the id {wanted}, or it in its path."
    return f"No row of {table} names {wanted!r}: the monitor has not registered it."


def which(rows: Sequence[Row], max_attempts: int) -> dict[str, Any]:
    """Several match.

    Args:
        rows: newest first, one more than are shown where there are more.
    """
    matches = [
        {"id": row.record.id, "state": state_of(row, max_attempts).value, "path": row.record.path}
        for row in rows[:MOST_MATCHES]
    ]
    return {"answer": None, "matches": matches, "more": len(rows) > MOST_MATCHES}


def told(facts: Facts, answered: Diagnosis) -> dict[str, Any]:
    """All about one."""
    return {
        "answer": answered.sentence,
        "next": answered.following,
        "advice": [{"when": when, "command": command} for when, command in answered.advice],
        "facts": to_jsonable(facts),
    }
