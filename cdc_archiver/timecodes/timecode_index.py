"""Where in the table of files the rows of a timecode are, as one pass over the table noted it; and their count."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from typing import Final

from cdc_archiver.database.files_table import Row
from cdc_archiver.database.timecode_rows import RowGroup
from cdc_archiver.model import IGNORED_FROM, REFUSED_FROM
from cdc_archiver.text import fold_instance_id
from cdc_archiver.timecodes.decision import TimecodeCount
from cdc_archiver.transfer.layout import below_data_dir, timecode_named, timecode_of

_RECENT: Final = 30
"""Timecodes with files whose pub_ids are the streams of a source."""


class TimecodeIndex:
    """Blocks of ids and streams, by target and timecode. Grows only: a block too many costs a look, one too few a file."""

    def __init__(self) -> None:
        self._blocks: dict[tuple[str, int], set[int]] = defaultdict(set)
        self._streams: dict[tuple[str, int], set[str]] = defaultdict(set)

    def add(self, groups: Iterable[RowGroup]) -> None:
        """Notes the groups of a page."""
        for group in groups:
            timecode = timecode_named(group.directory)
            if timecode is None:
                continue
            key = fold_instance_id(group.instance_id), timecode
            self._blocks[key].add(group.block)
            if group.copied and group.pub_id:
                self._streams[key].add(group.pub_id)

    def add_places(self, places: Iterable[tuple[tuple[str, int], int, str]]) -> None:
        """Notes rows that were archived: they may have become visible after their page was read.

        Args:
            places: folded instance_id and timecode, block, pub_id.
        """
        for key, block, pub_id in places:
            self._blocks[key].add(block)
            if pub_id:
                self._streams[key].add(pub_id)

    def timecodes(self, target: str) -> set[int]:
        """The timecodes that have rows of a target."""
        return {timecode for name, timecode in tuple(self._blocks) if name == fold_instance_id(target)}

    def blocks(self, target: str, timecode: int) -> frozenset[int]:
        """The blocks of ids in which a timecode may have rows."""
        return frozenset(self._blocks.get((fold_instance_id(target), timecode), ()))

    def streams(self, targets: Iterable[str], timecode: int) -> tuple[str, ...]:
        """The pub_ids of the last 30 timecodes that have files, up to this one; where there is none before, of the first ones."""
        names = {fold_instance_id(target) for target in targets}
        known = sorted({each for name, each in tuple(self._streams) if name in names})
        recent = [each for each in known if each <= timecode][-_RECENT:] or known[:_RECENT]
        return tuple(sorted({pub for each in recent for name in names for pub in self._streams.get((name, each), ())}))


def count_rows(rows: Iterable[Row], timecode: int) -> tuple[TimecodeCount, list[int]]:
    """Counts the rows of a timecode.

    Args:
        rows: of one target; those of other timecodes are passed over.

    Returns:
        The count, without a size; and an id for each distinct file.
    """
    lines: dict[bytes, int] = {}
    ignored = refused = undecided = 0
    for row in rows:
        record = row.record
        if timecode_of(record, record.path if row.copied else None) != timecode:
            continue
        if row.copied:
            lines[digest_line(record.path, record.md5sum)] = record.id
        elif record.attempts >= IGNORED_FROM:
            ignored += 1
        elif record.attempts >= REFUSED_FROM:
            refused += 1
        else:
            undecided += 1
    return TimecodeCount(len(lines), 0, ignored, refused, undecided, digest_of(lines)), list(lines.values())


def digest_line(path: str, md5: bytes) -> bytes:
    """The line of an archived file: its path below data_dir, tab, md5 in hexadecimal, newline."""
    return below_data_dir(path).encode("utf-8", "surrogateescape") + b"\t" + md5.hex().encode() + b"\n"


def digest_of(lines: Iterable[bytes]) -> bytes:
    """SHA-256 of lines, sorted."""
    digest = hashlib.sha256()
    for line in sorted(lines):
        digest.update(line)
    return digest.digest()
