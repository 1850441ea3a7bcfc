"""Rows with the time of a wrong clock: refused where no reader could take them, otherwise archived and named."""

from __future__ import annotations

import re
import signal

from asking import ask
from files_table import TABLE
from private_site import PrivateSite
from waiting import eventually


def test_a_readout_server_that_booted_without_a_clock(either_stage: PrivateSite) -> None:
    stage = either_stage
    # Given a column that holds any time, and files of readout servers whose clocks were not set,
    stage.sql(f"ALTER TABLE {TABLE} MODIFY timestamp DATETIME NULL")
    file = stage.file("clock.npy")
    times = ("1000-01-01 00:00:00", "1970-01-01 00:00:41", "9999-12-31 23:59:59", "2000-01-01 00:00:00")
    with stage.service() as service:
        ids = [stage.register(file, timestamp=time)[0] for time in times]
        # then no place is made up for them: they are refused, with the reason and the fix.
        for id_ in ids:
            assert stage.wait_attempts(id_, 1).attempts == 1000
        told = ask(stage, "why", str(ids[1]), *stage.flags(http_port=service.port)).stdout
    assert [stage.history(id_)[0]["reason"] for id_ in ids] == ["bad_timestamp"] * 4
    assert stage.archived_files() == []
    assert "timestamp 1970-01-01 00:00:41Z is not from 2001-09-09 01:46:40Z (--oldest-timestamp) to" in told
    assert f"UPDATE {TABLE} SET timestamp = … WHERE id = {ids[1]}" in told
    # When a setting lets older ones through,
    with stage.service(oldest_timestamp="1970-01-02") as service:
        flags = stage.flags(oldest_timestamp="1970-01-02", http_port=service.port)
        assert ask(stage, "retry", "--reason", "bad_timestamp", "--yes", *flags).returncode == 0
        # then those that have five digits are archived as the polling agent did, which `why` says;
        (row,) = stage.wait_archived(ids[3])
        told = ask(stage, "why", str(ids[3]), *flags).stdout
        # the others are still refused.
        eventually(lambda: {row.attempts for row in stage.rows(ids[:3])} == {1000}, "they are refused again")
    assert row.path == str(stage.data_dir / "94668/crate1slot2/1589517264_take_iv/outputs/clock.npy")
    assert "2000-01-01 00:00:00Z, is before 2001-09-09 01:46:40Z" in told.splitlines()[0]
    assert [str(path) for path in stage.archived_files()] == [row.path]


def test_files_from_the_future_are_archived_and_named_together(stage: PrivateSite) -> None:
    with stage.program() as service:
        # When a readout server's clock is years ahead,
        ids = [stage.register(file, timestamp="2037-01-01 00:00:00")[0] for file in stage.files(5)]
        rows = stage.wait_archived(*ids)
        told = ask(stage, "why", str(ids[0]), *stage.flags(http_port=service.port)).stdout
        service.signal(signal.SIGTERM)
        assert service.wait() == 0
        warnings = re.findall(r"warning.*timestamp_ahead.*files=(\d+).*path=(\S+)", service.said)
    # then its files are archived,
    assert {row.path.removeprefix(f"{stage.data_dir}/").split("/")[0] for row in rows} == {"21143"}
    # and all are counted in the log, one for each line: the first, and at the end the others.
    assert sum(int(number) for number, _ in warnings) == 5
    assert len(warnings) <= 2
    assert {path for _, path in warnings} <= {row.path for row in rows}
    # `why` names each.
    assert "2037-01-01 00:00:00Z, is more than a day ahead of this machine's clock" in told.splitlines()[0]
