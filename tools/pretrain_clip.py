"""Pretrain the bundled CLIP that knows printed characters and emoji.

    python -m tools.emoji_corpus --packages node_modules --out runs/emoji_corpus.npz
    OMP_NUM_THREADS=1 python -m tools.pretrain_clip --corpus runs/emoji_corpus.npz --seed 0 --out runs/seed0.pt

The architecture, the contrastive loss and the optimiser are in `tools/contrastive.py`. Beside them: two corpora,
captions by name and by kind, bf16, and image tokens dropped at random until the learning rate falls, which costs little
accuracy for the time it saves (Li et al., "Scaling Language-Image Pre-training via Masking", CVPR 2023).

What is held out, one drawing style and three fonts, is looked at ten times; the weights of the lowest held-out loss are
kept. Beside the checkpoint it writes `<out>.json` with the curve.
"""

import argparse
import json
import math
import random
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from clip.model import CLIP
from torch import Tensor

from dassl.utils import atomic_write, write_json
from prompting.state_dict import save_bundled
from tools import emoji_corpus, glyphs
from tools.augment import augment_emoji, augment_glyphs, prepare
from tools.contrastive import (
    Vocabulary,
    build_optimizer,
    contrastive_loss,
    encode_image,
    encode_text_by_length,
    full_state_dict,
    logits_of,
    new_model,
)
from tools.emoji_corpus import HELD_OUT_STYLE, Emoji, read_corpus
from tools.glyphs import HELD_OUT_FONTS, MAX_CONTEXT, Glyph, character_names, draw_glyphs, text_fonts

HELD_OUT_SEED, HELD_OUT_VIEWS = 2025, 2
EMOJI_TEMPLATE, GLYPH_TEMPLATE = "a photo of a {}.", "a photo of the {}."


@dataclass(frozen=True)
class Recipe:
    """How one model is trained.

    Attributes:
        glyph_share: part of each batch that is printed characters, half of them digits.
        ramp: number of steps over which augmentation and captions get harder.
        kept_tokens: part of the image tokens that is kept until the decay.
        decay: part of the steps, at the end, in which the learning rate falls to zero and no token is dropped.
        precision: of the encoders: fp32, or bf16 by autocast (far slower on a CPU without AVX-512 BF16).
        evaluate_every: steps between two looks at what is held out; the state to resume from is saved with each.
    """

    seed: int
    steps: int
    batch: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    warmup: int = 40
    ramp: int = 300
    glyph_share: float = 0.25
    kept_tokens: float = 0.5
    decay: float = 0.3
    evaluate_every: int = 250
    precision: str = "fp32"

    def difficulty(self, step: int) -> float:
        """How hard a step is, from 0 to 1."""
        return min(1.0, step / self.ramp)

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


@dataclass(frozen=True)
class Batch:
    """What one step trains on: images (B, 3, R, R), tokens (B, longest), and which pairs fit, (B, B) bool."""

    images: Tensor
    tokens: Tensor
    same: Tensor

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        return Batch(self.images.to(device), self.tokens.to(device), self.same.to(device))


class Batches:
    """An endless stream of batches of characters and emoji."""

    def __init__(self, characters: list[Glyph], emoji: list[Emoji], vocabulary: Vocabulary, recipe: Recipe) -> None:
        self.characters, self.emoji, self.vocabulary = characters, emoji, vocabulary
        self.digits = [glyph for glyph in characters if glyph.name.startswith("digit")]
        self.from_glyphs = round(recipe.glyph_share * recipe.batch)
        self.from_emoji = recipe.batch - self.from_glyphs
        self.rng = random.Random(recipe.seed)
        self.generator = torch.Generator().manual_seed(recipe.seed)

    def draw(self, difficulty: float) -> Batch:
        """One batch; `difficulty` from 0 to 1 is that of the images and captions."""
        digits = self.rng.choices(self.digits, k=self.from_glyphs // 2)
        characters = digits + self.rng.choices(self.characters, k=self.from_glyphs - len(digits))
        emoji = self.rng.choices(self.emoji, k=self.from_emoji)
        longest = self.rng.choice((2, 4, 4, 8, MAX_CONTEXT))  # one bound per batch keeps most batches short
        subjects = [glyph.name for glyph in characters]
        subjects += [emoji_corpus.choose_subject(item, self.rng) for item in emoji]
        captions = [
            self.caption(item, subject, longest, difficulty)
            for item, subject in zip([*characters, *emoji], subjects, strict=True)
        ]
        return Batch(
            self.images(characters, emoji, difficulty),
            self.vocabulary.tokenize(captions),
            fit(characters, emoji, subjects),
        )

    def caption(self, item: Glyph | Emoji, subject: str, longest: int, difficulty: float) -> str:
        """A random caption, or, the more often the easier, the plain one."""
        is_glyph = isinstance(item, Glyph)
        if self.rng.random() >= difficulty:
            return (GLYPH_TEMPLATE if is_glyph else EMOJI_TEMPLATE).format(subject)
        if is_glyph:
            return glyphs.caption(item, longest, self.rng)
        return emoji_corpus.caption(item, subject, longest, self.rng)

    def images(self, characters: list[Glyph], emoji: list[Emoji], strength: float) -> Tensor:
        """Augmented characters, then emoji, (B, 3, R, R)."""
        parts = []
        if characters:
            pixels = torch.stack([torch.tensor(glyph.pixels) for glyph in characters])
            parts.append(augment_glyphs(pixels, self.generator, strength))
        if emoji:
            may_flip = torch.tensor([item.may_flip for item in emoji])
            pixels = torch.stack([torch.tensor(item.pixels) for item in emoji])
            parts.append(augment_emoji(pixels, may_flip, self.generator, strength))
        return torch.cat(parts)


def fit(characters: list[Glyph], emoji: list[Emoji], subjects: list[str]) -> Tensor:
    """Which caption subjects hold for which images, (B, B) bool: by name, and for emoji also by kind."""
    index = {subject: number for number, subject in enumerate(sorted(set(subjects)))}
    number = torch.tensor([index[subject] for subject in subjects])
    names = [glyph.name for glyph in characters] + [item.name for item in emoji]
    kinds = [""] * len(characters) + [item.kind for item in emoji]
    same = torch.zeros(len(names), len(subjects), dtype=torch.bool)
    for labels in (names, kinds):
        same |= torch.tensor([index.get(label, -1) for label in labels])[:, None] == number[None, :]
    return same


class HeldOut:
    """What a run is judged by: an unseen drawing style among its names, and unseen fonts among 62 characters."""

    def __init__(self, characters: list[Glyph], emoji: list[Emoji], vocabulary: Vocabulary) -> None:
        names = list(character_names().values())
        pixels = torch.stack([torch.tensor(glyph.pixels) for glyph in characters]).repeat(HELD_OUT_VIEWS, 1, 1)
        labels = torch.tensor([names.index(glyph.name) for glyph in characters]).repeat(HELD_OUT_VIEWS)
        images = augment_glyphs(pixels, torch.Generator().manual_seed(HELD_OUT_SEED))
        self.tasks = {"fonts": (images, labels, vocabulary.tokenize([GLYPH_TEMPLATE.format(name) for name in names]))}
        names = [item.name for item in emoji]
        images = prepare(torch.stack([torch.tensor(item.pixels) for item in emoji]))
        tokens = vocabulary.tokenize([EMOJI_TEMPLATE.format(name) for name in names])
        self.tasks["style"] = (images, torch.arange(len(names)), tokens)

    def figures(self, model: CLIP) -> dict[str, float]:
        """Cross-entropy and accuracy in per cent on both, and the mean of the two losses."""
        figures = {}
        for task, (images, labels, tokens) in self.tasks.items():
            logits = logits_of(model.eval(), images.to(model.visual.proj.device), tokens.to(model.visual.proj.device))
            logits = logits.cpu()
            figures[f"{task}_loss"] = round(F.cross_entropy(logits, labels).item(), 4)
            figures[f"{task}_accuracy"] = round((logits.argmax(dim=1) == labels).float().mean().item() * 100, 2)
        model.train()
        return {"loss": round((figures["fonts_loss"] + figures["style_loss"]) / 2, 4), **figures}


class Trainer:
    """One pretraining run, which writes its best weights to `out` and what it resumes from to `<out>.state`."""

    def __init__(self, batches: Batches, held_out: HeldOut, recipe: Recipe, out: Path, device: str = "cpu") -> None:
        self.batches, self.held_out, self.recipe, self.out = batches, held_out, recipe, out
        self.device = torch.device(device)
        self.model = new_model(len(batches.vocabulary.ids), recipe.seed).to(self.device)
        self.optimizer = build_optimizer(self.model, recipe.learning_rate, recipe.weight_decay)
        self.curve: list[dict[str, float]] = []
        self.first_step, self.cpu_seconds = 0, 0.0

    @property
    def state_path(self) -> Path:
        """Where the state to resume from lies."""
        return self.out.with_suffix(".state")

    def step(self, step: int) -> float:
        """One update; returns the loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate_at(step)
        batch, model = self.batches.draw(self.recipe.difficulty(step)).to(self.device), self.model
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16"):
            images = encode_image(model, batch.images, self.recipe.kept_at(step), self.batches.generator)
            texts = encode_text_by_length(model, batch.tokens)
        logits = model.logit_scale.exp() * F.normalize(images.float(), dim=-1) @ F.normalize(texts.float(), dim=-1).T
        loss = contrastive_loss(logits, batch.same)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        model.logit_scale.data.clamp_(0, math.log(100))
        return loss.item()

    def run(self) -> None:
        """Train from where the state says, or from the start."""
        start, losses = time.process_time() - self.cpu_seconds, []
        for step in range(self.first_step, self.recipe.steps):
            losses.append(self.step(step))
            self.cpu_seconds = time.process_time() - start
            if (step + 1) % 50 == 0:
                mean = sum(losses[-50:]) / len(losses[-50:])
                print(f"step [{step + 1}/{self.recipe.steps}] loss {mean:.3f} cpu {self.cpu_seconds:.0f} s", flush=True)
            if (step + 1) % self.recipe.evaluate_every == 0 or step + 1 == self.recipe.steps:
                self.evaluate(step + 1)

    def evaluate(self, step: int) -> None:
        """Look at what is held out, keep the weights if they are the best so far, and save the state."""
        self.curve.append({"step": step, **self.held_out.figures(self.model)})
        print(json.dumps(self.curve[-1]), flush=True)
        if self.curve[-1] == self.best():
            save_bundled(full_state_dict(self.model, self.batches.vocabulary), self.out)
        self.save_state(step)

    def best(self) -> dict[str, float]:
        """The point of the curve with the lowest held-out loss."""
        return min(self.curve, key=lambda point: point["loss"])

    def save_state(self, step: int) -> None:
        """Write everything that the next step depends on."""
        state = {
            "step": step,
            "steps": self.recipe.steps,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": self.batches.rng.getstate(),
            "generator": self.batches.generator.get_state(),
            "curve": self.curve,
            "cpu_seconds": self.cpu_seconds,
        }
        with atomic_write(self.state_path, "wb") as file:
            torch.save(state, file)

    def resume(self) -> None:
        """Go on from the saved state.

        Raises:
            ValueError: the number of steps changed although the decay had begun, whose pace hangs on it.
        """
        state = torch.load(self.state_path, map_location="cpu", weights_only=True)
        step, recipes = state["step"], (self.recipe, replace(self.recipe, steps=state["steps"]))
        if recipes[0] != recipes[1] and any(recipe.is_decay(step - 1) for recipe in recipes):
            raise ValueError(
                f"{self.state_path} is at step {step} of {state['steps']}: too late for {self.recipe.steps}"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        version, internal, gauss = state["rng"]
        self.batches.rng.setstate((version, tuple(internal), gauss))
        self.batches.generator.set_state(state["generator"])
        self.first_step, self.curve, self.cpu_seconds = step, state["curve"], state["cpu_seconds"]


def pretrain(recipe: Recipe, corpus: list[Emoji], out: Path, resume: bool = False, device: str = "cpu") -> dict:
    """Train one model, write the best of it and its figures, and return the figures."""
    torch.set_num_threads(1)
    characters = draw_glyphs(text_fonts())
    vocabulary = Vocabulary([*glyphs.vocabulary_captions(), *emoji_corpus.vocabulary_captions(corpus)])
    held_out = HeldOut(
        [glyph for glyph in characters if glyph.font in HELD_OUT_FONTS],
        [item for item in corpus if item.style == HELD_OUT_STYLE],
        vocabulary,
    )
    seen = [glyph for glyph in characters if glyph.font not in HELD_OUT_FONTS]
    batches = Batches(seen, [item for item in corpus if item.style != HELD_OUT_STYLE], vocabulary, recipe)
    print(f"{len(seen)} characters, {len(batches.emoji)} emoji, {len(vocabulary.ids)} tokens")
    out.parent.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(batches, held_out, recipe, out, device)
    if resume:
        trainer.resume()
    trainer.run()
    figures = {
        "recipe": asdict(recipe),
        "held_out": trainer.best(),
        "curve": trainer.curve,
        "cpu_seconds": round(trainer.cpu_seconds),
    }
    write_json(figures, str(out.with_suffix(".json")))
    return figures


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, required=True, help=".npz written by tools.emoji_corpus")
    parser.add_argument("--seed", type=int, default=0, help="of the weights, the batches and the captions")
    parser.add_argument("--steps", type=int, default=1500, help="number of updates")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint to write; figures go beside it as .json")
    parser.add_argument("--resume", action="store_true", help="go on from <out>.state; --steps may be another number")
    parser.add_argument("--device", default="cpu", help="cpu, cuda ...; batches are drawn on the CPU all the same")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="bf16 where the chip has it")
    arguments = parser.parse_args()
    recipe = Recipe(seed=arguments.seed, steps=arguments.steps, precision=arguments.precision)
    figures = pretrain(recipe, read_corpus(arguments.corpus), arguments.out, arguments.resume, arguments.device)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
