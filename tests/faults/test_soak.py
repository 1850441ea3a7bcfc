"""A short soak, so that the long one can be trusted to run: `make soak` is the real thing."""

from __future__ import annotations

from pathlib import Path

import pytest
from soak.run import Plan, soak

from cdc_archiver.sandbox import MariaDb

SEED = 20200515


@pytest.mark.timeout(420)
def test_nothing_is_lost_doubled_or_charged_when_everything_fails_for_a_while(mariadb: MariaDb, tmp_path: Path) -> None:
    """The order of the faults is the seed's; when each one hits is the machine's."""
    # Given a service, an instrument that registers files, and every fault that there is, often,
    plan = Plan(mariadb.kind, seconds=20.0, seed=SEED, huge=0, own_disk=False, haste=1.5, restart=True)
    # when the faults are over and the service has finished what there was to do,
    report = soak(plan, tmp_path)
    # then each row says what its file deserves, and each file is there once, whole, and from its first moment on.
    assert report.clean, report
    assert report.kills > 0
    assert report.audit.files > 0
