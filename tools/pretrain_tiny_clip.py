"""Pretrain the small CLIP that comes with the code, on printed characters.

    OMP_NUM_THREADS=1 python -m tools.pretrain_tiny_clip --seed 0 --steps 600 --out runs/seed0.pt

A few CPU minutes. OpenAI's architecture with four layers of width 128; CLIP's contrastive loss (Radford et al., ICML
2021), in which every pair with the same name is a positive. Training starts on upright glyphs with plain captions and
makes both harder step by step: at full difficulty from the start it stays near chance for long.

One thread and one seed give the same weights again on the same machine and torch version. Beside the checkpoint it
writes `<out>.json` with the loss and accuracy on fonts that were held out; `tools/choose_tiny_clip.py` selects among
seeds by that.
"""

import argparse
import json
import math
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import clip
import torch
import torch.nn.functional as F
from clip.model import CLIP
from torch import Tensor

from dassl.utils import write_json
from prompting.bundled import save_bundled
from tools.augment import augment_glyphs
from tools.contrastive import (
    Vocabulary,
    build_optimizer,
    contrastive_loss,
    encode_text,
    full_state_dict,
    load_model,
    new_model,
)
from tools.glyphs import (
    HELD_OUT_FONTS,
    MAX_CONTEXT,
    Glyph,
    caption,
    character_names,
    draw_glyphs,
    text_fonts,
    vocabulary_captions,
)

HELD_OUT_SEED, HELD_OUT_VIEWS = 2025, 8
TEMPLATE = "a photo of the {}."


@dataclass(frozen=True)
class Recipe:
    """How one model is trained."""

    seed: int
    steps: int
    batch: int = 80
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    warmup: int = 40
    ramp: float = 0.4

    def difficulty(self, step: int) -> float:
        """How hard a step is, from 0 to 1: it rises over the first `ramp` of all steps."""
        return min(1.0, step / (self.ramp * self.steps))

    def learning_rate_at(self, step: int) -> float:
        """Linear warm-up, then a cosine to zero."""
        cosine = 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return self.learning_rate * min(1.0, (step + 1) / self.warmup) * cosine


class Batches:
    """An endless stream of training batches: half of each is digits, the rest any character."""

    def __init__(self, glyphs: list[Glyph], vocabulary: Vocabulary, recipe: Recipe) -> None:
        self.glyphs, self.vocabulary, self.size = glyphs, vocabulary, recipe.batch
        self.digits = [glyph for glyph in glyphs if glyph.name.startswith("digit")]
        self.rng = random.Random(recipe.seed)
        self.generator = torch.Generator().manual_seed(recipe.seed)

    def draw(self, difficulty: float) -> tuple[Tensor, Tensor, Tensor]:
        """Images (B, 3, R, R), tokens (B, longest) and same-name pairs (B, B) bool."""
        digits = self.rng.choices(self.digits, k=self.size // 2)
        chosen = digits + self.rng.choices(self.glyphs, k=self.size - len(digits))
        longest = self.rng.choice((4, 4, 8, 16, MAX_CONTEXT))  # one bound per batch keeps most batches short
        tokens = self.vocabulary.tokenize([self.caption(glyph, longest, difficulty) for glyph in chosen])
        images = augment_glyphs(
            torch.stack([torch.tensor(glyph.pixels) for glyph in chosen]), self.generator, difficulty
        )
        names = {name: index for index, name in enumerate(sorted({glyph.name for glyph in chosen}))}
        labels = torch.tensor([names[glyph.name] for glyph in chosen])
        return images, tokens, labels[:, None] == labels[None, :]

    def caption(self, glyph: Glyph, longest: int, difficulty: float) -> str:
        """A random caption, or, the more often the easier, the plain one."""
        plain = self.rng.random() >= difficulty
        return TEMPLATE.format(glyph.name) if plain else caption(glyph, longest, self.rng)


def train(model: CLIP, batches: Batches, recipe: Recipe) -> None:
    """Train in place, saying the mean loss every fifty steps."""
    optimizer, losses, start = (
        build_optimizer(model, recipe.learning_rate, recipe.weight_decay),
        [],
        time.process_time(),
    )
    for step in range(recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate_at(step)
        images, tokens, same = batches.draw(recipe.difficulty(step))
        image_features = F.normalize(model.visual(images), dim=-1)
        text_features = F.normalize(encode_text(model, tokens), dim=-1)
        loss = contrastive_loss(model.logit_scale.exp() * image_features @ text_features.T, same)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.logit_scale.data.clamp_(0, math.log(100))
        losses.append(loss.item())
        if (step + 1) % 50 == 0:
            print(
                f"step [{step + 1}/{recipe.steps}] loss {sum(losses[-50:]) / 50:.3f} "
                f"scale {model.logit_scale.exp():.1f} cpu {time.process_time() - start:.0f} s",
                flush=True,
            )


@torch.no_grad()
def held_out_figures(model: CLIP, glyphs: list[Glyph]) -> dict[str, float]:
    """Classify unseen fonts among all 62 names: cross-entropy, and accuracy in per cent.

    The views are the same for every model.
    """
    names = list(character_names().values())
    pixels = torch.stack([torch.tensor(glyph.pixels) for glyph in glyphs]).repeat(HELD_OUT_VIEWS, 1, 1)
    labels = torch.tensor([names.index(glyph.name) for glyph in glyphs]).repeat(HELD_OUT_VIEWS)
    images = augment_glyphs(pixels, torch.Generator().manual_seed(HELD_OUT_SEED))
    logits = class_logits(model, images, names)
    accuracy = (logits.argmax(dim=1) == labels).float().mean().item() * 100
    return {"loss": round(F.cross_entropy(logits, labels).item(), 4), "accuracy": round(accuracy, 2)}


@torch.no_grad()
def class_logits(model: CLIP, images: Tensor, names: list[str]) -> Tensor:
    """Zero-shot logits (B, classes) with the prompt "a photo of the {}."."""
    text_features = F.normalize(model.encode_text(clip.tokenize([TEMPLATE.format(name) for name in names])), dim=-1)
    features = torch.cat([F.normalize(model.visual(chunk), dim=-1) for chunk in images.split(256)])
    return model.logit_scale.exp() * features @ text_features.T


def pretrain(recipe: Recipe, out: Path) -> dict:
    """Train one model, write it and its figures, and return the figures."""
    torch.set_num_threads(1)
    glyphs = draw_glyphs(text_fonts())
    seen = [glyph for glyph in glyphs if glyph.font not in HELD_OUT_FONTS]
    unseen = [glyph for glyph in glyphs if glyph.font in HELD_OUT_FONTS]
    vocabulary = Vocabulary(vocabulary_captions())
    model, start = new_model(len(vocabulary.ids), recipe.seed), time.process_time()
    train(model, Batches(seen, vocabulary, recipe), recipe)
    seconds = round(time.process_time() - start)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_bundled(full_state_dict(model, vocabulary), out)
    figures = {"recipe": asdict(recipe), "held_out": held_out_figures(load_model(out), unseen), "cpu_seconds": seconds}
    write_json(figures, str(out.with_suffix(".json")))
    return figures


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="of the weights, the batches and the captions")
    parser.add_argument("--steps", type=int, default=600, help="number of updates")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint to write; figures go beside it as .json")
    arguments = parser.parse_args()
    figures = pretrain(Recipe(seed=arguments.seed, steps=arguments.steps), arguments.out)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
