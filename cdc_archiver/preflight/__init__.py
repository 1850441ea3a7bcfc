"""Checks this machine, the database, the sources and the disk, for ``check`` and the start; each finding has its fix.

The checks are independent: one that raises is a finding, and the others run all the same.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import chain
from threading import Thread

from cdc_archiver.database.connections import Database
from cdc_archiver.preflight.database_checks import archive_known_to, database_findings
from cdc_archiver.preflight.disk_checks import destination_findings
from cdc_archiver.preflight.findings import CheckStatus, Finding, Report, print_report
from cdc_archiver.preflight.source_checks import machine_findings, source_findings
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
    """Runs all checks, those of the sources in parallel. Never raises."""
    database = Database(settings)
    of_database, *of_sources = _run_in_parallel(
        lambda: database_findings(database, settings),
        *(partial(source_findings, source) for source in settings.sources),
    )
    of_disk = destination_findings(settings, archive_known_to(database, settings))
    database.close()
    return Report((*machine_findings(settings), *of_database, *chain(*of_sources), *of_disk))


def _run_in_parallel(*checks: Callable[[], list[Finding]]) -> list[list[Finding]]:
    """Runs all checks at the same time, each in a thread.

    It uses no pool: the process would wait for the pool's threads at its end, and a host that is down answers late.
    """
    findings: list[list[Finding]] = [[] for _ in checks]

    def run(number: int, check: Callable[[], list[Finding]]) -> None:
        findings[number] = check()

    threads = [Thread(target=run, args=each, name="preflight", daemon=True) for each in enumerate(checks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return findings
