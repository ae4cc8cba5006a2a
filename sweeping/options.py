"""Print what a setting sets of its method, a key or a value a line, for `python -m benchmarks --opts`.

python -m sweeping.options BMIP
python -m sweeping.options BMIP --tiny
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from common.commandline import add_debug, guarded
from sweeping.settings import setting_options


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m sweeping.options", description=__doc__.splitlines()[0])
    parser.add_argument("trainer", metavar="NAME[=SETTING]")
    parser.add_argument("--tiny", action="store_true", help="of the bundled model")
    add_debug(parser)
    return guarded(run, parser.parse_args(argv))


def run(args: argparse.Namespace) -> None:
    """Print the keys and values."""
    print(*setting_options(args.trainer, args.tiny)[1], sep="\n")


if __name__ == "__main__":
    sys.exit(main())
