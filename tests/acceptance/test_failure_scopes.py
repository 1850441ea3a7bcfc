"""The scope of each failure: a host, a link or a disk that is down never counts as a failed attempt of a file."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pymysql
import pytest
from archive_places import marker_of
from files_table import TABLE
from private_site import HISTORY, PrivateSite, new_private_site
from services import Service
from waiting import eventually

from cdc_archiver.dispatch import health, retry_delays
from cdc_archiver.model import Scope
from cdc_archiver.sandbox import MariaDb, SshServer


@pytest.fixture
def stage(mariadb: MariaDb, ssh_server: SshServer, tmp_path: Path) -> Iterator[PrivateSite]:
    with new_private_site(mariadb, ssh_server, tmp_path) as made:
        yield made
        ssh_server.authorize()
        ssh_server.trust_host_key()


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses last a moment: 5 s and more after a failed attempt, and those for a person or a disk."""
    monkeypatch.setattr(retry_delays, "delay_after", lambda delays, tries: 0.3)
    for scope in (Scope.SOURCE, Scope.CONFIGURATION, Scope.DESTINATION):
        monkeypatch.setitem(health._PAUSES, scope, (0.3, 1.0))


def assert_no_failed_attempts(stage: PrivateSite) -> None:
    assert stage.count("failed_copy_attempts <> 0 OR failed_copy_attempts IS NULL") == 0
    assert stage.sql("SELECT * FROM cdc_archiver_history WHERE result IN ('charged', 'refused')") == []


# Scope source or destination: no failed attempt counts.


def test_a_host_that_is_down_counts_no_failed_attempt_and_is_tried_until_it_is_up(stage: PrivateSite) -> None:
    with stage.service() as service:
        stage.wait_archived(*stage.register(stage.file("before.npy")))
        # Given a readout server that reboots,
        stage.ssh.stop()
        # when files are registered meanwhile,
        ids = stage.register(*stage.files(5))
        # then the service says so, and waits;
        service.wait_state("no source")
        assert service.get("/healthz")[0] == 200
        assert service.metric("source_up") == 0
        assert [row.attempts for row in stage.rows(ids)] == [0] * 5
        # and when the host is back, they are archived without anybody's doing.
        stage.ssh.start()
        stage.wait_archived(*ids)
        service.wait_state("streaming")
        assert service.metric("source_up") == 1
        assert service.metric("copy_failures_total", reason="host_unreachable") >= 5
    assert_no_failed_attempts(stage)


def test_a_broken_link_counts_no_failed_attempt_and_keeps_the_files_that_arrived(
    stage: PrivateSite, soon: None
) -> None:
    # Given a batch on its way,
    ids = stage.register(*stage.files(16, size=60_000))
    with stage.service(workers=1, bwlimit="256"):
        eventually(lambda: stage.count("copied = 1"), "the first have arrived")
        # when the host loses its power,
        stage.ssh.kill()
        done = stage.count("copied = 1")
        assert done < len(ids)
        stage.ssh.start()
        # then the rest comes later, and nothing twice.
        stage.wait_archived(*ids)
    assert len(stage.archived_files()) == len(ids)
    assert_no_failed_attempts(stage)


def test_an_archive_without_its_marker_is_not_written_to(stage: PrivateSite, soon: None) -> None:
    # Given an archive with files in it,
    with stage.service() as service:
        stage.wait_archived(*stage.register(stage.file("before.npy")))
        before = stage.archived_files()
        # when its disk is gone, and the marker with it,
        marker = marker_of(stage.data_dir)
        away = stage.directory / "marker-away"
        marker.rename(away)
        ids = stage.register(*stage.files(3))
        # then nothing is written to what is left,
        service.wait_state("no destination")
        assert "destination_missing" in service.get("/readyz")[1]
        assert service.metric("destination_up") == 0
        assert stage.archived_files() == before
        assert not marker.exists()
        # and all goes on when it is mounted again.
        away.rename(marker)
        stage.wait_archived(*ids)
        service.wait_state("streaming")
    assert_no_failed_attempts(stage)


def test_a_service_does_not_start_on_a_bare_mount_point(stage: PrivateSite, soon: None) -> None:
    # Given an archive that the history knows files of,
    with stage.service():
        stage.wait_archived(*stage.register(stage.file("before.npy")))
    # when its disk is not mounted at the next start,
    disk = stage.directory / "disk"
    stage.data_dir.rename(disk)
    stage.data_dir.mkdir()
    (id_,) = stage.register(stage.file("waits.npy"))
    with stage.service(until="no destination"):
        # then the empty directory stays empty,
        assert list(stage.data_dir.iterdir()) == []
        assert stage.row(id_).attempts == 0
        # until the disk is there.
        stage.data_dir.rmdir()
        disk.rename(stage.data_dir)
        stage.wait_archived(id_)
    assert_no_failed_attempts(stage)


def test_a_full_disk_counts_no_failed_attempt(stage: PrivateSite) -> None:
    # Given less free space than is to be kept,
    ids = stage.register(*stage.files(5))
    with stage.service(until="no destination", min_free="1000T") as service:
        assert "no_space" in service.get("/readyz")[1]
        assert service.metric("destination_free_bytes") > 0
        assert stage.archived_files() == []
        assert_no_failed_attempts(stage)
    # when there is room again,
    with stage.service():
        stage.wait_archived(*ids)


# Scope file: a failed attempt counts, and the file is tried again later.


def test_a_missing_file_has_a_failed_attempt_and_is_archived_when_it_appears(stage: PrivateSite, soon: None) -> None:
    # Given a row whose file is not there,
    file = stage.file("late.npy")
    file.path.unlink()
    with stage.service() as service:
        (id_,) = stage.register(file)
        # when it was tried,
        row = stage.wait_attempts(id_, 1)
        # then it has a failed attempt, and nothing else of the row is changed;
        assert (row.path, row.copied) == (str(file.path), 0)
        assert service.state() == "streaming"
        # and archived once it is there.
        file.path.write_bytes(file.content)
        stage.wait_archived(id_)
        assert stage.place(file).read_bytes() == file.content
    first = stage.history(id_)[0]
    assert (first["result"], first["reason"]) == ("charged", "missing")
    assert "No such file" in first["detail"]


def test_several_missing_files_among_others_have_failed_attempts_and_delay_no_other(stage: PrivateSite) -> None:
    # Given five files that somebody has deleted, in a directory where others are: its disk is mounted.
    gone = stage.files(5, prefix="gone")
    for file in gone:
        file.path.unlink()
    sound = stage.file("sound.npy")
    with stage.service() as service:
        # when they are registered, together or one after the other, then each has a failed attempt,
        ids = stage.register(*gone[:3])
        for file in gone[3:]:
            ids += stage.register(file)
            stage.wait_attempts(ids[-1], 1)
        eventually(lambda: [row.attempts for row in stage.rows(ids)] == [1] * 5, "each has a failed attempt")
        # and the source goes on.
        stage.wait_archived(*stage.register(sound))
        assert service.state() == "streaming"
        assert service.metric("source_up") == 1


@pytest.mark.parametrize("streams", [True, False])
def test_only_time_and_what_decides_use_up_attempts(stage: PrivateSite, streams: bool) -> None:
    """Neither a neighbour's UPDATE, a lost connection nor a restart; `retry` does, at once."""
    file = stage.file("gone.npy")
    file.path.unlink()
    options: dict[str, Any] = {"retry_delays": "1h", "poll_interval": 0.3}
    if not streams:
        stage.server.execute(f"REVOKE REPLICATION SLAVE ON *.* FROM '{stage.user}'@'%'")
    mode = "streaming" if streams else "polling"

    def tried(times: int) -> bool:
        return [entry["result"] for entry in stage.history(id_)].count("charged") == times

    def waits(service: Service) -> bool:
        in_hand = json.loads(service.get(f"/api/file/{id_}")[1])["in_hand"]
        return in_hand is not None and 3000 < (in_hand["retry_in"] or 0) <= 3600

    with stage.service(until=mode, **options) as service:
        (id_,) = stage.register(file)
        stage.wait_attempts(id_, 1)
        # Given a neighbour that stamps other columns, when many of its writes have been seen,
        for number in range(20):
            stage.sql(f"UPDATE {TABLE} SET format = 'stamp {number}' WHERE id = {id_}")
        stage.wait_archived(*stage.register(stage.file("other.npy")))
        # or all connections are lost, and the locks with them,
        keeper = service.archiver._keeper
        assert keeper is not None
        before = keeper.losses
        for (connection,) in stage.sql(f"SELECT id FROM information_schema.processlist WHERE user = '{stage.user}'"):
            with contextlib.suppress(pymysql.MySQLError):
                stage.sql(f"KILL {connection}")
        eventually(lambda: keeper.losses > before, "the lock is lost")
        service.wait_state(mode)
        stage.wait_archived(*stage.register(stage.file("another.npy")))
        # then the file waits for the rest of its hour.
        assert waits(service)
        assert tried(1)
    # A restart changes nothing, even where the clock of the history is ahead,
    stage.sql(f"UPDATE {HISTORY} SET at = at + INTERVAL 1 DAY WHERE file_id = {id_}")
    with stage.service(until=mode, **options) as service:
        stage.wait_archived(*stage.register(stage.file("more.npy")))
        eventually(lambda: waits(service), "it waits, for an hour at most")
        assert tried(1)
        # and an operator's retry is taken up at once.
        assert stage.command("retry", "--id", str(id_), "--yes").returncode == 0
        eventually(lambda: tried(2), "it is tried again")
    # A delay that is over while no service runs is over.
    stage.sql(f"UPDATE {HISTORY} SET at = at - INTERVAL 2 DAY WHERE file_id = {id_}")
    with stage.service(until=mode, **options):
        eventually(lambda: tried(3), "its hour is over")


def test_a_file_is_tried_until_its_attempts_are_used_up(stage: PrivateSite, soon: None) -> None:
    file = stage.file("never.npy")
    file.path.unlink()
    with stage.service(max_attempts=3) as service:
        (id_,) = stage.register(file)
        stage.wait_attempts(id_, 3)
        # Then it is not tried again, though its source has it now:
        file.path.write_bytes(file.content)
        stage.wait_archived(*stage.register(stage.file("other.npy")))
        assert (stage.row(id_).copied, stage.row(id_).attempts) == (0, 3)
    assert [entry["result"] for entry in stage.history(id_)] == ["charged"] * 3
    # it is counted,
    with stage.service(max_attempts=3) as service:
        eventually(lambda: service.metric("quarantined_files") == 1, "it is counted as quarantined")
    # and a higher maximum releases it.
    with stage.service(max_attempts=4):
        stage.wait_archived(id_)
    assert stage.row(id_).attempts == 3


def test_a_file_that_changed_after_its_registration_has_a_failed_attempt_with_both_sums(
    stage: PrivateSite, soon: None
) -> None:
    # Given a file that is not what its row says,
    file = stage.file("changed.npy")
    wrong = stage.file("changed.npy", b"something else")
    with stage.service():
        (id_,) = stage.register(file)
        # then it has a failed attempt, and nothing of it is in the archive,
        stage.wait_attempts(id_, 1)
        assert stage.archived_files() == []
        entry = stage.history(id_)[0]
        assert (entry["result"], entry["reason"]) == ("charged", "changed")
        assert (entry["md5_row"], entry["md5_seen"]) == (file.md5, wrong.md5)
        assert file.md5.hex() in entry["detail"]
        assert wrong.md5.hex() in entry["detail"]
        # until it is what it should be.
        file.path.write_bytes(file.content)
        stage.wait_archived(id_)
        assert stage.place(file).read_bytes() == file.content


# Scope row: refused, since no attempt can succeed; no other file is affected.


@pytest.fixture(params=["by stream", "by sweep"])
def door(request: pytest.FixtureRequest) -> str:
    return str(request.param)


IMPOSSIBLE: dict[str, tuple[dict[str, Any], str]] = {
    "no pub_id": ({"pub_id": None}, "no_pub_id"),
    "a pub_id that leads out": ({"pub_id": "../.."}, "bad_pub_id"),
    "a pub_id with a directory in it": ({"pub_id": "a/b"}, "bad_pub_id"),
    "an empty pub_id": ({"pub_id": ""}, "bad_pub_id"),
    "a pub_id with a control character": ({"pub_id": "crate\n1"}, "bad_pub_id"),
    "a pub_id that readers take for something else": ({"pub_id": "suprsync"}, "bad_pub_id"),
    "an action that leads out": ({"action": "../../../../etc"}, "bad_action"),
    "an action with an escape sequence": ({"action": "\x1b[2J"}, "bad_action"),
    "no timestamp": ({"timestamp": None}, "no_timestamp"),
    "a timestamp of a clock that was not set": ({"timestamp": "1970-01-01 00:00:41"}, "bad_timestamp"),
    "a timestamp that five digits do not tell": ({"timestamp": "2000-01-01 00:00:00"}, "bad_timestamp"),
    "an empty path": ({"path": ""}, "bad_path"),
    "a path that ends in dots": ({"path": "a/b/.."}, "bad_name"),
    "a path of a directory": ({"path": "a/b/"}, "bad_name"),
    "a path that leads out of the root": ({"path": "../../../etc/passwd"}, "bad_path"),
}


def test_impossible_rows_are_refused_and_crash_nothing(stage: PrivateSite, door: str) -> None:
    # Given rows that lead nowhere, or out of the archive,
    file = stage.file("fine.npy")

    def register() -> list[int]:
        return [stage.register(file, **columns)[0] for columns, _ in IMPOSSIBLE.values()]

    ids = register() if door == "by sweep" else []
    # when the service meets them, at its start or as they come,
    with stage.service(source_root=str(stage.sources)) as service:
        ids = ids or register()
        (good,) = stage.register(file)
        stage.wait_archived(good)
        eventually(lambda: all(row.attempts for row in stage.rows(ids)), "all are refused")
        # then each is out of the way, with its reason,
        rows = stage.rows(ids)
        assert [row.attempts for row in rows] == [1000] * len(ids)
        assert [row.copied for row in rows] == [0] * len(ids)
        reasons = {name: stage.history(id_)[0]["reason"] for name, id_ in zip(IMPOSSIBLE, ids, strict=True)}
        assert reasons == {name: reason for name, (_, reason) in IMPOSSIBLE.items()}
        assert {entry["result"] for id_ in ids for entry in stage.history(id_)} == {"refused"}
        # and the service is as well as ever.
        service.wait_metric(len(ids), "copies_total", result="refused")
        assert service.state() == "streaming"
    assert stage.archived_files() == [stage.place(file)]
    assert sorted(path.name for path in stage.directory.iterdir()) == [".archive.cdc_archiver", "archive", "readout"]


def test_a_mistyped_source_root_refuses_no_row(stage: PrivateSite) -> None:
    # Given a root that the files do not lie below,
    (id_,) = stage.register(stage.file("a.npy"))
    with stage.service(source_root="/nowhere/else") as service:
        eventually(lambda: service.metric("copy_failures_total", reason="outside_root"), "it is noticed")
    assert_no_failed_attempts(stage)
    # then the right one is all that it takes.
    with stage.service(source_root=str(stage.sources)):
        stage.wait_archived(id_)


def test_a_path_outside_the_source_root_is_never_read_and_stays_pending(stage: PrivateSite) -> None:
    # Given a row that leads to another directory of the readout server than the one that its files lie in,
    (astray,) = stage.register(stage.file("passwd"), path="/etc/passwd")
    with stage.service(source_root=str(stage.sources)) as service:
        # when others come, then they are archived, the service is as well as ever, and the row waits.
        stage.wait_archived(*stage.register(stage.file("fine.npy")))
        eventually(lambda: service.metric("copy_failures_total", reason="outside_root") >= 1, "it is said")
        assert service.state() == "streaming"
        assert (stage.row(astray).copied, stage.row(astray).attempts) == (0, 0)
    assert [file.name for file in stage.archived_files()] == ["fine.npy"]


def test_a_path_that_is_not_a_regular_file_is_refused(stage: PrivateSite) -> None:
    # Given a directory, a link and a pipe where files should be,
    things = {kind: stage.file(f"{kind}.npy") for kind in ("directory", "link", "pipe")}
    for thing in things.values():
        thing.path.unlink()
    stage.file("directory.npy/inside.npy")
    things["link"].path.symlink_to(stage.file("target.npy").path)
    os.mkfifo(things["pipe"].path)
    with stage.service() as service:
        # when each is registered,
        for thing in things.values():
            (id_,) = stage.register(thing)
            row = stage.wait_attempts(id_, 1)
            # then it is refused at once, and nothing of it is archived.
            assert (row.attempts, row.copied, row.path) == (1000, 0, str(thing.path))
            assert [(entry["result"], entry["reason"]) for entry in stage.history(id_)] == [("refused", "not_a_file")]
        assert service.state() == "streaming"
    assert stage.archived_files() == []


def test_a_path_that_would_not_fit_the_column_is_refused_before_it_is_copied(stage: PrivateSite) -> None:
    # Given a file whose name fits the column now, and would not where the archive is; and one that just fits,
    room = 260 - len(str(stage.place(stage.file("x")).parent)) - 1
    fits, too_long = stage.file("f" * (room - 5)), stage.file("t" * (room - 4))
    assert len(str(too_long.path)) <= 260
    with stage.service() as service:
        (good,) = stage.register(fits)
        (bad,) = stage.register(too_long)
        # then the one is refused, with the reason, and was never copied;
        assert stage.wait_attempts(bad, 1).attempts == 1000
        (row,) = stage.wait_archived(good)
        assert row.path == str(stage.place(fits))
        service.wait_metric(len(fits.content), "copied_bytes_total")
    (entry,) = stage.history(bad)
    assert (entry["result"], entry["reason"]) == ("refused", "path_too_long")
    assert "260" in entry["detail"]
    assert stage.archived_files() == [stage.place(fits)]
