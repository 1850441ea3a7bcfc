"""The alerts: Prometheus accepts the rules, each fires for its fault only, and links to its section of the runbook."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from monitoring_files import (
    ALERTS,
    FROM_VERIFY,
    OF_PROMETHEUS,
    ROOT,
    RULES,
    RUNBOOK,
    exposed,
    grouping_labels,
    sections,
    selected,
)

from cdc_archiver.sandbox.packages import Tool

CASES = Path(__file__).with_name("alerts.yaml")


def run(promtool: Tool, *arguments: str | Path) -> str:
    done = subprocess.run(
        promtool.command(*arguments), capture_output=True, text=True, env=promtool.environ(), timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rule_texts() -> dict[str, str]:
    """The text of each rule, by the name of its alert."""
    parts = re.split(r"^      - alert: (\w+)$", RULES.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_prometheus_accepts_the_rules(promtool: Tool) -> None:
    assert f"{len(ALERTS)} rules found" in run(promtool, "check", "rules", RULES)


def test_each_alert_fires_for_its_fault_only(promtool: Tool) -> None:
    run(promtool, "test", "rules", CASES)


def test_the_alerts_select_the_jobs_of_the_deployments() -> None:
    pattern, of_registrars = re.findall(r'up\{job=~"([^"]+)"\}', RULES.read_text())
    compose = re.findall(r"job_name: (\S+)", (ROOT / "deploy/prometheus/prometheus.yaml").read_text())
    # The Prometheus operator names a job after its service.
    (kubernetes,) = re.findall(r"^  name: (\S+)$", (ROOT / "deploy/kubernetes/service.yaml").read_text(), re.MULTILINE)
    assert re.fullmatch(pattern, compose[0])
    assert re.fullmatch(of_registrars, compose[1])
    assert re.fullmatch(pattern, kubernetes)


@pytest.mark.parametrize("alert", ALERTS)
def test_each_alert_has_a_case_that_fires_and_one_that_does_not(alert: str) -> None:
    cases = [case for case in CASES.read_text().split("alert_rule_test:")[1:] if f"alertname: {alert}\n" in case]
    assert any("exp_alerts: []" in case for case in cases), "no case in which it does not fire"
    assert any("exp_labels" in case for case in cases), "no case in which it fires"


@pytest.mark.parametrize("alert", ALERTS)
def test_each_alert_has_a_severity_a_summary_and_a_link_to_the_runbook(alert: str) -> None:
    text = rule_texts()[alert]
    assert re.search(r"labels: \{severity: (critical|warning)\}", text)
    assert re.search(r"^          summary: .{20,}$", text, re.MULTILINE)
    link = re.search(r"runbook: '\{\{ \$externalLabels\.cdc_archiver_url \}\}(\S+)#(\S+)'", text)
    assert link, "no link to the runbook"
    assert ROOT / link[1] == RUNBOOK
    assert link[2] == alert.lower()
    assert link[2] in sections(RUNBOOK)


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_selects_series_that_the_service_exposes(alert: str) -> None:
    text = re.sub(r"#.*|annotations:[\s\S]*", "", rule_texts()[alert])
    asked = list(selected(text))
    assert asked
    for name, labels in asked:
        if name != FROM_VERIFY:
            assert name in exposed(), f"{name} is not a series of the service"
            assert labels <= exposed()[name] | OF_PROMETHEUS, f"{name} has no {labels - exposed()[name]}"
    everywhere = set().union(*(exposed().get(name, set()) for name, _ in asked))
    assert grouping_labels(text) <= everywhere | OF_PROMETHEUS
