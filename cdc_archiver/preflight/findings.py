"""The result of a check (finding), the report of all findings, and how it is printed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from rich.console import Console
from rich.text import Text

from cdc_archiver.errors import ArchiverError, DestinationUnavailable, ExitStatus
from cdc_archiver.text import escape_unprintable


class CheckStatus(StrEnum):
    """Result of a check."""

    OK = "ok"
    WARNING = "warning"
    """It works, but not as well as it could."""
    FAILURE = "failure"
    """Files cannot be archived."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Result of one check.

    Attributes:
        subject: the object of the check.
        text: a sentence for a person.
        fix: the statement or command that fixes it, where there is one, with a remark after ``#`` or ``--``; empty only
            where nothing has to be fixed.
        exit_status: exit status of ``check`` because of this failure; DONE where it is not a failure.
        rsync: side and version for the metric, where the finding concerns an rsync.
    """

    subject: str
    status: CheckStatus
    text: str
    fix: str = ""
    exit_status: ExitStatus = ExitStatus.DONE
    rsync: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """All findings, in reading order."""

    findings: tuple[Finding, ...]

    @property
    def exit_status(self) -> ExitStatus:
        """Exit status of ``check``: configuration comes before reachability, since a person can fix it."""
        found = {finding.exit_status for finding in self.findings}
        order = (ExitStatus.USAGE, ExitStatus.UNREACHABLE, ExitStatus.INTERNAL_ERROR)
        return next((status for status in order if status in found), ExitStatus.DONE)

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``; ``mend`` is the former name of ``fix``."""
        return {
            "exit_status": int(self.exit_status),
            "findings": [
                {"subject": f.subject, "status": f.status.value, "text": f.text, "fix": f.fix, "mend": f.fix}
                for f in self.findings
            ],
        }


def print_report(report: Report, console: Console) -> None:
    """Prints one line for each finding and one for its fix."""
    styles = {CheckStatus.OK: "green", CheckStatus.WARNING: "yellow", CheckStatus.FAILURE: "bold red"}
    labels = {CheckStatus.OK: "ok", CheckStatus.WARNING: "warning", CheckStatus.FAILURE: "FAIL"}
    width = max((len(finding.subject) for finding in report.findings), default=0)
    for finding in report.findings:
        line = Text(f"{labels[finding.status]:8}", styles[finding.status])
        line.append(escape_unprintable(f"{finding.subject:{width}}  {finding.text}"), "default")
        console.print(line, soft_wrap=True)
        if finding.fix:
            console.print(Text(escape_unprintable(f"{'':8}{'':{width}}  fix: {finding.fix}")), soft_wrap=True)


def run_check(subject: str, check: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """Runs a check; turns what it raises into a finding."""
    findings: list[Finding] = []
    try:
        findings.extend(check())
    except ArchiverError as error:
        findings.append(finding_from_error(subject, error))
    except Exception as error:
        findings.append(internal_error_finding(subject, error))
    return findings


def finding_from_error(subject: str, error: ArchiverError) -> Finding:
    status = ExitStatus.USAGE if isinstance(error, DestinationUnavailable) else error.exit_status
    return failure(subject, error.message, error.hint, status)


def internal_error_finding(subject: str, error: Exception) -> Finding:
    return failure(
        subject,
        f"internal error in this check: {type(error).__name__}: {error}",
        "report this bug of cdc_archiver, with this line",
        ExitStatus.INTERNAL_ERROR,
    )


def ok(subject: str, text: str) -> Finding:
    return Finding(subject, CheckStatus.OK, text)


def warning(subject: str, text: str, fix: str) -> Finding:
    return Finding(subject, CheckStatus.WARNING, text, fix)


def failure(subject: str, text: str, fix: str, exit_status: ExitStatus = ExitStatus.USAGE) -> Finding:
    return Finding(subject, CheckStatus.FAILURE, text, fix, exit_status)
