"""Find the folders of a data set under the data root; where they are not, say what is there instead."""

import os


class DataRootError(FileNotFoundError):
    """The folder of a data set, or of its images, is not where it should be."""


def find_dataset_dir(root: str, folder: str, how_to_get: str = "") -> str:
    """Absolute path of a data set's folder under the data root.

    Args:
        root: the data root.
        folder: the data set's folder in it.
        how_to_get: one sentence for a user who does not have it.

    Raises:
        DataRootError: it is not there; the message suggests the right root if that is one level off.
    """
    if not root:
        raise DataRootError(f"the data root is not set: pass --root with the folder that holds {folder!r}")
    root = os.path.abspath(os.path.expanduser(root))
    path = os.path.join(root, folder)
    if os.path.isdir(path):
        return path
    found = f"{root} has no folder {folder!r}" if os.path.isdir(root) else f"the data root {root} does not exist"
    raise DataRootError(f"{found}.{suggest_root(root, folder, how_to_get)}")


def suggest_root(root: str, folder: str, how_to_get: str = "") -> str:
    """A sentence that names the root one level up or down that has the folder, or a folder spelt in another case."""
    for candidate in (os.path.dirname(root), *(os.path.join(root, child) for child in subfolders(root))):
        if os.path.isdir(os.path.join(candidate, folder)):
            return f" {candidate} has it: pass --root {candidate}"
    general = f" The data root is the folder that holds one folder per data set. {how_to_get}".rstrip()
    return case_hint(root, folder) or general


def find_image_dir(dataset_dir: str, folder: str) -> str:
    """Absolute path of the folder of the images in a data set's folder; `folder` may be empty or have several levels.

    Raises:
        DataRootError: it is not there; the message says so if it lies one level deeper or is spelt in another case.
    """
    path = dataset_dir
    for name in filter(None, folder.split("/")):
        if not os.path.isdir(os.path.join(path, name)):
            raise DataRootError(f"{path} has no folder {name!r}.{suggest_move(path, name)}")
        path = os.path.join(path, name)
    return path


def suggest_move(parent: str, folder: str) -> str:
    """A sentence on a folder that was unpacked one level too deep or is spelt in another case."""
    for child in subfolders(parent):
        if os.path.isdir(os.path.join(parent, child, folder)):
            return f" {os.path.join(parent, child)} has it: move it up one level."
    return case_hint(parent, folder) or " Unpack the images there."


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
