"""The house: imports go one way, the handbook's settings are the program's, its links lead somewhere, and no room is past one sitting."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from cdc_archiver.settings.reference import with_settings_table

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "cdc_archiver"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]

# From the ground up: a module imports from its own floor and from those below.
FLOORS = [
    {
        "__init__",
        "account",
        "threads",
        "model",
        "errors",
        "words",
        "plain",
        "transfer.layout",
        "dispatch.ledger",
        "dispatch.health",
    },
    {
        "events.delivered",
        "kinds",
        "settings",
        "observe.activity",
        "observe.page",
        "observe.metrics",
        "observe.logs",
        "reference",
    },
    {"database", "events", "transfer"},
    {"dispatch", "preflight", "operations"},
    {
        "observe.http",
        "observe.doorkeeper",
        "observe.inquirer",
        "observe.notify",
        "site",
        "shift",
        "archiver",
        "reconciliation",
    },
    {"sandbox", "flags"},
    {"demo"},
    {"commands"},
    {"cli", "__main__"},
]


def floor_of(module: str) -> int:
    """The floor of a module's longest known prefix."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        for number, floor in enumerate(FLOORS):
            if ".".join(parts[:length]) in floor:
                return number
    raise AssertionError(f"{module} has no floor: say in which room it lives")


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
        found[name] = path
    return found


@pytest.mark.parametrize(("name", "path"), modules().items(), ids=modules().keys())
def test_no_import_goes_up(name: str, path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("cdc_archiver."):
            module = node.module.removeprefix("cdc_archiver.")
            for alias in node.names:
                submodule = f"{module}.{alias.name}"
                imported = submodule if submodule in modules() else module
                assert floor_of(imported) <= floor_of(name), f"{name} imports {imported}, which lives above it"


@pytest.mark.parametrize(("name", "path"), modules().items(), ids=modules().keys())
def test_a_module_says_in_its_first_line_what_lives_there_and_can_be_read_in_one_sitting(name: str, path: Path) -> None:
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text)), f"{name} says nothing"
    assert len(text.splitlines()) <= 500, f"{name} is past one sitting: split it"


def test_the_handbooks_settings_are_the_programs() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text()
    assert with_settings_table(page) == page, "run: make reference"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_the_handbook_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)#?([^)\s]*)\)", page.read_text()):
        there = (page.parent / target).resolve() if target else page
        assert there.exists(), f"{page.name} leads to {target}"
        if anchor and there.suffix == ".md":
            headings = re.findall(r"^#+ (.+)$", there.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in anchors, f"{page.name} leads to {target}#{anchor}"
