"""Interprets the error messages of OpenSSH's client, with the fix for each. Pure.

The messages were captured from OpenSSH 9.2; tests repeat the capture for those that can be reproduced on loopback.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from cdc_archiver.model import Reason


@dataclass(frozen=True, slots=True)
class SshEndpoint:
    """Where an ssh login goes and with which key, for the hints below.

    Attributes:
        host: as configured, without a user.
        port: None where OpenSSH's own configuration decides.
        user: empty where OpenSSH's own configuration decides.
        known_hosts: the one file of trusted host keys.
        key: private key; empty where OpenSSH chooses.
        restricted_to: the only directory that the key may read; empty for an ordinary login.
    """

    host: str
    port: int | None
    user: str
    known_hosts: str
    key: str
    restricted_to: str = ""

    @property
    def login(self) -> str:
        """``user@host``, or only the host."""
        return f"{self.user}@{self.host}" if self.user else self.host

    def command_line(self, program: str, *arguments: str) -> str:
        """A command line for a shell, with this endpoint's port where one is set."""
        port = ("-p", str(self.port)) if self.port else ()
        return shlex.join((program, *port, *arguments))


@dataclass(frozen=True, slots=True)
class SshFailure:
    """Why ssh failed.

    Attributes:
        message: the line of ssh's output that decides.
        hint: the fix; may be empty.
    """

    reason: Reason
    message: str
    hint: str = ""


_HARMLESS: Final = re.compile(
    r"(?:.+ line \d+: )?(?:Unsupported|Deprecated) option .*|Warning: .+|\*\* .+|Pseudo-terminal will not be .+"
    r"|Control socket connect\(.+|.*\bwarning: setlocale: .+"
)
"""Lines that OpenSSH and shells print although everything works: never the cause of a failure."""

HintBuilder = Callable[[SshEndpoint, "re.Match[str]"], str]


def host_key_hint(endpoint: SshEndpoint, changed: bool) -> str:
    """The command that trusts the endpoint's host key, or its new one, with the check to make first.

    Args:
        changed: the host showed another key than the trusted one.
    """
    scan = endpoint.command_line("ssh-keyscan", endpoint.host)
    trust = f"{scan} >> {shlex.quote(endpoint.known_hosts)}"
    compare = f"compare `{scan} | ssh-keygen -lf -` with the fingerprint shown on the host's own console"
    if not changed:
        return f"{trust}  # first {compare}"
    name = f"[{endpoint.host}]:{endpoint.port}" if endpoint.port not in (None, 22) else endpoint.host
    forget = shlex.join(("ssh-keygen", "-f", endpoint.known_hosts, "-R", name))
    return f"{forget}; {trust}  # first find out why the key changed, and {compare}"


def key_refused_hint(endpoint: SshEndpoint) -> str:
    """The command that authorizes the key on the host."""
    if endpoint.restricted_to:
        line = f'restrict,command="rrsync -ro {endpoint.restricted_to}" {_public_key(endpoint.key)}'
        return f"add this line to ~/.ssh/authorized_keys of {endpoint.login}: {line}  # or check --user and --ssh-key"
    key = ("-i", endpoint.key) if endpoint.key else ()
    return f"{endpoint.command_line('ssh-copy-id', *key, endpoint.login)}  # or check --user and --ssh-key"


def _public_key(key: str) -> str:
    """The line of a public key; where it cannot be read, what to put in its place."""
    try:
        lines = Path(f"{key}.pub").read_text(encoding="utf-8").splitlines() if key else []
    except (OSError, UnicodeDecodeError):
        lines = []
    return lines[0].strip() if lines else f"<content of {key or 'KEY'}.pub>"


def _unknown_host_key_hint(endpoint: SshEndpoint, match: re.Match[str]) -> str:
    return host_key_hint(_with_matched_host(endpoint, match["name"]), changed=False)


def _changed_host_key_hint(endpoint: SshEndpoint, match: re.Match[str]) -> str:
    return host_key_hint(_with_matched_host(endpoint, match["name"]), changed=True)


def _with_matched_host(endpoint: SshEndpoint, name: str) -> SshEndpoint:
    """The endpoint under the name that ssh looks up, which ssh's configuration may have replaced."""
    bracketed = re.fullmatch(r"\[(?P<host>.+)\]:(?P<port>\d+)", name)
    host, port = (bracketed["host"], int(bracketed["port"])) if bracketed else (name, None)
    if not re.fullmatch(r"[A-Za-z0-9_:][A-Za-z0-9_.:%-]*", host):
        return endpoint  # not a host name, so the line is not ssh's own
    return replace(endpoint, host=host, port=port)


def _user_name_hint(endpoint: SshEndpoint, match: re.Match[str]) -> str:
    lines = shlex.join((f"Host {endpoint.host}", f"  User {endpoint.user}"))
    return f"printf '%s\\n' {lines} >> ~/.ssh/config  # then leave out --user: ssh takes such a name from a file only"


def _jump_host_hint(endpoint: SshEndpoint, reason: Reason, match: re.Match[str], hint: str) -> str:
    """The fix where the jump host failed: only ssh's own configuration has its name, user and keys.

    Args:
        hint: the fix for a host without a jump host.
    """
    login = match.groupdict().get("name") or ""
    host = login.rpartition("@")[2]
    jump_host = f"{host} is the jump host (ProxyJump in the ssh configuration)"
    if not login:
        ask = endpoint.command_line("ssh", "-G", endpoint.host)
        return f"{ask} | grep -i ^proxy  # names the jump host or proxy command that fails: check that it is up"
    if reason is Reason.LOGIN_REFUSED:
        return f"ssh-copy-id {shlex.quote(login)}  # {jump_host}, which has its user and key: --ssh-key is not for it"
    if reason is Reason.HOST_KEY:
        return f"{hint}; {jump_host}, which may name another known_hosts file"
    return f"{jump_host}: check that it is up, and its name and port there"


def _fixed_hint(text: str) -> HintBuilder:
    return lambda endpoint, match: text


# A hint names the key as configured, not as in the message: the other side can influence the message.


def _key_permissions_hint(endpoint: SshEndpoint, match: re.Match[str]) -> str:
    return (
        shlex.join(("chmod", "600", endpoint.key))
        if endpoint.key
        else "make the private key readable only by this user: chmod 600 KEY"
    )


def _key_unusable_hint(endpoint: SshEndpoint, match: re.Match[str]) -> str:
    return f"{endpoint.key or 'the key'} must be a private key without a passphrase that this user can read; check --ssh-key"


def _key_absent_hint(endpoint: SshEndpoint, match: re.Match[str]) -> str:
    return (
        f"ssh-keygen -t ed25519 -N '' -f {shlex.quote(endpoint.key)}  # or check --ssh-key"
        if endpoint.key
        else "--ssh-key KEY"
    )


def _login_refused_hint(endpoint: SshEndpoint, match: re.Match[str]) -> str:
    return key_refused_hint(endpoint)


# Of several lines of one reason the first rule here decides: a cause comes before its consequence. Each pattern is a whole
# line, so that a phrase in a host's banner does not pass for ssh's own.
_RULES: Final[tuple[tuple[str, Reason, HintBuilder], ...]] = (
    (
        r"No .+ host key is known for (?P<name>\S+) and you have requested strict checking\.",
        Reason.HOST_KEY,
        _unknown_host_key_hint,
    ),
    (
        r"(?:Host key for|\S+ host key for) (?P<name>\S+) has changed and you have requested strict checking\.",
        Reason.HOST_KEY,
        _changed_host_key_hint,
    ),
    (
        r"\S+ host key for (?P<name>\S+) was revoked and you have requested strict checking\.",
        Reason.HOST_KEY,
        _fixed_hint("known_hosts marks this host key as revoked: find out why before anything else"),
    ),
    (
        r"Host key verification failed\.",
        Reason.HOST_KEY,
        lambda endpoint, match: host_key_hint(endpoint, changed=False),
    ),
    (
        r"Unable to negotiate with .+: no matching host key type found\..*",
        Reason.HOST_KEY,
        _fixed_hint(
            "the host offers only old key types: give it an ed25519 host key, or allow its type in the ssh configuration"
        ),
    ),
    (
        r"Unable to negotiate with .+: no matching .+ found\..*",
        Reason.LOGIN_REFUSED,
        _fixed_hint("the host offers only old algorithms: update its sshd, or allow them in the ssh configuration"),
    ),
    (
        r"No user exists for uid \d+",
        Reason.LOGIN_REFUSED,
        _fixed_hint(
            "ssh needs a passwd entry for the uid that it runs as: run as an existing user, or add an entry for this uid"
        ),
    ),
    (r'Load key "(?P<key>.+)": bad permissions', Reason.LOGIN_REFUSED, _key_permissions_hint),
    (r'Load key "(?P<key>.+)": .+', Reason.LOGIN_REFUSED, _key_unusable_hint),
    (r"no such identity: (?P<key>.+): No such file or directory", Reason.LOGIN_REFUSED, _key_absent_hint),
    (r"no such identity: (?P<key>.+): .+", Reason.LOGIN_REFUSED, _key_unusable_hint),
    (
        r"(?:Received disconnect from .+: ?)?Too many authentication failures.*",
        Reason.LOGIN_REFUSED,
        _fixed_hint("set --ssh-key to the right key: ssh then offers no other"),
    ),
    (
        r"(?:Password change required but no TTY available\.|Your (?:account|password) has expired.*)",
        Reason.LOGIN_REFUSED,
        _fixed_hint("the account on the host has expired: renew it there"),
    ),
    (r"(?:(?P<name>\S+): )?Permission denied \([a-z0-9,-]+\)\.", Reason.LOGIN_REFUSED, _login_refused_hint),
    (r"remote user ?name contains invalid characters.*", Reason.LOGIN_REFUSED, _user_name_hint),
    (
        (
            r"(?:\S+: line \d+: Bad configuration option: .+|\S+: terminating, \d+ bad configuration options"
            r"|Can't open user config file .+|Bad owner or permissions on .+|(?:command-line|/\S*[^\s:]) line \d+: .+)"
        ),
        Reason.LOGIN_REFUSED,
        _fixed_hint("correct the ssh configuration (~/.ssh/config, or --ssh-config)"),
    ),
    (
        r"(?:channel \d+: open failed: .+|stdio forwarding failed)",
        Reason.HOST_UNREACHABLE,
        _fixed_hint(
            "the jump host does not reach it: check that the host is up, its port (--ssh-port), "
            "and AllowTcpForwarding on the jump host"
        ),
    ),
    (
        r"ssh: Could not resolve hostname (?P<name>\S+): .+",
        Reason.HOST_UNREACHABLE,
        _fixed_hint("check the host name, and this machine's name service"),
    ),
    (
        r"ssh: connect to host (?P<name>\S+) port \d+: Connection refused",
        Reason.HOST_UNREACHABLE,
        _fixed_hint("no sshd listens there: check that the host is up, and the port (--ssh-port)"),
    ),
    (
        r"ssh: connect to (?:host|address) (?P<name>\S+) port \d+: .+",
        Reason.HOST_UNREACHABLE,
        _fixed_hint("check that the host is up, and the network to it"),
    ),
    (
        (
            r"(?:Connection timed out during banner exchange|Connection to \S+ port \d+ timed out"
            r"|banner exchange: Connection .+|Protocol major versions differ: .+)"
        ),
        Reason.HOST_UNREACHABLE,
        _fixed_hint(
            "the port is open but no sshd answers: the host may be overloaded, or another service may use the port"
        ),
    ),
    (
        r"(?:kex_exchange_identification|ssh_exchange_identification): .+",
        Reason.HOST_UNREACHABLE,
        _fixed_hint(
            "its sshd refused the connection before the login: too many connections at once, an address filter, or a penalty "
            "for refused logins (PerSourcePenalties): correct the key and --user, then wait a minute"
        ),
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
        _fixed_hint(""),
    ),
)

_COMPILED: Final = tuple((re.compile(pattern), reason, hint) for pattern, reason, hint in _RULES)

_CONSEQUENCE: Final = re.compile(
    r"(?:kex|ssh)_exchange_identification: .+|mux_client_.+|(?:Connection (?:closed|reset) by|Disconnected from) .+"
)
"""What ssh says after the cause, where it said one."""
_KEY_WARNING: Final = re.compile(r"Load key .+|no such identity: .+")
"""Explains a refused login; where another key was taken, it explains nothing."""
_FORWARDING: Final = ("channel ", "stdio forwarding ")
_PROXIED: Final = re.compile(r"\bUNKNOWN port 65535\b")
"""How ssh names the other end of a jump host or a proxy command."""


def without_harmless_lines(stderr: str) -> str:
    """The output without the lines that OpenSSH and shells print although everything works; lines end with a newline only."""
    lines = stderr.replace("\r", "").split("\n")
    return "\n".join(line for line in lines if not _HARMLESS.fullmatch(line))


def classify_ssh_failure(stderr: str, endpoint: SshEndpoint) -> SshFailure | None:
    """The reason, decisive line and hint for a failed ssh.

    Args:
        stderr: everything that ssh wrote there; it may contain lines of rsync, a banner and a stale control socket.
        endpoint: for the hint.

    Returns:
        None where no line is known. A client whose ControlMaster died prints nothing at all: only its exit status 255 then
        means that the link was lost.
    """
    text = without_harmless_lines(stderr)
    found = [each for line in text.split("\n") if (each := _first_rule(line)) is not None]
    if not found:
        return None
    # The last error decides the class; of the lines of that class the first rule is the most specific.
    errors = [each for each in found if not _KEY_WARNING.fullmatch(each[1][0])] or found
    causes = [each for each in errors if not _CONSEQUENCE.fullmatch(each[1][0])]
    reason = _COMPILED[causes[-1][0] if causes else min(number for number, _ in errors)][1]
    number, match = min((each for each in found if _COMPILED[each[0]][1] is reason), key=lambda each: each[0])
    by_jump_host = _PROXIED.search(text) and not _PROXIED.search(match[0]) and not match[0].startswith(_FORWARDING)
    hint = _COMPILED[number][2](endpoint, match)
    return SshFailure(reason, match[0], _jump_host_hint(endpoint, reason, match, hint) if by_jump_host else hint)


def _first_rule(line: str) -> tuple[int, re.Match[str]] | None:
    matches = ((number, pattern.fullmatch(line)) for number, (pattern, _, _) in enumerate(_COMPILED))
    return next(((number, match) for number, match in matches if match), None)
