"""The images of a data set by train, val and test: found in folders or read from a split file, checked, drawn, written.

A split file is CoOp's (Zhou et al., IJCV 2022), with paths relative to the image folder:
`{"train": [[path, label, class name], ...], "val": [...], "test": [...]}`. Folders and their images come in the order
of their names, so that every machine sees the same list.
"""

import hashlib
import json
import os
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

from common.commandline import LISTED, listed
from common.files import atomic_write
from dassl.data.datasets import Datum
from prompting.tokens import check_names

EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm"),
)
LEFT_BY_FILE_MANAGERS = ("thumbs.db", "desktop.ini")
WORDNET_LINE = re.compile(r"n\d{8}(\s|$)")  # the start of a line of ImageNet's class names
MAX_BYTES = 512 * 2**20  # a split of ImageNet takes 100 MiB
PARTS = ("train", "val", "test")
Entry = tuple[str, int, str]


class SplitFileError(ValueError):
    """A split whose content cannot be used."""


class SplitFileMissingError(FileNotFoundError):
    """A split file, another list, or an image that one names, does not exist."""


class AnnotationError(ValueError):
    """An original annotation that a split cannot be drawn from."""


class DataRootError(FileNotFoundError):
    """The folder of a data set, or of its images, is not where it should be."""


class NotAnImageError(SplitFileError):
    """A folder of images holds something else, or nothing."""


@dataclass(frozen=True)
class Split:
    """A data set as its split states it, with the images of each part in order."""

    train: Sequence[Datum]
    val: Sequence[Datum]  # may be empty
    test: Sequence[Datum]
    classnames: list[str]  # by label
    sha256: str  # of the split file, or of the entries where there is no such file


# Folders


def find_dataset_dir(root: str, folder: str, how_to_get: str = "") -> str:
    """Absolute path of a data set's folder under the data root; the error names the right root if it is near."""
    if not root:
        raise DataRootError(f"the data root is not set: pass --root with the folder that holds {folder!r}")
    root = os.path.abspath(os.path.expanduser(root))
    path = os.path.join(root, folder)
    if os.path.isdir(path):
        return path
    found = f"{root} has no folder {folder!r}" if os.path.isdir(root) else f"the data root {root} does not exist"
    general = f" The data root is the folder that holds one folder per data set. {how_to_get}".rstrip()
    raise DataRootError(f"{found}.{suggest_root(root, folder) or general}")


def suggest_root(root: str, folder: str) -> str:
    """A sentence that names the root one level up or down that has the folder, or its other spelling; else empty."""
    for near in (os.path.dirname(root), *(os.path.join(root, child) for child in subfolders(root))):
        if os.path.isdir(os.path.join(near, folder)):
            return f" {near} has it: pass --root {near}"
    return case_hint(root, folder)


def find_image_dir(dataset_dir: str, folder: str) -> str:
    """Absolute path of the folder of the images, which may be empty or have several levels, in a data set's folder."""
    path = dataset_dir
    for name in filter(None, folder.split("/")):
        if not os.path.isdir(os.path.join(path, name)):
            cure = near_hint(path, name) or " Unpack the images there."
            raise DataRootError(f"{path} has no folder {name!r}.{cure}")
        path = os.path.join(path, name)
    return path


def near_hint(folder: str, name: str) -> str:
    """A sentence on a name that `folder` lacks but has one level deeper, or spelt in another case; else empty."""
    for near in (os.path.join(folder, child) for child in subfolders(folder)):
        if os.path.lexists(os.path.join(near, name)):
            return f" {near} has it: move it up one level (move {os.path.join(near, name)} to {folder})."
    return case_hint(folder, name)


def case_hint(folder: str, path: str) -> str:
    """A sentence that names the first part of a missing path that `folder` has in another case; empty without one."""
    for name in path.split("/"):
        siblings = os.listdir(folder) if os.path.isdir(folder) else []
        if name not in siblings:
            found = next((sibling for sibling in siblings if sibling.lower() == name.lower()), None)
            return f" There is {found!r}: rename it, case matters." if found else ""
        folder = os.path.join(folder, name)
    return ""


def subfolders(parent: str) -> list[str]:
    """Names of the folders in `parent` that are not hidden, sorted; none when it does not exist."""
    if not os.path.isdir(parent):
        return []
    return sorted(entry.name for entry in os.scandir(parent) if entry.is_dir() and not entry.name.startswith("."))


def is_clutter(name: str) -> bool:
    """Is it a hidden file or one that a file manager leaves behind?"""
    return name.startswith(".") or name.lower() in LEFT_BY_FILE_MANAGERS


def list_images(folder: str) -> list[str]:
    """Names of the images in a folder, sorted; hidden files are passed over, anything else is refused."""
    with os.scandir(folder) as entries:
        found = [entry for entry in entries if not is_clutter(entry.name)]
        nested = sorted(entry.name for entry in found if entry.is_dir())
    names = sorted(entry.name for entry in found)
    if nested:
        raise NotAnImageError(f"{folder} should hold the images of one class, but has folders: {listed(nested)}")
    if not names:
        raise NotAnImageError(f"{folder} is empty: put images of its class there or remove the folder")
    others = [name for name in names if not name.lower().endswith(EXTENSIONS)]
    if others:
        raise NotAnImageError(f"{folder} has files that are not images: {listed(others)}. Take them out.")
    return names


def list_classes(folder: str) -> list[str]:
    """Names of the class folders, sorted; at least one."""
    classes = subfolders(folder)
    if not classes:
        raise NotAnImageError(f"{folder} has no folders: it should hold one folder of images per class")
    return classes


def list_folders(image_dir: str, folders: Sequence[str], classnames: Sequence[str], part: str = "") -> list[Entry]:
    """The images of those class folders that `part`, a folder in `image_dir`, has; the label is a folder's position."""
    place = os.path.join(image_dir, part)
    present = set(subfolders(place))
    return [
        ("/".join(filter(None, (part, folder, image))), label, classname)
        for label, (folder, classname) in enumerate(zip(folders, classnames, strict=True))
        if folder in present
        for image in list_images(os.path.join(place, folder))
    ]


def read_classnames(path: str, how_to_get: str, wordnet: bool = False) -> dict[str, str]:
    """Class name by folder from lines of "folder class name"; a tab may take the place of the first space.

    With `wordnet` it is ImageNet's, with lines of "n01440764 tench" and no others.
    """
    names: dict[str, str] = {}
    for number, line in enumerate(read_lines(path, how_to_get), start=1):
        if wordnet and line and not WORDNET_LINE.match(line):
            found = f"{path}, line {number}: {line[:80]!r}"
            raise SplitFileError(f"{found} is not laid out as 'n01440764 tench'. {how_to_get}")
        folder, _, name = line.partition("\t" if "\t" in line else " ")
        if folder and (not name.strip() or folder in names):
            wrong = "no class name" if not name.strip() else f"{folder} a second time"
            raise SplitFileError(f"{path}, line {number}: {wrong}; expected: folder, space, class name")
        if folder:
            names[folder] = name.strip()
    return names


def read_lines(path: str, how_to_get: str = "") -> list[str]:
    """The lines of a text file in UTF-8 without the white space around them."""
    if not os.path.isfile(path):
        raise SplitFileMissingError(f"{path} does not exist. {how_to_get}")
    try:
        with open(path, encoding="utf-8-sig") as file:
            return [line.strip() for line in file]
    except UnicodeDecodeError as error:
        raise SplitFileError(f"{path} is not in UTF-8 ({error.reason}): save it so") from error


def names_of(folders: Sequence[str], names: dict[str, str], path: str) -> list[str]:
    """The class name of every folder, each of which must have one."""
    unnamed = [folder for folder in folders if folder not in names]
    if unnamed:
        raise SplitFileError(
            f"{path} has no class name for {len(unnamed)} of {len(folders)} folders: {listed(unnamed)}"
        )
    return [names[folder] for folder in folders]


# Split files


def read_split(path: str, image_dir: str, how_to_get: str, published: bool = False) -> Split:
    """Read a split file and check it against the images on disk, in `image_dir`.

    The class names of a published one are taken as they are (:func:`prompting.tokens.check_names`).

    Raises:
        SplitFileError: the content is malformed, or its labels and names do not make a list of classes.
        SplitFileMissingError: the file or some of its images do not exist.
    """
    if not os.path.isfile(path):
        raise SplitFileMissingError(f"split file {path} does not exist. {how_to_get}")
    entries, sha256 = read_entries(path)
    entries = {
        part: [(with_slashes(impath, image_dir), label, name) for impath, label, name in rows]
        for part, rows in entries.items()
    }
    return build_split(entries, image_dir, path, sha256, published)


def read_entries(path: str) -> tuple[dict[str, list[Entry]], str]:
    """The entries of a split file by part, and its SHA-256."""
    content = read_limited(path)
    return parse_entries(content, path), hashlib.sha256(content).hexdigest()


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
            f"{case_hint(image_dir, missing[0])} Unpack the images there again, unless the split file "
            f"(sha256 {sha256[:12]}...) is of another version than the images."
        )
    return Split(*(items_of(entries[part], image_dir) for part in PARTS), classnames, sha256)


def items_of(entries: Iterable[Entry], image_dir: str) -> list[Datum]:
    """The entries as Dassl has them, each of which must be there."""
    return [Datum(os.path.join(image_dir, impath), label, classname=name) for impath, label, name in entries]


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
    except (ValueError, RecursionError) as reason:
        problem = "it is nested too deeply" if isinstance(reason, RecursionError) else reason
        raise error(f"{path} is not valid JSON: {problem}") from reason


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
    classnames = [names[label] for label in range(len(names))]
    labels: dict[str, int] = {}
    for label, name in enumerate(classnames):
        if labels.setdefault(name, label) != label:
            raise SplitFileError(f"{path}: labels {labels[name]} and {label} are both called {name!r}")
    untrained = sorted(set(names) - {label for _, label, _ in entries["train"]})
    if untrained:
        raise SplitFileError(f"{path}: no training images for {listed(names[label] for label in untrained)}")
    check_names(classnames, [f"label {label}, {found[label]}" for label in range(len(names))], path, published)
    return classnames


def hash_entries(entries: Mapping[str, Sequence[Entry]]) -> str:
    """SHA-256 over part, path, label and class name of every image, in order: the same on every machine."""
    digest = hashlib.sha256()
    for part in PARTS:
        digest.update(json.dumps([part, list(entries.get(part, ()))]).encode())
    return digest.hexdigest()


# New splits, drawn by the two rules of CoOp's data set files


def split_trainval(entries: Iterable[Entry], rng: random.Random) -> dict[str, list[Entry]]:
    """Where there is an official test set: deal the other images into val, a fifth of each class, and train."""
    return deal(entries, {"val": 0.2}, "train", rng)


def split_classes(entries: Iterable[Entry], rng: random.Random) -> dict[str, list[Entry]]:
    """Where there is none: deal each class into half train, a fifth val, the rest test."""
    return deal(entries, {"train": 0.5, "val": 0.2}, "test", rng)


def deal(entries: Iterable[Entry], shares: dict[str, float], rest: str, rng: random.Random) -> dict[str, list[Entry]]:
    """Shuffle the images of each class, and give every part its share of them and `rest` what is left.

    Raises:
        AnnotationError: a part would get no image of a class.
    """
    groups: dict[int, list[Entry]] = defaultdict(list)
    for entry in entries:
        groups[entry[1]].append(entry)
    parts: dict[str, list[Entry]] = {part: [] for part in (*shares, rest)}
    for group in groups.values():
        numbers = {part: round(len(group) * share) for part, share in shares.items()}
        numbers[rest] = len(group) - sum(numbers.values())
        if min(numbers.values()) < 1:
            raise AnnotationError(
                f"class {group[0][2]!r} has {len(group)} images: too few to deal into {', '.join(numbers)}"
            )
        rng.shuffle(group)
        images = iter(group)
        for part, number in numbers.items():
            parts[part] += islice(images, number)
    return parts


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
