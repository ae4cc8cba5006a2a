"""What every few-shot data set shares: find the folder, read the split, take the shots, take base or new classes.

A data set is a subclass that says where its files lie. Nothing is written: the shots follow from the split file, the
seed and the number of shots alone, and are those that CoOp's data set files draw, so a read-only data folder will do.

Or the shots come from a file, a selection, which is held to the split. It is JSON with the relative path, label and
class name of each image:

{"format": "fewshot-selection-1", "dataset": "Caltech101", "shots": 16, "seed": 1, "split_sha256": "...",
 "fewshot_sha256": "...", "origin": "...", "train": [[path, label, class name], ...], "val": [...]}
"""

import hashlib
import json
import math
import os
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from dassl.config import cfg_default
from dassl.data.datasets import DatasetBase, Datum
from datasets.sources import known_datasets
from datasets.splits import (
    Entry,
    Split,
    SplitFileMissingError,
    find_dataset_dir,
    find_image_dir,
    listed,
    parse_entry,
    parse_json,
    read_limited,
    read_split,
)
from prompting.tokens import check_template

CLASS_SPLITS = ("all", "base", "new")
MAX_VAL_SHOTS = 4
SELECTION_FORMAT = "fewshot-selection-1"
SELECTION_KEYS = {"format": str, "shots": int, "fewshot_sha256": str, "train": list, "val": list}

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


class SelectionError(ValueError):
    """A selection that cannot be used with the data set."""


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
        self.source, self.dataset_dir = self.find_source(cfg), self.find_folder(cfg)
        self.image_dir = find_image_dir(self.dataset_dir, self.image_folder)
        self.template = cfg.DATASET.TEMPLATE or self.template
        self.split_path = self.beside(cfg.DATASET.SPLIT_FILE or self.split_file)
        split = self.read_split_file(cfg) if cfg.DATASET.SPLIT_FILE else self.read(cfg)
        self.all_classnames, self.split_sha256 = split.classnames, split.sha256
        self.fewshot_sha256: str | None = None
        train, val = self.choose(split, cfg)
        train, val, test = self.subsample_classes(train, val, split.test, subsample=cfg.DATASET.SUBSAMPLE_CLASSES)
        super().__init__(train_x=train, val=val, test=test)

    @classmethod
    def find_source(cls, cfg: Any) -> str:
        """Absolute path of the data set's folder under the data root; user data may be a file instead."""
        return find_dataset_dir(cfg.DATASET.ROOT, cls.dataset_dir, cls.how_to_get(cfg))

    @classmethod
    def find_folder(cls, cfg: Any) -> str:
        """Absolute path of the data set's folder."""
        source = cls.find_source(cfg)
        return source if os.path.isdir(source) else os.path.dirname(source)

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
        if name:
            cure = f"DATASET.SPLIT_FILE is {name!r}: make one with python -m datasets make-split, or leave it out."
            return read_split(self.split_path, self.image_dir, cure)
        cure = self.how_to_get(cfg, self.split_file)
        return read_split(self.split_path, self.image_dir, cure, self.is_published())

    @classmethod
    def is_published(cls) -> bool:
        """Whether it is one of the literature's data sets, whose class names are what they are."""
        return cls.__name__ in known_datasets()

    @classmethod
    def how_to_get(cls, cfg: Any, file: str = "") -> str:
        """A sentence for a user who lacks the data set or a file of it: an address, and the command that fetches it."""
        info = known_datasets().get(cls.__name__)
        if not info:
            return cls.split_help
        mirrors = [mirror for source in info.sources if file in source.provides for mirror in source.mirrors]
        page = next((mirror.page for mirror in mirrors if mirror.scheme != "root"), info.homepage)
        return f"Get it from {page} or with: {info.command(cfg.DATASET.ROOT)}"

    @classmethod
    def draw_split(cls, source: str, rng: random.Random) -> dict[str, list[Entry]]:
        """Draw a new split from the original annotation, by the published one's rule; NoNewSplitError: it has none."""
        raise NoNewSplitError(f"{cls.__name__} comes with its split: there is none to draw")

    @classmethod
    def drawn_split_file(cls, source: str, seed: int) -> str:
        """Name of the file for a split that `draw_split` draws."""
        return f"split_own_seed{seed}.json"

    def choose(self, split: Split, cfg: Any) -> tuple[Sequence[Datum], Sequence[Datum]]:
        """The training and validation images of the run: a selection from a file, all, or shots."""
        shots, hold_out = cfg.DATASET.NUM_SHOTS, self.val_from_train and not split.val
        if cfg.DATASET.SELECTION:
            train, val = read_selection(self.beside(cfg.DATASET.SELECTION), split, self.image_dir, shots)
            if hold_out and not val:
                val = draw_held_out(split.train, train, shots, stream_of(cfg.SEED))
        elif shots < 1:
            return split.train, split.val
        else:
            train, val = draw_shots(split.train, split.val, shots, cfg.SEED, hold_out)
        self.fewshot_sha256 = hash_selection(train, val, self.image_dir)
        return train, val

    # What data set files written for CoOp call on OxfordPets

    @staticmethod
    def subsample_classes(*sources: Sequence[Datum], subsample: str = "all") -> list[list[Datum]]:
        """Keep base or new classes, relabelled from 0.

        The first ceil(n / 2) of the first source's n labels are the base classes, the others are new (CoOp's rule).

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

    @staticmethod
    def read_split(filepath: str, path_prefix: str) -> tuple[list[Datum], list[Datum], list[Datum]]:
        """Train, val and test of a split file."""
        split = read_split(filepath, path_prefix, "")
        return list(split.train), list(split.val), list(split.test)


# Shots drawn by seed, as CoOp draws them


def draw_shots(
    train: Sequence[Datum], val: Sequence[Datum], shots: int, seed: int, hold_out: bool = False
) -> tuple[list[Datum], list[Datum]]:
    """Draw `shots` training and min(shots, 4) validation images per class, in one random stream.

    Without validation images and with `hold_out`, they are drawn from the training images that are left: the stream is
    then past the training images, which are the same with and without. A negative seed draws from the global `random`.
    """
    rng = stream_of(seed)
    drawn = DatasetBase.generate_fewshot_dataset(train, num_shots=shots, rng=rng)
    if hold_out and not val:
        return drawn, draw_held_out(train, drawn, shots, rng)
    few = min(shots, MAX_VAL_SHOTS)
    return drawn, DatasetBase.generate_fewshot_dataset(val, num_shots=few, rng=rng) if val else []


def stream_of(seed: int) -> random.Random | None:
    """A stream to draw from: local, so that the images depend on nothing that ran before; negative: the global one."""
    return random.Random(seed) if seed >= 0 else None


def draw_held_out(
    train: Sequence[Datum], shots_drawn: Sequence[Datum], shots: int, rng: random.Random | None
) -> list[Datum]:
    """Draw min(shots, 4) images per class from the training images that are not among the shots."""
    print("Validation images are drawn from the training images that are not among the shots")
    taken = {item.impath for item in shots_drawn}
    rest = [item for item in train if item.impath not in taken]
    return DatasetBase.generate_fewshot_dataset(rest, num_shots=min(shots, MAX_VAL_SHOTS), rng=rng)


# Selections: shots in a file


def relative_path(impath: str, image_dir: str) -> str:
    """An image's path below the image folder, with forward slashes."""
    return os.path.relpath(impath, image_dir).replace(os.sep, "/")


def hash_selection(train: Sequence[Any], val: Sequence[Any], image_dir: str) -> str:
    """SHA-256 over the relative paths and labels of the images drawn, in order: the same on every machine."""
    rows = [[[relative_path(item.impath, image_dir), item.label] for item in part] for part in (train, val)]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def read_selection(path: str, split: Split, image_dir: str, shots: int) -> tuple[list[Datum], list[Datum]]:
    """The training and validation images that a selection of as many shots names, all of them in the split.

    Raises:
        SelectionError: the file is malformed, or does not fit the split or the number of shots.
        SplitFileMissingError: there is no such file.
    """
    print(f"Reading few-shot images from {path}")
    data = load_selection(path)
    if data["shots"] != shots:
        raise SelectionError(f"{path} has {data['shots']} images per class: set DATASET.NUM_SHOTS to that, not {shots}")
    entries = {
        part: [parse_entry(row, f"{path}, {part}[{index}]") for index, row in enumerate(data[part])]
        for part in ("train", "val")
    }
    train, val = select(entries, split, image_dir, path)
    if hash_selection(train, val, image_dir) != data["fewshot_sha256"]:
        raise SelectionError(f"{path} was changed after it was made: its images do not have the hash that it states")
    return train, val


def load_selection(path: str) -> dict[str, Any]:
    """The content of a selection, with every key of the right type."""
    if not os.path.isfile(path):
        raise SplitFileMissingError(f"DATASET.SELECTION: {path} does not exist")
    data = parse_json(read_limited(path), path, SelectionError)
    if not isinstance(data, dict) or data.get("format") != SELECTION_FORMAT:
        raise SelectionError(f"{path} is not a few-shot selection: it lacks the format {SELECTION_FORMAT!r}")
    wrong = [key for key, kind in SELECTION_KEYS.items() if not isinstance(data.get(key), kind)]
    if wrong:
        raise SelectionError(f"{path} lacks {listed(wrong)}, or has it in another form")
    return data


def select(
    entries: Mapping[str, Sequence[Entry]], split: Split, image_dir: str, path: str
) -> tuple[list[Datum], list[Datum]]:
    """The split's images that the entries name, each once and under its label and name; every class must have one.

    Training images come from the split's training images; validation images from its validation images or, where it
    has none, from the training images that were not chosen.
    """

    def by_path(items: Iterable[Datum]) -> dict[str, Datum]:
        return {relative_path(item.impath, image_dir): item for item in items}

    train, taken = by_path(split.train), {impath for impath, _, _ in entries["train"]}
    rest = by_path(split.val) or {impath: item for impath, item in train.items() if impath not in taken}
    chosen: dict[str, list[Datum]] = {}
    for part, pool in (("train", train), ("val", rest)):
        rows, where = entries.get(part, ()), f"{path}, {part}"
        unknown = [impath for impath, _, _ in rows if impath not in pool]
        if unknown:
            tested = set(by_path(split.test)).intersection(unknown)
            what = "test images" if tested else "images that the split does not have there"
            named = listed(sorted(tested) or unknown)
            raise SelectionError(f"{where}: {what}: {named}. It was made for another split.")
        twice = [impath for impath, number in Counter(row[0] for row in rows).items() if number > 1]
        if twice:
            raise SelectionError(f"{where}: images that come more than once: {listed(twice)}")
        for impath, label, name in rows:
            item = pool[impath]
            if (item.label, item.classname) != (label, name):
                raise SelectionError(
                    f"{where}: {impath} is {name!r}, label {label}; "
                    f"the split says {item.classname!r}, label {item.label}"
                )
        chosen[part] = [pool[impath] for impath, _, _ in rows]
    missing = sorted(set(range(len(split.classnames))) - {item.label for item in chosen["train"]})
    if missing:
        raise SelectionError(f"{path} has no image of {listed(split.classnames[label] for label in missing)}")
    return chosen["train"], chosen["val"]
