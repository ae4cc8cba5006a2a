"""A multi-layer perceptron."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from .build import HEAD_REGISTRY

ACTIVATIONS = {"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU}


class MLP(nn.Module):
    """Linear layers, each followed by batch norm (optional), an activation and dropout (optional).

    Args:
        in_features: width of the input.
        hidden_layers: widths of the layers; the last is the width of the output.
        activation: relu or leaky_relu.
        bn: use batch norm.
        dropout: probability of dropping a feature.

    Raises:
        ValueError: if there is no layer or the activation is unknown.
    """

    def __init__(
        self,
        in_features: int = 2048,
        hidden_layers: int | Sequence[int] = (),
        activation: str = "relu",
        bn: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        widths = [hidden_layers] if isinstance(hidden_layers, int) else list(hidden_layers)
        if not widths:
            raise ValueError("an MLP needs at least one hidden layer (MODEL.HEAD.HIDDEN_LAYERS)")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {list(ACTIVATIONS)}, but got {activation}")
        self.out_features = widths[-1]
        layers: list[nn.Module] = []
        for width in widths:
            layers.append(nn.Linear(in_features, width))
            if bn:
                layers.append(nn.BatchNorm1d(width))
            layers.append(ACTIVATIONS[activation](inplace=True))
            if dropout > 0:
                layers.append(nn.Dropout(dropout))
            in_features = width
        self.mlp = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (batch, out_features) for (batch, in_features)."""
        return self.mlp(x)


@HEAD_REGISTRY.register()
def mlp(**kwargs: Any) -> MLP:
    """Build an `MLP`."""
    return MLP(**kwargs)
