"""A file system of a few megabytes that only one program sees: full, read-only or not mounted on command.

It lives in the mount namespace of that program and ends with it: nothing is ever left mounted. Root makes it directly; another
user makes it in a user namespace, where the system allows that.
"""

from __future__ import annotations

import functools
import os
import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

_ROOT = os.geteuid() == 0
UNSHARE = ("unshare", "--mount") if _ROOT else ("unshare", "--user", "--map-root-user", "--mount")
_ENTER = ("nsenter", "--mount") if _ROOT else ("nsenter", "--user", "--preserve-credentials", "--mount")
_LIMIT = 20.0


class SmallDisk:
    """A tmpfs with a directory that is mounted for one program.

    Args:
        mount_point: an empty directory; other programs see it empty.
        size: bytes that fit, as mount takes them (``8m``).
        used: bytes of them in use by others until :meth:`make_room`, as head takes them (``4M``).
        files: files that fit; directories take about ten.
        used_files: files of others until :meth:`make_room`.
    """

    def __init__(
        self, mount_point: Path, size: str = "8m", *, used: str = "0", files: int = 1000, used_files: int = 0
    ) -> None:
        require_mounts()
        self.mount_point = mount_point
        self._disk = mount_point.with_name(f"{mount_point.name}-disk")  # mounted for as long as the program lives
        self._disk.mkdir()
        self._options = f"size={size},nr_inodes={files}"
        self._used, self._used_files = used, used_files
        self._pid = 0

    def interpreter(self, command: Sequence[str]) -> list[str]:
        """Runs the command where the disk is mounted. The process becomes the command's."""
        disk = self._quoted(self._disk)
        steps = [
            f"mount -t tmpfs -o {self._options} none {disk}",
            f"mkdir {disk}/archive {disk}/others",
            f"head -c {self._used} /dev/zero >{disk}/others/0",
            f"seq {self._used_files} | (cd {disk}/others && xargs --no-run-if-empty touch)",
            self._mount,
            'exec "$@"',
        ]
        return [*UNSHARE, "sh", "-c", " && ".join(steps), "sh", *command]

    def belongs_to(self, pid: int) -> None:
        """Tells the process id of the running program."""
        self._pid = pid

    @property
    def root(self) -> Path:
        """The program's root directory."""
        return Path(f"/proc/{self._pid}/root")

    def make_room(self) -> None:
        """Deletes the files of others."""
        self._do(f"rm -r {self._quoted(self._disk)}/others")

    def make_read_only(self) -> None:
        """Makes the disk read-only, as a file system does after an error."""
        self._do(f"mount -o remount,bind,ro {self._quoted(self.mount_point)}")

    def make_writable(self) -> None:
        """Makes the disk writable again."""
        self._do(f"mount -o remount,bind,rw {self._quoted(self.mount_point)}")

    def unmount(self) -> None:
        """The program then sees the empty mount point."""
        self._do(f"umount --lazy {self._quoted(self.mount_point)}")

    def mount(self) -> None:
        """Mounts it again, with its files."""
        self._do(self._mount)

    @property
    def _mount(self) -> str:
        return f"mount --bind {self._quoted(self._disk)}/archive {self._quoted(self.mount_point)}"

    def _quoted(self, path: Path) -> str:
        return shlex.quote(str(path))

    def _do(self, script: str) -> None:
        subprocess.run([*_ENTER, f"--target={self._pid}", "sh", "-c", script], check=True, timeout=_LIMIT)


def require_mounts() -> None:
    """Skips the test where nothing can be mounted, as in a container that forbids it even to root."""
    if why := _why_no_mounts():
        pytest.skip(f"no file system can be mounted here, not even in a namespace of our own: {why}")


@functools.cache
def _why_no_mounts() -> str:
    with tempfile.TemporaryDirectory() as directory:
        script = f"mount -t tmpfs -o size=1m none {shlex.quote(directory)}"
        try:
            done = subprocess.run(
                [*UNSHARE, "sh", "-c", script], check=False, capture_output=True, text=True, timeout=_LIMIT
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
    return "" if done.returncode == 0 else done.stderr.strip() or f"status {done.returncode}"
