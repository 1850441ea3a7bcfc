"""Whatever comes in from outside, in any shape: rsync's and ssh's words, rows, settings, binlog events, names in a log.

``python -m fuzz --inputs 1000000 --seed 7`` tries a million inputs; the first that breaks a promise is shown, with the command that
shows it again, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final
from unittest import mock

import structlog
from pymysqlreplication.row_event import UpdateRowsEvent
from records import record

from cdc_archiver.database.server import KeyColumn
from cdc_archiver.errors import LayoutRefused, Misconfigured
from cdc_archiver.events.rows import KeyReader, Unreadable
from cdc_archiver.kinds import LogFormat, LogLevel
from cdc_archiver.model import Archived, Batch, Fault, FileRecord, Lane, Reason
from cdc_archiver.observe.logs import set_up_logs
from cdc_archiver.settings import Settings, SourceSettings, load
from cdc_archiver.transfer import report
from cdc_archiver.transfer.copier import Copier
from cdc_archiver.transfer.layout import archived_path, require_fit, source_entry
from cdc_archiver.transfer.ssh_words import Peer, classify_ssh_failure
from cdc_archiver.transfer.staging import Archive

SECRET: Final = "hunter2-c0rrect"
_SHOWN: Final = 3000
PEER: Final = Peer("smurf-srv", 2222, "data", "/home/ocs/.ssh/known hosts", "/home/ocs/.ssh/key")
MD5: Final = "5d41402abc4b2a76b9719d911017c592"

TEXTS: Final = (
    "",
    "a.npy",
    "data/20200515/crate1slot2/1589517300_iv.npy",
    "../../etc/passwd",
    "..",
    ".",
    "/",
    "-e sh",
    "--rsync-path=touch /tmp/x",
    "-oProxyCommand=touch /tmp/x",
    "'; DROP TABLE pysmurf_files; -- ",
    "$(touch /tmp/x)",
    "`touch /tmp/x`",
    "<script>alert(1)</script>",
    "two\nlines [info] archived",
    "\x1b[2J\x1b]0;owned\x07",
    "nul\0nul",
    "\u202eevil\u2028line\u2029\x85",
    "é" * 130,
    "x" * 300,
    "\udcff\udc80",
    r"\#012\#377\#999",
    "%s%n{0}{x}${HOME}",
    "😀",
)
LINES: Final = (
    f"{MD5}|5|a.npy",
    f"{MD5}|5|./b c.npy",
    f"{'0' * 32}|5|a.npy",
    f"{MD5.upper()}|5|a.npy",
    f"{' ' * 32}|4096|folder/",
    'skipping non-regular file "a.npy"',
    "skipping directory folder",
    "a.npy is over max-size",
    "receiving incremental file list",
    'rsync: [sender] link_stat "/data/a.npy" failed: No such file or directory (2)',
    'rsync: [sender] send_files failed to open "/data/b c.npy": Permission denied (13)',
    'file has vanished: "/data/a.npy"',
    'rsync: [sender] change_dir "/data" failed: No such file or directory (2)',
    'rsync: [receiver] mkstemp "/archive/.a.npy.x" failed: No space left on device (28)',
    'rsync: [generator] recv_generator: mkdir "/archive/x" failed: Permission denied (13)',
    "rsync error: some files/attrs were not transferred (code 23) at main.c(1865) [generator=3.5.0]",
    "rsync: connection unexpectedly closed (0 bytes received so far) [Receiver]",
    "rrsync error: sending to read-only server is not allowed",
    "sh: rsync: command not found",
)
SSH_LINES: Final = (
    "No ED25519 host key is known for [127.0.0.1]:2222 and you have requested strict checking.",
    "Host key for smurf-srv has changed and you have requested strict checking.",
    "Host key verification failed.",
    "No user exists for uid 9000",
    'Load key "/home/ocs/.ssh/key": bad permissions',
    "no such identity: /home/ocs/.ssh/key: No such file or directory",
    "data@smurf-srv: Permission denied (publickey,password).",
    "ssh: connect to host smurf-srv port 22: Connection refused",
    "ssh: Could not resolve hostname smurf-srv: Name or service not known",
    "kex_exchange_identification: Connection closed by remote host",
    "Timeout, server smurf-srv not responding.",
    "client_loop: send disconnect: Broken pipe",
    "[x]:99999999999999999999999999",
)
STATUSES: Final = (0, 1, 2, 3, 5, 10, 11, 12, 20, 23, 24, 30, 35, 127, 255, -9, -15, 256, 10**9)


@dataclass(frozen=True)
class Target:
    """One thing that is fuzzed.

    Attributes:
        share: of a thousand inputs.
        make: one input.
        check: raises where a promise is broken.
    """

    share: int
    make: Callable[[random.Random], Any]
    check: Callable[[Any], None]


def mangled(rng: random.Random, text: str) -> str:
    """Somebody's words with a few characters gone, doubled, swapped or made up."""
    characters = list(text)
    for _ in range(rng.choice((0, 0, 1, 1, 2, 5))):
        at = rng.randrange(len(characters) + 1)
        match rng.randrange(4):
            case 0:
                del characters[at : at + rng.randrange(1, 4)]
            case 1:
                characters[at:at] = characters[at : at + rng.randrange(1, 6)]
            case 2:
                characters[at:at] = chr(rng.choice((rng.randrange(0x20), rng.randrange(0x7F, 0x110000))))
            case _:
                characters[at:at] = rng.choice(('"', "|", ":", "\\#0", "\n", "\r", "/", "'", "(2)", "(28)", " ", "]"))
    return "".join(characters)


def a_text(rng: random.Random) -> str:
    """A name as a column or a command line has it: what is no UTF-8 in it comes as escaped bytes."""
    match rng.randrange(4):
        case 0:
            text = rng.choice(TEXTS) + rng.choice(TEXTS)
        case 1:
            text = "".join(chr(rng.randrange(rng.choice((0x80, 0x800, 0x110000)))) for _ in range(rng.randrange(40)))
        case _:
            text = mangled(rng, rng.choice(TEXTS))
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape")


def some_bytes(rng: random.Random) -> bytes:
    if rng.random() < 0.2:
        return rng.randbytes(rng.randrange(80))
    return mangled(rng, rng.choice(LINES)).encode("utf-8", "surrogatepass")


def words_of(rng: random.Random, *corpora: Sequence[str]) -> str:
    """Several lines of standard error, as they come after decoding."""
    lines = [mangled(rng, rng.choice(rng.choice(corpora))) for _ in range(rng.randrange(5))]
    return (
        rng.choice(("\n", "\n", "\r\n", "\r")).join(lines).encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    )


# rsync's words.


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
    entries = [rng.choice((b"a.npy", b"b c.npy", b"data/a.npy", b"folder", b"\xff")) for _ in range(rng.randrange(4))]
    root = rng.choice(("/", "/data", "/data/", "//data"))
    return rng.choice(STATUSES), words_of(rng, LINES, LINES, SSH_LINES), root, entries, rng.choice((PEER, None))


def check_ending(given: tuple[int, str, str, list[bytes], Peer | None]) -> None:
    status, stderr, root, entries, peer = given
    ending = report.read_ending(status, stderr, root, entries, peer)
    assert ending.files.keys() <= set(entries), "a verdict on a file that was not asked for"
    # A file that vanished is looked for once more before it is its own fault.
    assert all(v.reason.fault is Fault.FILE or v.reason is Reason.UNDECIDED for v in ending.files.values())
    if ending.trouble is not None:
        assert ending.trouble.reason.fault in (Fault.SOURCE, Fault.OPERATOR, Fault.DESTINATION)
        assert ending.trouble.words
    assert len(report.last_words(stderr)) <= 500


def check_words(text: str) -> None:
    failure = classify_ssh_failure(text, PEER)
    if failure is not None:
        assert failure.words in text.replace("\r", "")
        assert "\n" not in failure.words + failure.hint
        assert failure.reason.fault in (Fault.SOURCE, Fault.OPERATOR)


# A whole run: the copier with everything but rsync itself.


@dataclass
class Act:
    """What an rsync of ours says and does, once.

    Attributes:
        files: what lies in staging when a line is printed, by entry.
    """

    files: dict[bytes, bytes] = field(default_factory=dict)
    groups: list[list[bytes]] = field(default_factory=list)
    status: int = 0
    stderr: str = ""
    stalled: bool = False


@dataclass
class Play:
    """A batch, and the rsyncs that are run for it; after the last they say nothing."""

    lane: Lane
    contents: dict[str, bytes]
    acts: list[Act]


NAMES: Final = ("a.npy", "b c.npy", "c.npy", "d.npy")


def make_play(rng: random.Random) -> Play:
    contents = {name: name.encode() * 3 for name in rng.sample(NAMES, rng.randrange(1, 5))}
    acts = [make_act(rng, contents) for _ in range(rng.randrange(1, 4))]
    return Play(rng.choice(list(Lane)), contents, acts)


def make_act(rng: random.Random, contents: dict[str, bytes]) -> Act:
    act = Act(status=rng.choice(STATUSES), stderr=words_of(rng, LINES, SSH_LINES), stalled=rng.random() < 0.05)
    group: list[bytes] = []
    for _ in range(rng.randrange(6)):
        name = rng.choice(NAMES)
        right = contents.get(name, b"")
        brought = rng.choice((right, right, right, right + b"!", b"", b"\0" * 100))
        printed = rng.choice((brought, brought, right, b"?"))
        digest = rng.choice((hashlib.md5(printed).hexdigest().encode(),) * 3 + (b"0" * 32,))
        if rng.random() < 0.9:
            act.files[name.encode()] = brought
        line = b"|".join((digest, str(len(brought)).encode(), name.encode()))
        group.append(rng.choice((line, line, line, some_bytes(rng))))
        if rng.random() < 0.5:
            act.groups.append(group)
            group = []
    act.groups.append(group)
    return act


class Stand:
    """A copier on a folder of its own, made once."""

    def __init__(self, folder: Path) -> None:
        self.sources = folder / "readout"
        self.archive = folder / "archive"
        for made in (self.sources, self.archive):
            made.mkdir()
        (self.sources / "there.npy").write_bytes(b"so that the disk is there")
        options = {"target": ("m",), "data_dir": self.archive, "source_root": str(self.sources), "min_free": 0}
        self.settings = load(options, environment={})
        self.source: SourceSettings = self.settings.sources[0]
        keeper = Archive(self.archive, self.settings.modes, 0)
        self.copier = Copier(self.settings, keeper, 260, threading.Event())
        self.number = 0

    def check(self, play: Play) -> None:
        self.number += 1
        # Names of its own: what an earlier run has placed is adopted, and that is another story.
        records = [
            record(
                id=id_, path=f"{self.sources}/{name}", md5sum=hashlib.md5(content).digest(), pub_id=f"p{self.number}"
            )
            for id_, (name, content) in enumerate(play.contents.items(), 1)
        ]
        acts = iter(play.acts)
        with (
            mock.patch("cdc_archiver.transfer.copier.RsyncRun", lambda *given: FakeRun(next(acts, Act()), *given)),
            mock.patch("cdc_archiver.transfer.copier._LOOKS", 1),
            mock.patch.object(self.copier, "_pause"),
            mock.patch("os.fsync"),
            mock.patch("cdc_archiver.transfer.staging._syncfs"),
        ):
            outcomes = list(self.copier.archive(self.source, Batch("local", play.lane, "small-0", tuple(records))))
        assert Counter(outcome.record.id for outcome in outcomes) == Counter(each.id for each in records)
        for outcome in outcomes:
            if isinstance(outcome, Archived):
                placed = Path(outcome.path)
                assert placed.is_relative_to(self.archive)
                assert hashlib.md5(placed.read_bytes()).digest() == outcome.record.md5sum, "archived, and wrong"


class FakeRun:
    """In the place of :class:`cdc_archiver.transfer.rsync.RsyncRun`."""

    cancelled = False

    def __init__(self, act: Act, _command: object, entries: Sequence[bytes], staging: Path, *_: object) -> None:
        self._act = act
        self._staging = staging
        self._entries = entries
        self.status = act.status
        self.stderr = act.stderr
        self.stalled = act.stalled

    def lines(self) -> Iterator[list[report.Line]]:
        for name, content in self._act.files.items():
            if name in self._entries:  # rsync itself refuses what was not asked for
                (self._staging / os.fsdecode(name)).write_bytes(content)
        for group in self._act.groups:
            if lines := [line for text in group if (line := report.read_line(text)) is not None]:
                yield lines


# Rows.


def make_row(rng: random.Random) -> tuple[FileRecord, str]:
    seconds = rng.choice((0, 1589517264, rng.randrange(-(2**35), 2**37)))
    row = record(
        path=a_text(rng) if rng.random() < 0.3 else f"/{a_text(rng)}/{a_text(rng)}",
        timestamp=None if rng.random() < 0.05 else datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds),
        action=rng.choice((None, a_text(rng), "take_iv")),
        action_timestamp=rng.choice((None, rng.randrange(-(2**31), 2**31), 10**300)),
        plot=rng.random() < 0.5,
        pub_id=rng.choice((None, a_text(rng), "crate1slot2")),
    )
    return row, rng.choice(("/", "/data", "/data/../x", "/a b/"))


def check_row(given: tuple[FileRecord, str]) -> None:
    row, root = given
    with contextlib.suppress(LayoutRefused):
        entry = source_entry(row, root)
        assert not entry.startswith("/")
        assert "\0" not in entry
        assert not {"", ".", ".."} & set(entry.split("/"))
    place, refusal = "", None
    try:
        place = str(archived_path(row))
        require_fit(f"/archive/{place}", 260)
    except LayoutRefused as error:
        refusal = error
    if refusal is not None:
        assert refusal.reason.fault is Fault.ROW
        assert refusal.message
        return
    parts = place.split("/")
    assert len(parts) == 5, "not in its place"
    assert not {"", ".", ".."} & set(parts)
    assert "\0" not in place
    assert os.path.normpath(f"/archive/{place}") == f"/archive/{place}"
    assert all(len(os.fsencode(part)) <= 255 for part in parts)
    assert not parts[0].startswith("."), "beside the archiver's own folders"


# Settings.

LITERALS: Final = (
    '""',
    '"/data/pysmurf"',
    '"data@smurf-srv"',
    '"-oProxyCommand=x"',
    '"a\\nb"',
    '"a\\u0000b"',
    '"\\u001b[2J"',
    "'''\nseveral\nlines'''",
    "5",
    "-1",
    "0",
    "1_000",
    "0x7fffffffffffffffffffffff",
    "9" * 5000,
    "1e400",
    "inf",
    "nan",
    "1.5",
    "true",
    "1979-05-27T07:32:00Z",
    "07:32:00",
    "0000-00-00",
    "[]",
    '["m", "n"]',
    '["m", 5, [true]]',
    "[[[]]]",
    "[" * 3000,
    "{}",
    '{ a = "b" }',
    '"5m"',
    '"64M"',
    '"D755,F644"',
    '"D2775,F664"',
    '"json"',
    '"~nobody/x"',
    '"${HOME}"',
    f'"{SECRET}"',
    f'["{SECRET}"]',
    f'{{ secret = "{SECRET}" }}',
)
FIELDS: Final = tuple(Settings.model_fields)


@dataclass
class Site:
    """What settings are read from.

    Attributes:
        config: the TOML file's bytes; None for no file.
    """

    config: bytes | None
    flags: dict[str, Any]
    environment: dict[str, str]


def make_site(rng: random.Random) -> Site:
    config = None
    if rng.random() < 0.7:
        lines = [f"{rng.choice(FIELDS)} = {rng.choice(LITERALS)}" for _ in range(rng.randrange(4))]
        for _ in range(rng.choice((0, 0, 1, 2))):
            lines += [rng.choice(("[[sources]]", "[[sources]]", "[sources]"))]
            keys = (
                "name",
                "host",
                "target",
                "user",
                "ssh_key",
                "source_root",
                "bwlimit",
                "workers",
                rng.choice(FIELDS),
            )
            lines += [f"{rng.choice(keys)} = {rng.choice(LITERALS)}" for _ in range(rng.randrange(4))]
        text = "\n".join(lines)
        config = (mangled(rng, text) if rng.random() < 0.3 else text).encode("utf-8", "surrogatepass")

    # No flag and no variable can hold a NUL.
    def words() -> str:
        return a_text(rng).replace("\0", "")

    flags: dict[str, Any] = {rng.choice(FIELDS[:-1]): words() for _ in range(rng.choice((0, 1, 2)))}
    flags.pop("mysql_password", None)
    if "target" in flags or rng.random() < 0.4:
        flags["target"] = [words() for _ in range(rng.randrange(1, 3))] if rng.random() < 0.3 else ["m"]
    environment = {}
    for name in rng.sample(FIELDS, rng.choice((0, 1, 2))):
        variable = name.upper() if name.startswith("mysql_") else f"CDC_ARCHIVER_{name.upper()}"
        environment[variable] = words()
    if rng.random() < 0.1:
        environment[f"CDC_ARCHIVER_{words().replace('=', '')}"] = words()
    if rng.random() < 0.5:
        environment["MYSQL_PASSWORD"] = SECRET
    return Site(config, flags, environment)


class Desk:
    """A folder for the configuration file."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "site.toml"

    def check(self, site: Site) -> None:
        if site.config is not None:
            self._file.write_bytes(site.config)
        try:
            settings = load(site.flags, self._file if site.config is not None else None, site.environment)
            said = repr(settings) + str(settings) + repr(settings.sources)
            with contextlib.suppress(Misconfigured):
                _ = settings.password
            _ = settings.modes, settings.targets
            for part in (settings, *settings.sources):
                paths = [value for name in type(part).model_fields if isinstance(value := getattr(part, name), Path)]
                assert not any("\0" in str(path) for path in paths), "no file can be called so"
        except Misconfigured as error:
            said = str(error)
            assert said
            assert len(said.splitlines()) == 1, "an error is one line"
            assert "\x1b" not in said, "an error moves no cursor"
        assert SECRET not in said, "a password is shown"


# Events of the binary log.


def make_event(rng: random.Random) -> tuple[Any, KeyColumn | Exception]:
    columns = [
        SimpleNamespace(type=rng.choice((1, 2, 3, 8, 9, 15, 252, 254, None)), name=rng.choice((None, "", f"c{number}")))
        for number in range(rng.randrange(4))
    ]
    keys = [column.name or f"UNKNOWN_COL{number}" for number, column in enumerate(columns)]
    values: tuple[object, ...] = (1, -1, 2**63, -(2**63), 0, None, "1", b"\x01", 1.5, True)

    def row() -> dict[str, object]:
        return {key: rng.choice(values) for key in keys if rng.random() < 0.95}

    if rng.random() < 0.5:
        event: Any = SimpleNamespace(rows=[{"values": row()} for _ in range(rng.randrange(4))])
    else:
        event = UpdateRowsEvent.__new__(UpdateRowsEvent)
        event._RowsEvent__rows = [{"before_values": row(), "after_values": row()} for _ in range(rng.randrange(4))]
    event.columns, event.table_id = columns, rng.randrange(3)
    event.primary_key = rng.choice(("", None, (), ("a", "b"), "c0", "c1", "elsewhere"))
    answer: KeyColumn | Exception = KeyColumn("files", "pysmurf_files", "id", rng.randrange(5), rng.randrange(5))
    return event, rng.choice((answer, answer, Misconfigured("the table is gone")))


def check_event(given: tuple[Any, KeyColumn | Exception]) -> None:
    event, answer = given

    def ask() -> KeyColumn:
        if isinstance(answer, Exception):
            raise answer
        return answer

    keys = KeyReader(ask)
    with contextlib.suppress(Unreadable):
        ids = keys.ids(event)
        assert all(isinstance(id_, int) for id_ in ids)
        assert len(ids) == len(event.rows)
    keys.doubt()


# Log lines.


def make_log(rng: random.Random) -> tuple[LogFormat, dict[str, Any]]:
    values = {name: a_text(rng) for name in rng.sample(("path", "detail", "reason", "source", "mend"), 2)}
    return rng.choice(list(LogFormat)), {**values, "targets": [a_text(rng)], "id": rng.randrange(9)}


def check_log(given: tuple[LogFormat, dict[str, Any]]) -> None:
    log_format, values = given
    written = io.StringIO()
    with mock.patch("sys.stderr", written):
        set_up_logs(log_format, LogLevel.DEBUG)
        structlog.get_logger().info("charged", **values)
    text = written.getvalue()
    assert text.endswith("\n")
    assert len(text.splitlines()) == 1, "a log line is one line"
    assert not any(ord(character) < 0x20 or 0x7F <= ord(character) < 0xA0 for character in text[:-1])
    text.encode("utf-8")
    if log_format is LogFormat.JSON:
        assert json.loads(text)["event"] == "charged"


@contextlib.contextmanager
def all_targets() -> Iterator[dict[str, Target]]:
    """Everything that is fuzzed; logs are set up as they were afterwards."""
    configuration = structlog.get_config()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        stand, desk = Stand(Path(folder)), Desk(Path(folder))
        try:
            yield {
                "line": Target(420, some_bytes, check_line),
                "ending": Target(140, make_ending, check_ending),
                "words": Target(130, lambda rng: words_of(rng, SSH_LINES, LINES), check_words),
                "row": Target(216, make_row, check_row),
                "event": Target(80, make_event, check_event),
                "log": Target(10, make_log, check_log),
                "site": Target(2, make_site, desk.check),
                "play": Target(2, make_play, stand.check),
            }
        finally:
            structlog.configure(**configuration)


@dataclass(frozen=True)
class Broken:
    """An input that broke a promise."""

    target: str
    index: int
    given: Any
    error: BaseException


def inputs(targets: dict[str, Target], total: int) -> Iterator[tuple[str, int]]:
    """Which input comes next: each target's share of each thousand, one at least."""
    done = 0
    while done < total:
        for name, target in targets.items():
            for index in range(done // 1000 * target.share, (done // 1000 + 1) * target.share):
                yield name, index
        done += 1000


def an_input(target: Target, name: str, seed: int, index: int) -> Any:
    return target.make(random.Random(f"{seed}/{name}/{index}"))


def attempt(targets: dict[str, Target], name: str, seed: int, index: int) -> Broken | None:
    """Tries one input."""
    given = an_input(targets[name], name, seed, index)
    try:
        targets[name].check(given)
    except Exception as error:
        # Made anew: the check may have changed it.
        return Broken(name, index, an_input(targets[name], name, seed, index), error)
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--inputs", type=int, default=1_000_000, help="how many; in thousands")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--one", metavar="TARGET:INDEX", help="this one input of the seed again")
    options = parser.parse_args(arguments)
    began = said = time.monotonic()
    tried: Counter[str] = Counter()
    with all_targets() as targets:
        wanted: Iterator[tuple[str, int]] = inputs(targets, options.inputs)
        if options.one:
            name, _, index = options.one.partition(":")
            wanted = iter([(name, int(index))])
        for name, index in wanted:
            broken = attempt(targets, name, options.seed, index)
            if broken is not None:
                print(
                    f"\n{name} {index} of seed {options.seed} breaks a promise: {broken.error!r}\n{repr(broken.given)[:_SHOWN]}"
                )
                print(f"again: python -m fuzz --seed {options.seed} --one {name}:{index}")
                if options.one:
                    raise broken.error
                return 1
            tried[name] += 1
            if time.monotonic() - said > 10.0:
                said = time.monotonic()
                print(f"{tried.total():>9} inputs, {said - began:.0f} s", flush=True)
    each = ", ".join(f"{name} {count}" for name, count in tried.items())
    print(
        f"{tried.total()} inputs, none breaks a promise: {each}; seed {options.seed}, {time.monotonic() - began:.0f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
