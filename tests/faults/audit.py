"""The invariants of an archive: watched all the time, and audited row by row and file by file at the end."""

from __future__ import annotations

import hashlib
import os
import re
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Self

from archive_places import staging_of
from files_table import TABLE
from private_site import HISTORY, PrivateSite

from cdc_archiver.database.operator_history import LATE
from cdc_archiver.model import REFUSED_FROM
from cdc_archiver.transfer.rsync import PARTIAL

_READ = 1 << 20
_TRIAL = ".check-"


class ExpectedResult(StrEnum):
    """The expected result for a registered file. For a bad file: the reason of its failed attempts or its refusal."""

    GOOD = "good"
    MISSING = "missing"
    CHANGED = "changed"
    NOT_A_FILE = "not_a_file"


class RegistrationState(StrEnum):
    """What the database knows about a file."""

    PLANNED = "planned"
    """Unknown: the INSERT is under way, or its commit was not acknowledged."""
    REGISTERED = "registered"
    WITHDRAWN = "withdrawn"
    """Its transaction was rolled back: it must never be archived."""
    SUPERSEDED = "superseded"
    """Its row was given to another file: it may be in the archive, if it was archived before."""


@dataclass(frozen=True)
class ExpectedFile:
    """A file that was written and registered, identified by its md5, which is unique.

    Attributes:
        place: its path in the archive, relative to data_dir.
        size: in bytes.
    """

    md5: bytes
    place: str
    size: int
    fate: ExpectedResult = ExpectedResult.GOOD


class ExpectedFiles:
    """The registered files, recorded independently of the database. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: dict[bytes, ExpectedFile] = {}
        self._standing: dict[bytes, RegistrationState] = {}
        self.handled: set[int] = set()
        """Rows that were changed by hand, or given to another file: their history differs."""

    def plan(self, files: Iterable[ExpectedFile]) -> None:
        """Records files before their registration: from now on they may appear in the archive."""
        with self._lock:
            for file in files:
                self._files[file.md5] = file
                self._standing[file.md5] = RegistrationState.PLANNED

    def set(self, files: Iterable[ExpectedFile], standing: RegistrationState) -> None:
        """Records the database's answer."""
        with self._lock:
            self._standing.update({file.md5: standing for file in files})

    def handle(self, *ids: int) -> None:
        """Records rows that are about to be changed by hand."""
        with self._lock:
            self.handled.update(ids)

    def get(self, md5: bytes) -> ExpectedFile | None:
        with self._lock:
            return self._files.get(md5)

    def standing(self, md5: bytes) -> RegistrationState | None:
        with self._lock:
            return self._standing.get(md5)

    def all(self, standing: RegistrationState) -> list[ExpectedFile]:
        """The files in one state."""
        with self._lock:
            return [file for file in self._files.values() if self._standing[file.md5] is standing]

    def __len__(self) -> int:
        with self._lock:
            return sum(standing is RegistrationState.REGISTERED for standing in self._standing.values())


@dataclass(frozen=True)
class _Seen:
    inode: int
    size: int
    changed_ns: int


class ArchiveWatcher:
    """Watches the archive: a file at a final path must be complete at once, and must not change.

    A directory is listed again if its modification time has changed, or is too recent to be reliable; files seen before are
    checked again now and then.
    """

    _YOUNG = 2.0
    _ALL_EVERY = 10.0

    def __init__(self, data_dir: Path, expected_files: ExpectedFiles) -> None:
        self._data_dir = data_dir
        self._expected_files = expected_files
        self._seen: dict[str, _Seen] = {}
        self._listed: dict[str, tuple[int, list[str]]] = {}
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="archive-watcher", daemon=True)
        self.half: list[str] = []
        """Files that, when first seen, differed from what was registered for that path."""
        self.unsteady: list[str] = []
        """Files that vanished or changed."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._stop.set()
        self._thread.join(60.0)
        if kind is None and self._failure is not None:
            raise self._failure

    @property
    def files(self) -> int:
        """Number of files seen so far."""
        return len(self._seen)

    def _run(self) -> None:
        try:
            looked_at_all = time.monotonic()
            while not self._stop.is_set():
                began = time.monotonic()
                self._look_at_directory("")
                if began - looked_at_all > self._ALL_EVERY:
                    looked_at_all = began
                    self._look_again()
                # Leave the machine to the service: watch a quarter of the time.
                self._stop.wait(max(0.01, 3 * (time.monotonic() - began)))
            self._look_at_directory("", anew=True)
            self._look_again()
        except BaseException as error:
            self._failure = error

    def _look_at_directory(self, directory: str, *, anew: bool = False) -> None:
        path = self._data_dir / directory
        try:
            changed = path.stat().st_mtime_ns
        except FileNotFoundError:
            self.unsteady.append(f"the directory {directory} is gone")
            return
        known = self._listed.get(directory)
        if known is None or known[0] != changed or time.time() - changed / 1e9 < self._YOUNG or anew:
            known = (changed, self._list(directory))
            self._listed[directory] = known
        for below in known[1]:
            self._look_at_directory(below, anew=anew)

    def _list(self, directory: str) -> list[str]:
        below = []
        with os.scandir(self._data_dir / directory) as entries:
            for entry in entries:
                name = os.path.join(directory, entry.name)
                if directory == "" and _is_ours(entry.name):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    below.append(name)
                elif name not in self._seen:
                    self._take(name)
        return below

    def _take(self, name: str) -> None:
        path = self._data_dir / name
        try:
            md5 = md5_of(path)
            self._seen[name] = _seen(path)
        except FileNotFoundError:
            self.unsteady.append(f"{name} was there and is gone")
            return
        expected = self._expected_files.get(md5)
        if expected is None:
            self.half.append(
                f"{name} has {self._seen[name].size} bytes and the md5 {md5.hex()}, which was not registered"
            )
        elif without_number(name, expected.place) is None:
            self.half.append(f"{name} is what belongs at {expected.place}")

    def _look_again(self) -> None:
        for name, before in list(self._seen.items()):
            try:
                now = _seen(self._data_dir / name)
            except FileNotFoundError:
                self.unsteady.append(f"{name} was there and is gone")
                del self._seen[name]
                continue
            if now != before:
                self.unsteady.append(f"{name} was {before} and is {now}")
                self._seen[name] = now


@dataclass(frozen=True)
class Audit:
    """What is wrong; all empty if nothing is.

    Attributes:
        lost: good files with a row that are not archived, or without their row.
        duplicated: files archived twice, numbered without need, or written back twice.
        wrongly_charged: rows whose counter or history contradicts the expected result.
        half: files that were incomplete at first, changed, or vanished.
        orphans: files at final paths without a row.
        left: files in staging although no transfer runs.
    """

    rows: int
    files: int
    size: int
    bad: int
    lost: tuple[str, ...] = ()
    duplicated: tuple[str, ...] = ()
    wrongly_charged: tuple[str, ...] = ()
    half: tuple[str, ...] = ()
    orphans: tuple[str, ...] = ()
    left: tuple[str, ...] = ()

    @property
    def wrong(self) -> dict[str, tuple[str, ...]]:
        """The lists, by name."""
        return {field.name: found for field in fields(self) if isinstance(found := getattr(self, field.name), tuple)}

    @property
    def clean(self) -> bool:
        """Whether nothing is wrong."""
        return not any(self.wrong.values())

    def __str__(self) -> str:
        lines = [f"{name}: {len(found)}: " + "; ".join(found[:5]) for name, found in self.wrong.items() if found]
        return "\n".join([f"{self.rows} rows, {self.files} files, {self.size} bytes", *lines])


def audit(
    stage: PrivateSite, expected_files: ExpectedFiles, watcher: ArchiveWatcher, *, max_attempts: int = 5
) -> Audit:
    """Compares rows, history, archive and expected files, while nothing is registered or archived."""
    return _Auditor(stage, expected_files, max_attempts).audit(watcher)


@dataclass(frozen=True)
class _Row:
    id: int
    path: str
    copied: bool
    attempts: int
    md5: bytes

    def __str__(self) -> str:
        return f"row {self.id} ({self.path}, copied {self.copied:d}, attempts {self.attempts})"


class _Auditor:
    def __init__(self, stage: PrivateSite, expected_files: ExpectedFiles, max_attempts: int) -> None:
        self._stage = stage
        self._expected_files = expected_files
        self._max_attempts = max_attempts
        self._lost: list[str] = []
        self._duplicated: list[str] = []
        self._charged: list[str] = []
        self._orphans: list[str] = []

    def audit(self, watcher: ArchiveWatcher) -> Audit:
        rows = self._rows()
        disk = dict(self._disk())
        self._compare_rows(rows, disk)
        self._compare_history(rows)
        self._compare_files(rows, disk)
        return Audit(
            rows=len(rows),
            files=len(disk),
            size=sum((self._stage.data_dir / name).stat().st_size for name in disk),
            bad=sum(
                1
                for row in rows
                if (file := self._expected_files.get(row.md5)) and file.fate is not ExpectedResult.GOOD
            ),
            lost=tuple(self._lost),
            duplicated=tuple(self._duplicated),
            wrongly_charged=tuple(self._charged),
            half=(*watcher.half, *watcher.unsteady),
            orphans=tuple(self._orphans),
            left=tuple(self._left()),
        )

    def _rows(self) -> list[_Row]:
        found = self._stage.sql(f"SELECT id, path, copied, failed_copy_attempts, md5sum FROM {TABLE} ORDER BY id")
        return [_Row(id_, path, bool(copied), attempts or 0, md5) for id_, path, copied, attempts, md5 in found]

    def _disk(self) -> Iterator[tuple[str, bytes]]:
        """Every file at a final path, and its md5."""
        for entry in sorted(os.listdir(self._stage.data_dir)):
            if _is_ours(entry):
                continue
            for parent, _, names in os.walk(self._stage.data_dir / entry):
                for name in names:
                    path = Path(parent, name)
                    yield str(path.relative_to(self._stage.data_dir)), md5_of(path)

    def _compare_rows(self, rows: list[_Row], disk: Mapping[str, bytes]) -> None:
        there = {row.md5 for row in rows}
        for file in self._expected_files.all(RegistrationState.REGISTERED):
            if file.md5 not in there:
                self._lost.append(f"the row of {file.place} is gone")
        for row in rows:
            expected = self._expected_files.get(row.md5)
            if expected is None or self._expected_files.standing(row.md5) is RegistrationState.WITHDRAWN:
                self._lost.append(f"{row} was never registered so")
            elif expected.fate is ExpectedResult.GOOD:
                self._compare_good(row, expected, disk)
            else:
                self._compare_bad(row, expected)

    def _compare_good(self, row: _Row, expected: ExpectedFile, disk: Mapping[str, bytes]) -> None:
        if row.attempts:
            self._charged.append(f"{row} has failed attempts, but its file is good")
        if not row.copied:
            self._lost.append(f"{row} is not archived")
            return
        name = os.path.relpath(row.path, self._stage.data_dir)
        if without_number(name, expected.place) is None:
            self._lost.append(f"{row} belongs at {expected.place}")
        elif disk.get(name) != row.md5:
            self._lost.append(f"{row} names a file that is {'another' if name in disk else 'not there'}")

    def _compare_bad(self, row: _Row, expected: ExpectedFile) -> None:
        refused = expected.fate is ExpectedResult.NOT_A_FILE
        right = row.attempts == REFUSED_FROM if refused else 1 <= row.attempts <= self._max_attempts
        if row.copied or not right:
            self._charged.append(f"{row} is {expected.fate}")

    def _compare_history(self, rows: list[_Row]) -> None:
        recorded: dict[int, Counter[tuple[str, str | None]]] = defaultdict(Counter)
        for id_, result, reason in self._stage.sql(f"SELECT file_id, result, reason FROM {HISTORY}"):
            if result != LATE:  # of a timecode that was complete: no attempt
                recorded[id_][result, reason] += 1
        for row in rows:
            expected = self._expected_files.get(row.md5)
            if expected is None or row.id in self._expected_files.handled:
                continue
            of_row = recorded[row.id]
            archived = of_row["archived", None] + of_row["adopted", None]
            if archived > 1:
                self._duplicated.append(f"{row} was written back {archived} times: {dict(of_row)}")
            if expected.fate is ExpectedResult.GOOD:
                right = set(of_row) <= {("archived", None), ("adopted", None)}
            elif expected.fate is ExpectedResult.NOT_A_FILE:
                right = of_row == Counter({("refused", expected.fate.value): 1})
            else:
                right = of_row == Counter({("charged", expected.fate.value): row.attempts})
            # Counter and history are written in one transaction: they must agree.
            if not right or (row.copied and archived == 0):
                self._charged.append(f"{row} is {expected.fate}; its history: {dict(of_row)}")

    def _compare_files(self, rows: list[_Row], disk: Mapping[str, bytes]) -> None:
        named = {os.path.relpath(row.path, self._stage.data_dir) for row in rows if row.copied}
        by_md5: dict[bytes, list[str]] = defaultdict(list)
        for name, md5 in disk.items():
            by_md5[md5].append(name)
            expected = self._expected_files.get(md5)
            if name not in named and (
                expected is None or self._expected_files.standing(md5) is not RegistrationState.SUPERSEDED
            ):
                self._orphans.append(f"no row names {name} ({self._expected_files.standing(md5)})")
            # A number is used only if the names before it are taken.
            number = without_number(name, expected.place) if expected else None
            if expected and number and (before := _numbered(expected.place, number - 1)) not in disk:
                self._duplicated.append(f"{name} is there, and {before} is not")
        for names in by_md5.values():
            if len(names) > 1:
                self._duplicated.append(f"one file is there as {', '.join(names)}")

    def _left(self) -> Iterator[str]:
        """Files in staging, except those kept for a day (partial files for the next attempt, files of a killed check), and files
        that belong neither to staging nor to the archive."""
        yield from (n for n in os.listdir(self._stage.data_dir) if _is_ours(n))
        for parent, _, names in os.walk(staging_of(self._stage.data_dir)):
            if not any(part == PARTIAL or part.startswith(_TRIAL) for part in Path(parent).parts):
                yield from (os.path.join(parent, name) for name in names)


def without_number(name: str, place: str) -> int | None:
    """0 if a name is the place, n if it is the place with ``.n``, None otherwise."""
    if name == place:
        return 0
    found = re.fullmatch(r"\.([1-9][0-9]*)", name.removeprefix(place)) if name.startswith(place) else None
    return int(found[1]) if found else None


def md5_of(path: Path) -> bytes:
    md5 = hashlib.md5()
    with path.open("rb") as file:
        while chunk := file.read(_READ):
            md5.update(chunk)
    return md5.digest()


def _is_ours(name: str) -> bool:
    return name.startswith(".")


def _numbered(place: str, number: int) -> str:
    return f"{place}.{number}" if number else place


def _seen(path: Path) -> _Seen:
    # Not the inode's change time: removing the other name of a placed file changes it later.
    found = path.lstat()
    return _Seen(found.st_ino, found.st_size, found.st_mtime_ns)
