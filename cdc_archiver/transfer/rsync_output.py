"""Interprets rsync's output and exit status: one result for each file. Pure.

Exit status 0 does not prove that every file arrived, and 23 does not say which file failed. What counts is the line that rsync
prints for each file (``--out-format=%C|%l|%n``) and, for a file without a line, the error that names it. Observed with
rsync 3.2.7 to 3.5.0 under ``LC_ALL=C``, which escapes names as ``\\#ooo``.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from cdc_archiver.model import Reason
from cdc_archiver.transfer.ssh_errors import SshEndpoint, classify_ssh_failure, without_harmless_lines

OUT_FORMAT: Final = "%C|%l|%n"

_RECEIVED_LINE: Final = re.compile(rb"([0-9a-f]{32})\|(\d+)\|(.+)", re.DOTALL)
_DIRECTORY_LINE: Final = re.compile(rb" {32}\|\d+\|(.+)/", re.DOTALL)
_NOT_REGULAR_LINE: Final = re.compile(rb'skipping (?:non-regular file "(.+)"|directory (.+))', re.DOTALL)
_OVER_MAX_SIZE_LINE: Final = re.compile(rb"(.+) is over max-size", re.DOTALL)
_START_DIRECTORY: Final = re.compile(rb"^/proc/self/fd/\d+/")
"""How rsync 3.5 sometimes names the directory that it started in."""
_ESCAPE: Final = re.compile(rb"\\#([0-7]{3})")

_SENDER_FILE_ERROR: Final = re.compile(
    r"rsync: (?:\[sender\] )?(?:link_stat|send_files failed to open|readlink_stat\(?|read errors mapping|stat|open) ?"
    r'"(?P<name>.+)"\)?(?: failed)?: (?P<why>.+) \((?P<errno>\d+)\)(?: in .+)?'
)
_VANISHED: Final = re.compile(r'(?:file has vanished|rsync: \[sender\] file has vanished): "(?P<name>.+)"')
_SENDER_CHDIR_ERROR: Final = re.compile(r'rsync: (?:\[sender\] )?change_dir(?:#\d)? "(.+)" failed: (.+) \(\d+\)')
_LOCAL_ERROR: Final = re.compile(r"rsync: \[(?:generator|receiver|Receiver)\] (.+): (.+) \((\d+)\)")
_RSYNC_NOT_FOUND: Final = re.compile(
    r"^(?!rsync: (?:\[\w+\]|link_stat|stat|open|readlink_stat|change_dir|send_files|read errors))"
    r".*(?:rsync|command).*(?:not found|No such file)",
    re.MULTILINE,
)
"""Printed by a shell or by ssh. Where rsync itself reports something missing, it is a file."""
_OPTION_REFUSED: Final = re.compile(
    r"Your --(checksum|compress)-choice value .*refused.*|Failed to negotiate a (checksum|compress) choice.*"
)
"""The account's environment over there limits rsync's sums or its compression."""
_NOT_RSYNC: Final = re.compile(r"is your shell clean|unexpectedly closed \(0 bytes received so far\)")
"""Printed where something else than rsync answered, or nothing."""
_UNTRUSTED_LINK: Final = "symlink owned by an untrusted user"
"""Printed by rsync 3.5 and later, before the ELOOP of each file below the link."""
_NO_SPACE_ERRNOS: Final = {errno.ENOSPC, errno.EDQUOT}
_LINK_ERRNOS: Final = {errno.EPIPE, errno.ECONNRESET, errno.ETIMEDOUT, errno.EBADF}
"""Errors at the ends of a broken pipe to ssh; the receiver's own files never give them."""
_MISSING_ERRNOS: Final = {errno.ENOENT, errno.ENOTDIR}
_UNREADABLE_ERRNOS: Final = {errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG, errno.EIO, errno.ENODATA}
"""With :data:`_MISSING_ERRNOS` the errors of a sender that concern one file (EIO: a bad sector; ENODATA: that, or a file that
shrank while it was read). All others concern the whole source: a disk that is not mounted, no memory, no descriptors."""


@dataclass(frozen=True, slots=True)
class FileReceived:
    """A file is complete in staging.

    Attributes:
        entry: its name relative to the source root, as bytes.
        md5: of what was sent and received.
        size: bytes.
    """

    entry: bytes
    md5: bytes
    size: int


@dataclass(frozen=True, slots=True)
class NotRegularFile:
    """The entry is a directory, a link or a device."""

    entry: bytes


@dataclass(frozen=True, slots=True)
class OverMaxSize:
    """The entry is larger than ``--max-size``."""

    entry: bytes


OutputLine: TypeAlias = FileReceived | NotRegularFile | OverMaxSize


@dataclass(frozen=True, slots=True)
class CopyFailure:
    """Why a file, or a whole run, failed.

    Attributes:
        message: one line of rsync or ssh.
        hint: the fix; may be empty.
        unexplained: something else than rsync answered: the login may say more, see :mod:`cdc_archiver.transfer.login_shell`.
    """

    reason: Reason
    message: str
    hint: str = ""
    unexplained: bool = False


@dataclass(frozen=True, slots=True)
class ExitInfo:
    """What exit status and standard error say of a run.

    Attributes:
        files: failures of single entries.
        failure: failure of the whole run, which holds for each entry without one of its own; None where only single files
            failed, or nothing is known.
        below_links: entries that rsync refused because a directory above them is a link of another user. It takes them if it
            starts below that link.
    """

    files: Mapping[bytes, CopyFailure]
    failure: CopyFailure | None
    below_links: frozenset[bytes] = frozenset()


def parse_line(line: bytes, directory: bytes = b"") -> OutputLine | None:
    """Parses one line of standard output.

    Args:
        line: without its newline.
        directory: what names in the line are relative to, ended by a slash; empty for the source root, as entries are.

    Returns:
        None where the line concerns no file.
    """
    if match := _RECEIVED_LINE.fullmatch(line):
        md5 = bytes.fromhex(match[1].decode())
        # rsync prints all zeros for a sum that it does not have: the file failed.
        return FileReceived(directory + _unescape(match[3]), md5, int(match[2])) if any(md5) else None
    if match := _DIRECTORY_LINE.fullmatch(line):
        return NotRegularFile(directory + _unescape(match[1]))
    if match := _NOT_REGULAR_LINE.fullmatch(line):
        return NotRegularFile(directory + _unescape(match[1] or match[2]))
    if match := _OVER_MAX_SIZE_LINE.fullmatch(line):
        return OverMaxSize(directory + _unescape(match[1]))
    return None


def failed_to_enter_directory(status: int, stderr: str) -> bool:
    """Whether the sender could not enter the directory to start in: it is missing or forbidden, or a restricted key does not
    allow it. The output then says nothing of any file."""
    return status != 0 and ("rrsync" in stderr or _SENDER_CHDIR_ERROR.search(stderr) is not None)


def parse_exit(
    status: int,
    stderr: str,
    root: str,
    entries: Collection[bytes],
    endpoint: SshEndpoint | None = None,
    directory: bytes = b"",
) -> ExitInfo:
    """Interprets exit status and standard error of a run.

    Args:
        status: rsync's; negative for a signal.
        stderr: everything that rsync, ssh and the other side wrote there.
        root: the directory on the source that entries are relative to.
        entries: those without an outcome yet.
        endpoint: the other side, for hints about ssh; None for a local copy.
        directory: below the root, ended by a slash: where the sender started.
    """
    files: dict[bytes, CopyFailure] = {}
    below_links: set[bytes] = set()
    failure: CopyFailure | None = None
    stderr = without_harmless_lines(stderr)
    for line in stderr.splitlines():
        if match := _VANISHED.search(line):
            # The file existed when rsync listed it, so its disk may have gone: the next try decides.
            if (entry := _find_entry(match["name"], root, directory, entries)) is not None:
                files[entry] = CopyFailure(Reason.UNDECIDED, line)
        elif match := _SENDER_FILE_ERROR.search(line):
            entry = _find_entry(match["name"], root, directory, entries)
            number = int(match["errno"])
            if number == errno.ELOOP and entry is not None and _UNTRUSTED_LINK in stderr:
                below_links.add(entry)
            elif number not in _MISSING_ERRNOS | _UNREADABLE_ERRNOS:
                failure = failure or CopyFailure(Reason.SOURCE_NOT_MOUNTED, line)
            elif entry is not None:
                files[entry] = CopyFailure(Reason.MISSING if number in _MISSING_ERRNOS else Reason.UNREADABLE, line)
            elif _unescape_text(match["name"]).rstrip("/") == root.rstrip("/"):
                failure = failure or CopyFailure(Reason.SOURCE_NOT_MOUNTED, line)
        elif (match := _LOCAL_ERROR.search(line)) and int(match[3]) not in _LINK_ERRNOS:
            full = int(match[3]) in _NO_SPACE_ERRNOS
            failure = failure or CopyFailure(Reason.NO_SPACE if full else Reason.DESTINATION_UNWRITABLE, line)
        elif _SENDER_CHDIR_ERROR.search(line):
            failure = failure or CopyFailure(Reason.SOURCE_NOT_MOUNTED, line)
    return ExitInfo(files, failure or _failure_from_status(status, stderr, endpoint), frozenset(below_links))


_UNINFORMATIVE: Final = ("rsync error:", "rsync: connection unexpectedly closed", "(see the rsync man")


def main_error_line(stderr: str) -> str:
    """The most informative line of standard error, at most 500 characters."""
    lines = [line.strip() for line in without_harmless_lines(stderr).splitlines() if line.strip()]
    specific = [line for line in lines if not line.startswith(_UNINFORMATIVE)]
    return (specific or lines or ["rsync printed no error"])[-1][:500]


def _failure_from_status(status: int, stderr: str, endpoint: SshEndpoint | None) -> CopyFailure | None:
    message = main_error_line(stderr)
    if status == 0:
        return None
    if "rrsync" in stderr and "error" in stderr.lower():
        return CopyFailure(
            Reason.RSYNC_REFUSED, message, 'check command="rrsync -ro …" in ~/.ssh/authorized_keys on the source'
        )
    # When ssh fails, rsync exits with 255 or with 12, by a race inside rsync. So ssh's message comes before the status.
    if endpoint is not None and (ssh_failure := classify_ssh_failure(stderr, endpoint)):
        return CopyFailure(ssh_failure.reason, ssh_failure.message, ssh_failure.hint)
    if status == 127 or (status == 12 and _RSYNC_NOT_FOUND.search(stderr)):
        return CopyFailure(Reason.RSYNC_MISSING, message, "install rsync on the source: apt-get install rsync")
    if refused := _OPTION_REFUSED.search(stderr):
        variable = f"RSYNC_{(refused[1] or refused[2]).upper()}_LIST"
        places = "~/.ssh ~/.profile ~/.bashrc /etc/environment /etc/profile.d /etc/ssh"
        hint = f"grep -rs {variable} {places}  # on the source, as the login: remove it from the account's environment"
        return CopyFailure(Reason.RSYNC_REFUSED, refused[0].strip(), hint)
    unexplained = status > 0 and status != 255 and _NOT_RSYNC.search(stderr) is not None
    if status in (1, 2, 4, 6):
        return CopyFailure(Reason.RSYNC_REFUSED, message, unexplained=unexplained)
    if status in (3, 11):
        full = any(f"({number})" in stderr for number in _NO_SPACE_ERRNOS)
        return CopyFailure(Reason.NO_SPACE if full else Reason.DESTINATION_UNWRITABLE, message)
    if status in (23, 24):
        return None
    return CopyFailure(Reason.LINK_LOST, f"{message} (rsync status {status})", unexplained=unexplained)


def _find_entry(quoted: str, root: str, directory: bytes, entries: Collection[bytes]) -> bytes | None:
    """The entry that an error message names."""
    name = _unescape(quoted.encode("utf-8", "surrogateescape"))
    prefix = root.rstrip("/").encode("utf-8", "surrogateescape") + b"/"
    if name.startswith(prefix) and name[len(prefix) :] in entries:
        return name[len(prefix) :]
    if (below := _START_DIRECTORY.sub(b"", name)) != name:
        return directory + below if directory + below in entries else None
    # The other side may know the root by another path (a link, a chroot): take the longest entry that the name ends in.
    parts = name.split(b"/")
    tails = [b"/".join(parts[start:]) for start in range(len(parts))]
    if found := [tail for tail in tails if tail in entries]:
        return found[0]
    # Or the start directory. Where that matches several entries, the message decides none of them.
    found = [directory + tail for tail in tails if directory + tail in entries]
    return found[0] if len(found) == 1 else None


def _unescape_text(quoted: str) -> str:
    return _unescape(quoted.encode("utf-8", "surrogateescape")).decode("utf-8", "surrogateescape")


def _unescape(name: bytes) -> bytes:
    if b"\\" not in name:
        return name
    return _ESCAPE.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), name)
