"""An account for a uid that has none: a container may run under any uid, and OpenSSH refuses one without a passwd entry."""

from __future__ import annotations

import ctypes
import os
import pwd
from collections.abc import Mapping
from pathlib import Path
from typing import Final

_WRAPPER: Final = "libnss_wrapper.so"
_PASSWD: Final = Path("/etc/passwd")
_GROUP: Final = "/etc/group"


def variables_of_a_lent_one(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables with which this process, started anew, and its children find an account for their uid.

    The entry is in a file in memory, so that nothing is left behind and a read-only file system will do. Its home directory is
    ``HOME``, its name ``USER``.

    Returns:
        Nothing where there is an account already, or no libnss_wrapper to make one believe in it.
    """
    uid = os.getuid()
    if _has_account(uid) or "NSS_WRAPPER_PASSWD" in environment:
        return {}
    try:
        ctypes.CDLL(_WRAPPER)
    except OSError:
        return {}
    memory = os.memfd_create("passwd", 0)  # no MFD_CLOEXEC: it outlives the exec
    known = _PASSWD.read_text() if _PASSWD.exists() else ""
    os.write(memory, f"{known.rstrip()}\n{entry(uid, os.getgid(), environment)}\n".lstrip().encode())
    preloaded = environment.get("LD_PRELOAD", "")
    return {
        "LD_PRELOAD": f"{_WRAPPER}:{preloaded}".rstrip(":"),
        "NSS_WRAPPER_PASSWD": f"/proc/{os.getpid()}/fd/{memory}",
        "NSS_WRAPPER_GROUP": _GROUP,
    }


def entry(uid: int, gid: int, environment: Mapping[str, str]) -> str:
    """A line of passwd(5)."""
    home, name = environment.get("HOME", ""), environment.get("USER", "")
    home = home if home.startswith("/") and not set(home) & set(":\n") else "/"
    name = name if name and not set(name) & set(":\n") else "archiver"
    return f"{name}:x:{uid}:{gid}::{home}:/bin/sh"


def _has_account(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True
