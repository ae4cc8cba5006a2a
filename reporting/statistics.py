"""Means, spreads and harmonic means over seeds and data sets."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Summary:
    """One number of a table with what it was made from.

    Args:
        mean: the number itself.
        std: sample standard deviation (n - 1) over seeds; None for one seed, for seedless methods and for numbers
            that are computed from means.
        seeds: the seeds that entered.
        values: each seed's value; empty for numbers that are computed from means.
        deterministic: no seed can change the number.
    """

    mean: float
    std: float | None
    seeds: tuple[int, ...]
    values: Mapping[int, float]
    deterministic: bool = False

    @property
    def n(self) -> int:
        """How many seeds entered."""
        return len(self.seeds)


def summarise(values: Mapping[int, float], deterministic: bool = False) -> Summary | None:
    """Mean and sample standard deviation over seeds; None when there is no value.

    Args:
        values: seed -> value.
        deterministic: the method has nothing that a seed could change. Values that differ all the same are given
            their spread like any others.
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
    if first is None or second is None:
        return None
    seeds = tuple(seed for seed in first.seeds if seed in second.values)
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
    values = {seed: statistics.fmean(_at_seed(summary, seed) for summary in summaries) for seed in seeds}
    return summarise(values, deterministic=not varying)


def _at_seed(summary: Summary, seed: int) -> float:
    return summary.mean if summary.deterministic else summary.values[seed]
