"""Accuracy against the number of shots: mean over seeds with a band of one standard deviation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from reporting.layouts import Metric
from reporting.methods import Method
from reporting.plots.data import Options, arranged, axis_label, chosen_metric, datasets_of, with_looks
from reporting.plots.style import PlotError, legend_below, panels, wrapped
from reporting.statistics import Summary, average_over, summarise
from results.schema import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAME = "few_shot"
HELP = "few-shot curves: accuracy against shots per class, with a band of one standard deviation over seeds"


def draw(runs: Sequence[Run], options: Options) -> Figure:
    """One panel per data set, and their average where there are several.

    Raises:
        PlotError: no method has runs with different numbers of shots.
    """
    protocol, methods = arranged(runs)
    if protocol.columns_by != "shots":
        raise PlotError(f"few-shot curves need runs of the few_shot protocol, these are of: {protocol.title}")
    metric, datasets = chosen_metric(protocol, options.metric), datasets_of(runs)
    shots = sorted({run.shots for run in runs if not run.deterministic})
    if len(shots) < 2:
        raise PlotError("few-shot curves need trained runs with at least two different numbers of shots")
    groups = [[dataset] for dataset in datasets] + ([datasets] if len(datasets) > 1 else [])
    figure, axes = panels(len(groups))
    for panel, group in zip(axes, groups, strict=True):
        for method, look in with_looks(methods):
            points = {count: _at(method, group, count, metric) for count in shots}
            _curve(panel, method, {count: point for count, point in points.items() if point is not None}, look)
        title = group[0] if len(group) == 1 else f"average of {len(group)} data sets"
        _finish(panel, shots, wrapped(panel, title), metric)
    legend_below(figure, axes)
    return figure


def _at(method: Method, datasets: Sequence[str], shots: int, metric: Metric) -> Summary | None:
    summaries = []
    for dataset in datasets:
        runs = [run for run in method.runs if run.dataset == dataset and (run.deterministic or run.shots == shots)]
        values = {run.seed: value for run in runs if (value := metric.of_run(run)) is not None}
        summaries.append(summarise(values, deterministic=method.deterministic))
    return average_over(summaries) if len(summaries) > 1 else summaries[0]


def _curve(panel: Axes, method: Method, points: dict[int, Summary], look: dict) -> None:
    if method.deterministic and points:
        # no shots: a level that the curves are to be compared with
        level = next(iter(points.values())).mean
        panel.axhline(level, color=look["color"], linestyle=look["linestyle"], label=method.label)
        return
    shots, means = list(points), [point.mean for point in points.values()]
    panel.plot(shots, means, label=method.label, markersize=4, linewidth=1.4, **look)
    low = [point.mean - (point.std or 0.0) for point in points.values()]
    high = [point.mean + (point.std or 0.0) for point in points.values()]
    panel.fill_between(shots, low, high, color=look["color"], alpha=0.15, linewidth=0)


def _finish(panel: Axes, shots: Sequence[int], title: str, metric: Metric) -> None:
    panel.set_xscale("log", base=2)
    panel.set_xticks(shots, [str(count) for count in shots])
    panel.minorticks_off()
    panel.set(title=title, xlabel="shots per class", ylabel=axis_label(metric))
