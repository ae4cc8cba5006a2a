"""Resizing as Pillow does it, to the last bit, as two matrix products per image on any device.

Pillow resizes 8-bit images along the rows and along the columns, one after the other. Each pixel is a weighted sum of
pixels, the weights being whole multiples of 2^-22, and is rounded to 0 ... 255 after either pass. Products of float64
matrices hold such sums exactly, whatever the order that a device adds them in (they stay below 2^53). The weights
follow from the lengths alone; they are computed on the CPU, where the images are read, and kept.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor

WEIGHT_UNITS = 2**22  # of one: Pillow's precision for 8-bit images
LARGEST = 255
VERTICAL_FIRST_SINCE = 13  # Pillow's version from which images that lose more height than width begin with it

# How rows of one length are made of rows of another: the first pixel that each of the new ones is made of, (B, out),
# and the weights of it and those after it in units of 2^-22, (B, out, taps).
Taps = tuple[Tensor, Tensor]


def _bilinear(x: np.ndarray) -> np.ndarray:
    return np.maximum(1.0 - np.abs(x), 0.0)


def _bicubic(x: np.ndarray) -> np.ndarray:
    a, x = -0.5, np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


# By the name in INPUT.INTERPOLATION: the filter, and how far it reaches at full size, in pixels.
FILTERS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], float]] = {
    "bilinear": (_bilinear, 1.0),
    "bicubic": (_bicubic, 2.0),
}


@functools.lru_cache(maxsize=1024)  # few-shot training meets the same lengths again and again
def taps_of(length: int, out: int, interpolation: str) -> tuple[np.ndarray, np.ndarray]:
    """How Pillow makes a row of `out` pixels of one of `length`; not to be changed.

    Args:
        length: of the row.
        out: of the resized row.
        interpolation: key of `FILTERS`.

    Returns:
        (out,) and (out, taps): see `Taps`; weights beyond the row are 0.
    """
    kernel, reach = FILTERS[interpolation]
    scale = length / out
    stretch = max(scale, 1.0)  # shrinking averages over more pixels
    centre = (np.arange(out) + 0.5) * scale
    first = np.maximum(np.trunc(centre - reach * stretch + 0.5), 0.0)
    end = np.minimum(np.trunc(centre + reach * stretch + 0.5), length)
    pixel = first[:, None] + np.arange(int((end - first).max()))
    weights = kernel((pixel - centre[:, None] + 0.5) * (1.0 / stretch))
    weights[pixel >= end[:, None]] = 0.0
    weights = weights / weights.cumsum(1)[:, -1:] * WEIGHT_UNITS  # added one after the other, as Pillow does
    return first.astype(np.int32), np.trunc(weights + np.copysign(0.5, weights)).astype(np.int32)


def stack_taps(lengths: Sequence[int], out: int, interpolation: str) -> Taps:
    """The taps of several rows, of length `out` all, those of short rows padded with 0."""
    found = [taps_of(length, out, interpolation) for length in lengths]
    stacked = np.zeros((len(found), out, max(weights.shape[1] for _, weights in found)), dtype=np.int32)
    for row, (_, weights) in zip(stacked, found, strict=True):
        row[:, : weights.shape[1]] = weights
    return torch.from_numpy(np.stack([first for first, _ in found])), torch.from_numpy(stacked)


def begins_vertically(height: int, width: int, size: tuple[int, int]) -> bool:
    """Whether the installed Pillow resizes the columns of an image first: it rounds in between, so the order counts.

    Args:
        height, width: of the image; neither is a hundred times the other.
        size: height and width of the result.
    """
    lost = height - size[0]
    recent = int(PIL.__version__.partition(".")[0]) >= VERTICAL_FIRST_SINCE
    return recent and lost > 0 and lost > 2 * (width - size[1])


def resize_all(images: Tensor, down: Taps, across: Taps, vertically: bool) -> Tensor:
    """Resize images of different sizes, each as `PIL.Image.resize` does.

    Args:
        images: (B, H, W, 3) uint8; an image fills its first rows and columns, what lies beyond does not matter.
        down: of their heights, on the images' device.
        across: of their widths, on the images' device.
        vertically: `begins_vertically` of all of them.

    Returns:
        (B, 3, *size) uint8.
    """
    passes = (_down, _matrices(down, images.shape[1])), (_across, _matrices(across, images.shape[2]))
    rows = images.transpose(2, 3).to(torch.float64, memory_format=torch.contiguous_format)  # (B, H, 3, W)
    for multiply, weights in passes if vertically else reversed(passes):
        # pixels from sums in units of 2^-22
        rows = multiply(rows, weights).add_(WEIGHT_UNITS // 2).div_(WEIGHT_UNITS).floor_().clamp_(0, LARGEST)
    return rows.to(torch.uint8).transpose(1, 2).contiguous()


def _matrices(taps: Taps, widest: int) -> Tensor:
    """(B, out, widest) whole numbers in float64."""
    first, weights = taps
    count = weights.shape[2]
    columns = first.unsqueeze(2) + torch.arange(count, device=first.device)
    matrices = torch.zeros(*first.shape, widest + count, dtype=torch.float64, device=first.device)
    return matrices.scatter_(2, columns, weights.to(torch.float64))[:, :, :widest]


def _across(rows: Tensor, weights: Tensor) -> Tensor:
    """(B, H, 3, W) to (B, H, 3, out)."""
    return torch.bmm(rows.flatten(1, 2), weights.mT).unflatten(1, rows.shape[1:3])


def _down(rows: Tensor, weights: Tensor) -> Tensor:
    """(B, H, 3, W) to (B, out, 3, W)."""
    return torch.bmm(weights, rows.flatten(2, 3)).unflatten(2, rows.shape[2:4])


@functools.cache
def check_pillow() -> None:
    """Check on some images that the installed Pillow resizes as this file does.

    Raises:
        ValueError: if it does not, naming its version and the cure.
    """
    size, rng = (24, 20), np.random.default_rng(0)
    for (height, width), name in zip(((70, 61), (90, 40), (9, 33), (24, 50)), (*FILTERS, *FILTERS), strict=True):
        pixels = rng.integers(0, LARGEST + 1, (height, width, 3), dtype=np.uint8)
        pillow = Image.fromarray(pixels).resize(size[::-1], Image.Resampling[name.upper()])
        down, across = stack_taps([height], size[0], name), stack_taps([width], size[1], name)
        ours = resize_all(torch.from_numpy(pixels)[None], down, across, begins_vertically(height, width, size))
        if not np.array_equal(ours[0].permute(1, 2, 0).numpy(), np.asarray(pillow)):
            raise ValueError(
                f"Pillow {PIL.__version__} resizes images in another way than DATALOADER.DEVICE_TRANSFORM, which is "
                "held to Pillow 10 to 13: set it to False, or install Pillow 13.0"
            )
