"""The registrar's metrics. Their names are a contract: dashboards and alerts use them."""

from __future__ import annotations

import math

from prometheus_client import CollectorRegistry, Counter, Gauge, Info
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from cdc_archiver import __version__

OUTCOMES = ("registered", "known", "refused", "lost")


class RegistrarMetrics:
    """The metrics of one registrar, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.messages = self._counter("messages_total", "Messages understood, by their type.", "type")
        self.garbage = self._counter("garbage_total", "Datagrams that were not understood, by reason.", "reason")
        self.outcomes = self._counter(
            "files_total",
            "Decisions on announced files: registered (a row was written), known (registered before), refused, lost (the "
            "file did not come in time).",
            "outcome",
        )
        self.gaps = self._counter("gaps_total", "Messages that are missing in the publishers' sequence numbers.")
        self.kernel_drops = self._counter(
            "kernel_drops_total", "Datagrams that the kernel dropped: the buffer was full."
        )
        self.forward_failures = self._counter("forward_failures_total", "Datagrams that could not be forwarded.")
        self.waiting = self._gauge("waiting_files", "Announced files that are not decided yet.")
        self.lost = self._gauge("lost_files", "Announced files that have not come, and still count as lost.")
        self.refused = self._gauge("refused_files", "Announced files of which no row could be made.")
        self.oldest = self._gauge(
            "oldest_waiting_age_seconds", "Age of the oldest waiting announcement; 0 without one."
        )
        self.watermark = self._gauge(
            "watermark_timestamp_seconds",
            "Before this time every announced file is decided, as written last; NaN before.",
        )
        self.spool_bytes = self._gauge("spool_bytes", "Bytes of the spool in use.")
        self.spool_limit = self._gauge("spool_max_bytes", "The limit of the spool.")
        self.database_up = self._gauge("database_up", "Whether the database takes rows (1) or not (0).")
        self.receive_buffer = self._gauge(
            "receive_buffer_bytes", "Receive buffer of the socket, as the kernel counts it."
        )
        Info("cdc_archiver_registrar_build", "Version of the registrar.", registry=self.registry).info(
            {"version": __version__}
        )
        self.watermark.set(math.nan)
        for outcome in OUTCOMES:
            self.outcomes.labels(outcome)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"cdc_archiver_registrar_{name}", text, labels, registry=self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"cdc_archiver_registrar_{name}", text, labels, registry=self.registry)
