"""Draw new splits from original annotations, by the two rules of CoOp's data set files.

Where the data set has an official test set, a fifth of each class's other images validate (`split_trainval`); where it
has none, each class is dealt into half train, a fifth val, the rest test (`split_classes`).
"""

import os
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from datasets.imagefolders import list_classes, list_images
from datasets.splitfile import Entry

TRAIN_SHARE, VAL_SHARE = 0.5, 0.2


class AnnotationError(ValueError):
    """An original annotation that a split cannot be drawn from."""


class AnnotationMissingError(FileNotFoundError):
    """A file of the original annotation is not there."""


def read_lines(folder: str, name: str) -> list[str]:
    """The lines of a text file of the annotation that are not empty.

    Raises:
        AnnotationMissingError: there is no such file.
    """
    with open(require(folder, name), encoding="utf-8") as file:
        return [line.strip() for line in file if line.strip()]


def require(folder: str, name: str) -> str:
    """Path of a file of the annotation.

    Raises:
        AnnotationMissingError: there is no such file.
    """
    path = os.path.join(folder, name)
    if not os.path.isfile(path):
        raise AnnotationMissingError(
            f"{path} does not exist: a new split is drawn from the original annotation, which has it"
        )
    return path


def load_matlab(folder: str, name: str, variable: str) -> list:
    """One row of a variable of a MATLAB file of the annotation.

    Raises:
        AnnotationError: SciPy is not installed, or the file lacks the variable.
        AnnotationMissingError: there is no such file.
    """
    path = require(folder, name)
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise AnnotationError(f"{path} is a MATLAB file; reading it takes: pip install scipy") from error
    content = loadmat(path)
    if variable not in content:
        raise AnnotationError(f"{path} has no variable {variable!r}")
    return content[variable][0]


def split_trainval(entries: Sequence[Entry], rng: random.Random) -> tuple[list[Entry], list[Entry]]:
    """Deal the images that are not test images into train and val, class by class.

    Raises:
        AnnotationError: a class has too few images to validate on any.
    """
    train, val = [], []
    for group in by_label(entries).values():
        count = round(len(group) * VAL_SHARE)
        if not count:
            raise AnnotationError(f"class {group[0][2]!r} has {len(group)} images outside the test set: too few")
        rng.shuffle(group)
        val += group[:count]
        train += group[count:]
    return train, val


def split_classes(entries: Iterable[Entry], rng: random.Random) -> dict[str, list[Entry]]:
    """Deal each class's images into train, val and test.

    Raises:
        AnnotationError: a class has too few images for one in each part.
    """
    parts: dict[str, list[Entry]] = {"train": [], "val": [], "test": []}
    for group in by_label(entries).values():
        train, val = round(len(group) * TRAIN_SHARE), round(len(group) * VAL_SHARE)
        if not (train and val and train + val < len(group)):
            raise AnnotationError(
                f"class {group[0][2]!r} has {len(group)} images: too few to deal into train, val and test"
            )
        rng.shuffle(group)
        parts["train"] += group[:train]
        parts["val"] += group[train : train + val]
        parts["test"] += group[train + val :]
    return parts


def by_label(entries: Iterable[Entry]) -> dict[int, list[Entry]]:
    """The entries of each label, labels in the order in which they first come."""
    groups: dict[int, list[Entry]] = defaultdict(list)
    for entry in entries:
        groups[entry[1]].append(entry)
    return groups


def class_folder_entries(
    image_dir: str, ignored: Sequence[str] = (), classnames: Mapping[str, str] | None = None
) -> list[Entry]:
    """All images of the class folders; the label is the folder's position.

    Args:
        image_dir: folder of the class folders.
        ignored: class folders to leave out.
        classnames: class name by folder, for those that are not called as their folder.
    """
    folders = [folder for folder in list_classes(image_dir) if folder not in ignored]
    names = classnames or {}
    return [
        (f"{folder}/{image}", label, names.get(folder, folder))
        for label, folder in enumerate(folders)
        for image in list_images(os.path.join(image_dir, folder))
    ]
