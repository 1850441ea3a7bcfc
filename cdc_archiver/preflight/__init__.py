"""What ``check`` and the start ask of this machine, the database, the sources and the disk, with what mends each fault.

Each question stands alone: one that breaks is a finding, and the others are asked all the same.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from cdc_archiver.database.engine import Database
from cdc_archiver.preflight.database import database_findings, knows_archived
from cdc_archiver.preflight.disk import destination_findings
from cdc_archiver.preflight.findings import Finding, Report, Status, print_report
from cdc_archiver.preflight.source import machine_findings, source_findings
from cdc_archiver.settings import Settings

__all__ = [
    "Finding",
    "Report",
    "Status",
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
    with ThreadPoolExecutor(max_workers=len(settings.sources) + 1) as pool:
        sources = [pool.submit(source_findings, source) for source in settings.sources]
        about_database = pool.submit(database_findings, database, settings)
        findings = [*machine_findings(settings), *about_database.result()]
        for source in sources:
            findings += source.result()
        findings += destination_findings(settings, known=knows_archived(database, settings))
    database.close()
    return Report(tuple(findings))
