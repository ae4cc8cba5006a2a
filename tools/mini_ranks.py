"""Does the benchmark in miniature say anything about the real one? Ranks of methods here and in the literature.

    python -m tools.mini_ranks output/miniature

Of every method that is in both: base, new and H, averaged over the miniature's data sets and seeds, and as its authors
published them for ViT-B/16 over 11 data sets; then Spearman's correlation of each with a 95 % interval (bootstrap over
the methods) and the p-value of a permutation test. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import numpy as np
from scipy.stats import permutation_test, spearmanr
from tabulate import tabulate

from common.commandline import add_debug, guarded
from reporting.compare import p_text
from reporting.published import load_published
from reporting.table import build_table
from results.schema import load_runs
from sweeping.plan import MINI_SOURCE, PROTOCOLS, default_setting

METRICS = ("base", "new", "H")
DRAWS = 10_000
# What stands for a method whose authors published it under a further name, in base-to-new over 11 data sets.
VARIANTS = {
    "VPT": "MaPLe's baseline, deep vision prompting",
    "IVLP": "MaPLe's baseline, 5 epochs",
    "CoOp_DePT": "on CoOp",
    "PromptSRC_DePT": "on PromptSRC",
}


def measured(folder: str) -> dict[str, list[float]]:
    """Base, new and H of every method under `folder`, over the data sets that there are; all must have the same."""
    found = [run for run in load_runs([folder]) if run.protocol == "open_world" and run.backbone == "bundled:mini_clip"]
    runs = [run for run in found if run.setting == default_setting(run.trainer, PROTOCOLS["open_world"], MINI_SOURCE)]
    if not runs:
        raise ValueError(f"{folder} has no open-world runs of the benchmark in miniature: run scripts/miniature.sh")
    (block,) = build_table(runs, "open_world", group="average", metrics=METRICS).blocks
    lacking = [row.method.label for row in block.rows if None in row.cells.values()]
    if lacking:
        raise ValueError(
            f"{', '.join(lacking)}: not on every data set that others are on; run scripts/miniature.sh again"
        )
    print(f"{block.title}: {', '.join(sorted({run.dataset for run in runs}))}\n")
    return {row.method.trainer: [row.cells[metric].mean for metric in METRICS] for row in block.rows}


def published(trainers: Sequence[str]) -> dict[str, list[float]]:
    """The published averages of the trainers that have some from their own authors."""
    found = {}
    for entry in load_published():
        numbers = [entry.average(metric) for metric in METRICS]
        name = entry.trainer or entry.method
        fits = entry.protocol == "base_to_new" and name in trainers and entry.average_over == 11
        if fits and not entry.rerun and entry.variant == VARIANTS.get(name, "") and None not in numbers:
            found[name] = [number.mean for number in numbers]
    return found


def run(args: argparse.Namespace) -> int:
    """Print the two tables."""
    here = measured(args.folder)
    there = published(list(here))
    names = sorted(there, key=lambda name: -here[name][2])
    if len(names) < 4:
        raise ValueError(f"{len(names)} methods are in both, too few to rank: {', '.join(names) or 'none'}")
    header = ["method", *(f"{metric}, {where}" for where in ("here", "published") for metric in METRICS)]
    print(tabulate([[name, *here[name], *there[name]] for name in names], header, "github", floatfmt=".2f"))
    rows, rng = [], np.random.default_rng(0)
    for column, metric in enumerate(METRICS):
        pairs = np.array([(here[name][column], there[name][column]) for name in names])

        def correlation(some: np.ndarray, other: np.ndarray) -> float:
            return float(spearmanr(some, other).statistic)

        draws = [pairs[rng.integers(0, len(pairs), len(pairs))] for _ in range(DRAWS)]
        values = [correlation(*draw.T) for draw in draws if all(len(set(side)) > 1 for side in draw.T)]
        low, high = np.quantile(values, (0.025, 0.975))
        test = permutation_test(pairs.T, correlation, permutation_type="pairings", n_resamples=DRAWS, rng=rng)
        rows.append([metric, f"{correlation(*pairs.T):.2f}", f"{low:.2f} to {high:.2f}", p_text(test.pvalue)])
    print()
    print(tabulate(rows, [f"{len(names)} methods", "Spearman", "95 % interval", "p"], "github", disable_numparse=True))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.mini_ranks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", help="of runs, for example output/miniature")
    add_debug(parser)
    return guarded(run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
