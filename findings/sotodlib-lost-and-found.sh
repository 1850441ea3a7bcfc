#!/usr/bin/env bash
# Software: sotodlib 0.6.24 (G3tSmurf, the index of an archive of SMuRF files).
#
# Behaviour: the archive's folder must hold five-digit timecode folders and nothing else. Each name
#   in it is given to int(). "lost+found", which every ext file system has at its root, or a file
#   server's ".snapshot", ends the walk with ValueError before the first file, so nothing is
#   indexed. One level deeper a plain file, a README, ends it too. A hidden folder there does not.
# Fair guess: a walk over timecodes passes over what is none, as this one does with actions.
# What to do: keep the archive in a folder below the mount point, and all else beside it.
#
# Output seen:
#   timecode folders alone         : 1 action, 1 file
#   and smurf/lost+found           : ValueError: invalid literal for int() with base 10: …
#   and smurf/.snapshot            : ValueError: invalid literal for int() with base 10: …
#   and smurf/17000/README         : NotADirectoryError
#   and smurf/17000/.staging/      : 1 action, 1 file
#
# Exit status: 0 the behaviour is as said, 1 it has changed, 2 it could not be tried.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
not_run() { echo "NOT RUN: $*" >&2; exit 2; }

python3 -m venv "$work/venv" || not_run "no python3 with venv"
"$work/venv/bin/pip" --quiet install sotodlib==0.6.24 so3g==0.2.9 numpy==2.4.6 \
    SQLAlchemy==2.1.9 astropy==8.0.2 >"$work/pip.log" 2>&1 ||
    { cat "$work/pip.log" >&2; not_run "pip cannot install the packages"; }

cd "$work"
HOME="$work" timeout 110 "$work/venv/bin/python" -W ignore - <<'END'
import shutil
import sys
from importlib.metadata import version
from pathlib import Path

from sotodlib.io.load_smurf import G3tSmurf

print("sotodlib", version("sotodlib"))
smurf = Path("smurf")
outputs = smurf / "17000" / "crate1slot2" / "1700000000_take_noise" / "outputs"
outputs.mkdir(parents=True)
(outputs / "1700000001_noise.npy").touch()
Path("timestreams").mkdir()
index = G3tSmurf("timestreams", db_path="index.db", meta_path=str(smurf), make_db=True)


def walk():
    """What the two searches that index_metadata rests on find."""
    try:
        actions = list(index.search_metadata_actions())
        files = list(index.search_metadata_files())
    except (ValueError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return f"{len(actions)} action, {len(files)} file"


def expect(label, begin):
    got = walk()
    print(f"{label:30} : {got}")
    if not got.startswith(begin):
        sys.exit(f"CHANGED: {label}: expected {begin!r}, got {got!r}")


expect("timecode folders alone", "1 action, 1 file")
for name in ("lost+found", ".snapshot"):
    (smurf / name).mkdir()
    expect(f"and smurf/{name}", "ValueError: invalid literal for int()")
    (smurf / name).rmdir()
readme = smurf / "17000" / "README"
readme.touch()
expect("and smurf/17000/README", "NotADirectoryError")
readme.unlink()
(smurf / "17000" / ".staging" / "part").mkdir(parents=True)
expect("and smurf/17000/.staging/", "1 action, 1 file")
shutil.rmtree(smurf / "17000" / ".staging")
print("As described: a name that is no number stops the whole index.")
END
