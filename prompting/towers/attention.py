"""A frozen residual attention block in pieces, run batch-first, and the attention mass that BMIP's gate reads.

The blocks stay as the ``clip`` package built them; these functions only call their weights. A block is split into
*project* (LayerNorm and Q, K, V), *attend* and *finish* (output projection and MLP), so that the towers can replace
prompt tokens in between and compute no row that nobody reads. At the end: the MLP in one operation, and how a product
with a frozen weight is computed.

A CPU's time goes into operations, a GPU's into being told each of them. So a CPU pads nothing and skips the rows that
nobody reads, in several calls; a GPU computes them along in one (:func:`few_launches`). The numbers are the same.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from clip.model import QuickGELU
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.weak import WeakTensorKeyDictionary

from common.files import atomic_write
from common.unpickling import reason
from prompting.changes import Term, draws, plus, terms_of
from prompting.prompts import SideBranch

# Rows of nn.MultiheadAttention's stacked input projection, in units of the width.
QKV, Q, K, KV = (0, 3), (0, 1), (1, 2), (1, 3)
# Rows per thread that go through the second half of a block together on the CPU. More of the MLP's hidden rows, four
# widths each, leave the processor's cache between operations, and are fresh memory of the system's every time.
ROWS_AT_ONCE = 2048
QUICK_GELU_SLOPE = 1.702

_as_on_a_gpu = False


def few_launches(device: torch.device) -> bool:
    """Whether few large operations are wanted rather than little arithmetic."""
    return _as_on_a_gpu or device.type != "cpu"


@contextlib.contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Go a GPU's way on the CPU, to count and to test it; for encoders that are built and run inside."""
    global _as_on_a_gpu
    before, _as_on_a_gpu = _as_on_a_gpu, True
    try:
        yield
    finally:
        _as_on_a_gpu = before


def run_layer(recompute: bool, layer: Callable[..., Any], block: nn.Module, *args: Any) -> Any:
    """``layer(block, *args)``.

    With ``recompute`` (``TRAIN.CHECKPOINT_ACTIVATIONS``) only its inputs are kept and the layer is computed once more
    in the backward pass: less memory, more time, the same values.
    """
    if not recompute or not torch.is_grad_enabled():
        return layer(block, *args)
    return checkpoint(layer, block, *args, use_reentrant=False, preserve_rng_state=draws(block))


def project(block: nn.Module, x: Tensor, rows: tuple[int, int] = QKV) -> Tensor:
    """LayerNorm and input projections (``rows``: which), (..., n, width) -> (..., n, parts, heads, head_width)."""
    attention, width = block.attn, x.shape[-1]
    take = slice(rows[0] * width, rows[1] * width)
    product = attention.in_proj_weight[take], attention.in_proj_bias[take]
    terms = [terms_of(block).get(name) for name in "qkv"[slice(*rows)]]
    if any(terms):
        normed = block.ln_1(x)
        parts = frozen_linear(normed, *product).split(width, dim=-1)
        y = torch.cat([plus(part, term, normed) for part, term in zip(parts, terms, strict=True)], dim=-1)
    elif _compiles and not x.is_meta:
        y = _run_compiled(norm_and_product, (x,), *_norm(block.ln_1), *map(cast_once, product))
    else:
        y = frozen_linear(block.ln_1(x), *product)
    return y.unflatten(-1, (rows[1] - rows[0], attention.num_heads, -1))


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Multi-head attention of (batch, n, heads, head_width) each; (batch, n_queries, width).

    The mask, (batch, 1, n_queries, n_keys) of 0 and -inf, is added to the scores; by default all sees all.
    """
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out.transpose(1, 2).flatten(2)


def finish(block: nn.Module, x: Tensor, attended: Tensor, beside: SideBranch | None = None) -> Tensor:
    """Output projection, MLP, both residual additions and a side branch, (..., n, width) -> (..., n, width)."""
    n_rows, at_once = x.shape[:-1].numel(), ROWS_AT_ONCE * torch.get_num_threads()
    if n_rows > at_once and not few_launches(x.device):
        size = math.ceil(n_rows / math.ceil(n_rows / at_once))  # of equal pieces
        pieces = zip(x.flatten(0, -2).split(size), attended.flatten(0, -2).split(size), strict=True)
        return torch.cat([finish(block, *piece, beside) for piece in pieces]).view(x.shape)
    if beside is not None:
        return finish(block, x, attended) + beside(block.ln_1(x)).to(x.dtype)
    output, mlp, terms = block.attn.out_proj, block.mlp, terms_of(block)
    if _compiles and not x.is_meta and not terms and isinstance(mlp.gelu, QuickGELU | nn.GELU):
        layers = [cast_once(tensor) for layer in (output, mlp.c_fc, mlp.c_proj) for tensor in layer.parameters()]
        return _run_compiled(second_half, (x, attended), *_norm(block.ln_2), *layers, isinstance(mlp.gelu, QuickGELU))
    x = x + plus(frozen_linear(attended, output.weight, output.bias), terms.get("o"), attended)
    return x + run_mlp(mlp, block.ln_2(x), terms.get("up"), terms.get("down"))


@torch.no_grad()
def prompt_mass(q: Tensor, k: Tensor, prompts: slice, mask: Tensor | None = None) -> Tensor:
    """Attention probability on the prompt keys, mean over heads and query rows; (n, n_prompts), float32.

    It is attention over values that say which key is which prompt, so no score is ever written down. Q, K and mask are
    as for :func:`attend`; the keys are those of the tokens as they arrive. No gradient (BMIP's stop-gradient).
    """
    n_keys, heads, width = k.shape[1:]
    q, k, mask = q.float(), k.float(), None if mask is None else mask.float()  # fp16 knows no share below 6e-8
    first, end, _ = prompts.indices(n_keys)
    which = _indicator(n_keys, first, end - first, max(width, end - first), q.device)
    with contextlib.nullcontext() if q.is_meta else torch.autocast(q.device.type, enabled=False):
        out = attend(q, k, which.expand(len(k), -1, heads, -1), mask).unflatten(-1, (heads, -1))
    return out[..., : end - first].mean(dim=(1, 2))


@functools.lru_cache(maxsize=64)
def _indicator(n_keys: int, first: int, n: int, width: int, device: torch.device) -> Tensor:
    """1 where a key is the prompt of that number, (1, n_keys, 1, width)."""
    which = torch.zeros(n_keys, width, device=device)
    which[first : first + n, :n] = torch.eye(n, device=device)
    return which[None, :, None]


# What torch.compile sees of a block (TRAIN.COMPILE): all but attention itself. Tensors come in one by one, as a block
# would be compiled anew for every layer, and rows flat, since their number may differ.

MAX_VARIANTS = 64  # of a compiled function: per tower, part, type and whether there are gradients
_compiles = False


def set_compile(compiles: bool) -> None:
    """Run the frozen blocks through torch.compile from now on, or not."""
    global _compiles
    _compiles = compiles


def norm_and_product(x: Tensor, ln_weight: Tensor, ln_bias: Tensor, eps: float, weight: Tensor, bias: Tensor) -> Tensor:
    """LayerNorm in float32 and a product, (rows, n_in) -> (rows, n_out)."""
    normed = F.layer_norm(x.float(), ln_weight.shape, ln_weight, ln_bias, eps).to(x.dtype)
    return F.linear(normed, weight, bias)


def second_half(
    x: Tensor,
    attended: Tensor,
    ln_weight: Tensor,
    ln_bias: Tensor,
    eps: float,
    w_out: Tensor,
    b_out: Tensor,
    w_up: Tensor,
    b_up: Tensor,
    w_down: Tensor,
    b_down: Tensor,
    quick: bool,
) -> Tensor:
    """What :func:`finish` computes of rows, (rows, width) -> (rows, width)."""
    x = x + F.linear(attended, w_out, b_out)
    hidden = norm_and_product(x, ln_weight, ln_bias, eps, w_up, b_up)
    hidden = hidden * torch.sigmoid(QUICK_GELU_SLOPE * hidden) if quick else F.gelu(hidden)
    return x + F.linear(hidden, w_down, b_down)


def _norm(layer: nn.LayerNorm) -> tuple[Tensor, Tensor, float]:
    return layer.weight, layer.bias, layer.eps


@functools.cache
def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    config = torch._dynamo.config
    limit = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"  # as it was called
    setattr(config, limit, max(MAX_VARIANTS, getattr(config, limit)))
    return torch.compile(function, dynamic=False)


def _run_compiled(function: Callable[..., Tensor], rows: tuple[Tensor, ...], *frozen: Any) -> Tensor:
    """The function of rows, (..., width) each, and frozen tensors, compiled once for any number of rows."""
    flat = [some.flatten(0, -2) for some in rows]
    for some in flat:
        torch._dynamo.maybe_mark_dynamic(some, 0)
    try:
        return _compiled(function)(*flat, *frozen).unflatten(0, rows[0].shape[:-1])
    except torch._dynamo.exc.TorchDynamoException as error:
        raise ValueError(f"TRAIN.COMPILE True: torch.compile failed here ({reason(error)}); set it to False") from error


# The MLP


def run_mlp(mlp: nn.Module, x: Tensor, up: Term | None = None, down: Term | None = None) -> Tensor:
    """A block's MLP with the terms beside its products, (..., width) -> (..., width)."""
    w_in, w_out = mlp.c_fc.weight, mlp.c_proj.weight
    frozen = not (w_in.requires_grad or w_out.requires_grad or up or down)
    # Autocast casts what it sees, and it does not see into an operation; tensors without values know no autocast.
    autocast = not x.is_meta and torch.is_autocast_enabled(x.device.type)
    if frozen and isinstance(mlp.gelu, QuickGELU) and not autocast:
        return FrozenMLP.apply(x, w_in, mlp.c_fc.bias, w_out, mlp.c_proj.bias)
    hidden = mlp.gelu(plus(frozen_linear(x, w_in, mlp.c_fc.bias), up, x))
    return plus(frozen_linear(hidden, w_out, mlp.c_proj.bias), down, hidden)


class FrozenMLP(torch.autograd.Function):
    """Product, QuickGELU, product as one operation, with a gradient for the rows alone.

    QuickGELU, x * sigmoid(1.702 x), is silu(1.702 x) / 1.702, and its derivative is silu's at 1.702 x. So the scaled
    input of the activation is the one tensor kept for the backward pass; the hidden rows, four widths each, are written
    where they lie. On a GPU the slope is in a copy of the weight and in the second product.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, w_in: Tensor, b_in: Tensor, w_out: Tensor, b_out: Tensor) -> Tensor:
        inplace = not ctx.needs_input_grad[0]
        if few_launches(x.device):
            scaled = F.linear(x, *_scaled_once(w_in, b_in))
            ctx.save_for_backward(scaled)
            hidden = F.silu(scaled, inplace=inplace).flatten(0, -2)
            ctx.weights, ctx.kernels = (w_in, w_out), (F.linear, F.linear)
            return torch.addmm(b_out, hidden, w_out.t(), alpha=1 / QUICK_GELU_SLOPE).view(*x.shape[:-1], -1)
        widen = CHOOSER.kernel(x, w_in)
        scaled = widen(x, w_in, b_in).mul_(QUICK_GELU_SLOPE)
        ctx.save_for_backward(scaled)
        hidden = F.silu(scaled, inplace=inplace).div_(QUICK_GELU_SLOPE)
        narrow = CHOOSER.kernel(hidden, w_out)
        ctx.weights, ctx.kernels = (w_in, w_out), (widen, narrow)
        return narrow(hidden, w_out, b_out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        (scaled,), (w_in, w_out), (widen, narrow) = ctx.saved_tensors, ctx.weights, ctx.kernels
        hidden = narrow(grad, w_out.t(), None)
        torch.ops.aten.silu_backward.grad_input(hidden, scaled, grad_input=hidden)
        return widen(hidden, w_in.t(), None), None, None, None, None


# Weight of a first layer -> its state when it was scaled, and the scaled weight and bias.
_scaled: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def _scaled_once(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias times the slope: copies that are kept, made anew if somebody writes to the weight or moves it."""
    state = weight._version, weight.dtype, weight.device, 0 if weight.is_meta else weight.data_ptr()
    if weight not in _scaled or _scaled[weight][0] != state:
        with torch.no_grad():
            _scaled[weight] = state, weight * QUICK_GELU_SLOPE, bias * QUICK_GELU_SLOPE
    return _scaled[weight][1:]


# Products with frozen weights: PyTorch's ``F.linear``, or oneDNN's kernels on CPUs where these are faster. Which kernel
# wins differs between CPUs, so it is measured: the first time that a product of a certain shape is met, every kernel
# computes it, forward and backward. One whose results differ from ``F.linear`` by more than rounding is never used. The
# times are kept in a file of the user's cache folder; they hold for this CPU, PyTorch and number of threads.

Kernel = Callable[[Tensor, Tensor, Tensor | None], Tensor]

# native: F.linear. onednn: the faster of oneDNN's kernels. auto: oneDNN's only where clearly faster, and without
# gradient also with prepacked weights, which double the memory of the towers' weights, while SPARE_BYTES are left.
# packed: with prepacked weights in training too, which triples it.
BACKENDS = ("auto", "native", "onednn", "packed")
MIN_FLOPS = 5e8  # of one product: smaller ones have nothing to gain that measuring would not eat
MIN_GAIN = 1.03  # over F.linear, for "auto" to choose another kernel: below it may be noise
SPARE_BYTES = 4 << 30
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
    return pointwise_linear(x, parts[part][1], bias)


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


class KernelChooser:
    """Chooses the kernel of every product by one of ``BACKENDS``; the times' file is the user's cache's by default."""

    def __init__(self, backend: str = "native", file: Path | None = None) -> None:
        self.backend, self.file = backend, file
        self.chosen: dict[str, str] = {}  # shape class and use -> kernel, of this process; for results.json

    def use(self, backend: str) -> None:
        """Choose by another backend from now on; a ValueError for an unknown name."""
        if backend not in BACKENDS:
            raise ValueError(f"TRAIN.FROZEN_LINEAR {backend!r}: choose one of {', '.join(BACKENDS)}")
        self.backend, self.chosen = backend, {}

    def kernel(self, x: Tensor, weight: Tensor) -> Kernel:
        """The kernel for a product; F.linear for all but large, frozen float32 products on the CPU."""
        if self.backend == "native" or x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
            return F.linear
        if x.dtype != torch.float32 or weight.dtype != torch.float32:
            return F.linear
        if weight.requires_grad or 2 * x.numel() * weight.shape[0] < MIN_FLOPS:
            return F.linear
        # Products that share a measurement: the same weight's shape, rows within a factor of two.
        rows = min(x.numel() // x.shape[-1], MAX_ROWS)
        shape = f"{1 << (rows - 1).bit_length()}x{weight.shape[1]}x{weight.shape[0]}"
        trains = torch.is_grad_enabled()
        use = shape if trains else f"{shape} without gradient"
        if use not in self.chosen:
            packs = self.backend == "auto" and not trains and memory_left() > SPARE_BYTES
            seconds = self._seconds(shape, rows, weight)
            self.chosen[use] = fastest(seconds, "packed" if packs else self.backend)
        return KERNELS[self.chosen[use]]

    def report(self) -> dict[str, Any]:
        """For results.json: the option and what it led to."""
        return {"backend": self.backend, "kernels": dict(sorted(self.chosen.items()))}

    def _seconds(self, shape: str, rows: int, weight: Tensor) -> dict[str, float]:
        """The kernels' times from the file, or measured."""
        folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "prompt-learning"
        path, key = self.file or folder / "linear.json", f"{machine_key()}|{shape}"
        seconds = _read_times(path).get(key)
        usable = isinstance(seconds, dict) and "native" in seconds
        if not usable or not all(name in KERNELS and isinstance(value, float) for name, value in seconds.items()):
            seconds = measure(rows, weight)
            # A folder that cannot be written costs a measurement per run, nothing else.
            with contextlib.suppress(OSError), atomic_write(path) as file:
                file.write(json.dumps({**_read_times(path), key: seconds}, indent=1).encode())
        return seconds


def _read_times(path: Path) -> dict[str, Any]:
    """All times on disk; none where the file is missing or damaged, since they can be measured again."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


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

    times: dict[str, list[float]] = {name: [] for name, kernel in KERNELS.items() if agrees(kernel)}
    # On a busy machine the time of one thread says more than the wall clock.
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    for _ in range(ROUNDS):
        for name, taken in times.items():
            start = clock()
            both(KERNELS[name])
            taken.append(clock() - start)
    return {name: min(taken[1:]) for name, taken in times.items()}


def memory_left() -> int:
    """Bytes that this process may still take, of the machine's memory and of its control group's; 0 if unknown."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        left = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return 0
    with contextlib.suppress(OSError, ValueError):  # without a limit it says "max"
        limit, used = (Path(f"/sys/fs/cgroup/memory.{what}").read_text(encoding="ascii") for what in ("max", "current"))
        left = min(left, int(limit) - int(used))
    return left


def machine_key() -> str:
    """What times depend on beside the shape."""
    name, info = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.is_file() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    cpu = f"{name} {torch.backends.cpu.get_cpu_capability()}"
    return f"{cpu}|torch {torch.__version__}|{torch.get_num_threads()} threads|float32|{','.join(KERNELS)}"


CHOOSER = KernelChooser()  # the choice of this process, as torch.backends has its flags


def frozen_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """One matrix product with frozen weights, (..., n_in) -> (..., n_out)."""
    kernel = CHOOSER.kernel(x, weight)
    if kernel is F.linear:
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
