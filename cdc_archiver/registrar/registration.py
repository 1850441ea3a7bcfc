"""From the spool to the table: looks at announced files until they are whole, and has rows written of them."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import structlog

from cdc_archiver.database.connections import Database
from cdc_archiver.errors import ArchiverError, DatabaseUnavailable, RowLocked, StatementRefused
from cdc_archiver.observe.registrar_metrics import RegistrarMetrics
from cdc_archiver.registrar.registered_rows import (
    DatabaseRestored,
    NewRow,
    Receipt,
    RegisteredRows,
    is_duplicate,
)
from cdc_archiver.registrar.spool import Spool, identity
from cdc_archiver.registrar.spool_reading import Entry
from cdc_archiver.registrar.whole_file import FileLooker, NotThere, NotWhole, Unusable, WholeFile
from cdc_archiver.settings import Settings, SourceSettings
from cdc_archiver.threads import StoppableThread

_BATCH: Final = 500
LOOK_AGAIN: Final = 60.0
"""Seconds after which a registered file is looked at once more."""
_HOUR: Final = 3600.0
_GIVE_UP: Final = 7 * 86400.0
"""Seconds for which a lost or refused file is tried again each hour."""
_LOCKED_AGAIN: Final = 2.0
_IDLE: Final = 1.0
"""Seconds after which the spool is asked again: `monitor --retry-lost` changes it from another process."""
_LONGEST_PAUSE: Final = 10.0
_PRUNE_EVERY: Final = 600.0

_log = structlog.get_logger(__name__)


class Registration(StoppableThread):
    """Registers what the spool has, oldest first.

    After :meth:`stop` it goes on for as long as files become whole, at most for ``drain_timeout``.

    Args:
        source: with one target, the ``instance_id`` of the rows.

    Attributes:
        trouble: why no rows can be written; empty while they can.
    """

    def __init__(
        self, settings: Settings, source: SourceSettings, spool: Spool, database: Database, metrics: RegistrarMetrics
    ) -> None:
        super().__init__("registration")
        self._settings = settings
        self._target = source.target[0]
        self._spool = spool
        self._database = database
        self._metrics = metrics
        self._looker = FileLooker(source.source_root, settings.settle)
        self._rows: RegisteredRows | None = None
        self._highest = 0
        self._locked: set[int] = set()
        """Numbers whose receipts another session may hold: they are written apart, so that they hold up no others."""
        self._wake = threading.Event()
        self._pause = 0.5
        self._prune_from = 0.0
        self.trouble = "the database has not answered yet"

    def wake(self) -> None:
        """New announcements are in the spool."""
        self._wake.set()

    def interrupt(self) -> None:
        self._wake.set()

    def work(self) -> None:
        while not self.stopping.is_set():
            self._step()
        deadline = time.monotonic() + self._settings.drain_timeout
        while time.monotonic() < deadline and self._step() and not self.trouble:
            pass

    def _step(self) -> bool:
        """One pass over what is due, and the wait for the next; returns whether more will soon be due."""
        self._wake.clear()
        try:
            self._pass()
            self._set_trouble("")
            self._pause = 0.5
            due = self._spool.next_due()
            wait = _IDLE if due is None else max(0.0, min(_IDLE, due - time.time()))
        except (ArchiverError, sqlite3.Error) as error:
            self._set_trouble(str(error))
            self._rows = None
            wait, self._pause = self._pause, min(_LONGEST_PAUSE, self._pause * 2)
            if not self.stopping.is_set():
                self.stopping.wait(wait)
            return False
        if wait >= _IDLE and self.stopping.is_set():
            return False
        self._wake.wait(wait)
        return True

    def _pass(self) -> None:
        if self._rows is None:
            self._rows = RegisteredRows(self._database, self._settings, self._target, self._spool.registrar_id)
            self._compare_receipts()
        now = time.time()
        self._prune(now)
        due = self._spool.due(now, _BATCH)
        if not due:
            return
        self._look_again([entry for entry in due if entry.state == "registered"], now)
        whole: list[tuple[Entry, WholeFile]] = []
        changes: list[dict[str, Any]] = []
        for entry in due:
            if entry.state == "registered":
                continue
            found = self._looker.look(entry.number, entry.announcement.path)
            if isinstance(found, WholeFile):
                whole.append((entry, found))
            else:
                changes.append(self._postponed(entry, found, now))
        self._spool.decide(changes, now)
        self._register(whole, now)

    def _look_again(self, entries: Sequence[Entry], now: float) -> None:
        """Registered files: one whose content may have changed since is announced anew."""
        seen = {entry.number: self._looker.signature(entry.path) for entry in entries}
        changed = [entry for entry in entries if seen[entry.number] not in ("", entry.signature)]
        same = [{"number": entry.number, "due": None} for entry in entries if entry not in changed]
        self._spool.decide(same, now)
        if changed:
            self._spool.announce_again(changed, now)

    def _postponed(self, entry: Entry, found: NotThere | NotWhole | Unusable, now: float) -> dict[str, Any]:
        """What becomes of an announcement whose file is not whole."""
        age = now - entry.received
        path = entry.announcement.path
        match found:
            case Unusable(detail=detail):
                return self._refused(entry, detail, now, again=False)
            case NotWhole(detail=detail):
                if entry.state == "waiting" and age > self._settings.patience and entry.reason != detail:
                    _log.warning("file_not_whole", path=path, detail=detail)
                return {"number": entry.number, "due": now + max(0.05, self._settings.settle), "reason": detail}
            case NotThere(detail=detail):
                if entry.state == "waiting" and age <= self._settings.patience:
                    return {"number": entry.number, "due": now + min(5.0, max(0.2, age / 10)), "reason": detail}
        if entry.state == "refused":
            return {"number": entry.number, "due": _next_hour(entry, now)}
        if entry.state == "waiting":
            self._metrics.outcomes.labels("lost").inc()
            _log.error("file_lost", path=path, detail=detail, fix="once it is there: cdc-archiver monitor --retry-lost")
        return {"number": entry.number, "state": "lost", "reason": detail, "due": _next_hour(entry, now)}

    def _refused(self, entry: Entry, detail: str, now: float, *, again: bool = True) -> dict[str, Any]:
        if entry.state != "refused" or entry.reason != detail:
            self._metrics.outcomes.labels("refused").inc(entry.state != "refused")
            _log.error("file_refused", path=entry.announcement.path, detail=detail)
        due = _next_hour(entry, now) if again else None
        return {"number": entry.number, "state": "refused", "reason": detail, "due": due}

    def _register(self, whole: Sequence[tuple[Entry, WholeFile]], now: float) -> None:
        """Has rows written of whole files; the same announcement again makes none."""
        keys = {entry.number: identity(entry.announcement, found.path, found.md5) for entry, found in whole}
        known = self._spool.registered_as(set(keys.values()))
        new: dict[bytes, tuple[Entry, NewRow, WholeFile]] = {}
        changes = []
        for entry, found in whole:
            key = keys[entry.number]
            if key in known:
                self._metrics.outcomes.labels("known").inc()
                _log.info("file_known", path=found.path, id=known[key])
                changes.append({"number": entry.number, "state": "known", "file_id": known[key], "due": None})
            elif key not in new:  # a second one of this batch is due again, and then known
                new[key] = (entry, NewRow(entry.number, found.path, found.md5, entry.announcement), found)
        if changes:
            self._spool.decide(changes, now)
        locked = frozenset(self._locked)
        for apart in (False, True):
            if batch := [each for each in new.values() if (each[0].number in locked) is apart]:
                self._write(batch, now)

    def _write(self, batch: Sequence[tuple[Entry, NewRow, WholeFile]], now: float) -> None:
        """Writes a batch; where one of it is refused, each half of it for itself."""
        assert self._rows is not None
        if len(batch) == 1 and (refusal := self._rows.refusal(batch[0][1])):
            self._spool.decide([self._refused(batch[0][0], refusal, now)], now)
            return
        if len(batch) > 1 and any(self._rows.refusal(row) for _, row, _ in batch):
            self._write_halves(batch, now)
            return
        try:
            ids = self._rows.write([row for _, row, _ in batch], self._highest)
        except RowLocked as error:
            _log.warning("receipts_locked", files=len(batch), detail=error.message)
            self._locked |= {entry.number for entry, _, _ in batch}
            self._spool.decide([{"number": e.number, "due": time.time() + _LOCKED_AGAIN} for e, _, _ in batch], now)
        except DatabaseUnavailable:
            self._locked |= {entry.number for entry, _, _ in batch}
            raise
        except DatabaseRestored:
            self._compare_receipts()
        except StatementRefused as refusal:
            self._settle(batch, refusal, now)
        else:
            self._registered({entry.number: id_ for (entry, _, _), id_ in zip(batch, ids, strict=True)}, batch, now)

    def _write_halves(self, batch: Sequence[tuple[Entry, NewRow, WholeFile]], now: float) -> None:
        middle = len(batch) // 2
        self._write(batch[:middle], now)
        self._write(batch[middle:], now)

    def _settle(self, batch: Sequence[tuple[Entry, NewRow, WholeFile]], refusal: StatementRefused, now: float) -> None:
        """A batch was rolled back: some of it is registered already, or the server refuses a row of it."""
        assert self._rows is not None
        receipts = self._rows.receipts([entry.number for entry, _, _ in batch]) if is_duplicate(refusal) else {}
        same, others = {}, []
        for entry, row, _ in batch:
            if (receipt := receipts.get(entry.number)) is None:
                continue
            if (receipt.path, receipt.md5) == (row.path, row.md5):
                same[entry.number] = receipt.file_id
            else:  # another file has this number: the spool is a copy of an earlier time
                others.append(entry)
        if others:
            self._spool.renumber(others, self._rows.highest(), now)
        self._registered(same, batch, now)
        left = [each for each in batch if each[0].number not in receipts]
        if receipts:
            if left:
                self._write(left, now)
        elif len(batch) > 1:
            self._write_halves(batch, now)
        else:
            self._spool.decide([self._refused(batch[0][0], refusal.message, now)], now)

    def _registered(self, ids: Mapping[int, int], batch: Sequence[tuple[Entry, NewRow, WholeFile]], now: float) -> None:
        """These numbers are registered."""
        changes = [
            {
                "number": entry.number,
                "state": "registered",
                "path": row.path,
                "identity": identity(entry.announcement, row.path, row.md5),
                "md5": row.md5,
                "file_id": ids[entry.number],
                "signature": found.signature,
                "reason": None,
                "due": time.time() + LOOK_AGAIN,
            }
            for entry, row, found in batch
            if entry.number in ids
        ]
        if not changes:
            return
        self._spool.decide(changes, now)
        self._locked -= ids.keys()
        self._highest = max(self._highest, *ids)
        self._metrics.outcomes.labels("registered").inc(len(changes))
        _log.info("registered", files=len(changes), last=changes[-1]["path"])

    def _compare_receipts(self) -> None:
        """Compares the highest receipt with the spool's own: where it is lower, the database is a backup's."""
        assert self._rows is not None
        highest = self._rows.highest()
        missing = self._spool.registered_above(highest)
        if missing:
            known = {entry.number: entry for entry in missing}
            kept = self._rows.restore_receipts(
                {number: Receipt(entry.file_id or 0, entry.path, entry.md5) for number, entry in known.items()}
            )
            again = [{"number": number, "state": "waiting", "due": 0.0} for number in known.keys() - kept]
            _log.error("database_restored", highest_receipt=highest, receipts=len(kept), registered_again=len(again))
            self._spool.decide(again, time.time())
            highest = max(kept, default=highest)
        elif highest > self._spool.last_number():
            self._spool.renumber([], highest, time.time())
        self._highest = highest

    def _prune(self, now: float) -> None:
        if now < self._prune_from:
            return
        assert self._rows is not None
        self._prune_from = now + _PRUNE_EVERY
        with suppress(RowLocked):
            self._rows.prune(self._spool.forgotten_until(now))
        if self._spool.prune(now):
            self._prune_from = now + _IDLE

    def _set_trouble(self, text: str) -> None:
        if text and text != self.trouble:
            _log.error("registration_waits", detail=text)
        elif self.trouble and not text:
            _log.info("registration_works")
        self.trouble = text


def _next_hour(entry: Entry, now: float) -> float | None:
    return now + _HOUR if now - entry.received < _GIVE_UP else None
