"""Networks by name. Nothing is registered here: the registries are for what trainer files bring, as in Dassl."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn
from yacs.config import CfgNode

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


def _build(registry: Registry, what: str, name: str, verbose: bool = True, **kwargs: Any) -> nn.Module:
    """Build the network called `name`; `kwargs` go to the function that makes it."""
    make = registry.get(name)
    if verbose:
        print(f"{what}: {name}")
    return make(**kwargs)


build_backbone = partial(_build, BACKBONE_REGISTRY, "Backbone")
build_head = partial(_build, HEAD_REGISTRY, "Head")
build_network = partial(_build, NETWORK_REGISTRY, "Network")


class SimpleNet(nn.Module):
    """The network of a trainer that builds none: backbone, optional head, classifier unless there are 0 classes."""

    def __init__(self, cfg: CfgNode, model_cfg: CfgNode, num_classes: int, **kwargs: Any) -> None:
        super().__init__()
        backbone, head = model_cfg.BACKBONE, model_cfg.HEAD
        self.backbone = build_backbone(backbone.NAME, verbose=cfg.VERBOSE, pretrained=backbone.PRETRAINED, **kwargs)
        self._fdim = self.backbone.out_features
        self.head = None
        if head.NAME and head.HIDDEN_LAYERS:
            options = {name.lower(): head[name] for name in ("HIDDEN_LAYERS", "ACTIVATION", "BN", "DROPOUT")}
            self.head = build_head(head.NAME, verbose=cfg.VERBOSE, in_features=self._fdim, **options, **kwargs)
            self._fdim = self.head.out_features
        self.classifier = nn.Linear(self._fdim, num_classes) if num_classes > 0 else None

    @property
    def fdim(self) -> int:
        """Width of the features that the classifier gets."""
        return self._fdim

    def forward(
        self, x: torch.Tensor, return_feature: bool = False
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Return scores (batch, classes), with the features where asked; features where there is no classifier."""
        features = self.backbone(x)
        if self.head is not None:
            features = self.head(features)
        if self.classifier is None:
            return features
        scores = self.classifier(features)
        return (scores, features) if return_feature else scores


keep_old_paths(__name__, "dassl.modeling.backbone", "dassl.modeling.head", "dassl.modeling.network")
