"""Fixtures without any problem: a site, a source and a disk, for tests to check or to break."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from files_table import TABLE
from private_database import PASSWORD, PrivateDatabase, new_private_database

from cdc_archiver.database import schema, side_tables
from cdc_archiver.sandbox import DatabaseServer, SshServer
from cdc_archiver.settings import SourceSettings

Source = Callable[..., SourceSettings]


@contextmanager
def healthy_database(server: DatabaseServer) -> Iterator[PrivateDatabase]:
    """A database without any problem, with the index and the privileges on the side table."""
    with new_private_database(server) as made:
        made.sql(schema.index_statement(TABLE))
        made.server.create_archiver_user(
            made.user,
            PASSWORD,
            made.name,
            table=TABLE,
            history="cdc_archiver_history",
            side_tables=side_tables.PRIVILEGES,
        )
        yield made


@pytest.fixture(scope="module")
def good(database_server: DatabaseServer) -> Iterator[PrivateDatabase]:
    """A healthy database that no test changes."""
    with healthy_database(database_server) as made:
        yield made


@pytest.fixture
def site(database_server: DatabaseServer) -> Iterator[PrivateDatabase]:
    """A healthy database for one test to break."""
    with healthy_database(database_server) as made:
        yield made


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A source root with a file."""
    directory = tmp_path / "source root"
    directory.mkdir()
    (directory / "file").write_text("what was measured")
    return directory


@pytest.fixture
def as_it_was(ssh_server: SshServer) -> Iterator[None]:
    """Restores the shared server after a test."""
    yield
    ssh_server.resume()
    ssh_server.start()
    ssh_server.authorize()
    ssh_server.trust_host_key()


@pytest.fixture
def source(ssh_server: SshServer, as_it_was: None, root: Path) -> Source:
    """A source with a file, on a server that is restored afterwards."""

    def make(**values: Any) -> SourceSettings:
        return SourceSettings.model_validate(
            {
                "name": "readout",
                "target": ("monitor",),
                **ssh_server.settings,
                "source_root": str(root),
                **values,
            }
        )

    return make


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A directory that other accounts can reach, unlike pytest's own."""
    with tempfile.TemporaryDirectory(prefix="cdc-") as name:
        os.chmod(name, 0o755)
        directory = Path(name) / "the archive"
        directory.mkdir()
        yield directory
