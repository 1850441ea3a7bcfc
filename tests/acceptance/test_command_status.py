"""`status`: the current state, from the service or, without one, from the database."""

from __future__ import annotations

import json

from asking import ask
from files_table import TABLE
from private_site import PrivateSite
from terminal import Terminal
from waiting import eventually


def test_a_running_service_reports_stream_source_files_and_the_last_hour(stage: PrivateSite) -> None:
    gone = stage.file("gone.npy")
    gone.path.unlink()
    stage.register(gone, failed_copy_attempts=5)
    stage.register(gone, failed_copy_attempts=2000)
    with stage.service() as service:
        service.wait_settled()
        ids = stage.register(*stage.files(3, size=1000))
        stage.wait_archived(*ids)
        service.wait_metric(3, "copies_total", result="archived")
        flags = stage.flags(http_port=service.port)
        done = ask(stage, "status", *flags)
        assert done.returncode == 0, done.stderr
        found = json.loads(ask(stage, "status", "--json", *flags).stdout)
    words = done.stdout
    assert words.splitlines()[0].startswith("service      streaming")
    assert "connected at " in words
    assert "lag " in words
    assert f"{stage.ssh.host} up, 0 queued, 0 in flight" in words
    assert "0 pending, 1 quarantined, 0 refused, 1 ignored" in words
    assert f"{stage.data_dir} up, " in words
    assert "archived     3 files since the service's start" in words
    assert "last hour    3 files, 3.0 kB archived" in words
    assert "\x1b" not in words
    assert found["service"]["state"] == "streaming"
    assert found["service"]["sources"][0]["files"]["quarantined"] == 1
    assert found["rate"] == {"files": 3, "size": 3000}


def test_without_a_service_the_database_is_counted_and_the_output_says_so(either_stage: PrivateSite) -> None:
    stage = either_stage
    file = stage.file("file.npy")
    stage.register(file)
    stage.register(file, failed_copy_attempts=5, instance_id="another-monitor")
    # With the database's settings alone, all targets are counted,
    done = ask(stage, "status", "--http-port", "1")
    assert done.returncode == 0, done.stderr
    assert "no service answers at 127.0.0.1:1" in done.stdout
    assert f"the following counts come from the database, table {TABLE}" in done.stdout
    assert "all targets" in done.stdout
    assert "1 pending, 1 quarantined, 0 refused, 0 ignored; oldest pending: 2020-05-15 04:34:24Z" in done.stdout
    # with those of the service, its sources.
    found = json.loads(ask(stage, "status", "--json", *stage.flags()).stdout)
    assert found["service"] is None
    assert found["sources"][stage.ssh.host]["files"]["quarantined"] == 0
    assert found["holder"] is None
    # A service that is only somewhere else holds the lock.
    with stage.service():
        done = ask(stage, "status", *stage.flags(http_port=1))
        assert "but an archiver holds these targets: connection " in done.stdout


def test_without_a_target_it_reads_what_is_not_archived_and_no_table_of_years(either_stage: PrivateSite) -> None:
    stage = either_stage
    stage.register(*[stage.file("one.npy")] * 3000, copied=1)
    stage.register(stage.file("waits.npy"), instance_id="m2")
    stage.sql(f"CREATE INDEX sweep ON {TABLE} (copied, instance_id, id)")

    def read() -> int:
        return sum(int(count) for _, count in stage.sql("SHOW GLOBAL STATUS LIKE 'Handler_read%'"))

    before = read()
    seen = json.loads(ask(stage, "status", "--json", "--http-port", "1").stdout)
    assert read() - before < 1500
    assert seen["sources"]["all targets"]["targets"] == ["m2"]


def test_files_that_fail_are_told_at_once_with_their_reason_and_the_next_attempt(stage: PrivateSite) -> None:
    # Given a service that sweeps seldom,
    with stage.service(sweep_interval=600) as service:
        service.wait_settled()
        missing = stage.file("missing.npy")
        missing.path.unlink()
        # when a file fails, and a row is refused,
        stage.wait_attempts(stage.register(missing)[0], 1)
        stage.register(stage.file("odd.npy"), pub_id="suprsync")
        eventually(lambda: service.metric("refused_files") == 1, "the metric knows")
        words = ask(stage, "status", *stage.flags(http_port=service.port)).stdout
        status = service.status()
        metric = service.metric("retried_files", source=stage.ssh.host, reason="missing")
    # then all of it is known without a sweep.
    assert f"1 file tried again after a failure: 1 missing ({stage.ssh.host}, next in " in words
    assert "1 refused" in words
    assert metric == 1
    assert status["words"]["headline"]["tone"] == "warning"
    assert "1 file tried again after a failure" in status["words"]["headline"]["text"]


def test_a_source_that_is_down_is_named_with_its_reason(stage: PrivateSite) -> None:
    stage.ssh.stop()
    stage.register(stage.file("file.npy"))
    with stage.service(until="no source") as service:
        words = ask(stage, "status", *stage.flags(http_port=service.port)).stdout
    assert words.startswith("service      no source ")
    assert f"{stage.ssh.host} DOWN host_unreachable: " in words
    assert "(next attempt in " in words


def test_neither_service_nor_database_answers(stage: PrivateSite) -> None:
    done = ask(stage, "status", "--http-port", "1", environment={"MYSQL_PORT": "1"})
    assert done.returncode == 4
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "no service answers at 127.0.0.1:1" in line
    assert "127.0.0.1:1 cannot be used" in line


def test_the_service_answers_while_the_command_cannot_reach_the_database(stage: PrivateSite) -> None:
    with stage.service() as service:
        done = ask(stage, "status", "--http-port", str(service.port), environment={"MYSQL_PORT": "1"})
    assert done.returncode == 0
    assert done.stdout.startswith("service      streaming")
    assert "last hour    not known: the database 127.0.0.1:1 cannot be used" in done.stdout


def test_watch_repeats_until_it_is_interrupted(stage: PrivateSite) -> None:
    with stage.service() as service:
        with Terminal(
            stage, ["status", "--watch", "--every", "300ms", *stage.flags(http_port=service.port)]
        ) as terminal:
            terminal.wait_for("0 files since the service's start")
            stage.wait_archived(*stage.register(stage.file("file.npy")))
            terminal.wait_for("1 file since the service's start")
            assert terminal.interrupt().returncode == 0
        assert "Traceback" not in terminal.seen
        assert eventually(lambda: "\x1b[" in terminal.seen, "it is drawn anew in its place")
