"""Resizing as Pillow does it, to the last bit, as two matrix products per image on any device.

Pillow resizes 8-bit images along the rows and along the columns, one after the other. Each pixel is a weighted sum of
pixels, the weights being whole multiples of 2^-22, and is rounded to 0 ... 255 after either pass. Products of float64
matrices hold such sums exactly, whatever the order that a device adds them in (they stay below 2^53).
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor

WEIGHT_UNITS = 2**22  # of one: Pillow's precision for 8-bit images
LARGEST = 255
VERTICAL_FIRST_SINCE = 13  # Pillow's version from which images that lose more height than width begin with it


def _bilinear(x: Tensor) -> Tensor:
    return (1.0 - x.abs()).clamp(min=0.0)


def _bicubic(x: Tensor) -> Tensor:
    a, x = -0.5, x.abs()
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return torch.where(x < 1.0, near, torch.where(x < 2.0, far, 0.0))


# By the name in INPUT.INTERPOLATION: the filter, and how far it reaches at full size, in pixels.
FILTERS: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "bilinear": (_bilinear, 1.0),
    "bicubic": (_bicubic, 2.0),
}


def resize_weights(lengths: Tensor, widest: int, out: int, interpolation: str) -> Tensor:
    """The weights with which Pillow makes rows of `out` pixels of rows of other lengths, in units of 2^-22.

    Args:
        lengths: (B,), of the rows.
        widest: columns of the result, at least the largest length.
        out: length of the resized rows.
        interpolation: key of `FILTERS`.

    Returns:
        (B, out, widest) whole numbers in float64, 0 beyond a row's length.
    """
    kernel, reach = FILTERS[interpolation]
    length = lengths.to(torch.float64).view(-1, 1, 1)
    scale = length / out
    stretch = scale.clamp(min=1.0)  # shrinking averages over more pixels
    centre = (torch.arange(out, dtype=torch.float64, device=lengths.device).view(1, -1, 1) + 0.5) * scale
    first = (centre - reach * stretch + 0.5).floor().clamp(min=0.0)
    end = torch.minimum((centre + reach * stretch + 0.5).floor(), length)
    pixel = torch.arange(widest, dtype=torch.float64, device=lengths.device)
    weights = kernel((pixel - centre + 0.5) * (1.0 / stretch))
    weights = torch.where((pixel >= first) & (pixel < end), weights, 0.0)
    weights = weights / weights.sum(-1, keepdim=True) * WEIGHT_UNITS
    return (weights + torch.where(weights < 0, -0.5, 0.5)).trunc_()


def begins_vertically(height: int, width: int, size: tuple[int, int]) -> bool:
    """Whether the installed Pillow resizes the columns of an image first: it rounds in between, so the order counts.

    Args:
        height, width: of the image; neither is a hundred times the other.
        size: height and width of the result.
    """
    lost = height - size[0]
    recent = int(PIL.__version__.partition(".")[0]) >= VERTICAL_FIRST_SINCE
    return recent and lost > 0 and lost > 2 * (width - size[1])


def resize_all(images: Tensor, sizes: Tensor, size: tuple[int, int], interpolation: str, vertically: bool) -> Tensor:
    """Resize images of different sizes, each as `PIL.Image.resize` does.

    Args:
        images: (B, H, W, 3) uint8; an image fills its first rows and columns, what lies beyond does not matter.
        sizes: (B, 2), height and width of each, on the images' device.
        size: height and width of the results.
        interpolation: key of `FILTERS`.
        vertically: `begins_vertically` of all of them.

    Returns:
        (B, 3, *size) uint8.
    """
    down = resize_weights(sizes[:, 0], images.shape[1], size[0], interpolation)
    across = resize_weights(sizes[:, 1], images.shape[2], size[1], interpolation)
    rows = images.transpose(2, 3).to(torch.float64, memory_format=torch.contiguous_format)  # (B, H, 3, W)
    if vertically:
        rows = _across(_down(rows, down), across)
    else:
        rows = _down(_across(rows, across), down)
    return rows.to(torch.uint8).transpose(1, 2).contiguous()


def _across(rows: Tensor, weights: Tensor) -> Tensor:
    """(B, H, 3, W) to (B, H, 3, out)."""
    return _rounded(torch.bmm(rows.flatten(1, 2), weights.mT)).unflatten(1, rows.shape[1:3])


def _down(rows: Tensor, weights: Tensor) -> Tensor:
    """(B, H, 3, W) to (B, out, 3, W)."""
    return _rounded(torch.bmm(weights, rows.flatten(2, 3))).unflatten(2, rows.shape[2:4])


def _rounded(sums: Tensor) -> Tensor:
    """Pixels from sums in units of 2^-22, in place."""
    return sums.add_(WEIGHT_UNITS // 2).div_(WEIGHT_UNITS).floor_().clamp_(0, LARGEST)


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
        order = begins_vertically(height, width, size)
        ours = resize_all(torch.from_numpy(pixels)[None], torch.tensor([[height, width]]), size, name, order)
        if not np.array_equal(ours[0].permute(1, 2, 0).numpy(), np.asarray(pillow)):
            raise ValueError(
                f"Pillow {PIL.__version__} resizes images in another way than DATALOADER.DEVICE_TRANSFORM, which is "
                "held to Pillow 10 to 13: set it to False, or install Pillow 13.0"
            )
