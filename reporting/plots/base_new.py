"""Base against new accuracy: what a method gains on the classes it saw against what it keeps on the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from reporting.plots.data import Options, arranged, average_of, datasets_of, with_looks
from reporting.plots.style import PlotError, panels, wrapped
from reporting.statistics import Summary
from results.schema import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAME = "base_new"
HELP = "base against new accuracy: each seed and the mean, with lines of equal H"
_H_STEP = 5


def draw(runs: Sequence[Run], options: Options) -> Figure:
    """One point per seed (averaged over the data sets), the mean large, lines of equal harmonic mean behind.

    Raises:
        PlotError: no method has both accuracies on every data set.
    """
    protocol, methods = arranged(runs)
    metrics = {metric.key: metric for metric in protocol.metrics}
    if not {"base", "new"} <= set(metrics):
        raise PlotError(f"base against new needs runs that were tested on base and new classes, not {protocol.title}")
    datasets = datasets_of(runs)
    points: dict[str, tuple[Summary, Summary]] = {}
    for method in methods:
        base, new = (average_of(method, datasets, metrics[key]) for key in ("base", "new"))
        if base is not None and new is not None:
            points[method.label] = (base, new)
    if not points:
        raise PlotError("no method has base and new accuracy on every data set")
    figure, (panel,) = panels(1, size=(6.0, 4.6))
    for method, look in with_looks(methods):
        if method.label in points:
            _scatter(panel, method.label, *points[method.label], look)
        else:
            panel.scatter([], [], s=0, label=f"{method.label}: not drawn, lacks a number")
    _lines_of_equal_h(panel)
    where = datasets[0] if len(datasets) == 1 else f"average of {len(datasets)} data sets"
    panel.set(title=wrapped(panel, where), xlabel="base accuracy (%)", ylabel="new accuracy (%)")
    panel.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def _scatter(panel: Axes, label: str, base: Summary, new: Summary, look: dict) -> None:
    seeds = [seed for seed in base.values if seed in new.values]
    colour, marker = look["color"], look["marker"]
    x, y = [base.values[seed] for seed in seeds], [new.values[seed] for seed in seeds]
    if len(seeds) > 1 and not base.deterministic:
        panel.scatter(x, y, color=colour, marker=marker, s=14, alpha=0.45, linewidths=0)
    panel.scatter([base.mean], [new.mean], color=colour, marker=marker, s=80, edgecolors="white", label=label, zorder=3)


def _lines_of_equal_h(panel: Axes) -> None:
    panel.margins(0.12)
    panel.grid(False)
    (left, right), (bottom, top) = panel.get_xlim(), panel.get_ylim()
    steps = 200
    for h in range(_H_STEP, 100, _H_STEP):
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
