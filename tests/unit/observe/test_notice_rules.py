"""Which notices follow from successive statuses, and how many of them are passed on."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from service_statuses import DOWN, NOON, UP, status

from cdc_archiver.observe.notice_rules import (
    A_MINUTE,
    Notice,
    NoticeLimiter,
    StatusWatcher,
    is_serving,
    notice_of_timecode,
)
from cdc_archiver.observe.service_status import HeldByOther, ServiceState
from cdc_archiver.timecodes.status_types import NoticeKind, TimecodeNotice


@pytest.fixture
def watcher() -> StatusWatcher:
    return StatusWatcher(notify_after=600.0)


def kinds(found: list[Notice]) -> list[str]:
    return [notice.kind for notice in found]


def test_an_outage_is_told_once_after_the_time_and_its_end_once(watcher: StatusWatcher) -> None:
    assert watcher.look(status(DOWN), NOON, 0.0) == []
    assert watcher.look(status(DOWN), NOON, 599.0) == []
    (down,) = watcher.look(status(DOWN), NOON, 601.0)
    assert down.text == "the source srv has been down for 10 min: host_unreachable: Connection refused"
    assert (down.kind, down.more) == (
        "source_down",
        {"source": "srv", "seconds": 601, "reason": "host_unreachable"},
    )
    assert watcher.look(status(DOWN), NOON, 5000.0) == []
    # While the database is away, the status has no sources: that is no end.
    assert watcher.look(status(), NOON, 6000.0) == []
    assert watcher.look(status(DOWN), NOON, 6500.0) == []
    (up,) = watcher.look(status(UP), NOON, 7300.0)
    assert (up.kind, up.text) == ("source_up", "the source srv is up again, after 2 h")
    assert watcher.look(status(UP), NOON, 7400.0) == []


def test_an_outage_is_not_judged_by_what_was_known_before_the_database_went_away(watcher: StatusWatcher) -> None:
    watcher.look(status(DOWN), NOON, 0.0)
    assert watcher.look(replace(status(DOWN), as_of=NOON), NOON, 700.0) == []
    assert kinds(watcher.look(status(DOWN), NOON, 701.0)) == ["source_down"]


def test_a_short_outage_is_no_news_and_two_do_not_add_up(watcher: StatusWatcher) -> None:
    for now, state in ((0.0, DOWN), (500.0, UP), (510.0, DOWN), (1000.0, UP)):
        assert watcher.look(status(state), NOON, now) == []


def test_the_outage_of_a_source_that_another_holds_is_the_others_to_tell(watcher: StatusWatcher) -> None:
    watcher.look(status(DOWN), NOON, 0.0)
    watcher.look(status(elsewhere=(HeldByOther("srv", "storage2"),)), NOON, 300.0)
    assert watcher.look(status(DOWN), NOON, 700.0) == []


def test_files_that_this_service_quarantines_are_told_and_those_of_before_are_not(watcher: StatusWatcher) -> None:
    assert watcher.look(status(UP, quarantined=3), NOON, 5.0) == []
    (notice,) = watcher.look(status(UP, quarantined=5, here=2), NOON, 10.0)
    assert notice.text == "2 files of srv quarantined; fix: cdc-archiver list --state quarantined"
    assert notice.more == {"source": "srv", "files": 2, "quarantined": 5}
    assert watcher.look(status(UP, quarantined=0, here=2), NOON, 15.0) == []
    # After a retry that helps nothing they are news again.
    assert kinds(watcher.look(status(UP, quarantined=1, here=3), NOON, 20.0)) == ["quarantined"]


def test_each_day_has_one_summary(watcher: StatusWatcher) -> None:
    assert watcher.look(status(UP, archived=5), NOON, 0.0) == []
    (first,) = watcher.look(status(UP, archived=9), NOON + timedelta(hours=12), 1.0)
    assert first.text == (
        "streaming; 9 files archived since the last summary or start; 7 pending, 0 quarantined, 1 refused, 2 ignored"
    )
    assert watcher.look(status(UP, archived=10), NOON + timedelta(hours=13), 2.0) == []
    (second,) = watcher.look(status(DOWN, archived=10), NOON + timedelta(days=2), 3.0)
    assert (second.kind, second.more["archived"], second.more["sources_down"]) == ("daily", 1, ["srv"])
    # A clock that is set back gives no second one.
    assert watcher.look(status(DOWN), NOON, 4.0) == []


def test_a_service_that_starts_is_no_news() -> None:
    assert is_serving(status(UP))
    assert is_serving(replace(status(UP), state=ServiceState.NO_DATABASE))
    assert not is_serving(replace(status(UP), state=ServiceState.STOPPING))


def test_ten_of_a_kind_in_any_minute_and_the_rest_in_one_summary() -> None:
    limiter = NoticeLimiter()
    assert [limiter.admits("late_file", now / 10) for now in range(A_MINUTE + 5)] == [True] * A_MINUTE + [False] * 5
    assert limiter.admits("complete", 1.0), "another kind has a limit of its own"
    assert limiter.summary(30.0) is None
    # A minute has passed for the first of them: the new one still belongs to the summary, and is not told ahead of it.
    assert not limiter.admits("late_file", 60.5)
    summary = limiter.summary(61.5)
    assert summary is not None
    assert (summary.kind, summary.more) == ("summary", {"notices": {"late_file": 6}})
    assert limiter.summary(200.0) is None
    assert limiter.admits("late_file", 200.0)


def test_what_is_told_of_a_timecode_has_the_keys_of_its_kind() -> None:
    late = TimecodeNotice(NoticeKind.LATE_FILE, "srv", "monitor", 15800, 2, 7, 70, "/a/x.npy", 4, "it came late")
    told = notice_of_timecode(late)
    assert (told.kind, told.text) == ("late_file", "it came late")
    assert told.more == {
        "source": "srv",
        "instance_id": "monitor",
        "timecode": 15800,
        "generation": 2,
        "files": 7,
        "bytes": 70,
        "path": "/a/x.npy",
        "file_id": 4,
    }
    assert "path" not in notice_of_timecode(replace(late, kind=NoticeKind.COMPLETE)).more
