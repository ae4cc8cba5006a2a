"""Read a file of PyTorch's without running anything in it, in memory that is a small multiple of the file's size.

The unpickler knows how to make tensors and plain containers. Everything else, such as the schedulers, optimisers and
NumPy numbers in published checkpoints, is refused or becomes an :class:`Inert` placeholder; no name is imported.
"""

from __future__ import annotations

import codecs
import functools
import json
import math
import os
import pickle
import sys
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping
from typing import IO, Any

import torch
from torch import Tensor, nn

from common.files import is_zip

MAX_REPEATED = 2**26  # bytes of tensors that repeat their numbers
MAX_CODE = 8 * 2**20  # bytes that may come out of compressed entries; OpenAI's archives have less than one MiB of code
# What a pickle may cost, about one for every value of some 60 bytes: ImageNet's sixteen shots cost about 700,000
FREE_COST, BYTES_PER_COST = 1_000_000, 16
LEGACY_START = (0x1950A86A20F9469CFC6C, 1001)  # PyTorch before 1.6: magic number and protocol, each a pickle
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
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}
REAL_DTYPES = {dtype for dtype in STORAGE_DTYPES.values() if not dtype.is_complex}


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or does not fit; the message names the file and what is wrong."""


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


def read_file(path: str | os.PathLike[str], placeholders: bool = True) -> Any:
    """What a file written by ``torch.save``, before 1.6 too, holds, on the CPU, with nothing executed.

    Objects of unknown types become :class:`Inert`; without ``placeholders`` they are a pickle.UnpicklingError. A file
    that is damaged, or would take too much memory, raises whatever its bytes happen to mean.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                check_archive(archive, size)
                content = ArchiveUnpickler(archive, size, placeholders).load()
        else:
            file.seek(0)
            content = _read_legacy(file, size, placeholders)
    _check_repeats(content, size)
    return content


def read_safetensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors of a file of safetensors, and the texts in its header; SafetensorError if it is damaged."""
    from safetensors import safe_open  # here, since a fork that reads no such file needs no safetensors

    with safe_open(os.fspath(path), framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118  no mapping


def read_content(path: str | os.PathLike[str], placeholders: bool = True) -> Any:
    """What a checkpoint file holds; see :func:`read_file`. A CheckpointError names the path and a cure.

    Of safetensors, as `prompting.sharing` writes them, the fields beside the tensors are JSON in the header.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f'no checkpoint at "{path}"')
    try:
        if os.fspath(path).endswith(".safetensors"):
            tensors, header = read_safetensors(path)
            return json.loads(header.get("checkpoint", "{}")) | {"state_dict": tensors}
        return read_file(path, placeholders)
    except MemoryError:
        raise
    except Exception as error:
        if isinstance(error, pickle.UnpicklingError) and not placeholders and is_zip(path):
            raise CheckpointError(
                f'the checkpoint "{path}" holds pickled Python objects, as upstream Dassl saved its schedulers, '
                "and loading those can run code. If you trust the file, keep its weights only: "
                "c = torch.load(PATH, map_location='cpu', weights_only=False); "
                "torch.save({'state_dict': c['state_dict'], 'epoch': c['epoch'], 'val_result': None}, PATH)"
            ) from error
        raise CheckpointError(
            f'"{path}" is not a checkpoint, or it is damaged or cut short ({reason(error)}): '
            "use an earlier one, or copy it again"
        ) from error


def read_checkpoint(path: str | os.PathLike[str], bare: bool = False) -> dict[str, Any]:
    """Content of a checkpoint file, on the CPU, with nothing executed; see :func:`as_checkpoint`."""
    return as_checkpoint(read_content(path), path, bare)


def as_checkpoint(content: Any, path: str | os.PathLike[str], bare: bool = False) -> dict[str, Any]:
    """What the file at ``path`` holds, if that is a checkpoint.

    It is the file's dictionary: ``"state_dict"`` maps names to tensors, and every field of :data:`FIELDS` that is there
    is of its kind; else a CheckpointError names the path. With ``bare`` the file may be the state dict itself.
    """
    # dict's own methods: a file may give an OrderedDict attributes that hide them
    content = dict(dict.items(content)) if isinstance(content, dict) else {}
    if bare and content and "state_dict" not in content:
        content = {"state_dict": content}
    state_dict = content.get("state_dict")
    if not isinstance(state_dict, dict) or not any(map(_is_tensor, dict.values(state_dict))):
        raise CheckpointError(f'"{path}" holds no "state_dict" of tensors: it is not a checkpoint of a training run')
    content["state_dict"] = dict(dict.items(state_dict))
    check_fields(content, path)
    try:
        check_tensors(content["state_dict"])
    except ValueError as error:
        raise CheckpointError(f'"{path}" is no checkpoint that can be used: {error}') from error
    return content


def reason(error: BaseException) -> str:
    """The first line of what an error says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


# The fields of a checkpoint

TEXT = ("a text", lambda value: isinstance(value, str) and len(value) <= 2**20)
COUNT = ("a whole number, 0 or more", lambda value: type(value) is int and 0 <= value < 2**53)
NUMBER = (
    "a number",
    lambda value: (type(value) is int and abs(value) < 2**53) or (type(value) is float and not math.isnan(value)),
)
NAMES = (
    "a list of texts of up to 1,000 characters",
    lambda value: isinstance(value, list | tuple) and all(isinstance(v, str) and 0 < len(v) <= 1000 for v in value),
)
FLAG = ("True or False", lambda value: type(value) is bool)
# What a field must be, unless it is missing or None. Published code stores NumPy's numbers and schedulers in those
# of LOOSE, which are not needed to use the weights: there a placeholder will do.
FIELDS = {
    "epoch": COUNT,
    "val_result": NUMBER,
    "best_result": NUMBER,
    "epochs_without_gain": COUNT,
    "stopped_early": FLAG,
    "trainer": TEXT,
    "backbone": TEXT,
    "alpha": NUMBER,
    "classnames": NAMES,
    "dataset": TEXT,
    "settings": TEXT,
    "converted_from": TEXT,
    "optimizer": ("a state dict", lambda value: isinstance(value, dict)),
    "scheduler": ("a state dict", lambda value: isinstance(value, dict)),
}
LOOSE = ("epoch", "val_result", "best_result", "optimizer", "scheduler")


def check_fields(content: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Refuse a checkpoint of which a field is not what it must be, by a CheckpointError that names file and field."""
    for name, (wanted, fits) in FIELDS.items():
        value = content.get(name)
        if value is not None and not fits(value) and not (name in LOOSE and isinstance(value, Inert)):
            raise CheckpointError(f'"{path}" is no checkpoint that can be used: its {name} is not {wanted}')


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, Inert) and "rebuild" in type(value).__name__)


def check_tensors(tensors: Mapping[Any, Any]) -> None:
    """Refuse, by a ValueError, what is not named tensors of real numbers, which the file holds one by one.

    Published checkpoints repeat small ones, a row for every class, so a bounded number of repeated bytes is taken.
    """
    repeated = 0
    for name, value in dict.items(tensors) if isinstance(tensors, dict) else tensors.items():
        if not isinstance(name, str):
            raise ValueError("its state_dict has a key that is no text")
        if not isinstance(value, Tensor):
            what = repr(value) if isinstance(value, Inert) else "no tensor"
            raise ValueError(f"its state_dict has {name!r}, which is {what}")
        if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
            raise ValueError(f"the tensor {name!r} is not stored as its numbers")
        if value.dtype not in REAL_DTYPES:
            raise ValueError(f"the tensor {name!r} is of type {value.dtype}, which is not taken: store it as float32")
        size = value.numel() * value.element_size()
        repeated += size if size > value.untyped_storage().nbytes() else 0
        if repeated > MAX_REPEATED:
            raise ValueError(f"the tensor {name!r} is not stored as its numbers")


def misfits(model: nn.Module, tensors: Mapping[Any, Any]) -> list[str]:
    """What of a state dict does not fit a model, which takes its entries, each of its shape and kind, and no others."""
    wanted = model.state_dict()
    problems = [f"missing {name}" for name in wanted if name not in tensors]
    problems += [f"unexpected {name}" for name in tensors if name not in wanted]
    for name in [name for name, want in wanted.items() if name in tensors and isinstance(want, Tensor)]:
        value, want = tensors[name], wanted[name]
        if not isinstance(value, Tensor):
            problems.append(f"{name} is no tensor")
        elif value.shape != want.shape:
            problems.append(f"{name} has shape {tuple(value.shape)} instead of {tuple(want.shape)}")
        elif value.is_floating_point() != want.is_floating_point() or value.is_complex() != want.is_complex():
            problems.append(f"{name} holds {value.dtype} instead of {want.dtype}")
    return problems


# The pickle


def check_archive(archive: zipfile.ZipFile, size: int) -> None:
    """Refuse an archive of ``size`` bytes from which many more would come: PyTorch compresses code, and no tensors."""
    unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > size + MAX_CODE:
        raise ValueError(f"{unpacked:,} bytes would come out of {size:,}, as of no file that PyTorch writes")


def _cost(value: Any) -> int:  # of a copy
    if isinstance(value, str | bytes):
        return len(value) // 64
    return len(value) if isinstance(value, list | tuple | dict | set | frozenset) else 0


def _check_repeats(content: Any, size: int) -> None:
    """Refuse containers that are small only because they refer to the same ones again and again, or to themselves."""
    left, pending = cost_limit(size), [content]
    while pending:
        value = pending.pop()
        left -= 1 + _cost(value)
        if left < 0:
            raise ValueError("its containers repeat one another without end")
        if isinstance(value, dict):
            pending += dict.keys(value)
            pending += dict.values(value)
        elif isinstance(value, list | tuple | set | frozenset):
            pending += value


def cost_limit(size: int) -> int:
    """What reading a file of ``size`` bytes may cost."""
    return FREE_COST + size // BYTES_PER_COST


class Unpickler(pickle._Unpickler):
    """Makes plain values, tensors without their numbers' origin, and placeholders; every read and every copy costs.

    It is the standard library's in Python: that in C takes memory for numbers that a file merely states. ``size`` is
    the bytes of the whole file that the pickle is in; for ``placeholders`` see `read_file`.
    """

    dispatch = dict(pickle._Unpickler.dispatch)
    for opcode in (pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER):
        del dispatch[opcode[0]]  # take memory for what the file states

    def __init__(self, file: IO[bytes], size: int, placeholders: bool = True) -> None:
        self._left, self._file, self._placeholders = cost_limit(size), file, placeholders
        super().__init__(self, encoding="utf-8")
        # Made anew for every file, so that nothing that a file does to them outlives it.
        known = {
            ("collections", "OrderedDict"): OrderedDict,
            ("collections", "Counter"): Counter,
            ("builtins", "set"): set,
            ("__builtin__", "set"): set,
            ("builtins", "complex"): complex,
            ("__builtin__", "complex"): complex,
            ("_codecs", "encode"): _encode,
            ("torch", "Size"): torch.Size,
            ("torch", "device"): torch.device,
            ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
            ("torch._utils", "_rebuild_tensor_v3"): _rebuild_tensor_of_dtype,
            ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
        }
        self._known: dict[tuple[str, str], Any] = {
            **{key: functools.partial(self._make, function) for key, function in known.items()},
            **{("torch", name): dtype for name, dtype in STORAGE_DTYPES.items()},
            ("torch.storage", "UntypedStorage"): torch.uint8,
        }

    def read(self, count: int) -> bytes:
        self.spend(1)
        return self._file.read(count)

    def readline(self) -> bytes:
        self.spend(1)
        return self._file.readline()

    def spend(self, cost: int) -> None:
        """Count what reading costs; too much for a file of this size is a ValueError."""
        self._left -= cost
        if self._left < 0:
            raise ValueError("its pickle makes more objects than a file of its size can need")

    def _make(self, function: Any, *args: Any) -> Any:
        """Call what makes a container or a tensor; it copies its arguments."""
        self.spend(4 + sum(map(_cost, args)))
        return function(*args)

    def find_class(self, module: str, name: str) -> Any:
        """What makes tensors and containers; for any other name an inert class of its own."""
        key = (module, name)
        if key not in self._known:
            dtype = getattr(torch, name, None) if module == "torch" and name.isidentifier() else None
            if isinstance(dtype, torch.dtype):
                self._known[key] = dtype
            elif not self._placeholders:
                raise pickle.UnpicklingError(f"it names {module}.{name}")
            else:
                self.spend(32)
                self._known[key] = type(f"{module}.{name}", (Inert,), {})
        return self._known[key]

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to objects outside of itself")

    def load_build(self) -> None:
        """BUILD copies a dictionary into an object's attributes."""
        state = self.stack[-1]
        self.spend(sum(map(_cost, state)) if isinstance(state, tuple) else _cost(state))
        super().load_build()

    def load_frame(self) -> None:
        """FRAME says how much to read at once; each read is counted, so none is."""
        self.read(8)

    dispatch[pickle.BUILD[0]], dispatch[pickle.FRAME[0]] = load_build, load_frame


class ArchiveUnpickler(Unpickler):
    """Unpickler of one ``torch.save`` archive, (``NAME/data.pkl``, ``NAME/data/0`` ...)."""

    def __init__(self, archive: zipfile.ZipFile, size: int, placeholders: bool = True) -> None:
        pickles = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError("it has no data.pkl")
        super().__init__(archive.open(pickles[0]), size, placeholders)
        self._archive, self._folder = archive, pickles[0].removesuffix("data.pkl")
        self._flat: dict[str, Tensor] = {}
        order = f"{self._folder}byteorder"
        if order in archive.namelist():
            _check_byte_order(archive.read(order).decode() == "little")

    def persistent_load(self, pid: Any) -> Any:
        """All numbers of one storage, flat."""
        dtype, key = _storage(pid)[:2]
        if isinstance(dtype, Inert):
            return dtype
        if key not in self._flat:
            data = bytearray(self._archive.read(f"{self._folder}data/{key}"))
            self._flat[key] = torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
        return self._flat[key].view(dtype)


class LegacyUnpickler(Unpickler):
    """Unpickler of a file of PyTorch before 1.6, in which the numbers follow the pickle."""

    def __init__(self, file: IO[bytes], size: int, placeholders: bool = True) -> None:
        super().__init__(file, size, placeholders)
        self.flat: dict[str, Tensor] = {}
        self._bytes_left = size

    def persistent_load(self, pid: Any) -> Any:
        """Room for all numbers of one storage, flat."""
        dtype, key, _location, count, view = _storage(pid)
        if isinstance(dtype, Inert):
            raise pickle.UnpicklingError("a storage of unknown kind")
        if key not in self.flat:
            if type(count) is not int or not 0 <= count * dtype.itemsize <= self._bytes_left:
                raise ValueError("its tensors are larger than the file")
            self._bytes_left -= count * dtype.itemsize
            self.flat[key] = torch.zeros(count, dtype=dtype)
        flat = self.flat[key].view(dtype)
        return flat if view is None else flat[view[1] : view[1] + view[2]]

    def read_numbers(self, keys: Iterable[str]) -> None:
        """Fill the storages."""
        for key in keys:
            flat = self.flat[key]
            data = memoryview(flat.view(torch.uint8).numpy())
            if int.from_bytes(self._file.read(8), "little") != len(flat) or self._file.readinto(data) != len(data):
                raise ValueError("its numbers are cut short")


def _read_legacy(file: IO[bytes], size: int, placeholders: bool) -> Any:
    """Content of a file of PyTorch before 1.6: five pickles, then the numbers."""
    if any(Unpickler(file, 0, False).load() != number for number in LEGACY_START):
        raise ValueError("it does not begin as PyTorch's files do")
    machine = Unpickler(file, 0, False).load()
    _check_byte_order(isinstance(machine, dict) and machine.get("little_endian") is True)
    unpickler = LegacyUnpickler(file, size, placeholders)
    content = unpickler.load()
    unpickler.read_numbers(Unpickler(file, size, False).load())
    return content


def _storage(pid: Any) -> tuple[Any, str, Any, Any, Any]:
    """Type, key, location, count and view of a storage."""
    if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage" or not isinstance(pid[2], str):
        raise pickle.UnpicklingError("a storage of unknown kind")
    dtype = pid[1]() if isinstance(pid[1], type) and issubclass(pid[1], Inert) else pid[1]
    if not isinstance(dtype, torch.dtype | Inert):
        raise pickle.UnpicklingError("a storage of unknown kind")
    return dtype, pid[2], pid[3], pid[4], pid[5] if len(pid) == 6 else None


def _check_byte_order(little: bool) -> None:
    if little != (sys.byteorder == "little"):
        raise ValueError("it was written on a machine with another byte order")


def _rebuild_tensor(flat: Any, offset: int, size: Any, stride: Any, *_: Any) -> Any:
    """A tensor over its storage; PyTorch refuses sizes beyond it."""
    return flat if isinstance(flat, Inert) else flat.as_strided(size, stride, offset)


def _rebuild_tensor_of_dtype(flat: Tensor, offset: int, size: Any, stride: Any, *rest: Any) -> Tensor:
    """A tensor over its storage of bytes; ``rest`` begins with whether it has a gradient, its hooks and its dtype."""
    return flat.view(rest[2]).as_strided(size, stride, offset)


def _encode(text: str, encoding: str) -> bytes:  # bytes, which protocol 2 stores as text
    if codecs.lookup(encoding).name != "iso8859-1":
        raise pickle.UnpicklingError("bytes in an unknown encoding")
    return text.encode("latin-1")
