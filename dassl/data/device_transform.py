"""DATALOADER.DEVICE_TRANSFORM: the loader crops training images; the device resizes, mirrors and normalises them.

The loader draws what is random, with the numbers that it would draw otherwise, and copies the crop out of the decoded
image; the rest, most of its work, is done for a whole batch on the device. The images are the same bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate
from torchvision import transforms as T
from yacs.config import CfgNode

from .transforms.pillow_resize import FILTERS, Taps, begins_vertically, check_pillow, resize_all, stack_taps

SUPPORTED = ("random_resized_crop", "random_flip", "normalize")
OFF = "or set DATALOADER.DEVICE_TRANSFORM False"
MOST_PIXELS = 2**23  # in one piece on the device: 24 bytes each


def check_device_transform(cfg: CfgNode) -> None:
    """Check that a configuration with DATALOADER.DEVICE_TRANSFORM asks for nothing that only the loader can do.

    Raises:
        ValueError: if it does, naming the key, its value and the cure.
    """
    names, need = tuple(cfg.INPUT.TRANSFORMS), "DATALOADER.DEVICE_TRANSFORM does"
    if cfg.INPUT.NO_TRANSFORM:
        raise ValueError(f"{need} the training transform, but INPUT.NO_TRANSFORM is True: set that to False, {OFF}")
    if set(names) - set(SUPPORTED) or "random_resized_crop" not in names:
        raise ValueError(
            f"{need} random_resized_crop, with or without random_flip and normalize, but INPUT.TRANSFORMS is {names}: "
            f"set it to {SUPPORTED}, {OFF}"
        )
    if cfg.INPUT.INTERPOLATION not in FILTERS:
        raise ValueError(
            f"{need} INPUT.INTERPOLATION {' and '.join(FILTERS)}, not {cfg.INPUT.INTERPOLATION}: "
            f"set it to one of them, {OFF}"
        )
    if cfg.DATALOADER.RETURN_IMG0:
        raise ValueError(
            f"{need} no images without augmentation, but DATALOADER.RETURN_IMG0 is True: set that to False, {OFF}"
        )


@dataclass(frozen=True)
class Crop:
    """A random crop of a decoded image.

    Attributes:
        pixels: (height, width, 3) uint8, part of the image's memory.
        size: height and width that it is to get.
        interpolation: by which it gets them, key of `FILTERS`.
        flip: whether it is to be mirrored.
        vertically: whether Pillow would resize its columns first.
    """

    pixels: np.ndarray
    size: tuple[int, int]
    interpolation: str
    flip: bool
    vertically: bool


class RandomCrop:
    """The loader's part of a training transform; what it draws is what the whole transform would.

    Args:
        whole: of `build_transform`.

    Raises:
        ValueError: if it is not made of a random resized crop, a random flip or none, and steps after ToTensor.
    """

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
        part = pixels[top : top + height, left : left + width]
        size = tuple(self.crop.size)
        return Crop(part, size, self.crop.interpolation.value, flip, begins_vertically(height, width, size))

    def __repr__(self) -> str:
        return repr(self.whole)


def collate_crops(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A batch of a `RandomCrop`'s data set; `img` holds what `OnDevice` needs, one entry per view."""
    batch = default_collate([{key: value for key, value in item.items() if key != "img"} for item in items])
    views = [item["img"] if isinstance(item["img"], list) else [item["img"]] for item in items]
    return {"img": [_pack(crops) for crops in zip(*views, strict=True)], **batch}


def _pack(crops: Sequence[Crop]) -> dict[str, Any]:
    pieces = list(_pieces(crops))
    order = [index for piece in pieces for index in piece]
    return {
        "pieces": [_piece([crops[index] for index in piece]) for piece in pieces],
        "order": torch.tensor(order).argsort(),
        "flip": torch.tensor([crop.flip for crop in crops]),
    }


def _pieces(crops: Sequence[Crop]) -> Iterator[list[int]]:
    """Indices of the crops that are resized together: in the same order of passes, and within a bound of memory."""
    for vertically in (False, True):
        piece: list[int] = []
        for index, crop in enumerate(crops):
            if crop.vertically != vertically:
                continue
            shapes = [crops[other].pixels.shape for other in (*piece, index)]
            padded = len(shapes) * max(shape[0] for shape in shapes) * max(shape[1] for shape in shapes)
            if piece and padded > MOST_PIXELS:
                yield piece
                piece = []
            piece.append(index)
        if piece:
            yield piece


def _piece(crops: Sequence[Crop]) -> dict[str, Any]:
    heights, widths = zip(*(crop.pixels.shape[:2] for crop in crops), strict=True)
    pixels = torch.zeros(len(crops), max(heights), max(widths), 3, dtype=torch.uint8)
    for row, crop in zip(pixels.numpy(), crops, strict=True):
        row[: crop.pixels.shape[0], : crop.pixels.shape[1]] = crop.pixels
    (height, width), name = crops[0].size, crops[0].interpolation
    down, across = stack_taps(heights, height, name), stack_taps(widths, width, name)
    return {"pixels": pixels, "down": down, "across": across, "vertically": crops[0].vertically}


class OnDevice:
    """The device's part of a training transform.

    Args:
        loaders: the loader's part.
        device: where the images are wanted.

    Raises:
        ValueError: if the installed Pillow resizes in another way.
    """

    def __init__(self, loaders: RandomCrop, device: torch.device) -> None:
        check_pillow()
        self.device = device
        # What ToTensor and Normalize make of each value of each channel, computed by them: (3 * 256,).
        ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
        self.values = loaders.rest(ramp).flatten().to(device)
        self.channels = (256 * torch.arange(3, device=device)).view(3, 1, 1)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch with its images, (B, 3, height, width) float32 on the device; a list of them for several views."""
        views = [self._images(view) for view in batch["img"]]
        return {**batch, "img": views[0] if len(views) == 1 else views}

    @torch.no_grad()
    def _images(self, view: dict[str, Any]) -> Tensor:
        pixels = torch.cat([self._resized(piece) for piece in view["pieces"]])[self._moved(view["order"])]
        flip = self._moved(view["flip"]).view(-1, 1, 1, 1)
        pixels = torch.where(flip, pixels.flip(-1), pixels)
        return self.values.take(pixels + self.channels)

    def _resized(self, piece: dict[str, Any]) -> Tensor:
        down, across = (self._moved_taps(piece[name]) for name in ("down", "across"))
        return resize_all(self._moved(piece["pixels"]), down, across, piece["vertically"])

    def _moved_taps(self, taps: Taps) -> Taps:
        first, weights = taps
        return self._moved(first), self._moved(weights)

    def _moved(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, non_blocking=True)  # pinned on CUDA
