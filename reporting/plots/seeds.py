"""The spread over seeds: every run a point, so that nobody mistakes a lucky seed for a better method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from reporting.layouts import Metric
from reporting.methods import Method
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
from reporting.plots.style import PlotError, panels, shortened, width_of, wrapped
from results.schema import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAME = "seeds"
HELP = "spread over seeds: one point per run, a bar at the mean"


def draw(runs: Sequence[Run], options: Options) -> Figure:
    """One panel per data set, one column of points per method.

    Raises:
        PlotError: no run has the metric, or the runs are of several numbers of shots.
    """
    protocol, methods = arranged(runs)
    require_one_number_of_shots(runs, protocol, "the spread over seeds")
    metric, datasets = chosen_metric(protocol, options.metric), datasets_of(runs)
    width = max(3.0, 0.55 * len(methods) + 1.2)
    names = 0.6 * max(width_of(shortened(method.label)) for method in methods)  # they are written aslant
    figure, axes = panels(len(datasets), columns=max(1, int(14 // width)), size=(width, 2.6 + names))
    drawn = [_points(panel, methods, dataset, metric) for panel, dataset in zip(axes, datasets, strict=True)]
    if not any(drawn):
        raise PlotError(f"no run has {metric.label}")
    return figure


def _points(panel: Axes, methods: Sequence[Method], dataset: str, metric: Metric) -> int:
    """Draw a panel; returns how many runs it shows."""
    count, names = 0, []
    for index, (method, style) in enumerate(with_looks(methods)):
        summary = summary_of(method, dataset, metric)
        values = list(summary.values.values()) if summary is not None else []
        names.append(f"{shortened(method.label)}\nn={len(values)}")
        if not values:
            continue
        count += len(values)
        # spread sideways, so that equal values do not hide one another
        offsets = [0.16 * (2 * k - len(values) + 1) / max(len(values) - 1, 1) for k in range(len(values))]
        x = [index + offset for offset in offsets]
        panel.scatter(x, values, color=style["color"], marker=style["marker"], s=22, alpha=0.8, linewidths=0)
        panel.hlines(summary.mean, index - 0.3, index + 0.3, color=style["color"], linewidth=1.8)
    panel.set_xticks(range(len(methods)), names, rotation=35, ha="right", rotation_mode="anchor")
    panel.set_xlim(-0.6, len(methods) - 0.4)
    panel.grid(axis="x", visible=False)
    panel.set(title=wrapped(panel, dataset), xlabel="method", ylabel=axis_label(metric))
    return count
