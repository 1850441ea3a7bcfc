"""What the registrar on this machine knows, from its spool, for `status` and `why`. Never raises."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from cdc_archiver.commands.output import Cell
from cdc_archiver.errors import Misconfigured
from cdc_archiver.registrar.lifecycle import spool_path
from cdc_archiver.registrar.spool_reading import (
    Entry,
    SpoolFacts,
    count_received,
    find_in_spool,
    is_in_use,
    open_to_read,
    read_facts,
)
from cdc_archiver.settings import Settings
from cdc_archiver.timespec import format_age, format_time


@dataclass(frozen=True, slots=True)
class LocalRegistrar:
    """The registrar whose spool is on this machine. Field names are keys of ``--json``.

    Attributes:
        note: why the spool cannot be read; the numbers are None then.
        received, registered: announcements that the spool has had, and rows of those that it remembers.
    """

    spool: str
    running: bool
    received: int | None
    registered: int | None
    facts: SpoolFacts | None
    note: str


def find_registrar(settings: Settings) -> LocalRegistrar | None:
    """The registrar on this machine; None where there is no spool."""
    try:
        path = spool_path(settings)
        if not path.exists():
            return None
    except (Misconfigured, OSError):
        return None
    running = is_in_use(path)
    try:
        with open_to_read(path) as connection:
            received, registered = count_received(connection)
            return LocalRegistrar(str(path), running, received, registered, read_facts(connection), "")
    except sqlite3.Error as error:
        return LocalRegistrar(str(path), running, None, None, None, f"{path} cannot be read: {error}")


def registrar_lines(found: LocalRegistrar, now: datetime) -> Iterator[list[Cell]]:
    """The lines of `status`."""
    state = ("registering", "bold green") if found.running else ("not running", "bold red")
    yield [("registrar    ", "dim"), state, f", spool {found.spool}"]
    facts = found.facts
    if facts is None:
        yield [("             ", "dim"), (found.note, "yellow")]
        return
    line: list[Cell] = [("             ", "dim"), f"{found.received} received, {facts.waiting} waiting"]
    line.append(f", {found.registered} registered")
    for number, kind in ((facts.refused, "refused"), (facts.lost, "lost"), (facts.gaps, "missing in sequences")):
        line += [", ", (f"{number} {kind}", "bold red" if number else "")]
    if facts.oldest is not None:
        line.append(f"; the oldest waits since {format_age(datetime.fromtimestamp(facts.oldest, UTC), now)}")
    yield line


def announcements(settings: Settings, wanted: str) -> list[Entry]:
    """What the spool has about a file, newest first.

    Args:
        wanted: a path or a part of one, or the id of a row.
    """
    try:
        path = spool_path(settings)
        return find_in_spool(path, wanted) if path.exists() else []
    except (Misconfigured, OSError, sqlite3.Error):
        return []


def announcement_text(entry: Entry) -> str:
    """A sentence about an announcement."""
    received = format_time(datetime.fromtimestamp(entry.received, UTC))
    state = {
        "registered": f"registered as row {entry.file_id}",
        "known": f"registered before, as row {entry.file_id}",
    }.get(entry.state, entry.state)
    return f"{entry.path}: announced {received}, {state}{f': {entry.reason}' if entry.reason else ''}"
