"""`python -m fuzz`: see the package."""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

import fuzz
from fuzz.runner import all_targets, attempt, inputs

_SHOWN: Final = 3000


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=(fuzz.__doc__ or "").splitlines()[0])
    parser.add_argument("--inputs", type=int, default=1_000_000, help="number of inputs, rounded up to thousands")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--one", metavar="TARGET:INDEX", help="repeat only this input of the seed")
    options = parser.parse_args(arguments)
    began = said = time.monotonic()
    tried: Counter[str] = Counter()
    with all_targets() as targets:
        wanted: Iterator[tuple[str, int]] = inputs(targets, options.inputs)
        if options.one:
            name, _, index = options.one.partition(":")
            wanted = iter([(name, int(index))])
        for name, index in wanted:
            broken = attempt(targets, name, options.seed, index)
            if broken is not None:
                print(
                    f"\n{name} {index} of seed {options.seed} breaks a promise: {broken.error!r}\n{repr(broken.given)[:_SHOWN]}"
                )
                print(f"again: python -m fuzz --seed {options.seed} --one {name}:{index}")
                if options.one:
                    raise broken.error
                return 1
            tried[name] += 1
            if time.monotonic() - said > 10.0:
                said = time.monotonic()
                print(f"{tried.total():>9} inputs, {said - began:.0f} s", flush=True)
    each = ", ".join(f"{name} {count}" for name, count in tried.items())
    print(
        f"{tried.total()} inputs, none breaks a promise: {each}; seed {options.seed}, {time.monotonic() - began:.0f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
