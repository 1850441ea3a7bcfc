"""Timecode markers, in suprsync's form: what readers of the archive take for the end of a timecode.

Readers take every file in a marker's directory for a marker, and stop at one that they cannot read. They hear the first marker of a
timecode for each stream, and no second one: so a marker is placed whole, and those on disk are looked at before another is made.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cdc_archiver.timecodes.decision import at_time

_NAME: Final = re.compile(r"[0-9]+_(?P<archive>[a-z]+)_(?P<timecode>[0-9]{5})_finalized\.yaml")
_BETWEEN: Final = "---\n"
"""Between the documents of two archives."""


@dataclass(frozen=True, slots=True)
class FoundMarker:
    """A marker on disk.

    Attributes:
        path: absolute.
        generation: 1 where the marker does not say.
        digest: hexadecimal; empty where the marker does not say.
    """

    path: str
    archive: str
    timecode: int
    streams: frozenset[str]
    generation: int
    digest: str
    text: str


@dataclass(frozen=True, slots=True)
class Telling:
    """How a generation is told.

    Attributes:
        generation: that the marker names, or that this one becomes.
        path: of the marker, absolute; of each archive one, in a line of its own.
        text: its exact content; of each archive a document.
        adopted: the markers are on disk already.
    """

    generation: int
    path: str
    text: str
    adopted: bool

    @property
    def files(self) -> tuple[tuple[str, str], ...]:
        """Path and content of each marker."""
        return marker_files(self.path, self.text)


def marker_files(path: str, text: str) -> tuple[tuple[str, str], ...]:
    """Path and content of each marker of a stored row."""
    paths = path.splitlines()
    return tuple(zip(paths, text.split(_BETWEEN) if len(paths) > 1 else [text], strict=True))


def with_path(path: str, old: str, new: str) -> str:
    """The stored paths with one of them replaced."""
    return "\n".join(new if each == old else each for each in path.splitlines())


def plan_telling(
    data_dir: Path,
    speakers: Mapping[str, str],
    timecode: int,
    streams: Sequence[str],
    files: int,
    digest: str,
    generation: int,
    on_disk: Sequence[FoundMarker],
    now: datetime,
    until: datetime,
) -> Telling:
    """How a timecode that becomes complete is told: by the markers that are on disk for it, or by new ones.

    Args:
        speakers: INSTANCE-ID by archive.
        streams: all of them are named.
        files: of the timecode.
        digest: of its files, hexadecimal.
        generation: by the side table.
        on_disk: markers of this timecode.
        until: the watermark of the source.
    """
    adopted: list[FoundMarker] = []
    for archive in speakers:
        of_archive = [each for each in on_disk if each.archive == archive and each.streams >= set(streams)]
        newest = max(of_archive, key=lambda each: each.generation, default=None)
        if newest is None:
            continue
        # One without a digest stands for the first generation, whatever that was.
        if newest.digest == digest or (not newest.digest and newest.generation >= generation):
            adopted.append(newest)
            generation = max(generation, newest.generation)
        else:
            generation = max(generation, newest.generation + 1)
    if speakers and len(adopted) == len(speakers):
        return Telling(
            generation, "\n".join(each.path for each in adopted), _BETWEEN.join(each.text for each in adopted), True
        )
    paths, texts = [], []
    for archive, name in speakers.items():
        known = next((each for each in adopted if each.archive == archive), None)
        paths.append(known.path if known else marker_path(data_dir, archive, name, timecode, now))
        texts.append(
            known.text
            if known
            else marker_text(archive, name, timecode, streams, files, digest, generation, now, until)
        )
    return Telling(generation, "\n".join(paths), _BETWEEN.join(texts), False)


def marker_path(data_dir: Path, archive: str, name: str, timecode: int, now: datetime) -> str:
    """The path of a new marker, absolute."""
    return f"{data_dir}/{at_time(now)}/suprsync/{name}/{int(now.timestamp())}_{archive}_{timecode}_finalized.yaml"


def next_second(path: str) -> str:
    """The path of a marker a second later: another file has this one's."""
    data_dir, _, _, speaker, name = path.rsplit("/", 4)
    stamp, _, rest = name.partition("_")
    later = datetime.fromtimestamp(int(stamp) + 1, UTC)
    return f"{data_dir}/{at_time(later)}/suprsync/{speaker}/{int(later.timestamp())}_{rest}"


def marker_text(
    archive: str,
    name: str,
    timecode: int,
    streams: Sequence[str],
    files: int,
    digest: str,
    generation: int,
    now: datetime,
    until: datetime,
) -> str:
    """The content of a marker: YAML with sorted keys, as suprsync writes it."""
    values = {
        "archive_name": json.dumps(archive),
        "digest": json.dumps(digest),
        "finalized_at": f"{now.timestamp():.3f}",
        "finalized_until": f"{until.timestamp():.3f}",
        "generation": str(generation),
        "instance_id": json.dumps(name),
        "num_files": str(files),
        "subdirs": "".join(f"\n- {json.dumps(stream)}" for stream in sorted(streams)),
        "timecode": str(timecode),
    }
    return "".join(f"{key}:{value if key == 'subdirs' else f' {value}'}\n" for key, value in values.items())


def first_stream(text: str) -> str:
    """The first stream that a marker names."""
    streams = read_simple_yaml(text).get("subdirs")
    return streams[0] if isinstance(streams, list) and streams else ""


def list_markers(data_dir: Path, names: Collection[str]) -> dict[int, list[Path]]:
    """The markers of some INSTANCE-IDs in the archive, by timecode.

    Raises:
        OSError: data_dir cannot be read.
    """
    found: dict[int, list[Path]] = {}
    for directory in sorted(os.listdir(data_dir)):
        for name in names if re.fullmatch("[0-9]{5}", directory) else ():
            below = data_dir / directory / "suprsync" / name
            try:
                entries = sorted(os.listdir(below))
            except (FileNotFoundError, NotADirectoryError):
                continue
            for entry in entries:
                if match := _NAME.fullmatch(entry):
                    found.setdefault(int(match["timecode"]), []).append(below / entry)
    return found


def read_markers(paths: Iterable[Path]) -> list[FoundMarker]:
    """Markers by their paths; those that cannot be read as such are passed over."""
    return [marker for path in paths if (match := _NAME.fullmatch(path.name)) and (marker := _read(path, match))]


def _read(path: Path, match: re.Match[str]) -> FoundMarker | None:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    values = read_simple_yaml(text)
    streams, generation, digest = values.get("subdirs", []), values.get("generation", "1"), values.get("digest", "")
    if not isinstance(streams, list) or not isinstance(generation, str) or not isinstance(digest, str):
        return None
    if not generation.isdigit():
        return None
    return FoundMarker(
        str(path), match["archive"], int(match["timecode"]), frozenset(streams), int(generation), digest, text
    )


def read_simple_yaml(text: str) -> dict[str, str | list[str]]:
    """Scalars and lists of scalars of one level: the part of YAML that markers are written in."""
    found: dict[str, str | list[str]] = {}
    key = ""
    for line in text.splitlines():
        if (item := re.fullmatch(r"\s*- (.*)", line)) and isinstance(values := found.get(key), list):
            values.append(_scalar(item[1]))
        elif match := re.fullmatch(r"(\w+):(?: (.*))?", line):
            key, value = match[1], match[2]
            if value is None:
                found[key] = []
            elif value.startswith("[") and value.endswith("]"):
                found[key] = [_scalar(part) for part in value[1:-1].split(",") if part.strip()]
            else:
                found[key] = _scalar(value)
    return found


def _scalar(text: str) -> str:
    text = text.strip()
    if len(text) >= 2 and text[0] == text[-1] == '"':
        try:
            return str(json.loads(text))
        except ValueError:
            return text[1:-1]
    return text[1:-1].replace("''", "'") if len(text) >= 2 and text[0] == text[-1] == "'" else text
