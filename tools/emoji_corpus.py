"""Emoji in six drawing styles: images and captions that the bundled CLIP is pretrained on.

    python -m tools.emoji_corpus --packages node_modules --out runs/emoji_corpus.npz

renders them once (see `tools/make_emoji.py` for the packages). `HELD_OUT_STYLE` is never trained on: it measures how
well a run goes. No style here is one of the shipped data set's.
"""

import argparse
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tools.emoji_icons import Catalogue, draw, read_icons, resvg
from tools.glyphs import FILLERS, TEMPLATES, filled_context
from trainers.templates import IMAGENET_TEMPLATES

# How captions call each style.
STYLES = {
    "twemoji": "flat drawing",
    "emojione": "colorful drawing",
    "emojione-monotone": "black and white drawing",
    "noto-v1": "cartoon",
    "streamline-emojis": "sketch",
    "fxemoji": "icon",
}
HELD_OUT_STYLE = "fxemoji"
KIND_TEMPLATES = ("a photo of a {}, a type of {}.", "a picture of a {}, a kind of {}.", "a {}, a {}.")
SUBJECT_IS_KIND = 0.2


@dataclass(frozen=True)
class Emoji:
    """One drawing.

    Attributes:
        pixels: (CANVAS, CANVAS, 3) uint8, on white.
        name: what it is called.
        kind: what it is one of.
        style: the icon package it is from.
    """

    pixels: np.ndarray
    name: str
    kind: str
    style: str

    @property
    def may_flip(self) -> bool:
        """Whether its mirror image goes by the same name."""
        return not {"left", "right", "clock", "clockwise", "counterclockwise"} & set(self.name.split())


def render_corpus(packages: Path, out: Path, render: Callable[[str], bytes] = resvg) -> int:
    """Draw every emoji of the six styles into one `.npz` file and return their number."""
    catalogue = Catalogue.read(packages)
    icons = [icon for style in STYLES for icon in read_icons(packages, style, catalogue)]
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        out,
        pixels=np.stack([draw(icon, render) for icon in icons]),
        names=np.array([icon.name for icon in icons]),
        kinds=np.array([icon.kind for icon in icons]),
        styles=np.array([icon.style for icon in icons]),
    )
    return len(icons)


def read_corpus(path: Path) -> list[Emoji]:
    """The drawings that `render_corpus` wrote, in its order."""
    with np.load(path) as content:
        columns = [content[key] for key in ("pixels", "names", "kinds", "styles")]
    return [Emoji(pixels, str(name), str(kind), str(style)) for pixels, name, kind, style in zip(*columns, strict=True)]


def choose_subject(emoji: Emoji, rng: random.Random) -> str:
    """What a caption calls the drawing: its name, or now and then its kind."""
    return emoji.kind if rng.random() < SUBJECT_IS_KIND else emoji.name


def caption(emoji: Emoji, subject: str, longest: int, rng: random.Random) -> str:
    """A random caption that calls the drawing `subject`, with at most `longest` words of filled context."""
    sort = rng.random()
    if sort < 0.5:
        return rng.choice(TEMPLATES if rng.random() < 0.6 else IMAGENET_TEMPLATES).format(subject)
    if sort < 0.65:
        return rng.choice(("a {} of a {}.", "a {} of the {}.", "{} {}.")).format(STYLES[emoji.style], subject)
    if sort < 0.75 and subject != emoji.kind:
        return rng.choice(KIND_TEMPLATES).format(subject, emoji.kind)
    return filled_context(subject, longest, rng)


def vocabulary_captions(corpus: list[Emoji]) -> list[str]:
    """Captions that together hold every word that `caption` can produce for a corpus."""
    subjects = sorted({emoji.name for emoji in corpus} | {emoji.kind for emoji in corpus} | set(STYLES.values()))
    templates = [template.format("cat") for template in (*TEMPLATES, *IMAGENET_TEMPLATES)]
    kinds = [template.format("cat", "mammal") for template in KIND_TEMPLATES]
    return [*templates, *kinds, *subjects, *FILLERS, "X", "."]


def main() -> None:
    """Read the command line and render."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packages", type=Path, required=True, help="node_modules folder with the icon packages")
    parser.add_argument("--out", type=Path, required=True, help=".npz file to write")
    arguments = parser.parse_args()
    print(f"{render_corpus(arguments.packages, arguments.out)} drawings")


if __name__ == "__main__":
    main()
