"""How all plots look, and what all kinds read from runs: methods with their looks, panels, legends, titles."""

from __future__ import annotations

import textwrap
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from reporting.methods import PROTOCOLS, Method, Metric, Protocol, check_protocol, group_methods
from results.schema import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Trainers that share a colour; the first has its first dash. The order is that of COLOURS.
FAMILIES = (
    *(("BMIP",), ("MaPLe", "MaPLe_BMIP"), ("ZeroshotCLIP", "ZeroshotCLIP2", "LinearProbe"), ("CoOp", "CoCoOp")),
    *(("PromptSRC", "PromptSRC_BMIP"), ("CoPrompt", "CoPrompt_BMIP", "TipAdapterF", "TipAdapter")),
    *(("ProDA", "KgCoOp", "CLAP", "TaskRes"), ("VPT", "IVLP", "CLIP_LoRA", "LayerNormTuning")),
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
    cost: str = "params"  # key of a cost, for `cost`


Look = dict[str, Any]  # colour, marker and line style


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


def shots_of(runs: Sequence[Run]) -> list[int]:
    return sorted({run.shots for run in runs if not run.deterministic})


def one_number_of_shots(runs: Sequence[Run], protocol: Protocol, what: str) -> None:
    """Refuse few-shot runs of several numbers of shots, which such a plot would mix."""
    if protocol.columns_by == "shots" and len(shots := shots_of(runs)) > 1:
        raise PlotError(f"{what} is of one number of shots: choose with --shots ({', '.join(map(str, shots))})")


def chosen_metric(protocol: Protocol, key: str) -> Metric:
    """A metric that every run has a value of; by default the run's H, or the accuracy over all classes."""
    metrics = {metric.key: metric for metric in (*protocol.metrics, *protocol.on_request) if metric.of_run is not None}
    # H of the averages is no run's number: a run has its own H
    key = "average_H" if key == "H" else key or ("average_H" if "average_H" in metrics else "all")
    if key not in metrics:
        own = ", ".join(metric.key for metric in protocol.metrics if metric.of_run is not None)
        more = f", or {protocol.on_request[0].key} and others of docs/reporting.md"
        raise PlotError(f"no metric {key!r} in {protocol.title}; choose from {own}{more}")
    return metrics[key]


def axis_label(metric: Metric) -> str:
    names = {"average_H": "H", "all": "accuracy", "base": "base accuracy", "new": "new accuracy"}
    return f"{names.get(metric.key, metric.label)}{' (%)' if metric.percent else ''}"
