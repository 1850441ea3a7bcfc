"""Timecodes as readers and operators see them: complete, told by a marker, re-opened, blocked, late."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from private_site import PrivateSite
from side_tables_of_site import NEW, OLD, QUICK, during, wait_state
from structlog.testing import capture_logs
from waiting import eventually


def markers(site: PrivateSite) -> list[Path]:
    """All files in directories of markers, whatever their names."""
    return sorted(path for path in site.data_dir.glob("*/suprsync/**/*") if path.is_file())


def test_a_timecode_is_told_once_for_each_content(either_stage: PrivateSite) -> None:
    site = either_stage
    # Given a service at an archive with a file of before,
    with (
        capture_logs() as logs,
        site.service(**QUICK, finalize_as=("crate-1",)) as service,
    ):
        site.wait_archived(*site.register(site.file("before.npy")))
        assert wait_state(site, OLD, "complete", 1)["told_by"] == "before"
        # when a file of another timecode is registered and archived,
        first = site.file("first.npy", size=1234)
        (id_,) = site.register(first, timestamp=during(NEW, 5))
        site.wait_archived(id_)
        # then that timecode becomes complete, and readers are told by a marker in suprsync's form.
        told = wait_state(site, NEW, "complete", 1)
        (marker,) = markers(site)
        assert (told["files"], told["bytes"], told["late"]) == (1, 1234, 0)
        now = int(marker.name.split("_")[0])
        assert marker == site.data_dir / str(now)[:5] / "suprsync" / "crate-1" / f"{now}_smurf_{NEW}_finalized.yaml"
        assert (str(marker), marker.read_text()) == (told["marker_path"], told["marker_bytes"])
        content = yaml.safe_load(marker.read_text())
        assert content.pop("finalized_at") == pytest.approx(now, abs=1)
        assert content.pop("finalized_until") == pytest.approx(now, abs=60)
        assert content == {
            "timecode": NEW,
            "num_files": 1,
            "subdirs": ["crate1slot2"],
            "archive_name": "smurf",
            "instance_id": "crate-1",
            "generation": 1,
            "digest": told["digest"],
        }
        # When the same file is archived once more, the timecode is re-opened and completes quietly.
        site.sql("UPDATE pysmurf_files SET copied = 0, path = %s WHERE id = %s", [str(first.path), id_])
        eventually(lambda: "timecode_reopened" in [log["event"] for log in logs], "it is re-opened")
        wait_state(site, NEW, "complete", 1)
        assert markers(site) == [marker]
        assert "late_file" not in [log["event"] for log in logs]
        # When another file comes late, then a person hears of it, and the timecode completes as another generation.
        late = site.file("late.npy")
        site.wait_archived(*site.register(late, timestamp=during(NEW, 6)))
        told = wait_state(site, NEW, "complete", 2)
        assert (told["files"], told["late"]) == (2, 1)
        assert [log["path"] for log in logs if log["event"] == "late_file"] == [
            str(site.data_dir / str(NEW) / "crate1slot2" / "1589517264_take_iv" / "outputs" / "late.npy")
        ]
        service.wait_metric(1, "late_files_total")
        assert len(markers(site)) == 2
        assert yaml.safe_load(Path(told["marker_path"]).read_text())["generation"] == 2
