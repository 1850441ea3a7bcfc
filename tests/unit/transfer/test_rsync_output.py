"""Parses rsync's output: each text here was printed by a real rsync (3.2.7, 3.5.0) under LC_ALL=C."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc_archiver.model import Reason
from cdc_archiver.transfer.rsync_output import (
    CopyFailure,
    FileReceived,
    NotRegularFile,
    OutputLine,
    OverMaxSize,
    failed_to_enter_directory,
    parse_exit,
    parse_line,
)
from cdc_archiver.transfer.ssh_errors import SshEndpoint

MD5 = bytes.fromhex("5d41402abc4b2a76b9719d911017c592")
ROOT = "/data"
ENDPOINT = SshEndpoint("smurf-srv", 22, "data", "/home/ocs/.ssh/known_hosts", "")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"5d41402abc4b2a76b9719d911017c592|5|a/b.npy", FileReceived(b"a/b.npy", MD5, 5)),
        (b"5d41402abc4b2a76b9719d911017c592|5|pi|pe", FileReceived(b"pi|pe", MD5, 5)),
        (rb"5d41402abc4b2a76b9719d911017c592|5|new\#012line", FileReceived(b"new\nline", MD5, 5)),
        (rb"5d41402abc4b2a76b9719d911017c592|5|back\#134#012slash", FileReceived(rb"back\#012slash", MD5, 5)),
        (rb"5d41402abc4b2a76b9719d911017c592|5|\#303\#251", FileReceived("é".encode(), MD5, 5)),
        (b"5d41402abc4b2a76b9719d911017c592|5|big is over max-size", FileReceived(b"big is over max-size", MD5, 5)),
        (b"00000000000000000000000000000000|5|failed", None),
        (b"                                |4096|dir/", NotRegularFile(b"dir")),
        (b'skipping non-regular file "lnk"', NotRegularFile(b"lnk")),
        (rb'skipping non-regular file "new\#012line"', NotRegularFile(b"new\nline")),
        (b"skipping directory dir", NotRegularFile(b"dir")),
        (b"big is over max-size", OverMaxSize(b"big")),
        (b"", None),
        (b"receiving incremental file list", None),
    ],
)
def test_a_line_of_standard_output(line: bytes, expected: OutputLine | None) -> None:
    assert parse_line(line) == expected


@pytest.mark.parametrize(
    ("stderr", "reason"),
    [
        ('rsync: [sender] link_stat "/data/a" failed: No such file or directory (2)', Reason.MISSING),
        ('rsync: [sender] link_stat "/data/a" failed: Not a directory (20)', Reason.MISSING),
        ('rsync: link_stat "/data/a" failed: No such file or directory (2)', Reason.MISSING),
        ('file has vanished: "/data/a"', Reason.UNDECIDED),
        ('rsync: [sender] send_files failed to open "/data/a": Permission denied (13)', Reason.UNREADABLE),
        ('rsync: [sender] link_stat "/data/a" failed: Permission denied (13)', Reason.UNREADABLE),
        ('rsync: [sender] read errors mapping "/data/a": Input/output error (5)', Reason.UNREADABLE),
        ('rsync: [sender] link_stat "/data/a" failed: Too many levels of symbolic links (40)', Reason.UNREADABLE),
        ('rsync: [sender] read errors mapping "/data/a": No data available (61)', Reason.UNREADABLE),
        ('rsync: [sender] link_stat "/mnt/elsewhere/data/a" failed: No such file or directory (2)', Reason.MISSING),
    ],
)
def test_an_error_that_names_a_file_concerns_that_file(stderr: str, reason: Reason) -> None:
    exit_info = parse_exit(23, stderr + "\nrsync error: some files/attrs were not transferred (code 23)", ROOT, {b"a"})
    assert exit_info.files == {b"a": CopyFailure(reason, stderr)}
    assert exit_info.failure is None


@pytest.mark.parametrize(
    ("status", "stderr", "reason"),
    [
        (255, "ssh: connect to host smurf-srv port 22: Connection refused", Reason.HOST_UNREACHABLE),
        (255, "data@smurf-srv: Permission denied (publickey).", Reason.LOGIN_REFUSED),
        (255, "Host key verification failed.", Reason.HOST_KEY),
        (255, "", Reason.LINK_LOST),
        (127, "sh: 1: rsync: not found\nrsync error: remote command not found (code 127)", Reason.RSYNC_MISSING),
        (12, "sh: 1: rsync: not found\nrsync: connection unexpectedly closed", Reason.RSYNC_MISSING),
        (12, "bash: line 1: rsync: command not found", Reason.RSYNC_MISSING),
        (12, 'rsync: [sender] link_stat "/x" failed: No such file or directory (2)', Reason.LINK_LOST),
        (12, 'rsync: link_stat "/x" failed: No such file or directory (2)', Reason.LINK_LOST),
        (12, "/usr/bin/rrsync error: option -L is not allowed", Reason.RSYNC_REFUSED),
        (12, "rsync: connection unexpectedly closed (0 bytes received so far) [Receiver]", Reason.LINK_LOST),
        (12, "rsync: [generator] write error: Broken pipe (32)", Reason.LINK_LOST),
        (12, "rsync: [receiver] read error: Connection reset by peer (104)", Reason.LINK_LOST),
        (12, "ssh: connect to host smurf-srv port 22: Connection refused", Reason.HOST_UNREACHABLE),
        (
            12,
            "no such identity: /keys/rsync: No such file or directory\nPermission denied (publickey).",
            Reason.LOGIN_REFUSED,
        ),
        (20, "rsync error: received SIGINT, SIGTERM, or SIGHUP (code 20)", Reason.LINK_LOST),
        (30, "rsync error: timeout in data send/receive (code 30)", Reason.LINK_LOST),
        (-9, "", Reason.LINK_LOST),
        (1, "rsync: on remote machine: --foo: unknown option", Reason.RSYNC_REFUSED),
        (12, "Your --checksum-choice value (md5) was refused by the server.", Reason.RSYNC_REFUSED),
        (12, "Your --compress-choice value (zstd) was refused by the server.", Reason.RSYNC_REFUSED),
        (11, 'rsync: [receiver] write failed on "/a/x": No space left on device (28)', Reason.NO_SPACE),
        (11, 'rsync: [receiver] write failed on "/a/x": Disk quota exceeded (122)', Reason.NO_SPACE),
        (
            23,
            'rsync: [generator] recv_generator: mkdir "/a/d" failed: Permission denied (13)',
            Reason.DESTINATION_UNWRITABLE,
        ),
        (23, 'rsync: [receiver] mkstemp "/a/.x.Uv3" failed: Read-only file system (30)', Reason.DESTINATION_UNWRITABLE),
        (23, 'rsync: [sender] change_dir "/data" failed: No such file or directory (2)', Reason.SOURCE_NOT_MOUNTED),
        (23, 'rsync: [sender] link_stat "/data/a" failed: Stale file handle (116)', Reason.SOURCE_NOT_MOUNTED),
        (
            23,
            'rsync: [sender] send_files failed to open "/data/a": Too many open files (24)',
            Reason.SOURCE_NOT_MOUNTED,
        ),
    ],
)
def test_a_failure_of_host_link_configuration_or_destination_concerns_no_file(
    status: int, stderr: str, reason: Reason
) -> None:
    exit_info = parse_exit(status, stderr, ROOT, {b"a", b"b"}, ENDPOINT)
    assert exit_info.files == {}
    assert exit_info.failure is not None
    assert exit_info.failure.reason is reason
    assert reason.scope not in ("file", "row")


@pytest.mark.parametrize(
    "line",
    [
        b"5d41402abc4b2a76b9719d911017c592|5|a/b.npy",
        b"                                |4096|dir/",
        b'skipping non-regular file "lnk"',
        b"skipping directory dir",
        b"big is over max-size",
    ],
)
def test_a_line_of_an_rsync_that_started_in_a_directory(line: bytes) -> None:
    plain, below = parse_line(line), parse_line(line, b"directory/")
    assert plain is not None
    assert below == replace(plain, entry=b"directory/" + plain.entry)


@pytest.mark.parametrize(
    "name", ["/data/directory/a", "/mnt/elsewhere/directory/a", "/proc/self/fd/4/a", "/data/linked/a"]
)
def test_an_error_names_its_entry_wherever_the_sender_started(name: str) -> None:
    message = f'rsync: [sender] link_stat "{name}" failed: No such file or directory (2)'
    exit_info = parse_exit(23, message, ROOT, {b"directory/a", b"directory/b"}, directory=b"directory/")
    assert exit_info.files == {b"directory/a": CopyFailure(Reason.MISSING, message)}


@pytest.mark.parametrize(
    ("name", "meant"), [("/proc/self/fd/4/a", b"run/a"), ("/mnt/4/a", None), ("/mnt/run/4/a", b"run/4/a")]
)
def test_an_ambiguous_error_names_no_entry(name: str, meant: bytes | None) -> None:
    message = f'rsync: [sender] link_stat "{name}" failed: No such file or directory (2)'
    exit_info = parse_exit(23, message, ROOT, {b"run/a", b"run/4/a"}, directory=b"run/")
    assert list(exit_info.files) == ([] if meant is None else [meant])


@pytest.mark.parametrize(
    ("status", "stderr", "expected"),
    [
        (3, 'rsync: [sender] change_dir "/data/directory/" failed: No such file or directory (2)', True),
        (12, 'rsync: [sender] change_dir "/data/directory/" failed: Permission denied (13)', True),
        (12, 'rsync: change_dir "/data/directory/" failed: Not a directory (20)', True),
        (12, "/usr/bin/rrsync error: post-realpath open failed (race detected): /f/ No such file or directory", True),
        (12, "/usr/bin/rrsync error: unsafe arg: /out/ ['/data/out', '/etc']", True),
        (0, "", False),
        (23, 'rsync: [sender] link_stat "/data/directory/a" failed: No such file or directory (2)', False),
        (3, 'rsync: [Receiver] change_dir#3 "/archive/.incoming" failed: No such file or directory (2)', False),
        (12, "rsync: connection unexpectedly closed (0 bytes received so far) [Receiver]", False),
        (255, "ssh: connect to host smurf-srv port 22: Connection refused", False),
    ],
)
def test_an_rsync_that_failed_to_enter_its_directory(status: int, stderr: str, expected: bool) -> None:
    assert failed_to_enter_directory(status, stderr) is expected


NOT_FOLLOWED = (
    'refusing to follow a symlink owned by an untrusted user; use --insecure-links locally or "insecure links = yes" in a '
    "daemon module ONLY if every path component is trusted\n"
)
LOOP = 'rsync: [sender] link_stat "/data/link/a" failed: Too many levels of symbolic links (40)\n'


def test_a_file_below_a_link_of_another_user_has_not_failed() -> None:
    exit_info = parse_exit(23, NOT_FOLLOWED + LOOP, ROOT, {b"link/a", b"b"})
    assert (dict(exit_info.files), exit_info.failure) == ({}, None)
    assert exit_info.below_links == {b"link/a"}


def test_a_file_below_a_loop_of_links_is_unreadable() -> None:
    exit_info = parse_exit(23, LOOP, ROOT, {b"link/a"})
    assert (exit_info.files[b"link/a"].reason, exit_info.below_links) == (Reason.UNREADABLE, frozenset())


@pytest.mark.parametrize(
    "line", ["(see the rsync manpage for an explanation)", '/etc/ssh/c line 1: Unsupported option "x"']
)
def test_the_message_is_the_line_that_says_the_cause(line: str) -> None:
    stderr = (
        f"protocol version mismatch -- is your shell clean?\n{line}\nrsync error: protocol incompatibility (code 2)\n"
    )
    failure = parse_exit(2, stderr, ROOT, {b"a"}, ENDPOINT).failure
    assert failure is not None
    assert (failure.reason, failure.message) == (
        Reason.RSYNC_REFUSED,
        "protocol version mismatch -- is your shell clean?",
    )


@pytest.mark.parametrize("status", [0, 23, 24])
def test_a_file_that_rsync_does_not_mention_stays_undecided(status: int) -> None:
    exit_info = parse_exit(status, "", ROOT, {b"a"})
    assert (exit_info.files, exit_info.failure) == ({}, None)


@given(st.binary(max_size=300))
def test_no_line_crashes_the_parser(line: bytes) -> None:
    parse_line(line)


@given(st.integers(-64, 255), st.text(max_size=500), st.sets(st.binary(min_size=1, max_size=5), max_size=4))
def test_no_exit_crashes_the_parser_or_decides_a_file_that_was_not_wanted(
    status: int, stderr: str, entries: set[bytes]
) -> None:
    exit_info = parse_exit(status, stderr, ROOT, entries, ENDPOINT)
    assert exit_info.files.keys() <= entries
