#!/usr/bin/env bash
# Software: kombu 5.7.0 (what Celery 5.7 sends its messages with), msgpack 1.2.4.
#
# Behaviour: a dict with a number as key is published without complaint under either serializer.
#   Under msgpack the message then cannot be read by any consumer (DecodeError); under JSON the key
#   arrives as a string. A file name with a byte that is no UTF-8 is the other way round: JSON
#   carries it, msgpack refuses it at publishing (EncodeError).
# Fair guess: msgpack is JSON in binary and carries what JSON carries, and number keys besides.
# What to do: send lists of pairs in place of such dicts; keep JSON where file names are sent.
#
# Output seen:
#   {17000: 'done'}  json   : arrives as {'17000': 'done'}
#   {17000: 'done'}  msgpack: published, then DecodeError at the consumer
#   b'caf\xe9.g3'    json   : arrives as it was sent
#   b'caf\xe9.g3'    msgpack: EncodeError at the publisher
#   b'\x00\xff'      json   : arrives as it was sent
#   b'\x00\xff'      msgpack: arrives as it was sent
#
# Exit status: 0 the behaviour is as said, 1 it has changed, 2 it could not be tried.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
not_run() { echo "NOT RUN: $*" >&2; exit 2; }

python3 -m venv "$work/venv" || not_run "no python3 with venv"
"$work/venv/bin/pip" --quiet install kombu==5.7.0 msgpack==1.2.4 >"$work/pip.log" 2>&1 ||
    { cat "$work/pip.log" >&2; not_run "pip cannot install the packages"; }

timeout 60 "$work/venv/bin/python" - <<'END'
import os
import sys

import kombu
import msgpack
from kombu.exceptions import DecodeError, EncodeError

print("kombu", kombu.__version__, "msgpack", ".".join(map(str, msgpack.version)))


def send(value, serializer):
    """What becomes of a value on its way through kombu's broker in memory."""
    arrived = []
    queue = kombu.Queue(f"arguments-{serializer}")
    with kombu.Connection("memory://") as connection:
        try:
            connection.Producer().publish(
                value, serializer=serializer, routing_key=queue.name, declare=[queue]
            )
        except EncodeError:
            return "EncodeError at the publisher"
        with connection.Consumer(queue, accept=[serializer], on_message=arrived.append):
            connection.drain_events(timeout=10)
        (message,) = arrived
        try:
            got = message.decode()
        except DecodeError:
            return "published, then DecodeError at the consumer"
        finally:
            message.ack()
    return "arrives as it was sent" if got == value else f"arrives as {got}"


same = "arrives as it was sent"
name = os.fsdecode(b"caf\xe9.g3")
for label, value, expected in (
    ("{17000: 'done'}", {17000: "done"}, {
        "json": "arrives as {'17000': 'done'}",
        "msgpack": "published, then DecodeError at the consumer",
    }),
    (r"b'caf\xe9.g3'", name, {"json": same, "msgpack": "EncodeError at the publisher"}),
    (r"b'\x00\xff'", b"\x00\xff", {"json": same, "msgpack": same}),
):
    for serializer, outcome in expected.items():
        got = send(value, serializer)
        print(f"{label:16} {serializer:7}: {got}")
        if got != outcome:
            sys.exit(f"CHANGED: {label} with {serializer}: expected {outcome!r}, got {got!r}")
print("As described: neither serializer takes all, and one writes what it cannot read.")
END
