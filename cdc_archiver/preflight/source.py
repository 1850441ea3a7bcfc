"""What this machine and the sources have to have, and whether files can be had from a source."""

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
from cdc_archiver.preflight.findings import Finding, failure, guarded, ok, warning
from cdc_archiver.settings import Settings, SourceSettings
from cdc_archiver.transfer import rsync_output as rsync_report
from cdc_archiver.transfer.probe import FileState, Look, Probe, rsync_version_here
from cdc_archiver.transfer.ssh import (
    CONNECT_TIMEOUT,
    clean_environment,
    dies_with_parent,
    home_directory,
    peer,
    remote_shell,
    rsync_host,
)


def machine_findings(settings: Settings) -> list[Finding]:
    """What has to be installed here."""
    return guarded("this machine", lambda: _machine(settings))


def _machine(settings: Settings) -> Iterator[Finding]:
    if not settings.sources:
        yield failure("targets", "nobody's files are to be archived", "--target INSTANCE_ID [--host [USER@]HOST]")
    version = rsync_version_here()
    if version is None:
        yield failure("rsync here", "there is no rsync on this machine", "apt-get install rsync")
    else:
        yield replace(_rsync_version("rsync here", version, "on this machine"), rsync=("here", version))
    if any(not source.is_local for source in settings.sources):
        if shutil.which("ssh") is None:
            yield failure("ssh here", "there is no ssh on this machine", "apt-get install openssh-client")
        home_directory()


def _rsync_version(subject: str, version: str, where: str) -> Finding:
    if not version:
        return warning(
            subject, f"the rsync {where} does not say its version", "install rsync 3.4.0 or later, of rsync.samba.org"
        )
    numbers = [int(number) for number in re.findall(r"\d+", version)[:2]]
    return _rsync_age(subject, numbers < [3, 4], f"rsync {version} {where}")


def _rsync_age(subject: str, old: bool, what: str) -> Finding:
    if not old:
        return ok(subject, what)
    return warning(
        subject,
        f"{what}: below 3.4.0 it has holes by which a hostile source could write outside the staging directory",
        "apt-get update && apt-get install rsync  # a distribution may have fixed an older version: ask its changelog",
    )


_UNREACHABLE: Final = {
    Reason.HOST_UNREACHABLE,
    Reason.LINK_LOST,
    Reason.LOGIN_REFUSED,
    Reason.HOST_KEY,
    Reason.SOURCE_NOT_MOUNTED,
}
_SAY_RESTRICTED: Final = (
    'restricted_key = true  # the key has command="rrsync …" there: the directory named in it is the root of all'
)
_TRIAL_LIMIT: Final = 3.0 * CONNECT_TIMEOUT
_PROTOCOL: Final = re.compile(r"Protocol versions: remote=(\d+)")
_PROTOCOL_OF_3_4: Final = 32
"""rsync 3.4.0 raised its protocol to 32 so that an administrator can see a version before it from outside."""


def source_findings(source: SourceSettings) -> list[Finding]:
    """Whether files can be had from a source: the way that they will go, and then what paramiko sees besides."""
    return guarded(f"source {source.name}", lambda: _local(source) if source.is_local else _remote(source))


def _local(source: SourceSettings) -> Iterator[Finding]:
    subject = f"source {source.name}"
    state = Probe(source).look().root
    yield _root(subject, source, state) or ok(subject, f"{source.source_root} on this machine can be read")


def _remote(source: SourceSettings) -> Iterator[Finding]:
    subject = f"source {source.name}"
    there = peer(source)
    trial = _list_root(source)
    root = "/" if source.restricted_key else source.source_root
    trouble = rsync_report.read_ending(trial.returncode, trial.stderr, root, (), there).trouble
    if trouble is not None:
        missing = trouble.reason is Reason.SOURCE_NOT_MOUNTED
        text = f"the source root {source.source_root} is not there: {trouble.words}" if missing else trouble.words
        fix = _root_fix(source) if missing else trouble.hint or "is the host up, and is the network between?"
        if "rrsync" in trial.stderr and not source.restricted_key:
            fix = _SAY_RESTRICTED
        status = ExitStatus.UNREACHABLE if trouble.reason in _UNREACHABLE else ExitStatus.USAGE
        yield failure(subject, text, fix, status)
        return
    yield ok(subject, f"{there.login} lets us in, and rsync runs there")
    if trial.returncode != 0:
        yield warning(
            subject,
            f"the source root {source.source_root} cannot be listed there: {rsync_report.last_words(trial.stderr)}",
            f"setfacl -m u:{there.user or 'USER'}:rx {shlex.quote(source.source_root)}  # on {there.host}",
        )
    yield from _second_look(subject, source, trial.stdout)


def _second_look(subject: str, source: SourceSettings, trial: str) -> Iterator[Finding]:
    """What paramiko sees, on a source that OpenSSH reaches: its not getting there is no fault."""
    look = Look("", False, FileState.CANNOT_TELL)
    try:
        look = Probe(source).look()
        unknown = look.unknown
    except ArchiverError as error:
        unknown = error.message
    protocol = _PROTOCOL.search(trial)
    if look.rsync:
        yield replace(_rsync_version(subject, look.rsync, "there"), rsync=(source.name, look.rsync))
    elif protocol:
        number = int(protocol[1])
        yield _rsync_age(subject, number < _PROTOCOL_OF_3_4, f"rsync with protocol {number} there")
    if finding := _root(subject, source, look.root):
        yield finding
    elif look.root is FileState.OK:
        yield ok(subject, f"the source root {source.source_root} can be read")
    if unknown and source.restricted_key:
        yield ok(subject, "the key is restricted: why a file fails is known from rsync's words alone")
    elif unknown:
        yield warning(
            subject,
            f"why a file fails will be known from rsync's words alone; what paramiko sees, it cannot tell: {unknown}",
            _SAY_RESTRICTED if "rrsync" in unknown else "let the account open SFTP; otherwise nothing has to be done",
        )


def _root(subject: str, source: SourceSettings, state: FileState) -> Finding | None:
    if state is FileState.ROOT_GONE:
        return warning(
            subject, f"the source root {source.source_root} is empty: is its disk mounted?", _root_fix(source)
        )
    if state in (FileState.MISSING, FileState.NOT_A_FILE):
        return failure(
            subject, f"the source root {source.source_root} is no directory", _root_fix(source), ExitStatus.UNREACHABLE
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
    """Lists the source root and nothing in it, by the way that files will come."""
    root = "/" if source.restricted_key else f"{source.source_root.rstrip('/')}/"
    command = [
        *("rsync", "--list-only", "--dirs", "--exclude=*", "--debug=proto", f"--timeout={CONNECT_TIMEOUT}"),
        *("-e", remote_shell(source), "--", f"{rsync_host(source)}:{root}"),
    ]
    if shutil.which("rsync") is None:
        raise Misconfigured("there is no rsync on this machine", "apt-get install rsync")
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
