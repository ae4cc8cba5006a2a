"""How much each method gains over a baseline, data set by data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
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

NAME = "gain"
HELP = (
    "gain over a baseline (ZeroshotCLIP where there is one, else the first method) per data set: mean and standard "
    "deviation of the differences of equal seeds"
)


@dataclass(frozen=True)
class Gain:
    """A method's gain on one data set, in points; `std` is None without two seeds that both have."""

    mean: float
    std: float | None
    counted: str

    @property
    def text(self) -> str:
        """For reading, beside the bar."""
        spread = "" if self.std is None else f" ± {self.std:.1f}"
        return f"{self.mean:+.1f}{spread}{self.counted and f' ({self.counted})'}"


def draw(runs: Sequence[Run], options: Options) -> Figure:
    """One panel per method, one bar per data set: mean difference, with its standard deviation over paired seeds.

    Raises:
        PlotError: no such baseline, or nothing that can be set against it.
    """
    protocol, methods = arranged(runs)
    require_one_number_of_shots(runs, protocol, "a gain")
    metric, datasets = chosen_metric(protocol, options.metric), datasets_of(runs)
    baseline = _baseline(methods, options.baseline)
    drawn = []
    for method, look in with_looks(methods):
        gains = {dataset: gain for dataset in datasets if (gain := _gain(method, baseline, dataset, metric))}
        if gains and method is not baseline:
            drawn.append((method.label, gains, look["color"]))
    if not drawn:
        raise PlotError(f"no other method has a number on a data set where {baseline.label} has one")
    width = 4.4 + max(width_of(shortened(dataset)) for dataset in datasets)
    figure, axes = panels(len(drawn), columns=3, size=(width, max(1.6, 0.26 * len(datasets) + 1.0)))
    ends = [gain.mean + side * (gain.std or 0) for _, gains, _ in drawn for gain in gains.values() for side in (-1, 1)]
    low, high = min(0.0, *ends), max(0.0, *ends)
    room = 0.08 * (high - low) or 1.0
    for panel, (label, gains, colour) in zip(axes, drawn, strict=True):
        _bars(panel, gains, colour)
        panel.set_xlim(low - room, high + room)
        difference = f"difference in {axis_label(metric).removesuffix(' (%)')} (points)"
        panel.set(title=wrapped(panel, f"{label} - {baseline.label}"), xlabel=difference, ylabel="data set")
    return figure


def _baseline(methods: Sequence[Method], name: str) -> Method:
    wanted = name or "ZeroshotCLIP"
    found = [method for method in methods if wanted in (method.label, method.trainer)]
    if found:
        return found[0]
    if name:
        raise PlotError(f"no run of the baseline {name!r}; there are: {', '.join(method.label for method in methods)}")
    return methods[0]


def _gain(method: Method, baseline: Method, dataset: str, metric: Metric) -> Gain | None:
    own, base = summary_of(method, dataset, metric), summary_of(baseline, dataset, metric)
    if own is None or base is None:
        return None
    if own.deterministic and base.deterministic:
        return Gain(own.mean - base.mean, None, "")
    seeds = sorted({*own.seeds, *base.seeds})
    pairs = [
        (first, second)
        for seed in seeds
        if (first := own.mean if own.deterministic else own.values.get(seed)) is not None
        and (second := base.mean if base.deterministic else base.values.get(seed)) is not None
    ]
    if not pairs:
        return Gain(own.mean - base.mean, None, f"unpaired, n={own.n} and {base.n}")
    differences = [first - second for first, second in pairs]
    return Gain(fmean(differences), stdev(differences) if len(pairs) > 1 else None, f"n={len(pairs)}")


def _bars(panel: Axes, gains: dict[str, Gain], colour: str) -> None:
    positions = range(len(gains))
    means = [gain.mean for gain in gains.values()]
    panel.barh(positions, means, color=colour, height=0.7, alpha=0.6)
    for position, gain in zip(positions, gains.values(), strict=True):
        if gain.std is not None:
            panel.errorbar(gain.mean, position, xerr=gain.std, color="black", linewidth=1.0, capsize=2.5)
        # a column of its own at the right, where no bar comes and the figure makes room
        place = {"transform": panel.get_yaxis_transform(), "ha": "left", "va": "center", "fontsize": 8}
        panel.text(1.02, position, gain.text, **place)
    panel.set_yticks(positions, [shortened(name) for name in gains])
    # a lone bar must not fill its panel
    panel.set_ylim(max(len(gains) - 0.5, 0.9), min(-0.5, len(gains) - 1.9))
    panel.axvline(0, color="black", linewidth=0.8)
    panel.grid(axis="y", visible=False)
