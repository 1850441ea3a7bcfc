"""What flows through the house: records in, outcomes out. Frozen values, no I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Final, TypeAlias

REFUSED_FROM: Final = 1000
"""``failed_copy_attempts`` from here on: the row itself is impossible. The polling agent leaves such rows alone too."""

IGNORED_FROM: Final = 2000
"""``failed_copy_attempts`` from here on: an operator said that the file will never come."""


class Lane(StrEnum):
    """Which queue of a source a file waits in."""

    SMALL = "small"
    BULK = "bulk"


class Origin(StrEnum):
    """What told us of an id."""

    STREAM = "stream"
    SWEEP = "sweep"


class Scope(StrEnum):
    """What a failure concerns. It decides whether a failed attempt counts, and what waits."""

    FILE = "file"
    """Counts as a failed attempt of the file, which is tried again later."""
    ROW = "row"
    """The row is refused: no later attempt can succeed."""
    SOURCE = "source"
    """Does not count; the source pauses."""
    CONFIGURATION = "operator"
    """Does not count; the source pauses until a person has changed its configuration."""
    DESTINATION = "destination"
    """Does not count; copies from all sources pause."""
    NONE = "nobody"
    """Does not count; the file is tried again."""


class Reason(StrEnum):
    """Why a file is not archived (yet). The words appear in metrics, history, logs and the runbook."""

    MISSING = "missing"
    UNREADABLE = "unreadable"
    CHANGED = "changed"

    NOT_A_FILE = "not_a_file"
    BAD_PATH = "bad_path"
    BAD_NAME = "bad_name"
    NO_PUB_ID = "no_pub_id"
    BAD_PUB_ID = "bad_pub_id"
    BAD_ACTION = "bad_action"
    NO_TIMESTAMP = "no_timestamp"
    NO_MD5 = "no_md5"
    PATH_TOO_LONG = "path_too_long"

    HOST_UNREACHABLE = "host_unreachable"
    LINK_LOST = "link_lost"
    STALLED = "stalled"
    SOURCE_NOT_MOUNTED = "source_not_mounted"

    LOGIN_REFUSED = "login_refused"
    HOST_KEY = "host_key"
    RSYNC_MISSING = "rsync_missing"
    RSYNC_REFUSED = "rsync_refused"

    NO_SPACE = "no_space"
    DESTINATION_UNWRITABLE = "destination_unwritable"
    DESTINATION_MISSING = "destination_missing"
    CORRUPTED = "corrupted"

    OUTSIDE_ROOT = "outside_root"
    PLACE_UNUSABLE = "place_unusable"
    UNDECIDED = "undecided"
    STOPPING = "stopping"

    @property
    def scope(self) -> Scope:
        """What a failure for this reason concerns."""
        return _SCOPES[self]


_SCOPES = MappingProxyType(
    {
        Reason.MISSING: Scope.FILE,
        Reason.UNREADABLE: Scope.FILE,
        Reason.CHANGED: Scope.FILE,
        Reason.NOT_A_FILE: Scope.ROW,
        Reason.BAD_PATH: Scope.ROW,
        Reason.BAD_NAME: Scope.ROW,
        Reason.NO_PUB_ID: Scope.ROW,
        Reason.BAD_PUB_ID: Scope.ROW,
        Reason.BAD_ACTION: Scope.ROW,
        Reason.NO_TIMESTAMP: Scope.ROW,
        Reason.NO_MD5: Scope.ROW,
        Reason.PATH_TOO_LONG: Scope.ROW,
        Reason.HOST_UNREACHABLE: Scope.SOURCE,
        Reason.LINK_LOST: Scope.SOURCE,
        Reason.STALLED: Scope.SOURCE,
        Reason.SOURCE_NOT_MOUNTED: Scope.SOURCE,
        Reason.LOGIN_REFUSED: Scope.CONFIGURATION,
        Reason.HOST_KEY: Scope.CONFIGURATION,
        Reason.RSYNC_MISSING: Scope.CONFIGURATION,
        Reason.RSYNC_REFUSED: Scope.CONFIGURATION,
        Reason.NO_SPACE: Scope.DESTINATION,
        Reason.DESTINATION_UNWRITABLE: Scope.DESTINATION,
        Reason.DESTINATION_MISSING: Scope.DESTINATION,
        Reason.CORRUPTED: Scope.DESTINATION,
        Reason.OUTSIDE_ROOT: Scope.NONE,
        Reason.PLACE_UNUSABLE: Scope.NONE,
        Reason.UNDECIDED: Scope.NONE,
        Reason.STOPPING: Scope.NONE,
    }
)


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A row as it was read.

    Attributes:
        id: primary key.
        path: the file on its source, as the row has it.
        md5sum: 16 bytes, or what the row has instead.
        timestamp: aware, UTC; None where the row has none.
        action_timestamp: seconds since the epoch, or None.
        failed_copy_attempts: as read, None included: the write-back names it.
        image: the columns that we use but id and attempts, in one word, for a comparison with what they are later; empty where it
            was not asked for.
    """

    id: int
    path: str
    md5sum: bytes
    timestamp: datetime | None
    action: str | None
    action_timestamp: int | None
    plot: bool
    pub_id: str | None
    instance_id: str
    failed_copy_attempts: int | None
    image: str = field(default="", compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.timestamp is None or self.timestamp.tzinfo is UTC:  # almost always, and much cheaper to ask
            return
        if self.timestamp.utcoffset() != UTC.utcoffset(None):
            raise ValueError(f"row {self.id}: a record's timestamp is aware and in UTC, not {self.timestamp!r}")

    @property
    def attempts(self) -> int:
        """Attempts charged so far; NULL counts as none, and so does the credit of a number below zero."""
        return max(0, self.failed_copy_attempts or 0)


@dataclass(frozen=True, slots=True)
class Batch:
    """What one worker takes at once: records of one source and one lane.

    Attributes:
        source: the source's name.
        worker: a name that no other worker has, at any time, for this source: it names the staging directory.
    """

    source: str
    lane: Lane
    worker: str
    records: tuple[FileRecord, ...]


@dataclass(frozen=True, slots=True)
class StepDurations:
    """How long each step of a file's way took, in seconds. A step shared by several files counts for each."""

    transferred: float = 0.0
    verified: float = 0.0
    placed: float = 0.0


@dataclass(frozen=True, slots=True)
class Archived:
    """The file is durable at ``path``, with the row's md5.

    Attributes:
        path: absolute, below data_dir.
        size: bytes.
        adopted: it was there already.
    """

    record: FileRecord
    path: str
    size: int
    adopted: bool = False
    steps: StepDurations = field(default_factory=StepDurations)


@dataclass(frozen=True, slots=True)
class AttemptFailed:
    """A try that failed by the file's own fault.

    Attributes:
        detail: one sentence for a person; rsync's own words where there are any.
        md5_seen: what arrived instead, where that is known.
        disk_seen: the directory that a missing file should lie in was seen, with files in it: its disk is mounted.
    """

    record: FileRecord
    reason: Reason
    detail: str
    md5_seen: bytes | None = None
    disk_seen: bool = False


@dataclass(frozen=True, slots=True)
class Refused:
    """The row is impossible; no try was or will be made."""

    record: FileRecord
    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class Deferred:
    """Not archived, by nobody's fault; again later."""

    record: FileRecord
    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class Oversize:
    """Too big for the small lane; not tried there."""

    record: FileRecord


Outcome: TypeAlias = Archived | AttemptFailed | Refused | Deferred | Oversize
