"""Read a checkpoint file without running anything that is in it.

PyTorch's own ``weights_only`` reading refuses what the published prompt-learning code saves: its checkpoints hold
schedulers, optimisers and NumPy scalars as pickled objects beside the tensors. Here such a file is read by an
unpickler that knows how to make tensors and plain containers; everything else becomes an :class:`Inert` placeholder.
Names in the file are never imported.
"""

from __future__ import annotations

import functools
import io
import pickle
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

MOST_REPEATED = 2**28  # bytes of tensors that repeat their numbers
MOST_CODE = 64 * 2**20  # bytes; OpenAI's archives have less than one MiB of code
STORAGE_DTYPES = {
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "ShortStorage": torch.int16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
}


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or does not fit; the message names the file and every tensor that is wrong."""


class Inert:
    """Stands for an object of the file that is not made: takes whatever a pickle does to it and does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Inert:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def _ignore(self, *args: Any, **kwargs: Any) -> None:
        pass

    __setstate__ = __setitem__ = append = extend = add = update = _ignore

    def __call__(self, *args: Any, **kwargs: Any) -> Inert:
        return self

    def __repr__(self) -> str:
        return f"<not loaded: {type(self).__name__}>"


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Content of a checkpoint file, on the CPU, with nothing executed.

    Args:
        path: written by this project or by code that saves ``{"state_dict": ..., "epoch": ...}`` with ``torch.save``.

    Returns:
        The file's dictionary; ``"state_dict"`` maps names to tensors.

    Raises:
        FileNotFoundError: when there is no such file.
        CheckpointError: when it is damaged or holds no state dict; the path is named.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'no checkpoint at "{path}"')
    try:
        content = _read(path)
        if isinstance(content, dict) and isinstance(dict.get(content, "state_dict"), dict):
            check_tensors(dict.get(content, "state_dict"))
    except MemoryError:
        raise
    except Exception as error:  # reading arbitrary bytes raises whatever they happen to mean
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f'"{path}" is not a checkpoint, or it is damaged or cut short ({reason}): copy it again or use another one'
        ) from error
    # dict's own methods: a file may give an OrderedDict attributes that hide them
    state_dict = dict.get(content, "state_dict") if isinstance(content, dict) else None
    tensors = dict(dict.items(state_dict)) if isinstance(state_dict, dict) else {}
    if not tensors or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in tensors.items()):
        raise CheckpointError(f'"{path}" holds no "state_dict" of tensors: it is not a checkpoint of a training run')
    return {**dict(dict.items(content)), "state_dict": tensors}


def _read(path: Path) -> Any:
    """The file's content: by PyTorch's own safe reading where that takes it, else with placeholders."""
    check_archive(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        if not zipfile.is_zipfile(path):  # a file of PyTorch before 1.6, or no checkpoint at all
            raise
    with zipfile.ZipFile(path) as archive:
        return Unpickler(archive).load()


def check_archive(path: Path) -> None:
    """:func:`check_size` of a file that is a zip archive; others are read as far as they reach.

    Raises:
        ValueError: more would come out than is in it.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            check_size(archive, path)


def check_size(archive: zipfile.ZipFile, path: Path) -> None:
    """Refuse an archive that unpacks to many more bytes than it has: PyTorch compresses code, and no tensors.

    Raises:
        ValueError: more would come out than is in it.
    """
    if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size + MOST_CODE:
        raise ValueError("more comes out of it than is in it, as of no file that PyTorch writes")


def check_tensors(tensors: Mapping[Any, Any]) -> None:
    """Refuse tensors that are larger than their numbers in the file, such as a number repeated without end.

    Published checkpoints hold small ones, a row for every class, so a bounded number of repeated bytes is taken.

    Raises:
        ValueError: naming the first that is too much.
    """
    repeated = 0
    for name, value in dict.items(tensors) if isinstance(tensors, dict) else tensors.items():
        if not isinstance(value, Tensor):
            continue
        if value.layout != torch.strided or value.device.type != "cpu":
            raise ValueError(f"the tensor {name!r} is not stored as its numbers")
        size = value.numel() * value.element_size()
        repeated += size if size > value.untyped_storage().nbytes() else 0
        if repeated > MOST_REPEATED:
            raise ValueError(f"the tensor {name!r} is not stored as its numbers")


class Unpickler(pickle._Unpickler):
    """Unpickler of one ``torch.save`` archive, (``NAME/data.pkl``, ``NAME/data/0`` ...).

    It is the standard library's in Python: that in C takes memory for numbers that a file merely states.
    """

    def __init__(self, archive: zipfile.ZipFile) -> None:
        pickles = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError("it has no data.pkl")
        super().__init__(io.BytesIO(archive.read(pickles[0])))
        self._archive, self._folder = archive, pickles[0].removesuffix("data.pkl")
        self._check_byte_order()
        self._flat: dict[str, Tensor] = {}
        # Made anew for every file, so that nothing that a file does to them outlives it.
        self._known: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch", "Size"): torch.Size,
            ("torch._utils", "_rebuild_tensor_v2"): functools.partial(_rebuild_tensor),
            ("torch._utils", "_rebuild_parameter"): functools.partial(_rebuild_parameter),
            **{("torch", name): dtype for name, dtype in STORAGE_DTYPES.items()},
            **{("torch", str(dtype).removeprefix("torch.")): dtype for dtype in STORAGE_DTYPES.values()},
        }

    def find_class(self, module: str, name: str) -> Any:
        """What makes tensors and containers; an inert class of its own for any other name."""
        key = (module, name)
        if key not in self._known:
            self._known[key] = type(f"{module}.{name}", (Inert,), {})
        return self._known[key]

    def persistent_load(self, pid: Any) -> Tensor:
        """All numbers of one storage, flat."""
        kind, dtype, key, _location, _count = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not isinstance(key, str):
            raise pickle.UnpicklingError("a storage of unknown kind")
        if key not in self._flat:
            data = bytearray(self._archive.read(f"{self._folder}data/{key}"))
            self._flat[key] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        return self._flat[key]

    def _check_byte_order(self) -> None:
        """Refuse a file of a machine that orders bytes the other way."""
        name = f"{self._folder}byteorder"
        if name in self._archive.namelist() and self._archive.read(name).decode() != sys.byteorder:
            raise ValueError("it was written on a machine with another byte order")


def _rebuild_tensor(flat: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    """A tensor over its storage; PyTorch refuses sizes beyond it."""
    return flat.as_strided(size, stride, offset)


def _rebuild_parameter(data: Tensor, *_: Any) -> Tensor:
    """A parameter's values."""
    return data
