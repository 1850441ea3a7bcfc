"""What registrars report, and what a person decides about one that is gone or lacks files."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa

from cdc_archiver.database.connections import error_code
from cdc_archiver.database.history import HISTORY_ERRORS
from cdc_archiver.database.side_tables import REGISTRAR_LOSSES, REGISTRARS
from cdc_archiver.text import fold_instance_id

SILENT_AFTER: Final = timedelta(minutes=5)
"""A registrar reports every ten seconds; one that has not for this time is silent."""


@dataclass(frozen=True, slots=True)
class Registrar:
    """A registrar that is not retired.

    Attributes:
        heard: when it reported last, by the database's clock; None where it never did.
        watermark: before it, every announced file is a row, refused or lost; None where it does not know.
        finished: it was stopped cleanly with an empty spool, so it holds nothing back.
    """

    instance_id: str
    registrar_id: str
    heard: datetime | None
    watermark: datetime | None
    finished: bool


@dataclass(frozen=True, slots=True)
class RegistrarReports:
    """What the registrars of some instance_ids report.

    Attributes:
        losses: by instance_id and timecode, the numbers of files and of announcements that never came, without those that a
            person has accepted.
    """

    registrars: Sequence[Registrar] = ()
    losses: Mapping[tuple[str, int], tuple[int, int]] | None = None

    def reasons(self, instance_id: str, timecode: int, end: datetime, now: datetime) -> dict[str, int]:
        """Why a timecode may not become complete, by reason; empty where the registrars agree, or none ever reported.

        Args:
            end: of the timecode.
            now: by the database's clock.
        """
        found: dict[str, int] = {}
        for registrar in self._of(instance_id):
            if registrar.finished or (registrar.watermark is not None and registrar.watermark >= end):
                continue
            reason = "registrar_silent" if _is_silent(registrar, now) else "registrar_behind"
            found[reason] = found.get(reason, 0) + 1
        lost, gaps = (self.losses or {}).get((fold_instance_id(instance_id), timecode), (0, 0))
        return found | {name: n for name, n in (("registrar_lost", lost), ("registrar_gaps", gaps)) if n}

    def bound(self, instance_id: str) -> tuple[bool, datetime | None]:
        """Whether a registrar bounds what is known of an instance_id, and up to where it is known; None: up to nowhere."""
        marks = [registrar.watermark for registrar in self._of(instance_id) if not registrar.finished]
        if not marks:
            return False, None
        return True, None if None in marks else min(mark for mark in marks if mark is not None)

    def silent(self, now: datetime) -> int:
        """How many registrars have not reported for a while.

        Args:
            now: by the database's clock.
        """
        return sum(not each.finished and _is_silent(each, now) for each in self.registrars)

    def _of(self, instance_id: str) -> list[Registrar]:
        return [each for each in self.registrars if fold_instance_id(each.instance_id) == fold_instance_id(instance_id)]


def _is_silent(registrar: Registrar, now: datetime) -> bool:
    return registrar.heard is None or now - registrar.heard > SILENT_AFTER


def read_reports(connection: sa.Connection, instance_ids: Collection[str]) -> RegistrarReports:
    """Reads what the registrars report; nothing where the side tables are missing or cannot be read."""
    table, losses = REGISTRARS.c, REGISTRAR_LOSSES.c
    rows = _read(
        connection, sa.select(REGISTRARS).where(table.instance_id.in_(instance_ids), table.retired_at.is_(None))
    )
    missing = _read(
        connection,
        sa.select(losses.instance_id, losses.timecode, sa.func.sum(losses.lost), sa.func.sum(losses.gaps))
        .where(
            losses.instance_id.in_(instance_ids),
            losses.accepted_at.is_(None),
            losses.registrar_id.in_([row.registrar_id for row in rows]),
        )
        .group_by(losses.instance_id, losses.timecode),
    )
    return RegistrarReports(
        tuple(
            Registrar(
                row.instance_id,
                row.registrar_id,
                _aware(row.heard),
                _aware(row.watermark),
                bool(row.stopped) and not row.waiting,
            )
            for row in rows
        ),
        {(fold_instance_id(id_), timecode): (int(lost), int(gaps)) for id_, timecode, lost, gaps in missing},
    )


def _read(connection: sa.Connection, query: sa.Select[Any]) -> Sequence[Any]:
    """The rows; none where the side table is missing or cannot be read."""
    try:
        return connection.execute(query).all()
    except sa.exc.DBAPIError as error:
        if error_code(error) not in HISTORY_ERRORS:
            raise
        return ()


def accept_missing(connection: sa.Connection, instance_ids: Collection[str], timecode: int, reason: str) -> int:
    """A person accepts that a timecode lacks files: they no longer hold it up.

    Args:
        instance_ids: of these registrars' files.
        reason: who, and why.

    Returns:
        The number of entries that were open.
    """
    table = REGISTRAR_LOSSES.c
    return connection.execute(
        sa.update(REGISTRAR_LOSSES)
        .where(table.instance_id.in_(instance_ids), table.timecode == timecode, table.accepted_at.is_(None))
        .values(accepted_at=sa.func.utc_timestamp(3), accepted_reason=reason)
    ).rowcount


def retire(connection: sa.Connection, registrar_id: str, reason: str) -> int:
    """A person says that a registrar is gone for good: it is asked no more.

    Args:
        reason: who, and why.

    Returns:
        The number of its instance_ids; 0 where there is no such registrar, or it is retired.
    """
    table = REGISTRARS.c
    return connection.execute(
        sa.update(REGISTRARS)
        .where(table.registrar_id == registrar_id, table.retired_at.is_(None))
        .values(retired_at=sa.func.utc_timestamp(3), retired_reason=reason)
    ).rowcount


def _aware(value: datetime | None) -> datetime | None:
    return None if value is None else value.replace(tzinfo=UTC)
