"""`list`: rows with what the history knows of them, as they are read; memory stays flat."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final

from cdc_archiver.commands.context import CommandContext, require_history
from cdc_archiver.commands.service_client import NoService, address, status_of, works_on
from cdc_archiver.database.files_table import Row
from cdc_archiver.database.operator_history import HistoryEntry
from cdc_archiver.database.search import Criteria, RowState, state_of, walk

_CHUNK: Final = 500


@dataclass(frozen=True, slots=True)
class Listed:
    """A row, and why its last try failed, where that is known."""

    row: Row
    state: RowState
    source: str | None
    last: HistoryEntry | None


def listed(desk: CommandContext, criteria: Criteria, reasons: tuple[str, ...], limit: int | None) -> Iterator[Listed]:
    """The rows, newest first.

    Args:
        reasons: why the last try failed; any, where there is none.
        limit: that many at the most.

    Raises:
        Misconfigured: reasons are asked for, and there is no history.
    """
    if reasons:
        require_history(desk, "--reason")
    rows = walk(desk.database, desk.files, criteria, limit=None if reasons else limit)
    shown = 0
    while chunk := list(islice(rows, _CHUNK)):
        last = _last(desk, chunk)
        for row in chunk:
            failure = last.get(row.record.id)
            if reasons and (failure is None or failure.reason not in reasons):
                continue
            source = desk.source_of(row.record.instance_id)
            state = state_of(row, desk.settings.max_attempts)
            yield Listed(row, state, source.name if source else None, failure)
            shown += 1
            if shown == limit:
                return


def deferred(desk: CommandContext, criteria: Criteria) -> Criteria:
    """Pending files that wait by nobody's fault of theirs: their source, or the archive's disk, is in trouble. Only the running
    service knows that.

    Raises:
        NoService: none answers that works on this table.
    """
    status = status_of(desk.settings)
    if other := works_on(desk.settings, status, desk.files.name):
        raise NoService(f"the service at {address(desk.settings)} works on {other}, so nobody knows what is deferred")
    destination = status.get("destination") or {}
    everything_waits = not destination.get("up", True)
    down = [
        target
        for source in status["sources"]
        if everything_waits or not source["state"]["up"]
        for target in source["targets"]
    ]
    meant = [target for target in down if not criteria.targets or target in criteria.targets]
    nobody = ("\0",)  # no instance_id is that
    return replace(criteria, targets=tuple(meant) or nobody, states=frozenset({RowState.PENDING}))


def _last(desk: CommandContext, rows: list[Row]) -> dict[int, HistoryEntry]:
    ids = [row.record.id for row in rows if row.record.attempts and not row.copied]
    if desk.history is None or not ids:
        return {}
    with desk.database.connect() as connection:
        return desk.history.last_failures(connection, ids)
