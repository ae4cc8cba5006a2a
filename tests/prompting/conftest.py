import pytest
import torch

from tests.clips import random_clip


@pytest.fixture(scope="session")
def tiny_vit():
    return random_clip()


@pytest.fixture(scope="session")
def tiny_resnet():
    return random_clip(vision_layers=(1, 1, 1, 1), vision_width=64, image_resolution=64, vision_patch_size=None)


@pytest.fixture
def images():
    return torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(7))
