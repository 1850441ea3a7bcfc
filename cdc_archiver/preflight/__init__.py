"""What ``check`` and the start ask of this machine, the database, the sources and the disk, with what fixes each fault.

Each question stands alone: one that breaks is a finding, and the others are asked all the same.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import chain
from threading import Thread

from cdc_archiver.database.connections import Database
from cdc_archiver.preflight.database import database_findings, knows_archived
from cdc_archiver.preflight.disk import destination_findings
from cdc_archiver.preflight.findings import CheckStatus, Finding, Report, print_report
from cdc_archiver.preflight.source import machine_findings, source_findings
from cdc_archiver.settings import Settings

__all__ = [
    "CheckStatus",
    "Finding",
    "Report",
    "database_findings",
    "destination_findings",
    "machine_findings",
    "print_report",
    "run_checks",
    "source_findings",
]


def run_checks(settings: Settings) -> Report:
    """Asks everything, the sources side by side. Never raises."""
    database = Database(settings)
    about_database, *about_sources = _side_by_side(
        lambda: database_findings(database, settings),
        *(partial(source_findings, source) for source in settings.sources),
    )
    about_disk = destination_findings(settings, known=knows_archived(database, settings))
    database.close()
    return Report((*machine_findings(settings), *about_database, *chain(*about_sources), *about_disk))


def _side_by_side(*questions: Callable[[], list[Finding]]) -> list[list[Finding]]:
    """Asks all at the same time.

    Not with a pool: the end of the process would wait for its threads, and a host that is down answers late.
    """
    answers: list[list[Finding]] = [[] for _ in questions]

    def ask(number: int, question: Callable[[], list[Finding]]) -> None:
        answers[number] = question()

    threads = [Thread(target=ask, args=each, name="preflight", daemon=True) for each in enumerate(questions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers
