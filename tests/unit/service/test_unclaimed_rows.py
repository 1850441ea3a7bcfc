"""Which rows of others count as unclaimed: the pure rule."""

from __future__ import annotations

from cdc_archiver.service.table_watch import UNHELD, UnclaimedRows


def test_rows_are_unclaimed_once_nobody_has_held_their_lock_for_ten_minutes() -> None:
    rows = UnclaimedRows()
    pending = {"typo": 3, "other": 5}
    assert rows.update(pending, {"other"}, 0.0) == {}
    assert rows.update(pending, set(), 60.0) == {}
    assert rows.update(pending, set(), UNHELD) == {"typo": 3}
    assert rows.update({"other": 5, "typo": 4}, set(), UNHELD + 60.0) == {"other": 5, "typo": 4}
    # A moment with a holder, or without pending rows, starts anew.
    assert rows.update(pending, {"typo"}, UNHELD + 120.0) == {"other": 5}
    assert rows.update(pending, set(), UNHELD + 180.0) == {"other": 5}
    assert rows.update({}, set(), UNHELD + 240.0) == {}
    assert rows.update({"other": 5}, set(), 2 * UNHELD + 240.0) == {}
