"""The directory that rsync starts in: it contains the whole batch, and no file's path in staging depends on it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdc_archiver.settings import load
from cdc_archiver.settings.types import FileModes
from cdc_archiver.transfer.rsync import RsyncLimits, common_directory, rsync_command

STAGING = Path("/data/.incoming/srv/small-0")
LIMITS = RsyncLimits(max_size=None, io_timeout=60.0, stall_timeout=120.0)


@pytest.mark.parametrize(
    ("entries", "directory"),
    [
        ([b"a.npy"], b""),
        ([b"data/a.npy"], b"data/"),
        ([b"data/x/a.npy", b"data/x/b.npy"], b"data/x/"),
        ([b"data/x/a.npy", b"data/xy/b.npy"], b"data/"),
        ([b"data/x", b"data/x/b.npy"], b"data/"),
        ([b"data/x/y", b"other/x/y"], b""),
        ([b"data/a b/c.npy"], b"data/"),
        ([b"data/$(x)/c/d.npy"], b"data/"),
        ([b"-data/c.npy"], b""),
        ([b"data/-n/c.npy"], b"data/"),
        ([b"data/~u/c.npy"], b"data/"),
        ([b"data/\xc3\xa9/c.npy"], b"data/"),
        ([b"data/new\nline/c.npy"], b"data/"),
        ([b".hidden/..x/2020-05_a/c.npy"], b".hidden/..x/2020-05_a/"),
        ([b"data/../c.npy"], b"data/"),
        ([b"d/" * 600 + b"c.npy"], b""),
    ],
)
def test_the_deepest_directory_that_contains_a_whole_batch(entries: list[bytes], directory: bytes) -> None:
    assert common_directory(entries) == directory


_PARTS = st.sampled_from([b"a", b"b", b"ab", b"-n", b"c d", b"..x"])
_ENTRIES = st.lists(st.lists(_PARTS, min_size=1, max_size=4).map(b"/".join), min_size=1, max_size=5, unique=True)


@pytest.mark.parametrize(
    ("root", "flags"),
    [
        ("/", {}),
        ("/srv/data", {}),
        ("/", {"host": "srv"}),
        ("/srv/data", {"host": "srv"}),
        ("/srv/data", {"host": "srv", "restricted_key": True}),
    ],
)
@settings(deadline=None)  # a busy machine is no fault of the command
@given(entries=_ENTRIES)
def test_a_files_path_in_staging_does_not_depend_on_the_rest_of_the_batch(
    root: str, flags: dict[str, object], entries: list[bytes]
) -> None:
    """So the part of a large file is found again, and the source sends the file that the row names."""
    (source,) = load({"target": ("m",), "data_dir": "/data", "source_root": root, **flags}, environment={}).sources
    directory = common_directory(entries)
    command = rsync_command(source, STAGING, FileModes(directories=0o755, files=0o644), LIMITS, None, directory)
    start, staged = (word.rpartition(":")[2] for word in command[-2:])
    top = "/" if source.restricted_key else f"{root.rstrip('/')}/"
    for entry in entries:
        assert entry.startswith(directory)
        below = entry[len(directory) :].decode()
        assert below, "an entry inside the directory is requested, not the directory itself"
        assert start + below == top + entry.decode()
        assert staged + below == f"{STAGING}/{entry.decode()}"
