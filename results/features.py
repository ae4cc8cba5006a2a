"""Keeps the image and text features of an evaluation in features.npz, for t-SNE plots and further study.

Owns the configuration key `TEST.SAVE_FEATURES`. For each class split the file holds `<split>_images` (images,
embed_dim), `<split>_labels` (images,), `<split>_texts` (classes, embed_dim) and `<split>_classnames` (classes,).
Features are L2-normalised and kept in half precision.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from dassl.config import cfg_default
from dassl.utils import atomic_write

FEATURES_FILE = "features.npz"

cfg_default.TEST.SAVE_FEATURES = False


class FeatureCollector:
    """Gathers what the model computes while a trainer's `test()` runs.

    Args:
        model: has `outputs(images)` with logits, image_features (batch, dim) and text_features, (classes, dim) or, for
            texts that depend on the image, (batch, classes, dim), of which the mean over the images is kept.

    Raises:
        ValueError: the model does not show its features.
    """

    def __init__(self, model: Any) -> None:
        if not hasattr(model, "outputs"):
            raise ValueError(
                f"TEST.SAVE_FEATURES needs a model that shows its features, {type(model).__name__} does not: "
                "set it to False"
            )
        self._model = model
        self._images: list[torch.Tensor] = []
        self._texts: torch.Tensor | None = None

    def infer(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of a batch, its features kept; takes the place of the trainer's `model_inference`."""
        output = self._model.outputs(images)
        self._images.append(output.image_features.detach().half().cpu())
        if output.text_features.dim() == 3:
            batch = output.text_features.detach().float().sum(dim=0).cpu()
            self._texts = batch if self._texts is None else self._texts + batch
        elif self._texts is None:
            self._texts = output.text_features.detach().float().cpu()
        return output.logits

    def arrays(self, labels: torch.Tensor, lab2cname: Mapping[int, str]) -> dict[str, np.ndarray]:
        """What the file holds of a class split.

        Args:
            labels: of the images, in the order in which they came.
            lab2cname: class name by label.
        """
        return {
            "images": torch.cat(self._images).numpy(),
            "labels": labels.numpy(),
            # the mean of unit vectors is shorter than they are; for texts shared by all images this changes nothing
            "texts": F.normalize(self._texts, dim=-1).half().numpy(),
            "classnames": np.array([name for _, name in sorted(lab2cname.items())]),
        }


@contextmanager
def collecting(trainer: Any, wanted: bool) -> Iterator[FeatureCollector | None]:
    """Collect features while the trainer tests inside; None where they are not wanted."""
    if not wanted:
        yield None
        return
    collector = FeatureCollector(trainer.model)
    trainer.model_inference = collector.infer
    try:
        yield collector
    finally:
        del trainer.model_inference


def save_features(folder: str | Path, splits: Mapping[str, Mapping[str, np.ndarray]]) -> Path:
    """Write features.npz in one step and return its path.

    Args:
        folder: the run's output folder.
        splits: class split -> arrays by name.
    """
    path = Path(folder) / FEATURES_FILE
    named = {f"{split}_{name}": array for split, arrays in splits.items() for name, array in arrays.items()}
    with atomic_write(path) as file:
        np.savez_compressed(file, **named)
    return path
