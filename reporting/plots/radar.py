"""Every data set an axis, every method a line around."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from reporting.plots.data import (
    Options,
    arranged,
    axis_label,
    chosen_metric,
    datasets_of,
    require_one_number_of_shots,
    summary_of,
    with_looks,
)
from reporting.plots.style import PlotError, shortened, width_of
from reporting.statistics import Summary
from results.schema import Run

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

    protocol, methods = arranged(runs)
    require_one_number_of_shots(runs, protocol, "a radar")
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
    names = [label if label in means else _left_out(label, cells) for label, cells in summaries.items()]
    # placed by hand, in inches: automatic layouts forget the labels around a circle
    width, height = 7.7 + max(map(width_of, names)), 5.2
    figure = Figure(figsize=(width, height))
    panel = figure.add_axes((1.7 / width, 0.1, 3.8 / width, 3.8 / height), projection="polar")
    angles = [2 * math.pi * index / len(datasets) for index in range(len(datasets))]
    for (method, look), name in zip(with_looks(methods), names, strict=True):
        if method.label in means:
            around = [*means[method.label], means[method.label][0]]
            panel.plot([*angles, angles[0]], around, label=name, markersize=4, linewidth=1.4, **look)
        else:
            panel.plot([], [], linestyle="none", label=name)
    values = [value for row in means.values() for value in row]
    # rings at round numbers, the first of them the centre
    step = next((step for step in (0.5, 1, 2, 5, 10) if max(values) - min(values) < 4 * step), 20)
    lowest = max(0, step * (math.floor(min(values) / step) - 1))
    rings = [lowest + step * ring for ring in range(max(1, math.ceil((max(values) - lowest) / step)) + 1)]
    panel.set_ylim(rings[0], rings[-1])
    panel.set_yticks(rings, [f"{ring:g}" for ring in rings], fontsize=8)
    panel.set_theta_offset(math.pi / 2)
    panel.set_theta_direction(-1)
    panel.set_xticks(angles, [shortened(name, 16) for name in datasets])
    panel.tick_params(axis="x", pad=3)
    panel.set_rlabel_position(180 / len(datasets))  # between two axes, where no line bends
    for angle, label in zip(angles, panel.get_xticklabels(), strict=True):
        sideways = math.sin(angle)
        label.set_horizontalalignment("center" if abs(sideways) < 0.1 else "left" if sideways > 0 else "right")
    panel.set_title(f"{axis_label(metric)}, from {rings[0]:g} at the centre to {rings[-1]:g} at the rim", pad=24)
    panel.legend(loc="center left", bbox_to_anchor=(5.2 / 3.8, 0.5))
    return figure


def _left_out(label: str, cells: Sequence[Summary | None]) -> str:
    lacking = sum(cell is None for cell in cells)
    return f"{label}: not drawn, lacks {lacking} data set{'s' if lacking > 1 else ''}"
