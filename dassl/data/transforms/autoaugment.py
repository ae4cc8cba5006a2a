"""AutoAugment's policies (Cubuk et al., CVPR 2019, https://arxiv.org/abs/1805.09501), as torchvision has them.

The 3 x 25 sub-policies are Dassl's; the draws come from PyTorch's generator (Dassl: from Python's), and a rotation has
a random direction (Dassl: always the same).
"""

from __future__ import annotations

from torchvision.transforms import AutoAugment, AutoAugmentPolicy, InterpolationMode


class _Policy(AutoAugment):
    policy_name: AutoAugmentPolicy

    def __init__(self, fillcolor: tuple[int, int, int] = (128, 128, 128)) -> None:
        """Make the policy; `fillcolor` is the colour of what comes into the image from outside."""
        super().__init__(self.policy_name, interpolation=InterpolationMode.BICUBIC, fill=list(fillcolor))


class ImageNetPolicy(_Policy):
    """The policy found on ImageNet."""

    policy_name = AutoAugmentPolicy.IMAGENET


class CIFAR10Policy(_Policy):
    """The policy found on CIFAR-10."""

    policy_name = AutoAugmentPolicy.CIFAR10


class SVHNPolicy(_Policy):
    """The policy found on SVHN."""

    policy_name = AutoAugmentPolicy.SVHN
