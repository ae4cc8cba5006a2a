"""Training curves: loss, accuracy, learning rate and validation result by epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from reporting.methods import Method
from reporting.plots.data import Options, arranged, datasets_of
from reporting.plots.epochs import by_epoch, is_number, line_with_band
from reporting.plots.style import COLOURS, DASHES, PlotError, at_most, legend_below, look, panels
from reporting.runs import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "curves"
HELP = "training curves: every number of the runs' history by epoch"
MOST_DATASETS = 4
_LABELS = {
    "loss": "training loss",
    "acc": "training accuracy (%)",
    "lr": "learning rate",
    "val_result": "validation result (%)",
}


def draw(runs: Sequence[Run], options: Options) -> Figure:
    """One panel per data set and quantity; mean over seeds, band from the least to the largest.

    Raises:
        PlotError: no run has a history (nothing was trained), or too many data sets.
    """
    _, methods = arranged(runs)
    trained = [run for run in runs if run.record["history"]]
    quantities = _quantities(trained)
    if not quantities:
        raise PlotError("no run has a training history: zero-shot runs and --eval-only runs train nothing")
    datasets = datasets_of(trained)
    at_most(datasets, MOST_DATASETS, "data sets")
    places = [(dataset, quantity) for dataset in datasets for quantity in quantities]
    figure, axes = panels(len(places), columns=len(quantities))
    for panel, (dataset, quantity) in zip(axes, places, strict=True):
        for index, method in enumerate(methods):
            for shots, values in _lines(method, dataset, quantity).items():
                name = method.label if shots is None else f"{method.label}, {shots} shots"
                line_with_band(panel, values, name, _line(index))
        panel.set(title=dataset, xlabel="epoch", ylabel=_LABELS.get(quantity, quantity))
    legend_below(figure, axes[0])
    return figure


def _line(index: int) -> dict[str, Any]:
    """Dashed, each method in its own way: epochs are too many for markers, and equal lines lie over one another."""
    return look(index) | {"marker": None, "linestyle": DASHES[(index + index // len(COLOURS)) % len(DASHES)]}


def _quantities(runs: Sequence[Run]) -> list[str]:
    """What the histories hold, the well-known first; times are no training curve."""
    found = {key for run in runs for entry in run.record["history"] for key, value in entry.items() if is_number(value)}
    found = {key for key in found if key != "epoch" and not key.endswith("seconds")}
    return sorted(found, key=lambda key: (list(_LABELS).index(key) if key in _LABELS else len(_LABELS), key))


def _lines(method: Method, dataset: str, quantity: str) -> dict[int | None, dict[int, list[float]]]:
    """One line per number of shots where a method has several, else one."""
    runs = [run for run in method.runs if run.dataset == dataset]
    shots = sorted({run.shots for run in runs})
    lines = {}
    for count in shots:
        values = by_epoch((run.record["history"] for run in runs if run.shots == count), quantity)
        if values:
            lines[count if len(shots) > 1 else None] = values
    return lines
