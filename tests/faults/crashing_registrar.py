"""``python crashing_registrar.py STEP monitor …``: the registrar, which kills itself (SIGKILL) when it first reaches a step.

The steps are those of a file's registration, in order. Nothing after the step happens, not even a clean-up.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, Final

from crashing_service import after, before

from cdc_archiver import cli
from cdc_archiver.registrar.registered_rows import RegisteredRows
from cdc_archiver.registrar.spool import Spool
from cdc_archiver.registrar.whole_file import FileLooker, WholeFile


def registers(_spool: Spool, changes: Any, _now: float) -> bool:
    return any(change.get("state") == "registered" for change in changes)


STEPS: Final[Mapping[str, Callable[[], None]]] = {
    "stored": lambda: after(Spool, "store", lambda _: True),
    "looked": lambda: after(FileLooker, "look", lambda found: isinstance(found, WholeFile)),
    "row-written": lambda: before(RegisteredRows, "_insert_receipts"),
    "receipt-written": lambda: after(RegisteredRows, "_insert_receipts"),
    "committed": lambda: after(RegisteredRows, "write"),
    "spool-not-written": lambda: before(Spool, "decide", registers),
    "looks-again": lambda: before(Spool, "announce_again"),
}
"""Makes the registrar die at each step."""


def main() -> None:
    STEPS[sys.argv.pop(1)]()
    if "--look-again" in sys.argv:
        from cdc_archiver.registrar import registration

        sys.argv.remove("--look-again")
        registration.LOOK_AGAIN = 0.1  # type: ignore[misc]
    cli.main()


if __name__ == "__main__":
    main()
