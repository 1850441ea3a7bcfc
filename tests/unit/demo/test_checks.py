"""The demo's checks find everything that can be wrong, name the file, and make the demo fail."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pytest
from archive_places import marker_of, staging_of

from cdc_archiver.demo import entry_point as demo
from cdc_archiver.demo.checks import Check, check_archive
from cdc_archiver.demo.instrument import RegisteredFile, row_values
from cdc_archiver.demo.session import plan, write
from cdc_archiver.errors import ExitStatus
from cdc_archiver.settings.types import FileModes

MODES = FileModes(directories=0o750, files=0o640)
ROWS, PATHS, CONTENTS, MODES_SET, NO_STRAYS, SOURCE = range(6)


@dataclass
class ArchiveFixture:
    """A correct archive, for tests to break."""

    source: Path
    data_dir: Path
    registered: list[RegisteredFile] = field(default_factory=list)
    rows: dict[int, dict[str, Any]] = field(default_factory=dict)

    def check_archive(self) -> list[Check]:
        return check_archive(self.registered, self.rows, self.data_dir, MODES, self.source)

    def archived(self, id_: int) -> Path:
        return Path(self.rows[id_]["path"])


@pytest.fixture
def archive(tmp_path: Path) -> ArchiveFixture:
    """Twenty archived files, two of them with the same name."""
    archive = ArchiveFixture(tmp_path / "readout", tmp_path / "archive")
    (staging_of(archive.data_dir) / "source" / "small-0").mkdir(parents=True)
    marker_of(archive.data_dir).touch()
    for id_, planned in enumerate(plan(20, 5000).files, 1):
        file = write(planned, archive.source)
        values = row_values(file)
        archive.registered.append(RegisteredFile(id_, file, values))
        seconds = planned.action_timestamp
        if seconds is None:
            prefix = planned.name.split("_")[0]
            seconds = int(prefix) if prefix.isdigit() else planned.timestamp
        directory = f"{str(planned.timestamp)[:5]}/{planned.pub_id}/{seconds}_{planned.action}"
        path = archive.data_dir / directory / ("plots" if planned.plot else "outputs") / planned.name
        if path.exists():
            path = path.with_name(f"{path.name}.1")
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file.path, path)
        path.chmod(0o640)
        archive.rows[id_] = {"id": id_, **values, "path": str(path), "copied": 1}
    for directory_made, _, _ in os.walk(archive.data_dir):
        if ".incoming" not in directory_made:
            os.chmod(directory_made, 0o750)
    return archive


def test_a_correct_archive_passes(archive: ArchiveFixture) -> None:
    checks = archive.check_archive()

    assert [check.problems for check in checks] == [()] * 6
    assert "20 rows" in checks[ROWS].text
    assert "1 got .1" in checks[PATHS].text


def change(archive: ArchiveFixture) -> Path:
    path = archive.archived(5)
    path.write_bytes(bytes(path.stat().st_size))
    return path


def cut_short(archive: ArchiveFixture) -> Path:
    path = archive.archived(5)
    os.truncate(path, path.stat().st_size - 1)
    return path


def remove(archive: ArchiveFixture) -> Path:
    archive.archived(5).unlink()
    return archive.archived(5)


def take_a_directory_for_it(archive: ArchiveFixture) -> Path:
    archive.archived(5).unlink()
    archive.archived(5).mkdir(0o750)
    return archive.archived(5)


def swap_two_of_one_size(archive: ArchiveFixture) -> Path:
    for id_ in (5, 6):
        archive.archived(id_).write_bytes(archive.registered[id_ % 2].file.path.read_bytes())
    return archive.archived(6)


def say_not_copied(archive: ArchiveFixture) -> Path:
    archive.rows[5]["copied"] = 0
    return archive.registered[4].file.path


def count_a_failed_attempt(archive: ArchiveFixture) -> Path:
    archive.rows[5]["failed_copy_attempts"] = 1
    return archive.registered[4].file.path


def lose_the_action_time(archive: ArchiveFixture) -> Path:
    archive.rows[5]["action_timestamp"] = None
    return archive.registered[4].file.path


def change_the_registered_md5(archive: ArchiveFixture) -> Path:
    archive.rows[5]["md5sum"] = bytes(16)
    return archive.registered[4].file.path


def delete_the_row(archive: ArchiveFixture) -> Path:
    # Its file is then one that no row names.
    archive.archived(5).unlink()
    del archive.rows[5]
    return archive.registered[4].file.path


def add_a_row(archive: ArchiveFixture) -> Path:
    archive.rows[99] = {**archive.rows[5], "id": 99}
    return archive.archived(5)


def archive_in_another_place(archive: ArchiveFixture) -> Path:
    path = archive.archived(5).rename(archive.archived(5).with_name("other.npy"))
    archive.rows[5]["path"] = str(path)
    return path


def leave_a_gap_in_the_numbers(archive: ArchiveFixture) -> Path:
    (numbered,) = (path for row in archive.rows.values() if (path := Path(row["path"])).suffix == ".1")
    id_ = next(id_ for id_ in archive.rows if archive.archived(id_) == numbered)
    path = numbered.rename(numbered.with_suffix(".2"))
    archive.rows[id_]["path"] = str(path)
    return path


def open_it_to_all(archive: ArchiveFixture) -> Path:
    archive.archived(5).chmod(0o666)
    return archive.archived(5)


def close_a_directory(archive: ArchiveFixture) -> Path:
    archive.archived(5).parent.chmod(0o700)
    return archive.archived(5).parent


def archive_an_unregistered_file(archive: ArchiveFixture) -> Path:
    path = archive.archived(5).with_name("stray.npy")
    path.touch()
    path.chmod(0o640)
    return path


def leave_staged(archive: ArchiveFixture) -> Path:
    path = staging_of(archive.data_dir) / "source" / "small-0" / "part.npy"
    path.touch()
    return path


def change_at_the_source(archive: ArchiveFixture) -> Path:
    path = archive.registered[4].file.path
    path.write_bytes(bytes(path.stat().st_size))
    return path


def touch_at_the_source(archive: ArchiveFixture) -> Path:
    path = archive.registered[4].file.path
    os.utime(path, ns=(0, archive.registered[4].file.modified + 1))
    return path


def remove_at_the_source(archive: ArchiveFixture) -> Path:
    path = archive.registered[4].file.path
    path.unlink()
    return path


def write_at_the_source(archive: ArchiveFixture) -> Path:
    path = archive.source / "by_the_archiver"
    path.touch()
    return path


@pytest.mark.parametrize(
    ("break_it", "check"),
    [
        (say_not_copied, ROWS),
        (count_a_failed_attempt, ROWS),
        (lose_the_action_time, ROWS),
        (change_the_registered_md5, ROWS),
        (delete_the_row, ROWS),
        (add_a_row, ROWS),
        (archive_in_another_place, PATHS),
        (leave_a_gap_in_the_numbers, PATHS),
        (change, CONTENTS),
        (cut_short, CONTENTS),
        (remove, CONTENTS),
        (swap_two_of_one_size, CONTENTS),
        (open_it_to_all, MODES_SET),
        (close_a_directory, MODES_SET),
        (archive_an_unregistered_file, NO_STRAYS),
        (leave_staged, NO_STRAYS),
        (change_at_the_source, SOURCE),
        (touch_at_the_source, SOURCE),
        (remove_at_the_source, SOURCE),
        (write_at_the_source, SOURCE),
    ],
)
def test_every_error_is_found_and_names_the_file(
    archive: ArchiveFixture, break_it: Callable[[ArchiveFixture], Path], check: int
) -> None:
    path = break_it(archive)

    checks = archive.check_archive()

    assert [number for number, asked in enumerate(checks) if not asked.passed] == [check]
    assert any(str(path) in problem for problem in checks[check].problems)


def test_a_directory_is_not_an_archived_file(archive: ArchiveFixture) -> None:
    path = take_a_directory_for_it(archive)

    problems = archive.check_archive()[CONTENTS].problems

    assert len(problems) == 1
    assert str(path) in problems[0]


def test_a_symbolic_link_to_the_right_content_is_not_an_archived_file(archive: ArchiveFixture) -> None:
    path = archive.archived(5)
    path.unlink()
    path.symlink_to(archive.registered[4].file.path)

    checks = archive.check_archive()

    assert str(path) in checks[CONTENTS].problems[0]
    assert str(path) in checks[NO_STRAYS].problems[0]


def test_rows_of_one_path_may_come_in_any_order(archive: ArchiveFixture) -> None:
    numbered = next(id_ for id_ in archive.rows if archive.archived(id_).suffix == ".1")
    plain = next(id_ for id_ in archive.rows if archive.rows[numbered]["path"] == f"{archive.rows[id_]['path']}.1")
    paths = {id_: archive.rows[id_]["path"] for id_ in (numbered, plain)}
    for id_, other in ((numbered, plain), (plain, numbered)):
        archive.rows[id_]["path"] = paths[other]
        shutil.copyfile(archive.registered[id_ - 1].file.path, paths[other])

    assert all(check.passed for check in archive.check_archive())


class FakeSandbox:
    """Servers that do not run, and whose directory is removed."""

    def __init__(self, kind: str) -> None:
        self.directory = Path("/nonexistent")
        self.database = self.ssh = self
        self.running = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("check", "status"),
    [
        (Check("files have their md5"), ExitStatus.DONE),
        (Check("files have their md5", ("/archive/15895/wrong.npy",)), ExitStatus.INTERNAL_ERROR),
    ],
)
def test_the_demo_fails_when_a_check_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], check: Check, status: ExitStatus
) -> None:
    class FakePlay:
        def __init__(self, *_: object) -> None:
            pass

        def run(self) -> list[Check]:
            return [check]

    monkeypatch.setattr(demo, "_fetch", lambda kind: None)
    monkeypatch.setattr(demo, "Sandbox", FakeSandbox)
    monkeypatch.setattr(demo, "Scenario", FakePlay)

    assert demo.run_demo("mariadb", 20, "1M") is status

    out = capsys.readouterr().out
    assert ("passed in" in out) is check.passed
    # Named once when it was found, and once at the end.
    assert out.count("/archive/15895/wrong.npy") == (0 if check.passed else 2)


def test_a_server_or_a_file_left_behind_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    class Untidy(FakeSandbox):
        def __init__(self, kind: str) -> None:
            super().__init__(kind)
            self.directory = tmp_path
            self.running = True
            self.log = tmp_path / "mariadb.log"

    class Nothing:
        def __init__(self, *_: object) -> None:
            pass

        def run(self) -> list[Check]:
            return []

    monkeypatch.setattr(demo, "_fetch", lambda kind: None)
    monkeypatch.setattr(demo, "Sandbox", Untidy)
    monkeypatch.setattr(demo, "Scenario", Nothing)

    assert demo.run_demo("mariadb", 20, "1M") is ExitStatus.INTERNAL_ERROR

    out = capsys.readouterr().out
    assert "mariadb still runs" in out
    assert f"{tmp_path} still exists" in out
