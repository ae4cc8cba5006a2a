"""Values by epoch, over several seeds: what training curves and gate weights share."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def by_epoch(histories: Iterable[Iterable[Mapping[str, Any]]], key: str) -> dict[int, list[float]]:
    """A value of every run at each epoch; runs that stopped early are in the earlier epochs only."""
    values: dict[int, list[float]] = defaultdict(list)
    for history in histories:
        for entry in history:
            if is_number(entry.get(key)) and isinstance(entry.get("epoch"), int):
                values[entry["epoch"]].append(float(entry[key]))
    return dict(sorted(values.items()))


def is_number(value: Any) -> bool:
    """Whether a value can be drawn."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def line_with_band(panel: Axes, values: Mapping[int, list[float]], label: str, look: Mapping[str, Any]) -> None:
    """Mean over seeds, with a band from the least to the largest seed."""
    from matplotlib.ticker import MaxNLocator

    epochs = list(values)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.plot(epochs, [fmean(numbers) for numbers in values.values()], label=label, linewidth=1.4, **look)
    if any(len(numbers) > 1 for numbers in values.values()):
        low, high = [min(numbers) for numbers in values.values()], [max(numbers) for numbers in values.values()]
        panel.fill_between(epochs, low, high, color=look["color"], alpha=0.15, linewidth=0)
