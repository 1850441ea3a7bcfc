"""`cdc-archiver status`: how things are."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import typer
from rich.console import Group
from rich.live import Live
from rich.text import Text

from cdc_archiver import __version__
from cdc_archiver.commands.output import Page, files_words, print_json, size_words
from cdc_archiver.commands.status_overview import Overview, overview
from cdc_archiver.errors import ArchiverError, ExitStatus
from cdc_archiver.observe.logs import set_up_logs
from cdc_archiver.settings import Settings, parse_duration
from cdc_archiver.settings.types import LogLevel
from cdc_archiver.text import escape_unprintable
from cdc_archiver.timespec import format_age, format_duration, format_time

HELP: Final = """
Say how things are.

Stream, lag, mode, sources, what waits and what was given up, the last hour.

Asks the running service (--http-host, --http-port); where none answers, the database, and says so.

Examples:

  cdc-archiver status

  cdc-archiver status --watch

  cdc-archiver status --json | jq .service.state

Exit status: 0 told; 4 neither a service nor the database answers.
"""

_Line = list[str | tuple[str, str]]
_GOOD: Final = {"streaming", "polling", "standby"}


def status(
    settings: Settings,
    watch: Annotated[bool, typer.Option("--watch", help="Go on, until Ctrl-C.")] = False,
    every: Annotated[str, typer.Option("--every", metavar="TIME", help="With --watch: how often.")] = "2s",
    as_json: Annotated[bool, typer.Option("--json", help="For scripts; with --watch, one line each time.")] = False,
) -> ExitStatus:
    set_up_logs(settings.log_format, LogLevel.ERROR)
    pause = max(0.2, parse_duration(every))
    if not watch:
        seen = overview(settings, datetime.now(UTC))
        if as_json:
            print_json(seen)
        else:
            _print(Page(), seen)
        return ExitStatus.DONE
    with contextlib.suppress(KeyboardInterrupt):
        _watch(settings, pause, as_json=as_json)
    return ExitStatus.DONE


def _watch(settings: Settings, pause: float, *, as_json: bool) -> None:
    page = Page()
    if as_json or not page.is_terminal:
        while True:
            seen = overview(settings, datetime.now(UTC))
            if as_json:
                print_json(seen, line=True)
            else:
                _print(page, seen)
                page.line()
            time.sleep(pause)
    with Live(console=page.console, auto_refresh=False, transient=False) as live:
        while True:
            try:
                lines = list(_lines(overview(settings, datetime.now(UTC))))
            except ArchiverError as error:  # it comes back, or a person ends us
                lines = [[(f"{format_time(datetime.now(UTC))}  {error}", "bold red")]]
            live.update(Group(*(_text(line) for line in lines)), refresh=True)
            time.sleep(pause)


def _print(page: Page, seen: Overview) -> None:
    for line in _lines(seen):
        page.line(*line)


def _text(line: _Line) -> Text:
    text = Text(no_wrap=True, overflow="ellipsis")
    for part in line:
        words, style = (part, "") if isinstance(part, str) else part
        text.append(escape_unprintable(words), style or None)
    return text


def _lines(seen: Overview) -> Iterator[_Line]:
    if seen.service is not None:
        try:
            yield from _of_service(seen, seen.service)
        except KeyError as error:
            words = f"it is version {seen.service.get('version')}, this is {__version__}: it does not say {error}"
            yield [("             ", "dim"), (words, "yellow")]
    else:
        yield [("service      ", "dim"), (f"{seen.why_no_service}", "yellow")]
        if seen.holder:
            yield [("             ", "dim"), f"but an archiver holds these targets: {seen.holder}"]
        yield [("             ", "dim"), f"what follows was counted in the database just now, table {seen.table}"]
        for name, source in seen.sources.items():
            yield from _source(name, source, seen.at)
    if seen.rate is not None:
        rate = seen.rate
        yield [
            ("last hour    ", "dim"),
            f"{files_words(rate.files)}, {size_words(rate.size)} archived ({rate.files / 60:.1f} files/min)",
        ]
    else:
        yield [("last hour    ", "dim"), f"not known: {seen.why_no_rate}"]


def _of_service(seen: Overview, service: dict[str, Any]) -> Iterator[_Line]:
    state, why = str(service["state"]), str(service.get("why") or "")
    style = "bold green" if state in _GOOD else "bold red"
    since = datetime.fromisoformat(service["started"])
    yield [
        ("service      ", "dim"),
        (state, style),
        f" {why}" if why else "",
        f"  (up for {format_duration((seen.at - since).total_seconds())})",
    ]
    yield [("database     ", "dim"), f"{service['database']}, table {service.get('table') or 'not known yet'}"]
    stream = service.get("stream")
    if stream is not None:
        if stream["connected"]:
            lag = stream["lag"]
            words = f"connected at {stream['position']}, lag {'not known' if lag is None else f'{lag:.0f} s'}"
            yield [("stream       ", "dim"), (words, "green")]
        else:
            yield [("stream       ", "dim"), ("none", "yellow"), f": {stream['why']}"]
    last = service.get("last_sweep")
    as_of = f", as of the last sweep, {format_time(datetime.fromisoformat(last))}" if last else ""
    for source in service["sources"]:
        yield from _source(source["state"]["name"], source, seen.at, as_of)
    for other in service.get("elsewhere", ()):
        yield [("source       ", "dim"), f"{other['name']} is another archiver's: {other['holder']}"]
    destination = service.get("destination")
    if destination is not None:
        free = destination.get("free_bytes")
        if destination["up"]:
            room = f", {size_words(free)} free" if free is not None else ""
            yield [("archive      ", "dim"), f"{destination['path']}", (" up", "green"), room]
        else:
            yield [
                ("archive      ", "dim"),
                f"{destination['path']}",
                (" DOWN", "bold red"),
                f" {destination['reason']}: {destination['detail']}",
            ]
    if state != "standby":
        yield [("last sweep   ", "dim"), format_age(datetime.fromisoformat(last), seen.at) if last else "none yet"]
    yield [("archived     ", "dim"), f"{files_words(service['archived'])} since the start"]


def _source(name: str, source: dict[str, Any], now: datetime, as_of: str = "") -> Iterator[_Line]:
    state, files = source.get("state"), source.get("files")
    line: _Line = [("source       ", "dim"), name]
    if state is not None:
        line.append((" up", "green") if state["up"] else (" DOWN", "bold red"))
        if not state["up"]:
            line.append(f" {state['reason']}: {state['detail']} (again in {format_duration(state['retry_in'])})")
        line.append(f", {state['queued']} queued, {state['in_flight']} in flight")
    yield line
    if files is None:
        yield [("             ", "dim"), "not counted yet"]
        return
    counted: _Line = [("             ", "dim"), f"{files['pending']} pending"]
    for kind, style in (("quarantined", "bold red"), ("refused", "red"), ("ignored", "")):
        counted += [", ", (f"{files[kind]} {kind}", style if files[kind] else "")]
    oldest = files.get("oldest_pending")
    if oldest is not None:
        then = datetime.fromisoformat(oldest) if isinstance(oldest, str) else oldest
        counted.append(f"; the oldest pending is of {format_time(then)}, {format_age(then, now)}")
    yield [*counted, as_of]
