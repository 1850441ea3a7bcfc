"""`ignore`: an operator's word that a file will never come; and `ignore --undo`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from cdc_archiver.commands.context import CommandContext, who_we_are
from cdc_archiver.commands.selection import ChangePlan, Selection, change
from cdc_archiver.database.operator_history import IGNORED, RESTORED
from cdc_archiver.database.search import Criteria, RowState
from cdc_archiver.errors import Misconfigured
from cdc_archiver.model import IGNORED_FROM

_IGNORABLE: Final = frozenset({RowState.PENDING, RowState.QUARANTINED, RowState.REFUSED})


def selection(criteria: Criteria, *, undo: bool) -> Selection:
    """Which files are meant.

    Raises:
        Misconfigured: none was named.
    """
    if not criteria.names_files:
        raise Misconfigured("ignore wants to know which files", "an id, or a path, which may have * and ? in quotes")
    return Selection(criteria, frozenset({RowState.IGNORED}) if undo else _IGNORABLE)


def ignore(
    desk: CommandContext,
    selected: Selection,
    reason: str,
    *,
    undo: bool,
    on_progress: Callable[[int], None] = lambda done: None,
) -> ChangePlan:
    """Does it, and keeps who and why in the history.

    Args:
        reason: a sentence for whoever asks later; may be empty.
    """
    words = ": ".join(part for part in (f"by {who_we_are()}", reason.strip()) if part)
    if undo:
        return change(desk, selected, 0, RESTORED, words, on_progress)
    return change(desk, selected, IGNORED_FROM, IGNORED, words, on_progress)
