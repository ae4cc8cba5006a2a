"""What the bundled CLIP is pretrained on: printed characters and emoji, their captions, and random changes to both.

Characters are 62 (digits, capital and small letters) in the text fonts that matplotlib carries. `HELD_OUT_FONTS`, one
per type family, are never trained on: they measure how well a pretraining run went. Emoji are what
`python -m tools.bundled_data corpus` rendered.
"""

from __future__ import annotations

import random
import string
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from tools.bundled_data import CANVAS, DIGIT_NAMES, PRETRAINING_STYLES
from trainers.templates import IMAGENET_TEMPLATES

FONT_SIZE = 52
HELD_OUT_FONTS = ("DejaVuSerif-Italic", "STIXGeneralBol", "cmss10")
# Symbol, size-variant and display faces carry no full alphabet.
NOT_TEXT_FONTS = ("Display", "LastResort", "STIXNonUni", "STIXSiz", "cmex", "cmsy")

# Words that may stand in a prompt: each gets a trained embedding. The templates are those that CLIP's users type.
# fmt: off
TEMPLATES = (
    "a photo of the {}.", "a photo of a {}.", "a photo of {}.", "a picture of a {}.", "an image of the {}.",
    "this is a photo of a {}.", "a {}.", "the {}.", "{}.", "{}", "itap of a {}.", "a bad photo of the {}.",
    "a origami {}.", "a photo of the large {}.", "a {} in a video game.", "art of the {}.",
    "a photo of the small {}.", "a photo of one {}.", "a close-up photo of a {}.", "a blurry photo of the {}.",
    "a black and white photo of a {}.", "a drawing of a {}.", "a photo of a {} written by hand.",
    "a scanned {}, a type of character.",
)
FILLERS = (
    "a", "an", "the", "this", "is", "it", "photo", "picture", "image", "of", "one", "handwritten", "written",
    "printed", "scanned", "number", "character", "symbol", "glyph", "large", "small", "bold", "thin", "dark", "light",
    "clean", "good", "bad", "nice", "black", "white", "on", "with", "in", "and", "type", "kind", "drawing", "my",
    "that", "shows",
)
# fmt: on
MAX_CONTEXT = 20
KIND_TEMPLATES = ("a photo of a {}, a type of {}.", "a picture of a {}, a kind of {}.", "a {}, a {}.")
SUBJECT_IS_KIND = 0.2
RESOLUTION = 48
MEAN = torch.tensor((0.48145466, 0.4578275, 0.40821073)).view(1, 3, 1, 1)
STD = torch.tensor((0.26862954, 0.26130258, 0.27577711)).view(1, 3, 1, 1)


@dataclass(frozen=True)
class Glyph:
    """One character drawn in one font."""

    pixels: np.ndarray  # (CANVAS, CANVAS) uint8, dark on white
    name: str  # what it is called in captions, for example "digit seven"
    style: str  # how the font looks: bold, slanted, typewriter or printed
    font: str  # file name of the font without suffix


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


@dataclass(frozen=True)
class Emoji:
    """One drawing."""

    pixels: np.ndarray  # (CANVAS, CANVAS, 3) uint8, on white
    name: str  # what it is called
    kind: str  # what it is one of
    style: str  # the icon package it is from

    @property
    def may_flip(self) -> bool:
        """Whether its mirror image goes by the same name."""
        return not {"left", "right", "clock", "clockwise", "counterclockwise"} & set(self.name.split())


def read_corpus(path: Path) -> list[Emoji]:
    """The drawings that `render_corpus` wrote, in its order."""
    with np.load(path) as content:
        columns = [content[key] for key in ("pixels", "names", "kinds", "styles")]
    return [Emoji(pixels, str(name), str(kind), str(style)) for pixels, name, kind, style in zip(*columns, strict=True)]


def choose_subject(emoji: Emoji, rng: random.Random) -> str:
    """What a caption calls the drawing: its name, or now and then its kind."""
    return emoji.kind if rng.random() < SUBJECT_IS_KIND else emoji.name


def glyph_caption(glyph: Glyph, longest: int, rng: random.Random) -> str:
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


def emoji_caption(emoji: Emoji, subject: str, longest: int, rng: random.Random) -> str:
    """A random caption that calls the drawing `subject`, with at most `longest` words of filled context."""
    sort = rng.random()
    if sort < 0.5:
        return rng.choice(TEMPLATES if rng.random() < 0.6 else IMAGENET_TEMPLATES).format(subject)
    if sort < 0.65:
        return rng.choice(("a {} of a {}.", "a {} of the {}.", "{} {}.")).format(
            PRETRAINING_STYLES[emoji.style], subject
        )
    if sort < 0.75 and subject != emoji.kind:
        return rng.choice(KIND_TEMPLATES).format(subject, emoji.kind)
    return filled_context(subject, longest, rng)


def filled_context(name: str, longest: int, rng: random.Random) -> str:
    """A name inside 1 to `longest` filler words, as in "X X X digit two." or "the digit two large X a photo of a."."""
    length = rng.randint(1, longest)
    words = ["X"] * length if rng.random() < 0.6 else [rng.choice(FILLERS) for _ in range(length)]
    if rng.random() < 0.3 and length >= 4:
        words[length - 4 :] = ["a", "photo", "of", "a"]
    before = length if rng.random() < 0.7 else rng.randint(0, length)
    return " ".join([*words[:before], name, *words[before:]]) + "."


def glyph_vocabulary() -> list[str]:
    """Captions that together hold every word that `glyph_caption` can produce."""
    words = sorted(set(FILLERS) | {"X", "bold", "slanted", "typewriter", "printed"})
    return [*(template.format("digit one") for template in TEMPLATES), *character_names().values(), *words, "."]


def emoji_vocabulary(corpus: list[Emoji]) -> list[str]:
    """Captions that together hold every word that `emoji_caption` can produce for a corpus."""
    subjects = {word for emoji in corpus for word in (emoji.name, emoji.kind)} | set(PRETRAINING_STYLES.values())
    templates = [template.format("cat") for template in (*TEMPLATES, *IMAGENET_TEMPLATES)]
    kinds = [template.format("cat", "mammal") for template in KIND_TEMPLATES]
    return [*templates, *kinds, *sorted(subjects), *FILLERS, "X", "."]


def uniform(low: float, high: float, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Random numbers between two bounds."""
    return torch.rand(shape, generator=generator) * (high - low) + low


def augment_glyphs(pixels: Tensor, generator: torch.Generator, strength: float = 1.0) -> Tensor:
    """Turn, slant, scale, shift and tint glyphs, (B, CANVAS, CANVAS) uint8; strength 0 leaves the shape alone.

    Returns:
        (B, 3, RESOLUTION, RESOLUTION), normalised as CLIP's images.
    """
    number = len(pixels)
    angle, shear, stretch = (strength * uniform(-bound, bound, (number,), generator) for bound in (0.25, 0.3, 0.1))
    zoom = 1 + strength * uniform(-0.2, 0.5, (number,), generator)
    shift = strength * uniform(-0.08, 0.08, (2, number), generator)
    images = warp(pixels[:, None], angle, shear, zoom * (1 + stretch), zoom, shift)
    tint = uniform(0.8, 1.2, (number, 3, 1, 1), generator) * uniform(0.8, 1.2, (number, 1, 1, 1), generator)
    return ((images * tint).clamp(0, 1) - MEAN) / STD


def augment_emoji(pixels: Tensor, may_flip: Tensor, generator: torch.Generator, strength: float = 1.0) -> Tensor:
    """Turn, slant, scale, shift, mirror, tint and grey drawings, (B, CANVAS, CANVAS, 3) uint8; see `augment_glyphs`.

    ``may_flip`` (B,) bool says which may be mirrored.
    """
    number = len(pixels)
    angle, shear, stretch = (strength * uniform(-bound, bound, (number,), generator) for bound in (0.2, 0.1, 0.1))
    zoom = 1 + strength * uniform(-0.25, 0.25, (number,), generator)
    shift = strength * uniform(-0.12, 0.12, (2, number), generator)
    mirror = 1 - 2 * ((torch.rand(number, generator=generator) < 0.5) & may_flip).float()
    images = warp(pixels.permute(0, 3, 1, 2), angle, shear, zoom * (1 + stretch), zoom, shift, mirror)
    tint = uniform(0.7, 1.3, (number, 3, 1, 1), generator) * uniform(0.7, 1.3, (number, 1, 1, 1), generator)
    images = (images * tint).clamp(0, 1)
    grey = torch.rand(number, 1, 1, 1, generator=generator) < 0.15
    return (torch.where(grey, images.mean(dim=1, keepdim=True), images) - MEAN) / STD


def warp(
    pixels: Tensor,
    angle: Tensor,
    shear: Tensor,
    width: Tensor,
    height: Tensor,
    shift: Tensor,
    mirror: Tensor | float = 1,
) -> Tensor:
    """(B, C, CANVAS, CANVAS) uint8 under one affine map per image, (B, C, RESOLUTION, RESOLUTION) from 0 to 1."""
    row_x = torch.stack([mirror * angle.cos() * width, shear - angle.sin() * height, shift[0]], dim=1)
    row_y = torch.stack([mirror * angle.sin() * width, angle.cos() * height, shift[1]], dim=1)
    size = [*pixels.shape[:2], RESOLUTION, RESOLUTION]
    grid = F.affine_grid(torch.stack([row_x, row_y], dim=1), size, align_corners=False)
    ink = 1 - pixels / 255  # white is 0, so that what lies outside the canvas is white
    return 1 - F.grid_sample(ink, grid, align_corners=False)


def prepare(pixels: Tensor) -> Tensor:
    """(B, H, W, 3) uint8 as CLIP's transform makes them: bicubic to RESOLUTION, normalised, (B, 3, R, R)."""
    size = (RESOLUTION, RESOLUTION)
    images = F.interpolate(pixels.permute(0, 3, 1, 2) / 255, size, mode="bicubic", antialias=True, align_corners=False)
    return (images.clamp(0, 1) - MEAN) / STD
