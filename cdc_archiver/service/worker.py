"""One worker: a batch at a time, from the dispatcher through the copier to the recorder."""

from __future__ import annotations

from typing import Final

from cdc_archiver.database.recorder import Recorder
from cdc_archiver.dispatch.dispatcher import Dispatcher
from cdc_archiver.model import Archived, AttemptFailed, Lane, Refused
from cdc_archiver.observe.metrics import Metrics
from cdc_archiver.settings import SourceSettings
from cdc_archiver.threads import Part
from cdc_archiver.transfer.copier import Copier

_WAIT: Final = 5.0


class Worker(Part):
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
            batch = self._dispatcher.take(self._source.name, self._lane, self._staging, _WAIT)
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

    def interrupt(self) -> None:
        """Whoever stops it retires its source, or closes the dispatcher: so it waits for nothing."""
