"""Checks the programs on this machine and whether files can be copied from each source."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from cdc_archiver.errors import ArchiverError, ExitStatus, Misconfigured
from cdc_archiver.model import Reason
from cdc_archiver.preflight.findings import Finding, failure, ok, run_check, warning
from cdc_archiver.settings import Settings, SourceSettings
from cdc_archiver.transfer import login_shell, rsync_output
from cdc_archiver.transfer.probe import Probe, SourceInspection, rsync_version_here
from cdc_archiver.transfer.rsync import RsyncLimits, transfer_options
from cdc_archiver.transfer.source_files import FileState, foreign_link_text
from cdc_archiver.transfer.ssh import (
    CONNECT_TIMEOUT,
    clean_environment,
    dies_with_parent,
    home_directory,
    remote_shell,
    rsync_host,
    ssh_endpoint,
)


def machine_findings(settings: Settings) -> list[Finding]:
    """Checks the programs that must be installed on this machine."""
    return run_check("this machine", lambda: _machine(settings))


def _machine(settings: Settings) -> Iterator[Finding]:
    if not settings.sources:
        yield failure(
            "targets", "no target is set, so no files are archived", "--target INSTANCE_ID [--host [USER@]HOST]"
        )
    version = rsync_version_here()
    if version is None:
        yield failure("rsync here", "rsync is not installed on this machine", "apt-get install rsync")
    else:
        yield replace(_rsync_version_finding("rsync here", version, "on this machine"), rsync=("here", version))
    if any(not source.is_local for source in settings.sources):
        if shutil.which("ssh") is None:
            yield failure("ssh here", "ssh is not installed on this machine", "apt-get install openssh-client")
        home_directory()


def _rsync_version_finding(subject: str, version: str, where: str) -> Finding:
    if not version:
        return warning(
            subject,
            f"the rsync {where} does not print its version",
            "install rsync 3.4.0 or later, from rsync.samba.org",
        )
    numbers = [int(number) for number in re.findall(r"\d+", version)[:2]]
    return _rsync_age_finding(subject, numbers < [3, 4], f"rsync {version} {where}")


def _rsync_age_finding(subject: str, old: bool, what: str) -> Finding:
    if not old:
        return ok(subject, what)
    return warning(
        subject,
        f"{what}: versions before 3.4.0 have security holes that let a hostile source write outside the staging directory",
        "apt-get update && apt-get install rsync  # a distribution may have fixed an older version: see its changelog",
    )


_UNREACHABLE: Final = {
    Reason.HOST_UNREACHABLE,
    Reason.LINK_LOST,
    Reason.LOGIN_REFUSED,
    Reason.HOST_KEY,
    Reason.SOURCE_NOT_MOUNTED,
}
_SET_RESTRICTED_KEY: Final = (
    'restricted_key = true  # the key has command="rrsync …" on the source: its directory is the root of all paths'
)
_TRIAL_LIMIT: Final = 3.0 * CONNECT_TIMEOUT
_PROTOCOL: Final = re.compile(r"Protocol versions: remote=(\d+)")
_PROTOCOL_OF_3_4: Final = 32
"""rsync 3.4.0 raised its protocol to 32 so that an administrator can recognise older versions from outside."""


def source_findings(source: SourceSettings) -> list[Finding]:
    """Checks a source: by the way that rsync takes, then through paramiko."""
    return run_check(f"source {source.name}", lambda: _local(source) if source.is_local else _remote(source))


def _local(source: SourceSettings) -> Iterator[Finding]:
    subject = f"source {source.name}"
    state = Probe(source).inspect().root
    yield _root_finding(subject, source, state) or ok(subject, f"{source.source_root} on this machine is readable")
    yield from _link_findings(subject, source)


def _remote(source: SourceSettings) -> Iterator[Finding]:
    subject = f"source {source.name}"
    endpoint = ssh_endpoint(source)
    trial = _list_root(source)
    root = "/" if source.restricted_key else source.source_root
    failed = rsync_output.parse_exit(trial.returncode, trial.stderr, root, (), endpoint).failure
    if failed is not None:
        failed = login_shell.explained(source, failed)
        missing = failed.reason is Reason.SOURCE_NOT_MOUNTED
        text = f"the source root {source.source_root} is not available: {failed.message}" if missing else failed.message
        fix = _root_fix(source) if missing else failed.hint or "check that the host is up, and the network to it"
        if "rrsync" in trial.stderr and not source.restricted_key:
            fix = _SET_RESTRICTED_KEY
        status = ExitStatus.UNREACHABLE if failed.reason in _UNREACHABLE else ExitStatus.USAGE
        yield failure(subject, text, fix, status)
        return
    yield ok(subject, f"the login {endpoint.login} works, and rsync runs there")
    if trial.returncode != 0:
        yield warning(
            subject,
            f"the login cannot list the source root {source.source_root}: {rsync_output.main_error_line(trial.stderr)}",
            f"setfacl -m u:{endpoint.user or 'USER'}:rx {shlex.quote(source.source_root)}  # on {endpoint.host}",
        )
    yield from _inspect(subject, source, trial.stdout)


def _inspect(subject: str, source: SourceSettings, trial: str) -> Iterator[Finding]:
    """Findings through paramiko on a source that OpenSSH reaches: it is not a failure where paramiko cannot log in."""
    inspection = SourceInspection("", False, FileState.CANNOT_TELL)
    fix = "allow SFTP for the account; without it files are archived all the same"
    try:
        inspection = Probe(source).inspect()
        unknown_because = inspection.unknown_because
    except ArchiverError as error:
        unknown_because, fix = error.message, error.hint or fix
    protocol = _PROTOCOL.search(trial)
    if inspection.rsync:
        yield replace(
            _rsync_version_finding(subject, inspection.rsync, "on the source"), rsync=(source.name, inspection.rsync)
        )
    elif protocol:
        number = int(protocol[1])
        yield _rsync_age_finding(subject, number < _PROTOCOL_OF_3_4, f"rsync with protocol {number} on the source")
    if finding := _root_finding(subject, source, inspection.root):
        yield finding
    elif inspection.root is FileState.OK:
        yield ok(subject, f"the source root {source.source_root} is readable")
    if unknown_because and source.restricted_key:
        yield ok(subject, "the key is restricted: only rsync's messages tell why a file fails")
    elif unknown_because:
        yield warning(
            subject,
            f"paramiko cannot diagnose files there, so only rsync's messages tell why a file fails: {unknown_because}",
            _SET_RESTRICTED_KEY if "rrsync" in unknown_because else fix,
        )
    yield from _link_findings(subject, source)


def _link_findings(subject: str, source: SourceSettings) -> Iterator[Finding]:
    for link in Probe(source).foreign_links():
        text, _, fix = foreign_link_text(link).partition("; fix: ")
        where = f"  # on {source.host_name}" if source.host else ""
        yield warning(subject, f"{text}, and copies of files below it are slower", fix + where)


def _root_finding(subject: str, source: SourceSettings, state: FileState) -> Finding | None:
    if state is FileState.ROOT_GONE:
        return warning(
            subject, f"the source root {source.source_root} is empty: is its disk mounted?", _root_fix(source)
        )
    if state in (FileState.MISSING, FileState.NOT_A_FILE):
        return failure(
            subject,
            f"the source root {source.source_root} is not a directory",
            _root_fix(source),
            ExitStatus.UNREACHABLE,
        )
    if state is FileState.UNREADABLE:
        return warning(
            subject,
            f"the source root {source.source_root} cannot be listed",
            f"chmod o+rx {shlex.quote(source.source_root)}",
        )
    return None


def _root_fix(source: SourceSettings) -> str:
    where = f"  # on {source.host_name}; or check --source-root" if source.host else "  # or check --source-root"
    return f"mount {shlex.quote(source.source_root)}{where}"


def _list_root(source: SourceSettings) -> subprocess.CompletedProcess[str]:
    """Lists the source root, without its entries, by the way and with the options that files will take."""
    root = "/" if source.restricted_key else f"{source.source_root.rstrip('/')}/"
    command = [
        *("rsync", "--list-only", "--dirs", "--exclude=*", "--debug=proto"),
        *transfer_options(source, RsyncLimits(source.small_limit, CONNECT_TIMEOUT, source.stall_timeout)),
        *("-e", remote_shell(source), "--", f"{rsync_host(source)}:{root}"),
    ]
    if shutil.which("rsync") is None:
        raise Misconfigured("rsync is not installed on this machine", "apt-get install rsync")
    process = subprocess.Popen(
        dies_with_parent(command),
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    with process:
        try:
            stdout, stderr = process.communicate(timeout=_TRIAL_LIMIT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            stdout, stderr = process.communicate()
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)
