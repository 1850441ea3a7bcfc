"""Announced files become rows: each in exactly one, with the right values, whatever arrives."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from private_database import PrivateDatabase, new_private_database
from registering import AT, TARGET, RegistrarSite, message
from structlog.testing import capture_logs
from waiting import eventually

from cdc_archiver.registrar import registration, watermark_report
from cdc_archiver.registrar.spool import Spool
from cdc_archiver.registrar.spool_reading import Entry, retry_undecided
from cdc_archiver.sandbox import DatabaseServer


@pytest.fixture
def site(world: PrivateDatabase, tmp_path: Path) -> Iterator[RegistrarSite]:
    made = RegistrarSite(world, tmp_path)
    yield made
    made.close()


def test_an_announced_file_becomes_a_row_as_the_monitor_filled_it(site: RegistrarSite) -> None:
    file = site.file("1589517264_iv.npy")
    with site.running(site="field") as running, running.publisher() as publisher:
        publisher.announce(file.with_suffix(""))
        site.wait_rows(1)
    md5 = hashlib.md5(file.read_bytes()).digest()
    columns = "path, action, timestamp, action_timestamp, format, plot, site, pub_id, script_id, instance_id, copied, "
    (row,) = site.rows(f"{columns} failed_copy_attempts, md5sum, pysmurf_version")
    (timestamp,) = site.world.sql("SELECT CAST(timestamp AS CHAR) FROM pysmurf_files")[0]
    assert timestamp == "2020-05-15 04:34:24"
    assert (*row[:2], *row[3:]) == (
        *(str(file), "take_iv", AT, "npy", 0, "field", "crate1slot2", "take_iv.py", TARGET, 0, 0),
        *(md5, "11.4.4"),
    )


def test_each_announced_file_is_one_row_whatever_else_arrives(
    site: RegistrarSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registration, "LOOK_AGAIN", 0.3)
    good = [site.file(f"good{number}.dat") for number in range(40)]
    outside = site.sources.parent / "outside.dat"
    outside.write_bytes(b"secret")
    (site.sources / "link.dat").symlink_to(outside)
    (site.sources / "directory").mkdir()
    twice, rewritten, growing = site.file("twice.dat"), site.file("rewritten.dat"), site.sources / "growing.dat"
    late = site.sources / "late.dat"
    with site.running(patience=2) as running, running.publisher() as one, running.publisher() as other:
        # Given garbage, other kinds of messages, files of which no row can be made,
        for garbage in (b"", b"{", b"\xff\xfe", b"[]", b"[" * 60_000, b'{"type": 1}', b"1" * 5000):
            one.send(garbage)
        one.send({"type": "g3_file", "id": "STREAMER:s", "seq_no": 7, "payload": {"archive_name": "timestreams"}})
        one.send(message(outside, next(one.numbers)))
        one.send(message(site.sources / "link.dat", next(one.numbers)))
        one.send(message(site.sources / "directory", next(one.numbers)))
        one.announce(site.file("long.dat"), action="a" * 33)
        one.announce(site.file("number.dat"), action_ts="9999999999")
        one.announce(site.file("nothing.dat"), timestamp="soon")
        # two publishers with one id, a file announced twice, and once more under another action,
        one.announce(*good[:20])
        other.announce(*good[20:])
        one.announce(twice, twice)
        other.announce(twice)
        one.announce(twice, action="take_noise")
        # a message as long as they come, one whose file is late, and one whose file is still written,
        one.announce(site.file("64kB.dat"), more="x" * 63_000)
        one.announce(late)
        with growing.open("wb", buffering=0) as writer:
            writer.write(b"first")
            one.announce(growing)
            running.wait_count(5, "files_total", outcome="refused")
            # when the late one comes, the written one is complete, and a registered one is rewritten,
            late.write_bytes(b"late")
            site.wait_rows(44)
            writer.write(b"second")
        rewritten_before = rewritten.read_bytes()
        one.announce(rewritten)
        site.wait_rows(46)
        running.wait_count(1, "files_total", outcome="registered")
        rewritten.write_bytes(b"rewritten")
        rows = site.wait_rows(47)
        running.wait_count(2, "files_total", outcome="known")
        eventually(lambda: running.facts().waiting == 0, "nothing waits")
        # then each is in one row, with the md5 of its content.
        assert running.count("garbage_total") == 8
        assert running.count("messages_total", type="g3_file") == 1
        assert running.count("gaps_total") == 7  # of the streamer, which announces no files of the table
        assert (running.facts().refused, running.facts().gaps) == (5, 0)
    expected = Counter((str(path), md5_of(path.read_bytes())) for path in [*good, twice, twice, growing, late])
    expected += Counter({(str(site.sources / "64kB.dat"), md5_of((site.sources / "64kB.dat").read_bytes())): 1})
    expected += Counter((str(rewritten), md5_of(content)) for content in (rewritten_before, b"rewritten"))
    assert Counter(rows) == expected
    assert site.receipts() == 47


def md5_of(content: bytes) -> bytes:
    return hashlib.md5(content).digest()


def test_a_file_that_does_not_come_is_lost_and_named_until_it_is_there(site: RegistrarSite) -> None:
    path = site.sources / "never.dat"
    with capture_logs() as said, site.running(patience=1) as running, running.publisher() as publisher:
        publisher.announce(path)
        running.wait_count(1, "files_total", outcome="lost")
        assert running.facts().lost == 1
        site.file("never.dat")
        retry_undecided(site.spool, 0.0)
        site.wait_rows(1)
        eventually(lambda: running.facts().lost == 0, "it is no longer lost")
    assert [line["path"] for line in said if line["event"] == "file_lost"] == [str(path)]


def test_the_watermark_is_told_with_what_is_missing(site: RegistrarSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watermark_report, "INTERVAL", 0.05)

    def told() -> list[tuple[Any, ...]]:
        return site.world.sql(
            "SELECT TIMESTAMPDIFF(SECOND, watermark, UTC_TIMESTAMP(3)), watermark <= heard, waiting, lost, gaps, stopped "
            "FROM cdc_archiver_registrars"
        )

    with site.running(patience=1) as running, running.publisher() as publisher:
        eventually(lambda: told() and told()[0][0] < 5, "the watermark follows the clock")
        next(publisher.numbers)
        publisher.announce(site.sources / "never.dat")
        eventually(lambda: told()[0][0] > 100_000_000, "a waiting file holds the watermark at its timestamp")
        eventually(lambda: told()[0][3:5] == (1, 1), "lost files and gaps are told")
        eventually(lambda: told()[0][0] < 5, "a lost file holds the watermark no longer")
        losses = "SELECT timecode, lost, gaps FROM cdc_archiver_registrar_losses ORDER BY timecode"
        assert site.world.sql(losses) == [(15895, 1, 1)]
        site.world.sql(
            "UPDATE cdc_archiver_registrar_losses SET accepted_at = UTC_TIMESTAMP(), accepted_reason = 'yes'"
        )
        next(publisher.numbers)
        publisher.announce(site.file("a.dat"))
        accepted = "SELECT gaps, accepted_at FROM cdc_archiver_registrar_losses"
        eventually(lambda: site.world.sql(accepted) == [(2, None)], "what is missing after that counts again")
    (row,) = told()
    assert row[1:] == (1, 0, 1, 2, 1)


def test_a_burst_of_20000_messages_is_rows_or_a_known_gap(mariadb: DatabaseServer, tmp_path: Path) -> None:
    with new_private_database(mariadb) as world:
        site = RegistrarSite(world, tmp_path)
        files = [site.file(f"{number}.dat", size=10) for number in range(200)]
        contents = [message(files[number // 100], number, action=f"a{number % 100}") for number in range(20_000)]
        datagrams = [json.dumps(content).encode() for content in contents]
        with site.running() as running, running.publisher() as publisher:
            for datagram in datagrams:
                publisher.send(datagram)

            def rows() -> int:
                return int(site.world.sql("SELECT COUNT(*) FROM pysmurf_files")[0][0])

            # A machine that does not allow a larger receive buffer may drop some, but none without a word.
            eventually(
                lambda: not running.facts().waiting and rows() + running.facts().gaps == 20_000,
                "each is a row, or known to be missing",
                60,
            )
            assert running.count("files_total", outcome="registered") == rows()
        assert site.receipts() == rows()
        site.close()


def test_at_rest_it_does_nothing(mariadb: DatabaseServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with new_private_database(mariadb) as world:
        site = RegistrarSite(world, tmp_path)
        looks: list[float] = []
        due = Spool.due

        def counted(spool: Spool, now: float, limit: int) -> list[Entry]:
            looks.append(now)
            return due(spool, now, limit)

        monkeypatch.setattr(Spool, "due", counted)
        with site.running() as running, running.publisher() as publisher:
            eventually(lambda: running.registrar.status().ready, "it registers")
            before = len(looks)
            time.sleep(1.0)
            assert len(looks) - before <= 3  # nothing was ever announced
            publisher.announce(site.file("a.dat"), site.sources / "absent.dat")
            site.wait_rows(1)
            before = len(looks)
            time.sleep(1.0)
            assert len(looks) - before <= 8  # one file is looked for
        site.close()
