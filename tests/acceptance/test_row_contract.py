"""What the archiver does to a row, to the archive and to the history: exactly the contract, on both servers."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from archive_places import staging_of
from files_table import TABLE
from private_site import HISTORY, TARGET, PrivateSite, new_private_site
from services import PASSWORD
from waiting import eventually

from cdc_archiver.dispatch import retry_delays
from cdc_archiver.sandbox import DatabaseServer, MariaDb, SshServer


@pytest.fixture
def stage(database_server: DatabaseServer, ssh_server: SshServer, tmp_path: Path) -> Iterator[PrivateSite]:
    """On either server."""
    with new_private_site(database_server, ssh_server, tmp_path) as made:
        yield made


@pytest.fixture
def mariadb_stage(mariadb: MariaDb, ssh_server: SshServer, tmp_path: Path) -> Iterator[PrivateSite]:
    """Where the server does not matter."""
    with new_private_site(mariadb, ssh_server, tmp_path) as made:
        yield made


def whole_row(stage: PrivateSite, id_: int) -> dict[str, Any]:
    with contextlib.closing(stage.connect()) as connection, connection.cursor() as cursor:
        cursor.execute(f"SELECT * FROM {TABLE} WHERE id = %s", (id_,))
        (values,) = cursor.fetchall()
        return dict(zip([column[0] for column in cursor.description], values, strict=True))


def test_columns_that_change_and_columns_that_do_not(stage: PrivateSite) -> None:
    # Given three rows with every column set: a sound file, a missing one, an impossible row.
    others = {
        "format": "npy",
        "plot": 1,
        "site": "chile",
        "script_id": "script-7",
        "pysmurf_version": "4.1",
        "socs_version": "0.5",
    }
    sound, missing = stage.file("sound.npy"), stage.file("missing.npy")
    missing.path.unlink()
    ids = [
        *stage.register(sound, **others, failed_copy_attempts=2),
        *stage.register(missing, **others, failed_copy_attempts=2),
        *stage.register(sound, **others, pub_id=None),
    ]
    before = [whole_row(stage, id_) for id_ in ids]
    # when the service has dealt with them,
    with stage.service(retry_delays="0.1s,0.1s,10m"):
        stage.wait_archived(ids[0])
        stage.wait_attempts(ids[1], 3)
        stage.wait_attempts(ids[2], 1)
    # then exactly what the contract says is changed.
    archived, charged, refused = (whole_row(stage, id_) for id_ in ids)
    assert archived == before[0] | {"path": str(stage.place(sound, plot=True)), "copied": 1}
    assert charged == before[1] | {"failed_copy_attempts": 3}
    assert refused == before[2] | {"failed_copy_attempts": 1000}


def test_a_timestamp_that_updates_itself_stays_what_it_was(stage: PrivateSite, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plain TIMESTAMP column is `ON UPDATE CURRENT_TIMESTAMP` where the server's explicit_defaults_for_timestamp is off:
    the default of MariaDB up to 10.9, of MySQL up to 5.7, and of tables made in that time."""
    monkeypatch.setattr(retry_delays, "delay_after", lambda delays, tries: 0.3)
    # Given such a table, and a file that is late,
    stage.sql(
        f"ALTER TABLE {TABLE} MODIFY timestamp TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP ON UPDATE CURRENT_TIMESTAMP"
    )
    file = stage.file("late.npy")
    file.path.unlink()
    with stage.service():
        (id_,) = stage.register(file)
        registered = whole_row(stage, id_)["timestamp"]
        # when it is charged, and archived later on,
        stage.wait_attempts(id_, 1)
        file.path.write_bytes(file.content)
        (row,) = stage.wait_archived(id_)
    # then it is archived by the time of its registration, which is still in the row.
    assert row.path == str(stage.place(file))
    assert whole_row(stage, id_)["timestamp"] == registered


def test_rows_with_null_are_pending(stage: PrivateSite) -> None:
    # Given rows as an old monitor leaves them: NULL in one column, the other, both; before the start and after it,
    nulls = [
        dict.fromkeys(names) for names in (("copied",), ("failed_copy_attempts",), ("copied", "failed_copy_attempts"))
    ]
    sound, missing = stage.file("sound.npy"), stage.file("missing.npy")
    missing.path.unlink()
    backlog = [stage.register(sound, **columns)[0] for columns in nulls]
    lost = stage.register(missing, **nulls[2])[0]
    with stage.service():
        stage.wait_archived(*backlog)
        stage.wait_attempts(lost, 1)
        streamed = [stage.register(sound, **columns)[0] for columns in nulls]
        lost_too = stage.register(missing, **nulls[1])[0]
        # then they are archived, or charged, like any other.
        stage.wait_archived(*streamed)
        stage.wait_attempts(lost_too, 1)
    assert [row.attempts for row in stage.rows([*backlog, *streamed])] == [0, None, None] * 2
    assert [(row.copied, row.attempts) for row in stage.rows([lost, lost_too])] == [(None, 1), (0, 1)]


def test_the_history_says_what_was_tried_and_where_a_file_came_from(stage: PrivateSite) -> None:
    began = datetime.now(UTC).replace(tzinfo=None)
    sound, changed = stage.file("sound.npy", size=12_345), stage.file("changed.npy")
    seen = stage.file("changed.npy", b"changed meanwhile")
    with stage.service():
        (good,) = stage.register(sound)
        (bad,) = stage.register(changed)
        (impossible,) = stage.register(sound, pub_id="../..")
        stage.wait_archived(good)
        stage.wait_attempts(bad, 1)
        stage.wait_attempts(impossible, 1)
    (archived,), (charged,), (refused,) = stage.history(good), stage.history(bad), stage.history(impossible)
    # What was archived: the row has forgotten where it came from, the history has not.
    assert archived["result"] == "archived"
    assert archived["source_path"] == str(sound.path)
    assert archived["archived_path"] == str(stage.place(sound)) == stage.row(good).path
    assert archived["md5_row"] == sound.md5
    assert archived["size"] == len(sound.content)
    # What was charged: both sums.
    assert (charged["result"], charged["reason"]) == ("charged", "changed")
    assert (charged["md5_row"], charged["md5_seen"]) == (changed.md5, seen.md5)
    assert charged["source_path"] == str(changed.path)
    assert charged["archived_path"] is None
    # What was refused: why.
    assert (refused["result"], refused["reason"]) == ("refused", "bad_pub_id")
    assert "'../..'" in refused["detail"]
    for entry in (archived, charged, refused):
        assert (entry["file_table"], entry["instance_id"], entry["source"]) == (TABLE, TARGET, stage.ssh.host)
        assert began - timedelta(seconds=1) <= entry["at"] <= datetime.now(UTC).replace(tzinfo=None)


def test_without_the_right_to_a_history_files_are_archived_all_the_same(mariadb_stage: PrivateSite) -> None:
    stage = mariadb_stage
    # Given an account with SELECT and UPDATE, and nothing more,
    stage.server.create_archiver_user(stage.user, PASSWORD, stage.database)
    file = stage.file("file.npy")
    with stage.service() as service:
        stage.wait_archived(*stage.register(file))
        # then the service says that there is none.
        assert service.status()["history"] not in ("", "kept")
    assert stage.sql(f"SHOW TABLES LIKE '{HISTORY}'") == []


def test_a_row_that_moves_on_while_its_file_is_copied_is_left_alone(mariadb_stage: PrivateSite) -> None:
    stage = mariadb_stage
    # Given a file on its way,
    slow, other = stage.file("slow.npy", size=500_000), stage.file("other.npy")
    with stage.service(bwlimit="256") as service:
        (id_,) = stage.register(slow)
        eventually(lambda: service.metric("in_flight") == 1, "it is on its way")
        # when somebody makes another of its row,
        stage.sql(f"UPDATE {TABLE} SET path = %s, md5sum = %s WHERE id = %s", [str(other.path), other.md5, id_])
        # then the row gets that one, and never the first.
        (row,) = stage.wait_archived(id_)
    assert row.path == str(stage.place(other))
    assert [entry["source_path"] for entry in stage.history(id_) if entry["result"] == "archived"] == [str(other.path)]


# What is in the archive already.


def test_a_file_that_is_in_place_is_adopted(mariadb_stage: PrivateSite) -> None:
    stage = mariadb_stage
    # Given an archiver that died between placing a file and saying so, and a source that has deleted it since,
    file = stage.file("placed.npy")
    place = stage.place(file)
    place.parent.mkdir(parents=True)
    place.write_bytes(file.content)
    inode = place.stat().st_ino
    file.path.unlink()
    (id_,) = stage.register(file)
    # when the next one starts,
    with stage.service() as service:
        (row,) = stage.wait_archived(id_)
        service.wait_metric(1, "copies_total", result="adopted")
        service.wait_metric(0, "copies_total", result="archived")
    # then the file is taken as it is.
    assert (row.path, row.attempts) == (str(place), 0)
    assert place.stat().st_ino == inode
    assert stage.archived_files() == [place]
    assert [entry["result"] for entry in stage.history(id_)] == ["adopted"]


def test_another_file_of_the_same_name_gets_a_number(mariadb_stage: PrivateSite) -> None:
    stage = mariadb_stage
    # Given three files of one name,
    files = [stage.file(f"{directory}/iv.npy") for directory in ("morning", "noon", "evening")]
    place = stage.place(files[0])
    with stage.service() as service:
        # when they are registered one after the other,
        paths = [stage.wait_archived(*stage.register(file))[0].path for file in files]
        # then each has its place, and the first keeps its own;
        assert paths == [str(place), f"{place}.1", f"{place}.2"]
        assert [Path(path).read_bytes() for path in paths] == [file.content for file in files]
        # and the second, registered once more, is found along the numbers.
        (row,) = stage.wait_archived(*stage.register(files[1]))
        assert row.path == f"{place}.1"
        service.wait_metric(1, "copies_total", result="adopted")
    assert len(stage.archived_files()) == 3


def test_files_of_one_name_in_one_batch_do_not_collide(mariadb_stage: PrivateSite) -> None:
    stage = mariadb_stage
    # Given a backlog with twenty files of one name, of which each comes twice,
    files = [stage.file(f"{number}/iv.npy") for number in range(20)]
    ids = stage.register(*files, *files)
    with stage.service():
        rows = stage.wait_archived(*ids)
    # then there are twenty in the archive, and each row names its own.
    assert [Path(row.path).read_bytes() for row in rows] == [file.content for file in [*files, *files]]
    place = stage.place(files[0])
    assert {str(path) for path in stage.archived_files()} == {str(place), *(f"{place}.{n}" for n in range(1, 20))}


def test_a_killed_service_leaves_nothing_half_done(mariadb_stage: PrivateSite) -> None:
    stage = mariadb_stage
    # Given a backlog,
    files = stage.files(300, size=20_000)
    ids = stage.register(*files)
    # when the service is killed in the midst of it,
    with stage.program(bwlimit="4096", until=None) as program:
        eventually(lambda: stage.count("copied = 1") >= 30, "it is at work")
        program.kill()
    # then nothing in the archive is part of a file,
    sums = {file.path.name: file.md5 for file in files}
    for place in stage.archived_files():
        assert hashlib.md5(place.read_bytes()).digest() == sums[place.name]
    # and no row says what is not so.
    for (path,) in stage.sql(f"SELECT path FROM {TABLE} WHERE copied = 1"):
        assert Path(path).exists()
    # The next one finds all of it, and nothing is there twice.
    with stage.service():
        stage.wait_archived(*ids)
    assert sorted(stage.archived_files()) == sorted(stage.place(file) for file in files)
    assert stage.count("failed_copy_attempts <> 0") == 0
    assert [path for path in staging_of(stage.data_dir).rglob("*") if path.is_file()] == []


def test_modes_and_times_of_what_is_archived(mariadb_stage: PrivateSite) -> None:
    stage = mariadb_stage
    file = stage.file("file.npy")
    os.chmod(file.path, 0o600)
    os.utime(file.path, (1_500_000_000, 1_500_000_000))
    with stage.service(chmod="D750,F640"):
        stage.wait_archived(*stage.register(file))
    place = stage.place(file)
    assert stat.S_IMODE(place.stat().st_mode) == 0o640
    assert [stat.S_IMODE(directory.stat().st_mode) for directory in list(place.parents)[:4]] == [0o750] * 4
    assert place.stat().st_mtime == 1_500_000_000


def test_the_newest_versioned_table_is_taken_where_there_is_no_plain_one(mariadb_stage: PrivateSite) -> None:
    stage = mariadb_stage
    # Given tables as the Simons Observatory's monitors make them,
    file, old = stage.file("new.npy"), stage.file("old.npy")
    stage.register(old)
    stage.sql(f"CREATE TABLE {TABLE}_v10 LIKE {TABLE}")
    stage.sql(f"RENAME TABLE {TABLE} TO {TABLE}_v9")
    # when the service runs,
    with stage.service() as service:
        assert service.status()["table"] == f"{TABLE}_v10"
        values = stage.values(file)
        names = ", ".join(f"`{name}`" for name in values)
        marks = ", ".join(["%s"] * len(values))
        stage.sql(f"INSERT INTO {TABLE}_v10 ({names}) VALUES ({marks})", list(values.values()))
        # then it archives from the newest, and leaves the older one alone.
        eventually(lambda: stage.sql(f"SELECT copied FROM {TABLE}_v10") == [(1,)], "the file is archived")
    assert stage.place(file).read_bytes() == file.content
    assert stage.sql(f"SELECT copied FROM {TABLE}_v9") == [(0,)]
