"""The pages for operators agree with the program: metrics, labels, reasons, commands, flags, and the tests that pages name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer
from monitoring_files import ALERTS, METRICS_PAGE, ROOT, RUNBOOK, anchor, declared, sections
from typer.main import get_command

from cdc_archiver.cli import app
from cdc_archiver.model import Reason, Scope
from cdc_archiver.observe.metrics import Metrics

ROW = re.compile(r"^\| `(cdc_archiver_\w+)` \| (\w+)(?:: ([^|]+?))? \| (.+) \|$", re.MULTILINE)


def test_each_metric_has_a_row_with_its_kind_and_labels() -> None:
    rows = ROW.findall(METRICS_PAGE.read_text())
    described = {name: (kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, labels, _ in rows}
    assert len(described) == len(rows), "a metric is described twice"
    assert described == {name: (metric.kind, metric.labels) for name, metric in declared().items()}


def test_each_row_describes_its_metric() -> None:
    for name, _, _, cells in ROW.findall(METRICS_PAGE.read_text()):
        what, *others = cells.split(" | ")
        assert len(what) > 10, name
        assert len(others) <= 2, f"{name} has a cell too many"


def test_the_values_of_labels_are_documented() -> None:
    text = METRICS_PAGE.read_text()
    metrics = Metrics()
    metrics.add_source("s")
    for family in metrics.registry.collect():
        for sample in family.samples:
            for label in {"outcome", "result", "why", "mode"} & sample.labels.keys():
                row = next(
                    line for line in text.splitlines() if line.startswith(f"| `{sample.name.removesuffix('_created')}")
                )
                assert f"`{sample.labels[label]}`" in row, f"{sample.name}: {sample.labels[label]}"


@pytest.mark.parametrize("title", [*ALERTS, *Reason], ids=str)
def test_each_alert_and_reason_has_a_section_with_meaning_look_and_fix(title: str) -> None:
    text = sections(RUNBOOK)[anchor(title)]
    said = re.findall(r"^- \*\*(\w+):\*\*\s(.+(?:\n  .+)*)", text, re.MULTILINE)
    assert [label for label, _ in said] == ["Meaning", "Look", "Fix"]
    assert all(len(sentence) >= 8 for _, sentence in said)
    assert re.search(r"`[^`]{3,}`", said[-1][1]), "the fix has nothing to paste"


def test_the_table_of_reasons_has_each_reason_once_with_its_scope() -> None:
    table = sections(RUNBOOK)["why-is-this-file-not-here"]
    rows = re.findall(r"^\| (\[`.+) \| (\w+) \| (.{8,}) \|$", table, re.MULTILINE)
    listed = [(reason, scope) for reasons, scope, _ in rows for reason in re.findall(r"\[`(\w+)`\]\(#\1\)", reasons)]
    assert sorted(listed) == sorted((str(reason), reason.scope.name.lower()) for reason in Reason)
    for reasons, _, consequence in rows:
        for reason in re.findall(r"`(\w+)`", reasons):
            assert ("counts as a failed attempt" in consequence) == (Reason(reason).scope is Scope.FILE), reason
            assert ("refused" in consequence) == (Reason(reason).scope is Scope.ROW), reason


def test_each_section_of_the_runbook_is_about_an_alert_or_reason_that_exists() -> None:
    chapters = ("Runbook", "Why is this file not here?", "Alerts", "Reasons")
    known = {anchor(title) for title in (*ALERTS, *Reason, *chapters)}
    assert set(sections(RUNBOOK)) == known


@pytest.mark.parametrize("page", [RUNBOOK, METRICS_PAGE], ids=lambda page: page.name)
def test_links_have_a_target(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        file, _, section = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        assert not section or section in sections(target), link


@pytest.mark.parametrize("page", [RUNBOOK, METRICS_PAGE], ids=lambda page: page.name)
def test_commands_and_flags_in_pages_exist(page: Path) -> None:
    group = get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    commands = dict(group.commands)
    text = page.read_text()
    blocks = re.findall(r"^ *```.*\n((?:.*\n)*?) *```$", text, re.MULTILINE)
    spans = re.findall(r"`([^`]+)`", re.sub(r"^ *```.*\n(?:.*\n)*? *```$", "", text, flags=re.MULTILINE))
    lines = [*spans, *(line.strip() for block in blocks for line in block.splitlines())]
    for command, rest in re.findall(r"^cdc-archiver ([a-z-]+)(.*(?:\n.*)?)", "\n\n".join(lines), re.MULTILINE):
        assert command in commands, command
        flags = {
            flag for parameter in commands[command].params for flag in (*parameter.opts, *parameter.secondary_opts)
        }
        for flag in re.findall(r"--[a-z-]+", rest):
            assert flag in flags, f"cdc-archiver {command} {flag}"
    of_all = {
        flag
        for command in commands.values()
        for parameter in command.params
        for flag in (*parameter.opts, *parameter.secondary_opts)
    }
    for span in spans:
        if flag := re.match(r"--[a-z-]+", span):
            assert flag[0] in of_all, flag[0]


@pytest.mark.parametrize("name", ["reliability.md", "security.md"])
def test_the_tests_that_a_page_names_exist(name: str) -> None:
    page = (RUNBOOK.parent / name).read_text()
    tests = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py")]
    named = re.findall(r"(?<!\*)\*([a-z]\w*_\w+)\*(?!\*)", page)
    patterns = re.findall(r"`(?:tests/)?((?:\w+/)*test_[\w*]+\.py)`", page)
    assert named or patterns
    for each in named:
        assert any(re.search(rf"def test_\w*{each}", text) for text in tests), f"no test's name contains {each}"
    for pattern in patterns:
        assert any((ROOT / "tests").rglob(pattern)), f"no test matches {pattern}"
