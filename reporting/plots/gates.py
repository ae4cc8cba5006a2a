"""How BMIP's gates weigh a layer's own prompt against the other modality's, over training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from reporting.names import shots_text
from reporting.plots.data import Options, arranged, datasets_of
from reporting.plots.epochs import by_epoch, explain_alone, is_number, line_with_band
from reporting.plots.style import DASHES, PlotError, at_most, panels, wrapped
from results.schema import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAME = "gates"
HELP = "gate weights per layer and modality by epoch (BMIP and its combinations)"
MOST_ROWS = 6


def draw(runs: Sequence[Run], options: Options) -> Figure:
    """One row per method, data set and number of shots, one panel per modality, one line per layer; band over seeds.

    Raises:
        PlotError: no run recorded gates, or too many rows.
    """
    _, methods = arranged(runs)
    groups = {}
    for method in methods:
        own = [run for run in method.runs if _keys([_per_epoch(run)])]
        several = len({run.shots for run in own}) > 1
        for dataset in datasets_of(own):
            for shots in sorted({run.shots for run in own if run.dataset == dataset}):
                title = f"{method.label}, {dataset}" + (f", {shots_text(shots)}" if several else "")
                groups[title] = [_per_epoch(run) for run in own if (run.dataset, run.shots) == (dataset, shots)]
    if not groups:
        raise PlotError("no run recorded gates: only BMIP and its combinations with the gate aggregator have them")
    at_most(groups, MOST_ROWS, "methods, data sets and numbers of shots")
    towers = sorted({key.split("/")[0] for group in groups.values() for key in _keys(group)}, reverse=True)
    places = [(title, tower) for title in groups for tower in towers]
    figure, axes = panels(len(places), columns=len(towers), size=(4.4, 3.0))
    for panel, (title, tower) in zip(axes, places, strict=True):
        _layers(panel, groups[title], tower)
        panel.set(title=wrapped(panel, f"{title}: {tower}"), xlabel="epoch", ylabel="weight of the own prompt")
        panel.set_ylim(-0.02, 1.02)
    return figure


def _per_epoch(run: Run) -> list[dict[str, Any]]:
    return (run.record["gates"] or {}).get("per_epoch") or []


def _keys(histories: Sequence[Sequence[dict[str, Any]]]) -> list[str]:
    """Every "tower/layer" of the histories, by layer."""
    entries = [item for history in histories for entry in history for item in entry.items()]
    keys = {key for key, value in entries if "/" in key and is_number(value)}
    return sorted(keys, key=lambda key: (key.split("/")[0], _layer(key), key))


def _layer(key: str) -> int:
    name = key.split("/", 1)[1]
    return int(name) if name.isdigit() else -1


def _layers(panel: Axes, histories: Sequence[Sequence[dict[str, Any]]], tower: str) -> None:
    import matplotlib as mpl

    keys = [key for key in _keys(histories) if key.split("/")[0] == tower]
    # layers have an order: viridis without its palest end keeps it visible to everybody
    colours = [mpl.colormaps["viridis"](0.85 * index / max(len(keys) - 1, 1)) for index in range(len(keys))]
    alone = False
    for index, key in enumerate(keys):
        seeds = by_epoch(histories, key)
        if seeds:
            look = {"color": colours[index], "linestyle": DASHES[index % len(DASHES)]}
            alone |= line_with_band(panel, seeds, f"layer {key.split('/', 1)[1]}", look)
    if alone:
        explain_alone(panel)
    panel.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=7)
