"""Means and spreads over seeds and data sets, and paired differences between two methods.

The interval and the t-test take the differences as normal; Wilcoxon's signed-rank test does not, but with fewer than
six pairs it cannot come below 5 %. A difference is claimed only where both tests are below 5 %.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

CONFIDENCE = 0.95
LEVEL = 0.05
# Two-sided, exact: the least p-value of n pairs is 2 / 2^n, which 5 pairs leave at 6.25 %.
MIN_PAIRS = 6
MAX_EXACT = 60
MIN_DATASETS, MIN_METHODS = 5, 3  # of average ranks; the first of an average's interval, too


@dataclass(frozen=True)
class Summary:
    """One number of a table with what it was made from.

    `std` is the sample standard deviation (n - 1) over seeds, None for one seed and for deterministic methods. Numbers
    that are computed from means have neither `std` nor `values`.
    """

    mean: float
    std: float | None = None
    seeds: tuple[int, ...] = ()  # those that entered
    values: Mapping[int, float] = field(default_factory=dict)  # by seed
    deterministic: bool = False  # no seed can change the number
    averaged: tuple[float, ...] = ()  # of an average over data sets: the mean of each, over the same seeds

    @property
    def n(self) -> int:
        return len(self.seeds)

    @cached_property
    def over_seeds(self) -> Interval | None:
        """How far training again on the same data sets would change an average."""
        return t_interval([*self.values.values()]) if self.averaged and not self.deterministic else None

    @cached_property
    def over_datasets(self) -> Interval | None:
        """How far other data sets would change an average; of fewer than `MIN_DATASETS` nothing is said."""
        return t_interval(self.averaged) if len(self.averaged) >= MIN_DATASETS else None


def summarise(values: Mapping[int, float], deterministic: bool = False) -> Summary | None:
    """Mean and sample standard deviation over seeds (seed -> value); None when there is no value.

    Values of a deterministic method that differ all the same are given their spread like any others.
    """
    if not values:
        return None
    values = dict(sorted(values.items()))
    numbers = list(values.values())
    deterministic = deterministic and len(set(numbers)) == 1
    mean = numbers[0] if deterministic else statistics.fmean(numbers)
    std = statistics.stdev(numbers) if len(numbers) > 1 and not deterministic else None
    return Summary(mean, std, tuple(values), values, deterministic)


def harmonic_mean(first: float, second: float) -> float:
    """2ab / (a + b), and 0 when both are 0."""
    total = first + second
    return 2.0 * first * second / total if total > 0 else 0.0


def harmonic_of_averages(first: Summary | None, second: Summary | None) -> Summary | None:
    """Harmonic mean of two averages, each taken over the seeds that both have; None when they share none."""
    seeds = () if first is None or second is None else tuple(seed for seed in first.seeds if seed in second.values)
    if not seeds:
        return None
    averages = (statistics.fmean(side.values[seed] for seed in seeds) for side in (first, second))
    return Summary(harmonic_mean(*averages), None, seeds, {}, first.deterministic and second.deterministic)


def average_over(summaries: Sequence[Summary | None]) -> Summary | None:
    """Average over data sets: each seed's average first, then mean and spread over seeds.

    Only seeds that every data set has can enter; a deterministic number stands for any seed. None when a data set has
    no number, or the data sets share no seed.
    """
    if not summaries or any(summary is None for summary in summaries):
        return None
    varying = [summary for summary in summaries if not summary.deterministic]
    seeds = set.intersection(*(set(summary.seeds) for summary in varying)) if varying else set(summaries[0].seeds)
    if not seeds:
        return None
    cells = [
        dict.fromkeys(seeds, cell.mean) if cell.deterministic else {seed: cell.values[seed] for seed in seeds}
        for cell in summaries
    ]
    average = summarise({seed: statistics.fmean(cell[seed] for cell in cells) for seed in seeds}, not varying)
    return replace(average, averaged=tuple(statistics.fmean(cell.values()) for cell in cells))


@dataclass(frozen=True)
class Pair:
    """The same data set, shots and seed under both methods, in percent; seed None where neither depends on it."""

    dataset: str
    shots: int
    seed: int | None
    first: float
    second: float

    @property
    def difference(self) -> float:
        return self.second - self.first


@dataclass(frozen=True)
class Interval:
    """A mean with its t-interval; the ends are None where the numbers show no spread to judge by."""

    mean: float
    low: float | None
    high: float | None
    n: int

    @property
    def excludes_zero(self) -> bool:
        return self.low is not None and (self.low > 0 or self.high < 0)


@dataclass(frozen=True)
class Paired:
    """What the pairs of one metric say; both tests are two-sided, and None where they cannot be computed."""

    pairs: tuple[Pair, ...]
    interval: Interval  # of the differences
    p_t: float | None  # paired t-test
    p_signed_rank: float | None  # Wilcoxon's
    # Each data set's mean difference. With several, over these means, and over the average differences of the seeds
    # that every data set has.
    datasets: Mapping[str, float]
    by_dataset: Interval | None
    by_seed: Interval | None

    @property
    def p(self) -> float:
        """The larger of the two p-values, below 5 % only where both are; 1 where one cannot be computed."""
        return 1.0 if self.p_t is None or self.p_signed_rank is None else max(self.p_t, self.p_signed_rank)

    def won_tied_lost(self, lower: bool = False) -> tuple[int, int, int]:
        """Data sets on which the second method is better, equal and worse, by mean differences to one decimal.

        `lower`: whether lower is better.
        """
        shown = [round(-mean if lower else mean, 1) for mean in self.datasets.values()]
        return sum(mean > 0 for mean in shown), shown.count(0), sum(mean < 0 for mean in shown)

    @property
    def claim(self) -> bool:
        """Whether a difference can be claimed: both tests below 5 %, the interval on one side of 0."""
        both = all(p is not None and p < LEVEL for p in (self.p_t, self.p_signed_rank))
        return both and self.interval.n >= MIN_PAIRS and self.interval.excludes_zero


def compare_pairs(pairs: Sequence[Pair]) -> Paired:
    """Interval and tests of the differences of at least one pair; needs scipy."""
    from scipy import stats

    differences = [pair.difference for pair in pairs]
    by_dataset: dict[str, list[float]] = {}
    by_seed: dict[int, list[float]] = {}
    for pair in pairs:
        by_dataset.setdefault(pair.dataset, []).append(pair.difference)
        if pair.seed is not None:
            by_seed.setdefault(pair.seed, []).append(pair.difference)
    means = {dataset: statistics.fmean(values) for dataset, values in by_dataset.items()}
    over_datasets = over_seeds = None
    if len(means) > 1:
        over_datasets = t_interval([*means.values()])
        averages = [statistics.fmean(values) for values in by_seed.values() if len(values) == len(means)]
        over_seeds = t_interval(averages) if averages else None
    p_t = float(stats.ttest_1samp(differences, 0.0).pvalue) if _varies(differences) else None
    p_rank = _p_signed_rank(differences)
    return Paired(tuple(pairs), t_interval(differences), p_t, p_rank, means, over_datasets, over_seeds)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values (Scandinavian Journal of Statistics, 1979), in the order of `p_values`."""
    adjusted, least = [1.0] * len(p_values), 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        least = max(least, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = least
    return adjusted


def t_interval(differences: Sequence[float]) -> Interval:
    """Mean of the differences, or of other numbers, with Student's interval; needs scipy."""
    from scipy import stats

    n, mean = len(differences), statistics.fmean(differences)
    if not _varies(differences):
        return Interval(mean, None, None, n)
    half = stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1) * statistics.stdev(differences) / math.sqrt(n)
    return Interval(mean, mean - float(half), mean + float(half), n)


def _varies(differences: Sequence[float]) -> bool:
    """Whether the differences have a spread beyond rounding."""
    return len(differences) > 1 and statistics.stdev(differences) > 1e-9


def _p_signed_rank(differences: Sequence[float]) -> float | None:
    from scipy import stats

    # rounding would break ties between equal accuracies, and make differences out of none; zeros are left out, as
    # Wilcoxon does
    kept = [rounded for difference in differences if (rounded := round(difference, 9))]
    if not kept:
        return 1.0
    if len(kept) > MAX_EXACT:
        return float(stats.wilcoxon(kept, method="asymptotic").pvalue)
    doubled_ranks = [round(2 * rank) for rank in stats.rankdata([abs(value) for value in kept])]
    positive = sum(rank for rank, value in zip(doubled_ranks, kept, strict=True) if value > 0)
    statistic = min(positive, sum(doubled_ranks) - positive)
    # exact over all 2^n signs: ties (which scipy would approximate) are no obstacle
    ways = [1] + [0] * sum(doubled_ranks)  # ways[s]: how many choices of ranks sum to s
    for rank in doubled_ranks:
        for total in range(len(ways) - 1, rank - 1, -1):
            ways[total] += ways[total - rank]
    return min(1.0, 2 * sum(ways[: statistic + 1]) / 2 ** len(doubled_ranks))


@dataclass(frozen=True)
class Ranks:
    """Methods ranked on every data set, 1 the best, with Friedman's test and Nemenyi's critical difference."""

    ranks: tuple[tuple[float, ...], ...]  # (data sets, methods)
    average: tuple[float, ...]  # (methods)
    chi2: float  # Friedman's, corrected for ties
    p: float
    critical_difference: float  # at 5 %

    @property
    def differ(self) -> bool:
        """Whether Friedman's test says that the methods differ, so that two of them may be compared."""
        return self.p < LEVEL


def rank_methods(scores: Sequence[Sequence[float]], lower: bool = False) -> Ranks:
    """Average ranks over data sets, as Demsar has them (JMLR 7, 2006, section 3.2.2); needs scipy.

    Args:
        scores: (data sets, methods), at least `MIN_DATASETS` and `MIN_METHODS`.
        lower: whether lower is better.
    """
    from scipy import stats

    # rounding would break ties between equal accuracies
    losses = [[round(score if lower else -score, 9) for score in row] for row in scores]
    ranks = [tuple(map(float, stats.rankdata(row))) for row in losses]
    average = tuple(map(statistics.fmean, zip(*ranks, strict=True)))
    chi2, p = 0.0, 1.0
    if any(len(set(row)) > 1 for row in ranks):
        chi2, p = map(float, stats.friedmanchisquare(*zip(*losses, strict=True)))
    methods, datasets = len(average), len(ranks)
    quantile = stats.studentized_range.ppf(1 - LEVEL, methods, math.inf) / math.sqrt(2)
    critical = quantile * math.sqrt(methods * (methods + 1) / (6 * datasets))
    return Ranks(tuple(ranks), average, chi2, p, float(critical))
