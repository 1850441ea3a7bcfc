"""The project as it is published: an sdist with all that MANIFEST.in names, a wheel that runs in an environment of its own.

Nothing is fetched: what the wheel asks for is lent by the environment of the tests, and nothing that it does not ask for.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from dataclasses import dataclass
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from deploy_files import ROOT, VERSION
from packaging.requirements import Requirement

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SECRETS = (
    "deploy/secrets/mysql_password",
    "deploy/kubernetes/secrets/mysql_password",
    "deploy/config/site.toml",
    ".env",
)
"""What a site keeps next to the compose and kustomize files: never part of a release."""
NOT_COPIED = shutil.ignore_patterns(
    ".git", ".venv", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis", "bench-results"
)
FOR_DEVELOPERS = {"dev"}
"""Extras whose tools need the source tree; all others are for who installs the wheel."""
IMPORT_ALL = """
import importlib, pkgutil, sys, cdc_archiver
for module in pkgutil.walk_packages(cdc_archiver.__path__, "cdc_archiver."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
print(cdc_archiver.__file__, cdc_archiver.__version__, len(sys.modules))
"""


@dataclass(frozen=True)
class Built:
    """What `python -m build` made, and the tree that it was made of."""

    tree: Path
    sdist: Path
    wheel: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The sdist, and the wheel that is built from it."""
    tree = tmp_path_factory.mktemp("build") / "cdc_archiver"
    shutil.copytree(ROOT, tree, ignore=NOT_COPIED)
    for name in SECRETS:
        (tree / name).parent.mkdir(exist_ok=True)
        (tree / name).write_text("MYSQL_PASSWORD=hunter2")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation"], check=False, capture_output=True, text=True, cwd=tree
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (sdist,) = (tree / "dist").glob("*.tar.gz")
    (wheel,) = (tree / "dist").glob("*.whl")
    return Built(tree, sdist, wheel)


def test_the_wheel_holds_the_package_and_nothing_else(built: Built) -> None:
    assert built.wheel.name == f"cdc_archiver-{VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(built.wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    ours = {
        str(path.relative_to(ROOT))
        for kind in ("py", "html", "css", "js")
        for path in (ROOT / "cdc_archiver").rglob(f"*.{kind}")
    }
    assert names == ours | {"cdc_archiver/py.typed"}


def test_the_sdist_holds_what_the_manifest_names_and_no_secret(built: Built) -> None:
    with tarfile.open(built.sdist) as archive:
        modes = {member.name.partition("/")[2]: member.mode for member in archive.getmembers() if member.isfile()}
    wanted = _named_by_manifest(built.tree)
    # Tests in it ask for these, among others.
    assert {"Dockerfile", ".ci/run", "tests/support/private_site.py", "tests/deploy/servicemonitor.json"} <= wanted
    assert not wanted - modes.keys()
    added = {name for name in modes.keys() - wanted if not name.startswith(("cdc_archiver/", "cdc_archiver.egg-info/"))}
    assert added == {"LICENSE", "MANIFEST.in", "PKG-INFO", "README.md", "pyproject.toml", "setup.cfg"}
    assert not modes.keys() & set(SECRETS)
    programs = ("deploy/make-secrets", "deploy/demo/readout.sh", "deploy/systemd/install.sh")
    assert all(modes[name] & 0o111 for name in programs)


@pytest.mark.parametrize(
    "extra", ["", *(name for name in PROJECT["optional-dependencies"] if name not in FOR_DEVELOPERS)]
)
def test_the_wheel_runs_with_what_it_asks_for_alone(built: Built, extra: str, tmp_path: Path) -> None:
    # Given an empty environment with the wheel, and the libraries that it asks for,
    fresh = tmp_path / "fresh"
    _install(built.wheel, fresh)
    lent = _lend(extra, fresh)

    def run(*words: str | Path) -> str:
        done = subprocess.run(words, check=False, capture_output=True, text=True, env=environment, cwd=tmp_path)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    # when it is used, then nothing is lacking,
    run(sys.executable, "-m", "pip", "--python", fresh / "bin/python", "check")
    assert VERSION in run(fresh / "bin/cdc-archiver", "--version")
    assert "demo" in run(fresh / "bin/cdc-archiver", "--help")
    assert "--data-dir" in run(fresh / "bin/cdc-archiver", "run", "--help")
    file, version, _ = run(fresh / "bin/python", "-W", "error", "-c", IMPORT_ALL).split()
    # and it is the wheel that was used, without the tools of its developers.
    assert Path(file).is_relative_to(fresh)
    assert version == VERSION
    assert "pytest" not in lent
    for line in PROJECT["optional-dependencies"].get(extra, ()):
        run(fresh / "bin/python", "-c", f"import {Requirement(line).name.replace('-', '_')}")


def _named_by_manifest(tree: Path) -> set[str]:
    """The files of a tree that its MANIFEST.in names: the few commands of it that are used here."""
    names: set[str] = set()
    for line in (tree / "MANIFEST.in").read_text().splitlines():
        command, *words = line.split()
        match command:
            case "include":
                names |= set(words)
            case "graft":
                files = (path for word in words for path in (tree / word).rglob("*") if path.is_file())
                names |= {str(path.relative_to(tree)) for path in files}
            case "prune":
                names = {name for name in names if not name.startswith(tuple(f"{word}/" for word in words))}
            case "global-exclude":
                names = {name for name in names if not any(Path(name).match(word) for word in words)}
            case _:
                raise AssertionError(f"MANIFEST.in: {line}")
    return {name for name in names if "__pycache__" not in name}


def _install(wheel: Path, directory: Path) -> None:
    """Makes an environment with the wheel in it, and nothing else, not even pip."""
    venv.create(directory)
    pip = [sys.executable, "-m", "pip", "--python", str(directory / "bin/python"), "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", "--no-compile", str(wheel)], check=True)


def _lend(extra: str, directory: Path) -> set[str]:
    """Links the distributions that the wheel asks for, and those that they ask for, into an environment.

    Returns:
        their names.
    """
    packages = directory / f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
    lines = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"].get(extra, ())]
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [(Requirement(line), "") for line in lines]
    while waiting:
        requirement, of_extra = waiting.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": of_extra}):
            continue
        name = re.sub("[-_.]+", "-", requirement.name).lower()
        asked = {(name, each) for each in ("", *requirement.extras)} - seen
        seen |= asked
        if asked:
            found[name] = distribution(requirement.name)
            waiting += [(Requirement(line), each) for _, each in asked for line in found[name].requires or ()]
    for each in found.values():
        for top in {file.parts[0] for file in each.files or ()} - {"..", "__pycache__"}:
            link = packages / top
            if not link.exists():
                link.symlink_to(Path(str(each.locate_file(top))).resolve())
    return set(found)
