"""Does the benchmark in miniature say anything about the real one? Ranks of methods here and in the literature.

    python -m tools.mini_ranks output/miniature

Of every method that is in both: base, new and H, averaged over the miniature's data sets and seeds, and as its authors
published them for ViT-B/16 over 11 data sets; then Spearman's correlation of each with a 95 % interval (bootstrap over
the methods) and the p-value of a permutation test. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean, harmonic_mean

import numpy as np
from scipy.stats import permutation_test, spearmanr
from tabulate import tabulate

from common.commandline import add_debug, guarded
from reporting.published import load_published
from results.schema import load_runs

METRICS = ("base", "new", "H")
DRAWS = 10_000


def measured(folder: str) -> dict[str, list[float]]:
    """Base, new and H of every method under `folder`, over the data sets that all methods have."""
    runs = [run for run in load_runs([folder]) if run.protocol == "open_world" and run.backbone == "bundled:mini_clip"]
    by_method: dict[str, dict[str, list]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        if run.setting in ("mini", "mini_ep10_batch32"):
            by_method[run.trainer][run.dataset].append((run.accuracy("base"), run.accuracy("new")))
    if not by_method:
        raise ValueError(f"{folder} has no open-world runs of the benchmark in miniature: run scripts/miniature.sh")
    common = set.intersection(*(set(datasets) for datasets in by_method.values()))
    print(f"Data sets: {', '.join(sorted(common))}\n")
    averages = {}
    for trainer, datasets in by_method.items():
        base, new = (fmean(fmean(pair[part] for pair in datasets[name]) for name in common) for part in (0, 1))
        averages[trainer] = [base, new, harmonic_mean([base, new])]
    return averages


def published(trainers: Sequence[str]) -> dict[str, list[float]]:
    """The published averages of the trainers that have some from their own authors."""
    found = {}
    for entry in load_published():
        numbers = [entry.average(metric) for metric in METRICS]
        name = entry.trainer or entry.method
        fits = entry.protocol == "base_to_new" and name in trainers and entry.average_over == 11
        if fits and not entry.rerun and not entry.variant and None not in numbers:
            found.setdefault(name, [number.mean for number in numbers])
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
        rows.append([metric, f"{correlation(*pairs.T):.2f}", f"{low:.2f} to {high:.2f}", f"{test.pvalue:.3f}"])
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
