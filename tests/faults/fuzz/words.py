"""rsync's and ssh's words."""

from __future__ import annotations

import random

from cdc_archiver.model import Reason, Scope
from cdc_archiver.transfer import rsync_output as report
from cdc_archiver.transfer.ssh_errors import Peer, classify_ssh_failure
from fuzz.corpus import LINES, PEER, SSH_LINES, STATUSES, words_of


def check_line(line: bytes) -> None:
    match report.read_line(line):
        case report.Arrived(entry=entry, md5=md5, size=size):
            assert entry
            assert len(md5) == 16
            assert any(md5), "a sum of zeros is a failure"
            assert line.startswith(md5.hex().encode())
            assert size >= 0
        case report.NotAFile(entry=entry) | report.TooLarge(entry=entry):
            assert entry


def make_ending(rng: random.Random) -> tuple[int, str, str, list[bytes], Peer | None]:
    entries = [
        rng.choice((b"a.npy", b"b c.npy", b"data/a.npy", b"directory", b"\xff")) for _ in range(rng.randrange(4))
    ]
    root = rng.choice(("/", "/data", "/data/", "//data"))
    return rng.choice(STATUSES), words_of(rng, LINES, LINES, SSH_LINES), root, entries, rng.choice((PEER, None))


def check_ending(given: tuple[int, str, str, list[bytes], Peer | None]) -> None:
    status, stderr, root, entries, peer = given
    ending = report.read_ending(status, stderr, root, entries, peer)
    assert ending.files.keys() <= set(entries), "a verdict on a file that was not asked for"
    # A file that vanished is looked for once more before it is its own fault.
    assert all(v.reason.scope is Scope.FILE or v.reason is Reason.UNDECIDED for v in ending.files.values())
    if ending.trouble is not None:
        assert ending.trouble.reason.scope in (Scope.SOURCE, Scope.CONFIGURATION, Scope.DESTINATION)
        assert ending.trouble.words
    assert len(report.last_words(stderr)) <= 500


def check_words(text: str) -> None:
    failure = classify_ssh_failure(text, PEER)
    if failure is not None:
        assert failure.words in text.replace("\r", "")
        assert "\n" not in failure.words + failure.hint
        assert failure.reason.scope in (Scope.SOURCE, Scope.CONFIGURATION)
