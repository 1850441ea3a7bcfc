"""Timecodes as operators are shown them: API, metrics, `status`, the page, and what their program is told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from asking import ask
from browser import Browser, new_browser
from conftest import needed
from private_site import TARGET, PrivateSite
from waiting import eventually

DONE, BLOCKED = 15800, 15801
QUICK: dict[str, Any] = {"sweep_interval": "0.3", "timecode_grace": "0", "reopen_after": "0"}


def during(timecode: int) -> str:
    return str(datetime.fromtimestamp(timecode * 100_000 + 5, UTC).replace(tzinfo=None))


@pytest.fixture
def browser() -> Iterator[Browser]:
    with needed(), new_browser() as made:
        yield made


def test_what_is_complete_what_blocks_and_what_came_late(stage: PrivateSite, browser: Browser, tmp_path: Path) -> None:
    told, script = tmp_path / "told", tmp_path / "notify"
    script.write_text(f"#!/bin/sh\ncat >>{told}\n")
    script.chmod(0o755)
    source = stage.ssh.host
    with stage.service(**QUICK, max_attempts=1, notify_command=str(script)) as service:

        def known() -> dict[str, Any]:
            found: dict[str, Any] = json.loads(service.get("/api/timecodes")[1])
            return found

        def states() -> dict[int, str]:
            return {each["timecode"]: each["state"] for each in known()["timecodes"]}

        def given() -> list[dict[str, Any]]:
            return [json.loads(line) for line in told.read_text().splitlines()]

        # Given an archive with a file, so that later timecodes are told,
        stage.wait_archived(*stage.register(stage.file("before.npy")))
        eventually(lambda: "complete" in states().values(), "the first timecode is entered")
        # when a timecode is complete, another one has a file that never comes, and the first gets one late,
        stage.wait_archived(*stage.register(stage.file("done.npy"), timestamp=during(DONE)))
        eventually(lambda: states().get(DONE) == "complete", "it is complete")
        gone = stage.file("gone.npy")
        gone.path.unlink()
        (blocking,) = stage.register(gone, timestamp=during(BLOCKED))
        eventually(lambda: states().get(BLOCKED) == "blocked", "it is blocked")
        (late,) = stage.register(stage.file("late.npy"), timestamp=during(DONE))
        stage.wait_archived(late)
        eventually(lambda: service.metric("late_files_total", source=source) == 1, "it is late")
        eventually(lambda: states().get(DONE) == "complete", "it is complete again")
        # then the API has all of it,
        answer = known()
        assert (answer["off_because"], answer["not_completing_because"]) == ("", "")
        assert abs(answer["clock_difference"]) < 60
        (mark,) = answer["watermarks"]
        assert (mark["bound_by"], mark["oldest_id"]) == ("row", blocking)
        newest = json.loads(service.get("/api/timecodes?newest=1")[1])["timecodes"]
        assert BLOCKED in [each["timecode"] for each in newest]
        assert len(newest) <= 2
        assert service.get("/api/timecodes?newest=x")[0] == 400
        # the metrics,
        eventually(lambda: service.metric("timecodes", source=source, state="blocked") == 1, "it is counted")
        assert service.metric("finalized_until_timestamp_seconds") == BLOCKED * 100_000 + 4
        assert service.metric("watermark_row_age_seconds") > 86400 * 365
        assert abs(service.metric("clock_difference_seconds")) < 60
        assert service.metric("part_off") == 0
        # `status` with the way out,
        words = ask(stage, "status", *stage.flags(http_port=service.port)).stdout
        assert f"timecode     {BLOCKED} of {TARGET} blocked: 1 quarantined" in words
        assert f"held up by row {blocking}, {gone.path}" in words
        assert f"fix: cdc-archiver retry --id {blocking}; or: cdc-archiver ignore {blocking} --reason TEXT" in words
        assert "1 timecode blocked" in service.status()["words"]["headline"]["text"]
        # the page, on a phone too,
        browser.look(width=390, height=844, phone=True)
        browser.open(f"http://127.0.0.1:{service.port}/")
        shown = browser.wait_text(str(BLOCKED), "#timecodes")
        assert "blocked: 1 quarantined" in shown
        assert str(gone.path.name) in shown
        assert "held up by its oldest undecided file" in shown
        assert browser.ask("document.documentElement.scrollWidth") <= 390
        # and the operator's program was told.
        eventually(lambda: {"complete", "blocked", "late_file"} <= {each["kind"] for each in given()}, "it is told")
        (notice,) = (each for each in given() if each["kind"] == "late_file")
        assert (notice["timecode"], notice["file_id"], notice["path"]) == (DONE, late, stage.row(late).path)
        assert notice["text"]
        complete = next(each for each in given() if each["kind"] == "complete")
        assert {"source", "instance_id", "timecode", "generation", "files", "bytes"} <= complete.keys()


def test_a_part_that_is_off_is_told_with_the_statement_that_turns_it_on(stage: PrivateSite) -> None:
    # Given an account that may not write the side table of timecodes,
    privileges, table = "CREATE, SELECT, INSERT, UPDATE", "cdc_archiver_timecodes"
    stage.server.execute(f"REVOKE {privileges} ON {stage.database}.{table} FROM '{stage.user}'@'%'")
    with stage.service(**QUICK) as service:
        # then files are archived all the same,
        stage.wait_archived(*stage.register(stage.file("file.npy")))
        eventually(lambda: service.metric("part_off", part="timecodes") == 1, "the metric knows")
        words = ask(stage, "status", *stage.flags(http_port=service.port)).stdout
        (line,) = (line for line in words.splitlines() if line.startswith("off          timecodes: "))
        # and the statement that `status` prints turns it on.
        statement = line.partition("; fix: ")[2].partition(";")[0]
        assert statement == f"GRANT {privileges} ON `{stage.database}`.{table} TO '{stage.user}'@'%'"
        stage.server.execute(statement)
        eventually(lambda: service.metric("part_off", part="timecodes") == 0, "it is on")
