"""Where files are staged before they get their names: next to data_dir if links lead from there into it, else in the state directory.

Nothing but directories of timecodes may lie in data_dir, not for a moment: readers of the archive take every name there for one.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shlex
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cdc_archiver.errors import DestinationUnavailable
from cdc_archiver.model import Reason
from cdc_archiver.transfer.durable_copy import can_link
from cdc_archiver.transfer.other_disks import disk_of

_STAGING: Final = "staging"
_SYSTEM_STATE: Final = Path("/var/lib/cdc_archiver")
_LOOKED_AT: Final = 1000
"""Directory entries that are looked at for an archived file to try a link with."""


@dataclass(frozen=True, slots=True)
class StagingPlace:
    """A directory for files that arrive.

    Attributes:
        root: of this archive only.
        links: whether its files can be linked into data_dir; else they are copied.
        is_sibling: whether it is next to data_dir.
        why: why this one, as a clause.
    """

    root: Path
    links: bool
    is_sibling: bool
    why: str

    @property
    def staging(self) -> Path:
        """The directory in it in which files arrive."""
        return self.root / _STAGING

    @property
    def cost(self) -> str:
        """What it costs, for a person."""
        return (
            "files are linked into place" if self.links else "each file is written twice, in staging and in the archive"
        )


def sibling_staging(data_dir: Path) -> Path:
    """The directory for staging next to data_dir."""
    return sibling_of(data_dir) / _STAGING


def sibling_of(data_dir: Path) -> Path:
    """The place next to data_dir."""
    real = Path(os.path.realpath(data_dir))
    return real.parent / f".{real.name}.cdc_archiver"


def place_below(directory: Path, data_dir: Path) -> Path:
    """The place of an archive in a directory that several may share."""
    real = Path(os.path.realpath(data_dir))
    return directory / f"{real.name}-{hashlib.sha256(os.fsencode(real)).hexdigest()[:8]}"


def state_directory(given: Path | None) -> Path:
    """The state directory: as set; else systemd's; else the system's, where this user may write there; else the user's."""
    if given is not None:
        return given
    if of_unit := os.environ.get("STATE_DIRECTORY", "").partition(":")[0]:
        return Path(of_unit)
    if os.access(_SYSTEM_STATE if _SYSTEM_STATE.exists() else _SYSTEM_STATE.parent, os.W_OK | os.X_OK):
        return _SYSTEM_STATE
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local/state") / "cdc_archiver"


def choose_place(data_dir: Path, staging_dir: Path | None, state_dir: Path) -> StagingPlace:
    """The place for staging, made where it is missing.

    Args:
        staging_dir: the operator's choice, which always wins.

    Raises:
        DestinationUnavailable: there is none.
    """
    if not os.access(data_dir, os.W_OK | os.X_OK, effective_ids=True):
        number = errno.EROFS if os.statvfs(data_dir).f_flag & os.ST_RDONLY else errno.EACCES
        raise DestinationUnavailable(
            Reason.DESTINATION_UNWRITABLE,
            f"{data_dir}: {os.strerror(number)}",
            f"cdc-archiver check  # says which: chown or chmod {shlex.quote(str(data_dir))}, or the mount",
        )
    if staging_dir is not None:
        root = place_below(staging_dir, data_dir)
        with _as_unwritable(root):
            _make(root)
            return StagingPlace(root, _can_link(data_dir, root), is_sibling=False, why="--staging-dir")
    sibling = sibling_of(data_dir)
    links, why_not = _try_sibling(data_dir, sibling)
    if links:
        return StagingPlace(sibling, links=True, is_sibling=True, why="it is next to data_dir, on the same file system")
    root = place_below(state_dir, data_dir)
    with _as_unwritable(root, f"{why_not}, and "):
        _make(root)
        return StagingPlace(root, _can_link(data_dir, root), is_sibling=False, why=why_not)


def _try_sibling(data_dir: Path, sibling: Path) -> tuple[bool, str]:
    """Whether the sibling place can be used, and why not."""
    if os.path.ismount(data_dir):
        return False, f"{data_dir} is itself a mount point"
    there = os.path.lexists(sibling)
    try:
        _make(sibling)
        if _can_link(data_dir, sibling):
            return True, ""
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DestinationUnavailable(Reason.NO_SPACE, f"{sibling}: {error.strerror}", "free space there") from error
        return False, f"{sibling} cannot be used ({error.strerror})"
    if not there:
        with suppress(OSError):
            (sibling / _STAGING).rmdir()
            sibling.rmdir()
    return False, f"links do not lead from {data_dir.parent} into {data_dir}"


def _make(root: Path) -> None:
    """Makes a place: its marker is for everybody to read, what is staged for this user alone."""
    root.mkdir(mode=0o755, parents=True, exist_ok=True)
    (root / _STAGING).mkdir(mode=0o700, exist_ok=True)
    for directory in (root, root / _STAGING):
        found = os.lstat(directory)
        if not stat.S_ISDIR(found.st_mode):
            raise OSError(errno.ENOTDIR, f"it is a link or a file: rm {shlex.quote(str(directory))}")
        if found.st_uid != os.geteuid():
            raise OSError(errno.EACCES, f"it belongs to the user {found.st_uid}")
    os.chmod(root / _STAGING, 0o700)


def _can_link(data_dir: Path, root: Path) -> bool:
    """Whether links lead from a place into data_dir, shown without a name in data_dir, not even for a moment."""
    place = root / _STAGING
    if (shown := can_link(data_dir, place)) is not None:
        return shown
    if disk_of(data_dir) != disk_of(place):
        return False
    for archived in _some_file(data_dir):
        trial = place / ".link"
        with suppress(FileNotFoundError):
            trial.unlink()
        try:
            os.link(archived, trial, follow_symlinks=False)
        except OSError:
            return False
        trial.unlink()
    return True


def _some_file(directory: Path) -> Iterator[str]:
    """One file of the archive, if one is found soon."""
    looked_at = 0
    for parent, directories, names in os.walk(directory):
        directories.sort(reverse=True)
        for name in names:
            yield os.path.join(parent, name)
            return
        looked_at += len(directories)
        if looked_at > _LOOKED_AT:
            return


@contextmanager
def _as_unwritable(root: Path, before: str = "") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise DestinationUnavailable(
            Reason.NO_SPACE if full else Reason.DESTINATION_UNWRITABLE,
            f"{before}files cannot be staged in {root}: {error.strerror}",
            "free space there"
            if full
            else "--state-dir DIR or --staging-dir DIR  # a directory that this user can write to",
        ) from error
