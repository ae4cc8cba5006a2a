"""Trade time for memory: compute a layer again in the backward pass instead of keeping what it computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint


def run_layer(recompute: bool, layer: Callable[..., Any], *args: Any) -> Any:
    """``layer(*args)``; with ``recompute``, only its inputs are kept until the backward pass. The values are the same.

    Args:
        recompute: ``TRAIN.CHECKPOINT_ACTIVATIONS``.
        layer: draws no random numbers.
        *args: its inputs, tensors or not.
    """
    if not recompute or not torch.is_grad_enabled():
        return layer(*args)
    return checkpoint(layer, *args, use_reentrant=False, preserve_rng_state=False)
