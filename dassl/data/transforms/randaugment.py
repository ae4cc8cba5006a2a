"""RandAugment (Cubuk et al., 2019, https://arxiv.org/abs/1909.13719) in Dassl's three variants.

An operation is a function of an image and a strength; a list gives each its range of strengths.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

Operation = Callable[[Image.Image, float], Image.Image]
Ranges = list[tuple[Operation, float, float]]

CUTOUT_COLOR = (125, 123, 114)


def _random_sign(v: float) -> float:
    return -v if random.random() > 0.5 else v


def _affine(img: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    return img.transform(img.size, Image.Transform.AFFINE, matrix)


def shear_x(img: Image.Image, v: float) -> Image.Image:
    """Shear sideways by a share `v` of the height, in a random direction."""
    return _affine(img, (1, _random_sign(v), 0, 0, 1, 0))


def shear_y(img: Image.Image, v: float) -> Image.Image:
    """Shear upwards by a share `v` of the width, in a random direction."""
    return _affine(img, (1, 0, 0, _random_sign(v), 1, 0))


def translate_x_abs(img: Image.Image, v: float) -> Image.Image:
    """Shift sideways by `v` pixels, in a random direction."""
    return _affine(img, (1, 0, _random_sign(v), 0, 1, 0))


def translate_y_abs(img: Image.Image, v: float) -> Image.Image:
    """Shift upwards by `v` pixels, in a random direction."""
    return _affine(img, (1, 0, 0, 0, 1, _random_sign(v)))


def translate_x(img: Image.Image, v: float) -> Image.Image:
    """Shift sideways by a share `v` of the width, in a random direction."""
    return translate_x_abs(img, v * img.size[0])


def translate_y(img: Image.Image, v: float) -> Image.Image:
    """Shift upwards by a share `v` of the height, in a random direction."""
    return translate_y_abs(img, v * img.size[1])


def rotate(img: Image.Image, v: float) -> Image.Image:
    """Rotate by `v` degrees, in a random direction."""
    return img.rotate(_random_sign(v))


def auto_contrast(img: Image.Image, v: float) -> Image.Image:
    """Stretch the histogram to the full range."""
    return ImageOps.autocontrast(img)


def equalize(img: Image.Image, v: float) -> Image.Image:
    """Flatten the histogram."""
    return ImageOps.equalize(img)


def invert(img: Image.Image, v: float) -> Image.Image:
    """Negate the image."""
    return ImageOps.invert(img)


def identity(img: Image.Image, v: float) -> Image.Image:
    """Leave the image as it is."""
    return img


def posterize(img: Image.Image, v: float) -> Image.Image:
    """Keep the `int(v)` highest bits."""
    return ImageOps.posterize(img, int(v))


def solarize(img: Image.Image, v: float) -> Image.Image:
    """Negate the values from `v` on."""
    return ImageOps.solarize(img, v)


def solarize_add(img: Image.Image, v: float) -> Image.Image:
    """Add `v` to all values, then negate those from 128 on."""
    brighter = np.clip(np.asarray(img, dtype=np.int64) + int(v), 0, 255).astype(np.uint8)
    return ImageOps.solarize(Image.fromarray(brighter), 128)


def contrast(img: Image.Image, v: float) -> Image.Image:
    """Scale the contrast by `v`."""
    return ImageEnhance.Contrast(img).enhance(v)


def color(img: Image.Image, v: float) -> Image.Image:
    """Scale the saturation by `v`."""
    return ImageEnhance.Color(img).enhance(v)


def brightness(img: Image.Image, v: float) -> Image.Image:
    """Scale the brightness by `v`."""
    return ImageEnhance.Brightness(img).enhance(v)


def sharpness(img: Image.Image, v: float) -> Image.Image:
    """Scale the sharpness by `v`."""
    return ImageEnhance.Sharpness(img).enhance(v)


def cutout_abs(img: Image.Image, v: float) -> Image.Image:
    """Paint a square of side `v` pixels grey, around a random point."""
    width, height = img.size
    x0 = int(max(0, np.random.uniform(width) - v / 2))
    y0 = int(max(0, np.random.uniform(height) - v / 2))
    img = img.copy()
    ImageDraw.Draw(img).rectangle((x0, y0, min(width, x0 + v), min(height, y0 + v)), CUTOUT_COLOR)
    return img


def randaugment_list() -> Ranges:
    """Return the 16 operations of `RandAugment` with their ranges."""
    return [
        (auto_contrast, 0, 1),
        (equalize, 0, 1),
        (invert, 0, 1),
        (rotate, 0, 30),
        (posterize, 4, 8),
        (solarize, 0, 256),
        (solarize_add, 0, 110),
        (color, 0.1, 1.9),
        (contrast, 0.1, 1.9),
        (brightness, 0.1, 1.9),
        (sharpness, 0.1, 1.9),
        (shear_x, 0.0, 0.3),
        (shear_y, 0.0, 0.3),
        (cutout_abs, 0, 40),
        (translate_x_abs, 0.0, 100),
        (translate_y_abs, 0.0, 100),
    ]


def _geometric_list(low: float, high: float) -> Ranges:
    """Return what the other two variants share; enhancements range from `low` to `high`."""
    return [
        (auto_contrast, 0, 1),
        (brightness, low, high),
        (color, low, high),
        (contrast, low, high),
        (equalize, 0, 1),
        (identity, 0, 1),
        (posterize, 4, 8),
        (rotate, -30, 30),
        (sharpness, low, high),
        (shear_x, -0.3, 0.3),
        (shear_y, -0.3, 0.3),
        (solarize, 0, 256),
        (translate_x, -0.3, 0.3),
        (translate_y, -0.3, 0.3),
    ]


def randaugment_list2() -> Ranges:
    """Return the 15 operations of `RandAugment2` with their ranges, in Dassl's order: a seed draws by position."""
    operations = _geometric_list(0.1, 1.9)
    return [*operations[:6], (invert, 0, 1), *operations[6:]]


def fixmatch_list() -> Ranges:
    """Return the 14 operations of FixMatch (Sohn et al., 2020, https://arxiv.org/abs/2001.07685) with their ranges."""
    return _geometric_list(0.05, 0.95)


class RandAugment:
    """Apply `n` random operations, all at the strength `m`.

    Args:
        n: operations per image.
        m: strength, from 0 to 30.

    Raises:
        ValueError: if the strength is outside.
    """

    def __init__(self, n: int = 2, m: float = 10) -> None:
        if not 0 <= m <= 30:
            raise ValueError(f"the strength of RandAugment (INPUT.RANDAUGMENT_M) must be within 0 and 30, but got {m}")
        self.n = n
        self.m = m
        self.augment_list = randaugment_list()

    def __call__(self, img: Image.Image) -> Image.Image:
        for operation, low, high in random.choices(self.augment_list, k=self.n):
            img = operation(img, low + self.m / 30 * (high - low))
        return img


class RandAugment2:
    """Draw `n` random operations, apply each with probability `p` at a random strength."""

    def __init__(self, n: int = 2, p: float = 0.6) -> None:
        self.n = n
        self.p = p
        self.augment_list = randaugment_list2()

    def __call__(self, img: Image.Image) -> Image.Image:
        for operation, low, high in random.choices(self.augment_list, k=self.n):
            if random.random() <= self.p:
                img = operation(img, low + (high - low) * random.random())
        return img


class RandAugmentFixMatch:
    """Apply `n` random operations, each at a random strength, as FixMatch does."""

    def __init__(self, n: int = 2) -> None:
        self.n = n
        self.augment_list = fixmatch_list()

    def __call__(self, img: Image.Image) -> Image.Image:
        for operation, low, high in random.choices(self.augment_list, k=self.n):
            img = operation(img, low + (high - low) * random.random())
        return img
