"""A training or test loader's batches with features in place of images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from .data_manager import order_after


class StoredFeatureLoader:
    """The batches of a loader of images, in the same order, with a feature of each image; a subclass says which.

    The features are asked for at the first batch.
    """

    def __init__(self, loader: DataLoader) -> None:
        self.loader, self.dataset, self.epoch, self._finished = loader, loader.dataset, 0, 0

    def __len__(self) -> int:
        return len(self.loader)

    def set_epoch(self, epoch: int) -> None:
        """Start an epoch."""
        self.epoch, self._finished = epoch, 0
        if hasattr(self.loader, "set_epoch"):
            self.loader.set_epoch(epoch)

    def skip_batches(self, number: int) -> None:
        """Begin the epoch, after `set_epoch`, behind its first `number` batches, perhaps of several passes."""
        self._finished = number

    def features(self) -> Tensor:
        """Features of every image in this epoch, (images, embed_dim), on the CPU, in the data set's order."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[dict[str, Any]]:
        features, items = self.features(), self.dataset.data_source
        finished, self._finished = self._finished, 0
        _, order = order_after(self.loader.batch_sampler, finished)
        for indices in order:
            chosen = [items[index] for index in indices]
            yield {
                "img": features[indices],
                "label": torch.tensor([item.label for item in chosen]),
                "domain": torch.tensor([item.domain for item in chosen]),
                "impath": [item.impath for item in chosen],
                "index": torch.tensor(indices),
            }
