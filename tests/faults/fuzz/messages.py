"""Messages of rsync and ssh."""

from __future__ import annotations

import random

from cdc_archiver.model import Reason, Scope
from cdc_archiver.transfer import rsync_output
from cdc_archiver.transfer.ssh_errors import SshEndpoint, classify_ssh_failure
from fuzz.corpus import ENDPOINT, LINES, SSH_LINES, STATUSES, stderr_text


def check_line(line: bytes) -> None:
    match rsync_output.parse_line(line):
        case rsync_output.FileReceived(entry=entry, md5=md5, size=size):
            assert entry
            assert len(md5) == 16
            assert any(md5), "a sum of zeros is a failure"
            assert line.startswith(md5.hex().encode())
            assert size >= 0
        case rsync_output.NotRegularFile(entry=entry) | rsync_output.OverMaxSize(entry=entry):
            assert entry


def make_exit(rng: random.Random) -> tuple[int, str, str, list[bytes], SshEndpoint | None]:
    entries = [
        rng.choice((b"a.npy", b"b c.npy", b"data/a.npy", b"directory", b"\xff")) for _ in range(rng.randrange(4))
    ]
    root = rng.choice(("/", "/data", "/data/", "//data"))
    return rng.choice(STATUSES), stderr_text(rng, LINES, LINES, SSH_LINES), root, entries, rng.choice((ENDPOINT, None))


def check_exit(given: tuple[int, str, str, list[bytes], SshEndpoint | None]) -> None:
    status, stderr, root, entries, endpoint = given
    exit_info = rsync_output.parse_exit(status, stderr, root, entries, endpoint)
    assert exit_info.files.keys() <= set(entries), "a failure of a file that was not wanted"
    # A file that vanished is tried again before the failure counts for it.
    assert all(v.reason.scope is Scope.FILE or v.reason is Reason.UNDECIDED for v in exit_info.files.values())
    if exit_info.failure is not None:
        assert exit_info.failure.reason.scope in (Scope.SOURCE, Scope.CONFIGURATION, Scope.DESTINATION)
        assert exit_info.failure.message
    assert len(rsync_output.main_error_line(stderr)) <= 500


def check_ssh_output(text: str) -> None:
    failure = classify_ssh_failure(text, ENDPOINT)
    if failure is not None:
        assert failure.message in text.replace("\r", "")
        assert "\n" not in failure.message + failure.hint
        assert failure.reason.scope in (Scope.SOURCE, Scope.CONFIGURATION)
