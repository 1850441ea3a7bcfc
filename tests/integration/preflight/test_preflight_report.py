"""`check` as a whole: the report, its JSON, its printed form and its exit status."""

import io
from pathlib import Path

import pytest
from check_findings import settings, the_only
from files_table import TABLE
from healthy_site import Source
from private_database import PrivateDatabase
from rich.console import Console

from cdc_archiver import preflight
from cdc_archiver.database import history
from cdc_archiver.database.connections import Database
from cdc_archiver.errors import ExitStatus
from cdc_archiver.preflight import CheckStatus, Finding, Report

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
        "text": f"the first run will make the marker of {data_dir}",
        "fix": "",
        "mend": "",
    } in (report.as_dict()["findings"])


def test_the_json_has_each_fix_under_its_present_and_its_former_name() -> None:
    finding = Finding("index", CheckStatus.WARNING, "the index is missing", "cdc-archiver init-db")

    assert Report((finding,)).as_dict() == {
        "exit_status": 0,
        "findings": [
            {
                "subject": "index",
                "status": "warning",
                "text": "the index is missing",
                "fix": "cdc-archiver init-db",
                "mend": "cdc-archiver init-db",
            }
        ],
    }


def test_a_history_with_archived_files_makes_a_missing_marker_a_failure(
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
def test_a_failure_that_a_person_can_fix_decides_the_exit_status(
    found: tuple[ExitStatus, ...], expected: ExitStatus
) -> None:
    good = Finding("a", CheckStatus.OK, "")
    failures = [Finding("b", CheckStatus.FAILURE, "", "fix", status) for status in found]

    assert Report((good, *failures)).exit_status is expected


def test_a_printed_report_has_a_line_for_each_finding_and_never_wraps_a_command() -> None:
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
