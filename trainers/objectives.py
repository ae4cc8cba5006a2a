"""Training objectives: what a method minimises, apart from which prompts it learns.

An objective is called with the model, the images and the labels of a batch and returns the loss with the model's
output, so that any objective goes with any prompt learner.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor
from torch.nn import functional as F

from prompting import Output, PromptedCLIP


@dataclass(frozen=True)
class Loss:
    """A batch's loss.

    Attributes:
        total: scalar to differentiate.
        output: the model's output on the batch, for the training accuracy.
        terms: the parts of the loss by name, for the log; empty when there is only one.
    """

    total: Tensor
    output: Output
    terms: dict[str, Tensor] = field(default_factory=dict)


class Objective(Protocol):
    """A training objective."""

    def __call__(self, model: PromptedCLIP, images: Tensor, labels: Tensor) -> Loss:
        """Loss of one batch: images (batch, 3, height, width), labels (batch,)."""
        ...


class CrossEntropy:
    """Cross-entropy of the logits over the training classes (CoOp, CoCoOp, MaPLe, BMIP)."""

    def __call__(self, model: PromptedCLIP, images: Tensor, labels: Tensor) -> Loss:
        output = model.outputs(images)
        return Loss(F.cross_entropy(output.logits, labels), output)
