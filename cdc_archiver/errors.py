"""Every error that is raised on purpose: one hierarchy, named by the reaction that it calls for."""

from __future__ import annotations

from enum import IntEnum

from cdc_archiver.model import Reason


class ExitStatus(IntEnum):
    """Exit status of the process. A contract: users' scripts depend on it."""

    DONE = 0
    INTERNAL_ERROR = 1
    USAGE = 2
    INCOMPLETE = 3
    UNREACHABLE = 4


class ArchiverError(Exception):
    """Base class. Its text names the event and the object.

    Args:
        message: one sentence, for a person.
        hint: the fix, as a statement or a command where there is one; may be empty.
    """

    exit_status = ExitStatus.INTERNAL_ERROR

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}; fix: {self.hint}" if self.hint else self.message


class Misconfigured(ArchiverError):
    """A setting, a table or a directory is not as required. Nothing was changed; a person must fix it."""

    exit_status = ExitStatus.USAGE


class NoSuchTable(Misconfigured):
    """There is no table of files, or none that this user may see."""


class DatabaseUnavailable(ArchiverError):
    """The database does not answer, or refuses this client. Wait and try again."""

    exit_status = ExitStatus.UNREACHABLE


class ReadOnlyServer(DatabaseUnavailable):
    """The server takes no writes: a replica, or a former primary after a fail-over. Leave it; wait until one takes writes."""


class RowLocked(DatabaseUnavailable):
    """Another client's open transaction locks a row to be written. Other rows can be written."""


class StatementRefused(ArchiverError):
    """The database rejects a value: a column too small, a constraint, a trigger. Another attempt cannot succeed."""


class StreamLost(ArchiverError):
    """The binlog connection ended, or its position is gone. Anchor again and sweep.

    Args:
        reason: label of the metric: shutdown, link, position, stalled, killed, decode, server_id.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class StreamUnavailable(ArchiverError):
    """The server offers no usable binlog stream now (no binlog, no grant, compression). Poll, and try again later."""


class ServersDiffer(StreamUnavailable):
    """Connections of one address lead to different servers: a stream of one says nothing of writes to another. Poll."""


class ServerIdTaken(Misconfigured):
    """Another replica uses the server_id that the operator set."""


class LockLost(ArchiverError):
    """Another archiver may hold these targets now: stop copying, discard the copies under way."""


class TransferError(ArchiverError):
    """A transfer failed for a reason outside its files; it does not count as a failed attempt.

    Args:
        reason: its ``scope`` decides what waits.
    """

    def __init__(self, reason: Reason, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.reason = reason


class HostUnavailable(TransferError):
    """A source cannot be reached, or the link to it broke: pause the source."""

    exit_status = ExitStatus.UNREACHABLE


class DestinationUnavailable(TransferError):
    """data_dir cannot take files: full, read-only, not mounted. Pause all sources."""


class LayoutRefused(ArchiverError):
    """A row whose values give no path in the archive: the reason's scope is the row, or none where a setting is the cause."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
