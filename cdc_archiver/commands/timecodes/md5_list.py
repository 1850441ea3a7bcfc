"""The archived files of a timecode as a list for ``md5sum -c``. Pure, except for reading the rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from cdc_archiver.commands.context import CommandContext
from cdc_archiver.database.search import Criteria, RowState, walk
from cdc_archiver.transfer.layout import READERS_NAME


def md5_lines(context: CommandContext, data_dir: Path, timecode: int, targets: Sequence[str]) -> list[str]:
    """The lines, sorted by path. Reads the whole table of files.

    Args:
        data_dir: as the rows name it; the paths are relative to it.
        targets: only their files; empty for all.
    """
    criteria = Criteria(
        paths=(f"{data_dir}/{timecode}/*",), states=frozenset({RowState.ARCHIVED}), targets=tuple(targets)
    )
    rows = walk(context.database, context.files, criteria, newest_first=False)
    return format_lines(((row.record.path.removeprefix(f"{data_dir}/"), row.record.md5sum) for row in rows), timecode)


def format_lines(files: Iterable[tuple[str, bytes]], timecode: int) -> list[str]:
    """One line for each file, as md5sum writes it: sorted, none twice, and without what readers keep there for themselves.

    Args:
        files: path below data_dir, and md5; a file that two rows name, once.
    """
    of_readers = f"{timecode}/{READERS_NAME}/"
    wanted = {(path, md5) for path, md5 in files if not path.startswith(of_readers)}
    return [_line(path, md5) for path, md5 in sorted(wanted)]


def _line(path: str, md5: bytes) -> str:
    escaped = path.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    return f"{'' if escaped == path else chr(92)}{md5.hex()}  {escaped}"
