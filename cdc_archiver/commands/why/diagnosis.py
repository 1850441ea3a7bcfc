"""Derives a diagnosis from the facts about a file: one sentence, what happens next, what an operator can do. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from types import MappingProxyType
from typing import Any, Final

from cdc_archiver.commands.why.facts import FileFacts, PlaceState
from cdc_archiver.commands.why.timecode_facts import mark_text
from cdc_archiver.database.operator_history import IGNORED, NOT_RECORDABLE, HistoryEntry
from cdc_archiver.database.search import RowState
from cdc_archiver.model import OLDEST_TIMESTAMP, Reason, Scope
from cdc_archiver.timespec import format_age, format_duration, format_time
from cdc_archiver.transfer.source_files import FileState

_REASONS: Final = MappingProxyType(
    {
        Reason.MISSING: "it was not on its source",
        Reason.UNREADABLE: "the account on the source had no permission to read it",
        Reason.CHANGED: "its md5 differs from the registered one",
        Reason.NOT_A_FILE: "its path on the source is not a regular file",
        Reason.BAD_PATH: "its path is not a valid file path",
        Reason.BAD_NAME: "its name is not a valid file name",
        Reason.NO_PUB_ID: "the row has no pub_id",
        Reason.BAD_PUB_ID: "its pub_id is not a valid name of a stream's directory",
        Reason.BAD_ACTION: "its action is not a valid directory name",
        Reason.NO_TIMESTAMP: "the row has no timestamp",
        Reason.BAD_TIMESTAMP: "its timestamp gives no five digits that name its time",
        Reason.NO_MD5: "the row has no md5sum",
        Reason.PATH_TOO_LONG: "its archived path does not fit into the column",
        Reason.NOT_RECORDABLE: "the database refuses to record its result",
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
        Reason.BAD_TIMESTAMP: "timestamp",
        Reason.NO_MD5: "md5sum",
    }
)

_AT_SOURCE: Final = MappingProxyType(
    {
        FileState.OK: "it exists now",
        FileState.MISSING: "it does not exist now",
        FileState.UNREADABLE: "it exists now, but the account has no permission to read it",
        FileState.NOT_A_FILE: "it is not a regular file now",
        FileState.ROOT_GONE: "the source's root is missing or empty now: its disk is not mounted",
    }
)

_DOES_NOT_COUNT: Final = "this does not count as a failed attempt"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The diagnosis of a file.

    Attributes:
        sentence: why the file is, or is not, in the archive.
        following: what happens next without an operator.
        advice: pairs of a purpose and the command for it.
    """

    sentence: str
    following: str
    advice: tuple[tuple[str, str], ...]


def reason_text(reason: str | None) -> str:
    """A sentence for a reason; the reason itself if there is none."""
    try:
        return _REASONS.get(Reason(reason or ""), reason or "").strip()
    except ValueError:
        return reason or ""


def at_source_text(facts: FileFacts) -> str:
    """A sentence for the file's state on its source."""
    observation = facts.at_source
    seen = "" if observation.state is None else _AT_SOURCE[observation.state]
    return "; ".join(text for text in (seen, observation.note) if text)


def diagnose(facts: FileFacts, now: datetime) -> Diagnosis:
    """The diagnosis.

    Args:
        now: aware.
    """
    diagnosis = _of_state(facts, now)
    notes = ["" if facts.place.refused else _timestamp_note(facts, now), _late_note(facts)]
    return replace(diagnosis, sentence=" ".join(part for part in (diagnosis.sentence, *notes) if part))


def _of_state(facts: FileFacts, now: datetime) -> Diagnosis:
    match facts.state:
        case RowState.ARCHIVED:
            return _archived(facts)
        case RowState.IGNORED:
            return _ignored(facts)
        case RowState.REFUSED:
            return _refused(facts)
        case RowState.QUARANTINED if facts.service.in_hand is None:
            return _quarantined(facts, now)
        case _:  # pending; or --max-attempts is lower here than in the service, which has the file in its pipeline
            return _pending(facts, now)


def _timestamp_note(facts: FileFacts, now: datetime) -> str:
    timestamp = facts.record.timestamp
    if timestamp is None or (timestamp >= OLDEST_TIMESTAMP and not facts.record.is_ahead(now)):
        return ""
    when = f"Its timestamp, {format_time(timestamp)},"
    if timestamp < OLDEST_TIMESTAMP:
        return f"{when} is before {format_time(OLDEST_TIMESTAMP)}: the five digits of its place name another time."
    return f"{when} is more than a day ahead of this machine's clock: was a clock wrong?"


def _late_note(facts: FileFacts) -> str:
    found = facts.timecode
    if found is None or not found.late:
        return ""
    return f"It came late: readers had been told before that timecode {found.timecode} is complete."


def _handed_over(facts: FileFacts) -> str:
    """Who took the file's timecode over; empty where nobody did."""
    mark = facts.timecode.handed_over if facts.timecode else None
    return f"timecode {mark.timecode} was handed over {mark_text(mark)}" if mark else ""


def _archived(facts: FileFacts) -> Diagnosis:
    id_ = facts.record.id
    requeue = ("to have it archived again, if its source still has it", f"cdc-archiver verify --requeue {id_}")
    sample = ("to check the archive's disk and its other files", "cdc-archiver verify --sample 1%")
    done = "Nothing: the file is done."
    done_for_service = "Nothing: for the service the file is done."
    match facts.place.state:
        case PlaceState.RIGHT:
            return Diagnosis("It is here: archived, and the file has the row's md5.", done, ())
        case PlaceState.THERE:
            hash_it = ("to check its content", f"cdc-archiver why {id_} --hash")
            return Diagnosis("It is here: archived, and the file is in its place.", done, (hash_it,))
        case PlaceState.WRONG:
            return Diagnosis(
                "It was archived, but another file is in its place now: the md5 is not the row's.",
                done_for_service,
                (requeue, sample),
            )
        case PlaceState.ABSENT if handed_over := _handed_over(facts):
            return Diagnosis(
                f"It was archived, and is no longer in its place: {handed_over}.",
                "Nothing: for the service the file is done, and verify counts it apart.",
                (),
            )
        case PlaceState.ABSENT:
            return Diagnosis("It was archived, but is no longer in its place.", done_for_service, (requeue, sample))
        case _:
            return Diagnosis(
                f"It is archived according to its row; the file cannot be examined from here: {facts.place.note}.",
                done_for_service,
                (),
            )


def _ignored(facts: FileFacts) -> Diagnosis:
    notes = [attempt for attempt in facts.attempts if attempt.result == IGNORED]
    who = f": {notes[-1].detail}, on {format_time(notes[-1].at)}" if notes else "; the reason is not in the history"
    return Diagnosis(
        f"It is not here because it is marked as ignored{who}.",
        "Nothing: an ignored file is not tried again, and raises no alert.",
        (("to have it archived after all", f"cdc-archiver ignore --undo {facts.record.id}"),),
    )


def _refused(facts: FileFacts) -> Diagnosis:
    last = _last_failure(facts)
    why = last.detail or reason_text(last.reason) if last else _why_unknown(facts)
    if facts.place.refused is None and not (last and last.reason == Reason.NOT_A_FILE.value):
        return Diagnosis(
            f"It is not here because its row was refused ({why}); with its present values the row has a valid archived path.",
            "Nothing: a refused file is not tried again until an operator resets its counter.",
            (_retry(facts, "to have it tried again"), _ignore(facts)),
        )
    reason = facts.place.refused.value if facts.place.refused else Reason.NOT_A_FILE.value
    return Diagnosis(
        f"It is not here because its row was refused: {facts.place.refused_why or why}.",
        "Nothing: no attempt can succeed with this row.",
        (*_fix_row(facts, reason), _retry(facts, "when the row is correct"), _ignore(facts)),
    )


def _quarantined(facts: FileFacts, now: datetime) -> Diagnosis:
    last = _last_failure(facts)
    count = facts.record.attempts
    attempts = f"{count} failed attempt{'' if count == 1 else 's'}"
    why = (
        f", the last one {format_age(last.at, now)}: {_failure_text(last)}"
        if last
        else f"; the reason is not known: {_why_unknown(facts)}"
    )
    return Diagnosis(
        f"It is not here because it was quarantined after {attempts}{why}.",
        "Nothing: a quarantined file is not tried again until an operator resets its counter.",
        (*_fix_file(facts, last), _retry(facts, _when_to_retry(facts, last)), _ignore(facts)),
    )


def _pending(facts: FileFacts, now: datetime) -> Diagnosis:
    record, service = facts.record, facts.service
    if facts.targets and facts.source is None:
        return Diagnosis(
            f"It is not here because its instance_id {record.instance_id!r} is not a configured target "
            f"({', '.join(facts.targets)}).",
            "Nothing, unless another archiver has that target.",
            (("to have it archived here, run the service with", f"--target {shlex.quote(record.instance_id)}"),),
        )
    if facts.place.refused is not None:
        return Diagnosis(
            f"It is not here, and cannot be archived: {facts.place.refused_why}.",
            "Its row is refused at the next attempt.",
            (*_fix_row(facts, facts.place.refused.value), _ignore(facts)),
        )
    if facts.at_source.outside:
        return Diagnosis(
            f"It is not here because no service reads it: {facts.at_source.note}",
            f"Nothing: it is left pending, and {_DOES_NOT_COUNT}.",
            (
                *_fix_row(facts, Reason.BAD_PATH.value),
                ("or, if the service shall read that directory, run it with", "--source-root PATH"),
            ),
        )
    if handed_over := _handed_over(facts):
        return Diagnosis(
            f"It is not here because it waits: {handed_over}.",
            f"Nothing: it waits until a person decides, and {_DOES_NOT_COUNT}.",
            (
                ("to have it archived all the same", f"cdc-archiver retry --id {facts.record.id} --into-handed-over"),
                _ignore(facts),
            ),
        )
    if (refused := _not_recordable(facts)) is not None:
        return refused
    last = _last_failure(facts)
    sentence, following = _waiting(facts)
    advice = [*_fix_file(facts, last)] if record.attempts else []
    if record.attempts:
        advice.append(_retry(facts, "to have it tried at once"))
    if not service.answered:
        advice.append(("to see whether a service is running", "cdc-archiver status"))
    elif service.source is not None and not service.source.get("up", True):
        advice.append(("to see the fix", "cdc-archiver check"))
    return Diagnosis(sentence + _attempts_so_far(facts, last, now), following, tuple(advice))


def _not_recordable(facts: FileFacts) -> Diagnosis | None:
    """The diagnosis of a file whose result the database refuses to record; None for another."""
    last = facts.attempts[-1] if facts.attempts else None
    if last is not None and last.result != NOT_RECORDABLE:
        last = None
    in_hand = (facts.service.in_hand or {}).get("state")
    if in_hand != NOT_RECORDABLE and (last is None or in_hand is not None):
        return None
    detail = f": {last.detail}" if last else f"; the service's log has its message ({NOT_RECORDABLE})"
    here = facts.place.state in (PlaceState.RIGHT, PlaceState.THERE) or bool(last and last.archived_path)
    return Diagnosis(
        f"{'It is in its place in the archive' if here else 'It was tried'}, but the database refuses to record that{detail}.",
        "Nothing: it is tried again at the service's next start, when its row changes, or after `retry`.",
        (
            ("to see the row", f"SELECT * FROM {facts.table} WHERE id = {facts.record.id};"),
            ("to see what may refuse it", f"SHOW CREATE TABLE {facts.table}; SHOW TRIGGERS LIKE '{facts.table}';"),
            _retry(facts, "when the cause is fixed"),
        ),
    )


def _attempts_so_far(facts: FileFacts, last: HistoryEntry | None, now: datetime) -> str:
    attempts = facts.record.attempts
    if not attempts:
        return ""
    limit = f" of at most {facts.max_attempts}" if attempts < facts.max_attempts else ""
    when = f", the last one {format_age(last.at, now)}: {_failure_text(last)}" if last else ""
    return f" Failed attempts: {attempts}{limit}{when}."


def _waiting(facts: FileFacts) -> tuple[str, str]:
    """What a pending file waits for, and what happens then."""
    service = facts.service
    if not service.answered:
        return (
            f"It is not here yet: it is pending, and no service can be asked about it ({service.note}).",
            "A running service takes it up at its next sweep, a new one at its start.",
        )
    if service.nobodys:
        return f"It is not here yet: {service.nobodys}.", "Nothing here: the archiver with its target archives it."
    hand, source, destination = service.in_hand or {}, service.source or {}, service.destination or {}
    if destination and not destination.get("up", True):
        return (
            f"It is not here yet because the archive's disk takes no files: {_trouble(destination)}.",
            f"It is archived when the disk takes files again; {_DOES_NOT_COUNT}.",
        )
    if source and not source.get("up", True):
        when = (
            "is being tried now"
            if hand.get("state") == "in_flight"
            else f"is tried again in {format_duration(float(source.get('retry_in') or 0.0))}"
        )
        return (
            f"It is not here yet because its source {source.get('name')} is down: {_trouble(source)}.",
            f"The source {when}; {_DOES_NOT_COUNT}.",
        )
    match hand.get("state"):
        case "in_flight":
            return "It is being copied now.", "It is archived in a moment, or has one more failed attempt."
        case "waiting":
            return _waiting_for_next_attempt(facts, hand)
        case "queued" | "offered":
            queued = source.get("queued")
            return (
                "It is not here yet: it is in the queue" + (f", which has {queued} files." if queued else "."),
                "It is copied as soon as a worker is free.",
            )
    return _not_taken_up(facts)


def _waiting_for_next_attempt(facts: FileFacts, hand: dict[str, Any]) -> tuple[str, str]:
    again = f"It is tried again in {format_duration(float(hand.get('retry_in') or 0.0))}"
    if facts.record.attempts:
        return "It is not here yet: it waits for its next attempt.", f"{again}."
    sentence = (
        "It is not here yet: it was deferred, for a reason that does not concern the file (the service's log names it; a path "
        "outside --source-root is one)."
    )
    return sentence, f"{again}; {_DOES_NOT_COUNT}."


def _not_taken_up(facts: FileFacts) -> tuple[str, str]:
    service = facts.service
    if service.state == "standby":
        return (
            f"It is not here yet; the service that answers is on standby: {service.why}.",
            "The archiver that holds its target archives it.",
        )
    why = f": {service.why}" if service.why else ""
    at_next_sweep = "It is taken up at the next sweep"
    unless = ", unless the service has a lower --max-attempts than this command" if facts.record.attempts else ""
    return (
        f"It is not here yet: the service ({service.state}{why}) has not taken it up.",
        {
            "starting": "It is taken up when the service has started.",
            "no database": "It is taken up when the database answers.",
            "stopping": "The next service takes it up, at its start.",
            "failed": "The next service takes it up, at its start.",
        }.get(service.state, f"{at_next_sweep}{unless}."),
    )


def _trouble(state: dict[str, object]) -> str:
    return ": ".join(str(part) for part in (state.get("reason"), state.get("detail")) if part)


def _last_failure(facts: FileFacts) -> HistoryEntry | None:
    return next((each for each in reversed(facts.attempts) if each.result in ("charged", "refused")), None)


def _failure_text(attempt: HistoryEntry) -> str:
    return f"{attempt.reason}: {reason_text(attempt.reason)}" if attempt.reason else attempt.detail


def _why_unknown(facts: FileFacts) -> str:
    return facts.no_history or "the history has no entry for it"


def _when_to_retry(facts: FileFacts, last: HistoryEntry | None) -> str:
    if facts.at_source.state is FileState.OK and last and last.reason in ("missing", "unreadable"):
        return "the source has the file now; to have it tried again"
    return "when the cause is fixed"


def _retry(facts: FileFacts, when: str) -> tuple[str, str]:
    return when, f"cdc-archiver retry --id {facts.record.id}"


def _ignore(facts: FileFacts) -> tuple[str, str]:
    return "if it will never come", f"cdc-archiver ignore {facts.record.id} --reason '…'"


def _fix_row(facts: FileFacts, reason: str) -> Iterator[tuple[str, str]]:
    try:
        column = _COLUMNS.get(Reason(reason))
    except ValueError:
        column = None
    if column:
        # An old server's timestamp moves with every UPDATE that does not name it.
        keep = "" if column == "timestamp" else ", timestamp = timestamp"
        yield (
            f"to correct the row's {column}",
            f"UPDATE {facts.table} SET {column} = …{keep} WHERE id = {facts.record.id};",
        )
    if reason == Reason.BAD_TIMESTAMP.value:
        yield (
            "or, if that time is right and not before 1970-01-01 02:46:40Z, run the service with",
            "--oldest-timestamp DATE",
        )
    elif reason == Reason.PATH_TOO_LONG.value:
        # A MODIFY loses whatever it does not repeat: type, character set, collation.
        yield (
            "to widen the column path, first look up its type and character set, and repeat them",
            f"SHOW CREATE TABLE {facts.table};",
        )


def _fix_file(facts: FileFacts, last: HistoryEntry | None) -> Iterator[tuple[str, str]]:
    if last is None or last.reason is None:
        return
    match last.reason:
        case "changed" if last.md5_seen:
            yield (
                "if the present file is the right one, correct the row's md5sum",
                (
                    f"UPDATE {facts.table} SET md5sum = 0x{last.md5_seen.hex()}, timestamp = timestamp "
                    f"WHERE id = {facts.record.id} AND COALESCE(copied, 0) = 0;"
                ),
            )
        case "unreadable" if facts.at_source.state is not FileState.OK:
            yield (
                "to let the account on the source read it",
                f"chmod a+r {shlex.quote(facts.at_source.path or '')}",
            )
    try:
        if Reason(last.reason).scope in (Scope.SOURCE, Scope.CONFIGURATION):
            yield "to see the fix", "cdc-archiver check"
    except ValueError:
        return
