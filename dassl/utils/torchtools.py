"""Parameters of models: counting, opening, initialising; running averages; and, as in Dassl, checkpoints."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

import torch
from torch import nn

from .checkpoint import load_checkpoint as load_checkpoint
from .checkpoint import load_pretrained_weights as load_pretrained_weights
from .checkpoint import resume_from_checkpoint as resume_from_checkpoint
from .checkpoint import save_checkpoint as save_checkpoint


class AverageMeter:
    """The last value and the average of a series; with `ema` an exponential one (0.9 old, 0.1 new)."""

    def __init__(self, ema: bool = False) -> None:
        self.ema = ema
        self.reset()

    def reset(self) -> None:
        """Forget all values."""
        self.val = 0.0
        self.avg = 0.0
        self.sum = 0.0
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
    model: nn.Module | None = None, params: Iterable[torch.Tensor | dict[str, torch.Tensor]] | None = None
) -> int:
    """Return the number of parameters of a model, or of an iterable of parameters or parameter groups.

    Raises:
        ValueError: if neither is given.
    """
    if model is not None:
        return sum(p.numel() for p in model.parameters())
    if params is not None:
        return sum(p["params"].numel() if isinstance(p, dict) else p.numel() for p in params)
    raise ValueError("count_num_param() needs a model or params")


def open_all_layers(model: nn.Module) -> None:
    """Put the model in training mode and let all parameters learn."""
    model.train()
    model.requires_grad_(True)


def open_specified_layers(model: nn.Module, open_layers: str | list[str]) -> None:
    """Let only the named children of the model learn; the others are frozen and in evaluation mode.

    Raises:
        ValueError: if the model has no child of that name.
    """
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

    Args:
        init_type: normal, xavier, kaiming or orthogonal; any other is a ValueError.
        gain: standard deviation (normal) or gain (xavier, orthogonal).
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
