"""`list`: which files are in which state, for people and for scripts."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from asking import ask
from private_site import TARGET, PrivateSite
from recorded_history import archived, failed
from services import COMMAND
from terminal import Terminal
from waiting import PATIENCE

from cdc_archiver.model import Reason

KEYS = {
    *(
        "id",
        "state",
        "attempts",
        "source",
        "target",
        "timestamp",
        "action",
        "action_timestamp",
        "pub_id",
        "plot",
        "md5",
    ),
    *("reason", "detail", "path"),
}


def objects(stage: PrivateSite, *arguments: str) -> list[dict[str, Any]]:
    done = ask(stage, "list", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def ids(stage: PrivateSite, *arguments: str) -> list[int]:
    return [found["id"] for found in objects(stage, *arguments)]


def test_each_state_and_each_filter(either_stage: PrivateSite) -> None:
    stage = either_stage
    file = stage.file("file.npy")
    done = archived(stage, stage.file("done.npy"))
    waits, charged, given_up, refused, ignored = (
        stage.register(file, failed_copy_attempts=number)[0] for number in (0, 3, 5, 1000, 2000)
    )
    (null,) = stage.register(file, failed_copy_attempts=None, copied=None, instance_id="m2", pub_id="p2", action="a2")
    failed(stage, given_up, Reason.CHANGED, "another md5")
    # By default, what is not archived, newest first; each state alone; and all of them.
    assert ids(stage) == [null, ignored, refused, given_up, charged, waits]
    assert ids(stage, "--state", "all") == [null, ignored, refused, given_up, charged, waits, done]
    assert ids(stage, "--state", "pending") == [null, charged, waits]
    assert ids(stage, "--state", "charged") == [charged]
    assert ids(stage, "--state", "quarantined") == [given_up]
    assert ids(stage, "--state", "refused") == [refused]
    assert ids(stage, "--state", "ignored") == [ignored]
    assert ids(stage, "--state", "archived") == [done]
    # A higher maximum releases what was given up.
    assert ids(stage, "--state", "quarantined", "--max-attempts", "6") == []
    # By target, source, action, pub_id, path, reason; at most N.
    assert ids(stage, "--target", "m2") == ids(stage, "--pub-id", "p2") == ids(stage, "--action", "a2") == [null]
    assert ids(stage, "--source", stage.ssh.host, "--state", "pending", *stage.flags()) == [charged, waits]
    assert ids(stage, "--path", "*/done.npy", "--state", "all") == [done]
    assert ids(stage, "--reason", "changed") == [given_up]
    assert ids(stage, "--reason", "missing") == []
    assert ids(stage, "--limit", "2") == [null, ignored]
    # What scripts get.
    (found,) = objects(stage, "--state", "quarantined", *stage.flags())
    assert found.keys() == KEYS
    assert (found["state"], found["attempts"], found["reason"], found["detail"]) == (
        "quarantined",
        5,
        "changed",
        "another md5",
    )
    assert (found["source"], found["target"], found["md5"]) == (stage.ssh.host, TARGET, file.md5.hex())
    assert found["timestamp"] == "2020-05-15T04:34:24+00:00"


def test_by_time_whatever_the_servers_zone(either_stage: PrivateSite) -> None:
    stage = either_stage
    file = stage.file("file.npy")
    first, second, third = (
        stage.register(file, timestamp=moment)[0]
        for moment in ("2020-05-15 04:34:24", "2020-05-16 00:00:00", "2020-05-17 12:00:00")
    )
    assert ids(stage, "--since", "2020-05-16") == [third, second]
    assert ids(stage, "--until", "2020-05-16T00:00:00Z") == [first]
    assert ids(stage, "--since", "2020-05-16T02:00+02:00", "--until", "2020-05-17 11:59") == [second]
    assert ids(stage, "--since", "3d ago") == []
    stage.sql("UPDATE pysmurf_files SET timestamp = UTC_TIMESTAMP() - INTERVAL 90 MINUTE WHERE id = %s", (first,))
    assert ids(stage, "--since", "2h") == [first]
    assert ids(stage, "--since", "1h") == []
    done = ask(stage, "list", "--since", "yesteryear")
    assert done.returncode == 2
    assert (
        done.stderr
        == "cdc-archiver: invalid time: 'yesteryear'; fix: use 2h, '3d ago', 2026-05-15 or 2026-05-15T04:30\n"
    )


def test_a_pipe_gets_fields_a_terminal_gets_columns_and_names_are_escaped(stage: PrivateSite) -> None:
    name = "a\tb\nc\x1b]0;title\x07[bold].npy"
    (id_,) = stage.register(stage.file(name), failed_copy_attempts=5)
    done = ask(stage, "list")
    (line,) = done.stdout.splitlines()
    escaped = r"a\tb\nc\x1b]0;title\x07[bold].npy"
    assert line.split("\t") == [
        str(id_),
        "quarantined",
        "5",
        TARGET,
        "2020-05-15 04:34:24Z",
        "-",
        f"{stage.sources}/{escaped}",
    ]
    with Terminal(stage, ["list"]) as terminal:
        seen = terminal.end().stdout
    assert "STATE" in seen
    assert "\x1b[1;31mquarantined" in seen  # bold red
    assert escaped in seen.replace("\r\n", "\n")
    assert "\x1b]0" not in seen
    nothing = ask(stage, "list", "--state", "refused")
    assert (nothing.returncode, nothing.stdout, nothing.stderr) == (0, "", "cdc-archiver: no such file\n")


def test_deferred_files_are_those_whose_source_is_down_according_to_the_service(stage: PrivateSite) -> None:
    (others,) = stage.register(stage.file("other.npy"), instance_id="another-monitor")
    (id_,) = stage.register(stage.file("file.npy"))
    # Only the service knows.
    done = ask(stage, "list", "--state", "deferred", "--http-port", "1")
    assert done.returncode == 4
    assert "no service answers at 127.0.0.1:1" in done.stderr
    stage.ssh.stop()
    with stage.service(until="no source") as service:
        assert ids(stage, "--state", "deferred", *stage.flags(http_port=service.port)) == [id_]
        stage.ssh.start()
        stage.wait_archived(id_)
        service.wait_state("streaming")
        assert ids(stage, "--state", "deferred", *stage.flags(http_port=service.port)) == []
    assert stage.row(others).copied == 0


def test_a_large_table_is_read_page_by_page(stage: PrivateSite) -> None:
    # More than a page of them, and gaps between.
    found = stage.register(*[stage.file("one.npy")] * 2500)
    stage.sql("DELETE FROM pysmurf_files WHERE id % 7 = 0")
    left = [id_ for id_ in found if id_ % 7]
    assert ids(stage) == left[::-1]
    assert ids(stage, "--limit", "1700") == left[::-1][:1700]


def test_a_reader_may_close_the_pipe_early(stage: PrivateSite) -> None:
    # More than a pipe holds.
    stage.register(*[stage.file("one.npy")] * 3000)
    command = subprocess.Popen(
        [*COMMAND, "list", "--json"], env=stage.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert command.stdout is not None
    assert command.stderr is not None
    json.loads(command.stdout.readline())
    command.stdout.close()
    assert command.stderr.read() == b""
    assert command.wait(PATIENCE) == 1
    command.stderr.close()


def test_each_row_once_whatever_targets_and_nulls_there_are(either_stage: PrivateSite) -> None:
    stage = either_stage
    file = stage.file("one.npy")
    found = [
        stage.register(file, instance_id=target, copied=copied)[0]
        for target in ("m1", "M1", "m2", "m3")
        for copied in (0, None)
    ]
    assert ids(stage, "--target", "m1", "--target", "M1", "--target", "m2") == found[5::-1]
    assert ids(stage, "--target", "m3") == found[:5:-1]
    assert ids(stage, "--target", "m1", "--target", "m3", "--limit", "3") == [found[7], found[6], found[3]]
