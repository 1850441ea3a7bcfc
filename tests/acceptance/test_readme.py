"""README's installation, followed block by block in the order in which it stands there: each block in a new shell, up to an archived file."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import eventually

from cdc_archiver.sandbox import DatabaseServer, SshServer, free_port

README = Path(__file__).parents[2] / "README.md"
ADMINISTRATOR = "readme_root"
ACCOUNT = "readme_archiver"


def blocks() -> list[tuple[str, str]]:
    """Language and text of each block that is typed, in order."""
    return re.findall(r"^```(sh|sql)\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)


class Reader:
    """Somebody who has README, a home directory of their own, two servers, and replaces the examples."""

    def __init__(self, server: DatabaseServer, ssh: SshServer, directory: Path) -> None:
        self.server, self.ssh, self.directory = server, ssh, directory
        self.home, self.readout, self.http_port = directory / "home", directory / "readout", free_port()
        self.readout.mkdir()
        (self.readout / "of_last_year.npy").touch()  # an empty directory looks like a disk that is not mounted
        # ssh-keygen makes it in the account's home directory, and this one is none.
        (self.home / ".ssh").mkdir(parents=True)
        programs = self.home / "archiver/venv/bin"
        programs.mkdir(parents=True)
        # Step 1 would fetch the libraries once more; that the wheel is whole is another test's concern.
        self._script(programs / "cdc-archiver", f'exec {sys.executable} -m cdc_archiver "$@"')
        # Somebody types the login's password here.
        authorized = f'environment="PATH={os.environ["PATH"]}"'
        self._script(
            directory / "bin/ssh-copy-id",
            'while [ "$1" != -i ]; do shift; done\n'
            f'echo \'{authorized}\' "$(cat "$2")" >>{ssh.directory / "authorized_keys"}',
        )

    def _script(self, path: Path, text: str) -> None:
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def replaced(self, block: str) -> str:
        """With this site's names instead of the examples."""
        for example, here in {
            "MYSQL_HOST=db": f"MYSQL_HOST=127.0.0.1 MYSQL_PORT={self.server.port}",
            "MYSQL_USER=root": f"MYSQL_USER={ADMINISTRATOR}",
            'mysql_host = "db"': 'mysql_host = "127.0.0.1"',
            "mysql_port = 3306": f"mysql_port = {self.server.port}",
            "data@smurf-srv": f"{self.ssh.user}@127.0.0.1",
            "smurf-srv": "127.0.0.1",
            "-p 22": f"-p {self.ssh.port}",
            "ssh_port = 22": f"ssh_port = {self.ssh.port}\nhttp_port = {self.http_port}\nssh_config = '/dev/null'",
            "/data/pysmurf": str(self.directory / "archive"),
            '"/data"': f'"{self.readout}"',
            "'/data/": f"'{self.readout}/",
            # The client reads its files in the home directory of the account, not in $HOME.
            "ssh_key = ": f'known_hosts = "{self.home}/.ssh/known_hosts"\nssh_key = ',
            "'archiver'@": f"'{ACCOUNT}'@",
            'mysql_user = "archiver"': f'mysql_user = "{ACCOUNT}"',
        }.items():
            block = block.replace(example, here)
        return block

    def types(self, command: str) -> subprocess.Popen[str]:
        """A new shell."""
        clean = {name: os.environ[name] for name in ("PYTHONPATH", "LANG", "TMPDIR") if name in os.environ}
        path = f"{self.directory / 'bin'}:{os.environ['PATH']}"
        return subprocess.Popen(
            ["sh", "-ec", command],
            env={**clean, "HOME": str(self.home), "PATH": path},
            cwd=README.parent,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def says(self, command: str, status: int = 0) -> str:
        """What a command prints, to its end."""
        shell = self.types(command)
        out, err = shell.communicate(timeout=60)
        assert shell.returncode == status, (command, out, err)
        return out

    def asks(self, statements: str) -> None:
        """Pasted into the database's client, as its administrator."""
        for statement in filter(None, map(str.strip, statements.split(";"))):
            self.server.execute(statement)


@pytest.fixture
def reader(database_server: DatabaseServer, ssh_server: SshServer, tmp_path: Path) -> Iterator[Reader]:
    database_server.execute("DROP DATABASE IF EXISTS files")
    database_server.execute(f"CREATE USER {ADMINISTRATOR}@'%' IDENTIFIED BY 'secret'")
    database_server.execute(f"GRANT ALL ON *.* TO {ADMINISTRATOR}@'%'")
    yield Reader(database_server, ssh_server, tmp_path)
    ssh_server.authorize()
    database_server.execute("DROP DATABASE IF EXISTS files")
    database_server.execute(f"DROP USER {ADMINISTRATOR}@'%'")
    database_server.execute(f"DROP USER IF EXISTS {ACCOUNT}@'%'")


def test_readme_can_be_typed_from_its_first_line_to_an_archived_file(reader: Reader) -> None:
    (_, program), *typed, (language, insert) = blocks()
    assert "pip install -c constraints.txt ." in program
    assert language == "sql"
    *set_up, (_, last) = typed
    export, check, run = last.splitlines()
    # Given what README says to do before the service runs, each block in a new shell,
    printed = ""
    for language, block in set_up:
        if language == "sql":
            reader.asks(reader.replaced(block))
        else:
            printed = reader.says(reader.replaced(block))
            if printed.startswith("CREATE USER"):
                reader.asks(printed)
    assert (reader.home / "archiver/mysql_password").stat().st_mode & 0o777 == 0o600
    # when it is checked,
    checked = reader.says(f"{export}\n{check}")
    # then there is nothing to fix;
    assert [line for line in checked.splitlines() if not line.startswith("ok ")] == []
    # when it runs, and the row for a first file is inserted,
    service = reader.types(f"{export}\nexec {run}")
    try:
        (reader.readout / "first.dat").write_text("test\n")
        reader.asks(reader.replaced(insert))
        # then the file is archived.
        count = "SELECT COUNT(*) FROM files.pysmurf_files WHERE copied = 1"
        eventually(lambda: reader.server.execute(count) == [(1,)], "the first file is archived")
        said = reader.says(f"{export}\ncdc-archiver why first.dat")
        assert "archived, and the file has the row's md5" in said
    finally:
        service.terminate()
        _, log = service.communicate(timeout=30)
    assert service.returncode == 0, log


def test_readme_is_short_and_its_commands_name_no_variable_of_another_block() -> None:
    assert len(README.read_text().splitlines()) <= 150
    for language, block in blocks():
        if language == "sh":
            assert set(re.findall(r"\$\{?(\w+)", block)) <= {"HOME", "PATH"}
