"""The registry of networks."""

from __future__ import annotations

from typing import Any

from torch import nn

from dassl.utils import Registry

NETWORK_REGISTRY = Registry("NETWORK")


def build_network(name: str, verbose: bool = True, **kwargs: Any) -> nn.Module:
    """Build the network called `name`; `kwargs` go to the function that makes it."""
    make = NETWORK_REGISTRY.get(name)
    if verbose:
        print(f"Network: {name}")
    return make(**kwargs)
