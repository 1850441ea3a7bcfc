"""`register --from-suprsync`: a site moves from suprsync, whose database becomes rows."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from asking import ask
from private_site import TARGET, PrivateSite, SourceFile

TABLE = """
CREATE TABLE supersync_v0 (
    id INTEGER NOT NULL, local_path VARCHAR NOT NULL, local_md5sum VARCHAR NOT NULL, archive_name VARCHAR NOT NULL,
    remote_path VARCHAR NOT NULL, timestamp FLOAT NOT NULL, remote_md5sum VARCHAR, copied FLOAT, removed FLOAT,
    failed_copy_attempts INTEGER, deletable BOOLEAN, "ignore" BOOLEAN, PRIMARY KEY (id)
)
"""
"""As SQLAlchemy makes it of the model in socs 0.6.4, socs/db/suprsync.py."""
ACTION = "15895/crate1slot2/1589517264_take_iv"


def suprsync(path: Path, *files: tuple[SourceFile, dict[str, Any]]) -> None:
    """A database of socs' monitor."""
    with sqlite3.connect(path) as connection:
        connection.execute(TABLE)
        for file, changes in files:
            values = {
                "local_path": str(file.path),
                "local_md5sum": file.md5.hex(),
                "archive_name": "smurf",
                "remote_path": f"{ACTION}/outputs/{file.path.name}",
                # When it was entered, which may be in the next timecode.
                "timestamp": 1589600001.5,
                "failed_copy_attempts": 0,
                "deletable": True,
                "ignore": False,
            } | changes
            names, marks = ", ".join(f'"{name}"' for name in values), ", ".join("?" * len(values))
            connection.execute(f"INSERT INTO supersync_v0 ({names}) VALUES ({marks})", list(values.values()))
    connection.close()


def test_what_suprsync_has_not_copied_is_archived_and_what_it_has_is_adopted(either_stage: PrivateSite) -> None:
    stage = either_stage
    stage.sql(f"GRANT INSERT ON {stage.database}.pysmurf_files TO '{stage.user}'@'%'")
    waiting, plot, copied = stage.file("1589517300_iv.npy"), stage.file("iv.png"), stage.file("copied.npy")
    loose, ignored, stream, strange = (stage.file(name) for name in ("1589517311_a.yml", "ignored", "s.g3", "strange"))
    gone = stage.file("gone.npy")
    gone.path.unlink()
    database = stage.directory / "suprsync.db"
    suprsync(
        database,
        (waiting, {}),
        (plot, {"remote_path": f"{ACTION}/plots/iv.png"}),
        (loose, {"remote_path": "15895/crate1slot2/None_None/outputs/1589517311_a.yml"}),
        (ignored, {"ignore": True}),
        (stream, {"archive_name": "timestreams", "remote_path": "15895/stream/s.g3"}),
        (strange, {"remote_path": "elsewhere/strange"}),
        (gone, {}),
        (copied, {"copied": 1589600002.0, "remote_md5sum": copied.md5.hex()}),
    )
    # Given what suprsync has copied, in the archive, and no longer on the readout server,
    place = stage.data_dir / ACTION / "outputs" / "copied.npy"
    place.parent.mkdir(parents=True)
    place.write_bytes(copied.content)
    copied.path.unlink()
    # when the rest is registered,
    words = ("register", "--from-suprsync", str(database), "--target", TARGET, *stage.flags(target=None))
    done = ask(stage, *words)
    assert done.returncode == 3
    assert "registered 3 files, 0 already known, 2 unusable" in done.stdout
    assert f"{strange.path}: its path at suprsync's destination is 'elsewhere/strange'" in done.stdout
    assert f"{gone.path}: No such file or directory" in done.stdout
    # and once more, with what was copied,
    again = ask(stage, *words, "--all")
    assert "registered 2 files, 3 already known, 1 unusable" in again.stdout
    ids = [int(row[0]) for row in stage.sql("SELECT id FROM pysmurf_files WHERE path NOT LIKE '%gone%' ORDER BY id")]
    with stage.service():
        rows = stage.wait_archived(*ids)
    # then each is archived where suprsync would have put it, and the copied one is adopted.
    assert [row.path.removeprefix(f"{stage.data_dir}/") for row in rows] == [
        f"{ACTION}/outputs/1589517300_iv.npy",
        f"{ACTION}/plots/iv.png",
        "15895/crate1slot2/1589517311_None/outputs/1589517311_a.yml",
        f"{ACTION}/outputs/copied.npy",
    ]
    assert stage.history(ids[-1])[-1]["result"] == "adopted"


def test_what_is_missing_or_no_such_database_is_named(stage: PrivateSite) -> None:
    for words, said in (
        (("register", "--action", "a", "--pub-id", "p"), "PATH is missing; fix: "),
        (("register", "x", "--pub-id", "p"), "--action is missing"),
        (("register", "x", "--action", "a", "--pub-id", "p", "--all"), "--all is for --from-suprsync"),
        (("register", "x", "--from-suprsync", "f"), "--from-suprsync has paths, actions and publishers itself"),
        (("register", "--from-suprsync", "/nowhere", "--target", "a"), "is not the database of socs' monitor"),
    ):
        done = stage.command(*words)
        assert (done.returncode, said in done.stderr) == (2, True), (words, done.stderr)
