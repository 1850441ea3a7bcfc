"""Where an archive's staging and marker are, by default: next to data_dir."""

from __future__ import annotations

from pathlib import Path

from cdc_archiver.transfer.archive_marker import MARKER
from cdc_archiver.transfer.staging_place import sibling_of, sibling_staging


def staging_of(data_dir: Path) -> Path:
    """The directory in which files arrive."""
    return sibling_staging(data_dir)


def marker_of(data_dir: Path) -> Path:
    """The archive marker."""
    return sibling_of(data_dir) / MARKER
