"""Frozen weights in the order that oneDNN's product wants them, made once and kept.

Saves the reordering at every product and costs memory: a copy of every weight that is used forward, and one more of
every weight that is used backward.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

# Tensor that owns the memory -> part of it -> the owner's version when it was packed, and the packed part.
_packed: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def packed_weight(weight: Tensor, rows: int) -> Tensor:
    """A weight in oneDNN's order, packed anew only if somebody has written to it.

    Args:
        weight: (n_out, n_in), also a view such as a transposed weight or some of its rows.
        rows: of the first product, for which oneDNN chooses the order.
    """
    owner = weight if weight._base is None else weight._base
    parts = _packed.setdefault(owner, {})
    part = (weight.storage_offset(), weight.shape, weight.stride())
    if part not in parts or parts[part][0] != owner._version:
        parts[part] = owner._version, torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), rows)
    return parts[part][1]


def packed_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """oneDNN's product with a weight that is kept packed; private operators of PyTorch, which may be missing."""
    packed = packed_weight(weight, x.numel() // x.shape[-1])
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
