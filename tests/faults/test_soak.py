"""A short soak, which shows that the long one runs: `make soak`."""

from __future__ import annotations

from pathlib import Path

import pytest
from soak.run import SoakPlan, soak

from cdc_archiver.sandbox import MariaDb

SEED = 20200515


@pytest.mark.timeout(420)
def test_no_file_is_lost_duplicated_or_counted_as_failed_by_faults_of_all_kinds(
    mariadb: MariaDb, tmp_path: Path
) -> None:
    """The seed gives the order of the faults; their timing depends on the machine."""
    # Given a service, an instrument that registers files, and frequent faults of all kinds,
    plan = SoakPlan(mariadb.kind, seconds=20.0, seed=SEED, huge=0, own_disk=False, haste=1.5, restart=True)
    # when the faults are over and the service has archived what was pending,
    report = soak(plan, tmp_path)
    # then each row has the expected result, and each file is there once and was complete from the first moment on.
    assert report.clean, report
    assert report.kills > 0
    assert report.audit.files > 0
