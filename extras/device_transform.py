"""DATALOADER.DEVICE_TRANSFORM: the loader crops training images; the device resizes, mirrors and normalises them.

The loader draws what is random, with the numbers that it would draw otherwise, and copies the crop out of the decoded
image; the rest, most of its work, is done for a whole batch on the device. The images are the same bit for bit.

Pillow resizes 8-bit images along the rows and along the columns, one after the other. Each pixel is a weighted sum of
pixels, the weights being whole multiples of 2^-22, and is rounded to 0 ... 255 after either pass. Products of float64
matrices hold such sums exactly, whatever the order that a device adds them in (they stay below 2^53). The weights
follow from the lengths alone; they are computed on the CPU, where the images are read, and kept.

`dassl.data.data_manager` plugs it in.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor
from torch.utils._pytree import tree_map_only
from torch.utils.data import default_collate
from torchvision import transforms as T
from yacs.config import CfgNode

SUPPORTED = ("random_resized_crop", "random_flip", "normalize")
OFF = "or set DATALOADER.DEVICE_TRANSFORM False"
MAX_PIXELS = 2**23  # resized together on the device: 24 bytes each
WEIGHT_UNITS = 2**22  # of one: Pillow's precision for 8-bit images
VERTICAL_FIRST_SINCE = 13  # Pillow's version from which images that lose more height than width begin with it

# How rows of one length are made of rows of another: the first pixel that each of the new ones is made of, (B, out),
# and the weights of it and those after it in units of 2^-22, (B, out, taps).
Taps = tuple[Tensor, Tensor]
Crop = tuple[np.ndarray, bool]  # pixels, (height, width, 3) uint8, part of the image's memory; whether to mirror them


def _bicubic(x: np.ndarray) -> np.ndarray:
    a, x = -0.5, np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


# By the name in INPUT.INTERPOLATION: the filter, and how far it reaches at full size, in pixels.
FILTERS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], float]] = {
    "bilinear": (lambda x: np.maximum(1.0 - np.abs(x), 0.0), 1.0),
    "bicubic": (_bicubic, 2.0),
}


def check_device_transform(cfg: CfgNode) -> None:
    """Raise ValueError, naming key, value and cure, if the config asks for what only the loader can do."""
    names, mode, problem = tuple(cfg.INPUT.TRANSFORMS), cfg.INPUT.INTERPOLATION, ""
    if cfg.INPUT.NO_TRANSFORM:
        problem = "the training transform, but INPUT.NO_TRANSFORM is True: set that to False"
    elif set(names) - set(SUPPORTED) or "random_resized_crop" not in names:
        problem = (
            f"random_resized_crop, with or without random_flip and normalize, but INPUT.TRANSFORMS is {names}: "
            f"set it to {SUPPORTED}"
        )
    elif mode not in FILTERS:
        problem = f"INPUT.INTERPOLATION {' and '.join(FILTERS)}, not {mode}: set it to one of them"
    elif cfg.DATALOADER.RETURN_IMG0:
        problem = "no images without augmentation, but DATALOADER.RETURN_IMG0 is True: set that to False"
    if problem:
        raise ValueError(f"DATALOADER.DEVICE_TRANSFORM does {problem}, {OFF}")


def divide(cfg: CfgNode, transform: Any, device: torch.device) -> tuple[RandomCrop, OnDevice, Callable[..., Any]]:
    """Divide a training transform: the loader's part, the device's, and what makes batches of the loader's items.

    Raises:
        ValueError: the config or the transform asks for something else, or the installed Pillow resizes otherwise.
    """
    check_device_transform(cfg)
    crop = RandomCrop(transform)
    return crop, OnDevice(crop, device), crop.collate


class RandomCrop:
    """The loader's part of a training transform; what it draws is what the whole transform would."""

    takes_pixels = True  # a kept image need not be made a PIL one

    def __init__(self, whole: Any) -> None:
        steps = list(getattr(whole, "transforms", ()))
        self.whole = whole
        self.crop = steps.pop(0) if steps else None
        self.flip = steps.pop(0) if steps and isinstance(steps[0], T.RandomHorizontalFlip) else None
        self.rest = T.Compose(steps)
        if not isinstance(self.crop, T.RandomResizedCrop) or not steps or not isinstance(steps[0], T.ToTensor):
            raise ValueError(
                "DATALOADER.DEVICE_TRANSFORM does the transform that INPUT.TRANSFORMS names, not one of your own: "
                f"leave that out, {OFF}"
            )

    def __call__(self, image: Any) -> Crop:
        """Crop an image, (height, width, 3) uint8 or PIL, with torch's global generator."""
        pixels = np.asarray(image)
        shape = torch.empty(pixels.shape[2], *pixels.shape[:2], device="meta")
        top, left, height, width = self.crop.get_params(shape, self.crop.scale, self.crop.ratio)
        flip = self.flip is not None and bool(torch.rand(1) < self.flip.p)
        return pixels[top : top + height, left : left + width], flip

    def __repr__(self) -> str:
        return repr(self.whole)

    def collate(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Make a batch of items whose `img` is a crop or a list of them; the batch's has what `OnDevice` needs of each.

        Together are resized crops that begin with the same pass, as many as memory is allowed for.
        """
        batch = default_collate([{key: value for key, value in item.items() if key != "img"} for item in items])
        views = []
        for crops in zip(*(i["img"] if isinstance(i["img"], list) else [i["img"]] for i in items), strict=True):
            pieces, order = [], []
            for first in (False, True):
                some = [i for i, (p, _) in enumerate(crops) if begins_vertically(*p.shape[:2], self.crop.size) == first]
                sides = zip(*(crops[index][0].shape[:2] for index in some), strict=True)
                at_once = max(1, MAX_PIXELS // math.prod(map(max, sides)))
                for start in range(0, len(some), at_once):
                    piece = [crops[index][0] for index in some[start : start + at_once]]
                    pieces.append({**self._padded(piece), "vertically": first})
                order += some
            flip = torch.tensor([flip for _, flip in crops])
            views.append({"pieces": pieces, "order": torch.tensor(order).argsort(), "flip": flip})
        return {"img": views, **batch}

    def _padded(self, crops: Sequence[np.ndarray]) -> dict[str, Any]:
        """Crops in one tensor, with their taps."""
        heights, widths = zip(*(crop.shape[:2] for crop in crops), strict=True)
        images = torch.zeros(len(crops), max(heights), max(widths), 3, dtype=torch.uint8)
        for row, crop in zip(images.numpy(), crops, strict=True):
            row[: crop.shape[0], : crop.shape[1]] = crop
        (height, width), name = self.crop.size, self.crop.interpolation.value
        return {"images": images, "down": stack_taps(heights, height, name), "across": stack_taps(widths, width, name)}


class OnDevice:
    """The device's part of a training transform."""

    def __init__(self, loaders: RandomCrop, device: torch.device) -> None:
        check_pillow()
        self.device = device
        # What ToTensor and Normalize make of each value of each channel, computed by them: (3 * 256,).
        ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
        self.values = loaders.rest(ramp).flatten().to(device)
        self.channels = (256 * torch.arange(3, device=device)).view(3, 1, 1)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the batch with its images, (B, 3, height, width) float32 on the device; a list for several views."""
        views = [self._images(view) for view in batch["img"]]
        return {**batch, "img": views[0] if len(views) == 1 else views}

    @torch.no_grad()
    def _images(self, view: dict[str, Any]) -> Tensor:
        # pinned on CUDA
        view = tree_map_only(Tensor, lambda tensor: tensor.to(self.device, non_blocking=True), view)
        pixels = torch.cat([resize_all(**piece) for piece in view["pieces"]])[view["order"]]
        pixels = torch.where(view["flip"].view(-1, 1, 1, 1), pixels.flip(-1), pixels)
        return self.values.take(pixels + self.channels)


@functools.lru_cache(maxsize=1024)  # few-shot training meets the same lengths again and again
def taps_of(length: int, out: int, interpolation: str) -> tuple[np.ndarray, np.ndarray]:
    """How Pillow makes a row of `out` pixels of one of `length`: (out,) and (out, taps), see `Taps`."""
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

    Neither side of the image may be a hundred times the other; `size` is the result's.
    """
    lost = height - size[0]
    recent = int(PIL.__version__.partition(".")[0]) >= VERTICAL_FIRST_SINCE
    return recent and lost > 0 and lost > 2 * (width - size[1])


def resize_all(images: Tensor, down: Taps, across: Taps, vertically: bool) -> Tensor:
    """Resize images of different sizes, each as `PIL.Image.resize` does, to (B, 3, *size) uint8.

    Args:
        images: (B, H, W, 3) uint8; an image fills its first rows and columns, what lies beyond does not matter.
        down, across: taps of their heights and widths, on the images' device.
        vertically: `begins_vertically` of all of them.
    """
    rows = images.transpose(2, 3).to(torch.float64, memory_format=torch.contiguous_format)  # (B, H, 3, W)
    for is_down in (vertically, not vertically):
        if is_down:  # to (B, out, 3, W)
            sums = torch.bmm(_matrices(down, images.shape[1]), rows.flatten(2)).unflatten(2, rows.shape[2:])
        else:  # to (B, H, 3, out)
            sums = torch.bmm(rows.flatten(1, 2), _matrices(across, images.shape[2]).mT).unflatten(1, rows.shape[1:3])
        rows = sums.add_(WEIGHT_UNITS // 2).div_(WEIGHT_UNITS).floor_().clamp_(0, 255)  # from units of 2^-22
    return rows.to(torch.uint8).transpose(1, 2).contiguous()


def _matrices(taps: Taps, widest: int) -> Tensor:
    """The taps as matrices, (B, out, widest), of whole numbers in float64."""
    first, weights = taps
    columns = first.unsqueeze(2) + torch.arange(weights.shape[2], device=first.device)
    matrices = torch.zeros(*first.shape, widest + weights.shape[2], dtype=torch.float64, device=first.device)
    return matrices.scatter_(2, columns, weights.to(torch.float64))[:, :, :widest]


@functools.cache
def check_pillow() -> None:
    """Raise ValueError, naming version and cure, if the installed Pillow resizes images otherwise than this file."""
    size, rng = (24, 20), np.random.default_rng(0)
    for (height, width), name in zip(((70, 61), (90, 40), (9, 33), (24, 50)), (*FILTERS, *FILTERS), strict=True):
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        pillow = Image.fromarray(pixels).resize(size[::-1], Image.Resampling[name.upper()])
        down, across = stack_taps([height], size[0], name), stack_taps([width], size[1], name)
        ours = resize_all(torch.from_numpy(pixels)[None], down, across, begins_vertically(height, width, size))
        if not np.array_equal(ours[0].permute(1, 2, 0).numpy(), np.asarray(pillow)):
            raise ValueError(
                f"Pillow {PIL.__version__} resizes images in another way than DATALOADER.DEVICE_TRANSFORM, which is "
                "held to Pillow 10 to 13: set it to False, or install Pillow 13.0"
            )
