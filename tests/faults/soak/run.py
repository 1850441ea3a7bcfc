"""One soak: faults for some minutes, then peace, then the audit."""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from audit import Audit, Fate, Watcher, audit
from files_table import TABLE
from private_site import HISTORY
from publisher import Publisher

from cdc_archiver.model import REFUSED_FROM
from cdc_archiver.sandbox import Kind
from cdc_archiver.transfer.staging import INCOMING
from soak.lanes import ArchiveLane, ChildrenLane, DatabaseLane, Lane, ServiceLane, SourceLane
from soak.site import Site, new_site

_PEACE_SECONDS = 300.0
"""How long the service may stand still before what is pending is called lost."""


@dataclass(frozen=True)
class Plan:
    """What a soak does.

    Attributes:
        seconds: of faults.
        seed: of what comes in which order; when it hits, the machine decides as well.
        huge: bytes of the largest files; 0 for none.
        own_disk: whether the archive gets a file system that can be filled up, where this user may mount one.
        haste: how often faults come, 1 for what a long run is planned with.
        restart: whether the service is started anew when the faults are over: it need not wait for what it waits for then.
    """

    kind: Kind
    seconds: float
    seed: int
    huge: int = 100_000_000
    own_disk: bool = True
    haste: float = 1.0
    restart: bool = False


@dataclass(frozen=True)
class Progress:
    """How it goes."""

    seconds: float
    registered: int
    archived: int
    kills: int
    faults: int
    now: str


@dataclass(frozen=True)
class Report:
    """What came of it."""

    plan: Plan
    audit: Audit
    faults: dict[str, int]
    ways: dict[str, int]
    unforeseen: tuple[str, ...]

    @property
    def kills(self) -> int:
        """How often the service was killed."""
        return sum(self.faults.get(name, 0) for name in ("service_killed", "service_relieved", "reconcile_killed"))

    @property
    def clean(self) -> bool:
        """Whether nothing is wrong."""
        return self.audit.clean and not self.unforeseen

    def __str__(self) -> str:
        wrong = ", ".join(f"{name.replace('_', ' ')} {len(found)}" for name, found in self.audit.wrong.items())
        faults = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in sorted(self.faults.items()))
        ways = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in sorted(self.ways.items()))
        return (
            f"{self.plan.kind}, seed {self.plan.seed}, {self.plan.seconds:.0f} s of faults\n"
            f"faults ({sum(self.faults.values())}): {faults}\n"
            f"ways of registering ({sum(self.ways.values())}): {ways}\n"
            f"{self.audit.rows} rows ({self.audit.bad} bad on purpose), {self.audit.files} files archived, "
            f"{self.audit.size / 1e9:.2f} GB; {sum(self.faults.values())} faults, {self.kills} kills of the service: "
            f"{wrong}, unforeseen {len(self.unforeseen)}"
        )


def soak(plan: Plan, directory: Path, say: Callable[[Progress], None] = lambda progress: None) -> Report:
    """Does it.

    Args:
        directory: of its own; logs and evidence stay there.
        say: called about once a second.
    """
    with new_site(plan.kind, directory, own_disk=plan.own_disk) as site:
        publisher = _publisher(site, plan)
        services = ServiceLane("service", site, random.Random(f"{plan.seed} service"), 1.0 / plan.haste)
        try:
            with Watcher(site.stage.data_dir, site.book) as watcher:
                _wait_for_marker(site)
                lanes = _lanes(site, plan, services)
                publisher.start()
                for lane in lanes:
                    lane.start()
                _go_on(site, plan, publisher, lanes, watcher, say)
                _join(publisher)
                for lane in lanes:
                    _join(lane)
                services.between()
                if plan.restart:
                    services.service_killed()
                _wait_for_peace(site, lanes, watcher, say)
                services.service.send(signal.SIGTERM)
                site.require_end(services.service)
                _start_once_more(site, services)
            found = audit(site.stage, site.book, watcher)
        finally:
            site.over.set()
            services.service.kill()
        site.read_logs()
        report = Report(plan, found, dict(site.counts), dict(publisher.counts), tuple(site.unforeseen))
        if not report.clean:
            _keep_evidence(site, report, directory)
        return report


def _publisher(site: Site, plan: Plan) -> Publisher:
    return Publisher(site.stage, site.book, random.Random(f"{plan.seed} publisher"), site.sources_held, huge=plan.huge)


def _lanes(site: Site, plan: Plan, services: ServiceLane) -> list[Lane]:
    def chance(name: str) -> random.Random:
        return random.Random(f"{plan.seed} {name}")

    return [
        services,
        DatabaseLane("database", site, chance("database"), 8.0 / plan.haste),
        SourceLane("source", site, chance("source"), 8.0 / plan.haste),
        ArchiveLane("archive", site, chance("archive"), 15.0 / plan.haste),
        ChildrenLane(site, chance("children"), 4.0 / plan.haste, services),
    ]


def _join(thread: Publisher | Lane) -> None:
    thread.join(120.0)
    if thread.is_alive() or thread.failure is not None:
        raise RuntimeError(f"{thread.name} did not come to its end") from thread.failure


def _wait_for_marker(site: Site) -> None:
    """The first start makes the archive; from then on a missing marker is a missing disk."""
    for _ in _seconds(60.0):
        if (site.stage.data_dir / INCOMING).is_dir():
            return
    raise RuntimeError("the service has not made the archive")


def _go_on(
    site: Site,
    plan: Plan,
    publisher: Publisher,
    lanes: list[Lane],
    watcher: Watcher,
    say: Callable[[Progress], None],
) -> None:
    began = time.monotonic()
    while (gone := time.monotonic() - began) < plan.seconds and not site.over.wait(1.0):
        say(_progress(site, lanes, watcher, gone))
    publisher.stop()
    publisher.join(30.0)
    site.over.set()


def _progress(site: Site, lanes: list[Lane], watcher: Watcher, gone: float) -> Progress:
    return Progress(
        seconds=gone,
        registered=len(site.book),
        archived=watcher.files,
        kills=site.counts["service_killed"],
        faults=sum(site.counts.values()),
        now=", ".join(lane.now.replace("_", " ") for lane in lanes if lane.now),
    )


def _wait_for_peace(site: Site, lanes: list[Lane], watcher: Watcher, say: Callable[[Progress], None]) -> None:
    """Until nothing waits any more, or the service stands still."""
    site.stage.close()  # its connection is from before the faults
    began = moved = time.monotonic()
    last = -1
    while time.monotonic() - moved < _PEACE_SECONDS:
        # Bad files may wait for their next try, as long as each has had one.
        waiting = site.stage.sql(
            f"SELECT md5sum, failed_copy_attempts FROM {TABLE} WHERE COALESCE(copied, 0) = 0"
            f" AND COALESCE(failed_copy_attempts, 0) < {REFUSED_FROM}"
        )
        left = sum(
            1
            for md5, attempts in waiting
            if (file := site.book.get(md5)) is None or file.fate is Fate.GOOD or not attempts
        )
        if left == 0:
            return
        if left != last:
            last, moved = left, time.monotonic()
        say(_progress(site, lanes, watcher, time.monotonic() - began))
        time.sleep(1.0)


def _start_once_more(site: Site, services: ServiceLane) -> None:
    """A start tidies up what was left in staging."""
    services.service = services.start_one()
    for _ in _seconds(60.0):
        if '"streaming"' in services.service.log.read_text(errors="replace"):
            break
    services.service.send(signal.SIGTERM)
    site.require_end(services.service)


def _seconds(limit: float) -> Iterator[None]:
    until = time.monotonic() + limit
    while time.monotonic() < until:
        yield
        time.sleep(0.1)


def _keep_evidence(site: Site, report: Report, directory: Path) -> None:
    rows = site.stage.sql(f"SELECT id, path, copied, failed_copy_attempts, HEX(md5sum) FROM {TABLE} ORDER BY id")
    told = site.stage.sql(
        f"SELECT file_id, at, result, reason, detail, source_path, archived_path FROM {HISTORY} ORDER BY id"
    )
    for name, table in (("rows.tsv", rows), ("history.tsv", told)):
        (directory / name).write_text("".join("\t".join(map(repr, row)) + "\n" for row in table))
    wrong = {**report.audit.wrong, "unforeseen": report.unforeseen}
    (directory / "wrong.json").write_text(json.dumps(wrong, indent=1))
