"""Optimisers by name, with an optional smaller learning rate for layers that were pretrained."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import nn
from yacs.config import CfgNode

AVAI_OPTIMS = ["adam", "amsgrad", "sgd", "rmsprop", "radam", "adamw"]
FUSED = ("adam", "amsgrad", "sgd", "adamw")  # those that PyTorch has as one kernel


def build_optimizer(
    model: nn.Module | Iterable[Any], optim_cfg: CfgNode, param_groups: Iterable[Any] | None = None
) -> torch.optim.Optimizer:
    """Build the optimiser `optim_cfg.NAME`.

    Args:
        model: network, or its parameters.
        optim_cfg: the section OPTIM of a config.
        param_groups: parameters or groups to optimise instead of the model's.

    Raises:
        ValueError: if the name is unknown, or NEW_LAYERS names a layer that the model lacks.
        TypeError: if STAGED_LR is set and `model` is not a network.
    """
    if optim_cfg.NAME not in AVAI_OPTIMS:
        raise ValueError(f"optim must be one of {AVAI_OPTIMS}, but got {optim_cfg.NAME}")
    if param_groups is not None:
        if optim_cfg.STAGED_LR:
            warnings.warn("OPTIM.STAGED_LR has no effect where param_groups are given", stacklevel=2)
    elif optim_cfg.STAGED_LR:
        param_groups = _staged_groups(model, optim_cfg)
    else:
        param_groups = model.parameters() if isinstance(model, nn.Module) else model
    groups = [_with_list(group) if isinstance(group, dict) else group for group in param_groups]
    options = {"fused": True} if _can_be_fused(groups, optim_cfg) else {}
    optim = _constructor(optim_cfg)(groups, lr=optim_cfg.LR, weight_decay=optim_cfg.WEIGHT_DECAY, **options)
    if options and optim_cfg.NAME == "sgd" and optim_cfg.MOMENTUM:
        _start_momentum(optim)
    return optim


def _start_momentum(optim: torch.optim.Optimizer) -> None:
    """Start from a momentum of 0, which changes nothing.

    Where a gradient scaler skips its first step, PyTorch's fused SGD would go on from uninitialised memory.
    """
    for group in optim.param_groups:
        for tensor in group["params"]:
            optim.state[tensor]["momentum_buffer"] = torch.zeros_like(tensor)


def _with_list(group: dict[str, Any]) -> dict[str, Any]:
    """Return the group with its parameters in a list: they may come from a generator, which can be read once."""
    params = group["params"]
    return {**group, "params": [params] if isinstance(params, torch.Tensor) else list(params)}


def _can_be_fused(groups: list[Any], cfg: CfgNode) -> bool:
    """Return whether the step can be one kernel: on CUDA, where launching one per tensor takes longer than it."""
    if cfg.NAME == "sgd" and cfg.SGD_DAMPNING:  # which the first step of a momentum leaves out
        return False
    tensors = [tensor for group in groups for tensor in (group["params"] if isinstance(group, dict) else [group])]
    return cfg.FUSED and cfg.NAME in FUSED and all(tensor.is_cuda for tensor in tensors)


def _constructor(cfg: CfgNode) -> partial[torch.optim.Optimizer]:
    """Return the optimiser class with what only it takes filled in."""
    betas = (cfg.ADAM_BETA1, cfg.ADAM_BETA2)
    if cfg.NAME == "sgd":
        return partial(torch.optim.SGD, momentum=cfg.MOMENTUM, dampening=cfg.SGD_DAMPNING, nesterov=cfg.SGD_NESTEROV)
    if cfg.NAME == "rmsprop":
        return partial(torch.optim.RMSprop, momentum=cfg.MOMENTUM, alpha=cfg.RMSPROP_ALPHA)
    if cfg.NAME == "radam":
        return partial(torch.optim.RAdam, betas=betas, decoupled_weight_decay=True)
    if cfg.NAME == "adamw":
        return partial(torch.optim.AdamW, betas=betas)
    return partial(torch.optim.Adam, betas=betas, amsgrad=cfg.NAME == "amsgrad")


def _staged_groups(model: nn.Module | Iterable[Any], cfg: CfgNode) -> list[dict[str, Any]]:
    """Return two groups: layers at LR * BASE_LR_MULT, and those of NEW_LAYERS at LR."""
    if not isinstance(model, nn.Module):
        raise TypeError("OPTIM.STAGED_LR needs the network itself, not its parameters")
    if isinstance(model, nn.DataParallel):
        model = model.module
    new_layers = [cfg.NEW_LAYERS] if isinstance(cfg.NEW_LAYERS, str) else list(cfg.NEW_LAYERS)
    layers = dict(model.named_children())
    missing = [name for name in new_layers if name not in layers]
    if missing:
        raise ValueError(f"OPTIM.NEW_LAYERS names {missing}, but the network has {list(layers)}")
    if not new_layers:
        warnings.warn("OPTIM.NEW_LAYERS is empty: all layers learn at LR * BASE_LR_MULT", stacklevel=3)
    base = [p for name, layer in layers.items() if name not in new_layers for p in layer.parameters()]
    new = [p for name in layers if name in new_layers for p in layers[name].parameters()]
    return [{"params": base, "lr": cfg.LR * cfg.BASE_LR_MULT}, {"params": new}]
