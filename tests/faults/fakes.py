"""An rsync that misbehaves on command, on either side of the wire, for what the real one does not do when it is asked."""

from __future__ import annotations

import os
import shlex
import shutil
from pathlib import Path

_SCRIPT = """\
#!/bin/sh
# The real rsync, unless somebody has said otherwise.
real={real}
trouble={trouble}
case " $* " in *" --version "*) exec "$real" "$@" ;; esac
[ -e "$trouble" ] && . "$trouble"
exec "$real" "$@"
"""

DROPS_CAPABILITIES = 'exec setpriv --bounding-set=-dac_override,-dac_read_search "$real" "$@"'
"""For the sending side: root without its right to read everything, as the account on a readout server is."""


class FakeRsync:
    """Stands before the real rsync on a PATH and is the real one, until it is told to misbehave.

    What it is told is a piece of shell, run in its place with the real one as ``$real`` and the arguments as ``$@``; where it
    does not exit, the real one follows. It may be told anew at any time; each run looks again.

    Args:
        directory: its own; to be put first on a PATH.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir()
        self._trouble = directory / "trouble.sh"
        real = shutil.which("rsync")
        assert real is not None, "there is no rsync to stand before"
        program = directory / "rsync"
        program.write_text(_SCRIPT.format(real=shlex.quote(real), trouble=shlex.quote(str(self._trouble))))
        program.chmod(0o755)

    def misbehave(self, script: str) -> None:
        """From the next run on it does this."""
        new = self._trouble.with_suffix(".new")
        new.write_text(script + "\n")
        new.rename(self._trouble)  # a run that starts now reads the one or the other

    def behave(self) -> None:
        """From the next run on it is the real one."""
        self._trouble.unlink(missing_ok=True)

    def before(self, path: str) -> str:
        """A PATH where it is found first."""
        return os.pathsep.join((str(self.directory), path))


def ends_early(brings: int, status: int, words: str) -> str:
    """Brings some of what is wanted and then fails, on the side that receives."""
    return f'head -z -n {brings} | "$real" "$@"\nprintf "%s\\n" {shlex.quote(words)} >&2\nexit {status}'


def says_nothing_of(name: str) -> str:
    """Leaves out each file of which the name has this in it, with no line, no error and status 0, if it has company."""
    return (
        'list=$(mktemp) && cat >"$list"\n'
        f'if [ $(tr -dc \'\\000\' <"$list" | wc -c) -gt 1 ]; then grep -zvF {shlex.quote(name)} <"$list" '
        '| "$real" "$@"; else "$real" "$@" <"$list"; fi\n'
        'status=$?; rm -f "$list"; exit $status'
    )


def spoils(name: str) -> str:
    """Changes the first byte of a file, by its name, after it has arrived and before its line is printed."""
    return (
        'said=$("$real" "$@"); status=$?\n'
        "for staging; do :; done\n"
        f'find "$staging" -type f -name {shlex.quote(name)} '
        """-exec sh -c 'printf "~" | dd of="$1" bs=1 conv=notrunc status=none' sh {} \\;\n"""
        "printf '%s\\n' \"$said\"; exit $status"
    )
