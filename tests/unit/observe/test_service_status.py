"""What the status keeps while the database is away, and which timecodes a short list has."""

from __future__ import annotations

from dataclasses import replace

import pytest
from service_statuses import DOWN, NOON, UP, status

from cdc_archiver.database.timecodes_table import TimecodeState
from cdc_archiver.observe.service_status import KnownTimecodes, ServiceState, with_last_known
from cdc_archiver.timecodes.status_types import TimecodeStatus


@pytest.mark.parametrize("state", [ServiceState.NO_DATABASE, ServiceState.STARTING, ServiceState.STOPPING])
def test_a_service_that_lost_its_database_says_what_it_knew_and_when(state: ServiceState) -> None:
    known = with_last_known(replace(status(), state=state), status(UP, DOWN), NOON)
    assert [source.state for source in known.sources] == [UP, DOWN]
    assert (known.state, known.as_of) == (state, NOON)


def test_what_is_known_now_and_what_another_one_holds_is_not_replaced() -> None:
    assert with_last_known(status(UP), status(DOWN), NOON) == status(UP)
    standby = replace(status(), state=ServiceState.STANDBY)
    assert with_last_known(standby, status(DOWN), NOON) == standby
    starting = replace(status(), state=ServiceState.STARTING)
    assert with_last_known(starting, None, None) == starting


def test_a_short_list_has_what_somebody_has_to_look_at_and_the_newest_of_each_instance_id() -> None:
    def timecode(number: int, name: str = "a", state: TimecodeState = TimecodeState.COMPLETE) -> TimecodeStatus:
        return TimecodeStatus("srv", name, number, state)

    known = KnownTimecodes(
        timecodes=(
            timecode(15800, state=TimecodeState.BLOCKED),
            timecode(15801),
            timecode(15802),
            timecode(15803, state=TimecodeState.OPEN),
            timecode(15790, "b", TimecodeState.REOPENED),
            timecode(15801, "b"),
        )
    )
    listed = [(each.timecode, each.instance_id) for each in known.newest(2).timecodes]
    assert listed == [(15790, "b"), (15800, "a"), (15803, "a"), (15802, "a"), (15801, "b")]
    assert [each.timecode for each in known.newest(0).timecodes] == [15790, 15800]
