"""Copies a batch: plans it, fetches it with one rsync, verifies and places the files. Yields an outcome as soon as it is known."""

from __future__ import annotations

import contextlib
import os
import posixpath
import threading
import time
from collections.abc import Generator, Iterator, KeysView, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

import structlog
import tenacity

from cdc_archiver.errors import DestinationUnavailable, HostUnavailable, LayoutRefused, Misconfigured, TransferError
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
    StepDurations,
)
from cdc_archiver.settings import Settings, SourceSettings
from cdc_archiver.settings.types import Verify
from cdc_archiver.transfer import layout, login_shell, rsync_output, source_mount_heuristic
from cdc_archiver.transfer.placement import Placed, Placer, Staged
from cdc_archiver.transfer.probe import Probe
from cdc_archiver.transfer.rsync import (
    ReportedFile,
    RsyncLimits,
    RsyncRun,
    common_directory,
    rsync_command,
    split_renamed,
)
from cdc_archiver.transfer.source_files import FileState, foreign_link_text
from cdc_archiver.transfer.ssh import ControlMaster, ssh_endpoint
from cdc_archiver.transfer.staging import Archive

_MAX_TRIES: Final = 3
_RETRY_SECONDS: Final = 10.0
"""Seconds that one call may spend on trying a batch again; the dispatcher waits for a failure that lasts longer."""

_MAX_CHECKED_DIRECTORIES: Final = 5
_MAX_DIAGNOSED_FILES: Final = 100

_BELOW_LINK: Final = "rsync does not follow a directory link above the file: see link_not_followed in the log"

_log = structlog.get_logger(__name__)

_REASON_OF_STATE: Final = {
    FileState.MISSING: Reason.MISSING,
    FileState.UNREADABLE: Reason.UNREADABLE,
    FileState.NOT_A_FILE: Reason.NOT_A_FILE,
    FileState.ROOT_GONE: Reason.SOURCE_NOT_MOUNTED,
}


class Copier:
    """Archives batches. Keeps no state between calls but the connections; safe to share between threads.

    Args:
        settings: limits, modes, how to verify.
        archive: the destination.
        path_width: width of the column ``path``, in characters.
        cancel: set it to give up the copies under way.
    """

    def __init__(self, settings: Settings, archive: Archive, path_width: int, cancel: threading.Event) -> None:
        self._settings = settings
        self._archive = archive
        self._path_width = path_width
        self._cancel = cancel
        self._masters: dict[str, ControlMaster] = {}
        self._masters_lock = threading.Lock()
        self._closed = False
        self._links_reported: set[str] = set()

    def archive(self, source: SourceSettings, batch: Batch) -> Iterator[Outcome]:
        """Archives a batch's files.

        Args:
            source: the source of the files.
            batch: of that source; no other call uses its worker's name at the same time.

        Yields:
            One outcome for each record, as soon as it is known.
        """
        work = _BatchCopy(self._settings, self._archive, self._path_width, self._cancel, source, batch)
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_is_transient),
            stop=tenacity.stop_after_attempt(_MAX_TRIES) | tenacity.stop_before_delay(_RETRY_SECONDS),
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
        except TransferError as error:
            if error.reason.scope is Scope.CONFIGURATION or error.reason is Reason.STALLED:
                self._renew_connection(source)
            yield from work.defer(error.reason, str(error))
        except Misconfigured as error:  # ssh cannot run: no account for this uid, an unusable path
            yield from work.defer(Reason.LOGIN_REFUSED, str(error))
        except OSError as error:  # no process, no descriptor or no memory available
            yield from work.defer(Reason.DESTINATION_UNWRITABLE, f"this machine: {error}")
        if self._cancel.is_set():
            yield from work.defer(Reason.STOPPING, "the service is stopping")
        if work.below_links:
            self._report_link(source, min(work.below_links))
        yield from work.defer(Reason.UNDECIDED, "rsync reported neither the file nor an error")
        with contextlib.suppress(DestinationUnavailable, OSError):  # the next batch reports it
            work.clear()

    def close(self) -> None:
        """Closes the connections to the sources."""
        with self._masters_lock:
            self._closed = True
            for master in self._masters.values():
                master.close()

    def _pause(self, seconds: float | None) -> None:
        self._cancel.wait(seconds)

    def _report_link(self, source: SourceSettings, entry: bytes) -> None:
        """Reports, once for a source, the link above an entry that rsync there does not follow."""
        if source.name not in self._links_reported:
            self._links_reported.add(source.name)
            path = posixpath.join(source.source_root, os.fsdecode(entry))
            link = Probe(source).foreign_link(path) or posixpath.dirname(path)
            _log.warning("link_not_followed", source=source.name, link=link, detail=foreign_link_text(link))

    def _renew_connection(self, source: SourceSettings) -> None:
        if master := self._master_of(source):
            master.renew()

    def _master_of(self, source: SourceSettings) -> ControlMaster | None:
        with self._masters_lock:
            if source.is_local or self._closed:
                return None
            return self._masters.setdefault(source.name, ControlMaster(source))

    def _control_path(self, source: SourceSettings) -> Path | None:
        master = self._master_of(source)
        path = master.ensure() if master else None
        if master and path is None:
            _log.debug("no_shared_connection", source=source.name, detail=master.output)
        return path


class _BatchCopy:
    """One call's work: the records of its batch that have no outcome yet."""

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
        self._placer = Placer(archive, settings.modes, owner=source.staging_name)
        self._path_width = path_width
        self._cancel = cancel
        self._source = source
        self._bulk = batch.lane is Lane.BULK
        self._worker = batch.worker
        self._undecided = {record.id: record for record in batch.records}
        self._wanted_at_start = 0
        self._finals: dict[int, str] = {}
        self._top = os.path.join(archive.data_dir, "")
        self._entries: dict[int, bytes] = {}
        self._started = time.monotonic()
        self.wanted: dict[bytes, list[FileRecord]] = {}
        self.below_links: set[bytes] = set()

    def plan(self) -> Iterator[Outcome]:
        """Determines each file's archived path, and adopts a file that is there already.

        Raises:
            DestinationUnavailable: the archive cannot be written to now.
        """
        self._archive.require_ready()
        directories: dict[str, bool] = {}
        for record in list(self._undecided.values()):
            try:
                self._plan_record(record)
            except LayoutRefused as refusal:
                yield self._decide(_failure_outcome(record, rsync_output.CopyFailure(refusal.reason, refusal.message)))
                continue
            final = self._finals[record.id]
            directory = os.path.dirname(final)
            if directory not in directories:
                directories[directory] = os.path.isdir(directory)
            placed = self._placer.find(final, record.md5sum) if directories[directory] else None
            if placed is not None:
                yield self._decide(Archived(record, placed.path, placed.size, adopted=True))
            elif obstacle := self._placer.places.obstacle(final):  # seen before the file is fetched in vain
                yield self._decide(Deferred(record, obstacle.reason, str(obstacle)))
            else:
                self.wanted.setdefault(self._entries[record.id], []).append(record)
        self._wanted_at_start = len(self.wanted)

    def run(self, control_path: Path | None) -> Iterator[Outcome]:
        """Fetches the wanted files with one rsync, starting in the deepest directory that contains them all.

        Where rsync cannot enter that directory, it runs again from the source root, and then reports each file. Files that it
        refuses because of a link above them follow by directory: so each rsync starts below the link.

        Raises:
            TransferError: the failure concerns no single file; files that arrived before it count.
        """
        entries = self.wanted.keys()
        if not (yield from self._run_rsync(entries, common_directory(list(entries)), control_path)):
            yield from self._run_rsync(entries, b"", control_path)
        by_directory: dict[bytes, dict[bytes, None]] = {}
        for entry in sorted(self.below_links & entries):
            by_directory.setdefault(posixpath.dirname(entry), {})[entry] = None
        for below in by_directory.values():
            yield from self._run_rsync(below.keys(), common_directory(list(below)), control_path)
        if not self._cancel.is_set():
            for entry in self.below_links & entries:
                for record in list(self.wanted[entry]):
                    yield self._decide(Deferred(record, Reason.UNDECIDED, _BELOW_LINK))

    def _run_rsync(
        self, entries: KeysView[bytes], directory: bytes, control_path: Path | None
    ) -> Generator[Outcome, None, bool]:
        """One rsync; False where it could not start in the directory, and no record has an outcome."""
        limits = RsyncLimits(
            max_size=None if self._bulk else self._source.small_limit,
            io_timeout=self._source.io_timeout,
            stall_timeout=self._source.stall_timeout,
            rate=self._source.timetable.rate_at(datetime.now().time()),
        )
        staging = self._archive.staging_directory(self._source.staging_name, self._worker)
        # Leftovers of an earlier try would look like files of this one.
        self.clear()
        # A staged file's path depends only on its entry, not on where rsync starts: so the part of a large one is found again.
        self._archive.make_staged_directory(staging, directory)
        command = rsync_command(self._source, staging, self._settings.modes, limits, control_path, directory)
        run = RsyncRun(command, list(entries), staging, limits, self._cancel, directory)
        changed: dict[bytes, bytes] = {}
        waiting: list[rsync_output.OutputLine] = []
        silent = True
        for lines in run.lines():
            silent = False
            ready, waiting = split_renamed([*waiting, *self._about_wanted(lines)], staging)
            yield from self._process_lines(ready, changed)
        if run.cancelled:
            return True
        if directory and silent and not run.stalled and self._started_elsewhere(run, entries, directory):
            return False
        yield from self._process_lines(split_renamed(waiting, staging)[0], changed)
        if not self._cancel.is_set():  # a cancelled run proves nothing about its files
            yield from self._finish_run(run, self._exit_info(run, entries, directory), staging, changed)
        return True

    def _started_elsewhere(self, run: RsyncRun, entries: KeysView[bytes], directory: bytes) -> bool:
        """Whether a run without any file did not start in the directory: it could not enter it, or every file is missing there,
        as when a key's command names a directory of its own."""
        if rsync_output.failed_to_enter_directory(run.status, run.stderr):
            return True
        if not self.below_links.isdisjoint(entries):
            return False  # started from the root, rsync would refuse them again
        missing = self._exit_info(run, entries, directory).files
        return all(entry in missing and missing[entry].reason is Reason.MISSING for entry in entries)

    def _exit_info(self, run: RsyncRun, entries: KeysView[bytes], directory: bytes) -> rsync_output.ExitInfo:
        endpoint = None if self._source.is_local else ssh_endpoint(self._source)
        root = self._source.source_root
        return rsync_output.parse_exit(run.status, run.stderr, root, entries, endpoint, directory)

    def _about_wanted(self, lines: Sequence[rsync_output.OutputLine]) -> list[rsync_output.OutputLine]:
        """The lines about wanted files: the other side may print anything."""
        return [line for line in lines if line.entry in self.wanted]

    def defer(self, reason: Reason, detail: str) -> Iterator[Outcome]:
        """Defers every record without an outcome."""
        for record in list(self._undecided.values()):
            yield self._decide(Deferred(record, reason, detail))

    def clear(self) -> None:
        """Empties this worker's staging directory, except for parts of large files."""
        self._archive.clear_staging(self._source.staging_name, self._worker)

    def _plan_record(self, record: FileRecord) -> None:
        if len(record.md5sum) != 16:
            raise LayoutRefused(Reason.NO_MD5, f"the row's md5sum has {len(record.md5sum)} bytes, not 16")
        self._entries[record.id] = os.fsencode(layout.source_entry(record, self._source.source_root))
        final = self._top + layout.archived_path(record, self._settings.oldest_timestamp)
        layout.require_fit(final, self._path_width)
        self._finals[record.id] = final

    def _process_lines(self, reported: Sequence[ReportedFile], changed: dict[bytes, bytes]) -> Iterator[Outcome]:
        arrived: dict[int, tuple[FileRecord, Staged]] = {}
        now = time.monotonic()
        for report in reported:
            line = report.line
            records = self.wanted.get(line.entry, ())
            match line:
                case rsync_output.FileReceived(md5=md5):
                    if any(record.md5sum != md5 for record in records):
                        changed[line.entry] = md5
                    for record in records:
                        if record.md5sum == md5:
                            arrived[record.id] = (
                                record,
                                Staged(report.staged, self._finals[record.id], md5, report.stat_result, record.id),
                            )
                case rsync_output.NotRegularFile():
                    for record in list(records):
                        yield self._decide(_not_regular_file(record))
                case rsync_output.OverMaxSize() if not self._bulk:
                    for record in list(records):
                        yield self._decide(Oversize(record))
        if arrived:
            yield from self._verify_and_place(list(arrived.values()), transferred=now - self._started)

    def _verify_and_place(self, arrived: Sequence[tuple[FileRecord, Staged]], transferred: float) -> Iterator[Outcome]:
        began = time.monotonic()
        verified_files: list[tuple[FileRecord, Staged]] = []
        for record, file in arrived:
            try:
                if self._settings.verify is Verify.TRANSFER or self._placer.verify(file, self._cancel):
                    verified_files.append((record, file))
            except DestinationUnavailable as error:
                yield self._decide(Deferred(record, error.reason, str(error)))
        verified = time.monotonic()
        results = self._placer.place([file for _, file in verified_files], self._cancel)
        steps = StepDurations(transferred, verified - began, time.monotonic() - verified)
        for (record, _), result in zip(verified_files, results, strict=True):
            match result:
                case Placed(path=path, size=size, adopted=adopted):
                    yield self._decide(Archived(record, path, size, adopted, steps))
                case LayoutRefused(reason=reason, message=message):
                    yield self._decide(Refused(record, reason, message))
                case DestinationUnavailable(reason=reason):
                    yield self._decide(Deferred(record, reason, str(result)))

    def _finish_run(
        self, run: RsyncRun, exit_info: rsync_output.ExitInfo, staging: Path, changed: Mapping[bytes, bytes]
    ) -> Iterator[Outcome]:
        if run.stalled:
            raise HostUnavailable(
                Reason.STALLED,
                f"{self._source.name} sent nothing for {self._source.stall_timeout:.0f} s: rsync was killed",
            )
        self.below_links |= exit_info.below_links
        # rsync prints a directory's line only where it makes it now; where another file needed it before, it prints none.
        for entry in [entry for entry in self.wanted if os.path.isdir(staging / os.fsdecode(entry))]:
            for record in list(self.wanted[entry]):
                yield self._decide(_not_regular_file(record))
        mount_confirmed = self._confirms_mount(exit_info.files)
        failures = dict(exit_info.files)
        if not mount_confirmed:
            failures.update(
                source_mount_heuristic.judge_batch(
                    exit_info.files, self._wanted_at_start, self._entries_on_first_attempt()
                )
            )
        if exit_info.failure is None:
            # rsync may print a file twice, and the last line counts: only a completed run makes a wrong md5 final.
            for entry, md5 in changed.items():
                for record in list(self.wanted.get(entry, ())):
                    yield self._decide(_changed_file(record, md5))
            failures.update(self._diagnose(failures))
        for entry, failure in failures.items():
            for record in list(self.wanted.get(entry, ())):
                yield self._decide(_failure_outcome(record, failure, mount_confirmed=mount_confirmed))
        if exit_info.failure is not None and self.wanted:
            failure = login_shell.explained(self._source, exit_info.failure)
            if failure.reason.scope is Scope.DESTINATION:  # of this machine, whatever the source
                raise DestinationUnavailable(failure.reason, f"the archive's disk: {failure.message}", failure.hint)
            raise HostUnavailable(failure.reason, f"{self._source.name}: {failure.message}", failure.hint)

    def _entries_on_first_attempt(self) -> list[bytes]:
        return [entry for entry, records in self.wanted.items() if any(record.attempts == 0 for record in records)]

    def _confirms_mount(self, failures: Mapping[bytes, rsync_output.CopyFailure]) -> bool:
        """Whether a missing file's directory exists and has entries; checked only where every file of the batch is missing."""
        missing = [entry for entry, failure in failures.items() if failure.reason is Reason.MISSING]
        if not missing or len(missing) < self._wanted_at_start:
            return False
        return Probe(self._source).confirms_mount([self._path(entry) for entry in missing[:_MAX_CHECKED_DIRECTORIES]])

    def _path(self, entry: bytes) -> str:
        return posixpath.join(self._source.source_root, os.fsdecode(entry))

    def _diagnose(self, failures: Mapping[bytes, rsync_output.CopyFailure]) -> dict[bytes, rsync_output.CopyFailure]:
        """Checks files that rsync did not report, or reported missing: their disk may not be mounted."""
        missing = {entry for entry, failure in failures.items() if failure.reason is Reason.MISSING}
        silent = self.wanted.keys() - failures.keys() - self.below_links
        doubtful = [*missing, *silent][:_MAX_DIAGNOSED_FILES]
        if not doubtful:
            return {}
        paths = {entry: self._path(entry) for entry in doubtful}
        states = Probe(self._source).diagnose(list(paths.values()))
        checked: dict[bytes, rsync_output.CopyFailure] = {}
        for entry, path in paths.items():
            reason = _REASON_OF_STATE.get(states[path])
            if reason is Reason.SOURCE_NOT_MOUNTED or (reason is not None and entry in silent):
                message = f"rsync did not report the file; on the source it is: {states[path].value.replace('_', ' ')}"
                if reason is Reason.SOURCE_NOT_MOUNTED:
                    message = f"the source root {self._source.source_root} is missing or empty: is the disk mounted?"
                checked[entry] = rsync_output.CopyFailure(reason, message)
            elif entry in missing and states[path] is FileState.OK:
                checked[entry] = rsync_output.CopyFailure(
                    Reason.UNDECIDED, "rsync did not find the file, but a check on the source does"
                )
            elif entry in missing and states[path] is FileState.UNREACHABLE:
                message = (
                    "rsync did not find the file, and the host became unreachable before its disk could be checked"
                )
                checked[entry] = rsync_output.CopyFailure(Reason.UNDECIDED, message)
        # Files that were not checked follow those that were: one that is not simply missing decides for all.
        others = missing - paths.keys()
        for entry in others if checked.keys() & missing else ():
            checked[entry] = next(iter(checked[found] for found in checked.keys() & missing))
        return checked

    def _decide(self, outcome: Outcome) -> Outcome:
        """Removes the record from those without an outcome. Every outcome passes here."""
        record = outcome.record
        del self._undecided[record.id]
        entry = self._entries.get(record.id, b"")
        records = self.wanted.get(entry, [])
        if record in records:
            records.remove(record)
            if not records:
                del self.wanted[entry]
        return outcome


def _failure_outcome(
    record: FileRecord, failure: rsync_output.CopyFailure, *, mount_confirmed: bool = False
) -> AttemptFailed | Refused | Deferred:
    detail = f"{failure.message}; fix: {failure.hint}" if failure.hint else failure.message
    match failure.reason.scope:
        case Scope.FILE:
            return AttemptFailed(record, failure.reason, detail, mount_confirmed=mount_confirmed)
        case Scope.ROW:
            return Refused(record, failure.reason, detail)
        case _:
            return Deferred(record, failure.reason, detail)


def _changed_file(record: FileRecord, md5: bytes) -> AttemptFailed:
    return AttemptFailed(
        record,
        Reason.CHANGED,
        f"the file's md5, {md5.hex()}, differs from the registered one, {record.md5sum.hex()}",
        md5,
    )


def _not_regular_file(record: FileRecord) -> Refused:
    return Refused(
        record, Reason.NOT_A_FILE, f"{record.path} is a directory, a link or a device on its source, not a regular file"
    )


def _is_transient(error: BaseException) -> bool:
    return isinstance(error, HostUnavailable) and error.reason in (Reason.HOST_UNREACHABLE, Reason.LINK_LOST)
