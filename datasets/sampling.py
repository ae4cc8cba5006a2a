"""Draw few-shot images: those that CoOp draws for the same split, number of shots and seed."""

import hashlib
import json
import os
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from dassl.data.datasets import Datum

MAX_VAL_SHOTS = 4

Sample = Callable[[list[Datum], int], list[Datum]]


def sample_of(seed: int) -> Sample:
    """A stream to draw from: local, so that the images depend on nothing that ran before; negative: the global one."""
    return random.Random(seed).sample if seed >= 0 else random.sample


def draw_shots(
    train: Sequence[Datum], val: Sequence[Datum], shots: int, seed: int, hold_out: bool = False
) -> tuple[list[Datum], list[Datum]]:
    """Draw `shots` training and min(shots, 4) validation images per class, in one random stream.

    Args:
        train: the training images.
        val: the validation images; may be empty.
        shots: images per class.
        seed: seed of the stream; a negative one draws from the global `random` instead.
        hold_out: without validation images, draw them from the training images that are left. The stream is then
            past the training images, which are the same with and without.
    """
    sample = sample_of(seed)
    drawn = sample_per_class(train, shots, sample)
    if hold_out and not val:
        return drawn, draw_held_out(train, drawn, shots, sample)
    return drawn, sample_per_class(val, min(shots, MAX_VAL_SHOTS), sample) if val else []


def draw_held_out(train: Sequence[Datum], shots_drawn: Sequence[Datum], shots: int, sample: Sample) -> list[Datum]:
    """Draw min(shots, 4) images per class from the training images that are not among the shots."""
    print("Validation images are drawn from the training images that are not among the shots")
    taken = {item.impath for item in shots_drawn}
    return sample_per_class([item for item in train if item.impath not in taken], min(shots, MAX_VAL_SHOTS), sample)


def sample_per_class(items: Sequence[Datum], shots: int, sample: Sample) -> list[Datum]:
    """Draw `shots` images of each class; a class that has no more gives all, in order, and costs no random number."""
    print(f"Creating a {shots}-shot dataset")
    by_label: dict[int, list[Datum]] = defaultdict(list)
    for item in items:
        by_label[item.label].append(item)
    short = {group[0].classname: len(group) for group in by_label.values() if len(group) < shots}
    if short:
        fewest = min(short, key=short.__getitem__)
        print(f"{len(short)} classes have fewer than {shots} images and give all they have ({fewest}: {short[fewest]})")
    return [item for group in by_label.values() for item in (sample(group, shots) if len(group) >= shots else group)]


def hash_selection(train: Sequence[Any], val: Sequence[Any], image_dir: str) -> str:
    """SHA-256 over the relative paths and labels of the images drawn, in order: the same on every machine."""
    rows = [[[relative_path(item.impath, image_dir), item.label] for item in part] for part in (train, val)]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def relative_path(impath: str, image_dir: str) -> str:
    """An image's path below the image folder, with forward slashes."""
    return os.path.relpath(impath, image_dir).replace(os.sep, "/")
