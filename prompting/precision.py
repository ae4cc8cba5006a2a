"""The one place that decides number types: which type the frozen towers have and what runs under autocast.

Trainable parameters are float32 in every precision.
"""

from __future__ import annotations

import contextlib
import warnings
from dataclasses import dataclass

import torch

PRECISIONS = ("fp32", "fp16", "bf16", "amp")


@dataclass(frozen=True)
class Precision:
    """How a run computes.

    Attributes:
        name: one of ``PRECISIONS``.
        tower_dtype: type of the frozen towers' matrices.
        autocast_dtype: type that autocast computes in, ``None`` without autocast.
        needs_scaler: whether gradients need loss scaling: half-precision activations under or without autocast
            underflow, bfloat16 does not.
    """

    name: str
    tower_dtype: torch.dtype
    autocast_dtype: torch.dtype | None
    needs_scaler: bool

    def autocast(self, device: torch.device) -> contextlib.AbstractContextManager:
        """Context in which the forward pass runs."""
        if self.autocast_dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(device.type, dtype=self.autocast_dtype)


def resolve_precision(name: str, device: torch.device | str) -> Precision:
    """Precision for a config value and a device.

    ``amp`` is float16 autocast with loss scaling on CUDA and bfloat16 autocast on the CPU.

    Raises:
        ValueError: for an unknown name, listing the choices.
    """
    device = torch.device(device)
    if name == "fp32":
        return Precision(name, torch.float32, None, False)
    if name == "bf16":
        return Precision(name, torch.bfloat16, None, False)
    if name == "fp16":
        if device.type == "cpu":
            warnings.warn(
                "PREC fp16 on the CPU is exact to half precision but several times slower than fp32", stacklevel=2
            )
        return Precision(name, torch.float16, None, False)
    if name == "amp":
        half = device.type == "cuda"
        return Precision(name, torch.float32, torch.float16 if half else torch.bfloat16, half)
    raise ValueError(f"PREC {name!r}: choose one of {', '.join(PRECISIONS)}")


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
