"""How much each method gains over a baseline, data set by data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from reporting.layouts import Metric
from reporting.methods import Method
from reporting.plots.data import Options, arranged, axis_label, chosen_metric, datasets_of, summary_of
from reporting.plots.style import COLOURS, PlotError, panels, shortened
from reporting.runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAME = "gain"
HELP = "gain over a baseline (ZeroshotCLIP where there is one, else the first method) per data set"


def draw(runs: Sequence[Run], options: Options) -> Figure:
    """One panel per method, one bar per data set: difference of the means over seeds.

    Raises:
        PlotError: no such baseline, or nothing that can be set against it.
    """
    protocol, methods = arranged(runs)
    if protocol.columns_by == "shots":
        raise PlotError("gain bars are for one number of shots; few-shot runs are drawn by few_shot")
    metric, datasets = chosen_metric(protocol, options.metric), datasets_of(runs)
    baseline = _baseline(methods, options.baseline)
    gains = {method.label: _gains(method, baseline, datasets, metric) for method in methods if method is not baseline}
    gains = {label: values for label, values in gains.items() if values}
    if not gains:
        raise PlotError(f"no other method has a number on a data set where {baseline.label} has one")
    height = max(1.6, 0.26 * len(datasets) + 1.0)
    figure, axes = panels(len(gains), columns=3, size=(4.2, height))
    extreme = max(abs(value) for values in gains.values() for value in values.values()) or 1.0
    for panel, (label, values) in zip(axes, gains.items(), strict=True):
        _bars(panel, values, extreme)
        difference = f"difference in {axis_label(metric).removesuffix(' (%)')} (points)"
        panel.set(title=f"{label} - {baseline.label}", xlabel=difference, ylabel="data set")
    return figure


def _baseline(methods: Sequence[Method], name: str) -> Method:
    wanted = name or "ZeroshotCLIP"
    found = [method for method in methods if wanted in (method.label, method.trainer)]
    if found:
        return found[0]
    if name:
        raise PlotError(f"no run of the baseline {name!r}; there are: {', '.join(method.label for method in methods)}")
    return methods[0]


def _gains(method: Method, baseline: Method, datasets: Sequence[str], metric: Metric) -> dict[str, float]:
    pairs = {
        dataset: (summary_of(method, dataset, metric), summary_of(baseline, dataset, metric)) for dataset in datasets
    }
    return {dataset: own.mean - base.mean for dataset, (own, base) in pairs.items() if own and base}


def _bars(panel: Axes, values: dict[str, float], extreme: float) -> None:
    names, gains = list(values), list(values.values())
    colours = [COLOURS[0] if gain >= 0 else COLOURS[1] for gain in gains]
    panel.barh(range(len(names)), gains, color=colours, height=0.7)
    panel.set_yticks(range(len(names)), [shortened(name) for name in names])
    # a lone bar must not fill its panel
    panel.set_ylim(max(len(names) - 0.5, 0.9), min(-0.5, len(names) - 1.9))
    panel.axvline(0, color="black", linewidth=0.8)
    panel.set_xlim(-1.3 * extreme, 1.3 * extreme)
    panel.grid(axis="y", visible=False)
    for position, gain in enumerate(gains):
        side = 1 if gain >= 0 else -1
        panel.annotate(
            f"{gain:+.1f}",
            (gain, position),
            xytext=(3 * side, 0),
            textcoords="offset points",
            ha="left" if side > 0 else "right",
            va="center",
            fontsize=8,
        )
