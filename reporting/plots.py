"""Plots of runs: one function per kind, named in `KINDS`; matplotlib is imported when one is drawn, not before.

The first paragraph of a function's docstring is what --help and captions say of its kind. A kind raises `PlotError`
when the runs do not hold what it shows: there are no empty plots.
"""

from __future__ import annotations

import io
import math
import random
import textwrap
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any, NamedTuple

from reporting.methods import (
    PROTOCOLS,
    Method,
    Metric,
    Protocol,
    check_protocol,
    datasets_of,
    group_methods,
    shots_text,
    trainer_order,
)
from reporting.stats import average_over
from results.schema import ResultsError, Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy import ndarray

FEATURES_FILE = "features.npz"
MAX_CURVE_DATASETS, MAX_GATE_ROWS, MAX_RELIABILITY = 4, 6, 16
MAX_NAMED_CLASSES, MAX_NUMBERED_CLASSES = 40, 12  # of a confusion matrix, so that names and numbers can be read
MAX_IMAGES, MAX_LISTED_CLASSES = 2000, 30  # of t-SNE
# Trainers that share a colour; the first has its first dash. The order is that of COLOURS.
FAMILIES = (
    *(("BMIP",), ("MaPLe", "MaPLe_BMIP"), ("ZeroshotCLIP", "ZeroshotCLIP2"), ("CoOp", "CoCoOp")),
    *(("PromptSRC", "PromptSRC_BMIP"), ("CoPrompt", "CoPrompt_BMIP"), ("ProDA", "KgCoOp"), ("VPT", "IVLP")),
)
# Okabe and Ito's palette without its yellow, which is too pale on white (https://jfly.uni-koeln.de/color/), and five
# dark or vivid colours; the last four are left to trainers that no family names. No two come nearer to one another
# than Okabe and Ito's own, for any kind of colour blindness.
COLOURS = (
    *("#0072B2", "#D55E00", "#000000", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#332288"),
    *("#882255", "#661100", "#9600FF", "#E1004B"),
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p", "<", ">", "h", "d")
DASHES: tuple[Any, ...] = (
    *("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (9, 1.5)), (0, (5, 1, 1, 1, 1, 1)), (0, (2.5, 2))),
    (0, (9, 1, 3, 1)),
)
SETTINGS = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that every machine draws the same
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.handlelength": 3.2,  # a whole dash pattern
    "svg.hashsalt": "reporting",
    "svg.fonttype": "path",
    "text.parse_math": False,  # a name with a dollar sign is a name, not a formula
}
# Without these entries of its metadata a file would hold the date and the version that drew it.
FILE_FORMATS = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}


class PlotError(ValueError):
    """The runs do not hold what a plot shows; the message says what is missing and how to get it."""


@dataclass(frozen=True)
class Options:
    """What a reader may choose; empty: what suits the plot."""

    metric: str = ""  # key of one of the protocol's
    baseline: str = ""  # the trainer that gains are over
    split: str = ""  # class split, for confusion matrices and features


Look = dict[str, Any]  # colour, marker and line style


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


# How all plots look


@contextmanager
def style() -> Iterator[None]:
    """Draw and save with these settings, whatever the reader's matplotlibrc says.

    Raises:
        PlotError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise PlotError("plots need matplotlib: pip install matplotlib") from error
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(SETTINGS)
        yield


def look(number: int) -> Look:
    """Colour, marker and line style number so-and-so.

    No two numbers share both colour and line style, nor do two of the first 48 share both marker and line style.
    """
    repeat, colour = divmod(number, len(COLOURS))
    dash = DASHES[(colour + repeat) % len(DASHES)] if repeat < len(DASHES) else (0, (9, 1) + repeat * (1, 1))
    return {"color": COLOURS[colour], "marker": MARKERS[(colour + 2 * repeat) % len(MARKERS)], "linestyle": dash}


def looks(trainers: Sequence[str]) -> list[Look]:
    """The looks of a picture's methods, given their trainers in the picture's order.

    A trainer's colour is the same in every picture, whatever else is in it; further settings of a trainer have its
    colour and other dashes and markers.
    """
    numbers: list[int] = []
    for trainer in trainers:
        known = [(colour, family) for colour, family in enumerate(FAMILIES) if trainer in family]
        other = zlib.crc32(trainer.encode("utf-8", "surrogatepass")) % (len(COLOURS) - len(FAMILIES))
        colour, family = known[0] if known else (len(FAMILIES) + other, (trainer,))
        number, step = colour + family.index(trainer) * len(COLOURS), len(family)
        while number in numbers:
            number += step * len(COLOURS)
        numbers.append(number)
    return [look(number) for number in numbers]


def panels(count: int, *, columns: int = 4, size: tuple[float, float] = (3.4, 2.8)) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels, at most `columns` in a row, each of a size in inches."""
    from matplotlib.figure import Figure

    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(max(columns * size[0], 4.8), rows * size[1] + 0.5), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for spare in axes[count:]:
        spare.remove()
    return figure, axes[:count]


def legend_below(figure: Figure, axes: Sequence[Axes]) -> None:
    """One legend for all panels, under them, in as many columns as the figure is wide; the figure grows by it."""
    entries = {}
    for panel in axes:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if entries:
        columns = min(4, len(entries), max(1, int(figure.get_figwidth() / (0.8 + max(map(width_of, entries))))))
        figure.set_figheight(figure.get_figheight() + 0.2 * -(-len(entries) // columns))
        figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=columns)


def wrapped(panel: Axes, title: str) -> str:
    """A title in as many lines as keep it over its panel."""
    room = panel.figure.get_figwidth() / panel.get_subplotspec().get_gridspec().ncols - 1.2
    title = shortened(title, 160)
    for characters in range(len(title), 8, -1):
        lines = textwrap.fill(title, characters)
        if width_of(lines, SETTINGS["axes.titlesize"]) <= room:
            return lines
    return title


def width_of(text: str, size: float = SETTINGS["font.size"]) -> float:
    """How wide a text is in inches, at so many points."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(family=SETTINGS["font.family"], size=size)
    lines = text.splitlines() or [""]
    return max(text_to_path.get_text_width_height_descent(line, font, ismath=False)[0] for line in lines) / 72


def shortened(text: str, length: int = 28) -> str:
    """A name that fits a tick label."""
    return text if len(text) <= length else text[: length - 1] + "…"


def at_most(items: Sequence[Any], limit: int, what: str) -> None:
    """Refuse more panels than can be read."""
    if len(items) > limit:
        said = f"{len(items)} {what} are too many for one plot (at most {limit})"
        raise PlotError(f"{said}: choose with --trainer, --dataset, --shots")


# What all kinds read from runs


def arranged(runs: Sequence[Run]) -> tuple[Protocol, list[tuple[Method, Look]]]:
    """The protocol that the runs share, and its methods, with names that fit a plot and the looks of their lines.

    Raises:
        ResultsError: several protocols, or two runs with nothing to tell them apart, named with their paths.
    """
    protocol = PROTOCOLS[check_protocol(runs, None)]
    methods = group_methods(runs, protocol)
    short = [shortened(method.label) for method in methods]
    # a name too long for a legend is cut, but not so that two become one
    labels = [name if short.count(name) == 1 else f"{name} {number}" for number, name in enumerate(short, 1)]
    methods = [replace(method, label=label) for method, label in zip(methods, labels, strict=True)]
    return protocol, list(zip(methods, looks([method.trainer for method in methods]), strict=True))


def _shots_of(runs: Sequence[Run]) -> list[int]:
    return sorted({run.shots for run in runs if not run.deterministic})


def _one_number_of_shots(runs: Sequence[Run], protocol: Protocol, what: str) -> None:
    """Refuse few-shot runs of several numbers of shots, which such a plot would mix."""
    if protocol.columns_by == "shots" and len(shots := _shots_of(runs)) > 1:
        raise PlotError(f"{what} is of one number of shots: choose with --shots ({', '.join(map(str, shots))})")


def _chosen_metric(protocol: Protocol, key: str) -> Metric:
    """A metric that every run has a value of; by default the run's H, or the accuracy over all classes."""
    metrics = {metric.key: metric for metric in (*protocol.metrics, *protocol.on_request) if metric.of_run is not None}
    # H of the averages is no run's number: a run has its own H
    key = "average_H" if key == "H" else key or ("average_H" if "average_H" in metrics else "all")
    if key not in metrics:
        own = ", ".join(metric.key for metric in protocol.metrics if metric.of_run is not None)
        more = f", or {protocol.on_request[0].key} and others of docs/reporting.md"
        raise PlotError(f"no metric {key!r} in {protocol.title}; choose from {own}{more}")
    return metrics[key]


def _axis_label(metric: Metric) -> str:
    names = {"average_H": "H", "all": "accuracy", "base": "base accuracy", "new": "new accuracy"}
    return f"{names.get(metric.key, metric.label)}{' (%)' if metric.percent else ''}"


# Accuracy


def few_shot(runs: Sequence[Run], options: Options) -> Figure:
    """few-shot curves: accuracy against shots per class, with a band of one standard deviation over seeds

    One panel per data set, and their average where there are several.
    """
    protocol, methods = arranged(runs)
    if protocol.columns_by != "shots":
        raise PlotError(f"few-shot curves need runs of the few_shot protocol, these are of: {protocol.title}")
    metric, datasets = _chosen_metric(protocol, options.metric), datasets_of(runs)
    shots = _shots_of(runs)
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
        panel.set(title=wrapped(panel, title), xlabel="shots per class", ylabel=_axis_label(metric))
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
    _one_number_of_shots(runs, protocol, "a gain")
    metric, datasets = _chosen_metric(protocol, options.metric), datasets_of(runs)
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
        difference = f"difference in {_axis_label(metric).removesuffix(' (%)')} (points)"
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
    _one_number_of_shots(runs, protocol, "a radar")
    metric, datasets = _chosen_metric(protocol, options.metric), datasets_of(runs)
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
    panel.set_title(f"{_axis_label(metric)}, from {rings[0]:g} at the centre to {rings[-1]:g} at the rim", pad=24)
    panel.legend(loc="center left", bbox_to_anchor=(5.2 / 3.8, 0.5))
    return figure


def critical_difference(runs: Sequence[Run], options: Options) -> Figure:
    """critical-difference diagram: average ranks over data sets, bars over methods that Nemenyi's test cannot tell
    apart; needs five data sets and three methods

    Drawn in a file of its own.
    """
    from reporting.critical_difference import diagram
    from reporting.ranks import ranked

    protocol, methods = arranged(runs)
    metric = _chosen_metric(protocol, options.metric)
    try:
        ranking = ranked([method for method, _ in methods], protocol, metric)
    except ResultsError as error:
        raise PlotError(str(error)) from error
    except ImportError as error:
        raise PlotError("ranks need scipy: pip install scipy") from error
    colours = {method.label: look["color"] for method, look in methods}
    return diagram(ranking, [colours[method.label] for method in ranking.methods], _axis_label(metric))


def seeds(runs: Sequence[Run], options: Options) -> Figure:
    """spread over seeds: one point per run, a bar at the mean

    One panel per data set, one column per method: nobody mistakes a lucky seed for a better method.
    """
    protocol, methods = arranged(runs)
    _one_number_of_shots(runs, protocol, "the spread over seeds")
    metric, datasets = _chosen_metric(protocol, options.metric), datasets_of(runs)
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
        panel.set(title=wrapped(panel, dataset), xlabel="method", ylabel=_axis_label(metric))
    return figure


# Values by epoch


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _by_epoch(histories: Iterable[Iterable[Mapping[str, Any]]], key: str) -> list[dict[int, float]]:
    """A value of every seed that has it, by epoch."""
    seeds = []
    for history in histories:
        entries = [entry for entry in history if _is_number(entry.get(key)) and isinstance(entry.get("epoch"), int)]
        if entries:
            seeds.append({entry["epoch"]: float(entry[key]) for entry in entries})
    return seeds


def _line_with_band(panel: Axes, seeds: Sequence[Mapping[int, float]], label: str, look: Look) -> bool:
    """Mean over seeds with a band from the least to the largest, as far as all seeds go.

    A mean over those that are left would jump where one stops early: each goes on as a thin line of its own. Returns
    whether one does.
    """
    from matplotlib.ticker import MaxNLocator

    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    shared = sorted(set.intersection(*map(set, seeds)))
    values = [[seed[epoch] for seed in seeds] for epoch in shared]
    panel.plot(shared, [fmean(numbers) for numbers in values], label=label, **{"linewidth": 1.4} | look)
    if len(seeds) > 1:
        low, high = [min(numbers) for numbers in values], [max(numbers) for numbers in values]
        panel.fill_between(shared, low, high, color=look["color"], alpha=0.15, linewidth=0)
    rest = [sorted(epoch for epoch in seed if not shared or epoch >= shared[-1]) for seed in seeds]
    alone = [(epochs, seed) for epochs, seed in zip(rest, seeds, strict=True) if len(epochs) > 1 or not shared]
    for epochs, seed in alone:
        _thin_line(panel, epochs, [seed[epoch] for epoch in epochs], look["color"])
    return bool(alone)


def _thin_line(panel: Axes, x: Sequence[int], y: Sequence[float], colour: Any, label: str | None = None) -> None:
    panel.plot(x, y, linewidth=0.7, color=colour, marker=".", markersize=4, markevery=[-1], label=label)


_ALONE = {"colour": "#777777", "label": "single seeds, after\nthe first one stopped"}
_CURVES = {
    "loss": "training loss",
    "acc": "training accuracy (%)",
    "lr": "learning rate",
    "val_result": "validation result (%)",
}


def curves(runs: Sequence[Run], options: Options) -> Figure:
    """training curves: every number of the runs' history by epoch

    One panel per data set and quantity; mean over seeds, band from the least to the largest. Equal lines lie over one
    another: dashes tell the methods apart, the solid line lies below. Markers and widths tell several numbers of shots
    apart.
    """
    _, methods = arranged(runs)
    trained = [run for run in runs if run.record["history"]]
    found = {key for run in trained for entry in run.record["history"] for key in entry if _is_number(entry[key])}
    known = list(_CURVES)
    # the well-known first; times are no training curve
    quantities = sorted(
        (key for key in found if key != "epoch" and not key.endswith("seconds")),
        key=lambda key: (known.index(key) if key in known else len(known), key),
    )
    if not quantities:
        raise PlotError("no run has a training history: zero-shot runs and --eval-only runs train nothing")
    datasets = datasets_of(trained)
    at_most(datasets, MAX_CURVE_DATASETS, "data sets")
    shots = sorted({run.shots for run in trained})
    places = list(product(datasets, quantities))
    figure, axes = panels(len(places), columns=len(quantities))
    alone = False
    for panel, (dataset, quantity) in zip(axes, places, strict=True):
        for method, look in methods:
            look = look | {"zorder": 1.9 if look["linestyle"] == "-" else 2, "marker": None}
            there = [run for run in method.runs if run.dataset == dataset]
            for count in sorted({run.shots for run in there}):
                histories = _by_epoch((run.record["history"] for run in there if run.shots == count), quantity)
                label = method.label
                if len(shots) > 1:
                    # the more shots, the wider the line; a marker at every tenth of it
                    rank = shots.index(count)
                    marks = {"marker": MARKERS[rank % len(MARKERS)], "linewidth": 1.1 + 0.4 * rank}
                    look = look | marks | {"markersize": 5, "markevery": 0.1}
                    # a method of a single number of shots has it in its name
                    label += f", {shots_text(count)}" if method.shots is None else ""
                if histories:
                    alone |= _line_with_band(panel, histories, label, look)
        panel.set(title=wrapped(panel, dataset), xlabel="epoch", ylabel=_CURVES.get(quantity, quantity))
    if alone:
        _thin_line(axes[-1], [], [], **_ALONE)
    legend_below(figure, axes)
    return figure


def gates(runs: Sequence[Run], options: Options) -> Figure:
    """gate weights per layer and modality by epoch (BMIP and its combinations)

    One row per method, data set and number of shots, one panel per modality, one line per layer; band over seeds.
    """
    import matplotlib as mpl

    _, methods = arranged(runs)
    groups = {}
    for method, _ in methods:
        gated = [run for run in method.runs if (run.record["gates"] or {}).get("per_epoch")]
        several = len({run.shots for run in gated}) > 1
        for dataset, shots in product(datasets_of(gated), sorted({run.shots for run in gated})):
            title = f"{method.label}, {dataset}" + (f", {shots_text(shots)}" if several else "")
            there = [run for run in gated if (run.dataset, run.shots) == (dataset, shots)]
            histories = [run.record["gates"]["per_epoch"] for run in there]
            keys = {key for history in histories for entry in history for key in entry if "/" in key}
            # every tower's layers in order, each with its weights by epoch for every seed that has them
            layers = {tuple(key.split("/", 1)): weights for key in keys if (weights := _by_epoch(histories, key))}
            order = sorted(layers, key=lambda at: (at[0], int(at[1]) if at[1].isdecimal() else -1, at[1]))
            groups |= {title: {place: layers[place] for place in order}} if layers else {}
    if not groups:
        raise PlotError("no run recorded gates: only BMIP and its combinations with the gate aggregator have them")
    at_most(groups, MAX_GATE_ROWS, "methods, data sets and numbers of shots")
    towers = sorted({tower for layers in groups.values() for tower, _ in layers}, reverse=True)
    places = list(product(groups, towers))
    figure, axes = panels(len(places), columns=len(towers), size=(4.4, 3.0))
    for panel, (title, tower) in zip(axes, places, strict=True):
        layers = {layer: seeds for (other, layer), seeds in groups[title].items() if other == tower}
        alone = False
        for index, (layer, seeds) in enumerate(layers.items()):
            # layers have an order: viridis without its palest end keeps it visible to everybody
            colour = mpl.colormaps["viridis"](0.85 * index / max(len(layers) - 1, 1))
            look = {"color": colour, "linestyle": DASHES[index % len(DASHES)]}
            alone |= _line_with_band(panel, seeds, f"layer {layer}", look)
        if alone:
            _thin_line(panel, [], [], **_ALONE)
        panel.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=7)
        panel.set(title=wrapped(panel, f"{title}: {tower}"), xlabel="epoch", ylabel="weight of the own prompt")
        panel.set_ylim(-0.02, 1.02)
    return figure


# Calibration


def reliability(runs: Sequence[Run], options: Options) -> Figure:
    """reliability diagram: accuracy by confidence, and the share of images, in bins of equal width, summed over seeds

    One panel per method and data set, of one class split. ECE is the mean of the seeds' own.
    """
    protocol, methods = arranged(runs)
    _one_number_of_shots(runs, protocol, "a reliability diagram")
    splits = (options.split,) if options.split else ("all", "base", "new")
    recorded = [name for name in splits for run in runs if _bins_of(run, name)]
    if not recorded:
        raise PlotError(f"no run recorded the calibration of class split {splits[0]!r}: {runs[0].path}")
    split = recorded[0]
    drawn = []
    for (method, look), dataset in product(methods, datasets_of(runs)):
        if there := [run for run in method.runs_on(dataset) if _bins_of(run, split)]:
            drawn.append((f"{method.label}, {dataset}", look["color"], there))
    at_most(drawn, MAX_RELIABILITY, "methods and data sets")
    figure, axes = panels(len(drawn), size=(3.2, 3.2))
    for panel, (title, colour, there) in zip(axes, drawn, strict=True):
        tables = [_bins_of(run, split) for run in there]
        if len({len(table) for table in tables}) > 1:
            paths = ", ".join(str(run.path) for run in there)
            raise PlotError(f"the runs' reliability diagrams have different bins: {paths}")
        bins = [tuple(map(sum, zip(*seeds, strict=True))) for seeds in zip(*tables, strict=True)]
        width, total = 100.0 / len(bins), sum(count for count, _ in bins)
        bars = {(place + 0.5) * width: 100.0 * right / count for place, (count, right) in enumerate(bins) if count}
        panel.bar(bars.keys(), bars.values(), width=0.9 * width, color=colour, alpha=0.4)
        edges = [place * width for place in range(len(bins) + 1)]
        shares = [100.0 * count / total for count, _ in bins]
        panel.stairs(shares, edges, color="black", linewidth=1.0, label="share of images")
        panel.plot([0, 100], [0, 100], color="#777777", linestyle="--", linewidth=1.0, label="accuracy = confidence")
        errors = [error for run in there if (error := run.calibration(split, "ece")) is not None]
        if errors:
            seeds = f" (n={len(errors)})" if len(errors) > 1 else ""
            panel.text(4, 94, f"ECE {fmean(errors):.1f} %{seeds}", fontsize=8, va="top")
        panel.set(xlim=(0, 100), ylim=(0, 100), xlabel="confidence (%)", ylabel="accuracy (%)")
        panel.set_title(wrapped(panel, f"{title}, class split {split}"))
    legend_below(figure, axes)
    return figure


def _bins_of(run: Run, split: str) -> list[tuple[int, int]]:
    """Images and right predictions in each bin of a run's confidences; empty where it recorded none."""
    bins = run.record["metrics"].get(split, {}).get("calibration", {}).get("bins", {})
    count, correct = bins.get("count", []), bins.get("correct", [])
    return list(zip(count, correct, strict=True)) if len(count) == len(correct) and sum(count) else []


# One method, one run


def confusion(runs: Sequence[Run], options: Options) -> Figure:
    """confusion matrix of one method on one data set, summed over its seeds

    Rows: true classes, columns: predictions, in percent of the class's images.
    """
    protocol, methods = arranged(runs)
    datasets = datasets_of(runs)
    if len(methods) > 1 or len(datasets) > 1:  # to choose from: trainers, with the setting where one has several
        trainers = [trainer for trainer, _ in {run.method_names: run for run in runs}]
        choices = {run.method_names[trainers.count(run.trainer) > 1]: run.trainer for run in runs}
        choices = sorted(choices, key=lambda name: trainer_order(choices[name]))
        raise PlotError(
            "a confusion matrix is of one method on one data set: choose with --trainer "
            f"({', '.join(choices)}) and --dataset ({', '.join(datasets)}); or name one run's folder"
        )
    splits = (options.split,) if options.split else ("all", "base", "new")
    tested = [(name, run) for name in splits for run in runs if name in run.record["metrics"]]
    recorded = [(name, run) for name, run in tested if run.record["metrics"][name].get("confusion")]
    split = recorded[0][0] if recorded else splits[0]
    recorded = [run.record["metrics"][split] for name, run in recorded if name == split]
    if not recorded:
        raise PlotError(f"no run recorded a confusion matrix of class split {split!r}: {runs[0].path}")
    _one_number_of_shots(runs, protocol, "a confusion matrix")
    matrices = [metrics["confusion"] for metrics in recorded]  # counts by true class and prediction
    if len({len(matrix) for matrix in matrices}) > 1:
        raise PlotError(f"the runs' confusion matrices differ in size: {', '.join(str(run.path) for run in runs)}")
    classes = range(len(matrices[0]))
    names = list(recorded[0].get("per_class", {})) or list(map(str, classes))
    total = [[sum(matrix[row][column] for matrix in matrices) for column in classes] for row in classes]
    percent = [[100.0 * count / max(sum(row), 1) for count in row] for row in total]
    size = min(10.0, max(4.0, 0.32 * len(names) + 1.8))
    figure, (panel,) = panels(1, size=(size + 0.9, size))
    image = panel.imshow(percent, cmap="cividis", vmin=0, vmax=100, aspect="equal")
    figure.colorbar(image, ax=panel, label="share of the class's images (%)", shrink=0.8)
    panel.grid(False)
    panel.set(xlabel="predicted class", ylabel="true class")
    if len(names) <= MAX_NAMED_CLASSES:
        short = [shortened(name, 20) for name in names]
        panel.set_xticks(range(len(names)), short, rotation=60, ha="right", rotation_mode="anchor", fontsize=7)
        panel.set_yticks(range(len(names)), short, fontsize=7)
    if len(names) <= MAX_NUMBERED_CLASSES:
        for row, cells in enumerate(percent):
            for column, value in enumerate(cells):
                colour = "black" if value > 55 else "white"
                panel.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=7, color=colour)
    ((method, _),) = methods
    facts = [method.label, datasets[0], f"class split {split}"]
    facts += [shots_text(runs[0].shots)] if protocol.columns_by == "shots" and not method.deterministic else []
    facts += [f"{len(matrices)} seeds"] if len(matrices) > 1 else []
    panel.set(title=wrapped(panel, ", ".join(facts)))
    return figure


def tsne(runs: Sequence[Run], options: Options) -> Figure:
    """t-SNE of image and text features of one run; needs features.npz (TEST.SAVE_FEATURES) and scikit-learn

    Images are points, class names stars, with one colour and marker per class. Images and texts lie in two separate
    cones of CLIP's space, which would fill the plot with their distance; so each of the two has its mean taken away.
    """
    if len(runs) != 1:
        found = ", ".join(
            f"{run.trainer}/{run.setting} {run.dataset} {shots_text(run.shots)} seed {run.seed}" for run in runs[:4]
        )
        raise PlotError(
            f"t-SNE is of one run: choose with --trainer, --dataset, --shots and --seed; there are {found} ..."
        )
    (run,) = runs
    split, images, labels, texts, names = _features_of(run, options.split)
    picked = sorted(random.Random(0).sample(range(len(images)), min(MAX_IMAGES, len(images))))
    try:
        import numpy as np
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise PlotError("t-SNE needs scikit-learn: pip install scikit-learn") from error
    together = np.concatenate([part - part.mean(axis=0) for part in (images[picked], texts)])
    if len(together) < 4:
        raise PlotError(f"t-SNE needs at least 4 points, there are {len(together)}")
    perplexity = min(30.0, (len(together) - 1) / 3)
    points = TSNE(init="pca", perplexity=perplexity, metric="cosine", random_state=0).fit_transform(together)
    labels, stars = labels[picked], points[len(picked) :]
    figure, (panel,) = panels(1, size=(8.0, 6.0))
    listed = len(names) <= MAX_LISTED_CLASSES
    for index, name in enumerate(names):
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index // len(COLOURS) % len(MARKERS)]
        x, y = points[: len(picked)][labels == index].T
        label = shortened(name) if listed else None
        panel.scatter(x, y, s=12, alpha=0.6, linewidths=0, label=label, color=colour, marker=marker)
        panel.scatter(*stars[index], s=150, marker="*", color=colour, edgecolors="black", linewidths=0.8, zorder=3)
    if listed:
        panel.scatter([], [], marker="*", s=120, color="white", edgecolors="black", label="class name (text)")
        panel.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=7, markerscale=1.3)
    panel.set_xticks([])
    panel.set_yticks([])
    shots = "" if run.deterministic else f", {shots_text(run.shots)}"
    title = f"{run.trainer}, {run.dataset}{shots}, class split {split}, seed {run.seed}: "
    title += f"{len(picked)} images, {len(names)} class names"
    panel.set(title=wrapped(panel, title), xlabel="t-SNE 1 (each modality centred)", ylabel="t-SNE 2")
    return figure


def _features_of(run: Run, split: str) -> tuple[str, ndarray, ndarray, ndarray, list[str]]:
    """Class split, image features (images, width), labels, text features (classes, width), class names."""
    import numpy as np

    path = run.path.with_name(FEATURES_FILE)
    if not path.is_file():
        raise PlotError(f"{path}: no such file; run with TEST.SAVE_FEATURES True to have features saved")
    try:
        with np.load(path, allow_pickle=False) as file:
            there = [name for name in ("all", "base", "new") if f"{name}_images" in file]
            split = split or next(iter(there), "")
            if split not in there:
                raise PlotError(f"{path} holds no class split {split!r}; it holds {', '.join(there) or 'none'}")
            content = {part: file[f"{split}_{part}"] for part in ("images", "labels", "texts", "classnames")}
    except PlotError:
        raise
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise PlotError(f"{path} cannot be read ({error}): the run may have been cut short; run it again") from error
    images, texts = content["images"].astype("float64"), content["texts"].astype("float64")
    return split, images, content["labels"], texts, [str(name) for name in content["classnames"]]


_DRAW = (few_shot, base_new, gain, radar, critical_difference, seeds, gates, tsne, confusion, curves, reliability)
KINDS = {draw.__name__: Kind(" ".join(draw.__doc__.split("\n\n")[0].split()), draw) for draw in _DRAW}
