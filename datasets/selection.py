"""Which few-shot images a run takes: drawn by seed as CoOp draws them, or read from a file and held to the split.

A file is JSON with the relative path, label and class name of each image:

{"format": "fewshot-selection-1", "dataset": "Caltech101", "shots": 16, "seed": 1, "split_sha256": "...",
 "fewshot_sha256": "...", "origin": "...", "train": [[path, label, class name], ...], "val": [...]}

The pickles that CoOp's code wrote are read without executing anything: the only thing that they may name is Dassl's
`Datum`, which becomes an inert record.
"""

import hashlib
import io
import json
import os
import pickle
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from common.unpickling import Unpickler
from dassl.data.datasets import Datum
from datasets.splits import Entry, Split, listed, parse_entry, parse_json, read_limited, write_new_text

FORMAT = "fewshot-selection-1"
KINDS = {"format": str, "shots": int, "fewshot_sha256": str, "train": list, "val": list}
MAX_VAL_SHOTS = 4
MAX_BYTES = 256 * 2**20  # of a pickle; sixteen shots of ImageNet take 2 MiB
DATUM_MODULES = ("dassl.data.datasets", "dassl.data.datasets.base_dataset")
FIELDS = {"_impath": str, "_label": int, "_domain": int, "_classname": str}

Sample = Callable[[list[Datum], int], list[Datum]]


class SelectionError(ValueError):
    """A selection that cannot be used with the data set."""


class SelectionMissingError(FileNotFoundError):
    """The file that DATASET.SELECTION names does not exist."""


def sample_of(seed: int) -> Sample:
    """A stream to draw from: local, so that the images depend on nothing that ran before; negative: the global one."""
    return random.Random(seed).sample if seed >= 0 else random.sample


def draw_shots(
    train: Sequence[Datum], val: Sequence[Datum], shots: int, seed: int, hold_out: bool = False
) -> tuple[list[Datum], list[Datum]]:
    """Draw `shots` training and min(shots, 4) validation images per class, in one random stream.

    Without validation images and with `hold_out`, they are drawn from the training images that are left: the stream is
    then past the training images, which are the same with and without. A negative seed draws from the global `random`.
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


def read_selection(path: str, split: Split, image_dir: str, shots: int) -> tuple[list[Datum], list[Datum]]:
    """The training and validation images that a selection of as many shots names, all of them in the split.

    Raises:
        SelectionError: the file is malformed, or does not fit the split or the number of shots.
        SelectionMissingError: there is no such file.
    """
    print(f"Reading few-shot images from {path}")
    data = load(path)
    if data["shots"] != shots:
        raise SelectionError(f"{path} has {data['shots']} images per class: set DATASET.NUM_SHOTS to that, not {shots}")
    train, val = (
        [parse_entry(row, f"{path}, {part}[{index}]") for index, row in enumerate(data[part])]
        for part in ("train", "val")
    )
    chosen = select(train, val, split, image_dir, path)
    if hash_selection(*chosen, image_dir) != data["fewshot_sha256"]:
        raise SelectionError(f"{path} was changed after it was made: its images do not have the hash that it states")
    return chosen


def load(path: str) -> dict[str, Any]:
    """The content of a selection, with every key of the right type."""
    if not os.path.isfile(path):
        raise SelectionMissingError(f"DATASET.SELECTION: {path} does not exist")
    data = parse_json(read_limited(path), path, SelectionError)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise SelectionError(f"{path} is not a few-shot selection: it lacks the format {FORMAT!r}")
    wrong = [key for key, kind in KINDS.items() if not isinstance(data.get(key), kind)]
    if wrong:
        raise SelectionError(f"{path} lacks {listed(wrong)}, or has it in another form")
    return data


def select(
    train: Sequence[Entry], val: Sequence[Entry], split: Split, image_dir: str, path: str
) -> tuple[list[Datum], list[Datum]]:
    """The split's images that the entries name; every class must have one.

    Training images come from the split's training images; validation images from its validation images or, where it
    has none, from the training images that were not chosen.
    """
    pool = index_by_path(split.train, image_dir)
    chosen = look_up(train, pool, split, image_dir, f"{path}, train")
    taken = {entry[0] for entry in train}
    rest = index_by_path(split.val, image_dir) or {key: item for key, item in pool.items() if key not in taken}
    missing = sorted(set(range(len(split.classnames))) - {item.label for item in chosen})
    if missing:
        raise SelectionError(f"{path} has no image of {listed(split.classnames[label] for label in missing)}")
    return chosen, look_up(val, rest, split, image_dir, f"{path}, val")


def index_by_path(items: Iterable[Datum], image_dir: str) -> dict[str, Datum]:
    """Images by their path below the image folder."""
    return {relative_path(item.impath, image_dir): item for item in items}


def look_up(entries: Sequence[Entry], pool: dict[str, Datum], split: Split, image_dir: str, where: str) -> list[Datum]:
    """The images of `pool` that the entries name, each once and under its label and class name."""
    unknown = [impath for impath, _, _ in entries if impath not in pool]
    if unknown:
        tested = set(index_by_path(split.test, image_dir)).intersection(unknown)
        what = "test images" if tested else "images that the split does not have there"
        raise SelectionError(f"{where}: {what}: {listed(sorted(tested) or unknown)}. It was made for another split.")
    twice = [impath for impath, count in Counter(entry[0] for entry in entries).items() if count > 1]
    if twice:
        raise SelectionError(f"{where}: images that come more than once: {listed(twice)}")
    for impath, label, name in entries:
        item = pool[impath]
        if (item.label, item.classname) != (label, name):
            raise SelectionError(
                f"{where}: {impath} is {name!r}, label {label}; the split says {item.classname!r}, label {item.label}"
            )
    return [pool[impath] for impath, _, _ in entries]


def write_selection(
    path: str, train: Sequence[Datum], val: Sequence[Datum], image_dir: str, shots: int, **facts: Any
) -> None:
    """Write a selection; `facts` are dataset, seed, split_sha256 and origin. A different file is never replaced."""
    rows = {
        part: [[relative_path(item.impath, image_dir), item.label, item.classname] for item in items]
        for part, items in (("train", train), ("val", val))
    }
    sha256 = hash_selection(train, val, image_dir)
    data = {"format": FORMAT, **facts, "shots": shots, "fewshot_sha256": sha256, **rows}
    write_new_text(path, json.dumps(data, ensure_ascii=False, indent=1) + "\n")


class Record:
    """What takes the place of a pickled `Datum`: its four values and nothing that runs."""

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict) or set(state) != set(FIELDS):
            raise pickle.UnpicklingError("a Datum with other fields than path, label, domain and class name")
        for name, kind in FIELDS.items():
            if type(state[name]) is not kind:
                raise pickle.UnpicklingError(f"a Datum whose {name[1:]} is not {kind.__name__}")
        self.__dict__.update(state)


class SelectionUnpickler(Unpickler):
    """Reads plain values and `Datum`, within what the file's size allows; everything else is refused."""

    def find_class(self, module: str, name: str) -> type[Record]:
        """The inert record for `Datum`."""
        if module in DATUM_MODULES and name == "Datum":
            return Record
        raise pickle.UnpicklingError(f"it names {module}.{name}, which has no place in a selection")


def read_pickle(path: str) -> tuple[dict[str, list[Entry]], str]:
    """The entries of a selection that CoOp's code pickled, with paths as they were stored, and the file's hash."""
    if os.path.getsize(path) > MAX_BYTES:
        raise SelectionError(f"{path} is larger than any selection")
    with open(path, "rb") as file:
        content = file.read()
    try:
        data = SelectionUnpickler(io.BytesIO(content), len(content)).load()
    except Exception as error:  # a hostile or damaged pickle can raise anything
        raise SelectionError(f"{path} is not a selection that CoOp's code wrote: {error}") from error
    if not isinstance(data, dict) or not data.get("train") or not set(data) <= {"train", "val"}:
        raise SelectionError(f"{path} is not a selection: it should hold 'train' and 'val'")
    for items in data.values():
        if not isinstance(items, list) or not all(type(item) is Record and hasattr(item, "_impath") for item in items):
            raise SelectionError(f"{path} is not a selection: it should hold lists of Datum")
    entries = {part: [(item._impath, item._label, item._classname) for item in items] for part, items in data.items()}
    return entries, hashlib.sha256(content).hexdigest()
