"""Plots of what single runs hold: values by epoch, calibration, confusion, features. `reporting.plots` names them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from statistics import fmean
from typing import TYPE_CHECKING, Any

from common.files import DAMAGED_ARCHIVE
from reporting.drawing import (
    COLOURS,
    DASHES,
    MARKERS,
    Look,
    Options,
    PlotError,
    arranged,
    at_most,
    legend_below,
    one_number_of_shots,
    panels,
    shortened,
    wrapped,
)
from reporting.methods import datasets_of, shots_text, trainer_order
from results.schema import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy import ndarray

FEATURES_FILE = "features.npz"
MAX_CURVE_DATASETS, MAX_GATE_ROWS, MAX_RELIABILITY = 4, 6, 16
MAX_NAMED_CLASSES, MAX_NUMBERED_CLASSES = 40, 12  # of a confusion matrix, so that names and numbers can be read
MAX_IMAGES, MAX_LISTED_CLASSES = 2000, 30  # of t-SNE


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
        panel.set(title=wrapped(panel, f"{title}: {tower}"), xlabel="epoch")
        panel.set_ylabel("gate: weight of the tower's\nown prompt, rest: projected")
        panel.set_ylim(-0.02, 1.02)
    return figure


# Calibration


def reliability(runs: Sequence[Run], options: Options) -> Figure:
    """reliability diagram: accuracy by confidence, and the share of images, in bins of equal width, summed over seeds

    One panel per method and data set, of one class split. ECE is the mean of the seeds' own.
    """
    protocol, methods = arranged(runs)
    one_number_of_shots(runs, protocol, "a reliability diagram")
    splits = (options.split,) if options.split else ("all", "base", "new")
    recorded = [name for name in splits for run in runs if _bins_of(run, name)]
    if not recorded:
        looked_at = " or ".join(map(repr, splits))
        raise PlotError(f"no run recorded the calibration of class split {looked_at}: {runs[0].path}")
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
    if not recorded:
        looked_at = " or ".join(map(repr, splits))
        raise PlotError(f"no run recorded a confusion matrix of class split {looked_at}: {runs[0].path}")
    split = recorded[0][0]
    recorded = [run.record["metrics"][split] for name, run in recorded if name == split]
    one_number_of_shots(runs, protocol, "a confusion matrix")
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
    except DAMAGED_ARCHIVE as error:
        raise PlotError(f"{path} cannot be read ({error}): the run may have been cut short; run it again") from error
    images, texts = content["images"].astype("float64"), content["texts"].astype("float64")
    return split, images, content["labels"], texts, [str(name) for name in content["classnames"]]
