"""Image features that were computed before: in the memory of this process and, where a folder is given, on disk.

A *context* is all that features depend on beside the image: backbone weights, transform, precision ... An *image* is
known by path, size and time of modification (`image_keys`), so a replaced file is another image. Labels and class names
are not stored: one store serves every class split, seed and method.

On disk each computation adds one file, `<folder>/<context>/<images>.npz`, which never changes afterwards: processes may
write at the same time. The arrays are plain numbers (nothing in them can run), and the zip format's checksums tell a
damaged file, which is removed and computed anew.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
import tokenize
import zipfile
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dassl.utils import atomic_write

KEY_BYTES = 16
# A file changed just before it was read may change again within one tick of a coarse file system's clock.
SETTLED_SECONDS = 2.0
# What numpy and zipfile raise for files that are not, or not wholly, what was written; RuntimeError: a zip entry that
# needs a password or a later version of the format; the last two: an array's header, which NumPy reads as Python.
DAMAGED = (
    *(OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zipfile.LargeZipFile),
    *(SyntaxError, tokenize.TokenError),
)

Table = dict[bytes, Tensor]  # features (embed_dim,) by image
_memory: OrderedDict[str, Table] = OrderedDict()  # by context, the one used last at the end


def digest(*parts: object) -> str:
    """A name that follows from all parts."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def image_keys(paths: Sequence[str]) -> tuple[list[bytes], list[bool]]:
    """What tells each image file from any other and from itself before a change, and whether it has settled.

    Reading every file to hash its content would cost as much as decoding it; a change that keeps both size and time
    of modification (in nanoseconds) has to be made on purpose.
    """
    now, keys, settled = time.time(), [], []
    for path in paths:
        path = os.path.abspath(path)
        state = os.stat(path)
        name = f"{path}\0{state.st_size}\0{state.st_mtime_ns}"
        keys.append(hashlib.blake2b(os.fsencode(name), digest_size=KEY_BYTES).digest())
        settled.append(state.st_mtime < now - SETTLED_SECONDS)
    return keys, settled


class FeatureStore:
    """The features known in one context.

    Args:
        context: from :func:`digest`.
        folder: where they are kept on disk; None: in memory only.
        max_bytes: of all contexts together, in memory and on disk each; the ones used longest ago go first.
    """

    def __init__(self, context: str, folder: Path | None, max_bytes: int) -> None:
        self.context, self.max_bytes = context, max_bytes
        self.root = folder
        self.folder = None if folder is None else folder / context

    def find(self, keys: Sequence[bytes]) -> Table:
        """The features known of these images."""
        table = _memory.get(self.context, {})
        if self.folder is not None and any(key not in table for key in keys):
            table = {**self._read_all(), **table}
            self._remember(table)
        if self.context in _memory:
            _memory.move_to_end(self.context)
        return {key: table[key] for key in keys if key in table}

    def add(self, keys: Sequence[bytes], features: Tensor) -> None:
        """Keep features, (images, embed_dim) in float32."""
        if not keys:
            return
        self._remember({**_memory.get(self.context, {}), **dict(zip(keys, features.unbind(0), strict=True))})
        if self.folder is None:
            return
        try:
            self._write(keys, features)
            bound_size(self.root, self.max_bytes)
        except OSError as error:  # a full disk must not end a run that needs nothing from it
            print(f"Image features: could not be kept in {self.folder} ({error})")

    def forget(self) -> None:
        """Drop what memory holds of this context."""
        _memory.pop(self.context, None)

    def _remember(self, table: Table) -> None:
        _memory[self.context] = table
        _memory.move_to_end(self.context)
        while sum(map(_bytes_of, _memory.values())) > self.max_bytes and _memory:
            _memory.popitem(last=False)

    def _write(self, keys: Sequence[bytes], features: Tensor) -> None:
        with atomic_write(self.folder / f"{digest(*keys)}.npz") as file:
            np.savez(
                file,
                context=np.frombuffer(self.context.encode(), np.uint8),
                images=np.frombuffer(b"".join(keys), np.uint8).reshape(-1, KEY_BYTES),
                features=features.numpy(),
            )

    def _read_all(self) -> Table:
        table: Table = {}
        for path in sorted(self.folder.glob("*.npz")):
            try:
                table.update(self._read(path))
                os.utime(path)  # used: it goes last when room is made
            except FileNotFoundError:
                continue  # another process made room
            except DAMAGED as error:
                print(f"Image features: {path} is damaged ({error}): computed anew")
                path.unlink(missing_ok=True)
        return table

    def _read(self, path: Path) -> Table:
        check_arrays(path)
        with np.load(path, allow_pickle=False) as file:
            context, images, features = file["context"], file["images"], file["features"]
        if context.tobytes() != self.context.encode():
            raise ValueError("it belongs to another folder")
        if features.dtype != np.float32 or features.ndim != 2 or images.shape != (len(features), KEY_BYTES):
            raise ValueError("its arrays do not fit one another")
        if not np.isfinite(features).all():
            raise ValueError("a feature is infinite or NaN")
        return dict(zip((row.tobytes() for row in images), torch.from_numpy(features).unbind(0), strict=True))


def check_arrays(path: Path) -> None:
    """Refuse a file that does not hold its arrays' numbers as they are: NumPy takes memory for what a header states.

    Raises:
        ValueError: an array is compressed, or is not as large as its header says.
    """
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
                raise ValueError(f"{entry.filename} is compressed, which is not how features are kept")
            with archive.open(entry) as file:
                if np.lib.format.read_magic(file) != (1, 0):
                    raise ValueError(f"{entry.filename} is of another format version")
                shape, _, dtype = np.lib.format.read_array_header_1_0(file)
                if math.prod(shape) * dtype.itemsize != entry.file_size - file.tell():
                    raise ValueError(f"{entry.filename} is not as large as it says")


def _bytes_of(table: Table) -> int:
    return sum(row.numel() * row.element_size() for row in table.values())


def bound_size(folder: Path, max_bytes: int) -> None:
    """Remove the feature files used longest ago until the rest fits; other files in the folder are left alone."""
    found = []
    for path in folder.glob(f"{'[0-9a-f]' * 32}/{'[0-9a-f]' * 32}.npz"):
        try:
            state = path.stat()
        except FileNotFoundError:
            continue  # another process made room
        found.append((state.st_mtime_ns, state.st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= max_bytes:
            return
        path.unlink(missing_ok=True)
        total -= size


def forget_all() -> None:
    """Drop everything that memory holds."""
    _memory.clear()
