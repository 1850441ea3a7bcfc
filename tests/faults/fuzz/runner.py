"""All that is fuzzed, in turns, each input made from a seed and its number."""

from __future__ import annotations

import contextlib
import random
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from fuzz import copies, events, logs, rows, sites, words
from fuzz.corpus import LINES, SSH_LINES, some_bytes, words_of


@dataclass(frozen=True)
class Target:
    """One thing that is fuzzed.

    Attributes:
        share: of a thousand inputs.
        make: one input.
        check: raises where a promise is broken.
    """

    share: int
    make: Callable[[random.Random], Any]
    check: Callable[[Any], None]


@contextlib.contextmanager
def all_targets() -> Iterator[dict[str, Target]]:
    """Everything that is fuzzed; logs are set up as they were afterwards."""
    configuration = structlog.get_config()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as directory:
        stand, desk = copies.Stand(Path(directory)), sites.Desk(Path(directory))
        try:
            yield {
                "line": Target(420, some_bytes, words.check_line),
                "ending": Target(140, words.make_ending, words.check_ending),
                "words": Target(130, lambda rng: words_of(rng, SSH_LINES, LINES), words.check_words),
                "row": Target(216, rows.make_row, rows.check_row),
                "event": Target(80, events.make_event, events.check_event),
                "log": Target(10, logs.make_log, logs.check_log),
                "site": Target(2, sites.make_site, desk.check),
                "play": Target(2, copies.make_play, stand.check),
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
    """Which input comes next: each target's share of each thousand, one at least."""
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
        # Made anew: the check may have changed it.
        return Broken(name, index, an_input(targets[name], name, seed, index), error)
    return None
