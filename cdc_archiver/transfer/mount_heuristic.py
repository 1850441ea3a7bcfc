"""Is it the file that is missing, or its disk? Pure.

An unmounted mount point is an empty directory, so nothing but the company that a missing file is in shows it; an expired ticket
or a changed mode of a directory above forbids all files alike. So three files in a row that were never charged before, and no
other in between, are their disk's fault, and nobody is charged. That a file is missing which was missing before says
nothing of the disk. A look at the directory of the missing file, where one can be had, overrules all of this: the copier
asks for it, and says so with ``AttemptFailed.mount_confirmed``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Final

from cdc_archiver.model import Archived, AttemptFailed, Deferred, Outcome, Oversize, Reason
from cdc_archiver.transfer.rsync_output import CopyFailure

_FILES: Final = 3
"""So many may be gone by themselves, less one."""
_QUESTION: Final = "is the disk mounted, are we allowed to read it, or are they really gone?"


def hold_if_all_alike(
    verdicts: Mapping[bytes, CopyFailure], entries: int, fresh: Collection[bytes]
) -> Mapping[bytes, CopyFailure]:
    """What is said of a batch of which every file is missing, or every one unreadable.

    Args:
        verdicts: on the entries of the batch.
        entries: how many the batch had.
        fresh: those that were never charged.
    """
    reasons = {verdict.reason for verdict in verdicts.values()}
    alike = reasons in ({Reason.MISSING}, {Reason.UNREADABLE})
    if not alike or len(verdicts) < entries or len(verdicts.keys() & set(fresh)) < _FILES:
        return verdicts
    words = f"all {entries} files of a batch are {min(reasons)} there: {_QUESTION}"
    return {
        entry: CopyFailure(Reason.SOURCE_NOT_MOUNTED, f"{words} {verdict.message}")
        for entry, verdict in verdicts.items()
    }


@dataclass(slots=True)
class MissingFiles:
    """The missing files of one source across its batches: idle, files come one by one, and an unmounted disk looks like one
    missing file after the other.

    Attributes:
        missing: ids found missing, for the first time, since the last file that arrived.
        heard: workers whose batch has brought something: their missing files are missing.
    """

    missing: set[int] = field(default_factory=set)
    heard: set[str] = field(default_factory=set)

    def begin(self, worker: str) -> None:
        """A worker has a new batch."""
        self.heard.discard(worker)

    def judge(self, worker: str, outcome: Outcome, *, held: bool = False) -> Outcome:
        """The outcome, or what it is when its neighbours are looked at too.

        Args:
            held: the disk is taken for not mounted already: then what was missing before is missing for no news either.
        """
        match outcome:
            case AttemptFailed(record=record, reason=Reason.MISSING, detail=detail, mount_confirmed=mount_confirmed):
                if mount_confirmed or worker in self.heard or (record.attempts and not held):
                    return outcome
                self.missing.add(record.id)
                if held or len(self.missing) >= _FILES:
                    words = f"the last {len(self.missing)} files are all missing there: {_QUESTION}"
                    return Deferred(record, Reason.SOURCE_NOT_MOUNTED, f"{words} {detail}")
            case Archived(adopted=False) | AttemptFailed() | Oversize():
                self.heard.add(worker)
                self.missing.clear()
        return outcome
