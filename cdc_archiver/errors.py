"""Every error that a part raises on purpose: one tree, named by what to do about it."""

from __future__ import annotations

from enum import IntEnum

from cdc_archiver.model import Reason


class ExitStatus(IntEnum):
    """What the process tells its caller. A contract: others' scripts use it."""

    DONE = 0
    INTERNAL_ERROR = 1
    USAGE = 2
    INCOMPLETE = 3
    UNREACHABLE = 4


class ArchiverError(Exception):
    """Base of all. Its text says what happened and to what.

    Args:
        message: one sentence, for a person.
        hint: what that person can do, a statement or a command where there is one; may be empty.
    """

    exit_status = ExitStatus.INTERNAL_ERROR

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class Misconfigured(ArchiverError):
    """A setting, a table or a directory is not what it has to be. Nothing was touched; a person must fix it."""

    exit_status = ExitStatus.USAGE


class NoSuchTable(Misconfigured):
    """There is no table of files, or none that we may see."""


class DatabaseUnavailable(ArchiverError):
    """The database does not answer, or not us. Wait and try again."""

    exit_status = ExitStatus.UNREACHABLE


class RowLocked(DatabaseUnavailable):
    """Somebody else's open transaction holds a row that we would write. The others can be written."""


class StatementRefused(ArchiverError):
    """The database answers, and does not take a value: a column too small, a constraint, a trigger. It never will."""


class StreamLost(ArchiverError):
    """The binlog connection ended, or its position is gone. Anchor again, sweep.

    Args:
        reason: one word for the metric: shutdown, link, position, stalled, killed, decode.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class StreamUnavailable(ArchiverError):
    """This server gives no usable binlog stream now (no binlog, no grant, compression). Poll, and ask again later."""


class ServerIdTaken(Misconfigured):
    """Another replica has the server_id that the operator set."""


class LockLost(ArchiverError):
    """Another archiver may hold these targets now: stop copying, discard what is under way."""


class TransferError(ArchiverError):
    """A copy failed by no file's fault; nobody is charged.

    Args:
        reason: which one; its ``fault`` says who has to wait.
    """

    def __init__(self, reason: Reason, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.reason = reason


class HostUnavailable(TransferError):
    """A source cannot be reached, or the link to it broke: leave that source alone for a while."""

    exit_status = ExitStatus.UNREACHABLE


class DestinationUnavailable(TransferError):
    """data_dir cannot take files: full, read-only, not mounted. Copy nothing from anywhere for a while."""


class LayoutRefused(ArchiverError):
    """A row whose values lead nowhere: its reason says whether that is the row's fault or a setting's."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
