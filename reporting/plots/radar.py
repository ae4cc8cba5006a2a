"""Every data set an axis, every method a line around."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from reporting.plots.data import Options, arranged, axis_label, chosen_metric, datasets_of, summary_of
from reporting.plots.style import PlotError, look, shortened
from reporting.runs import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "radar"
HELP = "radar: one axis per data set, one line per method; needs three data sets"


def draw(runs: Sequence[Run], options: Options) -> Figure:
    """Means over seeds; a method that lacks a data set is left out, which the legend says.

    Raises:
        PlotError: fewer than three data sets, or no method has them all.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    protocol, methods = arranged(runs)
    if protocol.columns_by == "shots":
        raise PlotError("a radar is for one number of shots; few-shot runs are drawn by few_shot")
    metric, datasets = chosen_metric(protocol, options.metric), datasets_of(runs)
    if len(datasets) < 3:
        raise PlotError(f"a radar needs at least three data sets, there are {len(datasets)}: {', '.join(datasets)}")
    summaries = {method.label: [summary_of(method, dataset, metric) for dataset in datasets] for method in methods}
    means = {
        label: [cell.mean for cell in cells if cell]
        for label, cells in summaries.items()
        if all(cell is not None for cell in cells)
    }
    if not means:
        raise PlotError("no method has runs on all data sets")
    figure = Figure(figsize=(8.4, 5.2))
    # placed by hand: automatic layouts forget the labels around a circle
    panel = figure.add_axes((0.19, 0.1, 0.46, 0.74), projection="polar")
    angles = [2 * math.pi * index / len(datasets) for index in range(len(datasets))]
    for index, (label, cells) in enumerate(summaries.items()):
        if label in means:
            around = [*means[label], means[label][0]]
            panel.plot([*angles, angles[0]], around, label=label, markersize=4, linewidth=1.4, **look(index))
        else:
            lacking = sum(cell is None for cell in cells)
            panel.plot([], [], linestyle="none", label=f"{label}: not drawn, lacks {lacking} data sets")
    lowest = min(value for row in means.values() for value in row)
    panel.set_ylim(max(0, 10 * math.floor(lowest / 10) - 10), None)
    panel.set_theta_offset(math.pi / 2)
    panel.set_theta_direction(-1)
    panel.set_xticks(angles, [shortened(name, 16) for name in datasets])
    panel.tick_params(axis="x", pad=3)
    panel.yaxis.set_major_locator(MaxNLocator(5))
    panel.set_rlabel_position(180 / len(datasets))  # between two axes, where no line bends
    for angle, label in zip(angles, panel.get_xticklabels(), strict=True):
        sideways = math.sin(angle)
        label.set_horizontalalignment("center" if abs(sideways) < 0.1 else "left" if sideways > 0 else "right")
    panel.set_title(axis_label(metric), pad=24)
    panel.legend(loc="center left", bbox_to_anchor=(1.3, 0.5))
    return figure
