"""A whole run: the copier with everything but rsync itself."""

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
from cdc_archiver.transfer import rsync_output as report
from cdc_archiver.transfer.copier import Copier
from cdc_archiver.transfer.staging import Archive
from fuzz.corpus import LINES, SSH_LINES, STATUSES, some_bytes, words_of


@dataclass
class Act:
    """What an rsync of ours says and does, once.

    Attributes:
        files: what lies in staging when a line is printed, by entry.
    """

    files: dict[bytes, bytes] = field(default_factory=dict)
    groups: list[list[bytes]] = field(default_factory=list)
    status: int = 0
    stderr: str = ""
    stalled: bool = False


@dataclass
class Play:
    """A batch, and the rsyncs that are run for it; after the last they say nothing."""

    lane: Lane
    contents: dict[str, bytes]
    acts: list[Act]


NAMES: Final = ("a.npy", "b c.npy", "c.npy", "d.npy")


def make_play(rng: random.Random) -> Play:
    contents = {name: name.encode() * 3 for name in rng.sample(NAMES, rng.randrange(1, 5))}
    acts = [make_act(rng, contents) for _ in range(rng.randrange(1, 4))]
    return Play(rng.choice(list(Lane)), contents, acts)


def make_act(rng: random.Random, contents: dict[str, bytes]) -> Act:
    act = Act(status=rng.choice(STATUSES), stderr=words_of(rng, LINES, SSH_LINES), stalled=rng.random() < 0.05)
    group: list[bytes] = []
    for _ in range(rng.randrange(6)):
        name = rng.choice(NAMES)
        right = contents.get(name, b"")
        brought = rng.choice((right, right, right, right + b"!", b"", b"\0" * 100))
        printed = rng.choice((brought, brought, right, b"?"))
        digest = rng.choice((hashlib.md5(printed).hexdigest().encode(),) * 3 + (b"0" * 32,))
        if rng.random() < 0.9:
            act.files[name.encode()] = brought
        line = b"|".join((digest, str(len(brought)).encode(), name.encode()))
        group.append(rng.choice((line, line, line, some_bytes(rng))))
        if rng.random() < 0.5:
            act.groups.append(group)
            group = []
    act.groups.append(group)
    return act


class Stand:
    """A copier on a directory of its own, made once."""

    def __init__(self, directory: Path) -> None:
        self.sources = directory / "readout"
        self.archive = directory / "archive"
        for made in (self.sources, self.archive):
            made.mkdir()
        (self.sources / "there.npy").write_bytes(b"so that the disk is there")
        options = {"target": ("m",), "data_dir": self.archive, "source_root": str(self.sources), "min_free": 0}
        self.settings = load(options, environment={})
        self.source: SourceSettings = self.settings.sources[0]
        keeper = Archive(self.archive, self.settings.modes, 0)
        self.copier = Copier(self.settings, keeper, 260, threading.Event())
        self.number = 0

    def check(self, play: Play) -> None:
        self.number += 1
        # Names of its own: what an earlier run has placed is adopted, and that is another story.
        records = [
            record(
                id=id_, path=f"{self.sources}/{name}", md5sum=hashlib.md5(content).digest(), pub_id=f"p{self.number}"
            )
            for id_, (name, content) in enumerate(play.contents.items(), 1)
        ]
        acts = iter(play.acts)
        with (
            mock.patch("cdc_archiver.transfer.copier.RsyncRun", lambda *given: FakeRun(next(acts, Act()), *given)),
            mock.patch("cdc_archiver.transfer.copier._LOOKS", 1),
            mock.patch.object(self.copier, "_pause"),
            mock.patch("os.fsync"),
            mock.patch("cdc_archiver.transfer.durable._syncfs"),
        ):
            outcomes = list(self.copier.archive(self.source, Batch("local", play.lane, "small-0", tuple(records))))
        assert Counter(outcome.record.id for outcome in outcomes) == Counter(each.id for each in records)
        for outcome in outcomes:
            if isinstance(outcome, Archived):
                placed = Path(outcome.path)
                assert placed.is_relative_to(self.archive)
                assert hashlib.md5(placed.read_bytes()).digest() == outcome.record.md5sum, "archived, and wrong"


class FakeRun:
    """In the place of :class:`cdc_archiver.transfer.rsync.RsyncRun`."""

    cancelled = False

    def __init__(self, act: Act, _command: object, entries: Sequence[bytes], staging: Path, *_: object) -> None:
        self._act = act
        self._staging = staging
        self._entries = entries
        self.status = act.status
        self.stderr = act.stderr
        self.stalled = act.stalled

    def lines(self) -> Iterator[list[report.Line]]:
        for name, content in self._act.files.items():
            if name in self._entries:  # rsync itself refuses what was not asked for
                (self._staging / os.fsdecode(name)).write_bytes(content)
        for group in self._act.groups:
            if lines := [line for text in group if (line := report.read_line(text)) is not None]:
                yield lines
