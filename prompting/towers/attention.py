"""A frozen residual attention block in pieces, run batch-first, and the attention mass that BMIP's gate reads.

The blocks stay as the ``clip`` package built them; these functions only call their weights. A block is split into
*project* (LayerNorm and Q, K, V), *attend* and *finish* (output projection and MLP), so that the towers can replace
prompt tokens in between and compute no row that nobody reads.

A CPU's time goes into operations, a GPU's into being told each of them. So a CPU pads nothing and skips the rows that
nobody reads, in several calls; a GPU computes them along in one (:func:`few_launches`). The numbers are the same.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from clip.model import QuickGELU
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.weak import WeakTensorKeyDictionary

from common.unpickling import reason
from prompting.towers.linear import cast_once, frozen_kernel, frozen_linear

# Rows of nn.MultiheadAttention's stacked input projection, in units of the width.
QKV, Q, K, KV = (0, 3), (0, 1), (1, 2), (1, 3)
# Rows per thread that go through the second half of a block together on the CPU. More of the MLP's hidden rows, four
# widths each, leave the processor's cache between operations, and are fresh memory of the system's every time.
ROWS_AT_ONCE = 2048
QUICK_GELU_SLOPE = 1.702

_forced: bool | None = None


def few_launches(device: torch.device) -> bool:
    """Whether few large operations are wanted rather than little arithmetic."""
    return device.type != "cpu" if _forced is None else _forced


@contextlib.contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Go a GPU's way on the CPU, to count and to test it; for encoders that are built and run inside."""
    global _forced
    before, _forced = _forced, True
    try:
        yield
    finally:
        _forced = before


def run_layer(recompute: bool, layer: Callable[..., Any], *args: Any) -> Any:
    """``layer(*args)``, which draws no random numbers.

    With ``recompute`` (``TRAIN.CHECKPOINT_ACTIVATIONS``) only its inputs are kept and the layer is computed once more
    in the backward pass: less memory, more time, the same values.
    """
    if not recompute or not torch.is_grad_enabled():
        return layer(*args)
    return checkpoint(layer, *args, use_reentrant=False, preserve_rng_state=False)


def project(block: nn.Module, x: Tensor, rows: tuple[int, int] = QKV) -> Tensor:
    """LayerNorm and input projections (``rows``: which), (..., n, width) -> (..., n, parts, heads, head_width)."""
    attention, width = block.attn, x.shape[-1]
    take = slice(rows[0] * width, rows[1] * width)
    product = attention.in_proj_weight[take], attention.in_proj_bias[take]
    if _compiles and not x.is_meta:
        y = _run_compiled(norm_and_product, (x,), *_norm(block.ln_1), *map(cast_once, product))
    else:
        y = frozen_linear(block.ln_1(x), *product)
    return y.unflatten(-1, (rows[1] - rows[0], attention.num_heads, -1))


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Multi-head attention of (batch, n, heads, head_width) each; (batch, n_queries, width).

    The mask, (batch, 1, n_queries, n_keys) of 0 and -inf, is added to the scores; by default all sees all.
    """
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out.transpose(1, 2).flatten(2)


def finish(block: nn.Module, x: Tensor, attended: Tensor) -> Tensor:
    """Output projection, MLP and both residual additions, (..., n, width) -> (..., n, width)."""
    n_rows, at_once = x.shape[:-1].numel(), ROWS_AT_ONCE * torch.get_num_threads()
    if few_launches(x.device) or n_rows <= at_once:
        return _finish_rows(block, x, attended)
    size = math.ceil(n_rows / math.ceil(n_rows / at_once))  # of equal pieces
    pieces = zip(x.flatten(0, -2).split(size), attended.flatten(0, -2).split(size), strict=True)
    return torch.cat([_finish_rows(block, *piece) for piece in pieces]).view(x.shape)


def _finish_rows(block: nn.Module, x: Tensor, attended: Tensor) -> Tensor:
    output, mlp = block.attn.out_proj, block.mlp
    if _compiles and not x.is_meta and isinstance(mlp.gelu, QuickGELU | nn.GELU):
        layers = [cast_once(tensor) for layer in (output, mlp.c_fc, mlp.c_proj) for tensor in layer.parameters()]
        return _run_compiled(second_half, (x, attended), *_norm(block.ln_2), *layers, isinstance(mlp.gelu, QuickGELU))
    x = x + frozen_linear(attended, output.weight, output.bias)
    return x + run_mlp(mlp, block.ln_2(x))


@torch.no_grad()
def prompt_mass(q: Tensor, k: Tensor, prompts: slice, mask: Tensor | None = None) -> Tensor:
    """Attention probability on the prompt keys, mean over heads and query rows; (n, n_prompts), float32.

    It is attention over values that say which key is which prompt, so no score is ever written down. Q, K and mask are
    as for :func:`attend`; the keys are those of the tokens as they arrive. No gradient (BMIP's stop-gradient).
    """
    n_keys, heads, width = k.shape[1:]
    q, k, mask = q.float(), k.float(), None if mask is None else mask.float()  # fp16 knows no share below 6e-8
    n_prompts = len(range(*prompts.indices(n_keys)))
    which = _indicator(n_keys, prompts.indices(n_keys)[0], n_prompts, max(width, n_prompts), q.device)
    with contextlib.nullcontext() if q.is_meta else torch.autocast(q.device.type, enabled=False):
        out = attend(q, k, which.expand(len(k), -1, heads, -1), mask).unflatten(-1, (heads, -1))
    return out[..., :n_prompts].mean(dim=(1, 2))


@functools.lru_cache(maxsize=64)
def _indicator(n_keys: int, first: int, n: int, width: int, device: torch.device) -> Tensor:
    """1 where a key is the prompt of that number, (1, n_keys, 1, width)."""
    which = torch.zeros(n_keys, width, device=device)
    which[first : first + n, :n] = torch.eye(n, device=device)
    return which[None, :, None]


# What torch.compile sees of a block (TRAIN.COMPILE): all but attention itself. Tensors come in one by one, as a block
# would be compiled anew for every layer, and rows flat, since their number may differ.

MAX_VARIANTS = 64  # of a compiled function: per tower, part, type and whether there are gradients
_compiles = False


def set_compile(compiles: bool) -> None:
    """Run the frozen blocks through torch.compile from now on, or not."""
    global _compiles
    _compiles = compiles


def norm_and_product(x: Tensor, ln_weight: Tensor, ln_bias: Tensor, eps: float, weight: Tensor, bias: Tensor) -> Tensor:
    """LayerNorm in float32 and a product, (rows, n_in) -> (rows, n_out)."""
    normed = F.layer_norm(x.float(), ln_weight.shape, ln_weight, ln_bias, eps).to(x.dtype)
    return F.linear(normed, weight, bias)


def second_half(
    x: Tensor,
    attended: Tensor,
    ln_weight: Tensor,
    ln_bias: Tensor,
    eps: float,
    w_out: Tensor,
    b_out: Tensor,
    w_up: Tensor,
    b_up: Tensor,
    w_down: Tensor,
    b_down: Tensor,
    quick: bool,
) -> Tensor:
    """What :func:`finish` computes of rows, (rows, width) -> (rows, width)."""
    x = x + F.linear(attended, w_out, b_out)
    hidden = norm_and_product(x, ln_weight, ln_bias, eps, w_up, b_up)
    hidden = hidden * torch.sigmoid(QUICK_GELU_SLOPE * hidden) if quick else F.gelu(hidden)
    return x + F.linear(hidden, w_down, b_down)


def _norm(layer: nn.LayerNorm) -> tuple[Tensor, Tensor, float]:
    return layer.weight, layer.bias, layer.eps


@functools.cache
def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    config = torch._dynamo.config
    limit = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"  # as it was called
    setattr(config, limit, max(MAX_VARIANTS, getattr(config, limit)))
    return torch.compile(function, dynamic=False)


def _run_compiled(function: Callable[..., Tensor], rows: tuple[Tensor, ...], *frozen: Any) -> Tensor:
    """The function of rows, (..., width) each, and frozen tensors, compiled once for any number of rows."""
    flat = [some.flatten(0, -2) for some in rows]
    for some in flat:
        torch._dynamo.maybe_mark_dynamic(some, 0)
    try:
        return _compiled(function)(*flat, *frozen).unflatten(0, rows[0].shape[:-1])
    except torch._dynamo.exc.TorchDynamoException as error:
        raise ValueError(f"TRAIN.COMPILE True: torch.compile failed here ({reason(error)}); set it to False") from error


# The MLP


def run_mlp(mlp: nn.Module, x: Tensor) -> Tensor:
    """A block's MLP, (..., width) -> (..., width)."""
    w_in, w_out = mlp.c_fc.weight, mlp.c_proj.weight
    frozen = not (w_in.requires_grad or w_out.requires_grad)
    # Autocast casts what it sees, and it does not see into an operation; tensors without values know no autocast.
    autocast = not x.is_meta and torch.is_autocast_enabled(x.device.type)
    if frozen and isinstance(mlp.gelu, QuickGELU) and not autocast:
        return FrozenMLP.apply(x, w_in, mlp.c_fc.bias, w_out, mlp.c_proj.bias)
    return frozen_linear(mlp.gelu(frozen_linear(x, w_in, mlp.c_fc.bias)), w_out, mlp.c_proj.bias)


class FrozenMLP(torch.autograd.Function):
    """Product, QuickGELU, product as one operation, with a gradient for the rows alone.

    QuickGELU, x * sigmoid(1.702 x), is silu(1.702 x) / 1.702, and its derivative is silu's at 1.702 x. So the scaled
    input of the activation is the one tensor kept for the backward pass; the hidden rows, four widths each, are written
    where they lie. On a GPU the slope is in a copy of the weight and in the second product.
    """

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


# Weight of a first layer -> its state when it was scaled, and the scaled weight and bias.
_scaled: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def _scaled_once(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias times the slope: copies that are kept, made anew if somebody writes to the weight or moves it."""
    state = weight._version, weight.dtype, weight.device, 0 if weight.is_meta else weight.data_ptr()
    if weight not in _scaled or _scaled[weight][0] != state:
        with torch.no_grad():
            _scaled[weight] = state, weight * QUICK_GELU_SLOPE, bias * QUICK_GELU_SLOPE
    return _scaled[weight][1:]
