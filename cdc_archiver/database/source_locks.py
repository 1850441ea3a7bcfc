"""One archiver for each target: the database's named locks, on a connection that ends with its holder.

A ``GET_LOCK`` is known to one server only: it does not span the nodes of a Galera cluster.
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pymysql
from pymysql.connections import Connection

from cdc_archiver.database.connections import Database, translate_error
from cdc_archiver.database.server_identity import ServerIdentity, identify_server
from cdc_archiver.errors import LockLost

_PREFIX: Final = "cdc_archiver:"


@dataclass(frozen=True, slots=True)
class LockTiming:
    """Time limits of the locks, in seconds, such that a loss is noticed before another archiver can hold the lock.

    The server ends a silent session after ``session_limit``, so that a dead host's locks are released. It heard of us last when the
    last answered check was sent. The answer took at most ``answer_limit``; ``check_interval`` later the next check is sent, and
    fails after ``answer_limit``. So a loss is known ``check_interval + 2 * answer_limit`` after the server heard of us last; the rest
    of ``session_limit`` is left to kill the copies under way.

    Two cases are not covered: a KILL of the session, noticed at the next check, and a machine that was suspended. For these the
    write-back compares the row with what was read.

    Attributes:
        session_limit: in whole seconds, as the server counts.
        check_interval: between two checks of the locks held.
        answer_limit: for the answer to one statement.
        try_interval: between two attempts to take a lock that another archiver holds.
        spare_after: for which no archiver has held a source before one at its maximum number of sources takes it: longer than
            an archiver below its maximum needs to take it.
    """

    session_limit: int = 15
    check_interval: float = 5.0
    answer_limit: float = 3.0
    try_interval: float = 2.0
    spare_after: float = 20.0

    def __post_init__(self) -> None:
        if self.check_interval + 2 * self.answer_limit >= self.session_limit:
            raise ValueError(f"{self}: another could hold the lock before its loss is noticed")


class SourceLocks:
    """The locks of some sources, on one session: of each source all its targets, or none. For use by one thread.

    Args:
        database: that holds the table.
        table: of files.
        sources: targets, by name of the source.
        timing: time limits.
    """

    def __init__(
        self,
        database: Database,
        table: str,
        sources: Mapping[str, Sequence[str]],
        timing: LockTiming | None = None,
    ) -> None:
        self.timing = timing or LockTiming()
        self._database = database
        self._table = table
        self._connection: Connection | None = None
        self.server: ServerIdentity | None = None
        """The server on which the locks are held or tried; None without a connection."""
        # By source, the names of its locks, each with its target. Other threads read `_held`, so it is replaced as a whole.
        self._described: dict[str, dict[str, str]] = {}
        self._held: dict[str, dict[str, str]] = {}
        self.losses = 0
        """How often all held locks were lost."""
        self._requests: set[str] = set()
        self.describe(sources)

    def describe(self, sources: Mapping[str, Sequence[str]]) -> None:
        """Replaces the sources. One that is held keeps the targets with which it was acquired until it is released."""
        self._described = {}
        for source, targets in sources.items():
            names = {lock_name(self._database.name, self._table, target): target for target in targets}
            # In the same order in all archivers: of two that want some of the same locks, one gets the first of these, and continues.
            self._described[source] = dict(sorted(names.items()))

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of all sources, held or not."""
        return tuple(self._described)

    @property
    def held(self) -> tuple[str, ...]:
        """Names of the sources that are held, as far as is known; the newest last."""
        return tuple(self._held)

    def acquire(self, source: str) -> bool:
        """Tries to take a source, without waiting.

        Returns:
            Whether it is held now.

        Raises:
            DatabaseUnavailable: the database does not answer.
            Misconfigured: it answers, and a person must fix something.
        """
        if source not in self._held:
            if not self._take(list(self._described[source])):
                return False
            self._held = {**self._held, source: self._described[source]}
        return True

    def acquire_all(self) -> bool:
        """Tries to take every source; where one is not available, none is held.

        Raises:
            DatabaseUnavailable: the database does not answer.
            Misconfigured: it answers, and a person must fix something.
        """
        missing = {source: locks for source, locks in self._described.items() if source not in self._held}
        if self._take([name for locks in missing.values() for name in locks]):
            self._held = {**self._held, **missing}  # at once: other threads never see some of them
            return True
        self.close()
        return False

    def holder(self, source: str) -> str | None:
        """The other session that holds a lock of a source, for a person; None where there is none.

        Raises:
            DatabaseUnavailable: the database does not answer.
            Misconfigured: it answers, and a person must fix something.
        """
        if source in self._held:
            return None
        for name, target in self._described[source].items():
            (session,) = self._ask("SELECT IS_USED_LOCK(%s)", name)
            if session is not None:
                return f"{self._describe_session(int(session))} (target {target})"
        return None

    def check(self) -> None:
        """Asks the server whether all held locks are still ours, which also keeps the session alive.

        Raises:
            LockLost: a lock is not, or the answer did not come in time. Then none is held any more.
        """
        locks = {name: target for held in self._held.values() for name, target in held.items()}
        if not locks:
            raise LockLost("no lock is held")
        questions = ", ".join(["IS_USED_LOCK(%s)"] * len(locks))
        try:
            assert self._connection is not None
            ((me, *holders),) = _rows(self._connection, f"SELECT CONNECTION_ID(), {questions}", list(locks))
        except (pymysql.MySQLError, OSError) as error:
            self._forget()
            raise LockLost(f"the connection that holds the lock is gone: {_message(error)}") from error
        for target, holder in zip(locks.values(), holders, strict=True):
            if holder != me:
                self._forget()
                raise LockLost(f"the lock of the target {target} is no longer ours")

    def request_sources(self, sources: Collection[str]) -> None:
        """Requests these sources from their holders, and withdraws requests for others.

        Raises:
            DatabaseUnavailable: the database does not answer.
            Misconfigured: it answers, and a person must fix something.
        """
        requests = {_request_name(self._described[source]) for source in sources}
        for name in self._requests - requests:
            self._requests.discard(name)
            self._free([name])
        for name in requests - self._requests:
            if self._ask("SELECT GET_LOCK(%s, 0)", name) == (1,):
                self._requests.add(name)

    def is_requested(self, source: str) -> bool:
        """Whether another archiver requests a source that we hold.

        Raises:
            DatabaseUnavailable: the database does not answer.
            Misconfigured: it answers, and a person must fix something.
        """
        return self._ask("SELECT IS_USED_LOCK(%s)", _request_name(self._held[source])) != (None,)

    def release(self, source: str) -> None:
        """Releases one source.

        Raises:
            DatabaseUnavailable: the database does not answer; the lock ends with the session anyway.
            Misconfigured: it answers, and a person must fix something.
        """
        if source in self._held:
            locks = self._held[source]
            self._held = {other: held for other, held in self._held.items() if other != source}
            self._free(list(locks))

    def close(self) -> None:
        """Releases all sources. Never raises: the locks end with the session anyway."""
        if self._connection is not None:
            names = [name for held in self._held.values() for name in held]
            # The answer confirms the release; the end of a session does not.
            with contextlib.suppress(pymysql.MySQLError, OSError):
                for name in names:
                    _rows(self._connection, "SELECT RELEASE_LOCK(%s)", [name])
        self._forget()

    def _take(self, names: Sequence[str]) -> bool:
        """Takes all of these locks, or none."""
        taken: list[str] = []
        # One by one: a single statement would take some locks although an earlier one is not available.
        for name in names:
            if self._ask("SELECT GET_LOCK(%s, 0)", name) != (1,):
                self._free(taken)
                return False
            taken.append(name)
        return True

    def _free(self, names: Sequence[str]) -> None:
        for name in names:
            self._ask("SELECT RELEASE_LOCK(%s)", name)

    def _ask(self, statement: str, name: str) -> tuple[Any, ...]:
        (row,) = self._rows(statement, name)
        return tuple(row)

    def _rows(self, statement: str, *arguments: object) -> Sequence[Sequence[Any]]:
        try:
            if self._connection is None:
                self._connection = self._connect()
            return _rows(self._connection, statement, arguments)
        except (pymysql.MySQLError, OSError) as error:
            if not self._held:  # otherwise :meth:`check` notices and reports it
                self._forget()
            raise translate_error(error, self._database.address) from error

    def covers(self, source: str, targets: Sequence[str]) -> bool:
        """Whether a source is held with exactly these targets."""
        return set(self._held.get(source, ())) == {
            lock_name(self._database.name, self._table, target) for target in targets
        }

    def _forget(self) -> None:
        self.losses += bool(self._held)
        connection, self._connection, self.server = self._connection, None, None
        self._held = {}
        self._requests.clear()
        if connection is not None:
            with contextlib.suppress(pymysql.MySQLError, OSError):
                connection.close()

    def _connect(self) -> Connection:
        limit = self.timing.answer_limit
        # MySQL shows the name to others of the account, and the pid, which the driver adds.
        program = f"cdc-archiver on {socket.gethostname()}"
        connection = self._database.raw_connection(
            connect_timeout=limit, read_timeout=limit, write_timeout=limit, program_name=program
        )
        try:
            with connection.cursor() as cursor:
                cursor.execute("SET SESSION wait_timeout = %s", (self.timing.session_limit,))
            self.server = identify_server(connection)
        except BaseException:
            with contextlib.suppress(pymysql.MySQLError, OSError):
                connection.close()
            raise
        return connection

    def _describe_session(self, session: int) -> str:
        """Describes a session for a person. Without the PROCESS privilege, only sessions of our own account are visible, as another
        archiver's is."""
        for row in self._rows("SHOW PROCESSLIST"):
            if row[0] == session:
                return f"{self._describe_program(session)}connection {session} of {row[1]} from {row[2]}"
        return f"connection {session}"

    def _describe_program(self, session: int) -> str:
        """The program, host and process of a session of our own account, where the server keeps that (MySQL)."""
        attributes: dict[str, str] = {}
        with contextlib.suppress(pymysql.ProgrammingError, pymysql.OperationalError):
            assert self._connection is not None
            found = _rows(
                self._connection,
                "SELECT attr_name, attr_value FROM performance_schema.session_account_connect_attrs"
                " WHERE processlist_id = %s",
                [session],
            )
            attributes = {str(name): str(value) for name, value in found}
        if "program_name" not in attributes:
            return ""
        return f"{attributes['program_name']}, pid {attributes.get('_pid', '?')}: "


def lock_name(database: str, table: str, target: str) -> str:
    """The name of a target's lock: a digest, since MySQL limits it to 64 characters.

    Two spellings of a target that most collations consider equal share a lock.
    """
    digest = hashlib.sha256(repr((database, table, target.rstrip().casefold())).encode()).hexdigest()
    return f"{_PREFIX}{digest[:48]}"


def _rows(connection: Connection, statement: str, arguments: Sequence[object]) -> Sequence[Sequence[Any]]:
    with connection.cursor() as cursor:
        cursor.execute(statement, arguments or None)
        return cursor.fetchall()


def _message(error: BaseException) -> str:
    return str(error.args[1]) if len(error.args) > 1 else str(error)


def _request_name(locks: Mapping[str, str]) -> str:
    """The name of the lock that signals a request for a source, derived from the lock of its first target."""
    return f"cdc_archiver_w:{min(locks).removeprefix(_PREFIX)}"
