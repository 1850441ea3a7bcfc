"""One archiver for a target: the database's own lock, on a connection that dies with whoever holds it.

A ``GET_LOCK`` is known to one server only: it does not span the nodes of a Galera cluster.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pymysql
from pymysql.connections import Connection

from cdc_archiver.database.engine import Database, in_our_words
from cdc_archiver.errors import ArchiverError, LockLost
from cdc_archiver.threads import Part


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
    """

    session_limit: int = 15
    check_interval: float = 5.0
    answer_limit: float = 3.0
    try_interval: float = 2.0

    def __post_init__(self) -> None:
        if self.check_interval + 2 * self.answer_limit >= self.session_limit:
            raise ValueError(f"{self}: another could hold the lock before its loss is noticed")


class TargetLocks:
    """The locks of some targets, all or none. For one thread.

    Args:
        database: where the table is.
        table: the files table.
        targets: whose files are archived.
        timing: how long what may take.
    """

    def __init__(
        self, database: Database, table: str, targets: Sequence[str], timing: LockTiming | None = None
    ) -> None:
        self.timing = timing or LockTiming()
        self._database = database
        # In one order for everybody: of two that want some of the same, one gets the first that both want, and goes on.
        self._locks = sorted({lock_name(database.name, table, target): target for target in targets}.items())
        self._connection: Connection | None = None

    @property
    def held(self) -> bool:
        """Whether we took them, and have not heard of a loss since."""
        return self._connection is not None

    def acquire(self) -> bool:
        """Tries to take all of them, and does not wait for any.

        Returns:
            Whether we hold them now.

        Raises:
            DatabaseUnavailable: the database does not answer.
            Misconfigured: it answers, and a person must mend something.
        """
        if self._connection is not None:
            return True
        connection: Connection | None = None
        try:
            connection = self._connect()
            # One after the other: in one statement some would be taken although an earlier one is not to be had.
            taken = all(_ask(connection, "SELECT GET_LOCK(%s, 0)", [name]) == (1,) for name, _ in self._locks)
        except (pymysql.MySQLError, OSError) as error:
            _close(connection)
            raise in_our_words(error, self._database.address) from error
        if not taken:
            # The end of the session frees what we got.
            _close(connection)
            return False
        self._connection = connection
        return True

    def holder(self) -> str | None:
        """Which other session holds one of them: for a person. None where none does.

        Raises:
            DatabaseUnavailable: the database does not answer.
            Misconfigured: it answers, and a person must mend something.
        """
        if self.held:
            return None
        try:
            with contextlib.closing(self._connect()) as connection:
                for name, target in self._locks:
                    (session,) = _ask(connection, "SELECT IS_USED_LOCK(%s)", [name])
                    if session is not None:
                        return f"{_who(connection, session)} (target {target})"
        except (pymysql.MySQLError, OSError) as error:
            raise in_our_words(error, self._database.address) from error
        return None

    def check(self) -> None:
        """Asks the server whether we still hold them, which also keeps the session alive.

        Raises:
            LockLost: we do not, or there was no answer in time.
        """
        if self._connection is None:
            raise LockLost("the lock is not held")
        questions = ", ".join(["IS_USED_LOCK(%s)"] * len(self._locks))
        try:
            me, *holders = _ask(
                self._connection, f"SELECT CONNECTION_ID(), {questions}", [name for name, _ in self._locks]
            )
        except (pymysql.MySQLError, OSError) as error:
            self._forget()
            raise LockLost(f"the connection that holds the lock is gone: {_words(error)}") from error
        for (_, target), holder in zip(self._locks, holders, strict=True):
            if holder != me:
                self._forget()
                raise LockLost(f"the lock of the target {target} is no longer ours")

    def release(self) -> None:
        """Lets go of them. Never raises: with its session the lock ends anyway."""
        if self._connection is None:
            return
        # The answer says that they are free, which the end of a session alone does not.
        with contextlib.suppress(pymysql.MySQLError, OSError):
            for name, _ in self._locks:
                _ask(self._connection, "SELECT RELEASE_LOCK(%s)", [name])
        self._forget()

    def _forget(self) -> None:
        connection, self._connection = self._connection, None
        _close(connection)

    def _connect(self) -> Connection:
        limit = self.timing.answer_limit
        connection = self._database.raw_connection(connect_timeout=limit, read_timeout=limit, write_timeout=limit)
        try:
            with connection.cursor() as cursor:
                cursor.execute("SET SESSION wait_timeout = %s", (self.timing.session_limit,))
        except BaseException:
            _close(connection)
            raise
        return connection


class LockKeeper(Part):
    """Gets the locks as soon as they are free, keeps them, and says when they are gone.

    The callbacks come from its thread. ``on_lost`` has all copying stopped within what :class:`LockTiming` leaves for it; until
    it returns, nothing is tried again.

    Args:
        locks: which; the thread's own from here on.
        on_acquired: we hold them.
        on_lost: we do not any more; takes the reason, a sentence.
        on_waiting: another holds them; takes who, once for each.
        on_unreachable: the database cannot be asked; takes why, once for each reason.
    """

    def __init__(
        self,
        locks: TargetLocks,
        on_acquired: Callable[[], None],
        on_lost: Callable[[str], None],
        on_waiting: Callable[[str], None] = lambda holder: None,
        on_unreachable: Callable[[str], None] = lambda why: None,
    ) -> None:
        super().__init__("lock")
        self._locks = locks
        self._on_acquired = on_acquired
        self._on_lost = on_lost
        self._on_waiting = on_waiting
        self._on_unreachable = on_unreachable
        self._told = ""

    @property
    def held(self) -> bool:
        """Whether we hold them, as far as is known."""
        return self._locks.held

    def work(self) -> None:
        """Tries, keeps, tries again; lets go at the stop. A stop takes no longer than an unanswered question."""
        try:
            while not self.stopping.is_set():
                if self._try():
                    self._keep()
                else:
                    self.stopping.wait(self._locks.timing.try_interval)
        finally:
            self._locks.release()

    def _try(self) -> bool:
        try:
            if self._locks.acquire():
                self._told = ""
                self._on_acquired()
                return True
            holder = self._locks.holder()
        except ArchiverError as error:
            if str(error) != self._told:
                self._told = str(error)
                self._on_unreachable(str(error))
            return False
        # It may have become free between the two questions.
        if holder is not None and holder != self._told:
            self._told = holder
            self._on_waiting(holder)
        return False

    def _keep(self) -> None:
        while not self.stopping.wait(self._locks.timing.check_interval):
            try:
                self._locks.check()
            except LockLost as lost:
                self._on_lost(str(lost))
                return


def lock_name(database: str, table: str, target: str) -> str:
    """What a target's lock is called: MySQL takes 64 characters, and names of any length and script go into it.

    Two spellings that most collations take for the same target share a lock.
    """
    digest = hashlib.sha256(repr((database, table, target.rstrip().casefold())).encode()).hexdigest()
    return f"cdc_archiver:{digest[:48]}"


def _ask(connection: Connection, statement: str, arguments: Sequence[object]) -> tuple[Any, ...]:
    with connection.cursor() as cursor:
        cursor.execute(statement, arguments)
        row = cursor.fetchone()
    if row is None:
        raise pymysql.InternalError(f"no answer to {statement}")
    return tuple(row)


def _who(connection: Connection, session: int) -> str:
    """A session, for a person. Without PROCESS we see those of our own account: which another archiver's is."""
    with connection.cursor() as cursor:
        cursor.execute("SHOW PROCESSLIST")
        for row in cursor.fetchall():
            if row[0] == session:
                return f"connection {session} of {row[1]} from {row[2]}"
    return f"connection {session}"


def _words(error: BaseException) -> str:
    return str(error.args[1]) if len(error.args) > 1 else str(error)


def _close(connection: Connection | None) -> None:
    if connection is not None:
        with contextlib.suppress(pymysql.MySQLError, OSError):
            connection.close()
