"""rsync's words to a verdict for each file. Pure.

Exit status 0 proves nothing and 23 condemns nobody in particular: what counts is the line that each file printed
(``--out-format=%C|%l|%n``), and for a file without one, the error that names it. Observed with rsync 3.2.7 to 3.5.0 under
``LC_ALL=C``, where names are escaped as ``\\#ooo``.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from cdc_archiver.model import Reason
from cdc_archiver.transfer.ssh_errors import Peer, classify_ssh_failure

OUT_FORMAT: Final = "%C|%l|%n"

_ARRIVED: Final = re.compile(rb"([0-9a-f]{32})\|(\d+)\|(.+)", re.DOTALL)
_DIRECTORY: Final = re.compile(rb" {32}\|\d+\|(.+)/", re.DOTALL)
_NOT_REGULAR: Final = re.compile(rb'skipping (?:non-regular file "(.+)"|directory (.+))', re.DOTALL)
_OVERSIZE: Final = re.compile(rb"(.+) is over max-size", re.DOTALL)
_DIRECTORY_ITSELF: Final = re.compile(rb"^/proc/self/fd/\d+/")
"""How rsync 3.5 calls the directory that it began in, at times."""
_ESCAPE: Final = re.compile(rb"\\#([0-7]{3})")

_SENDER_FILE: Final = re.compile(
    r"rsync: (?:\[sender\] )?(?:link_stat|send_files failed to open|readlink_stat\(?|read errors mapping|stat|open) ?"
    r'"(?P<name>.+)"\)?(?: failed)?: (?P<why>.+) \((?P<errno>\d+)\)(?: in .+)?'
)
_VANISHED: Final = re.compile(r'(?:file has vanished|rsync: \[sender\] file has vanished): "(?P<name>.+)"')
_SENDER_ROOT: Final = re.compile(r'rsync: (?:\[sender\] )?change_dir(?:#\d)? "(.+)" failed: (.+) \(\d+\)')
_HERE: Final = re.compile(r"rsync: \[(?:generator|receiver|Receiver)\] (.+): (.+) \((\d+)\)")
_NO_RSYNC: Final = re.compile(
    r"^(?!rsync: (?:\[\w+\]|link_stat|stat|open|readlink_stat|change_dir|send_files|read errors))"
    r".*(?:rsync|command).*(?:not found|No such file)",
    re.MULTILINE,
)
"""What a shell says, or ssh; what rsync itself misses is a file."""
_SPACE: Final = {errno.ENOSPC, errno.EDQUOT}
_LINK: Final = {errno.EPIPE, errno.ECONNRESET, errno.ETIMEDOUT, errno.EBADF}
"""What the ends of a broken pipe to ssh say; the receiver's own files never do."""
_MISSING: Final = {errno.ENOENT, errno.ENOTDIR}
_FORBIDDEN: Final = {errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG, errno.EIO}
"""With :data:`_MISSING` the errors of a sender that are a file's own (EIO: a bad sector); all others are its host's: a disk that
is not mounted, no memory, no descriptors."""


@dataclass(frozen=True, slots=True)
class Arrived:
    """A file is complete in staging.

    Attributes:
        entry: its name relative to the root, as bytes.
        md5: of what was sent and received.
        size: bytes.
    """

    entry: bytes
    md5: bytes
    size: int


@dataclass(frozen=True, slots=True)
class NotAFile:
    """The entry is a directory, a link, a device."""

    entry: bytes


@dataclass(frozen=True, slots=True)
class TooLarge:
    """The entry is over ``--max-size``."""

    entry: bytes


Line: TypeAlias = Arrived | NotAFile | TooLarge


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why something did not arrive, with rsync's or ssh's words, and what a person can do."""

    reason: Reason
    words: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class ExitInfo:
    """What the end of a run says.

    Attributes:
        files: verdicts on single entries.
        trouble: a verdict on the whole run: it holds for each entry that has none of its own; None where nothing is
            known but what single files say.
    """

    files: Mapping[bytes, Verdict]
    trouble: Verdict | None


def read_line(line: bytes, directory: bytes = b"") -> Line | None:
    """One line of standard output, without its newline; None where it is about no file.

    Args:
        directory: what names in lines are relative to, ended by a slash; empty for the source root, as entries are.
    """
    if match := _ARRIVED.fullmatch(line):
        md5 = bytes.fromhex(match[1].decode())
        # All zeros is how rsync prints a sum that it does not have: the file failed.
        return Arrived(directory + _unescape(match[3]), md5, int(match[2])) if any(md5) else None
    if match := _DIRECTORY.fullmatch(line):
        return NotAFile(directory + _unescape(match[1]))
    if match := _NOT_REGULAR.fullmatch(line):
        return NotAFile(directory + _unescape(match[1] or match[2]))
    if match := _OVERSIZE.fullmatch(line):
        return TooLarge(directory + _unescape(match[1]))
    return None


def could_not_begin(status: int, stderr: str) -> bool:
    """Whether the other side did not enter the directory that it was to begin in: it is missing, it is forbidden, or a restricted
    key does not lead there. It says nothing of any file then."""
    return status != 0 and ("rrsync" in stderr or _SENDER_ROOT.search(stderr) is not None)


def read_ending(
    status: int,
    stderr: str,
    root: str,
    entries: Collection[bytes],
    peer: Peer | None = None,
    directory: bytes = b"",
) -> ExitInfo:
    """What exit status and standard error say of a run.

    Args:
        status: rsync's; negative for a signal.
        stderr: everything it, ssh and the other side wrote there.
        root: the directory on the source that entries are relative to.
        entries: those that are undecided.
        peer: the other side, for hints about ssh; None for a local copy.
        directory: below the root, ended by a slash: where the other side began.
    """
    files: dict[bytes, Verdict] = {}
    trouble: Verdict | None = None
    for line in stderr.splitlines():
        if match := _VANISHED.search(line):
            # It was there when the list was made: perhaps its disk has gone. The next try tells.
            if (entry := _entry(match["name"], root, directory, entries)) is not None:
                files[entry] = Verdict(Reason.UNDECIDED, line)
        elif match := _SENDER_FILE.search(line):
            entry = _entry(match["name"], root, directory, entries)
            number = int(match["errno"])
            if number not in _MISSING | _FORBIDDEN:
                trouble = trouble or Verdict(Reason.SOURCE_NOT_MOUNTED, line)
            elif entry is not None:
                files[entry] = Verdict(Reason.MISSING if number in _MISSING else Reason.UNREADABLE, line)
            elif _plain(match["name"]).rstrip("/") == root.rstrip("/"):
                trouble = trouble or Verdict(Reason.SOURCE_NOT_MOUNTED, line)
        elif (match := _HERE.search(line)) and int(match[3]) not in _LINK:
            full = int(match[3]) in _SPACE
            trouble = trouble or Verdict(Reason.NO_SPACE if full else Reason.DESTINATION_UNWRITABLE, line)
        elif _SENDER_ROOT.search(line):
            trouble = trouble or Verdict(Reason.SOURCE_NOT_MOUNTED, line)
    return ExitInfo(files, trouble or _trouble_of_status(status, stderr, peer))


def last_words(stderr: str) -> str:
    """The line of standard error that tells a person most, for a log."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(("rsync error:", "rsync: connection unexpectedly closed"))]
    return (telling or lines or ["rsync said nothing"])[-1][:500]


def _trouble_of_status(status: int, stderr: str, peer: Peer | None) -> Verdict | None:
    words = last_words(stderr)
    if status == 0:
        return None
    if "rrsync" in stderr and "error" in stderr.lower():
        return Verdict(Reason.RSYNC_REFUSED, words, 'check the key\'s command="rrsync -ro …" on the source')
    # When ssh fails, rsync ends with 255 or with 12: it is a race inside rsync. So ssh's words come before its status.
    if peer is not None and (failure := classify_ssh_failure(stderr, peer)):
        return Verdict(failure.reason, failure.words, failure.hint)
    if status == 127 or (status == 12 and _NO_RSYNC.search(stderr)):
        return Verdict(Reason.RSYNC_MISSING, words, "install rsync on the source: apt-get install rsync")
    if status in (1, 2, 4, 6):
        return Verdict(Reason.RSYNC_REFUSED, words)
    if status in (3, 11):
        full = any(f"({number})" in stderr for number in _SPACE)
        return Verdict(Reason.NO_SPACE if full else Reason.DESTINATION_UNWRITABLE, words)
    if status in (23, 24):
        return None
    return Verdict(Reason.LINK_LOST, f"{words} (rsync status {status})")


def _entry(quoted: str, root: str, directory: bytes, entries: Collection[bytes]) -> bytes | None:
    name = _unescape(quoted.encode("utf-8", "surrogateescape"))
    prefix = root.rstrip("/").encode("utf-8", "surrogateescape") + b"/"
    if name.startswith(prefix) and name[len(prefix) :] in entries:
        return name[len(prefix) :]
    if (below := _DIRECTORY_ITSELF.sub(b"", name)) != name:
        return directory + below if directory + below in entries else None
    # The other side may know the root by another path (a link, a chroot): the longest entry that the name ends in.
    parts = name.split(b"/")
    tails = [b"/".join(parts[start:]) for start in range(len(parts))]
    if found := [tail for tail in tails if tail in entries]:
        return found[0]
    # Or the directory; then where several files may be meant, none is.
    found = [directory + tail for tail in tails if directory + tail in entries]
    return found[0] if len(found) == 1 else None


def _plain(quoted: str) -> str:
    return _unescape(quoted.encode("utf-8", "surrogateescape")).decode("utf-8", "surrogateescape")


def _unescape(name: bytes) -> bytes:
    if b"\\" not in name:
        return name
    return _ESCAPE.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), name)
