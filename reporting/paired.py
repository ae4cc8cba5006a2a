"""Paired differences between two methods: mean, confidence interval, tests, and what they allow to be said.

The interval and the t-test take the differences as normal; Wilcoxon's signed-rank test does not, but with fewer than
six pairs it cannot come below 5 %. A difference is claimed only where both tests are below 5 %.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95
LEVEL = 0.05
# Two-sided, exact: the least p-value of n pairs is 2 / 2^n, which 5 pairs leave at 6.25 %.
LEAST_PAIRS = 6
MOST_EXACT = 60


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
        """Second minus first, in points."""
        return self.second - self.first


@dataclass(frozen=True)
class Interval:
    """A mean with its t-interval; the ends are None where the differences show no spread to judge by."""

    mean: float
    low: float | None
    high: float | None
    n: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of 0."""
        return self.low is not None and (self.low > 0 or self.high < 0)


@dataclass(frozen=True)
class Paired:
    """What the pairs of one metric say.

    Args:
        pairs: one per data set, shots and seed.
        interval: of the differences.
        p_t: two-sided paired t-test; None where it cannot be computed.
        p_signed_rank: two-sided Wilcoxon signed-rank test; None where it cannot be computed.
        by_dataset: the interval over the data sets' mean differences; None with one data set.
    """

    pairs: tuple[Pair, ...]
    interval: Interval
    p_t: float | None
    p_signed_rank: float | None
    by_dataset: Interval | None

    @property
    def claim(self) -> bool:
        """Whether a difference can be claimed: both tests below 5 %, the interval on one side of 0."""
        tests = (self.p_t, self.p_signed_rank)
        enough = self.interval.n >= LEAST_PAIRS
        return enough and self.interval.excludes_zero and all(p is not None and p < LEVEL for p in tests)


def compare_pairs(pairs: Sequence[Pair]) -> Paired:
    """Interval and tests of the differences.

    Args:
        pairs: at least one.

    Raises:
        ValueError: there is no pair.
    """
    if not pairs:
        raise ValueError("nothing to compare: there is no pair")
    differences = [pair.difference for pair in pairs]
    by_dataset: dict[str, list[float]] = {}
    for pair in pairs:
        by_dataset.setdefault(pair.dataset, []).append(pair.difference)
    means = [statistics.fmean(values) for values in by_dataset.values()]
    return Paired(
        tuple(pairs),
        t_interval(differences),
        _p_t(differences),
        _p_signed_rank(differences),
        t_interval(means) if len(means) > 1 else None,
    )


def t_interval(differences: Sequence[float]) -> Interval:
    """Mean of the differences with Student's interval."""
    from scipy import stats

    n, mean = len(differences), statistics.fmean(differences)
    if not _varies(differences):
        return Interval(mean, None, None, n)
    half = stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1) * statistics.stdev(differences) / math.sqrt(n)
    return Interval(mean, mean - float(half), mean + float(half), n)


def _varies(differences: Sequence[float]) -> bool:
    """Whether the differences have a spread beyond rounding."""
    return len(differences) > 1 and statistics.stdev(differences) > 1e-9


def _p_t(differences: Sequence[float]) -> float | None:
    from scipy import stats

    return float(stats.ttest_1samp(differences, 0.0).pvalue) if _varies(differences) else None


def _p_signed_rank(differences: Sequence[float]) -> float | None:
    from scipy import stats

    # rounding would break ties between equal accuracies, and make differences out of none; zeros are left out, as
    # Wilcoxon does
    kept = [rounded for difference in differences if (rounded := round(difference, 9))]
    if not kept:
        return 1.0
    if len(kept) > MOST_EXACT:
        return float(stats.wilcoxon(kept, method="asymptotic").pvalue)
    doubled_ranks = [round(2 * rank) for rank in stats.rankdata([abs(value) for value in kept])]
    positive = sum(rank for rank, value in zip(doubled_ranks, kept, strict=True) if value > 0)
    return _exact_tail(doubled_ranks, min(positive, sum(doubled_ranks) - positive))


def _exact_tail(doubled_ranks: Sequence[int], statistic: int) -> float:
    """Two-sided p-value over all 2^n signs; ties (which scipy would approximate) are no obstacle."""
    ways = [1] + [0] * sum(doubled_ranks)  # ways[s]: how many choices of ranks sum to s
    for rank in doubled_ranks:
        for total in range(len(ways) - 1, rank - 1, -1):
            ways[total] += ways[total - rank]
    return min(1.0, 2 * sum(ways[: statistic + 1]) / 2 ** len(doubled_ranks))
