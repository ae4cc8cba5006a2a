"""Networks by name. Nothing is registered here: the registries are for what trainer files bring, as in Dassl."""

from __future__ import annotations

from typing import Any

from torch import nn

from dassl import keep_old_paths
from dassl.utils import Registry

BACKBONE_REGISTRY = Registry("BACKBONE")
HEAD_REGISTRY = Registry("HEAD")
NETWORK_REGISTRY = Registry("NETWORK")


class Backbone(nn.Module):
    """Base of backbones; a subclass sets `_out_features`, the width of its output."""

    _out_features: int | None = None

    @property
    def out_features(self) -> int | None:
        """Width of the features, None where the subclass does not tell."""
        return self._out_features


def build_backbone(name: str, verbose: bool = True, **kwargs: Any) -> nn.Module:
    """Build the backbone called `name`; `kwargs` go to the function that makes it."""
    return _build(BACKBONE_REGISTRY, "Backbone", name, verbose, kwargs)


def build_head(name: str, verbose: bool = True, **kwargs: Any) -> nn.Module:
    """Build the head called `name`; `kwargs` go to the function that makes it."""
    return _build(HEAD_REGISTRY, "Head", name, verbose, kwargs)


def build_network(name: str, verbose: bool = True, **kwargs: Any) -> nn.Module:
    """Build the network called `name`; `kwargs` go to the function that makes it."""
    return _build(NETWORK_REGISTRY, "Network", name, verbose, kwargs)


def _build(registry: Registry, what: str, name: str, verbose: bool, kwargs: dict[str, Any]) -> nn.Module:
    make = registry.get(name)
    if verbose:
        print(f"{what}: {name}")
    return make(**kwargs)


keep_old_paths(__name__, "dassl.modeling.backbone", "dassl.modeling.head", "dassl.modeling.network")
