"""What a datagram says: announcements by the publisher's rules, and garbage that never raises."""

from __future__ import annotations

import copy
import json
import math
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from registering import AT, message

from cdc_archiver.registrar.messages import (
    Announcement,
    Garbage,
    GarbageReason,
    PassedOver,
    Sender,
    parse,
)


def announced(**payload: Any) -> Announcement:
    content = parse(json.dumps(message("/data/a.npy", 3, **payload)).encode()).content
    assert isinstance(content, Announcement), content
    return content


def refused(**payload: Any) -> Garbage:
    content = parse(json.dumps(message("/data/a.npy", 3, **payload)).encode()).content
    assert isinstance(content, Garbage), content
    return content


def test_a_data_file_is_an_announcement_with_the_columns_values() -> None:
    found = parse(json.dumps(message("/data/a.npy", 3)).encode())
    assert found.sender == Sender("crate1slot2", 3)
    assert found.sent == AT + 0.25
    assert found.content == Announcement(
        "/data/a.npy", AT, "crate1slot2", "take_iv", AT, "npy", False, "take_iv.py", "11.4.4"
    )


@pytest.mark.parametrize(
    ("written", "seconds"),
    [(AT, AT), (AT + 0.999, AT), (str(AT), AT), ("1_589_517_264", AT), (f"{AT}.7", AT), (None, AT), ("", AT)],
)
def test_a_time_is_a_number_or_digits_and_floored(written: object, seconds: int) -> None:
    assert announced(timestamp=written).at == seconds


@pytest.mark.parametrize("written", ["soon", True, [], {}, math.nan, math.inf, -1, 0, 2**32, 1e300, "1e400", "9" * 60])
def test_a_time_that_is_none_is_refused_with_the_path(written: object) -> None:
    found = refused(timestamp=written)
    assert (found.reason, found.path) == (GarbageReason.BAD_VALUE, "/data/a.npy")


def test_values_may_be_missing_and_numbers_may_be_text() -> None:
    bare = announced(action=None, action_ts=None, format=None, plot=None, pysmurf_version=None)
    assert (bare.action, bare.action_timestamp, bare.format, bare.plot, bare.pysmurf_version) == (
        *(None, None, None, False),
        None,
    )
    assert [announced(plot=plot).plot for plot in (True, 1, "1", "True", "false", 0)] == [True] * 4 + [False] * 2
    assert announced(action_ts="1_589_517_264.9").action_timestamp == AT


@pytest.mark.parametrize("kind", ["start", "stop", "log", "general", "g3_file", "metadata", "session_data"])
def test_other_messages_are_passed_over_by_kind(kind: str) -> None:
    assert parse(json.dumps({"type": kind, "id": "a", "seq_no": 0}).encode()).content == PassedOver(kind)
    assert parse(b'{"type": "invented"}').content == PassedOver("other")


@pytest.mark.parametrize(
    ("datagram", "reason"),
    [
        (b"", GarbageReason.EMPTY),
        (b" \n", GarbageReason.EMPTY),
        (b"\xff\xfe{", GarbageReason.ENCODING),
        (b'{"type": "data_file"', GarbageReason.JSON),
        (b"[" * 64_000, GarbageReason.JSON),
        (b"1" * 64_000, GarbageReason.JSON),
        (b"[1]", GarbageReason.NO_OBJECT),
        (b"{}", GarbageReason.NO_TYPE),
        (b'{"type": "data_file", "payload": 3}', GarbageReason.NO_PATH),
        (b'{"type": "data_file", "payload": {"path": "/a"}}', GarbageReason.NO_PUBLISHER),
        (b'{"type": "data_file", "id": "a", "payload": {"path": "/a\\u0000"}}', GarbageReason.BAD_VALUE),
        (b'{"type": "data_file", "id": "a", "payload": {"path": "/a\\ud800"}}', GarbageReason.BAD_VALUE),
    ],
)
def test_garbage_has_a_reason(datagram: bytes, reason: GarbageReason) -> None:
    content = parse(datagram).content
    assert isinstance(content, Garbage)
    assert content.reason is reason


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just("1_0"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
PAYLOADS = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(
        ("path", "timestamp", "action", "action_ts", "format", "plot", "pysmurf_version", "archive_name"), JSON
    ),
)
MESSAGES = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["data_file", "data_file", "g3_file", "log"]) | JSON,
        "id": st.text(max_size=5) | JSON,
        "script": JSON,
        "time": JSON,
        "seq_no": JSON,
        "payload": PAYLOADS | JSON,
    },
)
DATAGRAMS = st.binary(max_size=200) | MESSAGES.map(lambda values: json.dumps(values).encode())


def understand(datagram: bytes) -> None:
    found = parse(datagram)
    if isinstance(found.content, Announcement):
        assert 0 < found.content.at < 2**32
        json.dumps(found.content.path).encode("ascii")
        found.content.path.encode()
        assert found.content.pub_id


@settings(max_examples=2000, deadline=None, database=None)
@given(DATAGRAMS)
def test_no_datagram_raises(datagram: bytes) -> None:
    understand(datagram)


def mutated(chance: random.Random) -> bytes:
    """A message with a value that is odd, or with bytes that are changed, missing or too many."""
    odd: list[Any] = [
        None,
        True,
        -1,
        0,
        1e308,
        2**70,
        math.nan,
        "",
        "1_0",
        "\0",
        "\ud800",
        "é" * 40,
        [],
        {},
        [[1]],
        {"a": 1},
    ]
    content = message("/data/" + "x" * chance.randint(0, 300), chance.choice([0, 1, 2**40]))
    for _ in range(chance.randint(0, 3)):
        part = chance.choice([content, content["payload"]]) if isinstance(content["payload"], dict) else content
        part[chance.choice([*part, "more"])] = copy.deepcopy(chance.choice(odd))
    datagram = bytearray(json.dumps(content).encode())
    for _ in range(chance.choice([0, 0, 1, 5])):
        place = chance.randrange(len(datagram))
        datagram[place : place + chance.randint(0, 3)] = chance.randbytes(chance.randint(0, 3))
    return bytes(datagram)


@pytest.mark.long
def test_no_message_of_100000_raises() -> None:
    chance = random.Random(8200)
    for _ in range(100_000):
        understand(mutated(chance))
