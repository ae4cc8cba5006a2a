"""The registry of heads."""

from __future__ import annotations

from typing import Any

from torch import nn

from dassl.utils import Registry

HEAD_REGISTRY = Registry("HEAD")


def build_head(name: str, verbose: bool = True, **kwargs: Any) -> nn.Module:
    """Build the head called `name`; `kwargs` go to the function that makes it."""
    make = HEAD_REGISTRY.get(name)
    if verbose:
        print(f"Head: {name}")
    return make(**kwargs)
