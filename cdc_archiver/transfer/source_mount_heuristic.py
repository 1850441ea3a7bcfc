"""Decides whether files are missing, or their disk is not mounted. Pure.

An unmounted mount point is an empty directory, so only the other missing files show it; an expired ticket or a changed mode
of a directory above forbids all files alike. So three files in a row that never failed before, with no other file in between,
mean that the disk is not mounted, and no failed attempt is counted. A file that was missing before says nothing about the
disk. Where the directory of the missing file can be looked at, that look overrules the heuristic: the copier takes it and
reports it as ``AttemptFailed.mount_confirmed``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Final

from cdc_archiver.model import Archived, AttemptFailed, Deferred, Outcome, Oversize, Reason
from cdc_archiver.transfer.rsync_output import CopyFailure

_SUSPICIOUS_FILES: Final = 3
"""Fewer missing files than this may have been deleted."""
_FIX: Final = (
    "check on the source that the disk is mounted (df) and that the login may read it; or were the files deleted?"
)


def judge_batch(
    verdicts: Mapping[bytes, CopyFailure], entries: int, fresh: Collection[bytes]
) -> Mapping[bytes, CopyFailure]:
    """The verdicts on a batch; where every file of it is missing, or every file unreadable, that its disk is not mounted.

    Args:
        verdicts: on the entries of the batch.
        entries: number of entries in the batch.
        fresh: entries that have no failed attempt.
    """
    reasons = {verdict.reason for verdict in verdicts.values()}
    alike = reasons in ({Reason.MISSING}, {Reason.UNREADABLE})
    if not alike or len(verdicts) < entries or len(verdicts.keys() & set(fresh)) < _SUSPICIOUS_FILES:
        return verdicts
    message = f"all {entries} files of a batch are {min(reasons)} at the source: {_FIX}"
    return {
        entry: CopyFailure(Reason.SOURCE_NOT_MOUNTED, f"{message} {verdict.message}")
        for entry, verdict in verdicts.items()
    }


@dataclass(slots=True)
class UnmountedDiskDetector:
    """Watches the missing files of one source across its batches: a source that is almost idle sends batches of one file, and
    an unmounted disk shows as one missing file after another.

    Attributes:
        missing: ids found missing, for the first time, since the last file that arrived.
        proven: workers whose current batch has shown that the disk is mounted.
    """

    missing: set[int] = field(default_factory=set)
    proven: set[str] = field(default_factory=set)

    def begin_batch(self, worker: str) -> None:
        """A worker has a new batch."""
        self.proven.discard(worker)

    def judge(self, worker: str, outcome: Outcome, *, suspected: bool = False) -> Outcome:
        """The outcome, or what it becomes in the light of the files before it.

        Args:
            suspected: the source is paused already because its disk seems not to be mounted: then a file that was missing
                before does not fail either.
        """
        match outcome:
            case AttemptFailed(record=record, reason=Reason.MISSING, detail=detail, mount_confirmed=mount_confirmed):
                if mount_confirmed or worker in self.proven or (record.attempts and not suspected):
                    return outcome
                self.missing.add(record.id)
                if suspected or len(self.missing) >= _SUSPICIOUS_FILES:
                    message = f"the last {len(self.missing)} files are all missing at the source: {_FIX}"
                    return Deferred(record, Reason.SOURCE_NOT_MOUNTED, f"{message} {detail}")
            case Archived(adopted=False) | AttemptFailed() | Oversize():
                self.proven.add(worker)
                self.missing.clear()
        return outcome
