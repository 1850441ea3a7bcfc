"""pysmurf's own Publisher, from its package: installed once into the cache, without what it depends on, and run as a script does."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cdc_archiver.sandbox.packages import cache_directory

VERSION = "11.4.4"
_RUN = """
import importlib.util, json, sys, time
place, calls = sys.argv[1], json.load(sys.stdin)
sys.path.insert(0, place)
spec = importlib.util.spec_from_file_location("pub", f"{place}/pysmurf/client/util/pub.py")
pub = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pub)

class Control:
    def __init__(self):
        self.pub = pub.Publisher(script_id="observe.py")

    def get_timestamp(self):
        return f"{time.time():.0f}"

    @pub.set_action()
    def take_iv(self, path, type, more):
        self.pub.register_file(path, type, **more)

control = Control()
control.pub.log("begins")
for number, (path, type, more) in enumerate(calls):
    if number % 5:
        control.take_iv(path, type, more)
    else:
        control.pub.register_file(path, type, timestamp=control.get_timestamp(), **more)
"""


@dataclass(frozen=True)
class FileKind:
    """A kind of file that pysmurf announces: the constants of one of its calls."""

    type: str
    format: str
    plot: bool


def package() -> Path:
    """The directory with the package."""
    place = cache_directory() / f"pysmurf-slac-{VERSION}"
    if not place.is_dir():
        made = place.with_name(f"{place.name}.{os.getpid()}")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", f"--target={made}"]
        done = subprocess.run([*command, f"pysmurf-slac=={VERSION}"], check=False, capture_output=True, text=True)
        if done.returncode:
            say = pytest.fail if os.environ.get("CI") else pytest.skip
            say(f"pysmurf's package cannot be installed: {done.stderr.strip()[-300:]}")
        try:
            made.rename(place)
        except OSError:  # another process was faster
            assert place.is_dir()
    return place


def kinds() -> list[FileKind]:
    """Each kind of file that a method of pysmurf announces."""
    found = set()
    for path in (package() / "pysmurf" / "client").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr == "register_file"
            ):
                given = {word.arg: word.value.value for word in node.keywords if isinstance(word.value, ast.Constant)}
                type_ = node.args[1].value if len(node.args) > 1 and isinstance(node.args[1], ast.Constant) else "named"
                found.add(FileKind(str(type_), str(given.get("format", "")), bool(given.get("plot", False))))
    return sorted(found, key=str)


def announce(port: int, calls: Sequence[tuple[str, str, dict[str, Any]]]) -> None:
    """Has the Publisher announce files: path, type, further arguments; every fifth one outside of an action, with the time as text."""
    variables = {"SMURFPUB_BACKEND": "udp", "SMURFPUB_UDP_PORT": str(port), "SMURFPUB_ID": "crate1slot2"}
    subprocess.run(
        [sys.executable, "-c", _RUN, str(package())],
        check=True,
        env={"PATH": os.environ["PATH"], **variables},
        input=json.dumps(calls),
        text=True,
        timeout=60,
    )
