"""Backbones: from images to features."""

from .build import BACKBONE_REGISTRY, build_backbone  # isort: skip
from . import torchvision_models  # noqa: F401  (registers its models)
from .backbone import Backbone

__all__ = ["BACKBONE_REGISTRY", "Backbone", "build_backbone"]
