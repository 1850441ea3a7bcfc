"""What `notify_command` is told: which notices follow from successive statuses, and how many of them in a minute. Pure."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any, Final

from cdc_archiver.observe.service_status import ServiceState, ServiceStatus
from cdc_archiver.text import format_file_count, to_jsonable
from cdc_archiver.timecodes.status_types import NoticeKind, TimecodeNotice
from cdc_archiver.timespec import format_duration

A_MINUTE: Final = 10
"""Maximum number of notices of one kind in a minute; the rest are in one summary."""
_MINUTE: Final = 60.0


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that a person wants to hear of.

    Attributes:
        kind: the value of the JSON key of this name.
        text: one sentence for a person.
        more: further JSON keys.
    """

    kind: str
    text: str
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class _Outage:
    since: float
    told: bool = False


@dataclass(slots=True)
class StatusWatcher:
    """Compares each status with the one before it.

    Args:
        notify_after: seconds after which an outage is news.
    """

    notify_after: float
    _outages: dict[str, _Outage] = field(default_factory=dict)
    _quarantined: dict[str, int] = field(default_factory=dict)
    _today: date | None = None
    _before: dict[str, int] = field(default_factory=dict)

    def look(self, status: ServiceStatus, at: datetime, now: float) -> list[Notice]:
        """The notices that follow from a status.

        Args:
            at: the time of day; aware, UTC.
            now: seconds of a clock that is never set.
        """
        return [*self._outages_of(status, now), *self._quarantines(status), *self._daily(status, at)]

    def _outages_of(self, status: ServiceStatus, now: float) -> list[Notice]:
        if status.as_of is not None:
            return []  # nobody knows now
        seen = {source.state.name: "" if source.state.up else _why(source.state) for source in status.sources}
        for other in status.elsewhere:
            self._outages.pop(other.name, None)  # its holder tells of it
        found = []
        for name, why in seen.items():
            outage = self._outages.get(name)
            if not why:
                if outage is not None and outage.told:
                    lasted = now - outage.since
                    text = f"the source {name} is up again, after {format_duration(lasted)}"
                    found.append(Notice("source_up", text, {"source": name, "seconds": round(lasted)}))
                self._outages.pop(name, None)
                continue
            outage = self._outages.setdefault(name, _Outage(now))
            if not outage.told and now - outage.since >= self.notify_after:
                outage.told = True
                text = f"the source {name} has been down for {format_duration(now - outage.since)}: {why}"
                reason = next(each.state.reason for each in status.sources if each.state.name == name)
                more = {"source": name, "seconds": round(now - outage.since), "reason": reason}
                found.append(Notice("source_down", text, more))
        return found

    def _quarantines(self, status: ServiceStatus) -> list[Notice]:
        found = []
        for source in status.sources:
            name = source.state.name
            files = source.quarantined - self._quarantined.get(name, 0)
            self._quarantined[name] = source.quarantined
            if files > 0:
                total = source.files.quarantined if source.files is not None else None
                text = f"{format_file_count(files)} of {name} quarantined; fix: cdc-archiver list --state quarantined"
                found.append(Notice("quarantined", text, {"source": name, "files": files, "quarantined": total}))
        return found

    def _daily(self, status: ServiceStatus, at: datetime) -> list[Notice]:
        before, self._today = self._today, at.date()
        if before is None or before >= self._today:
            return []
        counts = {
            kind: sum(getattr(source.files, kind) for source in status.sources if source.files is not None)
            for kind in ("pending", "quarantined", "refused", "ignored")
        }
        archived = status.archived - self._before.get("archived", 0)
        self._before = {"archived": status.archived}
        down = [source.state.name for source in status.sources if not source.state.up]
        state = f"{status.state}: {status.why}" if status.why else str(status.state)
        known = (
            ", ".join(f"{number} {kind}" for kind, number in counts.items())
            if any(source.files for source in status.sources)
            else "files are not counted"
        )
        text = f"{state}; {format_file_count(archived)} archived since the last summary or start; {known}"
        more = {"state": str(status.state), "why": status.why, "archived": archived, **counts, "sources_down": down}
        return [Notice("daily", text, more)]


@dataclass(slots=True)
class NoticeLimiter:
    """Lets at most :data:`A_MINUTE` notices of a kind through in any minute, and sums up the rest."""

    _passed: dict[str, deque[float]] = field(default_factory=lambda: defaultdict(lambda: deque(maxlen=A_MINUTE)))
    _held_back: dict[str, tuple[float, int]] = field(default_factory=dict)

    def admits(self, kind: str, now: float) -> bool:
        """Whether a notice may be passed on; one that may not is counted for the summary.

        Args:
            now: seconds of a clock that is never set.
        """
        passed = self._passed[kind]
        if kind not in self._held_back and (len(passed) < A_MINUTE or now - passed[0] >= _MINUTE):
            passed.append(now)
            return True
        since, count = self._held_back.get(kind, (now, 0))
        self._held_back[kind] = (since, count + 1)
        return False

    def summary(self, now: float) -> Notice | None:
        """One notice about those that were held back, a minute after the first of them; None before."""
        if not any(now - since >= _MINUTE for since, _ in self._held_back.values()):
            return None
        counts = {kind: count for kind, (_, count) in sorted(self._held_back.items())}
        self._held_back.clear()
        more = ", ".join(f"{count} {kind}" for kind, count in counts.items())
        return Notice("summary", f"further notices in the last minute: {more}", {"notices": counts})


def notice_of_timecode(notice: TimecodeNotice) -> Notice:
    """What the program is told of a timecode."""
    more = {key: value for key, value in to_jsonable(notice).items() if key not in ("kind", "detail")}
    if notice.kind is not NoticeKind.LATE_FILE:
        del more["path"], more["file_id"]
    return Notice(notice.kind.value, notice.detail, more)


def is_serving(status: ServiceStatus) -> bool:
    """Whether a status is worth a comparison: not that of a service which starts or stops."""
    return status.state not in (ServiceState.STARTING, ServiceState.STOPPING, ServiceState.FAILED)


def _why(state: Any) -> str:
    return f"{state.reason}: {state.detail}"
