"""The promises of the decision, whatever happens to rows, in whatever order."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import pairwise

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cdc_archiver.database.timecodes_table import StoredTimecode, TimecodeState
from cdc_archiver.timecodes.decision import (
    Look,
    Rules,
    TimecodeCount,
    TimecodeFacts,
    completed,
    decide,
    end_of,
    may_be_late,
)
from cdc_archiver.timecodes.timecode_index import digest_of

RULES = Rules(timedelta(hours=6), timedelta(hours=1))
TIMECODE = 17645


@dataclass
class _Row:
    content: bytes
    decided: bool = False
    archived_before: bool = False


class OneTimecode(RuleBasedStateMachine):
    """Rows come, are archived, given up, requeued; looks happen, and the process may die between a look and the next."""

    def __init__(self) -> None:
        super().__init__()
        self.stored = StoredTimecode("m", TIMECODE)
        self.now = end_of(TIMECODE) - timedelta(hours=1)
        self.rows: list[_Row] = []
        self.changed = False
        self.held = False
        self.told: list[tuple[int, bytes]] = []
        self.late: list[_Row] = []

    @rule(content=st.integers(0, 3))
    def registered(self, content: int) -> None:
        self.rows.append(_Row(b"%d\t\n" % content))

    @precondition(lambda self: any(not row.decided for row in self.rows))
    @rule(data=st.data())
    def archived(self, data: st.DataObject) -> None:
        row = data.draw(st.sampled_from([row for row in self.rows if not row.decided]))
        row.decided = True
        known = row.archived_before or any(
            other.archived_before and other is not row and other.content == row.content for other in self.rows
        )
        if may_be_late(self.stored):
            if not known:
                self.late.append(row)
            if self.stored.state is TimecodeState.COMPLETE:  # in the transaction that archives it
                self.stored = replace(self.stored, state=TimecodeState.REOPENED, changed_at=self.now)
            self.changed = True
        row.archived_before = True

    @precondition(lambda self: any(row.decided for row in self.rows))
    @rule(data=st.data())
    def requeued(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from([row for row in self.rows if row.decided])).decided = False

    @rule(minutes=st.integers(1, 400))
    def time_passes(self, minutes: int) -> None:
        self.now += timedelta(minutes=minutes)

    @rule()
    def held_or_not(self) -> None:
        self.held = not self.held

    @rule()
    def restarted(self) -> None:
        self.changed = True  # each start compares files with rows; here it always finds a reason to look again

    @rule(clocks_agree=st.booleans())
    def looked_at(self, clocks_agree: bool) -> None:
        undecided = sum(not row.decided for row in self.rows)
        facts = TimecodeFacts({"pending": undecided} if undecided else {}, held=self.held, changed=self.changed)
        before = self.stored
        state = decide(before, facts, Look(self.now, clocks_agree), RULES)
        if state is TimecodeState.COMPLETE:
            if before.state is state:
                return
            assert clocks_agree
            assert not self.held
            lines = {row.content for row in self.rows if row.decided}
            self.stored = completed(before, TimecodeCount(len(lines), 0, 0, 0, 0, digest_of(lines)), 0, self.now)
            if self.stored.generation != before.generation:
                assert self.stored.digest is not None
                self.told.append((self.stored.generation, self.stored.digest))
                self.stored = replace(self.stored, told_by="marker")
            return
        changed_at = self.now if state is not before.state or self.changed else before.changed_at
        self.stored = replace(before, state=state, reasons=facts.undecided, changed_at=changed_at)
        self.changed = False

    @invariant()
    def a_timecode_that_becomes_complete_has_no_undecided_row(self) -> None:
        if self.stored.state is TimecodeState.COMPLETE and self.stored.completed_at == self.now:
            assert all(row.decided for row in self.rows) or self.stored.changed_at == self.now

    @invariant()
    def no_content_is_told_twice_in_a_row_and_no_generation_twice(self) -> None:
        generations = [generation for generation, _ in self.told]
        assert generations == sorted(set(generations))
        digests = [digest for _, digest in self.told]
        assert all(one != other for one, other in pairwise(digests))

    @invariant()
    def nothing_is_told_before_the_grace_is_over(self) -> None:
        assert not self.told or self.now >= end_of(TIMECODE) + RULES.grace

    @invariant()
    def no_file_is_late_twice(self) -> None:
        assert len({id(row) for row in self.late}) == len(self.late)


OneTimecode.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestOneTimecode = OneTimecode.TestCase
