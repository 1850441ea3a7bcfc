"""Statuses of a service that nobody runs, for those who look at them."""

from __future__ import annotations

from datetime import UTC, datetime

from cdc_archiver.database.files_table import Census
from cdc_archiver.dispatch.queues import SourceState
from cdc_archiver.observe.service_status import HeldByOther, ServiceState, ServiceStatus, SourceStatus

NOON = datetime(2026, 5, 15, 12, tzinfo=UTC)
UP = SourceState("srv", True, None, "", 0.0, 0, 0)
DOWN = SourceState("srv", False, "host_unreachable", "Connection refused", 9.0, 0, 0)


def status(
    *sources: SourceState,
    quarantined: int = 0,
    here: int = 0,
    archived: int = 0,
    elsewhere: tuple[HeldByOther, ...] = (),
) -> ServiceStatus:
    files = Census(7, quarantined, 1, 2, None)
    return ServiceStatus(
        state=ServiceState.STREAMING,
        why="",
        ready=True,
        healthy=True,
        started=NOON,
        database="db:3306/files",
        table="pysmurf_files",
        history="kept",
        stream=None,
        sources=tuple(SourceStatus(each, ("target",), "host", files, quarantined=here) for each in sources),
        elsewhere=elsewhere,
        destination=None,
        last_sweep=None,
        archived=archived,
    )
