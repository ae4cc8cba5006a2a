"""Frozen residual attention blocks, run batch-first, and the attention mass that BMIP's gate reads.

The blocks stay as the ``clip`` package built them; these functions only call their weights. Splitting a block into
*project* (LayerNorm and Q, K, V) and *finish* (output projection and MLP) lets the encoders replace prompt tokens in
between and compute no row that nobody reads.
"""

from __future__ import annotations

import contextlib
import functools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prompting.launches import few_launches
from prompting.linear import frozen_linear
from prompting.mlp import run_mlp

# Rows of nn.MultiheadAttention's stacked input projection, in units of the width.
QKV, Q, K, KV = (0, 3), (0, 1), (1, 2), (1, 3)

# Rows per thread that go through the second half of a block together on the CPU. More of the MLP's hidden rows, four
# widths each, leave the processor's cache between operations, and are fresh memory of the system's every time.
ROWS_AT_ONCE = 2048


def project(block: nn.Module, x: Tensor, rows: tuple[int, int] = QKV) -> Tensor:
    """LayerNorm and input projections of a block.

    Args:
        block: a CLIP ``ResidualAttentionBlock``.
        x: (..., n, width).
        rows: which of Q, K, V: one of the constants of this module.

    Returns:
        (..., n, parts, heads, head_width).
    """
    attention, width = block.attn, x.shape[-1]
    take = slice(rows[0] * width, rows[1] * width)
    y = frozen_linear(block.ln_1(x), attention.in_proj_weight[take], attention.in_proj_bias[take])
    return y.unflatten(-1, (rows[1] - rows[0], attention.num_heads, -1))


def finish(block: nn.Module, x: Tensor, attended: Tensor) -> Tensor:
    """Output projection, MLP and both residual additions, (..., n, width) -> (..., n, width)."""
    n_rows, at_once = x.shape[:-1].numel(), ROWS_AT_ONCE * torch.get_num_threads()
    if few_launches(x.device) or n_rows <= at_once:
        return _finish_rows(block, x, attended)
    size = math.ceil(n_rows / math.ceil(n_rows / at_once))  # of equal pieces
    pieces = zip(x.flatten(0, -2).split(size), attended.flatten(0, -2).split(size), strict=True)
    return torch.cat([_finish_rows(block, *piece) for piece in pieces]).view(x.shape)


def _finish_rows(block: nn.Module, x: Tensor, attended: Tensor) -> Tensor:
    output = block.attn.out_proj
    x = x + frozen_linear(attended, output.weight, output.bias)
    return x + run_mlp(block.mlp, block.ln_2(x))


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Multi-head attention over the last-but-two dimension.

    Args:
        q: (batch, n_queries, heads, head_width).
        k: (batch, n_keys, heads, head_width).
        v: as ``k``.
        mask: added to the scores, (batch, 1, n_queries, n_keys), 0 or -inf; by default every query sees every key.

    Returns:
        (batch, n_queries, width).
    """
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out.transpose(1, 2).flatten(2)


@torch.no_grad()
def prompt_mass(q: Tensor, k: Tensor, prompts: slice, mask: Tensor | None = None) -> Tensor:
    """Attention probability on the prompt keys, mean over heads and query rows.

    It is attention over values that say which key is which prompt, so no score is ever written down.

    Args:
        q: (n, n_queries, heads, head_width).
        k: (n, n_keys, heads, head_width), the tokens as they arrive, before replacement.
        prompts: which keys are prompt tokens.
        mask: added to the scores, see :func:`attend`; by default every query sees every key.

    Returns:
        (n, n_prompts), float32, no gradient (BMIP's stop-gradient).
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
