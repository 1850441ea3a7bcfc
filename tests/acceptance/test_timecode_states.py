"""Timecodes as readers and operators see them: complete, told by a marker, re-opened, blocked, late."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from private_site import TARGET, PrivateSite, insert
from services import Service
from side_tables_of_site import NEW, OLD, QUICK, during, stored, wait_state
from structlog.testing import capture_logs
from waiting import eventually

from cdc_archiver.database import schema, side_tables
from cdc_archiver.database.registrars import retire
from cdc_archiver.errors import DestinationUnavailable
from cdc_archiver.model import Reason
from cdc_archiver.timecodes.decision import start_of
from cdc_archiver.timecodes.keeper import TimecodeKeeper
from cdc_archiver.timecodes.teller import Teller


def keeper_of(service: Service) -> TimecodeKeeper:
    """The service's keeper of timecodes."""
    assert service.archiver._pipeline is not None
    return service.archiver._pipeline.timecodes


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
        # when a file of another timecode is registered and archived, while somebody else's row of its stream is pending,
        (theirs,) = site.register(site.file("theirs.npy"), timestamp=during(NEW), instance_id="another-monitor")
        first = site.file("first.npy", size=1234)
        (id_,) = site.register(first, timestamp=during(NEW, 5))
        site.wait_archived(id_)
        # then that timecode waits for the other row;
        assert wait_state(site, NEW, "blocked", 0)["reasons"] == '{"other_rows_of_stream": 1}'
        site.sql("UPDATE pysmurf_files SET failed_copy_attempts = 2000 WHERE id = %s", [theirs])
        # then it becomes complete, and readers are told by a marker in suprsync's form.
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
        # When another file comes late, while somebody has the timecode's row locked, then the file does not wait for that;
        late = site.file("late.npy")
        with contextlib.closing(site.connect(autocommit=False)) as other, other.cursor() as cursor:
            cursor.execute("SELECT * FROM cdc_archiver_timecodes WHERE timecode = %s FOR UPDATE", [NEW])
            site.wait_archived(*site.register(late, timestamp=during(NEW, 6)))
        assert "timecode_not_reopened" in [log["event"] for log in logs]
        # a person hears of it, and the timecode completes as another generation.
        told = wait_state(site, NEW, "complete", 2)
        assert (told["files"], told["late"]) == (2, 1)
        assert [log["path"] for log in logs if log["event"] == "late_file"] == [
            str(site.data_dir / str(NEW) / "crate1slot2" / "1589517264_take_iv" / "outputs" / "late.npy")
        ]
        service.wait_metric(1, "late_files_total")
        assert len(markers(site)) == 2
        assert yaml.safe_load(Path(told["marker_path"]).read_text())["generation"] == 2


def test_what_is_undecided_blocks_its_timecode_and_no_other(
    stage: PrivateSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = stage
    # Given a machine whose clock is ten minutes ahead of the database's from some time on,
    ahead = [timedelta(0)]
    defaults = TimecodeKeeper.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "clock", lambda: datetime.now(UTC) + ahead[0])
    with capture_logs() as logs, site.service(**QUICK) as service:
        keeper = keeper_of(service)
        site.wait_archived(*site.register(site.file("before.npy")))
        wait_state(site, OLD, "complete", 1)
        ahead[0] = timedelta(minutes=10)
        # when one timecode has a file that is lost, and another one is all right,
        lost = site.file("lost.npy")
        lost.path.unlink()
        (id_,) = site.register(lost, timestamp=during(NEW), failed_copy_attempts=5)
        site.wait_archived(*site.register(site.file("other.npy"), timestamp=during(NEW + 1)))
        # then the first is blocked, and nothing is made complete.
        assert wait_state(site, NEW, "blocked", 0)["reasons"] == '{"quarantined": 1}'
        eventually(lambda: stored(site, NEW + 1)["state"] == "open", "the other one is open")
        assert "10 min apart" in keeper.not_completing_because
        assert [log["event"] for log in logs].count("clocks_differ") == 1
        # When the clock is right, then the other one is complete, with nobody to tell;
        ahead[0] = timedelta(0)
        assert wait_state(site, NEW + 1, "complete", 1)["told_by"] == "status"
        assert keeper.not_completing_because == ""
        # and when the file is there and retried, the first one is, too.
        oldest = {mark.source: mark for mark in keeper.watermarks()}["127.0.0.1"]
        assert (oldest.oldest_id, oldest.bound_by, oldest.oldest_path) == (id_, "row", str(lost.path))
        assert oldest.finalized_until == start_of(NEW) - timedelta(seconds=1)
        lost.path.write_bytes(lost.content)
        assert site.command("retry", "--all-quarantined", "--yes").returncode == 0
        wait_state(site, NEW, "complete", 1)
        eventually(lambda: keeper.watermarks()[0].bound_by == "sweep", "nothing is undecided")
        # When a registrar is silent, its timecode is blocked until somebody retires it, and then stays open while it is held.
        site.sql(schema.table_statement(side_tables.REGISTRARS))
        site.sql("INSERT INTO cdc_archiver_registrars (instance_id, registrar_id) VALUES (%s, 'r')", [TARGET])
        site.wait_archived(*site.register(site.file("third.npy"), timestamp=during(NEW + 2)))
        assert wait_state(site, NEW + 2, "blocked", 0)["reasons"] == '{"registrar_silent": 1}'
        assert site.command("hold", "--timecode", str(NEW + 2), "--reason", "to look at it").returncode == 0
        eventually(
            lambda: [status.timecode for status in keeper.statuses() if status.held] == [NEW + 2], "the hold is known"
        )
        with keeper._database.connect() as connection:
            assert retire(connection, "r", "by test: it is gone") == 1
        wait_state(site, NEW + 2, "open", 0)
        eventually(lambda: keeper.watermarks()[0].bound_by == "hold", "the hold bounds what is known")
        assert site.command("unhold", "--timecode", str(NEW + 2), "--reason", "looked at").returncode == 0
        wait_state(site, NEW + 2, "complete", 1)
        statuses = {status.timecode: status for status in keeper.statuses()}
        assert (statuses[NEW].state.value, statuses[NEW].files, statuses[NEW].source) == ("complete", 1, "127.0.0.1")
        assert "late_file" not in [log["event"] for log in logs]


def test_rows_come_in_any_order_to_a_polling_service(stage: PrivateSite) -> None:
    site = stage
    site.server.execute(f"REVOKE REPLICATION SLAVE, REPLICATION CLIENT ON *.* FROM '{site.user}'@'%'")
    # Given a service without a stream, and a transaction with a row that is not committed,
    with capture_logs() as logs, site.service(**QUICK, until="polling"), contextlib.closing(site.connect()) as slow:
        site.wait_archived(*site.register(site.file("before.npy"), id=5000))
        wait_state(site, OLD, "complete", 1)
        with slow.cursor() as cursor:
            cursor.execute("BEGIN")
            lower = insert(cursor, [site.values(site.file("lower.npy"), timestamp=during(NEW))])
        # when rows with old ids and timestamps are inserted in bulk,
        bulk = site.files(30, prefix="bulk")
        with contextlib.closing(site.connect()) as quick, quick.cursor() as cursor:
            insert(cursor, [site.values(f, timestamp=during(NEW, n), id=n + 10) for n, f in enumerate(bulk)])
        # then their timecode is complete with all of them;
        assert wait_state(site, NEW, "complete", 1)["files"] == 30
        # and the row that becomes visible after that is a late file.
        slow.commit()
        site.wait_archived(lower)
        told = wait_state(site, NEW, "complete", 2)
        assert (told["files"], told["late"]) == (31, 1)
        assert [log["id"] for log in logs if log["event"] == "late_file"] == [lower]


def test_no_crash_and_no_lost_table_makes_a_second_marker(stage: PrivateSite, monkeypatch: pytest.MonkeyPatch) -> None:
    site = stage
    # Given a service that dies after a timecode became complete and before its marker was made,
    with monkeypatch.context() as patched, site.service(**QUICK, finalize_as=("crate-1", "timestreams=crate-t")):

        def dies(*_: object) -> None:
            raise DestinationUnavailable(Reason.DESTINATION_MISSING, "it died")

        patched.setattr(Teller, "make", dies)
        site.wait_archived(*site.register(site.file("before.npy")))
        wait_state(site, OLD, "complete", 1)
        site.wait_archived(*site.register(site.file("first.npy"), timestamp=during(NEW)))
        eventually(lambda: stored(site, NEW)["state"] == "complete", "it is complete")
    planned = stored(site, NEW)
    assert (planned["told_by"], markers(site)) == (None, [])
    # and another program has taken the name of one marker.
    smurf, timestreams = map(Path, planned["marker_path"].splitlines())
    smurf.parent.mkdir(parents=True)
    smurf.write_text("timecode: 1\n")
    # When the next service takes over, then it makes exactly these markers, the one in the next second.
    with site.service(**QUICK, finalize_as=("crate-1", "timestreams=crate-t")):
        told = wait_state(site, NEW, "complete", 1)
    moved, same = map(Path, told["marker_path"].splitlines())
    assert (same, moved.parent) == (timestreams, smurf.parent)
    assert int(moved.name.split("_")[0]) == int(smurf.name.split("_")[0]) + 1
    assert [moved.read_text(), same.read_text()] == told["marker_bytes"].split("---\n")
    assert sorted(markers(site)) == sorted([smurf, moved, same])
    # When the side table is lost, then the markers on disk are adopted,
    site.sql("DELETE FROM cdc_archiver_timecodes")
    with site.service(**QUICK, finalize_as=("crate-1", "timestreams=crate-t")):
        again = wait_state(site, NEW, "complete", 1)
        assert (again["told_by"], again["digest"]) == ("marker", told["digest"])
        assert len(markers(site)) == 3
        # and a late file makes another generation.
        site.wait_archived(*site.register(site.file("late.npy"), timestamp=during(NEW)))
        assert wait_state(site, NEW, "complete", 2)["late"] == 1
    assert len(markers(site)) == 5
    # When a row is marked as archived while no service runs, then the next start notices that, without a name;
    place = site.data_dir / str(NEW) / "crate1slot2" / "1_a" / "outputs" / "b.npy"
    site.register(site.file("b.npy"), timestamp=during(NEW), path=str(place), copied=1)
    with (
        capture_logs() as logs,
        site.service(**QUICK, finalize_as=("crate-1", "timestreams=crate-t"), finalize_from=OLD) as service,
    ):
        assert wait_state(site, NEW, "complete", 3)["late"] == 2
        assert [log["path"] for log in logs if log["event"] == "late_file"] == [""]
        # and with --finalize-from readers are told of what ended before the first start.
        eventually(lambda: stored(site, OLD)["told_by"] == "marker", "it is told")
        service.wait_metric(1, "late_files_total")
    assert [yaml.safe_load(path.read_text())["num_files"] for path in markers(site) if f"_{OLD}_" in path.name] == [
        1,
        1,
    ]


def test_without_grants_all_is_archived_and_the_part_is_off(stage: PrivateSite) -> None:
    site = stage
    site.server.execute(f"REVOKE INSERT ON {site.database}.cdc_archiver_timecodes FROM '{site.user}'@'%'")
    with capture_logs() as logs, site.service(**QUICK) as service:
        # Given an account that may not write the side table, then files are archived, and the log says once what is off.
        site.wait_archived(*site.register(*site.files(3)))
        keeper = keeper_of(service)
        eventually(lambda: "denied" in keeper.off_because, "it is off")
        assert "fix: GRANT CREATE, SELECT, INSERT, UPDATE ON" in keeper.off_because
        site.wait_archived(*site.register(site.file("another.npy")))
        assert [log["event"] for log in logs].count("timecodes_off") == 1
        # When the account may, then the part is on.
        site.server.execute(f"GRANT INSERT ON {site.database}.cdc_archiver_timecodes TO '{site.user}'@'%'")
        wait_state(site, OLD, "complete", 1)
        assert keeper.off_because == ""
