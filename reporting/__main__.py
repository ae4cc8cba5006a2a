"""Command line of the reporting package.

    python -m reporting table --protocol open_world RUNS...
    python -m reporting compare MaPLe BMIP RUNS...
    python -m reporting plot base_new RUNS... -o plot.svg
    python -m reporting html RUNS... -o report.html

A sub-command is a module with NAME, HELP, add_arguments(parser) and run(arguments), named in COMMANDS.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from common.commandline import add_debug, guarded
from reporting import compare, plot, report, table

COMMANDS = (table, compare, plot, report)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one sub-command; returns the exit status (2: unusable input, the reason on stderr)."""
    parser = argparse.ArgumentParser(
        prog="python -m reporting", description="Tables, comparisons, plots and reports of finished runs."
    )
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        subparser = subparsers.add_parser(command.NAME, help=command.HELP, description=command.HELP)
        command.add_arguments(subparser)
        add_debug(subparser)
        subparser.set_defaults(run=command.run)
    parsed = parser.parse_args(arguments)
    return guarded(parsed.run, parsed)


if __name__ == "__main__":
    sys.exit(main())
