"""The rows that `retry` and `ignore` select, and the change of their attempt counters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Final

from cdc_archiver.commands.context import CommandContext, require_history
from cdc_archiver.database.files_table import Row
from cdc_archiver.database.search import Criteria, RowState, is_pattern, state_of, walk
from cdc_archiver.errors import RowLocked
from cdc_archiver.model import Reason

_CHUNK: Final = 200
_EXAMPLES: Final = 10
_MAX_LOCK_WAITS: Final = 3
"""Locked rows of one chunk that are waited for: each costs seconds, and their neighbours are most likely locked, too."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which files to change.

    Attributes:
        states: only files in these states; named files in other states are counted and left unchanged.
        reasons: of the last failed attempt; empty for any.
        failed_only: only files with failed attempts.
        newest: highest id; None for any.
    """

    criteria: Criteria
    states: frozenset[RowState]
    reasons: tuple[str, ...] = ()
    failed_only: bool = False
    newest: int | None = None


@dataclass(slots=True)
class ChangePlan:
    """What a change would do, or has done.

    Attributes:
        states: number of changed files by their former state.
        left_alone: number of named files that are left unchanged, by state.
        unknown: named ids without a row.
        unknown_paths: named paths without a row.
        newest: the highest selected id; later files were not shown to the operator, so they are not changed.
        examples: some of the files, newest first.
        moved_on: rows that somebody changed meanwhile, which are left unchanged.
        locked: rows that another open transaction has locked.
        no_note: the reason why the change is not in the history; empty if it is.
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
        """Number of changed files."""
        return self.states.total()


def plan_change(context: CommandContext, selection: Selection) -> ChangePlan:
    """What the change would do. Changes nothing.

    Raises:
        Misconfigured: the selection needs the history, and there is none.
    """
    if selection.reasons:
        require_history(context, "--reason")
    plan = ChangePlan()
    found_ids: set[int] = set()
    missing_paths = {path for path in selection.criteria.paths if not is_pattern(path)}
    for row, selected in _named_rows(context, selection):
        state = state_of(row, context.settings.max_attempts)
        if row.record.id in selection.criteria.ids:
            found_ids.add(row.record.id)
        missing_paths.discard(row.record.path)
        if not selected:
            plan.left_alone[state] += 1
            continue
        plan.states[state] += 1
        plan.newest = max(plan.newest, row.record.id)
        if len(plan.examples) < _EXAMPLES:
            plan.examples.append(row)
    if not selection.reasons:
        plan.unknown = tuple(id_ for id_ in selection.criteria.ids if id_ not in found_ids)
        plan.unknown_paths = tuple(sorted(missing_paths))
    return plan


def apply_change(
    context: CommandContext,
    selection: Selection,
    attempts: int,
    result: str,
    note: str,
    on_progress: Callable[[int], None] = lambda done: None,
) -> ChangePlan:
    """Changes the counters, in short transactions.

    Args:
        attempts: the counter's new value.
        result, note: for the history.
        on_progress: called with the number of changed files.
    """
    done = ChangePlan()
    for rows in _chunks(selected_rows(context, selection)):
        _write(context, rows, attempts, result, note, done)
        on_progress(done.files)
    return done


def selected_rows(context: CommandContext, selection: Selection) -> Iterator[Row]:
    """The rows that are to be changed."""
    return (row for row, selected in _named_rows(context, selection) if selected)


def _write(context: CommandContext, rows: list[Row], attempts: int, result: str, note: str, done: ChangePlan) -> None:
    """Writes all rows in one transaction; if one of them is locked, each in its own."""
    records = {row.record: attempts for row in rows}
    try:
        with context.database.transaction() as connection:
            written = context.files.set_attempts(connection, records)
            changed = [record for record in records if record.id in written.changed]
            no_note = context.note(connection, changed, result, note)
    except RowLocked:
        if len(rows) == 1:
            done.locked += 1
            return
        before = done.locked
        for number, row in enumerate(rows):
            if done.locked - before >= _MAX_LOCK_WAITS:
                done.locked += len(rows) - number
                return
            _write(context, [row], attempts, result, note, done)
        return
    done.no_note = done.no_note or no_note
    done.moved_on += len(records) - len(changed)
    ids = {record.id for record in changed}
    for row in rows:
        if row.record.id in ids:
            done.states[state_of(row, context.settings.max_attempts)] += 1
            if len(done.examples) < _EXAMPLES:
                done.examples.append(row)


def _named_rows(context: CommandContext, selection: Selection) -> Iterator[tuple[Row, bool]]:
    """The named rows, each with whether it is selected. Without ids or paths, all rows are selected ones."""
    criteria = selection.criteria
    if not criteria.names_files:
        # A file that cannot be recorded may have no failed attempt.
        failed_only = selection.failed_only and Reason.NOT_RECORDABLE.value not in selection.reasons
        criteria = replace(criteria, states=selection.states, has_failed_attempts=failed_only)
    after = None if selection.newest is None else selection.newest + 1  # walk goes down
    for rows in _chunks(walk(context.database, context.files, criteria, after=after)):
        yield from _with_decision(context, selection, rows)


def _with_decision(context: CommandContext, selection: Selection, rows: Iterable[Row]) -> Iterator[tuple[Row, bool]]:
    rows = list(rows)
    reasons: dict[int, str | None] = {}
    if selection.reasons:
        history = require_history(context, "--reason")
        with context.database.connect() as connection:
            last = history.last_failures(connection, [row.record.id for row in rows])
        reasons = {id_: attempt.reason for id_, attempt in last.items()}
    not_recordable: Collection[int] = ()
    if selection.failed_only and context.history is not None:
        with context.database.connect() as connection:
            pending = [row.record.id for row in rows if not row.copied and not row.record.attempts]
            not_recordable = context.history.not_recordable(connection, pending)
    for row in rows:
        if selection.reasons and reasons.get(row.record.id) not in selection.reasons:
            continue
        in_state = state_of(row, context.settings.max_attempts) in selection.states
        has_failed = row.record.attempts > 0 or row.record.id in not_recordable
        yield row, in_state and (has_failed or not selection.failed_only)


def _chunks(rows: Iterator[Row]) -> Iterator[list[Row]]:
    while chunk := list(islice(rows, _CHUNK)):
        yield chunk
