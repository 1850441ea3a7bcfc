"""Tells the archiver, in the database, up to which time every announced file is a row, and in which timecodes files are missing."""

from __future__ import annotations

import sqlite3
import time
from datetime import UTC, datetime
from typing import Any, Final

import sqlalchemy as sa
import structlog
from sqlalchemy.dialects import mysql

from cdc_archiver.database.connections import Database
from cdc_archiver.database.side_tables import REGISTRAR_LOSSES, REGISTRARS
from cdc_archiver.errors import ArchiverError
from cdc_archiver.observe.registrar_metrics import RegistrarMetrics
from cdc_archiver.registrar.listener import Listener
from cdc_archiver.registrar.spool import Spool
from cdc_archiver.registrar.spool_reading import SpoolFacts
from cdc_archiver.threads import StoppableThread

INTERVAL: Final = 10.0
"""Seconds between two reports."""

_log = structlog.get_logger(__name__)


class WatermarkReporter(StoppableThread):
    """Reports every ten seconds, and once more at the end.

    Args:
        target: ``instance_id``.

    Attributes:
        trouble: why the last report could not be written; empty where it could.
    """

    def __init__(
        self, target: str, spool: Spool, listener: Listener, database: Database, metrics: RegistrarMetrics
    ) -> None:
        super().__init__("watermark")
        self._target = target
        self._spool = spool
        self._listener = listener
        self._database = database
        self._metrics = metrics
        self._told: dict[int, tuple[int, int]] | None = None
        self.trouble = ""

    def work(self) -> None:
        while not self.stopping.is_set():
            self._report(stopped=False)
            self.stopping.wait(INTERVAL)
        self._report(stopped=True)

    def _report(self, *, stopped: bool) -> None:
        self._listener.count_drops()
        complete_until = self._listener.complete_until  # before the spool is read: what arrived earlier is in it
        try:
            facts, losses = self._spool.facts(), self._spool.losses()
            watermark = complete_until if facts.bound is None else min(complete_until, facts.bound)
            _show(self._metrics, facts)
            with self._database.transaction() as connection:
                self._write(connection, facts, watermark, stopped=stopped and not facts.waiting)
                self._write_losses(connection, losses)
        except (ArchiverError, sqlite3.Error) as error:
            if str(error) != self.trouble:
                _log.error("watermark_not_written", detail=str(error))
            self.trouble = str(error)
            self._told = None
        else:
            self.trouble = ""
            self._told = losses
            self._metrics.watermark.set(watermark)

    def _write(self, connection: sa.Connection, facts: SpoolFacts, watermark: float, *, stopped: bool) -> None:
        # Cut, not rounded: it must not be later than it is.
        text = datetime.fromtimestamp(watermark, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
        now = sa.func.utc_timestamp(3)
        values: dict[str, Any] = {
            "heard": now,
            "watermark": sa.func.least(sa.cast(text, mysql.DATETIME(fsp=3)), now),
            "waiting": facts.waiting,
            "lost": facts.lost,
            "gaps": facts.gaps,
            "stopped": int(stopped),
        }
        key = {"instance_id": self._target, "registrar_id": self._spool.registrar_id}
        connection.execute(mysql.insert(REGISTRARS).values(**key, **values).on_duplicate_key_update(values))

    def _write_losses(self, connection: sa.Connection, losses: dict[int, tuple[int, int]]) -> None:
        """Writes the timecodes whose losses have changed. More than a person has accepted counts again."""
        told = self._told if self._told is not None else self._stored(connection)
        for timecode in sorted(losses.keys() | told.keys()):
            lost, gaps = losses.get(timecode, (0, 0))
            before = told.get(timecode)
            if before == (lost, gaps):
                continue
            values: dict[str, Any] = {"lost": lost, "gaps": gaps}
            if before is not None and (lost > before[0] or gaps > before[1]):
                values |= {"accepted_at": None, "accepted_reason": None}
            key = {"instance_id": self._target, "registrar_id": self._spool.registrar_id, "timecode": timecode}
            connection.execute(mysql.insert(REGISTRAR_LOSSES).values(**key, **values).on_duplicate_key_update(values))

    def _stored(self, connection: sa.Connection) -> dict[int, tuple[int, int]]:
        table = REGISTRAR_LOSSES
        rows = sa.select(table.c.timecode, table.c.lost, table.c.gaps).where(
            table.c.instance_id == self._target, table.c.registrar_id == self._spool.registrar_id
        )
        return {row.timecode: (row.lost, row.gaps) for row in connection.execute(rows)}


def _show(metrics: RegistrarMetrics, facts: SpoolFacts) -> None:
    """Sets the gauges of the spool."""
    metrics.waiting.set(facts.waiting)
    metrics.lost.set(facts.lost)
    metrics.refused.set(facts.refused)
    metrics.oldest.set(0.0 if facts.oldest is None else max(0.0, time.time() - facts.oldest))
    metrics.spool_bytes.set(facts.size)
