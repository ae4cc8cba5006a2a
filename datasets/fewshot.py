"""What every few-shot data set shares: find the folder, read the split, take the shots, take base or new classes.

A data set is a subclass that says where its files lie. Nothing is written: the shots follow from the split file, the
seed and the number of shots alone, and are those that CoOp's data set files draw, so a read-only data folder will do.
"""

import math
import os
import random
from collections.abc import Sequence
from typing import Any, ClassVar

from dassl.config import cfg_default
from dassl.data.datasets import DatasetBase, Datum
from datasets.folders import find_dataset_dir, find_image_dir
from datasets.selection import draw_held_out, draw_shots, hash_selection, read_selection, sample_of
from datasets.sources import known_datasets
from datasets.splits import Entry, Split, read_split
from prompting.tokens import check_template

CLASS_SPLITS = ("all", "base", "new")

cfg_default.DATASET.SUBSAMPLE_CLASSES = "all"  # all, base or new
# A split that you drew (python -m datasets make-split) in place of the published one: a file name in the data set's
# folder, or a path.
cfg_default.DATASET.SPLIT_FILE = ""
# Few-shot images from a file (python -m datasets import-selection) in place of drawing them; looked up likewise.
cfg_default.DATASET.SELECTION = ""
# What the data set is called in results.json, tables and output paths; "": its NAME, or for folder and csv the last
# part of DATASET.PATH.
cfg_default.DATASET.LABEL = ""
cfg_default.DATASET.TEMPLATE = ""  # prompt of a data set without a published one, "{}" standing for the class name


class ClassSplitError(ValueError):
    """DATASET.SUBSAMPLE_CLASSES cannot be applied."""


class NoNewSplitError(ValueError):
    """A data set's split is not ours to draw."""


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
    new = {label: index for index, label in enumerate(kept)}
    return [
        [Datum(item.impath, new[item.label], item.domain, item.classname) for item in source if item.label in new]
        for source in sources
    ]


class FewShotDataset(DatasetBase):
    """A data set with a split file, as in CoOp (Zhou et al., IJCV 2022).

    Subclasses set the class attributes. `DATASET.NUM_SHOTS` below 1 keeps all training images.

    Attributes:
        source: absolute path of the folder, or of the file, that describes the data set.
        image_dir: absolute path of `image_folder`.
        split_path: absolute path of the split file, or of what the split is read from where there is no such file.
        all_classnames: the class names before base or new classes were taken.
        split_sha256: hash of the split file, or of the listed images where there is none.
        fewshot_sha256: hash of the images drawn for train and val, before base or new classes were taken; None when
            all training images are used.
    """

    dataset_dir: str = ""  # folder under DATASET.ROOT; on an instance, its absolute path
    image_folder: ClassVar[str] = ""  # folder in it that the split file's paths are relative to
    split_file: ClassVar[str] = ""  # name of the split file in `dataset_dir`
    split_help: ClassVar[str] = ""  # one sentence on how to get it, for data sets that are not in `sources.json`
    template: str = "a photo of a {}."  # prompt for zero-shot classification, "{}" standing for the class name
    # Where the split has no validation images, draw few-shot ones from the training images that are not among the
    # shots; without shots there are none. Test images never validate.
    val_from_train: ClassVar[bool] = False
    # A test set: its test images also stand in for training images, which the engine needs for the class names; nothing
    # may be trained on them.
    test_only: ClassVar[bool] = False
    has_domains: ClassVar[bool] = False  # whether DATASET.SOURCE_DOMAINS and TARGET_DOMAINS choose among its images

    def __init__(self, cfg: Any) -> None:
        for key in () if self.has_domains else ("SOURCE_DOMAINS", "TARGET_DOMAINS"):
            if domains := cfg.DATASET[key]:
                name = type(self).__name__
                raise ValueError(f"DATASET.{key} is {list(domains)}, but {name} has no domains: leave it out")
        if cfg.DATASET.TEMPLATE:
            check_template(cfg.DATASET.TEMPLATE, "DATASET.TEMPLATE")
        self.source = self.find_source(cfg)
        self.dataset_dir = self.find_folder(cfg)
        self.image_dir = find_image_dir(self.dataset_dir, self.image_folder)
        self.template = cfg.DATASET.TEMPLATE or self.template
        self.split_path = self.beside(cfg.DATASET.SPLIT_FILE or self.split_file)
        split = self.read_split_file(cfg) if cfg.DATASET.SPLIT_FILE else self.read(cfg)
        self.all_classnames, self.split_sha256 = split.classnames, split.sha256
        self.fewshot_sha256: str | None = None
        train, val = self.choose(split, cfg)
        train, val, test = subsample_classes(train, val, split.test, subsample=cfg.DATASET.SUBSAMPLE_CLASSES)
        super().__init__(train_x=train, val=val, test=test)

    # What data set files written for CoOp call on OxfordPets

    subsample_classes = staticmethod(subsample_classes)

    @staticmethod
    def read_split(filepath: str, path_prefix: str) -> tuple[list[Datum], list[Datum], list[Datum]]:
        """Train, val and test of a split file."""
        split = read_split(filepath, path_prefix, "")
        return list(split.train), list(split.val), list(split.test)

    @classmethod
    def find_source(cls, cfg: Any) -> str:
        """Absolute path of the data set's folder under the data root; user data may be a file instead."""
        root, info = cfg.DATASET.ROOT, known_datasets().get(cls.__name__)
        fetch = f"Fetch it with: python -m datasets download {info.name} --root {root}" if info else cls.split_help
        return find_dataset_dir(root, cls.dataset_dir, fetch)

    @classmethod
    def find_folder(cls, cfg: Any) -> str:
        """Absolute path of the data set's folder."""
        source = cls.find_source(cfg)
        return source if os.path.isdir(source) else os.path.dirname(source)

    @classmethod
    def drawn_split_file(cls, source: str, seed: int) -> str:
        """Name of the file for a split that `draw_split` draws."""
        return f"split_own_seed{seed}.json"

    def beside(self, name: str) -> str:
        """Path of a file that is named by itself, in the data set's folder, or by its path."""
        return os.path.join(self.dataset_dir, os.path.expanduser(name))

    def read(self, cfg: Any) -> Split:
        """The published split; data sets without a split file override this."""
        return self.read_split_file(cfg)

    def read_split_file(self, cfg: Any) -> Split:
        """The split in the file at `split_path`."""
        print(f"Reading split from {self.split_path}")
        name = cfg.DATASET.SPLIT_FILE
        if not name:
            return read_split(self.split_path, self.image_dir, self.how_to_get(self.split_file), self.is_published())
        cure = f"DATASET.SPLIT_FILE is {name!r}: make one with python -m datasets make-split, or leave it out."
        return read_split(self.split_path, self.image_dir, cure)

    @classmethod
    def is_published(cls) -> bool:
        """Whether it is one of the literature's data sets, whose class names are what they are."""
        return cls.__name__ in known_datasets()

    def how_to_get(self, file: str) -> str:
        """A sentence for a user who lacks a file: its address, and the command that fetches it."""
        info = known_datasets().get(type(self).__name__)
        if not info:
            return self.split_help
        mirrors = [mirror for source in info.sources if file in source.provides for mirror in source.mirrors]
        page = next((mirror.page for mirror in mirrors if mirror.scheme != "root"), info.homepage)
        root = os.path.dirname(self.dataset_dir)
        return f"Get it from {page} or with: python -m datasets download {info.name} --root {root}"

    @classmethod
    def draw_split(cls, source: str, rng: random.Random) -> dict[str, list[Entry]]:
        """Draw a new split from the original annotation, by the rule that the published one was drawn by.

        Raises:
            NoNewSplitError: the data set comes with an official split.
        """
        raise NoNewSplitError(f"{cls.__name__} comes with its split: there is none to draw")

    def choose(self, split: Split, cfg: Any) -> tuple[Sequence[Datum], Sequence[Datum]]:
        """The training and validation images of the run: a selection from a file, all, or shots."""
        shots, hold_out = cfg.DATASET.NUM_SHOTS, self.val_from_train and not split.val
        if cfg.DATASET.SELECTION:
            train, val = read_selection(self.beside(cfg.DATASET.SELECTION), split, self.image_dir, shots)
            if hold_out and not val:
                val = draw_held_out(split.train, train, shots, sample_of(cfg.SEED))
        elif shots < 1:
            return split.train, split.val
        else:
            train, val = draw_shots(split.train, split.val, shots, cfg.SEED, hold_out)
        self.fewshot_sha256 = hash_selection(train, val, self.image_dir)
        return train, val
