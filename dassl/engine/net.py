"""The network that a `SimpleTrainer` builds when its subclass does not build one."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from yacs.config import CfgNode

from dassl.modeling import build_backbone, build_head


class SimpleNet(nn.Module):
    """Backbone, optional head, optional linear classifier.

    Args:
        cfg: configuration; VERBOSE is read.
        model_cfg: its section MODEL, or one like it.
        num_classes: outputs of the classifier; 0 for none.
        kwargs: go to the backbone and to the head.
    """

    def __init__(self, cfg: CfgNode, model_cfg: CfgNode, num_classes: int, **kwargs: Any) -> None:
        super().__init__()
        self.backbone = build_backbone(
            model_cfg.BACKBONE.NAME, verbose=cfg.VERBOSE, pretrained=model_cfg.BACKBONE.PRETRAINED, **kwargs
        )
        self._fdim = self.backbone.out_features
        self.head = None
        head_cfg = model_cfg.HEAD
        if head_cfg.NAME and head_cfg.HIDDEN_LAYERS:
            self.head = build_head(
                head_cfg.NAME,
                verbose=cfg.VERBOSE,
                in_features=self._fdim,
                hidden_layers=head_cfg.HIDDEN_LAYERS,
                activation=head_cfg.ACTIVATION,
                bn=head_cfg.BN,
                dropout=head_cfg.DROPOUT,
                **kwargs,
            )
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
