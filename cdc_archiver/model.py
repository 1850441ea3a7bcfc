"""The values that flow between packages: records in, outcomes out. Frozen, no I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from types import MappingProxyType
from typing import Final, TypeAlias

REFUSED_FROM: Final = 1000
"""``failed_copy_attempts`` of a refused row, and above: the row itself is impossible. The polling agent ignores such rows too."""

IGNORED_FROM: Final = 2000
"""``failed_copy_attempts`` of an ignored row, and above: an operator has marked the file as one that will never come."""


OLDEST_TIMESTAMP: Final = datetime(2001, 9, 9, 1, 46, 40, tzinfo=UTC)
"""10^9 s since the epoch. From here on the seconds have ten digits, so that the first five name a period of 100,000 s."""

AHEAD: Final = timedelta(days=1)
"""A ``timestamp`` further ahead of the clock than this is probably wrong."""


class Lane(StrEnum):
    """The queue of a source in which a file waits."""

    SMALL = "small"
    BULK = "bulk"


class Origin(StrEnum):
    """Where a wake-up comes from."""

    STREAM = "stream"
    SWEEP = "sweep"


class Scope(StrEnum):
    """What a failure concerns. It decides whether the failed attempt counts, and what waits."""

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
    """Why a file is not archived (yet). The values appear in metrics, history, logs and the runbook."""

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
    BAD_TIMESTAMP = "bad_timestamp"
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
    HANDED_OVER = "handed_over"
    STOPPING = "stopping"
    NOT_RECORDABLE = "not_recordable"

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
        Reason.BAD_TIMESTAMP: Scope.ROW,
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
        Reason.HANDED_OVER: Scope.NONE,
        Reason.STOPPING: Scope.NONE,
        Reason.NOT_RECORDABLE: Scope.NONE,
    }
)


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A row as it was read.

    Attributes:
        id: primary key.
        path: of the file on its source, as the row has it.
        md5sum: 16 bytes, or whatever the row has.
        timestamp: aware, UTC; None where the row has none.
        action_timestamp: seconds since the epoch, or None.
        failed_copy_attempts: as read, None included: the write-back compares it.
        row_image: the columns in use except id and attempts, as one text, for comparison with the row at write-back; empty where
            it was not requested.
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
    row_image: str = field(default="", compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.timestamp is None or self.timestamp.tzinfo is UTC:  # almost always, and much cheaper to test
            return
        if self.timestamp.utcoffset() != UTC.utcoffset(None):
            raise ValueError(f"row {self.id}: the timestamp must be aware and in UTC, not {self.timestamp!r}")

    @property
    def attempts(self) -> int:
        """Failed attempts so far; NULL and negative numbers count as none."""
        return max(0, self.failed_copy_attempts or 0)

    def is_ahead(self, now: datetime) -> bool:
        """Whether the ``timestamp`` is more than a day ahead of a clock."""
        return self.timestamp is not None and self.timestamp - now > AHEAD


@dataclass(frozen=True, slots=True)
class Batch:
    """The records that one worker copies at once: of one source and one lane.

    Attributes:
        source: name of the source.
        worker: a name that no other worker of this source has or had: the name of the staging directory.
    """

    source: str
    lane: Lane
    worker: str
    records: tuple[FileRecord, ...]


@dataclass(frozen=True, slots=True)
class StepDurations:
    """Duration of each step of a copy, in seconds. A step shared by several files counts in full for each."""

    transferred: float = 0.0
    verified: float = 0.0
    placed: float = 0.0


@dataclass(frozen=True, slots=True)
class Archived:
    """The file is durable at ``path``, with the row's md5.

    Attributes:
        path: absolute, below data_dir.
        size: bytes.
        adopted: it was in place already.
    """

    record: FileRecord
    path: str
    size: int
    adopted: bool = False
    steps: StepDurations = field(default_factory=StepDurations)


@dataclass(frozen=True, slots=True)
class AttemptFailed:
    """A copy that failed for a reason within the file; it counts as a failed attempt.

    Attributes:
        detail: one sentence for a person; rsync's message where there is one.
        md5_seen: of the bytes that arrived, where that is known.
        mount_confirmed: the directory of a missing file exists and holds files: its disk is mounted.
    """

    record: FileRecord
    reason: Reason
    detail: str
    md5_seen: bytes | None = None
    mount_confirmed: bool = False


@dataclass(frozen=True, slots=True)
class Refused:
    """The row is impossible; no copy was or will be attempted."""

    record: FileRecord
    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class Deferred:
    """Not archived, and not counted as a failed attempt; tried again later."""

    record: FileRecord
    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class NotRecordable:
    """The outcome was decided, and the database refuses to record it: an entry of the history, never an outcome of a copy.

    Attributes:
        path: where the file is archived; empty where it is not.
        detail: the database's message.
    """

    record: FileRecord
    path: str
    detail: str
    reason: Reason = Reason.NOT_RECORDABLE


@dataclass(frozen=True, slots=True)
class Oversize:
    """Too large for the small lane; not copied there."""

    record: FileRecord


Outcome: TypeAlias = Archived | AttemptFailed | Refused | Deferred | Oversize
