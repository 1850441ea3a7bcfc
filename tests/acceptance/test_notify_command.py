"""What an operator's program is told while the service runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from private_site import PrivateSite
from waiting import eventually


def test_quarantined_files_and_a_source_that_is_down_and_up_again_are_told(stage: PrivateSite, tmp_path: Path) -> None:
    told = tmp_path / "told"
    script = tmp_path / "notify"
    script.write_text(f"#!/bin/sh\ncat >>{told}\n")
    script.chmod(0o755)

    def notices(kind: str) -> list[dict[str, Any]]:
        lines = told.read_text().splitlines() if told.exists() else []
        return [notice for notice in map(json.loads, lines) if notice["kind"] == kind]

    with stage.service(notify_command=str(script), notify_after=0.5, max_attempts=1) as service:
        service.wait_settled()
        # Given a file that is not on its source,
        gone = stage.file("gone.npy")
        gone.path.unlink()
        stage.register(gone)
        # when its attempts are used up, the program is told;
        eventually(lambda: notices("quarantined"), "it is told")
        (notice,) = notices("quarantined")
        assert (notice["source"], notice["files"], notice["quarantined"]) == (stage.ssh.host, 1, 1)
        # when the source is gone, with a file to fetch from it, and when it is back.
        stage.ssh.stop()
        (id_,) = stage.register(stage.file("late.npy"))
        eventually(lambda: notices("source_down"), "it is told")
        assert notices("source_down")[0]["reason"] == "host_unreachable"
        stage.ssh.start()
        stage.wait_archived(id_)
        eventually(lambda: notices("source_up"), "it is told")
        assert service.metric("notices_total", result="delivered") == 3
