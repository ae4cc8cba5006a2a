"""Choose which model of `tools/pretrain_clip.py` ships, by held-out loss alone, and publish the figures of all.

    python -m tools.choose_clip runs/seed?.pt --assets assets

Copies the chosen checkpoint to `tiny_clip.pt` and writes `tiny_clip_seeds.json`. Zero-shot accuracy on the bundled
data sets is measured for the record and has no part in the choice.
"""

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from clip import tokenize
from PIL import Image
from torch import Tensor

from dassl.utils import write_json
from prompting.state_dict import read_bundled, save_bundled
from tools.augment import prepare
from tools.contrastive import load_model, logits_of

NAME = "tiny_clip"
RULE = "lowest mean loss on the held-out drawing style and fonts; zero-shot accuracy has no part in it"


@dataclass(frozen=True)
class Task:
    """Part of a split file to classify, and with which prompt."""

    split_file: str
    part: str
    template: str


EMOJI_TEMPLATE = "a photo of a {}."
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


def choose(figures: list[dict]) -> dict:
    """The run with the lowest held-out loss."""
    return min(figures, key=lambda run: run["held_out"]["loss"])


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
    logits = logits_of(load_model(checkpoint), images, tokenize([task.template.format(name) for name in names]))
    half = math.ceil(len(names) / 2)
    accuracy = {}
    for split, (start, stop) in {"base": (0, half), "new": (half, len(names)), "all": (0, len(names))}.items():
        inside = (labels >= start) & (labels < stop)
        right = logits[inside, start:stop].argmax(dim=1) + start == labels[inside]
        accuracy[split] = round(right.float().mean().item() * 100, 2)
    return accuracy


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
    """Read the command line, choose and publish."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoints", nargs="+", type=Path, help="written by tools.pretrain_clip")
    parser.add_argument("--assets", type=Path, required=True, help="folder that holds digits/ and emoji/; written to")
    arguments = parser.parse_args()
    print(json.dumps(publish(arguments.checkpoints, arguments.assets), indent=2))


if __name__ == "__main__":
    main()
