"""Other users of the storage node, and clients of its HTTP port: what they can see, plant and request."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import stat
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from archive_places import marker_of, staging_of
from private_site import PrivateSite
from prometheus_client.parser import text_string_to_metric_families
from services import COMMAND, PASSWORD, Program, Service
from waiting import eventually

ROOT = os.geteuid() == 0
SOMEBODY = 65_534


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


# What they can see.


def descendants(pid: int) -> list[int]:
    """The processes that a process has started, and theirs."""
    parents: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError, ValueError):
                parent = int(Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1])
                parents.setdefault(parent, []).append(int(entry))
    found, waiting = [], [pid]
    while waiting:
        children = parents.get(waiting.pop(), [])
        found += children
        waiting += children
    return found


def process_entries(pid: int) -> dict[str, bytes]:
    """The entries of a process list: command line and, for its own user, environment."""
    entries = {}
    for what in ("cmdline", "environ"):
        with contextlib.suppress(OSError):
            entries[what] = Path(f"/proc/{pid}/{what}").read_bytes()
    return entries


@pytest.mark.parametrize("variable", ["MYSQL_PASSWORD", "mysql_password"])
def test_no_process_list_no_log_and_no_page_shows_a_secret(stage: PrivateSite, variable: str) -> None:
    # Given a service with all logging on, with a password from its environment,
    environment = stage.environment()
    environment[variable] = environment.pop("MYSQL_PASSWORD")
    options = {"bwlimit": "100", "log_level": "debug", "log_format": "json"}
    log = stage.directory / "secretive.log"
    with Program([*COMMAND, "run", *stage.flags(**options)], environment, log, "streaming") as service:
        # when a copy is under way,
        (id_,) = stage.register(stage.file("slow.npy", size=300_000))
        eventually(lambda: service.metric("in_flight") == 1, "it is on its way")
        # then neither its processes nor those on the other side of the link have heard of the password,
        names = set()
        while stage.row(id_).copied == 0:
            for pid in descendants(service.pid):
                shown = process_entries(pid)
                names.add(Path(shown.get("cmdline", b"?").split(b"\0")[0].decode()).name)
                assert not [what for what, entries in shown.items() if PASSWORD.encode() in entries], shown
            time.sleep(0.02)
        assert {"rsync", "ssh"} <= names
        assert PASSWORD.encode() not in process_entries(service.pid)["cmdline"]
        # nor does a page show it,
        pages = [service.get(path)[1] for path in ("/", "/metrics", "/healthz", "/readyz", "/api/status")]
        checked = stage.command("check", *stage.flags(), "--json")
        said = "".join(pages) + service.said + checked.stdout + checked.stderr
    # nor a log, and none of them shows the private key.
    key = [line for line in Path(stage.ssh.key).read_text().splitlines() if not line.startswith("-")]
    assert PASSWORD not in said
    assert not [line for line in key if line in said]


@pytest.mark.parametrize("log_format", ["console", "json"])
@pytest.mark.parametrize("where", ["in a thread", "at the start"])
def test_a_bug_shows_its_way_and_not_what_it_held_in_its_hands(stage: PrivateSite, log_format: str, where: str) -> None:
    """A traceback with the values of variables would have the password in it."""
    script = stage.directory / "buggy.py"
    module, name = {
        "in a thread": ("cdc_archiver.database.files_table", "FilesTable.load"),
        "at the start": ("cdc_archiver.database.connections", "Database.raw_connection"),
    }[where]
    script.write_text(
        f"import os, {module} as module\n"
        "def buggy(*args, **kwargs):\n"
        "    password = os.environ['MYSQL_PASSWORD']\n"
        "    raise RuntimeError('a bug of ours')\n"
        f"module.{name} = buggy\n"
        "from cdc_archiver.cli import main\n"
        "main()\n"
    )
    stage.register(stage.file("file.npy"))
    log = stage.directory / "buggy.log"
    command = [sys.executable, str(script), "run", *stage.flags(log_format=log_format, log_level="debug")]
    program = Program(command, stage.environment(), log, until=None)
    program.may_trace = True
    with program:
        assert program.wait() == 1
    said = log.read_text()
    assert "a bug of ours" in said
    assert PASSWORD not in said


# What they can plant.


@pytest.mark.parametrize(
    ("umask", "set_directories", "files", "directories"),
    [
        ("000", 0o755, 0o644, 0o755),
        ("022", 0o755, 0o644, 0o2755),  # an archive that hands on its group does so all the way down
        ("027", 0o2775, 0o664, 0o2775),
        ("077", 0o700, 0o600, 0o700),
    ],
)
def test_modes_are_those_of_the_settings_whatever_the_umask(
    stage: PrivateSite, umask: str, set_directories: int, files: int, directories: int
) -> None:
    # Given a service that was started with some umask,
    groups = [SOMEBODY] if ROOT else [group for group in os.getgroups() if group != os.getegid()]
    if directories & stat.S_ISGID:
        os.chown(stage.data_dir, -1, groups[0] if groups else -1)
        os.chmod(stage.data_dir, directories)
    shell = ("sh", "-c", f'umask {umask}; exec "$@"', "sh", *COMMAND)
    slow = stage.file("slow.npy", size=200_000)
    with stage.program(interpreter=shell, chmod=f"D{set_directories:o},F{files:o}", bwlimit="100") as service:
        # when files are archived,
        ids = stage.register(slow, stage.file("a.npy"), action="x") + stage.register(stage.file("b.npy"), plot=1)
        eventually(lambda: service.metric("in_flight"), "one is on its way")
        # then only the archiver's user can access staged files and the connection,
        sockets = eventually(lambda: sockets_below(stage.runtime), "there is a connection")
        assert {mode(path.parent) for path in sockets} == {0o700}
        assert {mode(path) & 0o077 for path in sockets} == {0}
        assert mode(staging_of(stage.data_dir)) & 0o777 == 0o700
        stage.wait_archived(*ids)
    # and what is archived has the modes that were set, and the group of the directory that hands on its own.
    places = stage.archived_files()
    parents = {parent for place in places for parent in place.parents[:4]}
    assert {mode(place) for place in places} == {files}
    assert {mode(parent) for parent in parents} == {directories}
    if directories & stat.S_ISGID:
        owner = stage.data_dir.stat().st_gid
        assert {path.stat().st_gid for path in (*parents, *places)} == {owner}
    assert not mode(marker_of(stage.data_dir)) & 0o022, "the marker is the archiver's"


def sockets_below(directory: Path) -> list[Path]:
    found = []
    for path in directory.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # it comes under another name first
            if stat.S_ISSOCK(path.lstat().st_mode):
                found.append(path)
    return found


def plant(path: Path, target: Path) -> None:
    """A link that belongs to another user."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)
    os.lchown(path, SOMEBODY, SOMEBODY)


@pytest.mark.skipif(not ROOT, reason="only root can make a link that belongs to somebody else")
@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_a_link_that_somebody_planted_in_the_archive_is_not_followed(stage: PrivateSite, level: int) -> None:
    # Given a directory of the archive that is another user's link to elsewhere,
    elsewhere = stage.directory / "elsewhere"
    elsewhere.mkdir()
    file, other = stage.file("file.npy"), stage.file("other.npy")
    plant(stage.place(file).parents[level], elsewhere)
    with stage.service() as service:
        # when a file belongs there,
        (id_,) = stage.register(file)
        eventually(lambda: service.metric("copy_failures_total", reason="place_unusable"), "it is said")
        # then nothing is written there, no attempt has failed, and others are archived.
        assert (stage.row(id_).copied, stage.row(id_).attempts) == (0, 0)
        if level < 3:
            stage.wait_archived(*stage.register(other, pub_id="another"))
    assert list(elsewhere.iterdir()) == []


def test_a_link_in_the_place_of_the_staging_directory_is_neither_filled_nor_emptied(stage: PrivateSite) -> None:
    # Given a link in the place of the staging directory, to where there is something old,
    precious = stage.directory / "precious"
    precious.mkdir()
    (precious / "old.txt").write_text("of years ago")
    os.utime(precious / "old.txt", (1, 1))
    os.chmod(precious, 0o755)
    staging_of(stage.data_dir).parent.mkdir()
    staging_of(stage.data_dir).symlink_to(precious)
    # when the service is started,
    (id_,) = stage.register(stage.file("file.npy"))
    with stage.service():
        # then it stages elsewhere,
        stage.wait_archived(id_)
    assert (stage.directory / "state").is_dir()
    # and all there is as it was.
    assert mode(precious) == 0o755
    assert [path.name for path in precious.rglob("*")] == ["old.txt"]


def test_a_link_in_the_place_of_the_marker_is_not_written_through(stage: PrivateSite) -> None:
    target = stage.directory / "written-through"
    marker_of(stage.data_dir).parent.mkdir()
    marker_of(stage.data_dir).symlink_to(target)
    stage.register(stage.file("file.npy"))
    with stage.service(until=None) as service:
        eventually(lambda: service.state() in ("streaming", "no destination"), "it has looked")
    assert not target.exists()


# What they can ask for.


@pytest.fixture
def service(stage: PrivateSite) -> Iterator[Service]:
    with stage.service() as running:
        yield running


def raw(port: int, request: bytes) -> bytes:
    """What is answered to these bytes, before half a second of silence."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(request)
        connection.settimeout(0.5)
        answer = b""
        with contextlib.suppress(ConnectionError, TimeoutError):
            while chunk := connection.recv(65536):
                answer += chunk
        return answer


def statuses(port: int, method: str, paths: Sequence[str]) -> dict[str, int]:
    found = {}
    for path in paths:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
            connection.putrequest(method, path, skip_host=True)
            connection.putheader("Host", "localhost")
            connection.putheader("Content-Length", "0")
            connection.endheaders()
            found[path] = connection.getresponse().status
    return found


PAGES = ("/", "/metrics", "/healthz", "/readyz", "/api/status")


def test_it_can_be_read_and_nothing_else_and_odd_requests_harm_nobody(service: Service) -> None:
    port = service.port
    # Whatever would change something is not allowed,
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND"):
        assert set(statuses(port, method, PAGES).values()) == {405}, method
    # what is not there is not there, by whatever name,
    odd = ["/nothing", "//etc/passwd", "/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/api/status/..", "/api/"]
    odd += ["/metrics/%00", "/static/../../etc/passwd", "/%0d%0aX-Injected:%20yes", "/" + "a" * 5000, "/.env", "/docs"]
    assert set(statuses(port, "GET", odd).values()) == {404}
    # and garbage is answered with an error, or with nothing.
    for request in (
        b"\0\x01\x02\xff" * 100,
        b"GET\r\n\r\n",
        b"GET /healthz HTTP/9.9\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nAccept: \xff\xfe, application/openmetrics-text; version=\xff\r\n\r\n",
        b"GET http://elsewhere.example/metrics HTTP/1.1\r\nHost: elsewhere.example\r\n\r\n",
        b"CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ):
        answer = raw(port, request)
        assert b"Traceback" not in answer
        assert not answer.startswith(b"HTTP/1.1 5"), request[:60]
        assert b"SSH-" not in answer
    assert statuses(port, "GET", PAGES) == dict.fromkeys(PAGES, 200)
    assert list(text_string_to_metric_families(service.get("/metrics")[1]))


def test_it_listens_on_loopback_alone_and_no_page_of_another_site_may_read_it(service: Service) -> None:
    # 127.0.0.2 is this machine as well; who listens on every address, answers there.
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", service.port), timeout=5)
    # A browser gives a response to another site's script where a header allows it: none does.
    request = b"GET /api/status HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil.example\r\n\r\n"
    answer = eventually(lambda: raw(service.port, request), "it answers")
    assert b"200 OK" in answer
    assert b"access-control-allow" not in answer.lower()
    assert b"server:" not in answer.lower()
    # A site whose name has been given our address is no other site to a browser: it is known by the name.
    rebound = eventually(lambda: raw(service.port, request.replace(b"localhost", b"evil.example")), "it answers")
    assert rebound.startswith(b"HTTP/1.1 421 ")
    assert b"streaming" not in rebound
