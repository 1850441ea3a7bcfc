"""Whether the archive's disk is here, by the service's own rule: on a bare mount point every file is missing."""

from __future__ import annotations

import os
from pathlib import Path

from cdc_archiver.commands.context import CommandContext
from cdc_archiver.database.history import History
from cdc_archiver.errors import DestinationUnavailable, ExitStatus, Misconfigured
from cdc_archiver.model import Reason
from cdc_archiver.transfer.staging import MARKER


class ArchiveAway(DestinationUnavailable):
    """The archive's disk is not here: nothing can be said of its files."""

    exit_status = ExitStatus.UNREACHABLE


def require_directory(data_dir: Path | None) -> bool:
    """Asks what can be asked without a database: whether there is anything at all.

    Returns:
        Whether the archive's marker file is there, too.

    Raises:
        Misconfigured: data_dir is not known.
        ArchiveAway: it is not there, or empty.
    """
    if data_dir is None:
        raise Misconfigured("there is no data_dir", "--data-dir /data/… or CDC_ARCHIVER_DATA_DIR")
    try:
        names = set(os.listdir(data_dir))
    except OSError as error:
        raise ArchiveAway(
            Reason.DESTINATION_MISSING, f"data_dir {data_dir} cannot be read: {error.strerror}", "is its disk mounted?"
        ) from error
    if not names:
        raise ArchiveAway(Reason.DESTINATION_MISSING, f"data_dir {data_dir} is empty", "is its disk mounted?")
    return MARKER in names


def require_mounted(desk: CommandContext) -> bool:
    """Asks whether the archive is here. A mount point may have something in it (lost+found): where the history knows files there,
    the marker has to be there, too.

    Returns:
        Whether its marker file is there: it is not before the first run.

    Raises:
        Misconfigured: data_dir is not known.
        ArchiveAway: it is not there, or a bare mount point.
    """
    data_dir = desk.settings.data_dir
    marked = require_directory(data_dir)
    if not marked and desk.history is not None:
        with desk.database.connect() as connection:
            known = History(desk.files.name, 0.0).knows_archived(connection, f"{data_dir}/")
        if known:
            raise ArchiveAway(
                Reason.DESTINATION_MISSING,
                f"data_dir {data_dir} has no marker file {MARKER}, and the history knows archived files there",
                f"is its disk mounted? If it is, and only this file is gone: touch {data_dir}/{MARKER}",
            )
    return marked
