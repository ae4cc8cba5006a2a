"""The open-world evaluator: one softmax over base and new classes, the group of an image unknown.

`OpenWorld` prints what Dassl's `Classification` prints and, once it knows how many classes are base, the open-world
numbers after it. Class splits follow CoOp: classes sorted by label, the first ceil(n / 2) are base.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch

from dassl.evaluation import EVALUATOR_REGISTRY, Classification
from results.metrics import accuracy, auroc, harmonic_mean, openworld_auc

OPEN_WORLD_METRICS = ("accuracy_all", "open_base", "open_new", "open_H", "auroc", "openworld_auc")


def num_base_classes(num_classes: int) -> int:
    """Number of base classes among `num_classes`: the first ceil(n / 2) labels (CoOp's rule)."""
    return math.ceil(num_classes / 2)


class OpenWorldScores:
    """Collects per image what the open-world metrics need, batch by batch.

    Args:
        num_base: labels below this number are base classes, the others new.

    Raises:
        ValueError: num_base is not positive.
    """

    def __init__(self, num_base: int) -> None:
        if num_base < 1:
            raise ValueError(f"the open-world metrics need at least one base class, got num_base={num_base}")
        self.num_base = num_base
        self._batches: list[tuple[torch.Tensor, ...]] = []

    def add(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """Take one batch.

        Args:
            logits: (batch, n_cls) over base and new classes.
            labels: (batch,) true labels.

        Raises:
            ValueError: there is no new class among the logits.
        """
        if logits.shape[1] <= self.num_base:
            raise ValueError(
                f"open-world evaluation needs base and new classes: {logits.shape[1]} classes, "
                f"{self.num_base} of them base, leaves no new class"
            )
        # double, because probabilities near one tie in float32 and a tie does not count in OpenworldAUC
        logits, labels = logits.detach().cpu().double(), labels.detach().cpu()
        base_probability = logits.softmax(dim=1)[:, : self.num_base].amax(dim=1)
        within_base = logits[:, : self.num_base].argmax(dim=1)
        within_new = logits[:, self.num_base :].argmax(dim=1) + self.num_base
        self._batches.append((labels, logits.argmax(dim=1), base_probability, within_base, within_new))

    def compute(self) -> dict[str, float]:
        """The metrics named in `OPEN_WORLD_METRICS`, in percent.

        Raises:
            ValueError: the images seen are of one group only, or the logits hold NaN.
        """
        labels, predicted, score, within_base, within_new = self._concatenated()
        base, new = labels < self.num_base, labels >= self.num_base
        if not base.any() or not new.any():
            raise ValueError(
                "open-world evaluation needs images of base and of new classes, "
                f"got {int(base.sum())} base and {int(new.sum())} new"
            )
        open_base = accuracy(predicted[base], labels[base])
        open_new = accuracy(predicted[new], labels[new])
        values = (
            accuracy(predicted, labels),
            open_base,
            open_new,
            harmonic_mean(open_base, open_new),
            auroc(score[base], score[new]),
            openworld_auc(score[base], (within_base == labels)[base], score[new], (within_new == labels)[new]),
        )
        return {name: 100.0 * value for name, value in zip(OPEN_WORLD_METRICS, values, strict=True)}

    def _concatenated(self) -> tuple[torch.Tensor, ...]:
        if not self._batches:
            raise ValueError("open-world evaluation saw no image")
        return tuple(torch.cat(column) for column in zip(*self._batches, strict=True))


@EVALUATOR_REGISTRY.register()
class OpenWorld(Classification):
    """`Classification` that also reports open-world generalization.

    Args:
        cfg: the run's configuration.
        lab2cname: label -> class name.
        num_base: number of base classes; may be set later as an attribute, before the first batch. None means that
            the classes form a closed set, and the evaluator behaves as `Classification`.
    """

    def __init__(
        self, cfg: Any, lab2cname: Mapping[int, str] | None = None, num_base: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(cfg, lab2cname=lab2cname, **kwargs)
        self.num_base = num_base
        self._scores: OpenWorldScores | None = None

    def reset(self) -> None:
        """Forget all batches."""
        super().reset()
        self._scores = None

    def process(self, mo: torch.Tensor, gt: torch.Tensor) -> None:
        """Take one batch: model output (batch, n_cls) and labels (batch,)."""
        super().process(mo, gt)
        if self.num_base is None:
            return
        if self._scores is None:
            self._scores = OpenWorldScores(self.num_base)
        self._scores.add(mo, gt)

    def evaluate(self) -> OrderedDict[str, float]:
        """Print and return Dassl's results, then the open-world ones, in percent."""
        results = super().evaluate()
        if self.num_base is None:
            return results
        if self._scores is None:
            raise ValueError("open-world evaluation saw no image since num_base was set")
        open_world = self._scores.compute()
        print("=> open-world result")
        print("\n".join(f"* {name}: {value:.1f}%" for name, value in open_world.items()))
        results.update(open_world)
        return results
