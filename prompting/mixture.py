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
    weight = attention.in_proj_weight[rows[0] * norm.bias.numel() : rows[1] * norm.bias.numel()]
    bias = attention.in_proj_bias[rows[0] * norm.bias.numel() : rows[1] * norm.bias.numel()]
    centred = mixture.pair - mixture.pair.mean(-1, keepdim=True)  # (groups, n_prompts, 2, width)
    products = centred @ centred.transpose(-1, -2) / centred.shape[-1]
    shares = mixture.shares  # (groups, n_prompts, n, 2)
    variance = ((shares @ products) * shares).sum(-1, keepdim=True)
    shares = shares * torch.rsqrt(variance + norm.eps)
    projected = frozen_linear((centred * norm.weight).to(weight.dtype), weight, None)
    constant = frozen_linear(norm.bias.to(weight.dtype), weight, bias)
    mixed = shares.to(weight.dtype) @ projected + constant  # (groups, n_prompts, n, parts * width)
    return mixed.transpose(1, 2).flatten(1, 2).unflatten(-1, (rows[1] - rows[0], attention.num_heads, -1))
