"""Helpers of the tests of copy faults: short pauses, batches on command, and assertions on archive, rows and history."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from private_site import HISTORY, PrivateSite, SourceFile
from prometheus_client.parser import text_string_to_metric_families
from proxy import Proxy
from services import Served, Service
from waiting import eventually

from cdc_archiver.dispatch import health, retry_delays
from cdc_archiver.model import Scope

PAUSE = 0.3
"""Seconds until a retry, instead of up to ten minutes."""


def shorten_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shortens all pauses: minutes of failures pass in a second."""
    monkeypatch.setattr(retry_delays, "delay_after", lambda delays, tries: PAUSE)
    monkeypatch.setattr(health, "_CORRUPTED_PAUSE", PAUSE)
    for scope in (Scope.SOURCE, Scope.CONFIGURATION, Scope.DESTINATION):
        monkeypatch.setitem(health._PAUSES, scope, (PAUSE, PAUSE))


@contextlib.contextmanager
def one_batch(service: Service, files: int) -> Iterator[None]:
    """Files registered inside the context go out as one batch, as when a worker returns to a full queue.

    Args:
        files: number of files queued at the end, including retries.
    """
    pipeline = service.archiver._pipeline
    assert pipeline is not None
    pipeline.dispatcher.set_backpressure(True)
    try:
        yield
        service.wait_metric(files, "queue_depth")
    finally:
        pipeline.dispatcher.set_backpressure(False)


def settings_through(wire: Proxy, stage: PrivateSite) -> dict[str, Any]:
    """Settings to reach the stage's sshd through a proxy; the host key is trusted there too."""
    known_hosts = stage.directory / "known_hosts-of-the-wire"
    known_hosts.write_text(stage.ssh.known_hosts.read_text().replace(f":{stage.ssh.port} ", f":{wire.port} "))
    return {"ssh_port": wire.port, "known_hosts": known_hosts}


def wait_failures(service: Served, reason: str, least: float = 1) -> None:
    """Waits until at least this many tries have failed for a reason."""
    enough = lambda: service.metric("copy_failures_total", reason=reason) >= least
    eventually(enough, f"{least} tries failed as {reason}")


def failure_count(service: Served, *but: str) -> float:
    """Number of tries that failed for any reason except these."""
    return sum(
        sample.value
        for family in text_string_to_metric_families(service.get("/metrics")[1])
        for sample in family.samples
        if sample.name == "cdc_archiver_copy_failures_total" and sample.labels["reason"] not in but
    )


def assert_source_down(service: Served, reason: str) -> None:
    """The service reports the reason, and is alive."""
    eventually(lambda: _reports(service, "no source", reason, (0, 1)), f"the source is down: {reason}")
    assert service.get("/healthz")[0] == 200


def assert_destination_down(service: Served, reason: str) -> None:
    """The service reports the reason, and is alive."""
    eventually(lambda: _reports(service, "no destination", reason, (1, 0)), f"the destination is down: {reason}")
    assert service.get("/healthz")[0] == 200


def _reports(service: Served, state: str, reason: str, up: tuple[float, float]) -> bool:
    # Files that arrive before a link breaks show that the source is there: for a moment it is up again.
    status, body = service.get("/readyz")
    seen = (service.metric("source_up"), service.metric("destination_up"))
    return status == 503 and body.startswith(f"{state}: ") and f"{reason}: " in body and seen == up


def assert_healthy(service: Served) -> None:
    """The service streams, and source and destination are up."""
    service.wait_state("streaming")
    assert (service.metric("source_up"), service.metric("destination_up")) == (1, 1)


def assert_no_failed_attempts(stage: PrivateSite) -> None:
    """No row and no entry of the history has a failed attempt or a refusal."""
    assert stage.count("failed_copy_attempts <> 0 OR failed_copy_attempts IS NULL") == 0
    assert stage.sql(f"SELECT * FROM {HISTORY} WHERE result IN ('charged', 'refused')") == []


def assert_archived(
    stage: PrivateSite, ids: Sequence[int], files: Sequence[SourceFile], root: Path = Path("/")
) -> None:
    """Each file is archived once, with its content, at its path, with one entry in the history.

    Args:
        root: directory below which the archive is visible.
    """
    rows = stage.rows(ids)
    assert [(row.copied, row.attempts) for row in rows] == [(1, 0)] * len(ids)
    assert [row.path for row in rows] == [str(stage.place(file)) for file in files]
    for row, file in zip(rows, files, strict=True):
        place = root / row.path.lstrip("/")
        assert hashlib.md5(place.read_bytes()).digest() == file.md5, place
    listed = ", ".join(map(str, ids))
    entries = stage.sql(
        f"SELECT file_id, result, archived_path FROM {HISTORY} WHERE file_id IN ({listed}) ORDER BY file_id"
    )
    assert [(id_, path) for id_, _, path in entries] == [(id_, row.path) for id_, row in zip(ids, rows, strict=True)]
    assert {result for _, result, _ in entries} <= {"archived", "adopted"}


def assert_archive_is_exactly(stage: PrivateSite, *files: SourceFile) -> None:
    """The archive has these files and no others."""
    assert stage.archived_files() == sorted(stage.place(file) for file in files)


def assert_history_has(stage: PrivateSite, id_: int, result: str, reason: str, detail: str) -> dict[str, Any]:
    """The history's first entry of a file has these values; returns the entry."""
    entry = stage.history(id_)[0]
    assert (entry["result"], entry["reason"]) == (result, reason), entry
    assert detail in entry["detail"], entry["detail"]
    assert entry["archived_path"] is None
    return entry
