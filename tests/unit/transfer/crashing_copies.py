"""``python crashing_copies.py DIRECTORY WAY``: durable copies that are killed at each of their system calls, then made again.

WAY is how the copy gets its name: unnamed, hidden or renamed. Prints the number of kills.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from cdc_archiver.settings.types import FileModes
from cdc_archiver.transfer.placement import Placed, Placer, Staged
from cdc_archiver.transfer.staging import Archive

CONTENT: Final = b"content of a file"
CALLS: Final = ("open", "mkdir", "write", "fchmod", "utime", "fsync", "link", "unlink", "rmdir", "close")
MODES: Final = FileModes(directories=0o755, files=0o644)


def refuse(way: str) -> None:
    """Takes from this process what file systems without it refuse."""
    real_open = os.open

    def without_unnamed(path: Any, flags: int, *rest: Any, **named: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "no unnamed files")
        return real_open(path, flags, *rest, **named)

    def without_links(*given: Any, **named: Any) -> None:
        raise OSError(errno.EPERM, "no links")

    if way != "unnamed":
        os.open = without_unnamed
    if way == "renamed":
        os.link = without_links


def kill_at(number: int) -> None:
    """Kills this process just before its n-th system call about files."""
    left = itertools.count(number, -1)

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def before(*given: Any, **named: Any) -> Any:
            if next(left) == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*given, **named)

        return before

    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))


def main() -> None:
    directory, way = Path(sys.argv[1]), sys.argv[2]
    refuse(way)
    archive = Archive(directory, 0)
    archive.prepare()
    staging = archive.staging_directory("srv", "small-0")
    final = directory / "15895/crate1/1_iv/outputs/iv.npy"
    file = Staged(str(staging / "a"), str(final), hashlib.md5(CONTENT).digest(), id=7)
    kills = 0
    for number in itertools.count():
        (staging / "a").write_bytes(CONTENT)
        if (child := os.fork()) == 0:
            kill_at(number)
            Placer(archive, MODES, owner="srv", links=False).place([file])
            os._exit(0)
        _, status = os.waitpid(child, 0)
        # The final path has nothing or all of the file, and nothing else lies there that a reader sees.
        seen = [path for path in directory.glob("[0-9]*/**/*") if path.is_file() and ".incoming" not in path.parts]
        assert seen in ([], [final]), (number, seen)
        assert not seen or final.read_bytes() == CONTENT, (number, final.read_bytes())
        # The next start removes what was left, and the file is placed once.
        placer = Placer(archive, MODES, owner="srv", links=False)
        placer.clear_copies()
        assert not list(directory.glob("[0-9]*/*/.incoming")), number
        (staging / "a").write_bytes(CONTENT)
        assert placer.place([file]) == [Placed(str(final), len(CONTENT), adopted=bool(seen))], number
        assert [path for path in directory.glob("[0-9]*/**/*") if path.is_file()] == [final], number
        assert not list(directory.glob("[0-9]*/*/.incoming")), number
        shutil.rmtree(directory / "15895")
        if status == 0:
            break
        kills += 1
    print(kills)


if __name__ == "__main__":
    main()
