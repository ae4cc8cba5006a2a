"""Choose which pretrained model ships, by its loss on held-out fonts alone, and publish the figures of all.

    python -m tools.choose_tiny_clip runs/seed?.pt --assets assets

Copies the chosen checkpoint to `tiny_clip.pt` and writes `tiny_clip_seeds.json`. Zero-shot accuracy on the digits is
measured for the record and has no part in the choice.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dassl.utils import write_json
from prompting.bundled import read_bundled, save_bundled
from tools.augment import MEAN, STD
from tools.contrastive import load_model
from tools.pretrain_tiny_clip import TEMPLATE, class_logits

NAME = "tiny_clip"
RULE = "lowest loss on the held-out fonts; accuracy on the digits, zero-shot or few-shot, has no part in it"


def choose(figures: list[dict]) -> dict:
    """The run with the lowest held-out loss."""
    return min(figures, key=lambda run: run["held_out"]["loss"])


def read_test_images(digits: Path) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """Test images of the digits (N, 3, 48, 48), their labels (N,), and the class names."""
    test = json.loads((digits / "split_digits.json").read_text())["test"]
    pixels = np.stack([np.asarray(Image.open(digits / "images" / path)) for path, _, _ in test])
    images = (torch.tensor(pixels)[:, None].expand(-1, 3, -1, -1) / 255 - MEAN) / STD
    names = dict(sorted({label: name for _, label, name in test}.items()))
    return images, torch.tensor([label for _, label, _ in test]), list(names.values())


def zero_shot(checkpoint: Path, digits: Path) -> dict[str, float]:
    """Accuracy in per cent of base classes among base, new among new, and all among all."""
    images, labels, names = read_test_images(digits)
    logits = class_logits(load_model(checkpoint), images, names)
    half = math.ceil(len(names) / 2)
    ranges = {"base": (0, half), "new": (half, len(names)), "all": (0, len(names))}
    accuracy = {}
    for split, (start, stop) in ranges.items():
        inside = (labels >= start) & (labels < stop)
        right = logits[inside, start:stop].argmax(dim=1) + start == labels[inside]
        accuracy[split] = round(right.float().mean().item() * 100, 2)
    return accuracy


def publish(checkpoints: list[Path], assets: Path) -> dict:
    """Choose, copy the checkpoint, and write the figures of every run."""
    runs = [json.loads(path.with_suffix(".json").read_text()) for path in checkpoints]
    chosen = choose(runs)
    for path, run in zip(checkpoints, runs, strict=True):
        run["zero_shot"] = zero_shot(path, assets / "digits")
    save_bundled(read_bundled(checkpoints[runs.index(chosen)]), assets / f"{NAME}.pt")
    report = {"shipped_seed": chosen["recipe"]["seed"], "rule": RULE, "template": TEMPLATE, "runs": runs}
    write_json(report, str(assets / f"{NAME}_seeds.json"))
    return report


def main() -> None:
    """Read the command line, choose and publish."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoints", nargs="+", type=Path, help="written by tools.pretrain_tiny_clip")
    parser.add_argument("--assets", type=Path, required=True, help="folder that holds digits/; written to")
    arguments = parser.parse_args()
    print(json.dumps(publish(arguments.checkpoints, arguments.assets), indent=2))


if __name__ == "__main__":
    main()
