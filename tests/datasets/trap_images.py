"""Tiny images of every kind that has tripped a reader up: grey, CMYK, palette, alpha, 16 bits, EXIF rotation."""

import functools
import io

from PIL import Image

WIDTH, HEIGHT = 6, 4
ROTATED = 6  # EXIF orientation: turn by 90 degrees to see it upright
ORIENTATION = 0x0112


def pixels(mode: str) -> Image.Image:
    """A ramp, so that rotation and clipping show."""
    ramp = Image.new("L", (WIDTH, HEIGHT))
    ramp.putdata([(x * HEIGHT + y) * 10 for y in range(HEIGHT) for x in range(WIDTH)])
    return ramp if mode == "L" else ramp.convert("RGB").convert(mode)


def sixteen_bits() -> Image.Image:
    """Values beyond 255, as microscopes and depth cameras write them."""
    image = Image.new("I;16", (WIDTH, HEIGHT))
    image.putdata([value * 2000 for value in range(WIDTH * HEIGHT)])
    return image


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """The image as the bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@functools.cache
def trap_images() -> dict[str, bytes]:
    """The bytes of one image of every kind."""
    exif = Image.Exif()
    exif[ORIENTATION] = ROTATED
    return {
        "rgb": encoded(pixels("RGB"), "JPEG"),
        "grey": encoded(pixels("L"), "JPEG"),
        "cmyk": encoded(pixels("CMYK"), "JPEG"),
        "rotated": encoded(pixels("RGB"), "JPEG", exif=exif),
        "palette": encoded(pixels("P"), "PNG", transparency=0),
        "alpha": encoded(pixels("RGBA"), "PNG"),
        "grey alpha": encoded(pixels("L").convert("LA"), "PNG"),
        "bilevel": encoded(pixels("1"), "PNG"),
        "sixteen bits": encoded(sixteen_bits(), "PNG"),
        "webp": encoded(pixels("RGB"), "WEBP"),
        "gif": encoded(pixels("P"), "GIF"),
    }
