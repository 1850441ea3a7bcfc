"""The host, its login and the link between: what fails there costs no file a try, and what did arrive counts."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from copying import (
    assert_all_is_well,
    assert_nobody_charged,
    assert_only,
    assert_source_is_to_blame,
    assert_whole,
    failures,
    shorten_pauses,
    through,
    wait_failures,
)
from fakes import FakeRsync, ends_early
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
    """Where what failed is tried again in a moment."""
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


@pytest.mark.parametrize("how", ["refuses", "hangs up", "says nothing"])
def test_a_host_that_is_away_is_asked_again_and_again_until_it_is_back(
    stage: PrivateSite, wire: Proxy, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    # Given a host that reboots: at first nobody listens, then somebody hangs up, or is there and says nothing,
    monkeypatch.setattr(ssh, "CONNECT_TIMEOUT", 1.0)
    monkeypatch.setitem(ssh._OPTIONS, "ConnectTimeout", "1")
    monkeypatch.setattr(copier, "_TRIES", 1)
    {"refuses": stage.ssh.stop, "hangs up": wire.refuse, "says nothing": wire.freeze}[how]()
    files = stage.files(3)
    ids = stage.register(*files)
    changes = {} if how == "refuses" else through(wire, stage)
    with stage.service(until="no source", max_attempts=2, **changes) as service:
        # when it was asked more often than a file has tries,
        wait_failures(service, "host_unreachable", 3 * len(files))
        # then the service says so, of the host alone, and nobody is charged;
        assert_source_is_to_blame(service, "host_unreachable")
        assert failures(service, "host_unreachable") == 0
        assert_nobody_charged(stage)
        # and all is archived when it is back.
        {"refuses": stage.ssh.start, "hangs up": wire.accept, "says nothing": wire.thaw}[how]()
        stage.wait_archived(*ids)
        assert_all_is_well(service)
    assert_nobody_charged(stage)
    assert_whole(stage, ids, files)


# 255 and 12: what an operator has to fix.

REMOTE_PATH = f"{bin_directory()}:/usr/local/bin:/usr/bin:/bin"

OPERATORS = {
    "the key is refused": "login_refused",
    "the host has another key": "host_key",
    "rsync is not installed": "rsync_missing",
    "the key is restricted to no directory": "rsync_refused",
    "the login greets": "rsync_refused",
}


@pytest.mark.parametrize("trouble", OPERATORS)
def test_what_a_person_has_to_fix_charges_nobody(stage: PrivateSite, trouble: str) -> None:
    # Given a host that does not let us do our work,
    match trouble:
        case "the key is refused":
            stage.ssh.revoke()
        case "the host has another key":
            stage.ssh.change_host_key()
        case "rsync is not installed":
            stage.ssh.authorize(path=NO_PROGRAMS)
        case "the key is restricted to no directory":
            stage.ssh.authorize(read_only=stage.directory / "mistyped")
        case _:
            chatty = FakeRsync(stage.directory / "chatty")
            chatty.misbehave('echo "Welcome to smurf-srv!"')  # where a shell's start-up file does, no rsync can speak
            stage.ssh.authorize(path=chatty.before(REMOTE_PATH))
    files = stage.files(4)
    ids = stage.register(*files)
    reason = OPERATORS[trouble]
    with stage.service(until="no source", max_attempts=2) as service:
        # when it was tried more often than a file has tries,
        wait_failures(service, reason, 3 * len(files))
        # then the service says which trouble it is, and has nothing against anybody else,
        assert_source_is_to_blame(service, reason)
        assert failures(service, reason) == 0
        assert_nobody_charged(stage)
        # and goes on when a person has fixed it.
        stage.ssh.authorize()
        stage.ssh.trust_host_key()
        stage.wait_archived(*ids)
        assert_all_is_well(service)
    assert_nobody_charged(stage)
    assert_whole(stage, ids, files)


# 10, 12, 20, 30: the link.


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (10, "rsync error: error in socket IO (code 10) at clientserver.c(139) [Receiver=3.5.0]"),
        (12, "rsync error: error in rsync protocol data stream (code 12) at io.c(232) [Receiver=3.5.0]"),
        (20, "rsync error: received SIGINT, SIGTERM, or SIGHUP (code 20) at rsync.c(726) [Receiver=3.5.0]"),
        (30, "rsync error: timeout in data send/receive (code 30) at io.c(197) [Receiver=3.5.0]"),
    ],
)
def test_what_arrived_before_the_link_was_lost_counts(
    stage: PrivateSite, monkeypatch: pytest.MonkeyPatch, status: int, words: str
) -> None:
    # Given an rsync that brings two files and ends with one of the statuses of a lost link,
    fake = FakeRsync(stage.directory / "fake")
    fake.misbehave(ends_early(2, status, words))
    monkeypatch.setenv("PATH", fake.before(os.environ["PATH"]))
    files = stage.files(40)
    ids = stage.register(*files)
    with stage.service(workers=1, until=None) as service:
        wait_failures(service, "link_lost")
        # then the two are archived, the link is to blame and no file,
        assert_source_is_to_blame(service, "link_lost")
        eventually(lambda: stage.count("copied = 1") >= 2, "what arrived is archived")
        assert failures(service, "link_lost") == 0
        assert_nobody_charged(stage)
        # and the others follow.
        fake.behave()
        stage.wait_archived(*ids)
        assert_all_is_well(service)
    assert_nobody_charged(stage)
    assert_whole(stage, ids, files)


HALF = 250_000_000
SLACK = 30_000_000
"""Bytes that were on their way when the link was cut, and what ssh and rsync add."""


def test_a_large_file_whose_link_is_cut_goes_on_where_it_was(stage: PrivateSite, wire: Proxy) -> None:
    # Given a large file, and a link that will not last for all of it,
    path = stage.sources / "large.dat"
    md5 = hashlib.md5()
    with path.open("wb") as large:
        for _ in range(50):
            part = os.urandom(HALF // 25)
            large.write(part)
            md5.update(part)
    with stage.service(**through(wire, stage)) as service:
        stage.wait_archived(*stage.register(stage.file("before.npy")))
        start = wire.carried
        wire.cut_after(HALF)
        # when it is cut half-way,
        (id_,) = stage.register(SourceFile(path, b""), md5sum=md5.digest())
        (row,) = stage.wait_archived(id_, within=150)
        carried = wire.carried - start
        assert_all_is_well(service)
    # then it was not begun anew: what was there was not carried again.
    assert carried >= 2 * HALF, "the link was never cut"
    assert carried < 2 * HALF + SLACK
    assert wire.connections > 1
    assert row.attempts == 0
    assert_nobody_charged(stage)
    with Path(row.path).open("rb") as archived:
        assert hashlib.file_digest(archived, "md5").digest() == md5.digest()


# The watchdog.


@pytest.mark.parametrize("who", ["the sender", "the wire"])
def test_a_copy_that_has_come_to_a_standstill_is_given_up_and_begun_anew(
    stage: PrivateSite, wire: Proxy, who: str
) -> None:
    """rsync's own timeout does not see a sender that was stopped, nor ssh a host without power before a minute is over."""
    files = [stage.file("large.npy", size=12_000_000), *stage.files(3)]
    with stage.service(stall_timeout=2, io_timeout=600, bwlimit="4m", **through(wire, stage)) as service:
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
            # then that is the source's trouble and no file's,
            assert failures(service, "stalled", "host_unreachable", "link_lost") == 0
            assert_nobody_charged(stage)
        finally:
            wire.thaw()
            for pid in stopped:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
        # and another connection brings the rest.
        stage.wait_archived(*ids)
        assert_all_is_well(service)
    assert_nobody_charged(stage)
    assert_whole(stage, ids, files)
    assert_only(stage, *files)


# A link that is only bad.


def test_a_slow_and_distant_host_is_slow_and_nothing_else(stage: PrivateSite, wire: Proxy) -> None:
    # Given a link that holds each piece back for 50 ms, and carries 2 MB/s,
    wire.delay, wire.rate = 0.05, 2e6
    files = [*stage.files(60, size=20_000), stage.file("large.npy", size=1_500_000)]
    ids = stage.register(*files)
    with stage.service(**through(wire, stage)) as service:
        # then all arrives, and nobody has failed.
        stage.wait_archived(*ids, within=60)
        assert_all_is_well(service)
        assert failures(service) == 0
    assert_nobody_charged(stage)
    assert_whole(stage, ids, files)


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
