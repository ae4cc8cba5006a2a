"""Plots of runs: one function per kind, named in `KINDS`; matplotlib is imported when one is drawn, not before.

The first paragraph of a function's docstring is what --help and captions say of its kind. A kind raises `PlotError`
when the runs do not hold what it shows: there are no empty plots.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from statistics import fmean, stdev
from typing import TYPE_CHECKING, NamedTuple

from reporting.critical_difference import critical_difference
from reporting.drawing import (
    FILE_FORMATS,
    Options,
    PlotError,
    arranged,
    axis_label,
    chosen_metric,
    legend_below,
    one_number_of_shots,
    panels,
    shortened,
    shots_of,
    style,
    width_of,
    wrapped,
)
from reporting.methods import COST, Method, Metric, datasets_of
from reporting.run_plots import confusion, curves, gates, reliability, tsne
from reporting.stats import average_over
from results.schema import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Kind(NamedTuple):
    """A kind of plot: what it shows, and the function that draws it."""

    help: str
    draw: Callable[[Sequence[Run], Options], Figure]


def draw_plot(
    kind: str, runs: Sequence[Run], file_format: str, options: Options | None = None, dpi: int = 150
) -> bytes:
    """A plot, one of `KINDS`, as the content of a png or svg file: the same runs give the same bytes.

    Raises:
        PlotError: the runs do not hold what this kind shows.
        ResultsError: the runs cannot stand in one plot.
    """
    with style():
        figure, buffer = KINDS[kind].draw(runs, options or Options()), io.BytesIO()
        figure.savefig(buffer, format=file_format, dpi=dpi, metadata=FILE_FORMATS[file_format])
        return buffer.getvalue()


# Accuracy


def few_shot(runs: Sequence[Run], options: Options) -> Figure:
    """few-shot curves: accuracy against shots per class, with a band of one standard deviation over seeds

    One panel per data set, and their average where there are several.
    """
    protocol, methods = arranged(runs)
    if protocol.columns_by != "shots":
        raise PlotError(f"few-shot curves need runs of the few_shot protocol, these are of: {protocol.title}")
    metric, datasets = chosen_metric(protocol, options.metric), datasets_of(runs)
    shots = shots_of(runs)
    if len(shots) < 2:
        raise PlotError("few-shot curves need trained runs with at least two different numbers of shots")
    groups = [[dataset] for dataset in datasets] + ([datasets] if len(datasets) > 1 else [])
    figure, axes = panels(len(groups))
    for panel, group in zip(axes, groups, strict=True):
        for method, look in methods:
            points = {n: average_over([method.summary(metric, dataset, n) for dataset in group]) for n in shots}
            points = {count: point for count, point in points.items() if point is not None}
            if method.deterministic and points:
                # no shots: a level that the curves are to be compared with
                level = next(iter(points.values())).mean
                panel.axhline(level, color=look["color"], linestyle=look["linestyle"], label=method.label)
                continue
            means, stds = [p.mean for p in points.values()], [p.std or 0.0 for p in points.values()]
            panel.plot(list(points), means, label=method.label, markersize=4, linewidth=1.4, **look)
            low, high = ([m + side * s for m, s in zip(means, stds, strict=True)] for side in (-1, 1))
            panel.fill_between(list(points), low, high, color=look["color"], alpha=0.15, linewidth=0)
        panel.set_xscale("log", base=2)
        panel.set_xticks(shots, [str(count) for count in shots])
        panel.minorticks_off()
        title = group[0] if len(group) == 1 else f"average of {len(group)} data sets"
        panel.set(title=wrapped(panel, title), xlabel="shots per class", ylabel=axis_label(metric))
    legend_below(figure, axes)
    return figure


def base_new(runs: Sequence[Run], options: Options) -> Figure:
    """base against new accuracy: each seed and the mean, with lines of equal H

    Each seed's point is its average over the data sets.
    """
    protocol, methods = arranged(runs)
    metrics = {metric.key: metric for metric in protocol.metrics}
    if not {"base", "new"} <= set(metrics):
        raise PlotError(f"base against new needs runs that were tested on base and new classes, not {protocol.title}")
    datasets = datasets_of(runs)
    averages = [
        [average_over([method.summary(metrics[key], dataset) for dataset in datasets]) for key in ("base", "new")]
        for method, _ in methods
    ]
    if all(None in average for average in averages):
        raise PlotError("no method has base and new accuracy on every data set")
    figure, (panel,) = panels(1, size=(6.0, 4.6))
    for (method, look), (base, new) in zip(methods, averages, strict=True):
        if base is None or new is None:
            panel.scatter([], [], s=0, label=f"{method.label}: not drawn, lacks a number")
            continue
        seeds = [seed for seed in base.values if seed in new.values]
        colour, marker = look["color"], look["marker"]
        if len(seeds) > 1 and not base.deterministic:
            x, y = [base.values[seed] for seed in seeds], [new.values[seed] for seed in seeds]
            panel.scatter(x, y, color=colour, marker=marker, s=14, alpha=0.45, linewidths=0)
        named = {"label": method.label, "zorder": 3}
        panel.scatter([base.mean], [new.mean], color=colour, marker=marker, s=80, edgecolors="white", **named)
    _lines_of_equal_h(panel)
    where = datasets[0] if len(datasets) == 1 else f"average of {len(datasets)} data sets"
    panel.set(title=wrapped(panel, where), xlabel="base accuracy (%)", ylabel="new accuracy (%)")
    panel.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def _lines_of_equal_h(panel: Axes, apart: int = 5, steps: int = 200) -> None:
    panel.margins(0.12)
    panel.grid(False)
    (left, right), (bottom, top) = panel.get_xlim(), panel.get_ylim()
    for h in range(apart, 100, apart):
        base = [left + (right - left) * step / steps for step in range(steps + 1)]
        # 2bn / (b + n) = h solved for n; below b = h / 2 there is no such n
        line = [(b, h * b / (2 * b - h)) for b in base if 2 * b > h]
        inside = [(b, n) for b, n in line if bottom <= n <= top]
        if len(inside) < steps // 10:
            continue  # only a corner
        panel.plot(*zip(*inside, strict=True), color="#CCCCCC", linewidth=0.8, zorder=0)
        where = inside[len(inside) // 4]  # away from the corners
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
        panel.text(*where, f"H {h}", color="#777777", fontsize=7, zorder=0.5, ha="center", va="center", bbox=box)
    panel.set_xlim(left, right)
    panel.set_ylim(bottom, top)


class Gain(NamedTuple):
    """A method's gain on one data set, in points; `std` is None without two seeds that both have."""

    mean: float
    std: float | None = None
    counted: str = ""


def gain(runs: Sequence[Run], options: Options) -> Figure:
    """gain over a baseline (ZeroshotCLIP where there is one, else the first method) per data set: mean and standard
    deviation of the differences of equal seeds

    One panel per method, one bar per data set.
    """
    protocol, methods = arranged(runs)
    one_number_of_shots(runs, protocol, "a gain")
    metric, datasets = chosen_metric(protocol, options.metric), datasets_of(runs)
    wanted = options.baseline or "ZeroshotCLIP"
    found = [method for method, _ in methods if wanted in (method.label, method.trainer)]
    if options.baseline and not found:
        there = ", ".join(method.label for method, _ in methods)
        raise PlotError(f"no run of the baseline {wanted!r}; there are: {there}")
    baseline = found[0] if found else methods[0][0]
    drawn = []
    for method, look in methods:
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
        positions = range(len(gains))
        panel.barh(positions, [gain.mean for gain in gains.values()], color=colour, height=0.7, alpha=0.6)
        for position, gain in zip(positions, gains.values(), strict=True):
            if gain.std is not None:
                panel.errorbar(gain.mean, position, xerr=gain.std, color="black", linewidth=1.0, capsize=2.5)
            spread = "" if gain.std is None else f" ± {gain.std:.1f}"
            text = f"{gain.mean:+.1f}{spread}{gain.counted and f' ({gain.counted})'}"
            # a column of its own at the right, where no bar comes and the figure makes room
            place = {"transform": panel.get_yaxis_transform(), "ha": "left", "va": "center", "fontsize": 8}
            panel.text(1.02, position, text, **place)
        panel.set_yticks(positions, [shortened(name) for name in gains])
        # a lone bar must not fill its panel
        panel.set_ylim(max(len(gains) - 0.5, 0.9), min(-0.5, len(gains) - 1.9))
        panel.axvline(0, color="black", linewidth=0.8)
        panel.grid(axis="y", visible=False)
        panel.set_xlim(low - room, high + room)
        difference = f"difference in {axis_label(metric).removesuffix(' (%)')} (points)"
        panel.set(title=wrapped(panel, f"{label} - {baseline.label}"), xlabel=difference, ylabel="data set")
    return figure


def _gain(method: Method, baseline: Method, dataset: str, metric: Metric) -> Gain | None:
    own, base = method.summary(metric, dataset), baseline.summary(metric, dataset)
    if own is None or base is None:
        return None
    if own.deterministic and base.deterministic:
        return Gain(own.mean - base.mean)
    differences = []
    for seed in sorted({*own.seeds, *base.seeds}):
        # a deterministic number stands for every seed
        pair = [side.mean if side.deterministic else side.values.get(seed) for side in (own, base)]
        if None not in pair:
            differences.append(pair[0] - pair[1])
    if not differences:
        return Gain(own.mean - base.mean, None, f"unpaired, n={own.n} and {base.n}")
    spread = stdev(differences) if len(differences) > 1 else None
    return Gain(fmean(differences), spread, f"n={len(differences)}")


def radar(runs: Sequence[Run], options: Options) -> Figure:
    """radar: one axis per data set, one line per method; needs three data sets

    Means over seeds; a method that lacks a data set is left out, which the legend says.
    """
    from matplotlib.figure import Figure

    protocol, methods = arranged(runs)
    one_number_of_shots(runs, protocol, "a radar")
    metric, datasets = chosen_metric(protocol, options.metric), datasets_of(runs)
    if len(datasets) < 3:
        raise PlotError(f"a radar needs at least three data sets, there are {len(datasets)}: {', '.join(datasets)}")
    rows, names = [], []
    for method, _ in methods:
        cells = [method.summary(metric, dataset) for dataset in datasets]
        lacking = cells.count(None)
        rows.append([] if lacking else [cell.mean for cell in cells])
        said = f": not drawn, lacks {lacking} data set{'s' if lacking > 1 else ''}" if lacking else ""
        names.append(f"{method.label}{said}")
    values = [value for row in rows for value in row]
    if not values:
        raise PlotError("no method has runs on all data sets")
    # placed by hand, in inches: automatic layouts forget the labels around a circle
    width, height = 7.7 + max(map(width_of, names)), 5.2
    figure = Figure(figsize=(width, height))
    panel = figure.add_axes((1.7 / width, 0.1, 3.8 / width, 3.8 / height), projection="polar")
    angles = [2 * math.pi * index / len(datasets) for index in range(len(datasets))]
    for (_, look), name, row in zip(methods, names, rows, strict=True):
        if row:
            panel.plot([*angles, angles[0]], [*row, row[0]], label=name, markersize=4, linewidth=1.4, **look)
        else:
            panel.plot([], [], linestyle="none", label=name)
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


def seeds(runs: Sequence[Run], options: Options) -> Figure:
    """spread over seeds: one point per run, a bar at the mean

    One panel per data set, one column per method: nobody mistakes a lucky seed for a better method.
    """
    protocol, methods = arranged(runs)
    one_number_of_shots(runs, protocol, "the spread over seeds")
    metric, datasets = chosen_metric(protocol, options.metric), datasets_of(runs)
    if not any(metric.of_run(run) is not None for run in runs):
        raise PlotError(f"no run has {metric.label}")
    width = max(3.0, 0.55 * len(methods) + 1.2)
    aslant = 0.6 * max(width_of(shortened(method.label)) for method, _ in methods)  # as the names are written
    figure, axes = panels(len(datasets), columns=max(1, int(14 // width)), size=(width, 2.6 + aslant))
    for panel, dataset in zip(axes, datasets, strict=True):
        names = []
        for index, (method, look) in enumerate(methods):
            summary = method.summary(metric, dataset)
            values = list(summary.values.values()) if summary is not None else []
            names.append(f"{shortened(method.label)}\nn={len(values)}")
            if not values:
                continue
            # spread sideways, so that equal values do not hide one another
            offsets = [0.16 * (2 * k - len(values) + 1) / max(len(values) - 1, 1) for k in range(len(values))]
            x = [index + offset for offset in offsets]
            panel.scatter(x, values, color=look["color"], marker=look["marker"], s=22, alpha=0.8, linewidths=0)
            panel.hlines(summary.mean, index - 0.3, index + 0.3, color=look["color"], linewidth=1.8)
        panel.set_xticks(range(len(methods)), names, rotation=35, ha="right", rotation_mode="anchor")
        panel.set_xlim(-0.6, len(methods) - 0.4)
        panel.grid(axis="x", visible=False)
        panel.set(title=wrapped(panel, dataset), xlabel="method", ylabel=axis_label(metric))
    return figure


# Cost

_COST_AXES = {
    "train_seconds": "seconds of training",
    "ms_per_image": "ms per test image",
    "gflop_per_image": "GFLOP per test image",
    "peak_memory": "peak MiB",
}


def cost(runs: Sequence[Run], options: Options) -> Figure:
    """accuracy against a cost (--cost) on a logarithmic axis: each seed and the mean; what costs nothing is a level

    Each seed's point is its average over the data sets, in transfer without the one trained on.
    """
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, StrMethodFormatter

    protocol, methods = arranged(runs)
    one_number_of_shots(runs, protocol, "a plot of costs")
    costs = {metric.key: metric for metric in protocol.on_request if metric.group == COST}
    if options.cost not in costs:
        raise PlotError(f"no cost {options.cost!r}; choose from {', '.join(costs)}")
    priced, metric = costs[options.cost], chosen_metric(protocol, options.metric)
    sources = {run.source_dataset for run in runs}
    datasets = [dataset for dataset in datasets_of(runs) if dataset not in sources] or datasets_of(runs)
    averages = [
        [average_over([method.summary(one, dataset) for dataset in datasets]) for one in (priced, metric)]
        for method, _ in methods
    ]
    if all(None in average or not average[0].mean for average in averages):
        raise PlotError(f"no method that costs something has {priced.label} and {metric.label} on every data set")
    figure, (panel,) = panels(1, size=(6.0, 4.6))
    for (method, look), (x, y) in zip(methods, averages, strict=True):
        colour, marker = look["color"], look["marker"]
        if x is None or y is None:
            panel.scatter([], [], s=0, label=f"{method.label}: not drawn, lacks a number")
            continue
        if not x.mean:  # no place on a logarithmic axis
            panel.axhline(y.mean, color=colour, linestyle=look["linestyle"], linewidth=1.2, label=method.label)
            continue
        seeds = [seed for seed in x.values if seed in y.values]
        if len(seeds) > 1:
            at = [x.values[seed] for seed in seeds], [y.values[seed] for seed in seeds]
            panel.scatter(*at, color=colour, marker=marker, s=14, alpha=0.45, linewidths=0)
        named = {"label": method.label, "zorder": 3}
        panel.scatter([x.mean], [y.mean], color=colour, marker=marker, s=80, edgecolors="white", **named)
    panel.set_xscale("log")
    panel.margins(0.08)
    low, high = panel.get_xlim()
    panel.xaxis.set_major_locator(LogLocator(subs=(1.0,) if high > 100 * low else (1.0, 2.0, 5.0)))
    # 20k, 5M; written plainly, for matplotlib's own labels are formulas
    panel.xaxis.set_major_formatter(EngFormatter(sep="") if priced.whole else StrMethodFormatter("{x:g}"))
    panel.xaxis.set_minor_formatter(NullFormatter())
    where = datasets[0] if len(datasets) == 1 else f"average of {len(datasets)} data sets"
    if not priced.whole:
        devices = sorted({run.device for run in runs})
        where += f", {devices[0]}" if len(devices) == 1 else ", on different devices: not comparable"
    panel.set(title=wrapped(panel, where), xlabel=_COST_AXES.get(priced.key, priced.label), ylabel=axis_label(metric))
    panel.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


_DRAW = (few_shot, base_new, gain, radar, critical_difference, seeds, cost, gates, tsne, confusion, curves, reliability)
KINDS = {draw.__name__: Kind(" ".join(draw.__doc__.split("\n\n")[0].split()), draw) for draw in _DRAW}
