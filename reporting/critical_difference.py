"""The critical-difference diagram of Demsar (JMLR 7, 2006), figure 1, of average ranks over data sets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from reporting.drawing import Options, PlotError, arranged, axis_label, chosen_metric, shortened, width_of
from reporting.ranks import ranked
from results.schema import ResultsError, Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LINE = 0.22  # inches between two names
INCHES = 4.0  # of the axis


def critical_difference(runs: Sequence[Run], options: Options) -> Figure:
    """critical-difference diagram: average ranks over data sets, bars over methods that Nemenyi's test cannot tell
    apart; needs five data sets and three methods

    One line per method at its average rank, the best at the left; bars join methods that are not told apart.
    """
    from matplotlib.figure import Figure

    protocol, styled = arranged(runs)
    metric = chosen_metric(protocol, options.metric)
    try:
        ranking = ranked([method for method, _ in styled], protocol, metric)
    except ResultsError as error:
        raise PlotError(str(error)) from error
    except ImportError as error:
        raise PlotError("ranks need scipy: pip install scipy") from error
    colours = {method.label: look["color"] for method, look in styled}
    average, critical, groups = ranking.result.average, ranking.result.critical_difference, ranking.groups()
    count = len(average)
    names = [f"{shortened(method.label)}  {rank:.2f}" for method, rank in zip(ranking.methods, average, strict=True)]
    left = (count + 1) // 2  # names at the left, the best at the top; the others at the right, the worst at the top
    # placed by hand, in inches from the axis down
    margin, top = max(map(width_of, names)) + 0.3, 1.15 if ranking.result.differ else 1.35
    bars = 0.18 * (len(groups) + 1)
    depth = bars + LINE * left
    end = max(count, 1 + critical)
    figure = Figure(figsize=(INCHES + 2 * margin, top + depth + 0.45))
    width, height = figure.get_size_inches()
    panel = figure.add_axes((margin / width, 0.45 / height, INCHES / width, depth / height))
    panel.set_xlim(1, end)
    panel.set_ylim(-depth, 0)
    panel.spines[["left", "right", "bottom"]].set_visible(False)
    panel.spines["top"].set_visible(True)
    panel.grid(False)
    panel.set_yticks([])
    panel.xaxis.tick_top()
    step = 1 if count <= 12 else 2 if count <= 24 else 5
    panel.set_xticks(range(1, count + 1, step))
    for place, (method, name, rank) in enumerate(zip(ranking.methods, names, average, strict=True)):
        at_left = place < left
        row = place if at_left else count - 1 - place
        y, side = -bars - LINE * row, 1 if at_left else end
        panel.plot([rank, rank, side], [0, y, y], color=colours[method.label], linewidth=1.2, clip_on=False)
        gap = 0.06 * (end - 1) / INCHES * (-1 if at_left else 1)
        panel.text(side + gap, y, name, ha="right" if at_left else "left", va="center")
    bar = {"color": "black", "linewidth": 3.0, "solid_capstyle": "butt"}
    for number, (first, last) in enumerate(groups, 1):
        panel.plot([average[first], average[last]], [-0.18 * number] * 2, **bar)
    # above the ticks' numbers
    panel.plot([1, 1 + critical], [0.42] * 2, color="black", linewidth=1.2, marker="|", clip_on=False)
    panel.text(1 + critical / 2, 0.47, f"critical difference {critical:.2f}", ha="center", va="bottom", fontsize=8)
    panel.set_xlabel("average rank, 1 is the best")
    panel.xaxis.set_label_position("bottom")
    friedman = "" if ranking.result.differ else "\nFriedman's test shows no difference between them"
    panel.set_title(f"{axis_label(metric)}: {count} methods on {len(ranking.datasets)} data sets{friedman}", pad=54)
    return figure
