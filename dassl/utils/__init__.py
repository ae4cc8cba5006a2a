"""Helpers of every run: files, names, random numbers, meters, networks, the log, signals, a description of the machine.

Checkpoints and images have files of their own; all are imported from here, or by the two paths that Dassl has them in.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import multiprocessing
import multiprocessing.util
import os
import platform
import random
import shutil
import signal
import sys
import threading
import time
import urllib.request
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import SequenceMatcher
from types import FrameType
from typing import Any, TextIO, TypeVar

import numpy as np
import torch
from torch import nn

from common.files import StrPath, atomic_write
from common.files import is_zip as is_zip
from dassl import keep_old_paths

from .checkpoint import CheckpointError as CheckpointError
from .checkpoint import load_checkpoint as load_checkpoint
from .checkpoint import load_pretrained_weights as load_pretrained_weights
from .checkpoint import resume_from_checkpoint as resume_from_checkpoint
from .checkpoint import save_checkpoint as save_checkpoint
from .images import UnreadableImageError as UnreadableImageError
from .images import open_image as open_image
from .images import read_image as read_image

T = TypeVar("T", bound=Callable[..., Any])
SECONDS_TO_END = 1.0  # for daemons that obey SIGTERM
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))


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
    """A table of named classes or functions: how trainers, data sets, evaluators and models are found."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._obj_map: dict[str, Any] = {}

    def register(self, obj: Any = None, force: bool = False) -> Any:
        """Enter a class or function under its `__name__`; without `obj`, return a decorator that does.

        A name that is taken is a KeyError; with `force` the earlier entry is replaced.
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
        check_availability(name, self._obj_map, f"the {self._name} registry")
        return self._obj_map[name]

    def registered_names(self) -> list[str]:
        return list(self._obj_map)

    def __contains__(self, name: object) -> bool:
        return name in self._obj_map


def get_most_similar_str_to_a_from_b(a: str, b: Iterable[str]) -> str | None:
    """Return the string of `b` most like `a`, or None if `b` is empty."""
    return max(b, key=lambda candidate: SequenceMatcher(None, str(a), candidate).ratio(), default=None)


def check_availability(requested: str, available: Iterable[str], where: str = "the available ones") -> None:
    """Check that `requested` is one of `available`; else raise UnknownNameError, which names the choices."""
    available = list(available)
    if requested not in available:
        nearest = get_most_similar_str_to_a_from_b(requested, available)
        meant = f" (do you mean [{nearest}]?)" if nearest else ""
        raise UnknownNameError(f"[{requested}] is not in {where}: {available}{meant}")


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


# Meters, and the parameters of networks


class AverageMeter:
    """The last value and the average of a series; with `ema` an exponential one (0.9 old, 0.1 new)."""

    def __init__(self, ema: bool = False) -> None:
        self.ema = ema
        self.reset()

    def reset(self) -> None:
        self.val = self.avg = self.sum = 0.0
        self.count = 0

    def update(self, val: float | torch.Tensor, n: int = 1) -> None:
        """Take in `val`, the mean of `n` values."""
        self.val = val.item() if isinstance(val, torch.Tensor) else val
        self.sum += self.val * n
        self.count += n
        self.avg = self.avg * 0.9 + self.val * 0.1 if self.ema else self.sum / self.count


class MetricMeter:
    """An `AverageMeter` per name; prints as `loss 0.5000 (0.7500) acc 50.0000 (25.0000)`."""

    def __init__(self, delimiter: str = " ") -> None:
        self.meters: defaultdict[str, AverageMeter] = defaultdict(AverageMeter)
        self.delimiter = delimiter

    def update(self, input_dict: Mapping[str, float | torch.Tensor] | None) -> None:
        """Take in one value per name; None is ignored, and what else is no mapping is a TypeError."""
        if input_dict is None:
            return
        if not isinstance(input_dict, Mapping):
            raise TypeError(f"MetricMeter.update() takes a dictionary, but got {type(input_dict).__name__}")
        for name, value in input_dict.items():
            self.meters[name].update(value)

    def averages(self) -> dict[str, float]:
        """Return the average per name."""
        return {name: meter.avg for name, meter in self.meters.items()}

    def __str__(self) -> str:
        return self.delimiter.join(f"{name} {meter.val:.4f} ({meter.avg:.4f})" for name, meter in self.meters.items())


_INITIALISERS = {
    "normal": lambda weight, gain: nn.init.normal_(weight, 0.0, gain),
    "xavier": lambda weight, gain: nn.init.xavier_normal_(weight, gain=gain),
    "kaiming": lambda weight, gain: nn.init.kaiming_normal_(weight, a=0, mode="fan_in"),
    "orthogonal": lambda weight, gain: nn.init.orthogonal_(weight, gain=gain),
}


def count_num_param(
    model: nn.Module | None = None, params: Iterable[torch.Tensor | dict[str, Any]] | None = None
) -> int:
    """Return the number of parameters of a model, or of an iterable of parameters or parameter groups."""
    if model is not None:
        return sum(p.numel() for p in model.parameters())
    if params is not None:
        parts = [p["params"] if isinstance(p, dict) else p for p in params]
        return sum(p.numel() for part in parts for p in ([part] if isinstance(part, torch.Tensor) else part))
    raise ValueError("count_num_param() needs a model or params")


def open_all_layers(model: nn.Module) -> None:
    """Put the model in training mode and let all parameters learn."""
    model.train()
    model.requires_grad_(True)


def open_specified_layers(model: nn.Module, open_layers: str | list[str]) -> None:
    """Let only the named children of the model learn; the others are frozen and in evaluation mode."""
    if isinstance(model, nn.DataParallel):
        model = model.module
    names = [open_layers] if isinstance(open_layers, str) else open_layers
    children = dict(model.named_children())
    missing = [name for name in names if name not in children]
    if missing:
        raise ValueError(f"{type(model).__name__} has no layers {missing}; it has {list(children)}")
    for name, child in children.items():
        child.train(name in names)
        child.requires_grad_(name in names)


def init_network_weights(model: nn.Module, init_type: str = "normal", gain: float = 0.02) -> None:
    """Initialise convolutions and linear layers by `init_type`, biases with 0, norms with weight 1 and bias 0.

    `init_type` is normal, xavier, kaiming or orthogonal; `gain` the standard deviation of normal, the gain of others.
    """
    if init_type not in _INITIALISERS:
        raise ValueError(f"init_type must be one of {list(_INITIALISERS)}, but got {init_type}")
    for module in model.modules():
        kind = type(module).__name__
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        is_norm = "BatchNorm" in kind or "InstanceNorm" in kind
        if weight is None or not (is_norm or "Conv" in kind or "Linear" in kind):
            continue
        if is_norm:
            nn.init.ones_(weight.data)
        else:
            _INITIALISERS[init_type](weight.data, gain)
        if bias is not None:
            nn.init.zeros_(bias.data)


# The log


class Logger:
    """A stand-in for `sys.stdout` that also writes to a new file, if any; closing it puts `sys.stdout` back."""

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
        if self.file is not None:
            self.file.write(msg)
        return self.console.write(msg)

    def flush(self) -> None:
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
    """Copy what is printed from now on to a log file, until the logger that is returned, or set up after it, is closed.

    `output` is a directory (the log is its `log.txt`), a file ending in `.txt` or `.log`, or None for no log. Where
    there is a log already, it stays, and the new one has the time in its name.
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


# Stopping by a signal: SIGTERM, as schedulers end a job, and SIGUSR1, as Slurm warns before it does. A run that has
# computed nothing worth keeping ends at once; training finishes its batch and writes its state first.


class RunStopped(BaseException):
    """A run that a signal stopped, its state saved; no Exception, so that nobody takes it for an error."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.signal = number


class StopRequest:
    """Whether a signal asked the run to stop."""

    def __init__(self) -> None:
        self.signal = 0  # number of the first that did; 0: none. Later ones change nothing: the run is ending already
        self._deferrals = 0
        self._process = os.getpid()

    @contextmanager
    def listening(self, until_exit: bool = False) -> Iterator[StopRequest]:
        """Take the signals while the context lasts; outside the main thread, which alone gets them, nothing is done.

        A signal that the process was started to ignore stays ignored. Where somebody else listened before, the signal
        is handed on to them at the end. `until_exit`: the process ends after this, and signals that still come are
        ignored, as they would end it with a status that says nothing.
        """
        before: dict[int, Any] = {}
        try:
            if threading.current_thread() is threading.main_thread():
                for number in SIGNALS:
                    if (handler := signal.getsignal(number)) is not signal.SIG_IGN:
                        before[number] = handler
                        signal.signal(number, self._take)  # which may end this at once
            yield self
        finally:
            self._deferrals += 1  # a first signal that comes now waits until all handlers are put back
            heeded = self.signal
            for number, handler in before.items():
                signal.signal(number, signal.SIG_IGN if until_exit else handler)
            self._deferrals -= 1
            if callable(before.get(self.signal)) and not until_exit:
                signal.raise_signal(self.signal)
            if not heeded:
                self.check()

    def _take(self, number: int, _frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # in a loader's worker, which inherits this
            return
        first = not self.signal
        self.signal = self.signal or number
        if first and not self._deferrals:
            raise RunStopped(number)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Let a signal wait for the next `check` while the context lasts."""
        self._deferrals += 1
        try:
            yield
        finally:
            self._deferrals -= 1
        self.check()

    def check(self) -> None:
        """End the run by `RunStopped` if that was asked for."""
        if self.signal:
            raise RunStopped(self.signal)


def leave_signals_to_the_run(_worker: int) -> None:
    """In a loader's worker: outlive one signal, as schedulers signal all processes of a run and it needs them still.

    A second SIGTERM ends the worker, so that the run can always get rid of it.
    """
    signal.signal(signal.SIGTERM, lambda number, _frame: signal.signal(number, signal.SIG_DFL))
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def end_workers_with_this_process() -> None:
    """Have the loaders' workers end when this process does, with an error that nothing caught, too.

    Such an error keeps the loader's iterator, which else ends its workers. At its exit `multiprocessing` sends the
    daemons one SIGTERM and waits for them without end, and these workers outlive one.
    """
    _end_daemons_of(os.getpid())


@functools.cache
def _end_daemons_of(_process: int) -> None:  # once in each: a forked one inherits the cache and no finalizer
    multiprocessing.util.Finalize(None, _end_daemons, exitpriority=0)  # before multiprocessing ends them


def _end_daemons() -> None:
    if hasattr(signal, "SIGCHLD"):  # whose handler, PyTorch's, would make another error of the workers' end
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    daemons = [child for child in multiprocessing.active_children() if child.daemon]
    for child in daemons:
        child.terminate()
    deadline = time.monotonic() + SECONDS_TO_END
    for child in daemons:
        child.join(max(0.0, deadline - time.monotonic()))
        if child.is_alive():
            child.kill()


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


keep_old_paths(__name__, "dassl.utils.tools", "dassl.utils.torchtools")
