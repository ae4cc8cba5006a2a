"""Floating-point operations, counted while they run; those of testing an image, at a test's first batch.

Of matrix products, convolutions and attention; a multiplication and an addition are two. Element-wise work is left out,
as is usual, and so are the text features, which a test computes once for all images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


def _attention(query: Tensor, key: Tensor, *_: Any, **__: Any) -> int:
    *batch, n_queries, width = query.shape
    return 4 * math.prod(batch) * n_queries * key.shape[-2] * width


def _linear(x: Tensor, *_: Any, out_val: Tensor, **__: Any) -> int:
    return 2 * out_val.numel() * x.shape[-1]


# By operator. Torch's table lacks two of the CPU; the second is private, and may be missing.
_FORMULAS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
}
if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
    _FORMULAS[torch.ops.mkldnn._linear_pointwise] = _linear


class OperationCounter(TorchDispatchMode):
    """Counts what runs inside; torch.utils.flop_counter's own mode also follows modules by their gradients."""

    total = 0

    def __torch_dispatch__(
        self, operator: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        found = operator(*args, **(kwargs or {}))
        if formula := _FORMULAS.get(operator.overloadpacket):
            self.total += formula(*args, **(kwargs or {}), out_val=found)
        return found


class Operations:
    """Counts the first call of each work that it is shown: what the towers do, and what is predicted from features."""

    def __init__(self) -> None:
        self.by_work: dict[str, float] = {}  # operations of an image

    @property
    def per_image(self) -> float:
        """Operations of an image, of all works."""
        return sum(self.by_work.values())

    def of(self, work: str, function: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
        """The function of a batch, (batch, ...), whose first call is counted; later ones are as they were."""

        def counted(batch: Tensor) -> Any:
            if work in self.by_work:
                return function(batch)
            with OperationCounter() as counter:
                found = function(batch)
            self.by_work[work] = counter.total / len(batch)
            return found

        return counted
