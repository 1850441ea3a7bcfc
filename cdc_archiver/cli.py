"""The commands that an operator types: parse, call, print; nothing else."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Annotated, Final

import typer
from rich.console import Console

from cdc_archiver import __version__
from cdc_archiver.commands import init_db as init_db_operation
from cdc_archiver.commands import list as list_command
from cdc_archiver.commands import register as register_command
from cdc_archiver.commands import retry as retry_command
from cdc_archiver.commands import shadow as shadow_command
from cdc_archiver.commands import status as status_command
from cdc_archiver.commands.output import counting, size_words
from cdc_archiver.commands.verify import command as verify_command
from cdc_archiver.commands.why import command as why_command
from cdc_archiver.errors import ArchiverError, ExitStatus
from cdc_archiver.observe.logs import set_up_logs
from cdc_archiver.preflight import print_report, run_checks
from cdc_archiver.service.reconciliation import ReconcileProgress, ReconcileResult, Reconciliation
from cdc_archiver.service.supervisor import Supervisor
from cdc_archiver.settings import Settings, duration
from cdc_archiver.settings.flags import DATABASE, SERVICE, SOURCE, with_settings, with_settings_of
from cdc_archiver.text import escape_unprintable
from cdc_archiver.transfer import nss_account

_RUN_EXAMPLES: Final = """
Archive files as they are registered, until SIGTERM.

Examples:

  cdc-archiver run --data-dir /data/pysmurf --host data@smurf-srv --target pysmurf-monitor

  cdc-archiver run --config /etc/cdc_archiver.toml --reconcile

Exit status: 0 done; 1 internal error; 2 wrong usage or configuration; 3 `--reconcile` finished with files still not
right; 4 the database or a source cannot be reached.
"""

app = typer.Typer(
    name="cdc-archiver",
    help="Archives the files that an instrument registers in a database table, as it registers them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.command(help=_RUN_EXAMPLES)
@with_settings
def run(
    settings: Settings,
    load_again: Callable[[], Settings],
    reconcile: Annotated[bool, typer.Option("--reconcile", help="Sweep once, copy what was missed, exit.")] = False,
    wait: Annotated[
        str,
        typer.Option("--wait", metavar="TIME", help="With --reconcile: how long to watch a service that is at work."),
    ] = "10m",
) -> ExitStatus:
    set_up_logs(settings.log_format, settings.log_level)
    if reconcile:
        return _reconcile(settings, duration(wait))
    archiver = Supervisor(settings, load_again)
    _on_signals(archiver.stop)
    at_a_terminal = sys.stdin is not None and sys.stdin.isatty()
    hang_up = archiver.stop if at_a_terminal else archiver.reload  # the terminal is gone, or somebody wants a reload
    signal.signal(signal.SIGHUP, lambda *_: hang_up())
    return archiver.run()


@app.command()
@with_settings
def check(
    settings: Settings,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> ExitStatus:
    """Ask database, sources and disk whether files can be archived, and say what fixes what is not right.

    Exit status: 0 nothing fails; 2 something has to be fixed; 4 the database or a source cannot be reached.
    """
    set_up_logs(settings.log_format, settings.log_level)
    report = run_checks(settings)
    if as_json:
        print(json.dumps(report.as_dict(), indent=2))
    else:
        print_report(report, Console())
    return report.exit_status


_ARCHIVE: Final = DATABASE | SERVICE | SOURCE | {"data_dir"}

app.command(help=status_command.HELP)(with_settings_of(DATABASE | SERVICE | {"target"})(status_command.status))
app.command(help=why_command.HELP)(with_settings_of(_ARCHIVE)(why_command.why))
app.command(help=retry_command.RETRY_HELP)(with_settings_of(DATABASE)(retry_command.retry))
app.command(help=retry_command.IGNORE_HELP)(with_settings_of(DATABASE)(retry_command.ignore))
app.command("list", help=list_command.HELP)(with_settings_of(DATABASE | SERVICE)(list_command.list_files))
app.command(help=verify_command.HELP)(with_settings_of(_ARCHIVE - SERVICE)(verify_command.verify))
app.command("register", help=register_command.HELP)(
    with_settings_of(DATABASE | {"source_root"})(register_command.register_files)
)
app.command(help=shadow_command.HELP)(with_settings_of(DATABASE | {"data_dir", "poll_interval"})(shadow_command.shadow))


@app.command("init-db")
@with_settings
def init_db(
    settings: Settings,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the statements.")] = False,
) -> ExitStatus:
    """Create the table of files where there is none, the index that keeps sweeps cheap, and the history.

    Run it once, as a database user that may CREATE and INDEX. The index of a large table takes a while; its writers go on
    meanwhile. Where a long transaction keeps the table in use, it gives up after ten seconds.
    """
    set_up_logs(settings.log_format, settings.log_level)
    for line in init_db_operation.init_db(settings, dry_run=dry_run):
        print(line)
    return ExitStatus.DONE


@app.command()
def demo(
    database: Annotated[str, typer.Option("--db", help="mariadb or mysql.")] = "mariadb",
    files: Annotated[int, typer.Option("--files", min=20, help="About how many files.")] = 1200,
    largest: Annotated[str, typer.Option("--largest", help="Size of the largest file.")] = "200M",
) -> None:
    """Play an observing session on private servers of this machine, archive it, prove it, clean up.

    Touches nothing of this machine: MariaDB or MySQL, sshd and rsync are fetched into a cache directory where they are not
    installed. Exit status 0 when every file is archived and proved.
    """
    from cdc_archiver.demo.entry_point import run_demo  # private servers are no part of a service

    raise typer.Exit(run_demo(database, files, largest))


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """Archives the files that an instrument registers in a database table, as it registers them."""


def main() -> None:
    """The entry point: an error is one line on standard error and its exit status."""
    anew = nss_account.variables_of_a_lent_one()
    if sys.getfilesystemencoding() != "utf-8":  # names of files are UTF-8 here, whatever the locale
        anew["PYTHONUTF8"] = "1"
    if anew:
        os.execve(sys.executable, [sys.executable, "-m", "cdc_archiver", *sys.argv[1:]], {**os.environ, **anew})
    try:
        status = app(standalone_mode=False, prog_name="cdc-archiver")
        sys.stdout.flush()
    except ArchiverError as error:
        print(f"cdc-archiver: {escape_unprintable(str(error))}", file=sys.stderr)
        status = error.exit_status
    except KeyboardInterrupt:
        status = 130
    except BrokenPipeError:  # `list | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = ExitStatus.INTERNAL_ERROR
    except Exception as error:
        # A wrong flag or argument, as the library that reads them says it.
        if not hasattr(error, "format_message"):
            raise
        words = error.format_message()
        if words.startswith("Usage:"):
            print(words)
        elif words:
            print(f"cdc-archiver: {escape_unprintable(words)} (see --help)", file=sys.stderr)
        status = ExitStatus.USAGE
    sys.exit(int(status or 0))


def _reconcile(settings: Settings, wait: float) -> ExitStatus:
    with counting("files", None) as show:

        def on_progress(now: ReconcileProgress) -> None:
            show(now.done, total=now.total, beside=size_words(now.size))

        reconciliation = Reconciliation(wait, on_progress)
        supervisor = Supervisor(settings, reconciliation=reconciliation)
        _on_signals(supervisor.stop)
        status = supervisor.run()
    if (result := reconciliation.result) is not None:
        print(_sentence(result))
        for line in result.problems:
            print(f"cdc-archiver: {escape_unprintable(line)}", file=sys.stderr)
    return status


def _sentence(result: ReconcileResult) -> str:
    left = result.left
    who = "the running service archived" if result.watched else "archived"
    return (
        f"{who} {result.archived}; left: {left.pending} pending, {left.quarantined} quarantined, "
        f"{left.refused} refused, {left.ignored} ignored"
    )


def _on_signals(stop: Callable[[], None]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stop())
