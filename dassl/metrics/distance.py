"""Distances between the rows of two feature matrices."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def compute_distance_matrix(input1: torch.Tensor, input2: torch.Tensor, metric: str = "euclidean") -> torch.Tensor:
    """Return the distance of every row of one matrix to every row of the other.

    Args:
        input1: features (m, d).
        input2: features (n, d).
        metric: `euclidean` (squared) or `cosine`.

    Returns:
        Distances (m, n).

    Raises:
        ValueError: if the shapes do not fit or the metric is unknown.
    """
    if input1.dim() != 2 or input2.dim() != 2 or input1.size(1) != input2.size(1):
        raise ValueError(f"expected (m, d) and (n, d), but got {tuple(input1.shape)} and {tuple(input2.shape)}")
    if metric == "euclidean":
        return euclidean_squared_distance(input1, input2)
    if metric == "cosine":
        return cosine_distance(input1, input2)
    raise ValueError(f'unknown distance metric {metric}; choose "euclidean" or "cosine"')


def euclidean_squared_distance(input1: torch.Tensor, input2: torch.Tensor) -> torch.Tensor:
    """Return squared Euclidean distances (m, n) of rows (m, d) and (n, d)."""
    squares1 = input1.pow(2).sum(dim=1, keepdim=True)  # (m, 1)
    squares2 = input2.pow(2).sum(dim=1)  # (n,)
    return squares1 + squares2 - 2 * input1 @ input2.t()


def cosine_distance(input1: torch.Tensor, input2: torch.Tensor) -> torch.Tensor:
    """Return 1 - cosine similarity (m, n) of rows (m, d) and (n, d)."""
    return 1 - F.normalize(input1, dim=1) @ F.normalize(input2, dim=1).t()
