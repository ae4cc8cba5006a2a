"""The KEY VALUE pairs of many runs, checked once before any of them starts.

python -m sweeping.pairs OPTIM.MAX_EPOCH 4
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from common.commandline import add_debug, guarded
from sweeping.settings import SweepError

# Keys that differ from run to run, with the option of sweep.py that sets them (the scripts' arguments are named alike).
OF_A_RUN = {
    "OUTPUT_DIR": "--output",
    "SEED": "--seeds",
    "RESUME": "the same command again: it goes on by itself",
    "DATASET.ROOT": "--root",
    "DATASET.NAME": "--datasets",
    "TRAINER.NAME": "--trainers",
}


def check_pairs(pairs: Sequence[str]) -> None:
    """Check KEY VALUE pairs as train.py does, but for what only a whole configuration shows.

    Args:
        pairs: key, value, key, value ...; the same key may come again.

    Raises:
        SweepError, ConfigError, ValueError: a pair that no run could use, or a key of `OF_A_RUN`.
    """
    if len(pairs) % 2:
        raise SweepError(f"options come in pairs KEY VALUE; {pairs[-1]!r} has no value")
    for key in pairs[::2]:
        if key in OF_A_RUN:
            raise SweepError(f"{key} is set for every run: use {OF_A_RUN[key]} instead")
    if not pairs:
        return
    # what defines the keys takes seconds to import, and is not needed without pairs
    import datasets  # noqa: F401
    import trainers  # noqa: F401
    from dassl.config import check_values, get_cfg_default
    from dassl.data.datasets import DATASET_REGISTRY
    from extras.trackers import check_trackers
    from prompting.tokens import check_template
    from results import evaluate, features, rundir  # noqa: F401
    from trainers.checks import RANGES

    for key, value in zip(pairs[::2], pairs[1::2], strict=True):
        cfg = get_cfg_default()
        cfg.DATASET.NAME = DATASET_REGISTRY.registered_names()[0]  # each run's own file names it
        cfg.merge_from_list([key, value])
        check_values(cfg, RANGES)
        check_trackers(cfg)
        if value and key.endswith(".TEMPLATE"):
            check_template(value, key)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status: 0 when the pairs can be used."""
    parser = argparse.ArgumentParser(prog="python -m sweeping.pairs", description=__doc__.splitlines()[0])
    add_debug(parser)
    parser.add_argument("pairs", nargs=argparse.REMAINDER, metavar="KEY VALUE")
    return guarded(lambda args: check_pairs(args.pairs), parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
