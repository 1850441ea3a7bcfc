"""The registrar while database, link and process fail: no announced file is lost without a word, and none is registered twice."""

from __future__ import annotations

import hashlib
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import crashing_registrar
import pymysql
import pytest
from files_table import TABLE
from private_database import PrivateDatabase
from proxy import Proxy
from registering import TARGET, FakePublisher, Registering, RegistrarSite
from waiting import PATIENCE, eventually

from cdc_archiver.database import connections
from cdc_archiver.database.connections import SharedContextConnection
from cdc_archiver.database.registrars import read_reports
from cdc_archiver.registrar import registration, watermark_report
from cdc_archiver.registrar.listener import listening_socket

RECEIPTS = "cdc_archiver_registered"


@pytest.fixture
def site(world: PrivateDatabase, tmp_path: Path) -> Iterator[RegistrarSite]:
    made = RegistrarSite(world, tmp_path)
    yield made
    made.close()


@pytest.fixture
def mariadb_site(mariadb: Any, tmp_path: Path) -> Iterator[RegistrarSite]:
    from private_database import new_private_database

    with new_private_database(mariadb) as world:
        made = RegistrarSite(world, tmp_path)
        yield made
        made.close()


def require_each_once(site: RegistrarSite, *files: Path) -> None:
    assert Counter(site.rows()) == Counter((str(file), hashlib.md5(file.read_bytes()).digest()) for file in files)
    assert site.receipts() == len(files)


def test_the_database_is_away_and_the_registrar_is_restarted_meanwhile(site: RegistrarSite) -> None:
    files = [site.file(f"{number}.dat") for number in range(30)]
    with Proxy(site.world.server.port) as proxy:
        port = proxy.port
        proxy.refuse()
        with site.running(mysql_port=port) as running, running.publisher() as publisher:
            publisher.announce(*files[:10])
            eventually(lambda: running.facts().waiting == 10, "they are in the spool")
            eventually(lambda: running.registrar.status().state == "no database", "it says that the database is away")
        with site.running(mysql_port=port) as running, running.publisher() as publisher:
            publisher.announce(*files[10:20])
            eventually(lambda: running.facts().waiting == 20, "they are in the spool")
            proxy.accept()
            site.wait_rows(20)
            proxy.cut()
            publisher.announce(*files[20:])
            site.wait_rows(30)
            eventually(lambda: running.registrar.status().ready, "it registers again")
    require_each_once(site, *files)


def test_a_commit_whose_answer_is_lost_is_settled_by_its_receipt(
    site: RegistrarSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [site.file(f"{number}.dat") for number in range(40)]
    commit, losses = SharedContextConnection.commit, iter(range(6))

    def lose_the_answer(connection: Any) -> None:
        number = next(losses, 6)
        if number % 2 == 0 and number < 6:
            commit(connection)  # it arrives
        if number < 6:
            connection._force_close()
            raise pymysql.OperationalError(2013, "Lost connection to MySQL server during query")
        commit(connection)

    with site.running() as running, running.publisher() as publisher:
        eventually(lambda: running.registrar.status().ready, "it registers")
        running.registrar._reporter.stop()
        running.registrar._reporter.join()
        monkeypatch.setattr(SharedContextConnection, "commit", lose_the_answer)
        for file in files:
            publisher.announce(file)
            time.sleep(0.005)
        eventually(lambda: running.facts().waiting == 0, "all are registered")
        monkeypatch.undo()
    require_each_once(site, *files)


@pytest.mark.parametrize("arrives", [True, False])
def test_a_commit_that_arrives_after_the_look_makes_no_second_row(
    site: RegistrarSite, arrives: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session that the server has not given up holds a receipt's key, and commits or ends at last."""
    monkeypatch.setattr(connections, "_LOCK_WAIT", 1)
    monkeypatch.setattr(registration, "_LOCKED_AGAIN", 0.3)
    files = [site.file(f"{number}.dat") for number in range(4)]
    with site.running() as running, running.publisher() as publisher:
        spool_id = running.registrar._spool.registrar_id
        late = site.world.server.connect(database=site.world.name, autocommit=False)
        with late.cursor() as cursor:
            md5 = hashlib.md5(files[0].read_bytes()).digest()
            cursor.execute(
                f"INSERT INTO {TABLE} (path, md5sum, instance_id) VALUES (%s, %s, %s)", (str(files[0]), md5, TARGET)
            )
            receipt = (spool_id, cursor.lastrowid, str(files[0]), md5)
            cursor.execute(
                f"INSERT INTO {RECEIPTS} (registrar_id, number, file_id, source_path, md5sum) VALUES (%s, 1, %s, %s, %s)",
                receipt,
            )
        publisher.announce(files[0])
        # The first waits for the key in vain, and then the others go on.
        eventually(lambda: running.registrar._registration._locked, "the receipt is locked")
        publisher.announce(*files[1:])
        site.wait_rows(3)
        late.commit() if arrives else late.rollback()
        late.close()
        site.wait_rows(4)
        eventually(lambda: running.facts().waiting == 0, "all are decided")
    require_each_once(site, *files)


def test_a_restored_database_gets_what_it_lacks_and_a_restored_spool_gives_no_number_twice(site: RegistrarSite) -> None:
    files = [site.file(f"{number}.dat") for number in range(8)]

    def announce(running: Registering, *some: Path) -> None:
        with running.publisher() as publisher:
            publisher.announce(*some)
        eventually(
            lambda: running.facts().waiting == 0 and len(running.registrar._spool.due(1e12, 99)) >= len(some), "done"
        )

    with site.running() as running:
        announce(running, *files[:4])
    shutil.copytree(site.spool.parent, site.spool.parent.with_name("before"))
    # The database is a backup's: three rows and their receipts are gone, and the receipt of a row that is there.
    ids = [row[0] for row in site.rows("id")]
    site.world.sql(f"DELETE FROM {TABLE} WHERE id > {ids[0]}", f"DELETE FROM {RECEIPTS}")
    with site.running() as running:
        site.wait_rows(4)
        announce(running, files[4], files[5])
        # It happens once more, while the registrar runs and is idle.
        site.world.sql(
            f"DELETE FROM {TABLE} WHERE path = '{files[5]}'", f"DELETE FROM {RECEIPTS} WHERE source_path = '{files[5]}'"
        )
        announce(running, files[6])
        site.wait_rows(7)
    require_each_once(site, *files[:7])
    # The spool is a backup's: it would give numbers again.
    shutil.rmtree(site.spool.parent)
    site.spool.parent.with_name("before").rename(site.spool.parent)
    with site.running() as running:
        announce(running, files[7])
        site.wait_rows(8)
    require_each_once(site, *files)


@pytest.mark.parametrize(
    "step",
    [
        pytest.param(step, marks=() if step in ("stored", "receipt-written", "committed") else pytest.mark.long)
        for step in crashing_registrar.STEPS
    ],
)
def test_killed_at_a_step_and_started_again(mariadb_site: RegistrarSite, tmp_path: Path, step: str) -> None:
    site = mariadb_site
    files = [site.file(f"{number}.dat") for number in range(6)]
    port = free_port()
    command = [sys.executable, crashing_registrar.__file__, step, "monitor", "--look-again"]
    with (tmp_path / "log").open("w") as log:
        crashing = subprocess.Popen([*command, *site.flags(udp_port=port)], env=site.environment(), stderr=log)
    try:
        eventually(lambda: "receiving" in (tmp_path / "log").read_text(), "it receives")
        with FakePublisher(port) as publisher:
            publisher.announce(*files[:4])
            if step == "looks-again":
                site.wait_rows(4)
                files[0].write_bytes(b"other")
                files.append(files[0])
            assert crashing.wait(PATIENCE) == -signal.SIGKILL
    finally:
        crashing.kill()
        crashing.wait()
    with site.running() as running, running.publisher("other") as publisher:
        publisher.announce(*files[4:6])
        site.wait_rows(6 + (step == "looks-again"))
        if step == "looks-again":
            return
        eventually(lambda: running.facts().waiting == 0, "nothing waits")
        stored = 4 - running.facts().gaps
        assert stored == 4
    require_each_once(site, *files)


def free_port() -> int:
    with listening_socket("127.0.0.1", 0) as made:
        return int(made.getsockname()[1])


def test_a_registrar_that_is_cut_off_over_the_end_of_a_timecode_holds_it_up(
    mariadb_site: RegistrarSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = mariadb_site
    monkeypatch.setattr(watermark_report, "INTERVAL", 0.05)

    def reasons(end: datetime, later: float = 0.0) -> dict[str, int]:
        with site.world.connection(site.user) as connection:
            now = connection.exec_driver_sql("SELECT UTC_TIMESTAMP(3)").scalar_one().replace(tzinfo=UTC)
            return read_reports(connection, [TARGET]).reasons(TARGET, 17000, end, now + timedelta(seconds=later))

    with Proxy(site.world.server.port) as proxy, site.running(mysql_port=proxy.port) as running:
        # Given a registrar that has reported, and cannot any more,
        eventually(lambda: site.world.sql("SELECT 1 FROM cdc_archiver_registrars"), "it has reported")
        proxy.refuse()
        eventually(lambda: running.registrar.status().state == "no database", "it is cut off")
        # when a timecode ends meanwhile,
        end = datetime.now(UTC) + timedelta(seconds=0.3)
        with running.publisher() as publisher:
            publisher.announce(site.file("in time.dat"), timestamp=end.timestamp() - 1)
        time.sleep(0.4)
        # then the registrar holds it up, at first as one that is behind, and then as a silent one,
        assert reasons(end) == {"registrar_behind": 1}
        assert reasons(end, later=600) == {"registrar_silent": 1}
        # until the file is a row.
        proxy.accept()
        site.wait_rows(1)
        eventually(lambda: reasons(end) == {}, "it agrees")
        far = datetime.now(UTC) + timedelta(days=1)
        assert reasons(far) == {"registrar_behind": 1}
    # One that was stopped with an empty spool agrees with everything.
    assert reasons(far, later=600) == {}
