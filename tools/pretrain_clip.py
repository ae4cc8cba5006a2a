r"""Pretrain the two bundled CLIPs, and choose which seed ships.

    export OMP_NUM_THREADS=1
    python -m tools.bundled_data corpus --packages icons/node_modules --out runs/emoji_corpus.npz
    python -m tools.pretrain_clip train --corpus runs/emoji_corpus.npz --seed 0 --steps 5000 --out runs/seed0.pt
    python -m tools.pretrain_clip choose runs/seed?.pt --assets assets

    python -m tools.mini_corpus --cache icons --out runs/mini
    python -m tools.pretrain_clip train --corpus runs/mini --start assets/tiny_clip.pt --steps 8000 --decay 0.33 \
        --out runs/mini0.pt
    python -m tools.pretrain_clip choose runs/mini?.pt --name mini_clip --assets assets

`tiny_clip` knows printed characters and emoji, `mini_clip` the drawings of many icon packages besides.

OpenAI's architecture, small; CLIP's contrastive loss; two corpora, captions by name and by kind; image tokens dropped
at random until the learning rate falls, which costs little accuracy for the time it saves (Li et al., "Scaling
Language-Image Pre-training via Masking", CVPR 2023).

Characters are 62 (digits, capital and small letters) in the text fonts that matplotlib carries. `HELD_OUT_FONTS`, one
per type family, are never trained on: they measure how well a pretraining run went. Emoji are what the corpus holds.

`train` looks at what is held out (one emoji style, three fonts, and of the icons the families of the part `choose`)
every 250 steps, keeps the weights of the lowest held-out loss, and writes `<out>.json` with the curve beside the
checkpoint. It can be cut at any time: `--resume` goes on, `--finish` goes on with the falling rate at once. `choose`
takes the seed with the lowest held-out loss, copies it to `<name>.pt` and writes the figures of all to
`<name>_seeds.json`; zero-shot accuracy on the bundled data sets is measured for the record and has no part in the
choice.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import string
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import clip
import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from clip.model import CLIP
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from common.files import atomic_write
from dassl.utils import write_json
from prompting.weight_files import read_state_dict, save_bundled
from tools.bundled_data import CANVAS, DIGIT_NAMES, HELD_OUT_STYLE, PRETRAINING_STYLES
from trainers.templates import IMAGENET_TEMPLATES

# What it is pretrained on
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

# The model and its training
TEXT_GROUP = 32  # captions encoded at once
VOCABULARY, CONTEXT_LENGTH = 49408, 77
ARCHITECTURE = {
    "embed_dim": 128,
    "image_resolution": RESOLUTION,
    "vision_layers": 4,
    "vision_width": 128,
    "vision_patch_size": 8,
    "context_length": CONTEXT_LENGTH,
    "transformer_width": 128,
    "transformer_heads": 2,
    "transformer_layers": 4,
}
HELD_OUT_SEED, HELD_OUT_VIEWS = 2025, 2
EMOJI_TEMPLATE, GLYPH_TEMPLATE = "a photo of a {}.", "a photo of the {}."
NAME, MINI_NAME = "tiny_clip", "mini_clip"
RULES = {
    NAME: "lowest mean loss on the held-out drawing style and fonts; zero-shot accuracy has no part in it",
    MINI_NAME: "lowest mean loss on the held-out icon families, emoji style and fonts kept for choosing; zero-shot "
    "accuracy has no part in it",
}
# How captions call a style of drawing.
LOOKS = PRETRAINING_STYLES | {
    "outline": "line drawing",
    "solid": "black icon",
    "duotone": "gray icon",
    "colour": "colored icon",
}
CROWDED, CROWDED_WEIGHT = {"ic", "material-symbols", "material-symbols-light"}, 0.5  # one family's near copies


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
class Drawing:
    """One emoji or icon."""

    pixels: np.ndarray  # (CANVAS, CANVAS, 3) uint8, on white
    name: str  # what it is called
    kind: str  # what it is one of
    style: str  # the icon package it is from, or of an icon, "outline", "solid" ...
    package: str = ""
    part: str = ""  # of the mini corpus

    @property
    def may_flip(self) -> bool:
        """Whether its mirror image goes by the same name; of an icon, which has no kind, nobody knows."""
        return bool(self.kind) and not {"left", "right", "clock", "clockwise", "counterclockwise"} & set(
            self.name.split()
        )

    @property
    def held_out(self) -> bool:
        """Whether it is never trained on."""
        return self.part != "pretrain" if self.part else self.style == HELD_OUT_STYLE

    @property
    def chooses(self) -> bool:
        """Whether it decides where a run stops and which seed ships."""
        return self.part == "choose" if self.part else self.style == HELD_OUT_STYLE


def read_corpus(path: Path) -> list[Drawing]:
    """The drawings of an .npz file of `render_corpus` or a folder of `tools.mini_corpus`, in its order."""
    if path.is_dir():
        pixels = np.asarray(np.load(path / "pixels.npy", mmap_mode="r"))
        index = json.loads((path / "index.json").read_text())
        columns = [index[key] for key in ("name", "kind", "style", "package", "part")]
        return [Drawing(*row) for row in zip(pixels, *columns, strict=True)]
    with np.load(path) as content:
        columns = [content[key] for key in ("pixels", "names", "kinds", "styles")]
    return [
        Drawing(pixels, str(name), str(kind), str(style)) for pixels, name, kind, style in zip(*columns, strict=True)
    ]


def choose_subject(emoji: Drawing, rng: random.Random) -> str:
    """What a caption calls the drawing: its name, or now and then its kind, if it has one."""
    return (emoji.kind or emoji.name) if rng.random() < SUBJECT_IS_KIND else emoji.name


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


def emoji_caption(emoji: Drawing, subject: str, longest: int, rng: random.Random) -> str:
    """A random caption that calls the drawing `subject`, with at most `longest` words of filled context."""
    sort = rng.random()
    if sort < 0.5:
        return rng.choice(TEMPLATES if rng.random() < 0.6 else IMAGENET_TEMPLATES).format(subject)
    if sort < 0.65:
        return rng.choice(("a {} of a {}.", "a {} of the {}.", "{} {}.")).format(LOOKS[emoji.style], subject)
    if sort < 0.75 and emoji.kind and subject != emoji.kind:
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


def emoji_vocabulary(corpus: list[Drawing]) -> list[str]:
    """Captions that together hold every word that `emoji_caption` can produce for a corpus."""
    looks = LOOKS.values() if any(emoji.part for emoji in corpus) else PRETRAINING_STYLES.values()
    subjects = {word for emoji in corpus for word in (emoji.name, emoji.kind)} | set(looks)
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


class Vocabulary:
    """The tokens in use, renumbered without gaps: the embedding that is trained has these rows only.

    The order of ids is kept, so that [EOT] still has the highest id, which is how CLIP finds it.
    """

    def __init__(self, captions: list[str]) -> None:
        self.ids = torch.unique(clip.tokenize(captions))
        self._row = torch.full((VOCABULARY,), -1)
        self._row[self.ids] = torch.arange(len(self.ids))

    def tokenize(self, captions: list[str]) -> Tensor:
        """Captions as rows of the small embedding, (B, longest) long, cut after the longest [EOT]."""
        tokens = clip.tokenize(captions)
        rows = self._row[tokens[:, : int(tokens.argmax(dim=-1).max()) + 1]]
        if (rows < 0).any():
            raise ValueError(f"a caption has a word outside the vocabulary: {captions}")
        return rows


def new_model(vocabulary: int, seed: int) -> CLIP:
    """A randomly initialised small CLIP in fp32."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CLIP(vocab_size=vocabulary, **ARCHITECTURE).float()


def warm_start(model: CLIP, vocabulary: Vocabulary, checkpoint: Path) -> None:
    """Give a new model a bundled one's weights; tokens that it does not know keep what they have."""
    state = read_state_dict(checkpoint)
    rows = state["token_embedding.weight"][vocabulary.ids]
    known = rows.abs().amax(dim=1, keepdim=True) > 0
    rows = torch.where(known, rows, model.token_embedding.weight.detach())
    model.load_state_dict(state | {"token_embedding.weight": rows})


def encode_text(model: CLIP, tokens: Tensor) -> Tensor:
    """CLIP's text features for a cut token matrix: exact, since what follows [EOT] cannot influence it."""
    length = tokens.shape[1]
    for block in model.transformer.resblocks:
        block.attn_mask = torch.full((length, length), -math.inf, device=tokens.device).triu_(1)
    return model.encode_text(tokens)


def encode_image(model: CLIP, images: Tensor, kept: float, generator: torch.Generator) -> Tensor:
    """CLIP's image features (B, dim) from a random part of the image tokens; all of them if `kept` is 1."""
    if kept >= 1:
        return model.visual(images)
    tower = model.visual
    tokens = tower.conv1(images).flatten(2).transpose(1, 2) + tower.positional_embedding[1:]
    number, length, width = tokens.shape
    chosen = torch.rand(number, length, generator=generator).argsort(dim=1)[:, : round(kept * length)]
    chosen = chosen.to(images.device)  # drawn on the CPU, so that every device drops the same
    tokens = tokens.gather(1, chosen[..., None].expand(-1, -1, width))
    first = (tower.class_embedding + tower.positional_embedding[0]).expand(number, 1, -1)
    tokens = tower.ln_pre(torch.cat([first, tokens], dim=1)).permute(1, 0, 2)
    return tower.ln_post(tower.transformer(tokens)[0]) @ tower.proj


def encode_text_by_length(model: CLIP, tokens: Tensor) -> Tensor:
    """CLIP's text features (B, dim), short captions apart from long ones so that none is padded for long."""
    order = tokens.argmax(dim=-1).argsort(stable=True)
    parts = tokens[order].split(TEXT_GROUP)
    features = torch.cat([encode_text(model, part[:, : int(part.argmax(dim=-1).max()) + 1]) for part in parts])
    return features[order.argsort()]


def contrastive_loss(logits: Tensor, same: Tensor) -> Tensor:
    """CLIP's symmetric cross-entropy, the target uniform over all pairs that fit.

    Args:
        logits: (B, B) images against captions.
        same: (B, B) bool, true where the caption is about the image; need not be symmetric.
    """
    fits = same.float()
    loss_image = -(fits / fits.sum(dim=1, keepdim=True) * logits.log_softmax(dim=1)).sum(dim=1).mean()
    loss_text = -(fits / fits.sum(dim=0, keepdim=True) * logits.log_softmax(dim=0)).sum(dim=0).mean()
    return (loss_image + loss_text) / 2


def build_optimizer(model: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW as CLIP's: no weight decay on gains, biases and embeddings."""
    decayed = [p for name, p in model.named_parameters() if p.ndim > 1 and "embedding" not in name]
    plain = [p for name, p in model.named_parameters() if p.ndim <= 1 or "embedding" in name]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98), foreach=True)


@torch.no_grad()
def logits_of(model: CLIP, images: Tensor, tokens: Tensor) -> Tensor:
    """Logits (B, classes) of images against captions."""
    text_features = F.normalize(torch.cat([encode_text(model, part) for part in tokens.split(256)]), dim=-1)
    features = torch.cat([F.normalize(model.visual(part), dim=-1) for part in images.split(256)])
    return model.logit_scale.exp() * features @ text_features.T


def full_state_dict(model: CLIP, vocabulary: Vocabulary) -> dict[str, Tensor]:
    """The trained weights with the token embedding back at its full size, zero where untrained."""
    state = {key: value.detach().cpu().clone() for key, value in model.state_dict().items()}
    rows = state["token_embedding.weight"]
    state["token_embedding.weight"] = torch.zeros(VOCABULARY, rows.shape[1])
    state["token_embedding.weight"][vocabulary.ids] = rows
    return state


@dataclass(frozen=True)
class Recipe:
    """How one model is trained."""

    seed: int
    steps: int
    batch: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    warmup: int = 40
    ramp: int = 300  # steps over which augmentation and captions get harder
    glyph_share: float = 0.25  # part of each batch that is printed characters, half of them digits
    emoji_share: float = 0.25  # part of each batch that is emoji where the corpus has icons as well
    kept_tokens: float = 0.5  # part of the image tokens that is kept until the decay
    decay: float = 0.3  # last part of the steps: the learning rate falls to zero and no token is dropped
    evaluate_every: int = 250  # steps between two looks at what is held out, each of which saves the state
    precision: str = "fp32"  # of the encoders, or bf16 by autocast (far slower on a CPU without AVX-512 BF16)

    def is_decay(self, step: int) -> bool:
        """Whether a step is in the last part."""
        return step >= round((1 - self.decay) * self.steps)

    def kept_at(self, step: int) -> float:
        """Part of the image tokens that a step keeps."""
        return 1.0 if self.is_decay(step) else self.kept_tokens

    def learning_rate_at(self, step: int) -> float:
        """Linear warm-up, constant, then a line to zero.

        Until the decay nothing depends on the number of steps, so an unfinished run can be resumed with another one.
        """
        left = (self.steps - step) / (self.decay * self.steps) if self.is_decay(step) else 1.0
        return self.learning_rate * min(1.0, (step + 1) / self.warmup, left)


class Batches:
    """An endless stream of batches of characters and emoji."""

    def __init__(self, characters: list[Glyph], emoji: list[Drawing], vocabulary: Vocabulary, recipe: Recipe) -> None:
        self.characters, self.vocabulary = characters, vocabulary
        self.digits = [glyph for glyph in characters if glyph.name.startswith("digit")]
        self.emoji = [item for item in emoji if item.kind]
        self.icons = [item for item in emoji if not item.kind]
        weights = [CROWDED_WEIGHT if item.package in CROWDED else 1.0 for item in self.icons]
        self.icon_weights = list(itertools.accumulate(weights))
        self.from_glyphs = round(recipe.glyph_share * recipe.batch)
        self.from_emoji = recipe.batch - self.from_glyphs
        if self.icons:
            self.from_emoji = round(recipe.emoji_share * recipe.batch) if self.emoji else 0
        self.from_icons = recipe.batch - self.from_glyphs - self.from_emoji
        self.rng = random.Random(recipe.seed)
        self.generator = torch.Generator().manual_seed(recipe.seed)

    def draw(self, difficulty: float) -> tuple[Tensor, Tensor, Tensor]:
        """One batch; `difficulty` from 0 to 1 is that of the images and captions.

        Returns:
            Images (B, 3, R, R), tokens (B, longest), and which pairs fit, (B, B) bool.
        """
        digits = self.rng.choices(self.digits, k=self.from_glyphs // 2)
        characters = digits + self.rng.choices(self.characters, k=self.from_glyphs - len(digits))
        emoji = self.rng.choices(self.emoji, k=self.from_emoji) if self.from_emoji else []
        if self.icons:
            emoji += self.rng.choices(self.icons, cum_weights=self.icon_weights, k=self.from_icons)
        longest = self.rng.choice((2, 4, 4, 8, MAX_CONTEXT))  # one bound per batch keeps most batches short
        subjects = [glyph.name for glyph in characters] + [choose_subject(item, self.rng) for item in emoji]
        captions = [
            self.caption(item, subject, longest, difficulty)
            for item, subject in zip([*characters, *emoji], subjects, strict=True)
        ]
        pixels = torch.stack([torch.tensor(glyph.pixels) for glyph in characters])
        images = [augment_glyphs(pixels, self.generator, difficulty)]
        may_flip = torch.tensor([item.may_flip for item in emoji])
        pixels = torch.stack([torch.tensor(item.pixels) for item in emoji])
        images.append(augment_emoji(pixels, may_flip, self.generator, difficulty))
        return torch.cat(images), self.vocabulary.tokenize(captions), positive_pairs(characters, emoji, subjects)

    def caption(self, item: Glyph | Drawing, subject: str, longest: int, difficulty: float) -> str:
        """A random caption, or, the more often the easier, the plain one."""
        plain = self.rng.random() >= difficulty
        if isinstance(item, Glyph):
            return GLYPH_TEMPLATE.format(subject) if plain else glyph_caption(item, longest, self.rng)
        return EMOJI_TEMPLATE.format(subject) if plain else emoji_caption(item, subject, longest, self.rng)


def positive_pairs(characters: list[Glyph], emoji: list[Drawing], subjects: list[str]) -> Tensor:
    """Which caption subjects hold for which images, (B, B) bool: by name, and for emoji also by kind."""
    index = {subject: number for number, subject in enumerate(sorted(set(subjects)))}
    number = torch.tensor([index[subject] for subject in subjects])
    names = [glyph.name for glyph in characters] + [item.name for item in emoji]
    kinds = [""] * len(characters) + [item.kind for item in emoji]
    same = torch.zeros(len(names), len(subjects), dtype=torch.bool)
    for labels in (names, kinds):
        same |= torch.tensor([index.get(label, -1) for label in labels])[:, None] == number[None, :]
    return same


HeldOut = dict[str, tuple[Tensor, Tensor, Tensor]]  # images, labels and tokens of the class names, by task


def held_out_tasks(
    characters: list[Glyph], emoji: list[Drawing], vocabulary: Vocabulary, seen: Collection[str] = ()
) -> HeldOut:
    """What a run is judged by: unseen fonts among 62 characters, an unseen emoji style among its names, unseen icons.

    Icons are those of the names that are `seen` in training and that at least two of the unseen families draw.
    """
    names = list(character_names().values())
    pixels = torch.stack([torch.tensor(glyph.pixels) for glyph in characters]).repeat(HELD_OUT_VIEWS, 1, 1)
    labels = torch.tensor([names.index(glyph.name) for glyph in characters]).repeat(HELD_OUT_VIEWS)
    images = augment_glyphs(pixels, torch.Generator().manual_seed(HELD_OUT_SEED))
    fonts = images, labels, vocabulary.tokenize([GLYPH_TEMPLATE.format(name) for name in names])
    tasks = {"fonts": fonts}
    drawn = Counter(name for _, name in {(item.package, item.name) for item in emoji if not item.kind})
    icons = [item for item in emoji if not item.kind and item.name in seen and drawn[item.name] > 1]
    for task, items in {"style": [item for item in emoji if item.kind], "icons": icons}.items():
        if items:
            names = list(dict.fromkeys(item.name for item in items))
            labels = torch.tensor([names.index(item.name) for item in items])
            images = prepare(torch.stack([torch.tensor(item.pixels) for item in items]))
            tasks[task] = images, labels, vocabulary.tokenize([EMOJI_TEMPLATE.format(name) for name in names])
    return tasks


def held_out_figures(model: CLIP, tasks: HeldOut) -> dict[str, float]:
    """Cross-entropy and accuracy in per cent on each task, and the mean of the losses."""
    figures, device = {}, model.visual.proj.device
    for task, (images, labels, tokens) in tasks.items():
        logits = logits_of(model.eval(), images.to(device), tokens.to(device)).cpu()
        figures[f"{task}_loss"] = round(F.cross_entropy(logits, labels).item(), 4)
        figures[f"{task}_accuracy"] = round((logits.argmax(dim=1) == labels).float().mean().item() * 100, 2)
    model.train()
    return {"loss": round(sum(figures[f"{task}_loss"] for task in tasks) / len(tasks), 4), **figures}


def pretrain(
    recipe: Recipe,
    corpus: list[Drawing],
    out: Path,
    resume: bool = False,
    device: str = "cpu",
    start: Path | None = None,
) -> dict:
    """Train one model; write the best of it to `out`, its figures beside it as .json, and return the figures.

    The corpus has every style, the held-out ones too. With `resume` it goes on from `<out>.state`; else it begins with
    the weights of the bundled model `start`, or with random ones.
    """
    torch.set_num_threads(1)
    characters = draw_glyphs(text_fonts())
    shown = [item for item in corpus if not item.held_out]
    judges = [item for item in corpus if item.chooses]
    vocabulary = Vocabulary([*glyph_vocabulary(), *emoji_vocabulary([*shown, *(item for item in judges if item.kind)])])
    tasks = held_out_tasks(
        [glyph for glyph in characters if glyph.font in HELD_OUT_FONTS],
        judges,
        vocabulary,
        {item.name for item in shown},
    )
    seen = [glyph for glyph in characters if glyph.font not in HELD_OUT_FONTS]
    batches = Batches(seen, shown, vocabulary, recipe)
    print(
        f"{len(seen)} characters, {len(batches.emoji)} emoji, {len(batches.icons)} icons, {len(vocabulary.ids)} tokens"
    )
    print({task: f"{len(images)} images, {len(tokens)} classes" for task, (images, _, tokens) in tasks.items()})

    out.parent.mkdir(parents=True, exist_ok=True)
    state_file = out.with_suffix(".state")
    model = new_model(len(vocabulary.ids), recipe.seed).to(device)
    if start is not None:
        warm_start(model, vocabulary, start)
    optimizer = build_optimizer(model, recipe.learning_rate, recipe.weight_decay)
    first_step, curve, cpu_seconds = load_state(state_file, recipe, model, optimizer, batches) if resume else (0, [], 0)
    began, losses = time.process_time() - cpu_seconds, []

    for step in range(first_step, recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate_at(step)
        pixels, tokens, same = (part.to(device) for part in batches.draw(min(1.0, step / recipe.ramp)))
        with torch.autocast(model.visual.proj.device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
            images = encode_image(model, pixels, recipe.kept_at(step), batches.generator)
            texts = encode_text_by_length(model, tokens)
        logits = model.logit_scale.exp() * F.normalize(images.float(), dim=-1) @ F.normalize(texts.float(), dim=-1).T
        loss = contrastive_loss(logits, same)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.logit_scale.data.clamp_(0, math.log(100))

        losses.append(loss.item())
        cpu_seconds = time.process_time() - began
        if (step + 1) % 50 == 0:
            mean = sum(losses[-50:]) / len(losses[-50:])
            print(f"step [{step + 1}/{recipe.steps}] loss {mean:.3f} cpu {cpu_seconds:.0f} s", flush=True)
        if (step + 1) % recipe.evaluate_every == 0 or step + 1 == recipe.steps:
            curve.append({"step": step + 1, **held_out_figures(model, tasks)})
            print(json.dumps(curve[-1]), flush=True)
            if curve[-1] == best_of(curve):
                save_bundled(full_state_dict(model, vocabulary), out)
            progress = {"step": step + 1, "steps": recipe.steps, "curve": curve, "cpu_seconds": cpu_seconds}
            save_state(state_file, progress, model, optimizer, batches)

    figures = {"recipe": asdict(recipe), "held_out": best_of(curve), "curve": curve, "cpu_seconds": round(cpu_seconds)}
    write_json(figures, str(out.with_suffix(".json")))
    return figures


def best_of(curve: list[dict[str, float]]) -> dict[str, float]:
    """The point with the lowest held-out loss."""
    return min(curve, key=lambda point: point["loss"])


def save_state(path: Path, progress: dict, model: CLIP, optimizer: torch.optim.Optimizer, batches: Batches) -> None:
    """Write everything that the next step depends on."""
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    state |= {"rng": batches.rng.getstate(), "generator": batches.generator.get_state()}
    with atomic_write(path, "wb") as file:
        torch.save(progress | state, file)


def load_state(
    path: Path, recipe: Recipe, model: CLIP, optimizer: torch.optim.Optimizer, batches: Batches
) -> tuple[int, list[dict[str, float]], float]:
    """Put back what `save_state` wrote; returns the next step, the curve so far and the CPU seconds.

    Raises:
        ValueError: the number of steps changed although the decay had begun, whose pace hangs on it.
    """
    state = torch.load(path, map_location="cpu", weights_only=True)
    step, before = state["step"], replace(recipe, steps=state["steps"])
    if recipe != before and any(each.is_decay(step - 1) for each in (recipe, before)):
        raise ValueError(f"{path} is at step {step} of {state['steps']}: too late for {recipe.steps}")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    version, internal, gauss = state["rng"]
    batches.rng.setstate((version, tuple(internal), gauss))
    batches.generator.set_state(state["generator"])
    return step, state["curve"], state["cpu_seconds"]


def finishing_steps(state_file: Path, recipe: Recipe) -> int:
    """The number of steps with which the decay begins where a run was cut; as it was, if it had begun."""
    state = torch.load(state_file, map_location="cpu", weights_only=True)
    if replace(recipe, steps=state["steps"]).is_decay(state["step"] - 1):
        return state["steps"]
    return math.ceil(state["step"] / (1 - recipe.decay))


class Task(NamedTuple):
    """Part of a split file to classify, and with which prompt."""

    split_file: str
    part: str
    template: str


TASKS = {
    "Digits": Task("digits/split_digits.json", "test", "a photo of the {}."),
    "EmojiKinds": Task("emoji/split_emoji_kinds_noto.json", "test", EMOJI_TEMPLATE),
    "EmojiKindsFluent": Task("emoji/split_emoji_kinds_fluent.json", "test", EMOJI_TEMPLATE),
    "EmojiKindsFlat": Task("emoji/split_emoji_kinds_flat.json", "test", EMOJI_TEMPLATE),
    "EmojiKindsContrast": Task("emoji/split_emoji_kinds_contrast.json", "test", EMOJI_TEMPLATE),
    "EmojiConcepts, training drawings": Task("emoji/split_emoji_concepts.json", "train", EMOJI_TEMPLATE),
    "EmojiConceptsFluent": Task("emoji/split_emoji_concepts_fluent.json", "test", EMOJI_TEMPLATE),
    "EmojiConceptsFlat": Task("emoji/split_emoji_concepts_flat.json", "test", EMOJI_TEMPLATE),
    "EmojiConceptsContrast": Task("emoji/split_emoji_concepts_contrast.json", "test", EMOJI_TEMPLATE),
}


def read_images(task: Task, assets: Path) -> tuple[Tensor, Tensor, list[str]]:
    """Images (N, 3, R, R) as CLIP's transform makes them, their labels (N,), and all class names."""
    path = assets / task.split_file
    split = json.loads(path.read_text())
    rows = split[task.part]
    pixels = [np.asarray(Image.open(path.parent / "images" / row[0]).convert("RGB")) for row in rows]
    names = dict(sorted({label: name for _, label, name in split["train"]}.items()))
    return prepare(torch.tensor(np.stack(pixels))), torch.tensor([row[1] for row in rows]), list(names.values())


def zero_shot(checkpoint: Path, task: Task, assets: Path) -> dict[str, float]:
    """Accuracy in per cent of base classes among base, new among new, and all among all."""
    images, labels, names = read_images(task, assets)
    model = new_model(VOCABULARY, seed=0).eval()
    model.load_state_dict(read_state_dict(checkpoint))  # as it is on disk, that is, after rounding to fp16
    return by_class_split(
        logits_of(model, images, clip.tokenize([task.template.format(name) for name in names])), labels
    )


def by_class_split(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy in per cent of base classes among base, new among new, and all among all; (N, classes) and (N,)."""
    classes = logits.shape[1]
    half, accuracy = math.ceil(classes / 2), {}
    for split, (start, stop) in {"base": (0, half), "new": (half, classes), "all": (0, classes)}.items():
        inside = (labels >= start) & (labels < stop)
        right = logits[inside, start:stop].argmax(dim=1) + start == labels[inside]
        accuracy[split] = round(right.float().mean().item() * 100, 2)
    return accuracy


def choose(figures: list[dict]) -> dict:
    """The run with the lowest held-out loss."""
    return min(figures, key=lambda run: run["held_out"]["loss"])


def publish(checkpoints: list[Path], assets: Path, name: str = NAME) -> dict:
    """Choose, copy the checkpoint, and write the figures of every run."""
    runs = [json.loads(path.with_suffix(".json").read_text()) for path in checkpoints]
    chosen = choose(runs)
    for path, run in zip(checkpoints, runs, strict=True):
        run["zero_shot"] = {title: zero_shot(path, task, assets) for title, task in TASKS.items()}
    save_bundled(read_state_dict(checkpoints[runs.index(chosen)]), assets / f"{name}.pt")
    report = {"shipped_seed": chosen["recipe"]["seed"], "rule": RULES[name], "runs": runs}
    write_json(report, str(assets / f"{name}_seeds.json"))
    return report


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.pretrain_clip", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="what", required=True)
    train = commands.add_parser("train", help="train one seed")
    train.add_argument(
        "--corpus", type=Path, required=True, help=".npz of tools.bundled_data, or folder of tools.mini_corpus"
    )
    train.add_argument("--seed", type=int, default=0, help="of the weights, the batches and the captions")
    train.add_argument("--steps", type=int, default=1500, help="number of updates")
    train.add_argument("--out", type=Path, required=True, help="checkpoint to write; figures go beside it as .json")
    train.add_argument("--resume", action="store_true", help="go on from <out>.state; --steps may be another number")
    train.add_argument("--finish", action="store_true", help="as --resume, with the falling rate from here on")
    train.add_argument("--decay", type=float, default=Recipe.decay, help="last part of the steps, with a falling rate")
    train.add_argument("--start", type=Path, help="a bundled model to begin with, in place of random weights")
    train.add_argument("--device", default="cpu", help="cpu, cuda ...; batches are drawn on the CPU all the same")
    train.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="bf16 where the chip has it")
    choice = commands.add_parser("choose", help="choose which of several seeds ships")
    choice.add_argument("checkpoints", nargs="+", type=Path, help="written by train")
    choice.add_argument("--name", choices=tuple(RULES), default=NAME, help="of the bundled model")
    choice.add_argument("--assets", type=Path, required=True, help="folder that holds digits/ and emoji/; written to")
    args = parser.parse_args()
    if args.what == "train":
        shares = {"glyph_share": 0.125} if args.corpus.is_dir() else {}
        recipe = Recipe(seed=args.seed, steps=args.steps, precision=args.precision, decay=args.decay, **shares)
        if args.finish:
            recipe = replace(recipe, steps=finishing_steps(args.out.with_suffix(".state"), recipe))
        resume = args.resume or args.finish
        print(json.dumps(pretrain(recipe, read_corpus(args.corpus), args.out, resume, args.device, args.start)))
    else:
        print(json.dumps(publish(args.checkpoints, args.assets, args.name), indent=2))


if __name__ == "__main__":
    main()
