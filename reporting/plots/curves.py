"""Training curves: loss, accuracy, learning rate and validation result by epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from reporting.names import shots_text
from reporting.plots.data import Options, arranged, datasets_of, with_looks
from reporting.plots.epochs import by_epoch, explain_alone, is_number, line_with_band
from reporting.plots.style import MARKERS, PlotError, at_most, legend_below, panels, wrapped
from results.schema import Run

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

    Equal lines lie over one another: dashes tell the methods apart, the solid line lies below. Markers and widths
    tell several numbers of shots apart.

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
    shots = sorted({run.shots for run in trained})
    places = [(dataset, quantity) for dataset in datasets for quantity in quantities]
    figure, axes = panels(len(places), columns=len(quantities))
    alone = False
    for panel, (dataset, quantity) in zip(axes, places, strict=True):
        for method, look in with_looks(methods):
            look["zorder"] = 1.9 if look["linestyle"] == "-" else 2
            own = [run for run in method.runs if run.dataset == dataset]
            for count in sorted({run.shots for run in own}):
                seeds = by_epoch((run.record["history"] for run in own if run.shots == count), quantity)
                several = len(shots) > 1
                marks = _marks(shots.index(count)) if several else {"marker": None}
                # a method of a single number of shots has it in its name
                label = f"{method.label}, {shots_text(count)}" if several and method.shots is None else method.label
                if seeds:
                    alone |= line_with_band(panel, seeds, label, look | marks)
        panel.set(title=wrapped(panel, dataset), xlabel="epoch", ylabel=_LABELS.get(quantity, quantity))
    if alone:
        explain_alone(axes[-1])
    legend_below(figure, axes)
    return figure


def _marks(rank: int) -> dict[str, Any]:
    """The more shots, the wider the line; a marker at every tenth of it."""
    return {"marker": MARKERS[rank % len(MARKERS)], "linewidth": 1.1 + 0.4 * rank, "markersize": 5, "markevery": 0.1}


def _quantities(runs: Sequence[Run]) -> list[str]:
    """What the histories hold, the well-known first; times are no training curve."""
    found = {key for run in runs for entry in run.record["history"] for key, value in entry.items() if is_number(value)}
    found = {key for key in found if key != "epoch" and not key.endswith("seconds")}
    return sorted(found, key=lambda key: (list(_LABELS).index(key) if key in _LABELS else len(_LABELS), key))
