"""List the images of class folders, always in the order of their names, so that every machine sees the same list."""

import os
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from dassl.data.datasets import Datum
from datasets.locate import subfolders
from datasets.splitfile import SplitFileError, SplitFileMissingError, hash_entries, listed

EXTENSIONS = (
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".png",
    ".bmp",
    ".gif",
    ".webp",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
    ".pbm",
)
WORDNET_LINE = re.compile(r"n\d{8}(\s|$)")  # the start of a line of ImageNet's class names
LEFT_BY_FILE_MANAGERS = ("thumbs.db", "desktop.ini")


class NotAnImageError(SplitFileError):
    """A folder of images holds something else, or nothing."""


class Listed(NamedTuple):
    """An image of a long list: what `Datum` holds, without a look at the disk for each."""

    impath: str
    label: int
    classname: str

    def datum(self) -> Datum:
        """The same as a `Datum`."""
        return Datum(impath=self.impath, label=self.label, classname=self.classname)


def list_images(folder: str) -> list[str]:
    """Names of the images in a folder, sorted; hidden files are passed over.

    Raises:
        NotAnImageError: there is none, or something in it is not an image.
    """
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


def is_clutter(name: str) -> bool:
    """Is it a hidden file or one that a file manager leaves behind?"""
    return name.startswith(".") or name.lower() in LEFT_BY_FILE_MANAGERS


def list_classes(folder: str) -> list[str]:
    """Names of the class folders, sorted.

    Raises:
        NotAnImageError: there is none.
    """
    classes = subfolders(folder)
    if not classes:
        raise NotAnImageError(f"{folder} has no folders: it should hold one folder of images per class")
    return classes


def list_folders(image_dir: str, folders: Sequence[str], classnames: Sequence[str]) -> list[Listed]:
    """The images of some class folders; the label is the folder's position."""
    items = []
    for label, (folder, classname) in enumerate(zip(folders, classnames, strict=True)):
        path = os.path.join(image_dir, folder)
        items += [Listed(os.path.join(path, name), label, classname) for name in list_images(path)]
    return items


def read_classnames(path: str, how_to_get: str) -> dict[str, str]:
    """Class name by folder from lines of "folder class name"; a tab may take the place of the first space.

    Raises:
        SplitFileMissingError: there is no such file.
        SplitFileError: it is not in UTF-8, a line has no class name, or a folder comes twice.
    """
    if not os.path.isfile(path):
        raise SplitFileMissingError(f"{path} does not exist. {how_to_get}")
    names: dict[str, str] = {}
    for number, line in enumerate(read_lines(path), start=1):
        folder, _, name = line.partition("\t" if "\t" in line else " ")
        if not folder:
            continue
        if not name.strip() or folder in names:
            wrong = "no class name" if not name.strip() else f"{folder} a second time"
            raise SplitFileError(f"{path}, line {number}: {wrong}; expected: folder, space, class name")
        names[folder] = name.strip()
    return names


def read_imagenet_names(path: str, how_to_get: str) -> dict[str, str]:
    """The names of ImageNet's classes from lines of "n01440764 tench", and of no other layout.

    Raises:
        SplitFileMissingError: there is no such file.
        SplitFileError: a line is laid out in another way.
    """
    for number, line in enumerate(read_lines(path) if os.path.isfile(path) else (), start=1):
        if line and not WORDNET_LINE.match(line):
            found = f"{path}, line {number}: {line[:80]!r}"
            raise SplitFileError(f"{found} is not laid out as 'n01440764 tench'. {how_to_get}")
    return read_classnames(path, how_to_get)


def read_lines(path: str) -> list[str]:
    """The lines of a text file without the white space around them.

    Raises:
        SplitFileError: it is not in UTF-8.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            return [line.strip() for line in file]
    except UnicodeDecodeError as error:
        raise SplitFileError(f"{path} is not in UTF-8 ({error.reason}): save it so") from error


def names_of(folders: Sequence[str], names: dict[str, str], path: str) -> list[str]:
    """The class name of every folder.

    Raises:
        SplitFileError: a folder has none.
    """
    unnamed = [folder for folder in folders if folder not in names]
    if unnamed:
        raise SplitFileError(
            f"{path} has no class name for {len(unnamed)} of {len(folders)} folders: {listed(unnamed)}"
        )
    return [names[folder] for folder in folders]


def hash_listed(parts: Mapping[str, Sequence[Listed]], image_dir: str) -> str:
    """SHA-256 of a split that is read from folders."""
    start = len(os.path.join(image_dir, ""))
    entries = {
        part: [(item.impath[start:].replace(os.sep, "/"), item.label, item.classname) for item in items]
        for part, items in parts.items()
    }
    return hash_entries(entries)
