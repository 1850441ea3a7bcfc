"""A signal is heeded whichever thread the kernel hands it to, and at whatever moment."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from private_site import PrivateSite, new_private_site
from services import Program

from cdc_archiver.sandbox import MariaDb, SshServer


@pytest.fixture
def stage(mariadb: MariaDb, ssh_server: SshServer, tmp_path: Path) -> Iterator[PrivateSite]:
    with new_private_site(mariadb, ssh_server, tmp_path) as built:
        yield built


def test_a_stop_that_does_not_interrupt_the_main_thread_stops_all_the_same(stage: PrivateSite) -> None:
    # Python's handlers run in the main thread, at its next bytecode. A signal that comes on that thread's way into a wait, or is
    # handed to another thread, interrupts no wait: one without an end would go on until something else happens.
    with stage.program() as program:
        send_to_another_thread(program, signal.SIGTERM)
        assert program.wait() == 0


def send_to_another_thread(program: Program, number: signal.Signals) -> None:
    threads = [int(entry.name) for entry in Path(f"/proc/{program.pid}/task").iterdir()]
    other = max(thread for thread in threads if thread != program.pid)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.tgkill(program.pid, other, int(number)) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
