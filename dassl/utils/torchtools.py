"""Parameters of models: counting, opening, initialising; and, as in Dassl, the names of `checkpoint`."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import torch
from torch import nn

from .checkpoint import load_checkpoint, load_pretrained_weights, resume_from_checkpoint, save_checkpoint

__all__ = [
    "count_num_param",
    "init_network_weights",
    "load_checkpoint",
    "load_pretrained_weights",
    "open_all_layers",
    "open_specified_layers",
    "resume_from_checkpoint",
    "save_checkpoint",
]

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
        model: network, changed in place.
        init_type: normal, xavier, kaiming or orthogonal.
        gain: standard deviation (normal) or gain (xavier, orthogonal).

    Raises:
        ValueError: if `init_type` is none of these.
    """
    if init_type not in _INITIALISERS:
        raise ValueError(f"init_type must be one of {list(_INITIALISERS)}, but got {init_type}")
    model.apply(partial(_init_module, init_type=init_type, gain=gain))


def _init_module(module: nn.Module, init_type: str, gain: float) -> None:
    kind = type(module).__name__
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if weight is None:
        return
    if "Conv" in kind or "Linear" in kind:
        _INITIALISERS[init_type](weight.data, gain)
    elif "BatchNorm" in kind or "InstanceNorm" in kind:
        nn.init.ones_(weight.data)
    else:
        return
    if bias is not None:
        nn.init.zeros_(bias.data)
