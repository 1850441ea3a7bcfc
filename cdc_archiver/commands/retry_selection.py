"""`retry`: gives files their tries back. The running service hears of it through the binary log, and takes them up at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from cdc_archiver.commands.context import CommandContext, who_we_are
from cdc_archiver.commands.selection import ChangePlan, Selection, change
from cdc_archiver.database.operator_history import RETRIED
from cdc_archiver.database.search import Criteria, RowState
from cdc_archiver.errors import Misconfigured
from cdc_archiver.model import Reason, Scope

_GIVEN_UP: Final = frozenset({RowState.QUARANTINED})
_TRIED: Final = frozenset({RowState.QUARANTINED, RowState.PENDING})
_NAMED: Final = _TRIED | {RowState.REFUSED}


def selection(criteria: Criteria, reasons: tuple[str, ...], *, all_quarantined: bool, anything_said: bool) -> Selection:
    """Which files are meant: those that were named, refused ones among them; else those that failed and can succeed.

    Args:
        all_quarantined: quarantined ones alone.
        anything_said: whether any filter was given; nothing is retried unasked.

    Raises:
        Misconfigured: nothing was said, or a reason that there is not.
    """
    require_reasons(reasons)
    if not (anything_said or all_quarantined):
        raise Misconfigured(
            "retry wants to know which files", "--id, --path, --reason, --source, --target or --all-quarantined"
        )
    by_name = _NAMED if criteria.names_files or reasons else _TRIED
    wanted = _GIVEN_UP if all_quarantined else by_name
    return Selection(criteria, wanted, reasons, charged=True)


def require_reasons(reasons: tuple[str, ...]) -> None:
    """Asks whether there are such reasons.

    Raises:
        Misconfigured: there are not.
    """
    charged = [reason.value for reason in Reason if reason.scope in (Scope.FILE, Scope.ROW)]
    for reason in reasons:
        if reason not in charged:
            raise Misconfigured(f"{reason!r} is no reason that files are charged or refused for", ", ".join(charged))


def retry(
    desk: CommandContext, selected: Selection, on_progress: Callable[[int], None] = lambda done: None
) -> ChangePlan:
    """Does it: the counter is 0 again."""
    return change(desk, selected, 0, RETRIED, f"by {who_we_are()}", on_progress)
