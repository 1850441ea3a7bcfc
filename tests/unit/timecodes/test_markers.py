"""Timecode markers: their form, which of those on disk are adopted, and what is told anew."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from cdc_archiver.timecodes.markers import (
    FoundMarker,
    Telling,
    list_markers,
    next_second,
    plan_telling,
    read_markers,
    read_simple_yaml,
    with_path,
)

NOW = datetime(2026, 12, 1, 1, 0, 0, 250_000, tzinfo=UTC)
STAMP = int(NOW.timestamp())
DIGEST = "ab" * 32
OF_SUPRSYNC = """archive_name: smurf
finalized_at: 1764550000.5
finalized_until: 1764549999.25
instance_id: sync-1
num_files: 7
subdirs:
- crate1slot2
- 'crate1slot3'
timecode: 17645
"""
"""As yaml.dump writes it, without the two keys of ours."""


def plan(*on_disk: FoundMarker, generation: int = 1, speakers: dict[str, str] | None = None) -> Telling:
    return plan_telling(
        Path("/data/pysmurf"),
        speakers or {"smurf": "sync-1"},
        17645,
        ["crate1slot3", "crate1slot2"],
        7,
        DIGEST,
        generation,
        on_disk,
        NOW,
        NOW,
    )


def found(
    generation: int, digest: str, streams: str = "crate1slot2 crate1slot3", archive: str = "smurf"
) -> FoundMarker:
    path = f"/data/pysmurf/17646/suprsync/sync-1/{generation}_{archive}_17645_finalized.yaml"
    return FoundMarker(path, archive, 17645, frozenset(streams.split()), generation, digest, f"{generation}\n")


def test_a_marker_is_yaml_as_suprsync_writes_it() -> None:
    told = plan()
    assert told.path == f"/data/pysmurf/{STAMP // 100_000}/suprsync/sync-1/{STAMP}_smurf_17645_finalized.yaml"
    values = yaml.safe_load(told.text)
    assert values == {
        "archive_name": "smurf",
        "digest": DIGEST,
        "finalized_at": NOW.timestamp(),
        "finalized_until": NOW.timestamp(),
        "generation": 1,
        "instance_id": "sync-1",
        "num_files": 7,
        "subdirs": ["crate1slot2", "crate1slot3"],
        "timecode": 17645,
    }
    assert list(values) == sorted(values)


@pytest.mark.parametrize(
    ("on_disk", "generation", "told"),
    [
        pytest.param([found(1, DIGEST)], 1, (1, True), id="ours, of before a crash"),
        pytest.param([found(1, "")], 1, (1, True), id="suprsync's, for the first generation"),
        pytest.param([found(1, "")], 2, (2, False), id="suprsync's is not the second"),
        pytest.param([found(1, "cd" * 32)], 1, (2, False), id="another content was told: a restored table"),
        pytest.param([found(1, "cd" * 32), found(3, DIGEST)], 1, (3, True), id="the newest counts"),
        pytest.param([found(1, DIGEST, "crate1slot2")], 1, (1, False), id="it lacks a stream"),
        pytest.param([found(1, DIGEST, archive="timestreams")], 1, (1, False), id="of another archive"),
    ],
)
def test_what_is_on_disk_is_adopted(on_disk: list[FoundMarker], generation: int, told: tuple[int, bool]) -> None:
    telling = plan(*on_disk, generation=generation)
    assert (telling.generation, telling.adopted) == told
    if telling.adopted:
        assert telling.path in [each.path for each in on_disk]
    else:
        assert yaml.safe_load(telling.text)["generation"] == telling.generation


def test_two_archives_are_told_in_two_files() -> None:
    telling = plan(found(1, DIGEST), speakers={"smurf": "sync-1", "timestreams": "sync-t"})
    (adopted, text), (new, document) = telling.files
    assert (adopted, text, telling.adopted) == (found(1, DIGEST).path, "1\n", False)
    assert new.endswith(f"/suprsync/sync-t/{STAMP}_timestreams_17645_finalized.yaml")
    assert yaml.safe_load(document)["instance_id"] == "sync-t"
    assert with_path(telling.path, new, next_second(new)).splitlines() == [adopted, next_second(new)]


def test_the_next_second_may_be_in_the_next_directory() -> None:
    assert (
        next_second("/a/17645/suprsync/s/1764599999_smurf_17640_finalized.yaml")
        == "/a/17646/suprsync/s/1764600000_smurf_17640_finalized.yaml"
    )


def test_markers_are_found_and_read(tmp_path: Path) -> None:
    below = tmp_path / "17646" / "suprsync" / "sync-1"
    below.mkdir(parents=True)
    (below / "1764600000_smurf_17645_finalized.yaml").write_text(OF_SUPRSYNC)
    (below / "1764600001_smurf_17645_finalized.yaml").write_text(plan().text)
    (below / "1764600002_smurf_17645_finalized.yaml").write_text("generation: x\n")
    (below / "notes.txt").write_text("not a marker")
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "17647").mkdir()
    listed = list_markers(tmp_path, {"sync-1", "another"})
    assert list(listed) == [17645]
    theirs, ours = read_markers(listed[17645])
    streams = frozenset({"crate1slot2", "crate1slot3"})
    assert (theirs.timecode, theirs.streams, theirs.generation, theirs.digest) == (17645, streams, 1, "")
    assert (ours.timecode, ours.streams, ours.generation, ours.digest) == (17645, streams, 1, DIGEST)


def test_lists_in_either_notation() -> None:
    assert read_simple_yaml('a: [x, "y"]\nb:\n  - z\nc: "q"\n') == {"a": ["x", "y"], "b": ["z"], "c": "q"}
