"""``python crashing_service.py STEP run …``: the service, which kills itself (SIGKILL) when it first reaches a step.

The steps are those of a file's copy, in order. Nothing after the step happens, not even a clean-up.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, NoReturn

from cdc_archiver import cli
from cdc_archiver.database.files_table import FilesTable
from cdc_archiver.database.history import History
from cdc_archiver.database.recorder import Recorder
from cdc_archiver.dispatch.dispatcher import Dispatcher
from cdc_archiver.model import Origin
from cdc_archiver.service.supervisor import Supervisor
from cdc_archiver.transfer import disk_sync, placement
from cdc_archiver.transfer.placement import Placer
from cdc_archiver.transfer.rsync import RsyncRun

_STAGED_BYTES: Final = 100_000
_LIMIT: Final = 30.0


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60.0)
    raise AssertionError("it survived SIGKILL")


def before(owner: Any, name: str, when: Callable[..., object] = lambda *_, **__: True) -> None:
    """Dies instead of a call."""
    original = getattr(owner, name)

    def call(*arguments: Any, **named: Any) -> Any:
        if when(*arguments, **named):
            die()
        return original(*arguments, **named)

    setattr(owner, name, call)


def after(owner: Any, name: str, when: Callable[[Any], object] = lambda result: True) -> None:
    """Dies when a call has returned, before the caller gets the result."""
    original = getattr(owner, name)

    def call(*arguments: Any, **named: Any) -> Any:
        result = original(*arguments, **named)
        if when(result):
            die()
        return result

    setattr(owner, name, call)


def in_mid_transfer() -> None:
    """Dies when rsync has transferred a part of a large file."""
    original = RsyncRun._start

    def start(self: RsyncRun, *arguments: Any) -> Any:
        original(self, *arguments)
        until = time.monotonic() + _LIMIT
        while time.monotonic() < until and staged_bytes(self._staging) < _STAGED_BYTES:
            time.sleep(0.005)
        die()

    RsyncRun._start = start  # type: ignore[method-assign, assignment]


def staged_bytes(directory: os.PathLike[str]) -> int:
    total = 0
    for parent, _, names in os.walk(directory):
        for name in names:
            try:
                total += os.lstat(os.path.join(parent, name)).st_size
            except FileNotFoundError:  # rsync has renamed it meanwhile
                continue
    return total


def any_row_changed(written: Any) -> bool:
    return bool(written.changed)


STEPS: Final[Mapping[str, Callable[[], None]]] = {
    "event": lambda: before(Dispatcher, "offer", lambda self, ids, origin, **_: origin is Origin.STREAM and list(ids)),
    "row-read": lambda: before(Dispatcher, "enqueue"),
    "rsync-started": lambda: after(RsyncRun, "_start"),
    "in-mid-transfer": in_mid_transfer,
    "transferred": lambda: before(Placer, "verify"),
    "hashed": lambda: after(Placer, "verify"),
    "staging-synced": lambda: after(disk_sync, "sync_files"),
    "linked": lambda: after(placement, "_give_name"),
    "directories-synced": lambda: after(disk_sync, "sync_directories"),
    "placed": lambda: before(Recorder, "put"),
    "row-written": lambda: after(FilesTable, "mark_copied", any_row_changed),
    "history-written": lambda: after(History, "write"),
    "committed": lambda: after(Recorder, "_write"),
    "charge-written": lambda: after(FilesTable, "count_failed_attempt", any_row_changed),
}
"""Makes the service die at each step."""


def main() -> None:
    step = sys.argv.pop(1)
    # The preflight places trial files of its own.
    Supervisor._preflight = lambda self: None  # type: ignore[method-assign]
    STEPS[step]()
    cli.main()


if __name__ == "__main__":
    main()
