"""Checks that files can be archived in data_dir."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import pwd
import re
import shlex
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cdc_archiver.database.archives import KnownArchive
from cdc_archiver.errors import DestinationUnavailable
from cdc_archiver.model import Reason
from cdc_archiver.preflight.findings import Finding, failure, ok, run_check, warning
from cdc_archiver.settings import Settings
from cdc_archiver.text import format_size
from cdc_archiver.transfer.archive_marker import FORMER_MARKER, ArchiveMarker
from cdc_archiver.transfer.placement import Placer, Staged
from cdc_archiver.transfer.places import Places
from cdc_archiver.transfer.staging import INCOMING, Archive
from cdc_archiver.transfer.staging_place import choose_place, sibling_of, sibling_staging, state_directory

_VOLATILE: Final = {"tmpfs": "a reboot", "ramfs": "a reboot", "overlay": "the container"}
"""File systems that lose their content, and when."""
_TRIAL: Final = ".check-"
_TRIAL_LOCK_SECONDS: Final = 0.1
"""A younger trial may be about to take its lock."""
_TIMECODE: Final = re.compile(r"[0-9]{5}")
_LOST_AND_FOUND: Final = "lost+found"
_MAX_NAMES: Final = 5


def destination_findings(settings: Settings, known: KnownArchive | None = None) -> list[Finding]:
    """Checks that files can be archived in data_dir.

    Args:
        known: what the database knows of the archive there.
    """
    return run_check("data_dir", lambda: _destination(settings, known or KnownArchive()))


def _destination(settings: Settings, known: KnownArchive) -> Iterator[Finding]:
    directory = settings.data_dir
    if directory is None or not directory.is_absolute():
        yield failure("data_dir", f"data_dir {directory or ''} is not an absolute path", "--data-dir /data/…")
        return
    quoted = shlex.quote(str(directory))
    try:
        mode = os.stat(directory).st_mode
    except FileNotFoundError:
        yield failure("data_dir", f"data_dir {directory} does not exist", f"mkdir -p {quoted}  # or mount it")
        return
    except OSError as error:
        yield failure(
            "data_dir",
            f"data_dir {directory}: {error.strerror}",
            f"namei -l {quoted}  # shows which directory {_account()} cannot enter",
        )
        return
    if not stat.S_ISDIR(mode):
        yield failure("data_dir", f"data_dir {directory} is a file", "--data-dir DIRECTORY")
        return
    archive = Archive(directory, settings.min_free, staging_dir=settings.staging_dir, state_dir=settings.state_dir)
    archive.expect(known)
    try:
        marker = archive.recognise()
    except DestinationUnavailable as error:  # never write to a possible bare mount point, not even as a trial
        yield failure("marker", error.message, error.hint)
        return
    yield from _places(archive, settings, known)
    yield _file_system(directory)
    free, least = archive.free_bytes(), settings.min_free
    if archive.last_free_inodes == 0:
        yield failure(
            "free inodes",
            f"no free inodes in {directory}: no file can be made there, although {format_size(free)} are free",
            f"df -i {shlex.quote(str(directory))}  # delete files there, or make the file system anew with more inodes",
        )
    if free < least:
        yield failure(
            "free space",
            f"{format_size(free)} free in {directory}, less than --min-free ({format_size(least)})",
            f"df -h {shlex.quote(str(directory))}  # make room there; --min-free is the guard, and the last thing to lower",
        )
    else:
        yield ok("free space", f"{format_size(free)}; copying stops below {format_size(least)}")
    yield from _marker(archive, marker, known)
    yield from _foreign_entries(directory)
    yield from _other_disks(Places(archive, settings.modes))


def _places(archive: Archive, settings: Settings, known: KnownArchive) -> Iterator[Finding]:
    """Where files are staged, and whether they can be placed from there."""
    directory = archive.data_dir
    before = {path: path.exists() for path in (sibling_of(directory), state_directory(settings.state_dir))}
    try:
        place = choose_place(directory, settings.staging_dir, state_directory(settings.state_dir))
        obstacle = _try_to_archive(place.staging, settings, links=place.links)
    except DestinationUnavailable as error:
        place, obstacle = None, error
    if obstacle is not None:
        yield failure(
            "data_dir",
            f"a trial file cannot be archived in {directory}: {obstacle.message}",
            _write_fix(directory, obstacle),
        )
    else:
        yield ok("data_dir", f"trial files can be archived in {directory}: write, link and sync work")
    own = place.staging if place is not None else sibling_staging(directory)
    in_use = {entry.staging for entry in known.entries.values() if entry.staging and entry.data_dir == str(directory)}
    for staging in sorted(in_use):
        yield ok("staging", f"the service stages files in {staging}{_leftovers(Path(staging))}")
    if place is not None and str(place.staging) not in in_use:
        yield ok("staging", f"files are staged in {own}, since {place.why}: {place.cost}{_leftovers(own)}")
    if place is not None:
        for made, was_there in before.items():
            if not was_there:  # left to the service, whose account may be another one
                for made_by_check in (place.staging, place.root, made):
                    with contextlib.suppress(OSError):
                        made_by_check.rmdir()


def _try_to_archive(place: Path, settings: Settings, *, links: bool) -> DestinationUnavailable | None:
    """Places trial files as archived files are placed, once with fsync and once with syncfs, in a directory of its own.

    Args:
        place: the directory for staging, where the next run removes leftovers of a killed check.
        links: whether the service links files from staging; else it copies them.
    """
    try:
        # Not a TemporaryDirectory: at the end of the process its clean-up would collide with this thread.
        _clear_left_trials(place)
        trial = Path(tempfile.mkdtemp(prefix=_TRIAL, dir=place))
        lock = os.open(trial, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            empty = hashlib.md5(usedforsecurity=False).digest()
            files = [Staged(f"{trial}/staged-{n}", f"{trial}/archive/placed/{n}", empty, id=n) for n in range(18)]
            (trial / "archive").mkdir()
            for file in files:
                Path(file.staged).write_bytes(b"")
            archive = Archive(trial / "archive", 0, state_dir=trial)
            archive.prepare()
            placer = Placer(archive, settings.modes, links=links)
            for result in (*placer.place(files[:1]), *placer.place(files[1:])):
                if isinstance(result, DestinationUnavailable):
                    return result
        finally:
            shutil.rmtree(trial, ignore_errors=True)
            os.close(lock)
    except DestinationUnavailable as error:
        return error
    except OSError as error:
        return DestinationUnavailable(Reason.DESTINATION_UNWRITABLE, f"{error}")
    return None


def _clear_left_trials(place: Path) -> None:
    """Removes the trials of processes that were killed: a living one holds the lock on its trial's directory."""
    for left in place.glob(f"{_TRIAL}*"):
        with contextlib.suppress(OSError):
            lock = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if time.time() - os.fstat(lock).st_mtime > _TRIAL_LOCK_SECONDS:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(lock)


def _write_fix(directory: Path, error: DestinationUnavailable) -> str:
    quoted = shlex.quote(str(directory))
    if error.reason is Reason.NO_SPACE:
        return f"du -xsh {quoted}/*  # and free space"
    if getattr(error.__cause__, "filename2", None) is not None:  # os.link names two files
        return "--data-dir DIRECTORY  # on a file system that has hard links: ext4, xfs, zfs, nfs"
    if os.access(directory, os.W_OK | os.X_OK, effective_ids=True):
        return error.hint or f"dmesg | tail  # the disk of {directory} may be failing"
    if os.statvfs(directory).f_flag & os.ST_RDONLY:
        mount = _mount_of(directory)
        if mount.read_only_disk:
            return f"mount -o remount,rw {shlex.quote(mount.point)}"
        # A unit's ProtectSystem or a container's read-only root: no mount command on the machine changes this process's view.
        return f"systemctl edit cdc-archiver  # [Service] ReadWritePaths={quoted}; or, in a container, mount a writable volume there"
    if os.stat(directory).st_uid == os.geteuid():
        return f"chmod u+rwx {quoted}"
    return f"chown {_account()} {quoted}"


def _file_system(directory: Path) -> Finding:
    mount = _mount_of(directory)
    if mount.kind in _VOLATILE:
        return warning(
            "file system",
            f"{directory} is on a {mount.kind} ({mount.point}): files archived there do not survive {_VOLATILE[mount.kind]}",
            f"mount {shlex.quote(str(directory))}  # or another --data-dir; with Docker: -v /data/pysmurf:{directory}",
        )
    return ok("file system", f"{mount.kind}, mounted at {mount.point}")


@dataclass(frozen=True)
class _Mount:
    """A line of mountinfo, see proc(5).

    Attributes:
        point: mount point.
        kind: type of file system.
        read_only_disk: the file system itself is read-only, whatever the mount.
    """

    point: str = "/"
    kind: str = "unknown"
    read_only_disk: bool = False


def _mount_of(directory: Path) -> _Mount:
    real = os.path.realpath(directory)
    best = _Mount()
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        before, _, after = line.partition(" - ")
        point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), before.split()[4])
        # Where mounts cover one another, the last one counts.
        if len(point) >= len(best.point) and (real == point or real.startswith(f"{point.rstrip('/')}/")):
            kind, _, options = after.split(" ", 2)
            best = _Mount(point, kind, "ro" in options.split(","))
    return best


def _marker(archive: Archive, marker: ArchiveMarker | None, known: KnownArchive) -> Iterator[Finding]:
    if marker is None:
        former = "; it has the one of version 0.1.0, which is replaced" if archive.has_former_marker() else ""
        yield ok("marker", f"the first run will make the marker of {archive.data_dir}{former}")
        return
    inode = os.stat(archive.data_dir).st_ino
    entered = {entry.inode for entry in known.entries.values() if entry.data_dir == str(archive.data_dir)}
    if entered - {None} and inode not in entered:
        yield warning(
            "marker",
            f"{archive.data_dir} is another directory than the one that the database knows, with the same marker: is it a copy of "
            "the archive?",
            "cdc-archiver mark-archive  # if files shall go there",
        )
    else:
        yield ok("marker", f"{marker.where} shows that this is the archive {marker.id}")


def _foreign_entries(directory: Path) -> Iterator[Finding]:
    """Warns of names in data_dir that stop the archive's readers: what is neither a timecode nor the archiver's own."""
    try:
        with os.scandir(directory) as entries:
            foreign = sorted(
                entry.name
                for entry in entries
                if entry.name not in (INCOMING, FORMER_MARKER)
                and not (_TIMECODE.fullmatch(entry.name) and entry.is_dir())
            )
    except PermissionError:  # this account may write there, and not list it
        return
    why = "readers of the archive take each name there for a timecode, and stop"
    if former := [name for name in (FORMER_MARKER, INCOMING) if os.path.lexists(directory / name)]:
        yield warning(
            "entries",
            f"version 0.1.0 has left {' and '.join(former)} in {directory}: {why}",
            "start this version of the service: its first sweep moves them, once no service of 0.1.0 runs on this table",
        )
    if _LOST_AND_FOUND in foreign and os.path.ismount(directory):
        foreign.remove(_LOST_AND_FOUND)
        yield warning(
            "entries",
            f"{directory} is a mount point, with the file system's {_LOST_AND_FOUND} in it: {why}",
            f"--data-dir {shlex.quote(str(directory / 'archive'))}  # or another directory below the mount point",
        )
    if not foreign:
        return
    named = foreign[:_MAX_NAMES]
    others = f" and {len(foreign) - len(named)} more" if len(foreign) > len(named) else ""
    away = shlex.quote(f"{directory}.other")
    paths = " ".join(shlex.quote(str(directory / name)) for name in named)
    yield warning(
        "entries",
        f"in {directory} is what no archiver puts there: {', '.join(named)}{others}; {why}",
        f"mkdir -p {away} && mv -nt {away} {paths}  # if nothing needs them there",
    )


def _other_disks(places: Places) -> Iterator[Finding]:
    """Timecodes on other disks than data_dir: what they cost, and which are not mounted."""
    archive = places.archive
    paths = set(places.noted())
    with contextlib.suppress(PermissionError):  # this account may write there, and not list it
        paths |= {str(archive.data_dir / name) for name in os.listdir(archive.data_dir) if _TIMECODE.fullmatch(name)}
    away = [path for path in sorted(paths) if places.is_on_other_disk(path)]
    if away:
        yield ok(
            "other disks",
            f"{len(away)} directories of the archive are on other disks, the first is {away[0]}: files are written twice there, "
            "in staging and as a copy; --min-free holds for each disk",
        )
    for path in away:
        try:
            archive.require_free(Path(path))
        except DestinationUnavailable as error:
            yield warning("other disks", error.message, error.hint)
    for path in places.noted():
        try:
            places.require_disk(path)
        except DestinationUnavailable as error:
            yield warning("other disks", f"{error.message}: files for it wait, others are archived", error.hint)


def _leftovers(staging: Path) -> str:
    sizes = []
    for parent, _, names in os.walk(staging):
        for name in names:
            with contextlib.suppress(OSError):
                sizes.append(os.lstat(os.path.join(parent, name)).st_size)
    if not sizes:
        return ""
    return f"; {len(sizes)} files ({format_size(sum(sizes))}) there are copies under way, or leftovers that the next run removes"


def _account() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
