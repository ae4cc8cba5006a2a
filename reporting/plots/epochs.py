"""Values by epoch, over several seeds: what training curves and gate weights share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def by_epoch(histories: Iterable[Iterable[Mapping[str, Any]]], key: str) -> list[dict[int, float]]:
    """A value of every seed that has it, by epoch."""
    seeds = []
    for history in histories:
        entries = [entry for entry in history if is_number(entry.get(key)) and isinstance(entry.get("epoch"), int)]
        if entries:
            seeds.append({entry["epoch"]: float(entry[key]) for entry in entries})
    return seeds


def is_number(value: Any) -> bool:
    """Whether a value can be drawn."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def line_with_band(panel: Axes, seeds: Sequence[Mapping[int, float]], label: str, look: Mapping[str, Any]) -> bool:
    """Mean over seeds with a band from the least to the largest, as far as all seeds go.

    A mean over those that are left would jump where one stops early: each goes on as a thin line of its own.

    Args:
        panel: where.
        seeds: at least one seed's values by epoch.
        label: in the legend.
        look: of the line.

    Returns:
        Whether a seed goes on alone.
    """
    from matplotlib.ticker import MaxNLocator

    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    shared = sorted(set.intersection(*map(set, seeds)))
    values = [[seed[epoch] for seed in seeds] for epoch in shared]
    panel.plot(shared, [fmean(numbers) for numbers in values], label=label, **{"linewidth": 1.4} | look)
    if len(seeds) > 1:
        low, high = [min(numbers) for numbers in values], [max(numbers) for numbers in values]
        panel.fill_between(shared, low, high, color=look["color"], alpha=0.15, linewidth=0)
    rest = [sorted(epoch for epoch in seed if not shared or epoch >= shared[-1]) for seed in seeds]
    alone = [(epochs, seed) for epochs, seed in zip(rest, seeds, strict=True) if len(epochs) > 1 or not shared]
    for epochs, seed in alone:
        _thin(panel, epochs, [seed[epoch] for epoch in epochs], look["color"])
    return bool(alone)


def explain_alone(panel: Axes) -> None:
    """The thin lines' entry in the legend."""
    _thin(panel, [], [], "#777777", "single seeds, after\nthe first one stopped")


def _thin(panel: Axes, epochs: Sequence[int], values: Sequence[float], colour: Any, label: str | None = None) -> None:
    panel.plot(epochs, values, linewidth=0.7, color=colour, marker=".", markersize=4, markevery=[-1], label=label)
