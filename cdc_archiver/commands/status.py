"""`cdc-archiver status`: the current state, from the running service or, without one, from the database."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, TypeAlias

import typer
from rich.console import Group
from rich.live import Live

from cdc_archiver import __version__
from cdc_archiver.commands.context import CommandContext, open_context
from cdc_archiver.commands.local_registrar import LocalRegistrar, find_registrar, registrar_lines
from cdc_archiver.commands.output import Cell, Printer, print_json, styled_text
from cdc_archiver.commands.service_client import ServiceUnavailable, describe_other_table, fetch_status
from cdc_archiver.database.connections import ANSWER_TIMEOUT
from cdc_archiver.database.search import waiting_targets
from cdc_archiver.database.source_locks import SourceLocks
from cdc_archiver.errors import ArchiverError, ExitStatus
from cdc_archiver.observe.logs import set_up_logs
from cdc_archiver.settings import Settings, parse_duration
from cdc_archiver.settings.types import LogLevel
from cdc_archiver.text import format_file_count, format_size
from cdc_archiver.timecodes.status_types import REASON_FIXES
from cdc_archiver.timespec import format_age, format_duration, format_time

HELP: Final = """
Print the current state.

Mode, stream and lag, sources, pending and quarantined files, the last hour.

The running service answers (--http-host, --http-port). Without one, the files are counted in the database, and the output says so.

Examples:

  cdc-archiver status

  cdc-archiver status --watch

  cdc-archiver status --json | jq .service.state

Exit status: 0 done; 4 neither a service nor the database answers.
"""

_RATE_PERIOD: Final = timedelta(hours=1)
_GOOD: Final = {"streaming", "polling", "standby"}
_INDENT: Final = ("             ", "dim")
_Line: TypeAlias = list[Cell]


@dataclass(frozen=True, slots=True)
class Rate:
    """What was archived in the last hour.

    Attributes:
        size: bytes.
    """

    files: int
    size: int


@dataclass(frozen=True, slots=True)
class Overview:
    """The current state. Field names are keys of ``--json``.

    Attributes:
        service: the answer to /api/status; None without a service, for the reason ``why_no_service``.
        sources: the database's counts by source; only without a service.
        holder: who holds the locks of the configured sources; only without a service.
        rate: None if it is not known, for the reason ``why_no_rate``.
        registrar: the one on this machine; None where there is no spool.
    """

    at: datetime
    service: dict[str, Any] | None
    why_no_service: str
    table: str
    sources: dict[str, dict[str, Any]]
    holder: str | None
    rate: Rate | None
    why_no_rate: str
    registrar: LocalRegistrar | None = None


def status(
    settings: Settings,
    watch: Annotated[bool, typer.Option("--watch", help="Repeat until Ctrl-C.")] = False,
    every: Annotated[str, typer.Option("--every", metavar="TIME", help="With --watch: the interval.")] = "2s",
    as_json: Annotated[bool, typer.Option("--json", help="For scripts; with --watch, one line each time.")] = False,
) -> ExitStatus:
    set_up_logs(settings.log_format, LogLevel.ERROR)
    interval = max(0.2, parse_duration(every))
    if not watch:
        overview = get_overview(settings, datetime.now(UTC))
        if as_json:
            print_json(overview)
        else:
            _print(Printer(), overview)
        return ExitStatus.DONE
    with contextlib.suppress(KeyboardInterrupt):
        _watch(settings, interval, as_json=as_json)
    return ExitStatus.DONE


def get_overview(settings: Settings, now: datetime) -> Overview:
    """Asks the service, the database for what only the database knows, and the spool of a registrar on this machine.

    Args:
        now: aware.

    Raises:
        ArchiverError: none answers.
    """
    registrar = find_registrar(settings)
    try:
        return replace(_overview_of_archive(settings, now), registrar=registrar)
    except ArchiverError as error:
        if registrar is None:
            raise
        return Overview(now, None, error.message, "", {}, None, None, error.message, registrar)


def _overview_of_archive(settings: Settings, now: datetime) -> Overview:
    service, why = _ask_service(settings)
    try:
        with open_context(settings, ANSWER_TIMEOUT) as context:
            if service is not None and (other := describe_other_table(settings, service, context.files.name)):
                # Counts of another database would not belong to this service.
                why_no_rate = f"the service works on {other}, and the settings here name another database"
                return Overview(now, service, "", str(service.get("table")), {}, None, None, why_no_rate)
            rate, why_no_rate = _rate(context, now)
            sources = _count(context) if service is None else {}
            holder = _holder(context) if service is None else None
            return Overview(now, service, why, context.files.name, sources, holder, rate, why_no_rate)
    except ArchiverError as error:
        if service is None:
            raise type(error)(f"{why}; and {error.message}", error.hint) from error
        return Overview(now, service, "", str(service.get("table") or ""), {}, None, None, error.message)


def _ask_service(settings: Settings) -> tuple[dict[str, Any] | None, str]:
    try:
        return fetch_status(settings), ""
    except ServiceUnavailable as error:
        return None, error.message


def _rate(context: CommandContext, now: datetime) -> tuple[Rate | None, str]:
    if context.history is None:
        return None, context.no_history
    with context.database.connect() as connection:
        files, size = context.history.archived_since(connection, now - _RATE_PERIOD, context.settings.targets)
    return Rate(files, size), ""


def _count(context: CommandContext) -> dict[str, dict[str, Any]]:
    with context.database.connect() as connection:
        if context.settings.sources:
            counted = {
                source.name: (source.target, source.host, context.files.census(connection, source.target))
                for source in context.settings.sources
            }
        else:
            targets = tuple(waiting_targets(connection, context.files))
            counted = {"all targets": (targets, "", context.files.census(connection, targets))}
    return {
        name: {"targets": list(targets), "host": host, "files": asdict(census)}
        for name, (targets, host, census) in counted.items()
    }


def _holder(context: CommandContext) -> str | None:
    locks = SourceLocks(
        context.database, context.files.name, {source.name: source.target for source in context.settings.sources}
    )
    try:
        holders = [locks.holder(source.name) for source in context.settings.sources]
    finally:
        locks.close()
    return "; ".join(sorted({holder for holder in holders if holder})) or None


def _watch(settings: Settings, interval: float, *, as_json: bool) -> None:
    printer = Printer()
    if as_json or not printer.is_terminal:
        while True:
            overview = get_overview(settings, datetime.now(UTC))
            if as_json:
                print_json(overview, line=True)
            else:
                _print(printer, overview)
                printer.line()
            time.sleep(interval)
    with Live(console=printer.console, auto_refresh=False, transient=False) as live:
        while True:
            try:
                lines = list(_lines(get_overview(settings, datetime.now(UTC))))
            except ArchiverError as error:  # it may come back; until then a person watches the message
                lines = [[(f"{format_time(datetime.now(UTC))}  {error}", "bold red")]]
            texts = [styled_text(line, no_wrap=True, overflow="ellipsis") for line in lines]
            live.update(Group(*texts), refresh=True)
            time.sleep(interval)


def _print(printer: Printer, overview: Overview) -> None:
    for line in _lines(overview):
        printer.line(*line)


def _lines(overview: Overview) -> Iterator[_Line]:
    if overview.registrar is not None:
        yield from registrar_lines(overview.registrar, overview.at)
    if overview.service is not None:
        try:
            yield from _service_lines(overview, overview.service)
        except KeyError as error:
            theirs = overview.service.get("version")
            yield [
                _INDENT,
                (f"the service has version {theirs}, this command {__version__}: {error} is missing", "yellow"),
            ]
    else:
        yield [("service      ", "dim"), (f"{overview.why_no_service}", "yellow")]
        if overview.holder:
            yield [_INDENT, f"but an archiver holds these targets: {overview.holder}"]
        if overview.table:
            yield [_INDENT, f"the following counts come from the database, table {overview.table}"]
        for name, source in overview.sources.items():
            yield from _source_lines(name, source, overview.at)
    if overview.rate is not None:
        rate = overview.rate
        yield [
            ("last hour    ", "dim"),
            f"{format_file_count(rate.files)}, {format_size(rate.size)} archived",
            f" ({rate.files / 60:.1f} files/min)" if rate.files >= 60 else "",
        ]
    else:
        yield [("last hour    ", "dim"), f"not known: {overview.why_no_rate}"]


def _service_lines(overview: Overview, service: dict[str, Any]) -> Iterator[_Line]:
    state, why = str(service["state"]), str(service.get("why") or "")
    tone = service.get("words", {}).get("headline", {}).get("tone")
    style = "bold red" if state not in _GOOD else "bold yellow" if tone == "warning" else "bold green"
    since = datetime.fromisoformat(service["started"])
    yield [
        ("service      ", "dim"),
        (state, style),
        f" {why}" if why else "",
        f"  (up for {format_duration((overview.at - since).total_seconds())})",
    ]
    yield [("database     ", "dim"), f"{service['database']}, table {service.get('table') or 'not known yet'}"]
    stream = service.get("stream")
    if stream is not None:
        if stream["connected"]:
            lag = stream["lag"]
            text = f"connected at {stream['position']}, lag {'not known' if lag is None else f'{lag:.0f} s'}"
            yield [("stream       ", "dim"), (text, "green")]
        else:
            yield [("stream       ", "dim"), ("none", "yellow"), f": {stream['why']}"]
    if known_at := service.get("as_of"):
        then = format_time(datetime.fromisoformat(known_at))
        yield [_INDENT, (f"the following was so at {then}, when the database answered last", "yellow")]
    last = service.get("last_sweep")
    as_of = f", as of the last sweep, {format_time(datetime.fromisoformat(last))}" if last else ""
    for source in service["sources"]:
        yield from _source_lines(source["state"]["name"], source, overview.at, as_of)
    for other in service.get("elsewhere", ()):
        yield [("source       ", "dim"), f"{other['name']}, held by another archiver: {other['holder']}"]
    yield from _part_lines(service)
    if service.get("timecodes"):
        yield from _timecode_lines(service["timecodes"], overview.at)
    if service.get("retried"):
        yield [("retried      ", "dim"), *_retried_parts(service["retried"])]
    destination = service.get("destination")
    if destination is not None:
        yield [("archive      ", "dim"), f"{destination['path']}", *_destination_parts(destination)]
    if last or service["sources"]:
        yield [("last sweep   ", "dim"), format_age(datetime.fromisoformat(last), overview.at) if last else "none yet"]
    for note in service.get("attention", ()):
        yield [("attention    ", "dim"), (note, "bold red")]
    yield [("archived     ", "dim"), f"{format_file_count(service['archived'])} since the service's start"]


def _part_lines(service: dict[str, Any]) -> Iterator[_Line]:
    """Parts that are off, each with the statement that turns it on."""
    timecodes = service.get("timecodes") or {}
    for part, why in (
        ("history", "" if service.get("history") in ("kept", "") else service.get("history")),
        ("timecodes", timecodes.get("off_because")),
        ("holds and hand-overs", "" if service.get("marks") in ("kept", "") else service.get("marks")),
    ):
        if why:
            yield [("off          ", "dim"), (part, "yellow"), f": {why}"]


def _timecode_lines(known: dict[str, Any], now: datetime) -> Iterator[_Line]:
    if known["not_completing_because"]:
        yield [("timecodes    ", "dim"), (known["not_completing_because"], "bold red")]
    for mark in known["watermarks"]:
        if mark["finalized_until"] is None:
            why = (
                "a registrar has not reported yet" if mark["bound_by"] == "registrar" else "the table was not read yet"
            )
            yield [("watermark    ", "dim"), f"{mark['source']}: not known: {why}"]
            continue
        until = datetime.fromisoformat(mark["finalized_until"])
        line: _Line = [("watermark    ", "dim"), f"{mark['source']}: {format_time(until)}, {format_age(until, now)}"]
        line.append({"registrar": ", as far as the registrar has come", "hold": ", held"}.get(mark["bound_by"], ""))
        yield line
        if mark["bound_by"] == "row" and mark["oldest_id"] is not None:
            id_ = mark["oldest_id"]
            yield [_INDENT, f"held up by row {id_}, {mark['oldest_path']}"]
            yield [_INDENT, f"fix: cdc-archiver retry --id {id_}; or: cdc-archiver ignore {id_} --reason TEXT"]
        if mark["silent_registrars"]:
            yield [
                _INDENT,
                (f"{mark['silent_registrars']} registrar(s) silent; fix: start cdc-archiver monitor", "yellow"),
            ]
    for each in known["timecodes"]:
        if each["state"] != "blocked":
            continue
        reasons = ", ".join(f"{count} {reason}" for reason, count in each["reasons"].items())
        yield [
            ("timecode     ", "dim"),
            f"{each['timecode']} of {each['instance_id']} ",
            ("blocked", "bold red"),
            f": {reasons}",
        ]
        for fix in dict.fromkeys(REASON_FIXES[reason] for reason in each["reasons"] if reason in REASON_FIXES):
            yield [_INDENT, f"fix: {fix.format(timecode=each['timecode'])}"]


def _retried_parts(groups: list[dict[str, Any]]) -> _Line:
    files = sum(group["files"] for group in groups)
    line: _Line = [(f"{format_file_count(files)} tried again after a failure", "yellow"), ": "]
    for number, group in enumerate(groups):
        line.append(f"{', ' if number else ''}{group['files']} {group['reason']} ({group['source']}")
        when = group["retry_in"]
        line.append(")" if when is None else f", next in {format_duration(when)})")
    return line


def _destination_parts(destination: dict[str, Any]) -> _Line:
    if not destination["up"]:
        return [(" DOWN", "bold red"), f" {destination['reason']}: {destination['detail']}"]
    free = destination.get("free_bytes")
    return [(" up", "green"), f", {format_size(free)} free" if free is not None else ""]


def _source_lines(name: str, source: dict[str, Any], now: datetime, as_of: str = "") -> Iterator[_Line]:
    state, files = source.get("state"), source.get("files")
    line: _Line = [("source       ", "dim"), name]
    if state is not None:
        line.append((" up", "green") if state["up"] else (" DOWN", "bold red"))
        if not state["up"]:
            line.append(f" {state['reason']}: {state['detail']} (next attempt in {format_duration(state['retry_in'])})")
        line.append(f", {state['queued']} queued, {state['in_flight']} in flight")
        if stuck := state.get("not_recordable"):
            line += [", ", (f"{stuck} not recordable", "bold red"), " (`retry --reason not_recordable` tries again)"]
    yield line
    if files is None:
        yield [_INDENT, "not counted yet"]
        return
    counted: _Line = [_INDENT, f"{files['pending']} pending"]
    for kind, style in (("quarantined", "bold red"), ("refused", "red"), ("ignored", "")):
        counted += [", ", (f"{files[kind]} {kind}", style if files[kind] else "")]
    oldest = files.get("oldest_pending")
    if oldest is not None:
        then = datetime.fromisoformat(oldest) if isinstance(oldest, str) else oldest
        counted.append(f"; oldest pending: {format_time(then)}, {format_age(then, now)}")
    yield [*counted, as_of]
    if waiting := source.get("handed_over"):
        timecodes = ", ".join(list(waiting)[:5]) + (", …" if len(waiting) > 5 else "")
        text = f"{format_file_count(sum(waiting.values()))} of timecodes that were handed over"
        yield [
            _INDENT,
            (text, "yellow"),
            f" ({timecodes}): they wait until somebody decides, see `list --state pending`",
        ]
