"""The project as a whole: names that stand for one thing, modules of a readable size, a handbook that agrees with the program.

Which package may import which is import-linter's concern (`make lint`); here is only that its contract speaks of all of them.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections import defaultdict
from pathlib import Path

import pytest

from cdc_archiver.settings.reference import with_settings_table

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "cdc_archiver"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
MOST_LINES = 500
"""Of a module."""
MOST_CHARACTERS = 100
"""Of a line in the handbook."""
CODE = re.compile(r"(?ms:^ *(```|~~~).*?^ *\1)|(?<=\n\n)(?:    .*\n)+")
"""Fenced or indented."""
GIVEN_UP = re.compile(r"\bmend|\bcure|nobody is charged|fault of our own", re.IGNORECASE)
"""Words that the glossary has others for."""
MEND_KEY = PACKAGE / "preflight" / "findings.py"
"""Where the key `mend` of `check --json` is defined, which scripts read."""


def layers() -> list[str]:
    """The modules and packages that the contract about layers speaks of, and the sandbox, which has contracts of its own."""
    linter = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (contract,) = (contract for contract in linter["contracts"] if contract["type"] == "layers")
    return [*re.findall(r"[\w.]+", " ".join(contract["layers"])), "cdc_archiver.sandbox"]


@pytest.mark.parametrize("module", [name for name, path in MODULES.items() if path.stem != "__init__"])
def test_every_module_is_in_one_layer(module: str) -> None:
    found = [layer for layer in layers() if f"{module}.".startswith(f"{layer}.")]
    assert len(found) == 1, f"name {module} in pyproject.toml's contract about layers"


@pytest.mark.parametrize("module", MODULES)
def test_a_module_has_a_docstring_in_its_first_line_and_a_readable_size(module: str) -> None:
    text = MODULES[module].read_text()
    assert ast.get_docstring(ast.parse(text)), f"{module} has no docstring"
    assert text.startswith(('"""', 'r"""')), f"the docstring of {module} is not its first line"
    assert len(text.splitlines()) <= MOST_LINES, f"{module} is too long: split it"


def test_a_name_stands_for_one_module() -> None:
    """In all packages; only a command's module may bear the name of a package."""
    packages = {name.rpartition(".")[2] for name, path in MODULES.items() if path.stem == "__init__"}
    found = defaultdict(list)
    for module in MODULES:
        name = module.rpartition(".")[2]
        if name != "__main__" and not (name in packages and module.startswith("cdc_archiver.commands.")):
            found[name].append(module)
    assert not {name: modules for name, modules in found.items() if len(modules) > 1}


def test_a_name_stands_for_one_class() -> None:
    found = defaultdict(list)
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                found[node.name].append(module)
    assert not {name: modules for name, modules in found.items() if len(modules) > 1}


def test_the_top_level_can_be_taken_in_at_a_glance() -> None:
    found = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    assert len(found) <= 8, found


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_lines_of_the_handbook_are_short(page: Path) -> None:
    """Except tables and code, which cannot be broken, and the addresses of links."""
    without_code = CODE.sub(lambda match: "\n" * match[0].count("\n"), page.read_text())
    long = []
    for number, line in enumerate(without_code.splitlines(), 1):
        shown = re.sub(r"https?://\S+|\]\([^)]*\)", "", line)
        if len(shown) > MOST_CHARACTERS and not line.lstrip().startswith("|"):
            long.append(f"{page.name}:{number}: {len(shown)} characters")
    assert not long


def test_words_that_were_given_up_stay_away() -> None:
    found = []
    for place in ("README.md", "docs", "cdc_archiver", "deploy"):
        for path in [ROOT / place] if (ROOT / place).is_file() else sorted((ROOT / place).rglob("*")):
            if path.is_dir() or path.suffix in (".pyc", ".png"):
                continue
            for number, line in enumerate(path.read_text().splitlines(), 1):
                shown = re.sub(r'"mend"|`mend`', "", line) if path == MEND_KEY else line
                if GIVEN_UP.search(shown):
                    found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}")
    assert not found, "\n".join(found)
