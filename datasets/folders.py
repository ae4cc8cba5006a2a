"""Find the folders of a data set, say what is there instead where they are not, and list their images and class names.

Images and folders come in the order of their names, so that every machine sees the same list.
"""

import os
import re
from collections.abc import Sequence

from datasets.splits import Entry, SplitFileError, SplitFileMissingError, listed

EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm"),
)
WORDNET_LINE = re.compile(r"n\d{8}(\s|$)")  # the start of a line of ImageNet's class names
LEFT_BY_FILE_MANAGERS = ("thumbs.db", "desktop.ini")


class DataRootError(FileNotFoundError):
    """The folder of a data set, or of its images, is not where it should be."""


class NotAnImageError(SplitFileError):
    """A folder of images holds something else, or nothing."""


def find_dataset_dir(root: str, folder: str, how_to_get: str = "") -> str:
    """Absolute path of a data set's folder under the data root; the error names the right root if it is near."""
    if not root:
        raise DataRootError(f"the data root is not set: pass --root with the folder that holds {folder!r}")
    root = os.path.abspath(os.path.expanduser(root))
    path = os.path.join(root, folder)
    if os.path.isdir(path):
        return path
    found = f"{root} has no folder {folder!r}" if os.path.isdir(root) else f"the data root {root} does not exist"
    raise DataRootError(f"{found}.{suggest_root(root, folder, how_to_get)}")


def near_roots(root: str, folder: str) -> list[str]:
    """The roots one level up or down that have the folder."""
    candidates = (os.path.dirname(root), *(os.path.join(root, child) for child in subfolders(root)))
    return [candidate for candidate in candidates if os.path.isdir(os.path.join(candidate, folder))]


def suggest_root(root: str, folder: str, how_to_get: str = "") -> str:
    """A sentence that names the root one level up or down that has the folder, or a folder spelt in another case."""
    for near in near_roots(root, folder):
        return f" {near} has it: pass --root {near}"
    general = f" The data root is the folder that holds one folder per data set. {how_to_get}".rstrip()
    return case_hint(root, folder) or general


def find_image_dir(dataset_dir: str, folder: str) -> str:
    """Absolute path of the folder of the images, which may be empty or have several levels, in a data set's folder."""
    path = dataset_dir
    for name in filter(None, folder.split("/")):
        if not os.path.isdir(os.path.join(path, name)):
            deeper = (os.path.join(path, child) for child in subfolders(path))
            near = next((place for place in deeper if os.path.isdir(os.path.join(place, name))), None)
            cure = f" {near} has it: move it up one level." if near else case_hint(path, name)
            raise DataRootError(f"{path} has no folder {name!r}.{cure or ' Unpack the images there.'}")
        path = os.path.join(path, name)
    return path


def case_hint(parent: str, folder: str) -> str:
    """A sentence that names the folder in `parent` spelt as `folder` but for case; empty without one."""
    for child in subfolders(parent):
        if child.lower() == folder.lower() and child != folder:
            return f" There is {child!r}: rename it, case matters."
    return ""


def subfolders(parent: str) -> list[str]:
    """Names of the folders in `parent` that are not hidden, sorted; none when it does not exist."""
    if not os.path.isdir(parent):
        return []
    return sorted(entry.name for entry in os.scandir(parent) if entry.is_dir() and not entry.name.startswith("."))


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


def is_clutter(name: str) -> bool:
    """Is it a hidden file or one that a file manager leaves behind?"""
    return name.startswith(".") or name.lower() in LEFT_BY_FILE_MANAGERS


def list_classes(folder: str) -> list[str]:
    """Names of the class folders, sorted; at least one."""
    classes = subfolders(folder)
    if not classes:
        raise NotAnImageError(f"{folder} has no folders: it should hold one folder of images per class")
    return classes


def list_folders(image_dir: str, folders: Sequence[str], classnames: Sequence[str], part: str = "") -> list[Entry]:
    """The images of the class folders in `part`, a folder in `image_dir`; the label is the folder's position."""
    return [
        ("/".join(filter(None, (part, folder, image))), label, classname)
        for label, (folder, classname) in enumerate(zip(folders, classnames, strict=True))
        for image in list_images(os.path.join(image_dir, part, folder))
    ]


def read_classnames(path: str, how_to_get: str, wordnet: bool = False) -> dict[str, str]:
    """Class name by folder from lines of "folder class name"; a tab may take the place of the first space.

    With `wordnet` it is ImageNet's, with lines of "n01440764 tench" and no others.
    """
    if not os.path.isfile(path):
        raise SplitFileMissingError(f"{path} does not exist. {how_to_get}")
    names: dict[str, str] = {}
    for number, line in enumerate(read_lines(path), start=1):
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


def read_lines(path: str) -> list[str]:
    """The lines of a text file in UTF-8 without the white space around them."""
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
