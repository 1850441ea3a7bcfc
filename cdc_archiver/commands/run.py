"""`cdc-archiver run`: the service, or with ``--reconcile`` one pass over the table."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from typing import Annotated, Final

import typer

from cdc_archiver.commands.output import print_to_stderr, progress_bar
from cdc_archiver.errors import ExitStatus
from cdc_archiver.observe.logs import set_up_logs
from cdc_archiver.service.reconcile_completion import ReconcileCompletion, ReconcileProgress, ReconcileResult
from cdc_archiver.service.supervisor import Supervisor
from cdc_archiver.settings import Settings, parse_duration
from cdc_archiver.text import format_size

HELP: Final = """
Archive files as they are registered, until SIGTERM.

Precedence of settings: flags, environment, configuration file.

Examples:

  cdc-archiver run --data-dir /data/pysmurf --host data@smurf-srv --target pysmurf-monitor

  cdc-archiver run --config /etc/cdc_archiver.toml --reconcile

Exit status: 0 done; 1 internal error; 2 wrong usage or configuration; 3 `--reconcile` ended with files that are not archived; 4 the
database or a source cannot be reached.
"""


def run(
    settings: Settings,
    load_again: Callable[[], Settings],
    reconcile: Annotated[bool, typer.Option("--reconcile", help="Sweep once, copy what was missed, exit.")] = False,
    wait: Annotated[
        str,
        typer.Option("--wait", metavar="TIME", help="With --reconcile: how long to watch a running service."),
    ] = "10m",
) -> ExitStatus:
    set_up_logs(settings.log_format, settings.log_level)
    if reconcile:
        return _reconcile(settings, parse_duration(wait))
    archiver = Supervisor(settings, load_again)
    _on_signals(archiver.stop)
    at_a_terminal = sys.stdin is not None and sys.stdin.isatty()
    hang_up = archiver.stop if at_a_terminal else archiver.reload  # the terminal is gone, or somebody wants a reload
    signal.signal(signal.SIGHUP, lambda *_: hang_up())
    return archiver.run()


def _reconcile(settings: Settings, wait: float) -> ExitStatus:
    with progress_bar("files", None) as show:

        def on_progress(now: ReconcileProgress) -> None:
            show(now.done, total=now.total, extra=format_size(now.size))

        reconciliation = ReconcileCompletion(wait, on_progress)
        supervisor = Supervisor(settings, reconciliation=reconciliation)
        _on_signals(supervisor.stop)
        status = supervisor.run()
    if (result := reconciliation.result) is not None:
        print(_summary(result))
        for line in result.problems:
            print_to_stderr(line)
    return status


def _summary(result: ReconcileResult) -> str:
    left = result.left
    who = "the running service archived" if result.watched else "archived"
    return (
        f"{who} {result.archived}; left: {left.pending} pending, {left.quarantined} quarantined, "
        f"{left.refused} refused, {left.ignored} ignored"
    )


def _on_signals(stop: Callable[[], None]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stop())
