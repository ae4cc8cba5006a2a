"""Files that a report writes: in one step, so that nobody reads half of one, and never over another by accident."""

from __future__ import annotations

from pathlib import Path

from common.files import atomic_write


def check_target(path: Path, force: bool) -> None:
    """Refuse a path that is taken, before any work is done.

    Raises:
        FileExistsError: something is there and `force` is not given.
        IsADirectoryError: the path is a folder.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: name a file")
    if path.exists() and not force:
        raise FileExistsError(f"{path} exists already: choose another name, or --force to replace it")


def write_file(path: Path, content: str | bytes, force: bool = False) -> None:
    """Write a file under a temporary name beside it and put it in place.

    Args:
        path: the file; missing folders are made.
        content: text is written as UTF-8 with its line ends as they are.
        force: whether an existing file may be replaced.

    Raises:
        FileExistsError: the file exists and `force` is not given.
        OSError: it cannot be written; nothing is left behind.
    """
    check_target(path, force)
    with atomic_write(path, replace=force) as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)
