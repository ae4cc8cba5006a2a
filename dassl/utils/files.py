"""Files and directories: reading, and writing that never leaves half a file behind."""

from __future__ import annotations

import json
import os
import shutil
import urllib.request
import warnings
import zipfile
from typing import Any

from common.files import StrPath, atomic_write


def is_zip(path: StrPath) -> bool:
    """Whether a file is a zip archive, one that its end calls a part of several, too: `zipfile` raises an error there.

    Opening such an archive raises the same `zipfile.BadZipFile`, where it is named as damaged.
    """
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:
        return True


def mkdir_if_missing(dirname: StrPath) -> None:
    """Make a directory and its parents; an existing one, or an empty name, is left as it is.

    Raises:
        NotADirectoryError: if a file stands in the way.
        PermissionError: if the directory cannot be made.
    """
    if not dirname:
        return
    try:
        os.makedirs(dirname, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise NotADirectoryError(f"cannot make the directory {dirname}: a file stands in the way") from error
    except PermissionError as error:
        raise PermissionError(f"cannot make the directory {dirname}: permission denied; choose another") from error


def check_isfile(fpath: StrPath) -> bool:
    """Say whether `fpath` is a file; warn when it is not."""
    is_file = os.path.isfile(fpath)
    if not is_file:
        warnings.warn(f'No file found at "{fpath}"', stacklevel=2)
    return is_file


def get_file_extension(fpath: StrPath) -> str:
    """Return the extension with its dot, `.jpg` for `cat.jpg`."""
    return os.path.splitext(fpath)[1]


def listdir_nohidden(path: StrPath, sort: bool = False) -> list[str]:
    """Return the names in a directory that do not start with a dot."""
    names = [name for name in os.listdir(path) if not name.startswith(".")]
    return sorted(names) if sort else names


def read_json(fpath: StrPath) -> Any:
    """Return what a JSON file holds.

    Raises:
        ValueError: if it is not JSON, naming the file.
    """
    with open(fpath, encoding="utf-8") as file:
        try:
            return json.load(file)
        except ValueError as error:
            raise ValueError(f"{fpath} is not a JSON file: {error}") from error


def write_json(obj: Any, fpath: StrPath) -> None:
    """Write `obj` as indented JSON; an earlier file is replaced only by a complete one."""
    with atomic_write(fpath, "w") as file:
        json.dump(obj, file, indent=4, separators=(",", ": "))


def download_url(url: str, dst: StrPath) -> None:
    """Download `url` to the file `dst`; an interrupted download leaves nothing at `dst`."""
    print(f'* url="{url}"')
    print(f'* destination="{dst}"')
    with urllib.request.urlopen(url) as response, atomic_write(dst) as file:
        shutil.copyfileobj(response, file)
        expected = response.headers.get("Content-Length")
        if expected is not None and file.tell() != int(expected):
            raise OSError(f"download of {url} broke off after {file.tell()} of {expected} bytes; run it again")
