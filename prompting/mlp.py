"""The MLP of a frozen block as one operation: it keeps one tensor for the backward pass and works in place on the rest.

OpenAI's QuickGELU, x * sigmoid(1.702 x), is silu(1.702 x) / 1.702, and its derivative is silu's at 1.702 x. So that one
tensor is the scaled input of the activation; the hidden rows, four widths each, are written where they lie. On a GPU
the slope is in a copy of the weight and in the second product.
"""

from __future__ import annotations

from typing import Any

import torch
from clip.model import QuickGELU
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.weak import WeakTensorKeyDictionary

from prompting.launches import few_launches
from prompting.linear import frozen_kernel, frozen_linear

QUICK_GELU_SLOPE = 1.702

# Weight of a first layer -> its state when it was scaled, and the scaled weight and bias.
_scaled: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


class FrozenMLP(torch.autograd.Function):
    """Product, QuickGELU, product, with a gradient for the rows alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w_in: Tensor, b_in: Tensor, w_out: Tensor, b_out: Tensor) -> Tensor:
        inplace = not ctx.needs_input_grad[0]
        if few_launches(x.device):
            scaled = F.linear(x, *_scaled_once(w_in, b_in))
            ctx.save_for_backward(scaled)
            hidden = F.silu(scaled, inplace=inplace).flatten(0, -2)
            ctx.weights, ctx.kernels = (w_in, w_out), (F.linear, F.linear)
            return torch.addmm(b_out, hidden, w_out.t(), alpha=1 / QUICK_GELU_SLOPE).view(*x.shape[:-1], -1)
        widen = frozen_kernel(x, w_in)
        scaled = widen(x, w_in, b_in).mul_(QUICK_GELU_SLOPE)
        ctx.save_for_backward(scaled)
        hidden = F.silu(scaled, inplace=inplace).div_(QUICK_GELU_SLOPE)
        narrow = frozen_kernel(hidden, w_out)
        ctx.weights, ctx.kernels = (w_in, w_out), (widen, narrow)
        return narrow(hidden, w_out, b_out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        (scaled,), (w_in, w_out), (widen, narrow) = ctx.saved_tensors, ctx.weights, ctx.kernels
        hidden = narrow(grad, w_out.t(), None)
        torch.ops.aten.silu_backward.grad_input(hidden, scaled, grad_input=hidden)
        return widen(hidden, w_in.t(), None), None, None, None, None


def _scaled_once(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias times the slope: copies that are kept, made anew if somebody writes to the weight or moves it."""
    state = weight._version, weight.dtype, weight.device, 0 if weight.is_meta else weight.data_ptr()
    if weight not in _scaled or _scaled[weight][0] != state:
        with torch.no_grad():
            _scaled[weight] = state, weight * QUICK_GELU_SLOPE, bias * QUICK_GELU_SLOPE
    return _scaled[weight][1:]


def run_mlp(mlp: nn.Module, x: Tensor) -> Tensor:
    """A block's MLP, (..., width) -> (..., width)."""
    w_in, w_out = mlp.c_fc.weight, mlp.c_proj.weight
    frozen = not (w_in.requires_grad or w_out.requires_grad)
    if frozen and isinstance(mlp.gelu, QuickGELU) and not _autocast(x.device):
        return FrozenMLP.apply(x, w_in, mlp.c_fc.bias, w_out, mlp.c_proj.bias)
    # Another activation; or autocast, which casts what it sees, and it does not see into an operation.
    return frozen_linear(mlp.gelu(frozen_linear(x, w_in, mlp.c_fc.bias)), w_out, mlp.c_proj.bias)


def _autocast(device: torch.device) -> bool:
    """Whether products on this device are cast; tensors without values ("meta") know no autocast."""
    return device.type != "meta" and torch.is_autocast_enabled(device.type)
