"""The one place that decides number types: which type the frozen towers have and what runs under autocast.

Trainable parameters are float32 in every precision.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch

PRECISIONS = ("fp32", "fp16", "bf16", "amp")


@dataclass(frozen=True)
class Precision:
    """How a run computes.

    Attributes:
        name: one of ``PRECISIONS``: how it computes.
        asked: one of ``PRECISIONS``: what the configuration says.
        weights_dtype: type that the frozen towers' matrices are rounded to when they are read.
        tower_dtype: type that they are kept in.
        autocast_dtype: type that autocast computes in, ``None`` without autocast.
        needs_scaler: whether gradients need loss scaling: half-precision activations under or without autocast
            underflow, bfloat16 does not.
    """

    name: str
    asked: str
    weights_dtype: torch.dtype
    tower_dtype: torch.dtype
    autocast_dtype: torch.dtype | None
    needs_scaler: bool

    def __str__(self) -> str:
        """What is computed and, where that is something else, what was asked for."""
        return self.name if self.name == self.asked else f"{self.name} (asked: {self.asked})"

    def autocast(self, device: torch.device) -> contextlib.AbstractContextManager:
        """Context in which the forward pass runs."""
        if self.autocast_dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(device.type, dtype=self.autocast_dtype)


def resolve_precision(name: str, device: torch.device | str, cpu_half: bool = False) -> Precision:
    """Precision for a config value and a device.

    ``amp`` is float16 autocast with loss scaling. On a CPU, where half precision takes many times as long as fp32,
    ``fp16`` and ``amp`` compute in fp32; the weights of ``fp16`` are float16's values all the same.

    Args:
        name: one of ``PRECISIONS``.
        device: that computes.
        cpu_half: compute in half precision on a CPU too; ``amp`` is bfloat16 autocast there.

    Raises:
        ValueError: for an unknown name, listing the choices.
    """
    if name not in PRECISIONS:
        raise ValueError(f"PREC {name!r}: choose one of {', '.join(PRECISIONS)}")
    cpu = torch.device(device).type == "cpu"
    half = torch.bfloat16 if name == "bf16" or (name == "amp" and cpu) else torch.float16
    weights = half if name in ("fp16", "bf16") else torch.float32
    if cpu and not cpu_half and name in ("fp16", "amp"):
        return Precision("fp32", name, weights, torch.float32, None, False)
    return Precision(name, name, weights, weights, half if name == "amp" else None, name == "amp" and not cpu)


def convert_towers(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Cast a CLIP's matrices in place, as OpenAI's ``convert_weights`` does: LayerNorms and embeddings stay float32."""
    model.float()
    if dtype == torch.float32:
        return
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            module.to(dtype)
        elif isinstance(module, torch.nn.MultiheadAttention):
            module.in_proj_weight.data = module.in_proj_weight.data.to(dtype)
            module.in_proj_bias.data = module.in_proj_bias.data.to(dtype)
        for name in ("text_projection", "proj"):
            matrix = getattr(module, name, None)
            if isinstance(matrix, torch.nn.Parameter):
                matrix.data = matrix.data.to(dtype)
