"""One source's workers and the copier that they share: started, stopped and killed together."""

from __future__ import annotations

import threading
from collections.abc import Callable

from cdc_archiver.database.recorder import Recorder
from cdc_archiver.dispatch.dispatcher import Dispatcher
from cdc_archiver.model import Lane
from cdc_archiver.observe.metrics import Metrics
from cdc_archiver.service.worker import Worker
from cdc_archiver.settings import Settings, SourceSettings
from cdc_archiver.threads import StoppableThread
from cdc_archiver.transfer.copier import Copier
from cdc_archiver.transfer.staging import Archive


class WorkerPool:
    """Started once, stopped once.

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
