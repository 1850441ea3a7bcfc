"""`shadow`: runs alongside the old archiver, which these tests play, and writes nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from archive_places import marker_of
from asking import ask
from files_table import TABLE
from private_site import HISTORY, PrivateSite, SourceFile
from services import COMMAND
from waiting import PATIENCE, eventually

from cdc_archiver.commands import shadow as shadow_module
from cdc_archiver.commands.hashing import hash_file


class OldArchiver:
    """What the polling agent does to a row, and to the disk."""

    def __init__(self, stage: PrivateSite) -> None:
        self._stage = stage

    def archive(self, id_: int, file: SourceFile, place: Path | None = None, content: bytes | None = None) -> Path:
        place = place or self._stage.place(file)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(file.content if content is None else content)
        self._stage.sql(f"UPDATE {TABLE} SET path = %s, copied = 1 WHERE id = %s", (str(place), id_))
        return place

    def give_up(self, id_: int) -> None:
        self._stage.sql(f"UPDATE {TABLE} SET failed_copy_attempts = 5 WHERE id = %s", (id_,))


class Follower:
    """``shadow --json`` as a process."""

    def __init__(self, process: subprocess.Popen[str], output: Path, errors: Path) -> None:
        self._process, self._output, self._errors = process, output, errors

    def seen(self) -> list[dict[str, Any]]:
        whole = self._output.read_text().rpartition("\n")[0]
        return [json.loads(line) for line in whole.splitlines()]

    def wait_for(self, id_: int, comparison: str) -> dict[str, Any]:
        def found() -> dict[str, Any] | None:
            assert self._process.poll() is None, self._errors.read_text()
            return next((one for one in self.seen() if one["id"] == id_ and one["comparison"] == comparison), None)

        return eventually(found, f"{id_}: {comparison}")

    def wait_for_message(self, message: str) -> None:
        eventually(lambda: message in self._errors.read_text(), f"it prints {message!r}")

    def end(self) -> tuple[int, dict[str, Any]]:
        """Ctrl-C; its status and its sums."""
        self._process.send_signal(signal.SIGINT)
        status = self._process.wait(PATIENCE)
        assert "Traceback" not in self._errors.read_text()
        sums: dict[str, Any] = self.seen()[-1]["sums"]
        return status, sums


@contextmanager
def following(stage: PrivateSite, *arguments: str) -> Iterator[Follower]:
    output, errors = stage.directory / "shadow.jsonl", stage.directory / "shadow.err"
    with output.open("w") as out, errors.open("w") as err:
        process = subprocess.Popen(
            [*COMMAND, "shadow", "--json", *arguments, *stage.flags()],
            env=stage.environment() | {"PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            text=True,
        )
        try:
            yield Follower(process, output, errors)
        finally:
            process.kill()
            process.wait()


def test_it_prints_what_it_would_do_and_compares_it_with_the_old_archivers_results(either_stage: PrivateSite) -> None:
    stage = either_stage
    old = OldArchiver(stage)
    files = stage.files(6)
    before = stage.files(1, prefix="before")
    (waits,) = stage.register(*before)
    with following(stage) as shadow:
        shadow.wait_for_message("following the binary log")
        # What waits already is told,
        assert shadow.wait_for(waits, "would archive")["ours"] == str(stage.place(before[0]))
        # and what is registered now, with what we would not take.
        ids = stage.register(*files[:5])
        (bad,) = stage.register(files[5], pub_id="../..")
        for id_, file in zip(ids, files, strict=False):
            assert shadow.wait_for(id_, "would archive")["ours"] == str(stage.place(file))
        assert "pub_id" in shadow.wait_for(bad, "would refuse")["detail"]
        # The old one does the same, takes another number, takes another path, brings another content, gives up.
        old.archive(ids[0], files[0])
        old.archive(ids[1], files[1], Path(f"{stage.place(files[1])}.1"))
        other = old.archive(ids[2], files[2], stage.place(files[2]).parents[1] / "plots" / files[2].path.name)
        old.archive(ids[3], files[3], content=b"damaged")
        old.give_up(ids[4])
        old.archive(bad, files[5], stage.directory / "outside.npy")
        assert shadow.wait_for(ids[0], "agree")["theirs"] == str(stage.place(files[0]))
        shadow.wait_for(ids[1], "agree")
        differs = shadow.wait_for(ids[2], "differ")
        assert (differs["ours"], differs["theirs"]) == (str(stage.place(files[2])), str(other))
        assert "its file has the md5" in shadow.wait_for(ids[3], "differ")["detail"]
        assert "given up after 5 attempts" in shadow.wait_for(ids[4], "old failed")["detail"]
        assert "this archiver would refuse it: pub_id" in shadow.wait_for(bad, "differ")["detail"]
        status, sums = shadow.end()
    assert status == 3
    assert sums == {
        "agree": 2,
        "differ": 3,
        "would_refuse": 1,
        "old_failed": 1,
        "waiting": 1,
        "refused_and_archived": 1,
        "hashed": 3,
    }
    # It has written nothing: no history, no row, no file of its own; and it stood in nobody's way.
    assert stage.sql(f"SHOW TABLES LIKE '{HISTORY}'") == []
    assert stage.row(waits).attempts == 0
    assert not marker_of(stage.data_dir).exists()


def test_it_runs_alongside_the_service_and_needs_no_write_privilege(stage: PrivateSite) -> None:
    account = f"'{stage.user}'@'%'"
    with stage.service() as service:
        service.wait_settled()
        with following(stage) as shadow:
            shadow.wait_for_message("following the binary log")
            ids = stage.register(*stage.files(3))
            stage.wait_archived(*ids)
            for id_ in ids:
                shadow.wait_for(id_, "agree")
            assert shadow.end()[0] == 0
    stage.server.execute(f"REVOKE UPDATE ON {stage.database}.* FROM {account}")
    assert ask(stage, "shadow", "--once", *stage.flags()).returncode == 0


def test_once_compares_the_tables_present_content(stage: PrivateSite, monkeypatch: pytest.MonkeyPatch) -> None:
    old = OldArchiver(stage)
    files = stage.files(4)
    ids = stage.register(*files[:3])
    stage.register(files[3], instance_id="another-monitor")
    old.archive(ids[0], files[0])
    old.archive(ids[1], files[1], stage.data_dir / "elsewhere" / "name.npy")
    words = ask(stage, "shadow", "--once", *stage.flags())
    assert words.returncode == 3
    lines = words.stdout.splitlines()
    assert lines[0] == f"agree         {ids[0]}  {stage.place(files[0])} -> {stage.place(files[0])}"
    assert lines[1].startswith(f"differ        {ids[1]}  ")
    assert lines[2] == f"would archive {ids[2]}  {files[2].path} -> {stage.place(files[2])}"
    assert lines[3] == "agree 1, differ 1, would refuse 0, old failed 0, waiting 1"
    assert lines[4] == "read no file: compared only the paths"
    # The archive may be elsewhere on this machine; what is damaged there is seen when it is read.
    stage.sql(f"DELETE FROM {TABLE} WHERE id = %s", (ids[1],))
    moved = stage.directory / "moved"
    stage.data_dir.rename(moved)
    found = ["shadow", "--once", "--hash", "--json", *stage.flags()]
    assert ask(stage, *found).returncode == 2
    assert ask(stage, *found, "--archive-here", str(moved)).returncode == 0
    (moved / stage.place(files[0]).relative_to(stage.data_dir)).write_bytes(b"damaged")
    done = ask(stage, *found, "--archive-here", str(moved))
    assert done.returncode == 3
    assert json.loads(done.stdout.splitlines()[-1])["sums"]["differ"] == 1

    # Ctrl-C while a file is read is no judgement of it.
    def interrupted(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return hash_file(*arguments)

    monkeypatch.setattr(shadow_module, "hash_file", interrupted)
    done = ask(stage, *found, "--archive-here", str(moved))
    assert done.returncode == 130, done.stderr
    sums = json.loads(done.stdout.splitlines()[-1])["sums"]
    assert (sums["agree"], sums["differ"], sums["hashed"]) == (0, 0, 0)


def test_without_the_replication_privilege_it_polls(stage: PrivateSite) -> None:
    stage.server.execute(f"REVOKE REPLICATION SLAVE ON *.* FROM '{stage.user}'@'%'")
    (file,) = stage.files(1)
    with following(stage, "--poll-interval", "300ms") as shadow:
        shadow.wait_for_message("polling the table, because there is no stream: ")
        (id_,) = stage.register(file)
        OldArchiver(stage).archive(id_, file)
        shadow.wait_for(id_, "agree")
        assert shadow.end()[0] == 0
