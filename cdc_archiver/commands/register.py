"""`cdc-archiver register`: inserts rows for files by hand, as the monitor would have. Runs where the files are."""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final

import sqlalchemy as sa
import typer

from cdc_archiver.commands import options
from cdc_archiver.commands.context import CommandContext, open_context
from cdc_archiver.commands.hashing import hash_file
from cdc_archiver.commands.output import Printer, print_json, print_to_stderr
from cdc_archiver.commands.suprsync import read_suprsync
from cdc_archiver.database.connections import error_code
from cdc_archiver.database.search import Criteria, walk
from cdc_archiver.errors import ExitStatus, LayoutRefused, Misconfigured, StatementRefused
from cdc_archiver.model import FileRecord
from cdc_archiver.observe.logs import set_up_logs
from cdc_archiver.settings import Settings
from cdc_archiver.settings.types import LogLevel
from cdc_archiver.text import format_file_count
from cdc_archiver.timespec import parse_time
from cdc_archiver.transfer import layout

HELP: Final = """
Register files by hand.

Registers files, and all files below directories, as the monitor would have. Path, md5 sum and times come from each file; flags give the
other values of its row.

The command reads the files, so it runs on the machine that has them. It needs the INSERT privilege on the table. Files that are already
registered or archived are left unchanged: archived files are recognised by the history, or by an archived row of the target with the
same name and md5.

Examples:

  cdc-archiver register /data/smurf_data/20260515 --action take_iv --pub-id crate1slot2 --target pysmurf-monitor --dry-run

  cdc-archiver register a.npy b.png --action take_iv --pub-id crate1slot2 --timestamp 2026-05-15T04:30

  cdc-archiver register --from-suprsync /data/so/suprsync.db --target pysmurf-monitor --dry-run

Exit status: 0 done; 2 wrong usage; 3 some files could not be registered; 4 the database cannot be reached.
"""

_CHUNK: Final = 200
_PAGE: Final = 5000
_NO_PRIVILEGE: Final = (1142, 1143)
"""The server's error numbers for a missing privilege on the table or on a column."""


class RegistrationOutcome(StrEnum):
    """The outcome for one file. The values are values of ``--json``."""

    REGISTERED = "registered"
    KNOWN = "known"
    """It was already registered or archived."""
    UNUSABLE = "unusable"
    """It cannot be read, is being written, or its row would be refused."""


@dataclass(frozen=True, slots=True)
class FileAttributes:
    """Values that a file does not contain, so the operator gives them.

    Attributes:
        timestamp, action_timestamp: None for each file's modification time.
        plot: None to decide by the name: ``.png`` is a plot.
        md5: for a file that is no longer there; None if it has to be.
    """

    target: str
    action: str
    pub_id: str
    timestamp: datetime | None = None
    action_timestamp: int | None = None
    plot: bool | None = None
    md5: bytes | None = None


@dataclass(frozen=True, slots=True)
class RegistrationResult:
    """One file and its outcome. Field names are keys of ``--json``.

    Attributes:
        place: its future archived path, below data_dir; empty if it was not registered.
        size: bytes.
        note: the reason why it was not registered.
    """

    path: str
    fate: RegistrationOutcome
    place: str = ""
    md5: bytes = b""
    size: int = 0
    note: str = ""


_STYLES: Final = {
    RegistrationOutcome.REGISTERED: "green",
    RegistrationOutcome.KNOWN: "dim",
    RegistrationOutcome.UNUSABLE: "bold red",
}


def register(
    settings: Settings,
    paths: Annotated[
        list[Path] | None, typer.Argument(metavar="[PATH...]", help="Files, and directories with files.")
    ] = None,
    action: Annotated[str, typer.Option("--action", metavar="NAME", help="The action that wrote the files.")] = "",
    pub_id: Annotated[str, typer.Option("--pub-id", metavar="NAME", help="The publisher of the files.")] = "",
    target: Annotated[
        str,
        typer.Option("--target", metavar="NAME", help="The files' instance_id. Default: the only configured target."),
    ] = "",
    timestamp: Annotated[
        str,
        typer.Option(
            "--timestamp", metavar="TIME", help="The time of registration. Default: each file's modification time."
        ),
    ] = "",
    action_timestamp: Annotated[
        str,
        typer.Option(
            "--action-timestamp", metavar="TIME", help="The time of the action. Default: each file's modification time."
        ),
    ] = "",
    plot: Annotated[
        bool | None, typer.Option("--plot/--no-plot", help="The files are plots. Default: those with a name in .png.")
    ] = None,
    from_suprsync: Annotated[
        Path | None,
        typer.Option(
            "--from-suprsync",
            metavar="FILE",
            help="Instead of paths: what suprsync has not copied yet, from its database.",
        ),
    ] = None,
    with_copied: Annotated[
        bool, typer.Option("--all", help="With --from-suprsync: also what suprsync has copied; adopted by its md5.")
    ] = False,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
) -> ExitStatus:
    set_up_logs(settings.log_format, LogLevel.ERROR)
    _require_what_to_register(paths, action, pub_id, from_suprsync, with_copied=with_copied)
    registered_at, action_at = _time(timestamp), _time(action_timestamp)
    outcomes: Counter[RegistrationOutcome] = Counter()
    printer = Printer()
    with open_context(settings) as context:
        attributes = FileAttributes(
            target=target or _only_target(context),
            action=action,
            pub_id=pub_id,
            timestamp=registered_at,
            action_timestamp=int(action_at.timestamp()) if action_at else None,
            plot=plot,
        )
        if context.history is None:
            print_to_stderr(f"archived files are recognised by name and md5 only: {context.no_history}")
        results = (
            _register_from_suprsync(context, from_suprsync, attributes.target, with_copied=with_copied, dry_run=dry_run)
            if from_suprsync is not None
            else register_paths(context, paths or [], attributes, dry_run=dry_run)
        )
        for result in results:
            outcomes[result.fate] += 1
            if as_json:
                print_json(result, line=True)
            else:
                _print_result(printer, result, dry_run=dry_run)
    if not as_json:
        verb = "would register" if dry_run else "registered"
        printer.line(
            (f"{verb} {format_file_count(outcomes[RegistrationOutcome.REGISTERED])}", "bold"),
            f", {outcomes[RegistrationOutcome.KNOWN]} already known, {outcomes[RegistrationOutcome.UNUSABLE]} unusable",
        )
    return ExitStatus.INCOMPLETE if outcomes[RegistrationOutcome.UNUSABLE] else ExitStatus.DONE


def _require_what_to_register(
    paths: list[Path] | None, action: str, pub_id: str, from_suprsync: Path | None, *, with_copied: bool
) -> None:
    if from_suprsync is not None:
        if paths or action or pub_id:
            raise Misconfigured("--from-suprsync has paths, actions and publishers itself", "leave the others out")
        return
    if with_copied:
        raise Misconfigured("--all is for --from-suprsync", "--from-suprsync FILE")
    for name, value in (("PATH", paths), ("--action", action), ("--pub-id", pub_id)):
        if not value:
            raise Misconfigured(f"{name} is missing", "register PATH… --action NAME --pub-id NAME, see --help")


def _register_from_suprsync(
    context: CommandContext, database: Path, target: str, *, with_copied: bool, dry_run: bool
) -> Iterator[RegistrationResult]:
    wanted: dict[str, FileAttributes] = {}
    for file in read_suprsync(database, with_copied=with_copied):
        if file.unusable:
            yield RegistrationResult(file.path, RegistrationOutcome.UNUSABLE, note=file.unusable)
            continue
        wanted[file.path] = FileAttributes(
            target=target,
            action=file.action,
            pub_id=file.pub_id,
            timestamp=datetime.fromtimestamp(file.timestamp, UTC),
            action_timestamp=file.action_timestamp,
            plot=file.plot,
            md5=file.md5 if with_copied else None,
        )
    yield from _register_files(context, wanted, dry_run=dry_run)


def _only_target(context: CommandContext) -> str:
    targets = context.settings.targets
    if len(targets) != 1:
        raise Misconfigured(
            "the files' target is not known",
            f"add --target with one of {', '.join(targets)}" if targets else "add --target NAME",
        )
    return targets[0]


def _time(text: str) -> datetime | None:
    """A time in seconds since the epoch, or in a form of :func:`moment`."""
    if not text:
        return None
    if text.isascii() and text.isdigit():
        try:
            return datetime.fromtimestamp(int(text), UTC)
        except (OverflowError, ValueError, OSError):
            raise Misconfigured(f"invalid time: {text}", "use seconds since 1970, or 2026-05-15T04:30") from None
    return parse_time(text, datetime.now(UTC))


def _print_result(printer: Printer, result: RegistrationResult, *, dry_run: bool) -> None:
    label = "would" if dry_run and result.fate is RegistrationOutcome.REGISTERED else result.fate.value
    more = {
        RegistrationOutcome.REGISTERED: f" -> {result.place}",
        RegistrationOutcome.KNOWN: f": {result.note}" if result.note else "",
        RegistrationOutcome.UNUSABLE: f": {result.note}",
    }[result.fate]
    printer.line((f"{label:11}", _STYLES[result.fate]), f"{result.path}{more}")


def register_paths(
    context: CommandContext, paths: Iterable[Path], attributes: FileAttributes, *, dry_run: bool
) -> Iterator[RegistrationResult]:
    """Registers files, and all files below directories; does not follow links.

    Raises:
        Misconfigured: a path does not exist, or the user lacks the INSERT privilege.
    """
    unusable: list[RegistrationResult] = []
    found = list(dict.fromkeys(file for path in paths for file in _files_of(path, unusable)))
    yield from unusable
    yield from _register_files(context, dict.fromkeys(found, attributes), dry_run=dry_run)


def _register_files(
    context: CommandContext, wanted: Mapping[str, FileAttributes], *, dry_run: bool
) -> Iterator[RegistrationResult]:
    known = _KnownPaths(context, list(wanted))
    known.refresh()
    width = context.files.path_width
    with context.database.connect() as connection:
        columns = {str(column["name"]) for column in sa.inspect(connection).get_columns(context.files.name)}
    waiting: list[tuple[dict[str, Any], RegistrationResult]] = []
    for path, attributes in wanted.items():
        if path in known.paths:
            yield RegistrationResult(path, RegistrationOutcome.KNOWN)
            continue
        try:
            row, result = _row(context, path, attributes, width, with_format="format" in columns)
        except (OSError, ValueError) as error:
            note = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            yield RegistrationResult(path, RegistrationOutcome.UNUSABLE, note=note)
            continue
        except LayoutRefused as refusal:
            yield RegistrationResult(path, RegistrationOutcome.UNUSABLE, note=refusal.message)
            continue
        waiting.append((row, result))
        if len(waiting) >= _CHUNK:
            yield from _write(context, waiting, known, dry_run=dry_run)
            waiting = []
    yield from _write(context, waiting, known, dry_run=dry_run)


def _files_of(path: Path, unusable: list[RegistrationResult]) -> Iterator[str]:
    """The path itself, or the files below a directory; directories that cannot be read go to ``unusable``."""
    absolute = os.path.abspath(path)
    try:
        mode = os.lstat(absolute).st_mode
    except (OSError, ValueError) as error:
        raise Misconfigured(
            f"{absolute} does not exist: {error}", "run register on the machine that has the files"
        ) from error
    if not stat.S_ISDIR(mode):
        yield absolute
        return

    def on_error(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            note = error.strerror or str(error)
            unusable.append(RegistrationResult(str(error.filename), RegistrationOutcome.UNUSABLE, note=note))

    for directory, directories, names in os.walk(absolute, onerror=on_error):
        directories.sort()
        for name in sorted(names):
            file = os.path.join(directory, name)
            try:
                if stat.S_ISREG(os.lstat(file).st_mode):
                    yield file
            except OSError as error:  # a temporary file, gone by now
                on_error(error)


class _KnownPaths:
    """The paths that are in the table, or in the history: the row of an archived file has another path.

    Args:
        wanted: the paths to look for.
    """

    def __init__(self, context: CommandContext, wanted: list[str]) -> None:
        self._context = context
        self._wanted = set(wanted)
        self._above = os.path.commonpath([os.path.dirname(path) for path in wanted]) if wanted else ""
        # A name with a * or ? makes a pattern that matches more than itself; the surplus is dropped.
        self._pattern = self._above.rstrip("/") + "/*" if len(wanted) > 1 else "".join(wanted)
        self._newest: int | None = None
        self._line = 0
        self.paths: set[str] = set()

    def refresh(self) -> None:
        """Looks for the paths; later calls look at new rows only, since reading many files takes hours."""
        if not self._wanted:
            return
        context, before = self._context, self._newest
        with context.database.connect() as connection:
            self._newest = context.files.max_id(connection)
        # New rows are one range of the primary key; to find a path, the server reads the whole table.
        criteria = Criteria(paths=(self._pattern,)) if before is None else Criteria()
        rows = walk(context.database, context.files, criteria, newest_first=False, after=before)
        self.paths.update(row.record.path for row in rows if row.record.path in self._wanted)
        while context.history is not None:
            with context.database.connect() as connection:
                page = context.history.source_paths(connection, self._above, self._line, _PAGE)
            self.paths.update(path for _, path in page if path in self._wanted)
            self._line = page[-1][0] if page else self._line
            if len(page) < _PAGE:
                return


def _row(
    context: CommandContext, path: str, attributes: FileAttributes, width: int, *, with_format: bool
) -> tuple[dict[str, Any], RegistrationResult]:
    """The values of a new row, by column.

    Raises:
        OSError: the file cannot be read.
        ValueError: the path does not fit into the column, or the file is being written.
        LayoutRefused: the row would be refused.
    """
    try:
        path.encode()
    except UnicodeEncodeError:
        raise ValueError("its name is not valid UTF-8") from None
    if len(path) > width:
        raise ValueError(f"its path has {len(path)} characters, the column holds {width}")
    try:
        before = os.lstat(path)
        md5, size = hash_file(path)
        after = os.lstat(path)
        if (before.st_mtime_ns, before.st_size) != (after.st_mtime_ns, after.st_size):
            raise ValueError("it is being written")
        modified = datetime.fromtimestamp(int(before.st_mtime), UTC)
    except FileNotFoundError:
        if attributes.md5 is None or attributes.timestamp is None:
            raise
        md5, size, modified = attributes.md5, 0, attributes.timestamp
    timestamp = attributes.timestamp or modified
    action_timestamp = attributes.action_timestamp
    record = FileRecord(
        id=0,
        path=path,
        md5sum=md5,
        timestamp=timestamp.replace(microsecond=0),
        action=attributes.action,
        action_timestamp=int(modified.timestamp()) if action_timestamp is None else action_timestamp,
        plot=path.lower().endswith(".png") if attributes.plot is None else attributes.plot,
        pub_id=attributes.pub_id,
        instance_id=attributes.target,
        failed_copy_attempts=0,
    )
    place = str(layout.archived_path(record, context.settings.oldest_timestamp))
    source = context.source_of(attributes.target)
    if source is not None:
        layout.source_entry(record, source.source_root)
    values = {
        "path": path,
        "action": record.action,
        "timestamp": timestamp.replace(tzinfo=None, microsecond=0),
        "action_timestamp": record.action_timestamp,
        "plot": int(record.plot),
        "pub_id": record.pub_id,
        "instance_id": record.instance_id,
        "copied": 0,
        "failed_copy_attempts": 0,
        "md5sum": md5,
    }
    if with_format:
        values["format"] = os.path.splitext(path)[1][1:][:32]
    return values, RegistrationResult(path, RegistrationOutcome.REGISTERED, place, md5, size)


def _write(
    context: CommandContext,
    waiting: list[tuple[dict[str, Any], RegistrationResult]],
    known: _KnownPaths,
    *,
    dry_run: bool,
) -> Iterator[RegistrationResult]:
    if not waiting:
        return
    if not dry_run:
        known.refresh()
    archived = _archived_paths(context, [result for _, result in waiting], str(waiting[0][0]["instance_id"]))
    new = []
    for row, result in waiting:
        if result.path in known.paths or result.path in archived:
            note = f"archived as {archived[result.path]}" if result.path in archived else ""
            yield RegistrationResult(result.path, RegistrationOutcome.KNOWN, note=note)
        else:
            new.append((row, result))
    if dry_run or not new:
        yield from (result for _, result in new)
        return
    try:
        _insert(context, [row for row, _ in new])
    except StatementRefused:  # by one row of them; each is inserted separately, so that the others are registered
        yield from (_insert_one(context, *single) for single in new)
    else:
        yield from (result for _, result in new)


def _archived_paths(context: CommandContext, files: list[RegistrationResult], target: str) -> dict[str, str]:
    """The archived paths of files that the history does not know: archived by an older archiver, or before the history begins.

    Such a row has the file's md5 and its name, perhaps with a numeric suffix.
    """
    by_md5: dict[bytes, list[str]] = {}
    for file in files:
        by_md5.setdefault(file.md5, []).append(file.path)
    column, after, found = context.files.column, 0, {}
    conditions = (column("copied") != 0, column("instance_id") == target, column("md5sum").in_(by_md5))
    while True:
        with context.database.connect() as connection:
            page = context.files.rows(connection, *conditions, column("id") > after, newest_first=False, limit=_PAGE)
        for row in page:
            name = os.path.basename(row.record.path)
            for path in by_md5.get(row.record.md5sum, ()):
                if re.fullmatch(re.escape(os.path.basename(path)) + r"(\.[1-9]\d*)?", name):
                    found[path] = row.record.path
        if len(page) < _PAGE:
            return found
        after = page[-1].record.id


def _insert_one(context: CommandContext, row: dict[str, Any], result: RegistrationResult) -> RegistrationResult:
    try:
        _insert(context, [row])
    except StatementRefused as refusal:
        return replace(result, fate=RegistrationOutcome.UNUSABLE, place="", note=refusal.message)
    return result


def _insert(context: CommandContext, rows: list[dict[str, Any]]) -> None:
    try:
        with context.database.transaction() as connection:
            context.files.register(connection, rows)
    except Misconfigured as error:
        if error_code(error.__cause__ or error) not in _NO_PRIVILEGE:
            raise
        raise Misconfigured(
            error.message,
            f"GRANT INSERT ON {context.database.name}.{context.files.name} TO '{context.settings.mysql_user}'@'%'",
        ) from error
