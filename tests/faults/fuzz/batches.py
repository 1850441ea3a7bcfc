"""A whole batch: the copier with everything except rsync itself."""

from __future__ import annotations

import hashlib
import os
import random
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from unittest import mock

from records import record

from cdc_archiver.model import Archived, Batch, Lane
from cdc_archiver.settings import SourceSettings, load
from cdc_archiver.transfer import rsync_output
from cdc_archiver.transfer.copier import Copier
from cdc_archiver.transfer.staging import Archive
from fuzz.corpus import LINES, SSH_LINES, STATUSES, some_bytes, stderr_text


@dataclass
class RsyncScript:
    """Output and effects of one run of a scripted rsync.

    Attributes:
        files: content of files in staging when lines are printed, by entry.
    """

    files: dict[bytes, bytes] = field(default_factory=dict)
    groups: list[list[bytes]] = field(default_factory=list)
    status: int = 0
    stderr: str = ""
    stalled: bool = False


@dataclass
class BatchScript:
    """A batch and the rsyncs that run for it; any later one prints nothing."""

    lane: Lane
    contents: dict[str, bytes]
    scripts: list[RsyncScript]


NAMES: Final = ("a.npy", "b c.npy", "c.npy", "d.npy")


def make_batch(rng: random.Random) -> BatchScript:
    contents = {name: name.encode() * 3 for name in rng.sample(NAMES, rng.randrange(1, 5))}
    scripts = [make_rsync_script(rng, contents) for _ in range(rng.randrange(1, 4))]
    return BatchScript(rng.choice(list(Lane)), contents, scripts)


def make_rsync_script(rng: random.Random, contents: dict[str, bytes]) -> RsyncScript:
    script = RsyncScript(
        status=rng.choice(STATUSES), stderr=stderr_text(rng, LINES, SSH_LINES), stalled=rng.random() < 0.05
    )
    group: list[bytes] = []
    for _ in range(rng.randrange(6)):
        name = rng.choice(NAMES)
        right = contents.get(name, b"")
        brought = rng.choice((right, right, right, right + b"!", b"", b"\0" * 100))
        printed = rng.choice((brought, brought, right, b"?"))
        digest = rng.choice((hashlib.md5(printed).hexdigest().encode(),) * 3 + (b"0" * 32,))
        if rng.random() < 0.9:
            script.files[name.encode()] = brought
        line = b"|".join((digest, str(len(brought)).encode(), name.encode()))
        group.append(rng.choice((line, line, line, some_bytes(rng))))
        if rng.random() < 0.5:
            script.groups.append(group)
            group = []
    script.groups.append(group)
    return script


class CopierTarget:
    """A copier with a directory of its own, made once."""

    def __init__(self, directory: Path) -> None:
        self.sources = directory / "readout"
        self.archive = directory / "archive"
        for made in (self.sources, self.archive):
            made.mkdir()
        (self.sources / "there.npy").write_bytes(b"shows that the disk is mounted")
        options = {"target": ("m",), "data_dir": self.archive, "source_root": str(self.sources), "min_free": 0}
        self.settings = load(options, environment={})
        self.source: SourceSettings = self.settings.sources[0]
        archive = Archive(self.archive, 0)
        self.copier = Copier(self.settings, archive, 260, threading.Event())
        self.number = 0

    def check(self, batch: BatchScript) -> None:
        self.number += 1
        # A pub_id of its own: files that an earlier run has placed would be adopted.
        records = [
            record(
                id=id_, path=f"{self.sources}/{name}", md5sum=hashlib.md5(content).digest(), pub_id=f"p{self.number}"
            )
            for id_, (name, content) in enumerate(batch.contents.items(), 1)
        ]
        scripts = iter(batch.scripts)
        with (
            mock.patch(
                "cdc_archiver.transfer.copier.RsyncRun", lambda *given: FakeRun(next(scripts, RsyncScript()), *given)
            ),
            mock.patch("cdc_archiver.transfer.rsync._RENAME_CHECKS", 1),
            mock.patch.object(self.copier, "_pause"),
            mock.patch("os.fsync"),
            mock.patch("cdc_archiver.transfer.disk_sync._syncfs"),
        ):
            outcomes = list(self.copier.archive(self.source, Batch("local", batch.lane, "small-0", tuple(records))))
        assert Counter(outcome.record.id for outcome in outcomes) == Counter(each.id for each in records)
        for outcome in outcomes:
            if isinstance(outcome, Archived):
                placed = Path(outcome.path)
                assert placed.is_relative_to(self.archive)
                assert hashlib.md5(placed.read_bytes()).digest() == outcome.record.md5sum, (
                    "archived with the wrong content"
                )


class FakeRun:
    """Replaces :class:`cdc_archiver.transfer.rsync.RsyncRun`."""

    cancelled = False

    def __init__(
        self, script: RsyncScript, _command: object, entries: Sequence[bytes], staging: Path, *_: object
    ) -> None:
        self._script = script
        self._staging = staging
        self._entries = entries
        self.status = script.status
        self.stderr = script.stderr
        self.stalled = script.stalled

    def lines(self) -> Iterator[list[rsync_output.OutputLine]]:
        for name, content in self._script.files.items():
            if name in self._entries:  # rsync itself refuses entries that were not wanted
                (self._staging / os.fsdecode(name)).write_bytes(content)
        for group in self._script.groups:
            if lines := [line for text in group if (line := rsync_output.parse_line(text)) is not None]:
                yield lines
