"""Helpers for tests of the findings of `check`."""

from typing import Any

from private_database import PASSWORD, PrivateDatabase

from cdc_archiver.preflight import CheckStatus, Finding
from cdc_archiver.settings import Settings, load


def settings(world: PrivateDatabase | None = None, **flags: Any) -> Settings:
    where = (
        {
            "mysql_port": world.server.port,
            "mysql_database": world.name,
            "mysql_user": world.user,
            "mysql_password": PASSWORD,
        }
        if world
        else {}
    )
    return load(flags={"target": ("monitor",), **where, **flags}, environment={})


def not_ok(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.status is not CheckStatus.OK]


def the_only(findings: list[Finding]) -> Finding:
    """The one finding that is not ok. It has a fix."""
    wrong = not_ok(findings)
    assert len(wrong) == 1, wrong
    assert wrong[0].fix
    return wrong[0]
