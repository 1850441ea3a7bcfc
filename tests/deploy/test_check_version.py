"""A release: one version everywhere, changes that tell of it, libraries that are all asked for, a workflow that is one."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions, requires
from pathlib import Path
from typing import Any

import pytest
from deploy_files import ROOT, VERSION, read, validate
from packaging.requirements import Requirement

WORKFLOW = ROOT / ".github/workflows/ci.yaml"


def test_the_program_asks_for_every_library_that_it_imports() -> None:
    """Elsewhere the libraries of the tests are not there to help out."""
    brought = _brought_by(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"])
    imported = _imports(ROOT / "cdc_archiver")
    assert {"sqlalchemy", "pymysql", "pymysqlreplication"} <= imported
    lent = {
        name: places
        for name in imported
        if not brought & (places := {_plain(each) for each in packages_distributions().get(name, ())})
    }
    assert not lent, "not in pyproject.toml's dependencies, nor in theirs"
    assert "pytest" not in brought


def _imports(package: Path) -> set[str]:
    """The first names of all that is imported, but for Python's own and the package itself."""
    names: set[str] = set()
    for file in package.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names.update(alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.partition(".")[0])
    return names - sys.stdlib_module_names - {package.name}


def _brought_by(dependencies: list[str]) -> set[str]:
    """What an installation without extras brings: these, and theirs."""
    seen: set[tuple[str, str]] = set()
    waiting = [(line, "") for line in dependencies]
    while waiting:
        line, extra = waiting.pop()
        wanted = Requirement(line)
        if wanted.marker and not wanted.marker.evaluate({"extra": extra}):
            continue
        new = {(_plain(wanted.name), each) for each in ("", *wanted.extras)} - seen
        seen |= new
        waiting += [(inner, each) for name, each in new for inner in requires(name) or ()]
    return {name for name, _ in seen}


def _plain(distribution: str) -> str:
    """A distribution's name as they are compared."""
    return re.sub("[-_.]+", "-", distribution).lower()


def test_every_library_that_the_program_needs_is_pinned() -> None:
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in _pins()}
    text = (ROOT / "pyproject.toml").read_text()
    wanted = {
        name.lower().replace("_", "-")
        for name in re.findall(r'^    "([A-Za-z][\w.-]*)(?:\[\w+\])?[><=]', text, re.MULTILINE)
    }
    assert len(wanted) > 20
    assert wanted <= pinned
    assert all(re.fullmatch(r"[\w.-]+==[\w.!+]+", line) for line in _pins())


def _pins() -> list[str]:
    return [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]


@pytest.mark.parametrize(("tag", "status"), [(f"v{VERSION}", 0), (VERSION, 1), ("v99.0", 1)])
def test_a_release_is_of_this_version_and_says_what_it_brings(tag: str, status: int) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "deploy/check_version.py", tag], check=False, capture_output=True, text=True
    )
    assert done.returncode == status
    assert bool(done.stdout.strip()) == (status == 0)
    assert bool(done.stderr) == (status != 0)


def test_the_newest_changes_are_this_versions() -> None:
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == VERSION
    assert len(headings) == len(set(headings))


def test_the_workflow_is_one_and_uses_what_there_is() -> None:
    workflow: dict[Any, Any] = read(WORKFLOW)
    # YAML 1.1 reads the key `on` as true.
    validate({("on" if key is True else key): value for key, value in workflow.items()}, "github-workflows")
    words = WORKFLOW.read_text()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z-]+)", words)) <= targets
    assert {"lint", "test", "image", "published-image"} == set(workflow["jobs"]["release"]["needs"])
    # What is published was built by the same engine, in the same way, before the tag was out.
    assert "make image\n" in words.partition("  published-image:")[2].partition("  release:")[0]
    assert all((ROOT / path).exists() for path in re.findall(r"python (deploy/\S+)", words))


def test_the_workflow_tests_each_python_that_is_promised() -> None:
    tested = read(WORKFLOW)["jobs"]["test"]["strategy"]["matrix"]["python"]
    promised = re.search(r'requires-python = ">=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert promised
    assert min(tested, key=lambda version: [int(part) for part in version.split(".")]) == promised[1]
    base = re.search(r"^ARG BASE=(python:([\d.]+)-slim-\w+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert base
    assert base[2] in tested
    assert f"make image-test IMAGE_BASE={base[1]}\n" in WORKFLOW.read_text()


def test_links_and_versions_in_the_guide_are_right() -> None:
    guide = ROOT / "docs/installation.md"
    text = guide.read_text()
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert (guide.parent / link).exists(), link
    assert set(re.findall(r"cdc_archiver:(\d[\w.]*)", text)) == {VERSION}
    for place in re.findall(r"^\| `(/(?:etc|opt|var)[^`]*)` \|", text, re.MULTILINE):
        assert place in _systemd_words(), place


def _systemd_words() -> str:
    return "".join(path.read_text() for path in (ROOT / "deploy/systemd").iterdir())
