"""Printed characters and captions for them: the pretraining data of the bundled CLIP.

62 characters (digits, capital and small letters) in the text fonts that matplotlib carries. `HELD_OUT_FONTS`, one per
type family, are never trained on: they measure how well a pretraining run went.
"""

import random
import string
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

CANVAS = 64
FONT_SIZE = 52
DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
HELD_OUT_FONTS = ("DejaVuSerif-Italic", "STIXGeneralBol", "cmss10")
# Symbol, size-variant and display faces carry no full alphabet.
NOT_TEXT_FONTS = ("Display", "LastResort", "STIXNonUni", "STIXSiz", "cmex", "cmsy")

# Words that may stand in a prompt: each gets a trained embedding. The templates are those that CLIP's users type.
TEMPLATES = (
    "a photo of the {}.",
    "a photo of a {}.",
    "a photo of {}.",
    "a picture of a {}.",
    "an image of the {}.",
    "this is a photo of a {}.",
    "a {}.",
    "the {}.",
    "{}.",
    "{}",
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
    "a photo of one {}.",
    "a close-up photo of a {}.",
    "a blurry photo of the {}.",
    "a black and white photo of a {}.",
    "a drawing of a {}.",
    "a photo of a {} written by hand.",
    "a scanned {}, a type of character.",
)
# fmt: off
FILLERS = (
    "a", "an", "the", "this", "is", "it", "photo", "picture", "image", "of", "one", "handwritten", "written",
    "printed", "scanned", "number", "character", "symbol", "glyph", "large", "small", "bold", "thin", "dark", "light",
    "clean", "good", "bad", "nice", "black", "white", "on", "with", "in", "and", "type", "kind", "drawing", "my",
    "that", "shows",
)
# fmt: on
MAX_CONTEXT = 20


@dataclass(frozen=True)
class Glyph:
    """One character drawn in one font.

    Attributes:
        pixels: (CANVAS, CANVAS) uint8, dark on white.
        name: what it is called in captions, for example "digit seven".
        style: how the font looks: bold, slanted, typewriter or printed.
        font: file name of the font without suffix.
    """

    pixels: np.ndarray
    name: str
    style: str
    font: str


def character_names() -> dict[str, str]:
    """Each character and the name it goes by."""
    names = {str(value): f"digit {word}" for value, word in enumerate(DIGIT_NAMES)}
    names |= {letter: f"capital letter {letter.lower()}" for letter in string.ascii_uppercase}
    return names | {letter: f"small letter {letter}" for letter in string.ascii_lowercase}


def text_fonts() -> list[Path]:
    """The font files in matplotlib's package that draw all 62 characters, sorted by name."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return [path for path in sorted(folder.glob("*.ttf")) if not any(part in path.stem for part in NOT_TEXT_FONTS)]


def font_style(font: str) -> str:
    """One word for the look of a font, read from its file name."""
    if "Bol" in font or font == "cmb10":
        return "bold"
    if "Italic" in font or "Oblique" in font or font in ("cmti10", "cmmi10"):
        return "slanted"
    return "typewriter" if "Mono" in font or font == "cmtt10" else "printed"


def draw_character(character: str, font: ImageFont.FreeTypeFont) -> np.ndarray:
    """Draw one character in the middle of a white canvas, (CANVAS, CANVAS) uint8."""
    image = Image.new("L", (CANVAS, CANVAS), 255)
    pen = ImageDraw.Draw(image)
    left, top, right, bottom = pen.textbbox((0, 0), character, font=font)
    pen.text(((CANVAS - left - right) / 2, (CANVAS - top - bottom) / 2), character, font=font, fill=0)
    return np.asarray(image)


def draw_glyphs(fonts: list[Path]) -> list[Glyph]:
    """Every character in every font given."""
    glyphs = []
    for path in fonts:
        font, style = ImageFont.truetype(str(path), FONT_SIZE), font_style(path.stem)
        for character, name in character_names().items():
            glyphs.append(Glyph(draw_character(character, font), name, style, path.stem))
    return glyphs


def caption(glyph: Glyph, longest: int, rng: random.Random) -> str:
    """A random caption for a glyph, with at most `longest` words of context.

    Three kinds in turn: a template, the style of the font, and a run of "X" or of unrelated words before and after the
    name. The last kind trains the embeddings and positions that learned contexts start from.
    """
    kind = rng.random()
    if kind < 0.4:
        return rng.choice(TEMPLATES).format(glyph.name)
    if kind < 0.55:
        return rng.choice(("a {} {}.", "a photo of a {} {}.", "{} {}")).format(glyph.style, glyph.name)
    return filled_context(glyph.name, longest, rng)


def filled_context(name: str, longest: int, rng: random.Random) -> str:
    """A name inside 1 to `longest` filler words, as in "X X X digit two." or "the digit two large X a photo of a."."""
    length = rng.randint(1, longest)
    words = ["X"] * length if rng.random() < 0.6 else [rng.choice(FILLERS) for _ in range(length)]
    if rng.random() < 0.3 and length >= 4:
        words[length - 4 :] = ["a", "photo", "of", "a"]
    before = length if rng.random() < 0.7 else rng.randint(0, length)
    return " ".join([*words[:before], name, *words[before:]]) + "."


def vocabulary_captions() -> list[str]:
    """Captions that together hold every word that `caption` can produce."""
    words = sorted(set(FILLERS) | {"X", "bold", "slanted", "typewriter", "printed"})
    return [*(template.format("digit one") for template in TEMPLATES), *character_names().values(), *words, "."]
