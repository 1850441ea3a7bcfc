"""Rows."""

from __future__ import annotations

import contextlib
import os
import random
from datetime import UTC, datetime, timedelta

from records import record

from cdc_archiver.errors import LayoutRefused
from cdc_archiver.model import FileRecord, Scope
from cdc_archiver.transfer.layout import archived_path, require_fit, source_entry
from fuzz.corpus import a_text


def make_row(rng: random.Random) -> tuple[FileRecord, str]:
    seconds = rng.choice((0, 1589517264, rng.randrange(-(2**35), 2**37)))
    row = record(
        path=a_text(rng) if rng.random() < 0.3 else f"/{a_text(rng)}/{a_text(rng)}",
        timestamp=None if rng.random() < 0.05 else datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds),
        action=rng.choice((None, a_text(rng), "take_iv")),
        action_timestamp=rng.choice((None, rng.randrange(-(2**31), 2**31), 10**300)),
        plot=rng.random() < 0.5,
        pub_id=rng.choice((None, a_text(rng), "crate1slot2")),
    )
    return row, rng.choice(("/", "/data", "/data/../x", "/a b/"))


def check_row(given: tuple[FileRecord, str]) -> None:
    row, root = given
    with contextlib.suppress(LayoutRefused):
        entry = source_entry(row, root)
        assert not entry.startswith("/")
        assert "\0" not in entry
        assert not {"", ".", ".."} & set(entry.split("/"))
    place, refusal = "", None
    try:
        place = str(archived_path(row))
        require_fit(f"/archive/{place}", 260)
    except LayoutRefused as error:
        refusal = error
    if refusal is not None:
        assert refusal.reason.scope is Scope.ROW
        assert refusal.message
        return
    parts = place.split("/")
    assert len(parts) == 5, "not in its directory"
    assert not {"", ".", ".."} & set(parts)
    assert "\0" not in place
    assert os.path.normpath(f"/archive/{place}") == f"/archive/{place}"
    assert all(len(os.fsencode(part)) <= 255 for part in parts)
    assert not parts[0].startswith("."), "among the archiver's own directories"
