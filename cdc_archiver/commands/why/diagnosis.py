"""From what is known of a file to an answer: one sentence, what happens next, what a person can do. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Final

from cdc_archiver.commands.why.facts import Facts, PlaceState
from cdc_archiver.database.operator_history import IGNORED, HistoryEntry
from cdc_archiver.database.search import RowState
from cdc_archiver.model import Reason, Scope
from cdc_archiver.timespec import format_age, format_duration, format_time
from cdc_archiver.transfer.probe import FileState

_WORDS: Final = MappingProxyType(
    {
        Reason.MISSING: "it was not on its source",
        Reason.UNREADABLE: "the account on the source may not read it",
        Reason.CHANGED: "it was not the file that was registered: its md5 was another",
        Reason.NOT_A_FILE: "its path on the source is no regular file",
        Reason.BAD_PATH: "its path cannot be a file's",
        Reason.BAD_NAME: "its name cannot be a file's",
        Reason.NO_PUB_ID: "the row has no pub_id",
        Reason.BAD_PUB_ID: "its pub_id is no directory's name",
        Reason.BAD_ACTION: "its action is no directory's name",
        Reason.NO_TIMESTAMP: "the row has no timestamp",
        Reason.NO_MD5: "the row has no md5sum",
        Reason.PATH_TOO_LONG: "its archived path does not fit into the column",
    }
)

_COLUMNS: Final = MappingProxyType(
    {
        Reason.NOT_A_FILE: "path",
        Reason.BAD_PATH: "path",
        Reason.BAD_NAME: "path",
        Reason.NO_PUB_ID: "pub_id",
        Reason.BAD_PUB_ID: "pub_id",
        Reason.BAD_ACTION: "action",
        Reason.NO_TIMESTAMP: "timestamp",
        Reason.NO_MD5: "md5sum",
    }
)

_AT_SOURCE: Final = MappingProxyType(
    {
        FileState.OK: "it is there now",
        FileState.MISSING: "it is not there now",
        FileState.UNREADABLE: "it is there now, and the account may not read it",
        FileState.NOT_A_FILE: "what is there now is no regular file",
        FileState.ROOT_GONE: "the source's root is missing or empty now: its disk is not mounted",
    }
)

_UNLESS: Final = ", unless it runs with a lower --max-attempts than this command."


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What a person is told.

    Attributes:
        sentence: why the file is (not) here.
        following: what happens next, by itself.
        advice: what to do, and the command that does it.
    """

    sentence: str
    following: str
    advice: tuple[tuple[str, str], ...]


def reason_words(reason: str | None) -> str:
    """A reason in words."""
    try:
        return _WORDS.get(Reason(reason or ""), reason or "").strip()
    except ValueError:
        return reason or ""


def at_source_words(facts: Facts) -> str:
    """What is to be seen of the file on its source."""
    seen = facts.at_source
    return seen.note if seen.state is None else _AT_SOURCE[seen.state]


def diagnose(facts: Facts, now: datetime) -> Diagnosis:
    """The answer.

    Args:
        now: aware.
    """
    match facts.state:
        case RowState.ARCHIVED:
            return _archived(facts)
        case RowState.IGNORED:
            return _ignored(facts)
        case RowState.REFUSED:
            return _refused(facts)
        case RowState.QUARANTINED if facts.service.in_hand is None:
            return _quarantined(facts, now)
        case _:  # pending; or our --max-attempts is lower than that of the service, which has it in hand
            return _pending(facts, now)


def _archived(facts: Facts) -> Diagnosis:
    id_ = facts.record.id
    anew = ("to have it archived anew, where its source still has it", f"cdc-archiver verify --requeue {id_}")
    others = ("look at the archive's disk, and at what else it holds", "cdc-archiver verify --sample 1%")
    match facts.place.state:
        case PlaceState.RIGHT:
            return Diagnosis("It is here: archived, and the file has the row's md5.", "Nothing: it is done.", ())
        case PlaceState.THERE:
            whole = ("to be sure of its content", f"cdc-archiver why {id_} --hash")
            return Diagnosis("It is here: archived, and the file is in its place.", "Nothing: it is done.", (whole,))
        case PlaceState.WRONG:
            return Diagnosis(
                "It was archived, and what is in its place now is another file: its md5 is not the row's.",
                "Nothing by itself: for the service it is done.",
                (anew, others),
            )
        case PlaceState.ABSENT:
            return Diagnosis(
                "It was archived, and is not in its place any more.",
                "Nothing by itself: for the service it is done.",
                (anew, others),
            )
        case _:
            return Diagnosis(
                f"The row says that it is archived; whether the file is there cannot be seen from here: {facts.place.note}.",
                "Nothing: for the service it is done.",
                (),
            )


def _ignored(facts: Facts) -> Diagnosis:
    notes = [attempt for attempt in facts.attempts if attempt.result == IGNORED]
    who = f": {notes[-1].detail}, on {format_time(notes[-1].at)}" if notes else "; nobody noted why"
    return Diagnosis(
        f"It is not here because an operator said to ignore it{who}.",
        "Nothing: an ignored file is tried no more, and is no alarm.",
        (("if it is wanted after all", f"cdc-archiver ignore --undo {facts.record.id}"),),
    )


def _refused(facts: Facts) -> Diagnosis:
    last = _last_failure(facts)
    told = last.detail or reason_words(last.reason) if last else _unknown(facts)
    if facts.place.refused is None and not (last and last.reason == Reason.NOT_A_FILE.value):
        return Diagnosis(
            f"It is not here because its row was refused ({told}); the row as it is now names a place.",
            "Nothing: a refused file is tried no more, until somebody says so.",
            (_retry(facts, "to have it tried"), _ignore(facts)),
        )
    reason = facts.place.refused.value if facts.place.refused else Reason.NOT_A_FILE.value
    return Diagnosis(
        f"It is not here because its row was refused: {facts.place.refused_why or told}.",
        "Nothing: no try can succeed with the row as it is.",
        (*_fix_row(facts, reason), _retry(facts, "when the row is right"), _ignore(facts)),
    )


def _quarantined(facts: Facts, now: datetime) -> Diagnosis:
    last = _last_failure(facts)
    why = (
        f", the last time {format_age(last.at, now)}: {_said(last)}"
        if last
        else f"; why is not known: {_unknown(facts)}"
    )
    return Diagnosis(
        f"It is not here because it was given up after {facts.record.attempts} failed attempts{why}.",
        "Nothing: a quarantined file is tried no more, until somebody says so.",
        (*_fix_file(facts, last), _retry(facts, _when_to_retry(facts, last)), _ignore(facts)),
    )


def _pending(facts: Facts, now: datetime) -> Diagnosis:
    record, service = facts.record, facts.service
    if facts.targets and facts.source is None:
        return Diagnosis(
            f"It is not here because nobody was asked to archive it: its instance_id {record.instance_id!r} is none of the "
            f"configured targets ({', '.join(facts.targets)}).",
            "Nothing, unless another archiver has that target.",
            (("to have it archived here, run the service with it too", f"--target {shlex.quote(record.instance_id)}"),),
        )
    if facts.place.refused is not None:
        return Diagnosis(
            f"It is not here, and cannot be: {facts.place.refused_why}.",
            "It is refused at its next try.",
            (*_fix_row(facts, facts.place.refused.value), _ignore(facts)),
        )
    if facts.at_source.outside:
        return Diagnosis(
            f"It is not here because nobody reads it: {facts.at_source.note}",
            "Nothing: it is left as it is, and nobody is charged.",
            (
                *_fix_row(facts, Reason.BAD_PATH.value),
                ("or, where the directory is meant to be read", "--source-root PATH"),
            ),
        )
    last = _last_failure(facts)
    tried = ""
    if record.attempts:
        said = f": {_said(last)}" if last else ""
        when = f", the last time {format_age(last.at, now)}" if last else ""
        of = f" of {facts.max_attempts}" if record.attempts < facts.max_attempts else ""
        tried = f" It was tried {record.attempts}{of} times{when}{said}."
    sentence, following = _waits(facts)
    advice = [*_fix_file(facts, last)] if record.attempts else []
    if record.attempts:
        advice.append(_retry(facts, "to have it tried at once"))
    if not service.answered:
        advice.append(("to see whether a service runs", "cdc-archiver status"))
    elif service.source is not None and not service.source.get("up", True):
        advice.append(("to see what fixes it", "cdc-archiver check"))
    return Diagnosis(sentence + tried, following, tuple(advice))


def _waits(facts: Facts) -> tuple[str, str]:
    """Whom a pending file waits for, and what comes then."""
    service = facts.service
    if not service.answered:
        return (
            f"It is not here yet: it waits to be archived, and no service can be asked about it ({service.note}).",
            "The running service takes it up at its next sweep, a new one at its start.",
        )
    if service.nobodys:
        return f"It is not here yet: {service.nobodys}.", "Nothing here; the archiver that has its target archives it."
    hand, source, destination = service.in_hand or {}, service.source or {}, service.destination or {}
    if destination and not destination.get("up", True):
        return (
            f"It is not here yet because the archive's disk takes no files: {_of(destination)}.",
            "It is archived when the disk is well again; nobody is charged.",
        )
    if source and not source.get("up", True):
        return (
            f"It is not here yet because its source {source.get('name')} is in trouble: {_of(source)}.",
            "The source is tried again "
            + (
                "just now"
                if hand.get("state") == "in_flight"
                else f"in {format_duration(float(source.get('retry_in') or 0.0))}"
            )
            + "; nobody is charged.",
        )
    match hand.get("state"):
        case "in_flight":
            return "It is being copied just now.", "It is archived in a moment, or charged with an attempt."
        case "waiting":
            if not facts.record.attempts:
                return (
                    "It is not here yet: it was put off, by no fault of its own (the service's log says why; a path outside its "
                    + "--source-root would do this).",
                    f"It is tried again in {format_duration(float(hand.get('retry_in') or 0.0))}; nobody is charged.",
                )
            return (
                "It is not here yet: it waits for its next try.",
                f"It is tried again in {format_duration(float(hand.get('retry_in') or 0.0))}.",
            )
        case "queued" | "offered":
            queued = source.get("queued")
            return (
                "It is not here yet: it is in the queue" + (f", with {queued} in all." if queued else "."),
                "It is copied as soon as a worker is free.",
            )
    if service.state == "standby":
        return (
            f"It is not here yet; the service that answers stands by: {service.why}.",
            "The archiver that holds its target archives it.",
        )
    why = f": {service.why}" if service.why else ""
    return (
        f"It is not here yet: the service ({service.state}{why}) has not taken it up.",
        {
            "starting": "It does when it has started.",
            "no database": "It does when the database answers.",
            "stopping": "The next service does, at its start.",
            "failed": "The next service does, at its start.",
        }.get(service.state, "Its next sweep does" + (_UNLESS if facts.record.attempts else ".")),
    )


def _of(state: dict[str, object]) -> str:
    return ": ".join(str(part) for part in (state.get("reason"), state.get("detail")) if part)


def _last_failure(facts: Facts) -> HistoryEntry | None:
    return next((each for each in reversed(facts.attempts) if each.result in ("charged", "refused")), None)


def _said(attempt: HistoryEntry) -> str:
    return f"{attempt.reason}: {reason_words(attempt.reason)}" if attempt.reason else attempt.detail


def _unknown(facts: Facts) -> str:
    return facts.no_history or "the history has nothing about it"


def _when_to_retry(facts: Facts, last: HistoryEntry | None) -> str:
    if facts.at_source.state is FileState.OK and last and last.reason in ("missing", "unreadable"):
        return "the file can be had now: to have it tried again"
    return "when the cause is fixed"


def _retry(facts: Facts, when: str) -> tuple[str, str]:
    return when, f"cdc-archiver retry --id {facts.record.id}"


def _ignore(facts: Facts) -> tuple[str, str]:
    return "if it will never come", f"cdc-archiver ignore {facts.record.id} --reason '…'"


def _fix_row(facts: Facts, reason: str) -> Iterator[tuple[str, str]]:
    try:
        column = _COLUMNS.get(Reason(reason))
    except ValueError:
        column = None
    if column:
        # An old server's timestamp moves with every UPDATE that does not name it.
        keep = "" if column == "timestamp" else ", timestamp = timestamp"
        yield (
            f"correct the row's {column}",
            f"UPDATE {facts.table} SET {column} = …{keep} WHERE id = {facts.record.id}",
        )
    elif reason == Reason.PATH_TOO_LONG.value:
        # Whatever a MODIFY does not repeat is lost: type, character set, collation.
        yield (
            "give the column path more room, with the type and character set that it has",
            f"SHOW CREATE TABLE {facts.table}",
        )


def _fix_file(facts: Facts, last: HistoryEntry | None) -> Iterator[tuple[str, str]]:
    if last is None or last.reason is None:
        return
    match last.reason:
        case "changed" if last.md5_seen:
            yield (
                "if the file as it is now is the right one, let the row say so",
                (
                    f"UPDATE {facts.table} SET md5sum = 0x{last.md5_seen.hex()}, timestamp = timestamp "
                    f"WHERE id = {facts.record.id} AND COALESCE(copied, 0) = 0"
                ),
            )
        case "unreadable" if facts.at_source.state is not FileState.OK:
            yield (
                "let the archiver's account on the source read it",
                f"chmod a+r {shlex.quote(facts.at_source.path or '')}",
            )
    try:
        if Reason(last.reason).scope in (Scope.SOURCE, Scope.CONFIGURATION):
            yield "to see what fixes it", "cdc-archiver check"
    except ValueError:
        return
