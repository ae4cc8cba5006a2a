"""Split files: which images are train, val and test, and what each class is called. Read, check, draw and write them.

The format is CoOp's (Zhou et al., IJCV 2022), with paths relative to the image folder:
`{"train": [[path, label, class name], ...], "val": [...], "test": [...]}`.
"""

import hashlib
import json
import os
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

from common.files import atomic_write
from dassl.data.datasets import Datum
from prompting.tokens import check_names

MAX_BYTES = 512 * 2**20  # a split of ImageNet takes 100 MiB
PARTS = ("train", "val", "test")
LISTED = 5  # values that an error names, of many
TRAIN_SHARE, VAL_SHARE = 0.5, 0.2
Entry = tuple[str, int, str]


class SplitFileError(ValueError):
    """A split whose content cannot be used."""


class SplitFileMissingError(FileNotFoundError):
    """A split file, or an image that it names, does not exist."""


class AnnotationError(ValueError):
    """An original annotation that a split cannot be drawn from."""


@dataclass(frozen=True)
class Split:
    """A data set as its split states it, with the images of each part in order."""

    train: Sequence[Datum]
    val: Sequence[Datum]  # may be empty
    test: Sequence[Datum]
    classnames: list[str]  # by label
    sha256: str  # of the split file, or of the entries where there is no such file


def read_split(path: str, image_dir: str, how_to_get: str, published: bool = False) -> Split:
    """Read a split file and check it against the images on disk, in `image_dir`.

    The class names of a published one are taken as they are (:func:`prompting.tokens.check_names`).

    Raises:
        SplitFileError: the content is malformed, or its labels and names do not make a list of classes.
        SplitFileMissingError: the file or some of its images do not exist.
    """
    if not os.path.isfile(path):
        raise SplitFileMissingError(f"split file {path} does not exist. {how_to_get}")
    content = read_limited(path)
    entries = {
        part: [(with_slashes(impath, image_dir), label, name) for impath, label, name in rows]
        for part, rows in parse_entries(content, path).items()
    }
    return build_split(entries, image_dir, path, hashlib.sha256(content).hexdigest(), published)


def with_slashes(impath: str, image_dir: str) -> str:
    """A path written on Windows with forward slashes; unchanged where a file has backslashes in its name."""
    if "\\" not in impath or os.path.lexists(os.path.join(image_dir, impath)):
        return impath
    return impath.replace("\\", "/")


def build_split(
    entries: Mapping[str, Sequence[Entry]], image_dir: str, path: str, sha256: str = "", published: bool = False
) -> Split:
    """A split of entries by part, once their classes are in order and their images on disk; `path` is for errors."""
    classnames = check_classes(entries, path, published)
    sha256 = sha256 or hash_entries(entries)
    images = [impath for part in PARTS for impath, _, _ in entries[part]]
    missing = [impath for impath in images if not os.path.isfile(os.path.join(image_dir, impath))]
    if missing:
        raise SplitFileMissingError(
            f"{len(missing)} images of {path} are not in {image_dir}: {listed(missing)}."
            f"{other_spelling(image_dir, missing[0])} Unpack the images there again, unless the split file "
            f"(sha256 {sha256[:12]}...) is of another version than the images."
        )
    return Split(*(items_of(entries[part], image_dir) for part in PARTS), classnames, sha256)


def items_of(entries: Iterable[Entry], image_dir: str) -> list[Datum]:
    """The entries as Dassl has them, each of which must be there."""
    return [Datum(os.path.join(image_dir, impath), label, classname=name) for impath, label, name in entries]


def other_spelling(image_dir: str, impath: str) -> str:
    """A sentence that names the first part of a missing path that exists in another case; empty without one."""
    parent = image_dir
    for name in impath.split("/"):
        siblings = os.listdir(parent) if os.path.isdir(parent) else []
        if name not in siblings:
            found = next((sibling for sibling in siblings if sibling.lower() == name.lower()), None)
            return f" There is {found!r} in place of {name!r}: case matters." if found else ""
        parent = os.path.join(parent, name)
    return ""


def parse_entries(content: bytes, path: str) -> dict[str, list[Entry]]:
    """The three parts of a split file as lists of (path, label, class name)."""
    data = parse_json(content, f"split file {path}", SplitFileError)
    if not isinstance(data, dict) or not all(isinstance(data.get(part), list) for part in PARTS):
        raise SplitFileError(f"split file {path} must hold the lists {', '.join(PARTS)}")
    for part in ("train", "test"):
        if not data[part]:
            raise SplitFileError(f"split file {path} has no images in {part!r}")
    return {part: [parse_entry(row, f"{path}, {part}[{i}]") for i, row in enumerate(data[part])] for part in PARTS}


def parse_entry(row: object, where: str) -> Entry:
    """One `[path, label, class name]`; `where` names it in errors."""
    if not isinstance(row, list) or len(row) != 3:
        raise SplitFileError(f"{where}: expected [path, label, class name], found {row!r}")
    impath, label, classname = row
    if not isinstance(impath, str) or not impath:
        raise SplitFileError(f"{where}: the image path is {impath!r}")
    if not isinstance(classname, str) or not classname.strip():
        raise SplitFileError(f"{where}: label {label!r} of {impath} has no class name")
    if not str(label).isdecimal():
        raise SplitFileError(f"{where}: the label of {impath} is {label!r}; labels are integers from 0")
    return impath, int(label), classname


def read_limited(path: str) -> bytes:
    """The bytes of a file; of one that is too large, only so many that :func:`parse_json` refuses it."""
    with open(path, "rb") as file:
        return file.read(MAX_BYTES + 1)


def parse_json(content: bytes, path: str, error: type[ValueError]) -> Any:
    """The JSON in a file that nobody vouches for: not too large, and not nested too deeply."""
    if len(content) > MAX_BYTES:
        raise error(f"{path} has more than {MAX_BYTES:,} bytes, which are the most that are read")
    try:
        return json.loads(content)
    except ValueError as reason:
        raise error(f"{path} is not valid JSON: {reason}") from reason
    except RecursionError as reason:
        raise error(f"{path} is not valid JSON: it is nested too deeply") from reason


def check_classes(entries: Mapping[str, Sequence[Entry]], path: str, published: bool = False) -> list[str]:
    """Names by label, if labels and names match one to one, without gaps, and all have training images and a prompt."""
    names: dict[int, str] = {}
    found: dict[int, str] = {}
    for part in PARTS:
        for impath, label, name in entries[part]:
            found.setdefault(label, impath)
            if names.setdefault(label, name) != name:
                raise SplitFileError(f"{path}: label {label} is {names[label]!r} and, for {impath}, {name!r}")
    missing = max(names) + 1 - len(names)
    if missing:  # one label may be huge: the first few are looked for, and no list is made of all
        gaps = islice((label for label in count() if label not in names), min(missing, LISTED))
        raise SplitFileError(f"{path}: labels run to {max(names)} but {listed(gaps, number=missing)} do not occur")
    labels: dict[str, int] = {}
    for label, name in sorted(names.items()):
        if labels.setdefault(name, label) != label:
            raise SplitFileError(f"{path}: labels {labels[name]} and {label} are both called {name!r}")
    untrained = sorted(set(names) - {label for _, label, _ in entries["train"]})
    if untrained:
        raise SplitFileError(f"{path}: no training images for {listed(names[label] for label in untrained)}")
    classnames = [names[label] for label in range(len(names))]
    check_names(classnames, [f"label {label}, {found[label]}" for label in range(len(names))], path, published)
    return classnames


def listed(values: Iterable[object], limit: int = LISTED, number: int | None = None) -> str:
    """The first few values, separated by commas; `number` of them in all, where `values` does not go on to the end."""
    texts = [str(value) for value in values]
    left = (number or len(texts)) - limit
    return ", ".join(texts[:limit]) + (f" and {left} more" if left > 0 else "")


def hash_entries(entries: Mapping[str, Sequence[Entry]]) -> str:
    """SHA-256 over part, path, label and class name of every image, in order: the same on every machine."""
    digest = hashlib.sha256()
    for part in PARTS:
        digest.update(json.dumps([part, list(entries.get(part, ()))]).encode())
    return digest.hexdigest()


# New splits, drawn by the two rules of CoOp's data set files


def split_trainval(entries: Sequence[Entry], rng: random.Random) -> tuple[list[Entry], list[Entry]]:
    """Where there is an official test set: deal the other images into train and, a fifth of each class, val."""
    train, val = [], []
    for group in by_label(entries):
        number = round(len(group) * VAL_SHARE)
        if not number:
            raise AnnotationError(f"class {group[0][2]!r} has {len(group)} images outside the test set: too few")
        rng.shuffle(group)
        val += group[:number]
        train += group[number:]
    return train, val


def split_classes(entries: Iterable[Entry], rng: random.Random) -> dict[str, list[Entry]]:
    """Where there is none: deal each class into half train, a fifth val, the rest test."""
    parts: dict[str, list[Entry]] = {part: [] for part in PARTS}
    for group in by_label(entries):
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


def by_label(entries: Iterable[Entry]) -> list[list[Entry]]:
    """The entries of each label, labels in the order in which they first come."""
    groups: dict[int, list[Entry]] = defaultdict(list)
    for entry in entries:
        groups[entry[1]].append(entry)
    return list(groups.values())


def dump_split(entries: Mapping[str, Sequence[Entry]]) -> str:
    """A split as the text of a split file."""
    return json.dumps({part: entries[part] for part in PARTS}, ensure_ascii=False, indent=1) + "\n"


def write_new_text(path: str, text: str) -> None:
    """Write a file that did not exist, whole or not at all; several processes and machines may do so at once.

    Raises:
        FileExistsError: there is a file of that name with another content; one with the same content is left.
        PermissionError: the folder cannot be written to.
    """
    if not os.path.lexists(path):
        try:
            with atomic_write(path, "w", replace=False) as file:
                file.write(text)
            return
        except FileExistsError:  # somebody was faster
            pass
        except OSError as error:
            raise PermissionError(f"cannot write {path}: {error.strerror or error}") from error
    with open(path, encoding="utf-8") as file:
        if file.read() != text:
            raise FileExistsError(f"{path} exists with other content: move it away or choose another name")
