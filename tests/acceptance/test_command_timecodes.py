"""`timecodes`: the newest of each source, all about one, and its files for md5sum."""

from __future__ import annotations

import json
import re
import subprocess

from asking import ask
from files_table import TABLE
from private_site import TARGET, PrivateSite
from recorded_history import archived
from side_tables_of_site import enter_timecode, make_side_tables

from cdc_archiver.database.side_tables import REGISTRAR_LOSSES, REGISTRARS


def fields(text: str) -> list[list[str]]:
    """The fields of each line of a table in a pipe."""
    return [line.split("\t") for line in text.splitlines()]


def facts_of(lines: list[str]) -> dict[str, str]:
    """Names and values, one pair a line."""
    return dict(re.split(" {2,}", line, maxsplit=1) for line in lines if "  " in line)


def test_what_an_operator_is_told_of_timecodes(stage: PrivateSite) -> None:
    # Without the side table, and before the service has entered anything, that is what is said.
    done = ask(stage, "timecodes")
    assert (done.returncode, done.stdout) == (2, "")
    assert "the side table of timecodes cannot be used" in done.stderr
    make_side_tables(stage)
    done = ask(stage, "timecodes")
    assert (done.returncode, done.stdout) == (3, "")
    assert "a running service enters them after its first sweep" in done.stderr
    # Given timecodes in each state, of two sources,
    for timecode in range(17770, 17790):
        enter_timecode(stage, timecode, "complete", told_by="before" if timecode < 17785 else "marker")
    enter_timecode(stage, 17760, "blocked", reasons={"quarantined": 3, "registrar_silent": 1})
    enter_timecode(stage, 17790, "reopened", reasons={"pending": 2}, late=1, generation=2)
    enter_timecode(stage, 17791, "open", files=0, bytes=0)
    enter_timecode(stage, 17791, "open", files=0, bytes=0, instance_id="other")
    ask(stage, "hold", "--timecode", "17791", "--target", "other", "--reason", "clock", "--by", "Ann")
    ask(stage, "hand-over", "17780", "--reason", "tape", "--by", "librarian")
    # then the newest of each are listed, and the older one that is blocked with what helps.
    done = ask(stage, "timecodes")
    assert (done.returncode, done.stderr) == (0, "")
    rows = fields(done.stdout)
    assert [int(row[0]) for row in rows] == [17791, 17791, *range(17790, 17781, -1), 17760]
    assert rows[0] == ["17791", "other", "open", "0", "0", "0.0", "", "held", "", ""]
    assert rows[2][2:8] == ["reopened", "2", "3", "5.0", "2 pending", ""]
    assert rows[3][8] == "2026-05-15 04:30:00Z by marker"
    assert rows[-2][8] == "nobody: before the first start"
    assert rows[-1][6] == "3 quarantined, registrar is silent"
    assert rows[-1][9].startswith("cdc-archiver retry --all-quarantined; start the registrar, or: ")
    (told,) = [row for row in json.loads(ask(stage, "timecodes", "--json").stdout) if row["timecode"] == 17789]
    assert (told["state"], told["told_by"], told["bytes"], told["held"]) == ("complete", "marker", 5 * 10**9, False)
    assert fields(ask(stage, "timecodes", "--target", "other").stdout) == [rows[0]]
    # All about one:
    lines = ask(stage, "timecodes", "17780").stdout.splitlines()
    assert lines[0] == (f"Timecode 17780 of {TARGET} is complete, with 3 files; handed over, so new files of it wait.")
    facts = facts_of(lines)
    assert facts["digest"] == "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
    assert facts["readers told"] == "nobody: before the first start"
    assert re.fullmatch(r"to librarian, .+Z: tape", facts["handed over"])
    (held,) = [each for each in json.loads(ask(stage, "timecodes", "17791", "--json").stdout) if each["hold"]]
    assert (held["instance_id"], held["hold"]["by_whom"], held["hold"]["reason"]) == ("other", "Ann", "clock")
    assert held["ends"] == "2026-05-19T14:13:20+00:00"
    done = ask(stage, "timecodes", "17000")
    assert (done.returncode, done.stdout) == (3, "")
    assert ask(stage, "timecodes", "170").returncode == 2


def test_the_ways_out_where_a_registrar_lost_files_or_is_gone(stage: PrivateSite) -> None:
    make_side_tables(stage)
    enter_timecode(stage, 17788, "blocked", reasons={"registrar_lost": 2})
    stage.sql(
        f"INSERT INTO {REGISTRARS.name} (instance_id, registrar_id, heard, watermark)"
        " VALUES (%s, '5f2c', '2026-05-15 04:30:00', '2026-05-15 04:29:00')",
        (TARGET,),
    )
    stage.sql(
        f"INSERT INTO {REGISTRAR_LOSSES.name} (instance_id, registrar_id, timecode, lost, gaps)"
        " VALUES (%s, '5f2c', 17788, 2, 0)",
        (TARGET,),
    )
    lines = ask(stage, "timecodes", "17788").stdout.splitlines()
    registrar = "5f2c has registered up to 2026-05-15 04:29:00Z, last heard 2026-05-15 04:30:00Z"
    assert facts_of(lines)["registrar"] == registrar
    assert lines[-1] == "fix   cdc-archiver timecodes 17788 --accept-missing --reason TEXT"
    accept = ("timecodes", "17788", "--accept-missing")
    assert ask(stage, *accept).returncode == 2
    assert [ask(stage, *accept, "--reason", "crate 3 was off").returncode for _ in range(2)] == [0, 3]
    retire = ("timecodes", "--retire-registrar", "5f2c", "--reason", "replaced")
    assert [ask(stage, *retire).returncode for _ in range(2)] == [0, 3]
    ((accepted,),) = stage.sql(f"SELECT accepted_reason FROM {REGISTRAR_LOSSES.name}")
    ((retired,),) = stage.sql(f"SELECT retired_reason FROM {REGISTRARS.name} WHERE retired_at IS NOT NULL")
    assert (accepted.split(": ")[1], retired.split(": ")[1]) == ("crate 3 was off", "replaced")


def test_md5sum_finds_the_files_of_a_timecode_as_the_rows_have_them(stage: PrivateSite) -> None:
    make_side_tables(stage)
    enter_timecode(stage, 15895, "complete")
    files = [stage.file(name) for name in ("b.npy", "a.npy", "new\nline.npy", "back\\slash.npy", "gon\\e\n.npy")]
    ids = [archived(stage, file) for file in files]
    stage.sql(f"UPDATE {TABLE} SET timestamp = '2020-06-15 04:34:24' WHERE id = {ids[0]}")  # its path counts
    # Given files that are no data, and a row that names one of them,
    readers = stage.data_dir / "15895" / "suprsync" / "smurf"
    readers.mkdir(parents=True)
    (readers / "1589517264_smurf_15894_finalized.yaml").write_text("")
    stage.register(stage.file("pending.npy"))
    # when md5sum checks the list in data_dir,
    flags = ("--data-dir", str(stage.data_dir))
    listed = stage.process("timecodes", "15895", "--md5", *flags)
    assert listed.returncode == 0, listed.stderr

    def check(text: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["md5sum", "--strict", "-c"],
            input=text,
            cwd=stage.data_dir,
            text=True,
            capture_output=True,
            check=False,
            env=stage.environment() | {"LC_ALL": "C"},
        )

    # then all is right, each file once, in order,
    checked = check(listed.stdout)
    assert (checked.returncode, checked.stdout.count(": OK"), checked.stderr) == (0, 5, "")
    paths = [line.split("  ", 1)[1] for line in listed.stdout.splitlines()]
    assert [path.rsplit("/", 1)[1] for path in paths][:2] == ["a.npy", "b.npy"]
    # and a file that is gone is found out.
    stage.place(files[4]).unlink()
    assert check(listed.stdout).returncode == 1
    # The marker is no file without a row, either.
    done = ask(stage, "verify", "--unregistered", "--json", "--sample", "1", *stage.flags())
    assert json.loads(done.stdout.splitlines()[-1])["sums"]["unregistered"] == 0
    # What is not complete is named.
    stage.sql("UPDATE cdc_archiver_timecodes SET state = 'reopened'")
    done = ask(stage, "timecodes", "15895", "--md5", *flags)
    assert (done.returncode, len(done.stdout.splitlines())) == (3, 5)
    assert f"timecode 15895 is not complete, more files may come: {TARGET} is reopened" in done.stderr
