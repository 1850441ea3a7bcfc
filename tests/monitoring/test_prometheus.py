"""A real Prometheus scrapes a real service: every expression has data, and every alert fires under its fault."""

from __future__ import annotations

import contextlib
import http.server
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from archive_places import marker_of
from monitoring_files import ALERTS, RULES, expressions
from private_database import PrivateDatabase
from private_site import PrivateSite, insert
from registering import RegistrarSite
from services import Service
from waiting import PATIENCE, eventually, eventually_or_not

from cdc_archiver.observe.http import HealthQueries, HttpServer
from cdc_archiver.sandbox import PrometheusServer
from cdc_archiver.sandbox.packages import Tool
from cdc_archiver.sandbox.prometheus import PastSeries
from cdc_archiver.service import table_watch

AT_REST = {
    "CdcArchiverAbsent",
    "CdcArchiverNotWorking",
    "CdcArchiverQuarantineGrows",
    "CdcArchiverRefusalsGrow",
    "CdcArchiverDiskFilling",
    "CdcArchiverDiskAlmostFull",
    "CdcArchiverVerificationFailed",
    "CdcArchiverTimecodeBlocked",
    "CdcArchiverWatermarkHeld",
    "CdcArchiverUnclaimedRows",
}
"""Alerts with a fault from the beginning: a service that is down, one without a database, rows, a disk, a verification."""

ONLY_WITH_AN_EMPTY_TABLE = "cdc_archiver_other_table_pending_files"

THRESHOLDS = {
    "CdcArchiverNotRecordable": ("> 0", ">= 0"),
    "CdcArchiverHandedOverWaits": ("> 0", ">= 0"),
    "CdcArchiverLateFile": ("> 0", ">= 0"),
    "CdcArchiverClocksApart": ("> 300", ">= 0"),
    "CdcArchiverPartOff": ("== 1", "== 0"),
    "CdcArchiverRegistrarSilent": ("> 0", ">= 0"),
    "CdcArchiverRegistrarDown": ("> 900", "> -60"),
    "CdcArchiverRegistrarSpoolOld": ("> 900", ">= 0"),
    "CdcArchiverRegistrarFilesLost": ("> 0", ">= 0"),
    "CdcArchiverRegistrarMessagesMissing": ("> 0", ">= 0"),
}
"""By alert, its threshold and one that a healthy site passes."""

VERIFIED = """\
# TYPE cdc_archiver_verify_files gauge
cdc_archiver_verify_files{result="ok"} 498
cdc_archiver_verify_files{result="changed"} 2
"""
HOME = "https://git.example.org/cdc_archiver/blob/main/"


@contextlib.contextmanager
def node_exporter() -> Iterator[str]:
    """Serves the metrics of a run of `verify` as node_exporter does; yields its address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(VERIFIED.encode())

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def registrar_at(stage: PrivateSite) -> Iterator[str]:
    """A registrar that has heard something and understood most of it; yields the address of its metrics."""
    (stage.directory / "registrar").mkdir()
    site = RegistrarSite(PrivateDatabase(stage.server, stage.database, stage.user), stage.directory / "registrar")
    with site.running() as running, running.publisher() as publisher:
        publisher.send(b"garbage")
        publisher.send({"type": "log"})
        registrar = running.registrar
        server = HttpServer("127.0.0.1", 0, HealthQueries(registrar.metrics.registry, registrar.status))
        server.start()
        try:
            yield f"127.0.0.1:{server.port}"
        finally:
            server.stop()
            server.join()


@contextlib.contextmanager
def watched(directory: Path, service: Service, source: str, registrar: str, *others: str) -> Iterator[PrometheusServer]:
    """Prometheus that scrapes the service and others, with six hours of history: no faults, and a disk with more free space."""
    here = {"job": "cdc_archiver", "instance": f"127.0.0.1:{service.port}"}
    free = eventually(lambda: max(0.0, service.metric("destination_free_bytes")), "the disk was looked at")
    now = time.time()

    def past(name: str, first: float, last: float, **labels: str) -> PastSeries:
        spaced = [first + (last - first) * step / 360 for step in range(361)]
        return PastSeries(f"cdc_archiver_{name}", here | labels, now - 6 * 3600, now - 120, spaced)

    with node_exporter() as node:
        server = PrometheusServer(
            directory,
            {"cdc_archiver": [here["instance"], *others], "cdc_registrar": [registrar], "node": [node]},
            [RULES],
            external_labels={"cdc_archiver_url": HOME},
        )
        server.remember(
            past("quarantined_files", 0, 0, source=source),
            past("refused_files", 0, 0, source=source),
            past("destination_free_bytes", free * 100, free),
        )
        with server:
            yield server


@contextlib.contextmanager
def unanswered_port() -> Iterator[int]:
    """A port that does not answer, reserved meanwhile."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def write_unlogged(stage: PrivateSite, id_: int) -> None:
    """Inserts a row that is not in the binary log."""
    with contextlib.closing(stage.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("SET SESSION sql_log_bin = 0")
        insert(cursor, [stage.values(stage.file("unlogged.npy"), id=id_)])


def end_stream(stage: PrivateSite) -> None:
    """Revokes the grant of the stream and kills its connection."""
    stage.server.execute(f"REVOKE REPLICATION SLAVE ON *.* FROM '{stage.user}'@'%'")
    for id_, user, _, _, command, *_ in stage.sql("SHOW PROCESSLIST"):
        if (user, command) == (stage.user, "Binlog Dump"):
            stage.sql(f"KILL {id_}")


def test_every_expression_has_data_and_every_alert_fires_under_its_fault(
    promtool: Tool, stage: PrivateSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_watch, "UNHELD", 0.0)
    now = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
    source = stage.ssh.host
    lost = stage.file("lost.npy")
    lost.path.unlink()
    stage.register(lost, failed_copy_attempts=5)
    stage.register(lost, failed_copy_attempts=1000)
    stage.register(stage.file("nobodys.npy"), instance_id="nobody")
    # Given a service that works, one without a database, and one that does not answer,
    with (
        unanswered_port() as port,
        stage.service(sweep_interval=1.0, preflight=True, retry_delays="1s") as service,
        stage.service(until="no database", mysql_port=port, data_dir=stage.directory) as other,
        registrar_at(stage) as registrar,
        watched(
            tmp_path / "prometheus", service, source, registrar, f"127.0.0.1:{other.port}", f"127.0.0.1:{port}"
        ) as prometheus,
    ):
        seen: set[str] = set()

        def active() -> set[str]:
            return {alert.name for alert in prometheus.alerts()}

        def wait_alert(name: str, **labels: str) -> None:
            def there() -> bool:
                return any(
                    alert.name == name and labels.items() <= alert.labels.items() for alert in prometheus.alerts()
                )

            assert eventually_or_not(there, PATIENCE), f"{name} does not fire; active are {prometheus.alerts()}"
            seen.add(name)

        def wait_data(panels: list[tuple[str, str]]) -> None:
            def empty() -> list[tuple[str, str]]:
                return [each for each in panels if not prometheus.has_data(each[1])]

            assert eventually_or_not(lambda: not empty(), PATIENCE), f"without data: {empty()}"

        here = f"127.0.0.1:{service.port}"
        eventually(lambda: prometheus.has_data(f'count_over_time(up{{instance="{here}"}}[1m]) >= 2'), "it is scraped")
        # when files are archived, and one is missing for the last time,
        stage.wait_archived(*stage.register(*stage.files(3), timestamp=now))
        stage.wait_attempts(stage.register(lost, timestamp=now, failed_copy_attempts=4)[0], 5)
        # then every expression of the dashboard has data, without an error,
        wait_data([each for each in expressions() if ONLY_WITH_AN_EMPTY_TABLE not in each[1]])
        # exactly the alerts with a fault are active,
        for name in sorted(AT_REST):
            wait_alert(name)
        assert eventually_or_not(lambda: active() == AT_REST, PATIENCE), active() ^ AT_REST
        wait_alert("CdcArchiverAbsent", instance=f"127.0.0.1:{port}")
        wait_alert("CdcArchiverNotWorking", instance=f"127.0.0.1:{other.port}")
        wait_alert("CdcArchiverQuarantineGrows", source=source)
        assert prometheus.rule_errors() == {}
        # and an hour without a sweep would fire.
        rules = {rule.name: rule.expression for rule in prometheus.rules()}
        assert sorted(rules) == sorted(ALERTS)
        overdue = rules["CdcArchiverSweepOverdue"]
        assert not prometheus.has_data(overdue)
        assert prometheus.has_data(overdue.replace("time()", "(time() + 3600)"))

        # The others fire as soon as their value is not that of a healthy site.
        for name, (healthy, faulty) in THRESHOLDS.items():
            assert healthy in rules[name]
            assert not prometheus.has_data(rules[name]), name
            assert prometheus.has_data(rules[name].replace(healthy, faulty)), name
            seen.add(name)

        # When the stream passes a row without reporting it,
        (top,) = stage.register(stage.file("before.npy"))
        stage.wait_archived(top)
        write_unlogged(stage, top + 1)
        stage.wait_archived(top + 1)
        stage.wait_archived(*stage.register(stage.file("after.npy")))
        wait_alert("CdcArchiverStreamMissed", instance=here)
        # when the source is down,
        stage.ssh.stop()
        stage.register(stage.file("waits.npy"))
        wait_alert("CdcArchiverSourceDown", source=source)
        wait_alert("CdcArchiverPendingTooOld", source=source)
        # when the stream is lost for good, and the table is not,
        assert "CdcArchiverStreamDown" not in active()
        end_stream(stage)
        wait_alert("CdcArchiverStreamDown", instance=here)
        # when the archive's disk is gone,
        assert "CdcArchiverDestinationDown" not in active()
        marker_of(stage.data_dir).unlink()
        stage.ssh.start()
        wait_alert("CdcArchiverDestinationDown", instance=here)
        # then every alert has had its fault,
        assert seen | {"CdcArchiverSweepOverdue"} == set(ALERTS)
        # and each has a whole sentence, and a link with the beginning that the site set.
        for alert in prometheus.alerts():
            assert alert.annotations["summary"].endswith("."), alert
            assert "<no value>" not in alert.annotations["summary"]
            assert alert.annotations["runbook"] == f"{HOME}docs/runbook.md#{alert.name.lower()}"
        marker_of(stage.data_dir).touch()
