"""Registrar and archiver on a server whose clocks change: the doubled hour has the right path, the skipped one is refused and named."""

from __future__ import annotations

from datetime import UTC, datetime

from private_database import PrivateDatabase
from private_site import PrivateSite
from registering import TARGET, RegistrarSite
from structlog.testing import capture_logs
from waiting import eventually

ZONE = "America/Santiago"
CHANGES = {"2026-04-05 03:00": -4, "2026-09-06 04:00": -3}
"""When its clocks change in 2026, in UTC, and the hours from then on."""
DOUBLED, SKIPPED = "2026-04-04 23:30:00", "2026-09-06 00:30:00"


def seconds(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


def load_zone(world: PrivateDatabase) -> None:
    """Tells the server of the zone, where it does not know it."""
    if world.sql(f"SELECT 1 FROM mysql.time_zone_name WHERE Name = '{ZONE}'"):
        return
    number = world.sql("INSERT INTO mysql.time_zone (Use_leap_seconds) VALUES ('N')", "SELECT LAST_INSERT_ID()")[0][0]
    world.sql(
        f"INSERT INTO mysql.time_zone_name VALUES ('{ZONE}', {number})",
        f"INSERT INTO mysql.time_zone_transition_type VALUES ({number}, 0, -14400, 0, '-04'), ({number}, 1, -10800, 1, '-03')",
        *(
            f"INSERT INTO mysql.time_zone_transition VALUES ({number}, {seconds(at)}, {hours + 4})"
            for at, hours in {"2025-09-07 04:00": -3, **CHANGES}.items()
        ),
    )


def test_hours_that_a_change_of_the_clocks_doubles_and_skips(either_stage: PrivateSite) -> None:
    stage = either_stage
    world = PrivateDatabase(stage.server, stage.database, stage.user)
    load_zone(world)
    (stage.directory / "m").mkdir()
    site = RegistrarSite(world, stage.directory / "m")
    site.sources = stage.sources
    doubled, skipped = stage.file("doubled.npy").path, stage.file("skipped.npy").path
    with world.globally("time_zone", f"'{ZONE}'"):
        # When files of both hours are announced,
        with capture_logs() as said, stage.service(), site.running() as running, running.publisher() as publisher:
            publisher.announce(doubled, timestamp=seconds(DOUBLED) + 0.9)
            publisher.announce(skipped, timestamp=seconds(SKIPPED))
            running.wait_count(1, "files_total", outcome="refused")
            eventually(lambda: stage.count("copied = 1") == 1, "the other one is archived")
        # then the one has the right path, and the other one is named.
        assert [line["path"] for line in said if line["event"] == "file_refused"] == [str(skipped)]
        first = stage.archived_files()
        # With one time zone for both programs, it is archived too.
        with stage.service(db_time_zone="+00:00"), site.running(db_time_zone="+00:00"):
            done = stage.command("monitor", "--retry-lost", "--spool", str(site.spool))
            assert (done.returncode, done.stdout) == (0, "1 file will be looked for now\n")
            eventually(lambda: stage.count("copied = 1") == 2, "it is archived")
    place = stage.data_dir
    assert [path.relative_to(place).parts[0] for path in first] == [str(seconds(DOUBLED))[:5]]
    assert [path.relative_to(place).parts[0] for path in stage.archived_files()] == sorted(
        [str(seconds(DOUBLED))[:5], str(seconds(SKIPPED))[:5]]
    )
    assert stage.count(f"instance_id = '{TARGET}'") == 2
