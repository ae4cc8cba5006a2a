"""Measure bundled models zero-shot on what is held out of the mini corpus and on the miniature's data sets.

    python -m tools.mini_figures --corpus runs/mini assets/tiny_clip.pt assets/mini_clip.pt

It prints three Markdown tables of accuracies in per cent, the models side by side; the template is "a photo of a {}.":

1. tasks on the families of the part `report`, of at most 100 classes, drawn by a fixed seed, and the bundled data sets
   of digits and emoji (base / new / all);
2. the miniature's data sets (base / new / all), on their test images;
3. the views of `datasets.mini` of drawings of the families of the part `choose`, which no data set has: how strong a
   photograph is was set by these, so that they have the say and not the data sets.

The first two choose nothing.
"""

from __future__ import annotations

import argparse
import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import clip
import numpy as np
import torch
from clip.model import CLIP
from torch import Tensor

from datasets.mini import ARCHIVES, SETS, VARIANTS, Archive, number, view
from prompting.weight_files import read_state_dict
from tools.mini_corpus import HELD_NAME
from tools.pretrain_clip import (
    EMOJI_TEMPLATE,
    TASKS,
    VOCABULARY,
    Drawing,
    by_class_split,
    logits_of,
    new_model,
    prepare,
    read_corpus,
)
from tools.pretrain_clip import zero_shot as bundled_zero_shot

CLASSES, SEED = 100, 7
MONO = ("outline", "solid", "duotone")
TUNING = "tuning"  # the set that settings are chosen by, which no table has
Group = tuple[str, list[Drawing]]  # a task's name and its images; the classes are the names that occur


def groups(corpus: list[Drawing]) -> list[Group]:
    """The tasks, in the order of the table."""
    rng = random.Random(SEED)
    by_part: dict[str, list[Drawing]] = defaultdict(list)
    for item in corpus:
        by_part[item.part].append(item)
    seen = {item.name for item in by_part["pretrain"]}
    icons = [item for item in by_part["report"] if not item.kind]
    drawn = defaultdict(int)
    for item in icons:
        drawn[item.name] += item.style in MONO
    most = set(sorted((name for name in drawn if name in seen), key=lambda name: (-drawn[name], name))[:CLASSES])
    some = draw([name for name in drawn if name in seen and 2 <= drawn[name] <= 9], rng)
    result = [("seen names, new families, 100 most drawn", of(icons, most, lambda item: item.style in MONO))]
    result += [
        (f"- {style}", of(icons, most, lambda item, style=style: item.style == style))
        for style in ("outline", "solid", "pixel", "colour")
    ]
    result.append(("seen names, new families, 100 at random", of(icons, some, lambda item: item.style in MONO)))
    held = by_part[HELD_NAME]
    for title, inside in (("several words", True), ("one word", False)):
        names = draw([item.name for item in held if (" " in item.name) == inside], rng)
        result.append((f"new names of {title}, seen families", of(held, names)))
        result.append((f"new names of {title}, new families", of(icons, names)))
    styles = ("noto", "fluent-emoji", "fluent-emoji-flat", "fluent-emoji-high-contrast")
    emoji = {style: [item for item in by_part["report"] if item.style == style] for style in styles}
    shared = set.intersection(*({item.name for item in items} for items in emoji.values())) & seen
    names = draw(shared, rng)
    return result + [(f"100 emoji, {style}", of(items, names)) for style, items in emoji.items()]


def draw(names: list[str] | set[str], rng: random.Random) -> set[str]:
    """At most CLASSES of the names."""
    return set(rng.sample(sorted(set(names)), min(CLASSES, len(set(names)))))


def of(items: list[Drawing], names: set[str], keep: Callable[[Drawing], bool] = lambda item: True) -> list[Drawing]:
    """The drawings of some names."""
    return [item for item in items if item.name in names and keep(item)]


def load(checkpoint: Path) -> CLIP:
    """A bundled model as it is on disk, that is, after rounding to fp16."""
    model = new_model(VOCABULARY, seed=0).eval()
    model.load_state_dict(read_state_dict(checkpoint))
    return model


def classify(model: CLIP, pictures: list[np.ndarray], names: list[str]) -> Tensor:
    """Logits (N, names) of pictures, each (H, W, 3) uint8."""
    return logits_of(
        model, prepare(torch.tensor(np.stack(pictures))), clip.tokenize([EMOJI_TEMPLATE.format(name) for name in names])
    )


def zero_shot(model: CLIP, items: list[Drawing]) -> float:
    """Accuracy in per cent among the names that occur."""
    names = sorted({item.name for item in items})
    logits = classify(model, [item.pixels for item in items], names)
    labels = torch.tensor([names.index(item.name) for item in items])
    return round((logits.argmax(dim=1) == labels).float().mean().item() * 100, 1)


def table(first: str, checkpoints: list[Path], rows: list[tuple[str, list[str]]]) -> str:
    """A Markdown table with a column for each model."""
    lines = [f"| {first} | {' | '.join(path.stem for path in checkpoints)} |", "|---" * (len(checkpoints) + 1) + "|"]
    return "\n".join(lines + [f"| {title} | {' | '.join(cells)} |" for title, cells in rows])


def in_words(figures: dict[str, float]) -> str:
    """Base, new and all in a cell."""
    return " / ".join(f"{value:.1f}" for value in figures.values())


def task_rows(corpus: list[Drawing], checkpoints: list[Path], assets: Path) -> list[tuple[str, list[str]]]:
    """The rows of the first table."""
    models = [load(path) for path in checkpoints]
    rows = []
    for title, items in groups(corpus):
        if items:
            title = f"{title} ({len(items)}, {len({item.name for item in items})})"
            rows.append((title, [str(zero_shot(model, items)) for model in models]))
    for title, task in TASKS.items():
        rows.append((f"`{title}`", [in_words(bundled_zero_shot(path, task, assets)) for path in checkpoints]))
    return rows


def set_rows(checkpoints: list[Path]) -> list[tuple[str, list[str]]]:
    """The rows of the second table."""
    models, rows = [load(path) for path in checkpoints], []
    for name in SETS:
        if name == TUNING:
            continue
        archive = Archive(ARCHIVES / f"{name}.zip")
        classes, sources, drawings = archive.content["classes"], archive.content["drawings"], archive.drawings()
        for variant in ("photo", *(VARIANTS if name == "objects" else ())):
            images = archive.rows(variant)["test"]
            pictures = [
                np.asarray(view(drawings[drawing], variant, number(name, sources[drawing], which)))
                for _, drawing, which in images
            ]
            labels = torch.tensor([label for label, _, _ in images])
            title = f"`Mini{name.title()}{'' if variant == 'photo' else variant.title()}`"
            cells = [in_words(by_class_split(classify(model, pictures, classes), labels)) for model in models]
            rows.append((f"{title} ({len(images)}, {len(classes)})", cells))
    return rows


def view_rows(corpus: list[Drawing], checkpoints: list[Path]) -> list[tuple[str, list[str]]]:
    """The rows of the third table: of the names that pretraining knows and several families draw, the most drawn."""
    models = [load(path) for path in checkpoints]
    seen = {item.name for item in corpus if item.part == "pretrain"}
    drawn: dict[str, list[Drawing]] = defaultdict(list)
    for item in corpus:
        if item.part == "choose" and not item.kind and item.name in seen:
            drawn[item.name].append(item)
    several = [name for name, items in drawn.items() if len({item.package for item in items}) > 1]
    names = sorted(several, key=lambda name: (-len(drawn[name]), name))[:CLASSES]
    items = [item for name in sorted(names) for item in drawn[name]]
    rows = []
    for variant in ("plain", "photo", *(name for name in VARIANTS if name != "plain")):
        views = [
            replace(item, pixels=np.asarray(view(item.pixels, variant, number("choose", position))))
            for position, item in enumerate(items)
        ]
        title = f"{variant} ({len(views)}, {len(names)})"
        rows.append((title, [str(zero_shot(model, views)) for model in models]))
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.mini_figures", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoints", nargs="+", type=Path, help="bundled models")
    parser.add_argument("--corpus", type=Path, required=True, help="folder of tools.mini_corpus")
    parser.add_argument("--assets", type=Path, default=Path("assets"), help="folder that holds digits/ and emoji/")
    args = parser.parse_args()
    torch.set_num_threads(1)
    corpus = read_corpus(args.corpus)
    for title, rows in (
        ("task", task_rows(corpus, args.checkpoints, args.assets)),
        ("data set", set_rows(args.checkpoints)),
        ("view", view_rows(corpus, args.checkpoints)),
    ):
        print(table(f"{title} (images, classes)", args.checkpoints, rows), end="\n\n")


if __name__ == "__main__":
    main()
