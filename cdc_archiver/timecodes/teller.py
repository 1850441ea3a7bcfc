"""Tells readers that a timecode is complete: plans its markers, and makes them."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Final

import structlog

from cdc_archiver.database.timecodes_table import BEFORE, StoredTimecode, TimecodeState
from cdc_archiver.settings import Settings, SourceSettings
from cdc_archiver.timecodes import markers
from cdc_archiver.transfer.disk_errors import os_errors_as_unavailable
from cdc_archiver.transfer.placement import Placed, Placer, Staged
from cdc_archiver.transfer.staging import Archive

MARKER: Final = "marker"
STATUS: Final = "status"
NO_STREAM: Final = "no_stream"
_STAGING: Final = "timecode-markers"
"""Its directory in the place for staging."""

_log = structlog.get_logger(__name__)


class Teller:
    """For one thread, which holds the lock of the sources that it speaks for."""

    def __init__(self, archive: Archive, settings: Settings) -> None:
        self._archive = archive
        self._modes = settings.modes
        self._cleared: set[str] = set()
        self._from = settings.finalize_from
        self._lists: dict[str, dict[int, list[Path]]] = {}

    def begin_look(self) -> None:
        """Another look begins: other programs may have made markers since."""
        self._lists.clear()

    def _listed(self, source: SourceSettings) -> dict[int, list[Path]]:
        if source.name not in self._lists:
            self._archive.require_ready()
            with os_errors_as_unavailable():
                names = set(source.speakers.values())
                self._lists[source.name] = markers.list_markers(self._archive.data_dir, names)
        return self._lists[source.name]

    def has_to_tell(self, source: SourceSettings, entry: StoredTimecode) -> bool:
        """Whether a complete timecode is still to be told by a marker."""
        if entry.state is not TimecodeState.COMPLETE or not source.finalize_as:
            return False
        if entry.told_by in (BEFORE, STATUS):
            return self._from is not None and entry.timecode >= self._from
        return entry.told_by in ("", NO_STREAM)

    def plan(
        self,
        source: SourceSettings,
        entry: StoredTimecode,
        streams: Sequence[str],
        until: datetime,
        now: datetime,
    ) -> StoredTimecode:
        """A timecode of a new generation, with the way in which it is told.

        Args:
            streams: of the source.
            until: the watermark of the source.
            now: this machine's clock.

        Raises:
            DestinationUnavailable: the archive cannot be read.
        """
        if entry.told_by == BEFORE:
            return entry
        if not source.finalize_as:
            return replace(entry, told_by=STATUS)
        if not streams:
            return replace(entry, told_by=NO_STREAM)
        speakers = source.speakers
        telling = markers.plan_telling(
            self._archive.data_dir,
            speakers,
            entry.timecode,
            streams,
            entry.files,
            entry.digest.hex() if entry.digest else "",
            entry.generation,
            markers.read_markers(self._listed(source).get(entry.timecode, ())),
            now,
            until,
        )
        return replace(
            entry,
            generation=telling.generation,
            marker_path=telling.path,
            marker_bytes=telling.text,
            told_by=MARKER if telling.adopted else "",
        )

    def told_on_disk(
        self,
        source: SourceSettings,
        entries: Sequence[StoredTimecode],
        streams: Callable[[int], Sequence[str]],
    ) -> list[StoredTimecode]:
        """Timecodes that are entered anew, with what readers were told by markers on disk.

        Args:
            streams: of the source, by timecode: a marker that lacks one tells nothing.

        Raises:
            DestinationUnavailable: the archive cannot be read.
        """
        if not source.finalize_as:
            return list(entries)
        told = []
        for entry in entries:
            on_disk = markers.read_markers(self._listed(source).get(entry.timecode, ()))
            wanted = set(streams(entry.timecode)) if on_disk else set()
            valid = [marker for marker in on_disk if marker.streams and marker.streams >= wanted]
            newest = max(valid, key=lambda marker: (marker.generation, marker.digest), default=None)
            told.append(_told(entry, newest) if newest else entry)
        return told

    def make(self, entry: StoredTimecode) -> StoredTimecode:
        """Makes the markers of a timecode; exactly those that its row has.

        Returns:
            The timecode as told; or, where another file has a marker's name, with the name of the next second.

        Raises:
            DestinationUnavailable: the disk cannot be written to.
        """
        for path, text in markers.marker_files(entry.marker_path, entry.marker_bytes):
            if not self._place(path, text, entry.timecode):
                return replace(entry, marker_path=markers.with_path(entry.marker_path, path, markers.next_second(path)))
            _log.info("timecode_marker", timecode=entry.timecode, generation=entry.generation, path=path)
        return replace(entry, told_by=MARKER)

    def _place(self, path: str, text: str, timecode: int) -> bool:
        """Places a marker whole; returns whether it is there now, and no other file."""
        content, speaker = text.encode(), path.rsplit("/", 2)[1]
        self._archive.require_ready()
        with os_errors_as_unavailable():
            try:
                with open(path, "rb") as there:
                    return there.read() == content
            except FileNotFoundError:
                pass
            # Another service may stage a marker of the same name, of another INSTANCE-ID, in the same place.
            descriptor, staged = tempfile.mkstemp(dir=self._archive.staging_directory(_STAGING, "new"))
            with open(descriptor, "wb") as file:
                file.write(content)
            os.chmod(staged, self._modes.files)
        placer = Placer(self._archive, self._modes, owner=f"marker-{speaker}")
        if speaker not in self._cleared:
            self._cleared.add(speaker)
            placer.clear_copies()
        md5 = hashlib.md5(content, usedforsecurity=False).digest()
        stream = markers.first_stream(text)
        try:
            (placed,) = placer.place([Staged(staged, path, md5, id=timecode, stream=stream)])
        finally:
            with suppress(FileNotFoundError):
                os.unlink(staged)
        if not isinstance(placed, Placed):
            raise placed
        if placed.path != path:  # another program was faster
            os.unlink(placed.path)
            return False
        return True


def _told(entry: StoredTimecode, marker: markers.FoundMarker) -> StoredTimecode:
    """A timecode that readers were told of by a marker."""
    return replace(
        entry,
        generation=marker.generation,
        marker_path=marker.path,
        marker_bytes=marker.text,
        digest=bytes.fromhex(marker.digest) if re.fullmatch("[0-9a-f]{64}", marker.digest) else None,
        told_by=MARKER,
        completed_at=entry.completed_at or entry.changed_at,
    )
