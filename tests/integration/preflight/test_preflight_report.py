"""`check` as a whole: what it is made of, how it is printed, what it ends with."""

import io
from pathlib import Path

import pytest
from files_table import TABLE
from findings import settings, the_only
from healthy_site import Source
from private_database import PrivateDatabase
from rich.console import Console

from cdc_archiver import preflight
from cdc_archiver.database import history
from cdc_archiver.database.connections import Database
from cdc_archiver.errors import ExitStatus
from cdc_archiver.preflight import CheckStatus, Finding, Report
from cdc_archiver.transfer.staging import MARKER

# --- the report


def test_the_whole_report(good: PrivateDatabase, source: Source, data_dir: Path) -> None:
    mine = source().model_dump(exclude={"name", "target"})
    chosen = settings(good, data_dir=data_dir, **mine)

    report = preflight.run_checks(chosen)

    subjects = [finding.subject for finding in report.findings]
    assert subjects.index("rsync here") < subjects.index("database") < subjects.index("source 127.0.0.1")
    assert subjects.index("source 127.0.0.1") < subjects.index("data_dir")
    assert report.exit_status is ExitStatus.DONE
    assert {
        "subject": "marker",
        "status": "ok",
        "text": f"{data_dir / MARKER} will be made at the first run",
        "mend": "",
    } in (report.as_dict()["findings"])


def test_what_the_history_knows_reaches_the_question_about_the_disk(
    site: PrivateDatabase, source: Source, data_dir: Path
) -> None:
    chosen = settings(site, data_dir=data_dir, **source().model_dump(exclude={"name", "target"}))
    database = Database(chosen)
    with database.connect() as connection:
        assert history.open_history(connection) == ""
    database.close()
    site.sql(
        "INSERT INTO cdc_archiver_history (at, file_table, file_id, instance_id, source, result, source_path, archived_path)"
        f" VALUES (NOW(), '{TABLE}', 1, 'monitor', 'readout', 'archived', '/data/a', '{data_dir}/17000/a')"
    )

    report = preflight.run_checks(chosen)

    assert "the disk is not mounted" in the_only(list(report.findings)).text
    assert report.exit_status is ExitStatus.USAGE


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ((), ExitStatus.DONE),
        ((ExitStatus.UNREACHABLE,), ExitStatus.UNREACHABLE),
        ((ExitStatus.UNREACHABLE, ExitStatus.USAGE), ExitStatus.USAGE),
        ((ExitStatus.INTERNAL_ERROR, ExitStatus.UNREACHABLE), ExitStatus.UNREACHABLE),
        ((ExitStatus.INTERNAL_ERROR,), ExitStatus.INTERNAL_ERROR),
    ],
)
def test_the_exit_status_is_what_a_person_can_do_most_about(
    found: tuple[ExitStatus, ...], expected: ExitStatus
) -> None:
    good = Finding("a", CheckStatus.OK, "")
    failures = [Finding("b", CheckStatus.FAILURE, "", "mend", status) for status in found]

    assert Report((good, *failures)).exit_status is expected


def test_a_printed_report_has_a_line_for_each_finding_and_its_command_whole() -> None:
    command = "GRANT SELECT, UPDATE ON `files`.`pysmurf_files` TO 'archiver'@'%'  -- " + "x" * 100
    report = Report(
        (Finding("database", CheckStatus.OK, "[fine]"), Finding("grants", CheckStatus.FAILURE, "none", command))
    )
    out = io.StringIO()

    preflight.print_report(report, Console(file=out, width=40))

    assert out.getvalue().splitlines() == [
        "ok      database  [fine]",
        "FAIL    grants    none",
        f"                  fix: {command}",
    ]
