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
        with open(path, encoding="utf-8") as file:
            if file.read() == text:
                return
        raise FileExistsError(f"{path} exists with other content: move it away or choose another name")
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.{uuid.uuid4().hex}.tmp")  # a process id may be another machine's too
    try:
        os.makedirs(folder or ".", exist_ok=True)
        with open(temporary, "x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise PermissionError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)
