"""Finds out why an account on a source runs no rsync: its start-up files print, its shell runs no command, or it is for SFTP only.

rsync sees only that something else than rsync answered, and prints nothing of it.
"""

from __future__ import annotations

import subprocess
from dataclasses import replace
from typing import Final

from cdc_archiver.model import Reason
from cdc_archiver.settings import SourceSettings
from cdc_archiver.text import escape_unprintable
from cdc_archiver.transfer.rsync_output import CopyFailure
from cdc_archiver.transfer.ssh import CONNECT_TIMEOUT, clean_environment, dies_with_parent, ssh_command, ssh_endpoint
from cdc_archiver.transfer.ssh_errors import SshEndpoint

_MARK: Final = "cdc-archiver-runs-commands"
_SFTP_ONLY: Final = "allows sftp connections only"
_QUOTED: Final = 80
"""Characters of the account's own text that a message quotes."""


def explained(source: SourceSettings, failure: CopyFailure) -> CopyFailure:
    """The failure, with the account's own answer to a login as its cause if it is one. Logs in only for an unexplained failure."""
    if not failure.unexplained or source.is_local:
        return failure
    command = [*ssh_command(source), "--", source.host_name, f"echo {_MARK}"]
    try:
        done = subprocess.run(
            dies_with_parent(command),
            check=False,
            env=clean_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=CONNECT_TIMEOUT,
        )
    except (OSError, subprocess.TimeoutExpired):
        return failure
    if done.returncode == 255:  # ssh's own: nothing is known of the account
        return failure
    cause = _cause(done.stdout, ssh_endpoint(source))
    return replace(failure, reason=Reason.RSYNC_REFUSED, message=cause[0], hint=cause[1]) if cause else failure


def _cause(output: str, endpoint: SshEndpoint) -> tuple[str, str] | None:
    """Message and fix.

    Args:
        output: of the account, when it was asked to print the mark.
    """
    text, runs_commands, _ = output.partition(_MARK)
    said = escape_unprintable(" ".join(text.split()))[:_QUOTED]
    account, host = endpoint.login, endpoint.host
    if _SFTP_ONLY in text:
        return (
            f"the account {account} is for SFTP only, so it cannot run rsync: {said!r}",
            f"allow it commands on {host}: no `ForceCommand internal-sftp` in /etc/ssh/sshd_config, no command= before its key",
        )
    if not runs_commands and not endpoint.restricted_to:
        answer = f"it answers {said!r}" if said else "it ends without an answer"
        return (
            f"the shell of the account {account} runs no commands: {answer}",
            f"chsh -s /bin/sh {endpoint.user or 'USER'}  # as root on {host}; or set --user to another account",
        )
    if said:
        silent = endpoint.command_line("ssh", account, "true")
        return (
            f"the start-up files of the account {account} print {said!r}, where rsync expects its own answer",
            f"sed -i '1i case $- in *i*) ;; *) return ;; esac' ~/.bashrc  # there; then `{silent}` must print nothing",
        )
    return None
