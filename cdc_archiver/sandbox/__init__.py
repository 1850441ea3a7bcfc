"""Private MariaDB, MySQL, sshd and Prometheus for the demo, the tests and the benchmarks: one harness, no second."""

from cdc_archiver.sandbox.database import DatabaseServer, Kind, MariaDb, MySql, open_database
from cdc_archiver.sandbox.errors import SandboxError
from cdc_archiver.sandbox.harness import Sandbox
from cdc_archiver.sandbox.packages import ensure_tools
from cdc_archiver.sandbox.process import ChildProcess, free_port
from cdc_archiver.sandbox.prometheus import PrometheusServer
from cdc_archiver.sandbox.sshd import NO_PROGRAMS, SshServer

__all__ = [
    "NO_PROGRAMS",
    "ChildProcess",
    "DatabaseServer",
    "Kind",
    "MariaDb",
    "MySql",
    "PrometheusServer",
    "Sandbox",
    "SandboxError",
    "SshServer",
    "ensure_tools",
    "free_port",
    "open_database",
]
