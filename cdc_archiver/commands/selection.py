"""Which files an operator's change is about, and the change itself: what `retry` and `ignore` have in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Final

from cdc_archiver.commands.context import CommandContext, require_history
from cdc_archiver.database.files_table import Row
from cdc_archiver.database.search import Criteria, RowState, is_pattern, state_of, walk
from cdc_archiver.errors import RowLocked

_CHUNK: Final = 200
_EXAMPLES: Final = 10
_LOCKED_MOST: Final = 3
"""Locked rows of one chunk that are waited for, each by itself."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which files are meant.

    Attributes:
        reasons: why the last try failed; any, where there is none.
        wanted: the states that are changed; files in other states are counted and left alone.
        newest: none that was registered after this id; any, where there is none.
    """

    criteria: Criteria
    wanted: frozenset[RowState]
    reasons: tuple[str, ...] = ()
    charged: bool = False
    newest: int | None = None


@dataclass(slots=True)
class ChangePlan:
    """What a change would do, or did.

    Attributes:
        states: of the files that are meant and changed.
        left_alone: of those that were named and are not.
        unknown: ids that no row has.
        unknown_paths: paths that no row has.
        newest: the highest id of those that are meant; what came after it, nobody has been shown.
        examples: some of them, newest first.
        moved_on: rows that changed meanwhile, so that we left them alone.
        locked: rows that somebody else's open transaction holds.
        no_note: why the history has no note of it; empty where it has.
    """

    states: Counter[RowState] = field(default_factory=Counter)
    left_alone: Counter[RowState] = field(default_factory=Counter)
    unknown: tuple[int, ...] = ()
    unknown_paths: tuple[str, ...] = ()
    newest: int = 0
    examples: list[Row] = field(default_factory=list)
    moved_on: int = 0
    locked: int = 0
    no_note: str = ""

    @property
    def files(self) -> int:
        """How many files it is about."""
        return self.states.total()


def plan(desk: CommandContext, selection: Selection) -> ChangePlan:
    """What the change would do. Changes nothing.

    Raises:
        Misconfigured: it needs the history, and there is none.
    """
    if selection.reasons:
        require_history(desk, "--reason")
    found = ChangePlan()
    seen: set[int] = set()
    paths = {path for path in selection.criteria.paths if not is_pattern(path)}
    for row, meant in _named(desk, selection):
        state = state_of(row, desk.settings.max_attempts)
        if row.record.id in selection.criteria.ids:
            seen.add(row.record.id)
        paths.discard(row.record.path)
        if not meant:
            found.left_alone[state] += 1
            continue
        found.states[state] += 1
        found.newest = max(found.newest, row.record.id)
        if len(found.examples) < _EXAMPLES:
            found.examples.append(row)
    if not selection.reasons:
        found.unknown = tuple(id_ for id_ in selection.criteria.ids if id_ not in seen)
        found.unknown_paths = tuple(sorted(paths))
    return found


def change(
    desk: CommandContext,
    selection: Selection,
    attempts: int,
    result: str,
    words: str,
    on_progress: Callable[[int], None] = lambda done: None,
) -> ChangePlan:
    """Does it, in short transactions.

    Args:
        attempts: what the counter becomes.
        result, words: for the history.
        on_progress: told how many files are done.
    """
    done = ChangePlan()
    meant = (row for row, yes in _named(desk, selection) if yes)
    for rows in _chunks(meant):
        _write(desk, rows, attempts, result, words, done)
        on_progress(done.files)
    return done


def _write(desk: CommandContext, rows: list[Row], attempts: int, result: str, words: str, done: ChangePlan) -> None:
    """One transaction; where somebody holds a row of it, one for each."""
    records = {row.record: attempts for row in rows}
    try:
        with desk.database.transaction() as connection:
            written = desk.files.set_attempts(connection, records)
            changed = [record for record in records if record.id in written.changed]
            no_note = desk.note(connection, changed, result, words)
    except RowLocked:
        if len(rows) == 1:
            done.locked += 1
            return
        before = done.locked
        for number, row in enumerate(rows):
            if (
                done.locked - before >= _LOCKED_MOST
            ):  # each costs seconds, and its neighbours are most likely held as well
                done.locked += len(rows) - number
                return
            _write(desk, [row], attempts, result, words, done)
        return
    done.no_note = done.no_note or no_note
    done.moved_on += len(records) - len(changed)
    ids = {record.id for record in changed}
    for row in rows:
        if row.record.id in ids:
            done.states[state_of(row, desk.settings.max_attempts)] += 1
            if len(done.examples) < _EXAMPLES:
                done.examples.append(row)


def _named(desk: CommandContext, selection: Selection) -> Iterator[tuple[Row, bool]]:
    """The rows that are named, and whether they are meant. Rows of a kind are named only where they are meant."""
    criteria = selection.criteria
    if not criteria.names_files:
        criteria = _with_states(criteria, selection)
    after = None if selection.newest is None else selection.newest + 1  # walk goes down
    for rows in _chunks(walk(desk.database, desk.files, criteria, after=after)):
        yield from _meant(desk, selection, rows)


def _with_states(criteria: Criteria, selection: Selection) -> Criteria:
    return replace(criteria, states=selection.wanted, has_failed_attempts=selection.charged)


def _meant(desk: CommandContext, selection: Selection, rows: Iterable[Row]) -> Iterator[tuple[Row, bool]]:
    listed = list(rows)
    reasons: dict[int, str | None] = {}
    if selection.reasons:
        history = require_history(desk, "--reason")
        with desk.database.connect() as connection:
            last = history.last_failures(connection, [row.record.id for row in listed])
        reasons = {id_: attempt.reason for id_, attempt in last.items()}
    for row in listed:
        if selection.reasons and reasons.get(row.record.id) not in selection.reasons:
            continue
        wanted = state_of(row, desk.settings.max_attempts) in selection.wanted
        yield row, wanted and (row.record.attempts > 0 or not selection.charged)


def _chunks(rows: Iterator[Row]) -> Iterator[list[Row]]:
    while chunk := list(islice(rows, _CHUNK)):
        yield chunk
