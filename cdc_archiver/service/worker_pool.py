"""The workers of one source and the copier that they share: started, stopped and killed together."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from cdc_archiver.database.recorder import Recorder
from cdc_archiver.dispatch.dispatcher import Dispatcher
from cdc_archiver.model import Archived, AttemptFailed, Lane, Refused
from cdc_archiver.observe.metrics import Metrics
from cdc_archiver.settings import Settings, SourceSettings
from cdc_archiver.threads import StoppableThread
from cdc_archiver.transfer.copier import Copier
from cdc_archiver.transfer.staging import Archive

_TAKE_LIMIT: Final = 5.0
"""Seconds to wait for a batch."""


class Worker(StoppableThread):
    """Copies one lane of one source.

    Args:
        number: tells the workers of a lane apart.
    """

    def __init__(
        self,
        source: SourceSettings,
        lane: Lane,
        number: int,
        dispatcher: Dispatcher,
        copier: Copier,
        recorder: Recorder,
        metrics: Metrics,
    ) -> None:
        self._staging = f"{lane}-{number}"
        super().__init__(f"{source.name}/{self._staging}")
        self._source = source
        self._lane = lane
        self._dispatcher = dispatcher
        self._copier = copier
        self._recorder = recorder
        self._metrics = metrics

    def work(self) -> None:
        while not self.stopping.is_set():
            batch = self._dispatcher.take(self._source.name, self._lane, self._staging, _TAKE_LIMIT)
            if batch is None:
                continue
            self._metrics.batch_files.observe(len(batch.records))
            try:
                for outcome in self._copier.archive(self._source, batch):
                    outcome = self._dispatcher.judge(batch, outcome)
                    if isinstance(outcome, Archived | AttemptFailed | Refused):
                        waited = self._dispatcher.seconds_waited(outcome.record.id)
                        self._recorder.put(self._source.name, outcome, waited)
            finally:
                self._dispatcher.finish(self._source.name)

    # A stop needs no interrupt: its source is retired, or the dispatcher closed, and so it waits for nothing.


class WorkerPool:
    """The workers of one source. Started once, stopped once.

    Args:
        source: whose files it copies; one that the dispatcher knows.
        path_width: characters that the row's column ``path`` holds.
        on_end: called by a worker's thread when it ends.
    """

    def __init__(
        self,
        settings: Settings,
        source: SourceSettings,
        archive: Archive,
        path_width: int,
        dispatcher: Dispatcher,
        recorder: Recorder,
        metrics: Metrics,
        on_end: Callable[[StoppableThread], None],
    ) -> None:
        self.source = source
        self._cancel = threading.Event()
        self._copier = Copier(settings, archive, path_width, self._cancel)
        self.workers = [
            Worker(source, lane, number, dispatcher, self._copier, recorder, metrics)
            for lane, count in ((Lane.SMALL, source.workers), (Lane.BULK, source.bulk_workers))
            for number in range(count)
        ]
        for worker in self.workers:
            worker.on_end = on_end

    def start(self) -> None:
        """Starts the workers."""
        for worker in self.workers:
            worker.start()

    def stop(self) -> None:
        """No worker begins anything new. Returns at once."""
        for worker in self.workers:
            worker.stop()

    def kill(self) -> None:
        """Gives up what is under way. Returns at once."""
        self._cancel.set()

    def close(self) -> None:
        """Gives up what is under way, and ends the connection: a worker may be waiting for it to come about."""
        self._cancel.set()
        self._copier.close()
