"""The archive's reader, sotodlib, reads with its own functions what the real service has just archived."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from directory_watch import DirectoryWatch
from neighbour_environment import neighbour_python
from private_site import PrivateSite, new_private_site
from side_tables_of_site import NEW, OLD, QUICK, during, make_side_tables, wait_state

from cdc_archiver.sandbox import DatabaseServer, SshServer

HERE = Path(__file__).parent
STREAM = "crate1slot2"
ASSIGNMENT = "1580000100_channel_assignment_b4.txt"
TUNE = "1580000200_tune.npy"
_MAKE_TUNE = """
import sys, numpy
numpy.save(sys.argv[1], {4: {"resonances": {}, "channel_assignment": sys.argv[2]}}, allow_pickle=True)
"""

pytestmark = pytest.mark.timeout(1200)
"""The first run installs sotodlib."""


@pytest.fixture(scope="session")
def python() -> Path:
    """The interpreter that has sotodlib."""
    return neighbour_python(HERE / "sotodlib.txt")


@pytest.fixture
def stage(mariadb: DatabaseServer, ssh_server: SshServer, tmp_path: Path) -> Iterator[PrivateSite]:
    with new_private_site(mariadb, ssh_server, tmp_path) as made:
        make_side_tables(made)
        yield made


def read(python: Path, stage: PrivateSite) -> dict[str, Any]:
    """What sotodlib finds in the archive."""
    script = HERE / "read_with_sotodlib.py"
    done = subprocess.run(
        [python, script, stage.data_dir, stage.directory], check=False, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("place", ["next to data_dir", "in the state directory"])
def test_sotodlib_reads_actions_files_metadata_and_the_end_of_timecodes(
    python: Path, stage: PrivateSite, place: str
) -> None:
    # Given an instrument's tuning: a channel assignment, a tune that names it, plots; and an earlier observation,
    tune = stage.directory / "made.npy"
    subprocess.run([python, "-c", _MAKE_TUNE, tune, f"/data/{ASSIGNMENT}"], check=True)
    assignment = stage.file(ASSIGNMENT, b"5000.1,3,100,0\n5001.2,4,101,1\n5002.3,5,-1,-1\n")
    tuned = stage.file(TUNE, tune.read_bytes())
    plot, earlier = stage.file("1580000200_tune.png"), stage.file("earlier.npy")
    stage.register(earlier, timestamp=during(OLD), action="take_iv", action_timestamp=OLD * 100_000)
    # and another stream's marker, by suprsync,
    now = str(int(time.time()))[:5]
    theirs = stage.data_dir / now / "suprsync/timestreams-daq"
    theirs.mkdir(parents=True)
    (theirs / f"{int(time.time())}_timestreams_{NEW}_finalized.yaml").write_text(
        f"timecode: {NEW}\nnum_files: 1\nsubdirs: [crate9slot9]\nfinalized_at: 1.0\nfinalized_until: 1.0\n"
        "archive_name: timestreams\ninstance_id: timestreams-daq\n"
    )
    # when the service archives them and tells that the timecode is complete,
    options: dict[str, Any] = {**QUICK, "finalize_as": ("smurf-daq", "timestreams=smurf-daq")}
    if place == "in the state directory":
        (stage.directory / ".archive.cdc_archiver").write_text("a file is in the way")
        options["state_dir"] = stage.directory / "state"
    watch = DirectoryWatch(stage.data_dir)
    with stage.program(**options) as service:
        service.wait_metric(1, "copies_total", result="archived")
        wait_state(stage, OLD, "complete", 1)
        for file, columns in (
            (assignment, {"action": "setup_notches", "plot": 0}),
            (tuned, {"action": "setup_notches", "plot": 0}),
            (plot, {"action": "setup_notches", "plot": 1}),
        ):
            stage.register(file, timestamp=during(NEW, 300), action_timestamp=NEW * 100_000 + 300, **columns)
        told = wait_state(stage, NEW, "complete", 1)
    assert told["files"] == 3
    assert (stage.directory / "state").exists() == (place == "in the state directory")
    # then no other name has been in data_dir than five digits, not for a moment,
    assert {name for name in watch.names() if not re.fullmatch("[0-9]{5}", name)} == set()
    watch.close()
    # and sotodlib reads all of it.
    found = read(python, stage)
    assert found["actions"] == [
        ["setup_notches", STREAM, NEW * 100_000 + 300],
        ["take_iv", STREAM, OLD * 100_000],
    ]
    outputs = stage.data_dir / str(NEW) / STREAM / f"{NEW * 100_000 + 300}_setup_notches/outputs"
    assert found["files"] == sorted(
        [
            ["channel_assignment_b4.txt", STREAM, str(outputs / ASSIGNMENT)],
            ["tune.npy", STREAM, str(outputs / TUNE)],
            ["", STREAM, str(stage.data_dir / str(OLD) / STREAM / f"{OLD * 100_000}_take_iv/outputs/earlier.npy")],
        ]
    )
    assert found["channels"] == {ASSIGNMENT: [100, 101]}
    assert found["tunes"] == [f"{STREAM}_{TUNE.removesuffix('.npy')}"]
    assert found["tune_assignments"] == [[ASSIGNMENT]]
    assert found["data_files"] == 0, "data files are suprsync's"
    assert sorted((agent, stream, timecode) for timecode, stream, _, agent in found["timecodes"]) == [
        ("smurf-daq", STREAM, NEW),
        ("smurf-daq", STREAM, NEW),
        ("timestreams-daq", "crate9slot9", NEW),
    ]
