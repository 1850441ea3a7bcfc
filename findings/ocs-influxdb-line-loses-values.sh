#!/usr/bin/env bash
# Software: ocs 0.12.1 (format_data, with which the InfluxDB publisher agents make their points).
#
# Behaviour: two losses on the way from an OCS feed to InfluxDB, both silent.
#   1. The block's name is left out. Two blocks of one feed with the same field and time become
#      the same series at the same time, which to InfluxDB is one point: one value is lost.
#   2. Where a feed brings influxdb_tags, a text value is cut at its first "=" in the line
#      protocol, and the closing quote goes with it. The json protocol keeps the value.
# Fair guess: blocks are told apart, and the protocol is a matter of speed.
# What to do: name the block in each field or in a tag of its own; publish no "=" in text.
#
# Output seen:
#   line, block left : observatory.crate1,feed=status pending=3i 1700000000000000000
#   line, block right: observatory.crate1,feed=status pending=9i 1700000000000000000
#   line, tagged text: ReadoutAgent,feed=status,…,band=4 state="tone 1700000000000000000
#   json, tagged text: tone=on
#
# Exit status: 0 the behaviour is as said, 1 it has changed, 2 it could not be tried.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
not_run() { echo "NOT RUN: $*" >&2; exit 2; }

python3 -m venv "$work/venv" || not_run "no python3 with venv"
"$work/venv/bin/pip" --quiet install ocs==0.12.1 autobahn==26.10.2 Twisted==26.10.0 \
    txaio==26.6.1 >"$work/pip.log" 2>&1 ||
    { cat "$work/pip.log" >&2; not_run "pip cannot install the packages"; }

timeout 60 "$work/venv/bin/python" -W ignore - <<'END'
import sys
from importlib.metadata import version

from ocs.common.influxdb_drivers import format_data

print("ocs", version("ocs"))
FEED = {
    "agent_address": "observatory.crate1", "agent_class": "ReadoutAgent", "feed_name": "status",
}


def block(name, data, tags=None):
    """A message of one block, as a feed publishes it."""
    return {"block_name": name, "timestamp": 1.7e9, "data": dict(data), "influxdb_tags": tags}


def check(good, what):
    if not good:
        sys.exit(f"CHANGED: {what}")


left, right = format_data(
    {"left": block("left", {"pending": 3}), "right": block("right", {"pending": 9})}, FEED, "line"
)
print("line, block left :", left)
print("line, block right:", right)
check("left" not in left and "right" not in right, "the line names the block")
check(left.replace("=3i", "=9i") == right, "the two blocks make different series")

tags = {"state": {"_field": "state", "band": 4}}
message = {"state": "tone=on"}
(line,) = format_data({"one": block("one", message, tags)}, FEED, "line")
print("line, tagged text:", line)
(point,) = format_data({"one": block("one", message, tags)}, FEED, "json")
print("json, tagged text:", point["fields"]["state"])
check(' state="tone 17' in line, "the text is no longer cut at its first '='")
check(point["fields"]["state"] == "tone=on", "json changes the text too")
print("As described: the line protocol loses the block's name, and text after '='.")
END
