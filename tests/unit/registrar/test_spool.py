"""The spool: what was stored is there after any end of the process, and each publisher's gaps are known."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from registering import AT, message

from cdc_archiver.errors import Misconfigured
from cdc_archiver.registrar.messages import parse
from cdc_archiver.registrar.spool import Received, Spool
from cdc_archiver.registrar.spool_reading import find_in_spool, is_in_use, retry_undecided

YEAR = 365 * 86400.0
GIGABYTE = 1024**3


def received(*numbers: int, publisher: str = "p", port: int = 1, sent: float = AT) -> list[Received]:
    contents = [message(f"/data/{number}", number, publisher=publisher) | {"time": sent} for number in numbers]
    return [Received(parse(json.dumps(content).encode()), "127.0.0.1", port) for content in contents]


def opened(path: Path, limit: int = GIGABYTE, keep: float = YEAR) -> Spool:
    return Spool(path, limit, keep)


def test_a_killed_process_loses_nothing_that_was_stored(tmp_path: Path) -> None:
    path = tmp_path / "spool"
    script = (
        "import sys; from pathlib import Path; sys.path[:0] = sys.argv[2:]\n"
        "from test_spool import *\n"
        "spool, number = opened(Path(sys.argv[1])), 0\n"
        "while True:\n"
        "    spool.store(received(number, number + 1), 1.0); number += 2; print(number, flush=True)\n"
    )
    places = [str(Path(__file__).parent), *sys.path]
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", script, str(path), *places], stdout=subprocess.PIPE, text=True
        ) as run:
            assert run.stdout is not None
            for _ in range(20):
                told = int(run.stdout.readline())
            run.send_signal(signal.SIGKILL)
            told = max([told, *(int(line) for line in run.stdout.read().splitlines() if line.strip())])
        spool = opened(path)
        try:
            stored = spool.due(2.0, 100_000)
            assert len(stored) >= told
            assert len(stored) % 2 == 0
            spool.decide([{"number": entry.number, "state": "known", "due": None} for entry in stored], 2.0)
        finally:
            spool.close()


def test_one_registrar_at_a_time_has_it_and_its_id_stays(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "spool"
    spool = opened(path)
    with pytest.raises(Misconfigured, match="another registrar uses the spool"):
        opened(path)
    first = spool.registrar_id
    spool.close()
    again = opened(path)
    assert again.registrar_id == first
    again.close()
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(Misconfigured, match=r"cannot be used.*; fix: mv"):
        opened(path)


def test_gaps_are_known_for_each_publisher_also_over_a_restart(tmp_path: Path) -> None:
    spool = opened(tmp_path / "spool")
    for numbers, port, missing in (
        ((0, 1, 2), 1, 0),
        ((0, 1), 2, 0),  # another one with the same id
        ((3, 5), 1, 1),
        ((4,), 1, 0),  # it came late
        ((0, 1), 1, 0),  # a new one on the same port
        ((7,), 3, 7),  # first met above 0
    ):
        gaps, _ = spool.store(received(*numbers, port=port), AT)
        assert gaps == missing, (numbers, port)
    spool.close()
    spool = opened(tmp_path / "spool")
    assert spool.store(received(9, port=3, sent=AT + 100_000), AT + 100_000)[0] == 1
    assert spool.losses() == {15895: (0, 9), 15896: (0, 1)}
    assert spool.store(received(9, publisher="STREAMER:s", port=4), AT)[0] == 9
    assert spool.losses() == {15895: (0, 9), 15896: (0, 1)}
    spool.close()


def test_what_does_not_fit_is_told_and_counted_and_old_ones_make_room(tmp_path: Path) -> None:
    spool = opened(tmp_path / "spool", limit=300_000, keep=86400.0)
    homeless: list[Any] = []
    for number in range(0, 4000, 100):
        homeless += spool.store(received(*range(number, number + 100)), 100.0)[1]
    assert 0 < len(homeless) < 4000
    assert spool.facts().lost == len(homeless)
    assert spool.facts().waiting == 4000 - len(homeless)
    assert spool.size() < 400_000
    spool.decide([{"number": entry.number, "state": "lost"} for entry in spool.due(100.0, 10)], 100.0)
    spool.decide([{"number": entry.number, "state": "known", "due": None} for entry in spool.due(100.0, 9999)], 100.0)
    lost = spool.losses()[15895][0]
    while spool.prune(100_000.0):
        pass
    assert spool.store(received(4000), 100_000.0)[1] == []
    assert spool.losses()[15895][0] == lost  # forgotten ones stay counted
    spool.close()


def test_an_error_within_a_batch_stores_none_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "spool"
    spool = opened(path)
    spool._connection.execute("PRAGMA max_page_count = 30")

    def too_many() -> None:
        for number in range(0, 9000, 50):
            spool.store(received(*range(number, number + 50)), 1.0)

    with pytest.raises(sqlite3.OperationalError, match="full"):
        too_many()
    assert spool.facts().waiting % 50 == 0
    before = spool.facts().waiting
    spool._connection.execute("PRAGMA max_page_count = 100000")
    spool.store(received(*range(50)), 1.0)
    assert spool.facts().waiting == before + 50
    spool.close()


def test_others_read_it_and_have_lost_files_looked_for_while_it_is_used_and_after(tmp_path: Path) -> None:
    path = tmp_path / "spool"
    spool = opened(path)
    assert is_in_use(path)
    spool.store(received(0, 1), time.time())
    spool.decide([{"number": 1, "state": "lost", "due": None, "reason": "no such file"}], time.time())
    (found,) = find_in_spool(path, "/data/0")
    assert (found.number, found.state, found.reason) == (1, "lost", "no such file")
    assert retry_undecided(path, 5.0) == 1
    assert [entry.number for entry in spool.due(5.0, 9)] == [1]
    spool.close()
    assert not is_in_use(path)
    assert [entry.state for entry in find_in_spool(path, "/data")] == ["waiting", "lost"]
