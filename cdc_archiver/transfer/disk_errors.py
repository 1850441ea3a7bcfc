"""What an error of the archive's disk means: for one file, or for all."""

from __future__ import annotations

import errno
import shlex
from collections.abc import Iterator
from contextlib import contextmanager

from cdc_archiver.errors import DestinationUnavailable, LayoutRefused
from cdc_archiver.model import Reason


def placement_failure(
    final: str, error: OSError, *, other_disk: str | None = None
) -> LayoutRefused | DestinationUnavailable:
    """The failure that an error at one final path means; raises the error where it concerns data_dir's whole disk.

    Args:
        other_disk: the directory below data_dir that has a disk of its own, if the path lies in one: its errors stop no other file.
    """
    match error.errno:
        case errno.ENAMETOOLONG:
            return LayoutRefused(Reason.BAD_NAME, f"{final}: {error.strerror}")
        case errno.ENOSPC | errno.EDQUOT | errno.EROFS if other_disk is None:
            raise error
        case _:
            failure = DestinationUnavailable(
                Reason.PLACE_UNUSABLE,
                f"the file cannot be placed: {error}",
                f"check the owner of each directory on its path, and remove what is in the way: namei -l {shlex.quote(final)}",
            )
            failure.__cause__ = error
            return failure


@contextmanager
def os_errors_as_unavailable() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _destination_unavailable(error) from error


def _destination_unavailable(error: OSError) -> DestinationUnavailable:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return DestinationUnavailable(
        Reason.NO_SPACE if full else Reason.DESTINATION_UNWRITABLE,
        f"the archive's disk: {error}",
        "free space on that disk" if full else "check that the disk is mounted, writable for this user, and healthy",
    )
