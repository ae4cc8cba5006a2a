"""From the names in `INPUT.TRANSFORMS` to a transform; says what it builds, line by line."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from torchvision import transforms as T
from torchvision.transforms.functional import InterpolationMode
from yacs.config import CfgNode

from dassl import keep_old_paths
from dassl.utils import check_availability

AVAI_CHOICES = [
    *("random_flip", "random_resized_crop", "normalize", "random_crop"),
    "center_crop",  # always part of the test transform
    *("imagenet_policy", "cifar10_policy", "svhn_policy", "randaugment"),
    *("colorjitter", "randomgrayscale", "gaussian_blur"),
]

INTERPOLATION_MODES = {
    "bilinear": InterpolationMode.BILINEAR,
    "bicubic": InterpolationMode.BICUBIC,
    "nearest": InterpolationMode.NEAREST,
}


def interpolation_mode(cfg: CfgNode) -> InterpolationMode:
    """Return the mode that `cfg.INPUT.INTERPOLATION` names; raise ValueError if it names none."""
    check_availability(cfg.INPUT.INTERPOLATION, INTERPOLATION_MODES)
    return INTERPOLATION_MODES[cfg.INPUT.INTERPOLATION]


def draft_size(cfg: CfgNode) -> tuple[int, int] | None:
    """Return the least (width, height) that a JPEG file is decoded at, None: its full size; ValueError: below 0."""
    factor = cfg.INPUT.JPEG_DRAFT
    if factor < 0:
        raise ValueError(f"INPUT.JPEG_DRAFT must be 0 (full size) or above, but got {factor}")
    height, width = cfg.INPUT.SIZE
    return (math.ceil(factor * width), math.ceil(factor * height)) if factor else None


def build_transform(
    cfg: CfgNode, is_train: bool = True, choices: Sequence[str] | None = None
) -> Callable[[Image.Image], Any] | None:
    """Build the transform of training or test images; None under INPUT.NO_TRANSFORM.

    `choices` are names to use instead of `cfg.INPUT.TRANSFORMS`.

    Raises:
        ValueError: if a name is unknown.
    """
    if cfg.INPUT.NO_TRANSFORM:
        print("Note: no transform is applied!")
        return None
    choices = cfg.INPUT.TRANSFORMS if choices is None else choices
    for choice in choices:
        check_availability(choice, AVAI_CHOICES)
    c, size, mode = cfg.INPUT, cfg.INPUT.SIZE, interpolation_mode(cfg)
    crops = "random_crop" in choices or "random_resized_crop" in choices
    padding, scale, n, m, kernel = c.CROP_PADDING, c.RRCROP_SCALE, c.RANDAUGMENT_N, c.RANDAUGMENT_M, c.GB_K
    jitter = (c.COLORJITTER_B, c.COLORJITTER_C, c.COLORJITTER_S, c.COLORJITTER_H)
    jitter_line = "color jitter (brightness={}, contrast={}, saturation={}, hue={})".format(*jitter)
    rrcrop_line = f"random resized crop (size={size}, scale={scale})"
    mean_line = f"normalization (mean={c.PIXEL_MEAN}, std={c.PIXEL_STD})"

    def policy(name: str) -> T.AutoAugment:  # Dassl's 25 sub-policies each, with torchvision's draws
        return T.AutoAugment(T.AutoAugmentPolicy[name], InterpolationMode.BICUBIC, fill=[128, 128, 128])

    # (the name that asks for it, None: always; the line to print; what makes it)
    resize = (None, f"resize to {size[0]}x{size[1]}", lambda: T.Resize(size, interpolation=mode))
    train_steps = [
        *([] if crops else [resize]),
        ("random_crop", f"random crop (padding = {padding})", lambda: T.RandomCrop(size, padding=padding)),
        ("random_resized_crop", rrcrop_line, lambda: T.RandomResizedCrop(size, scale=scale, interpolation=mode)),
        ("random_flip", "random flip", T.RandomHorizontalFlip),
        ("imagenet_policy", "imagenet policy", lambda: policy("IMAGENET")),
        ("cifar10_policy", "cifar10 policy", lambda: policy("CIFAR10")),
        ("svhn_policy", "svhn policy", lambda: policy("SVHN")),
        ("randaugment", f"randaugment (n={n}, m={m})", lambda: RandAugment(n, m)),
        ("colorjitter", jitter_line, lambda: T.ColorJitter(*jitter)),
        ("randomgrayscale", "random gray scale", lambda: T.RandomGrayscale(p=c.RGS_P)),
        (
            "gaussian_blur",
            f"gaussian blur (kernel={kernel})",
            lambda: T.RandomApply([T.GaussianBlur(kernel)], p=c.GB_P),
        ),
    ]
    test_steps = [
        (None, f"resize the smaller edge to {max(size)}", lambda: T.Resize(max(size), interpolation=mode)),
        (None, f"{size[0]}x{size[1]} center crop", lambda: T.CenterCrop(size)),
    ]
    last_steps = [
        (None, "to torch tensor of range [0, 1]", T.ToTensor),
        ("normalize", mean_line, lambda: T.Normalize(mean=c.PIXEL_MEAN, std=c.PIXEL_STD)),
    ]
    print("Building transform_train" if is_train else "Building transform_test")
    chosen = []
    for name, line, make in (train_steps if is_train else test_steps) + last_steps:
        if name is None or name in choices:
            print(f"+ {line}")
            chosen.append(make())
    return T.Compose(chosen)


def _signed(v: float) -> float:
    """Return `v` in a random direction."""
    return -v if random.random() > 0.5 else v


def _affine(img: Image.Image, *matrix: float) -> Image.Image:
    return img.transform(img.size, Image.Transform.AFFINE, matrix)


def _solarize_add(img: Image.Image, v: float) -> Image.Image:
    """Add `v` to all values, then negate those from 128 on."""
    brighter = np.clip(np.asarray(img, dtype=np.int64) + int(v), 0, 255).astype(np.uint8)
    return ImageOps.solarize(Image.fromarray(brighter), 128)


def _cutout(img: Image.Image, v: float) -> Image.Image:
    """Paint a square of side `v` pixels grey, around a random point."""
    width, height = img.size
    x0 = int(max(0, np.random.uniform(width) - v / 2))
    y0 = int(max(0, np.random.uniform(height) - v / 2))
    img = img.copy()
    ImageDraw.Draw(img).rectangle((x0, y0, min(width, x0 + v), min(height, y0 + v)), (125, 123, 114))
    return img


class RandAugment:
    """Apply `n` random operations, all at the strength `m` (Cubuk et al., 2019, https://arxiv.org/abs/1909.13719).

    Operations, ranges and order are Dassl's, since a seed draws an operation by its position; torchvision's differ.

    Raises:
        ValueError: if the strength is not within 0 and 30.
    """

    # name: (function of an image and a strength, strength at m = 0, strength at m = 30)
    OPERATIONS: dict[str, tuple[Callable[[Image.Image, float], Image.Image], float, float]] = {
        "auto_contrast": (lambda img, v: ImageOps.autocontrast(img), 0, 1),
        "equalize": (lambda img, v: ImageOps.equalize(img), 0, 1),
        "invert": (lambda img, v: ImageOps.invert(img), 0, 1),
        "rotate": (lambda img, v: img.rotate(_signed(v)), 0, 30),
        "posterize": (lambda img, v: ImageOps.posterize(img, int(v)), 4, 8),
        "solarize": (ImageOps.solarize, 0, 256),
        "solarize_add": (_solarize_add, 0, 110),
        "color": (lambda img, v: ImageEnhance.Color(img).enhance(v), 0.1, 1.9),
        "contrast": (lambda img, v: ImageEnhance.Contrast(img).enhance(v), 0.1, 1.9),
        "brightness": (lambda img, v: ImageEnhance.Brightness(img).enhance(v), 0.1, 1.9),
        "sharpness": (lambda img, v: ImageEnhance.Sharpness(img).enhance(v), 0.1, 1.9),
        "shear_x": (lambda img, v: _affine(img, 1, _signed(v), 0, 0, 1, 0), 0.0, 0.3),
        "shear_y": (lambda img, v: _affine(img, 1, 0, 0, _signed(v), 1, 0), 0.0, 0.3),
        "cutout": (_cutout, 0, 40),
        "translate_x": (lambda img, v: _affine(img, 1, 0, _signed(v), 0, 1, 0), 0.0, 100),  # pixels
        "translate_y": (lambda img, v: _affine(img, 1, 0, 0, 0, 1, _signed(v)), 0.0, 100),
    }

    def __init__(self, n: int = 2, m: float = 10) -> None:
        if not 0 <= m <= 30:
            raise ValueError(f"the strength of RandAugment (INPUT.RANDAUGMENT_M) must be within 0 and 30, but got {m}")
        self.n = n
        self.m = m

    def __call__(self, img: Image.Image) -> Image.Image:
        for operation, low, high in random.choices(list(self.OPERATIONS.values()), k=self.n):
            img = operation(img, low + self.m / 30 * (high - low))
        return img


keep_old_paths(__name__, "dassl.data.transforms.transforms")
