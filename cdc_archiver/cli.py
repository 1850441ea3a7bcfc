"""The command line: wires the commands, and turns an error into one line and an exit status."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Final

import typer

from cdc_archiver import __version__
from cdc_archiver.commands import (
    check,
    hand_over,
    hold,
    init_db,
    mark_archive,
    monitor,
    register,
    retry,
    run,
    shadow,
    status,
)
from cdc_archiver.commands import list as list_
from cdc_archiver.commands.output import print_to_stderr
from cdc_archiver.commands.timecodes import timecodes
from cdc_archiver.commands.verify import verify
from cdc_archiver.commands.why import why
from cdc_archiver.errors import ArchiverError, ExitStatus
from cdc_archiver.settings.flags import DATABASE, SERVICE, SOURCE, with_settings, with_settings_of
from cdc_archiver.transfer import passwd_entry

_ARCHIVE: Final = DATABASE | SERVICE | SOURCE | {"data_dir"}

app = typer.Typer(
    name="cdc-archiver",
    help="Archives the files that an instrument registers in a database table, as soon as they are registered.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


app.command(help=run.HELP)(with_settings(run.run))
app.command(help=check.HELP)(with_settings(check.check))
app.command(help=status.HELP)(with_settings_of(DATABASE | SERVICE | {"target", "spool"})(status.status))
app.command(help=why.HELP)(with_settings_of(_ARCHIVE | {"spool"})(why.why))
app.command(help=retry.RETRY_HELP)(with_settings_of(DATABASE)(retry.retry))
app.command(help=retry.IGNORE_HELP)(with_settings_of(DATABASE)(retry.ignore))
app.command("list", help=list_.HELP)(with_settings_of(DATABASE | SERVICE)(list_.list_files))
app.command(help=verify.HELP)(with_settings_of(_ARCHIVE - SERVICE)(verify.verify))
app.command(help=register.HELP)(with_settings_of(DATABASE | {"source_root"})(register.register))
app.command(help=shadow.HELP)(with_settings_of(DATABASE | {"data_dir", "poll_interval"})(shadow.shadow))
app.command(help=monitor.HELP)(with_settings_of(monitor.SETTINGS)(monitor.monitor))
app.command(help=timecodes.HELP)(with_settings_of(DATABASE | {"data_dir"})(timecodes.timecodes))
app.command(help=hold.HOLD_HELP)(with_settings_of(DATABASE)(hold.hold))
app.command(help=hold.UNHOLD_HELP)(with_settings_of(DATABASE | {"data_dir"})(hold.unhold))
app.command("hand-over", help=hand_over.HELP)(with_settings_of(DATABASE | {"data_dir"})(hand_over.hand_over))
app.command("mark-archive", help=mark_archive.HELP)(with_settings_of(_ARCHIVE - SERVICE)(mark_archive.mark_archive))
app.command("init-db", help=init_db.HELP)(with_settings(init_db.init_db))


@app.command()
def demo(
    database: Annotated[str, typer.Option("--db", help="mariadb or mysql.")] = "mariadb",
    files: Annotated[int, typer.Option("--files", min=20, help="About how many files.")] = 1200,
    largest: Annotated[str, typer.Option("--largest", help="Size of the largest file.")] = "200M",
) -> None:
    """Play an observing session and archive it.

    Runs on private servers, checks that each file arrived, and cleans up. It changes nothing on this machine. If MariaDB or
    MySQL, sshd or rsync is not installed, it is fetched into a cache directory.

    Exit status: 0 every file is archived and proved.
    """
    from cdc_archiver.demo.entry_point import run_demo  # a service needs none of the sandbox

    raise typer.Exit(run_demo(database, files, largest))


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """Archives the files that an instrument registers in a database table, as soon as they are registered."""


def _open_closed_streams() -> None:
    """Leads closed standard streams (``>&-``) to nowhere: else print fails, and a socket or file may get their number."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, os.fdopen(descriptor, "r" if name == "stdin" else "w", encoding="utf-8"))


def _discard_output() -> str:
    """Why standard output cannot be written, empty where it can; if not, what is left goes nowhere, also at the end."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return error.strerror or str(error)
    return ""


def main() -> None:
    """The entry point: an error becomes one line on standard error and its exit status."""
    _open_closed_streams()
    environment = passwd_entry.passwd_entry_environment()
    if sys.getfilesystemencoding() != "utf-8":  # file names are UTF-8 in the product, whatever the locale
        environment["PYTHONUTF8"] = "1"
    if environment:
        os.execve(sys.executable, [sys.executable, "-m", "cdc_archiver", *sys.argv[1:]], {**os.environ, **environment})
    try:
        exit_status = app(standalone_mode=False, prog_name="cdc-archiver")
        sys.stdout.flush()
    except ArchiverError as error:
        print_to_stderr(str(error))
        exit_status = error.exit_status
    except KeyboardInterrupt:
        exit_status = 130
    except BrokenPipeError:  # `list | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        exit_status = ExitStatus.INTERNAL_ERROR
    except OSError:
        if not (why := _discard_output()):
            raise
        print_to_stderr(f"the output cannot be written: {why}; fix: redirect it to a disk that has room")
        exit_status = ExitStatus.INTERNAL_ERROR
    except Exception as error:
        # A wrong flag or argument, in the words of the library that reads them.
        if not hasattr(error, "format_message"):
            raise
        message = error.format_message()
        if message.startswith("Usage:"):
            print(message)
        elif message:
            print_to_stderr(f"{message} (see --help)")
        exit_status = ExitStatus.USAGE
    sys.exit(int(exit_status or 0))
