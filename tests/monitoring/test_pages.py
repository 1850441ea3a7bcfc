"""The pages for operators: the reference of metrics and the runbook say what the program does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer
from monitoring_files import ALERTS, METRICS_PAGE, RUNBOOK, anchor, declared, sections
from typer.main import get_command

from cdc_archiver.cli import app
from cdc_archiver.model import Reason
from cdc_archiver.observe.metrics import Metrics

ROW = re.compile(r"^\| `(cdc_archiver_\w+)` \| (\w+)(?:: ([^|]+?))? \| (.+) \|$", re.MULTILINE)


def test_each_metric_has_its_row_with_its_kind_and_its_labels() -> None:
    rows = ROW.findall(METRICS_PAGE.read_text())
    described = {name: (kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, labels, _ in rows}
    assert len(described) == len(rows), "a metric is described twice"
    assert described == {name: (metric.kind, metric.labels) for name, metric in declared().items()}


def test_each_row_says_what_a_metric_is() -> None:
    for name, _, _, cells in ROW.findall(METRICS_PAGE.read_text()):
        what, *others = cells.split(" | ")
        assert len(what) > 10, name
        assert len(others) <= 2, f"{name} has a cell too many"


def test_the_values_of_labels_are_told() -> None:
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
def test_each_alert_and_each_reason_has_a_section_that_says_what_to_do(title: str) -> None:
    text = sections(RUNBOOK)[anchor(title)]
    said = re.findall(r"^- \*\*(\w+)\*\* (.+)", text, re.MULTILINE)
    assert [word for word, _ in said] == ["Means", "Look", "Do"]
    assert all(len(sentence) >= 8 for _, sentence in said)


def test_the_runbook_has_no_section_of_what_is_no_more() -> None:
    known = {anchor(title) for title in (*ALERTS, *Reason, "Runbook", "Alerts", "Reasons")}
    assert set(sections(RUNBOOK)) == known


@pytest.mark.parametrize("page", [RUNBOOK, METRICS_PAGE], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        file, _, section = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        assert not section or section in sections(target), link


@pytest.mark.parametrize("page", [RUNBOOK, METRICS_PAGE], ids=lambda page: page.name)
def test_commands_and_flags_are_the_programs(page: Path) -> None:
    group = get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    there = dict(group.commands)
    for command, rest in re.findall(r"`cdc-archiver ([a-z-]+)([^`]*)`", page.read_text()):
        assert command in there, command
        flags = {flag for parameter in there[command].params for flag in (*parameter.opts, *parameter.secondary_opts)}
        for flag in re.findall(r"--[a-z-]+", rest):
            assert flag in flags, f"cdc-archiver {command} {flag}"
    of_all = {
        flag
        for command in there.values()
        for parameter in command.params
        for flag in (*parameter.opts, *parameter.secondary_opts)
    }
    alone = re.findall(r"`(--[a-z-]+)[^`]*`", page.read_text())
    for flag in alone:
        assert flag in of_all, flag
