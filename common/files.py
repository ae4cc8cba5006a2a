"""Files, written whole or not at all, and their checksums. Standard library only, for what does without torch, too."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import socket
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

StrPath = str | os.PathLike[str]


@contextmanager
def atomic_write(path: StrPath, mode: str = "wb", replace: bool = True) -> Iterator[IO[Any]]:
    """Open a temporary file beside `path`; it takes the place of `path` only once it is complete and on disk.

    It is removed when anything goes wrong; of a process that is killed it stays, until the next one writes `path`. The
    directory is made when missing; the mode is `wb` or `w`.

    Raises:
        FileExistsError: there is a file, perhaps only just, and `replace` is False.
    """
    folder, name = os.path.split(os.fspath(path))
    os.makedirs(folder or ".", exist_ok=True)
    remove_dead_temporaries(folder, name.__eq__)
    # the number at the end tells writers of one process apart, and those of machines that have one name
    temporary = os.path.join(folder, f".{name}.{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, mode.replace("w", "x"), encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if not replace:
            try:
                os.link(temporary, path)  # unlike os.replace, it fails on an existing name
            except FileExistsError:
                raise
            except OSError:  # a file system without hard links
                if os.path.lexists(path):
                    raise FileExistsError(path) from None
                replace = True
        if replace:
            os.replace(temporary, path)
        _sync_directory(folder or ".")
    finally:
        with suppress(FileNotFoundError):
            os.remove(temporary)


def hash_file(path: StrPath, kind: str = "sha256") -> str:
    """A file's checksum in hexadecimal digits."""
    digest = hashlib.new(kind)
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def is_zip(path: StrPath) -> bool:
    """Whether a file is a zip archive; one that calls itself a part of several counts, and opening it is an error."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:
        return True


def remove_dead_temporaries(folder: StrPath, is_target: Callable[[str], bool]) -> None:
    """Remove what killed processes of this machine left in a folder of the files that they were writing.

    The folder may be missing. `is_target` says whether a file's name is one whose unfinished versions may go.
    """
    pattern = re.compile(
        rf"\.(?P<target>.+)\.{re.escape(socket.gethostname())}\.(?P<pid>\d{{1,9}})\.[0-9a-f]{{8}}\.tmp"
    )
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder or ".") as entries:
        for match in filter(None, (pattern.fullmatch(entry.name) for entry in entries)):
            if is_target(match["target"]) and is_process_dead(int(match["pid"])):
                with suppress(OSError):  # another process was faster; a folder that is for reading only
                    os.remove(os.path.join(folder, match[0]))


def is_process_dead(pid: int) -> bool:
    """Whether a process of this machine has ended; one that nobody waited for has, too."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False  # another user's
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:  # a system without /proc
        return False
    return state[:1] in (["Z"], ["X"])


def _sync_directory(path: str) -> None:
    """Have a new name in a directory survive a power cut; where a system or file system cannot, it is left at that."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
