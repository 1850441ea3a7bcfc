"""Records for unit tests."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from cdc_archiver.model import FileRecord

RECORD = FileRecord(
    id=1,
    path="/data/smurf_data/20200515/crate1slot2/1589517264/outputs/1589517300_iv.npy",
    md5sum=bytes(range(16)),
    timestamp=datetime.fromtimestamp(1589517264, UTC),
    action="take_iv",
    action_timestamp=1589517260,
    plot=False,
    pub_id="crate1slot2",
    instance_id="pysmurf-monitor",
    failed_copy_attempts=0,
)


def record(**changes: Any) -> FileRecord:
    """The default record with these changes."""
    return replace(RECORD, **changes)
