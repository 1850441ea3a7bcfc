"""Checks that the archive's disk is mounted, by the service's own rule: on a bare mount point every file would be missing."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from cdc_archiver.commands.context import CommandContext
from cdc_archiver.database.history import History
from cdc_archiver.errors import DestinationUnavailable, ExitStatus, Misconfigured
from cdc_archiver.model import Reason
from cdc_archiver.transfer.staging import MARKER


class ArchiveUnavailable(DestinationUnavailable):
    """The archive's disk is not mounted, so nothing can be said about its files."""

    exit_status = ExitStatus.UNREACHABLE


def require_directory(data_dir: Path | None) -> bool:
    """Checks what can be checked without a database: that data_dir exists and is not empty.

    Returns:
        Whether the archive marker exists.

    Raises:
        Misconfigured: data_dir is not set.
        ArchiveUnavailable: data_dir does not exist or is empty.
    """
    if data_dir is None:
        raise Misconfigured("data_dir is not set", "--data-dir /data/… or CDC_ARCHIVER_DATA_DIR")
    try:
        names = set(os.listdir(data_dir))
    except OSError as error:
        raise ArchiveUnavailable(
            Reason.DESTINATION_MISSING, f"data_dir {data_dir} cannot be read: {error.strerror}", _mount(data_dir)
        ) from error
    if not names:
        raise ArchiveUnavailable(Reason.DESTINATION_MISSING, f"data_dir {data_dir} is empty", _mount(data_dir))
    return MARKER in names


def require_mounted(context: CommandContext) -> bool:
    """Checks that the archive is mounted.

    A bare mount point may contain something, such as lost+found. If the history knows archived files below data_dir, the
    marker is therefore required.

    Returns:
        Whether the archive marker exists; the first run creates it.

    Raises:
        Misconfigured: data_dir is not set.
        ArchiveUnavailable: data_dir does not exist, or is a bare mount point.
    """
    data_dir = context.settings.data_dir
    marked = require_directory(data_dir)
    if not marked and context.history is not None:
        with context.database.connect() as connection:
            known = History(context.files.name, 0.0).knows_archived(connection, f"{data_dir}/")
        if known:
            raise ArchiveUnavailable(
                Reason.DESTINATION_MISSING,
                f"data_dir {data_dir} has no marker file {MARKER}, and the history knows archived files there",
                f"mount its disk; if it is mounted and only the marker is gone: touch {shlex.quote(f'{data_dir}/{MARKER}')}",
            )
    return marked


def _mount(data_dir: Path) -> str:
    return f"mount {shlex.quote(str(data_dir))}"
