"""Write a file that did not exist, whole or not at all; what is there already is never replaced by something else."""

import os

from common.files import atomic_write


def write_new_text(path: str, text: str) -> None:
    """Write a text file; the same text may be written again, by several threads, processes and machines at once too.

    Raises:
        FileExistsError: there is a file of that name with another content.
        PermissionError: the folder cannot be written to.
    """
    if os.path.lexists(path):
        return require_same(path, text)
    try:
        with atomic_write(path, "w", replace=False) as file:
            file.write(text)
    except FileExistsError:  # somebody was faster
        require_same(path, text)
    except OSError as error:
        raise PermissionError(f"cannot write {path}: {error.strerror or error}") from error
    return None


def require_same(path: str, text: str) -> None:
    """Refuse a file with another content."""
    with open(path, encoding="utf-8") as file:
        if file.read() != text:
            raise FileExistsError(f"{path} exists with other content: move it away or choose another name")
