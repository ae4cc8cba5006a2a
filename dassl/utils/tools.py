"""Small tools: images, lists, a description of the machine; and, as in Dassl, the names of `files` and `registry`."""

from __future__ import annotations

import functools
import os
import sys
from typing import Any

import PIL
import torch
from PIL import Image

from .files import check_isfile, download_url, listdir_nohidden, mkdir_if_missing, read_json, write_json
from .random_state import set_random_seed
from .registry import check_availability, get_most_similar_str_to_a_from_b

__all__ = [
    "UnreadableImageError",
    "check_availability",
    "check_isfile",
    "collect_env_info",
    "download_url",
    "get_most_similar_str_to_a_from_b",
    "listdir_nohidden",
    "mkdir_if_missing",
    "open_image",
    "read_image",
    "read_json",
    "set_random_seed",
    "tolist_if_not",
    "write_json",
]


IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
MAX_PIXELS = 150_000_000  # 450 MB decoded


class UnreadableImageError(OSError):
    """An image file that cannot be decoded."""


def open_image(path: str | os.PathLike[str]) -> Image.Image:
    """Open an image file that nobody vouches for; as with `Image.open`, the pixels are decoded later.

    Only formats that Pillow decodes itself are taken: for PostScript it would start another program.

    Raises:
        UnreadableImageError: it says that it has too many pixels.
        OSError: it is no image of these formats.
    """
    image = Image.open(path, formats=IMAGE_FORMATS)
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise UnreadableImageError(f"{image.width} x {image.height} pixels, {MAX_PIXELS:,} at most are decoded")
    return image


def read_image(path: str | os.PathLike[str], draft_size: tuple[int, int] | None = None) -> Image.Image:
    """Return the image as RGB.

    Args:
        path: image file.
        draft_size: least width and height in pixels at which a JPEG file may be decoded, which is then done at the
            smallest of 1, 1/2, 1/4 and 1/8 of its size; None for full size. Faster, but not the same image.

    Raises:
        FileNotFoundError: if there is no such file.
        UnreadableImageError: if it is not an image or is cut short, naming the path.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no image at {path}")
    try:
        with open_image(path) as image:
            if draft_size is not None:
                image.draft(None, draft_size)
            return image.convert("RGB")
    except MemoryError:
        raise
    except Exception as error:  # Decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error ...
        raise UnreadableImageError(
            f"cannot read the image {path} ({error}); replace the file or take it out of the split"
        ) from error


def tolist_if_not(x: Any) -> list[Any]:
    """Return `x` if it is a list, else a list of it."""
    return x if isinstance(x, list) else [x]


@functools.cache  # it runs programs, pip among them, that take longer than a short run
def collect_env_info() -> str:
    """Return a description of the machine and of the installed versions."""
    from torch.utils.collect_env import get_pretty_env_info

    try:
        collected = get_pretty_env_info()
    except Exception as error:  # PyTorch 2.4 fails where there is no pip; no run may end for that
        collected = f"PyTorch version: {torch.__version__}\nPython version: {sys.version}\n(no more: {error})"
    return f"{collected}\n        Pillow ({PIL.__version__})"
