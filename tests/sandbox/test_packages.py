"""Fetching packages: sources, results, and the state after a failed or a concurrent fetch."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cdc_archiver.sandbox import SandboxError, packages
from cdc_archiver.sandbox.apt_sources import (
    AptSource,
    as_suite,
    debian_sources,
    parse_deb822,
    parse_one_line,
    read_sources,
)
from cdc_archiver.sandbox.packages import Bundle, Tool, cache_directory, ensure_tools, fetch, find, find_on_system

DEB822 = """\
Types: deb
# a comment among the fields
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb deb-src
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
Enabled: no
URIs: http://mirror.example/debian
Suites: bookworm-backports
Components: main

Types: deb-src
URIs: http://mirror.example/debian
Suites: bookworm
Components: main
"""

ONE_LINE = """\
# deb http://commented.example/debian bookworm main
deb http://mirror.example/debian bookworm main non-free # trailing words
deb [arch=amd64,arm64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://mirror.example/debian-security/ \
bookworm-security main
deb-src http://mirror.example/debian bookworm main
deb [ signed-by=/usr/share/keyrings/vendor.gpg ] https://vendor.example/debian bookworm main
deb https://vendor.example/apt cloud-tools-bookworm main
"""


def test_deb822_stanzas_give_the_enabled_binary_sources() -> None:
    first, second = parse_deb822(DEB822)

    assert first.uris == ("http://mirror.example/debian",)
    assert first.suites == ("bookworm", "bookworm-updates")
    assert first.components == ("main", "contrib")
    assert first.signed_by == "/usr/share/keyrings/debian-archive-keyring.gpg"
    assert second.suites == ("bookworm-security",)


def test_deb822_keeps_a_key_that_is_written_into_the_stanza() -> None:
    text = (
        "Types: deb\nURIs: http://mirror.example/debian\nSuites: bookworm\nComponents: main\n"
        "Signed-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mQINBF\n -----END PGP PUBLIC KEY BLOCK-----\n"
    )

    (source,) = parse_deb822(text)

    assert source.signed_by.splitlines()[1:3] == [" -----BEGIN PGP PUBLIC KEY BLOCK-----", " ."]
    assert parse_deb822(source.stanza()) == [source]


def test_one_line_entries_give_the_binary_sources_with_their_options() -> None:
    plain, security, vendor, cloud = parse_one_line(ONE_LINE)

    assert plain == AptSource(("http://mirror.example/debian",), ("bookworm",), ("main", "non-free"))
    assert security.signed_by == "/usr/share/keyrings/debian-archive-keyring.gpg"
    assert dict(security.options)["Architectures"] == "amd64 arm64"
    assert vendor.signed_by == "/usr/share/keyrings/vendor.gpg"
    assert cloud.suites == ("cloud-tools-bookworm",)


def test_third_party_sources_are_left_out() -> None:
    own = debian_sources(parse_one_line(ONE_LINE), "bookworm")

    assert [source.uris[0] for source in own] == [
        "http://mirror.example/debian",
        "http://mirror.example/debian-security/",
    ]
    assert all(source.components == ("main",) for source in own)


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        ("deb http://mirror.example/debian bookworm main", True),
        ("deb http://mirror.example/debian stable main", True),
        ("deb http://mirror.example/archive/debian/20250101T000000Z bookworm main", True),
        ("deb http://mirror.example/debian trixie main", False),
        ("deb http://mirror.example/debian bookworm contrib", False),
        ("deb http://vendor.example/linux bookworm main", False),
        ("deb http://vendor.example/debian bookworm-vendor main", False),
        ("deb [signed-by=/keys/debian-archive-keyring.gpg] mirror+file:/etc/apt/own.list bookworm main", True),
    ],
)
def test_debians_own_sources_are_recognised(line: str, kept: bool) -> None:
    assert bool(debian_sources(parse_one_line(line), "bookworm")) is kept


def test_another_suite_is_taken_from_the_main_archive_and_not_from_security() -> None:
    own = debian_sources(reversed(parse_deb822(DEB822)), "bookworm")

    (sid,) = as_suite(own, "bookworm", "sid")

    assert sid.uris == ("http://mirror.example/debian",)
    assert sid.suites == ("sid",)
    assert sid.signed_by == "/usr/share/keyrings/debian-archive-keyring.gpg"


def test_both_formats_are_read_from_a_directory(tmp_path: Path) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list").write_text("deb http://mirror.example/debian bookworm main\n")
    (tmp_path / "sources.list.d" / "more.sources").write_text(DEB822)
    (tmp_path / "sources.list.d" / "off.sources.disabled").write_text(DEB822)

    assert len(read_sources(tmp_path)) == 3


BUNDLE = Bundle("made-up", ("made-up-server", "made-up-client"), ("made-up",))

APT = """\
#!/bin/sh
echo "$1" >> {calls}
if [ "$1" = update ]; then
    [ "$(grep -c update {calls})" -le {failures} ] && {{ echo "Err:1 the network is away"; exit 100; }}
    exit 0
fi
archives=$(sed -n 's/^Dir::Cache "\\(.*\\)";$/\\1/p' "$APT_CONFIG")/archives
sleep 0.1
touch "$archives/made-up-server.deb" "$archives/made-up-client.deb"
"""

DPKG = """\
#!/bin/sh
mkdir -p "$3/usr/bin" && cp /bin/echo "$3/usr/bin/made-up"
"""


class FakeApt:
    """An apt that provides packages with one program, after a given number of failures."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.calls = directory / "calls"
        self.calls.touch()
        self.install("apt-config", "#!/bin/sh\n")
        self.install("dpkg", DPKG)
        self.fail(0)

    def install(self, name: str, script: str) -> None:
        (self.directory / name).write_text(script)
        (self.directory / name).chmod(0o755)

    def fail(self, times: int) -> None:
        self.install("apt-get", APT.format(calls=self.calls, failures=times))

    def count(self, word: str) -> int:
        return self.calls.read_text().split().count(word)


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeApt:
    programs = tmp_path / "programs"
    programs.mkdir()
    monkeypatch.setenv("CDC_ARCHIVER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(packages, "_PAUSE", 0.0)
    monkeypatch.setattr(packages, "read_sources", lambda: parse_one_line("deb http://m.example/debian stable main"))
    return FakeApt(programs)


def test_a_fetch_fills_the_root_reports_it_once_and_is_not_repeated(
    apt: FakeApt, capsys: pytest.CaptureFixture[str]
) -> None:
    root = fetch(BUNDLE)

    assert root == cache_directory() / "roots" / "made-up"
    assert (root / "usr/bin/made-up").exists()
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "made-up-server, made-up-client" in said

    assert fetch(BUNDLE) == root
    assert apt.count("install") == 1
    assert capsys.readouterr().err == ""


def test_a_transient_network_error_is_retried(apt: FakeApt) -> None:
    apt.fail(times=2)

    assert (fetch(BUNDLE) / "usr/bin/made-up").exists()


def test_a_failed_fetch_names_the_packages_and_leaves_nothing_behind(apt: FakeApt) -> None:
    apt.fail(times=99)

    with pytest.raises(SandboxError, match=r"the network is away.*install made-up-server made-up-client by hand"):
        fetch(BUNDLE)

    assert apt.count("update") == 3
    assert not (cache_directory() / "roots" / "made-up").exists()
    assert sorted(entry.name for entry in cache_directory().iterdir()) == ["packages.lock", "roots"]


def test_a_root_without_its_stamp_is_fetched_again(apt: FakeApt) -> None:
    half = cache_directory() / "roots" / "made-up"
    half.mkdir(parents=True)
    (half / "left-over").touch()

    root = fetch(BUNDLE)

    assert not (root / "left-over").exists()
    assert (root / "usr/bin/made-up").exists()


def test_without_apt_the_error_names_the_packages(apt: FakeApt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "find_on_system", lambda program: None)

    with pytest.raises(SandboxError, match=r"no apt-get to fetch it; install made-up-server made-up-client by hand"):
        fetch(BUNDLE)


def test_a_cache_that_cannot_be_written_is_named(apt: FakeApt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CDC_ARCHIVER_CACHE", str(tmp_path / "file" / "cache"))

    with pytest.raises(SandboxError, match="CDC_ARCHIVER_CACHE"):
        fetch(BUNDLE)


def test_two_concurrent_fetches_of_one_bundle_download_it_once(apt: FakeApt) -> None:
    threads = [threading.Thread(target=fetch, args=(BUNDLE,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert apt.count("install") == 1


def test_the_machines_own_program_wins(apt: FakeApt) -> None:
    apt.install("promtool", "#!/bin/sh\n")

    tool = find("promtool")

    assert tool == Tool("promtool", apt.directory / "promtool", Path("/"))
    assert apt.count("update") == 0


def test_a_fetched_program_has_an_entry_that_runs_it(apt: FakeApt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "_BUNDLE_OF", {"made-up": BUNDLE})

    tool = find("made-up")
    (cache_directory() / "bin" / "made-up").unlink()
    find("made-up")

    assert tool.private
    assert tool.run("hello", "world") == "hello world\n"
    entry = subprocess.run(
        [cache_directory() / "bin" / "made-up", "it's  me"], capture_output=True, text=True, check=True
    )
    assert entry.stdout == "it's  me\n"


def test_mariadb_under_the_name_of_mysqld_is_not_mysql(apt: FakeApt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "_SYSTEM_DIRECTORIES", ())
    monkeypatch.setenv("PATH", str(apt.directory))
    apt.install("mariadbd", "#!/bin/sh\n")
    (apt.directory / "mysqld").symlink_to("mariadbd")

    assert find_on_system("mariadbd") == apt.directory / "mariadbd"
    assert find_on_system("mysqld") is None


def test_fetched_programs_run_by_their_bare_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.environ["PATH"])
    try:
        ensure_tools("rsync", "ssh")
    except SandboxError as error:
        pytest.skip(str(error)) if not os.environ.get("CI") else pytest.fail(str(error))

    done = subprocess.run(["rsync", "--version"], capture_output=True, text=True, check=True)

    assert done.stdout.startswith("rsync ")


def test_the_command_rejects_an_unknown_bundle() -> None:
    command = [sys.executable, "-m", "cdc_archiver.sandbox", "fetch", "nonsense"]

    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 2
    assert "known are mariadb, mysql, ssh, prometheus" in done.stderr
