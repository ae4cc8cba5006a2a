"""Pretrain the bundled CLIP that knows printed characters and emoji, and choose which seed ships.

    python -m tools.bundled_data corpus --packages icons/node_modules --out runs/emoji_corpus.npz
    OMP_NUM_THREADS=1 python -m tools.pretrain_clip train --corpus runs/emoji_corpus.npz --seed 0 --out runs/seed0.pt
    python -m tools.pretrain_clip choose runs/seed?.pt --assets assets

OpenAI's architecture, small; CLIP's contrastive loss; two corpora, captions by name and by kind; image tokens dropped
at random until the learning rate falls, which costs little accuracy for the time it saves (Li et al., "Scaling
Language-Image Pre-training via Masking", CVPR 2023).

`train` looks at what is held out, one drawing style and three fonts, every 250 steps, keeps the weights of the lowest
held-out loss, and writes `<out>.json` with the curve beside the checkpoint. `choose` takes the seed with the lowest
held-out loss, copies it to `tiny_clip.pt` and writes the figures of all to `tiny_clip_seeds.json`; zero-shot accuracy
on the bundled data sets is measured for the record and has no part in the choice.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import clip
import numpy as np
import torch
import torch.nn.functional as F
from clip.model import CLIP
from PIL import Image
from torch import Tensor, nn

from common.files import atomic_write
from dassl.utils import write_json
from prompting.state_dict import read_bundled, save_bundled
from tools.bundled_data import HELD_OUT_STYLE
from tools.pretraining_data import (
    HELD_OUT_FONTS,
    MAX_CONTEXT,
    RESOLUTION,
    Emoji,
    Glyph,
    augment_emoji,
    augment_glyphs,
    character_names,
    choose_subject,
    draw_glyphs,
    emoji_caption,
    emoji_vocabulary,
    glyph_caption,
    glyph_vocabulary,
    prepare,
    read_corpus,
    text_fonts,
)

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
NAME = "tiny_clip"
RULE = "lowest mean loss on the held-out drawing style and fonts; zero-shot accuracy has no part in it"


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

    def __init__(self, characters: list[Glyph], emoji: list[Emoji], vocabulary: Vocabulary, recipe: Recipe) -> None:
        self.characters, self.emoji, self.vocabulary = characters, emoji, vocabulary
        self.digits = [glyph for glyph in characters if glyph.name.startswith("digit")]
        self.from_glyphs = round(recipe.glyph_share * recipe.batch)
        self.from_emoji = recipe.batch - self.from_glyphs
        self.rng = random.Random(recipe.seed)
        self.generator = torch.Generator().manual_seed(recipe.seed)

    def draw(self, difficulty: float) -> tuple[Tensor, Tensor, Tensor]:
        """One batch; `difficulty` from 0 to 1 is that of the images and captions.

        Returns:
            Images (B, 3, R, R), tokens (B, longest), and which pairs fit, (B, B) bool.
        """
        digits = self.rng.choices(self.digits, k=self.from_glyphs // 2)
        characters = digits + self.rng.choices(self.characters, k=self.from_glyphs - len(digits))
        emoji = self.rng.choices(self.emoji, k=self.from_emoji)
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
        return torch.cat(images), self.vocabulary.tokenize(captions), fit(characters, emoji, subjects)

    def caption(self, item: Glyph | Emoji, subject: str, longest: int, difficulty: float) -> str:
        """A random caption, or, the more often the easier, the plain one."""
        is_glyph = isinstance(item, Glyph)
        if self.rng.random() >= difficulty:
            return (GLYPH_TEMPLATE if is_glyph else EMOJI_TEMPLATE).format(subject)
        if is_glyph:
            return glyph_caption(item, longest, self.rng)
        return emoji_caption(item, subject, longest, self.rng)


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


HeldOut = dict[str, tuple[Tensor, Tensor, Tensor]]  # images, labels and tokens of the class names, by task


def held_out_tasks(characters: list[Glyph], emoji: list[Emoji], vocabulary: Vocabulary) -> HeldOut:
    """What a run is judged by: an unseen drawing style among its names, and unseen fonts among 62 characters."""
    names = list(character_names().values())
    pixels = torch.stack([torch.tensor(glyph.pixels) for glyph in characters]).repeat(HELD_OUT_VIEWS, 1, 1)
    labels = torch.tensor([names.index(glyph.name) for glyph in characters]).repeat(HELD_OUT_VIEWS)
    images = augment_glyphs(pixels, torch.Generator().manual_seed(HELD_OUT_SEED))
    fonts = images, labels, vocabulary.tokenize([GLYPH_TEMPLATE.format(name) for name in names])
    images = prepare(torch.stack([torch.tensor(item.pixels) for item in emoji]))
    tokens = vocabulary.tokenize([EMOJI_TEMPLATE.format(item.name) for item in emoji])
    return {"fonts": fonts, "style": (images, torch.arange(len(emoji)), tokens)}


def held_out_figures(model: CLIP, tasks: HeldOut) -> dict[str, float]:
    """Cross-entropy and accuracy in per cent on both tasks, and the mean of the two losses."""
    figures, device = {}, model.visual.proj.device
    for task, (images, labels, tokens) in tasks.items():
        logits = logits_of(model.eval(), images.to(device), tokens.to(device)).cpu()
        figures[f"{task}_loss"] = round(F.cross_entropy(logits, labels).item(), 4)
        figures[f"{task}_accuracy"] = round((logits.argmax(dim=1) == labels).float().mean().item() * 100, 2)
    model.train()
    return {"loss": round((figures["fonts_loss"] + figures["style_loss"]) / 2, 4), **figures}


def pretrain(recipe: Recipe, corpus: list[Emoji], out: Path, resume: bool = False, device: str = "cpu") -> dict:
    """Train one model; write the best of it to `out`, its figures beside it as .json, and return the figures.

    The corpus has every style, the held-out one too. With `resume` it goes on from `<out>.state`.
    """
    torch.set_num_threads(1)
    characters = draw_glyphs(text_fonts())
    vocabulary = Vocabulary([*glyph_vocabulary(), *emoji_vocabulary(corpus)])
    tasks = held_out_tasks(
        [glyph for glyph in characters if glyph.font in HELD_OUT_FONTS],
        [item for item in corpus if item.style == HELD_OUT_STYLE],
        vocabulary,
    )
    seen = [glyph for glyph in characters if glyph.font not in HELD_OUT_FONTS]
    batches = Batches(seen, [item for item in corpus if item.style != HELD_OUT_STYLE], vocabulary, recipe)
    print(f"{len(seen)} characters, {len(batches.emoji)} emoji, {len(vocabulary.ids)} tokens")

    out.parent.mkdir(parents=True, exist_ok=True)
    state_file = out.with_suffix(".state")
    model = new_model(len(vocabulary.ids), recipe.seed).to(device)
    optimizer = build_optimizer(model, recipe.learning_rate, recipe.weight_decay)
    first_step, curve, cpu_seconds = load_state(state_file, recipe, model, optimizer, batches) if resume else (0, [], 0)
    start, losses = time.process_time() - cpu_seconds, []

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
        cpu_seconds = time.process_time() - start
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

    figures = {
        "recipe": asdict(recipe),
        "held_out": best_of(curve),
        "curve": curve,
        "cpu_seconds": round(cpu_seconds),
    }
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


@dataclass(frozen=True)
class Task:
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
    model.load_state_dict(read_bundled(checkpoint))  # as it is on disk, that is, after rounding to fp16
    logits = logits_of(model, images, clip.tokenize([task.template.format(name) for name in names]))
    half = math.ceil(len(names) / 2)
    accuracy = {}
    for split, (start, stop) in {"base": (0, half), "new": (half, len(names)), "all": (0, len(names))}.items():
        inside = (labels >= start) & (labels < stop)
        right = logits[inside, start:stop].argmax(dim=1) + start == labels[inside]
        accuracy[split] = round(right.float().mean().item() * 100, 2)
    return accuracy


def choose(figures: list[dict]) -> dict:
    """The run with the lowest held-out loss."""
    return min(figures, key=lambda run: run["held_out"]["loss"])


def publish(checkpoints: list[Path], assets: Path) -> dict:
    """Choose, copy the checkpoint, and write the figures of every run."""
    runs = [json.loads(path.with_suffix(".json").read_text()) for path in checkpoints]
    chosen = choose(runs)
    for path, run in zip(checkpoints, runs, strict=True):
        run["zero_shot"] = {name: zero_shot(path, task, assets) for name, task in TASKS.items()}
    save_bundled(read_bundled(checkpoints[runs.index(chosen)]), assets / f"{NAME}.pt")
    report = {"shipped_seed": chosen["recipe"]["seed"], "rule": RULE, "runs": runs}
    write_json(report, str(assets / f"{NAME}_seeds.json"))
    return report


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.pretrain_clip", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="what", required=True)
    train = commands.add_parser("train", help="train one seed")
    train.add_argument("--corpus", type=Path, required=True, help=".npz written by tools.bundled_data corpus")
    train.add_argument("--seed", type=int, default=0, help="of the weights, the batches and the captions")
    train.add_argument("--steps", type=int, default=1500, help="number of updates")
    train.add_argument("--out", type=Path, required=True, help="checkpoint to write; figures go beside it as .json")
    train.add_argument("--resume", action="store_true", help="go on from <out>.state; --steps may be another number")
    train.add_argument("--device", default="cpu", help="cpu, cuda ...; batches are drawn on the CPU all the same")
    train.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="bf16 where the chip has it")
    choice = commands.add_parser("choose", help="choose which of several seeds ships")
    choice.add_argument("checkpoints", nargs="+", type=Path, help="written by train")
    choice.add_argument("--assets", type=Path, required=True, help="folder that holds digits/ and emoji/; written to")
    args = parser.parse_args()
    if args.what == "train":
        recipe = Recipe(seed=args.seed, steps=args.steps, precision=args.precision)
        print(json.dumps(pretrain(recipe, read_corpus(args.corpus), args.out, args.resume, args.device)))
    else:
        print(json.dumps(publish(args.checkpoints, args.assets), indent=2))


if __name__ == "__main__":
    main()
