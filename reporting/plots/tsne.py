"""Image and text features in the plane, by t-SNE."""

from __future__ import annotations

import random
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reporting.names import shots_text
from reporting.plots.data import Options
from reporting.plots.style import COLOURS, MARKERS, PlotError, panels, shortened, wrapped
from results.schema import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy import ndarray

NAME = "tsne"
HELP = "t-SNE of image and text features of one run; needs features.npz (TEST.SAVE_FEATURES) and scikit-learn"
FEATURES_FILE = "features.npz"
SPLITS = ("all", "base", "new")
MOST_IMAGES, MOST_NAMED = 2000, 30


def draw(runs: Sequence[Run], options: Options) -> Figure:
    """Images as points, class names as stars, one colour and marker per class.

    Images and texts lie in two separate cones of CLIP's space, which would fill the plot with their distance; so each
    of the two has its mean taken away first.

    Raises:
        PlotError: several runs, no features, or scikit-learn is not installed.
    """
    if len(runs) != 1:
        found = ", ".join(
            f"{run.trainer}/{run.setting} {run.dataset} {shots_text(run.shots)} seed {run.seed}" for run in runs[:4]
        )
        raise PlotError(
            f"t-SNE is of one run: choose with --trainer, --dataset, --shots and --seed; there are {found} ..."
        )
    (run,) = runs
    split, images, labels, texts, names = _read(run, options.split)
    picked = sorted(random.Random(0).sample(range(len(images)), min(MOST_IMAGES, len(images))))
    points = _embed(images[picked], texts)
    figure, (panel,) = panels(1, size=(8.0, 6.0))
    shots = "" if run.deterministic else f", {shots_text(run.shots)}"
    _scatter(panel, points[: len(picked)], labels[picked], points[len(picked) :], names)
    panel.set(
        title=wrapped(
            panel,
            f"{run.trainer}, {run.dataset}{shots}, class split {split}, seed {run.seed}: "
            f"{len(picked)} images, {len(names)} class names",
        ),
        xlabel="t-SNE 1 (each modality centred)",
        ylabel="t-SNE 2",
    )
    return figure


def _read(run: Run, split: str) -> tuple[str, ndarray, ndarray, ndarray, list[str]]:
    import numpy as np

    path = Path(run.path).with_name(FEATURES_FILE)
    if not path.is_file():
        raise PlotError(f"{path}: no such file; run with TEST.SAVE_FEATURES True to have features saved")
    try:
        with np.load(path, allow_pickle=False) as file:
            there = [name for name in SPLITS if f"{name}_images" in file]
            split = split or next(iter(there), "")
            if split not in there:
                raise PlotError(f"{path} holds no class split {split!r}; it holds {', '.join(there) or 'none'}")
            content = {part: file[f"{split}_{part}"] for part in ("images", "labels", "texts", "classnames")}
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        if isinstance(error, PlotError):
            raise
        raise PlotError(f"{path} cannot be read ({error}): the run may have been cut short; run it again") from error
    images, texts = content["images"].astype("float64"), content["texts"].astype("float64")
    return split, images, content["labels"], texts, [str(name) for name in content["classnames"]]


def _embed(images: ndarray, texts: ndarray) -> ndarray:
    """Both modalities in one plane, (images + texts, 2); the same for the same features."""
    import numpy as np

    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise PlotError("t-SNE needs scikit-learn: pip install scikit-learn") from error
    together = np.concatenate([part - part.mean(axis=0) for part in (images, texts)])
    if len(together) < 4:
        raise PlotError(f"t-SNE needs at least 4 points, there are {len(together)}")
    perplexity = min(30.0, (len(together) - 1) / 3)
    return TSNE(init="pca", perplexity=perplexity, metric="cosine", random_state=0).fit_transform(together)


def _scatter(panel: Axes, images: ndarray, labels: ndarray, texts: ndarray, names: Sequence[str]) -> None:
    for index, name in enumerate(names):
        look = _look(index)
        own = images[labels == index]
        named = name if len(names) <= MOST_NAMED else None
        panel.scatter(own[:, 0], own[:, 1], s=12, alpha=0.6, linewidths=0, label=named and shortened(named), **look)
        panel.scatter(
            *texts[index], s=150, marker="*", color=look["color"], edgecolors="black", linewidths=0.8, zorder=3
        )
    if len(names) <= MOST_NAMED:
        panel.scatter([], [], marker="*", s=120, color="white", edgecolors="black", label="class name (text)")
        panel.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=7, markerscale=1.3)
    panel.set_xticks([])
    panel.set_yticks([])


def _look(index: int) -> dict[str, Any]:
    return {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index // len(COLOURS) % len(MARKERS)]}
