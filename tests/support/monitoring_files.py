"""The files for Prometheus, Grafana and the operator, as values for tests."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from prometheus_client.metrics import MetricWrapperBase

from cdc_archiver.observe.metrics import Metrics
from cdc_archiver.observe.registrar_metrics import RegistrarMetrics

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy/prometheus/rules/cdc_archiver.yaml"
DASHBOARD = ROOT / "deploy/grafana/dashboards/cdc_archiver.json"
RUNBOOK = ROOT / "docs/runbook.md"
METRICS_PAGE = ROOT / "docs/metrics.md"
ALERTS = re.findall(r"^      - alert: (\w+)$", RULES.read_text(), re.MULTILINE)

OF_PROMETHEUS = {"job", "instance", "le"}
"""Labels that no metric declares: those of the scrape and of histograms."""

FROM_VERIFY = "cdc_archiver_verify_files"
"""The metric that `cdc-archiver verify --metrics-file` writes for node_exporter."""


@dataclass(frozen=True)
class Declared:
    """A metric as the service declares it; the name of a counter includes its suffix."""

    name: str
    kind: str
    labels: tuple[str, ...]

    @property
    def samples(self) -> set[str]:
        """The names of its series."""
        if self.kind == "histogram":
            return {f"{self.name}_{ending}" for ending in ("bucket", "sum", "count")}
        return {self.name}


@cache
def declared() -> dict[str, Declared]:
    """The service's and the registrar's own metrics, by name."""
    # Ask the metrics themselves: one with labels has no series before its first use.
    both = [*vars(Metrics()).values(), *vars(RegistrarMetrics()).values()]
    collectors = [each for each in both if isinstance(each, MetricWrapperBase)]
    builds = ("cdc_archiver_build_info", "cdc_archiver_registrar_build_info")
    found = {name: Declared(name, "gauge", ("version",)) for name in builds}
    for each in collectors:
        kind = str(each._type)
        name = f"{each._name}_total" if kind == "counter" else each._name
        found[name] = Declared(name, kind, tuple(each._labelnames))
    return found


@cache
def exposed() -> dict[str, set[str]]:
    """The labels of every series that the service exposes, by name, process metrics included."""
    names = {sample: set(each.labels) for each in declared().values() for sample in each.samples}
    for family in Metrics().registry.collect():
        if not family.name.startswith("cdc_archiver_"):
            names |= {sample.name: set(sample.labels) for sample in family.samples}
    return names


def selected(expression: str) -> Iterator[tuple[str, set[str]]]:
    """The metrics in an expression, each with the labels that it selects by."""
    for name, selector in re.findall(r"\b((?:cdc_archiver|process|python)_\w+)(?:\{([^}]*)\})?", expression):
        yield name, set(re.findall(r"(\w+)\s*(?:=~|!=|=|!~)", selector))


def grouping_labels(expression: str) -> set[str]:
    """The labels that an expression groups or joins by."""
    lists = re.findall(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)", expression)
    return {label.strip() for each in lists for label in each.split(",") if label.strip()}


@cache
def dashboard() -> Any:
    """The dashboard."""
    return json.loads(DASHBOARD.read_text())


def expressions() -> list[tuple[str, str]]:
    """Every expression of the dashboard, with its panel's title; Grafana's variables are set as for *All*."""
    filled = {"$__rate_interval": "1m", "$job": ".*", "$instance": ".*", "$source": ".*"}
    found = []
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", ()):
            text = target["expr"]
            for variable, value in filled.items():
                text = text.replace(variable, value)
            found.append((f"{panel['title']} {target['refId']}", text))
    return found


def sections(page: Path) -> dict[str, str]:
    """The text below each heading of a page, by GitHub's anchor of the heading."""
    parts = re.split(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {anchor(title): text for title, text in zip(parts[1::2], parts[2::2], strict=True)}


def anchor(title: str) -> str:
    """A heading's anchor."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
