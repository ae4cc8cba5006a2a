"""Q, K and V of prompt tokens that are mixtures of two, without a matrix product for each mixture.

BMIP's gate gives every class tokens of its own, w * own + (1 - w) * foreign, of the same two tokens. LayerNorm takes
off the mean, which is linear, and divides by the deviation, one number per token; the projection is linear. So the two
tokens are centred and projected once, and each class only mixes what came out and divides it by its own deviation.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prompting.attention import QKV
from prompting.linear import frozen_linear
from prompting.prompts import Mixture


def project_mixture(block: nn.Module, mixture: Mixture, rows: tuple[int, int] = QKV) -> Tensor:
    """What :func:`prompting.attention.project` gives for the mixture's tokens.

    Args:
        block: a CLIP ``ResidualAttentionBlock``.
        mixture: of ``groups`` pairs.
        rows: which of Q, K, V.

    Returns:
        (groups, n * n_prompts, parts, heads, head_width).
    """
    attention, norm = block.attn, block.ln_1
    take = slice(*(part * norm.bias.numel() for part in rows))
    weight, bias = attention.in_proj_weight[take], attention.in_proj_bias[take]
    centred = mixture.pair - mixture.pair.mean(-1, keepdim=True)  # (groups, n_prompts, 2, width)
    shares = mixture.shares  # (groups, n_prompts, n, 2)
    shares = shares * torch.rsqrt(_variance(centred, shares) + norm.eps)
    projected = frozen_linear((centred * norm.weight).to(weight.dtype), weight, None)
    constant = frozen_linear(norm.bias.to(weight.dtype), weight, bias)
    mixed = shares.to(weight.dtype) @ projected + constant  # (groups, n_prompts, n, parts * width)
    return mixed.transpose(1, 2).flatten(1, 2).unflatten(-1, (rows[1] - rows[0], attention.num_heads, -1))


def _variance(centred: Tensor, shares: Tensor) -> Tensor:
    """Of each mixture's elements, (groups, n_prompts, n, 1); without matrix products, which autocast would shorten."""
    products = (centred.unsqueeze(-2) * centred.unsqueeze(-3)).mean(-1)  # (groups, n_prompts, 2, 2)
    terms = shares.unsqueeze(-1) * shares.unsqueeze(-2) * products.unsqueeze(-3)
    return terms.sum((-2, -1)).clamp(min=0).unsqueeze(-1)  # where the two cancel, rounding may leave it below zero
