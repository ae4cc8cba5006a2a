"""Write a file that did not exist, whole or not at all; what is there already is never replaced by something else."""

import os
import uuid


def write_new_text(path: str, text: str) -> None:
    """Write a text file; the same text may be written again, by several threads, processes and machines at once too.

    Raises:
        FileExistsError: there is a file of that name with another content.
        PermissionError: the folder cannot be written to.
    """
    if os.path.lexists(path):
        return require_same(path, text)
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.{uuid.uuid4().hex}.tmp")  # a process id may be another machine's too
    try:
        os.makedirs(folder or ".", exist_ok=True)
        with open(temporary, "x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        put_in_place(temporary, path)
    except FileExistsError:  # somebody was faster
        require_same(path, text)
    except OSError as error:
        raise PermissionError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)
    return None


def require_same(path: str, text: str) -> None:
    """Refuse a file with another content."""
    with open(path, encoding="utf-8") as file:
        if file.read() != text:
            raise FileExistsError(f"{path} exists with other content: move it away or choose another name")


def put_in_place(temporary: str, path: str) -> None:
    """Give a finished file its name, if no other file has it.

    Raises:
        FileExistsError: there is such a file, perhaps only just.
    """
    try:
        os.link(temporary, path)  # unlike os.replace, it fails on an existing name
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if os.path.lexists(path):
            raise FileExistsError(path) from None
        os.replace(temporary, path)
