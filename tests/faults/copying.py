"""What the tests of the copy's faults share: short pauses, batches on command, and one question: is everybody whole?"""

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

from cdc_archiver.dispatch import dispatcher, health
from cdc_archiver.model import Scope

PAUSE = 0.3
"""Seconds that whatever failed is left alone, in place of up to ten minutes."""


def shorten_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """What failed is tried again in a moment: minutes of trouble go by in a second."""
    monkeypatch.setattr(dispatcher, "_CHARGED_DELAYS", (PAUSE,))
    monkeypatch.setattr(dispatcher, "_BLANK_DELAYS", (PAUSE,))
    monkeypatch.setattr(health, "_CORRUPTED_PAUSE", PAUSE)
    for fault in (Scope.SOURCE, Scope.CONFIGURATION, Scope.DESTINATION):
        monkeypatch.setitem(health._PAUSES, fault, (PAUSE, PAUSE))


@contextlib.contextmanager
def one_batch(service: Service, files: int) -> Iterator[None]:
    """What is registered within goes out as one batch, as it does where a worker comes back to a full queue.

    Args:
        files: how many wait at the end, what is tried again among them.
    """
    pipeline = service.archiver._pipeline
    assert pipeline is not None
    pipeline.dispatcher.hold_up(True)
    try:
        yield
        service.wait_metric(files, "queue_depth")
    finally:
        pipeline.dispatcher.hold_up(False)


def through(wire: Proxy, stage: PrivateSite) -> dict[str, Any]:
    """Settings to reach the stage's sshd over a wire; the host's key is known there too."""
    known_hosts = stage.directory / "known_hosts-of-the-wire"
    known_hosts.write_text(stage.ssh.known_hosts.read_text().replace(f":{stage.ssh.port} ", f":{wire.port} "))
    return {"ssh_port": wire.port, "known_hosts": known_hosts}


def wait_failures(service: Served, reason: str, least: float = 1) -> None:
    """Waits until so many tries have failed for this reason."""
    enough = lambda: service.metric("copy_failures_total", reason=reason) >= least
    eventually(enough, f"{least} tries failed as {reason}")


def failures(service: Served, *but: str) -> float:
    """How many tries have failed for any reason but these."""
    return sum(
        sample.value
        for family in text_string_to_metric_families(service.get("/metrics")[1])
        for sample in family.samples
        if sample.name == "cdc_archiver_copy_failures_total" and sample.labels["reason"] not in but
    )


def assert_source_is_to_blame(service: Served, reason: str) -> None:
    """The service says so, and is alive."""
    eventually(lambda: _blames(service, "no source", reason, (0, 1)), f"the source is to blame: {reason}")
    assert service.get("/healthz")[0] == 200


def assert_destination_is_to_blame(service: Served, reason: str) -> None:
    """The service says so, and is alive."""
    eventually(lambda: _blames(service, "no destination", reason, (1, 0)), f"the destination is to blame: {reason}")
    assert service.get("/healthz")[0] == 200


def _blames(service: Served, state: str, reason: str, up: tuple[float, float]) -> bool:
    # What arrives before a link breaks shows that its source is there: for a moment it is up again.
    status, words = service.get("/readyz")
    seen = (service.metric("source_up"), service.metric("destination_up"))
    return status == 503 and words.startswith(f"{state}: ") and f"{reason}: " in words and seen == up


def assert_all_is_well(service: Served) -> None:
    """The service streams, and has nothing against source and destination."""
    service.wait_state("streaming")
    assert (service.metric("source_up"), service.metric("destination_up")) == (1, 1)


def assert_nobody_charged(stage: PrivateSite) -> None:
    """No row and no line of the history says that a file had a fault."""
    assert stage.count("failed_copy_attempts <> 0 OR failed_copy_attempts IS NULL") == 0
    assert stage.sql(f"SELECT * FROM {HISTORY} WHERE result IN ('charged', 'refused')") == []


def assert_whole(stage: PrivateSite, ids: Sequence[int], files: Sequence[SourceFile], root: Path = Path("/")) -> None:
    """Each of the files is archived once, with its content, at its place, and the history says so in one line.

    Args:
        root: below which the archive is seen.
    """
    rows = stage.rows(ids)
    assert [(row.copied, row.attempts) for row in rows] == [(1, 0)] * len(ids)
    assert [row.path for row in rows] == [str(stage.place(file)) for file in files]
    for row, file in zip(rows, files, strict=True):
        place = root / row.path.lstrip("/")
        assert hashlib.md5(place.read_bytes()).digest() == file.md5, place
    listed = ", ".join(map(str, ids))
    said = stage.sql(
        f"SELECT file_id, result, archived_path FROM {HISTORY} WHERE file_id IN ({listed}) ORDER BY file_id"
    )
    assert [(id_, path) for id_, _, path in said] == [(id_, row.path) for id_, row in zip(ids, rows, strict=True)]
    assert {result for _, result, _ in said} <= {"archived", "adopted"}


def assert_only(stage: PrivateSite, *files: SourceFile) -> None:
    """The archive has these files, and none else."""
    assert stage.archived_files() == sorted(stage.place(file) for file in files)


def assert_said(stage: PrivateSite, id_: int, result: str, reason: str, words: str) -> dict[str, Any]:
    """What the history says of a file's first try; the whole entry."""
    entry = stage.history(id_)[0]
    assert (entry["result"], entry["reason"]) == (result, reason), entry
    assert words in entry["detail"], entry["detail"]
    assert entry["archived_path"] is None
    return entry
