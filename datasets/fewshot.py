"""What every few-shot data set shares: find the folder, read the split, draw the shots, take base or new classes.

A data set is a subclass that says where its files lie. Nothing is written: the shots follow from the split file, the
seed and the number of shots alone, and are those that CoOp's data set files draw, so a read-only data folder will do.
"""

import hashlib
import json
import math
import os
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from dassl.config import cfg_default
from dassl.data.datasets import DatasetBase, Datum
from datasets.splitfile import read_split

CLASS_SPLITS = ("all", "base", "new")
MAX_VAL_SHOTS = 4

cfg_default.DATASET.SUBSAMPLE_CLASSES = "all"  # all, base or new


class DataRootError(FileNotFoundError):
    """The folder of a data set is not under DATASET.ROOT."""


class ClassSplitError(ValueError):
    """DATASET.SUBSAMPLE_CLASSES cannot be applied."""


class FewShotDataset(DatasetBase):
    """A data set with a split file, as in CoOp (Zhou et al., IJCV 2022).

    Subclasses set the class attributes. `DATASET.NUM_SHOTS` below 1 keeps all training images.

    Attributes:
        dataset_dir: folder under DATASET.ROOT; on an instance, its absolute path.
        image_folder: folder in it that the split file's paths are relative to; `image_dir` is its absolute path.
        split_file: name of the split file in it; `split_path` is its absolute path.
        split_help: one sentence on how to get the split file.
        template: prompt for zero-shot classification, "{}" standing for the class name.
        all_classnames: the class names before base or new classes were taken.
        split_sha256: hash of the split file.
        fewshot_sha256: hash of the images drawn for train and val, before base or new classes were taken; None when
            all training images are used.
    """

    dataset_dir: str = ""
    image_folder: ClassVar[str] = ""
    split_file: ClassVar[str] = ""
    split_help: ClassVar[str] = ""
    template: str = "a photo of a {}."

    def __init__(self, cfg: Any) -> None:
        self.dataset_dir = find_dataset_dir(cfg.DATASET.ROOT, self.dataset_dir)
        self.image_dir = os.path.join(self.dataset_dir, self.image_folder)
        self.split_path = os.path.join(self.dataset_dir, self.split_file)
        print(f"Reading split from {self.split_path}")
        split = read_split(self.split_path, self.image_dir, self.split_help)
        self.all_classnames, self.split_sha256 = split.classnames, split.sha256
        self.fewshot_sha256: str | None = None
        train, val = split.train, split.val
        if cfg.DATASET.NUM_SHOTS >= 1:
            train, val = draw_shots(train, val, cfg.DATASET.NUM_SHOTS, cfg.SEED)
            self.fewshot_sha256 = hash_selection(train, val, self.image_dir)
        train, val, test = subsample_classes(train, val, split.test, subsample=cfg.DATASET.SUBSAMPLE_CLASSES)
        super().__init__(train_x=train, val=val, test=test)


def find_dataset_dir(root: str, folder: str) -> str:
    """Absolute path of a data set's folder under the data root.

    Raises:
        DataRootError: it is not there; the message suggests the right root if that is one level off.
    """
    if not root:
        raise DataRootError(f"the data root is not set: pass --root with the folder that holds {folder!r}")
    root = os.path.abspath(os.path.expanduser(root))
    path = os.path.join(root, folder)
    if os.path.isdir(path):
        return path
    found = f"{root} has no folder {folder!r}" if os.path.isdir(root) else f"the data root {root} does not exist"
    raise DataRootError(f"{found}.{suggest_root(root, folder)}")


def suggest_root(root: str, folder: str) -> str:
    """A sentence that names the root one level up or down that has the folder, or a folder spelt in another case."""
    children = sorted(entry.name for entry in os.scandir(root) if entry.is_dir()) if os.path.isdir(root) else []
    for candidate in (os.path.dirname(root), *(os.path.join(root, child) for child in children)):
        if os.path.isdir(os.path.join(candidate, folder)):
            return f" {candidate} has it: pass --root {candidate}"
    for child in children:
        if child.lower() == folder.lower():
            return f" There is {child!r}: rename it, case matters."
    return " The data root is the folder that holds one folder per data set."


def draw_shots(train: list[Datum], val: list[Datum], shots: int, seed: int) -> tuple[list[Datum], list[Datum]]:
    """Draw `shots` training and min(shots, 4) validation images per class, in one random stream.

    The stream is local, so that the images depend on nothing that ran before; a negative seed draws from the global
    `random` instead.
    """
    sample = random.Random(seed).sample if seed >= 0 else random.sample
    drawn = sample_per_class(train, shots, sample)
    return drawn, sample_per_class(val, min(shots, MAX_VAL_SHOTS), sample) if val else []


def sample_per_class(items: list[Datum], shots: int, sample: Callable[[list[Datum], int], list[Datum]]) -> list[Datum]:
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


def hash_selection(train: list[Datum], val: list[Datum], image_dir: str) -> str:
    """SHA-256 over the relative paths and labels of the images drawn, in order: the same on every machine."""
    rows = [
        [[os.path.relpath(item.impath, image_dir).replace(os.sep, "/"), item.label] for item in part]
        for part in (train, val)
    ]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def subsample_classes(*sources: Sequence[Datum], subsample: str = "all") -> list[list[Datum]]:
    """Keep base or new classes, relabelled from 0.

    The first ceil(n / 2) of the n labels in the first source are the base classes, the others are new (CoOp's rule).

    Raises:
        ClassSplitError: `subsample` is none of all, base and new, or no class would be left.
    """
    if subsample not in CLASS_SPLITS:
        raise ClassSplitError(f"DATASET.SUBSAMPLE_CLASSES is {subsample!r}; choose from: {', '.join(CLASS_SPLITS)}")
    if subsample == "all":
        return [list(source) for source in sources]
    print(f"SUBSAMPLE {subsample.upper()} CLASSES!")
    labels = sorted({item.label for item in sources[0]})
    base = math.ceil(len(labels) / 2)
    kept = labels[:base] if subsample == "base" else labels[base:]
    if not kept:
        raise ClassSplitError(f"a data set with {len(labels)} classes has no {subsample} classes")
    relabelled = {label: index for index, label in enumerate(kept)}
    return [[relabel(item, relabelled) for item in source if item.label in relabelled] for source in sources]


def relabel(item: Datum, labels: dict[int, int]) -> Datum:
    """The same image with its label looked up in `labels`."""
    return Datum(impath=item.impath, label=labels[item.label], domain=item.domain, classname=item.classname)
