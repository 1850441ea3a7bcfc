"""Checks that the archive's disk is mounted, by the service's own rule: on a bare mount point every file would be missing."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from cdc_archiver.commands.context import CommandContext
from cdc_archiver.database.archives import known_archive
from cdc_archiver.errors import DestinationUnavailable, ExitStatus, Misconfigured
from cdc_archiver.model import Reason
from cdc_archiver.settings import Settings
from cdc_archiver.transfer.staging import Archive


class ArchiveUnavailable(DestinationUnavailable):
    """The archive's disk is not mounted, so nothing can be said about its files."""

    exit_status = ExitStatus.UNREACHABLE


def archive_of(settings: Settings) -> Archive:
    """The archive that the settings describe.

    Raises:
        Misconfigured: data_dir is not set.
    """
    if settings.data_dir is None:
        raise Misconfigured("data_dir is not set", "--data-dir /data/… or CDC_ARCHIVER_DATA_DIR")
    return Archive(settings.data_dir, settings.min_free, staging_dir=settings.staging_dir, state_dir=settings.state_dir)


def require_directory(data_dir: Path | None) -> None:
    """Checks what can be checked without a database: that data_dir exists and can be read.

    Raises:
        Misconfigured: data_dir is not set.
        ArchiveUnavailable: data_dir does not exist, or cannot be read.
    """
    if data_dir is None:
        raise Misconfigured("data_dir is not set", "--data-dir /data/… or CDC_ARCHIVER_DATA_DIR")
    try:
        os.listdir(data_dir)
    except OSError as error:
        raise ArchiveUnavailable(
            Reason.DESTINATION_MISSING, f"data_dir {data_dir} cannot be read: {error.strerror}", _mount(data_dir)
        ) from error


def require_mounted(context: CommandContext) -> bool:
    """Checks that the archive is mounted, and is the one that the database knows.

    Returns:
        Whether the archive has a marker; the first run makes it.

    Raises:
        Misconfigured: data_dir is not set.
        ArchiveUnavailable: data_dir does not exist, or is a bare mount point, or another archive.
    """
    require_directory(context.settings.data_dir)
    archive = archive_of(context.settings)
    with context.database.connect() as connection:
        archive.expect(
            known_archive(connection, context.files.name, context.settings.targets, context.settings.data_dir)
        )
    try:
        marked = archive.recognise() is not None or archive.has_former_marker()
    except DestinationUnavailable as error:
        raise ArchiveUnavailable(error.reason, error.message, error.hint) from error
    if not marked and not os.listdir(archive.data_dir):
        raise ArchiveUnavailable(
            Reason.DESTINATION_MISSING, f"data_dir {archive.data_dir} is empty", _mount(archive.data_dir)
        )
    return marked


def is_still_mounted(settings: Settings) -> bool:
    """Whether an archive that had a marker and files has them now, without a question to the database."""
    archive = archive_of(settings)
    if not os.listdir(archive.data_dir):
        return False
    try:
        return archive.recognise() is not None or archive.has_former_marker()
    except DestinationUnavailable:
        return False


def _mount(data_dir: Path) -> str:
    return f"mount {shlex.quote(str(data_dir))}"
