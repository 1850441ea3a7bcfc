"""Which source a row belongs to. How the router reads rows, the dispatch machine and the services' tests show."""

from __future__ import annotations

import pytest

from cdc_archiver.dispatch.router import Targets
from cdc_archiver.settings import load


@pytest.mark.parametrize("spelling", ["pysmurf-monitor", "Pysmurf-Monitor", "pysmurf-monitor  "])
def test_targets_are_compared_as_the_database_does(spelling: str) -> None:
    targets = Targets(load({"target": ("pysmurf-monitor",), "host": "srv"}, environment={}).sources)
    assert targets.source_of(spelling) == "srv"
    assert targets.source_of("other") is None
