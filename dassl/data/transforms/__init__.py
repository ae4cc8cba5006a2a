"""Image transforms by name."""

from .autoaugment import CIFAR10Policy, ImageNetPolicy, SVHNPolicy
from .randaugment import RandAugment, RandAugment2, RandAugmentFixMatch
from .transforms import (
    AVAI_CHOICES,
    INTERPOLATION_MODES,
    Cutout,
    GaussianNoise,
    InstanceNormalization,
    Random2DTranslation,
    build_transform,
)

__all__ = [
    "AVAI_CHOICES",
    "INTERPOLATION_MODES",
    "CIFAR10Policy",
    "Cutout",
    "GaussianNoise",
    "ImageNetPolicy",
    "InstanceNormalization",
    "RandAugment",
    "RandAugment2",
    "RandAugmentFixMatch",
    "Random2DTranslation",
    "SVHNPolicy",
    "build_transform",
]
