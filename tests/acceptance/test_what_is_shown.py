"""What an operator, Prometheus and a container's health check see of a running service."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from archive_places import marker_of
from asking import ask
from files_table import TABLE
from private_site import TARGET, PrivateSite, new_private_site
from prometheus_client.parser import text_string_to_metric_families
from services import PASSWORD, Served
from waiting import eventually

from cdc_archiver.sandbox import DatabaseServer, Kind, MariaDb, SshServer, open_database
from cdc_archiver.service import table_watch

CONTRACT = {
    "stream_connected": (),
    "stream_lag_seconds": (),
    "stream_events_total": ("outcome",),
    "stream_reconnects_total": ("reason",),
    "mode": ("mode",),
    "queue_depth": ("source",),
    "in_flight": ("source",),
    "copies_total": ("source", "result"),
    "copied_bytes_total": ("source",),
    "copy_failures_total": ("source", "reason"),
    "copy_duration_seconds_count": (),
    "event_to_archived_seconds_count": ("source",),
    "batch_files_count": (),
    "source_up": ("source",),
    "destination_up": (),
    "destination_free_bytes": (),
    "sweep_found_total": ("why",),
    "sweep_duration_seconds_count": (),
    "last_sweep_timestamp_seconds": (),
    "pending_files": ("source",),
    "quarantined_files": ("source",),
    "refused_files": ("source",),
    "ignored_files": ("source",),
    "unclaimed_files": ("instance_id",),
    "destination_free_inodes": (),
    "database_server_changes_total": ("reason",),
    "not_recordable_files": ("source",),
    "oldest_pending_age_seconds": ("source",),
    "rsync_info": ("side", "version"),
    "build_info": ("version",),
}
"""Samples, by name without prefix, and their labels: design.md, "What the operator sees"."""


@pytest.fixture(params=["mariadb", "mysql"])
def stage_without_log(
    request: pytest.FixtureRequest, ssh_server: SshServer, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PrivateSite]:
    """On a server that has no binary log."""
    request.getfixturevalue(request.param)  # skips where it is not to be had
    with (
        own_server(request.param, tmp_path_factory.mktemp("no-log"), "--skip-log-bin") as server,
        new_private_site(server, ssh_server, tmp_path) as made,
    ):
        yield made


@pytest.fixture(scope="module")
def doomed(mariadb: MariaDb, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DatabaseServer]:
    """A server that tests may stop."""
    with own_server("mariadb", tmp_path_factory.mktemp("doomed")) as server:
        yield server


@pytest.fixture
def doomed_stage(doomed: DatabaseServer, ssh_server: SshServer, tmp_path: Path) -> Iterator[PrivateSite]:
    with new_private_site(doomed, ssh_server, tmp_path) as made:
        yield made
        doomed.start()


@contextmanager
def own_server(kind: Kind, directory: Path, *options: str) -> Iterator[DatabaseServer]:
    server = open_database(kind, directory, options=options)
    server.start()
    try:
        yield server
    finally:
        server.kill()


def samples(service: Served) -> dict[str, list[tuple[dict[str, str], float]]]:
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(service.get("/metrics")[1]):
        for sample in family.samples:
            found.setdefault(sample.name.removeprefix("cdc_archiver_"), []).append((sample.labels, sample.value))
    return found


def test_metrics_are_those_of_the_contract(stage: PrivateSite, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a service with an archived file and a failed attempt, and with rows that were quarantined, refused and ignored before,
    missing = stage.file("missing.npy")
    missing.path.unlink()
    stage.register(missing, failed_copy_attempts=5)
    stage.register(missing, failed_copy_attempts=1000)
    stage.register(missing, failed_copy_attempts=2000)
    stage.register(missing, instance_id="nobody's")
    monkeypatch.setattr(table_watch, "UNHELD", 0.0)
    with stage.service(preflight=True) as service:
        service.wait_settled()
        file = stage.file("file.npy", size=4321)
        stage.wait_archived(*stage.register(file))
        stage.wait_attempts(stage.register(missing)[0], 1)
        eventually(lambda: service.metric("rsync_info") >= 2, "the versions of rsync are known")
        eventually(lambda: service.metric("copies_total", result="charged") == 1, "the failed attempt is counted")
        # when Prometheus asks,
        found = samples(service)
        families = {family.name for family in text_string_to_metric_families(service.get("/metrics")[1])}
    # then every metric is there, with these labels,
    for name, labels in CONTRACT.items():
        assert name in found, f"{name} is missing"
        assert all(set(labels) <= set(seen) for seen, _ in found[name]), f"{name} has {found[name][0][0]}"
    assert "cdc_archiver_verified_files" in families
    # and says what happened.
    source = stage.ssh.host

    def value(name: str, **labels: str) -> float:
        return sum(number for seen, number in found[name] if labels.items() <= seen.items())

    assert value("copies_total", source=source, result="archived") == 1
    assert value("copies_total", source=source, result="charged") == 1
    assert value("copy_failures_total", source=source, reason="missing") == 1
    assert value("copied_bytes_total", source=source) == 4321
    assert value("event_to_archived_seconds_count", source=source) == 1
    assert value("stream_connected") == value("destination_up") == value("source_up", source=source) == 1
    assert value("mode", mode="stream") == value("mode") == 1
    assert {labels["mode"] for labels, _ in found["mode"]} == {"stream", "polling", "standby"}
    assert value("quarantined_files") == value("refused_files") == value("ignored_files") == 1
    assert value("stream_events_total", outcome="offered") == 2
    assert value("sweep_found_total", why="stream_missed") == 0
    assert {labels["why"] for labels, _ in found["sweep_found_total"]} == {
        "backlog",
        "retry",
        "requeued",
        "stream_missed",
        "overflow",
        "late_commit",
    }
    assert {labels["side"] for labels, _ in found["rsync_info"]} == {"here", source}
    assert value("last_sweep_timestamp_seconds") > 1_500_000_000


def test_the_age_of_the_oldest_pending_file_is_shown(stage: PrivateSite) -> None:
    file = stage.file("old.npy")
    stage.ssh.stop()
    stage.register(file, timestamp="2020-05-15 04:34:24")
    with stage.service(until="no source") as service:
        eventually(lambda: service.metric("oldest_pending_age_seconds") > 5 * 365 * 86400, "its age is shown")
        assert service.metric("pending_files") == 1


def test_the_status_is_the_current_state_and_never_has_the_password(stage: PrivateSite) -> None:
    with stage.program() as service:
        stage.wait_archived(*stage.register(stage.file("file.npy")))
        status = service.status()
        assert status["state"] == "streaming"
        assert (status["ready"], status["healthy"]) == (True, True)
        assert (status["table"], status["history"]) == (TABLE, "kept")
        assert status["database"] == f"127.0.0.1:{stage.server.port}/{stage.database}"
        assert status["stream"]["connected"] is True
        assert status["archived"] == 1
        (source,) = status["sources"]
        assert (source["host"], source["targets"]) == (stage.ssh.host, [TARGET])
        assert source["state"]["up"] is True
        assert status["destination"]["path"] == str(stage.data_dir)
        assert status["destination"]["up"] is True
        assert "T" in status["started"]
        # Whatever is asked for, and whatever the service has logged.
        for path in ("/", "/metrics", "/healthz", "/readyz", "/api/status", "/nothing"):
            assert PASSWORD not in service.get(path)[1]
        assert PASSWORD not in service.said
        assert service.get("/nothing")[0] == 404
        command = Path(f"/proc/{service.pid}/cmdline").read_bytes().decode()
        assert PASSWORD not in command


def test_a_log_for_machines_has_one_object_a_line_whatever_a_file_is_called(stage: PrivateSite) -> None:
    file, missing = stage.file("two\nlines \x1b[2J.npy"), stage.file("three\n\nlines.npy")
    missing.path.unlink()
    with stage.program(log_format="json") as service:
        stage.wait_attempts(stage.register(missing)[0], 1)
        stage.wait_archived(*stage.register(file))
        eventually(lambda: '"archived"' in service.said, "the last line is written")
        service.signal(signal.SIGTERM)
        assert service.wait() == 0
        lines = [json.loads(line) for line in service.said.splitlines()]
    events = [line["event"] for line in lines]
    assert events[0] == "listening"
    assert events[-1] == "stopped"
    assert {"streaming", "attempt_failed", "archived"} <= set(events)
    assert all({"event", "level", "timestamp"} <= set(line) for line in lines)


# What /healthz, /readyz and the mode say, state by state.


def test_streaming(stage: PrivateSite) -> None:
    with stage.service() as service:
        assert service.get("/readyz") == (200, "streaming\n")
        assert service.get("/healthz") == (200, "streaming\n")
        assert service.metric("mode", mode="stream") == service.metric("stream_connected") == 1


def test_standby(stage: PrivateSite) -> None:
    with stage.service(), stage.service(until="standby") as service:
        status, body = service.get("/readyz")
        assert status == 200
        assert body.startswith("standby: another archiver has these targets: connection ")
        assert service.get("/healthz")[0] == 200
        assert service.metric("mode", mode="standby") == service.metric("mode") == 1


def test_no_source(stage: PrivateSite) -> None:
    stage.ssh.stop()
    stage.register(stage.file("file.npy"))
    with stage.service(until="no source") as service:
        status, body = service.get("/readyz")
        assert status == 503
        assert f"{stage.ssh.host}: host_unreachable: " in body
        assert service.get("/healthz")[0] == 200
        assert service.metric("source_up") == 0
        (source,) = service.status()["sources"]
        assert source["state"]["reason"] == "host_unreachable"


def test_no_destination(stage: PrivateSite) -> None:
    with stage.service() as service:
        marker_of(stage.data_dir).unlink()
        stage.register(stage.file("file.npy"))
        service.wait_state("no destination")
        status, body = service.get("/readyz")
        assert status == 503
        assert "destination_missing: " in body
        assert str(stage.data_dir) in body
        assert service.get("/healthz")[0] == 200
        assert service.metric("destination_up") == 0


def test_polling_where_there_is_no_binary_log(stage_without_log: PrivateSite) -> None:
    stage = stage_without_log
    # Given a server without a binary log,
    with stage.service(until="polling", poll_interval=0.3) as service:
        eventually(lambda: "log" in service.get("/readyz")[1], "it says why")
        assert service.get("/readyz")[0] == service.get("/healthz")[0] == 200
        # then files are archived all the same, by the poll.
        stage.wait_archived(*stage.register(*stage.files(3)))
        assert service.metric("mode", mode="polling") == service.metric("mode") == 1
        assert service.metric("stream_connected") == 0
        assert service.metric("sweep_found_total", why="backlog") == 3
        assert service.metric("sweep_found_total", why="stream_missed") == 0
        assert service.status()["stream"]["why"] != ""


def test_no_database_while_it_runs(doomed_stage: PrivateSite) -> None:
    stage = doomed_stage
    # Given a service with a file on its way,
    with stage.service(bwlimit="200") as service:
        (id_,) = stage.register(stage.file("slow.npy", size=300_000))
        eventually(lambda: service.metric("in_flight") == 1, "it is on its way")
        # when the database is stopped,
        stage.close()
        stage.server.stop()
        service.wait_state("no database")
        assert service.get("/readyz")[0] == 503
        assert service.get("/healthz")[0] == 200
        # then the status still has what was known, with its time,
        eventually(lambda: service.status()["as_of"], "the last known state is told")
        known = service.status()
        assert [source["state"]["name"] for source in known["sources"]] == [stage.ssh.host]
        assert known["destination"]["path"] == str(stage.data_dir)
        assert known["last_sweep"] is not None
        said = ask(stage, "status", *stage.flags(http_port=service.port)).stdout
        assert "when the database answered last" in said
        assert f"{stage.ssh.host} up" in said
        assert "none yet" not in said
        # and the file is placed meanwhile, and the row says so when the database is back.
        eventually(stage.archived_files, "the file is placed")
        stage.server.start()
        stage.wait_archived(id_)
        # Later files come by a stream again.
        service.wait_state("streaming")
        assert service.status()["as_of"] is None
        assert service.metric("stream_reconnects_total") >= 1
        told = service.metric("stream_events_total")
        (later,) = stage.register(stage.file("later.npy"))
        stage.wait_archived(later)
        eventually(lambda: service.metric("stream_events_total") > told, "the stream tells of it")
        assert service.metric("sweep_found_total", why="stream_missed") == 0
    assert [row.attempts for row in stage.rows([id_, later])] == [0, 0]
    # Written by the recorder that waited, or adopted after the lock was lost with the database: once, either way.
    assert [entry["result"] in ("archived", "adopted") for entry in stage.history(id_)] == [True]


def test_no_database_at_the_start(doomed_stage: PrivateSite) -> None:
    stage = doomed_stage
    # Given a database that comes later than the service, as after a power cut,
    (id_,) = stage.register(stage.file("file.npy"))
    stage.close()
    stage.server.stop()
    with stage.service(until="no database") as service:
        status, body = service.get("/readyz")
        assert status == 503
        assert f"127.0.0.1:{stage.server.port}" in body
        assert service.get("/healthz")[0] == 200
        assert service.status()["table"] is None
        # when it is there, then the service continues automatically.
        stage.server.start()
        stage.wait_archived(id_)
        service.wait_state("streaming")
