"""From the names in `INPUT.TRANSFORMS` to a transform; says what it builds, line by line."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torchvision.transforms.functional as F
from PIL import Image
from torchvision import transforms as T
from torchvision.transforms.functional import InterpolationMode
from yacs.config import CfgNode

from dassl.utils import check_availability

from .autoaugment import CIFAR10Policy, ImageNetPolicy, SVHNPolicy
from .randaugment import RandAugment, RandAugment2, RandAugmentFixMatch

AVAI_CHOICES = [
    "random_flip",
    "random_resized_crop",
    "normalize",
    "instance_norm",
    "random_crop",
    "random_translation",
    "center_crop",  # always part of the test transform
    "cutout",
    "imagenet_policy",
    "cifar10_policy",
    "svhn_policy",
    "randaugment",
    "randaugment_fixmatch",
    "randaugment2",
    "gaussian_noise",
    "colorjitter",
    "randomgrayscale",
    "gaussian_blur",
]

INTERPOLATION_MODES = {
    "bilinear": InterpolationMode.BILINEAR,
    "bicubic": InterpolationMode.BICUBIC,
    "nearest": InterpolationMode.NEAREST,
}

# One step of a transform: its name in INPUT.TRANSFORMS, the line to print, and what makes it.
Step = tuple[str, str, Callable[[], Any]]


class Random2DTranslation:
    """With probability `p`, enlarge to 1.125 times the size and crop at random; else resize.

    Args:
        height: height of the result.
        width: width of the result.
        p: probability of the crop.
        interpolation: of the resizing.
    """

    def __init__(
        self, height: int, width: int, p: float = 0.5, interpolation: InterpolationMode = InterpolationMode.BILINEAR
    ) -> None:
        self.height = height
        self.width = width
        self.p = p
        self.interpolation = interpolation

    def __call__(self, img: Image.Image) -> Image.Image:
        if random.uniform(0, 1) > self.p:
            return F.resize(img, [self.height, self.width], self.interpolation)
        height, width = round(self.height * 1.125), round(self.width * 1.125)
        img = F.resize(img, [height, width], self.interpolation)
        left = round(random.uniform(0, width - self.width))
        top = round(random.uniform(0, height - self.height))
        return F.crop(img, top, left, self.height, self.width)


class InstanceNormalization:
    """Bring each channel of an image to mean 0 and standard deviation 1.

    Args:
        eps: added to the standard deviation.
    """

    def __init__(self, eps: float = 1e-8) -> None:
        self.eps = eps

    def __call__(self, img: torch.Tensor) -> torch.Tensor:
        mean = img.mean(dim=(1, 2), keepdim=True)
        std = img.std(dim=(1, 2), keepdim=True)
        return (img - mean) / (std + self.eps)


class Cutout:
    """Set squares of an image tensor to 0 (DeVries and Taylor, 2017, https://arxiv.org/abs/1708.04552).

    Args:
        n_holes: number of squares.
        length: their side in pixels.
    """

    def __init__(self, n_holes: int = 1, length: int = 16) -> None:
        self.n_holes = n_holes
        self.length = length

    def __call__(self, img: torch.Tensor) -> torch.Tensor:
        height, width = img.shape[1:]
        half = self.length // 2
        img = img.clone()
        for _ in range(self.n_holes):
            y, x = np.random.randint(height), np.random.randint(width)
            img[:, max(y - half, 0) : y + half, max(x - half, 0) : x + half] = 0.0
        return img


class GaussianNoise:
    """With probability `p`, add normal noise to an image tensor.

    Args:
        mean: of the noise.
        std: of the noise.
        p: probability.
    """

    def __init__(self, mean: float = 0, std: float = 0.15, p: float = 0.5) -> None:
        self.mean = mean
        self.std = std
        self.p = p

    def __call__(self, img: torch.Tensor) -> torch.Tensor:
        if random.uniform(0, 1) > self.p:
            return img
        return img + torch.randn(img.size()) * self.std + self.mean


def interpolation_mode(cfg: CfgNode) -> InterpolationMode:
    """Return the mode that `cfg.INPUT.INTERPOLATION` names.

    Raises:
        ValueError: if it names none.
    """
    check_availability(cfg.INPUT.INTERPOLATION, INTERPOLATION_MODES)
    return INTERPOLATION_MODES[cfg.INPUT.INTERPOLATION]


def draft_size(cfg: CfgNode) -> tuple[int, int] | None:
    """Return the least width and height that a JPEG file is decoded at; None for its full size.

    Raises:
        ValueError: if INPUT.JPEG_DRAFT is negative.
    """
    factor = cfg.INPUT.JPEG_DRAFT
    if factor < 0:
        raise ValueError(f"INPUT.JPEG_DRAFT must be 0 (full size) or above, but got {factor}")
    height, width = cfg.INPUT.SIZE
    return (math.ceil(factor * width), math.ceil(factor * height)) if factor else None


def build_transform(
    cfg: CfgNode, is_train: bool = True, choices: Sequence[str] | None = None
) -> Callable[[Image.Image], Any] | None:
    """Build the transform of training or test images.

    Args:
        cfg: configuration; the section INPUT is read.
        is_train: for training, with augmentation.
        choices: names to use instead of `cfg.INPUT.TRANSFORMS`.

    Returns:
        The transform, or None under INPUT.NO_TRANSFORM.

    Raises:
        ValueError: if a name is unknown.
    """
    if cfg.INPUT.NO_TRANSFORM:
        print("Note: no transform is applied!")
        return None
    choices = cfg.INPUT.TRANSFORMS if choices is None else choices
    for choice in choices:
        check_availability(choice, AVAI_CHOICES)
    print("Building transform_train" if is_train else "Building transform_test")
    steps = _train_steps(cfg, choices) if is_train else _test_steps(cfg)
    chosen = []
    for name, line, make in steps:
        if not name or name in choices:
            print(f"+ {line}")
            chosen.append(make())
    return T.Compose(chosen)


def _test_steps(cfg: CfgNode) -> list[Step]:
    size, mode = cfg.INPUT.SIZE, interpolation_mode(cfg)
    return [
        ("", f"resize the smaller edge to {max(size)}", lambda: T.Resize(max(size), interpolation=mode)),
        ("", f"{size[0]}x{size[1]} center crop", lambda: T.CenterCrop(size)),
        ("", "to torch tensor of range [0, 1]", T.ToTensor),
        _normalize_step(cfg),
        ("instance_norm", "instance normalization", InstanceNormalization),
    ]


def _train_steps(cfg: CfgNode, choices: Sequence[str]) -> list[Step]:
    return [
        *_size_steps(cfg, choices),
        ("random_flip", "random flip", T.RandomHorizontalFlip),
        *_policy_steps(cfg),
        *_color_steps(cfg),
        ("", "to torch tensor of range [0, 1]", T.ToTensor),
        *_tensor_steps(cfg),
    ]


def _size_steps(cfg: CfgNode, choices: Sequence[str]) -> list[Step]:
    size, mode = cfg.INPUT.SIZE, interpolation_mode(cfg)
    padding, scale = cfg.INPUT.CROP_PADDING, cfg.INPUT.RRCROP_SCALE
    steps: list[Step] = [
        ("random_translation", "random translation", lambda: Random2DTranslation(size[0], size[1])),
        ("random_crop", f"random crop (padding = {padding})", lambda: T.RandomCrop(size, padding=padding)),
        (
            "random_resized_crop",
            f"random resized crop (size={size}, scale={scale})",
            lambda: T.RandomResizedCrop(size, scale=scale, interpolation=mode),
        ),
    ]
    if "random_crop" in choices or "random_resized_crop" in choices:
        return steps
    return [("", f"resize to {size[0]}x{size[1]}", lambda: T.Resize(size, interpolation=mode)), *steps]


def _policy_steps(cfg: CfgNode) -> list[Step]:
    n, m = cfg.INPUT.RANDAUGMENT_N, cfg.INPUT.RANDAUGMENT_M
    return [
        ("imagenet_policy", "imagenet policy", ImageNetPolicy),
        ("cifar10_policy", "cifar10 policy", CIFAR10Policy),
        ("svhn_policy", "svhn policy", SVHNPolicy),
        ("randaugment", f"randaugment (n={n}, m={m})", lambda: RandAugment(n, m)),
        ("randaugment_fixmatch", f"randaugment_fixmatch (n={n})", lambda: RandAugmentFixMatch(n)),
        ("randaugment2", f"randaugment2 (n={n})", lambda: RandAugment2(n)),
    ]


def _color_steps(cfg: CfgNode) -> list[Step]:
    b, c = cfg.INPUT.COLORJITTER_B, cfg.INPUT.COLORJITTER_C
    s, h = cfg.INPUT.COLORJITTER_S, cfg.INPUT.COLORJITTER_H
    kernel, probability = cfg.INPUT.GB_K, cfg.INPUT.GB_P
    return [
        (
            "colorjitter",
            f"color jitter (brightness={b}, contrast={c}, saturation={s}, hue={h})",
            lambda: T.ColorJitter(b, c, s, h),
        ),
        ("randomgrayscale", "random gray scale", lambda: T.RandomGrayscale(p=cfg.INPUT.RGS_P)),
        (
            "gaussian_blur",
            f"gaussian blur (kernel={kernel})",
            lambda: T.RandomApply([T.GaussianBlur(kernel)], p=probability),
        ),
    ]


def _tensor_steps(cfg: CfgNode) -> list[Step]:
    holes, length = cfg.INPUT.CUTOUT_N, cfg.INPUT.CUTOUT_LEN
    mean, std = cfg.INPUT.GN_MEAN, cfg.INPUT.GN_STD
    return [
        ("cutout", f"cutout (n_holes={holes}, length={length})", lambda: Cutout(holes, length)),
        _normalize_step(cfg),
        ("gaussian_noise", f"gaussian noise (mean={mean}, std={std})", lambda: GaussianNoise(mean, std)),
        ("instance_norm", "instance normalization", InstanceNormalization),
    ]


def _normalize_step(cfg: CfgNode) -> Step:
    mean, std = cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD
    return ("normalize", f"normalization (mean={mean}, std={std})", lambda: T.Normalize(mean=mean, std=std))
