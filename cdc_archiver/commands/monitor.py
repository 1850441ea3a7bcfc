"""`cdc-archiver monitor`: the registrar, from the instrument's messages to rows. Runs where the files are."""

from __future__ import annotations

import signal
import sqlite3
import time
from typing import Annotated, Final

import structlog
import typer
from rich.console import Console

from cdc_archiver.errors import ExitStatus, Misconfigured
from cdc_archiver.observe.http import HealthQueries, HttpServer
from cdc_archiver.observe.logs import set_up_logs
from cdc_archiver.observe.systemd import SystemdNotifier
from cdc_archiver.preflight import print_report
from cdc_archiver.preflight.registrar_checks import check_registrar
from cdc_archiver.registrar.lifecycle import RegistrarService, spool_path
from cdc_archiver.registrar.spool_reading import retry_undecided
from cdc_archiver.settings import Settings
from cdc_archiver.settings.flags import DATABASE, REGISTRAR
from cdc_archiver.text import format_file_count

HELP: Final = """
Register files as the instrument announces them, until SIGTERM.

Listens for the messages of pysmurf's Publisher (UDP, JSON) and writes a row for each file that a message of type data_file announces,
once the file is whole. It reads the files, so it runs on the readout server. Messages wait in the spool, on disk, while the database
is away.

The row's instance_id is the target, exactly one. Two registrars need a spool, a port and a target each.

Examples:

  cdc-archiver monitor --target pysmurf-monitor --source-root /data --spool /var/lib/cdc_archiver/registrar.spool

  cdc-archiver monitor --config /etc/cdc_archiver/registrar.toml --check

  cdc-archiver monitor --retry-lost

Exit status: 0 done; 1 internal error; 2 wrong usage or configuration, or a check fails; 4 with `--check`: the database cannot be reached.
"""

SETTINGS: Final = (
    (DATABASE - {"max_attempts"})
    | REGISTRAR
    | {
        "target",
        "source_root",
        "drain_timeout",
        "http_host",
        "log_format",
        "log_level",
    }
)
HTTP_PORT: Final = 9185
"""The service, which may run on the same machine, has 9184."""

_log = structlog.get_logger(__name__)


def monitor(
    settings: Settings,
    retry_lost: Annotated[
        bool,
        typer.Option("--retry-lost", help="Look for lost and refused files once more, now, and exit."),
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Check what it needs, print a fix for each problem, and exit.")
    ] = False,
    http_port: Annotated[
        int | None,
        typer.Option(
            "--http-port",
            metavar="NUMBER",
            help="Port of /metrics, /healthz, /readyz and /api/status. Default: 9185. [CDC_ARCHIVER_HTTP_PORT]",
            show_default=False,
        ),
    ] = None,
) -> ExitStatus:
    set_up_logs(settings.log_format, settings.log_level)
    if retry_lost:
        print(f"{format_file_count(_retry_lost(settings))} will be looked for now")
        return ExitStatus.DONE
    if check:
        report = check_registrar(settings)
        print_report(report, Console())
        return report.exit_status
    registrar = RegistrarService(settings)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: registrar.stop())
    signal.signal(signal.SIGIO, signal.SIG_IGN)  # sent when a writer opens a file on which a lease is held
    return serve(settings, registrar, http_port if http_port is not None else default_http_port(settings))


def default_http_port(settings: Settings) -> int:
    """The port where no flag names one."""
    return settings.http_port if "http_port" in settings.model_fields_set else HTTP_PORT


def serve(settings: Settings, registrar: RegistrarService, http_port: int) -> ExitStatus:
    """Runs a registrar with its HTTP server and its reports to the service manager.

    Raises:
        ArchiverError: with what a person has to fix, or the thread that crashed.
    """
    try:
        server = HttpServer(settings.http_host, http_port, HealthQueries(registrar.metrics.registry, registrar.status))
    except BaseException:
        registrar.close()
        raise
    notifier = SystemdNotifier.from_environment(registrar.status)
    helpers = [helper for helper in (server, notifier) if helper is not None]
    for helper in helpers:
        helper.on_end = registrar.thread_ended
        helper.start()
    host = settings.http_host
    _log.info("listening", address=f"http://{f'[{host}]' if ':' in host else host}:{server.port}")
    try:
        return registrar.run(notifier.announce_stop if notifier is not None else lambda: None)
    finally:
        for helper in reversed(helpers):
            helper.stop()
            helper.join(3.0)


def _retry_lost(settings: Settings) -> int:
    path = spool_path(settings)
    if not path.exists():
        raise Misconfigured(f"there is no spool {path}", "--spool FILE, as the registrar has it")
    try:
        return retry_undecided(path, time.time())
    except sqlite3.Error as error:
        raise Misconfigured(
            f"the spool {path} cannot be used: {error}", "--spool FILE, as the registrar has it"
        ) from error
