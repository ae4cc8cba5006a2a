"""Tools of every run: files, the registry of names, random numbers, the log, a description of the machine."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import random
import shutil
import sys
import time
import urllib.request
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from difflib import SequenceMatcher
from typing import Any, TextIO, TypeVar

import numpy as np
import torch

from common.files import StrPath, atomic_write

from .images import read_image as read_image  # Dassl has it in this module

T = TypeVar("T", bound=Callable[..., Any])


# Files


def mkdir_if_missing(dirname: StrPath) -> None:
    """Make a directory and its parents, if need be; of an empty name, nothing. An OSError says what is in the way."""
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


def listdir_nohidden(path: StrPath, sort: bool = False) -> list[str]:
    """Return the names in a directory that do not start with a dot."""
    names = [name for name in os.listdir(path) if not name.startswith(".")]
    return sorted(names) if sort else names


def read_json(fpath: StrPath) -> Any:
    """Return what a JSON file holds; raise ValueError, naming the file, if it is not JSON."""
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


def tolist_if_not(x: Any) -> list[Any]:
    """Return `x` if it is a list, else a list of it."""
    return x if isinstance(x, list) else [x]


# Names to classes and functions


class UnknownNameError(KeyError, ValueError):
    """A name that nothing is registered under."""

    def __str__(self) -> str:
        return str(self.args[0])


class Registry:
    """A table of named classes or functions: how trainers, data sets, evaluators and models are found.

    Example:
        >>> SHAPE_REGISTRY = Registry("SHAPE")
        >>> @SHAPE_REGISTRY.register()
        ... class Circle: ...
        >>> SHAPE_REGISTRY.get("Circle")
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._obj_map: dict[str, Any] = {}

    def register(self, obj: Any = None, force: bool = False) -> Any:
        """Enter a class or function under its `__name__`; without `obj`, return a decorator that does.

        Raises:
            KeyError: if the name is taken; with `force` the earlier entry is replaced.
        """

        def enter(entry: T) -> T:
            if entry.__name__ in self._obj_map and not force:
                raise KeyError(f'an object named "{entry.__name__}" is already registered in the {self._name} registry')
            self._obj_map[entry.__name__] = entry
            return entry

        if obj is None:
            return enter
        enter(obj)
        return None

    def get(self, name: str) -> Any:
        """Return the entry called `name`; raise UnknownNameError, which names the choices, if there is none."""
        if name not in self._obj_map:
            raise UnknownNameError(_unknown(name, self.registered_names(), f"the {self._name} registry"))
        return self._obj_map[name]

    def registered_names(self) -> list[str]:
        """Return all names, in the order of their registration."""
        return list(self._obj_map)

    def __contains__(self, name: object) -> bool:
        return name in self._obj_map


def get_most_similar_str_to_a_from_b(a: str, b: Iterable[str]) -> str | None:
    """Return the string of `b` most like `a`, or None if `b` is empty."""
    return max(b, key=lambda candidate: SequenceMatcher(None, str(a), candidate).ratio(), default=None)


def check_availability(requested: str, available: Iterable[str]) -> None:
    """Check that `requested` is one of `available`; else raise UnknownNameError, which names the choices."""
    available = list(available)
    if requested not in available:
        raise UnknownNameError(_unknown(requested, available, "the available ones"))


def _unknown(name: str, choices: list[str], where: str) -> str:
    message = f"[{name}] is not in {where}: {choices}"
    nearest = get_most_similar_str_to_a_from_b(name, choices)
    return f"{message} (do you mean [{nearest}]?)" if nearest else message


# Random numbers


def set_random_seed(seed: int) -> None:
    """Seed python, numpy and torch on all devices."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.cuda.manual_seed_all(seed)


def derive_seed(*parts: int | str) -> int:
    """Return a 63-bit seed that depends on all parts and on nothing else, the same on every machine."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def get_random_state() -> dict[str, Any]:
    """Return the states of all generators, with those of the CUDA devices in use, as tensors and plain values."""
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if cuda else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Put back what `get_random_state` returned; states of CUDA devices that are not here are left out."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available():
        for device, device_state in zip(range(torch.cuda.device_count()), state["cuda"], strict=False):
            torch.cuda.set_rng_state(device_state, device)


@contextmanager
def seeded_random_state(seed: int) -> Iterator[None]:
    """Seed the CPU generators of python, numpy and torch inside the block, and put their states back after it."""
    python_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    # torch.manual_seed would seed the CUDA devices, too.
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)


# The log


class Logger:
    """A stand-in for `sys.stdout` that also writes to a file; closing it puts the former `sys.stdout` back.

    Without a file it writes to the console only. An existing file is never overwritten.
    """

    def __init__(self, fpath: StrPath | None = None) -> None:
        self.console: TextIO = sys.stdout
        self.file: TextIO | None = None
        if fpath is not None:
            mkdir_if_missing(os.path.dirname(fpath))
            # Line by line, so that the log of a killed run is complete; "x" refuses an existing file.
            self.file = open(fpath, "x", encoding="utf-8", buffering=1)  # noqa: SIM115

    def __enter__(self) -> Logger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["console"], name)

    def write(self, msg: str) -> int:
        """Write to console and file."""
        if self.file is not None:
            self.file.write(msg)
        return self.console.write(msg)

    def flush(self) -> None:
        """Flush console and file."""
        self.console.flush()
        if self.file is not None:
            self.file.flush()

    def close(self) -> None:
        """Close the file and restore `sys.stdout`; the console stays open."""
        if sys.stdout is self:
            sys.stdout = self.console
        if self.file is not None:
            self.file.close()
            self.file = None


def setup_logger(output: StrPath | None = None) -> Logger | None:
    """Copy everything printed from now on to a log file, until the logger that is returned is closed.

    `output` is a directory (the log is its `log.txt`), a file ending in `.txt` or `.log`, or None for no log. Where
    there is a log already, it stays, and the new one has the time in its name. A logger set up before is closed.
    """
    if not output:
        return None
    output = os.fspath(output)
    path = free = output if output.endswith((".txt", ".log")) else os.path.join(output, "log.txt")
    number = 0
    while os.path.exists(free):
        number += 1
        free = path + time.strftime("-%Y-%m-%d-%H-%M-%S") + (f"-{number}" if number > 1 else "")
    if isinstance(sys.stdout, Logger):
        sys.stdout.close()
    sys.stdout = logger = Logger(free)  # type: ignore[assignment]
    return logger


# The machine


@functools.cache
def collect_env_info() -> str:
    """Return a description of the machine and of the installed versions; no program is run for it."""
    lines = {
        "PyTorch version": f"{torch.__version__} (CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()})",
        "Python version": sys.version.replace("\n", " "),
        "System": platform.platform(),
        "Processor": f"{platform.processor() or platform.machine()}, {os.cpu_count()} logical CPUs",
        "CPU threads of PyTorch": torch.get_num_threads(),
        "CPU capability": torch.backends.cpu.get_cpu_capability(),
    }
    for device in range(torch.cuda.device_count()):
        lines[f"GPU {device}"] = torch.cuda.get_device_name(device)
    for package in ("torchvision", "numpy", "Pillow", "clip", "filelock"):
        try:
            lines[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            lines[package] = "not installed as a package"
    return "\n".join(f"{name}: {value}" for name, value in lines.items())
