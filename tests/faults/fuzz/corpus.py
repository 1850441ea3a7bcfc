"""Parts of inputs: names of all sorts, lines that rsync and ssh have printed, and both with a few characters changed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

from cdc_archiver.transfer.ssh_errors import SshEndpoint

SECRET: Final = "hunter2-c0rrect"
ENDPOINT: Final = SshEndpoint("smurf-srv", 2222, "data", "/home/ocs/.ssh/known hosts", "/home/ocs/.ssh/key")
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
    f"{' ' * 32}|4096|directory/",
    'skipping non-regular file "a.npy"',
    "skipping directory directory",
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


def mangled(rng: random.Random, text: str) -> str:
    """A text with a few characters deleted, doubled or inserted."""
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
    """A name as in a column or on a command line: bytes that are not UTF-8 are surrogate escapes."""
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


def stderr_text(rng: random.Random, *corpora: Sequence[str]) -> str:
    """Several lines of standard error, decoded."""
    lines = [mangled(rng, rng.choice(rng.choice(corpora))) for _ in range(rng.randrange(5))]
    return (
        rng.choice(("\n", "\n", "\r\n", "\r")).join(lines).encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    )
