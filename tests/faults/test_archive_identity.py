"""Which archive it is: nothing is written to a bare mount point or to another archive, and the one of 0.1.0 is moved."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from archive_places import marker_of, staging_of
from directory_watch import DirectoryWatch
from files_table import TABLE
from private_site import TARGET, PrivateSite, new_private_site
from services import Service
from side_tables_of_site import make_side_tables
from waiting import eventually

from cdc_archiver.database import side_tables
from cdc_archiver.database.source_locks import lock_name
from cdc_archiver.sandbox import DatabaseServer, SshServer
from cdc_archiver.transfer.archive_marker import FORMER_MARKER
from cdc_archiver.transfer.staging import INCOMING

QUICK: dict[str, Any] = {"sweep_interval": "0.3", "poll_interval": "0.3"}


@pytest.fixture
def stage(database_server: DatabaseServer, ssh_server: SshServer, tmp_path: Path) -> Iterator[PrivateSite]:
    with new_private_site(database_server, ssh_server, tmp_path) as made:
        make_side_tables(made)
        yield made


def archives(stage: PrivateSite) -> list[tuple[Any, ...]]:
    """What the database knows of the archive."""
    return stage.sql(f"SELECT instance_id, archive_id, data_dir, staging_place FROM {side_tables.ARCHIVES.name}")


def wait_sweeps(service: Service, count: int) -> None:
    """Waits for so many further sweeps."""
    until = service.metric("sweep_duration_seconds_count") + count
    eventually(lambda: service.metric("sweep_duration_seconds_count") >= until, f"{count} sweeps are over")


def wait_ready_again(stage: PrivateSite, *ids: int) -> None:
    stage.wait_archived(*ids)
    assert [row.attempts for row in stage.rows(ids)] == [0] * len(ids)


def test_another_archive_and_an_unmounted_one_are_not_written_to_until_a_person_says_so(stage: PrivateSite) -> None:
    # Given an archive that the service has made,
    stage.data_dir = stage.directory / "disk/archive"
    stage.data_dir.mkdir(parents=True)
    disk = stage.data_dir.parent
    with stage.service(**QUICK) as service:
        stage.wait_archived(*stage.register(stage.file("first.npy")))
        eventually(lambda: archives(stage), "the database knows it")
        ((target, first_id, data_dir, staging),) = archives(stage)
        assert (target, data_dir, staging) == (TARGET, str(stage.data_dir), str(staging_of(stage.data_dir)))
        # when its disk is gone while it runs, then the bare mount point stays empty,
        disk.rename(stage.directory / "first")
        stage.data_dir.mkdir(parents=True)
        (id_,) = stage.register(stage.file("waits.npy"))
        service.wait_state("no destination")
        assert "destination_missing" in service.get("/readyz")[1]
        assert [path.name for path in disk.iterdir()] == ["archive"]
        assert stage.row(id_).copied == 0
        # and it goes on when the disk is back.
        shutil.rmtree(disk)
        (stage.directory / "first").rename(disk)
        wait_ready_again(stage, id_)
        service.wait_state("streaming")
    # When another archive is mounted there, with a marker of its own,
    disk.rename(stage.directory / "first")
    stage.data_dir.mkdir(parents=True)
    marker_of(stage.data_dir).parent.mkdir()
    marker_of(stage.data_dir).write_text('{"id": "another", "inode": 1}')
    (stage.data_dir / "15895").mkdir()
    (id_,) = stage.register(stage.file("here.npy"))
    with stage.service(until="no destination", **QUICK) as service:
        # then nothing is written there, and status and check say why,
        assert (
            "is another archive: its id is another" in stage.command("status", "--http-port", str(service.port)).stdout
        )
        found = stage.command("check", *stage.flags())
        assert found.returncode == 2
        assert first_id in found.stdout
        assert list((stage.data_dir / "15895").iterdir()) == []
        # until a person says that it is to be the archive.
        assert stage.command("mark-archive", *stage.flags()).returncode == 2  # no terminal to ask on
        marked = stage.command("mark-archive", "--yes", *stage.flags())
        assert marked.returncode == 0, marked.stderr
        wait_ready_again(stage, id_)
        assert service.state() == "streaming"
    assert [archive_id for _, archive_id, *_ in archives(stage)] == ["another"]


def test_without_the_side_table_the_process_still_tells_its_archive_from_a_bare_mount_point(stage: PrivateSite) -> None:
    stage.sql(f"DROP TABLE {side_tables.ARCHIVES.name}")
    stage.server.execute(f"REVOKE CREATE ON {stage.database}.{side_tables.ARCHIVES.name} FROM '{stage.user}'@'%'")
    stage.data_dir = stage.directory / "disk/archive"
    stage.data_dir.mkdir(parents=True)
    with stage.service(**QUICK) as service:
        stage.wait_archived(*stage.register(stage.file("first.npy")))
        stage.data_dir.parent.rename(stage.directory / "first")
        stage.data_dir.mkdir(parents=True)
        (id_,) = stage.register(stage.file("waits.npy"))
        service.wait_state("no destination")
        assert list(stage.data_dir.iterdir()) == []
        shutil.rmtree(stage.data_dir.parent)
        (stage.directory / "first").rename(stage.data_dir.parent)
        wait_ready_again(stage, id_)
    refused = stage.command("mark-archive", "--yes", *stage.flags())
    assert (refused.returncode, "cdc-archiver init-db creates it" in refused.stderr) == (2, True), refused.stderr


def test_the_database_of_a_site_that_comes_from_the_polling_agent_knows_files_and_no_archive(
    stage: PrivateSite,
) -> None:
    old = stage.file("old.npy")
    place = stage.place(old)
    place.parent.mkdir(parents=True)
    place.write_bytes(old.content)
    (old_id,) = stage.register(old, copied=1)
    stage.sql(f"UPDATE {TABLE} SET path = %s WHERE id = %s", (str(place), old_id))
    with stage.service(**QUICK):
        wait_ready_again(stage, *stage.register(stage.file("new.npy")))
    assert marker_of(stage.data_dir).exists()


def former_archive(stage: PrivateSite) -> Path:
    """What 0.1.0 keeps in data_dir, with a part of a file, and what a source that is configured no more has left."""
    (stage.data_dir / FORMER_MARKER).write_text("This file shows cdc_archiver that the archive's disk is mounted.\n")
    own = stage.data_dir / INCOMING / stage.settings().sources[0].staging_name / "small-0" / ".rsync-partial"
    own.mkdir(parents=True, exist_ok=True)
    (own / "part.npy").write_bytes(b"part")
    return stage.data_dir / INCOMING


def test_an_archive_of_the_version_before_is_moved_once_no_other_service_works_on_the_table(
    stage: PrivateSite,
) -> None:
    # Given an archive of 0.1.0, and a lock on the table that another service holds,
    incoming = former_archive(stage)
    stage.register(stage.file("other.npy"), instance_id="another-monitor", copied=1)
    other = stage.server.connect()
    with other.cursor() as cursor:
        cursor.execute("SELECT GET_LOCK(%s, 0)", (lock_name(stage.database, TABLE, "another-monitor"),))
    with stage.service(**QUICK) as service:
        # when this version starts, then its own marker is there and files are archived, and the old ones stay,
        wait_ready_again(stage, *stage.register(stage.file("new.npy")))
        wait_sweeps(service, 2)
        assert marker_of(stage.data_dir).exists()
        assert (stage.data_dir / FORMER_MARKER).exists()
        assert incoming.exists()
        # until the other service has ended.
        other.close()
        eventually(lambda: [path.name for path in stage.data_dir.iterdir()] == ["15895"], "they are gone")
        watch = DirectoryWatch(stage.data_dir)
        wait_ready_again(stage, *stage.register(*stage.files(5)))
        assert watch.names() == []
        watch.close()


@pytest.mark.parametrize("step", ["marker", "parts"])
def test_a_kill_while_an_archive_is_moved_loses_nothing(stage: PrivateSite, step: str) -> None:
    # Given an archive of 0.1.0 of which the move was interrupted: after the new marker, or after the parts,
    former_archive(stage)
    with stage.program(until=None, **QUICK) as program:
        eventually(marker_of(stage.data_dir).exists, "the marker is there")
        program.kill()
    if step == "parts":
        shutil.rmtree(stage.data_dir / INCOMING, ignore_errors=True)
    else:
        former_archive(stage)
    # when it starts again, then it ends the move, and archives.
    with stage.service(**QUICK):
        wait_ready_again(stage, *stage.register(stage.file("new.npy")))
        eventually(lambda: [path.name for path in stage.data_dir.iterdir()] == ["15895"], "the move has ended")
