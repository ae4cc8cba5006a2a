"""Few-shot images from a file: JSON with the relative path, label and class name of each, held to the split.

{"format": "fewshot-selection-1", "dataset": "Caltech101", "shots": 16, "seed": 1, "split_sha256": "...",
 "fewshot_sha256": "...", "origin": "...", "train": [[path, label, class name], ...], "val": [...]}
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from dassl.data.datasets import Datum
from datasets.newfile import write_new_text
from datasets.sampling import hash_selection, relative_path
from datasets.splitfile import Entry, Split, listed, parse_entry, parse_json, read_limited

FORMAT = "fewshot-selection-1"


class SelectionError(ValueError):
    """A selection that cannot be used with the data set."""


class SelectionMissingError(FileNotFoundError):
    """The file that DATASET.SELECTION names does not exist."""


def read_selection(path: str, split: Split, image_dir: str, shots: int) -> tuple[list[Datum], list[Datum]]:
    """The training and validation images that a selection names.

    Args:
        path: the selection.
        split: the data set's split, which every image must be in, under the same label and name.
        image_dir: folder that paths are relative to.
        shots: DATASET.NUM_SHOTS, which must be the selection's.

    Raises:
        SelectionError: the file is malformed, or does not fit the split or the number of shots.
        SelectionMissingError: there is no such file.
    """
    print(f"Reading few-shot images from {path}")
    data = load(path)
    if data["shots"] != shots:
        raise SelectionError(f"{path} has {data['shots']} images per class: set DATASET.NUM_SHOTS to that, not {shots}")
    rows = {
        part: [parse_entry(row, f"{path}, {part}[{index}]") for index, row in enumerate(data[part])]
        for part in ("train", "val")
    }
    train, val = select(rows["train"], rows["val"], split, image_dir, path)
    if hash_selection(train, val, image_dir) != data["fewshot_sha256"]:
        raise SelectionError(f"{path} was changed after it was made: its images do not have the hash that it states")
    return train, val


def load(path: str) -> dict[str, Any]:
    """The content of a selection, with every key of the right type."""
    if not os.path.isfile(path):
        raise SelectionMissingError(f"DATASET.SELECTION: {path} does not exist")
    data = parse_json(read_limited(path), path, SelectionError)
    kinds = {"format": str, "shots": int, "fewshot_sha256": str, "train": list, "val": list}
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise SelectionError(f"{path} is not a few-shot selection: it lacks the format {FORMAT!r}")
    wrong = [key for key, kind in kinds.items() if not isinstance(data.get(key), kind)]
    if wrong:
        raise SelectionError(f"{path} lacks {listed(wrong)}, or has it in another form")
    return data


def select(
    train: Sequence[Entry], val: Sequence[Entry], split: Split, image_dir: str, path: str
) -> tuple[list[Datum], list[Datum]]:
    """The split's images that the entries name.

    Training images come from the split's training images; validation images from its validation images or, where it
    has none, from the training images that were not chosen.

    Raises:
        SelectionError: an image is not where it may come from, comes twice or under another label or name, or a class
            has no training image.
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
    """The images of `pool` that the entries name."""
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
    """Write a selection, atomically; a different file of that name is never replaced.

    Args:
        path: file to write.
        train: the training images.
        val: the validation images.
        image_dir: folder that paths are made relative to.
        shots: images per class.
        facts: what else to state: dataset, seed, split_sha256, origin.

    Raises:
        FileExistsError: there is such a file with other content.
    """
    rows = {
        part: [[relative_path(item.impath, image_dir), item.label, item.classname] for item in items]
        for part, items in (("train", train), ("val", val))
    }
    sha256 = hash_selection(train, val, image_dir)
    data = {"format": FORMAT, **facts, "shots": shots, "fewshot_sha256": sha256, **rows}
    write_new_text(path, json.dumps(data, ensure_ascii=False, indent=1) + "\n")
