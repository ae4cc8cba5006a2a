"""Measure bundled models zero-shot on what is held out of the mini corpus, side by side.

    python -m tools.mini_figures --corpus runs/mini assets/tiny_clip.pt assets/mini_clip.pt

Every task has at most 100 classes, drawn by a fixed seed, and the template "a photo of a {}.". The families are those
of the part `report`, which choose nothing. Prints a Markdown table of accuracies in per cent; the bundled data sets'
(base / new / all) come last.
"""

from __future__ import annotations

import argparse
import random
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import clip
import numpy as np
import torch

from prompting.weights import read_bundled
from tools.mini_corpus import HELD_NAME
from tools.pretrain_clip import EMOJI_TEMPLATE, TASKS, VOCABULARY, Emoji, logits_of, new_model, prepare, read_corpus
from tools.pretrain_clip import zero_shot as bundled_zero_shot

CLASSES, SEED = 100, 7
MONO = ("outline", "solid", "duotone")
Group = tuple[str, list[Emoji]]  # a task's name and its images; the classes are the names that occur


def groups(corpus: list[Emoji]) -> list[Group]:
    """The tasks, in the order of the table."""
    rng = random.Random(SEED)
    by_part: dict[str, list[Emoji]] = defaultdict(list)
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


def of(items: list[Emoji], names: set[str], keep: Callable[[Emoji], bool] = lambda item: True) -> list[Emoji]:
    """The drawings of some names."""
    return [item for item in items if item.name in names and keep(item)]


def zero_shot(checkpoint: Path, items: list[Emoji]) -> float:
    """Accuracy in per cent among the names that occur."""
    names = sorted({item.name for item in items})
    model = new_model(VOCABULARY, seed=0).eval()
    model.load_state_dict(read_bundled(checkpoint))
    images = prepare(torch.tensor(np.stack([item.pixels for item in items])))
    logits = logits_of(model, images, clip.tokenize([EMOJI_TEMPLATE.format(name) for name in names]))
    labels = torch.tensor([names.index(item.name) for item in items])
    return round((logits.argmax(dim=1) == labels).float().mean().item() * 100, 1)


def table(corpus: list[Emoji], checkpoints: list[Path], assets: Path) -> str:
    """The Markdown table."""
    lines = [f"| task (images, classes) | {' | '.join(path.stem for path in checkpoints)} |"]
    lines.append("|---" * (len(checkpoints) + 1) + "|")
    for title, items in groups(corpus):
        if items:
            size = f"{len(items)}, {len({item.name for item in items})}"
            figures = " | ".join(str(zero_shot(path, items)) for path in checkpoints)
            lines.append(f"| {title} ({size}) | {figures} |")
    for title, task in TASKS.items():
        figures = [bundled_zero_shot(path, task, assets).values() for path in checkpoints]
        cells = " | ".join(" / ".join(f"{value:.1f}" for value in row) for row in figures)
        lines.append(f"| `{title}` | {cells} |")
    return "\n".join(lines)


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
    print(table(read_corpus(args.corpus), args.checkpoints, args.assets))


if __name__ == "__main__":
    main()
