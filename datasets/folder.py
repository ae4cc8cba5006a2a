"""Your own images in folders, without code: train, val and test with a folder per class in each, or classes only.

    DATASET:
      NAME: folder
      PATH: flowers              # under --root
      LABEL: my_flowers          # its name in results; default: the last part of PATH
      TEMPLATE: "a photo of a {}, a kind of flower."

    flowers/train/daisy/*.jpg    flowers/daisy/*.jpg
    flowers/val/daisy/*.jpg      flowers/rose/*.jpg
    flowers/test/daisy/*.jpg     flowers/classnames.txt

`val` may be left out. Classes alone are split once, and the split is saved. Classes are called as their folders, or as
a `classnames.txt` with lines of "folder class name" says.
"""

import os
import random
from collections.abc import Sequence
from typing import Any

from dassl.data.datasets import DATASET_REGISTRY
from datasets.annotation import split_classes
from datasets.imagefolders import list_classes, list_images, names_of, read_classnames
from datasets.locate import DataRootError, subfolders
from datasets.owndata import OwnData
from datasets.splitfile import PARTS, Entry, Split, SplitFileError, listed


@DATASET_REGISTRY.register()
class Folder(OwnData):
    """Images in class folders."""

    @classmethod
    def find_source(cls, root: str, cfg: Any = None) -> str:
        """The folder itself."""
        source = super().find_source(root, cfg)
        if not os.path.isdir(source):
            raise DataRootError(f"{source} is a file, not a folder of images; for a table use DATASET.NAME csv")
        return source

    @classmethod
    def draw_split(cls, source: str, rng: random.Random) -> dict[str, list[Entry]]:
        """Deal every class by 50, 20 and 30 %."""
        if has_parts(source):
            raise SplitFileError(f"{source} has train and test folders: its split is given")
        return split_classes(list_all(source), rng)

    def read(self, cfg: Any) -> Split:
        """The split that the folders state, or the saved one."""
        if not has_parts(self.dataset_dir):
            return self.saved_split(list_all(self.dataset_dir), cfg.OUTPUT_DIR)
        classes = list_classes(os.path.join(self.dataset_dir, "train"))
        names = class_names(self.dataset_dir, classes)
        parts = {part: list_part(self.dataset_dir, part, classes, names) for part in PARTS}
        return self.given_split(parts, self.dataset_dir)


@DATASET_REGISTRY.register()
class folder(Folder):
    """`Folder` under a name that is easier to type."""


def has_parts(folder: str) -> bool:
    """Does the folder have train and test folders (and not classes that happen to be called so)?

    Raises:
        SplitFileError: it has one of them only, or more folders beside them.
    """
    found = [name for name in subfolders(folder) if name in PARTS and subfolders(os.path.join(folder, name))]
    if not found:
        return False
    lacking = [part for part in ("train", "test") if part not in found]
    others = [name for name in subfolders(folder) if name not in PARTS]
    if lacking:
        raise SplitFileError(f"{folder} has {listed(found)}, each with a folder per class, but no {listed(lacking)}")
    if others:
        raise SplitFileError(f"{folder} has {listed(others)} beside train, val and test: move them away")
    return True


def list_all(folder: str) -> list[Entry]:
    """All images of a folder of class folders."""
    classes = list_classes(folder)
    return list_part(folder, "", classes, class_names(folder, classes))


def list_part(folder: str, part: str, classes: Sequence[str], names: Sequence[str]) -> list[Entry]:
    """The images of one part; a class may be missing from val and test.

    Raises:
        SplitFileError: the part has a class that train does not have.
    """
    place = os.path.join(folder, part)
    present = subfolders(place)
    unknown = sorted(set(present) - set(classes))
    if unknown:
        raise SplitFileError(f"{place} has classes that train does not have: {listed(unknown)}")
    return [
        ("/".join(filter(None, (part, name, image))), label, names[label])
        for label, name in enumerate(classes)
        if name in present
        for image in list_images(os.path.join(place, name))
    ]


def class_names(folder: str, classes: Sequence[str]) -> list[str]:
    """What the classes are called: as classnames.txt says, or as their folders."""
    path = os.path.join(folder, "classnames.txt")
    return names_of(classes, read_classnames(path, ""), path) if os.path.isfile(path) else list(classes)
