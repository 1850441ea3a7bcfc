"""`status`: how things are, as the running service says it; where none answers, as the database does."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from cdc_archiver.commands.context import CommandContext, open_context
from cdc_archiver.commands.service_client import NoService, status_of, works_on
from cdc_archiver.database.connections import ANSWER_TIMEOUT
from cdc_archiver.database.operator_history import OperatorHistory
from cdc_archiver.database.search import waiting_targets
from cdc_archiver.database.source_locks import SourceLocks
from cdc_archiver.errors import ArchiverError
from cdc_archiver.settings import Settings

_RATE_OVER: Final = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Rate:
    """What was archived in the last hour."""

    files: int
    size: int


@dataclass(frozen=True, slots=True)
class Overview:
    """All of it.

    Attributes:
        service: what /api/status says; None where no service answers, and why_no_service says why.
        sources: of the database, by name: what is counted there; only where no service answers.
        holder: who holds the lock of our targets, where no service answers.
        rate: None where it cannot be told, and why_no_rate says why.
    """

    at: datetime
    service: dict[str, Any] | None
    why_no_service: str
    table: str
    sources: dict[str, dict[str, Any]]
    holder: str | None
    rate: Rate | None
    why_no_rate: str


def overview(settings: Settings, now: datetime) -> Overview:
    """Asks the service, and the database for what it alone knows.

    Args:
        now: aware.

    Raises:
        ArchiverError: neither answers.
    """
    service, why = _ask_service(settings)
    try:
        with open_context(settings, ANSWER_TIMEOUT) as desk:
            if service is not None and (other := works_on(settings, service, desk.files.name)):
                # It answers for itself; what we count in another database would be a lie beside it.
                why_other = f"the service works on {other}, and the settings here name another database"
                return Overview(now, service, "", str(service.get("table")), {}, None, None, why_other)
            rate, why_no_rate = _rate(desk, now)
            sources = _count(desk) if service is None else {}
            holder = _holder(desk) if service is None else None
            return Overview(now, service, why, desk.files.name, sources, holder, rate, why_no_rate)
    except ArchiverError as error:
        if service is None:
            raise type(error)(f"{why}; and {error.message}", error.hint) from error
        return Overview(now, service, "", str(service.get("table") or ""), {}, None, None, error.message)


def _ask_service(settings: Settings) -> tuple[dict[str, Any] | None, str]:
    try:
        return status_of(settings), ""
    except NoService as error:
        return None, error.message


def _rate(desk: CommandContext, now: datetime) -> tuple[Rate | None, str]:
    history: OperatorHistory | None = desk.history
    if history is None:
        return None, desk.no_history
    with desk.database.connect() as connection:
        files, size = history.archived_since(connection, now - _RATE_OVER, desk.settings.targets)
    return Rate(files, size), ""


def _count(desk: CommandContext) -> dict[str, dict[str, Any]]:
    with desk.database.connect() as connection:
        if desk.settings.sources:
            counted = {
                source.name: (source.target, source.host, desk.files.census(connection, source.target))
                for source in desk.settings.sources
            }
        else:
            targets = tuple(waiting_targets(connection, desk.files))
            counted = {"all targets": (targets, "", desk.files.census(connection, targets))}
    return {
        name: {"targets": list(targets), "host": host, "files": asdict(census)}
        for name, (targets, host, census) in counted.items()
    }


def _holder(desk: CommandContext) -> str | None:
    locks = SourceLocks(
        desk.database, desk.files.name, {source.name: source.target for source in desk.settings.sources}
    )
    try:
        holders = [locks.holder(source.name) for source in desk.settings.sources]
    finally:
        locks.close()
    return "; ".join(sorted({holder for holder in holders if holder})) or None
