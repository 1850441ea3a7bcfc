"""`python -m cdc_archiver.sandbox fetch [bundle …]`: fetches the programs that the machine lacks, ahead of their use."""

import argparse
import sys
from collections.abc import Sequence

from cdc_archiver.sandbox.child_process import SandboxError
from cdc_archiver.sandbox.packages import BUNDLES, find, find_library


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 1 if a program is not available."""
    parser = argparse.ArgumentParser(prog="python -m cdc_archiver.sandbox", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    fetch = commands.add_parser("fetch", help="fetch the programs that the machine lacks")
    fetch.add_argument("bundles", nargs="*", metavar="bundle", help=f"of {', '.join(BUNDLES)}; default: all")
    given = parser.parse_args(arguments)
    if unknown := set(given.bundles) - set(BUNDLES):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known are {', '.join(BUNDLES)}")
    try:
        for name in given.bundles or BUNDLES:
            for program in BUNDLES[name].programs:
                print(f"{program}: {find(program).path}")
            if name == "ssh":
                print(f"nss_wrapper: {find_library('libnss_wrapper.so')}")
    except SandboxError as error:
        print(f"sandbox: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
