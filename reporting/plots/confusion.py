"""Which classes are taken for which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from reporting.names import shots_text, trainer_order
from reporting.plots.data import Options, arranged, datasets_of, require_one_number_of_shots
from reporting.plots.style import PlotError, panels, shortened, wrapped
from results.schema import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAME = "confusion"
HELP = "confusion matrix of one method on one data set, summed over its seeds"
_NAMED, _NUMBERED = 40, 12  # the most classes whose names, or numbers, can be read


def draw(runs: Sequence[Run], options: Options) -> Figure:
    """Rows: true classes, columns: predictions, in percent of the class's images.

    Raises:
        PlotError: several methods or data sets, or no run that recorded the matrix.
    """
    protocol, methods = arranged(runs)
    datasets = datasets_of(runs)
    if len(methods) > 1 or len(datasets) > 1:
        raise PlotError(
            "a confusion matrix is of one method on one data set: choose with --trainer "
            f"({', '.join(_choices(runs))}) and --dataset ({', '.join(datasets)}); or name one run's folder"
        )
    split = options.split or _widest_split(runs)
    matrices = [matrix for run in runs if (matrix := confusion_of(run, split))]
    if not matrices:
        raise PlotError(f"no run recorded a confusion matrix of class split {split!r}: {runs[0].path}")
    require_one_number_of_shots(runs, protocol, "a confusion matrix")
    names = list(runs[0].record["metrics"][split].get("per_class", {})) or [str(k) for k in range(len(matrices[0]))]
    if len({len(matrix) for matrix in matrices}) > 1:
        raise PlotError(f"the runs' confusion matrices differ in size: {', '.join(str(run.path) for run in runs)}")
    size = min(10.0, max(4.0, 0.32 * len(names) + 1.8))
    figure, (panel,) = panels(1, size=(size + 0.9, size))
    _draw(panel, _percent(matrices), names)
    facts = [methods[0].label, datasets[0], f"class split {split}"]
    facts += [shots_text(runs[0].shots)] if protocol.columns_by == "shots" and not methods[0].deterministic else []
    facts += [f"{len(matrices)} seeds"] if len(matrices) > 1 else []
    panel.set(title=wrapped(panel, ", ".join(facts)))
    return figure


def _choices(runs: Sequence[Run]) -> list[str]:
    """Names for --trainer, with the setting where a trainer has several."""
    settings = {run.trainer: {other.setting for other in runs if other.trainer == run.trainer} for run in runs}
    names = [run.trainer if len(settings[run.trainer]) == 1 else f"{run.trainer}/{run.setting}" for run in runs]
    return sorted(set(names), key=lambda name: trainer_order(name.partition("/")[0]))


def confusion_of(run: Run, split: str) -> list[list[int]] | None:
    """A run's confusion matrix, counts by true class and prediction; None where it recorded none."""
    return run.record["metrics"].get(split, {}).get("confusion")


def _widest_split(runs: Sequence[Run]) -> str:
    splits = [split for split in ("all", "base", "new") if any(confusion_of(run, split) for run in runs)]
    return splits[0] if splits else "all"


def _percent(matrices: Sequence[list[list[int]]]) -> list[list[float]]:
    size = range(len(matrices[0]))
    total = [[sum(matrix[row][column] for matrix in matrices) for column in size] for row in size]
    return [[100.0 * count / max(sum(row), 1) for count in row] for row in total]


def _draw(panel: Axes, percent: list[list[float]], names: Sequence[str]) -> None:
    image = panel.imshow(percent, cmap="cividis", vmin=0, vmax=100, aspect="equal")
    panel.figure.colorbar(image, ax=panel, label="share of the class's images (%)", shrink=0.8)
    panel.grid(False)
    panel.set(xlabel="predicted class", ylabel="true class")
    if len(names) <= _NAMED:
        short = [shortened(name, 20) for name in names]
        panel.set_xticks(range(len(names)), short, rotation=60, ha="right", rotation_mode="anchor", fontsize=7)
        panel.set_yticks(range(len(names)), short, fontsize=7)
    if len(names) <= _NUMBERED:
        for row, cells in enumerate(percent):
            for column, value in enumerate(cells):
                colour = "black" if value > 55 else "white"
                panel.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=7, color=colour)
