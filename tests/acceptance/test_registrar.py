"""`cdc-archiver monitor` as an operator sees it: announced files are archived, settings that lack something are named."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import real_publisher
from asking import ask
from private_database import PrivateDatabase
from private_site import Done, PrivateSite, run_here
from registering import FakePublisher, RegistrarSite
from services import COMMAND, Program
from waiting import eventually

from cdc_archiver.preflight import registrar_checks
from cdc_archiver.registrar import lifecycle


def site_of(stage: PrivateSite) -> RegistrarSite:
    """What the registrar needs at a site."""
    (stage.directory / "m").mkdir()
    site = RegistrarSite(PrivateDatabase(stage.server, stage.database, stage.user), stage.directory / "m")
    site.sources = stage.sources
    return site


def registrar_of(stage: PrivateSite, *more: str) -> Program:
    """The registrar as a process, with grants of its own."""
    site = site_of(stage)
    flags = site.flags(udp_port=0)
    return Program(
        [*COMMAND, "monitor", *flags, *more], site.environment(), stage.directory / "monitor.log", "registering"
    )


def test_announced_files_are_archived_with_the_right_path(either_stage: PrivateSite) -> None:
    stage = either_stage
    with registrar_of(stage) as registrar, stage.service() as service:
        service.wait_settled()
        with FakePublisher(registrar_port(registrar)) as publisher:
            # When the instrument announces a file, a plot, and a file outside of an action,
            files = [stage.file(name) for name in ("iv.npy", "iv.png", "config.yml")]
            publisher.announce(files[0].path.with_suffix(""))
            publisher.announce(files[1].path, plot=True, format="png")
            publisher.announce(files[2].path, action=None, action_ts=None)
            eventually(lambda: stage.count("copied = 1") == 3, "they are archived")
        registrar.signal(signal.SIGTERM)
        assert registrar.wait() == 0
    # then each is where readers look for it.
    place = stage.data_dir / "15895" / "crate1slot2"
    assert [str(path.relative_to(place)) for path in stage.archived_files()] == [
        "1589517264_None/outputs/config.yml",
        "1589517264_take_iv/outputs/iv.npy",
        "1589517264_take_iv/plots/iv.png",
    ]
    assert stage.sql("SELECT waiting, lost, gaps, stopped FROM cdc_archiver_registrars") == [(0, 0, 0, 1)]


def registrar_port(registrar: Program) -> int:
    (line,) = [line for line in registrar.said.splitlines() if "udp://" in line]
    return int(line.partition("udp://127.0.0.1:")[2].split()[0])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ((), "no target is set; fix: --target NAME"),
        (("--target", "a", "--target", "b", "--source-root", "/data"), "a registrar has one target, not 2 (a, b)"),
        (("--target", "a"), "source_root is not set; fix: --source-root DIRECTORY"),
        (("--target", "a", "--source-root", "/data", "--forward", "nowhere"), "the address to forward to is not known"),
        (
            ("--target", "a", "--source-root", "/data", "--udp-host", "203.0.113.1"),
            "cannot listen on 203.0.113.1:0 (UDP)",
        ),
        (("--retry-lost",), "no spool"),
    ],
)
def test_what_it_lacks_is_named(mariadb: Any, tmp_path: Path, flags: tuple[str, ...], said: str) -> None:
    spool = tmp_path / "state" / "spool"
    done = run_here(["monitor", "--spool", str(spool), "--udp-port", "0", "--http-port", "0", *flags], {})
    assert done.returncode == 2
    assert said in done.stderr


def test_a_container_needs_a_spool_that_outlives_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "in_container", lambda: True)
    done = run_here(["monitor", "--target", "a", "--source-root", "/data"], {})
    assert (done.returncode, "on a volume of its own" in done.stderr) == (2, True)


def test_check_names_what_it_needs_with_the_fix(either_stage: PrivateSite, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = either_stage
    site = site_of(stage)
    stage.file("a.npy")

    def check(*more: str) -> Done:
        return run_here(["monitor", "--check", *site.flags(udp_port=0), *more], site.environment())

    # Given everything that it needs, only the receive buffer may be too small,
    done = check()
    assert done.returncode == 0, done.stdout
    assert "ok      grants    SELECT, INSERT, UPDATE, DELETE on the table cdc_archiver_registered" in done.stdout
    # when grants are missing, the port is taken, and the disk of the spool is volatile,
    account = f"'{site.user}'@'%'"
    stage.sql(f"REVOKE INSERT ON {stage.database}.pysmurf_files FROM {account}")
    stage.sql(f"REVOKE ALL ON {stage.database}.cdc_archiver_registered FROM {account}")
    monkeypatch.setattr(registrar_checks, "kind_of", lambda device: "overlay")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        done = check("--udp-port", str(other.getsockname()[1]))
    # then each is named, with its fix.
    assert done.returncode == 2
    told = " ".join(done.stdout.split())
    assert "lacks INSERT on the table pysmurf_files" in told
    assert f"fix: GRANT SELECT, INSERT ON `{stage.database}`.`pysmurf_files` TO {account}" in told.replace("`@`", "'@'")
    assert "there is no table cdc_archiver_registered" in told
    assert "stop the program that listens there" in told
    assert "messages that wait there do not survive the container" in told


def test_check_says_what_the_kernel_has_no_room_for(
    mariadb: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registrar_checks, "enlarge_buffer", lambda made: 212_992)
    done = run_here(
        [
            "monitor",
            "--check",
            "--target",
            "a",
            "--source-root",
            str(tmp_path),
            "--udp-port",
            "0",
            "--spool",
            str(tmp_path / "s"),
        ],
        {"MYSQL_PORT": "1"},
    )
    assert done.returncode == 4
    told = " ".join(done.stdout.split())
    assert "the receive buffer is 106496 bytes, 92 messages of 1 kB" in told
    assert "fix: sysctl -w net.core.rmem_max=67108864" in told


def test_status_and_why_on_the_readout_server_tell_of_it(stage: PrivateSite) -> None:
    site = site_of(stage)
    spool = ("--spool", str(site.spool))
    absent = stage.sources / "absent.npy"
    with site.running() as running, running.publisher() as publisher:
        publisher.announce(stage.file("there.npy").path, absent)
        site.wait_rows(1)
        told = stage.command("status", *spool).stdout
        (id_,) = site.rows("id")[0]
        missing, there = stage.command("why", "absent.npy", *spool), stage.command("why", str(id_), *spool)
        as_json = json.loads(stage.command("why", "absent.npy", "--json", *spool).stdout)
    assert "registering, spool" in told
    assert "2 received, 1 waiting, 1 registered, 0 refused, 0 lost, 0 missing in sequences; the oldest waits" in told
    assert missing.returncode == 3
    assert f"in the registrar: {absent}: announced " in missing.stdout
    assert "waiting: no such file" in missing.stdout
    assert f"registered as row {id_}" in there.stdout
    assert len(as_json["registrar"]) == 1
    # Stopped, and without a database, `status` still says what waits.
    stopped = stage.command("status", "--mysql-port", "1", *spool)
    assert stopped.returncode == 0
    assert "not running" in stopped.stdout
    assert "1 waiting" in stopped.stdout


def test_a_rewritten_files_older_row_is_ignored_once_the_newer_one_is_archived(either_stage: PrivateSite) -> None:
    stage = either_stage
    site = site_of(stage)
    with site.running() as running, running.publisher() as publisher:
        # Given a file that was rewritten and announced again before it was copied, and one that was changed without a word,
        files = [stage.file("twice.npy"), stage.file("changed.npy")]
        publisher.announce(*(file.path for file in files))
        site.wait_rows(2)
        for file in files:
            file.path.write_bytes(b"later")
        publisher.announce(files[0].path)
        site.wait_rows(3)
        first, changed, second = (row[0] for row in site.rows("id"))
    # when the service archives,
    with stage.service(max_attempts=1) as service:
        stage.wait_archived(second)
        # then the first content of the one is ignored, and the other stays quarantined.
        assert stage.wait_attempts(first, 2000).attempts == 2000
        assert stage.wait_attempts(changed, 1).attempts == 1
        told = ask(stage, "why", str(first), *stage.flags(http_port=service.port)).stdout
    assert f"superseded: the file was rewritten, and row {second}, of its later content, is archived" in told
    assert [entry["result"] for entry in stage.history(first)] == ["charged", "ignored"]


def test_the_real_publishers_files_of_each_kind_are_archived_with_the_right_path(either_stage: PrivateSite) -> None:
    stage = either_stage
    site = site_of(stage)
    kinds = real_publisher.kinds()
    assert len(kinds) > 20
    calls, expected = [], Counter[tuple[str, ...]]()
    for number, kind in enumerate(kinds):
        ending = f".{kind.format}" if kind.format else ".png" if kind.plot else ""
        path = stage.file(f"{number}_{kind.type}{ending}").path
        announced = path.with_suffix("") if ending == ".npy" and number % 2 else path
        calls.append((str(announced), kind.type, {"format": kind.format, "plot": kind.plot}))
        action = "take_iv" if number % 5 else "None"
        expected[("crate1slot2", action, "plots" if kind.plot else "outputs", path.name)] += 1
    with stage.service(), site.running() as running:
        before = int(time.time())
        real_publisher.announce(running.port, calls)
        eventually(lambda: stage.count("copied = 1") == len(kinds), "all are archived")
        assert running.facts().gaps == 0
        assert {running.count("messages_total", type=each) for each in ("start", "log", "stop")} == {1}
    found = Counter[tuple[str, ...]]()
    for path in stage.archived_files():
        timecode, stream, action, kind_of_file, name = path.relative_to(stage.data_dir).parts
        assert timecode in (str(before)[:5], str(int(time.time()))[:5])
        seconds, _, action = action.partition("_")
        assert action == "None" or 0 <= int(seconds) - before < 60
        found[(stream, action, kind_of_file, name)] += 1
    assert found == expected
    versions = stage.sql("SELECT DISTINCT script_id, pysmurf_version, pub_id FROM pysmurf_files")
    assert versions == [("observe.py", real_publisher.VERSION, "crate1slot2")]
