"""A hostile readout server: its data, messages and files affect nothing beyond its own rows."""

from __future__ import annotations

import json
import os
import shlex
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from private_site import PrivateSite, SourceFile, new_private_site
from waiting import eventually

from cdc_archiver.dispatch import health, retry_delays
from cdc_archiver.model import Scope
from cdc_archiver.sandbox import MariaDb, SshServer
from cdc_archiver.sandbox.packages import bin_directory, find


@pytest.fixture
def stage(mariadb: MariaDb, ssh_server: SshServer, tmp_path: Path) -> Iterator[PrivateSite]:
    with new_private_site(mariadb, ssh_server, tmp_path) as made:
        yield made
        ssh_server.authorize()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries come in a moment."""
    monkeypatch.setattr(retry_delays, "delay_after", lambda delays, tries: 0.3)
    for scope in (Scope.SOURCE, Scope.CONFIGURATION, Scope.DESTINATION):
        monkeypatch.setitem(health._PAUSES, scope, (0.3, 1.0))


def replace_rsync(stage: PrivateSite, body: str) -> None:
    """Replaces rsync on the readout server.

    Args:
        body: of a shell script; ``$real`` is the real rsync, ``$evil`` the attacker's directory.
    """
    directory = stage.directory / "hostile-bin"
    directory.mkdir()
    (stage.directory / "evil").mkdir()
    program = directory / "rsync"
    true = find("rsync")
    real = bin_directory() / "rsync" if true.private else true.path
    program.write_text(f"#!/bin/sh\nreal={shlex.quote(str(real))}\nevil={stage.directory}/evil\n{body}\n")
    program.chmod(0o755)
    stage.ssh.authorize(path=f"{directory}:{bin_directory()}:/usr/local/bin:/usr/bin:/bin")


def evil_twin(stage: PrivateSite, file: SourceFile) -> Path:
    """The path of a file in the attacker's tree."""
    twin = stage.directory / "evil" / str(file.path).lstrip("/")
    twin.parent.mkdir(parents=True)
    return twin


OTHER_ROOT = 'for last; do :; done; set -- $(echo "$*" | sed "s, [^ ]*$,,"); exec $real "$@" "$evil/$last"'
"""Serves the requested files from another tree. The arguments of a server side have no blanks."""
OTHER_LIST = "exec $real --server --sender -logDtpre.iLsfxCIvu --copy-unsafe-links --numeric-ids . $evil/"
"""Sends a tree of its own, whatever is requested."""


@dataclass
class Trick:
    """How a hostile source behaves instead of serving its files.

    Attributes:
        script: replaces rsync.
        reasons: possible reasons of the failure.
        twin: kind of the entry in the attacker's tree at the path of the file.
    """

    script: str
    reasons: set[str]
    twin: str = "other content"


TRICKS = {
    "another content": Trick(OTHER_ROOT, {"changed"}),
    "a link to a secret of the storage node": Trick(OTHER_ROOT, {"not_a_file"}, "link"),
    "a pipe": Trick(OTHER_ROOT, {"not_a_file"}, "pipe"),
    "a directory": Trick(OTHER_ROOT, {"not_a_file"}, "directory"),
    "files that were not requested": Trick(OTHER_LIST, {"link_lost", "rsync_refused"}, "link"),
    "noise in place of the protocol": Trick("head -c 300000 /dev/urandom", {"link_lost", "rsync_refused"}),
    "endless output": Trick("yes 'no such thing' | head -c 3000000 >&2; exit 1", {"stalled"}),
    "silence": Trick("exec sleep 8", {"stalled", "link_lost"}),
    "nothing": Trick("exit 0", {"link_lost"}),
}


@pytest.mark.parametrize("name", TRICKS)
def test_a_hostile_source_gets_nothing_into_the_archive(stage: PrivateSite, name: str) -> None:
    # Given a hostile readout server, and secrets on the storage node,
    trick = TRICKS[name]
    secret = stage.directory / "secret"
    secret.write_text("the storage node's own")
    replace_rsync(stage, trick.script)
    file = stage.file("file.npy")
    twin = evil_twin(stage, file)
    match trick.twin:
        case "link":
            twin.symlink_to(secret)
            (stage.directory / "evil" / "more").symlink_to("/etc")
        case "pipe":
            os.mkfifo(twin)
        case "directory":
            twin.mkdir()
            (twin / "inside").write_text("x")
        case _:
            twin.write_text("of the attacker's making")
    # when its file is wanted,
    (id_,) = stage.register(file)
    with stage.service(until=None, stall_timeout=1.5, io_timeout=1, max_attempts=2) as service:
        tried = lambda: sum(service.metric("copy_failures_total", reason=reason) for reason in trick.reasons)
        eventually(tried, f"a try fails with one of {trick.reasons}")
        # then nothing that it sent is archived,
        assert stage.row(id_).copied == 0
        assert service.get("/healthz")[0] == 200
    assert stage.archived_files() == []
    assert [path for path in stage.data_dir.rglob("*") if path.is_symlink() or path.is_fifo()] == []
    assert stage.row(id_).path == str(file.path)
    # a failed attempt counts only where the failure concerns this one file,
    concerns_file = {"changed", "not_a_file"} & trick.reasons
    assert bool(stage.row(id_).attempts) == bool(concerns_file)
    # and when the server is good again, the file is archived.
    stage.ssh.authorize()
    stage.sql("UPDATE pysmurf_files SET failed_copy_attempts = 0")
    with stage.service():
        stage.wait_archived(id_)
    assert stage.place(file).read_bytes() == file.content


def test_messages_of_a_hostile_source_are_quoted_and_never_obeyed(stage: PrivateSite) -> None:
    # Given a source whose messages imitate ssh, a log and a terminal,
    messages = (
        'Load key "/etc/shadow": bad permissions',
        "2026-01-01T00:00:00Z [info] archived path=/etc/passwd",
        "\x1b[2J\x1b]0;owned\x07",
        'rsync: [sender] link_stat "$(touch owned)" failed: \'; DROP TABLE pysmurf_files; -- (2)',
        '<script>alert(1)</script>{"event": "archived"}',
    )
    script = "\n".join(f"printf '%s\\n' {shlex.quote(message)} >&2" for message in messages)
    replace_rsync(stage, f"{script}\nexit 12")
    (id_,) = stage.register(stage.file("file.npy"))
    # when it is asked for a file,
    with stage.program(until="no source", log_format="json", log_level="debug") as service:
        # then each message is one value on one line, wherever it is shown,
        service.status()
        assert "owned" not in {path.name for path in Path.cwd().iterdir()}
        assert "\x1b" not in service.get("/readyz")[1]
        assert service.get("/readyz")[1].count("\n") == 1
        (log,) = stage.directory.glob("program-*.log")
        lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert "archived" not in {line["event"] for line in lines}
    assert {line["event"] for line in lines} >= {"source_down"}
    # no attempt has failed, and no hint repeats the attacker's text.
    assert stage.row(id_).attempts == 0
    assert not [line for line in lines if "chmod 600 /etc/shadow" in json.dumps(line)]


def test_modes_of_the_source_do_not_get_into_the_archive(stage: PrivateSite) -> None:
    files = {mode: stage.file(f"{mode:o}.npy") for mode in (0o6777, 0o4755, 0o2755, 0o1777, 0o600, 0o444, 0o400)}
    directory = stage.file("sticky/file.npy")
    for mode, file in files.items():
        file.path.chmod(mode)
    directory.path.parent.chmod(0o3777)
    with stage.service(chmod="D750,F640"):
        stage.wait_archived(*stage.register(*files.values(), directory))
    assert {stat.S_IMODE(path.stat().st_mode) for path in stage.archived_files()} == {0o640}
    assert {stat.S_IMODE(parent.stat().st_mode) for path in stage.archived_files() for parent in path.parents[:4]} == {
        0o750
    }


def test_a_host_that_nobody_knows_is_not_trusted_and_no_file_learns_of_it(stage: PrivateSite) -> None:
    # Given no trusted host key at all,
    known = stage.directory / "known_hosts"
    known.write_text("# nobody\n")
    own = Path("~/.ssh").expanduser()
    before = sorted((str(path), path.stat().st_mtime_ns) for path in own.glob("*")) if own.is_dir() else []
    (id_,) = stage.register(stage.file("file.npy"))
    # when a file is wanted,
    with stage.service(until="no source", known_hosts=known) as service:
        assert service.status()["sources"][0]["state"]["reason"] == "host_key"
    # then nothing was fetched, and the host is as unknown as before.
    assert known.read_text() == "# nobody\n"
    assert sorted(path.name for path in stage.directory.iterdir()) == [
        ".archive.cdc_archiver",
        "archive",
        "known_hosts",
        "readout",
    ]
    after = sorted((str(path), path.stat().st_mtime_ns) for path in own.glob("*")) if own.is_dir() else []
    assert after == before
    assert (stage.row(id_).copied, stage.row(id_).attempts) == (0, 0)


def test_a_restricted_key_is_enough_and_good_for_nothing_else(stage: PrivateSite) -> None:
    # Given a key that may read the files and nothing else,
    private = stage.directory / "private"
    private.write_text("of the readout server")
    stage.ssh.authorize(read_only=stage.sources)
    file = stage.file("deep/er/file $(x).npy")
    # when a file is registered, then it is archived.
    with stage.service(restricted_key=True, source_root=str(stage.sources)):
        stage.wait_archived(*stage.register(file))
    assert stage.place(file).read_bytes() == file.content
    # Whoever takes the key from the storage node can write nothing there, read nothing else, and run nothing.
    login = shlex.join(stage.ssh.command()[:-1])
    there = f"{stage.ssh.user}@{stage.ssh.host}"
    rsync = [str(word) for word in find("rsync").command("-e", login)]
    loot = stage.directory / "loot"
    for attempt in (
        [*rsync, str(private), f"{there}:/planted"],
        [*rsync, "--remove-source-files", f"{there}:/deep/er/", f"{loot}/"],
        [*rsync, f"{there}:{private}", f"{loot}/"],
        [*rsync, f"{there}:/../private", f"{loot}/"],
        [*rsync, f"{there}:/etc/passwd", f"{loot}/"],
        stage.ssh.command("cat", str(private)),
        stage.ssh.command("touch", str(stage.sources / "planted")),
        [*stage.ssh.command("-s", "sftp")],
        [*stage.ssh.command()[:-1], "-N", "-o", "ExitOnForwardFailure=yes", "-R", "0:127.0.0.1:1", there],
    ):
        done = subprocess.run(attempt, check=False, stdin=subprocess.DEVNULL, capture_output=True, timeout=30)
        assert done.returncode != 0, attempt
        assert b"of the readout server" not in done.stdout
    assert not loot.exists() or [path for path in loot.rglob("*") if path.is_file()] == []
    assert [path for path in stage.sources.rglob("*") if path.is_file()] == [file.path]
    assert file.path.read_bytes() == file.content
