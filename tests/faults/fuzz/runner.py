"""Runs all fuzz targets in turn; each input is made from a seed and its number."""

from __future__ import annotations

import contextlib
import random
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from fuzz import batches, configurations, events, logs, messages, rows
from fuzz.corpus import LINES, SSH_LINES, some_bytes, stderr_text


@dataclass(frozen=True)
class Target:
    """One fuzz target.

    Attributes:
        share: of a thousand inputs.
        make: makes one input.
        check: raises where the input breaks a promise.
    """

    share: int
    make: Callable[[random.Random], Any]
    check: Callable[[Any], None]


@contextlib.contextmanager
def all_targets() -> Iterator[dict[str, Target]]:
    """All fuzz targets; restores the configuration of the logs afterwards."""
    configuration = structlog.get_config()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as directory:
        copier, settings = batches.CopierTarget(Path(directory)), configurations.SettingsTarget(Path(directory))
        try:
            yield {
                "line": Target(420, some_bytes, messages.check_line),
                "exit": Target(140, messages.make_exit, messages.check_exit),
                "ssh": Target(130, lambda rng: stderr_text(rng, SSH_LINES, LINES), messages.check_ssh_output),
                "row": Target(216, rows.make_row, rows.check_row),
                "event": Target(80, events.make_event, events.check_event),
                "log": Target(10, logs.make_log, logs.check_log),
                "configuration": Target(2, configurations.make_configuration, settings.check),
                "batch": Target(2, batches.make_batch, copier.check),
            }
        finally:
            structlog.configure(**configuration)


@dataclass(frozen=True)
class Broken:
    """An input that broke a promise."""

    target: str
    index: int
    given: Any
    error: BaseException


def inputs(targets: dict[str, Target], total: int) -> Iterator[tuple[str, int]]:
    """Yields the next input's target and index: each target has its share of each thousand, at least one."""
    done = 0
    while done < total:
        for name, target in targets.items():
            for index in range(done // 1000 * target.share, (done // 1000 + 1) * target.share):
                yield name, index
        done += 1000


def an_input(target: Target, name: str, seed: int, index: int) -> Any:
    return target.make(random.Random(f"{seed}/{name}/{index}"))


def attempt(targets: dict[str, Target], name: str, seed: int, index: int) -> Broken | None:
    """Tries one input."""
    given = an_input(targets[name], name, seed, index)
    try:
        targets[name].check(given)
    except Exception as error:
        # Made again: the check may have changed it.
        return Broken(name, index, an_input(targets[name], name, seed, index), error)
    return None
