"""Faults of the host, its login and the link: they cause no failed attempt, and files that did arrive count."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from copy_assertions import (
    assert_archive_is_exactly,
    assert_archived,
    assert_healthy,
    assert_no_failed_attempts,
    assert_source_down,
    failure_count,
    settings_through,
    shorten_pauses,
    wait_failures,
)
from fake_rsync import FakeRsync, ends_early
from private_site import PrivateSite, SourceFile, new_private_site
from proxy import Proxy
from waiting import eventually

from cdc_archiver.sandbox import NO_PROGRAMS, MariaDb, SshServer
from cdc_archiver.sandbox.packages import bin_directory
from cdc_archiver.transfer import copier, ssh


@pytest.fixture
def stage(
    mariadb: MariaDb, ssh_server: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[PrivateSite]:
    """A site where retries come in a moment."""
    shorten_pauses(monkeypatch)
    with new_private_site(mariadb, ssh_server, tmp_path) as made:
        yield made
        ssh_server.authorize()
        ssh_server.trust_host_key()


@pytest.fixture
def wire(ssh_server: SshServer) -> Iterator[Proxy]:
    """The network between archiver and host."""
    with Proxy(ssh_server.port) as made:
        yield made


# 255: the host.


@pytest.mark.parametrize("how", ["refuses", "hangs up", "is silent"])
def test_an_unreachable_host_is_retried_until_it_is_back(
    stage: PrivateSite, wire: Proxy, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    # Given a host that reboots: it refuses connections, closes them, or accepts them and is silent,
    monkeypatch.setattr(ssh, "CONNECT_TIMEOUT", 1.0)
    monkeypatch.setitem(ssh._OPTIONS, "ConnectTimeout", "1")
    monkeypatch.setattr(copier, "_MAX_TRIES", 1)
    {"refuses": stage.ssh.stop, "hangs up": wire.refuse, "is silent": wire.freeze}[how]()
    files = stage.files(3)
    ids = stage.register(*files)
    changes = {} if how == "refuses" else settings_through(wire, stage)
    with stage.service(until="no source", max_attempts=2, **changes) as service:
        # when it was tried more often than --max-attempts,
        wait_failures(service, "host_unreachable", 3 * len(files))
        # then the service reports only the source as down, and no attempt has failed;
        assert_source_down(service, "host_unreachable")
        assert failure_count(service, "host_unreachable") == 0
        assert_no_failed_attempts(stage)
        # and all is archived when it is back.
        {"refuses": stage.ssh.start, "hangs up": wire.accept, "is silent": wire.thaw}[how]()
        stage.wait_archived(*ids)
        assert_healthy(service)
    assert_no_failed_attempts(stage)
    assert_archived(stage, ids, files)


# 255 and 12: failures that an operator must fix.

REMOTE_PATH = f"{bin_directory()}:/usr/local/bin:/usr/bin:/bin"

CONFIGURATION_FAILURES = {
    "the key is refused": "login_refused",
    "the host has another key": "host_key",
    "rsync is not installed": "rsync_missing",
    "the key is restricted to no directory": "rsync_refused",
    "the login greets": "rsync_refused",
    "the login limits rsync's sums": "rsync_refused",
}


@pytest.mark.parametrize("failure", CONFIGURATION_FAILURES)
def test_a_failure_that_an_operator_must_fix_causes_no_failed_attempt(stage: PrivateSite, failure: str) -> None:
    # Given a host that prevents copies,
    match failure:
        case "the key is refused":
            stage.ssh.revoke()
        case "the host has another key":
            stage.ssh.change_host_key()
        case "rsync is not installed":
            stage.ssh.authorize(path=NO_PROGRAMS)
        case "the key is restricted to no directory":
            stage.ssh.authorize(read_only=stage.directory / "mistyped")
        case "the login limits rsync's sums":
            limited = FakeRsync(stage.directory / "limited")
            limited.misbehave("export RSYNC_CHECKSUM_LIST=none")
            stage.ssh.authorize(path=limited.before(REMOTE_PATH))
        case _:
            chatty = FakeRsync(stage.directory / "chatty")
            chatty.misbehave(
                'echo "Welcome to smurf-srv!"'
            )  # where a shell's start-up file prints, rsync's protocol breaks
            stage.ssh.authorize(path=chatty.before(REMOTE_PATH))
    files = stage.files(4)
    ids = stage.register(*files)
    reason = CONFIGURATION_FAILURES[failure]
    with stage.service(until="no source", max_attempts=2) as service:
        # when it was tried more often than --max-attempts,
        wait_failures(service, reason, 3 * len(files))
        # then the service reports the reason, and only the source is down,
        assert_source_down(service, reason)
        assert failure_count(service, reason) == 0
        assert_no_failed_attempts(stage)
        # and goes on when a person has fixed it.
        stage.ssh.authorize()
        stage.ssh.trust_host_key()
        stage.wait_archived(*ids)
        assert_healthy(service)
    assert_no_failed_attempts(stage)
    assert_archived(stage, ids, files)


# 10, 12, 20, 30: the link.


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (10, "rsync error: error in socket IO (code 10) at clientserver.c(139) [Receiver=3.5.0]"),
        (12, "rsync error: error in rsync protocol data stream (code 12) at io.c(232) [Receiver=3.5.0]"),
        (20, "rsync error: received SIGINT, SIGTERM, or SIGHUP (code 20) at rsync.c(726) [Receiver=3.5.0]"),
        (30, "rsync error: timeout in data send/receive (code 30) at io.c(197) [Receiver=3.5.0]"),
    ],
)
def test_files_that_arrived_before_the_link_was_lost_count(
    stage: PrivateSite, monkeypatch: pytest.MonkeyPatch, status: int, message: str
) -> None:
    # Given an rsync that transfers two files and exits with a status of a lost link,
    fake = FakeRsync(stage.directory / "fake")
    fake.misbehave(ends_early(2, status, message))
    monkeypatch.setenv("PATH", fake.before(os.environ["PATH"]))
    files = stage.files(40)
    ids = stage.register(*files)
    with stage.service(workers=1, until=None) as service:
        wait_failures(service, "link_lost")
        # then the two are archived, and the failure concerns the link and no file,
        assert_source_down(service, "link_lost")
        eventually(lambda: stage.count("copied = 1") >= 2, "files that arrived are archived")
        assert failure_count(service, "link_lost") == 0
        assert_no_failed_attempts(stage)
        # and the others follow.
        fake.behave()
        stage.wait_archived(*ids)
        assert_healthy(service)
    assert_no_failed_attempts(stage)
    assert_archived(stage, ids, files)


HALF = 250_000_000
SLACK = 30_000_000
"""Bytes in flight when the link was cut, and the overhead of ssh and rsync."""


def test_a_large_file_resumes_after_the_link_is_cut(stage: PrivateSite, wire: Proxy) -> None:
    # Given a large file, and a link that will not last for all of it,
    path = stage.sources / "large.dat"
    md5 = hashlib.md5()
    with path.open("wb") as large:
        for _ in range(50):
            part = os.urandom(HALF // 25)
            large.write(part)
            md5.update(part)
    with stage.service(**settings_through(wire, stage)) as service:
        stage.wait_archived(*stage.register(stage.file("before.npy")))
        start = wire.carried
        wire.cut_after(HALF)
        # when it is cut half-way,
        (id_,) = stage.register(SourceFile(path, b""), md5sum=md5.digest())
        (row,) = stage.wait_archived(id_, within=150)
        carried = wire.carried - start
        assert_healthy(service)
    # then it resumed: the part that was there was not transferred again.
    assert carried >= 2 * HALF, "the link was never cut"
    assert carried < 2 * HALF + SLACK
    assert wire.connections > 1
    assert row.attempts == 0
    assert_no_failed_attempts(stage)
    with Path(row.path).open("rb") as archived:
        assert hashlib.file_digest(archived, "md5").digest() == md5.digest()


# The watchdog.


@pytest.mark.parametrize("who", ["the sender", "the wire"])
def test_a_stalled_copy_is_killed_and_retried(stage: PrivateSite, wire: Proxy, who: str) -> None:
    """rsync's own timeout does not see a sender that was stopped, nor ssh a host without power before a minute is over."""
    files = [stage.file("large.npy", size=12_000_000), *stage.files(3)]
    with stage.service(stall_timeout=2, io_timeout=600, bwlimit="4m", **settings_through(wire, stage)) as service:
        ids = stage.register(*files)
        # Given a copy under way,
        start = wire.carried
        eventually(lambda: wire.carried > start + 1_000_000, "bytes arrive")
        # when the other side stands still with all connections open,
        stopped: list[int] = []
        try:
            if who == "the wire":
                wire.freeze()
            else:
                stopped = senders_of(stage.ssh)
                assert stopped
                for pid in stopped:
                    os.kill(pid, signal.SIGSTOP)
            wait_failures(service, "stalled")
            # then the failure concerns the source and no file,
            assert failure_count(service, "stalled", "host_unreachable", "link_lost") == 0
            assert_no_failed_attempts(stage)
        finally:
            wire.thaw()
            for pid in stopped:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
        # and another connection brings the rest.
        stage.wait_archived(*ids)
        assert_healthy(service)
    assert_no_failed_attempts(stage)
    assert_archived(stage, ids, files)
    assert_archive_is_exactly(stage, *files)


# A link that is only bad.


def test_a_slow_and_distant_host_causes_no_failure(stage: PrivateSite, wire: Proxy) -> None:
    # Given a link that holds each piece back for 50 ms, and carries 2 MB/s,
    wire.delay, wire.rate = 0.05, 2e6
    files = [*stage.files(60, size=20_000), stage.file("large.npy", size=1_500_000)]
    ids = stage.register(*files)
    with stage.service(**settings_through(wire, stage)) as service:
        # then all files arrive, and no try has failed.
        stage.wait_archived(*ids, within=60)
        assert_healthy(service)
        assert failure_count(service) == 0
    assert_no_failed_attempts(stage)
    assert_archived(stage, ids, files)


def senders_of(server: SshServer) -> list[int]:
    """The rsyncs that send files from this host, now."""
    parents: dict[int, int] = {}
    sending: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                status = (entry / "stat").read_text()
                parents[int(entry.name)] = int(status.rpartition(")")[2].split()[1])
                if b"--sender" in (entry / "cmdline").read_bytes().split(b"\0"):
                    sending.append(int(entry.name))
    return [pid for pid in sending if server.pid in _ancestors(pid, parents)]


def _ancestors(pid: int, parents: dict[int, int]) -> Iterator[int]:
    while (pid := parents.get(pid, 0)) > 0:
        yield pid
