"""Programs of others, each in a virtual environment of its own, kept in the cache directory for as long as their pins stay."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from cdc_archiver.sandbox.packages import cache_directory, workshop

_BUILT = "built"


def neighbour_python(pins: Path) -> Path:
    """The interpreter of an environment with pinned packages; built at its first use, by one test process of all.

    Arguments:
        pins: a requirements file, the environment's name.
    """
    digest = hashlib.sha256(pins.read_bytes() + sys.version.encode()).hexdigest()
    place = cache_directory() / "environments" / f"{pins.stem}-{digest[:12]}"
    with workshop(f"environment-{pins.stem}"):
        if not (place / _BUILT).exists():
            # Built in its final place: its scripts name it.
            shutil.rmtree(place, ignore_errors=True)
            environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
            python = str(place / "bin/python")
            for command in (
                [sys.executable, "-m", "venv", str(place)],
                [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement", str(pins)],
            ):
                done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
                assert done.returncode == 0, f"{pins.name}: {done.stdout}{done.stderr}"
            (place / _BUILT).touch()
    return place / "bin/python"
