"""One archiver for a target: the database's own locks, on a connection that dies with whoever holds them.

A ``GET_LOCK`` is known to one server only: it does not span the nodes of a Galera cluster.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pymysql
from pymysql.connections import Connection

from cdc_archiver.database.connections import Database, translate_error
from cdc_archiver.errors import LockLost

_PREFIX: Final = "cdc_archiver:"


@dataclass(frozen=True, slots=True)
class LockTiming:
    """How long what may take, in seconds, such that a loss is noticed before another can hold the lock.

    The server ends a silent session after ``session_limit``: so a dead host's lock dies. It last heard of us when the last
    check that was answered was sent. The answer took ``answer_limit`` at the most; ``check_interval`` later the next check is
    sent, and given up after ``answer_limit``. So a loss is known ``check_interval + 2 * answer_limit`` after the server last
    heard of us, and what that leaves of ``session_limit`` is the time to kill what is under way.

    Two cases are outside: a KILL of the session, noticed at the next check, and a machine that slept. For these there is the
    write-back, which names what it read.

    Attributes:
        session_limit: whole seconds, as the server counts them.
        try_interval: between two tries for a lock that another holds.
        spare_after: how long a source must have been nobody's before one takes it who has as many as it should: longer than
            it takes those who have room for it.
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
    """The locks of some sources, on one session: of each source all its targets, or none. For one thread.

    Args:
        database: where the table is.
        table: the files table.
        sources: their names, and whose files are archived from each.
        timing: how long what may take.
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
        # Their locks' names, each with its target. What is held is read by other threads, and so replaced as a whole.
        self._described: dict[str, dict[str, str]] = {}
        self._held: dict[str, dict[str, str]] = {}
        self.losses = 0
        """How often all that we held was lost."""
        self._wishes: set[str] = set()
        self.describe(sources)

    def describe(self, sources: Mapping[str, Sequence[str]]) -> None:
        """Other sources from now on. One that is held is held with the targets that it was taken with until it is released."""
        self._described = {}
        for source, targets in sources.items():
            names = {lock_name(self._database.name, self._table, target): target for target in targets}
            # In one order for everybody: of two that want some of the same, one gets the first that both want, and goes on.
            self._described[source] = dict(sorted(names.items()))

    @property
    def sources(self) -> tuple[str, ...]:
        """All that are described."""
        return tuple(self._described)

    @property
    def held(self) -> tuple[str, ...]:
        """The sources that we took, and have not heard of a loss of since; the newest last."""
        return tuple(self._held)

    def acquire(self, source: str) -> bool:
        """Tries to take a source, and does not wait for it.

        Returns:
            Whether we hold it now.

        Raises:
            DatabaseUnavailable: the database does not answer.
            Misconfigured: it answers, and a person must fix something.
        """
        if source not in self._held:
            taken: list[str] = []
            # One after the other: in one statement some would be taken although an earlier one is not to be had.
            for name in self._described[source]:
                if self._ask("SELECT GET_LOCK(%s, 0)", name) != (1,):
                    self._free(taken)
                    return False
                taken.append(name)
            self._held = {**self._held, source: self._described[source]}
        return True

    def acquire_all(self) -> bool:
        """Tries to take every source; where one is not to be had, none is held.

        Raises:
            DatabaseUnavailable: the database does not answer.
            Misconfigured: it answers, and a person must fix something.
        """
        if all(self.acquire(source) for source in self._described):
            return True
        self.close()
        return False

    def holder(self, source: str) -> str | None:
        """Which other session holds one of its locks: for a person. None where none does.

        Raises:
            DatabaseUnavailable: the database does not answer.
            Misconfigured: it answers, and a person must fix something.
        """
        if source in self._held:
            return None
        for name, target in self._described[source].items():
            (session,) = self._ask("SELECT IS_USED_LOCK(%s)", name)
            if session is not None:
                return f"{self._who(int(session))} (target {target})"
        return None

    def check(self) -> None:
        """Asks the server whether we still hold what we hold, which also keeps the session alive.

        Raises:
            LockLost: of some we do not, or there was no answer in time. Then we hold nothing.
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
            raise LockLost(f"the connection that holds the lock is gone: {_words(error)}") from error
        for target, holder in zip(locks.values(), holders, strict=True):
            if holder != me:
                self._forget()
                raise LockLost(f"the lock of the target {target} is no longer ours")

    def request_sources(self, sources: Collection[str]) -> None:
        """Says to whoever holds these sources that we have room for them, and of all others that we have none.

        Raises:
            DatabaseUnavailable: the database does not answer.
            Misconfigured: it answers, and a person must fix something.
        """
        wishes = {_wish(self._described[source]) for source in sources}
        for name in self._wishes - wishes:
            self._wishes.discard(name)
            self._free([name])
        for name in wishes - self._wishes:
            if self._ask("SELECT GET_LOCK(%s, 0)", name) == (1,):
                self._wishes.add(name)

    def is_requested(self, source: str) -> bool:
        """Whether another has room for a source of ours.

        Raises:
            DatabaseUnavailable: the database does not answer.
            Misconfigured: it answers, and a person must fix something.
        """
        return self._ask("SELECT IS_USED_LOCK(%s)", _wish(self._held[source])) != (None,)

    def release(self, source: str) -> None:
        """Lets go of one source.

        Raises:
            DatabaseUnavailable: the database does not answer: with its session the lock ends anyway.
            Misconfigured: it answers, and a person must fix something.
        """
        if source in self._held:
            locks = self._held[source]
            self._held = {other: held for other, held in self._held.items() if other != source}
            self._free(list(locks))

    def close(self) -> None:
        """Lets go of everything. Never raises: with its session a lock ends anyway."""
        if self._connection is not None:
            names = [name for held in self._held.values() for name in held]
            # The answer says that they are free, which the end of a session alone does not.
            with contextlib.suppress(pymysql.MySQLError, OSError):
                for name in names:
                    _rows(self._connection, "SELECT RELEASE_LOCK(%s)", [name])
        self._forget()

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
            if not self._held:  # otherwise it is for :meth:`check` to find out, and to say
                self._forget()
            raise translate_error(error, self._database.address) from error

    def covers(self, source: str, targets: Sequence[str]) -> bool:
        """Whether we hold a source, and with exactly these targets."""
        return set(self._held.get(source, ())) == {
            lock_name(self._database.name, self._table, target) for target in targets
        }

    def _forget(self) -> None:
        self.losses += bool(self._held)
        connection, self._connection = self._connection, None
        self._held = {}
        self._wishes.clear()
        if connection is not None:
            with contextlib.suppress(pymysql.MySQLError, OSError):
                connection.close()

    def _connect(self) -> Connection:
        limit = self.timing.answer_limit
        connection = self._database.raw_connection(connect_timeout=limit, read_timeout=limit, write_timeout=limit)
        try:
            with connection.cursor() as cursor:
                cursor.execute("SET SESSION wait_timeout = %s", (self.timing.session_limit,))
        except BaseException:
            with contextlib.suppress(pymysql.MySQLError, OSError):
                connection.close()
            raise
        return connection

    def _who(self, session: int) -> str:
        """A session, for a person. Without PROCESS we see those of our own account: which another archiver's is."""
        for row in self._rows("SHOW PROCESSLIST"):
            if row[0] == session:
                return f"connection {session} of {row[1]} from {row[2]}"
        return f"connection {session}"


def lock_name(database: str, table: str, target: str) -> str:
    """What a target's lock is called: MySQL takes 64 characters, and names of any length and script go into it.

    Two spellings that most collations take for the same target share a lock.
    """
    digest = hashlib.sha256(repr((database, table, target.rstrip().casefold())).encode()).hexdigest()
    return f"{_PREFIX}{digest[:48]}"


def _rows(connection: Connection, statement: str, arguments: Sequence[object]) -> Sequence[Sequence[Any]]:
    with connection.cursor() as cursor:
        cursor.execute(statement, arguments or None)
        return cursor.fetchall()


def _words(error: BaseException) -> str:
    return str(error.args[1]) if len(error.args) > 1 else str(error)


def _wish(locks: Mapping[str, str]) -> str:
    """The lock by which one who has room for a source says so: of its first target's lock."""
    return f"cdc_archiver_w:{min(locks).removeprefix(_PREFIX)}"
