"""Products with frozen weights: PyTorch's ``F.linear``, or oneDNN's kernels on CPUs where these are faster.

Which kernel wins differs between CPUs, so it is measured: the first time that a product of a certain shape is met,
every kernel computes it, forward and backward. A kernel whose results differ from ``F.linear`` by more than rounding is
never used, and with "auto" neither is one that is not clearly faster. The times are kept in a file of the user's cache
folder; they hold for this CPU, PyTorch and number of threads.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.weak import WeakTensorKeyDictionary

from common.files import atomic_write

Kernel = Callable[[Tensor, Tensor, Tensor | None], Tensor]

BACKENDS = ("auto", "native", "onednn", "packed")
MIN_FLOPS = 5e8  # of one product: smaller ones have nothing to gain that measuring would not eat
MIN_GAIN = 1.03  # over F.linear, for "auto" to choose another kernel: below it may be noise
MAX_ROWS = 512  # of a measured product; what is faster there is so for more rows
ROUNDS = 5  # the first warms up and does not count
TOLERANCE = 2e-5  # of the largest value; float32 rounding over thousands of terms, but no shortened number type


def conv_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The product as a 1x1 convolution over channels-last rows, which oneDNN computes: the public way there."""
    rows = x.reshape(1, 1, -1, x.shape[-1]).permute(0, 3, 1, 2)
    y = F.conv2d(rows, weight[:, :, None, None], bias)
    return y.permute(0, 2, 3, 1).reshape(*x.shape[:-1], weight.shape[0])


def pointwise_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """oneDNN's own product; a private operator of PyTorch, so it may be missing."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


# Tensor that owns the memory -> part of it -> the owner's version when it was prepacked, and the prepacked part.
_prepacked: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def prepacked_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """oneDNN's product with a copy of the weight in the order that oneDNN wants; private operators, may be missing.

    The copy is kept, one for every weight (or view of one) that is used forward and one more for backward, and made
    anew if somebody writes to the weight.
    """
    owner = weight if weight._base is None else weight._base
    parts = _prepacked.setdefault(owner, {})
    part = (weight.storage_offset(), weight.shape, weight.stride())
    if part not in parts or parts[part][0] != owner._version:
        rows = x.numel() // x.shape[-1]
        parts[part] = owner._version, torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), rows)
    return torch.ops.mkldnn._linear_pointwise(x, parts[part][1], bias, "none", [], "")


KERNELS: dict[str, Kernel] = {
    "native": F.linear,
    "conv": conv_linear,
    "pointwise": pointwise_linear,
    "packed": prepacked_linear,
}


class FrozenProduct(torch.autograd.Function):
    """``x @ weight.T + bias`` by a given kernel, with a gradient for ``x`` alone, by the same kernel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, kernel: Kernel) -> Tensor:
        ctx.weight, ctx.kernel = weight, kernel
        return kernel(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.kernel(grad, ctx.weight.t(), None), None, None, None


class LinearChooser:
    """Chooses the kernel of every product, and keeps the measurements in a file, by default of the user's cache folder.

    Backends: "native": always F.linear; "onednn": the faster of oneDNN's kernels, as long as they compute the same;
    "auto": whatever is fastest; "packed": the same, also with prepacked weights, which double (evaluation) or triple
    (training) the memory of the towers' weights.
    """

    def __init__(self, backend: str = "native", file: Path | None = None) -> None:
        self.backend, self.file = backend, file
        self.chosen: dict[str, str] = {}  # shape class -> kernel, of this process; for results.json

    def kernel(self, x: Tensor, weight: Tensor) -> Kernel | None:
        """The kernel for a product; ``None`` for F.linear, as for all but large, frozen float32 products on the CPU."""
        if self.backend == "native" or x.device.type != "cpu":
            return None
        if x.dtype != torch.float32 or weight.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
            return None
        if weight.requires_grad or 2 * x.numel() * weight.shape[0] < MIN_FLOPS:
            return None
        shape = shape_class(x, weight)
        if shape not in self.chosen:
            self.chosen[shape] = self._choose(shape, x, weight)
        name = self.chosen[shape]
        return None if name == "native" else KERNELS[name]

    def report(self) -> dict[str, Any]:
        """For results.json: the option and what it led to."""
        return {"backend": self.backend, "kernels": dict(sorted(self.chosen.items()))}

    def _choose(self, shape: str, x: Tensor, weight: Tensor) -> str:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "prompt-learning"
        path, key = self.file or folder / "linear.json", f"{machine_key()}|{shape}"
        seconds = _read_times(path).get(key)
        if (
            not isinstance(seconds, dict)
            or "native" not in seconds
            or not all(name in KERNELS and isinstance(value, float) for name, value in seconds.items())
        ):
            seconds = measure(min(x.numel() // x.shape[-1], MAX_ROWS), weight)
            # A folder that cannot be written costs a measurement per run, nothing else.
            with contextlib.suppress(OSError), atomic_write(path) as file:
                file.write(json.dumps({**_read_times(path), key: seconds}, indent=1).encode())
        return fastest(seconds, self.backend)


def shape_class(x: Tensor, weight: Tensor) -> str:
    """Products that share a measurement: the same weight's shape, rows within a factor of two."""
    rows = min(x.numel() // x.shape[-1], MAX_ROWS)
    return f"{1 << (rows - 1).bit_length()}x{weight.shape[1]}x{weight.shape[0]}"


def fastest(seconds: dict[str, float], backend: str) -> str:
    """Name of the kernel to use, given the times of those that compute right."""
    excluded = {"native"} if backend == "packed" else {"native", "packed"}
    others = {name: value for name, value in seconds.items() if name not in excluded}
    best = min(others, key=others.__getitem__, default="native")
    if backend != "onednn" and best != "native" and seconds["native"] < MIN_GAIN * seconds[best]:
        return "native"
    return best


@torch.no_grad()
def measure(rows: int, weight: Tensor) -> dict[str, float]:
    """Seconds of forward and backward product by every kernel that agrees with F.linear; in turn, the least counts."""
    weight = weight.detach().clone()  # what is kept of it ends with it
    generator = torch.Generator().manual_seed(0)
    n_out, n_in = weight.shape
    x = torch.randn(rows, n_in, generator=generator)
    grad, bias = torch.randn(rows, n_out, generator=generator), torch.randn(n_out, generator=generator)

    def both(kernel: Kernel) -> tuple[Tensor, Tensor]:
        return kernel(x, weight, bias), kernel(grad, weight.t(), None)

    expected = both(F.linear)

    def agrees(kernel: Kernel) -> bool:
        try:
            results = both(kernel)
        except (RuntimeError, AttributeError, TypeError):  # a private operator that this PyTorch lacks or has changed
            return False
        return all(
            y.shape == want.shape and bool((y - want).abs().max() <= TOLERANCE * want.abs().max())
            for y, want in zip(results, expected, strict=True)
        )

    right = {name: kernel for name, kernel in KERNELS.items() if agrees(kernel)}
    times: dict[str, list[float]] = {name: [] for name in right}
    # On a busy machine the time of one thread says more than the wall clock.
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    for _ in range(ROUNDS):
        for name, kernel in right.items():
            start = clock()
            both(kernel)
            times[name].append(clock() - start)
    return {name: min(values[1:]) for name, values in times.items()}


@cache
def _cpu_name() -> str:
    """Model name of the CPU."""
    name, info = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)


def machine_key() -> str:
    """What times depend on beside the shape."""
    cpu = f"{_cpu_name()} {torch.backends.cpu.get_cpu_capability()}"
    return f"{cpu}|torch {torch.__version__}|{torch.get_num_threads()} threads|float32|{','.join(KERNELS)}"


def _read_times(path: Path) -> dict[str, Any]:
    """All times on disk; none where the file is missing or damaged, since they can be measured again."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


CHOOSER = LinearChooser()  # the choice of this process, as torch.backends has its flags


def set_linear_backend(backend: str) -> None:
    """Choose among F.linear and oneDNN from now on; a ValueError for an unknown name."""
    if backend not in BACKENDS:
        raise ValueError(f"frozen linear backend {backend!r}: choose one of {', '.join(BACKENDS)}")
    CHOOSER.backend = backend
    CHOOSER.chosen.clear()


def frozen_kernel(x: Tensor, weight: Tensor) -> Kernel:
    """The kernel that this process computes a product with."""
    return CHOOSER.kernel(x, weight) or F.linear


def frozen_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """One matrix product with frozen weights, (..., n_in) -> (..., n_out)."""
    kernel = CHOOSER.kernel(x, weight)
    if kernel is None:
        return F.linear(x, cast_once(weight), None if bias is None else cast_once(bias))
    return FrozenProduct.apply(x, weight, bias, kernel)


# Tensor that owns the memory -> its state when it was cast, and the copy.
_cast: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def cast_once(weight: Tensor) -> Tensor:
    """A weight in the number type that autocast computes products in; without autocast as it is.

    Autocast casts a frozen weight anew for every product. The copy is kept, one for all views of a weight, and made
    anew if somebody writes to the weight or moves it.
    """
    if weight.requires_grad or weight.dtype != torch.float32 or weight.is_meta:
        return weight
    if not torch.is_autocast_enabled(weight.device.type):
        return weight
    owner = weight if weight._base is None else weight._base
    state = owner._version, owner.device, owner.data_ptr(), torch.get_autocast_dtype(weight.device.type)
    if owner not in _cast or _cast[owner][0] != state:
        _cast[owner] = state, owner.detach().to(state[-1])
    copy, start = _cast[owner][1], weight.storage_offset() - owner.storage_offset()
    return copy.as_strided(weight.shape, weight.stride(), start) if copy.stride() == owner.stride() else weight
