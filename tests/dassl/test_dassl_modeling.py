"""Backbones, heads and networks that trainer files register, and the simple network of a backbone and a head."""

import pytest
import torch
from torch import nn

from dassl.config import get_cfg_default
from dassl.engine import SimpleNet
from dassl.modeling import (
    BACKBONE_REGISTRY,
    HEAD_REGISTRY,
    NETWORK_REGISTRY,
    Backbone,
    build_backbone,
    build_head,
    build_network,
)


@BACKBONE_REGISTRY.register(force=True)
def pooling(pretrained=True, **kwargs):
    class Pooling(Backbone):
        def __init__(self):
            super().__init__()
            self.pool = nn.AdaptiveAvgPool2d(2)
            self._out_features = 12

        def forward(self, x):
            return self.pool(x).flatten(1)

    return Pooling()


@HEAD_REGISTRY.register(force=True)
def linear_head(in_features, hidden_layers, **kwargs):
    head = nn.Linear(in_features, hidden_layers[-1])
    assert set(kwargs) == {"activation", "bn", "dropout"}
    return head


def test_what_is_registered_is_built_and_said(capsys):
    assert build_backbone("pooling", pretrained=False).out_features == 12
    head = build_head("linear_head", in_features=12, hidden_layers=[4], activation="relu", bn=True, dropout=0.1)
    assert head.out_features == 4
    assert capsys.readouterr().out == "Backbone: pooling\nHead: linear_head\n"
    assert Backbone().out_features is None


def test_unknown_backbone():
    with pytest.raises(ValueError, match=r"do you mean \[pooling\]"):
        build_backbone("poolin")


def test_networks_of_ones_own():
    @NETWORK_REGISTRY.register(force=True)
    def tiny_network(width):
        return nn.Linear(width, 1)

    assert build_network("tiny_network", width=4).in_features == 4


@pytest.mark.parametrize(
    ("head", "classes", "shape"), [("", 5, (2, 5)), ("linear_head", 5, (2, 5)), ("linear_head", 0, (2, 7))]
)
def test_simple_net(head, classes, shape):
    cfg = get_cfg_default()
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.PRETRAINED = "pooling", False
    cfg.MODEL.HEAD.NAME, cfg.MODEL.HEAD.HIDDEN_LAYERS = head, (9, 7)
    net = SimpleNet(cfg, cfg.MODEL, classes)
    images = torch.rand(2, 3, 32, 32)
    assert net(images).shape == shape
    if classes:
        _, features = net(images, return_feature=True)
        assert features.shape == (2, net.fdim)
    assert net.fdim == (7 if head else 12)
