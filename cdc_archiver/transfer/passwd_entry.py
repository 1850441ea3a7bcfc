"""Provides a passwd entry for a uid that has none: a container may run under any uid, and OpenSSH refuses one without an entry."""

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


def passwd_entry_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Environment variables that give this process, once restarted, and its children a passwd entry for their uid.

    The entry is in a file in memory: it leaves nothing behind and works on a read-only file system. Its home directory is
    ``HOME``, its name ``USER``.

    Returns:
        Empty where the uid has an entry, or libnss_wrapper is not installed.
    """
    uid = os.getuid()
    if _has_account(uid) or "NSS_WRAPPER_PASSWD" in environment:
        return {}
    try:
        ctypes.CDLL(_WRAPPER)
    except OSError:
        return {}
    passwd_file = os.memfd_create("passwd", 0)  # no MFD_CLOEXEC: it outlives the exec
    existing = _PASSWD.read_text() if _PASSWD.exists() else ""
    os.write(passwd_file, f"{existing.rstrip()}\n{passwd_entry(uid, os.getgid(), environment)}\n".lstrip().encode())
    preloaded = environment.get("LD_PRELOAD", "")
    return {
        "LD_PRELOAD": f"{_WRAPPER}:{preloaded}".rstrip(":"),
        "NSS_WRAPPER_PASSWD": f"/proc/{os.getpid()}/fd/{passwd_file}",
        "NSS_WRAPPER_GROUP": _GROUP,
    }


def passwd_entry(uid: int, gid: int, environment: Mapping[str, str]) -> str:
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
