"""A private OpenSSH server on loopback with one account of its own, as a readout server's operator would set it up."""

import os
import shlex
import socket
import time
from pathlib import Path
from typing import Any

from cdc_archiver.sandbox.errors import SandboxError
from cdc_archiver.sandbox.packages import Tool, bin_directory, find, find_library
from cdc_archiver.sandbox.process import ChildProcess
from cdc_archiver.sandbox.server import Server

_START_LIMIT = 15.0
_NOBODY = 65_534
_NSS_WRAPPER = "libnss_wrapper.so"
_REMOTE_PATH = "/usr/local/bin:/usr/bin:/bin"

NO_PROGRAMS = "/nonexistent"
"""A remote PATH on which nothing is found, rsync included."""


class SshServer(Server):
    """One private sshd that lets one key into one account, `smurf`.

    The account is made up for this server alone (nss_wrapper): it has the uid of this process, a home directory of its own
    and a plain `/bin/sh` that reads no start-up files. The machine's accounts are neither needed nor changed.
    """

    user = "smurf"
    """The login name."""

    def __init__(self, directory: Path) -> None:
        """Describe the server; `start` runs it.

        Arguments:
            directory: its own directory, made where it is absent; keys found there are used again.
        """
        super().__init__("sshd")
        self.directory = directory.absolute()
        self.home = self.directory / "home"
        self.key = self.directory / "client_key"
        self.known_hosts = self.directory / "known_hosts"
        self.log = self.directory / "sshd.log"
        self._host_key = self.directory / "host_key"
        self._authorized_keys = self.directory / "authorized_keys"

    @property
    def host(self) -> str:
        """The address that it listens on."""
        return "127.0.0.1"

    @property
    def settings(self) -> dict[str, Any]:
        """How it is reached, as settings of a source; a person's own configuration of ssh does not count."""
        return {
            "host": self.host,
            "user": self.user,
            "ssh_port": self.port,
            "ssh_key": self.key,
            "known_hosts": self.known_hosts,
            "ssh_config": "/dev/null",
        }

    def prepare(self) -> None:
        """Get what it needs onto the machine, which may take a download; `start` does it otherwise."""
        for program in ("sshd", "ssh-keygen", "ssh", "rsync", "rrsync"):
            find(program)
        find_library(_NSS_WRAPPER)

    def start(self) -> None:
        """Run it and wait until it takes connections; SandboxError, with its last words, where it does not."""
        if self.running:
            return
        self.prepare()
        self._furnish()
        first = self._port is None
        self._start_on_a_port(self._launch, _await_banner)
        if first:
            self._write_known_hosts()

    def stop(self) -> None:
        """End it and every session that it has open."""
        if self._process is not None:
            self._process.stop(5.0)

    def authorize(self, *, read_only: Path | None = None, path: str | None = None) -> None:
        """Say what the client's key may do, from the next connection on; without arguments, everything.

        Arguments:
            read_only: the directory that the key is restricted to, as `restrict,command="rrsync -ro DIRECTORY"` does it.
            path: the PATH of remote commands; None finds rsync on it, `NO_PROGRAMS` finds nothing.
        """
        remote_path = path if path is not None else f"{bin_directory()}:{_REMOTE_PATH}"
        options = [f'environment="PATH={remote_path}"']
        if read_only is not None:
            program = find("rrsync")
            rrsync = bin_directory() / "rrsync" if program.private else program.path
            options += ["restrict", f'command="{shlex.quote(str(rrsync))} -ro {shlex.quote(str(read_only))}"']
        public = self.key.with_suffix(".pub").read_text()
        self._authorized_keys.write_text(f"{','.join(options)} {public}")

    def revoke(self) -> None:
        """Let the client's key in no more, until `authorize`."""
        self._authorized_keys.write_text("")

    def change_host_key(self) -> None:
        """Give it another host key and start it again; `known_hosts` keeps the old one, until `trust_host_key`."""
        self.stop()
        for file in (self._host_key, self._host_key.with_suffix(".pub")):
            file.unlink()
        _make_key(self._host_key)
        self.start()

    def trust_host_key(self) -> None:
        """Write its present host key to `known_hosts`."""
        self._write_known_hosts()

    def command(self, *remote: str) -> list[str]:
        """The `ssh` command line that logs in, strictly checked and with no question asked, and runs `remote`."""
        options = (
            ("BatchMode", "yes"),
            ("IdentitiesOnly", "yes"),
            ("StrictHostKeyChecking", "yes"),
            ("UserKnownHostsFile", _quoted(self.known_hosts)),
            ("GlobalKnownHostsFile", "/dev/null"),
            ("ConnectTimeout", "10"),
        )
        words = [word for name, value in options for word in ("-o", f"{name}={value}")]
        login = ["-F", "/dev/null", "-i", str(self.key), "-p", str(self.port), f"{self.user}@{self.host}"]
        return find("ssh").command(*words, *login, *remote)

    def _furnish(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.home.mkdir(exist_ok=True)
        if not self.key.exists():
            _make_key(self.key)
            _make_key(self._host_key)
            self.authorize()
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # compiled into it: where its first stage is locked in
        accounts = [
            f"{self.user}:*:{os.getuid()}:{os.getgid()}:sandbox:{self.home}:/bin/sh",
            f"sshd:*:{_NOBODY}:{_NOBODY}:privilege separation:/run/sshd:/usr/sbin/nologin",
        ]
        if os.getuid() != 0:
            accounts.append("root:*:0:0:root:/root:/bin/sh")
        (self.directory / "passwd").write_text("\n".join(accounts) + "\n")
        (self.directory / "group").write_text(f"{self.user}:*:{os.getgid()}:\nnogroup:*:{_NOBODY}:\n")

    def _launch(self, port: int) -> ChildProcess:
        program = find("sshd")
        configuration = self.directory / "sshd_config"
        configuration.write_text("".join(f"{name} {value}\n" for name, value in self._settings(program, port)))
        environment = {
            **program.environ(),
            # sshd hands none of these on: a session's environment is made from nothing.
            "LD_PRELOAD": str(find_library(_NSS_WRAPPER)),
            "NSS_WRAPPER_PASSWD": str(self.directory / "passwd"),
            "NSS_WRAPPER_GROUP": str(self.directory / "group"),
        }
        command = program.command("-D", "-e", "-f", configuration)
        process = ChildProcess("sshd", command, self.log, environment)
        process.start()
        return process

    def _settings(self, program: Tool, port: int) -> list[tuple[str, str]]:
        settings = [
            ("Port", str(port)),
            ("ListenAddress", self.host),
            ("HostKey", _quoted(self._host_key)),
            ("AuthorizedKeysFile", _quoted(self._authorized_keys)),
            ("PidFile", "none"),
            ("UsePAM", "no"),
            ("PasswordAuthentication", "no"),
            ("KbdInteractiveAuthentication", "no"),
            ("PermitRootLogin", "yes"),
            ("StrictModes", "no"),  # a temporary directory's parents belong to others
            ("PermitUserEnvironment", "yes"),  # authorize() names the PATH
            ("PermitUserRC", "no"),
            ("MaxStartups", "100:30:200"),
            ("MaxSessions", "100"),
            ("UseDNS", "no"),
            ("PrintMotd", "no"),
            ("PrintLastLog", "no"),
            ("Subsystem", "sftp internal-sftp"),
        ]
        if program.private:
            # From 9.8 on a session is a program of its own, found by a path that is compiled in.
            for name, file in (("SshdSessionPath", "sshd-session"), ("SshdAuthPath", "sshd-auth")):
                helper = program.root / "usr/lib/openssh" / file
                if helper.exists():
                    settings.append((name, _quoted(helper)))
        return settings

    def _write_known_hosts(self) -> None:
        kind, key = self._host_key.with_suffix(".pub").read_text().split()[:2]
        self.known_hosts.write_text(f"[{self.host}]:{self.port} {kind} {key}\n")


def _await_banner(process: ChildProcess, port: int) -> None:
    """Wait until it greets.

    A greeting by somebody else who took the port does not count: this server has ended by then.
    """
    deadline = time.monotonic() + _START_LIMIT
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=0.5) as probe:
                greeting = probe.recv(4)
        except OSError:
            greeting = b""
        if process.wait(0.02):
            raise SandboxError(
                f"sshd ended at its start with status {process.returncode}; its log {process.log} ends with:\n"
                f"{process.log_tail()}"
            )
        if greeting == b"SSH-":
            return
        if time.monotonic() > deadline:
            raise SandboxError(
                f"sshd did not answer within {_START_LIMIT:.0f} s; its log {process.log} ends with:\n{process.log_tail()}"
            )


def _make_key(file: Path) -> None:
    find("ssh-keygen").run("-q", "-t", "ed25519", "-N", "", "-C", "sandbox", "-f", file)


def _quoted(path: Path) -> str:
    return f'"{path}"'
