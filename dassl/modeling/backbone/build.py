"""The registry of backbones."""

from __future__ import annotations

from typing import Any

from torch import nn

from dassl.utils import Registry

BACKBONE_REGISTRY = Registry("BACKBONE")


def build_backbone(name: str, verbose: bool = True, **kwargs: Any) -> nn.Module:
    """Build the backbone called `name`; `kwargs` go to the function that makes it."""
    make = BACKBONE_REGISTRY.get(name)
    if verbose:
        print(f"Backbone: {name}")
    return make(**kwargs)
