"""One soak: some minutes of faults, then quiet until all files are archived, then the audit."""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from archive_places import staging_of
from audit import ArchiveWatcher, Audit, ExpectedResult, audit
from files_table import TABLE
from private_site import HISTORY
from publisher import Publisher

from cdc_archiver.model import REFUSED_FROM
from cdc_archiver.sandbox import Kind
from soak.fault_threads import (
    ArchiveFaults,
    ChildProcessFaults,
    DatabaseFaults,
    FaultThread,
    ServiceFaults,
    SourceFaults,
)
from soak.site import SoakSite, open_soak_site

_QUIET_SECONDS = 300.0
"""Seconds without progress after which pending files count as lost."""


@dataclass(frozen=True)
class SoakPlan:
    """The parameters of a soak.

    Attributes:
        seconds: duration of the faults.
        seed: for the order of the faults; their timing also depends on the machine.
        huge: size of the largest files in bytes; 0: none.
        own_disk: whether the archive gets its own file system, which can be filled, if this user may mount one.
        haste: frequency of faults, relative to a long run.
        restart: whether the service is restarted after the faults, so that it need not wait for its pauses.
    """

    kind: Kind
    seconds: float
    seed: int
    huge: int = 100_000_000
    own_disk: bool = True
    haste: float = 1.0
    restart: bool = False


@dataclass(frozen=True)
class SoakProgress:
    """The state of a running soak."""

    seconds: float
    registered: int
    archived: int
    kills: int
    faults: int
    now: str


@dataclass(frozen=True)
class SoakReport:
    """The result of a soak."""

    plan: SoakPlan
    audit: Audit
    faults: dict[str, int]
    ways: dict[str, int]
    unforeseen: tuple[str, ...]

    @property
    def kills(self) -> int:
        """Number of times that the service was killed."""
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


def soak(
    plan: SoakPlan, directory: Path, on_progress: Callable[[SoakProgress], None] = lambda progress: None
) -> SoakReport:
    """Runs a soak.

    Args:
        directory: its own; logs and evidence stay there.
        on_progress: called about once a second.
    """
    with open_soak_site(plan.kind, directory, own_disk=plan.own_disk) as site:
        publisher = _publisher(site, plan)
        services = ServiceFaults("service", site, random.Random(f"{plan.seed} service"), 1.0 / plan.haste)
        try:
            with ArchiveWatcher(site.stage.data_dir, site.expected_files) as watcher:
                _wait_for_marker(site)
                threads = _fault_threads(site, plan, services)
                publisher.start()
                for thread in threads:
                    thread.start()
                _go_on(site, plan, publisher, threads, watcher, on_progress)
                _join(publisher)
                for thread in threads:
                    _join(thread)
                services.between()
                if plan.restart:
                    services.service_killed()
                _wait_until_archived(site, threads, watcher, on_progress)
                services.service.send(signal.SIGTERM)
                site.require_end(services.service)
                _start_once_more(site, services)
            found = audit(site.stage, site.expected_files, watcher)
        finally:
            site.faults_over.set()
            services.service.kill()
        site.read_logs()
        report = SoakReport(plan, found, dict(site.counts), dict(publisher.counts), tuple(site.unforeseen))
        if not report.clean:
            _keep_evidence(site, report, directory)
        return report


def _publisher(site: SoakSite, plan: SoakPlan) -> Publisher:
    return Publisher(
        site.stage, site.expected_files, random.Random(f"{plan.seed} publisher"), site.sources_held, huge=plan.huge
    )


def _fault_threads(site: SoakSite, plan: SoakPlan, services: ServiceFaults) -> list[FaultThread]:
    def chance(name: str) -> random.Random:
        return random.Random(f"{plan.seed} {name}")

    return [
        services,
        DatabaseFaults("database", site, chance("database"), 8.0 / plan.haste),
        SourceFaults("source", site, chance("source"), 8.0 / plan.haste),
        ArchiveFaults("archive", site, chance("archive"), 15.0 / plan.haste),
        ChildProcessFaults(site, chance("children"), 4.0 / plan.haste, services),
    ]


def _join(thread: Publisher | FaultThread) -> None:
    thread.join(120.0)
    if thread.is_alive() or thread.failure is not None:
        raise RuntimeError(f"{thread.name} did not end") from thread.failure


def _wait_for_marker(site: SoakSite) -> None:
    """The first start makes the archive; afterwards a missing marker means a missing disk."""
    for _ in _seconds(60.0):
        if staging_of(site.stage.data_dir).is_dir():
            return
    raise RuntimeError("the service did not make the archive")


def _go_on(
    site: SoakSite,
    plan: SoakPlan,
    publisher: Publisher,
    threads: list[FaultThread],
    watcher: ArchiveWatcher,
    on_progress: Callable[[SoakProgress], None],
) -> None:
    began = time.monotonic()
    while (gone := time.monotonic() - began) < plan.seconds and not site.faults_over.wait(1.0):
        on_progress(_progress(site, threads, watcher, gone))
    publisher.stop()
    publisher.join(30.0)
    site.faults_over.set()


def _progress(site: SoakSite, threads: list[FaultThread], watcher: ArchiveWatcher, gone: float) -> SoakProgress:
    return SoakProgress(
        seconds=gone,
        registered=len(site.expected_files),
        archived=watcher.files,
        kills=site.counts["service_killed"],
        faults=sum(site.counts.values()),
        now=", ".join(thread.now.replace("_", " ") for thread in threads if thread.now),
    )


def _wait_until_archived(
    site: SoakSite, threads: list[FaultThread], watcher: ArchiveWatcher, on_progress: Callable[[SoakProgress], None]
) -> None:
    """Waits until no file is pending, or the service makes no progress."""
    site.stage.close()  # its connection is older than the faults
    began = moved = time.monotonic()
    last = -1
    while time.monotonic() - moved < _QUIET_SECONDS:
        # Bad files may wait for their next attempt once each has had one.
        waiting = site.stage.sql(
            f"SELECT md5sum, failed_copy_attempts FROM {TABLE} WHERE COALESCE(copied, 0) = 0"
            f" AND COALESCE(failed_copy_attempts, 0) < {REFUSED_FROM}"
        )
        left = sum(
            1
            for md5, attempts in waiting
            if (file := site.expected_files.get(md5)) is None or file.fate is ExpectedResult.GOOD or not attempts
        )
        if left == 0:
            return
        if left != last:
            last, moved = left, time.monotonic()
        on_progress(_progress(site, threads, watcher, time.monotonic() - began))
        time.sleep(1.0)


def _start_once_more(site: SoakSite, services: ServiceFaults) -> None:
    """A start removes what was left in staging."""
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


def _keep_evidence(site: SoakSite, report: SoakReport, directory: Path) -> None:
    rows = site.stage.sql(f"SELECT id, path, copied, failed_copy_attempts, HEX(md5sum) FROM {TABLE} ORDER BY id")
    recorded = site.stage.sql(
        f"SELECT file_id, at, result, reason, detail, source_path, archived_path FROM {HISTORY} ORDER BY id"
    )
    for name, table in (("rows.tsv", rows), ("history.tsv", recorded)):
        (directory / name).write_text("".join("\t".join(map(repr, row)) + "\n" for row in table))
    wrong = {**report.audit.wrong, "unforeseen": report.unforeseen}
    (directory / "wrong.json").write_text(json.dumps(wrong, indent=1))
