import pytest
import torch

from tests.clips import random_clip


@pytest.fixture(scope="session")
def small_clip():
    """A random CLIP of 4 layers; nobody changes it."""
    return random_clip()


@pytest.fixture(scope="session")
def some_images():
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))
