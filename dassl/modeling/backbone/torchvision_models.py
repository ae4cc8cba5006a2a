"""torchvision's classification networks as backbones: the same weights, without the last layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torchvision
from torch import nn

from .backbone import Backbone
from .build import BACKBONE_REGISTRY

NAMES = (
    "alexnet",
    "vgg16",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "mobilenet_v2",
    *(f"efficientnet_b{i}" for i in range(8)),
)


class TorchvisionBackbone(Backbone):
    """A torchvision network whose last linear layer is taken off.

    Args:
        name: torchvision's name of the network.
        pretrained: load torchvision's default weights, which downloads them at the first use.
    """

    def __init__(self, name: str, pretrained: bool) -> None:
        super().__init__()
        self.model = torchvision.models.get_model(name, weights="DEFAULT" if pretrained else None)
        self._out_features = _remove_last_linear(self.model)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return features (batch, out_features) of images (batch, 3, height, width)."""
        return self.model(x)


def _remove_last_linear(model: nn.Module) -> int:
    """Replace the classifying layer by the identity and return the width of what goes into it."""
    if hasattr(model, "fc"):
        width = model.fc.in_features
        model.fc = nn.Identity()
        return width
    width = model.classifier[-1].in_features
    model.classifier[-1] = nn.Identity()
    return width


def _maker(name: str) -> Callable[..., TorchvisionBackbone]:
    def make(pretrained: bool = True, **kwargs: Any) -> TorchvisionBackbone:
        return TorchvisionBackbone(name, pretrained)

    make.__name__ = make.__qualname__ = name
    return make


for _name in NAMES:
    BACKBONE_REGISTRY.register(_maker(_name))
