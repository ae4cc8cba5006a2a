"""Backbones, heads and the simple network."""

import pytest
import torch
from torch import nn

from dassl.config import get_cfg_default
from dassl.engine import SimpleNet
from dassl.modeling import (
    BACKBONE_REGISTRY,
    NETWORK_REGISTRY,
    Backbone,
    build_backbone,
    build_head,
    build_network,
)

WIDTHS = {
    "resnet18": 512,
    "resnet50": 2048,
    "mobilenet_v2": 1280,
    "efficientnet_b0": 1280,
    "vgg16": 4096,
    "alexnet": 4096,
}


@pytest.mark.parametrize(("name", "width"), WIDTHS.items())
def test_backbones_return_features(name, width, capsys):
    with torch.device("meta"):
        backbone = build_backbone(name, pretrained=False)
        features = backbone(torch.empty(2, 3, 64, 64))
    assert isinstance(backbone, Backbone)
    assert backbone.out_features == width
    assert features.shape == (2, width)
    assert f"Backbone: {name}" in capsys.readouterr().out


def test_all_of_dassls_torchvision_names_are_there():
    names = {"resnet34", "resnet101", "resnet152", *(f"efficientnet_b{i}" for i in range(8)), *WIDTHS}
    assert names <= set(BACKBONE_REGISTRY.registered_names())


def test_unknown_backbone():
    with pytest.raises(ValueError, match=r"do you mean \[resnet18\]"):
        build_backbone("resnet-18")


@pytest.mark.parametrize("bn", [True, False])
def test_mlp(bn):
    head = build_head("mlp", in_features=5, hidden_layers=[4, 3], activation="leaky_relu", bn=bn, dropout=0.1)
    assert head.out_features == 3
    assert head(torch.randn(2, 5)).shape == (2, 3)
    kinds = [type(layer).__name__ for layer in head.mlp]
    assert kinds == (["Linear", *["BatchNorm1d"] * bn, "LeakyReLU", "Dropout"]) * 2
    with pytest.raises(ValueError, match="hidden layer"):
        build_head("mlp", hidden_layers=[])
    with pytest.raises(ValueError, match="gelu"):
        build_head("mlp", hidden_layers=[1], activation="gelu")


def test_networks_of_ones_own():
    @NETWORK_REGISTRY.register(force=True)
    def tiny_network(width):
        return nn.Linear(width, 1)

    assert build_network("tiny_network", width=4).in_features == 4


@pytest.mark.parametrize(("head", "classes", "shape"), [("", 5, (2, 5)), ("mlp", 5, (2, 5)), ("mlp", 0, (2, 7))])
def test_simple_net(head, classes, shape):
    cfg = get_cfg_default()
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.PRETRAINED = "resnet18", False
    cfg.MODEL.HEAD.NAME, cfg.MODEL.HEAD.HIDDEN_LAYERS = head, (9, 7)
    with torch.device("meta"):
        net = SimpleNet(cfg, cfg.MODEL, classes)
        images = torch.empty(2, 3, 32, 32)
        assert net(images).shape == shape
        if classes:
            _, features = net(images, return_feature=True)
            assert features.shape == (2, net.fdim)
    assert net.fdim == (7 if head else 512)
