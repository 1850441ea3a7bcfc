"""`why`: the answer to "why is this file not here?", case by case."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from asking import ask
from files_table import TABLE
from private_site import HISTORY, TARGET, Done, PrivateSite, new_private_site
from recorded_history import archived, failed
from services import Service
from waiting import eventually

from cdc_archiver.model import Reason

NASTY = "two\nlines \x1b[31m[red]and a bell\x07.npy"


def why(stage: PrivateSite, file: object, *more: str, status: int = 0, **changes: Any) -> str:
    """What a person is told, with all flags of `run`."""
    done = ask(stage, "why", str(file), *more, *stage.flags(**changes))
    assert done.returncode == status, done.stderr
    return done.stdout


def as_object(done: Done) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def sentence(text: str) -> str:
    return text.splitlines()[0]


def test_a_quarantined_file_with_every_attempt_and_the_command_to_retry_it(stage: PrivateSite) -> None:
    # Given a file that a service has given up,
    file = stage.file("gone.npy")
    file.path.unlink()
    with stage.service(max_attempts=1) as service:
        (id_,) = stage.register(file)
        stage.wait_attempts(id_, 1)
        # when an operator asks,
        text = why(stage, id_, http_port=service.port, max_attempts=1)
    # then the first line says it, and the rest shows it.
    assert sentence(text).startswith("It is not here because it was quarantined after 1 failed attempt, the last one ")
    assert "missing: it was not on its source" in sentence(text)
    assert "No such file or directory" in text  # rsync's own words
    assert f"{file.path}: it does not exist now" in text
    assert f"{stage.place(file)} does not exist" in text
    assert "streaming; this file is not in flight" in text
    assert f"cdc-archiver retry --id {id_}" in text
    assert f"cdc-archiver ignore {id_} --reason" in text


def test_a_file_by_its_path_on_the_source_by_its_archived_path_and_by_a_part_of_either(
    either_stage: PrivateSite,
) -> None:
    stage = either_stage
    # Given an archived file, whose row no longer has the path that it came from,
    file = stage.file("session/one.npy")
    id_ = archived(stage, file)
    other = archived(stage, stage.file("session/other.npy"))
    # then each of its names leads to it.
    for name in (id_, file.path, stage.place(file), "session/one.n", "outputs/one"):
        found = as_object(ask(stage, "why", str(name), "--json", *stage.flags()))
        assert found["facts"]["record"]["id"] == id_, name
        assert found["facts"]["place"]["state"] == "right"
        assert found["facts"]["at_source"] == {"path": str(file.path), "state": "ok", "note": "", "outside": False}
    assert other != id_


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a link to another user")
def test_a_link_of_another_user_above_a_file(stage: PrivateSite) -> None:
    link = stage.sources / "link"
    link.symlink_to(stage.file("disk/one.npy").path.parent)
    os.lchown(link, 12345, 12345)
    (id_,) = stage.register(stage.file("link/one.npy"))
    text = why(stage, id_)
    assert f"it exists now; {link} is a directory link of a user other than root and the login" in text
    assert f"fix: chown -h root {link}" in text


def test_several_matches_are_listed_newest_first(stage: PrivateSite) -> None:
    files = stage.files(25, size=10)
    ids = stage.register(*files)
    done = ask(stage, "why", ".npy")
    assert done.returncode == 2
    listed = [line.split("\t") for line in done.stdout.splitlines()]
    assert [int(line[0]) for line in listed] == ids[:4:-1]
    assert listed[0] == [str(ids[-1]), "pending", str(files[-1].path)]
    (line,) = done.stderr.splitlines()
    assert "more than 20 files match '.npy'; give the id of one: cdc-archiver why " in line


def test_a_path_with_wild_cards_in_it_is_that_path(stage: PrivateSite) -> None:
    ids = stage.register(stage.file("100%_a.npy"), stage.file("100xxa.npy"), stage.file("10_%.npy"))
    for id_, name in zip(ids, ("100%_a", "100xxa", "10_%"), strict=True):
        found = as_object(ask(stage, "why", name, "--json"))
        assert found["facts"]["record"]["id"] == id_


def test_a_file_that_is_not_registered(stage: PrivateSite) -> None:
    file = stage.file("unknown.npy")
    text = why(stage, file.path, status=3)
    assert sentence(text) == f"No row of {TABLE} has '{file.path}' in its path: the monitor has not registered it."
    assert f"{file.path}: ok" in text
    assert "cdc-archiver register" in text
    missing = ask(stage, "why", "4711", "--json")
    assert missing.returncode == 3
    assert json.loads(missing.stdout) == {
        "answer": f"No row of {TABLE} has the id 4711, or a path with 4711 in it.",
        "matches": [],
        "at_sources": [],
    }
    # One of an older table is no file that nobody registered, to be registered anew.
    stage.sql(f"CREATE TABLE {TABLE}_v0 LIKE {TABLE}")
    (id_,) = stage.register(file)
    stage.sql(f"INSERT INTO {TABLE}_v0 SELECT * FROM {TABLE}")
    stage.sql(f"DELETE FROM {TABLE}")
    text = why(stage, file.path, status=3)
    assert f"a row of an older table, which is no longer served, has: {TABLE}_v0, id {id_}." in sentence(text)
    assert "register" not in text.splitlines()[-1]
    # Nor is one outside the source's root one that waits for a try.
    (id_,) = stage.register(file)
    text = why(stage, id_, source_root=stage.sources / "elsewhere")
    assert f"is not below the source root {stage.sources}/elsewhere: check --source-root" in sentence(text)
    assert f"UPDATE {TABLE} SET path = …" in text


@pytest.mark.parametrize(
    "column", ["VARCHAR(260) CHARACTER SET latin1", "VARCHAR(260) CHARACTER SET utf8mb4", "VARBINARY(260)"]
)
def test_names_in_any_script_whatever_the_column_holds(either_stage: PrivateSite, column: str) -> None:
    stage = either_stage
    stage.sql(f"ALTER TABLE {TABLE} MODIFY path {column} NOT NULL")
    (id_,) = stage.register(stage.file("höhe.npy"))
    for name in ("höhe", "öhe.npy", str(stage.sources / "höhe.npy")):
        assert as_object(ask(stage, "why", name, "--json"))["facts"]["record"]["id"] == id_
    assert ask(stage, "list", "--path", "*/hö?e.npy").stdout.startswith(f"{id_}\t")
    # What no row can be called is nobody, and no error.
    for name in ("→ 4.npy", "\udcff.npy"):
        assert ask(stage, "why", name).returncode == 3


def test_the_database_settings_suffice_and_the_output_names_what_could_not_be_examined(stage: PrivateSite) -> None:
    (id_,) = stage.register(stage.file("file.npy"), failed_copy_attempts=5)
    failed(stage, id_, Reason.UNREADABLE, "Permission denied (13)")
    done = ask(stage, "why", str(id_), "--http-port", "1")
    assert done.returncode == 0
    assert "quarantined after 5 failed attempts" in sentence(done.stdout)
    assert "Permission denied (13)" in done.stdout
    assert "was not examined (data_dir is not set here: add --data-dir)" in done.stdout
    assert "was not examined: no source is configured: add --host and --target" in done.stdout
    assert "not asked: no service answers at 127.0.0.1:1" in done.stdout


def test_a_changed_file_is_shown_with_both_md5_sums(stage: PrivateSite) -> None:
    file = stage.file("changed.npy")
    (id_,) = stage.register(file, failed_copy_attempts=5)
    failed(stage, id_, Reason.CHANGED, "it was changed", md5_seen=b"\xab" * 16)
    text = why(stage, id_)
    assert f"md5 registered {file.md5.hex()}, md5 of what arrived {'ab' * 16}" in text
    assert (
        f"UPDATE {TABLE} SET md5sum = 0x{'ab' * 16}, timestamp = timestamp WHERE id = {id_} AND COALESCE(copied, 0) = 0;"
        in text
    )


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"damaged", "another file is in its place now"),
        (None, "is no longer in its place"),
    ],
)
def test_an_archived_file_that_has_changed_or_is_gone(stage: PrivateSite, content: bytes | None, says: str) -> None:
    file = stage.file("file.npy")
    id_ = archived(stage, file, content)
    if content is None:
        stage.place(file).unlink()
    text = why(stage, id_)
    assert says in sentence(text)
    assert f"cdc-archiver verify --requeue {id_}" in text


def test_a_large_archived_file_is_hashed_on_request(stage: PrivateSite) -> None:
    file = stage.file("large.npy", size=5000)
    id_ = archived(stage, file, os.urandom(5000))
    text = why(stage, id_, small_limit=1000)
    assert sentence(text) == "It is here: archived, and the file is in its place."
    assert f"cdc-archiver why {id_} --hash" in text
    assert "another file is in its place now" in sentence(why(stage, id_, "--hash", small_limit=1000))


def test_an_unmounted_archive_is_not_a_missing_file(stage: PrivateSite) -> None:
    file = stage.file("file.npy")
    id_ = archived(stage, file)
    stage.data_dir.rename(stage.directory / "elsewhere")
    text = why(stage, id_)
    assert "cannot be examined from here" in sentence(text)
    assert f"fix: mount {stage.data_dir}" in sentence(text)


def test_a_row_whose_target_is_not_configured(stage: PrivateSite) -> None:
    (id_,) = stage.register(stage.file("file.npy"), instance_id="another-monitor")
    text = why(stage, id_)
    assert "its instance_id 'another-monitor' is not a configured target" in sentence(text)
    assert TARGET in sentence(text)
    # Nor is a file of another archive one that is gone.
    stage.sql(f"UPDATE {TABLE} SET copied = 1, path = '/another/node/file.npy'")
    assert "cannot be examined from here: it is not below --data-dir" in sentence(why(stage, id_))
    # A number of any length is a name.
    assert ask(stage, "why", "9" * 5000).returncode == 3


def test_a_refused_row_and_one_that_was_corrected(stage: PrivateSite) -> None:
    (id_,) = stage.register(stage.file("file.npy"), pub_id=None, failed_copy_attempts=1000)
    failed(stage, id_, Reason.NO_PUB_ID, "the row has no pub_id")
    text = why(stage, id_)
    assert sentence(text) == "It is not here because its row was refused: the row has no pub_id."
    assert f"UPDATE {TABLE} SET pub_id = …, timestamp = timestamp WHERE id = {id_}" in text
    stage.sql(f"UPDATE {TABLE} SET pub_id = 'crate' WHERE id = {id_}")
    text = why(stage, id_)
    assert "with its present values the row has a valid archived path" in sentence(text)
    assert f"cdc-archiver retry --id {id_}" in text


def test_a_pending_row_that_will_be_refused_is_explained_before_its_first_attempt(stage: PrivateSite) -> None:
    (id_,) = stage.register(stage.file("file.npy"), pub_id="../..")
    text = why(stage, id_)
    assert sentence(text).startswith("It is not here, and cannot be archived: pub_id: invalid directory name: '../..'")
    assert "Its row is refused at the next attempt." in text


def test_a_file_whose_source_is_down_names_the_source_and_counts_no_failed_attempt(stage: PrivateSite) -> None:
    # Given a source that is down,
    stage.ssh.stop()
    (id_,) = stage.register(stage.file("file.npy"))
    with stage.service(until="no source") as service:
        # when an operator asks,
        text = why(stage, id_, http_port=service.port)
    # then it is the source that he hears of.
    assert f"because its source {stage.ssh.host} is down: host_unreachable" in sentence(text)
    assert "does not count as a failed attempt" in text
    assert "was not examined: " in text
    assert "cdc-archiver check" in text


def test_a_file_on_its_way_and_one_behind_it(stage: PrivateSite) -> None:
    # Given one worker, busy with a file that takes minutes,
    with stage.service(bwlimit="10", workers=1, drain_timeout=0) as service:
        (slow,) = stage.register(stage.file("slow.npy", size=3_000_000))
        eventually(lambda: service.metric("in_flight") == 1, "it is on its way")
        (behind,) = stage.register(stage.file("behind.npy"))
        eventually(lambda: service.metric("queue_depth") == 1, "the other waits")
        # then each is told where it is.
        port = service.port
        assert sentence(why(stage, slow, http_port=port)) == "It is being copied now."
        assert "it is in the queue" in sentence(why(stage, behind, http_port=port))
        found = json.loads(service.get(f"/api/file/{slow}")[1])
        assert found["in_hand"]["state"] == "in_flight"
        assert json.loads(service.get("/api/file/4711")[1]) == {"id": 4711, "in_hand": None}
        assert service.get("/api/file/x")[0] == 404


def in_hand(service: Service, id_: int, state: str | None) -> None:
    """Waits for what the service says of a file."""

    def asked() -> bool:
        found: dict[str, Any] = json.loads(service.get(f"/api/file/{id_}")[1])
        return (found["in_hand"] or {}).get("state") == state

    eventually(asked, f"{id_} is {state}")


def test_a_file_that_waits_for_its_next_attempt_and_the_time_of_it(stage: PrivateSite) -> None:
    file = stage.file("gone.npy")
    file.path.unlink()
    with stage.service(retry_delays="0.3s,0.3s,10m") as service:
        (id_,) = stage.register(file, failed_copy_attempts=2)
        stage.wait_attempts(id_, 3)
        in_hand(service, id_, "waiting")
        text = why(stage, id_, http_port=service.port)
        # It is the service that counts: with other settings here, it has it in hand all the same.
        lower = why(stage, id_, http_port=service.port, max_attempts=2)
        # What it was not asked for, it never takes up.
        (others,) = stage.register(stage.file("others.npy"), instance_id="x; rm -rf ~")
        words = ask(stage, "why", str(others), "--http-port", str(service.port)).stdout
        configured = why(stage, others, http_port=service.port)
    assert sentence(lower).startswith(
        "It is not here yet: it waits for its next attempt. Failed attempts: 3, the last one "
    )
    assert f"does not have its target 'x; rm -rf ~' (it has {TARGET})" in sentence(words)
    assert "next sweep" not in words
    assert "--target 'x; rm -rf ~'" in configured
    assert "it waits for its next attempt. Failed attempts: 3 of at most 5, the last one " in sentence(text)
    assert "It is tried again in " in text


def test_a_service_on_another_database_is_not_used(stage: PrivateSite, tmp_path: Path) -> None:
    (id_,) = stage.register(stage.file("file.npy"))
    (tmp_path / "other").mkdir()
    with (
        new_private_site(stage.server, stage.ssh, tmp_path / "other") as other,
        other.service() as service,
    ):
        text = why(stage, id_, http_port=service.port)
    assert f"not asked: the service works on 127.0.0.1:{stage.server.port}/{other.database}" in text
    assert "no service can be asked about it" in sentence(text)


def test_without_a_history_the_output_says_so_and_has_the_rest(stage: PrivateSite) -> None:
    stage.server.execute(f"REVOKE CREATE, SELECT, INSERT, DELETE ON {stage.database}.{HISTORY} FROM '{stage.user}'@'%'")
    (id_,) = stage.register(stage.file("file.npy"), failed_copy_attempts=5)
    text = why(stage, id_)
    assert "quarantined after 5 failed attempts; the reason is not known: the history" in sentence(text)
    assert "Attempts are not known: the history" in text


def test_with_a_restricted_key_the_source_cannot_be_examined(stage: PrivateSite) -> None:
    (id_,) = stage.register(stage.file("file.npy"))
    text = why(stage, id_, "--restricted-key", source_root=stage.sources)
    assert "is restricted to rsync, so the file cannot be examined" in text


def test_a_nasty_name_is_printed_escaped(stage: PrivateSite) -> None:
    file = stage.file(NASTY)
    file.path.unlink()
    with stage.service(max_attempts=1):
        (id_,) = stage.register(file)
        stage.wait_attempts(id_, 1)
    text = why(stage, id_)
    assert r"two\nlines \x1b[31m[red]and a bell\x07.npy" in text
    assert "\x1b" not in text
    assert "\x07" not in text
    assert as_object(ask(stage, "why", str(id_), "--json"))["facts"]["record"]["path"] == str(file.path)
