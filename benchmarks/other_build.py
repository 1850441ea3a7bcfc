"""Another revision of the product, built in an environment of its own: its service takes turns with this one's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cdc_archiver.sandbox import SandboxError
from cdc_archiver.sandbox.packages import cache_directory, workshop

_ROOT: Final = Path(__file__).parents[1]


@dataclass(frozen=True)
class OtherBuild:
    """A revision that can be run.

    Attributes:
        revision: its commit, abbreviated.
        command: runs its program; the verb comes next.
    """

    revision: str
    command: tuple[str, ...]


def build(revision: str) -> OtherBuild:
    """Builds a revision of this repository, unless the cache directory has it.

    Args:
        revision: in any form that git understands.

    Raises:
        SandboxError: there is no such revision, or it cannot be installed.
    """
    commit = _run("git", "-C", str(_ROOT), "rev-parse", "--verify", f"{revision}^{{commit}}").strip()
    place = cache_directory() / "builds" / f"{commit[:12]}-python{sys.version_info.major}.{sys.version_info.minor}"
    with workshop("builds") as scratch:
        if not place.is_dir():
            _install(commit, scratch)
            place.parent.mkdir(exist_ok=True)
            scratch.rename(place)  # the scripts in it name the former place, its interpreter does not
    return OtherBuild(commit[:12], (str(place / "venv/bin/python"), "-m", "cdc_archiver"))


def _install(commit: str, directory: Path) -> None:
    source, archive = directory / "source", directory / "source.tar"
    _run("git", "-C", str(_ROOT), "archive", "--output", str(archive), commit)
    shutil.unpack_archive(archive, source, filter="data")
    _run(sys.executable, "-m", "venv", str(directory / "venv"))
    pip = (str(directory / "venv/bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    _run(*pip, "--constraint", str(source / "constraints.txt"), str(source))


def _run(*command: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        raise SandboxError(f"{' '.join(command[:6])} …: {(done.stderr or done.stdout).strip()[-500:]}")
    return done.stdout
