"""All metrics. Their names are a contract: dashboards and alerts use them."""

from __future__ import annotations

import contextlib
import math

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from cdc_archiver import __version__
from cdc_archiver.model import Archived, AttemptFailed, Deferred, Reason, Refused
from cdc_archiver.observe.activity import Activity

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0)
TIMECODE_STATES = ("open", "blocked", "complete", "reopened")
_FILES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 10000)


class Metrics:
    """The metrics of one service, in a registry of their own.

    Attributes:
        activity: for the status page; counts the same outcomes, so that it agrees with the counters.
    """

    def __init__(self) -> None:
        self.activity = Activity()
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)

        self.stream_connected = self._gauge("stream_connected", "Whether the binlog stream is open (1) or not (0).")
        self.stream_lag = self._gauge(
            "stream_lag_seconds",
            "Age of the newest event when it was read, by its header (whole seconds); 0 while the server is idle, NaN "
            "without a stream.",
        )
        self.stream_events = self._counter(
            "stream_events_total",
            "Rows in the stream, by outcome: offered, echo (of our own write), known (already in flight), dropped (the "
            "queue was full; may have been offered before), unreadable (events that could not be read, or are statements).",
            "outcome",
        )
        self.stream_reconnects = self._counter("stream_reconnects_total", "Streams that ended, by reason.", "reason")
        self.server_changes = self._counter(
            "database_server_changes_total",
            "Times that the service left a database server, by reason: moved (the address leads to another one), read_only; or "
            "met several at one address (several).",
            "reason",
        )
        self.mode = self._gauge("mode", "1 for the current mode: stream, polling or standby.", "mode")
        self.queue_depth = self._gauge("queue_depth", "Files waiting for a worker.", "source")
        self.in_flight = self._gauge("in_flight", "Files being copied or written back to the table.", "source")
        self.copies = self._counter(
            "copies_total",
            "Outcomes of files, by result: archived, adopted, charged (a failed attempt), refused, deferred.",
            "source",
            "result",
        )
        self.copied_bytes = self._counter("copied_bytes_total", "Bytes copied.", "source")
        self.copy_failures = self._counter(
            "copy_failures_total", "Attempts that did not archive the file, by reason.", "source", "reason"
        )
        self.copy_duration = Histogram(
            "cdc_archiver_copy_duration_seconds",
            "Time from the start of a batch to the placement of a file.",
            registry=self.registry,
            buckets=_SECONDS,
        )
        self.event_to_archived = Histogram(
            "cdc_archiver_event_to_archived_seconds",
            "Time from the arrival of the event to the committed write-back.",
            ["source"],
            registry=self.registry,
            buckets=_SECONDS,
        )
        self.batch_files = Histogram(
            "cdc_archiver_batch_files", "Number of files in one rsync.", registry=self.registry, buckets=_FILES
        )
        self.source_up = self._gauge("source_up", "Whether the source delivers files (1) or not (0).", "source")
        self.destination_up = self._gauge("destination_up", "Whether data_dir accepts files (1) or not (0).")
        self.destination_free = self._gauge("destination_free_bytes", "Free space on the file system of data_dir.")
        self.destination_free_inodes = self._gauge(
            "destination_free_inodes",
            "Free inodes of the file system of data_dir; NaN where their number is not fixed.",
        )
        self.unclaimed = self._gauge(
            "unclaimed_files",
            "Pending rows of an instance_id that no configuration here has, and whose lock nobody has held for ten minutes.",
            "instance_id",
        )
        self.other_tables = self._gauge(
            "other_table_pending_files", "Pending rows of other tables of files while the chosen one is empty.", "table"
        )
        self.sweep_found = self._counter(
            "sweep_found_total",
            "Files found by a sweep and not in flight, by reason. stream_missed must stay at zero.",
            "why",
        )
        self.sweep_duration = Histogram(
            "cdc_archiver_sweep_duration_seconds", "Duration of a sweep.", registry=self.registry, buckets=_SECONDS
        )
        self.timecode_look_duration = Histogram(
            "cdc_archiver_timecode_look_duration_seconds",
            "Duration of the decision about the timecodes of a source after a sweep.",
            registry=self.registry,
            buckets=_SECONDS,
        )
        self.last_sweep = self._gauge(
            "last_sweep_timestamp_seconds", "Time of the last completed sweep; NaN before the first."
        )
        self.pending = self._gauge(
            "pending_files", "Rows to be archived: neither archived nor quarantined, refused or ignored.", "source"
        )
        self.retried = self._gauge(
            "retried_files", "Files whose last attempt failed and that wait for another, by reason.", "source", "reason"
        )
        self.activity.on_retried = lambda source, reason, files: self.retried.labels(source, reason).set(files)
        self.quarantined = self._gauge("quarantined_files", "Rows that have reached max_attempts.", "source")
        self.refused = self._gauge("refused_files", "Rows that no attempt can archive.", "source")
        self.ignored = self._gauge("ignored_files", "Rows that an operator marked as ignored.", "source")
        self.handed_over = self._gauge(
            "handed_over_pending_files", "Pending rows of timecodes that were handed over: they wait.", "source"
        )
        self.not_recordable = self._gauge(
            "not_recordable_files", "Files whose result the database refuses to record, set aside.", "source"
        )
        self.oldest_pending = self._gauge(
            "oldest_pending_age_seconds",
            "Age of the oldest pending row, by its column timestamp; 0 without pending rows.",
            "source",
        )
        self.verified_files = self._counter(
            "verified_files_total", "Archived files that were verified again, by result.", "result"
        )
        self.late_files = self._counter(
            "late_files_total", "Files that were archived after their timecode was complete.", "source"
        )
        self.timecodes = self._gauge("timecodes", "Timecodes, by state.", "source", "state")
        self.finalized_until = self._gauge(
            "finalized_until_timestamp_seconds",
            "Everything dated before it is archived or decided; NaN where that is not known.",
            "source",
        )
        self.watermark_row_age = self._gauge(
            "watermark_row_age_seconds",
            "Age of the oldest undecided row, by its column timestamp; 0 where nothing is undecided.",
            "source",
        )
        self.registrars_silent = self._gauge(
            "registrars_silent", "Registrars that have not reported for a minute and more.", "source"
        )
        self.clock_difference = self._gauge(
            "clock_difference_seconds",
            "Seconds that the database's clock is ahead of this machine's; NaN if not known.",
        )
        self.part_off = self._gauge(
            "part_off", "Whether a part is off (1), since its side table cannot be used, or on (0).", "part"
        )
        self.notices = self._counter(
            "notices_total",
            "Notices for notify_command, by result: delivered, failed (another exit status than 0), timeout (killed), dropped "
            "(too many waited).",
            "result",
        )
        self.rsync_info = self._gauge(
            "rsync_info", "1, labelled with the version of rsync on each side.", "side", "version"
        )
        Info("cdc_archiver_build", "Version of the service.", registry=self.registry).info({"version": __version__})

        self._archived: dict[str, _ArchivedSeries] = {}
        self.last_sweep.set(math.nan)
        self.stream_lag.set(math.nan)
        self.clock_difference.set(math.nan)
        self._source_gauges = (
            self.queue_depth,
            self.in_flight,
            self.source_up,
            self.pending,
            self.quarantined,
            self.refused,
            self.ignored,
            self.handed_over,
            self.not_recordable,
            self.oldest_pending,
            self.finalized_until,
            self.watermark_row_age,
            self.registrars_silent,
        )

        # A series that appears only with its first increment is invisible to rate() and to an alert.
        for why in ("backlog", "retry", "requeued", "stream_missed", "overflow", "late_commit"):
            self.sweep_found.labels(why)
        for reason in ("moved", "read_only", "several"):
            self.server_changes.labels(reason)
        for part in ("history", "timecodes", "marks"):
            self.part_off.labels(part).set(0)
        for result in ("delivered", "failed", "timeout", "dropped"):
            self.notices.labels(result)
        for mode in ("stream", "polling", "standby"):
            self.mode.labels(mode).set(0)
        for outcome in ("offered", "echo", "known", "dropped", "unreadable"):
            self.stream_events.labels(outcome)

    def add_source(self, source: str) -> None:
        """Creates the series of a source, at zero."""
        for gauge in self._source_gauges:
            gauge.labels(source).set(0)
        self.finalized_until.labels(source).set(math.nan)
        for state in TIMECODE_STATES:
            self.timecodes.labels(source, state).set(0)
        for result in ("archived", "adopted", "charged", "refused", "deferred"):
            self.copies.labels(source, result)
        for reason in Reason:
            self.copy_failures.labels(source, reason.value)
            self.retried.labels(source, reason.value).set(0)
        self.copied_bytes.labels(source)
        self.late_files.labels(source)
        self.event_to_archived.labels(source)

    def forget_source(self, source: str) -> None:
        """Removes the gauges of a source that this archiver no longer holds."""
        self.activity.forget(source)
        for gauge in self._source_gauges:
            with contextlib.suppress(KeyError):
                gauge.remove(source)
        for gauge, values in ((self.retried, [str(reason) for reason in Reason]), (self.timecodes, TIMECODE_STATES)):
            for value in values:
                with contextlib.suppress(KeyError):
                    gauge.remove(source, value)

    def forget_sources(self) -> None:
        """Removes the gauges of all sources: this archiver holds none. What failed stays known until another one holds them."""
        for gauge in (*self._source_gauges, self.retried, self.timecodes):
            gauge.clear()
        self.unclaimed.clear()
        self.other_tables.clear()
        self.last_sweep.set(math.nan)
        self.clock_difference.set(math.nan)

    def set_mode(self, mode: str) -> None:
        """Sets the mode: ``stream``, ``polling``, ``standby``, or none of these during the start."""
        for name in ("stream", "polling", "standby"):
            self.mode.labels(name).set(name == mode)

    def count(
        self, source: str, outcome: Archived | AttemptFailed | Refused | Deferred, latency: float | None = None
    ) -> None:
        """Counts the outcome of a file.

        Args:
            latency: seconds from the file's event, where it is archived and had one.
        """
        self.activity.record_outcome(source, outcome, latency)
        if isinstance(outcome, Archived):
            series = self._archived.get(source) or self._archived.setdefault(source, _ArchivedSeries(self, source))
            if latency is not None:
                series.latency.observe(latency)
            if outcome.adopted:
                series.adopted.inc()
            else:
                series.archived.inc()
                series.bytes.inc(outcome.size)
            steps = outcome.steps
            self.copy_duration.observe(steps.transferred + steps.verified + steps.placed)
            return
        if isinstance(outcome, Refused):
            self.refused.labels(source).inc()  # at once; the next sweep counts them all
        elif isinstance(outcome, AttemptFailed) and outcome.record.attempts + 1 >= self.activity.max_attempts:
            self.quarantined.labels(source).inc()
        match outcome:
            case AttemptFailed():
                self.copies.labels(source, "charged").inc()
            case Refused():
                self.copies.labels(source, "refused").inc()
            case Deferred():
                self.copies.labels(source, "deferred").inc()
        self.copy_failures.labels(source, outcome.reason.value).inc()

    def total(self, name: str, **labels: str) -> float:
        """The sum of a metric's series with these labels.

        Args:
            name: as exposed, without the prefix: ``copies_total``.
        """
        return sum(
            sample.value
            for metric in self.registry.collect()
            for sample in metric.samples
            if sample.name == f"cdc_archiver_{name}" and labels.items() <= sample.labels.items()
        )

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"cdc_archiver_{name}", text, labels, registry=self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"cdc_archiver_{name}", text, labels, registry=self.registry)


class _ArchivedSeries:
    """The series of a source's archived files: looking them up by label for each file takes longer than counting."""

    def __init__(self, metrics: Metrics, source: str) -> None:
        self.archived = metrics.copies.labels(source, "archived")
        self.adopted = metrics.copies.labels(source, "adopted")
        self.bytes = metrics.copied_bytes.labels(source)
        self.latency = metrics.event_to_archived.labels(source)
