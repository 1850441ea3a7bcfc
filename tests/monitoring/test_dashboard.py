"""The dashboard: Grafana accepts it, and the service exposes every metric and label in it."""

from __future__ import annotations

import re
from itertools import combinations
from typing import Any

import pytest
from monitoring_files import OF_PROMETHEUS, dashboard, exposed, expressions, grouping_labels, selected

PANELS: list[dict[str, Any]] = dashboard()["panels"]
SHOWING = [panel for panel in PANELS if panel["type"] != "row"]
VARIABLES: dict[str, dict[str, Any]] = {each["name"]: each for each in dashboard()["templating"]["list"]}


def test_grafana_accepts_it() -> None:
    assert isinstance(dashboard()["schemaVersion"], int)
    assert dashboard()["schemaVersion"] >= 39
    assert re.fullmatch(r"[a-zA-Z0-9_-]{1,40}", dashboard()["uid"])
    assert dashboard()["title"]
    assert "id" not in dashboard(), "Grafana assigns the id"
    ids = [panel["id"] for panel in PANELS]
    assert len(set(ids)) == len(ids)
    for panel in SHOWING:
        names = [target["refId"] for target in panel["targets"]]
        assert len(set(names)) == len(names), panel["title"]


def test_data_source_job_instance_and_source_can_be_chosen() -> None:
    assert VARIABLES["datasource"]["type"] == "datasource"
    assert VARIABLES["datasource"]["query"] == "prometheus"
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    for name in ("job", "instance", "source"):
        assert (VARIABLES[name]["multi"], VARIABLES[name]["includeAll"]) == (True, True)
        assert VARIABLES[name]["datasource"] == chosen
        found = re.fullmatch(r"label_values\((.+), (\w+)\)", VARIABLES[name]["definition"])
        assert found
        ((metric, labels),) = selected(found[1])
        assert {found[2], *labels} <= exposed()[metric] | OF_PROMETHEUS
    for panel in SHOWING:
        assert panel["datasource"] == chosen
        assert all(target["datasource"] == chosen for target in panel["targets"])
    used = set(re.findall(r"\$\{?(\w+)", " ".join(target["expr"] for panel in SHOWING for target in panel["targets"])))
    assert used == {"job", "instance", "source", "__rate_interval"}


@pytest.mark.parametrize("panel", SHOWING, ids=[panel["title"] for panel in SHOWING])
def test_each_panel_has_a_description_and_a_unit(panel: dict[str, Any]) -> None:
    assert re.fullmatch(r"[A-Z].{20,}\.", panel["description"]), "a sentence"
    shown = panel["fieldConfig"]["defaults"]
    assert shown["unit"]
    first, *others = shown["thresholds"]["steps"]
    assert first["value"] is None
    assert [step["value"] for step in others] == sorted(step["value"] for step in others)


def test_the_first_row_shows_whether_data_flows() -> None:
    row, *panels = PANELS[: PANELS.index(next(panel for panel in PANELS[1:] if panel["type"] == "row"))]
    assert row["title"] == "Is data flowing?"
    assert [panel["title"] for panel in panels] == [
        "Mode",
        "Stream lag",
        "Oldest pending file",
        "Sources up",
        "Destination",
        "Quarantined",
    ]
    assert {panel["type"] for panel in panels} == {"stat"}
    for panel in panels:
        shown = panel["fieldConfig"]["defaults"]
        assert len(shown["thresholds"]["steps"]) > 1 or shown["mappings"], f"{panel['title']} is always green"


def test_no_panels_overlap() -> None:
    places = [(panel["title"], panel["gridPos"]) for panel in PANELS]
    for title, place in places:
        assert place["x"] >= 0
        assert place["x"] + place["w"] <= 24, title
    for (title, one), (other_title, other) in combinations(places, 2):
        apart = (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )
        assert apart, f"{title} overlaps {other_title}"


@pytest.mark.parametrize(("panel", "expression"), expressions(), ids=[panel for panel, _ in expressions()])
def test_each_expression_selects_series_that_the_service_exposes(panel: str, expression: str) -> None:
    asked = list(selected(expression))
    assert asked
    for name, labels in asked:
        assert name in exposed(), f"{name} is not a series of the service"
        assert labels <= exposed()[name] | OF_PROMETHEUS, f"{name} has no {labels - exposed()[name]}"
        assert {"job", "instance"} <= labels, "it shows all archivers, whatever is chosen"
        assert "source" not in exposed()[name] or "source" in labels, "it shows all sources, whatever is chosen"
    everywhere = set().union(*(exposed()[name] for name, _ in asked))
    assert grouping_labels(expression) <= everywhere | OF_PROMETHEUS


@pytest.mark.parametrize("panel", SHOWING, ids=[panel["title"] for panel in SHOWING])
def test_a_legend_names_labels_of_the_result(panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        named = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        grouped = grouping_labels(target["expr"])
        of_series = set().union(*(exposed()[name] for name, _ in selected(target["expr"]))) | OF_PROMETHEUS
        assert named <= (grouped or of_series), target["legendFormat"]


def test_every_metric_that_an_operator_needs_is_on_it() -> None:
    shown = {name for _, expression in expressions() for name, _ in selected(expression)}
    unseen = {
        "cdc_archiver_stream_connected",  # the mode shows it
        "cdc_archiver_timecode_look_duration_seconds",  # for the benchmark
        "cdc_archiver_verified_files_total",  # of a run of `verify`
        "cdc_archiver_registrar_build_info",
    }
    wanted = {name: labels for name, labels in exposed().items() if name.startswith("cdc_archiver_")}
    for name in wanted:
        family = re.sub(r"_(bucket|sum|count)$", "", name)
        assert {name, family} & unseen or any(other.startswith(family) for other in shown), f"no panel shows {name}"
