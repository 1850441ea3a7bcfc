"""A batch from records to outcomes: planned, brought by one rsync, verified, placed; an outcome as soon as one is known."""

from __future__ import annotations

import contextlib
import os
import posixpath
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

import structlog
import tenacity

from cdc_archiver.errors import CopyTrouble, DestinationUnavailable, HostUnavailable, LayoutRefused, Misconfigured
from cdc_archiver.model import (
    Archived,
    AttemptFailed,
    Batch,
    Deferred,
    FileRecord,
    Lane,
    Outcome,
    Oversize,
    Reason,
    Refused,
    Scope,
    Steps,
)
from cdc_archiver.settings import Settings, SourceSettings
from cdc_archiver.settings.types import Verify
from cdc_archiver.transfer import layout, mount_heuristic, rsync_output
from cdc_archiver.transfer.probe import FileState, Probe
from cdc_archiver.transfer.rsync import Limits, RsyncRun, common_directory, rsync_command
from cdc_archiver.transfer.ssh import ControlMaster, peer
from cdc_archiver.transfer.staging import Archive, Placed, Staged

_TRIES: Final = 3
_PATIENCE: Final = 10.0
"""Seconds that one call may spend on trying a batch again; trouble that lasts longer is the dispatcher's to wait for."""

_LOOKS: Final = 20
_LOOK_AGAIN: Final = 0.001
"""How often, and after how many seconds, we look whether a file has got its name."""

_DIRECTORIES_LOOKED_AT: Final = 5
_LOOKED_AT: Final = 100
"""Files that a diagnosis looks at, at the most."""

_log = structlog.get_logger(__name__)

_SEEN: Final = {
    FileState.MISSING: Reason.MISSING,
    FileState.UNREADABLE: Reason.UNREADABLE,
    FileState.NOT_A_FILE: Reason.NOT_A_FILE,
    FileState.ROOT_GONE: Reason.SOURCE_NOT_MOUNTED,
}


class Copier:
    """Archives batches. Keeps no state between calls but the connections; safe to share between threads.

    Args:
        settings: limits, modes, how to verify.
        archive: where to.
        path_width: characters that the row's column ``path`` holds.
        cancel: set from elsewhere to give up what is under way.
    """

    def __init__(self, settings: Settings, archive: Archive, path_width: int, cancel: threading.Event) -> None:
        self._settings = settings
        self._archive = archive
        self._path_width = path_width
        self._cancel = cancel
        self._masters: dict[str, ControlMaster] = {}
        self._mastering = threading.Lock()
        self._closed = False

    def archive(self, source: SourceSettings, batch: Batch) -> Iterator[Outcome]:
        """Archives a batch's files.

        Args:
            source: where they are.
            batch: of that source; its worker's name is used by no other call at the same time.

        Yields:
            One outcome for each record, as soon as it is known.
        """
        work = _Work(self._settings, self._archive, self._path_width, self._cancel, source, batch)
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_may_pass_soon),
            stop=tenacity.stop_after_attempt(_TRIES) | tenacity.stop_before_delay(_PATIENCE),
            wait=tenacity.wait_exponential(multiplier=0.2, max=2.0) + tenacity.wait_random(0.0, 0.2),
            sleep=self._pause,
            reraise=True,
        )
        try:
            yield from work.plan()
            for attempt in retrying:
                with attempt:
                    if work.wanted and not self._cancel.is_set():
                        yield from work.run(self._control_path(source))
        except CopyTrouble as trouble:
            if trouble.reason.scope is Scope.CONFIGURATION or trouble.reason is Reason.STALLED:
                self._renew_connection(source)
            yield from work.defer(trouble.reason, str(trouble))
        except Misconfigured as error:  # ssh cannot even be asked: no account for this uid, an unusable path
            yield from work.defer(Reason.LOGIN_REFUSED, str(error))
        except OSError as error:  # no process, no descriptor, no memory to be had
            yield from work.defer(Reason.DESTINATION_UNWRITABLE, f"this machine: {error}")
        if self._cancel.is_set():
            yield from work.defer(Reason.STOPPING, "the service stops")
        yield from work.defer(Reason.UNDECIDED, "rsync gave neither the file nor a reason")
        with contextlib.suppress(DestinationUnavailable, OSError):  # said with the next batch
            work.clear()

    def close(self) -> None:
        """Ends the connections."""
        with self._mastering:
            self._closed = True
            for master in self._masters.values():
                master.close()

    def _pause(self, seconds: float | None) -> None:
        self._cancel.wait(seconds)

    def _renew_connection(self, source: SourceSettings) -> None:
        if master := self._master_of(source):
            master.renew()

    def _master_of(self, source: SourceSettings) -> ControlMaster | None:
        with self._mastering:
            if source.is_local or self._closed:
                return None
            return self._masters.setdefault(source.name, ControlMaster(source))

    def _control_path(self, source: SourceSettings) -> Path | None:
        master = self._master_of(source)
        path = master.ensure() if master else None
        if master and path is None:
            _log.debug("no_shared_connection", source=source.name, detail=master.words)
        return path


class _Work:
    """One call's work: what is still to be decided of its batch."""

    def __init__(
        self,
        settings: Settings,
        archive: Archive,
        path_width: int,
        cancel: threading.Event,
        source: SourceSettings,
        batch: Batch,
    ) -> None:
        self._settings = settings
        self._archive = archive
        self._path_width = path_width
        self._cancel = cancel
        self._source = source
        self._bulk = batch.lane is Lane.BULK
        self._worker = batch.worker
        self._undecided = {record.id: record for record in batch.records}
        self._entries_at_first = 0
        self._finals: dict[int, str] = {}
        self._top = os.path.join(archive.data_dir, "")
        self._entries: dict[int, bytes] = {}
        self._started = time.monotonic()
        self.wanted: dict[bytes, list[FileRecord]] = {}

    def plan(self) -> Iterator[Outcome]:
        """Finds out where each file belongs, and takes what lies there already.

        Raises:
            DestinationUnavailable: nothing can be written now.
        """
        self._archive.require_ready()
        directories: dict[str, bool] = {}
        for record in list(self._undecided.values()):
            try:
                self._plan(record)
            except LayoutRefused as refusal:
                yield self._decide(_outcome(record, rsync_output.Verdict(refusal.reason, refusal.message)))
                continue
            final = self._finals[record.id]
            directory = os.path.dirname(final)
            if directory not in directories:
                directories[directory] = os.path.isdir(directory)
            placed = self._archive.find(final, record.md5sum) if directories[directory] else None
            if placed is not None:
                yield self._decide(Archived(record, placed.path, placed.size, adopted=True))
            else:
                self.wanted.setdefault(self._entries[record.id], []).append(record)
        self._entries_at_first = len(self.wanted)

    def run(self, control_path: Path | None) -> Iterator[Outcome]:
        """Brings what is wanted with one rsync, from the directory that all of it lies below.

        Where that directory cannot be entered, from the source root: what that says is about each file.

        Raises:
            CopyTrouble: it failed by no file's fault; what arrived before counts.
        """
        directory = common_directory(list(self.wanted))
        if not (yield from self._run(directory, control_path)):
            yield from self._run(b"", control_path)

    def _run(self, directory: bytes, control_path: Path | None) -> Generator[Outcome, None, bool]:
        """One rsync; False where it did not begin, and nothing is decided."""
        limits = Limits(
            max_size=None if self._bulk else self._source.small_limit,
            io_timeout=self._source.io_timeout,
            stall_timeout=self._source.stall_timeout,
            rate=self._source.timetable.rate_at(datetime.now().time()),
        )
        staging = self._archive.staging_directory(self._source.staging_name, self._worker)
        # What an earlier try left there would look like what this one brings.
        self.clear()
        # Staged files lie where their entry says, wherever rsync begins: the part of a large one is found again.
        self._archive.make_staged_directory(staging, directory)
        command = rsync_command(self._source, staging, self._settings.modes, limits, control_path, directory)
        run = RsyncRun(command, list(self.wanted), staging, limits, self._cancel, directory)
        changed: dict[bytes, bytes] = {}
        held: list[rsync_output.Line] = []
        silent = True
        for lines in run.lines():
            silent = False
            ready, held = _in_place([*held, *self._about_wanted(lines)], staging)
            yield from self._take(ready, changed)
        if run.cancelled:
            return True
        if directory and silent and not run.stalled and self._began_elsewhere(run, directory):
            return False
        yield from self._take(_in_place(held, staging)[0], changed)
        if not self._cancel.is_set():  # what was given up says nothing of its file
            yield from self._end(run, directory, staging, changed)
        return True

    def _began_elsewhere(self, run: RsyncRun, directory: bytes) -> bool:
        """Whether a run that brought nothing did not begin where it was to: it could not; or nothing is there, as when a key's
        command names a directory of its own."""
        if rsync_output.could_not_begin(run.status, run.stderr):
            return True
        missing = self._ending(run, directory).files
        return all(entry in missing and missing[entry].reason is Reason.MISSING for entry in self.wanted)

    def _ending(self, run: RsyncRun, directory: bytes) -> rsync_output.ExitInfo:
        known_peer = None if self._source.is_local else peer(self._source)
        root = self._source.source_root
        return rsync_output.read_ending(run.status, run.stderr, root, self.wanted.keys(), known_peer, directory)

    def _about_wanted(self, lines: Sequence[rsync_output.Line]) -> list[rsync_output.Line]:
        """The lines about files that were asked for: the other side may print what it likes."""
        return [line for line in lines if line.entry in self.wanted]

    def defer(self, reason: Reason, detail: str) -> Iterator[Outcome]:
        """Gives back everything that is undecided."""
        for record in list(self._undecided.values()):
            yield self._decide(Deferred(record, reason, detail))

    def clear(self) -> None:
        """Leaves staging empty, but for parts of large files."""
        self._archive.clear_staging(self._source.staging_name, self._worker)

    def _plan(self, record: FileRecord) -> None:
        if len(record.md5sum) != 16:
            raise LayoutRefused(Reason.NO_MD5, f"the row's md5sum has {len(record.md5sum)} bytes, not 16")
        self._entries[record.id] = os.fsencode(layout.source_entry(record, self._source.source_root))
        final = self._top + layout.archived_path(record)
        layout.require_fit(final, self._path_width)
        self._finals[record.id] = final

    def _take(self, told: Sequence[_Said], changed: dict[bytes, bytes]) -> Iterator[Outcome]:
        arrived: dict[int, tuple[FileRecord, Staged]] = {}
        now = time.monotonic()
        for said in told:
            line = said.line
            records = self.wanted.get(line.entry, ())
            match line:
                case rsync_output.Arrived(md5=md5):
                    if any(record.md5sum != md5 for record in records):
                        changed[line.entry] = md5
                    for record in records:
                        if record.md5sum == md5:
                            arrived[record.id] = (
                                record,
                                Staged(said.staged, self._finals[record.id], md5, said.found),
                            )
                case rsync_output.NotAFile():
                    for record in list(records):
                        yield self._decide(_not_a_file(record))
                case rsync_output.TooLarge() if not self._bulk:
                    for record in list(records):
                        yield self._decide(Oversize(record))
        if arrived:
            yield from self._place(list(arrived.values()), transferred=now - self._started)

    def _place(self, arrived: Sequence[tuple[FileRecord, Staged]], transferred: float) -> Iterator[Outcome]:
        began = time.monotonic()
        sound: list[tuple[FileRecord, Staged]] = []
        for record, file in arrived:
            try:
                if self._settings.verify is Verify.TRANSFER or self._archive.verify(file, self._cancel):
                    sound.append((record, file))
            except DestinationUnavailable as trouble:
                yield self._decide(Deferred(record, trouble.reason, str(trouble)))
        verified = time.monotonic()
        results = self._archive.place([file for _, file in sound])
        steps = Steps(transferred, verified - began, time.monotonic() - verified)
        for (record, _), result in zip(sound, results, strict=True):
            match result:
                case Placed(path=path, size=size, adopted=adopted):
                    yield self._decide(Archived(record, path, size, adopted, steps))
                case LayoutRefused(reason=reason, message=message):
                    yield self._decide(Refused(record, reason, message))
                case DestinationUnavailable(reason=reason):
                    yield self._decide(Deferred(record, reason, str(result)))

    def _end(self, run: RsyncRun, directory: bytes, staging: Path, changed: Mapping[bytes, bytes]) -> Iterator[Outcome]:
        if run.stalled:
            raise HostUnavailable(
                Reason.STALLED,
                f"nothing came from {self._source.name} for {self._source.stall_timeout:.0f} s: rsync was killed",
            )
        ending = self._ending(run, directory)
        # A directory prints its line only where it was made now; made before, for another file's sake, it is silent.
        for entry in [entry for entry in self.wanted if os.path.isdir(staging / os.fsdecode(entry))]:
            for record in list(self.wanted[entry]):
                yield self._decide(_not_a_file(record))
        disk_seen = self._sees_disk_of(ending.files)
        verdicts = dict(ending.files)
        if not disk_seen:
            verdicts.update(mount_heuristic.judge_batch(ending.files, self._entries_at_first, self._never_charged()))
        if ending.trouble is None:
            # A file may print twice, and the last line wins: only a run that came to its end makes a wrong sum final.
            for entry, seen in changed.items():
                for record in list(self.wanted.get(entry, ())):
                    yield self._decide(_changed(record, seen))
            verdicts.update(self._diagnose(verdicts))
        for entry, verdict in verdicts.items():
            for record in list(self.wanted.get(entry, ())):
                yield self._decide(_outcome(record, verdict, disk_seen=disk_seen))
        if ending.trouble is not None and self.wanted:
            trouble = ending.trouble
            here = trouble.reason.scope is Scope.DESTINATION
            kind = DestinationUnavailable if here else HostUnavailable
            raise kind(trouble.reason, f"{self._source.name}: {trouble.words}", trouble.hint)

    def _never_charged(self) -> list[bytes]:
        return [entry for entry, records in self.wanted.items() if any(record.attempts == 0 for record in records)]

    def _sees_disk_of(self, verdicts: Mapping[bytes, rsync_output.Verdict]) -> bool:
        """Whether a missing file's directory is there and has files in it; asked only where every file of the batch is missing."""
        missing = [entry for entry, verdict in verdicts.items() if verdict.reason is Reason.MISSING]
        if not missing or len(missing) < self._entries_at_first:
            return False
        return Probe(self._source).sees_directory_of([self._path(entry) for entry in missing[:_DIRECTORIES_LOOKED_AT]])

    def _path(self, entry: bytes) -> str:
        return posixpath.join(self._source.source_root, os.fsdecode(entry))

    def _diagnose(self, verdicts: Mapping[bytes, rsync_output.Verdict]) -> dict[bytes, rsync_output.Verdict]:
        """A look at the files that rsync said nothing of, or that it found missing: is their disk there at all?"""
        missing = {entry for entry, verdict in verdicts.items() if verdict.reason is Reason.MISSING}
        silent = self.wanted.keys() - verdicts.keys()
        doubtful = [*missing, *silent][:_LOOKED_AT]
        if not doubtful:
            return {}
        paths = {entry: self._path(entry) for entry in doubtful}
        states = Probe(self._source).diagnose(list(paths.values()))
        seen: dict[bytes, rsync_output.Verdict] = {}
        for entry, path in paths.items():
            reason = _SEEN.get(states[path])
            if reason is Reason.SOURCE_NOT_MOUNTED or (reason is not None and entry in silent):
                words = f"rsync said nothing of it; a look over there says: {states[path].value.replace('_', ' ')}"
                if reason is Reason.SOURCE_NOT_MOUNTED:
                    words = f"the source root {self._source.source_root} is missing or empty: is the disk mounted?"
                seen[entry] = rsync_output.Verdict(reason, words)
            elif entry in missing and states[path] is FileState.OK:
                seen[entry] = rsync_output.Verdict(
                    Reason.UNDECIDED, "rsync did not find it, and a look over there does"
                )
            elif entry in missing and states[path] is FileState.UNREACHABLE:
                words = "rsync did not find it, and the host went away before we could look whether its disk is there"
                seen[entry] = rsync_output.Verdict(Reason.UNDECIDED, words)
        # What was not looked at goes by what was: one file that is not simply missing speaks for them all.
        others = missing - paths.keys()
        for entry in others if seen.keys() & missing else ():
            seen[entry] = next(iter(seen[found] for found in seen.keys() & missing))
        return seen

    def _decide(self, outcome: Outcome) -> Outcome:
        """Every decision passes here: the record is wanted no more."""
        record = outcome.record
        del self._undecided[record.id]
        entry = self._entries.get(record.id, b"")
        records = self.wanted.get(entry, [])
        if record in records:
            records.remove(record)
            if not records:
                del self.wanted[entry]
        return outcome


@dataclass(frozen=True, slots=True)
class _Said:
    """A line, and where it tells of a staged file, that file as it lies there."""

    line: rsync_output.Line
    staged: str = ""
    found: os.stat_result | None = None


def _in_place(lines: Sequence[rsync_output.Line], staging: Path) -> tuple[list[_Said], list[rsync_output.Line]]:
    """Splits off the lines whose file has not got its name yet.

    rsync prints a file's line when its data is complete, and renames it then: a few microseconds, most of the time. The
    line of the next file, or the end, comes after the rename. A local one prints it when the data is sent, well before.
    """
    ready: list[_Said] = []
    held: list[rsync_output.Line] = []
    directory = os.path.join(os.fsencode(staging), b"")
    for line in lines:
        if not isinstance(line, rsync_output.Arrived):
            ready.append(_Said(line))
            continue
        staged = os.fsdecode(directory + line.entry)
        for look in range(_LOOKS if line is lines[-1] else 1):
            if look:
                time.sleep(_LOOK_AGAIN)
            try:
                found = os.lstat(staged)
            except OSError:
                continue
            ready.append(_Said(line, staged, found))
            break
        else:
            held.append(line)
    return ready, held


def _outcome(
    record: FileRecord, verdict: rsync_output.Verdict, *, disk_seen: bool = False
) -> AttemptFailed | Refused | Deferred:
    words = f"{verdict.words} {verdict.hint}".strip()
    match verdict.reason.scope:
        case Scope.FILE:
            return AttemptFailed(record, verdict.reason, words, disk_seen=disk_seen)
        case Scope.ROW:
            return Refused(record, verdict.reason, words)
        case _:
            return Deferred(record, verdict.reason, words)


def _changed(record: FileRecord, seen: bytes) -> AttemptFailed:
    return AttemptFailed(
        record,
        Reason.CHANGED,
        f"the file's md5 is {seen.hex()}, the row says {record.md5sum.hex()}: it was changed after it was registered",
        seen,
    )


def _not_a_file(record: FileRecord) -> Refused:
    return Refused(record, Reason.NOT_A_FILE, f"{record.path} is a directory, a link or a device on its source")


def _may_pass_soon(error: BaseException) -> bool:
    return isinstance(error, HostUnavailable) and error.reason in (Reason.HOST_UNREACHABLE, Reason.LINK_LOST)
