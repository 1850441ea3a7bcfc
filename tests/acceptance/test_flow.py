"""Much at once: huge files beside small ones, fresh ones beside a backlog, more rows than there is room for, several sources."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from files_table import TABLE
from private_site import TARGET, PrivateSite
from waiting import eventually

from cdc_archiver.dispatch import scheduler


def test_one_huge_file_does_not_hold_up_small_ones(stage: PrivateSite) -> None:
    # Given a link on which the huge file takes minutes,
    huge = stage.file("huge.npy", size=30_000_000)
    with stage.service(small_limit="1M", bwlimit="256", drain_timeout=0) as service:
        # when it is registered together with small ones, before and behind it,
        ids = stage.register(*stage.files(5, prefix="before"), huge, *stage.files(5, prefix="behind"))
        small = [id_ for index, id_ in enumerate(ids) if index != 5]
        # then these are archived, and so are the ones that come later,
        stage.wait_archived(*small)
        stage.wait_archived(*stage.register(*stage.files(5, prefix="later")))
        # while it is still on its way.
        assert stage.row(ids[5]).copied == 0
        eventually(lambda: service.metric("in_flight") == 1, "the huge file is on its way")


def test_a_huge_file_is_archived_too(stage: PrivateSite) -> None:
    huge = stage.file("huge.npy", size=5_000_000)
    with stage.service(small_limit="1M") as service:
        stage.wait_archived(*stage.register(huge))
        assert stage.place(huge).read_bytes() == huge.content
        service.wait_metric(1, "copies_total", result="archived")
        assert service.metric("copies_total") == 1
        assert stage.row(1).attempts == 0


def test_outcomes_are_recorded_as_files_arrive_and_not_when_the_batch_ends(stage: PrivateSite) -> None:
    # Given a backlog that one rsync takes as a whole, on a link that needs a minute for it,
    ids = stage.register(*stage.files(40, size=60_000))
    with stage.service(workers=1, bwlimit="128", drain_timeout=0) as service:
        # when the first of it have arrived,
        done = eventually(lambda: stage.count("copied = 1"), "the first are recorded")
        # then the table says so of these, and not of the others, which the same rsync still brings.
        assert done < len(ids)
        assert service.metric("batch_files_count") == 1
        assert service.metric("batch_files_sum") == len(ids)
        later = eventually(lambda: stage.count("copied = 1") > done and stage.count("copied = 1"), "and the next ones")
        assert later < len(ids)
        assert service.metric("batch_files_count") == 1
    # A file that was on its way at the end is nobody's loss.
    assert stage.count("failed_copy_attempts > 0") == 0
    assert len(stage.archived_files()) == stage.count("copied = 1")


def test_fresh_files_go_before_the_backlog(stage: PrivateSite) -> None:
    # Given a service that is busy with a backlog,
    backlog = stage.register(*stage.files(400, size=20_000))
    with stage.service(workers=1, batch_files=10, bwlimit="2048", drain_timeout=0):
        eventually(lambda: stage.count("copied = 1"), "the backlog is under way")
        # when a file is registered,
        (fresh,) = stage.register(stage.file("fresh.npy"))
        # then it does not wait for the backlog's end.
        found = f"SELECT copied, (SELECT COUNT(*) FROM {TABLE} WHERE copied = 0) FROM {TABLE} WHERE id = {fresh}"
        copied, waiting = eventually(lambda: (rows := stage.sql(found)[0])[0] and rows, "the fresh file is archived")
        assert copied == 1
        assert waiting > len(backlog) // 4


def test_a_full_queue_drops_ids_and_the_sweep_brings_them_back(
    stage: PrivateSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a service whose queues hold next to nothing,
    for name, value in {"INBOX_LIMIT": 20, "QUEUE_LIMIT": 10, "BACKLOG_LIMIT": 8, "REFILL_BELOW": 4}.items():
        monkeypatch.setattr(scheduler, name, value)
    with stage.service() as service:
        service.wait_settled()
        # when far more is registered at once,
        ids = stage.register(*stage.files(120))
        # then no file is lost, nor left to the sweep that comes every minute,
        waiting: list[float] = []

        def all_are_archived() -> bool:
            waiting.append(service.archiver.metrics.total("queue_depth"))
            return stage.count("copied = 1") == len(ids)

        eventually(all_are_archived, "all are archived", 20.0)
        # although most of the ids were,
        assert service.metric("stream_events_total", outcome="dropped") > 20
        assert service.metric("sweep_found_total", why="overflow") > 20
        assert max(waiting) <= 10
        # and nobody says that the stream had missed them.
        assert service.metric("sweep_found_total", why="stream_missed") == 0
        assert len(stage.archived_files()) == 120


def test_memory_stays_flat_with_many_pending_rows(stage: PrivateSite) -> None:
    # Given a source that is down, and more rows than the queues hold,
    file = stage.file("same.npy")
    names = ", ".join(f"`{name}`" for name in stage.values(file))
    doubled = f"INSERT INTO {TABLE} ({names}) SELECT {names} FROM {TABLE}"
    stage.register(*[file] * 500)
    for _ in range(4):
        stage.sql(doubled)
    stage.ssh.stop()
    with stage.program(until="no source") as service:
        eventually(lambda: service.metric("pending_files") == 8_000, "8,000 rows are known to wait")
        eventually(lambda: service.metric("queue_depth") >= 4_000, "the queue is filled")
        before = _resident(service.pid)
        # when three times as many come,
        for _ in range(2):
            stage.sql(doubled)
        eventually(lambda: service.metric("stream_events_total") >= 24_000, "the stream has told of them")
        # then they wait in the table, and not in memory.
        assert service.metric("queue_depth") <= 5_000
        assert service.metric("stream_events_total", outcome="dropped") > 0
        assert _resident(service.pid) - before < 20_000_000
        assert stage.count("copied = 0 AND failed_copy_attempts = 0") == 32_000


def test_without_a_host_files_are_copied_locally(stage: PrivateSite) -> None:
    file = stage.file("local.npy")
    stage.ssh.stop()
    with stage.service(host="") as service:
        stage.wait_archived(*stage.register(file))
        assert stage.place(file).read_bytes() == file.content
        assert file.path.exists()
        service.wait_metric(1, "copies_total", source="local", result="archived")


def test_a_key_that_may_read_one_directory_and_nothing_else_is_enough(stage: PrivateSite) -> None:
    # Given a key that is restricted with rrsync, and can open no shell and no SFTP,
    stage.ssh.authorize(read_only=stage.sources)
    sound, missing = stage.file("sound.npy"), stage.file("missing.npy")
    missing.path.unlink()
    try:
        with stage.service(source_root=str(stage.sources), restricted_key=True) as service:
            # when files are registered, then the sound one is archived, and the missing one known for what it is.
            (lost,) = stage.register(missing)
            stage.wait_archived(*stage.register(sound))
            stage.wait_attempts(lost, 1)
            assert service.state() == "streaming"
    finally:
        stage.ssh.authorize()
    assert stage.place(sound).read_bytes() == sound.content
    assert stage.history(lost)[0]["reason"] == "missing"


def test_several_sources_with_several_targets_from_a_file(stage: PrivateSite) -> None:
    # Given two readout servers with two monitors each, of which one is this machine,
    config = stage.directory / "cdc_archiver.toml"
    config.write_text(
        f"""
        data_dir = "{stage.data_dir}"
        http_port = 0
        min_free = "0"

        [[sources]]
        name = "far"
        host = "{stage.ssh.user}@{stage.ssh.host}"
        target = ["far-1", "far-2"]
        ssh_port = {stage.ssh.port}
        ssh_key = "{stage.ssh.key}"
        known_hosts = "{stage.ssh.known_hosts}"
        ssh_config = "/dev/null"

        [[sources]]
        name = "near"
        target = ["near-1", "near-2"]
        """
    )
    targets = ("far-1", "far-2", "near-1", "near-2", "somebody-elses")
    nothing_else: dict[str, Any] = dict.fromkeys(stage.options())
    with stage.program(**nothing_else | {"config": config}) as service:
        # when each monitor registers a file, and so does another archiver's,
        files = [stage.file(f"{target}.npy") for target in targets]
        ids = [stage.register(file, instance_id=target)[0] for file, target in zip(files, targets, strict=True)]
        # then each comes from its source, and the foreign one stays.
        stage.wait_archived(*ids[:4])
        assert [entry["source"] for id_ in ids[:4] for entry in stage.history(id_)] == ["far", "far", "near", "near"]
        service.wait_metric(2, "copies_total", source="far", result="archived")
        service.wait_metric(2, "copies_total", source="near", result="archived")
        assert stage.row(ids[4]).copied == 0
        # One being down holds up nobody else.
        stage.ssh.stop()
        far, near = (stage.file(f"{name}-later.npy") for name in ("far", "near"))
        (waits,) = stage.register(far, instance_id="far-1")
        stage.wait_archived(*stage.register(near, instance_id="near-2"))
        eventually(lambda: service.metric("source_up", source="far") == 0, "the other source is known to be down")
        assert service.metric("source_up", source="near") == 1
        assert (stage.row(waits).copied, stage.row(waits).attempts) == (0, 0)
        assert service.get("/readyz")[0] == 200


def test_a_target_registers_by_the_spelling_that_the_database_takes_for_the_same(stage: PrivateSite) -> None:
    # The polling agent asked `instance_id IN (…)`, which most collations answer whatever the case.
    with stage.service():
        stage.wait_archived(*stage.register(stage.file("loud.npy"), instance_id=TARGET.upper()))


def _resident(pid: int) -> int:
    """Bytes of memory that a process has."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096
