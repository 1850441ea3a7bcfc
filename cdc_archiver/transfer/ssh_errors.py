"""What OpenSSH's client says when it fails, and what that means. Pure.

The words were captured from OpenSSH 9.2; tests repeat the capture for those that can be brought about on loopback.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from cdc_archiver.model import Reason


@dataclass(frozen=True, slots=True)
class Peer:
    """Where a login goes and with what, for the sentences below.

    Attributes:
        host: as configured, without a user.
        port: None where OpenSSH's own configuration decides.
        user: empty where OpenSSH's own configuration decides.
        known_hosts: the one file of trusted host keys.
        key: private key; empty where OpenSSH chooses.
        restricted_to: the directory that the key may read and nothing else; empty for an ordinary login.
    """

    host: str
    port: int | None
    user: str
    known_hosts: str
    key: str
    restricted_to: str = ""

    @property
    def login(self) -> str:
        """``user@host``, or the host alone."""
        return f"{self.user}@{self.host}" if self.user else self.host

    def command(self, program: str, *more: str) -> str:
        """A command line for a shell, with this peer's port where one is set."""
        port = ("-p", str(self.port)) if self.port else ()
        return shlex.join((program, *port, *more))


@dataclass(frozen=True, slots=True)
class SshFailure:
    """Why ssh failed.

    Attributes:
        words: ssh's own decisive line.
        hint: what a person can do; may be empty.
    """

    reason: Reason
    words: str
    hint: str = ""


Hint = Callable[[Peer, "re.Match[str]"], str]


def host_key_hint(peer: Peer, changed: bool) -> str:
    """The command that trusts the peer's host key, or its new one, with what to make sure of first.

    Args:
        changed: another key than the trusted one was shown.
    """
    scan = peer.command("ssh-keyscan", peer.host)
    trust = f"{scan} >> {shlex.quote(peer.known_hosts)}"
    compare = f"compare `{scan} | ssh-keygen -lf -` with the fingerprint on the host's own console"
    if not changed:
        return f"{trust}  # first {compare}"
    name = f"[{peer.host}]:{peer.port}" if peer.port not in (None, 22) else peer.host
    forget = shlex.join(("ssh-keygen", "-f", peer.known_hosts, "-R", name))
    return f"{forget}; {trust}  # first find out why it changed, and {compare}"


def key_refused_hint(peer: Peer) -> str:
    """The command that lets our key in."""
    if peer.restricted_to:
        public = f"the content of {peer.key}.pub" if peer.key else "the public key"
        line = f'restrict,command="rrsync -ro {peer.restricted_to}" and {public}'
        return f"a line in ~/.ssh/authorized_keys of {peer.login}: {line}  # or check --user and --ssh-key"
    key = ("-i", peer.key) if peer.key else ()
    return f"{peer.command('ssh-copy-id', *key, peer.login)}  # or check --user and --ssh-key"


def _unknown_key(peer: Peer, found: re.Match[str]) -> str:
    return host_key_hint(_named(peer, found["name"]), changed=False)


def _changed_key(peer: Peer, found: re.Match[str]) -> str:
    return host_key_hint(_named(peer, found["name"]), changed=True)


def _named(peer: Peer, name: str) -> Peer:
    """The peer under the name that ssh looks up, which its configuration may have made of ours."""
    bracketed = re.fullmatch(r"\[(?P<host>.+)\]:(?P<port>\d+)", name)
    host, port = (bracketed["host"], int(bracketed["port"])) if bracketed else (name, None)
    if not re.fullmatch(r"[A-Za-z0-9_:][A-Za-z0-9_.:%-]*", host):
        return peer  # no name of a host, and so not ssh's words
    return replace(peer, host=host, port=port)


def _says(text: str) -> Hint:
    return lambda peer, found: text


# A key is named as it was configured and not as in the words: the other side has a hand in these too.


def _key_permissions(peer: Peer, found: re.Match[str]) -> str:
    return shlex.join(("chmod", "600", peer.key)) if peer.key else "the private key must be for this user alone to read"


def _key_unusable(peer: Peer, found: re.Match[str]) -> str:
    return f"{peer.key or 'the key'} must be a private key without a passphrase that this user can read"


def _key_absent(peer: Peer, found: re.Match[str]) -> str:
    return (
        f"ssh-keygen -t ed25519 -N '' -f {shlex.quote(peer.key)}  # or check --ssh-key" if peer.key else "--ssh-key KEY"
    )


def _refused(peer: Peer, found: re.Match[str]) -> str:
    return key_refused_hint(peer)


# The first that matches, decides: what a person must fix comes before what time may fix, a cause before its
# consequence. Each pattern is a whole line, so that a phrase in a host's banner does not pass for ssh's own.
_RULES: Final[tuple[tuple[str, Reason, Hint], ...]] = (
    (
        r"No .+ host key is known for (?P<name>\S+) and you have requested strict checking\.",
        Reason.HOST_KEY,
        _unknown_key,
    ),
    (
        r"(?:Host key for|\S+ host key for) (?P<name>\S+) has changed and you have requested strict checking\.",
        Reason.HOST_KEY,
        _changed_key,
    ),
    (
        r"\S+ host key for (?P<name>\S+) was revoked and you have requested strict checking\.",
        Reason.HOST_KEY,
        _says("the known_hosts file marks this key as revoked: find out why before anything else"),
    ),
    (
        r"Host key verification failed\.",
        Reason.HOST_KEY,
        lambda peer, found: host_key_hint(peer, changed=False),
    ),
    (
        r"Unable to negotiate with .+: no matching host key type found\..*",
        Reason.HOST_KEY,
        _says("the host offers old key types only: give it an ed25519 key, or allow its type in the ssh configuration"),
    ),
    (
        r"Unable to negotiate with .+: no matching .+ found\..*",
        Reason.LOGIN_REFUSED,
        _says("the host offers old algorithms only: update its sshd, or allow them in the ssh configuration"),
    ),
    (
        r"No user exists for uid \d+",
        Reason.LOGIN_REFUSED,
        _says("ssh needs a passwd entry for the uid that it runs as: use an account, or add one for this uid"),
    ),
    (
        (
            r"(?:\S+: line \d+: Bad configuration option: .+|\S+: terminating, \d+ bad configuration options"
            r"|Can't open user config file .+|Bad owner or permissions on .+|(?:command-line|/\S*[^\s:]) line \d+: .+)"
        ),
        Reason.LOGIN_REFUSED,
        _says("mend the ssh configuration (~/.ssh/config, or --ssh-config)"),
    ),
    (r'Load key "(?P<key>.+)": bad permissions', Reason.LOGIN_REFUSED, _key_permissions),
    (r'Load key "(?P<key>.+)": .+', Reason.LOGIN_REFUSED, _key_unusable),
    (r"no such identity: (?P<key>.+): No such file or directory", Reason.LOGIN_REFUSED, _key_absent),
    (r"no such identity: (?P<key>.+): .+", Reason.LOGIN_REFUSED, _key_unusable),
    (
        r"(?:Received disconnect from .+: ?)?Too many authentication failures.*",
        Reason.LOGIN_REFUSED,
        _says("name the one right key with --ssh-key: ssh offers no other then"),
    ),
    (
        r"(?:Password change required but no TTY available\.|Your (?:account|password) has expired.*)",
        Reason.LOGIN_REFUSED,
        _says("the account on the host has expired: renew it there"),
    ),
    (r"(?:\S+: )?Permission denied \([a-z0-9,-]+\)\.", Reason.LOGIN_REFUSED, _refused),
    (
        r"ssh: Could not resolve hostname .+",
        Reason.HOST_UNREACHABLE,
        _says("check the host's name, and this machine's name service"),
    ),
    (
        r"ssh: connect to host .+ port \d+: Connection refused",
        Reason.HOST_UNREACHABLE,
        _says("no sshd listens there: is the host up, and is the port right (--ssh-port)?"),
    ),
    (
        r"ssh: connect to (?:host|address) .+ port \d+: .+",
        Reason.HOST_UNREACHABLE,
        _says("is the host up, and is the network between?"),
    ),
    (
        (
            r"(?:Connection timed out during banner exchange|Connection to \S+ port \d+ timed out"
            r"|banner exchange: Connection .+|Protocol major versions differ: .+)"
        ),
        Reason.HOST_UNREACHABLE,
        _says("the port is open and no sshd answers: is the host overloaded, or the port another service's?"),
    ),
    (
        r"(?:kex_exchange_identification|ssh_exchange_identification): .+",
        Reason.HOST_UNREACHABLE,
        _says("its sshd turned the connection away before the login: too many at once, or an address filter"),
    ),
    (
        (
            r"(?:Timeout, server \S+ not responding\.|Connection to \S+ closed by remote host\."
            r"|(?:client_loop: )?send disconnect: .+|Read from remote host .+|Write failed: .+|packet_write_wait: .+"
            r"|ssh_dispatch_run_fatal: .+|ssh_packet_\w+: .+|Corrupted MAC on input\.|Bad packet length \d+\."
            r"|(?:Connection (?:closed|reset) by|Received disconnect from|Disconnected from) .+"
            r"|mux_client_\w+: .*master.*|Connection to master (?:closed|lost).*)"
        ),
        Reason.LINK_LOST,
        _says(""),
    ),
)

_COMPILED: Final = tuple((re.compile(f"^{pattern}$", re.MULTILINE), reason, hint) for pattern, reason, hint in _RULES)


def classify_ssh_failure(stderr: str, peer: Peer) -> SshFailure | None:
    """What ssh meant.

    Args:
        stderr: all that ssh wrote there; lines of rsync, of a banner and of a stale control socket may be among them.
        peer: for the hint.

    Returns:
        None where ssh said nothing that is known. A client whose ControlMaster died says nothing at all: then the exit
        status 255 alone means that the link was lost.
    """
    # ssh ends its lines with \r\n.
    text = stderr.replace("\r", "")
    for pattern, reason, hint in _COMPILED:
        if found := pattern.search(text):
            return SshFailure(reason, found[0], hint(peer, found))
    return None
