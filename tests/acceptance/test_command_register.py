"""`register`: inserts rows for files by hand, as the monitor would have."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from asking import ask
from files_table import TABLE
from private_site import TARGET, PrivateSite, new_private_site

from cdc_archiver.commands import register as register_module
from cdc_archiver.commands.hashing import hash_file
from cdc_archiver.sandbox import DatabaseServer, MariaDb, SshServer

MOMENT = 1_589_517_264


@pytest.fixture
def stage(mariadb: MariaDb, ssh_server: SshServer, tmp_path: Path) -> Iterator[PrivateSite]:
    with new_private_site(mariadb, ssh_server, tmp_path) as made:
        made.server.execute(f"GRANT INSERT ON {made.database}.{TABLE} TO '{made.user}'@'%'")
        yield made


@pytest.fixture
def either_stage(database_server: DatabaseServer, ssh_server: SshServer, tmp_path: Path) -> Iterator[PrivateSite]:
    with new_private_site(database_server, ssh_server, tmp_path) as made:
        made.server.execute(f"GRANT INSERT ON {made.database}.{TABLE} TO '{made.user}'@'%'")
        yield made


def register(
    stage: PrivateSite, *arguments: object, status: int = 0, **changes: Any
) -> dict[str, list[dict[str, Any]]]:
    """What became of the files, by fate."""
    words = [*map(str, arguments), "--action", "take_iv", "--pub-id", "crate1slot2", "--json"]
    done = ask(stage, "register", *words, *stage.flags(**changes))
    assert done.returncode == status, done.stderr
    fates: dict[str, list[dict[str, Any]]] = {}
    for line in done.stdout.splitlines():
        found = json.loads(line)
        fates.setdefault(found["fate"], []).append(found)
    return fates


def test_a_tree_is_registered_as_a_monitor_does_it_and_archived_by_the_running_service(
    either_stage: PrivateSite,
) -> None:
    stage = either_stage
    # Given a tree on the readout server, with a plot, a link, and a name of all sorts,
    files = [stage.file(name) for name in ("day/a.npy", "day/two\nlines [x].npy", "day/sub/b.PNG")]
    (stage.sources / "day/link.npy").symlink_to(files[0].path)
    for file in files:
        os.utime(file.path, (MOMENT, MOMENT))
    with stage.service(sweep_interval=3600) as service:
        service.wait_settled()
        # when it is registered there,
        fates = register(stage, stage.sources / "day")
        assert [found["path"] for found in fates["registered"]] == [str(file.path) for file in files]
        ids = [row[0] for row in stage.sql(f"SELECT id FROM {TABLE} ORDER BY id")]
        # then the service archives it, each file in its place, and the stream told it so.
        rows = stage.wait_archived(*ids)
        assert service.metric("sweep_found_total") == 0
    assert [row.path for row in rows] == [str(stage.place(file, plot=file is files[2])) for file in files]
    assert [f"{stage.data_dir}/{found['place']}" for found in fates["registered"]] == [row.path for row in rows]
    columns = "action, action_timestamp, format, plot, pub_id, instance_id, md5sum, UNIX_TIMESTAMP(timestamp)"
    (row,) = stage.sql(f"SELECT {columns} FROM {TABLE} WHERE id = {ids[0]}")
    assert row[:-1] == ("take_iv", MOMENT, "npy", 0, "crate1slot2", TARGET, files[0].md5)
    # Again, nothing is registered twice: neither what waits nor what is archived and has another path by now.
    new = stage.file("day/new.npy")
    stage.register(new)
    fates = register(stage, stage.sources / "day", new.path)
    assert {found["path"] for found in fates["known"]} == {str(file.path) for file in [*files, new]}
    assert "registered" not in fates
    assert stage.count("1 = 1") == 4


def test_a_dry_run_prints_the_plan_and_changes_nothing(stage: PrivateSite) -> None:
    file = stage.file("a.npy")
    os.utime(file.path, (MOMENT, MOMENT))
    words = ["register", str(file.path), "--action", "take_iv", "--pub-id", "crate1slot2", "--dry-run"]
    done = ask(stage, *words, *stage.flags())
    assert done.returncode == 0
    place = stage.place(file).relative_to(stage.data_dir)
    assert done.stdout.splitlines() == [
        f"would      {file.path} -> {place}",
        "would register 1 file, 0 already known, 0 unusable",
    ]
    assert stage.count("1 = 1") == 0


def test_flags_override_the_values_of_the_files(stage: PrivateSite) -> None:
    file = stage.file("a.npy")
    moments = ("--timestamp", "2021-03-04T05:06:07", "--action-timestamp", str(MOMENT))
    register(stage, file.path, *moments, "--plot", "--target", "m2", target=None)
    (row,) = stage.sql(f"SELECT action_timestamp, plot, instance_id, CAST(timestamp AS CHAR) FROM {TABLE}")
    assert row == (MOMENT, 1, "m2", "2021-03-04 05:06:07")


def test_files_that_cannot_be_archived_are_not_registered(either_stage: PrivateSite) -> None:
    stage = either_stage
    good = stage.file("good.npy")
    long = stage.file("x" * 200 + "/" + "y" * 200)
    foreign = stage.directory / "elsewhere.npy"
    foreign.write_bytes(b"")
    os.mkfifo(stage.sources / "pipe")
    fates = register(stage, good.path, long.path, foreign, stage.sources / "pipe", source_root=stage.sources, status=3)
    notes = {found["path"]: found["note"] for found in fates["unusable"]}
    assert "characters, the column holds 260" in notes[str(long.path)]
    assert "is not below the source root" in notes[str(foreign)]
    assert notes[str(stage.sources / "pipe")] == "it is not a regular file"
    assert [found["path"] for found in fates["registered"]] == [str(good.path)]
    # What the table does not take is said of that file alone, and its neighbours are registered.
    stage.file("bad/old.npy")
    os.utime(stage.sources / "bad/old.npy", (0, 0))
    stage.file("bad/new.npy")
    fates = register(stage, stage.sources / "bad", stage.sources / "bad/new.npy", status=3)
    (old,), (new,) = fates["unusable"], fates["registered"]
    assert (old["path"], new["path"]) == (f"{stage.sources}/bad/old.npy", f"{stage.sources}/bad/new.npy")
    assert "timestamp" in old["note"]
    stage.sql(f"DELETE FROM {TABLE} WHERE path LIKE '%%/bad/%%'")
    # A row that would be refused is none to begin with.
    done = ask(stage, "register", str(good.path), "--action", "a/b", "--pub-id", "..", *stage.flags())
    assert "0 files" in done.stdout
    assert stage.count("1 = 1") == 1


def test_each_mistake_is_reported_in_one_line(stage: PrivateSite) -> None:
    file = stage.file("a.npy")
    words = ["register", str(file.path), "--action", "a", "--pub-id", "p"]
    # No target, or several; nothing there; no right to insert.
    done = ask(stage, *words)
    assert (done.returncode, done.stderr) == (
        2,
        "cdc-archiver: the files' target is not known; fix: add --target NAME\n",
    )
    two = {"CDC_ARCHIVER_TARGET": "m1,m2"}
    assert (
        "; fix: add --target with one of m1, m2\n"
        in ask(stage, *words, *stage.flags(target=None), environment=two).stderr
    )
    done = ask(stage, "register", "/nowhere", "--action", "a", "--pub-id", "p", *stage.flags())
    assert done.returncode == 2
    assert "run register on the machine that has the files" in done.stderr
    stage.server.execute(f"REVOKE INSERT ON {stage.database}.{TABLE} FROM '{stage.user}'@'%'")
    done = ask(stage, *words, *stage.flags())
    assert done.returncode == 2
    assert f"GRANT INSERT ON {stage.database}.{TABLE} TO '{stage.user}'@'%'" in done.stderr.splitlines()[-1]


def test_an_unreadable_directory_is_reported_and_a_vanished_file_is_not(
    stage: PrivateSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, gone = stage.file("day/a.npy"), stage.file("day/.a.npy.x7")
    stage.file("day/sub/b.npy")
    listed, looked_at = os.scandir, os.lstat

    def scandir(directory: Any) -> Any:
        if str(directory) == f"{stage.sources}/day/sub":
            raise PermissionError(13, "Permission denied", directory)
        return listed(directory)

    def lstat(path: Any, **options: Any) -> Any:
        if str(path) == str(gone.path):
            gone.path.unlink(missing_ok=True)
        return looked_at(path, **options)

    monkeypatch.setattr(os, "scandir", scandir)
    monkeypatch.setattr(os, "lstat", lstat)
    fates = register(stage, stage.sources / "day", status=3)
    assert [(found["path"], found["note"]) for found in fates["unusable"]] == [
        (f"{stage.sources}/day/sub", "Permission denied")
    ]
    assert [found["path"] for found in fates["registered"]] == [str(there.path)]


def test_files_registered_or_archived_by_others_are_known(stage: PrivateSite, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a file that an older archiver archived, of which no history tells,
    before, meanwhile, new = stage.files(3)
    (id_,) = stage.register(before)
    stage.sql(f"UPDATE {TABLE} SET path = %s, copied = 1 WHERE id = %s", (f"{stage.place(before)}.2", id_))

    # and one that the monitor registers while files are read,
    def reading(path: str) -> Any:
        if path == str(new.path):
            stage.register(meanwhile)
        return hash_file(path)

    monkeypatch.setattr(register_module, "hash_file", reading)
    # then there is one row of each.
    fates = register(stage, stage.sources)
    assert {found["path"]: found["note"] for found in fates["known"]} == {
        str(before.path): f"archived as {stage.place(before)}.2",
        str(meanwhile.path): "",
    }
    assert [found["path"] for found in fates["registered"]] == [str(new.path)]
    assert stage.count("1 = 1") == 3


def test_many_files(stage: PrivateSite) -> None:
    for number in range(450):
        stage.file(f"many/{number}.npy", b"x")
    assert len(register(stage, stage.sources / "many")["registered"]) == 450
    assert stage.count("copied = 0") == 450
    assert len(register(stage, stage.sources / "many")["known"]) == 450
