"""What a question was answered with, all answers together, and how a person is shown them."""

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
    """How a question was answered."""

    OK = "ok"
    WARNING = "warning"
    """It works, and less well than it could."""
    FAILURE = "failure"
    """Files are not archived like this."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One answer.

    Attributes:
        subject: what was asked about.
        text: a sentence for a person.
        fix: the statement or command that fixes it, where there is one, with a remark behind ``#`` or ``--``; empty only
            where nothing has to be fixed.
        exit_status: what this failure makes of the whole; DONE for what is none.
        rsync: side and version, where this is about an rsync; for the metric.
    """

    subject: str
    status: CheckStatus
    text: str
    fix: str = ""
    exit_status: ExitStatus = ExitStatus.DONE
    rsync: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """All findings, in the order in which a person reads them."""

    findings: tuple[Finding, ...]

    @property
    def exit_status(self) -> ExitStatus:
        """What ``check`` ends with: configuration comes before reachability, since a person can do something about it."""
        found = {finding.exit_status for finding in self.findings}
        order = (ExitStatus.USAGE, ExitStatus.UNREACHABLE, ExitStatus.INTERNAL_ERROR)
        return next((status for status in order if status in found), ExitStatus.DONE)

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "exit_status": int(self.exit_status),
            "findings": [
                {"subject": f.subject, "status": f.status.value, "text": f.text, "mend": f.fix} for f in self.findings
            ],
        }


def print_report(report: Report, console: Console) -> None:
    """One line for each finding, and one more for what fixes it."""
    styles = {CheckStatus.OK: "green", CheckStatus.WARNING: "yellow", CheckStatus.FAILURE: "bold red"}
    labels = {CheckStatus.OK: "ok", CheckStatus.WARNING: "warning", CheckStatus.FAILURE: "FAIL"}
    width = max((len(finding.subject) for finding in report.findings), default=0)
    for finding in report.findings:
        line = Text(f"{labels[finding.status]:8}", styles[finding.status])
        line.append(escape_unprintable(f"{finding.subject:{width}}  {finding.text}"), "default")
        console.print(line, soft_wrap=True)
        if finding.fix:
            console.print(Text(escape_unprintable(f"{'':8}{'':{width}}  fix: {finding.fix}")), soft_wrap=True)


def guarded(subject: str, check: Callable[[], Iterable[Finding]]) -> list[Finding]:
    findings: list[Finding] = []
    try:
        findings.extend(check())
    except ArchiverError as error:
        findings.append(from_error(subject, error))
    except Exception as error:
        findings.append(broken(subject, error))
    return findings


def from_error(subject: str, error: ArchiverError) -> Finding:
    status = ExitStatus.USAGE if isinstance(error, DestinationUnavailable) else error.exit_status
    return failure(subject, error.message, error.hint, status)


def broken(subject: str, error: Exception) -> Finding:
    return failure(
        subject,
        f"this question could not be asked: {type(error).__name__}: {error}",
        "a fault of cdc_archiver: report it",
        ExitStatus.INTERNAL_ERROR,
    )


def ok(subject: str, text: str) -> Finding:
    return Finding(subject, CheckStatus.OK, text)


def warning(subject: str, text: str, fix: str) -> Finding:
    return Finding(subject, CheckStatus.WARNING, text, fix)


def failure(subject: str, text: str, fix: str, exit_status: ExitStatus = ExitStatus.USAGE) -> Finding:
    return Finding(subject, CheckStatus.FAILURE, text, fix, exit_status)
