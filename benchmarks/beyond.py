"""Class counts at which the plain path does not fit into memory or patience.

The plain path's cost is a straight line in the number of classes: a text tower of 77 tokens per class, beside an image
tower that knows no classes. So it is measured at two small counts and the line is read off at the wanted one; the
row says so. Parity is checked all the same: the fast path computes all classes, and its logits and gradients over the
classes of the larger sample are held to the plain path's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

# Class counts at which the plain path runs. Wide apart, since the line carries their noise far beyond; and the larger
# one so large that malloc takes the tensors from the system and gives them back each time, as at the wanted count.
SAMPLES = (10, 120)


def spread(names: Sequence[str], count: int) -> list[int]:
    """``count`` positions spread evenly over a class list."""
    return [index * len(names) // count for index in range(count)]


def on_the_line(few: float, many: float, classes: int, samples: tuple[int, int] = SAMPLES) -> float:
    """Value at ``classes`` of the straight line through the values at the two sample counts."""
    return many + (classes - samples[1]) * (many - few) / (samples[1] - samples[0])


@contextlib.contextmanager
def only_classes(model: nn.Module, chosen: list[int]) -> Iterator[None]:
    """Inside, the model classifies over some of its classes, though it computes the features of all.

    Raises:
        ValueError: for a model whose objective reads its text features in a way of its own.
    """
    if hasattr(model, "features_of"):
        raise ValueError("ProDA's objective reads all classes: measure it with --plain-up-to at least --classes")
    whole = model.text_features

    def some(prompts: Any = None) -> torch.Tensor:
        return whole(prompts)[..., chosen, :]

    model.text_features = some
    try:
        yield
    finally:
        del model.text_features
