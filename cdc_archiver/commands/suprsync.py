"""Reads the SQLite file of socs' monitor for suprsync: the files that a site registers when it moves from suprsync."""

from __future__ import annotations

import posixpath
import re
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cdc_archiver.errors import Misconfigured
from cdc_archiver.registrar.messages import TIMECODE_SECONDS

_TABLE: Final = "supersync_v0"
_REMOTE_PATH: Final = re.compile(
    r"(?P<timecode>\d{5})/(?P<pub_id>[^/]+)/(?P<time>\d+|None)_(?P<action>[^/]+)/(?P<place>plots|outputs)/[^/]+"
)


@dataclass(frozen=True, slots=True)
class SuprsyncFile:
    """A file of the archive `smurf`, as suprsync knows it.

    Attributes:
        timestamp: seconds since the epoch, within the timecode that suprsync chose.
        action_timestamp: seconds since the epoch.
        md5: None where it is not one.
        unusable: why no row can be made of it; empty where one can.
    """

    path: str
    timestamp: int = 0
    pub_id: str = ""
    action: str = ""
    action_timestamp: int = 0
    plot: bool = False
    md5: bytes | None = None
    unusable: str = ""


def read_suprsync(path: Path, *, with_copied: bool) -> Iterator[SuprsyncFile]:
    """The files of the archive `smurf`, oldest first; time streams are left to suprsync.

    Args:
        with_copied: also those that suprsync has copied.

    Raises:
        Misconfigured: it is not such a file.
    """
    statement = (
        f"SELECT local_path, local_md5sum, remote_path, timestamp FROM {_TABLE} WHERE archive_name = 'smurf' "
        "AND NOT COALESCE(ignore, 0)" + ("" if with_copied else " AND copied IS NULL") + " ORDER BY id"
    )
    try:
        # Another process may write it meanwhile: never `immutable`.
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=10.0)
        try:
            rows = connection.execute(statement).fetchall()
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise Misconfigured(
            f"{path} is not the database of socs' monitor for suprsync: {error}",
            "--from-suprsync FILE  # --db-path of that monitor; socs 0.6.4 has its format",
        ) from error
    for local_path, md5, remote_path, timestamp in rows:
        yield _file(str(local_path), str(md5 or ""), str(remote_path), float(timestamp))


def _file(local_path: str, md5: str, remote_path: str, timestamp: float) -> SuprsyncFile:
    found = _REMOTE_PATH.fullmatch(remote_path)
    if found is None:
        return SuprsyncFile(local_path, unusable=f"its path at suprsync's destination is {remote_path!r}")
    # suprsync has the time at which the file was entered; the timecode comes from the file's own.
    begin = int(found["timecode"]) * TIMECODE_SECONDS
    seconds = min(max(int(timestamp), begin), begin + TIMECODE_SECONDS - 1)
    # Outside of an action, the archiver's path has the time in the file's name, as the polling agent's had.
    in_name = re.match(r"(\d{1,10})(?=[_.]|$)", posixpath.basename(local_path))
    return SuprsyncFile(
        path=local_path,
        timestamp=seconds,
        pub_id=found["pub_id"],
        action=found["action"],
        action_timestamp=int(found["time"]) if found["time"] != "None" else int(in_name[1]) if in_name else seconds,
        plot=found["place"] == "plots",
        md5=bytes.fromhex(md5) if re.fullmatch(r"[0-9a-fA-F]{32}", md5) else None,
    )
