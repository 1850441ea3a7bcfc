"""Every way that a row comes into the table: its file is archived at once, by the stream, on both servers."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import time
from collections.abc import Iterator

import pytest
from files_table import TABLE
from private_site import PrivateSite, insert, new_private_site
from services import Service

from cdc_archiver.sandbox import DatabaseServer, SshServer

AT_ONCE = 20.0
"""Seconds, for a busy machine: it is a third of the time between sweeps, and each test asks whether one was needed."""


@pytest.fixture(scope="module")
def idle(
    database_server: DatabaseServer, ssh_server: SshServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[PrivateSite, Service]]:
    """A service that has nothing to do; one for all tests here, since each leaves it like that."""
    with (
        new_private_site(database_server, ssh_server, tmp_path_factory.mktemp("ways")) as stage,
        stage.service(sweep_interval=3600) as service,
    ):
        service.wait_settled()
        yield stage, service


@pytest.fixture
def stage(idle: tuple[PrivateSite, Service]) -> Iterator[PrivateSite]:
    """What the stream brings, a sweep did not have to find."""
    stage, service = idle
    yield stage
    assert service.metric("sweep_found_total") == 0
    assert service.metric("mode", mode="stream") == 1


def test_one_file_comes_in_well_under_a_poll(idle: tuple[PrivateSite, Service], stage: PrivateSite) -> None:
    # Given an idle service.
    service = idle[1]
    offered = service.metric("stream_events_total", outcome="offered")
    file = stage.file("first.npy")
    # When one file is registered,
    began = time.monotonic()
    (id_,) = stage.register(file)
    (row,) = stage.wait_archived(id_)
    took = time.monotonic() - began
    # then it is archived at once, and the stream has told of it.
    assert took < 5.0
    assert row.path == str(stage.place(file))
    assert stage.place(file).read_bytes() == file.content
    assert service.metric("stream_events_total", outcome="offered") == offered + 1


def test_an_insert_of_several_rows(stage: PrivateSite) -> None:
    files = [stage.file(f"several-{number}.npy") for number in range(7)]
    ids = stage.register(*files)
    rows = stage.wait_archived(*ids, within=AT_ONCE)
    assert [row.path for row in rows] == [str(stage.place(file)) for file in files]
    assert all(stage.place(file).read_bytes() == file.content for file in files)


def test_a_transaction_counts_when_it_is_committed_and_not_before(stage: PrivateSite) -> None:
    # Given two INSERTs of a transaction that is still open,
    files = [stage.file(f"transaction-{number}.npy") for number in range(2)]
    with contextlib.closing(stage.connect(autocommit=False)) as connection, connection.cursor() as cursor:
        ids = [insert(cursor, [stage.values(file)]) for file in files]
        # when others are committed meanwhile,
        (other,) = stage.register(stage.file("transaction-other.npy"))
        stage.wait_archived(other, within=AT_ONCE)
        # then nothing came of it so far;
        assert not any(stage.place(file).exists() for file in files)
        # and all of it as soon as it is committed.
        connection.commit()
    stage.wait_archived(*ids, within=AT_ONCE)


def test_what_is_rolled_back_never_happened(stage: PrivateSite) -> None:
    file = stage.file("rolled-back.npy")
    with contextlib.closing(stage.connect(autocommit=False)) as connection, connection.cursor() as cursor:
        insert(cursor, [stage.values(file)])
        connection.rollback()
    (other,) = stage.register(stage.file("after-rollback.npy"))
    stage.wait_archived(other, within=AT_ONCE)
    assert not stage.place(file).exists()


def test_insert_select(stage: PrivateSite) -> None:
    # Given rows that a monitor has collected in a table of its own,
    files = [stage.file(f"selected-{number}.npy") for number in range(3)]
    stage.sql(f"CREATE TABLE IF NOT EXISTS collected LIKE {TABLE}")
    for file in files:
        values = stage.values(file)
        names = ", ".join(f"`{name}`" for name in values)
        stage.sql(f"INSERT INTO collected ({names}) VALUES ({', '.join(['%s'] * len(values))})", list(values.values()))
    # when it hands all of them over at once,
    names = ", ".join(f"`{name}`" for name in stage.values(files[0]))
    top = int(stage.sql(f"SELECT COALESCE(MAX(id), 0) FROM {TABLE}")[0][0])
    stage.sql(f"INSERT INTO {TABLE} ({names}) SELECT {names} FROM collected")
    # then all are archived.
    ids = [row[0] for row in stage.sql(f"SELECT id FROM {TABLE} WHERE id > {top}")]
    assert len(ids) == 3
    stage.wait_archived(*ids, within=AT_ONCE)
    assert all(stage.place(file).read_bytes() == file.content for file in files)


def test_load_data(stage: PrivateSite) -> None:
    files = [stage.file(f"loaded-{number}.npy") for number in range(3)]
    lines = [
        f"{file.path}\ttake_iv\t2020-05-15 04:34:24\t1589517264\tcrate1slot2\tpysmurf-monitor\t0\t0\t{file.md5.hex()}\n"
        for file in files
    ]
    listing = stage.directory / "listing.tsv"
    listing.write_text("".join(lines))
    top = int(stage.sql(f"SELECT COALESCE(MAX(id), 0) FROM {TABLE}")[0][0])
    stage.sql(
        f"LOAD DATA INFILE '{listing}' INTO TABLE {TABLE} "
        "(path, action, timestamp, action_timestamp, pub_id, instance_id, copied, failed_copy_attempts, @md5) "
        "SET md5sum = UNHEX(@md5)"
    )
    ids = [row[0] for row in stage.sql(f"SELECT id FROM {TABLE} WHERE id > {top}")]
    assert len(ids) == 3
    stage.wait_archived(*ids, within=AT_ONCE)
    assert all(stage.place(file).read_bytes() == file.content for file in files)


def test_replace(stage: PrivateSite) -> None:
    # Given a row that is done,
    (id_,) = stage.register(stage.file("replace-old.npy"))
    stage.wait_archived(id_, within=AT_ONCE)
    # when another file takes its id,
    new = stage.file("replace-new.npy")
    with contextlib.closing(stage.connect()) as connection, connection.cursor() as cursor:
        insert(cursor, [{"id": id_, **stage.values(new)}], verb="REPLACE")
    # then that one is archived too.
    (row,) = stage.wait_archived(id_, within=AT_ONCE)
    assert row.path == str(stage.place(new))
    assert stage.place(new).read_bytes() == new.content


def test_on_duplicate_key_update(stage: PrivateSite) -> None:
    (id_,) = stage.register(stage.file("duplicate-old.npy"))
    stage.wait_archived(id_, within=AT_ONCE)
    new = stage.file("duplicate-new.npy")
    columns = ("path", "md5sum", "copied")
    again = ", ".join(f"{column} = VALUES({column})" for column in columns)
    with contextlib.closing(stage.connect()) as connection, connection.cursor() as cursor:
        insert(cursor, [{"id": id_, **stage.values(new)}], end=f"ON DUPLICATE KEY UPDATE {again}")
    (row,) = stage.wait_archived(id_, within=AT_ONCE)
    assert row.path == str(stage.place(new))
    assert stage.place(new).read_bytes() == new.content


def test_ids_that_do_not_come_in_order(stage: PrivateSite) -> None:
    # Given a row with a high id that is done,
    top = int(stage.sql(f"SELECT COALESCE(MAX(id), 0) FROM {TABLE}")[0][0])
    high, low, middle = (stage.file(f"order-{name}.npy") for name in ("high", "low", "middle"))
    with contextlib.closing(stage.connect()) as connection, connection.cursor() as cursor:
        insert(cursor, [{"id": top + 100, **stage.values(high)}])
    stage.wait_archived(top + 100, within=AT_ONCE)
    # when lower ones come later, the lower of these last,
    with (
        contextlib.closing(stage.connect(autocommit=False)) as early,
        contextlib.closing(stage.connect(autocommit=False)) as late,
        early.cursor() as early_cursor,
        late.cursor() as late_cursor,
    ):
        insert(early_cursor, [{"id": top + 10, **stage.values(low)}])
        insert(late_cursor, [{"id": top + 20, **stage.values(middle)}])
        late.commit()
        stage.wait_archived(top + 20, within=AT_ONCE)
        early.commit()
    # then they are archived like any other.
    stage.wait_archived(top + 10, within=AT_ONCE)
    assert all(stage.place(file).read_bytes() == file.content for file in (high, low, middle))


def test_a_row_put_back_by_hand_is_taken_up_at_once(idle: tuple[PrivateSite, Service], stage: PrivateSite) -> None:
    # Given a file that is archived,
    file = stage.file("by-hand.npy")
    (id_,) = stage.register(file)
    stage.wait_archived(id_, within=AT_ONCE)
    adopted = idle[1].metric("copies_total", result="adopted")
    # when somebody sets copied to 0, and nothing else,
    stage.sql(f"UPDATE {TABLE} SET copied = 0 WHERE id = %s", [id_])
    # then it is looked for, found where it was, and nothing is there twice.
    (row,) = stage.wait_archived(id_, within=AT_ONCE)
    assert row.path == str(stage.place(file))
    idle[1].wait_metric(adopted + 1, "copies_total", result="adopted")
    assert [path.name for path in stage.place(file).parent.glob("by-hand*")] == ["by-hand.npy"]


def test_a_row_given_up_and_reset_by_hand_is_taken_up_at_once(stage: PrivateSite) -> None:
    # Given a row that nobody tries any more,
    file = stage.file("reset.npy")
    (id_,) = stage.register(file, failed_copy_attempts=5)
    (other,) = stage.register(stage.file("beside-reset.npy"))
    stage.wait_archived(other, within=AT_ONCE)
    assert stage.row(id_).copied == 0
    # when somebody gives it its tries back,
    stage.sql(f"UPDATE {TABLE} SET failed_copy_attempts = 0 WHERE id = %s", [id_])
    # then it is archived.
    stage.wait_archived(id_, within=AT_ONCE)


def test_an_md5_that_ends_in_zero_is_an_md5_like_any_other(stage: PrivateSite) -> None:
    # The servers trim zeros at the end of a BINARY column in the log: one file in 256 has such a sum.
    contents = (f"run {number}".encode() for number in itertools.count())
    file = stage.file("zero.npy", next(content for content in contents if hashlib.md5(content).digest()[-1] == 0))
    (row,) = stage.wait_archived(*stage.register(file), within=AT_ONCE)
    assert row.path == str(stage.place(file))


def test_a_session_that_logs_as_little_as_it_can(stage: PrivateSite) -> None:
    # Given a row that is done,
    file = stage.file("minimal.npy")
    with contextlib.closing(stage.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("SET SESSION binlog_row_image = MINIMAL")
        id_ = insert(cursor, [stage.values(file)])
        stage.wait_archived(id_, within=AT_ONCE)
        # when it is put back by a session whose log has nothing but what it changed,
        cursor.execute(f"UPDATE {TABLE} SET copied = 0, path = %s WHERE id = %s", (str(file.path), id_))
    # then that is enough.
    (row,) = stage.wait_archived(id_, within=AT_ONCE)
    assert row.path == str(stage.place(file))


def test_rows_of_other_targets_are_left_alone(stage: PrivateSite) -> None:
    file = stage.file("foreign.npy")
    (theirs,) = stage.register(file, instance_id="another-monitor")
    (nobodys,) = stage.register(file, instance_id=None)
    (ours,) = stage.register(stage.file("ours.npy"))
    stage.wait_archived(ours, within=AT_ONCE)
    assert [row.copied for row in stage.rows([theirs, nobodys])] == [0, 0]
    assert not stage.place(file).exists()
