"""`cdc-archiver check`: prints what preflight finds."""

from __future__ import annotations

import json
from typing import Annotated, Final

import typer
from rich.console import Console

from cdc_archiver.errors import ExitStatus
from cdc_archiver.observe.logs import set_up_logs
from cdc_archiver.preflight import print_report, run_checks
from cdc_archiver.settings import Settings

HELP: Final = """
Check database, sources and disk.

Prints a fix for each problem.

Exit status: 0 no check fails; 1 internal error; 2 something has to be fixed; 4 the database or a source cannot be reached.
"""


def check(
    settings: Settings,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> ExitStatus:
    set_up_logs(settings.log_format, settings.log_level)
    report = run_checks(settings)
    if as_json:
        print(json.dumps(report.as_dict(), indent=2))
    else:
        print_report(report, Console())
    return report.exit_status
