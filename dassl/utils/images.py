"""The one reader of image files, for the loader, for predictions and for checks: any file to 8-bit RGB, or an error."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
MAX_PIXELS = 150_000_000  # 450 MB decoded
SHORTER_EDGE = 224  # pixels that the shorter edge is resized to where nothing else is said

WHITE_8, WHITE_16 = 255, 65535
# How images of more than 8 bits are scaled, in words
BY_WHITE_POINT = f"16-bit images are scaled by their white point, {WHITE_16} (or all of their bits) becoming {WHITE_8}"
BY_DECLARED_RANGE = "signed, 32-bit and float images are scaled from the range that they declare"
BY_FOUND_RANGE = "signed, 32-bit and float images are scaled, each from the range of its own values"
SCALINGS = (BY_WHITE_POINT, BY_DECLARED_RANGE, BY_FOUND_RANGE)
PIECE = 2**22  # pixels that are brought to 8 bits at once: bounds the memory
# Numbers of TIFF's and EXIF's tags
BITS_PER_SAMPLE, PHOTOMETRIC, ORIENTATION, SAMPLE_FORMAT, SMALLEST, LARGEST = 258, 262, 274, 339, 340, 341
UNSIGNED, WHITE_IS_ZERO = 1, 0
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadableImageError(OSError):
    """An image file that cannot be decoded."""

    reason = ""  # why not, without the path


def open_image(path: str | os.PathLike[str], shorter_edge: int = SHORTER_EDGE) -> Image.Image:
    """Open an image file that nobody vouches for; as with `Image.open`, the pixels are decoded later.

    Only formats that Pillow decodes itself are taken: for PostScript it would start another program.

    Raises:
        UnreadableImageError: it says that it has too many pixels, or would have once its shorter edge is resized to
            `shorter_edge` pixels.
        OSError: it is no image of these formats.
    """
    image = Image.open(path, formats=IMAGE_FORMATS)
    width, height = image.size
    resized = math.ceil(shorter_edge * max(image.size) / max(min(image.size), 1)) * shorter_edge
    if width * height > MAX_PIXELS:
        problem = f"{width} x {height} pixels, {MAX_PIXELS:,} at most are decoded"
    elif resized > MAX_PIXELS:
        problem = (
            f"{width} x {height} pixels: too narrow, it would have {resized:,} pixels once its shorter edge has "
            f"{shorter_edge}, and {MAX_PIXELS:,} at most are made"
        )
    else:
        return image
    image.close()
    raise UnreadableImageError(problem)


def read_image(
    path: str | os.PathLike[str],
    draft_size: tuple[int, int] | None = None,
    exif_orientation: bool = False,
    shorter_edge: int = SHORTER_EDGE,
    say: Callable[[str], None] | None = None,
) -> Image.Image:
    """Return the image as RGB, 8 bits per channel.

    What Pillow decodes to 8 bits is converted by Pillow. Grey images of more bits, which Pillow would clip, are scaled:
    16 bits by their white point (65535 becomes 255); 32-bit integers and floats by the range that a TIFF file
    declares, else floats from 0 to 1 by 255, whole numbers from 0 to 255 not at all, and others from their least to
    their largest finite value. Of values that are no numbers, NaN is black.

    Args:
        path: image file.
        draft_size: least width and height in pixels at which a JPEG file may be decoded, which is then done at the
            smallest of 1, 1/2, 1/4 and 1/8 of its size; None for full size. Faster, but not the same image.
        exif_orientation: turn the image as its EXIF orientation says, as viewers do; one that is broken counts as none.
        shorter_edge: pixels that the shorter edge will be resized to: bounds what that makes of the image.
        say: told how an image of more than 8 bits was scaled, one of `SCALINGS`.

    Raises:
        FileNotFoundError: if there is no such file.
        UnreadableImageError: if it is not an image, is cut short or has too many pixels, naming the path.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no image at {path}")
    try:
        with open_image(path, shorter_edge) as image:
            if draft_size is not None:
                image.draft(None, draft_size)
            if image.mode in ("I", "F") or image.mode.startswith("I;16"):
                pixels, scaling = _to_8_bits(image)
                rgb = Image.fromarray(pixels).convert("RGB")
                if say is not None:
                    say(scaling)
            else:
                rgb = image.convert("RGB")
            if not exif_orientation:
                return rgb
            try:  # PNG has it behind the pixels, so only now
                turn = UPRIGHT.get(int(image.getexif().get(ORIENTATION, 1)))
            except Exception:  # as many kinds as decoders raise; the image itself is whole
                turn = None
            return rgb if turn is None else rgb.transpose(turn)
    except MemoryError:
        raise
    except Exception as error:  # Decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error ...
        cure = "replace the file or take it out of the split"
        unreadable = UnreadableImageError(f"cannot read the image {path} ({error}); {cure}")
        unreadable.reason = str(error)
        raise unreadable from error


def _to_8_bits(image: Image.Image) -> tuple[np.ndarray, str]:
    """Return grey values of an image of more than 8 bits, (height, width) uint8, and how they were scaled, in words."""
    values = np.asarray(image)
    tags = image.tag_v2 if image.format == "TIFF" else {}

    def tag(number: int, default: Any = None) -> Any:
        value = tags.get(number, default)
        return value[0] if isinstance(value, tuple) and value else value

    bits, unsigned = tag(BITS_PER_SAMPLE), tag(SAMPLE_FORMAT, UNSIGNED) == UNSIGNED
    declared = tag(SMALLEST), tag(LARGEST)
    sixteen = image.mode.startswith("I;16") or (image.mode == "I" and (image.format != "TIFF" or bits == 16))
    if image.mode == "I" and bits == 32 and unsigned and values.dtype == np.int32:
        values = values.view(np.uint32)  # Pillow has no such mode
    if sixteen and unsigned:
        scaling, low, high = BY_WHITE_POINT, 0, 2**bits - 1 if bits and bits < 16 else WHITE_16
    elif None not in declared and -math.inf < declared[0] < declared[1] < math.inf:
        scaling, low, high = BY_DECLARED_RANGE, *declared
    else:
        finite = values[np.isfinite(values)]
        if not finite.size:
            raise ValueError("it holds no finite value")
        scaling, low, high = BY_FOUND_RANGE, float(finite.min()), float(finite.max())
        if low >= 0 and high <= 1 and values.dtype.kind == "f":
            low, high = 0.0, 1.0
        elif low >= 0 and high <= WHITE_8 and bool((finite == np.rint(finite)).all()):
            low, high = 0.0, float(WHITE_8)
        elif low == high:  # of one value only: grey
            low, high = low - 1, high + 1
    pixels, flat = np.empty(values.size, np.uint8), values.reshape(-1)
    for start in range(0, flat.size, PIECE):
        piece = np.nan_to_num((flat[start : start + PIECE].astype(np.float64) - low) * (WHITE_8 / (high - low)), nan=0)
        pixels[start : start + PIECE] = np.rint(piece.clip(0, WHITE_8))
    if tag(PHOTOMETRIC) == WHITE_IS_ZERO:
        pixels = WHITE_8 - pixels
    return pixels.reshape(values.shape), scaling
