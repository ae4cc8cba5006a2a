"""Make `assets/digits`: scikit-learn's handwritten digits as PNG images with a split file.

    python -m tools.make_digits --out assets/digits

The digits are 8x8 counts from 0 to 16. Each is inverted to dark on white, enlarged to 36x36 (bicubic) and framed in
white to 48x48. Rerunning reproduces the same files.
"""

import argparse
import json
import random
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from dassl.utils import atomic_write
from tools.glyphs import DIGIT_NAMES

SIDE, INNER = 48, 36
SPLIT_SEED = 0
TRAIN_PER_CLASS, VAL_PER_CLASS = 60, 30


def render(counts: np.ndarray) -> Image.Image:
    """One 8x8 digit with values 0 - 16 as a 48x48 grey image, dark on white."""
    grey = np.round(255 - counts * (255 / 16)).clip(0, 255).astype(np.uint8)
    image = Image.new("L", (SIDE, SIDE), 255)
    offset = (SIDE - INNER) // 2
    image.paste(Image.fromarray(grey).resize((INNER, INNER), Image.Resampling.BICUBIC), (offset, offset))
    return image


def split(labels: list[int], seed: int) -> dict[str, list[int]]:
    """Deal image indices into train, val and test: the first two with a fixed number per class, the rest is test."""
    rng = random.Random(seed)
    parts: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    for label in sorted(set(labels)):
        indices = [index for index, value in enumerate(labels) if value == label]
        rng.shuffle(indices)
        bounds = (0, TRAIN_PER_CLASS, TRAIN_PER_CLASS + VAL_PER_CLASS, len(indices))
        for part, start, stop in zip(parts, bounds, bounds[1:], strict=False):
            parts[part] += sorted(indices[start:stop])
    return parts


def relative_path(index: int, label: int) -> str:
    """Where an image lies below `images/`."""
    return f"digit_{DIGIT_NAMES[label]}/{index:04d}.png"


def write_digits(out: Path) -> None:
    """Write every image and the split file below `out`."""
    digits = load_digits()
    labels = [int(label) for label in digits.target]
    for index, (counts, label) in enumerate(zip(digits.images, labels, strict=True)):
        path = out / "images" / relative_path(index, label)
        path.parent.mkdir(parents=True, exist_ok=True)
        render(counts).save(path, optimize=True)
    entries = {
        part: [
            [relative_path(index, labels[index]), labels[index], f"digit {DIGIT_NAMES[labels[index]]}"]
            for index in indices
        ]
        for part, indices in split(labels, SPLIT_SEED).items()
    }
    with atomic_write(out / "split_digits.json", "w") as file:
        file.write(json.dumps(entries) + "\n")


def main() -> None:
    """Read the command line and write the data set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write, for example assets/digits")
    write_digits(parser.parse_args().out)


if __name__ == "__main__":
    main()
