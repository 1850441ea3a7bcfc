#!/usr/bin/env bash
# Software: socs 0.6.4 (SupRsyncFilesManager, the file list of its SupRsync agent), ocs 0.12.1.
#
# Behaviour: a SupRsync database holds several archives ("smurf", "timestreams"), and an agent
#   finalizes the timecode folders of its own. What it looks at is not its own alone:
#   1. a later timecode in one archive closes the last timecode of the other at once, where the
#      other alone would be kept open for a whole timecode more;
#   2. a file of one archive that is not copied yet holds back the same timecode of the other;
#   3. num_files in the marker counts the files of both.
#   So an archive that is merely idle is said to be complete, and what it writes later in that
#   timecode comes after the marker.
# Fair guess: update_all_timecode_dirs("smurf", …) knows the files of "smurf".
# What to do: give each archive a database of its own, or do not read the marker as a promise.
#
# Output seen:
#   1. smurf alone, the timecode before this one    : open
#      timestreams has a file of this timecode      : finalized
#   2. smurf copied, timestreams not, old timecode  : open
#   3. timestreams copied too                       : finalized
#      num_files of smurf, which has 1              : 2
#
# Exit status: 0 the behaviour is as said, 1 it has changed, 2 it could not be tried.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
not_run() { echo "NOT RUN: $*" >&2; exit 2; }

python3 -m venv "$work/venv" || not_run "no python3 with venv"
"$work/venv/bin/pip" --quiet install socs==0.6.4 ocs==0.12.1 SQLAlchemy==2.1.9 \
    autobahn==26.10.2 Twisted==26.10.0 txaio==26.6.1 >"$work/pip.log" 2>&1 ||
    { cat "$work/pip.log" >&2; not_run "pip cannot install the packages"; }

cd "$work"
timeout 100 "$work/venv/bin/python" -W ignore - <<'END'
import sys
import time
from importlib.metadata import version
from pathlib import Path

import yaml
from socs.db.suprsync import SupRsyncFile, SupRsyncFilesManager, TimecodeDir

print("socs", version("socs"), "ocs", version("ocs"))
AGENT = "sync-1"


def expect(label, got, expected):
    print(f"{label:47} : {got}")
    if got != expected:
        sys.exit(f"CHANGED: {label}: expected {expected!r}, got {got!r}")


def add(files, archive, timecode, copied):
    """Registers one file, with its far md5 known or not."""
    md5 = archive.encode().hex().ljust(32, "0")[:32]
    path = f"{timecode}/crate1slot2/{archive}.g3"
    with files.Session.begin() as session:
        file = files.add_file(
            f"/data/{archive}/{path}", path, archive, local_md5sum=md5,
            timestamp=timecode * 1e5, session=session,
        )
        file.remote_md5sum = md5 if copied else None


def smurf_is(files, folder):
    """What smurf's first timecode is after its agent's round."""
    files.update_all_timecode_dirs("smurf", folder, AGENT)
    with files.Session.begin() as session:
        found = session.query(TimecodeDir).filter_by(archive_name="smurf")
        first = found.order_by(TimecodeDir.timecode).first()
        return "finalized" if first.finalized else "open"


today = int(time.time() // 1e5)
files = SupRsyncFilesManager("idle.db")
add(files, "smurf", today - 1, copied=True)
expect("1. smurf alone, the timecode before this one", smurf_is(files, "idle"), "open")
add(files, "timestreams", today, copied=False)
expect("   timestreams has a file of this timecode", smurf_is(files, "idle"), "finalized")

files = SupRsyncFilesManager("old.db")
add(files, "smurf", today - 100, copied=True)
add(files, "timestreams", today - 100, copied=False)
expect("2. smurf copied, timestreams not, old timecode", smurf_is(files, "old"), "open")
with files.Session.begin() as session:
    for file in session.query(SupRsyncFile).filter_by(archive_name="timestreams"):
        file.remote_md5sum = file.local_md5sum
expect("3. timestreams copied too", smurf_is(files, "old"), "finalized")
(marker,) = Path("old").rglob("*_smurf_*_finalized.yaml")
expect("   num_files of smurf, which has 1", yaml.safe_load(marker.read_text())["num_files"], 2)
print("As described: one archive's files decide over the other's timecodes.")
END
