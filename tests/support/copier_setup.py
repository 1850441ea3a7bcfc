"""The set-up of the copier's tests: a source directory, an archive, and a copier between them."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from records import record
from waiting import eventually

from cdc_archiver.model import Archived, AttemptFailed, Batch, Deferred, FileRecord, Lane, Outcome, Reason, Refused
from cdc_archiver.settings import SourceSettings, load
from cdc_archiver.transfer.copier import Copier
from cdc_archiver.transfer.staging import Archive


@dataclass
class CopierSetup:
    """A source directory, an archive, and a copier between them."""

    source: Path
    data: Path
    flags: dict[str, Any]
    cancel: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.source.mkdir()
        self.data.mkdir()
        self.settings = load({"target": ("m",), "data_dir": self.data, "min_free": 0, **self.flags}, environment={})
        self.archive = Archive(self.data, 0)
        self.archive.prepare()
        self.copier = Copier(self.settings, self.archive, 260, self.cancel)
        self._ids = 0

    def file(self, name: str, content: bytes | None = None, **changes: Any) -> FileRecord:
        """A file on the source and its record."""
        content = name.encode() if content is None else content
        path = self.source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return self.row(name, **{"md5sum": hashlib.md5(content).digest(), **changes})

    def row(self, name: str, **changes: Any) -> FileRecord:
        """A record without a file."""
        self._ids += 1
        return record(**{"id": self._ids, "path": str(self.source / name), **changes})

    def copy(self, *records: FileRecord, lane: Lane = Lane.SMALL) -> dict[int, Outcome]:
        (source,) = self.settings.sources
        batch = Batch(source.name, lane, f"{lane}-0", records)
        outcomes = list(self.copier.archive(source, batch))
        assert sorted(outcome.record.id for outcome in outcomes) == sorted(each.id for each in records)
        return {outcome.record.id: outcome for outcome in outcomes}

    def staged(self) -> list[Path]:
        return [path for path in self.archive.incoming.rglob("*") if path.is_file()]


def archived(outcome: Outcome, content: bytes, *, adopted: bool = False) -> Path:
    """The archived path, after a check of its content."""
    assert isinstance(outcome, Archived), outcome
    assert Path(outcome.path).read_bytes() == content
    assert (outcome.size, outcome.adopted) == (len(content), adopted)
    return Path(outcome.path)


def reason(outcome: Outcome) -> Reason:
    assert isinstance(outcome, AttemptFailed | Refused | Deferred), outcome
    return outcome.reason


def staged(stage: CopierSetup) -> Iterator[CopierSetup]:
    yield stage
    stage.copier.close()


def copying(stage: CopierSetup, source: SourceSettings, big: FileRecord) -> tuple[list[Outcome], threading.Thread]:
    """Starts the copy of a large file and waits for its first bytes; its outcomes, and its thread."""
    outcomes: list[Outcome] = []
    batch = Batch(source.name, Lane.BULK, "bulk-0", (big,))
    thread = threading.Thread(target=lambda: outcomes.extend(stage.copier.archive(source, batch)))
    thread.start()
    eventually(lambda: any(stage.archive.incoming.rglob(".big.npy.*")), "bytes arrive")
    return outcomes, thread
