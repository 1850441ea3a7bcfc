"""An rsync that misbehaves on command, on either side, for faults that the real one does not show on request."""

from __future__ import annotations

import os
import shlex
import shutil
from pathlib import Path

_SCRIPT = """\
#!/bin/sh
# The real rsync, unless told to misbehave.
real={real}
script={script}
case " $* " in *" --version "*) exec "$real" "$@" ;; esac
[ -e "$script" ] && . "$script"
exec "$real" "$@"
"""

DROPS_CAPABILITIES = 'exec setpriv --bounding-set=-dac_override,-dac_read_search "$real" "$@"'
"""For the sending side: root without permission to read everything, like the account on a readout server."""


class FakeRsync:
    """Precedes the real rsync on a PATH and runs the real one, until it is told to misbehave.

    The misbehaviour is a shell script, run with the real rsync as ``$real`` and the arguments as ``$@``; where it does not exit,
    the real one follows. It may change at any time; each run reads it again.

    Args:
        directory: its own; to be put first on a PATH.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir()
        self._misbehaviour = directory / "misbehaviour.sh"
        real = shutil.which("rsync")
        assert real is not None, "rsync is not installed"
        program = directory / "rsync"
        program.write_text(_SCRIPT.format(real=shlex.quote(real), script=shlex.quote(str(self._misbehaviour))))
        program.chmod(0o755)

    def misbehave(self, script: str) -> None:
        """Runs this script from the next run on."""
        new = self._misbehaviour.with_suffix(".new")
        new.write_text(script + "\n")
        new.rename(self._misbehaviour)  # a run that starts now reads either script whole

    def behave(self) -> None:
        """Is the real rsync from the next run on."""
        self._misbehaviour.unlink(missing_ok=True)

    def before(self, path: str) -> str:
        """A PATH that finds it first."""
        return os.pathsep.join((str(self.directory), path))


def ends_early(files: int, status: int, message: str) -> str:
    """Transfers the first wanted files and then fails, on the receiving side."""
    return f'head -z -n {files} | "$real" "$@"\nprintf "%s\\n" {shlex.quote(message)} >&2\nexit {status}'


def leaves_out(name: str) -> str:
    """Leaves out each file whose name contains this, with no line, no error and status 0, unless it is the only one."""
    return (
        'list=$(mktemp) && cat >"$list"\n'
        f'if [ $(tr -dc \'\\000\' <"$list" | wc -c) -gt 1 ]; then grep -zvF {shlex.quote(name)} <"$list" '
        '| "$real" "$@"; else "$real" "$@" <"$list"; fi\n'
        'status=$?; rm -f "$list"; exit $status'
    )


def corrupts(name: str) -> str:
    """Changes the first byte of the file of this name after it has arrived and before its line is printed."""
    return (
        'said=$("$real" "$@"); status=$?\n'
        "for staging; do :; done\n"
        f'find "$staging" -type f -name {shlex.quote(name)} '
        """-exec sh -c 'printf "~" | dd of="$1" bs=1 conv=notrunc status=none' sh {} \\;\n"""
        "printf '%s\\n' \"$said\"; exit $status"
    )
