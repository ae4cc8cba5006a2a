"""Top-k accuracy."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def compute_accuracy(
    output: torch.Tensor | Sequence[torch.Tensor], target: torch.Tensor, topk: Sequence[int] = (1,)
) -> list[torch.Tensor]:
    """Return, per k, the percentage of samples whose label is among the k highest scores, a tensor of shape (1,).

    The output is scores (batch, classes), or a tuple that starts with them; the target is labels (batch,).
    """
    if isinstance(output, (tuple, list)):
        output = output[0]
    ranked = output.topk(max(topk), dim=1).indices  # (batch, max k)
    hits = ranked.eq(target.view(-1, 1)).float()
    return [hits[:, :k].sum().view(1) * (100.0 / target.size(0)) for k in topk]
