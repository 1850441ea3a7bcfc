"""A private Prometheus on loopback: scrapes the given targets, evaluates rules, and can be filled with past samples."""

import http.client
import json
import math
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdc_archiver.sandbox.child_process import ChildProcess, SandboxError
from cdc_archiver.sandbox.packages import find
from cdc_archiver.sandbox.private_server import PrivateServer

_START_LIMIT = 30.0
_ANSWER_LIMIT = 10.0


@dataclass(frozen=True)
class Series:
    """One series of a query's result: its labels and its current value."""

    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True)
class Alert:
    """An alert whose condition holds, pending or firing."""

    name: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]


@dataclass(frozen=True)
class Rule:
    """A rule: its expression, and whether it can be evaluated (`ok`, `err`, `unknown`)."""

    name: str
    expression: str
    health: str
    error: str


@dataclass(frozen=True)
class PastSeries:
    """Past samples of a series: values evenly spaced between two times, in seconds since the epoch."""

    name: str
    labels: Mapping[str, str]
    since: float
    until: float
    values: Sequence[float]

    def lines(self) -> Iterable[str]:
        """Its samples in OpenMetrics format."""
        labels = ",".join(f"{name}={json.dumps(value)}" for name, value in self.labels.items())
        step = (self.until - self.since) / max(1, len(self.values) - 1)
        for number, value in enumerate(self.values):
            yield f"{self.name}{{{labels}}} {value} {self.since + number * step:.3f}"


class PrometheusServer(PrivateServer):
    """One private Prometheus; all its data is in its directory."""

    def __init__(
        self,
        directory: Path,
        jobs: Mapping[str, Sequence[str]],
        rules: Sequence[Path] = (),
        *,
        interval: float = 1.0,
        external_labels: Mapping[str, str] | None = None,
    ) -> None:
        """Describe the server; `start` runs it.

        Arguments:
            directory: its own directory, made if it is absent.
            jobs: targets to scrape (host:port), by job.
            rules: rule files.
            interval: seconds between two scrapes and between two evaluations of the rules.
            external_labels: labels of every alert.
        """
        super().__init__("Prometheus")
        self.directory = directory.absolute()
        self.log = self.directory / "prometheus.log"
        self._data = self.directory / "data"
        self._configuration = {
            "global": {
                "scrape_interval": f"{round(interval * 1000)}ms",
                "scrape_timeout": f"{round(interval * 1000)}ms",
                "evaluation_interval": f"{round(interval * 1000)}ms",
                "external_labels": dict(external_labels or {}),
            },
            "rule_files": [str(file.absolute()) for file in rules],
            "scrape_configs": [
                {"job_name": job, "static_configs": [{"targets": list(targets)}]} for job, targets in jobs.items()
            ],
        }

    def remember(self, *past: PastSeries) -> None:
        """Store past samples, before the first start.

        Raises:
            SandboxError: promtool rejects them.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        text = self.directory / "past.openmetrics"
        by_name: dict[str, list[PastSeries]] = {}
        for series in past:
            by_name.setdefault(series.name, []).append(series)
        lines = []
        for name, several in by_name.items():
            lines += [f"# TYPE {name} gauge", *(line for series in several for line in series.lines())]
        text.write_text("\n".join([*lines, "# EOF", ""]))
        find("promtool").run("tsdb", "create-blocks-from", "openmetrics", text, self._data)

    def start(self) -> None:
        """Run it and wait until it is ready; SandboxError, with the end of its log, if it is not."""
        program = find("prometheus")
        self.directory.mkdir(parents=True, exist_ok=True)
        configuration = self.directory / "prometheus.yml"
        configuration.write_text(json.dumps(self._configuration))  # JSON is YAML, too

        def launch(port: int) -> ChildProcess:
            command = program.command(
                f"--config.file={configuration}",
                f"--storage.tsdb.path={self._data}",
                "--storage.tsdb.retention.time=30d",
                f"--web.listen-address=127.0.0.1:{port}",
            )
            process = ChildProcess("prometheus", command, self.log, program.environ())
            process.start()
            return process

        self._start_on_a_port(
            launch, lambda process, port: self._await(process, lambda: _missing_answer(port), _START_LIMIT)
        )

    def stop(self) -> None:
        """Kill it: its data is not read again."""
        if self._process is not None:
            self._process.kill()

    def query(self, expression: str) -> list[Series]:
        """The current result of an expression; SandboxError, with Prometheus's message, if it is rejected."""
        answer = self._ask("/api/v1/query", query=expression)
        if answer["resultType"] == "scalar":
            return [Series({}, float(answer["result"][1]))]
        return [Series(each["metric"], float(each["value"][1])) for each in answer["result"]]

    def has_data(self, expression: str) -> bool:
        """Whether an expression has a current value that is a number."""
        return any(not math.isnan(series.value) for series in self.query(expression))

    def alerts(self) -> list[Alert]:
        """The alerts whose condition holds, pending ones included."""
        found = self._ask("/api/v1/alerts")["alerts"]
        return [Alert(each["labels"]["alertname"], each["labels"], each["annotations"]) for each in found]

    def rules(self) -> list[Rule]:
        """The rules that it has loaded."""
        found = [rule for group in self._ask("/api/v1/rules")["groups"] for rule in group["rules"]]
        return [Rule(each["name"], each["query"], each["health"], each.get("lastError", "")) for each in found]

    def rule_errors(self) -> dict[str, str]:
        """Errors by rule, of the rules whose evaluation failed; SandboxError if one was not evaluated yet."""
        if late := [rule.name for rule in self.rules() if rule.health == "unknown"]:
            raise SandboxError(f"not evaluated yet: {', '.join(late)}")
        return {rule.name: rule.error for rule in self.rules() if rule.health != "ok"}

    def _ask(self, path: str, **parameters: str) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_ANSWER_LIMIT)
        try:
            connection.request("GET", f"{path}?{urllib.parse.urlencode(parameters)}")
            answer = json.loads(connection.getresponse().read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise SandboxError(f"Prometheus does not answer {path}: {error}") from error
        finally:
            connection.close()
        if answer.get("status") != "success":
            raise SandboxError(f"Prometheus rejects {parameters or path}: {answer.get('error')}")
        return answer["data"]


def _missing_answer(port: int) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1.0)
    try:
        connection.request("GET", "/-/ready")
        status = connection.getresponse().status
        return "" if status == 200 else f"/-/ready answers {status}"
    except (OSError, http.client.HTTPException) as error:
        return str(error) or type(error).__name__
    finally:
        connection.close()
