"""A private OpenSSH server on loopback with one account of its own, as a readout server's operator would set it up."""

import os
import shlex
import socket
from pathlib import Path
from typing import Any

from cdc_archiver.sandbox.child_process import ChildProcess
from cdc_archiver.sandbox.packages import Tool, bin_directory, find, find_library
from cdc_archiver.sandbox.private_server import PrivateServer

_START_LIMIT = 15.0
_NOBODY = 65_534
_NSS_WRAPPER = "libnss_wrapper.so"
_REMOTE_PATH = "/usr/local/bin:/usr/bin:/bin"

NO_PROGRAMS = "/nonexistent"
"""A remote PATH on which nothing is found, rsync included."""


class SshServer(PrivateServer):
    """One private sshd that accepts one key for one account, `smurf`.

    The account exists only for this server (nss_wrapper): it has the uid of this process, its own home directory and a plain
    `/bin/sh` that reads no start-up files. Accounts of the machine are neither needed nor changed.
    """

    user = "smurf"
    """The login name."""

    def __init__(self, directory: Path) -> None:
        """Describe the server; `start` runs it.

        Arguments:
            directory: its own directory, made if it is absent; keys of an earlier server there are used again.
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
        """Settings of a source that reach it; the user's own ssh configuration is left out."""
        return {
            "host": self.host,
            "user": self.user,
            "ssh_port": self.port,
            "ssh_key": self.key,
            "known_hosts": self.known_hosts,
            "ssh_config": "/dev/null",
        }

    def prepare(self) -> None:
        """Get the programs that it needs, which may take a download; `start` does the same."""
        for program in ("sshd", "ssh-keygen", "ssh", "rsync", "rrsync"):
            find(program)
        find_library(_NSS_WRAPPER)

    def start(self) -> None:
        """Run it and wait until it accepts connections; SandboxError, with the end of its log, if it does not."""
        if self.running:
            return
        self.prepare()
        self._write_files()
        first = self._port is None
        self._start_on_a_port(
            self._launch, lambda process, port: self._await(process, lambda: _missing_greeting(port), _START_LIMIT)
        )
        if first:
            self._write_known_hosts()

    def stop(self) -> None:
        """End it and all its sessions."""
        if self._process is not None:
            self._process.stop(5.0)

    def authorize(self, *, read_only: Path | None = None, path: str | None = None) -> None:
        """Set the permissions of the client's key for new connections; without arguments, everything is allowed.

        Arguments:
            read_only: the directory that the key is restricted to, by `restrict,command="rrsync -ro DIRECTORY"`.
            path: the PATH of remote commands; None: one with rsync; `NO_PROGRAMS`: one with no program.
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
        """Refuse the client's key until `authorize`."""
        self._authorized_keys.write_text("")

    def change_host_key(self) -> None:
        """Give it another host key and restart it; `known_hosts` keeps the old key until `trust_host_key`."""
        self.stop()
        for file in (self._host_key, self._host_key.with_suffix(".pub")):
            file.unlink()
        _make_key(self._host_key)
        self.start()

    def trust_host_key(self) -> None:
        """Write its current host key to `known_hosts`."""
        self._write_known_hosts()

    def command(self, *remote: str) -> list[str]:
        """The `ssh` command line that logs in without prompts, checks the host key strictly, and runs `remote`."""
        options = (
            ("BatchMode", "yes"),
            ("IdentitiesOnly", "yes"),
            ("StrictHostKeyChecking", "yes"),
            ("UserKnownHostsFile", _quoted(self.known_hosts)),
            ("GlobalKnownHostsFile", "/dev/null"),
            ("ConnectTimeout", "10"),
        )
        flags = [part for name, value in options for part in ("-o", f"{name}={value}")]
        login = ["-F", "/dev/null", "-i", str(self.key), "-p", str(self.port), f"{self.user}@{self.host}"]
        return find("ssh").command(*flags, *login, *remote)

    def _write_files(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.home.mkdir(exist_ok=True)
        if not self.key.exists():
            _make_key(self.key)
            _make_key(self._host_key)
            self.authorize()
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # compiled in: the chroot directory of its first stage
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
            # sshd passes none of these on: it builds the environment of a session anew.
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
            ("StrictModes", "no"),  # the parents of a temporary directory belong to other users
            ("PermitUserEnvironment", "yes"),  # authorize() sets the PATH
            ("PermitUserRC", "no"),
            ("MaxStartups", "100:30:200"),
            ("MaxSessions", "100"),
            ("UseDNS", "no"),
            ("PrintMotd", "no"),
            ("PrintLastLog", "no"),
            ("Subsystem", "sftp internal-sftp"),
        ]
        if program.private:
            # Since 9.8 a session is a separate program, with a compiled-in path.
            for name, file in (("SshdSessionPath", "sshd-session"), ("SshdAuthPath", "sshd-auth")):
                helper = program.root / "usr/lib/openssh" / file
                if helper.exists():
                    settings.append((name, _quoted(helper)))
        return settings

    def _write_known_hosts(self) -> None:
        kind, key = self._host_key.with_suffix(".pub").read_text().split()[:2]
        self.known_hosts.write_text(f"[{self.host}]:{self.port} {kind} {key}\n")


def _missing_greeting(port: int) -> str:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=0.5) as probe:
            return "" if probe.recv(4) == b"SSH-" else "it sends no greeting"
    except OSError as error:
        return str(error)


def _make_key(file: Path) -> None:
    find("ssh-keygen").run("-q", "-t", "ed25519", "-N", "", "-C", "sandbox", "-f", file)


def _quoted(path: Path) -> str:
    return f'"{path}"'
